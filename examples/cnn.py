"""A convolutional network on handwritten digits: channels in order, and a whole layer descrambled.

Trains for some seconds, finds an order of the channels, writes it into the network, and shows that
the logits stay; then descrambles the second convolution with all its positions at once. Everything
is beside the same network untrained. Needs scikit-learn, torch and matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.datasets import load_digits
from torch import nn

import descramble_fast as df
import descramble_fast.torch as df_torch

LAYERS = ("conv1", "conv2")


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular")


class Network(nn.Module):
    """Two convolutions with norms, and a classifier over what they leave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(1, 32), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = _convolution(32, 64), nn.BatchNorm2d(64)
        self.act1, self.act2, self.pool = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (batch, 10), of images (batch, 1, 8, 8)."""
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.pool(self.act2(self.norm2(self.conv2(x))))
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def train(network: Network, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Fit by Adam, in place; left in evaluation mode."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(epochs):
        shuffled = torch.randperm(len(images))
        for begin in range(0, len(images), 64):
            part = shuffled[begin : begin + 64]
            loss = nn.functional.cross_entropy(network(images[part]), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.eval()


def correlation(layer: df.Layer) -> np.ndarray[Any, Any]:
    """Pearson's correlation of a layer's neurons; 0 where one is constant."""
    assert layer.covariance is not None
    covariance = np.asarray(layer.covariance.covariance())
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
    return np.asarray(covariance / np.outer(deviation, deviation))


def draw_channels(found: df.Layers, path: Path) -> None:
    """Correlations of the channels, as they stand and in order; the control below."""
    figure, panels = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    networks = {"trained": found.layers, "untrained": found.control}
    for row, (name, layers) in zip(panels, networks.items(), strict=True):
        for i, layer in enumerate(layers):
            assert layer.order is not None
            order = np.asarray(layer.order.permutation)
            matrix = correlation(layer)
            left = layer.order.cost / layer.order.initial_cost
            for panel, shown, title in (
                (row[2 * i], matrix, f"{layer.name}, {name}\nas it stands"),
                (row[2 * i + 1], matrix[np.ix_(order, order)], f"in order\n{left:.2f} left"),
            ):
                image = panel.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
                panel.set(title=title, xticks=[], yticks=[])
    figure.colorbar(image, ax=panels, label="correlation of channels", shrink=0.7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_convolution(
    solved: dict[str, df.ConvolutionDescrambler], responses: dict[str, torch.Tensor], path: Path
) -> None:
    """Draw eigenvalues of the whole layer, and its answer to one image, raw and descrambled."""
    figure = plt.figure(figsize=(12, 6), layout=ConstrainedLayoutEngine(hspace=0.12))
    curves, maps = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(1, 1.7))))
    panel = curves.subplots()
    for (name, d), style in zip(solved.items(), ("-", "--"), strict=True):
        c = np.asarray(d.eigenvalues)
        panel.semilogy(np.arange(1, len(c) + 1), c / c[0], style, label=name)
    panel.set(title="conv2 as a whole: eigenvalues", xlabel="component", ylabel="c / largest")
    panel.set_ylim(1e-3, 2)
    panel.legend()
    rows = [
        (f"{name}, {state}", shown)
        for name, d in solved.items()
        for state, shown in (
            ("raw", responses[name]),
            (f"descrambled, {d.cost / d.initial_cost:.2f} left", d.transform(responses[name])),
        )
    ]
    grid = maps.subplots(len(rows), 8)
    for line, (title, shown) in zip(grid, rows, strict=True):
        values = shown.numpy()
        limit = np.abs(values).max()
        for column, panel in enumerate(line):
            panel.imshow(values[8 * column], cmap="RdBu_r", vmin=-limit, vmax=limit)
            panel.set(xticks=[], yticks=[])
        heading = line[0].text(0, 1.06, title, transform=line[0].transAxes, fontsize=10)
        heading.set_in_layout(False)  # it may reach over its neighbours
    maps.supxlabel("channels 0, 8, ... 56 of the answer to one image", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, order, descramble, check and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("figures"))
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    network = Network()
    control = df_torch.untrained(network).eval()
    train(network, images[:1400], labels[:1400], options.epochs)
    held_out = images[1400:]
    with torch.no_grad():
        before = network(held_out)
    accuracy = float((before.argmax(1) == labels[1400:]).double().mean())
    print(f"{accuracy:.3f} of the held-out digits are read right")

    found = df_torch.descramble_model(
        network,
        [images[i : i + 200] for i in range(0, 1400, 200)],
        LAYERS,
        tap="post",
        order=True,
        control=control,
    )
    print(found.table())
    draw_channels(found, options.output / "cnn-channels.png")
    permuted = df_torch.permute_model(network, found, held_out)
    with torch.no_grad():
        after = network(held_out)
    moved = float((after - before).abs().max() / before.abs().max())
    print(f"channels in order; logits moved by {moved:.1e} of the largest")
    if moved > 1e-6 or permuted.max_difference > 1e-6:
        raise SystemExit("the logits moved by more than rounding")

    solved, responses = {}, {}
    for name, model in (("trained", network), ("untrained", control)):
        solved[name] = df.descramble_conv(model.conv2.weight.detach(), (8, 8))
        with torch.no_grad():
            x = model.act1(model.norm1(model.conv1(held_out[:1])))
            answer = model.conv2(x)[0]
            assert model.conv2.bias is not None
            responses[name] = answer - model.conv2.bias[:, None, None]
        d = solved[name]
        print(f"conv2 {name}: n = {len(d.eigenvalues)}, {d.cost / d.initial_cost:.4f} left")
    draw_convolution(solved, responses, options.output / "cnn-convolution.png")


if __name__ == "__main__":
    main()
