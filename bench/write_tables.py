"""Write the tables of docs/permutations.md from the JSON of the benchmarks.

Text between ``<!-- table: NAME -->`` and ``<!-- end -->`` is replaced; no figure is typed.

Run ``python bench/write_tables.py`` after the benchmarks have written their results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_assignment
import bench_permutation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(path: Path) -> dict[str, Any]:
    """Read one report."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def filled(text: str, tables: dict[str, str]) -> str:
    """Replace every marked table; a marker without a table is an error."""

    def replace(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found['name']]}\n\n{found[3]}"

    return BLOCK.sub(replace, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "permutations.md")
    parser.add_argument("--assignment", type=Path, default=RESULTS / "assignment.json")
    parser.add_argument("--permutation", type=Path, default=RESULTS / "permutation.json")
    options = parser.parse_args(arguments)
    tables = bench_assignment.tables(read(options.assignment))
    tables |= bench_permutation.tables(read(options.permutation))
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(filled(text, tables), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
