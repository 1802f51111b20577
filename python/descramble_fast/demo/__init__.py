"""The demonstration: descramble a two-layer network, and its control, from a stream of samples.

The network is y = g(W2 f(W1 x)) without biases. `load_network` and `open_samples` read files,
`analyse` streams the samples, solves and reorders, `reading` says what the control shows, and
`summary` puts everything into a dictionary. Nothing here prints or draws.
"""

from descramble_fast.demo.analysis import (
    Analysis,
    Components,
    HeldOut,
    Layer,
    NetworkAnalysis,
    Sharpness,
    analyse,
    band,
)
from descramble_fast.demo.files import (
    Axis,
    DemoError,
    Network,
    Samples,
    Weights,
    load_network,
    open_samples,
)
from descramble_fast.demo.order import NeuronOrder
from descramble_fast.demo.words import reading, summary

__all__ = [
    "Analysis",
    "Axis",
    "Components",
    "DemoError",
    "HeldOut",
    "Layer",
    "Network",
    "NetworkAnalysis",
    "NeuronOrder",
    "Samples",
    "Sharpness",
    "Weights",
    "analyse",
    "band",
    "load_network",
    "open_samples",
    "reading",
    "summary",
]
