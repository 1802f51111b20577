"""The C interface under any calls, and with every allocation failing; the programs are in cpp/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from drill import Tally, drill

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus" / "capi"
SYMBOLS = ROOT / "tests" / "consume" / "exported_symbols.txt"
SECONDS = 3600  # of fuzzing in a long run
KEPT = 100  # inputs
SANITIZERS = "-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
# Comparisons of numbers tell a fuzzer nothing.
COVERAGE = "-fno-sanitize-coverage=trace-cmp,trace-div,trace-gep"
ENVIRONMENT = {
    **os.environ,
    "ASAN_OPTIONS": "allocator_may_return_null=1:quarantine_size_mb=16",
    "OPENBLAS_NUM_THREADS": "1",
}
LIMITS = ("-fork=1", "-entropic=0", "-max_len=240", "-timeout=60")
GOES_ON = ("-ignore_crashes=1", "-ignore_timeouts=1", "-ignore_ooms=1")


def clang() -> str | None:
    """A compiler with libFuzzer."""
    found = sorted(path for n in range(14, 24) if (path := shutil.which(f"clang++-{n}")))
    return shutil.which("clang++") or (found[-1] if found else None)


def build(folder: Path, target: str, *options: str) -> Path:
    """Build a program of cpp/, and the library for it."""
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(folder), "-DBUILD_SHARED_LIBS=ON"),
        *("-DDESCRAMBLE_FAST_TESTS=ON", "-DDESCRAMBLE_FAST_CUDA=OFF"),
        *(f"-DPython_EXECUTABLE={sys.executable}", *options),
    ]
    jobs = str(os.cpu_count() or 1)
    for words in (configure, ["cmake", "--build", folder, "--target", target, "-j", jobs]):
        ran = subprocess.run(words, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{target} is not built: {ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return folder / "tests" / "drills" / "cpp" / target


def build_fuzzer(folder: Path, compiler: str) -> Path:
    """Build the fuzzer of the C interface."""
    return build(
        folder,
        "fuzz_capi",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_CXX_FLAGS=-O2 -g1 {SANITIZERS} {COVERAGE}",
        "-DDESCRAMBLE_FAST_FUZZ=ON",
    )


def keep(found: Path, compiler: str) -> None:
    """Make the kept corpus one that covers nearly as much as it and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        program, small = build_fuzzer(Path(folder) / "build", compiler), Path(folder) / "small"
        small.mkdir()
        words = [program, "-merge=1", small, CORPUS, found]
        subprocess.run(words, check=True, env=ENVIRONMENT)
        named = [path for path in CORPUS.iterdir() if path.name.startswith("fault-")]
        chosen = sorted(small.iterdir(), key=lambda path: -path.stat().st_size)
        for path in set(CORPUS.iterdir()) - set(named):
            path.unlink()
        for path in chosen[: KEPT - len(named)]:
            shutil.copy(path, CORPUS / path.name[:16])


def reason(program: Path, found: Path) -> str:
    """Why an input fails, alone in a process: the target's words, or else a sanitizer's."""
    words = [program, *LIMITS[1:], found]
    ran = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, errors="replace")
    if ran.returncode == 0:
        return "passes alone"
    for mark in ("(last error: ", "release: got ", "runtime error: ", "SUMMARY: "):
        if lines := [line for line in ran.stderr.splitlines() if mark in line]:
            return lines[0]
    return f"ended with {ran.returncode}: {ran.stderr[-200:]}"


@drill("fuzz-c", "any calls of C in any order: right answers or errors, nothing lost or leaked")
def fuzz_c(tally: Tally, long: bool) -> None:
    if not long:  # ctest replays the kept corpus
        tally.check(0 < len(list(CORPUS.iterdir())) <= KEPT, "the corpus is gone, or too large")
        return
    compiler = clang()
    if compiler is None:
        tally.figures["fuzzing"] = "left out, for want of clang"
        return
    with tempfile.TemporaryDirectory() as folder:
        program = build_fuzzer(Path(folder) / "build", compiler)
        corpus, faults = Path(folder) / "corpus", Path(folder) / "faults"
        shutil.copytree(CORPUS, corpus)
        faults.mkdir()
        options = [*LIMITS, *GOES_ON, f"-max_total_time={SECONDS}", f"-artifact_prefix={faults}/"]
        ran = subprocess.run(
            [program, *options, corpus], env=ENVIRONMENT, capture_output=True, text=True
        )
        runs = [int(count) for count in re.findall(r"^#(\d+): cov", ran.stderr, re.MULTILINE)]
        tally.check(bool(runs), f"ended with {ran.returncode}: {ran.stderr[-2000:]}")
        tally.trials += max(runs, default=0)
        tally.failures += [
            f"{path.name}: {reason(program, path)}: {path.read_bytes().hex()}"
            for path in sorted(faults.iterdir())
        ]
        tally.figures["executions"] = f"{max(runs, default=0):,} in {SECONDS / 60:.0f} min"


def whole(tally: Tally, program: str, *arguments: str) -> list[int]:
    """Build and run a program of cpp/; the numbers of its last line, the first that of trials."""
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder), program, "-DCMAKE_BUILD_TYPE=Release")
        ran = subprocess.run([built, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    tally.check(ran.returncode == 0, f"{program} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    numbers = [int(number) for number in re.findall(r"\d+", (ran.stdout.splitlines() or [""])[-1])]
    tally.trials += numbers[0] if numbers else 0
    return numbers


@drill("hard-input-c", "every C function, hard input, type and layout: a right answer or an error")
def hard_input_c(tally: Tally, long: bool) -> None:
    if long:
        whole(tally, "drill_bad_input", "--every")
    else:  # ctest runs the short part
        tally.check((HERE / "cpp" / "bad_input.cpp").exists(), "its program is gone")


@drill(
    "no-memory", "any allocation may fail: C says so, changes nothing, and succeeds when retried"
)
def no_memory(tally: Tally, long: bool) -> None:
    if not long:  # ctest runs the short part
        names = SYMBOLS.read_text(encoding="utf-8").splitlines()
        text = (HERE / "cpp" / "out_of_memory.cpp").read_text(encoding="utf-8")
        for name in names:
            if re.fullmatch(r"descramble_\w+", name):
                tally.check(f'{{"{name}' in text, f"{name} is not tried")
        return
    numbers = whole(tally, "drill_out_of_memory", str(SYMBOLS), "--every")
    if len(numbers) == 3:
        tally.figures["calls whose allocation failed"] = f"{numbers[1]:,}"
        tally.figures["of these without effect"] = f"{numbers[2]:,}"


@drill("no-memory-python", "the same of Python: MemoryError, nothing changed, then the same bits")
def no_memory_python(tally: Tally, long: bool) -> None:
    program, compiler = HERE / "cpp" / "preloaded.py", shutil.which("c++")
    if not long or compiler is None or not sys.platform.startswith("linux"):
        tally.check(program.exists(), "its program is gone")
        tally.figures["allocations"] = "left out" if long else "none in the short part"
        return
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/preload.so"
        words = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library]
        subprocess.run([*words, str(HERE / "cpp" / "preload.cpp"), "-ldl"], check=True)
        ran = subprocess.run(
            [sys.executable, str(program), library, "every"],
            env={**ENVIRONMENT, "LD_PRELOAD": library},
            capture_output=True,
            text=True,
        )
    *faults, last = ran.stdout.splitlines() or [""]
    tally.failures += faults
    tally.check(ran.returncode == 0, f"ended with {ran.returncode}: {ran.stderr[-2000:]}")
    numbers = [int(number) for number in re.findall(r"\d+", last)]
    if len(numbers) == 2:
        tally.trials += numbers[0]
        tally.figures["calls whose allocation failed"] = f"{numbers[1]:,}"
