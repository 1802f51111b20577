"""Descramblers of whole convolutions, against the dense block-circulant matrix."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import WAYS, Put, host
from numpy.typing import NDArray
from reference import (
    EPS,
    central_difference_matrix,
    convolution_matrix,
    cost,
    difference_matrix,
    fourier_derivative,
    graph_laplacian,
    kronecker_sum,
    runs,
)

import descramble_fast as df

Array = NDArray[np.float64]
FreshPython = Callable[..., str]
Shape = tuple[int, ...]
Axis = tuple[Callable[[int], df.operators.Operator], Callable[[int], Array]]

SHAPES: list[tuple[Shape, Shape]] = [
    ((1,), (3,)),
    ((2,), (2,)),
    ((7,), (3,)),
    ((8,), (5,)),
    ((3,), (8,)),  # the kernel goes around more than once
    ((5, 7), (3, 3)),
    ((4, 6), (3, 2)),
    ((1, 6), (1, 3)),
    ((3, 4, 5), (2, 3, 3)),
    ((4, 2, 4), (3, 3, 1)),
]
CHANNELS = [(1, 1), (2, 3), (5, 2)]


def fourier(order: int) -> Axis:
    def dense(n: int) -> Array:
        D = fourier_derivative(n, order)
        return np.asarray(D.T @ D)

    return lambda n: df.operators.fourier(n, order), dense


def path(order: int) -> Axis:
    def dense(n: int) -> Array:
        D = difference_matrix(n, order, "path")
        return np.asarray(D.T @ D)

    return lambda n: df.operators.difference(n, order, "path"), dense


def central(n: int) -> Array:
    D = central_difference_matrix(n)
    return np.asarray(D.T @ D)


def ladder(n: int) -> Array:
    return graph_laplacian([(i, (2 * i + 1) % n) for i in range(n)], np.arange(1.0, n + 1), n)


AXES: dict[str, Axis] = {
    "fourier-1": fourier(1),
    "path-1": path(1),
    "path-2": path(2),
    "central": (df.operators.central_difference, central),
    "graph": (lambda n: df.operators.from_matrix(ladder(n)), ladder),
}
MIXED = [AXES["path-2"], AXES["graph"], fourier(2)]


def per_axis(axes: list[Axis], shape: Shape) -> tuple[df.operators.Operator, Array]:
    makers = iter(axes)
    operator = df.operators.grid(shape, lambda n: next(makers)[0](n))
    parts = [axis[1](n) for axis, n in zip(axes, shape, strict=False)]
    return operator, kronecker_sum(parts)


def operators_on(shape: Shape) -> dict[str, tuple[df.operators.Operator | None, Array]]:
    """By name, operators on a grid with their dense matrices."""
    places = int(np.prod(shape))
    out: dict[str, tuple[df.operators.Operator | None, Array]] = {
        "default": (None, kronecker_sum([fourier(2)[1](n) for n in shape])),
        "mixed": per_axis(MIXED, shape),
        # Of another layout than the grid: all places in one row.
        "flat fourier": (df.operators.fourier(places), fourier(2)[1](places)),
        "flat path": (df.operators.difference(places, 1, "path"), path(1)[1](places)),
        "flat graph": (df.operators.from_matrix(ladder(places)), ladder(places)),
    }
    return out | {name: per_axis([axis] * len(shape), shape) for name, axis in AXES.items()}


def random_weight(channels: tuple[int, int], kernel: Shape, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(*channels, *kernel))


def second_moment(weight: Array, shape: Shape) -> Array:
    W = convolution_matrix(weight, shape)
    return np.asarray(W @ W.T)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("shape", "kernel"), SHAPES)
def test_it_is_the_dense_solution(shape: Shape, kernel: Shape, channels: tuple[int, int]) -> None:
    weight = random_weight(channels, kernel)
    C = second_moment(weight, shape)
    n = len(C)
    expected = np.linalg.eigvalsh(C)[::-1]
    largest = np.linalg.norm(C, 2)
    for name, (operator, G) in operators_on(shape).items():
        d = df.descramble_conv(weight, shape, operator=operator)
        L = np.kron(np.eye(channels[0]), G)
        P = d.matrix
        ell = np.repeat(np.linalg.eigvalsh(G), channels[0])
        tolerance = 50 * n * EPS * ell[-1] * largest
        assert np.abs(P @ P.T - np.eye(n)).max() < 50 * n * EPS, name
        assert np.abs(d.eigenvalues - expected).max() <= 50 * n * EPS * expected[0], name
        assert abs(cost(L, P, C) - d.cost) <= max(1e-9 * d.cost, tolerance), name
        assert abs(ell @ expected - d.cost) <= max(1e-9 * d.cost, tolerance), name
        assert abs(np.trace(L @ C) - d.initial_cost) <= max(1e-9 * d.initial_cost, tolerance), name
        assert d.bound == d.cost <= d.initial_cost + tolerance
        assert d.cost_error >= 0
        assert d.orthogonality_error < 50 * n * EPS
        assert d.blocks == runs_of(d.eigenvalues)


def runs_of(c: Array) -> tuple[tuple[int, int], ...]:
    """Ranges of two or more that lie within n eps c₁ of their first."""
    out, begin = [], 0
    for i in range(1, len(c) + 1):
        if i == len(c) or c[begin] - c[i] > len(c) * EPS * c[0]:
            out += [(begin, i)] if i - begin > 1 else []
            begin = i
    return tuple(out)


def test_dense_descramblers_of_the_same_matrix_cost_as_much() -> None:
    shape, weight = (4, 6), random_weight((3, 2), (3, 3))
    G = kronecker_sum([path(1)[1](4), fourier(2)[1](6)])
    operator = df.operators.grid(
        shape, lambda n: path(1)[0](n) if n == 4 else df.operators.fourier(n)
    )
    whole = df.operators.from_matrix(np.kron(np.eye(3), G))
    dense = df.descramble_weights(convolution_matrix(weight, shape), operator=whole)
    assert isinstance(dense, df.SmoothnessDescrambler)
    d = df.descramble_conv(weight, shape, operator=operator)
    assert d.cost == pytest.approx(dense.cost, rel=1e-10)
    assert d.initial_cost == pytest.approx(dense.initial_cost, rel=1e-10)
    assert np.allclose(d.eigenvalues, dense.eigenvalues, rtol=0, atol=1e-12 * d.eigenvalues[0])


def test_it_descrambles_torchs_convolution() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    shape = (4, 5)
    inputs = torch.eye(2 * 20, dtype=torch.float64).reshape(-1, 2, *shape)
    with torch.no_grad():
        outputs = layer(inputs)
    d = df.descramble_conv(layer.weight.detach(), shape)
    z = d.transform(outputs)
    assert isinstance(z, torch.Tensor)
    assert z.shape == outputs.shape
    assert isinstance(d.eigenvalues, torch.Tensor)
    # Of all unit inputs together the outputs are W.
    rough = d.operator.apply(z.reshape(-1, 20)).reshape(z.shape)
    assert float((rough * z).sum()) == pytest.approx(d.cost, rel=1e-10)
    assert torch.allclose(d.inverse_transform(z), outputs, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "kernel"), [((9,), (3,)), ((6, 5), (3, 3)), ((3, 4, 3), (2,) * 3)]
)
def test_transforms_are_those_of_the_matrix(shape: Shape, kernel: Shape) -> None:
    d = df.descramble_conv(random_weight((3, 2), kernel), shape)
    P = d.matrix
    n = len(P)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, n))
    images = x.reshape(7, 3, *shape)
    assert np.allclose(d.transform(x), x @ P.T, rtol=0, atol=1e-13)
    assert np.allclose(d.inverse_transform(x), x @ P, rtol=0, atol=1e-13)
    assert (d.transform(images).reshape(7, n) == d.transform(x)).all()
    assert (d.inverse_transform(images).reshape(7, n) == d.inverse_transform(x)).all()
    assert d.transform(images[0]).shape == (3, *shape)
    assert d.transform(images.reshape(7, 1, 3, *shape)).shape == (7, 1, 3, *shape)
    assert d.transform(images[:0]).shape == (0, 3, *shape)
    backwards = np.ascontiguousarray(images[..., ::-1])[..., ::-1]
    assert (d.transform(backwards) == d.transform(images)).all()
    for dtype in (np.float16, np.float32):
        narrow = images.astype(dtype)
        assert (d.transform(narrow) == d.transform(narrow.astype(np.float64))).all()
    many = rng.normal(size=(150, n))
    assert np.allclose(d.transform(many), many @ P.T, rtol=0, atol=1e-13)
    W, bias = rng.normal(size=(n, 4)), rng.normal(size=n)
    weight, offset = d.transform_weight(W, bias)
    assert np.allclose(weight, P @ W, rtol=0, atol=1e-13)
    assert np.allclose(d.transform_weight(W), P @ W, rtol=0, atol=1e-13)
    assert np.allclose(offset, P @ bias, rtol=0, atol=1e-13)
    assert np.allclose(d.transform_next_weight(W.T), W.T @ P.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("put", WAYS)
def test_arrays_come_back_where_they_were(put: Put) -> None:
    weight, x = random_weight((3, 2), (3, 3)), np.random.default_rng(1).normal(size=(4, 3, 5, 6))
    d, there = df.descramble_conv(weight, (5, 6)), df.descramble_conv(put(weight), (5, 6))
    assert there.route.device == "cpu"
    assert bool(there.route.fallbacks) == (put is not np.asarray)
    assert type(there.eigenvalues) is type(there.transform(put(x))) is type(put(x))
    assert (host(there.eigenvalues) == d.eigenvalues).all()
    assert (host(there.transform(put(x))) == d.transform(x)).all()
    assert (host(there.inverse_transform(put(x))) == d.inverse_transform(x)).all()
    W = np.random.default_rng(2).normal(size=(90, 2))
    assert (host(there.transform_weight(put(W))) == d.transform_weight(W)).all()
    assert (host(there.transform_next_weight(put(W.T))) == d.transform_next_weight(W.T)).all()
    assert (host(there.matrix) == d.matrix).all()


@pytest.mark.parametrize("shape", [(15,), (16,), (6, 8), (5, 7)])
def test_with_one_channel_frequencies_move(shape: Shape) -> None:
    weight = random_weight((1, 2), (3,) * len(shape), 3)
    d = df.descramble_conv(weight, shape)
    responses = np.abs(np.fft.fftn(weight[0], shape, axes=range(1, 1 + len(shape)))) ** 2
    energies = responses.sum(axis=0).ravel()
    # The k-th smoothest mode is made of frequencies with the k-th largest response.
    components = d.operator.analyze(d.matrix.T).T
    spectra = (
        np.abs(np.fft.fftn(components.reshape(-1, *shape), axes=range(1, 1 + len(shape)))) ** 2
    )
    spectra = spectra.reshape(len(energies), -1) / len(energies)
    largest = np.sort(energies)[::-1]
    for begin, end in [*d.operator.blocks, *((i, i + 1) for i in range(len(largest)))]:
        if end - begin == 1 and any(a <= begin < b for a, b in d.operator.blocks):
            continue
        mean = spectra[begin:end] @ energies
        assert np.allclose(np.sort(mean)[::-1], largest[begin:end], rtol=1e-10)
    for spectrum in spectra:  # each of one frequency and its conjugate
        assert np.sort(spectrum)[-2:].sum() == pytest.approx(1, abs=1e-12)


def pairs_of(shape: Shape) -> list[tuple[int, int]]:
    """Modes of the default operator on a grid that are a cosine and a sine along the last axis."""
    axes = [[(0, -1), *((k, s) for k in range(1, (n + 1) // 2) for s in (0, 1))] for n in shape]
    axes = [axis + [(n // 2, -1)] * (n % 2 == 0) for axis, n in zip(axes, shape, strict=True)]
    grid: list[tuple[tuple[int, int], ...]] = [()]
    for axis in axes:
        grid = [(*mode, one) for mode in grid for one in axis]
    ell = [sum(k**4 for k, _ in mode) for mode in grid]
    place = {grid[j]: i for i, j in enumerate(np.argsort(ell, kind="stable"))}
    out = []
    for mode in grid:
        last = [a for a, (_, sine) in enumerate(mode) if sine >= 0][-1:]
        if last and mode[last[0]][1] == 0:
            sine = list(mode)
            sine[last[0]] = (mode[last[0]][0], 1)
            out.append((place[mode], place[tuple(sine)]))
    return out


@pytest.mark.parametrize(("shape", "channels"), [((9,), 1), ((8,), 3), ((5, 6), 2), ((4, 4), 1)])
def test_pairs_stay_together_and_their_phase_is_fixed(shape: Shape, channels: int) -> None:
    weight = random_weight((channels, 3), (3,) * len(shape), 5)
    d = df.descramble_conv(weight, shape)
    C = second_moment(weight, shape)
    places = len(C) // channels
    # Components by channel and mode.
    Q = d.operator.analyze(d.matrix.T.reshape(-1, places)).reshape(len(C), channels, places)
    Q = np.moveaxis(Q, 0, -1)
    values = np.einsum("cmi,ij,cmj->cm", Q, C, Q)
    gap = 1e-10 * values.max()
    ends = {i: end for begin, end in d.operator.blocks for i in range(begin, end)}
    slots = {(c, i): (c, j) for c in range(channels) for i, j in pairs_of(shape)}
    whole = [pair for pair in slots.items() if abs(values[pair[0]] - values[pair[1]]) < gap]
    begin = 0
    while begin < places:
        end = ends.get(begin, begin + 1)
        inside = np.sort(values[:, begin:end].ravel())
        equal = sum(b - a for a, b in runs(inside, gap)) // 2
        room = sum(begin <= cosine[1] < end for cosine in slots)
        assert sum(begin <= cosine[1] < end for cosine, _ in whole) == min(equal, room)
        begin = end
    for cosine, sine in whole:
        wave = (Q[cosine] + 1j * Q[sine]).reshape(channels, *shape)
        spectrum = np.fft.fftn(wave, axes=range(1, 1 + len(shape))).reshape(channels, -1)
        energies = (np.abs(spectrum) ** 2).sum(axis=0)
        assert energies.max() == pytest.approx(energies.sum(), rel=1e-12)  # one frequency, one sign
        u = wave.reshape(channels, -1)[:, 0]
        first = u[np.abs(u) >= np.abs(u).max() * (1 - 1e-6)][0]
        assert first.real > 0
        assert abs(first.imag) < 1e-12


def test_ties_go_in_the_order_of_frequencies() -> None:
    d = df.descramble_conv(np.ones((1, 1, 1)), (9,))  # the identity: every response is 1
    assert np.allclose(d.matrix, np.eye(9), rtol=0, atol=1e-14)
    assert d.blocks == ((0, 9),)
    assert d.cost == pytest.approx(d.initial_cost, rel=1e-14)


@pytest.mark.parametrize("scale", [1e-150, 1e140])
def test_large_and_small_weights(scale: float) -> None:
    weight = random_weight((3, 2), (3, 3))
    one, scaled = (df.descramble_conv(w, (4, 5)) for w in (weight, scale * weight))
    assert scaled.cost == pytest.approx(scale**2 * one.cost, rel=1e-10)
    assert np.allclose(
        scaled.eigenvalues, scale**2 * one.eigenvalues, rtol=0, atol=1e-12 * scale**2
    )


def test_weights_of_low_rank_and_of_zeros() -> None:
    weight = random_weight((6, 1), (3, 3))
    d = df.descramble_conv(weight, (4, 5))
    assert (d.eigenvalues[20:] < 1e-13 * d.eigenvalues[0]).all()
    assert (d.eigenvalues >= 0).all()
    assert np.abs(d.matrix @ d.matrix.T - np.eye(120)).max() < 1e-13
    zero = df.descramble_conv(0 * weight, (4, 5))
    assert zero.cost == zero.initial_cost == zero.cost_error == 0
    assert np.abs(zero.matrix @ zero.matrix.T - np.eye(120)).max() < 1e-13


def test_a_kernel_longer_than_the_grid_wraps_around() -> None:
    weight = random_weight((2, 2), (5, 7))
    wrapped = np.zeros((2, 2, 3, 4))
    for i in range(5):
        for j in range(7):
            wrapped[:, :, i % 3, j % 4] += weight[:, :, i, j]
    d, folded = (df.descramble_conv(w, (3, 4)) for w in (weight, wrapped))
    assert d.cost == pytest.approx(folded.cost, rel=1e-12)
    # Where the kernel begins makes no difference.
    turned = df.descramble_conv(np.roll(wrapped, (1, 2), (2, 3)), (3, 4))
    assert turned.cost == pytest.approx(d.cost, rel=1e-12)


@pytest.mark.usefixtures("default_threads")
def test_the_thread_count_makes_no_difference() -> None:
    weight, x = (
        random_weight((24, 8), (3, 3)),
        np.random.default_rng(0).normal(size=(9, 24, 12, 10)),
    )
    found = []
    for threads in (1, 2, 5):
        df.set_num_threads(threads)
        d = df.descramble_conv(weight, (12, 10))
        fields = d.eigenvalues, d.transform(x), d.inverse_transform(x)
        found.append(([f.tobytes() for f in fields], d.cost, d.initial_cost, d.orthogonality_error))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("weight", "shape", "operator", "error", "message"),
    [
        (np.ones((2, 3)), (4,), None, ValueError, r"weight: got shape \(2, 3\), expected \(C_out"),
        (np.ones((1,) * 6), (4,) * 4, None, ValueError, "with 1 to 3 spatial axes"),
        (np.ones((2, 0, 3)), (4,), None, ValueError, r"weight: got shape \(2, 0, 3\)"),
        (np.ones((2, 3, 3)), (4, 4), None, ValueError, r"spatial_shape: got \(4, 4\), expected 1"),
        (np.ones((2, 3, 3)), (0,), None, ValueError, r"spatial_shape: got \(0,\)"),
        (np.ones((2, 3, 3, 3)), (4, -1), None, ValueError, r"spatial_shape: got \(4, -1\)"),
        (np.ones((2, 3, 3)), (2**50,), None, ValueError, "spatial_shape: .* neurons"),
        (np.ones((2, 3, 3)), (2**64,), None, ValueError, "spatial_shape: got 18446744073709551616"),
        (np.ones((2, 3, 3)), 4, None, TypeError, "spatial_shape: got int"),
        (np.ones((2, 3, 3)), (4.0,), None, TypeError, "spatial_shape: got 4.0"),
        (np.ones((2, 3, 3)), "4", None, TypeError, "spatial_shape: got str"),
        (np.ones((2, 3, 3), dtype=int), (4,), None, TypeError, "weight: .*int64"),
        (np.ones((2, 3, 3), dtype=bool), (4,), None, TypeError, "weight: got dtype bool"),
        ([1.0], (4,), None, TypeError, "weight: got list"),
        (np.ones((2, 3, 3)), (4,), 2, TypeError, "operator: got int"),
        (
            np.ones((2, 3, 3)),
            (4,),
            df.operators.fourier(5),
            ValueError,
            r"operator: acts on 5 places, a grid of \(4,\) has 4",
        ),
        (1e200 * np.ones((2, 3, 3)), (4,), None, ValueError, "weight: .* overflows"),
    ],
)
def test_what_cannot_be_used_is_named(
    weight: Any, shape: Any, operator: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        df.descramble_conv(weight, shape, operator=operator)


def test_a_weight_that_is_not_finite_is_named_by_its_index() -> None:
    weight = np.ones((4, 3, 2, 5))
    weight[2, 1, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"weight: NaN or infinity at index \(2, 1, 0, 3\)"):
        df.descramble_conv(weight, (6, 6))


def test_samples_that_do_not_fit_are_named() -> None:
    d = df.descramble_conv(np.ones((2, 3, 3, 3)), (4, 5))
    with pytest.raises(
        ValueError, match=r"samples: got shape \(2, 5, 4\), expected \(..., 2, 4, 5\)"
    ):
        d.transform(np.ones((2, 5, 4)))
    with pytest.raises(ValueError, match=r"samples: got shape \(\)"):
        d.transform(np.ones(()))
    with pytest.raises(TypeError, match="samples: got list"):
        d.inverse_transform([1.0])
    with pytest.raises(TypeError, match=r"samples: .*int64"):
        d.transform(np.ones((2, 4, 5), dtype=int))
    with pytest.raises(ValueError, match=r"W: got shape \(39, 2\)"):
        d.transform_weight(np.ones((39, 2)))


def test_it_prints_without_its_internals() -> None:
    d = df.descramble_conv(np.ones((2, 3, 3)), (4,))
    assert "_core" not in repr(d)
    assert "spatial_shape=(4,)" in repr(d)
    assert d.operator.name == "fourier(n=4, order=2)"
    assert d.criterion == "smoothness"


def test_many_neurons() -> None:
    shape = (400, 600)
    path_operator = df.operators.grid(shape, df.operators.difference, boundary="path")
    weight = random_weight((1, 1), (5, 5))
    for operator in (None, path_operator):
        d = df.descramble_conv(weight, shape, operator=operator)
        assert d.cost < d.initial_cost
        x = np.random.default_rng(0).normal(size=(1, *shape))
        z = d.transform(x)
        assert np.allclose(d.inverse_transform(z), x, rtol=0, atol=1e-12)
        assert np.linalg.norm(z) == pytest.approx(np.linalg.norm(x), rel=1e-12)
    with pytest.raises(MemoryError, match="matrix: cannot have"):
        _ = d.matrix
    # Found before the default operator is made, which would fill what memory there is.
    with pytest.raises(MemoryError, match=r"descramble_conv: cannot have the [0-9]+ bytes"):
        df.descramble_conv(weight, (2**20, 2**20))


PREPARE = """
    import ctypes, sys
    import numpy as np
    import descramble_fast as df

    MMAP_THRESHOLD = -3
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)

    def status(name):
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    channels, inputs, *shape = map(int, sys.argv[1:])
    weight = np.random.default_rng(0).normal(size=(channels, inputs, 3, 3))
    df.descramble_conv(weight[:2, :2], (8, 8))  # BLAS allocates its buffers
    operator = df.operators.grid(shape)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory through /proc")
@pytest.mark.parametrize(
    ("sizes", "used"),
    [((96, 96, 40, 40), 0.7), ((8, 256, 128, 128), 0.3), ((1, 1, 512, 1024), 0.3)],
)
def test_memory_is_refused_before_any_work_or_kept(
    fresh_python: FreshPython, sizes: tuple[int, ...], used: float
) -> None:
    script = """
    import re, resource, time

    limits = resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.setrlimit(limits[0], (status("VmSize:") + (24 << 20), resource.RLIM_INFINITY))
    start = time.process_time()
    try:
        df.descramble_conv(weight, shape, operator=operator)
    except MemoryError as error:
        stated = int(re.search("descramble_conv: cannot have the ([0-9]+) bytes", str(error))[1])
    print(time.process_time() - start < 0.1)
    resource.setrlimit(*limits)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is now what is resident
    before = status("VmRSS:")
    d = df.descramble_conv(weight, shape, operator=operator)
    print(status("VmHWM:") - before, stated)
    """
    in_time, figures = fresh_python(PREPARE + script, *sizes).splitlines()
    peak, stated = map(int, figures.split())
    assert in_time == "True"
    assert used * stated <= peak <= stated


def test_ctrl_c_ends_it(fresh_python: FreshPython) -> None:
    fresh_python(
        """
        import os, signal, threading, time
        import numpy as np
        import descramble_fast as df

        weight = np.random.default_rng(0).normal(size=(128, 128, 3, 3))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            df.descramble_conv(weight, (112, 112))  # tens of seconds
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("ran to the end")
        assert time.monotonic() - begin < 4
        assert df.descramble_conv(weight[:2, :2], (4, 4)).eigenvalues[0] > 0  # all goes on
        """
    )
