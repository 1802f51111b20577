"""DLPack capsules and array interfaces, as targets of the fuzzer, beside plain arrays."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from draws import Draws, expect, target
from numpy.typing import NDArray

import descramble_fast as df

_INT = ctypes.c_int64
_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_API = ctypes.pythonapi
_API.PyCapsule_New.restype = ctypes.py_object
_API.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR]
_API.PyCapsule_IsValid.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
_FREED: list[int] = []
NAMES = (b"dltensor", b"dltensor_versioned", b"used_dltensor", b"used_dltensor_versioned", b"junk")
TYPES = {"<f8": (2, 64), "<f4": (2, 32), "<f2": (2, 16), "bfloat16": (4, 16), "|b1": (6, 8)}
# The memory that all arrays lie in, with room for more than their largest extent on both sides.
_ITEMS, _MIDDLE = 1024, 512


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(_INT)),
        ("strides", ctypes.POINTER(_INT)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _DELETER))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", _DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@_DELETER
def _delete(managed: int) -> None:
    _FREED.append(managed)


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    """Delete what nobody took over, as a producer does."""
    if any(_API.PyCapsule_IsValid(capsule, name) for name in (*NAMES[:2], b"junk")):
        _FREED.append(capsule)


@functools.cache
def _memory(dtype: str) -> NDArray[Any] | None:
    """A row of small numbers; None where a package lacks for their type."""
    values = (np.arange(_ITEMS) % 23 - 7.0).astype(np.float32)
    if dtype != "bfloat16":
        return values.astype(dtype)
    if importlib.util.find_spec("ml_dtypes") is None:
        return None
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16)


def _layout(draws: Draws) -> tuple[list[int], list[int] | None]:
    """A shape and strides within the memory, or a shape that is impossible whatever lies there."""
    shape = [draws.byte() % 4 for _ in range(draws.pick((2, 2, 2, 1, 3, 0, 8, 9)))]
    if draws.one_in(8):
        shape = [draws.pick((2**62, -1, -(2**63), 2**63 - 1, 0, 2**31)), 2**31, *shape[:3]]
    elif draws.one_in(3) and math.prod(shape) <= _ITEMS - _MIDDLE:
        return shape, None
    strides = [draws.byte() % 23 - 11 for _ in shape]
    for axis, length in enumerate(shape):
        if length in (0, 1) or 0 in shape:  # never stepped along
            strides[axis] = draws.pick((1, 0, 2**62 // 8 * 8, -(2**63)))
    return shape, strides


def _plain(memory: NDArray[Any], shape: list[int], strides: list[int] | None) -> Any:
    """The same numbers as NumPy reads them from the memory; None where the shape is impossible."""
    size = math.prod(max(length, 1) for length in shape)
    if len(shape) > 8 or min(shape, default=0) < 0 or size > 2**60:
        return None
    if 0 in shape:
        return np.empty(shape, memory.dtype)
    middle, item = memory[_MIDDLE:], memory.itemsize
    if strides is None:
        return middle[: math.prod(shape)].reshape(shape).copy()
    steps = [item * (s if n > 1 else 0) for s, n in zip(strides, shape, strict=True)]
    return np.ndarray(shape, memory.dtype, memory, _MIDDLE * item, steps).copy()


def _call(draws: Draws) -> Callable[[Any], Any]:
    """A function that reads an array; its outcome in bytes."""

    def update(x: Any) -> Any:
        cov = df.Covariance(2)
        try:
            cov.update(x)
        except BaseException:
            expect(cov.count == 0 and cov.weight == 0, "a refused update left traces")
            raise
        return pickle.dumps(cov._core.state())

    def weigh(x: Any) -> Any:
        return pickle.dumps(df.Covariance(2).update(np.ones((2, 2)), weights=x)._core.state())

    def mask(x: Any) -> Any:
        return pickle.dumps(df.Covariance(2).update(np.ones((2, 2)), mask=x)._core.state())

    def assign(x: Any) -> Any:
        found = df.linear_assignment(x)
        return np.asarray(found.columns).tobytes(), np.asarray(found.cost).tobytes()

    def gather(x: Any) -> Any:
        return pickle.dumps(df.Covariance.from_samples(x)._core.state())

    def moments(x: Any) -> Any:
        return pickle.dumps(df.Covariance.from_moments(x)._core.state())

    return draws.pick((update, update, gather, weigh, mask, assign, moments))


REFUSALS = (TypeError, ValueError, df.BackendError)


def _alike(call: Callable[[Any], Any], array: Any, plain: Any) -> None:
    """Compare with the call on a plain array of the same numbers; None: it must be refused."""
    try:
        got = call(array)
    except Exception as error:
        if str(error) == "odd":  # the array's own
            return
        if not isinstance(error, REFUSALS):
            raise
        # Integers and truth values are converted where a library's name is known alone.
        if plain is None or (isinstance(error, TypeError) and plain.dtype.kind in "biu"):
            return
        try:
            call(plain)
        except REFUSALS as expected:
            same_kind = type(error) is type(expected)
            expect(same_kind, f"{error!r}, of a plain array {expected!r}")
            return
        raise AssertionError(f"{error!r}, of a plain array nothing") from error
    expect(plain is not None, "was taken, expected a refusal")
    expect(got == call(plain), "differs from a plain array")


class _Producer:
    """Exports what it is told to."""

    def __init__(self, export: Callable[[], Any], device: Any) -> None:
        self._export, self._device = export, device

    def __dlpack_device__(self) -> Any:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        return self._export()


@target
def capsules(data: bytes) -> None:
    """DLPack of any type, shape, strides, offset, version and name, beside a plain array."""
    draws = Draws(data)
    dtype = draws.pick(list(TYPES))
    memory, (code, bits), lanes, sound = _memory(dtype), TYPES[dtype], 1, True
    if memory is None:
        return
    shape, strides = _layout(draws)
    call = _call(draws)
    offset, item = draws.byte() % (_MIDDLE + 1), memory.itemsize
    pointer = memory.ctypes.data + (_MIDDLE - offset) * item
    name, major, device, ndim, twist = NAMES[draws.byte() & 1], 1, (1, 0), len(shape), draws.byte()
    if twist == 1:
        code, sound = draws.pick((0, 1, 3, 5, 7, 255)), False
    elif twist == 2:
        bits, sound = draws.pick((0, 1, 4, 128, 255)), False
    elif twist == 3:
        lanes, sound = draws.pick((0, 2, 65535)), False
    elif twist == 4:
        major = draws.pick((0, 2, 2**32 - 1))
        sound = name == NAMES[0] or major == 0
    elif twist == 5:
        name, sound = draws.pick(NAMES[2:]), False
    elif twist == 6:
        device = draws.pick(((1, 5), (3, 0), (0, 0), (7, 0), (-1, 0), (2**31 - 1, 1)))
        sound = device[0] in (1, 3)
    elif twist == 7:
        ndim, sound = draws.pick((-1, -(2**31), 9, 2**31 - 1)), False
    elif twist == 8 and 0 not in shape:
        pointer, offset, sound = 0, offset % 2, False
    elif twist == 9 and item > 1:
        pointer, sound = pointer + 1, False
    managed = _Versioned() if name in (NAMES[1], NAMES[3]) else _Managed()
    managed.deleter = _delete
    if isinstance(managed, _Versioned):
        managed.major, managed.minor, managed.flags = major, draws.byte(), draws.byte()
    count = max(len(shape), 1)
    lengths: Any = (_INT * count)(*shape)
    steps = (_INT * count)(*(strides or ()))
    if twist == 10 and shape:
        lengths, sound = None, False
    managed.tensor = _Tensor(
        pointer,
        *device,
        ndim,
        code,
        bits,
        lanes,
        lengths,
        steps if strides else None,
        offset * item,
    )
    exported = 0

    def export() -> Any:
        nonlocal exported
        exported += 1
        return _API.PyCapsule_New(ctypes.addressof(managed), name, _destroy)

    plain = _plain(memory, shape, strides) if sound else None
    _FREED.clear()
    _alike(call, _Producer(export, device), plain)
    owned = 0 if name in NAMES[2:4] else exported  # else it is another's
    expect(len(_FREED) == owned, f"{len(_FREED)} of {owned} capsules were freed")


class _Odd:
    """An object whose attributes are what they should not be, or raise."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._attributes = attributes

    def __getattr__(self, name: str) -> Any:
        try:
            found = self.__dict__["_attributes"][name]
        except KeyError:
            raise AttributeError(name) from None
        if isinstance(found, Exception):
            raise type(found)("odd")
        return found


ERRORS = (TypeError("odd"), ValueError("odd"), BufferError("odd"), AttributeError("odd"))


@target
def interfaces(data: bytes) -> None:
    """Array interfaces, and objects whose protocols are broken, beside a plain array."""
    draws = Draws(data)
    call = _call(draws)

    def give(thing: Any) -> Callable[..., Any]:
        def function(*_: Any, **__: Any) -> Any:
            if isinstance(thing, Exception):
                raise type(thing)("odd")  # (One alone would gather tracebacks.)
            return thing

        return function

    if draws.one_in(4):
        device, capsule = draws.pick(((1, 0), draws.thing())), draws.thing()
        export = draws.pick((give(capsule), give(draws.pick(ERRORS)), capsule))
        where = draws.pick((give((1, 0)), give(device), give(draws.pick(ERRORS)), device))
        attributes: dict[str, Any] = {"__dlpack__": export, "__dlpack_device__": where}
        for name in ("requires_grad", "dtype", "shape", "is_cuda", "detach"):
            if draws.one_in(8):
                attributes[name] = draws.pick((draws.thing(), draws.pick(ERRORS)))
        _alike(call, _Odd(attributes), None)
        return
    dtype = draws.pick(("<f8", "<f4", "<f2", "|b1", ">f4", "<i8", "<U2", "|V8", "f", "<f3", ""))
    memory = _memory("<f8")
    assert memory is not None
    shape, strides = _layout(draws)
    described: dict[str, Any] = {
        "version": 3,
        "shape": tuple(shape),
        "typestr": dtype,
        "data": (memory.ctypes.data + _MIDDLE * 8, draws.one_in(2)),
        "strides": None if strides is None else tuple(step * 8 for step in strides),
    }
    if strides is not None and max(map(abs, strides), default=0) > 11:
        described["strides"] = tuple(strides)
    for _ in range(draws.byte() % 3):
        key = draws.pick(("version", "shape", "typestr", "data", "strides", "descr", "mask"))
        described[key] = draws.thing()
        if key == "data":  # of other memory NumPy checks nothing, and without it makes some
            described[key] = draws.pick((None, "1", (), (None, False), ("1", False), [1], {}, 1.5))
        elif key == "shape":
            described[key] = draws.pick((None, "1", (None,), 2, [2], (True,), ("1",), {}, (1.5,)))
    name = "__cuda_array_interface__" if draws.one_in(4) else "__array_interface__"
    array = _Odd({name: draws.thing() if draws.one_in(16) else described})
    plain = refused = None
    try:
        plain = np.asarray(array) if name == "__array_interface__" else None
    except Exception as error:  # whatever NumPy raises at it
        refused = type(error)
    if plain is not None and (plain.itemsize > 64 or math.prod(plain.shape) > 1 << 20):
        plain = None  # of more bytes than there can be, which NumPy does not mind in a view
    if plain is not None and all(step % max(1, plain.itemsize) == 0 for step in plain.strides):
        plain = plain.copy() if plain.flags.aligned else plain
    try:
        _alike(call, array, plain)
    except Exception as error:
        if type(error) is not refused:
            raise
