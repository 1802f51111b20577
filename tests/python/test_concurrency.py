"""Threads, forks, pickles and Ctrl-C."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import two_pass, worst

import descramble_fast as df

FreshPython = Callable[..., str]
pytestmark = pytest.mark.usefixtures("default_threads")


def batches(count: int, rows: int, n: int, dtype: Any = np.float64) -> list[NDArray[Any]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(rows, n)) + 5).astype(dtype) for _ in range(count)]


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_accumulators_in_their_own_threads_have_the_bits_of_serial_ones(threads: int) -> None:
    df.set_num_threads(threads)
    x = batches(8, 1500, 60, np.float32)

    def accumulate(batch: NDArray[Any]) -> bytes:
        cov = df.Covariance(60)
        for part in np.array_split(batch, 5):
            cov.update(part)
        return pickle.dumps(cov)

    serial = [accumulate(batch) for batch in x]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(accumulate, x)) == serial


def test_threads_on_one_accumulator_take_turns() -> None:
    x = batches(40, 200, 20)
    cov = df.Covariance(20)
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(lambda: cov.count and cov.covariance()) for _ in range(20)]
        assert all(done is cov for done in pool.map(cov.update, x))
        for reader in readers:
            reader.result()
    assert cov.count == 8000
    assert worst(cov.covariance(), two_pass(np.concatenate(x))[2]) <= 1e-12


def test_merging_both_ways_at_once_does_not_deadlock() -> None:
    a, b = (df.Covariance.from_samples(x) for x in batches(2, 50, 30))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(p.merge, q) for _ in range(15) for p, q in ((a, b), (b, a))]
        for job in jobs:
            job.result(timeout=20)
    # Each took 15 merges of 50 rows or more; in turns, they would grow like Fibonacci numbers.
    assert min(a.count, b.count) >= 50 * 16
    assert np.isfinite(a.covariance()).all()


def test_solvers_in_threads_have_the_bits_of_serial_ones() -> None:
    a = np.random.default_rng(0).normal(size=(12, 50, 50))
    a = a @ a.swapaxes(1, 2)

    def solve(matrix: NDArray[np.float64]) -> tuple[bytes, bytes, float]:
        d = df.descramble(df.Covariance.from_moments(matrix), gauge="identity")
        trace = df.descramble_weights(matrix, criterion="trace")
        return df.eigh(matrix).eigenvectors.tobytes(), d.matrix.tobytes(), trace.cost

    serial = [solve(matrix) for matrix in a]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(solve, a)) == serial


def long_update() -> None:
    # Stride 0: two million rows that take no memory.
    df.Covariance(128).update(np.broadcast_to(np.arange(128.0), (2_000_000, 128)))


def long_eigh() -> None:
    df.eigh(np.random.default_rng(0).normal(size=(1200, 1200)))


def long_transform() -> None:
    d = df.descramble(np.random.default_rng(0).normal(size=(50, 300)))
    for _ in range(3):
        d.transform(np.broadcast_to(np.arange(300.0), (60_000, 300)))


@pytest.mark.parametrize("work", [long_update, long_eigh, long_transform])
def test_other_threads_run_during_long_work(work: Callable[[], None]) -> None:
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    begin = time.perf_counter()
    work()
    elapsed, counted = time.perf_counter() - begin, ticks[0]
    stop.set()
    ticker.join()
    # One tick a millisecond on an idle machine; with the GIL held there would be one or two in all.
    assert elapsed > 0.05
    assert counted >= 10


def test_two_threads_on_the_first_call(fresh_python: FreshPython) -> None:
    for call in (
        "df.eigh(np.eye(64) + 1).eigenvalues[-1].round(9)",
        "df.Covariance(64).update(np.ones((5000, 64))).count",
        "df.descramble(np.eye(64)).cost > 0",
    ):
        printed = fresh_python(
            f"""
            import threading
            import numpy as np
            import descramble_fast as df
            barrier, out = threading.Barrier(2), []
            def first():
                barrier.wait()
                out.append({call})
            threads = [threading.Thread(target=first) for _ in range(2)]
            [t.start() for t in threads]
            [t.join(30) for t in threads]
            assert len(out) == 2 and out[0] == out[1], out
            print(out[0])
            """
        )
        assert printed.strip() in {"65.0", "5000", "True"}


@pytest.mark.parametrize("batch", ["X", "np.broadcast_to(X, (100, 3000, 96))"])
def test_the_interpreter_ends_while_daemon_threads_compute(
    fresh_python: FreshPython, batch: str
) -> None:
    fresh_python(
        f"""
        import threading, time
        import numpy as np
        import descramble_fast as df

        X = np.random.default_rng(0).normal(size=(3000, 96))

        def busy():
            cov = df.Covariance(96)
            while True:
                cov.update({batch})

        for _ in range(4):
            threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.1)
        """
    )


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_after_use_computes_the_same_and_exits(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, signal, time
        import numpy as np
        import descramble_fast as df

        df.set_num_threads(2)
        x = np.random.default_rng(0).normal(size=(4000, 96))
        stack = np.random.default_rng(1).normal(size=(8, 40, 40))

        def work():
            cov = df.Covariance(96).update(x)
            return (
                cov.covariance().tobytes(),
                df.eigh(stack).eigenvectors.tobytes(),
                df.descramble(cov).matrix.tobytes(),
                df.eigh(np.cov(x.T) @ np.eye(96)).eigenvalues.tobytes(),
            )

        before = work()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                os._exit(0 if work() == before else 3)
            deadline = time.monotonic() + 30
            while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    raise SystemExit("the child hangs")
                time.sleep(0.01)
            assert os.waitstatus_to_exitcode(done[1]) == 0, done
            assert work() == before
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_during_another_threads_work(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, threading, time, warnings
        import numpy as np
        import descramble_fast as df

        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks of threads
        df.set_num_threads(2)
        x = np.random.default_rng(0).normal(size=(3000, 128))
        stop = threading.Event()

        def work():
            cov = df.Covariance(128).update(x)
            return cov.count + df.eigh(np.eye(64) + 1).eigenvalues[-1]

        def busy():
            while not stop.is_set():
                work()

        work()  # imports are Python's own to keep apart from forks

        thread = threading.Thread(target=busy)
        thread.start()
        time.sleep(0.1)
        for _ in range(100):
            child = os.fork()
            if child == 0:
                os._exit(0 if abs(work() - 3065) < 1e-9 else 3)
            deadline = time.monotonic() + 15
            while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(child, 9)
                    stop.set()
                    raise SystemExit("the child hangs")
                time.sleep(0.005)
            assert os.waitstatus_to_exitcode(done[1]) == 0, done
        stop.set()
        thread.join()
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_multiprocessing_sends_accumulators_home(fresh_python: FreshPython) -> None:
    printed = fresh_python(
        """
        import multiprocessing
        import numpy as np
        import descramble_fast as df

        def shard(seed):
            return df.Covariance(40).update(np.random.default_rng(seed).normal(size=(500, 40)))

        whole = df.Covariance(40)
        for seed in range(4):
            whole.merge(shard(seed))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            merged = df.Covariance(40)
            for part in pool.map_async(shard, range(4)).get(timeout=30):
                merged.merge(part)
        assert merged.covariance().tobytes() == whole.covariance().tobytes()
        print(merged.count)
        """
    )
    assert printed.strip() == "2000"


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_a_copy_is_equal_and_independent(clone: Callable[[df.Covariance], df.Covariance]) -> None:
    x = batches(2, 50, 6)
    cov = df.Covariance.from_samples(x[0])
    other = clone(cov)
    assert other.covariance().tobytes() == cov.covariance().tobytes()
    other.update(x[1])
    assert (cov.count, other.count) == (50, 100)
    assert other.covariance().tobytes() == cov.update(x[1]).covariance().tobytes()


def test_a_copy_keeps_its_array_library() -> None:
    torch = pytest.importorskip("torch")
    cov = df.Covariance(3).update(torch.eye(3))
    assert isinstance(copy.deepcopy(cov).update(torch.eye(3)).mean, torch.Tensor)


# Ctrl-C -------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_long_batch(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, signal, threading, time
        import numpy as np
        import descramble_fast as df

        a = np.random.default_rng(0).normal(size=(300, 300))
        df.eigh(a)
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            df.eigh(np.broadcast_to(a, (2000, 300, 300)))
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("ran to the end")
        waited = time.monotonic() - begin
        assert waited < 4, f"the whole batch was solved first, in {waited} s"
        assert df.eigh(np.eye(3)).eigenvalues.tolist() == [1, 1, 1]  # all goes on
        """
    )


def test_ctrl_c_ends_one_long_update_and_leaves_its_state(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, pickle, signal, threading
        import numpy as np
        import descramble_fast as df

        row = np.arange(256.0)
        cov = df.Covariance(256).update(row)
        before = pickle.dumps(cov)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            cov.update(np.broadcast_to(row, (3_000_000, 256)))
        except KeyboardInterrupt:
            if cov.count == 1:
                assert pickle.dumps(cov) == before
            else:  # the signal came too late to stop it: then it was all done
                assert cov.count == 3_000_001 and (cov.covariance() == 0).all()
        else:
            raise SystemExit("no interrupt")
        """
    )


def test_ctrl_c_in_a_loop_of_updates_leaves_whole_batches(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, pickle, signal, threading
        import numpy as np
        import descramble_fast as df

        x = np.random.default_rng(0).normal(size=(2000, 64)) + 3
        for _ in range(5):
            cov = df.Covariance(64)
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                while True:
                    cov.update(x)
            except KeyboardInterrupt:
                pass
            whole = df.Covariance(64)
            for _ in range(cov.count // 2000):
                whole.update(x)
            assert cov.count == whole.count > 0
            assert cov.covariance().tobytes() == whole.covariance().tobytes()
            assert cov.mean.tobytes() == whole.mean.tobytes()
        """
    )


def test_ctrl_c_ends_the_power_iteration(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, signal, threading
        import numpy as np
        import descramble_fast as df

        W = np.random.default_rng(0).normal(size=(250, 250))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                df.descramble_weights(W, criterion="diagonal")
        except KeyboardInterrupt:
            pass
        """,
        timeout=20,
    )


def test_a_signal_handler_that_asks_the_busy_accumulator_gets_an_error(
    fresh_python: FreshPython,
) -> None:
    fresh_python(
        """
        import signal
        import numpy as np
        import descramble_fast as df

        x = np.random.default_rng(0).normal(size=(60000, 600))
        cov = df.Covariance(600)
        signal.signal(signal.SIGALRM, lambda *_: print(cov.count))
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            for _ in range(20):
                cov.update(x)
        except RuntimeError as error:
            assert "in use" in str(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert cov.count % 60000 == 0
        """,
        timeout=60,
    )
