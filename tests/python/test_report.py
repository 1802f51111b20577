"""The report of a model's layers: every figure is the objects', and the page stands by itself."""

from __future__ import annotations

import base64
import html
import os
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast import _svg, report
from descramble_fast._layers import Layer, Layers, left, solve

Array = NDArray[np.float64]

NAMES = ("encoder.layer.0.mlp", "<img src=\"https://x.y/z.png\">&'quoted'", "dead", "tail")


def inputs(m: int, count: int = 300, seed: int = 0) -> Array:
    """Smooth ones: random walks."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(count, m)), axis=1)


def layer(name: str, n: int, m: int, seed: int = 0, side: str = "output") -> Layer:
    W = np.random.default_rng(seed).normal(size=(n, m))
    return Layer(
        name=name,
        kind="Linear",
        neurons=n,
        covariance=df.Covariance.from_samples(inputs(m) @ W.T),
        weight=W if side == "output" else W.T.copy(),
        weight_side=side,
    )


def model(seed: int) -> tuple[Layer, ...]:
    layers = [
        layer(NAMES[0], 24, 30, seed),
        replace(layer(NAMES[1], 17, 12, seed + 1, "input"), notes=("3 rows <masked>",)),
        Layer(name=NAMES[2], kind="Conv2d", neurons=8, error="no samples: <never> fired"),
        replace(layer(NAMES[3], 9, 5, seed + 2), weight=None),
    ]
    return solve(layers, order=True, order_seconds=0.1)


@pytest.fixture(scope="module")
def found() -> Layers:
    configuration = {"model": "A <b>model</b>", "operator": {"name": "fourier", "order": 2}}
    return Layers(layers=model(0), control=model(50), configuration=configuration)


@pytest.fixture(scope="module")
def page(found: Layers) -> str:
    return report.html(found)


# Reading a page -----------------------------------------------------------------------------------

VOID = {"meta", "wbr", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps attributes, and the texts of table rows and headings."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.headings: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute of <{tag}> came twice"
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.open):
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += "^" + data if self.open[-1] == "sup" else data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1] = self.headings[-1][0], self.headings[-1][1] + data

    def has(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0].startswith(first))


def number(cell: str) -> float:
    return float(cell.replace("\u202f×\u202f10^", "e").replace("−", "-"))


def pictures(text: str) -> list[tuple[int, int, bytes, int]]:
    """Widths, heights, indices and shades of the embedded PNGs, decoded by hand."""
    out = []
    for source in re.findall(r'href="data:image/png;base64,([^"]+)"', text):
        data = base64.b64decode(source)
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        chunks, at = {}, 8
        while at < len(data):
            (size,) = struct.unpack(">I", data[at : at + 4])
            kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
            (check,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
            assert zlib.crc32(kind + body) == check
            chunks[kind], at = body, at + 12 + size
        width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
        assert rest == [8, 3, 0, 0, 0]
        lines = zlib.decompress(chunks[b"IDAT"])
        assert len(lines) == height * (width + 1)
        indices = b"".join(lines[y * (width + 1) + 1 :][:width] for y in range(height))
        assert 3 * max(indices) < len(chunks[b"PLTE"])
        out.append((width, height, indices, len(chunks[b"PLTE"]) // 3))
    return out


def drawn(text: str) -> list[tuple[int, int, bytes, int]]:
    """Pictures without the colour keys."""
    return [picture for picture in pictures(text) if picture[1] > 1]


# The page -----------------------------------------------------------------------------------------


def test_the_page_is_well_formed(page: str) -> None:
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    assert parsed.has("meta")[0] == {"charset": "utf-8"}
    assert any(meta.get("name") == "viewport" for meta in parsed.has("meta"))
    levels = [int(tag[1]) for tag, _ in parsed.headings]
    assert levels[0] == 1
    assert max(b - a for a, b in pairwise(levels)) == 1
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [str(a["href"])[1:] for a in parsed.has("a")]
    assert set(links) == set(ids)
    assert links[-len(NAMES) :] == [f"layer-{i + 1}" for i in range(len(NAMES))]
    assert all(th.get("scope") in ("col", "row", "colgroup") for th in parsed.has("th"))


def test_every_layer_has_a_section_and_its_name_is_text(found: Layers, page: str) -> None:
    parsed = Page(page)
    assert [text for tag, text in parsed.headings if tag == "h3"] == list(found)
    assert len(parsed.has("details")) == len(found)
    assert parsed.has("img") == []
    assert "<b>model</b>" not in page
    assert parsed.row("model")[1] == "A <b>model</b>"
    assert parsed.row("operator.order")[1] == "2"


def test_nothing_comes_from_elsewhere(page: str) -> None:
    """Every reference is to the page or carries its data; the script and the style are its own."""
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "xlink:href"):
            if name in attributes:
                assert re.match(r"#|data:image/png;base64,", str(attributes[name]))
    assert "url(" not in page
    assert "@import" not in page
    assert [a.get("src") for a in parsed.has("script")] == [None]
    policy = parsed.has("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_figures_are_described(page: str) -> None:
    figures = Page(page).has("svg")
    assert figures
    assert all(f["role"] == "img" and f["aria-label"] for f in figures)


def test_the_table_holds_the_objects_numbers(found: Layers, page: str) -> None:
    rows = {row[0]: row[1:] for row in Page(page).rows if row}
    controls = {one.name: one for one in found.control}
    for one in found.layers:
        cells = rows[f"{one.name}{one.kind} · {one.tap}"]
        d, c, order = one.descrambler, controls[one.name].descrambler, one.order
        if d is None:
            assert cells == ["–"] * 6 + ["8", "–", "–"]
            continue
        control_order = controls[one.name].order
        assert c is not None and order is not None and control_order is not None  # noqa: PT018
        expected = [
            left(d.cost, d.initial_cost),
            left(c.cost, c.initial_cost),
            d.initial_cost,
            d.cost,
            left(order.cost, order.initial_cost),
            left(control_order.cost, control_order.initial_cost),
            one.neurons,
            one.samples,
            one.seconds,
        ]
        digits = [3, 3, 4, 4, 3, 3, 9, 9, 2]
        for cell, value, places in zip(cells, expected, digits, strict=True):
            assert number(cell) == pytest.approx(value, rel=0.51 * 10 ** (1 - places))


def test_errors_and_notes_are_seen(page: str) -> None:
    parsed = Page(page)
    text = "".join(parsed.texts)
    # Once in the table, once in the section; of the layer and of its control.
    assert text.count("Error: no samples: <never> fired") == 2
    assert text.count("Control, error: no samples: <never> fired") == 2
    assert text.count("Note: 3 rows <masked>") == 2


def test_one_table_gives_layer_and_control(found: Layers, page: str) -> None:
    d, c = found.layers[0].descrambler, found.control[0].descrambler
    assert isinstance(d, df.SmoothnessDescrambler)
    assert isinstance(c, df.SmoothnessDescrambler)
    parsed = Page(page)
    for name, value in (
        ("criterion before", lambda d: d.initial_cost),
        ("effective rank", lambda d: d.eigenvalues.sum() ** 2 / (d.eigenvalues**2).sum()),
        ("modes matched", lambda d: df.match_modes(d).score),
    ):
        cells = [number(cell) for cell in parsed.row(name)[1:]]
        assert cells == pytest.approx([value(d), value(c)], rel=6e-3)
    for percent in (90, 99):
        for cell, one in zip(parsed.row(f"components for {percent}%")[1:], (d, c), strict=True):
            k, sums = int(cell), np.cumsum(one.eigenvalues) / np.sum(one.eigenvalues)
            assert sums[k - 1] >= percent / 100 - 1e-12
            assert k == 1 or sums[k - 2] < percent / 100
    order = found.layers[0].order
    assert order is not None
    assert number(parsed.row("order: bound")[1]) == pytest.approx(order.bound, rel=6e-4)


def test_leading_components_and_their_modes(found: Layers, page: str) -> None:
    d = found.layers[0].descrambler
    assert isinstance(d, df.SmoothnessDescrambler)
    match = df.match_modes(d)
    rows = [row for row in Page(page).rows if len(row) == 7][:8]
    assert [int(row[0]) for row in rows] == list(range(1, 9))
    assert [int(row[2]) - 1 for row in rows] == match.modes[:8].tolist()
    correlations = [float(row[3]) for row in rows]
    assert correlations == pytest.approx(match.correlation[:8].tolist(), abs=0.0051)


def test_the_share_in_the_smoothest_modes(found: Layers, page: str) -> None:
    """Of P W, by the dense P and the dense modes."""
    one = found.layers[0]
    assert one.descrambler is not None
    assert one.weight is not None
    modes = df.operators.fourier(24).modes()
    for name, W in (("W in", one.weight), ("P W in", one.descrambler.matrix @ one.weight)):
        energy = np.sum((modes.T @ W) ** 2, axis=1)
        share = energy[:3].sum() / energy.sum()
        assert number(Page(page).row(name)[1]) == pytest.approx(share, abs=6e-4)


def test_pictures_are_the_matrices(found: Layers) -> None:
    """Shade by shade: W, P W and the control's P W in units of rms; cosines in both orders."""
    one, control = found.layers[0], found.control[0]
    text = report.html(replace(found, layers=(one,), control=(control,)))
    order, other = one.order, control.order
    assert one.covariance is not None and control.covariance is not None  # noqa: PT018
    assert order is not None and other is not None  # noqa: PT018
    W, V = np.asarray(one.weight), np.asarray(control.weight)
    expected = [
        W / np.sqrt(np.mean(W**2)) / 3,
        one.readable_weight / np.sqrt(np.mean(W**2)) / 3,
        control.readable_weight / np.sqrt(np.mean(V**2)) / 3,
    ]
    C, D = one.covariance.second_moment(), control.covariance.second_moment()
    for moment, p in ((C, np.arange(24)), (C, order.permutation), (D, other.permutation)):
        root = np.sqrt(np.diag(moment))
        expected.append((moment / np.outer(root, root))[np.ix_(p, p)])
    shown = drawn(text)
    assert len(shown) == len(expected)
    for picture, matrix in zip(shown, expected, strict=True):
        assert picture[3] == 255
        agree(picture, matrix)


def agree(picture: tuple[int, int, bytes, int], matrix: Array) -> None:
    width, height, indices, shades = picture
    assert (height, width) == matrix.shape
    values = np.frombuffer(indices, dtype=np.uint8).reshape(matrix.shape) / ((shades - 1) / 2) - 1
    np.testing.assert_allclose(values, np.clip(matrix, -1, 1), atol=1.01 / (shades - 1))


@pytest.mark.parametrize(("n", "released"), [(250, False), (250, True), (251, False)])
def test_many_signals_are_compared_by_means_over_squares(n: int, released: bool) -> None:
    """The last square of 251 is one neuron, so that the colours go to 1; else they go less far."""
    step, noise = 2, np.random.default_rng(0).normal(size=(300, n))
    moments = df.Covariance.from_samples(noise)
    order = df.descramble_permutation(moments, restarts=1, time_limit=0.05)
    one = replace(solve([Layer(name="a", neurons=n, covariance=moments)])[0], order=order)
    if released:
        one = replace(one, covariance=None)
    d = one.descrambler
    assert isinstance(d, df.SmoothnessDescrambler)
    C = (d.components * d.eigenvalues) @ d.components.T
    root = np.sqrt(np.diag(C))
    shown = drawn(report.html(Layers(layers=(one,), configuration={})))
    expected = []
    for p in (np.arange(n), order.permutation):
        cosines = (C / np.outer(root, root))[np.ix_(p, p)]
        squares = [
            [cosines[i : i + step, j : j + step].mean() for j in range(0, n, step)]
            for i in range(0, n, step)
        ]
        expected.append(np.asarray(squares))
    limit = 1 if n % 2 else np.ceil(10 * np.abs(expected).max()) / 10
    assert n % 2 or limit < 0.9
    for picture, means in zip(shown, expected, strict=True):
        agree(picture, means / limit)


def test_weights_on_the_input_side_keep_their_shape(found: Layers) -> None:
    one = found.layers[1]
    text = report.html(Layers(layers=(replace(one, order=None),), configuration={}))
    assert [picture[:2] for picture in drawn(text)] == [(17, 12)] * 2
    assert "W Pᵀ" in text
    assert "P W in" not in text


def test_released_moments_are_read_from_the_components(found: Layers) -> None:
    given = replace(found.layers[0], weight=None)
    far = replace(given, covariance=df.Covariance.from_samples(inputs(24) + 20))
    for kept in (given, solve([far], center=True)[0]):
        assert kept.order is not None
        released = replace(kept, covariance=None)
        a, b = (drawn(report.html(Layers(layers=(x,), configuration={}))) for x in (kept, released))
        assert len(a) == 2
        for before, after in zip(a, b, strict=True):
            one, other = (np.frombuffer(p[2], dtype=np.uint8).astype(int) for p in (before, after))
            assert np.abs(one - other).max() <= 1


def test_without_a_control_the_page_says_so(found: Layers) -> None:
    text = report.html(replace(found, control=()))
    parsed = Page(text)
    assert "There is no control" in text
    assert "none was given" in text.replace("\n", " ")
    assert [a for a in parsed.has("path") if "control" in str(a.get("class"))] == []


def test_without_weights_and_order_these_figures_are_left_out(found: Layers) -> None:
    one = replace(found.layers[0], weight=None, order=None)
    text = report.html(Layers(layers=(one,), configuration={}))
    assert pictures(text) == []
    assert "Spectrum" not in text
    assert "neuron order" not in text
    assert "Eigenvalues" in text
    assert "Matched modes" in text
    assert "None was recorded" in text


def test_no_layers() -> None:
    Page(report.html(Layers(layers=(), configuration={})))


@pytest.mark.parametrize("criterion", ["trace", "diagonal"])
def test_criteria_of_the_weights(criterion: str) -> None:
    layers = [replace(layer("a", 6, 6), covariance=None), replace(layer("b", 5, 5), weight=None)]
    solved = solve(layers, criterion=criterion)
    text = report.html(Layers(layers=solved, control=solved, configuration={}))
    parsed = Page(text)
    d = solved[0].descrambler
    assert isinstance(d, df.MatrixDescrambler)
    assert number(parsed.row("upper bound")[1]) == pytest.approx(d.bound, rel=6e-4)
    assert "Spectrum along the neurons" in text
    assert "Eigenvalues" not in text
    assert solved[1].error is not None
    assert html.escape(solved[1].error) in text


def test_a_trace_that_was_negative_has_no_ratio() -> None:
    W = np.diag([-3.0, 1.0, 1.0])
    solved = solve([Layer(name="a", neurons=3, weight=W)], criterion="trace")
    text = report.html(Layers(layers=solved, configuration={}))
    assert Page(text).row("asamples · pre")[1:4] == ["–", "−1.000", "5.000"]
    assert "left <b>–</b>" in text


def test_leading_components_only() -> None:
    solved = solve([layer("a", 20, 30)], k=3, order=True, order_seconds=0.1)
    text = report.html(Layers(layers=solved, configuration={}))
    # In the table of all layers, and in the section.
    assert text.count("the 3 leading components only") == 2
    assert len(drawn(text)) == 4
    released = (replace(solved[0], covariance=None),)
    assert len(drawn(report.html(Layers(layers=released, configuration={})))) == 2
    rows = [row[0] for row in Page(text).rows if len(row) == 4]
    assert rows == ["left", "1", "2", "3"]  # of the figures, and of the components


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_neurons(n: int) -> None:
    solved = solve([layer("a", n, 1), layer("b", n, 2, side="input")], order=True)
    text = report.html(Layers(layers=solved, control=solved, configuration={}))
    assert len(drawn(text)) == sum(3 if shape[0] > 1 else 0 for shape in [(n, 1), (2, n)]) + (
        6 if n > 1 else 0
    )
    assert ">nan<" not in text
    assert "left nan" not in text


def test_dead_layer() -> None:
    """Zero weights and zero signals: nothing to divide by."""
    dead = replace(
        layer("dead", 5, 4),
        covariance=df.Covariance.from_samples(np.zeros((10, 5))),
        weight=np.zeros((5, 4)),
    )
    text = report.html(Layers(layers=solve([dead], order=True), configuration={}))
    Page(text)
    assert ">nan<" not in text
    assert "left nan" not in text


def test_weights_that_cannot_be_drawn_do_not_cost_the_page(found: Layers) -> None:
    one = found.layers[0]
    broken = [
        replace(one, name="nan", weight=np.full((24, 3), np.nan)),
        replace(one, name="shape", weight=np.zeros((7, 3))),
        replace(one, name="empty", weight=np.zeros((24, 0))),
    ]
    text = report.html(Layers(layers=tuple(broken), configuration={}))
    assert len(re.findall(r"Weights of the layer are not shown: \w", text)) == 3
    assert "they hold NaN or infinity" in text
    assert "they are empty" in text
    assert text.count("Eigenvalues") > 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_weights(found: Layers, dtype: str) -> None:
    torch: Any = pytest.importorskip("torch")
    for one in found.layers[:2]:
        rounded = torch.asarray(one.weight).to(getattr(torch, dtype))
        there = replace(one, weight=rounded.requires_grad_())
        here = replace(one, weight=rounded.detach().double().numpy())
        a, b = (report.html(Layers(layers=(x,), configuration={})) for x in (there, here))
        assert a == b


# Size ---------------------------------------------------------------------------------------------


def test_large_layers_take_few_bytes() -> None:
    """Noise, which compresses worst: some 150 kB with a control and an order."""
    n, m = 700, 1300
    solved = solve([replace(layer("a", n, m), name=str(i)) for i in range(2)])
    order = df.descramble_permutation(np.eye(n), time_limit=0.1)
    solved = tuple(replace(one, order=order) for one in solved)
    text = report.html(Layers(layers=solved, control=solved, configuration={}))
    assert len(text.encode()) < 2 * 150_000
    assert [picture[:2] for picture in drawn(text)[:1]] == [(163, 175)]
    assert "every 4th neuron; every 8th input" in text


def test_many_layers_share_the_bytes(found: Layers) -> None:
    layers = [replace(found.layers[0], name=f"layer.{i}", weight=None) for i in range(40)]
    big = replace(layer("layer.0", 300, 300), covariance=None)
    layers[0] = solve([big], criterion="trace")[0]
    parsed = Page(text := report.html(Layers(layers=tuple(layers), configuration={})))
    assert [("open" in a) for a in parsed.has("details")] == [True] + [False] * 39
    width, height, *_ = drawn(text)[0]
    assert width * height <= 12_500


def test_the_same_layers_give_the_same_page(found: Layers, page: str) -> None:
    assert report.html(found) == page


def test_the_written_file(found: Layers, page: str, tmp_path: Path) -> None:
    found.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_no_plotting_library_is_loaded(fresh_python: Any) -> None:
    assert "False" in fresh_python(
        "import sys; import descramble_fast.report; print('matplotlib' in sys.modules)"
    )


# Colours and figures ------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_light_and_dark() -> None:
    style = Path(report.__file__).with_name("data") / "report.css"
    blocks = re.findall(r":root \{([^}]*)\}", style.read_text(encoding="utf-8"))[:2]
    for block in blocks:
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
        for name, least in {
            "ink": 7.0,
            "soft": 4.5,
            "error": 4.5,
            "link": 4.5,
            "before": 3.0,
            "after": 3.0,
            "control": 3.0,
        }.items():
            pair = sorted(luminance(colours[c]) for c in (name, "paper"))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, name


def test_binned_spectra_keep_their_mean() -> None:
    for n in (1, 2, 5, 80, 1536):
        power = np.random.default_rng(n).random(n)
        x, means = _svg.binned(power)
        assert (np.diff(x) > 0).all()
        assert 1 <= x[0] <= x[-1] <= n
        assert means[0] == pytest.approx(power[0])
        assert means.min() >= power.min()
        assert means.max() <= power.max()
    np.testing.assert_allclose(_svg.binned(np.full(300, 2.5))[1], 2.5)


@pytest.mark.parametrize("shape", [(1, 1), (80, 256), (1536, 384), (4096, 2), (3, 50_000)])
def test_steps_fit_the_pixels(shape: tuple[int, int]) -> None:
    down, across = _svg.steps(shape, 40_000)
    rows, columns = -(-shape[0] // down), -(-shape[1] // across)
    assert rows * columns <= 40_000
    assert max(rows, columns) <= 400
    assert max(rows, columns) > 300 or (down, across) == (1, 1) or rows * columns > 25_000


# A browser ----------------------------------------------------------------------------------------

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")


def browse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Content Security Policy" not in done.stderr
    return done


@needs_browser
def test_on_a_phone_and_by_link(page: str, tmp_path: Path) -> None:
    """At 360 pixels nothing but a table's own box scrolls; a link opens its section."""
    frame = f'<iframe width="360" height="700" srcdoc="{html.escape(page)}"></iframe>'
    script = """<script>
    addEventListener("load", () => {
      const page = frames[0].document;
      const say = (...words) => { document.body.dataset.found += words.join(" ") + ";"; };
      document.body.dataset.found = "";
      for (const section of page.querySelectorAll("details")) section.open = true;
      say("over", page.documentElement.scrollWidth - page.documentElement.clientWidth);
      const wide = [...page.querySelectorAll("main *")].filter(element =>
        !element.closest(".table") && element.getBoundingClientRect().right > 360);
      say("beyond", wide.length);
      say("text", Math.min(...[...page.querySelectorAll("svg text")].map(
        element => element.getBoundingClientRect().height)) > 8);
      for (const section of page.querySelectorAll("details")) section.open = false;
      frames[0].location.hash = "layer-3";
      setTimeout(() => say("open", ...[...page.querySelectorAll("details")].map(d => d.open)), 300);
    });
    </script>"""
    wrapper = tmp_path / "frame.html"
    wrapper.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frame}{script}</body>")
    done = browse(tmp_path, "--virtual-time-budget=3000", "--dump-dom", wrapper.as_uri())
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match is not None
    assert match[1] == "over 0;beyond 0;text true;open false false true false;"


@needs_browser
def test_in_print_every_section_is_open(found: Layers, tmp_path: Path) -> None:
    """The sections of six layers do not fit one page, which they would if they stayed closed."""
    layers = [replace(found.layers[0], name=f"layer.{i}") for i in range(6)]
    pages = {}
    for count in (1, 6):
        source, target = tmp_path / "page.html", tmp_path / f"{count}.pdf"
        Layers(layers=tuple(layers[:count]), configuration={}).report(source)
        browse(tmp_path, f"--print-to-pdf={target}", source.as_uri())
        pages[count] = len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))
    assert pages[6] >= pages[1] + 5
