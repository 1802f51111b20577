"""What the library was built with, and how many threads it takes."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from descramble_fast import _core
from descramble_fast._arrays import integer, one_of


def cuda_available() -> bool:
    """Whether the CUDA backend is built and a device can be used.

    Returns
    -------
    bool
        False where it was not built, or its libraries, a driver or a device are missing;
        ``show_config`` says which. The first call loads it.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.cuda_available() == df.show_config("dict")["cuda"].startswith("cuda:0")
    True
    """
    return _core.cuda_available()


def set_num_threads(k: int) -> None:
    """Set the number of threads that calls use by default.

    Parameters
    ----------
    k : int
        At least 1; 0 returns to the environment's: ``DESCRAMBLE_FAST_NUM_THREADS``, else
        ``OMP_NUM_THREADS``, else what the CPU affinity and the cgroup quota allow.

    Raises
    ------
    ValueError
        If `k` is negative.

    Examples
    --------
    >>> import descramble_fast as df
    >>> df.set_num_threads(1)
    >>> df.show_config("dict")["threads"]
    1
    >>> df.set_num_threads(0)
    """
    number = integer("k", k)
    if not 0 <= number < 2**31:
        raise ValueError(f"k: got {number}, expected 0 to 2^31 - 1")
    _core.set_num_threads(number)


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show versions, the LAPACK and the instruction set in use, threads and the CUDA backend.

    Parameters
    ----------
    mode : {"stdout", "dict"}
        Print, or return a dictionary.

    Returns
    -------
    dict or None
        The configuration for ``mode="dict"``.

    Raises
    ------
    ValueError
        If `mode` is neither.

    Examples
    --------
    >>> import descramble_fast as df
    >>> sorted(df.show_config("dict"))[:5]
    ['cuda', 'descramble_fast', 'instruction_set', 'lapack', 'numpy']
    """
    one_of("mode", mode, "stdout", "dict")
    config: dict[str, Any] = {
        "descramble_fast": _core.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "lapack": _core.lapack_config(),
        "instruction_set": _core.instruction_set(),
        "threads": _core.num_threads(),
        "cuda": _core.cuda_config(),
    }
    if mode == "dict":
        return config
    width = max(map(len, config))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in config.items()))
    return None
