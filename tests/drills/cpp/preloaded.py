"""Every allocation of the extension fails in turn: ``python preloaded.py LIBRARY [every]``.

The library, of preload.cpp, is in LD_PRELOAD. Prints trials, failures, and what did not hold.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import descramble_fast as df

memory = ctypes.CDLL(sys.argv[1])
memory.start_failing.argtypes = [ctypes.c_long, ctypes.c_int]
EVERY = len(sys.argv) > 2
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
square, large = rng.normal(size=(6, 6)), rng.normal(size=(130, 130))
psd = square @ square.T


def moments() -> df.Covariance:
    return df.Covariance(6).update(x).update(x[:3])


cov, op = moments(), df.operators.fourier(6)
d = df.descramble(cov, operator=op)
cross = df.CrossCovariance(6, 5)
cross.update(x, y)
other = moments()
CALLS: dict[str, Callable[[Any], Any]] = {
    "Covariance": lambda c: df.Covariance(6).n_features,
    "update": lambda c: c.update(x[:20]),
    "update with weights": lambda c: c.update(x[:4], weights=np.ones(4)),
    "merge": lambda c: c.merge(other),
    "second_moment": lambda c: c.second_moment(),
    "covariance": lambda c: c.covariance(),
    "mean": lambda c: c.mean,
    "pickle": lambda c: pickle.dumps(c),
    "unpickle": lambda c: pickle.loads(pickled).second_moment(),
    "from_moments": lambda c: df.Covariance.from_moments(psd, weight=2).second_moment(),
    "correlation": lambda c: cross.correlation(),
    "fourier": lambda c: df.operators.fourier(12).eigenvalues,
    "grid": lambda c: df.operators.grid((3, 4)).eigenvalues,
    "from_matrix": lambda c: df.operators.from_matrix(psd).eigenvalues,
    "eigh": lambda c: df.eigh(psd).eigenvectors,
    "descramble": lambda c: df.descramble(c, operator=op).matrix,
    "transform": lambda c: d.transform(x),
    "trace": lambda c: df.descramble_weights(square, criterion="trace").matrix,
    "trace by eigenvectors": lambda c: df.descramble_weights(large, criterion="trace").matrix,
    "diagonal": lambda c: df.descramble_weights(square, criterion="diagonal").matrix,
    "linear_assignment": lambda c: df.linear_assignment(square).columns,
    "nearest_permutation": lambda c: df.nearest_permutation(square).permutation,
    "match_modes": lambda c: df.match_modes(d).modes,
}
pickled = pickle.dumps(cov)


def bits(value: Any) -> bytes:
    """The bits of whatever a call gave."""
    if isinstance(value, df.Covariance):
        return pickle.dumps(value)
    return np.asarray(value).tobytes() if not isinstance(value, bytes) else value


def trial(call: Callable[[Any], Any], n: int, all_later: bool) -> tuple[bool, str]:
    """One call whose n-th allocation fails: whether any did, and what did not hold."""
    c, fresh = moments(), moments()
    before, expected = pickle.dumps(moments()), bits(call(fresh))
    after, came, got = pickle.dumps(fresh), "", None
    memory.start_failing(n, all_later)
    try:
        got = call(c)
    except MemoryError:
        came = "MemoryError"
    except BaseException as error:
        came = repr(error)
    failed = memory.stop_failing() > 0
    if not came:
        same = bits(got) == expected and pickle.dumps(c) == after
        return failed, "" if same else "other bits"
    if came != "MemoryError":
        return failed, came
    if pickle.dumps(c) != before:
        return failed, "the state has changed"
    call(c)
    return failed, ""


trials = failures = 0
for name, call in CALLS.items():
    call(moments())
    for all_later in (False, True):
        n, failed = 0, True
        while failed:
            failed, fault = trial(call, n, all_later)
            trials += 1
            failures += failed
            if fault:
                print(f"{name}, allocation {n}{', all later' * all_later}: {fault}")
                break
            n += 1 if EVERY or n < 20 else 1 + n // 5
print(f"{trials} trials, {failures} with failures")
