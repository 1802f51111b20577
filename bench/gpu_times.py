"""Times on the device, beside torch, CuPy and torch-linear-assignment.

Every implementation's first answer is checked on the device. Then they take turns; a timed sample
is as many calls as fill some milliseconds, between two waits for the device, over inputs that take
turns as well, so that none is found in the cache.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import descramble_fast as df
from descramble_fast import _core

from .gpu_arrays import Arrays, NotRunError, TorchArrays, route_of
from .gpu_checks import CONTRACT, Assigned, PeakMemory, assign_on_device
from .harness import FEWEST, MOST, Cell, Measurement, Method, make_row, require
from .machine import optional
from .report import OURS, Row

Facts = dict[str, Any]

OWN = (OURS, "on_cpu", "on_device")  # implementations of this library
SAMPLE = 0.005  # seconds that a timed sample takes at least
CACHE = 256 << 20  # bytes of inputs that no cache holds
MOST_INPUTS = 64


def torch_of(arrays: Arrays) -> Any:
    """Return torch, which makes the inputs and is the first of the peers."""
    if not isinstance(arrays, TorchArrays):
        raise NotRunError("timings need torch with CUDA")
    return arrays.torch


def cupy_view(array: Any) -> Any:
    """Share a tensor with CuPy; None where it is not installed, or has no such type."""
    cupy = optional("cupy")
    if cupy is None or array.device.type == "cpu" or str(array.dtype) == "torch.bfloat16":
        return None
    return cupy.from_dlpack(array)


def as_tensor(torch: Any, array: Any) -> Any:
    """Any library's array as a tensor, where it lies."""
    return array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)


@dataclass
class Measured:
    """What was timed, the routes by name, and the peers that gave no right answer."""

    entries: list[Measurement] = field(default_factory=list)
    routes: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(methods: Sequence[Method], arrays: Arrays, budget: float) -> Measured:
    """Check the first answers, then time in interleaved rounds that fill `budget` seconds.

    Of what takes more than a third of the budget, the second run counts; beyond it, the first. A
    peer that fails, or whose answer is wrong, is left out.
    """

    def sample(run: Callable[[], Any], calls: int) -> float:
        arrays.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        arrays.synchronize()
        return (time.perf_counter() - start) / calls

    def first_run(method: Method) -> Measurement:
        entry = Measurement(method)
        arrays.synchronize()
        start = time.perf_counter()
        result = method.run()
        arrays.synchronize()
        entry.first = time.perf_counter() - start
        entry.error = method.check(result) if method.check else None
        measured.routes[method.name] = route_of(result)
        return entry

    measured = Measured()
    for method in methods:
        try:
            entry = first_run(method)
        except (Exception, SystemExit) as error:
            if method.name in OWN:
                raise
            measured.failed[method.name] = f"{type(error).__name__}: {error}"[:500]
            continue
        if entry.first > budget:
            entry.seconds.append(entry.first)
        else:
            entry.first = sample(method.run, 1)
            if entry.first > budget / FEWEST:
                entry.seconds.append(entry.first)
        measured.entries.append(entry)
    calls = {id(e): max(1, math.ceil(SAMPLE / max(e.first, 1e-7))) for e in measured.entries}
    fast = [entry for entry in measured.entries if not entry.seconds]
    each = sum(calls[id(entry)] * entry.first for entry in fast)
    for turn in range(min(MOST, max(FEWEST, int(budget / each))) if fast else 0):
        for entry in fast if turn % 2 == 0 else reversed(fast):
            entry.seconds.append(sample(entry.method.run, calls[id(entry)]))
    return measured


def cell_facts(cell: Cell, arrays: Arrays, budget: float, parts: dict[str, int]) -> Facts:
    """Time a problem; a share of its limit is worked out once the limits are known.

    Of `parts` the named implementations solve one part in so many, whose time is scaled up.
    """
    measured = measure(cell.methods(), arrays, budget)
    for entry in measured.entries:
        entry.seconds = [s * parts.get(entry.method.name, 1) for s in entry.seconds]
    rows: list[Row] = []
    for entry in measured.entries:
        row = make_row(cell, entry, measured.entries[0], None)
        row["limit"] = cell.limits[0] if cell.limits else None
        row["route"] = measured.routes[entry.method.name]
        row["scaled_from_one_in"] = parts.get(entry.method.name)
        rows.append(row)
    return {"rows": rows} | ({"peers_failed": measured.failed} if measured.failed else {})


# --------------------------------------------------------------------------------- limits


def limits(arrays: Arrays, n: int, copied: int) -> Facts:
    """Flop/s of torch's matrix products, and bytes/s of a copy, counted read and written."""
    torch = torch_of(arrays)
    found = {}
    for dtype in ("bfloat16", "float16", "float32", "float64"):
        m = n if dtype.endswith("16") else n // 2
        a, b = (torch.randn((m, m), device=arrays.device).to(getattr(torch, dtype)) for _ in "ab")
        entry = measure([Method("torch", partial(torch.mm, a, b))], arrays, 1.0).entries[0]
        found[f"matmul_{dtype}"] = 2 * m**3 / min(entry.seconds)
    a, b = (torch.randn(copied // 4, device=arrays.device) for _ in "ab")
    entry = measure([Method("torch", lambda: b.copy_(a))], arrays, 1.0).entries[0]
    found["copy"] = 2 * copied / min(entry.seconds)
    return {"limits": found}


# -------------------------------------------------------------------------------- moments


def batches(torch: Any, arrays: Arrays, dtype: str, rows: int, n: int, count: int) -> list[Any]:
    """Random batches with a mean and correlations."""
    mixing = torch.randn((n, 8), device=arrays.device)
    made = []
    for _ in range(count):
        x = torch.randn((rows, n), device=arrays.device)
        x += torch.randn((rows, 8), device=arrays.device) @ mixing.T / 4 + 0.25
        made.append(x.to(getattr(torch, dtype)))
    return made


def covariance(arrays: Arrays, dtype: str, rows: int, n: int, budget: float) -> Facts:
    """Time an update, beside x.T @ x in the same type."""
    torch = torch_of(arrays)
    torch.set_float32_matmul_precision("highest")
    size = rows * n * getattr(torch, dtype).itemsize
    inputs = batches(torch, arrays, dtype, rows, n, max(2, min(MOST_INPUTS, CACHE // size)))
    wide = inputs[0].double()
    moment = wide.T @ wide / rows
    largest = float(moment.diagonal().max())
    del wide

    def ours() -> Iterator[Any]:
        cov = df.Covariance(n)
        for x in itertools.cycle(inputs):
            yield cov.update(x)

    def check(cov: Any) -> float:
        error = float((as_tensor(torch, cov.second_moment()) - moment).abs().max()) / largest
        require(error <= CONTRACT, f"second moment off by {error:.1e}")
        return error

    def check_peer(product: Any) -> float:
        off = as_tensor(torch, product).double() / rows - moment
        return float(off.abs().max()) / largest

    def methods() -> list[Method]:
        turn, peers = ours(), itertools.cycle(inputs)

        def torch_product() -> Any:
            x = next(peers)
            return x.T @ x

        found = [
            Method(OURS, lambda: next(turn), check),
            Method("torch", torch_product, check_peer),
        ]
        if cupy_view(inputs[0]) is not None:
            views = itertools.cycle([cupy_view(x) for x in inputs])

            def cupy_product() -> Any:
                x = next(views)
                return x.T @ x

            found.append(Method("cupy", cupy_product, check_peer))
        return found

    cell = Cell(
        op="covariance",
        dtype=dtype,
        shape=f"{rows}x{n}",
        size={"rows": rows, "n": n},
        methods=methods,
        work=float(rows * n * (n + 1)),
        limits=(f"matmul_{dtype}",),
    )
    return cell_facts(cell, arrays, budget, {})


# -------------------------------------------------------------------------- eigenproblems


def symmetric(torch: Any, arrays: Arrays, dtype: str, count: int, n: int) -> Any:
    """Random symmetric matrices, (count, n, n)."""
    a = torch.randn((count, n, n), device=arrays.device, dtype=getattr(torch, dtype))
    a += a.mT.clone()
    return a / (2 * n) ** 0.5


def check_eigenpairs(torch: Any, a: Any, found: Any) -> float:
    """Require residual and orthogonality within 50 n eps, by probes; the relative residual."""
    values, vectors = (as_tensor(torch, part).double() for part in found)
    n = a.shape[-1]
    allowed = 50 * n * torch.finfo(a.dtype).eps
    wide, count = a[: len(values)].double(), min(n, 8)
    probes = torch.randn((n, count), device=a.device, dtype=torch.float64) / count**0.5
    norm = torch.linalg.matrix_norm(wide)
    turned = vectors @ probes
    residual = wide @ turned - vectors @ (values[..., None] * probes)
    error = float((torch.linalg.matrix_norm(residual) / norm).max())
    gram = float(torch.linalg.matrix_norm(vectors.mT @ turned - probes).max())
    require(error <= allowed, f"residual {error:.1e}, allowed {allowed:.1e}")
    require(gram <= allowed, f"orthogonality error {gram:.1e}, allowed {allowed:.1e}")
    return error


SLOW_PEER = 4.0  # seconds from which a peer solves only a part of the batch
PART = 16


def eigenproblems(
    arrays: Arrays, dtype: str, count: int, n: int, budget: float, single: bool
) -> Facts:
    """Beside torch.linalg.eigh and cupy.linalg.eigh, one matrix or a batch."""
    torch = torch_of(arrays)
    stacks = [symmetric(torch, arrays, dtype, count, n) for _ in range(1 if single else 2)]
    if single:
        stacks = [stack[0] for stack in stacks]
    parts: dict[str, int] = {}

    def ours() -> Callable[[], Any]:
        turn = itertools.cycle(stacks)
        return lambda: df.eigh(next(turn))

    def peer(name: str, solve: Callable[[Any], Any], inputs: Sequence[Any]) -> Callable[[], Any]:
        if not single and count >= 2 * PART:
            some = inputs[0][: count // PART]
            with contextlib.suppress(Exception):  # it will fail again, where that is recorded
                solve(some[:2])
                arrays.synchronize()
                start = time.perf_counter()
                solve(some)
                arrays.synchronize()
                if (time.perf_counter() - start) * PART > SLOW_PEER:
                    parts[name] = PART
                    inputs = [x[: count // PART] for x in inputs]
        turn = itertools.cycle(inputs)
        return lambda: solve(next(turn))

    def check(found: Any) -> float:
        pairs = (found.eigenvalues, found.eigenvectors) if hasattr(found, "route") else found
        return check_eigenpairs(torch, stacks[0], pairs)

    def methods() -> list[Method]:
        found = [
            Method(OURS, ours(), check),
            Method("torch", peer("torch", torch.linalg.eigh, stacks), check),
        ]
        if cupy_view(stacks[0]) is not None:
            solve = optional("cupy").linalg.eigh
            views = [cupy_view(stack) for stack in stacks]
            found.append(Method("cupy", peer("cupy", solve, views), check))
        return found

    cell = Cell(
        op="eigh" if single else "eigh_batch",
        dtype=dtype,
        shape=f"{n}x{n}" if single else f"{count}x{n}x{n}",
        size={"count": count, "n": n},
        methods=methods,
    )
    return cell_facts(cell, arrays, budget, parts)


# ---------------------------------------------------------------------------- assignments


def assignment_methods(arrays: Arrays, cost: Any) -> list[Method]:
    """Every way to solve a batch of costs on the device; the CPU's with copies there and back."""
    torch = torch_of(arrays)
    expected = float(df.linear_assignment(cost.cpu()).cost.sum())

    def check_total(total: float) -> float:
        error = abs(total / expected - 1)
        require(error <= 1e-5, f"the assignments cost {total}, the optimum is {expected}")
        return error

    def check_ours(found: Any) -> float:
        return check_total(float(as_tensor(torch, found.cost).sum()))

    def check_columns(found: Any) -> float:
        places = as_tensor(torch, getattr(found, "columns", found)).to(cost.device, torch.int64)[
            ..., None
        ]
        return check_total(float(torch.gather(cost, -1, places).double().sum()))

    def on_cpu() -> Any:
        found = df.linear_assignment(cost.cpu())
        return Assigned(found.columns.to(cost.device), found.cost, found.route)

    methods = [
        Method(OURS, lambda: df.linear_assignment(cost), check_ours),
        Method("on_cpu", on_cpu, check_columns),
        Method("on_device", lambda: assign_on_device(cost), check_columns),
    ]
    peer = optional("torch_linear_assignment")
    if peer is not None:
        solve = peer.batch_linear_assignment
        methods.append(Method("torch-linear-assignment", lambda: solve(cost), check_columns))
    return methods


def assignment(arrays: Arrays, count: int, n: int, dtype: str, budget: float) -> Facts:
    """Time a batch of uniform costs."""
    torch = torch_of(arrays)
    cost = torch.rand((count, n, n), device=arrays.device, dtype=getattr(torch, dtype))
    cell = Cell(
        op="assignment",
        dtype=dtype,
        shape=f"{count}x{n}x{n}",
        size={"count": count, "n": n},
        methods=lambda: assignment_methods(arrays, cost),
    )
    return cell_facts(cell, arrays, budget, {})


# ------------------------------------------------------------------------------- pipelines


def pipeline(arrays: Arrays, rows: int, n: int, batch: int, dtype: str, rounds: int) -> Facts:
    """From samples on the device to a descrambler, in batches; and the memory it takes."""
    torch = torch_of(arrays)
    x = torch.empty((rows, n), device=arrays.device, dtype=getattr(torch, dtype))
    for part in x.split(batch):
        part.copy_(batches(torch, arrays, dtype, len(part), n, 1)[0])
    d: Any = None
    seconds: list[dict[str, float]] = []
    for _ in range(rounds + 1):  # the first, with everything that is made once, does not count
        d = None
        arrays.synchronize()
        start = time.perf_counter()
        cov = df.Covariance(n)
        for part in x.split(batch):
            cov.update(part)
        cov.count  # noqa: B018 - waits
        moments = time.perf_counter() - start
        d = df.descramble(cov)
        d.cost  # noqa: B018 - fills in the result
        arrays.synchronize()
        whole = time.perf_counter() - start
        seconds.append({"moments": moments, "descramble": whole - moments, "whole": whole})
    first, *counted = seconds
    moment = torch.zeros((n, n), device=arrays.device, dtype=torch.float64)
    for part in x.split(batch):
        moment += part.T.double() @ part.double() / rows
    found = as_tensor(torch, cov.second_moment())
    error = float((found - moment).abs().max() / moment.diagonal().max())
    require(error <= CONTRACT, f"second moment off by {error:.1e}")
    falling = torch.linalg.eigvalsh(found).flip(0).cpu()
    bound = float(torch.as_tensor(d.operator.eigenvalues) @ falling)
    require(abs(d.cost / bound - 1) <= 1e-7, f"cost {d.cost}, the optimum is {bound}")
    facts: Facts = {
        "first": first,
        "seconds": {name: statistics.median(s[name] for s in counted) for name in first},
        "errors": {"second_moment": error, "cost": abs(d.cost / bound - 1)},
        "orthogonality_error": d.orthogonality_error,
        "route": route_of(d),
        "size": {"rows": rows, "n": n, "batch": batch, "dtype": dtype},
    }
    del d, cov, moment, found
    facts["stated_bytes"] = plan_of(n, batch, dtype)
    facts["peak_bytes"] = peak(arrays, x, n, batch)
    return facts


def peak(arrays: Arrays, x: Any, n: int, batch: int) -> int | None:
    """Bytes taken beside the samples, in one more run."""
    try:
        arrays.memory()
    except NotRunError:
        return None
    arrays.release()
    with PeakMemory(arrays) as taken:
        cov = df.Covariance(n)
        for part in x.split(batch):
            cov.update(part)
        d = df.descramble(cov)
        d.cost  # noqa: B018 - fills in the result
    return taken.bytes


def large(arrays: Arrays, n: int, rows: int, updates: int, dtype: str) -> Facts:
    """One very wide layer: moments, then all its eigenpairs in float64, within the memory."""
    torch = torch_of(arrays)
    x = batches(torch, arrays, dtype, rows, n, 1)[0]
    arrays.release()
    facts: Facts = {"size": {"rows": rows * updates, "n": n, "dtype": dtype}}
    try:
        taken: PeakMemory | None = PeakMemory(arrays)
    except NotRunError:
        taken = None
    if taken is not None:
        taken.__enter__()
    try:
        start = time.perf_counter()
        cov = df.Covariance(n)
        for _ in range(updates):
            cov.update(x)
        cov.count  # noqa: B018 - waits
        facts["seconds"] = {"moments": time.perf_counter() - start}
        start = time.perf_counter()
        d = df.descramble(cov)
        facts |= {
            "cost": d.cost,
            "cost_error": d.cost_error,
            "orthogonality_error": d.orthogonality_error,
            "route": route_of(d),
        }
        facts["seconds"]["descramble"] = time.perf_counter() - start
    finally:
        if taken is not None:
            taken.__exit__()
            facts["peak_bytes"] = taken.bytes
    allowed = 50 * n * torch.finfo(torch.float64).eps
    require(d.orthogonality_error <= allowed, f"orthogonality error {d.orthogonality_error:.1e}")
    # P C P^T is T diag(c) T^T: the first mode, a constant, times the largest eigenvalue.
    constant = torch.ones((1, n), device=arrays.device, dtype=torch.float64)
    turned = as_tensor(torch, d.inverse_transform(constant))
    image = as_tensor(torch, d.transform(turned @ as_tensor(torch, cov.second_moment())))
    error = float((image / float(d.eigenvalues[0]) - 1).abs().max())
    require(error <= allowed, f"P C P^T is off by {error:.1e}")
    facts["errors"] = {"first_mode": error}
    facts["stated_bytes"] = plan_of(n, rows, dtype)
    return facts


def plan_of(n: int, rows: int, dtype: str) -> int | None:
    """Bytes stated for an accumulator and its updates on the device at hand."""
    return sum(_core.moments_memory(n, rows, dtype)) if df.cuda_available() else None
