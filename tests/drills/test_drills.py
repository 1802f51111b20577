"""The quick part of every drill, in a process of its own, and the page of what they gave."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DRILLS = Path(__file__).resolve().parent
PAGE = DRILLS.parents[1] / "docs" / "reliability.md"


def test_nothing_fails_and_the_page_is_what_the_drills_gave(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    before = PAGE.read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(DRILLS)], capture_output=True, text=True, timeout=900, cwd=tmp_path
    )
    told = re.findall(r"^([\w-]+): ([\d,]+) trials, (\d+) failures", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert len(told) > 40
    assert all(trials != "0" and failures == "0" for _, trials, failures in told)
    assert PAGE.read_text(encoding="utf-8") == before
