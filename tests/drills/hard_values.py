"""Values and shapes that break neighbouring software: a right answer or a clear error."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from itertools import permutations
from typing import Any

import ml_dtypes
import numpy as np
from calls import smoothest
from drill import Tally, drill
from kinds import error, host
from numpy.typing import NDArray

import descramble_fast as df

Rng = np.random.Generator
DTYPES: tuple[Any, ...] = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
EPS = {np.dtype(t).itemsize: 2.0**-52 if t is np.float64 else 2.0**-23 for t in DTYPES}
SIZES = (1, 2, 5, 31, 32, 33, 64, 65)


def refused(call: Callable[[], Any], *words: str, kind: type[Exception] = ValueError) -> str:
    """What is wrong with the refusal of a call; its message must have these words."""
    try:
        result = call()
    except kind as raised:
        lacking = [word for word in words if not re.search(word, str(raised))]
        return f"lacks {lacking}: {raised}" if lacking else ""
    except Exception as raised:
        return f"{type(raised).__name__} instead of {kind.__name__}: {raised}"
    return f"taken: {str(result)[:80]}"


def within(measured: float, bound: float) -> str:
    return "" if measured <= bound else f"error {measured:.3g}, bound {bound:.3g}"


def two_pass(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and covariance in extended precision."""
    wide = x.astype(np.float64).reshape(-1, x.shape[-1]).astype(np.longdouble)
    mean = wide.mean(axis=0)
    return mean, (wide - mean).T @ (wide - mean) / len(wide)


def close(cov: df.Covariance, x: NDArray[Any], bound: float) -> str:
    if cov.count != x.size // x.shape[-1]:
        return f"count {cov.count}"
    mean, covariance = two_pass(x)
    scale = float(covariance.diagonal().max()) or 1.0
    size = np.abs(mean) + np.sqrt(np.maximum(covariance.diagonal(), 0)) + 1e-300
    off = float((np.abs(cov.mean - mean) / size).max())
    return within(max(error(cov.covariance(), covariance.astype(float), scale), off), bound)


def token(rng: Rng) -> str:
    """NaN or infinity in one token of the last batch, then the stream goes on."""
    dtype, n = DTYPES[rng.integers(4)], int(rng.choice(SIZES))
    batches = rng.normal(size=(4, 3, 7, n)).astype(dtype)
    cov = df.Covariance(n)
    for batch in batches[:3]:
        cov.update(batch)
    before, last = pickle.dumps(cov), batches[3].copy()
    row, column = int(rng.integers(21)), int(rng.integers(n))
    last.reshape(-1, n)[row, column] = rng.choice([np.nan, np.inf, -np.inf])
    wrong = refused(lambda: cov.update(last), "^batch: ", rf"row {row}\b", rf"column {column}\b")
    if not wrong and pickle.dumps(cov) != before:
        wrong = "the state has changed"
    return wrong or close(cov.update(batches[3]), batches, 1e-12 if dtype is np.float64 else 1e-5)


def extremes(rng: Rng) -> str:
    """3.4e38 and subnormals in a small float32 matrix."""
    n = int(rng.choice((2, 3, 5, 8)))
    a = rng.normal(size=(n, n)).astype(np.float32)
    some = rng.random((n, n))
    a[some < 0.3] = np.float32(1e-42)
    a[some > 0.8] = np.float32(3.4e38) * rng.choice((-1, 1))
    a = np.tril(a) + np.tril(a, -1).T
    wide = a.astype(np.float64)
    exact, norm = np.linalg.eigvalsh(wide), np.linalg.norm(wide)
    if np.abs(exact).max() > np.finfo(np.float32).max:
        if wrong := refused(lambda: df.eigh(a), "^a: "):
            return wrong
    else:
        r = df.eigh(a)
        V, w = r.eigenvectors.astype(float), r.eigenvalues.astype(float)
        off = max(np.linalg.norm(wide @ V - V * w) / norm, np.linalg.norm(V.T @ V - np.eye(n)))
        if wrong := within(off, 50 * n * 2.0**-23):
            return wrong
    r = df.linear_assignment(a)
    best = min(sum(wide[i, p[i]] for i in range(n)) for p in permutations(range(n)))
    if wrong := within(abs(r.cost - best), 1e-12 * norm):
        return wrong
    return close(df.Covariance(n).update(a), a, 1e-5)


def spectra(rng: Rng) -> str:
    """Rank 1, the identity, nothing, and a circulant without Nyquist as second moments."""
    n = int(rng.choice(SIZES))
    x = rng.normal(size=n)
    power = rng.random(n // 2 + 1)
    power[-1] = 0
    row = np.fft.irfft(power, n) if n > 1 else np.zeros(1)
    circulant = np.stack([np.roll(row, i) for i in range(n)])
    C = [np.outer(x, x), np.eye(n), np.zeros((n, n)), (circulant + circulant.T) / 2][
        rng.integers(4)
    ]
    dtype = rng.choice(np.array([np.float32, np.float64]))
    scale = 10.0 ** rng.integers(-12, 12)
    C = (C * scale).astype(dtype)
    cov, op = df.Covariance.from_moments(C), df.operators.fourier(n)
    gauge = ["canonical", "identity", rng.normal(size=(n, n))][rng.integers(3)]
    d = df.descramble(cov, gauge=gauge)
    L, exact = host(op.apply(np.eye(n))), host(cov.second_moment())
    if not exact.any():
        return within(max(abs(d.cost), d.orthogonality_error), 1e-12 * n)
    # float32 symmetric matrices may miss semidefiniteness by their own rounding.
    if wrong := within(smoothest(d, exact, L, 1e-12 if dtype is np.float64 else 1e-6), n):
        return wrong
    r = df.eigh(C)
    V, w, wide = r.eigenvectors.astype(float), r.eigenvalues.astype(float), C.astype(float)
    off = max(
        np.linalg.norm(wide @ V - V * w) / np.linalg.norm(wide), np.linalg.norm(V.T @ V - np.eye(n))
    )
    return within(off, 50 * n * EPS[C.itemsize])


def opposite(rng: Rng) -> str:
    """A mean of a million deviations, merged with a shard of the opposite mean."""
    n, dtype = int(rng.choice((1, 5, 33))), rng.choice(np.array([np.float32, np.float64]))
    far = 1e6 * rng.choice((-1, 1), size=n)
    one, two = (
        (rng.normal(size=(int(rng.integers(1, 600)), n)) + s * far).astype(dtype) for s in (1, -1)
    )
    a, b = df.Covariance(n).update(one), df.Covariance(n).update(two)
    bound = 1e-10 if dtype is np.float64 else 1e-5
    return (
        close(a, one, bound)
        or close(b, two, bound)
        or close(a.merge(b), np.concatenate([one, two]), bound)
    )


def large_batches(rng: Rng) -> str:
    """Batches of 65535 to 65537 rows, matrices and problems."""
    count, n = int(rng.integers(65535, 65538)), int(rng.choice((1, 2, 3)))
    dtype = rng.choice(np.array([np.float32, np.float64]))
    x = rng.normal(size=(count, n)).astype(dtype)
    if wrong := close(df.Covariance(n).update(x), x, 1e-12 if dtype is np.float64 else 1e-5):
        return wrong
    a = rng.normal(size=(count, n, n)).astype(dtype)
    r, wide = df.eigh(a), np.tril(a).astype(float)
    wide = wide + np.tril(wide, -1).swapaxes(1, 2)
    V = r.eigenvectors.astype(float)
    residual = np.linalg.norm(wide @ V - V * r.eigenvalues[:, None], axis=(1, 2))
    if wrong := within(
        float((residual / np.linalg.norm(wide, axis=(1, 2))).max()), 50 * n * EPS[a.itemsize]
    ):
        return f"eigh: {wrong}"
    orders = np.array(list(permutations(range(n))))
    best = a.astype(float)[:, np.arange(n), orders].sum(axis=2).min(axis=1)
    return within(error(df.linear_assignment(a).cost, best), 1e-12)


def few(rng: Rng) -> str:
    """Shapes (0, d), (1, d), (d,), (a, b, d) and d = 1."""
    n, dtype = int(rng.choice(SIZES)), DTYPES[rng.integers(4)]
    x = rng.normal(size=(1, n)).astype(dtype)
    empty = df.Covariance.from_samples(x[:0])
    before = pickle.dumps(empty)
    for call in (
        lambda: empty.mean,
        empty.second_moment,
        empty.covariance,
        lambda: df.descramble(empty),
        lambda: df.descramble(x[:0]),
        lambda: df.descramble_permutation(x[:0]),
    ):
        if wrong := refused(call, "no samples|empty|samples"):
            return wrong
    if pickle.dumps(empty) != before or empty.count or pickle.dumps(empty.update(x[:0])) != before:
        return "an empty accumulator has changed"
    for shape in ((1, n), (n,), (1, 1, 1, n)):
        one = df.Covariance.from_samples(x.reshape(shape))
        if (
            one.count != 1
            or host(one.covariance()).any()
            or (host(one.mean) != x[0].astype(float)).any()
        ):
            return f"shape {shape}: {one}, mean {one.mean}"
        if wrong := refused(lambda c=one: c.covariance(ddof=1), "ddof"):
            return wrong
    d, wide = df.descramble(x), x.astype(float)
    L = host(df.operators.fourier(n).apply(np.eye(n)))
    if wrong := within(smoothest(d, wide.T @ wide, L, 1e-5), 1):
        return wrong
    for shape in ((0, n), (n,), (2, 0, n), (2, 1, n)):
        z = np.ones(shape, np.float32)
        if error(d.transform(z), z @ host(d.matrix).T, 1.0) > 1e-10:
            return f"transform of shape {shape}"
    many = rng.normal(size=(3, 4, n)).astype(dtype)
    return close(df.Covariance.from_samples(many), many, 1e-12 if dtype is np.float64 else 1e-5)


def assignments(rng: Rng) -> str:
    """A row of inf, all inf, NaN, constant, negative, 2 by 3, 3 by 2, and nothing at all."""
    n, m = (int(each) for each in rng.integers(1, 6, 2))
    dtype = rng.choice(np.array([np.float32, np.float64]))
    problems, maximize = int(rng.integers(1, 40)), bool(rng.integers(2))
    C = rng.normal(size=(problems, n, m)).astype(dtype)
    forbidden = np.array(-np.inf if maximize else np.inf, dtype)
    at, what = int(rng.integers(problems)), int(rng.integers(7))
    words: tuple[str, ...] = ()
    if what == 0:  # infeasible, where every row must have a column
        C[at, int(rng.integers(n))] = forbidden
        words = (rf"problem \[?{at}\b",) if n <= m else ()
    elif what == 1:
        C[at] = forbidden
        words = (rf"problem \[?{at}\b",)
    elif what == 2:
        i, j = int(rng.integers(n)), int(rng.integers(m))
        C[at, i, j] = rng.choice([np.nan, -forbidden])
        words = (rf"problem \[?{at}\b", rf"row {i}\b", rf"column {j}\b")
    elif what == 3:
        C[at] = rng.choice([0, -1, 1e-42, 3e38])
    elif what == 4:
        C[at] = -np.abs(C[at]) * 10.0 ** rng.integers(-30, 30)
    elif what == 5:
        C = C[:0]
    else:
        C[rng.random(C.shape) < 0.2] = forbidden

    def solve() -> df.LinearAssignmentResult:
        return df.linear_assignment(C, maximize=maximize)

    if words:
        return refused(solve, "^cost: ", *words)
    best = np.array([optimum(c.astype(float), maximize) for c in C])
    if what == 6 and not np.isfinite(best).all():
        return refused(solve, "^cost: ", "problem")
    r = solve()
    scale = max(1e-300, float(np.abs(best).max(initial=0)))
    return within(error(r.cost, best, scale), 1e-12) if r.columns.shape == C.shape[:2] else "shape"


def optimum(c: NDArray[np.float64], maximize: bool) -> float:
    """By trying everything."""
    c = c if c.shape[0] <= c.shape[1] else c.T
    with np.errstate(invalid="ignore"):
        costs = [
            c[np.arange(len(c)), list(p)].sum() for p in permutations(range(c.shape[1]), len(c))
        ]
    return max(costs) if maximize else min(costs)


def overlapping(rng: Rng) -> str:
    """Rows and columns that share memory: strides of 0, and windows of a signal."""
    n, rows = int(rng.choice((1, 5, 32, 33))), int(rng.integers(1, 300))
    dtype = DTYPES[rng.integers(4)]
    signal = rng.normal(size=rows + n - 1).astype(dtype)
    x = [
        np.lib.stride_tricks.sliding_window_view(signal, n),
        np.broadcast_to(signal[:n], (rows, n)),
        np.broadcast_to(signal[:rows, None], (rows, n)),
        np.broadcast_to(signal[:1], (rows, n)),
        np.lib.stride_tricks.sliding_window_view(signal, n)[::-1, ::-1],
    ][rng.integers(5)]
    whole = np.ascontiguousarray(x)
    same = df.Covariance(n).update(x), df.Covariance(n).update(whole)
    if host(same[0].covariance()).tobytes() != host(same[1].covariance()).tobytes():
        return "another covariance than that of a copy"
    op = df.operators.fourier(n)
    return within(error(op.apply(x), op.apply(whole)), 1e-13)


SCENES = (token, extremes, spectra, opposite, few, assignments, overlapping, large_batches)


@drill(
    "hard-values", "NaN, extremes, lone rows, empty and forbidden ones: right, or refused by name"
)
def hard_values(tally: Tally, long: bool) -> None:
    for scene in SCENES:
        several = (2000, 40) if long else (12, 1)
        for seed in range(several[scene is large_batches]):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    wrong = scene(np.random.default_rng(seed))
                except Exception as raised:
                    wrong = f"{type(raised).__name__}: {raised}"
            tally.check(not wrong, f"{scene.__name__}, seed {seed}: {wrong}")
