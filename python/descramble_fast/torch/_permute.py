"""Orders of neurons written back into a model, whose outputs stay as they are."""

from __future__ import annotations

import difflib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from descramble_fast._arrays import Array, integer, listed, numbers, on_host, real
from descramble_fast._layers import ByName, Layers
from descramble_fast._permutation import Permutation
from descramble_fast.torch._axes import (
    Axis,
    Index,
    Order,
    Part,
    Sum,
    dependence,
    factor_order,
    new,
    parts,
    pin,
    resolve,
    size,
    sources,
)
from descramble_fast.torch._graph import Graph, Key, follows, storage_key
from descramble_fast.torch._observe import evaluating, uncompiled, unwrapped

Groups: TypeAlias = Mapping[str, Sequence[tuple[str, int]]]


@dataclass(frozen=True, kw_only=True)
class PermutableLayer:
    """What orders the neurons of a layer may take.

    Attributes
    ----------
    name : str
        The layer whose output neurons are meant.
    neurons : int
    orders : str
        ``"any"``; else what an order must keep, e.g. ``"12 blocks of 32"`` for attention heads:
        the blocks stay together, and each has an order of its own inside, or all the same
        (``"12 blocks of 32 alike"``). ``"none"`` where no neuron can move.
    lengths : tuple of int
        Lengths of orders that are taken: all neurons, or blocks alone.
    together : tuple of str
        Layers whose neurons move along.
    members : tuple of (str, int)
        Parameters and buffers that move along, and which of their axes.
    reason : str or None
        Why some or all of its neurons cannot move.
    """

    name: str
    neurons: int
    orders: str
    lengths: tuple[int, ...]
    together: tuple[str, ...]
    members: tuple[tuple[str, int], ...]
    reason: str | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Permutable(ByName[PermutableLayer]):
    """The layers of a model by name, and how the neurons of each may be reordered.

    Attributes
    ----------
    layers : tuple of PermutableLayer
    unused : tuple of str
        Parameters that the model does not use on such inputs: they stay as they are. If they are
        used on others, and read neurons that move, those outputs change.
    """

    layers: tuple[PermutableLayer, ...]
    unused: tuple[str, ...]
    _structure: _Structure = field(repr=False)

    def table(self) -> str:
        """Say all of it in columns."""
        rows = [("layer", "neurons", "orders", "remarks")]
        for layer in self.layers:
            together = [", ".join(layer.together[:3])] if layer.together else []
            if len(layer.together) > 3:
                together[0] += f" and {len(layer.together) - 3} more"
            remarks = [f"moves with {names}" for names in together]
            remarks += [layer.reason] if layer.reason is not None else []
            rows.append((layer.name, str(layer.neurons), layer.orders, "; ".join(remarks)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}".rstrip()
            for a, b, c, d in rows
        ]
        if self.unused:
            lines.append(f"not used on these inputs: {', '.join(self.unused)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False, kw_only=True)
class PermutedModel:
    """A model with neurons in another order.

    Attributes
    ----------
    model : torch.nn.Module
        The model that came, changed in place.
    layers : tuple of str
        Layers whose neurons stand in another order: those asked for and those that moved along.
    members : tuple of (str, int)
        Parameters and buffers that were reordered, and which of their axes.
    max_difference : float
        Largest difference of an output from what it was, relative to the largest entry of that
        output: rounding.
    tolerance : float
        What was allowed.
    unused : tuple of str
        Parameters that the model did not use on the inputs (:class:`Permutable`).
    """

    model: nn.Module
    layers: tuple[str, ...]
    members: tuple[tuple[str, int], ...]
    max_difference: float
    tolerance: float
    unused: tuple[str, ...]
    _moves: _Moves = field(repr=False)

    def undo(self) -> None:
        """Put the neurons back, bit for bit; a second call does nothing."""
        self._moves.undo()


def permutable(model: nn.Module, inputs: Any) -> Permutable:
    """List the layers of a model, and how the neurons of each may be reordered.

    The model is exported (`torch.export`) and read operation by operation: what lines up with a
    layer's neurons moves along, e.g. biases, normalisations and their running moments, the columns
    of the layers that read them, and other layers that are added to or multiplied with them. An
    operation that tells neurons apart, or that is not understood, fixes them.

    Parameters
    ----------
    model : torch.nn.Module
        Nothing of it is changed.
    inputs : tensor, tuple, list or mapping
        A batch, as `forward` takes it: positional arguments or, in a mapping, keyword arguments, on
        the model's device. Only its shapes count.

    Returns
    -------
    Permutable
        Linear layers, convolutions, embeddings and other weights that tensors are multiplied with.

    Raises
    ------
    TypeError
        If `model` is no torch.nn.Module.
    ValueError
        If it cannot be exported, e.g. because its control flow depends on data.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = permutable(model, torch.randn(3, 5))
    >>> print(found.table())
    layer  neurons  orders         remarks
    0            8  2 blocks of 4  group_norm in 1 groups them
    3            2  none           they are in the order of the model's output
    >>> found["0"].members
    (('0.weight', 0), ('0.bias', 0), ('1.weight', 0), ('1.bias', 0), ('3.weight', 1))
    """
    structure = _Structure.of(unwrapped(model), inputs)
    return Permutable(
        layers=tuple(structure.describe(name) for name in structure.layers),
        unused=structure.unused,
        _structure=structure,
    )


def permute_model(
    model: nn.Module,
    orders: Mapping[str, Permutation | Array | Sequence[int]] | Layers,
    inputs: Any,
    *,
    groups: Permutable | Groups | None = None,
    tolerance: float | None = None,
) -> PermutedModel:
    """Put neurons of a model in another order, in place, and check that its outputs are unchanged.

    What must move along is found as :func:`permutable` says. Parameters keep their identity,
    precision and device, and gradients move along; the state of an optimiser does not, so make a
    new one. A model that is refused is left bit for bit as it was.

    Parameters
    ----------
    model : torch.nn.Module
        On any devices, in any mode.
    orders : mapping or Layers
        For each layer by name, an order of its output neurons: neuron ``order[i]`` moves to place
        i, as in ``weight[order]``. Where neurons stand in blocks (attention heads, normalised
        groups), an order of all neurons that keeps the blocks together, or one of the blocks alone.
        With the result of :func:`descramble_model`, the orders that were found; those of samples
        tapped at a layer's input are orders of its input. One that cannot be made refuses them all.
    inputs : tensor, tuple, list or mapping
        A batch, as `forward` takes it: positional arguments or, in a mapping, keyword arguments, on
        the model's device. The model runs on it before and after.
    groups : Permutable or mapping, optional
        What moves together: what :func:`permutable` gave for this model, which is found again
        otherwise. Or, for models that cannot be exported, parameters and axes by names of your
        choice that `orders` then uses, e.g. ``{"hidden": [("fc1.weight", 0), ("fc1.bias", 0),
        ("fc2.weight", 1)]}``; an axis k times as long as the shortest holds blocks of k, as a
        convolution's flattened outputs do.
    tolerance : float, optional
        Largest difference allowed, relative to the largest entry of each output; 4 ε^(2/3) by
        default, where ε is the spacing of the coarsest precision that the model computes in:
        1.5e-10 for float64, 1e-4 for float32, 0.04 for float16.

    Returns
    -------
    PermutedModel

    Raises
    ------
    TypeError
        If an argument is of another type, or an order is not of integers.
    ValueError
        If a layer is unknown or cannot be reordered so, with the reason; if orders of layers that
        share neurons differ; if the model cannot be exported; if outputs differ by more than
        `tolerance`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.randn(3, 5)
    >>> before, order = model(x), torch.randperm(8)
    >>> result = permute_model(model, {"0": order}, x)
    >>> result.members
    (('0.weight', 0), ('0.bias', 0), ('2.weight', 1))
    >>> torch.allclose(model(x), before, rtol=0, atol=result.tolerance)
    True
    """
    inner = unwrapped(model)
    if tolerance is not None and not (isinstance(tolerance, float) and tolerance == math.inf):
        tolerance = real("tolerance", tolerance)
        if tolerance < 0:
            raise ValueError(f"tolerance: got {tolerance}, expected at least 0")
    if groups is None:
        structure = _Structure.of(inner, inputs)
    elif isinstance(groups, Permutable):
        structure = groups._structure
        if structure.model is not inner:
            raise ValueError("groups: they were found for another model")
    else:
        structure = _Structure.given(inner, groups)
    found = structure.orders(_wanted(orders))
    tensors = _tensors(inner)
    before = _outputs(inner, inputs)
    if tolerance is None:
        dtypes = {tensor.dtype for tensor in (*tensors.values(), *before)}
        tolerance = _tolerance(dtypes | structure.dtypes)
    moves = _Moves()
    try:
        for key, axes in structure.stored.items():
            for i, axis in enumerate(axes):
                if any(part in found for part in parts(axis)):
                    moves.make(tensors[structure.names[key][0]], i, sources(axis, found))
        difference = _difference(before, _outputs(inner, inputs))
        if not difference <= tolerance:
            raise ValueError(
                f"model: its outputs differ by {difference:.3g} of the largest, expected at most "
                f"{tolerance:.3g}; it is left as it was"
            )
    except BaseException:
        moves.undo()
        raise
    return PermutedModel(
        model=model,
        layers=structure.moved(found),
        members=structure.members(found),
        max_difference=difference,
        tolerance=tolerance,
        unused=structure.unused,
        _moves=moves,
    )


# What moves together -----------------------------------------------------------------------------


class _Structure:
    """Axes of a model's parameters, and of its layers."""

    def __init__(self, model: nn.Module, what: str) -> None:
        self.model, self.what = model, what
        self.tensors = _tensors(model)
        self.names: dict[Key, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.names.setdefault(storage_key(tensor), []).append(name)
        self.stored: dict[Key, list[Axis]] = {}
        self.layers: dict[str, tuple[Axis, Axis | None]] = {}
        self.outer: dict[Part, tuple[Part, ...]] = {}
        self.unused: tuple[str, ...] = ()
        self.dtypes: set[torch.dtype] = set()

    @classmethod
    def of(cls, model: nn.Module, inputs: Any) -> _Structure:
        """Read a model that can be exported."""
        self = cls(model, "layer")
        graph = Graph(_exported(model, inputs), self.tensors)
        self.stored, self.dtypes = graph.stored, graph.dtypes
        self.unused = tuple(
            name
            for name, tensor in self.tensors.items()
            if isinstance(tensor, nn.Parameter) and storage_key(tensor) not in graph.used
        )
        self._fix_overlaps()
        axes = [axis for axes in graph.stored.values() for axis in axes]
        self.outer = dependence(graph.operations, axes)
        # A layer is called by its module, where that has no other weight.
        for module_name, weights in self._owners(graph.layers).items():
            for name in weights:
                uses = graph.layers[storage_key(self.tensors[name])]
                alone = len(weights) == 1 and module_name
                self.layers[module_name if alone else name] = uses.get(
                    module_name, next(iter(uses.values()))
                )
        return self

    @classmethod
    def given(cls, model: nn.Module, groups: Groups) -> _Structure:
        """Take the groups as they are specified."""
        self = cls(model, "group")
        if not isinstance(groups, Mapping):
            raise TypeError(f"groups: got {type(groups).__name__}, expected a mapping")
        taken: dict[tuple[Key, int], str] = {}
        for group, members in groups.items():
            found: list[tuple[Key, int, int]] = []
            where = f"groups[{group!r}]"
            if not isinstance(group, str):
                raise TypeError(f"{where}: got a name of type {type(group).__name__}, expected str")
            for member in listed(where, members, "pairs of a parameter's name and an axis"):
                try:
                    name, i = member
                    i = integer("axis", i)
                except (TypeError, ValueError):
                    raise TypeError(
                        f"{where}: got {member!r}, expected pairs of a parameter's name and an axis"
                    ) from None
                if name not in self.tensors:
                    raise ValueError(f"{where}: {_unknown('parameter', name, self.tensors)}")
                tensor = self.tensors[name]
                if not -tensor.ndim <= i < tensor.ndim:
                    raise ValueError(f"{where}: {name} has {tensor.ndim} axes, got {i}")
                key, i = storage_key(tensor), i % tensor.ndim
                if taken.setdefault((key, i), group) != group:
                    raise ValueError(f"{where}: axis {i} of {name} is also in {taken[key, i]!r}")
                found.append((key, i, tensor.shape[i]))
            n = min((length for *_, length in found), default=0)
            part = Part(n)
            for key, i, length in found:
                if n == 0 or length % n:
                    raise ValueError(
                        f"{where}: axis {i} of {self.names[key][0]} has {length} entries, expected "
                        f"a multiple of {n}"
                    )
                shape = self.tensors[self.names[key][0]].shape
                axes = self.stored.setdefault(key, [new(length) for length in shape])
                axes[i] = (part, Part(length // n))
            self.layers[group] = (part,), None
        return self

    def _fix_overlaps(self) -> None:
        """Fix parameters that share memory without being equal."""
        spans: dict[int, list[tuple[int, int, Key]]] = {}
        for key in self.stored:
            tensor = self.tensors[self.names[key][0]]
            if tensor.numel():
                start = int(tensor.storage_offset())
                end = start + sum(
                    (n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)
                )
                spans.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, end, key))
        for found in spans.values():
            found.sort(key=lambda span: span[:2])
            for (_, end, one), (start, _, two) in itertools.pairwise(found):
                if start <= end:
                    for key in (one, two):
                        for axis in self.stored[key]:
                            pin(axis, "a parameter shares memory with another")

    def _owners(self, weights: Iterable[Key]) -> dict[str, list[str]]:
        owners: dict[str, list[str]] = {}
        wanted = set(weights)
        for name, tensor in self.tensors.items():
            if storage_key(tensor) in wanted:
                # A parametrised weight is made from others, which are named after it.
                module = name.rpartition(".")[0].split(".parametrizations.")[0]
                owners.setdefault(module.removeprefix("parametrizations."), []).append(name)
        return owners

    # Descriptions --------------------------------------------------------------------------------

    def describe(self, name: str) -> PermutableLayer:
        """Say what orders a layer's neurons may take."""
        axis, _ = self.layers[name]
        free = {part for part in parts(axis) if not part.pins and part.size > 1}
        members = self.members(free)
        together = tuple(other for other in self.moved(free) if other != name)
        return PermutableLayer(
            name=name,
            neurons=size(axis),
            orders=self._text(axis) if free else "none",
            lengths=tuple(_lengths(axis)) if free else (),
            together=together,
            members=members,
            reason=_why(axis),
        )

    def members(self, moved: Iterable[Part]) -> tuple[tuple[str, int], ...]:
        """Name parameters and axes that hold some of these parts."""
        wanted = set(moved)
        return tuple(
            (name, i)
            for key, axes in self.stored.items()
            for name in self.names[key]
            for i, axis in enumerate(axes)
            if wanted & set(parts(axis))
        )

    def moved(self, found: Iterable[Part]) -> tuple[str, ...]:
        """Name layers whose output neurons hold some of these parts."""
        wanted = set(found)
        return tuple(name for name, (axis, _) in self.layers.items() if wanted & set(parts(axis)))

    def _text(self, axis: Axis) -> str:
        factors = resolve(axis)
        if not factors:
            return "1"
        if len(factors) == 1 and isinstance(factors[0], Part) and not factors[0].pins:
            return "any"
        words, before = [], list[Part]()
        for factor in factors:
            if isinstance(factor, Sum):
                if _fixed(factor):
                    word = f"{factor.size} fixed"
                else:
                    texts = [self._part_text(one) for one in factor.axes]
                    alike = len(set(texts)) == 1 and texts[0] != "1"
                    word = f"{len(texts)} times {texts[0]}" if alike else " + ".join(texts)
                    word = f"({word})" if len(factors) > 1 else word
            else:
                word = f"{factor.size} fixed" if factor.pins else str(factor.size)
                if not factor.pins and not set(before) <= set(self.outer.get(factor, ())):
                    word += " alike"
                before.append(factor)
            words.append(word)
        return " blocks of ".join(words)

    def _part_text(self, axis: Axis) -> str:
        text = self._text(axis)
        return str(size(axis)) if text == "any" else text

    # Orders --------------------------------------------------------------------------------------

    def orders(self, wanted: Iterable[tuple[str, bool, Index]]) -> dict[Part, Order]:
        """Find the orders of parts that make up the orders of layers."""
        found: dict[Part, Order] = {}
        for name, at_input, order in wanted:
            where = f"orders[{name!r}]"
            if name not in self.layers:
                raise ValueError(f"{where}: {_unknown(self.what, name, self.layers)}")
            output_axis, input_axis = self.layers[name]
            axis = input_axis if at_input else output_axis
            if axis is None:
                raise ValueError(f"{where}: it has no input of its own to reorder")
            for part, one in self._factored(where, name, axis, order).items():
                known = found.setdefault(part, one)
                if known.outer != one.outer or not np.array_equal(known.table, one.table):
                    raise ValueError(
                        f"{where}: its neurons are those of {known.layer!r}, whose order differs"
                    )
        return found

    def _factored(self, where: str, name: str, axis: Axis, order: Index) -> dict[Part, Order]:
        n, lengths = size(axis), _lengths(axis)
        if len(order) not in lengths:
            expected = " or ".join(map(str, lengths))
            raise ValueError(f"{where}: got an order of {len(order)}, expected {expected}")
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise ValueError(f"{where}: got no permutation of 0 ... {len(order) - 1}")
        part = lengths[len(order)]
        if part is not None:
            outer = self.outer.get(part, ())
            table = np.broadcast_to(order, (*(one.size for one in outer), len(order)))
            return {part: Order(outer, table, name)}
        block = n // len(order)
        order = (order[:, None] * block + np.arange(block)).ravel()
        orders = factor_order(axis, order, self.outer, name)
        orders = {part: one for part, one in orders.items() if not part.pins}
        if not np.array_equal(sources(axis, orders), order):
            text, why = self._text(axis), _why(axis)
            free = any(not part.pins for part in parts(axis))
            what = f"got an order that does not keep {text}" if free else "its neurons cannot move"
            raise ValueError(f"{where}: {what}" + (f": {why}" if why else ""))
        return orders


def _lengths(axis: Axis) -> dict[int, Part | None]:
    """Give the lengths of orders: all neurons or the first factors as blocks, or else one part."""
    factors = resolve(axis)
    lengths: dict[int, Part | None] = {size(factors): None}
    for i in range(1, len(factors)):
        if all(isinstance(factor, Part) and not factor.pins for factor in factors[:i]):
            lengths.setdefault(size(factors[:i]))
    for part in parts(axis):
        if not part.pins:
            lengths.setdefault(part.size, part)
    return lengths


def _fixed(factor: Sum) -> bool:
    return all(size(one) == 1 for one in factor.axes)


def _why(axis: Axis) -> str | None:
    """Say why an axis has not all orders."""
    reasons: list[str] = []

    def look(axis: Axis) -> None:
        factors = resolve(axis)
        for factor in factors:
            if isinstance(factor, Sum):
                reasons.append(f"{factor.origin} tells parts of them apart")
                for one in factor.axes:
                    look(one)
            else:
                reasons.extend(factor.pins[:1])
                if len(factors) > 1 and factor.origin and not factor.pins:
                    reasons.append(f"{factor.origin} groups them")

    look(axis)
    return "; ".join(list(dict.fromkeys(reasons))[:3]) or None


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    ending = [other for other in names if other.endswith(f".{name}")][:3]
    guesses = ", ".join(map(repr, dict.fromkeys([*ending, *near])))
    return f"there is no such {what}" + (f"; did you mean {guesses}?" if guesses else "")


def _wanted(orders: Any) -> list[tuple[str, bool, Index]]:
    """Give name, whether its input is meant, and order."""
    if isinstance(orders, Layers):
        found = [
            (layer.name, layer.tap == "input", _order(layer.name, layer.order))
            for layer in orders.layers
            if layer.order is not None
        ]
        if not found:
            raise ValueError("orders: none of the layers has an order; ask for it with order=True")
        return found
    if not isinstance(orders, Mapping):
        raise TypeError(
            f"orders: got {type(orders).__name__}, expected a mapping from layers to orders"
        )
    return [(name, False, _order(name, order)) for name, order in orders.items()]


def _order(name: str, order: Any) -> Index:
    where = f"orders[{name!r}]"
    if isinstance(order, Permutation):
        if order.signs is not None and np.any(on_host(order.signs) < 0):
            raise ValueError(f"{where}: got negative signs, expected a permutation")
        order = order.permutation
    array = numbers(where, order, "integers")
    if array.ndim != 1:
        raise ValueError(f"{where}: got shape {array.shape}, expected one axis")
    return array.astype(np.int64)


# The model ---------------------------------------------------------------------------------------


class _Moves:
    """Reorderings that were made, so that they can be undone."""

    def __init__(self) -> None:
        self._made: list[tuple[torch.Tensor, int, Index]] = []

    def make(self, tensor: torch.Tensor, axis: int, index: Index) -> None:
        """Reorder a tensor in place, and its gradient."""
        if np.array_equal(index, np.arange(len(index))):
            return
        _reorder(tensor, axis, index)
        self._made.append((tensor, axis, index))
        if tensor.grad is not None:
            self.make(tensor.grad, axis, index)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._made:
            tensor, axis, index = self._made.pop()
            _reorder(tensor, axis, np.argsort(index))


@torch.no_grad()
def _reorder(tensor: torch.Tensor, axis: int, index: Index) -> None:
    tensor.copy_(tensor.index_select(axis, torch.as_tensor(index, device=tensor.device)))


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


class _Outputs(nn.Module):
    """A model that gives the tensors of its output alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(_leaves(self.model(*args, **kwargs)))


def _leaves(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for one in output.values() if isinstance(output, Mapping) else output:
            yield from _leaves(one)


def _exported(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
    args, kwargs = _call(inputs)
    try:
        with evaluating(model), torch.no_grad(), warnings.catch_warnings(), uncompiled():
            warnings.simplefilter("ignore")
            program: torch.export.ExportedProgram = torch.export.export(
                _Outputs(model).eval(), args, kwargs, strict=False
            )
            if not follows(program):
                # No decompositions: what works in place is written as functions, blocks under
                # other modes are opened, and views are taken to their common forms.
                program = program.run_decompositions({})
    except Exception as error:
        summary = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"model: it cannot be exported ({type(error).__name__}: {summary}); say with groups "
            "what moves together"
        ) from error
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            spec.target = spec.target.removeprefix("model.")
    for output in program.graph_signature.output_specs:
        if output.target is not None:
            output.target = output.target.removeprefix("model.")
    return program


def _call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give arguments of a call, as copies that the model may overwrite."""
    copied = _copied(inputs)
    if isinstance(copied, Mapping):
        return (), dict(copied)
    if isinstance(copied, (tuple, list)):
        return tuple(copied), {}
    if isinstance(copied, torch.Tensor):
        return (copied,), {}
    raise TypeError(
        f"inputs: got {type(inputs).__name__}, expected a tensor, a tuple or list of positional "
        "arguments, or a mapping of keyword arguments"
    )


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    return value


def _outputs(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    args, kwargs = _call(inputs)
    devices = {t.device for t in _tensors(model).values()} | {t.device for t in _leaves(inputs)}
    gpus = sorted({device.index for device in devices if device.type == "cuda"})
    with evaluating(model), torch.no_grad(), uncompiled(), torch.random.fork_rng(gpus):
        found = [tensor.detach().clone() for tensor in _leaves(model(*args, **kwargs))]
    if not found:
        raise ValueError("model: its output holds no tensor to compare")
    return found


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Largest difference, each tensor's relative to its largest entry; inf for other shapes."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    return max(_one_difference(a, b) for a, b in zip(before, after, strict=True))


def _one_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.to_dense() if a.is_sparse else a, b.to_dense() if b.is_sparse else b
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    if torch.finfo(a.dtype).bits < 32:
        a, b = a.float(), b.float()
    differ = (a != b) & ~(a.isnan() & b.isnan())
    if not differ.any():
        return 0.0
    scale = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
    largest: float = (a[differ] - b[differ]).abs().max().item()
    return largest / scale if scale and largest == largest else float("inf")


def _tolerance(dtypes: Iterable[torch.dtype]) -> float:
    # Reordered sums differ by a few ε per layer, times the root of their length, and more where
    # large terms cancel: far below ε^(2/3). A neuron in the wrong place shows far above.
    spacing = [torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point]
    return float(4 * max(spacing, default=0.0) ** (2 / 3))
