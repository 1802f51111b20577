"""Figures of the permutation benchmarks."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from . import bench_assignment, bench_permutation
from .plots import GREY, RED
from .report import OURS, Report, duration

SOLVERS = {
    OURS: RED,
    "scipy": GREY,
    "lapjv": "#9467bd",
    "lapjvx": "#8c564b",
    "lapjvc": "#e377c2",
    "lapjvs": "#2ca02c",
    "lapjvh": "#1f77b4",
    "lapjvr": "#ff7f0e",
}
MARKERS = dict(zip(SOLVERS, "osv^<>DX", strict=True))
INSTANCE_METHODS = (("", OURS, "o"), ("faq_", "scipy FAQ", "s"), ("2opt_", "scipy 2opt", "^"))


# ----------------------------------------------------------------------------- assignment


def draw_times(axes: Axes, cells: list[dict[str, Any]]) -> None:
    """Plot the times of all solvers on one family of costs against n."""
    for name, colour in SOLVERS.items():
        known = [
            (cell["n"], row["seconds"])
            for cell in cells
            for row in cell["rows"]
            if row["method"] == name and row["seconds"] is not None
        ]
        if not known:
            continue
        mine = name == OURS
        axes.plot(
            *zip(*known, strict=True),
            color=colour,
            marker=MARKERS[name],
            markersize=6 if mine else 4,
            linewidth=2.5 if mine else 1.2,
            zorder=3 if mine else 2,
            label=name,
        )
    sizes = sorted({cell["n"] for cell in cells})
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


def draw_batch(axes: Axes, batch: dict[str, Any]) -> None:
    """Plot the time of one batch by every batched solver."""
    rows = sorted(batch["rows"], key=lambda row: -float(row["seconds"]))
    names = [row["method"] for row in rows]
    seconds = [1e3 * row["seconds"] for row in rows]
    colours = [SOLVERS.get(name.split("_batch")[0].split()[0], "#444444") for name in names]
    axes.barh(range(len(rows)), seconds, color=colours, height=0.65)
    axes.set_yticks(range(len(rows)), [name.replace("_batch", "") for name in names])
    for place, value in enumerate(seconds):
        axes.annotate(
            duration(1e-3 * value),
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, 1.3 * max(seconds))


def draw_assignment(report: Report) -> Figure:
    """Draw times of single problems by family, and of the batch; a row for each precision."""
    families = bench_assignment.TARGETED
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    grid = figure.subplots(2, len(families) + 1, width_ratios=[1] * len(families) + [0.9])
    for line, dtype in zip(grid, ("float64", "float32"), strict=True):
        for axes, family in zip(line, families, strict=False):
            cells = [c for c in report["cells"] if c["family"] == family and c["dtype"] == dtype]
            draw_times(axes, cells)
            axes.set_title(f"{family}, {dtype}")
        line[0].set_ylabel("seconds")
        batch = next(b for b in report["batches"] if b["dtype"] == dtype)
        draw_batch(line[-1], batch)
        line[-1].set_title(f"{batch['count']:,} x {batch['n']} x {batch['n']}, {dtype}")
    for axes in grid[1, :-1]:
        axes.set_xlabel("n")
    for axes in grid[:, -1]:
        axes.set_xlabel("milliseconds")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


# ---------------------------------------------------------------------------- permutation


def short(layer: str) -> str:
    """Layer name for an axis."""
    return "DEER" if layer.startswith("DEER") else "digits"


def draw_tours(axes: Axes, problems: list[dict[str, Any]]) -> None:
    """Plot the time of each solver of first differences, its cost above the best beside it."""
    methods = (
        (OURS, "#d62728", (OURS,)),
        ("LKH (elkai)", "#1f77b4", (bench_permutation.LKH, bench_permutation.LKH_TIMED)),
        ("fast_tsp", "#8a8a8a", (bench_permutation.FAST_TSP,)),
    )
    height = 0.27
    longest = max(r["seconds"] for p in problems for r in p["rows"] if r["seconds"])
    for shift, (label, colour, names) in enumerate(methods):
        for place, problem in enumerate(problems):
            rows = bench_permutation.by_method(problem)
            best = bench_permutation.best_cost(list(rows.values()))
            row = next((rows[name] for name in names if name in rows), None)
            if row is None:
                continue
            y = place + (shift - 1) * height
            axes.barh(y, row["seconds"], height * 0.92, color=colour, label=label)
            axes.annotate(
                f"+{bench_permutation.percent(row['cost'] / best - 1)}",
                (row["seconds"], y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
    ticks = [f"{short(p['layer'])} {p['n']}, {p['operator'].partition(', ')[2]}" for p in problems]
    axes.set_yticks(range(len(problems)), ticks)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds", title="First difference: time, and cost above best")
    axes.set_xlim(right=4 * longest)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(
        unique.values(),
        unique.keys(),
        loc="upper center",
        bbox_to_anchor=(0.5, -0.08),
        ncols=3,
        frameon=False,
    )


def draw_fourier(axes: Axes, problems: list[dict[str, Any]]) -> None:
    """Plot the cost of each method on the Fourier operators, relative to the given order's."""
    names: list[str] = []
    y = 0.0
    places = []
    for problem in problems:
        for row in bench_permutation.by_method(problem).values():
            mine = row["method"] == OURS
            share = row["cost"] / problem["initial"]
            axes.barh(y, share, 0.75, color="#d62728" if mine else "#9bb7d4")
            time = "" if row["seconds"] is None else f" ({duration(row['seconds'])})"
            axes.annotate(
                f"{share:.3f}{time}",
                (share, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
            places.append(y)
            names.append(f"{short(problem['layer'])} {problem['n']}: {row['method']}")
            y += 1
        y += 0.6
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
    right = max(row["cost"] / p["initial"] for p in problems for row in p["rows"] if row["cost"])
    axes.set_xlim(0, 1.35 * right)
    axes.set(xlabel="cost / cost of the given order", title="Fourier, order 2: cost (and time)")


def draw_instances(axes: Axes, instances: list[dict[str, Any]]) -> None:
    """Plot the gap of every published instance."""
    colours = ("#d62728", "#1f77b4", "#8a8a8a")
    for (prefix, label, marker), colour in zip(INSTANCE_METHODS, colours, strict=True):
        gaps = [100 * row[f"{prefix}gap"] for row in instances]
        mean = sum(gaps) / len(gaps)
        text = f"{label}, mean {mean:.2f}%"
        axes.plot(gaps, marker, color=colour, label=text, clip_on=False, zorder=3)
    axes.set_xticks(range(len(instances)), [row["instance"] for row in instances], rotation=60)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("above best known, %")
    axes.set_title("QAPLIB, default settings", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False)


def draw_permutation(report: Report) -> Figure:
    """Draw tours, Fourier orders, and published instances."""
    figure = Figure(figsize=(13, 10), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2.1, 1))
    left, right = (figure.add_subplot(grid[0, column]) for column in range(2))
    tours = [p for p in report["orders"] if p["operator"].startswith("first")]
    draw_tours(left, tours)
    draw_fourier(right, [p for p in report["orders"] if p["operator"].startswith("Fourier")])
    draw_instances(figure.add_subplot(grid[1, :]), report["qaplib"])
    return figure


DRAW = {"assignment": draw_assignment, "permutation": draw_permutation}
