"""Processes that fork, are signalled or end amid work: ``python scenes.py NAME SEED COUNT``.

One that ends well says so at the end, and exits with 0.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import descramble_fast as df

rng = np.random.default_rng(0)
X, STACK = rng.normal(size=(3000, 96)), rng.normal(size=(8, 40, 40))
BIG = rng.normal(size=(300, 300))
PATH = df.operators.difference(96, 1, "path")


def work(seed: int = 0) -> tuple[bytes, ...]:
    """Moments, eigenvectors, an assignment, a descrambler and an order."""
    cov = df.Covariance(96).update(X[seed:])
    return (
        cov.covariance().tobytes(),
        df.eigh(STACK).eigenvectors.tobytes(),
        df.eigh(BIG).eigenvalues.tobytes(),
        df.linear_assignment(STACK).columns.tobytes(),
        df.descramble(cov).matrix.tobytes(),
        df.descramble_permutation(cov, operator=PATH, restarts=1, seed=seed).permutation.tobytes(),
    )


def busily(
    count: int, task: Callable[[], Any] = work
) -> tuple[threading.Event, list[threading.Thread]]:
    """Start threads that work until told otherwise."""
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            task()

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return over, threads


def reaped(child: int, patience: float = 60.0) -> int:
    """Exit code of a child; one that hangs ends this process, too."""
    limit = time.monotonic() + patience
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > limit:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("a forked child hangs")
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(done[1])


def nested(level: int, right: tuple[bytes, ...]) -> int:
    """Fork `level` deep, working before and after: 0 if all is right."""
    if level == 0:
        return 0 if work() == right else 3
    child = os.fork()
    if child == 0:
        os._exit(nested(level - 1, right))
    mine = work() == right
    return reaped(child) or (0 if mine else 4)


def fork(seed: int, count: int) -> None:
    """Fork at random instants of other threads' work, some of it three levels deep."""
    draw = np.random.default_rng(seed)
    df.set_num_threads(2)
    right = work()
    over, threads = busily(2)
    for number in range(count):
        time.sleep(float(draw.uniform(0, 0.02)))
        child = os.fork()
        if child == 0:
            os._exit(nested(2 if number % 5 == 0 else 0, right))
        if number % 3 == 0 and work() != right:
            raise SystemExit(f"fork {number}: the parent has another answer meanwhile")
        if code := reaped(child):
            raise SystemExit(f"fork {number}: exit code {code}")
    over.set()
    for thread in threads:
        thread.join()
    if work() != right:
        raise SystemExit("the parent has another answer afterwards")


def shard(seed: int) -> df.Covariance:
    return df.Covariance(96).update(X[seed::4])


def pool(method: str, count: int) -> None:
    """Shards from processes of `multiprocessing`, while threads work here."""
    whole = df.Covariance(96)
    for seed in range(4):
        whole.merge(shard(seed))
    over, threads = busily(1)
    with multiprocessing.get_context(method).Pool(2) as workers:
        for _ in range(count):
            merged = df.Covariance(96)
            for part in workers.map_async(shard, range(4)).get(timeout=100):
                merged.merge(part)
            if merged.covariance().tobytes() != whole.covariance().tobytes():
                raise SystemExit("shards add up to other bits")
            if workers.apply_async(work).get(timeout=100) != work():
                raise SystemExit("a worker has other bits")
    over.set()
    for thread in threads:
        thread.join()


def programs(_: int, count: int) -> None:
    """Start other programs amid work."""
    right = work()
    over, threads = busily(2)
    for _ in range(count):
        subprocess.run([sys.executable, "-S", "-c", "pass"], check=True, timeout=60)
    over.set()
    for thread in threads:
        thread.join()
    if work() != right:
        raise SystemExit("another answer afterwards")


def leave(seed: int, count: int) -> None:
    """End while daemon threads are in native work, at an instant drawn from the seed."""
    df.set_num_threads(1 + seed % 3)
    tasks: list[Callable[[], Any]] = [
        work,
        lambda: df.Covariance(96).update(np.broadcast_to(X, (40, *X.shape))),
        lambda: df.eigh(np.broadcast_to(BIG, (4, *BIG.shape))),
        lambda: df.linear_assignment(BIG).columns,
    ]
    for n in range(count):
        busily(1, tasks[n % len(tasks)])
    time.sleep(float(np.random.default_rng(seed).uniform(0, 0.3)))


def interpreter(_: int, count: int) -> None:
    """In a sub-interpreter, the library works or refuses to be imported."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "try:\n    import descramble_fast as df, numpy as np\n"
        "except ImportError:\n    pass\n"
        "else:\n    assert df.Covariance(2).update(np.ones((3, 2))).count == 3"
    )
    try:
        import _interpreters as subs  # of Python 3.13 on
    except ImportError:
        try:
            import _xxsubinterpreters as subs  # type: ignore[import-not-found, no-redef]
        except ImportError:
            return
    for _ in range(count):
        one = subs.create()
        try:
            failed = subs.run_string(one, code)  # raises in older Pythons
        finally:
            subs.destroy(one)
        if failed is not None:
            raise SystemExit(f"in a sub-interpreter: {failed}")
    if df.Covariance(2).update(np.ones((3, 2))).count != 3:
        raise SystemExit("wrong after a sub-interpreter")


def storm(seed: int, count: int) -> None:
    """Work under signals whose handlers call back into the library."""
    right, heard, refused = work(), [0], [0]
    target = df.Covariance(96)

    def handle(number: int, _: object) -> None:
        heard[0] += 1
        values = df.eigh(np.diag([3.0, 1.0, 2.0])).eigenvalues
        if values.tolist() != [1, 2, 3] or df.Covariance(2).update(np.ones((3, 2))).count != 3:
            raise SystemExit("wrong inside a handler")
        try:
            if target.count % 3000:
                raise SystemExit("a handler sees part of a batch")
        except RuntimeError:  # as documented: it is at work on it in this very thread
            refused[0] += 1

    signal.signal(signal.SIGALRM, handle)
    signal.signal(signal.SIGUSR1, handle)
    over = threading.Event()

    def send() -> None:
        draw = np.random.default_rng(seed)
        while not over.wait(float(draw.uniform(0.001, 0.02))):
            os.kill(os.getpid(), signal.SIGUSR1)

    sender = threading.Thread(target=send)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.007)
    sender.start()
    rounds = np.broadcast_to(X, (60, *X.shape))
    for number in range(count):
        target.update(rounds)
        if work() != right:
            raise SystemExit(f"round {number}: other bits under signals")
    signal.setitimer(signal.ITIMER_REAL, 0)
    over.set()
    sender.join()
    calm = df.Covariance(96)
    for _ in range(count):
        calm.update(rounds)
    if (target.count, target.covariance().tobytes()) != (calm.count, calm.covariance().tobytes()):
        raise SystemExit("the moments have other bits under signals")
    if not heard[0]:
        raise SystemExit("no signal was heard")
    print(heard[0], refused[0])


def terminated(seed: int, count: int) -> None:
    """SIGTERM with its default ends a process amid work, and its helpers with it."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        child = os.fork()
        if child == 0:
            busily(1)
            while True:
                work()
        time.sleep(float(draw.uniform(0.0, 0.2)))
        os.kill(child, signal.SIGTERM)
        if (code := reaped(child)) != -signal.SIGTERM:
            raise SystemExit(f"exit code {code} after SIGTERM")


if __name__ == "__main__":
    name, given, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if name == "pool":
        pool(given, times)
    else:
        globals()[name](int(given), times)
    print("done", flush=True)
