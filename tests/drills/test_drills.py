"""The quick part of every drill, and the page that tells of the long one."""

from __future__ import annotations

import page
import pytest
from drill import DRILLS

page.load()


@pytest.mark.parametrize("name", DRILLS)
def test_nothing_fails(name: str) -> None:
    tally = DRILLS[name](long=False)
    assert tally.trials > 0
    assert not tally.failures, "\n".join(tally.failures[:20])


def test_the_page_is_what_the_drills_gave() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text
    assert "| not run |" not in text
