"""The memory that a descrambler takes is stated before the run, kept, and refused in time."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

import descramble_fast as df

FreshPython = Callable[..., str]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads and limits memory through Linux's /proc"
)

# Large blocks are mapped and unmapped one by one, so that what is free is not resident.
PREPARE = """
    import ctypes, sys
    import numpy as np
    import descramble_fast as df

    MMAP_THRESHOLD = -3
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)

    def status(name):
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    def peak_of(call):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is now what is resident
        before = status("VmRSS:")
        result = call()
        return status("VmHWM:") - before, result

    def moments(n):
        x = np.random.default_rng(0).normal(size=(2 * n, n)) * 0.1 ** np.linspace(0, 1, n)
        return df.Covariance.from_samples(x)

    df.descramble(moments(300))  # BLAS allocates its buffers
    n, k = int(sys.argv[1]), int(sys.argv[2]) or None
    cov = moments(n)
"""


@pytest.mark.parametrize(
    ("n", "k", "least"), [(1024, 0, 0.6), (2048, 0, 0.6), (2048, 64, 0.3), (2048, 700, 0.6)]
)
def test_the_memory_stated_is_kept(fresh_python: FreshPython, n: int, k: int, least: float) -> None:
    script = """
    print(peak_of(lambda: df.descramble(cov, k=k))[0], df.descramble_memory(n, k))
    """
    peak, stated = map(int, fresh_python(PREPARE + script, n, k).split())
    assert least * stated <= peak <= stated


def test_the_memory_stated_is_kept_where_leading_pairs_lie_close(fresh_python: FreshPython) -> None:
    script = """
    x = np.random.default_rng(0).normal(size=(2 * n, n))
    cov = df.Covariance.from_samples(x)
    del x
    peak, d = peak_of(lambda: df.descramble(cov, k=k))
    print(peak, df.descramble_memory(n, k), d.route.driver)
    """
    peak, stated, driver = fresh_python(PREPARE + script, 1500, 1).split()
    assert driver == "dsytrd"
    assert int(peak) <= int(stated)


def test_a_descrambler_is_used_without_an_n_by_n_matrix(fresh_python: FreshPython) -> None:
    script = """
    d = df.descramble(cov)
    x, W = np.ones((32, n), dtype=np.float32), np.ones((n, 16))
    for call in (
        lambda: d.transform(x),
        lambda: d.inverse_transform(x),
        lambda: d.transform_weight(W),
        lambda: d.transform_next_weight(x),
        lambda: d.matrix,
    ):
        print(peak_of(call)[0])
    """
    n = 2048
    *used, formed = map(int, fresh_python(PREPARE + script, n, 0).split())
    assert max(used) < 8 * n * n / 4
    assert formed >= 8 * n * n


def test_memory_that_cannot_be_had_is_refused_before_any_work(fresh_python: FreshPython) -> None:
    script = """
    import resource, time

    before = cov.second_moment()
    room = status("VmSize:") + df.descramble_memory(n) // 2
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    start = time.process_time()
    try:
        df.descramble(cov)
    except MemoryError as error:
        print(error)
    print(time.process_time() - start < 0.1)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print((cov.second_moment() == before).all(), len(df.descramble(cov).eigenvalues))
    """
    n = 1500
    refusal, in_time, after = fresh_python(PREPARE + script, n, 0).splitlines()
    assert f"{df.descramble_memory(n)} bytes" in refusal
    assert in_time == "True"
    assert after == f"True {n}"


def test_a_state_that_memory_does_not_hold_is_a_memory_error(fresh_python: FreshPython) -> None:
    script = """
    import resource

    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # large arrays ask the system each time
    large, said = moments(n), set()
    for room in (2**k for k in range(10, 23)):
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize:") + room, resource.RLIM_INFINITY))
        try:
            large._core.state()
            said.add("whole")
        except Exception as error:
            said.add(type(error).__name__)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(sorted(said))
    """
    assert fresh_python(PREPARE + script, 300, 0).strip() == "['MemoryError', 'whole']"


def test_the_memory_stated_grows_as_documented() -> None:
    matrix = 8 * 4096**2
    assert 4 * matrix < df.descramble_memory(4096) < 4.2 * matrix
    assert df.descramble_memory(4096, 4096) == df.descramble_memory(4096)
    assert 4 * matrix < df.descramble_memory(4096, 32) < 4.2 * matrix
    assert df.descramble_memory(10**8) > 10**17


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "n: got 0"),
        ((2**40,), ValueError, "n: got"),
        ((4, 5), ValueError, "k: got 5"),
        ((4, 0), ValueError, "k: got 0"),
        ((4.0,), TypeError, "n: got 4.0"),
        ((4, "1"), TypeError, "k: got '1'"),
    ],
)
def test_sizes_without_meaning_are_refused(
    arguments: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        df.descramble_memory(*arguments)
