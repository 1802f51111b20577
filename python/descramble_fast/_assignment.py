"""Linear and quadratic assignment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from descramble_fast import _core
from descramble_fast._arrays import (
    Array,
    Kind,
    Route,
    beside,
    dtype_name,
    flag,
    integer,
    numbers,
    on_host,
    real,
)

Progress = Callable[[_core.SearchProgress], object]


@dataclass(frozen=True, eq=False)
class LinearAssignmentResult:
    """Optimal assignments with the duals that prove them.

    For one problem, shape (n, m), `cost`, `gap` and `violation` are numbers; for a batch, arrays.

    Attributes
    ----------
    columns : array of int64, (..., n)
        The column assigned to each row; -1 for a row left out, where n > m.
    cost : float or array, (...)
        Total cost of the assigned pairs, float64.
    row_duals, column_duals : array, (..., n) and (..., m)
        u and v: minimising, u_i + v_j ≤ cost_ij, with equality on assigned pairs (≥ where
        maximised); 0 for a row or column left out. All to rounding.
    gap : float or array, (...)
        `cost` less the sum of all duals (its negative where maximised): 0 to rounding, and exactly
        0 for integer costs (from integer duals, where there are initial ones).
    violation : float or array, (...)
        The largest amount by which an inequality of the duals fails: 0 to rounding. With `gap`, the
        certificate that no assignment is better.
    route : Route
        Device, precision of the costs, driver and fallbacks.
    """

    columns: Array
    cost: Any
    row_duals: Array
    column_duals: Array
    gap: Any
    violation: Any
    route: Route


def linear_assignment(
    cost: Array, *, maximize: bool = False, initial_duals: Array | None = None
) -> LinearAssignmentResult:
    """Assign rows to columns at the least (or greatest) total cost, exactly.

    min(n, m) pairs are assigned, no row or column twice. The method is that of Jonker and Volgenant
    (Computing 38, 1987): bids, then shortest augmenting paths, here on short lists of each row's
    cheapest columns that are extended where their bound does not suffice. A batch is spread over
    threads.

    Parameters
    ----------
    cost : array, (..., n, m)
        float32 and float64 are read as they are, with float64 duals and path lengths; float16 and
        bfloat16 are copied to float32; integers (and bool) up to 2⁵³/min(n, m) in magnitude are
        copied, by way of the host, to floating numbers that hold them, and give exact answers.
        Infinity forbids a pair
        (minus infinity where maximised). The last axis should be contiguous, and n ≤ m; otherwise a
        copy is made.
    maximize : bool
        Find the greatest total instead.
    initial_duals : array, (..., m), optional
        Column duals of an earlier, similar problem, for n = m: a warm start. The optimum does not
        depend on them; which of several equal ones is found may.

    Returns
    -------
    LinearAssignmentResult
        Arrays in the library of `cost`. Among equal optima the answer is the same for every
        instruction set, thread count and batch.

    Raises
    ------
    TypeError
        If `cost` is no array of real numbers.
    ValueError
        For a shape without two axes; NaN, or an infinity that does not forbid, named by problem,
        row and column; integers that are too large; a problem without an assignment that avoids the
        forbidden pairs; initial duals of another shape, or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> r = df.linear_assignment(np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
    >>> r.columns.tolist(), r.cost, r.gap
    ([1, 0, 2], 5.0, 0.0)
    """
    kind = Kind.of(cost)
    columns, total, u, v, gap, violation, route = _core.linear_assignment(
        _floating("cost", cost, None), flag("maximize", maximize), initial_duals
    )
    single = columns.ndim == 1
    return LinearAssignmentResult(
        columns=kind.out(columns),
        cost=float(total) if single else kind.out(total),
        row_duals=kind.out(u),
        column_duals=kind.out(v),
        gap=float(gap) if single else kind.out(gap),
        violation=float(violation) if single else kind.out(violation),
        route=Route._of(route),
    )


def _floating(argument: str, array: Array, limit: int | None) -> Array:
    """Integers and booleans as floating numbers that hold them; `limit` None: and their sums."""
    if getattr(getattr(array, "dtype", None), "kind", "") == "f":
        return array  # NumPy's names take longer than a small problem
    if isinstance(array, np.ma.MaskedArray):
        return array  # to be refused: its mask must not be lost in a copy
    name = dtype_name(array)
    if name != "bool" and not name.startswith(("int", "uint")):
        return array
    integers = on_host(array)
    if limit is None and name in ("bool", "int8", "uint8", "int16", "uint16"):
        return beside(array, integers.astype(np.float32))
    most = 2**53 // max(1, min(integers.shape[-2:], default=1)) if limit is None else limit
    if integers.size and max(int(integers.max()), -int(integers.min())) > most:
        why = "2^53 / min(n, m), for which sums are exact" if limit is None else "2^53"
        raise ValueError(
            f"{argument}: got {name} with magnitudes above {most}, expected at most {why}; "
            "divide them, or convert to float64 and accept rounding"
        )
    return beside(array, integers.astype(np.float64))


@dataclass(frozen=True, eq=False)
class QuadraticAssignmentResult:
    """A permutation with a small (or large) quadratic cost.

    Attributes
    ----------
    columns : array of int64, (n,)
        p: row i of A goes with row and column p_i of B.
    cost : float
        Σ A_ij B_{p_i p_j}.
    initial_cost : float
        The same at `initial`, or at the identity.
    steps : int
        Steps of the search that were made.
    stopped : {"finished", "time_limit", "callback", "interrupted"}
        Why the search ended.
    route : Route
        Device, precision and driver.
    """

    columns: Array
    cost: float
    initial_cost: float
    steps: int
    stopped: str
    route: Route


def quadratic_assignment(
    A: Array,
    B: Array,
    *,
    maximize: bool = False,
    partial_match: Array | Sequence[tuple[int, int]] | None = None,
    initial: Array | Sequence[int] | None = None,
    seed: int = 0,
    restarts: int = 1,
    time_limit: float | None = None,
    callback: Progress | None = None,
) -> QuadraticAssignmentResult:
    """Find a permutation p with a small Σ_ij A_ij B_{p_i p_j}.

    Frank and Wolfe's method on doubly stochastic matrices with exact line search (FAQ: Vogelstein
    et al., PLOS ONE 10, 2015), then swaps with O(1) updates of their gains: descent where the
    problem is large, robust tabu search (Taillard, Parallel Computing 17, 1991) up to n of about
    1000. Where rows and columns of A or B sum to zero, the barycentre that FAQ usually starts from
    is stationary; a concave shift and another start take its place. A heuristic: the problem is
    NP-hard.

    Parameters
    ----------
    A, B : array, (n, n)
        Any floating type, or integers (and bool), which are copied to float64; symmetric or not.
        The convention is SciPy's.
    maximize : bool
        Find a large value instead.
    partial_match : array of int or sequence of pairs, (m, 2), optional
        Pairs (i, p_i) that are given, in any order.
    initial : array of int or sequence, (n,), optional
        The permutation that the first restart starts from.
    seed : int
        Of the searches' random choices. Without a time limit the answer depends on the arguments
        alone.
    restarts : int
        Independent starts, run in parallel; below n = 256 each is four short searches.
    time_limit : float, optional
        Seconds, after which the best so far is returned.
    callback : callable, optional
        Called between steps with an object of attributes ``seconds``, ``step``, ``steps`` and
        ``cost`` (the best so far); a true answer stops the search. So does Ctrl-C, and the best so
        far is returned.

    Returns
    -------
    QuadraticAssignmentResult

    Raises
    ------
    TypeError, ValueError
        For arrays of other types or shapes, NaN or infinity, a partial match or start that is no
        (partial) permutation.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> A = np.array([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    >>> p = [2, 0, 1]
    >>> B = A[np.ix_(p, p)]
    >>> r = df.quadratic_assignment(A, B, maximize=True)
    >>> r.columns.tolist(), r.cost, float(np.sum(A * A))
    ([1, 2, 0], 28.0, 28.0)
    """
    kind = Kind.of(A, B)
    pairs = [] if partial_match is None else _pairs(partial_match)
    start = None if initial is None else _start(initial)
    columns, cost, initial_cost, steps, stopped, route = _core.quadratic_assignment(
        _floating("A", A, 2**53),
        _floating("B", B, 2**53),
        flag("maximize", maximize),
        pairs,
        start,
        *search_options(seed, restarts, time_limit, callback),
    )
    return QuadraticAssignmentResult(
        kind.out(columns), cost, initial_cost, steps, stopped, Route._of(route)
    )


def search_options(
    seed: int, restarts: int | None, time_limit: float | None, callback: Progress | None
) -> tuple[int, int, float | None, Progress | None]:
    """Check what bounds a search; restarts of None become 0."""
    number = integer("seed", seed)
    if number < 0:
        raise ValueError(f"seed: got {number}, expected at least 0")
    count = 0 if restarts is None else integer("restarts", restarts)
    if restarts is not None and count < 1:
        raise ValueError(f"restarts: got {count}, expected at least 1")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {type(callback).__name__}, expected a callable")
    limit = None if time_limit is None else real("time_limit", time_limit)
    return number, count, limit, callback


def _start(initial: Array | Sequence[int]) -> list[int]:
    order = numbers("initial", initial, "integers")
    if order.ndim != 1:
        raise ValueError(f"initial: got shape {order.shape}, expected (n,)")
    return [integer("initial", p) for p in order]


def _pairs(partial_match: Array | Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if isinstance(partial_match, Sequence) and len(partial_match) == 0:
        return []
    pairs = numbers("partial_match", partial_match, "integers")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"partial_match: got shape {pairs.shape}, expected (m, 2)")
    return [(integer("partial_match", i), integer("partial_match", p)) for i, p in pairs]
