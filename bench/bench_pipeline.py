"""Whole descramblers: from samples, of many layers, and of one large layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

from . import peers
from .bench_eigh import (
    OPERATIONS,
    WORK_NOTE,
    check_pairs,
    falling_spectrum,
    flat_spectrum,
    random_batch,
    with_spectrum,
)
from .harness import Cell, Method, cell_family, require
from .report import OURS, Row, Table, duration, megabytes

Array = NDArray[np.float64]

EXCESS = 1e-6  # allowed in the cost, relative to the optimum, where moments are in float32
EXACT = 1e-9  # and where they are given


def check_descrambler(C: Array, found: Any, allowed: float) -> float:
    """Require an orthogonal P whose cost on the exact moment is the optimum; how far it is off."""
    P = np.asarray(getattr(found, "matrix", found), dtype=np.float64)
    n = len(C)
    orthogonality = float(np.abs(P @ P.T - np.eye(n)).max())
    require(orthogonality <= 1e-10, f"descrambler of {n}: P P^T - I reaches {orthogonality:.1e}")
    optimum = peers.spectral_bound(peers.fourier_eigenvalues(n), C)
    excess = peers.smoothness_cost(peers.fourier_roughness(n), C, P) / optimum - 1
    require(excess >= -EXACT, f"descrambler of {n}: below the optimum by {-excess:.1e}")
    require(excess <= allowed, f"descrambler of {n}: above the optimum by {excess:.1e}")
    return excess


def with_matrix(found: Any) -> Any:
    """Form P too, as the peers do."""
    assert found.matrix is not None
    return found


# -------------------------------------------------------------------------------- pipeline


@lru_cache(maxsize=1)
def problem(rows: int, n: int) -> tuple[NDArray[np.float32], Array]:
    """Make float32 samples with a second moment of condition 100, and that moment in float64."""
    rng = np.random.default_rng(n)
    mixing = with_spectrum(np.sqrt(np.geomspace(0.01, 1, n)), "float32")
    samples = np.empty((rows, n), np.float32)
    C = np.zeros((n, n))
    for part in np.array_split(samples, -(-rows // 8192)):
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) @ mixing
        wide = part.astype(np.float64)
        C += wide.T @ wide
    return samples, C / rows


def numpy_moment(X: NDArray[np.float32]) -> Array:
    """Form the second moment as a short program would."""
    return np.asarray((X.T @ X).astype(np.float64) / len(X))


def numpy_descrambler(C: Array) -> Array:
    """Solve with plain numpy."""
    return np.asarray(peers.fourier_modes(len(C)) @ np.linalg.eigh(C)[1][:, ::-1].T)


def whole(rows: int, n: int) -> list[Method]:
    """From samples to P."""
    X, C = problem(rows, n)
    return [
        Method(
            OURS,
            lambda: with_matrix(df.descramble(X)),
            lambda found: check_descrambler(C, found, EXCESS),
        ),
        Method(
            "numpy",
            lambda: numpy_descrambler(numpy_moment(X)),
            lambda found: check_descrambler(C, found, EXCESS),
        ),
    ]


def moment_part(rows: int, n: int) -> list[Method]:
    """From samples to the second moment."""
    X, C = problem(rows, n)

    def check(found: Any) -> float:
        moment = found.second_moment() if isinstance(found, df.Covariance) else found
        error = float(np.abs(np.asarray(moment) - C).max() / C.diagonal().max())
        require(error <= 1e-5, f"second moment off by {error:.1e}")
        return error

    return [
        Method(OURS, lambda: df.Covariance.from_samples(X), check),
        Method("numpy", lambda: numpy_moment(X), check),
    ]


def solve_part(rows: int, n: int) -> list[Method]:
    """From the second moment to P."""
    C = problem(rows, n)[1]
    covariance = df.Covariance.from_moments(C)
    return [
        Method(
            OURS,
            lambda: with_matrix(df.descramble(covariance)),
            lambda found: check_descrambler(C, found, EXACT),
        ),
        Method(
            "numpy",
            lambda: numpy_descrambler(C),
            lambda found: check_descrambler(C, found, EXACT),
        ),
    ]


def eigh_part(rows: int, n: int) -> list[Method]:
    """Solve the eigenproblem alone."""
    C = problem(rows, n)[1]
    return [
        Method(OURS, lambda: df.eigh(C), partial(check_pairs, C)),
        Method("numpy", lambda: np.linalg.eigh(C), partial(check_pairs, C)),
    ]


PARTS = {
    "pipeline": whole,
    "pipeline_moment": moment_part,
    "pipeline_solve": solve_part,
    "pipeline_eigh": eigh_part,
}


def pipeline_cells(quick: bool) -> list[Cell]:
    """Whole and parts."""
    rows, n = (10_000, 256) if quick else (100_000, 1024)
    work = {
        "pipeline_moment": float(rows * n * (n + 1)),
        "pipeline_solve": float(OPERATIONS * n**3),
        "pipeline_eigh": float(OPERATIONS * n**3),
    }
    return [
        Cell(
            op=op,
            dtype="float32",
            shape=f"{rows}x{n}",
            size={"rows": rows, "n": n},
            methods=partial(methods, rows, n),
            work=work.get(op),
            limits=("fma_float32",) if op == "pipeline_moment" else ("fma_float64",),
            weight=2.0 if op == "pipeline" else 1.0,
            memory=op == "pipeline" and not quick,
        )
        for op, methods in PARTS.items()
    ]


def shares(rows: list[Row]) -> dict[str, Table]:
    """Where the time from samples to P goes."""
    seconds = {(row["op"], row["impl"]): float(row["seconds"]) for row in rows}

    def line(name: str, part: dict[str, float]) -> list[str]:
        total = {impl: seconds["pipeline", impl] for impl in part}
        cells = [f"{duration(part[i])} ({100 * part[i] / total[i]:.0f}%)" for i in part]
        return [name, *cells]

    names = list(dict.fromkeys(row["impl"] for row in rows))
    moment, eigh, solve, total = (
        {name: seconds[op, name] for name in names}
        for op in ("pipeline_moment", "pipeline_eigh", "pipeline_solve", "pipeline")
    )
    rest = {name: max(0.0, solve[name] - eigh[name]) for name in names}
    lines = [
        line("second moment", moment),
        line("eigenproblem", eigh),
        line("modes, P, checks", rest),
        line("whole", total),
    ]
    return {"pipeline-parts": Table(["part", *names], lines, left=1)}


# ------------------------------------------------------------------------------------ many


def numpy_loop(moments: Array) -> list[tuple[Array, float]]:
    """P and cost of each, one after the other."""
    n = len(moments[0])
    T, rough = peers.fourier_modes(n), peers.fourier_eigenvalues(n)
    found = []
    for C in moments:
        c, U = np.linalg.eigh(C)
        found.append((T @ U[:, ::-1].T, float(rough @ c[::-1])))
    return found


def numpy_batch(moments: Array) -> list[tuple[Array, float]]:
    """Do the same without the loop."""
    n = moments.shape[-1]
    c, U = np.linalg.eigh(moments)
    P = peers.fourier_modes(n) @ U[:, :, ::-1].transpose(0, 2, 1)
    return list(zip(P, c[:, ::-1] @ peers.fourier_eigenvalues(n), strict=True))


def many_methods(count: int, n: int) -> list[Method]:
    """All implementations on one batch of layers."""
    moments = random_batch("float64", count, n)
    covariances = [df.Covariance.from_moments(C) for C in moments]

    def ours() -> list[tuple[Array, float]]:
        return [(np.asarray(d.matrix), d.cost) for d in df.descramble_many(covariances)]

    def check(found: list[tuple[Array, float]]) -> float:
        worst = 0.0
        for C, (P, cost) in zip(moments, found, strict=True):
            worst = max(worst, check_descrambler(C, P, EXACT))
            true = peers.smoothness_cost(peers.fourier_roughness(n), C, P)
            require(abs(cost / true - 1) <= EXACT, f"many: the cost is off: {cost} {true}")
        return worst

    return [
        Method(OURS, ours, check),
        Method("numpy_loop", lambda: numpy_loop(moments), check, trial=lambda: numpy_loop(moments)),
        Method(
            "numpy_batch", lambda: numpy_batch(moments), check, trial=lambda: numpy_batch(moments)
        ),
    ]


def many_cells(quick: bool) -> list[Cell]:
    """Heads of one model, layers of another."""
    return [
        Cell(
            op="many",
            dtype="float64",
            shape=f"{count}x{n}x{n}",
            size={"count": count, "n": n},
            methods=partial(many_methods, count, n),
            work=float(OPERATIONS * count * n**3),
            limits=("fma_float64",),
            memory=not quick,
        )
        for count, n in (((24, 64), (4, 128)) if quick else ((144, 64), (24, 384)))
    ]


# ------------------------------------------------------------------------------ structured


def large_methods(n: int, k: int | None) -> list[Method]:
    """One large layer from its moment; with k the leading part alone."""
    values = flat_spectrum(n) if k is None else falling_spectrum(n)
    C = with_spectrum(values, "float64")
    covariance = df.Covariance.from_moments(C)
    optimum = float(peers.fourier_eigenvalues(n) @ values[::-1])

    probes = np.random.default_rng(0).standard_normal((8, n))

    def check_turns(turn: Callable[[Array], Array], back: Callable[[Array], Array]) -> float:
        # P C P^T must be T diag(c) T^T, with the largest eigenvalue on the smoothest mode.
        T = peers.fourier_modes(n)
        expected = probes @ T[:, : k or n] * values[::-1][: k or n] @ T[:, : k or n].T
        error = float(np.abs(turn(back(probes) @ C) - expected).max() / np.abs(expected).max())
        require(error <= 1e-11, f"descramble {n}: P C P^T is off by {error:.1e}")
        return error

    def check(found: Any) -> float:
        off = abs(found.bound / optimum - 1) if k is None else 0.0
        require(off <= EXACT * n, f"descramble {n}: the bound is off by {off:.1e}")
        return check_turns(found.transform, found.inverse_transform)

    def check_peer(P: Array) -> float:
        return check_turns(lambda x: x @ P.T, lambda z: z @ P)

    ours = Method(OURS, lambda: df.descramble(covariance, k=k), check)
    return [ours] if k else [ours, Method("numpy", lambda: numpy_descrambler(C), check_peer)]


def apply_methods(n: int) -> list[Method]:
    """P W through the transform and U, and as a product with P."""
    covariance = df.Covariance.from_moments(with_spectrum(flat_spectrum(n), "float64"))
    d = df.descramble(covariance)
    P = np.asarray(d.matrix)
    W = np.random.default_rng(0).standard_normal((n, n))
    truth = P @ W

    def check(found: Any) -> float:
        error = float(np.abs(np.asarray(found) - truth).max())
        require(error <= 1e-10, f"P W of {n} is off by {error:.1e}")
        return error

    return [
        Method(OURS, lambda: d.transform_weight(W), check),
        Method("numpy", lambda: P @ W, check),
    ]


def structured_cells(quick: bool) -> list[Cell]:
    """One large layer, its leading part, and P applied to weights."""
    n, k, smaller = (512, 16, 256) if quick else (4096, 32, 1024)

    def cell(op: str, n: int, shape: str, methods: Any, each: int, memory: bool) -> Cell:
        work, limits = (float(each * n**3), ("fma_float64",)) if each else (None, ())
        size = {"n": n}
        return Cell(op, "float64", shape, size, partial(methods, n), work, limits, memory=memory)

    return [
        cell("descramble", n, f"{n}x{n}", partial(large_methods, k=None), OPERATIONS, True),
        cell("descramble_leading", n, f"{n}x{n}x{k}", partial(large_methods, k=k), 0, True),
        cell("transform_weight", smaller, f"{smaller}x{smaller}", apply_methods, 2, False),
    ]


def stated_memory(rows: list[Row]) -> dict[str, Table]:
    """Peak memory that the library states before it starts, and what was measured."""
    lines = []
    for row in rows:
        if row["impl"] == OURS and row["peak_bytes"] is not None:
            n, *more = map(int, row["shape"].split("x")[1:])
            stated = df.descramble_memory(n, *more)
            share = f"{100 * row['peak_bytes'] / stated:.0f}%"
            lines.append(
                [row["op"], row["shape"], megabytes(stated), megabytes(row["peak_bytes"]), share]
            )
    return {
        "structured-memory": Table(["operation", "shape", "stated", "measured", "of it"], lines)
    }


FAMILIES = {
    "pipeline": cell_family(
        pipeline_cells,
        (
            "pipeline, shape rows x n: float32 samples to P. numpy is the shortest correct "
            "program: (X.T @ X), eigh, Fourier modes, one product; this library adds its checks, "
            "costs and bounds.",
            "The parts are timed on their own; their sum differs a little from the whole. Their "
            "shares count n (n + 1) operations a row in float32, and 9 n^3 in float64.",
        ),
        shares,
    ),
    "many": cell_family(
        many_cells,
        (
            "many, shape count x n x n: P and cost of every moment. numpy_loop takes one after "
            "the other, numpy_batch all in one call; both have one BLAS thread or the default "
            "number, whichever is faster.",
            WORK_NOTE,
        ),
    ),
    "structured": cell_family(
        structured_cells,
        (
            "descramble: from the moment; numpy forms P, this library keeps the transform and U. "
            "Memory is that above the inputs, in a process of its own.",
            "transform_weight, shape n x n: P W. Its share counts 2 n^3 operations, that of "
            "descramble 9 n^3, over the float64 multiply-adds per second.",
        ),
        stated_memory,
    ),
}
