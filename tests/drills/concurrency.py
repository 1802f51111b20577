"""Threads, processes and signals: the bits of one thread alone, no deadlock, and Ctrl-C in time."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from drill import HERE, Tally, drill
from numpy.typing import NDArray

import descramble_fast as df

PATIENCE = 120.0  # seconds after which something hangs, on a busy machine as well
FORKS = hasattr(os, "fork")


def together(tally: Tally, what: str, jobs: list[Callable[[], None]]) -> None:
    """Start all at the same moment, each in a thread of its own, and wait for every one."""
    raised: list[str] = []
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        barrier.wait()
        try:
            job()
        except Exception as error:
            raised.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))
    stuck = sum(thread.is_alive() for thread in threads)
    if stuck:
        faulthandler.dump_traceback()
    tally.check(not stuck, f"{what}: {stuck} of {len(threads)} threads hang")
    tally.check(not raised, f"{what}: {len(raised)} threads raised, first {raised[:1]}")


def bits(seed: int) -> list[bytes]:
    """A bit of everything, for one seed."""
    rng = np.random.default_rng(seed)
    x, a = rng.normal(size=(300, 24)), rng.normal(size=(6, 30, 30))
    cov = df.Covariance(24)
    for part in np.array_split(x, 3):
        cov.update(part)
    other = df.Covariance.from_samples(x[:40].astype(np.float32))
    d = df.descramble(cov, gauge="identity")
    cross = df.CrossCovariance(24, 24).update(x, x[:, ::-1])
    path = df.operators.difference(24, 1, "path")
    results: list[Any] = [
        df.eigh(a + a.swapaxes(1, 2)).eigenvectors,
        df.eigh(a[0] @ a[0].T, k=3).eigenvectors,
        d.matrix, d.transform(x), df.match_modes(d).modes,
        df.linear_assignment(a).columns, df.match_neurons(cross).permutation,
        df.descramble_permutation(cov, operator=path, seed=seed, restarts=2).permutation,
        df.quadratic_assignment(a[0][:7, :7], a[1][:7, :7], seed=seed).columns,
        df.descramble_weights(a[0], criterion="diagonal").cost,
        df.descramble_conv(a[:, :5, :9].reshape(6, 5, 3, 3), (4, 5)).eigenvalues,
    ]  # fmt: skip
    return [
        pickle.dumps(cov),
        pickle.dumps(cov.merge(other)),
        *(np.asarray(r).tobytes() for r in results),
    ]


def own_objects(tally: Tally, threads: int, rounds: int) -> None:
    serial = [bits(seed) for seed in range(12)]
    wrong: list[tuple[int, list[int]]] = []
    over = threading.Event()

    def job(number: int) -> None:
        for step in range(rounds):
            seed = (number + step) % len(serial)
            got = bits(seed)
            if got != serial[seed]:
                wrong.append((seed, [i for i, one in enumerate(got) if one != serial[seed][i]]))

    def change() -> None:
        rng = np.random.default_rng(3)
        while not over.wait(0.002):
            df.set_num_threads(int(rng.integers(0, 9)))

    changer = threading.Thread(target=change, daemon=True)
    changer.start()
    together(tally, "own objects", [partial(job, n) for n in range(threads)])
    over.set()
    changer.join()
    df.set_num_threads(0)
    bad = dict(wrong)
    for number in range(threads * rounds):
        seed = number % len(serial)
        tally.check(seed not in bad, f"seed {seed}: results {bad.get(seed)} have other bits")


ROWS = 7  # of every small batch
LONG = 7 * 700  # rows, more than are packed at once


def tallied(threads: int, which: int, rows: int) -> NDArray[np.float64]:
    """Rows that only this thread adds: an indicator beside the last column, all ones."""
    x = np.zeros((rows, threads + 1))
    x[:, which] = x[:, -1] = 1
    return x


def torn(count: int, weight: float, mean: Any, second: Any) -> str:
    """What shows half an update in one reading: rows of each thread are whole batches."""
    rows = weight * np.asarray(mean)
    diagonal = weight * np.diagonal(second)
    if weight != count or count % ROWS or not np.allclose(rows, diagonal, rtol=1e-11, atol=1e-6):
        return f"count {count}, weight {weight}, rows {rows.tolist()}, {diagonal.tolist()}"
    whole = np.abs(rows / ROWS - np.rint(rows / ROWS)).max() <= 1e-12 * count + 1e-9
    if (
        not whole
        or abs(rows[:-1].sum() - count) > 1e-11 * count
        or rows[-1] - count > 1e-11 * count
    ):
        return f"count {count}, rows of each thread {rows.tolist()}"
    return ""


def one_object(tally: Tally, writers: int, updates: int, folder: Path) -> None:
    cov, over, seen = df.Covariance(writers + 1), threading.Event(), queue.SimpleQueue[str]()
    once = {n: df.Covariance.from_samples(tallied(writers, n, ROWS)) for n in range(writers)}
    added = [0] * writers

    def write(n: int) -> None:
        rng = np.random.default_rng(n)
        small, large = (tallied(writers, n, rows) for rows in (ROWS, LONG))
        for _ in range(updates):
            kind = rng.integers(0, 12)
            if kind == 0:
                cov.merge(once[n])
            else:
                cov.update(large if kind == 1 else small)
            added[n] += LONG if kind == 1 else ROWS

    def whole(one: df.Covariance) -> str:
        return torn(one.count, one.weight, one.mean, one.second_moment()) if one.count else ""

    path = folder / "state.safetensors"

    def saved() -> str:
        cov.save(path)
        return whole(df.Covariance.load(path))

    readers: list[Callable[[], str]] = [
        saved,
        lambda: whole(copy.copy(cov)),
        lambda: whole(copy.deepcopy(cov)),
        lambda: whole(pickle.loads(pickle.dumps(cov))),
        lambda: whole(df.Covariance(writers + 1).merge(cov)),
        lambda: (
            "" if cov.count % ROWS == 0 and cov.weight % ROWS == 0 else "part of a batch counted"
        ),
        lambda: "" if abs(cov.mean[:-1].sum() - 1) < 1e-11 else f"mean {cov.mean}",
        lambda: "" if abs(np.trace(cov.second_moment()) - 2) < 1e-11 else "second moment is torn",
    ]

    def read(look: Callable[[], str]) -> None:
        last = 0
        while not over.is_set():
            if cov.count:
                seen.put(look())
            now = cov.count
            seen.put("" if now >= last else f"count falls from {last} to {now}")
            last = now
            time.sleep(0.001)

    def write_all() -> None:
        try:
            together(tally, "one object", [partial(write, n) for n in range(writers)])
        finally:
            over.set()

    together(tally, "readers", [write_all, *(partial(read, r) for r in readers)])
    while not seen.empty():
        wrong = seen.get()
        tally.check(not wrong, f"read during updates: {wrong}")
    tally.check(cov.count == sum(added), f"count {cov.count}, expected {sum(added)}")
    rows = np.array([*added, sum(added)])
    expected = np.zeros((writers + 1, writers + 1))
    expected[:-1, -1] = expected[-1, :-1] = added
    np.fill_diagonal(expected, rows)
    off = float(np.abs(cov.second_moment() - expected / sum(added)).max())
    tally.worst("moments of one accumulator off by", off)
    tally.check(off <= 1e-12, f"moments off by {off}")


def cycles(tally: Tally, objects: int, threads: int, merges: int) -> None:
    """Merges among all, in every direction; 2⁵³ rows are out of reach."""
    covs = [df.Covariance.from_samples(tallied(objects, n, ROWS)) for n in range(objects)]
    wrong: list[str] = []

    def job(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(merges):
            i, j = rng.integers(0, objects, 2)
            draw = rng.random()
            if draw < 0.5:
                if covs[i].count < 2**40:
                    covs[i].merge(covs[j])  # or with itself
            elif draw < 0.8:
                df.Covariance.combine([covs[i], covs[j], covs[i]], [1, 2, 3])
            else:
                one = pickle.loads(pickle.dumps(covs[i]))
                wrong.append(torn(one.count, one.weight, one.mean, one.second_moment()))

    together(tally, "merges in cycles", [partial(job, s) for s in range(threads)])
    for one in covs:
        wrong.append(torn(one.count, one.weight, one.mean, one.second_moment()))
    for each in wrong:
        tally.check(not each, f"merges in cycles: {each}")


def handed_on(tally: Tally, threads: int, each: int) -> None:
    """Objects and results that die in another thread than they were made in, some amid work."""
    line: queue.SimpleQueue[Any] = queue.SimpleQueue()
    x = np.ones((LONG, 6)) * np.arange(6)

    def make() -> None:
        for _ in range(each):
            cov = df.Covariance(6)
            busy = threading.Thread(target=cov.update, args=(x,))
            busy.start()
            line.put((cov, busy, cov.second_moment() if cov.count else None))
            del cov

    def drop() -> None:
        for _ in range(each):
            cov, busy, moment = line.get()
            values = df.eigh(np.diag(np.arange(6.0)))
            del cov
            busy.join()
            if moment is not None and not np.allclose(moment, np.outer(x[0], x[0])):
                raise ValueError(f"second moment {moment}")
            line_back = values.eigenvalues
            del values
            if line_back.tolist() != list(range(6)):
                raise ValueError(f"eigenvalues {line_back}")

    together(tally, "handed on", [make, drop] * threads)
    gc.collect()
    tally.trials += threads * each


@drill("threads", "hundreds of threads get the bits of one; on one object, calls take turns")
def threads(tally: Tally, long: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        own_objects(tally, 400 if long else 48, 12 if long else 1)
        one_object(tally, 200 if long else 24, 400 if long else 25, Path(folder))
    cycles(tally, 60 if long else 12, 200 if long else 32, 1000 if long else 12)
    handed_on(tally, 100 if long else 8, 200 if long else 5)
    tally.figures["threads at once"] = "400" if long else "48"


def child(*arguments: object, timeout: float = PATIENCE) -> str:
    """Run a scene of the other file; what is wrong with how it ended, or nothing."""
    command = [sys.executable, "-X", "faulthandler", str(HERE / "scenes.py"), *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGABRT)
            return f"hangs; {process.communicate()[0][-400:]}"
    if process.returncode or not output.endswith("done\n"):
        return f"exit code {process.returncode}: {output[-400:]}"
    return ""


@drill("processes", "forks, other programs, signals and exits amid work: right answers, and an end")
def processes(tally: Tally, long: bool) -> None:
    forks = [("fork", 200, 20), ("terminated", 50, 5)] if FORKS else []
    scenes: list[tuple[str, int, int]] = [*forks, ("programs", 20, 1), ("interpreter", 3, 3)]
    scenes += [("storm", 5, 20)] if hasattr(signal, "SIGALRM") else []
    if long:
        for name, count, repeats in scenes:
            for seed in range(max(1, repeats // 5)):
                wrong = child(name, seed, max(2, count // 4))
                tally.check(not wrong, f"{name}, seed {seed}: {wrong}")
        for method in multiprocessing.get_all_start_methods():
            wrong = child("pool", method, 3)
            tally.check(not wrong, f"pool by {method}: {wrong}")
    elif FORKS:
        wrong = child("fork", 0, 2)
        tally.check(not wrong, f"fork: {wrong}")
    for seed in range(100 if long else 2):
        wrong = child("leave", seed, 1 + seed % 8)
        tally.check(not wrong, f"leave, seed {seed}: {wrong}")
