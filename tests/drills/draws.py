"""What the targets of the fuzzer share: choices that bytes make, and how a fault is told.

A target raises only at a fault. Its bytes are drawn from, so that they get past headers: some make
a file as they are, others its header and its content apart, others a structure of edge cases.
"""

from __future__ import annotations

import atexit
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")
TARGETS: dict[str, Callable[[bytes], None]] = {}
EDGES = (0, 1, 2, 3, -1, -2, 255, 2**15, 2**30, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1)
FLOATS = (0.0, 1.0, -1.0, 0.5, 5e-324, 2.2e-308, 1e154, 1.7e308, -1e308, math.inf, math.nan, 3.0)
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


class Draws:
    """Choices that bytes make; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        """Give the next bytes, or fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def byte(self) -> int:
        taken = self.take(1)
        return taken[0] if taken else 0

    def one_in(self, count: int) -> bool:
        return self.byte() % count == 1

    def pick(self, of: Sequence[Item]) -> Item:
        return of[self.byte() % len(of)]

    def integer(self) -> int:
        kind = self.byte()
        if kind < 192:
            return kind % 6
        if kind < 240:
            return EDGES[kind % len(EDGES)]
        return int.from_bytes(self.take(8), "little", signed=True)

    def number(self) -> float:
        kind = self.byte()
        if kind < 128:
            return kind % 16 - 4.0
        if kind < 224:
            return FLOATS[kind % len(FLOATS)]
        return float(struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0])

    def split(self) -> tuple[bytes, bytes]:
        """Give the rest in two pieces, as two bytes say."""
        at = int.from_bytes(self.take(2), "little")
        return self.take(at), self.rest()

    def thing(self, depth: int = 2) -> Any:
        """Any object of few bytes."""
        kind = self.byte() % (10 if depth else 7)
        if kind < 7:
            simple = (None, True, self.integer(), self.number(), "1", b"1", np.ones(2))
            return simple[kind]
        parts = [self.thing(depth - 1) for _ in range(self.byte() % 4)]
        return {7: list, 8: tuple, 9: lambda p: dict(enumerate(p))}[kind](parts)


def target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    TARGETS[function.__name__] = function
    return function


def same(one: Any, other: Any) -> bool:
    """Bit for bit, in shape and type, too."""
    one, other = np.asarray(one), np.asarray(other)
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and one.tobytes() == other.tobytes()


def expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
