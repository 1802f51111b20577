"""What users pass: arrays of every library, element type and layout, and what is none of them."""

from __future__ import annotations

import array
import datetime
import mmap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import on_device
from numpy.typing import NDArray

try:
    import torch
except ModuleNotFoundError:
    torch = None
try:
    import cupy
except ModuleNotFoundError:
    cupy = None
try:
    import dask.array as dask_array
except ModuleNotFoundError:
    dask_array = None

Make = Callable[[NDArray[Any]], Any]
FLOATING: tuple[Any, ...] = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
INTEGERS: tuple[Any, ...] = (np.int8, np.uint8, np.int32, np.int64, np.uint64, np.bool_)


class Subclass(np.ndarray[Any, Any]):
    """An array that is none of NumPy's own."""


class DLPackOnly:
    """A producer that has nothing but the protocol."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


class InterfaceOnly:
    """A producer of the older protocol."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__


def spread(x: NDArray[Any], axis: int, step: int) -> NDArray[Any]:
    """Every `step`-th entry of something wider along an axis; negative: from its end."""
    shape = list(x.shape)
    shape[axis] *= abs(step)
    wide = np.full(shape, 77).astype(x.dtype)
    part: list[Any] = [slice(None)] * x.ndim
    part[axis] = slice(None, None, step)
    view = wide[tuple(part)]
    view[...] = x
    return view


def mapped(x: NDArray[Any]) -> NDArray[Any]:
    """Memory of the system's, not of NumPy's."""
    memory = mmap.mmap(-1, max(1, x.nbytes))
    memory[: x.nbytes] = x.tobytes()
    return np.frombuffer(memory, x.dtype, x.size).reshape(x.shape)


def read_only(x: NDArray[Any]) -> NDArray[Any]:
    y = x.copy()
    y.setflags(write=False)
    return y


def forms(dims: int) -> dict[str, Make]:
    """Ways to hold the same numbers in NumPy's memory, for arrays of so many axes."""
    found: dict[str, Make] = {
        "contiguous": np.ascontiguousarray,
        "Fortran order": np.asfortranarray,
        "read-only": read_only,
        "subclass": lambda x: x.view(Subclass),
        "memory-mapped": mapped,
        "DLPack": lambda x: x if x.dtype == ml_dtypes.bfloat16 else DLPackOnly(x),
        "array interface": lambda x: x if x.dtype == ml_dtypes.bfloat16 else InterfaceOnly(x),
    }
    for axis in range(dims):
        found[f"every third of axis {axis}"] = lambda x, axis=axis: spread(x, axis, 3)
        found[f"axis {axis} backwards"] = lambda x, axis=axis: spread(x, axis, -1)
        found[f"every second of axis {axis} backwards"] = lambda x, axis=axis: spread(x, axis, -2)
    if dims == 2:
        found["np.matrix"] = np.matrix
    return found


def tensor(x: NDArray[Any]) -> Any:
    """Copy into torch."""
    if x.dtype == ml_dtypes.bfloat16:
        return torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(x)


def leading(t: Any) -> Any:
    """A strided view with an offset."""
    wide = torch.full((t.shape[0] + 2, *(2 * s for s in t.shape[1:])), 77).to(t)
    view = wide[(slice(1, -1), *(slice(1, None, 2) for _ in t.shape[1:]))]
    view.copy_(t)
    return view


def tensors(dims: int) -> dict[str, Make]:
    """The same in torch."""
    if torch is None:
        return {}

    class Subtensor(torch.Tensor):
        """A tensor that is none of torch's own."""

    def inference(x: NDArray[Any]) -> Any:
        with torch.inference_mode():
            return tensor(x).clone()

    found: dict[str, Make] = {
        "torch": tensor,
        "torch with an offset": lambda x: leading(tensor(x)),
        "torch of inference mode": inference,
        "torch subclass": lambda x: tensor(x).as_subclass(Subtensor),
    }
    if dims >= 2:
        found["torch transposed"] = lambda x: tensor(np.ascontiguousarray(x.T)).permute(
            *reversed(range(x.ndim))
        )
    signed: dict[str, Make] = {
        "torch negated view": lambda x: torch._neg_view(-tensor(x)),
        "torch leaf with gradient": lambda x: tensor(x).requires_grad_(),
        "torch with history": lambda x: tensor(x).requires_grad_() * 1,
        "torch parameter": lambda x: torch.nn.Parameter(tensor(x)),
        "torch imaginary part of a conjugate": lambda x: (
            torch.complex(torch.zeros_like(tensor(x)), -tensor(x)).conj().imag
            if x.dtype in (np.float32, np.float64)
            else tensor(x)
        ),
    }
    for name, make in signed.items():
        found[name] = lambda x, make=make: make(x) if x.dtype.kind in "fV" else tensor(x)
    return found


def all_forms(dims: int) -> dict[str, Make]:
    return forms(dims) | tensors(dims)


def device_forms() -> dict[str, Make]:
    """Ways to hold the same numbers on a CUDA device."""
    found: dict[str, Make] = {"own": on_device.put}
    if torch is not None and torch.cuda.is_available():
        found["torch"] = lambda x: tensor(x).cuda()
        found["torch strided"] = lambda x: leading(tensor(x).cuda())
        found["torch leaf"] = lambda x: (
            tensor(x).cuda().requires_grad_() if x.dtype.kind in "fV" else tensor(x).cuda()
        )
    if cupy is not None:
        found["CuPy"] = lambda x: (
            on_device.put(x) if x.dtype == ml_dtypes.bfloat16 else cupy.asarray(x)
        )
    return found


def no_arrays() -> dict[str, Any]:
    """Things that are no array of numbers."""
    return {
        "text": "text", "bytes": b"bytes", "3": 3, "3.0": 3.0, "NaN": float("nan"), "2j": 2j,
        "object()": object(), "dict": {}, "set": {1.0}, "generator": (float(i) for i in range(3)),
        "function": len, "class": np.ndarray, "NotImplemented": NotImplemented,
        "date": datetime.date(2025, 1, 1), "True": True,
    }  # fmt: skip


def wrong_types(x: NDArray[Any], integers: bool) -> Iterator[tuple[str, Any]]:
    """The same numbers as elements that are not read, or in memory that is not."""
    f = x.astype(np.float64)
    yield from no_arrays().items()
    yield "list", f.tolist()
    yield "tuple", tuple(f.ravel())
    yield "memoryview", memoryview(np.ascontiguousarray(f))
    yield "array.array", array.array("d", f.ravel())
    yield "list of arrays", list(f)
    if dask_array is not None:
        yield "Dask array", dask_array.from_array(f)
    yield "big-endian", f.astype(">f8")
    yield "big-endian float32", f.astype(">f4")
    yield "object", f.astype(object)
    kinds: list[Any] = [np.complex64, np.complex128, "U8", "S8", "M8[s]", "m8[s]"]
    kinds += [np.longdouble, ml_dtypes.float8_e4m3fn, *([] if integers else [ml_dtypes.int4])]
    for kind in kinds + ([] if integers else list(INTEGERS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first = f.astype(np.int64) if str(kind)[:2] in ("M8", "m8") else f
            yield f"dtype {np.dtype(kind).name}", first.astype(kind)
    yield "structured", np.zeros(x.shape, [("a", "f4"), ("b", "f4")])
    yield "void", np.zeros(x.shape, "V8")
    yield "masked", np.ma.masked_array(x, np.zeros(x.shape, bool))
    unaligned = np.zeros(f.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(f.shape)
    unaligned[...] = f
    yield "unaligned", unaligned
    if torch is not None:
        yield from wrong_tensors(f, integers)


def wrong_tensors(f: NDArray[np.float64], integers: bool) -> Iterator[tuple[str, Any]]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    t = torch.tensor(f)
    yield "torch sparse", t.to_sparse()
    yield "torch meta", t.to("meta")
    yield "torch complex", t.to(torch.complex64)
    yield "torch conjugate", t.to(torch.complex128).conj()
    yield "torch float8", t.to(torch.float8_e4m3fn)
    yield "torch mkldnn", t.float().to_mkldnn() if t.ndim and t.numel() else t.to("meta")
    with FakeTensorMode() as mode:
        yield "torch fake", mode.from_tensor(t)
    if not integers:
        yield "torch integers", t.to(torch.int64)
        yield "torch bool", t.to(torch.bool)
    with warnings.catch_warnings():  # beta, or on their way out
        warnings.simplefilter("ignore")
        yield "torch quantized", torch.quantize_per_tensor(t.float(), 0.5, 0, torch.qint8)
        if f.ndim == 2:
            yield "torch CSR", t.to_sparse_csr()
        if f.ndim >= 2:
            yield "torch nested", torch.nested.nested_tensor(list(t))
            yield "torch jagged", torch.nested.nested_tensor(list(t), layout=torch.jagged)


def wrong_shapes(x: NDArray[Any], which: str) -> Iterator[tuple[str, Any]]:
    """Arrays of other shapes; `which` names those that must be refused."""
    changes: dict[str, Make] = {
        "scalar": lambda x: x.ravel()[0].reshape(()),
        "short": lambda x: x[..., :-1],
        "long": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
        "low": lambda x: x[:-1],
        "high": lambda x: np.concatenate([x, x[:1]]),
        "flat": lambda x: x.ravel(),
        "deep": lambda x: x[None],
        "empty": lambda x: x[:0],
        "none": lambda x: x[..., :0],
    }
    for name in which.split():
        yield (
            f"shape {name}",
            np.ascontiguousarray(changes[name](x)) if name != "scalar" else (changes[name](x)),
        )


def not_finite(x: NDArray[Any], values: tuple[float, ...]) -> Iterator[tuple[str, Any]]:
    """One bad number in the last place, or in the first."""
    for dtype in FLOATING:
        for value in values:
            for place in (0, -1):
                y = x.astype(dtype).copy()
                y.reshape(-1)[place] = value
                yield f"{value} in entry {place}, {np.dtype(dtype).name}", y
