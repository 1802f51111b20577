"""Whole torch models: which layers, which rows, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors
from reference import two_pass, worst

import descramble_fast as df

torch = pytest.importorskip("torch")
dt = pytest.importorskip("descramble_fast.torch")
nn = torch.nn
F = torch.nn.functional


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def mlp() -> Any:
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))


def batches(count: int = 4, rows: int = 30, width: int = 8) -> list[Any]:
    return [torch.randn(rows, width) + 1 for _ in range(count)]


def quietly(*arguments: Any, **options: Any) -> df.Layers:
    return dt.descramble_model(*arguments, progress=False, **options)


def assert_moments(covariance: df.Covariance, samples: Any, rtol: float = 1e-5) -> None:
    """Against the float64 two-pass formula on the captured samples (rows, n)."""
    x = samples.detach().to(torch.float64).numpy()
    _, second, expected = two_pass(x)
    assert covariance.count == len(x)
    assert worst(covariance.second_moment(), second) <= rtol
    assert worst(covariance.covariance(), expected) <= rtol


# Which layers


def test_names_globs_types_and_functions_choose_layers() -> None:
    model = nn.ModuleDict(
        {
            "mlp": mlp(),
            "head": nn.Linear(4, 2),
            "norm": nn.LayerNorm(4),
            "words": nn.Embedding(5, 3),
        }
    )

    def chosen(layers: Any) -> list[str]:
        with dt.observe(model, layers) as seen:
            return [site.name for site in seen.sites]

    assert chosen("head") == ["head"]
    assert chosen("mlp") == ["mlp"]  # a name that stands there is taken by itself
    assert chosen("*mlp*") == ["mlp.0", "mlp.2"]  # the layers with a matrix of weights
    assert chosen("*.1") == ["mlp.1"]  # there is none: every module
    assert chosen(nn.Linear) == ["mlp.0", "mlp.2", "head"]
    assert chosen([nn.LayerNorm, "words"]) == ["norm", "words"]
    assert chosen(lambda name, module: name.endswith("2")) == ["mlp.2"]
    assert chosen(["head", "mlp.2", "head"]) == ["mlp.2", "head"]  # the model's order, once


@pytest.mark.parametrize("layers", ["attention", "*conv*", nn.Conv2d, lambda name, module: False])
def test_a_choice_of_nothing_says_what_there_is(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"^layers: .*matches nothing; .*: 0, 2$"):
        quietly(mlp(), batches(), layers)


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        (lambda: nn.Linear(5, 7), (3, 4, 5), -1),
        (lambda: nn.Conv1d(5, 7, 3), (4, 5, 9), 1),
        (lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1), (4, 5, 9, 8), 1),
        (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), 1),
        (lambda: nn.Conv2d(5, 7, 3), (5, 9, 8), 0),  # without an axis of batches
        (lambda: nn.Conv3d(2, 7, 2), (3, 2, 4, 4, 5), 1),
        (lambda: nn.ConvTranspose2d(5, 7, 3), (2, 5, 4, 4), 1),
        (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5), 1),
        (lambda: nn.BatchNorm2d(5), (4, 5, 3, 3), 1),
        (lambda: nn.GroupNorm(2, 6), (4, 6, 3), 1),
        (lambda: nn.LayerNorm(5), (4, 3, 5), -1),
        (lambda: nn.LayerNorm((4, 3, 5)), (2, 4, 3, 5), -1),
        (lambda: nn.ReLU(), (4, 3, 5), -1),
    ],
)
def test_every_kind_of_layer_has_its_neurons_on_the_right_axis(
    make: Callable[[], Any], shape: tuple[int, ...], axis: int
) -> None:
    layer = make().eval()
    x = torch.randn(shape)
    with dt.observe(nn.Sequential(layer), "0") as seen:
        y = layer(x)
    samples = y.movedim(axis, -1)
    assert_moments(seen["0"], samples.reshape(-1, samples.shape[-1]))


def test_embeddings_and_the_convolutions_of_transformers() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(nn.Embedding(20, 6), pytorch_utils.Conv1D(9, 6))
    tokens = torch.randint(0, 20, (5, 11))
    found = quietly(model, tokens, "*")
    assert [layer.neurons for layer in found.layers] == [6, 9]
    assert_moments(found["0"].covariance, model[0](tokens).reshape(-1, 6))
    assert_moments(found["1"].covariance, model(tokens).reshape(-1, 9))
    P = found["0"].descrambler.matrix
    assert torch.allclose(found["0"].readable_weight, model[0].weight.double() @ P.T)
    P = found["1"].descrambler.matrix
    assert torch.allclose(found["1"].readable_weight, P @ model[1].weight.T.double())


def test_outputs_that_are_no_tensor() -> None:
    model = nn.Sequential(nn.LSTM(4, 6, batch_first=True))
    x = torch.randn(5, 7, 4)
    (states, (last, _)) = model(x)
    assert_moments(quietly(model, [x], "0")["0"].covariance, states.reshape(-1, 6))
    found = quietly(model, [x], "0", select=lambda output: output[1][0])
    assert_moments(found["0"].covariance, last.reshape(-1, 6))
    wrong = quietly(model, [x], "0", select=lambda output: output[1])
    assert wrong["0"].error == "batch 0: select: gave tuple, expected a tensor"


@dataclass(slots=True)
class Output:
    loss: float
    states: Any


class Gives(nn.Module):
    """Its input, in what `make` puts around it."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Any) -> Any:
        return self.make(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Output(0.5, x),
        lambda x: (None, 3, [x]),
        lambda x: {"name": "states", "states": (x, None)},
    ],
)
def test_the_first_tensor_is_found_in_anything(make: Callable[[Any], Any]) -> None:
    x = torch.randn(20, 6)
    assert_moments(quietly(nn.Sequential(Gives(make)), [x], "0")["0"].covariance, x)


def test_what_cannot_be_read_is_a_row_and_the_run_goes_on() -> None:
    model = nn.Sequential(nn.Linear(8, 6), Gives(lambda x: x.sum()), Gives(lambda x: x.to_sparse()))
    x = torch.randn(5, 8)
    found = quietly(
        model, [x, x], ["0", "1", "2"], forward=lambda m, x: [m[i](x) for i in range(3)]
    )
    assert found["0"].samples == 10
    assert found["1"].error == "batch 0: it gives shape (), expected neurons on axis -1"
    assert "torch.strided" in str(found["2"].error)
    assert "\n" not in str(found["2"].error)  # of a message in many lines, the first
    beyond = quietly(model[:1], [x], "0", axis=2)
    assert beyond["0"].error == "batch 0: it gives shape (5, 6), expected neurons on axis 2"
    keyed = quietly(model[:1], [x], "0", select=lambda output: {}["states"])
    assert keyed["0"].error == "batch 0: 'states'"


def test_sizes_are_asked_of_modules_and_never_guessed_from_their_weights() -> None:
    class Packed(nn.Linear):
        """Keeps its weights as bytes of another shape, as quantised layers do."""

        def __init__(self) -> None:
            super().__init__(8, 6)
            self.full = self.weight.detach().clone()
            self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, x: Any) -> Any:
            return F.linear(x, self.full, self.bias)

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Any) -> Any:
            return x @ self.weight

    model = nn.Sequential(Packed(), Transposed(), nn.LazyLinear(3))
    found = quietly(model, batches(), "*")
    assert [(layer.neurons, layer.error) for layer in found.layers] == [
        (6, None),
        (5, None),
        (3, None),
    ]
    assert [layer.weight is None for layer in found.layers] == [True, True, False]


def test_parametrised_weights_are_read_without_a_step_of_what_computes_them() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = quietly(model, batches(), "*")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(found["0"].weight, model.eval()[0].weight)


def test_an_axis_may_be_named() -> None:
    x = torch.randn(5, 7, 4)
    model = nn.Sequential(nn.ReLU())
    with dt.observe(model, "0", axis=1) as seen:
        y = model(x)
    assert_moments(seen["0"], y.movedim(1, -1).reshape(-1, 7))


# Taps


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.second(F.relu(self.first(x)))


def test_the_three_taps_of_a_layer() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.ReLU(inplace=True)),
        nn.Conv2d(5, 2, 3),
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    model[1].running_mean.fill_(0.3)
    preactivations = model[0](x)
    activations = model[:4](x)
    expected = {"pre": preactivations, "post": activations, "input": x}
    for tap, samples in expected.items():
        layer = quietly(model, [x], "0", tap=tap)["0"]
        n = samples.shape[1]
        assert (layer.tap, layer.neurons) == (tap, n)
        assert_moments(layer.covariance, samples.movedim(1, -1).reshape(-1, n))
    behind = quietly(model, [x], "4", tap="input")["4"]
    assert_moments(behind.covariance, activations.movedim(1, -1).reshape(-1, 5))


def test_a_tap_reads_before_the_tensor_is_overwritten() -> None:
    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True)), torch.randn(3, 8)
    with dt.observe(model, "0") as seen, torch.no_grad():
        model(x)
    assert_moments(seen["0"], model[0](x))  # three rows wait for others


def test_calls_side_by_side_all_reach_their_activation() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.unused, self.act = nn.Linear(8, 6), nn.Linear(8, 6), nn.ReLU()

        def forward(self, x: Any, y: Any) -> Any:
            x, y = self.mlp(x), self.mlp(y)
            return self.act(x) - self.act(y)

    x, y = batches(2)
    model = Twins()
    found = quietly(model, [(x, y)], ["mlp", "unused"], tap="post")
    assert_moments(found["mlp"].covariance, torch.relu(model.mlp(torch.cat([x, y]))))
    assert found["unused"].error == "it was never called"


def test_the_first_input_is_the_first_parameter() -> None:
    class Scaled(nn.Module):
        def forward(self, hidden: Any, scale: Any) -> Any:
            return hidden * scale

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = Scaled()

        def forward(self, x: Any) -> Any:
            return self.scaled(scale=torch.ones(1), hidden=x)

    x = batches(1)[0]
    assert_moments(quietly(Model(), [x], "scaled", tap="input")["scaled"].covariance, x)


def test_an_activation_that_is_no_module_cannot_be_seen_and_that_is_said() -> None:
    found = quietly(Functional(), batches(), "first", tap="post")
    assert found["first"].descrambler is None
    assert "called as a function cannot be seen" in str(found["first"].error)
    assert 'tap the "input"' in found.table()
    x = batches()[0]
    model = Functional()
    layer = quietly(model, [x], "second", tap="input")["second"]
    assert_moments(layer.covariance, F.relu(model.first(x)))


def test_weights_are_read_on_the_side_of_the_tapped_neurons() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, (2, 3)), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3))
    x = torch.randn(4, 3, 8, 8)
    out = quietly(model, [x], "0")["0"]
    expected = out.descrambler.matrix @ model[0].weight.flatten(1).double()
    assert torch.allclose(out.readable_weight, expected)
    back = quietly(model, [x], "2", tap="input")["2"]
    kernel = model[2].weight.double().permute(1, 2, 3, 0).reshape(-1, 5)
    assert torch.allclose(back.readable_weight, kernel @ back.descrambler.matrix.T)
    assert quietly(model, [x], "0", tap="post")["0"].weight is None


# Rows


class Tokens(nn.Module):
    """Takes what a tokenizer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mlp = nn.Embedding(20, 8), nn.Linear(8, 6)
        self.pooled = nn.Linear(6, 3)

    def forward(self, input_ids: Any, attention_mask: Any = None, flat: bool = False) -> Any:
        x = self.words(input_ids)
        x = self.mlp(x.reshape(-1, 8)) if flat else self.mlp(x)
        return {"logits": self.pooled(x.reshape(-1, 5, 6).mean(1)), "hidden": x}


def padded() -> tuple[dict[str, Any], Any]:
    tokens = torch.randint(0, 20, (3, 5))
    mask = torch.ones(3, 5, dtype=torch.int64)
    mask[0, 3:] = 0
    mask[2, 1:] = 0
    return {"input_ids": tokens, "attention_mask": mask}, mask.bool()


@pytest.mark.parametrize("flat", [False, True])
def test_padding_does_not_count(flat: bool) -> None:
    model = Tokens()
    batch, mask = padded()
    hidden = model(batch["input_ids"])["hidden"]
    batch["flat"] = flat
    for data in (batch, [batch]):  # one batch, or several
        found = quietly(model, data, "mlp")
        assert_moments(found["mlp"].covariance, hidden[mask])
        assert found["mlp"].notes == ()
    everything = quietly(model, batch, "mlp", mask=None)
    assert_moments(everything["mlp"].covariance, hidden.reshape(-1, 6))
    chosen = quietly(model, batch, "mlp", mask=lambda args, kwargs: kwargs["input_ids"] < 7)
    assert_moments(chosen["mlp"].covariance, hidden[batch["input_ids"] < 7])


def test_padding_does_not_count_where_the_mask_has_no_name_in_the_batch() -> None:
    model = Tokens()
    batch, mask = padded()
    found = quietly(model, [(batch["input_ids"], batch["attention_mask"])], "mlp")
    assert_moments(found["mlp"].covariance, model(batch["input_ids"])["hidden"][mask])


def test_a_mask_that_is_no_tensor_is_a_note() -> None:
    batch, _ = padded()
    found = quietly(Tokens(), {**batch, "attention_mask": {"full": None}}, "mlp")
    assert found["mlp"].samples == 15
    assert "the mask does not fit" in found["mlp"].notes[0]


def test_padding_that_torch_itself_leaves_out_does_not_count() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model, x, mask = nn.TransformerEncoder(layer, 1), torch.randn(3, 5, 8), padded()[1]

    def run(model: Any, x: Any) -> None:
        with pytest.warns(UserWarning, match="nested tensors"):
            model(x, src_key_padding_mask=~mask)

    found = quietly(model, [x], "*.linear1", forward=run)
    assert found["layers.0.linear1"].samples == int(mask.sum())


def test_encoders_and_decoders_have_their_own_masks() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=20,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    ).eval()
    batch, mask = padded()
    layers = ["encoder.*.wi", "decoder.*.wi"]

    def samples(**options: Any) -> list[int]:
        found = quietly(model, options.pop("batch"), layers, **options)
        assert all(layer.notes == () for layer in found.layers)
        return [layer.samples for layer in found.layers]

    read = int(mask.sum())
    # As long as what is read, and not padded unless it says so.
    labels = {**batch, "labels": batch["input_ids"]}
    assert samples(batch=labels) == [read, 15]
    shorter = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    assert samples(batch={**labels, "decoder_attention_mask": shorter}) == [read, 10]

    def generate(model: Any, batch: Any) -> None:  # the encoder is called on its own
        model.generate(**batch, max_new_tokens=4, min_new_tokens=4)

    assert samples(batch=batch, forward=generate) == [read, 12]


def test_a_cache_of_keys_and_values_is_no_padding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1, pad_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    batch, mask = padded()
    batch["attention_mask"] = mask.flip(1).long()

    def generate(model: Any, batch: Any) -> None:
        model.generate(**batch, max_new_tokens=4, min_new_tokens=4)

    layer = quietly(model, batch, "*.c_fc", forward=generate)["transformer.h.0.mlp.c_fc"]
    assert layer.samples == int(mask.sum()) + 3 * 3  # the last token is not read again
    assert layer.notes == ()


def test_a_mask_that_does_not_fit_is_a_note() -> None:
    batch, _ = padded()
    found = quietly(Tokens(), batch, ["mlp", "pooled"])
    assert found["pooled"].samples == 3
    assert found["pooled"].notes == (
        "the mask does not fit its samples: padding, if any, is counted",
    )
    assert found["mlp"].notes == ()
    assert "pooled: the mask does not fit" in found.table()


def test_sampling_takes_every_kth_call_or_row() -> None:
    model, data = mlp(), batches(5, 30)
    captured = [model[0](x) for x in data]
    with dt.observe(model, "0", sample_every=2) as seen:
        for x in data:
            model(x)
    assert_moments(seen["0"], torch.cat(captured[::2]))
    with dt.observe(model, "0", sample_every=4, sample="token") as seen:
        for x in data:
            model(x)
    rows = [y[i % 4 :: 4] for i, y in enumerate(captured)]  # other rows at each call
    assert_moments(seen["0"], torch.cat(rows))


def test_enough_is_enough() -> None:
    model, data = mlp(), batches(50, 30)
    read = 0

    def counted() -> Iterator[Any]:
        nonlocal read
        for batch in data:
            read += 1
            yield batch

    found = quietly(model, counted(), "*", max_samples=100)
    assert [layer.samples for layer in found.layers] == [120, 120]
    assert read == 4


def test_batches_of_every_shape_are_run() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(8, 6)

        def forward(self, x: Any, scale: Any = 1.0) -> Any:
            return self.mlp(x) * scale

    x, label = torch.randn(10, 8), torch.arange(10)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, label), batch_size=4)
    one = torch.utils.data.DataLoader(x, batch_size=4)
    expected = mlp_of = Two()
    y = expected.mlp(x)
    for data in (
        *(x, [x], (x[:5], x[5:]), iter([x]), one, {"x": x}, [{"x": x, "scale": 2.0}]),
        [(x, torch.ones(1))],
    ):
        assert_moments(quietly(mlp_of, data, "mlp")["mlp"].covariance, y)
    model = nn.Sequential()
    model.add_module("mlp", mlp_of.mlp)  # takes one argument: the labels are left out
    assert_moments(quietly(model, loader, "mlp")["mlp"].covariance, y)
    backwards = quietly(mlp_of, loader, "mlp", forward=lambda m, batch: m(batch[0].flip(1)))
    assert_moments(backwards["mlp"].covariance, mlp_of.mlp(x.flip(1)))


def test_batches_are_taken_as_they_come() -> None:
    class Pair(NamedTuple):
        x: Any
        y: Any

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept_elsewhere = nn.Linear(2, 2, device="meta")
            self.mlp = nn.Linear(8, 6)

        def forward(self, x: Any) -> Any:
            return self.mlp(x.x if isinstance(x, Pair) else x)

    class Stream(torch.utils.data.IterableDataset):  # of no length
        def __iter__(self) -> Iterator[Any]:
            return iter({"x": row, "label": 1, "text": "row"} for row in x)

    x, model = batches(1)[0], Model()
    stream = torch.utils.data.DataLoader(Stream(), batch_size=7)
    packed = nn.utils.rnn.pack_sequence([x[:20], x[20:]])
    for data in (stream, [(Pair(x, "y"), 1)]):
        assert_moments(quietly(model, data, "mlp")["mlp"].covariance, model.mlp(x))
    recurrent = nn.Sequential(nn.LSTM(8, 6))
    assert quietly(recurrent, [(packed,)], "0")["0"].samples == len(x)


# Models as they are


def test_modes_gradients_and_hooks_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 4))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    statistics = model[1].running_mean.clone()
    quietly(model, batches(), "*")
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[1].running_mean, statistics)
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert torch.is_grad_enabled()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())

    def fails(*_: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        quietly(model, batches(), "*", forward=fails)
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_modules_that_do_more_when_their_mode_changes_do_it_again() -> None:
    class Merging(nn.Module):  # as adapters of low rank are merged into their weights
        merged = False

        def train(self, mode: bool = True) -> Any:
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: Any) -> Any:
            assert self.merged
            return x

    model = nn.Sequential(Merging())
    quietly(model, batches(), "0")
    assert not model[0].merged


def test_a_training_loop_may_be_observed() -> None:
    model, data = mlp(), batches()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    captured = []
    with dt.observe(model, "0") as seen:
        for x in data:
            captured.append(F.linear(x, model[0].weight, model[0].bias).detach())
            loss = model(x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert not torch.equal(captured[0], F.linear(data[0], model[0].weight, model[0].bias))
    assert_moments(seen["0"], torch.cat(captured))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_counts_once(reentrant: bool) -> None:
    model, x = mlp(), batches(1)[0].requires_grad_()
    with dt.observe(model, "0") as seen:
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)
        y.square().mean().backward()
    assert model[0].weight.grad is not None
    assert_moments(seen["0"], model[0](x))
    with dt.observe(model, "0", sample_every=2) as seen:
        for _ in range(4):
            torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert seen["0"].count == 2 * len(x)


def test_fused_layers_are_seen_and_inference_mode_is_fine() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    x = torch.randn(3, 5, 8)
    with torch.inference_mode(), dt.observe(model, ["linear1", "self_attn"]) as seen:
        model(x)
    captured = []
    handle = model.linear1.register_forward_hook(lambda m, a, y: captured.append(y))
    model(x)
    handle.remove()
    assert_moments(seen["linear1"], captured[0].reshape(-1, 12))
    assert seen["self_attn"].n_features == 8


def test_half_precision_under_autocast() -> None:
    model, data = mlp(), batches(6, 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quietly(model, data, "0")
        captured = torch.cat([model[0](x) for x in data])
    assert found["0"].covariance.input_dtypes == ("bfloat16",)
    assert_moments(found["0"].covariance, captured)


def test_compiled_models_run_uncompiled_and_are_seen() -> None:
    model, data = mlp(), batches()
    expected = torch.cat([model[0](x) for x in data])
    compiled = torch.compile(model, backend="eager")
    compiled(data[0])
    assert_moments(quietly(compiled, data, "*")["0"].covariance, expected)
    with dt.observe(compiled, "0", sample_every=2) as seen:
        for x in data:
            compiled(x)
    assert seen["0"].count == 60
    inside = mlp()
    inside.compile(backend="eager")
    inside(data[0])
    with dt.observe(inside, "0") as seen:
        for x in data:
            inside(x)
    assert_moments(seen["0"], torch.cat([inside[0](x) for x in data]))


class Scripted(torch.jit.ScriptModule):
    pass


def test_wrappers_inside_and_around_a_model_are_looked_through() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = torch.compile(nn.Linear(8, 6), backend="eager", fullgraph=True)
            self.mlp_scripted = Scripted()

        def forward(self, x: Any) -> Any:
            return self.mlp(x)

    x, model = batches(1)[0], Inside()
    model(x)
    found = quietly(nn.DataParallel(model), [(x, torch.ones(1))], "*")
    assert list(found) == ["mlp"]  # once
    assert_moments(found["mlp"].covariance, model.mlp(x))
    several = nn.DataParallel(model)
    several.device_ids = [0, 1]
    with (
        pytest.raises(TypeError, match="over several devices, which runs copies"),
        dt.observe(several, "*"),
    ):
        pass


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(TypeError, match="got a ScriptModule, which calls no hooks"):
        quietly(Scripted(), batches())


def test_a_shared_module_has_one_accumulator() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(8, 8)
            self.again = self.mlp

        def forward(self, x: Any) -> Any:
            return self.again(torch.tanh(self.mlp(x)))

    model, x = Shared(), batches(1)[0]
    found = quietly(model, [x], ["mlp", "again"])
    assert list(found) == ["mlp"]
    once = model.mlp(x)
    both = torch.cat([once, model.mlp(torch.tanh(once))])
    assert_moments(found["mlp"].covariance, both)


class Experts(nn.Module):
    """Each token goes to one of three experts; nobody chooses the last."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 6) for _ in range(3))

    def forward(self, x: Any) -> Any:
        first = x[:, 0] > 2.5
        out = torch.empty(len(x), 6)
        out[first] = self.experts[0](x[first])
        out[~first] = self.experts[1](x[~first])
        return out


def test_experts_see_few_tokens_or_none() -> None:
    model, data = Experts(), batches(6, 7)
    found = quietly(model, data, "experts.*")
    x = torch.cat(data)
    first = x[:, 0] > 2.5
    assert 0 < int(first.sum()) < 10
    assert_moments(found["experts.0"].covariance, model.experts[0](x[first]))
    assert_moments(found["experts.1"].covariance, model.experts[1](x[~first]))
    assert found["experts.2"].error == "it was never called"
    assert found["experts.0"].descrambler is not None
    assert "experts.2: it was never called" in found.table()


def test_a_layer_that_is_called_without_rows_has_no_samples() -> None:
    model = mlp()
    found = quietly(model, [torch.empty(0, 8)], "0")
    assert found["0"].error == "no samples"


def test_nan_in_one_layer_is_its_row_and_no_one_elses() -> None:
    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = nn.Linear(8, 6), nn.Linear(8, 6)

        def forward(self, x: Any, poison: bool = False) -> Any:
            bad = self.bad(x * torch.nan if poison else x)
            return self.good(x), bad

    model, data = Poisoned(), batches(3)
    poisoned = [(x, i == 2) for i, x in enumerate(data)]
    found = quietly(model, poisoned, "*")
    assert found["bad"].descrambler is None
    assert str(found["bad"].error).startswith("batch 2: ")
    assert "row 0, column 0" in str(found["bad"].error)
    assert_moments(found["bad"].covariance, model.bad(torch.cat(data[:2])))
    assert found["good"].error is None
    assert_moments(found["good"].covariance, model.good(torch.cat(data)))


# Memory


def test_the_plan_counts_what_accumulators_and_results_take() -> None:
    model = nn.Sequential(nn.Linear(8, 600), nn.ReLU(), nn.Linear(600, 40))
    found = quietly(model, batches(), "*", k=5)
    words = found.configuration["memory"]
    moments = sum(8 * n * n + 8 * 512 * n for n in (600, 40))
    assert words.startswith(f"2 layers in 1 pass: moments {moments / 1e6:.3g} MB, results ")


def test_layers_beyond_the_limit_wait_for_another_pass() -> None:
    model, data = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), batches()
    whole = quietly(model, data, "*")
    one = 8 * 8 * 8 + 8 * 512 * 8
    reads = 0

    class Data:
        def __iter__(self) -> Iterator[Any]:
            nonlocal reads
            reads += 1
            return iter(data)

    parts = quietly(model, Data(), "*", memory_limit=2 * one)
    assert reads == 3
    assert "5 layers in 3 passes" in parts.configuration["memory"]
    assert list(parts) == list(whole)
    for name, layer in whole.items():
        assert parts[name].descrambler.cost == layer.descrambler.cost
        assert parts[name].samples == layer.samples
        assert parts[name].covariance is None  # released
    with pytest.raises(ValueError, match="3 passes are needed, but it can be read only once"):
        quietly(model, iter(data), "*", memory_limit=2 * one)
    with pytest.raises(MemoryError, match="the moments of 0 alone take"):
        quietly(model, data, "*", memory_limit=one - 1)


@pytest.mark.parametrize(("layers", "order"), [(6, ""), (1, "order")])
def test_memory_stays_within_the_plan(
    fresh_python: Callable[..., str], layers: int, order: str
) -> None:
    script = """
        import re, sys
        from pathlib import Path
        import torch
        import descramble_fast.torch as dt
        from descramble_fast.torch import _model

        torch.manual_seed(0)
        def resident(name):
            status = Path("/proc/self/status").read_text()
            return 1024 * int(re.search(name + r":\\s+(\\d+)", status)[1])

        layers, order = int(sys.argv[1]), bool(sys.argv[2])
        model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(layers)))
        data = [torch.randn(600, 1024) for _ in range(3)]
        small = torch.nn.Sequential(torch.nn.Linear(64, 64))
        dt.descramble_model(small, [torch.randn(600, 64)], "*", progress=False)  # loads libraries
        with torch.no_grad():
            for x in data:
                model(x)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        plans = []
        plan_of = _model.plan_memory
        _model.plan_memory = lambda *a, **k: plans.append(plan_of(*a, **k)) or plans[-1]
        found = dt.descramble_model(model, data, "*", order=order, progress=False)
        assert len(found) == layers and all(layer.error is None for layer in found.values())
        print(resident("VmHWM") - before, plans[0].peak, plans[0].results)
    """
    grown, planned, results = map(int, fresh_python(script, layers, order, timeout=120).split())
    assert results < grown <= planned


# Results


def test_a_control_stands_beside_every_figure(tmp_path: Path) -> None:
    model, data = mlp(), batches()
    control = dt.untrained(model, seed=3)
    found = quietly(model, iter(data), "*", control=control, order=True)
    alone = quietly(control, data, "*", order=True)
    for layer, expected in zip(found.control, alone.layers, strict=True):
        assert layer.descrambler.cost == expected.descrambler.cost
    lines = found.table().splitlines()
    assert "control left" in lines[0]
    assert "order left" in lines[0]
    d = alone["2"].descrambler
    assert f"{d.cost / d.initial_cost:.3g}" in lines[2]

    found.save(tmp_path / "found.safetensors")
    with safetensors.safe_open(tmp_path / "found.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        assert json.loads(metadata["layers"])["0"]["cost"] == found["0"].descrambler.cost
        assert json.loads(metadata["control"])["0"]["cost"] == alone["0"].descrambler.cost
        U = file.get_tensor("0/components")
        order = file.get_tensor("0/order")
    assert np.array_equal(U.T, found["0"].descrambler.components.numpy())
    assert np.array_equal(order, found["0"].order.permutation.numpy())
    with pytest.raises(ValueError, match="control: got a model with other layers"):
        quietly(model, data, "*", control=nn.Sequential(nn.Linear(8, 6)))


def test_an_untrained_copy_is_new_reproducible_and_leaves_the_random_state() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Conv1d(1, 2, 3))
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    control, again = dt.untrained(model, seed=1), dt.untrained(model, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not torch.equal(control[0].weight, model[0].weight)
    assert all(map(torch.equal, control.parameters(), again.parameters()))
    assert not torch.equal(dt.untrained(model, seed=2)[0].weight, control[0].weight)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(3))

    with pytest.raises(ValueError, match=r"model: own\.scale is initialised by no"):
        dt.untrained(nn.ModuleDict({"own": Own()}))

    class Pretrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def _init_weights(self, module: Any) -> None:
            if isinstance(module, Own):
                nn.init.normal_(module.scale)

    inside = dt.untrained(nn.ModuleDict({"base": Pretrained(), "head": nn.Linear(3, 2)}))
    assert bool(inside["base"].own.scale.isfinite().all())


def test_moments_without_a_mean_are_saved_without_it(tmp_path: Path) -> None:
    from descramble_fast._layers import Layer, Layers, solve

    layer = Layer(name="0", neurons=3, covariance=df.Covariance.from_moments(np.eye(3)))
    Layers(layers=solve([layer]), configuration={}).save(tmp_path / "found.safetensors")
    with safetensors.safe_open(tmp_path / "found.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {"0/eigenvalues", "0/components"}


def test_weights_alone_suffice_for_the_trace_and_the_diagonal() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    for criterion in ("trace", "diagonal"):
        found = quietly(model, layers="*", criterion=criterion)
        expected = df.descramble_weights(model[0].weight.detach(), criterion=criterion)
        assert found["0"].descrambler.cost == expected.cost
        assert found["0"].error is None
    without = quietly(model, layers="1", criterion="trace")
    assert without["1"].error == "criterion trace: it has no weights to read"


def test_options_reach_the_solver() -> None:
    model, data = mlp(), batches()
    path = quietly(
        *(model, data, "*"),
        operator=lambda n: df.operators.difference(n, 1, "path"),
        center=True,
        gauge="identity",
    )
    x = torch.cat([model[0](x) for x in data]).detach()
    expected = df.descramble(
        x, operator=df.operators.difference(6, 1, "path"), center=True, gauge="identity"
    )
    assert path["0"].descrambler.cost == pytest.approx(expected.cost, rel=1e-5)
    assert path["0"].descrambler.gauge.name == "identity"
    assert quietly(model, data, "*", k=2)["0"].descrambler.components.shape == (6, 2)
    # An operator of one size leaves the other layer with an error, not without an answer.
    one = quietly(model, data, "*", operator=df.operators.fourier(6))
    assert one["0"].error is None
    assert "acts on 6 neurons" in str(one["2"].error)

    def picky(n: int) -> Any:
        if n == 4:
            raise ArithmeticError("no 4")
        return df.operators.fourier(n)

    some = quietly(model, data, "*", operator=picky)
    assert some["0"].error is None
    assert some["2"].error == "operator: no 4"
    wrong = quietly(model, data, "0", operator=lambda n: np.eye(n))
    assert wrong["0"].error == "operator: the function gave ndarray, expected an Operator"


def test_numbers_and_devices_of_other_libraries_are_fine(tmp_path: Path) -> None:
    options = {"k": np.int64(2), "sample_every": np.int64(1), "max_samples": np.int64(100)}
    found = quietly(mlp(), batches(), "*", device=torch.device("cpu"), **options)
    found.save(tmp_path / "found.safetensors")
    with safetensors.safe_open(tmp_path / "found.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["configuration"])["k"] == 2


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"tap": "after"}, ValueError, "tap: got 'after', expected \"pre\""),
        ({"criterion": "beauty"}, ValueError, "criterion: got 'beauty'"),
        ({"gauge": "nearest"}, ValueError, "gauge: got 'nearest'"),
        ({"k": 0}, ValueError, "k: got 0"),
        ({"operator": 3}, TypeError, "operator: got int"),
        ({"center": 1}, TypeError, "center: got 1 \\(int\\), expected True or False"),
        ({"sample_every": 0}, ValueError, "sample_every: got 0"),
        ({"sample": "row"}, ValueError, "sample: got 'row'"),
        ({"max_samples": 0}, ValueError, "max_samples: got 0"),
        ({"mask": 3}, TypeError, "mask: got int"),
        ({"device": "tpu"}, ValueError, "device: "),
        ({"layers": 3}, TypeError, "layers: got int"),
        ({"layers": []}, ValueError, "layers: got none; layers with weights: 0, 2"),
        ({"layers": nn.Linear(2, 2)}, TypeError, "layers: got Linear"),
        ({"memory_limit": "1 GB"}, TypeError, "memory_limit: got '1 GB'"),
        ({"criterion": "trace", "order": True}, ValueError, "order: it needs samples"),
    ],
)
def test_bad_options_are_named_before_any_batch_is_read(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    def data() -> Iterator[Any]:
        pytest.fail("a batch was read")
        yield

    with pytest.raises(kind, match=words):
        quietly(mlp(), data(), **{"layers": "*", **options})


def test_data_that_hold_nothing_are_an_error() -> None:
    for data in ([], iter([])):
        with pytest.raises(ValueError, match="data: got no batch"):
            quietly(mlp(), data, "*")
    with pytest.raises(ValueError, match="data: got None"):
        quietly(mlp(), None, "*")
    with pytest.raises(TypeError, match="data: got int"):
        quietly(mlp(), 3, "*")
    with pytest.raises(TypeError, match="model: got list"):
        quietly([], batches(), "*")


def test_progress_prints_the_plan_first(capsys: pytest.CaptureFixture[str]) -> None:
    dt.descramble_model(mlp(), batches(), "*")
    assert capsys.readouterr().err.startswith("2 layers in 1 pass: moments ")


def test_moments_are_saved_by_layer(tmp_path: Path) -> None:
    model, data = mlp(), batches()
    with dt.observe(model, "*") as seen:
        for x in data:
            model(x)
    seen.save(tmp_path / "rank0")
    loaded = df.Covariance.load(tmp_path / "rank0" / "2.safetensors")
    assert loaded.count == seen["2"].count == 120
    assert dict(seen).keys() == {"0", "2"}
    assert len(seen) == 2
    with pytest.raises(KeyError):
        seen["1"]


def test_a_save_that_was_killed_is_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder lacks layers, or holds old ones beside new, and each file is whole."""
    runs = pytest.importorskip("descramble_fast.run")
    model = mlp()
    with dt.observe(model, "*") as seen:
        model(*batches(1))
    folder, merged, save = tmp_path / "rank0", tmp_path / "merged", df.Covariance.save

    def killed(cov: df.Covariance, path: Path) -> None:
        save(cov, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(df.Covariance, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            seen.save(folder)
    assert [path.name for path in folder.glob("*.safetensors")] == ["0.safetensors"]
    with pytest.raises(ValueError, match=r"rank0: whoever wrote it .* finish that first"):
        runs.merge(merged, [folder])
    seen.save(folder)
    assert runs.merge(merged, [folder]) == {"0": 30, "2": 30}


def test_sampling_needs_the_models_own_call() -> None:
    model = mlp()
    with dt.observe(model, "0", sample_every=2) as seen:
        model[0](torch.randn(5, 8))
    (layer,) = seen.layers()
    assert layer.samples == 5
    assert layer.notes[-1].startswith("the model itself was never called")
