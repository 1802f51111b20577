"""Device memory by torch, CuPy or this library alone, so that the same checks run with each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast import _core

from .machine import optional

Array = NDArray[Any]


class NotRunError(Exception):
    """What was asked for cannot be run here; its text is the reason."""


class Arrays:
    """Arrays of one library on one device; of NumPy on the CPU, by which the checks are tested."""

    name = "numpy"
    device = "cpu"

    def put(self, values: Array, dtype: str = "float64") -> Any:
        """Copy numbers there, rounded to `dtype`."""
        return np.ascontiguousarray(values).astype(numpy_dtype(dtype))

    def synchronize(self) -> None:
        """Wait for the device."""

    def release(self) -> None:
        """Give memory that is kept for later back to the device."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        raise NotRunError(f"{self.name} does not tell the device's memory")


class CoreArrays(Arrays):
    """Arrays of this library itself."""

    name = "descramble_fast"
    device = "cuda:0"

    def put(self, values: Array, dtype: str = "float64") -> Any:
        """Copy numbers there, rounded to `dtype`."""
        return _core.DeviceArray.from_numpy(super().put(values, dtype), 0)


class TorchArrays(Arrays):
    """Tensors; on the CPU as well, by which the timings are tested."""

    name = "torch"

    def __init__(self, device: str = "cuda:0") -> None:
        self.torch = optional("torch")
        self.device = device

    def put(self, values: Array, dtype: str = "float64") -> Any:
        """Copy numbers there, rounded to `dtype`."""
        there = self.torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        return there.to(getattr(self.torch, dtype))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def release(self) -> None:
        """Give memory that is kept for later back to the device."""
        if self.device != "cpu":
            self.torch.cuda.empty_cache()
        if (cupy := optional("cupy")) is not None:
            cupy.get_default_memory_pool().free_all_blocks()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        if self.device == "cpu":
            return super().memory()
        free, total = self.torch.cuda.mem_get_info()
        return int(free), int(total)


class CupyArrays(Arrays):
    """CuPy's arrays."""

    name = "cupy"
    device = "cuda:0"

    def __init__(self) -> None:
        self.cupy = optional("cupy")

    def put(self, values: Array, dtype: str = "float64") -> Any:
        """Copy numbers there, rounded to `dtype`."""
        if dtype == "bfloat16":
            raise NotRunError("CuPy has no bfloat16")
        return self.cupy.asarray(np.ascontiguousarray(values).astype(dtype))

    def synchronize(self) -> None:
        """Wait for the device."""
        self.cupy.cuda.Device().synchronize()

    def release(self) -> None:
        """Give memory that is kept for later back to the device."""
        self.cupy.get_default_memory_pool().free_all_blocks()

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)


def available() -> list[Arrays]:
    """All libraries that have the device, the best first.

    torch is asked before this library loads its backend, whose libraries may be torch's.
    """
    found: list[Arrays] = []
    torch, cupy = optional("torch"), optional("cupy")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.init()
        found.append(TorchArrays())
    if cupy is not None and cupy.cuda.is_available():
        found.append(CupyArrays())
    if df.cuda_available():
        found.append(CoreArrays())
    return found


def numpy_dtype(name: str) -> Any:
    """NumPy's data type of that name, bfloat16 included where ml_dtypes is installed."""
    if name != "bfloat16":
        return np.dtype(name)
    ml_dtypes = optional("ml_dtypes")
    if ml_dtypes is None:
        raise NotRunError("NumPy has bfloat16 only with ml_dtypes, which is not installed")
    return np.dtype(ml_dtypes.bfloat16)


def to_numpy(array: Any) -> Array:
    """Any library's array as a NumPy array; bfloat16 and float16 as float32."""
    if hasattr(array, "cpu"):
        here = array.cpu()
        out = (here.float() if str(here.dtype) == "torch.bfloat16" else here).numpy()
    elif hasattr(array, "get"):
        out = array.get()
    else:
        out = array.numpy() if hasattr(array, "numpy") else np.asarray(array)
    return np.asarray(out, np.float32) if out.dtype.itemsize == 2 else np.asarray(out)


def wide(array: Any) -> NDArray[np.float64]:
    """Any library's array in float64."""
    return np.asarray(to_numpy(array), np.float64)


def route_of(result: Any) -> dict[str, Any] | None:
    """Which way a result came about; None for a peer's."""
    if isinstance(result, df.Covariance | df.CrossCovariance):
        return {"device": result.device}
    route = getattr(result, "route", None)
    return None if route is None else asdict(route)
