"""Bad input: the right answer or an error that says what is wrong, and nothing else."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import pickle
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import extras  # noqa: F401 — with it, the register is filled
import inputs
import numpy as np
from drill import Tally, drill
from kinds import CALLS, Call, Kind, host
from on_device import TYPES

import descramble_fast as df

ERRORS = (ValueError, TypeError, MemoryError, OverflowError, OSError, df.BackendError)
SHARE = 7  # one trial of so many is in the quick part
# Without their modules, their calls are left out.
EXTRAS = {"torch": "torch", "dask": "dask", "plot": "matplotlib"}
# Public for whoever reads results; made by the library.
UNCALLED = {
    "torch.Observation.begin", "torch.Observation.enter", "torch.Observation.leave",
    "torch.Observation.take",
}  # fmt: skip


def state(owner: Any) -> bytes:
    """Everything that a refused call must leave."""
    if isinstance(owner, df.CrossCovariance):
        found = (owner.cross_moment(), owner.cross_covariance()) if owner.weight else ()
        return pickle.dumps((owner.count, owner.weight, *(host(one).tobytes() for one in found)))
    return pickle.dumps(owner) if isinstance(owner, df.Covariance) else b""


def bits(value: Any) -> Any:
    """An input's content, where it has some that can be read."""
    if isinstance(value, (list, tuple)):
        return [bits(one) for one in value]
    if isinstance(value, (df.Covariance, df.CrossCovariance)):
        return state(value)
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.dtype != object else None
    if inputs.torch is not None and isinstance(value, inputs.torch.Tensor):
        with contextlib.suppress(Exception):  # of a meta tensor, say
            return value.detach().resolve_neg().resolve_conj().cpu().numpy().tobytes()
    return None


def attempt(
    call: Call, arguments: dict[str, Any], accused: tuple[str, ...] = ()
) -> tuple[Any, str]:
    """Call, and say what is wrong with the outcome; with `accused`, one of them must be named."""
    owner = None if call.owner is None else call.owner()
    before, contents = state(owner), {name: bits(one) for name, one in arguments.items()}
    function = call.function if call.owner is None else getattr(owner, call.function.__name__)
    result, wrong = None, ""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = function(**arguments)
            if inspect.isgenerator(result) or hasattr(result, "__enter__"):
                with result:
                    pass
            if accused:
                wrong = f"taken: {str(result)[:100]}"
        except ERRORS as raised:
            text = f"{type(raised).__name__}: {str(raised)[:200]}"
            if not accused:
                wrong = text
            elif isinstance(raised, OSError):
                wrong = "" if raised.filename is not None else f"names no file: {text}"
            elif "incompatible function arguments" in text or not any(
                re.search(rf"\b{word}\b", str(raised)) for word in accused
            ):
                wrong = f"names none of {accused}: {text}"
        except Exception as raised:
            wrong = f"undocumented {type(raised).__name__}: {str(raised)[:200]}"
    if warned:
        wrong += f"; warns: {warned[0].message}"
    if accused and state(owner) != before:
        wrong += "; changes the state"
    if any(bits(arguments.get(name)) != kept for name, kept in contents.items()):
        wrong += "; changes an argument"
    return result, wrong


def fresh(call: Call) -> dict[str, Any]:
    """Valid arguments; arrays as copies."""
    return {
        name: one.copy() if isinstance(one, np.ndarray) else one for name, one in call.valid.items()
    }


def shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def wrong_of(kind: Kind, name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield from kind.wrong(value)
    if not kind.optional and not isinstance(value, type(None)):
        yield "None", None


def refusals(tally: Tally, name: str, call: Call, pairs: int) -> None:
    """Every wrong value of every argument, and some pairs of them."""
    _, wrong = attempt(call, fresh(call))
    tally.check(not wrong, f"{name}: valid arguments: {wrong}")
    table = {
        one: list(wrong_of(kind, one, call.valid.get(one))) for one, kind in call.kinds.items()
    }
    trials = [((one, *bad),) for one, several in table.items() for bad in several]
    rng = np.random.default_rng(0)
    several = [one for one, wrong_ones in table.items() if wrong_ones]
    for _ in range(pairs if len(several) > 1 else 0):
        two = rng.choice(several, 2, replace=False)
        trials.append(
            tuple((str(o), *table[str(o)][rng.integers(len(table[str(o)]))]) for o in two)
        )
    for trial in trials:
        arguments = fresh(call) | {one: value for one, _, value in trial}
        _, wrong = attempt(call, arguments, tuple(one for one, _, _ in trial))
        label = ", ".join(f"{one}={what}" for one, what, _ in trial)
        tally.check(not wrong, f"{name}({label}): {wrong}")


def arrays_of(call: Call) -> dict[str, Kind]:
    return {
        one: kind
        for one, kind in call.kinds.items()
        if kind.dtypes and isinstance(call.valid.get(one), np.ndarray)
    }


def answers(tally: Tally, name: str, call: Call, mixed: int) -> None:
    """Every form and element type of every array, and some of all arrays together."""
    arrays = arrays_of(call)
    rng = np.random.default_rng(0)
    trials = []
    for one, kind in arrays.items():
        for form, make in inputs.all_forms(call.valid[one].ndim).items():
            trials += [{one: (form, make, dtype)} for dtype in kind.dtypes]
    for _ in range(mixed):
        several = {}
        for one, kind in arrays.items():
            made = inputs.all_forms(call.valid[one].ndim)
            form = str(rng.choice([*made]))
            several[one] = (form, made[form], kind.dtypes[rng.integers(len(kind.dtypes))])
        trials.append(several)
    judge(tally, name, call, trials[:: 1 if mixed else 3 * SHARE])


def judge(tally: Tally, name: str, call: Call, trials: list[dict[str, Any]]) -> None:
    """Call with arrays of these forms and element types."""
    for trial in trials:
        arguments, oracle, eps = fresh(call), fresh(call), 2.0**-52
        for one, (_, make, dtype) in trial.items():
            whole = call.valid[one]
            narrow = (np.abs(whole) if np.dtype(dtype).kind == "u" else whole).astype(dtype)
            oracle[one], arguments[one] = narrow.astype(np.float64), make(narrow)
            eps = eps if narrow.dtype.kind == "f" and narrow.itemsize == 8 else 2.0**-23
        label = ", ".join(f"{one}={form} {np.dtype(t).name}" for one, (form, _, t) in trial.items())
        result, wrong = attempt(call, arguments)
        if not wrong and call.truth is not None:
            off = call.truth(result, oracle, eps)
            tally.worst("error over its bound", off)
            wrong = "" if off <= 1 else f"error {off:.3g} of what is allowed"
        tally.check(not wrong, f"{name}({label}): {wrong}")


def public() -> Iterator[tuple[str, Any]]:
    """Functions and methods that take an argument, under their names after ``df.``."""
    for module in ("", "operators", *(m for m, needs in EXTRAS.items() if find_spec(needs))):
        where = import_module(f"descramble_fast.{module}".rstrip("."))
        for name in where.__all__:
            thing, path = getattr(where, name), f"{module}.{name}".lstrip(".")
            if inspect.isclass(thing):
                for attribute, member in vars(thing).items():
                    function = getattr(member, "__func__", member)
                    if inspect.isfunction(function) and not attribute.startswith("_"):
                        yield f"{path}.{attribute}", function
            elif inspect.isfunction(thing):
                yield path, thing


def complete(tally: Tally) -> None:
    """Fail where a public call or an argument has no entry."""
    for name, function in public():
        wanted = {
            each.name
            for each in inspect.signature(function).parameters.values()
            if each.name not in ("self", "cls") and each.kind != each.VAR_KEYWORD
        }
        known = {
            argument
            for entry, call in CALLS.items()
            if entry.partition(":")[0] == name
            for argument in call.kinds
        }
        if wanted and name not in UNCALLED:
            tally.check(known >= wanted, f"{name}: no entry for {sorted(wanted - known)}")


def each(tally: Tally, long: bool, of: Callable[[Tally, str, Call, int], None], more: int) -> None:
    """Go through the register; in the long part each call in a process of its own.

    But not where torch's process group is needed, whose threads a fork does not have.
    """
    for name, call in CALLS.items():
        if long and hasattr(os, "fork") and "all_reduce" not in name:
            apart(tally, name, lambda t, n=name, c=call: of(t, n, c, more))
        else:
            of(tally, name, call, 0)


def apart(tally: Tally, name: str, work: Callable[[Tally], None], limit: float = 300.0) -> None:
    """Do it in a fork; a crash or a hang is a failure."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        own = Tally()
        try:
            work(own)
        except BaseException as error:
            own.check(False, f"{name}: the drill itself ended by {error!r}")
        with os.fdopen(writing, "w") as out:
            json.dump([own.trials, own.failures, own.figures], out)
        os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    begin = time.monotonic()
    with os.fdopen(reading) as said:
        text = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    if code != 0:
        tally.check(False, f"{name}: exit status {code} after {time.monotonic() - begin:.0f} s")
        return
    trials, failures, figures = json.loads(text)
    tally.trials += trials
    tally.failures += failures
    for key, value in figures.items():
        tally.worst(key, float(value))


@drill("wrong-arguments", "what an argument must not be is refused by name, and changes nothing")
def wrong_arguments(tally: Tally, long: bool) -> None:
    complete(tally)
    each(tally, long, refusals, 300)
    tally.figures["calls"] = str(len(CALLS))


@drill("array-forms", "arrays of every library, element type and layout give the oracle's answer")
def array_forms(tally: Tally, long: bool) -> None:
    each(tally, long, answers, 300)


# They belong to a descrambler that lies on the host.
ON_HOST = tuple(
    f"Descrambler.{name}"
    for name in ("transform", "inverse_transform", "transform_weight", "transform_next_weight")
)


@drill(
    "device-forms",
    "arrays on a CUDA device, of every type, of torch, CuPy and our own, give the oracle's answer",
    device=True,
)
def device_forms(tally: Tally, long: bool) -> None:
    rng = np.random.default_rng(0)
    for name, call in CALLS.items():
        for form, make in inputs.device_forms().items():
            for _ in range(40 if long else 1):
                trial, found = {}, Tally()
                for one, kind in arrays_of(call).items():
                    dtypes = [each for each in kind.dtypes if np.dtype(each).name in TYPES]
                    trial[one] = (form, make, dtypes[rng.integers(len(dtypes))])
                if not trial:
                    continue
                judge(found, name, call, [trial])
                if name in ON_HOST:
                    refused = [each for each in found.failures if each.endswith("expected cpu")]
                    tally.check(len(refused) == 1, f"{name}, {form}: not refused for its place")
                    continue
                tally.trials += found.trials
                tally.failures += found.failures
                for figure, value in found.figures.items():
                    tally.worst(figure, float(value))
