"""Symmetric matrices that lead eigensolvers astray, and spectra that are known without solving.

Each family makes a batch ``(b, n, n)`` of float64 matrices of entries of some ordinary size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator
EPS = 2.0**-52
DOUBLE, SINGLE = np.dtype(np.float64), np.dtype(np.float32)
HALF, BRAIN = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
# Where kernels change.
EDGES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


def moved(a: Array, exponent: int | None) -> Array:
    """The batch with norms of 2^exponent, below it in fact."""
    if exponent is None:
        return a
    top = np.frexp(np.linalg.norm(a, axis=(-2, -1), keepdims=True))[1]
    return np.asarray(np.ldexp(a, exponent - top))


def spectrum(a: Array) -> Array:
    """Eigenvalues, ascending, of batches.

    Not by `eigvalsh`: LAPACK's QR without square roots (dsterf) errs by up to 1e-2 where squares of
    entries underflow. What is asked for vectors, too, takes another way.
    """
    return np.asarray(np.linalg.eigh(a)[0])


def mirrored(a: Array) -> Array:
    """The symmetric matrices of these lower triangles."""
    lower = np.tril(a)
    return np.asarray(lower + np.swapaxes(np.tril(a, -1), -1, -2))


def basis(rng: Rng, b: int, n: int) -> Array:
    return np.asarray(np.linalg.qr(rng.normal(size=(b, n, n)))[0])


def turned(rng: Rng, values: Array) -> Array:
    """Any basis, in which the eigenvalues are those."""
    q = basis(rng, *values.shape)
    return mirrored((q * values[:, None, :]) @ np.swapaxes(q, -1, -2))


def diagonals(values: Array) -> Array:
    out = np.zeros((*values.shape, values.shape[-1]))
    np.einsum("...ii->...i", out)[...] = values
    return out


def tridiagonal(d: Array, e: Array) -> Array:
    out = diagonals(d)
    np.einsum("...ii->...i", out[:, 1:, :-1])[...] = e
    return mirrored(out)


def shuffled(rng: Rng, a: Array) -> Array:
    """Rows and columns of each in an order of its own, signs turned."""
    b, n, _ = a.shape
    order, sign = (
        rng.permuted(np.tile(np.arange(n), (b, 1)), axis=1),
        rng.choice([-1.0, 1.0], (b, n)),
    )
    moved = np.take_along_axis(np.take_along_axis(a, order[:, :, None], 1), order[:, None, :], 2)
    return np.asarray(moved * sign[:, :, None] * sign[:, None, :])


def powers(rng: Rng, b: int, low: float, high: float) -> Array:
    return np.asarray(10.0 ** rng.uniform(low, high, (b, 1)))


def clusters(rng: Rng, b: int, n: int) -> Array:
    centres = rng.normal(size=(b, max(1, n // 4)))[:, rng.integers(0, max(1, n // 4), n)]
    return centres + powers(rng, b, -16, -3) * rng.normal(size=(b, n))


def grades(rng: Rng, b: int, n: int) -> Array:
    """From 1 down, by 1 to 10^15, in either order."""
    down = powers(rng, b, -15, 0) ** np.linspace(0, 1, n)
    return np.where(rng.random((b, 1)) < 0.5, down, down[:, ::-1])


def wilkinson(rng: Rng, b: int, n: int) -> tuple[Array, Array]:
    """W+ with its pairs, glued from pieces of 21 or another size by a weak coupling."""
    size = int(rng.choice([21, 7, 10, n]))
    place = np.arange(n) % size
    d = np.tile(np.abs(place - (size - 1) / 2.0), (b, 1))
    e = np.ones((b, n - 1))
    e[:, size - 1 :: size] = powers(rng, b, -16, 0)
    return d, e


def weak(rng: Rng, b: int, n: int) -> tuple[Array, Array]:
    """Couplings whose squares underflow, some of them none."""
    e = rng.normal(size=(b, n - 1)) * 10.0 ** rng.integers(-170, 1, (b, n - 1))
    return rng.integers(-2, 3, (b, n)).astype(float), e * (rng.random((b, n - 1)) < 0.8)


def toeplitz(rows: Array) -> Array:
    i = np.arange(rows.shape[-1])
    return np.asarray(rows[:, np.abs(i[:, None] - i)])


def ring(rng: Rng, b: int, n: int) -> Array:
    """First rows of symmetric circulants, of small integers."""
    c = rng.integers(-8, 9, (b, n)).astype(float)
    return np.asarray(c + np.roll(c[:, ::-1], 1, axis=1))


def ulp_blocks(rng: Rng, b: int, n: int) -> Array:
    """Two or three alike blocks, coupled by an ulp."""
    size = max(1, n // int(rng.integers(2, 4)))
    block = mirrored(rng.integers(-3, 4, (b, size, size)).astype(float))
    out = EPS * rng.integers(-1, 2, (b, n, n)).astype(float)
    for at in range(0, n - size + 1, size):
        out[:, at : at + size, at : at + size] = block
    return mirrored(out)


def arrow(rng: Rng, b: int, n: int) -> Array:
    out = diagonals(rng.choice([0.0, 1.0, 1.0 + EPS, 2.0], (b, n)))
    out[:, -1, :] = rng.normal(size=(b, n)) * powers(rng, b, -12, 3)
    return mirrored(out)


def sparse(rng: Rng, b: int, n: int) -> Array:
    return mirrored(rng.normal(size=(b, n, n)) * (rng.random((b, n, n)) < 2.0 / n))


def gram(rng: Rng, b: int, n: int) -> Array:
    x = rng.integers(-2, 3, (b, n, int(rng.integers(1, n + 1)))).astype(float)
    return np.asarray(x @ np.swapaxes(x, -1, -2))


def projector(rng: Rng, b: int, n: int) -> Array:
    return turned(rng, (np.arange(n) < rng.integers(0, n + 1, (b, 1))).astype(float))


def bipartite(rng: Rng, b: int, n: int) -> Array:
    out = np.zeros((b, n, n))
    out[:, n // 2 :, : n // 2] = rng.normal(size=(b, n - n // 2, n // 2))
    return mirrored(out)


def graded(rng: Rng, b: int, n: int) -> Array:
    d = grades(rng, b, n)
    return mirrored(d[:, :, None] * rng.normal(size=(b, n, n)) * d[:, None, :])


def hilbert(rng: Rng, b: int, n: int) -> Array:
    i = np.arange(n)
    return np.asarray(1 / (i[:, None] + i + rng.integers(1, 4, (b, 1, 1)) + 0.0))


def kms(rng: Rng, b: int, n: int) -> Array:
    return toeplitz(rng.choice([0.5, -0.9, 1 - 1e-12, 1e-9, -1.0], (b, 1)) ** np.arange(n))


def extremes(rng: Rng, b: int, n: int) -> Array:
    """Entries of all magnitudes beside each other."""
    return mirrored(rng.normal(size=(b, n, n)) * 10.0 ** rng.integers(-300, 1, (b, n, n)))


FAMILIES: dict[str, Callable[[Rng, int, int], Array]] = {
    "normal": lambda rng, b, n: mirrored(rng.normal(size=(b, n, n))),
    "clusters": lambda rng, b, n: turned(rng, clusters(rng, b, n)),
    "cluster of 1": lambda rng, b, n: turned(
        rng, 1 + powers(rng, b, -16, -3) * rng.normal(size=(b, n))
    ),
    "graded": graded,
    "geometric": lambda rng, b, n: turned(rng, grades(rng, b, n) ** 2),
    "wilkinson": lambda rng, b, n: tridiagonal(*wilkinson(rng, b, n)),
    "wilkinson shuffled": lambda rng, b, n: shuffled(rng, tridiagonal(*wilkinson(rng, b, n))),
    "weak": lambda rng, b, n: tridiagonal(*weak(rng, b, n)),
    "toeplitz": lambda rng, b, n: toeplitz(rng.normal(size=(b, n))),
    "circulant": lambda rng, b, n: toeplitz(ring(rng, b, n)),
    "signs": lambda rng, b, n: mirrored(rng.integers(-1, 2, (b, n, n)).astype(float)),
    "deficient": gram,
    "projector": projector,
    "bipartite": bipartite,
    "arrow": arrow,
    "hilbert": hilbert,
    "kac-murdock-szego": kms,
    "sparse": sparse,
    "extremes": extremes,
    "ulp blocks": ulp_blocks,
    "ulp blocks shuffled": lambda rng, b, n: shuffled(rng, ulp_blocks(rng, b, n)),
    "near identity": lambda rng, b, n: (
        np.eye(n) + mirrored(EPS * rng.integers(-2, 3, (b, n, n)).astype(float))
    ),
    "diagonal": lambda rng, b, n: diagonals(rng.normal(size=(b, n))),
    "few values": lambda rng, b, n: diagonals(rng.integers(-1, 2, (b, n)).astype(float)),
    "rising": lambda rng, b, n: diagonals(np.sort(rng.integers(-9, 9, (b, n)).astype(float))),
    "multiple": lambda rng, b, n: np.eye(n) * rng.integers(-1, 2, (b, 1, 1)),
    "constant": lambda rng, b, n: np.ones((n, n)) * rng.choice([-1.0, 1.0], (b, 1, 1)),
}

# Spectra in extended precision --------------------------------------------------------------------

Known = tuple[Array, NDArray[Any]]
PI = 4 * np.arctan(np.longdouble(1))


def sturm(d: Array, e: Array) -> NDArray[Any]:
    """Eigenvalues of one tridiagonal matrix by bisection in extended precision, ascending."""
    long = np.longdouble
    square = np.concatenate([[0.0], e]).astype(long) ** 2
    span = long(np.abs(d).max() + 2 * np.abs(e).max(initial=0)) + 1
    least = np.sqrt(np.finfo(long).tiny)
    low, high = np.full(len(d), -span), np.full(len(d), span)
    for _ in range(72):
        x = (low + high) / 2
        pivot, below = np.ones(len(d), long), np.zeros(len(d), int)
        for diagonal, coupling in zip(d.astype(long), square, strict=True):
            pivot = diagonal - x - coupling / pivot
            pivot = np.where(np.abs(pivot) < least, -least, pivot)
            below += pivot < 0
        more = below > np.arange(len(d))
        low, high = np.where(more, low, x), np.where(more, x, high)
    return np.asarray(low)


def known_path(rng: Rng, n: int) -> Known:
    k = np.arange(1, n + 1, dtype=np.longdouble)
    return (
        tridiagonal(np.full((1, n), 2.0), np.full((1, n - 1), -1.0))[0],
        4 * np.sin(PI * k / (2 * (n + 1))) ** 2,
    )


def known_ring(rng: Rng, n: int) -> Known:
    row = ring(rng, 1, n)
    k = np.arange(n)
    turns = np.cos(2 * PI * (k[:, None] * k % n).astype(np.longdouble) / n)
    return toeplitz(row)[0], turns @ row[0]


def known_minimum(rng: Rng, n: int) -> Known:
    i = np.arange(1.0, n + 1)
    k = np.arange(1, n + 1, dtype=np.longdouble)
    return np.minimum(i[:, None], i), 1 / (4 * np.sin((2 * k - 1) * PI / (4 * n + 2)) ** 2)


def known_wilkinson(rng: Rng, n: int) -> Known:
    d, e = wilkinson(rng, 1, n)
    return tridiagonal(d, e)[0], sturm(d[0], e[0])


def known_weak(rng: Rng, n: int) -> Known:
    d, e = weak(rng, 1, n)
    return tridiagonal(d, e)[0], sturm(d[0], e[0])


def known_involution(rng: Rng, n: int) -> Known:
    """Neurons that change places two by two, weighted."""
    pairs, weight = rng.permutation(n)[: n // 2 * 2].reshape(-1, 2), float(rng.integers(1, 9))
    a = np.eye(n)
    a[pairs[:, 0], pairs[:, 0]] = a[pairs[:, 1], pairs[:, 1]] = 0
    a[pairs[:, 0], pairs[:, 1]] = a[pairs[:, 1], pairs[:, 0]] = weight
    return a, np.array([weight, -weight] * len(pairs) + [1.0] * (n % 2), np.longdouble)


def known_diagonal(rng: Rng, n: int) -> Known:
    d = rng.normal(size=n) * 10.0 ** rng.integers(-20, 1, n)
    return np.diag(d), d.astype(np.longdouble)


def known_graph(rng: Rng, n: int) -> Known:
    """Hypercubes as far as they go, then what is complete."""
    power = n.bit_length() - 1
    i = np.arange(1 << power)
    cube = np.vectorize(lambda x: float(x.bit_count() == 1))(i[:, None] ^ i)
    rest = n - len(i)
    a = np.zeros((n, n))
    a[: len(i), : len(i)], a[len(i) :, len(i) :] = cube, 1
    values = np.repeat(
        power - 2.0 * np.arange(power + 1), [comb(power, k) for k in range(power + 1)]
    )
    more = [float(rest)] * (rest > 0) + [0.0] * (rest - 1)
    return a, np.concatenate([values, more]).astype(np.longdouble)


KNOWN: dict[str, Callable[[Rng, int], Known]] = {
    name.removeprefix("known_"): value
    for name, value in list(globals().items())
    if name.startswith("known_")
}
