"""Little memory, few threads, few files: a right answer or a clear refusal, and all as it was."""

# ruff: noqa: B023 — whatever is defined in a loop is called before that goes on

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import on_device
from drill import Tally, drill
from numpy.typing import NDArray
from on_device import host

import descramble_fast as df
from descramble_fast import run as runs
from descramble_fast._files import FileError

Floats = NDArray[np.float64]
LINUX = sys.platform == "linux"
PAGES = Path("/proc/self/statm")
CPU, MEMORY = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/memory")


def flat(value: Any) -> list[Any]:
    """Give a result as arrays and numbers that can be compared bit by bit."""
    if isinstance(value, df.Covariance):
        return [pickle.dumps(value)]
    if isinstance(value, tuple | list):
        return [part for each in value for part in flat(each)]
    if hasattr(value, "matrix") and hasattr(value, "orthogonality_error"):
        return flat([value.cost, getattr(value, "components", value.matrix)])
    if hasattr(value, "__dataclass_fields__"):
        fields = vars(value).items()
        return [part for key, each in fields if "seconds" not in key for part in flat(each)]
    return [value.tobytes() if isinstance(value, np.ndarray) else value]


def solves(n: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """Give public solves, each of which leaves its inputs alone."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=(3 * n, n)).cumsum(axis=1)
    cov, A = df.Covariance.from_samples(x), df.Covariance.from_samples(x).second_moment()
    stack = rng.normal(size=(6, 24, 24)) + rng.normal(size=(6, 24, 24)).swapaxes(1, 2)
    stack = stack + stack.swapaxes(1, 2)
    small = df.Covariance.from_samples(x[:, :12])
    W, kernel = rng.normal(size=(n, n)), rng.normal(size=(6, 3, 3, 3))
    cost, other = rng.normal(size=(n, n)), rng.normal(size=(10, 10))
    np.save(folder / "x.npy", x.astype(np.float32))
    cov.save(folder / "state.safetensors")

    def run() -> object:
        out = Path(tempfile.mkdtemp(dir=folder))
        found = runs.Run(runs.find([folder / "x.npy"]), out / "moments", batch_size=64)
        out.mkdir(exist_ok=True)
        found.accumulate()
        runs.merge(out / "all.safetensors", [out / "moments" / "x.safetensors"])
        return runs.load(out / "all.safetensors")

    def report() -> object:
        from descramble_fast import _layers

        layer = _layers.Layer(name="x", neurons=cov.n_features, covariance=cov, weight=W)
        found = _layers.Layers(layers=_layers.solve([layer]), configuration={})
        if (error := found.layers[0].error) is not None:
            raise MemoryError(error)
        found.save(folder / "result.safetensors")
        found.report(folder / "report.html")
        return found.layers[0].descrambler

    return {
        "update": lambda: df.Covariance(n).update(x).update(x[::-1]),
        "load": lambda: df.Covariance.load(folder / "state.safetensors"),
        "save": lambda: (
            cov.save(folder / "again.safetensors") or (folder / "again.safetensors").stat().st_size
        ),
        "second_moment": lambda: cov.second_moment(),
        "eigh": lambda: df.eigh(A),
        "eigh, k": lambda: df.eigh(A, k=3),
        "eigh, stack": lambda: df.eigh(stack),
        "descramble": lambda: df.descramble(cov),
        "descramble, identity": lambda: df.descramble(cov, gauge="identity"),
        "descramble, k": lambda: df.descramble(cov, k=2),
        "descramble_many": lambda: df.descramble_many([cov, small, cov]),
        "descramble_weights": lambda: df.descramble_weights(W, criterion="trace"),
        "descramble_conv": lambda: df.descramble_conv(kernel, (16, 16)).eigenvalues,
        "descramble_permutation": lambda: df.descramble_permutation(small, restarts=2),
        "linear_assignment": lambda: df.linear_assignment(cost),
        "quadratic_assignment": lambda: df.quadratic_assignment(other, other.T),
        "run and merge": run,
        "report": report,
    }


def in_child(body: Callable[[], str], seconds: int = 60) -> str:
    """Call in a fork; what it says is wrong, or how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(seconds)
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            said = body()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(write)
    answer = b""
    while part := os.read(read, 4096):
        answer += part
    os.close(read)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return answer.decode()


def limited(solve: Callable[[], Any], limit: str, value: int, oracle: list[Any]) -> str:
    """Solve under a limit, and again without; what was neither right nor a refusal."""
    import resource

    number = getattr(resource, limit)
    before = resource.getrlimit(number)
    resource.setrlimit(number, (value, before[1]))
    refused, wrong = False, ""
    try:
        result = solve()
    except MemoryError:
        refused = True
    except (FileError, OSError) as error:  # no file, or no thread, could be had
        refused = True
        if (
            isinstance(error, FileError)
            and "memory" not in str(error).lower()
            and limit != "RLIMIT_NOFILE"
        ):
            wrong = f"{type(error).__name__}: {error}; "
    except BaseException as error:
        wrong = f"{type(error).__module__}.{type(error).__name__}: {error}; "
        refused = True
    resource.setrlimit(number, before)
    if not refused and flat(result) != oracle:
        wrong += "another result under the limit; "
    try:
        if flat(solve()) != oracle:
            wrong += "another result afterwards"
    except BaseException as error:
        wrong += f"afterwards {type(error).__name__}: {error}"
    return wrong or ("refused" if refused else "solved")


def size_now() -> int:
    return int(PAGES.read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


def count(tally: Tally, said: str, where: str) -> None:
    tally.check(said in ("refused", "solved"), f"{where}: {said or 'nothing said'}")
    kept = (
        int(tally.figures.get(said, "0").replace(",", "")) if said in ("refused", "solved") else 0
    )
    if said in ("refused", "solved"):
        tally.figures[said] = f"{kept + 1:,}"


@drill(
    "address-space", "where memory is refused a solve raises MemoryError, and then solves as ever"
)
def address_space(tally: Tally, long: bool) -> None:
    if not LINUX:
        tally.check(True, "")
        return
    rng = random.Random(5)
    # What is freed goes back to the system, so that the next array asks it again.
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
    df.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        every = solves(300 if long else 160, Path(name))
        for what, solve in every.items():
            oracle = flat(solve())
            assert flat(solve()) == oracle, f"{what} is not the same twice"
            # With less, Python's own Thread.start may wait for ever for a thread that died young.
            least = 21 if what == "run and merge" else 12
            for trial in range(150 if long else 2):
                room = int(2 ** rng.uniform(least, 24))
                said = in_child(lambda: limited(solve, "RLIMIT_AS", size_now() + room, oracle))
                count(tally, said, f"{what}, trial {trial}, {room} bytes more")
    df.set_num_threads(0)


@drill(
    "few-threads", "where no thread can be had the calling one does the work, with the same bits"
)
def few_threads(tally: Tally, long: bool) -> None:
    if not LINUX:
        tally.check(True, "")
        return

    def alone(solve: Callable[[], Any], oracle: list[Any]) -> str:
        with contextlib.suppress(PermissionError):
            os.setuid(65534)  # the limit binds nobody but root
        return limited(solve, "RLIMIT_NPROC", 0, oracle)

    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        df.set_num_threads(4)
        try:
            for n in (80, 300) if long else (80,):
                for what, solve in solves(n, Path(name)).items():
                    if what in ("run and merge", "report", "save"):
                        continue  # which write, where nobody may
                    oracle = flat(solve())
                    for trial in range(10 if long else 1):
                        said = in_child(lambda: alone(solve, oracle))
                        where = f"n {n}, {what}, trial {trial}"
                        tally.check(said == "solved", f"{where}: {said}")
        finally:
            df.set_num_threads(0)


SAYS = """
import json, os, sys
import numpy as np
import descramble_fast as df
from descramble_fast import _core
x = np.random.default_rng(0).normal(size=(900, 300)).cumsum(axis=1)
cov = df.Covariance.from_samples(x)
told = _core.num_threads()
df.eigh(np.stack([cov.second_moment()] * 4))
d = df.descramble(cov)
threads = len(os.listdir("/proc/self/task"))
df.set_num_threads(2)
d, w = df.descramble(cov), df.eigh(cov.second_moment())
bits = [hash(d.components.tobytes()), hash(w.eigenvectors.tobytes())]
print(json.dumps([told, threads, bits]))
"""


def say(setup: Callable[[], object], **environment: str) -> tuple[int, int, list[int]]:
    """Import in a process that was set up; its threads, as told and as there are, and its bits."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        env={**kept, "PYTHONHASHSEED": "0", **environment},
        preexec_fn=setup,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}: {done.stderr[-300:]}")
    told, threads, bits = json.loads(done.stdout)
    return told, threads, bits


@contextlib.contextmanager
def group(controller: Path, nested: bool) -> Iterator[Path]:
    """Make a control group, perhaps in one of its own; needs root and version 1."""
    outer = controller / f"drill{os.getpid()}"
    made = [outer, *([outer / "inner"] if nested else [])]
    for each in made:
        each.mkdir()
    try:
        yield outer
    finally:
        for each in reversed(made):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    each.rmdir()
                    break
                time.sleep(0.05)


def may_group(controller: Path) -> bool:
    return os.access(controller / "cgroup.procs", os.W_OK) and os.access(controller, os.W_OK)


@drill("processor-limits", "threads are as many as the affinity and every group above allow")
def processor_limits(tally: Tally, long: bool) -> None:
    if not LINUX:
        tally.check(True, "")
        return
    cores = sorted(os.sched_getaffinity(0))
    free = say(lambda: None)
    tally.check(free[0] <= len(cores), f"{free[0]} threads on {len(cores)} cores")
    for core in cores if long else cores[:1]:
        told, threads, bits = say(lambda: os.sched_setaffinity(0, {core}))
        tally.check(told == 1, f"core {core}: {told} threads")
        # OpenBLAS's own threads, if any, are those that the core allows: none.
        tally.check(threads == 1, f"core {core}: {threads} threads are running")
        tally.check(bits == free[2], f"core {core}: two threads there give other bits")
    asked = say(lambda: os.sched_setaffinity(0, {cores[0]}), DESCRAMBLE_FAST_NUM_THREADS="2")
    tally.check(asked[0] == 2, f"the environment asks for 2 threads, got {asked[0]}")
    if not long or not may_group(CPU):
        tally.figures["groups"] = "left out"
        return
    for nested in (False, True):
        for quota, cpus in {100_000: 1, 20_000: 1, 150_000: 2, -1: len(cores)}.items():
            with group(CPU, nested) as outer:
                (outer / "cpu.cfs_quota_us").write_text(str(quota))
                inner = outer / "inner" if nested else outer

                def enter(inner: Path = inner) -> None:
                    (inner / "cgroup.procs").write_text(str(os.getpid()))

                told = say(enter)[0]
            expected = min(cpus, len(cores))
            where = f"quota {quota / 1e5}, {'of the group above' if nested else 'its own'}"
            tally.check(told == expected, f"{where}: {told} threads, expected {expected}")
    tally.figures["groups"] = "version 1"


TAKES = """
import resource, sys, numpy as np, descramble_fast as df
cov = df.Covariance.from_samples(np.random.default_rng(0).normal(size=(8, int(sys.argv[1]))))
try:
    df.descramble(cov)
    print("solved")
except MemoryError as error:
    print("refused", error)
"""


@drill(
    "memory-groups", "what a group's memory limit forbids is refused before the kernel kills for it"
)
def memory_groups(tally: Tally, long: bool) -> None:
    if not (long and LINUX and may_group(MEMORY)):
        tally.check(True, "")
        tally.figures["groups"] = "left out"
        return
    for nested in (False, True):
        for n, megabytes, expected in (
            (1600, 120, "refused"),
            (2400, 200, "refused"),
            (1600, 600, "solved"),
        ):
            with group(MEMORY, nested) as outer:
                (outer / "memory.limit_in_bytes").write_text(str(megabytes << 20))
                inner = outer / "inner" if nested else outer

                def enter(inner: Path = inner) -> None:
                    (inner / "cgroup.procs").write_text(str(os.getpid()))

                done = subprocess.run(
                    [sys.executable, "-c", TAKES, str(n)],
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    preexec_fn=enter,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
            said = done.stdout.split(" ")[0].strip()
            where = f"n {n}, {megabytes} MB, {'of the group above' if nested else 'its own'}"
            tally.check(
                said == expected, f"{where}: {said or done.returncode}, expected {expected}"
            )


@drill("stated-memory", "a solve takes no more memory than descramble_memory and run say it will")
def stated_memory(tally: Tally, long: bool) -> None:
    if not (LINUX and os.access("/proc/self/clear_refs", os.W_OK)):
        tally.check(True, "")
        return

    def grown(solve: Callable[[], object]) -> int:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status")
        before = status.read_text(encoding="ascii").partition("VmRSS:")[2].split()[0]
        solve()
        return 1024 * (
            int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) - int(before)
        )

    rng = np.random.default_rng(6)
    for n in (200, 500, 900, 1500, 2200) if long else (400,):
        cov = df.Covariance.from_samples(rng.normal(size=(2 * n, n)))
        for k in (None, 1, n // 10, n // 2) if long else (None, 1):
            stated = df.descramble_memory(n, k)

            def body(k: int | None = k, stated: int = stated) -> str:
                ctypes.CDLL(None).malloc_trim(0)
                return str(grown(lambda: df.descramble(cov, k=k)) / stated)

            share = in_child(body, 300)
            where = f"descramble, n {n}, k {k}"
            tally.check(
                share[:1].isdigit() and float(share) <= 1, f"{where}: {share} of what is stated"
            )
            if share[:1].isdigit():
                tally.worst("descramble, share of what is stated", float(share))
    with tempfile.TemporaryDirectory() as name:
        for n in (300, 1500) if long else (300,):
            path = Path(name) / "x.npy"
            np.save(path, rng.normal(size=(4000, n)).astype(np.float32))

            def gather(n: int = n, path: Path = path) -> str:
                ctypes.CDLL(None).malloc_trim(0)
                run = runs.Run(runs.find([path]), Path(name) / f"out{n}")
                return str(grown(run.accumulate) / run.memory)

            share = in_child(gather, 300)
            tally.check(
                share[:1].isdigit() and float(share) <= 1, f"run, n {n}: {share} of what is stated"
            )
            if share[:1].isdigit():
                tally.worst("run, share of what is stated", float(share))


@drill("few-files", "few files and little stack are enough, or are said to be too few")
def few_files(tally: Tally, long: bool) -> None:
    if not LINUX:
        tally.check(True, "")
        return
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as name:
        every = solves(64, Path(name))
        used = len(os.listdir("/proc/self/fd"))
        for what in (
            ("run and merge", "load", "save", "report", "descramble")
            if long
            else ("run and merge",)
        ):
            oracle = flat(every[what]())
            for more in range(12) if long else rng.sample(range(12), 3):
                said = in_child(lambda: limited(every[what], "RLIMIT_NOFILE", used + more, oracle))
                count(tally, said, f"{what}, {more} files more")
        parts = Path(name) / "parts"
        parts.mkdir()
        for i in range(300 if long else 40):
            np.save(parts / f"x-{i:05}-of-00300.npy", np.full((2, 5), i, dtype=np.float32))

        def many() -> object:
            out = Path(tempfile.mkdtemp(dir=name)) / "moments"
            runs.Run(runs.find([parts]), out).accumulate()
            return runs.load(out / "x.safetensors")

        oracle = flat(many())
        said = in_child(lambda: limited(many, "RLIMIT_NOFILE", used + 12, oracle))
        tally.check(said == "solved", f"many files, 12 open: {said}")

        # The stack of a new thread is as large as the limit says when it is made.
        for kilobytes in (64, 256, 1024) if long else (256,):
            for what in every if long else ("eigh", "descramble"):
                oracle = flat(every[what]())

                def threaded(solve: Callable[[], Any] = every[what], size: int = kilobytes) -> Any:
                    threading.stack_size(size << 10)
                    found: list[Any] = []
                    thread = threading.Thread(target=lambda: found.append(solve()))
                    thread.start()
                    thread.join()
                    return found[0]

                if kilobytes >= 256:
                    said = in_child(
                        lambda: "solved" if flat(threaded()) == oracle else "another result"
                    )
                    tally.check(said == "solved", f"{what}, a thread of {kilobytes} KB: {said}")
                said = in_child(lambda: limited(every[what], "RLIMIT_STACK", 512 << 10, oracle))
                tally.check(said == "solved", f"{what}, RLIMIT_STACK 512 KB: {said}")


@drill(
    "no-leaks", "memory, files and threads stay as they are over thousands of solves and refusals"
)
def no_leaks(tally: Tally, long: bool) -> None:
    if not LINUX:
        tally.check(True, "")
        return
    bad = np.array([[1.0, np.nan], [0.0, 1.0]])
    ugly = df.Covariance(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "broken.safetensors").write_bytes(b"\xff" * 64)
        refusals: dict[str, Callable[[], object]] = {
            "update, NaN": lambda: ugly.update(bad),
            "eigh, NaN": lambda: df.eigh(bad),
            "linear_assignment, NaN": lambda: df.linear_assignment(bad),
            "descramble, empty": lambda: df.descramble(df.Covariance(8)),
            "load, broken": lambda: df.Covariance.load(folder / "broken.safetensors"),
            "Covariance, size": lambda: df.Covariance(-1),
        }
        every = {
            **{k: s for k, s in solves(40, folder).items() if k not in ("run and merge", "report")},
            **refusals,
        }
        for what, solve in every.items():
            rounds = (4000 if what in refusals else 400) if long else 2
            kept: list[tuple[int, int, int]] = []
            for part in range(3):
                for _ in range(rounds):
                    with contextlib.suppress(ValueError):
                        solve()
                ctypes.CDLL(None).malloc_trim(0)
                resident = int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                open_files, threads = (
                    len(os.listdir(f"/proc/self/{each}")) for each in ("fd", "task")
                )
                kept.append((resident, open_files, threads))
                del part
            grown = kept[2][0] - kept[1][0]
            tally.check(grown <= 1 << 20, f"{what}: {grown} bytes more after {rounds} more calls")
            tally.check(kept[2][1:] == kept[1][1:], f"{what}: files and threads {kept}")


def device_solves(n: int) -> dict[str, Callable[[], list[Any]]]:
    """Give solves on a CUDA device, by what of their results does not depend on the driver."""
    rng, put = np.random.default_rng(n), on_device.put
    x = rng.normal(size=(3 * n, n)).cumsum(axis=1)
    samples, single, moment = put(x), put(x.astype(np.float32)), put(x.T @ x)
    few = rng.normal(size=(2 * n, 12, 12))
    batch, cost = put(few + few.swapaxes(1, 2)), put(rng.normal(size=(n, n)))
    costs = put(rng.normal(size=(n, 9, 9)).astype(np.float32))
    weights = put(rng.integers(0, 3, 3 * n).astype(float))
    whole, cross = df.Covariance.from_samples(samples), df.CrossCovariance
    solved = df.descramble(whole)

    def summed(x: Any, **options: Any) -> list[Any]:
        return [df.Covariance(n).update(x, **options).covariance()]

    return {
        "update": lambda: summed(samples),
        "update, float32": lambda: summed(single),
        "update, weights": lambda: summed(samples, weights=weights),
        "merge": lambda: [df.Covariance.from_samples(samples).merge(whole).covariance()],
        "cross": lambda: [cross(n, n).update(samples, samples).cross_covariance()],
        "eigh": lambda: [df.eigh(moment).eigenvalues],
        "eigh, k": lambda: [df.eigh(moment, k=2).eigenvalues],
        "eigh, batch": lambda: [df.eigh(batch).eigenvalues],
        "descramble": lambda: [df.descramble(whole).cost],
        "descramble, identity": lambda: [df.descramble(whole, gauge="identity").cost],
        "transform": lambda: [solved.transform(samples)],
        "assignment": lambda: [df.linear_assignment(cost).cost],
        "assignment, batch": lambda: [df.linear_assignment(costs).cost],
    }


def near(found: list[Any], right: list[Any]) -> bool:
    """Whether results agree to float64's rounding and a few digits more."""
    pairs = [(host(a), host(b)) for a, b in zip(found, right, strict=True)]
    return all(float(np.abs(a - b).max()) <= 1e-9 * float(np.abs(b).max()) for a, b in pairs)


@drill(
    "device-no-memory",
    "a full CUDA device gives the right answer or a MemoryError, and loses no state",
    device=True,
)
def device_no_memory(tally: Tally, long: bool) -> None:
    n, repeats = (1200, 2) if long else (24, 1)
    every, refused, solved = device_solves(n), 0, 0
    right = {name: [np.array(host(each)) for each in solve()] for name, solve in every.items()}
    x = np.random.default_rng(0).normal(size=(n, n))
    fed, twin, batch = df.Covariance(n), df.Covariance(n), on_device.put(x)
    for cov in (fed, twin):
        cov.update(batch)
    with on_device.Full() as device:
        for free in [0, *(1 << e for e in range(12, *((29, 1) if long else (25, 4))))] * repeats:
            for name, solve in every.items():
                said, found = "", None
                device.leave(free)
                try:
                    found = solve()
                except MemoryError:
                    refused += 1
                except Exception as error:
                    said = f"{type(error).__name__}: {error}"
                device.relent()
                if found is not None:
                    solved += 1
                    said = "" if near(found, right[name]) else "another result"
                tally.check(not said, f"{name}, {free} bytes: {said}")
            device.leave(free)
            with contextlib.suppress(MemoryError):
                fed.update(batch)
            device.relent()
            if fed.count > twin.count:
                twin.update(batch)
            same = pickle.dumps(fed) == pickle.dumps(twin)
            tally.check(same, f"{free} bytes: an update left another state")
    for name, solve in every.items():
        tally.check(near(solve(), right[name]), f"{name}: another result afterwards")
    tally.figures |= {"refused": f"{refused:,}", "solved": f"{solved:,}"}


@drill("device-no-leaks", "a CUDA device's memory stays as it is over many solves", device=True)
def device_no_leaks(tally: Tally, long: bool) -> None:
    every, room = device_solves(400 if long else 16), []
    for _ in range(3):
        for solve in every.values():
            for _ in range(400 if long else 2):
                solve()
        with on_device.Full() as device:
            device.leave(0)
            room.append(device.taken())
    grown = room[1] - room[2]
    tally.check(grown < 4 << 20, f"{grown} bytes were not given back")
    tally.trials += 3 * len(every) * (400 if long else 2)
