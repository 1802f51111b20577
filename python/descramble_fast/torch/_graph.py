"""What the operations of an exported model do to the axes of its tensors."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from descramble_fast.torch._axes import (
    Axis,
    Operand,
    Part,
    Sum,
    new,
    pin,
    pinned,
    size,
    split,
    unify,
)

Axes: TypeAlias = list[Axis]
Arguments: TypeAlias = dict[str, Any]
Labels: TypeAlias = Sequence[Hashable]
Key: TypeAlias = tuple[Any, ...]


def storage_key(tensor: torch.Tensor) -> Key:
    """Tell tied parameters: equal for tensors of the same entries in memory."""
    if tensor.data_ptr() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


class Graph:
    """An exported model, read operation by operation.

    Attributes
    ----------
    stored : dict
        Axes of each parameter and buffer, by `storage_key`.
    layers : dict
        For each weight, output and input axis by the path of the module that used it.
    operations : list
        Operands of every operation with labelled axes: equal labels line up.
    used : set
        Parameters and buffers that something reads.
    dtypes : set
        Precisions of what is computed.
    """

    def __init__(self, program: ExportedProgram, tensors: dict[str, torch.Tensor]) -> None:
        self.stored: dict[Key, Axes] = {}
        self.layers: dict[Key, dict[str, tuple[Axis, Axis]]] = {}
        self.operations: list[list[Operand]] = []
        self.used: set[Key] = set()
        self.dtypes: set[torch.dtype] = set()
        self._values: dict[Node, Any] = {}
        self._origins: dict[Node, tuple[Key, list[int]]] = {}
        signature = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self._read_input(node, signature[node.name], tensors)
            elif node.op == "call_function":
                self._read_operation(node)
        self._read_outputs(program, tensors)

    def _read_input(self, node: Node, spec: Any, tensors: dict[str, torch.Tensor]) -> None:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            what = f"input {node.name.removeprefix('args_')}"
            what = what if spec.kind == InputKind.USER_INPUT else "constants"
            reason = f"they are in the order of the model's {what}"
            self._values[node] = [pinned(n, reason) for n in value.shape]
            return
        tensor = tensors[spec.target]
        key = storage_key(tensor)
        axes = self.stored.setdefault(key, [new(n) for n in tensor.shape])
        if node.users:
            self.used.add(key)
        if spec.kind == InputKind.BUFFER and not (spec.persistent and value.is_floating_point()):
            what = "not saved with the model" if value.is_floating_point() else "of integers"
            for axis in axes:
                pin(axis, f"they are in the order of {spec.target}, a buffer {what}")
        self._values[node] = axes
        self._origins[node] = key, list(range(len(axes)))

    def _read_outputs(self, program: ExportedProgram, tensors: dict[str, torch.Tensor]) -> None:
        (node,) = (node for node in program.graph.nodes if node.op == "output")
        specs = program.graph_signature.output_specs
        seen = [spec.kind == OutputKind.USER_OUTPUT for spec in specs]
        for i, (value, spec) in enumerate(zip(node.args[0], specs, strict=True)):
            if not isinstance(value, Node) or value not in self._values:
                continue
            axes = self._values[value]
            if spec.kind == OutputKind.BUFFER_MUTATION and spec.target in tensors:
                for axis, stored in zip(
                    axes, self.stored[storage_key(tensors[spec.target])], strict=True
                ):
                    unify(axis, stored, f"an update of buffer {spec.target}")
                continue
            which = "" if sum(seen) == 1 else f" {sum(seen[:i])}"
            for axis in axes:
                pin(axis, f"they are in the order of the model's output{which}")

    def _read_operation(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, i = node.args
            if isinstance(source, Node) and source in self._values:
                self._values[node] = self._values[source][i]
                if source in self._origins:
                    self._origins[node] = self._origins[source]
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            self._fix(node)
            return
        name = operation(node)
        if name.startswith(("_assert", "sym_")):
            return
        arguments = _arguments(node)
        tags = node.target.tags
        rule = _RULES.get(name)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1:
            self.dtypes.add(value.dtype)
        random = arguments.get("train", arguments.get("dropout_p", True))
        if torch.Tag.nondeterministic_seeded in tags and random:
            rule = _fix
        elif rule is None and torch.Tag.pointwise in tags:
            rule = _pointwise
        try:
            self._values[node] = (rule or _fix)(self, node, arguments)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            # Arguments of an unforeseen form; what has been unified restrains orders, no more.
            self._values[node] = _fix(self, node, arguments)
        source = node.args[0] if node.args else None
        if name in _KEEPING and isinstance(source, Node) and source in self._origins:
            key, order = self._origins[source]
            if name in ("t", "transpose", "permute"):
                order = _permutation(name, arguments, len(order), order)
            self._origins[node] = key, order

    # What the rules use --------------------------------------------------------------------------

    def axes(self, node: Node) -> Axes:
        """Give the axes of a tensor."""
        found: Axes = self._values[node]
        return found

    def path(self, node: Node) -> str:
        """Name the module of an operation, as `named_modules` does."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path: str = stack[-1][0] if stack else ""
        return path.removeprefix("model").removeprefix(".")

    def where(self, node: Node) -> str:
        """Name an operation and its module."""
        return f"{operation(node).lstrip('_')} in {self.path(node) or 'the model'}"

    def apart(self, node: Node) -> str:
        """Say that an operation treats entries by their place."""
        return f"{self.where(node)} tells them apart"

    def together(self, operands: Iterable[tuple[Axes, Labels]], out: Labels, reason: str) -> Axes:
        """Unify axes of equal labels and give those of the output.

        Axes of one entry are broadcast, and stand for nothing.
        """
        labelled: dict[Hashable, Axis] = {}
        operation: list[Operand] = []
        for axes, labels in operands:
            operand = []
            for axis, label in zip(axes, labels, strict=True):
                if size(axis) == 1:
                    continue
                if label in labelled:
                    unify(labelled[label], axis, reason)
                else:
                    labelled[label] = axis
                operand.append((label, axis))
            operation.append(operand)
        result = [labelled.get(label, ()) for label in out]
        operation.append(list(zip(out, result, strict=True)))
        self.operations.append(operation)
        return result

    def layer(self, node: Node, weight: Any, output: int, input: int) -> None:
        """Remember which dimensions of a weight, as the operation sees it, face which way."""
        if weight in self._origins:
            key, order = self._origins[weight]
            axes = self.stored[key]
            self.layers.setdefault(key, {})[self.path(node)] = (
                axes[order[output]],
                axes[order[input]],
            )

    def _fix(self, node: Node) -> None:
        self._values[node] = _fix(self, node, {})


def operation(node: Node) -> str:
    """Give an operation's name without its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def follows(program: ExportedProgram) -> bool:
    """Say whether all operations are understood as they are, none of them in place."""
    return all(
        node.target is operator.getitem
        or (
            isinstance(node.target, torch._ops.OpOverload)
            and not node.target._schema.is_mutable
            and (operation(node) in _RULES or torch.Tag.pointwise in node.target.tags)
        )
        for node in program.graph.nodes
        if node.op in ("call_function", "get_attr")
    )


def _arguments(node: Node) -> Arguments:
    """Give the arguments by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    found: Arguments = {a.name: a.default_value for a in schema if a.has_default_value()}
    found |= dict(zip((a.name for a in schema), node.args, strict=False))
    return found | node.kwargs


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _like_output(node: Node, make: Callable[[int], Axis]) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [make(n) for n in value.shape]
    if isinstance(value, (tuple, list)):
        return tuple(
            [make(n) for n in one.shape] if isinstance(one, torch.Tensor) else None for one in value
        )
    return None


def _from_right(n: int) -> list[Hashable]:
    return list(range(-n, 0))


# Rules -------------------------------------------------------------------------------------------


def _fix(graph: Graph, node: Node, arguments: Arguments) -> Any:
    """Pin everything: the operation is not understood."""
    reason = f"{graph.where(node)} is not among the operations that this follows"
    for source in node.all_input_nodes:
        value = graph._values.get(source)
        for axes in value if isinstance(value, tuple) else [value]:
            for axis in axes or []:
                pin(axis, reason)
    return _like_output(node, lambda n: pinned(n, reason))


def _pointwise(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    sources = [node for node in node.all_input_nodes if node in graph._values]
    operands = [(graph.axes(source), _from_right(len(graph.axes(source)))) for source in sources]
    return graph.together(operands, _from_right(len(_shape(node))), graph.where(node))


def _same(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    axes = graph.axes(node.args[0])  # type: ignore[arg-type]
    return graph.together([(axes, range(len(axes)))], range(len(axes)), graph.where(node))


def _free(graph: Graph, node: Node, arguments: Arguments) -> Any:
    return _like_output(node, new)


def _counted(graph: Graph, node: Node, arguments: Arguments) -> Any:
    return _like_output(node, lambda n: pinned(n, graph.apart(node)))


def _linear(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x, weight, bias = graph.axes(arguments["input"]), arguments["weight"], arguments["bias"]
    rows = _from_right(len(x) - 1)
    operands: list[tuple[Axes, Labels]] = [(x, [*rows, "in"]), (graph.axes(weight), ["out", "in"])]
    if bias is not None:
        operands.append((graph.axes(bias), ["out"]))
    graph.layer(node, weight, 0, 1)
    return graph.together(operands, [*rows, "out"], graph.where(node))


def _matmul(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    adds = operation(node) in ("addmm", "baddbmm")
    left, right = node.args[1:3] if adds else node.args[:2]
    a, b = graph.axes(left), graph.axes(right)  # type: ignore[arg-type]
    batch = _from_right(max(len(a), len(b), 2) - 2)
    rows: Labels = ["m"] if len(a) > 1 else []
    columns: Labels = ["p"] if len(b) > 1 else []
    a_batch = batch[len(batch) - max(len(a) - 2, 0) :]
    b_batch = batch[len(batch) - max(len(b) - 2, 0) :]
    operands: list[tuple[Axes, Labels]] = [
        (a, [*a_batch, *rows, "k"]),
        (b, [*b_batch, "k", *columns]),
    ]
    out = [*batch, *rows, *columns]
    if adds:
        added = graph.axes(node.args[0])  # type: ignore[arg-type]
        operands.append((added, out[len(out) - len(added) :]))
    if len(b) == 2 and left not in graph._origins:
        graph.layer(node, right, 1, 0)
    elif len(a) == 2 and right not in graph._origins:
        graph.layer(node, left, 0, 1)
    return graph.together(operands, out, graph.where(node))


def _grouped_matmul(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    """Multiply rows with the matrices of their experts."""
    x, weight, ends = (graph.axes(source) for source in node.args[:3])  # type: ignore[arg-type]
    for axis in (x[0], weight[0]):
        pin(axis, graph.apart(node))
    graph.layer(node, node.args[1], 2, 1)
    operands: list[tuple[Axes, Labels]] = [
        (x, ["row", "in"]),
        (weight, ["expert", "in", "out"]),
        (ends, ["expert"]),
    ]
    return graph.together(operands, ["row", "out"], graph.where(node))


def _einsum(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    equation = arguments["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    sources = [graph.axes(source) for source in arguments["tensors"]]
    terms = []
    for term, axes in zip(left.split(","), sources, strict=True):
        dots = _from_right(len(axes) - len(term.replace("...", "")))
        before, ellipsis, after = term.partition("...")
        terms.append([*before, *(dots if ellipsis else []), *after])
    letters = left.replace(",", "").replace(".", "")
    if not arrow:
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        right = ("..." if "..." in left else "") + right
    before, ellipsis, after = right.partition("...")
    dots = _from_right(len(_shape(node)) - len(before) - len(after)) if ellipsis else []
    return graph.together(
        zip(sources, terms, strict=True), [*before, *dots, *after], graph.where(node)
    )


def _embedding(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    weight, indices = arguments["weight"], graph.axes(arguments["indices"])
    rows = _from_right(len(indices))
    pin(graph.axes(weight)[0], graph.apart(node))
    graph.layer(node, weight, 1, 0)
    return graph.together(
        [(graph.axes(weight), ["entry", "out"]), (indices, rows)],
        [*rows, "out"],
        graph.where(node),
    )


def _convolution(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    name, groups = operation(node), arguments["groups"]
    transposed = "transpose" in name or arguments.get("transposed", False)
    weight, bias = arguments["weight"], arguments["bias"]
    x, w = graph.axes(arguments["input"]), graph.axes(weight)
    spatial = len(w) - 2
    reason = graph.where(node)
    for axis in (*x[-spatial:], *w[2:]):
        pin(axis, graph.apart(node))
    channels = x[-spatial - 1]
    # Group by group, channels of the input meet channels of the output.
    group, inner = Part(groups), Part(size(channels) // groups)
    unify(channels, (group, inner), reason)
    outer: Axis = (group, Part(_shape(node)[-spatial - 1] // groups))
    if transposed:
        unify(w[0], (group, inner), reason)
        unify(w[1], outer[1:], reason)
    else:
        unify(w[0], outer, reason)
        unify(w[1], (inner,), reason)
    batch = _from_right(len(x) - spatial - 1)
    operands: list[tuple[Axes, Labels]] = [
        ([*x[: -spatial - 1], (group,), (inner,)], [*batch, "group", "in"]),
        ([(group,), (inner,), outer[1:]], ["group", "in", "out"]),
    ]
    if bias is not None:
        unify(graph.axes(bias)[0], outer, reason)
        operands.append(([(group,), outer[1:]], ["group", "out"]))
    found = graph.together(operands, [*batch, "group", "out"], reason)
    if weight in graph._origins:
        key, _ = graph._origins[weight]
        graph.layers.setdefault(key, {})[graph.path(node)] = outer, channels
    places = [pinned(n, graph.apart(node)) for n in _shape(node)[-spatial:]]
    return [*found[:-2], outer, *places]


def _norm(graph: Graph, node: Node, arguments: Arguments) -> Any:
    name = operation(node)
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    labels: list[Hashable] = list(range(len(x)))
    if "group" in name:
        groups = arguments["num_groups"] if "num_groups" in arguments else arguments["group"]
        unify(x[1], (Part(groups), Part(size(x[1]) // groups)), graph.where(node))
    shape = arguments.get("normalized_shape")
    over = labels[1:2] if shape is None else labels[len(x) - len(shape) :]
    operands = [(x, labels)]
    for what in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(arguments.get(what), Node):
            operands.append((graph.axes(arguments[what]), over))
    found = graph.together(operands, labels, graph.where(node))
    if isinstance(node.meta["val"], torch.Tensor):
        return found
    return (found, *_like_output(node, lambda n: pinned(n, graph.apart(node)))[1:])


def _attention(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    q, k, v = (list(graph.axes(arguments[name])) for name in ("query", "key", "value"))
    if arguments["enable_gqa"]:
        repeats = Part(size(q[-3]) // size(k[-3]))
        k[-3] = (*k[-3], repeats)
        v[-3] = (*v[-3], Part(size(q[-3]) // size(v[-3])))
    if arguments["is_causal"]:
        for axis in (q[-2], k[-2]):
            pin(axis, graph.apart(node))
    batch = _from_right(len(_shape(node)) - 2)

    def outer(n: int) -> Labels:
        return batch[len(batch) - n :]

    operands: list[tuple[Axes, Labels]] = [
        (q, [*outer(len(q) - 2), "to", "in"]),
        (k, [*outer(len(k) - 2), "from", "in"]),
        (v, [*outer(len(v) - 2), "from", "out"]),
    ]
    if arguments["attn_mask"] is not None:
        mask = graph.axes(arguments["attn_mask"])
        operands.append((mask, [*batch, "to", "from"][-len(mask) :] if mask else []))
    return graph.together(operands, [*batch, "to", "out"], graph.where(node))


def _reduce(graph: Graph, node: Node, arguments: Arguments) -> Any:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    if "other" in arguments:
        return _pointwise(graph, node, arguments)
    dims = arguments.get("dim")
    if dims is None or dims == []:
        gone = set(range(len(x)))
    else:
        gone = {d % max(len(x), 1) for d in ([dims] if isinstance(dims, int) else dims)}
    kept: Labels = [i for i in range(len(x)) if i not in gone]
    if arguments.get("keepdim", False):
        kept = [("one", i) if i in gone else i for i in range(len(x))]
    found = graph.together([(x, range(len(x)))], kept, graph.where(node))
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        if "arg" in operation(node):
            for i in gone:
                pin(x[i], graph.apart(node))
        return found
    # The second output of these counts along the axis.
    counts = operation(node) in ("max", "min", "mode", "median")
    if counts and any(user.args[1] == 1 for user in node.users):
        for i in gone:
            pin(x[i], graph.apart(node))
    return tuple(found for _ in value)


def _through(graph: Graph, node: Node, fixed: Iterable[int]) -> Any:
    """Pass axes on, but those that the operation treats by place."""
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    at = {d % max(len(x), 1) for d in fixed}
    for i in at:
        pin(x[i], graph.apart(node))

    def passed(shape: Sequence[int]) -> Axes:
        kept = [i if i not in at else ("new", i) for i in range(len(x))]
        found = graph.together([(x, range(len(x)))], kept, graph.where(node))
        return [
            pinned(n, graph.apart(node)) if i in at else axis
            for i, (n, axis) in enumerate(zip(shape, found, strict=True))
        ]

    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return passed(value.shape)
    return tuple(passed(one.shape) for one in value)


def _along(graph: Graph, node: Node, arguments: Arguments) -> Any:
    dims = arguments.get("dim", arguments.get("dims", -1))
    n = len(graph.axes(node.args[0]))  # type: ignore[arg-type]
    return _through(graph, node, [dims] if isinstance(dims, int) else dims or range(n))


def _trailing(n: int) -> Callable[[Graph, Node, Arguments], Any]:
    return lambda graph, node, arguments: _through(graph, node, range(-n, 0))


def _pad(graph: Graph, node: Node, arguments: Arguments) -> Any:
    pad = arguments.get("pad", arguments.get("padding"))
    assert pad is not None
    return _through(graph, node, [-1 - i // 2 for i, n in enumerate(pad) if n])


def _pixel_shuffle(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x, shape = graph.axes(arguments["self"]), _shape(node)
    shuffled = operation(node) == "pixel_shuffle"
    channels = Part(shape[-3] if shuffled else size(x[-3]))
    r = arguments["upscale_factor" if shuffled else "downscale_factor"]
    pixels = pinned(r * r, graph.apart(node))
    for axis in x[-2:]:
        pin(axis, graph.apart(node))
    unify(x[-3], (channels, *pixels) if shuffled else (channels,), graph.where(node))
    places = [pinned(n, graph.apart(node)) for n in shape[-2:]]
    return [*x[:-3], (channels,) if shuffled else (channels, *pixels), *places]


# Shapes ------------------------------------------------------------------------------------------


def _reshape(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    if arguments.get("dtype") is not None:
        result: Axes = _fix(graph, node, arguments)
        return result
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    out = [new(n) for n in _shape(node)]
    unify(tuple(itertools.chain(*x)), tuple(itertools.chain(*out)), graph.where(node))
    return out


def _permutation(name: str, arguments: Arguments, n: int, items: Sequence[Any]) -> list[Any]:
    order = list(range(n))
    if name == "permute":
        order = [d % n for d in arguments["dims"]]
    elif n > 1:
        i, j = (0, 1) if name == "t" else (arguments["dim0"] % n, arguments["dim1"] % n)
        order[i], order[j] = order[j], order[i]
    return [items[i] for i in order]


def _channel_shuffle(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x = graph.axes(arguments["self"])
    group, inner = Part(arguments["groups"]), Part(size(x[1]) // arguments["groups"])
    unify(x[1], (group, inner), graph.where(node))
    return [x[0], (inner, group), *x[2:]]


def _permute(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    return _permutation(operation(node), arguments, len(x), x)


def _squeeze(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x = list(graph.axes(node.args[0]))  # type: ignore[arg-type]
    if operation(node) == "unsqueeze":
        x.insert(arguments["dim"] % (len(x) + 1), ())
        return x
    dims = arguments.get("dim", list(range(len(x))))
    gone = {d % max(len(x), 1) for d in ([dims] if isinstance(dims, int) else dims)}
    return [axis for i, axis in enumerate(x) if i not in gone or size(axis) != 1]


def _expand(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    shape = _shape(node)
    x = [()] * (len(shape) - len(x)) + x
    # Copies of one entry may stand in any order.
    return [new(n) if size(axis) != n else axis for n, axis in zip(shape, x, strict=True)]


def _repeat(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    x = [()] * (len(arguments["repeats"]) - len(x)) + x
    return [(Part(n), *axis) for n, axis in zip(arguments["repeats"], x, strict=True)]


def _repeat_interleave(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    repeats, dim = arguments.get("repeats"), arguments.get("dim")
    if not isinstance(repeats, int) or dim is None:
        result: Axes = _fix(graph, node, arguments)
        return result
    x = list(graph.axes(node.args[0]))  # type: ignore[arg-type]
    x[dim] = (*x[dim], Part(repeats))
    return x


def _pieces(graph: Graph, node: Node, dim: int, ends: Sequence[int]) -> list[Axes]:
    """Cut a tensor along an axis."""
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    dim %= len(x)
    lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    filled = sorted({end for end in ends if end > 0})
    cut = split(x[dim], filled, graph.where(node))
    if cut is None:
        pin(x[dim], graph.apart(node))
        cut = [pinned(n, graph.apart(node)) for n in lengths if n]
    pieces = iter(cut)
    return [[*x[:dim], next(pieces) if n else new(0), *x[dim + 1 :]] for n in lengths]


def _bounds(arguments: Arguments, n: int) -> tuple[int, int]:
    start = arguments.get("start")
    end = arguments.get("end")
    start, end, _ = slice(start, end).indices(n)
    return start, max(start, end)


def _slice(graph: Graph, node: Node, arguments: Arguments) -> Any:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    if arguments["step"] != 1:
        return _through(graph, node, [arguments["dim"]])
    n = size(x[arguments["dim"]])
    start, end = _bounds(arguments, n)
    return _pieces(graph, node, arguments["dim"], [start, end, n])[1]


def _select(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    dim = arguments["dim"] % len(graph.axes(node.args[0]))  # type: ignore[arg-type]
    n = size(graph.axes(node.args[0])[dim])  # type: ignore[arg-type]
    i = arguments["index"] % n
    piece = _pieces(graph, node, dim, [i, i + 1, n])[1]
    return piece[:dim] + piece[dim + 1 :]


def _split(graph: Graph, node: Node, arguments: Arguments) -> Any:
    dim = arguments["dim"]
    value = node.meta["val"]
    if operation(node) == "unbind":
        dim %= len(graph.axes(node.args[0]))  # type: ignore[arg-type]
        found = _pieces(graph, node, dim, range(1, len(value) + 1))
        return tuple(piece[:dim] + piece[dim + 1 :] for piece in found)
    ends = list(itertools.accumulate(one.shape[dim] for one in value))
    return tuple(_pieces(graph, node, dim, ends))


def _join(graph: Graph, node: Node, dim: int, tensors: list[Axes]) -> Axes:
    dim %= len(tensors[0])
    reason = graph.where(node)
    for other in tensors[1:]:
        for i, (one, two) in enumerate(zip(tensors[0], other, strict=True)):
            if i != dim:
                unify(one, two, reason)
    joined = Sum([axes[dim] for axes in tensors], reason)
    return [*tensors[0][:dim], (joined,), *tensors[0][dim + 1 :]]


def _cat(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    tensors = [graph.axes(source) for source in arguments["tensors"]]
    if operation(node) == "stack":
        dim = arguments["dim"] % (len(tensors[0]) + 1)
        return _join(graph, node, dim, [[*axes[:dim], (), *axes[dim:]] for axes in tensors])
    filled = [axes for axes in tensors if math.prod(map(size, axes))]
    return _join(graph, node, arguments["dim"], filled or tensors[-1:])


def _scatter(graph: Graph, node: Node, arguments: Arguments) -> Any:
    """Write a slice into a copy."""
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    dim = arguments["dim"] % len(x)
    source = list(graph.axes(arguments["src"]))
    n = size(x[dim])
    if operation(node) == "select_scatter":
        start = arguments["index"] % n
        end = start + 1
        source.insert(dim, ())
    elif arguments["step"] == 1:
        start, end = _bounds(arguments, n)
    else:
        return _fix(graph, node, arguments)
    pieces = _pieces(graph, node, dim, [start, end, n])
    pieces[1] = source
    return _join(graph, node, dim, [piece for piece in pieces if size(piece[dim])])


def _index(graph: Graph, node: Node, arguments: Arguments) -> Any:
    x = graph.axes(node.args[0])  # type: ignore[arg-type]
    indices = list(arguments["indices"]) + [None] * (len(x) - len(arguments["indices"]))
    used = [i for i, index in enumerate(indices) if index is not None]
    if any(indices[i].meta["val"].dtype in (torch.bool, torch.uint8) for i in used):
        return _fix(graph, node, arguments)
    for i in used:
        pin(x[i], graph.apart(node))
    chosen = [(graph.axes(indices[i]), _from_right(len(graph.axes(indices[i])))) for i in used]
    rows = _from_right(max(len(axes) for axes, _ in chosen))
    kept = [("kept", i) for i in range(len(x)) if i not in used]
    at = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    labels = [("kept", i) if i not in used else ("gone", i) for i in range(len(x))]
    out = [*kept[:at], *rows, *kept[at:]]
    return graph.together([(x, labels), *chosen], out, graph.where(node))


def _gather(graph: Graph, node: Node, arguments: Arguments) -> Any:
    x, index = graph.axes(arguments["self"]), graph.axes(arguments["index"])
    dim = arguments["dim"] % max(len(x), 1)
    if operation(node) == "index_select":
        pin(x[dim], graph.apart(node))
        return [*x[:dim], index[0] if index else (), *x[dim + 1 :]]
    for i, (one, two) in enumerate(zip(x, index, strict=True)):
        if i == dim:
            pin(one, graph.apart(node))
        else:
            unify(one, two, graph.where(node))
    labels = range(len(x))
    sides = [("gone", i) if i == dim else i for i in labels]
    return graph.together([(x, sides), (index, labels)], labels, graph.where(node))


def _prelu(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    x, weight = graph.axes(arguments["self"]), graph.axes(arguments["weight"])
    labels = range(len(x))
    return graph.together([(x, labels), (weight, [min(1, len(x) - 1)])], labels, graph.where(node))


def _glu(graph: Graph, node: Node, arguments: Arguments) -> Axes:
    n = size(graph.axes(node.args[0])[arguments["dim"]])  # type: ignore[arg-type]
    halves = _pieces(graph, node, arguments["dim"], [n // 2, n])
    labels = range(len(halves[0]))
    return graph.together([(half, labels) for half in halves], labels, graph.where(node))


_RULES: dict[str, Callable[[Graph, Node, Arguments], Any]] = {}


def _register(rule: Callable[[Graph, Node, Arguments], Any], names: str) -> None:
    _RULES.update(dict.fromkeys(names.split(), rule))


_register(_linear, "linear")
_register(_matmul, "matmul mm bmm mv dot addmm baddbmm")
_register(_einsum, "einsum")
_register(_grouped_matmul, "_grouped_mm grouped_mm grouped_mm_fallback")
_register(_embedding, "embedding")
_register(_convolution, "conv1d conv2d conv3d convolution")
_register(_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d")
_register(_norm, "batch_norm instance_norm group_norm layer_norm rms_norm _fused_rms_norm")
_register(_norm, "native_group_norm native_layer_norm native_batch_norm")
_register(_norm, "_native_batch_norm_legit _native_batch_norm_legit_no_training")
_register(_attention, "scaled_dot_product_attention")
_register(_reduce, "sum mean amax amin max min prod any all var std var_mean std_mean logsumexp")
_register(_reduce, "norm linalg_vector_norm argmax argmin median mode")
_register(_same, "softmax _softmax _safe_softmax log_softmax _log_softmax dropout _to_copy")
_register(_same, "clone contiguous detach alias lift_fresh_copy feature_dropout alpha_dropout")
_register(_pointwise, "__and__ __or__ __xor__ masked_fill where hardswish log_sigmoid rsub to")
_register(_pointwise, "floor_divide copy expand_as _weight_norm")
_register(_free, "full zeros ones empty full_like zeros_like ones_like empty_like new_full")
_register(_free, "new_zeros new_ones new_empty scalar_tensor")
_register(_counted, "arange linspace eye")
_register(_reshape, "view reshape _unsafe_view flatten unflatten view_as _reshape_alias")
_register(_channel_shuffle, "channel_shuffle native_channel_shuffle")
_register(_permute, "permute transpose t")
_register(_squeeze, "squeeze unsqueeze")
_register(_expand, "expand")
_register(_repeat, "repeat")
_register(_repeat_interleave, "repeat_interleave")
_register(_slice, "slice")
_register(_select, "select")
_register(_split, "split split_with_sizes chunk unbind")
_register(_cat, "cat concat stack")
_register(_scatter, "slice_scatter select_scatter")
_register(_index, "index")
_register(_gather, "gather index_select")
_register(_prelu, "prelu")
_register(_glu, "glu")
_register(_along, "cumsum cumprod sort topk argsort flip roll logcumsumexp")
_register(_pad, "constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad2d")
_register(_trailing(2), "tril triu")
for _n in (1, 2, 3):
    _register(
        _trailing(_n),
        f"max_pool{_n}d max_pool{_n}d_with_indices avg_pool{_n}d adaptive_avg_pool{_n}d"
        f" _adaptive_avg_pool{_n}d adaptive_max_pool{_n}d upsample_nearest{_n}d",
    )
_register(_trailing(1), "upsample_linear1d")
_register(_trailing(2), "upsample_bilinear2d upsample_bicubic2d")
_register(_pixel_shuffle, "pixel_shuffle pixel_unshuffle")
_register(_trailing(3), "upsample_trilinear3d")

# A weight seen through one of these is still that weight.
_KEEPING = {"t", "transpose", "permute", "split", "split_with_sizes", "chunk", "slice"}
_KEEPING |= {"_to_copy", "alias", "_weight_norm", "_weight_norm_interface"}
