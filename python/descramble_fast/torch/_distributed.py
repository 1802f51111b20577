"""Moments of several processes added up, over torch.distributed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from descramble_fast import _core
from descramble_fast._arrays import Floats, Kind
from descramble_fast._covariance import Covariance

_T = TypeVar("_T")
_CHUNK = 1 << 23  # numbers that travel at once, and are staged on a device: 64 MiB


@dataclass(frozen=True)
class _Held:
    """What a rank says of a layer that it holds."""

    n_features: int
    count: int
    weight: float
    has_mean: bool
    device: str
    offload: bool
    of_torch: bool
    input_dtypes: frozenset[str]


class _Group:
    """The ranks that add up, and what they do together."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        members = (dist.ProcessGroup, type(None))
        if not isinstance(group, members) and group is not dist.GroupMember.NON_GROUP_MEMBER:
            raise TypeError(f"group: got {type(group).__name__}, expected a ProcessGroup")
        self._group = group
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError("group: this process does not belong to it")
        backends = dict(b.split(":") for b in dist.get_backend_config(group).split(","))
        on_cpu = "cpu" in backends and backends.get("cuda") != "nccl"
        self._device = "cpu" if on_cpu else "cuda"
        self._stage: torch.Tensor | None = None

    def prepare(self) -> None:
        """Take the memory that `add_up` needs; may fail."""
        if self._device != "cpu":
            self._stage = torch.empty(_CHUNK, dtype=torch.float64, device=self._device)

    def gather(self, mine: _T) -> list[_T]:
        """Tell the others, and hear what they say, by rank."""
        said: list[_T] = [mine] * dist.get_world_size(self._group)
        dist.all_gather_object(said, mine, group=self._group)
        return said

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what may fail on one rank, with nothing collective in it: then all ranks raise."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        said = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, text in enumerate(said):
            if text is not None:
                raise ValueError(f"group: rank {rank} failed, and nothing was added up: {text}")

    def add_up(self, values: Floats) -> None:
        """Replace an array by its sum over the ranks."""
        for begin in range(0, len(values), _CHUNK):
            part = torch.from_numpy(values[begin : begin + _CHUNK])
            there = part if self._stage is None else self._stage[: len(part)].copy_(part)
            dist.all_reduce(there, group=self._group)
            if there is not part:
                part.copy_(there)


def all_reduce(
    moments: Mapping[str, Covariance], group: dist.ProcessGroup | None = None
) -> dict[str, Covariance]:
    """Add up the moments of all ranks, layer by layer: every rank then holds those of all samples.

    A collective call: every rank of the group makes it. Ranks may hold different layers, or none,
    and layers without samples: they first tell each other what they have, and raise together where
    one of them cannot go on. The sums have the same bits on every rank.

    A second call would count every sample once per rank. Whatever is raised, the accumulators of
    this rank are as they were; but save before it what cannot be lost: when a rank dies, the others
    notice as soon as their backend does, and NCCL by default ends them too. No accumulator may be
    updated meanwhile. A rank needs as much memory again as `moments` take, and 8 n² bytes of the
    host for the layer that is on its way, or 20 n² if that lies on a CUDA device.

    Parameters
    ----------
    moments : mapping of str to Covariance
        By layer. Those with samples on any rank become the sum, and stay where they lie.
    group : ProcessGroup, optional
        None: the default group. Where it has NCCL, sums travel over that, from the host's memory
        through the current CUDA device.

    Returns
    -------
    dict of str to Covariance
        All layers of all ranks, in the order of their names: those of `moments`, and new ones for
        what this rank had not seen. What had no samples here comes to where the others have it,
        the CPU or the current CUDA device.

    Raises
    ------
    TypeError
        If a name is no string or a value no Covariance.
    ValueError
        On every rank, if numbers of features disagree, a mean is unknown, a sum overflows, or a
        rank had an error, which that rank itself raises as it was. Also if this process does not
        belong to `group`.
    RuntimeError
        If the backend fails, as where a rank was killed.

    Examples
    --------
    A group of one process; ``torchrun`` starts several.

    >>> import os, tempfile
    >>> import numpy as np, torch.distributed
    >>> import descramble_fast as df, descramble_fast.torch
    >>> torch.distributed.init_process_group(
    ...     "gloo", init_method=f"file://{tempfile.mkdtemp()}/meet", rank=0, world_size=1
    ... )
    >>> moments = {"mlp.0": df.Covariance.from_samples(np.eye(3))}
    >>> df.torch.all_reduce(moments)
    {'mlp.0': <Covariance of 3 features, 3 samples>}
    >>> torch.distributed.destroy_process_group()
    """
    ranks = _Group(group)
    held: dict[str, _Held] = {}
    with ranks.together():
        if not isinstance(moments, Mapping):
            kind = type(moments).__name__
            raise TypeError(f"moments: got {kind}, expected a mapping from names to Covariance")
        for name, cov in moments.items():
            held[name] = _describe(name, cov)
        ranks.prepare()
    said = ranks.gather(held)
    layers = sorted({name for names in said for name in names})
    for name in layers:
        _check(name, said)
    sums = {name: _sum(name, moments.get(name), said, ranks) for name in layers}
    # From here on nothing can fail.
    return {name: _become(moments.get(name), sums[name], name, said) for name in layers}


def _describe(name: str, cov: Covariance) -> _Held:
    if not isinstance(name, str):
        raise TypeError(f"moments: got the name {name!r} ({type(name).__name__}), expected a str")
    if not isinstance(cov, Covariance):
        raise TypeError(f"moments: {name!r} is {type(cov).__name__}, expected a Covariance")
    core, namespace = cov._core, cov._kind._namespace
    return _Held(
        core.size,
        core.count,
        core.weight,
        core.has_mean,
        core.device,
        core.offload,
        namespace is not None and namespace.__name__.endswith("torch"),
        cov._input_dtypes,
    )


def _check(name: str, said: list[dict[str, _Held]]) -> None:
    """Raise what every rank finds in what all have said."""
    layer = f"moments: layer {name!r}"
    held = {rank: names[name] for rank, names in enumerate(said) if name in names}
    first = min(held)
    for rank, it in held.items():
        if it.n_features != held[first].n_features:
            raise ValueError(
                f"{layer} has {it.n_features} features on rank {rank}, "
                f"expected {held[first].n_features}, as on rank {first}"
            )
        if not it.has_mean:
            raise ValueError(
                f"{layer} is a second moment without a mean on rank {rank}, and cannot be added to"
            )
    if sum(it.count for it in held.values()) >= 2**63:
        raise ValueError(f"{layer} has more than 2^63 - 1 rows in all")
    if not math.isfinite(sum(it.weight for it in held.values())):
        raise ValueError(f"{layer} has weights whose sum overflows float64")


def _sum(
    name: str, cov: Covariance | None, said: list[dict[str, _Held]], ranks: _Group
) -> _core.Covariance:
    """Scatter of a layer over all ranks: Σ (Sᵢ + wᵢ δᵢ δᵢᵀ), δᵢ: rank i's mean less the common."""
    held = [names.get(name) for names in said]
    known = [it for it in held if it is not None]
    n, own = known[0].n_features, held[ranks.rank]
    weights = [0.0 if it is None else it.weight for it in held]
    weight, total = weights[ranks.rank], sum(weights)
    with ranks.together():
        if total == 0:
            return _core.Covariance.empty(n) if cov is None else cov._core
        if cov is not None and weight > 0:
            *_, reference, offset, scatter = cov._core.state()
        else:
            reference, offset = np.zeros((2, n))
            scatter = np.zeros(n * (n + 1) // 2)
    # From one rank's reference, which lies near the mean, means have all their digits.
    origin = reference if weights.index(max(weights)) == ranks.rank else np.zeros(n)
    origin = origin.copy()
    ranks.add_up(origin)
    shift = (reference - origin) + offset
    mean = weight * shift
    ranks.add_up(mean)
    mean /= total
    shift -= mean
    begin = 0
    with np.errstate(over="ignore", invalid="ignore"):  # which is found in the sum, on all ranks
        for i in range(n if weight > 0 else 0):
            scatter[begin : begin + n - i] += (weight * shift[i]) * shift[i:]
            begin += n - i
    ranks.add_up(scatter)
    with ranks.together():
        count = sum(it.count for it in known)
        state = (count, total, True, origin, mean, scatter)
        return _core.Covariance.from_state(*state, *_place(own, known))


def _place(own: _Held | None, known: list[_Held]) -> tuple[str, bool]:
    """Where the sum shall lie on this rank, and whether it is offloaded."""
    offload = any(it.offload for it in known) if own is None else own.offload
    if own is not None and (own.weight > 0 or own.device != "cpu"):
        return own.device, offload
    on_cuda = all(it.device != "cpu" for it in known if it.weight > 0)
    if on_cuda and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}", offload
    return "cpu", offload


def _become(
    cov: Covariance | None, core: _core.Covariance, name: str, said: list[dict[str, _Held]]
) -> Covariance:
    """Put the sum in an accumulator's place, or in a new one."""
    known = [names[name] for names in said if name in names]
    if cov is None:
        cov = Covariance._wrap(core, Kind())
    cov._core = core
    cov._input_dtypes = frozenset().union(*(it.input_dtypes for it in known))
    if any(it.of_torch for it in known):  # or stay of the library that this rank has seen
        cov._kind.see(torch.empty(0, device=core.device))
    return cov
