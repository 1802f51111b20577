"""The layers of a model: their moments, what they give, and a table of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.numpy

from descramble_fast import _core
from descramble_fast._arrays import Array, flag, integer, on_host, one_of, real
from descramble_fast._covariance import Covariance
from descramble_fast._descramble import (
    Descrambler,
    SmoothnessDescrambler,
    descramble_many,
)
from descramble_fast._files import panics_refused, replace_file
from descramble_fast._permutation import SmoothOrder, descramble_permutation
from descramble_fast._weights import descramble_weights
from descramble_fast.operators import Operator

_FORMAT = "descramble_fast.layers"
_SCHEMA = "1"
_SMALL = 256  # neurons; to it, a batch of layers takes less time than its layers one by one


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One layer of a model, and what was found about it.

    Attributes
    ----------
    name : str
        Dotted name in the model, or where its samples were read.
    kind : str
        What it is, e.g. ``"Linear"``.
    tap : {"pre", "post", "input"}
        Where its samples were taken: its output, that of the activation behind it, or its input.
    neurons : int
        n; 0 where it is not known.
    samples : int
        Number of samples in the moments; by default the covariance's count.
    covariance : Covariance or None
        Moments of the samples. None where the criterion needs none, or they were released.
    descrambler : Descrambler or None
    order : SmoothOrder or None
        An order of the neurons, where one was asked for.
    weight : array or None
        The layer's weights, as a matrix that has its neurons on the axis of `weight_side`.
    weight_side : {"output", "input"}
        ``"output"``: (n, m), read as P W; ``"input"``: (m, n), read as W Pᵀ.
    seconds : float
        Time that the descrambler took; layers solved as one batch share it.
    notes : tuple of str
        What a reader of its figures must know.
    error : str or None
        Why there is no descrambler.
    """

    name: str
    kind: str = "samples"
    tap: str = "pre"
    neurons: int = 0
    samples: int = -1
    covariance: Covariance | None = None
    descrambler: Descrambler | None = None
    order: SmoothOrder | None = None
    weight: Array | None = None
    weight_side: str = "output"
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 0:
            count = 0 if self.covariance is None else self.covariance.count
            object.__setattr__(self, "samples", count)

    @property
    def readable_weight(self) -> Array | None:
        """P W or W Pᵀ; None without weights or descrambler."""
        if self.weight is None or self.descrambler is None:
            return None
        if self.weight_side == "output":
            return self.descrambler.transform_weight(self.weight)
        return self.descrambler.transform_next_weight(self.weight)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


class ByName(Mapping[str, _Item]):
    """A mapping from names to `layers`, in their order."""

    layers: tuple[_Item, ...]

    def __getitem__(self, name: str) -> _Item:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layers(ByName[Layer]):
    """The layers of a model by name, beside the same layers of a control.

    Attributes
    ----------
    layers : tuple of Layer
    control : tuple of Layer
        The same layers of an untrained model on the same data; empty without one.
    configuration : dict
        What made them: versions, model, options.
    """

    layers: tuple[Layer, ...]
    control: tuple[Layer, ...] = ()
    configuration: Mapping[str, Any]

    def table(self) -> str:
        """Costs of every layer, in columns: what was there, what is left, and what the control has.

        ``left`` is the criterion at P over that at P = I (1: nothing gained), ``order left`` the
        same for the order of neurons.
        """
        return "\n".join(_table(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was found to a safetensors file, replacing `path` in one step.

        For the layer ``<name>``: ``<name>/eigenvalues`` (k,), ``<name>/components`` (k, n), whose
        row i is component i, ``<name>/mean`` (n,) where it is known, ``<name>/matrix`` (n, n) for
        the trace and diagonal criteria instead, and ``<name>/order`` (n,) int64. Costs, operators
        and the configuration are JSON in the metadata under ``layers`` and ``configuration``.
        """
        tensors: dict[str, Any] = {}
        for layer in self.layers:
            tensors |= {f"{layer.name}/{what}": array for what, array in _tensors(layer).items()}
        metadata = {
            "format": _FORMAT,
            "schema": _SCHEMA,
            "version": _core.__version__,
            "layers": json.dumps({layer.name: figures(layer) for layer in self.layers}),
            "control": json.dumps({layer.name: figures(layer) for layer in self.control}),
            "configuration": json.dumps(dict(self.configuration)),
        }
        with panics_refused():
            content = safetensors.numpy.save(tensors, metadata)
        replace_file(path, content)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a self-contained HTML page with the pictures and figures of every layer."""
        from descramble_fast import report

        replace_file(path, report.html(self).encode(errors="backslashreplace"))


def solve(
    layers: Sequence[Layer],
    *,
    criterion: str = "smoothness",
    operator: Operator | Callable[[int], Operator] | None = None,
    center: bool = False,
    gauge: str = "canonical",
    k: int | None = None,
    order: bool = False,
    seed: int = 0,
    order_seconds: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Layer, ...]:
    """Find the descramblers of layers; equal sizes are solved as one batch.

    A layer that cannot be solved gets an `error` instead. `progress` is called after each that can.
    """
    one_of("criterion", criterion, "smoothness", "trace", "diagonal")
    one_of("gauge", gauge, "canonical", "identity")
    center, order = flag("center", center), flag("order", order)
    if order_seconds is not None and real("order_seconds", order_seconds) < 0:
        raise ValueError(f"order_seconds: got {order_seconds}, expected at least 0")
    if k is not None and integer("k", k) < 1:
        raise ValueError(f"k: got {k}, expected at least 1")
    if not (operator is None or isinstance(operator, Operator) or callable(operator)):
        raise TypeError(
            f"operator: got {type(operator).__name__}, expected an Operator or a function of n"
        )
    smoothest = criterion == "smoothness"
    if order and not smoothest:
        raise ValueError(f"order: it needs samples, and the criterion {criterion!r} reads none")
    found: dict[str, Layer] = {}
    for layer in layers:
        if smoothest and layer.error is None and not (layer.covariance and layer.covariance.weight):
            layer = replace(layer, error="no samples")
        found[layer.name] = layer
    for part in _parts([layer for layer in found.values() if layer.error is None]):
        try:
            op = operator(part[0].neurons) if callable(operator) else operator
            if not (op is None or isinstance(op, Operator)):
                raise TypeError(f"the function gave {type(op).__name__}, expected an Operator")
        except Exception as error:  # the function is the caller's; other sizes are answered
            found |= {one.name: replace(one, error=f"operator: {error}") for one in part}
            continue
        done = (
            _smoothest(part, op, center, gauge, k)
            if smoothest
            else [_from_weight(layer, criterion) for layer in part]
        )
        for layer in done:
            if order and layer.error is None and layer.covariance is not None:
                layer = _ordered(layer, op, seed, order_seconds)
            found[layer.name] = layer
            progress()
    return tuple(found.values())


def _parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Share layers out by size, large ones by as many as there are threads to solve them."""
    sizes: dict[int, list[Layer]] = {}
    for layer in layers:
        sizes.setdefault(layer.neurons, []).append(layer)
    for n, group in sizes.items():
        at_once = len(group) if n <= _SMALL else _core.num_threads()
        for begin in range(0, len(group), at_once):
            yield group[begin : begin + at_once]


def _smoothest(
    group: list[Layer], operator: Operator | None, center: bool, gauge: str, k: int | None
) -> list[Layer]:
    def solved(part: list[Layer]) -> list[Layer]:
        start = time.perf_counter()
        moments = [layer.covariance for layer in part if layer.covariance is not None]
        k_here = None if k is None else min(k, part[0].neurons)
        found = descramble_many(moments, operator=operator, center=center, gauge=gauge, k=k_here)
        for descrambler in found:
            descrambler.cost  # noqa: B018 — the figures are read with the batch
        seconds = time.perf_counter() - start
        return [
            replace(layer, descrambler=descrambler, seconds=seconds / len(part))
            for layer, descrambler in zip(part, found, strict=True)
        ]

    try:
        return solved(group)
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(group) == 1:
            return [replace(group[0], error=str(error) or type(error).__name__)]
        # One of them is at fault: the others are answered.
        return [layer for one in group for layer in _smoothest([one], operator, center, gauge, k)]


def _ordered(layer: Layer, operator: Operator | None, seed: int, seconds: float | None) -> Layer:
    assert layer.covariance is not None
    try:
        order = descramble_permutation(
            layer.covariance, operator=operator, seed=seed, time_limit=seconds
        )
    except (ValueError, RuntimeError, MemoryError) as error:
        return replace(layer, notes=(*layer.notes, f"no order: {error}"))
    if order.stopped == "interrupted":  # which is meant for all that is under way
        raise KeyboardInterrupt
    return replace(layer, order=order)


def _from_weight(layer: Layer, criterion: str) -> Layer:
    if layer.weight is None:
        return replace(layer, error=f"criterion {criterion}: it has no weights to read")
    weight = layer.weight if layer.weight_side == "output" else layer.weight.T
    start = time.perf_counter()
    try:
        found = descramble_weights(weight, criterion=criterion)
    except (ValueError, RuntimeError, MemoryError) as error:
        return replace(layer, error=str(error) or type(error).__name__)
    assert isinstance(found, Descrambler)
    return replace(layer, descrambler=found, seconds=time.perf_counter() - start)


def figures(layer: Layer) -> dict[str, Any]:
    """Give what is known about a layer in JSON's types."""
    found: dict[str, Any] = {
        "kind": layer.kind,
        "tap": layer.tap,
        "neurons": layer.neurons,
        "samples": layer.samples,
        "dtypes": [] if layer.covariance is None else list(layer.covariance.input_dtypes),
        "notes": list(layer.notes),
        "error": layer.error,
    }
    d = layer.descrambler
    if d is not None:
        found |= {
            "criterion": d.criterion,
            "cost": d.cost,
            "initial_cost": d.initial_cost,
            "bound": d.bound,
            "orthogonality_error": d.orthogonality_error,
            "seconds": layer.seconds,
            "route": {
                "device": d.route.device,
                "dtype": d.route.dtype,
                "driver": d.route.driver,
                "fallbacks": list(d.route.fallbacks),
            },
        }
    if isinstance(d, SmoothnessDescrambler):
        found |= {
            "operator": str(d.operator),
            "cost_error": d.cost_error,
            "blocks": [list(block) for block in d.blocks],
            "gauge": d.gauge.name,
        }
    if layer.order is not None:
        found["order"] = {
            "cost": layer.order.cost,
            "initial_cost": layer.order.initial_cost,
            "bound": layer.order.bound,
            "tree_bound": layer.order.tree_bound,
            "stopped": layer.order.stopped,
        }
    return found


def _tensors(layer: Layer) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    d = layer.descrambler
    if isinstance(d, SmoothnessDescrambler):
        tensors["eigenvalues"] = on_host(d.eigenvalues)
        tensors["components"] = np.ascontiguousarray(on_host(d.components).T)
    elif d is not None:
        tensors["matrix"] = on_host(d.matrix)
    if layer.covariance is not None and layer.samples:
        with contextlib.suppress(ValueError):  # second moments may come without one
            tensors["mean"] = on_host(layer.covariance.mean)
    if layer.order is not None:
        tensors["order"] = on_host(layer.order.permutation)
    return tensors


def left(cost: float, initial_cost: float) -> float:
    """Divide the criterion at P by that at P = I; NaN where that is not positive (a trace)."""
    return cost / initial_cost if initial_cost > 0 else float("nan")


def legible(text: str) -> str:
    """Escape what is no letter, sign or blank: names come from files, and terminals obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _table(found: Layers) -> Iterator[str]:
    controls = {layer.name: layer for layer in found.control}
    header = ["layer", "kind", "tap", "neurons", "samples", "before", "after", "left"]
    with_order = any(layer.order for layer in found.layers)
    header += ["order left"] if with_order else []
    header += ["control left"] if controls else []
    header += ["control order"] if controls and with_order else []
    header += ["solve/s"]
    rows, remarks = [header], []
    for layer in found.layers:
        row = [legible(layer.name), legible(layer.kind), layer.tap]
        row += [str(layer.neurons or "-"), str(layer.samples)]
        d = layer.descrambler
        row += (
            ["-", "-", "-"] if d is None else [f"{d.initial_cost:.4g}", f"{d.cost:.4g}", _left(d)]
        )
        row += [_left(layer.order)] if with_order else []
        control = controls.get(layer.name, Layer(name=layer.name))
        row += [_left(control.descrambler)] if controls else []
        row += [_left(control.order)] if controls and with_order else []
        row += ["-" if d is None else f"{layer.seconds:.3g}"]
        rows.append(row)
        if layer.error is not None:
            remarks.append(f"{layer.name}: {layer.error}")
        remarks += [f"{layer.name}: {note}" for note in layer.notes]
        if control.error is not None:
            remarks.append(f"{layer.name}, control: {control.error}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i < 3 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    yield from map(legible, remarks)


def _left(found: Descrambler | SmoothOrder | None) -> str:
    ratio = float("nan") if found is None else left(found.cost, found.initial_cost)
    return "-" if math.isnan(ratio) else f"{ratio:.3g}"
