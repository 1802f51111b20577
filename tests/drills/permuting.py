"""Nearest permutations, matched neurons and modes, and permuted weights, beside the best."""

from __future__ import annotations

import numpy as np
from costs import (
    ROUNDED,
    Array,
    Rng,
    as_integer,
    as_integers,
    ends,
    least_total,
    penalties,
    shuffled,
)
from drill import Tally, drill
from ordering import ROUGH, moments
from scipy.optimize import linear_sum_assignment

import descramble_fast as df


def permuted(tally: Tally, trial: str, what: str, P: Array) -> None:
    """A permutation of P's rows beside the best in exact arithmetic, and applied."""
    if what in ("nearest", "signed"):
        r = df.nearest_permutation(P, signed=what == "signed")
    else:
        found = df.descramble_weights(P, criterion=what, restrict="permutation")
        assert isinstance(found, df.Permutation)
        r = found
    p = np.asarray(r.permutation)

    def check(holds: bool, why: str) -> None:
        tally.check(bool(holds), lambda: f"{trial}, {what}: {why}; {r} of {P.tolist()}")

    check(sorted(p.tolist()) == list(range(len(P))), "no order")
    gain, unit = as_integers(P), 1
    first = sum((gain * gain if what == "diagonal" else gain).diagonal())
    if what == "signed":
        gain = abs(gain)
    elif what == "diagonal":
        gain, unit = gain * gain, 2**1074
    # Trace and diagonal meet places with the columns there are; places are the nearest's rows.
    met = gain.T[: len(P)] if what in ("trace", "diagonal") else gain
    best = -least_total((-met).tolist())
    got = sum(met[i, q] for i, q in enumerate(p[: len(met)]))
    # As of an assignment: a few eps of the largest, for each step and each pair.
    tolerance = (16 * len(P) * len(met) * max(abs(x) for x in gain.ravel()) >> 52) + unit
    check(0 <= best - got <= tolerance, "not the best")
    check(abs(as_integer(r.cost) * unit - got) <= tolerance, "cost")
    check(abs(as_integer(r.bound) * unit - got) <= tolerance, "bound")
    check(abs(as_integer(r.initial_cost) * unit - first) <= tolerance, "initial cost")
    if r.signs is not None:
        entries = P[np.arange(len(P)), p]
        check(all(np.asarray(r.signs) * entries >= 0), "signs")
        if (np.asarray(r.signs) < 0).any():
            return
    layer = df.apply_permutation(r, P, P[:, 0])
    assert layer.bias is not None
    same = np.array_equal(layer.weight, P[p]) and np.array_equal(layer.bias, P[p, 0])
    check(same, "applied otherwise")


@drill(
    "matching",
    "nearest permutations, matched neurons and modes and permuted weights are the best there are",
)
def matching(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(5)
    families = [each for each in ROUNDED if each not in (ends, penalties)]
    for trial in range(12_000 if long else 150):
        n, m = (int(k) for k in rng.integers(1, 8, size=2))
        family = families[trial % len(families)]
        where = f"trial {trial}, {family.__name__}"
        for what, shape in [("nearest", (n, n)), ("signed", (n, n)), ("trace", (n, m))]:
            permuted(tally, where, what, shuffled(rng, family(rng, *shape)[None])[0])
        squared = shuffled(rng, family(rng, n, m)[None])[0]
        if 1e-140 < np.abs(squared).max() < 1e150:  # else the squares leave the range
            permuted(tally, where, "diagonal", squared)
        if trial % 4 == 0:
            neurons(tally, rng, trial, n, m)


def neurons(tally: Tally, rng: Rng, trial: int, n: int, m: int) -> None:
    """Match neurons of any scale, some of them constant or equal; and modes."""
    rows = int(rng.integers(2, 40))
    a, b = (rng.integers(-2, 3, size=(rows, k)).astype(float) for k in (n, m))
    for x in (a, b):
        x[:, rng.random(x.shape[1]) < 0.2] = 1
    shared = min(n, m)
    b[:, :shared] = np.where(rng.random(shared) < 0.5, a[:, :shared], b[:, :shared])
    about = [x - x.mean(axis=0) for x in (a, b)]
    lengths = [np.sqrt((x * x).sum(axis=0)) for x in about]
    for x, length in zip(about, lengths, strict=True):
        x /= np.where(length > 0, length, 1)
    correlation, signed = about[0].T @ about[1], bool(trial % 8)
    gain = abs(correlation) if signed else correlation
    scales = [2.0 ** rng.integers(-400, 400, size=k) for k in (n, m)]
    r = df.match_neurons(a * scales[0], b * scales[1], signed=signed)
    where = f"trial {trial}, {a.tolist()} and {b.tolist()}, signed {signed}: {r}"
    p = np.asarray(r.permutation)
    at = np.flatnonzero(p >= 0)
    tally.check(len(at) == shared == len(set(p[at].tolist())), f"{where}: no matching")
    best = gain[linear_sum_assignment(gain, maximize=True)].sum()
    got = gain[at, p[at]].sum()
    tally.check(abs(best - got) <= 1e-12, f"{where}: {got}, not {best}")
    tally.check(abs(r.cost - got) <= 1e-12, f"{where}: cost, not {got}")
    tally.check(abs(r.bound - got) <= 1e-12, f"{where}: bound, not {got}")
    size = n + 2
    make, _ = ROUGH[list(ROUGH)[trial // 4 % len(ROUGH)]]
    exponent = int(rng.choice([0, -500, 500]))
    C = np.ldexp(moments(rng, size), exponent)
    k = int(rng.integers(1, size + 1))
    d = df.descramble(df.Covariance.from_moments(C), operator=make(size), k=k)
    match = df.match_modes(d)
    energy = (np.asarray(d.components).T @ d.operator.modes()) ** 2
    for begin, end in d.operator.blocks:
        energy[:, begin:end] = energy[:, begin:end].sum(axis=1, keepdims=True)
    best = energy[linear_sum_assignment(energy, maximize=True)].mean()
    found = energy[np.arange(k), match.modes]
    where = f"trial {trial}, modes of {C.tolist()}, k {k}: {match}"
    tally.check(len(set(match.modes.tolist())) == k, f"{where}: no matching")
    tally.check(abs(found.mean() - best) <= 1e-12, f"{where}: {found.mean()}, not {best}")
    tally.check(abs(match.score - best) <= 1e-12, f"{where}: score, not {best}")
    # Energies are exact to 1e-14; their roots, next to 0, to that number's.
    exact = np.abs(match.correlation - np.sqrt(np.minimum(1, found))).max() <= 1e-7
    tally.check(bool(exact), f"{where}: correlations, not of energies {found}")
