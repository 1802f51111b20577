"""Networks and samples from files; nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from descramble_fast._files import ArrayFile, FileError, StoredArray, open_arrays, reading

Matrix: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]

DemoError = FileError

CONTROL_SEED = 0
DATA = Path(__file__).parents[1] / "data"
FLOATING = ("float16", "float32", "float64")


def _sigmoid(s: Matrix) -> Matrix:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * s))


def _relu(s: Matrix) -> Matrix:
    return np.asarray(np.maximum(s, 0))


def _identity(s: Matrix) -> Matrix:
    return s


ACTIVATIONS: dict[str, Callable[[Matrix], Matrix]] = {
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "identity": _identity,
    "linear": _identity,
}


@dataclass(frozen=True)
class Axis:
    """An evenly spaced axis, e.g. time in us; without a unit it counts entries."""

    name: str
    start: float
    stop: float
    count: int
    unit: str

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} / {self.unit}" if self.unit else self.name

    @property
    def step(self) -> float:
        """Distance between neighbours; 1 where there are none."""
        return (self.stop - self.start) / (self.count - 1) if self.count > 1 else 1.0


@dataclass(frozen=True, eq=False)
class Weights:
    """W1, (n1, m), and W2, (n2, n1), of one network, float64."""

    name: str
    W1: Floats
    W2: Floats


@dataclass(frozen=True, eq=False)
class Network:
    """A network, its control and what its file says about them.

    Attributes
    ----------
    file : str
        Name of the file, without its folder.
    trained, control : Weights
        `control` is the network before its training where the file holds it, else Gaussian weights
        of the same root mean squares.
    control_text : str
        Which of the two, in words.
    activation : str
        f, one of tanh, sigmoid, relu, identity, linear.
    input_axis, output_axis : Axis
        What x and y run over.
    metadata : mapping
        As in the file.
    """

    file: str
    trained: Weights
    control: Weights
    control_text: str
    activation: str
    input_axis: Axis
    output_axis: Axis
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Samples:
    """A file of samples, one a row, that is read batch by batch.

    Attributes
    ----------
    file, tensor : str
        Name of the file without its folder, and of the tensor in it.
    shape : tuple of int
        (N, m).
    dtype : str
        As stored.
    """

    file: str
    tensor: str
    shape: tuple[int, int]
    dtype: str
    _array: StoredArray

    def batches(self, size: int) -> Iterator[Matrix]:
        """Rows in order, `size` at a time, float64 if they are stored so and float32 otherwise.

        Parameters
        ----------
        size : int
            At least 1.

        Yields
        ------
        array, (size or fewer, m)

        Raises
        ------
        DemoError
            At a NaN or an infinity, named by its row and column in the file, and at broken bytes.
        """
        working = np.float64 if self.dtype == "float64" else np.float32
        path = self._array.path
        with reading(path):
            opened = self._array.open(0)
        with closing(opened) as rows:
            for start in range(0, self.shape[0], size):
                count = min(size, self.shape[0] - start)
                batch = np.empty((count, self.shape[1]), dtype=self.dtype)
                with reading(path):
                    rows.read_into(batch)
                batch = batch.astype(working, copy=False)
                self._check_finite(batch, start)
                yield batch

    def _check_finite(self, batch: Matrix, start: int) -> None:
        finite = np.isfinite(batch)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise DemoError(
                f"{self.file}: {self.tensor} holds {batch[row, column]} at row {start + row}, "
                f"column {column}; expected finite numbers"
            )


def _check_floating(array: StoredArray) -> None:
    """Refuse what is no matrix of floating-point numbers."""
    if len(array.shape) != 2 or 0 in array.shape:
        raise DemoError(
            f"{array.path.name}: {array.name} has shape {array.shape}, expected a matrix with rows "
            "and columns"
        )
    if array.dtype not in FLOATING:
        raise DemoError(
            f"{array.path.name}: {array.name} has dtype {array.dtype}, expected float16, float32 "
            "or float64"
        )


def _matrix(array: StoredArray) -> Floats:
    """One whole finite matrix as float64."""
    _check_floating(array)
    values = array.read().astype(np.float64)
    if not np.isfinite(values).all():
        raise DemoError(
            f"{array.path.name}: {array.name} holds NaN or infinity, expected finite numbers"
        )
    return values


def load_network(path: str | Path | None = None) -> Network:
    """Read a network y = g(W2 f(W1 x)) and its control.

    Parameters
    ----------
    path : path, optional
        safetensors or npz with matrices ``W1`` (n1, m) and ``W2`` (n2, n1), and optionally
        ``W1_untrained`` and ``W2_untrained`` of the same shapes. safetensors metadata may name
        ``hidden_activation`` (tanh by default) and the axes: ``time_start``, ``time_stop``,
        ``time_count`` and ``time_unit`` for the input, ``distance_...`` for the output. By default
        the network that comes with the package.

    Returns
    -------
    Network

    Raises
    ------
    DemoError
        If the file is missing, unreadable or holds something else.
    """
    source = DATA / "deernet_network.safetensors" if path is None else Path(path)
    file = open_arrays(source)
    trained = _weights(file, "trained", "")
    activation = file.metadata.get("hidden_activation", "tanh")
    if activation not in ACTIVATIONS:
        raise DemoError(
            f"{file.name}: hidden_activation is {activation!r}, expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    control, control_text = _control(file, trained)
    return Network(
        file=file.name,
        trained=trained,
        control=control,
        control_text=control_text,
        activation=activation,
        input_axis=_axis(file.metadata, "time", "input", trained.W1.shape[1]),
        output_axis=_axis(file.metadata, "distance", "output", trained.W2.shape[0]),
        metadata=file.metadata,
    )


def open_samples(path: str | Path | None = None) -> Samples:
    """Find the samples in a file without reading them.

    Parameters
    ----------
    path : path, optional
        safetensors or npz with a matrix ``traces`` or ``samples`` (N, m), or with one matrix only;
        or npy. By default the traces that come with the package.

    Returns
    -------
    Samples

    Raises
    ------
    DemoError
        If the file is missing, unreadable, or holds no such matrix of floating-point numbers.
    """
    file = open_arrays(DATA / "deernet_traces.safetensors" if path is None else Path(path))
    array = file.arrays[_sample_tensor(file)]
    if len(array.shape) == 2 and array.rows < 2:
        raise DemoError(f"{file.name}: {array.name} has {array.rows} rows, expected at least 2")
    _check_floating(array)
    return Samples(file.name, array.name, (array.rows, array.n), array.dtype, array)


def _sample_tensor(file: ArrayFile) -> str:
    matrices = [name for name, array in file.arrays.items() if len(array.shape) == 2]
    for name in ("traces", "samples"):
        if name in file.arrays:
            return name
    if len(matrices) != 1:
        raise DemoError(
            f"{file.name}: holds {', '.join(file.arrays) or 'no tensors'}; expected a matrix "
            f"'traces' or 'samples', or exactly one matrix"
        )
    return matrices[0]


def _weights(file: ArrayFile, name: str, suffix: str) -> Weights:
    tensors = "W1" + suffix, "W2" + suffix
    for tensor in tensors:
        if tensor not in file.arrays:
            raise DemoError(
                f"{file.name}: lacks {tensor}, holds {', '.join(file.arrays) or 'nothing'}"
            )
    W1, W2 = (_matrix(file.arrays[tensor]) for tensor in tensors)
    if W2.shape[1] != W1.shape[0]:
        raise DemoError(
            f"{file.name}: {tensors[1]} has shape {W2.shape}, expected (n, {W1.shape[0]}) to "
            f"follow {tensors[0]} of shape {W1.shape}"
        )
    if W1.shape[0] < 2 or W2.shape[0] < 2:
        raise DemoError(
            f"{file.name}: {tensors[0]} has shape {W1.shape} and {tensors[1]} {W2.shape}, expected "
            "at least 2 neurons in each layer"
        )
    if not (W1.any() and W2.any()):
        raise DemoError(f"{file.name}: {tensors[0]} or {tensors[1]} is zero throughout")
    return Weights(name, W1, W2)


def _control(file: ArrayFile, trained: Weights) -> tuple[Weights, str]:
    suffix = "_untrained"
    if "W1" + suffix in file.arrays or "W2" + suffix in file.arrays:
        control = _weights(file, "untrained", suffix)
        for tensor, got, expected in (
            ("W1", control.W1.shape, trained.W1.shape),
            ("W2", control.W2.shape, trained.W2.shape),
        ):
            if got != expected:
                raise DemoError(
                    f"{file.name}: {tensor}{suffix} has shape {got}, expected {expected}"
                )
        return control, "the same network before its training, on the same samples"
    rng = np.random.default_rng(CONTROL_SEED)
    W1, W2 = (_rms(W) * rng.standard_normal(W.shape) for W in (trained.W1, trained.W2))
    text = (
        f"Gaussian weights (seed {CONTROL_SEED}) of each matrix's root mean square, on the same "
        "samples, since the file holds no W1_untrained and W2_untrained; this is not the network "
        "before its own training"
    )
    return Weights("Gaussian", W1, W2), text


def _rms(matrix: Floats) -> float:
    return float(np.sqrt(np.mean(matrix**2)))


def _axis(metadata: Mapping[str, str], name: str, otherwise: str, count: int) -> Axis:
    try:
        start, stop = (float(metadata[f"{name}_{end}"]) for end in ("start", "stop"))
        described = int(metadata[f"{name}_count"]) == count
    except (KeyError, ValueError):
        described = False
    if not described or not 0 < stop - start < np.inf:
        return Axis(f"{otherwise} index", 0.0, float(count - 1), count, "")
    return Axis(name, start, stop, count, metadata.get(f"{name}_unit", ""))
