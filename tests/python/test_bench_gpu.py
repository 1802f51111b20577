"""The GPU benchmark: its cases, budget, report and targets; its checks and timings, on the CPU."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the demo extra")

from descramble_fast.bench import gpu, gpu_times
from descramble_fast.bench.gpu import Case, NoDeviceError, Runner
from descramble_fast.bench.gpu_arrays import Arrays, NotRunError, TorchArrays
from descramble_fast.bench.gpu_worker import answer
from descramble_fast.bench.harness import Cell, Method
from descramble_fast.bench.report import OURS

import descramble_fast as df

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"
on_cuda = pytest.mark.skipif(not df.cuda_available(), reason=df.show_config("dict")["cuda"])


def script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


# Cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
def test_cases_have_names_of_their_own_and_fit_their_functions(quick: bool) -> None:
    cases = gpu.all_cases(quick)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for case in cases:
        module = importlib.import_module(f"descramble_fast.bench{case.job['module']}")
        function = getattr(module, case.job["function"])
        inspect.signature(function).bind(Arrays(), **case.arguments)
        assert json.loads(json.dumps(case.job))["name"] == case.name
    stages = [name.split("/")[0] for name in names]
    assert list(dict.fromkeys(stages)) == ["correctness", "speed", "sanitizer", "large"]
    assert stages == sorted(stages, key=list(gpu.STAGES).index)


def test_cases_are_chosen_by_the_first_parts_of_their_names() -> None:
    assert gpu.begins("speed/eigh/float32/1024x1024", "speed/eigh")
    assert gpu.begins("speed/eigh/float32/1024x1024", "speed")
    assert not gpu.begins("speed/eigh_batch/float32/64x8x8", "speed/eigh")
    assert gpu.chosen("correctness,speed/pipeline") == ["correctness", "speed/pipeline"]


def test_batches_hold_so_many_elements() -> None:
    assert [gpu.batch_of(n) for n in (8, 32, 48, 64, 512)] == [10_000, 10_000, 7281, 4096, 64]


# Runner -------------------------------------------------------------------------------------------


class FakeWorker:
    """Answers from a list, one for each job."""

    device: dict[str, Any] = {"total_memory": 8 << 30}  # noqa: RUF012
    answers: Iterator[dict[str, Any]]
    started: int
    stopped: int

    def __init__(self) -> None:
        type(self).started += 1

    def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert seconds > 0
        return {"name": job["name"]} | next(self.answers)

    def stop(self) -> None:
        type(self).stopped += 1


def fake_worker(*answers: dict[str, Any]) -> type[FakeWorker]:
    return type("Fake", (FakeWorker,), {"answers": iter(answers), "started": 0, "stopped": 0})


def test_a_worker_is_replaced_after_what_leaves_it_in_doubt() -> None:
    statuses = ["passed", "failed", "not run", "error", "crashed", "hung", "passed"]
    worker = fake_worker(*({"status": status} for status in statuses))
    runner = Runner(1e4, time.monotonic(), worker)
    case = Case("a/b", "gpu_checks.devices")
    assert [runner.run(case)["status"] for _ in statuses] == statuses
    assert (worker.started, worker.stopped) == (4, 3)


def test_what_does_not_fit_the_budget_or_the_memory_is_not_run() -> None:
    worker = fake_worker({"status": "passed"}, {"status": "hung"})
    runner = Runner(20, time.monotonic(), worker)
    late = runner.run(Case("late", "gpu_checks.devices", seconds=30))
    assert late["status"] == "not run"
    assert "left of the budget of 20 s" in late["reason"]
    big = runner.run(Case("big", "gpu_checks.devices", memory=16 << 30))
    assert big == {
        "name": "big",
        "status": "not run",
        "reason": "the device has 8 GiB, the case takes 16",
    }
    assert runner.run(Case("fits", "gpu_checks.devices"))["status"] == "passed"
    cut = runner.run(Case("cut", "gpu_checks.devices", seconds=15))
    assert cut["status"] == "not run"
    assert "when the budget ended" in cut["reason"]
    assert worker.stopped == 1


def test_a_device_that_is_lost_leaves_the_rest_not_run() -> None:
    workers: Iterator[Any] = iter([fake_worker({"status": "crashed"})()])

    def start() -> Any:
        try:
            return next(workers)
        except StopIteration:
            raise NoDeviceError("none is there") from None

    runner = Runner(1e4, time.monotonic(), start)
    found = [runner.run(Case("a", "gpu_checks.devices")) for _ in range(3)]
    assert [case["status"] for case in found] == ["crashed", "not run", "not run"]
    assert "none is there" in found[2]["reason"]


def test_without_a_device_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.json"
    done = script("--out", out, DESCRAMBLE_FAST_CUDA_LIBRARY="/no/such/library")
    assert done.returncode == 2
    assert "nothing was run: DESCRAMBLE_FAST_CUDA_LIBRARY: no file /no/such/library" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_wrong_name_says_which_exist() -> None:
    done = script("--only", "correctness,none")
    assert done.returncode == 2
    for text in ("no case none", "correctness/eigh", "speed/assignment", "large"):
        assert text in done.stderr


@on_cuda
def test_all_checks_pass_on_the_device_at_hand(tmp_path: Path) -> None:
    done = script("--only", "correctness", "--quick", "--out", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    status = {case["name"]: case["status"] for case in report["cases"]}
    assert list(status) == [case.name for case in gpu.all_cases(True)]
    needs_more = ("assignment/device", "streams", "memory", "bfloat16")
    for name, found in status.items():
        if not name.startswith("correctness"):
            assert found == "not run"
        elif not name.endswith(needs_more):
            assert found == "passed", name
    facts = {case["name"]: case.get("facts") for case in report["cases"]}
    route = facts["correctness/moments/float32"]["route"]
    assert route == {"device": "cuda:0"}
    routes = facts["correctness/eigh/batches/float64"]["routes"]
    assert all(part["route"]["device"] == "cuda:0" for part in routes)
    assert report["machine"]["device"]["cuda"] == df.show_config("dict")["cuda"]
    assert report["machine"]["packages"]["numpy"] == np.__version__
    assert "correctness" in done.stdout


@on_cuda
def test_the_worker_ends_after_an_error_and_tells_how() -> None:
    runner = Runner(1e4, time.monotonic())
    case = Case("a", "gpu_checks.cross", {"dtype": "float64", "rows": 20, "n": 3})
    wrong = Case("b", "gpu_checks.cross", {"dtype": "float64", "rows": 20, "n": -3})
    assert [runner.run(c)["status"] for c in (case, wrong, case)] == ["passed", "error", "passed"]
    runner.stop()
    worker = gpu.Worker()
    assert worker.ask(wrong.job, 60)["reason"].startswith("ValueError")
    assert worker.ask(case.job, 60) == {
        "name": "a",
        "status": "crashed",
        "reason": "ended with code 0",
    }
    worker.stop()
    worker = gpu.Worker()
    assert worker.ask(case.job, 0)["status"] == "hung"


@on_cuda
def test_a_sanitizers_findings_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    case = gpu.sanitizer(True)[0]
    for body, status in (('shift 4; "$@"', "passed"), ("exit 9", "failed")):
        program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        found, _ = answer(case.job, Arrays())
        assert found["status"] == status, found
    assert "memcheck ended with 9" in found["reason"]


def test_how_a_process_ended() -> None:
    assert gpu.ended(-11) == "ended by SIGSEGV"
    assert gpu.ended(3) == "ended with code 3"


# Checks, by the CPU's own arrays ------------------------------------------------------------------


def on_cpu(case: Case) -> bool:
    # The others speak of a device, of what is refused there, or of memory.
    return not case.name.endswith(("device", "devices", "streams", "memory", "offload"))


@pytest.mark.parametrize(
    "case", [c for c in gpu.correctness(True) if on_cpu(c)], ids=lambda case: case.name
)
def test_checks_accept_the_cpus_answers(case: Case) -> None:
    pytest.importorskip("ml_dtypes", reason="needs bfloat16")
    if case.name == "correctness/moments/float16":
        case = Case(case.name, case.function, {"dtype": "float16", "shapes": [(400, 5)]})
    found, sound = answer(case.job, Arrays())
    assert found["status"] == "passed", found
    assert sound
    json.dumps(found)


def test_checks_refuse_what_is_a_little_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def status(name: str) -> str:
        (case,) = (c for c in gpu.correctness(True) if c.name == f"correctness/{name}")
        found, sound = answer(case.job, Arrays())
        assert sound
        assert "bench: " in found["reason"]
        return str(found["status"])

    def scaled(method: Any, factor: float) -> Any:
        return lambda *args, **options: method(*args, **options) * factor

    with monkeypatch.context() as patch:
        patch.setattr(df.Covariance, "covariance", scaled(df.Covariance.covariance, 1 + 1e-9))
        assert status("moments/float64") == "failed"
        assert status("selection/float64") == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(df.Descrambler, "transform", scaled(df.Descrambler.transform, 1 + 1e-6))
        assert status("descrambler") == "failed"
    with monkeypatch.context() as patch:
        eigh = df.eigh

        def wrong(a: Any, k: int | None = None) -> Any:
            found = eigh(a, k)
            found.eigenvectors[..., 0] *= 1 + 1e-10
            return found

        patch.setattr(df, "eigh", wrong)
        assert status("eigh/batches/float64") == "failed"
        assert status("eigh/special/float64") == "failed"
    with monkeypatch.context() as patch:
        update = df.Covariance.update
        patch.setattr(df.Covariance, "update", lambda self, x: update(self, np.nan_to_num(x)))
        assert status("refused/float64") == "failed"


# Timings, by torch on the CPU ---------------------------------------------------------------------


class Clock:
    """Time that passes only in what is timed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def method(self, name: str, seconds: float, error: float = 0.0) -> Method:
        def run() -> str:
            self.order.append(name)
            self.now += seconds
            return name

        return Method(name, run, lambda found: error)


def test_rounds_are_interleaved_and_samples_are_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu_times, "time", clock)
    times = {"a": 0.001, "b": 1.0, "c": 4.0, "d": 20.0}
    found = gpu_times.measure(
        [clock.method(name, seconds) for name, seconds in times.items()], Arrays(), budget=9.0
    )
    assert "".join(clock.order) == "aabbccd" + "aaaaabbaaaaa" * 4
    assert [len(entry.seconds) for entry in found.entries] == [8, 8, 1, 1]
    assert [entry.median for entry in found.entries] == pytest.approx(list(times.values()))
    assert found.routes == dict.fromkeys(times)


def test_a_peer_that_fails_is_left_out_and_this_library_is_not() -> None:
    def wrong(found: Any) -> float:
        raise SystemExit("bench: wrong")

    methods = [Method(OURS, dict, lambda found: 0.0), Method("peer", dict, wrong)]
    cell = Cell("op", "float32", "4x4", {"n": 4}, lambda: methods)
    facts = gpu_times.cell_facts(cell, Arrays(), 0.01, {})
    assert [row["impl"] for row in facts["rows"]] == [OURS]
    assert facts["peers_failed"] == {"peer": "SystemExit: bench: wrong"}
    methods[0] = Method(OURS, dict, wrong)
    with pytest.raises(SystemExit, match="bench: wrong"):
        gpu_times.cell_facts(cell, Arrays(), 0.01, {})


def test_a_part_of_a_batch_is_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu_times, "time", clock)
    methods = [clock.method(OURS, 1.0), clock.method("torch", 0.5, 1e-3)]
    cell = Cell("op", "float32", "4x4", {"n": 4}, lambda: methods, 8.0, ("copy",))
    ours, torch = gpu_times.cell_facts(cell, Arrays(), 9.0, {"torch": 16})["rows"]
    assert (torch["seconds"], torch["ratio"]) == (8, 8)
    assert (torch["scaled_from_one_in"], ours["scaled_from_one_in"]) == (16, None)
    assert (torch["error"], torch["limit"], torch["share"]) == (1e-3, "copy", None)


SMALL: list[tuple[str, dict[str, Any]]] = [
    ("limits", {"n": 64, "copied": 1 << 12}),
    ("covariance", {"dtype": "bfloat16", "rows": 256, "n": 48, "budget": 0.01}),
    ("covariance", {"dtype": "float64", "rows": 256, "n": 48, "budget": 0.01}),
    (
        "eigenproblems",
        {"dtype": "float32", "count": 40, "n": 12, "budget": 0.01, "single": False},
    ),
    ("eigenproblems", {"dtype": "float64", "count": 1, "n": 40, "budget": 0.01, "single": True}),
    ("assignment", {"count": 20, "n": 12, "dtype": "float32", "budget": 0.01}),
    ("pipeline", {"rows": 600, "n": 16, "batch": 128, "dtype": "bfloat16", "rounds": 1}),
    ("large", {"n": 48, "rows": 100, "updates": 2, "dtype": "bfloat16"}),
]


@pytest.mark.parametrize(("function", "arguments"), SMALL, ids=lambda part: str(part)[:40])
def test_timings_of_small_problems(function: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip("torch", reason="torch makes the inputs")
    found, _ = answer(Case("speed/x", f"gpu_times.{function}", arguments).job, TorchArrays("cpu"))
    assert found["status"] == "passed", found
    facts = json.loads(json.dumps(found))["facts"]
    for row in facts.get("rows", []):
        assert row["seconds"] > 0
        assert row["error"] <= (1e-5 if row["impl"] == OURS else 1e-1)
        assert (row["route"] is None) == (row["impl"] not in (OURS, "on_cpu", "on_device"))
    if "rows" in facts:
        assert facts["rows"][0]["impl"] == OURS
        assert {"torch", "on_cpu"} & {row["impl"] for row in facts["rows"]}
    elif function == "limits":
        assert set(facts["limits"]) == {"copy", *(f"matmul_{t}" for t in gpu.DTYPES)}
    else:
        assert facts["route"]["device"] == "cpu"
        assert all(seconds > 0 for seconds in facts["seconds"].values())


def test_timings_refuse_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch makes the inputs")
    monkeypatch.setattr(df.Covariance, "update", lambda self, x: df.Covariance.from_samples(x[1:]))
    job = Case("speed/x", "gpu_times.covariance", SMALL[1][1]).job
    found, _ = answer(job, TorchArrays("cpu"))
    assert found["status"] == "failed"
    assert "second moment off by" in found["reason"]


def test_timings_need_torch() -> None:
    found, sound = answer(Case("speed/x", "gpu_times.limits", SMALL[0][1]).job, Arrays())
    assert found["status"] == "not run"
    assert sound
    with pytest.raises(NotRunError):
        Arrays().memory()


# Report -------------------------------------------------------------------------------------------


def empty_report(quick: bool = False) -> dict[str, Any]:
    return {"quick": quick, "limits": {}, "cases": [], "rows": [], "targets": []}


def row(op: str, impl: str, dtype: str, ratio: float, **size: int) -> dict[str, Any]:
    shape = "x".join(map(str, size.values()))
    return {
        "name": f"{op}/{impl}/{dtype}/{shape}",
        "op": op,
        "impl": impl,
        "dtype": dtype,
        "shape": shape,
        "size": size,
        "seconds": ratio * size.get("count", 1) * size["n"] ** 3,
        "seconds_quartiles": (ratio, ratio),
        "runs": 3,
        "ratio": ratio,
        "work": 1.0,
        "limit": f"matmul_{dtype}",
        "share": None,
        "error": 0.0,
        "peak_bytes": None,
    }


def answers(case: Case, ratio: float) -> dict[str, Any]:
    """What a case might give back where every peer takes `ratio` times as long."""
    facts: dict[str, Any] = {}
    size = {key: case.arguments[key] for key in ("rows", "count", "n") if key in case.arguments}
    if case.name.startswith("speed/") and case.name.count("/") == 3:
        op, dtype = case.name.split("/")[1:3]
        peers = ["on_cpu", "torch-linear-assignment"] if op == "assignment" else ["torch", "cupy"]
        facts["rows"] = [row(op, OURS, dtype, 1.0, **size)]
        facts["rows"] += [row(op, peer, dtype, ratio, **size) for peer in peers]
    elif case.name == "speed/limits":
        facts["limits"] = {"matmul_float32": 2.0}
    else:
        facts |= {"seconds": {"whole": 1 / ratio}, "peak_bytes": 5 * 10**9}
    return {"name": case.name, "status": "passed", "facts": facts}


def test_every_target_is_met_or_missed_by_some_case() -> None:
    for ratio, expected in ((6.0, {True}), (0.5, {True, False})):
        report = empty_report()
        for case in gpu.all_cases(False):
            gpu.take(report, answers(case, ratio))
        assert {target["met"] for target in report["targets"]} == expected
        missed = [target for target in report["targets"] if target["met"] is False]
        # At half our time everything that has a peer or a limit falls short.
        named = ("covariance", "eigh ", "eigh_batch", "assignment", "speed/pipeline")
        short = [t for t in report["targets"] if t["name"].startswith(named)]
        short = [t for t in short if "cliff" not in t["name"]]
        assert missed == (short if ratio < 1 else [])
        text = gpu.summary(report)
        assert ("SHORT" in text) == (ratio < 1)
        assert "0 targets not run" in text
    assert sum(target["name"].startswith("eigh") for target in report["targets"]) == 36


def test_nothing_run_is_nothing_met() -> None:
    report = empty_report()
    for case in gpu.all_cases(False):
        gpu.take(report, {"name": case.name, "status": "not run", "reason": "why not"})
    assert {target["met"] for target in report["targets"]} == {None}
    assert "why not" in gpu.summary(report)


def test_a_peer_that_was_not_run_leaves_a_target_open() -> None:
    rows = [row("eigh", OURS, "float64", 1.0, count=1, n=1024)]
    rows.append(row("eigh", "torch", "float64", 2.0, count=1, n=1024))

    def found() -> gpu.Target:
        return gpu.faster(rows, "eigh", "float64", ["torch", "cupy"], 1.0, {"n": 1024})

    assert (found().found, found().met) == ("torch 2.00x, cupy not run", None)
    rows[1]["ratio"] = 0.9
    assert found().met is False
    rows[1]["ratio"] = 1.1
    rows.append(row("eigh", "cupy", "float64", 1.0, count=1, n=1024))
    assert found().met is True


def test_a_cliff_shows() -> None:
    rows = [row("eigh_batch", OURS, "float32", 1.0, count=9, n=n) for n in (32, 33)]
    assert gpu.cliff(rows, "float32").met is True
    rows[1]["seconds"] *= 1.3
    assert gpu.cliff(rows, "float32").met is False


def test_shares_follow_once_the_limits_are_known() -> None:
    report = empty_report()
    one = row("covariance", OURS, "float32", 1.0, n=1)
    gpu.take(report, {"name": "speed/a", "status": "passed", "facts": {"rows": [one]}})
    assert report["rows"][0]["share"] is None
    facts = {"limits": {"matmul_float32": 4.0}}
    gpu.take(report, {"name": "speed/limits", "status": "passed", "facts": facts})
    assert report["rows"][0]["share"] == 0.25
    assert report["rows"][0]["case"] == "speed/a"
    assert report["cases"] == [
        {"name": "speed/a", "status": "passed"},
        {"name": "speed/limits", "status": "passed"},
    ]


def test_a_failed_check_misses_its_target_and_is_shown() -> None:
    report = empty_report()
    found = {"name": "correctness/offload", "status": "failed", "reason": "off by 1"}
    gpu.take(report, found)
    (target,) = (t for t in report["targets"] if t["name"] == "correctness")
    assert target["met"] is False
    assert "off by 1" in gpu.summary(report)
    route = {"driver": "x", "fallbacks": ["cuda:0: y"]}
    assert list(gpu.fallbacks({"a": [{"route": route}], "b": "c"})) == ["cuda:0: y"]


def test_the_documentation_names_every_kernel() -> None:
    root = SCRIPT.parents[1]
    text = (root / "docs" / "gpu.md").read_text(encoding="utf-8")
    kernel = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("
    for source in sorted((root / "cuda").glob("*.cu")):
        code = source.read_text(encoding="utf-8")
        names = re.findall(kernel, code)
        assert len(names) == code.count("__global__")
        assert [name for name in names if f"`{name}`" not in text] == []
