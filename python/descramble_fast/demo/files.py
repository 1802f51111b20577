"""Networks and samples from files; nothing in a file is ever executed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]

CONTROL_SEED = 0
DATA = Path(__file__).parents[1] / "data"
FLOATING = {"F16": "float16", "F32": "float32", "F64": "float64"}


class DemoError(ValueError):
    """A file that cannot be used; the message names the file, what came and what was expected."""


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
    _path: Path

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
            At a NaN or an infinity, named by its row and column in the file.
        """
        working = np.float64 if self.dtype == "float64" else np.float32
        with _open(self._path) as file:
            rows = file.rows(self.tensor)
            for start in range(0, self.shape[0], size):
                stop = min(start + size, self.shape[0])
                batch = np.asarray(rows[start:stop]).astype(working)
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


class _File:
    """Tensors by name: shapes and element types first, contents only on demand."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.metadata: dict[str, str] = {}
        self.layout: dict[str, tuple[tuple[int, ...], str]] = {}

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def rows(self, tensor: str) -> Any:
        """Something whose slices are NumPy arrays."""
        raise NotImplementedError

    def check_floating(self, tensor: str) -> None:
        """Refuse what is no matrix of floating-point numbers."""
        shape, dtype = self.layout[tensor]
        if len(shape) != 2 or 0 in shape:
            raise DemoError(
                f"{self.name}: {tensor} has shape {shape}, expected a matrix with rows and columns"
            )
        if dtype not in FLOATING.values():
            raise DemoError(
                f"{self.name}: {tensor} has dtype {dtype}, expected float16, float32 or float64"
            )

    def matrix(self, tensor: str) -> Floats:
        """One whole finite matrix as float64."""
        self.check_floating(tensor)
        values = np.asarray(self.rows(tensor)[:]).astype(np.float64)
        if not np.isfinite(values).all():
            raise DemoError(f"{self.name}: {tensor} holds NaN or infinity, expected finite numbers")
        return values


class _SafetensorsFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        try:
            self._stack = ExitStack()
            opened = safetensors.safe_open(path, framework="numpy")
            self._file: Any = self._stack.enter_context(opened)
        except safetensors.SafetensorError as error:
            raise DemoError(f"{path.name}: no readable safetensors file: {error}") from error
        self.metadata = dict(self._file.metadata() or {})
        for tensor in self._file.keys():  # noqa: SIM118
            stored = self._file.get_slice(tensor)
            dtype = stored.get_dtype()
            self.layout[tensor] = tuple(stored.get_shape()), FLOATING.get(dtype, dtype)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rows(self, tensor: str) -> Any:
        return self._file.get_slice(tensor)


class _NumpyFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        try:
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                self._arrays = {"array": loaded}
            else:
                with loaded:
                    self._arrays = dict(loaded)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DemoError(f"{path.name}: no readable NumPy file: {error}") from error
        self.layout = {k: (tuple(v.shape), v.dtype.name) for k, v in self._arrays.items()}

    def rows(self, tensor: str) -> Any:
        return self._arrays[tensor]


def _open(path: Path) -> _File:
    if path.is_dir():
        raise DemoError(f"{path.name}: is a folder, expected a file")
    if not path.exists():
        raise DemoError(f"{path.name}: no such file")
    try:
        if path.suffix in (".npy", ".npz"):
            return _NumpyFile(path)
        return _SafetensorsFile(path)
    except OSError as error:
        raise DemoError(f"{path.name}: cannot be read: {error.strerror or error}") from error


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
    with _open(source) as file:
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
    source = DATA / "deernet_traces.safetensors" if path is None else Path(path)
    with _open(source) as file:
        tensor = _sample_tensor(file)
        shape, dtype = file.layout[tensor]
        if len(shape) == 2 and shape[0] < 2:
            raise DemoError(f"{file.name}: {tensor} has {shape[0]} rows, expected at least 2")
        file.check_floating(tensor)
        return Samples(file.name, tensor, (shape[0], shape[1]), dtype, source)


def _sample_tensor(file: _File) -> str:
    matrices = [name for name, (shape, _) in file.layout.items() if len(shape) == 2]
    for name in ("traces", "samples"):
        if name in file.layout:
            return name
    if len(matrices) != 1:
        raise DemoError(
            f"{file.name}: holds {', '.join(file.layout) or 'no tensors'}; expected a matrix "
            f"'traces' or 'samples', or exactly one matrix"
        )
    return matrices[0]


def _weights(file: _File, name: str, suffix: str) -> Weights:
    tensors = "W1" + suffix, "W2" + suffix
    for tensor in tensors:
        if tensor not in file.layout:
            raise DemoError(
                f"{file.name}: lacks {tensor}, holds {', '.join(file.layout) or 'nothing'}"
            )
    W1, W2 = (file.matrix(tensor) for tensor in tensors)
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


def _control(file: _File, trained: Weights) -> tuple[Weights, str]:
    suffix = "_untrained"
    if "W1" + suffix in file.layout or "W2" + suffix in file.layout:
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
