"""Axes of tensors as products and sums of parts that can be reordered, told apart by unification.

An axis is a product of factors, the slowest first: a Linear layer's 384 outputs that are read as 12
heads of 32 are the product (12, 32). A factor is a `Part`, whose entries can stand in any order as
long as all tensors that hold the part follow; or a `Sum` of axes that lie one behind the other, as
the queries, keys and values of a fused projection do. Two axes that an operation lines up are
unified: parts are split, bound to one another, or pinned where no order survives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_ages = itertools.count()


class Part:
    """Entries of an axis that are alike, so that they may be reordered."""

    def __init__(self, size: int, pins: Iterable[str] = (), origin: str = "") -> None:
        self.size = size
        self.age = next(_ages)
        self.bound: Axis | None = None
        self.pins = list(pins)  # reasons why it cannot be reordered
        self.origin = origin  # the operation that told it from other factors


class Sum:
    """Axes one behind the other."""

    def __init__(self, axes: Sequence[Axis], origin: str) -> None:
        self.axes = tuple(axes)
        self.size = sum(map(size, axes))
        self.origin = origin


Factor: TypeAlias = Part | Sum
Axis: TypeAlias = tuple[Factor, ...]
Index: TypeAlias = NDArray[np.int64]


def size(axis: Axis) -> int:
    """Give the number of entries."""
    return math.prod(factor.size for factor in axis)


def new(n: int) -> Axis:
    """Give an axis of which nothing is known."""
    return (Part(n),)


def pinned(n: int, reason: str) -> Axis:
    """Give an axis that cannot be reordered."""
    return (Part(n, [reason]),)


def resolve(axis: Axis) -> Axis:
    """Give the factors as they are known by now, those of size 1 left out."""
    factors: list[Factor] = []
    for factor in axis:
        if isinstance(factor, Part) and factor.bound is not None:
            factor.bound = resolve(factor.bound)
            factors += factor.bound
        elif isinstance(factor, Sum):
            axes: list[Axis] = []
            for part in map(resolve, factor.axes):
                alone = part[0] if len(part) == 1 else None
                axes += alone.axes if isinstance(alone, Sum) else [part]
            factor.axes = tuple(axes)
            factors += axes[0] if len(axes) == 1 else (factor,)
        elif factor.size != 1:
            factors.append(factor)
    return tuple(factors)


def parts(axis: Axis) -> Iterator[Part]:
    """Yield the parts, in sums too."""
    for factor in resolve(axis):
        if isinstance(factor, Part):
            yield factor
        else:
            for one in factor.axes:
                yield from parts(one)


def pin(axis: Axis, reason: str) -> None:
    """Allow no other order of an axis."""
    for part in parts(axis):
        if reason not in part.pins:
            part.pins.append(reason)


def _bind(part: Part, axis: Axis) -> None:
    part.bound = axis
    for reason in part.pins:
        pin(axis, reason)


def unify(left: Axis, right: Axis, origin: str) -> None:
    """Make two axes of the same length one, as the operation `origin` asks."""
    a, b = list(resolve(left)), list(resolve(right))
    while a and b:
        if a[0].size == b[0].size:
            _unify_factors(a.pop(0), b.pop(0), origin)
        else:
            if a[0].size < b[0].size:
                a, b = b, a
            large, small = a[0], b[0].size
            if isinstance(large, Sum):
                a.pop(0)
                if not _unify_sum(large, b, origin):
                    break
            elif small == 0 or large.size % small:
                break
            else:
                _bind(large, (Part(small, origin=origin), Part(large.size // small, origin=origin)))
        a, b = list(resolve(tuple(a))), list(resolve(tuple(b)))
    if size(tuple(a)) != 1 or size(tuple(b)) != 1:
        pin((*left, *right), _mismatch(origin))


def _unify_factors(a: Factor, b: Factor, origin: str) -> None:
    if a is b:
        return
    if isinstance(a, Part) and isinstance(b, Part):
        # The older one stays: chains of bindings remain short.
        younger, older = (a, b) if a.age > b.age else (b, a)
        older.origin = older.origin or younger.origin
        _bind(younger, (older,))
    elif isinstance(a, Part):
        _bind(a, (b,))
    elif isinstance(b, Part):
        _bind(b, (a,))
    else:
        ends = sorted({*_ends(a), *_ends(b)})
        ones, others = split((a,), ends, a.origin), split((b,), ends, b.origin)
        if ones is None or others is None:
            pin((a, b), _mismatch(origin))
            return
        for one, other in zip(ones, others, strict=True):
            unify(one, other, origin)


def _unify_sum(large: Sum, factors: list[Factor], origin: str) -> bool:
    """Unify a sum with the first factors of a product, which are taken away."""
    taken: list[Factor] = []
    while size(tuple(taken)) < large.size:
        factor = factors.pop(0)
        taken.append(factor)
        over = size(tuple(taken)) // large.size
        if over > 1 and isinstance(factor, Part) and factor.size % over == 0:
            slow, fast = Part(factor.size // over), Part(over)
            _bind(factor, (slow, fast))
            taken[-1] = slow
            factors.insert(0, fast)
    pieces = None
    if size(tuple(taken)) == large.size:
        pieces = split(tuple(taken), _ends(large), large.origin)
    if pieces is None:
        pin((large, *taken, *factors), _mismatch(origin))
        factors.clear()
        return False
    for one, other in zip(large.axes, pieces, strict=True):
        unify(one, other, origin)
    return True


def _mismatch(origin: str) -> str:
    return f"{origin} lines them up with entries grouped in another way"


def _ends(total: Sum) -> list[int]:
    return list(itertools.accumulate(map(size, total.axes)))


def split(axis: Axis, ends: Sequence[int], origin: str) -> list[Axis] | None:
    """Cut an axis in pieces that end at `ends`, the last its length; None where it has no cut."""
    factors = resolve(axis)
    if len(ends) == 1:
        return [factors]
    if not factors:
        return None
    first, rest = factors[0], factors[1:]
    m = size(rest)
    if any(end % m for end in ends):
        return None
    cuts = [end // m for end in ends]
    if isinstance(first, Part):
        lengths = [end - start for start, end in itertools.pairwise([0, *cuts])]
        pieces: list[Axis] = [new(length) for length in lengths]
        _bind(first, (Sum(pieces, origin),))
        return [piece + rest for piece in pieces]
    pieces, start, gathered = [], 0, list[Axis]()
    for one in first.axes:
        end = start + size(one)
        inner = [cut for cut in cuts if start < cut <= end]
        local = [cut - start for cut in inner] + (
            [] if inner and inner[-1] == end else [end - start]
        )
        found = split(one, local, origin)
        if found is None:
            return None
        for i, piece in enumerate(found):
            gathered.append(piece)
            if i < len(inner):
                whole = gathered[0] if len(gathered) == 1 else (Sum(gathered, first.origin),)
                pieces.append(whole + rest)
                gathered = []
        start = end
    return pieces


# Orders ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Order:
    """An order of a part, or one for every entry of the parts that stand before it.

    `table` has an axis for each part of `outer` (entries counted in the old order), then the part's
    own: entry ``table[..., i]`` moves to place i.
    """

    outer: tuple[Part, ...]
    table: Index
    layer: str  # whose order it was


Orders: TypeAlias = dict[Part, Order]


def sources(axis: Axis, orders: Mapping[Part, Order]) -> Index:
    """Give the old place of the entry that moves to each place of an axis."""
    found: Index = _sources(axis, orders, {}, 1)[0]
    return found


def _sources(
    axis: Axis, orders: Mapping[Part, Order], before: Mapping[Part, Index], rows: int
) -> Index:
    """Do so once for each of `rows` entries of the axes before it, whose parts are `before`."""
    places: Index = np.zeros(rows, dtype=np.int64)
    outer = dict(before)
    for factor in resolve(axis):
        if isinstance(factor, Sum):
            start, pieces = 0, []
            for one in factor.axes:
                pieces.append(start + _sources(one, orders, outer, len(places)))
                start += size(one)
            old = np.concatenate(pieces, axis=1)
        elif factor in orders:
            order = orders[factor]
            old = order.table[tuple(outer[part] for part in order.outer)]
        else:
            old = np.arange(factor.size)
        old = np.broadcast_to(old, (len(places), factor.size))
        places = (places[:, None] * factor.size + old).ravel()
        outer = {part: np.repeat(index, factor.size) for part, index in outer.items()}
        if isinstance(factor, Part):
            outer[factor] = old.ravel()
    found: Index = places.reshape(rows, -1)
    return found


def factor_order(
    axis: Axis, order: Index, outer: Mapping[Part, tuple[Part, ...]], layer: str
) -> Orders:
    """Find the orders of the parts that make up an order of the whole axis, if there are any.

    `outer` names the parts on which each part's order may depend. What does not factor is left
    wrong: compare `sources` with the order.
    """
    found: Orders = {}
    _factor(axis, order[None], {}, outer, layer, found)
    return found


def _factor(
    axis: Axis,
    order: Index,
    before: Mapping[Part, Index],
    outer: Mapping[Part, tuple[Part, ...]],
    layer: str,
    found: Orders,
) -> None:
    known = dict(before)
    for factor, m in _with_strides(resolve(axis)):
        # Rows: entries of what stands before, at their new places.
        rows = order.reshape(len(order), factor.size, m)
        old = rows[:, :, 0] // m
        order = (rows - (old * m)[:, :, None]).reshape(-1, m)
        if isinstance(factor, Sum):
            start = 0
            for one in factor.axes:
                n = size(one)
                _factor(one, old[:, start : start + n] - start, known, outer, layer, found)
                start += n
        elif factor not in found:
            depends = outer.get(factor, ())
            table = np.full((*(part.size for part in depends), factor.size), -1)
            at = tuple(np.clip(known[part], 0, part.size - 1) for part in depends)
            table[at] = old if depends else old[0]
            if (np.sort(table, axis=-1) == np.arange(factor.size)).all():
                found[factor] = Order(depends, table, layer)
        known = {part: np.repeat(index, factor.size) for part, index in known.items()}
        if isinstance(factor, Part):
            known[factor] = old.ravel()


def _with_strides(axis: Axis) -> Iterator[tuple[Factor, int]]:
    stride = size(axis)
    for factor in axis:
        stride //= factor.size
        yield factor, stride


# On what an order may depend ---------------------------------------------------------------------

Label: TypeAlias = Any
Operand: TypeAlias = Sequence[tuple[Label, Axis]]


def contexts(operand: Operand) -> Iterator[tuple[Part, Label, set[tuple[Part, Label]]]]:
    """Yield each part of a tensor with the parts that every one of its entries stands beside."""
    top = [(label, part) for label, axis in operand for part in _once(resolve(axis))]
    for label, axis in operand:
        yield from _contexts(axis, label, {(part, at) for at, part in top if at != label})


def _once(axis: Axis) -> list[Part]:
    """Give the factors that stand in an axis once; those in it twice cannot be counted by."""
    return [factor for factor in axis if isinstance(factor, Part) and axis.count(factor) == 1]


def _contexts(
    axis: Axis, label: Label, beside: set[tuple[Part, Label]]
) -> Iterator[tuple[Part, Label, set[tuple[Part, Label]]]]:
    factors = resolve(axis)
    here = {(part, label) for part in _once(factors)}
    for factor in factors:
        around = beside | {pair for pair in here if pair[0] is not factor}
        if isinstance(factor, Part):
            yield factor, label, around
        else:
            for one in factor.axes:
                yield from _contexts(one, label, around)


def dependence(
    operations: Iterable[Sequence[Operand]], stored: Iterable[Axis]
) -> dict[Part, tuple[Part, ...]]:
    """Name the parts on which each part's order may depend, so that it is free for each entry.

    They stand beside it, lined up, in every tensor of every operation that holds it, and before it
    in every axis of a parameter (`stored`), which is reordered axis by axis.
    """
    allowed: dict[Part, set[Part]] = {}

    def restrict(part: Part, beside: set[Part]) -> None:
        allowed[part] = allowed[part] & beside if part in allowed else beside

    for axis in stored:
        for part, preceding in _preceding(axis, ()):
            restrict(part, set(preceding))
    for operation in operations:
        aligned: dict[tuple[Part, Label], set[tuple[Part, Label]]] = {}
        for operand in operation:
            for part, label, beside in contexts(operand):
                key = part, label
                aligned[key] = aligned[key] & beside if key in aligned else beside
        for (part, _), beside in aligned.items():
            others = [other for other, _ in beside]
            restrict(part, {other for other in others if others.count(other) == 1})
    ordered: dict[Part, tuple[Part, ...]] = {}
    for part, free in allowed.items():
        ordered[part] = tuple(sorted(free - {part}, key=lambda other: other.age))
    return ordered


def _preceding(axis: Axis, before: tuple[Part, ...]) -> Iterator[tuple[Part, tuple[Part, ...]]]:
    for factor in resolve(axis):
        if isinstance(factor, Part):
            yield factor, tuple(_once(before))
            before = (*before, factor)
        else:
            for one in factor.axes:
                yield from _preceding(one, before)
