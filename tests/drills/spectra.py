"""Eigenproblems that were made to lead solvers astray."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import on_device
from drill import Tally, drill
from families import (
    BRAIN,
    DOUBLE,
    EDGES,
    EPS,
    FAMILIES,
    HALF,
    KNOWN,
    SINGLE,
    Rng,
    moved,
    spectrum,
)

import descramble_fast as df

# Exponents that the norms are moved to; None leaves them. The last leave few bits of an entry.
SCALES: dict[Any, tuple[int | None, ...]] = {
    DOUBLE: (None, None, 1023, 997, -997, -1022, -1060),
    SINGLE: (None, None, 127, 123, -123, -126, -140),
    HALF: (None, None, 15, -14, -20),
    BRAIN: (None, None, 127, -126),
}


def count(tally: Tally, holds: Any, name: str, told: Any) -> None:
    """Trials of a batch; what is told of each that failed is indexed by it."""
    bad = np.flatnonzero(~np.atleast_1d(holds))
    tally.trials += np.size(holds) - len(bad)
    for i in bad:
        tally.check(False, f"{name}, matrix {i}: {[np.atleast_1d(one)[i] for one in told]}")


def judge(tally: Tally, name: str, a: Any, r: df.EighResult, known: Any = None) -> None:
    """The contract of a batch of solutions, on matrices scaled so that nothing here overflows."""
    wide = a.astype(np.float64)
    b, n, _ = wide.shape
    out = np.float64 if a.dtype == DOUBLE else np.float32
    k = r.eigenvalues.shape[-1]
    shaped = r.eigenvectors.shape == (b, n, k) and r.eigenvalues.shape == (b, k)
    typed = r.eigenvalues.dtype == r.eigenvectors.dtype == out
    tally.check(shaped and typed, f"{name}: {r.eigenvalues.dtype} {r.eigenvectors.shape}")
    top = np.frexp(np.abs(wide).max(axis=(1, 2)))[1]
    one, w = (
        np.ldexp(wide, -top[:, None, None]),
        np.ldexp(r.eigenvalues.astype(np.float64), -top[:, None]),
    )
    v = r.eigenvectors.astype(np.float64)
    truth = spectrum(one) if known is None else known
    norm = np.abs(truth).max(axis=1).astype(np.float64)
    unit = n * float(np.finfo(out).eps)
    # Eigenvalues are multiples of the smallest number, and rounded to them.
    least = int(np.finfo(out).minexp - np.finfo(out).nmant)
    rounded = np.ldexp(math.sqrt(k), least - 1 - top)
    vt = np.swapaxes(v, 1, 2)
    residual = np.linalg.norm(one @ v - v * w[:, None, :], axis=(1, 2))
    # Hoffman and Wielandt: together they are off by no more than the residual.
    off = np.linalg.norm((w - truth[:, n - k :]).astype(np.float64), axis=1)
    skew = np.linalg.norm(vt @ v - np.eye(k), axis=(1, 2))
    limit = 50 * unit * norm + rounded
    said = (r.residual <= 50 * unit * np.ldexp(norm * (1 + 8 * n * EPS), top) + 5e-324) & (
        r.orthogonality_error <= 50 * unit
    )
    rising = (np.diff(w, axis=1) >= 0).all(axis=1)
    holds = (residual <= limit) & (off <= limit) & (skew <= 50 * unit) & said & rising
    told = (residual, off, skew / 50 / unit, limit, said, rising, norm, top)
    count(tally, holds, f"{name} {r.route.driver}", told)
    scale = unit * norm + rounded
    for what, values in (
        ("residual / n eps |A|", residual / np.where(scale > 0, scale, 1)),
        ("orthogonality error / n eps", skew / unit),
        ("eigenvalue error / n eps |A|", off / np.where(scale > 0, scale, 1)),
    ):
        tally.worst(f"{what}, {np.dtype(out).name}", float(values.max(initial=0)))
    if r.route.fallbacks:
        kept = int(tally.figures.get("fallbacks recorded", 0))
        tally.figures["fallbacks recorded"] = str(kept + len(r.route.fallbacks))


def solved(a: Any, k: int | None = None, solve: Any = df.eigh) -> df.EighResult:
    """One matrix by itself, as a batch of one."""
    r = solve(a, k=k)
    return df.EighResult(
        r.eigenvalues[None],
        r.eigenvectors[None],
        r.residual[None],
        r.orthogonality_error[None],
        r.route,
    )


def any_matrices(tally: Tally, long: bool, sizes: Iterable[int], solve: Any) -> None:
    """Every family of these sizes, in the long part of every type."""
    turn = 0
    for n in sizes:
        for i, (name, make) in enumerate(FAMILIES.items()):
            for dtype in SCALES if long else [*SCALES][(i + n) % 8 :][:1]:
                rng = np.random.default_rng([n, i, dtype.num])
                turn += 1
                scale = SCALES[dtype][turn % len(SCALES[dtype])]
                a = moved(make(rng, int(rng.choice([1, 2, 5, 9])) if long else 2, n), scale)
                a = a.astype(dtype)
                k = int(rng.integers(1, n + 1)) if rng.random() < 0.3 else None
                given = a
                if rng.random() < 0.3:  # above the diagonal nothing is read
                    given = a.copy()
                    given[:, np.triu(np.ones((n, n), bool), 1)] = np.nan
                told = f"{name} {dtype.name} n={n} scale={scale} k={k}"
                judge(tally, told, a, solve(given, k=k))
                judge(tally, f"single {told}", a[:1], solved(given[0], k, solve))


@drill("eigh", "any symmetric matrices, n = 1 to 129, of all types and scales, single and batched")
def eigh(tally: Tally, long: bool) -> None:
    any_matrices(tally, long, range(1, 130) if long else EDGES, df.eigh)


@drill(
    "device-eigh",
    "any symmetric matrices on a CUDA device, n = 1 to 129 and 500 to 3000, of all types, scales",
    device=True,
)
def device_eigh(tally: Tally, long: bool) -> None:
    def solve(a: Any, k: int | None) -> Any:
        r = on_device.solves(df.eigh)(a, k=k)
        on_device.count_places(tally, r.route)
        return r

    edges = {32, 64, 96, 128}  # the largest of each way
    any_matrices(tally, long, sorted({*range(1, 130, 2), *edges}) if long else (2, 33, 97), solve)
    for i, n in enumerate((500, 700, 1500, 3000) if long else ()):
        for j, name in enumerate([*FAMILIES][i % 2 :: 2] if n < 1000 else ("clusters", "graded")):
            for dtype in (DOUBLE, SINGLE):
                a = FAMILIES[name](np.random.default_rng([n, j]), 1, n).astype(dtype)
                k = [None, n // 40, 1, n // 2][(i + j) % 4]
                judge(tally, f"{name} {dtype.name} n={n} k={k}", a, solved(a[0], k, solve))
    tally.check("on cuda" in tally.figures, "none was solved on the device")


@drill("eigh-batches", "65535 to 65537 matrices of all families at once are each solved")
def eigh_batches(tally: Tally, long: bool) -> None:
    for n in range(1, 9) if long else (2, 3):
        for b in (65535, 65536, 65537) if long else (4099 if n == 3 else 65537,):
            for dtype in (DOUBLE, SINGLE):
                rng = np.random.default_rng([n, b, dtype.num])
                share = -(-b // len(FAMILIES))
                parts = []
                for make in FAMILIES.values():
                    scale = SCALES[dtype][rng.integers(len(SCALES[dtype]))]
                    parts.append(moved(make(rng, share, n), scale))
                a = rng.permutation(np.concatenate(parts)[:b]).astype(dtype)
                judge(tally, f"{dtype.name} n={n} of {b}", a, df.eigh(a))


@drill("eigh-known", "eigenvalues that are known in extended precision, also of n = 500 to 3000")
def eigh_known(tally: Tally, long: bool) -> None:
    for n in (*range(1, 130), 500, 1023, 1024, 2000) if long else (1, 2, 7, 33, 64):
        for name, make in KNOWN.items():
            if n > 1024 and name in ("wilkinson", "weak", "ring"):
                continue  # the oracle would take longer than all the rest
            rng = np.random.default_rng([n, len(name)])
            a, values = make(rng, n)
            order = rng.permutation(n)
            for dtype in (DOUBLE, SINGLE):
                given = a[np.ix_(order, order)][None].astype(dtype)
                exact = np.array_equal(given[0][np.ix_(np.argsort(order), np.argsort(order))], a)
                top = np.frexp(np.abs(a).max())[1]
                truth = np.sort(np.ldexp(values, -top))[None] if exact else None
                k = None if n < 500 else [None, 1, n // 40, n // 3][int(rng.integers(4))]
                judge(tally, f"{name} {dtype.name} n={n} k={k}", given, solved(given[0], k), truth)
    for i, n in enumerate((500, 700, 1100, 1500, 3000) if long else (130,)):
        for j, name in enumerate(
            FAMILIES if n < 600 else [*FAMILIES][i::5] if n < 3000 else ["clusters"]
        ):
            for dtype in (DOUBLE, SINGLE):
                rng = np.random.default_rng([n, j, dtype.num])
                k = [None, n // 40, 1, n // 2][(i + j) % 4]
                a = FAMILIES[name](rng, 1, n).astype(dtype)
                judge(tally, f"{name} {dtype.name} n={n} k={k}", a, solved(a[0], k))


def bits(r: df.EighResult) -> bytes:
    return bytes(r.eigenvalues.tobytes() + r.eigenvectors.tobytes())


def same_bits(tally: Tally, rng: Rng, trial: int) -> None:
    """A batch solved in every other way that must not show; and with a NaN in it."""
    family, dtype = str(rng.choice([*FAMILIES])), (DOUBLE, SINGLE)[trial % 2]
    n = int(rng.choice(EDGES) if rng.random() < 0.5 else rng.integers(1, 130))
    b, k = int(rng.integers(1, 20)), int(rng.integers(1, n + 1)) if rng.random() < 0.3 else None
    a = FAMILIES[family](rng, b, n).astype(dtype)
    a[a != 0] = np.copysign(np.maximum(np.abs(a), 1e-25), a)[a != 0]
    name, whole = f"trial {trial}: {family} {dtype.name} {b} of n={n} k={k}", df.eigh(a, k=k)
    tally.check(bits(df.eigh(a.swapaxes(1, 2), k=k)) == bits(whole), f"{name}: transposed")
    chosen = rng.permutation(b)[: rng.integers(1, b + 1)]
    part = df.eigh(a[chosen], k=k)
    if part.route.driver == whole.route.driver:  # few matrices may have another
        same = part.eigenvalues.tobytes() == whole.eigenvalues[chosen].tobytes()
        same &= part.eigenvectors.tobytes() == whole.eigenvectors[chosen].tobytes()
        tally.check(same, f"{name}: in another batch, {chosen.tolist()}")
    e = int(rng.integers(-40, 40))
    scaled = df.eigh(np.ldexp(a, e), k=k)
    w, least = np.ldexp(whole.eigenvalues, e), 2.0**40 * float(np.finfo(dtype).tiny)
    same = bool((w == scaled.eigenvalues)[np.abs(w) > least].all())  # others lose bits
    same &= scaled.eigenvectors.tobytes() == whole.eigenvectors.tobytes()
    tally.check(same, f"{name}: scaled by 2^{e}")
    df.set_num_threads(1)
    one = bits(df.eigh(a, k=k))
    df.set_num_threads(2)
    tally.check(one == bits(df.eigh(a, k=k)) == bits(whole), f"{name}: one thread and two")
    at, i = int(rng.integers(b)), int(rng.integers(n))
    j = int(rng.integers(i + 1))
    a[at, i, j] = rng.choice([np.nan, np.inf, -np.inf])
    try:
        df.eigh(a, k=k)
        text = "taken"
    except ValueError as error:
        text = str(error)
    found = text == f"a: NaN or infinity at row {i}, column {j} of matrix {at}"
    tally.check(found, f"{name}: NaN at {at, i, j}: {text}")


@drill("eigh-bits", "scales, strides, places in a batch and threads leave the bits; NaN is located")
def eigh_bits(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(0)
    try:
        for trial in range(3000 if long else 40):
            same_bits(tally, rng, trial)
    finally:
        df.set_num_threads(0)
