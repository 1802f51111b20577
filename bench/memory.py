"""Peak memory of one implementation on one problem, in a process that does nothing else.

Started by the suite: ``python -m bench.memory op/implementation/dtype/shape`` prints the bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import suite

STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """Return a size that the kernel states for this process, in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise LookupError(field)


def peak(run: Callable[[], Any]) -> int | None:
    """Most memory resident during a run above that before it; None where Linux does not tell.

    Includes the result, and what the libraries allocate on first use.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # memory that lies free in the heap goes back first
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError, LookupError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        before = resident("VmRSS")
        result = run()
        highest = resident("VmHWM")
        del result
        return max(0, highest - before)
    return None


def main(name: str) -> None:
    """Print the peak of one result, or nothing where it is unknown."""
    op, implementation, dtype, shape = name.split("/")
    for peer in ("torch", "sklearn"):  # large, and slow to load
        if not implementation.startswith(peer):
            sys.modules[peer] = None  # type: ignore[assignment]
    cell = suite.find_cell(op, dtype, shape)
    method = next(method for method in cell.methods() if method.name == implementation)
    found = peak(method.run)
    print("" if found is None else found)


if __name__ == "__main__":
    main(sys.argv[1])
