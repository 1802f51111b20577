"""Files on disk: arrays read in rows, and content that replaces another in one step."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import urllib.parse
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import safetensors
from numpy.typing import NDArray

from descramble_fast._arrays import file_path

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where what killed writers left is not told from the rest
    fcntl = None  # type: ignore[assignment]

FLOATING = ("float16", "BF16", "float32", "float64")

_SAFETENSORS = {"F16": "float16", "F32": "float32", "F64": "float64"}
_ZARR = ("zarr.json", ".zarray", ".zgroup")
# A chunk of at most so many bytes is read whole, lest it be unpacked more than once.
_LARGEST_CHUNK = 1 << 27
_LONGEST_HEADER = 10_000


class FileError(ValueError):
    """A file that cannot be used; the message names the file, what came and what was expected."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let whatever the formats' libraries raise at a file be a FileError that names it."""
    try:
        yield
    except (FileError, MemoryError):
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # broken bytes get them to raise anything
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileError(f"{path}: no readable {_format(path)}: {text}") from error


def printable(path: str | os.PathLike[str]) -> str:
    """Give a path as text that can be encoded, its bytes that are no UTF-8 in hexadecimal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def panics_refused() -> Iterator[None]:
    """Let what safetensors raises where Python has no memory for a result be a MemoryError."""
    try:
        yield
    except BaseException as error:  # which no handler of Exception would see
        if type(error).__name__ != "PanicException":
            raise
        raise MemoryError(f"safetensors: {error}") from error


def _format(path: Path) -> str:
    if path.is_dir():
        return "Zarr folder"
    if path.suffix in (".npy", ".npz"):
        return "NumPy file"
    return "state dict" if path.suffix in (".pt", ".pth") else "safetensors file"


class Rows(Protocol):
    """The rows of a stored array, one after another."""

    def read_into(self, out: NDArray[Any]) -> None:
        """Fill `out`, (rows, n), with the next rows."""

    def close(self) -> None:
        """Let the file go."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredArray:
    """An array in a file, read in rows: its last axis holds n neurons, all others count samples.

    Attributes
    ----------
    path : Path
        The file, or the folder of a Zarr array.
    name : str
        Within the file; ``"array"`` where it holds only one without a name.
    shape : tuple of int
    dtype : str
        As NumPy spells it, and as the file does where NumPy has no such type: bfloat16 is ``BF16``.
    step : int
        Rows that are best read together, from a multiple of it.
    whole : bool
        Whether nothing less than the whole array can be read.
    open : callable
        Gives the rows from one on.
    beside : callable
        Bytes, at most, that reading so many bytes of rows takes beside them.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    open: Callable[[int], Rows]
    step: int = 1
    whole: bool = False
    beside: Callable[[int], int] = lambda _: 0

    @property
    def n(self) -> int:
        """Length of the last axis."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Number of samples."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return self.n * self.element.itemsize

    @property
    def element(self) -> np.dtype[Any]:
        """Its element type in NumPy; FileError where there is none, or a package is missing."""
        if self.dtype != "BF16":
            try:
                return np.dtype(self.dtype)
            except TypeError:  # NumPy does not read all the names that it gives
                raise FileError(
                    f"{self.path}: {self.name} is {self.dtype}, expected numbers"
                ) from None
        try:
            import ml_dtypes
        except ModuleNotFoundError:
            raise FileError(
                f"{self.path}: {self.name} is bfloat16, which needs: pip install ml_dtypes"
            ) from None
        element: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return element

    def read(self) -> NDArray[Any]:
        """Read the whole array, in its shape and type."""
        element = self.element
        with reading(self.path):
            out = np.empty((self.rows, self.n), dtype=element)
            with contextlib.closing(self.open(0)) as rows:
                rows.read_into(out)
            return out.reshape(self.shape)

    def fingerprint(self) -> str:
        """Tell the file from what it is after a change: by size, time, first and last bytes."""
        digest = hashlib.blake2b(f"{self.name} {self.shape} {self.dtype}".encode(), digest_size=16)
        if self.path.is_dir():
            for path in sorted(self.path.rglob("*")):
                status = path.stat()
                part = path.relative_to(self.path).as_posix()
                digest.update(f"\n{part} {status.st_size} {status.st_mtime_ns}".encode())
            return digest.hexdigest()
        with open(self.path, "rb") as file:
            status = os.fstat(file.fileno())
            digest.update(f"\n{status.st_size} {status.st_mtime_ns}\n".encode())
            digest.update(file.read(1 << 16))
            file.seek(max(0, status.st_size - (1 << 16)))
            digest.update(file.read(1 << 16))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """What a file holds: its arrays by name, and the words beside them."""

    name: str
    arrays: Mapping[str, StoredArray]
    metadata: Mapping[str, str]


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in _ZARR)


def open_arrays(path: Path) -> ArrayFile:
    """Find the arrays in a .npy, .npz or safetensors file or a Zarr folder; contents stay there.

    Raises FileError where there is no such file, or it is something else. Nothing in a file is ever
    executed.
    """
    if path.is_dir() and not is_zarr(path):
        raise FileError(f"{path}: is a folder, expected a file")
    if not path.exists():
        raise FileError(f"{path}: no such file")
    with reading(path):
        if path.is_dir():
            return _zarr_arrays(path)
        if path.suffix == ".npy":
            return _npy_array(path)
        if path.suffix == ".npz":
            return _npz_arrays(path)
        return _safetensors_arrays(path)


def _npy_array(path: Path) -> ArrayFile:
    with open(path, "rb") as file:
        array = _numpy_array(path, "array", file, path.stat().st_size)
    return ArrayFile(printable(path.name), {"array": array}, {})


def _npz_arrays(path: Path) -> ArrayFile:
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
                begin = _content_of(member, file)
                file.seek(begin)
                end = min(begin + member.file_size, path.stat().st_size)
                arrays[name] = _numpy_array(path, name, file, end)
            else:
                with archive.open(member) as packed:
                    arrays[name] = _numpy_array(
                        path, name, packed, member.file_size, member.filename
                    )
    return ArrayFile(printable(path.name), arrays, {})


def _content_of(member: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Where a stored member's bytes begin: after a header that repeats the name."""
    file.seek(member.header_offset)
    header = file.read(30)
    if not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"{member.filename} is not where the directory says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + 30 + lengths


def _numpy_array(
    path: Path, name: str, file: IO[bytes], end: int, packed: str | None = None
) -> StoredArray:
    """Describe the array whose header `file` is at, and which ends before `end`.

    `packed`: its member, where compressed.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        # NumPy refuses long headers, too, but only once it has read them.
        length = int.from_bytes(file.read(4), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{name} has a header of {length} bytes")
        file.seek(-4, os.SEEK_CUR)
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"{name} has format version {version}, expected 1.0 or 2.0")
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, expected numbers")
    begin = file.tell()
    # (NumPy's own reader takes negative lengths and truth values here.)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{name} has shape {shape}")
    if math.prod(shape) * dtype.itemsize > end - begin:
        raise ValueError(
            f"{name} {shape} {dtype} is cut short: got {end - begin} bytes, expected "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    row_bytes = (shape[-1] if shape else 1) * dtype.itemsize

    def rows(start: int) -> Rows:
        if packed is None and fortran:
            # Opened anew for every block, so that no more than a block's pages stay mapped.
            return _Sliced(
                lambda: np.memmap(path, dtype, "r", begin, shape, order="F"), shape, start
            )
        if packed is None:
            return _Raw(path, begin + start * row_bytes)
        if fortran:
            whole = _whole_member(path, packed)
            return _Sliced(lambda: whole, shape, start)
        return _Packed(path, packed, begin + start * row_bytes)

    return StoredArray(
        path=path,
        name=name,
        shape=tuple(shape),
        dtype=dtype.name if dtype.isnative else dtype.str,
        open=rows,
        step=max(1, math.prod(shape[1:-1])) if fortran else 1,
        whole=packed is not None and fortran,
        # Pages come in sixteens, for every column its own.
        beside=lambda _: math.prod(shape[1:]) << 16 if fortran else 0,
    )


def _whole_member(path: Path, member: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _safetensors_arrays(path: Path) -> ArrayFile:
    with panics_refused(), safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata() or {})
    # The header was checked by the library, which does not say where a tensor begins.
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))
    arrays = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            dtype, shape = tensor["dtype"], tuple(tensor["shape"])
            first, last = tensor["data_offsets"]
            begin, row_bytes = 8 + length + first, (last - first) // max(1, math.prod(shape[:-1]))

            def rows(start: int, begin: int = begin, row_bytes: int = row_bytes) -> Rows:
                return _Raw(path, begin + start * row_bytes)

            dtype = _SAFETENSORS.get(dtype, dtype)
            arrays[name] = StoredArray(path=path, name=name, shape=shape, dtype=dtype, open=rows)
    return ArrayFile(printable(path.name), arrays, metadata)


def _zarr_arrays(path: Path) -> ArrayFile:
    try:
        import zarr
    except ModuleNotFoundError:
        raise FileError(f"{path}: Zarr needs: pip install zarr") from None
    root: Any = zarr.open(path, mode="r")
    alone = hasattr(root, "chunks")
    found = {"array": root} if alone else dict(_members(root))
    arrays = {}
    for name, array in found.items():
        codecs = (
            *(getattr(array.metadata, "filters", None) or ()),
            getattr(array.metadata, "compressor", None),
        )
        if any(getattr(codec, "codec_id", None) == "pickle" for codec in codecs):
            raise ValueError(f"{name} is pickled, which could execute anything")
        shape = tuple(array.shape)
        together = math.prod(shape[1:-1])
        chunk = array.chunks[0] if shape else 1
        chunk_bytes = chunk * math.prod(shape[1:]) * array.dtype.itemsize
        if chunk_bytes > _LARGEST_CHUNK:
            chunk = 1

        def rows(start: int, array: Any = array, shape: tuple[int, ...] = shape) -> Rows:
            return _Sliced(lambda: array, shape, start)

        def beside(read: int, chunk_bytes: int = chunk_bytes) -> int:
            return 3 * max(read, chunk_bytes)  # packed, unpacked and joined

        arrays[name] = StoredArray(
            path=path if alone else path / name,
            name=name,
            shape=shape,
            dtype=array.dtype.name,
            open=rows,
            step=max(1, chunk * together),
            beside=beside,
        )
    return ArrayFile(printable(path.name), arrays, {})


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    """Give the arrays of a Zarr group and its subgroups by their paths in it."""
    for name, array in group.arrays():
        yield name, array
    for name, inner in group.groups():
        for path, array in _members(inner):
            yield f"{name}/{path}", array


class _Raw:
    """Rows that lie in a file as they are."""

    def __init__(self, path: Path, position: int) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115
        self._file.seek(position)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), position, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, out: NDArray[Any]) -> None:
        _fill(self._path, self._file, out)

    def close(self) -> None:
        self._file.close()


class _Packed:
    """Rows in a compressed member of a zip archive; those before the first are unpacked, too."""

    def __init__(self, path: Path, member: str, position: int) -> None:
        self._path = path
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(member)
        self._file.seek(position)

    def read_into(self, out: NDArray[Any]) -> None:
        _fill(self._path, self._file, out)

    def close(self) -> None:
        self._file.close()
        self._archive.close()


class _Sliced:
    """Rows of something that is sliced along its first axis."""

    def __init__(self, array: Callable[[], Any], shape: tuple[int, ...], start: int) -> None:
        self._array = array
        self._shape = shape
        self._next = start

    def read_into(self, out: NDArray[Any]) -> None:
        if not out.size:  # of no length along some axis, which nothing can be divided by
            return
        if len(self._shape) < 2:
            out[:] = self._array()[...]
            return
        together = math.prod(self._shape[1:-1])
        first, stop = self._next, self._next + len(out)
        begin = first // together
        part = np.asarray(self._array()[begin : -(-stop // together)]).reshape(-1, out.shape[1])
        out[:] = part[first - begin * together :][: len(out)]
        self._next = stop

    def close(self) -> None:
        pass


def _fill(path: Path, file: IO[bytes], out: NDArray[Any]) -> None:
    left = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type, unused-ignore]
    while left:
        # (The interface of raw and buffered files has it, that of IO does not.)
        got = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise FileError(f"{path}: ends before its array does")
        left = left[got:]


_WRITTEN_AT_ONCE = 1 << 25  # bytes


def replace_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    A file keeps its permissions; a link is replaced, not followed. What earlier writers of the file
    left when they were killed is deleted.
    """
    path = Path(file_path("path", path))
    if not path.name:
        raise ValueError(f"path: got {str(path)!r}, expected the path of a file")
    try:
        with part_of(path, lambda part: open(part, "xb", opener=_like(path)).close()) as part:
            with open(part, "r+b") as file:
                for begin in range(0, max(1, len(content)), _WRITTEN_AT_ONCE):
                    file.write(memoryview(content)[begin : begin + _WRITTEN_AT_ONCE])
                    file.flush()
                    os.fsync(file.fileno())  # deaf to Ctrl-C, hence the parts
            os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        # Of a full disk it names no file, or the temporary one.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _like(path: Path) -> Callable[[str, int], int]:
    """Open files with the permissions of one that is there, before anything is in them."""

    def opener(name: str, flags: int) -> int:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return os.open(name, flags, 0o666)
        if not stat.S_ISREG(status.st_mode):
            return os.open(name, flags, 0o666)
        descriptor = os.open(name, flags, 0o600)
        with contextlib.suppress(OSError):  # not every file system has them
            os.chmod(name, stat.S_IMODE(status.st_mode))
        return descriptor

    return opener


@contextlib.contextmanager
def part_of(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Make a file or folder beside `path` that becomes it by a new name, and is else deleted."""
    remove_parts(path.parent, path.name)
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        lock = None
        try:
            make(part)
            lock = _lock(part, wait=True)
            if part.exists():  # or somebody took it for one that was left, before it was locked
                yield part
                return
        finally:
            _remove(part)
            if lock is not None:
                os.close(lock)


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Delete what writers of a file, or of all in a folder, left when they were killed."""
    name = "*" if name is None else glob.escape(name)
    for part in folder.glob(f".{name}.{'[0-9a-f]' * 16}.tmp"):
        if (lock := _lock(part, wait=False)) is not None:
            _remove(part)
            os.close(lock)


def _remove(part: Path) -> None:
    """Delete it where it is there and can be."""
    with contextlib.suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        elif part.exists():
            os.unlink(part)


def _lock(part: Path, wait: bool) -> int | None:
    """Lock what is being written, as its writer does; None where it cannot be."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(part, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sync_folder(folder: Path) -> None:
    """Let the names in a folder outlive a crash; some file systems know no such order."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise OSError(error.errno, error.strerror, str(folder)) from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, so that they outlive a crash."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


_UNFINISHED = ".unfinished"


def pending(folder: Path) -> list[str]:
    """Layers that were to be written to a folder and are not all there, whether begun or not."""
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / _UNFINISHED).read_text("ascii", errors="replace").split()
        return [urllib.parse.unquote(line) for line in lines]
    return []


def set_pending(folder: Path, layers: Iterable[str]) -> None:
    """Note layers that a folder is going to lack while it is written to."""
    lines = "".join(f"{urllib.parse.quote(layer)}\n" for layer in layers)
    if lines:
        replace_file(folder / _UNFINISHED, lines.encode())
    else:
        (folder / _UNFINISHED).unlink(missing_ok=True)
