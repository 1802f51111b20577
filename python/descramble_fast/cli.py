"""The command line's commands."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

import descramble_fast as df
from descramble_fast import demo as work

WIDTH = 100


@click.group(name="descramble-fast")
@click.version_option(df.__version__, prog_name="descramble-fast")
def descramble_fast() -> None:
    """Exact descramblers: orthogonal matrices that make trained layers readable."""


@descramble_fast.command()
def info() -> None:
    """Show versions, the LAPACK in use, threads and the CUDA backend."""
    df.show_config()


@descramble_fast.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="figures",
    show_default=True,
    help="Folder for the figures and summary.json.",
)
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path),
    help="safetensors or npz with W1 (n1, m), W2 (n2, n1) and, as the control, W1_untrained and "
    "W2_untrained. Default: a trained DEER network.",
)
@click.option(
    "--samples",
    "samples_file",
    type=click.Path(path_type=Path),
    help="safetensors, npz or npy with inputs (N, m). Default: held-out DEER traces.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Rows at a time.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: as the environment allows.")
def demo(
    output: Path,
    network_file: Path | None,
    samples_file: Path | None,
    batch_size: int,
    threads: int | None,
) -> None:
    """Descramble a two-layer network beside its control, and draw both.

    The network is y = g(W2 f(W1 x)). Streams the samples, finds the descramblers of both layers and
    an order of layer 1's neurons, prints what they achieve and what the control shows, and writes
    layer1.png, layer2.png, components.png, order.png and summary.json.
    """
    from descramble_fast import plot

    if threads is not None:
        df.set_num_threads(threads)
    try:
        network, samples = work.load_network(network_file), work.open_samples(samples_file)
        batches = -(-samples.shape[0] // batch_size)
        progress = partial(tqdm, total=batches, desc="streaming", unit="batch", disable=None)
        found = work.analyse(network, samples, batch_size=batch_size, progress=progress)
    except work.DemoError as error:
        raise click.ClickException(str(error)) from error
    _report(found)
    try:
        output.mkdir(parents=True, exist_ok=True)
        figures = plot.draw(found, output)
        text = json.dumps(work.summary(found), indent=2, ensure_ascii=False, allow_nan=False)
        (output / "summary.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--output: {output}: {error.strerror or error}") from error
    names = [figure.name for figure in figures] + ["summary.json"]
    click.echo(f"written  {', '.join(names)} in {output}")


@descramble_fast.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Time this library beside its peers; its own --help tells what there is."""
    # In a process of its own: its OpenBLAS must not be pinned by this one's environment.
    sys.exit(subprocess.call([sys.executable, "-m", "descramble_fast.bench", *arguments]))


def _report(found: work.Analysis) -> None:
    """Print what was read, the tables, and what the control shows."""
    network, samples = found.network, found.samples
    W1, W2 = network.trained.W1.shape, network.trained.W2.shape
    _paragraph(
        "network",
        f"{network.file}: y = g(W2 f(W1 x)), W1 {W1}, W2 {W2}, f = {network.activation}, no biases",
    )
    _paragraph(
        "samples",
        f"{samples.file}: {samples.tensor} {samples.shape} {samples.dtype}, streamed in batches of "
        f"{found.batch_size}",
    )
    _paragraph("control", network.control_text)
    _paragraph(
        "method",
        f"min tr(L P C Pᵀ) over orthogonal P, L = {found.trained.layers[0].operator}; layer 1 by "
        "the second moment of W1 x, layer 2 by that of [α W2ᵀ, f(W1 x)]",
    )
    click.echo()
    pairs = zip(found.trained.layers, found.control.layers, strict=True)
    layers = [layer for pair in pairs for layer in pair]
    _roughness_table(layers)
    _weight_table(layers)
    _held_out_table(layers)
    _order_table((found.trained, found.control))
    for name, text in work.reading(found).items():
        _paragraph(name, text)
    click.echo()


def _paragraph(name: str, text: str) -> None:
    indent = " " * 12
    click.echo(textwrap.fill(text, WIDTH, initial_indent=f"{name:<12}", subsequent_indent=indent))


def _roughness_table(layers: Iterable[work.Layer]) -> None:
    columns = ("layer", "tap", "network", "neurons", "samples", "before", "after", "bound")
    rows = [
        (
            layer.layer,
            layer.tap,
            layer.network,
            str(layer.neurons),
            str(layer.samples),
            *_numbers(".4g", layer.initial_cost, layer.cost, layer.bound),
            f"{layer.orthogonality_error:.0e}",
            f"{layer.milliseconds:.2f}",
        )
        for layer in layers
    ]
    _table("Roughness of the signals", (*columns, "|PPᵀ-I|", "solve/ms"), rows)


def _weight_table(layers: Sequence[work.Layer]) -> None:
    n = layers[0].neurons
    low, high = work.band(n)
    title = (
        "Weights along their neurons: Rel norm, at most 2, and share of the energy outside the "
        f"central band\n(rows {low} to {high - 1} of the {n} of the shifted spectrum; "
        f"{1 - (high - low) / n:.3f} of white noise lies outside)"
    )
    columns = ("layer", "weights", "network", "Rel norm raw", "descrambled")
    rows = [
        (
            layer.layer,
            {"1": "W1, P W1", "2": "W2, W2 Pᵀ"}[layer.layer],
            layer.network,
            *_numbers(".3f", layer.raw.rel_norm, layer.descrambled.rel_norm),
            *_numbers(".3f", layer.raw.outside, layer.descrambled.outside, layer.least_outside),
        )
        for layer in layers
    ]
    _table(title, (*columns, "outside raw", "descrambled", "least possible"), rows)


def _held_out_table(layers: Iterable[work.Layer]) -> None:
    rows = []
    for layer in layers:
        test = layer.held_out
        costs = _numbers(".4g", test.raw, test.transferred, test.optimum)
        rows.append((layer.layer, layer.network, *costs, f"{test.ratio:.3f}"))
    _table(
        "Held out: P from the first half of the samples, roughness of the second half",
        ("layer", "network", "raw", "with that P", "optimum", "ratio to optimum"),
        rows,
    )


def _order_table(networks: Sequence[work.NetworkAnalysis]) -> None:
    rows = [
        (
            found.name,
            *_numbers(".4g", found.order.initial_cost, found.order.cost),
            *_numbers(".4g", found.order.tree_bound, found.order.bound),
            f"{found.order.remaining:.4f}",
            f"{found.output_difference:.0e}",
            f"{found.order.milliseconds:.0f}",
        )
        for found in networks
    ]
    _table(
        f"Neurons of layer 1 reordered: roughness of W1 x by {networks[0].order.operator}\n"
        "(orders at least: Held and Karp's 1-tree bound; outputs: largest difference over the "
        "largest)",
        (
            *("network", "given order", "reordered", "orders at least", "orthogonal at least"),
            *("left", "outputs", "search/ms"),
        ),
        rows,
    )


def _numbers(style: str, *values: float) -> tuple[str, ...]:
    return tuple(format(value, style) for value in values)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    words = [not _is_number(cell) for cell in rows[0]]
    click.echo(title)
    for row in (header, *rows):
        cells = (
            f"{cell:<{width}}" if word else f"{cell:>{width}}"
            for cell, width, word in zip(row, widths, words, strict=True)
        )
        click.echo("  ".join(cells).rstrip())
    click.echo()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
