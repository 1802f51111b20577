"""Layers as one HTML page that needs nothing beside it: pictures, figures, and how to read them."""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from descramble_fast import _core, _svg
from descramble_fast._arrays import Array, Floats, beside, on_host
from descramble_fast._descramble import (
    Descrambler,
    MatrixDescrambler,
    SmoothnessDescrambler,
)
from descramble_fast._layers import Layer, Layers, left
from descramble_fast._permutation import ModeMatch, SmoothOrder, match_modes
from descramble_fast.operators import fourier

__all__ = ["html"]

_STYLE = Path(__file__).parent / "data" / "report.css"

# A link into a closed section opens it, and so does a printer.
_SCRIPT = """\
const reveal = () => {
  const place = document.getElementById(location.hash.slice(1));
  const section = place && place.closest("details");
  if (section) { section.open = true; place.scrollIntoView(); }
};
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => {
  for (const section of document.querySelectorAll("details")) section.open = true;
});
"""

_LIMIT = 3.0  # of the weights' colours, in units of their root mean square
_PIXELS, _FEWER_PIXELS = 36_000, 12_500  # of a picture; where layers are many
_MANY = 32  # layers
_MOST_COLUMNS = 1024  # that a spectrum is averaged over
_LARGEST = 4096  # neurons up to which modes are matched and second moments looked at
_LEADING = 48  # components in the figure of matched modes; in its table:
_LISTED = 8


def html(found: Layers) -> str:
    """Make a self-contained page of what was found: no script or picture comes from elsewhere.

    Parameters
    ----------
    found : Layers

    Returns
    -------
    str
        HTML5. The same for the same layers: it names neither a time nor a machine of its own.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> from descramble_fast import _layers, report
    >>> samples = np.cumsum(np.random.default_rng(0).normal(size=(90, 6)), axis=1)
    >>> layer = _layers.Layer(
    ...     name="first", neurons=6, covariance=df.Covariance.from_samples(samples)
    ... )
    >>> found = _layers.Layers(layers=_layers.solve([layer]), configuration={"data": "walks"})
    >>> "<h3>first</h3>" in report.html(found)
    True
    """
    style = _STYLE.read_text(encoding="utf-8")
    # Even a name that slipped through unescaped could load or run nothing.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(_SCRIPT)}"
    )
    controls = {layer.name: layer for layer in found.control}
    pixels = _FEWER_PIXELS if len(found) > _MANY else _PIXELS
    sections = [
        _section(i, layer, controls.get(layer.name), pixels, unfolded=i == 0 or len(found) <= 3)
        for i, layer in enumerate(found.layers)
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>Descrambled layers</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            f"<h1>Descrambled layers</h1>\n{_opening(found)}\n{_NAVIGATION}",
            f'<h2 id="summary">Summary</h2>\n{_summary(found, controls)}',
            f'<h2 id="reading">How to read this page</h2>\n{_reading(found)}',
            '<h2 id="layers">Layers</h2>',
            *sections,
            f'<h2 id="configuration">Configuration</h2>\n{_configuration(found.configuration)}',
            f"<footer>descramble_fast {escape(_core.__version__)}</footer>\n</main>",
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Text ---------------------------------------------------------------------------------------------

_INTRODUCTION = """
<p>The neurons of a layer stand in no particular order and no particular basis, so its weights look
like noise. A descrambler is the orthogonal matrix <var>P</var> that makes the layer as readable as
a criterion allows; <var>P&nbsp;W</var> is the layer read through it."""

_SMOOTHNESS = """
<i>Smoothness</i> asks for signals that vary little from one place to the next, as a roughness
operator measures it. <b>Before</b> and <b>after</b> are the roughness in the given basis and the
least that any orthogonal matrix attains; <b>left</b> is their ratio, 1 where nothing was gained."""

_MAXIMISED = """
<i>Trace</i> and <i>diagonal</i> make the weights as symmetric, or as diagonal, as they can be.
<b>Before</b> and <b>after</b> are the criterion in the given basis and the largest value found;
<b>left</b> is their ratio, above 1 where something was gained; there is none where the former is
not positive."""

_CONTROL = """
<p>Smoothness can be had from nothing: random weights on smooth inputs descramble into something
smooth as well. So the same layers of an untrained model, on the same data, stand beside every
figure as its <b>control</b>. Only the difference between the two speaks of what was learned.</p>"""

_NO_CONTROL = """
<p>Smoothness can be had from nothing: random weights on smooth inputs descramble into something
smooth as well. What was learned shows only beside a <b>control</b>, the same layers of an untrained
model on the same data, and none was given.</p>"""

_WEIGHTS = """
<dt>Weights</dt><dd>Blue is negative, red positive, in units of the root mean square (rms). Of a
large matrix evenly spaced rows and columns are drawn, as it says above the picture: averages would
blot out the noise that is there to be seen.</dd>
<dt>Spectrum along the neurons</dt><dd>How the energy of the weights is spread over the modes of the
operator, from the smoothest to the roughest. White noise would lie on the thin line.</dd>"""

_COMPONENTS = """
<dt>Eigenvalues</dt><dd>The share of each principal component in the signals’ second moment. The
effective rank, (Σ<var>c</var>)² / Σ<var>c</var>², is the number of equal components that would be
spread as widely.</dd>
<dt>Matched modes</dt><dd>Which component is which mode, with the neurons in the order given: an
exact assignment by energy. A correlation of 1 says that a component is made of modes of one
eigenvalue alone. Where it exceeds the control’s, the given order of the neurons is
likely to mean something.</dd>"""

_ORDER = """
<dt>Neuron order</dt><dd>The neurons themselves, put in an order that makes their signals smooth.
Unlike <var>P</var> it can be written back into the model, which then still computes what it did.
The pictures show how alike the signals of two neurons are: the cosine of the angle between them,
for many neurons as means over squares. No order costs less than the bound.</dd>"""


_NAVIGATION = """\
<nav><a href="#summary">Summary</a> <a href="#reading">How to read this page</a>
<a href="#layers">Layers</a> <a href="#configuration">Configuration</a></nav>"""


def _opening(found: Layers) -> str:
    solved = {layer.name: d for layer in found.layers if (d := layer.descrambler) is not None}
    controls = {layer.name: d for layer in found.control if (d := layer.descrambler) is not None}
    some = "all" if len(solved) == len(found) else f"{len(solved)} of them"
    words = [f"{_count(len(found), 'layer')}, {some} descrambled."]
    both = [name for name, d in solved.items() if name in controls and d.criterion == "smoothness"]
    if not found.control:
        words.append("There is no control, so nothing here says what was learned.")
    elif both:
        smoother = sum(_ratio(solved[name]) < _ratio(controls[name]) for name in both)
        words.append(
            f"Less roughness is left than in the untrained control in {smoother} of the "
            f"{len(both)} layers that both have."
        )
    return f'<p class="lede">{" ".join(words)}</p>'


def _reading(found: Layers) -> str:
    solved = [layer for layer in found.layers if layer.descrambler is not None]
    smooth = any(isinstance(layer.descrambler, SmoothnessDescrambler) for layer in solved)
    other = any(isinstance(layer.descrambler, MatrixDescrambler) for layer in solved)
    text = _INTRODUCTION + _SMOOTHNESS * smooth + _MAXIMISED * other + "</p>"
    text += _CONTROL if found.control else _NO_CONTROL
    terms = _WEIGHTS * any(layer.weight is not None for layer in solved)
    terms += _COMPONENTS * smooth
    terms += _ORDER * any(layer.order is not None for layer in found.layers)
    return f'<div class="prose">{text}<dl>{terms}</dl></div>'


def _configuration(configuration: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row">{_dotted(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in _flat("", configuration)
    ]
    if not rows:
        return "<p>None was recorded.</p>"
    return _scrolling(f"<table><tbody>{''.join(rows)}</tbody></table>", "Configuration")


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}", text


# The table of all layers --------------------------------------------------------------------------


def _summary(found: Layers, controls: Mapping[str, Layer]) -> str:
    with_order = any(layer.order is not None for layer in found.layers)
    pair = ["left", "control"] if controls else ["left"]
    groups = [
        (_criteria(found), [*pair, "before", "after"]),
        *([("neuron order", pair)] if with_order else []),
        ("", ["neurons", "samples", "solve/s"]),
    ]
    names = ["layer", *(name for _, columns in groups for name in columns)]
    rows = []
    for i, layer in enumerate(found.layers):
        control = controls.get(layer.name, Layer(name=layer.name))
        d = layer.descrambler
        cells = [_left(d)] + ([_left(control.descrambler)] if controls else [])
        cells += ["–", "–"] if d is None else [_number(d.initial_cost), _number(d.cost)]
        if with_order:
            cells += [_left(layer.order)] + ([_left(control.order)] if controls else [])
        cells += [str(layer.neurons or "–"), str(layer.samples or "–")]
        cells += ["–" if d is None else _number(layer.seconds, 2)]
        rows.append(
            f'<tr><th scope="row"><a href="#layer-{i + 1}">{_dotted(layer.name)}</a>'
            f'<div class="facts">{escape(layer.kind)} · {escape(layer.tap)}</div></th>'
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
        rows += [
            f'<tr class="remark"><td colspan="{len(names)}"><div>{text}</div></td></tr>'
            for text in _remarks(layer, control)
        ]
    return _scrolling(_table(["layer"], groups, rows), "Costs of every layer")


def _criteria(found: Layers) -> str:
    found_criteria = {d.criterion for layer in found.layers if (d := layer.descrambler)}
    return ", ".join(sorted(found_criteria)) or "criterion"


def _table(
    first: Sequence[str], groups: Sequence[tuple[str, Sequence[str]]], rows: Sequence[str]
) -> str:
    """Make a table whose columns of numbers have names, some of them a common one above."""
    top = "".join(f'<th scope="col" rowspan="2">{name}</th>' for name in first)
    below = ""
    for group, columns in groups:
        if group:
            top += f'<th scope="colgroup" colspan="{len(columns)}">{group}</th>'
            below += "".join(f'<th scope="col" class="n">{name}</th>' for name in columns)
        else:
            top += "".join(f'<th scope="col" rowspan="2" class="n">{name}</th>' for name in columns)
    head = f"<thead><tr>{top}</tr><tr>{below}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _remarks(layer: Layer, control: Layer | None) -> Iterator[str]:
    if layer.error is not None:
        yield f'<strong class="error">Error:</strong> {escape(layer.error)}'
    for note in layer.notes:
        yield f"<strong>Note:</strong> {escape(note)}"
    d = layer.descrambler
    if isinstance(d, SmoothnessDescrambler) and _partial(layer, d):
        yield (
            f"<strong>Note:</strong> the {len(on_host(d.eigenvalues))} leading components only, "
            "which “after”, “left” and the shares count."
        )
    if control is not None and control.error is not None:
        yield f'<strong class="error">Control, error:</strong> {escape(control.error)}'
    if control is not None:
        for note in control.notes:
            if note not in layer.notes:
                yield f"<strong>Control, note:</strong> {escape(note)}"


# One layer ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _View:
    """What is drawn of a layer, or of its control.

    `raw` and `readable`, W before and after, have the neurons first and every `step`-th of the
    `columns` on the other side. `spectra` are theirs along the neurons, relative to white noise.
    """

    layer: Layer
    name: str
    style: str
    shares: Floats | None = None
    match: ModeMatch | None = None
    raw: Floats | None = None
    readable: Floats | None = None
    columns: int = 0
    step: int = 1
    spectra: tuple[Floats, Floats] | None = None
    problem: str = ""


def _view(layer: Layer, name: str, style: str) -> _View:
    view, d = _View(layer, name, style), layer.descrambler
    if isinstance(d, SmoothnessDescrambler):
        c = np.maximum(on_host(d.eigenvalues), 0)
        shares = c / c.sum() if c.sum() > 0 else None
        match = match_modes(d) if layer.neurons <= _LARGEST else None
        view = replace(view, shares=shares, match=match)
    if d is None or layer.weight is None:
        return view
    try:
        return _with_weights(view, d, layer.weight)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        # A page with everything else is worth more than none.
        return replace(view, problem=str(error) or type(error).__name__)


def _with_weights(view: _View, d: Descrambler, weight: Array) -> _View:
    output = view.layer.weight_side == "output"
    columns = int(weight.shape[1 if output else 0])
    step = _step(columns, _MOST_COLUMNS)
    part = weight[:, ::step] if output else weight[::step]
    if array_api_compat.is_torch_array(part):
        part = part.detach().double()  # NumPy has no bfloat16
    raw = np.ascontiguousarray(on_host(part), dtype=np.float64)
    if not (raw.size and np.isfinite(raw).all()):
        raise ValueError("they hold NaN or infinity" if raw.size else "they are empty")
    there = d.eigenvalues if isinstance(d, SmoothnessDescrambler) else weight
    readable = on_host(replace(view.layer, weight=beside(there, raw)).readable_weight)
    if not output:
        raw, readable = raw.T, readable.T
    operator = d.operator if isinstance(d, SmoothnessDescrambler) else fourier(len(raw))
    before, after = (np.mean(operator.analyze(W.T) ** 2, axis=0) for W in (raw, readable))
    white = float(before.mean()) or 1.0
    return replace(
        view,
        raw=raw,
        readable=readable,
        columns=columns,
        step=step,
        spectra=(before / white, after / white),
    )


def _step(n: int, most: int) -> int:
    """Every how-manieth of n, for at most `most`."""
    return max(1, -(-n // most))


def _section(i: int, layer: Layer, control: Layer | None, pixels: int, *, unfolded: bool) -> str:
    views = [_view(layer, "layer", "after")]
    views += [] if control is None else [_view(control, "control", "control")]
    d = layer.descrambler
    facts = [escape(layer.kind), escape(layer.tap)]
    facts += [_count(layer.neurons, "neuron")] if layer.neurons else []
    facts += [f"left <b>{_left(d)}</b>"] if d is not None else []
    facts += [f"control {_left(control.descrambler)}"] if control and control.descrambler else []
    facts += ['<strong class="error">error</strong>'] if layer.error is not None else []
    remarks = list(_remarks(layer, control))
    for view in views:
        if view.problem:
            remarks.append(f"Weights of the {view.name} are not shown: {escape(view.problem)}.")
    if layer.neurons > _LARGEST and d is not None:
        remarks.append(
            f"With more than {_LARGEST} neurons, modes are not matched and signals not compared."
        )
    if views[0].step > 1:
        line = "column" if layer.weight_side == "output" else "row"
        remarks.append(f"Spectra are means over every {_ordinal(views[0].step)} {line} of W.")
    body = [
        *(f'<p class="remark">{text}</p>' for text in remarks),
        _weights(views, pixels),
        _lines(views),
        _orders(views, pixels),
        _figures(views),
    ]
    return (
        f"<details{' open' if unfolded else ''}><summary><h3>{_dotted(layer.name)}</h3> "
        f'<span class="facts">{" · ".join(facts)}</span></summary>\n'
        f'<div class="body" id="layer-{i + 1}">{"".join(body)}</div></details>'
    )


def _weights(views: Sequence[_View], pixels: int) -> str:
    symbol = _symbol(views[0].layer)
    panels = []
    for view in views:
        if view.raw is None or view.readable is None:
            continue
        rms = float(np.sqrt(np.mean(view.raw**2))) or 1.0
        if view is views[0]:
            panels.append(_matrix(view, view.raw, rms, "W", "neuron", pixels))
        title = symbol if view is views[0] else f"{symbol} of the control"
        panels.append(_matrix(view, view.readable, rms, title, "place", pixels))
    if not panels:
        return ""
    caption = f"The weights before and after. {_svg.scale(_LIMIT)} weight / rms"
    return _figure(panels, caption)


def _matrix(view: _View, values: Floats, rms: float, title: str, neurons: str, pixels: int) -> str:
    n, m = len(values), view.columns
    row_step, column_step = _svg.steps(values.shape, pixels)
    shown, names = values[::row_step, ::column_step] / rms, (neurons, "input")
    steps, sizes = (row_step, column_step * view.step), (n, m)
    if view.layer.weight_side == "input":
        shown, names = shown.T, ("output", neurons)
        steps, sizes = steps[::-1], sizes[::-1]
    return _svg.image(
        shown,
        limit=_LIMIT,
        pixels=pixels,
        title=title,
        subtitle=f"rms {rms:.3g}{_thinned(steps, names)}",
        labels=names,
        sizes=sizes,
    )


def _thinned(steps: Sequence[int], names: Sequence[str]) -> str:
    each = [f"every {_ordinal(s)} {name}" for s, name in zip(steps, names, strict=True) if s > 1]
    return "".join(f"; {words}" for words in each)


def _lines(views: Sequence[_View]) -> str:
    panels = [panel for draw in (_spectrum, _decay, _modes) if (panel := draw(views))]
    if not panels:
        return ""
    return f'<div class="row">{"".join(panels)}</div>'


def _spectrum(views: Sequence[_View]) -> str:
    lines = []
    for view in views:
        if view.spectra is not None:
            before, after = (_svg.binned(power) for power in view.spectra)
            if view is views[0]:
                lines.append(_svg.Curve("W", "before", *before))
            label = _symbol(view.layer) if view is views[0] else "control"
            lines.append(_svg.Curve(label, view.style, *after))
    title, labels = "Spectrum along the neurons", ("power / white noise", "mode, smoothest first")
    return _svg.curves(lines, title=title, labels=labels, level=1.0) if lines else ""


def _decay(views: Sequence[_View]) -> str:
    lines = [
        _svg.Curve(view.name, view.style, np.arange(1.0, len(view.shares) + 1), view.shares)
        for view in views
        if view.shares is not None
    ]
    labels = ("share", "component")
    return _svg.curves(lines, title="Eigenvalues", labels=labels) if lines else ""


def _modes(views: Sequence[_View]) -> str:
    lines = []
    for view in views:
        if view.match is not None:
            y = on_host(view.match.correlation)[:_LEADING]
            lines.append(_svg.Curve(view.name, view.style, np.arange(1.0, len(y) + 1), y))
    labels = ("correlation", "component")
    return _svg.stems(lines, title="Matched modes", labels=labels) if lines else ""


def _orders(views: Sequence[_View], pixels: int) -> str:
    pictures: list[tuple[str, str, str, Floats]] = []
    for view in views:
        order, n = view.layer.order, view.layer.neurons
        if order is None or n > _LARGEST:
            continue
        step = max(_svg.steps((n, n), pixels))
        means = f"; means over {step} by {step}" if step > 1 else ""
        what = "Signals of the control in order"
        if view is views[0]:
            what, given = "Signals in order", _likeness(view.layer, np.arange(n), step)
            pictures += [("Signals as given", f"left 1{means}", "neuron", given)]
        ratio = _ratio(order)
        gained = "" if math.isnan(ratio) else f"left {ratio:.3g}"
        found = _likeness(view.layer, on_host(order.permutation), step)
        pictures += [(what, f"{gained}{means}", "place", found)]
    pictures = [picture for picture in pictures if picture[3].size]
    if not pictures:
        return ""
    # Means are small: the darkest colour goes to the next tenth above the largest.
    largest = max(float(np.abs(values).max()) for *_, values in pictures)
    limit = min(max(math.ceil(10 * largest - 1e-6), 1), 10) / 10
    size = views[0].layer.neurons
    panels = [
        _svg.image(
            values,
            limit=limit,
            pixels=pixels,
            title=title,
            subtitle=subtitle,
            labels=(name, name),
            sizes=(size, size),
        )
        for title, subtitle, name, values in pictures
    ]
    return _figure(panels, f"Neuron order. {_svg.scale(limit)} cosine of two neurons’ signals")


def _likeness(layer: Layer, order: NDArray[np.int64], step: int) -> Floats:
    """Cosines of signals in an order, as means over squares of `step` places.

    From all components where the moments were released; empty where there are neither.
    """
    starts = np.arange(0, len(order), step)
    widths = np.diff(np.append(starts, len(order)))
    if layer.covariance is not None:
        C = on_host(layer.covariance.second_moment())
        scale = _inverse(np.sqrt(np.diag(C)))
        lines = [scale[p] @ C[p] * scale for p in np.split(order, starts[1:])]
        sums = [np.add.reduceat(line[order], starts) for line in lines]
        return np.asarray(np.stack(sums) / np.outer(widths, widths))
    d = layer.descrambler
    if not isinstance(d, SmoothnessDescrambler) or _partial(layer, d):
        return np.empty((0, 0))
    # Components are about the mean where they are centred; the signals are not.
    mean = on_host(d.inverse_transform(beside(d.eigenvalues, np.zeros((1, len(order))))))
    U = np.column_stack([on_host(d.components), mean[0]])
    c = np.append(np.maximum(on_host(d.eigenvalues), 0), 1.0)
    unit = U * _inverse(np.sqrt(U**2 @ c))[:, None]
    means = np.add.reduceat(unit[order], starts) / widths[:, None]
    return np.asarray((means * c) @ means.T)


def _partial(layer: Layer, d: SmoothnessDescrambler) -> bool:
    """Whether there are fewer components than neurons."""
    return len(on_host(d.eigenvalues)) < layer.neurons


def _inverse(lengths: Floats) -> Floats:
    """1 over each, and 0 over those that vanish."""
    return np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _figures(views: Sequence[_View]) -> str:
    """Tables of one layer: its figures beside the control's, and its leading components."""
    columns = [dict(_facts(view)) for view in views]
    if not any(columns):
        return ""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = "".join(
        f'<tr><th scope="row">{key}</th>'
        + "".join(f'<td class="n">{column.get(key, "–")}</td>' for column in columns)
        + "</tr>"
        for key in keys
    )
    heads = "".join(f'<th scope="col" class="n">{name}</th>' for name in ("layer", "control"))
    table = (
        f"<table><thead><tr><td></td>{heads if len(views) > 1 else ''}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )
    beside = f"<div>{_components(views)}{_route(views[0].layer)}</div>"
    return f'<div class="tables">{_scrolling(table, "Figures")}{beside}</div>'


def _facts(view: _View) -> Iterator[tuple[str, str]]:
    layer, d, order = view.layer, view.layer.descrambler, view.layer.order
    if d is not None:
        yield "criterion before", _number(d.initial_cost)
        yield "criterion after", _number(d.cost)
        yield "left", _left(d)
    if isinstance(d, MatrixDescrambler):
        yield "upper bound", _number(d.bound)
        yield "stationarity", _number(d.stationarity, 2)
    if view.shares is not None:
        yield "effective rank", _number(1 / float((view.shares**2).sum()), 3)
        for percent in (90, 99):
            enough = int(np.searchsorted(np.cumsum(view.shares), percent / 100 - 1e-12)) + 1
            yield f"components for {percent}%", str(min(enough, len(view.shares)))
    if view.match is not None:
        yield "modes matched, mean correlation²", f"{view.match.score:.4f}"
    if view.spectra is not None:
        n = len(view.spectra[0])
        tenth = -(-n // 10)
        for power, symbol in zip(view.spectra, ("W", _symbol(layer)), strict=True):
            share = power[:tenth].sum() / (power.sum() or 1)
            yield f"{symbol} in the {_count(tenth, 'smoothest mode')}", f"{share:.3f}"
        yield "white noise in them", f"{tenth / n:.3f}"
    if order is not None:
        yield "order: cost before", _number(order.initial_cost)
        yield "order: cost after", _number(order.cost)
        yield "order: left", _left(order)
        yield "order: bound", _number(order.bound)
        if order.tree_bound is not None:
            yield "order: 1-tree bound", _number(order.tree_bound)
    if d is not None:
        yield "‖P Pᵀ − I‖", _number(d.orthogonality_error, 2)


def _components(views: Sequence[_View]) -> str:
    """Table of the leading components, and of the modes that they are."""
    if views[0].match is None or views[0].shares is None:
        return ""
    columns = []
    for view in views:
        if view.match is None or view.shares is None:
            columns.append([("–", "–", "–")] * _LISTED)
            continue
        triples = zip(
            view.shares.tolist(),
            on_host(view.match.modes).tolist(),
            on_host(view.match.correlation).tolist(),
            strict=True,
        )
        columns.append([(_number(c, 2), str(mode + 1), f"{r:.2f}") for c, mode, r in triples])
    count = min(_LISTED, len(columns[0]))
    rows = []
    for i in range(count):
        cells = [
            cell for column in columns for cell in (column[i] if i < len(column) else ("–",) * 3)
        ]
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f'<tr><th scope="row" class="n">{i + 1}</th>{numbers}</tr>')
    names = ("share", "mode", "corr.")
    groups = [("layer", names), ("control", names)][: len(views)]
    table = _table(["component"], groups, rows)
    return _scrolling(table, "Leading components")


def _route(layer: Layer) -> str:
    """How the figures came about, in a line or two."""
    d = layer.descrambler
    if d is None:
        return ""
    words = [f"Criterion {d.criterion}"]
    if isinstance(d, SmoothnessDescrambler):
        words += [f"operator {d.operator.name}", f"gauge {d.gauge.name}"]
        loose = sum(stop - start for start, stop in d.blocks)
        if loose:
            words.append(
                f"{loose} components determined only within {_count(len(d.blocks), 'block')}"
            )
    words += [d.route.device, d.route.dtype, d.route.driver]
    words += [f"fallback: {reason}" for reason in d.route.fallbacks]
    if layer.order is not None and layer.order.stopped != "finished":
        words.append(f"search for an order stopped: {layer.order.stopped}")
    return f'<p class="route">{escape("; ".join(words))}.</p>'


# Pieces -------------------------------------------------------------------------------------------


def _figure(panels: Sequence[str], caption: str) -> str:
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div class="row">{"".join(panels)}</div>{words}</figure>'


def _scrolling(table: str, name: str) -> str:
    """Put a table into a box of its own, which scrolls, by keyboard too, where it is too wide."""
    return f'<div class="table" role="region" aria-label="{name}" tabindex="0">{table}</div>'


def _symbol(layer: Layer) -> str:
    return "P W" if layer.weight_side == "output" else "W Pᵀ"


def _dotted(name: str) -> str:
    """Escape a dotted name, and let it break behind its dots."""
    return escape(name).replace(".", ".<wbr>")


def _ratio(found: Descrambler | SmoothOrder) -> float:
    return left(found.cost, found.initial_cost)


def _left(found: Descrambler | SmoothOrder | None) -> str:
    if found is None or math.isnan(_ratio(found)):
        return "–"
    return _number(_ratio(found), 3)


def _number(value: float, digits: int = 4) -> str:
    text = f"{value:#.{digits}g}".replace("-", "−")
    mantissa, e, exponent = text.partition("e")
    if not e:
        return text.removesuffix(".")
    sign, power = ("−" if "−" in exponent else ""), exponent.lstrip("+−0")
    return f"{mantissa}\u202f×\u202f10<sup>{sign}{power}</sup>"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _ordinal(n: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n // 10 % 10 != 1 else "th"
    return f"{n}{ending}"
