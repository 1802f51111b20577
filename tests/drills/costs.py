"""Costs that were made to lead assignments astray, and what is exactly right of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Rng = np.random.Generator
EPS = 2.0**-52

# Integers -----------------------------------------------------------------------------------------
# Batches (count, n, m) of integers of magnitude up to `top`.


def products(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    """Machol and Wien's, and others of their kind: Monge arrays, whose optimum is in order."""
    _, n, m = shape
    i, j = np.arange(1, n + 1)[:, None], np.arange(1, m + 1)
    kinds = [i * j, (i - j) ** 2, np.minimum(i, j) + 0 * i * j, abs(i - j), (i + j) ** 2, i * j * j]
    base = np.asarray(kinds[rng.integers(len(kinds))])
    factor = max(1, top // int(base.max(initial=1)))
    return np.asarray(np.clip(base * factor, 0, top) * np.ones(shape, dtype=np.int64))


def powers(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    """Geometric progressions: 2 to powers that add up along rows and columns, or are drawn."""
    _, n, m = shape
    most = max(1, top.bit_length() - 1)
    sums = (np.arange(n)[:, None] * int(rng.integers(1, 4)) + np.arange(m)) % most
    return 2 ** np.where(rng.random() < 0.5, sums, rng.integers(0, most, size=shape))


def plane(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    """Squared distances of lattice points."""
    side = max(1, math.isqrt(top // 2))
    a, b = (rng.integers(0, side + 1, size=(shape[0], k, 2)) for k in shape[1:])
    return np.asarray(((a[:, :, None] - b[:, None]) ** 2).sum(axis=-1))


def extremes(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    """The largest magnitudes and their neighbours, and zeros."""
    some = [s * max(0, top - k) for s in (-1, 1) for k in range(3)] + [0]
    weights = rng.random(len(some)) ** 3
    return rng.choice(some, size=shape, p=weights / weights.sum())


def near_ties(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    """One unit, the last bit where `top` is large, between the best and the second best."""
    return top - rng.integers(0, 1 + min(top, int(rng.integers(1, 4))), size=shape)


def ties(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    return rng.integers(0, min(top, int(rng.integers(0, 3))), size=shape, endpoint=True)


def rank_one(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    side = math.isqrt(top)
    a, b = (rng.integers(-side, side + 1, size=(shape[0], k)) for k in shape[1:])
    return np.asarray(a[:, :, None] * b[:, None])


def uniform(rng: Rng, shape: tuple[int, int, int], top: int) -> Array:
    return rng.integers(-top, top + 1, size=shape)


Costs = Callable[[Rng, tuple[int, int, int], int], Array]
FAMILIES: tuple[Costs, ...] = (
    *(products, powers, plane, extremes),
    *(near_ties, ties, rank_one, uniform),
)


def shuffled(rng: Rng, costs: Array) -> Array:
    """Rows and columns of each problem in another order."""
    for axis in (1, 2):
        shape = [len(costs), 1, 1]
        shape[axis] = costs.shape[axis]
        costs = np.take_along_axis(costs, rng.random(shape).argsort(axis=axis), axis=axis)
    return costs


# Proofs -------------------------------------------------------------------------------------------


def proof(costs: Array, columns: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Of a batch, minimised: is it an assignment; its cost; what its duals lack of a proof.

    In the numbers of the costs and duals. Infinite where a dual that must be 0 is not.
    """
    count, n, m = costs.shape
    at = np.arange(count)
    taken = np.zeros((count, m + 1), dtype=int)
    np.add.at(taken, (at[:, None], columns), 1)
    legal = (taken[:, :m] <= 1).all(axis=1) & (taken[:, :m].sum(axis=1) == min(n, m))
    chosen = np.take_along_axis(costs, np.maximum(columns, 0)[:, :, None], axis=2)[:, :, 0]
    placed = columns >= 0
    total = np.where(placed, chosen, 0).sum(axis=1)
    slack = costs - u[:, :, None] - v[:, None, :]
    own = np.where(
        placed, np.take_along_axis(slack, np.maximum(columns, 0)[:, :, None], 2)[..., 0], 0
    )
    lack = np.maximum(-slack.min(axis=(1, 2), initial=0), abs(own).max(axis=1, initial=0))
    longer = u if n > m else v if m > n else u[:, :0]
    lack = np.maximum(lack, longer.max(axis=1, initial=0))
    stray = ((u != 0) & ~placed).any(axis=1) | ((v != 0) & (taken[:, :m] == 0)).any(axis=1)
    return legal, total, np.where(stray, np.inf, lack)


def best_of_all(whole: Array) -> Array:
    """Of a batch of integers, minimised, from all orders."""
    whole = whole if whole.shape[1] <= whole.shape[2] else whole.swapaxes(1, 2)
    _, n, m = whole.shape
    totals = [whole[:, range(n), p].sum(axis=1) for p in permutations(range(m), n)]
    return np.asarray(np.min(totals, axis=0))


def bits(r: Any) -> list[bytes]:
    """Of each problem of a batch."""
    fields = (r.columns, r.cost, r.row_duals, r.column_duals, r.gap, r.violation)
    return [b"".join(np.asarray(f)[k].tobytes() for f in fields) for k in range(len(r.columns))]


# Floats ---


def as_integer(x: float) -> int:
    """A finite number as a multiple of the smallest subnormal."""
    numerator, denominator = float(x).as_integer_ratio()
    return numerator * (2**1074 // denominator)


def as_integers(x: Array) -> Array:
    """The same of an array, as Python's integers."""
    whole = np.empty(x.size, dtype=object)
    whole[:] = [as_integer(y) for y in x.ravel()]
    return whole.reshape(x.shape)


def least_total(costs: list[list[int]]) -> int:
    """Of an assignment of all rows, by shortest augmenting paths in exact arithmetic."""
    n, m = len(costs), len(costs[0])
    u, v, owner = [0] * n, [0] * (m + 1), [-1] * (m + 1)
    beyond = 1 + 4 * (n + m) * max(abs(x) for row in costs for x in row)
    for row in range(n):
        owner[m], here = row, m
        far, way, done = dict.fromkeys(range(m), beyond), [m] * m, [m]
        while owner[here] >= 0:
            i = owner[here]
            for j in far:
                reduced = costs[i][j] - u[i] - v[j]
                if reduced < far[j]:
                    far[j], way[j] = reduced, here
            step = min(far.values())
            for j in done:
                u[owner[j]] += step
                v[j] -= step
            far = {j: d - step for j, d in far.items()}
            here = next(j for j, d in far.items() if d == 0)
            del far[here]
            done.append(here)
        while here != m:
            owner[here], here = owner[way[here]], way[here]
    return sum(costs[owner[j]][j] for j in range(m) if owner[j] >= 0)


def distances(rng: Rng, n: int, m: int) -> Array:
    a, b = rng.random((n, 1, 2)), rng.random((m, 2))
    return np.asarray(np.sqrt(((a - b) ** 2).sum(axis=-1)) * 10.0 ** rng.integers(-9, 10))


def progressions(rng: Rng, n: int, m: int) -> Array:
    ratio = float(rng.choice([0.5, 1.1, 3, 10, 1e-3, 1e7, -2]))
    return ratio ** (np.arange(n)[:, None] * float(rng.integers(1, 4)) + np.arange(m))


def last_bits(rng: Rng, n: int, m: int) -> Array:
    units = rng.integers(2**52, 2**53 - 4) + rng.integers(0, 1 + rng.integers(1, 4), size=(n, m))
    return np.asarray(np.ldexp(units * rng.choice([-1.0, 1.0]), int(rng.integers(-1074, 900))))


def cancelling(rng: Rng, n: int, m: int) -> Array:
    return rng.choice([1e300, -1e300, 1e284, 1.0, -1.0, 0.0, 1e-300], size=(n, m))


def subnormal(rng: Rng, n: int, m: int) -> Array:
    return rng.integers(-(2 ** rng.integers(1, 45)), 3, size=(n, m)) * 5e-324


def all_magnitudes(rng: Rng, n: int, m: int) -> Array:
    return np.asarray(10 ** rng.uniform(-300, 300, size=(n, m)) * rng.choice([-1, 1], size=(n, m)))


def sums_of_both(rng: Rng, n: int, m: int) -> Array:
    """Of any order almost the same total."""
    a, b = rng.normal(size=(n, 1)), rng.normal(size=m)
    return np.asarray((a + b) * 1e8 + rng.random((n, m)) * 10.0 ** rng.integers(-9, 1))


def tenths(rng: Rng, n: int, m: int) -> Array:
    return np.asarray(rng.integers(0, 9, size=(n, m)) / rng.choice([10, 7, 3e-5]))


def ends(rng: Rng, n: int, m: int) -> Array:
    return np.asarray(rng.choice([-1.0, 1.0, 0.5, 0.99], size=(n, m)) * 1.7e308)


def penalties(rng: Rng, n: int, m: int) -> Array:
    """Small costs, and large ones in place of forbidden pairs."""
    allowed = (rng.random((n, m)) < 0.3) | np.eye(n, m, dtype=bool)
    return np.where(allowed, rng.random((n, m)), 10.0 ** rng.integers(2, 300))


ROUNDED = (
    *(distances, progressions, last_bits, cancelling, subnormal, all_magnitudes),
    *(sums_of_both, tenths, ends, penalties),
)
