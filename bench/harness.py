"""What the benchmark programs share: how results are checked, timed and compared."""

from __future__ import annotations

import importlib.resources
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from .machine import CALM, Limits, Threads
from .report import Report, Row, Table, cell_tables, cell_text


def require(condition: bool, message: str) -> None:
    """Stop the benchmark when its premises fail; unlike assert, also under ``python -O``."""
    if not condition:
        raise SystemExit(f"bench: {message}")


# ---------------------------------------------------------------------- the embedded layer


def embedded(name: str) -> dict[str, NDArray[Any]]:
    """Read one embedded safetensors file."""
    file = importlib.resources.files("descramble_fast") / "data" / name
    return dict(load(file.read_bytes()))


def layer_samples() -> NDArray[np.float32]:
    """Preactivations of layer 1, one trace per row."""
    weight = embedded("deernet_network.safetensors")["W1"]
    traces = embedded("deernet_traces.safetensors")["traces"].astype(np.float32)
    return np.ascontiguousarray(traces @ weight.T, dtype=np.float32)


# --------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Method:
    """One solver as it is timed.

    Attributes
    ----------
    name : str
        Its row in the table.
    run : callable
        Solves and returns the solver's result.
    check : callable or None
        Stops the benchmark at a wrong result; returns the error of an acceptable one.
    trial : callable or None
        A short run to choose the number of BLAS threads; None leaves the default.
    given : str
        What it starts from, where methods differ in that.
    slow : bool
        Whether it is run once, outside the interleaved rounds, whatever it takes.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], float] | None = None
    trial: Callable[[], Any] | None = None
    given: str = ""
    slow: bool = False


@dataclass
class Measurement:
    """Everything recorded about one method."""

    method: Method
    threads: int | None = None
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    result: Any = None

    @property
    def median(self) -> float:
        """Median wall time."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the wall time."""
        return quartiles(self.seconds)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Run once. A peer may state its own time, which leaves out what only serves the report."""
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    return getattr(result, "seconds", elapsed), result


def capped(run: Callable[[], Any], seconds: float) -> tuple[float, Any] | None:
    """Time one run in a forked process, or None when it takes longer than `seconds`."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(timed(run)))
    process.start()
    # The margin covers starting the process and sending the answer back.
    result = receive.recv() if receive.poll(seconds + 1) else None
    if result is None:
        process.kill()
    process.join()
    return result if result is None or result[0] <= seconds else None


def fewer_threads(method: Method, threads: Threads, repeats: int) -> int | None:
    """Return 1 where a single BLAS thread is faster for this method, else None."""
    trial = method.trial
    if trial is None or not threads.settable:
        return None
    seconds: dict[int | None, list[float]] = {None: [], 1: []}
    for _ in range(repeats):
        for count, found in seconds.items():
            with threads.limited(count):
                trial()
                found.append(timed(trial)[0])
    return 1 if statistics.median(seconds[1]) < statistics.median(seconds[None]) else None


FEWEST, MOST = 3, 31  # rounds that a budget buys
BRIEF = 0.02  # seconds; what takes less is run once more before each timed run, to warm the caches


def measure(
    methods: Sequence[Method],
    *,
    budget: float = 0.0,
    rounds: int | None = None,
    after_round: Callable[[], object] = lambda: None,
    keep: bool = False,
) -> list[Measurement]:
    """Check every method on a first run, then time them in interleaved rounds.

    The rounds fill `budget` seconds unless their number is given. Of a method whose first run takes
    more than a third of the budget, the second counts, beyond the whole budget the first. `keep`
    keeps the last results.
    """
    threads = Threads()
    measured = []
    for method in methods:
        entry = Measurement(method, fewer_threads(method, threads, 3 if method.slow else 5))
        with threads.limited(entry.threads):
            entry.first, result = timed(method.run)
            entry.error = method.check(result) if method.check else None
            entry.result = result if keep else None
            del result
            if method.slow or (rounds is None and entry.first > budget):
                entry.seconds.append(entry.first)
            elif rounds is None and entry.first > budget / FEWEST:
                entry.seconds.append(timed(method.run)[0])
        measured.append(entry)
    fast = [entry for entry in measured if not entry.seconds]
    if rounds is None and fast:
        each = sum(CALM + entry.first * (2 if entry.first < BRIEF else 1) for entry in fast)
        rounds = min(MOST, max(FEWEST, int(budget / each)))
    for turn in range(rounds if rounds and fast else 1):
        # Every other round runs backwards, so that a drift of the machine favours nobody.
        for entry in fast if turn % 2 == 0 else reversed(fast):
            time.sleep(CALM)
            with threads.limited(entry.threads):
                if entry.first < BRIEF:
                    entry.method.run()
                seconds, result = timed(entry.method.run)
            entry.seconds.append(seconds)
            entry.result = result if keep else None
            del result
        after_round()
    return measured


def ratios(entry: Measurement, ours: Measurement) -> list[float]:
    """List times relative to ours: of each paired round, or of the medians where one ran once."""
    if len(entry.seconds) != len(ours.seconds):
        return [entry.median / ours.median]
    return [theirs / mine for theirs, mine in zip(entry.seconds, ours.seconds, strict=True)]


def ratio(entry: Measurement, ours: Measurement) -> float:
    """Time relative to ours, the median over pairs."""
    return statistics.median(ratios(entry, ours))


# ---------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    """One problem for all implementations; a result is named op/implementation/dtype/shape.

    Attributes
    ----------
    op, dtype, shape : str
    size : mapping
        The numbers behind the shape, for growth curves.
    methods : callable
        Makes the inputs and returns the implementations, this library first.
    work : float or None
        Operations (or bytes) that the problem stands for, whoever solves it.
    limits : sequence of str
        The limit that `work` is held against: the first of these that the machine has.
    weight : float
        Its time budget, relative to other cells.
    memory : bool
        Whether the peak memory is measured too, in a process of its own for each implementation.
    """

    op: str
    dtype: str
    shape: str
    size: Mapping[str, int]
    methods: Callable[[], list[Method]]
    work: float | None = None
    limits: Sequence[str] = ()
    weight: float = 1.0
    memory: bool = False

    @property
    def name(self) -> str:
        """Name of the problem."""
        return f"{self.op}/{self.dtype}/{self.shape}"

    def row_name(self, implementation: str) -> str:
        """Name of one implementation's result."""
        return f"{self.op}/{implementation}/{self.dtype}/{self.shape}"


@dataclass(frozen=True)
class Run:
    """How much is to be done, and the limits seen so far."""

    quick: bool
    budget: float
    limits: Limits

    def cells(self, cells: Iterable[Cell]) -> list[Row]:
        """Measure every cell; the rows of all."""
        return [row for cell in cells for row in self.cell(cell)]

    def cell(self, cell: Cell) -> list[Row]:
        """Check, time and compare all implementations on one problem."""
        self.limits.measure()
        measured = measure(
            cell.methods(), budget=self.budget * cell.weight, after_round=self.limits.keep_up
        )
        limit = self.limits.best(cell.limits)
        rows = [make_row(cell, entry, measured[0], limit) for entry in measured]
        if cell.memory:
            for row in rows:
                row["peak_bytes"] = peak_memory(row["name"])
        shown = ", ".join(f"{row['impl']} {cell_text(row)}" for row in rows)
        print(f"{cell.name}: {shown}", file=sys.stderr, flush=True)
        return rows


def make_row(
    cell: Cell, entry: Measurement, ours: Measurement, limit: tuple[str, float] | None
) -> Row:
    """Turn a measurement into a line of the report."""
    name, per_second = limit or (None, None)
    pairs = ratios(entry, ours)
    return {
        "name": cell.row_name(entry.method.name),
        "op": cell.op,
        "impl": entry.method.name,
        "dtype": cell.dtype,
        "shape": cell.shape,
        "size": dict(cell.size),
        "seconds": entry.median,
        "seconds_quartiles": entry.quartiles,
        "runs": len(entry.seconds),
        "ratio": statistics.median(pairs),
        "ratio_quartiles": quartiles(pairs),
        "work": cell.work,
        "limit": name,
        "limit_per_second": per_second,
        "share": cell.work / entry.median / per_second if cell.work and per_second else None,
        "error": entry.error,
        "blas_threads": entry.threads,
        "peak_bytes": None,
    }


def peak_memory(name: str) -> int | None:
    """Peak memory of one result above its inputs, in a fresh process; None where unknown."""
    package = __name__.rpartition(".")[0]
    command = [sys.executable, "-m", f"{package}.memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{name}: measuring its memory failed: {done.stderr[-500:]}")
    return int(done.stdout) if done.stdout.strip() else None


@dataclass(frozen=True)
class Family:
    """One group of benchmarks: `run` makes its part of the report, `tables` shows it.

    `cells` lists the problems of a family that consists of nothing else.
    """

    run: Callable[[Run], Report]
    tables: Callable[[Report], dict[str, Table]]
    cells: Callable[[bool], list[Cell]] = lambda quick: []


def cell_family(
    cells: Callable[[bool], list[Cell]],
    notes: Sequence[str] = (),
    more: Callable[[list[Row]], dict[str, Table]] = lambda rows: {},
) -> Family:
    """Family of cells alone, with the tables that all such families have and `more`."""

    def run(settings: Run) -> Report:
        return {"rows": settings.cells(cells(settings.quick)), "notes": list(notes)}

    def tables(part: Report) -> dict[str, Table]:
        return cell_tables(part["rows"]) | more(part["rows"])

    return Family(run, tables, cells)
