"""The table of docs/reliability.md, made from the drills' results; no figure is typed."""

from __future__ import annotations

import importlib
import re

from drill import DRILLS, HERE, Record

PAGE = HERE.parents[1] / "docs" / "reliability.md"
BLOCK = re.compile(r"(<!-- table: drills -->\n).*?(<!-- end -->)", re.DOTALL)


def load() -> None:
    """Register every drill of this folder."""
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in ("__main__", "drill", "page") and not path.stem.startswith("test_"):
            importlib.import_module(path.stem)


def table() -> str:
    """Markdown of all results, a row for each drill."""
    rows = [
        "| drill | what must hold | trials | failures before mending | failures now | repeat by |",
        "|---|---|---:|---:|---:|---|",
    ]
    notes, machines = [], set()
    for name, each in sorted(DRILLS.items(), key=lambda item: (item[1].group, item[0])):
        record = Record.read(name)
        command = f"`python tests/drills --long {name}`"
        if record is None:
            rows.append(f"| {name} | {each.promise} | not run | | | {command} |")
            continue
        if not record.long:
            command = command.replace("--long", "--save")
        before = record.before
        earlier = f"{before['failed']:,} of {before['trials']:,}" if before else "0"
        rows.append(
            f"| {name} | {each.promise} | {record.trials:,} | {earlier} "
            f"| {record.failed:,} | {command} |"
        )
        figures = "".join(f"; {key}: {value}" for key, value in record.figures.items())
        part = "long" if record.long else "quick part only"
        notes.append(f"- **{name}**, {part}, {record.date}, {record.seconds:,.0f} s{figures}")
        machines.add(record.machine)
    return "\n".join([*rows, "", *notes, "", *(f"{machine}." for machine in sorted(machines))])


def filled(text: str) -> str:
    """Replace the table in a page's text."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table()}\n\n{found[2]}", text)


def write() -> None:
    """Rewrite the page."""
    if PAGE.exists():
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
