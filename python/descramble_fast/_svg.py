"""Small figures as SVG that takes its colours and its type from the page around it."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from descramble_fast._arrays import Floats

# All panels are alike, in units that are pixels on a phone, so that their type is of one size.
_WIDTH, _HEIGHT = 330, 254
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 320, 40, 214
_BOX = f'x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"'

_DECADES = 8  # that a logarithmic axis shows at most; what lies below is rounding
_POINTS = 160  # of a line
_SIDE = 400  # of a picture, in pixels
_BYTES = 0.4  # of a compressed picture for each pixel

# Blue over white to red, dark at both ends: no sign hangs on telling red from green.
_COLOURS = (
    "053061",
    "2a71b2",
    "86b9d9",
    "dceaf2",
    "ffffff",
    "fbe0d2",
    "ee9676",
    "bd3036",
    "67001f",
)


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of a figure.

    Attributes
    ----------
    label : str
        As the key says it.
    style : {"before", "after", "control"}
        Class that the page's style sheet colours.
    x, y : array, (p,)
    """

    label: str
    style: str
    x: Floats
    y: Floats


def image(
    values: Floats,
    *,
    limit: float,
    pixels: int,
    title: str,
    subtitle: str,
    labels: tuple[str, str],
    sizes: Sequence[int],
) -> str:
    """Draw a matrix as a picture, blue below 0 and red above.

    Parameters
    ----------
    values : array, (rows, columns)
        Finite.
    limit : float
        Magnitude that has the darkest colour.
    pixels : int
        As for `steps`. Shades are given up, down to 15, until the picture takes few bytes for them.
    title, subtitle : str
    labels : (str, str)
        Of the rows and of the columns.
    sizes : (int, int)
        How many rows and columns there are, where `values` is a choice of them.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    for half in (127, 31, 15, 7):
        shades = np.rint(np.clip(values / limit, -1, 1) * half) + half
        data = _png(shades.astype(np.uint8), _palette(2 * half + 1))
        if len(data) <= _BYTES * pixels:
            break
    source = base64.b64encode(data).decode()
    down, across = (_Axis(-0.5, n - 0.5) for n in sizes)
    return _panel(
        title,
        f"{labels[0]}s by {labels[1]}s, {sizes[0]} by {sizes[1]}, as colours",
        f'<text class="sub" x="{_LEFT}" y="31">{escape(subtitle)}</text>'
        f'<image {_BOX} preserveAspectRatio="none" href="data:image/png;base64,{source}"/>'
        f'<rect class="axis" {_BOX}/>'
        f"{_bottom(across, labels[1])}{_side(down, labels[0], downwards=True)}",
    )


def steps(shape: Sequence[int], pixels: int) -> tuple[int, int]:
    """Choose every how-manieth row and column to draw, for few enough pixels.

    Parameters
    ----------
    shape : (int, int)
        Of the matrix.
    pixels : int
        Most of them that the picture may have.

    Returns
    -------
    (int, int)
    """
    down, across = (max(1, -(-n // _SIDE)) for n in shape)
    while (rows := -(-shape[0] // down)) * (columns := -(-shape[1] // across)) > pixels:
        down, across = (down + 1, across) if rows >= columns else (down, across + 1)
    return down, across


def curves(
    lines: Sequence[Curve], *, title: str, labels: tuple[str, str], level: float = math.nan
) -> str:
    """Draw lines on logarithmic axes; what is not positive is left out.

    Parameters
    ----------
    lines : sequence of Curve
    title : str
    labels : (str, str)
        Of the vertical and of the horizontal axis.
    level : float, optional
        Where a thin horizontal line stands.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    x = _Axis(1, max(float(line.x.max()) for line in lines), log=True)
    every = np.concatenate([line.y for line in lines])
    top = float(every.max()) if every.max() > 0 else 1.0
    low = np.min(every, where=every >= top / 10**_DECADES, initial=top)
    y = _Axis(float(low), top, log=True, margin=0.05)
    parts = []
    if 0 <= y.place(level) <= 1:
        parts.append(f'<path class="level" d="M{_LEFT} {_up(y, level):.1f}H{_RIGHT}"/>')
    for line in lines:
        points = [(a, b) for a, b in _points(line) if b > 0 and y.place(b) >= -1e-9]
        path = "L".join(f"{_right(x, a):.1f} {_up(y, b):.1f}" for a, b in points)
        if len(points) == 1:
            path += "h1"
        parts.append(f'<path class="line {line.style}" d="M{path}"/>' if path else "")
    return _panel(
        title, _words(lines, labels), f"{''.join(parts)}{_frame(x, y, labels)}{_key(lines)}"
    )


def stems(lines: Sequence[Curve], *, title: str, labels: tuple[str, str]) -> str:
    """Draw values between 0 and 1 as dots; those of the first curve on stems.

    Parameters
    ----------
    lines : sequence of Curve
    title : str
    labels : (str, str)
        Of the vertical and of the horizontal axis.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    x = _Axis(0, max(float(line.x.max()) for line in lines) + 1)
    y = _Axis(0, 1)
    parts = []
    for line in lines:
        points = [(_right(x, a), _up(y, min(b, 1.0))) for a, b in _points(line)]
        if line is lines[0]:
            path = "".join(f"M{a:.1f} {_BOTTOM}V{b:.1f}" for a, b in points)
            parts.append(f'<path class="stem {line.style}" d="{path}"/>')
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in points)
        parts.append(f'<path class="dot {line.style}" d="{path}"/>')
    return _panel(
        title, _words(lines, labels), f"{''.join(parts)}{_frame(x, y, labels)}{_key(lines)}"
    )


def scale(limit: float) -> str:
    """Draw the key to the colours of `image`, as small as a word.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    ramp = base64.b64encode(_png(np.arange(63, dtype=np.uint8)[None], _palette(63))).decode()
    words = f"From blue, −{limit:g}, over white, 0, to red, {limit:g}"
    return (
        f'<svg class="scale" viewBox="0 0 130 14" role="img" aria-label="{words}">'
        f'<text class="end" x="28" y="11">−{limit:g}</text><image x="32" y="1" width="74" '
        f'height="12" preserveAspectRatio="none" href="data:image/png;base64,{ramp}"/>'
        f'<text x="110" y="11">{limit:g}</text></svg>'
    )


def binned(power: Floats) -> tuple[Floats, Floats]:
    """Average a spectrum over bins that are even on a logarithmic scale.

    Parameters
    ----------
    power : array, (n,)
        At 1 ... n.

    Returns
    -------
    array, (p,), array, (p,)
        Where the bins lie, and the means.
    """
    n = len(power)
    edges = np.unique(np.rint(np.geomspace(1, n + 1, 64)).astype(np.int64))
    means = np.add.reduceat(power, edges[:-1] - 1) / np.diff(edges)
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), means


class _Axis:
    """A range of values, where they stand in it, and its ticks."""

    def __init__(self, low: float, high: float, log: bool = False, margin: float = 0) -> None:
        self.log = log
        a, b = self._scaled(low), self._scaled(high)
        if b - a < 1e-6:
            a, b = a - 0.5, b + 0.5
        self.a, self.b = a - margin * (b - a), b + margin * (b - a)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        return (self._scaled(value) - self.a) / (self.b - self.a)

    def ticks(self) -> list[tuple[float, str]]:
        """Where the ticks stand, and what they say."""
        if self.log:
            return [(t, s) for t, s in self._decades() if -1e-9 <= self.place(t) <= 1 + 1e-9]
        step = 10.0 ** math.floor(math.log10(self.b - self.a))
        step *= next(m for m in (0.2, 0.5, 1, 2) if (self.b - self.a) / (m * step) <= 5.5)
        if self.b > 1:
            step = max(step, 1)  # places and counts are whole
        first, last = math.ceil(self.a / step), math.floor(self.b / step)
        return [(i * step, f"{i * step:.6g}") for i in range(first, last + 1)]

    def _decades(self) -> list[tuple[float, str]]:
        low, high = math.floor(self.a), math.ceil(self.b)
        if self.b - self.a < 1.5:
            values = [m * 10.0**e for e in range(low, high + 1) for m in (1, 2, 5)]
            return [(value, f"{value:.4g}") for value in values]
        step = -(-(high - low) // 6)
        return [(10.0**e, _power(e)) for e in range(high, low - 1, -step)]


def _power(exponent: int) -> str:
    if 0 <= exponent <= 4:
        return str(10**exponent)
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _right(axis: _Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_RIGHT - _LEFT)


def _up(axis: _Axis, value: float) -> float:
    return _BOTTOM - axis.place(value) * (_BOTTOM - _TOP)


def _points(line: Curve) -> Iterable[tuple[float, float]]:
    """Points of a line, of a long one a choice that is even on a logarithmic scale."""
    n = len(line.x)
    chosen = np.arange(n)
    if n > _POINTS:
        chosen = np.unique(np.rint(np.geomspace(1, n, _POINTS)).astype(np.int64)) - 1
    return zip(line.x[chosen].tolist(), line.y[chosen].tolist(), strict=True)


def _panel(title: str, words: str, inside: str) -> str:
    """Put a figure together; the title and the words are what is read aloud."""
    title = escape(title)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}: {escape(words)}">'
        f'<text class="title" x="{_LEFT}" y="14">{title}</text>{inside}</svg>'
    )


def _words(lines: Sequence[Curve], labels: tuple[str, str]) -> str:
    return f"{labels[0]} against {labels[1]}; {', '.join(line.label for line in lines)}"


def _frame(x: _Axis, y: _Axis, labels: tuple[str, str]) -> str:
    path = f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
    return path + _bottom(x, labels[1]) + _side(y, labels[0])


def _bottom(axis: _Axis, label: str) -> str:
    places = [(_right(axis, value), text) for value, text in axis.ticks()]
    ticks = "".join(f"M{x:.1f} {_BOTTOM}v4" for x, _ in places)
    texts = "".join(
        f'<text class="mid" x="{x:.1f}" y="{_BOTTOM + 16}">{s}</text>' for x, s in places
    )
    middle = (_LEFT + _RIGHT) // 2
    name = f'<text class="mid" x="{middle}" y="{_HEIGHT - 8}">{escape(label)}</text>'
    return f'<path class="axis" d="{ticks}"/>{texts}{name}' if ticks else name


def _side(axis: _Axis, label: str, downwards: bool = False) -> str:
    places = [(_up(axis, value), text) for value, text in axis.ticks()]
    if downwards:
        places = [(_TOP + _BOTTOM - y, text) for y, text in places]
    ticks = "".join(f"M{_LEFT} {y:.1f}h-4" for y, _ in places)
    texts = "".join(
        f'<text class="end" x="{_LEFT - 7}" y="{y + 3.6:.1f}">{s}</text>' for y, s in places
    )
    turn = f'transform="translate(12 {(_TOP + _BOTTOM) // 2}) rotate(-90)"'
    name = f'<text class="mid" {turn}>{escape(label)}</text>'
    return f'<path class="axis" d="{ticks}"/>{texts}{name}' if ticks else name


def _key(lines: Sequence[Curve]) -> str:
    parts, x = [], _LEFT
    for line in lines:
        parts.append(f'<path class="line {line.style}" d="M{x} 27h16"/>')
        parts.append(f'<text class="sub" x="{x + 21}" y="31">{escape(line.label)}</text>')
        x += 34 + 6 * len(line.label)
    return "".join(parts)


def _palette(shades: int) -> bytes:
    stops = np.array([list(bytes.fromhex(colour)) for colour in _COLOURS], dtype=np.float64)
    places = np.linspace(0, len(stops) - 1, shades)
    channels = [np.interp(places, np.arange(len(stops)), stop) for stop in stops.T]
    return bytes(np.rint(np.stack(channels, axis=1)).astype(np.uint8).ravel())


def _png(shades: NDArray[np.uint8], palette: bytes) -> bytes:
    rows, columns = shades.shape
    lines = np.zeros((rows, columns + 1), dtype=np.uint8)  # each begins with its filter: none
    lines[:, 1:] = shades
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0),
        b"PLTE": palette,
        b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks.items():
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data
