"""Symmetric eigenproblems: many small ones, one large one, and the leading part of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

from .harness import Cell, Method, cell_family, require
from .machine import optional
from .report import OURS, Row, Table, by_cell, duration

Array = NDArray[Any]

SMALL = (4, 8, 16, 31, 32, 33, 48, 63, 64, 65, 96, 100, 128)
LARGE = (256, 512, 1024, 2048, 4096)
DTYPES = ("float32", "float64")
OPERATIONS = 9  # times n^3: a tridiagonal form, its eigenvectors, and the way back
WORK_NOTE = (
    f"Share: {OPERATIONS} n^3 operations a matrix, whatever a solver really needs, over the "
    "multiply-adds per second measured between rounds."
)


# --------------------------------------------------------------------------------- inputs


def random_batch(dtype: str, count: int, n: int) -> Array:
    """Second moments of 2n Gaussian samples each."""
    factors = np.random.default_rng(n).standard_normal((count, n, 2 * n))
    return np.asarray(factors @ factors.transpose(0, 2, 1) / (2 * n), dtype=dtype)


def with_spectrum(values: NDArray[np.float64], dtype: str) -> Array:
    """Dense symmetric matrix with these eigenvalues, turned by cosine transforms and signs."""
    n = len(values)
    rng = np.random.default_rng(n)
    transform = df.operators.difference(n, 1, "path")
    A = np.diag(values)
    for _ in range(2):
        signs = rng.choice((-1.0, 1.0), n)
        A = np.asarray(transform.synthesize(A * signs))
        A = np.ascontiguousarray(np.asarray(transform.synthesize(A.T * signs)).T)
    return np.asarray((A + A.T) / 2, dtype=dtype)


def flat_spectrum(n: int) -> NDArray[np.float64]:
    """Eigenvalues spread over [0.1, 1], ascending."""
    return np.sort(np.random.default_rng(n).uniform(0.1, 1, n))


def falling_spectrum(n: int) -> NDArray[np.float64]:
    """Eigenvalues i^-2, ascending."""
    return np.arange(n, 0, -1, dtype=np.float64) ** -2


# ---------------------------------------------------------------------------------- checks


def pairs(found: Any) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of whichever result this is, as numpy arrays."""
    if hasattr(found, "route"):
        return np.asarray(found.eigenvalues), np.asarray(found.eigenvectors)
    values, vectors = found
    return np.asarray(values), np.asarray(vectors)


def check_pairs(A: Array, found: Any, truth: NDArray[np.float64] | None = None) -> float:
    """Require residual, orthogonality and eigenvalues within 50 n eps, by 16 random probes.

    Returns the residual relative to the norm of the matrix. `truth` is the spectrum where it is
    known; else the sums of the eigenvalues and of their squares must be those of the matrix.
    """
    values, vectors = pairs(found)
    n, k = vectors.shape[-2:]
    allowed = 50 * n * float(np.finfo(A.dtype).eps)
    wide, w, V = (np.asarray(part, dtype=np.float64) for part in (A, values, vectors))
    norm = np.linalg.norm(wide, axis=(-2, -1))[..., None]
    probes = np.eye(k) if k <= 16 else np.random.default_rng(0).standard_normal((k, 16)) / 4
    turned = V @ probes
    residual = np.linalg.norm(wide @ turned - V @ (w[..., None] * probes), axis=-2) / norm
    gram = np.linalg.norm(np.swapaxes(V, -2, -1) @ turned - probes, axis=-2)
    error = float(residual.max())
    require(error <= allowed, f"eigh {A.dtype} {A.shape}: residual {error:.1e}")
    require(float(gram.max()) <= allowed, f"eigh {A.dtype} {A.shape}: orthogonality {gram.max()}")
    if truth is not None:
        off = float(np.abs(w - truth).max() / np.abs(truth).max())
    else:
        trace = np.abs(w.sum(-1) - np.trace(wide, axis1=-2, axis2=-1)) / norm[..., 0]
        off = max(
            float(trace.max()), float(np.abs(np.linalg.norm(w, axis=-1) / norm[..., 0] - 1).max())
        )
    require(off <= allowed, f"eigh {A.dtype} {A.shape}: eigenvalues off by {off:.1e}")
    return error


# --------------------------------------------------------------------------------- methods


def batch_methods(dtype: str, count: int, n: int) -> list[Method]:
    """All implementations on a batch."""
    A = random_batch(dtype, count, n)
    few = A[: max(1, count // 16)]
    check = partial(check_pairs, A)
    methods = [
        Method(OURS, lambda: df.eigh(A), check),
        Method("numpy", lambda: np.linalg.eigh(A), check, trial=lambda: np.linalg.eigh(few)),
    ]
    torch = optional("torch")
    if torch is not None:
        t, part = torch.from_numpy(A), torch.from_numpy(few)
        methods.append(
            Method(
                "torch",
                lambda: torch.linalg.eigh(t),
                check,
                trial=lambda: torch.linalg.eigh(part),
            )
        )
    return methods


def single_methods(dtype: str, n: int) -> list[Method]:
    """All implementations on one matrix."""
    truth = flat_spectrum(n)
    A = with_spectrum(truth, dtype)

    def check(found: Any) -> float:
        return check_pairs(A, found, truth)

    methods = [
        Method(OURS, lambda: df.eigh(A), check),
        Method("numpy", lambda: np.linalg.eigh(A), check),
    ]
    linalg, torch = optional("scipy.linalg"), optional("torch")
    if linalg is not None:
        methods += [
            Method(f"scipy_{driver}", partial(linalg.eigh, A, driver=driver), check)
            for driver in ("evd", "evr")
        ]
    if torch is not None:
        methods.append(Method("torch", partial(torch.linalg.eigh, torch.from_numpy(A)), check))
    return methods


def leading_methods(dtype: str, n: int, k: int) -> list[Method]:
    """Find the k largest: with k, by the full solve, and by scipy's Lanczos method."""
    truth = falling_spectrum(n)
    A = with_spectrum(truth, dtype)

    def check(found: Any) -> float:
        values, vectors = pairs(found)
        order = np.argsort(values)[-k:]  # eigsh promises none
        return check_pairs(A, (values[order], vectors[:, order]), truth[-k:])

    methods = [
        Method(OURS, lambda: df.eigh(A, k=k), check),
        Method(f"{OURS}_full", lambda: df.eigh(A), check),
    ]
    sparse = optional("scipy.sparse.linalg")
    if sparse is not None:
        start = np.random.default_rng(0).standard_normal(n).astype(dtype)
        methods.append(Method("scipy_eigsh", lambda: sparse.eigsh(A, k, v0=start), check))
    return methods


# ----------------------------------------------------------------------------------- cells


def batch_cell(dtype: str, n: int, elements: float) -> Cell:
    """One size of small matrices, as many as keep a run short."""
    count = int(min(8192, max(32, elements / n**3)))
    return Cell(
        op="eigh_batch",
        dtype=dtype,
        shape=f"{count}x{n}x{n}",
        size={"count": count, "n": n},
        methods=partial(batch_methods, dtype, count, n),
        work=float(OPERATIONS * count * n**3),
        limits=(f"fma_{dtype}",),
        weight=0.5,
        memory=(count, n) == (381, 64),
    )


def single_cell(dtype: str, n: int) -> Cell:
    """One large matrix."""
    return Cell(
        op="eigh",
        dtype=dtype,
        shape=f"{n}x{n}",
        size={"n": n},
        methods=partial(single_methods, dtype, n),
        work=float(OPERATIONS * n**3),
        limits=(f"fma_{dtype}",),
        memory=n == 1024,
    )


def leading_cell(dtype: str, n: int, k: int) -> Cell:
    """Make the cell of one matrix's leading part."""
    return Cell(
        op="leading",
        dtype=dtype,
        shape=f"{n}x{n}x{k}",
        size={"n": n, "k": k},
        methods=partial(leading_methods, dtype, n, k),
        work=float(n * n * np.dtype(dtype).itemsize),
        limits=("bandwidth",),
    )


def by_size(cell: Callable[..., Cell], sizes: tuple[int, ...], *more: float) -> list[Cell]:
    """Cells of every size in both precisions."""
    return [cell(dtype, n, *more) for dtype in DTYPES for n in sizes]


def batch_cells(quick: bool) -> list[Cell]:
    """Small matrices."""
    return by_size(
        batch_cell, (4, 8, 16, 31, 32, 33, 64) if quick else SMALL, 2e7 if quick else 1e8
    )


def single_cells(quick: bool) -> list[Cell]:
    """Large matrices."""
    return by_size(single_cell, (256, 512) if quick else LARGE)


def leading_cells(quick: bool) -> list[Cell]:
    """Leading parts."""
    return by_size(leading_cell, (512,), 16) if quick else by_size(leading_cell, (1024, 4096), 32)


def per_matrix(rows: list[Row]) -> dict[str, Table]:
    """Time per matrix, and time over n^3 relative to the next smaller size: a cliff shows here."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    lines = []
    before: dict[tuple[str, str], float] = {}
    for group in by_cell(rows):
        found = {row["impl"]: row for row in group}
        n, dtype = group[0]["size"]["n"], group[0]["dtype"]
        line = [dtype, str(n)]
        for name in names:
            if name not in found:
                line += ["-", "-"]
                continue
            each = found[name]["seconds"] / found[name]["size"]["count"]
            cubed = each / n**3
            last = before.get((dtype, name))
            before[dtype, name] = cubed
            line += [duration(each), f"{cubed / last:.2f}" if last else "-"]
        lines.append(line)
    headings = ["precision", "n"] + [
        text for name in names for text in (f"{name}, per matrix", "per n³, to the size before")
    ]
    return {"eigh_batch-growth": Table(headings, lines, left=1)}


FAMILIES = {
    "eigh_batch": cell_family(
        batch_cells,
        (
            "eigh_batch, shape count x n x n. Peers have one BLAS thread or the default number, "
            "whichever is faster for them.",
            WORK_NOTE,
        ),
        per_matrix,
    ),
    "eigh": cell_family(single_cells, ("eigh: one matrix, eigenvalues in [0.1, 1].", WORK_NOTE)),
    "leading": cell_family(
        leading_cells,
        (
            "leading, shape n x n x k: the k largest of eigenvalues i^-2.",
            "Share: the matrix read once, over the bytes per second read from memory that were "
            "measured between rounds.",
        ),
    ),
}
