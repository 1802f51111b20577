"""Neuron orders and quadratic assignment: this library beside its competitors.

Neuron orders of ReLU features of the digits images and of the embedded DEER network's first
layer: first differences beside LKH (elkai) and fast_tsp, second-order Fourier smoothness beside
scipy's quadratic assignment; controls with random inputs and with planted orders; and, in a copy
of the repository, published instances of the quadratic assignment problem (QAPLIB). Every cost is
recomputed from the order by one function, and this library's stated costs are checked against it.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

from . import harness, peers
from . import permutation_peers as competitors
from .harness import Family, Run, require
from .machine import optional
from .permutation_peers import Array, Order
from .report import OURS, Report, Table, duration, verdict

AGREEMENT = 1e-9  # relative difference allowed between a stated cost and the recomputed one
LKH = "LKH (elkai), runs=10"
LKH_TIMED = "LKH (elkai), time limit"
FAST_TSP = "fast_tsp"
THREADS = os.cpu_count() or 1
FAST_TSP_SECONDS = 2.0  # its default
LARGE_SECONDS = 10.0  # for every solver at n = 2048
QAPLIB = Path(__file__).resolve().parents[1] / "tests" / "python" / "data" / "qaplib.npz"

ORDER_SLACK, LARGE_SLACK = 1.01, 1.03
FOURIER_SMALL, FOURIER_LARGE, FOURIER_TIME = 0.95, 0.80, 0.1
HUGE_SECONDS = 60.0
TWO_OPT_LIMIT = 150.0  # seconds for all starts of scipy's 2opt
QAPLIB_GAP, QAPLIB_SECONDS = 0.01, 5.0


# --------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class Layer:
    """Neurons to be ordered, by their second moment alone."""

    name: str
    samples: NDArray[np.floating[Any]]
    covariance: Any
    C: Array
    D: Array

    @property
    def n(self) -> int:
        """Number of neurons."""
        return len(self.C)


def make_layer(name: str, samples: NDArray[np.floating[Any]]) -> Layer:
    """Form what the solvers share."""
    covariance = df.Covariance.from_samples(samples)
    C = np.asarray(covariance.second_moment(), dtype=np.float64)
    return Layer(name, samples, covariance, C, competitors.squared_distances(C))


def digits_images() -> Array:
    """Load the digits data of scikit-learn, 1797 images of 8 x 8 pixels, on [0, 1]."""
    datasets = optional("sklearn.datasets")
    require(datasets is not None, 'scikit-learn is not installed; pip install ".[bench]"')
    return np.asarray(datasets.load_digits().data / 16, dtype=np.float64)


def relu_features(inputs: Array, n: int) -> Array:
    """Random layer of n neurons: Gaussian weights over 8, from a fixed seed, then ReLU."""
    weights = np.random.default_rng(0).standard_normal((inputs.shape[1], n)) / 8
    return np.asarray(np.maximum(inputs @ weights, 0))


def digits_layer(n: int) -> Layer:
    """ReLU features of the digits."""
    return make_layer("digits, ReLU features", relu_features(digits_images(), n))


def random_layer(n: int) -> Layer:
    """Control: the same features of Gaussian inputs."""
    inputs = np.random.default_rng(1).standard_normal(digits_images().shape)
    return make_layer("Gaussian inputs, ReLU features", relu_features(inputs, n))


def embedded_layer() -> Layer:
    """Layer 1 of the embedded network."""
    return make_layer("DEER network, layer 1", harness.layer_samples())


def planted_layer(n: int, periodic: bool) -> tuple[Layer, Order]:
    """Control: neurons that respond to overlapping ranges of one input, shuffled."""
    rng = np.random.default_rng(2)
    distance = np.arange(4 * n)[:, None] / (4 * n) - np.arange(n) / n
    if periodic:
        distance -= np.rint(distance)
    shuffle = rng.permutation(n).astype(np.int64)
    samples = np.exp(-((distance * 20) ** 2))[:, shuffle]
    return make_layer("smooth layer, shuffled", samples), shuffle


# --------------------------------------------------------------------------------- orders


@dataclass(frozen=True)
class Row:
    """One method on one problem; without a cost where it did not finish."""

    method: str
    cost: float | None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Problem:
    """All methods on one order problem.

    Attributes
    ----------
    layer, n, operator : str, int, str
        What is ordered, and the criterion.
    initial, bound : float
        Cost of the given order, and the least over all orthogonal matrices.
    tree_bound : float or None
        For first differences, the 1-tree bound.
    rows : list of Row
    """

    layer: str
    n: int
    operator: str
    initial: float
    bound: float
    tree_bound: float | None
    rows: list[Row] = field(default_factory=list)


def run_ours(
    layer: Layer, operator: Any, cost: Callable[[Order], float], seconds: float | None = None
) -> tuple[Any, Row]:
    """Order with this library, and check what it states."""
    elapsed, found = harness.timed(
        lambda: df.descramble_permutation(layer.covariance, operator=operator, time_limit=seconds)
    )
    order = checked_order(OURS, found.permutation, layer.n)
    actual, initial = cost(order), cost(np.arange(layer.n))
    slack = AGREEMENT * max(actual, 1e-3 * initial)
    require(abs(found.cost - actual) <= slack, f"the stated cost is off: {found.cost} {actual}")
    require(found.bound <= actual + slack, "the cost is below the orthogonal bound")
    if found.tree_bound is not None:
        require(found.tree_bound <= actual + slack, "the cost is below the 1-tree bound")
    return found, Row(OURS, actual, elapsed)


def checked_order(name: str, order: Any, n: int) -> Order:
    """Order as an array, which must be a permutation."""
    result = np.asarray(order, dtype=np.int64)
    require(np.array_equal(np.sort(result), np.arange(n)), f"{name}: no permutation")
    return result


def run_peer(
    name: str,
    solve: Callable[[], Order] | None,
    cost: Callable[[Order], float],
    limit: float | None = None,
) -> Row:
    """Time one competitor once; no cost where it is not installed or takes too long."""
    if solve is None:
        return Row(name, None, None, "not installed")
    timed = harness.timed(solve) if limit is None else harness.capped(solve, limit)
    if timed is None:
        return Row(name, None, None, f"> {limit:.0f} s")
    seconds, order = timed
    return Row(name, cost(checked_order(name, order, len(order))), seconds)


def first_difference(layer: Layer, periodic: bool, seconds: float | None, lkh: bool) -> Problem:
    """Order by first differences: a tour or a path; `seconds` for every solver if given."""
    boundary = "periodic" if periodic else "path"
    operator = df.operators.difference(layer.n, 1, boundary)

    def cost(order: Order) -> float:
        return competitors.length(layer.D, order, periodic)

    found, mine = run_ours(layer, operator, cost, seconds)
    rows = [mine]
    if lkh and seconds is None:
        rows.append(run_peer(LKH, competitors.elkai_solver(layer.D, periodic), cost))
    elif lkh and seconds is not None:
        solve = competitors.elkai_timed_solver(layer.D, periodic, seconds)
        rows.append(run_peer(LKH_TIMED, solve, cost))
    limit = seconds or FAST_TSP_SECONDS
    solver = competitors.fast_tsp_solver(layer.D, periodic, limit, THREADS)
    rows.append(run_peer(FAST_TSP, solver, cost))
    rows.append(
        run_peer("spectral order", lambda: competitors.spectral_order(layer.D, periodic), cost)
    )
    name = f"first difference, {boundary}"
    initial = cost(np.arange(layer.n))
    return Problem(layer.name, layer.n, name, initial, found.bound, found.tree_bound, rows)


def fourier(layer: Layer, faq_starts: int, two_opt_starts: int) -> Problem:
    """Order by the spectral second derivative; no competitors where no starts are asked for."""
    L = peers.fourier_roughness(layer.n)
    C = layer.C

    def cost(order: Order) -> float:
        return competitors.quadratic_cost(L, C, order)

    found, mine = run_ours(layer, df.operators.fourier(layer.n, 2), cost)
    rows = [mine]
    starts: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    if faq_starts:
        spectral = competitors.spectral_starts(layer.D, faq_starts)
        starts["scipy FAQ, barycentre"] = competitors.barycentre_starts()
        starts[f"scipy FAQ, {faq_starts} random starts"] = competitors.random_starts(faq_starts)
        starts[f"scipy FAQ, {faq_starts} spectral starts"] = spectral
    if two_opt_starts:
        name = f"scipy 2opt, {two_opt_starts} random start{'s' * (two_opt_starts > 1)}"
        starts[name] = competitors.two_opt_starts(two_opt_starts)
    for name, given in starts.items():
        limit = TWO_OPT_LIMIT if "2opt" in name else None
        rows.append(run_peer(name, partial(competitors.best_of, L, C, given), cost, limit))
    order = competitors.spectral_order(layer.D, periodic=True)
    rows.append(Row("spectral order", cost(order)))
    initial = cost(np.arange(layer.n))
    return Problem(layer.name, layer.n, "Fourier, order 2", initial, found.bound, None, rows)


# ------------------------------------------------------------------------------- controls


def compare_inputs(n: int) -> list[dict[str, Any]]:
    """Order neurons of the digits and of Gaussian inputs: how much is there to find."""
    result = []
    for layer in (digits_layer(n), random_layer(n)):
        for name, operator in (
            ("first difference, periodic", df.operators.difference(n, 1, "periodic")),
            ("Fourier, order 2", df.operators.fourier(n, 2)),
        ):
            found = df.descramble_permutation(layer.covariance, operator=operator)
            result.append(
                {
                    "layer": layer.name,
                    "n": n,
                    "operator": name,
                    "cost": found.cost / found.initial_cost,
                    "bound": found.bound / found.initial_cost,
                }
            )
    return result


def put_back(n: int, name: str, operator: Any, periodic: bool) -> dict[str, Any]:
    """Shuffle a smooth layer, and count the neighbours that are neighbours again."""
    layer, shuffle = planted_layer(n, periodic)
    seconds, found = harness.timed(
        lambda: df.descramble_permutation(layer.covariance, operator=operator)
    )
    place = shuffle[np.asarray(found.permutation)]
    steps = np.diff(place, append=place[0]) if periodic else np.diff(place)
    adjacent = np.abs(steps) == 1
    if periodic:
        adjacent |= np.abs(steps) == n - 1
    return {
        "n": n,
        "operator": name,
        "neighbours": float(adjacent.mean()),
        "restored": bool(adjacent.all()),
        "seconds": seconds,
    }


def planted(n: int) -> list[dict[str, Any]]:
    """All planted orders."""
    ops = df.operators
    return [
        put_back(n, "first difference, periodic", ops.difference(n, 1, "periodic"), True),
        put_back(n, "first difference, path", ops.difference(n, 1, "path"), False),
        put_back(n, "second difference, periodic", ops.difference(n, 2, "periodic"), True),
        put_back(n, "Fourier, order 2", ops.fourier(n, 2), True),
    ]


# --------------------------------------------------------------------------------- QAPLIB


def qaplib(names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Solve the published instances with default settings, beside scipy's two methods."""
    if not QAPLIB.exists():  # an installed package
        return []
    data = np.load(QAPLIB)
    names = names or [key for key in data.files if not key.endswith("_best")]
    rows = []
    for name in names:
        A, B = data[name].astype(np.float64)
        best = float(data[f"{name}_best"])

        def gap(order: Any, A: Array = A, B: Array = B, best: float = best) -> float:
            p = checked_order("quadratic assignment", order, len(A))
            return competitors.quadratic_cost(A, B, p) / best - 1

        seconds, found = harness.timed(partial(df.quadratic_assignment, A, B))
        row: dict[str, Any] = {"instance": name, "n": len(A), "best_known": int(best)}
        row |= {"gap": gap(found.columns), "seconds": seconds}
        for method, starts in (
            ("faq", competitors.barycentre_starts()),
            ("2opt", competitors.two_opt_starts(1)),
        ):
            seconds, order = harness.timed(partial(competitors.best_of, A, B, starts))
            row |= {f"{method}_gap": gap(order), f"{method}_seconds": seconds}
        require(row["gap"] >= -AGREEMENT, f"{name}: better than the best known value")
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------- targets


def by_method(problem: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of a problem that have a cost."""
    return {row["method"]: row for row in problem["rows"] if row["cost"] is not None}


def best_cost(rows: Sequence[dict[str, Any]]) -> float:
    """Least cost of the rows."""
    return min(float(row["cost"]) for row in rows)


def target(name: str, value: float, limit: float) -> dict[str, Any]:
    """One upper limit with what was measured."""
    return {"target": name, "value": value, "most": limit, "met": value <= limit}


def order_targets(problem: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets of a first-difference problem."""
    rows = by_method(problem)
    name = f"{problem['operator']}, {problem['layer']}, n = {problem['n']}"
    mine = rows[OURS]
    if LKH in rows:
        lkh = rows[LKH]
        return [
            target(f"{name}: cost / LKH's", mine["cost"] / lkh["cost"], ORDER_SLACK),
            target(f"{name}: time / LKH's", mine["seconds"] / lkh["seconds"], 1.0),
        ]
    if LKH_TIMED in rows:
        best = best_cost(list(rows.values()))
        return [target(f"{name}: cost / best of all", mine["cost"] / best, LARGE_SLACK)]
    return []


def fourier_targets(problem: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets of a Fourier problem."""
    rows = by_method(problem)
    name = f"{problem['operator']}, {problem['layer']}, n = {problem['n']}"
    mine = rows[OURS]
    scipy_rows = [row for method, row in rows.items() if method.startswith("scipy")]
    if not scipy_rows:
        return [target(f"{name}: seconds", mine["seconds"], HUGE_SECONDS)]
    if problem["n"] > 128:
        value = mine["cost"] / best_cost(scipy_rows)
        return [target(f"{name}: cost / scipy FAQ's", value, FOURIER_LARGE)]
    best = min(scipy_rows, key=lambda row: float(row["cost"]))
    which = best["method"]
    return [
        target(f"{name}: cost / best of scipy's", mine["cost"] / best["cost"], FOURIER_SMALL),
        target(f"{name}: time / {which}", mine["seconds"] / best["seconds"], FOURIER_TIME),
    ]


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured."""
    result = []
    for problem in report["orders"]:
        kind = fourier_targets if problem["operator"].startswith("Fourier") else order_targets
        result += kind(problem)
    instances = report["qaplib"]
    if instances:
        mean = statistics.fmean(row["gap"] for row in instances)
        slowest = max(float(row["seconds"]) for row in instances)
        result.append(target(f"QAPLIB, {len(instances)} instances: mean gap", mean, QAPLIB_GAP))
        result.append(target("QAPLIB: slowest instance, seconds", slowest, QAPLIB_SECONDS))
    for row in report["planted"]:
        name = f"planted order, {row['operator']}, n = {row['n']}: share not put back"
        result.append(target(name, 1 - row["neighbours"], 0.0))
    return result


# --------------------------------------------------------------------------------- report


NOTES = (
    "Digits: scikit-learn's 1797 images of 8 x 8 pixels over 16, times Gaussian weights over 8, "
    "then ReLU. DEER network: preactivations of the embedded network's first layer.",
    "Every method is given the second moment or the distances; all costs are recomputed from the "
    "orders, and the lists and texts that LKH reads are made beforehand. Times are of single runs; "
    "this library's include its bounds and checks.",
    "First differences: cost above the best of all methods; the 1-tree bound is below every order.",
    "LKH and fast_tsp work on integers: distances are scaled to 1,000,000 and to 65,535. LKH has "
    "its defaults, ten runs and one thread, fast_tsp all cores and 2 s, its default.",
    "At n = 2048 every solver is given 10 s; LKH takes its limit below elkai's interface, and "
    "counts it from the end of its preparation.",
    "The time of several starts of scipy's is that of all of them, the cost the best of them. Its "
    "spectral starts are mixtures of the spectral order with the barycentre; at n = 128 its 2opt "
    f"has one start, and nothing is reported if that takes more than {TWO_OPT_LIMIT:.0f} s.",
    "QAPLIB: default settings of all three; the gap is relative to the best known value.",
)


def percent(value: float) -> str:
    """Write a relative distance."""
    return f"{100 * value:.2f}%" if value < 10 else f"{100 * value:,.0f}%"


def given_rows(problem: dict[str, Any]) -> list[dict[str, Any]]:
    """List what is known of a problem without solving it, as rows."""
    known = [("given order", problem["initial"]), ("1-tree bound", problem["tree_bound"])]
    known.append(("orthogonal bound", problem["bound"]))
    return [{"method": m, "cost": c, "seconds": None} for m, c in known if c is not None]


def tour_table(report: dict[str, Any]) -> Table:
    """Show the first differences, one problem a line."""
    headings = ["layer", "boundary", "n", OURS, "time", "LKH", "time", "fast_tsp", "time"]
    headings += ["spectral order", "given order", "1-tree bound"]
    lines = []
    for problem in report["orders"]:
        operator, _, boundary = problem["operator"].partition(", ")
        if operator != "first difference":
            continue
        rows = by_method(problem)
        best = best_cost(list(rows.values()))
        rows |= {row["method"]: row for row in given_rows(problem)}
        lkh = LKH if LKH in rows else LKH_TIMED
        line = [problem["layer"], boundary, str(problem["n"])]
        for name in (OURS, lkh, FAST_TSP):
            if name in rows:
                line += [percent(rows[name]["cost"] / best - 1), duration(rows[name]["seconds"])]
            else:
                line += ["-", "-"]
        for name in ("spectral order", "given order", "1-tree bound"):
            line.append(percent(rows[name]["cost"] / best - 1))
        lines.append(line)
    return Table(headings, lines)


def fourier_table(report: dict[str, Any]) -> Table:
    """Show the Fourier operators, one method a line."""
    headings = ["layer", "method", "n", "above best", "of given order", "time"]
    lines = []
    for problem in report["orders"]:
        if not problem["operator"].startswith("Fourier"):
            continue
        rows = list(by_method(problem).values())
        best, initial = best_cost(rows), problem["initial"]
        for row in rows + given_rows(problem):
            seconds = "-" if row["seconds"] is None else duration(row["seconds"])
            words = [problem["layer"], row["method"], str(problem["n"])]
            share = f"{row['cost'] / initial:.4f}"
            lines.append([*words, percent(row["cost"] / best - 1), share, seconds])
        for row in problem["rows"]:
            if row["cost"] is None:
                words = [problem["layer"], row["method"], str(problem["n"])]
                lines.append([*words, "-", "-", row["note"]])
    return Table(headings, lines)


def qaplib_table(report: dict[str, Any]) -> Table:
    """Show the published instances, their mean last."""
    headings = ["instance", "n", "best known", OURS, "time", "FAQ", "time", "2opt", "time"]
    methods = ("", "faq_", "2opt_")
    lines = []
    for row in report["qaplib"]:
        line = [row["instance"], str(row["n"]), f"{row['best_known']:,}"]
        for method in methods:
            line += [percent(row[f"{method}gap"]), duration(row[f"{method}seconds"])]
        lines.append(line)
    mean = ["mean", "", ""]
    for method in methods:
        for key in ("gap", "seconds"):
            value = statistics.fmean(row[method + key] for row in report["qaplib"])
            mean.append(percent(value) if key == "gap" else duration(value))
    return Table(headings, [*lines, mean], left=1)


def control_table(report: dict[str, Any]) -> Table:
    """Show the comparison with random inputs."""
    headings = ["neurons", "criterion", "n", "cost / given order's", "bound / given order's"]
    lines = [
        [row["layer"], row["operator"], str(row["n"]), f"{row['cost']:.4f}", f"{row['bound']:.4f}"]
        for row in report["inputs"]
    ]
    return Table(headings, lines)


def planted_table(report: dict[str, Any]) -> Table:
    """Show the planted orders."""
    headings = ["criterion", "put back", "n", "neighbours restored", "time"]
    lines = []
    for row in report["planted"]:
        share = f"{100 * row['neighbours']:.1f}%"
        restored = "yes" if row["restored"] else "NO"
        lines.append([row["operator"], restored, str(row["n"]), share, duration(row["seconds"])])
    return Table(headings, lines)


def target_table(report: dict[str, Any]) -> Table:
    """Show all targets."""
    headings = ["target", "", "measured", "at most"]
    lines = [
        [t["target"], verdict(t["met"]), f"{t['value']:.4g}", f"{t['most']:g}"]
        for t in report["targets"]
    ]
    return Table(headings, lines)


def tables(report: Report) -> dict[str, Table]:
    """Tables by their names."""
    found = {
        "permutation-targets": target_table(report),
        "first-difference": tour_table(report),
        "fourier": fourier_table(report),
        "inputs": control_table(report),
        "planted": planted_table(report),
    }
    return found | ({"qaplib": qaplib_table(report)} if report["qaplib"] else {})


# ----------------------------------------------------------------------------------- main


def orders(quick: bool, starts: int) -> list[Problem]:
    """Solve every order problem."""
    found = []

    def add(problem: Problem) -> None:
        found.append(problem)
        shown = ", ".join(f"{row.method} {row.cost or 0:.6g}" for row in problem.rows)
        print(f"{problem.operator}, n = {problem.n}: {shown}", file=sys.stderr, flush=True)

    embedded = embedded_layer()
    small = [embedded] + [digits_layer(n) for n in ((128,) if quick else (128, 256, 512))]
    for layer in small:
        for periodic in (True, False):
            add(first_difference(layer, periodic, None, lkh=True))
    if not quick:
        add(first_difference(digits_layer(2048), True, LARGE_SECONDS, lkh=True))
    add(fourier(embedded, starts, 1 if quick else starts))
    # One start of 2opt takes longer at n = 128 than ten at n = 80.
    add(fourier(digits_layer(128), starts, 0 if quick else 1))
    if not quick:
        add(fourier(digits_layer(512), starts, 0))
        add(fourier(digits_layer(4096), 0, 0))
    return found


def run(settings: Run) -> Report:
    """Solve everything; this family's part of the report."""
    quick = settings.quick
    found: Report = {
        "orders": [asdict(problem) for problem in orders(quick, starts=2 if quick else 10)],
        "inputs": compare_inputs(64 if quick else 256),
        "planted": planted(64 if quick else 256),
        "qaplib": qaplib(("nug12", "tai25a") if quick else None),
        "notes": list(NOTES),
    }
    return found | {"targets": targets(found)}


FAMILIES = {"permutation": Family(run, tables)}
