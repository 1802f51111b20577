"""Orders written back into torch models: what moves along, what is refused, what stays."""

from __future__ import annotations

import copy
import doctest
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast._layers import Layer, Layers

torch = pytest.importorskip("torch")
permuting = importlib.import_module("descramble_fast.torch._permute")
permutable, permute_model = permuting.permutable, permuting.permute_model
nn, F = torch.nn, torch.nn.functional
Linear = nn.Linear
Order = NDArray[np.int64]

EXACT = 1e-12  # relative, for float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Model(nn.Module):
    """Modules and parameters by name, and a function of them."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def parameter(*shape: int) -> Any:
    return nn.Parameter(torch.randn(*shape))


def rows(*shape: int) -> Any:
    return torch.randn(*shape, dtype=torch.float64)


def ready(model: Any) -> Any:
    """In float64, with every parameter and running moment a number of its own."""
    model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) / 3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model


def tensors_of(output: Any) -> list[Any]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [
        tensor
        for value in values
        if isinstance(value, (torch.Tensor, Mapping, tuple, list))
        for tensor in tensors_of(value)
    ]


def outputs(model: Any, inputs: Any) -> list[Any]:
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    return [tensor.clone() for tensor in tensors_of(found)]


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: Any, before: dict[str, Any]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


def difference(before: list[Any], after: list[Any]) -> float:
    return max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(before, after, strict=True)
    )


def shuffled(n: int, seed: int = 0) -> Order:
    return np.random.default_rng(seed).permutation(n)


def blocks(h: int, d: int, own: bool = True) -> Order:
    """An order of blocks, each with its own order inside or all with the same."""
    rng = np.random.default_rng(h * d)
    inner = [rng.permutation(d) for _ in range(h)]
    return np.concatenate([b * d + inner[b if own else 0] for b in rng.permutation(h)])


def alike(h: int, d: int) -> Order:
    return blocks(h, d, own=False)


def check(
    model: Any, inputs: Any, orders: Mapping[str, Any], groups: Any = None, exact: float = EXACT
) -> Any:
    """Reorder, and compare outputs and weights with what they were; then undo."""
    before, old = outputs(model, inputs), state(model)
    result = permute_model(model, orders, inputs, groups=groups)
    measured = difference(before, outputs(model, inputs))
    assert measured <= exact
    assert result.max_difference == pytest.approx(measured, rel=1e-6, abs=1e-15)
    assert not same_state(model, old)
    assert set(orders) <= set(result.layers)
    for name, order in orders.items():
        weight = dict(model.named_modules()).get(name)
        weight = getattr(weight, "weight", None)
        if isinstance(weight, nn.Parameter) and len(order) == len(weight):
            was = old[f"{name}.weight"][order]
            # The columns may have moved, too.
            assert torch.equal(weight.flatten(1).sort(1)[0], was.flatten(1).sort(1)[0])
    result.undo()
    assert same_state(model, old)
    result.undo()
    assert same_state(model, old)
    return result


def refused(
    model: Any, inputs: Any, orders: Mapping[str, Any], message: str, groups: Any = None
) -> None:
    old = state(model)
    with pytest.raises(ValueError, match=message):
        permute_model(model, orders, inputs, groups=groups)
    assert same_state(model, old)


# What moves along


def test_rows_biases_and_the_next_columns_move() -> None:
    model = ready(nn.Sequential(Linear(5, 8), nn.GELU(), Linear(8, 6), nn.Tanh(), Linear(6, 2)))
    inputs = rows(7, 5)
    model(inputs).sum().backward()
    model[0].bias.requires_grad_(False)
    model[2].train()
    parameters = dict(model.named_parameters())
    old = {k: v.detach().clone() for k, v in parameters.items()}
    gradient = model[2].weight.grad.clone()
    before, numbers = outputs(model, (inputs,)), torch.get_rng_state()
    p, q = shuffled(8), shuffled(6)
    result = permute_model(model, {"0": p, "2": torch.from_numpy(q)}, inputs)
    expected = {
        "0.weight": old["0.weight"][p],
        "0.bias": old["0.bias"][p],
        "2.weight": old["2.weight"][q][:, p],
        "2.bias": old["2.bias"][q],
        "4.weight": old["4.weight"][:, q],
        "4.bias": old["4.bias"],
    }
    for name, weight in model.named_parameters():
        assert weight is parameters[name]
        assert torch.equal(weight.detach(), expected[name])
        assert weight.requires_grad == (name != "0.bias")
    assert torch.equal(model[2].weight.grad, gradient[q][:, p])
    assert model[2].training
    assert not model[0].training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert difference(before, outputs(model, (inputs,))) <= EXACT
    assert result.model is model
    assert result.layers == ("0", "2")
    assert result.members == (
        ("0.weight", 0),
        ("0.bias", 0),
        ("2.weight", 0),
        ("2.weight", 1),
        ("2.bias", 0),
        ("4.weight", 1),
    )


def gated(self: Any, x: Any) -> Any:
    return self.down(F.silu(self.gate(x)) * self.up(x))


def dense(self: Any, x: Any) -> Any:
    x = torch.cat([x, self.a(x).relu()], -1)
    return self.out(torch.cat([self.b(x).relu(), x], -1))


def residual(self: Any, x: Any) -> Any:
    x = self.stem(x)
    for block in (self.one, self.two):
        x = F.relu(x + block(x))
    return self.head(x.mean((-1, -2)))


def squeeze_excite(self: Any, x: Any) -> Any:
    x = self.a(x)
    scale = self.up(self.down(F.adaptive_avg_pool2d(x, 1).flatten(1)).relu()).sigmoid()
    return self.out(x * scale[:, :, None, None])


def in_place(self: Any, x: Any) -> Any:
    y = F.relu_(self.a(x))
    y.mul_(2).add_(self.b(x))
    return self.out(y)


def grouped_queries(self: Any, x: Any) -> Any:
    q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return self.out(y.transpose(1, 2).flatten(2))


def block() -> Any:
    return nn.Sequential(
        nn.Conv2d(8, 5, 1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 8, 3, padding=1),
        nn.BatchNorm2d(8),
    )


def cnn(norm: Any) -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm,
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        Linear(24, 10),
        nn.ReLU(),
        Linear(10, 2),
    )


IMAGES = (3, 8, 8)
MODELS: dict[str, tuple[Callable[[], Any], Sequence[int], Callable[[], dict[str, Order]]]] = {
    "functional activations": (
        lambda: Model(
            lambda m, x: m.b(F.gelu(m.a(x)).clamp(max=2) ** 2), a=Linear(5, 8), b=Linear(8, 2)
        ),
        (5,),
        lambda: {"a": shuffled(8)},
    ),
    "gated": (
        lambda: Model(gated, gate=Linear(5, 8), up=Linear(5, 8), down=Linear(8, 3)),
        (5,),
        lambda: {"gate": shuffled(8)},
    ),
    "gated, fused": (
        lambda: nn.Sequential(Linear(5, 16), nn.GLU(), Linear(8, 3)),
        (5,),
        lambda: {"0": shuffled(8)},
    ),
    "softmax over neurons": (
        lambda: nn.Sequential(
            Linear(5, 8), nn.Softmax(-1), nn.LayerNorm(8), nn.PReLU(8), Linear(8, 2)
        ),
        (5,),
        lambda: {"0": shuffled(8)},
    ),
    "one behind the other": (
        lambda: Model(dense, a=Linear(5, 8), b=Linear(13, 4), out=Linear(17, 2)),
        (5,),
        lambda: {"a": shuffled(8), "b": shuffled(4)},
    ),
    "used twice": (
        lambda: Model(
            lambda m, x: m.b(torch.tanh(m.r(torch.tanh(m.r(m.a(x)))))),
            a=Linear(5, 6),
            r=Linear(6, 6),
            b=Linear(6, 2),
        ),
        (5,),
        lambda: {"r": shuffled(6)},
    ),
    "weights in another weight": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(Linear(5, 8)), nn.ReLU(), Linear(8, 2)
        ),
        (5,),
        lambda: {"0": shuffled(8)},
    ),
    "plain parameters": (
        lambda: Model(
            lambda m, x: (x @ m.a + m.c).relu() @ m.b.T,
            a=parameter(5, 8),
            c=parameter(8),
            b=parameter(2, 8),
        ),
        (5,),
        lambda: {"a": shuffled(8)},
    ),
    "in place": (
        lambda: Model(in_place, a=Linear(5, 8), b=Linear(5, 8), out=Linear(8, 2)),
        (5,),
        lambda: {"a": shuffled(8)},
    ),
    "batch norm": (
        lambda: cnn(nn.BatchNorm2d(8)),
        IMAGES,
        lambda: {"0": shuffled(8), "3": shuffled(6), "6": shuffled(10)},
    ),
    "instance norm": (
        lambda: cnn(nn.InstanceNorm2d(8, affine=True)),
        IMAGES,
        lambda: {"0": shuffled(8)},
    ),
    "group norm": (lambda: cnn(nn.GroupNorm(2, 8)), IMAGES, lambda: {"0": blocks(2, 4)}),
    "group norm, its groups alone": (
        lambda: cnn(nn.GroupNorm(4, 8)),
        IMAGES,
        lambda: {"0": shuffled(4)},
    ),
    "residual stream": (
        lambda: Model(
            residual, stem=nn.Conv2d(3, 8, 3), one=block(), two=block(), head=Linear(8, 3)
        ),
        IMAGES,
        lambda: {"one.3": shuffled(8), "two.0": shuffled(5)},
    ),
    "squeeze and excite": (
        lambda: Model(
            squeeze_excite,
            a=nn.Conv2d(3, 8, 1),
            down=Linear(8, 3),
            up=Linear(3, 8),
            out=nn.Conv2d(8, 2, 1),
        ),
        IMAGES,
        lambda: {"a": shuffled(8), "down": shuffled(3)},
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), nn.ReLU6(), nn.Conv2d(16, 2, 1)
        ),
        IMAGES,
        lambda: {"1": blocks(8, 2)},
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 6, 3, groups=3),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        ),
        IMAGES,
        lambda: {"0": alike(3, 4)},
    ),
    "grouped, its outputs": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 6, 3, groups=3),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        ),
        IMAGES,
        lambda: {"2": blocks(3, 2)},
    ),
    "transposed convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ConvTranspose2d(8, 6, 2, stride=2),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(6, 2, 1),
        ),
        IMAGES,
        lambda: {"0": shuffled(8), "1": shuffled(6)},
    ),
    "shuffled channels and pixels": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ChannelShuffle(2),
            nn.Conv2d(8, 12, 1),
            nn.PixelShuffle(2),
            nn.Conv2d(3, 2, 1),
        ),
        IMAGES,
        lambda: {"0": alike(2, 4), "2": shuffled(3)},
    ),
    "one and three dimensions": (
        lambda: Model(
            lambda m, x: m.d(
                m.c(m.b(m.a(x.flatten(2)).relu()).unflatten(2, (8, 8))[:, :, None]).relu()
            ),
            a=nn.Conv1d(3, 8, 1),
            b=nn.Conv1d(8, 4, 1),
            c=nn.Conv3d(4, 6, (1, 3, 3)),
            d=nn.Conv3d(6, 2, 1),
        ),
        IMAGES,
        lambda: {"a": shuffled(8), "c": shuffled(6)},
    ),
    "multi-head attention": (
        lambda: Model(
            lambda m, x: m.b(m.a(x, x, x)[0]),
            a=nn.MultiheadAttention(12, 3, batch_first=True),
            b=Linear(12, 2),
        ),
        (7, 12),
        lambda: {"a": shuffled(3), "a.out_proj": shuffled(12)},
    ),
    "attention to another sequence": (
        lambda: Model(
            lambda m, x: m.b(m.a(x, x[..., :5], x[..., :5])[0]),
            a=nn.MultiheadAttention(12, 3, batch_first=True, kdim=5, vdim=5),
            b=Linear(12, 2),
        ),
        (7, 12),
        lambda: {"a.v_proj_weight": blocks(3, 4)},
    ),
    "queries in groups": (
        lambda: Model(
            grouped_queries, q=Linear(12, 24), k=Linear(12, 8), v=Linear(12, 8), out=Linear(24, 2)
        ),
        (7, 12),
        lambda: {"k": blocks(2, 4)},
    ),
    "transformer layer": (
        lambda: nn.Sequential(
            Linear(12, 12), nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), Linear(12, 2)
        ),
        (7, 12),
        lambda: {"0": shuffled(12), "1.self_attn": shuffled(3), "1.linear1": shuffled(20)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay(name: str) -> None:
    build, shape, orders = MODELS[name]
    check(ready(build()), (rows(2, *shape),), orders())


def test_layers_that_share_neurons_move_together() -> None:
    build, shape, _ = MODELS["gated"]
    model, inputs = ready(build()), (rows(2, *shape),)
    found, p = permutable(model, inputs), shuffled(8)
    assert found["gate"].together == ("up",)
    for orders in ({"gate": p, "up": p}, {"up": p}):
        assert check(model, inputs, orders, found).layers == ("gate", "up")
    message = r"orders\['up'\]: its neurons are those of 'gate', whose order differs"
    refused(model, inputs, {"gate": p, "up": p[::-1]}, message, found)


def test_tied_weights_move_once() -> None:
    tied = ready(
        Model(lambda m, x: m.b(m.a(x).relu()).relu() @ m.a.weight, a=Linear(5, 8), b=Linear(8, 8))
    )
    tied.c = nn.Embedding(8, 5)
    tied.c.weight = tied.a.weight
    check(tied, (rows(2, 5),), {"a": shuffled(8)})
    # Read back as words of the vocabulary, its rows are fixed by the indices.
    model = ready(
        Model(lambda m, i: F.linear(m.b(m.a(i)), m.a.weight), a=nn.Embedding(9, 4), b=Linear(4, 4))
    )
    check(model, (torch.arange(6),), {"a": shuffled(4)})


def every_order(structure: Any, seed: int) -> dict[Any, Any]:
    """Orders of all that can be reordered, each as free as it is said to be."""
    rng = np.random.default_rng(seed)
    found = {}
    for axes in structure.stored.values():
        for part in (part for axis in axes for part in permuting.parts(axis)):
            if not part.pins:
                outer = structure.outer.get(part, ())
                table = np.empty((*(one.size for one in outer), part.size), dtype=np.int64)
                for at in np.ndindex(table.shape[:-1]):
                    table[at] = rng.permutation(part.size)
                found.setdefault(part, permuting.Order(outer, table, "every"))
    return found


def heads(mix: Callable[[Any, Any], Any], a: int, b: int, out: int) -> Callable[[], Any]:
    return lambda: Model(
        lambda m, x: m.out(mix(m.a(x), m.b(x)).flatten(1)),
        a=Linear(5, a),
        b=Linear(5, b),
        out=Linear(out, 2),
    )


def cut(x: Any, n: int) -> Any:
    """Treat the first n in another way than the others."""
    return torch.cat([x[:, :n].softmax(-1), x[:, n:]], 1)


def grouped(x: Any, h: int) -> Any:
    return x.unflatten(1, (h, -1)).softmax(-1).flatten(1)


# Blocks whose inner orders are free, and some where an operation lets them not be.
MIXED: dict[str, tuple[Callable[[], Any], Sequence[int], str | None]] = {
    "a factor for each block": (
        heads(lambda a, b: a.view(2, 4, 2) * b[:, :, None], 8, 4, 8),
        (5,),
        "4 blocks of 2",
    ),
    "a factor within": (
        heads(lambda a, b: a.view(2, 4, 2) * b[:, None], 8, 2, 8),
        (5,),
        "4 blocks of 2 alike",
    ),
    "a mean over blocks": (
        heads(lambda a, b: a.view(2, 4, 2).mean(1) + b, 8, 2, 2),
        (5,),
        "4 blocks of 2 alike",
    ),
    "a maximum within": (
        heads(lambda a, b: a.view(2, 4, 2).amax(2) + b, 8, 4, 4),
        (5,),
        "4 blocks of 2",
    ),
    "across blocks": (
        heads(
            lambda a, b: torch.einsum("nhd,ngd->nhg", a.view(2, 4, 2), b.view(2, 3, 2)), 8, 6, 12
        ),
        (5,),
        "4 blocks of 2 alike",
    ),
    "with itself": (
        heads(
            lambda a, b: (
                torch.einsum("nhd,ngd->nhg", a.view(2, 4, 2), a.view(2, 4, 2)) + b[:, :1, None]
            ),
            8,
            6,
            16,
        ),
        (5,),
        "4 blocks of 2 alike",
    ),
    "one tensor behind another": (
        heads(lambda a, b: torch.cat([a.view(2, 4, 2), b.view(2, 3, 2)], 1).softmax(-1), 8, 6, 14),
        (5,),
        "4 blocks of 2 alike",
    ),
    "transposed": (
        heads(lambda a, b: a.view(2, 4, 2).mT.flatten(1) + b, 8, 8, 8),
        (5,),
        "4 blocks of 2 alike",
    ),
    "grouped in two ways": (
        heads(lambda a, b: (a.view(2, 4, 2).mT.flatten(1) + b) * a, 8, 8, 8),
        (5,),
        "2 blocks of 2 alike blocks of 2 alike",
    ),
    "repeated": (
        heads(lambda a, b: a.repeat(1, 2) * b.repeat_interleave(2, 1), 4, 4, 8),
        (5,),
        "2 blocks of 2",
    ),
    "a running sum over blocks": (
        heads(lambda a, b: a.view(2, 4, 2).cumsum(1) + b[:, :1, None], 8, 6, 8),
        (5,),
        "4 fixed blocks of 2 alike",
    ),
    "in causal order": (
        heads(
            lambda a, b: (
                F.scaled_dot_product_attention(*3 * [a.view(2, 4, 3)], is_causal=True)
                + b[:, :1, None]
            ),
            12,
            6,
            12,
        ),
        (5,),
        "4 fixed blocks of 3 alike",
    ),
    "in threes and in fours": (
        heads(lambda a, b: grouped(a, 4) + grouped(a, 3) + b, 12, 12, 12),
        (5,),
        "none",
    ),
    "cut within a block": (
        heads(lambda a, b: cut(a, 5) + grouped(a, 4) + b, 12, 12, 12),
        (5,),
        "none",
    ),
    "cut within a block of a part": (
        heads(
            lambda a, b: torch.cat([grouped(a[:, :12], 4), a[:, 12:]], 1) + cut(b, 5), 14, 14, 14
        ),
        (5,),
        "none",
    ),
    **{
        name: (*MODELS[name][:2], None)
        for name in ("queries in groups", "grouped", "transformer layer", "group norm")
    },
}


@pytest.mark.parametrize("name", MIXED)
def test_every_order_that_is_offered_is_right(name: str) -> None:
    build, shape, text = MIXED[name]
    model, inputs = ready(build()), (rows(2, *shape),)
    structure = permuting._Structure.of(model, inputs)
    if text is not None:
        assert structure.describe("a").orders == text
    before = outputs(model, inputs)
    for seed in range(5):
        found = every_order(structure, seed)
        moves = permuting._Moves()
        for key, axes in structure.stored.items():
            for i, axis in enumerate(axes):
                index = permuting.sources(axis, found)
                assert np.array_equal(np.sort(index), np.arange(len(index)))
                moves.make(structure.tensors[structure.names[key][0]], i, index)
        assert difference(before, outputs(model, inputs)) <= EXACT
        moves.undo()
        # What a layer is told by its parts is also what they are read from it.
        for layer, (axis, _) in structure.layers.items():
            whole = permuting.sources(axis, found)
            again = structure.orders([(layer, False, whole)])
            assert np.array_equal(permuting.sources(axis, again), whole)


def test_blocks_alike_are_refused_orders_of_their_own() -> None:
    for name in ("a factor within", "across blocks", "with itself", "one tensor behind another"):
        build, shape, _ = MIXED[name]
        model, inputs = ready(build()), (rows(2, *shape),)
        found, message = permutable(model, inputs), "does not keep 4 blocks of 2 alike: view in"
        refused(model, inputs, {"a": blocks(4, 2)}, message, found)
        check(model, inputs, {"a": alike(4, 2)}, found)


# Transformers


def words(**extra: Any) -> dict[str, Any]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": torch.randint(0, 50, (2, 7)), "attention_mask": mask, **extra}


SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40}


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(num_attention_heads=3, **SIZES)
    model, inputs = ready(transformers.BertModel(config)), words()
    layer = "encoder.layer.1."
    found = permutable(model, inputs)
    assert found[layer + "intermediate.dense"].orders == "any"
    query = found[layer + "attention.self.query"]
    assert (query.orders, query.lengths, query.neurons) == ("3 blocks of 8", (24, 3, 8), 24)
    assert query.together == (layer + "attention.self.key", layer + "attention.self.value")
    assert (layer + "attention.output.dense.weight", 1) in query.members
    assert found["pooler.dense"].reason == "they are in the order of the model's output 1"
    value = blocks(3, 8)
    orders = {
        "encoder.layer.0.intermediate.dense": shuffled(40),
        layer + "intermediate.dense": shuffled(40, 1),
        "encoder.layer.0.attention.self.query": shuffled(3),
        layer + "attention.self.value": value,
        layer + "attention.self.key": value[::8] // 8,
    }
    check(model, inputs, orders, found)
    refused(
        model,
        inputs,
        {layer + "attention.self.value": shuffled(24)},
        "keep 3 blocks of 8: view in",
        found,
    )
    refused(
        model, inputs, {"pooler.dense": shuffled(24)}, "cannot move: .* the model's output 1", found
    )
    classifier = ready(transformers.BertForSequenceClassification(config))
    stream = check(classifier, inputs, {"bert.embeddings.word_embeddings": shuffled(24)})
    assert ("bert.encoder.layer.1.output.LayerNorm.bias", 0) in stream.members
    assert ("bert.pooler.dense.weight", 1) in stream.members


def test_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    model, inputs = ready(transformers.GPT2LMHeadModel(config)), words()
    found = permutable(model, inputs)
    assert found["transformer.h.0.mlp.c_fc"].orders == "any"
    assert found["transformer.h.0.attn.c_attn"].orders == "3 times 3 blocks of 8"
    assert found.unused == ()
    orders = {
        "transformer.wte": shuffled(24),
        "transformer.h.0.attn.c_attn": shuffled(3),
        "transformer.h.1.mlp.c_fc": shuffled(96),
    }
    check(model, inputs, orders, found)
    # Queries and keys in one order within heads, values in another; the heads in the same.
    heads_, own = shuffled(3, 5), [[shuffled(8, 10 * i + h) for h in range(3)] for i in (0, 1)]
    parts = [[h * 8 + own[i][h] for h in heads_] for i in (0, 0, 1)]
    full = np.concatenate([24 * i + np.concatenate(part) for i, part in enumerate(parts)])
    check(model, inputs, {"transformer.h.1.attn.c_attn": full}, found)
    refused(model, inputs, {"lm_head": shuffled(50)}, "embedding in transformer.wte tells", found)


def test_llama() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **SIZES)
    model, inputs = ready(transformers.LlamaForCausalLM(config)), words()
    found, layer = permutable(model, inputs), "model.layers.0."
    orders = {
        layer + "mlp.up_proj": shuffled(40),
        layer + "self_attn.q_proj": alike(2, 2),  # four heads in two groups
        "model.embed_tokens": shuffled(24),
    }
    # Its norms and rotations are computed in float32, whatever the weights are.
    result = check(model, inputs, orders, found, exact=1e-6)
    assert layer + "mlp.gate_proj" in result.layers
    assert result.tolerance > 1e-5
    # Within heads, rotations are by frequencies that are not saved with the model.
    inner = np.concatenate([[1, 0], np.arange(2, 12)])
    refused(
        model,
        inputs,
        {layer + "self_attn.k_proj": inner},
        "rotary_emb.inv_freq, a buffer not",
        found,
    )
    check(model, inputs, {layer + "self_attn.v_proj": blocks(2, 6)}, found, exact=1e-6)


def test_experts() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        **SIZES | {"num_hidden_layers": 1},
    )
    model, inputs = ready(transformers.MixtralForCausalLM(config)).float(), words()
    layer = "model.layers.0."
    orders = {layer + "mlp.experts.gate_up_proj": shuffled(40), "model.embed_tokens": shuffled(24)}
    result = check(model, inputs, orders, exact=1e-4)
    assert (layer + "mlp.experts.down_proj", 2) in result.members
    assert (layer + "mlp.gate.weight", 1) in result.members


# What is refused


# What is done to the neurons of one of several layers, and why they are refused another order.
APART: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "rolled": (lambda h, x: h.roll(1, -1), "cannot move: roll in the model tells them apart"),
    "added": (lambda h, x: h.cumsum(-1), "cannot move: cumsum in the model tells them apart"),
    "sorted": (lambda h, x: h.topk(8, -1)[0], "cannot move: topk in the model"),
    "largest": (lambda h, x: h + h.argmax(-1, True), "cannot move: argmax in the model"),
    "where": (lambda h, x: h + h.max(-1, True)[1], "cannot move: max in the model"),
    "counted": (lambda h, x: h * torch.arange(8), "cannot move: arange in the model"),
    "chosen": (lambda h, x: h[:, torch.arange(8)], "cannot move: index in the model"),
    "skipped": (lambda h, x: h[:, ::2].repeat(1, 2), "cannot move: slice in the model"),
    "dropped": (
        lambda h, x: F.dropout(h, 0.5, True) * 0,
        "cannot move: native_dropout in the model is not",
    ),
    "unknown": (
        lambda h, x: torch.ops.permuting.unknown(h),
        "unknown in the model is not among the operations that this follows",
    ),
    "padded": (lambda h, x: F.pad(h, (1, 0))[:, 1:], "cannot move: pad in the model"),
    "of the input": (
        lambda h, x: h + torch.cat([x, x[:, :3]], -1),
        "cannot move: .*they are in the order of the model's input 0",
    ),
    "cut": (
        lambda h, x: h + F.pad(h[..., :5].sum(-1, True), (0, 7)).sum(-1, True),
        r"does not keep 5 \+ 3: slice in the model tells parts of them apart",
    ),
}


def test_neurons_that_are_told_apart_are_refused() -> None:
    def function(m: Any, x: Any) -> Any:
        return sum(m.out[name](use(m.a[name](x), x)) for name, (use, _) in APART.items())

    layers = [nn.ModuleDict({name: Linear(*shape) for name in APART}) for shape in ((5, 8), (8, 2))]
    model, inputs = ready(Model(function, a=layers[0], out=layers[1])), (rows(2, 5),)
    with torch.library._scoped_library("permuting", "FRAGMENT") as library:
        library.define("unknown(Tensor x) -> Tensor")
        library.impl("unknown", torch.tan, "CompositeExplicitAutograd")
        found = permutable(model, inputs)
        for name, (_, message) in APART.items():
            refused(model, inputs, {f"a.{name}": shuffled(8)}, message, found)


def test_neurons_that_are_seen_or_drawn_are_refused() -> None:
    def function(m: Any, x: Any) -> Any:
        return m.b(m.a(x)) + m.d(F.dropout(m.c(x), 0.5, training=True)), {"hidden": [m.a(x)]}

    model = ready(Model(function, a=Linear(5, 8), b=Linear(8, 2), c=Linear(5, 8), d=Linear(8, 2)))
    inputs = (rows(2, 5),)
    found = permutable(model, inputs)
    message = r"orders\['a'\]: its neurons cannot move: they are in the order of the .* output 1"
    refused(model, inputs, {"a": shuffled(8)}, message, found)
    message = r"orders\['c'\]: its neurons cannot move: dropout in the model is not among"
    refused(model, inputs, {"c": shuffled(8)}, message, found)


def test_a_rule_that_fails_fixes_the_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = importlib.import_module("descramble_fast.torch._graph")
    monkeypatch.setitem(graph._RULES, "softmax", lambda *_: {}["dim"])
    build, shape, _ = MODELS["softmax over neurons"]
    inputs = (rows(2, *shape),)
    refused(ready(build()), inputs, {"0": shuffled(8)}, "softmax in 1 is not among the operations")


def test_orders_that_break_groups_are_refused() -> None:
    model, inputs = ready(cnn(nn.GroupNorm(2, 8))), (rows(2, *IMAGES),)
    refused(
        model,
        inputs,
        {"0": shuffled(8)},
        r"\['0'\]: got an order that does not keep 2 blocks of 4: group_norm in 1 groups them",
    )
    build, shape, _ = MODELS["grouped"]
    refused(
        ready(build()),
        (rows(2, *shape),),
        {"0": blocks(3, 4)},
        "does not keep 3 blocks of 4 alike: conv2d in 2 groups them",
    )


def test_wrong_orders_and_names_say_what_was_expected() -> None:
    mlp = nn.Sequential(Linear(5, 8), nn.ReLU(), Linear(8, 2))
    model, inputs = ready(Model(lambda m, x: m.mlp(x), mlp=mlp)), (rows(2, 5),)
    found = permutable(model, inputs)
    for name, order, message in [
        ("mlp.0", shuffled(7), r"orders\['mlp.0'\]: got an order of 7, expected 8"),
        ("mlp.0", np.zeros(8, int), "no permutation of 0 ... 7"),
        ("mlp.0", np.zeros((2, 4), int), r"shape \(2, 4\), expected one axis"),
        ("mlp.1", shuffled(8), r"no such layer; did you mean .*'mlp.0'"),
        ("0", shuffled(8), r"no such layer; did you mean 'mlp.0'"),
    ]:
        refused(model, inputs, {name: order}, message, found)
    refused(copy.deepcopy(model), inputs, {"mlp.0": shuffled(8)}, "for another model", found)
    with pytest.raises(TypeError, match="dtype float64, expected an array of integers"):
        permute_model(model, {"mlp.0": np.arange(8.0)}, inputs)
    with pytest.raises(TypeError, match="orders: got list, expected a mapping"):
        permute_model(model, [shuffled(8)], inputs)
    with pytest.raises(TypeError, match="inputs: got float, expected a tensor"):
        permute_model(model, {"mlp.0": shuffled(8)}, 1.0)
    with pytest.raises(TypeError, match=r"model: got function, expected a torch.nn.Module"):
        permutable(lambda x: x, inputs)


def branching(m: Any, x: Any) -> Any:
    hidden = m.a(x)
    return m.b(hidden.relu()) if float(hidden.sum()) > 0 else m.b(hidden.tanh())


def test_data_dependent_control_flow_asks_for_groups() -> None:
    model, inputs = ready(Model(branching, a=Linear(5, 8), b=Linear(8, 2))), (rows(2, 5),)
    refused(model, inputs, {"a": shuffled(8)}, "cannot be exported .*; say with groups")
    groups = {"hidden": [("a.weight", 0), ("a.bias", -1), ("b.weight", 1)]}
    before, old, p = outputs(model, inputs), state(model), shuffled(8)
    result = permute_model(model, {"hidden": p}, inputs, groups=groups)
    assert result.layers == ("hidden",)
    assert result.members == (("a.weight", 0), ("a.bias", 0), ("b.weight", 1))
    assert difference(before, outputs(model, inputs)) <= EXACT
    assert torch.equal(model.b.weight.detach(), old["b.weight"][:, p])


def test_a_flattened_axis_moves_in_blocks_of_a_group() -> None:
    model, inputs = ready(cnn(nn.BatchNorm2d(8))), (rows(2, *IMAGES),)
    before = outputs(model, inputs)
    groups = {"channels": [("3.weight", 0), ("3.bias", 0), ("6.weight", 1)]}
    permute_model(model, {"channels": shuffled(6)}, inputs, groups=groups)
    assert difference(before, outputs(model, inputs)) <= EXACT


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.weight", 0), ("a.bias", 0)], "outputs differ by .* it is left as it was"),
        ([("a.weight", 0), ("b.weight", 1)], "outputs differ by"),
        (
            [("a.weight", 0), ("a.bias", 0), ("b.weight", 0)],
            "has 8 entries, expected a multiple of 3",
        ),
        ([("a.weigth", 0)], r"groups\['one'\]: .* no such parameter; did you mean .*'a.weight'"),
        ([("a.weight", 2)], "a.weight has 2 axes, got 2"),
        ([], "no such group"),
    ],
)
def test_wrong_groups_are_found_out(members: list[tuple[str, int]], message: str) -> None:
    model = ready(Model(lambda m, x: m.b(m.a(x).relu()), a=Linear(5, 8), b=Linear(8, 3)))
    old = state(model)
    groups = {"one": members} if members else {"two": [("a.weight", 0)]}
    with pytest.raises(ValueError, match=message):
        permute_model(model, {"one": shuffled(8)}, rows(2, 5), groups=groups)
    assert same_state(model, old)


def test_an_axis_is_in_one_group() -> None:
    model = ready(Model(lambda m, x: m.b(m.a(x)), a=Linear(5, 8), b=Linear(8, 3)))
    groups = {"one": [("a.weight", 0)], "two": [("a.weight", -2)]}
    with pytest.raises(ValueError, match=r"axis 0 of a\.weight is also in 'one'"):
        permute_model(model, {"one": shuffled(8)}, rows(2, 5), groups=groups)
    with pytest.raises(TypeError, match="groups: got list, expected a mapping"):
        permute_model(model, {"one": shuffled(8)}, rows(2, 5), groups=[("a.weight", 0)])
    with pytest.raises(TypeError, match=r"groups\['one'\]: got 'a.weight', expected pairs of"):
        permute_model(model, {"one": [0]}, rows(2, 5), groups={"one": ("a.weight", 0)})


# The check


def test_parameters_that_share_memory_in_part_stay() -> None:
    memory = torch.randn(12, 5)
    model = nn.ModuleDict({"a": Linear(5, 8), "b": Linear(5, 8), "c": Linear(8, 2)})
    model["a"].weight, model["b"].weight = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])
    model = Model(lambda m, x: m.m["c"](m.m["a"](x)) + m.m["c"](m.m["b"](x)), m=model)
    refused(model, (torch.randn(3, 5),), {"m.a": shuffled(8)}, "shares memory with another")


def test_a_failure_in_the_middle_undoes_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(nn.Sequential(Linear(5, 8), nn.ReLU(), Linear(8, 2)))
    old, reorder, calls = state(model), permuting._reorder, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError("no memory left")
        reorder(*arguments)

    monkeypatch.setattr(permuting, "_reorder", failing)
    with pytest.raises(MemoryError, match="no memory left"):
        permute_model(model, {"0": shuffled(8)}, rows(2, 5))
    assert len(calls) == 5  # two done, one failed, two undone
    assert same_state(model, old)


def test_the_tolerance_follows_the_precision() -> None:
    model = nn.Sequential(Linear(64, 512), nn.ReLU(), Linear(512, 64), nn.ReLU(), Linear(64, 8))
    tolerances = {}
    found = permutable(model.double(), rows(9, 64))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        orders = {"0": shuffled(512), "2": shuffled(64)}
        result = permute_model(model, orders, torch.randn(9, 64).to(dtype), groups=found)
        assert result.max_difference <= result.tolerance / 2
        assert all(weight.dtype == dtype for weight in model.parameters())
        tolerances[dtype] = result.tolerance
    assert tolerances[torch.float64] == pytest.approx(4 * 2 ** (-52 * 2 / 3))
    assert tolerances[torch.float32] == pytest.approx(4 * 2 ** (-23 * 2 / 3))
    model.float()
    old = state(model)
    with pytest.raises(ValueError, match=r"differ by .* of the largest, expected at most 0;"):
        permute_model(model, {"0": shuffled(512)}, torch.randn(9, 64), tolerance=0)
    assert same_state(model, old)


def test_every_output_is_compared() -> None:
    def function(m: Any, x: Any) -> Any:
        hidden = m.a(x)
        y = m.b(hidden)
        odd = torch.full_like(y, float("nan")).where(y > 0, float("-inf"))
        return {"y": 1e9 * y, "odd": (odd, None), "class": y.argmax(-1), "first": m.c(hidden)}

    def branches(m: Any, x: Any) -> Any:
        found = function(m, x)
        return found if float(x.sum()) < 1e9 else x

    parts = {"a": Linear(5, 8), "b": Linear(8, 3), "c": Linear(8, 3)}
    model, inputs = ready(Model(function, **parts)), (rows(4, 5),)
    assert permute_model(model, {"a": shuffled(8)}, inputs).max_difference <= EXACT
    # Found by the small output beside a large one.
    model = ready(Model(branches, **parts))
    groups = {"a": [("a.weight", 0), ("a.bias", 0), ("b.weight", 1)]}
    with pytest.raises(ValueError, match="outputs differ"):
        permute_model(model, {"a": shuffled(8)}, inputs, groups=groups)
    with pytest.raises(ValueError, match="holds no tensor to compare"):
        permute_model(Model(lambda m, x: 1, **parts), {"a": shuffled(8)}, inputs, groups=groups)


def test_inputs_that_are_overwritten_and_random_numbers_do_no_harm() -> None:
    def function(m: Any, x: Any) -> Any:
        x.mul_(2)
        noise = torch.rand(len(x), 2, dtype=x.dtype) if m.noisy else 0
        return m.b(m.a(x).relu()) + noise

    model = ready(Model(function, a=Linear(5, 8), b=Linear(8, 2), noisy=False))
    x = rows(3, 5)
    kept = x.clone()
    assert permute_model(model, {"a": shuffled(8)}, x).max_difference <= EXACT
    assert torch.equal(x, kept)
    model.noisy = True
    numbers = torch.get_rng_state()
    assert permute_model(model, {"a": shuffled(8)}, x).max_difference <= EXACT
    assert torch.equal(torch.get_rng_state(), numbers)


def test_parameters_that_were_not_used_are_named() -> None:
    def function(m: Any, x: Any, more: bool = False) -> Any:
        return m.c(m.a(x)) if more else m.b(m.a(x))

    model = ready(Model(function, a=Linear(5, 8), b=Linear(8, 2), c=Linear(8, 2)))
    assert permutable(model, rows(2, 5)).unused == ("c.weight", "c.bias")
    assert permutable(model, (rows(2, 5), True)).unused == ("b.weight", "b.bias")
    assert permute_model(model, {"a": shuffled(8)}, rows(2, 5)).unused == ("c.weight", "c.bias")


# Orders that were found


def test_orders_of_layers_are_taken() -> None:
    model = ready(nn.Sequential(Linear(5, 8), nn.Tanh(), Linear(8, 6), nn.Tanh(), Linear(6, 2)))
    inputs = rows(40, 5)
    hidden = model[:2](inputs).detach()
    smooth = df.descramble_permutation(hidden)
    old, before = state(model), outputs(model, (inputs,))
    result = permute_model(model, {"0": smooth}, inputs)
    assert torch.equal(model[0].weight.detach(), old["0.weight"][smooth.permutation])
    result.undo()
    # The same neurons, tapped before the activation, behind it, and where they are read.
    for name, tap in (("0", "pre"), ("0", "post"), ("2", "input")):
        layer = Layer(name=name, kind="Linear", tap=tap, neurons=8, order=smooth)
        found = Layers(layers=(layer, replace(layer, name="4", order=None)), configuration={})
        result = permute_model(model, found, inputs)
        assert torch.equal(model[0].weight.detach(), old["0.weight"][smooth.permutation])
        assert torch.equal(model[2].weight.detach(), old["2.weight"][:, smooth.permutation])
        assert difference(before, outputs(model, (inputs,))) <= EXACT
        result.undo()
    with pytest.raises(ValueError, match="none of the layers has an order"):
        permute_model(model, Layers(layers=(replace(layer, order=None),), configuration={}), inputs)
    with pytest.raises(ValueError, match="negative signs, expected a permutation"):
        permute_model(model, {"0": replace(smooth, signs=-np.ones(8, int))}, inputs)
    # Back by the inverse order, as by undo.
    permute_model(model, {"0": smooth}, inputs)
    permute_model(model, {"0": torch.argsort(smooth.permutation)}, inputs)
    assert same_state(model, old)


def test_the_table_names_layers_orders_and_reasons() -> None:
    model = ready(cnn(nn.GroupNorm(2, 8)))
    old, modes = state(model), [module.training for module in model.train().modules()]
    found = permutable(model, rows(2, *IMAGES))
    assert same_state(model, old)
    assert [module.training for module in model.modules()] == modes
    assert list(found) == ["0", "3", "6", "8"]
    table = found.table().splitlines()
    assert re.split(r"\s{2,}", table[0]) == ["layer", "neurons", "orders", "remarks"]
    assert re.split(r"\s{2,}", table[1]) == [
        "0",
        "8",
        "2 blocks of 4",
        "group_norm in 1 groups them",
    ]
    assert re.split(r"\s{2,}", table[2]) == ["3", "6", "any"]
    assert table[4].endswith("none           they are in the order of the model's output")
    assert found["3"].members == (("3.weight", 0), ("3.bias", 0), ("6.weight", 1))
    assert found["8"].lengths == ()
    with pytest.raises(KeyError):
        found["1"]


def test_compiled_models_are_taken_by_what_they_wrap() -> None:
    model = ready(nn.Sequential(Linear(5, 8), nn.ReLU(), Linear(8, 2)))
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    p, x = shuffled(8), rows(2, 5)
    assert permute_model(compiled, {"0": p}, x).model is compiled
    permute_model(twin, {"0": p}, x)
    assert same_state(model, state(twin))


def test_examples_run_as_printed() -> None:
    for name in ("_permute", "_graph", "_axes"):
        module = importlib.import_module(f"descramble_fast.torch.{name}")
        assert doctest.testmod(module).failed == 0
