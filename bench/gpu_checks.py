"""Correctness on the device, against the CPU and float64 references.

Each check ends at the first wrong answer; of right ones it gives back how far they were off, and
the routes they took.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast import _core

from .bench_eigh import check_pairs, random_batch
from .gpu_arrays import Array, Arrays, NotRunError, TorchArrays, available, route_of, to_numpy, wide
from .harness import require

Facts = dict[str, Any]
Floats = NDArray[np.float64]

CONTRACT = 1e-5  # of the largest variance, for inputs narrower than float64
EXACT = 1e-10
CHUNKS = {"float64": 1e-12}  # and 1e-6 for narrower ones
OFFSETS = {  # means, in deviations, as far as the type can hold such data
    "bfloat16": (0.0, 30.0),
    "float16": (0.0, 30.0),
    "float32": (0.0, 1e3, 1e6),
    "float64": (0.0, 1e6),
}


def samples(rows: int, n: int, offset: float = 0.0) -> Floats:
    """Correlated columns of several scales about `offset`."""
    rng = np.random.default_rng(rows * 10007 + n)
    x = rng.standard_normal((rows, n)) * rng.uniform(0.5, 1, n) + rng.standard_normal((rows, 1)) / 2
    return np.asarray(x + offset)


def two_pass(x: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Mean and covariance in float64."""
    w = np.ones(len(x)) if weights is None else weights
    mean = x[0] + w @ (x - x[0]) / w.sum()
    y = x - mean
    return np.asarray(mean), np.asarray((y * w[:, None]).T @ y / w.sum())


def agree(what: str, found: Any, expected: Floats, limit: float, scale: float = 0.0) -> float:
    """Require the largest difference to stay within `limit` of `scale`, the largest entry."""
    scale = scale or float(np.abs(expected).max(initial=0)) or 1.0
    error = float(np.abs(wide(found) - expected).max(initial=0)) / scale
    require(error <= limit, f"{what} is off by {error:.1e}, more than {limit:.1e}")
    return error


def refusal(what: str, call: Any, *words: str) -> str:
    """Require a ValueError that names these words."""
    try:
        call()
    except ValueError as error:
        text = str(error)
        require(all(word in text for word in words), f"{what}: the error says {text!r}")
        return text
    raise SystemExit(f"bench: {what} was not refused")


# -------------------------------------------------------------------------------- moments


def moments(arrays: Arrays, dtype: str, shapes: Sequence[tuple[int, int]]) -> Facts:
    """Streaming moments against two passes, in one batch, in chunks and merged."""
    narrow = dtype != "float64"
    within, chunk_limit = CONTRACT if narrow else EXACT, CHUNKS.get(dtype, 1e-6)
    worst = {"covariance": 0.0, "mean": 0.0, "second_moment": 0.0, "chunks": 0.0, "merged": 0.0}
    for rows, n in shapes:
        for offset in OFFSETS[dtype]:
            what = f"{dtype} {rows}x{n}, mean {offset:g}"
            x = arrays.put(samples(rows, n, offset), dtype)
            truth = wide(x)
            mean, expected = two_pass(truth)
            largest = float(expected.diagonal().max())
            whole = df.Covariance(n).update(x)
            require(whole.count == rows, f"{what}: {whole.count} rows counted")
            found = wide(whole.covariance())
            require(np.array_equal(found, found.T), f"{what}: not symmetric")
            errors = {
                "covariance": agree(f"covariance of {what}", found, expected, within, largest),
                "mean": agree(
                    f"mean of {what}", whole.mean, mean, 1e-6 if narrow else 1e-9, largest**0.5
                ),
                "second_moment": agree(
                    f"second moment of {what}",
                    whole.second_moment(),
                    expected + np.outer(mean, mean),
                    within,
                    largest + offset**2,
                ),
            }
            cuts = sorted({0, 1, min(7, rows), rows // 3, rows // 2, rows})
            parts = [truth[a:b] for a, b in itertools.pairwise(cuts)]
            chunked = df.Covariance(n)
            halves = [df.Covariance(n), df.Covariance(n)]
            for i, part in enumerate(parts):
                chunk = arrays.put(part, dtype)
                chunked.update(chunk)
                halves[i % 2].update(chunk)
            errors["chunks"] = agree(
                f"{what} in chunks", chunked.covariance(), found, chunk_limit, largest
            )
            errors["merged"] = agree(
                f"{what}, merged",
                halves[1].merge(halves[0]).covariance(),
                found,
                chunk_limit,
                largest,
            )
            worst = {name: max(worst[name], error) for name, error in errors.items()}
    return {"errors": worst, "route": route_of(whole)}


def selection(arrays: Arrays, dtype: str, rows: int, n: int) -> Facts:
    """Masks and weights: rows that do not count may hold NaN."""
    within = EXACT if dtype == "float64" else CONTRACT
    rng = np.random.default_rng(1)
    x, mask = samples(rows, n, 3.0), rng.random(rows) < 0.7
    weights = rng.uniform(0.5, 2, rows)
    weights[::5] = 0
    x[~mask & (weights == 0)] = np.nan
    truth = wide(arrays.put(x, dtype))
    exact = wide(arrays.put(weights, "float64"))
    errors = {}
    for name, use_mask, use_weights in (("mask", 1, 0), ("weights", 0, 1), ("both", 1, 1)):
        w = np.where(mask, 1.0, 0.0) if use_mask else np.ones(rows)
        w = w * exact if use_weights else w
        y = np.where(w[:, None] > 0, truth, np.nan)
        cov = df.Covariance(n).update(
            arrays.put(y, dtype),
            mask=arrays.put(mask, "bool") if use_mask else None,
            weights=arrays.put(weights, "float64") if use_weights else None,
        )
        used = w > 0
        require(cov.count == int(used.sum()), f"{name}: {cov.count} rows counted")
        require(abs(cov.weight / w.sum() - 1) <= 1e-12, f"{name}: weight {cov.weight}")
        _, expected = two_pass(truth[used], w[used])
        errors[name] = agree(name, cov.covariance(), expected, within)
    return {"errors": errors}


def refused_updates(arrays: Arrays, dtype: str, rows: int, n: int) -> Facts:
    """Let a batch with NaN change no bit; the next call that waits says where it was."""
    good = samples(rows, n)
    cov = df.Covariance(n).update(arrays.put(good, dtype))
    before = wide(cov.second_moment())
    bad = good.copy()
    bad[rows // 2, n - 1] = np.nan

    def update_and_wait() -> None:
        cov.update(arrays.put(bad, dtype))
        cov.count  # noqa: B018 - reading it waits

    text = refusal("a batch with NaN", update_and_wait, f"row {rows // 2}, column {n - 1}")
    require(cov.count == rows, f"{cov.count} rows after a refused update")
    require(np.array_equal(wide(cov.second_moment()), before), "a refused update changed the state")
    cov.update(arrays.put(good, dtype))
    require(cov.count == 2 * rows, "the update after a refused one was not counted")
    agree("after a refused update", cov.second_moment(), before, CONTRACT)
    return {"error": text}


def cross(arrays: Arrays, dtype: str, rows: int, n: int) -> Facts:
    """Cross moments and correlations of two sets of features."""
    within = EXACT if dtype == "float64" else CONTRACT
    x, y = samples(rows, n, 2.0), samples(rows, n + 3, -1.0)
    y[:, :n] += x
    a, b = arrays.put(x, dtype), arrays.put(y, dtype)
    found = df.CrossCovariance(n, n + 3).update(a, b)
    joint = two_pass(np.hstack([wide(a), wide(b)]))[1]
    deviation = np.sqrt(joint.diagonal())
    part = joint[:n, n:]
    return {
        "errors": {
            "covariance": agree("cross-covariance", found.cross_covariance(), part, within),
            "correlation": agree(
                "correlation",
                found.correlation(),
                part / np.outer(deviation[:n], deviation[n:]),
                4 * within,
            ),
        },
        "route": route_of(found),
    }


def offload(arrays: Arrays, rows: int, n: int) -> Facts:
    """Keep the scatter in the host's memory, with the same numbers."""
    x = arrays.put(samples(rows, n), "float32")
    here = df.Covariance(n).update(x).update(x)
    there = df.Covariance(n, device=arrays.device, offload=True).update(x).update(x)
    return {"error": agree("offloaded", there.covariance(), wide(here.covariance()), 1e-12)}


# -------------------------------------------------------------------------- eigenproblems


def solve(arrays: Arrays, a: Array, dtype: str, k: int | None = None) -> tuple[Any, float]:
    """Solve, and check against float64 eigenvalues; the result, and its largest relative error."""
    there = arrays.put(a, dtype)
    found = df.eigh(there, k)
    exact = wide(there).astype("float64" if dtype == "float64" else "float32")
    truth = np.linalg.eigvalsh(np.asarray(exact, np.float64))
    pairs = to_numpy(found.eigenvalues), to_numpy(found.eigenvectors)
    n = a.shape[-1]
    require(pairs[0].shape == (*a.shape[:-2], k or n), f"eigenvalues of shape {pairs[0].shape}")
    if not np.any(exact):
        require(not np.any(pairs[0]), "eigenvalues of zero")
        return found, 0.0
    scale = np.abs(truth).max(-1, keepdims=True)[..., None]
    flat = (exact / scale).astype(exact.dtype).reshape(-1, n, n)
    values = (pairs[0] / scale[..., 0]).astype(exact.dtype).reshape(len(flat), -1)
    vectors = pairs[1].reshape(len(flat), n, -1)
    known = (truth / scale[..., 0])[..., n - (k or n) :].reshape(len(flat), -1)
    return found, check_pairs(flat, (values, vectors), known)


def eigh_batches(arrays: Arrays, dtype: str, sizes: Sequence[int], count: int) -> Facts:
    """Every size, as a batch."""
    worst, routes = 0.0, {}
    for n in sizes:
        found, error = solve(arrays, random_batch("float64", count, n), dtype)
        worst = max(worst, error)
        routes[str(n)] = route_of(found)
    return {"errors": {"residual": worst}, "routes": compact(routes)}


def eigh_singles(arrays: Arrays, dtype: str, sizes: Sequence[int]) -> Facts:
    """One matrix at a time: all pairs, and the three leading ones."""
    worst, routes = 0.0, {}
    for n in sizes:
        a = random_batch("float64", 1, n)[0]
        for k in (None, min(3, n)):
            found, error = solve(arrays, a, dtype, k)
            worst = max(worst, error)
            routes[f"{n}, {k or 'all'}"] = route_of(found)
    return {"errors": {"residual": worst}, "routes": compact(routes)}


def special_matrices(n: int, dtype: str) -> Iterator[tuple[str, Floats]]:
    """Spectra that solvers stumble over."""
    rng = np.random.default_rng(n)
    thin = rng.standard_normal((n, max(1, n // 3)))
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    extreme = 250 if dtype == "float64" else 30
    yield "zero", np.zeros((n, n))
    yield "identity", np.eye(n)
    yield "constant", np.ones((n, n))
    yield "rank-deficient", thin @ thin.T
    yield "repeated", basis * np.repeat((1.0, 2.0), (n // 2, n - n // 2)) @ basis.T
    yield "graded", basis * 10.0 ** -np.linspace(0, 12, n) @ basis.T
    yield (
        "Wilkinson",
        np.diag(np.abs(np.arange(n) - (n - 1) / 2)) + np.eye(n, k=1) + np.eye(n, k=-1),
    )
    for sign in (-1, 1):
        yield (
            f"of 1e{sign * extreme}",
            basis * np.arange(1, n + 1) @ basis.T * 10.0 ** (sign * extreme),
        )


def eigh_special(arrays: Arrays, dtype: str, sizes: Sequence[int]) -> Facts:
    """Degenerate, graded and badly scaled matrices; NaN is named."""
    worst, routes = 0.0, {}
    for n in sizes:
        for name, a in special_matrices(n, dtype):
            found, error = solve(arrays, (a + a.T) / 2, dtype)
            worst = max(worst, error)
            routes[f"{name}, {n}"] = route_of(found)
        bad = np.eye(n)
        bad[n - 1, 0] = np.nan
        there = arrays.put(bad, dtype)
        refusal("a matrix with NaN", lambda there=there: df.eigh(there), f"row {n - 1}, column 0")
    return {"errors": {"residual": worst}, "routes": compact(routes)}


def compact(routes: dict[str, Any]) -> list[dict[str, Any]]:
    """Each different route with the cases that took it."""
    groups: dict[str, dict[str, Any]] = {}
    for case, route in routes.items():
        group = groups.setdefault(json.dumps(route), {"route": route, "cases": []})
        group["cases"].append(case)
    return list(groups.values())


# ---------------------------------------------------------------------------- assignments


@dataclass(frozen=True)
class Assigned:
    """What is compared of an assignment."""

    columns: Any
    cost: Any
    route: df.Route


def assign_on_device(cost: Any) -> Assigned:
    """Solve by the device, whatever the default would be."""
    found = _core.linear_assignment(cost, on_device=True)
    return Assigned(found[0], found[1], df.Route._of(found[-1]))


def assignments(arrays: Arrays, shapes: Sequence[Sequence[int]], forced: bool) -> Facts:
    """Columns and costs equal the CPU's, ties and rectangles included."""
    routes = {}
    for shape in shapes:
        rng = np.random.default_rng(math.prod(shape))
        for name, cost, dtype in (
            ("uniform", rng.random(shape), "float32"),
            ("uniform", rng.random(shape), "float64"),
            ("ties", rng.integers(0, 4, shape).astype(float), "float32"),
            ("forbidden", np.where(rng.random(shape) < 0.2, np.inf, rng.random(shape)), "float64"),
        ):
            if name == "forbidden":  # some way through is left
                places = np.arange(min(shape[-2:]))
                cost[..., places, places] = 9
            there = arrays.put(cost, dtype)
            expected = df.linear_assignment(to_numpy(there))
            case = f"{name} {dtype} {'x'.join(map(str, shape))}"
            found: Any = assign_on_device(there) if forced else df.linear_assignment(there)
            require(
                np.array_equal(to_numpy(found.columns), expected.columns),
                f"{case}: columns differ from the CPU's",
            )
            agree(f"cost of {case}", found.cost, np.asarray(expected.cost), 1e-14)
            routes[case] = route_of(found)
    return {"routes": compact(routes)}


def assignment_duals(arrays: Arrays, shape: Sequence[int]) -> Facts:
    """Check the certificate, and that faults are named."""
    cost = np.random.default_rng(3).random(shape)
    found = df.linear_assignment(arrays.put(cost), maximize=True)
    u, v = wide(found.row_duals), wide(found.column_duals)
    slack = float((u[..., :, None] + v[..., None, :] - cost).min())
    require(slack >= -1e-12, f"duals violated by {-slack:.1e}")
    agree("sum of duals", u.sum(-1) + v.sum(-1), wide(found.cost), 1e-12)
    bad = cost.copy()
    bad[0, 1, 2] = np.nan
    there = arrays.put(bad)
    refusal("a cost of NaN", lambda: df.linear_assignment(there), "row 1, column 2")
    return {"route": route_of(found)}


# ---------------------------------------------------------------------------- descramblers


def simple_spectrum(rows: int, n: int) -> Floats:
    """Make samples whose principal components are far apart, so that P is determined."""
    rng = np.random.default_rng(n)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    scales = np.linspace(1, 3, n) ** 2
    q = np.linalg.qr(rng.standard_normal((rows, n)))[0]
    return np.asarray(q * scales @ basis * math.sqrt(rows))


def descramblers(arrays: Arrays, sizes: Sequence[int]) -> Facts:
    """Cost, P and all transforms equal the CPU's."""
    worst: dict[str, float] = {}
    routes = {}
    rng = np.random.default_rng(5)
    for n in sizes:
        rows = 2 * n + 3
        x = simple_spectrum(rows, n)
        there = arrays.put(x)
        on_device, on_host = df.Covariance.from_samples(there), df.Covariance.from_samples(x)
        operators = {
            "fourier": df.operators.fourier(n),
            "path": df.operators.difference(n, 1, "path"),
        }
        if n % 2 == 0 and n > 4:
            operators["grid"] = df.operators.grid((2, n // 2))
        for name, operator in operators.items():
            for options in ({}, {"center": True}, {"k": max(1, n // 2)}, {"gauge": "identity"}):
                case = f"{name}, n = {n}, {options}"
                d = df.descramble(on_device, operator=operator, **options)
                e = df.descramble(on_host, operator=operator, **options)
                require(abs(d.cost / e.cost - 1) <= 1e-9, f"{case}: cost {d.cost}, CPU {e.cost}")
                agree(f"initial cost, {case}", d.initial_cost, np.asarray(e.initial_cost), 1e-9)
                P = np.asarray(e.matrix)
                W, V = rng.standard_normal((n, 4)), rng.standard_normal((3, n))
                mean = x.mean(0) if options.get("center") else 0.0
                y = (x - mean) @ P.T
                # The gap of neighbouring components decides how well their directions are known.
                loose, tight = 1e-9 * n, 1e-11 * n
                errors = {
                    "matrix": agree(f"P, {case}", d.matrix, P, loose, 1.0),
                    "transform": agree(f"P x, {case}", d.transform(there), y, loose),
                    "inverse": agree(
                        f"back, {case}",
                        d.inverse_transform(d.transform(there)),
                        y @ P + mean,
                        loose,
                    ),
                    "weight": agree(
                        f"P W, {case}",
                        d.transform_weight(arrays.put(W)),
                        wide(d.matrix) @ W,
                        tight,
                    ),
                    "next_weight": agree(
                        f"W P^T, {case}",
                        d.transform_next_weight(arrays.put(V)),
                        V @ wide(d.matrix).T,
                        tight,
                    ),
                    "modes": agree(f"T, {case}", d.modes, np.asarray(e.modes), loose),
                }
                worst = {key: max(worst.get(key, 0.0), error) for key, error in errors.items()}
                routes[case] = route_of(d)
    return {"errors": worst, "routes": compact(routes)}


def descramble_weights(arrays: Arrays, n: int, m: int) -> Facts:
    """From weights alone, with a bias and the inputs' moments."""
    rng = np.random.default_rng(8)
    W, b, mu = simple_spectrum(m, n).T, rng.standard_normal(n), rng.standard_normal(m)
    factor = rng.standard_normal((m, 2 * m))
    moment = factor @ factor.T / (2 * m) + np.outer(mu, mu)
    inputs = {"bias": b, "input_second_moment": moment, "input_mean": mu}
    found = df.descramble_weights(
        arrays.put(W), **{name: arrays.put(value) for name, value in inputs.items()}
    )
    expected = df.descramble_weights(W, **inputs)
    require(abs(found.cost / expected.cost - 1) <= 1e-9, f"{found.cost}, CPU {expected.cost}")
    trace = df.descramble_weights(arrays.put(W[:, :n]), criterion="trace")
    agree("trace", trace.cost, np.asarray(np.linalg.svd(W[:, :n])[1].sum()), 1e-10)
    return {"route": route_of(found), "trace_route": route_of(trace)}


# ----------------------------------------------------- streams, devices, memory, sanitizer


def streams(arrays: Arrays, n: int) -> Facts:
    """Read what is queued on a side stream there, and before what is queued after it."""
    if not isinstance(arrays, TorchArrays) or arrays.device == "cpu":
        raise NotRunError("needs torch with CUDA")
    torch = arrays.torch
    x = samples(4 * n, n)
    source, batch = arrays.put(x), torch.zeros((4 * n, n), dtype=torch.float64, device="cuda")
    slow = torch.randn((4096, 4096), device="cuda")
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    cov = df.Covariance(n)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(30):
            slow @ slow
        batch.copy_(source)  # arrives late,
        start = time.perf_counter()
        cov.update(batch)
        queued = time.perf_counter() - start
        ahead = not side.query()
        batch.fill_(float("nan"))  # and is soon gone
    require(torch.cuda.current_stream() == before, "another stream is current")
    error = agree("on a side stream", cov.covariance(), two_pass(x)[1], EXACT)
    with torch.cuda.stream(side):
        found = df.eigh(cov.covariance())
        vectors = found.eigenvectors @ torch.diag(found.eigenvalues) @ found.eigenvectors.T
    side.synchronize()
    agree("eigenpairs on a side stream", vectors, two_pass(x)[1], 1e-10)
    return {"errors": {"covariance": error}, "queued_seconds": queued, "returned_early": ahead}


def devices(arrays: Arrays, n: int) -> Facts:
    """Arrays on other devices are refused; the caller's current device is left alone."""
    x = samples(4 * n, n)
    there = arrays.put(x)
    on_device, on_host = df.Covariance.from_samples(there), df.Covariance.from_samples(x)
    d = df.descramble(on_device)
    mask = np.ones(len(x), bool)
    said = [
        refusal("a host batch", lambda: on_device.update(x)),
        refusal("a device batch", lambda: on_host.update(there)),
        refusal("a host mask", lambda: on_device.update(there, mask=mask)),
        refusal("another device's moments", lambda: on_device.merge(on_host)),
        refusal("host samples", lambda: d.transform(x)),
    ]
    require(on_device.count == len(x), "a refused update was counted")
    facts: Facts = {"errors_said": said}
    if isinstance(arrays, TorchArrays) and arrays.device != "cpu":
        count = arrays.torch.cuda.device_count()
        if count > 1:
            other = there.to("cuda:1")
            refusal("another GPU's batch", lambda: on_device.update(other))
            found = df.eigh(df.Covariance.from_samples(other).covariance())
            require(str(found.eigenvalues.device) == "cuda:1", "the result is on another GPU")
            require(arrays.torch.cuda.current_device() == 0, "another GPU is current")
        facts["gpus"] = count
    return facts


def interchange(arrays: Arrays, n: int) -> Facts:
    """Every library's arrays go in, views too, and results come back in kind."""
    kinds = {}
    for library in [arrays, *(a for a in available() if a.name != arrays.name)]:
        x = samples(4 * n, n)
        there = library.put(x)
        cov = df.Covariance.from_samples(there)
        moment, d = cov.second_moment(), df.descramble(cov)
        results = [moment, df.eigh(moment).eigenvalues, d.matrix, d.transform(there)]
        results.append(df.linear_assignment(moment).columns)
        for found in results:
            require(type(found) is type(there), f"{library.name}: came back as {type(found)}")
            require(str(found.device) == str(there.device), f"came back on {found.device}")
        agree("moment", moment, x.T @ x / len(x), EXACT)
        if library.name != "descramble_fast":  # whose arrays have no views
            for view in (there[1::2, 1:], library.put(x.T).T[1::2, 1:]):
                seen = df.Covariance.from_samples(view).covariance()
                agree("a view", seen, two_pass(x[1::2, 1:])[1], EXACT)
        kinds[library.name] = type(there).__name__
    return {"kinds": kinds}


class PeakMemory:
    """The least free memory of the device while the block runs, watched from a thread."""

    PAUSE = 0.001  # seconds

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._done = threading.Event()
        arrays.synchronize()
        self._before = self._least = arrays.memory()[0]
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self.PAUSE):
            self._look()

    def _look(self) -> None:
        self._least = min(self._least, self._arrays.memory()[0])

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """Most bytes taken beyond those taken before."""
        return self._before - self._least


SLACK = 16 << 20  # bytes: the driver's own, and what it rounds up


def memory(arrays: Arrays, n: int, rows: int) -> Facts:
    """Take what the plan says for an accumulator, and give it back."""
    arrays.memory()  # or not run
    x = arrays.put(samples(rows, n), "float32")
    df.Covariance(8).update(arrays.put(samples(64, 8), "float32")).count  # noqa: B018 - handles
    stated = 8 * n * n + 4 * 8 * n
    with PeakMemory(arrays) as state:
        cov = df.Covariance(n, device=arrays.device)
    require(state.bytes <= stated + SLACK, f"{state.bytes} bytes, the plan says {stated}")
    with PeakMemory(arrays) as update:
        for _ in range(20):
            cov.update(x)
        cov.count  # noqa: B018 - waits
    facts: Facts = {
        "stated": {"state": stated},
        "taken": {"state": state.bytes, "update": update.bytes},
    }
    facts["stated"]["update"] = _core.moments_memory(n, rows, "float32")[1]
    allowed = facts["stated"]["update"] + 2 * SLACK
    require(update.bytes <= allowed, f"updates took {update.bytes} bytes, allowed {allowed}")
    before = arrays.memory()[0]
    del cov
    arrays.synchronize()
    given_back = arrays.memory()[0] - before
    require(given_back >= 8 * n * n, f"only {given_back} bytes were given back")
    return facts


def sanitize(arrays: Arrays, tool: str, jobs: list[dict[str, Any]], seconds: float) -> Facts:
    """Run checks once more under compute-sanitizer, whose findings are failures."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        raise NotRunError("compute-sanitizer is not installed")
    worker = [sys.executable, "-m", f"{__package__}.gpu_worker", "--library", "descramble_fast"]
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", *worker],
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    summary = [line for line in said if line.startswith("=========")]
    require(done.returncode == 0, f"{tool} ended with {done.returncode}: {summary[-8:]}")
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ended = [answer for answer in answers if "status" in answer]
    wrong = [answer["name"] for answer in ended if answer["status"] != "passed"]
    require(not wrong and len(ended) == len(jobs), f"{tool}: failed checks: {wrong or 'lost'}")
    return {"checks": len(ended), "summary": summary[-1:]}
