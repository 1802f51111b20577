"""Moments of a model's layers, gathered by hooks while it runs."""

from __future__ import annotations

import contextlib
import fnmatch
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from descramble_fast._arrays import integer
from descramble_fast._covariance import Covariance
from descramble_fast._layers import Layer

Choice: TypeAlias = "str | type[nn.Module] | Callable[[str, nn.Module], bool]"
Select: TypeAlias = Callable[[Any], torch.Tensor]
Mask: TypeAlias = "str | Callable[[tuple[Any, ...], Mapping[str, Any]], torch.Tensor | None] | None"

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
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
    fired: int = 0
    full: bool = False
    notes: dict[str, None] = field(default_factory=dict)  # a set that keeps its order
    error: str | None = None
    trail: weakref.ref[torch.Tensor] | None = None  # of its output, to the activation behind it

    @property
    def open(self) -> bool:
        """Whether it still takes samples."""
        return self.error is None and not self.full

    def layer(self) -> Layer:
        """Describe the layer without what it has gathered."""
        weight, side = _weight(self.module, self.tap)
        return Layer(
            name=self.name,
            kind=type(self.module).__name__,
            tap=self.tap,
            neurons=self.neurons,
            weight=weight,
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
                if self.tap == "post"
                else "it was never called"
            )
        if error is None and samples == 0:
            error = "no samples"
        covariance = None if samples == 0 else self.covariance
        return replace(self.layer(), samples=samples, covariance=covariance, error=error)


class Observation(Mapping[str, Covariance]):
    """What `observe` gathers: the moments of layers by name, those without samples left out."""

    def __init__(self, sites: Sequence[Site], options: Options) -> None:
        self.sites = tuple(sites)
        self._options = options
        self._calls = 0
        self._active = True
        self._mask: torch.Tensor | None = None

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
        note = "the model itself was never called, so there was no mask and no sampling by batch"
        return tuple(replace(layer, notes=(*layer.notes, note)) for layer in layers)

    def save(self, folder: str | Path) -> None:
        """Write ``<name>.safetensors`` for every layer with samples (`Covariance.save`).

        ``descramble-fast merge`` combines such folders.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, covariance in self.items():
            covariance.save(Path(folder) / f"{name}.safetensors")

    @property
    def done(self) -> bool:
        """Whether no layer takes more samples."""
        return not any(site.open for site in self.sites)

    def begin(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Decide before a call of the model whether it is sampled, and which of its rows count."""
        options = self._options
        self._active = options.tokens or self._calls % options.sample_every == 0
        self._calls += 1
        self._mask = options.mask_of(arguments, keywords) if self._active else None

    def take(self, site: Site, output: Any, axis: int) -> None:
        # Checkpointed modules are called once more while gradients are computed.
        again = torch._C._current_graph_task_id() != -1
        if again or not (self._active and site.open):
            return
        site.fired += 1
        try:
            with torch.no_grad():
                self._add(site, _tensor(site, output), axis)
        except (TypeError, ValueError, RuntimeError, MemoryError) as error:
            # The model's own run goes on: the layer's row says what happened.
            site.error = f"batch {max(self._calls - 1, 0)}: {error}"

    def _add(self, site: Site, samples: torch.Tensor, axis: int) -> None:
        options = self._options
        samples = samples.detach()
        if samples.ndim == 0:
            raise ValueError("it gives a scalar, expected neurons on an axis")
        if not samples.is_floating_point():
            raise TypeError(f"it gives {samples.dtype}, expected a floating type")
        samples = samples.movedim(axis, -1)
        n = samples.shape[-1]
        if site.neurons and n != site.neurons:
            raise ValueError(f"it gives {n} neurons, expected {site.neurons}")
        if n == 0:
            raise ValueError("it gives no neurons")
        mask = self._rows_of(site, samples)
        if options.tokens and options.sample_every > 1:
            # Another first row at each call, or rows of one place in a sequence would be all.
            rows = slice((site.fired - 1) % options.sample_every, None, options.sample_every)
            samples = samples.reshape(-1, n)[rows]
            mask = None if mask is None else mask.reshape(-1)[rows]
        if options.device is not None:
            samples = samples.to(options.device)
        if mask is not None:
            mask = mask.to(samples.device)
        site.neurons = n
        if site.covariance is None:
            site.covariance = Covariance(n, options.device, options.offload)
        site.covariance.update(samples, mask=mask)
        if options.max_samples is not None:
            site.full = site.covariance.count >= options.max_samples

    def _rows_of(self, site: Site, samples: torch.Tensor) -> torch.Tensor | None:
        mask, leading = self._mask, samples.shape[:-1]
        if mask is None or mask.shape == leading:
            return mask
        if leading == (mask.numel(),):  # tokens of all sequences in one row
            return mask.reshape(-1)
        site.notes["the mask does not fit its samples: padding, if any, is counted"] = None
        return None


class Sizes(Observation):
    """Looks at the sizes of layers alone."""

    def _add(self, site: Site, samples: torch.Tensor, axis: int) -> None:
        site.neurons = samples.shape[axis]
        site.fired = 0


@dataclass(frozen=True)
class Options:
    sample_every: int
    tokens: bool
    max_samples: int | None
    mask: Mask
    device: str | None
    offload: bool

    def mask_of(
        self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> torch.Tensor | None:
        if self.mask is None:
            return None
        if callable(self.mask):
            mask = self.mask(arguments, keywords)
        else:
            mask = keywords.get(self.mask)
            for argument in arguments:
                if mask is None and isinstance(argument, Mapping):
                    mask = argument.get(self.mask)
        if mask is None:
            return None
        if not isinstance(mask, torch.Tensor):
            raise TypeError(f"mask: got {type(mask).__name__}, expected a tensor")
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
    device: str | None = None,
    offload: bool = False,
) -> Iterator[Observation]:
    """Gather the moments of a model's layers while your own loop runs it.

    Hooks add each call's samples to a :class:`Covariance` per layer and keep no activation. They
    are removed at the end of the ``with`` block; the moments remain. A module that is called
    several times, or is known by several names, has one accumulator. Models that `torch.compile`
    has wrapped run uncompiled meanwhile, since compiled code calls no hooks. A layer that fails
    (NaN, say) stops being observed, the model's run goes on, and `Observation.layers` tells which
    and why.

    Parameters
    ----------
    model : torch.nn.Module
        Yours, as it is: on any devices, under autocast, in training or not.
    layers : str, type, callable or a sequence of these
        Dotted names, globs (``"*mlp*"``), module types (``torch.nn.Linear``), or a function of name
        and module that answers whether it is meant. A glob takes the layers with a matrix of
        weights among what it matches (Linear, convolutions, embeddings, transformers' Conv1D);
        where there are none, every module.
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
        Which rows count: the model's keyword argument of that name, shape (batch, length), not 0
        for rows that count; or a function of the positional and the keyword arguments. A layer
        whose samples it does not fit gets a note.
    sample_every : int
        Take each k-th call of the model, or each k-th row.
    sample : {"batch", "token"}
        What `sample_every` counts.
    max_samples : int, optional
        A layer stops after the call in which it reaches as many.
    device : None, "cpu", "cuda" or "cuda:<number>"
        Where accumulators live; None: where each layer's activations lie.
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
    found = sites(model, layers, tap=tap, select=select, axis=axis)
    observation = Observation(found, options)
    with hooks(model, observation, found), uncompiled():
        yield observation


def checked(
    sample_every: int,
    sample: str,
    max_samples: int | None,
    mask: Mask,
    device: str | None,
    offload: bool,
) -> Options:
    if integer("sample_every", sample_every) < 1:
        raise ValueError(f"sample_every: got {sample_every}, expected at least 1")
    if sample not in ("batch", "token"):
        raise ValueError(f'sample: got {sample!r}, expected "batch" or "token"')
    if max_samples is not None and integer("max_samples", max_samples) < 1:
        raise ValueError(f"max_samples: got {max_samples}, expected at least 1")
    if not (mask is None or isinstance(mask, str) or callable(mask)):
        raise TypeError(f"mask: got {type(mask).__name__}, expected a name, a function or None")
    Covariance(1, device, offload)  # says what is wrong with them
    return Options(sample_every, sample == "token", max_samples, mask, device, offload)


def unwrapped(model: nn.Module) -> nn.Module:
    """Give the module that `torch.compile` has wrapped, or the model itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model: got a ScriptModule, which calls no hooks; expected the module it was made from"
        )
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def sites(
    model: nn.Module,
    layers: Choice | Sequence[Choice],
    *,
    tap: str,
    select: Select | None = None,
    axis: int | None = None,
) -> list[Site]:
    """Find the layers that are meant, in the model's order."""
    if tap not in ("pre", "post", "input"):
        raise ValueError(f'tap: got {tap!r}, expected "pre", "post" or "input"')
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
    names = dict(model.named_modules(remove_duplicate=False))
    choices = layers if isinstance(layers, (list, tuple)) else [layers]
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
        return [m for m in matched if _matrix(m) is not None] or matched
    if isinstance(choice, type):
        return [module for module in names.values() if isinstance(module, choice)]
    if callable(choice):
        return [module for name, module in names.items() if choice(name, module)]
    raise TypeError(
        f"layers: got {type(choice).__name__}, expected a name, a glob, a module type, a function "
        "of name and module, or a sequence of these"
    )


def _described(choice: Any) -> str:
    return choice.__name__ if isinstance(choice, type) else repr(choice)


def _there_are(names: Mapping[str, nn.Module]) -> str:
    layers = [name for name, module in names.items() if _matrix(module) is not None]
    some = ", ".join(layers[:8]) + (f", ... ({len(layers)} in all)" if len(layers) > 8 else "")
    return f"layers with weights: {some or 'none'}"


@contextlib.contextmanager
def hooks(model: nn.Module, observation: Observation, observed: Sequence[Site]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:

        def until_the_end(handle: Any) -> None:
            stack.callback(handle.remove)

        root = unwrapped(model)
        until_the_end(
            root.register_forward_pre_hook(
                lambda _, args, kwargs: observation.begin(args, kwargs), with_kwargs=True
            )
        )
        for site in observed:
            until_the_end(_attached(observation, site))
        if any(site.tap == "post" for site in observed):
            chase = _Chase(observation, observed)
            for module in root.modules():
                if isinstance(module, _KEEP_NEURONS) or _is_activation(module):
                    until_the_end(module.register_forward_hook(chase.passed))
        yield


def _attached(observation: Observation, site: Site) -> Any:
    if site.tap == "input":

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(kwargs.values()), None)
            observation.take(site, first, site.axis)

        return site.module.register_forward_pre_hook(before, with_kwargs=True)
    if site.tap == "post":
        return site.module.register_forward_hook(
            lambda module, _, output: _Chase.start(site, module, output)
        )
    return site.module.register_forward_hook(
        lambda module, _, output: observation.take(site, output, site.axis)
    )


class _Chase:
    """Follows the outputs of layers to their activations, by the identity of tensors."""

    def __init__(self, observation: Observation, observed: Sequence[Site]) -> None:
        self._observation = observation
        self._sites = [site for site in observed if site.tap == "post"]

    @staticmethod
    def start(site: Site, module: nn.Module, output: Any) -> None:
        """Remember what a layer gave; nothing is kept alive by that."""
        with contextlib.suppress(TypeError):
            site.trail = weakref.ref(_tensor(site, output))

    def passed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Behind a norm, a dropout or an activation."""
        for site in self._sites:
            if site.trail is None or not args or site.trail() is not args[0]:
                continue
            if _is_activation(module):
                site.trail = None
                self._observation.take(site, output, site.axis)
            else:
                site.trail = weakref.ref(output)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ in _ACTIVATIONS and not isinstance(module, nn.MultiheadAttention)


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _tensor(site: Site, output: Any) -> torch.Tensor:
    found = output if site.select is None else site.select(output)
    while not isinstance(found, torch.Tensor):
        if site.select is not None:
            raise TypeError(f"select: gave {type(found).__name__}, expected a tensor")
        values = found.values() if isinstance(found, Mapping) else found
        if not isinstance(values, (tuple, list)) and not isinstance(found, Mapping):
            raise TypeError(f"it gives {type(found).__name__}, expected a tensor; use select")
        found = next((v for v in values if v is not None), None)
    return found


def _neuron_axis(module: nn.Module) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return -1 - len(module.kernel_size)  # with or without an axis of batches
    norms = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm
    return 1 if isinstance(module, norms) else -1


def _matrix(module: nn.Module) -> torch.Tensor | None:
    """Weights as a matrix or more, or None for modules without."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) and weight.ndim >= 2 else None


def _is_transposed(module: nn.Module) -> bool:
    """Whether weights are stored (in, out, ...)."""
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers
    return is_conv1d or (isinstance(module, _CONVOLUTIONS) and module.transposed)


def _weight(module: nn.Module, tap: str) -> tuple[torch.Tensor | None, str]:
    """Weights as a matrix with the tapped neurons on one of its sides."""
    weight = _matrix(module)
    # The function between a layer and its "post" tap stands between P and its weights.
    if weight is None or tap == "post":
        return None, "output"
    weight = weight.detach()
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return (weight, "input") if tap == "pre" else (None, "input")
    if getattr(module, "groups", 1) != 1 and tap == "input":
        return None, "input"
    if _is_transposed(module):
        weight = weight.transpose(0, 1)
    if tap == "pre":
        return weight.flatten(1), "output"
    return weight.movedim(1, -1).flatten(0, -2), "input"


def _neurons(module: nn.Module, tap: str) -> int:
    """Tell the number of neurons where the module does, else 0."""
    weight, side = _weight(module, "input" if tap == "input" else "pre")
    if weight is None:
        return 0
    return int(weight.shape[0 if side == "output" else 1])
