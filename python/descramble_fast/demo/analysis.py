"""Stream the samples through a network and its control, descramble, and measure both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

import descramble_fast as df
from descramble_fast.demo.files import (
    ACTIVATIONS,
    DemoError,
    Floats,
    Matrix,
    Network,
    Samples,
    Weights,
)
from descramble_fast.demo.order import NeuronOrder, find_order, output_differences

Progress: TypeAlias = Callable[[Iterable[Matrix]], Iterable[Matrix]]

N_COMPONENTS = 6
N_CURVES = 8  # of each family that the components are compared with
# Rows 30 to 48 of 80 of the shifted spectrum: the central band of the published Rel norm.
BAND = (30, 49, 80)


@dataclass(frozen=True, eq=False)
class _Moments:
    """Second moments of one network's signals, per half of the samples where a test needs it."""

    before: tuple[df.Covariance, df.Covariance]  # W1 x
    after: tuple[df.Covariance, df.Covariance]  # f(W1 x)
    output: df.Covariance  # W2 f(W1 x)

    @classmethod
    def of(cls, weights: Weights) -> _Moments:
        n1, n2 = len(weights.W1), len(weights.W2)
        return cls(
            (df.Covariance(n1), df.Covariance(n1)),
            (df.Covariance(n1), df.Covariance(n1)),
            df.Covariance(n2),
        )

    def update(self, half: int, signals: tuple[Matrix, Matrix, Matrix]) -> None:
        self.before[half].update(signals[0])
        self.after[half].update(signals[1])
        self.output.update(signals[2])


def _stream(
    network: Network, samples: Samples, batch_size: int, progress: Progress
) -> list[_Moments]:
    """One pass over the samples for both networks; the first and the second half are kept apart."""
    both = (network.trained, network.control)
    moments = [_Moments.of(weights) for weights in both]
    activate = ACTIVATIONS[network.activation]
    middle, row = samples.shape[0] // 2, 0
    for batch in progress(samples.batches(batch_size)):
        cut = min(max(middle - row, 0), len(batch))
        for half, part in enumerate((batch[:cut], batch[cut:])):
            for weights, moment in zip(both, moments, strict=True):
                try:
                    moment.update(half, _signals(weights, activate, part))
                except ValueError as error:
                    raise DemoError(f"{samples.file}, rows from {row}: {error}") from error
        row += len(batch)
    return moments


def _signals(
    weights: Weights, activate: Callable[[Matrix], Matrix], x: Matrix
) -> tuple[Matrix, Matrix, Matrix]:
    before = x @ weights.W1.T.astype(x.dtype)
    after = activate(before)
    return before, after, after @ weights.W2.T.astype(x.dtype)


def _merged(halves: tuple[df.Covariance, df.Covariance]) -> df.Covariance:
    return df.Covariance(halves[0].n_features).merge(halves[0]).merge(halves[1])


def _joint(activations: df.Covariance, W2: Floats) -> df.Covariance:
    """Second moment of the columns of S = [α W2ᵀ, F], F = f(W1 X) with one sample a column.

    As published α = ‖F‖₂ / ‖W2ᵀ‖₂, so that neither part outweighs the other: with N samples,
    ‖F‖₂² = N λ₁(C_F). S has m + N columns, m rows of W2, so S Sᵀ / (m + N) = w₁ W2ᵀW2/m + w₂ C_F
    with w₁ = α² m / (m + N) and w₂ = N / (m + N).
    """
    m, count = W2.shape[0], activations.count
    moment = activations.second_moment()
    largest = float(df.eigh(moment, k=1).eigenvalues[-1])
    alpha_squared = count * max(largest, 0.0) / float(np.linalg.norm(W2, 2)) ** 2
    next_weights = df.Covariance.from_moments(W2.T @ W2 / m, weight=m)
    return df.Covariance.combine(
        [next_weights, activations], [alpha_squared * m / (m + count), count / (m + count)]
    )


@dataclass(frozen=True)
class Sharpness:
    """How far a matrix varies along its neurons.

    Attributes
    ----------
    rel_norm : float
        The published "Rel norm": with M the shifted two-dimensional spectrum, the squared spectral
        norms of the rows below and above the central band, added, over that of M. Between 0 and 2.
    outside : float
        Share of the squared Frobenius norm outside the central band. Between 0 and 1; the fraction
        of rows outside for white noise.
    """

    rel_norm: float
    outside: float


@dataclass(frozen=True)
class HeldOut:
    """P from the first half of the samples, measured on the second.

    Attributes
    ----------
    raw : float
        Roughness of the second half as it is, P = I.
    transferred : float
        With P from the first half.
    optimum : float
        With its own P, the least possible.
    """

    raw: float
    transferred: float
    optimum: float

    @property
    def ratio(self) -> float:
        """Roughness with the other half's P over the optimum; 1 is perfect, or all is rounding."""
        return self.transferred / self.optimum if self.optimum > 1e-12 * self.raw else 1.0

    @property
    def remaining(self) -> float:
        """Roughness with the other half's P over the raw one."""
        return max(self.transferred, 0.0) / self.raw if self.raw > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of one network, raw and descrambled; costs as in `SmoothnessDescrambler`.

    Attributes
    ----------
    layer, tap, network : str
        Which layer, what was descrambled, and of which network.
    operator : str
        The roughness operator.
    neurons, samples : int
        n and N.
    initial_cost, cost, cost_error, bound, orthogonality_error : float
        Roughness tr(L P C Pᵀ) at P = I and at the optimum, its error bound, the lower bound, and
        ‖P Pᵀ - I‖.
    undetermined : int
        Directions without signal, on which P is arbitrary and so is the picture of the weights.
    milliseconds : float
        One call of `df.descramble` on the finished moments, the median of up to five.
    raw, descrambled : Sharpness
        Of the weights along their neurons.
    raw_weights, descrambled_weights : array, (n, ...)
        Neurons on the first axis: W1 and P W1, or W2ᵀ and (W2 Pᵀ)ᵀ.
    other_side : float
        `Sharpness.outside` along the weights' other axis. It does not depend on P.
    effective_rank : float
        Participation ratio (Σ σ²)² / Σ σ⁴ of the weights' singular values. Nor does this.
    least_outside : float
        The least `outside` that any orthogonal matrix could give; singular values alone fix it.
    held_out : HeldOut
        Control by other data.
    remaining : float
        Roughness after over roughness before.
    """

    layer: str
    tap: str
    network: str
    operator: str
    neurons: int
    samples: int
    initial_cost: float
    cost: float
    cost_error: float
    bound: float
    orthogonality_error: float
    undetermined: int
    milliseconds: float
    raw: Sharpness
    descrambled: Sharpness
    raw_weights: Floats
    descrambled_weights: Floats
    other_side: float
    effective_rank: float
    least_outside: float
    held_out: HeldOut

    @property
    def remaining(self) -> float:
        """Roughness after over roughness before; rounding below 0 counts as 0."""
        return max(self.cost, 0.0) / self.initial_cost if self.initial_cost > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Components:
    """Leading principal components of the output layer's data beside two families of curves.

    Attributes
    ----------
    network : str
        Which network.
    components : array, (n2, k)
        Leading eigenvectors of the second moment of W2 f(W1 x), one a column, in the direction of
        the polynomial that fits best.
    shares : array, (k,)
        Their eigenvalues over the trace.
    polynomials : array, (n2, d)
        Chebyshev's T_0 ... T_(d-1) at n2 even steps over [-1, 1], each of norm 1.
    cosines : array, (n2, d)
        The d lowest modes of the discrete cosine transform (DCT-II), each of norm 1: another
        smooth family, to compare the comparison with.
    chebyshev, cosine : array, (k, d)
        Absolute inner products of the components, in rows, with `polynomials` and `cosines`.
    chebyshev_span, cosine_span : float
        Mean share of the components' squared norm in the span of either family; that of T_0 ...
        T_(d-1) is that of all polynomials of degree below d.
    """

    network: str
    components: Floats
    shares: Floats
    polynomials: Floats
    cosines: Floats
    chebyshev: Floats
    cosine: Floats
    chebyshev_span: float
    cosine_span: float

    @property
    def chebyshev_match(self) -> float:
        """Mean over the components of the largest inner product with a polynomial."""
        return float(self.chebyshev.max(axis=1).mean())

    @property
    def cosine_match(self) -> float:
        """The same with a cosine."""
        return float(self.cosine.max(axis=1).mean())


@dataclass(frozen=True)
class NetworkAnalysis:
    """What was found for one network.

    Attributes
    ----------
    name : str
    layers : tuple of Layer
    components : Components
    order : NeuronOrder
        Of layer 1's neurons.
    output_difference : float
        Largest difference of the network's outputs on the samples, before g, from those with its
        neurons reordered, relative to the largest output.
    """

    name: str
    layers: tuple[Layer, Layer]
    components: Components
    order: NeuronOrder
    output_difference: float


@dataclass(frozen=True)
class Analysis:
    """What was found for a network and for its control."""

    network: Network
    samples: Samples
    batch_size: int
    trained: NetworkAnalysis
    control: NetworkAnalysis


def band(n: int) -> tuple[int, int]:
    """First row of the central band of a shifted spectrum of n rows, and the first one after it.

    Rows 30 and 49 for n = 80, as published; the same fractions of the rows otherwise, and always
    the row of frequency 0.

    Examples
    --------
    >>> from descramble_fast.demo import band
    >>> band(80), band(256)
    ((30, 49), (96, 157))
    """
    low, high, rows = BAND
    return min(round(low * n / rows), n // 2), max(round(high * n / rows), n // 2 + 1)


def _sharpness(matrix: Floats) -> Sharpness:
    spectrum = np.fft.fftshift(np.fft.fft2(matrix))
    low, high = band(len(matrix))
    outer = [rows for rows in (spectrum[:low], spectrum[high:]) if rows.size]
    return Sharpness(
        sum(float(np.linalg.norm(rows, 2)) ** 2 for rows in outer)
        / float(np.linalg.norm(spectrum, 2)) ** 2,
        sum(float(np.linalg.norm(rows)) ** 2 for rows in outer)
        / float(np.linalg.norm(spectrum)) ** 2,
    )


def _outside(matrix: Floats) -> float:
    power = (np.abs(np.fft.fftshift(np.fft.fft2(matrix), axes=0)) ** 2).sum(axis=1)
    low, high = band(len(matrix))
    return float((power[:low].sum() + power[high:].sum()) / power.sum())


def _effective_rank(singular_values: Floats) -> float:
    squares = singular_values**2
    return float(squares.sum() ** 2 / (squares**2).sum())


def _least_outside(n: int, singular_values: Floats) -> float:
    """Least share outside the band over all orthogonal P, by von Neumann's trace inequality.

    The energy inside is a quadratic form of each column of P W, and real columns have equal power
    at k and -k: its eigenvalues are the mean of the band's indicator over the two.
    """
    low, high = band(n)
    inside = np.zeros(n)
    inside[low:high] = 1.0
    inside = np.fft.ifftshift(inside)
    kept = np.sort((inside + np.roll(inside[::-1], 1)) / 2)[::-1]
    squares = np.sort(singular_values**2)[::-1]
    return float(1.0 - (kept[: len(squares)] * squares).sum() / squares.sum())


def _held_out(halves: tuple[df.Covariance, df.Covariance]) -> HeldOut:
    first, second = (df.descramble(half) for half in halves)
    moved = first.transform(first.transform(halves[1].second_moment()).T)
    transferred = float(np.trace(first.operator.apply(moved)))
    return HeldOut(second.initial_cost, transferred, second.cost)


def _undetermined(descrambler: df.SmoothnessDescrambler) -> int:
    """Columns in degenerate blocks at zero; one such column alone is determined up to its sign."""
    c = np.asarray(descrambler.eigenvalues)
    rounding = len(c) * np.finfo(np.float64).eps * c[0]
    return sum(stop - start for start, stop in descrambler.blocks if c[stop - 1] <= rounding)


def _layer(
    layer: str,
    tap: str,
    network: str,
    halves: tuple[df.Covariance, df.Covariance],
    moments: df.Covariance,
    samples: int,
    raw: Floats,
) -> Layer:
    """Descramble, and read weights that have this layer's neurons on their first axis."""
    solved, milliseconds = _timed_descramble(moments)
    read = np.asarray(solved.transform_weight(np.ascontiguousarray(raw)))
    singular_values = np.linalg.svd(raw, compute_uv=False).astype(np.float64, copy=False)
    return Layer(
        layer=layer,
        tap=tap,
        network=network,
        operator=solved.operator.name,
        neurons=len(raw),
        samples=samples,
        initial_cost=solved.initial_cost,
        cost=solved.cost,
        cost_error=solved.cost_error,
        bound=solved.bound,
        orthogonality_error=solved.orthogonality_error,
        undetermined=_undetermined(solved),
        milliseconds=milliseconds,
        raw=_sharpness(raw),
        descrambled=_sharpness(read),
        raw_weights=raw,
        descrambled_weights=read,
        other_side=_outside(raw.T),
        effective_rank=_effective_rank(singular_values),
        least_outside=_least_outside(len(raw), singular_values),
        held_out=_held_out(halves),
    )


def _timed_descramble(moments: df.Covariance) -> tuple[df.SmoothnessDescrambler, float]:
    """Solve up to five times within a quarter of a second; median milliseconds."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 250):
        start = time.perf_counter()
        solved = df.descramble(moments)
        times.append(1e3 * (time.perf_counter() - start))
    return solved, float(np.median(times))


def _first_layer(weights: Weights, moments: _Moments) -> Layer:
    whole = _merged(moments.before)
    return _layer("1", "W1 x", weights.name, moments.before, whole, whole.count, weights.W1)


def _second_layer(weights: Weights, moments: _Moments) -> Layer:
    """Tapped after the activation, P acts on the input side of W2: W2 Pᵀ = (P W2ᵀ)ᵀ."""
    whole = _merged(moments.after)
    first, second = (_joint(half, weights.W2) for half in moments.after)
    return _layer(
        "2",
        "[α W2ᵀ, f(W1 x)]",
        weights.name,
        (first, second),
        _joint(whole, weights.W2),
        whole.count,
        weights.W2.T,
    )


def _components(weights: Weights, output: df.Covariance) -> Components:
    moment = output.second_moment()
    leading = df.eigh(moment, k=min(N_COMPONENTS, len(moment)))
    vectors = np.asarray(leading.eigenvectors)[:, ::-1]
    polynomials, cosines = _curves(len(moment), min(N_CURVES, len(moment)))
    products = vectors.T @ polynomials
    best = np.abs(products).argmax(axis=1)[:, None]
    vectors = vectors * np.where(np.take_along_axis(products, best, axis=1) < 0, -1.0, 1.0).T
    trace = float(np.trace(moment))
    return Components(
        network=weights.name,
        components=vectors,
        shares=np.asarray(leading.eigenvalues)[::-1] / (trace if trace > 0 else 1.0),
        polynomials=polynomials,
        cosines=cosines,
        chebyshev=np.abs(vectors.T @ polynomials),
        cosine=np.abs(vectors.T @ cosines),
        chebyshev_span=_share_in_span(vectors, polynomials),
        cosine_span=_share_in_span(vectors, cosines),
    )


def _curves(n: int, d: int) -> tuple[Floats, Floats]:
    """Chebyshev polynomials and cosines on n places, d of each, columns of norm 1."""
    polynomials = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, n), d - 1)
    cosines = np.cos(np.pi / n * np.outer(np.arange(n) + 0.5, np.arange(d)))
    return polynomials / np.linalg.norm(polynomials, axis=0), cosines / np.linalg.norm(
        cosines, axis=0
    )


def _share_in_span(vectors: Floats, family: Floats) -> float:
    basis = np.linalg.qr(family)[0]
    return float((np.linalg.norm(basis.T @ vectors, axis=0) ** 2).mean())


def analyse(
    network: Network,
    samples: Samples,
    *,
    batch_size: int = 512,
    progress: Progress = lambda batches: batches,
) -> Analysis:
    """Stream the samples through a network and its control, descramble and measure.

    A second pass compares the outputs of both with those of their reordered selves.

    Parameters
    ----------
    network : Network
    samples : Samples
    batch_size : int
        Rows that are in memory at a time.
    progress : callable
        Wraps the iterable of batches, e.g. with a progress bar; called for each pass.

    Returns
    -------
    Analysis

    Raises
    ------
    DemoError
        If the samples do not fit the network or hold NaN or infinity.

    Examples
    --------
    >>> from descramble_fast import demo
    >>> found = demo.analyse(demo.load_network(), demo.open_samples())
    >>> found.trained.layers[0].cost < found.trained.layers[0].initial_cost
    True
    """
    expected = network.trained.W1.shape[1]
    if samples.shape[1] != expected:
        raise DemoError(
            f"{samples.file}: {samples.tensor} has shape {samples.shape}, expected (N, {expected}) "
            f"to fit W1 of shape {network.trained.W1.shape} in {network.file}"
        )
    both = (network.trained, network.control)
    moments = _stream(network, samples, batch_size, progress)
    orders = [
        find_order(weights, _merged(moment.before))
        for weights, moment in zip(both, moments, strict=True)
    ]
    differences = output_differences(network, orders, progress(samples.batches(batch_size)))
    found = [
        NetworkAnalysis(
            weights.name,
            (_first_layer(weights, moment), _second_layer(weights, moment)),
            _components(weights, moment.output),
            order,
            difference,
        )
        for weights, moment, order, difference in zip(
            both, moments, orders, differences, strict=True
        )
    ]
    return Analysis(network, samples, batch_size, found[0], found[1])
