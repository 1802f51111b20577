"""Runs jobs of the GPU benchmark in a process of its own, which may crash or hang.

It first says on standard output what the device is, {"device": ...}, or {"no_device": why}. Jobs
come on standard input, one JSON line each: {"name", "module", "function", "arguments"}. Each is
answered by a line {"name", "status", ...}. After an error that is no wrong answer the process ends,
since the device may be left unusable.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any, TextIO

import descramble_fast as df

from . import machine
from .gpu_arrays import Arrays, NotRunError, available


def probe(arrays: Arrays, cuda: str) -> dict[str, Any]:
    """Describe the device, the driver and the libraries."""
    facts: dict[str, Any] = {"cuda": cuda, "arrays": arrays.name}
    torch, cupy = machine.optional("torch"), machine.optional("cupy")
    if torch is not None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["torch"] = {
            "device": properties.name,
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    if cupy is not None and cupy.cuda.is_available():
        facts["cupy"] = {"runtime": cupy.cuda.runtime.runtimeGetVersion()}
    try:
        facts["free_memory"], facts["total_memory"] = arrays.memory()
    except NotRunError:
        facts["free_memory"] = facts["total_memory"] = None
    return facts


def answer(job: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], bool]:
    """Run one job; what became of it, and whether the process is still to be trusted."""
    start = time.perf_counter()
    sound = True
    result: dict[str, Any] = {"name": job["name"], "status": "passed"}
    try:
        module = importlib.import_module(job["module"], __package__)
        result["facts"] = getattr(module, job["function"])(arrays, **job["arguments"])
        arrays.synchronize()
    except NotRunError as reason:
        result |= {"status": "not run", "reason": str(reason)}
    except SystemExit as wrong:  # how the benchmarks refuse a wrong answer
        result |= {"status": "failed", "reason": str(wrong)}
    except Exception as error:
        traceback.print_exc()
        sound = False
        result |= {"status": "error", "reason": f"{type(error).__name__}: {error}"[:2000]}
    result["seconds"] = time.perf_counter() - start
    if sound:
        gc.collect()
        arrays.release()
    return result, sound


def work(jobs: Iterable[str], arrays: Arrays, to: TextIO) -> None:
    """Answer one job after the other, until one leaves the device in doubt."""
    for line in jobs:
        result, sound = answer(json.loads(line), arrays)
        print(json.dumps(result, default=str), file=to, flush=True)
        if not sound:
            return


def main() -> int:
    """Answer the jobs that are given; 2 where there is no device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", help="whose arrays to use; the best that there is")
    name = parser.parse_args().library
    # What libraries print must not end up among the answers.
    to = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    found = [arrays for arrays in available() if name in (None, arrays.name)]
    config = df.show_config("dict") or {}
    if not df.cuda_available():
        print(json.dumps({"no_device": config["cuda"]}), file=to, flush=True)
        return 2
    print(json.dumps({"device": probe(found[0], config["cuda"])}), file=to, flush=True)
    work(sys.stdin, found[0], to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
