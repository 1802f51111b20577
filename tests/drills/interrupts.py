"""Ctrl-C in the middle of every long solve and command."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from drill import HERE, Tally, drill
from solves import SOLVES

import descramble_fast as df

PATIENCE = 180.0  # seconds for all trials of one solve


def lateness(work: float = 0.02) -> float:
    """How much later a thread of pure Python is done that needs `work` seconds of a processor."""
    begin, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < work:
        pass
    return time.monotonic() - begin - work


def interrupted(tally: Tally, name: str, trials: int, at_once: bool = True) -> None:
    """Ctrl-C at random instants of one solve, which must hear it `at_once` or may end first."""
    rng = np.random.default_rng([*name.encode()])
    command = [sys.executable, str(HERE / "solves.py"), name, str(trials)]
    waits, excess = [], []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        try:
            seconds = float(process.stdout.readline().split()[1])
            for _ in range(trials):
                process.stdout.readline()
                time.sleep(float(rng.uniform(0.05, 0.9)) * seconds)
                sent = time.monotonic()
                process.send_signal(signal.SIGINT)
                late = lateness()
                _, caught, finished = process.stdout.readline().split()
                if finished == "0":  # else it was over before
                    waits.append(float(caught) - sent)
                    excess.append(waits[-1] - late)
            end = process.stdout.readline().strip()
        except (IndexError, ValueError):
            end = f"died or hangs: {process.stderr.read()[-400:]}"
        alarm.cancel()
        process.kill()
    tally.check(end == "same", f"{name}: {end}")
    tally.trials += len(waits)
    if waits:
        median, worst = statistics.median(waits), max(waits)
        tally.figures[name] = (
            f"{1e3 * median:.0f}, at worst {1e3 * worst:.0f} ms of {seconds:.2g} s"
        )
        # On a busy machine a thread waits for its turn: what pure Python waits is not the solve's.
        beyond = statistics.median(excess)
        heard = beyond <= 0.2 or not at_once
        tally.check(heard, f"{name}: {1e3 * beyond:.0f} ms from Ctrl-C to its exception")


def commands(tally: Tally, trials: int, folder: Path) -> None:
    """Ctrl-C to the whole group of a command's processes, as a terminal sends it."""
    rng = np.random.default_rng(7)
    for n in range(6):
        np.save(folder / f"layer{n}.npy", rng.normal(size=(20000, 512)))
    shards = [folder / f"shard{n}.safetensors" for n in range(2)]
    for shard in shards:
        df.Covariance.from_samples(rng.normal(size=(10, 3000))).save(shard)
    lines: dict[str, list[str]] = {
        "run": ["run", *(str(folder / f"layer{n}.npy") for n in range(6)), "--order"],
        "merge": ["merge", str(folder / "all.safetensors"), *map(str, shards)],
        "demo": ["demo"],
        "bench": ["bench", "--quick", "--only", "eigh"],
    }
    for name, line in lines.items():
        output = [] if name in ("merge", "bench") else ["--output", str(folder / name)]
        waits, excess = [], []
        for trial in range(trials):
            (folder / "all.safetensors").unlink(missing_ok=True)
            command = [sys.executable, "-m", "descramble_fast", *line, *output]
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            ) as process:
                time.sleep(float(rng.uniform(0.5, 3.0)))
                sent = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)
                late = lateness()
                try:
                    error = process.communicate(timeout=30)[1]
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    error = b"hangs"
                waits.append(time.monotonic() - sent)
                excess.append(waits[-1] - late)
            code, text = process.returncode, error.decode()[-200:]
            ended = code in (0, 1, 130, -signal.SIGINT) and text != "hangs"
            tally.check(ended, lambda t=trial, n=name, c=code, e=text: f"{n} {t}: code {c}, {e}")
        median, worst = statistics.median(waits), max(waits)
        tally.figures[f"command {name}"] = (
            f"{1e3 * median:.0f}, at worst {1e3 * worst:.0f} ms to exit"
        )


@drill(
    "ctrl-c",
    "Ctrl-C ends long solves within 200 ms; state is whole, the next answer right",
)
def ctrl_c(tally: Tally, long: bool) -> None:
    if os.name != "posix":
        return
    for name in SOLVES if long else ("eigh-small-batch",):
        if name.startswith("device") or (name.startswith("torch") and not find_spec("torch")):
            continue
        interrupted(tally, name, 5 if long else 2)
    if long:
        with tempfile.TemporaryDirectory() as folder:
            commands(tally, 3, Path(folder))


@drill(
    "device-ctrl-c",
    "Ctrl-C ends solves on a CUDA device within 200 ms, but for one large eigenproblem (see below)",
    device=True,
)
def device_ctrl_c(tally: Tally, long: bool) -> None:
    for name in SOLVES if long else ():  # they are as long only where there is a device
        if name.startswith("device"):
            interrupted(tally, name, 5, at_once=name not in ("device-eigh", "device-descramble"))
