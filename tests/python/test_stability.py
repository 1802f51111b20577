"""Sampling errors of descramblers, against dense linear algebra and known sampling errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import (
    difference_matrix,
    fourier_derivative,
    jackknife,
    leave_one_out,
    random_orthogonal,
    worst,
)

import descramble_fast as df

Array = NDArray[np.float64]
SPECTRUM = np.array([8.0, 4.0, 2.0, 1.0])


def gaussian(rows: int, variances: Any, seed: int, mean: float = 0.0) -> Array:
    """Rows of these variances, in a random basis that is the same for every seed."""
    basis = random_orthogonal(len(variances), np.random.default_rng(99))
    x = np.random.default_rng(seed).normal(size=(rows, len(variances)))
    return np.asarray((x * np.sqrt(variances)) @ basis + mean)


def moments(parts: Any) -> list[df.Covariance]:
    return [df.Covariance.from_samples(part) for part in parts]


def stability(parts: Any, **options: Any) -> df.Stability:
    return df.descramble(np.concatenate(parts), **options).stability(moments(parts))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("cuts", [[100], [80, 160, 240], [40, 100, 130]], ids=str)
def test_as_computed_from_the_samples(cuts: list[int], k: int | None, center: bool) -> None:
    n = 6
    parts = np.split(gaussian(300, np.geomspace(1, 0.01, n), 0, mean=0.5), cuts)
    s = stability(parts, center=center, k=k)
    D = fourier_derivative(n, 2)
    for name, expected in leave_one_out(parts, D.T @ D, center, k or n).items():
        assert worst(getattr(s, name), expected) < 1e-10, name
    assert s.ratio == pytest.approx(s.transferred.sum() / s.optimum.sum())
    assert isinstance(s.cost_error, float)


def test_equal_parts_give_efrons_formula() -> None:
    without = np.random.default_rng(0).normal(size=(7, 3))
    expected = np.sqrt(6 / 7 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    assert worst(jackknife(list(without), [5] * 7), expected) < 1e-14


def test_the_operator_and_any_gauge_are_kept() -> None:
    n = 5
    parts = np.split(gaussian(200, np.geomspace(1, 0.1, n), 1), 4)
    D = difference_matrix(n, 1, "path")
    s = stability(parts, operator=df.operators.difference(n, 1, "path"), gauge="identity")
    for name, expected in leave_one_out(parts, D.T @ D, False, n).items():
        assert worst(getattr(s, name), expected) < 1e-10, name


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("equal", [True, False])
def test_errors_are_the_known_ones_of_gaussian_samples(equal: bool, center: bool) -> None:
    """Anderson: eigenvalues have variance 2 c²/N, components Σ cᵢcⱼ/(N (cᵢ - cⱼ)²).

    Over 60 draws the mean of a variance from 20 parts is known to √(2/(19·60)) = 4 %.
    """
    rows, draws, g = 2000, 60, 20
    cuts = np.arange(1, g) * rows // g if equal else np.arange(1, g) ** 2 * rows // g**2
    found = []
    for seed in range(draws):
        x = gaussian(rows, SPECTRUM, seed, mean=3.0 if center else 0.0)
        found.append(stability(np.split(x, cuts), center=center))
    variances = np.mean([s.eigenvalue_errors**2 for s in found], axis=0)
    ratios = variances / (2 * SPECTRUM**2 / rows)
    assert np.abs(ratios - 1).max() < 0.2
    gaps = SPECTRUM[:, None] - SPECTRUM + np.diag([np.inf] * 4)
    sines = (SPECTRUM[:, None] * SPECTRUM / gaps**2).sum(axis=1) / rows
    assert np.abs((1 - np.mean([s.overlap for s in found], axis=0)) / sines - 1).max() < 0.2


def test_the_error_of_the_cost_is_its_spread_over_draws() -> None:
    rows = 2000
    costs = [df.descramble(gaussian(rows, SPECTRUM, seed)).cost for seed in range(1000, 1400)]
    errors = [
        stability(np.split(gaussian(rows, SPECTRUM, seed), 20)).cost_error for seed in range(60)
    ]
    # 400 draws know the spread to 3.5 %, 60 jackknives of 20 parts theirs to 2 %.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(costs), rel=0.15)


def test_the_ratio_goes_to_one_as_samples_grow() -> None:
    variances = np.geomspace(1, 0.01, 8)
    excess = [
        stability(np.split(gaussian(rows, variances, 5), 2)).ratio - 1
        for rows in (200, 2_000, 20_000)
    ]
    assert 0 < excess[2] < excess[1] / 4 < excess[0] / 16
    assert excess[2] < 0.01


def test_overlap_tells_components_from_accidents() -> None:
    variances = [16.0, 8.0, *[1.0] * 10]
    for parts in (2, 10, 20):
        s = stability(np.split(gaussian(2000, variances, 3), parts))
        assert s.overlap[:2].min() > 0.98
        assert s.overlap[2:].mean() < 0.6
        assert 0 <= s.overlap.min() <= s.overlap.max() <= 1


def test_a_repeated_eigenvalue_counts_as_its_block() -> None:
    basis = random_orthogonal(8, np.random.default_rng(0))[:5]
    x = gaussian(400, np.geomspace(1, 0.05, 5), 0) @ basis
    d = df.descramble(x)
    assert d.blocks == ((5, 8),)
    s = d.stability(moments(np.split(x, 4)))
    assert s.overlap[5:] == pytest.approx(1, abs=1e-9)
    assert s.ratio > 1


def test_moments_without_means_will_do_unless_centred() -> None:
    parts = np.split(gaussian(300, SPECTRUM, 0), [100])
    d = df.descramble(np.concatenate(parts))
    known = d.stability(moments(parts))
    bare = d.stability([df.Covariance.from_moments(p.T @ p / len(p), weight=len(p)) for p in parts])
    for each in dataclasses.fields(df.Stability):
        assert worst(getattr(bare, each.name), getattr(known, each.name)) < 1e-10, each.name


def test_rounding_alone_is_perfect() -> None:
    one, other = np.array([[2.0, -1.0, 0.0, 0.0]] * 20), np.array([[0.0, 1.0, 1.0, -3.0]] * 20)
    s = stability([one, one])
    assert s.raw.min() > 1 > 1e12 * s.optimum.max()
    assert s.ratio == 1.0
    assert stability([one * 0, one * 0]).ratio == 1.0
    # Each half alone is constant after its own P, but not after the other's.
    assert stability([one, other]).ratio > 1e6


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch")
    parts = np.split(gaussian(300, SPECTRUM, 0), 3)
    expected = stability(parts, center=True)
    tensors = [torch.from_numpy(part) for part in parts]
    d = df.descramble(torch.cat(tensors), center=True)
    s = d.stability(moments(tensors))
    mixed = d.stability(moments(parts))
    for each in dataclasses.fields(df.Stability):
        if each.name != "cost_error":
            assert isinstance(getattr(s, each.name), torch.Tensor)
            assert isinstance(getattr(mixed, each.name), torch.Tensor)
        assert worst(getattr(s, each.name), getattr(expected, each.name)) < 1e-10, each.name
    assert s.ratio == pytest.approx(expected.ratio)


def test_bad_parts_are_refused() -> None:
    x = gaussian(100, SPECTRUM, 0)
    d = df.descramble(x)
    whole = df.Covariance.from_samples(x)
    with pytest.raises(TypeError, match="parts: got Covariance, expected a sequence"):
        d.stability(whole)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parts: entry 1 is ndarray, expected a Covariance"):
        d.stability([whole, x])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="parts: got 1, expected 2 or more"):
        d.stability([whole])
    with pytest.raises(ValueError, match="parts: entry 1 has 3 features, expected 4"):
        d.stability([whole, df.Covariance(3)])
    with pytest.raises(ValueError, match="parts: entry 0 has no samples"):
        d.stability([df.Covariance(4), whole])
    bare = df.Covariance.from_moments(np.eye(4))
    with pytest.raises(ValueError, match="parts: entry 1 has no mean, which centring needs"):
        df.descramble(x, center=True).stability([whole, bare])
