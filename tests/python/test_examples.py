"""A convolutional network trained on real digits: channels in another order, the same logits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import descramble_fast as df

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def cnn() -> Any:
    spec = importlib.util.spec_from_file_location("cnn", EXAMPLES / "cnn.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_trained_network_reads_digits_with_its_channels_in_another_order(cnn: Any) -> None:
    torch.manual_seed(0)
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    network = cnn.Network()
    cnn.train(network, images[:1400], labels[:1400], epochs=4)
    with torch.no_grad():
        before = network(images[1400:])
    assert float((before.argmax(1) == labels[1400:]).double().mean()) > 0.85

    found = df.torch.descramble_model(
        network, images[:1400], cnn.LAYERS, tap="post", order=True, progress=False
    )
    old = network.conv2.weight.detach().clone()
    permuted = df.torch.permute_model(network, found, images[1400:])
    rows, columns = (np.asarray(found[name].order.permutation) for name in ("conv2", "conv1"))
    assert not np.array_equal(rows, np.arange(64))
    assert torch.equal(network.conv2.weight, old[rows][:, columns])
    with torch.no_grad():
        after = network(images[1400:])
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())
    assert permuted.max_difference <= 1e-5


def test_the_example_runs_and_draws(
    cnn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cnn.py", "--output", str(tmp_path), "--epochs", "2"])
    cnn.main()
    assert "channels in order; logits moved by" in capsys.readouterr().out
    for name in ("cnn-channels.png", "cnn-convolution.png"):
        assert (tmp_path / name).stat().st_size > 10_000
