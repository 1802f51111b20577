"""Symmetric eigenproblems, single and batched."""

from __future__ import annotations

from dataclasses import dataclass

from descramble_fast import _core
from descramble_fast._arrays import Array, Floats, Kind, Route, integer


@dataclass(frozen=True, eq=False)
class EighResult:
    """Eigenpairs of a batch of symmetric matrices.

    Attributes
    ----------
    eigenvalues : array, (..., k)
        Ascending.
    eigenvectors : array, (..., n, k)
        Column ``i`` belongs to ``eigenvalues[..., i]``.
    residual, orthogonality_error : ndarray of float64, (...)
        Checked after the solve, in the Frobenius norm, by random probes: ``A V - V diag(w)`` and
        ``Vᵀ V - I``.
    route : Route
        Device, precision, driver and fallbacks.
    """

    eigenvalues: Array
    eigenvectors: Array
    residual: Floats
    orthogonality_error: Floats
    route: Route


def eigh(a: Array, k: int | None = None) -> EighResult:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Every solution is checked (residual within ``50 n eps ‖A‖``, orthogonality within ``50 n eps``);
    one that fails goes down a ladder of LAPACK drivers, recorded in the route. A batch is spread
    over threads and, to ``n = 512`` in float32 and 320 in float64, solved several matrices at a
    time in the lanes of vectors. One matrix needs ``3 n²`` elements of memory beside `a`, the
    result included, ``k n`` more with `k`; ``n² + k n`` from n = 1024 on where `k` is at most
    n / 32 and the spectrum decays.

    Parameters
    ----------
    a : array, (..., n, n)
        float64, float32, bfloat16 or float16. Only the lower triangles are read.
    k : int, optional
        Only the `k` largest eigenvalues and their vectors.

    Returns
    -------
    EighResult
        In the precision of `a`; float32 for the 16-bit types, whose range may hold neither the
        eigenvalues nor the accuracy.

    Raises
    ------
    TypeError
        If `a` is no array of a floating type.
    ValueError
        If `a` is not square, holds NaN or infinity (named by matrix, row and column), or has
        eigenvalues beyond its own range; if `k` is not within 1 ... n.
    BackendError
        If every driver failed, or `a` lies on a device that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> w = df.eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> w.eigenvalues.round(12).tolist()
    [1.0, 3.0]
    >>> df.eigh(np.eye(3), k=1).eigenvectors.shape
    (3, 1)
    """
    kind = Kind.of(a)
    eigenvalues, eigenvectors, residual, orthogonality_error, route = _core.eigh(
        a, None if k is None else integer("k", k)
    )
    return EighResult(
        eigenvalues=kind.out(eigenvalues),
        eigenvectors=kind.out(eigenvectors.swapaxes(-1, -2)),
        residual=residual,
        orthogonality_error=orthogonality_error,
        route=Route._of(route),
    )
