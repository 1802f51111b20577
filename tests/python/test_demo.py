"""The demonstration's numbers are what they are called, and its words follow from them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import descramble_fast as df
from descramble_fast import demo

Array = NDArray[Any]


@pytest.fixture(scope="module")
def found() -> demo.Analysis:
    """The demonstration as shipped."""
    return demo.analyse(demo.load_network(), demo.open_samples())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network with its control, and samples of it."""
    rng = np.random.default_rng(0)
    tensors = {
        "W1": rng.normal(size=(6, 9)),
        "W2": rng.normal(size=(10, 6)),
        "W1_untrained": rng.normal(size=(6, 9)),
        "W2_untrained": rng.normal(size=(10, 6)),
    }
    x = np.cumsum(rng.normal(size=(50, 9)), axis=1)
    save_file(tensors, tmp_path / "net.safetensors")
    np.savez(tmp_path / "net.npz", **tensors)
    save_file({"traces": x}, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", samples=x)
    np.save(tmp_path / "x.npy", x)
    return tmp_path


def all_layers(found: demo.Analysis) -> list[demo.Layer]:
    return [*found.trained.layers, *found.control.layers]


def shipped_samples() -> Array:
    return np.concatenate(list(demo.open_samples().batches(1000))).astype(np.float64)


def fourier_eigenvalues(n: int) -> Array:
    return np.sort(np.abs(np.fft.fftfreq(n, 1 / n)) ** 4)


def joint_moment(x: Array, weights: demo.Weights) -> Array:
    """S Sᵀ over the number of columns of S = [α W2ᵀ, F], literally."""
    F = np.tanh(weights.W1 @ x.T)
    alpha = np.linalg.norm(F, 2) / np.linalg.norm(weights.W2.T, 2)
    S = np.hstack([alpha * weights.W2.T, F])
    return np.asarray(S @ S.T / S.shape[1])


# ---------------------------------------------------------------- numbers


def test_costs_are_the_optimum(found: demo.Analysis) -> None:
    """Layer 1: Σ ℓᵢ cᵢ of the preactivations. Layer 2: of the joint moment, formed literally."""
    x = shipped_samples()
    for weights, analysis in (
        (found.network.trained, found.trained),
        (found.network.control, found.control),
    ):
        S = x @ weights.W1.T
        for layer, moment in zip(
            analysis.layers, (S.T @ S / len(S), joint_moment(x, weights)), strict=True
        ):
            c = np.linalg.eigvalsh(moment)[::-1]
            optimum = fourier_eigenvalues(80) @ c
            assert layer.cost == pytest.approx(optimum, rel=2e-3)
            assert layer.bound == pytest.approx(layer.cost, rel=1e-6)
            assert layer.cost < 0.5 * layer.initial_cost
            assert layer.orthogonality_error < 1e-11
            assert (layer.neurons, layer.samples) == (80, len(x))
            assert layer.milliseconds > 0
            assert layer.undetermined == 0


def test_weights_are_read_on_the_right_side(found: demo.Analysis) -> None:
    """P W1 and W2 Pᵀ with the very P of the criterion; P keeps norms and other sides."""
    x = shipped_samples()
    weights = found.network.trained
    S = x @ weights.W1.T
    moments = df.Covariance.from_samples(S), df.Covariance.from_moments(joint_moment(x, weights))
    raws = weights.W1, weights.W2.T
    for layer, moment, raw in zip(found.trained.layers, moments, raws, strict=True):
        np.testing.assert_array_equal(layer.raw_weights, raw)
        P = df.descramble(moment).matrix
        leading = np.linalg.norm(P @ raw - layer.descrambled_weights)
        assert leading < 0.02 * np.linalg.norm(raw)
        assert np.linalg.norm(layer.descrambled_weights) == pytest.approx(np.linalg.norm(raw))
        other = demo.analysis._outside(layer.descrambled_weights.T)
        assert other == pytest.approx(layer.other_side, rel=1e-9)


def test_rel_norm_is_the_published_one(found: demo.Analysis) -> None:
    for layer in all_layers(found):
        for matrix, measured in (
            (layer.raw_weights, layer.raw),
            (layer.descrambled_weights, layer.descrambled),
        ):
            M = np.fft.fftshift(np.fft.fft2(matrix))
            below, above = (np.linalg.norm(M[r], 2) for r in (slice(0, 30), slice(49, 80)))
            expected = (below**2 + above**2) / np.linalg.norm(M, 2) ** 2
            assert measured.rel_norm == pytest.approx(expected, rel=1e-10)
            inside = np.linalg.norm(M[30:49]) ** 2 / np.linalg.norm(M) ** 2
            assert measured.outside == pytest.approx(1 - inside, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10, 11, 80])
def test_least_share_outside_is_attained_and_never_undercut(n: int) -> None:
    rng = np.random.default_rng(n)
    W = rng.normal(size=(n, n + 3))
    least = demo.analysis._least_outside(n, np.linalg.svd(W, compute_uv=False))
    best = demo.analysis._sharpness(
        np.asarray(df.descramble_weights(W).transform_weight(W))
    ).outside
    assert best == pytest.approx(least, abs=1e-12)
    for _ in range(20):
        turned = np.linalg.qr(rng.normal(size=(n, n)))[0] @ W
        assert demo.analysis._sharpness(turned).outside >= least - 1e-12


def test_shares_outside_respect_their_limits(found: demo.Analysis) -> None:
    for layer in all_layers(found):
        assert layer.least_outside <= layer.descrambled.outside <= layer.raw.outside + 0.05
        assert 1 <= layer.effective_rank <= layer.neurons


def test_band_is_the_same_fraction_everywhere() -> None:
    assert demo.band(80) == (30, 49)
    for n in range(2, 300):
        low, high = demo.band(n)
        assert 0 <= low <= n // 2 < high <= n


def test_held_out_by_brute_force(found: demo.Analysis) -> None:
    """P from the first half of the rows; tr(L P C Pᵀ) with C from the second."""
    x = shipped_samples()
    first, second = (half @ found.network.trained.W1.T for half in np.split(x, 2))
    P = df.descramble(first).matrix
    modes = df.operators.fourier(80).modes()
    L = (modes * fourier_eigenvalues(80)) @ modes.T
    C = second.T @ second / len(second)
    test = found.trained.layers[0].held_out
    assert test.raw == pytest.approx(np.trace(L @ C), rel=1e-4)
    assert test.transferred == pytest.approx(np.trace(L @ P @ C @ P.T), rel=1e-2)
    assert test.ratio == pytest.approx(test.transferred / test.optimum)
    for layer in all_layers(found):
        assert layer.held_out.optimum <= layer.held_out.transferred < layer.held_out.raw


def test_components(found: demo.Analysis) -> None:
    for analysis, weights in (
        (found.trained, found.network.trained),
        (found.control, found.network.control),
    ):
        parts = analysis.components
        U = parts.components
        assert U.shape == (256, demo.analysis.N_COMPONENTS)
        np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-12)
        outputs = np.tanh(shipped_samples() @ weights.W1.T) @ weights.W2.T
        C = outputs.T @ outputs / len(outputs)
        np.testing.assert_allclose(np.diag(U.T @ C @ U) / np.trace(C), parts.shares, rtol=1e-4)
        np.testing.assert_allclose(
            np.linalg.norm(C @ U - U * (parts.shares * np.trace(C)), axis=0) / np.trace(C),
            0,
            atol=1e-6,
        )
        best = (U.T @ parts.polynomials)[np.arange(6), parts.chebyshev.argmax(axis=1)]
        assert (best > 0).all()
        assert parts.chebyshev_span <= 1 + 1e-12
        assert parts.chebyshev_match == parts.chebyshev.max(axis=1).mean()


def test_curves_are_chebyshev_polynomials_and_cosines() -> None:
    polynomials, cosines = demo.analysis._curves(33, 4)
    t = np.linspace(-1, 1, 33)
    for j, values in enumerate((np.ones(33), t, 2 * t**2 - 1, 4 * t**3 - 3 * t)):
        np.testing.assert_allclose(polynomials[:, j], values / np.linalg.norm(values), atol=1e-12)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(4), atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 49, 50, 1000])
def test_batch_size_changes_nothing(folder: Path, size: int) -> None:
    network, samples = demo.load_network(folder / "net.npz"), demo.open_samples(folder / "x.npy")
    one = demo.analyse(network, samples, batch_size=50)
    other = demo.analyse(network, samples, batch_size=size)
    for a, b in zip(all_layers(one), all_layers(other), strict=True):
        assert b.cost == pytest.approx(a.cost, rel=1e-9)
        assert b.held_out.transferred == pytest.approx(a.held_out.transferred, rel=1e-9)
        assert b.samples == 50


def test_formats_agree(folder: Path) -> None:
    costs = {
        demo.analyse(demo.load_network(folder / net), demo.open_samples(folder / x))
        .trained.layers[1]
        .cost
        for net in ("net.safetensors", "net.npz")
        for x in ("x.safetensors", "x.npz", "x.npy")
    }
    assert len(costs) == 1


@pytest.mark.parametrize("name", sorted(demo.files.ACTIVATIONS))
def test_activations(folder: Path, name: str) -> None:
    s = np.linspace(-40, 40, 81)
    reference = {
        "tanh": np.tanh(s),
        "sigmoid": 1 / (1 + np.exp(-s)),
        "relu": np.where(s > 0, s, 0),
        "identity": s,
        "linear": s,
    }[name]
    np.testing.assert_allclose(demo.files.ACTIVATIONS[name](s), reference, atol=1e-15)
    W = {"W1": np.eye(3, 9, dtype=np.float32), "W2": np.ones((4, 3), dtype=np.float32)}
    save_file(W, folder / "other.safetensors", {"hidden_activation": name})
    network = demo.load_network(folder / "other.safetensors")
    assert network.activation == name
    found = demo.analyse(network, demo.open_samples(folder / "x.npy"))
    assert np.isfinite(found.trained.layers[1].cost)


def test_directions_without_signal_are_reported(folder: Path) -> None:
    """Three dead neurons of six: two or more directions share the eigenvalue 0."""
    W1 = np.zeros((6, 9))
    W1[:3, :3] = np.eye(3)
    np.savez(folder / "dead.npz", W1=W1, W2=np.random.default_rng(1).normal(size=(4, 6)))
    found = demo.analyse(
        demo.load_network(folder / "dead.npz"), demo.open_samples(folder / "x.npy")
    )
    assert found.trained.layers[0].undetermined == 3
    assert "P W1 is arbitrary: 3 (trained)" in demo.reading(found)["layer1"]


# ---------------------------------------------------------------- order of the neurons


def outputs(x: Array, weights: demo.Weights) -> Array:
    return np.asarray(np.tanh(x @ weights.W1.T) @ weights.W2.T)


def both(found: demo.Analysis) -> list[tuple[demo.NetworkAnalysis, demo.Weights]]:
    return [
        (found.trained, found.network.trained),
        (found.control, found.network.control),
    ]


def test_reordered_neurons_leave_the_outputs_unchanged(found: demo.Analysis) -> None:
    x = shipped_samples()
    for analysis, weights in both(found):
        order = analysis.order
        assert sorted(order.permutation) == list(range(80))
        assert not np.array_equal(order.permutation, np.arange(80))
        np.testing.assert_array_equal(order.raw_weights, weights.W1)
        np.testing.assert_array_equal(order.reordered.W1, weights.W1[order.permutation])
        np.testing.assert_array_equal(order.reordered.W2, weights.W2[:, order.permutation])
        before, after = outputs(x, weights), outputs(x, order.reordered)
        difference = np.abs(after - before).max() / np.abs(before).max()
        assert difference <= 1e-14
        assert analysis.output_difference == pytest.approx(difference, rel=1, abs=1e-15)


def test_a_wrong_order_of_the_next_layer_shows(found: demo.Analysis) -> None:
    """The comparison of outputs would see a permutation that only one of the layers got."""
    orders = [analysis.order for analysis, _ in both(found)]
    wrong = [
        dataclasses.replace(
            order, reordered=dataclasses.replace(order.reordered, W2=weights.W2.copy())
        )
        for order, (_, weights) in zip(orders, both(found), strict=True)
    ]
    batches = list(demo.open_samples().batches(1000))
    assert max(demo.order.output_differences(found.network, orders, batches)) <= 1e-14
    broken = demo.order.output_differences(found.network, wrong, batches)
    assert min(broken) > 1e-3
    text = demo.reading(
        dataclasses.replace(
            found, control=dataclasses.replace(found.control, output_difference=broken[1])
        )
    )["order"]
    assert "changed by more than rounding" in text


def test_roughness_of_the_order_by_brute_force(found: demo.Analysis) -> None:
    """Mean over the samples of the squared differences of neighbours, and its bounds."""
    x = shipped_samples()
    for analysis, weights in both(found):
        order = analysis.order
        S = x @ weights.W1.T
        for signals, cost in ((S, order.initial_cost), (S[:, order.permutation], order.cost)):
            steps = (np.diff(signals, axis=1) ** 2).sum(axis=1).mean()
            assert cost == pytest.approx(steps, rel=1e-3)
        assert 0 < order.bound <= order.tree_bound <= order.cost * (1 + 1e-9)
        assert order.cost < 0.5 * order.initial_cost
        assert order.remaining == order.cost / order.initial_cost
        assert order.least_of_orthogonal <= order.least_of_orders <= order.remaining * (1 + 1e-9)
        # The search is as good as the bound can tell.
        assert order.cost <= 1.01 * order.tree_bound
        difference = S[:, :, None] - S[:, None, :][:, :, :5]
        root = np.sqrt((difference**2).mean(axis=0))
        np.testing.assert_allclose(order.distances[:, :5], root, rtol=1e-3, atol=1e-3)
        c = np.linalg.eigvalsh(S.T @ S)
        assert order.leading_share == pytest.approx(c[-1] / c.sum(), rel=1e-3)
        rows = [(np.diff(W, axis=0) ** 2).sum() for W in (order.raw_weights, order.reordered.W1)]
        assert order.weights_remaining == pytest.approx(rows[1] / rows[0])


def test_a_shuffled_layer_is_put_back(folder: Path) -> None:
    """Neurons that sample the input in turn, shuffled, return to their order or its reverse."""
    t = np.linspace(0, 8, 20)
    W1 = np.exp(-((np.arange(9) - t[:, None]) ** 2))
    shuffle = np.random.default_rng(2).permutation(20)
    np.savez(folder / "turn.npz", W1=W1[shuffle], W2=np.random.default_rng(3).normal(size=(5, 20)))
    np.save(folder / "noise.npy", np.random.default_rng(4).normal(size=(5000, 9)))
    found = demo.analyse(
        demo.load_network(folder / "turn.npz"), demo.open_samples(folder / "noise.npy")
    )
    put_back = shuffle[found.trained.order.permutation]
    assert np.all(np.diff(put_back) == 1) or np.all(np.diff(put_back) == -1)
    assert found.trained.output_difference <= 1e-14


def test_words_about_the_order_follow_from_the_numbers(found: demo.Analysis) -> None:
    text = demo.reading(found)["order"]
    assert "unchanged to rounding" in text
    for analysis, _ in both(found):
        assert f"{analysis.output_difference:.0e}" in text
        assert f"{analysis.order.remaining:.2g}" in text
        assert f"{analysis.order.least_of_orders:.2g}" in text
        assert f"{analysis.order.weights_remaining:.2f}" in text
    # The control's signals are put in order more easily than the trained network's: said so.
    assert found.control.order.remaining < found.trained.order.remaining
    assert "The control does even better, so signals in order are no evidence" in text
    swapped = dataclasses.replace(found, trained=found.control, control=found.trained)
    text = demo.reading(swapped)["order"]
    assert "The control's signals are harder to put in order." in text
    assert "order of W1's rows is no evidence of learning" in text


def test_figure_of_the_order(found: demo.Analysis, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the demo extra")
    from descramble_fast.demo import figures

    paths = figures.draw(found, tmp_path)
    assert {path.name for path in paths} >= {"order.png", "layer1.png"}
    assert (tmp_path / "order.png").read_bytes().startswith(b"\x89PNG")
    figure = figures.draw_order(found)
    axes = [axis for row in figure.subfigs[0].subfigs for axis in _panels(row)]
    images = [np.asarray(axis.images[0].get_array()) for axis in axes if axis.images]
    assert len(images) == 8
    for (analysis, _), row in zip(both(found), (images[:4], images[4:]), strict=True):
        order, p = analysis.order, analysis.order.permutation
        np.testing.assert_array_equal(row[0][p], row[1])
        np.testing.assert_array_equal(row[2][np.ix_(p, p)], row[3])
        assert row[0].shape == order.raw_weights.shape


def _panels(row: Any) -> list[Any]:
    """Axes of a row of subfigures, colour bars left out, from left to right."""
    return [axis for part in row.subfigs for axis in part.axes if axis.get_label() != "<colorbar>"]


# ---------------------------------------------------------------- controls and words


def test_shipped_control_is_the_untrained_network(found: demo.Analysis) -> None:
    assert found.network.control.name == "untrained"
    assert "before its training" in found.network.control_text
    assert found.network.input_axis.label == "time / us"
    assert found.network.output_axis.label == "distance / nm"


def test_without_a_control_a_gaussian_one_is_drawn_and_named(folder: Path) -> None:
    rng = np.random.default_rng(3)
    W1, W2 = 5 * rng.normal(size=(60, 40)), rng.normal(size=(50, 60))
    np.savez(folder / "bare.npz", W1=W1, W2=W2)
    network, again = (demo.load_network(folder / "bare.npz") for _ in range(2))
    np.testing.assert_array_equal(network.control.W1, again.control.W1)
    assert demo.files._rms(network.control.W1) == pytest.approx(demo.files._rms(W1), rel=0.1)
    assert demo.files._rms(network.control.W2) == pytest.approx(demo.files._rms(W2), rel=0.1)
    assert not np.array_equal(network.control.W1, W1)
    assert "Gaussian" in network.control_text
    assert "not the network before its own training" in network.control_text


def test_words_follow_from_the_numbers(found: demo.Analysis) -> None:
    """A network that is its own control must not be credited with anything."""
    same = dataclasses.replace(found, control=found.trained)
    for key, text in demo.reading(same).items():
        assert "no evidence of learning" in text, key
    for layer in found.trained.layers:
        text = demo.reading(found)[f"layer{layer.layer}"]
        assert f"{layer.raw.rel_norm:.2f} to {layer.descrambled.rel_norm:.2f}" in text
    rougher = dataclasses.replace(found.control.layers[0], cost=0.9, initial_cost=1.0)
    assert "stay rough" in demo.words._signal_verdict(found.trained.layers[0], rougher)


def test_summary_is_json_without_paths(folder: Path) -> None:
    network = demo.load_network(folder / "net.safetensors")
    samples = demo.open_samples(folder / "x.safetensors")
    summary = demo.summary(demo.analyse(network, samples))
    text = json.dumps(summary, allow_nan=False)
    assert str(folder) not in text
    assert os.path.expanduser("~") + os.sep not in text
    assert summary["configuration"]["descramble_fast"] == df.__version__
    assert summary["network"]["file"] == "net.safetensors"
    assert {a["network"] for a in summary["analyses"]} == {"trained", "untrained"}
    for analysis in summary["analyses"]:
        for layer in analysis["layers"]:
            assert layer["cost"] < layer["initial_cost"]
            assert "raw_weights" not in layer
        order = analysis["order"]
        assert sorted(order["permutation"]) == list(range(6))
        assert order["bound"] <= order["tree_bound"] <= order["cost"] * (1 + 1e-9)
        assert order["cost"] <= order["initial_cost"]
        assert 0 <= order["output_difference"] <= 1e-14
        assert order["remaining"] == order["cost"] / order["initial_cost"]


# ---------------------------------------------------------------- files that cannot be used


def broken_network(folder: Path, **changes: Array | None) -> Path:
    rng = np.random.default_rng(0)
    tensors: dict[str, Array | None] = {
        "W1": rng.normal(size=(6, 9)),
        "W2": rng.normal(size=(10, 6)),
        **changes,
    }
    path = folder / "broken.npz"
    np.savez(path, **{k: v for k, v in tensors.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W1": None}, ["lacks W1", "holds W2"]),
        ({"W2": None}, ["lacks W2", "holds W1"]),
        ({"W2": np.ones((10, 7))}, ["W2", "(10, 7)", "(n, 6)", "(6, 9)"]),
        ({"W1": np.ones(6)}, ["W1", "(6,)", "matrix"]),
        ({"W1": np.ones((6, 9), dtype=np.int64)}, ["W1", "int64", "float32"]),
        ({"W1": np.full((6, 9), np.nan)}, ["W1", "NaN"]),
        ({"W1": np.zeros((6, 9))}, ["W1", "zero"]),
        ({"W1": np.ones((1, 9)), "W2": np.ones((4, 1))}, ["at least 2 neurons"]),
        ({"W1_untrained": np.ones((6, 9))}, ["lacks W2_untrained"]),
        (
            {"W1_untrained": np.ones((6, 8)), "W2_untrained": np.ones((10, 6))},
            ["W1_untrained", "(6, 8)", "(6, 9)"],
        ),
    ],
)
def test_networks_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Array | None], words: list[str]
) -> None:
    with pytest.raises(demo.DemoError) as error:
        demo.load_network(broken_network(tmp_path, **changes))
    message = str(error.value)
    assert message.startswith("broken.npz: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.ones((5, 9), dtype=np.int32), ["int32", "float32"]),
        (np.ones((0, 9)), ["0 rows", "at least 2"]),
        (np.ones((1, 9)), ["1 rows", "at least 2"]),
        (np.ones((3, 9, 2)), ["exactly one matrix"]),
        (np.ones((5, 9), dtype=np.complex128), ["complex128"]),
    ],
)
def test_samples_that_cannot_be_used(tmp_path: Path, samples: Array, words: list[str]) -> None:
    np.save(tmp_path / "x.npy", samples)
    with pytest.raises(demo.DemoError) as error:
        demo.open_samples(tmp_path / "x.npy")
    assert str(error.value).startswith("x.npy: ")
    for word in words:
        assert word in str(error.value)


def test_samples_of_another_width(folder: Path) -> None:
    np.save(folder / "wide.npy", np.ones((5, 12)))
    samples = demo.open_samples(folder / "wide.npy")
    with pytest.raises(demo.DemoError, match=r"wide.npy: array .*\(5, 12\).*\(N, 9\)"):
        demo.analyse(demo.load_network(folder / "net.npz"), samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_samples_is_named_by_its_row_in_the_file(folder: Path, bad: float) -> None:
    x = np.ones((50, 9))
    x[37, 4] = bad
    np.save(folder / "bad.npy", x)
    samples = demo.open_samples(folder / "bad.npy")
    with pytest.raises(demo.DemoError, match=r"bad.npy: array .* row 37, column 4"):
        demo.analyse(demo.load_network(folder / "net.npz"), samples, batch_size=8)


def test_overflow_in_the_network_is_named(folder: Path) -> None:
    save_file({"W1": np.full((4, 9), 1e30), "W2": np.ones((4, 4))}, folder / "big.safetensors")
    np.save(folder / "big.npy", np.full((5, 9), 1e30, dtype=np.float32))
    samples = demo.open_samples(folder / "big.npy")
    with np.errstate(over="ignore"), pytest.raises(demo.DemoError, match=r"big.npy, rows from 0:"):
        demo.analyse(demo.load_network(folder / "big.safetensors"), samples)


def test_several_matrices_need_a_name(tmp_path: Path) -> None:
    save_file({"a": np.ones((3, 2)), "b": np.ones((3, 2))}, tmp_path / "two.safetensors")
    with pytest.raises(demo.DemoError, match=r"two.safetensors: holds a, b"):
        demo.open_samples(tmp_path / "two.safetensors")
    save_file({"a": np.ones((3, 2)), "v": np.ones(3)}, tmp_path / "one.safetensors")
    assert demo.open_samples(tmp_path / "one.safetensors").tensor == "a"


def test_bfloat16_is_refused_clearly(tmp_path: Path) -> None:
    header = json.dumps(
        {"traces": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [0, 12]}}
    ).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(12)
    (tmp_path / "bf.safetensors").write_bytes(content)
    with pytest.raises(demo.DemoError, match=r"bf.safetensors: traces has dtype BF16, expected"):
        demo.open_samples(tmp_path / "bf.safetensors")


@pytest.mark.parametrize("name", ["no.safetensors", "no.npz", "no.npy"])
def test_files_that_are_missing_or_something_else(tmp_path: Path, name: str) -> None:
    for load in (demo.load_network, demo.open_samples):
        with pytest.raises(demo.DemoError, match=f"{name}: no such file"):
            load(tmp_path / name)
    (tmp_path / name).write_bytes(b"not what the name says" * 10)
    for load in (demo.load_network, demo.open_samples):
        with pytest.raises(demo.DemoError, match=f"{name}: no readable"):
            load(tmp_path / name)
    with pytest.raises(demo.DemoError, match="is a folder"):
        demo.open_samples(tmp_path)


class Trap:
    """Unpickling this would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_loading_never_executes_code(tmp_path: Path) -> None:
    trap = np.array([[Trap(tmp_path / "mark")]], dtype=object)
    np.save(tmp_path / "x.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "x.npz", W1=trap)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(demo.DemoError, match="no readable NumPy file"):
            demo.open_samples(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_samples_are_read_in_batches_in_their_precision(folder: Path) -> None:
    for dtype, working in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        x = np.arange(22, dtype=dtype).reshape(11, 2)
        save_file({"samples": x}, folder / "y.safetensors")
        batches = list(demo.open_samples(folder / "y.safetensors").batches(4))
        assert [len(batch) for batch in batches] == [4, 4, 3]
        assert {batch.dtype.name for batch in batches} == {working}
        np.testing.assert_array_equal(np.concatenate(batches), x)
