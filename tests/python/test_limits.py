"""The machine's own limits, as the bindings give them."""

from __future__ import annotations

import math

import pytest

from descramble_fast import _core


def test_limits_are_rates() -> None:
    limits = _core.machine_limits(threads=1, seconds=0.05)
    assert list(limits) == ["fma_float32", "fma_float64", "dot_bfloat16", "bandwidth"]
    rates = {name: rate for name, rate in limits.items() if rate is not None}
    assert {"fma_float32", "fma_float64", "bandwidth"} <= rates.keys()
    assert all(math.isfinite(rate) and rate > 1e8 for rate in rates.values())
    assert 1.3 < rates["fma_float32"] / rates["fma_float64"] < 3


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="seconds: got 0"):
        _core.machine_limits(seconds=0)
    with pytest.raises(ValueError, match="threads: got -1"):
        _core.machine_limits(threads=-1)
