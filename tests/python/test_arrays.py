"""Arrays of any library go in without a copy; results come back in the library of the first."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import two_pass, worst

import descramble_fast as df

try:
    import torch
except ModuleNotFoundError:
    torch = None  # its producers are left out


class DLPackOnly:
    """A producer that has nothing but the protocol; `versioned` as from DLPack 1.0 on."""

    def __init__(self, array: NDArray[Any], versioned: bool = True) -> None:
        self.array, self.versioned, self.exports = array, versioned, 0

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self.versioned:
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        self.exports += 1
        return self.array.__dlpack__(**options)


class ArrayInterfaceOnly:
    """A producer of the older NumPy protocol."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__


class CudaDLPack:
    """Claims to lie on a CUDA device; touching its memory is an error."""

    shape = (3, 2)
    dtype = np.dtype(np.float32)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("device memory was asked for")


class CudaInterface:
    """A CUDA array interface with a pointer that nobody may follow."""

    shape = (3, 2)
    dtype = np.dtype(np.float32)
    __cuda_array_interface__ = {  # noqa: RUF012 - the protocol wants a plain attribute
        "shape": (3, 2),
        "typestr": "<f4",
        "data": (8, False),
        "version": 3,
    }


def samples(rows: int = 20, n: int = 4) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(rows, n)) + 2.0


PRODUCERS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "numpy": lambda x: x,
    "dlpack": DLPackOnly,
    "old dlpack": lambda x: DLPackOnly(x, versioned=False),
    "array interface": ArrayInterfaceOnly,
}
if torch is not None:
    PRODUCERS |= {
        "torch": torch.from_numpy,
        "torch with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
        "parameter": lambda x: torch.nn.Parameter(torch.from_numpy(x)),
    }


@pytest.fixture(params=PRODUCERS)
def produce(request: pytest.FixtureRequest) -> Callable[[NDArray[Any]], Any]:
    return PRODUCERS[request.param]


# Any producer -------------------------------------------------------------------------------------


def test_every_producer_gives_the_bits_of_numpy(
    produce: Callable[[NDArray[Any]], Any],
) -> None:
    x = samples()
    a = x.T @ x
    d = df.descramble(x)
    for call in (
        lambda x_, a_: df.Covariance(4).update(x_).covariance(),
        lambda x_, a_: df.CrossCovariance(4, 4).update(x_, x_).cross_moment(),
        lambda x_, a_: df.Covariance.from_moments(a_).second_moment(),
        lambda x_, a_: df.eigh(a_).eigenvalues,
        lambda x_, a_: df.eigh(a_).eigenvectors,
        lambda x_, a_: d.transform(x_),
        lambda x_, a_: d.transform_weight(a_),
        lambda x_, a_: d.transform_next_weight(x_),
        lambda x_, a_: d.operator.analyze(x_),
        lambda x_, a_: df.operators.from_matrix(a_).eigenvalues,
        lambda x_, a_: df.descramble_weights(a_, criterion="trace").matrix,
        lambda x_, a_: df.descramble_weights(a_, input_second_moment=a_).matrix,
        lambda x_, a_: df.descramble(x, gauge=a_).matrix,
    ):
        expected, got = call(x, a), call(produce(x), produce(a))
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_every_producer_of_samples_can_be_descrambled(
    produce: Callable[[NDArray[Any]], Any],
) -> None:
    x = samples()
    expected = df.descramble(x)
    assert df.Covariance.from_samples(produce(x)).count == len(x)
    assert np.asarray(df.descramble(produce(x)).matrix).tobytes() == expected.matrix.tobytes()


def test_results_come_back_in_the_library_of_the_input(
    produce: Callable[[NDArray[Any]], Any],
) -> None:
    x = samples()
    is_torch = torch is not None and isinstance(produce(x), torch.Tensor)
    cov, cross = df.Covariance(4).update(produce(x)), df.CrossCovariance(4, 4)
    cross.update(produce(x), x)
    d, w = df.descramble(cov), df.eigh(produce(x[:4]))
    trace = df.descramble_weights(produce(x[:4]), criterion="trace")
    for result in (
        cov.mean,
        cov.second_moment(),
        cov.covariance(),
        cross.cross_moment(),
        cross.cross_covariance(),
        cross.correlation(),
        d.matrix,
        d.modes,
        d.components,
        d.eigenvalues,
        d.transform(produce(x)),
        d.inverse_transform(produce(x)),
        d.transform_weight(produce(x[:4]), x[0])[0],
        d.transform_weight(produce(x[:4]), x[0])[1],
        d.transform_next_weight(produce(x)),
        d.operator.apply(produce(x)),
        w.eigenvalues,
        w.eigenvectors,
        trace.matrix,
    ):
        if is_torch:
            assert isinstance(result, torch.Tensor)
            assert (result.dtype, result.device.type) == (torch.float64, "cpu")
            assert not result.requires_grad
        else:
            assert type(result) is np.ndarray
            assert result.dtype == np.float64


@pytest.mark.parametrize("wide", [False, True])
def test_jax_arrays_come_back_as_jax_arrays_or_else_uncut(wide: bool) -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", wide)
    try:
        x = jax.numpy.asarray(samples(), dtype="float32")
        cov = df.Covariance(4).update(x)
        if wide:
            covariance = cov.covariance()
            assert isinstance(covariance, jax.Array)
        else:  # JAX would cut the result to float32, so NumPy keeps it
            with pytest.warns(UserWarning, match="jax_enable_x64"):
                covariance = cov.covariance()
            assert isinstance(covariance, np.ndarray)
        assert covariance.dtype == np.float64
        assert worst(covariance, two_pass(np.asarray(x))[2]) <= 1e-12
        assert isinstance(df.eigh(x[:4]).eigenvectors, jax.Array)
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize(
    "selector",
    [
        {"weights": np.ma.masked_array(np.ones(20), np.arange(20) < 5)},
        {"mask": np.ma.masked_array(np.ones(20, dtype=bool), np.arange(20) < 5)},
        {"weights": np.ones(20) * 1j},
        {"weights": np.array(["1"] * 20)},
    ],
    ids=["masked weights", "masked mask", "complex weights", "text"],
)
def test_selectors_that_would_lose_information_are_type_errors(selector: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(selector))):
        df.Covariance(4).update(samples(), **selector)


# Memory that cannot be read -----------------------------------------------------------------------


@pytest.mark.skipif(df.cuda_available(), reason="a CUDA device can be used")
@pytest.mark.parametrize("array", [CudaDLPack(), CudaInterface()], ids=lambda a: type(a).__name__)
def test_device_memory_without_a_backend_is_a_backend_error(array: Any) -> None:
    x = samples(3, 2)
    d = df.descramble(x)
    cov = df.Covariance.from_samples(x)
    before = cov.covariance().tobytes()
    for call in (
        lambda: cov.update(array),
        lambda: df.Covariance.from_samples(array),
        lambda: df.CrossCovariance(2, 2).update(x, array),
        lambda: df.Covariance.from_moments(array),
        lambda: df.descramble(array),
        lambda: df.descramble(x, gauge=array),
        lambda: df.descramble_weights(array),
        lambda: df.descramble_weights(array, criterion="diagonal"),
        lambda: df.eigh(array),
        lambda: d.transform(array),
        lambda: d.transform_weight(array),
        lambda: d.operator.apply(array),
        lambda: df.operators.from_matrix(array),
    ):
        with pytest.raises(
            df.BackendError, match=r"lies on .*(cuda:0|CUDA).* but .*move the array"
        ):
            call()
    assert cov.covariance().tobytes() == before


def test_unaligned_memory_is_a_value_error() -> None:
    raw = np.zeros(8 * 12 + 1, dtype=np.uint8)[1:]
    with pytest.raises(ValueError, match=r"batch: .*aligned"):
        df.Covariance(4).update(raw.view(np.float64).reshape(3, 4))
    record = np.zeros(6, dtype=[("a", "<f8"), ("b", "<f4")])["a"].reshape(3, 2)
    with pytest.raises(ValueError, match=r"batch: .*(aligned|stride)"):
        df.Covariance(2).update(record)


# No copy in, none kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("writable", [True, False])
def test_inputs_are_never_modified(writable: bool) -> None:
    x = samples()
    a, W = x.T @ x, samples(4, 4)
    copies = [v.copy() for v in (x, a, W)]
    for v in (x, a, W):
        v.setflags(write=writable)
    df.Covariance(4).update(x).merge(df.Covariance.from_moments(a, x[0]))
    df.eigh(a)
    df.eigh(a, k=2)
    d = df.descramble(x, center=True, gauge=W)
    d.transform(x)
    d.inverse_transform(x)
    d.transform_weight(W, x[0])
    d.transform_next_weight(x)
    for method in ("apply", "analyze", "synthesize"):
        getattr(df.operators.from_matrix(a), method)(x)
        getattr(df.operators.fourier(4), method)(x)
    df.descramble_weights(W, bias=x[0], input_second_moment=a, input_mean=x[1])
    df.descramble_weights(W, criterion="trace")
    df.descramble_weights(W, criterion="diagonal")
    for v, copy in zip((x, a, W), copies, strict=True):
        assert v.tobytes() == copy.tobytes()


@pytest.mark.parametrize(
    "use",
    [
        lambda x: df.Covariance(4).update(x),
        lambda x: df.CrossCovariance(4, 4).update(x, x),
        lambda x: df.Covariance.from_moments(x),
        lambda x: df.eigh(x),
        lambda x: df.descramble(samples(), gauge=x),
        lambda x: df.descramble(samples()).transform(x),
        lambda x: df.operators.fourier(4).apply(x),
        lambda x: df.operators.from_matrix(x),
        lambda x: df.descramble_weights(x, criterion="trace"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, DLPackOnly, ArrayInterfaceOnly])
def test_no_input_outlives_its_call(use: Callable[[Any], Any], wrap: Callable[[Any], Any]) -> None:
    array = np.eye(4) + 1.0
    alive = weakref.ref(array)
    kept = use(wrap(array))
    del array
    assert alive() is None
    assert kept is not None


def test_a_failed_call_lets_go_of_its_input_too() -> None:
    array = np.full((4, 4), np.nan)
    alive = weakref.ref(array)
    before = sys.getrefcount(array)
    with pytest.raises(ValueError, match="NaN"):
        df.eigh(DLPackOnly(array))
    assert sys.getrefcount(array) == before
    del array
    assert alive() is None


def test_a_dlpack_producer_is_asked_once() -> None:
    producer = DLPackOnly(samples())
    df.Covariance(4).update(producer)
    assert producer.exports == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_memory_mapped_file_is_not_copied(
    tmp_path: Path, fresh_python: Callable[..., str]
) -> None:
    """256 MB of float16 grow the process by far less than any copy of them would."""
    rows, n = 2**20, 128
    path = tmp_path / "samples"
    file = np.memmap(path, dtype=np.float16, mode="w+", shape=(rows, n))
    file[::4096] = np.arange(n)
    file.flush()
    grown = fresh_python(
        """
        import sys, threading
        import numpy as np
        import descramble_fast as df

        def anonymous():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

        x = np.memmap(sys.argv[1], dtype=np.float16, mode="r", shape=(2**20, 128))
        df.Covariance(128).update(x[:5000])
        before, peak, done = anonymous(), [0], threading.Event()

        def watch():
            while not done.wait(0.002):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        cov = df.Covariance(128).update(x)
        done.set()
        watcher.join()
        assert cov.count == 2**20
        assert peak[0] > 0
        print((peak[0] - before) / 1024)
        """,
        path,
    )
    assert float(grown) < 100  # MB; a float32 copy has 512, a float64 copy 1024


# Arguments of other types -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: df.linear_assignment(x, maximize="no"), TypeError, "maximize: got 'no'"),
        (lambda x: df.nearest_permutation(x, signed=1), TypeError, "signed: got 1"),
        (lambda x: df.Covariance(4, offload=None), TypeError, "offload: got None"),
        (lambda x: df.Covariance(4, device=0), TypeError, "device: got 0"),
        (lambda x: df.Covariance(4).update(x).covariance("1"), TypeError, "ddof: got '1'"),
        (
            lambda x: df.Covariance.from_moments(x @ x, weight=10**400),
            ValueError,
            "weight: got inf",
        ),
        (
            lambda x: df.Covariance(4).update(x, weights=["1"] * 4),
            TypeError,
            "weights: got dtype <U1",
        ),
        (lambda x: df.Covariance(4).save(3), TypeError, "path: got int"),
        (lambda x: df.Covariance(4).save("/"), ValueError, "path: got '/'"),
        (lambda x: df.Covariance.combine([df.Covariance(4)], "1"), TypeError, "weights: got str"),
        (lambda x: df.descramble(x * np.nan), ValueError, "samples_or_covariance: NaN"),
        (lambda x: df.descramble(df.Covariance(4)), ValueError, "samples_or_covariance: undefined"),
        (lambda x: df.descramble_many([x, 3]), TypeError, r"covariances\[1\]: got int"),
        (lambda x: df.match_neurons(x, x * np.nan), ValueError, "b: NaN"),
        (lambda x: df.operators.grid(b"bytes"), TypeError, "shape: got bytes"),
        (lambda x: df.operators.fourier(2**40), MemoryError, "n: got 1099511627776"),
        (lambda x: df.operators.fourier(4, 2**40), ValueError, "order: got 1099511627776"),
        (lambda x: df.operators.fourier(4).synthesize([1.0]), TypeError, "z: got list"),
        (lambda x: df.operators.from_graph([[0, 1]], n=2.5), TypeError, "n: got 2.5"),
        (
            lambda x: df.apply_permutation(np.ma.masked_array([1, 0, 2, 3], [1, 0, 0, 0]), x),
            TypeError,
            "r: got a masked array",
        ),
    ],
)
def test_an_error_names_the_callers_argument(
    call: Callable[[NDArray[Any]], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + message):
        call(np.eye(4) + 1.0)


def test_numpys_booleans_are_switches() -> None:
    assert (
        df.descramble(samples(), center=np.True_).cost == df.descramble(samples(), center=True).cost
    )


@pytest.mark.parametrize("wrap", [DLPackOnly, ArrayInterfaceOnly])
def test_integers_and_layers_of_any_producer(wrap: Callable[[Any], Any]) -> None:
    class Typed(wrap):  # type: ignore[misc, valid-type]
        def __init__(self, array: NDArray[Any]) -> None:
            super().__init__(array)
            self.shape, self.dtype = array.shape, array.dtype

    x, counts = samples(), np.arange(20)
    got = df.Covariance(4).update(x, weights=Typed(counts))
    assert got.weight == counts.sum()
    layer = df.apply_permutation([1, 0], Typed(x[:2]))
    assert np.array_equal(np.asarray(layer.weight), x[[1, 0]])


class BrokenProducer:
    """A producer whose protocol gives what it should not."""

    def __init__(self, device: Any, **attributes: Any) -> None:
        self.device = device
        for name, value in attributes.items():
            setattr(self, name, value)

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("no view of this")


@pytest.mark.parametrize("device", [None, "cpu", (1,), (1, 2**40), (1.5, None), 1])
def test_a_device_that_is_no_pair_of_integers_is_a_type_error(device: Any) -> None:
    with pytest.raises(TypeError, match="batch: its __dlpack_device__"):
        df.Covariance(2).update(BrokenProducer(device))


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 0.0, "0"])
def test_the_number_of_a_cuda_device_is_an_integer(number: Any) -> None:
    with pytest.raises(TypeError, match=r"integer|__dlpack_device__"):
        df.linear_assignment(BrokenProducer((2, number)))


def test_what_a_producer_refuses_is_one_line() -> None:
    with pytest.raises(TypeError, match=r"batch: .*no view of this") as raised:
        df.Covariance(2).update(BrokenProducer((1, 0)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("requires_grad", ["x", [], np.ones(2)])
def test_odd_attributes_are_type_errors(requires_grad: Any) -> None:
    with pytest.raises(TypeError, match="batch: "):
        df.Covariance(2).update(BrokenProducer((1, 0), requires_grad=requires_grad, detach=None))


@pytest.mark.parametrize("interface", [None, "x", [1], np.ones(2)])
def test_an_interface_that_is_no_dictionary_is_a_type_error(interface: Any) -> None:
    class Odd:
        __cuda_array_interface__ = interface

    with pytest.raises(TypeError, match="batch: its __cuda_array_interface__"):
        df.Covariance(2).update(Odd())
