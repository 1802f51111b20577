"""Kinds of arguments, and what an argument of each must not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from numpy.typing import NDArray
from on_device import host

import descramble_fast as df

HUGE = (2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(2**64))
Bad = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What an argument may be: `wrong` gives what it must not, beside a valid value."""

    wrong: Callable[[Any], Bad]
    optional: bool = False
    dtypes: tuple[Any, ...] = ()  # of arrays that must give the right answer


@dataclass(frozen=True)
class Call:
    """A public function or method. `truth` gives the answer's error over the contract's bound."""

    function: Callable[..., Any]
    kinds: Mapping[str, Kind]
    valid: Mapping[str, Any]
    truth: Callable[[Any, Any, float], float] | None
    owner: Callable[[], Any] | None


def numbers(
    shapes: str,
    *,
    nan: str = "nan inf -inf",
    optional: bool = False,
    integers: bool = False,
    like: NDArray[Any] | None = None,
) -> Kind:
    """Describe an array of real numbers; `shapes` and `nan` name what is refused."""

    def wrong(value: Any) -> Bad:
        value = like if like is not None else value
        yield from inputs.wrong_types(value, integers)
        yield from inputs.wrong_shapes(value, shapes)
        yield from inputs.not_finite(value, tuple(map(float, nan.split())))

    return Kind(wrong, optional, inputs.FLOATING + (inputs.INTEGERS if integers else ()))


def values(*bad: Any, optional: bool = False) -> Kind:
    """Describe an argument that is none of these, and no odd object."""
    odd = [object(), 2j, b"bytes", {}, set(), np.zeros((2, 2)), *([] if optional else [None])]
    return Kind(
        lambda _: ((" ".join(repr(one)[:60].split()), one) for one in [*odd, *bad]), optional
    )


def only(*bad: Any) -> Kind:
    """Describe an argument of which nothing but these can be said to be wrong."""
    return Kind(lambda _: ((" ".join(repr(one)[:60].split()), one) for one in bad), True)


def size(*more: Any, least: int = 1, optional: bool = False, huge: bool = True) -> Kind:
    below = [least - 1, -1, -(10**6)] if least > 0 else [-1]
    parts = ["3", "", 2.0, 2.5, float("nan"), float("inf"), [3], (3,), np.float64(3)]
    return values(*parts, *below, *(HUGE if huge else HUGE[3:]), *more, optional=optional)


def real(*more: Any, optional: bool = False) -> Kind:
    text = ["1", "", [1.0], (1.0,), np.array([1.0, 2.0])]
    extreme = [float("nan"), float("inf"), float("-inf"), 10**400]
    return values(*text, *extreme, *more, optional=optional)


def indices(n: int, *, optional: bool = False, nan: bool = True) -> Kind:
    """Describe a permutation of n."""

    def wrong(value: Any) -> Bad:
        yield from inputs.no_arrays().items()
        order = np.arange(n)
        yield from {
            "repeated": order // 2,
            "short": order[:-1],
            "long": np.arange(n + 1),
            "past the end": order + 1,
            "negative": order - 1,
            "none": order[:0],
            "two axes": order[None],
            "floats": order.astype(float),
            "bools": order > 0,
            "NaN": np.full(n, np.nan),
            "text": order.astype(str),
            "complex": order * 1j,
            "objects": np.array([None] * n),
            "huge": np.full(n, 2**62),
            "past int64": np.full(n, 2**63, np.uint64),
            "list of text": ["a"] * n,
            "ragged": [[0], [1, 2]],
            "nested": [[i] for i in order],
            "None in it": [None, *range(1, n)],
            "far past int64": [10**30, *range(1, n)],
            "masked": np.ma.masked_array(order, order > 2),
            "dates": order.astype("M8[s]"),
            "structured": np.zeros(n, [("a", "i4")]),
        }.items()

    return Kind(wrong, optional)


FLAG = values("yes", "False", "", 0, 1, 2, 0.0, 1.5, float("nan"), [], [True], np.array([True]))
SEED = size(least=0, huge=False)
WORDS = ["", "Canonical", "none", 3, 1.5, True, ["periodic"], ("pre",), "\0", "x" * 1000]
CHOICE = values(*WORDS)
CALLBACK = values("f", 3, 1.5, True, [], optional=True)
LIMIT = real(-1.0, optional=True)
DEVICE = values(
    "",
    "gpu",
    "CPU",
    "cuda:",
    "cuda:x",
    "cuda:-1",
    "cuda:99999999999",
    "cpu:1",
    "meta",
    0,
    1.5,
    True,
    ["cpu"],
    optional=True,
)
BAD_PATHS: tuple[Any, ...] = (
    None,
    3,
    1.5,
    True,
    [],
    object(),
    {},
    "",
    "\0",
    b"\xff\0",
    "/dev/null/file",
)
PATHS = only(*BAD_PATHS, "/nonexistent/folder/file", "/", Path())


def operator(n: int, *more: Any, optional: bool = True) -> Kind:
    fourier = df.operators.fourier
    wrong = ["fourier", 3, True, [], np.eye(n), fourier, df.operators.Operator, fourier(n + 1)]
    return values(*wrong, [fourier(n + 1)], *more, optional=optional)


CALLS: dict[str, Call] = {}


def call(
    name: str,
    kinds: Mapping[str, Kind],
    valid: Mapping[str, Any],
    truth: Callable[[Any, Any, float], float] | None = None,
    owner: Callable[[], Any] | None = None,
) -> None:
    """Register a call by its name after ``df.``; methods act on what `owner` makes.

    What follows a colon tells several of one function apart.
    """
    path = name.partition(":")[0].split(".")
    found: Any = df
    for part in path:
        found = getattr(found, part)
    CALLS[name] = Call(found, kinds, valid, truth, owner)


def error(got: Any, expected: Any, scale: float | None = None) -> float:
    """Largest difference beside the largest expected entry."""
    got, expected = host(got), np.asarray(expected, np.float64)
    if got.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=0)) if scale is None else scale
    return float(np.abs(got - expected).max(initial=0)) / (scale or 1.0)
