"""Streaming moments against two passes in long double."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import cross_two_pass, two_pass, worst

import descramble_fast as df
from descramble_fast import _core

FreshPython = Callable[..., str]

# float64 reaches its rounding. Products of narrower types are summed in float for a few dozen rows:
# the contract is 1e-5 of the largest diagonal element, and 1e-6 between different chunkings.
TIGHT = 1e-12
NARROW = 1e-6
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def samples(rows: int, n: int, mean: float = 0.0, dtype: Any = np.float64, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, n)) @ rng.normal(size=(n, n))
    return (mixed + mean).astype(dtype)


def bits(cov: df.Covariance) -> bytes:
    return pickle.dumps(cov)


def error(cov: df.Covariance, x: Any, weights: Any = None) -> float:
    """Largest error of the covariance beside its largest diagonal element."""
    return worst(cov.covariance(), two_pass(x, weights)[2])


def tolerance(dtype: Any) -> float:
    return TIGHT if dtype == np.float64 else NARROW


def assert_moments(cov: df.Covariance, x: Any, weights: Any = None) -> None:
    mean, second, covariance = two_pass(x, weights)
    deviation = np.sqrt(np.diag(covariance))
    scale, bound = covariance.diagonal().max(), tolerance(x.dtype)
    assert np.abs(cov.covariance() - covariance).max() <= bound * scale
    assert np.abs(cov.second_moment() - second).max() <= bound * second.diagonal().max()
    assert (np.abs(cov.mean - mean) <= TIGHT * np.abs(mean) + bound * deviation).all()


# Against the oracle -------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 150),
    n=st.integers(1, 9),
    kind=st.sampled_from(
        [(dtype, mean) for dtype in (np.float32, np.float64) for mean in (0.0, 1.0, -1e3, 1e6)]
        + [(dtype, mean) for dtype in (np.float16, ml_dtypes.bfloat16) for mean in (0.0, 100.0)]
    ),
    chunks=st.integers(1, 12),
)
@settings(deadline=None, max_examples=120)
def test_any_chunking_and_any_merge_tree_give_the_two_pass_moments(
    seed: int, rows: int, n: int, kind: tuple[Any, float], chunks: int
) -> None:
    dtype, mean = kind
    rng = np.random.default_rng(seed)
    x = samples(rows, n, mean, dtype, seed)
    cuts = np.sort(rng.integers(0, rows + 1, size=chunks - 1))
    parts = [df.Covariance(n).update(part) for part in np.split(x, cuts)]
    one = df.Covariance(n)
    for part in np.split(x, cuts):
        one.update(part)
    while len(parts) > 1:  # a random tree
        i, j = rng.choice(len(parts), size=2, replace=False)
        merged = parts[i].merge(parts[j])
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [merged]
    for cov in (one, parts[0]):
        assert cov.count == rows
        assert_moments(cov, x)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 80),
    dtype=st.sampled_from(DTYPES),
    masked=st.booleans(),
    weighted=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_masks_and_weights_count_rows_as_often_as_they_say(
    seed: int, rows: int, dtype: Any, masked: bool, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = samples(rows, 4, 3.0, dtype, seed)
    mask = rng.random(rows) < 0.6 if masked else None
    weights = rng.integers(0, 4, size=rows) * rng.random(rows) if weighted else None
    w = np.ones(rows) if weights is None else weights.copy()
    if mask is not None:
        w[~mask] = 0
    x[w == 0] = np.nan  # what does not count is not looked at
    cov = df.Covariance(4)
    for part in np.array_split(np.arange(rows), 3):
        cov.update(
            x[part],
            mask=None if mask is None else mask[part],
            weights=None if weights is None else weights[part],
        )
    assert cov.count == (w > 0).sum()
    assert cov.weight == pytest.approx(w.sum(), rel=1e-14)
    if w.any():
        assert_moments(cov, x, w)


def test_integer_weights_repeat_rows() -> None:
    x, repeats = samples(40, 3), np.arange(40) % 5
    weighted = df.Covariance(3).update(x, weights=repeats)
    repeated = df.Covariance(3).update(np.repeat(x, repeats, axis=0))
    assert weighted.weight == repeated.weight == repeated.count
    assert worst(weighted.covariance(ddof=1), repeated.covariance(ddof=1)) <= TIGHT


@pytest.mark.parametrize("n", [1, 47, 48, 49, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_the_kernel_tiles(n: int, dtype: Any) -> None:
    x = samples(1100, n, 2.0, dtype)
    assert_moments(df.Covariance.from_samples(x), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_a_million_times_the_deviation(dtype: Any) -> None:
    x = samples(3000, 8, 1e6, dtype)
    cov = df.Covariance(8)
    for part in np.array_split(x, 7):
        cov.update(part)
    assert error(cov, x) <= tolerance(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_merge_with_a_shard_of_the_opposite_mean(dtype: Any) -> None:
    up, down = samples(500, 5, 1e6, dtype, 1), samples(300, 5, -1e6, dtype, 2)
    merged = df.Covariance.from_samples(up).merge(df.Covariance.from_samples(down))
    assert_moments(merged, np.concatenate([up, down]))
    streamed = df.Covariance(5).update(up).update(down)
    assert_moments(streamed, np.concatenate([up, down]))


def test_a_first_row_far_from_all_others_costs_no_digits() -> None:
    x = samples(2000, 3)
    x[0] = 1e6
    assert error(df.Covariance.from_samples(x), x) <= TIGHT


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.float16, 65504.0),
        (np.float16, 6e-8),
        (np.float32, 3e38),
        (np.float32, 1e-45),
        (ml_dtypes.bfloat16, 3e38),
        (np.float64, 1e150),
        (np.float64, 1e-150),
    ],
)
def test_the_ends_of_the_range(dtype: Any, value: float) -> None:
    signs = np.sign(samples(64, 6))
    x = (signs * value).astype(dtype)
    assert np.isfinite(x.astype(np.float64)).all()
    assert (x != 0).all()
    cov = df.Covariance.from_samples(x)
    assert_moments(cov, x)


# Merging ------------------------------------------------------------------------------------------


def test_an_empty_accumulator_is_neutral_bit_for_bit() -> None:
    full = df.Covariance.from_samples(samples(100, 6, 1e3))
    before = bits(full)
    assert bits(full.merge(df.Covariance(6))) == before
    assert bits(df.Covariance(6).merge(full)) == before


def test_merge_leaves_the_other_as_it_was() -> None:
    a, b = (df.Covariance.from_samples(samples(30, 3, seed=s)) for s in (1, 2))
    before = bits(b)
    a.merge(b)
    assert bits(b) == before


@given(seed=st.integers(0, 2**32 - 1), mean=st.sampled_from([0.0, 1e3, 1e6]))
@settings(deadline=None, max_examples=40)
def test_merge_is_associative_to_rounding(seed: int, mean: float) -> None:
    rng = np.random.default_rng(seed)
    x = [samples(int(rng.integers(0, 50)), 4, mean * (s - 1), seed=seed + s) for s in range(3)]

    def fresh() -> list[df.Covariance]:
        return [df.Covariance.from_samples(part) for part in x]

    a, b, c = fresh()
    left = a.merge(b).merge(c)
    a, b, c = fresh()
    right = a.merge(b.merge(c))
    assert left.count == right.count
    if left.count:
        assert worst(left.covariance(), right.covariance()) <= TIGHT


def test_merge_with_itself_doubles_the_weight_only() -> None:
    cov = df.Covariance.from_samples(samples(50, 4, 10.0))
    before = cov.covariance()
    cov.merge(cov)
    assert (cov.count, cov.weight) == (100, 100.0)
    assert worst(cov.covariance(), before) <= TIGHT


# Shapes and memory layouts ------------------------------------------------------------------------


def test_no_rows_change_nothing() -> None:
    cov = df.Covariance.from_samples(samples(10, 3))
    before = bits(cov)
    for empty in (np.zeros((0, 3)), np.zeros((4, 0, 3)), np.zeros((0, 5, 3))):
        cov.update(empty)
    cov.update(samples(5, 3), mask=np.zeros(5, dtype=bool))
    cov.update(samples(5, 3), weights=np.zeros(5))
    assert bits(cov) == before


@pytest.mark.parametrize("n", [1, 2, 7])
def test_one_row_has_no_covariance(n: int) -> None:
    row = samples(1, n, 1e6)
    for one in (row, row[0]):
        cov = df.Covariance(n).update(one)
        assert cov.count == 1
        assert (cov.mean == row[0]).all()
        assert (cov.covariance() == 0).all()


def test_leading_axes_are_rows() -> None:
    x = samples(2 * 3 * 4, 5).reshape(2, 3, 4, 5)
    w = np.random.default_rng(0).random((2, 3, 4))
    assert_moments(df.Covariance(5).update(x, weights=w), x, w)
    keep = w > 0.5
    assert_moments(df.Covariance(5).update(x, mask=keep), x[keep])
    assert df.Covariance(5).update(x).count == 24


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("rows", "n"), [(70, 5), (1000, 130), (3000, 40)])
def test_16_bit_numbers_far_from_zero_have_exact_products(dtype: Any, rows: int, n: int) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, n)) + 30).astype(dtype)
    whole = df.Covariance.from_samples(x)
    chunks, merged = df.Covariance(n), df.Covariance(n)
    for part in np.array_split(x, 7):
        chunks.update(part)
        merged.merge(df.Covariance.from_samples(part))
    for cov in (whole, chunks, merged):
        assert error(cov, x) <= TIGHT


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: x[1:, 1:],
        lambda x: x[:, ::3],
        lambda x: np.asfortranarray(x),
        lambda x: x.T,
        lambda x: np.broadcast_to(x[3], (20, x.shape[1])),
        lambda x: np.broadcast_to(x[:, :1], (len(x), 5)),
        lambda x: x.reshape(4, 5, 12)[::2, ::-1].transpose(1, 0, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_give_the_bits_of_a_contiguous_copy(
    view: Callable[[Any], Any], dtype: Any
) -> None:
    x = view(samples(20, 12, 3.0, dtype))
    copy = np.array(x, order="C")
    strided, contiguous = df.Covariance.from_samples(x), df.Covariance.from_samples(copy)
    assert bits(strided) == bits(contiguous)
    assert_moments(strided, copy)


def test_read_only_memory_is_read() -> None:
    x = samples(20, 3)
    x.setflags(write=False)
    assert_moments(df.Covariance.from_samples(x), x)


def test_count_passes_two_to_the_32() -> None:
    few = df.Covariance.from_moments(np.eye(2), np.zeros(2), weight=2.0**33)
    few.update(samples(5, 2))
    assert few.count == 2**33 + 5
    one = df.Covariance.from_samples(samples(3, 2))
    for _ in range(40):
        one.merge(one)
    assert one.count == 3 * 2**40


def test_count_cannot_pass_two_to_the_63() -> None:
    cov = df.Covariance.from_samples(samples(2, 2))
    for _ in range(61):
        cov.merge(cov)
    before = bits(cov)
    with pytest.raises(ValueError, match="number of rows"):
        cov.merge(cov)
    assert bits(cov) == before


# Errors leave the state as it was -----------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_in_the_last_row_leaves_the_state_bit_identical(bad: float, dtype: Any) -> None:
    cov = df.Covariance.from_samples(samples(100, 5, 10.0, dtype))
    before = bits(cov)
    last = samples(70, 5, 10.0, dtype, seed=1)
    last[69, 3] = bad
    with pytest.raises(ValueError, match=r"batch.*row 69, column 3"):
        cov.update(last)
    assert bits(cov) == before


def test_the_first_bad_row_is_named_as_it_stands_in_the_batch() -> None:
    x = samples(2000, 5)
    x[1500, 0] = x[1501, 4] = np.nan
    with pytest.raises(ValueError, match="row 1500, column 0"):
        df.Covariance(5).update(x)
    mask = np.arange(2000) != 1500
    with pytest.raises(ValueError, match="row 1501, column 4"):
        df.Covariance(5).update(x, mask=mask)
    mask[1501] = False
    assert_moments(df.Covariance(5).update(x, mask=mask), x[mask])


@pytest.mark.parametrize("value", [1e200, 1e308])
def test_squares_that_overflow_are_refused(value: float) -> None:
    cov = df.Covariance.from_samples(samples(10, 2))
    before = bits(cov)
    with pytest.raises(ValueError, match="overflow"):
        cov.update(np.array([[1.0, value]]))
    assert bits(cov) == before


def test_weights_whose_sum_overflows_are_refused() -> None:
    cov = df.Covariance(2).update(np.zeros((1, 2)))
    before = bits(cov)
    with pytest.raises(ValueError, match="weight"):
        cov.update(np.zeros((2, 2)), weights=np.array([1e308, 1e308]))
    assert bits(cov) == before


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((3, 4)), r"batch: got shape \(3, 4\), expected \(\.\.\., 5\)"),
        (np.zeros(4), r"batch: got shape \(4,\)"),
        (np.array(1.0), "batch: got shape"),
        (np.zeros((1,) * 8 + (5,)), "rank|axes|dimension"),
    ],
)
def test_a_wrong_shape_is_named(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        df.Covariance(5).update(batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((3, 2), dtype=">f8"), "byte order"),
        (np.zeros((3, 2), dtype=">f2"), "byte order"),
        (np.zeros((3, 2), dtype=np.int64), "int64"),
        (np.zeros((3, 2), dtype=np.bool_), "bool"),
        (np.zeros((3, 2), dtype=np.complex128), "complex128"),
        (np.zeros((3, 2), dtype=np.longdouble), "longdouble|float128"),
        (np.zeros((3, 2), dtype=object), "object"),
        (np.ma.masked_array(np.zeros((3, 2))), "masked"),
        ([[1.0, 2.0]], "list"),
        (None, "NoneType"),
        ("ab", "str"),
    ],
)
def test_what_is_no_floating_array_is_a_type_error(batch: Any, message: str) -> None:
    cov = df.Covariance(2)
    with pytest.raises(TypeError, match=message):
        cov.update(batch)
    with pytest.raises(TypeError):
        df.Covariance.from_samples(batch)
    assert cov.count == 0


def test_an_integer_mask_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"mask.*int64.*bool"):
        df.Covariance(2).update(samples(3, 2), mask=np.ones(3, dtype=np.int64))


@pytest.mark.parametrize("argument", ["mask", "weights"])
@pytest.mark.parametrize("shape", [(3,), (4, 1), (4, 2), ()])
def test_a_selector_has_one_entry_per_row(argument: str, shape: tuple[int, ...]) -> None:
    selector = np.ones(shape, dtype=np.bool_ if argument == "mask" else np.float64)
    with pytest.raises(ValueError, match=argument):
        df.Covariance(2).update(samples(4, 2), **{argument: selector})


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_bad_weight_is_named_by_row(bad: float) -> None:
    cov = df.Covariance.from_samples(samples(4, 2))
    before = bits(cov)
    with pytest.raises(ValueError, match=r"weights.*row 2"):
        cov.update(samples(4, 2), weights=np.array([1, 1, bad, 1]))
    assert bits(cov) == before
    mask = np.array([True, True, False, True])  # masked out, it is not looked at
    cov.update(samples(4, 2), mask=mask, weights=np.array([1, 1, bad, 1]))
    assert cov.count == 7


@pytest.mark.parametrize("n", [0, -1])
def test_there_is_at_least_one_feature(n: int) -> None:
    with pytest.raises(ValueError, match="n_features"):
        df.Covariance(n)


def test_a_state_beyond_all_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        df.Covariance(2**24, device="cpu")  # 2^51 bytes, more than an address space


@pytest.mark.skipif(df.cuda_available(), reason="a CUDA device can be used")
def test_a_device_that_cannot_be_used_is_a_backend_error() -> None:
    with pytest.raises(df.BackendError, match=r"device: .*cuda"):
        df.Covariance(2, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0:1"])
def test_a_device_that_does_not_exist_is_a_value_error(device: str) -> None:
    with pytest.raises(ValueError, match="device: "):
        df.Covariance(2, device=device)


def test_moments_of_nothing_are_undefined() -> None:
    empty = df.Covariance(2)
    for undefined in (empty.second_moment, empty.covariance, lambda: empty.mean):
        with pytest.raises(ValueError, match="no samples"):
            undefined()


def test_ddof_must_leave_a_positive_divisor() -> None:
    cov = df.Covariance.from_samples(samples(3, 2))
    expected = np.cov(samples(3, 2), rowvar=False, ddof=1)
    assert worst(cov.covariance(ddof=1), expected) <= TIGHT
    with pytest.raises(ValueError, match="ddof"):
        cov.covariance(ddof=3)


@pytest.mark.parametrize("other", [3, None, np.eye(2)])
def test_only_a_covariance_can_be_merged(other: Any) -> None:
    with pytest.raises(TypeError, match="other"):
        df.Covariance(2).merge(other)


def test_merging_another_size_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="other: got 3 features, expected 2"):
        df.Covariance(2).merge(df.Covariance(3))


# Saved state --------------------------------------------------------------------------------------


def test_pickle_and_file_keep_every_bit(tmp_path: Path) -> None:
    for cov in (
        df.Covariance(3),
        df.Covariance.from_samples(samples(20, 3, 1e6, np.float32)),
        df.Covariance(3).update(samples(20, 3), weights=np.linspace(0, 1, 20)),
        df.Covariance.from_moments(np.eye(3)),
    ):
        cov.save(tmp_path / "c.safetensors")
        back = df.Covariance.load(tmp_path / "c.safetensors")
        assert bits(back) == bits(cov)
        assert bits(pickle.loads(bits(cov))) == bits(cov)
        assert (back.count, back.weight) == (cov.count, cov.weight)
        assert back.input_dtypes == cov.input_dtypes


def test_a_loaded_state_goes_on_as_if_never_saved(tmp_path: Path) -> None:
    x = samples(60, 4, 1e6)
    through = df.Covariance(4).update(x[:30]).update(x[30:])
    half = df.Covariance(4).update(x[:30])
    half.save(tmp_path / "half")
    resumed = df.Covariance.load(str(tmp_path / "half")).update(x[30:])
    assert bits(resumed) == bits(half.update(x[30:]))
    assert worst(resumed.covariance(), through.covariance()) <= TIGHT


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    df.Covariance.from_samples(samples(5, 2)).save(path)
    old = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    for step in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="no space left"):
                df.Covariance.from_samples(samples(9, 2)).save(path)
        assert path.read_bytes() == old
        assert list(tmp_path.iterdir()) == [path]


def test_a_new_name_that_is_not_on_the_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sync = tmp_path / "c.safetensors", os.fsync

    def fail(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), tmp_path.stat()):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    for number in (errno.EINVAL, errno.EIO):  # what a file system cannot do, and what went wrong
        try:
            df.Covariance(2).save(path)
            told = ""
        except OSError as error:
            told = error.filename
        assert told == ("" if number == errno.EINVAL else str(path))
        assert df.Covariance.load(path).count == 0


def test_what_killed_writers_left_goes_with_the_next_save(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "c[1].safetensors"
    dead, alive, other = (
        tmp_path / name
        for name in (
            ".c[1].safetensors.0123456789abcdef.tmp",
            ".c[1].safetensors.0123456789abcdee.tmp",
            ".c1.safetensors.0123456789abcdef.tmp",
        )
    )
    for part in (dead, alive, other):
        part.write_bytes(b"begun")
    with open(alive, "rb") as held:  # as its writer does
        fcntl.flock(held, fcntl.LOCK_EX)
        df.Covariance(2).save(path)
        assert set(tmp_path.iterdir()) == {path, alive, other}
    df.Covariance(2).save(path)
    assert set(tmp_path.iterdir()) == {path, other}


def test_a_missing_folder_or_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        df.Covariance(2).save(tmp_path / "nowhere" / "c")
    with pytest.raises(FileNotFoundError):
        df.Covariance.load(tmp_path / "nothing")
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the platform
        df.Covariance.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 8, 20, -1])
def test_a_truncated_file_is_a_value_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c"
    df.Covariance.from_samples(samples(5, 3)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="path"):
        df.Covariance.load(path)


def test_garbage_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(ValueError, match="path"):
        df.Covariance.load(path)
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="no covariance"):
        df.Covariance.load(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t, _: t["scatter"].__setitem__(1, np.nan),
        lambda t, _: t["reference"].__setitem__(0, np.inf),
        lambda t, _: t["offset"].__setitem__(0, np.nan),
        lambda t, _: t["scatter"].__setitem__(1, 1.7e308),
        lambda t, _: t["weight"].__setitem__(0, np.nan),
        lambda t, _: t["weight"].__setitem__(0, -1.0),
        lambda t, _: t["count"].__setitem__(0, -1),
        lambda t, _: t.update(scatter=t["scatter"][:-1]),
        lambda t, _: t.update(offset=t["offset"][:-1]),
        lambda t, _: t.update(reference=np.zeros(0), offset=np.zeros(0), scatter=np.zeros(0)),
        lambda t, _: t.update(count=np.zeros(0, dtype=np.int64)),
        lambda t, _: t.update(weight=np.zeros(0)),
        lambda t, _: t.update(count=t["count"].astype(np.float64)),
        lambda t, _: t.update(scatter=t["scatter"].astype(np.float32)),
        lambda t, _: t.pop("scatter"),
        lambda _, m: m.update(schema="2"),
        lambda _, m: m.update(format="something.else"),
        lambda _, m: m.clear(),
    ],
    ids=[
        "nan-scatter",
        "inf-reference",
        "nan-offset",
        "impossible-scatter",
        "nan-weight",
        "negative-weight",
        "negative-count",
        "short-scatter",
        "short-offset",
        "no-features",
        "no-count",
        "no-weight",
        "float-count",
        "float32-scatter",
        "missing-scatter",
        "later-schema",
        "other-format",
        "no-metadata",
    ],
)
def test_a_file_that_save_never_wrote_is_a_value_error(
    tmp_path: Path, spoil: Callable[[dict[str, Any], dict[str, str]], Any]
) -> None:
    path = tmp_path / "c"
    df.Covariance.from_samples(samples(5, 3)).save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = {name: t.copy() for name, t in safetensors.numpy.load_file(path).items()}
    spoil(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    with pytest.raises(ValueError):  # noqa: PT011 - the message names what is wrong, each its own
        df.Covariance.load(path)


# Moments from elsewhere ---------------------------------------------------------------------------


def test_from_moments_gives_back_what_it_took() -> None:
    mean, second, covariance = two_pass(samples(100, 4, 3.0))
    cov = df.Covariance.from_moments(second, mean, weight=100)
    assert (cov.count, cov.weight) == (100, 100.0)
    assert (cov.mean == mean).all()
    # K = C - mu mu^T: an error of rounding in C, of size 9, is all that may be seen.
    assert np.abs(cov.second_moment() - second).max() <= 1e-14 * second.max()
    assert np.abs(cov.covariance() - covariance).max() <= 1e-14 * second.max()


def test_from_moments_streams_on() -> None:
    x = samples(100, 4, 3.0)
    mean, second, _ = two_pass(x[:60])
    cov = df.Covariance.from_moments(second, mean, weight=60).update(x[60:])
    assert_moments(cov, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.eye(3)[:2],), r"second_moment.*\(2, 3\)"),
        ((np.zeros(3),), "second_moment"),
        ((np.array([[1.0, 0.5], [0.4, 1.0]]),), "symmetric"),
        ((np.array([[1.0, np.nan], [np.nan, 1.0]]),), "second_moment.*row 0, column 1"),
        ((np.eye(2), np.zeros(3)), "mean"),
        ((np.eye(2), np.array([0.0, np.inf])), "mean"),
        ((np.eye(2), None, 0.0), "weight"),
        ((np.eye(2), None, -1.0), "weight"),
        ((np.eye(2), None, np.nan), "weight"),
        ((1e300 * np.eye(2), None, 1e10), "overflow"),
        ((1e300 * np.eye(2), np.array([1e200, 0.0])), "overflow"),
    ],
)
def test_moments_that_cannot_be_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        df.Covariance.from_moments(*arguments)


def test_combine_adds_normalised_second_moments() -> None:
    x, y = samples(50, 3, 2.0), samples(20, 3, -1.0, seed=1)
    joint = df.Covariance.combine(
        [df.Covariance.from_samples(x), df.Covariance.from_samples(y)], [0.25, 3.0]
    )
    assert worst(joint.second_moment(), 0.25 * two_pass(x)[1] + 3.0 * two_pass(y)[1]) <= TIGHT


@pytest.mark.parametrize(
    "joint",
    [
        df.Covariance.combine([df.Covariance.from_samples(samples(50, 3, 2.0))], [2.0]),
        df.Covariance.from_moments(np.eye(3)),
    ],
    ids=["combined", "without a mean"],
)
def test_a_second_moment_without_a_mean_refuses_what_needs_one(joint: df.Covariance) -> None:
    before = bits(joint)
    needs_mean: list[Callable[[], Any]] = [
        joint.covariance,
        lambda: joint.mean,
        lambda: joint.update(samples(5, 3)),
        lambda: joint.merge(df.Covariance.from_samples(samples(5, 3))),
        lambda: df.Covariance.from_samples(samples(5, 3)).merge(joint),
        lambda: df.descramble(joint, operator=df.operators.fourier(3), center=True),
    ]
    for refused in needs_mean:
        with pytest.raises(ValueError, match="mean"):
            refused()
    assert bits(joint) == before


def test_combine_refuses_what_does_not_fit() -> None:
    one, two = df.Covariance.from_moments(np.eye(1)), df.Covariance.from_moments(np.eye(2))
    for covs, weights, message in [
        ([], [], "covs"),
        ([one, two], [1.0, 1.0], "covs: entry 1"),
        ([one], [1.0, 1.0], "weights"),
        ([one], [-1.0], "weights"),
        ([one], [np.nan], "weights"),
        ([one, df.Covariance(1)], [1.0, 1.0], "entry 1 has no samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            df.Covariance.combine(covs, weights)
    with pytest.raises(TypeError, match="entry 1"):
        df.Covariance.combine([one, np.eye(1)], [1.0, 1.0])


# Reproducibility ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("default_threads")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_again_and_with_two_threads(dtype: Any) -> None:
    x = samples(5000, 130, 1.0, dtype)

    def streamed() -> bytes:
        cov = df.Covariance(130).update(x[:3000]).update(x[3000:], weights=np.arange(2000.0))
        return bits(cov)

    df.set_num_threads(1)
    one = streamed()
    assert streamed() == one
    df.set_num_threads(2)
    assert streamed() == one


def test_the_types_seen_are_recorded() -> None:
    cov = df.Covariance(2)
    for dtype in DTYPES:
        cov.update(samples(3, 2, 0.0, dtype))
    assert cov.input_dtypes == ("bfloat16", "float16", "float32", "float64")


# Arithmetic ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_valued_features_do_not_drift(dtype: Any) -> None:
    # Every product of a column is the same number, so that rounding never averages out.
    rng = np.random.default_rng(0)
    x = (rng.random((20_000, 40)) < rng.random(40)) * rng.random(40)
    x = x.astype(dtype)
    whole = df.Covariance.from_samples(x)
    assert_moments(whole, x)
    pieces = df.Covariance(40)
    for part in np.array_split(x, 37):
        pieces.update(part)
    assert worst(pieces.covariance(), whole.covariance()) <= tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_that_drifts_costs_no_digits(dtype: Any) -> None:
    span = 100.0 if np.dtype(dtype).itemsize == 2 else 1e5
    x = samples(9000, 5) + np.linspace(0, span, 9000)[:, None]
    x = x.astype(dtype)
    cov = df.Covariance(5)
    for part in np.array_split(x, 9):
        cov.update(part)
    assert_moments(cov, x)
    assert_moments(df.Covariance.from_samples(x[::-1]), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_feature_has_no_variance(dtype: Any) -> None:
    x = samples(3000, 4, 0.0, dtype)
    x[:, 2] = 0.7
    cov = df.Covariance.from_samples(x)
    assert_moments(cov, x)
    assert cov.covariance()[2, 2] == 0
    assert cov.mean[2] == x[0, 2]


def test_the_scale_of_one_feature_costs_another_nothing() -> None:
    scales = np.float32([1e-30, 1e-12, 1.0, 1e12, 1e30])
    x = samples(2000, 5, 0.0, np.float32) * scales
    products = np.outer(scales.astype(np.float64), scales.astype(np.float64))
    expected = two_pass(x)[2] / products
    assert worst(df.Covariance.from_samples(x).covariance() / products, expected) <= NARROW


def test_bfloat16_far_from_zero_is_not_multiplied_as_it_is() -> None:
    x = samples(4000, 6, 200.0, ml_dtypes.bfloat16)
    near, far = df.Covariance(6), df.Covariance(6)
    near.update(samples(4000, 6, 0.0, ml_dtypes.bfloat16)).update(x)
    far.update(x)
    assert error(far, x) <= NARROW
    assert far.covariance().diagonal().max() < 100


@pytest.mark.parametrize("n", [40, 600])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_after_many_good_rows_leaves_the_state_bit_identical(n: int, dtype: Any) -> None:
    rows = 2 * (8192 if n == 40 else 7000)  # more than are packed at once
    x = np.ones((rows, n), dtype=dtype) * (np.arange(n) % 7).astype(dtype)
    x[::3] = 0
    x[-1, n - 1] = np.nan
    cov = df.Covariance(n).update(x[:1000])
    before = bits(cov)
    with pytest.raises(ValueError, match=f"row {rows - 1}, column {n - 1}"):
        cov.update(x)
    assert bits(cov) == before
    cov.update(x[:-1])
    good = np.concatenate([x[:1000], x[:-1]]).astype(np.float64)
    assert worst(cov.second_moment(), good.T @ good / len(good)) <= tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_few_rows_at_a_time_give_the_moments_of_all(dtype: Any) -> None:
    x = samples(3000, 70, 1.0, dtype)
    weights = np.random.default_rng(0).random(3000)
    weights[:1000] = 1  # weights that come later do not touch rows that wait
    cov = df.Covariance(70)
    for begin in range(0, 3000, 32):
        part = slice(begin, begin + 32)
        cov.update(x[part], weights=weights[part] if begin >= 1000 else None)
        assert cov.count == min(begin + 32, 3000)
    weights[992:1024] = 1  # the batch that began before 1000
    assert cov.weight == pytest.approx(weights.sum(), rel=1e-14)
    assert_moments(cov, x, weights)


def test_rows_that_wait_are_the_callers_no_more() -> None:
    x = samples(10, 3)
    cov = df.Covariance(3).update(x)
    expected = x.copy()
    x[:] = np.nan
    assert_moments(cov, expected)


def test_rows_of_different_types_wait_one_after_another() -> None:
    parts = [samples(5, 3, 1.0, dtype, seed) for seed, dtype in enumerate(DTYPES * 2)]
    cov = df.Covariance(3)
    for part in parts:
        cov.update(part)
    every = np.concatenate([part.astype(np.float64) for part in parts])
    assert error(cov, every) <= NARROW


VARIANTS = """
import sys
import ml_dtypes
import numpy as np
import descramble_fast as df

rng = np.random.default_rng(0)
wide = rng.normal(size=(3000, 90)) @ rng.normal(size=(90, 90)) + 1
moments = []
for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
    x = wide.astype(dtype)
    cov = df.Covariance(90).update(x).update(x[:700], weights=np.arange(700.0))
    for part in np.array_split(x, 100):
        cov.update(part)
    moments.append(cov.covariance())
np.save(sys.argv[1], np.stack(moments))
"""


def test_instruction_sets_agree(
    fresh_python: FreshPython, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {}
    for name in _core.instruction_sets():
        monkeypatch.setenv("DESCRAMBLE_FAST_SIMD", name)
        fresh_python(VARIANTS, tmp_path / "moments.npy")
        found[name] = np.load(tmp_path / "moments.npy")
    for moments in found.values():
        for dtype, mine, baseline in zip(DTYPES, moments, found["baseline"], strict=True):
            assert worst(mine, baseline) <= tolerance(dtype)


# Cross moments ------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 120),
    mean=st.sampled_from([0.0, 1e3, 1e6]),
    dtype=st.sampled_from([np.float32, np.float64]),
    weighted=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_cross_moments_equal_two_passes(
    seed: int, rows: int, mean: float, dtype: Any, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    both = samples(rows, 7, mean, dtype, seed)
    x, y = both[:, :3], both[:, 3:] * dtype(-2)
    w = rng.random(rows) if weighted else np.ones(rows)
    cut = int(rng.integers(0, rows + 1))
    head = df.CrossCovariance(3, 4).update(x[:cut], y[:cut], weights=w[:cut])
    tail = df.CrossCovariance(3, 4).update(x[cut:], y[cut:], weights=w[cut:])
    streamed = df.CrossCovariance(3, 4)
    for part in np.array_split(np.arange(rows), 3):
        streamed.update(x[part], y[part], weights=w[part] if weighted else None)
    moment, covariance = cross_two_pass(x, y, w)
    joint = two_pass(np.concatenate([x, y], axis=1), w)[2].diagonal().max()
    for cross in (streamed, head.merge(tail)):
        assert cross.count == rows
        assert worst(cross.cross_moment(), moment) <= tolerance(dtype)
        assert np.abs(cross.cross_covariance() - covariance).max() <= tolerance(dtype) * joint


def test_correlation_is_pearsons() -> None:
    both = samples(500, 6, 1e6)
    x, y = both[:, :2], both[:, 2:]
    expected = two_pass(both)[2]
    scale = np.sqrt(expected.diagonal())
    expected /= np.outer(scale, scale)
    cross = df.CrossCovariance(2, 4).update(x, y)
    assert np.abs(cross.correlation() - expected[:2, 2:]).max() <= TIGHT
    assert np.abs(df.CrossCovariance(2, 2).update(x, x).correlation().diagonal() - 1).max() <= TIGHT


def test_a_constant_feature_correlates_with_nothing() -> None:
    x = np.column_stack([np.full(10, 7.0), np.arange(10.0)])
    correlation = df.CrossCovariance(2, 2).update(x, x).correlation()
    np.testing.assert_allclose(correlation, [[0, 0], [0, 1]], atol=1e-15)


def test_cross_merge_with_an_empty_one_is_neutral() -> None:
    x = samples(40, 5, 1e3)
    full = df.CrossCovariance(2, 3).update(x[:, :2], x[:, 2:])
    expected = full.cross_covariance().tobytes()
    assert full.merge(df.CrossCovariance(2, 3)).cross_covariance().tobytes() == expected
    assert df.CrossCovariance(2, 3).merge(full).cross_covariance().tobytes() == expected


def test_a_nan_in_the_second_side_leaves_the_cross_state_bit_identical() -> None:
    x = samples(40, 5)
    cross = df.CrossCovariance(2, 3).update(x[:, :2], x[:, 2:])
    before = [a.tobytes() for a in (cross.cross_moment(), cross.correlation())]
    bad = x.copy()
    bad[39, 4] = np.nan
    with pytest.raises(ValueError, match=r"y: .*row 39, column 2"):
        cross.update(bad[:, :2], bad[:, 2:])
    assert [a.tobytes() for a in (cross.cross_moment(), cross.correlation())] == before
    mask = np.arange(40) < 39
    assert cross.update(bad[:, :2], bad[:, 2:], mask=mask).count == 79


def test_cross_sides_must_pair_up() -> None:
    cross = df.CrossCovariance(2, 3)
    with pytest.raises(ValueError, match="y: got shape"):
        cross.update(np.zeros((4, 2)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="x: got shape"):
        cross.update(np.zeros((4, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="other"):
        cross.merge(df.CrossCovariance(3, 2))
    with pytest.raises(TypeError, match="other"):
        cross.merge(df.Covariance(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no samples"):
        cross.cross_moment()
    with pytest.raises(ValueError, match="n_y"):
        df.CrossCovariance(2, 0)


def matrices(cov: df.Covariance) -> list[NDArray[np.float64]]:
    return [cov.mean, cov.second_moment(), cov.covariance(), cov.covariance(ddof=1)]


def test_results_are_float64_symmetric_and_the_callers_own() -> None:
    cov = df.Covariance.from_samples(samples(9, 4, dtype=np.float32))
    for result in matrices(cov):
        assert result.dtype == np.float64
        assert (result == result.T).all()
        result[:] = np.nan
    assert all(np.isfinite(result).all() for result in matrices(cov))


def test_merging_what_overflows_leaves_the_state() -> None:
    far = df.Covariance.from_moments(np.array([[1e300]]), np.array([1e150]), 2e7)
    opposite = df.Covariance.from_moments(np.array([[1e300]]), np.array([-1e150]), 2e7)
    # Products that no samples have, as a file may say.
    x = 2e307
    wide = df.Covariance.from_moments(np.array([[x, x], [x, 0]]), np.zeros(2))
    high = df.Covariance.from_moments(np.array([[0, x], [x, x]]), np.zeros(2))
    for one, other in ((far, opposite), (wide, high)):
        before = pickle.dumps(one)
        with pytest.raises(ValueError, match="overflow"):
            one.merge(other)
        assert pickle.dumps(one) == before


def test_what_is_merged_can_be_kept() -> None:
    x = 1e305
    one = df.Covariance.from_moments(np.array([[x, x], [x, 0]]), np.zeros(2))
    one.merge(df.Covariance.from_moments(np.array([[0, x], [x, x]]), np.zeros(2)))
    assert (one.second_moment() == [[x / 2, x], [x, x / 2]]).all()
    assert pickle.dumps(pickle.loads(pickle.dumps(one))) == pickle.dumps(one)


def test_rows_beside_moments_from_elsewhere_stay_finite() -> None:
    with pytest.raises(ValueError, match=r"second_moment: .*room"):
        df.Covariance.from_moments(np.array([[8.98e307]]), weight=2)
    cov = df.Covariance.from_moments(np.array([[2.2e307]]), np.array([0.0]))
    cov.update(np.array([[3e151], [-3e151]] * 1000))
    assert np.isfinite(cov.second_moment()).all()
    pickle.loads(pickle.dumps(cov))


def test_a_combination_that_overflows_is_refused() -> None:
    part = df.Covariance.from_moments(1e300 * np.eye(2))
    with pytest.raises(ValueError, match="overflow"):
        df.Covariance.combine([part, part], [1e300, 1.0])
    beside = df.Covariance.from_moments(np.array([[1, 1e302], [1e302, 1]]))
    with pytest.raises(ValueError, match="overflow"):
        df.Covariance.combine([beside], [1e10])


def test_a_first_row_of_no_weight_to_speak_of_costs_no_digits() -> None:
    x = np.array([[1e17], [1.0], [2.0], [3.0]])
    cov = df.Covariance(1).update(x, weights=np.array([1e-60, 1.0, 1.0, 1.0]))
    assert abs(cov.mean[0] - 2) <= 1e-15
    assert abs(cov.covariance()[0, 0] - 2 / 3) <= 1e-15


def test_subnormal_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights"):
        df.Covariance(1).update(np.ones((2, 1)), weights=np.array([1.0, 3e-323]))


def test_long_batches_lose_nothing_against_chunks() -> None:
    # One-sided rounding: nearly all rows are the same number off the reference.
    x = np.zeros((4_000_000, 1))
    x[::10] = np.random.default_rng(0).random((400_000, 1))
    x[0] = 0.7
    whole, parts = df.Covariance.from_samples(x), df.Covariance(1)
    for chunk in np.array_split(x, 2000):
        parts.update(chunk)
    moment = parts.second_moment()[0, 0]
    assert abs(whole.second_moment()[0, 0] - moment) <= 1e-12 * moment
    assert abs(whole.mean[0] - parts.mean[0]) <= 1e-12


def test_moments_that_contradict_their_mean_are_refused() -> None:
    with pytest.raises(ValueError, match="semidefinite"):
        df.Covariance.from_moments(np.eye(2), np.array([5.0, 0.0]))


def test_a_saved_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    df.Covariance.from_samples(np.eye(2)).save(tmp_path / "saved")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "saved"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: df.Covariance(2.0), TypeError),
        (lambda: df.Covariance("a"), TypeError),
        (lambda: df.Covariance(2**70), ValueError),
        (lambda: df.eigh(np.eye(3), k=2.0), TypeError),
        (lambda: df.descramble(np.eye(3), k=2.0), TypeError),
        (lambda: df.operators.fourier(4.0), TypeError),
        (lambda: df.operators.grid((2.7, 3)), TypeError),
        (lambda: df.set_num_threads(2**40), ValueError),
        (lambda: df.descramble_weights(np.ones((0, 3)), criterion="trace"), ValueError),
        (lambda: df.descramble_weights(np.ones((3, 0))), ValueError),
    ],
)
def test_sizes_that_are_none_are_refused_by_name(
    call: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^(n_features|k|n|shape|W): "):
        call()
