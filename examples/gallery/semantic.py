"""
Semantic development: modes in the order of learning
====================================================

A two-layer linear network learns which properties eight living things have. Does descrambling its
hidden layer recover the modes of the data, in the order in which they were learned? And can the
layers of successive checkpoints be compared?
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

import descramble_fast as df

Array = NDArray[np.float64]

# %%
# The data in the manner of Saxe, McClelland and Ganguli: items are the leaves of a binary tree, and
# each node is a property that the items below it have. Nodes of one level would give equal
# singular values, hence modes known only together; so the left branch of each pair weighs more.
items = 8
properties, weights = [np.ones(items)], [1.0]
for width, weight in ((4, 1.0), (2, 0.9), (1, 0.8)):
    for node in range(items // width):
        below = np.zeros(items)
        below[node * width : (node + 1) * width] = 1
        properties.append(below)
        weights.append(weight * 0.93**node)
Y = np.array(weights)[:, None] * np.array(properties)  # property by item
U, s, Vt = np.linalg.svd(Y, full_matrices=False)
print("singular values of the input-output correlation:", np.round(s, 2))

# %%
# Gradient descent on the mean squared error; items are one-hot inputs. The weights begin very
# small: a mode of strength s is then learned after about ln(1/a)/s, and what it happened to begin
# with, a, matters little beside s. (From 1e-3 the last three modes, 15% apart, come out of order on
# some seeds.)
n, rate, steps, every = items, 0.02, 5000, 50
rng = np.random.default_rng(0)
W1, W2 = 1e-8 * rng.normal(size=(n, items)), 1e-8 * rng.normal(size=(len(Y), n))
checkpoints, strengths = [], []
for step in range(steps + 1):
    if step % every == 0:
        checkpoints.append(W1.copy())
        strengths.append(np.diag(U.T @ W2 @ W1 @ Vt.T) / s)
    error = W2 @ W1 - Y
    W1, W2 = W1 - rate * W2.T @ error, W2 - rate * error @ W1.T
learned = np.array([every * np.argmax(strength > 0.5) for strength in np.array(strengths).T])
print("steps to half of each mode:", learned)
assert np.all(np.array(strengths)[-1] > 0.95)
assert np.all(np.diff(learned) > 0)
assert learned[-1] > 2 * learned[0]

# %%
# The library's part: the hidden signals of all items, their descrambler, and W1 read through it.
# P W1 = T Σ Vᵀ, so its coefficients in the operator's modes are the layer's own modes, in order.
operator = df.operators.fourier(n)


def modes(W: Array, samples: Array) -> Array:
    """Return the layer's modes over the items, a unit vector in each row, by P of the samples."""
    d = df.descramble(samples @ W.T, operator=operator)
    found = np.asarray(operator.analyze(np.asarray(d.transform_weight(W)).T)).T
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def correlations(found: Array) -> Array:
    """Absolute correlation of each mode with the data's mode of the same place."""
    return np.asarray(np.abs((found * Vt).sum(axis=1)))


trained, untrained = checkpoints[-1], checkpoints[0]
every_item = np.eye(items)
match, control = (correlations(modes(W, every_item)) for W in (trained, untrained))
print("trained:  ", np.round(match, 3))
print("untrained:", np.round(control, 3))
assert match.min() >= 0.95
assert control.min() < 0.5

# %%
# All eight items are all the data: there is nothing to hold out. With noise on the inputs there is;
# P from one half of 40000 noisy items reads the same modes, and is measured on the other half.
noisy = every_item[rng.integers(items, size=40000)] + 0.1 * rng.normal(size=(40000, items))
halves = np.array_split(noisy, 2)
other = correlations(modes(trained, halves[0]))
parts = [df.Covariance.from_samples(half @ trained.T) for half in halves]
ratio = df.descramble(noisy @ trained.T, operator=operator).stability(parts).ratio
print("noisy, first half:", np.round(other, 3), f"roughness of the other half: {ratio:.3f}")
assert other.min() >= 0.95
assert 1 <= ratio < 1.1

# %%
# Checkpoints
# -----------
# The gauge of each is the P before it: of all P that are optimal now, the nearest to that. The
# canonical gauge knows no past; a sign flips whenever another entry of a component becomes its
# largest, and within the frequencies' pairs nothing is turned back.
# Much of what either moves is before anything is learned, when the layer is noise.
found: dict[str, list[Array]] = {"previous P": [], "canonical": []}
for W in checkpoints:
    for gauge, past in found.items():
        asked = past[-1] if past and gauge != "canonical" else "canonical"
        d = df.descramble(every_item @ W.T, operator=operator, gauge=asked)
        past.append(np.asarray(d.matrix))
since: dict[str, float] = {}
moves = {g: np.array([np.linalg.norm(b - a) for a, b in pairwise(p)]) for g, p in found.items()}
for gauge, move in moves.items():
    since[gauge] = float(move[learned[0] // every :].sum())
    print(f"{gauge}: P moves {move.sum():.1f}, {since[gauge]:.1f} since the first mode was learned")
assert since["previous P"] < 0.7 * since["canonical"]

# %%
# The picture: how modes grow, the layer beside its control, and how far the picture moves.
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
time = every * np.arange(len(checkpoints))
for i, strength in enumerate(np.array(strengths).T):
    axes[0].plot(time, strength, color=plt.get_cmap("viridis")(i / items), label=f"{i + 1}")
axes[0].set(xlabel="step", ylabel="strength / final", title="modes as they are learned")
axes[0].legend(title="mode", fontsize=7, ncols=2)
for panel, W, name in ((axes[1], trained, "trained"), (axes[2], untrained, "untrained, control")):
    shown = np.abs(modes(W, every_item) @ Vt.T)
    ends = (0.5, items + 0.5, items + 0.5, 0.5)
    image = panel.imshow(shown, vmin=0, vmax=1, cmap="viridis", extent=ends)
    panel.set(xlabel="mode of the data", ylabel="mode of the layer", title=name)
figure.colorbar(image, ax=axes[2], label="|correlation|")
for (gauge, move), colour in zip(moves.items(), ("#0072B2", "#D55E00"), strict=True):
    axes[3].plot(time[1:], move, ".-", color=colour, label=gauge, linewidth=1)
axes[3].set(xlabel="step", ylabel="move of P", title="between checkpoints")
axes[3].legend(title="gauge")

# %%
# What it tells, and what not
# ---------------------------
# The modes are the data's; descrambling finds them because the layer has taken them in, which the
# untrained layer has not. It finds them in the order of their strength, which in a linear network
# is the order of learning. A hidden layer rotated by any orthogonal matrix would read the same.
#
# Source: the network and data are in the manner of Saxe, McClelland and Ganguli, *A mathematical
# theory of semantic development in deep neural networks*; descrambling: Sule, Spencer and Czaja,
# arXiv 2301.07820. Neither text was consulted. What differs: the weights of the branches, which
# keep singular values apart, and the sizes.
