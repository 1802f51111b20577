"""Linear and quadratic assignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from descramble_fast import _core
from descramble_fast._arrays import Array, Kind, Route, dtype_name


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
        0 for integer costs.
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
        copied to floating numbers that hold them, and give exact answers. Infinity forbids a pair
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
        For a shape without two axes; NaN, or an infinity that does not forbid, named by problem, row
        and column; integers that are too large; a problem without an assignment that avoids the
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
        _floating(cost), bool(maximize), initial_duals
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


def _floating(cost: Array) -> Array:
    """Integers and booleans as the narrowest floating numbers that hold them and their sums."""
    name = dtype_name(cost)
    if name != "bool" and not name.startswith(("int", "uint")):
        return cost
    integers = np.asarray(cost)
    if name in ("bool", "int8", "uint8", "int16", "uint16"):
        return integers.astype(np.float32)
    limit = 2**53 // max(1, min(integers.shape[-2:], default=1))
    if integers.size and max(int(integers.max()), -int(integers.min())) > limit:
        raise ValueError(
            f"cost: got {name} with magnitudes above {limit}, expected at most 2^53 / min(n, m), "
            "for which sums are exact; divide them, or convert to float64 and accept rounding"
        )
    return integers.astype(np.float64)
