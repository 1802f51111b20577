"""Pictures show the numbers that they were given, and refuse what cannot be shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import descramble_fast as df

matplotlib = pytest.importorskip("matplotlib")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def shown(ax: Any) -> np.ndarray[Any, Any]:
    (image,) = ax.images
    return np.asarray(image.get_array())


def drawn(ax: Any) -> None:
    """Have it drawn: what is drawn badly is a warning, and warnings are errors."""
    ax.figure.canvas.draw()


def test_weights_are_shown_in_units_of_their_root_mean_square(rng: np.random.Generator) -> None:
    W = 7 * rng.normal(size=(5, 9))
    ax = df.plot.weights(W, x=[0.0, 4.0], y=np.arange(5) * 10, title="W")
    np.testing.assert_allclose(shown(ax), W / np.sqrt(np.mean(W**2)))
    assert ax.images[0].get_clim() == (-3, 3)
    # Pixels have their centres at the coordinates, the first neuron is on top.
    np.testing.assert_allclose(ax.images[0].get_extent(), (-0.25, 4.25, 45, -5))
    assert ax.get_title() == "W"
    drawn(ax)


def test_a_wave_is_a_pair_of_peaks_in_the_spectrum() -> None:
    n, m, p, q = 16, 10, 3, 2
    phase = 2 * np.pi * (p * np.arange(n)[:, None] / n + q * np.arange(m) / m)
    ax = df.plot.spectrum(np.cos(phase))
    left, right, bottom, top = ax.images[0].get_extent()
    peaks = np.argwhere(shown(ax) > 0) + np.array([bottom + 0.5, left + 0.5])
    assert {tuple(peak) for peak in peaks} == {(p, q), (-p, -q)}
    assert (right - left, top - bottom) == (m, n)
    # All power in two of n m places: each is n m / 2 times the mean.
    np.testing.assert_allclose(shown(ax).max(), 10 * np.log10(n * m / 2))
    drawn(ax)


def test_modes_are_drawn_one_above_the_other(rng: np.random.Generator) -> None:
    d = df.descramble(rng.normal(size=(200, 6)))
    grid = np.linspace(-1, 1, 6)
    ax = df.plot.modes(d, k=4, grid=grid)
    curves = list(ax.lines)
    assert len(curves) == 4
    for i, (curve, height) in enumerate(zip(curves, ax.get_yticks(), strict=True)):
        np.testing.assert_array_equal(curve.get_xdata(), grid)
        np.testing.assert_allclose(curve.get_ydata() - height, d.components[:, i])
    shares = [float(label.get_text().split(": ")[1]) for label in ax.get_yticklabels()]
    expected = d.eigenvalues[:4] / d.eigenvalues.sum()
    np.testing.assert_allclose(shares, expected, rtol=0.05)
    drawn(ax)


def test_an_order_moves_rows_and_columns(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7))
    x[:, 2] = 1.0  # a constant neuron has no correlation
    places = rng.permutation(7)
    axes = df.plot.order(df.Covariance.from_samples(x), places)
    expected = np.zeros((7, 7))
    others = np.delete(np.arange(7), 2)
    expected[np.ix_(others, others)] = np.corrcoef(x[:, others].T)
    np.testing.assert_allclose(shown(axes[0]), expected, atol=1e-12)
    np.testing.assert_array_equal(shown(axes[1]), shown(axes[0])[np.ix_(places, places)])
    drawn(axes[0])


def test_a_report_has_the_control_below(rng: np.random.Generator) -> None:
    W, control = rng.normal(size=(8, 12)), rng.normal(size=(8, 12))
    found, other = df.descramble_weights(W), df.descramble_weights(control, criterion="trace")
    axes = df.plot.report(found, W, control=(other, control))
    assert axes.shape == (2, 4)
    for row, d, matrix in ((axes[0], found, W), (axes[1], other, control)):
        scale = np.sqrt(np.mean(matrix**2))
        np.testing.assert_allclose(shown(row[0]), matrix / scale)
        np.testing.assert_allclose(shown(row[1]), d.transform_weight(matrix) / scale)
        spectrum = row[3].lines[0].get_ydata()
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        np.testing.assert_allclose(spectrum, squares / squares[0])
    assert all("control" in ax.get_title() for ax in axes[1])
    drawn(axes[0, 0])


def test_axes_that_are_given_are_the_ones_that_come_back(rng: np.random.Generator) -> None:
    W = rng.normal(size=(4, 4))
    figure, axes = plt.subplots(1, 4)
    assert df.plot.weights(W, ax=axes[0]) is axes[0]
    assert df.plot.spectrum(W, ax=axes[1]) is axes[1]
    assert df.plot.modes(W, ax=axes[2]) is axes[2]
    cov = df.Covariance.from_samples(W)
    assert df.plot.order(cov, np.arange(4), axes=axes[:2])[1] is axes[1]
    assert df.plot.report(df.descramble_weights(W), W, axes=axes[None])[0, 3] is axes[3]
    assert len(figure.axes) == 4  # no bars of colours beside them


def test_torch_tensors_and_zeros_can_be_shown() -> None:
    torch = pytest.importorskip("torch")
    W = torch.arange(6.0).reshape(2, 3)
    expected = np.arange(6.0).reshape(2, 3) / np.sqrt(55 / 6)
    np.testing.assert_allclose(shown(df.plot.weights(W)), expected, rtol=1e-6)
    assert not shown(df.plot.weights(np.zeros((2, 2)))).any()
    drawn(df.plot.spectrum(np.zeros((2, 2))))


SQUARE = np.eye(3)
COVARIANCE = df.Covariance.from_samples(SQUARE)
TRACE = df.descramble_weights(SQUARE, criterion="trace")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: df.plot.weights("W"), TypeError, "W: got str, expected an array of real"),
        (
            lambda: df.plot.weights(SQUARE * 1j),
            TypeError,
            "W: got dtype complex128, expected an array of re",
        ),
        (
            lambda: df.plot.weights(np.ones(3)),
            ValueError,
            r"W: got shape \(3,\), expected a matrix",
        ),
        (lambda: df.plot.weights(np.ones((0, 3))), ValueError, r"W: got shape \(0, 3\)"),
        (lambda: df.plot.spectrum([[1, np.nan]]), ValueError, r"W: got nan at \(0, 1\), expected"),
        (lambda: df.plot.weights(SQUARE, x=[1, 2, 3, 4]), ValueError, "x: got 4 coordinates"),
        (lambda: df.plot.weights(SQUARE, ax=3), TypeError, "ax: got int, expected matplotlib Axes"),
        (lambda: df.plot.modes(SQUARE, k=0), ValueError, "k: got 0, expected at least 1"),
        (lambda: df.plot.modes(SQUARE, grid=[1, 2]), ValueError, "grid: got 2 places, expected 3"),
        (
            lambda: df.plot.order(SQUARE, [0, 1, 2]),
            TypeError,
            "covariance: got ndarray, expected a",
        ),
        (lambda: df.plot.order(COVARIANCE, [0, 1, 1]), ValueError, "permutation: got"),
        (
            lambda: df.plot.report(SQUARE, SQUARE),
            TypeError,
            "d: got ndarray, expected a Descrambler",
        ),
        (lambda: df.plot.report(TRACE, SQUARE, control=3), TypeError, "control: got int, expected"),
        (lambda: df.plot.report(TRACE, np.eye(4)), ValueError, "4"),
        (
            lambda: df.plot.report(TRACE, SQUARE, axes=np.empty((1, 3))),
            ValueError,
            r"axes: got shape \(1, 3\), expected \(1, 4\)",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
