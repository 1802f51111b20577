"""Closed forms against dense definitions, L = Dᵀ D, at even and odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import (
    EPS,
    central_difference_matrix,
    difference_matrix,
    fourier_derivative,
    graph_laplacian,
    kronecker_sum,
    runs,
)

import descramble_fast as df
from descramble_fast.operators import Operator

Array = NDArray[np.float64]
Family = tuple[Callable[[int], Operator], Callable[[int], Array]]
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 80, 81]
FAMILIES: dict[str, Family] = {
    **{
        f"fourier {order}": (
            lambda n, order=order: df.operators.fourier(n, order),
            lambda n, order=order: fourier_derivative(n, order),
        )
        for order in (1, 2, 3)
    },
    **{
        f"difference {order} {boundary}": (
            lambda n, order=order, boundary=boundary: df.operators.difference(n, order, boundary),
            lambda n, order=order, boundary=boundary: difference_matrix(n, order, boundary),
        )
        for order in (1, 2)
        for boundary in ("periodic", "path")
    },
    "central difference": (df.operators.central_difference, central_difference_matrix),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def assert_is(op: Operator, L: Array) -> None:
    """The operator is L: spectrum, modes and the three maps, to rounding of n-term products."""
    n = len(L)
    assert op.size == n
    top = float(np.linalg.norm(L, 2))
    tolerance = 50 * n * EPS
    ell, T = op.eigenvalues, op.modes()
    assert (np.diff(ell) >= 0).all()
    assert (ell >= 0).all()
    assert np.abs(ell - np.linalg.eigvalsh(L)).max() <= tolerance * top
    assert np.linalg.norm(T.T @ T - np.eye(n)) <= tolerance
    assert np.linalg.norm(L @ T - T * ell, 2) <= tolerance * top
    x = np.random.default_rng(n).normal(size=(3, n))
    size = np.linalg.norm(x)
    assert np.linalg.norm(op.apply(x) - x @ L) <= tolerance * top * size
    assert np.linalg.norm(op.analyze(x) - x @ T) <= tolerance * size
    assert np.linalg.norm(op.synthesize(x) - x @ T.T) <= tolerance * size


@pytest.mark.parametrize("n", SIZES)
def test_closed_forms_equal_dense_definitions(family: Family, n: int) -> None:
    make, dense = family
    D = dense(n)
    assert_is(make(n), D.T @ D)


@pytest.mark.parametrize("n", [*SIZES, 64, 97, 360])
def test_modes_are_orthogonal_at_awkward_transform_lengths(family: Family, n: int) -> None:
    op = family[0](n)
    x = np.random.default_rng(0).normal(size=(2, n))
    limit = 50 * n * EPS * np.linalg.norm(x)
    assert np.linalg.norm(op.synthesize(op.analyze(x)) - x) <= limit
    assert np.linalg.norm(op.analyze(op.synthesize(x)) - x) <= limit


@pytest.mark.parametrize("n", SIZES)
def test_blocks_are_the_runs_of_equal_eigenvalues(family: Family, n: int) -> None:
    op = family[0](n)
    # Distinct eigenvalues here differ by more than 1e-10 of the largest: (pi/162)^4 / 16 at least.
    assert op.blocks == runs(op.eigenvalues, 1e-11 * op.eigenvalues[-1])
    assert all(np.ptp(op.eigenvalues[slice(*block)]) == 0 for block in op.blocks)


@pytest.mark.parametrize("n", SIZES)
def test_fourier_modes_stand_in_their_documented_order(n: int) -> None:
    grid = 2 * np.pi * np.arange(n) / n
    columns = [np.full(n, np.sqrt(1 / n))]
    for k in range(1, (n + 1) // 2):
        columns += [np.sqrt(2 / n) * np.cos(k * grid), np.sqrt(2 / n) * np.sin(k * grid)]
    if n % 2 == 0:
        columns.append(np.sqrt(1 / n) * (-1.0) ** np.arange(n))
    expected = np.column_stack(columns)
    # n k / n turns of the circle lose n eps of an angle at most.
    assert np.abs(df.operators.fourier(n).modes() - expected).max() <= 10 * n * EPS
    k = (np.arange(n) + 1) // 2
    assert (df.operators.fourier(n).eigenvalues == k.astype(float) ** 4).all()


@pytest.mark.parametrize("n", [2, 4, 6, 8, 80])
def test_nyquist_is_free_at_even_sizes_where_the_derivative_is_odd(n: int) -> None:
    nyquist = (-1.0) ** np.arange(n)
    for op in (
        df.operators.fourier(n, order=1),
        df.operators.fourier(n, order=3),
        df.operators.central_difference(n),
    ):
        assert (op.eigenvalues[:2] == 0).all()
        assert op.blocks[0] == (0, 2)
        assert np.abs(op.apply(nyquist)).max() <= 50 * n * EPS * op.eigenvalues[-1]
    kept = df.operators.fourier(n, order=2)
    assert kept.eigenvalues[-1] == (n / 2) ** 4
    energy = nyquist @ kept.apply(nyquist)
    assert energy == pytest.approx(n * (n / 2) ** 4, rel=50 * n * EPS)


def test_constants_are_smooth(family: Family) -> None:
    for n in SIZES:
        op = family[0](n)
        assert np.abs(op.apply(np.ones(n))).max() <= 50 * n * EPS * op.eigenvalues[-1]
        assert np.abs(op.modes()[:, 0] - np.sqrt(1 / n)).max() <= 10 * n * EPS


# Grids, matrices, graphs --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (4, 4), (1, 4, 1), (3, 2, 4), (2, 2, 2, 2)])
def test_grids_are_kronecker_sums(family: Family, shape: tuple[int, ...]) -> None:
    make, dense = family
    op = df.operators.grid(shape, make)
    assert_is(op, kronecker_sum([dense(n).T @ dense(n) for n in shape]))
    assert op.blocks == runs(op.eigenvalues, 1e-11 * op.eigenvalues[-1])


def test_grid_passes_its_options_on() -> None:
    op = df.operators.grid((3, 4), df.operators.difference, order=2, boundary="path")
    dense = [difference_matrix(n, 2, "path") for n in (3, 4)]
    assert_is(op, kronecker_sum([D.T @ D for D in dense]))


def test_grid_takes_dense_axes_too() -> None:
    parts = {n: difference_matrix(n, 1, "path") for n in (3, 5)}
    op = df.operators.grid((3, 5), lambda n: df.operators.from_matrix(parts[n].T @ parts[n]))
    assert_is(op, kronecker_sum([parts[n].T @ parts[n] for n in (3, 5)]))


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    rank=st.integers(0, 20),
    scale=st.sampled_from([1e-100, 1.0, 1e100]),
)
@settings(deadline=None, max_examples=40)
def test_any_semidefinite_matrix_is_an_operator(seed: int, n: int, rank: int, scale: float) -> None:
    factor = np.random.default_rng(seed).normal(size=(n, min(rank, n)))
    L = scale * (factor @ factor.T)
    assert_is(df.operators.from_matrix(L), L)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_narrow_matrix_is_widened(dtype: Any) -> None:
    L = (np.diag([2, 2, 2]) - np.eye(3, k=1) - np.eye(3, k=-1)).astype(dtype)
    assert_is(df.operators.from_matrix(L), L.astype(np.float64))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 15), m=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_graph_laplacians(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    edges, weights = rng.integers(0, n, size=(m, 2)), rng.random(m)
    L = graph_laplacian([(int(i), int(j)) for i, j in edges], weights, n)
    assert_is(df.operators.from_graph(edges, n=n, weights=weights), L)
    ones = graph_laplacian([(int(i), int(j)) for i, j in edges], np.ones(m), n)
    assert_is(df.operators.from_graph(edges, n=n), ones)


def test_a_ring_graph_is_the_periodic_difference() -> None:
    n = 12
    ring = df.operators.from_graph([(i, (i + 1) % n) for i in range(n)])
    D = difference_matrix(n, 1, "periodic")
    assert_is(ring, D.T @ D)
    assert ring.blocks == df.operators.difference(n).blocks


# Arrays in, arrays out ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (0,), (5,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("method", ["apply", "analyze", "synthesize"])
def test_maps_act_on_the_last_axis(method: str, shape: tuple[int, ...]) -> None:
    op = df.operators.fourier(6)
    x = np.random.default_rng(0).normal(size=(*shape, 6))
    before = x.copy()
    got = getattr(op, method)(x)
    assert isinstance(got, np.ndarray)
    assert got.shape == x.shape
    assert (x == before).all()
    for index in np.ndindex(shape):
        assert (got[index] == getattr(op, method)(x[index])).all()
    torch = pytest.importorskip("torch")
    tensor = getattr(op, method)(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float64
    assert (tensor.numpy() == got).all()


def test_names_and_reprs_tell_the_parameters() -> None:
    assert df.operators.fourier(80, order=2).name == "fourier(n=80, order=2)"
    for op in (
        df.operators.difference(5, 2, "path"),
        df.operators.central_difference(5),
        df.operators.grid((5, 1)),
        df.operators.from_matrix(np.eye(5)),
    ):
        assert "5" in op.name
        assert op.name in repr(op)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: df.operators.fourier(0), "n: "),
        (lambda: df.operators.fourier(-3), "n: "),
        (lambda: df.operators.fourier(4, order=0), "order: "),
        (lambda: df.operators.fourier(1000, order=80), "order"),
        (lambda: df.operators.difference(0), "n: "),
        (lambda: df.operators.difference(4, order=0), "order: "),
        (lambda: df.operators.difference(4, order=3), "order: "),
        (lambda: df.operators.difference(4, boundary="ring"), "boundary: got 'ring'"),
        (lambda: df.operators.central_difference(0), "n: "),
        (lambda: df.operators.grid(()), "shape|axes"),
        (lambda: df.operators.grid((3, 0)), "shape: got 0"),
        (lambda: df.operators.from_matrix(np.zeros((2, 3))), "matrix: "),
        (lambda: df.operators.from_matrix(np.zeros(3)), "matrix: "),
        (lambda: df.operators.from_matrix(np.array([[1.0, 0.5], [0.4, 1.0]])), "matrix: .*symm"),
        (lambda: df.operators.from_matrix(np.diag([1.0, -1e-3])), "matrix: .*semidefinite"),
        (lambda: df.operators.from_matrix(np.diag([-1.0, -1.0])), "matrix: .*semidefinite"),
        (lambda: df.operators.from_matrix(np.array([[np.nan, 0], [0, 1]])), "matrix: "),
        (lambda: df.operators.from_matrix(np.array([[1, np.inf], [np.inf, 1]])), "matrix: "),
        (lambda: df.operators.from_graph(np.zeros((0, 2), dtype=int)), "edges: "),
        (lambda: df.operators.from_graph([[0, 1, 2]]), "edges: "),
        (lambda: df.operators.from_graph([[0, 3]], n=3), "edges: "),
        (lambda: df.operators.from_graph([[-1, 0]]), "edges: "),
        (lambda: df.operators.from_graph([[0, 1]], weights=np.array([-1.0])), "weights: "),
        (lambda: df.operators.from_graph([[0, 1]], weights=np.array([np.nan])), "weights: "),
        (lambda: df.operators.from_graph([[0, 1]], weights=np.ones(2)), "weights: "),
        (lambda: df.operators.fourier(4).apply(np.zeros((2, 5))), "x: .*5.*4"),
        (lambda: df.operators.fourier(4).analyze(np.zeros((4, 1))), "x: "),
        (lambda: df.operators.fourier(1).synthesize(np.array(1.0)), "z: "),
    ],
)
def test_what_makes_no_operator_is_a_value_error(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: df.operators.from_matrix(np.eye(2, dtype=int)),
        lambda: df.operators.from_matrix([[1.0]]),
        lambda: df.operators.from_graph([[0.0, 1.0]]),
        lambda: df.operators.fourier(2.5),
        lambda: df.operators.fourier(3).apply([1.0, 2.0, 3.0]),
        lambda: df.operators.fourier(3).apply(np.arange(3)),
        lambda: df.operators.fourier(3).apply(np.zeros(3, dtype=">f8")),
    ],
)
def test_what_is_no_floating_array_is_a_type_error(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        make()


def test_a_float32_product_is_semidefinite_to_its_own_rounding() -> None:
    a = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    op = df.operators.from_matrix(a.T @ a)
    assert (op.eigenvalues[:35] == 0).all()
    assert (op.eigenvalues[35:] > 0).all()
