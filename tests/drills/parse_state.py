"""Saved state, as a target of the fuzzer: any bytes, and any file of moments with odd numbers."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable

import numpy as np
import safetensors
import safetensors.numpy
from draws import FOLDER, Draws, expect, same, target

import descramble_fast as df
from descramble_fast import run as runs


def _state_file(draws: Draws) -> bytes:
    kind = draws.byte() % 4
    if kind == 0:
        return draws.rest()
    if kind == 1:
        header, content = draws.split()
        return len(header).to_bytes(8, "little") + header + content
    n = draws.byte() % 4 + draws.one_in(4) * 30
    lengths = {"count": 1, "weight": 1, "reference": n, "offset": n, "scatter": n * (n + 1) // 2}
    tensors = {}
    for name, length in lengths.items():
        if draws.one_in(16):
            length = draws.byte() % 8
        dtype = np.int64 if name == "count" else np.float64
        if draws.one_in(16):
            dtype = draws.pick((np.float32, np.int32, np.float16, np.bool_, np.int64, np.float64))
        values = [draws.integer() if name == "count" else draws.number() for _ in range(length)]
        with np.errstate(all="ignore"):
            wide = np.array(values, dtype=np.int64 if name == "count" else np.float64)
            tensors[name] = wide.astype(dtype)
        if draws.one_in(16):
            tensors[name] = tensors[name].reshape(draws.pick(((-1, 1), (1, -1))))
        if draws.one_in(32):
            del tensors[name]
    metadata = {"format": runs.MOMENTS, "schema": "1", "has_mean": "true", "input_dtypes": ""}
    for key in metadata:
        if draws.one_in(16):
            metadata[key] = draws.pick(("", "1", "2", "true", "false", "float32,float64", "\0"))
    return safetensors.numpy.save(tensors, metadata)


def _intact(cov: df.Covariance, change: Callable[[], object], allowed: tuple[type, ...]) -> bool:
    """Whether a change was made; where it is refused, nothing may have changed."""
    before = pickle.dumps(cov)
    try:
        change()
    except allowed:
        expect(pickle.dumps(cov) == before, "a refused change left traces")
        return False
    return True


def _possible(cov: df.Covariance) -> bool:
    """Whether samples can have such a scatter; a file may say anything."""
    n, packed = cov.n_features, cov._core.state()[5]
    scatter = np.zeros((n, n))
    scatter[np.triu_indices(n)] = packed
    deviations = np.sqrt(np.maximum(scatter.diagonal(), 0))
    least = bool((scatter.diagonal() >= 0).all())
    return least and bool((abs(scatter) <= np.outer(deviations, deviations)).all())


def _usable(cov: df.Covariance) -> None:
    """Check that a state can be saved, loaded, merged and fed, and is intact where it cannot."""
    path, n = FOLDER / "again.safetensors", cov.n_features
    for read in (lambda: cov.mean, cov.second_moment, cov.covariance):
        with contextlib.suppress(ValueError):
            expect(bool(np.isfinite(read()).all()), "a moment is not finite")
    cov.save(path)
    expect(pickle.dumps(df.Covariance.load(path)) == pickle.dumps(cov), "changed by saving")
    rows = np.arange(3.0 * n).reshape(3, n) % 7
    other, possible = df.Covariance(n).update(rows), _possible(cov)
    changes: list[tuple[df.Covariance, Callable[[df.Covariance], object]]] = [
        (cov, lambda c: c.merge(other)),
        (pickle.loads(pickle.dumps(other)), lambda c: c.merge(cov)),
        (cov, lambda c: c.update(rows)),
        (cov, lambda c: c.merge(c)),
    ]
    for changed, change in changes:
        if _intact(changed, lambda c=changed, f=change: f(c), (ValueError,)) and possible:
            # Whatever is there now must be such that it can be kept.
            pickle.loads(pickle.dumps(changed))


@target
def state(data: bytes) -> None:
    """Covariance.load and pickled states."""
    draws = Draws(data)
    if draws.one_in(8):
        saved = {"state": draws.thing(), "input_dtypes": frozenset()}
        if draws.one_in(2):
            n = draws.byte() % 4
            parts = [draws.integer(), draws.number(), True, np.ones(n), np.ones(n), np.ones(n)]
            parts[draws.byte() % 6] = draws.thing()
            saved["state"] = tuple(parts)
        cov = df.Covariance.__new__(df.Covariance)
        try:
            cov.__setstate__(saved)
        except (ValueError, TypeError, OverflowError):
            return
        _usable(cov)
        return
    path = FOLDER / "state.safetensors"
    content = _state_file(draws)
    path.write_bytes(content)
    try:
        cov = df.Covariance.load(path)
    except ValueError as error:
        expect("\n" not in str(error), f"{error!r} is of several lines")
        return
    tensors = safetensors.numpy.load(content)
    count, weight, _, *vectors = cov._core.state()
    expect(count == tensors["count"][0], f"count {count}")
    expect(weight == tensors["weight"][0], f"weight {weight}")
    expect(cov.n_features == len(tensors["reference"]), "n_features")
    if weight > 0:
        for name, vector in zip(("reference", "offset", "scatter"), vectors, strict=True):
            expect(same(vector, tensors[name]), f"{name} was changed")
    _usable(cov)
