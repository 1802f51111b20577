"""A run's own files and command lines, as targets of the fuzzer."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import unittest.mock
from pathlib import Path

import numpy as np
from draws import FOLDER, Draws, expect, target

import descramble_fast as df
from descramble_fast import run as runs
from descramble_fast._files import FileError


@functools.cache
def _inputs() -> runs.Inputs:
    np.save(FOLDER / "a.npy", np.arange(12.0).reshape(4, 3))
    return runs.find([FOLDER / "a.npy"])


@target
def progress(data: bytes) -> None:
    """Moments with their sources and the list of unfinished layers: what a run resumes from."""
    draws = Draws(data)
    inputs, run = _inputs(), FOLDER / "run"
    shutil.rmtree(run, ignore_errors=True)
    folder = run / "moments"
    folder.mkdir(parents=True)
    described = {**vars(inputs.samples["a"].sources[0]), "read": draws.pick((4, 2, 0))}
    sound, read = json.dumps([described]), described["read"]
    for _ in range(draws.byte() % 3):
        key = draws.pick((*described, "more"))
        described[key] = draws.pick((draws.integer(), draws.number(), None, "1", [], {}, True))
    text = json.dumps([described] * draws.pick((1, 1, 1, 0, 2)))
    if draws.one_in(4):
        text = draws.take(draws.byte()).decode("utf-8", "replace")
    cov = df.Covariance(3).update(np.ones((draws.byte() % 3, 3)))
    name = draws.pick(("a", "a", "a", "b", "%41", "%ff"))
    cov._save(folder / f"{name}.safetensors", {"sources": text})
    use = draws.byte() % 4
    if draws.one_in(2):
        (folder / ".unfinished").write_bytes(draws.rest())
    with contextlib.suppress(FileError):
        if use == 0:
            found = runs.find([run])
            expect(name == "b" or set(found.moments) <= {runs.layer_of(Path(name))}, f"{found}")
        elif use == 1:
            counts = runs.merge(run / "out", [folder])
            expect(sum(counts.values()) == cov.count, f"merged {counts}")
        elif use == 2:
            resumed = runs.Run(inputs, folder)
            told = name == "a" and text == sound  # then what it says is what must be gone on from
            left = 4 - (read if told else resumed.sources["a"][0].read)
            before = cov.count if name == "a" else 0
            resumed.accumulate()
            count = resumed.moments(resumed.samples[0]).count
            expect(count == before + left, f"count {count} of {before} and {left}")
        else:
            runs.discard(folder)
            expect(not list(folder.iterdir()), "not all was discarded")


# ---------------------------------------------------------------- command lines

COMMANDS = ("run", "run", "run", "merge", "demo", "info")
OPTIONS = (
    *("--output", "--weights", "--control", "--layers", "--criterion", "--operator", "--k"),
    *("--order-seconds", "--batch-size", "--threads", "--device", "--network", "--samples", "--x"),
)
SWITCHES = ("--center", "--order", "--fresh", "--help", "--version", "-h", "--", "-", "")
VALUES = (
    *("a.npy", "b.npy", "nan.npy", "w.npz", "bad.npz", "m.safetensors", "moments", "empty", "out"),
    *("out/moments", "more", ".", "*", "[", "x", "\udcff", "\udcff.npy", "trace", "diagonal"),
    *(
        "smoothness",
        "path",
        "fourier1",
        "difference",
        "cpu",
        "cuda",
        "cuda:0",
        "cuda:",
        "cuda:\u0663",
    ),
    *("cuda:99999999999", "0", "1", "2", "3", "-1", "1.5", "1_0", "nan", "inf", "1e999", "1e-320"),
    *("2147483647", "9223372036854775807", "99999999999999999999", ""),
)


@functools.cache
def _given() -> dict[Path, bytes]:
    """Write the files that command lines are about; their content."""
    folder, rng = FOLDER / "commands", np.random.default_rng(0)
    (folder / "moments").mkdir(parents=True)
    for name, n in {"a": 4, "b": 3, os.fsdecode(b"\xff"): 2}.items():
        np.save(folder / f"{name}.npy", rng.normal(size=(6, n)))
    np.save(folder / "nan.npy", np.full((3, 4), np.nan))
    np.savez(folder / "w.npz", W1=rng.normal(size=(3, 4)), W2=rng.normal(size=(2, 3)), a=np.eye(4))
    (folder / "bad.npz").write_bytes(b"PK")
    df.Covariance.from_samples(rng.normal(size=(6, 4))).save(folder / "m.safetensors")
    df.Covariance.from_samples(rng.normal(size=(6, 4))).save(folder / "moments" / "a.safetensors")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _tidy(given: dict[Path, bytes]) -> None:
    """Leave but what was given; a command may write and discard there."""
    for path in sorted((FOLDER / "commands").rglob("*"), reverse=True):
        if path.is_file() and path not in given:
            path.unlink()
        elif path.is_dir() and path.name != "moments":
            shutil.rmtree(path, ignore_errors=True)
    for path, content in given.items():
        if not path.exists():
            path.write_bytes(content)


@target
def arguments(data: bytes) -> None:
    """Command lines, in process: an exit with a status, and never a traceback."""
    # Here, lest the other targets need the command line's libraries.
    if not all(map(importlib.util.find_spec, ("click", "matplotlib", "tqdm"))):
        return
    import click.testing

    from descramble_fast import cli
    from descramble_fast.demo import figures

    draws, given = Draws(data), _given()
    words = [draws.pick(COMMANDS)]
    if words == ["run"]:
        words += draws.pick((["a.npy"], ["a.npy", "--weights", "w.npz"], ["m.safetensors"], []))
    if words == ["demo"]:  # else it takes the network that comes with the package, and is slow
        words += ["--network", "w.npz", "--samples", "a.npy"]
    for _ in range(draws.byte() % 6):
        kind = draws.byte() % 8
        if kind < 4:
            words.append(f"{draws.pick(OPTIONS)}={draws.pick(VALUES)}")
        elif kind < 7:
            words.append(draws.pick((*VALUES, *SWITCHES, *OPTIONS, *COMMANDS)))
        else:  # what an operating system can hand over, as Python decodes it
            raw = draws.take(draws.byte() % 16).translate(None, b"\0/")
            words.append(raw.decode("utf-8", "surrogateescape"))
    outside = os.getcwd()
    os.chdir(FOLDER / "commands")
    try:
        with unittest.mock.patch.object(figures, "draw", return_value=[]):
            result = click.testing.CliRunner().invoke(cli.descramble_fast, words)
    finally:
        os.chdir(outside)
        df.set_num_threads(1)
        _tidy(given)
    sound = result.exception is None or isinstance(result.exception, SystemExit)
    if not sound:
        raise AssertionError(f"{words}: {result.exception!r}") from result.exception
    expect(0 <= result.exit_code <= 2, f"{words}: status {result.exit_code}")
    expect("Traceback" not in result.output, f"{words}: {result.output}")
