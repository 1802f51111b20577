"""The machine that the figures belong to: hardware, software, BLAS libraries, limits."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from descramble_fast import _core

from .report import OURS, Table


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


def describe(packages: Sequence[str]) -> dict[str, Any]:
    """Describe the hardware and the software that the numbers belong to.

    A BLAS is listed once it is loaded, so peers come first.
    """
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": len(usable(0)) if usable else os.cpu_count(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": _core.num_threads(),
        "packages": {name: version(name) for name in packages if version(name)},
        "blas": Threads().libraries,
    }


def package_list(facts: dict[str, Any]) -> str:
    """Names and versions of the packages."""
    return ", ".join(f"{name} {found}" for name, found in facts["packages"].items())


def print_machine(facts: dict[str, Any]) -> None:
    """Print the machine data in a few lines."""
    print(f"{facts['cpu']}, {facts['usable_cores']} of {facts['cores']} cores usable")
    print(f"{facts['system']}, Python {facts['python']}, {package_list(facts)}")
    print(f"  {OURS}: {facts['threads']} threads")
    for blas in facts["blas"]:
        print(
            f"  {blas['of']}: {blas['internal_api']} {blas['version']}, "
            f"core {blas['architecture']}, {blas['num_threads']} threads"
        )
    if not facts["blas"]:
        print("  (install threadpoolctl to list the BLAS libraries and set their threads)")


def machine_line(facts: dict[str, Any]) -> str:
    """One line for a document."""
    cores = f"{facts['usable_cores']} cores"
    return f"{facts['cpu']}, {cores}, Python {facts['python']}, {package_list(facts)}."


def blas_line(facts: dict[str, Any]) -> str:
    """Which core each BLAS chose, for a document."""
    found = (
        f"{b['of']} {b['internal_api']} {b['version']}, {b['architecture']}" for b in facts["blas"]
    )
    return f"{facts['threads']} threads. BLAS cores: {'; '.join(found)}."


# --------------------------------------------------------------------------- BLAS threads


class Threads:
    """Sets the BLAS threads of a peer while it runs, where threadpoolctl is installed."""

    def __init__(self) -> None:
        self._controller: Any = None
        with contextlib.suppress(ImportError):
            from threadpoolctl import ThreadpoolController

            self._controller = ThreadpoolController()

    @property
    def settable(self) -> bool:
        """Whether threads can be set."""
        return self._controller is not None

    @property
    def libraries(self) -> list[dict[str, Any]]:
        """Name, version, detected core and threads of each BLAS that is loaded."""
        keep = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
        if self._controller is None:
            return []
        return [
            {"file": Path(info["filepath"]).name, "of": owner(info["filepath"])}
            | {key: info.get(key) for key in keep}
            for info in self._controller.info()
            if info["user_api"] == "blas"
        ]

    @contextlib.contextmanager
    def limited(self, count: int | None) -> Iterator[None]:
        """Run the block with `count` BLAS threads; None leaves the default."""
        if count is None or self._controller is None:
            yield
            return
        torch = sys.modules.get("torch")  # its BLAS is built in, out of the controller's sight
        threads = torch.get_num_threads() if torch else None
        try:
            if torch:
                torch.set_num_threads(count)
            with self._controller.limit(limits=count, user_api="blas"):
                yield
        finally:
            if torch:
                torch.set_num_threads(threads)


def owner(library: str) -> str:
    """Name of the package that brought a shared library along, as its path tells."""
    package = Path(library).parent
    if package.name == "lib":
        package = package.parent
    return package.name.removesuffix(".libs")


# --------------------------------------------------------------------------------- limits


# Threads of a BLAS go on spinning for a while after a call, on the cores that the next one needs.
CALM = 0.1  # seconds


class Limits:
    """What this machine can do at most, measured again and again during the run."""

    NAMES: Mapping[str, str] = {
        "fma_float32": "float32 multiply-add",
        "fma_float64": "float64 multiply-add",
        "dot_bfloat16": "bfloat16 dot product",
        "bandwidth": "reading memory",
    }

    SECONDS = 0.03  # for each limit, of which the library reports the best moment
    PAUSE = 1.0  # seconds between measurements

    def __init__(self) -> None:
        self.seen: dict[str, list[float]] = {name: [] for name in self.NAMES}
        self._last = -math.inf

    def measure(self) -> None:
        """Measure every limit once, on as many threads as this library uses."""
        time.sleep(CALM)
        found = _core.machine_limits(_core.num_threads(), self.SECONDS)
        for name, values in self.seen.items():
            rate = found[name]
            if rate is not None:
                values.append(rate)
        self._last = time.perf_counter()

    def keep_up(self) -> None:
        """Measure again if the last time is a while ago."""
        if time.perf_counter() > self._last + self.PAUSE:
            self.measure()

    def best(self, names: Sequence[str]) -> tuple[str, float] | None:
        """First of these limits that exists, with its largest value so far in this run."""
        return next(((name, max(self.seen[name])) for name in names if self.seen[name]), None)

    def summary(self) -> dict[str, Any]:
        """Lowest, median and highest value of each limit, for the report."""
        return {
            name: {
                "lowest": min(values),
                "median": statistics.median(values),
                "highest": max(values),
                "measurements": len(values),
            }
            for name, values in self.seen.items()
            if values
        }


def limit_table(limits: Mapping[str, Mapping[str, float]]) -> Table:
    """Limits of the machine, as they were measured during the run."""
    lines = []
    for name, seen in limits.items():
        unit = "GB/s" if name == "bandwidth" else "Gflop/s"
        values = [f"{seen[key] / 1e9:.1f}" for key in ("lowest", "median", "highest")]
        lines.append([Limits.NAMES[name], unit, *values, f"{seen['measurements']:.0f}"])
    return Table(["limit", "unit", "lowest", "median", "highest", "measurements"], lines)
