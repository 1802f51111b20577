"""The CUDA backend on a device: built, checked, then timed beside its peers, in one command.

    python bench/gpu.py [--build] [--out FILE] [--budget S] [--only NAMES] [--quick]

Correctness against the CPU and float64 comes first. Every case runs in a worker process, which is
replaced if it crashes or hangs; a case that finds no time left in the budget, or lacks something,
is recorded as not run, with the reason. The JSON report is written anew after every case:
"machine", "limits", "cases", "rows" (one timed result each, as in the benchmark suite, with its
"route"), "targets".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IN_REPOSITORY = (ROOT / "pyproject.toml").exists()
RESULTS = HERE / "results" / "gpu.json" if IN_REPOSITORY else Path("gpu.json")
OURS = "descramble_fast"
BUDGET = 1800.0  # seconds
START = 180.0  # seconds that a worker may take to load its libraries
Report = dict[str, Any]

PACKAGES = (
    "descramble_fast",
    "numpy",
    "torch",
    "cupy",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "torch-linear-assignment",
    "nvidia-cublas",
    "nvidia-cusolver",
    "nvidia-cuda-runtime",
    "ml_dtypes",
)


# ---------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One check or one problem to time.

    Attributes
    ----------
    name : str
        "<stage>/<what>/...", by which it is chosen.
    function : str
        What the worker calls, "module.function".
    arguments : dict
        Its arguments.
    seconds : float
        Expected; the case is stopped after several times as long.
    memory : int
        Bytes that the device must have.
    """

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    seconds: float = 5.0
    memory: int = 0

    @property
    def patience(self) -> float:
        """Seconds after which it is taken to hang."""
        return 60 + 6 * self.seconds

    @property
    def job(self) -> dict[str, Any]:
        """What the worker is told."""
        module, _, function = self.function.rpartition(".")
        return {
            "name": self.name,
            "module": f".{module}",
            "function": function,
            "arguments": self.arguments,
        }


NARROW = ("bfloat16", "float16", "float32")
DTYPES = (*NARROW, "float64")
WORKING = ("float32", "float64")
BATCHED = (8, 16, 24, 31, 32, 33, 48, 64, 96, 128, 256, 512)
SINGLE = (1024, 2048, 4096, 8192, 16384)
ELEMENTS = 1 << 24  # of a batch of eigenproblems
ASSIGNMENTS = ((10_000, 64), (1000, 256), (64, 1024))
WIDE_LAYER = 28_672


def batch_of(n: int, elements: int = ELEMENTS) -> int:
    """Matrices of a batch of so many elements in all."""
    return max(1, min(10_000, elements // (n * n)))


def correctness(quick: bool) -> list[Case]:
    """All checks."""

    def check(name: str, function: str, seconds: float = 2.0, **arguments: Any) -> Case:
        return Case(f"correctness/{name}", f"gpu_checks.{function}", arguments, seconds)

    shapes = [(70, 5), (130, 17)] if quick else [(300, 7), (1000, 130), (5000, 513), (8192, 1024)]
    rows, n = (200, 9) if quick else (3001, 65)
    sizes = [1, 2, 3, 8, 32, 33] if quick else list(range(1, 131))
    special = [5, 33] if quick else [2, 5, 32, 33, 100, 300]
    costs = (
        [(3, 8, 8), (2, 5, 9), (2, 9, 5)]
        if quick
        else [(40, 16, 16), (10, 64, 64), (6, 33, 50), (6, 50, 33), (3, 128, 128), (1, 300, 300)]
    )
    many = [] if quick else [(2000, 64, 64), (200, 256, 256)]
    layers = [5, 8, 33] if quick else [5, 8, 33, 64, 257, 512]
    return [
        *(check(f"moments/{t}", "moments", 4, dtype=t, shapes=shapes) for t in DTYPES),
        *(check(f"selection/{t}", "selection", dtype=t, rows=rows, n=n) for t in DTYPES),
        *(check(f"refused/{t}", "refused_updates", dtype=t, rows=rows, n=n) for t in DTYPES),
        *(check(f"cross/{t}", "cross", dtype=t, rows=rows, n=n) for t in WORKING),
        check("offload", "offload", rows=rows, n=n),
        *(
            check(f"eigh/batches/{t}", "eigh_batches", 6, dtype=t, sizes=sizes, count=2 + n // 12)
            for t in WORKING
        ),
        *(
            check(f"eigh/batches/{t}", "eigh_batches", dtype=t, sizes=special[:4], count=3)
            for t in ("bfloat16", "float16")
        ),
        *(
            check(
                f"eigh/single/{t}",
                "eigh_singles",
                5,
                dtype=t,
                sizes=[40] if quick else [256, 512, 1000, 1024],
            )
            for t in WORKING
        ),
        *(check(f"eigh/special/{t}", "eigh_special", 6, dtype=t, sizes=special) for t in WORKING),
        check("assignment/default", "assignments", 6, shapes=costs + many, forced=False),
        check("assignment/device", "assignments", 6, shapes=costs + many, forced=True),
        check("assignment/duals", "assignment_duals", shape=costs[0]),
        check("descrambler", "descramblers", 8, sizes=layers),
        check("descrambler/weights", "descramble_weights", n=n, m=n + 7),
        check("streams", "streams", n=300),
        check("devices", "devices", n=n),
        check("interchange", "interchange", n=n),
        check("memory", "memory", n=256 if quick else 4096, rows=8192),
    ]


def speed(quick: bool) -> list[Case]:
    """All timings, those with a target first."""
    budget = 0.2 if quick else 2.0

    def timed(name: str, function: str, seconds: float, memory: int = 0, **arguments: Any) -> Case:
        return Case(f"speed/{name}", f"gpu_times.{function}", arguments, seconds, memory)

    def covariance(t: str, n: int, rows: int = 512 if quick else 8192) -> Case:
        arguments: dict[str, Any] = {"dtype": t, "rows": rows, "n": n, "budget": budget}
        return timed(f"covariance/{t}/{rows}x{n}", "covariance", 5, **arguments)

    def batched(t: str, n: int) -> Case:
        count = batch_of(n, 1 << 14 if quick else ELEMENTS)
        arguments: dict[str, Any] = {
            "dtype": t,
            "count": count,
            "n": n,
            "budget": budget,
            "single": False,
        }
        return timed(f"eigh_batch/{t}/{count}x{n}x{n}", "eigenproblems", 12, **arguments)

    def single(t: str, n: int) -> Case:
        arguments: dict[str, Any] = {
            "dtype": t,
            "count": 1,
            "n": n,
            "budget": 2 * budget,
            "single": True,
        }
        # Three implementations, of n^3 operations each, some of them at the speed of memory.
        seconds = 4 + 60 * (n / 16384) ** 3 * (2 if t == "float64" else 1)
        return timed(f"eigh/{t}/{n}x{n}", "eigenproblems", seconds, 48 * n * n, **arguments)

    def assignment(count: int, n: int, seconds: float = 12) -> Case:
        arguments: dict[str, Any] = {
            "count": count,
            "n": n,
            "dtype": "float32",
            "budget": 2 * budget,
        }
        return timed(f"assignment/float32/{count}x{n}x{n}", "assignment", seconds, **arguments)

    if quick:
        return [
            timed("limits", "limits", 3, n=1024, copied=1 << 22),
            *(covariance(t, 128) for t in DTYPES),
            timed("pipeline", "pipeline", 5, **pipeline_size(4096, 64, 512)),
            *(batched(t, n) for n in (8, 32, 33) for t in WORKING),
            *(single(t, 256) for t in WORKING),
            assignment(50, 16),
        ]
    return [
        timed("limits", "limits", 8, n=8192, copied=1 << 31),
        *(covariance(t, 4096) for t in DTYPES),
        timed("pipeline", "pipeline", 15, 16 << 30, **pipeline_size(1_000_000, 4096, 8192)),
        *(assignment(*size) for size in ASSIGNMENTS),
        *(single(t, n) for n in SINGLE[:3] for t in WORKING),
        *(batched(t, n) for n in BATCHED for t in WORKING),
        *(covariance(t, n) for n in (256, 1024) for t in DTYPES),
        *(covariance(t, n, 1 << 20) for n in (1, 4, 16, 64) for t in WORKING),
        *(single(t, SINGLE[3]) for t in WORKING),
        *(assignment(b, n, 4) for n in (16, 64, 256) for b in (1, 16, 256)),
        *(single(t, SINGLE[4]) for t in WORKING),
    ]


def pipeline_size(rows: int, n: int, batch: int) -> dict[str, Any]:
    """Arguments of a pipeline."""
    return {"rows": rows, "n": n, "batch": batch, "dtype": "bfloat16", "rounds": 3}


def sanitizer(quick: bool) -> list[Case]:
    """Small checks under compute-sanitizer."""
    left_out = ("interchange", "memory", "streams")
    jobs = [case.job for case in correctness(True) if not case.name.endswith(left_out)]
    if quick:
        jobs = [job for job in jobs if "float32" in job["name"]]
    return [
        Case(
            f"sanitizer/{tool}",
            "gpu_checks.sanitize",
            {"tool": tool, "jobs": jobs, "seconds": 300.0},
            120.0,
        )
        for tool in ("memcheck", "racecheck")
    ]


def large(quick: bool) -> list[Case]:
    """One very wide layer: moments and the full float64 eigensolve."""
    n, rows = (256, 512) if quick else (WIDE_LAYER, 8192)
    arguments = {"n": n, "rows": rows, "updates": 4, "dtype": "bfloat16"}
    return [
        Case(
            f"large/{n}",
            "gpu_times.large",
            arguments,
            5.0 if quick else 150.0,
            0 if quick else 60 << 30,
        )
    ]


STAGES: Mapping[str, Callable[[bool], list[Case]]] = {
    "correctness": correctness,
    "speed": speed,
    "sanitizer": sanitizer,
    "large": large,
}


def all_cases(quick: bool) -> list[Case]:
    """Every case in the order of the run."""
    return [case for stage in STAGES.values() for case in stage(quick)]


def chosen(only: str) -> list[str]:
    """Beginnings of the names of cases to run; a wrong one is an error that says which exist."""
    names = only.split(",")
    known = [case.name for quick in (False, True) for case in all_cases(quick)]
    wrong = [name for name in names if not any(begins(case, name) for case in known)]
    if wrong:
        raise argparse.ArgumentTypeError(
            f"no case {', '.join(wrong)}; there are {', '.join([*STAGES, *beginnings()])}"
        )
    return names


def beginnings() -> list[str]:
    """Stages and what they are about."""
    return list(dict.fromkeys("/".join(c.name.split("/")[:2]) for c in all_cases(False)))


def begins(name: str, beginning: str) -> bool:
    """Whether the first parts of a case's name are these."""
    return f"{name}/".startswith(f"{beginning}/")


# --------------------------------------------------------------------------------- worker


class NoDeviceError(Exception):
    """No CUDA device can be used; its text says why."""


class Worker:
    """A process that answers jobs, and what it said of the device."""

    def __init__(self) -> None:
        path = [str(ROOT)] if __package__ == HERE.name else []
        path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.gpu_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | ({"PYTHONPATH": os.pathsep.join(path)} if path else {}),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        hello = self._next(START)
        if "device" not in hello:
            self.stop()
            why = hello.get("no_device") or f"the worker did not start: {hello['reason']}"
            raise NoDeviceError(why)
        self.device: dict[str, Any] = hello["device"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            return {"status": "hung", "reason": f"no answer in {seconds:.0f} s"}
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        return {"status": "crashed", "reason": ended(self._process.wait())}

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Have a job done; how the worker ended, if it did."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return {"status": "crashed", "reason": ended(self._process.wait())}
        return {"name": job["name"]} | self._next(seconds)

    def stop(self) -> None:
        """End it, and what it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                assert pipe is not None
                pipe.close()


def ended(code: int) -> str:
    """How a process ended."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


LEFT_OUT = "not chosen by --only"
TRUSTED = ("passed", "failed", "not run")  # what leaves a worker in order


class Runner:
    """Runs cases within a budget, by workers that are replaced when they fail."""

    def __init__(self, budget: float, begun: float, start: Callable[[], Any] = Worker) -> None:
        self._budget, self._begun, self._start = budget, begun, start
        self._worker: Any = start()
        self.device: dict[str, Any] = self._worker.device

    def left(self) -> float:
        """Seconds left of the budget."""
        return self._budget - (time.monotonic() - self._begun)

    def run(self, case: Case) -> dict[str, Any]:
        """Run one case, or say why not."""
        left = self.left()
        total = self.device.get("total_memory")
        if case.seconds > left:
            reason = f"{max(left, 0):.0f} s were left of the budget of {self._budget:g} s"
        elif case.memory and total is not None and total < case.memory:
            reason = f"the device has {total >> 30} GiB, the case takes {case.memory >> 30}"
        else:
            return self._ask(case, min(left, case.patience))
        return {"name": case.name, "status": "not run", "reason": reason}

    def _ask(self, case: Case, seconds: float) -> dict[str, Any]:
        if self._worker is None:
            try:
                self._worker = self._start()
            except NoDeviceError as error:
                reason = f"the device is no longer to be had: {error}"
                return {"name": case.name, "status": "not run", "reason": reason}
        found: dict[str, Any] = self._worker.ask(case.job, seconds)
        if found["status"] not in TRUSTED:
            self.stop()
        if found["status"] == "hung" and seconds < case.patience:
            reason = f"stopped after {seconds:.0f} s, when the budget ended"
            found |= {"status": "not run", "reason": reason}
        return found

    def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None


# --------------------------------------------------------------------------------- report


def take(report: Report, found: dict[str, Any]) -> None:
    """Add what became of a case to the report."""
    facts = dict(found.get("facts") or {})
    for row in facts.pop("rows", []):
        report["rows"].append(row | {"case": found["name"]})
    report["limits"].update(facts.pop("limits", {}))
    report["cases"].append(
        {key: value for key, value in found.items() if key != "facts"}
        | ({"facts": facts} if facts else {})
    )
    for row in report["rows"]:
        rate = report["limits"].get(row["limit"])
        if rate and row["work"]:
            row["limit_per_second"] = rate
            row["share"] = row["work"] / row["seconds"] / rate
    report["targets"] = [asdict(target) for target in targets(report)]


@dataclass(frozen=True)
class Target:
    """What was aimed for and what was found; `met` is None where it was not run."""

    name: str
    aim: str
    found: str
    met: bool | None


def row_of(
    rows: Iterable[Report], op: str, impl: str, dtype: str, size: dict[str, int]
) -> Report | None:
    """Return the row of that implementation and problem."""
    for row in rows:
        same = all(row["size"].get(key) == value for key, value in size.items())
        if (row["op"], row["impl"], row["dtype"]) == (op, impl, dtype) and same:
            return row
    return None


def faster(
    rows: Sequence[Report],
    op: str,
    dtype: str,
    peers: Sequence[str],
    least: float,
    size: dict[str, int],
) -> Target:
    """By how many times the fastest of the peers is slower than this library."""
    label = "x".join(str(value) for value in size.values())
    ours = row_of(rows, op, OURS, dtype, size)
    found = {p: row_of(rows, op, p, dtype, size) for p in peers}
    ratios = {p: row["ratio"] for p, row in found.items() if row is not None}
    name, aim = f"{op} {dtype} {label}", f"{least:.1f}x {' and '.join(peers)}"
    if ours is None or not ratios:
        return Target(name, aim, "not run", None)
    text = ", ".join(f"{p} {ratio:.2f}x" for p, ratio in ratios.items())
    missing = [p for p in peers if p not in ratios]
    text += "".join(f", {p} not run" for p in missing)
    met = min(ratios.values()) >= least
    return Target(name, aim, text, None if met and missing else met)


CLIFF = 1.25


def cliff(rows: Sequence[Report], dtype: str) -> Target:
    """Time per n^3 operations at n = 33 over that at 32."""
    found = [row_of(rows, "eigh_batch", OURS, dtype, {"n": n}) for n in (32, 33)]
    name, aim = f"eigh_batch {dtype}, no cliff at 32/33", f"under {CLIFF:g}x per n^3"
    if found[0] is None or found[1] is None:
        return Target(name, aim, "not run", None)
    below, above = (
        row["seconds"] / (row["size"]["count"] * row["size"]["n"] ** 3) for row in found if row
    )
    return Target(name, aim, f"{above / below:.2f}x", above / below < CLIFF)


def targets(report: Report) -> list[Target]:
    """Everything that was aimed for; what was not run is listed as such."""
    rows, libraries = report["rows"], ("torch", "cupy")
    cases = {case["name"]: case for case in report["cases"]}
    out = [
        faster(rows, "covariance", "bfloat16", ["torch"], 1.4, {"rows": 8192, "n": 4096}),
        faster(rows, "covariance", "float32", ["torch"], 2.0, {"rows": 8192, "n": 4096}),
        *(faster(rows, "eigh", t, libraries, 1.0, {"n": n}) for n in SINGLE for t in WORKING),
        *(
            faster(rows, "eigh_batch", t, libraries, 1.0, {"count": batch_of(n), "n": n})
            for n in BATCHED
            for t in WORKING
        ),
        *(cliff(rows, t) for t in WORKING),
    ]
    for peer, least in (("torch-linear-assignment", 5.0), ("on_cpu", 1.0)):
        out += [
            faster(rows, "assignment", "float32", [peer], least, {"count": count, "n": n})
            for count, n in ASSIGNMENTS
        ]
    out += [timed_target(cases, "speed/pipeline", 1.0), timed_target(cases, f"large/{WIDE_LAYER}")]
    checks = [case for name, case in cases.items() if begins(name, "correctness")]
    wrong = [case["name"] for case in checks if case["status"] not in ("passed", "not run")]
    passed = sum(case["status"] == "passed" for case in checks)
    out.append(
        Target(
            "correctness",
            "no check fails",
            f"{passed} of {len(correctness(False))} passed, {len(wrong)} failed",
            False if wrong else (True if passed and not report["quick"] else None),
        )
    )
    for case in sanitizer(False):
        status = cases.get(case.name, {"status": "not run"})["status"]
        met = None if status == "not run" else status == "passed"
        out.append(Target(case.name, "clean", status, met))
    return out


def timed_target(cases: Mapping[str, Report], name: str, most: float | None = None) -> Target:
    """One long case: whether it got through, in how long and in how much memory."""
    case, aim = cases.get(name), "completes" if most is None else f"under {most:g} s"
    if case is None or case["status"] == "not run":
        return Target(name, aim, "not run", None)
    if case["status"] != "passed":
        return Target(name, aim, case["status"], False)
    facts = case["facts"]
    parts = [f"{part} {seconds:.3g} s" for part, seconds in facts["seconds"].items()]
    if facts.get("peak_bytes") is not None:
        parts.append(f"{facts['peak_bytes'] / 1e9:.1f} GB")
    met = most is None or facts["seconds"]["whole"] < most
    return Target(name, aim, ", ".join(parts), met)


def summary(report: Report) -> str:
    """Tables of times, of what did not pass, and of targets."""
    tables = importlib.import_module(".report", __package__)
    parts = []
    for title, table in tables.cell_tables(report["rows"]).items():
        parts.append(f"{title}\n\n{table.text()}")
    odd = [c for c in report["cases"] if c["status"] != "passed" and c.get("reason") != LEFT_OUT]
    if odd:
        lines = [[c["name"], c["status"], str(c.get("reason", ""))[:160]] for c in odd]
        parts.append(tables.Table(["case", "status", "reason"], lines, left=3).text())
    fell_back = list(dict.fromkeys(fallbacks(report)))
    if fell_back:
        parts.append("fallbacks:\n" + "\n".join(f"  {text}" for text in fell_back))
    run = [target for target in report["targets"] if target["found"] != "not run"]
    lines = [[t["name"], t["aim"], t["found"], tables.verdict(t["met"])] for t in run]
    parts.append(tables.Table(["target", "aim", "found", ""], lines, left=4).text())
    parts.append(f"{len(report['targets']) - len(run)} targets not run")
    states = [case["status"] for case in report["cases"]]
    said = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return "\n\n".join([*parts, f"{len(states)} cases: {said}"])


def fallbacks(part: Any) -> Iterable[str]:
    """All remarks of all routes within a part of the report."""
    if isinstance(part, Mapping):
        yield from part.get("fallbacks", ())
        for value in part.values():
            yield from fallbacks(value)
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for value in part:
            yield from fallbacks(value)


def save(report: Report, path: Path | None) -> None:
    """Write the report, whole or not at all."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


# ------------------------------------------------------------------------------------ run


def build() -> None:
    """Install this copy of the repository with the CUDA backend."""
    needed = ("scikit_build_core", "pybind11", "scipy_openblas64")
    there = all(importlib.util.find_spec(module) is not None for module in needed)
    command = [sys.executable, "-m", "pip", "install", str(ROOT)]
    command += ["--no-build-isolation"] if there else []
    command += ["--config-settings", "cmake.define.DESCRAMBLE_FAST_CUDA=ON"]
    print(" ".join(command), file=sys.stderr, flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise NoDeviceError("the build failed")


def driver() -> list[str]:
    """Name, driver and memory of each device, as the driver's own tool tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run([program, *query], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(
        prog="python bench/gpu.py",
        description="Check the CUDA backend on a device, then time it beside torch and CuPy.",
        epilog=f"cases begin with: {', '.join([*STAGES, *beginnings()])}",
    )
    add = result.add_argument
    add("--build", action="store_true", help="install this copy of the repository first")
    add("--out", type=Path, metavar="FILE", help="the report (default: bench/results/gpu.json)")
    add("--budget", type=float, metavar="S", default=BUDGET, help="seconds for everything")
    add("--only", metavar="NAMES", type=chosen, help="cases whose names begin so, comma-separated")
    add("--quick", action="store_true", help="tiny problems; no report unless --out is given")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 1 where something is wrong, 2 where there is no device."""
    begun = time.monotonic()
    options = parser().parse_args(arguments)
    try:
        if options.build:
            build()
        runner = Runner(options.budget, begun)
    except NoDeviceError as reason:
        print(f"bench/gpu.py: nothing was run: {reason}", file=sys.stderr)
        return 2
    out = options.out or (None if options.quick else RESULTS)
    machine = importlib.import_module(".machine", __package__)
    report: Report = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": options.quick,
        "budget": options.budget,
        "machine": machine.describe(PACKAGES) | {"device": runner.device, "driver": driver()},
        "limits": {},
        "cases": [],
        "rows": [],
        "targets": [],
    }
    print(f"{runner.device['cuda']}; arrays by {runner.device['arrays']}", flush=True)
    try:
        for case in all_cases(options.quick):
            if options.only and not any(begins(case.name, name) for name in options.only):
                found = {"name": case.name, "status": "not run", "reason": LEFT_OUT}
            else:
                found = runner.run(case)
                said = found.get("reason", f"{found.get('seconds', 0):.1f} s")
                print(f"{case.name}: {found['status']} ({said})", file=sys.stderr, flush=True)
            take(report, found)
            report["seconds"] = time.monotonic() - begun
            save(report, out)
    finally:
        runner.stop()
    print(f"\n{summary(report)}", flush=True)
    return int(any(case["status"] not in ("passed", "not run") for case in report["cases"]))


if __name__ == "__main__":
    if not __package__:  # as a file; the stages belong to the package around it
        sys.path[0] = str(ROOT)
        __package__ = HERE.name
        importlib.import_module(__package__)
    sys.exit(main())
