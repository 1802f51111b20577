"""Smoothness descrambling of one real layer: this library beside its competitors, in one run.

The problem is layer 1 of the embedded DEER network (256 -> 80 -> 256): 80 neurons, their
preactivations over the embedded traces, and the spectral second derivative as roughness.
Every solver is judged on one second moment by one cost function.

Run ``python bench/bench_descramble.py``; ``--quick`` for a short look, ``--json FILE`` to keep
the numbers with the machine data, ``--markdown`` for the table of the README.
"""

# ruff: noqa: E402, I001 (the environment is set before numpy is imported)
from __future__ import annotations

import os

# A build recipe or a test may pin OpenBLAS to one core type or cache size, so that results
# repeat from machine to machine. Here that would slow the peers and this library alike: let
# OpenBLAS detect its core. It reads these when it is loaded, hence before numpy is imported.
for _variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_variable, None)

import argparse
import contextlib
import importlib.metadata
import importlib.resources
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
from numpy.typing import NDArray
from safetensors.numpy import load

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


def embedded(name: str) -> dict[str, NDArray[Any]]:
    """Read one embedded safetensors file."""
    file = importlib.resources.files("descramble_fast") / "data" / name
    return dict(load(file.read_bytes()))


def layer_samples() -> NDArray[np.float32]:
    """Preactivations of layer 1, one trace per row."""
    weight = embedded("deernet_network.safetensors")["W1"]
    traces = embedded("deernet_traces.safetensors")["traces"].astype(np.float32)
    return np.ascontiguousarray(traces @ weight.T, dtype=np.float32)


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


def require(condition: bool, message: str) -> None:
    """Stop the benchmark when its premises fail; unlike assert, also under ``python -O``."""
    if not condition:
        raise SystemExit(f"bench_descramble: {message}")


# -------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """One solver as it is timed.

    Attributes
    ----------
    name : str
        Its row in the table.
    given : str
        What it starts from: "samples", or "moment" where that is handed to it for free.
    run : callable
        Solves and returns an object with `matrix`.
    trial : callable or None
        A short run to choose the number of BLAS threads; None where the library decides.
    exact : bool
        Whether the optimum is expected up to rounding.
    slow : bool
        Whether it is run once, outside the interleaved rounds.
    """

    name: str
    given: str
    run: Callable[[], Any]
    trial: Callable[[], Any] | None = None
    exact: bool = False
    slow: bool = False


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
    if version("pymanopt"):
        run, trial = riemannian(100_000, max_seconds), riemannian(20, max_seconds)
        methods.append(Method("pymanopt TrustRegions", "moment", run, trial, slow=True))
    return methods


# --------------------------------------------------------------------------------- timing


@dataclass
class Measurement:
    """Everything recorded about one method."""

    method: Method
    threads: int | None = None
    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Median wall time."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the wall time."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    @property
    def iterations(self) -> int:
        """Outer iterations, 0 for direct methods."""
        return int(getattr(self.result, "iterations", 0))


class Threads:
    """Sets the BLAS threads of a peer while it runs, where threadpoolctl is installed."""

    def __init__(self) -> None:
        self._controller: Any = None
        with contextlib.suppress(ImportError):
            from threadpoolctl import ThreadpoolController

            self._controller = ThreadpoolController()

    @property
    def libraries(self) -> list[dict[str, Any]]:
        """Name, version, detected core and threads of each BLAS that is loaded."""
        keep = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
        if self._controller is None:
            return []
        return [
            {"file": Path(info["filepath"]).name} | {key: info.get(key) for key in keep}
            for info in self._controller.info()
            if info["user_api"] == "blas"
        ]

    @contextlib.contextmanager
    def limited(self, count: int | None) -> Iterator[None]:
        """Run the block with `count` BLAS threads; None leaves the default."""
        if count is None or self._controller is None:
            yield
            return
        with self._controller.limit(limits=count, user_api="blas"):
            yield

    def choose(self, method: Method, repeats: int) -> int | None:
        """Return 1 where a single BLAS thread is faster for this method, else None."""
        trial = method.trial
        if trial is None or self._controller is None:
            return None
        times: dict[int | None, list[float]] = {None: [], 1: []}
        for _ in range(repeats):
            for count, seconds in times.items():
                with self.limited(count):
                    trial()
                    seconds.append(timed(trial)[0])
        return 1 if statistics.median(times[1]) < statistics.median(times[None]) else None


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Run once. A peer states its own time, which leaves out its evaluation of the cost."""
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    return getattr(result, "seconds", elapsed), result


def measure(methods: Sequence[Method], rounds: int) -> list[Measurement]:
    """Time fast methods in interleaved rounds, each after a warm-up call, slow ones once."""
    threads = Threads()
    measured = [Measurement(m, threads.choose(m, 3 if m.slow else 15)) for m in methods]
    for turn in range(rounds):
        for entry in measured:
            if entry.method.slow and turn:
                continue
            with threads.limited(entry.threads):
                if not entry.method.slow:
                    entry.method.run()
                seconds, entry.result = timed(entry.method.run)
            entry.seconds.append(seconds)
    return measured


def ratio(entry: Measurement, ours: Measurement) -> float:
    """Time relative to ours: the median over paired rounds, or of medians for a slow peer."""
    if entry.method.slow:
        return entry.median / ours.median
    pairs = zip(entry.seconds, ours.seconds, strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


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


def version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Processor name as the system states it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Describe the hardware and the software that the numbers belong to."""
    packages = ("numpy", "scipy", "pymanopt", "descramble_fast")
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable(0)) if usable else os.cpu_count(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "blas": Threads().libraries,
    }


def print_machine(facts: dict[str, Any]) -> None:
    """Print the machine data in a few lines."""
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    print(f"{facts['cpu']}, {facts['usable_cores']} of {facts['cores']} cores usable")
    print(f"{facts['system']}, Python {facts['python']}, {packages}")
    for blas in facts["blas"]:
        print(
            f"  {blas['file']}: {blas['internal_api']} {blas['version']}, "
            f"core {blas['architecture']}, {blas['num_threads']} threads"
        )
    if not facts["blas"]:
        print("  (install threadpoolctl to list the BLAS libraries and set their threads)")


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


def duration(seconds: float) -> str:
    """Write a time with a unit and three figures."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def times(value: float) -> str:
    """Write a ratio so that it is read without an exponent."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.2f}x"


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


def text_table(rows: Sequence[Row]) -> str:
    """Aligned plain-text table."""
    lines = [list(HEADINGS)] + [cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]

    def write(line: Sequence[str]) -> str:
        left = [text.ljust(width) for text, width in zip(line[:2], widths, strict=False)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        return "  ".join(left + right)

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([write(lines[0]), rule, *(write(line) for line in lines[1:])])


def markdown_table(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """Table for the README, with the machine named below it."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    packages = ", ".join(f"{name} {found}" for name, found in facts["packages"].items())
    where = f"{facts['cpu']}, {facts['usable_cores']} cores, Python {facts['python']}, {packages}."
    return "\n".join([*lines, "", where])


def report(problem: Problem, rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Machine-readable results."""
    return {
        "benchmark": "descramble",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts,
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, no long runs")
    parser.add_argument("--markdown", action="store_true", help="print the README table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
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
    facts = machine()
    print_machine(facts)
    problem = make_problem(layer_samples())
    count, n = problem.samples.shape
    print(f"\n{n} neurons, {count} samples; cost {problem.initial:.6g} -> {problem.optimum:.6g}\n")
    caps = (400,) if options.quick else (400, 4000)
    methods = our_methods(problem) + direct_peers(problem)
    methods += iterative_peers(problem, caps, options.max_seconds)
    check_before_timing(problem, methods)
    measured = measure(methods, options.rounds)
    for entry in measured:
        check(problem, entry.method, entry.result)
    rows = make_rows(problem, measured)
    print(markdown_table(rows, facts) if options.markdown else text_table(rows))
    print("\n" + "\n".join(NOTES))
    if options.json is not None:
        text = json.dumps(report(problem, rows, facts), indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
