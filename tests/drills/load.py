"""Days of streaming in one run: no drift, no lost count, no memory that grows."""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import on_device
from drill import Tally, drill
from numpy.typing import NDArray
from on_device import host

import descramble_fast as df

Floats = NDArray[np.float64]
RESIDENT = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory, less what malloc keeps; 0 where the system does not say."""
    if not RESIDENT.exists():
        return 0
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return int(RESIDENT.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def two_pass(x: NDArray[Any]) -> tuple[Floats, Floats]:
    """Mean and covariance in extended precision."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(axis=0)
    centred = wide - mean
    return mean.astype(float), (centred.T @ centred / len(x)).astype(float)


def error(cov: df.Covariance, mean: Floats, covariance: Floats) -> float:
    """Largest error of the covariance, and of the mean, beside the largest variance and deviation.

    A mean of many deviations is rounded itself, and counted by its own size.
    """
    scale = covariance.diagonal().max()
    return max(
        float(np.abs(host(cov.covariance()) - covariance).max() / scale),
        float((np.abs(host(cov.mean) - mean) / (np.abs(mean) + np.sqrt(scale))).max()),
    )


def stream(tally: Tally, long: bool, total: int, rows: int, put: Callable[[Any], Any]) -> None:
    """So many samples in all; the same batches again and again have the moments of one cycle."""
    rng = np.random.default_rng(0)
    n = 4
    sizes = [rows, 0, rows - 1, 1, rows // 2 + 1, 31, rows]
    shift = {"0": 0.0, "1e6 deviations": 1e6}
    for (name, mean), dtype in [(s, t) for s in shift.items() for t in (np.float32, np.float64)]:
        batches = [(rng.normal(size=(size, n)) + mean).astype(dtype) for size in sizes]
        oracle = two_pass(np.concatenate(batches))
        once, cov = sum(sizes), df.Covariance(n)
        batches = [put(batch) for batch in batches]
        cycles = -(-total // (4 * once))
        if mean == 0 and dtype == np.float32:
            cycles += long * ((1 << 32) // once)  # one of them alone passes 2³²
        bound = 1e-5 if dtype == np.float32 else 1e-12
        begin = 0
        for cycle in range(cycles):
            for batch in batches:
                cov.update(batch)
            if cycle % max(1, cycles // 100) and cycle + 1 < cycles:
                continue
            off = error(cov, *oracle)
            where = f"mean {name}, {np.dtype(dtype).name}, cycle {cycle}"
            tally.worst(f"error, {np.dtype(dtype).name}, mean {name}", off)
            tally.check(off <= bound, f"{where}: error {off:.2e}, bound {bound:.0e}")
            tally.check(cov.count == once * (cycle + 1), f"{where}: count {cov.count}")
            begin = begin or resident()
        grown = resident() - begin
        tally.check(grown < 1 << 20, f"mean {name}, {dtype}: {grown} bytes more at the end")
        tally.figures["samples"] = f"{int(tally.figures.get('samples', 0)) + cov.count}"
    tally.figures["samples"] = f"{int(tally.figures['samples']):,}"


@drill("long-stream", "billions of samples end where the float64 oracle of one cycle does")
def long_stream(tally: Tally, long: bool) -> None:
    stream(tally, long, *((5_000_000_000, 1 << 20) if long else (20_000_000, 1 << 16)), np.asarray)


@drill(
    "device-stream",
    "billions of samples on a CUDA device end where the float64 oracle of one cycle does",
    device=True,
)
def device_stream(tally: Tally, long: bool) -> None:
    stream(tally, long, *((5_000_000_000, 1 << 20) if long else (20_000, 500)), on_device.put)


@drill("counts", "row counts are exact past 2³¹, 2³² and 2⁵³ up to 2⁶³ - 1, and then refused")
def counts(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(1)
    row = np.array([[1.0, 2.0]])
    powers = [df.Covariance(2).update(row)]  # 2^k rows, by doubling
    while len(powers) < 63:
        powers.append(pickle.loads(pickle.dumps(powers[-1])).merge(powers[-1]))
    limit = (1 << 63) - 1
    edges = [(1 << bits) + off for bits in (31, 32, 53, 62) for off in (-2, -1, 0, 1)]
    drawn = [int(rng.integers(1, limit)) for _ in range(2000 if long else 100)]
    for number in [*edges, *drawn]:
        cov = df.Covariance(2)
        for k, power in enumerate(powers):
            if number >> k & 1:
                cov.merge(power)
        for _ in range(3):
            cov.update(row)
            number += 1
            tally.check(cov.count == number, lambda c=cov, n=number: f"{c.count}, expected {n}")
        again = pickle.loads(pickle.dumps(cov))
        tally.check(again.count == number, f"{again.count} after a pickle, expected {number}")
        tally.check(np.array_equal(cov.mean, row[0]), f"mean {cov.mean} of {number} equal rows")
        tally.check(not cov.covariance().any(), f"covariance of {number} equal rows is not 0")
    full = df.Covariance(2)
    for power in powers:
        full.merge(power)
    tally.check(full.count == limit, f"{full.count}, expected {limit}")
    before = pickle.dumps(full)
    for name, add in {
        "update": lambda: full.update(row),
        "merge": lambda: full.merge(powers[0]),
    }.items():
        try:
            add()
            refused = "nothing"
        except ValueError as raised:
            refused = str(raised)
        tally.check("count" in refused, f"{name} past 2^63 - 1: {refused}")
        tally.check(pickle.dumps(full) == before, f"{name} past 2^63 - 1 changed the state")


@drill("small-updates", "millions of updates of few rows have the exact moments, in flat memory")
def small_updates(tally: Tally, long: bool) -> None:
    # Integers, so that sums are known exactly.
    rng = np.random.default_rng(2)
    n, pool = 3, 4096
    rows = rng.integers(-1000, 1000, size=(pool, n))
    pieces, at = [], 0
    while at < pool:
        pieces.append(slice(at, min(pool, at + int(rng.integers(0, 4)))))
        at = pieces[-1].stop
    for dtype in (np.float64, np.float32, np.float16):
        cov = df.Covariance(n)
        parts = [rows[piece].astype(dtype) for piece in pieces]
        exact = rows.sum(axis=0) / pool, rows.T @ rows / pool
        oracle = exact[0], exact[1] - np.outer(exact[0], exact[0])
        bound = 1e-12 if dtype == np.float64 else 1e-6
        begin = 0
        cycles = 1000 if long else 20
        for cycle in range(cycles):
            for part in parts:
                cov.update(part)
            off = error(cov, *oracle)
            name = f"{np.dtype(dtype).name}, cycle {cycle}"
            tally.worst(f"error, {np.dtype(dtype).name}", off)
            tally.check(off <= bound, f"{name}: error {off:.2e}, bound {bound:.0e}")
            tally.check(cov.count == pool * (cycle + 1), f"{name}: count {cov.count}")
            begin = begin or resident()
        grown = resident() - begin
        tally.check(grown < 1 << 20, f"{np.dtype(dtype).name}: {grown} bytes more at the end")
        tally.figures["updates"] = f"{int(tally.figures.get('updates', 0)) + cycles * len(parts)}"
    tally.figures["updates"] = f"{int(tally.figures['updates']):,}"


@drill("many-accumulators", "thousands of them, fed in turns, keep apart, add up and give all back")
def many_accumulators(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(3)
    how_many, n, rounds, repeats = (5000, 24, 4, 20) if long else (1000, 24, 4, 2)
    peak, left = 0, []
    for repeat in range(repeats):
        covs = [df.Covariance(n) for _ in range(how_many)]
        fed: list[list[int]] = [[] for _ in covs]
        batches = [
            rng.normal(size=(int(size), n)) + rng.normal(scale=100, size=n)
            for size in rng.integers(0, 40, size=64)
        ]
        for _ in range(rounds):
            for i in rng.permutation(how_many):
                choice = int(rng.integers(len(batches)))
                covs[i].update(batches[choice])
                fed[i].append(choice)
        for i in rng.choice(how_many, size=how_many // 10, replace=False):
            alone = df.Covariance(n)
            for choice in fed[i]:
                alone.update(batches[choice])
            same = pickle.dumps(alone) == pickle.dumps(covs[i])
            tally.check(same, f"repeat {repeat}: accumulator {i} is not what its batches give")
        peak = max(peak, resident())
        times = np.bincount(np.concatenate(fed).astype(int), minlength=len(batches))
        total = sum(int(t) * len(b) for t, b in zip(times, batches, strict=True))
        while len(covs) > 1:  # a random tree
            covs[:] = [covs[i] for i in rng.permutation(len(covs))]
            half = len(covs) // 2
            for one, other in zip(covs[:half], covs[half : 2 * half], strict=True):
                one.merge(other)
            covs[half : 2 * half] = []
        tally.check(covs[0].count == total, f"count {covs[0].count}, expected {total}")
        everything = np.concatenate(
            [b for t, b in zip(times, batches, strict=True) for _ in range(t)]
        )
        off = error(covs[0], *two_pass(everything))
        tally.worst("error of the sum", off)
        # Means a hundred deviations apart; the bound is relative to the largest variance.
        tally.check(off <= 1e-12, f"repeat {repeat}: error {off:.2e}")
        del covs, everything
        left.append(resident())
    if long:  # else they are too few for pages to tell
        # Less than one smallest piece of memory, 32 bytes, for each that was made meanwhile.
        grown, made = left[-1] - left[repeats // 2 - 1], how_many * (repeats - repeats // 2)
        tally.check(grown < 32 * made, f"{grown} bytes of {made} accumulators were not given back")
    tally.figures["accumulators"] = f"{how_many * repeats:,}"
    tally.figures["bytes of each"] = f"{(peak - left[-1]) // how_many:,}"
