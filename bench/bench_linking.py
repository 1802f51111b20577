"""What observing costs in programs that link the library: the C++, C and libtorch examples.

They are built as any program is, against the package that is installed, and time themselves.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .harness import Family, Run, require
from .report import Report, Table, duration

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "cpp"
WIDTH, QUICK_WIDTH = 4096, 512
BATCH, BATCHES, EVERY = 512, 16, 16
PAIRS, QUICK_PAIRS = 7, 3
TARGET = 0.1


def output(*command: str | Path) -> str:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> bool:
    """Build the examples; whether libtorch's is among them."""
    require(EXAMPLES.is_dir(), "linking: needs examples/cpp, from a copy of the repository")
    package = output(sys.executable, "-m", "descramble_fast", "--cmake-dir").strip()
    options = [f"-Ddescramble_fast_DIR={package}"]
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.origin is not None:
        options.append(f"-DTorch_DIR={Path(torch.origin).parent / 'share' / 'cmake' / 'Torch'}")
    output("cmake", "-S", EXAMPLES, "-B", folder, *options)
    output("cmake", "--build", folder)
    return torch is not None


def run(settings: Run) -> Report:
    """Build and run them one after another."""
    width = QUICK_WIDTH if settings.quick else WIDTH
    pairs = QUICK_PAIRS if settings.quick else PAIRS
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        with_torch = build(Path(folder))
        model = str(Path(folder) / "model.safetensors")
        n, batch, batches, every, count = map(str, (width, BATCH, BATCHES, EVERY, pairs))
        sizes = ["--batch", batch, "--batches", batches, "--every", every, "--time", count]
        commands = [
            ["mlp", "--random", n, model],
            ["mlp", model, *sizes],
            ["observer", n, batch, batches, every, count],
            *([["libtorch", n, batch, batches, every, count]] if with_torch else []),
        ]
        for name, *arguments in commands:
            lines = output(Path(folder) / name, *arguments).splitlines()
            rows += [json.loads(line) for line in lines]
    notes = [
        f"Two layers of {width} neurons, {BATCHES} batches of {BATCH} samples a run; the hidden "
        f"layer of every {EVERY}th batch is observed, on the threads of the inference. Overhead is "
        "the time above the plain run, the median and quartiles of interleaved pairs of runs.",
    ]
    return {"rows": rows, "notes": notes}


def tables(part: Report) -> dict[str, Table]:
    """One table, with the target beside what was measured."""
    lines = [
        [
            row["example"],
            row["dtype"],
            str(row["threads"]),
            str(row["pairs"]),
            duration(row["plain_seconds"]),
            duration(row["observed_seconds"]),
            f"{100 * row['overhead']:.1f}%",
            " to ".join(f"{100 * end:.1f}%" for end in row["overhead_quartiles"]),
            f"≤ {100 * TARGET:.0f}%",
        ]
        for row in part["rows"]
    ]
    headings = ["example", "precision", "threads", "pairs", "plain", "observed"]
    return {"linking": Table([*headings, "overhead", "quartiles", "target"], lines)}


FAMILIES = {"linking": Family(run, tables)}
