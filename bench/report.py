"""Tables, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "descramble_fast"
Row = dict[str, Any]
Report = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Headings and lines, of which the first `left` columns are words."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 2

    def text(self) -> str:
        """Aligned plain text."""
        everything = [self.headings, *self.lines]
        widths = [max(map(len, column)) for column in zip(*everything, strict=True)]

        def write(line: Sequence[str]) -> str:
            padded = [
                text.ljust(width) if i < self.left else text.rjust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ]
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([write(self.headings), rule, *map(write, self.lines)])

    def markdown(self) -> str:
        """Write it for a document."""
        rule = "|" + "---|" * self.left + "---:|" * (len(self.headings) - self.left)
        lines = ["| " + " | ".join(line) + " |" for line in (self.headings, *self.lines)]
        return "\n".join([lines[0], rule, *lines[1:]])


def by_cell(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of the same problem together, in the order of the run."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["dtype"], row["shape"]), []).append(row)
    return list(groups.values())


def cell_text(row: Row) -> str:
    """Time, spread, share of the limit, and ratio to this library."""
    low, high = row["seconds_quartiles"]
    parts = [duration(row["seconds"])]
    if row["runs"] > 1:
        parts[0] += f" ±{50 * (high - low) / row['seconds']:.0f}%"
    if row["share"] is not None:
        parts.append(f"{100 * row['share']:.3g}%")
    if row["impl"] != OURS:
        parts.append(times(row["ratio"]))
    return " / ".join(parts)


def cell_tables(rows: list[Row]) -> dict[str, Table]:
    """One table of times for each operation, and one of peak memory where that was measured."""
    tables = {}
    for op in dict.fromkeys(row["op"] for row in rows):
        groups = by_cell(row for row in rows if row["op"] == op)
        names = list(dict.fromkeys(row["impl"] for group in groups for row in group))
        lines = []
        for group in groups:
            texts = {row["impl"]: cell_text(row) for row in group}
            error = group[0]["error"]
            words = [group[0]["dtype"], group[0]["shape"]]
            lines.append([*words, *(texts.get(name, "-") for name in names), f"{error or 0:.0e}"])
        tables[op] = Table(["precision", "shape", *names, "our error"], lines)
    measured = [row for row in rows if row["peak_bytes"] is not None]
    if measured:
        lines = [
            [row["op"], row["dtype"], row["shape"], row["impl"], megabytes(row["peak_bytes"])]
            for row in measured
        ]
        headings = ["operation", "precision", "shape", "implementation", "peak memory"]
        tables[f"{measured[0]['op']}-memory"] = Table(headings, lines, left=4)
    return tables


def megabytes(size: float) -> str:
    """Write a size in memory."""
    return f"{size / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Write a time with a unit and three figures."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def times(value: float) -> str:
    """Write a ratio so that it is read without an exponent."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.2f}x"


def verdict(met: bool | None) -> str:
    """Say whether a target was met, in one word."""
    return {True: "pass", False: "SHORT", None: "-"}[met]
