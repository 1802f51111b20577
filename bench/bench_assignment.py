"""Exact linear assignment: this library beside scipy and every solver of lapx.

Costs are uniform, similarities of noisy copies (neurons of two similar networks), or
similarities of independent Gaussian features; float64 and float32; n = 256, 1024, 4096; and a
batch of small problems. This library's answer is checked by its duals, and every peer's cost,
summed in float64 from its assignment, against it, before anything is timed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

import descramble_fast as df

from . import harness
from .harness import Family, Measurement, Method, Run, require
from .machine import optional
from .report import OURS, Report, Table, duration, times, verdict

Costs = NDArray[np.floating[Any]]
Columns = NDArray[np.int64]
Solver = Callable[[Costs], Columns]

AGREEMENT = 1e-9  # relative difference allowed between the costs of exact methods
SINGLE = 1e-4  # the same for solvers that work in float32
CELL_TARGET, MEAN_TARGET = 1.3, 1.5
LOOP_TARGET, BATCH_TARGET = 4.0, 1.5
SIZES = (256, 1024, 4096)
LARGE = 2048  # from here on peers run in a process of their own, which can be ended
LIMIT = 60.0  # seconds; a peer expected to take longer is skipped
NEAR = 3.0  # peers within this factor of the fastest are timed in interleaved rounds
THREADS = 2  # of the batched solvers


# ---------------------------------------------------------------------------------- costs


def unit(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of length 1."""
    return np.asarray(features / np.linalg.norm(features, axis=0))


def uniform(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Independent entries on [0, 1)."""
    return rng.random((n, n))


def noisy_copy(
    samples: int, noise: float
) -> Callable[[int, np.random.Generator], NDArray[np.float64]]:
    """Negative cosine similarity of Gaussian columns with permuted, noisy copies of them."""

    def make(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        a = rng.standard_normal((samples, n))
        b = a[:, rng.permutation(n)] + noise * rng.standard_normal((samples, n))
        return np.asarray(-(unit(a).T @ unit(b)))

    return make


def independent(features: int) -> Callable[[int, np.random.Generator], NDArray[np.float64]]:
    """Negative inner products of independent Gaussian feature vectors, per feature."""

    def make(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        a, b = rng.standard_normal((2, features, n))
        return np.asarray(-(a.T @ b) / features)

    return make


COSTS: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "uniform": uniform,
    "noisy copies": noisy_copy(512, 1.0),
    "independent, d = 64": independent(64),
    "noisier copies": noisy_copy(64, 3.0),
    "independent, d = 16": independent(16),
}
TARGETED = ("uniform", "noisy copies", "independent, d = 64")
FAMILY_NOTES = (
    "uniform: independent entries on [0, 1).",
    "noisy copies: negative cosine similarity of 512 Gaussian samples of n neurons with a "
    "permuted copy plus unit noise; noisier copies: 64 samples, noise of deviation 3.",
    "independent: negative inner products of two independent sets of n Gaussian d-vectors.",
)


def make_costs(family: str, n: int, dtype: str) -> Costs:
    """Cost matrix of one cell, the same in every run; float32 is the float64 one, rounded."""
    costs = COSTS[family](n, np.random.default_rng(n))
    return np.ascontiguousarray(costs, dtype=dtype)


def total(costs: Costs, columns: Columns) -> float:
    """Cost of an assignment, summed in float64."""
    return math.fsum(costs[np.arange(len(columns)), columns].astype(np.float64))


# -------------------------------------------------------------------------------- solvers


def ours(costs: Costs) -> Columns:
    """Solve with this library."""
    return np.asarray(df.linear_assignment(costs).columns)


def scipy_solver(costs: Costs) -> Columns:
    """Solve with scipy, which works in float64."""
    return np.asarray(linear_sum_assignment(costs)[1])


def lapx_solvers(dtype: str) -> dict[str, Solver]:
    """Every exact solver of lapx, working in the given precision where it lets one choose."""
    lap = optional("lap")
    if lap is None:
        return {}

    def rows_to_columns(found: Any) -> Columns:
        return np.asarray(found[1], dtype=np.int64)

    def pairs(found: Any) -> Columns:
        columns = np.empty(len(found[1]), dtype=np.int64)
        columns[found[1]] = found[2]
        return columns

    single = dtype == "float32"
    return {
        "lapjv": lambda costs: rows_to_columns(lap.lapjv(costs)),
        "lapjvx": lambda costs: pairs(lap.lapjvx(costs)),
        "lapjvc": lambda costs: pairs(lap.lapjvc(costs)),
        "lapjvs": lambda costs: pairs(lap.lapjvs(costs, prefer_float32=single)),
        "lapjvh": lambda costs: pairs(lap.lapjvh(costs, precision=dtype)),
        "lapjvr": lambda costs: pairs(lap.lapjvr(costs, precision=dtype)),
    }


PEERS = ("scipy", "lapjv", "lapjvx", "lapjvc", "lapjvs", "lapjvh", "lapjvr")


def peer_solvers(dtype: str) -> dict[str, Solver]:
    """All peers; those that are usually fastest first, so that they bound the others' time."""
    found = {"scipy": scipy_solver} | lapx_solvers(dtype)
    return {name: found[name] for name in reversed(PEERS) if name in found}


# ---------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Row:
    """One solver on one cell; `seconds` is None where it was skipped or ended."""

    method: str
    seconds: float | None
    quartiles: tuple[float, float] | None
    runs: int
    ratio: float | None
    excess: float | None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """All solvers on one cost matrix."""

    family: str
    dtype: str
    n: int
    targeted: bool
    cost: float
    rows: list[Row] = field(default_factory=list)
    fastest: str = ""
    ratio: float = math.nan


def certified_cost(costs: Costs) -> float:
    """Solve with this library, and let the duals show that nothing is cheaper."""
    found = df.linear_assignment(costs)
    scale = float(np.abs(costs).max())
    cost = total(costs, np.asarray(found.columns))
    require(abs(found.gap) <= AGREEMENT * abs(cost), f"duals leave a gap of {found.gap:.1e}")
    require(found.violation <= AGREEMENT * scale, f"duals fail by {found.violation:.1e}")
    require(abs(found.cost - cost) <= AGREEMENT * abs(cost), "the stated cost is not the cost")
    return cost


def checked_excess(name: str, cost: float, optimum: float, dtype: str) -> float:
    """Relative excess of a peer's cost; stops the run if exact methods disagree."""
    excess = (cost - optimum) / abs(optimum)
    require(excess >= -AGREEMENT, f"{name} is cheaper than the optimum by {-excess:.1e}")
    limit = AGREEMENT if dtype == "float64" else SINGLE
    require(excess <= limit, f"{name} is dearer than the optimum by {excess:.1e}")
    return excess


class Growth:
    """Expected time of a peer on the next size, from its times on smaller ones."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str, str], list[tuple[int, float]]] = {}

    def add(self, key: tuple[str, str, str], n: int, seconds: float) -> None:
        """Record a time."""
        self._times.setdefault(key, []).append((n, seconds))

    def expected(self, key: tuple[str, str, str], n: int) -> float:
        """Power law through the last two sizes, of an exponent from 2 to 3.5; 0 if unknown."""
        known = self._times.get(key, [])
        if not known:
            return 0.0
        exponent = 3.0
        if len(known) > 1:
            (small, quick), (large, slow) = known[-2:]
            exponent = min(3.5, max(2.0, math.log(slow / quick) / math.log(large / small)))
        return known[-1][1] * math.pow(n / known[-1][0], exponent)


def first_runs(
    costs: Costs, optimum: float, cell: tuple[str, str, int], growth: Growth
) -> tuple[dict[str, float], dict[str, float], list[Row]]:
    """Run every peer once and check it: times, excesses, and rows of those that never ended."""
    family, dtype, n = cell
    seconds: dict[str, float] = {}
    excess: dict[str, float] = {}
    lost: list[Row] = []
    for name, solve in peer_solvers(dtype).items():
        key = (name, family, dtype)
        expected = growth.expected(key, n)
        if expected > LIMIT:
            lost.append(Row(name, None, None, 0, None, None, f"skipped (~{expected:.0f} s)"))
            continue
        # A peer far slower than one that has finished cannot be the fastest: no need to wait.
        patience = min(LIMIT, max(5.0, 4 * min(seconds.values()))) if seconds else LIMIT
        run = bind(solve, costs)
        runs = (
            [harness.timed(run) for _ in range(3)] if n < LARGE else [harness.capped(run, patience)]
        )
        best = min((timed for timed in runs if timed), key=lambda timed: timed[0], default=None)
        if best is None:
            lost.append(Row(name, None, None, 0, None, None, f"> {patience:.0f} s"))
            continue
        seconds[name], columns = best
        growth.add(key, n, seconds[name])
        excess[name] = checked_excess(name, total(costs, columns), optimum, dtype)
    return seconds, excess, lost


def bind(solve: Solver, costs: Costs) -> Callable[[], Columns]:
    """Solver without arguments."""
    return lambda: solve(costs)


def run_cell(family: str, dtype: str, n: int, rounds: int, growth: Growth) -> Cell:
    """Check, then time, every solver on one cost matrix."""
    costs = make_costs(family, n, dtype)
    optimum = certified_cost(costs)
    seconds, excess, lost = first_runs(costs, optimum, (family, dtype, n), growth)
    best = min(seconds.values(), default=0.0)
    near = {name for name, value in seconds.items() if value <= NEAR * best}
    solvers = {OURS: ours} | peer_solvers(dtype)
    methods = [Method(OURS, bind(ours, costs))]
    methods += [Method(name, bind(solvers[name], costs)) for name in near]
    measured = harness.measure(methods, rounds=rounds)
    mine = measured[0]
    for name in seconds.keys() - near:
        method = Method(name, bind(solvers[name], costs), slow=True)
        measured.append(Measurement(method, seconds=[seconds[name]]))
    rows = [make_row(entry, mine, excess.get(entry.method.name, 0.0)) for entry in measured] + lost
    order = (OURS, *PEERS)
    rows.sort(key=lambda row: order.index(row.method))
    cell = Cell(family, dtype, n, family in TARGETED, optimum, rows)
    return with_fastest(cell)


def make_row(entry: Measurement, mine: Measurement, excess: float) -> Row:
    """Turn a measurement into a report line."""
    return Row(
        method=entry.method.name,
        seconds=entry.median,
        quartiles=entry.quartiles,
        runs=len(entry.seconds),
        ratio=harness.ratio(entry, mine),
        excess=excess,
    )


def with_fastest(cell: Cell) -> Cell:
    """Name the fastest peer of a cell, and the ratio to it."""
    peers = [row for row in cell.rows if row.method != OURS and row.seconds is not None]
    if not peers:
        return cell
    fastest = min(peers, key=lambda row: row.seconds or math.inf)
    known = asdict(cell) | {"rows": cell.rows}
    return Cell(**known | {"fastest": fastest.method, "ratio": fastest.ratio or math.nan})


# ---------------------------------------------------------------------------------- batch


def batch_solvers(dtype: str) -> dict[str, Callable[[Costs], list[Columns]]]:
    """Batched solvers, on the same number of threads, and a loop over scipy's."""

    def loop(costs: Costs) -> list[Columns]:
        return [np.asarray(linear_sum_assignment(c)[1]) for c in costs]

    def ours_batched(costs: Costs) -> list[Columns]:
        return list(np.asarray(df.linear_assignment(costs).columns))

    solvers: dict[str, Callable[[Costs], list[Columns]]] = {OURS: ours_batched, "scipy loop": loop}
    lap = optional("lap")
    if lap is None:
        return solvers

    def lapx(name: str, **options: Any) -> Callable[[Costs], list[Columns]]:
        solve = getattr(lap, name)
        return lambda costs: list(solve(costs, n_threads=THREADS, **options)[2])

    return solvers | {
        "lapjvx_batch": lapx("lapjvx_batch"),
        "lapjvs_batch": lapx("lapjvs_batch", prefer_float32=dtype == "float32"),
        "lapjvh_batch": lapx("lapjvh_batch", precision=dtype),
        "lapjvr_batch": lapx("lapjvr_batch", precision=dtype),
    }


def run_batch(dtype: str, count: int, n: int, rounds: int) -> dict[str, Any]:
    """Check, then time, all batched solvers on uniform costs."""
    costs = np.random.default_rng(count).random((count, n, n)).astype(dtype)
    found = df.linear_assignment(costs)
    require(float(np.abs(found.gap).max()) <= AGREEMENT, "a batched problem's duals leave a gap")
    require(float(found.violation.max()) <= AGREEMENT, "a batched problem's duals fail")
    optimum = math.fsum(found.cost)
    solvers = batch_solvers(dtype)
    excess = {}
    for name, solve in solvers.items():
        cost = math.fsum(total(c, x) for c, x in zip(costs, solve(costs), strict=True))
        excess[name] = checked_excess(name, cost, optimum, dtype)

    def run(solve: Callable[[Costs], list[Columns]]) -> Callable[[], list[Columns]]:
        return lambda: solve(costs)

    methods = [Method(name, run(solve)) for name, solve in solvers.items()]
    measured = harness.measure(methods, rounds=rounds)
    rows = [make_row(entry, measured[0], excess[entry.method.name]) for entry in measured]
    return {"dtype": dtype, "count": count, "n": n, "rows": [asdict(row) for row in rows]}


# --------------------------------------------------------------------------------- report


NOTES = (
    *FAMILY_NOTES,
    "Times are medians of interleaved runs; of peers slower than three times the fastest, the best "
    "of three runs is shown, at n = 4096 the only one. "
    "At n = 4096 a peer was ended once it took 5 s and four times the fastest peer, and skipped "
    "if expected to take more than a minute.",
    "The ratio is that of the fastest peer to this library, the median over pairs from the same "
    "round; above 1 this library is faster. Its time includes the check of the duals.",
    "Of float32 costs, lapjvs, lapjvh, lapjvr and lapjvc work in float32, scipy, lapjv and lapjvx "
    "in float64; lapjvs takes float32 only where asked to.",
    f"The batched solvers run on {THREADS} threads.",
)


def geometric_mean(cells: Sequence[dict[str, Any]], dtype: str) -> float | None:
    """Geometric mean of the ratios of the cells that have targets."""
    ratios = [c["ratio"] for c in cells if c["targeted"] and c["dtype"] == dtype and c["fastest"]]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured."""

    def entry(name: str, value: float, least: float) -> dict[str, Any]:
        return {"target": name, "value": value, "least": least, "met": value >= least}

    result = [
        entry(f"{c['family']}, n = {c['n']}, {c['dtype']}", c["ratio"], CELL_TARGET)
        for c in report["cells"]
        if c["targeted"] and c["fastest"]
    ]
    for dtype in ("float64", "float32"):
        mean = geometric_mean(report["cells"], dtype)
        if mean is not None:
            result.append(entry(f"geometric mean, {dtype}", mean, MEAN_TARGET))
    for batch in report["batches"]:
        for row in batch["rows"][1:]:
            least = LOOP_TARGET if row["method"] == "scipy loop" else BATCH_TARGET
            name = f"batch of {batch['count']}, {batch['dtype']}: {row['method']}"
            result.append(entry(name, row["ratio"], least))
    return result


def row_text(row: dict[str, Any]) -> str:
    """Time of a row, marked where its answer is not the optimum."""
    if row["seconds"] is None:
        return str(row["note"])
    mark = " *" if row["excess"] > AGREEMENT else ""
    return duration(row["seconds"]) + mark


def cell_table(report: Report) -> Table:
    """Single problems."""
    headings = [
        "costs",
        "precision",
        "n",
        OURS,
        *PEERS,
        "fastest / ours",
        f"target ({CELL_TARGET}x)",
    ]
    lines = []
    for cell in report["cells"]:
        texts = {row["method"]: row_text(row) for row in cell["rows"]}
        met = cell["ratio"] >= CELL_TARGET if cell["targeted"] and cell["fastest"] else None
        columns = [texts.get(name, "-") for name in (OURS, *PEERS)]
        words = [cell["family"], cell["dtype"], str(cell["n"])]
        ratio = times(cell["ratio"]) if cell["fastest"] else "-"
        lines.append([*words, *columns, ratio, verdict(met)])
    for dtype in ("float64", "float32"):
        mean = geometric_mean(report["cells"], dtype)
        if mean is not None:
            blank = [""] * (len(PEERS) + 2)
            label = verdict(mean >= MEAN_TARGET) + f" ({MEAN_TARGET}x)"
            lines.append([f"geometric mean of the first {len(TARGETED)} families", dtype])
            lines[-1] += [*blank, times(mean), label]
    return Table(headings, lines)


def batch_table(report: Report) -> Table:
    """Batches."""
    headings = ["batch", "precision", "method", "time", "vs ours", "target"]
    lines = []
    for batch in report["batches"]:
        name = f"{batch['count']:,} x {batch['n']} x {batch['n']}"
        for row in batch["rows"]:
            least = LOOP_TARGET if row["method"] == "scipy loop" else BATCH_TARGET
            label = f"{verdict(row['ratio'] >= least)} ({least}x)"
            if row["method"] == OURS:
                label = "-"
            shown = [row["method"], row_text(row), times(row["ratio"]), label]
            lines.append([name, batch["dtype"], *shown])
    return Table(headings, lines, left=3)


def inexact(found: Report) -> list[str]:
    """Explain the mark of inexact answers, where there are any."""
    rows = [row for part in ("cells", "batches") for c in found[part] for row in c["rows"]]
    worst = max((row["excess"] or 0.0 for row in rows), default=0.0)
    return [f"* a cost above the optimum, at most by {worst:.1e} of it."] * (worst > AGREEMENT)


def tables(report: Report) -> dict[str, Table]:
    """Tables by their names."""
    return {"assignment": cell_table(report), "assignment-batch": batch_table(report)}


# ----------------------------------------------------------------------------------- main


def plan(quick: bool) -> list[tuple[str, str, int, int]]:
    """Cells with their numbers of rounds; families without targets in float64 only."""
    sizes = SIZES[:2] if quick else SIZES
    rounds = {256: 15, 1024: 7, 4096: 3}
    return [
        (family, dtype, n, 3 if quick else rounds[n])
        for dtype in ("float64", "float32")
        for family in COSTS
        for n in sizes
        if dtype == "float64" or family in TARGETED
    ]


def run(settings: Run) -> Report:
    """Solve everything; this family's part of the report."""
    growth = Growth()
    cells = []
    for family, dtype, n, rounds in plan(settings.quick):
        cells.append(run_cell(family, dtype, n, rounds, growth))
        fastest = f"{times(cells[-1].ratio)} {cells[-1].fastest}" if cells[-1].fastest else ""
        print(f"{family}, {dtype}, n = {n}: {fastest}", file=sys.stderr, flush=True)
    df.set_num_threads(THREADS)
    count = 100 if settings.quick else 1000
    batches = [run_batch(d, count, 64, 5) for d in ("float64", "float32")]
    df.set_num_threads(0)
    found: Report = {"cells": [asdict(cell) for cell in cells], "batches": batches}
    return found | {"notes": [*NOTES, *inexact(found)], "targets": targets(found)}


FAMILIES = {"assignment": Family(run, tables)}
