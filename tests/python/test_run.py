"""`descramble-fast run` and `merge`: every row once, whatever the format and whoever kills it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

pytest.importorskip("tqdm", reason="needs the demo extra")
testing = pytest.importorskip("click.testing", reason="needs the demo extra")

import descramble_fast as df  # noqa: E402
from descramble_fast import cli, run  # noqa: E402
from descramble_fast._files import FileError, open_arrays  # noqa: E402
from descramble_fast.demo.files import open_samples  # noqa: E402

Array = NDArray[Any]


def invoke(*arguments: object) -> testing.Result:
    return testing.CliRunner().invoke(cli.descramble_fast, [str(a) for a in arguments])


def run_well(*arguments: object) -> str:
    result = invoke("run", *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(*arguments: object) -> str:
    """Output of a command that must end in one line."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    errors = str(result.stderr)
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    return errors


def samples(rows: int = 300, n: int = 12, dtype: Any = np.float64, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray((rng.normal(size=(rows, n)) @ rng.normal(size=(n, n)) + 3).astype(dtype))


def moments(folder: Path, layer: str) -> df.Covariance:
    return df.Covariance.load(run.moments_path(folder / "moments", layer))


def assert_moments(found: df.Covariance, x: Array) -> None:
    """Equal to those of all rows at once, to the bounds that chunks are promised."""
    x = x.reshape(-1, x.shape[-1])
    expected = df.Covariance.from_samples(x)
    assert found.count == expected.count == len(x)
    assert found.input_dtypes == expected.input_dtypes
    scale = np.abs(expected.second_moment()).max()
    bound = 1e-12 if x.dtype == np.float64 else 1e-6
    assert np.abs(found.second_moment() - expected.second_moment()).max() <= bound * scale
    assert np.abs(found.mean - expected.mean).max() <= bound * np.sqrt(scale)


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "deflated", "safetensors"])
def test_files_give_the_moments_of_their_arrays(tmp_path: Path, kind: str, dtype: Any) -> None:
    x = samples(dtype=dtype).reshape(20, 15, 12)
    path = tmp_path / "h.0.npy"
    if kind in ("npy", "fortran"):
        np.save(path, np.asfortranarray(x) if kind == "fortran" else x)
    elif kind == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file({"other": x[:, :, :5].copy(), "h.0": x}, path)
    else:
        path = tmp_path / "x.npz"
        save = np.savez if kind == "npz" else np.savez_compressed
        save(path, **{"labels": np.arange(20), "h.0": x})
    run_well(path, "--output", tmp_path / "out", "--layers", "h*", "--batch-size", 7)
    assert_moments(moments(tmp_path / "out", "h.0"), x)


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    x = samples(dtype=ml_dtypes.bfloat16)
    header = {"h.0": {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [0, x.nbytes]}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + x.tobytes())
    run_well(tmp_path / "x.safetensors", "--output", tmp_path / "out", "--batch-size", 32)
    assert_moments(moments(tmp_path / "out", "h.0"), x)


@pytest.mark.parametrize("batch_size", [1, 16, 1000])
def test_zarr(tmp_path: Path, batch_size: int) -> None:
    zarr = pytest.importorskip("zarr", reason="needs zarr")
    x, y = samples().reshape(20, 15, 12), samples(dtype=np.float32, seed=1)
    group = zarr.open_group(tmp_path / "acts.zarr", mode="w")
    inner = group.create_group("encoder")
    for name, array, chunks in (("mlp", x, (3, 15, 5)), ("out", y, (64, 12))):
        inner.create_array(name, shape=array.shape, chunks=chunks, dtype=array.dtype)[:] = array
    group.create_array("labels", shape=(20,), chunks=(20,), dtype=np.int64)
    zarr.save_array(tmp_path / "alone.zarr", y)
    output = run_well(
        *(tmp_path / "acts.zarr", tmp_path / "alone.zarr"),
        *("--output", tmp_path / "out", "--batch-size", batch_size),
    )
    assert "skipped  acts.zarr: labels (20,) int64" in output
    assert_moments(moments(tmp_path / "out", "encoder/mlp"), x)
    assert_moments(moments(tmp_path / "out", "encoder/out"), y)
    assert_moments(moments(tmp_path / "out", "alone"), y)
    group.create_array("flat", shape=(20, 3), dtype=np.float32)
    twice = (tmp_path / "acts.zarr", tmp_path / "acts.zarr" / "flat")
    assert "flat: is given twice" in refused("run", *twice, "--output", tmp_path / "more")


@pytest.mark.parametrize("start", range(0, 300, 37))
@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "deflated", "safetensors", "zarr"])
def test_rows_from_any_one_on(tmp_path: Path, kind: str, start: int) -> None:
    x = samples().reshape(20, 15, 12)
    path = tmp_path / {"deflated": "x.npz", "fortran": "x.npy"}.get(kind, f"x.{kind}")
    if kind == "zarr":
        pytest.importorskip("zarr", reason="needs zarr").save_array(path, x)
    elif kind == "safetensors":
        save_file({"array": x}, path)
    elif path.suffix == ".npy":
        np.save(path, np.asfortranarray(x) if kind == "fortran" else x)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, array=x)
    (array,) = open_arrays(path).arrays.values()
    np.testing.assert_array_equal(array.read() if kind != "zarr" else x, x)
    if array.whole:
        return
    rows = array.open(start)
    for begin in range(start, 300, 50):
        out = np.empty((min(50, 300 - begin), 12))
        rows.read_into(out)
        np.testing.assert_array_equal(out, x.reshape(300, 12)[begin : begin + 50])
    rows.close()


def test_compressed_fortran_order_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", h=np.asfortranarray(samples()))
    assert "Fortran order" in refused("run", tmp_path / "x.npz", "--output", tmp_path / "out")
    assert open_arrays(tmp_path / "x.npz").arrays["h"].read().shape == (300, 12)


@pytest.mark.parametrize("keep", [100, 1000, 28_000])
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "z.npz", "x.safetensors"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, keep: int) -> None:
    x = samples()
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, x)
    elif name.endswith("npz"):
        (np.savez if name[0] == "x" else np.savez_compressed)(path, h=x)
    else:
        save_file({"h": x}, path)
    path.write_bytes(path.read_bytes()[: min(keep, path.stat().st_size - 200)])
    error = refused("run", path, "--output", tmp_path / "out", "--batch-size", 50)
    assert f"{path}: " in error
    assert ("cut short: got" in error) == (name == "x.npy" and keep >= 1000)
    assert not (tmp_path / "out" / "moments").exists()


def npy(shape: str, content: bytes = bytes(800), *, fortran: bool = False) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("(-5, 3)", "has shape (-5, 3)"),
        ("(5, -3)", "has shape (5, -3)"),
        ("(True, 3)", "has shape (True, 3)"),
        ("(4294967296, 8)", "cut short: got 800 bytes, expected 274877906944"),
        ("(3, 1000000000)", "cut short: got 800 bytes, expected 24000000000"),
        (f"({10**21}, 3)", "cut short"),
        (f"(0, {10**21})", "expected floating-point arrays"),
    ],
)
def test_sizes_are_checked_before_they_are_believed(
    tmp_path: Path, shape: str, words: str, fortran: bool
) -> None:
    (tmp_path / "x.npy").write_bytes(npy(shape, fortran=fortran))
    assert words in refused("run", tmp_path / "x.npy", "--output", tmp_path / "out")


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 2, 0), (0, 4), (0,)])
@pytest.mark.parametrize("kind", ["npy", "fortran", "npz", "zarr"])
def test_arrays_without_elements_are_read(
    tmp_path: Path, shape: tuple[int, ...], kind: str
) -> None:
    x = np.ones(shape, order="F" if kind == "fortran" else "C")
    if kind == "zarr":
        import zarr

        path = tmp_path / "x.zarr"
        zarr.create_array(path, shape=shape, chunks=(2,) * len(shape), dtype="f8")
    else:
        path = tmp_path / f"x.{'npz' if kind == 'npz' else 'npy'}"
        np.savez_compressed(path, array=np.asfortranarray(x)) if kind == "npz" else np.save(path, x)
    assert open_arrays(path).arrays["array"].read().shape == shape


def test_an_element_type_whose_name_numpy_does_not_read_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<V1000000000', 'fortran_order': False, 'shape': (0,), }".ljust(117)
    content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header + b"\n"
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(FileError, match="array is void8000000000, expected numbers"):
        open_arrays(tmp_path / "x.npy").arrays["array"].read()


def test_an_impossible_shape_without_elements_is_refused(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F64","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match="too big"):
        open_arrays(tmp_path / "x.safetensors").arrays["x"].read()


@pytest.mark.parametrize(
    "change",
    [{"read": "1"}, {"read": -1}, {"read": 7}, {"rows": None}, {"read": True}, {"path": []}],
)
def test_sources_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", samples(rows=6))
    run_well(tmp_path / "x.npy", "--output", out)
    path = run.moments_path(out / "moments", "x")
    (said,) = run.read_sources(path)
    sources = json.dumps([{**vars(said), **change}])
    df.Covariance.load(path)._save(path, {"sources": sources})
    for source, to in ((out, tmp_path / "other"), (tmp_path / "x.npy", out)):
        assert "cannot be of Source" in refused("run", source, "--output", to)


def test_more_rows_than_a_source_has_were_not_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    np.save(tmp_path / "x.npy", samples(rows=6))
    run_well(tmp_path / "x.npy", "--output", out)
    path = run.moments_path(out / "moments", "x")
    (source,) = run.read_sources(path)
    sources = json.dumps([{**vars(source), "rows": 7, "read": 7}])
    df.Covariance.load(path)._save(path, {"sources": sources})
    assert "has changed" in refused("run", tmp_path / "x.npy", "--output", out)


def test_a_broken_list_of_unfinished_layers_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", samples())
    (tmp_path / ".unfinished").write_bytes(b"\xff\xfe")
    assert "has not come to the end" in refused("run", tmp_path, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    "option",
    [
        *("--k=99999999999999999999", "--threads=9223372036854775807", "--order-seconds=nan"),
        *("--order-seconds=inf", "--device=cuda:99999999999", "--device=cuda:\u0663"),
    ],
)
def test_numbers_beyond_all_bounds_are_usage_errors(tmp_path: Path, option: str) -> None:
    np.save(tmp_path / "x.npy", samples())
    result = invoke("run", tmp_path / "x.npy", "--order", option, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert option.partition("=")[0] in result.stderr


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names there are Unicode")
def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path, out = tmp_path / os.fsdecode(b"x\xff.npy"), tmp_path / os.fsdecode(b"out\xff")
    np.save(path, samples())
    assert "x\\xff" in run_well(path, "--output", out)
    assert_moments(moments(out, "x\\xff"), samples())
    np.savez(tmp_path / os.fsdecode(b"\xfe.npz"), **{"x.weight": samples(), "y": np.arange(3)})
    weights = tmp_path / os.fsdecode(b"\xfe.npz")
    assert "\\xfe.npz" in run_well(weights, "--weights", weights, "--output", tmp_path / "more")


def test_no_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> df.Covariance:
        raise MemoryError("std::bad_alloc")

    np.save(tmp_path / "x.npy", samples())
    monkeypatch.setattr(run, "Covariance", full)
    error = refused("run", tmp_path / "x.npy", "--output", tmp_path / "out")
    assert error == "Error: layer x: no memory for the moments of 12 neurons\n"


def test_other_byte_orders_and_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), dtype=">f4"))
    error = refused("run", tmp_path / "x.npy", "--output", tmp_path / "out")
    assert "x.npy: array (5, 3) >f4" in error
    assert "native byte order" in error
    np.save(tmp_path / "o.npy", np.array([[Trap(tmp_path / "mark")]]), allow_pickle=True)
    assert "objects" in refused("run", tmp_path / "o.npy", "--output", tmp_path / "out")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_pickled_chunks_are_not_unpickled(tmp_path: Path, place: str) -> None:
    pytest.importorskip("zarr", reason="needs zarr")
    codec = {"id": "pickle", "protocol": 5}
    header = {"zarr_format": 2, "shape": [5, 3], "chunks": [5, 3], "dtype": "<f8", "order": "C"}
    header |= {"fill_value": 0, "compressor": None, "filters": None}
    header[place] = codec if place == "compressor" else [codec]
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / ".zarray").write_text(json.dumps(header))
    (tmp_path / "x.zarr" / "0.0").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    assert "x.zarr: " in refused("run", tmp_path / "x.zarr", "--output", tmp_path / "out")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "z.npz", "x.safetensors", "x.pt", "old.pt"])
def test_broken_bytes_end_in_one_line(tmp_path: Path, name: str) -> None:
    """One byte at a time, anywhere in what the formats' libraries read first."""
    x, path = samples(20, 3), tmp_path / name
    if name.endswith(".pt"):
        torch = pytest.importorskip("torch", reason="needs torch")
        zipped = name == "x.pt"
        torch.save({"h": torch.from_numpy(x)}, path, _use_new_zipfile_serialization=zipped)
    elif name == "x.npy":
        np.save(path, x)
    elif name.endswith("npz"):
        (np.savez if name[0] == "x" else np.savez_compressed)(path, h=x)
    else:
        save_file({"h": x}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    seen = set()
    for position in rng.choice(min(len(whole), 250), 30, replace=False):
        broken = bytearray(whole)
        broken[position] = int(rng.choice([0, 255, broken[position] ^ 8]))
        path.write_bytes(broken)
        arguments = ["--weights", path] if name.endswith(".pt") else [path]
        result = invoke("run", *arguments, "--output", tmp_path / "out", "--fresh")
        assert result.exception is None or isinstance(result.exception, SystemExit), position
        assert result.stderr.count("\n") == (result.exit_code != 0)
        seen.add(result.exit_code)
    assert 1 in seen


# ---------------------------------------------------------------- layers and shards


def test_layers_and_shards(tmp_path: Path) -> None:
    """One name: one layer, in the order of the files; other names: other layers."""
    x = samples(dtype=np.float32)
    (tmp_path / "rank0").mkdir()
    (tmp_path / "rank1").mkdir()
    np.save(tmp_path / "rank0" / "mlp.npy", x[:10])
    np.save(tmp_path / "rank1" / "mlp.npy", x[10:])
    for i, part in enumerate(np.array_split(x, 3)):
        np.save(tmp_path / "rank0" / f"att-{i + 1:05}-of-00003.npy", part)
        save_file({"h.0": part, "h.1": part[:, :5].copy()}, tmp_path / f"{i}.safetensors")
    np.save(tmp_path / "rank1" / "h.1.npy", np.empty((0, 5), dtype=np.float32))
    output = run_well(
        *(tmp_path / "rank0", tmp_path / "rank1", *sorted(tmp_path.glob("*.safetensors"))),
        *("--output", tmp_path / "out", "--order"),
    )
    for name, expected in (("mlp", x), ("att", x), ("h.0", x), ("h.1", x[:, :5])):
        assert_moments(moments(tmp_path / "out", name), expected)
    first, *rows = [line.split() for line in output.splitlines()]
    assert first[:6] == ["reading", "49.2kB", "of", "4", "layers", "in"]
    assert rows[0][:5] == ["layer", "kind", "tap", "neurons", "samples"]
    assert {row[0]: row[3:5] for row in rows[1:5]} == {
        "mlp": ["12", "300"],
        "att": ["12", "300"],
        "h.0": ["12", "300"],
        "h.1": ["5", "300"],
    }
    assert rows[-1][0] == "written"
    result = load_file(tmp_path / "out" / "result.safetensors")
    d = df.descramble(df.Covariance.from_samples(x))
    np.testing.assert_allclose(result["h.0/eigenvalues"], d.eigenvalues, rtol=1e-5)
    assert sorted(result["h.1/order"]) == list(range(5))
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    for name in ("mlp", "att", "h.0", "h.1"):
        assert name in html
    assert str(tmp_path) not in html


def test_options_reach_the_solver(tmp_path: Path) -> None:
    x = samples(200, 8)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out"
    makers: dict[str, Callable[[int], df.operators.Operator]] = cli.OPERATORS
    for name, make in makers.items():
        output = run_well(
            *(tmp_path / "x.npy", "--output", out, "--operator", name, "--center", "--k", 3),
            *("--device", "cpu"),
        )
        d = df.descramble(x, operator=make(8), center=True, k=3)
        with safe_open(out / "result.safetensors", framework="numpy") as file:
            layer = json.loads(file.metadata()["layers"])["x"]
            assert file.get_tensor("x/components").shape == (3, 8)
        assert layer["cost"] == pytest.approx(d.cost, rel=1e-9)
        # Read once, solved again.
        assert ("resumed  x: 200 of 200 rows were read" in output) == (name != "fourier")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/x.npy": (5, 3), "b/x.npy": (5, 4)}, ["4 neurons", "expected 3", "called x"]),
        ({"x.npy": (5,)}, ["no layer found", "x.npy: array (5,) float64"]),
        ({"x.txt": (5, 3)}, ["holds no .npy"]),
    ],
)
def test_arrays_that_make_no_layer(
    tmp_path: Path, files: dict[str, tuple[int, ...]], words: list[str]
) -> None:
    for name, shape in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        with open(tmp_path / "in" / name, "wb") as file:
            np.save(file, np.ones(shape))
    folders = {(tmp_path / "in" / name).parent for name in files}
    error = refused("run", *sorted(folders), "--output", tmp_path / "out")
    for word in words:
        assert word in error


def test_a_control_stands_beside_the_layers(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    (tmp_path / "untrained").mkdir()
    for seed, folder in enumerate(("trained", "untrained")):
        for layer in ("a", "b")[: 2 - seed]:
            np.save(tmp_path / folder / f"{layer}.npy", samples(seed=seed))
    run_well(tmp_path / "untrained", "--output", tmp_path / "control")
    command = (tmp_path / "trained", "--output", tmp_path / "out", "--control")
    table = run_well(*command, tmp_path / "control")
    d = df.descramble(samples(seed=1))
    assert "control left" in table
    assert f"{d.cost / d.initial_cost:.3g}" in table
    with safe_open(tmp_path / "out" / "result.safetensors", "numpy") as file:
        control = json.loads(file.metadata()["control"])
    assert list(control) == ["a"]
    assert control["a"]["cost"] == pytest.approx(d.cost, rel=1e-9)
    assert "expected moments" in refused("run", *command, tmp_path / "untrained")
    np.save(tmp_path / "untrained" / "a.npy", samples(n=5))
    run_well(tmp_path / "untrained", "--output", tmp_path / "narrow")
    narrow = tmp_path / "narrow" / "moments"
    assert "has 5 neurons, expected 12 as a has" in refused("run", *command, narrow)
    np.save(tmp_path / "c.npy", samples())
    run_well(tmp_path / "c.npy", "--output", tmp_path / "other")
    other = tmp_path / "other" / "moments"
    assert "holds moments of none of the layers" in refused("run", *command, other)
    usage = invoke("run", *command, other, "--criterion", "trace")
    assert usage.exit_code == 2
    assert "--control holds no weights, which trace reads" in usage.stderr


def test_output_beside_the_samples(tmp_path: Path) -> None:
    x = samples()
    np.save(tmp_path / "x.npy", x)
    for words in ("reading", "resumed"):
        assert words in run_well(tmp_path, "--output", tmp_path)
    assert_moments(moments(tmp_path, "x"), x)
    assert invoke("merge", tmp_path / "merged", tmp_path).exit_code == 0
    assert_moments(df.Covariance.load(tmp_path / "merged" / "x.safetensors"), x)


def test_what_is_no_input_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", samples())
    x, out = tmp_path / "x.npy", tmp_path / "out"
    os.symlink(x, tmp_path / "x-1-of-2.npy")
    os.link(x, tmp_path / "x-2-of-2.npy")
    for again in (tmp_path / "." / "x.npy", tmp_path / "x-1-of-2.npy", tmp_path / "x-2-of-2.npy"):
        assert f"{again}: is given twice" in refused("run", x, again, "--output", out)
    assert "got layers x" in refused("run", x, "--layers", "y", "--output", out)
    assert "x.npy" in refused("run", x, "--output", x / "below")
    run_well(x, "--output", out)
    result = out / "result.safetensors"
    assert "holds a run's results" in refused("run", result, "--output", tmp_path / "more")
    usage: list[list[object]] = [
        ["run"],
        ["run", x, "--device", "tpu"],
        ["run", tmp_path / "none.npy"],
        ["run", x, "--order", "--criterion", "trace"],
    ]
    for arguments in usage:
        assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("row", [0, 20, 137, 299])
def test_nan_is_named_and_rows_before_it_are_kept(tmp_path: Path, row: int) -> None:
    x = samples()
    x[row, 4] = np.nan
    save_file({"h.0": x[:100].copy()}, tmp_path / "a.safetensors")
    save_file({"h.0": x[100:].reshape(20, 10, 12)}, tmp_path / "b.safetensors")
    arguments = ("run", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    arguments += ("--output", tmp_path / "out", "--batch-size", "30")  # type: ignore[assignment]
    for _ in range(2):
        error = refused(*arguments)
        assert "layer h.0" in error
        file, place = ("a", row) if row < 100 else ("b", divmod(row - 100, 10))
        assert f"{file}.safetensors: holds nan at row {place}, column 4" in error
        kept = moments(tmp_path / "out", "h.0")
        assert kept.count == row
        if row:
            assert_moments(kept, x[:row])
    assert not (tmp_path / "out" / "result.safetensors").exists()


def test_overflow_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((50, 3), 1e200))
    error = refused("run", tmp_path / "x.npy", "--output", tmp_path / "out", "--batch-size", 20)
    assert f"layer x, {tmp_path / 'x.npy'}: rows 0 to 19" in error
    x = np.ones((50, 3))
    x[10], x[15] = 1e200, np.nan
    np.save(tmp_path / "y.npy", x)
    error = refused("run", tmp_path / "y.npy", "--output", tmp_path / "more", "--batch-size", 20)
    assert "y.npy: rows 0 to 14" in error


@pytest.mark.parametrize("name", ["", "x" * 222, "層" * 25])
def test_names_that_make_no_file(tmp_path: Path, name: str) -> None:
    save_file({name: samples()}, tmp_path / "x.safetensors")
    error = refused("run", tmp_path / "x.safetensors", "--output", tmp_path / "out")
    assert f"layer {name!r}: its moments' file" in error
    name = name[:-1] or ".."
    save_file({name: samples()}, tmp_path / "x.safetensors")
    for words in ("reading", "resumed"):
        assert words in run_well(tmp_path / "x.safetensors", "--output", tmp_path / "more")
    assert moments(tmp_path / "more", name).count == 300


def test_only_its_own_files_are_tidied(tmp_path: Path) -> None:
    """Of an output folder that holds other things, and of a user's file called `unfinished`."""
    np.save(tmp_path / "x.npy", samples())
    run_well(tmp_path, "--output", tmp_path)
    left = [
        tmp_path / ".report.html.0123456789abcdef.tmp",
        tmp_path / "moments" / ".x.safetensors.0123456789abcdef.tmp",
    ]
    names = (".mine.tmp", ".y.npy.0123456789abcdef.tmp", "unfinished")
    kept = [tmp_path / name for name in names]
    for path in left + kept:
        path.write_bytes(b"\xff")
    (tmp_path / ".merged.0123456789abcdef.tmp").mkdir()
    run_well(tmp_path, "--output", tmp_path)
    assert [path.exists() for path in left + kept] == [False] * 2 + [True] * 3


# ---------------------------------------------------------------- killed, stopped, resumed

# The command with small segments that are saved as soon as they are summed.
EAGER = """
import os, signal, sys, time
from descramble_fast import cli, run
run._SECONDS = run._SHARE = 0
run._SEGMENT_BYTES = 1 << 18
save, saves = run._save, []
def counted(*arguments):
    {before_a_save}
    saves.append(save(*arguments))
run._save = counted
{at_start}
cli.descramble_fast(sys.argv[1:])
"""
# However slow whoever waits for it is: a quarter of the way, it stays till it is killed.
HELD = "len(saves) < 25 or time.sleep(60)"


def start(*arguments: object, before_a_save: str = "", at_start: str = "") -> subprocess.Popen[str]:
    script = EAGER.format(before_a_save=before_a_save, at_start=at_start)
    return subprocess.Popen(
        [sys.executable, "-c", script, "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def wait_for_a_save(path: Path, process: subprocess.Popen[str]) -> None:
    before = path.stat().st_mtime_ns if path.exists() else 0
    while (path.stat().st_mtime_ns if path.exists() else 0) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments and saves as the processes above have them."""
    for name, value in (("_SECONDS", 0), ("_SHARE", 0), ("_SEGMENT_BYTES", 1 << 18)):
        monkeypatch.setattr(run, name, value)


def content(path: Path) -> dict[str, bytes | str]:
    """Every bit of a safetensors file but the order of its metadata."""
    with safe_open(path, framework="numpy") as file:
        words = dict(file.metadata())
    return words | {name: array.tobytes() for name, array in load_file(path).items()}


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two shards of a layer and a layer of another file; the moments of a run left alone."""
    folder = tmp_path_factory.mktemp("streamed")
    x = samples(120_000, 64, np.float32)
    for name, part in (("a", x[:50_000]), ("b", x[50_000:])):
        save_file({"h.0": np.ascontiguousarray(part)}, folder / f"{name}.safetensors")
    np.savez_compressed(folder / "c.npz", **{"h.1": x[:20_000, :48]})
    files = [folder / name for name in ("a.safetensors", "b.safetensors", "c.npz")]
    code, _, errors = ended(start(*files, "--output", folder / "out", "--batch-size", 500))
    assert code == 0, errors
    assert_moments(moments(folder / "out", "h.0"), x)
    assert_moments(moments(folder / "out", "h.1"), x[:20_000, :48])
    return files, folder / "out" / "moments"


def assert_resumed(arguments: tuple[object, ...], out: Path, alone: Path) -> None:
    """Bit for bit the moments of a run left alone, and nothing else left behind."""
    assert "finish" in refused("merge", out.parent / "merged", out)
    state = run.moments_path(out / "moments", "h.0")
    count = df.Covariance.load(state).count if state.exists() else 0
    output = run_well(*arguments)
    assert (f"resumed  h.0: {count:,} of 120,000 rows were read" in output) == (count > 0)
    names = {"h.0.safetensors", "h.1.safetensors"}
    assert {path.name for path in (out / "moments").iterdir()} == names
    for name in names:
        assert content(out / "moments" / name) == content(alone / name)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_counts_every_row_once(
    tmp_path: Path, streamed: tuple[list[Path], Path], seed: int
) -> None:
    files, alone = streamed
    arguments = (*files, "--output", tmp_path / "out", "--batch-size", 500)
    rng = np.random.default_rng(seed)
    for _ in range(2):
        process = start(*arguments, before_a_save=HELD)
        wait_for_a_save(tmp_path / "out" / "moments" / "h.0.safetensors", process)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        assert ended(process)[0] == -signal.SIGKILL
    assert_resumed(arguments, tmp_path / "out", alone)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("steps", [(1, 3), (2, 4), (5, 100), (288, 0)])
def test_killed_between_any_two_steps_of_a_save(
    tmp_path: Path, streamed: tuple[list[Path], Path], steps: tuple[int, int]
) -> None:
    """Before a file is on disk, before it has its name, before that name is on disk."""
    files, alone = streamed
    arguments = (*files, "--output", tmp_path / "out", "--batch-size", 500)
    for count in steps:
        at_start = f"""
steps = iter(range({count}))
def step(call):
    def killed(*arguments, **options):
        next(steps, None) is not None or os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return killed
os.fsync, os.replace, os.unlink = step(os.fsync), step(os.replace), step(os.unlink)
"""
        code, output, errors = ended(start(*arguments, at_start=at_start))
        assert code == -signal.SIGKILL, output + errors
    assert_resumed(arguments, tmp_path / "out", alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_keeps_what_it_read(
    tmp_path: Path, streamed: tuple[list[Path], Path], number: signal.Signals
) -> None:
    files, alone = streamed
    arguments = (*files, "--output", tmp_path / "out", "--batch-size", 100)
    stop = f"len(saves) == 2 and os.kill(os.getpid(), {int(number)})"
    code, _, errors = ended(start(*arguments, before_a_save=stop))
    assert code == 128 + number
    assert errors == "Error: stopped; the same command goes on where this one was\n"
    assert 0 < moments(tmp_path / "out", "h.0").count < 120_000
    # With other options than before, and batches of another size: the same to rounding.
    run_well(*files, "--output", tmp_path / "out", "--operator", "path")
    for layer in ("h.0", "h.1"):
        found, left_alone = (
            moments(tmp_path / "out", layer),
            df.Covariance.load(alone / f"{layer}.safetensors"),
        )
        assert found.count == left_alone.count
        scale = np.diag(left_alone.second_moment()).max()
        difference = found.second_moment() - left_alone.second_moment()
        assert np.abs(difference).max() <= 1e-6 * scale


def test_two_runs_in_one_folder(tmp_path: Path, streamed: tuple[list[Path], Path]) -> None:
    files, _ = streamed
    process = start(*files, "--output", tmp_path / "out", before_a_save=HELD)
    wait_for_a_save(tmp_path / "out" / "moments" / "h.0.safetensors", process)
    assert "another run" in refused("run", *files, "--output", tmp_path / "out")
    process.kill()
    ended(process)
    run_well(*files, "--output", tmp_path / "out")


@pytest.mark.parametrize("opening", range(1, 5))
def test_moments_that_are_replaced_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opening: int
) -> None:
    """Rows of a run that has gone on are not taken for those of the sources read before."""
    x, out = samples(), tmp_path / "out"
    for name, part in (("a", x[:100]), ("b", x[100:])):
        save_file({"h": part.copy()}, tmp_path / f"{name}.safetensors")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run_well(a, "--output", out)
    path, later, merged = out / "moments" / "h.safetensors", tmp_path / "l", tmp_path / "m"
    whole = path.read_bytes()
    source, *_ = run.read_sources(path)
    half = run.Source(str(b), "h", "", 200, 50)
    run._save(df.Covariance.from_samples(x[:150]), later, (source, half))
    opened, opens = [], safetensors.safe_open

    def opening_it(name: str | os.PathLike[str], *rest: Any, **words: Any) -> Any:
        opened.append(name)
        if len(opened) == opening:
            path.write_bytes(later.read_bytes())
        return opens(name, *rest, **words)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "safe_open", opening_it)
        result = invoke("merge", merged, out)
    if result.exit_code:
        assert "has 50 of 200 rows" in result.output
    else:
        assert df.Covariance.load(merged / "h.safetensors").count == 100
    path.write_bytes(whole)
    opened.clear()
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "safe_open", opening_it)
        result = invoke("run", path, "--output", tmp_path / "more")
    assert "has 50 of 200 rows" in result.output if result.exit_code else " 100 " in result.output


def test_new_names_are_on_the_disk_before_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    save_file({"h": samples()}, tmp_path / "a.safetensors")
    monkeypatch.setattr(os, "fsync", noted)
    out, merged = tmp_path / "new" / "out", tmp_path / "merged"
    run_well(tmp_path / "a.safetensors", "--output", out)
    for folder in (tmp_path, out.parent, out, out / "moments"):
        assert folder.stat().st_ino in synced
    synced.clear()
    assert invoke("merge", merged, out).exit_code == 0
    assert synced[-1] == tmp_path.stat().st_ino


def test_what_a_killed_merge_left_goes_with_the_next(tmp_path: Path) -> None:
    save_file({"h": samples()}, tmp_path / "a.safetensors")
    run_well(tmp_path / "a.safetensors", "--output", tmp_path / "out")
    left = tmp_path / ".merged.0123456789abcdef.tmp"
    left.mkdir()
    (left / "h.safetensors").write_bytes(b"begun")
    assert invoke("merge", tmp_path / "merged", tmp_path / "out").exit_code == 0
    assert not left.exists()


def test_files_that_changed_are_refused(tmp_path: Path) -> None:
    x = samples()
    path, out = tmp_path / "x.npy", tmp_path / "out"
    np.save(path, x)
    run_well(path, "--output", out)
    time.sleep(0.01)
    changed = x.copy()
    changed[150, 3] += 1  # neither the first bytes nor the last, nor the size
    np.save(path, changed)
    assert "x.npy: array has changed since 300 of its rows" in refused("run", path, "--output", out)
    assert_moments(moments(out, "x"), x)
    np.save(tmp_path / "y.npy", x)
    assert "moments of x" in refused("run", tmp_path / "y.npy", "--output", out)
    run_well(path, "--output", out, "--fresh")
    assert_moments(moments(out, "x"), changed)


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", samples())
    todo = run.Run(run.find([tmp_path / "x.npy"]), tmp_path / "moments", batch_size=100)
    with pytest.raises(FileError, match=r"x.npy: array was changed while it was read"):
        todo.accumulate(lambda layer, read: np.save(tmp_path / "x.npy", samples(seed=1)))
    assert not list((tmp_path / "moments").glob("*.safetensors"))


def test_more_shards_are_added_and_missing_ones_noticed(tmp_path: Path) -> None:
    x, out = samples(), tmp_path / "out"
    for name, part in (("a", x[:100]), ("b", x[100:])):
        save_file({"h": part.copy()}, tmp_path / f"{name}.safetensors")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run_well(a, "--output", out)
    run_well(b, a, "--output", out)
    assert_moments(moments(out, "h"), x)
    assert "100 rows of" in refused("run", b, "--output", out)


def test_layers_may_be_read_at_different_times(tmp_path: Path) -> None:
    x = samples()
    np.savez(tmp_path / "x.npz", a=x, b=x[:, :5], c=x[:, :4])
    out = tmp_path / "out"
    run_well(tmp_path / "x.npz", "--output", out, "--layers", "a")
    output = run_well(tmp_path / "x.npz", "--output", out, "--layers", "[ab]")
    assert "resumed  a: 300 of 300" in output
    assert "c " not in output
    assert invoke("merge", tmp_path / "m", out).exit_code == 0


def test_a_full_disk_leaves_the_old_state(
    tmp_path: Path, streamed: tuple[list[Path], Path]
) -> None:
    """A limit on the size of files stands for the disk."""
    files, _ = streamed
    out = tmp_path / "out"
    run_well(files[2], "--output", out)
    before = (out / "moments" / "h.1.safetensors").read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (15000, 15000))"
    code, _, errors = ended(start(*files, "--output", out, at_start=limit))
    assert code == 1
    assert errors == f"Error: {out / 'moments' / 'h.0.safetensors'}: File too large\n"
    assert (out / "moments" / "h.1.safetensors").read_bytes() == before
    assert not list((out / "moments").glob(".*.tmp"))
    run_well(*files, "--output", out)


def test_killed_while_it_discards_it_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", a=samples(), b=samples(seed=1))
    arguments = (tmp_path / "x.npz", "--output", tmp_path / "out")
    run_well(*arguments)
    unlink = Path.unlink

    def killed_after(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_after)
        assert invoke("run", *arguments, "--fresh").exit_code != 0
    assert len(list((tmp_path / "out" / "moments").glob("*.safetensors"))) == 1
    assert "finish" in refused("merge", tmp_path / "merged", tmp_path / "out")
    run_well(*arguments)
    assert invoke("merge", tmp_path / "merged", tmp_path / "out").exit_code == 0


def test_ctrl_c_in_a_search_for_an_order_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", a=samples(), b=samples(seed=1))
    searched = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        searched.append(arguments)
        return replace(df.descramble_permutation(*arguments, **options), stopped="interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("descramble_fast._layers.descramble_permutation", interrupted)
        result = invoke("run", tmp_path / "x.npz", "--order", "--output", tmp_path / "out")
    assert result.exit_code != 0
    assert len(searched) == 1
    assert not (tmp_path / "out" / "report.html").exists()
    run_well(tmp_path / "x.npz", "--order", "--output", tmp_path / "out")


@pytest.mark.parametrize("kind", ["npz", "deflated", "fortran", "zarr"])
def test_memory_is_what_was_stated(tmp_path: Path, fresh_python: Any, kind: str) -> None:
    """120 MB in far less memory, and chunks of 40 MB in what they take."""
    rows, path = 30_000, tmp_path / "h.npy"
    if kind == "fortran":
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, 1000), fortran_order=True)
    elif kind == "zarr":
        zarr, path = pytest.importorskip("zarr", reason="needs zarr"), tmp_path / "h.zarr"
        chunks = (rows // 3, 1000)
        h = zarr.create_array(path, shape=(rows, 1000), chunks=chunks, dtype="float32")
        h[:] = np.random.default_rng(0).standard_normal((rows, 1000), dtype=np.float32)
    else:
        path = tmp_path / "h.npz"
        save = np.savez if kind == "npz" else np.savez_compressed
        save(path, h=np.zeros((rows, 1000), dtype=np.float32))
    script = """
        import re, sys
        from pathlib import Path
        from descramble_fast import run
        def peak():
            status = Path("/proc/self/status").read_text()
            return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
        todo = run.Run(run.find([Path(sys.argv[1])]), Path(sys.argv[2]))
        before = peak()
        todo.accumulate()
        print(peak() - before, todo.memory)
    """
    taken, stated = map(int, fresh_python(script, path, tmp_path / "out").split())
    assert stated < (340e6 if kind == "zarr" else 210e6)
    assert 0.3 * stated < taken < stated


# ---------------------------------------------------------------- merge


def test_merged_shards_are_the_whole(tmp_path: Path) -> None:
    x = samples()
    cuts = [(0, 50), (50, 51), (51, 51), (51, 300)]
    for i, (begin, end) in enumerate(cuts):
        save_file({"h.0": x[begin:end].copy()}, tmp_path / f"{i}.safetensors")
        if i % 2:
            np.save(tmp_path / f"h.1-{i}-of-4.npy", x[begin:end, :5])
        files = [
            p for p in (tmp_path / f"{i}.safetensors", tmp_path / f"h.1-{i}-of-4.npy") if p.exists()
        ]
        run_well(*files, "--output", tmp_path / f"out{i}") if end > begin else invoke(
            "run", *files, "--output", tmp_path / f"out{i}"
        )
    outs = [tmp_path / f"out{i}" for i in range(4)]
    result = invoke("merge", tmp_path / "all", *outs)
    assert result.exit_code == 0, result.output
    assert "h.0: 300 samples" in result.stdout
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        "h.0.safetensors",
        "h.1.safetensors",
    }
    assert_moments(df.Covariance.load(tmp_path / "all" / "h.0.safetensors"), x)
    rest = np.concatenate([x[50:51, :5], x[51:, :5]])
    assert_moments(df.Covariance.load(tmp_path / "all" / "h.1.safetensors"), rest)
    # Pairs first, in another order.
    for name, pair in (("left", (3, 0)), ("right", (2, 1))):
        assert invoke("merge", tmp_path / name, *(outs[i] for i in pair)).exit_code == 0
    result = invoke("merge", tmp_path / "again", tmp_path / "left", tmp_path / "right")
    assert result.exit_code == 0, result.output
    assert_moments(df.Covariance.load(tmp_path / "again" / "h.0.safetensors"), x)
    # A run on what was merged: the same as on the samples.
    output = run_well(tmp_path / "all", "--output", tmp_path / "solved")
    assert "h.0    moments" in output
    run_well(*(tmp_path / f"{i}.safetensors" for i in range(4)), "--output", tmp_path / "direct")
    merged, direct = (
        load_file(tmp_path / name / "result.safetensors") for name in ("solved", "direct")
    )
    np.testing.assert_allclose(
        merged["h.0/eigenvalues"], direct["h.0/eigenvalues"], rtol=1e-9, atol=1e-12
    )


def test_merged_files_of_one_layer(tmp_path: Path) -> None:
    x = samples()
    df.Covariance.from_samples(x[:100]).save(tmp_path / "a.safetensors")
    df.Covariance.from_samples(x[100:]).save(tmp_path / "b.safetensors")
    df.Covariance(12).save(tmp_path / "none.safetensors")
    df.Covariance(12).save(tmp_path / "nothing.safetensors")
    out = tmp_path / "h.safetensors"
    files = [tmp_path / f"{name}.safetensors" for name in ("none", "a", "nothing", "b")]
    assert invoke("merge", out, *files).exit_code == 0
    assert_moments(df.Covariance.load(out), x)


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    x = samples()
    a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
    df.Covariance.from_samples(x[:100]).save(a)
    df.Covariance.from_samples(x[100:]).save(b)
    df.Covariance.from_samples(x[:, :5]).save(c)
    out = tmp_path / "out.safetensors"

    def refused_merge(*paths: Path) -> str:
        error = refused("merge", out, *paths)
        assert not out.exists()
        return error

    error = refused_merge(a, c)
    assert "c.safetensors: has 5 neurons, expected 12" in error
    assert "a.safetensors" in error
    assert "already in" in refused_merge(a, b, a)
    (tmp_path / "copy.safetensors").write_bytes(a.read_bytes())
    assert "already in" in refused_merge(a, tmp_path / "copy.safetensors")
    assert invoke("merge", tmp_path / "ab.safetensors", a, b).exit_code == 0
    assert "already in" in refused_merge(tmp_path / "ab.safetensors", b)
    assert "files and folders" in refused_merge(a, tmp_path)
    np.save(tmp_path / "x.npy", x)
    assert "x.npy: holds no moments" in refused_merge(a, tmp_path / "x.npy")
    df.Covariance.from_moments(np.eye(12)).save(tmp_path / "bare.safetensors")
    assert "bare.safetensors" in refused_merge(a, tmp_path / "bare.safetensors")
    assert "exists" in refused("merge", b, a)
    assert "name in .safetensors" in refused("merge", tmp_path / "out", a, b)
    # One file, read by two runs.
    for name in ("one", "two"):
        run_well(tmp_path / "x.npy", "--output", tmp_path / name, "--batch-size", 50)
    error = refused("merge", tmp_path / "both", tmp_path / "one", tmp_path / "two")
    assert "x.npy are already in" in error
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "both"))]


# ---------------------------------------------------------------- weights


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Array]:
    rng = np.random.default_rng(5)
    found = {
        "h.0.weight": rng.normal(size=(12, 7)).astype(np.float32),
        "h.1.weight": rng.normal(size=(9, 12)),
        "conv.weight": rng.normal(size=(12, 2, 3, 3)).astype(np.float16),
        "h.0.bias": rng.normal(size=12),
    }
    save_file(found, tmp_path / "w.safetensors")
    return found


def test_weights_alone(tmp_path: Path, weights: dict[str, Array]) -> None:
    out = tmp_path / "out"
    output = run_well("--weights", tmp_path / "w.safetensors", "--output", out, "--order")
    result = load_file(out / "result.safetensors")
    for layer in ("h.0", "h.1"):
        d = df.descramble_weights(weights[f"{layer}.weight"])
        np.testing.assert_allclose(result[f"{layer}/eigenvalues"], d.eigenvalues, rtol=1e-6)
        assert f"{layer}: no samples: W Wᵀ" in output
    assert "conv: weights (12, 2, 3, 3) of a convolution" in output
    assert not (out / "moments").exists()
    assert "h.0" in (out / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    only = run_well(
        *("--weights", tmp_path / "w.safetensors", "--output", out, "--layers", "h.0"),
        *("--criterion", "trace"),
    )
    assert "h.1" not in only
    d = df.descramble_weights(weights["h.0.weight"], criterion="trace")
    np.testing.assert_allclose(load_file(out / "result.safetensors")["h.0/matrix"], d.matrix)


def test_weights_beside_activations(tmp_path: Path, weights: dict[str, Array]) -> None:
    x = samples()
    np.savez(tmp_path / "x.npz", **{"h.0": x, "h.1": x, "conv": x, "other": x})
    layers = {
        name: run.with_weight(
            cli._layers.Layer(name=name, neurons=12), run.open_weights(tmp_path / "w.safetensors")
        )
        for name in ("h.0", "h.1", "conv", "other")
    }
    assert [layer.weight_side for layer in layers.values()] == ["output", "input"] + 2 * ["output"]
    np.testing.assert_array_equal(layers["h.0"].weight, weights["h.0.weight"])
    np.testing.assert_array_equal(layers["h.1"].weight, weights["h.1.weight"])
    conv = weights["conv.weight"].astype(np.float32).reshape(12, 18)
    np.testing.assert_array_equal(layers["conv"].weight, conv)
    assert layers["other"].weight is None
    output = run_well(
        *(tmp_path / "x.npz", "--weights", tmp_path / "w.safetensors"),
        *("--output", tmp_path / "out", "--criterion", "diagonal"),
    )
    assert "other: no weights other.weight or other with 12 neurons" in output
    assert "other: criterion diagonal: it has no weights to read" in output


def test_nothing_to_descramble_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.empty((0, 3)))
    result = invoke("run", tmp_path / "x.npy", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "x: no samples" in result.stdout
    assert result.stderr.startswith("Error: no layer")
    save_file({"a": np.ones(3)}, tmp_path / "w.safetensors")
    arguments = ("run", "--weights", tmp_path / "w.safetensors", "--output", tmp_path / "out")
    assert "got a" in refused(*arguments)


def test_state_dicts(tmp_path: Path, weights: dict[str, Array]) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    state["half"] = torch.ones(3, 4, dtype=torch.bfloat16)
    state["steps"] = torch.tensor(3)
    state["sparse"] = torch.eye(3).to_sparse()
    state["elsewhere"] = torch.empty(3, 3, device="meta")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "nested.pth", "old.pt"):
        found = run.open_weights(tmp_path / name)
        for key, array in weights.items():
            assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype.name)
            np.testing.assert_array_equal(found[key].read(), array)
        assert set(found) == {*weights, "half", "steps"}
        assert found["half"].dtype == "BF16"
        assert found["half"].read().dtype == np.float32
        run_well("--weights", tmp_path / name, "--output", tmp_path / name.replace(".", "_"))


class Trap:
    """Unpickling this would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_state_dicts_that_are_none(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.save({"a": Trap(tmp_path / "mark")}, tmp_path / "trap.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    noise = np.random.default_rng(0).bytes(5000)
    (tmp_path / "noise.pt").write_bytes(noise)
    (tmp_path / "protocol.pt").write_bytes(b"\x80" + noise)  # of which torch warns
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("trap.pt", "list.pt", "noise.pt", "protocol.pt", "empty.pt"):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            error = refused("run", "--weights", tmp_path / name, "--output", tmp_path / "out")
        assert not warned
        assert error.startswith(f"Error: {tmp_path / name}: ")
        assert "state dict" in error
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("torch", "w.pt", "w.pt: needs torch: pip install torch"),
        ("zarr", "a.zarr", "a.zarr: Zarr needs: pip install zarr"),
        ("ml_dtypes", "b.safetensors", "needs: pip install ml_dtypes"),
    ],
)
def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, words: str
) -> None:
    for loaded in [m for m in sys.modules if m.startswith("descramble_fast.torch")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / name
    if name == "w.pt":
        path.write_bytes(b"anything")
    elif name == "a.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        header = b'{"h":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    arguments = ["--weights", path] if name == "w.pt" else [path]
    assert words in refused("run", *arguments, "--output", tmp_path / "out")


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_archive_with_a_wrong_checksum_is_a_file_error(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, h=np.asarray(samples(), order=order))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        checksum = archive.getinfo("h.npy").CRC.to_bytes(4, "little")
    content[content.rindex(checksum)] ^= 1  # in the directory, which zipfile believes
    path.write_bytes(content)
    (array,) = open_arrays(path).arrays.values()
    for read in (array.read, lambda: [*open_samples(path).batches(7)]):
        with pytest.raises(FileError, match=r"x\.npz: no readable .*: Bad CRC-32"):
            read()
