"""Descramblers are optimal, orthogonal, gauged and consistent, against dense linear algebra."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import (
    EPS,
    best_cost,
    cayley,
    climb_gauge,
    cost,
    descend,
    difference_matrix,
    fourier_derivative,
    gauge_group,
    random_in_gauge,
    random_orthogonal,
    rounding,
    runs,
    sizes_of,
    spread_moment,
    symmetric,
    two_pass,
)

import descramble_fast as df

Array = NDArray[np.float64]
Operators = list[tuple[Callable[[int], df.operators.Operator], Callable[[int], Array]]]

OPERATORS: Operators = [
    (df.operators.fourier, lambda n: fourier_derivative(n, 2)),
    (lambda n: df.operators.fourier(n, 1), lambda n: fourier_derivative(n, 1)),
    (df.operators.difference, lambda n: difference_matrix(n, 1, "periodic")),
    (
        lambda n: df.operators.difference(n, 2, "path"),
        lambda n: difference_matrix(n, 2, "path"),
    ),
]


def roughness(n: int) -> Array:
    D = fourier_derivative(n, 2)
    return np.asarray(D.T @ D)


def samples(rows: int, n: int, seed: int, mean: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, n)) @ spread_moment(n, rng, 0.03) + mean


def from_moment(C: Array, **options: Any) -> df.SmoothnessDescrambler:
    return df.descramble(df.Covariance.from_moments(C), **options)


def moment_with(values: Array, rng: np.random.Generator) -> Array:
    Q = random_orthogonal(len(values), rng)
    C = (Q * values) @ Q.T
    return np.asarray((C + C.T) / 2)


def orthogonality(P: Array) -> float:
    return float(np.linalg.norm(P @ P.T - np.eye(len(P))))


# Optimality ---------------------------------------------------------------------------------------

problems = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(1, 64),
    st.integers(0, len(OPERATORS) - 1),
    st.sampled_from(["full", "deficient", "identity", "constant", "shifted"]),
)


def problem(drawn: tuple[int, int, int, str]) -> tuple[df.SmoothnessDescrambler, Array, Array]:
    """A descrambler, its dense L and its second moment in float64."""
    seed, n, which, kind = drawn
    rng = np.random.default_rng(seed)
    make, dense = OPERATORS[which]
    D = dense(n)
    x = {
        "full": lambda: samples(3 * n, n, seed),
        "deficient": lambda: samples(1 + n // 2, n, seed),
        "identity": lambda: np.sqrt(n) * random_orthogonal(n, rng),
        "constant": lambda: np.ones((4, n)),
        "shifted": lambda: samples(2 * n, n, seed, mean=100.0),
    }[kind]()
    return df.descramble(x, operator=make(n)), D.T @ D, two_pass(x)[1]


@given(problems)
@settings(deadline=None, max_examples=60)
def test_cost_is_the_trace_and_the_dense_optimum(drawn: tuple[int, int, int, str]) -> None:
    d, L, C = problem(drawn)
    tolerance = rounding(L, C)
    assert abs(d.cost - cost(L, d.matrix, C)) <= tolerance
    assert abs(d.cost - best_cost(L, C)) <= tolerance
    assert abs(d.initial_cost - np.trace(L @ C)) <= tolerance
    assert d.bound <= d.cost <= d.initial_cost + tolerance
    assert d.cost - d.bound <= tolerance
    assert 0 <= d.cost_error < np.inf
    n = len(C)
    assert orthogonality(d.matrix) <= 1e-12 * n
    assert d.orthogonality_error <= 1e-12 * n


@given(problems)
@settings(deadline=None, max_examples=60)
def test_no_search_beats_the_descrambler(drawn: tuple[int, int, int, str]) -> None:
    d, L, C = problem(drawn)
    n, P = len(C), d.matrix
    rng = np.random.default_rng(drawn[0])
    lowest = d.cost - rounding(L, C)
    for _ in range(10):
        assert cost(L, random_orthogonal(n, rng), C) >= lowest
        skew = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-6, 0)
        assert cost(L, cayley(skew - skew.T) @ P, C) >= lowest
    for _ in range(30 if n > 1 else 0):  # Givens rotations, also by half turns and swaps
        i, j = rng.choice(n, size=2, replace=False)
        t = rng.choice([np.pi, np.pi / 2, 10.0 ** rng.uniform(-6, 0)])
        turned = P.copy()
        turned[[i, j]] = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ P[[i, j]]
        assert cost(L, turned, C) >= lowest
    assert descend(L, C, P, 5) >= lowest
    assert descend(L, C, random_orthogonal(n, rng), 25) >= lowest


@pytest.mark.parametrize("n", [2, 5, 8])
def test_hill_climbing_comes_down_to_the_descrambler_and_no_further(n: int) -> None:
    rng = np.random.default_rng(n)
    C, D = spread_moment(n, rng, 0.1), difference_matrix(n, 1, "path")
    L = D.T @ D
    d = from_moment(C, operator=df.operators.difference(n, 1, "path"))
    reached = descend(L, C, random_orthogonal(n, rng), 3000)
    # The search stops where a step gains less than rounding: a root of eps short of stationary.
    assert -rounding(L, C) <= reached - d.cost <= 1e-6 * d.initial_cost


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    mean=st.sampled_from([0.0, 10.0]),
    center=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_descrambled_samples_are_as_smooth_as_promised(
    seed: int, n: int, mean: float, center: bool
) -> None:
    x = samples(2 * n + 3, n, seed, mean)
    d = df.descramble(x, center=center)
    D = fourier_derivative(n, 2)
    z = d.transform(x)
    moment = two_pass(x)[2 if center else 1]
    measured = np.linalg.norm(z @ D.T) ** 2 / len(x)
    # z carries an error of 10 n eps |z| (two products of n terms, after the mean's subtraction
    # where there is one), which |D|^2 amplifies.
    carried = 10 * n * EPS * np.linalg.norm(D, 2) ** 2 * np.trace(two_pass(x)[1])
    assert abs(measured - d.cost) <= d.cost_error + carried
    assert abs(d.initial_cost - np.trace(D.T @ D @ moment)) <= rounding(D.T @ D, moment) + carried


@pytest.mark.parametrize("n", [1, 2, 7, 16])
@pytest.mark.parametrize("center", [False, True])
def test_eigenpairs_are_those_of_the_moment(n: int, center: bool) -> None:
    x = samples(5 * n, n, n, mean=2.0)
    d = df.descramble(x, center=center)
    C = two_pass(x)[2 if center else 1]
    c, U, T = d.eigenvalues, d.components, d.modes
    top = np.linalg.norm(C, 2)
    assert (np.diff(c) <= 0).all()
    assert (c >= 0).all()
    assert np.linalg.norm(C @ U - U * c) <= 50 * n * EPS * top + 1e-13 * top
    assert np.linalg.norm(T @ U.T - d.matrix) <= 50 * n * EPS
    assert np.linalg.norm(T.T @ T - np.eye(n)) <= 50 * n * EPS
    L = roughness(n)
    limit = 50 * n * EPS * np.linalg.norm(L, 2)
    assert np.linalg.norm(L @ T - T * d.operator.eigenvalues) <= limit


def test_eigenvalues_below_zero_by_rounding_become_zero() -> None:
    x = samples(3, 20, 0)
    d = df.descramble(x)
    assert (d.eigenvalues[3:] >= 0).all()
    assert (d.eigenvalues[3:] <= 50 * 20 * EPS * d.eigenvalues[0]).all()


# Invariances --------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), center=st.booleans())
@settings(deadline=None, max_examples=30)
def test_neither_order_nor_basis_of_the_neurons_changes_the_optimum(
    seed: int, n: int, center: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = samples(2 * n, n, seed, mean=1.0)
    d = df.descramble(x, center=center)
    limit = rounding(roughness(n), two_pass(x)[1])
    for scrambled in (x[:, rng.permutation(n)], x @ random_orthogonal(n, rng)):
        assert abs(df.descramble(scrambled, center=center).cost - d.cost) <= limit


@pytest.mark.parametrize("exponent", [-400, -60, 60, 400])
@pytest.mark.parametrize("gauge", ["canonical", "identity"])
def test_a_power_of_two_scales_the_cost_and_nothing_else(exponent: int, gauge: str) -> None:
    x = samples(40, 12, 0)
    d, scaled = (df.descramble(np.ldexp(x, e), gauge=gauge) for e in (0, exponent))
    assert scaled.matrix.tobytes() == d.matrix.tobytes()
    assert scaled.cost == np.ldexp(d.cost, 2 * exponent)
    assert scaled.blocks == d.blocks


def test_a_second_moment_of_subnormal_numbers_is_no_less_semidefinite() -> None:
    x = 1e-160 * samples(3, 8, 0)
    d = df.descramble(x)
    assert orthogonality(d.matrix) <= 1e-12 * 8
    # c_1 is some 1e-320: every entry of C is a multiple of the smallest subnormal.
    assert 0 <= d.cost <= d.initial_cost + d.cost_error + 8 * 5e-324 * d.operator.eigenvalues.sum()


def test_a_cost_beyond_float64_is_a_value_error_or_finite() -> None:
    x = 1e150 * np.random.default_rng(0).normal(size=(2, 512))
    try:
        d = df.descramble(x)
    except ValueError:
        return
    assert np.isfinite([d.cost, d.initial_cost, d.cost_error, d.bound]).all()


# The canonical gauge ------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_the_first_of_a_columns_largest_entries_is_positive(seed: int, n: int) -> None:
    d = df.descramble(samples(n + 5, n, seed))
    for column in d.components.T:
        largest = np.flatnonzero(np.abs(column) >= np.abs(column).max() * (1 - 1e-6))
        assert column[largest[0]] > 0
    assert (d.modes == d.operator.modes()).all()
    assert (d.gauge.name, d.gauge.exact) == ("canonical", True)
    assert np.isnan(d.gauge.distance)


def test_ties_for_the_largest_entry_go_to_the_first() -> None:
    # The eigenvector of 0.5 is (1, -1)/√2 in either order: only rounding decides which is larger.
    for C in (np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([[0.3, 0.1], [0.1, 0.3]])):
        assert (from_moment(C).components[0] > 0).all()


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ([3.0, 2.0, 1.0], ()),
        ([1.0, 1.0, 1.0], ((0, 3),)),
        ([2.0, 1.0, 1.0, 0.0, 0.0], ((1, 3), (3, 5))),
        ([0.0, 0.0], ((0, 2),)),
        ([1.0, 1.0 + 1e-9], ()),
    ],
)
def test_repeated_eigenvalues_are_reported(
    values: list[float], blocks: tuple[tuple[int, int], ...]
) -> None:
    assert from_moment(np.diag(values)).blocks == blocks


@pytest.mark.parametrize("n", [6, 9])
def test_fewer_samples_than_neurons_leave_a_reported_null_space(n: int) -> None:
    assert df.descramble(samples(4, n, 0)).blocks == ((4, n),)
    assert df.descramble(samples(4, n, 0), center=True).blocks == ((3, n),)


# The reference gauge ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_of_the_whole_gauge_group(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    C, L = spread_moment(n, rng, 0.1), roughness(n)
    R = rng.normal(size=(n, n)) if seed else np.eye(n)
    d = from_moment(C, gauge=R)
    T, U = np.linalg.eigh(L)[1], np.linalg.eigh(C)[1][:, ::-1]
    points = 720
    sizes = sizes_of(runs(np.linalg.eigvalsh(L), 1e-6), n)
    optimal = [T @ Q @ U.T for Q in gauge_group(sizes, points)]
    assert all(abs(cost(L, P, C) - d.cost) <= rounding(L, C) for P in optimal[:: points // 8])
    best = min(float(np.linalg.norm(P - R)) for P in optimal)
    # <P, R> falls by at most (1 - cos(half a step)) |R|_* beside its maximum on the circle.
    spacing = (1 - np.cos(np.pi / points)) * np.linalg.norm(R, "nuc")
    got = float(np.linalg.norm(d.matrix - R))
    assert got <= best + 1e-12
    assert got**2 >= best**2 - 2 * spacing - 1e-12
    assert d.gauge.exact


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 24), which=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_for_simple_spectra_each_block_takes_its_polar_factor(
    seed: int, n: int, which: int
) -> None:
    rng = np.random.default_rng(seed)
    C, R = spread_moment(n, rng, 0.01), rng.normal(size=(n, n))
    make, _ = OPERATORS[which]
    op = make(n)
    d = from_moment(C, operator=op, gauge=R)
    G = op.modes().T @ R @ np.linalg.eigh(C)[1][:, ::-1]
    ends = np.cumsum(sizes_of(op.blocks, n))
    starts = [0, *ends[:-1]]
    gain = sum(np.linalg.norm(G[a:b, a:b], "nuc") for a, b in zip(starts, ends, strict=True))
    # U moves by n eps c_1/gap beside NumPy's; the smallest gap is c_n (1 - 0.01^(1/n)) or more.
    gap = 0.01 * (1 - 0.01 ** (1 / n)) if n > 1 else 1
    slack = 100 * n * EPS / gap * np.linalg.norm(R)
    assert abs((d.matrix * R).sum() - gain) <= slack
    for _ in range(20):
        other = op.modes() @ random_in_gauge(sizes_of(op.blocks, n), rng) @ d.components.T
        assert (other * R).sum() <= gain + slack


DEGENERATE: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "few samples": lambda n, rng: moment_with(
        np.concatenate([np.geomspace(1, 0.1, n // 2), np.zeros(n - n // 2)]), rng
    ),
    "two values": lambda n, rng: moment_with(np.where(np.arange(n) < n // 3, 1.0, 0.25), rng),
    "pairs": lambda n, rng: moment_with(np.repeat(np.arange(n, 0, -1.0), 2)[:n], rng),
    "dead neurons": lambda n, rng: np.diag(np.maximum(np.arange(n) - n // 2, 0.0)),
    "circulant": lambda n, rng: np.array(
        [np.roll(np.fft.ifft(1 / (1 + np.abs(np.fft.fftfreq(n, 1 / n)))).real, i) for i in range(n)]
    ),
    "circulant without Nyquist": lambda n, rng: np.array(
        [
            np.roll(np.fft.ifft(np.abs(np.fft.fftfreq(n, 1 / n)) < n // 2).real / 2, i)
            for i in range(n)
        ]
    ),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("n", [4, 7, 12])
@pytest.mark.parametrize("identity", [True, False])
def test_for_repeated_spectra_no_random_optimum_is_nearer(
    kind: str, n: int, identity: bool
) -> None:
    rng = np.random.default_rng(n)
    C = DEGENERATE[kind](n, rng)
    R = np.eye(n) if identity else random_orthogonal(n, rng)
    canonical = from_moment(C)
    d = from_moment(C, gauge="identity" if identity else R)
    tolerance = rounding(roughness(n), C)
    assert abs(cost(roughness(n), d.matrix, C) - canonical.cost) <= tolerance
    assert orthogonality(d.matrix) <= 1e-12 * n
    T, U = canonical.modes, canonical.components
    ell_sizes, c_sizes = sizes_of(d.operator.blocks, n), sizes_of(d.blocks, n)
    got = float((d.matrix * R).sum())
    assert got >= (canonical.matrix * R).sum() - 1e-12 * n
    for _ in range(500):
        A, B = random_in_gauge(ell_sizes, rng), random_in_gauge(c_sizes, rng)
        assert (T @ A @ B @ U.T * R).sum() <= got + 1e-12 * n
    assert not d.gauge.exact
    assert d.gauge.iterations >= 1


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("n", [4, 7, 12])
def test_for_repeated_spectra_no_random_start_ends_nearer(kind: str, n: int) -> None:
    rng = np.random.default_rng(n)
    C, R = DEGENERATE[kind](n, rng), random_orthogonal(n, rng)
    canonical, d = from_moment(C), from_moment(C, gauge=R)
    G = canonical.modes.T @ R @ canonical.components
    ell_sizes, c_sizes = sizes_of(d.operator.blocks, n), sizes_of(d.blocks, n)
    starts = [random_in_gauge(c_sizes, rng) for _ in range(20)]
    best = max(climb_gauge(G, ell_sizes, c_sizes, B, 500) for B in starts)
    # Linear convergence, ended where a step gains 1e-13, leaves some hundred such steps.
    assert (d.matrix * R).sum() >= best - 1e-10 * n


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_an_identity_moment_takes_any_orthogonal_reference(n: int) -> None:
    R = random_orthogonal(n, np.random.default_rng(n))
    d = from_moment(np.eye(n), gauge=R)
    assert np.linalg.norm(d.matrix - R) <= 1e-12 * n
    assert d.gauge.distance <= 1e-12 * n


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    kind=st.sampled_from([None, *DEGENERATE]),
)
@settings(deadline=None, max_examples=40)
def test_the_gauge_changes_neither_cost_nor_orthogonality_and_reports_its_distance(
    seed: int, n: int, kind: str | None
) -> None:
    rng = np.random.default_rng(seed)
    C = spread_moment(n, rng) if kind is None else DEGENERATE[kind](n, rng)
    L, R = roughness(n), rng.normal(size=(n, n))
    canonical, d = from_moment(C), from_moment(C, gauge=R)
    assert d.cost == canonical.cost
    assert abs(cost(L, d.matrix, C) - d.cost) <= rounding(L, C)
    assert orthogonality(d.matrix) <= 1e-12 * n
    assert np.linalg.norm(d.modes @ d.components.T - d.matrix) <= 1e-12 * n
    distance = float(np.linalg.norm(d.matrix - R))
    assert abs(d.gauge.distance - distance) <= 1e-12 * n * (1 + np.linalg.norm(R))
    assert distance <= np.linalg.norm(canonical.matrix - R) + 1e-12 * n * np.linalg.norm(R)
    assert d.gauge.name == "reference"


def test_a_descrambler_is_its_own_nearest() -> None:
    x = samples(100, 12, 0)
    P = df.descramble(x).matrix
    again = df.descramble(x, gauge=P)
    # The two polar factors of a block are exact to rounding of its entries.
    assert np.linalg.norm(again.matrix - P) <= 1e-12 * 12
    assert again.gauge.exact


def test_gauge_identity_is_the_reference_i() -> None:
    x = samples(100, 9, 0)
    by_name, by_array = df.descramble(x, gauge="identity"), df.descramble(x, gauge=np.eye(9))
    assert (by_name.matrix == by_array.matrix).all()
    assert by_name.gauge.name == "identity"
    assert dataclasses.replace(by_name.gauge, name="reference") == by_array.gauge


def test_checkpoints_stay_together_in_the_reference_gauge() -> None:
    """A small step of C moves a gauged P by a small step, but a canonical sign may jump."""
    rng = np.random.default_rng(0)
    C = spread_moment(10, rng, 0.1)
    P = from_moment(C).matrix
    step = symmetric(10, rng)
    moved = from_moment(C + 1e-6 * step, gauge=P)
    # First-order perturbation: |dU| <= |dC|/gap per column, gap >= 0.1 (1 - 0.1^(1/9)).
    gap = 0.1 * (1 - 0.1 ** (1 / 9))
    assert moved.gauge.distance <= 2 * np.sqrt(10) * 1e-6 * np.linalg.norm(step, 2) / gap


@pytest.mark.parametrize(
    ("gauge", "error", "message"),
    [
        ("nearest", ValueError, "gauge: got \"?'?nearest"),
        (np.eye(3), ValueError, "gauge: "),
        (np.zeros((4, 3)), ValueError, "gauge: "),
        (np.zeros(4), ValueError, "gauge: "),
        (np.full((4, 4), np.nan), ValueError, "gauge: "),
        (np.eye(4, dtype=int), TypeError, "gauge: "),
        (None, TypeError, "gauge"),
        ([[1.0]], TypeError, "gauge: "),
    ],
)
def test_what_is_no_gauge_is_refused(gauge: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        df.descramble(samples(10, 4, 0), gauge=gauge)


# Leading components -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6, 33])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_k_keeps_the_leading_components_on_the_smoothest_modes(n: int, part: float) -> None:
    k = max(1, round(part * n))
    x = samples(4 * n, n, n)
    whole, d = df.descramble(x), df.descramble(x, k=k)
    assert d.components.shape == d.modes.shape == (n, k)
    assert d.matrix.shape == (n, n)
    C = two_pass(x)[1]
    assert (
        np.abs(d.eigenvalues - whole.eigenvalues[:k]).max() <= 50 * n * EPS * whole.eigenvalues[0]
    )
    assert abs(d.cost - whole.eigenvalues[:k] @ whole.operator.eigenvalues[:k]) <= rounding(
        roughness(n), C
    )
    assert abs(cost(roughness(n), d.matrix, C) - d.cost) <= rounding(roughness(n), C)
    T = d.operator.modes()[:, :k]
    assert np.linalg.norm(d.matrix @ d.matrix.T - T @ T.T) <= 1e-12 * n
    assert np.linalg.norm(d.modes @ d.components.T - d.matrix) <= 1e-12 * n
    assert d.orthogonality_error <= 1e-12 * n
    y = x[:5]
    assert np.linalg.norm(d.transform(y) - y @ d.matrix.T) <= 1e-12 * n * np.linalg.norm(y)
    assert np.linalg.norm(d.inverse_transform(y) - y @ d.matrix) <= 1e-12 * n * np.linalg.norm(y)


def test_k_and_a_reference_exclude_each_other() -> None:
    x = samples(10, 4, 0)
    with pytest.raises(ValueError, match=r"gauge: .*k = 2"):
        df.descramble(x, k=2, gauge="identity")
    assert df.descramble(x, k=4, gauge="identity").gauge.exact
    for k in (0, 5, -1):
        with pytest.raises(ValueError, match="k: "):
            df.descramble(x, k=k)


# Reading weights and samples ----------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("gauge", ["canonical", "identity"])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_maps_agree_with_the_dense_matrix(n: int, center: bool, gauge: str) -> None:
    x = samples(3 * n + 2, n, n, mean=1.5)
    d = df.descramble(x, center=center, gauge=gauge)
    P = d.matrix
    mean = two_pass(x)[0] if center else np.zeros(n)
    rng = np.random.default_rng(0)
    W, b, W_next = rng.normal(size=(n, 4)), rng.normal(size=n), rng.normal(size=(3, n))
    z = d.transform(x)
    for got, expected in [
        (z, (x - mean) @ P.T),
        (d.inverse_transform(z), x),
        (d.transform_weight(W), P @ W),
        (d.transform_weight(W, b)[0], P @ W),
        (d.transform_weight(W, b)[1], P @ b),
        (d.transform_next_weight(W_next), W_next @ P.T),
        (d.transform(x[0]), (x[0] - mean) @ P.T),
        (d.transform(x[:2].reshape(2, 1, n)), ((x[:2] - mean) @ P.T).reshape(2, 1, n)),
    ]:
        assert got.shape == expected.shape
        size = np.linalg.norm(expected) + np.linalg.norm(mean)
        assert np.linalg.norm(got - expected) <= 1e-13 * n * size
    assert d.transform(np.zeros((0, n))).shape == (0, n)


def test_a_linear_network_computes_the_same_through_its_descrambler() -> None:
    rng = np.random.default_rng(0)
    W, W_next = rng.normal(size=(12, 7)), rng.normal(size=(5, 12))
    d = df.descramble(rng.normal(size=(200, 7)) @ W.T)
    through = d.transform_next_weight(W_next) @ d.transform_weight(W)
    limit = 50 * 12 * EPS * np.linalg.norm(W_next) * np.linalg.norm(W)
    assert np.linalg.norm(through - W_next @ W) <= limit


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("transform", (3, 5)),
        ("transform", ()),
        ("inverse_transform", (5,)),
        ("transform_weight", (5, 4)),
        ("transform_weight", (2, 4, 3)),
        ("transform_next_weight", (4, 5)),
        ("transform_next_weight", (4,)),
    ],
)
def test_maps_refuse_what_does_not_fit(method: str, shape: tuple[int, ...]) -> None:
    d = df.descramble(samples(10, 4, 0))
    with pytest.raises(ValueError, match=r"samples: |W: |W_next: "):
        getattr(d, method)(np.zeros(shape))
    with pytest.raises(ValueError, match="bias: "):
        d.transform_weight(np.zeros((4, 2)), np.zeros(5))


# Many at once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gauge", ["canonical", "identity"])
@pytest.mark.parametrize("center", [False, True])
def test_many_equal_one_by_one(gauge: str, center: bool) -> None:
    sizes = [8, 5, 8, 1, 5, 8]
    x = [samples(40, n, i, mean=1.0) for i, n in enumerate(sizes)]
    covs: list[Any] = [df.Covariance.from_samples(a) if i % 2 else a for i, a in enumerate(x)]
    together = df.descramble_many(covs, gauge=gauge, center=center)
    assert len(together) == len(sizes)
    for one, n, d in zip(covs, sizes, together, strict=True):
        alone = df.descramble(one, gauge=gauge, center=center)
        assert d.cost == pytest.approx(alone.cost, abs=d.cost_error + alone.cost_error)
        # Vectors agree to n eps c_1/gap; the spectra here are 1 to 1e-3 in up to 8 steps.
        assert np.linalg.norm(d.matrix - alone.matrix) <= 1e-9 * n
        assert d.gauge.name == gauge


def test_many_take_one_operator_each() -> None:
    x = [samples(40, 6, i) for i in range(2)]
    ops = [df.operators.fourier(6), df.operators.difference(6, 1, "path")]
    for d, one, op in zip(df.descramble_many(x, operator=ops), x, ops, strict=True):
        assert d.operator is op
        alone = df.descramble(one, operator=op)
        assert d.cost == pytest.approx(alone.cost, abs=d.cost_error + alone.cost_error)
    assert all(d.operator is ops[1] for d in df.descramble_many(x, operator=ops[1]))
    with pytest.raises(ValueError, match="operator: got 1, expected 2"):
        df.descramble_many(x, operator=ops[:1])


def test_many_of_none_are_none() -> None:
    for gauge in ("canonical", "identity"):
        assert df.descramble_many([], gauge=gauge) == ()


# Without samples ----------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 20),
    m=st.integers(1, 20),
    biased=st.booleans(),
    meant=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_weights_and_input_moments_replace_samples(
    seed: int, n: int, m: int, biased: bool, meant: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(50, m)) + (1.0 if meant else 0.0)
    if not meant:
        x = np.concatenate([x, -x])  # the mean is exactly zero
    W = rng.normal(size=(n, m))
    b = rng.normal(size=n) if biased else None
    mean, second, _ = two_pass(x)
    d = df.descramble_weights(
        W, bias=b, input_second_moment=second, input_mean=mean if meant else None
    )
    y = x @ W.T + (0 if b is None else b)
    streamed = df.descramble(y)
    C = two_pass(y)[1]
    # Both form C with an error of (n + m) eps of what they add up, which l_i multiply.
    parts = np.linalg.norm(W) ** 2 * np.trace(second) + (0 if b is None else b @ b)
    slack = 10 * (n + m) * EPS * parts * d.operator.eigenvalues.sum()
    assert abs(d.cost - streamed.cost) <= slack
    assert abs(d.cost - cost(roughness(n), d.matrix, C)) <= slack + rounding(roughness(n), C)
    assert abs(d.initial_cost - streamed.initial_cost) <= slack


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (8, 5), (5, 8), (9, 2)])
def test_isotropic_inputs_give_t_s_vt(n: int, m: int) -> None:
    rng = np.random.default_rng(10 * n + m)
    rank = min(n, m)
    s = np.geomspace(4, 1, rank)
    V = random_orthogonal(m, rng)[:, :rank]
    W = random_orthogonal(n, rng)[:, :rank] * s @ V.T
    d = df.descramble_weights(W)
    signed = d.modes[:, :rank].T @ d.transform_weight(W) @ V
    # U is found from W Wᵀ: its columns turn by n eps s_1²/gap, gap = 4^(-2/8) 1 or more.
    assert np.abs(np.abs(signed) - np.diag(s)).max() <= 1e-12
    assert np.abs(d.eigenvalues[:rank] - s**2).max() <= 50 * n * EPS * 16
    assert (d.eigenvalues[rank:] <= 50 * n * EPS * 16).all()
    left = W @ V / s  # the canonical sign rule, per column pair
    first = [np.flatnonzero(np.abs(u) >= np.abs(u).max() * (1 - 1e-6))[0] for u in left.T]
    flips = np.sign(left[first, np.arange(rank)])
    assert np.abs(d.transform_weight(W) - d.modes[:, :rank] * (flips * s) @ V.T).max() <= 1e-12


def test_weights_take_operator_and_gauge() -> None:
    W = np.random.default_rng(0).normal(size=(6, 9))
    op = df.operators.difference(6, 1, "path")
    d = df.descramble_weights(W, operator=op, gauge="identity")
    assert d.operator is op
    assert d.gauge.distance == pytest.approx(np.linalg.norm(d.matrix - np.eye(6)), abs=1e-12)
    D = difference_matrix(6, 1, "path")
    assert abs(d.cost - best_cost(D.T @ D, W @ W.T)) <= 2 * rounding(D.T @ D, W @ W.T)


# Trace and diagonal -------------------------------------------------------------------------------

SHAPES = [(1, 1), (2, 2), (5, 5), (12, 12), (40, 40), (6, 4), (4, 6), (1, 3), (3, 1)]
SHAPES += [(150, 150), (150, 100), (130, 180)]  # not by LAPACK


def square(W: Array) -> Array:
    """The columns that the diagonal of P W meets."""
    n, m = W.shape
    return np.pad(W[:, :n], ((0, 0), (0, max(0, n - m))))


def singular(n: int) -> Array:
    rng = np.random.default_rng(n)
    return np.asarray(rng.normal(size=(n, n // 2)) @ rng.normal(size=(n // 2, n)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "singular", "zero", "identity"])
def test_the_trace_is_the_nuclear_norm(shape: tuple[int, int], kind: str) -> None:
    n, m = shape
    W = {
        "random": lambda: np.random.default_rng(n).normal(size=shape),
        "singular": lambda: singular(max(shape))[:n, :m],
        "zero": lambda: np.zeros(shape),
        "identity": lambda: np.eye(n, m),
    }[kind]()
    d = df.descramble_weights(W, criterion="trace")
    S, P = square(W), d.matrix
    nuclear = np.linalg.norm(S, "nuc")
    tolerance = 50 * n * EPS * nuclear
    assert abs(d.cost - nuclear) <= tolerance
    assert abs(np.trace(P @ S) - nuclear) <= tolerance
    assert d.cost <= d.bound + tolerance
    assert d.bound - nuclear <= tolerance
    assert d.initial_cost == pytest.approx(np.trace(S), abs=tolerance)
    assert orthogonality(P) <= 1e-12 * n
    assert d.orthogonality_error <= 1e-12 * n
    product = P @ S
    assert np.abs(product - product.T).max() <= tolerance
    assert np.linalg.eigvalsh((product + product.T) / 2).min() >= -tolerance
    assert d.stationarity <= 50 * n * EPS
    assert d.iterations == 0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 10), m=st.integers(1, 10))
@settings(deadline=None, max_examples=40)
def test_no_random_matrix_has_a_larger_trace(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(n, m))
    d = df.descramble_weights(W, criterion="trace")
    S = square(W)
    for _ in range(20):
        assert np.trace(random_orthogonal(n, rng) @ S) <= d.cost + 50 * n * EPS * d.bound


@pytest.mark.parametrize("criterion", ["trace", "diagonal"])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 3e37), (np.float32, 1e-44), (np.float64, 1e100), (np.float64, 1e-60)],
)
def test_matrix_criteria_at_the_ends_of_the_range(criterion: str, dtype: Any, scale: float) -> None:
    W = (np.round(np.random.default_rng(0).normal(size=(4, 4)) * 3) * scale).astype(dtype)
    d = df.descramble_weights(W, criterion=criterion)
    wide = W.astype(np.float64) / scale
    power = 1 if criterion == "trace" else 2
    value = np.trace(d.matrix @ wide) if power == 1 else diagonal_criterion(d.matrix, wide)
    assert d.cost == pytest.approx(value * scale**power, rel=1e-12, abs=0)
    assert d.stationarity <= 1e-6
    assert orthogonality(d.matrix) <= 1e-12 * 4


@pytest.mark.parametrize("criterion", ["trace", "diagonal"])
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_weights_whose_squares_leave_float64_give_an_answer_or_a_value_error(
    criterion: str, scale: float
) -> None:
    W = np.random.default_rng(0).normal(size=(4, 4))
    expected = df.descramble_weights(W, criterion=criterion)
    try:
        d = df.descramble_weights(scale * W, criterion=criterion)
    except ValueError:
        return
    assert d.stationarity <= 1e-6
    # Both are the same stationary point, found to a root of eps.
    assert np.abs(d.matrix - expected.matrix).max() <= 1e-6


def test_a_reflection_is_taken_where_it_is_better() -> None:
    """The originals search rotations only, and miss the optimum by 2 sigma_min."""
    W = np.diag([3.0, 2.0, -1.0])
    d = df.descramble_weights(W, criterion="trace")
    assert np.abs(d.matrix - np.diag([1, 1, -1])).max() <= 1e-14
    assert d.cost == pytest.approx(6.0, rel=1e-14)


def diagonal_criterion(P: Array, S: Array) -> float:
    return float((np.diag(P @ S) ** 2).sum())


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    deficient=st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_the_diagonal_criterion_climbs_to_a_certified_stationary_point(
    seed: int, n: int, m: int, deficient: bool
) -> None:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(n, m))
    if deficient:
        W = rng.normal(size=(n, 1)) @ rng.normal(size=(1, m))
    d = df.descramble_weights(W, criterion="diagonal")
    S, P = square(W), d.matrix
    tolerance = 50 * n * EPS * np.linalg.norm(S) ** 2
    start = df.descramble_weights(W, criterion="trace").matrix
    assert abs(d.cost - diagonal_criterion(P, S)) <= tolerance
    assert d.cost >= diagonal_criterion(start, S) - tolerance
    assert abs(d.initial_cost - diagonal_criterion(np.eye(n), S)) <= tolerance
    assert d.cost <= d.bound + tolerance
    assert d.bound <= np.linalg.norm(S) ** 2 + tolerance
    assert orthogonality(P) <= 1e-12 * n
    gradient = np.diag(P @ S)[:, None] * S.T
    skew = gradient @ P.T
    size = np.linalg.norm(gradient)
    measured = np.linalg.norm(skew - skew.T) / 2 / size if size > 0 else 0.0
    assert abs(measured - d.stationarity) <= 50 * n * EPS
    # The climb ends where a step gains nothing in float64: a root of eps short of stationary.
    assert d.stationarity <= 1e-6


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_no_random_matrix_beats_the_diagonal_criterion(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(n, n))
    d = df.descramble_weights(W, criterion="diagonal")
    slack = 1e-6 * d.bound  # the distance to the stationary point, as above
    for _ in range(50):
        skew = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-4, -1)
        assert diagonal_criterion(cayley(skew - skew.T) @ d.matrix, W) <= d.cost + slack
        assert diagonal_criterion(random_orthogonal(n, rng), W) <= d.cost + slack


def test_a_diagonal_of_orthogonal_columns_reaches_its_bound() -> None:
    rng = np.random.default_rng(0)
    W = random_orthogonal(6, rng) * [1, 2, 3, 4, 5, 6.0]
    d = df.descramble_weights(W, criterion="diagonal")
    assert d.cost == pytest.approx(91.0, rel=50 * 6 * EPS)
    assert d.bound == pytest.approx(91.0, rel=50 * 6 * EPS)


@pytest.mark.parametrize("criterion", ["trace", "diagonal"])
def test_matrix_descramblers_map_as_their_matrix(criterion: str) -> None:
    rng = np.random.default_rng(0)
    W, b = rng.normal(size=(7, 5)), rng.normal(size=7)
    d = df.descramble_weights(W, criterion=criterion)
    assert d.criterion == criterion
    P, x = d.matrix, rng.normal(size=(4, 7))
    for got, expected in [
        (d.transform_weight(W, b)[0], P @ W),
        (d.transform_weight(W, b)[1], P @ b),
        (d.transform(x), x @ P.T),
        (d.inverse_transform(d.transform(x)), x),
        (d.transform_next_weight(x), x @ P.T),
    ]:
        assert np.abs(got - expected).max() <= 1e-13
    torch = pytest.importorskip("torch")
    W = torch.ones(2, 2)
    assert isinstance(df.descramble_weights(W, criterion=criterion).matrix, torch.Tensor)


# Errors -------------------------------------------------------------------------------------------

W22 = np.eye(2)


@pytest.mark.parametrize("criterion", ["trace", "diagonal"])
@pytest.mark.parametrize(
    "unused",
    [
        {"bias": np.zeros(2)},
        {"input_second_moment": np.eye(2)},
        {"input_mean": np.zeros(2)},
        {"operator": df.operators.fourier(2)},
        {"gauge": "identity"},
        {"gauge": np.eye(2)},
    ],
    ids=lambda unused: next(iter(unused)),
)
def test_an_argument_without_use_is_refused(criterion: str, unused: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(unused))}: .*{criterion}"):
        df.descramble_weights(W22, criterion=criterion, **unused)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: df.descramble(np.ones((3, 4)), operator=df.operators.fourier(5)), "operator: "),
        (lambda: df.descramble(np.array([[1.0, np.nan]])), "row 0, column 1"),
        (lambda: df.descramble(np.zeros((0, 3))), "no samples"),
        (lambda: df.descramble(df.Covariance(3)), "no samples"),
        (lambda: from_moment(np.diag([1.0, -0.1])), "semidefinite"),
        (lambda: from_moment(np.diag([-1.0, -1.0])), "semidefinite"),
        (lambda: from_moment(np.eye(2), center=True), "center: "),
        (lambda: df.descramble_many([np.ones((2, 3)), np.full((1, 3), np.inf)]), "row 0, column 0"),
        (lambda: df.descramble_weights(np.ones(3)), r"W: got shape \(3,\)"),
        (lambda: df.descramble_weights(np.full((2, 2), np.nan)), "W: .*row 0, column 0"),
        (lambda: df.descramble_weights(W22, bias=np.zeros(3)), "bias: "),
        (lambda: df.descramble_weights(W22, bias=np.array([0, np.nan])), "bias: "),
        (lambda: df.descramble_weights(W22, input_mean=np.zeros(3)), "input_mean: "),
        (lambda: df.descramble_weights(W22, input_second_moment=np.eye(3)), "input_second_moment"),
        (lambda: df.descramble_weights(W22, criterion="entropy"), "criterion: "),
        (lambda: df.descramble_weights(W22, restrict="diagonal"), "restrict: "),
        (lambda: df.descramble_weights(W22, gauge="up"), "gauge: "),
        (lambda: df.descramble_weights(np.ones((2, 2, 2)), criterion="trace"), "W: "),
        (lambda: df.descramble_weights(np.full((2, 2), np.inf), criterion="trace"), "W: "),
        (lambda: df.descramble_weights(np.full((2, 2), np.nan), criterion="diagonal"), "W: "),
    ],
)
def test_what_cannot_be_descrambled_is_a_value_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: df.descramble([[1.0, 2.0]]), "list"),
        (lambda: df.descramble(np.ones((2, 2), dtype=int)), "int64"),
        (lambda: df.descramble(np.ones((2, 2)), operator="fourier"), "operator: "),
        (lambda: df.descramble(np.ones((2, 2)), operator=np.eye(2)), "operator: "),
        (lambda: df.descramble_weights([[1.0]]), "W: got list"),
        (lambda: df.descramble_weights(W22, bias=[0.0, 0.0]), "bias: "),
        (lambda: df.descramble_weights(W22.astype(int), criterion="trace"), "W: "),
        (lambda: df.descramble(np.ones((3, 2))).transform([1.0, 2.0]), "samples: "),
    ],
)
def test_what_is_no_floating_array_is_a_type_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_a_negative_moment_is_refused_also_where_only_its_top_is_solved() -> None:
    with pytest.raises(ValueError, match="semidefinite"):
        from_moment(np.diag([1.0, 0.5, -5.0]), k=1)


# Results ------------------------------------------------------------------------------------------


def test_results_are_frozen_and_repeatable() -> None:
    x = samples(30, 70, 0)
    d, again = df.descramble(x, gauge="identity"), df.descramble(x, gauge="identity")
    assert d.matrix.tobytes() == again.matrix.tobytes()
    assert d.cost == again.cost
    assert (d.criterion, d.route.device, d.route.dtype) == ("smoothness", "cpu", "float64")
    assert d.route.driver
    with pytest.raises(dataclasses.FrozenInstanceError):
        d.cost = 0.0  # type: ignore[misc]


@pytest.mark.usefixtures("default_threads")
def test_threads_change_the_cost_by_rounding_only() -> None:
    x = samples(300, 260, 0)  # large enough for LAPACK's own threads
    costs = []
    for threads in (1, 2):
        df.set_num_threads(threads)
        costs.append(df.descramble(x))
    assert abs(costs[0].cost - costs[1].cost) <= costs[0].cost_error + costs[1].cost_error


def test_a_block_that_k_cuts_off_is_reported() -> None:
    for k in (1, 3):
        assert from_moment(np.eye(8), k=k).blocks == ((0, k),)
    assert from_moment(np.diag([3.0, 2.0, 2.0, 1.0]), k=2).blocks == ((1, 2),)
    assert from_moment(np.diag([3.0, 2.0, 1.0, 1.0]), k=2).blocks == ()
