"""How far a smoothness descrambler is an accident of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from descramble_fast._arrays import Array, Floats, on_host
from descramble_fast._covariance import Covariance

if TYPE_CHECKING:
    from descramble_fast._descramble import SmoothnessDescrambler


@dataclass(frozen=True, eq=False, kw_only=True)
class Stability:
    """Sampling errors of a smoothness descrambler, and how it fares on other samples.

    The errors are those of the delete-one jackknife over parts of the samples (Efron, *The
    Jackknife, the Bootstrap and Other Resampling Plans*, SIAM 1982), in the form that parts of
    unequal weight need (Busing, Meijer and van der Leeden, *Statistics and Computing* 9, 1999).
    From g parts an error is itself known to about 1/√(2(g - 1)) of its value: 70 % from two halves,
    16 % from twenty parts. Between eigenvalues that differ by no more than their errors it is a
    rough figure.

    Attributes
    ----------
    cost_error : float
        Standard error of the descrambler's `cost`, from sampling; its own `cost_error` is rounding.
    eigenvalue_errors : array, (k,)
        Standard errors of its `eigenvalues`.
    overlap : array, (k,)
        Expected squared projection of each of its components onto the one that endless samples
        would give, or onto their block where the descrambler's `blocks` lists one: 1 less the
        jackknife's estimate of the squared sine between them, at least 0. Columns near 1 can be
        read. Low ones are accidents of the samples, for want of samples or of an eigengap: where
        many components have equal variance it is near 0, for a lone pair of them 0.7 on average
        though chance would give 0.5, and two halves alone see less of it than many parts do.
    raw, transferred, optimum : array, (parts,)
        Roughness of each part of the samples: as it stands, with P from all the other parts, and
        with its own P. Where only k components are kept, the last two are what they retain.
    """

    cost_error: float
    eigenvalue_errors: Array = field(repr=False)
    overlap: Array = field(repr=False)
    raw: Array
    transferred: Array
    optimum: Array

    @property
    def ratio(self) -> float:
        """Roughness with the other parts' P over the optimum, summed over parts; 1 is perfect.

        A part of few samples fits its own P to their noise: the ratio says little where parts have
        not many times n samples. Below 1e-12 of the raw roughness all is rounding, and counts as
        that much.
        """
        raw, transferred, optimum = (
            float(on_host(each).sum()) for each in (self.raw, self.transferred, self.optimum)
        )
        floor = 1e-12 * raw
        return max(transferred, floor) / max(optimum, floor) if raw > 0 else 1.0


def measure(d: SmoothnessDescrambler, parts: Sequence[Covariance]) -> Stability:
    """Leave each part out in turn; one solution at a time is in memory beside d."""
    from descramble_fast._descramble import descramble

    center: bool = d.__dict__["_center"]
    parts = _checked(parts, d.operator.size, center)
    components = on_host(d.components)
    n, k = components.shape

    def solve(cov: Covariance) -> SmoothnessDescrambler:
        return descramble(cov, operator=d.operator, center=center, k=k if k < n else None)

    ell = d.operator.eigenvalues[:k]
    costs, spectra, sines, raw, transferred, optimum = [], [], [], [], [], []
    for j, part in enumerate(parts):
        others = solve(_merged([*parts[:j], *parts[j + 1 :]], center))
        found = on_host(others.components)
        costs.append(others.cost)
        spectra.append(on_host(others.eigenvalues))
        sines.append(1 - _projections(components, found, d.blocks))
        # tr(L P C Pᵀ) with P = T Uᵀ is Σ ℓᵢ uᵢᵀ C uᵢ: one product.
        moment = on_host(part.covariance() if center else part.second_moment())
        transferred.append(float(ell @ ((moment @ found) * found).sum(axis=0)))
        del found, moment
        # Of two halves each one's own P is that of the other's others: solved already.
        if len(parts) > 2:
            del others
            others = solve(part)
        raw.append(others.initial_cost)
        optimum.append(others.cost)
        del others
    if len(parts) == 2:
        raw.reverse()
        optimum.reverse()
    weights = np.array([part.weight for part in parts])
    rest = weights.sum() - weights
    scale = rest / weights / len(parts)  # (g - 1)/g where all weigh the same

    def error(values: Sequence[float] | Sequence[Floats]) -> Floats:
        deviations = values - np.average(values, axis=0, weights=rest)
        return np.asarray(np.sqrt(scale @ deviations**2))

    out = d._kind.out
    return Stability(
        cost_error=float(error(costs)),
        eigenvalue_errors=out(error(spectra)),
        overlap=out(np.clip(1 - scale @ np.array(sines), 0, 1)),
        raw=out(np.array(raw)),
        transferred=out(np.array(transferred)),
        optimum=out(np.array(optimum)),
    )


def _checked(parts: Sequence[Covariance], n: int, center: bool) -> list[Covariance]:
    if isinstance(parts, (Covariance, str, bytes)) or not isinstance(parts, Sequence):
        kind = type(parts).__name__
        raise TypeError(f"parts: got {kind}, expected a sequence of Covariance")
    for i, part in enumerate(parts):
        if not isinstance(part, Covariance):
            raise TypeError(f"parts: entry {i} is {type(part).__name__}, expected a Covariance")
        if part.n_features != n:
            raise ValueError(f"parts: entry {i} has {part.n_features} features, expected {n}")
        if not part.weight > 0:
            raise ValueError(f"parts: entry {i} has no samples")
        if center and not part._core.has_mean:
            raise ValueError(f"parts: entry {i} has no mean, which centring needs")
    if len(parts) < 2:
        raise ValueError(f"parts: got {len(parts)}, expected 2 or more")
    return list(parts)


def _merged(parts: Sequence[Covariance], center: bool) -> Covariance:
    """Moments of all samples; second moments can be added also where a mean is unknown."""
    if not center:
        total = sum(part.weight for part in parts)
        return Covariance.combine(parts, [part.weight / total for part in parts])
    merged = Covariance(parts[0].n_features, parts[0].device)
    for part in parts:
        merged.merge(part)
    return merged


def _projections(u: Floats, v: Floats, blocks: tuple[tuple[int, int], ...]) -> Floats:
    """Squared projection of each column of u on that of v, or on those of its block."""
    out = ((u * v).sum(axis=0)) ** 2
    for start, stop in blocks:
        out[start:stop] = ((v[:, start:stop].T @ u[:, start:stop]) ** 2).sum(axis=0)
    return np.asarray(out)
