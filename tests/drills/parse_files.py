"""Samples and networks in files, as targets of the fuzzer, beside the formats' own readers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from draws import FOLDER, Draws, expect, same, target
from numpy.typing import NDArray

from descramble_fast import run as runs
from descramble_fast._files import FLOATING, FileError, StoredArray, open_arrays
from descramble_fast.demo import files as demo

DTYPES = ("<f8", "<f4", "<f2", ">f4", "<i8", "|b1", "<c8", "<U2", "|V3", "<M8[s]", "|O", "<f16")
DTYPE_NAMES = ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "U16", "F8_E4M3", "F4", "C64", "X")


def _shape(draws: Draws) -> tuple[int, ...]:
    return tuple(
        draws.integer() if draws.one_in(8) else draws.byte() % 5 for _ in range(draws.byte() % 4)
    )


def npy(draws: Draws) -> bytes:
    shape, dtype = _shape(draws), draws.pick(DTYPES)
    if draws.one_in(4):
        dtype = draws.pick((repr(draws.thing()), "[('a', '<f4')]", "('<f4', (2,))"))
    else:
        dtype = repr(dtype)
    fortran = draws.pick(("False", "True", "1", "None"))
    header = f"{{'descr': {dtype}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}"
    if draws.one_in(8):
        header = draws.take(draws.byte()).decode("latin1")
    version = draws.pick((1, 1, 1, 2, 3, 0, 255))
    text = header.encode("latin1", "replace").ljust(draws.pick((54, 118, 119))) + b"\n"
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    need = 0 if min(shape, default=1) < 0 else min(math.prod(shape) * 8, 4096)
    content = np.arange(513, dtype=draws.pick(("<f8", "<f4", "<f2"))).tobytes()[:need]
    return (
        b"\x93NUMPY" + bytes([version, 0]) + length + text + content + draws.take(draws.byte() % 4)
    )


def _npz(draws: Draws, member: Callable[[Draws], bytes]) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # two of one name
        for _ in range(draws.byte() % 4):
            name = draws.pick(("W1.npy", "W2.npy", "arr_0.npy", "a", "samples.npy", "ä.npy", "d/"))
            method = draws.pick((0, 0, 0, 8, 8, 12)) if not draws.one_in(64) else 14  # is slow
            info = zipfile.ZipInfo(name)
            info.extra = draws.take(draws.byte() % 8) if draws.one_in(8) else b""
            archive.writestr(info, member(draws), method)
    content = bytearray(out.getvalue())
    for _ in range(draws.byte() % 3):  # somewhere in the directory, mostly
        at = len(content) - 1 - draws.integer() % min(len(content), 256)
        content[at] = draws.byte()
    return bytes(content)


def _tensors(draws: Draws, names: Sequence[str]) -> bytes:
    header, content = {}, b""
    if draws.one_in(4):
        keys = ("hidden_activation", "time_start", "time_stop", "time_count", "format", "sources")
        values = ("relu", "0", "1", "3", "nan", "1e999", runs.MOMENTS, runs.RESULT, "[{}]", "x")
        header["__metadata__"] = {draws.pick(keys): draws.pick(values) for _ in range(3)}
    for _ in range(draws.byte() % 4):
        shape, dtype = _shape(draws), draws.pick(DTYPE_NAMES[: draws.pick((3, 4, 12))])
        size = max(0, math.prod(shape)) * {"F64": 8, "F32": 4, "I64": 8, "I8": 1, "C64": 8}.get(
            dtype, 2
        )
        size = size if size < 4096 else 8
        offsets = [len(content), len(content) + size]
        if draws.one_in(16):
            offsets[draws.byte() % 2] = draws.integer()
        name = draws.pick(names)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        content += np.arange(size // 8 + 1, dtype=np.float64).tobytes()[:size]
    text = json.dumps(header).encode()
    if draws.one_in(8):
        text = text.replace(
            *draws.pick(((b"1", b"1.0"), (b"[", b"[0,"), (b'"', b'"\\ud800'), (b"}", b"} ")))
        )
    return len(text).to_bytes(8, "little") + text + content


def file_of(draws: Draws, names: Sequence[str], member: Callable[[Draws], bytes] = npy) -> Path:
    """Write one of the formats; every fourth of bytes as they are, or with the right length."""
    suffix = draws.pick(("npy", "npz", "safetensors"))
    path = FOLDER / f"file.{suffix}"
    if draws.one_in(4):
        content = draws.rest()
        if suffix == "safetensors" and content[:1] == b"{":
            header, _, rest = content.partition(b"\0")
            content = len(header).to_bytes(8, "little") + header + rest
    elif suffix == "npz":
        content = _npz(draws, member)
    else:
        content = member(draws) if suffix == "npy" else _tensors(draws, names)
    path.write_bytes(content)
    return path


def _read_in_pieces(array: StoredArray, draws: Draws) -> NDArray[Any]:
    out = np.empty((array.rows, array.n), dtype=array.element)
    begin = 0
    while begin < array.rows:
        with contextlib.closing(array.open(begin)) as rows:
            for _ in range(draws.byte() % 3 + 1):
                end = min(array.rows, begin + draws.byte() % 4 + 1)
                rows.read_into(out[begin:end])
                begin = end
    return out.reshape(array.shape)


def oracle(path: Path, name: str) -> NDArray[Any] | None:
    """Read an array by the format's own library; None where that cannot."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="numpy") as file:
                return np.asarray(file.get_tensor(name))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return np.asarray(loaded[name])
    except Exception:  # whatever it raises
        return None


def _small(array: StoredArray) -> bool:
    return array.dtype in FLOATING and array.rows <= 256 and array.row_bytes <= 1 << 16


def _compare(path: Path, draws: Draws) -> None:
    """Compare what was read, whole and in pieces, with the oracle; only bad checksums differ."""
    with contextlib.suppress(FileError):
        for name, array in open_arrays(path).arrays.items():
            array.fingerprint()
            if not _small(array):
                continue
            expected = oracle(path, name)
            try:
                whole = array.read()
            except FileError as error:
                expect(expected is None, f"{name} was refused, the oracle has it: {error}")
                continue
            if expected is None:  # NumPy checks sums of stored members, we do not
                expect(path.suffix == ".npz", f"{name} was read, the oracle refuses it")
                continue
            expect(same(whole, expected), f"{name} differs")
            if not array.whole:
                expect(same(_read_in_pieces(array, draws), expected), f"{name} differs in pieces")


@target
def samples(data: bytes) -> None:
    """open_arrays and reading in rows, beside NumPy's and safetensors' own readers."""
    draws = Draws(data)
    _compare(file_of(draws, ("a", "b", "layer.0", "", "x/y")), draws)


def _metadata(draws: Draws, version: int) -> bytes:
    """Metadata of a Zarr array, sound up to a few changes."""
    shape, chunks = [draws.byte() % 5 for _ in range(2)], [draws.byte() % 3 + 1 for _ in range(2)]
    if version == 2:
        described: dict[str, Any] = {
            "zarr_format": 2,
            "shape": shape,
            "chunks": chunks,
            "dtype": draws.pick(("<f8", "<f4", "<f2", "|O", ">f4")),
            "compressor": draws.pick((None, {"id": "zlib", "level": 1}, {"id": "pickle"})),
            "fill_value": draws.pick((0.0, None, "NaN", 1.5)),
            "order": draws.pick("CCF"),
            "filters": draws.pick(
                (None, [], [{"id": "pickle"}], [{"id": "delta", "dtype": "<f4"}])
            ),
        }
    else:
        described = {
            "zarr_format": 3,
            "node_type": draws.pick(("array", "array", "array", "group")),
            "shape": shape,
            "data_type": draws.pick(("float64", "float32", "float16", "bfloat16", "int8")),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": draws.pick((0.0, 1.5, "NaN")),
            "codecs": [
                {"name": "bytes", "configuration": {"endian": draws.pick(("little", "big"))}}
            ],
            "attributes": {},
        }
    for _ in range(draws.byte() % 3):
        key = draws.pick(list(described))
        if draws.one_in(4):
            del described[key]
            break
        value = described[key]
        if isinstance(value, list) and value and draws.one_in(2):
            value[draws.byte() % len(value)] = draws.integer()
        else:
            described[key] = draws.integer() if draws.one_in(2) else repr(draws.thing())
    return json.dumps(described).encode()


@target
def zarrs(data: bytes) -> None:
    """Zarr folders: mutated metadata beside sound, broken and missing chunks."""
    draws = Draws(data)
    folder = FOLDER / "folder.zarr"
    shutil.rmtree(folder, ignore_errors=True)
    version = draws.pick((2, 3))
    chunks = folder if version == 2 else folder / "c" / "0"
    chunks.mkdir(parents=True)
    name = ".zarray" if version == 2 else "zarr.json"
    (chunks / ("0.0" if version == 2 else "0")).write_bytes(
        np.arange(9.0)[: draws.byte() % 9].tobytes()
    )
    text = draws.rest() if draws.one_in(4) else _metadata(draws, version)
    (folder / name).write_bytes(text)
    with warnings.catch_warnings(), contextlib.suppress(FileError):
        warnings.simplefilter("ignore")
        for name, array in open_arrays(folder).arrays.items():
            array.fingerprint()
            if _small(array):
                expect(
                    same(array.read(), _read_in_pieces(array, draws)), f"{name} differs in pieces"
                )


@target
def network(data: bytes) -> None:
    """The demo's networks and samples."""
    draws = Draws(data)

    def weights(draws: Draws) -> bytes:
        if draws.one_in(8):
            return npy(draws)
        out = io.BytesIO()
        shape = draws.byte() % 4, draws.byte() % 4
        values = np.array([draws.number() for _ in range(shape[0] * shape[1])]).reshape(shape)
        with np.errstate(all="ignore"):
            np.save(out, values.astype(draws.pick(("<f8", "<f4", "<f2", ">f8"))))
        return out.getvalue()

    names = ("W1", "W2", "W1", "W2", "W1_untrained", "W2_untrained", "traces", "samples")
    path = file_of(draws, names, weights)
    with contextlib.suppress(FileError):
        found = demo.load_network(path)
        for name in ("W1", "W2"):
            matrix, expected = getattr(found.trained, name), oracle(path, name)
            expect(matrix.dtype == np.float64 and bool(np.isfinite(matrix).all()), name)
            if expected is not None:
                expect(same(matrix, expected.astype(np.float64)), f"{name} differs")
        axis = found.input_axis
        expect(axis.count == found.trained.W1.shape[1] and math.isfinite(axis.step), f"{axis}")
    with contextlib.suppress(FileError):
        found = demo.open_samples(path)
        if math.prod(found.shape) <= 1 << 14:
            got = np.concatenate(list(found.batches(draws.byte() % 4 + 1)))
            expected = oracle(path, found.tensor)
            if expected is not None:
                expect(same(got, expected.astype(got.dtype)), "samples differ")
