"""Moments of Dask arrays, from threads and from processes that have less memory than the data."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import two_pass

import descramble_fast as df
from descramble_fast import _core

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

from dask.sizeof import sizeof  # noqa: E402

import descramble_fast.dask  # noqa: E402
from descramble_fast.dask import covariance, from_npy  # noqa: E402


def samples(rows: int, n: int, mean: float = 2.0, dtype: Any = np.float64) -> NDArray[Any]:
    rng = np.random.default_rng(rows)
    return (rng.normal(size=(rows, n)) @ rng.normal(size=(n, n)) + mean).astype(dtype)


def assert_moments(cov: df.Covariance, x: NDArray[Any], **rows: Any) -> None:
    """Against one accumulator, and against two passes in long double."""
    one = df.Covariance(x.shape[-1]).update(x, **rows)
    weights = rows.get("weights", np.ones(x.shape[:-1])) * rows.get("mask", True)
    _, _, exact = two_pass(x, weights)
    bound = (1e-12 if x.dtype == np.float64 else 1e-6) * exact.diagonal().max()
    assert cov.count == one.count
    assert cov.weight == pytest.approx(one.weight, rel=1e-14)
    assert cov.input_dtypes == one.input_dtypes
    assert np.abs(cov.covariance() - one.covariance()).max() <= bound
    assert np.abs(cov.covariance() - exact).max() <= bound


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "mean"),
    [(np.float64, 0.0), (np.float64, 1e6), (np.float32, 2.0), (np.float32, 1e6), (np.float16, 2.0)],
)
@pytest.mark.parametrize(
    "rows", [(500,), (1, 499), (100,) * 5, (3, 0, 250, 247), (7,) * 71 + (3,)], ids=len
)
def test_any_chunks_give_the_moments_of_all_rows(
    rows: tuple[int, ...], mean: float, dtype: Any
) -> None:
    x = samples(500, 6, mean, dtype)
    assert_moments(covariance(da.from_array(x, chunks=(rows, 6))), x)


def test_leading_axes_masks_and_weights() -> None:
    x = samples(480, 5).reshape(12, 40, 5)
    rng = np.random.default_rng(1)
    mask, weights = rng.random((12, 40)) < 0.7, rng.integers(0, 4, size=(12, 40)) * 0.5
    x[~mask] = np.nan
    array = da.from_array(x, chunks=((5, 7), (16, 16, 8), 5))
    there = np.where(mask[..., None], x, 0.0)
    assert_moments(covariance(array, mask=mask), there, mask=mask)
    assert_moments(covariance(array, mask, weights), there, mask=mask, weights=weights)
    elsewhere = da.from_array(weights, chunks=(3, -1))
    cov = covariance(array, mask=mask.tolist(), weights=elsewhere)
    assert_moments(cov, there, mask=mask, weights=weights)


def test_arrays_at_odd_places_as_messages_have_them() -> None:
    x = samples(50, 3, dtype=np.float32)
    weights = np.arange(50) * 0.5

    def displaced(array: NDArray[Any]) -> NDArray[Any]:
        odd = np.frombuffer(b"?" + array.tobytes(), dtype=array.dtype, offset=1)
        assert not odd.flags.aligned
        return odd.reshape(array.shape)

    array = da.from_array(displaced(x), chunks=(20, -1))
    assert_moments(covariance(array, weights=displaced(weights)), x, weights=weights)


def test_the_bits_do_not_depend_on_the_scheduler() -> None:
    array = da.from_array(samples(5000, 16, dtype=np.float32), chunks=(333, -1))
    found = []
    for scheduler, workers in (("synchronous", 1), ("threads", 1), ("threads", 4)):
        with dask.config.set(scheduler=scheduler, num_workers=workers):
            found.append(pickle.dumps(covariance(array)))
    assert len(set(found)) == 1


def test_results_kept_by_the_scheduler_are_not_changed() -> None:
    a, b = df.Covariance.from_samples(samples(20, 3)), df.Covariance.from_samples(samples(30, 3))
    before = pickle.dumps(a), pickle.dumps(b)
    assert descramble_fast.dask._merged(a, b).count == 50
    assert (pickle.dumps(a), pickle.dumps(b)) == before


def test_moments_of_chunks_on_a_device_come_to_the_cpu() -> None:
    if not df.cuda_available():
        config = df.show_config("dict")
        assert config is not None
        pytest.skip(config["cuda"])
    x = samples(50, 3)
    there = _core.DeviceArray.from_numpy
    cov = descramble_fast.dask._moments(there(x), None, None, "chunk [0]")
    assert cov.device == "cpu"
    assert_moments(cov, x)
    x[3, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"array: chunk \[0\], rows from 0 on: batch: NaN .* row 3"
    ):
        descramble_fast.dask._moments(there(x), None, None, "chunk [0]")


def test_what_cannot_be_added_is_named_with_its_chunk() -> None:
    x = samples(100, 4)
    x[57, 2] = np.nan
    array = da.from_array(x, chunks=(20, -1))
    fault = r"array: chunk \[2\], which begins at \[40\], .*: batch: NaN .* row 17, column 2"
    with pytest.raises(ValueError, match=fault):
        covariance(array)
    assert covariance(array, mask=np.arange(100) != 57).count == 99
    late = np.ones((6000, 2))
    late[4017, 1] = np.inf
    with pytest.raises(ValueError, match=r"chunk \[1\], .* rows from 1024 on: .* row 0, column 1"):
        covariance(da.from_array(late, chunks=(2993, -1)))
    with pytest.raises(ValueError, match=r"chunk \[1\], which .* weights: got -1.* row 5"):
        covariance(array[:40], weights=np.where(np.arange(40) == 25, -1.0, 1.0))
    with pytest.raises(TypeError, match="int64"):
        covariance(da.ones((4, 2), dtype=np.int64))
    with pytest.raises(TypeError, match="array: got ndarray, expected a Dask array"):
        covariance(x)
    with pytest.raises(ValueError, match=r"expected whole rows: use array.rechunk\({-1: -1}\)"):
        covariance(array.rechunk((20, 2)))
    with pytest.raises(ValueError, match="expected whole rows"):
        covariance(array[0, 0])
    with pytest.raises(ValueError, match=r"mask: got shape \(99,\), expected one entry"):
        covariance(array, mask=np.ones(99, dtype=bool))


# Where arrays come from ---------------------------------------------------------------------------


def test_npy_files_are_read_by_parts(tmp_path: Path) -> None:
    x = samples(3000, 8, dtype=np.float32).reshape(30, 100, 8)
    np.save(tmp_path / "x.npy", x)
    with dask.config.set({"array.chunk-size": "10kB"}):
        array = from_npy(tmp_path / "x.npy")
    assert array.shape == x.shape
    assert array.dtype == x.dtype
    assert array.npartitions > 5
    assert array.numblocks[-1] == 1
    assert_moments(covariance(array), x)
    assert len(pickle.dumps(dict(array.__dask_graph__()))) < x.nbytes / 4  # no content
    np.save(tmp_path / "x.npy", x + 1)
    os.utime(tmp_path / "x.npy", ns=(1, 1))
    assert from_npy(tmp_path / "x.npy").name != array.name  # or results would be taken for old ones
    with pytest.raises(FileNotFoundError):
        from_npy(tmp_path / "y.npy")
    np.savez(tmp_path / "x.npz", x)
    with pytest.raises(ValueError, match="magic"):
        from_npy(tmp_path / "x.npz")
    np.save(tmp_path / "empty.npy", x[:0])
    assert covariance(from_npy(tmp_path / "empty.npy")).count == 0


def test_zarr_arrays(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    x = samples(300, 7)
    stored = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(64, 4), dtype=x.dtype)
    stored[:] = x
    array = da.from_zarr(tmp_path / "x.zarr")
    with pytest.raises(ValueError, match="expected whole rows"):
        covariance(array)
    assert_moments(covariance(array.rechunk({-1: -1})), x)


def test_parquet_files_with_and_without_known_lengths(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pandas, frames = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    x = samples(200, 3)
    names = ["a", "b", "c"]
    for i, part in enumerate(np.array_split(x, 3)):
        pandas.DataFrame(part, columns=names).to_parquet(tmp_path / f"{i}.parquet")
    table = frames.read_parquet(tmp_path)
    assert_moments(covariance(table[names].to_dask_array(lengths=True)), x)
    array = table[names].to_dask_array()
    assert_moments(covariance(array), x)
    with pytest.raises(ValueError, match=r"weights: got shape \(nan,\), .*call array.compute"):
        covariance(array, weights=(table["a"] > 0).to_dask_array().astype(float))


# Processes with little memory ---------------------------------------------------------------------


def test_a_file_larger_than_the_workers_memory(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    n, rows = 256, 800_000
    path = tmp_path / "large.npy"
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, n))
    some = samples(3000, n, dtype=np.float32)
    for begin in (0, 300_000, rows - 3000):  # the rest is zero, and takes no place on the disk
        file[begin : begin + 3000] = some
    file.flush()
    assert file.nbytes > 3 * 250 * 2**20
    del file
    expected = df.Covariance(n).update(np.zeros((1, n), np.float32), weights=[rows - 9000.0])
    expected.update(some, weights=np.full(3000, 3.0))
    with dask.config.set({"array.chunk-size": "16MiB"}):
        array = from_npy(path)
    by_threads = pickle.dumps(covariance(array[:50_000]))
    bad = da.concatenate([array[:40000], da.full((100, n), np.inf, dtype=np.float32)])

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit="250MiB", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = client.run(os.getpid)
        cov = covariance(array)
        by_processes = pickle.dumps(covariance(array[:50_000]))
        with pytest.raises(ValueError, match=r"which begins at \[40000\], .* NaN or infinity"):
            covariance(bad)
        assert client.run(os.getpid) == workers  # none was ended for what it took
    assert os.getpid() not in workers.values()
    assert by_processes == by_threads
    assert cov.count == rows
    error = np.abs(cov.covariance() - expected.covariance()).max()
    assert error <= 1e-6 * expected.covariance().diagonal().max()
    assert sizeof(cov) == pytest.approx(len(pickle.dumps(cov)), rel=0.1)
