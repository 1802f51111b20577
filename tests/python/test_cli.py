"""The command line: what it writes, prints and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the demo extra")
pytest.importorskip("tqdm", reason="needs the demo extra")
testing = pytest.importorskip("click.testing", reason="needs the demo extra")

import descramble_fast as df  # noqa: E402
from descramble_fast import cli  # noqa: E402

FILES = {"layer1.png", "layer2.png", "components.png", "order.png", "summary.json"}


def invoke(*arguments: str | Path) -> testing.Result:
    return testing.CliRunner().invoke(cli.descramble_fast, [str(a) for a in arguments])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "net.npz", W1=rng.normal(size=(6, 9)), W2=rng.normal(size=(5, 6)))
    np.save(tmp_path / "x.npy", rng.normal(size=(50, 9)))
    return tmp_path


def test_demo_as_shipped(tmp_path: Path) -> None:
    result = invoke("demo", "--output", tmp_path / "new" / "figures")
    assert result.exit_code == 0, result.output
    written = tmp_path / "new" / "figures"
    assert {path.name for path in written.iterdir()} == FILES
    for name in FILES - {"summary.json"}:
        content = (written / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 50_000
    summary = json.loads((written / "summary.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(summary)
    for analysis in summary["analyses"]:
        for layer in analysis["layers"]:
            assert f"{layer['cost']:.4g}" in result.stdout
            assert f"{layer['descrambled']['rel_norm']:.3f}" in result.stdout
            assert f"{layer['held_out']['ratio']:.3f}" in result.stdout
        order = analysis["order"]
        for key in ("initial_cost", "cost", "tree_bound", "bound"):
            assert f"{order[key]:.4g}" in result.stdout
        assert f"{order['output_difference']:.0e}" in result.stdout
    squeezed = " ".join(result.stdout.split())
    for text in summary["reading"].values():
        assert text in squeezed


def test_demo_on_own_files(folder: Path) -> None:
    try:
        result = invoke(
            *("demo", "--network", folder / "net.npz", "--samples", folder / "x.npy"),
            *("--output", folder / "out", "--batch-size", "7", "--threads", "1"),
        )
    finally:
        df.set_num_threads(0)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    assert "Gaussian weights (seed 0)" in result.stdout
    assert "batches of 7" in " ".join(result.stdout.split())


@pytest.mark.parametrize("neurons", [(2, 2), (3, 2), (2, 7)])
def test_demo_on_tiny_networks(tmp_path: Path, neurons: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    n1, n2 = neurons
    np.savez(tmp_path / "net.npz", W1=rng.normal(size=(n1, 1)), W2=rng.normal(size=(n2, n1)))
    np.save(tmp_path / "x.npy", rng.normal(size=(2, 1)))
    result = invoke(
        *("demo", "--network", tmp_path / "net.npz", "--samples", tmp_path / "x.npy"),
        *("--output", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("option", "name", "words"),
    [
        ("--network", "none.npz", "none.npz: no such file"),
        ("--samples", "none.npy", "none.npy: no such file"),
        ("--network", "x.npy", "x.npy: lacks W1"),
        ("--samples", "net.npz", "net.npz: holds W1, W2"),
    ],
)
def test_bad_files_are_one_line(folder: Path, option: str, name: str, words: str) -> None:
    result = invoke("demo", option, folder / name, "--output", folder / "out")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert words in result.output
    assert result.output.count("\n") == 1
    assert not (folder / "out").exists()


def test_mismatched_files_name_both_shapes(folder: Path) -> None:
    result = invoke("demo", "--network", folder / "net.npz", "--output", folder / "out")
    assert result.exit_code == 1
    assert "(4096, 256)" in result.output
    assert "(N, 9)" in result.output


def test_bad_options(folder: Path) -> None:
    for arguments in (["--batch-size", "0"], ["--threads", "0"], ["--output", folder / "x.npy"]):
        assert invoke("demo", *arguments).exit_code == 2
    unusable = invoke(
        *("demo", "--network", folder / "net.npz", "--samples", folder / "x.npy"),
        *("--output", folder / "x.npy" / "below"),
    )
    assert unusable.exit_code == 1
    assert "--output" in unusable.output


def test_info_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    result = invoke("info")
    df.show_config()
    assert result.exit_code == 0
    assert result.stdout == capsys.readouterr().out
    assert df.__version__ in invoke("--version").stdout


def test_runs_as_a_module(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "descramble_fast", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"descramble-fast, version {df.__version__}\n"
    assert "Usage: descramble-fast" in run(tmp_path, "-m", "descramble_fast", "--help").stdout


def test_no_progress_bar_without_a_terminal(folder: Path) -> None:
    files = ("--network", "net.npz", "--samples", "x.npy", "--output", "out")
    done = run(folder, "-W", "error", "-m", "descramble_fast", "demo", *files)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("library", ["click", "matplotlib", "tqdm"])
def test_a_missing_extra_is_one_line(folder: Path, library: str) -> None:
    script = (
        f"import sys; sys.modules[{library!r}] = None; sys.argv = ['descramble-fast', 'demo']\n"
        "from descramble_fast.__main__ import main\nmain()"
    )
    done = run(folder, "-c", script)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert library in done.stderr
    assert "pip install 'descramble-fast[demo]'" in done.stderr
    assert done.stdout == ""


def test_importing_the_package_loads_no_extra(tmp_path: Path) -> None:
    script = (
        "import sys, descramble_fast.__main__, descramble_fast.demo, descramble_fast.run\n"
        "extras = {'click', 'matplotlib', 'ml_dtypes', 'torch', 'tqdm', 'zarr'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    assert run(tmp_path, "-c", script).stdout == "[]\n"
