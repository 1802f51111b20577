"""What every drill shares: how it is named, counted, run and written down.

A drill is a function that tries to break one promise of the library many times and tells a
:class:`Tally` of every trial. ``python tests/drills`` runs them.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


class Tally:
    """Trials and failures of one run, and what else it measured."""

    def __init__(self) -> None:
        self.trials = 0
        self.failures: list[str] = []
        self.figures: dict[str, str] = {}

    def check(self, holds: bool, trial: Callable[[], str] | str) -> None:
        """Count one trial; where it does not hold, `trial` says which it was and what came."""
        self.trials += 1
        if not holds:
            self.failures.append(trial if isinstance(trial, str) else trial())

    def worst(self, name: str, value: float) -> None:
        """Keep the largest value of a measure, as a figure."""
        kept = self.figures.get(name)
        if kept is None or value > float(kept):
            self.figures[name] = f"{value:.3g}"


@dataclass(frozen=True)
class Drill:
    """A drill of this folder."""

    name: str
    group: str
    promise: str
    run: Callable[[Tally, bool], None]
    device: bool = False  # whether it takes a CUDA device

    def __call__(self, long: bool) -> Tally:
        """Run it: some seconds, or as long as the trials of the table take."""
        tally = Tally()
        self.run(tally, long)
        return tally


DRILLS: dict[str, Drill] = {}
_Function = Callable[[Tally, bool], None]


def drill(name: str, promise: str, device: bool = False) -> Callable[[_Function], _Function]:
    """Register ``function(tally, long)``, with its name in the table and what it tries to break."""

    def register(function: _Function) -> _Function:
        if name in DRILLS:
            raise ValueError(f"name: {name!r} is taken")
        DRILLS[name] = Drill(name, function.__module__, promise, function, device)
        return function

    return register


def machine(device: bool) -> str:
    """Describe where the figures come from: device, processor, cores and versions."""
    import numpy as np

    import descramble_fast as df

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = f"{df.show_config('dict')['cuda'].partition(';')[0]}, " if device else ""
    return (
        f"{cuda}{model}, {cores} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}, descramble_fast {df.__version__}"
    )


@dataclass
class Record:
    """The last run of a drill, and the run with most failures that was ever kept."""

    trials: int
    failed: int
    failures: list[str]
    figures: dict[str, str]
    seconds: float
    date: str
    machine: str
    long: bool = False
    before: dict[str, int] | None = None

    @classmethod
    def read(cls, name: str, folder: Path = RESULTS) -> Record | None:
        path = folder / f"{name}.json"
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def save(self, name: str, folder: Path = RESULTS) -> None:
        """Write it down, also where it failed, and keep the worst of what stood there."""
        if old := self.read(name, folder):
            earlier = [old.before] if old.before else []
            if old.failed:
                earlier.append({"trials": old.trials, "failed": old.failed})
            self.before = max(earlier, key=lambda each: each["failed"], default=None)
        folder.mkdir(exist_ok=True)
        content = json.dumps(vars(self), indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(content + "\n", encoding="utf-8")


def run(name: str, long: bool) -> Record:
    """Run a drill by its name."""
    begin = time.perf_counter()
    tally = DRILLS[name](long)
    return Record(
        trials=tally.trials,
        failed=len(tally.failures),
        failures=tally.failures[:20],
        figures=tally.figures,
        seconds=round(time.perf_counter() - begin, 1),
        date=datetime.date.today().isoformat(),
        machine=machine(DRILLS[name].device),
        long=long,
    )
