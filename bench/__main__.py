"""Start the suite in a process in which OpenBLAS chooses its core itself.

A build recipe or a test may pin OpenBLAS to one core type or cache size, so that results repeat
from machine to machine; here that would slow the peers and this library alike. OpenBLAS reads
these variables when it is loaded, with numpy, which the package has imported by now.
"""

from __future__ import annotations

import os
import sys

PINNING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def main() -> None:
    """Replace this process by the suite's."""
    environment = {name: value for name, value in os.environ.items() if name not in PINNING}
    command = [sys.executable, "-m", f"{__package__}.suite", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
