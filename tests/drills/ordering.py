"""Orders of neurons and quadratic assignments beside all that there are."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from costs import (
    EPS,
    Array,
    Rng,
)
from drill import HERE, Tally, drill

import descramble_fast as df

_spec = importlib.util.spec_from_file_location("reference", HERE.parent / "python" / "reference.py")
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

# Orders -------------------------------------------------------------------------------------------

operators = df.operators
ROUGH: dict[str, tuple[Callable[[int], Any], Callable[[int], Array]]] = {
    "fourier": (operators.fourier, lambda n: square(reference.fourier_derivative(n, 2))),
    "path": (
        lambda n: operators.difference(n, 1, "path"),
        lambda n: square(reference.difference_matrix(n, 1, "path")),
    ),
    "ring": (operators.difference, lambda n: square(reference.difference_matrix(n, 1, "periodic"))),
    "path 2": (
        lambda n: operators.difference(n, 2, "path"),
        lambda n: square(reference.difference_matrix(n, 2, "path")),
    ),
    "ring 2": (
        lambda n: operators.difference(n, 2),
        lambda n: square(reference.difference_matrix(n, 2, "periodic")),
    ),
    "central": (
        operators.central_difference,
        lambda n: square(reference.central_difference_matrix(n)),
    ),
    "matrix": (lambda n: operators.from_matrix(any_matrix(n)), lambda n: any_matrix(n)),
}


def square(D: Array) -> Array:
    return np.asarray(D.T @ D)


def any_matrix(n: int) -> Array:
    return square(np.random.default_rng(n).normal(size=(n, n)))


def moments(rng: Rng, n: int) -> Array:
    """Second moments: of all neurons alike, alone, in groups, dead, nearly tied, far from zero."""
    x = rng.normal(size=(int(rng.integers(1, 2 * n + 1)), n))
    kind = int(rng.integers(9))
    if kind == 0:
        return np.eye(n)
    if kind == 1:
        return np.ones((n, n))
    if kind == 2:
        x = x[:1]  # rank one
    elif kind == 3:
        x = x[:, rng.integers(0, min(2, n), size=n)]  # copies of two
    elif kind == 4:
        x[:, rng.random(n) < 0.5] = 0
    elif kind == 5:
        return np.asarray(1 + EPS * square(rng.integers(-1, 2, size=(3, n)).astype(float)))
    elif kind == 6:
        x = x + 1e6
    elif kind == 7:
        x = rng.integers(-1, 2, size=x.shape).astype(float)
    return square(x)


@drill(
    "orders",
    "orders cost what they say, least of all where all are tried, and never less than the bounds",
)
def orders(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(3)
    longest = 0
    for trial in range(2500 if long else 120):
        name = list(ROUGH)[trial % len(ROUGH)]
        n = int(rng.integers(1, 8) if trial % 10 else rng.choice([8, 9, 10, 11, 24]))
        n = n if long or n < 9 else 8
        make, dense = ROUGH[name]
        if n < 3 and name.endswith("2"):
            n = 3
        exponent = int(rng.choice([0, 0, 40, -500, 500, -930, 930]))
        C, L = np.ldexp(moments(rng, n), exponent), dense(n)
        before = C.tobytes()
        cov = df.Covariance.from_moments(C)
        r = df.descramble_permutation(cov, operator=make(n), restarts=1)
        where = f"trial {trial}, {name}, n {n}, 2^{exponent}: {r}"
        tolerance = reference.rounding(L, C)
        p = np.asarray(r.permutation)
        tally.check(sorted(p.tolist()) == list(range(n)), f"{where}: no order")
        own = reference.cost(L, np.eye(n)[p], C)
        tally.check(abs(r.cost - own) <= tolerance, f"{where}: costs {own}")
        first = reference.cost(L, np.eye(n), C)
        tally.check(abs(r.initial_cost - first) <= tolerance, f"{where}: at first {first}")
        tally.check(r.cost <= r.initial_cost + tolerance, f"{where}: worse than it was")
        tally.check(0 <= r.bound <= r.cost and C.tobytes() == before, f"{where}: bound")
        free = reference.best_cost(L, C)
        tally.check(abs(r.bound - free) <= tolerance, f"{where}: bound, not {free}")
        best = None
        if n <= 8:
            best = reference.quadratic_costs(L, C).min()
            tally.check(abs(r.cost - best) <= tolerance, f"{where}: the best order costs {best}")
        elif name in ("path", "ring") and n <= 11:
            best = reference.shortest(reference.squared_distances(C), name == "ring")
            tally.check(r.cost >= best - tolerance, f"{where}: below the best, {best}")
            longest += r.cost > best + tolerance
        if best is not None:
            tally.check(r.bound <= best + tolerance, f"{where}: bound above {best}")
            tree = r.tree_bound is None or r.tree_bound <= best + tolerance
            tally.check(tree, f"{where}: tree bound above {best}")
        if trial % 5 == 0:
            df.set_num_threads(1 + trial % 3)
            again = df.descramble_permutation(cov, operator=make(n), restarts=1)
            df.set_num_threads(0)
            tally.check(np.array_equal(again.permutation, p), f"{where}: another order again")
    tally.figures["not the shortest of 9 to 11"] = str(longest)


def quadratic(rng: Rng, n: int) -> tuple[Array, Array]:
    """Grids and flows like Nugent's, and matrices without a preference, or with a slight one."""
    a, b = rng.integers(-3, 6, size=(2, n, n)).astype(float)
    kind = int(rng.integers(8))
    if kind == 0:
        places = np.arange(n)
        a = (abs(places[:, None] // 3 - places // 3) + abs(places[:, None] % 3 - places % 3)) * 1.0
        b = abs(b + b.T)
    elif kind == 1:
        a, b = np.ones((n, n)), 2**20 + rng.integers(0, 2, size=(n, n)).astype(float)
    elif kind == 2:
        p = rng.permutation(n)
        b = a[np.ix_(p, p)]
    elif kind == 3:
        a = np.outer(a[0], a[-1])
    elif kind == 4:
        a = np.diag(a[0])
    elif kind == 5:
        a = reference.difference_matrix(n, 1, "periodic") if n > 2 else a
    elif kind == 6:
        b = b - b.T
    return a, b


@drill(
    "quadratic-assignment",
    "what it returns costs what it says, holds what is given, and is the best of up to seven",
)
def quadratic_assignment(tally: Tally, long: bool) -> None:
    # A heuristic, but at these sizes it has tried more orders than there are.
    rng = np.random.default_rng(4)
    for trial in range(1200 if long else 24):
        n = int(rng.integers(1, 8))
        a, b = quadratic(rng, n)
        maximize, power = bool(rng.integers(2)), [0, 0, 500, -500, 511][trial % 5]
        sign = -1 if maximize else 1
        m = int(rng.integers(0, n + 1)) if trial % 2 else 0
        rows, columns = rng.permutation(n)[:m], rng.permutation(n)[:m]
        pairs = np.column_stack([rows, columns])
        every = reference.orders(n)
        agree = (every[:, rows] == columns).all(axis=1)
        costs = reference.quadratic_costs(a, b)  # of small integers: exact
        best = sign * (sign * costs[agree]).min()
        start = every[agree][int(rng.integers(agree.sum()))] if trial % 3 == 0 else None
        restarts = 1 + trial % 2
        A, B = np.ldexp(a, power), np.ldexp(b, -power if trial % 4 else 0)
        scale = power if trial % 4 == 0 else 0
        kept = A.tobytes() + B.tobytes()
        r = df.quadratic_assignment(
            *(A, B),
            maximize=maximize,
            partial_match=pairs,
            initial=start,
            restarts=restarts,
            seed=trial,
        )
        where = f"trial {trial}, n {n}, maximize {maximize}, given {pairs.tolist()}"
        where += f", 2^{power}, A {a.tolist()}, B {b.tolist()}: {r}"
        p = np.asarray(r.columns)
        tally.check(sorted(p.tolist()) == list(range(n)), f"{where}: no order")
        tally.check(bool((p[rows] == columns).all()), f"{where}: not as given")
        own = reference.quadratic_cost(a, b, p)
        tally.check(math.ldexp(r.cost, -scale) == own, f"{where}: costs {own}")
        tally.check(own == best, f"{where}: the best is {best}")
        if start is not None or not m:
            first = reference.quadratic_cost(a, b, range(n) if start is None else start)
            tally.check(math.ldexp(r.initial_cost, -scale) == first, f"{where}: first {first}")
        tally.check(A.tobytes() + B.tobytes() == kept, f"{where}: changed its input")
