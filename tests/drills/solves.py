"""Long solves, and a process that is interrupted in them: ``python solves.py NAME TRIALS``.

It tells its parent how long the solve takes, and of each trial when it began and when the interrupt
arrived, on the clock that all processes share.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import on_device
from numpy.typing import NDArray

import descramble_fast as df

Work = Callable[[], Any]
SOLVES: dict[str, Callable[[], Work]] = {}
rng = np.random.default_rng(0)
arrived: list[float] = []  # when an interrupt did, where the solve looks at its state afterwards


def solve(make: Callable[[], Work]) -> Callable[[], Work]:
    """Register a long solve; what it returns is pickled or hashed."""
    SOLVES[make.__name__.replace("_", "-")] = make
    return make


def normal(*shape: int) -> NDArray[np.float64]:
    return rng.normal(size=shape)


def symmetric(*shape: int) -> NDArray[np.float64]:
    a = normal(*shape)
    return a + a.swapaxes(-1, -2)


def repeated(x: NDArray[Any], times: int) -> NDArray[Any]:
    """The same samples again and again, in no more memory."""
    return np.broadcast_to(x, (times, *x.shape))


def whole(cov: Any, change: Callable[[Any], Any], state: Callable[[Any], bytes]) -> Work:
    """Change a copy; if interrupted it must be as before, or wholly changed."""
    before = pickle.dumps(cov)

    def work() -> bytes:
        again = pickle.loads(before)
        try:
            change(again)
        except KeyboardInterrupt:
            arrived.append(time.monotonic())
            kept = state(again)
            if kept not in (state(cov), *done):
                raise RuntimeError("the state is half changed") from None
            raise
        done[:] = [state(again)]
        return done[0]

    done: list[bytes] = []
    return work


@solve
def update() -> Work:
    x = repeated(normal(2000, 256), 500)
    return whole(df.Covariance.from_samples(x[0]), lambda cov: cov.update(x), pickle.dumps)


@solve
def update_float32() -> Work:
    x = repeated(normal(1000, 2048).astype(np.float32), 24)
    return whole(df.Covariance.from_samples(x[0]), lambda cov: cov.update(x), pickle.dumps)


@solve
def update_weighted() -> Work:
    x, w = repeated(normal(2000, 256), 400), repeated(np.arange(2000.0), 400)
    cov = df.Covariance.from_samples(x[0])
    return whole(cov, lambda cov: cov.update(x, weights=w), pickle.dumps)


@solve
def cross_update() -> Work:
    x, y = repeated(normal(2000, 256), 300), repeated(normal(2000, 200), 300)

    def work() -> bytes:
        cross = df.CrossCovariance(256, 200).update(x[0], y[0])
        before = cross.cross_moment().tobytes()
        try:
            cross.update(x, y)
        except KeyboardInterrupt:
            arrived.append(time.monotonic())
            if cross.count != 2000 * 301 and cross.cross_moment().tobytes() != before:
                raise RuntimeError("the state is half changed") from None
            raise
        return bytes(cross.cross_moment().tobytes())

    return work


@solve
def merge() -> Work:
    a, b = (pickle.dumps(df.Covariance.from_samples(normal(3, 3000))) for _ in range(2))
    added = pickle.loads(b)

    def after(merges: int) -> df.Covariance:
        cov = pickle.loads(a)
        for _ in range(merges):
            cov.merge(added)
        return cov

    def work() -> bytes:
        cov = pickle.loads(a)
        try:
            for _ in range(60):
                cov.merge(added)
        except KeyboardInterrupt:
            arrived.append(time.monotonic())
            with deaf():
                if pickle.dumps(cov) != pickle.dumps(after((cov.count - 3) // 3)):
                    raise RuntimeError("the merged state is half changed") from None
            raise
        return cov.mean.tobytes()

    return work


@solve
def eigh_all() -> Work:
    a = symmetric(1800, 1800)
    return lambda: df.eigh(a).eigenvectors


@solve
def eigh_float32() -> Work:
    a = symmetric(2300, 2300).astype(np.float32)
    return lambda: df.eigh(a).eigenvectors


@solve
def eigh_leading() -> Work:
    a = symmetric(2200, 2200)
    return lambda: df.eigh(a, k=20).eigenvectors


@solve
def eigh_leading_flat() -> Work:
    a = np.eye(1800) + 1e-9 * symmetric(1800, 1800)
    return lambda: df.eigh(a, k=900).eigenvectors


@solve
def eigh_batch() -> Work:
    a = repeated(symmetric(4, 320, 320), 25)
    return lambda: df.eigh(a).eigenvectors


@solve
def eigh_small_batch() -> Work:
    a = repeated(symmetric(100, 24, 24), 600)
    return lambda: df.eigh(a).eigenvalues


@solve
def descramble() -> Work:
    cov = df.Covariance.from_samples(normal(5000, 1600))
    return lambda: df.descramble(cov).matrix


@solve
def descramble_identity() -> Work:
    cov = df.Covariance.from_samples(normal(100, 256))
    return lambda: df.descramble(cov, gauge="identity").matrix


@solve
def descramble_matrix_operator() -> Work:
    a, cov = normal(1200, 1200), df.Covariance.from_samples(normal(3000, 1200))
    return lambda: df.descramble(cov, operator=df.operators.from_matrix(a @ a.T)).matrix


@solve
def descramble_many() -> Work:
    covs = [df.Covariance.from_samples(normal(500, 256)) for _ in range(60)]
    return lambda: [d.cost for d in df.descramble_many(covs)]


@solve
def descramble_many_large() -> Work:
    covs = [df.Covariance.from_samples(normal(500, 900)) for _ in range(5)]
    return lambda: [d.cost for d in df.descramble_many(covs)]


@solve
def transform() -> Work:
    d, x = df.descramble(normal(2000, 600)), repeated(normal(1000, 600), 60)
    return lambda: d.transform(x)[-1]


def order(operator: Any, n: int) -> Work:
    x = normal(3 * n, n).cumsum(axis=0)

    def work() -> NDArray[np.int64]:
        r = df.descramble_permutation(x, operator=operator, restarts=4)
        if r.stopped == "interrupted":  # with the best so far
            arrived.append(time.monotonic())
            p = np.asarray(r.permutation)
            if sorted(p) != list(range(n)) or r.cost > r.initial_cost:
                raise RuntimeError("the interrupted search gives no order")
            raise KeyboardInterrupt
        return np.asarray(r.permutation)

    return work


@solve
def order_path() -> Work:
    return order(df.operators.difference(700, 1, "path"), 700)


@solve
def order_cycle() -> Work:
    return order(df.operators.difference(700, 1, "periodic"), 700)


@solve
def order_fourier() -> Work:
    return order(df.operators.fourier(500), 500)


@solve
def linear_assignment() -> Work:
    i = np.arange(1.0, 1601)
    cost = np.outer(i, i)[:, rng.permutation(1600)]
    return lambda: df.linear_assignment(cost).columns


@solve
def linear_assignment_random() -> Work:
    cost = rng.integers(0, 10**6, (3500, 3500)).astype(np.float64)
    return lambda: df.linear_assignment(cost).columns


@solve
def linear_assignment_batch() -> Work:
    cost = repeated(normal(20, 200, 200), 80)
    return lambda: df.linear_assignment(cost).columns


@solve
def quadratic_assignment() -> Work:
    a, b = symmetric(2, 160, 160)

    def work() -> NDArray[np.int64]:
        r = df.quadratic_assignment(a, b, restarts=8)
        if r.stopped == "interrupted":
            arrived.append(time.monotonic())
            p = np.asarray(r.columns)
            value = float((a * b[np.ix_(p, p)]).sum())
            if sorted(p) != list(range(160)) or abs(value - r.cost) > 1e-9 * abs(a).sum():
                raise RuntimeError("the interrupted search gives no permutation, or another cost")
            raise KeyboardInterrupt
        return np.asarray(r.columns)

    return work


@solve
def match_neurons() -> Work:
    x = normal(1500, 1500)
    y = x[:, rng.permutation(1500)] + normal(1500, 1500)
    return lambda: df.match_neurons(x, y, signed=True).permutation


@solve
def nearest_permutation() -> Work:
    p = normal(3000, 3000)
    return lambda: df.nearest_permutation(p).permutation


@solve
def descramble_conv() -> Work:
    weight = normal(48, 48, 3, 3)
    return lambda: df.descramble_conv(weight, (96, 96)).eigenvalues


@solve
def descramble_conv_wide() -> Work:
    weight = normal(512, 512, 2, 2)
    return lambda: df.descramble_conv(weight, (5, 5)).eigenvalues


@solve
def weights_trace() -> Work:
    w = normal(1500, 1500)
    return lambda: df.descramble_weights(w, criterion="trace").matrix


@solve
def weights_trace_singular() -> Work:
    w = normal(1000, 1000) * np.logspace(0, -20, 1000)
    return lambda: df.descramble_weights(w, criterion="trace").matrix


@solve
def weights_diagonal() -> Work:
    w = normal(220, 220)
    return lambda: df.descramble_weights(w, criterion="diagonal").matrix


@solve
def weights_smoothness() -> Work:
    w, s = normal(1400, 1400), normal(1400, 1400)
    return lambda: df.descramble_weights(w, input_second_moment=s @ s.T).matrix


@solve
def stability() -> Work:
    parts = [df.Covariance.from_samples(normal(600, 300)) for _ in range(8)]
    total = df.Covariance(300)
    for part in parts:
        total.merge(part)
    d = df.descramble(total)
    return lambda: d.stability(parts).overlap


@solve
def save() -> Work:
    covs = [df.Covariance.from_samples(normal(10, 4000)) for _ in range(2)]
    folder = tempfile.mkdtemp(prefix="drill-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "state.safetensors"
    states = [cov.second_moment().tobytes() for cov in covs]

    def work() -> bytes:
        try:
            for cov in covs:
                cov.save(path)
        except KeyboardInterrupt:
            arrived.append(time.monotonic())
            with deaf():
                kept = path.exists() and df.Covariance.load(path).second_moment().tobytes()
            if kept and kept not in states:
                raise RuntimeError("the file is neither the old nor the new state") from None
            raise
        return b""

    return work


def model() -> tuple[Any, list[Any]]:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(256, 800), nn.ReLU(), nn.Linear(800, 700), nn.ReLU())
    return layers, [torch.randn(512, 256) for _ in range(40)]


@solve
def torch_model() -> Work:
    import descramble_fast.torch as dft

    net, data = model()

    def work() -> list[float]:
        try:
            found = dft.descramble_model(net, data, "*", progress=False)
        except KeyboardInterrupt:
            arrived.append(time.monotonic())
            raise
        finally:
            if any(part._forward_hooks or part._forward_pre_hooks for part in net.modules()):
                raise RuntimeError("hooks were left in the model")
        return [layer.descrambler.cost for layer in found.values()]

    return work


@solve
def device_eigh() -> Work:
    a = on_device.put(symmetric(6000, 6000))
    return lambda: on_device.host(df.eigh(a).eigenvalues)


@solve
def device_eigh_batch() -> Work:
    a = on_device.put(symmetric(20_000, 64, 64))
    return lambda: on_device.host(df.eigh(a).eigenvalues)


@solve
def device_assignment() -> Work:
    cost = on_device.put(normal(200, 1000, 1000))
    return lambda: on_device.host(df.linear_assignment(cost).columns)


@solve
def device_descramble() -> Work:
    cov = df.Covariance.from_samples(on_device.put(normal(6100, 6000)))
    return lambda: np.float64(df.descramble(cov, gauge="identity").cost)


def digest(result: Any) -> str:
    data = result if isinstance(result, bytes) else np.asarray(result).tobytes()
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hear no Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(name: str, trials: int) -> None:
    """Solve, be interrupted so many times, and solve again."""

    def tell(*words: object) -> None:
        print(*words, flush=True)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = SOLVES[name]()
    begin = time.monotonic()
    right = digest(work())
    first = time.monotonic()
    work()
    tell("ready", min(first - begin, time.monotonic() - first))
    for _ in range(trials):
        finished = False
        arrived.clear()
        try:
            tell("go")
            work()
            finished = True
            time.sleep(60)
        except KeyboardInterrupt:
            tell("caught", min([time.monotonic(), *arrived]), int(finished))
    tell("same" if digest(work()) == right else "another answer after the interrupts")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
