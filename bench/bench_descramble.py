"""Smoothness descrambling of one real layer: this library beside its competitors.

The problem is layer 1 of the embedded DEER network (256 -> 80 -> 256): 80 neurons, their
preactivations over the embedded traces, and the spectral second derivative as roughness.
Every solver is judged on one second moment by one cost function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

from . import harness, peers
from .harness import Family, Measurement, Method, Run, layer_samples, ratio, require
from .machine import version
from .report import Report, Table, duration, times

Array = NDArray[np.float64]

AGREEMENT = 1e-9  # relative difference allowed between the costs of exact methods
MOMENT_ERROR = 1e-6  # allowed in the float32 second moment, per largest diagonal element
TARGET = 1e-6  # relative excess at which the Riemannian solver may stop
OURS_SAMPLES = "descramble_fast, from samples"
OURS_MOMENT = "descramble_fast, from covariance"


# -------------------------------------------------------------------------------- problem


@dataclass(frozen=True)
class Problem:
    """One layer's descrambling problem, as samples and as matrices.

    Attributes
    ----------
    samples : ndarray of shape (N, n)
        Preactivations, float32.
    covariance : object
        The library's accumulated moments of them.
    C, L : ndarray of shape (n, n)
        Second moment and dense roughness operator.
    optimum, initial : float
        Least cost over all orthogonal matrices, and the cost of the layer as it is.
    """

    samples: NDArray[np.float32]
    covariance: Any
    C: Array
    L: Array
    optimum: float
    initial: float

    @property
    def identity(self) -> Array:
        """Starting point of the iterative solvers."""
        return np.eye(len(self.C))


def make_problem(samples: NDArray[np.float32]) -> Problem:
    """Form the matrices that every solver shares, and check the moment against float64."""
    n = samples.shape[1]
    covariance = df.Covariance.from_samples(samples)
    C = np.asarray(covariance.second_moment(), dtype=np.float64)
    wide = samples.astype(np.float64)
    oracle = wide.T @ wide / len(wide)
    error = float(np.abs(C - oracle).max() / oracle.diagonal().max())
    require(error <= MOMENT_ERROR, f"second moment is off by {error:.1e} of its largest diagonal")
    L = peers.fourier_roughness(n)
    optimum = peers.spectral_bound(peers.fourier_eigenvalues(n), C)
    return Problem(samples, covariance, C, L, optimum, peers.smoothness_cost(L, C, np.eye(n)))


# --------------------------------------------------------------------------------- checks


def excess(problem: Problem, result: Any) -> float:
    """Relative distance of a result's cost from the optimum, by the common cost function."""
    P = np.asarray(result.matrix, dtype=np.float64)
    return peers.smoothness_cost(problem.L, problem.C, P) / problem.optimum - 1


def check(problem: Problem, result: Any, exact: bool = False) -> float:
    """Require orthogonality, agreement of the exact methods, and that nobody beats the bound."""
    P = np.asarray(result.matrix, dtype=np.float64)
    orthogonality = float(np.abs(P @ P.T - np.eye(len(P))).max())
    require(orthogonality <= 1e-9, f"descramble: P P^T - I reaches {orthogonality:.1e}")
    over = excess(problem, result)
    require(over >= -AGREEMENT, f"descramble: cost is below the optimum by {-over:.1e}")
    require(not exact or over <= AGREEMENT, f"descramble: cost is above the optimum by {over:.1e}")
    return over


def check_ours(problem: Problem, result: Any) -> float:
    """Require that the costs this library states are those of the common cost function too."""
    stated = {"cost": problem.optimum, "bound": problem.optimum, "initial_cost": problem.initial}
    for name, expected in stated.items():
        off = abs(float(getattr(result, name)) / expected - 1)
        require(off <= AGREEMENT, f"descramble_fast: {name} is off by {off:.1e}")
    return check(problem, result, exact=True)


# -------------------------------------------------------------------------------- methods


def our_methods(problem: Problem) -> list[Method]:
    """Both entries into this library."""
    verify = partial(check_ours, problem)
    return [
        Method(OURS_SAMPLES, lambda: df.descramble(problem.samples), verify, given="samples"),
        Method(OURS_MOMENT, lambda: df.descramble(problem.covariance), verify, given="moment"),
    ]


def direct_peers(problem: Problem) -> list[Method]:
    """Plain numpy, from the moment and from the samples in both precisions."""
    L, C, start = problem.L, problem.C, problem.identity
    verify = partial(check, problem)

    def from_moment() -> peers.PeerResult:
        return peers.plain_numpy(L, C, start, basis=peers.fourier_modes)

    def from_samples(dtype: type[np.floating[Any]]) -> Callable[[], peers.PeerResult]:
        return lambda: peers.plain_numpy_from_samples(L, C, problem.samples, dtype=dtype)

    double, single = from_samples(np.float64), from_samples(np.float32)
    exact = partial(check, problem, exact=True)
    return [
        Method("plain numpy, float64 moment", double, verify, double, given="samples"),
        Method("plain numpy, float32 moment", single, verify, single, given="samples"),
        Method("plain numpy", from_moment, exact, from_moment, given="moment"),
    ]


def iterative_peers(problem: Problem, caps: Sequence[int], max_seconds: float) -> list[Method]:
    """List the published optimiser at each cap, and the Riemannian solver if installed."""
    L, C, start = problem.L, problem.C, problem.identity
    target = problem.optimum * (1 + TARGET)
    verify = partial(check, problem)

    def cayley(cap: int) -> Callable[[], peers.PeerResult]:
        return lambda: peers.iterative_cayley(L, C, start, max_iterations=cap)

    def riemannian(cap: int, limit: float) -> Callable[[], peers.PeerResult]:
        return lambda: peers.riemannian_trust_regions(
            L, C, start, target=target, max_iterations=cap, max_seconds=limit
        )

    runs = {f"Cayley + L-BFGS, {cap} iterations": (cayley(cap), cayley(50)) for cap in caps}
    if version("pymanopt"):
        runs["pymanopt TrustRegions"] = (
            riemannian(100_000, max_seconds),
            riemannian(20, max_seconds),
        )
    return [
        Method(name, run, verify, trial, given="moment", slow=True)
        for name, (run, trial) in runs.items()
    ]


# --------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    method: str
    given: str
    iterations: int
    excess: float
    seconds: float
    seconds_quartiles: tuple[float, float]
    runs: int
    ratio_to_ours_from_samples: float
    ratio_to_ours_from_covariance: float
    blas_threads: str
    stopped: str


def make_rows(problem: Problem, measured: Sequence[Measurement]) -> list[Row]:
    """Turn measurements into report lines."""
    by_name = {entry.method.name: entry for entry in measured}
    return [
        Row(
            method=entry.method.name,
            given=entry.method.given,
            iterations=int(getattr(entry.result, "iterations", 0)),
            excess=excess(problem, entry.result),
            seconds=entry.median,
            seconds_quartiles=entry.quartiles,
            runs=len(entry.seconds),
            ratio_to_ours_from_samples=ratio(entry, by_name[OURS_SAMPLES]),
            ratio_to_ours_from_covariance=ratio(entry, by_name[OURS_MOMENT]),
            blas_threads=threads_label(entry),
            stopped=str(getattr(entry.result, "stopped", "direct")),
        )
        for entry in measured
    ]


def threads_label(entry: Measurement) -> str:
    """How many BLAS threads a method ran with, in words."""
    if entry.method.trial is None:
        return "its own"
    return "default" if entry.threads is None else str(entry.threads)


NOTES = (
    "Excess is cost / optimum - 1; the optimum follows from the two spectra alone.",
    "The peers marked 'moment' get the second moment for free; forming it is not timed.",
    "The plain numpy lines include making the Fourier basis, as this library's do.",
    "This library's time includes its checks, the cost and the bound; a peer's leaves them out.",
    "Times are medians of interleaved runs, each after a warm-up; slow peers ran once.",
    "Ratios are medians over pairs from the same round; above 1 this library is faster.",
    "The Riemannian solver is told the optimum and stops within 1e-6 of it, or at its time limit.",
    "Each peer ran with one BLAS thread or the default number, whichever was faster for it.",
)


def cells(row: dict[str, Any]) -> list[str]:
    """Text of one line of the report, column by column."""
    small = abs(row["excess"]) <= AGREEMENT
    return [
        row["method"],
        row["given"],
        str(row["iterations"]) if row["iterations"] else "-",
        "< 1e-9" if small else f"{row['excess']:.1e}",
        duration(row["seconds"]),
        times(row["ratio_to_ours_from_samples"]),
        times(row["ratio_to_ours_from_covariance"]),
    ]


HEADINGS = (
    "method",
    "given",
    "iterations",
    "excess cost",
    "time",
    "vs ours, samples",
    "vs ours, covariance",
)


def tables(part: Report) -> dict[str, Table]:
    """Tables by their names."""
    return {"descramble-layer": Table(HEADINGS, [cells(row) for row in part["rows"]])}


def run(settings: Run) -> Report:
    """Solve everything; this family's part of the report."""
    quick = settings.quick
    problem = make_problem(layer_samples())
    methods = our_methods(problem) + direct_peers(problem)
    methods += iterative_peers(problem, (400,) if quick else (400, 4000), 10 if quick else 120)
    measured = harness.measure(methods, rounds=11 if quick else 51, keep=True)
    return {
        "problem": {
            "layer": "DEER network, layer 1",
            "neurons": problem.samples.shape[1],
            "samples": problem.samples.shape[0],
            "operator": "fourier, order 2",
            "optimum": problem.optimum,
            "initial_cost": problem.initial,
        },
        "notes": list(NOTES),
        "rows": [asdict(row) for row in make_rows(problem, measured)],
    }


FAMILIES = {"descramble": Family(run, tables)}
