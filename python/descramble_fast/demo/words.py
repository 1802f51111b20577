"""What the numbers say, in words and as a dictionary."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import descramble_fast as df
from descramble_fast.demo.analysis import Analysis, Components, Layer, NetworkAnalysis, band


def reading(analysis: Analysis) -> dict[str, str]:
    """Say what the controls show, from the numbers.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    dict
        One text each for ``layer1``, ``layer2`` and ``components``.
    """
    first, second = zip(analysis.trained.layers, analysis.control.layers, strict=True)
    return {
        "layer1": _layer_reading(*first, "W1", "P W1"),
        "layer2": _layer_reading(*second, "W2", "W2 Pᵀ"),
        "components": _component_reading(analysis.trained.components, analysis.control.components),
    }


def _layer_reading(trained: Layer, control: Layer, raw: str, read: str) -> str:
    t, c = trained.network, control.network
    sentences = [
        f"Signals: descrambling leaves {trained.remaining:.2g} of the raw roughness ({t}), "
        f"{control.remaining:.2g} ({c}).",
        _signal_verdict(trained, control),
        f"Weights: from {raw} to {read} the Rel norm goes from {trained.raw.rel_norm:.2f} to "
        f"{trained.descrambled.rel_norm:.2f} ({t}), from {control.raw.rel_norm:.2f} to "
        f"{control.descrambled.rel_norm:.2f} ({c}).",
        _weight_verdict(trained, control, read),
        f"Yet singular values alone set how little energy an orthogonal matrix can leave outside "
        f"the band: {trained.least_outside:.2f} ({t}), {control.least_outside:.2f} ({c}); {read} "
        f"has {trained.descrambled.outside:.2f} and {control.descrambled.outside:.2f}.",
        f"What differs without any descrambling: effective rank {trained.effective_rank:.1f} "
        f"against {control.effective_rank:.1f}, and {trained.other_side:.0%} against "
        f"{control.other_side:.0%} of the energy of {raw} outside the central band along its other "
        "axis.",
    ]
    if trained.undetermined or control.undetermined:
        sentences.append(
            f"Directions without signal, on which {read} is arbitrary: {trained.undetermined} "
            f"({t}), {control.undetermined} ({c})."
        )
    return " ".join(sentences)


def _signal_verdict(trained: Layer, control: Layer) -> str:
    if control.remaining <= 2 * trained.remaining:
        return "The control does as well, so smooth signals are no evidence of learning."
    if control.remaining <= 0.5:
        return "The control becomes smoother as well: only the difference can be due to learning."
    return "The control's signals stay rough."


def _weight_verdict(trained: Layer, control: Layer, read: str) -> str:
    """Smooth weights count only as far as the control's are less smooth."""
    if control.descrambled.rel_norm <= 1.25 * trained.descrambled.rel_norm:
        return f"The control does as well, so the smoothness of {read} is no evidence of learning."
    if control.descrambled.rel_norm <= 0.75 * control.raw.rel_norm:
        return (
            f"The control falls as well: only the difference between the two values of {read} can "
            "be due to learning."
        )
    return f"The control hardly falls: descrambling alone does not make {read} this smooth."


def _component_reading(trained: Components, control: Components) -> str:
    t, c, d = trained.network, control.network, trained.chebyshev.shape[1]
    return (
        f"Largest |inner product| of each component, averaged over the leading "
        f"{len(trained.chebyshev)}: with Chebyshev's T0...T{d - 1} {trained.chebyshev_match:.2f} "
        f"({t}), {control.chebyshev_match:.2f} ({c}); with as many of the lowest cosines "
        f"{trained.cosine_match:.2f} and {control.cosine_match:.2f}. "
        f"{_component_verdict(trained, control)} Share of the {t} components in the span of "
        f"T0...T{d - 1}, that is of all polynomials of degree below {d}: "
        f"{trained.chebyshev_span:.2f}; of the cosines: {trained.cosine_span:.2f}. Nothing here "
        "depends on P: outputs stand in their own order."
    )


def _component_verdict(trained: Components, control: Components) -> str:
    """Polynomials must beat the control and another smooth family before they are news."""
    lead = trained.chebyshev_match - trained.cosine_match
    if trained.chebyshev_match <= 1.25 * control.chebyshev_match:
        return "The control does as well, so this is no evidence of learning."
    if abs(lead) < 0.05:
        return (
            "Both families match alike: the components are smooth, but Chebyshev is not singled "
            "out."
        )
    if lead > 0:
        return "The polynomials match better than the cosines."
    return "The cosines match better, so Chebyshev polynomials are not singled out."


def summary(analysis: Analysis) -> dict[str, Any]:
    """All numbers, the configuration and the network's metadata; fit for JSON.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    dict
        Files are named without their folders.
    """
    network, samples = analysis.network, analysis.samples
    return {
        "schema": "1",
        "network": {
            "file": network.file,
            "W1": list(network.trained.W1.shape),
            "W2": list(network.trained.W2.shape),
            "activation": network.activation,
            "input_axis": asdict(network.input_axis),
            "output_axis": asdict(network.output_axis),
            "control": network.control_text,
            "metadata": dict(network.metadata),
        },
        "samples": {
            "file": samples.file,
            "tensor": samples.tensor,
            "shape": list(samples.shape),
            "dtype": samples.dtype,
            "batch_size": analysis.batch_size,
        },
        "analyses": [_numbers(found) for found in (analysis.trained, analysis.control)],
        "reading": reading(analysis),
        "configuration": json.loads(json.dumps(df.show_config("dict"), default=str)),
    }


def _numbers(found: NetworkAnalysis) -> dict[str, Any]:
    components = found.components
    return {
        "network": found.name,
        "layers": [_layer_numbers(layer) for layer in found.layers],
        "components": {
            "shares": components.shares.tolist(),
            "chebyshev": components.chebyshev.tolist(),
            "cosine": components.cosine.tolist(),
            "chebyshev_match": components.chebyshev_match,
            "cosine_match": components.cosine_match,
            "chebyshev_span": components.chebyshev_span,
            "cosine_span": components.cosine_span,
        },
    }


def _layer_numbers(layer: Layer) -> dict[str, Any]:
    numbers = asdict(layer)
    del numbers["raw_weights"], numbers["descrambled_weights"]
    numbers["band"] = list(band(layer.neurons))
    numbers["held_out"]["ratio"] = layer.held_out.ratio
    numbers["held_out"]["remaining"] = layer.held_out.remaining
    return numbers
