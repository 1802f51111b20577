"""What the benchmark programs share: environment, timing, machine data, tables.

Import it before numpy. A build recipe or a test may pin OpenBLAS to one core type or cache
size, so that results repeat from machine to machine; here that would slow the peers and this
library alike. OpenBLAS reads these variables when it is loaded.
"""

# ruff: noqa: E402 (the environment is set before numpy is imported)
from __future__ import annotations

import os

for _variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_variable, None)

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.resources
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load


def require(condition: bool, message: str) -> None:
    """Stop the benchmark when its premises fail; unlike assert, also under ``python -O``."""
    if not condition:
        raise SystemExit(f"{Path(sys.argv[0]).stem}: {message}")


# ---------------------------------------------------------------------- the embedded layer


def embedded(name: str) -> dict[str, NDArray[Any]]:
    """Read one embedded safetensors file."""
    file = importlib.resources.files("descramble_fast") / "data" / name
    return dict(load(file.read_bytes()))


def layer_samples() -> NDArray[np.float32]:
    """Preactivations of layer 1, one trace per row."""
    weight = embedded("deernet_network.safetensors")["W1"]
    traces = embedded("deernet_traces.safetensors")["traces"].astype(np.float32)
    return np.ascontiguousarray(traces @ weight.T, dtype=np.float32)


# --------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class Method:
    """One solver as it is timed.

    Attributes
    ----------
    name : str
        Its row in the table.
    given : str
        What it starts from: "samples", or "moment" where that is handed to it for free.
    run : callable
        Solves and returns the solver's result.
    trial : callable or None
        A short run to choose the number of BLAS threads; None where the library decides.
    exact : bool
        Whether the optimum is expected up to rounding.
    slow : bool
        Whether it is run once, outside the interleaved rounds.
    """

    name: str
    given: str
    run: Callable[[], Any]
    trial: Callable[[], Any] | None = None
    exact: bool = False
    slow: bool = False


@dataclass
class Measurement:
    """Everything recorded about one method."""

    method: Method
    threads: int | None = None
    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def median(self) -> float:
        """Median wall time."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the wall time."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(low), float(high)

    @property
    def iterations(self) -> int:
        """Outer iterations, 0 for direct methods."""
        return int(getattr(self.result, "iterations", 0))


class Threads:
    """Sets the BLAS threads of a peer while it runs, where threadpoolctl is installed."""

    def __init__(self) -> None:
        self._controller: Any = None
        with contextlib.suppress(ImportError):
            from threadpoolctl import ThreadpoolController

            self._controller = ThreadpoolController()

    @property
    def libraries(self) -> list[dict[str, Any]]:
        """Name, version, detected core and threads of each BLAS that is loaded."""
        keep = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
        if self._controller is None:
            return []
        return [
            {"file": Path(info["filepath"]).name} | {key: info.get(key) for key in keep}
            for info in self._controller.info()
            if info["user_api"] == "blas"
        ]

    @contextlib.contextmanager
    def limited(self, count: int | None) -> Iterator[None]:
        """Run the block with `count` BLAS threads; None leaves the default."""
        if count is None or self._controller is None:
            yield
            return
        with self._controller.limit(limits=count, user_api="blas"):
            yield

    def choose(self, method: Method, repeats: int) -> int | None:
        """Return 1 where a single BLAS thread is faster for this method, else None."""
        trial = method.trial
        if trial is None or self._controller is None:
            return None
        times: dict[int | None, list[float]] = {None: [], 1: []}
        for _ in range(repeats):
            for count, seconds in times.items():
                with self.limited(count):
                    trial()
                    seconds.append(timed(trial)[0])
        return 1 if statistics.median(times[1]) < statistics.median(times[None]) else None


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Run once. A peer may state its own time, which leaves out what only serves the report."""
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    return getattr(result, "seconds", elapsed), result


def capped(run: Callable[[], Any], seconds: float) -> tuple[float, Any] | None:
    """Time one run in a forked process, or None when it takes longer than `seconds`."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(timed(run)))
    process.start()
    # The margin covers starting the process and sending the answer back.
    result = receive.recv() if receive.poll(seconds + 1) else None
    if result is None:
        process.kill()
    process.join()
    return result if result is None or result[0] <= seconds else None


def measure(methods: Sequence[Method], rounds: int, warm_up: bool = True) -> list[Measurement]:
    """Time fast methods in interleaved rounds, each after a warm-up call, slow ones once."""
    threads = Threads()
    measured = [Measurement(m, threads.choose(m, 3 if m.slow else 15)) for m in methods]
    for turn in range(rounds):
        for entry in measured:
            if entry.method.slow and turn:
                continue
            with threads.limited(entry.threads):
                if warm_up and not entry.method.slow:
                    entry.method.run()
                seconds, entry.result = timed(entry.method.run)
            entry.seconds.append(seconds)
    return measured


def ratio(entry: Measurement, ours: Measurement) -> float:
    """Time relative to ours: the median over paired rounds, or of medians for a slow peer."""
    if entry.method.slow:
        return entry.median / ours.median
    pairs = zip(entry.seconds, ours.seconds, strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


# --------------------------------------------------------------------------- machine data


def version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def optional(module: str) -> Any:
    """Import a competitor, or return None where it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(module)
    return None


def cpu_name() -> str:
    """Processor name as the system states it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the hardware and the software that the numbers belong to."""
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable(0)) if usable else os.cpu_count(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "blas": Threads().libraries,
    }


def package_list(facts: dict[str, Any]) -> str:
    """Names and versions of the packages."""
    return ", ".join(f"{name} {found}" for name, found in facts["packages"].items())


def print_machine(facts: dict[str, Any]) -> None:
    """Print the machine data in a few lines."""
    print(f"{facts['cpu']}, {facts['usable_cores']} of {facts['cores']} cores usable")
    print(f"{facts['system']}, Python {facts['python']}, {package_list(facts)}")
    for blas in facts["blas"]:
        print(
            f"  {blas['file']}: {blas['internal_api']} {blas['version']}, "
            f"core {blas['architecture']}, {blas['num_threads']} threads"
        )
    if not facts["blas"]:
        print("  (install threadpoolctl to list the BLAS libraries and set their threads)")


def machine_line(facts: dict[str, Any]) -> str:
    """One line for a document."""
    cores = f"{facts['usable_cores']} cores"
    return f"{facts['cpu']}, {cores}, Python {facts['python']}, {package_list(facts)}."


# --------------------------------------------------------------------------------- report


def duration(seconds: float) -> str:
    """Write a time with a unit and three figures."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def times(value: float) -> str:
    """Write a ratio so that it is read without an exponent."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.2f}x"


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Aligned plain-text table whose first `left` columns are words."""
    lines = [headings, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]

    def write(line: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([write(headings), rule, *(write(row) for row in rows)])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Markdown table whose first `left` columns are words."""
    rule = "|" + "---|" * left + "---:|" * (len(headings) - left)
    lines = ["| " + " | ".join(headings) + " |", rule]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def verdict(met: bool | None) -> str:
    """Say whether a target was met, in one word."""
    return {True: "pass", False: "SHORT", None: "-"}[met]


def header(benchmark: str, facts: dict[str, Any]) -> dict[str, Any]:
    """First entries of a JSON report."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"benchmark": benchmark, "date": date, "machine": facts}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Command line with the options that every benchmark has."""
    result = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    result.add_argument("--quick", action="store_true", help="few repeats, no long runs")
    result.add_argument("--markdown", action="store_true", help="print Markdown tables")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    return result


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report, if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
