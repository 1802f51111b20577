"""Arrays on each device that tests run on, by each protocol that carries them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np
import pytest
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast import _core

try:
    import torch
except ModuleNotFoundError:
    torch = None
try:
    import cupy
except ModuleNotFoundError:
    cupy = None


class CudaInterfaceOnly:
    """A producer of the CUDA array interface; `step` > 1: of every step-th row and column.

    What is named in `said` is said instead.
    """

    def __init__(self, array: NDArray[Any], step: int = 1, **said: Any) -> None:
        spread = np.zeros(tuple(step * length for length in array.shape), array.dtype)
        spread[(slice(None, None, step),) * array.ndim] = array
        self.owner = _core.DeviceArray.from_numpy(spread)
        self.step, self.shape, self.dtype, self.said = step, array.shape, array.dtype, said

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        whole = dict(self.owner.__cuda_array_interface__)
        return whole | {
            "shape": self.shape,
            "strides": tuple(self.step * stride for stride in whole["strides"]),
            "stream": 1,
            **self.said,
        }


Put = Callable[[NDArray[Any]], Any]


_cuda = pytest.mark.skipif(not df.cuda_available(), reason=df.show_config("dict")["cuda"])
# Ways to bring an array to a device.
WAYS: list[Any] = [
    pytest.param(np.asarray, id="cpu"),
    pytest.param(_core.DeviceArray.from_numpy, id="cuda-dlpack", marks=_cuda),
]
if torch is not None and torch.cuda.is_available():
    WAYS.append(
        pytest.param(lambda array: torch.from_dlpack(array).cuda(), id="torch", marks=_cuda)
    )
if cupy is not None:
    WAYS.append(pytest.param(cupy.asarray, id="cupy", marks=_cuda))
on_cuda = _cuda


def host(array: Any) -> NDArray[Any]:
    """Any result as a NumPy array."""
    if isinstance(array, _core.DeviceArray):
        return array.numpy()
    if array_api_compat.is_array_api_obj(array):
        array = array_api_compat.to_device(array, "cpu")
    return np.asarray(array)
