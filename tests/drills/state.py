"""Processes killed and disks failed while state is written: what is on disk stays whole."""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from crash import BATCH, SEGMENT, batch
from drill import HERE, Tally, drill

import descramble_fast as df
from descramble_fast import run as runs

Job = dict[str, Any]
KILL_BEFORE, KILL_AFTER, SHORT = 1000, 1001, 1002  # as interpose.c has them
PART = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
NOBODY = 65534


class Worker:
    """A process that lets its children be killed: it has imported all they need."""

    def __init__(self, root: Path, *arguments: str) -> None:
        # What the disk says is made up by a library that is loaded before libc.
        self.library = root / "interpose.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        flags = ("-shared", "-fPIC", "-O1", "-fvisibility=hidden")
        if compiler:
            parts = (HERE / "interpose.c", "-o", self.library, "-ldl")
            compiler = not subprocess.run(
                [compiler, *flags, *parts], capture_output=True
            ).returncode
        self.interposes = bool(compiler)
        preload = {"LD_PRELOAD": str(self.library)} if compiler else {}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", HERE / "crash.py", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", **preload},
        )

    def start(self, *jobs: Job) -> None:
        assert self.process.stdin
        print(json.dumps(jobs), file=self.process.stdin, flush=True)

    @property
    def ready(self) -> bool:
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def answer(self) -> list[Any]:
        assert self.process.stdout
        return list(json.loads(self.process.stdout.readline()))

    def __call__(self, do: str, *arguments: object, **options: Any) -> Any:
        self.start({"do": do, "with": arguments, **options})
        return self.answer()[0]


@contextmanager
def workshop(*arguments: str) -> Iterator[tuple[Worker, Path]]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)  # some children are nobody
        worker = Worker(root, *arguments)
        try:
            worker.start()  # nothing, so that it is there
            worker.answer()
            yield worker, root
        finally:
            with worker.process as process:
                process.stdin.close()


def bits(cov: df.Covariance) -> tuple[object, ...]:
    state = cov.__getstate__()["state"]
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)


def found_at(path: Path) -> tuple[int, object]:
    """Count and bits of a state, or what is wrong with it."""
    try:
        cov = df.Covariance.load(path)
    except ValueError as error:
        return -1, str(error)
    return cov.count, bits(cov)


def content(path: Path) -> tuple[object, object]:
    """Every bit of a safetensors file but the order of its metadata; else its bytes."""
    if path.suffix != ".safetensors":
        return {}, path.read_bytes()
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            words = dict(file.metadata())
        arrays = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        return {}, str(error)
    return words, {name: array.tobytes() for name, array in arrays.items()}


def parts(folder: Path) -> list[Path]:
    """What writers that were killed left."""
    return [path for path in folder.rglob(".*") if PART.fullmatch(path.name)]


@functools.cache
def streamed(how: str, seed: int, n: int, stop: int) -> dict[int, tuple[object, ...]]:
    """Every state that a stream saves, by its count; the moments of the last checked by sums."""
    cov, states, rows = df.Covariance(n), {}, [batch(seed, j, n) for j in range(stop)]
    for part in rows:
        if how == "gather":
            cov.merge(df.Covariance.from_samples(part))
        else:
            cov.update(part)
        states[cov.count] = bits(cov)
    x = np.concatenate(rows).astype(np.int64)
    exact = x.T @ x / len(x)
    assert np.abs(cov.second_moment() - exact).max() <= 1e-6 * exact.max()
    return states


def instant(rng: np.random.Generator, trial: int, whole: float, saves: int) -> list[float]:
    """When to kill: anywhere, or within a save."""
    if trial % 4 == 3:
        return [0, float(rng.uniform(0, whole))]
    return [
        int(rng.integers(1, max(2, saves if trial % 2 else saves // 3))),
        float(rng.uniform(0, whole / saves)),
    ]


def note(tally: Tally, found: Counter[str]) -> None:
    tally.figures |= {name: f"{number:,}" for name, number in sorted(found.items())}


@drill("kill-save", "killed amid update, merge or save, a state is the old or the new, and goes on")
def kill_save(tally: Tally, long: bool) -> None:
    rng, found, n, stop = np.random.default_rng(0), Counter[str](), 150, 24
    with workshop() as (worker, root):
        for how in ("stream", "gather"):
            folder = root / how
            folder.mkdir()
            path = folder / "x.safetensors"
            begin = time.perf_counter()
            worker(how, str(path), 0, n, stop)
            whole = time.perf_counter() - begin
            path.unlink()
            seed = 0
            for trial in range(400 if long else 12):
                states, where = streamed(how, seed, n, stop), f"{how} {seed}, trial {trial}"
                before = found_at(path)[0] if path.exists() else 0
                kill = instant(rng, trial, whole, stop)
                told = worker(how, str(path), seed, n, stop, kill=kill)
                found["kills"] += told["killed"]
                found["of them in a save"] += told["saving"]
                found["of them with a file half written"] += told["killed"] and bool(parts(folder))
                tally.check(told["killed"] or told["ended"][0] == "well", f"{where}: {told}")
                if path.exists():
                    count, state = found_at(path)
                    same = state == states.get(count) and count >= before
                    tally.check(same, f"{where}: {count} rows, {before} before: other bits")
                if told["ended"][0] == "well" or trial % 10 == 9:
                    worker(how, str(path), seed, n, stop)
                    state = found_at(path)[1]
                    tally.check(state == states[max(states)], f"{where}: resumed, other bits")
                    left = parts(folder)
                    tally.check(not left, f"{where}: a later save left {len(left)} parts there")
                    path.unlink()
                    seed += 1
    note(tally, found)


class Samples:
    """Files of two layers, one of them in two shards, and what a run that is left alone makes."""

    def __init__(self, worker: Worker, root: Path, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(2500, 32)).astype(np.float32)
        shards = [x[:1100], x[1100:]]
        for name, part in zip("ab", shards, strict=True):
            safetensors.numpy.save_file({"h.0": part.copy()}, root / f"{name}.safetensors")
        np.savez_compressed(root / "c.npz", **{"h.1": x[:700, :20]})
        self.files = [str(root / name) for name in ("a.safetensors", "b.safetensors", "c.npz")]
        for file in self.files:
            os.chmod(file, 0o644)  # safetensors lets nobody else read them
        self.states = {"h.0": self.replay(shards), "h.1": self.replay([x[:700, :20]])}
        self.alone = root / "alone"
        begin = time.perf_counter()
        told = worker("command", *self.command(self.alone))
        self.seconds, self.saves = time.perf_counter() - begin, told["begun"]
        assert told["ended"][0] == "well", told

    def command(self, out: Path) -> list[str]:
        return ["run", *self.files, "--output", str(out), "--batch-size", str(BATCH)]

    @staticmethod
    def replay(arrays: list[Any]) -> dict[int, tuple[object, ...]]:
        """Sum in segments, as docs/design-notes.md has it."""
        total = df.Covariance(arrays[0].shape[1])
        segment, size, states = df.Covariance(total.n_features), 0, {}
        for x in arrays:
            for begin in range(0, len(x), BATCH):
                rows = np.ascontiguousarray(x[begin : begin + BATCH])
                segment.update(rows)
                size += rows.nbytes
                if size >= SEGMENT:
                    total.merge(segment)
                    states[total.count] = bits(total)
                    segment, size = df.Covariance(total.n_features), 0
        total.merge(segment)
        return states | {total.count: bits(total)}

    def sound(self, out: Path) -> str:
        """Say what is wrong with what a killed run left."""
        for path in (out / "moments").glob("*.safetensors"):
            (count, found), layer = found_at(path), runs.layer_of(path)
            if found != self.states[layer].get(count):
                return f"{layer}: other bits than of {count} rows"
            read = sum(source.read for source in runs.read_sources(path))
            if read != count:
                return f"{layer}: {count} rows, of which the sources know {read}"
        for name in ("result.safetensors", "report.html"):
            if (out / name).exists() and not self.same(out / name):
                return f"{name}: is no whole one"
        counts = {layer: max(states) for layer, states in self.states.items()}
        try:
            merged = runs.merge(out.parent / "merged" / "m", [out])
            return "" if merged == counts else f"merged as {merged}"
        except (runs.FileError, FileNotFoundError):
            return ""
        finally:
            shutil.rmtree(out.parent / "merged", ignore_errors=True)

    def same(self, path: Path) -> bool:
        """Whether it is what the run that was left alone has there, but for the time it took."""
        name = path.relative_to(path.parents[1 if path.parent.name == "moments" else 0])
        if path.name == "report.html":
            return path.read_bytes().rstrip().endswith(b"</html>")
        if path.name == "result.safetensors":
            return str(content(path)[1]) == str(content(self.alone / name)[1])
        return content(path) == content(self.alone / name)

    def finished(self, out: Path) -> str:
        """Say what is wrong with what a run left that went on to its end."""
        names = [
            "result.safetensors",
            "report.html",
            *(f"moments/{h}.safetensors" for h in self.states),
        ]
        for name in names:
            if not (out / name).exists() or not self.same(out / name):
                return f"{name}: is not that of a run left alone"
        return f"left {parts(out)}" if parts(out) else ""


@drill("kill-run", "`run`, killed at any instant, goes on by the same command to the same bits")
def kill_run(tally: Tally, long: bool) -> None:
    rng, found = np.random.default_rng(1), Counter[str]()
    with workshop() as (worker, root):
        samples = Samples(worker, root)
        out, kills = root / "out", 0
        for trial in range(400 if long else 8):
            if not trial % 4:
                shutil.rmtree(out, ignore_errors=True)
            kill = instant(rng, trial, samples.seconds, samples.saves)
            fresh = ["--fresh"] * (trial % 7 == 6)
            told = worker("command", *samples.command(out), *fresh, kill=kill)
            found["kills"] += told["killed"]
            found["of them in a save"] += told["saving"]
            found["of them with a file half written"] += told["killed"] and bool(parts(root))
            tally.check(told["killed"] or told["ended"][0] == "well", f"trial {trial}: {told}")
            wrong = samples.sound(out)
            tally.check(not wrong, f"trial {trial}, killed at {kill}: {wrong}")
            if trial % 4 == 3:
                told = worker("command", *samples.command(out))
                wrong = samples.finished(out) if told["ended"][0] == "well" else str(told["ended"])
                tally.check(not wrong, f"trial {trial}, resumed: {wrong}")
                kills += 1
    note(tally, found)


def kill_ranks(
    tally: Tally, worker: Worker, root: Path, rng: np.random.Generator, found: Counter[str]
) -> None:
    """Kill savers of folders, of which a merge takes all layers or none."""
    n, layers, folder, out = 40, 5, root / "rank", root / "ranks"
    for trial in range(100):
        how_old = trial % 2  # over nothing, and over layers of less rows
        shutil.rmtree(folder, ignore_errors=True)
        if how_old:
            worker("observed", str(folder), 1, n, layers)
        kill = [int(rng.integers(1, layers + 2)), float(rng.uniform(0, 0.01))]
        told = worker("observed", str(folder), 0, n, layers, kill=kill)
        found["kills"] += told["killed"]
        found["of them in a save"] += told["saving"]
        try:
            counts = runs.merge(out, [folder])
            rows = [len(batch(seed, 0, n)) for seed in range(1 + how_old)]
            right = len(counts) == layers and counts in [dict.fromkeys(counts, r) for r in rows]
            tally.check(right, f"rank {trial}, killed at {kill}: merged {counts}")
            shutil.rmtree(out)
        except (runs.FileError, FileNotFoundError) as error:
            tally.check(told["killed"], f"rank {trial}: {error}")


@drill("kill-merge", "`merge`, killed at any instant, has made nothing or all, and can be repeated")
def kill_merge(tally: Tally, long: bool) -> None:
    rng, found = np.random.default_rng(2), Counter[str]()
    torch = ["torch"] * (long and importlib.util.find_spec("torch") is not None)
    with workshop(*torch) as (worker, root):
        kill_ranks(tally, worker, root, rng, found) if torch else None
        shards = [root / f"rank{i}" for i in range(3)]
        total = {f"h.{layer}": df.Covariance(40 + layer) for layer in range(6)}
        for i, shard in enumerate(shards):
            shard.mkdir()
            for layer, cov in total.items():
                part = df.Covariance(cov.n_features).update(
                    batch(i, cov.n_features, cov.n_features)
                )
                part.save(shard / f"{layer}.safetensors")
                cov.merge(part) if i else total.update({layer: part})
        whole = {layer: bits(cov) for layer, cov in total.items()}
        files = [str(shard / "h.0.safetensors") for shard in shards]
        commands = {
            "folder": ["merge", str(root / "folder"), *map(str, shards)],
            "file": ["merge", str(root / "h.0.safetensors"), *files],
        }
        for trial in range(500 if long else 8):
            command = commands["file" if trial % 4 == 3 else "folder"]
            out = Path(command[1])
            begin = time.perf_counter()
            if trial < 2:
                worker("command", *command)
                seconds = time.perf_counter() - begin
                shutil.rmtree(out, ignore_errors=True)
            kill = instant(rng, trial, seconds, len(whole))
            told = worker("command", *command, kill=kill)
            found["kills"] += told["killed"]
            found["of them in a save"] += told["saving"]
            found["of them with something half written"] += told["killed"] and bool(parts(root))
            stood = out.exists()
            tally.check(told["killed"] or stood, f"trial {trial}: {told}")
            if not stood:
                told = worker("command", *command)
                tally.check(told["ended"][0] == "well", f"trial {trial}: repeated, {told}")
            paths = [out] if out.suffix else sorted(out.iterdir())
            got = {runs.layer_of(path): found_at(path)[1] for path in paths}
            want = {"h.0": whole["h.0"]} if out.suffix else whole
            tally.check(got == want, f"trial {trial}, killed at {kill}: other bits")
            told = worker("command", *command)
            refused = told["ended"][0] == "refused" and "exists" in told["ended"][2]
            tally.check(refused, f"trial {trial}: merged over what was there: {told}")
            left = parts(root)
            tally.check(not left, f"trial {trial}: {len(left)} parts left by a killed one stay")
            for part in [part for part in left if part.parent == root]:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    note(tally, found)


def whole(path: Path) -> object:
    """Arrays of a file."""
    return content(path)[1]


def ordered(calls: list[list[str]], done: bool) -> str:
    """Say where a cut of the power would have left less than a whole state, or lost one told of."""
    dirty: set[str] = set()  # written, and not yet on the disk
    names: dict[str, str] = {}  # new, and not yet on the disk, with their folders
    gone: dict[str, str] = {}
    for call, path, to, failed in calls:
        if failed != "0":
            continue
        if (call, to) == ("open", "new") or call == "write":
            dirty.add(path)
        elif call == "fsync":
            dirty.discard(path)
            for each in (names, gone):
                for name in [name for name, folder in each.items() if folder == path]:
                    del each[name]
        elif call == "rename":
            inside = [each for each in (*dirty, *names) if f"{each}/".startswith(f"{path}/")]
            if [each for each in inside if each in dirty or each != path]:
                return f"{to}: was put in place before {inside} was on the disk"
            names.pop(path, None)
            names[to] = os.path.dirname(to)
        elif call == "mkdir":
            names[path] = os.path.dirname(path)
        elif call == "unlink":
            dirty.discard(path)
            if path.endswith("/.unfinished") and os.path.dirname(path) in gone.values():
                return f"{path}: may be gone before {[*gone]}"
            gone[path] = os.path.dirname(path)
    return f"told of {[*names]} before the names were on the disk" if done and names else ""


class Task:
    """Something that writes to a disk: how that looks before, and how it should after."""

    def __init__(self, worker: Worker, disk: Path, job: Job, files: list[Path]) -> None:
        self.worker, self.disk, self.job, self.files = worker, disk, job, files
        self.before = disk.parent / "before"
        shutil.rmtree(self.before, ignore_errors=True)
        shutil.copytree(disk, self.before)
        self.old = {path: whole(path) for path in files if path.exists()}
        told = self.do(interpose=[str(disk), 0, 0, 0]) if worker.interposes else self.do()
        assert told["ended"][0] == "well", told
        self.calls = told["calls"]
        self.new = {path: whole(path) for path in files}

    def do(self, **options: Any) -> Any:
        return self.worker(self.job["do"], *self.job["with"], **options)

    def reset(self) -> None:
        for path in self.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.before, self.disk, dirs_exist_ok=True)

    def wrong(self, told: Any, tidy: bool) -> str:
        """Say what is wrong after a try that may have failed."""
        how, name, text = told["ended"]
        if not told["killed"]:
            clear = name in map(str, self.files) or str(self.disk) in name
            line = text.startswith("Error: ") and text.count("\n") == 1
            if not (how == "well" or (how == "failed" and clear) or (how == "refused" and line)):
                return f"ended {told['ended']}"
        for path in self.files:
            now, was = (whole(path) if path.exists() else None), self.old.get(path)
            if how == "well" and now != self.new[path]:
                return f"{path.name}: not the new state, though all went well"
            same_run = path.parent.name == "moments"  # those of a run pass through others
            if now != self.new[path] and now != was and not same_run:
                return f"{path.name}: neither the old state nor the new"
        if tidy and parts(self.disk):
            return f"left {parts(self.disk)}"
        return ordered(told["calls"], how == "well")

    def attempt(self, tally: Tally, where: str, tidy: bool, **options: Any) -> None:
        """Do it where it may fail, look at what is left, and do it again where it cannot."""
        self.reset()
        told = self.do(**options)
        wrong = self.wrong(told, tidy and not told["killed"])
        tally.check(not wrong, f"{where}: {wrong}")
        there = self.job["with"][0] == "merge" and Path(self.job["with"][1]).exists()
        told = {"killed": False, "ended": ["well", "", ""], "calls": []} if there else self.do()
        wrong = self.wrong(told, tidy=True)
        tally.check(not wrong and told["ended"][0] == "well", f"{where}, repeated: {wrong or told}")


def tasks(worker: Worker, root: Path) -> Iterator[tuple[str, Task]]:
    """Everything that writes, each over what it may find."""
    n, disk, shard = 60, root / "disk", [root / f"shard{i}" for i in range(2)]
    disk.mkdir(exist_ok=True)
    path = disk / "x.safetensors"
    worker("rewrite", str(path), 1, n, 1)
    yield "save", Task(worker, disk, {"do": "rewrite", "with": [str(path), 0, n, 1]}, [path])
    worker("layers", str(path), 1, n)
    yield "results", Task(worker, disk, {"do": "layers", "with": [str(path), 0, n]}, [path])
    path.unlink()
    for i, folder in enumerate(shard):
        folder.mkdir()
        for layer in "gh":
            worker("rewrite", str(folder / f"{layer}.safetensors"), i, n, 1)
    out = disk / "all"
    merged = [out / "g.safetensors", out / "h.safetensors"]
    job = {"do": "command", "with": ["merge", str(out), *map(str, shard)]}
    yield "merge", Task(worker, disk, job, merged)
    shutil.rmtree(out)
    job["with"] = ["merge", str(path), *(str(folder / "h.safetensors") for folder in shard)]
    yield "merge of files", Task(worker, disk, job, [path])
    path.unlink()
    samples, out = Samples(worker, root), disk / "run" / "out"
    files = [out / "moments" / "h.0.safetensors", out / "moments" / "h.1.safetensors"]
    job = {"do": "command", "with": samples.command(out)}
    yield "run", Task(worker, disk, job, [*files, out / "result.safetensors"])
    job = {"do": "command", "with": [*samples.command(out), "--fresh"]}
    yield "run --fresh", Task(worker, disk, job, [*files, out / "result.safetensors"])


EVENTS = {
    "no space": (errno.ENOSPC, 0),
    "no space from there on": (errno.ENOSPC, 1),
    "an input/output error": (errno.EIO, 0),
    "an interrupted call": (errno.EINTR, 0),
    "a read-only disk from there on": (errno.EROFS, 1),
    "a short write": (SHORT, 0),
    "killed before": (KILL_BEFORE, 0),
    "killed after": (KILL_AFTER, 0),
}


def disagrees(path: Path, counts: set[int]) -> str:
    """Say where moments are not of the rows that their sources tell of."""
    cov, read = df.Covariance.load(path), sum(source.read for source in runs.read_sources(path))
    sound = cov.count == read and cov.count in counts
    return "" if sound else f"{cov.count} rows of which the sources know {read}"


@drill("disk-sharers", "beside writers, killed or alive, readers and writers see whole states only")
def disk_sharers(tally: Tally, long: bool) -> None:
    rng, found, n, stop = np.random.default_rng(4), Counter[str](), 100, 40
    with workshop() as (worker, root):
        folder = root / "shared"
        folder.mkdir()
        path = folder / "x.safetensors"
        valid = {each for seed in (0, 1) for each in streamed("stream", seed, n, stop).values()}
        worker("rewrite", str(path), 0, n, 1)
        for trial in range(120 if long else 3):  # two writers, one of them killed, and a reader
            jobs = [{"do": "rewrite", "with": [str(path), seed, n, stop]} for seed in (0, 1)]
            kill = instant(rng, trial, 0.02, stop)
            worker.start(jobs[0], {**jobs[1], "kill": kill})
            while not worker.ready:
                state = found_at(path)[1]
                tally.check(state in valid, f"trial {trial}: read what nobody wrote")
                found["states read beside two writers"] += 1
            alive, dead = worker.answer()
            found["writers killed beside another"] += dead["killed"]
            tally.check(alive["ended"][0] == "well", f"trial {trial}: the other one {alive}")
            left = parts(folder)
            tally.check(len(left) <= dead["killed"], f"trial {trial}: {len(left)} parts are left")
        samples = Samples(worker, root)
        for trial in range(60 if long else 2):  # two runs in one folder, and one killed
            shutil.rmtree(root / "out", ignore_errors=True)
            job = {"do": "command", "with": samples.command(root / "out")}
            kill = instant(rng, trial, samples.seconds, samples.saves) if trial % 2 else None
            worker.start({**job, "kill": kill}, job)
            both = worker.answer()
            ends = [each["ended"][0] for each in both]
            texts = "".join(each["ended"][2] for each in both)
            refused = ends.count("refused") and "another run is writing there" in texts
            sound = refused or both[0]["killed"] or "well" in ends
            tally.check(sound and "failed" not in ends and "raised" not in ends, f"{trial}: {both}")
            wrong = samples.sound(root / "out")
            tally.check(not wrong, f"two runs, trial {trial}: {wrong}")
            found["runs refused beside another"] += bool(refused)
            told = worker("command", *samples.command(root / "out"))
            wrong = samples.finished(root / "out") if told["ended"][0] == "well" else str(told)
            tally.check(not wrong, f"two runs, trial {trial}, repeated: {wrong}")
        swaps(tally, worker, root, samples, found)
        grow = ["run", "--output", str(root / "grown"), "--batch-size", str(BATCH)]
        for trial in range(20 if long else 1):  # merges while a run goes on
            shutil.rmtree(root / "grown", ignore_errors=True)
            worker("command", *grow, samples.files[0])
            jobs = [
                {"do": "command", "with": [*grow, *samples.files[:2]]},
                {"do": "merges", "with": [str(root / "m"), 0.5, str(root / "grown")]},
            ]
            worker.start(*jobs)
            worker.answer()
            for merged in (root / "m").glob("*/*.safetensors"):
                wrong = disagrees(merged, {1100, 2500})
                tally.check(not wrong, f"merged beside a run, trial {trial}: {wrong}")
                found["merges beside a run"] += 1
            shutil.rmtree(root / "m", ignore_errors=True)
    note(tally, found)


def swaps(tally: Tally, worker: Worker, root: Path, samples: Samples, found: Counter[str]) -> None:
    """Put a state of more rows, whose run is not at its end, in the place of one that is read."""
    moments = [root / f"swap{i}" / "moments" / "h.0.safetensors" for i in range(2)]
    run = ["run", "--batch-size", str(BATCH), "--output"]
    worker("command", *run, str(moments[0].parents[1]), samples.files[0])
    worker("command", *run, str(moments[1].parents[1]), samples.files[0])
    kill = {"kill": [5, 0.0]}
    worker("command", *run, str(moments[1].parents[1]), *samples.files[:2], **kill)
    both = [path.read_bytes() for path in moments]
    (moments[0].parent / ".unfinished").unlink(missing_ok=True)
    out, by = root / "swapped.safetensors", root / "by"
    for command in (["merge", str(out), str(moments[0])], ["run", str(moments[0])]):
        if command[0] == "run":
            command += ["--output", str(root / "swapped")]
        for k in range(1, 7):
            moments[0].write_bytes(both[0])
            by.write_bytes(both[1])
            told = worker("swapped", k, str(moments[0]), str(by), *command)
            where = f"{command[0]}, another state at reading {k}"
            how, _, text = told["ended"]
            tally.check(how in ("well", "refused"), f"{where}: {told}")
            if how == "refused":
                tally.check("finish its run first" in text, f"{where}: {text}")
            elif command[0] == "merge":
                wrong = disagrees(out, {1100})
                tally.check(not wrong, f"{where}: {wrong}")
                out.unlink()
            else:
                with safetensors.safe_open(root / "swapped" / "result.safetensors", "np") as file:
                    count = json.loads(file.metadata()["layers"])["h.0"]["samples"]
                tally.check(count == 1100, f"{where}: {count} rows of an unfinished run")
            found["states replaced between two readings"] += 1


@drill("disk-fails", "an error or a kill at any single system call leaves the old state or the new")
def disk_fails(tally: Tally, long: bool) -> None:
    rng, found = np.random.default_rng(3), Counter[str]()
    with workshop() as (worker, root):
        if not worker.interposes:
            tally.figures["skipped"] = "calls that fail, without a C compiler"
        for name, task in tasks(worker, root):
            wrong = ordered(task.calls, done=True)
            tally.check(not wrong, f"{name}, left alone: {wrong}")
            points = [(k, event) for k in range(1, len(task.calls) + 1) for event in EVENTS]
            found["system calls"] += len(task.calls)
            most = 500 if long else 16 if name == "save" else 2
            for i in sorted(rng.permutation(len(points))[:most]):
                k, event = points[i]
                what, every = EVENTS[event]
                call, path = task.calls[k - 1][:2]
                tidy = not every and call not in ("unlink", "rmdir")
                where = f"{name}, call {k}, {call} of {Path(path).name}: {event}"
                task.attempt(tally, where, tidy, interpose=[str(task.disk), k, what, every])
                found["calls failed or killed at"] += 1
            size = max(path.stat().st_size for path in task.files)
            for limit in map(int, rng.integers(1, size, size=40 if long else 1)):
                task.attempt(tally, f"{name}, files of at most {limit} bytes", True, limit=limit)
                found["files limited in size"] += 1
            if long and name != "run --fresh":
                full_disks(tally, name, task, rng, found)
    note(tally, found)


def full_disks(
    tally: Tally, name: str, task: Task, rng: np.random.Generator, found: Counter[str]
) -> None:
    """Fill a real file system at any point; forbid writing to it, and to a folder."""
    if os.geteuid():
        tally.figures["skipped"] = "file systems of their own, which need root"
        return
    mount = functools.partial(subprocess.run, capture_output=True, check=True)
    pages = 2 + sum(path.stat().st_size for path in task.disk.rglob("*")) * 2 // 4096
    mount(["mount", "-t", "tmpfs", "-o", f"size={4 * (pages + 40)}k", "none", task.disk])
    try:
        for trial in range(25):
            task.reset()
            fill = task.disk.parent / "disk" / "filler"
            free = os.statvfs(task.disk).f_bavail
            fill.write_bytes(bytes(4096 * max(0, free - int(rng.integers(0, pages)))))
            told = task.do()
            wrong = task.wrong(told, tidy=not told["killed"])
            tally.check(not wrong, f"{name}, full disk {trial}: {wrong}")
            found["full disks"] += told["ended"][0] != "well"
            fill.unlink()
            if not (task.job["with"][0] == "merge" and told["ended"][0] == "well"):
                told = task.do()
                wrong = task.wrong(told, tidy=True)
                well = told["ended"][0] == "well"
                tally.check(well and not wrong, f"{name}, full disk {trial}, repeated: {wrong}")
        for forbid, allow in (("remount,ro", "remount,rw"), ("0555", "0777")):
            task.reset()
            change = ["mount", "-o"] if "," in forbid else ["chmod", "-R"]
            mount([*change, forbid, task.disk])
            told = task.do(**({} if "," in forbid else {"uid": NOBODY}))
            mount([*change, allow, task.disk])
            wrong = task.wrong(told, tidy=True)
            tally.check(told["ended"][0] != "well" and not wrong, f"{name}, {forbid}: {wrong}")
            found["disks and folders read-only"] += 1
    finally:
        mount(["umount", task.disk])
