"""Descramblers of moments and weights that were made to lead them astray."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import on_device
from drill import HERE, Tally, drill
from families import (
    BRAIN,
    DOUBLE,
    EDGES,
    EPS,
    FAMILIES,
    HALF,
    SINGLE,
    Array,
    Rng,
    moved,
    spectrum,
    turned,
)

import descramble_fast as df

_spec = importlib.util.spec_from_file_location("reference", HERE.parent / "python" / "reference.py")
assert _spec is not None
assert _spec.loader is not None
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

OPERATORS: dict[str, Any] = {
    "fourier": df.operators.fourier,
    "fourier 1": lambda n: df.operators.fourier(n, 1),
    "ring": df.operators.difference,
    "ring 2": lambda n: df.operators.difference(n, 2),
    "path": lambda n: df.operators.difference(n, 1, "path"),
    "path 2": lambda n: df.operators.difference(n, 2, "path"),
    "central": df.operators.central_difference,
    "grid": lambda n: df.operators.grid((math.gcd(n, 6), n // math.gcd(n, 6))),
    "matrix": lambda n: df.operators.from_matrix(laplacian(n)),
}
DENSE: dict[str, Any] = {
    "fourier": lambda n: square(reference.fourier_derivative(n, 2)),
    "fourier 1": lambda n: square(reference.fourier_derivative(n, 1)),
    "ring": lambda n: square(reference.difference_matrix(n, 1, "periodic")),
    "ring 2": lambda n: square(reference.difference_matrix(n, 2, "periodic")),
    "path": lambda n: square(reference.difference_matrix(n, 1, "path")),
    "path 2": lambda n: square(reference.difference_matrix(n, 2, "path")),
    "central": lambda n: square(reference.central_difference_matrix(n)),
    "grid": lambda n: reference.kronecker_sum(
        [DENSE["fourier"](m) for m in (math.gcd(n, 6), n // math.gcd(n, 6))]
    ),
    "matrix": lambda n: laplacian(n),
}


def square(D: Array) -> Array:
    return np.asarray(D.T @ D)


def laplacian(n: int) -> Array:
    """Of a ring with chords: integers, and repeated eigenvalues where n allows."""
    step = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    near = ((step > 0) & ((step % max(1, n // 3) == 0) | (step == 1) | (step == n - 1))).astype(
        float
    )
    return np.asarray(np.diag(near.sum(0)) - near)


def runs(c: Any, k: int) -> list[tuple[int, int]]:
    """Blocks: eigenvalues within n eps c₁ of their first; those that begin before k, cut there."""
    out, begin = [], 0
    for end in range(1, len(c) + 1):
        if end == len(c) or c[begin] - c[end] > len(c) * EPS * c[0]:
            out += [(begin, min(end, k))] if end - begin > 1 and begin < k else []
            begin = end
    return out


def nearby(rng: Rng, P: Array, some: int) -> Iterator[Array]:
    """Orthogonal matrices: of any kind, and P turned by a little or in a plane, or reordered."""
    n = len(P)
    for _ in range(some):
        yield reference.random_orthogonal(n, rng)
        skew = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-6, 0)
        yield reference.cayley(skew - skew.T) @ P
        yield P[rng.permutation(n)]


def optimal(
    tally: Tally, rng: Rng, name: str, d: Any, C: Array, L: Array, some: int, lost: float = 0
) -> None:
    """Everything a smoothness descrambler says of itself, by definition and by the spectra."""
    n = len(C)
    kept = len(d.eigenvalues)
    top = float(np.abs(C).max())
    one = C / top if top > 0 else C
    top = top if top > 0 else 1.0
    c = np.maximum(spectrum(one)[::-1], 0)
    ell = np.maximum(spectrum(L), 0)
    P, T, U = d.matrix, d.modes, d.components
    closed = d.operator.eigenvalues
    tally.check(bool(np.abs(closed - ell).max() <= 50 * n * EPS * ell[-1]), f"{name}: ℓ {closed}")
    # What narrow samples lose is bounded for each entry of C, by 1e-5 of the largest variance.
    loss = n * c[0] * max(EPS, lost)
    evaluation = n * n * ell[-1] * (c[0] * EPS + 5e-324 / top)
    unit = loss * ell[:kept].sum() + evaluation
    best = float(c[:kept] @ closed[:kept])
    cost, initial, bound = d.cost / top, d.initial_cost / top, d.bound / top
    allowed = d.cost_error / top + n * closed[:kept].sum() * (c[0] * lost + 5e-324 / top)
    tally.check(abs(cost - best) <= allowed, f"{name}: cost {cost} ± {allowed}, best {best}")
    tally.worst("cost's error / cost_error", abs(cost - best) / allowed if allowed > 0 else 0)
    trace = np.trace(L @ P @ one @ P.T)
    tally.check(abs(cost - trace) <= 50 * unit, f"{name}: cost {cost}, trace {trace}")
    tally.worst("|cost - trace| / n eps c₁ Σℓ", abs(cost - trace) / unit if unit else 0)
    off = abs(initial - np.trace(L @ one))
    tally.check(off <= loss * ell.sum() + evaluation, f"{name}: initial cost {initial}")
    tally.check(bound <= cost <= initial + 50 * unit, f"{name}: bound {bound}, {cost}, {initial}")
    for i, other in enumerate(nearby(rng, P, some if kept == n else 0)):
        value = np.trace(L @ other @ one @ other.T)
        tally.check(value >= cost - unit, f"{name}: another P, {i}, costs {value}, not {cost}")
    limit = 50 * n * EPS
    kept_modes = d.operator.modes()[:, :kept]
    skew = float(np.linalg.norm(P @ P.T - kept_modes @ kept_modes.T))
    tally.check(skew <= limit, f"{name}: P Pᵀ is off by {skew}")
    tally.worst("P Pᵀ - I / n eps", skew / n / EPS)
    tally.check(d.orthogonality_error <= limit, f"{name}: orthogonality {d.orthogonality_error}")
    tally.check(bool(np.linalg.norm(T @ U.T - P) <= limit), f"{name}: P is not T Uᵀ")
    w = d.eigenvalues / top
    off = max(np.linalg.norm(one @ U - U * w), np.linalg.norm(w - c[:kept]))
    close = limit * c[0] + n * (lost * c[0] + 5e-324 / top)
    tally.check(off <= close, f"{name}: eigenpairs off by {off}")
    tally.check(bool((np.diff(w) <= 0).all() and (w >= 0).all()), f"{name}: order of {w}")
    if kept == n:
        tally.check([*d.blocks] == runs(d.eigenvalues, n), f"{name}: blocks {d.blocks}")


def gauged(tally: Tally, rng: Rng, name: str, free: Any, d: Any, R: Array) -> None:
    """The nearest to R among what is as good as the canonical one."""
    n = len(R)
    P, limit = d.matrix, 50 * n * EPS * (1 + np.linalg.norm(R))
    distance = np.linalg.norm(P - R)
    tally.check(d.cost == free.cost, f"{name}: the gauge changes the cost")
    tally.check(abs(d.gauge.distance - distance) <= limit, f"{name}: distance {d.gauge.distance}")
    T, U = free.modes, free.components
    near, gain = float((P * R).sum()), float((free.matrix * R).sum())
    tally.check(near >= gain - limit, f"{name}: {gain - near} less near than the canonical one")
    places, values = (reference.sizes_of(each, n) for each in (d.operator.blocks, d.blocks))
    for _ in range(3):
        A, B = (reference.random_in_gauge(sizes, rng) for sizes in (places, values))
        gain = float((T @ A @ B @ U.T * R).sum())
        tally.check(near >= gain - limit, f"{name}: {gain - near} less near than another")
    tally.check(d.gauge.exact == (not d.blocks), f"{name}: exact {d.gauge.exact}, {d.blocks}")
    if d.gauge.exact:
        G, ends = T.T @ R @ U, np.cumsum(places)
        best = sum(
            np.linalg.norm(G[e - s : e, e - s : e], "nuc")
            for e, s in zip(ends, places, strict=True)
        )
        tally.check(abs(near - best) <= limit, f"{name}: {best - near} less near than the nearest")


def moments(rng: Rng, family: str, n: int) -> tuple[Any, bool, Array, float]:
    """Samples, moments of them or alone; whether centred; the moment; what the type may lose."""
    dtype = DOUBLE if rng.random() < 0.7 else [SINGLE, HALF, BRAIN][rng.integers(3)]
    a = FAMILIES[family](rng, 1, n)
    far = rng.random() < 0.3
    if not far:
        a = moved(a, [None, 500, 30, -30, -500, -537][rng.integers(6)] if dtype == DOUBLE else None)
    x = a[0, : rng.integers(1, n + 1)] if rng.random() < 0.3 else a[0]
    x = (x + rng.choice([1.0, 1e3]) * rng.normal(size=n) if far else x).astype(dtype)
    center = bool(rng.random() < 0.4)
    wide = x.astype(np.longdouble)
    wide -= wide.mean(axis=0) if center else 0
    C = (wide.T @ wide / len(x)).astype(np.float64)
    if dtype != DOUBLE:
        return x, center, C, 1e-5
    if rng.random() < 0.5 and not center:
        return df.Covariance.from_moments(C, mean=np.zeros(n)), bool(rng.random() < 0.5), C, 0
    given = df.Covariance.from_samples(x) if rng.random() < 0.5 else x
    # About the mean a difference of numbers of its size is left.
    lost = (
        8 * EPS * float(np.abs(x).max()) / max(float(np.abs(wide).max()), 5e-324) if center else 0
    )
    return given, center, C, min(lost, 1.0)


@drill(
    "descramblers", "smoothest signals of any moments: costs, optimality, gauges, blocks, scales"
)
def descramblers(tally: Tally, long: bool) -> None:
    for trial in range(4000 if long else 24):
        rng = np.random.default_rng([7, trial])
        n = int(rng.choice(EDGES) if trial % 8 == 0 else rng.integers(1, 25))
        n = int(rng.integers(1, 130)) if trial % 16 == 1 else n
        family, kind = str(rng.choice([*FAMILIES])), str(rng.choice([*OPERATORS]))
        x, center, C, lost = moments(rng, family, n)
        op, L = OPERATORS[kind](n), DENSE[kind](n)
        k = int(rng.integers(1, n + 1)) if rng.random() < 0.2 else None
        name = (
            f"trial {trial}: {family} n={n}, {kind}, k={k}, {center}, {lost}, {np.abs(C).max():.2g}"
        )
        more: dict[str, Any] = {"operator": op, "center": center}
        try:
            free = df.descramble(x, k=k, **more)
        except ValueError as error:
            large = np.abs(C).max() / 2**900 * np.trace(L) * n > 2.0**120
            tally.check(large and "overflows" in str(error), f"{name}: {error}")
            continue
        optimal(tally, rng, name, free, C, L, 3, lost)
        columns = np.abs(free.components)
        firsts = (columns >= columns.max(axis=0) * (1 - 1e-6)).argmax(axis=0)
        signs = free.components[firsts, np.arange(columns.shape[1])] > 0
        closed = np.array_equal(free.modes, op.modes()[:, : columns.shape[1]])
        tally.check(bool(signs.all()) and closed, f"{name}: not canonical")
        if k is None:
            R = np.eye(n) if trial % 3 == 0 else rng.normal(size=(n, n))
            d = df.descramble(x, gauge="identity" if trial % 3 == 0 else R, **more)
            optimal(tally, rng, f"{name}, gauged", d, C, L, 0, lost)
            gauged(tally, rng, f"{name}, gauged", free, d, R)
        else:
            whole = df.descramble(x, **more)
            tally.check(
                [*free.blocks] == runs(whole.eigenvalues, k), f"{name}: blocks {free.blocks}"
            )
        if isinstance(x, np.ndarray) and x.dtype == DOUBLE and 1e-90 < np.abs(C).max() < 1e200:
            again = df.descramble(np.ldexp(x, 9), k=k, **more)
            same = again.matrix.tobytes() == free.matrix.tobytes() and again.blocks == free.blocks
            tally.check(same or family == "extremes", f"{name}: scaled by a power of two")
        # The same bits again, and between others.
        others = [
            df.Covariance.from_moments(each.T @ each, mean=np.zeros(n))
            for each in FAMILIES["normal"](rng, int(rng.integers(0, 9)), n)
        ]
        place = int(rng.integers(len(others) + 1))
        d = df.descramble_many([*others[:place], x, *others[place:]], k=k, **more)[place]
        if d.route.driver == free.route.driver:
            same = d.matrix.tobytes() == free.matrix.tobytes() and d.cost == free.cost
            tally.check(same, f"{name}: {place} of {len(others) + 1} has other bits")
        else:
            off = abs(d.cost - free.cost)
            tally.check(off <= d.cost_error + free.cost_error, f"{name}: {off} off among many")
        # Below zero by more than rounding is no moment, by less is zero.
        below = 10.0 ** rng.uniform(*((-12, -8) if trial % 2 else (-5, 0)))
        values = np.concatenate([[1.0], rng.random(n), [-below]])[None]
        try:
            wrong = df.Covariance.from_moments(turned(rng, values)[0], mean=np.zeros(n + 2))
            taken = bool(df.descramble(wrong).eigenvalues[-1] == 0)
        except ValueError as error:
            taken = "not positive semidefinite" not in str(error)
        tally.check(taken == bool(trial % 2), f"trial {trial}: an eigenvalue of {-below}")


@drill(
    "device-descramblers",
    "smoothest signals of samples on a CUDA device: costs, optimality, gauges, blocks",
    device=True,
)
def device_descramblers(tally: Tally, long: bool) -> None:
    for trial in range(4000 if long else 12):
        rng = np.random.default_rng([10, trial])
        n = int(rng.integers(1, 25) if trial % 8 or not long else rng.integers(1, 130))
        family, kind = str(rng.choice([*FAMILIES])), str(rng.choice([*OPERATORS]))
        x, center, C, lost = moments(rng, family, n)
        if not isinstance(x, np.ndarray):
            continue
        name = f"trial {trial}: {family} {x.dtype} n={n}, {kind}, center {center}"
        more: dict[str, Any] = {"operator": OPERATORS[kind](n), "center": center}
        solve = on_device.solves(df.descramble)
        try:
            free = solve(x, **more)
        except ValueError as error:
            large = np.abs(C).max() / 2**900 * np.trace(DENSE[kind](n)) * n > 2.0**120
            tally.check(large and "overflows" in str(error), f"{name}: {error}")
            continue
        on_device.count_places(tally, free.route)
        optimal(tally, rng, name, free, C, DENSE[kind](n), 1, lost)
        d = solve(x, gauge="identity", **more)
        gauged(tally, rng, f"{name}, gauged", free, d, np.eye(n))
    tally.check("on cuda" in tally.figures, "none was solved on the device")


def weights(rng: Rng) -> tuple[str, Any]:
    """A layer of any shape, from a family, at any scale whose squares are in range."""
    n, m = (int(each) for each in rng.integers(1, 13, 2))
    family = str(rng.choice([*FAMILIES]))
    a = moved(FAMILIES[family](rng, 1, max(n, m)), [None, 400, -400, 20][rng.integers(4)])[0]
    return f"{family} {n} x {m}, {np.abs(a).max():.2g}", a[:n, :m].copy()


def trace_and_diagonal(tally: Tally, rng: Rng, name: str, W: Array) -> None:
    """Both criteria of weights, and all permutations where they are few."""
    n, m = W.shape
    top = float(np.abs(W).max()) or 1.0
    one = np.zeros((n, n))
    one[:, : min(n, m)] = W[:, :n] / top
    nuclear, limit = float(np.linalg.norm(one, "nuc")), 50 * n * EPS
    t: Any = df.descramble_weights(W, criterion="trace")
    d: Any = df.descramble_weights(W, criterion="diagonal")
    PW, DW = t.matrix @ one, d.matrix @ one
    for what, P in (("trace", t.matrix), ("diagonal", d.matrix)):
        skew = np.linalg.norm(P @ P.T - np.eye(n))
        tally.check(skew <= limit, f"{name}, {what}: P Pᵀ is off by {skew}")
    off = max(
        abs(t.cost / top - nuclear), abs(np.trace(PW) - nuclear), abs(t.bound / top - nuclear)
    )
    tally.check(off <= limit * nuclear, f"{name}: trace {t.cost / top}, not {nuclear}")
    tally.check(np.linalg.norm(PW - PW.T) <= limit * nuclear, f"{name}: P W is not symmetric")
    least = float(spectrum((PW + PW.T) / 2)[0])
    tally.check(least >= -limit * nuclear, f"{name}: P W has an eigenvalue {least}")
    of = [float((np.diag(each) ** 2).sum()) for each in (DW, PW, one)]
    said = [
        float(d.cost / top / top),
        float(d.initial_cost / top / top),
        float(d.bound / top / top),
    ]
    unit, bound = limit * nuclear**2 + 5e-324 / top / top, float((one**2).sum())
    off = max(abs(said[0] - of[0]), abs(said[1] - of[2]), abs(said[2] - bound))
    tally.check(off <= unit, f"{name}: diagonal {said}, not {of[0]}, {of[2]}, {bound}")
    tally.check(of[1] - unit <= of[0] <= bound + unit, f"{name}: diagonal {of} of {bound}")
    G = np.diag(DW.diagonal())  # half the gradient is G Wᵀ
    skewed = G @ DW.T
    size = float(np.linalg.norm(G @ one.T))
    stationarity = float(np.linalg.norm(skewed - skewed.T)) / 2 / size if size > 0 else 0.0
    told = abs(stationarity - d.stationarity)
    tally.check(told <= 1e-11, f"{name}: stationarity {d.stationarity}, not {stationarity}")
    for P in nearby(rng, t.matrix, 2):
        value = float(np.trace(P @ one))
        tally.check(
            value <= nuclear * (1 + limit), f"{name}: another P has trace {value}, not {nuclear}"
        )
    if n > 6:
        return
    orders = [list(order) for order in permutations(range(n))]
    for criterion, power in (("trace", 1), ("diagonal", 2)):
        r: Any = df.descramble_weights(W, criterion=criterion, restrict="permutation")
        best = max(float((one[order].diagonal() ** power).sum()) for order in orders)
        got = float((one[r.permutation].diagonal() ** power).sum())
        tally.check(
            abs(got - best) <= limit * max(bound, nuclear),
            f"{name}: order {criterion} {got}, {best}",
        )


def convolution(tally: Tally, rng: Rng, trial: int) -> None:
    """A whole convolution, beside the dense matrix of its outputs."""
    axes = int(rng.integers(1, 4))
    shape = tuple(int(each) for each in rng.integers(1, [13, 6, 4][axes - 1], axes))
    kernel = tuple(int(each) for each in rng.integers(1, [6, 4, 3][axes - 1], axes))
    out, into = (int(each) for each in rng.integers(1, 5, 2))
    w = rng.integers(-1, 2, (out, into, *kernel)) * rng.choice(
        [1.0, 1.0 + EPS, 1e-9], (out, 1, *kernel)
    )
    if rng.random() < 0.3:
        w[rng.integers(out)] = w[0] * rng.choice([0.0, 1.0, 1e-12])
    scale = float(rng.choice([1.0, 2.0**460, 2.0**-400]))
    W = reference.convolution_matrix(w, shape)
    C, G = W @ W.T, reference.kronecker_sum([DENSE["fourier"](each) for each in shape])
    n, top = len(C), float(np.abs(C).max()) or 1.0
    d: Any = df.descramble_conv(w * scale, shape)
    where = f"trial {trial}: convolution {w.shape} on {shape}, {scale}"
    one, L, P = C / top, np.kron(np.eye(out), G), d.matrix
    c, ell = spectrum(one)[::-1], np.maximum(spectrum(L), 0)
    unit = n * EPS * c[0] * (ell.sum() + n * ell[-1])
    cost, best = d.cost / scale / scale / top, float(np.maximum(c, 0) @ ell)
    tally.check(
        abs(cost - best) <= d.cost_error / scale / scale / top + unit,
        f"{where}: {cost}, {best}",
    )
    trace = float(np.trace(L @ P @ one @ P.T))
    tally.check(abs(cost - trace) <= 50 * unit, f"{where}: cost {cost}, trace {trace}")
    skew = float(np.linalg.norm(P @ P.T - np.eye(n)))
    tally.check(skew <= 50 * n * EPS, f"{where}: P Pᵀ is off by {skew}")
    off = float(np.linalg.norm(d.eigenvalues / scale / scale / top - np.maximum(c, 0)))
    tally.check(off <= 50 * n * EPS * c[0], f"{where}: eigenvalues off by {off}")
    tally.check([*d.blocks] == runs(d.eigenvalues, n), f"{where}: blocks {d.blocks}")
    y = rng.normal(size=(2, n))
    back = d.inverse_transform(d.transform(y))
    tally.check(float(np.linalg.norm(back - y)) <= 1e-12 * n, f"{where}: there and back")
    tally.check(np.allclose(d.transform(y), y @ P.T, 0, 1e-12 * n), f"{where}: transform")


@drill(
    "weight-descramblers",
    "weights and convolutions, against their dense matrices, all orders and SVD",
)
def weight_descramblers(tally: Tally, long: bool) -> None:
    for trial in range(6000 if long else 60):
        rng = np.random.default_rng([8, trial])
        name, W = weights(rng)
        n, m = W.shape
        trace_and_diagonal(tally, rng, f"trial {trial}: {name}", W)
        x = rng.integers(-2, 3, (int(rng.integers(1, 9)), m)).astype(float)
        b = rng.normal(size=n) * float(np.abs(W).max())
        mean, S = x.mean(axis=0), x.T @ x / len(x)
        biased, kind = bool(rng.random() < 0.5), str(rng.choice([*OPERATORS]))
        C = W @ S @ W.T
        if biased:
            C = C + np.outer(W @ mean, b) + np.outer(b, W @ mean) + np.outer(b, b)
        given: dict[str, Any] = {"bias": b, "input_mean": mean} if biased else {}
        where = f"trial {trial}: {name}, {kind}, bias {biased}"
        d = df.descramble_weights(W, input_second_moment=S, operator=OPERATORS[kind](n), **given)
        # The moment itself is a sum that cancels.
        size = np.linalg.norm(W, 2) * np.sqrt(np.trace(S)) + (np.linalg.norm(b) if biased else 0)
        whole = float(np.abs(C).max())
        lost = 8 * m * EPS * float(size) ** 2 / whole if whole > 0 else 1.0
        optimal(tally, rng, where, d, C, DENSE[kind](n), 1, min(1.0, lost))
    for trial in range(3000 if long else 30):
        convolution(tally, np.random.default_rng([9, trial]), trial)
