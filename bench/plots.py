"""Draw a figure for each family of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .report import OURS, Report, Row, by_cell, duration

DPI = 150
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
RED, GREY = "#d62728", "#444444"
IMPLEMENTATIONS = {  # by the beginning of the name: colour and marker
    f"{OURS}_": ("#ff9896", "D"),
    OURS: (RED, "o"),
    "numpy": (GREY, "s"),
    "scipy_evr": ("#17becf", "v"),
    "scipy": ("#1f77b4", "^"),
    "torch": ("#ff7f0e", "X"),
    "sklearn": ("#2ca02c", "P"),
}


def look(name: str) -> tuple[str, str]:
    """Colour and marker of an implementation."""
    return next(value for start, value in IMPLEMENTATIONS.items() if name.startswith(start))


# ---------------------------------------------------------------------------------- cells


def curves(rows: list[Row]) -> Iterable[tuple[str, str, list[Row]]]:
    """Rows that differ in one number, of which there are three or more: title, its name, rows."""
    for op, dtype in dict.fromkeys((row["op"], row["dtype"]) for row in rows):
        group = [row for row in rows if (row["op"], row["dtype"]) == (op, dtype)]
        keys = [key for key in group[0]["size"] if key != "count"]
        for key in keys:
            others = [k for k in keys if k != key]
            fixed = [tuple(row["size"][k] for k in others) for row in group]
            [(most, _)] = Counter(fixed).most_common(1)
            kept = [row for row, values in zip(group, fixed, strict=True) if values == most]
            if len({row["size"][key] for row in kept}) > 2:
                shown = "".join(f", {k} = {v}" for k, v in zip(others, most, strict=True))
                yield f"{op}, {dtype}{shown}", key, kept


def draw_lines(axes: Axes, rows: list[Row], key: str, value: Callable[[Row], float | None]) -> None:
    """Plot one value of every implementation against a size."""
    for name in reversed(dict.fromkeys(row["impl"] for row in rows)):
        found = ((row["size"][key], value(row)) for row in rows if row["impl"] == name)
        points = sorted((x, y) for x, y in found if y is not None)
        colour, marker = look(name)
        mine = name == OURS
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=5 if mine else 4,
            linewidth=2.2 if mine else 1.2,
            label=name,
        )
    sizes = sorted({row["size"][key] for row in rows})
    axes.set_xscale("log", base=2)
    shown = [size for size in sizes if size & (size - 1) == 0] or sizes
    axes.set_xticks(shown, [str(size) for size in shown], rotation=45)
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.6)


VALUES: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("seconds", "log", lambda row: row["seconds"] / row["size"].get("count", 1)),
    ("share of the limit, %", "linear", lambda row: row["share"] and 100 * row["share"]),
    ("time / ours", "log", lambda row: row["ratio"]),
)


def draw_growth(rows: list[Row]) -> Figure | None:
    """Draw time, share of the limit and ratio against the size, a column for each curve."""
    columns = list(curves(rows))
    if not columns:
        return None
    values = [v for v in VALUES if any(v[2](row) is not None for row in rows)]
    width, height = max(7.0, 3.1 * len(columns)), 2.6 * len(values) + 0.6
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(len(values), len(columns), squeeze=False, sharex="col", sharey="row")
    for column, (title, key, kept) in enumerate(columns):
        for line, (label, scale, value) in enumerate(values):
            axes = grid[line, column]
            draw_lines(axes, kept, key, value)
            axes.set_yscale(scale)
            axes.yaxis.set_minor_formatter(NullFormatter())
            if column == 0:
                axes.set_ylabel(
                    label + (" a matrix" if line == 0 and "count" in kept[0]["size"] else "")
                )
        grid[0, column].set_title(title.replace(", ", "\n", 1), fontsize=9.5)
        grid[-1, column].set_xlabel(key)
    for axes in grid[-1]:
        axes.axhline(1, color=RED, linewidth=0.8, linestyle=":")
        plain_numbers(axes)
    add_legend(figure, grid.flat)
    return figure


def add_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, below them."""
    known: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    names = sorted(known, key=lambda name: (not name.startswith(OURS), name))
    figure.legend(
        [known[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(6, len(names)),
        frameon=False,
    )


def plain_numbers(axes: Axes) -> None:
    """Label a logarithmic axis with numbers as they are spoken."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 300 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")


def draw_bars(rows: list[Row]) -> Figure:
    """Draw the time of every implementation, a panel for each problem, the ratio beside it."""
    groups = by_cell(rows)
    heights = [len(group) + 1.2 for group in groups]
    figure = Figure(figsize=(8, 0.34 * sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for axes, group in zip(panels.flat, groups, strict=True):
        for place, row in enumerate(group):
            axes.barh(place, row["seconds"], 0.75, color=look(row["impl"])[0])
            text = duration(row["seconds"])
            if row["impl"] != OURS:
                text += f", {row['ratio']:.2f}x"
            axes.annotate(
                text,
                (row["seconds"], place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(group)), [row["impl"] for row in group])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(row["seconds"] for row in group))
        axes.set_title(f"{group[0]['op']}, {group[0]['dtype']}, {group[0]['shape']}", loc="left")
    panels.flat[-1].set_xlabel("seconds")
    return figure


def draw(name: str, part: Report) -> Figure | None:
    """Draw one family, if it can be drawn."""
    if name in ("assignment", "permutation"):
        from . import plot_permutations

        return plot_permutations.DRAW[name](part)
    rows = part["rows"]
    if not rows or "op" not in rows[0]:
        return None
    return draw_growth(rows) or draw_bars(rows)


def write(report: Report, folder: Path) -> None:
    """Write bench-NAME.png for every family of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, part in report["families"].items():
            figure = draw(name, part)
            if figure is not None:
                figure.savefig(folder / f"bench-{name}.png", dpi=DPI)
