"""Assignments are optimal, proven so by their duals, and the same on every road to them."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import EPS, best_assignment
from scipy.optimize import linear_sum_assignment

import descramble_fast as df

FreshPython = Callable[..., str]
Rng = np.random.Generator
Costs = NDArray[Any]


# The certificate ----------------------------------------------------------------------------------


def rounding(costs: Any, *duals: Any) -> float:
    """Error of a path length: a few eps of the largest number for each step."""
    finite = [np.asarray(x, dtype=np.float64).ravel() for x in (costs, *duals)]
    largest = max(np.abs(x[np.isfinite(x)]).max(initial=0) for x in finite)
    return float(4 * sum(np.shape(costs)[-2:]) * EPS * largest)


def total(costs: Any, columns: Any) -> float:
    """Sum of the assigned pairs, rounded once."""
    return math.fsum(float(costs[i, j]) for i, j in enumerate(columns) if j >= 0)


def assert_proven(costs: Any, r: Any, maximize: bool = False, exact: bool = False) -> None:
    """A valid assignment of this cost, and duals that leave room for none better."""
    wide = np.asarray(costs).astype(np.float64)
    n, m = wide.shape
    columns = np.asarray(r.columns)
    assert columns.dtype == np.int64
    assert columns.shape == (n,)
    rows = np.flatnonzero(columns >= 0)
    assert len(rows) == min(n, m)
    assert len(set(columns[rows].tolist())) == min(n, m)
    assert set(columns.tolist()) <= {-1, *range(m)}

    sign = -1.0 if maximize else 1.0
    u, v = sign * np.asarray(r.row_duals), sign * np.asarray(r.column_duals)
    assert (u.shape, v.shape) == ((n,), (m,))
    tolerance = 0.0 if exact else rounding(wide, u, v)
    slack = sign * wide - u[:, None] - v[None, :]  # forbidden pairs: infinite
    assert slack.min(initial=0) >= -tolerance
    assert np.abs(slack[rows, columns[rows]]).max(initial=0) <= tolerance
    left_out = np.setdiff1d(np.arange(m), columns)
    assert (u[columns < 0] == 0).all()
    assert (v[left_out] == 0).all()
    longer = u if n > m else v if m > n else np.zeros(0)
    assert longer.max(initial=0) <= tolerance

    pairs = max(1, min(n, m))
    cost = total(wide, columns)
    assert abs(float(r.cost) - cost) <= pairs * tolerance
    assert abs(sign * cost - math.fsum(u) - math.fsum(v)) <= pairs * tolerance
    assert abs(float(r.gap)) <= pairs * tolerance
    assert 0 <= float(r.violation) <= tolerance


def one_of(batch: df.LinearAssignmentResult, index: tuple[int, ...]) -> df.LinearAssignmentResult:
    names = ("columns", "cost", "row_duals", "column_duals", "gap", "violation")
    fields = {name: getattr(batch, name)[index] for name in names}
    return df.LinearAssignmentResult(**fields, route=batch.route)


def bits(r: df.LinearAssignmentResult) -> bytes:
    fields = (r.columns, r.row_duals, r.column_duals, r.cost, r.gap, r.violation)
    return b"".join(np.asarray(field).tobytes() for field in fields)


# The problems -------------------------------------------------------------------------------------


def uniform(rng: Rng, n: int, m: int) -> Costs:
    return rng.random((n, m)) - 0.3


def ties(rng: Rng, n: int, m: int) -> Costs:
    return rng.integers(-2, 3, size=(n, m)).astype(float)


def noisy_copies(rng: Rng, n: int, m: int) -> Costs:
    """Similarity of features with noisy copies of them, in another order."""
    features = rng.normal(size=(max(n, m), 8))
    copies = features + 0.3 * rng.normal(size=features.shape)
    return np.asarray(features[:n] @ copies[rng.permutation(len(copies))[:m]].T)


def low_rank(rng: Rng, n: int, m: int) -> Costs:
    return np.asarray(rng.normal(size=(n, 1)) @ rng.normal(size=(1, m)))


def constant(rng: Rng, n: int, m: int) -> Costs:
    return np.full((n, m), rng.choice([-1.5, 0.0, 7.25]))


def forbidden(rng: Rng, n: int, m: int) -> Costs:
    costs = rng.integers(0, 9, size=(n, m)) / 4
    costs[rng.random((n, m)) < rng.choice([0.1, 0.5])] = np.inf
    return np.asarray(costs)


def spread(rng: Rng, n: int, m: int) -> Costs:
    """Nine orders of magnitude in one matrix, of both signs."""
    return np.asarray(rng.normal(size=(n, m)) * 10.0 ** rng.integers(-4, 5, size=(n, m)))


FAMILIES = [uniform, ties, noisy_copies, low_rank, constant, forbidden, spread]


def shape_of(rng: Rng, trial: int) -> tuple[int, int]:
    """Square, wide and tall in turn; mostly small."""
    largest = 90 if trial % 40 == 0 else 24 if trial % 5 == 0 else 8
    n = int(rng.integers(1, largest + 1))
    other = int(rng.integers(1, largest + 1))
    return [(n, n), (n, n), (min(n, other), max(n, other)), (max(n, other), min(n, other))][
        trial % 4
    ]


# Exactness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_four_hundred_problems_cost_what_scipys_do_and_are_proven(
    family: Callable[[Rng, int, int], Costs], dtype: Any, maximize: bool
) -> None:
    # 7 families x 2 precisions x 2 directions: 11,200 problems in all.
    rng = np.random.default_rng([FAMILIES.index(family), maximize, np.dtype(dtype).itemsize])
    solved = 0
    for trial in range(400):
        costs = family(rng, *shape_of(rng, trial)).astype(dtype)
        costs = -costs if maximize else costs
        try:
            rows, columns = linear_sum_assignment(costs, maximize=maximize)
        except ValueError:  # SciPy finds it infeasible
            with pytest.raises(ValueError, match="cost: infeasible"):
                df.linear_assignment(costs, maximize=maximize)
            continue
        r = df.linear_assignment(costs, maximize=maximize)
        assert_proven(costs, r, maximize)
        assert isinstance(r.cost, float)
        expected = math.fsum(costs[rows, columns].astype(float))
        assert abs(r.cost - expected) <= min(costs.shape) * rounding(costs)
        if family in (ties, constant):
            assert r.gap == 0
            assert r.cost == expected
        solved += 1
    assert solved >= (150 if family is forbidden else 400)


@pytest.mark.parametrize("family", [uniform, ties, low_rank, spread])
def test_no_order_of_up_to_eight_columns_is_better(
    family: Callable[[Rng, int, int], Costs],
) -> None:
    rng = np.random.default_rng(FAMILIES.index(family))
    shapes = [(n, m) for n in range(1, 7) for m in range(1, 7)]
    for n, m in [*shapes, *shapes, (8, 8), (7, 8), (8, 6)]:
        costs = family(rng, n, m)
        for maximize in (False, True):
            r = df.linear_assignment(costs, maximize=maximize)
            best = best_assignment(costs, maximize)
            assert abs(r.cost - best) <= min(n, m) * rounding(costs)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 12),
    m=st.integers(0, 12),
    levels=st.integers(1, 5),
    banned=st.sampled_from([0.0, 0.0, 0.3, 0.7]),
    maximize=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_a_few_levels_of_cost_and_forbidden_pairs(
    seed: int, n: int, m: int, levels: int, banned: float, maximize: bool
) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, levels, size=(n, m)).astype(float)
    costs[rng.random((n, m)) < banned] = -np.inf if maximize else np.inf
    try:
        rows, columns = linear_sum_assignment(costs, maximize=maximize)
    except ValueError:
        side = "row" if n <= m else "column"
        with pytest.raises(ValueError, match=rf"infeasible: {side} \d+ cannot be assigned"):
            df.linear_assignment(costs, maximize=maximize)
        return
    r = df.linear_assignment(costs, maximize=maximize)
    assert_proven(costs, r, maximize, exact=True)
    assert r.cost == costs[rows, columns].sum()
    assert np.isfinite(costs[rows, r.columns[rows]]).all() or n > m


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 64, 150, 300])
def test_products_of_ranks_are_solved_by_the_reversed_order(n: int, dtype: Any) -> None:
    # Machol and Wien's costs, on which shortest paths grow longest.
    ranks = np.arange(1, n + 1)
    costs = np.outer(ranks, ranks).astype(dtype)
    r = df.linear_assignment(costs)
    assert r.columns.tolist() == list(range(n))[::-1]
    assert_proven(costs, r, exact=True)
    assert r.cost == n * (n + 1) * (n + 2) // 6
    assert df.linear_assignment(costs, maximize=True).columns.tolist() == list(range(n))


def test_larger_problems_of_every_family() -> None:
    rng = np.random.default_rng(0)
    for family in (uniform, ties, noisy_copies, constant, spread):
        for n, m in [(500, 500), (300, 700), (700, 300)]:
            costs = family(rng, n, m)
            r = df.linear_assignment(costs)
            assert_proven(costs, r)
            expected = math.fsum(costs[linear_sum_assignment(costs)])
            assert abs(r.cost - expected) <= min(n, m) * rounding(costs)


# Integers -----------------------------------------------------------------------------------------

INTEGERS = ["bool", *(f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64))]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_exact(dtype: str) -> None:
    rng = np.random.default_rng(INTEGERS.index(dtype))
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = max(int(low), -(2**40)), min(int(high), 2**40)
    for n, m in [(1, 1), (2, 3), (3, 2), (8, 8), (40, 40), (30, 50), (50, 30)]:
        costs = rng.integers(low, high, size=(n, m), endpoint=True).astype(dtype)
        costs[0, 0], costs[-1, -1] = low, high
        for maximize in (False, True):
            r = df.linear_assignment(costs, maximize=maximize)
            assert_proven(costs, r, maximize, exact=True)
            assert r.gap == r.violation == 0
            rows, columns = linear_sum_assignment(costs.astype(np.int64), maximize=maximize)
            assert r.cost == sum(int(costs[i, j]) for i, j in zip(rows, columns, strict=True))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_integers_are_exact_up_to_the_stated_magnitude(n: int) -> None:
    limit, rng = 2**53 // n, np.random.default_rng(n)
    for trial in range(60):
        some = [-limit, 1 - limit, -1, 0, 1, limit - 1, limit]
        costs = (
            rng.choice(some, size=(n, n))
            if trial % 2
            else rng.integers(-limit, limit, size=(n, n), endpoint=True)
        )
        r = df.linear_assignment(costs)
        best = min(sum(int(costs[i, p[i]]) for i in range(n)) for p in permutations(range(n)))
        assert r.cost == best
        assert sum(int(costs[i, j]) for i, j in enumerate(r.columns)) == best
        assert r.gap == 0


@pytest.mark.parametrize("maximize", [False, True])
def test_two_by_two_integers_of_the_stated_magnitude_are_proven_exactly(maximize: bool) -> None:
    # Bids would take their duals to three times the costs, past 2^53.
    some = [*(sign * (2**52 - k) for sign in (-1, 1) for k in range(3)), 0, 1]
    costs = np.array(list(product(some, repeat=4))).reshape(-1, 2, 2)
    r = df.linear_assignment(costs, maximize=maximize)
    totals = costs[:, 0, 0] + costs[:, 1, 1], costs[:, 0, 1] + costs[:, 1, 0]
    assert np.array_equal(r.cost, (np.maximum if maximize else np.minimum)(*totals))
    assert not np.any(r.gap)
    assert not np.any(r.violation)


@pytest.mark.parametrize(
    "costs",
    [
        np.array([[0, 2**52 + 1], [0, 0]]),
        np.array([[0, -(2**52) - 1, 0], [0, 0, 0]]),
        np.full((1, 1), 2**53 + 1),
        np.full((3, 3), 2**64 - 1, dtype=np.uint64),
        np.full((2, 2), np.iinfo(np.int64).min),
        np.where(np.eye(2000) > 0, 2**43, 0),
    ],
    ids=["above", "below", "one", "unsigned", "lowest", "many"],
)
def test_integers_that_floating_numbers_cannot_add_are_refused(costs: Costs) -> None:
    with pytest.raises(ValueError, match=r"cost: got u?int64 with magnitudes above \d+, expected"):
        df.linear_assignment(costs)
    small = np.sign(costs).astype(np.int64)
    assert_proven(small, df.linear_assignment(small), exact=True)


# Numbers at the ends of the range -----------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        (np.float64, 1000),
        (np.float64, 1023),
        (np.float64, -1074),
        (np.float64, -1040),
        (np.float32, 127),
        (np.float32, -149),
        (np.float32, -130),
        (np.float16, -24),
        (ml_dtypes.bfloat16, 120),
    ],
)
def test_a_power_of_two_changes_nothing_but_the_scale(
    dtype: Any, exponent: int, maximize: bool
) -> None:
    rng = np.random.default_rng(abs(exponent))
    for n, m in [(1, 1), (2, 2), (2, 3), (3, 2), (6, 6), (20, 20), (9, 17)]:
        # Whole multiples of the smallest subnormal; sums of a few may pass the largest number.
        top = 1 if exponent > 0 else 15
        whole = rng.integers(-top, top, size=(n, m), endpoint=True)
        costs = np.ldexp(whole.astype(float), exponent).astype(dtype)
        assert (costs.astype(float) == np.ldexp(whole.astype(float), exponent)).all()
        r, plain = (df.linear_assignment(x, maximize=maximize) for x in (costs, whole))
        assert r.columns.tolist() == plain.columns.tolist()
        with np.errstate(over="ignore"):
            assert r.cost == np.ldexp(plain.cost, exponent)


def test_the_largest_numbers_are_avoided_or_taken_like_any_other() -> None:
    top = np.finfo(np.float64).max
    costs = np.array([[top, 1.0, 5.0], [2.0, top, 7.0], [top, 4.0, -top]])
    r = df.linear_assignment(costs)
    assert r.columns.tolist() == [1, 0, 2]
    assert r.cost == -top
    assert df.linear_assignment(costs, maximize=True).columns.tolist() == [2, 1, 0]
    huge = np.array([[1e300, -1e300, 3.0], [1.0, 2e300, -2.0]])
    r = df.linear_assignment(huge)
    assert r.columns.tolist() == [1, 2]
    assert_proven(huge, r)
    r = df.linear_assignment(huge, maximize=True)
    assert (r.columns.tolist(), r.cost) == ([0, 1], 3e300)


# Forbidden pairs, and what is wrong ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_infinity_forbids_a_pair(dtype: Any) -> None:
    costs = np.array([[0, 1, 9], [0, 9, 9], [9, 2, 9]]).astype(dtype)
    banned = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=bool)
    least = np.where(banned, np.inf, costs).astype(dtype)
    r = df.linear_assignment(least)
    assert (r.columns.tolist(), r.cost) == ([2, 0, 1], 11)
    assert_proven(least, r)
    most = np.where(banned, -np.inf, -costs).astype(dtype)
    r = df.linear_assignment(most, maximize=True)
    assert (r.columns.tolist(), r.cost) == ([2, 0, 1], -11)
    assert_proven(most, r, maximize=True)


def test_a_forbidden_row_that_may_be_left_out_is_left_out() -> None:
    costs = np.array([[1.0, 2.0], [np.inf, np.inf], [2.0, 1.0]])
    assert df.linear_assignment(costs).columns.tolist() == [0, -1, 1]
    assert_proven(costs, df.linear_assignment(costs))
    assert df.linear_assignment(costs.T).columns.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("maximize", [False, True])
def test_an_infeasible_problem_is_named_with_its_row(maximize: bool, dtype: Any) -> None:
    never = -np.inf if maximize else np.inf
    costs = np.random.default_rng(0).random((2, 3, 5, 5)).astype(dtype)
    costs[1, 1, 3] = never
    with pytest.raises(ValueError, match=r"cost: infeasible of problem 4: row 3 cannot"):
        df.linear_assignment(costs, maximize=maximize)
    with pytest.raises(ValueError, match=r"cost: infeasible: row 3 cannot"):
        df.linear_assignment(costs[1, 1], maximize=maximize)
    with pytest.raises(ValueError, match=r"cost: infeasible: column 3 cannot"):
        df.linear_assignment(
            np.full((7, 4), 1.0) + np.where(np.arange(4) == 3, never, 0), maximize=maximize
        )
    with pytest.raises(ValueError, match=r"cost: infeasible: row \d cannot"):
        df.linear_assignment(np.full((3, 4), never, dtype=dtype), maximize=maximize)
    # Three rows share two columns: Hall's condition fails though no row and no column is empty.
    crowded = np.full((4, 4), 1.0)
    crowded[:3, 2:] = never
    with pytest.raises(ValueError, match=r"cost: infeasible: row [012] cannot"):
        df.linear_assignment(crowded.astype(dtype), maximize=maximize)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("shape", [(3, 3), (40, 40), (5, 9), (9, 5), (30, 200), (200, 30)])
def test_what_is_no_cost_is_named_by_problem_row_and_column(
    shape: tuple[int, int], bad: float, dtype: Any
) -> None:
    rng = np.random.default_rng(0)
    costs = rng.random((2, 3, *shape)).astype(dtype)
    i, j = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
    costs[1, 0, i, j] = bad
    what = "NaN" if np.isnan(bad) else "infinity of the wrong sign"
    place = rf"cost: {what} .*row {i}, column {j}"
    with pytest.raises(ValueError, match=place + " of problem 3$"):
        df.linear_assignment(costs)
    for layout in (np.ascontiguousarray, np.asfortranarray):
        with pytest.raises(ValueError, match=place + "$"):
            df.linear_assignment(layout(costs[1, 0]))
    costs[1, 0, i, j] = -bad
    with pytest.raises(ValueError, match=place + "$"):
        df.linear_assignment(costs[1, 0], maximize=True)


@pytest.mark.parametrize(
    "costs", [np.zeros(3), np.zeros(()), np.zeros(3, dtype=int), np.array(2), np.zeros(0)]
)
def test_fewer_than_two_axes_are_a_value_error(costs: Costs) -> None:
    with pytest.raises(ValueError, match=r"cost: got shape \(.*expected \(\.\.\., n, m\)"):
        df.linear_assignment(costs)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([[1.0]], "list"),
        (None, "None"),
        (np.eye(2, dtype=complex), "complex128"),
        (np.eye(2, dtype=">f8"), "byte order"),
        (np.eye(2, dtype=">i4"), ""),
        (np.array([["a"]]), ""),
        (np.array([[None]]), ""),
        (np.ma.masked_array(np.eye(2), mask=np.eye(2)), "masked"),
        (np.ma.masked_array(np.eye(2, dtype=int), mask=np.eye(2)), "masked"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_a_type_error(costs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"cost: .*{message}"):
        df.linear_assignment(costs)


# Shapes and batches -------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (0, 4), (4, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_batches_keep_their_leading_axes(
    dtype: Any, shape: tuple[int, int], batch: tuple[int, ...]
) -> None:
    n, m = shape
    costs = np.random.default_rng(0).integers(0, 5, size=(*batch, n, m)).astype(dtype)
    r = df.linear_assignment(costs)
    assert r.columns.shape == r.row_duals.shape == (*batch, n)
    assert r.column_duals.shape == (*batch, m)
    assert np.shape(r.cost) == np.shape(r.gap) == np.shape(r.violation) == batch
    if batch == ():
        assert_proven(costs, r, exact=True)
        assert {type(r.cost), type(r.gap), type(r.violation)} == {float}
        return
    for index in np.ndindex(batch):
        assert_proven(costs[index], one_of(r, index), exact=True)
        assert bits(one_of(r, index)) == bits(df.linear_assignment(costs[index]))


@pytest.mark.usefixtures("default_threads")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 130, 130), (300, 9, 9), (40, 20, 33), (40, 33, 20)])
def test_the_same_bits_for_any_thread_count_and_split(
    shape: tuple[int, int, int], dtype: Any
) -> None:
    costs = np.random.default_rng(0).integers(0, 4, size=shape).astype(dtype)
    df.set_num_threads(1)
    alone = [bits(df.linear_assignment(matrix)) for matrix in costs]
    for threads in (1, 2, 3):
        df.set_num_threads(threads)
        r = df.linear_assignment(costs)
        assert [bits(one_of(r, (k,))) for k in range(len(costs))] == alone
        half = df.linear_assignment(costs[len(costs) // 2 :])
        assert bits(one_of(half, (0,))) == alone[len(costs) // 2]


@pytest.mark.usefixtures("default_threads")
def test_the_same_bits_of_a_large_problem_for_any_thread_count() -> None:
    rng = np.random.default_rng(0)
    for costs in (ties(rng, 700, 700), noisy_copies(rng, 600, 900).astype(np.float32)):
        seen = set()
        for threads in (1, 2, 4):
            df.set_num_threads(threads)
            seen |= {bits(df.linear_assignment(costs)), bits(df.linear_assignment(costs))}
        assert len(seen) == 1


VIEWS: dict[str, Callable[[Costs], Costs]] = {
    "transposed": lambda a: a.swapaxes(-1, -2),
    "reversed": lambda a: a[::-1],
    "flipped": lambda a: a[:, ::-1, ::-1],
    "stepped": lambda a: a[:, ::2, ::3],
    "rows stepped": lambda a: a[:, ::2],
    "cut": lambda a: a[:, 1:, 2:],
    "fortran": np.asfortranarray,
    "broadcast": lambda a: np.broadcast_to(a[1], a.shape),
    "one row": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "one column": lambda a: np.broadcast_to(a[:, :, :1], a.shape),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.int64])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in [(3, 14, 14), (3, 10, 21), (3, 21, 10)]:
        costs = VIEWS[view](rng.integers(0, 6, size=shape).astype(dtype))
        costs.setflags(write=False)
        before = costs.tobytes()
        r = df.linear_assignment(costs)
        for k in range(3):
            assert_proven(costs[k], one_of(r, (k,)), exact=True)
        assert bits(r) == bits(df.linear_assignment(np.array(costs, order="C")))
        assert costs.tobytes() == before


def test_strides_beyond_two_to_the_31_elements(tmp_path: Path) -> None:
    # A sparse file: three rows, columns or problems that lie 4 GB apart, and almost no disk.
    gap, width = 2**30 + 5, 4
    values = np.random.default_rng(0).random((3, width)).astype(np.float32)
    file = np.memmap(tmp_path / "costs", dtype=np.float32, mode="w+", shape=(2 * gap + width,))
    for i in range(3):
        file[i * gap : i * gap + width] = values[i]
    assert 2 * gap > 2**31
    rows = np.lib.stride_tricks.as_strided(file, (3, width), (4 * gap, 4))
    problems = np.lib.stride_tricks.as_strided(file, (3, 2, 2), (4 * gap, 8, 4))
    for far, near in [(rows, values), (rows.T, values.T), (problems, values.reshape(3, 2, 2))]:
        assert (far == near).all()
        assert bits(df.linear_assignment(far)) == bits(df.linear_assignment(near.copy()))


# Instruction sets ---------------------------------------------------------------------------------

TIED_PROBLEMS = """
import hashlib
import numpy as np
import descramble_fast as df

rng = np.random.default_rng(0)
digest = hashlib.sha256()
shapes = [(n, n) for n in range(1, 40)] + [(63, 64), (64, 63), (65, 130), (130, 65), (257, 257)]
for n, m in shapes * 2:
    for dtype in (np.float32, np.float64):
        for costs in (
            rng.integers(0, 3, size=(n, m)),
            rng.integers(0, 40, size=(n, m)) / 7,
            rng.random((n, m)),
            np.zeros((n, m)),
            np.outer(np.arange(n), np.arange(m)) % 5,
            np.where(rng.random((n, m)) + np.eye(n, m) > 0.2, rng.integers(0, 3, (n, m)), np.inf),
        ):
            for sign in (1, -1):
                r = df.linear_assignment((sign * costs).astype(dtype), maximize=sign < 0)
                for field in (r.columns, r.row_duals, r.column_duals, r.cost, r.gap, r.violation):
                    digest.update(np.asarray(field).tobytes())
print(digest.hexdigest(), r.route.driver)
"""


def test_every_instruction_set_gives_the_same_columns_and_duals(
    fresh_python: FreshPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESCRAMBLE_FAST_SIMD", "abacus")
    message = fresh_python(
        """
        import numpy as np
        import descramble_fast as df
        try:
            df.linear_assignment(np.eye(3))
        except ValueError as error:
            print(error)
        """
    )
    named = re.match(r'DESCRAMBLE_FAST_SIMD: got "abacus", .*: ([\w, ]+)$', message.strip())
    assert named is not None, message
    there = named[1].split(", ")
    assert there[0] == "baseline"
    monkeypatch.delenv("DESCRAMBLE_FAST_SIMD")
    seen = {fresh_python(TIED_PROBLEMS).split()[0]}
    for name in there:
        monkeypatch.setenv("DESCRAMBLE_FAST_SIMD", name)
        digest, driver = fresh_python(TIED_PROBLEMS).strip().split(maxsplit=1)
        assert f"({name})" in driver
        seen.add(digest)
    assert len(seen) == 1


# Warm starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_drifting_problem_is_solved_from_the_last_duals(dtype: Any, maximize: bool) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 30, 120):
        costs = noisy_copies(rng, n, n).astype(dtype)
        duals = df.linear_assignment(costs, maximize=maximize).column_duals
        for drift in (0, 1e-3, 0.1, 3.0):
            costs = (costs + drift * rng.normal(size=(n, n))).astype(dtype)
            warm = df.linear_assignment(costs, maximize=maximize, initial_duals=duals)
            assert_proven(costs, warm, maximize)
            cold = df.linear_assignment(costs, maximize=maximize)
            assert abs(warm.cost - cold.cost) <= n * rounding(costs)
            duals = warm.column_duals


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1.0, 1e6]),
    banned=st.sampled_from([0.0, 0.4]),
)
@settings(deadline=None, max_examples=100)
def test_any_initial_duals_lead_to_the_optimum(
    seed: int, n: int, scale: float, banned: float
) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 4, size=(n, n)).astype(float)
    costs[(rng.random((n, n)) < banned) & ~np.eye(n, dtype=bool)] = np.inf
    duals = np.round(scale * rng.normal(size=n))
    r = df.linear_assignment(costs, initial_duals=duals)
    assert_proven(costs, r, exact=True)
    assert r.cost == costs[linear_sum_assignment(costs)].sum()


@pytest.mark.parametrize(
    ("costs", "duals"),
    [
        ([[5, 10, 15, 20], [6, 12, 18, 24], [7, 14, 21, 1e308], [1, 2, 3, 4]], [2, 4, 6, 1e308]),
        ([[7, 1e308, 21], [1, 2, 3], [2, 4, 6]], [3, 6, 1e308]),
    ],
)
def test_initial_duals_as_large_as_one_of_the_costs_lead_to_the_optimum(
    costs: list[list[float]], duals: list[float]
) -> None:
    matrix = np.array(costs)
    r = df.linear_assignment(matrix, initial_duals=np.array(duals))
    assert r.cost == matrix[linear_sum_assignment(matrix)].sum()
    assert r.violation <= 1e-12
    assert "initial_duals: too far from the costs" in str(r.route)


def test_a_batch_takes_duals_for_each_problem() -> None:
    rng = np.random.default_rng(0)
    costs = rng.random((2, 3, 12, 12)).astype(np.float32)
    duals = df.linear_assignment(costs).column_duals
    r = df.linear_assignment(costs + np.float32(0.125), initial_duals=duals.astype(np.float32))
    for index in np.ndindex(2, 3):
        assert_proven(costs[index] + np.float32(0.125), one_of(r, index))


@pytest.mark.parametrize(
    ("shape", "duals"),
    [
        ((3, 4), np.zeros(4)),
        ((4, 3), np.zeros(3)),
        ((3, 3), np.zeros(4)),
        ((3, 3), np.zeros((3, 1))),
        ((2, 3, 3), np.zeros(3)),
        ((2, 3, 3), np.zeros((3, 2))),
        ((3, 3), np.array([0, np.nan, 0])),
        ((3, 3), np.array([0, np.inf, 0])),
    ],
)
def test_initial_duals_that_do_not_fit_are_a_value_error(
    shape: tuple[int, ...], duals: Costs
) -> None:
    with pytest.raises(ValueError, match="initial_duals: "):
        df.linear_assignment(np.ones(shape), initial_duals=duals)


# Array libraries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,)])
def test_torch_goes_in_and_comes_out(batch: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    numpy = np.random.default_rng(0).integers(0, 9, size=(*batch, 5, 6))
    expected = bits(df.linear_assignment(numpy.astype(np.float32)))
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
    ):
        r = df.linear_assignment(torch.from_numpy(numpy).to(dtype))
        for field in (r.columns, r.row_duals, r.column_duals):
            assert isinstance(field, torch.Tensor)
        assert r.columns.dtype == torch.int64
        assert r.row_duals.dtype == r.column_duals.dtype == torch.float64
        for field in (r.cost, r.gap, r.violation):
            assert isinstance(field, torch.Tensor if batch else float)
        assert bits(r) == expected
        wide = dtype in (torch.float64, torch.int64, torch.int32)
        assert r.route.dtype == ("float64" if wide else "float32")
    parameter = torch.nn.Parameter(torch.from_numpy(numpy).to(torch.float32))
    assert bits(df.linear_assignment(parameter)) == expected


def test_the_route_tells_device_precision_and_driver() -> None:
    for dtype, precision in [
        (np.float64, "float64"),
        (np.float32, "float32"),
        (np.float16, "float32"),
        (ml_dtypes.bfloat16, "float32"),
        (np.int16, "float32"),
        (np.int32, "float64"),
    ]:
        route = df.linear_assignment(np.eye(4).astype(dtype)).route
        assert (route.device, route.dtype, route.fallbacks) == ("cpu", precision, ())
        assert "shortest augmenting paths" in route.driver


def test_costs_just_apart_in_float32_are_told_apart() -> None:
    """Duals are float64: float32 path lengths would take these for equal."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        step = rng.integers(0, 2, size=(12, 12)).astype(np.float32) * np.float32(2.0**-23)
        costs = np.float32(1) + step
        r = df.linear_assignment(costs)
        assert_proven(costs, r, exact=True)
        assert r.cost == costs[linear_sum_assignment(costs)].astype(float).sum()


# Other threads, Ctrl-C ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(550, 550), (60_000, 12, 12)])
def test_other_threads_run_during_long_assignments(shape: tuple[int, ...]) -> None:
    if len(shape) == 2:
        ranks = np.arange(1.0, shape[0] + 1)
        costs = np.outer(ranks, ranks)
    else:
        costs = np.random.default_rng(0).random(shape)
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    df.linear_assignment(costs)
    elapsed, counted = time.perf_counter() - begin, ticks[0]
    stop.set()
    ticker.join()
    # One tick a millisecond on an idle machine; with the GIL held there would be one or two in all.
    assert elapsed > 0.02
    assert counted >= 8


@pytest.mark.parametrize("problem", ["one", "batch"])
def test_ctrl_c_ends_a_long_assignment(fresh_python: FreshPython, problem: str) -> None:
    fresh_python(
        """
        import os, signal, sys, threading, time
        import numpy as np
        import descramble_fast as df

        if sys.argv[1] == "one":
            costs = np.outer(np.arange(1.0, 3001), np.arange(1.0, 3001))
        else:
            costs = np.broadcast_to(np.random.default_rng(0).random((40, 40)), (2_000_000, 40, 40))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            df.linear_assignment(costs)
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("ran to the end")
        waited = time.monotonic() - begin
        assert waited < 5, f"stopped after {waited} s"
        assert df.linear_assignment(np.eye(3)).cost == 0  # all goes on
        """,
        problem,
        timeout=120,
    )


def test_assignments_in_threads_have_the_bits_of_serial_ones() -> None:
    problems = [ties(np.random.default_rng(k), 60, 60) for k in range(16)]
    solve = partial(df.linear_assignment, maximize=True)
    serial = [bits(solve(costs)) for costs in problems]
    with ThreadPoolExecutor(6) as pool:
        assert [bits(r) for r in pool.map(solve, problems)] == serial


def test_costs_at_the_end_of_float64_are_not_taken_for_forbidden_pairs() -> None:
    big = 1e308
    cost = np.array([[big, 1, 0], [-1.7 * big, -1.7 * big, big], [big, 1.7 * big, big]])
    r = df.linear_assignment(cost)
    least = min(sum(cost[i, p[i]] / big for i in range(3)) for p in permutations(range(3)))
    assert r.cost / big == pytest.approx(least, rel=1e-12)
    assert "scaling" in r.route.fallbacks[0]


@pytest.mark.parametrize("size", [1e3, 1e5, 1e6, 1e12, 1e16, 1e18, 1e300])
def test_duals_that_are_far_off_cost_no_accuracy(size: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cost = rng.random((6, 6))
        r = df.linear_assignment(cost, initial_duals=size * rng.normal(size=6))
        assert r.cost == pytest.approx(df.linear_assignment(cost).cost, rel=1e-12)
        assert abs(r.gap) <= 1e-12
        assert r.violation <= 1e-12
