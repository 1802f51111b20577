"""Whole models: from a module and its data to descramblers of its layers."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any, TypeVar, cast

import torch
from torch import nn
from tqdm import tqdm

from descramble_fast import _core
from descramble_fast._arrays import called, flag, integer
from descramble_fast._descramble import descramble_memory
from descramble_fast._layers import Layer, Layers, solve
from descramble_fast.operators import Operator
from descramble_fast.torch._observe import (
    WAITING_ROWS,
    Choice,
    Mask,
    Observation,
    Options,
    Select,
    Site,
    Sizes,
    checked,
    evaluating,
    hooks,
    sites,
    uncompiled,
    unwrapped,
)

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class MemoryPlan:
    """What a run over a model needs beside the model, stated before it starts.

    Attributes
    ----------
    layers : dict of str to int
        Bytes of each layer's accumulator.
    passes : tuple of tuple of str
        Layers whose moments are gathered at a time; the data are read once for each.
    moments : int
        Bytes that accumulators take at a time, at most, controls included.
    solve : int
        Bytes that solving takes beside them, at most.
    results : int
        Bytes of all results.
    """

    layers: Mapping[str, int]
    passes: tuple[tuple[str, ...], ...]
    moments: int
    solve: int
    results: int

    @property
    def peak(self) -> int:
        """Bytes in all, at most: moments, results and the work of one solve."""
        return self.moments + self.results + self.solve

    def __str__(self) -> str:
        return (
            f"{len(self.layers)} layers in {len(self.passes)} "
            f"{'pass' if len(self.passes) == 1 else 'passes'}: moments {_bytes(self.moments)}, "
            f"results {_bytes(self.results)}, solving {_bytes(self.solve)}"
        )


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def descramble_model(
    model: nn.Module,
    data: Any = None,
    layers: Choice | Sequence[Choice] = "*mlp*",
    *,
    tap: str = "pre",
    criterion: str = "smoothness",
    operator: Operator | Callable[[int], Operator] | None = None,
    center: bool = False,
    gauge: str = "canonical",
    k: int | None = None,
    order: bool = False,
    order_seconds: float | None = None,
    control: nn.Module | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    select: Select | None = None,
    axis: int | None = None,
    mask: Mask = "attention_mask",
    sample_every: int = 1,
    sample: str = "batch",
    max_samples: int | None = None,
    device: str | torch.device | None = None,
    offload: bool = False,
    memory_limit: int | None = None,
    progress: bool = True,
) -> Layers:
    """Descramble layers of a model: stream the data through it once, keep moments alone, solve.

    The model runs in evaluation mode without gradients, and is left in the modes it was in.

    Parameters
    ----------
    model : torch.nn.Module
        On any devices; data are moved to that of its first parameter.
    data : iterable, tensor or mapping, optional
        Batches, e.g. a DataLoader, or one batch. A batch is a tensor, a tuple or list of positional
        arguments, or a mapping of keyword arguments, as tokenizers give them; what `forward` of the
        model does not take, such as targets, is left out. The trace and diagonal criteria need no
        data.
    layers, tap, select, axis, mask, sample_every, sample, max_samples, device, offload
        As :func:`observe` has them; the run ends when every layer has `max_samples`.
    criterion : {"smoothness", "trace", "diagonal"}
        Smoothness of the samples, or a criterion of the weights alone (`descramble_weights`).
    operator : Operator or callable, optional
        For layers of its size, or a function from n to an Operator; Fourier of order 2 by default.
    center, gauge, k
        As :func:`descramble_fast.descramble` has them.
    order : bool
        Find an order of the neurons, too (`descramble_permutation`); :func:`permute_model` writes
        it into the model.
    order_seconds : float, optional
        A time limit for each layer's order.
    control : torch.nn.Module, optional
        The same model untrained (:func:`untrained`): its layers are analysed on the same batches
        and stand beside the model's. Smoothness can be had from nothing; without a control no
        figure says what was learned.
    forward : callable, optional
        Runs a batch, ``forward(model, batch)``, where the rules above do not fit.
    memory_limit : int, optional
        Bytes that accumulators may take at a time. Layers beyond it wait for another pass over the
        data, which must then be iterable again, and the moments are released after each.
    progress : bool
        Print the memory plan, and show how far the run is.

    Returns
    -------
    Layers
        In the model's order. A layer without samples, with NaN, or that was never called has an
        `error` that says so. ``layers.table()`` lists costs, `layers.report` draws them. Its
        weights are the model's own, no copies: read them before you change those.

    Raises
    ------
    TypeError, ValueError
        For arguments of other types or values, data that hold no batch, or that can be read only
        once where several passes are needed.
    MemoryError
        If one layer alone exceeds `memory_limit`.

    Examples
    --------
    >>> import torch
    >>> import descramble_fast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> batches = [torch.randn(50, 8) for _ in range(4)]
    >>> found = descramble_fast.torch.descramble_model(model, batches, "0", progress=False)
    >>> found["0"].samples, found["0"].descrambler.cost < found["0"].descrambler.initial_cost
    (200, True)
    """
    options = checked(sample_every, sample, max_samples, mask, device, offload)
    k = None if k is None else integer("k", k)
    memory_limit = None if memory_limit is None else integer("memory_limit", memory_limit)
    solving: dict[str, Any] = {
        "criterion": criterion,
        "operator": operator,
        "center": center,
        "gauge": gauge,
        "k": k,
        "order": order,
        "order_seconds": order_seconds,
    }
    solve([], **solving)  # says what is wrong with them before the data are read
    progress = flag("progress", progress)
    if not (forward is None or callable(forward)):
        raise TypeError(f"forward: got {type(forward).__name__}, expected a function or None")
    models = (model,) if control is None else (model, control)
    groups = [sites(model, layers, tap=tap, select=select, axis=axis)]
    if control is not None:
        with called(layers="control", model="control"):
            groups.append(sites(control, layers, tap=tap, select=select, axis=axis))
    if len({tuple(site.name for site in group) for group in groups}) > 1:
        raise ValueError("control: got a model with other layers, expected the same ones")
    plan = None
    if criterion == "smoothness":
        run = _Run(models, forward, options, progress)
        batches = run.measured(groups, _batches(data))
        plan = plan_memory(groups, k=k, order=order, memory_limit=memory_limit)
        found = _passes(run, groups, batches, plan, solving)
    else:
        found = [solve([site.layer() for site in group], **solving) for group in groups]
    return Layers(
        layers=found[0],
        control=found[1] if control is not None else (),
        configuration={
            "version": _core.__version__,
            "torch": torch.__version__,
            "model": type(unwrapped(model)).__name__,
            **{name: value for name, value in solving.items() if name != "operator"},
            "tap": tap,
            "sample_every": options.sample_every,
            "sample": sample,
            "max_samples": options.max_samples,
            "memory": None if plan is None else str(plan),
        },
    )


def plan_memory(
    groups: Sequence[Sequence[Site]], *, k: int | None, order: bool, memory_limit: int | None
) -> MemoryPlan:
    """Share layers out to passes, as many at a time as the limit allows."""
    # One layer stands for itself and for its control.
    several = len(groups)
    names = [site.name for site in groups[0]]
    bytes_of = {site.name: several * accumulator_memory(site.neurons) for site in groups[0]}
    passes: list[list[str]] = []
    room = 0
    for name in names:
        if memory_limit is not None and bytes_of[name] > memory_limit:
            raise MemoryError(
                f"memory_limit: got {memory_limit}, but the moments of {name} alone take "
                f"{bytes_of[name]} bytes"
            )
        if not passes or (memory_limit is not None and bytes_of[name] > room):
            passes.append([])
            room = memory_limit or 0
        passes[-1].append(name)
        room -= bytes_of[name]
    sizes = [site.neurons for site in groups[0] if site.neurons]
    at_once = {n: min(sizes.count(n), _core.num_threads()) for n in sizes}
    solving = [
        at_once[n] * descramble_memory(n, None if k is None else min(k, n)) for n in at_once
    ] + [_order_memory(n) for n in at_once if order]
    return MemoryPlan(
        layers=bytes_of,
        passes=tuple(map(tuple, passes)),
        moments=max((sum(bytes_of[name] for name in part) for part in passes), default=0),
        solve=max(solving, default=0),
        results=several * sum(8 * n * ((n if k is None else min(k, n)) + 2) for n in sizes),
    )


def accumulator_memory(n: int) -> int:
    """Bytes of one layer's moments: the triangle twice, and the rows that may wait for others."""
    return 8 * n * n + 8 * WAITING_ROWS * n


def _order_memory(n: int) -> int:
    # The moment, its distances, the operator and the orthogonal solution, two searches with their
    # tables of swaps, and what BLAS keeps. Measured at n = 1024, 1536 and 2048, where Fourier
    # operators take the most: 119, 136 and 242 MB.
    return 80 * n * n + 3 * (1 << 24)


def _batches(data: Any) -> Iterable[Any]:
    if data is None:
        raise ValueError('data: got None, but the criterion "smoothness" reads samples')
    if isinstance(data, (torch.Tensor, Mapping)):
        return [data]
    if not isinstance(data, Iterable):
        raise TypeError(f"data: got {type(data).__name__}, expected an iterable of batches")
    return data


def _passes(
    run: _Run,
    groups: Sequence[Sequence[Site]],
    batches: Iterable[Any],
    plan: MemoryPlan,
    solving: Mapping[str, Any],
) -> list[tuple[Layer, ...]]:
    run.say(str(plan))
    several = len(plan.passes) > 1
    if several and isinstance(batches, Iterator):
        raise ValueError(
            f"data: within memory_limit {len(plan.passes)} passes are needed, but it can be read "
            "only once; expected a list, a DataLoader or the like"
        )
    found: list[tuple[Layer, ...]] = [() for _ in groups]
    for number, names in enumerate(plan.passes, 1):
        part = [[site for site in group if site.name in names] for group in groups]
        title = f"pass {number} of {len(plan.passes)}" if several else "streaming"
        for i, observation in enumerate(run(part, batches, title)):
            layers = observation.layers()
            with run.bar(len(layers), "solving", "layer") as bar:
                done = solve(layers, **solving, progress=bar.update)
            if several:
                done = tuple(replace(layer, covariance=None) for layer in done)
                for site in observation.sites:
                    site.covariance = None
            found[i] += done
    return found


class _Run:
    """Runs batches through models, and lets their layers be observed."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        forward: Callable[[nn.Module, Any], Any] | None,
        options: Options,
        progress: bool,
    ) -> None:
        self._models = models
        self._forward = _call if forward is None else forward
        self._options = options
        self._progress = progress

    def __call__(
        self, groups: Sequence[Sequence[Site]], batches: Iterable[Any], title: str
    ) -> list[Observation]:
        """Stream the batches through once."""
        observed = [Observation(group, self._options) for group in groups]
        # Loaders of data of unknown length have a length that raises.
        total = length_hint(batches) or None
        with self._observing(observed), self.bar(total, title, "batch") as bar:
            empty = True
            for batch in batches:
                self._forward_all(batch)
                bar.update()
                empty = False
                if all(observation.done for observation in observed):
                    break
        if empty:
            raise ValueError("data: got no batch")
        return observed

    def measured(self, groups: Sequence[Sequence[Site]], batches: Iterable[Any]) -> Iterable[Any]:
        """Fill in the sizes that modules do not say, from the first batch, which is given back."""
        if all(site.neurons for group in groups for site in group):
            return batches
        iterator = iter(batches)
        first = next(iterator, None)
        if first is None:
            raise ValueError("data: got no batch")
        with self._observing([Sizes(group, self._options) for group in groups]):
            self._forward_all(first)
        return itertools.chain([first], iterator) if isinstance(batches, Iterator) else batches

    def say(self, text: str) -> None:
        """Print a line, unless progress is off."""
        if self._progress:
            tqdm.write(text, file=sys.stderr)

    def bar(self, total: int | None, title: str, unit: str) -> tqdm[Any]:
        """Show how far it is, on a terminal."""
        disable = None if self._progress else True
        return tqdm(total=total, desc=title, unit=unit, disable=disable)

    @contextlib.contextmanager
    def _observing(self, observed: Sequence[Observation]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for model, observation in zip(self._models, observed, strict=True):
                stack.enter_context(hooks(model, observation, observation.sites))
                stack.enter_context(evaluating(model))
            stack.enter_context(uncompiled())
            stack.enter_context(torch.no_grad())
            yield

    def _forward_all(self, batch: Any) -> None:
        for model in self._models:
            self._forward(model, batch)


def _call(model: nn.Module, batch: Any) -> None:
    """Run a batch as models take it: one tensor, positional arguments or keyword arguments."""
    model = unwrapped(model)
    # Those kept elsewhere until they are needed are "meta".
    devices = (t.device for t in itertools.chain(model.parameters(), model.buffers()))
    device = next((device for device in devices if device.type != "meta"), None)
    if device is not None:
        batch = _moved(batch, device)
    kinds = {p.name: p.kind for p in inspect.signature(model.forward).parameters.values()}
    if isinstance(batch, Mapping):
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds.values()
        model(**{name: batch[name] for name in batch if takes_all or name in kinds})
    elif isinstance(batch, (tuple, list)):
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        takes_all = inspect.Parameter.VAR_POSITIONAL in kinds.values()
        count = sum(kind in positional for kind in kinds.values())
        model(*batch[: None if takes_all else count])
    else:
        model(batch)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, (tuple, list)):
        moved = [_moved(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def untrained(model: _Model, seed: int = 0) -> _Model:
    """Copy a model with its parameters as they are before training: the control.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it is. Its modules initialise themselves: by their ``reset_parameters``, and by
        ``_init_weights`` where a model around them has it, as those of transformers do.
    seed : int
        Of the initialisation. The random state of the caller stays as it was.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If a parameter is initialised by neither.

    Examples
    --------
    >>> import torch
    >>> import descramble_fast.torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> control = descramble_fast.torch.untrained(model)
    >>> bool((control[0].weight == model[0].weight).any())
    False
    """
    seed = integer("seed", seed)
    fresh = cast("_Model", copy.deepcopy(unwrapped(model)))
    with torch.random.fork_rng(devices=_cuda_devices(fresh)), torch.no_grad():
        # torch.manual_seed would seed every device.
        torch.default_generator.manual_seed(seed)
        for index in _cuda_devices(fresh):
            torch.cuda.default_generators[index].manual_seed(seed)
        for parameter in fresh.parameters():
            parameter.fill_(torch.nan)  # what nobody initialises is seen by that
        for module in fresh.modules():
            getattr(module, "reset_parameters", lambda: None)()
        for module in fresh.modules():
            initialise: Callable[[nn.Module], object] | None
            if initialise := getattr(module, "_init_weights", None):
                for inside in module.modules():
                    initialise(inside)
        for name, parameter in fresh.named_parameters():
            if bool(parameter.isnan().any()):
                raise ValueError(
                    f"model: {name} is initialised by no reset_parameters and no _init_weights; "
                    "initialise a copy yourself"
                )
    return fresh


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
