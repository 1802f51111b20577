"""Streaming second moments: `Covariance.update` beside a product of the batch with itself.

This library's time includes the finite check, the means and the float64 state; the peers only
form the product, and scipy's syrk only one triangle of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

from .harness import Cell, Method, cell_family, require
from .machine import optional
from .report import OURS

Moment = NDArray[Any]
LIMITS = {
    "float32": ("fma_float32",),
    "float16": ("fma_float32",),
    "bfloat16": ("dot_bfloat16", "fma_float32"),
    "float64": ("fma_float64",),
}
# Allowed in a second moment, relative to its largest diagonal element.
ERROR = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-5, "bfloat16": 1e-5}
ROUNDED = {"float16": 2e-3, "bfloat16": 2e-2}  # of a result that is kept in 16 bits
TOO_LONG = {("float16", 4096)}  # for torch, on a CPU without float16 arithmetic: minutes
NOTES = (
    "covariance, shape rows x n: one batch into a persistent accumulator, everything included "
    "(finite check, means, float64 state). The peers only form X.T @ X (scipy_syrk: one triangle); "
    "numpy widens 16-bit inputs to float32 first, torch rounds its result to 16 bits, scikit-learn "
    "(IncrementalPCA, all components) keeps a decomposition. Left out: torch in float16 at n = "
    "4096 (a minute or more), scikit-learn but for 8192 rows and n = 256.",
    "Share: n (n + 1) operations a row, over the multiply-adds (bfloat16: dot products) per second "
    "measured between rounds, the largest of them.",
    "covariance_batches: rows 32 at a time, beside the same rows at once. (Fewer than 256 rows "
    "wait to be multiplied with others: a single small batch says nothing and is not timed alone.)",
)


def samples(dtype: str, rows: int, n: int) -> NDArray[Any]:
    """Gaussian rows; bfloat16 as its bits."""
    rng = np.random.default_rng(n)
    if dtype == "float64":
        return rng.standard_normal((rows, n))
    single = rng.standard_normal((rows, n), dtype=np.float32)
    if dtype == "bfloat16":
        return (single.view(np.uint32) >> 16).astype(np.uint16)
    return single.astype(dtype, copy=False)


def widened(x: NDArray[Any]) -> NDArray[Any]:
    """float32 values of a 16-bit array, others as they are."""
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if x.dtype == np.float16 else x


def tensor(x: NDArray[Any]) -> Any:
    """Make a torch tensor on the same memory, or None."""
    torch = optional("torch")
    if torch is None:
        return None
    if x.dtype == np.uint16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def for_ours(x: NDArray[Any]) -> Any:
    """Make the array that this library is given: bfloat16 from ml_dtypes, else torch."""
    if x.dtype != np.uint16:
        return x
    ml_dtypes = optional("ml_dtypes")
    return tensor(x) if ml_dtypes is None else x.view(ml_dtypes.bfloat16)


# ---------------------------------------------------------------------------------- checks


def checker(x: NDArray[Any], dtype: str) -> Callable[[Moment, float], float]:
    """Compare up to 64 columns of a second moment with their float64 values."""
    rows, n = x.shape
    columns = np.unique(np.linspace(0, n - 1, min(n, 64)).astype(int))

    @cache
    def expected() -> NDArray[Any]:
        total: NDArray[Any] = np.zeros((n, len(columns)))
        for part in np.array_split(x, -(-rows // 2048)):
            wide = widened(part).astype(np.float64)
            total += wide.T @ wide[:, columns]
        return np.asarray(total / rows)

    def check(moment: Moment, allowed: float) -> float:
        truth = expected()
        scale = truth[columns, np.arange(len(columns))].max()
        off = np.abs(np.asarray(moment, dtype=np.float64)[:, columns] - truth).max()
        error = float(off / scale)
        require(error <= allowed, f"covariance {dtype} {x.shape}: off by {error:.1e}")
        return error

    return check


def mirrored(upper: Moment) -> Moment:
    """Whole matrix of an upper triangle."""
    return np.asarray(np.triu(upper) + np.triu(upper, 1).T)


def pca_moment(pca: Any) -> Moment:
    """Second moment that an incremental PCA with all components stands for."""
    axes = pca.components_.astype(np.float64)
    scatter = (axes.T * pca.singular_values_.astype(np.float64) ** 2) @ axes
    return np.asarray(scatter / pca.n_samples_seen_ + np.outer(pca.mean_, pca.mean_))


# --------------------------------------------------------------------------------- methods


def ours(x: NDArray[Any], step: int) -> tuple[Callable[[], Any], Callable[[Any], Moment]]:
    """Update one accumulator, `step` rows at a time; how to read it."""
    given, covariance = for_ours(x), df.Covariance(x.shape[1])
    batches = [given[start : start + step] for start in range(0, len(x), step)]

    def run() -> Any:
        for batch in batches:
            covariance.update(batch)
        return covariance

    return run, lambda found: np.asarray(found.second_moment())


def numpy_product(x: NDArray[Any]) -> Moment:
    """Multiply in float32 or float64."""
    wide = widened(x)
    return np.asarray(wide.T @ wide)


def update_methods(dtype: str, rows: int, n: int) -> list[Method]:
    """All implementations on one batch."""
    x = samples(dtype, rows, n)
    check, allowed = checker(x, dtype), ERROR[dtype]
    run, read = ours(x, rows)
    methods = [
        Method(OURS, run, lambda found: check(read(found), allowed)),
        Method("numpy", partial(numpy_product, x), lambda found: check(found / rows, allowed)),
    ]
    blas = optional("scipy.linalg.blas")
    if blas is not None and dtype in ("float32", "float64"):
        syrk = blas.ssyrk if dtype == "float32" else blas.dsyrk
        methods.append(
            Method(
                "scipy_syrk",
                lambda: syrk(1.0, x.T),
                lambda found: check(mirrored(found) / rows, allowed),
            )
        )
    t = tensor(x)
    if t is not None and (dtype, n) not in TOO_LONG:
        limit = ROUNDED.get(dtype, allowed)
        methods.append(
            Method(
                "torch",
                lambda: t.T @ t,
                lambda found: check(found.double().numpy() / rows, limit),
            )
        )
    decomposition = optional("sklearn.decomposition")
    if decomposition is not None and dtype in ("float32", "float64") and (rows, n) == (8192, 256):
        pca = decomposition.IncrementalPCA(n_components=n)
        methods.append(
            Method(
                "sklearn_incremental_pca",
                lambda: pca.partial_fit(x),
                lambda found: check(pca_moment(found), 10 * allowed),
            )
        )
    return methods


def batch_methods(dtype: str, rows: int, step: int, n: int) -> list[Method]:
    """Rows at once, a few at a time, and the same few at a time by numpy."""
    x = samples(dtype, rows, n)
    check, allowed = checker(x, dtype), ERROR[dtype]
    whole, read = ours(x, rows)
    pieces, _ = ours(x, step)

    def numpy_pieces() -> Moment:
        total = np.zeros((n, n), np.float64 if dtype == "float64" else np.float32)
        for start in range(0, rows, step):
            wide = widened(x[start : start + step])
            total += wide.T @ wide
        return total

    return [
        Method(OURS, whole, lambda found: check(read(found), allowed)),
        Method(f"{OURS}_{step}_rows", pieces, lambda found: check(read(found), allowed)),
        Method(f"numpy_{step}_rows", numpy_pieces, lambda found: check(found / rows, 10 * allowed)),
    ]


# ----------------------------------------------------------------------------------- cells


def update_cell(dtype: str, rows: int, n: int, weight: float = 1.0) -> Cell:
    """One batch."""
    return Cell(
        op="covariance",
        dtype=dtype,
        shape=f"{rows}x{n}",
        size={"rows": rows, "n": n},
        methods=partial(update_methods, dtype, rows, n),
        work=float(rows * n * (n + 1)),
        limits=LIMITS[dtype],
        weight=weight,
        memory=(rows, n) == (8192, 1024),
    )


def batch_cell(dtype: str, rows: int, n: int) -> Cell:
    """32 rows at a time."""
    return Cell(
        op="covariance_batches",
        dtype=dtype,
        shape=f"{rows}x{n}",
        size={"rows": rows, "n": n},
        methods=partial(batch_methods, dtype, rows, 32, n),
        work=float(rows * n * (n + 1)),
        limits=LIMITS[dtype],
    )


def cells(quick: bool) -> list[Cell]:
    """Batches of 8192 rows in every precision, growth in n and in rows, batches of 32 rows."""
    dtypes = [
        d for d in LIMITS if d != "bfloat16" or for_ours(np.zeros((1, 1), np.uint16)) is not None
    ]
    if quick:
        grid = [update_cell(dtype, 2048, n) for n in (256, 1024) for dtype in dtypes]
        return [*grid, update_cell("float32", 2048, 64), batch_cell("float32", 2048, 256)]
    grid = [
        update_cell(dtype, 8192, n, weight=3.0 if n == 4096 else 1.0)
        for dtype in dtypes
        for n in (256, 1024, 4096)
    ]
    grid += [update_cell("float32", 8192, n, 0.5) for n in (64, 128, 512, 2048)]
    grid += [update_cell("float32", rows, 1024, 0.5) for rows in (512, 2048, 32768)]
    some = [dtype for dtype in dtypes if dtype in ("float32", "bfloat16")]
    return grid + [batch_cell(dtype, 8192, n) for dtype in some for n in (256, 1024)]


FAMILIES = {"covariance": cell_family(cells, NOTES)}
