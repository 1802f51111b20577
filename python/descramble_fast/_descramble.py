"""Orthogonal descramblers, and the smoothness criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from descramble_fast import _core, operators
from descramble_fast._arrays import Array, Kind, Route, called, flag, integer, listed
from descramble_fast._covariance import Covariance
from descramble_fast._stability import Stability, measure
from descramble_fast.operators import Operator


@dataclass(frozen=True)
class Gauge:
    """How the freedom among optimal descramblers was used up.

    Attributes
    ----------
    name : {"canonical", "identity", "reference"}
        The rule that was asked for.
    distance : float
        ‖P - R‖ in the Frobenius norm; NaN in the canonical gauge.
    exact : bool
        True where P is known to be the nearest to R: the spectrum of C is simple. False where it is
        the best stationary point found.
    iterations : int
        Alternations that were made.
    """

    name: str
    distance: float
    exact: bool
    iterations: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Descrambler:
    """An orthogonal matrix P and what it achieves.

    Attributes
    ----------
    criterion : {"smoothness", "trace", "diagonal"}
        What P optimises.
    cost : float
        The criterion at P.
    initial_cost : float
        The criterion at P = I.
    bound : float
        Lower bound of a minimised criterion, upper bound of a maximised one.
    orthogonality_error : float
        ‖P Pᵀ - I‖ in the Frobenius norm, estimated by random probes; on the retained part if only
        leading components are kept.
    route : Route
        Device, precision, driver and fallbacks.
    """

    criterion: str
    cost: float
    initial_cost: float
    bound: float
    orthogonality_error: float
    route: Route
    _core: _core.Descrambler = field(repr=False)
    _kind: Kind = field(repr=False)

    @cached_property
    def matrix(self) -> Array:
        """P, shape (n, n), float64; formed on first use."""
        return self._kind.out(self._core.matrix())

    def transform(self, samples: Array) -> Array:
        """Descramble samples: x Pᵀ, with the mean subtracted first if and only if centred.

        Parameters
        ----------
        samples : array, (..., n)

        Returns
        -------
        array, (..., n)
            float64, in the library of `samples`.
        """
        return Kind.of(samples).out(self._core.transform(self._operand(samples)))

    def inverse_transform(self, samples: Array) -> Array:
        """Scramble again: z P, with the mean added if and only if centred.

        Parameters
        ----------
        samples : array, (..., n)

        Returns
        -------
        array, (..., n)
        """
        return Kind.of(samples).out(self._core.inverse_transform(self._operand(samples)))

    def transform_weight(self, W: Array, bias: Array | None = None) -> Any:
        """Read the layer's weights on their output side: P W, and P b.

        Parameters
        ----------
        W : array, (n, m)
        bias : array, (n,), optional

        Returns
        -------
        array, (n, m), or a pair of it and an array (n,)
            The pair where a bias is given.
        """
        kind = Kind.of(W)
        weight = kind.out(self._core.transform_weight(self._operand(W)))
        if bias is None:
            return weight
        return weight, kind.out(self._core.transform_bias(self._operand(bias)))

    def transform_next_weight(self, W_next: Array) -> Array:
        """Read the next layer's weights on their input side: W_next Pᵀ.

        Parameters
        ----------
        W_next : array, (m, n)

        Returns
        -------
        array, (m, n)
        """
        return Kind.of(W_next).out(self._core.transform_next_weight(self._operand(W_next)))

    def _operand(self, array: Array) -> Array:
        """Bring an array to where P lies; elsewhere it is refused."""
        return array


@dataclass(frozen=True, eq=False, kw_only=True)
class SmoothnessDescrambler(Descrambler):
    """P = T Uᵀ, the exact minimiser of tr(L P C Pᵀ), applied through T and U.

    Attributes
    ----------
    operator : Operator
        L.
    eigenvalues : array, (k,)
        c, descending.
    cost_error : float
        Estimate of the numerical error of `cost`: ‖ΔC‖₂ Σ ℓᵢ, with the eigensolver's measured
        residual and the rounding of the moments in ΔC. What moments of samples narrower than
        float64 lose, some 1e-7 of the largest variance, is not in it.
    blocks : tuple of (int, int)
        Half-open ranges of components whose eigenvalues agree to n·eps·c₁: their columns are
        determined only together. On the null space of C this leaves P W undetermined. A block that
        `k` cuts off is listed up to k.
    gauge : Gauge
        How the remaining freedom was used up.
    """

    operator: Operator
    eigenvalues: Array = field(repr=False)
    cost_error: float
    blocks: tuple[tuple[int, int], ...]
    gauge: Gauge
    _core: _core.SmoothnessDescrambler = field(repr=False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # The other fields are filled in when one is first asked for: in a batch of small
            # problems that would cost as much as solving them.
            values = self.__dict__
            if name not in self.__dataclass_fields__ or "_gauge_name" not in values:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            core, gauge = values["_core"], values["_core"].gauge
            fields = common_fields(core, "smoothness") | {
                "eigenvalues": values["_kind"].out(core.eigenvalues()),
                "cost_error": core.cost_error,
                "blocks": tuple(core.blocks()),
                "gauge": Gauge(
                    values["_gauge_name"], gauge.distance, gauge.exact, gauge.iterations
                ),
            }
            values.update(fields)
            return fields[name]

    @cached_property
    def components(self) -> Array:
        """U, shape (n, k): column i is the principal component of ``eigenvalues[i]``."""
        return self._kind.out(self._core.components().T)

    @cached_property
    def modes(self) -> Array:
        """T, shape (n, k), rotated within degenerate blocks of ℓ as the gauge asks."""
        return self._kind.out(self._core.modes().T)

    def stability(self, parts: Sequence[Covariance]) -> Stability:
        """Measure how far this result is an accident of its samples.

        Each part of the samples is left out in turn: P of all the others is tried on it, and what
        leaving it out changes gives standard errors (the delete-one jackknife, see `Stability`).

        Parameters
        ----------
        parts : sequence of Covariance
            Moments of two or more disjoint parts of the samples that this was made from: two
            halves, or better ten to twenty chunks of equal size. Samples that depend on each other
            (one text, one trajectory) belong into one part. Each counts by its `weight`, which is
            1 for those of `Covariance.combine`.

        Returns
        -------
        Stability
            Arrays in the library of this result. It takes two eigenproblems of this size a part
            (two in all for two halves), one after the other, and a matrix product each.

        Raises
        ------
        TypeError
            If `parts` is no sequence of Covariance.
        ValueError
            If there are fewer than two, one has no samples or another number of features, or this
            result is centred and one has no mean.

        Examples
        --------
        >>> import numpy as np
        >>> import descramble_fast as df
        >>> x = np.random.default_rng(0).normal(size=(1000, 6)) * [4, 2, 1, 1, 1, 1]
        >>> s = df.descramble(x).stability(
        ...     [df.Covariance.from_samples(part) for part in np.split(x, 20)]
        ... )
        >>> bool(0.7 < s.eigenvalue_errors[0] / (16 * np.sqrt(2 / 1000)) < 1.3)
        True
        >>> (s.overlap > 0.9).tolist()
        [True, True, False, False, False, False]
        """
        return measure(self, parts)


@dataclass(frozen=True, eq=False, kw_only=True)
class MatrixDescrambler(Descrambler):
    """P of the trace or the diagonal criterion.

    Attributes
    ----------
    stationarity : float
        Norm of the skew part of ∇f Pᵀ relative to ∇f: 0 at a stationary point.
    iterations : int
        Steps of the generalised power iteration (0 for the trace, which is exact).
    """

    stationarity: float
    iterations: int


def descramble(
    samples_or_covariance: Array | Covariance,
    *,
    operator: Operator | None = None,
    center: bool = False,
    gauge: str | Array = "canonical",
    k: int | None = None,
) -> SmoothnessDescrambler:
    """Find the orthogonal matrix that makes a layer's signals smoothest, exactly.

    Minimises tr(L P C Pᵀ) over orthogonal P, where C is the second moment of the samples and L the
    roughness operator. The minimiser is P = T Uᵀ, with U the eigenvectors of C by descending and T
    those of L by ascending eigenvalue: the largest principal component becomes the smoothest mode
    (Sule, Spencer and Czaja, arXiv 2301.07820, the Brockett-function minimisation).

    Parameters
    ----------
    samples_or_covariance : array, (..., n), or Covariance
        Preactivations or activations, neurons last; or their moments.
    operator : Operator, optional
        L; ``operators.fourier(n, order=2)`` by default, as published.
    center : bool
        Use the covariance. The published criterion does not.
    gauge : {"canonical", "identity"} or array, (n, n)
        Which of the optimal matrices. Canonical: in every column of U the first of its largest
        entries is positive, T in closed form. Identity, or an array R: the one nearest to it, which
        makes descramblers comparable, e.g. across checkpoints.
    k : int, optional
        Only the k leading components; P is then a partial isometry onto the k smoothest modes, and
        `cost` what it retains.

    Returns
    -------
    SmoothnessDescrambler

    Raises
    ------
    TypeError
        If an argument is no array of a floating type, Covariance or Operator.
    ValueError
        If a shape does not fit, samples hold NaN or infinity, the moment is not positive
        semidefinite, or a mean is needed but unknown.
    BackendError
        If memory lies on a device that cannot be used, or every eigensolver failed.
    MemoryError
        If the system would not grant what `descramble_memory` states; found before any work.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> rng = np.random.default_rng(0)
    >>> places = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    >>> waves = np.cos(places + rng.uniform(0, 2 * np.pi, size=(500, 1)))
    >>> scrambled = waves @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    >>> d = df.descramble(scrambled)
    >>> d.cost < 0.05 * d.initial_cost
    True
    >>> bool(np.allclose(d.transform(scrambled), scrambled @ d.matrix.T))
    True
    """
    moments = (
        samples_or_covariance
        if isinstance(samples_or_covariance, Covariance)
        else Covariance._of("samples_or_covariance", samples_or_covariance)
    )
    if not (operator is None or isinstance(operator, Operator)):
        raise TypeError(f"operator: got {type(operator).__name__}, expected an Operator")
    with called(covariances="samples_or_covariance"):
        return descramble_many([moments], operator=operator, center=center, gauge=gauge, k=k)[0]


def descramble_many(
    covariances: Sequence[Array | Covariance],
    *,
    operator: Operator | Sequence[Operator] | None = None,
    center: bool = False,
    gauge: str | Array = "canonical",
    k: int | None = None,
) -> tuple[SmoothnessDescrambler, ...]:
    """Descramble many layers, heads or experts; equal sizes are solved as one batch.

    Parameters
    ----------
    covariances : sequence of Covariance or array
        Moments, or samples as for `descramble`.
    operator : Operator or sequence of Operator, optional
        One for all, or one each.
    center, gauge, k
        As for `descramble`, the same for all.

    Returns
    -------
    tuple of SmoothnessDescrambler
        In the order given.

    Raises
    ------
    TypeError, ValueError, BackendError, MemoryError
        As `descramble`; a length that does not fit is a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> heads = [df.Covariance.from_samples(np.random.rand(50, 4)) for _ in range(3)]
    >>> [d.matrix.shape for d in df.descramble_many(heads)]
    [(4, 4), (4, 4), (4, 4)]
    """
    if isinstance(covariances, Covariance):
        raise TypeError("covariances: got one Covariance, expected a sequence of them")
    center = flag("center", center)
    k = None if k is None else integer("k", k)
    moments = [
        item if isinstance(item, Covariance) else Covariance._of(f"covariances[{i}]", item)
        for i, item in enumerate(listed("covariances", covariances, "Covariance or array"))
    ]
    ops = _operators_for(moments, operator)
    with called(second_moment="covariances"):
        solved = _core.descramble_many(
            [cov._core for cov in moments], [op._core for op in ops], center, gauge, k
        )
    gauge_name = gauge if isinstance(gauge, str) else "reference"
    return tuple(
        _smoothness(core, cov._kind, op, gauge_name, center)
        for core, cov, op in zip(solved, moments, ops, strict=True)
    )


def descramble_memory(n: int, k: int | None = None) -> int:
    """State the memory that `descramble` takes, before it is run.

    Counts the peak of what comes beside the covariance of n features, result included, where no
    eigensolver fails and has to be replaced. A reference array as gauge adds 8 n², and a gauge
    other than the canonical takes more where eigenvalues repeat.

    Parameters
    ----------
    n : int
        Number of features.
    k : int, optional
        How many leading components; all by default.

    Returns
    -------
    int
        Bytes: a little more than 32 n² for all components, 8 k n more for k of them. From n = 1024
        on, where k < n / 32, as little as half suffices, unless the leading eigenvalues lie so
        close that all pairs are found faster.

    Raises
    ------
    TypeError
        If `n` or `k` is no integer.
    ValueError
        If `n` or `k` is out of range.

    Examples
    --------
    >>> import descramble_fast as df
    >>> 32 * 4096**2 < df.descramble_memory(4096) < 1.1 * 32 * 4096**2
    True
    >>> df.descramble_memory(4096, k=32) - df.descramble_memory(4096) == 8 * 33 * 4096
    True
    """
    return _core.descramble_memory(integer("n", n), None if k is None else integer("k", k))


def _operators_for(
    moments: Sequence[Covariance], operator: Operator | Sequence[Operator] | None
) -> list[Operator]:
    if operator is None:
        by_size = {n: operators.fourier(n) for n in {cov.n_features for cov in moments}}
        return [by_size[cov.n_features] for cov in moments]
    if isinstance(operator, Operator):
        return [operator] * len(moments)
    if not isinstance(operator, Sequence):
        raise TypeError(f"operator: got {type(operator).__name__}, expected an Operator")
    ops = list(operator)
    for op in ops:
        if not isinstance(op, Operator):
            raise TypeError(f"operator: got {type(op).__name__}, expected an Operator")
    return ops


def common_fields(core: _core.Descrambler, criterion: str) -> dict[str, Any]:
    """Fields that all descramblers share."""
    return {
        "criterion": criterion,
        "cost": core.cost,
        "initial_cost": core.initial_cost,
        "bound": core.bound,
        "orthogonality_error": core.orthogonality_error,
        "route": Route._of(core.route),
    }


def _smoothness(
    core: _core.SmoothnessDescrambler, kind: Kind, operator: Operator, gauge: str, center: bool
) -> SmoothnessDescrambler:
    out = SmoothnessDescrambler.__new__(SmoothnessDescrambler)
    out.__dict__.update(
        operator=operator, _core=core, _kind=kind, _gauge_name=gauge, _center=center
    )
    return out
