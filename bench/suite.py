"""The benchmark suite: this library beside its peers, in one run on one machine.

The JSON report has "machine", "limits" and "families"; the "rows" of a family are one result each,
named op/implementation/dtype/shape: "seconds" and "ratio" (their time over ours) are medians of
interleaved pairs with "_quartiles", "share" is "work" per second over the "limit" measured
meanwhile, "error" the checked distance from the truth, "peak_bytes" the memory above the inputs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import machine
from .harness import Cell, Family, Run
from .machine import Limits
from .report import Report, Table

PEERS = {  # modules by the names of their packages
    "numpy": "numpy",
    "scipy": "scipy.linalg",
    "torch": "torch",
    "scikit-learn": "sklearn",
    "lapx": "lap",
    "elkai": "elkai",
    "fast_tsp": "fast_tsp",
    "pymanopt": "pymanopt",
    "ml_dtypes": "ml_dtypes",
    "threadpoolctl": "threadpoolctl",
}
BUDGET, QUICK_BUDGET = 5.0, 0.25  # seconds a cell


@dataclass(frozen=True)
class Entry:
    """Where a family is, and what it compares."""

    module: str
    about: str
    default: bool = True


FAMILIES = {
    "covariance": Entry("bench_covariance", "streaming second moments, and batches of 32 rows"),
    "eigh_batch": Entry("bench_eigh", "many small symmetric eigenproblems"),
    "eigh": Entry("bench_eigh", "one symmetric eigenproblem, n = 256 to 4096"),
    "leading": Entry("bench_eigh", "the k largest eigenpairs"),
    "pipeline": Entry("bench_pipeline", "from samples to the descrambler, and where time goes"),
    "many": Entry("bench_pipeline", "a batch of heads or layers"),
    "structured": Entry("bench_pipeline", "n = 4096, time and memory"),
    "models": Entry(
        "bench_models", "whole models: hooks, a convolution, a 10 GB file (minutes)", default=False
    ),
    "descramble": Entry(
        "bench_descramble", "one real layer, beside iterative solvers (a minute)", default=False
    ),
    "assignment": Entry(
        "bench_assignment", "linear assignment, beside scipy and lapx (minutes)", default=False
    ),
    "permutation": Entry(
        "bench_permutation", "neuron orders, quadratic assignment (half an hour)", default=False
    ),
    "linking": Entry(
        "bench_linking", "observing, in the C++, C and libtorch examples (minutes)", default=False
    ),
}


def family(name: str) -> Family:
    """Load one family; its peers are imported with it."""
    module = importlib.import_module(f".{FAMILIES[name].module}", __package__)
    return cast("Family", module.FAMILIES[name])


def find_cell(op: str, dtype: str, shape: str) -> Cell:
    """Return the problem of that name, from whichever family has it."""
    for name, entry in FAMILIES.items():
        if entry.default:
            for quick in (False, True):
                for cell in family(name).cells(quick):
                    if (cell.op, cell.dtype, cell.shape) == (op, dtype, shape):
                        return cell
    raise LookupError(f"{op}/{dtype}/{shape}")


def chosen(only: str | None) -> list[str]:
    """Names of the families to run; a wrong one is an error that says which exist."""
    if only is None:
        return [name for name, entry in FAMILIES.items() if entry.default]
    names = list(FAMILIES) if only == "all" else only.split(",")
    wrong = [name for name in names if name not in FAMILIES]
    if wrong:
        raise argparse.ArgumentTypeError(
            f"no benchmark {', '.join(wrong)}; there are {', '.join(FAMILIES)}, and all"
        )
    return names


def parser() -> argparse.ArgumentParser:
    """Command line of the suite."""
    width = max(map(len, FAMILIES))
    listing = "\n".join(
        f"  {name:<{width}}  {entry.about}" + ("" if entry.default else "; only when named")
        for name, entry in FAMILIES.items()
    )
    result = argparse.ArgumentParser(
        prog="descramble-fast bench",
        description="Time this library beside its peers; every result is checked first.",
        epilog=f"benchmarks:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--only", metavar="NAMES", type=chosen, help="some of them, comma-separated, or all")
    add("--quick", action="store_true", help="small problems, few repeats: under a minute")
    add("--json", type=Path, metavar="FILE", help="write the results to FILE")
    add("--plots", type=Path, metavar="FOLDER", help="draw a figure for each family")
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--budget", type=float, metavar="SECONDS", help=f"a problem's time (default {BUDGET:g})")
    return result


def run_family(name: str, settings: Run) -> Report | None:
    """Run one family; None, and a line that says so, where a package that it needs is missing."""
    try:
        found = family(name)
    except ModuleNotFoundError as error:
        print(f"{name}: left out, needs {error.name}; pip install 'descramble-fast[bench]'")
        return None
    return found.run(settings)


def print_table(title: str, table: Table, markdown: bool) -> None:
    """Print one table under its name."""
    print(f"\n{title}\n\n{table.markdown() if markdown else table.text()}")


def print_tables(name: str, part: Report, markdown: bool) -> None:
    """Print the tables of one family and its notes."""
    for title, table in family(name).tables(part).items():
        print_table(title, table, markdown)
    print("", *(textwrap.fill(note, 100) for note in part["notes"]), sep="\n", flush=True)


def announce(facts: dict[str, Any], missing: Sequence[str]) -> None:
    """Print the machine data, and what is left out."""
    machine.print_machine(facts)
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    sys.stdout.flush()


def save(report: Report, path: Path | None) -> None:
    """Write the report, if there is a place for it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks and print, write and draw their results."""
    options = parser().parse_args(arguments)
    missing = [name for name, module in PEERS.items() if machine.optional(module) is None]
    facts = machine.describe((*PEERS, "descramble_fast"))
    announce(facts, missing)
    budget = options.budget or (QUICK_BUDGET if options.quick else BUDGET)
    settings = Run(options.quick, budget, Limits())
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report: Report = {"date": date, "quick": options.quick, "budget": budget, "machine": facts}
    report |= {"limits": {}, "families": {}}
    save(report, options.json)  # a place that cannot be written is told now
    for name in options.only or chosen(None):
        part = run_family(name, settings)
        if part is not None:
            report["families"][name] = part
            report["limits"] = settings.limits.summary()
            print_tables(name, part, options.markdown)
            save(report, options.json)
    if report["limits"]:
        print_table("limits", machine.limit_table(report["limits"]), options.markdown)
    if options.plots:
        from . import plots

        plots.write(report, options.plots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
