"""
From echoes to distances: five routes to one descrambler
========================================================

A small network turns the echoes of two electron spins into the distribution of their distance.
What do its layers do, and how close does an iterative descrambler come to the exact one? Every
number stands beside that of the same network before its training.
"""

import os
import time
from collections.abc import Callable

import deerlab
import matplotlib.pyplot as plt
import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from scipy.stats import ortho_group

import descramble_fast as df
from descramble_fast import demo, plot

QUICK = bool(os.environ.get("DESCRAMBLE_FAST_QUICK"))  # fewer steps, the same claims
STEPS, RESTARTS = (60, 3) if QUICK else (400, 10)
Array = NDArray[np.float64]
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"

# %%
# The network σ(W₂ tanh(W₁ x)) comes with the package, with its weights before
# training and 4096 traces that it never saw. A trace has 256 points over 4 µs, the first layer 80
# neurons, the output 256 distances. Nothing is trained here.
network, samples = demo.load_network(), demo.open_samples()
x = np.concatenate(list(samples.batches(4096))).astype(np.float64)
networks = {"trained": network.trained, "untrained": network.control}
n = len(network.trained.W1)
operator = df.operators.fourier(n)
L, T = np.asarray(operator.apply(np.eye(n))), np.asarray(operator.modes())


# %%
# The iterative route
# -------------------
# As published: the Cayley chart P = (I + A)⁻¹ (I - A) P₀ over skew-symmetric A, and
# L-BFGS with the exact gradient from A = 0. The division by the first cost only sets its scale.
def roughness(P: Array, L: Array, C: Array) -> float:
    """Return tr(L P C Pᵀ)."""
    return float(np.vdot(P, L @ P @ C))


def iterative(start: Array, L: Array, C: Array, steps: int = STEPS) -> tuple[Array, Array]:
    """Return P and the cost after each step."""
    unit, upper = np.eye(len(C)), np.triu_indices(len(C), 1)
    first, costs = roughness(start, L, C), []

    def chart(generator: Array) -> tuple[Array, Array]:
        A = np.zeros_like(unit)
        A[upper] = generator
        M = np.linalg.inv(unit + A - A.T)
        return M, (2 * M - unit) @ start

    def value(generator: Array) -> tuple[float, Array]:
        M, P = chart(generator)
        G = L @ P @ C / first
        H = M.T @ G @ start.T @ M.T  # from dP = -2 M dA M P0
        return float(np.vdot(P, G)), 4 * (H.T - H)[upper]

    def record(intermediate_result: OptimizeResult) -> None:
        costs.append(intermediate_result.fun * first)

    settings = {"maxiter": steps, "maxfun": 10**6, "ftol": 0, "gtol": 0}
    zero = np.zeros(len(upper[0]))
    found = minimize(value, zero, jac=True, method="L-BFGS-B", callback=record, options=settings)
    return chart(found.x)[1], np.array(costs)


# %%
# "Reparameterised" we take to mean the same chart over Q in P = T Q Uᵀ: in the bases of
# modes T and components U both matrices are diagonal, and Q = I is already the answer. It therefore
# starts from a random rotation. This is our reading; the published text could not be consulted.
#
# "Rel norm" takes the shifted two-dimensional spectrum of P W₁: the squared spectral norms
# of its rows beyond the central band of neuron frequencies, over that of the whole.
def rel_norm(W: Array) -> float:
    """Return the published measure; small where weights vary slowly along the neurons."""
    M = np.fft.fftshift(np.fft.fft2(W))
    low, high = demo.band(len(W))
    outer = np.linalg.norm(M[:low], 2) ** 2 + np.linalg.norm(M[high:], 2) ** 2
    return float(outer / np.linalg.norm(M, 2) ** 2)


def five_routes(W: Array) -> tuple[dict[str, Array], Array, df.SmoothnessDescrambler]:
    """Print the table; return P by route, the second moment, and the exact descrambler."""
    cov = df.Covariance.from_samples(x @ W.T)
    C, exact = np.asarray(cov.second_moment()), df.descramble(cov)
    U = np.asarray(exact.components)
    diagonal = np.diag(operator.eigenvalues), np.diag(exact.eigenvalues)
    random = ortho_group.rvs(n, random_state=0)
    routes: dict[str, Callable[[], Array]] = {
        "none": lambda: np.eye(n),
        "from I": lambda: iterative(np.eye(n), L, C)[0],
        "from T": lambda: iterative(T, L, C)[0],
        "reparameterised": lambda: np.asarray(T @ iterative(random, *diagonal)[0] @ U.T),
        "eigensolver": lambda: np.asarray(df.descramble(cov).matrix),
    }
    found, costs, seconds = {}, {}, {}
    print(f"{'route':<16}{'cost':>11}{'/ least':>10}{'ms':>9}{'Rel norm':>10}")
    for name, route in routes.items():
        begin = time.perf_counter()
        P = found[name] = route()
        seconds[name] = time.perf_counter() - begin
        costs[name] = roughness(P, L, C)
        print(f"{name:<16}{costs[name]:11.4g}{costs[name] / exact.bound:10.3f}", end="")
        print(f"{1e3 * seconds[name]:9.2f}{rel_norm(P @ W):10.3f}")
    assert costs["eigensolver"] <= exact.bound * (1 + 1e-9)  # the spectra alone set this bound
    for name in ("from I", "from T", "reparameterised"):
        assert np.abs(found[name] @ found[name].T - np.eye(n)).max() < 1e-9
        assert costs["eigensolver"] < costs[name] / 1.1
        assert seconds["eigensolver"] < seconds[name]
    return found, C, exact


# %%
# First the trained network, then the control. In equally many steps no iterative route arrives.
results = {}
for name, weights in networks.items():
    print(f"\n{name}, {STEPS} steps")
    results[name] = five_routes(weights.W1)

# %%
# The trained network's descramblers, and below them the first layer as read through each.
found, C, exact = results["trained"]
figure, axes = plt.subplots(2, 5, figsize=(10, 5), layout="constrained")
for column, (name, P) in zip(axes.T, found.items(), strict=True):
    plot.weights(P, ax=column[0], title=f"P\n{name}")
    plot.weights(P @ network.trained.W1, ax=column[1], x=(0.0, 4.0), title="P W₁")
    column[0].set(xlabel="neuron", ylabel="")
    column[1].set(xlabel="time / µs", ylabel="")
for ax in axes[:, 0]:
    ax.set_ylabel("place")

# %%
# Restarts
# --------
# From the same P the chart and its reparameterisation are the same optimiser: the change of basis
# turns the generators by an orthogonal matrix, which L-BFGS does not see. What matters is the
# start. Random ones end at different costs, all above the one exact answer.
U = np.asarray(exact.components)
turned = iterative(T.T @ U, np.diag(operator.eigenvalues), np.diag(exact.eigenvalues), 15)[1]
difference = np.abs(iterative(np.eye(n), L, C, 15)[1] / turned - 1).max()
starts = ortho_group.rvs(n, RESTARTS, random_state=1)
curves = [iterative(start, L, C)[1] / exact.cost for start in starts]
ends = np.sort([curve[-1] for curve in curves])
print(f"chart and reparameterised chart from P = I, 15 steps: they differ by {difference:.0e}")
print(f"{RESTARTS} starts, {STEPS} steps, cost / least: {ends.round(3)}")
assert difference < 1e-9
assert ends[0] > 1.1
assert ends[-1] / ends[0] > 1.01

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for curve in curves:
    ax.loglog(np.arange(1, len(curve) + 1), curve, color=BLUE, alpha=0.5)
ax.lines[0].set_label(f"{RESTARTS} random starts")
ax.axhline(1, color=VERMILION, label="eigensolver, no steps")
ax.set(xlabel="L-BFGS step", ylabel="roughness / least roughness")
ax.legend(frameon=False)

# %%
# Band-pass and notch
# -------------------
# The spectrum of P W₁ beside the control's. The dark column at 0 MHz is *not* the notch:
# descrambling makes it, since the constant of the traces is their largest component and goes to the
# smoothest mode; the control has it, too. The notch is in the power along time, summed over the
# neurons. No orthogonal P changes that, so filter edges can be read off the raw layer; P adds the
# order along the neurons, which the control lacks.
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
frequency = np.fft.rfftfreq(256, 4.0 / 255)  # MHz
passed = (frequency > 0.4) & (frequency < 7.5)
notch, share, dark, sharp = {}, {}, {}, {}
for ax, (name, weights), colour in zip(axes, networks.items(), (BLUE, VERMILION), strict=False):
    read = results[name][0]["eigensolver"] @ weights.W1
    sharp[name] = rel_norm(read)
    plot.spectrum(read, ax=ax, title=f"P W₁ {name}\nRel norm {sharp[name]:.2f}")
    planes = np.abs(np.fft.fft2(read)) ** 2
    dark[name] = float(np.median(planes[:, 0]) / planes.mean())
    power = (np.abs(np.fft.rfft(weights.W1, axis=1)) ** 2).sum(axis=0)
    notch[name], share[name] = power[0] / power.mean(), power[passed].sum() / power.sum()
    axes[2].plot(frequency, power / power.mean(), color=colour, label=name)
    print(
        f"{name}: 0 MHz has {notch[name]:.4f} of the mean power, 0.4 to 7.5 MHz {share[name]:.2f}"
    )
    print(f"  of all; the median along the dark column is {dark[name]:.1e} of the mean")
axes[2].set(xlabel="frequency / MHz", ylabel="power / mean", title="along time", xlim=(0, 32))
axes[2].legend(frameon=False)
assert notch["trained"] < 0.01 < 0.5 < notch["untrained"]
assert share["trained"] > 0.75 > 0.3 > share["untrained"]
assert max(dark.values()) < 0.1
assert sharp["trained"] < 0.5 < 1 < sharp["untrained"]

# %%
# The physics: the dipolar kernel
# -------------------------------
# Without its background a trace is K p for a distance distribution p, with
# K = U_K Σ_K V_Kᵀ. The components of K along time, F[U_K Σ_K], beside
# those of the layer, F[Σ₁ V₁ᵀ], the strongest first.
K = deerlab.dipolarkernel(np.linspace(0, 4, 256), np.linspace(1.5, 6, 256))
U_K, strengths, _ = np.linalg.svd(K)
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
plot.spectrum((U_K * strengths)[:, :n].T, ax=axes[0], title="F[U_K Σ_K], kernel")
inside = {}
for ax, (name, weights) in zip(axes[1:], networks.items(), strict=True):
    _, sigma, V = np.linalg.svd(weights.W1, full_matrices=False)
    plot.spectrum(sigma[:, None] * V, ax=ax, title=f"F[Σ₁ V₁ᵀ], {name}")
    kept = np.linalg.norm(weights.W1 @ U_K[:, :32]) / np.linalg.norm(weights.W1)
    inside[name] = float(kept) ** 2
    print(f"{name}: {inside[name]:.2f} of |W1|² within the leading 32 of 256 components of K")
print(f"by chance: {32 / 256:.2f}")
for ax in axes:
    ax.set_ylabel("cycles per 80 components")
assert inside["trained"] > 0.75 > 0.2 > inside["untrained"]

# %%
# The output layer and Chebyshev polynomials
# ------------------------------------------
# S₃ = W₂ tanh(W₁ x). Its leading singular vectors are compared with T₀ to T₉
# as unit vectors, in three ways: at even steps of the distance axis; the same made orthogonal
# one after the other (discrete Legendre polynomials, since even steps weigh alike); and at
# Chebyshev's nodes, where they are the cosines of the DCT. P plays no part here.
nodes = np.cos(np.pi / 256 * (np.arange(256) + 0.5))
even = chebyshev.chebvander(np.linspace(-1, 1, 256), 9)
families = {
    "even steps": even / np.linalg.norm(even, axis=0),
    "orthogonalised": np.linalg.qr(even)[0],
    "nodes (cosines)": np.linalg.qr(chebyshev.chebvander(nodes, 9))[0],
}
vectors, products, within = {}, {}, {}
for name, weights in networks.items():
    output = df.Covariance.from_samples(np.tanh(x @ weights.W1.T) @ weights.W2.T)
    v = vectors[name] = np.asarray(df.eigh(output.second_moment(), k=10).eigenvectors)[:, ::-1]
    print(f"\n{name}: components 1 to 6 with degrees 0 to 5 in order")
    for kind, family in families.items():
        products[name, kind] = np.abs(v.T @ family)
        print(f"  {kind:<16}", np.diag(products[name, kind])[:6].round(2))
    within[name] = np.linalg.norm(families["orthogonalised"].T @ v, axis=0)[:5] ** 2
    print("  components 1 to 5 within polynomials of degree < 10:", within[name].round(3))
    print("  even steps; rows: components 1 to 10, columns: degrees 0 to 9")
    print(np.array2string(products[name, "even steps"], precision=2, suppress_small=True))

# %%
# We do not find degrees 1 to 5 in order at 0.9: at even steps only T₀ and T₁
# stand in their places with as much. The components oscillate ever more often, and the first five
# are polynomials of low degree almost entirely, which the control's are not. But cosines follow
# their order better than Chebyshev polynomials of the distance do, and keep 0.9 up to degree 3.
for kind, kept in (("even steps", 2), ("orthogonalised", 2), ("nodes (cosines)", 4)):
    in_order = np.diag(products["trained", kind])
    assert in_order[:kept].min() > 0.9 > in_order[kept]
    assert np.diag(products["untrained", kind])[:6].max() < 0.25
assert within["trained"].min() > 0.99 > 0.15 > within["untrained"].max()

figure, axes = plt.subplots(2, 4, figsize=(10, 5), layout="constrained")
for row, name in zip(axes, networks, strict=True):
    for ax, kind in zip(row[:2], ("even steps", "nodes (cosines)"), strict=True):
        image = ax.imshow(products[name, kind], cmap="viridis", vmin=0, vmax=1)
        ax.set(title=f"{name}\n{kind}", xlabel="degree", ylabel="component")
        ax.set(xticks=range(0, 10, 3), yticks=range(0, 10, 3), yticklabels=range(1, 11, 3))
    for ax, k in zip(row[2:], (1, 4), strict=True):
        v = vectors[name][:, k]
        shown = {"component": v, "Tₖ": families["even steps"][:, k]}
        shown["cosine"] = families["nodes (cosines)"][:, k]
        for (label, y), colour in zip(shown.items(), (BLUE, VERMILION, GREEN), strict=True):
            ax.plot(np.linspace(1.5, 6, 256), y * np.sign(y @ v), color=colour, label=label)
        ax.set(xlabel="distance / nm", yticks=[], ylim=(-0.22, 0.22))
        ax.set_title(f"{name}\ncomponent {k + 1}, k = {k}")
figure.legend(*axes[0, 3].get_legend_handles_labels(), loc="outside lower right", ncols=3)
figure.colorbar(image, ax=axes[:, :2], label="|inner product|", shrink=0.6, location="left")

# %%
# P from other samples
# --------------------
# P from one half of the traces, roughness of the other. Smooth signals come cheaply; the control
# has them, too. What training made is in the weights.
for name, weights in networks.items():
    one, other = (df.Covariance.from_samples(half @ weights.W1.T) for half in np.split(x, 2))
    own = df.descramble(other)
    moved = roughness(np.asarray(df.descramble(one).matrix), L, np.asarray(other.second_moment()))
    print(f"{name}: raw {own.initial_cost:.4g}, P from the other half {moved:.4g}, ", end="")
    print(f"own P {own.cost:.4g}; ratio {moved / own.cost:.3f}")
    assert own.cost <= moved < 1.5 * own.cost < 0.01 * own.initial_cost

# %%
# Source
# ------
# J. Amey, J. Keeley, T. Choudhury, I. Kuprov, PNAS 118 (2021) e2016917118, figures 2 and 3:
# criterion, chart and network. S. Sule, R. Spencer, W. Czaja, ACHA 79 (2025) 101793, arXiv
# 2301.07820, figures 1 to 4: the exact answer, the routes, "Rel norm", kernel and polynomials. The
# published texts could not be consulted for anything else.
#
# What differs from the published setting
# ---------------------------------------
# Network and traces are ours (``examples/train_deernet.py``): a logistic output, no biases, and
# Adam in whitened inputs. Steps are capped, on a CPU, and the reparameterised chart is our reading.
# There is one trained network: its agreement with cosines rather than Chebyshev polynomials need
# not hold for another.
