"""Moments added up over processes that torch.distributed joins.

Run as a program, this file is the processes: each writes what it got to a file, and the tests
compare. They take a second to start, so they do all there is to do for their number at once.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import two_pass

import descramble_fast as df
from descramble_fast import _core

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

import torch.distributed as dist  # noqa: E402

from descramble_fast.torch import _distributed  # noqa: E402
from descramble_fast.torch._distributed import all_reduce  # noqa: E402

N = 5
DIES = 9  # what a killed rank exits with

# What is added up -------------------------------------------------------------------------------

CASES: dict[str, tuple[Any, list[float]]] = {  # dtype, and the means of the ranks, in turn
    "float64": (np.float64, [0.0]),
    "float64, means a million deviations": (np.float64, [1e6, 1e6 + 3]),
    "float64, means that differ": (np.float64, [1e6, -1e6, 3.0]),
    "float32": (np.float32, [1.0]),
    "float32, means that differ": (np.float32, [100.0, -50.0]),
    "float16": (np.float16, [2.0]),
}


def share(case: str, rank: int) -> NDArray[Any]:
    """Rows of one rank: fewer on later ones."""
    dtype, means = CASES[case]
    rng = np.random.default_rng([rank, *case.encode()])
    mixed = rng.normal(size=(400 // (rank + 1), N)) @ rng.normal(size=(N, N))
    return (mixed + means[rank % len(means)]).astype(dtype)


def weights_of(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.arange(len(x)) % 4 * 0.5


def counted(rows: int, n: int = 1) -> df.Covariance:
    """An accumulator that says it has seen so many rows."""
    cov = df.Covariance(n)
    state = (rows, 1.0, True, np.ones(n), np.zeros(n), np.ones(n * (n + 1) // 2))
    cov.__setstate__({"state": state, "input_dtypes": frozenset({"float64"})})
    return cov


# One rank -----------------------------------------------------------------------------------------


class Failing:
    """A core whose state cannot be read."""

    def __init__(self, core: Any) -> None:
        self.core = core

    def __getattr__(self, name: str) -> Any:
        if name == "state":
            raise MemoryError("no room for the scatter")
        return getattr(self.core, name)


def outcome(cov: df.Covariance) -> tuple[Any, ...]:
    return (*cov._core.state(), cov.input_dtypes)


def attempt(held: dict[str, Any], group: Any = None) -> tuple[str, str, bool]:
    """Kind and text of the error, and whether what this rank holds is as it was."""
    readable = {
        name: cov
        for name, cov in held.items()
        if isinstance(cov, df.Covariance) and not isinstance(cov._core, Failing)
    }
    before = {name: pickle.dumps(cov) for name, cov in readable.items()}
    try:
        all_reduce(held, group)
    except Exception as error:
        same = before == {name: pickle.dumps(cov) for name, cov in readable.items()}
        return type(error).__name__, str(error), same
    return "", "", False


def staged(group: Any) -> None:
    """As on a device, whose memory the sums travel through."""
    group._stage = torch.empty(_distributed._CHUNK, dtype=torch.float64)


class Full:
    """A core that has no room for another accumulator."""

    class Covariance:
        @staticmethod
        def empty(n: int) -> Any:
            raise MemoryError(f"no room for {n} features")


def everything(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """All that ranks which stay alive are asked for."""
    found: dict[str, Any] = {}
    for case in CASES:
        cov = df.Covariance(N)
        for part in np.array_split(share(case, rank), 3):
            cov.update(part)
        assert cov.all_reduce() is cov
        found[case] = outcome(cov)

    x = share("float64", rank)
    weighted = df.Covariance(N).update(x, weights=weights_of(x))
    found["weights"] = outcome(weighted.all_reduce())
    for name, prepare in (("chunks", _distributed._Group.prepare), ("staged chunks", staged)):
        with (
            patch.object(_distributed, "_CHUNK", 4),
            patch.object(_distributed._Group, "prepare", prepare),
        ):
            found[name] = outcome(df.Covariance.from_samples(x).all_reduce())
    last = df.Covariance(N) if rank < world - 1 else df.Covariance.from_samples(x)
    found["samples on one rank"] = outcome(last.all_reduce())
    found["samples on none"] = outcome(df.Covariance(N).all_reduce())
    found["count"] = counted(2**53 + 1).all_reduce().count

    held = {f"only {rank}": df.Covariance.from_samples(x[:, :2]), "nobody": df.Covariance(3)}
    if rank != 1:
        held["not on 1"] = df.Covariance.from_samples(torch.from_numpy(x))
    sums = all_reduce(dict(reversed(held.items())))
    assert all(sums[name] is cov for name, cov in held.items())
    found["layers"] = {name: outcome(cov) for name, cov in sums.items()}
    found["library"] = type(sums["not on 1"].mean).__name__
    found["none"] = {
        name: outcome(cov)
        for name, cov in all_reduce({} if rank == 0 else {"a": df.Covariance(N).update(x)}).items()
    }

    members = [0, world - 1] if world > 2 else [1]
    group = dist.new_group(members)
    cov = df.Covariance.from_samples(x)
    if rank in members:
        found["subgroup"] = outcome(cov.all_reduce(group))
    else:
        found["subgroup"] = attempt({"a": cov}, group)

    good = df.Covariance.from_samples(x)
    loose = df.Covariance.from_moments(np.eye(N), weight=1e8)
    heavy = df.Covariance.from_moments(1e300 * np.eye(N), mean=np.zeros(N), weight=2e7)
    broken = df.Covariance.from_samples(x)
    broken._core = Failing(broken._core)
    odd: Any = rank == 1
    found["errors"] = {
        "sizes": attempt({"a": good, "b": df.Covariance(N + rank)}),
        "no mean": attempt({"a": good, "b": loose if odd else good}),
        "no mean, no samples elsewhere": attempt({"b": loose} if odd else {}),
        "not a covariance": attempt({"a": good, "b": x if odd else good}),
        "not a name": attempt({"a": good, 3: good} if odd else {"a": good}),
        "no memory": attempt({"a": good, "b": broken if odd else good}),
        "overflow": attempt({"a": good, "b": heavy}),
        "count": attempt({"a": good, "b": counted(2**62)}),
    }
    with patch.object(_distributed, "_core", Full if odd else _core):
        found["errors"]["no memory for no samples"] = attempt(
            {} if odd else {"a": df.Covariance(N)}
        )
    found["after errors"] = outcome(good.all_reduce())
    return found


def killed(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Rank 1 dies when the second part of its scatter is due."""
    x = share("float64", rank)
    cov = df.Covariance.from_samples(x)
    cov.save(folder / f"{rank}.safetensors")
    _distributed._CHUNK = N
    calls, whole = count(), dist.all_reduce

    def dies(*args: Any, **kwargs: Any) -> Any:
        if rank == 1 and next(calls) == 3:
            os._exit(DIES)
        return whole(*args, **kwargs)

    dist.all_reduce = dies
    before = pickle.dumps(cov)
    try:
        cov.all_reduce()
    except RuntimeError as error:
        assert pickle.dumps(cov) == before
        cov.save(folder / f"{rank}.safetensors")
        return {"error": str(error)}
    raise AssertionError("all_reduce returned without rank 1")


def on_a_device(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Moments on a CUDA device, on the CPU of the last rank, or with an error that waits there."""
    x = share("float64", rank)
    there = _core.DeviceArray.from_numpy
    sums = all_reduce(
        {
            "device": df.Covariance(N).update(there(x)),
            "offloaded": df.Covariance(N, "cuda", offload=True).update(there(x)),
            "both": df.Covariance(N).update(x if rank == world - 1 else there(x)),
        }
    )
    bad = df.Covariance(N).update(there(x))
    if rank == 1:
        bad.update(there(np.full((1, N), np.nan)))
    try:
        bad.all_reduce()
    except ValueError as error:
        text = str(error)
    return {
        "outcomes": {name: outcome(cov) for name, cov in sums.items()},
        "places": {name: cov.device for name, cov in sums.items()},
        "offloaded": [name for name, cov in sums.items() if cov._core.offload],
        "error": text,
        "count": bad.count,
    }


def join(name: str, rank: int, world: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    found = globals()[name](rank, world, folder)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    if name != "killed":
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    # Forked, so that torch is imported once: that takes longer than all the rest.
    name, world, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=join, args=(name, rank, world, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    print(*(process.exitcode for process in ranks))


# What the ranks say -------------------------------------------------------------------------------

Found = list[dict[str, Any]]


def launch(name: str, world: int, folder: Path, dead: int | None = None) -> Found:
    """Run all ranks; what they found, but for that of the one that dies."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, name, str(world), str(folder)],
        # (No threads where it forks, and no other host.)
        env=os.environ
        | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    codes = [DIES if rank == dead else 0 for rank in range(world)]
    assert done.stdout.split() == [str(code) for code in codes], done.stderr
    return [
        pickle.loads((folder / f"{rank}.pickle").read_bytes())
        for rank in range(world)
        if rank != dead
    ]


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return launch("everything", request.param, tmp_path_factory.mktemp("ranks"))


def same_everywhere(results: list[tuple[Any, ...]]) -> df.Covariance:
    """Check that all ranks have the same bits, and put the accumulator together again."""
    assert len({pickle.dumps([np.asarray(part).tobytes() for part in r[:6]]) for r in results}) == 1
    assert len({r[6] for r in results}) == 1
    cov = df.Covariance(1)
    cov.__setstate__({"state": results[0][:6], "input_dtypes": frozenset(results[0][6])})
    return cov


def assert_single(cov: df.Covariance, parts: list[NDArray[Any]], weights: Any = None) -> None:
    """Against one process, and against two passes in long double."""
    x = np.concatenate(parts)
    one = df.Covariance(x.shape[1]).update(x, weights=weights)
    bound = 1e-12 if x.dtype == np.float64 else 1e-6
    mean, second, covariance = two_pass(x, weights)
    assert cov.count == one.count
    assert cov.weight == one.weight
    assert cov.input_dtypes == (x.dtype.name,)
    for got, single, exact in (
        (cov.covariance(), one.covariance(), covariance),
        (cov.second_moment(), one.second_moment(), second),
    ):
        largest = exact.diagonal().max()
        assert np.abs(got - single).max() <= bound * largest
        assert np.abs(got - exact).max() <= bound * largest
    scale = np.abs(mean) + np.sqrt(covariance.diagonal())
    assert (np.abs(cov.mean - mean) <= bound * scale).all()


@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_that_of_one_process(found: Found, case: str) -> None:
    shares = [share(case, rank) for rank in range(len(found))]
    assert_single(same_everywhere([f[case] for f in found]), shares)


def test_weights_and_small_parts(found: Found) -> None:
    shares = [share("float64", rank) for rank in range(len(found))]
    weights = np.concatenate([weights_of(x) for x in shares])
    assert_single(same_everywhere([f["weights"] for f in found]), shares, weights)
    for name in ("chunks", "staged chunks"):
        assert_single(same_everywhere([f[name] for f in found]), shares)


def test_ranks_without_samples_get_them(found: Found) -> None:
    last = share("float64", len(found) - 1)
    assert_single(same_everywhere([f["samples on one rank"] for f in found]), [last])
    empty = same_everywhere([f["samples on none"] for f in found])
    assert (empty.count, empty.weight, empty.n_features) == (0, 0.0, N)


def test_counts_beyond_the_integers_of_a_double_are_exact(found: Found) -> None:
    assert [f["count"] for f in found] == [len(found) * (2**53 + 1)] * len(found)


def test_ranks_hold_different_layers(found: Found) -> None:
    world = len(found)
    shares = [share("float64", rank) for rank in range(world)]
    names = ["nobody", "not on 1", *(f"only {rank}" for rank in range(world))]
    assert all(list(f["layers"]) == names for f in found)
    sums = {name: same_everywhere([f["layers"][name] for f in found]) for name in names}
    assert sums["nobody"].count == 0
    assert sums["nobody"].n_features == 3
    assert_single(sums["not on 1"], [x for rank, x in enumerate(shares) if rank != 1])
    for rank, x in enumerate(shares):
        assert_single(sums[f"only {rank}"], [x[:, :2]])
    assert {f["library"] for f in found} == {"Tensor"}
    assert_single(same_everywhere([f["none"]["a"] for f in found]), shares[1:])


def test_a_group_of_some_ranks(found: Found) -> None:
    world = len(found)
    members = [0, world - 1] if world > 2 else [1]
    inside = [found[rank]["subgroup"] for rank in members]
    assert_single(same_everywhere(inside), [share("float64", rank) for rank in members])
    for rank in set(range(world)) - set(members):
        expected = "group: this process does not belong to it"
        assert found[rank]["subgroup"] == ("ValueError", expected, True)


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [
        ("sizes", "ValueError", "'b' has 6 features on rank 1, expected 5, as on rank 0"),
        ("no mean", "ValueError", "'b' is a second moment without a mean on rank 1"),
        ("no mean, no samples elsewhere", "ValueError", "'b' is a second moment without a mean"),
        ("not a covariance", "TypeError", "'b' is ndarray, expected a Covariance"),
        ("not a name", "TypeError", r"got the name 3 (int), expected a str"),
        ("no memory", "MemoryError", "no room for the scatter"),
        ("no memory for no samples", "MemoryError", "no room for 5 features"),
        ("overflow", "ValueError", "scatter: it, or the weight"),
        ("count", "ValueError", "'b' has more than 2^63 - 1 rows in all"),
    ],
)
def test_an_error_is_raised_on_every_rank_and_changes_nothing(
    found: Found, fault: str, kind: str, text: str
) -> None:
    said = [f["errors"][fault] for f in found]
    assert all(unchanged for _, _, unchanged in said)
    assert all(text in words for _, words, _ in said)
    # What one rank alone is at fault for, the others call by its rank.
    lonely = kind != "ValueError"
    assert [k for k, _, _ in said] == [
        kind if rank == 1 or not lonely else "ValueError" for rank in range(len(said))
    ]
    if lonely:
        others = [words for rank, (_, words, _) in enumerate(said) if rank != 1]
        assert all(words.startswith("group: rank 1 failed") for words in others)
    else:
        assert len({words for _, words, _ in said}) == 1


def test_the_group_goes_on_after_errors(found: Found) -> None:
    shares = [share("float64", rank) for rank in range(len(found))]
    assert_single(same_everywhere([f["after errors"] for f in found]), shares)


def test_a_rank_killed_in_the_middle_leaves_what_resumes(tmp_path: Path) -> None:
    world = 3
    said = launch("killed", world, tmp_path, dead=1)
    assert len(said) == world - 1
    total = df.Covariance(N)
    for rank in range(world):
        total.merge(df.Covariance.load(tmp_path / f"{rank}.safetensors"))
    assert_single(total, [share("float64", rank) for rank in range(world)])


def test_moments_on_a_device_stay_there(tmp_path: Path) -> None:
    if not df.cuda_available():
        config = df.show_config("dict")
        assert config is not None
        pytest.skip(config["cuda"])
    found = launch("on_a_device", 2, tmp_path)
    shares = [share("float64", rank) for rank in range(2)]
    for name in ("device", "both", "offloaded"):
        assert_single(same_everywhere([f["outcomes"][name] for f in found]), shares)
    for f, both in zip(found, ("cuda:0", "cpu"), strict=True):
        assert f["places"] == {"both": both, "device": "cuda:0", "offloaded": "cuda:0"}
        assert f["offloaded"] == ["offloaded"]
    assert all("NaN or infinity at row 0, column 0 of update 1" in f["error"] for f in found)
    assert found[0]["error"].startswith("group: rank 1 failed, and nothing was added up: ")
    assert [f["count"] for f in found] == [len(x) for x in shares]
