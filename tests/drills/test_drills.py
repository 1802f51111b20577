"""The quick part of every drill, in a process of its own, and the page of what they gave."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import descramble_fast as df

DRILLS = Path(__file__).resolve().parent
PAGE = DRILLS.parents[1] / "docs" / "reliability.md"

# They measure how soon a signal is heard, for which other work of a machine is too loud.
TIMED = ("ctrl-c", "device-ctrl-c", "processes")


def names() -> list[str]:
    """Of all drills, without importing what they need."""
    sources = (path.read_text(encoding="utf-8") for path in sorted(DRILLS.glob("*.py")))
    return [name for text in sources for name in re.findall(r'^@drill\(\s*"([\w-]+)"', text, re.M)]


def run(named: list[str], folder: Path) -> None:
    """Let none of these fail, or change the page."""
    pytest.importorskip("torch")
    before = PAGE.read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(DRILLS), *named],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder,
    )
    told = re.findall(r"^([\w-]+): ([\d,]+) trials, (\d+) failures", done.stdout, re.M)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert [name for name, *_ in told] == named
    assert all(trials != "0" and failures == "0" for _, trials, failures in told)
    assert PAGE.read_text(encoding="utf-8") == before


def test_nothing_fails_and_the_page_is_what_the_drills_gave(tmp_path: Path) -> None:
    run([name for name in names() if name not in TIMED and not name.startswith("device")], tmp_path)


@pytest.mark.skipif(not df.cuda_available(), reason=df.show_config("dict")["cuda"])
def test_nothing_fails_on_a_device(tmp_path: Path) -> None:
    run([name for name in names() if name not in TIMED and name.startswith("device")], tmp_path)
