"""Competitors for the smoothness criterion, written independently of the library.

Each solver minimises ``tr(L P C P^T)`` over orthogonal ``P`` from the same dense matrices:

- `iterative_cayley`: the published optimiser, a Cayley chart with limited-memory BFGS
  (Amey, Keeley, Choudhury, Kuprov, PNAS 118 (2021) e2016917118).
- `riemannian_trust_regions`: a second-order solver on the rotation group (pymanopt).
- `plain_numpy`: the exact answer in as few lines of numpy as it takes.

The iterative solvers divide the cost by its starting value. That changes no minimiser and
makes their tolerances dimensionless; every reported cost is the unscaled one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PeerResult:
    """What one solver returned.

    Attributes
    ----------
    name : str
        The solver and its main setting.
    matrix : ndarray of shape (n, n)
        The orthogonal matrix it stopped at.
    cost : float
        ``tr(L P C P^T)`` there.
    iterations : int
        Outer iterations; 0 for a direct method.
    seconds : float
        Wall time of the solve, without the evaluation of `cost`.
    stopped : str
        Why it stopped.
    """

    name: str
    matrix: Array
    cost: float
    iterations: int
    seconds: float
    stopped: str = ""


# ------------------------------------------------------------------------- the problem


def fourier_modes(n: int) -> Array:
    """Orthonormal real Fourier basis in its columns, by rising frequency.

    The order is constant, cos 1, sin 1, cos 2, sin 2, ..., and for even `n` the alternating
    vector last.
    """
    grid = np.arange(n)
    phase = 2 * np.pi / n * (np.outer(grid, np.arange(1, n // 2 + 1)) % n)
    modes = np.empty((n, n))
    modes[:, 0] = 1 / np.sqrt(n)
    modes[:, 1::2] = np.cos(phase) * np.sqrt(2 / n)
    modes[:, 2::2] = np.sin(phase[:, : (n - 1) // 2]) * np.sqrt(2 / n)
    if n % 2 == 0:
        modes[:, -1] /= np.sqrt(2)
    return modes


def fourier_eigenvalues(n: int, order: int = 2) -> Array:
    """Eigenvalues ``k^(2 order)`` that belong to the columns of `fourier_modes`."""
    return (((np.arange(n) + 1) // 2) ** (2 * order)).astype(np.float64)


def fourier_roughness(n: int, order: int = 2) -> Array:
    """Dense roughness operator of the spectral second derivative on a periodic grid."""
    modes = fourier_modes(n)
    return np.asarray((modes * fourier_eigenvalues(n, order)) @ modes.T)


def smoothness_cost(L: Array, C: Array, P: Array) -> float:
    """Return ``tr(L P C P^T)``."""
    return float(np.vdot(L @ P, P @ C))


def optimal_cost(L: Array, C: Array) -> float:
    """Least cost over all orthogonal matrices, from the two spectra alone."""
    return spectral_bound(np.asarray(np.linalg.eigvalsh(L), dtype=np.float64), C)


def spectral_bound(eigenvalues: Array, C: Array) -> float:
    """Least cost when the spectrum of the operator is known in closed form."""
    falling = np.linalg.eigvalsh(C)[::-1].clip(min=0)
    return float(np.sort(eigenvalues) @ falling)


# ------------------------------------------------------- the published iterative optimiser


def skew_matrix(generator: Array, n: int) -> Array:
    """Skew-symmetric matrix whose strict upper triangle, row by row, is `generator`."""
    A = np.zeros((n, n))
    A[np.triu_indices(n, 1)] = generator
    return np.asarray(A - A.T)


def cayley_objective(
    L: Array, C: Array, P0: Array, scale: float = 1.0
) -> Callable[[Array], tuple[float, Array]]:
    """Cost and exact gradient as functions of the generator of a Cayley chart.

    Parameters
    ----------
    L, C : ndarray of shape (n, n)
        Roughness operator and second moment, both symmetric.
    P0 : ndarray of shape (n, n)
        Orthogonal matrix at the centre of the chart.
    scale : float
        Positive factor on the cost.

    Returns
    -------
    callable
        Maps the n(n-1)/2 generators to the scaled cost and its gradient.

    Notes
    -----
    With ``M = (I + A)^-1`` the chart is ``P = (2M - I) P0``, since ``I - A = 2I - (I + A)``.
    From ``dM = -M dA M`` follows ``dP = -2 M dA M P0``, so with ``G = df/dP = 2 L P C`` the
    derivative with respect to an unconstrained ``A`` is ``H = -2 M^T G P0^T M^T``. A generator
    moves two entries of ``A`` in opposite directions: its derivative is ``H_ij - H_ji``.
    """
    n = len(C)
    upper = np.triu_indices(n, 1)
    identity = np.eye(n)
    centred = np.array_equal(P0, identity)

    def evaluate(generator: Array) -> tuple[float, Array]:
        A = np.zeros((n, n))
        A[upper] = generator
        M = np.linalg.inv(identity + A - A.T)
        Q = 2 * M - identity
        P = Q if centred else Q @ P0
        G = L @ P @ C
        value = scale * float(np.vdot(P, G))
        H = M.T @ (G if centred else G @ P0.T) @ M.T
        return value, (-4 * scale) * (H - H.T)[upper]

    return evaluate


def cayley_point(generator: Array, P0: Array) -> Array:
    """Orthogonal matrix ``(I + A)^-1 (I - A) P0`` of a generator."""
    n = len(P0)
    A = skew_matrix(generator, n)
    return np.asarray(np.linalg.solve(np.eye(n) + A, (np.eye(n) - A) @ P0))


def iterative_cayley(
    L: Array, C: Array, P0: Array, *, max_iterations: int = 400, memory: int = 10
) -> PeerResult:
    """Minimise over the Cayley chart with limited-memory BFGS, from the zero generator.

    Parameters
    ----------
    L, C : ndarray of shape (n, n)
        Roughness operator and second moment.
    P0 : ndarray of shape (n, n)
        Starting point; the chart is centred on it.
    max_iterations : int
        Iteration cap. The tolerances are zero, so the cap is what normally ends the run.
    memory : int
        Number of correction pairs kept.
    """
    from scipy.optimize import minimize

    start = time.perf_counter()
    n = len(C)
    objective = cayley_objective(L, C, P0, 1 / smoothness_cost(L, C, P0))
    options = {
        "maxiter": max_iterations,
        "maxfun": 100 * max_iterations,
        "maxcor": memory,
        "maxls": 50,
        "ftol": 0.0,
        "gtol": 0.0,
    }
    zero = np.zeros(n * (n - 1) // 2)
    found = minimize(objective, zero, jac=True, method="L-BFGS-B", options=options)
    P = cayley_point(found.x, P0)
    seconds = time.perf_counter() - start
    name = f"Cayley + L-BFGS, {max_iterations}"
    return PeerResult(
        name, P, smoothness_cost(L, C, P), int(found.nit), seconds, str(found.message)
    )


# ----------------------------------------------------------- a Riemannian second-order solver


class _TargetReached(Exception):  # noqa: N818 (a way to stop, not an error)
    """Raised from within the cost function, at the point that is good enough."""

    def __init__(self, point: Array) -> None:
        super().__init__("target cost reached")
        self.point = point


class _CountedCost:
    """Scaled cost that counts its evaluations and ends the run at a target."""

    def __init__(self, L: Array, C: Array, scale: float, target: float) -> None:
        self.L, self.C, self.scale, self.target = L, C, scale, target
        self.evaluations = 0

    def __call__(self, P: Array) -> float:
        self.evaluations += 1
        value = smoothness_cost(self.L, self.C, P)
        if value <= self.target:
            raise _TargetReached(P)
        return self.scale * value


def _trust_region_problem(manifold: Any, cost: _CountedCost) -> Any:
    """Problem on the rotation group with analytic Euclidean gradient and Hessian."""
    import pymanopt

    as_numpy = pymanopt.function.numpy(manifold)
    L, C, twice = cost.L, cost.C, 2 * cost.scale

    def value(P: Array) -> float:
        return cost(P)

    def gradient(P: Array) -> Array:
        return np.asarray(twice * (L @ P @ C))

    def hessian(P: Array, direction: Array) -> Array:
        return np.asarray(twice * (L @ direction @ C))

    return pymanopt.Problem(
        manifold,
        as_numpy(value),
        euclidean_gradient=as_numpy(gradient),
        euclidean_hessian=as_numpy(hessian),
    )


def riemannian_trust_regions(
    L: Array,
    C: Array,
    P0: Array,
    *,
    target: float = -np.inf,
    max_iterations: int = 1000,
    max_seconds: float = 120.0,
    min_gradient_norm: float = 1e-9,
) -> PeerResult:
    """Minimise on the rotation group with the trust-region method of pymanopt.

    Parameters
    ----------
    L, C : ndarray of shape (n, n)
        Roughness operator and second moment.
    P0 : ndarray of shape (n, n)
        Starting point. The iterates keep its determinant, which costs nothing here: flipping
        the sign of one mode turns an optimum into one of the other determinant.
    target : float
        Stop at the first point whose cost is no larger. Given from the exact optimum it spares
        the solver the iterations that its gradient tolerance would take to notice arrival.
    max_iterations, max_seconds : int, float
        Limits; the time limit is looked at after each outer iteration.
    min_gradient_norm : float
        Stop when the Riemannian gradient of the scaled cost is this small.

    Notes
    -----
    The second-order (polar) retraction is used: on an 80-neuron problem it came closer in the
    same time than the default one, and than either on the Stiefel manifold; scaling the cost
    and other radii or inner tolerances did not help. No preconditioner is given, because the
    natural one, the two eigenbases, is the answer itself.
    """
    from pymanopt.manifolds import SpecialOrthogonalGroup
    from pymanopt.optimizers import TrustRegions

    start = time.perf_counter()
    manifold = SpecialOrthogonalGroup(len(C), retraction="polar")
    cost = _CountedCost(L, C, 1 / smoothness_cost(L, C, P0), target)
    solver = TrustRegions(
        max_iterations=max_iterations,
        max_time=max_seconds,
        min_gradient_norm=min_gradient_norm,
        verbosity=0,
    )
    try:
        found = solver.run(_trust_region_problem(manifold, cost), initial_point=P0)
        P, stopped = np.asarray(found.point), str(found.stopping_criterion)
    except _TargetReached as reached:
        P, stopped = reached.point, str(reached)
    seconds = time.perf_counter() - start
    iterations = cost.evaluations - 1  # one evaluation at the start, one per outer iteration
    name = "pymanopt TrustRegions"
    return PeerResult(name, P, smoothness_cost(L, C, P), iterations, seconds, stopped)


# ---------------------------------------------------------------------------- plain numpy


def plain_numpy(
    L: Array, C: Array, P0: Array, *, basis: Callable[[int], Array] | None = None
) -> PeerResult:
    """Pair the eigenvectors of the operator, rising, with those of the moment, falling.

    Parameters
    ----------
    L, C : ndarray of shape (n, n)
        Roughness operator and second moment.
    P0 : ndarray of shape (n, n)
        Not used; a direct method has no starting point.
    basis : callable or None
        Makes the eigenvectors of `L`, rising, where they are known in closed form, as
        `fourier_modes` does; it is called inside the timed part. None solves for them.
    """
    start = time.perf_counter()
    T = np.linalg.eigh(L)[1] if basis is None else basis(len(C))
    P = T @ np.linalg.eigh(C)[1][:, ::-1].T
    seconds = time.perf_counter() - start
    return PeerResult("plain numpy", P, smoothness_cost(L, C, P), 0, seconds, "direct")


def plain_numpy_from_samples(
    L: Array, C: Array, samples: NDArray[np.floating[Any]], *, dtype: type[np.floating[Any]]
) -> PeerResult:
    """Form the second moment of Fourier-ordered neurons, then do as `plain_numpy`.

    Parameters
    ----------
    L, C : ndarray of shape (n, n)
        Operator and reference moment, used only to state the cost.
    samples : ndarray of shape (N, n)
        One sample per row.
    dtype : type
        Floating type in which the product is formed.
    """
    start = time.perf_counter()
    X = samples.astype(dtype, copy=False)
    moment = (X.T @ X).astype(np.float64) / len(X)
    P = fourier_modes(len(moment)) @ np.linalg.eigh(moment)[1][:, ::-1].T
    seconds = time.perf_counter() - start
    name = f"plain numpy, {np.dtype(dtype).name} moment"
    return PeerResult(name, P, smoothness_cost(L, C, P), 0, seconds, "direct")
