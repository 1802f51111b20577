"""Assignments of costs that were made to lead them astray, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import on_device
from costs import (
    EPS,
    FAMILIES,
    ROUNDED,
    Array,
    Costs,
    Rng,
    all_magnitudes,
    as_integer,
    as_integers,
    best_of_all,
    bits,
    cancelling,
    distances,
    ends,
    last_bits,
    least_total,
    penalties,
    proof,
    shuffled,
    subnormal,
    sums_of_both,
    tenths,
)
from drill import Tally, drill
from scipy.optimize import linear_sum_assignment

import descramble_fast as df

SCALES: dict[Any, tuple[int, ...]] = {
    np.float64: (0, -1074, -1022, -300, 600, 947, 970),
    np.float32: (0, -149, -126, 100),
}
INTEGERS = (np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint8, np.bool_)
VARIANTS: list[tuple[Any, int]] = [
    *((dtype, exponent) for dtype, scales in SCALES.items() for exponent in scales),
    *((dtype, 0) for dtype in INTEGERS),
]


def shapes(rng: Rng, long: bool) -> Iterator[tuple[int, int, int]]:
    """Batches of small problems, then some around the sizes at which kernels change."""
    sides = [(n, m) for n in range(1, 9) for m in range(1, 9)]
    elements = 40_000 if long else 400
    for n, m in sides * 2:
        yield (4 if n == m else 1) * elements // (n * m), n, m
    edges = (15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 257)
    for n in edges if long else edges[:9]:
        yield 2, n, n
        yield 2, int(rng.integers(1, 41)), int(rng.integers(40, 401))
        yield 2, int(rng.integers(40, 401)), int(rng.integers(1, 41))


def integers_of(dtype: Any, pairs: int, banned: bool) -> int:
    """The largest that a cost may be, for answers without rounding."""
    if dtype == np.bool_:
        return 1
    # Forbidden pairs make duals as large as a path of costs, instead of three of them.
    top = 2**53 // (4 * pairs if banned else pairs)
    if dtype in INTEGERS:
        return min(top, int(np.iinfo(dtype).max))
    return min(top, 2**24) if dtype == np.float32 else top


def count(tally: Tally, holds: Array, say: Callable[[int], str]) -> None:
    """A trial for each problem of a batch."""
    for k in np.flatnonzero(~holds):
        tally.check(False, say(int(k)))
    tally.trials += int(holds.sum())


def exact_batch(
    tally: Tally,
    rng: Rng,
    trial: str,
    family: Costs,
    shape: tuple[int, int, int],
    solve: Any = df.linear_assignment,
) -> None:
    dtype, exponent = VARIANTS[int(rng.integers(len(VARIANTS)))]
    maximize = bool(rng.integers(2))
    sign = -1 if maximize else 1
    bans = dtype in SCALES and rng.random() < 0.3
    top = integers_of(dtype, min(shape[1:]), bans)
    whole = np.clip(shuffled(rng, family(rng, shape, top)), -top, top)
    if dtype in (np.uint64, np.uint8, np.bool_):
        whole = abs(whole)
    costs = (np.ldexp(whole.astype(float), exponent) if exponent else whole).astype(dtype)
    banned = np.zeros(shape, dtype=bool)
    if bans:
        keep = shuffled(rng, np.broadcast_to(np.eye(*shape[1:], dtype=bool), shape))
        banned = (rng.random(shape) < rng.choice([0.1, 0.5, 0.95])) & ~keep
        costs[banned] = sign * np.inf
    before = costs.tobytes()
    r = solve(costs, maximize=maximize)

    def say(k: int, what: str) -> str:
        shown = costs[k].tolist() if costs[k].size < 20 else f"{costs[k].shape}"
        where = f"{trial}, {costs.dtype}, 2^{exponent}, maximize {maximize}, problem {k}"
        return f"{where}: {what}; costs {shown}"

    tally.check(costs.tobytes() == before, say(0, "changed its input"))
    with np.errstate(over="ignore"):
        u, v, cost, gap, violation = (
            np.ldexp(np.asarray(x), -exponent)
            for x in (r.row_duals, r.column_duals, r.cost, r.gap, r.violation)
        )
    whole = np.where(banned, 2**60, sign * whole)  # beyond any sum of costs and duals
    duals = (sign * x.astype(np.int64) for x in (u, v))
    legal, total, lack = proof(whole, r.columns, *duals)
    integral = (u == np.rint(u)).all(axis=1) & (v == np.rint(v)).all(axis=1)
    proven = integral & (lack == 0) & (gap == 0) & (violation == 0)
    count(tally, legal & (total < 2**55), lambda k: say(k, f"columns {r.columns[k]}"))
    count(
        *(tally, proven),
        lambda k: say(k, f"gap {r.gap[k]}, violation {r.violation[k]}, truly {lack[k]}"),
    )
    count(tally, cost == sign * total, lambda k: say(k, f"cost {r.cost[k]}"))
    if max(shape[1:]) <= 5:
        best = best_of_all(whole)
        count(tally, total == best, lambda k: say(k, f"cost {total[k]}, the best {best[k]}"))
    if rng.random() < 0.9:
        return
    few = costs[:24]
    device, expected = r.route.device, bits(r)[:24]

    def same(found: Any, what: str, step: int = 1) -> None:
        if found.route.device == device:  # on another, ties may end otherwise
            tally.check(bits(found)[::step] == expected, say(0, f"other bits {what}"))

    for threads in (1, 2, 3):
        df.set_num_threads(threads)
        same(solve(few, maximize=maximize), f"for part of it with {threads} threads")
    df.set_num_threads(0)
    same(solve(few[::-1], maximize=maximize), "when the batch is turned round", -1)
    turned = solve(few.swapaxes(1, 2), maximize=maximize)
    count(tally, turned.cost == r.cost[:24], lambda k: say(k, f"{turned.cost[k]} transposed"))


@drill(
    "assignment-exact",
    "assignments of integers, of any scale and dtype, are best and proven so without rounding",
)
def assignment_exact(tally: Tally, long: bool) -> None:
    # Duals that prove it in integers leave no better assignment; that they are not believed
    # wrongly is seen from all orders where there are few.
    rng = np.random.default_rng(0)
    problems = 0
    for trial, shape in enumerate(shapes(rng, long)):
        for family in FAMILIES:
            exact_batch(tally, rng, f"batch {trial}, {family.__name__}", family, shape)
            problems += shape[0]
    tally.figures["problems"] = f"{problems:,}"


@drill(
    "device-assignment",
    "assignments of integers on a CUDA device are best and proven so without rounding",
    device=True,
)
def device_assignment(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(2)

    def solve(costs: Array, maximize: bool) -> Any:
        r = on_device.solves(df.linear_assignment)(costs, maximize=maximize)
        on_device.count_places(tally, r.route)
        return r

    sides = (1, 2, 5, 8, 9, 31, 32, 33, 64, 65, 128, 129, 257) if long else (2, 9)
    for n in sides:
        for m in {n, *(sides[::3] if n < 65 else ())}:
            for family in [*FAMILIES][:: 1 if long else 3]:
                for b in (1, 40, 3000 if n < 33 else 300) if long else (3,):
                    where = f"{family.__name__}, {b} of {n} x {m}"
                    exact_batch(tally, rng, where, family, (b, n, m), solve)
    tally.check("on cuda" in tally.figures, "none was solved on the device")


def rounded_problem(tally: Tally, rng: Rng, trial: int) -> tuple[bool, bool]:
    """One trial; whether an ulp of something was missed, and whether SciPy missed one."""
    family = ROUNDED[trial % len(ROUNDED)]
    n, m = (int(k) for k in rng.integers(1, 9, size=2))
    n = m if trial // len(ROUNDED) % 2 else n
    maximize = bool(rng.integers(2))
    sign, pairs = -1 if maximize else 1, min(n, m)
    costs = sign * shuffled(rng, family(rng, n, m)[None])[0]
    single = trial % 3 == 0 and float(np.abs(costs).max()) < 1e38
    costs = costs.astype(np.float32 if single else np.float64)
    r = df.linear_assignment(costs, maximize=maximize)
    columns = np.asarray(r.columns)

    def check(holds: bool, what: str) -> None:
        where = f"trial {trial}, {family.__name__}, {costs.dtype}, maximize {maximize}"
        tally.check(bool(holds), lambda: f"{where}: {what}; {r} of {costs.tolist()}")

    wide = sign * costs.astype(float)
    whole = as_integers(wide)
    best = least_total((whole if n <= m else whole.T).tolist())
    rows = np.flatnonzero(columns >= 0)
    check(len(rows) == pairs == len(set(columns[rows].tolist())), "no assignment")
    chosen = whole[rows, columns[rows]]
    total = sum(chosen.tolist())
    duals = [sign * np.asarray(x) for x in (r.row_duals, r.column_duals)]
    finite = all(np.isfinite(x).all() for x in duals)
    check(finite or family is ends, "duals")
    u, v = (as_integers(x if finite else np.zeros_like(x)) for x in duals)
    # A path length's error: a few eps of the largest number for each step.
    largest = max(abs(x) for x in [*whole.ravel(), *u, *v])
    tolerance = 4 * (n + m) * largest >> 52
    allowed = 0 if family in (last_bits, subnormal) else pairs * tolerance
    check(0 <= total - best <= allowed, f"{(total - best) / (largest or 1)} above the best")
    if family is penalties and n == m:
        check(wide[rows, columns[rows]].max() <= 1, "took a penalty")
    # Compensated sums are rounded once, and then to second order; 2^2098 is past float64's end.
    off = (abs(total) >> 52) + (pairs**2 * sum(abs(x) for x in chosen) >> 104)
    if math.isfinite(r.cost):
        check(abs(sign * as_integer(r.cost) - total) <= off, f"cost, not 2^-1074 {total}")
    else:
        check(abs(total) + off >= 2**2098, "cost")
    if finite:
        slack = whole - u[:, None] - v
        lack = max(0, -slack.min())
        own = max(abs(x) for x in slack[rows, columns[rows]])
        longer = max([0, *(u if n > m else v if m > n else [])])
        stray = any(u[columns < 0]) or any(v[np.setdiff1d(np.arange(m), columns)])
        check(max(lack, own, longer) <= tolerance and not stray, "duals are no proof")
        check(abs(as_integer(r.violation) - lack) <= tolerance, "violation")
        gap = total - sum(u) - sum(v)
        check(abs(as_integer(r.gap) - gap) <= pairs * tolerance, f"gap, not 2^-1074 {gap}")
    # Up to 2^1000: larger costs are scaled down first, and their smallest bits with them.
    power = costs.dtype.type(2.0 ** int(rng.integers(-40, 3)))
    if np.abs(costs).max() <= (1e30 if single else 1e300):
        scaled = costs * power
        if (scaled / power == costs).all():
            again = df.linear_assignment(scaled, maximize=maximize).columns
            check(np.array_equal(again, columns), f"columns {again} when scaled by {power}")
    turned = np.asarray(df.linear_assignment(costs.T, maximize=maximize).columns)
    at = np.flatnonzero(turned >= 0)
    over = sum(whole[turned[at], at]) - best
    check(0 <= over <= allowed, f"{over / (largest or 1)} above the best when transposed")
    if n == m and family not in (ends, penalties, cancelling, all_magnitudes):
        # Duals that are of no use must not cost digits: as large as those of any path, at most.
        size = float(np.abs(costs).max()) * 10.0 ** int(rng.integers(0, 9))
        start = size * rng.uniform(-1, 1, size=m)
        warm = df.linear_assignment(costs, maximize=maximize, initial_duals=start)
        over = sum(whole[rows, warm.columns]) - best
        most = pairs * (4 * (n + m) * (1 + 4 * n) * max(abs(x) for x in whole.ravel()) >> 52)
        check(0 <= over <= most, f"{over / (largest or 1)} above the best in {warm} from {start}")
    theirs = sum(whole[linear_sum_assignment(wide if family is not ends else wide / 16)])
    return total > best, theirs > best


def large_problems(tally: Tally, rng: Rng, long: bool) -> None:
    ranks = np.arange(1.0, 1 + (500 if long else 80))
    large = [np.outer(ranks, ranks), shuffled(rng, np.outer(ranks, ranks)[None])[0]]
    many = [(2000, 2000), (700, 700), (500, 900), (40, 400), (400, 33)]
    drawn = (distances, sums_of_both, tenths, last_bits, all_magnitudes, penalties)
    for n, m in many if long else [(90, 90)]:
        large += [family(rng, n, m) for family in (drawn if n < 2000 else drawn[:3])]
    for k, costs in enumerate(large):
        n, m = costs.shape
        r = df.linear_assignment(costs)
        legal, _, lack = proof(*(x[None] for x in (costs, r.columns, r.row_duals, r.column_duals)))
        largest = max(float(np.abs(x).max()) for x in (costs, r.row_duals, r.column_duals))
        tolerance = 4 * (n + m) * EPS * largest
        tally.check(bool(legal[0] and lack[0] <= tolerance), f"large {k}, {n} x {m}: {lack}")
        off = abs(r.cost - math.fsum(costs[linear_sum_assignment(costs)]))
        tally.check(off <= min(n, m) * tolerance, f"large {k}, {n} x {m}: {off} from SciPy's")


@drill(
    "assignment-rounding",
    "assignments of any floats are as good as the best in exact arithmetic, to rounding",
)
def assignment_rounding(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(1)
    missed = [rounded_problem(tally, rng, trial) for trial in range(40_000 if long else 300)]
    ours, theirs = (sum(each) for each in zip(*missed, strict=True))
    tally.figures["not the very best"] = f"{ours:,} of {len(missed):,} (SciPy's: {theirs:,})"
    large_problems(tally, rng, long)
