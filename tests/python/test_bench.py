"""The benchmark suite: its arithmetic, what it refuses, and a small run of it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the demo extra")
pytest.importorskip("click", reason="needs the demo extra")

from descramble_fast.bench import harness, memory, suite
from descramble_fast.bench.bench_covariance import checker, update_cell
from descramble_fast.bench.bench_eigh import check_pairs, falling_spectrum, with_spectrum
from descramble_fast.bench.harness import Cell, Measurement, Method, Run
from descramble_fast.bench.machine import Limits
from descramble_fast.bench.report import OURS, cell_text

import descramble_fast as df


def bench(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "descramble_fast", "bench", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | environment
    )


def returning(value: float) -> Callable[[], float]:
    return lambda: value


class FixedLimits(Limits):
    """Limits that come one after the other from a list."""

    def __init__(self, values: Iterator[float]) -> None:
        super().__init__()
        self._values = values

    def measure(self) -> None:
        value = next(self._values)
        for name, seen in self.seen.items():
            if name != "dot_bfloat16":
                seen.append(value)

    keep_up = measure


def test_a_wrong_result_ends_the_run() -> None:
    def check(found: float) -> float:
        harness.require(found == 1, f"got {found}")
        return 0.0

    good = Method(OURS, returning(1.0), check)
    with pytest.raises(SystemExit, match=r"bench: got 2\.0"):
        harness.measure([good, Method("peer", returning(2.0), check)], budget=0.01)
    assert harness.measure([good], budget=0.01)[0].error == 0


def test_every_check_refuses_what_is_a_little_wrong() -> None:
    x = np.random.default_rng(0).standard_normal((200, 30))
    moment = x.T @ x / 200
    check = checker(x, "float64")
    assert check(moment, 1e-12) <= 1e-12
    moment[3, 7] *= 1 + 1e-6
    with pytest.raises(SystemExit, match="off by"):
        check(moment, 1e-12)

    truth = falling_spectrum(40)
    A = with_spectrum(truth, "float64")
    w, V = np.linalg.eigh(A)
    assert check_pairs(A, (w, V), truth) < 1e-14
    assert check_pairs(A, df.eigh(A, k=3), truth[-3:]) < 1e-14
    for wrong in ((w * (1 + 1e-9), V), (w, V * (1 + 1e-9)), (w, V[:, ::-1])):
        with pytest.raises(SystemExit, match="eigh float64"):
            check_pairs(A, wrong, truth)
    with pytest.raises(SystemExit, match="eigenvalues off"):
        check_pairs(A, (w, V), truth * 1.001)


def test_ratios_are_those_of_pairs() -> None:
    ours, peer, slow = (Measurement(Method(name, dict)) for name in (OURS, "peer", "slow"))
    ours.seconds, peer.seconds, slow.seconds = [1.0, 2.0, 4.0], [3.0, 2.0, 8.0], [10.0]
    assert harness.ratio(peer, ours) == 2
    assert harness.ratio(slow, ours) == 5
    cell = Cell("op", "float32", "8x4", {"n": 4}, list, work=6.0)
    row = harness.make_row(cell, peer, ours, ("fma_float32", 4.0))
    assert row["name"] == "op/peer/float32/8x4"
    assert row["seconds"] == 3
    assert row["share"] == pytest.approx(6 / 3 / 4)
    assert row["seconds_quartiles"] == (2.5, 5.5)
    assert row["ratio_quartiles"] == (1.5, 2.5)
    assert cell_text(row) == "3 s ±50% / 50% / 2.00x"
    assert harness.make_row(cell, ours, ours, None)["share"] is None


def test_the_limit_is_the_largest_so_far_in_the_run() -> None:
    limits = FixedLimits(itertools.chain([100.0], itertools.repeat(2.0)))
    limits.measure()
    run = Run(quick=True, budget=1e-9, limits=limits)
    methods = [Method(OURS, returning(0.0)), Method("peer", returning(0.0))]
    cell = Cell(
        "op", "bfloat16", "1", {"n": 1}, lambda: methods, 5.0, ("dot_bfloat16", "bandwidth")
    )
    rows = run.cell(cell)
    assert [row["limit"] for row in rows] == ["bandwidth"] * 2
    assert rows[0]["limit_per_second"] == 100
    limits.seen["bandwidth"].append(200.0)
    assert run.cell(cell)[0]["limit_per_second"] == 200
    assert rows[1]["ratio"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"])
    assert limits.summary()["bandwidth"]["highest"] == 200
    assert "dot_bfloat16" not in limits.summary()


def test_rounds_are_interleaved_and_slow_methods_are_timed_once() -> None:
    order: list[str] = []

    def note(name: str, seconds: float) -> Callable[[], Any]:
        class Result:
            def __init__(self) -> None:
                order.append(name)
                self.seconds = seconds

        return Result

    times = {"a": 1.0, "b": 2.0, "c": 9.0, "d": 10.0}
    methods = [Method(name, note(name, seconds)) for name, seconds in times.items()]
    found = harness.measure(methods, budget=9.5)
    assert "".join(order) == "ab" + "cc" + "d" + "abbaab"
    assert [entry.seconds for entry in found] == [[1.0] * 3, [2.0] * 3, [9.0], [10.0]]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_counts_what_is_freed_again() -> None:
    size = 64 << 20
    keep = memory.peak(lambda: np.ones(size, np.uint8))
    passing = memory.peak(lambda: np.ones(size, np.uint8).sum())
    nothing = memory.peak(dict)
    assert keep is not None
    assert passing is not None
    assert nothing is not None
    assert 0.98 * size < keep < 1.1 * size
    assert 0.98 * size < passing < 1.1 * size
    assert nothing < 0.02 * size
    # P W, 256 x 256 in float64, in a process of its own.
    product = harness.peak_memory("transform_weight/numpy/float64/256x256")
    assert product is not None
    assert 8 * 256**2 <= product < 100e6


def test_cells_have_names_of_one_kind() -> None:
    names = []
    for name, entry in suite.FAMILIES.items():
        if entry.default:
            cells = suite.family(name).cells(False)
            assert cells
            names += [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert all(name.count("/") == 2 and " " not in name for name in names)
    assert suite.find_cell("covariance", "float32", "8192x1024").row_name("numpy") == (
        "covariance/numpy/float32/8192x1024"
    )
    assert update_cell("float32", 8192, 1024).work == 8192 * 1024 * 1025


def test_a_wrong_name_says_which_exist() -> None:
    done = bench("--only", "covariance,none")
    assert done.returncode == 2
    assert "no benchmark none" in done.stderr
    for name in suite.FAMILIES:
        assert name in done.stderr


def test_a_small_run_writes_its_report(tmp_path: Path) -> None:
    done = bench(
        *("--only", "many", "--quick", "--budget", "0.01"),
        *("--json", tmp_path / "new" / "report.json", "--plots", tmp_path / "figures"),
        OPENBLAS_CORETYPE="Prescott",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8"))
    assert list(report["families"]) == ["many"]
    # The core type that pinned the caller has not reached the suite.
    assert report["machine"]["blas"] == [] or "PRESCOTT" not in done.stdout.upper()
    rows = report["families"]["many"]["rows"]
    for row in rows:
        assert row["name"] == "/".join(row[key] for key in ("op", "impl", "dtype", "shape"))
        assert row["seconds"] > 0
        assert row["error"] < 1e-9
        assert row["shape"] in done.stdout
    assert {row["impl"] for row in rows} == {OURS, "numpy_loop", "numpy_batch"}
    assert report["limits"]["fma_float32"]["lowest"] > 1e8
    assert (tmp_path / "figures" / "bench-many.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in json.dumps(report)
