"""What several test files need: fresh interpreters, and the default thread count put back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

import descramble_fast as df

# What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
HEARS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.fixture
def fresh_python() -> Callable[..., str]:
    """Run a script in a new interpreter that must exit 0 in time; gives what it printed."""

    def run(script: str, *arguments: object, timeout: float = 60) -> str:
        done = subprocess.run(
            [sys.executable, "-c", HEARS + textwrap.dedent(script), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def default_threads() -> Iterator[None]:
    """Let a test call `set_num_threads`."""
    yield
    df.set_num_threads(0)
