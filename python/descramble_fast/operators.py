"""Roughness operators L = T diag(ℓ) Tᵀ on n places, by name and in closed form."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from descramble_fast import _core
from descramble_fast._arrays import (
    Array,
    Floats,
    Kind,
    called,
    integer,
    listed,
    numbers,
    one_of,
)

_LARGEST = 1 << 48  # places of an operator, as in the core

__all__ = [
    "Operator",
    "central_difference",
    "difference",
    "fourier",
    "from_graph",
    "from_matrix",
    "grid",
]


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric positive-semidefinite roughness operator; made by the functions of this module.

    `apply`, `analyze` and `synthesize` act on the last axis, through a fast transform where one
    exists, and return float64 in the library of their argument.
    """

    _core: _core.Operator

    def __post_init__(self) -> None:
        if not isinstance(self._core, _core.Operator):
            raise TypeError("an Operator is made by the functions of descramble_fast.operators")

    def __repr__(self) -> str:
        return f"<Operator {self.name}>"

    @property
    def name(self) -> str:
        """The operator with its parameters, e.g. ``fourier(n=80, order=2)``."""
        return self._core.name

    @property
    def size(self) -> int:
        """Number of places, n."""
        return self._core.size

    @cached_property
    def eigenvalues(self) -> Floats:
        """ℓ, shape (n,), ascending."""
        return self._core.eigenvalues()

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of columns that share one eigenvalue, two or more each."""
        return tuple(self._core.blocks())

    def modes(self) -> Floats:
        """T, shape (n, n): column i is the mode of ``eigenvalues[i]``."""
        columns: Floats = self._core.modes().T
        return columns

    def apply(self, x: Array) -> Array:
        """L x, for x of shape (..., n)."""
        return Kind.of(x).out(self._core.apply(x))

    def analyze(self, x: Array) -> Array:
        """Tᵀ x, the coefficients of x of shape (..., n) in the modes."""
        return Kind.of(x).out(self._core.analyze(x))

    def synthesize(self, z: Array) -> Array:
        """T z, the signal with coefficients z of shape (..., n)."""
        with called(x="z"):
            return Kind.of(z).out(self._core.synthesize(z))


def fourier(n: int, order: int = 2) -> Operator:
    """Spectral derivative on a periodic grid of period 2π: ℓ = k^(2·order).

    The modes are the constant, cos 1, sin 1, cos 2, … and, for even `n`, the alternating Nyquist
    mode, whose odd derivatives vanish on the grid. Sule, Spencer and Czaja (arXiv 2301.07820) use
    order 2.

    Parameters
    ----------
    n : int
        Number of places.
    order : int
        Order of the derivative, at least 1.

    Returns
    -------
    Operator

    Raises
    ------
    ValueError
        If `n` or `order` is less than 1.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.operators.fourier(5).eigenvalues.tolist()
    [0.0, 1.0, 1.0, 16.0, 16.0]
    >>> df.operators.fourier(4, order=1).blocks  # constant and Nyquist; cos 1 and sin 1
    ((0, 2), (2, 4))
    """
    return _made(_core.Operator.fourier, n, _order(order))


def difference(n: int, order: int = 1, boundary: str = "periodic") -> Operator:
    """First or second difference.

    Parameters
    ----------
    n : int
        Number of places.
    order : {1, 2}
        Order of the difference; 2 is the square of the first's Laplacian.
    boundary : {"periodic", "path"}
        A ring (real Fourier modes, ℓ = (4 sin²(πk/n))^order) or a path with reflecting ends (DCT-II
        modes, ℓ = (4 sin²(πk/2n))^order, simple).

    Returns
    -------
    Operator

    Raises
    ------
    ValueError
        If `n`, `order` or `boundary` is none of these.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.operators.difference(3, 1, "path").eigenvalues.round(12).tolist()
    [0.0, 1.0, 3.0]
    """
    one_of("boundary", boundary, "periodic", "path")
    return _made(_core.Operator.difference, n, _order(order), boundary)


def central_difference(n: int) -> Operator:
    """Circular central first difference, (x[i+1] - x[i-1])/2: ℓ = sin²(2πk/n).

    Heavily degenerate; for even `n` the Nyquist mode is free. Kept for parity with earlier work.

    Parameters
    ----------
    n : int
        Number of places.

    Returns
    -------
    Operator

    Raises
    ------
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.operators.central_difference(4).eigenvalues.tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    return _made(_core.Operator.central_difference, n)


def grid(shape: Sequence[int], axis: Callable[..., Operator] = fourier, **options: Any) -> Operator:
    """Separable sum over the axes of an image-like arrangement of neurons, the last axis fastest.

    Parameters
    ----------
    shape : sequence of int
        Places along each axis.
    axis : callable
        Makes the operator of one axis from its length: `fourier`, `difference`,
        `central_difference` or a function of your own.
    **options
        Passed to `axis`.

    Returns
    -------
    Operator
        On ``prod(shape)`` places: L = Σ_a I ⊗ L_a ⊗ I.

    Raises
    ------
    ValueError
        If `shape` is empty or an axis cannot be made.

    Examples
    --------
    >>> import descramble_fast as df
    >>> op = df.operators.grid((2, 3), df.operators.difference, order=1, boundary="path")
    >>> op.eigenvalues.round(12).tolist()
    [0.0, 1.0, 2.0, 3.0, 3.0, 5.0]
    """
    if not callable(axis):
        raise TypeError(f"axis: got {type(axis).__name__}, expected a function of a length")
    sizes = [integer("shape", n) for n in listed("shape", shape, "integers")]
    if math.prod(sizes) > _LARGEST:  # before an axis of it takes memory
        raise ValueError(f"shape: got {tuple(sizes)}, expected at most 2^48 places in all")
    with called(n="shape"):
        axes = [axis(n, **options) for n in sizes]
    for one in axes:
        if not isinstance(one, Operator):
            raise TypeError(f"axis: gave {type(one).__name__}, expected an Operator")
    with called(axes="shape"), _in_memory(f"shape: got {tuple(sizes)}"):
        return Operator(_core.Operator.grid([one._core for one in axes]))


def from_matrix(matrix: Array) -> Operator:
    """Any symmetric positive-semidefinite matrix, by eigensolve.

    Parameters
    ----------
    matrix : array, (n, n)
        Symmetric and positive semidefinite to the rounding of its element type (1e-12 of the
        largest element for float64).

    Returns
    -------
    Operator

    Raises
    ------
    ValueError
        If it is not square, symmetric, finite and positive semidefinite.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> op = df.operators.from_matrix(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    >>> op.eigenvalues.round(12).tolist()
    [0.0, 2.0]
    """
    return Operator(_core.Operator.from_matrix(matrix))


def from_graph(edges: Array, n: int | None = None, weights: Array | None = None) -> Operator:
    """Graph Laplacian: smooth means that neighbours agree.

    Parameters
    ----------
    edges : array of int, (m, 2)
        Undirected edges between places; repeated edges add up, loops have no effect.
    n : int, optional
        Number of places; by default one more than the largest that occurs.
    weights : array, (m,), optional
        Non-negative weight of each edge, 1 by default.

    Returns
    -------
    Operator
        By eigensolve of the dense Laplacian: 8 n² bytes and O(n³).

    Raises
    ------
    TypeError
        If `edges` are not integers.
    ValueError
        If a shape does not fit, an index lies outside, or a weight is negative or not finite.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.operators.from_graph([[0, 1], [1, 2]]).eigenvalues.round(12).tolist()
    [0.0, 1.0, 3.0]
    """
    pairs = numbers("edges", edges, "integers")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"edges: got shape {pairs.shape}, expected (m, 2) with m at least 1")
    places = int(pairs.max()) + 1 if n is None else integer("n", n)
    if places < 1:
        raise ValueError(f"n: got {places}, expected at least 1")
    if pairs.min() < 0 or pairs.max() >= places:
        raise ValueError(
            f"edges: got places {pairs.min()} to {pairs.max()}, expected 0 to {places - 1}"
        )
    strengths = np.ones(len(pairs)) if weights is None else numbers("weights", weights)
    if strengths.shape != (len(pairs),):
        raise ValueError(f"weights: got shape {strengths.shape}, expected ({len(pairs)},)")
    strengths = strengths.astype(np.float64)
    if not (np.isfinite(strengths).all() and (strengths >= 0).all()):
        raise ValueError("weights: got a negative or non-finite entry")
    if not strengths.max() <= np.finfo(np.float64).max / (4 * len(pairs)):
        raise ValueError(f"weights: got {strengths.max()}, of which sums overflow")
    with _in_memory(f"n: got {places} places"):
        if places >= 2**31:  # NumPy has another error for it
            raise MemoryError
        adjacency = np.zeros((places, places))
        for i, j in (pairs.T, pairs.T[::-1]):
            np.add.at(adjacency, (i, j), strengths)
        np.fill_diagonal(adjacency, 0)
        return from_matrix(np.diag(adjacency.sum(axis=1)) - adjacency)


def _order(order: int) -> int:
    number = integer("order", order)
    if not 1 <= number < 2**31:
        raise ValueError(f"order: got {number}, expected 1 to 2^31 - 1")
    return number


def _made(make: Callable[..., _core.Operator], n: int, *options: Any) -> Operator:
    with _in_memory(f"n: got {n} places"):
        return Operator(make(integer("n", n), *options))


@contextlib.contextmanager
def _in_memory(what: str) -> Iterator[None]:
    """Let an allocation that fails say which argument asked for it."""
    try:
        yield
    except MemoryError:
        raise MemoryError(f"{what}, more than memory holds") from None
