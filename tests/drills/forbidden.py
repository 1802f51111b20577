"""Assignments that are barely possible, and some that are not."""

from __future__ import annotations

import re

import numpy as np
from costs import Array, Rng, shuffled
from drill import Tally, drill
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

import descramble_fast as df


def shares(allowed: Array) -> int:
    """Pairs of a largest matching."""
    return int((maximum_bipartite_matching(csr_array(allowed), perm_type="column") >= 0).sum())


def barely(rng: Rng, n: int) -> Array:
    """Allowed pairs with one perfect matching, the diagonal."""
    below = np.tril(rng.random((n, n)) < rng.choice([0.1, 0.5, 1]), -1)
    return np.asarray(below | np.eye(n, dtype=bool))


def too_few(rng: Rng, n: int, m: int) -> Array:
    """Allowed pairs, n <= m, that leave out a row or a column or crowd some rows together."""
    allowed: Array = rng.random((n, m)) < rng.choice([0.3, 0.8, 1])
    kind = int(rng.integers(4)) if n == m else 0
    if kind == 1:
        allowed[:, int(rng.integers(m))] = False
    elif kind == 2:
        allowed = barely(rng, n)
        cut = int(rng.integers(n))
        allowed[cut, cut] = False
    else:
        rows = int(rng.integers(1, n + 1))
        allowed[:rows, rows - 1 :] = False
    return allowed


def pairs_allowed(rng: Rng, n: int, m: int) -> Array:
    kind = int(rng.integers(3))
    if kind == 0:
        return too_few(rng, n, m)
    if kind == 1 and n == m:
        return barely(rng, n)
    return np.asarray(rng.random((n, m)) < (np.log(m) + 1) / m)


@drill(
    "assignment-forbidden",
    "barely possible assignments are found, impossible ones named by problem and a row to blame",
)
def assignment_forbidden(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(2)
    refused = 0
    for trial in range(60_000 if long else 700):
        largest = 12 if trial % 50 else 70 if trial % 500 else 180
        n, m = sorted(int(k) for k in rng.integers(1, largest + 1, size=2))
        n = m if trial % 2 else n
        tall, maximize, problems = bool(rng.integers(2)), bool(rng.integers(2)), trial % 4
        masks = [pairs_allowed(rng, n, m) for _ in range(max(1, problems))]
        allowed = shuffled(rng, np.array(masks))
        allowed = allowed.swapaxes(1, 2) if tall else allowed
        size = float(rng.choice([1.0, 1e300, 1.7e308, 5e-324]))
        whole = rng.integers(-3, 4, size=allowed.shape) / (1 if size < 1 else 3)
        never = -np.inf if maximize else np.inf
        costs = np.where(allowed, whole * size, never)
        where = f"trial {trial}, {costs.shape}, maximize {maximize}, size {size}"
        found = [shares(mask) for mask in allowed]
        bad = [k for k, pairs in enumerate(found) if pairs < n]
        try:
            r = df.linear_assignment(costs if problems else costs[0], maximize=maximize)
        except ValueError as raised:
            refused += 1
            of = rf" of problem {bad[0]}" if bad and problems else ""
            line = "column" if tall and n < m else "row"
            told = re.match(rf"cost: infeasible{of}: {line} (\d+) cannot be assigned", str(raised))
            tally.check(bool(bad and told), f"{where}: {raised}")
            if bad and told:
                # To blame is a line that some largest matching leaves out.
                mask = allowed[bad[0]].T if line == "column" else allowed[bad[0]]
                rest = mask[np.arange(n) != int(told[1])]
                tally.check(len(rest) < n and shares(rest) == found[bad[0]], f"{where}: {raised}")
            continue
        tally.check(not bad, f"{where}: solved, though problem {bad} is impossible")
        all_columns = np.reshape(r.columns, (len(allowed), -1))
        for mask, own, columns in zip(allowed, whole, all_columns, strict=True):
            rows = np.flatnonzero(columns >= 0)
            legal = len(rows) == n == len(set(columns[rows].tolist()))
            tally.check(legal and bool(mask[rows, columns[rows]].all()), f"{where}: {columns}")
            best = own[linear_sum_assignment(np.where(mask, own, never), maximize)].sum()
            same = abs(own[rows, columns[rows]].sum() - best) < 1e-9
            tally.check(bool(same), f"{where}: {columns} is not the best")
    tally.figures["refused"] = f"{refused:,}"
