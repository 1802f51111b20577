"""Quadratic assignments: exact where every order can be tried, near the best known elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import EPS, difference_matrix, orders, quadratic_cost, quadratic_costs, symmetric
from scipy.optimize import quadratic_assignment as scipy_quadratic

import descramble_fast as df

FreshPython = Callable[..., str]
Array = NDArray[np.float64]
Rng = np.random.Generator

QAPLIB = Path(__file__).parent / "data" / "qaplib.npz"
INSTANCES = [
    *(f"nug{name}" for name in (12, 14, "16a", "16b", 17, 18, 20, 21, 22, 24, 25, 27, 28, 30)),
    *(f"rou{n}" for n in (12, 15, 20)),
    *(f"tai{n}a" for n in (12, 15, 17, 20, 25, 30)),
    "sko42",
]


def rounding(A: Array, B: Array) -> float:
    """Error of a sum of n² products."""
    return float(4 * A.size * EPS * np.abs(A).max(initial=0) * np.abs(B).max(initial=0))


def assert_is_cost(A: Array, B: Array, r: df.QuadraticAssignmentResult) -> None:
    """A permutation, and a cost that is its own."""
    columns = np.asarray(r.columns)
    assert columns.dtype == np.int64
    assert sorted(columns.tolist()) == list(range(len(A)))
    assert abs(r.cost - quadratic_cost(A, B, columns)) <= len(A) * rounding(A, B)


def dense(rng: Rng, n: int) -> tuple[Array, Array]:
    return rng.normal(size=(n, n)), rng.normal(size=(n, n))


def both_symmetric(rng: Rng, n: int) -> tuple[Array, Array]:
    return symmetric(n, rng), symmetric(n, rng)


def one_symmetric(rng: Rng, n: int) -> tuple[Array, Array]:
    return symmetric(n, rng), rng.normal(size=(n, n))


def with_ties(rng: Rng, n: int) -> tuple[Array, Array]:
    a, b = rng.integers(-1, 3, size=(2, n, n)).astype(float)
    return a, b


def laplacian(rng: Rng, n: int) -> tuple[Array, Array]:
    """A roughness and a second moment: the barycentre is stationary."""
    D = difference_matrix(n, 1, "periodic")
    x = rng.normal(size=(2 * n, n))
    return D.T @ D, x.T @ x


def sparse(rng: Rng, n: int) -> tuple[Array, Array]:
    """Mostly zeros, beside a matrix with a diagonal that decides."""
    return np.diag(rng.normal(size=n)), rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.3)


FAMILIES = [dense, both_symmetric, one_symmetric, with_ties, laplacian, sparse]


# Quality ------------------------------------------------------------------------------------------


def test_published_instances_come_within_one_percent_of_the_best_known() -> None:
    gaps = {}
    with np.load(QAPLIB) as data:
        for name in INSTANCES:
            A, B = data[name].astype(float)
            best = int(data[f"{name}_best"])
            r = df.quadratic_assignment(A, B)
            assert_is_cost(A, B, r)
            assert r.stopped == "finished"
            assert r.cost >= best  # none better is possible, or known
            gaps[name] = r.cost / best - 1
    assert np.mean(list(gaps.values())) <= 0.01, gaps
    assert max(gaps.values()) <= 0.03, gaps


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_no_order_of_up_to_seven_is_better(
    n: int, family: Callable[[Rng, int], tuple[Array, Array]], maximize: bool
) -> None:
    for seed in range(2):
        A, B = family(np.random.default_rng([n, seed]), n)
        costs = quadratic_costs(A, B)
        r = df.quadratic_assignment(A, B, maximize=maximize)
        assert_is_cost(A, B, r)
        best = costs.max() if maximize else costs.min()
        assert abs(r.cost - best) <= rounding(A, B) * n
        assert abs(r.initial_cost - quadratic_cost(A, B, range(n))) <= rounding(A, B) * n


def test_nothing_is_assigned_at_no_cost() -> None:
    r = df.quadratic_assignment(np.zeros((0, 0)), np.zeros((0, 0)))
    assert r.columns.shape == (0,)
    assert r.cost == r.initial_cost == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_laplacian_does_not_hold_the_search_at_its_start(seed: int) -> None:
    """General solvers start where rows of zero sum make the gradient vanish, and stay."""
    rng = np.random.default_rng(seed)
    n = 30
    D = difference_matrix(n, 2, "periodic")
    L = D.T @ D
    angles = 2 * np.pi * np.arange(n) / n
    x = np.exp(3 * np.cos(angles[:, None] - angles))[:, rng.permutation(n)]
    C = x @ x.T / n  # rows shuffled below, so that both sides are
    shuffle = rng.permutation(n)
    C = C[np.ix_(shuffle, shuffle)]
    r = df.quadratic_assignment(L, C)
    planted = quadratic_cost(L, C, np.argsort(shuffle))
    assert planted < 0.1 * r.initial_cost
    assert abs(r.cost - planted) <= n * rounding(L, C)
    theirs = scipy_quadratic(L, C, options={"rng": np.random.default_rng(seed)})
    assert r.cost < 0.9 * theirs.fun


@pytest.mark.parametrize("n", [20, 40])
def test_isomorphic_matrices_are_laid_on_each_other(n: int) -> None:
    rng = np.random.default_rng(n)
    A, p = rng.normal(size=(n, n)), rng.permutation(n)
    r = df.quadratic_assignment(A, A[np.ix_(p, p)], maximize=True)
    assert (p[r.columns] == np.arange(n)).all()
    assert r.cost == pytest.approx((A * A).sum(), rel=1e-12)


def test_the_convention_is_scipys() -> None:
    rng = np.random.default_rng(0)
    A, B = dense(rng, 6)
    least = orders(6)[np.argmin(quadratic_costs(A, B))]
    r = df.quadratic_assignment(A, B)
    assert r.columns.tolist() == least.tolist()
    held = np.column_stack([np.arange(6), least])
    theirs = scipy_quadratic(A, B, options={"partial_match": held, "rng": rng})
    assert r.cost == pytest.approx(theirs.fun, rel=1e-12)


@pytest.mark.parametrize("maximize", [False, True])
def test_maximising_is_minimising_the_negative(maximize: bool) -> None:
    A, B = dense(np.random.default_rng(0), 15)
    r = df.quadratic_assignment(A, B, maximize=maximize)
    other = df.quadratic_assignment(-A, B, maximize=not maximize)
    assert r.columns.tolist() == other.columns.tolist()
    assert r.cost == -other.cost
    assert (r.cost > r.initial_cost) == maximize


@pytest.mark.parametrize(("a", "b"), [(1e150, 1e150), (1e-200, 1e200), (1e-320, 1.0), (1e305, 1.0)])
def test_scales_at_the_ends_of_the_range(a: float, b: float) -> None:
    A, B = np.random.default_rng(0).integers(0, 4, size=(2, 6, 6)).astype(float)
    best = quadratic_costs(A, B).min()
    r = df.quadratic_assignment(A * a, B * b)
    # Subnormal entries are rounded to multiples of 5e-324.
    assert r.cost == pytest.approx(best * a * b, rel=1e-12 if a > 1e-300 else 1e-3)


# What is given ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_partial_match_is_held_and_the_rest_is_best(
    seed: int, n: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    A, B = dense(rng, n)
    m = data.draw(st.integers(0, n))
    rows, columns = rng.permutation(n)[:m], rng.permutation(n)[:m]
    pairs = np.column_stack([rows, columns])
    r = df.quadratic_assignment(A, B, partial_match=pairs)
    assert_is_cost(A, B, r)
    assert (r.columns[rows] == columns).all()
    agree = (orders(n)[:, rows] == columns).all(axis=1)
    assert abs(r.cost - quadratic_costs(A, B)[agree].min()) <= rounding(A, B) * n


def test_the_order_of_a_partial_match_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    A, B = dense(rng, 14)
    rows, columns = rng.permutation(14)[:5], rng.permutation(14)[:5]
    pairs = [(int(i), int(p)) for i, p in zip(rows, columns, strict=True)]
    results = [
        df.quadratic_assignment(A, B, partial_match=given)
        for given in (pairs, sorted(pairs), pairs[::-1], np.array(pairs), np.array(pairs, np.uint8))
    ]
    for r in results:
        assert (r.columns[rows] == columns).all()
        assert r.columns.tolist() == results[0].columns.tolist()


def test_a_whole_match_leaves_nothing_to_search() -> None:
    A, B = dense(np.random.default_rng(0), 9)
    p = np.random.default_rng(1).permutation(9)
    r = df.quadratic_assignment(A, B, partial_match=np.column_stack([np.arange(9), p]))
    assert r.columns.tolist() == p.tolist()


def test_the_search_starts_from_the_initial_order_and_ends_no_worse() -> None:
    rng = np.random.default_rng(0)
    A, B = both_symmetric(rng, 20)
    good = df.quadratic_assignment(A, B)
    for p in (rng.permutation(20), good.columns, good.columns.tolist()):
        r = df.quadratic_assignment(A, B, initial=p)
        assert abs(r.initial_cost - quadratic_cost(A, B, p)) <= 20 * rounding(A, B)
        assert r.cost <= r.initial_cost
        at_once = df.quadratic_assignment(A, B, initial=p, time_limit=0)
        assert at_once.cost <= r.initial_cost + 20 * rounding(A, B)


# Reproducible -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("default_threads")
def test_the_answer_depends_on_the_arguments_alone() -> None:
    A, B = both_symmetric(np.random.default_rng(0), 25)
    seen = set()
    for threads in (1, 2, 3):
        df.set_num_threads(threads)
        r = df.quadratic_assignment(A, B, seed=5, restarts=3)
        seen.add((tuple(r.columns.tolist()), r.cost, r.steps))
    assert len(seen) == 1


def test_seeds_lead_to_searches_of_their_own() -> None:
    A, B = dense(np.random.default_rng(0), 40)
    found = {
        tuple(
            df.quadratic_assignment(
                A, B, seed=seed, callback=lambda progress: progress.step >= 1000
            ).columns.tolist()
        )
        for seed in range(4)
    }
    assert len(found) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_restarts_never_do_worse_than_the_first_alone(seed: int) -> None:
    A, B = dense(np.random.default_rng(seed), 20)
    one, four = (df.quadratic_assignment(A, B, seed=seed, restarts=k) for k in (1, 4))
    assert four.cost <= one.cost
    assert four.steps > one.steps


# Bounded searches ---------------------------------------------------------------------------------


def test_the_callback_sees_the_cost_fall_to_the_result() -> None:
    A, B = dense(np.random.default_rng(0), 30)
    seen: list[tuple[float, int, int, float]] = []
    r = df.quadratic_assignment(
        A, B, maximize=True, callback=lambda p: seen.append((p.seconds, p.step, p.steps, p.cost))
    )
    assert len(seen) >= 3
    seconds, steps, planned, costs = zip(*seen, strict=True)
    assert list(seconds) == sorted(seconds)
    assert list(steps) == sorted(steps)
    assert all(0 <= step <= plan for step, plan in zip(steps, planned, strict=True))
    assert list(costs) == sorted(costs)  # maximised
    assert costs[0] < costs[-1]
    assert costs[-1] <= r.cost + rounding(A, B) * 30
    assert r.stopped == "finished"


def test_the_callback_can_stop_the_search() -> None:
    A, B = dense(np.random.default_rng(0), 40)
    calls = []

    def third(progress: Any) -> bool:
        calls.append(progress.cost)
        return len(calls) == 3

    r = df.quadratic_assignment(A, B, callback=third)
    assert r.stopped == "callback"
    assert len(calls) == 3
    assert_is_cost(A, B, r)
    assert abs(r.cost - calls[-1]) <= 40 * rounding(A, B)
    assert r.steps < df.quadratic_assignment(A, B).steps


def test_an_error_in_the_callback_comes_out() -> None:
    A, B = dense(np.random.default_rng(0), 20)
    with pytest.raises(ZeroDivisionError):
        df.quadratic_assignment(A, B, callback=lambda _: 1 / 0)


@pytest.mark.parametrize("limit", [0, 0.3])
def test_the_time_limit_is_kept(limit: float) -> None:
    A, B = dense(np.random.default_rng(0), 100)
    begin = time.perf_counter()
    r = df.quadratic_assignment(A, B, restarts=50, time_limit=limit)
    assert time.perf_counter() - begin < limit + 2
    assert r.stopped == "time_limit"
    assert_is_cost(A, B, r)
    assert r.cost <= r.initial_cost


def test_many_restarts_do_not_put_the_first_answer_off() -> None:
    A, B = dense(np.random.default_rng(0), 60)
    one, many = (df.quadratic_assignment(A, B, restarts=k, time_limit=0.4) for k in (1, 300))
    assert one.cost < one.initial_cost - 100 * rounding(A, B)
    # Not as good in as little time, but far from the start.
    assert many.cost - one.initial_cost <= 0.8 * (one.cost - one.initial_cost)


def test_ctrl_c_returns_the_best_so_far(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, signal, threading, time
        import numpy as np
        import descramble_fast as df

        A, B = np.random.default_rng(0).normal(size=(2, 100, 100))
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        r = df.quadratic_assignment(A, B, restarts=200)
        assert time.monotonic() - begin < 8
        assert r.stopped == "interrupted", r.stopped
        assert sorted(r.columns.tolist()) == list(range(100))
        assert abs(r.cost - (A * B[np.ix_(r.columns, r.columns)]).sum()) < 1e-9
        assert r.cost <= r.initial_cost
        assert df.quadratic_assignment(np.eye(3), np.eye(3)).cost == 3  # all goes on
        """
    )


# Arrays, errors -----------------------------------------------------------------------------------


def test_torch_goes_in_and_comes_out() -> None:
    torch = pytest.importorskip("torch")
    A, B = np.random.default_rng(0).integers(0, 9, size=(2, 7, 7)).astype(np.float32)
    expected = df.quadratic_assignment(A, B)
    r = df.quadratic_assignment(
        torch.from_numpy(A), torch.from_numpy(B).to(torch.bfloat16), initial=torch.arange(7)
    )
    assert isinstance(r.columns, torch.Tensor)
    assert r.columns.dtype == torch.int64
    assert r.cost == expected.cost == quadratic_costs(A.astype(float), B.astype(float)).min()
    assert r.route.device == "cpu"


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::-1, ::-1], np.asfortranarray])
def test_any_strides(view: Callable[[Array], Array]) -> None:
    a, b = dense(np.random.default_rng(0), 10)
    A, B = view(a), view(b)
    A.setflags(write=False)
    r = df.quadratic_assignment(A, B)
    assert_is_cost(A, B, r)
    assert r.cost == df.quadratic_assignment(A.copy(), B.copy()).cost


NAN = np.where(np.arange(9).reshape(3, 3) == 5, np.nan, 1.0)
INFINITE = np.where(np.arange(9).reshape(3, 3) == 6, -np.inf, 1.0)


@pytest.mark.parametrize(
    ("A", "B", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 2)), {}, r"A: got shape \(2, 3\)"),
        (np.ones(3), np.ones((3, 3)), {}, r"A: got shape \(3,\)"),
        (np.ones((3, 3)), np.ones((2, 2)), {}, r"B: got shape \(2, 2\), expected \(3, 3\)"),
        (NAN, np.ones((3, 3)), {}, "A: NaN or infinity at row 1, column 2"),
        (np.ones((3, 3)), NAN, {}, "B: NaN or infinity at row 1, column 2"),
        (np.ones((3, 3)), INFINITE, {}, "B: NaN or infinity at row 2, column 0"),
        (np.full((3, 3), 1e200), np.full((3, 3), 1e200), {}, "overflow"),
        (np.eye(3), np.eye(3), {"partial_match": [(0, 3)]}, "partial_match: got 3"),
        (np.eye(3), np.eye(3), {"partial_match": [(-1, 0)]}, "partial_match: got -1"),
        (np.eye(3), np.eye(3), {"partial_match": [(0, 1), (0, 2)]}, "partial_match: got row 0"),
        (np.eye(3), np.eye(3), {"partial_match": [(0, 1), (2, 1)]}, "partial_match: got column 1"),
        (np.eye(3), np.eye(3), {"partial_match": [(0, 1, 2)]}, "partial_match: got shape"),
        (np.eye(3), np.eye(3), {"partial_match": [0, 1]}, "partial_match: got shape"),
        (np.eye(3), np.eye(3), {"initial": [0, 1]}, "initial: got 2"),
        (np.eye(3), np.eye(3), {"initial": [0, 1, 1]}, "initial: got column 1 twice"),
        (np.eye(3), np.eye(3), {"initial": [0, 1, 3]}, "initial: got 3"),
        (
            np.eye(3),
            np.eye(3),
            {"initial": [0, 1, 2], "partial_match": [(0, 1)]},
            "initial: .*partial_match",
        ),
        (np.eye(3), np.eye(3), {"seed": -1}, "seed: got -1"),
        (np.eye(3), np.eye(3), {"restarts": 0}, "restarts: got 0"),
        (np.eye(3), np.eye(3), {"time_limit": -1.0}, "time_limit: got -1"),
        (np.eye(3), np.eye(3), {"time_limit": np.nan}, "time_limit: got "),
    ],
)
def test_what_is_no_problem_is_a_value_error(
    A: Any, B: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        df.quadratic_assignment(A, B, **options)


@pytest.mark.parametrize(
    ("A", "B", "options", "message"),
    [
        ([[1.0]], np.eye(1), {}, "A: .*list"),
        (np.eye(2), np.eye(2, dtype=complex), {}, "B: .*complex128"),
        (np.eye(2), np.eye(2), {"seed": 1.5}, "seed: got 1.5"),
        (np.eye(2), np.eye(2), {"restarts": "two"}, "restarts: got 'two'"),
        (np.eye(2), np.eye(2), {"callback": 3}, "callback: got int"),
        (np.eye(2), np.eye(2), {"initial": [0.0, 1.0]}, "initial: "),
        (np.eye(2), np.eye(2), {"partial_match": [(0.0, 1.0)]}, "partial_match: "),
    ],
)
def test_other_types_are_a_type_error(
    A: Any, B: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        df.quadratic_assignment(A, B, **options)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool"])
def test_integers_are_taken_as_they_are(dtype: str) -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.integers(0, 2 if dtype == "bool" else 9, (6, 6)).astype(dtype) for _ in range(2))
    r = df.quadratic_assignment(A, B)
    wide = df.quadratic_assignment(A.astype(float), B.astype(float))
    assert r.columns.tolist() == wide.columns.tolist()
    p = r.columns
    assert r.cost == np.sum(A.astype(int) * B.astype(int)[np.ix_(p, p)])


def test_integers_beyond_float64_are_refused() -> None:
    A = np.array([[0, 2**53 + 1], [1, 0]])
    with pytest.raises(ValueError, match=r"B: got int64 with magnitudes above 9007199254740992"):
        df.quadratic_assignment(np.eye(2), A)
