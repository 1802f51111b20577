"""What build scripts ask the installed package for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest


def answer(option: str, folder: Path) -> Path:
    # As where no extra is installed.
    script = (
        "import sys; sys.modules.update(click=None, matplotlib=None, tqdm=None)\n"
        f"sys.argv = ['descramble-fast', {option!r}]\n"
        "from descramble_fast.__main__ import main\nmain()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return Path(done.stdout.strip())


@pytest.mark.parametrize(
    ("option", "files"),
    [
        ("--cmake-dir", ["descramble_fast-config.cmake", "descramble_fast-config-version.cmake"]),
        ("--include-dir", ["descramble_fast.h", "descramble_fast/covariance.hpp"]),
    ],
)
def test_folders_for_build_scripts(tmp_path: Path, option: str, files: list[str]) -> None:
    folder = answer(option, tmp_path)
    assert folder.is_absolute()
    for file in files:
        assert (folder / file).is_file()


def test_scikit_build_core_finds_the_cmake_package() -> None:
    (entry,) = entry_points(group="cmake.prefix", name="descramble_fast")
    assert entry.value == "descramble_fast"
