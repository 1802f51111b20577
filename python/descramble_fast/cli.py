"""The command line's commands."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import descramble_fast as df
from descramble_fast import _core, _layers
from descramble_fast import demo as work
from descramble_fast import run as runs
from descramble_fast._files import FileError, printable
from descramble_fast.operators import Operator

WIDTH = 100
_COUNT = click.IntRange(min=1, max=2**31 - 1)
OPERATORS: dict[str, Callable[[int], Operator]] = {
    "fourier": df.operators.fourier,
    "fourier1": partial(df.operators.fourier, order=1),
    "difference": df.operators.difference,
    "path": partial(df.operators.difference, boundary="path"),
}


@click.group(
    name="descramble-fast",
    epilog="For build scripts: --cmake-dir or --include-dir says where the C++ library's is.",
)
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
    type=_COUNT,
    default=512,
    show_default=True,
    help="Rows at a time.",
)
@click.option("--threads", type=_COUNT, help="Default: as the environment allows.")
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
    from descramble_fast.demo.figures import draw

    if threads is not None:
        df.set_num_threads(threads)
    try:
        network, samples = work.load_network(network_file), work.open_samples(samples_file)
        batches = -(-samples.shape[0] // batch_size)
        progress = partial(tqdm, total=batches, desc="streaming", unit="batch", disable=None)
        found = work.analyse(network, samples, batch_size=batch_size, progress=progress)
    except work.DemoError as error:
        raise _refusal(str(error)) from error
    _report(found)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = draw(found, output)
        text = json.dumps(work.summary(found), indent=2, ensure_ascii=False, allow_nan=False)
        (output / "summary.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise _refusal(f"--output: {output}: {error.strerror or error}") from error
    names = [path.name for path in drawn] + ["summary.json"]
    click.echo(f"written  {', '.join(names)} in {printable(output)}")


def _checked_device(_: click.Context, __: click.Parameter, device: str | None) -> str | None:
    if device is not None and not re.fullmatch(r"cpu|cuda(:[0-9]{1,9})?", device):
        raise click.BadParameter(f"got {device}, expected cpu, cuda or cuda:<number>")
    return device


def _checked_seconds(_: click.Context, __: click.Parameter, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise click.BadParameter(f"got {number}, expected a finite number")
    return number


@descramble_fast.command()
@click.argument(
    "activations",
    nargs=-1,
    type=click.Path(path_type=Path, exists=True),
    metavar="[ACTIVATIONS]...",
)
@click.option(
    "--weights",
    "weights_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="safetensors, npz or torch state dict (.pt, .pth): <layer>.weight or <layer>, of shape "
    "(n, m) or (m, n). Without activations its matrices are the layers, with isotropic inputs.",
)
@click.option(
    "--control",
    "control_folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Moments of the same layers of an untrained model, to stand beside every figure: the "
    "OUTPUT of another run, or what `merge` wrote.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default="descrambled",
    show_default=True,
    help="Folder for moments, result.safetensors and report.html.",
)
@click.option(
    "--layers", default="*", metavar="GLOB", help="Only layers of such names, as '*mlp*'."
)
@click.option(
    "--criterion",
    type=click.Choice(["smoothness", "trace", "diagonal"]),
    default="smoothness",
    show_default=True,
    help="The latter two read the weights.",
)
@click.option(
    "--operator",
    type=click.Choice(list(OPERATORS)),
    default="fourier",
    show_default=True,
    help="What is rough: second or first (fourier1) derivatives, or first differences on a circle "
    "or a path.",
)
@click.option("--center", is_flag=True, help="Take the mean of the samples off.")
@click.option("--k", type=_COUNT, help="Leading components only.")
@click.option("--order", is_flag=True, help="Search a smooth order of the neurons, too.")
@click.option(
    "--order-seconds",
    type=click.FloatRange(min=0),
    callback=_checked_seconds,
    help="At most so long for each layer's order.",
)
@click.option("--batch-size", type=_COUNT, help="Rows at a time. Default: some 16 MB.")
@click.option("--threads", type=_COUNT, help="Default: as the environment allows.")
@click.option(
    "--device", callback=_checked_device, help="cpu, cuda or cuda:<number>. Default: cpu."
)
@click.option(
    "--fresh", is_flag=True, help="Start over: discard the moments that OUTPUT holds already."
)
def run(
    activations: tuple[Path, ...],
    weights_file: Path | None,
    control_folder: Path | None,
    output: Path,
    layers: str,
    criterion: str,
    operator: str,
    center: bool,
    k: int | None,
    order: bool,
    order_seconds: float | None,
    batch_size: int | None,
    threads: int | None,
    device: str | None,
    fresh: bool,
) -> None:
    """Descramble layers from activations, moments or weights on disk.

    \b
    descramble-fast run activations/ --weights model.safetensors
    descramble-fast run --weights model.safetensors --layers '*mlp*'

    ACTIVATIONS are .npy, .npz and .safetensors files, Zarr folders, or folders of these, of any
    size: arrays (..., n), neurons last. An array is a layer, called as in its file, or as the file
    if it has no name there. Arrays of one name in several files are shards of one layer; an ending
    like -00001-of-00004 is no part of a file's name. Moments, from OUTPUT/moments or `merge`, are
    taken as well.

    The same command goes on where an earlier one was stopped or killed. Moments of files read to
    their end are kept, so that other criteria take no more reading.
    """  # noqa: D301 — click reads the backspace
    if not activations and weights_file is None:
        raise click.UsageError("got neither ACTIVATIONS nor --weights")
    if control_folder is not None and criterion != "smoothness":
        raise click.UsageError(f"--control holds no weights, which {criterion} reads")
    if order and criterion != "smoothness":
        raise click.UsageError(f"--order needs samples, and {criterion} reads none")
    if threads is not None:
        df.set_num_threads(threads)
    with _one_line():
        weights = None if weights_file is None else runs.open_weights(weights_file)
        with runs.locked(output):
            if activations:
                found = _streamed(activations, output, layers, batch_size, device, fresh)
                if weights is not None:
                    found = [runs.with_weight(layer, weights) for layer in found]
            else:
                assert weights is not None
                found = list(runs.weight_layers(weights, layers))
            control = [] if control_folder is None else runs.control_layers(control_folder, found)
            with _bar(len(found) + len(control), "solving", "layer") as bar:
                solved, beside = (
                    _layers.solve(
                        part,
                        criterion=criterion,
                        operator=OPERATORS[operator],
                        center=center,
                        k=k,
                        order=order,
                        order_seconds=order_seconds,
                        progress=bar.update,
                    )
                    for part in (found, control)
                )
            configuration = {
                "descramble_fast": df.__version__,
                "activations": [printable(path.name) for path in activations],
                "weights": None if weights_file is None else printable(weights_file.name),
                "control": None if control_folder is None else printable(control_folder.name),
                "layers": printable(layers),
                "criterion": criterion,
                "operator": operator,
                "center": center,
                "k": k,
                "order": order,
                "order_seconds": order_seconds,
                "gauge": "canonical",
                "seed": 0,
                "batch_size": batch_size,
                "threads": _core.num_threads(),
                "device": device,
            }
            result = _layers.Layers(layers=solved, control=beside, configuration=configuration)
            result.save(output / "result.safetensors")
            result.report(output / "report.html")
    click.echo(result.table())
    moments = "moments, " if activations else ""
    _say(f"written  {moments}result.safetensors, report.html in {printable(output)}")
    if all(layer.error is not None for layer in solved):
        raise click.ClickException("no layer could be descrambled; the table says why")


def _streamed(
    paths: Sequence[Path],
    output: Path,
    layers: str,
    batch_size: int | None,
    device: str | None,
    fresh: bool,
) -> list[_layers.Layer]:
    """Read the activations, or what is left of them, and give the layers with their moments."""
    inputs = runs.find(paths, layers)
    for skipped in inputs.skipped:
        _say(f"skipped  {skipped}: no samples of neurons")
    moments = {name: runs.load_finished(path, device)[0] for name, path in inputs.moments.items()}
    if inputs.samples:
        moments |= _accumulated(inputs, output / "moments", batch_size, device, fresh)
    return [
        _layers.Layer(
            name=name,
            kind="samples" if name in inputs.samples else "moments",
            tap="-",
            neurons=found.n_features,
            covariance=found,
        )
        for name, found in moments.items()
    ]


def _accumulated(
    inputs: runs.Inputs, folder: Path, batch_size: int | None, device: str | None, fresh: bool
) -> dict[str, df.Covariance]:
    if fresh:
        runs.discard(folder)
    todo = runs.Run(inputs, folder, batch_size=batch_size, device=device)
    for layer in todo.samples:
        if done := sum(source.read for source in todo.sources[layer.name]):
            _say(f"resumed  {layer.name}: {done:,} of {layer.rows:,} rows were read")
    total = sum(layer.bytes() for layer in todo.samples)
    if left := total - todo.bytes_read:
        click.echo(
            f"reading  {_size(left)} of {len(todo.samples)} "
            f"{'layer' if len(todo.samples) == 1 else 'layers'} in at most {_size(todo.memory)} of "
            "memory"
        )
    with _stop_requests() as stopped, _bar(total, "reading", "B", todo.bytes_read) as bar:

        def progress(layer: str, read: int) -> None:
            bar.set_description(_layers.legible(layer), refresh=False)
            bar.update(read)

        todo.accumulate(progress, lambda: bool(stopped))
    return {layer.name: todo.moments(layer) for layer in todo.samples}


def _size(count: float) -> str:
    return f"{tqdm.format_sizeof(count)}B"


def _bar(total: int, what: str, unit: str, initial: int = 0) -> tqdm[Any]:
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        disable=None,
    )


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM instead of raising amid a sum; a second one kills."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        seen.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, note)
        yield seen
    except runs.Stopped:
        click.echo("Error: stopped; the same command goes on where this one was", err=True)
        sys.exit(128 + seen[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Tell users of what they can mend, without a traceback."""
    try:
        yield
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        raise _refusal(f"{name}{error.strerror or error}") from error
    except (FileError, df.BackendError, MemoryError) as error:
        raise _refusal(str(error) or type(error).__name__) from error


def _refusal(text: str) -> click.ClickException:
    return click.ClickException(_layers.legible(text))


def _say(text: str) -> None:
    """Print a line that names what a file holds."""
    click.echo(_layers.legible(text))


@descramble_fast.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument(
    "shards",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="IN...",
)
def merge(out: Path, shards: tuple[Path, ...]) -> None:
    """Add up moments of shards: files of one layer, or folders layer by layer.

    \b
    descramble-fast run activations/rank0 --output rank0    # and so on
    descramble-fast merge all rank0 rank1 rank2
    descramble-fast run all

    IN are files of moments that make the file OUT, or folders of them, or of runs, that make the
    folder OUT. Shards whose run is unfinished are refused, and so are samples that would be counted
    twice.
    """  # noqa: D301 — click reads the backspace
    with _one_line():
        counts = runs.merge(out, shards)
    for layer, count in counts.items():
        _say(f"{layer}: {count:,} samples")
    _say(f"written  {printable(out)}")


@descramble_fast.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Time this library beside its peers; its own `--help` tells what there is."""
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
    text = _layers.legible(text)
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
