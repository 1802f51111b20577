"""What a file says is data: regressions of faults that the drills of trust found."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from click.testing import CliRunner

import descramble_fast as df
from descramble_fast import _covariance
from descramble_fast import run as runs
from descramble_fast._files import FileError, open_arrays
from descramble_fast.cli import descramble_fast

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    names = ["\x1b]0;title\x07", "a\nfaked row", "\u202eright to left", "\x9b31m"]
    safetensors.numpy.save_file(dict.fromkeys(names, X), tmp_path / "x.safetensors")
    arguments = ["run", str(tmp_path / "x.safetensors"), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(descramble_fast, arguments)
    assert result.exit_code == 0
    assert all(char.isprintable() or char == "\n" for char in result.output)
    assert "\\x1b]0;title" in result.output
    assert not any(line.startswith("faked row") for line in result.output.splitlines())


def test_a_header_is_not_read_before_its_length_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "a.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(1 << 20)
        )
    with pytest.raises(FileError, match="a has a header of 2147483648 bytes"):
        open_arrays(path)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")
def test_a_private_file_stays_private_and_a_link_is_replaced(tmp_path: Path) -> None:
    cov, path = df.Covariance.from_samples(X), tmp_path / "state.safetensors"
    cov.save(path)
    path.chmod(0o600)
    cov.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "target").write_bytes(b"kept")
    os.symlink(tmp_path / "target", tmp_path / "link")
    cov.save(tmp_path / "link")
    assert (tmp_path / "target").read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_a_panic_of_safetensors_is_a_memory_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object) -> bytes:
        raise PanicException("PyObject pointer is null")

    monkeypatch.setattr(_covariance.safetensors.numpy, "save", panic)
    with pytest.raises(MemoryError, match="pointer is null"):
        df.Covariance.from_samples(X).save(tmp_path / "state.safetensors")
    assert not list(tmp_path.iterdir())


def test_results_say_all_that_made_them(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    arguments = ["run", str(tmp_path / "x.npy"), "--output", str(tmp_path / "out")]
    arguments += ["--batch-size", "7", "--threads", "1", "--device", "cpu"]
    try:
        assert CliRunner().invoke(descramble_fast, arguments).exit_code == 0
    finally:
        df.set_num_threads(0)
    with safetensors.safe_open(tmp_path / "out" / "result.safetensors", "numpy") as file:
        made = json.loads(file.metadata()["configuration"])
    expected = {"batch_size": 7, "threads": 1, "device": "cpu", "seed": 0, "gauge": "canonical"}
    assert expected.items() <= made.items()


def test_tensors_larger_than_what_is_stored_of_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    huge = torch.ones(1, dtype=torch.bfloat16).expand(1 << 10, 1 << 36)
    torch.save({"huge": huge, "\udcff": torch.ones(2, 2)}, tmp_path / "x.pt")
    weights = runs.open_weights(tmp_path / "x.pt")
    with pytest.raises(FileError, match="of which 1 numbers are stored"):
        weights["huge"].read()
    with pytest.raises(FileError, match="not Unicode"):
        runs.weight_layers(weights)
