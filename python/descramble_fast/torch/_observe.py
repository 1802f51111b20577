"""Moments of a model's layers, gathered by hooks while it runs."""

from __future__ import annotations

import contextlib
import fnmatch
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from descramble_fast._arrays import file_path, integer, one_of
from descramble_fast._covariance import Covariance
from descramble_fast._files import make_folder, pending, set_pending
from descramble_fast._layers import Layer

Choice: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool]"
Select: TypeAlias = Callable[[Any], torch.Tensor]
Mask: TypeAlias = "str | Callable[[tuple[Any, ...], Mapping[str, Any]], torch.Tensor | None] | None"

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_EMBEDDINGS = nn.Embedding, nn.EmbeddingBag
_MATRICES = (nn.Linear, *_CONVOLUTIONS, *_EMBEDDINGS)
# The same neurons come out of these as went in, so an activation may stand behind them.
_KEEP_NEURONS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
)
_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
WAITING_ROWS = 512  # that an accumulator on the CPU keeps until there are enough


@dataclass(eq=False)
class Site:
    """A layer under observation."""

    name: str
    module: nn.Module
    tap: str
    axis: int
    select: Select | None
    neurons: int  # 0 while unknown
    covariance: Covariance | None = None
    called: bool = False
    fired: int = 0
    full: bool = False
    notes: dict[str, None] = field(default_factory=dict)  # a set that keeps its order
    error: str | None = None

    @property
    def open(self) -> bool:
        """Whether it still takes samples."""
        return self.error is None and not self.full

    def layer(self) -> Layer:
        """Describe the layer without what it has gathered."""
        weight, side = _weight(self.module, self.tap)
        known = 0 if weight is None else int(weight.shape[0 if side == "output" else 1])
        fits = self.neurons in (0, known)
        return Layer(
            name=self.name,
            kind=type(self.module).__name__,
            tap=self.tap,
            neurons=self.neurons or known,
            weight=weight if fits else None,
            weight_side=side,
            notes=tuple(self.notes),
        )

    def observed(self) -> Layer:
        """Describe it with what it has gathered, or why there is nothing; waits for its device."""
        error, samples = self.error, 0
        if self.covariance is not None:
            try:
                samples = self.covariance.count
            except (ValueError, RuntimeError) as late:
                error = error or str(late)
        if error is None and self.fired == 0:
            error = (
                "no activation module took its output (an activation called as a function cannot "
                'be seen): tap the "input" of the layer behind it instead'
                if self.called
                else "it was never called"
            )
        if error is None and samples == 0:
            error = "no samples"
        covariance = None if samples == 0 else self.covariance
        return replace(self.layer(), samples=samples, covariance=covariance, error=error)


@dataclass(frozen=True)
class _Call:
    """What a module is called with."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    names: Sequence[str]  # of the module's parameters

    @property
    def named(self) -> dict[str, Any]:
        """Arguments by the names of parameters."""
        return {**dict(zip(self.names, self.arguments, strict=False)), **self.keywords}


class Observation(Mapping[str, Covariance]):
    """What `observe` gathers: the moments of layers by name, those that took none left out."""

    def __init__(self, sites: Sequence[Site], options: Options) -> None:
        self.sites = tuple(sites)
        self.options = options
        self._calls = 0
        self._active = True
        self._masks: list[torch.Tensor | None] = [None]  # of the modules that run, innermost last

    def __getitem__(self, name: str) -> Covariance:
        for site in self.sites:
            if site.name == name and site.covariance is not None:
                return site.covariance
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (site.name for site in self.sites if site.covariance is not None)

    def __len__(self) -> int:
        return sum(site.covariance is not None for site in self.sites)

    def layers(self) -> tuple[Layer, ...]:
        """Give every layer with its moments; one without samples has an `error` that says why."""
        layers = tuple(site.observed() for site in self.sites)
        if self._calls or not any(site.fired for site in self.sites):
            return layers
        note = "the model itself was never called, so its mask and sampling by batch had no effect"
        return tuple(replace(layer, notes=(*layer.notes, note)) for layer in layers)

    def save(self, folder: str | Path) -> None:
        """Write ``<name>.safetensors`` for every layer with samples (`Covariance.save`).

        ``descramble-fast merge`` combines such folders, and refuses one that was not written to its
        end.
        """
        folder = Path(file_path("folder", folder))
        make_folder(folder)
        before = pending(folder)
        set_pending(folder, dict.fromkeys((*before, *self)))
        for name, covariance in self.items():
            covariance.save(folder / f"{name}.safetensors")
        set_pending(folder, (name for name in before if name not in self))

    @property
    def done(self) -> bool:
        """Whether no layer takes more samples."""
        return not any(site.open for site in self.sites)

    def begin(self, call: _Call) -> None:
        """Decide before a call of the model whether it is sampled, and which of its rows count."""
        if _recomputed():
            return
        options = self.options
        self._active = options.tokens or self._calls % options.sample_every == 0
        self._calls += 1
        self._masks = [options.mask_of(call) if self._active else None]

    def enter(self, call: _Call) -> None:
        """Let the mask of a module inside hold while it runs, its caller's where it gets none."""
        given = self._active and self.options.mask in call.named
        self._masks.append(self.options.mask_of(call) if given else self._masks[-1])

    def leave(self) -> None:
        """Let the caller's mask hold again."""
        if len(self._masks) > 1:
            self._masks.pop()

    def take(self, site: Site, output: Any) -> None:
        """Add what a hook was called with."""
        if not (self._active and site.open) or _recomputed():
            return
        site.called = True
        site.fired += 1
        try:
            self._add(site, _tensor(site, output).detach())
        except Exception as error:
            # The model's own run goes on: the layer's row says what happened.
            first = str(error).partition("\n")[0] or type(error).__name__
            site.error = f"batch {max(self._calls - 1, 0)}: {first[:300]}"

    def _add(self, site: Site, samples: torch.Tensor) -> None:
        options = self.options
        mask = self._masks[-1]
        if samples.is_nested:  # as torch's TransformerEncoder leaves padding out
            samples, mask = torch.cat(samples.unbind()), None
        if not samples.is_floating_point():
            raise TypeError(f"it gives {samples.dtype}, expected a floating type")
        n = _neurons_of(site, samples)
        if site.axis != -1:
            samples = samples.movedim(site.axis, -1)
        if site.neurons not in (0, n):
            raise ValueError(f"it gives {n} neurons, expected {site.neurons}")
        if mask is not None:
            mask = _rows_of(mask, site, samples)
        if options.tokens and options.sample_every > 1:
            # Another first row at each call, or rows of one place in a sequence would be all.
            rows = slice((site.fired - 1) % options.sample_every, None, options.sample_every)
            samples = samples.reshape(-1, n)[rows]
            mask = None if mask is None else mask.reshape(-1)[rows]
        if options.device is not None:
            samples = samples.to(options.device)
        if mask is not None:
            mask = mask.to(samples.device)
        if site.covariance is None:
            site.neurons = n
            site.covariance = Covariance(n, options.device, options.offload)
        site.covariance.update(samples, mask=mask)
        if options.max_samples is not None:
            site.full = site.covariance.count >= options.max_samples


def _recomputed() -> bool:
    # Checkpointed modules are called once more while gradients are computed.
    return bool(torch._C._current_graph_task_id() != -1)


def _neurons_of(site: Site, samples: torch.Tensor) -> int:
    shape = samples.shape
    if not -len(shape) <= site.axis < len(shape) or shape[site.axis] == 0:
        raise ValueError(f"it gives shape {tuple(shape)}, expected neurons on axis {site.axis}")
    return shape[site.axis]


def _rows_of(mask: torch.Tensor, site: Site, samples: torch.Tensor) -> torch.Tensor | None:
    leading = samples.shape[:-1]
    if mask.shape == leading:
        return mask
    if leading == (mask.numel(),):  # tokens of all sequences in one row
        return mask.reshape(-1)
    site.notes["the mask does not fit its samples: padding, if any, is counted"] = None
    return None


class Sizes(Observation):
    """Looks at the sizes of layers alone."""

    def _add(self, site: Site, samples: torch.Tensor) -> None:
        site.neurons = _neurons_of(site, samples)
        site.fired = 0


@dataclass(frozen=True)
class Options:
    """What is asked of an observation."""

    sample_every: int
    tokens: bool
    max_samples: int | None
    mask: Mask
    device: str | None
    offload: bool

    def mask_of(self, call: _Call) -> torch.Tensor | None:
        """Find the mask that a module is called with."""
        if self.mask is None:
            return None
        if callable(self.mask):
            mask = self.mask(call.arguments, call.keywords)
            if not (mask is None or isinstance(mask, torch.Tensor)):
                raise TypeError(f"mask: got {type(mask).__name__}, expected a tensor")
            return None if mask is None else mask != 0
        mask = call.named.get(self.mask)
        for argument in call.arguments:
            if mask is None and isinstance(argument, Mapping):
                mask = argument.get(self.mask)
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor):
            return torch.empty(0, dtype=torch.bool)  # fits nothing, which is noted
        for name in ("input_ids", "inputs_embeds"):
            tokens = call.named.get(name)
            if isinstance(tokens, torch.Tensor) and tokens.ndim >= 2 and mask.ndim == 2:
                # With a cache of keys and values, the mask covers what was read before, too.
                mask = mask[:, -tokens.shape[1] :]
        return mask != 0


@contextlib.contextmanager
def observe(
    model: nn.Module,
    layers: Choice | Sequence[Choice] = "*mlp*",
    *,
    tap: str = "pre",
    select: Select | None = None,
    axis: int | None = None,
    mask: Mask = "attention_mask",
    sample_every: int = 1,
    sample: str = "batch",
    max_samples: int | None = None,
    device: str | torch.device | None = None,
    offload: bool = False,
) -> Iterator[Observation]:
    """Gather the moments of a model's layers while your own loop runs it.

    Hooks add each call's samples to a :class:`Covariance` per layer and keep no activation. They
    are removed at the end of the ``with`` block; the moments remain. A module that is called
    several times, or is known by several names, has one accumulator. Models that `torch.compile`
    has wrapped run uncompiled meanwhile, since compiled code calls no hooks. Masks and sampling
    hold for one call at a time: run the model from one thread. A layer that fails (NaN, say) stops
    being observed, the model's run goes on, and `Observation.layers` tells which and why.

    Parameters
    ----------
    model : torch.nn.Module
        Yours, as it is: on any devices, under autocast, in training or not.
    layers : str, type, callable or a sequence of these
        Dotted names, globs (``"*mlp*"``), module types (``torch.nn.Linear``), or a function of name
        and module that answers whether it is meant. Names are those within what `torch.compile` and
        data parallel wrappers hold. A glob takes the layers with a matrix of weights among what it
        matches (Linear, convolutions, embeddings, transformers' Conv1D); where there are none,
        every module.
    tap : {"pre", "post", "input"}
        Samples are the module's output, the output of the activation module behind it (behind
        normalisation and dropout, too), or the module's first input.
    select : callable, optional
        Picks the tensor from an output (or input) that is none. By default the first tensor of a
        tuple, list, mapping or dataclass.
    axis : int, optional
        Where the neurons are. By default the channel axis of convolutions and of batch, group and
        instance norms, else the last. Every other axis counts samples.
    mask : str or callable or None
        Which rows count: the model's argument of that name, shape (batch, length), not 0 for rows
        that count; or a function of the positional and the keyword arguments. Modules inside that
        take such a mask beside ``input_ids``, as the encoder and the decoder of transformers do,
        have their own. A layer whose samples it does not fit gets a note.
    sample_every : int
        Take each k-th call of the model, or each k-th row.
    sample : {"batch", "token"}
        What `sample_every` counts.
    max_samples : int, optional
        A layer stops after the call in which it reaches as many.
    device : None, str or torch.device
        Where accumulators live: ``"cpu"``, ``"cuda"`` or ``"cuda:<number>"``; None: where each
        layer's activations lie.
    offload : bool
        On a CUDA device: keep the scatters in the host's memory.

    Yields
    ------
    Observation
        A mapping from names to :class:`Covariance`.

    Raises
    ------
    TypeError, ValueError
        For arguments of other types or values, and where nothing is matched.

    Examples
    --------
    >>> import torch
    >>> import descramble_fast.torch
    >>> mlp = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> with descramble_fast.torch.observe(mlp, "0", tap="post") as moments:
    ...     for _ in range(3):
    ...         _ = mlp(torch.randn(20, 8))
    >>> moments["0"].count, moments["0"].n_features
    (60, 6)
    """
    options = checked(sample_every, sample, max_samples, mask, device, offload)
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise TypeError(
            "model: got a DataParallel over several devices, which runs copies; expected its module"
        )
    found = sites(model, layers, tap=tap, select=select, axis=axis)
    observation = Observation(found, options)
    with hooks(model, observation, found), uncompiled():
        yield observation


def checked(
    sample_every: int,
    sample: str,
    max_samples: int | None,
    mask: Mask,
    device: str | torch.device | None,
    offload: bool,
) -> Options:
    """Check what is asked, before a model runs."""
    sample_every = integer("sample_every", sample_every)
    if sample_every < 1:
        raise ValueError(f"sample_every: got {sample_every}, expected at least 1")
    one_of("sample", sample, "batch", "token")
    max_samples = None if max_samples is None else integer("max_samples", max_samples)
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples: got {max_samples}, expected at least 1")
    if not (mask is None or isinstance(mask, str) or callable(mask)):
        raise TypeError(f"mask: got {type(mask).__name__}, expected a name, a function or None")
    device = str(device) if isinstance(device, torch.device) else device
    Covariance(1, device, offload)  # says what is wrong with them
    return Options(sample_every, sample == "token", max_samples, mask, device, offload)


def unwrapped(model: nn.Module) -> nn.Module:
    """Give the module inside of what `torch.compile` and data parallel training wrap around it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    inner = _inner(model)
    if isinstance(inner, torch.jit.ScriptModule):
        raise TypeError(
            "model: got a ScriptModule, which calls no hooks; expected the module it was made from"
        )
    return inner


def parameters_of(module: nn.Module) -> list[str]:
    """Names of what its `forward` takes."""
    return list(inspect.signature(module.forward).parameters)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and every module back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # some modules do more than note it
        for module, mode in modes:
            module.training = mode


def _inner(module: nn.Module) -> nn.Module:
    while True:
        is_parallel = isinstance(module, (nn.DataParallel, DistributedDataParallel))
        inner = getattr(module, "module" if is_parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def sites(
    model: nn.Module,
    layers: Choice | Sequence[Choice],
    *,
    tap: str,
    select: Select | None = None,
    axis: int | None = None,
) -> list[Site]:
    """Find the layers that are meant, in the model's order."""
    one_of("tap", tap, "pre", "post", "input")
    if not (select is None or callable(select)):
        raise TypeError(f"select: got {type(select).__name__}, expected a function or None")
    axis = None if axis is None else integer("axis", axis)
    return [
        Site(
            name=name,
            module=module,
            tap=tap,
            axis=_neuron_axis(module) if axis is None else axis,
            select=select,
            neurons=_neurons(module, tap) if select is None and axis is None else 0,
        )
        for name, module in _chosen(unwrapped(model), layers)
    ]


def _chosen(model: nn.Module, layers: Choice | Sequence[Choice]) -> list[tuple[str, nn.Module]]:
    # A wrapper goes by its own name and stands for what is inside; scripted modules call no hooks.
    names = {
        name: _inner(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)
    }
    choices = layers if isinstance(layers, (list, tuple)) else [layers]
    if not choices:
        raise ValueError(f"layers: got none; {_there_are(names)}")
    taken: set[int] = set()
    for choice in choices:
        matched = _matched(names, choice)
        if not matched:
            raise ValueError(f"layers: {_described(choice)} matches nothing; {_there_are(names)}")
        taken |= {id(module) for module in matched}
    # A shared module goes by its first name.
    chosen: dict[int, tuple[str, nn.Module]] = {}
    for name, module in names.items():
        if id(module) in taken:
            chosen.setdefault(id(module), (name, module))
    return list(chosen.values())


def _matched(names: Mapping[str, nn.Module], choice: Any) -> list[nn.Module]:
    if isinstance(choice, str):
        if choice in names:
            return [names[choice]]
        matched = [m for name, m in names.items() if fnmatch.fnmatchcase(name, choice)]
        return [m for m in matched if _has_matrix(m)] or matched
    if isinstance(choice, type):
        return [module for module in names.values() if isinstance(module, choice)]
    if callable(choice) and not isinstance(choice, nn.Module):
        return [module for name, module in names.items() if choice(name, module)]
    raise TypeError(
        f"layers: got {type(choice).__name__}, expected a name, a glob, a module type, a function "
        "of name and module, or a sequence of these"
    )


def _described(choice: Any) -> str:
    return choice.__name__ if isinstance(choice, type) else repr(choice)


def _there_are(names: Mapping[str, nn.Module]) -> str:
    layers = [name for name, module in names.items() if _has_matrix(module)]
    some = ", ".join(layers[:8]) + (f", ... ({len(layers)} in all)" if len(layers) > 8 else "")
    return f"layers with weights: {some or 'none'}"


@contextlib.contextmanager
def hooks(model: nn.Module, observation: Observation, observed: Sequence[Site]) -> Iterator[None]:
    """Attach all hooks, and remove them at the end."""
    with contextlib.ExitStack() as stack:

        def until_the_end(handle: Any) -> None:
            stack.callback(handle.remove)

        root = unwrapped(model)
        modules = [m for m in root.modules() if not isinstance(m, torch.jit.ScriptModule)]
        for module in modules:
            names = parameters_of(module)
            if module is root:
                until_the_end(_before(root, observation.begin, names))
            elif observation.options.mask in names and "input_ids" in names:
                until_the_end(_before(module, observation.enter, names))
                until_the_end(
                    module.register_forward_hook(lambda *_: observation.leave(), always_call=True)
                )
        chase = _Chase(observation)
        for site in observed:
            until_the_end(_attached(observation, site, chase))
        if any(site.tap == "post" for site in observed):
            for module in modules:
                if _is_activation(module):
                    until_the_end(module.register_forward_hook(chase.activated))
                elif isinstance(module, _KEEP_NEURONS):
                    until_the_end(module.register_forward_hook(chase.kept))
        yield


def _before(module: nn.Module, then: Callable[[_Call], None], names: Sequence[str]) -> Any:
    return module.register_forward_pre_hook(
        lambda _, args, kwargs: then(_Call(args, kwargs, names)), with_kwargs=True
    )


def _attached(observation: Observation, site: Site, chase: _Chase) -> Any:
    if site.tap == "input":
        name = next(iter(parameters_of(site.module)), "")

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else kwargs.get(name, next(iter(kwargs.values()), None))
            observation.take(site, first)

        return site.module.register_forward_pre_hook(before, with_kwargs=True)
    if site.tap == "post":
        return site.module.register_forward_hook(
            lambda module, _, output: chase.start(site, output)
        )
    return site.module.register_forward_hook(
        lambda module, _, output: observation.take(site, output)
    )


class _Chase:
    """Follows the outputs of layers to their activations, by the identity of tensors."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        # By id; the references keep nothing alive, and what dies takes its entry along.
        self._trails: dict[int, tuple[weakref.ref[torch.Tensor], list[Site]]] = {}

    def start(self, site: Site, output: Any) -> None:
        """Remember what a layer gave."""
        site.called = True
        with contextlib.suppress(Exception):
            self._follow(_tensor(site, output), [site])

    def activated(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Behind an activation."""
        for site in self._left(args):
            self._observation.take(site, output)

    def kept(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Behind a norm or a dropout."""
        if arrived := self._left(args):
            self._follow(output, arrived)

    def _follow(self, tensor: torch.Tensor, sites: list[Site]) -> None:
        key = id(tensor)

        def forget(dead: weakref.ref[torch.Tensor]) -> None:
            if self._trails.get(key, (None,))[0] is dead:
                del self._trails[key]

        if key not in self._trails:
            self._trails[key] = weakref.ref(tensor, forget), []
        self._trails[key][1].extend(sites)

    def _left(self, args: tuple[Any, ...]) -> list[Site]:
        return self._trails.pop(id(args[0]), (None, []))[1] if args else []


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in _ACTIVATIONS and not isinstance(module, nn.MultiheadAttention)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` has wrapped as it was."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _tensor(site: Site, output: Any) -> torch.Tensor:
    found = output if site.select is None else site.select(output)
    if isinstance(found, torch.Tensor):
        return found
    if site.select is not None:
        raise TypeError(f"select: gave {type(found).__name__}, expected a tensor")
    first = _first(found)
    if first is None:
        raise TypeError(f"it gives {type(found).__name__}, expected a tensor; use select")
    return first


def _first(found: Any) -> torch.Tensor | None:
    """Find the first tensor in tuples, lists, mappings and dataclasses."""
    if found is None or isinstance(found, torch.Tensor):
        return found
    values: Iterable[Any] = ()
    if isinstance(found, Mapping):
        values = found.values()
    elif isinstance(found, (tuple, list)):
        values = found
    elif is_dataclass(found):
        values = (getattr(found, each.name) for each in fields(found))
    return next((first for value in values if (first := _first(value)) is not None), None)


def _neuron_axis(module: nn.Module) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return -1 - len(module.kernel_size)  # with or without an axis of batches
    norms = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm
    return 1 if isinstance(module, norms) else -1


def _has_matrix(module: nn.Module) -> bool:
    """Whether it is a layer with weights; norms over several axes have scales of such a shape."""
    if isinstance(module, _MATRICES):
        return True
    weight = getattr(module, "weight", None)
    if isinstance(module, _KEEP_NEURONS) or not isinstance(weight, torch.Tensor):
        return callable(weight)  # quantised modules of torch unpack theirs by a call
    return weight.ndim >= 2


def _is_transformers_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _weight(module: nn.Module, tap: str) -> tuple[torch.Tensor | None, str]:
    """Weights as a matrix with the tapped neurons on one of its sides."""
    side = "input" if tap == "input" or isinstance(module, _EMBEDDINGS) else "output"
    # The function between a layer and its "post" tap stands between P and its weights.
    if tap == "post" or not _has_matrix(module):
        return None, side
    computed = parametrize.is_parametrized(module, "weight")
    # What computes it may change its own state in training, as spectral norms do.
    with evaluating(module) if computed else contextlib.nullcontext():
        weight: Any = module.weight
    if not (isinstance(weight, torch.Tensor) and weight.is_floating_point()) or is_lazy(weight):
        return None, side  # packed by quantisation, or not there yet
    weight = weight.detach()
    if isinstance(module, _EMBEDDINGS):
        return (weight if tap == "pre" else None), side
    if getattr(module, "groups", 1) != 1 and tap == "input":
        return None, side
    if _is_transformers_conv1d(module) or getattr(module, "transposed", False):
        weight = weight.transpose(0, 1)  # stored (in, out, ...)
    if tap == "pre":
        return weight.flatten(1), side
    return weight.movedim(1, -1).flatten(0, -2), side


def _neurons(module: nn.Module, tap: str) -> int:
    """Tell the number of neurons where the module does, else 0."""
    if not (isinstance(module, _MATRICES) or _is_transformers_conv1d(module)):
        return 0
    if tap == "input":
        names = ["in_features", "in_channels", "nx"]
    else:
        names = ["out_features", "out_channels", "nf", "embedding_dim"]
    return next((getattr(module, name) for name in names if hasattr(module, name)), 0)
