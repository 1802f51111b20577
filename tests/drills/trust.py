"""What a file says is data: it runs nothing, names no place to write to, and claims no memory."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from click.testing import CliRunner, Result
from drill import HERE, Tally, drill
from evil import samples

import descramble_fast as df
from descramble_fast.cli import OPERATORS, descramble_fast

# A terminal's and a reader's: what could move the cursor, recolour, or turn text around.
UNPRINTABLE = {*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {10}
NAMES = (
    *("../../x", "/etc/x", "..", ".", "~", "a/../../b", "C:\\x", "CON", "nul.txt", "a:b", "*", "?"),
    *("a\0b", "\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\nb", "\u202ea", "\t"),
    *("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</title></style></script>"),
    *(
        "]]>",
        "<!--",
        "-->",
        "&lt;",
        "{{7*7}}",
        "%2e%2e%2fx",
        "%00",
        "a" * 200,
        " ",
        "ä" * 30,
        "\u2028",
    ),
    *(
        "=cmd|' /C calc'!A0",
        "$(touch x)",
        "`touch x`",
        ";touch x",
        "-rf",
        "--output",
        "\ufeff",
        "\x7f",
    ),
)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(descramble_fast, [str(argument) for argument in arguments])


def ended(result: Result) -> bool:
    """Whether a command came to its end or said in a line why not, without a traceback."""
    return isinstance(result.exception, (SystemExit, type(None))) and result.exit_code in (0, 1, 2)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@drill("files-run-nothing", "no file executes code, imports, starts or opens anything, by any door")
def files_run_nothing(tally: Tally, long: bool) -> None:
    # In a process of its own, since what watches it cannot be taken off again.
    done = subprocess.run(
        [sys.executable, HERE / "evil.py", str(400 if long else 4)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    tally.check(
        done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr[-500:]}"
    )
    if done.returncode == 0:
        said = json.loads(done.stdout)
        tally.figures["kinds of file"] = str(said["kinds"])
        tally.check(said["control"], "a pickle that was loaded went unnoticed")
        for trial, what in said["trials"]:
            tally.check(not what, f"{trial}: {what}")


LOOSE = ("wbr", "sup")  # behind the dots of a name, and in numbers that are very small


class Page(HTMLParser):
    """The elements of a page, and what its scripts and styles are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, ...]] = []
        self.raw: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in LOOSE:
            self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in LOOSE:
            self.elements.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def unknown_decl(self, data: str) -> None:
        self.elements.append(("declaration", data))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.raw.append(data)


def state_of(root: Path, but: Path) -> dict[str, object]:
    """Everything below a folder, but for what is below another."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        if path != but and but not in path.parents:
            found[str(path)] = path.read_bytes() if path.is_file() else path.lstat().st_mode
    return found


def named(root: Path, names: list[str], kind: str) -> list[object]:
    """Write a file of samples or weights whose arrays have these names."""
    path, x = root / f"in.{kind}", samples(len(names))
    if kind == "safetensors":
        safetensors.numpy.save_file(dict.fromkeys(names, x), path)
    elif kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                content = io.BytesIO()
                np.lib.format.write_array(content, x)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    elif kind == "files":
        path.mkdir()
        for name in names:
            with open(os.fsencode(path) + b"/" + os.fsencode(name) + b".npy", "wb") as file:
                np.save(file, x)
    else:
        import torch

        torch.save({f"{name}.weight": torch.from_numpy(x.copy()) for name in names}, path)
        return ["--weights", path]
    return [path]


def kinds() -> list[str]:
    found = ["safetensors", "npz", *(["files"] if sys.platform == "linux" else [])]
    return [*found, "pt"] if "torch" in sys.modules else found


@drill("names", "no name in a file writes elsewhere, adds to the report or steers the terminal")
def names(tally: Tally, long: bool) -> None:
    rng = random.Random(0)
    if long:
        with contextlib.suppress(ModuleNotFoundError):
            import torch  # noqa: F401
    for trial in range(600 if long else 16):
        kind = kinds()[trial % len(kinds())]
        chosen = rng.sample(NAMES, rng.randint(1, 3))
        if rng.random() < 0.5:
            chosen[0] = "".join(rng.choice("".join(NAMES)) for _ in range(rng.randint(1, 60)))
        if kind == "files" or rng.random() < 0.2:
            chosen = [name.replace("/", "_").replace("\0", "_")[:60] for name in chosen]
        if kind in ("files", "pt") and rng.random() < 0.5:
            chosen[-1] = f"\udcff{chosen[-1]}"[:60]  # a byte that is no UTF-8
        chosen = list(dict.fromkeys(chosen))
        where = f"trial {trial}, {kind}, {chosen!r}"
        with folder() as root:
            out = root / "a" / "out"
            given = named(root, chosen, kind)
            before = state_of(root, out)
            (root / "a").mkdir()
            result = command("run", *given, "--output", out)
            tally.check(ended(result), f"{where}: {result.exception!r}")
            control = {char for char in result.output if ord(char) in UNPRINTABLE}
            tally.check(not control, f"{where}: printed {control}")
            lines = sum(name in result.output for name in ("samples  ", "weights  "))
            tally.check(bool(lines) or result.exit_code > 0, f"{where}: no table")
            (root / "a").rmdir() if not out.exists() else None
            after = {
                key: value for key, value in state_of(root, out).items() if key != str(root / "a")
            }
            tally.check(after == before, f"{where}: changed {after.keys() ^ before.keys()}")
            if not (out / "report.html").exists():
                continue
            page = (out / "report.html").read_text(encoding="utf-8")
            with folder() as other:
                plain = named(other, [f"n{i}" for i in range(len(chosen))], kind)
                command("run", *plain, "--output", other / "out")
                expected = Page((other / "out" / "report.html").read_text(encoding="utf-8"))
            found = Page(page)
            same = sorted(found.elements) == sorted(expected.elements) and found.raw == expected.raw
            tally.check(same, f"{where}: the report has other elements")
            with safetensors.safe_open(out / "result.safetensors", "numpy") as file:
                layers = json.loads(file.metadata()["layers"])
            tally.check(len(layers) == len(chosen), f"{where}: results of {list(layers)}")
            again = command("run", *given, "--output", out)
            tally.check(again.exit_code == 0, f"{where}: again: {again.output}")


@drill("claimed-sizes", "what a header claims is checked before memory is taken for it")
def claimed_sizes(tally: Tally, long: bool) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "evil.py", "--sizes", str(3000 if long else 40)],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    tally.check(
        done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr[-500:]}"
    )
    if done.returncode == 0:
        said = json.loads(done.stdout)
        for trial, what in said["trials"]:
            tally.check(not what, f"{trial}: {what}")
        tally.figures["largest growth, MB"] = str(said["worst"])


@drill("output-folder", "links in an output folder are not written through, private files stay so")
def output_folder(tally: Tally, long: bool) -> None:
    rng = random.Random(3)
    for trial in range(200 if long else 8):
        with folder() as root:
            out, secret = root / "out", root / "secret"
            np.save(root / "x.npy", samples(trial))
            command("run", root / "x.npy", "--output", out)
            secret.write_bytes(b"kept")
            paths = [out / "result.safetensors", out / "report.html", out / "moments/x.safetensors"]
            linked, private = rng.choice(paths[:2]), rng.choice(paths)
            mode = rng.choice([0o600, 0o640, 0o660])
            private.chmod(mode)
            if linked != private:
                linked.unlink()
                linked.symlink_to(secret)
            seen: list[tuple[str, int]] = []
            watched = functools.partial(watch, seen, os.replace)
            with patched(os, "replace", watched):
                np.save(root / "x.npy", samples(trial + 1))
                result = command("run", root / "x.npy", "--output", out, "--fresh")
            where = f"trial {trial}, link {linked.name}, private {private.name} {mode:o}"
            tally.check(result.exit_code == 0, f"{where}: {result.output}")
            tally.check(secret.read_bytes() == b"kept", f"{where}: written through the link")
            tally.check(not linked.is_symlink(), f"{where}: the link is still there")
            if private.parent == out:  # moments are deleted by --fresh
                now = stat.S_IMODE(private.stat().st_mode)
                tally.check(now == mode, f"{where}: the mode is now {now:o}")
                wide = [each for name, each in seen if name == private.name and each & ~mode]
                tally.check(not wide, f"{where}: its temporary file had mode {wide}")
            left = list(out.rglob("*.tmp"))
            tally.check(not left, f"{where}: {left} are left")


def watch(seen: list[tuple[str, int]], replace: Callable[..., None], old: Any, new: Any) -> None:
    seen.append((Path(new).name, stat.S_IMODE(os.stat(old).st_mode)))
    replace(old, new)


@contextlib.contextmanager
def patched(module: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


@drill(
    "what-made-it", "every saved state, result and report tells what it was made by, and of what"
)
def what_made_it(tally: Tally, long: bool) -> None:
    rng = random.Random(4)
    for trial in range(300 if long else 8):
        n, dtype = rng.randint(2, 12), rng.choice(["float16", "float32", "float64"])
        x = samples(trial, n, rng.randint(2, 90)).astype(dtype)
        asked: dict[str, Any] = {
            "criterion": rng.choice(["smoothness", "trace", "diagonal"]),
            "operator": rng.choice(list(OPERATORS)),
            "center": rng.random() < 0.5,
            "k": rng.choice([None, rng.randint(1, n)]),
            "order": False,
            "order_seconds": None,
            "batch_size": rng.choice([None, rng.randint(1, 20)]),
            "threads": rng.choice([None, 1, 2]),
            "device": rng.choice([None, "cpu"]),
            "layers": rng.choice(["*", "x*"]),
        }
        if asked["criterion"] == "smoothness" and rng.random() < 0.5:
            asked |= {"order": True, "order_seconds": rng.choice([None, 5.0])}
        with folder() as root:
            np.save(root / "x.npy", x)
            np.savez(root / "w.npz", **{"x.weight": samples(-trial, 5, n).astype(np.float32)})
            options = [
                part
                for key, value in asked.items()
                if value not in (None, False)
                for part in [f"--{key.replace('_', '-')}", *([] if value is True else [value])]
            ]
            out = root / "out"
            given = [root / "x.npy", "--weights", root / "w.npz", "--output", out, *options]
            result = command("run", *given)
            where = f"trial {trial}, {asked}"
            tally.check(result.exit_code == 0, f"{where}: {result.output}")
            with safetensors.safe_open(out / "result.safetensors", "numpy") as file:
                metadata = file.metadata()
            made, layer = json.loads(metadata["configuration"]), json.loads(metadata["layers"])["x"]
            expected = asked | {"descramble_fast": df.__version__, "activations": ["x.npy"]}
            expected |= {"weights": "w.npz", "control": None, "seed": 0, "gauge": "canonical"}
            for key, value in expected.items():
                told = made.get(key, "nothing")
                held = told == value or (key == "threads" and value is None and type(told) is int)
                tally.check(held, f"{where}: configuration has {told!r} for {key}, not {value!r}")
            tally.check(metadata["version"] == df.__version__, f"{where}: {metadata['version']}")
            right = layer["neurons"] == n and layer["samples"] == len(x)
            tally.check(right and layer["dtypes"] == [dtype], f"{where}: layer {layer}")
            tally.check(layer["criterion"] == asked["criterion"], f"{where}: {layer['criterion']}")
            for key in ("device", "dtype", "driver", "fallbacks"):
                tally.check(key in layer["route"], f"{where}: its route lacks {key}")
            if asked["criterion"] == "smoothness":
                op = str(OPERATORS[asked["operator"]](n))
                tally.check(layer["operator"] == op, f"{where}: {layer['operator']}, not {op}")
                tally.check(layer["gauge"] == "canonical", f"{where}: {layer.get('gauge')}")
            with safetensors.safe_open(out / "moments/x.safetensors", "numpy") as file:
                state, count = file.metadata(), int(file.get_tensor("count")[0])
            source = json.loads(state["sources"])[0]
            told = (state["version"], state["input_dtypes"], count, source["rows"], source["read"])
            tally.check(told == (df.__version__, dtype, *[len(x)] * 3), f"{where}: moments {told}")
            page = (out / "report.html").read_text(encoding="utf-8")
            for key in expected:
                tally.check(
                    f"{key}</th>" in page.replace("<wbr>", ""), f"{where}: no {key} in the report"
                )
