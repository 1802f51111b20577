"""Arrays in kind: results come back in the library of the first array that was seen."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from descramble_fast import _core

# NumPy, torch, CuPy and JAX arrays share no base class; what is accepted is checked at run time.
Array: TypeAlias = Any
Floats: TypeAlias = NDArray[np.float64]

_CUDA_DEVICES = (2, 13)  # DLPack's numbers of CUDA memory, plain and managed


@dataclass(frozen=True)
class Route:
    """How a result came about.

    Attributes
    ----------
    device : str
        Where it was computed, e.g. ``"cpu"``.
    dtype : str
        Working precision.
    driver : str
        The routine whose answer was taken.
    fallbacks : tuple of str
        Routines that were tried before it, with the reason why each was refused.
    """

    device: str
    dtype: str
    driver: str
    fallbacks: tuple[str, ...]

    @classmethod
    def _of(cls, route: _core.Route) -> Route:
        return cls(route.device, route.dtype, route.driver, tuple(route.fallbacks))


class Kind:
    """An array library and a device; NumPy on the CPU until an array has been seen."""

    def __init__(self) -> None:
        self._namespace: Any = None
        self._cuda: int | None = None  # the device's number

    @classmethod
    def of(cls, *arrays: Array) -> Kind:
        """Kind of the first of these that is an array."""
        kind = cls()
        for array in arrays:
            kind.see(array)
        return kind

    def see(self, array: Array) -> None:
        """Remember the library of `array`, unless one is known already."""
        if self._namespace is not None or self._cuda is not None or isinstance(array, type):
            return
        if isinstance(array, np.ndarray):
            self._namespace = np
            return
        if array_api_compat.is_array_api_obj(array):
            self._namespace = array_api_compat.array_namespace(array)
        # (torch says it sooner than by DLPack.)
        if getattr(array, "is_cuda", True) and hasattr(array, "__dlpack_device__"):
            kind, number = array.__dlpack_device__()
            self._cuda = operator.index(number) if kind in _CUDA_DEVICES else None

    def adopt(self, other: Kind) -> None:
        """Remember another's library, unless one is known already."""
        if self._namespace is None and self._cuda is None:
            self._namespace, self._cuda = other._namespace, other._cuda

    def out(self, array: NDArray[Any] | _core.DeviceArray) -> Array:
        """Hand an array of the core out in this kind, sharing its memory where the library can.

        A library that cannot hold its precision gets the NumPy array itself, with a warning; where
        no library is known, device memory comes as the core's own array.
        """
        if self._namespace is np:
            return array
        if isinstance(array, _core.DeviceArray):
            return array if self._namespace is None else self._namespace.from_dlpack(array)
        if self._cuda is not None:
            there = _core.DeviceArray.from_numpy(array, self._cuda)
            return there if self._namespace is None else self._namespace.from_dlpack(there)
        if self._namespace is None:
            return array
        out = self._namespace.asarray(array)
        if dtype_name(out) == array.dtype.name:
            return out
        warnings.warn(
            f"{self._namespace.__name__} would hold this {array.dtype} result as {out.dtype}; it "
            "comes as a NumPy array instead (for JAX, enable jax_enable_x64)",
            stacklevel=3,
        )
        return array

    def __reduce__(self) -> tuple[type[Kind], tuple[()]]:
        return Kind, ()


def on_host(array: Array) -> NDArray[Any]:
    """Any array as a NumPy array, copied where it lies on a device."""
    if isinstance(array, _core.DeviceArray):
        return np.asarray(array.numpy())
    if array_api_compat.is_torch_array(array):
        # NumPy takes neither gradients, nor lazily negated views, nor bfloat16.
        array = array.detach().resolve_conj().resolve_neg().cpu()
        array = array.float() if dtype_name(array) == "bfloat16" else array
    elif array_api_compat.is_cupy_array(array):
        array = array_api_compat.to_device(array, "cpu")
    elif hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
        array = np.from_dlpack(array)
    return np.asarray(array)


def beside(array: Array, made: NDArray[Any]) -> Array:
    """Bring a NumPy array to the CUDA device that `array` lies on, if it does."""
    device = Kind.of(array)._cuda
    return made if device is None else _core.DeviceArray.from_numpy(made, device)


def integer(argument: str, value: Any) -> int:
    """Check a size: TypeError where it is no integer, ValueError beyond 64 bits."""
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{argument}: got {value!r} ({kind}), expected an integer") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{argument}: got {number}, expected 64 bits at most")
    return number


def shape_of(argument: str, array: Array) -> tuple[int, ...]:
    """Shape of an array; TypeError for what has none, or none of plain numbers."""
    try:
        return tuple(operator.index(length) for length in array.shape)
    except Exception:  # a nested tensor raises anything
        kind = type(array).__name__
        raise TypeError(f"{argument}: got {kind}, expected an array") from None


def flag(argument: str, value: Any) -> bool:
    """Check a switch: TypeError where it is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"{argument}: got {value!r} ({type(value).__name__}), expected True or False"
        )
    return bool(value)


def real(argument: str, value: Any) -> float:
    """Check a number: TypeError where it is no real one, ValueError where it is not finite."""
    try:
        if isinstance(value, (str, bytes)) or getattr(value, "shape", ()) != ():
            raise TypeError
        number = float(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{argument}: got {value!r} ({kind}), expected a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{argument}: got {number}, expected a finite number")
    return number


def one_of(argument: str, value: Any, *choices: str) -> str:
    """Check a word: ValueError where it is none of the choices."""
    if not (isinstance(value, str) and value in choices):
        quoted = [f'"{choice}"' for choice in choices]
        listing = " or ".join([", ".join(quoted[:-1]), quoted[-1]])
        raise ValueError(f"{argument}: got {value!r}, expected {listing}")
    return value


def file_path(argument: str, value: Any) -> str:
    """Check a path: TypeError where it is none, ValueError where no file can have it."""
    try:
        path = os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{argument}: got {type(value).__name__}, expected a path") from None
    if not path or "\0" in path:
        raise ValueError(f"{argument}: got {path!r}, expected the path of a file")
    return path


def listed(argument: str, value: Any, what: str) -> list[Any]:
    """Check a sequence: TypeError where it is none."""
    try:
        if isinstance(value, (str, bytes, Mapping, Set)):
            raise TypeError
        return list(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{argument}: got {kind}, expected a sequence of {what}") from None


_KINDS = {"bool": "b", "integers": "iu", "real numbers": "biuf"}


def numbers(argument: str, value: Any, what: str = "real numbers") -> NDArray[Any]:
    """Give an array or nested lists of numbers as a NumPy array; TypeError for others."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{argument}: got a masked array, expected one without a mask")
    try:
        found = on_host(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, say
        kind = type(value).__name__
        raise TypeError(f"{argument}: got {kind}, expected an array of {what}") from None
    known = found.dtype.kind in _KINDS[what]
    if not (known or (what == "real numbers" and found.dtype.name == "bfloat16")):
        got = type(value).__name__ if found.ndim == 0 else f"dtype {found.dtype}"
        raise TypeError(f"{argument}: got {got}, expected an array of {what}")
    return found


@contextlib.contextmanager
def called(**names: str) -> Iterator[None]:
    """Let errors speak of the caller's arguments: those of the core on the left hand."""
    try:
        yield
    except (TypeError, ValueError, MemoryError, _core.BackendError) as error:
        argument, colon, rest = str(error).partition(":")
        if argument not in names:
            raise
        raise type(error)(f"{names[argument]}{colon}{rest}") from None


def dtype_name(array: Array) -> str:
    """Name of an array's element type as NumPy spells it; "unknown" where it does not say."""
    return str(getattr(array, "dtype", "unknown")).rpartition(".")[2]
