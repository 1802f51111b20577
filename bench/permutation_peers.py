"""Competitors for neuron orders and quadratic assignment, and what states their costs.

Orders are arrays p with neuron p_i at place i. elkai wraps LKH, whose licence allows academic
and non-commercial use only; it is a competitor here and nothing in the library depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import quadratic_assignment

from .machine import optional

Array = NDArray[np.float64]
Order = NDArray[np.int64]

LKH_SCALE = 1_000_000  # LKH reads distances as integers
FAST_TSP_SCALE = 65_535  # the largest distance that fast_tsp takes


# ---------------------------------------------------------------------------------- costs


def squared_distances(C: Array) -> Array:
    """Distances ``C_ii + C_jj - 2 C_ij`` between the signals of neurons."""
    diagonal = C.diagonal()
    D = diagonal[:, None] + diagonal - (C + C.T)
    np.fill_diagonal(D, 0)
    return np.asarray(D.clip(min=0))


def length(D: Array, order: Order, periodic: bool) -> float:
    """Length of a tour or a path."""
    steps = D[order[:-1], order[1:]].sum()
    return float(steps + D[order[-1], order[0]] if periodic else steps)


def quadratic_cost(A: Array, B: Array, order: Order) -> float:
    """Sum of ``A_ij B_{p_i p_j}``."""
    return float(np.vdot(A, B[np.ix_(order, order)]))


# ------------------------------------------------------------------------ travelling salesman


def spectral_order(D: Array, periodic: bool) -> Order:
    """Order by the slowest modes of the similarity graph: by angle, or by the Fiedler vector."""
    similarity = D.max() - D
    laplacian = np.diag(similarity.sum(axis=1)) - similarity
    vectors = eigh(laplacian, subset_by_index=(0, 2))[1]
    key = np.arctan2(vectors[:, 2], vectors[:, 1]) if periodic else vectors[:, 1]
    return np.argsort(key, kind="stable").astype(np.int64)


def as_tour(D: Array, periodic: bool) -> Array:
    """Distances of a tour problem; a path is a tour through one more place, near to all."""
    return D if periodic else np.asarray(np.pad(D, (0, 1)))


def from_tour(tour: Iterable[int], n: int, periodic: bool) -> Order:
    """Order of the neurons from a tour, cut at the extra place of a path."""
    order = np.asarray(list(tour), dtype=np.int64)
    if periodic:
        return order
    return np.roll(order, -int(np.flatnonzero(order == n)[0]))[1:]


def scaled(D: Array, largest: int) -> NDArray[np.int64]:
    """Distances as integers up to `largest`."""
    return np.asarray(np.rint(D * (largest / D.max())), dtype=np.int64)


def elkai_solver(D: Array, periodic: bool, runs: int = 10) -> Callable[[], Order] | None:
    """LKH with its defaults, or None where elkai is not installed; lists are made beforehand."""
    elkai = optional("elkai")
    if elkai is None:
        return None
    distances = scaled(as_tour(D, periodic), LKH_SCALE).tolist()

    def solve() -> Order:
        tour = elkai.DistanceMatrix(distances).solve_tsp(runs=runs)
        return from_tour(tour[:-1], len(D), periodic)

    return solve


def elkai_timed_solver(D: Array, periodic: bool, seconds: float) -> Callable[[], Order] | None:
    """LKH with a time limit, by the module below elkai's interface, which has no such option."""
    core = optional("elkai._elkai")
    if core is None:
        return None
    rows = "\n".join(" ".join(map(str, row)) for row in scaled(as_tour(D, periodic), LKH_SCALE))
    problem = (
        f"TYPE : TSP\nDIMENSION : {len(rows.splitlines())}\nEDGE_WEIGHT_TYPE : EXPLICIT\n"
        f"EDGE_WEIGHT_FORMAT : FULL_MATRIX\nEDGE_WEIGHT_SECTION\n{rows}\n"
    )
    parameters = f"RUNS = 1\nTIME_LIMIT = {seconds:g}\nPROBLEM_FILE = :stdin:\n"

    def solve() -> Order:
        tour = core.solve_problem(parameters, problem)
        return from_tour((place - 1 for place in tour), len(D), periodic)

    return solve


def fast_tsp_solver(
    D: Array, periodic: bool, seconds: float, threads: int
) -> Callable[[], Order] | None:
    """fast_tsp for a given time, or None where it is not installed."""
    fast_tsp = optional("fast_tsp")
    if fast_tsp is None:
        return None
    distances = scaled(as_tour(D, periodic), FAST_TSP_SCALE)

    def solve() -> Order:
        tour = fast_tsp.find_tour(distances, duration_seconds=seconds, max_threads=threads)
        return from_tour(tour, len(D), periodic)

    return solve


# ------------------------------------------------------------------------ quadratic assignment


def best_of(A: Array, B: Array, starts: Iterable[tuple[str, dict[str, Any]]]) -> Order:
    """Best of scipy's answers from several starts, each a method with its options."""
    found = [quadratic_assignment(A, B, method=name, options=options) for name, options in starts]
    best = min(found, key=lambda result: float(result.fun))
    return np.asarray(best.col_ind, dtype=np.int64)


def barycentre_starts() -> list[tuple[str, dict[str, Any]]]:
    """FAQ's default."""
    return [("faq", {"P0": "barycenter"})]


def random_starts(count: int) -> list[tuple[str, dict[str, Any]]]:
    """FAQ from random doubly stochastic matrices."""
    return [
        ("faq", {"P0": "randomized", "rng": np.random.default_rng(seed)}) for seed in range(count)
    ]


def spectral_starts(D: Array, count: int) -> list[tuple[str, dict[str, Any]]]:
    """FAQ from mixtures of the spectral order with the barycentre, up to the order itself."""
    n = len(D)
    permutation = np.eye(n)[spectral_order(D, periodic=True)]
    weights = np.arange(1, count + 1) / count
    return [("faq", {"P0": w * permutation + (1 - w) / n}) for w in weights]


def two_opt_starts(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Pairwise exchanges from random permutations."""
    return [("2opt", {"rng": np.random.default_rng(seed)}) for seed in range(count)]
