"""
A filter read off a trained network
===================================

A network sees white noise and must return the same noise band-pass filtered. Its first layer looks
like noise. Can the filter that it learned, edges and all, be read off its weights, and how much of
that reading needs a descrambler?
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

import descramble_fast as df

QUICK = bool(os.environ.get("DESCRAMBLE_FAST_QUICK"))  # fewer neurons, the same claims
Matrix = NDArray[np.float64]

# %%
# The planted filter keeps frequencies n/8 to 3n/16 (cycles per window) and is periodic. Two fully
# connected layers, a tanh between them, learn it from noise that is drawn afresh for every step.
# Weight decay removes what the initial weights hold outside the band; without it that stays.

n = 64 if QUICK else 1024
low, high = n // 8, 3 * n // 16
rank = 2 * (high - low + 1)  # a cosine and a sine for each frequency that passes
response = torch.zeros(n // 2 + 1)
response[low : high + 1] = 1
torch.manual_seed(0)
first = torch.nn.Linear(n, n, bias=False)
net = torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.Linear(n, n, bias=False))
weights = {"untrained": first.weight.detach().numpy().astype(np.float64)}
steps = 1000
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1.0)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x = torch.randn(128, n)
    y = torch.fft.irfft(torch.fft.rfft(x) * response, n)
    loss = ((net(x) - y) ** 2).sum() / (y**2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
weights["trained"] = first.weight.detach().numpy().astype(np.float64)
print(f"n = {n}; relative squared error of the last batch: {loss.item():.4f}")
assert loss.item() < 0.02

# %%
# Two criteria, two descramblers
# ------------------------------
#
# *Smoothness* takes the hidden signals (before the tanh) of one half of the noise, and is judged
# on the other. For white noise ``P W1 = T Σ Vᵀ``: whatever passes moves to the smoothest neurons.
# *Trace* takes the weights, here as estimated from one half by the cross-moment of signals and
# inputs, and is judged on those of the other: ``P W1`` is ``(W1ᵀ W1)^½``, and that of a trained
# filter should be the filter's own circulant matrix, each row its impulse response.


def by_trace(given: Matrix, W: Matrix) -> Matrix:
    d = df.descramble_weights(given, criterion="trace")
    assert isinstance(d, df.MatrixDescrambler)
    return np.asarray(d.transform_weight(W))


generator = np.random.default_rng(1)
halves = [generator.standard_normal((16 * n, n), dtype=np.float32) for _ in range(2)]
smooth: dict[str, Matrix] = {}
symmetric: dict[str, Matrix] = {}
held_out: dict[str, Matrix] = {}
passed: dict[str, float] = {}
for name, W in weights.items():
    signals = [half @ W.T.astype(np.float32) for half in halves]
    covariances = [df.Covariance.from_samples(s) for s in signals]
    d = df.descramble(covariances[0])
    smooth[name] = d.transform_weight(W)
    variance = np.diag(d.components.T @ covariances[1].second_moment() @ d.components)
    passed[name] = variance[:rank].sum() / variance.sum()

    symmetric[name] = by_trace(W, W)
    a, b = (s.T @ half / len(half) for s, half in zip(signals, halves, strict=True))
    held_out[name] = by_trace(a, b)

# %%
# What is measured. The power of the weights by frequency, along either axis; the edges are where
# it crosses half of its plateau. The Toeplitz share: the energy that is left when every (wrapped)
# diagonal is replaced by its mean. The response of a row: its correlation with the planted
# impulse response centred on that row.

planted = np.fft.irfft(response.numpy(), n)


def power(W: Matrix, axis: int = 1) -> Matrix:
    return np.asarray((np.abs(np.fft.rfft(W, axis=axis)) ** 2).sum(axis=1 - axis))


def edges(spectrum: Matrix) -> tuple[int, int]:
    plateau = np.median(np.sort(spectrum)[-(len(spectrum) // 20 + 1) :])
    above = np.flatnonzero(spectrum > plateau / 2)
    return int(above[0]), int(above[-1])


def rolled(W: Matrix) -> Matrix:
    return np.stack([np.roll(row, -i) for i, row in enumerate(W)])


def toeplitz(W: Matrix) -> float:
    return float(n * (rolled(W).mean(axis=0) ** 2).sum() / (W**2).sum())


def agreement(W: Matrix) -> float:
    return float(np.median([np.corrcoef(row, planted)[0, 1] for row in rolled(W)]))


def neuron_share(W: Matrix) -> float:
    spectrum = power(W, axis=0)
    return float(spectrum[: rank // 2 + 1].sum() / spectrum.sum())


print(f"planted edges {low, high}; {rank} of {n} directions pass")
for name, W in weights.items():
    P = smooth[name]
    print(f"{name}:")
    print(f"  edges along the inputs:  W1 {edges(power(W))}, P W1 {edges(power(P))}")
    print(f"  edges along the neurons: W1 {edges(power(W, 0))}, P W1 {edges(power(P, 0))}")
    print(
        f"  share at up to {rank // 2} cycles over the neurons: W1 {neuron_share(W):.3f}, "
        f"P W1 {neuron_share(P):.3f}, the other half's signals {passed[name]:.3f}"
    )
    for label, M in (("W1", W), ("trace", symmetric[name]), ("trace, other half", held_out[name])):
        print(
            f"  {label + ':':18s} edges of its middle row {edges(power(M[n // 2 : n // 2 + 1]))}, "
            f"Toeplitz share {toeplitz(M):.3f}, response {agreement(M):.3f}"
        )

# %%
# What descrambling shows and what it does not
# --------------------------------------------
#
# The filter's edges need no descrambler: P acts on the neurons, so the power along the inputs is
# the same for every P, that of the raw weights included. It is evidence of what was learned,
# because the untrained weights have no band; it is no evidence for descrambling.

trained, control = weights["trained"], weights["untrained"]


def near(found: tuple[int, int], expected: tuple[int, int]) -> bool:
    return max(abs(found[0] - expected[0]), abs(found[1] - expected[1])) <= 1


assert near(edges(power(trained)), (low, high))
assert near(edges(power(control)), (0, n // 2))
for name, W in weights.items():
    assert np.allclose(power(smooth[name]), power(W), rtol=1e-9)
    assert np.allclose(power(symmetric[name]), power(W), rtol=1e-9)

# %%
# Smoothness adds the number of neurons at work: along the neurons the raw weights are flat, the
# descrambled ones end at half the planted rank. Within the band the singular values are nearly
# equal, so their vectors are arbitrary mixtures of its sines and cosines, and the picture is a
# block: low frequencies along the neurons, the band along the inputs, no diagonal. The
# eigenvalues say the same.

assert near(edges(power(smooth["trained"], 0)), (0, rank // 2))
assert near(edges(power(trained, 0)), (0, n // 2))
cliff = {
    name: power(P, 0)[rank // 2 - 1] / power(P, 0)[rank // 2 + 1] for name, P in smooth.items()
}
print(f"power across half the rank: {cliff['trained']:.1f}, untrained {cliff['untrained']:.2f}")
assert cliff["trained"] > 10
assert cliff["untrained"] < 2
assert passed["trained"] > 0.9
assert passed["untrained"] < 0.6

# %%
# The trace criterion shows the filter itself: a circulant matrix, each row the impulse response
# at its own place, and its spectrum on a line. A Toeplitz matrix as such proves nothing: the
# untrained layer becomes mostly a multiple of the identity, and its Toeplitz share is high too.
# The rows tell: they are spikes, without a band.

for M in symmetric["trained"], held_out["trained"]:
    assert near(edges(power(M[n // 2 : n // 2 + 1])), (low, high))
    assert agreement(M) > 0.85
    assert toeplitz(M) > 0.8
assert abs(agreement(trained)) < 0.15
assert toeplitz(trained) < 0.1
assert toeplitz(symmetric["untrained"]) > 0.5
assert max(agreement(symmetric["untrained"]), agreement(held_out["untrained"])) < 0.5

# %%
# The weights of 64 neurons and inputs, and the spectra of whole matrices. Rows: as trained, by
# smoothness, by trace; beside each, the untrained network.

CUT, STEP = slice(n // 2 - 32, n // 2 + 32), n // 64
figure, axes = plt.subplots(3, 4, figsize=(10, 7.6), layout="constrained")
rows = (("W1", weights), ("P W1, smoothness", smooth), ("P W1, trace", symmetric))
for row, (label, matrices) in zip(axes, rows, strict=True):
    for i, name in enumerate(("trained", "untrained")):
        M = matrices[name] / np.sqrt(np.mean(matrices[name] ** 2))
        limit = 3 if label != "P W1, trace" else 6
        weight_image = row[i].imshow(
            M[CUT, CUT], cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(-32, 32, 32, -32)
        )
        row[i].set_title(f"{label},\n{name}", fontsize=10)
        row[i].set(xlabel="input from centre", ylabel="neuron from centre")
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(M))) ** 2
        blocks = spectrum.reshape(64, STEP, 64, STEP).mean(axis=(1, 3))  # a line must stay visible
        image = row[2 + i].imshow(
            10 * np.log10(blocks / blocks.mean()), cmap="magma", vmin=-20, vmax=20,
            extent=(-n / 2, n / 2, -n / 2, n / 2), origin="lower",
        )  # fmt: skip
        row[2 + i].set_title(f"its spectrum,\n{name}", fontsize=10)
        row[2 + i].set(xlabel="cycles along inputs", ylabel="cycles along neurons")
    figure.colorbar(weight_image, ax=row[:2], label="weight / rms", extend="both", aspect=12)
    figure.colorbar(image, ax=row[2:], label="power / mean (dB)", extend="both", aspect=12)

# %%
# The same as curves.

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
for panel, axis in ((left, 1), (middle, 0)):
    curves = (trained, "W1", BLUE, "-"), (smooth["trained"], "P W1, smoothness", ORANGE, "--")
    for M, label, colour, dashes in (*curves, (smooth["untrained"], "untrained", GREEN, ":")):
        panel.plot(power(M, axis) / power(M, axis).mean(), dashes, color=colour, label=label)
    panel.set_ylabel("power / mean")
for edge in low, high:
    left.axvline(edge, color="0.6", linewidth=0.8)
middle.axvline(rank // 2, color="0.6", linewidth=0.8)
left.set_xlabel("cycles along the inputs")
left.set_title("the same for every P", fontsize=10)
middle.set_xlabel("cycles along the neurons")
middle.set_title("ends at half the rank", fontsize=10)
middle.legend(frameon=False, fontsize=9)
window = np.arange(-24, 25)
for curve, label, colour, dashes in (
    (np.roll(planted, n // 2), "planted", "0.6", "-"),
    (symmetric["trained"][n // 2], "P W1, trace", BLUE, "--"),
    (trained[n // 2], "W1", ORANGE, ":"),
    (symmetric["untrained"][n // 2], "untrained, trace", GREEN, ":"),
):
    right.plot(
        window, (curve / np.abs(curve).max())[n // 2 + window], dashes, color=colour, label=label
    )
right.set(xlabel="input from centre", ylabel="weight / its maximum")
right.set_title("middle row: impulse response", fontsize=10)
right.set_ylim(-1.9, 1.1)
right.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)

# %%
# Source
# ------
#
# The criteria are those of Amey, Keeley, Choudhury and Kuprov, PNAS 118 (2021) e2016917118; the
# exact smoothness descrambler and ``P W = T Σ Vᵀ`` those of Sule, Spencer and Czaja, ACHA 79 (2025)
# 101793, arXiv 2301.07820. The published text was not consulted for this page, and no figure of it
# is claimed.
#
# What differs from the published setting
# ---------------------------------------
#
# The width of 1024 (64 in quick mode) is that of the authors' code. Chosen here: the filter and its
# edges, periodic windows, white noise, the tanh, no biases, AdamW with weight decay.
