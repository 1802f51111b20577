"""A CUDA device, or the emulated one, for drills that also run on the host."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from drill import Tally
from numpy.typing import NDArray

from descramble_fast import _core

TYPES = ("bool", "int64", "float16", "bfloat16", "float32", "float64")


def put(x: NDArray[Any]) -> Any:
    """Copy to the device, but for element types that its arrays do not have."""
    return _core.DeviceArray.from_numpy(x) if x.dtype.name in TYPES else x


def host(array: Any) -> NDArray[Any]:
    """Any result as NumPy's."""
    if isinstance(array, _core.DeviceArray):
        return np.asarray(array.numpy())
    if hasattr(array, "get"):  # CuPy's
        array = array.get()
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if "bfloat16" in str(array.dtype) else array
    return np.asarray(array)


def solves(function: Any) -> Any:
    """Have a function take its first argument on the device, and its result brought back."""
    return lambda a, **options: Hosted(function(put(a), **options))


class Hosted:
    """A result whose arrays are NumPy's."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._result, name)
        return host(value) if isinstance(value, _core.DeviceArray) else value


def count_places(tally: Tally, route: Any) -> None:
    """Keep as figures where answers came from."""
    remarks = ["with remarks"] if route.fallbacks else []
    for what in (f"on {route.device.partition(':')[0]}", *remarks):
        tally.figures[what] = f"{int(tally.figures.get(what, '0').replace(',', '')) + 1:,}"


class Full:
    """The device's memory, taken by others."""

    def __init__(self) -> None:
        self._large: list[Any] = []
        self._small: list[Any] = []

    def __enter__(self) -> Full:
        # The emulated device has the host's; here it is told how much that is.
        os.environ["EMULATED_CUDA_MEMORY"] = str(1 << 26)
        self._take(self._large, 1 << 30, 1 << 30)
        return self

    def relent(self) -> None:
        """Give back up to 1 GiB."""
        self._small.clear()

    def leave(self, free: int) -> None:
        """Take all but so many bytes."""
        self.relent()
        spare = put(np.empty(free, np.bool_))
        self._take(self._small, 1 << 29, 1 << 12)
        del spare

    def taken(self) -> int:
        """How many bytes that is."""
        return sum(each.shape[0] for each in self._large + self._small)

    def __exit__(self, *_: object) -> None:
        self._small.clear()
        self._large.clear()
        del os.environ["EMULATED_CUDA_MEMORY"]

    @staticmethod
    def _take(taken: list[Any], size: int, least: int) -> None:
        while size >= least:
            try:
                taken.append(put(np.empty(size, np.bool_)))
            except MemoryError:
                size >>= 1
