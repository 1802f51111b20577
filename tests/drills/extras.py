"""The register's part for models, chunked arrays, pictures and files of layers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from calls import FITTED, FOLDER, MOMENT, ROWS, WEIGHTS, M, N, W, X, of_moments
from kinds import (
    BAD_PATHS,
    CALLBACK,
    CHOICE,
    DEVICE,
    FLAG,
    LIMIT,
    PATHS,
    call,
    indices,
    only,
    size,
    values,
)

import descramble_fast as df


def layers() -> None:
    cov = df.Covariance.from_samples(X)
    made = df.Layers(
        layers=(df.Layer(name="a", neurons=N, covariance=cov, descrambler=FITTED, weight=W),),
        configuration={},
    )
    for name in ("save", "report"):
        call(f"Layers.{name}", {"path": PATHS}, {"path": FOLDER / name}, None, lambda: made)


def models() -> None:
    import torch
    import torch.distributed as dist
    from torch import nn

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = nn.Sequential(nn.Linear(M, N), nn.ReLU(), nn.Linear(N, 3))
    batch = torch.ones(5, M)
    is_model = values(3, "x", True, [], model.state_dict(), nn.Linear, torch.ones(3), len)
    chosen = values(
        "no", 3, 1.5, True, [], (), [3], [None], ["0", "no"], nn.Conv2d, model, lambda *a: False
    )
    watch = {
        "layers": chosen,
        "tap": CHOICE,
        "select": values("0", 3, 1.5, True, [], optional=True),
        "axis": only(object(), "0", "", 1.5, 2j, [0], float("nan"), np.zeros(2), 2**63, 10**30),
        "mask": values(3, 1.5, True, [], torch.ones(5), optional=True),
        "sample_every": size(huge=False),
        "sample": CHOICE,
        "max_samples": size(huge=False, optional=True),
        "device": DEVICE,
        "offload": FLAG,
    }
    usual = {
        "layers": "0",
        "tap": "pre",
        "select": None,
        "axis": None,
        "mask": None,
        "sample_every": 1,
        "sample": "batch",
        "max_samples": None,
        "device": None,
        "offload": False,
    }
    call("torch.observe", {"model": is_model, **watch}, {"model": model, **usual})
    solving = {
        "data": only(None, object(), 3, 1.5, 2j, True, [], "", (), iter([])),
        "criterion": CHOICE,
        "operator": only("fourier", 3, True, [], np.eye(N), df.operators),
        "center": FLAG,
        "gauge": CHOICE,
        "k": size(optional=True, huge=False),
        "order": FLAG,
        "order_seconds": LIMIT,
        "control": values(3, "x", True, [], nn.ReLU(), nn.Linear, optional=True),
        "forward": CALLBACK,
        "memory_limit": size(10, optional=True, huge=False),
        "progress": FLAG,
    }
    call(
        "torch.descramble_model",
        {"model": is_model, **watch, **solving},
        {
            "model": model,
            **usual,
            "data": [batch],
            "criterion": "smoothness",
            "operator": None,
            "center": False,
            "gauge": "canonical",
            "k": None,
            "order": False,
            "order_seconds": None,
            "control": None,
            "forward": None,
            "memory_limit": None,
            "progress": False,
        },
    )
    call(
        "torch.untrained",
        {"model": is_model, "seed": only(None, "0", 1.5, float("nan"), 2**63, 10**30, [0])},
        {"model": model, "seed": 0},
    )
    inputs = only(None, object(), 3, 1.5, "x", b"x", 2j, True, set(), X)
    call(
        "torch.permutable", {"model": is_model, "inputs": inputs}, {"model": model, "inputs": batch}
    )
    order = list(range(N))
    wrong = [{"0": one} for _, one in indices(N).wrong(order)]
    call(
        "torch.permute_model",
        {
            "model": is_model,
            "orders": only(
                None,
                object(),
                3,
                X,
                "x",
                True,
                [],
                {"no": order},
                {"2": [2, 1, 0]},
                {3: order},
                {None: order},
                {"0": None},
                *wrong,
            ),
            "inputs": inputs,
            "groups": only(
                object(),
                3,
                "x",
                True,
                [],
                {"0": 3},
                {"h": [("no", 0)]},
                {"h": [("0.weight", 9)]},
                {"h": [("0.weight",)]},
                {"h": [("0.weight", "0")]},
                {"h": [3]},
                {3: [("0.weight", 0)]},
            ),
            "tolerance": values("1", [], 1j, float("nan"), -1.0, optional=True),
        },
        {
            "model": model,
            "orders": {"0": order},
            "inputs": batch,
            "groups": None,
            "tolerance": None,
        },
    )
    cov = df.Covariance.from_samples(X)
    call(
        "torch.all_reduce",
        {
            "moments": only(
                None,
                object(),
                3,
                "x",
                True,
                set(),
                [cov],
                {3: cov},
                {"a": X},
                {"a": None},
                {"a": df.CrossCovariance(N, N)},
            ),
            "group": values(3, "x", True, [], optional=True),
        },
        {"moments": {"a": cov}, "group": None},
    )
    call(
        "Covariance.all_reduce",
        {"group": values(3, "x", True, [], optional=True)},
        {"group": None},
        None,
        lambda: df.Covariance.from_samples(X),
    )
    with df.torch.observe(model, "0") as seen:
        model(batch)
    call(
        "torch.Observation.save",
        {"folder": only(*BAD_PATHS)},
        {"folder": FOLDER / "seen"},
        None,
        lambda: seen,
    )


def chunked() -> None:
    import dask.array as da

    rows = da.from_array(X, chunks=(4, -1))
    bad: list[Any] = [
        X,
        3,
        "x",
        True,
        [],
        da.ones(()),
        rows.rechunk((4, 2)),
        rows.astype(int),
        rows.astype(complex),
        rows.astype(">f8"),
        rows * np.nan,
        rows[:, :0],
        rows.astype(object),
    ]
    mask = values(
        "x", 3, [], [True], np.ones(ROWS - 1, bool), np.ones(ROWS), ["a"] * ROWS, optional=True
    )
    weights = values(
        "x",
        3,
        [],
        [1.0],
        -np.ones(ROWS),
        np.full(ROWS, np.nan),
        WEIGHTS * 1j,
        WEIGHTS[:, None],
        ["a"] * ROWS,
        [None] * ROWS,
        optional=True,
    )
    call(
        "dask.covariance",
        {"array": values(*bad), "mask": mask, "weights": weights},
        {"array": rows, "mask": None, "weights": None},
        lambda r, a, e: of_moments(r, {"batch": X, "mask": None, "weights": None}, e),
    )
    np.save(FOLDER / "rows.npy", X)
    np.save(FOLDER / "objects.npy", np.array([None, 1]))
    (FOLDER / "empty.npy").touch()
    call(
        "dask.from_npy",
        {
            "path": values(
                3,
                1.5,
                True,
                [],
                "",
                "\0",
                "/nonexistent",
                "/",
                FOLDER / "objects.npy",
                FOLDER / "empty.npy",
            )
        },
        {"path": FOLDER / "rows.npy"},
    )


def pictures() -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    grid = plt.figure().subplots(1, 4)
    pair = grid[:2]
    axes = values(3, "x", True, figure, [ax], ax.lines, optional=True)
    title = only()  # whatever matplotlib writes
    many = values(3, "x", True, [], figure, grid[:3], ["x"] * 2, ["x"] * 4, optional=True)
    matrix = only(
        None,
        3,
        "x",
        True,
        [],
        {},
        object(),
        2j,
        X[0],
        X[None],
        X[:0],
        X[:, :0],
        X * 1j,
        X.astype("U5"),
        X.astype(int).astype("M8[s]"),
        np.full((2, 2), np.nan),
        np.full((2, 2), np.inf),
        [[1, 2], [3]],
        [["a"]],
        np.ma.masked_array(X, X > 0),
        [[None]],
    )
    places = values(
        "x",
        3,
        [],
        [[0.0] * M],
        ["a"] * M,
        [None] * M,
        [1j] * M,
        [float("nan")] * M,
        [0.0] * 3,
        [[0], [1, 2]],
        optional=True,
    )
    canvas, own = {"ax": axes, "title": title}, {"ax": ax, "title": None}
    call(
        "plot.weights",
        {"W": matrix, "x": places, "y": places, **canvas},
        {"W": W, "x": None, "y": None, **own},
    )
    call("plot.spectrum", {"W": matrix, **canvas}, {"W": W, **own})
    call(
        "plot.modes",
        {"curves": matrix, "k": size(huge=False), "grid": places, **canvas},
        {"curves": W, "k": 2, "grid": None, **own},
    )
    call(
        "plot.order",
        {
            "covariance": values(
                3, "x", True, [], X, df.Covariance(N), df.Covariance.from_moments(MOMENT)
            ),
            "permutation": indices(N),
            "axes": many,
        },
        {"covariance": df.Covariance.from_samples(X), "permutation": np.arange(N), "axes": pair},
    )
    call(
        "plot.report",
        {
            "d": values(3, "x", True, [], X, df.Descrambler),
            "W": matrix,
            "control": values(
                3, "x", True, [], (FITTED,), (FITTED, None), (None, W), (W, FITTED), optional=True
            ),
            "axes": many,
        },
        {"d": FITTED, "W": W, "control": None, "axes": grid[None]},
    )


layers()
for needed, register in {"torch": models, "dask": chunked, "matplotlib": pictures}.items():
    if find_spec(needed):
        register()
