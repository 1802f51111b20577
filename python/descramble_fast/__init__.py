"""Exact descramblers: orthogonal matrices that make trained layers readable.

Stream a layer's samples into a :class:`Covariance`, solve with :func:`descramble`, read the weights
through the result. See :func:`descramble` for a complete example. Whole models are in
``descramble_fast.torch``, chunked arrays in ``descramble_fast.dask``: imported when asked for.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("descramble_fast._core") is None:
    raise ImportError(
        "descramble_fast: the compiled extension is missing. Install the package "
        "(`pip install .`), and do not import it from inside its source folder `python/`."
    )

from descramble_fast import operators
from descramble_fast._arrays import Route
from descramble_fast._assignment import (
    LinearAssignmentResult,
    QuadraticAssignmentResult,
    linear_assignment,
    quadratic_assignment,
)
from descramble_fast._config import cuda_available, set_num_threads, show_config
from descramble_fast._convolution import ConvolutionDescrambler, descramble_conv
from descramble_fast._core import BackendError, __version__
from descramble_fast._covariance import Covariance, CrossCovariance
from descramble_fast._descramble import (
    Descrambler,
    Gauge,
    MatrixDescrambler,
    SmoothnessDescrambler,
    descramble,
    descramble_many,
    descramble_memory,
)
from descramble_fast._eigh import EighResult, eigh
from descramble_fast._layers import Layer, Layers
from descramble_fast._permutation import (
    ModeMatch,
    Permutation,
    PermutedLayer,
    SmoothOrder,
    apply_permutation,
    descramble_permutation,
    match_modes,
    match_neurons,
    nearest_permutation,
)
from descramble_fast._stability import Stability
from descramble_fast._weights import descramble_weights

__all__ = [
    "BackendError",
    "ConvolutionDescrambler",
    "Covariance",
    "CrossCovariance",
    "Descrambler",
    "EighResult",
    "Gauge",
    "Layer",
    "Layers",
    "LinearAssignmentResult",
    "MatrixDescrambler",
    "ModeMatch",
    "Permutation",
    "PermutedLayer",
    "QuadraticAssignmentResult",
    "Route",
    "SmoothOrder",
    "SmoothnessDescrambler",
    "Stability",
    "__version__",
    "apply_permutation",
    "cuda_available",
    "descramble",
    "descramble_conv",
    "descramble_many",
    "descramble_memory",
    "descramble_permutation",
    "descramble_weights",
    "eigh",
    "linear_assignment",
    "match_modes",
    "match_neurons",
    "nearest_permutation",
    "operators",
    "quadratic_assignment",
    "set_num_threads",
    "show_config",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import what other libraries are needed for, when it is asked for."""
        if name in ("dask", "plot", "torch"):
            return import_module(f"descramble_fast.{name}")
        raise AttributeError(f"module 'descramble_fast' has no attribute {name!r}")
