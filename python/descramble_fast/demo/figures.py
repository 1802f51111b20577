"""Figures of the demonstration: every network beside its control. Needs matplotlib."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from descramble_fast import demo

__all__ = ["draw", "draw_components", "draw_layer", "draw_order"]

DPI = 150
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "axes.linewidth": 0.8,
}
LIMIT = 3.0  # of weights, in units of their root mean square
DECIBELS = (-30.0, 30.0)
Extent = tuple[float, float, float, float]


def draw(found: demo.Analysis, folder: Path) -> list[Path]:
    """Draw everything.

    Parameters
    ----------
    found : Analysis
    folder : Path
        It must exist.

    Returns
    -------
    list of Path
        ``layer1.png``, ``layer2.png``, ``components.png`` and ``order.png`` in `folder`.
    """
    with matplotlib.rc_context(STYLE):
        figures = {
            "layer1.png": draw_layer(found, 0),
            "layer2.png": draw_layer(found, 1),
            "components.png": draw_components(found),
            "order.png": draw_order(found),
        }
        paths = [folder / name for name in figures]
        for path, figure in zip(paths, figures.values(), strict=True):
            figure.savefig(path, dpi=DPI)
    return paths


def draw_layer(found: demo.Analysis, index: int) -> Figure:
    """Weights raw and descrambled as images beside their spectra; the control in the second row.

    Parameters
    ----------
    found : Analysis
    index : {0, 1}
        W1 with its neurons on the vertical axis, or W2 with its neurons on the horizontal one.

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(12, 8.1), layout="constrained")
    panels, caption = _split(figure, 2, 1, height_ratios=[6.5, 1.55])
    rows = _split(panels, 2, 1)
    for row, analysis in zip(rows, (found.trained, found.control), strict=True):
        row.suptitle(_heading(analysis, found), fontweight="bold", fontsize=12)
        _layer_row(row, analysis.layers[index], found.network, index)
    n = found.trained.layers[index].neurons
    low, high = demo.band(n)
    legend = (
        f"Dashed: the central band, −{n // 2 - low} to {high - 1 - n // 2} cycles per {n} neurons. "
        "Rel norm: squared spectral norms of the two parts beyond it over that of the whole. "
        f"Outside: share of the energy beyond it; {1 - (high - low) / n:.2f} for white noise."
    )
    _caption(caption, f"{legend}\n{demo.reading(found)[('layer1', 'layer2')[index]]}")
    return figure


def _split(figure: Figure | SubFigure, rows: int, columns: int, **ratios: Any) -> list[SubFigure]:
    return list(np.ravel(np.asarray(figure.subfigures(rows, columns, **ratios))))


def _heading(analysis: demo.NetworkAnalysis, found: demo.Analysis) -> str:
    return f"{analysis.name}, the control" if analysis is found.control else analysis.name


def _layer_row(row: SubFigure, layer: demo.Layer, network: demo.Network, index: int) -> None:
    symbols = (("W1", "P W1"), ("W2", "W2 Pᵀ"))[index]
    axis = (network.input_axis, network.output_axis)[index]
    upright = index == 0
    left, right = _split(row, 1, 2)
    matrices = layer.raw_weights, layer.descrambled_weights
    rms = float(np.sqrt(np.mean(layer.raw_weights**2)))
    panels = left.subplots(1, 2, sharey=True)
    for panel, matrix, symbol, state in zip(
        panels, matrices, symbols, ("raw", "descrambled"), strict=True
    ):
        image = _weights(panel, matrix / rms, axis, upright=upright)
        panel.set_title(f"{symbol} {state}\nrms {rms:.3g}")
    left.colorbar(image, ax=panels, label="weight / rms", extend="both", pad=0.02)
    spectra = right.subplots(1, 2, sharey=True)
    for panel, matrix, symbol, measure in zip(
        spectra, matrices, symbols, (layer.raw, layer.descrambled), strict=True
    ):
        image = _spectrum(panel, matrix, axis, upright=upright)
        panel.set_title(
            f"spectrum of {symbol}\nRel norm {measure.rel_norm:.2f}, outside {measure.outside:.2f}"
        )
    right.colorbar(image, ax=spectra, label="power / mean (dB)", extend="both", pad=0.02)
    for panel in (panels[1], spectra[1]):
        panel.set_ylabel("")


def _weights(panel: Any, matrix: NDArray[Any], axis: demo.Axis, *, upright: bool) -> Any:
    """Draw a matrix that has its neurons on the first axis; `upright` puts them vertically."""
    half, n = axis.step / 2, len(matrix)
    along: Extent = (axis.start - half, axis.stop + half, n - 0.5, -0.5)
    across: Extent = (-0.5, n - 0.5, axis.start - half, axis.stop + half)
    image = panel.imshow(
        matrix if upright else matrix.T,
        cmap="RdBu_r",
        vmin=-LIMIT,
        vmax=LIMIT,
        aspect="auto",
        interpolation="nearest",
        extent=along if upright else across,
        origin="upper" if upright else "lower",
    )
    _name(panel, ("neuron", _label(axis)), upright)
    return image


def _spectrum(panel: Any, matrix: NDArray[Any], axis: demo.Axis, *, upright: bool) -> Any:
    """Draw the shifted spectral power in decibels; dashed lines bound the central band."""
    power = np.abs(np.fft.fftshift(np.fft.fft2(matrix))) ** 2
    n, m = power.shape
    decibels = 10 * np.log10(np.maximum(power / power.mean(), 1e-30))
    neurons = -(n // 2) - 0.5, (n - 1) // 2 + 0.5
    unit = 1 / (m * axis.step) if axis.unit else 1.0
    other = (-(m // 2) - 0.5) * unit, ((m - 1) // 2 + 0.5) * unit
    image = panel.imshow(
        decibels if upright else decibels.T,
        cmap="magma",
        vmin=DECIBELS[0],
        vmax=DECIBELS[1],
        aspect="auto",
        interpolation="nearest",
        extent=(*other, *neurons) if upright else (*neurons, *other),
        origin="lower",
    )
    for edge in demo.band(n):
        line = panel.axhline if upright else panel.axvline
        line(edge - n // 2 - 0.5, color="white", linewidth=1, linestyle=(0, (4, 3)))
    _name(panel, (f"cycles per {n} neurons", _frequency(axis)), upright)
    return image


def _label(axis: demo.Axis) -> str:
    return axis.label.replace("/ us", "/ µs")


def _frequency(axis: demo.Axis) -> str:
    if axis.unit == "us":
        return "frequency / MHz"
    return f"cycles / {axis.unit}" if axis.unit else f"cycles per {axis.count}"


def _name(panel: Any, labels: tuple[str, str], upright: bool) -> None:
    vertical, horizontal = labels if upright else labels[::-1]
    panel.set_xlabel(horizontal)
    panel.set_ylabel(vertical)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(MaxNLocator(5))


def draw_components(found: demo.Analysis) -> Figure:
    """Leading principal components of the output layer's data beside Chebyshev polynomials.

    Parameters
    ----------
    found : Analysis

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(12, 9.1), layout="constrained")
    panels, caption = _split(figure, 2, 1, height_ratios=[7.5, 1.4])
    rows = _split(panels, 2, 1)
    for row, analysis in zip(rows, (found.trained, found.control), strict=True):
        row.suptitle(_heading(analysis, found), fontweight="bold", fontsize=12)
        curves, matrices = _split(row, 1, 2, width_ratios=[1.1, 1])
        _curves(curves, analysis.components, found.network.output_axis)
        _products(matrices, analysis.components)
    n, d = found.trained.components.polynomials.shape
    legend = (
        f"PC: eigenvectors of the second moment of W2 f(W1 x). T0...T{d - 1}: Chebyshev "
        f"polynomials at {n} even steps of [−1, 1], C0...C{d - 1}: cosines (DCT-II modes), as "
        "unit vectors."
    )
    _caption(caption, f"{legend}\n{demo.reading(found)['components']}")
    return figure


def _curves(part: SubFigure, found: demo.Components, axis: demo.Axis) -> None:
    k = found.components.shape[1]
    columns = min(3, k)
    panels = part.subplots(-(-k // columns), columns, sharex=True, sharey=True, squeeze=False)
    grid = np.linspace(axis.start, axis.stop, axis.count)
    lines: list[Any] = []
    for i, panel in enumerate(panels.flat):
        if i >= k:
            panel.set_axis_off()
            continue
        lines = panel.plot(grid, found.components[:, i], color="#0b5fa5", linewidth=1.4)
        title = f"PC {i + 1}:"
        for symbol, family, products, colour, dashes in (
            ("T", found.polynomials, found.chebyshev, "#d95f02", "--"),
            ("C", found.cosines, found.cosine, "#3a9d5d", ":"),
        ):
            best = int(products[i].argmax())
            sign = -1.0 if family[:, best] @ found.components[:, i] < 0 else 1.0
            lines += panel.plot(
                grid, sign * family[:, best], color=colour, linewidth=1.4, linestyle=dashes
            )
            title += f"  {symbol}{best} {products[i, best]:.2f}"
        panel.set_title(title, fontsize=10)
        panel.axhline(0, color="0.8", linewidth=0.7, zorder=0)
        panel.xaxis.set_major_locator(MaxNLocator(5))
    part.supxlabel(_label(axis), fontsize=11)
    part.supylabel("entry of a unit vector", fontsize=11)
    part.legend(
        lines,
        ["PC of W2 f(W1 x)", "best Chebyshev T", "best cosine C"],
        loc="outside upper center",
        ncols=3,
        frameon=False,
    )


def _products(part: SubFigure, found: demo.Components) -> None:
    k, d = found.chebyshev.shape
    panels = part.subplots(1, 2, sharey=True)
    for panel, products, name in zip(
        panels, (found.chebyshev, found.cosine), ("Chebyshev T", "cosines C"), strict=True
    ):
        image = panel.imshow(products, cmap="viridis", vmin=0, vmax=1)
        panel.set_xticks(range(d), [f"{name[-1]}{j}" for j in range(d)])
        panel.set_yticks(range(k), [f"PC {i + 1}" for i in range(k)])
        panel.set_title(f"{name}\nmean of row maxima {products.max(axis=1).mean():.2f}")
        for (i, j), value in np.ndenumerate(products):
            panel.text(
                j,
                i,
                f"{value:.1f}".removeprefix("0"),
                color="black" if value > 0.6 else "white",
                ha="center",
                va="center",
                fontsize=8.5,
            )
    part.colorbar(image, ax=panels, label="|inner product|", location="bottom", shrink=0.7)


def draw_order(found: demo.Analysis) -> Figure:
    """W1 and its neurons' distances in the given order and reordered; the control below.

    Parameters
    ----------
    found : Analysis

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    panels, caption = _split(figure, 2, 1, height_ratios=[6.7, 1.9])
    rows = _split(panels, 2, 1)
    for row, analysis in zip(rows, (found.trained, found.control), strict=True):
        row.suptitle(_heading(analysis, found), fontweight="bold", fontsize=12)
        _order_row(row, analysis.order, found.network.input_axis)
    legend = (
        "Left: weights, a row for each neuron; reordered, the same rows stand elsewhere. Right: "
        "how much the signals W1 x of each two neurons differ, as the root mean square over the "
        "samples divided by its mean over all pairs. Roughness adds the squares next to the "
        "diagonal."
    )
    _caption(caption, f"{legend}\n{demo.reading(found)['order']}")
    return figure


def _order_row(row: SubFigure, order: demo.NeuronOrder, axis: demo.Axis) -> None:
    left, right = _split(row, 1, 2)
    rms = float(np.sqrt(np.mean(order.raw_weights**2)))
    panels = left.subplots(1, 2, sharey=True)
    for panel, matrix, title in zip(
        panels,
        (order.raw_weights, order.reordered.W1),
        (
            "W1, given order\ndifferences of rows: 1",
            f"W1, reordered\ndifferences of rows: {order.weights_remaining:.2f}",
        ),
        strict=True,
    ):
        image = _weights(panel, matrix / rms, axis, upright=True)
        panel.set_title(title)
    left.colorbar(image, ax=panels, label="weight / rms", extend="both", pad=0.02)
    panels[0].set_ylabel("place of neuron")
    panels[1].set_ylabel("")
    p = order.permutation
    squares = right.subplots(1, 2, sharey=True)
    n = len(p)
    mean = float(order.distances.sum()) / (n * (n - 1)) or 1.0
    for panel, distances, title in zip(
        squares,
        (order.distances, order.distances[np.ix_(p, p)]),
        (
            "signals, given order\nroughness: 1",
            f"signals, reordered\nroughness: {order.remaining:.2g}",
        ),
        strict=True,
    ):
        image = panel.imshow(
            distances / mean, cmap="viridis", vmin=0, vmax=2, interpolation="nearest", aspect="auto"
        )
        panel.set_title(title)
        _name(panel, ("place of neuron", "place of neuron"), upright=True)
    squares[1].set_ylabel("")
    right.colorbar(image, ax=squares, label="difference of signals / mean", extend="max", pad=0.02)


def _caption(part: SubFigure, text: str) -> None:
    for symbols in ("P W1", "W2 Pᵀ"):
        text = text.replace(symbols, symbols.replace(" ", "\u00a0"))
    wrapped = "\n".join(textwrap.fill(paragraph, 145) for paragraph in text.splitlines())
    part.text(0.01, 0.97, wrapped, fontsize=10.5, va="top", ha="left", linespacing=1.25)
