"""Moments of activations that are stored as chunked arrays, larger than memory. Needs Dask.

What makes a Dask array serves: ``dask.array.from_zarr``, `from_npy` here, and for Parquet
``dask.dataframe.read_parquet(path)[columns].to_dask_array()``. Batches of Hugging Face's datasets
need no Dask: ``for batch in dataset.with_format("numpy").iter(1000)``, call
``cov.update(batch["activations"])``.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import dask
import dask.array
import dask.sizeof
import numpy as np

from descramble_fast._arrays import Array, called, file_path, numbers
from descramble_fast._covariance import Covariance

__all__ = ["covariance", "from_npy"]

_ROWS = 1024


def covariance(
    array: dask.array.Array, mask: Array | None = None, weights: Array | None = None
) -> Covariance:
    """Moments of a Dask array's rows, computed at once by the scheduler in use.

    Each chunk is accumulated by itself, and neighbours are merged in pairs, as a tree: however the
    work is scheduled, the result has the same bits.

    A worker holds the chunks of its running tasks, and moments, of 4 n² bytes each, for some
    5 + log₂(chunks) of those done or on their way. Chunks of n rows and more are worth theirs.

    Dask's worker processes have ``OMP_NUM_THREADS=1`` and hence one thread for each task, which is
    right, as many run at once. Where tasks are threads of this process, each uses as many as
    `set_num_threads` says, from one pool.

    Parameters
    ----------
    array : dask.array.Array, (..., n)
        float16, bfloat16, float32 or float64, chunked along any axis but the last. The number of
        rows need not be known, but for masks and weights.
    mask : array of bool, (...), optional
        True for rows that count. A Dask array, or one in memory.
    weights : array, (...), optional
        Non-negative frequencies.

    Returns
    -------
    Covariance
        On the CPU.

    Raises
    ------
    TypeError
        If `array` is no Dask array, or a dtype does not fit.
    ValueError
        If the last axis is in several chunks, or a shape does not fit; and as `Covariance.update`,
        with the chunk that is at fault.

    Examples
    --------
    >>> import dask.array
    >>> import descramble_fast.dask
    >>> x = dask.array.ones((1000, 3), chunks=(300, -1))
    >>> descramble_fast.dask.covariance(x)
    <Covariance of 3 features, 1000 samples>
    """
    if not isinstance(array, dask.array.Array):
        raise TypeError(f"array: got {type(array).__name__}, expected a Dask array")
    if array.ndim == 0 or array.shape[-1] == 0 or array.numblocks[-1] != 1:
        raise ValueError(
            f"array: got chunks {array.chunksize} of shape {array.shape}, expected whole rows: "
            "use array.rechunk({-1: -1})"
        )
    selectors = [_blocks("mask", mask, array), _blocks("weights", weights, array)]
    starts = [[0, *accumulate(sizes)] for sizes in array.chunks[:-1]]
    moments, merged = dask.delayed(_moments), dask.delayed(_merged)
    parts = []
    for index, block in np.ndenumerate(array.to_delayed()[..., 0]):
        chosen = [None if blocks is None else blocks[index] for blocks in selectors]
        where = f"chunk {list(index)}"
        if _rows_are_known(array):
            begin = [start[i] for start, i in zip(starts, index, strict=True)]
            where += f", which begins at {begin}"
        parts.append(moments(block, *chosen, where))
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [merged(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    with called(batch="array"):
        total: Covariance = parts[0].compute()
    return total


def from_npy(path: str | os.PathLike[str]) -> dask.array.Array:
    """Read a ``.npy`` file as a Dask array of whole rows, by memory maps.

    ``dask.array.from_array(numpy.load(path, mmap_mode="r"))`` does in this process, but puts the
    file's whole content into every message to another.

    Parameters
    ----------
    path : str or path
        As each worker finds it.

    Returns
    -------
    dask.array.Array
        In chunks of Dask's ``array.chunk-size``; its last axis is in one.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds no array, or one of Python objects.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> import descramble_fast.dask
    >>> path = os.path.join(tempfile.mkdtemp(), "layer.npy")
    >>> np.save(path, np.ones((1000, 3)))
    >>> descramble_fast.dask.covariance(descramble_fast.dask.from_npy(path))
    <Covariance of 3 features, 1000 samples>
    """
    file = _NpyFile(os.path.abspath(file_path("path", path)))
    chunks = ("auto",) * (file.ndim - 1) + (-1,)
    array: dask.array.Array = dask.array.from_array(file, chunks=chunks, name=None)
    return array


class _NpyFile:
    """An array on disk that is opened where it is read."""

    def __init__(self, path: str) -> None:
        try:
            whole = np.lib.format.open_memmap(path, mode="r")
        except ValueError as error:
            raise ValueError(f"path: {path}: {error}") from error
        self.path, self.shape, self.dtype, self.ndim = path, whole.shape, whole.dtype, whole.ndim
        self.version = os.stat(path).st_mtime_ns

    def __getitem__(self, index: Any) -> Any:
        return np.lib.format.open_memmap(self.path, mode="r")[index]


def _blocks(argument: str, selector: Array | None, array: dask.array.Array) -> Any:
    """Chunks of a mask or of weights, like those of the array."""
    if selector is None:
        return None
    if not isinstance(selector, dask.array.Array):
        selector = dask.array.asarray(numbers(argument, selector))
    if not _rows_are_known(array) or selector.shape != array.shape[:-1]:
        raise ValueError(
            f"{argument}: got shape {selector.shape}, expected one entry per row of the array of "
            f"shape {array.shape}; where that is unknown, call array.compute_chunk_sizes() first"
        )
    return selector.rechunk(array.chunks[:-1]).to_delayed()


def _rows_are_known(array: dask.array.Array) -> bool:
    return not any(math.isnan(length) for length in array.shape[:-1])


def _moments(x: Array, mask: Array | None, weights: Array | None, where: str) -> Covariance:
    cov = Covariance(x.shape[-1])
    for begin, *part in _parts(x, mask, weights):
        try:
            cov.update(*part)
            if cov.device != "cpu":  # others may merge it, in processes that have no such device
                cov = copy.copy(cov)
        except ValueError as error:
            raise ValueError(f"array: {where}, rows from {begin} on: {error}") from error
    return cov


def _parts(x: Array, *selectors: Array | None) -> Iterator[tuple[Any, ...]]:
    """Cut a chunk in memory into rows for which an accumulator needs no second scatter."""
    if not isinstance(x, np.ndarray):
        yield 0, x, *selectors
        return
    n = x.shape[-1]
    flat = [_aligned(x).reshape(-1, n)]
    flat += [None if s is None else _aligned(s).reshape(-1) for s in selectors]
    for begin in range(0, max(1, len(flat[0])), _ROWS):
        yield begin, *(None if f is None else f[begin : begin + _ROWS] for f in flat)


def _aligned(array: Array) -> Array:
    # From another worker it may come at any byte of a message.
    return array if array.flags.aligned else array.copy()


def _merged(a: Covariance, b: Covariance) -> Covariance:
    # A new one: what a task was given may be asked for again.
    return Covariance(a.n_features).merge(a).merge(b)


def _bytes(cov: Covariance) -> int:
    return 4 * cov.n_features * (cov.n_features + 1)


# By it, workers write what fills their memory to disk in time.
dask.sizeof.sizeof.register(Covariance, _bytes)
