"""Slow, obvious reference implementations, and the random inputs that tests share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


# Moments ------------------------------------------------------------------------------------------


def two_pass(x: Any, weights: Any = None) -> tuple[Array, Array, Array]:
    """Mean, second moment and covariance of rows, by definition, in long double.

    Deviations are taken from the first row that counts, so that equal rows have exactly none.
    """
    rows = np.asarray(x).astype(np.float64).reshape(-1, np.shape(x)[-1]).astype(np.longdouble)
    w = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    rows, w = rows[w > 0], w[w > 0].astype(np.longdouble)
    offset = rows - rows[0]
    shift = (w[:, None] * offset).sum(axis=0) / w.sum()
    mean, centred = rows[0] + shift, offset - shift
    second = np.einsum("r,ri,rj->ij", w, rows, rows) / w.sum()
    covariance = np.einsum("r,ri,rj->ij", w, centred, centred) / w.sum()
    return (
        mean.astype(np.float64),
        second.astype(np.float64),
        covariance.astype(np.float64),
    )


def cross_two_pass(x: Any, y: Any, weights: Any = None) -> tuple[Array, Array]:
    """Cross moment and cross covariance of paired rows: blocks of the joint ones."""
    _, second, covariance = two_pass(np.concatenate([x, y], axis=-1), weights)
    n = np.shape(x)[-1]
    return second[:n, n:], covariance[:n, n:]


def worst(got: Any, expected: Any) -> float:
    """Largest error beside the largest expected entry."""
    error = float(np.abs(np.asarray(got) - np.asarray(expected)).max())
    scale = float(np.abs(expected).max())
    return error / scale if scale > 0 else error


# Operators ----------------------------------------------------------------------------------------


def fourier_derivative(n: int, order: int) -> Array:
    """D of spectral differentiation: the derivative of the trigonometric interpolant."""
    factor = (1j * np.fft.fftfreq(n, 1 / n)) ** order
    if n % 2 == 0 and order % 2 == 1:
        factor[n // 2] = 0  # the derivative of cos(n x/2) vanishes on the grid
    return np.fft.ifft(factor[:, None] * np.fft.fft(np.eye(n), axis=0), axis=0).real


def difference_matrix(n: int, order: int, boundary: str) -> Array:
    """D of the first difference, or minus its Laplacian: the second difference."""
    first = np.roll(np.eye(n), 1, axis=1) - np.eye(n)
    if boundary == "path":
        first = first[:-1]
    return first if order == 1 else -first.T @ first


def central_difference_matrix(n: int) -> Array:
    """D of (x[i+1] - x[i-1])/2 on a ring."""
    step = np.roll(np.eye(n), 1, axis=1)
    return (step - step.T) / 2


def kronecker_sum(parts: Sequence[Array]) -> Array:
    """Sum over axes of I x L_a x I, the last axis fastest."""
    sizes = [len(part) for part in parts]
    total = np.zeros((int(np.prod(sizes)),) * 2)
    for axis, part in enumerate(parts):
        before, after = int(np.prod(sizes[:axis])), int(np.prod(sizes[axis + 1 :]))
        total += np.kron(np.kron(np.eye(before), part), np.eye(after))
    return total


def graph_laplacian(edges: Iterable[tuple[int, int]], weights: Iterable[float], n: int) -> Array:
    """Sum of w (e_i - e_j)(e_i - e_j)ᵀ over edges."""
    total = np.zeros((n, n))
    for (i, j), w in zip(edges, weights, strict=True):
        step = np.eye(n)[i] - np.eye(n)[j]
        total += w * np.outer(step, step)
    return total


def runs(values: Array, gap: float) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of two or more consecutive values whose steps do not exceed the gap."""
    cuts = [0, *(np.flatnonzero(np.abs(np.diff(values)) > gap) + 1).tolist(), len(values)]
    return tuple((a, b) for a, b in pairwise(cuts) if b - a > 1)


# Descramblers -------------------------------------------------------------------------------------


def cost(L: Array, P: Array, C: Array) -> float:
    """tr(L P C Pᵀ)."""
    return float(np.trace(L @ P @ C @ P.T))


def best_cost(L: Array, C: Array) -> float:
    """Minimum of tr(L P C Pᵀ): ascending eigenvalues of L against descending ones of C."""
    return float(np.linalg.eigvalsh(L) @ np.linalg.eigvalsh(C)[::-1])


def rounding(L: Array, C: Array) -> float:
    """Error of a cost evaluated in float64: 50 n eps l_max c_1, with n ≥ 1 terms per product."""
    return 50 * len(C) * EPS * float(np.linalg.norm(L, 2) * np.linalg.norm(C, 2))


def random_orthogonal(n: int, rng: np.random.Generator) -> Array:
    """Haar-distributed orthogonal matrix, of either determinant."""
    q, r = np.linalg.qr(rng.normal(size=(n, n)))
    return np.asarray(q * np.sign(np.diag(r)))


def cayley(skew: Array) -> Array:
    """(I - A)⁻¹ (I + A), a rotation near the identity for small A."""
    one = np.eye(len(skew))
    return np.linalg.solve(one - skew, one + skew)


def descend(L: Array, C: Array, P: Array, steps: int) -> float:
    """Cost after gradient steps on the rotation group, each along a backtracked Cayley curve."""
    value, scale = cost(L, P, C), 1.0
    for _ in range(steps):
        M = P @ C @ P.T
        gradient = L @ M - M.T @ L
        gradient = (gradient - gradient.T) / 2  # skew also where nothing but rounding is left
        size = np.linalg.norm(gradient)
        if size == 0:
            break
        for _ in range(30):
            trial = cayley(-scale * gradient / size) @ P
            if (lower := cost(L, trial, C)) < value:
                P, value, scale = trial, lower, min(2 * scale, 1.0)
                break
            scale /= 2
        else:
            break
    return value


def polar(a: Array) -> Array:
    """Orthogonal matrix nearest to a."""
    u, _, vt = np.linalg.svd(a)
    return np.asarray(u @ vt)


def circle(points: int) -> list[Array]:
    """Rotations and reflections of the plane on a grid of angles."""
    angles = 2 * np.pi * np.arange(points) / points
    turns = [np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in angles]
    return turns + [turn * [1.0, -1.0] for turn in turns]


def block_diagonal(blocks: Iterable[Array]) -> Array:
    """Square matrix with the blocks along its diagonal."""
    parts = list(blocks)
    out = np.zeros((sum(map(len, parts)),) * 2)
    place = 0
    for part in parts:
        out[place : place + len(part), place : place + len(part)] = part
        place += len(part)
    return out


def sizes_of(blocks: Sequence[tuple[int, int]], n: int) -> list[int]:
    """Sizes of all blocks in order, the single ones included."""
    out: list[int] = []
    for begin, end in blocks:
        out += [1] * (begin - sum(out)) + [end - begin]
    return out + [1] * (n - sum(out))


def gauge_group(sizes: Sequence[int], points: int) -> Iterable[Array]:
    """Every element of O(1) x O(2) x ..., with the angles of O(2) on a grid."""
    factors = {1: [np.eye(1), -np.eye(1)], 2: circle(points)}
    return (block_diagonal(choice) for choice in product(*(factors[size] for size in sizes)))


def random_in_gauge(sizes: Sequence[int], rng: np.random.Generator) -> Array:
    """Random element of O(m₁) x O(m₂) x ..."""
    return block_diagonal(random_orthogonal(size, rng) for size in sizes)


def climb_gauge(
    G: Array, ell_sizes: Sequence[int], c_sizes: Sequence[int], B: Array, steps: int
) -> float:
    """Largest <A B, G> reached from B, with A over ℓ's and B over c's blocks, in polar steps."""

    def fitted(matrix: Array, sizes: Sequence[int]) -> Array:
        ends = np.cumsum(sizes)
        return block_diagonal(
            polar(matrix[end - size : end, end - size : end])
            for end, size in zip(ends, sizes, strict=True)
        )

    value = -np.inf
    for _ in range(steps):
        A = fitted(G @ B.T, ell_sizes)
        B = fitted(A.T @ G, c_sizes)
        gain = float((A @ B * G).sum())
        if gain - value <= 1e-13 * abs(gain):
            return max(gain, value)
        value = gain
    return value


def principal(x: Array, center: bool, k: int) -> tuple[Array, Array, Array]:
    """Moment of rows, its k leading eigenvalues, and their eigenvectors as columns."""
    C = two_pass(x)[2 if center else 1]
    values, vectors = np.linalg.eigh(C)
    return C, values[::-1][:k], vectors[:, ::-1][:, :k]


def jackknife(without: Sequence[Any], sizes: Sequence[int]) -> Array:
    """Standard errors by pseudo-values of parts of any sizes, from estimates without each part."""
    estimates, total = np.array(without), sum(sizes)
    center = np.average(estimates, axis=0, weights=[total - size for size in sizes])
    variance = np.zeros(estimates.shape[1:])
    for estimate, size in zip(estimates, sizes, strict=True):
        h = total / size
        pseudo = h * center - (h - 1) * estimate
        variance += (pseudo - center) ** 2 / (h - 1) / len(sizes)
    return np.sqrt(variance)


def leave_one_out(parts: Sequence[Array], L: Array, center: bool, k: int) -> dict[str, Array]:
    """Sampling errors and held-out roughness, each from the samples themselves and a dense P."""
    sizes = [len(part) for part in parts]
    modes = np.linalg.eigh(L)[1][:, :k]
    whole = principal(np.concatenate(parts), center, k)[2]
    costs, spectra, gaps, raw, transferred, optimum = [], [], [], [], [], []
    for j, part in enumerate(parts):
        others = np.concatenate([*parts[:j], *parts[j + 1 :]])
        C, c, U = principal(others, center, k)
        costs.append(cost(L, modes @ U.T, C))
        spectra.append(c)
        weight = (sum(sizes) / len(part) - 1) / len(parts)
        gaps.append([weight * (1 - (U[:, i] @ whole[:, i]) ** 2) for i in range(k)])
        own, _, own_U = principal(part, center, k)
        raw.append(np.trace(L @ own))
        transferred.append(cost(L, modes @ U.T, own))
        optimum.append(cost(L, modes @ own_U.T, own))
    return {
        "cost_error": jackknife(costs, sizes),
        "eigenvalue_errors": jackknife(spectra, sizes),
        "overlap": np.maximum(1 - np.sum(gaps, axis=0), 0),
        "raw": np.array(raw),
        "transferred": np.array(transferred),
        "optimum": np.array(optimum),
    }


# Assignments --------------------------------------------------------------------------------------


def orders(n: int, k: int | None = None) -> NDArray[np.int64]:
    """Every ordered choice of k (by default all) of 0 ... n - 1, one a row."""
    return np.array(list(permutations(range(n), k)), dtype=np.int64).reshape(
        -1, n if k is None else k
    )


def best_assignment(cost: Array, maximize: bool = False) -> float:
    """Least (greatest) total of min(n, m) pairs in which no row or column comes twice."""
    costs = np.asarray(cost, dtype=np.float64)
    costs = costs if costs.shape[0] <= costs.shape[1] else costs.T
    totals = costs[np.arange(len(costs)), orders(costs.shape[1], len(costs))].sum(axis=1)
    return float(totals.max() if maximize else totals.min())


def quadratic_cost(A: Array, B: Array, p: Any) -> float:
    """Σ_ij A_ij B_{p_i p_j}."""
    places = range(len(A))
    return float(sum(A[i, j] * B[p[i], p[j]] for i in places for j in places))


def quadratic_costs(A: Array, B: Array) -> Array:
    """Σ_ij A_ij B_{p_i p_j} of every order p, as `orders` lists them."""
    p = orders(len(A))
    total = np.zeros(len(p))
    for i in range(len(A)):
        for j in range(len(A)):
            total += A[i, j] * B[p[:, i], p[:, j]]
    return total


# Orders of neurons --------------------------------------------------------------------------------


def order_matrix(p: Any) -> Array:
    """P with P_{i, p_i} = 1."""
    return np.eye(len(p))[np.asarray(p)]


def squared_distances(C: Array) -> Array:
    """Squared distances C_ii + C_jj - 2 C_ij."""
    return np.asarray(np.diag(C)[:, None] + np.diag(C)[None, :] - 2 * C)


def shortest(d: Array, periodic: bool) -> float:
    """Length of the shortest tour or path, by Held and Karp's recursion over subsets."""
    n = len(d)
    reached = np.full((1 << n, n), np.inf)
    for i in [0] if periodic else range(n):
        reached[1 << i, i] = 0
    for subset in range(1, 1 << n):
        for i in range(n):
            if not subset >> i & 1:
                here = subset | 1 << i
                reached[here, i] = min(reached[here, i], (reached[subset] + d[:, i]).min())
    return float((reached[-1] + (d[:, 0] if periodic else 0)).min()) if n > 1 else 0.0


def spanning_tree(d: Array) -> float:
    """Length of the shortest tree that joins all, grown from the first."""
    near, total = d[0].copy(), 0.0
    near[0] = np.inf
    outside = set(range(1, len(d)))
    while outside:
        nearest = min(outside, key=lambda i: near[i])
        total += near[nearest]
        outside.remove(nearest)
        near = np.minimum(near, d[nearest])
    return float(total)


def is_turned(order: Any, periodic: bool) -> bool:
    """Whether an order is 0 ... n - 1 from either end, or, on a ring, from anywhere."""
    n = len(order)
    steps = np.diff(np.asarray(order))
    if periodic:
        steps = (steps + n // 2) % n - n // 2
    return bool((steps == 1).all() or (steps == -1).all())


# Inputs -------------------------------------------------------------------------------------------


def spread_moment(n: int, rng: np.random.Generator, smallest: float = 1e-3) -> Array:
    """Second moment of simple spectrum from 1 down, in a random basis."""
    Q = random_orthogonal(n, rng)
    C = (Q * np.geomspace(1, smallest, n)) @ Q.T
    return np.asarray((C + C.T) / 2)


def symmetric(n: int, rng: np.random.Generator) -> Array:
    """Random symmetric, indefinite matrix."""
    a = rng.normal(size=(n, n))
    return np.asarray(a + a.T)


# Convolutions -------------------------------------------------------------------------------------


def convolution_matrix(weight: Array, shape: Sequence[int]) -> Array:
    """W with y = W x: one column for each input entry, at each of the grid's places periodic."""
    c_out, c_in, *kernel = weight.shape
    W = np.zeros((c_out, *shape, c_in, *shape))
    for place in product(*map(range, shape)):
        for tap in product(*map(range, kernel)):
            read = tuple((p + t) % n for p, t, n in zip(place, tap, shape, strict=True))
            W[(slice(None), *place, slice(None), *read)] += weight[(slice(None), slice(None), *tap)]
    return W.reshape(c_out * int(np.prod(shape)), -1)
