"""Train the two-layer DEER network whose weights descrambling was first shown on.

What
    A 256 -> 80 -> 256 network without biases, ``sigmoid(W2 tanh(W1 v))``, that maps a noisy
    double electron-electron resonance (DEER) trace ``v`` to the distribution of the distance
    between two spin labels. Hidden layer: tanh. Output layer: logistic sigmoid, since the target
    lies in [0, 1]. Both are sigmoids, as in the papers below; see ``OUTPUT_ACTIVATION`` for why
    the pair is not tanh-tanh.

Why
    The network is small, its layers are known to hold readable signal processing (band-pass and
    notch filters, then a change to the distance axis), and nothing of it shows in the raw weights.
    It is the natural demonstration of descrambling. The untrained weights of the same run are kept
    as the control: a picture only shows learning where the untrained network does not give it too.

Data
    Made here, never read: every training step draws fresh samples, so no trace is seen twice.
    A distance distribution is a sum of one to three peaks, normal or skew normal. The dipolar
    kernel comes from DeerLab, once, as a 256 x 256 matrix ``K``. With modulation depth ``lam`` and
    a stretched exponential background of (fractional) dimension ``d``,

        v(t) = (1 - lam + lam (K p)(t)) exp(-(k t)^(d/3)) + noise,

    so that v(0) = 1 but for the noise. The target is p divided by its maximum: the network reports
    the shape, the modulation depth does not matter. The grids fit each other: the time step puts
    the fastest dipolar frequency at the shortest distance just below the Nyquist frequency, and
    the trace holds about one period of the slowest one.

Training
    Adam on the mean squared error. The traces are nearly collinear (their second moment spans five
    orders of magnitude), so descending in W1 itself is slow: after 8000 steps the loss is still
    half as large again as it need be. Adam therefore moves A in ``W1 = A R``, where R is the
    damped inverse square root of the second moment of the traces. That changes the path, not the
    network: the start is the Glorot W1, and the product W1 is what is stored.

Output
    ``deernet_network.safetensors``: W1 (80, 256), W2 (256, 80), W1_untrained, W2_untrained;
    float32.
    ``deernet_traces.safetensors``: traces (4096, 256), float16, held out: the losses printed are
    measured on these (before rounding to float16), and no step of the training saw them.
    Both carry grids, activations, losses and versions as metadata.

How long
    Two to three minutes on two idle CPU cores; no GPU. ``--steps 2000`` gives a rough
    network in 20 s.

Repeatability
    One seed makes everything. The same seed gives the same random numbers anywhere, hence the same
    held-out traces up to rounding in the matrix products (BLAS). The weights are repeated bit for
    bit on one machine with one thread count; elsewhere rounding differences grow during training,
    so expect the same losses and the same structure rather than the same last digits.
    Compare tensors, not files: safetensors writes the metadata keys in no fixed order.

Papers
    J. Amey, J. Keeley, T. Choudhury, I. Kuprov, Neural network interpretation using descrambler
    groups, PNAS 118 (2021) e2016917118.
    S. Sule, R. Spencer, W. Czaja, On the limits of neural network explainability via descrambling,
    ACHA 79 (2025) 101793, arXiv 2301.07820.
    S. Worswick, J. Spencer, G. Jeschke, I. Kuprov, Deep neural network processing of DEER data,
    Science Advances 4 (2018) eaat5218: the training data that this file follows in kind.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import deerlab
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

N_TIMES = 256
N_DISTANCES = 256
N_HIDDEN = 80
TIME_RANGE = (0.0, 4.0)  # us; step 15.7 ns, Nyquist 31.9 MHz
DISTANCE_RANGE = (1.5, 6.0)  # nm; 2 * 52.04 / 1.5**3 = 30.8 MHz parallel, 4.2 us per turn at 6 nm
N_HELD_OUT = 4096
N_STATISTICS = 32768  # fresh samples behind the mean target and the second moment

HIDDEN_ACTIVATION = "tanh"
# The target is non-negative and mostly zero. Without biases a tanh output would have to balance on
# the linear part of its curve there; the logistic sigmoid reaches zero by saturating.
OUTPUT_ACTIVATION = "sigmoid"

MAX_PEAKS = 3
POSITION_RANGE = (1.8, 5.6)  # nm, centre of a peak
WIDTH_RANGE = (0.06, 0.6)  # nm, standard deviation before skewing, log-uniform
MAX_SKEW = 6.0  # shape parameter of the skew normal; half of the peaks are not skewed
DEPTH_RANGE = (0.1, 0.7)  # modulation depth
DECAY_RANGE = (0.0, 0.5)  # background decay rate, 1/us
DIMENSION_RANGE = (2.0, 3.5)  # of the spin bath; 3 is a homogeneous solution
MAX_NOISE = 0.1  # standard deviation of the noise over the modulation depth, uniform from 0
NOISE_TABLE = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)

BATCH = 512
LEARNING_RATE = 3e-3
# Added to the eigenvalues of the second moment, which are about 5e-4 where there is only noise.
DAMPING = 3e-3
WARM_UP = 200
DEFAULT_STEPS = 24000
DEFAULT_OUTPUT = Path("python/descramble_fast/data")


@dataclass(frozen=True)
class Experiment:
    """The measurement: its two grids and the dipolar kernel between them, on float32."""

    times: Tensor
    distances: Tensor
    kernel: Tensor  # (time, distance); its first row is the integration rule over distance

    @classmethod
    def standard(cls) -> Experiment:
        """Build the one experiment of this file."""
        times = np.linspace(*TIME_RANGE, N_TIMES)
        distances = np.linspace(*DISTANCE_RANGE, N_DISTANCES)
        kernel = deerlab.dipolarkernel(times, distances)
        return cls(*(torch.tensor(a, dtype=torch.float32) for a in (times, distances, kernel)))


@dataclass(frozen=True)
class Samples:
    """Noise-free traces, unit noise and targets, one sample a row; noise is scaled on demand."""

    clean: Tensor
    unit_noise: Tensor
    depth: Tensor
    noise_level: Tensor  # relative to the modulation depth
    targets: Tensor

    def traces(self, noise_level: float | None = None) -> Tensor:
        """Return the noisy traces, at each sample's own noise level or one for all."""
        level = self.noise_level if noise_level is None else noise_level
        return self.clean + level * self.depth * self.unit_noise


@dataclass(frozen=True)
class Network:
    """Two weight matrices and nothing else."""

    w1: Tensor
    w2: Tensor

    @classmethod
    def glorot(cls, generator: torch.Generator) -> Network:
        """Glorot's uniform initialiser, gain 1: weights in +-sqrt(6 / (fan_in + fan_out))."""
        w1 = torch.empty(N_HIDDEN, N_TIMES)
        w2 = torch.empty(N_DISTANCES, N_HIDDEN)
        for weight in (w1, w2):
            torch.nn.init.xavier_uniform_(weight, generator=generator)
        return cls(w1, w2)

    def __call__(self, traces: Tensor) -> Tensor:
        """Map traces to distributions, one sample a row."""
        return torch.sigmoid(torch.tanh(traces @ self.w1.T) @ self.w2.T)


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_distributions(count: int, distances: Tensor, generator: torch.Generator) -> Tensor:
    """Draw sums of one to MAX_PEAKS (skew) normal peaks of random weight, (count, distance)."""
    shape = (count, MAX_PEAKS, 1)
    position = uniform(*POSITION_RANGE, shape, generator)
    low, high = (math.log(w) for w in WIDTH_RANGE)
    width = torch.exp(uniform(low, high, shape, generator))
    skewed = torch.rand(shape, generator=generator) < 0.5
    skew = uniform(-MAX_SKEW, MAX_SKEW, shape, generator) * skewed
    n_peaks = torch.randint(1, MAX_PEAKS + 1, (count, 1, 1), generator=generator)
    present = torch.arange(MAX_PEAKS).reshape(1, MAX_PEAKS, 1) < n_peaks
    weight = uniform(0.1, 1.0, shape, generator) * present

    z = (distances - position) / width
    peaks = torch.exp(-0.5 * z * z) * (1.0 + torch.erf(skew * z / math.sqrt(2.0)))
    return (weight / width * peaks).sum(dim=1)


def draw_background(count: int, times: Tensor, generator: torch.Generator) -> Tensor:
    """Stretched exponentials exp(-(k t)^(d/3)): remote spins in d dimensions, (count, time)."""
    rate = uniform(*DECAY_RANGE, (count, 1), generator)
    dimension = uniform(*DIMENSION_RANGE, (count, 1), generator)
    return torch.exp(-((rate * times) ** (dimension / 3.0)))


def draw_samples(count: int, experiment: Experiment, generator: torch.Generator) -> Samples:
    """Fresh pairs of trace and target."""
    p = draw_distributions(count, experiment.distances, generator)
    p = p / (p @ experiment.kernel[0])[:, None]  # integral one
    depth = uniform(*DEPTH_RANGE, (count, 1), generator)
    form_factor = 1.0 - depth + depth * (p @ experiment.kernel.T)
    background = draw_background(count, experiment.times, generator)
    return Samples(
        clean=form_factor * background,
        unit_noise=torch.randn((count, N_TIMES), generator=generator),
        depth=depth,
        noise_level=uniform(0.0, MAX_NOISE, (count, 1), generator),
        targets=p / p.amax(dim=1, keepdim=True),
    )


def learning_rate(step: int, steps: int) -> float:
    """Return the rate: a short linear rise, then half a cosine down to zero."""
    rise = min(1.0, (step + 1) / WARM_UP)
    return LEARNING_RATE * rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def whitener(traces: Tensor) -> tuple[Tensor, Tensor]:
    """R = (C + DAMPING)^(-1/2) and its inverse, for the second moment C of the traces; float32."""
    x = traces.double()
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x / len(x))
    scale = torch.sqrt(eigenvalues.clamp_min(0.0) + DAMPING)
    return ((vectors / scale) @ vectors.T).float(), ((vectors * scale) @ vectors.T).float()


def train(
    network: Network, experiment: Experiment, steps: int, generator: torch.Generator
) -> Network:
    """Adam on the mean squared error, every batch drawn anew, W1 moved in whitened coordinates."""
    whiten, unwhiten = whitener(draw_samples(N_STATISTICS, experiment, generator).traces())
    weights = [(network.w1 @ unwhiten).requires_grad_(), network.w2.clone().requires_grad_()]
    model = Network(*weights)
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    running, started = 0.0, time.perf_counter()
    report_every = max(1, steps // 20)
    for step in range(steps):
        with torch.no_grad():
            samples = draw_samples(BATCH, experiment, generator)
            traces = samples.traces() @ whiten
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(model(traces), samples.targets)
        loss.backward()
        optimiser.step()
        running += loss.item()
        if (step + 1) % report_every == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1:6d}  loss {running / report_every:.5f}  {seconds:6.1f} s")
            running = 0.0
    return Network(weights[0].detach() @ whiten, weights[1].detach())


def mean_squared_error(prediction: Tensor, targets: Tensor) -> float:
    """Average over samples and distances."""
    return float(((prediction - targets).double() ** 2).mean())


def held_out_losses(
    held_out: Samples,
    constant: Tensor,
    untrained: Network,
    trained: Network,
    noise_level: float | None = None,
) -> dict[str, float]:
    """Mean squared errors of the constant guess and of both networks, targets of unit maximum."""
    traces = held_out.traces(noise_level)
    predictions = {
        "untrained": untrained(traces),
        "mean_predictor": constant.expand_as(held_out.targets),
        "trained": trained(traces),
    }
    return {k: mean_squared_error(p, held_out.targets) for k, p in predictions.items()}


def print_losses(rows: dict[str, dict[str, float]]) -> None:
    """Print one line a noise level; the last column is the trained loss over the mean's."""
    print("\nheld-out mean squared error (targets scaled to unit maximum)")
    print(f"{'noise / depth':>14} {'untrained':>10} {'mean':>10} {'trained':>10} {'of mean':>8}")
    for name, loss in rows.items():
        ratio = loss["trained"] / loss["mean_predictor"]
        values = (loss["untrained"], loss["mean_predictor"], loss["trained"])
        print(f"{name:>14} " + " ".join(f"{v:10.5f}" for v in values) + f" {ratio:8.1%}")


def describe_run(seed: int, steps: int, losses: dict[str, float]) -> dict[str, str]:
    """Metadata of both files: all that is needed to read or repeat them, and no trace of where."""

    def grid(name: str, limits: tuple[float, float], count: int, unit: str) -> dict[str, str]:
        values = {"start": limits[0], "stop": limits[1], "count": count, "unit": unit}
        return {f"{name}_{k}": str(v) for k, v in values.items()}

    return {
        "schema": "1",
        "script": "examples/train_deernet.py",
        "seed": str(seed),
        "steps": str(steps),
        "batch": str(BATCH),
        "initialiser": "glorot_uniform",
        "hidden_activation": HIDDEN_ACTIVATION,
        "output_activation": OUTPUT_ACTIVATION,
        "bias": "false",
        "target": "distance distribution divided by its maximum",
        "trace_noise": f"white, standard deviation 0 to {MAX_NOISE} of the modulation depth",
        **grid("time", TIME_RANGE, N_TIMES, "us"),
        **grid("distance", DISTANCE_RANGE, N_DISTANCES, "nm"),
        **{f"held_out_mse_{k}": f"{v:.6g}" for k, v in losses.items()},
        "torch_version": version("torch"),
        "deerlab_version": version("deerlab"),
    }


def save_run(
    folder: Path, untrained: Network, trained: Network, traces: Tensor, metadata: dict[str, str]
) -> list[Path]:
    """Write the two files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    network_file = folder / "deernet_network.safetensors"
    traces_file = folder / "deernet_traces.safetensors"
    weights = {
        "W1": trained.w1,
        "W2": trained.w2,
        "W1_untrained": untrained.w1,
        "W2_untrained": untrained.w2,
    }
    save_file(weights, network_file, {"format": "descramble_fast.network", **metadata})
    rounded = {"traces": traces.to(torch.float16)}
    save_file(rounded, traces_file, {"format": "descramble_fast.samples", **metadata})
    return [network_file, traces_file]


def plot_examples(path: Path, experiment: Experiment, held_out: Samples, trained: Network) -> None:
    """Held-out traces, with the true and the reported distributions."""
    import matplotlib.pyplot as plt

    traces, count = held_out.traces(), 5
    reported = trained(traces)
    figure, axes = plt.subplots(2, count, figsize=(3 * count, 5), layout="constrained")
    for i in range(count):
        axes[0, i].plot(experiment.times, traces[i], linewidth=0.8)
        axes[0, i].set_xlabel("time / us")
        axes[1, i].plot(experiment.distances, held_out.targets[i], label="true")
        axes[1, i].plot(experiment.distances, reported[i], label="network")
        axes[1, i].set_xlabel("distance / nm")
    axes[1, 0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the two-layer DEER network.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help=f"of {BATCH} samples each")
    parser.add_argument("--output-dir", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--plot", type=Path, help="also write a picture of held-out examples here")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    return parser.parse_args()


def main() -> None:
    """Draw, train, measure, save."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    # Independent streams from one seed: held-out data do not depend on the number of steps.
    seeds = np.random.SeedSequence(args.seed).generate_state(3, np.uint64)
    initial, training, testing = (torch.Generator().manual_seed(int(s >> 1)) for s in seeds)

    experiment = Experiment.standard()
    held_out = draw_samples(N_HELD_OUT, experiment, testing)
    untrained = Network.glorot(initial)
    constant = draw_samples(N_STATISTICS, experiment, training).targets.mean(dim=0)
    trained = train(untrained, experiment, args.steps, training)

    losses = held_out_losses(held_out, constant, untrained, trained)
    rows = {"as trained": losses}
    for level in NOISE_TABLE:
        rows[f"{level:g}"] = held_out_losses(held_out, constant, untrained, trained, level)
    print_losses(rows)

    metadata = describe_run(args.seed, args.steps, losses)
    for path in save_run(args.output_dir, untrained, trained, held_out.traces(), metadata):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    if args.plot:
        plot_examples(args.plot, experiment, held_out, trained)


if __name__ == "__main__":
    main()
