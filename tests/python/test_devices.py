"""The same statements about every device that arrays can lie on."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from devices import WAYS, CudaInterfaceOnly, Put, host, on_cuda
from numpy.typing import NDArray
from reference import (
    EPS,
    best_assignment,
    cross_two_pass,
    spread_moment,
    symmetric,
    two_pass,
    worst,
)

import descramble_fast as df
from descramble_fast import _core

each_way = pytest.mark.parametrize("put", WAYS)
each_dtype = pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda t: t.__name__
)


def samples(rows: int, n: int, mean: float = 0.0, dtype: Any = np.float64, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, n)) @ rng.normal(size=(n, n)) + mean).astype(dtype)


def tolerance(dtype: Any) -> float:
    return 1e-12 if dtype == np.float64 else 1e-6


def put_if_named(put: Put, dtype: Any) -> None:
    if dtype is ml_dtypes.bfloat16 and put is not np.asarray and put is not _FROM_NUMPY:
        pytest.skip("torch and CuPy do not take NumPy's bfloat16")


_FROM_NUMPY = _core.DeviceArray.from_numpy


def assert_moments(cov: df.Covariance, x: Any, weights: Any = None) -> None:
    mean, second, covariance = two_pass(x, weights)
    bound = tolerance(x.dtype)
    scale = covariance.diagonal().max()
    assert np.abs(host(cov.covariance()) - covariance).max() <= bound * scale
    assert worst(host(cov.second_moment()), second) <= bound
    assert np.abs(host(cov.mean) - mean).max() <= bound * (np.abs(mean).max() + np.sqrt(scale))


# Moments ------------------------------------------------------------------------------------------


@each_way
@each_dtype
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_moments_are_those_of_two_passes(put: Put, dtype: Any, mean: float) -> None:
    put_if_named(put, dtype)
    x = samples(300, 20, mean, dtype)
    cov = df.Covariance(20).update(put(x[:97])).update(put(x[97:].reshape(7, 29, 20)))
    assert (cov.count, cov.weight) == (300, 300.0)
    assert_moments(cov, x)


@each_way
def test_masks_and_weights_choose_rows(put: Put) -> None:
    x = samples(200, 9)
    rng = np.random.default_rng(1)
    mask, weights = rng.random(200) < 0.7, rng.integers(0, 3, 200).astype(np.float64)
    x[~mask] = np.nan
    cov = df.Covariance(9).update(put(x), mask=put(mask), weights=put(weights))
    kept = mask & (weights > 0)
    assert (cov.count, cov.weight) == (kept.sum(), weights[mask].sum())
    assert_moments(cov, x[kept], weights[kept])


@each_way
def test_a_bad_batch_changes_nothing_and_is_named(put: Put) -> None:
    x = samples(50, 6)
    bad = x.copy()
    bad[17, 4] = np.nan
    cov = df.Covariance(6).update(put(x))
    before = host(cov.covariance())
    with pytest.raises(ValueError, match="row 17, column 4"):
        _ = cov.update(put(bad)).count
    cov_after = host(cov.covariance())
    assert np.array_equal(before, cov_after)
    assert cov.update(put(x)).count == 100


@each_way
def test_merging_is_adding_samples(put: Put) -> None:
    x = samples(120, 7, mean=5.0)
    parts = [df.Covariance.from_samples(put(part)) for part in (x[:50], x[50:60], x[60:])]
    merged = df.Covariance(7).merge(parts[0]).merge(parts[1]).merge(parts[2])
    assert merged.count == 120
    assert_moments(merged, x)


@each_way
def test_saved_state_comes_back(put: Put, tmp_path: Path) -> None:
    x = samples(80, 5, mean=3.0)
    cov = df.Covariance.from_samples(put(x))
    cov.save(tmp_path / "state.safetensors")
    for device in dict.fromkeys(("cpu", cov.device)):
        loaded = df.Covariance.load(tmp_path / "state.safetensors", device=device)
        assert loaded.device == device
        assert loaded.count == 80
        assert isinstance(loaded.mean, np.ndarray if device == "cpu" else _core.DeviceArray)
        assert_moments(loaded, x)


@each_way
def test_moments_without_samples_come_back(put: Put, tmp_path: Path) -> None:
    empty = df.Covariance(3).update(put(np.empty((0, 3))))
    empty.save(tmp_path / "empty.safetensors")
    loaded = df.Covariance.load(tmp_path / "empty.safetensors", device=empty.device)
    assert loaded.device == empty.device
    assert (loaded.count, loaded.update(put(samples(8, 3))).count) == (0, 8)
    assert pickle.loads(pickle.dumps(empty)).count == 0


@each_way
def test_weights_may_be_integers_and_selectors_lists(put: Put) -> None:
    x, weights = samples(30, 3), np.arange(30) % 3
    mask = weights != 1
    for cov in (
        df.Covariance(3).update(put(x), weights=put(weights)),
        df.Covariance(3).update(put(x), weights=weights.tolist()),
        df.Covariance(3).update(put(x), mask=mask.tolist(), weights=weights.tolist()),
    ):
        assert cov.device == df.Covariance.from_samples(put(x)).device
    assert_moments(cov, x[weights == 2])
    assert df.Covariance(3).update(put(x), weights=put(mask)).count == 20


@each_way
def test_cross_moments(put: Put) -> None:
    x, y = samples(150, 6, 2.0), samples(150, 4, -1.0, seed=3)
    y[:, 0] += x[:, 0]
    cross = df.CrossCovariance(6, 4)
    cross.update(put(x[:70]), put(y[:70])).update(put(x[70:]), put(y[70:]))
    second, covariance = cross_two_pass(x, y)
    assert worst(host(cross.cross_moment()), second) <= 1e-12
    assert worst(host(cross.cross_covariance()), covariance) <= 1e-12
    expected = covariance / np.outer(x.std(axis=0), y.std(axis=0))
    assert np.abs(host(cross.correlation()) - expected).max() <= 1e-12


@each_way
def test_combined_moments_lie_where_their_parts_do(put: Put) -> None:
    a, b = spread_moment(5, np.random.default_rng(0)), spread_moment(5, np.random.default_rng(1))
    parts = [df.Covariance.from_moments(put(a)), df.Covariance.from_moments(put(b))]
    both = df.Covariance.combine(parts, [1.0, 0.5])
    assert both.device == parts[0].device
    assert worst(host(both.second_moment()), a + b / 2) <= 4 * EPS


# Eigenproblems ------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize(("batch", "n", "k"), [(5, 1, 1), (7, 6, 6), (3, 33, 33), (2, 40, 5)])
def test_eigenpairs(put: Put, dtype: Any, batch: int, n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    a = np.stack([symmetric(n, rng) for _ in range(batch)]).astype(dtype)
    w = df.eigh(put(a), k=None if k == n else k)
    values, vectors = host(w.eigenvalues), host(w.eigenvectors)
    assert values.dtype == vectors.dtype == dtype
    assert (values.shape, vectors.shape) == ((batch, k), (batch, n, k))
    limit = 50 * n * np.finfo(dtype).eps
    wide, v = a.astype(np.float64), vectors.astype(np.float64)
    norm = np.linalg.norm(wide, ord=2, axis=(1, 2))
    residual = np.linalg.norm(wide @ v - v * values[:, None, :], axis=(1, 2))
    assert (residual <= limit * norm).all()
    assert np.abs(v.swapaxes(1, 2) @ v - np.eye(k)).max() <= limit
    assert (np.diff(values) >= 0).all()
    expected = np.linalg.eigvalsh(wide)[:, n - k :]
    assert np.abs(values - expected).max() <= limit * norm.max()


@each_way
def test_a_bad_matrix_is_named(put: Put) -> None:
    a = np.stack([np.eye(4)] * 3)
    a[2, 3, 1] = np.inf
    with pytest.raises(ValueError, match="row 3, column 1 of matrix 2"):
        df.eigh(put(a))


# Assignment ---------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4)])
def test_assignments_are_optimal(put: Put, maximize: bool, n: int, m: int) -> None:
    costs = np.random.default_rng(n).random((3, n, m))
    r = df.linear_assignment(put(costs), maximize=maximize)
    columns, u, v = host(r.columns), host(r.row_duals), host(r.column_duals)
    for b, cost in enumerate(costs):
        rows = np.flatnonzero(columns[b] >= 0)
        assert len(set(columns[b][rows])) == len(rows) == min(n, m)
        assert abs(cost[rows, columns[b][rows]].sum() - best_assignment(cost, maximize)) <= 1e-12
        slack = (u[b][:, None] + v[b] - cost) * (-1 if maximize else 1)
        assert slack.max() <= 1e-12
    assert np.array_equal(columns, host(df.linear_assignment(costs, maximize=maximize).columns))


@each_way
def test_ties_are_broken_the_same_way_everywhere(put: Put) -> None:
    costs = np.random.default_rng(0).integers(0, 3, (40, 8, 8)).astype(np.float32)
    here = df.linear_assignment(costs)
    there = df.linear_assignment(put(costs))
    assert np.array_equal(host(here.columns), host(there.columns))
    assert np.array_equal(host(here.cost), host(there.cost))


@each_way
def test_integer_costs_are_exact_and_stay_where_they_are(put: Put) -> None:
    costs = np.random.default_rng(0).integers(0, 9, (5, 6, 6))
    here, there = df.linear_assignment(costs), df.linear_assignment(put(costs))
    assert type(there.columns) is type(put(costs))
    assert np.array_equal(host(there.columns), here.columns)
    assert np.array_equal(host(there.cost), here.cost)


@on_cuda
def test_the_way_of_integer_costs_is_in_the_route() -> None:
    r = df.linear_assignment(_FROM_NUMPY(np.arange(4096).reshape(64, 64)))
    assert r.route.device == "cpu"
    assert r.route.fallbacks[0].startswith("cuda:0: ")


@each_way
def test_what_has_no_assignment_is_named(put: Put) -> None:
    costs = np.ones((4, 3, 3))
    costs[2, 1] = np.inf
    with pytest.raises(ValueError, match="problem 2"):
        df.linear_assignment(put(costs))


# Descramblers -------------------------------------------------------------------------------------

OPERATORS = {
    "fourier": lambda n: df.operators.fourier(n),
    "path": lambda n: df.operators.difference(n, 1, "path"),
    "matrix": lambda n: df.operators.from_matrix(spread_moment(n, np.random.default_rng(2))),
}


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("center", "k"), [(False, None), (True, None), (False, 4)])
def test_a_descrambler_is_the_one_of_the_cpu(
    put: Put, operator: str, center: bool, k: int | None
) -> None:
    n = 13
    x, W, W_next = samples(90, n, mean=0.5), samples(n, 6), samples(3, n)
    op = OPERATORS[operator](n)
    here = df.descramble(x, operator=op, center=center, k=k)
    there = df.descramble(put(x), operator=op, center=center, k=k)
    assert there.cost == pytest.approx(here.cost, abs=here.cost_error + there.cost_error)
    assert there.initial_cost == pytest.approx(here.initial_cost, rel=1e-12)
    assert there.orthogonality_error <= 50 * n * EPS
    for name in ("matrix", "components", "modes", "eigenvalues"):
        assert worst(host(getattr(there, name)), getattr(here, name)) <= 1e-9
    assert worst(host(there.transform(put(x))), here.transform(x)) <= 1e-9
    assert worst(host(there.inverse_transform(put(x))), here.inverse_transform(x)) <= 1e-9
    assert worst(host(there.transform_weight(put(W))), here.transform_weight(W)) <= 1e-9
    next_weight = host(there.transform_next_weight(put(W_next)))
    assert worst(next_weight, here.transform_next_weight(W_next)) <= 1e-9


@each_way
def test_gauges_keep_neurons_near(put: Put) -> None:
    x = samples(60, 8)
    here, there = (df.descramble(a, gauge="identity") for a in (x, put(x)))
    assert worst(host(there.matrix), here.matrix) <= 1e-8
    near = df.descramble(put(x), gauge=put(here.matrix))
    assert worst(host(near.matrix), here.matrix) <= 1e-8


@each_way
def test_many_layers_are_solved_together(put: Put) -> None:
    layers = [samples(40, n, seed=n) for n in (6, 9, 6, 6)]
    alone = [df.descramble(x) for x in layers]
    together = df.descramble_many([df.Covariance.from_samples(put(x)) for x in layers])
    for one, other in zip(alone, together, strict=True):
        assert other.cost == pytest.approx(one.cost, rel=1e-10)
        assert worst(host(other.matrix), one.matrix) <= 1e-8


@each_way
@pytest.mark.parametrize("criterion", ["smoothness", "trace", "diagonal"])
def test_weights_are_descrambled(put: Put, criterion: Any) -> None:
    W, x = samples(7, 7), samples(2, 7)
    here = df.descramble_weights(W, criterion=criterion)
    there = df.descramble_weights(put(W), criterion=criterion)
    assert there.cost == pytest.approx(here.cost, rel=1e-9)
    assert worst(host(there.matrix), here.matrix) <= 1e-8
    assert worst(host(there.transform(put(x))), here.transform(x)) <= 1e-8
    assert worst(host(there.inverse_transform(put(x))), here.inverse_transform(x)) <= 1e-8


@each_way
def test_preactivations_from_moments_of_inputs(put: Put) -> None:
    W, bias, s = samples(6, 4), samples(1, 6)[0], spread_moment(4, np.random.default_rng(5))
    mean = np.full(4, 0.1)
    known = {"bias": bias, "input_second_moment": s + np.outer(mean, mean), "input_mean": mean}
    here = df.descramble_weights(W, **known)
    there = df.descramble_weights(put(W), **{name: put(a) for name, a in known.items()})
    assert there.cost == pytest.approx(here.cost, rel=1e-9)
    assert worst(host(there.eigenvalues), here.eigenvalues) <= 1e-10


@each_way
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_act_alike(put: Put, operator: str) -> None:
    op, x = OPERATORS[operator](12), samples(5, 12, dtype=np.float32)
    for act in (op.apply, op.analyze, op.synthesize):
        assert worst(host(act(put(x))), act(x)) <= 1e-12


@each_way
def test_orders_are_those_of_the_cpu(put: Put) -> None:
    x, W = samples(60, 10), samples(10, 10)
    here, there = df.descramble_permutation(x), df.descramble_permutation(put(x))
    # (An order on a ring may begin anywhere.)
    assert sorted(host(there.permutation)) == list(range(10))
    assert there.cost == pytest.approx(here.cost, rel=1e-10)
    here = df.descramble_weights(W, criterion="trace", restrict="permutation")
    there = df.descramble_weights(put(W), criterion="trace", restrict="permutation")
    assert np.array_equal(host(there.permutation), here.permutation)
    matched = df.match_modes(df.descramble(put(x)))
    assert np.array_equal(host(matched.modes), df.match_modes(df.descramble(x)).modes)


# What only a device has ---------------------------------------------------------------------------


@on_cuda
def test_the_route_names_the_device() -> None:
    x = _FROM_NUMPY(samples(50, 6))
    d = df.descramble(x)
    assert d.route.device == "cuda:0"
    assert d.route.driver
    assert d.route.fallbacks == ()
    assert df.eigh(d.matrix).route.device == "cuda:0"
    order = df.descramble_permutation(x)
    assert any("cuda:0" in fallback for fallback in order.route.fallbacks)


@on_cuda
@pytest.mark.parametrize("step", [1, 3])
def test_the_cuda_array_interface_is_read_with_its_strides(step: int) -> None:
    x, mask = samples(40, 5, dtype=np.float32), np.arange(40) % 3 > 0
    cov = df.Covariance(5).update(CudaInterfaceOnly(x, step), mask=CudaInterfaceOnly(mask, step))
    assert_moments(cov, x[mask])


@on_cuda
def test_device_arrays_carry_their_contents_and_axes() -> None:
    for dtype in (np.bool_, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        there = _FROM_NUMPY(array)
        assert there.numpy().tobytes() == array.tobytes()
        assert np.array_equal(there.swapaxes(0, 2).numpy(), array.swapaxes(0, 2))
        assert (there.shape, there.dtype, there.device) == (array.shape, array.dtype.name, "cuda:0")
    turned = _FROM_NUMPY(samples(7, 4)).T
    assert df.Covariance.from_samples(turned).n_features == 7


@on_cuda
def test_mixed_devices_are_refused() -> None:
    x = samples(30, 4)
    there = _FROM_NUMPY(x)
    on_device, on_cpu = df.Covariance.from_samples(there), df.Covariance.from_samples(x)
    d_device, d_cpu = df.descramble(there), df.descramble(x)
    for call in (
        lambda: on_device.update(x),
        lambda: on_cpu.update(there),
        lambda: on_device.merge(on_cpu),
        lambda: on_cpu.merge(on_device),
        lambda: on_device.update(there, mask=np.ones(30, dtype=bool)),
        lambda: df.CrossCovariance(4, 4).update(there, x),
        lambda: d_device.transform(x),
        lambda: d_cpu.transform(there),
        lambda: df.Covariance(4, device="cpu").update(there),
        lambda: df.Covariance.combine([on_device, on_cpu], [1, 1]),
        lambda: df.Covariance.from_moments(_FROM_NUMPY(np.eye(4)), x[0]),
        lambda: df.linear_assignment(_FROM_NUMPY(x[:4]), initial_duals=x[0]),
        lambda: df.linear_assignment(x[:4], initial_duals=_FROM_NUMPY(x[0])),
        lambda: df.quadratic_assignment(_FROM_NUMPY(x[:4]), x[:4]),
    ):
        with pytest.raises(ValueError, match=r"lies on (cpu|cuda:0), expected (cpu|cuda:0)"):
            call()
    assert on_device.count == on_cpu.count == 30


@on_cuda
def test_offloaded_moments_are_the_same() -> None:
    x = samples(500, 24, mean=4.0, dtype=np.float32)
    near, far = (df.Covariance(24, device="cuda", offload=away) for away in (False, True))
    for cov in (near, far):
        cov.update(_FROM_NUMPY(x[:300])).update(_FROM_NUMPY(x[300:]))
    assert np.array_equal(host(near.covariance()), host(far.covariance()))


@on_cuda
def test_a_device_that_is_not_there_is_a_backend_error() -> None:
    with pytest.raises(df.BackendError, match=r'device: got "cuda:99", but cuda:0 '):
        df.Covariance(3, device="cuda:99")
    with pytest.raises(df.BackendError, match="device: got 99, but cuda:0 "):
        _FROM_NUMPY(np.eye(2), 99)


@on_cuda
def test_an_update_that_fails_does_not_decide_the_device() -> None:
    x = samples(20, 4)
    there, bad = _FROM_NUMPY(x), np.where(x == x[3, 2], np.nan, x)
    for fail, then in (
        (lambda cov: cov.update(there, mask=np.ones(20, dtype=bool)), x),
        (lambda cov: cov.update(bad), there),
        (lambda cov: cov.merge(df.Covariance.from_samples(_FROM_NUMPY(bad))), x),
    ):
        cov = df.Covariance(4)
        with pytest.raises(ValueError, match=r"lies on|NaN"):
            fail(cov)
        assert cov.update(then).count == 20
    cross = df.CrossCovariance(4, 4)
    with pytest.raises(ValueError, match="y: lies on cpu, expected cuda:0"):
        cross.update(there, x)
    assert cross.update(x, x).count == 20


@on_cuda
def test_copies_are_on_the_cpu_and_decide_nothing() -> None:
    x = _FROM_NUMPY(samples(20, 4))
    cov = df.Covariance(4)
    assert copy.deepcopy(cov).update(samples(20, 4)).device == "cpu"
    assert cov.update(x).device == "cuda:0"
    assert copy.deepcopy(cov).device == pickle.loads(pickle.dumps(cov)).device == "cpu"


@on_cuda
def test_printing_neither_waits_nor_takes_an_error() -> None:
    cov = df.Covariance(2).update(_FROM_NUMPY(np.array([[1.0, np.nan]])))
    assert repr(cov) == "<Covariance of 2 features, on cuda:0>"
    with pytest.raises(ValueError, match="row 0, column 1 of update 0"):
        _ = cov.count
    assert cov.count == 0


@on_cuda
@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"data": (0, True)}, "has 6 elements, but no memory"),
        ({"strides": (17, 8)}, "stride of 17 bytes"),
        ({"typestr": "<i8"}, "element type <i8"),
    ],
)
def test_memory_that_no_kernel_can_read_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises((ValueError, TypeError), match=why):
        df.Covariance(3).update(CudaInterfaceOnly(np.ones((2, 3)), **said))
    array = CudaInterfaceOnly(np.ones((3, 3)))
    odd = array.__cuda_array_interface__["data"][0] + 4
    array.said = {"data": (odd, True), "shape": (2, 3)}
    with pytest.raises(ValueError, match="not aligned for float64"):
        df.Covariance(3).update(array)


class Unordered:
    """A DLPack producer of no known library, which gives its memory to others at any time."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.owner, self.dtype, self.nbytes = _FROM_NUMPY(array), array.dtype, array.nbytes

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.owner.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.owner.__dlpack__(**options)

    def give_away(self) -> None:
        ctypes.memset(self.owner.__cuda_array_interface__["data"][0], 0, self.nbytes)


@pytest.mark.skipif(
    "emulated" not in df.show_config("dict")["cuda"],
    reason="the memory of an emulated device alone can be written from here",
)
def test_memory_in_no_known_order_has_been_read_when_an_update_returns() -> None:
    x = samples(30, 4)
    weights = np.arange(30.0)
    cov, cross = df.Covariance(4, device="cuda"), df.CrossCovariance(4, 4, device="cuda")
    assert cov.count == cross.count == 0  # what was queued to make them is done
    updates: list[tuple[Unordered, Any]] = [
        (batch := Unordered(x), lambda: cov.update(batch)),
        (frequencies := Unordered(weights), lambda: cov.update(_FROM_NUMPY(x), None, frequencies)),
        (y := Unordered(x), lambda: cross.update(_FROM_NUMPY(x), y)),
    ]
    for array, update in updates:
        update()
        array.give_away()
    assert cov.weight == 30 + weights.sum()
    second = (x.T @ x + (weights * x.T) @ x) / cov.weight
    assert worst(host(cov.second_moment()), second) <= 1e-12
    assert worst(host(cross.cross_moment()), x.T @ x / 30) <= 1e-12


@on_cuda
def test_device_arrays_take_native_bytes_alone() -> None:
    with pytest.raises(TypeError, match="non-native byte order >f8"):
        _FROM_NUMPY(np.ones(3, dtype=">f8"))


@on_cuda
def test_whose_update_was_refused_is_said() -> None:
    bad = samples(4, 3)
    bad[2, 1] = np.inf
    good, faulty = (df.Covariance.from_samples(_FROM_NUMPY(samples(9, 3))) for _ in range(2))
    faulty.update(_FROM_NUMPY(bad))
    with pytest.raises(ValueError, match=r"covariances: entry 1: batch: .*row 2, column 1"):
        df.descramble_many([good, faulty])
    assert len(df.descramble_many([good, faulty])) == 2  # said once; the state is whole
    faulty.update(_FROM_NUMPY(bad))
    with pytest.raises(ValueError, match=r"other: batch: .*row 2, column 1"):
        good.merge(faulty)
    assert good.merge(faulty).count == 18


@on_cuda
def test_problems_with_several_optima_are_solved_on_the_cpu() -> None:
    rng = np.random.default_rng(1)
    costs = rng.random((4000, 8, 8)).astype(np.float32)
    costs[rng.random(4000) < 0.1] = 1  # any assignment will do
    some = df.linear_assignment(_FROM_NUMPY(costs))
    assert some.route.device == "cuda:0"
    assert "several optima" in some.route.fallbacks[0]
    most = df.linear_assignment(_FROM_NUMPY(np.round(3 * costs)))
    assert "several optima" in most.route.fallbacks[0]
    for result, solved in ((some, costs), (most, np.round(3 * costs))):
        here = df.linear_assignment(solved)
        assert np.array_equal(host(result.columns), here.columns)
        assert np.array_equal(host(result.cost), here.cost)
        u, v = host(result.row_duals), host(result.column_duals)
        assert (u[:, :, None] + v[:, None, :] - solved).max() <= 1e-6


@on_cuda
def test_many_small_problems_go_to_the_device_and_few_do_not() -> None:
    costs = np.random.default_rng(0).random((4000, 8, 8)).astype(np.float32)
    many = df.linear_assignment(_FROM_NUMPY(costs))
    assert many.route.device == "cuda:0"
    few = df.linear_assignment(_FROM_NUMPY(np.ones((2, 64, 64), dtype=np.float32)))
    assert few.route.device == "cpu"
    assert "faster" in few.route.fallbacks[0]
    assert np.array_equal(host(many.columns), df.linear_assignment(costs).columns)


def test_importing_loads_no_backend(fresh_python: Any) -> None:
    out = fresh_python(
        """
        import descramble_fast
        maps = open("/proc/self/maps").read()
        print("libdescramble_fast_cuda" in maps, "libcublas" in maps)
        """
    )
    assert out.split() == ["False", "False"]


@pytest.mark.skipif(df.cuda_available(), reason="a CUDA device can be used")
def test_why_there_is_no_device_is_explained() -> None:
    why = df.show_config("dict")["cuda"]
    causes = "built without CUDA|cannot be loaded: .*pip install|no driver|none is there"
    assert re.search(causes, why)
    with pytest.raises(df.BackendError, match=re.escape(why)):
        df.Covariance(3, device="cuda")


def test_a_missing_backend_is_explained(fresh_python: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(os.environ, "DESCRAMBLE_FAST_CUDA_LIBRARY", "/nowhere/lib.so")
    out = fresh_python("import descramble_fast as df; print(df.show_config('dict')['cuda'])")
    assert "/nowhere/lib.so" in out


@on_cuda
def test_results_come_in_kind() -> None:
    x = _FROM_NUMPY(samples(20, 3))
    results: list[Any] = [
        df.Covariance.from_samples(x).second_moment(),
        df.Covariance.from_samples(x).mean,
        df.eigh(df.Covariance.from_samples(x).covariance()).eigenvectors,
        df.linear_assignment(x).columns,
        df.descramble(x).matrix,
    ]
    assert all(isinstance(r, _core.DeviceArray) for r in results)
    assert [r.device for r in results] == ["cuda:0"] * 5


def test_host_takes_any_result() -> None:
    array: NDArray[np.float64] = np.eye(2)
    assert host(array) is array
