"""The register of public calls: valid arguments, the kind of each, and how far the answer is off.

Numbers are small multiples of 1/4: every element type holds them, so one oracle serves for all.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from inputs import FLOATING, INTEGERS
from kinds import (
    CALLBACK,
    CHOICE,
    DEVICE,
    FLAG,
    LIMIT,
    PATHS,
    SEED,
    Kind,
    call,
    error,
    indices,
    numbers,
    only,
    operator,
    real,
    size,
    values,
)
from numpy.typing import NDArray
from on_device import host

import descramble_fast as df

N, M, ROWS = 6, 4, 9
_rng = np.random.default_rng(0)


def quarters(*shape: int) -> NDArray[np.float64]:
    return _rng.integers(-12, 13, shape) / 4.0


X, Y, W, NEXT, BIAS = (
    quarters(ROWS, N),
    quarters(ROWS, M),
    quarters(N, M),
    quarters(M, N),
    quarters(N),
)
SQUARE = quarters(N, N)
SYMMETRIC = np.rint(SQUARE + SQUARE.T)
LAPLACIAN = np.diag(np.abs(SYMMETRIC).sum(0)) - np.abs(SYMMETRIC)
MOMENT = LAPLACIAN + np.eye(N)
WEIGHTS, MASK = np.arange(ROWS) / 4.0, np.arange(ROWS) % 3 > 0
ORDER = np.array([3, 0, 5, 1, 4, 2])
FOLDER = Path(tempfile.mkdtemp(prefix="drill-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
DENSE = host(df.operators.fourier(N).apply(np.eye(N)))


def moment(x: Any, weights: Any = None) -> NDArray[np.float64]:
    w = np.ones(len(x)) if weights is None else weights
    return np.asarray((w * x.T) @ x / w.sum())


def scatter(x: Any, y: Any, mask: Any, weights: Any) -> tuple[Any, Any]:
    """Cross moment and cross covariance of the rows that count."""
    w = np.ones(len(x)) if weights is None else weights
    w = w if mask is None else w * mask
    a, b = x - w @ x / w.sum(), y - w @ y / w.sum()
    return (w * x.T) @ y / w.sum(), (w * a.T) @ b / w.sum()


def bound(eps: float) -> float:
    """What the contract allows moments of samples to lose."""
    return 1e-12 if eps < 1e-10 else 1e-5


def of_moments(r: Any, a: Any, eps: float) -> float:
    cross, central = scatter(a["batch"], a["batch"], a["mask"], a["weights"])
    off = max(error(r.second_moment(), cross), error(r.covariance(), central))
    return off / bound(eps)


def of_cross(r: Any, a: Any, eps: float) -> float:
    cross, central = scatter(a["x"], a["y"], a["mask"], a["weights"])
    return max(error(r.cross_moment(), cross), error(r.cross_covariance(), central)) / bound(eps)


def smoothest(r: Any, C: Any, L: Any, tolerance: float) -> float:
    """Cost and orthogonality of a descrambler, by definition and by the spectra."""
    P, ell = host(r.matrix), np.linalg.eigvalsh(L)
    best = np.linalg.eigvalsh(C)[::-1] @ ell
    scale = float(np.linalg.norm(C, 2) * ell.sum()) or 1.0  # nothing is rough on one place
    off = max(abs(r.cost - best), abs(np.trace(L @ P @ C @ P.T) - best)) / scale
    return max(off, float(np.abs(P @ P.T - np.eye(len(P))).max())) / tolerance


def of_samples(r: Any, a: Any, eps: float) -> float:
    x = a["samples_or_covariance"]
    C = host(x.second_moment()) if isinstance(x, df.Covariance) else moment(x)
    return smoothest(r, C, DENSE, bound(eps))


def of_eigh(r: Any, a: Any, eps: float) -> float:
    A = np.tril(a["a"]) + np.tril(a["a"], -1).T
    V, w = host(r.eigenvectors).astype(float), host(r.eigenvalues).astype(float)
    residual = np.linalg.norm(A @ V - V * w) / np.linalg.norm(A)
    off = max(residual, np.linalg.norm(V.T @ V - np.eye(N)))
    return float(max(off, error(w, np.linalg.eigvalsh(A)))) / (50 * N * eps)


def of_assignment(r: Any, a: Any, eps: float) -> float:
    C, columns = a["cost"], host(r.columns)
    costs = [
        sum(C[i, p[i]] for i in range(len(C))) for p in permutations(range(C.shape[1]), len(C))
    ]
    best = max(costs) if a["maximize"] else min(costs)
    own = C[np.arange(len(C)), columns].sum()
    return max(abs(own - best), abs(r.cost - best), abs(r.gap)) / 1e-12


def of_quadratic(r: Any, a: Any, eps: float) -> float:
    A, B, p = a["A"], a["B"], host(r.columns)
    return abs(float((A * B[np.ix_(p, p)]).sum()) - r.cost) / 1e-11


def of_nearest(name: str) -> Callable[[Any, Any, float], float]:
    def truth(r: Any, a: Any, eps: float) -> float:
        P, p = a[name], host(r.permutation)
        best = max(sum(P[i, q[i]] for i in range(N)) for q in permutations(range(N)))
        return max(abs(P[np.arange(N), p].sum() - best), abs(r.cost - best)) / 1e-11

    return truth


def of_neurons(r: Any, a: Any, eps: float) -> float:
    c = np.corrcoef(a["a"].T, a["b"].T)[:N, N:]
    p = host(r.permutation)
    used = p >= 0
    best = max(sum(c[q[j], j] for j in range(M)) for q in permutations(range(N), M))
    own = c[np.arange(N)[used], p[used]].sum()
    return max(abs(own - best), abs(r.cost - best)) / (10 * bound(eps))


def of_applied(r: Any, a: Any, eps: float) -> float:
    p = np.asarray(a["r"])
    off = error(r.weight, a["W"][p], 1.0)
    off = off if a["bias"] is None else max(off, error(r.bias, a["bias"][p], 1.0))
    return off if a["W_next"] is None else max(off, error(r.next_weight, a["W_next"][:, p], 1.0))


def of_weights(r: Any, a: Any, eps: float) -> float:
    W, S, b, m = (a[key] for key in ("W", "input_second_moment", "bias", "input_mean"))
    S = np.eye(M) if S is None else S
    C = W @ S @ W.T
    if b is not None:
        Wm = np.zeros(N) if m is None else W @ m
        C = C + np.outer(Wm, b) + np.outer(b, Wm) + np.outer(b, b)
    return smoothest(r, C, DENSE, 1e-12 if eps < 1e-10 else 1e-5)


def of_trace(r: Any, a: Any, eps: float) -> float:
    best = np.linalg.svd(a["W"], compute_uv=False).sum()
    return abs(float(np.trace(host(r.matrix) @ a["W"])) - best) / best / 1e-12


def linear(matrix: Callable[[], Any], name: str) -> Callable[[Any, Any, float], float]:
    """Check a map of the last axis, for the number type's sake in float64."""
    return lambda r, a, eps: error(r, a[name] @ matrix().T) / 1e-12


FITTED = df.descramble(X)
OPERATOR = df.operators.from_matrix(LAPLACIAN)
CONVOLUTION = df.descramble_conv(quarters(2, 3, 2), (5,))
C10 = host(CONVOLUTION.transform(np.eye(10))).T


def core() -> None:
    samples = numbers("scalar none", nan="nan inf -inf")
    rows = numbers("scalar short long none flat")
    covariance = values(
        3, "x", True, [], X, df.CrossCovariance(N, N), df.Covariance, df.Covariance(N + 1)
    )
    mask = numbers("scalar short long empty deep", nan="", optional=True)
    mask = values(
        "x",
        3,
        True,
        [],
        [True],
        MASK[1:],
        MASK * 1.0,
        MASK * 1,
        MASK[None],
        ["a"] * ROWS,
        [None] * ROWS,
        MASK.astype(object),
        MASK.astype("U5"),
        np.array(True),
        np.ma.masked_array(MASK, MASK),
        [[True], [True, False]],
        optional=True,
    )
    weights = values(
        "x",
        3,
        1.5,
        [],
        [1.0],
        WEIGHTS[1:],
        WEIGHTS[None],
        -WEIGHTS,
        np.full(ROWS, np.nan),
        np.full(ROWS, np.inf),
        WEIGHTS * 1j,
        WEIGHTS.astype(object),
        WEIGHTS.astype("U5"),
        ["1"] * ROWS,
        [None] * ROWS,
        [1j] * ROWS,
        np.ma.masked_array(WEIGHTS, MASK),
        WEIGHTS.astype(">f8"),
        np.array(1.0),
        [[1.0], [1.0, 2.0]],
        [10**400] * ROWS,
        -np.ones(ROWS, int),
        WEIGHTS.astype(np.longdouble),
        [float("nan")] * ROWS,
        [{}] * ROWS,
        optional=True,
    )
    selectors = {"mask": mask, "weights": weights}
    fed = lambda: df.Covariance(N).update(X[:5])  # noqa: E731
    crossed = lambda: df.CrossCovariance(N, M).update(X[:5], Y[:5])  # noqa: E731
    place = {"device": DEVICE, "offload": FLAG}
    nowhere = {"device": None, "offload": False}
    call("Covariance", {"n_features": size(), **place}, {"n_features": N, **nowhere})
    call(
        "Covariance.update",
        {"batch": rows, **selectors},
        {"batch": X, "mask": None, "weights": None},
        of_moments,
        lambda: df.Covariance(N),
    )
    bools = Kind(mask.wrong, True, (np.bool_,))
    frequencies = Kind(weights.wrong, True, (*FLOATING, *INTEGERS))
    finite = numbers("scalar short long none flat", nan="")
    call(
        "Covariance.update:selected",
        {"batch": finite, "mask": bools, "weights": frequencies},
        {"batch": X, "mask": MASK, "weights": WEIGHTS * 4},
        of_moments,
        lambda: df.Covariance(N),
    )
    call(
        "CrossCovariance.update:selected",
        {"x": finite, "y": finite, "mask": bools, "weights": frequencies},
        {"x": X, "y": Y, "mask": MASK, "weights": WEIGHTS * 4},
        of_cross,
        lambda: df.CrossCovariance(N, M),
    )
    call("Covariance.merge", {"other": covariance}, {"other": fed()}, None, fed)
    call("Covariance.covariance", {"ddof": real(5, 1e300)}, {"ddof": 1}, None, fed)
    call(
        "Covariance.from_samples",
        {"x": samples},
        {"x": X},
        lambda r, a, e: of_moments(r, {"batch": a["x"], "mask": None, "weights": None}, e),
    )
    call(
        "Covariance.from_moments",
        {
            "second_moment": numbers("scalar short low flat empty none"),
            "mean": numbers("scalar short long deep empty", optional=True),
            "weight": real(0, -1.0),
        },
        {"second_moment": MOMENT, "mean": BIAS / 4, "weight": 1.0},
        lambda r, a, e: error(r.second_moment(), a["second_moment"]) / 1e-12,
    )
    many = values(
        3,
        "x",
        True,
        [],
        [None],
        [fed(), X],
        fed(),
        [fed(), df.Covariance(N + 1)],
        [fed(), df.Covariance(N)],
        df.Covariance,
    )
    call(
        "Covariance.combine",
        {
            "covs": many,
            "weights": values(
                3,
                "x",
                "12",
                True,
                [],
                [1.0],
                [1.0, -1.0],
                [1.0, None],
                [1.0, "2"],
                [1j, 1],
                [1.0, float("nan")],
                [1.0, float("inf")],
                [1, 10**400],
                np.array(1.0),
            ),
        },
        {"covs": [fed(), fed()], "weights": [1.0, 0.5]},
        lambda r, a, e: error(r.second_moment(), 1.5 * moment(X[:5])) / 1e-12,
    )
    call("Covariance.save", {"path": PATHS}, {"path": FOLDER / "a.safetensors"}, None, fed)
    fed().save(FOLDER / "b.safetensors")
    call("Covariance.load", {"path": PATHS, **place}, {"path": FOLDER / "b.safetensors", **nowhere})
    call(
        "CrossCovariance", {"n_x": size(), "n_y": size(), **place}, {"n_x": N, "n_y": M, **nowhere}
    )
    call(
        "CrossCovariance.update",
        {"x": rows, "y": rows, **selectors},
        {"x": X, "y": Y, "mask": None, "weights": None},
        of_cross,
        lambda: df.CrossCovariance(N, M),
    )
    other = values(3, "x", True, [], X, fed(), df.CrossCovariance, df.CrossCovariance(M, N))
    call("CrossCovariance.merge", {"other": other}, {"other": crossed()}, None, crossed)
    call("CrossCovariance.cross_covariance", {"ddof": real(5, 1e300)}, {"ddof": 1}, None, crossed)
    kept = size(N + 1, optional=True)
    gauge = numbers("scalar short low flat deep empty none", like=SQUARE)
    options = {"center": FLAG, "gauge": gauge, "k": kept}
    usual = {"operator": None, "center": False, "gauge": "canonical", "k": None}
    call(
        "descramble",
        {"samples_or_covariance": samples, "operator": operator(N), **options},
        {"samples_or_covariance": X, **usual},
        of_samples,
    )
    call(
        "descramble:gauge",
        {"gauge": gauge},
        {"samples_or_covariance": X, "gauge": SQUARE},
        of_samples,
    )
    call(
        "descramble_many",
        {
            "covariances": only(
                None,
                object(),
                2j,
                b"x",
                {},
                set(),
                3,
                "x",
                True,
                [None],
                fed(),
                [fed(), 3],
                [X, "x"],
                df.Covariance,
                [X, X * np.nan],
                [X, X.astype(int)],
                [df.Covariance(N)],
            ),
            "operator": operator(N, [df.operators.fourier(N)]),
            **options,
        },
        {"covariances": [X, fed()], **usual},
    )
    call("descramble_memory", {"n": size(), "k": kept}, {"n": N, "k": 2})
    search = {
        "seed": SEED,
        "restarts": size(optional=True, huge=False),
        "time_limit": LIMIT,
        "callback": CALLBACK,
    }
    once = {"seed": 0, "restarts": 1, "time_limit": None, "callback": None}
    call(
        "descramble_permutation",
        {"samples_or_covariance": samples, "operator": operator(N), **search},
        {"samples_or_covariance": X, "operator": None, **once},
        lambda r, a, e: (
            abs(
                r.cost
                - float(
                    np.trace(
                        DENSE
                        @ moment(a["samples_or_covariance"])[np.ix_(*2 * [host(r.permutation)])]
                    )
                )
            )
            / np.linalg.norm(DENSE)
            / 10
            / bound(e)
        ),
    )
    weight = numbers("scalar flat empty none deep")
    smooth = {
        "criterion": CHOICE,
        "bias": numbers("scalar short long deep empty", optional=True),
        "input_second_moment": numbers("scalar short low flat deep empty none", optional=True),
        "input_mean": numbers("scalar short long deep empty", optional=True),
        "operator": operator(N),
        "gauge": gauge,
        "restrict": CHOICE,
    }
    call(
        "descramble_weights",
        {"W": weight, **smooth},
        {
            "W": W,
            "criterion": "smoothness",
            "bias": BIAS,
            "input_second_moment": LAPLACIAN[:M, :M] + 9 * np.eye(M),
            "input_mean": np.ones(M) / 4,
            "operator": None,
            "gauge": "canonical",
            "restrict": "orthogonal",
        },
        of_weights,
    )
    call("descramble_weights:trace", {"W": weight}, {"W": SQUARE, "criterion": "trace"}, of_trace)
    call("descramble_weights:diagonal", {"W": weight}, {"W": SQUARE, "criterion": "diagonal"})
    call(
        "descramble_weights:permutation",
        {"W": weight},
        {"W": SQUARE, "criterion": "trace", "restrict": "permutation"},
    )
    call(
        "descramble_conv",
        {
            "weight": numbers("scalar flat empty none"),
            "spatial_shape": values(
                3,
                "x",
                True,
                [],
                [0],
                [-1],
                [2.5],
                ["5"],
                [None],
                [5, 5],
                [2**62],
                [10**30],
                2.5,
                "5",
            ),
            "operator": operator(5),
        },
        {"weight": quarters(2, 3, 2), "spatial_shape": (5,), "operator": None},
    )
    call(
        "eigh",
        {"a": numbers("scalar short low flat none"), "k": kept},
        {"a": SYMMETRIC, "k": None},
        of_eigh,
    )
    call("eigh:batch", {"a": numbers("scalar short")}, {"a": np.stack([SYMMETRIC, MOMENT])})
    call(
        "linear_assignment",
        {
            "cost": numbers("scalar flat", nan="nan -inf", integers=True),
            "maximize": FLAG,
            "initial_duals": numbers("scalar short long deep", optional=True),
        },
        {"cost": SQUARE, "maximize": False, "initial_duals": BIAS},
        of_assignment,
    )
    pairs = values(
        "x",
        3,
        1.5,
        True,
        [1, 2],
        [[0]],
        [[0, 1, 2]],
        [[0, 6]],
        [[-1, 0]],
        [[0, 1], [0, 2]],
        [[0, 1], [2, 1]],
        [[0.0, 1.0]],
        [[0.5, 1]],
        [["0", "1"]],
        [[None, 1]],
        [[float("nan"), 1]],
        [[0, 10**30]],
        [[0, 2**63]],
        [[True, False]],
        [[0], [1, 2]],
        np.zeros((1, 2, 1), int),
        optional=True,
    )
    square = numbers("scalar short low flat deep", integers=True)
    call(
        "quadratic_assignment",
        {
            "A": square,
            "B": square,
            "maximize": FLAG,
            "partial_match": pairs,
            "initial": indices(N, optional=True),
            **search,
        },
        {
            "A": SQUARE,
            "B": SYMMETRIC,
            "maximize": False,
            "partial_match": None,
            "initial": None,
            **once,
        },
        of_quadratic,
    )
    call(
        "nearest_permutation",
        {"P": numbers("scalar short low flat deep"), "signed": FLAG},
        {"P": SQUARE, "signed": False},
        of_nearest("P"),
    )
    call(
        "match_neurons",
        {"a": numbers("scalar none"), "b": numbers("scalar low high empty none"), "signed": FLAG},
        {"a": X, "b": Y, "signed": False},
        of_neurons,
    )
    call(
        "match_modes",
        {"d": values(3, "x", True, [], X, CONVOLUTION, df.SmoothnessDescrambler)},
        {"d": FITTED},
    )
    call(
        "apply_permutation",
        {
            "r": indices(N),
            "W": numbers("scalar low high", nan=""),
            "bias": numbers("scalar short long", nan="", optional=True),
            "W_next": numbers("scalar short long", nan="", optional=True),
        },
        {"r": ORDER, "W": W, "bias": BIAS, "W_next": NEXT},
        of_applied,
    )
    call("set_num_threads", {"k": size(least=0)}, {"k": 0})
    call("show_config", {"mode": CHOICE}, {"mode": "dict"})
    call("cuda_available", {}, {})


def methods() -> None:
    samples, matrix = numbers("scalar short long none", nan=""), lambda: host(FITTED.matrix)
    for which, name, truth in (
        ("transform", "samples", linear(matrix, "samples")),
        ("inverse_transform", "samples", linear(lambda: matrix().T, "samples")),
        ("transform_next_weight", "W_next", linear(matrix, "W_next")),
    ):
        call(f"Descrambler.{which}", {name: samples}, {name: X}, truth, lambda: FITTED)
    call(
        "Descrambler.transform_weight",
        {
            "W": numbers("scalar low high empty", nan=""),
            "bias": numbers("scalar short long", nan="", optional=True),
        },
        {"W": W, "bias": BIAS},
        lambda r, a, e: (
            max(error(r[0], matrix() @ a["W"]), error(r[1], matrix() @ a["bias"])) / 1e-12
        ),
        lambda: FITTED,
    )
    ten = quarters(3, 10)
    for which, P in (("transform", C10), ("inverse_transform", C10.T)):
        call(
            f"ConvolutionDescrambler.{which}",
            {"samples": samples},
            {"samples": ten},
            linear(lambda P=P: P, "samples"),
            lambda: CONVOLUTION,
        )
    parts = [df.Covariance.from_samples(part) for part in (X[:5], X[5:])]
    call(
        "SmoothnessDescrambler.stability",
        {
            "parts": values(
                3,
                "x",
                True,
                [],
                [None],
                [parts[0]],
                parts[0],
                [parts[0], X],
                [parts[0], df.Covariance(N)],
                [parts[0], df.Covariance(N + 1)],
                {1: parts[0]},
            )
        },
        {"parts": parts},
        None,
        lambda: FITTED,
    )
    T, ell = host(OPERATOR.modes()), OPERATOR.eigenvalues
    for which, L, name in (
        ("apply", T * ell @ T.T, "x"),
        ("analyze", T.T, "x"),
        ("synthesize", T, "z"),
    ):
        call(
            f"operators.Operator.{which}",
            {name: samples},
            {name: X},
            linear(lambda L=L: L, name),
            lambda: OPERATOR,
        )
    edges = np.array([[0, 1], [1, 2], [3, 4]])
    call("operators.fourier", {"n": size(), "order": size()}, {"n": N, "order": 2})
    call(
        "operators.difference",
        {"n": size(), "order": size(3), "boundary": CHOICE},
        {"n": N, "order": 1, "boundary": "path"},
    )
    call("operators.central_difference", {"n": size()}, {"n": N})
    call(
        "operators.grid",
        {
            "shape": values(
                3, "x", True, [], [0], [-1], [2.5], ["5"], [None], [2**62], [10**30], [2**31, 2**31]
            ),
            "axis": values("fourier", 3, True, df.operators, lambda n: None),
        },
        {"shape": (2, 3), "axis": df.operators.fourier},
    )
    call(
        "operators.from_matrix",
        {"matrix": numbers("scalar short low flat deep empty none")},
        {"matrix": LAPLACIAN},
        lambda r, a, e: (
            error(r.eigenvalues, np.linalg.eigvalsh(a["matrix"])) / (1e-12 if e < 1e-10 else 1e-5)
        ),
    )
    call(
        "operators.from_graph",
        {
            "edges": values(
                3,
                "x",
                True,
                [],
                [0, 1],
                [[0, 1, 2]],
                [[0.0, 1.0]],
                [[-1, 0]],
                [[0, 9]],
                [["0", "1"]],
                [[None, 1]],
                [[0, 10**30]],
                [[0, 2**63]],
                [[0], [1, 2]],
                [[True, False]],
                edges * 1j,
                np.ma.masked_array(edges, edges > 3),
                edges[None],
            ),
            "n": size(optional=True),
            "weights": values(
                "x",
                3,
                [],
                [1.0],
                ["1"] * 3,
                ["a"] * 3,
                [None] * 3,
                [1j] * 3,
                [1.0, 1.0, -1.0],
                [1.0, float("nan"), 1.0],
                [1e308] * 3,
                [1.0, 1.0, float("inf")],
                np.ma.masked_array(np.ones(3), edges[:, 0] > 2),
                optional=True,
            ),
        },
        {"edges": edges, "n": N, "weights": [1.0, 2.0, 3.0]},
    )


core()
methods()
