"""Streaming moments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from descramble_fast import _core
from descramble_fast._arrays import (
    Array,
    Floats,
    Kind,
    beside,
    called,
    dtype_name,
    file_path,
    flag,
    integer,
    listed,
    numbers,
    on_host,
    real,
)
from descramble_fast._files import panics_refused, replace_file

_FORMAT = "descramble_fast.covariance"
_SCHEMA = "1"


def _rows(batch: Array, mask: Array | None, weights: Array | None) -> tuple[Any, Any]:
    """Selectors as the core takes them: lists become arrays, and integer weights float64."""
    if mask is None and weights is None:
        return None, None
    rows = beside(batch, numbers("mask", mask, "bool")) if isinstance(mask, Sequence) else mask
    if isinstance(weights, Sequence):
        return rows, beside(batch, numbers("weights", weights).astype(np.float64))
    whole = dtype_name(weights).startswith(("int", "uint", "bool"))
    if whole and not isinstance(weights, np.ma.MaskedArray):
        return rows, beside(weights, on_host(weights).astype(np.float64))
    return rows, weights


def _place(device: str | None, offload: bool) -> tuple[str | None, bool]:
    if not (device is None or isinstance(device, str)):
        raise TypeError(f"device: got {device!r} ({type(device).__name__}), expected None or a str")
    return device, flag("offload", offload)


class Covariance:
    """Streaming count, mean and centred scatter of n features.

    State is float64 (the upper triangle, 4 n² bytes; twice that once a long batch was seen). Rows
    are multiplied about a reference near their mean (Chan, Golub and LeVeque 1979), so that means
    a million times the deviation lose nothing: float64 samples give covariances to rounding,
    narrower ones, whose products are summed in float32 for a few dozen rows at a time, to 1e-5 of
    the largest variance and usually 1e-7. Batches are read in place, up to a few hundred rows at a
    time copied until there are enough for the kernels; the GIL is released. One accumulator may be
    used from several threads, whose calls then take turns.

    On a CUDA device the state takes 8 n² bytes there, and updates are queued on the stream that the
    batch's library works on, without waiting (torch, CuPy; other libraries' memory has been read
    when `update` returns). A batch that cannot be taken (NaN, say) changes nothing there either,
    but the error comes with the next call that waits: `count`, `weight`, `merge`, or any that reads
    moments. A copy, or what was pickled, comes back on the CPU.

    Parameters
    ----------
    n_features : int
        Number of features (neurons), at least 1.
    device : None, "cpu", "cuda" or "cuda:<number>"
        Where the accumulator lives, as all its batches must; None: where the first batch lies.
    offload : bool
        On a CUDA device: keep the scatter in the host's memory, for more layers than fit. Every
        update then reads and writes it over the bus.

    Raises
    ------
    ValueError
        If `n_features` is out of range, or `device` is none of these.
    BackendError
        If `device` is a CUDA device that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> cov = df.Covariance(2).update(np.array([[1.0, 0.0], [3.0, 2.0]]))
    >>> cov.count, cov.mean.tolist()
    (2, [2.0, 1.0])
    >>> cov.second_moment().tolist()
    [[5.0, 3.0], [3.0, 2.0]]
    >>> cov.covariance(ddof=1).tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """

    def __init__(self, n_features: int, device: str | None = None, offload: bool = False) -> None:
        self._core = _core.Covariance.empty(
            integer("n_features", n_features), *_place(device, offload)
        )
        self._kind = Kind()
        self._input_dtypes: frozenset[str] = frozenset()
        self._last_dtype: Any = None

    @classmethod
    def _wrap(cls, core: _core.Covariance, kind: Kind) -> Covariance:
        self = cls.__new__(cls)
        self._core, self._kind, self._input_dtypes = core, kind, frozenset()
        self._last_dtype = None
        return self

    def _saw(self, batch: Array) -> None:
        dtype = getattr(batch, "dtype", None)
        if dtype is None or dtype is not self._last_dtype:
            self._kind.see(batch)
            self._input_dtypes |= {dtype_name(batch)}
            self._last_dtype = dtype

    def __repr__(self) -> str:
        # On a device, the count waits, and may raise an error that is none of the printer's.
        what = f"{self.count} samples" if self.device == "cpu" else f"on {self.device}"
        return f"<Covariance of {self.n_features} features, {what}>"

    @property
    def device(self) -> str:
        """Where it lives: ``"cpu"`` (also while nothing has decided it) or ``"cuda:<number>"``."""
        return self._core.device

    @property
    def n_features(self) -> int:
        """Number of features, n."""
        return self._core.size

    @property
    def count(self) -> int:
        """Number of rows used."""
        return self._core.count

    @property
    def weight(self) -> float:
        """Sum of the weights of the rows used."""
        return self._core.weight

    @property
    def input_dtypes(self) -> tuple[str, ...]:
        """Names of the element types of the batches seen."""
        return tuple(sorted(self._input_dtypes))

    @property
    def mean(self) -> Array:
        """Weighted mean, shape (n,), float64.

        Raises ValueError without samples, or where only a second moment is known.
        """
        return self._kind.out(self._core.mean())

    def update(
        self, batch: Array, mask: Array | None = None, weights: Array | None = None
    ) -> Covariance:
        """Add samples; the batch is not needed afterwards.

        Parameters
        ----------
        batch : array, (..., n)
            float16, bfloat16, float32 or float64, of any strides; no rows are fine.
        mask : array of bool, (...), optional
            True for rows that count. Rows masked out are not looked at.
        weights : array, (...), optional
            Non-negative frequencies. Rows of weight 0 are not looked at.

        Returns
        -------
        Covariance
            Itself.

        Raises
        ------
        TypeError
            If `batch` is no floating array in native byte order, or `mask` is not boolean.
        ValueError
            If a shape does not fit, an array lies on another device, a weight is negative, or a
            row that counts holds NaN, infinity or numbers whose squares overflow. The state is then
            left bit for bit as it was. On a CUDA device, what the values are at fault for is raised
            by the next call that waits.
        BackendError
            If `batch` lies on a device that cannot be used.
        """
        self._core.update(batch, *_rows(batch, mask, weights))
        self._saw(batch)
        return self

    def merge(self, other: Covariance) -> Covariance:
        """Add another accumulator's samples (Chan's formula); an empty one changes nothing.

        Parameters
        ----------
        other : Covariance
            Of as many features; left as it is.

        Returns
        -------
        Covariance
            Itself.

        Raises
        ------
        TypeError
            If `other` is no Covariance.
        ValueError
            If the sizes or devices differ, or either side has no mean.
        """
        if not isinstance(other, Covariance):
            raise TypeError(f"other: got {type(other).__name__}, expected a Covariance")
        self._core.merge(other._core)
        self._kind.adopt(other._kind)
        self._input_dtypes |= other._input_dtypes
        return self

    def all_reduce(self, group: Any = None) -> Covariance:
        """Add the samples of all other ranks of a torch.distributed group, on each of them.

        Parameters
        ----------
        group : ProcessGroup, optional
            None: the default group. Every rank of it calls this, with samples or without.

        Returns
        -------
        Covariance
            Itself.

        Raises
        ------
        ValueError, RuntimeError
            As `descramble_fast.torch.all_reduce` has it, which this is for one layer. The state is
            then as it was.
        """
        from descramble_fast.torch._distributed import all_reduce

        all_reduce({"covariance": self}, group)
        return self

    def second_moment(self) -> Array:
        """Uncentred second moment C = Σ w x xᵀ / Σ w, shape (n, n), float64.

        Raises ValueError without samples.
        """
        return self._kind.out(self._core.second_moment())

    def covariance(self, ddof: float = 0) -> Array:
        """Covariance K = Σ w (x - μ)(x - μ)ᵀ / (Σ w - ddof), shape (n, n), float64.

        Raises ValueError where weight - ddof is not positive, or where the mean is unknown.
        """
        return self._kind.out(self._core.covariance(real("ddof", ddof)))

    @classmethod
    def from_samples(cls, x: Array) -> Covariance:
        """Moments of one array of samples, shape (..., n).

        Examples
        --------
        >>> import numpy as np
        >>> import descramble_fast as df
        >>> df.Covariance.from_samples(np.ones((4, 3), dtype=np.float32)).count
        4
        """
        return cls._of("x", x)

    @classmethod
    def _of(cls, argument: str, samples: Array) -> Covariance:
        """Moments of samples that are called so."""
        with called(x=argument, batch=argument, n_features=f"{argument}, its last axis"):
            out = cls._wrap(_core.Covariance.from_samples(samples), Kind())
        out._saw(samples)
        return out

    @classmethod
    def from_moments(
        cls, second_moment: Array, mean: Array | None = None, weight: float = 1.0
    ) -> Covariance:
        """Moments known from elsewhere.

        Parameters
        ----------
        second_moment : array, (n, n)
            Uncentred, normalised, symmetric to 1e-6 of its largest element.
        mean : array, (n,), optional
            Without it only uncentred results are defined, and nothing can be added.
        weight : float
            How many samples it stands for.

        Returns
        -------
        Covariance

        Raises
        ------
        ValueError
            If a shape does not fit, an entry is not finite, `weight` is not positive, or times the
            moments exceeds an eighth of the largest float64, which leaves no room for more rows.

        Examples
        --------
        >>> import numpy as np
        >>> import descramble_fast as df
        >>> df.Covariance.from_moments(np.eye(2), mean=np.array([0.5, 0.0])).covariance().tolist()
        [[0.75, 0.0], [0.0, 1.0]]
        """
        core = _core.Covariance.from_moments(second_moment, mean, real("weight", weight))
        return cls._wrap(core, Kind.of(second_moment))

    @classmethod
    def combine(cls, covs: Sequence[Covariance], weights: Sequence[float] | Floats) -> Covariance:
        """Weighted sum of normalised second moments, Σ wᵢ Cᵢ, for joint criteria.

        Parameters
        ----------
        covs : sequence of Covariance
            Of one size, each with samples.
        weights : sequence of float
            Non-negative, one per covariance.

        Returns
        -------
        Covariance
            It has a second moment but no mean: centring it is refused.

        Raises
        ------
        TypeError
            If an entry is no Covariance.
        ValueError
            If sizes or lengths differ, a weight is negative, or an entry has no samples.

        Examples
        --------
        >>> import numpy as np
        >>> import descramble_fast as df
        >>> one = df.Covariance.from_moments(np.eye(2))
        >>> df.Covariance.combine([one, one], [1.0, 0.5]).second_moment().tolist()
        [[1.5, 0.0], [0.0, 1.5]]
        """
        covs = listed("covs", covs, "Covariance")
        for i, cov in enumerate(covs):
            if not isinstance(cov, Covariance):
                raise TypeError(f"covs: entry {i} is {type(cov).__name__}, expected a Covariance")
        kind = Kind()
        for cov in covs:
            kind.adopt(cov._kind)
        shares = [
            real(f"weights[{i}]", w) for i, w in enumerate(listed("weights", weights, "numbers"))
        ]
        core = _core.Covariance.combine([cov._core for cov in covs], shares)
        out = cls._wrap(core, kind)
        out._input_dtypes = frozenset().union(*(cov._input_dtypes for cov in covs))
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {"state": self._core.state(), "input_dtypes": self._input_dtypes}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self._core = _core.Covariance.from_state(*saved["state"])
        self._kind = Kind()
        self._input_dtypes = saved["input_dtypes"]
        self._last_dtype = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state to a safetensors file, replacing `path` in one step.

        Tensors: ``count`` int64; float64 ``weight``, ``reference`` and ``offset`` (n,), whose sum
        is the mean, and ``scatter`` (n (n + 1)/2,), the row-major upper triangle about the mean.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> import descramble_fast as df
        >>> path = os.path.join(tempfile.mkdtemp(), "layer.safetensors")
        >>> df.Covariance.from_samples(np.eye(3)).save(path)
        >>> df.Covariance.load(path).count
        3
        """
        self._save(path, {})

    def _save(self, path: str | os.PathLike[str], beside: Mapping[str, str]) -> None:
        """Write the state with further words in the file's metadata."""
        count, weight, has_mean, reference, offset, scatter = self._core.state()
        tensors = {
            "count": np.array([count], dtype=np.int64),
            "weight": np.array([weight]),
            "reference": reference,
            "offset": offset,
            "scatter": scatter,
        }
        metadata = {
            "format": _FORMAT,
            "schema": _SCHEMA,
            "version": _core.__version__,
            "has_mean": str(has_mean).lower(),
            "input_dtypes": ",".join(self.input_dtypes),
            **beside,
        }
        with panics_refused():
            content = safetensors.numpy.save(tensors, metadata)
        replace_file(path, content)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: str | None = None, offload: bool = False
    ) -> Covariance:
        """Read what `save` wrote, to the CPU or to a CUDA device.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file, or of a later schema.
        """
        return cls._load(path, device, offload)[0]

    @classmethod
    def _load(
        cls, path: str | os.PathLike[str], device: str | None = None, offload: bool = False
    ) -> tuple[Covariance, Mapping[str, str]]:
        """Read the state and the words in the metadata, both of one file if it is replaced."""
        place, path = _place(device, offload), file_path("path", path)
        with open(path, "rb"):
            pass  # safetensors' own errors name no file
        try:
            with panics_refused(), safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"path: {path} holds no covariance of descramble_fast")
                if metadata.get("schema") != _SCHEMA:
                    raise ValueError(
                        f"path: {path} has schema {metadata.get('schema')}, expected {_SCHEMA}"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"path: {path} is no readable safetensors file: {error}") from error
        for name, dtype in _LAYOUT.items():
            if name not in tensors or tensors[name].dtype != dtype or tensors[name].ndim != 1:
                raise ValueError(f"path: {path} lacks a {dtype} vector {name!r}")
            if name in ("count", "weight") and tensors[name].size != 1:
                raise ValueError(
                    f"path: {path} has {tensors[name].size} entries in {name!r}, not 1"
                )
        core = _core.Covariance.from_state(
            int(tensors["count"][0]),
            float(tensors["weight"][0]),
            metadata.get("has_mean") == "true",
            tensors["reference"],
            tensors["offset"],
            tensors["scatter"],
            *place,
        )
        self = cls._wrap(core, Kind())
        self._input_dtypes = frozenset(filter(None, metadata.get("input_dtypes", "").split(",")))
        return self, metadata


_LAYOUT = {
    "count": "int64",
    "weight": "float64",
    "reference": "float64",
    "offset": "float64",
    "scatter": "float64",
}


class CrossCovariance:
    """Streaming cross moments between two sets of features of the same samples.

    Parameters
    ----------
    n_x, n_y : int
        Numbers of features.
    device, offload
        As `Covariance` has them.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> x = np.array([[1.0], [2.0], [3.0]])
    >>> cross = df.CrossCovariance(1, 2).update(x, np.hstack([2 * x, -x]))
    >>> cross.correlation().round(12).tolist()
    [[1.0, -1.0]]
    """

    def __init__(
        self, n_x: int, n_y: int, device: str | None = None, offload: bool = False
    ) -> None:
        self._core = _core.CrossCovariance.empty(
            integer("n_x", n_x), integer("n_y", n_y), *_place(device, offload)
        )
        self._kind = Kind()

    @property
    def device(self) -> str:
        """Where it lives, as `Covariance.device`."""
        return self._core.device

    @property
    def count(self) -> int:
        """Number of row pairs used."""
        return self._core.count

    @property
    def weight(self) -> float:
        """Sum of their weights."""
        return self._core.weight

    def update(
        self, x: Array, y: Array, mask: Array | None = None, weights: Array | None = None
    ) -> CrossCovariance:
        """Add paired rows, shapes (..., n_x) and (..., n_y); as `Covariance.update` otherwise."""
        self._core.update(x, y, *_rows(x, mask, weights))
        self._kind.see(x)
        self._kind.see(y)
        return self

    def merge(self, other: CrossCovariance) -> CrossCovariance:
        """Add another accumulator's samples."""
        if not isinstance(other, CrossCovariance):
            raise TypeError(f"other: got {type(other).__name__}, expected a CrossCovariance")
        self._core.merge(other._core)
        self._kind.adopt(other._kind)
        return self

    def cross_moment(self) -> Array:
        """Σ w x yᵀ / Σ w, shape (n_x, n_y), float64."""
        return self._kind.out(self._core.cross_moment())

    def cross_covariance(self, ddof: float = 0) -> Array:
        """Σ w (x - μ)(y - ν)ᵀ / (Σ w - ddof), shape (n_x, n_y), float64."""
        return self._kind.out(self._core.cross_covariance(real("ddof", ddof)))

    def correlation(self) -> Array:
        """Pearson's correlation, shape (n_x, n_y), float64; 0 where a feature is constant."""
        return self._kind.out(self._core.correlation())
