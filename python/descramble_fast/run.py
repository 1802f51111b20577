"""Moments of activations on disk, streamed so that a killed run goes on where it was.

`find` sorts the files named into layers, `accumulate` reads them into one file of moments a layer,
which also says how far each of its sources was read, and `merge` adds such files up. Nothing here
prints.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import queue
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from descramble_fast import _core
from descramble_fast._arrays import Array, Kind
from descramble_fast._covariance import Covariance
from descramble_fast._files import (
    FLOATING,
    FileError,
    StoredArray,
    is_zarr,
    make_folder,
    open_arrays,
    part_of,
    pending,
    printable,
    reading,
    remove_parts,
    set_pending,
    sync_folder,
)
from descramble_fast._layers import Layer

Batch: TypeAlias = NDArray[Any]

MOMENTS = "descramble_fast.covariance"
RESULT = "descramble_fast.layers"
SUFFIXES = (".npy", ".npz", ".safetensors")

_BATCH_BYTES = 1 << 24  # what the kernels pack at once
_BATCH_ROWS = 1024
_BUFFERS = 3
_PANELS = 1 << 26  # the kernels' own
# Rows of so many bytes are summed on their own, and only such sums are saved while a run goes well:
# those of a killed run are then the very sums of one that was left alone.
_SEGMENT_BYTES = 1 << 29
_SECONDS = 20.0  # between saves, at least
_SHARE = 20  # and at least so many times what a save takes
_LONGEST_NAME = 255 - len(f"..{secrets.token_hex(8)}.tmp")  # of a file that is replaced
_REMEDY = "give it, too, or another --output, or start over with --fresh"
_SHARD = re.compile(r"[-_.]?\d+-of-\d+$")


class Stopped(Exception):  # noqa: N818 — no error
    """A run that was asked to stop; what it had read is saved."""


@dataclass(frozen=True)
class Source:
    """An array that moments were gathered from, and how far it was read.

    Attributes
    ----------
    path, name : str
        The file, and the array in it.
    fingerprint : str
        Changes with the file.
    rows : int
        Its samples.
    read : int
        How many of them, from the first, are in the moments.
    """

    path: str
    name: str
    fingerprint: str
    rows: int
    read: int

    @property
    def text(self) -> str:
        """File and array, as messages name them."""
        return f"{self.path}: {self.name}"


@dataclass(frozen=True, eq=False)
class Samples:
    """The arrays, in one or several files, that hold the samples of one layer."""

    name: str
    arrays: tuple[StoredArray, ...]

    @property
    def n(self) -> int:
        """Number of neurons."""
        return self.arrays[0].n

    @property
    def rows(self) -> int:
        """Number of samples."""
        return sum(array.rows for array in self.arrays)

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The arrays as sources of which nothing was read."""
        return tuple(
            Source(str(array.path.resolve()), array.name, array.fingerprint(), array.rows, 0)
            for array in self.arrays
        )

    def bytes(self, sources: Sequence[Source] | None = None) -> int:
        """Bytes of all samples, or of those read."""
        counts = [a.rows for a in self.arrays] if sources is None else [s.read for s in sources]
        return sum(a.row_bytes * count for a, count in zip(self.arrays, counts, strict=True))


@dataclass(frozen=True, eq=False)
class Inputs:
    """What files hold.

    Attributes
    ----------
    samples, moments : dict
        Layers asked for, with their samples or with the file of their finished moments.
    names : tuple of str
        All layers, those not asked for included.
    skipped : tuple of str
        Arrays that are no samples.
    """

    samples: Mapping[str, Samples]
    moments: Mapping[str, Path]
    names: tuple[str, ...]
    skipped: tuple[str, ...]


def find(paths: Iterable[Path], layers: str = "*") -> Inputs:
    """Sort the arrays in files and folders into layers.

    A layer is called what its array is called in its file, or as the file without its suffix where
    that holds a single nameless array (.npy, a Zarr array). Arrays of one name, in several files,
    are shards of one layer; an ending like ``-00001-of-00004`` is no part of a file's name. A
    folder stands for the files in it. A safetensors file of moments is a layer as well.

    Parameters
    ----------
    paths : iterable of Path
        .npy, .npz and safetensors files, Zarr folders, folders of these.
    layers : str
        Glob that a layer's name must match.

    Raises
    ------
    FileError
        If a file cannot be used, shards of one layer differ in width, or no layer is left.
    """
    shards: dict[str, list[StoredArray]] = {}
    moments: dict[str, Path] = {}
    skipped, seen, taken = [], [], set()
    for path in _files(paths):
        file = open_arrays(path)
        if file.metadata.get("format") == RESULT:
            raise FileError(f"{path}: holds a run's results, expected samples or moments")
        if file.metadata.get("format") == MOMENTS:
            name = layer_of(path)
            seen.append(name)
            finished(path)
            if name in moments:
                raise FileError(
                    f"{path}: and {moments[name]} hold moments of one layer; merge them first"
                )
            if fnmatch.fnmatchcase(name, layers):
                moments[name] = path
            continue
        nameless = len(file.arrays) == 1 and set(file.arrays) <= {"array", "arr_0"}
        for name, array in file.arrays.items():
            name = printable(_SHARD.sub("", path.stem)) if nameless else name
            neurons = 0 < array.n <= 1 << 30  # the core's limit
            if len(array.shape) < 2 or not neurons or array.dtype not in FLOATING:
                skipped.append(f"{printable(path.name)}: {array.name} {array.shape} {array.dtype}")
                continue
            seen.append(name)
            if not fnmatch.fnmatchcase(name, layers):
                continue
            if array.whole:
                raise FileError(
                    f"{path}: {array.name} is compressed and in Fortran order, so that no "
                    "rows can be read from it; save numpy.ascontiguousarray of it"
                )
            status = array.path.stat()
            if (place := (name, status.st_dev, status.st_ino)) in taken:
                raise FileError(f"{array.path}: is given twice")
            taken.add(place)
            others = shards.setdefault(name, [])
            if others and others[0].n != array.n:
                raise FileError(
                    f"{path}: {array.name} has {array.n} neurons, expected {others[0].n} as in "
                    f"{others[0].path}, since both are called {name}"
                )
            others.append(array)
    for name in shards:
        if name in moments:
            raise FileError(f"{moments[name]}: moments of {name}, whose samples are given as well")
    if not shards and not moments:
        held = f"layers {', '.join(seen)}" if seen else "; ".join(skipped) or "nothing"
        raise FileError(
            f"no layer found: got {held}, expected floating-point arrays (..., n) "
            "in native byte order" + (f" called {layers}" if seen else "")
        )
    found = {name: Samples(name, tuple(arrays)) for name, arrays in shards.items()}
    return Inputs(found, moments, tuple(dict.fromkeys(seen)), tuple(skipped))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir() and not is_zarr(path):
            yield from _inside(path)
        else:
            yield path


def _inside(folder: Path) -> list[Path]:
    """Give the files in a folder that can be read; of a run's folder, its moments."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if (path.suffix in SUFFIXES or (path.is_dir() and is_zarr(path))) and not _is_result(path)
    ]
    # Once they are listed: a run that has begun before then is seen.
    if lacking := pending(folder):
        raise FileError(
            f"{folder}: whoever wrote it has not come to the end of {lacking[0]}; finish that first"
        )
    if not found and (folder / "moments").is_dir():
        return _inside(folder / "moments")
    if not found:
        raise FileError(f"{folder}: holds no .npy, .npz, .safetensors or Zarr")
    return found


def _is_result(path: Path) -> bool:
    """Whether a file is what a run writes beside its moments."""
    named = path.name == "result.safetensors"
    return named and open_arrays(path).metadata.get("format") == RESULT


def moments_path(folder: Path, layer: str) -> Path:
    """Where in a folder a layer's moments are; FileError for names that make no file's."""
    _check_text(layer)
    name = f"{urllib.parse.quote(layer, safe=' ')}.safetensors"
    if not layer or len(name) > _LONGEST_NAME:
        raise FileError(
            f"layer {layer!r}: its moments' file would be called {name}, expected a name of the "
            f"layer and at most {_LONGEST_NAME} characters"
        )
    return folder / name


def _check_text(layer: str) -> None:
    """Refuse names that no file could hold: of files, and in pickles, they may be any bytes."""
    try:
        layer.encode()
    except UnicodeEncodeError:
        raise FileError(f"layer {layer!r}: its name is not Unicode") from None


def layer_of(path: Path) -> str:
    """Whose moments a file is called after."""
    return urllib.parse.unquote(path.stem)


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read what a file of moments was gathered from, as far as it says.

    Raises FileError where it holds no moments.
    """
    return _sources(path, open_arrays(path).metadata)


def _sources(path: Path, metadata: Mapping[str, str]) -> tuple[Source, ...]:
    if metadata.get("format") != MOMENTS:
        raise FileError(f"{path}: holds no moments of descramble_fast")
    with reading(path):
        return tuple(_source(**source) for source in json.loads(metadata.get("sources", "[]")))


def _source(**saved: Any) -> Source:
    source = Source(**saved)
    words, counts = (source.path, source.name, source.fingerprint), (source.rows, source.read)
    sound = all(type(word) is str for word in words) and all(type(each) is int for each in counts)
    if not sound or not 0 <= source.read <= source.rows:
        raise ValueError(f"its moments cannot be of {source}")
    return source


def load(path: Path, device: str | None = None) -> Covariance:
    """Read moments; FileError where the file holds none."""
    return _loaded(path, device)[0]


def load_finished(path: Path, device: str | None = None) -> tuple[Covariance, tuple[Source, ...]]:
    """Read moments and what they were gathered from, also while a run replaces the file.

    FileError where it holds none, or a source is not read to its end.
    """
    finished(path)  # which tells best what else a file may be
    moments, metadata = _loaded(path, device)
    return moments, _finished(path, _sources(path, metadata))


def _loaded(path: Path, device: str | None) -> tuple[Covariance, Mapping[str, str]]:
    try:
        return Covariance._load(path, device)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise FileError(str(error).removeprefix("path: ")) from error


def control_layers(folder: Path, layers: Iterable[Layer]) -> list[Layer]:
    """Read the moments that a folder holds of the same layers of another model.

    Raises
    ------
    FileError
        If it holds something else, none of the layers, or one of another width.
    """
    inputs = find([folder])
    if inputs.samples:
        raise FileError(f"{folder}: holds samples, expected moments: run over them first")
    control = []
    for layer in layers:
        if layer.name not in inputs.moments:
            continue
        moments, _ = load_finished(inputs.moments[layer.name])
        if moments.n_features != layer.neurons:
            raise FileError(
                f"{inputs.moments[layer.name]}: has {moments.n_features} neurons, expected "
                f"{layer.neurons} as {layer.name} has"
            )
        control.append(replace(layer, covariance=moments, samples=moments.count, weight=None))
    if not control:
        raise FileError(f"{folder}: holds moments of none of the layers")
    return control


def _save(moments: Covariance, path: Path, sources: Iterable[Source]) -> None:
    moments._save(path, {"sources": json.dumps([asdict(source) for source in sources])})


# ---------------------------------------------------------------- a run


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made; FileError where one is in it."""
    make_folder(folder)
    with open(folder / ".lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{folder}: another run is writing there") from None
        for name in ("result.safetensors", "report.html"):
            remove_parts(folder, name)
        remove_parts(folder / "moments")
        yield


def discard(folder: Path) -> None:
    """Delete the moments in a folder, and nothing else there."""
    paths = list(folder.glob("*.safetensors"))
    for path in paths:
        read_sources(path)
    if paths:  # lest what is left, of a run that is killed here, be taken for the whole
        set_pending(folder, {*pending(folder), *map(layer_of, paths)})
    for path in paths:
        path.unlink()
    sync_folder(folder)
    set_pending(folder, ())


class Run:
    """Moments of layers, gathered in a folder that may hold some of them already.

    Parameters
    ----------
    inputs : Inputs
        Its samples are read.
    folder : Path
        For one file of moments a layer, each replaced in one step with how far it has come.
    batch_size : int, optional
        Rows at a time; by default some 16 MB.
    device : str, optional
        Where to sum.

    Raises
    ------
    FileError
        If the folder holds moments of other samples, or of files that have changed since.
    """

    def __init__(
        self,
        inputs: Inputs,
        folder: Path,
        *,
        batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        self.samples = tuple(inputs.samples.values())
        self.folder = folder
        self._batch_size = batch_size
        self._device = device
        self.sources = {layer.name: layer.sources for layer in self.samples}
        for layer in self.samples:
            moments_path(folder, layer.name)  # before anything is read
        for path in sorted(folder.glob("*.safetensors")):
            name, saved = layer_of(path), read_sources(path)
            if name not in inputs.names:
                raise FileError(
                    f"{path}: holds moments of {name}, a layer that is not given now; {_REMEDY}"
                )
            if name in self.sources:
                self.sources[name] = _resumed(path, saved, self.sources[name])

    @property
    def bytes_read(self) -> int:
        """Bytes of the samples that are in the moments."""
        return sum(layer.bytes(self.sources[layer.name]) for layer in self.samples)

    @property
    def memory(self) -> int:
        """Bytes that reading takes, at most: sums, what is written of them, buffers and panels."""
        taken = []
        for layer in self.samples:
            batch = _room(layer.arrays, self._batch_size)
            beside = max(array.beside(batch) for array in layer.arrays)
            taken.append(20 * layer.n**2 + _BUFFERS * batch + beside + _PANELS)
        return max(taken)

    def accumulate(
        self,
        progress: Callable[[str, int], object] = lambda layer, bytes_read: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read what was not read yet.

        Parameters
        ----------
        progress : callable
            Is told a layer and how many more bytes of it were read.
        stopped : callable
            Asked between batches whether to stop.

        Raises
        ------
        FileError
            At samples that cannot be taken, named by layer, file and row. Those before are saved.
        Stopped
            Likewise, once `stopped` says so.
        """
        make_folder(self.folder)
        before, names = pending(self.folder), [layer.name for layer in self.samples]
        set_pending(self.folder, dict.fromkeys((*before, *names)))
        for layer in self.samples:
            try:
                _Accumulation(self, layer).run(progress, stopped)
            except MemoryError as error:
                raise MemoryError(
                    f"layer {layer.name}: no memory for the moments of {layer.n} neurons"
                ) from error
        set_pending(self.folder, (name for name in before if name not in names))

    def moments(self, layer: Samples) -> Covariance:
        """Load what was gathered of a layer."""
        return load(moments_path(self.folder, layer.name), self._device)


def _resumed(path: Path, saved: Sequence[Source], given: Sequence[Source]) -> tuple[Source, ...]:
    """Take over how far the given sources were read; all that were must be among them."""
    read = {(source.path, source.name): source for source in saved if source.read}
    found = []
    for source in given:
        old = read.pop((source.path, source.name), source)
        if (old.fingerprint, old.rows) != (source.fingerprint, source.rows):
            raise FileError(
                f"{source.text} has changed since {old.read} of its rows went into {path}; "
                "start over with --fresh"
            )
        found.append(replace(source, read=old.read))
    if read:
        missing = next(iter(read.values()))
        raise FileError(
            f"{path}: has {missing.read} rows of {missing.path} in it, which is not given now; "
            f"{_REMEDY}"
        )
    return tuple(found)


class _Accumulation:
    """One layer's moments on their way: what is saved, and a segment of rows that is not yet."""

    def __init__(self, run: Run, layer: Samples) -> None:
        self._run = run
        self._layer = layer
        self._path = moments_path(run.folder, layer.name)
        self._device = run._device
        self._read = [source.read for source in run.sources[layer.name]]
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def run(self, progress: Callable[[str, int], object], stopped: Callable[[], bool]) -> None:
        layer, fresh = self._layer, not self._path.exists()
        if not fresh and self._read == [array.rows for array in layer.arrays]:
            return
        self._total = Covariance(layer.n, self._device) if fresh else load(self._path, self._device)
        self._begin_segment()
        batches = _batches(layer.arrays, self._read.copy(), self._run._batch_size)
        try:
            with contextlib.closing(batches):
                for index, batch in batches:
                    self._add(index, batch)
                    progress(layer.name, batch.nbytes)
                    if self._segment_bytes >= _SEGMENT_BYTES:
                        self._end_segment()
                        pause = max(_SECONDS, _SHARE * self._save_seconds)
                        if time.monotonic() - self._saved_at > pause:
                            self._save()
                    if stopped():
                        raise Stopped
        except (FileError, Stopped):
            self._end_segment()
            self._save()
            raise
        self._end_segment()
        self._save()

    def _begin_segment(self) -> None:
        self._segment = Covariance(self._layer.n, self._device)
        self._segment_bytes = 0

    def _end_segment(self) -> None:
        if not self._segment_bytes:
            return
        try:
            self._total.merge(self._segment)
        except ValueError as error:
            raise FileError(f"layer {self._layer.name}: {error}") from error
        self._begin_segment()

    def _add(self, index: int, batch: Batch) -> None:
        try:
            self._update(batch)
        except ValueError as error:
            bad = _bad_row(batch)
            if bad:
                self._add(index, batch[:bad])  # which may overflow before
            raise FileError(self._refusal(index, batch, bad, error)) from error
        self._read[index] += len(batch)
        self._segment_bytes += batch.nbytes

    def _refusal(self, index: int, batch: Batch, bad: int | None, error: ValueError) -> str:
        array, row = self._layer.arrays[index], self._read[index]
        where = f"layer {self._layer.name}, {array.path}"
        if bad is None:
            return f"{where}: rows {row} to {row + len(batch) - 1}: {error}"
        column = int(np.argmin(np.isfinite(batch[bad])))
        place = tuple(int(i) for i in np.unravel_index(row, array.shape[:-1]))
        return (
            f"{where}: holds {float(batch[bad, column])} at row "
            f"{place[0] if len(place) == 1 else place}, column {column}, expected finite numbers; "
            f"the moments of the {sum(self._read)} rows before it are in {self._path}"
        )

    def _update(self, batch: Batch) -> None:
        self._segment.update(_on(self._device, batch))
        if self._device is not None and self._device != "cpu":
            self._segment.count  # noqa: B018 — a device's refusal comes with the next wait

    def _save(self) -> None:
        begin = time.monotonic()
        given = self._run.sources[self._layer.name]
        for array, source, read in zip(self._layer.arrays, given, self._read, strict=True):
            if read > source.read and array.fingerprint() != source.fingerprint:
                raise FileError(f"{source.text} was changed while it was read")
        sources = tuple(
            replace(source, read=read) for source, read in zip(given, self._read, strict=True)
        )
        _save(self._total, self._path, sources)
        self._run.sources[self._layer.name] = sources
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - begin


def _bad_row(batch: Batch) -> int | None:
    """Find the first row with a NaN or an infinity."""
    bad = ~np.isfinite(batch).all(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def _on(device: str | None, batch: Batch) -> Array:
    if device is None or device == "cpu":
        return batch
    return _core.DeviceArray.from_numpy(batch, int(device.partition(":")[2] or 0))


def _batches(
    arrays: Sequence[StoredArray], read: Sequence[int], batch_size: int | None
) -> Generator[tuple[int, Batch], None, None]:
    """Give the arrays' rows that were not read, with the array's index, as (rows, n).

    A thread reads ahead into a few buffers that are used again and again: a batch is gone once the
    next is asked for. (Pages of a mapped file would count as this process's memory.)
    """
    sizes = [_rows_at_a_time(array, batch_size) for array in arrays]
    free: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[int, Batch, Batch] | BaseException | None] = queue.SimpleQueue()
    over = threading.Event()
    for _ in range(_BUFFERS):
        free.put(np.empty(_room(arrays, batch_size), dtype=np.uint8))

    def fill() -> None:
        try:
            for index, (array, size, begin) in enumerate(zip(arrays, sizes, read, strict=True)):
                with reading(array.path), contextlib.closing(array.open(begin)) as rows:
                    while begin < array.rows:
                        # Whole steps from the array's start, wherever a run was stopped.
                        end = min(array.rows, begin + size - begin % array.step)
                        buffer = free.get()
                        if over.is_set():
                            return
                        raw = buffer[: (end - begin) * array.row_bytes]
                        batch = raw.view(array.element).reshape(end - begin, array.n)
                        rows.read_into(batch)
                        ready.put((index, batch, buffer))
                        begin = end
            ready.put(None)
        except BaseException as error:  # for the thread that waits
            ready.put(error)

    reader = threading.Thread(target=fill, name="read ahead", daemon=True)
    try:
        reader.start()
    except RuntimeError as error:  # the system grants no thread
        raise MemoryError(str(error)) from error
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            index, batch, buffer = item
            yield index, batch
            free.put(buffer)
    finally:
        over.set()
        free.put(np.empty(0, dtype=np.uint8))  # lest it wait for one
        reader.join()


def _room(arrays: Sequence[StoredArray], batch_size: int | None) -> int:
    """Bytes that hold any batch."""
    return max(a.row_bytes * min(a.rows, _rows_at_a_time(a, batch_size)) for a in arrays)


def _rows_at_a_time(array: StoredArray, batch_size: int | None) -> int:
    """Count rows that are read together, in the steps that the array is best read in."""
    rows = batch_size or max(_BATCH_ROWS, _BATCH_BYTES // array.row_bytes)
    return max(array.step, rows // array.step * array.step)


# ---------------------------------------------------------------- sharded moments


def merge(out: Path, paths: Sequence[Path]) -> dict[str, int]:
    """Add up moments: files of one layer into a file, or folders layer by layer into a folder.

    Parameters
    ----------
    out : Path
        Appears in one step, and must not exist before.
    paths : sequence of Path
        All files, or all folders: of moments, or of runs. A layer need not be in every folder.

    Returns
    -------
    dict of str to int
        Samples of each layer.

    Raises
    ------
    FileError
        If a file holds no moments or is unfinished, if sizes differ, or if samples would be counted
        twice, because a file, a copy of it or one of its sources comes again.
    """
    if out.exists():
        raise FileError(f"{out}: exists, expected a new name")
    folders = [path.is_dir() for path in paths]
    if any(folders) != all(folders):
        raise FileError("got files and folders, expected one or the other")
    shards: dict[str, list[Path]] = {}
    for path in paths:
        if not path.is_dir():
            shards.setdefault(layer_of(out), []).append(path)
            continue
        for file in _inside(path / "moments" if (path / "moments").is_dir() else path):
            shards.setdefault(layer_of(file), []).append(file)
    if not any(folders):
        if out.suffix != ".safetensors":
            raise FileError(f"{out}: merged files make a file, expected a name in .safetensors")
        return {layer: _merge_layer(out, files) for layer, files in shards.items()}
    make_folder(out.parent)
    with part_of(out, Path.mkdir) as part:
        counts = {
            layer: _merge_layer(moments_path(part, layer), files) for layer, files in shards.items()
        }
        os.rename(part, out)
    sync_folder(out.parent)
    return counts


def _merge_layer(out: Path, files: Sequence[Path]) -> int:
    total: Covariance | None = None
    sources: dict[str, tuple[Source, Path]] = {}
    for path in files:
        moments, found = load_finished(path)
        for source in found or _itself(path, moments):
            if source.read and source.fingerprint in sources:
                other = sources[source.fingerprint][1]
                raise FileError(f"{path}: samples of {source.path} are already in {other}")
            sources[source.fingerprint] = source, path
        if total is None:
            total = moments
            continue
        if moments.n_features != total.n_features:
            raise FileError(
                f"{path}: has {moments.n_features} neurons, expected {total.n_features} as in "
                f"{files[0]}"
            )
        try:
            total.merge(moments)
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error
    assert total is not None
    _save(total, out, (source for source, _ in sources.values()))
    return total.count


def _itself(path: Path, moments: Covariance) -> tuple[Source, ...]:
    """Name moments that do not say where they come from as their own source."""
    digest = hashlib.blake2b(digest_size=16)
    for part in moments.__getstate__()["state"]:
        digest.update(np.asarray(part).tobytes())
    count = moments.count
    return (Source(str(path.resolve()), "moments", digest.hexdigest(), count, count),)


def finished(path: Path) -> tuple[Source, ...]:
    """Read what moments were gathered from; FileError where a source is not read to its end."""
    return _finished(path, read_sources(path))


def _finished(path: Path, sources: tuple[Source, ...]) -> tuple[Source, ...]:
    for source in sources:
        if source.read < source.rows:
            raise FileError(
                f"{path}: has {source.read} of {source.rows} rows of {source.path}; finish its run "
                "first"
            )
    return sources


# ---------------------------------------------------------------- weights


class Weight(Protocol):
    """An array of weights that has not been read yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""

    @property
    def dtype(self) -> str:
        """As `StoredArray` has it."""

    def read(self) -> NDArray[Any]:
        """Read it as float32 or float64."""


def open_weights(path: Path) -> Mapping[str, Weight]:
    """Find the weights in a safetensors or npz file or a torch state dict.

    Raises FileError where the file cannot be used. Nothing in it is executed.
    """
    if path.suffix not in (".pt", ".pth"):
        return open_arrays(path).arrays
    if not path.exists():
        raise FileError(f"{path}: no such file")
    try:
        from descramble_fast.torch import _files as torch_files
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise FileError(f"{path}: needs torch: pip install torch") from None
    return torch_files.open_state_dict(path)


def with_weight(layer: Layer, weights: Mapping[str, Weight]) -> Layer:
    """Give a layer its weights: ``<layer>.weight`` or ``<layer>``, neurons on either axis."""
    for name in (f"{layer.name}.weight", layer.name):
        weight = weights.get(name)
        if weight is None or weight.dtype not in FLOATING or layer.neurons not in weight.shape[:2]:
            continue
        if weight.shape[0] == layer.neurons:
            return replace(layer, weight=_matrix(weight), weight_side="output")
        if len(weight.shape) == 2:
            return replace(layer, weight=_matrix(weight), weight_side="input")
    note = f"no weights {layer.name}.weight or {layer.name} with {layer.neurons} neurons"
    return replace(layer, notes=(*layer.notes, note))


def weight_layers(weights: Mapping[str, Weight], layers: str = "*") -> tuple[Layer, ...]:
    """Take weights alone for layers, whose inputs are then supposed isotropic.

    Raises FileError where none is left.
    """
    found = []
    for name, weight in weights.items():
        name = name.removesuffix(".weight")
        if (
            len(weight.shape) < 2
            or 0 in weight.shape
            or weight.dtype not in FLOATING
            or not fnmatch.fnmatchcase(name, layers)
        ):
            continue
        _check_text(name)
        layer = Layer(name=name, kind="weights", neurons=weight.shape[0])
        if len(weight.shape) > 2:
            error = f"weights {weight.shape} of a convolution: its channels need activations"
            found.append(replace(layer, error=error))
            continue
        try:
            W = _matrix(weight)
            moments = Covariance._wrap(_core.preactivation_moment(W, None, None, None), Kind.of(W))
        except (ValueError, MemoryError) as error:
            found.append(replace(layer, error=str(error) or type(error).__name__))
            continue
        note = "no samples: W Wᵀ, as isotropic inputs have it"
        found.append(replace(layer, covariance=moments, weight=W, notes=(note,)))
    if not found:
        raise FileError(
            f"--weights: got {', '.join(weights) or 'nothing'}; expected a matrix called {layers}"
        )
    return tuple(found)


def _matrix(weight: Weight) -> NDArray[Any]:
    W = weight.read()
    return W.astype(np.result_type(W, np.float32), copy=False).reshape(weight.shape[0], -1)
