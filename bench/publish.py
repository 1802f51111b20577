"""Fill the tables and figures of the documentation from the JSON of the benchmarks.

Text between ``<!-- table: NAME -->`` and ``<!-- end -->`` is replaced; no figure is typed. Run
``python -m bench.publish`` in a copy of the repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import machine, plots, suite
from .report import Report

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read(path: Path) -> Report:
    """Read one report."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def tables(report: Report) -> dict[str, str]:
    """Markdown of a report by the name of its place: every table, and each family's notes."""
    made: dict[str, str] = {}
    where = machine.machine_line(report["machine"])
    for name, part in report["families"].items():
        made |= {
            title: table.markdown() for title, table in suite.family(name).tables(part).items()
        }
        made[f"{name}-notes"] = "\n".join(f"- {note}" for note in part["notes"]) + f"\n\n{where}"
    if report.get("limits"):
        made["limits"] = machine.limit_table(report["limits"]).markdown()
        made["machine"] = f"{where} {machine.blas_line(report['machine'])}"
    return made


def filled(text: str, made: dict[str, str]) -> str:
    """Replace every marked table; a marker without a table keeps its content."""

    def replace(found: re.Match[str]) -> str:
        table = made.get(found["name"])
        return found[0] if table is None else f"{found[1]}\n{table}\n\n{found[3]}"

    return BLOCK.sub(replace, text)


def main() -> None:
    """Rewrite the pages and draw the figures."""
    made: dict[str, str] = {}
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        report = read(path)
        made |= tables(report)
        plots.write(report, ROOT / "docs" / "images")
    for name in ("linking", "models", "performance", "permutations"):
        page = ROOT / "docs" / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text, made), encoding="utf-8")


if __name__ == "__main__":
    main()
