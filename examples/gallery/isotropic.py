"""
Isotropic data: principal components become Fourier modes
=========================================================

Where inputs have second moment I, a layer's descrambler is known from its weights alone,
P = T Uᵀ. How many samples does it take to find it, at what rate does P arrive, and at which P,
given that many are equally good? Nothing is trained here: what is seen was not learned.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.stats import ortho_group

import descramble_fast as df

QUICK = bool(os.environ.get("DESCRAMBLE_FAST_QUICK"))  # fewer steps, the same claims
DRAWS, LONGEST = (8, 17) if QUICK else (16, 20)
SIZES = 2 ** np.arange(9, LONGEST + 1)
Array = NDArray[np.float64]
n, m = 32, 64

# %%
# Three layers of 32 neurons on 64 inputs. In the first the variances of the components fall by a
# fixed factor, from 1 to 0.001. The controls are layers as they come before any training: one
# of independent normal weights, one with orthonormal rows, where all variances are equal.
rng = np.random.default_rng(0)
left, right = (ortho_group.rvs(size, random_state=size) for size in (n, m))
layers = {
    "separated": (left * np.geomspace(1, 1e-3, n) ** 0.5) @ right[:n],
    "independent": rng.normal(size=(n, m)) / np.sqrt(m),
    "orthonormal": left @ right[:n],
}

# %%
# The match, on other samples
# ---------------------------
# P comes from one half of the samples, the principal components from the other. Seen through P,
# component k should lie in the frequency of the k-th smoothest mode: frequency 0 has one mode, the
# others a cosine and a sine, whose energy counts together since P is not unique within the pair.
operator = df.operators.fourier(n)
T = np.asarray(operator.modes())
frequency = (np.arange(n) + 1) // 2
energy: dict[str, Array] = {}
scores, ratio, overlap = dict[str, float](), dict[str, float](), dict[str, float]()
print("2¹⁸ samples in two halves; energy in the right frequency, mean and least")
for name, W in layers.items():
    parts = [df.Covariance.from_samples(rng.normal(size=(8192, m)) @ W.T) for _ in range(32)]
    halves = df.Covariance(n), df.Covariance(n)
    for j, part in enumerate(parts):
        halves[j % 2].merge(part)
    P = np.asarray(df.descramble(halves[0]).matrix)
    seen = df.descramble(df.Covariance.from_moments(P @ halves[1].second_moment() @ P.T))
    match = df.match_modes(seen)
    in_modes = (T.T @ np.asarray(seen.components)) ** 2
    energy[name] = np.array([in_modes[frequency == f].sum(axis=0) for f in range(n // 2 + 1)])
    placed = energy[name][frequency, np.arange(n)]
    scores[name] = float(placed.mean())
    in_order = bool(np.array_equal(frequency[np.asarray(match.modes)], frequency))
    d = df.descramble(df.Covariance(n).merge(halves[0]).merge(halves[1]))
    ratio[name] = d.stability(halves).ratio
    overlap[name] = float(np.asarray(d.stability(parts).overlap).mean())
    print(
        f"{name:<12}{placed.mean():8.4f}{placed.min():8.4f}   matched in order: {in_order}", end=""
    )
    print(f"   roughness / least {ratio[name]:.4f}, overlap {overlap[name]:.3f}")
    if name == "separated":
        assert in_order
        assert placed.min() >= 0.99
        np.testing.assert_allclose(np.asarray(match.correlation) ** 2, placed)

# %%
# The layer of independent weights, the usual start of a training, matches almost as well: the match
# is a property of the method, not of learning. What it takes is gaps between the variances, and
# neighbours that are close there still mix, here the first two. With all variances equal,
# components are accidents of the samples and nothing is matched, yet P from the other half leaves
# only a few per cent more than the least roughness: that figure does not tell, the overlap does.
assert scores["independent"] > 0.9
assert scores["orthonormal"] < 0.1
assert overlap["separated"] > 0.99 > 0.5 > overlap["orthonormal"]
assert max(ratio.values()) < 1.05

figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
for ax, (name, shown) in zip(axes, energy.items(), strict=True):
    image = ax.imshow(
        shown,
        cmap="viridis",
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower",
        extent=(0.5, n + 0.5, -0.5, n // 2 + 0.5),
    )
    ax.set(title=f"{name}\nin the right frequency: {scores[name]:.3f}", xlabel="component")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
axes[0].set_ylabel("cycles per 32 neurons")
figure.colorbar(image, ax=axes, label="share of energy")

# %%
# The rate, and the gauge
# -----------------------
# `descramble_weights` gives the exact P from W. Turning each cosine and sine of T by an angle, and
# any single mode by a sign, gives another matrix R that is exactly as good, yet far away. A
# canonical gauge names one of them by a rule of signs; a gauge that is an array names the
# one nearest to it.
W = layers["separated"]
exact = df.descramble_weights(W)
assert isinstance(exact, df.SmoothnessDescrambler)
P_exact, moment = np.asarray(exact.matrix), W @ W.T
np.testing.assert_allclose(np.abs(T.T @ P_exact @ np.linalg.svd(W)[0]), np.eye(n), atol=1e-9)
turn = np.zeros((n, n))
for f in range(n // 2 + 1):
    block = np.flatnonzero(frequency == f)
    turn[np.ix_(block, block)] = ortho_group.rvs(2, random_state=f) if len(block) == 2 else -1
R = T @ turn @ T.T @ P_exact
L = np.asarray(operator.apply(np.eye(n)))
least = float(np.trace(L @ R @ moment @ R.T))
apart = float(np.linalg.norm(R - P_exact))
print(f"roughness of R / least: 1 {least / exact.cost - 1:+.0e}; |R - P| = {apart:.2f}")
assert abs(least / exact.cost - 1) < 1e-9
assert apart > 5

# %%
# To first order and for normal inputs, component i turns towards j by a random angle of variance
# cᵢ cⱼ / (cᵢ - cⱼ)² / N. Pairs within one frequency do not count in the reference gauge, which
# turns them back. The sum has no free parameter.
c = np.asarray(exact.eigenvalues)
gaps = c[:, None] - c
other = frequency[:, None] != frequency
expected = np.sqrt((np.outer(c, c)[other] / gaps[other] ** 2).sum() / SIZES)

kinds = ("gauge=P to P", "gauge=R to R", "canonical to P", "canonical to R")
distance = {kind: np.empty((DRAWS, len(SIZES))) for kind in kinds}
flips = np.empty((DRAWS, len(SIZES)), dtype=int)
for draw in range(DRAWS):
    cov = df.Covariance(n)
    for i, size in enumerate(SIZES):
        while cov.count < size:
            cov.update(rng.normal(size=(min(size - cov.count, 8192), m)) @ W.T)
        canonical = df.descramble(cov)
        signs = np.einsum(
            "ij,ij->j", np.asarray(canonical.components), np.asarray(exact.components)
        )
        flips[draw, i] = np.count_nonzero(signs < 0)
        found = {
            "gauge=P to P": np.asarray(df.descramble(cov, gauge=P_exact).matrix) - P_exact,
            "gauge=R to R": np.asarray(df.descramble(cov, gauge=R).matrix) - R,
            "canonical to P": np.asarray(canonical.matrix) - P_exact,
            "canonical to R": np.asarray(canonical.matrix) - R,
        }
        for kind, difference in found.items():
            distance[kind][draw, i] = np.linalg.norm(difference)

rms = {kind: np.sqrt((each**2).mean(axis=0)) for kind, each in distance.items()}
tail = SIZES >= 2**12
slopes = {k: np.polyfit(np.log(SIZES[tail]), np.log(v[tail]), 1)[0] for k, v in rms.items()}
print(f"{DRAWS} draws, rms distance; slope from N = 4096")
for kind, values in rms.items():
    print(f"{kind:<15}{values[0]:8.3f} ... {values[-1]:7.4f}   slope {slopes[kind]:+.3f}")
off = rms["gauge=P to P"][-1] / expected[-1]
print(f"measured / expected at N = {SIZES[-1]}: {off:.3f}")
print("columns with another sign than P's, mean per draw:", flips.mean(axis=0).round(2))


# %%
# In a reference gauge, either of them, P arrives as N⁻¹ᐟ², and at the expected distance. The
# canonical one names a sign by the largest entry of a column, and jumps where two compete for it:
# k other signs put P 2√k away, whatever N; more samples only make them rarer. To R, which is as
# good, it never comes near.
for kind in ("gauge=P to P", "gauge=R to R"):
    assert abs(slopes[kind] + 0.5) < 0.05
assert abs(off - 1) < 0.15
assert flips[:, 0].min() > 0
jumps = np.abs(distance["canonical to P"] - 2 * np.sqrt(flips))[:, SIZES >= 2**16]
print(f"distance of the canonical P less 2√k, N from 65536: at most {jumps.max():.2f}")
assert jumps.max() < 0.4
assert distance["canonical to R"].min() > 5

figure, ax = plt.subplots(figsize=(7.5, 4.4), layout="constrained")
colours = ("#0072B2", "#009E73", "#D55E00", "#CC79A7")
for (kind, values), colour, marker in zip(rms.items(), colours, "osD^", strict=True):
    ax.loglog(SIZES, distance[kind].T, color=colour, alpha=0.2, linewidth=0.8)
    label = kind.replace(" to ", ", distance to ")
    width = 10 if marker == "o" else 5
    ax.loglog(SIZES, values, marker=marker, color=colour, label=label, markersize=width, mfc="none")
ax.loglog(SIZES, expected, "k--", linewidth=1, label="first order, N⁻¹ᐟ²")
ax.set(xlabel="samples N", ylabel="Frobenius distance, rms of draws")
ax.legend(frameon=False, fontsize=9)
ax.grid(alpha=0.3)

# %%
# Inputs that are not isotropic
# -----------------------------
# The control of the assumption: random walks as inputs, whose second moment Σ is far from I. The
# samples' P then does not arrive at that of W alone, but at that of W and Σ.
start, end = np.ogrid[1 : m + 1, 1 : m + 1]
walk = np.minimum(start, end) / m
cov = df.Covariance(n)
while cov.count < 2**17:
    cov.update(np.cumsum(rng.normal(size=(8192, m)), axis=1) @ W.T / np.sqrt(m))
known = df.descramble_weights(W, input_second_moment=walk)
assert isinstance(known, df.SmoothnessDescrambler)
reference = np.asarray(known.matrix)
missed, met = (
    float(np.linalg.norm(np.asarray(df.descramble(cov, gauge=target).matrix) - target))
    for target in (P_exact, reference)
)
print(f"random walks, 131072 samples: {missed:.3f} from W's P, {met:.3f} from that of W and Σ")
assert met < 0.5 < 5 < missed

# %%
# Source
# ------
# S. Sule, R. Spencer, W. Czaja, ACHA 79 (2025) 101793, arXiv 2301.07820: for isotropic data the
# largest principal components are matched with the lowest Fourier modes. The rate and its constant
# are first-order perturbation theory, worked out here. The published text could not be consulted
# for anything else.
#
# What differs from the published setting
# ---------------------------------------
# The layers are random matrices with a chosen spectrum, the inputs normal, and P meets moments of
# other samples than its own. Sizes, rate, gauges and controls are ours.
