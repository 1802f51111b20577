"""Does what it is told in children that are killed, starved or failed by the disk; see state.py.

A line of JSON comes in for every set of children that live at once, and one goes out when all have
ended. Run as ``python crash.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

import descramble_fast as df
from descramble_fast import _covariance, _files, _layers, run
from descramble_fast.cli import descramble_fast

SEGMENT, BATCH = 1 << 15, 64


def batch(seed: int, j: int, n: int) -> np.ndarray[Any, Any]:
    """Rows of whole numbers, whose sums are exact; how many differs from batch to batch."""
    rng = np.random.default_rng([seed, j])
    return rng.integers(-9, 10, size=(1 + int(rng.integers(40)), n)).astype(np.float32)


def merge(cov: df.Covariance, rows: np.ndarray[Any, Any]) -> df.Covariance:
    return cov.merge(df.Covariance.from_samples(rows))


def stream(path: str, seed: int, n: int, stop: int, add: Any = df.Covariance.update) -> None:
    """Add batches and save, from where the file is."""
    cov = df.Covariance.load(path) if os.path.exists(path) else df.Covariance(n)
    count = 0
    for j in range(stop):
        rows = batch(seed, j, n)
        count += len(rows)
        if count > cov.count:
            add(cov, rows).save(path)


gather = partial(stream, add=merge)


def rewrite(path: str, seed: int, n: int, stop: int) -> None:
    """Save a stream from its beginning over whatever is there."""
    cov = df.Covariance(n)
    for j in range(stop):
        cov.update(batch(seed, j, n)).save(path)


def layers(path: str, seed: int, n: int) -> None:
    """Write results."""
    cov = df.Covariance.from_samples(batch(seed, 0, n))
    layer = _layers.Layer(name="h", kind="samples", neurons=n, covariance=cov)
    configuration = {"seed": seed}
    _layers.Layers(layers=_layers.solve([layer]), control=(), configuration=configuration).save(
        path
    )


def observed(folder: str, seed: int, n: int, how_many: int) -> None:
    """Save what was observed of a torch model of `how_many` layers."""
    import torch

    model = torch.nn.Sequential(*(torch.nn.Linear(n, n) for _ in range(how_many)))
    with df.torch.observe(model, "*") as moments:
        model(torch.from_numpy(batch(seed, 0, n)))
    moments.save(folder)


def command(*arguments: str) -> None:
    descramble_fast(list(arguments), standalone_mode=True)


def merges(out: str, seconds: float, *folders: str) -> None:
    """Merge again and again, however often it is refused; what came stays."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(_files.FileError, FileNotFoundError):
            run.merge(Path(out) / str(time.monotonic_ns()), [Path(folder) for folder in folders])


def swapped(k: int, path: str, by: str, *arguments: str) -> None:
    """The command, with a file replaced by another just before a reader opens it the k-th time."""
    opened, real = [0], safetensors.safe_open

    def opening(name: Any, *rest: Any, **words: Any) -> Any:
        opened[0] += str(name) == path
        if opened[0] == k and os.path.exists(by):
            os.replace(by, path)
        return real(name, *rest, **words)

    safetensors.safe_open = opening
    command(*arguments)


def announced(
    tell: Callable[[str], None], real: Callable[..., None], path: Any, data: bytes
) -> None:
    tell(f"begin {path}")
    real(path, data)
    tell(f"done {path}")


def child(job: dict[str, Any], pipe: int, log: int) -> None:
    """Do it, tell of every save, and at last how it ended."""
    tell = lambda text: os.write(pipe, f"{text}\n".encode())  # noqa: E731
    if job.get("uid"):
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    for module in (_covariance, _layers, run):
        module.replace_file = partial(announced, tell, _files.replace_file)
    run._SECONDS = run._SHARE = 0
    run._SEGMENT_BYTES = SEGMENT
    if "interpose" in job:
        root, k, what, every = job["interpose"]
        ctypes.CDLL(None).interpose(root.encode(), ctypes.c_long(k), what, every, log)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            globals()[job["do"]](*job["with"])
        ended = ["well", "", ""]
    except SystemExit as error:
        ended = ["well" if not error.code else "refused", "", said.getvalue()[-500:]]
    except OSError as error:
        ended = ["failed", str(error.filename), str(error)]
    except BaseException as error:
        ended = ["raised", type(error).__name__, str(error)]
    if "interpose" in job:
        ctypes.CDLL(None).interpose(b"", ctypes.c_long(0), 0, 0, -1)
    tell(f"ended {json.dumps(ended)}")
    os._exit(0)


class Child:
    """A child, what it told, and when it is to be killed."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.kill = job.get("kill")  # after so many saves began, and so many seconds
        self.log = os.memfd_create("log")
        self.pipe, write = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.pipe)
            child(job, write, self.log)
        os.close(write)
        self.told, self.deadline = b"", None
        self.seek()

    def seek(self) -> None:
        if self.kill and self.deadline is None and self.told.count(b"begin ") >= self.kill[0]:
            self.deadline = time.monotonic() + self.kill[1]

    def end(self) -> dict[str, Any]:
        os.close(self.pipe)
        status = os.waitpid(self.pid, 0)[1]
        lines = self.told.decode().splitlines()
        with open(self.log, "rb") as log:
            log.seek(0)
            calls = [line.split("\t") for line in log.read().decode().splitlines()]
        ended = [json.loads(line[6:]) for line in lines if line.startswith("ended ")]
        return {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "ended": ended[0] if ended else ["signal", str(status), ""],
            "saving": bool(lines) and lines[-1].startswith("begin "),
            "begun": sum(line.startswith("begin ") for line in lines),
            "calls": calls,
        }


def together(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    children = [Child(job) for job in jobs]
    alive = {each.pipe: each for each in children}
    found: dict[int, dict[str, Any]] = {}
    while alive:
        waits = [c.deadline - time.monotonic() for c in alive.values() if c.deadline is not None]
        readable = select.select(list(alive), [], [], max(0.0, min(waits)) if waits else None)[0]
        for each in list(alive.values()):
            if each.deadline is not None and each.deadline <= time.monotonic():
                os.kill(each.pid, signal.SIGKILL)
                each.deadline = each.kill = None
            if each.pipe in readable:
                more = os.read(each.pipe, 1 << 16)
                each.told += more
                each.seek()
                if not more:
                    found[each.pid] = each.end()
                    del alive[each.pipe]
    return [found[each.pid] for each in children]


def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if "torch" in sys.argv:  # whose imports take longer than all else
        with tempfile.TemporaryDirectory() as name:
            observed(name, 0, 4, 1)
    for line in sys.stdin:
        print(json.dumps(together(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]
    main()
