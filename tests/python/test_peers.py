"""The benchmark's competitors are what they claim to be: exact gradients, honest costs."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import peers

Array = NDArray[np.float64]


def random_moment(n: int, seed: int) -> Array:
    """Second moment with a spread spectrum and no structure."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, n)) * np.geomspace(1, 0.05, n)
    turned = random_orthogonal(n, seed + 1) @ factor
    return np.asarray(turned @ turned.T / n)


def random_orthogonal(n: int, seed: int) -> Array:
    """Orthogonal matrix from the QR factors of a Gaussian one."""
    gaussian = np.random.default_rng(seed).normal(size=(n, n))
    return np.asarray(np.linalg.qr(gaussian)[0])


@pytest.mark.parametrize("n", [2, 5, 6, 80])
def test_dense_fourier_operator(n: int) -> None:
    """The basis is orthonormal and the operator is the squared spectral second derivative."""
    modes = peers.fourier_modes(n)
    np.testing.assert_allclose(modes.T @ modes, np.eye(n), atol=1e-13)
    frequency = np.fft.fftfreq(n, 1 / n)
    signal = np.random.default_rng(n).normal(size=n)
    second = np.fft.ifft(-(frequency**2) * np.fft.fft(signal)).real
    roughness = signal @ peers.fourier_roughness(n) @ signal
    np.testing.assert_allclose(roughness, second @ second, rtol=1e-11)


@pytest.mark.parametrize("centre", ["identity", "random"])
def test_cayley_gradient_equals_central_differences(centre: str) -> None:
    """Every component of the exact gradient matches a difference quotient."""
    n = 6
    L, C = peers.fourier_roughness(n), random_moment(n, 0)
    P0 = np.eye(n) if centre == "identity" else random_orthogonal(n, 2)
    objective = peers.cayley_objective(L, C, P0, scale=0.7)
    generator = np.random.default_rng(3).normal(size=n * (n - 1) // 2) * 0.4
    value, gradient = objective(generator)
    step = 1e-5
    quotients = [
        (objective(generator + step * e)[0] - objective(generator - step * e)[0]) / (2 * step)
        for e in np.eye(len(generator))
    ]
    np.testing.assert_allclose(gradient, quotients, rtol=1e-7, atol=1e-8 * abs(value))


def test_cayley_chart_is_orthogonal_and_matches_its_objective() -> None:
    """The point of a generator lies in the group and has the cost the objective states."""
    n = 6
    L, C, P0 = peers.fourier_roughness(n), random_moment(n, 4), random_orthogonal(n, 5)
    generator = np.random.default_rng(6).normal(size=n * (n - 1) // 2)
    P = peers.cayley_point(generator, P0)
    np.testing.assert_allclose(P @ P.T, np.eye(n), atol=1e-13)
    A = peers.skew_matrix(generator, n)
    assert A[0, 1] == generator[0]
    assert A[1, 0] == -generator[0]
    value, _ = peers.cayley_objective(L, C, P0)(generator)
    assert value == pytest.approx(peers.smoothness_cost(L, C, P), rel=1e-12)


def test_iterative_peer_descends_and_never_beats_the_optimum() -> None:
    """More iterations never cost more, and the bound of the exact answer holds."""
    n = 16
    L, C, P0 = peers.fourier_roughness(n), random_moment(n, 7), np.eye(n)
    optimum = peers.optimal_cost(L, C)
    costs = [peers.smoothness_cost(L, C, P0)]
    for cap in (1, 3, 10, 30, 100, 400):
        result = peers.iterative_cayley(L, C, P0, max_iterations=cap)
        np.testing.assert_allclose(result.matrix @ result.matrix.T, np.eye(n), atol=1e-12)
        assert result.iterations <= cap
        costs.append(result.cost)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(costs))
    assert costs[-1] < 0.5 * costs[0]
    assert min(costs) >= optimum * (1 - 1e-9)


def test_iterative_peer_converges_where_the_problem_is_small() -> None:
    """On six neurons the published optimiser finds the exact optimum."""
    n = 6
    L, C = peers.fourier_roughness(n), random_moment(n, 8)
    result = peers.iterative_cayley(L, C, np.eye(n), max_iterations=4000)
    assert result.cost == pytest.approx(peers.optimal_cost(L, C), rel=1e-6)


def test_plain_numpy_is_exact() -> None:
    """Both forms of the direct peer reach the bound, also for an odd number of neurons."""
    for n in (6, 7):
        L, C = peers.fourier_roughness(n), random_moment(n, 9)
        optimum = peers.spectral_bound(peers.fourier_eigenvalues(n), C)
        assert peers.optimal_cost(L, C) == pytest.approx(optimum, rel=1e-10)
        for basis in (None, peers.fourier_modes):
            result = peers.plain_numpy(L, C, np.eye(n), basis=basis)
            assert result.cost == pytest.approx(optimum, rel=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
def test_plain_numpy_from_samples(dtype: type[np.float64 | np.float32], tolerance: float) -> None:
    """Forming the moment first gives the same answer, to the precision it is formed in."""
    n = 6
    samples = np.random.default_rng(10).normal(size=(500, n)).astype(np.float32)
    wide = samples.astype(np.float64)
    L, C = peers.fourier_roughness(n), wide.T @ wide / len(wide)
    result = peers.plain_numpy_from_samples(L, C, samples, dtype=dtype)
    assert result.cost == pytest.approx(peers.optimal_cost(L, C), rel=tolerance)


@pytest.mark.parametrize("seed", [11, 12])
def test_trust_regions_reach_the_optimum_from_a_random_start(seed: int) -> None:
    """The Riemannian solver finds the exact optimum on six neurons, whatever the determinant."""
    pytest.importorskip("pymanopt")
    n = 6
    L, C, P0 = peers.fourier_roughness(n), random_moment(n, seed), random_orthogonal(n, seed)
    result = peers.riemannian_trust_regions(L, C, P0, max_seconds=5)
    assert np.linalg.det(result.matrix) == pytest.approx(np.linalg.det(P0), abs=1e-9)
    assert result.cost == pytest.approx(peers.optimal_cost(L, C), rel=1e-6)


def test_trust_regions_stop_at_a_given_target() -> None:
    """A target ends the run early, at a point that meets it."""
    pytest.importorskip("pymanopt")
    n = 6
    L, C, P0 = peers.fourier_roughness(n), random_moment(n, 13), np.eye(n)
    target = peers.optimal_cost(L, C) * 1.01
    early = peers.riemannian_trust_regions(L, C, P0, target=target)
    full = peers.riemannian_trust_regions(L, C, P0, max_seconds=5)
    assert full.cost < early.cost <= target
    assert 0 < early.iterations < full.iterations
    np.testing.assert_allclose(early.matrix @ early.matrix.T, np.eye(n), atol=1e-12)
