"""What the numbers say, in words and as a dictionary."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import descramble_fast as df
from descramble_fast.demo.analysis import Analysis, Components, Layer, NetworkAnalysis, band
from descramble_fast.demo.order import NeuronOrder

ROUNDING = 1e-12  # of outputs in double precision, relative to the largest


def reading(analysis: Analysis) -> dict[str, str]:
    """Say what the controls show, from the numbers.

    Parameters
    ----------
    analysis : Analysis

    Returns
    -------
    dict
        One text each for ``layer1``, ``layer2``, ``components`` and ``order``.
    """
    first, second = zip(analysis.trained.layers, analysis.control.layers, strict=True)
    return {
        "layer1": _layer_reading(*first, "W1", "P W1"),
        "layer2": _layer_reading(*second, "W2", "W2 Pᵀ"),
        "components": _component_reading(analysis.trained.components, analysis.control.components),
        "order": _order_reading(analysis.trained, analysis.control),
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


def _order_reading(trained: NetworkAnalysis, control: NetworkAnalysis) -> str:
    t, c = trained.name, control.name
    first, second = trained.order, control.order
    sentences = [
        _output_verdict(trained, control),
        f"Signals: reordering leaves {first.remaining:.2g} of the roughness of W1 x in the given "
        f"order ({t}), {second.remaining:.2g} ({c}); no order leaves less than "
        f"{first.least_of_orders:.2g} and {second.least_of_orders:.2g}, no orthogonal matrix less "
        f"than {first.least_of_orthogonal:.2g} and {second.least_of_orthogonal:.2g}.",
        _order_verdict(first, second),
        f"Weights: the squared differences of neighbouring rows of W1 fall to "
        f"{first.weights_remaining:.2f} ({t}), {second.weights_remaining:.2f} ({c}) of what they "
        "were.",
        _row_verdict(first, second),
    ]
    return " ".join(sentences)


def _output_verdict(trained: NetworkAnalysis, control: NetworkAnalysis) -> str:
    pair = trained.output_difference, control.output_difference
    same = "unchanged to rounding" if max(pair) <= ROUNDING else "changed by more than rounding"
    return (
        f"Outputs: {same}; the largest difference on the samples is {pair[0]:.0e} of the largest "
        f"output ({trained.name}), {pair[1]:.0e} ({control.name})."
    )


def _order_verdict(trained: NeuronOrder, control: NeuronOrder) -> str:
    if control.remaining > 1.25 * trained.remaining:
        return "The control's signals are harder to put in order."
    better = control.remaining < 0.8 * trained.remaining
    text = (
        f"The control does {'even better' if better else 'as well'}, so signals in order are no "
        "evidence of learning."
    )
    if control.leading_share > 0.9:
        text += (
            f" Its signals are nearly one signal times a factor for each neuron "
            f"({control.leading_share:.0%} of their energy lies in one component, "
            f"{trained.leading_share:.0%} in the {trained.network} network), and are merely sorted "
            "by that factor."
        )
    return text


def _row_verdict(trained: NeuronOrder, control: NeuronOrder) -> str:
    """Rows count only as far as they become more alike than the control's."""
    if control.weights_remaining <= trained.weights_remaining + 0.05:
        return "The control does as well, so the order of W1's rows is no evidence of learning."
    if control.weights_remaining <= 0.9:
        return "The control falls as well: only the difference can be due to learning."
    return (
        "Neighbours in the control read the input no more alike than before: only the "
        f"{trained.network} network's rows form groups."
        if trained.weights_remaining <= 0.9
        else "Neighbours read the input hardly more alike than before."
    )


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
        "order": {**_order_numbers(found.order), "output_difference": found.output_difference},
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


def _order_numbers(order: NeuronOrder) -> dict[str, Any]:
    return {
        "operator": order.operator,
        "permutation": order.permutation.tolist(),
        "initial_cost": order.initial_cost,
        "cost": order.cost,
        "bound": order.bound,
        "tree_bound": order.tree_bound,
        "remaining": order.remaining,
        "least_of_orders": order.least_of_orders,
        "least_of_orthogonal": order.least_of_orthogonal,
        "weights_remaining": order.weights_remaining,
        "leading_share": order.leading_share,
        "milliseconds": order.milliseconds,
    }
