"""Coverage-guided fuzzing of everything in Python that parses; see parsers.py for the targets.

As a command, ``python tests/drills/fuzz.py TARGET [FOLDER] [-option=...]`` fuzzes one target with
options of libFuzzer, and ``python tests/drills/fuzz.py --keep [FOLDER]`` makes the corpora of the
repository the smallest ones that cover as much, of what they hold and of ``FOLDER/TARGET``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import Any

from drill import Tally, drill

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"
SECONDS = 3600  # of each target in a long run
AT_ONCE = 2
KEPT = 150  # inputs of each target
MEMORY = 1 << 30  # more than any input here may take
MODULES = ("parse_arrays", "parse_files", "parse_runs", "parse_state")
# Python code that tells the fuzzer what is new: ours, and what reads files for it.
INSTRUMENTED = ("descramble_fast", *MODULES, "numpy.lib", "zipfile", "zarr.core.metadata")
LIMITS = (
    "-timeout=5",
    f"-rss_limit_mb={MEMORY >> 20}",
    "-max_len=512",
    "-len_control=0",
    "-print_final_stats=1",
)


def place(error: BaseException) -> str:
    """Tell faults apart: by their type and the line they come from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def fuzz(name: str, folder: Path, options: list[str]) -> None:
    """Run libFuzzer; of each kind of fault an input goes to FOLDER/failed, and it goes on."""
    import resource

    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED), enable_loader_override=False):
        import parsers
    target, known = parsers.TARGETS[name], set()

    def once(data: bytes) -> None:
        try:
            target(data)
        except Exception as error:
            if (kind := place(error)) not in known:
                known.add(kind)
                (folder / "failed").mkdir(exist_ok=True)
                (folder / "failed" / f"{len(known)}").write_bytes(data)
                with open(folder / "failures", "a", encoding="utf-8") as file:
                    file.write(f"{kind}: {ascii(str(error))[:300]}: {data.hex()}\n")

    # More than a file says that it needs is refused by the system, and fails.
    resource.setrlimit(resource.RLIMIT_AS, (8 * MEMORY, 8 * MEMORY))
    atheris.Setup([sys.argv[0], *LIMITS, f"-artifact_prefix={folder}/", *options], once)
    atheris.Fuzz()


def command(name: str, folder: Path, *options: str) -> list[str]:
    """The command that fuzzes a target; at a low priority where the system knows such."""
    low = ["nice", "-n", "10"] if os.name == "posix" else []
    return [*low, sys.executable, str(HERE / "fuzz.py"), name, str(folder), *options]


def steps(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """From which line to which an input goes, in our files."""
    seen: set[tuple[str, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        name, last = frame.f_code.co_filename, 0
        if "descramble_fast" not in name and Path(name).parent != HERE:
            return None

        def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            nonlocal last
            seen.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        target(data)
    except Exception as error:
        seen.add((place(error), 0, 0))
    finally:
        sys.settrace(None)
    return seen


def keep(found: Path | None) -> None:
    """Of the kept corpora and FOUND/TARGET/corpus, keep the smallest inputs that make other steps.

    Inputs that a fault was mended for, ``fault-*`` or in FOUND/TARGET/failed, all stay.
    """
    import parsers

    for name, target in parsers.TARGETS.items():
        folders = [CORPUS / name]
        if found is not None:
            folders += [found / name / "failed", found / name / "corpus"]
        paths = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        kept: dict[str, bytes] = {}
        seen: set[tuple[str, int, int]] = set()

        def fault(path: Path) -> bool:
            return path.parent.name == "failed" or path.name.startswith("fault-")

        for path in sorted(paths, key=lambda path: (not fault(path), path.stat().st_size)):
            content = path.read_bytes()
            made = steps(target, content)
            if fault(path) or (not made <= seen and len(kept) < KEPT):
                seen |= made
                digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()[:16]
                kept[f"{'fault-' * fault(path)}{digest}"] = content
        shutil.rmtree(CORPUS / name, ignore_errors=True)
        (CORPUS / name).mkdir(parents=True)
        for word, content in kept.items():
            (CORPUS / name / word).write_bytes(content)
        print(f"{name}: {len(kept)} of {len(paths)} inputs kept", flush=True)


def replay(tally: Tally, name: str) -> None:
    """Run the kept corpus of a target through it, each input as a trial."""
    import parsers

    for path in sorted((CORPUS / name).iterdir()):
        try:
            parsers.TARGETS[name](path.read_bytes())
            came = ""
        except Exception as error:
            came = f"{name}, {path.name}: {place(error)}: {error}"
        tally.check(not came, came)


def hour(name: str, folder: Path) -> tuple[str, int, list[str]]:
    """Fuzz a target as long as a long run takes; its executions, peak memory and faults."""
    folder.mkdir()
    words = command(name, folder, f"-max_total_time={SECONDS}")
    ran = subprocess.run(words, capture_output=True, text=True)
    counted = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    file = folder / "failures"
    faults = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    if ran.returncode or counted is None:
        faults.append(f"ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return name, int(counted[1]) if counted else 0, faults


def campaign(tally: Tally, names: Sequence[str]) -> None:
    """Fuzz targets, some at once; every execution is a trial."""
    if importlib.util.find_spec("atheris") is None:
        tally.figures["fuzzing"] = "left out, for want of atheris"
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(hour, name, Path(folder) / name) for name in names]
        for run in as_completed(runs):
            name, executions, faults = run.result()
            tally.trials += executions
            tally.failures += [f"{name}: {fault}" for fault in faults]
            tally.figures[name] = f"{executions:,} executions in {SECONDS / 60:.0f} min"


def fuzzing(tally: Tally, long: bool, names: Sequence[str]) -> None:
    for name in names:
        replay(tally, name)
    if long:
        campaign(tally, names)


@drill("fuzz-files", "any bytes as samples, moments, networks: the very numbers in it, or an error")
def fuzz_files(tally: Tally, long: bool) -> None:
    fuzzing(tally, long, ("state", "samples", "zarrs", "network"))


@drill("fuzz-run", "any command line or half-done run ends with a status and counts no row twice")
def fuzz_run(tally: Tally, long: bool) -> None:
    fuzzing(tally, long, ("progress", "arguments"))


@drill("fuzz-arrays", "any DLPack capsule or array interface reads as in NumPy, and is freed once")
def fuzz_arrays(tally: Tally, long: bool) -> None:
    fuzzing(tally, long, ("capsules", "interfaces"))


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[0] == "--keep":
        keep(Path(arguments[1]) if len(arguments) > 1 else None)
        return
    name = arguments.pop(0)
    options = [word for word in arguments if word.startswith("-")]
    folders = [word for word in arguments if not word.startswith("-")] or [tempfile.mkdtemp()]
    folder = Path(folders.pop(0))
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    if (CORPUS / name).is_dir():
        folders.append(str(CORPUS / name))
    fuzz(name, folder, [*options, str(folder / "corpus"), *folders])


if __name__ == "__main__":
    main()
