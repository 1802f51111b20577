"""Smoothness descrambling of one real layer: this library beside its competitors, in one run.

The problem is layer 1 of the embedded DEER network (256 -> 80 -> 256): 80 neurons, their
preactivations over the embedded traces, and the spectral second derivative as roughness.
Every solver is judged on one second moment by one cost function.

Run ``python bench/bench_descramble.py``; ``--quick`` for a short look, ``--json FILE`` to keep
the numbers with the machine data, ``--markdown`` for the table of the README.
"""

# ruff: noqa: I001 (harness sets the environment before numpy is imported)
from __future__ import annotations

import harness
from harness import Measurement, Method, duration, layer_samples, ratio, require, times

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import peers
from numpy.typing import NDArray

import descramble_fast as df

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


# -------------------------------------------------------------------------------- methods


def our_methods(problem: Problem) -> list[Method]:
    """Both entries into this library."""
    return [
        Method(OURS_SAMPLES, "samples", lambda: df.descramble(problem.samples), exact=True),
        Method(OURS_MOMENT, "moment", lambda: df.descramble(problem.covariance), exact=True),
    ]


def direct_peers(problem: Problem) -> list[Method]:
    """Plain numpy, from the moment and from the samples in both precisions."""
    L, C, start = problem.L, problem.C, problem.identity

    def from_moment() -> peers.PeerResult:
        return peers.plain_numpy(L, C, start, basis=peers.fourier_modes)

    def from_samples(dtype: type[np.floating[Any]]) -> Callable[[], peers.PeerResult]:
        return lambda: peers.plain_numpy_from_samples(L, C, problem.samples, dtype=dtype)

    double, single = from_samples(np.float64), from_samples(np.float32)
    return [
        Method("plain numpy, float64 moment", "samples", double, double),
        Method("plain numpy, float32 moment", "samples", single, single),
        Method("plain numpy", "moment", from_moment, from_moment, exact=True),
    ]


def iterative_peers(problem: Problem, caps: Sequence[int], max_seconds: float) -> list[Method]:
    """List the published optimiser at each cap, and the Riemannian solver if installed."""
    L, C, start = problem.L, problem.C, problem.identity
    target = problem.optimum * (1 + TARGET)

    def cayley(cap: int) -> Callable[[], peers.PeerResult]:
        return lambda: peers.iterative_cayley(L, C, start, max_iterations=cap)

    def riemannian(cap: int, limit: float) -> Callable[[], peers.PeerResult]:
        return lambda: peers.riemannian_trust_regions(
            L, C, start, target=target, max_iterations=cap, max_seconds=limit
        )

    methods = [
        Method(f"Cayley + L-BFGS, {cap} iterations", "moment", cayley(cap), cayley(50), slow=True)
        for cap in caps
    ]
    if harness.version("pymanopt"):
        run, trial = riemannian(100_000, max_seconds), riemannian(20, max_seconds)
        methods.append(Method("pymanopt TrustRegions", "moment", run, trial, slow=True))
    return methods


# --------------------------------------------------------------------------------- checks


def excess(problem: Problem, result: Any) -> float:
    """Relative distance of a result's cost from the optimum, by the common cost function."""
    P = np.asarray(result.matrix, dtype=np.float64)
    return peers.smoothness_cost(problem.L, problem.C, P) / problem.optimum - 1


def check(problem: Problem, method: Method, result: Any) -> None:
    """Require orthogonality, agreement of the exact methods, and that nobody beats the bound."""
    P = np.asarray(result.matrix, dtype=np.float64)
    orthogonality = float(np.abs(P @ P.T - np.eye(len(P))).max())
    require(orthogonality <= 1e-9, f"{method.name}: P P^T - I reaches {orthogonality:.1e}")
    over = excess(problem, result)
    require(over >= -AGREEMENT, f"{method.name}: cost is below the optimum by {-over:.1e}")
    if method.exact:
        require(over <= AGREEMENT, f"{method.name}: cost is above the optimum by {over:.1e}")


def check_ours(problem: Problem, result: Any) -> None:
    """Require that the costs this library states are those of the common cost function."""
    stated = {"cost": problem.optimum, "bound": problem.optimum, "initial_cost": problem.initial}
    for name, expected in stated.items():
        off = abs(float(getattr(result, name)) / expected - 1)
        require(off <= AGREEMENT, f"descramble_fast: {name} is off by {off:.1e}")


def check_before_timing(problem: Problem, methods: Sequence[Method]) -> None:
    """Run the direct methods once, as the warm-up, and compare their answers."""
    for method in methods:
        if not method.slow:
            result = method.run()
            check(problem, method, result)
            if method.name in (OURS_SAMPLES, OURS_MOMENT):
                check_ours(problem, result)


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
            iterations=entry.iterations,
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


def cells(row: Row) -> list[str]:
    """Text of one line of the report, column by column."""
    small = abs(row.excess) <= AGREEMENT
    return [
        row.method,
        row.given,
        str(row.iterations) if row.iterations else "-",
        "< 1e-9" if small else f"{row.excess:.1e}",
        duration(row.seconds),
        times(row.ratio_to_ours_from_samples),
        times(row.ratio_to_ours_from_covariance),
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


def report(problem: Problem, rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Machine-readable results."""
    return harness.header("descramble", facts) | {
        "problem": {
            "layer": "DEER network, layer 1",
            "neurons": problem.samples.shape[1],
            "samples": problem.samples.shape[0],
            "operator": "fourier, order 2",
            "optimum": problem.optimum,
            "initial_cost": problem.initial,
        },
        "notes": list(NOTES),
        "rows": [asdict(row) for row in rows],
    }


# ----------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 51, quick 11)")
    parser.add_argument(
        "--max-seconds", type=float, help="limit for pymanopt (default 120, quick 10)"
    )
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 11 if options.quick else 51
    if options.max_seconds is None:
        options.max_seconds = 10.0 if options.quick else 120.0
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its report."""
    options = parse(arguments)
    facts = harness.machine(("numpy", "scipy", "pymanopt", "descramble_fast"))
    harness.print_machine(facts)
    problem = make_problem(layer_samples())
    count, n = problem.samples.shape
    print(f"\n{n} neurons, {count} samples; cost {problem.initial:.6g} -> {problem.optimum:.6g}\n")
    caps = (400,) if options.quick else (400, 4000)
    methods = our_methods(problem) + direct_peers(problem)
    methods += iterative_peers(problem, caps, options.max_seconds)
    check_before_timing(problem, methods)
    measured = harness.measure(methods, options.rounds)
    for entry in measured:
        check(problem, entry.method, entry.result)
    rows = make_rows(problem, measured)
    lines = [cells(row) for row in rows]
    if options.markdown:
        print(harness.markdown_table(HEADINGS, lines), harness.machine_line(facts), sep="\n\n")
    else:
        print(harness.text_table(HEADINGS, lines))
    print("\n" + "\n".join(NOTES))
    harness.write_json(options.json, report(problem, rows, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
