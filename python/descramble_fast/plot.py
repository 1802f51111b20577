"""Pictures of layers, with matplotlib. Each function draws on axes that are given or on new ones.

Weights and correlations have diverging colours about 0, power has a sequential scale, and curves
the colours of Okabe and Ito: all three can be told apart with any kind of colour vision.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from descramble_fast._arrays import Array, Floats, integer, numbers, on_host
from descramble_fast._covariance import Covariance
from descramble_fast._descramble import Descrambler, SmoothnessDescrambler

__all__ = ["modes", "order", "report", "spectrum", "weights"]

SIGNED, POSITIVE = "RdBu_r", "magma"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LIMIT = 3.0  # of weights, in units of their root mean square
DECIBELS = (-30.0, 30.0)


def weights(
    W: Array,
    *,
    ax: Axes | None = None,
    x: Array | None = None,
    y: Array | None = None,
    title: str | None = None,
) -> Axes:
    """Draw weights as an image, between -3 and 3 of their root mean square.

    Parameters
    ----------
    W : array, (n, m)
        Neurons on the vertical axis, the first one on top.
    ax : Axes, optional
        Where to draw; a new figure by default, with a bar of colours.
    x, y : array, optional
        Coordinates of the columns and of the rows: of all, or of the first and the last.
    title : str, optional

    Returns
    -------
    Axes

    Raises
    ------
    TypeError
        If an argument is no array of real numbers.
    ValueError
        If `W` is no matrix, is empty, or holds NaN or infinity, or coordinates do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> ax = df.plot.weights(np.eye(4), title="one neuron for each input")
    >>> ax.get_title()
    'one neuron for each input'
    """
    matrix = _matrix("W", W)
    rms = float(np.sqrt(np.mean(matrix**2))) or 1.0
    extent = (
        *_edges("x", x, matrix.shape[1]),
        *_edges("y", y, matrix.shape[0])[::-1],
    )
    panel, new = _panel(ax)
    image = panel.imshow(
        matrix / rms, cmap=SIGNED, vmin=-LIMIT, vmax=LIMIT, extent=extent, **_IMAGE
    )
    _name(panel, "input", "neuron", title)
    if new:
        panel.figure.colorbar(image, ax=panel, label="weight / rms", extend="both")
    return panel


def spectrum(W: Array, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw the two-dimensional power spectrum of weights, in decibels over its mean.

    Parameters
    ----------
    W : array, (n, m)
        Neurons on the first axis. Frequencies run from minus a half to a half of the length, with
        0 in the centre.
    ax : Axes, optional
        Where to draw; a new figure by default, with a bar of colours.
    title : str, optional

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        As `weights`.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> ax = df.plot.spectrum(np.cos(np.arange(16))[:, None] * np.ones(8))
    >>> ax.get_xlabel()
    'cycles per 8 inputs'
    """
    matrix = _matrix("W", W)
    n, m = matrix.shape
    power = np.abs(np.fft.fftshift(np.fft.fft2(matrix))) ** 2
    decibels = 10 * np.log10(np.maximum(power / (power.mean() or 1.0), 1e-30))
    extent = (-(m // 2) - 0.5, (m - 1) // 2 + 0.5, -(n // 2) - 0.5, (n - 1) // 2 + 0.5)
    panel, new = _panel(ax)
    low, high = DECIBELS
    image = panel.imshow(
        decibels, cmap=POSITIVE, vmin=low, vmax=high, extent=extent, origin="lower", **_IMAGE
    )
    _name(panel, f"cycles per {m} inputs", f"cycles per {n} neurons", title)
    if new:
        panel.figure.colorbar(image, ax=panel, label="power / mean (dB)", extend="both")
    return panel


def modes(
    curves: Array | SmoothnessDescrambler,
    *,
    k: int = 6,
    grid: Array | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the first columns of a matrix as curves, each above the next.

    Parameters
    ----------
    curves : array, (n, m), or SmoothnessDescrambler
        Of a descrambler its principal components, with their shares of the second moment.
    k : int
        How many, from 1; no more than there are are drawn.
    grid : array, (n,), optional
        Where the entries stand; 0, 1, ... by default.
    ax : Axes, optional
        Where to draw; a new figure by default.
    title : str, optional

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        As `weights`, and where `k` is no positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> ax = df.plot.modes(df.operators.fourier(16).modes(), k=3)
    >>> len(ax.lines)
    3
    """
    k = integer("k", k)
    if k < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    if isinstance(curves, SmoothnessDescrambler):
        matrix, c = _matrix("curves", curves.components), on_host(curves.eigenvalues)
        labels = [f"{i + 1}: {share:.2g}" for i, share in enumerate(c / (c.sum() or 1.0))]
        axis = "component: its share of all that were found"
    else:
        matrix = _matrix("curves", curves)
        labels = [str(i + 1) for i in range(matrix.shape[1])]
        axis = "curve"
    n = len(matrix)
    places = np.arange(n) if grid is None else _vector("grid", grid)
    if len(places) != n:
        raise ValueError(f"grid: got {len(places)} places, expected {n}")
    matrix = matrix[:, :k]
    step = 2.2 * float(np.abs(matrix).max()) or 1.0
    heights = -step * np.arange(matrix.shape[1])
    panel, _ = _panel(ax)
    panel.hlines(heights, places.min(), places.max(), colors="0.85", linewidths=0.8, zorder=0)
    for i, height in enumerate(heights):
        panel.plot(places, matrix[:, i] + height, color=LINES[i % len(LINES)], linewidth=1.4)
    panel.set_yticks(heights, labels[: len(heights)])
    panel.margins(x=0)
    panel.set(xlabel="neuron" if grid is None else "", ylabel=axis, title=title or "")
    return panel


def order(
    covariance: Covariance, permutation: Array, *, axes: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Draw the correlations of a layer's neurons as they stand, and in another order.

    Parameters
    ----------
    covariance : Covariance
        Of n neurons.
    permutation : array of int, (n,)
        Neuron ``permutation[i]`` moves to place i, as `SmoothOrder` has it.
    axes : array of 2 Axes, optional
        Where to draw; a new figure by default, with a bar of colours.

    Returns
    -------
    array of 2 Axes

    Raises
    ------
    TypeError
        If `covariance` is no Covariance.
    ValueError
        If `permutation` is none of n, or there is no mean.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> r = df.descramble_permutation(x)
    >>> df.plot.order(df.Covariance.from_samples(x), r.permutation).shape
    (2,)
    """
    if not isinstance(covariance, Covariance):
        kind = type(covariance).__name__
        raise TypeError(f"covariance: got {kind}, expected a Covariance")
    places, n = numbers("permutation", permutation, "integers"), covariance.n_features
    if places.shape != (n,) or not np.array_equal(np.sort(places), np.arange(n)):
        raise ValueError(
            f"permutation: got shape {places.shape}, expected each of 0 ... {n - 1} once"
        )
    moments = on_host(covariance.covariance())
    deviation = np.sqrt(np.diag(moments))
    scale = np.outer(deviation, deviation)
    correlation = np.divide(moments, scale, out=np.zeros_like(moments), where=scale > 0)
    panels, new = _panels(axes, (2,), (8, 3.8))
    for panel, shown, title in (
        (panels[0], correlation, "as they stand"),
        (panels[1], correlation[np.ix_(places, places)], "in order"),
    ):
        image = panel.imshow(shown, cmap=SIGNED, vmin=-1, vmax=1, **_IMAGE)
        _name(panel, "place", "place", title)
    if new:
        panels[0].figure.colorbar(image, ax=list(panels), label="correlation of neurons")
    return panels


def report(
    d: Descrambler,
    W: Array,
    *,
    control: tuple[Descrambler, Array] | None = None,
    axes: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Draw a layer raw and descrambled, its spectrum, and the eigenvalues; a control below.

    Parameters
    ----------
    d : Descrambler
        Of the n neurons that are the rows of `W`.
    W : array, (n, m)
    control : pair of Descrambler and array, optional
        The same of the control, e.g. the untrained network on the same data.
    axes : array of Axes, (rows, 4), optional
        Where to draw, a row for each network; a new figure by default.

    Returns
    -------
    array of Axes, (1, 4) or (2, 4)
        Weights as they stand, P W, its spectrum, and the descrambler's eigenvalues; those of W Wᵀ
        where the criterion has none.

    Raises
    ------
    TypeError, ValueError
        As `weights`, and where `W` does not fit `d` or `axes` do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> W = np.random.default_rng(0).normal(size=(8, 12))
    >>> df.plot.report(df.descramble_weights(W), W).shape
    (1, 4)
    """
    if not isinstance(d, Descrambler):
        raise TypeError(f"d: got {type(d).__name__}, expected a Descrambler")
    rows = [("", d, _matrix("W", W))]
    if control is not None:
        if not (isinstance(control, tuple) and len(control) == 2):
            raise TypeError(f"control: got {type(control).__name__}, expected a pair of d and W")
        if not isinstance(control[0], Descrambler):
            kind = type(control[0]).__name__
            raise TypeError(f"control: got {kind} as its first, expected a Descrambler")
        rows.append(("control:\n", control[0], _matrix("control", control[1])))
    panels, new = _panels(axes, (len(rows), 4), (13, 3.4 * len(rows)))
    for line, (name, found, matrix) in zip(panels, rows, strict=True):
        read = on_host(found.transform_weight(np.ascontiguousarray(matrix)))
        weights(matrix, ax=line[0], title=f"{name}W")
        weights(read, ax=line[1], title=f"{name}P W")
        spectrum(read, ax=line[2], title=f"{name}spectrum of P W")
        if isinstance(found, SmoothnessDescrambler):
            c = on_host(found.eigenvalues)
        else:
            c = np.linalg.svd(matrix, compute_uv=False) ** 2
        positive = c > c[0] * 1e-16
        line[3].semilogy(
            1 + np.flatnonzero(positive), c[positive] / c[0], ".-", color=LINES[0], linewidth=1
        )
        line[3].set(
            xlabel="component",
            ylabel="eigenvalue / largest",
            title=f"{name}{_achieved(found)}",
        )
        line[3].grid(alpha=0.3)
    if new:
        figure = panels[0, 0].figure
        for column, label in ((1, "weight / rms"), (2, "power / mean (dB)")):
            image = panels[0, column].images[0]
            figure.colorbar(
                image, ax=list(panels[:, column]), label=label, extend="both", location="bottom"
            )
    return panels


def _achieved(d: Descrambler) -> str:
    if d.criterion == "smoothness":
        return f"{d.cost / d.initial_cost:.2g} of the roughness left"
    return f"{d.criterion}: {d.initial_cost:.3g}, now {d.cost:.3g}"


_IMAGE: Any = {"aspect": "auto", "interpolation": "nearest"}


def _matrix(argument: str, array: Array) -> Floats:
    matrix = _real(argument, array)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"{argument}: got shape {matrix.shape}, expected a matrix")
    return matrix


def _vector(argument: str, array: Array) -> Floats:
    vector = _real(argument, array)
    if vector.ndim != 1:
        raise ValueError(f"{argument}: got shape {vector.shape}, expected one axis")
    return vector


def _real(argument: str, array: Array) -> Floats:
    found = numbers(argument, array).astype(np.float64)
    if not np.isfinite(found).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise ValueError(f"{argument}: got {found[place]} at {place}, expected finite numbers")
    return found


def _edges(argument: str, coordinates: Array | None, count: int) -> tuple[float, float]:
    """Outer edges of an image whose pixels have their centres at coordinates."""
    places = np.arange(count) if coordinates is None else _vector(argument, coordinates)
    if len(places) not in (2, count):
        raise ValueError(f"{argument}: got {len(places)} coordinates, expected {count} or 2")
    first, last = float(places[0]), float(places[-1])
    half = (last - first) / (count - 1) / 2 if count > 1 else 0.5
    return first - half, last + half


def _panel(ax: Axes | None) -> tuple[Axes, bool]:
    """Axes to draw on, and whether they are new."""
    if ax is None:
        return plt.subplots(figsize=(5, 4), layout="constrained")[1], True
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: got {type(ax).__name__}, expected matplotlib Axes")
    return ax, False


def _panels(
    axes: NDArray[Any] | None, shape: tuple[int, ...], size: tuple[float, float]
) -> tuple[NDArray[Any], bool]:
    if axes is None:
        rows, columns = (1, *shape)[-2:]
        figure = plt.figure(figsize=size, layout="constrained")
        return np.asarray(figure.subplots(rows, columns, squeeze=False)).reshape(shape), True
    panels = np.asarray(axes)
    if panels.shape != shape:
        raise ValueError(f"axes: got shape {panels.shape}, expected {shape}")
    for panel in panels.flat:
        if not isinstance(panel, Axes):
            raise TypeError(f"axes: got {type(panel).__name__}, expected matplotlib Axes")
    return panels, False


def _name(panel: Axes, horizontal: str, vertical: str, title: str | None) -> None:
    panel.set(xlabel=horizontal, ylabel=vertical, title=title or "")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.yaxis.set_major_locator(MaxNLocator(5))
