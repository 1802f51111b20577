"""
Bindings of the descramble_fast C++ library.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['BackendError', 'ConvolutionDescrambler', 'Covariance', 'CrossCovariance', 'Descrambler', 'DeviceArray', 'GaugeReport', 'MatrixDescrambler', 'Operator', 'Route', 'SearchProgress', 'SmoothnessDescrambler', 'cuda_available', 'cuda_config', 'descramble_conv', 'descramble_diagonal', 'descramble_many', 'descramble_memory', 'descramble_permutation', 'descramble_trace', 'eigh', 'instruction_set', 'instruction_sets', 'lapack_config', 'linear_assignment', 'machine_limits', 'match_modes', 'match_neurons', 'moments_memory', 'nearest_permutation', 'num_threads', 'output_difference', 'permute_diagonal', 'permute_trace', 'preactivation_moment', 'quadratic_assignment', 'set_num_threads']
class BackendError(RuntimeError):
    pass
class Route:
    @property
    def device(self) -> str:
        ...
    @property
    def driver(self) -> str:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def fallbacks(self) -> list[str]:
        ...
class DeviceArray:
    """
    An array in CUDA memory, for any library that takes DLPack or the CUDA array interface.
    """
    @staticmethod
    def from_numpy(array: numpy.ndarray, device: typing.SupportsInt | typing.SupportsIndex = 0) -> DeviceArray:
        """
        A copy of a NumPy array on a device.
        """
    def __dlpack__(self, *, stream: typing.Any = None, max_version: typing.Any = None, dl_device: typing.Any = None, copy: typing.Any = None) -> typing.Any:
        ...
    def __dlpack_device__(self) -> tuple[int, int]:
        ...
    def __repr__(self) -> str:
        ...
    def numpy(self) -> typing.Any:
        """
        A copy as a NumPy array.
        """
    def swapaxes(self, axis1: typing.SupportsInt | typing.SupportsIndex, axis2: typing.SupportsInt | typing.SupportsIndex) -> DeviceArray:
        ...
    @property
    def T(self) -> DeviceArray:
        ...
    @property
    def __cuda_array_interface__(self) -> dict[str, typing.Any]:
        ...
    @property
    def device(self) -> str:
        ...
    @property
    def dtype(self) -> str:
        ...
    @property
    def ndim(self) -> int:
        ...
    @property
    def shape(self) -> tuple[int, ...]:
        ...
class Covariance:
    @staticmethod
    def combine(covariances: collections.abc.Sequence[Covariance], weights: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]) -> Covariance:
        ...
    @staticmethod
    def empty(n_features: typing.SupportsInt | typing.SupportsIndex, device: str | None = None, offload: bool = False) -> Covariance:
        ...
    @staticmethod
    def from_moments(second_moment: typing.Any, mean: typing.Any | None, weight: typing.SupportsFloat | typing.SupportsIndex) -> Covariance:
        ...
    @staticmethod
    def from_samples(x: typing.Any) -> Covariance:
        ...
    @staticmethod
    def from_state(count: typing.SupportsInt | typing.SupportsIndex, weight: typing.SupportsFloat | typing.SupportsIndex, has_mean: bool, reference: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], offset: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], scatter: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], device: str | None = None, offload: bool = False) -> Covariance:
        ...
    def covariance(self, ddof: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> typing.Any:
        ...
    def mean(self) -> typing.Any:
        ...
    def merge(self, other: Covariance) -> None:
        ...
    def second_moment(self) -> typing.Any:
        ...
    def state(self) -> tuple[int, float, bool, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
        """
        Count, weight, whether the mean is known, its reference and offset, packed upper triangle of the scatter.
        """
    def update(self, batch: typing.Any, mask: typing.Any | None = None, weights: typing.Any | None = None) -> None:
        ...
    @property
    def count(self) -> int:
        ...
    @property
    def device(self) -> str:
        ...
    @property
    def has_mean(self) -> bool:
        ...
    @property
    def offload(self) -> bool:
        ...
    @property
    def size(self) -> int:
        ...
    @property
    def weight(self) -> float:
        ...
class CrossCovariance:
    @staticmethod
    def empty(n_x: typing.SupportsInt | typing.SupportsIndex, n_y: typing.SupportsInt | typing.SupportsIndex, device: str | None = None, offload: bool = False) -> CrossCovariance:
        ...
    def correlation(self) -> typing.Any:
        ...
    def cross_covariance(self, ddof: typing.SupportsFloat | typing.SupportsIndex = 0.0) -> typing.Any:
        ...
    def cross_moment(self) -> typing.Any:
        ...
    def merge(self, other: CrossCovariance) -> None:
        ...
    def update(self, x: typing.Any, y: typing.Any, mask: typing.Any | None = None, weights: typing.Any | None = None) -> None:
        ...
    @property
    def count(self) -> int:
        ...
    @property
    def device(self) -> str:
        ...
    @property
    def weight(self) -> float:
        ...
class Operator:
    @staticmethod
    def central_difference(n: typing.SupportsInt | typing.SupportsIndex) -> Operator:
        ...
    @staticmethod
    def difference(n: typing.SupportsInt | typing.SupportsIndex, order: typing.SupportsInt | typing.SupportsIndex, boundary: str) -> Operator:
        ...
    @staticmethod
    def fourier(n: typing.SupportsInt | typing.SupportsIndex, order: typing.SupportsInt | typing.SupportsIndex) -> Operator:
        ...
    @staticmethod
    def from_matrix(matrix: typing.Any) -> Operator:
        ...
    @staticmethod
    def grid(axes: collections.abc.Sequence[Operator]) -> Operator:
        ...
    def analyze(self, x: typing.Any) -> typing.Any:
        ...
    def apply(self, x: typing.Any) -> typing.Any:
        ...
    def blocks(self) -> list[tuple[int, int]]:
        ...
    def eigenvalues(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    def modes(self) -> numpy.typing.NDArray[numpy.float64]:
        """
        Modes as rows.
        """
    def synthesize(self, x: typing.Any) -> typing.Any:
        ...
    @property
    def name(self) -> str:
        ...
    @property
    def size(self) -> int:
        ...
class Descrambler:
    def inverse_transform(self, samples: typing.Any) -> typing.Any:
        ...
    def matrix(self) -> typing.Any:
        ...
    def transform(self, samples: typing.Any) -> typing.Any:
        ...
    def transform_bias(self, bias: typing.Any) -> typing.Any:
        ...
    def transform_next_weight(self, weight: typing.Any) -> typing.Any:
        ...
    def transform_weight(self, weight: typing.Any) -> typing.Any:
        ...
    @property
    def bound(self) -> float:
        ...
    @property
    def cost(self) -> float:
        ...
    @property
    def device(self) -> str:
        ...
    @property
    def initial_cost(self) -> float:
        ...
    @property
    def orthogonality_error(self) -> float:
        ...
    @property
    def route(self) -> Route:
        ...
    @property
    def size(self) -> int:
        ...
class GaugeReport:
    @property
    def distance(self) -> float:
        ...
    @property
    def exact(self) -> bool:
        ...
    @property
    def iterations(self) -> int:
        ...
class SmoothnessDescrambler(Descrambler):
    def blocks(self) -> list[tuple[int, int]]:
        ...
    def components(self) -> typing.Any:
        """
        Principal components as rows.
        """
    def eigenvalues(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    def modes(self) -> typing.Any:
        """
        Modes as rows.
        """
    @property
    def cost_error(self) -> float:
        ...
    @property
    def gauge(self) -> GaugeReport:
        ...
class MatrixDescrambler(Descrambler):
    @property
    def iterations(self) -> int:
        ...
    @property
    def stationarity(self) -> float:
        ...
class ConvolutionDescrambler(Descrambler):
    def blocks(self) -> list[tuple[int, int]]:
        ...
    def eigenvalues(self) -> numpy.typing.NDArray[numpy.float64]:
        ...
    @property
    def cost_error(self) -> float:
        ...
    @property
    def operator(self) -> Operator:
        ...
class SearchProgress:
    @property
    def cost(self) -> float:
        ...
    @property
    def seconds(self) -> float:
        ...
    @property
    def step(self) -> int:
        ...
    @property
    def steps(self) -> int:
        ...
def cuda_available() -> bool:
    ...
def cuda_config() -> str:
    ...
def descramble_conv(weight: typing.Any, spatial_shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], operator: Operator | None) -> ConvolutionDescrambler:
    ...
def descramble_diagonal(weight: typing.Any) -> MatrixDescrambler:
    ...
def descramble_many(covariances: collections.abc.Sequence[Covariance], operators: collections.abc.Sequence[Operator], center: bool, gauge: typing.Any, k: typing.SupportsInt | typing.SupportsIndex | None) -> list[SmoothnessDescrambler]:
    ...
def descramble_memory(n: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex | None) -> int:
    ...
def descramble_permutation(covariance: Covariance, operator: Operator, seed: typing.SupportsInt | typing.SupportsIndex, restarts: typing.SupportsInt | typing.SupportsIndex, time_limit: typing.SupportsFloat | typing.SupportsIndex | None, callback: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int64], float, float, float, float | None, int, str, Route]:
    """
    Permutation, cost, initial cost, bound, tree bound, steps, why it stopped, route.
    """
def descramble_trace(weight: typing.Any) -> MatrixDescrambler:
    ...
def eigh(a: typing.Any, k: typing.SupportsInt | typing.SupportsIndex | None = None) -> tuple[numpy.ndarray, numpy.ndarray, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], Route]:
    """
    Eigenvalues, eigenvectors as rows, residual, orthogonality error, route.
    """
def instruction_set() -> str:
    ...
def instruction_sets() -> list[str]:
    ...
def lapack_config() -> str:
    ...
def linear_assignment(cost: typing.Any, maximize: bool = False, initial_duals: typing.Any | None = None, on_device: bool = False) -> tuple[typing.Any, numpy.typing.NDArray[numpy.float64], typing.Any, typing.Any, numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64], Route]:
    """
    Columns, cost, row duals, column duals, gap, violation, route.
    """
def machine_limits(threads: typing.SupportsInt | typing.SupportsIndex = 0, seconds: typing.SupportsFloat | typing.SupportsIndex = 0.2) -> dict[str, float | None]:
    """
    Flop/s of multiply-adds and of bfloat16 dot products (None where there is no instruction
    for them), and bytes/s read from memory, each measured for about that time.
    """
def match_modes(descrambler: SmoothnessDescrambler) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.float64], float, Route]:
    """
    Modes, correlation, score, route.
    """
def match_neurons(similarity: typing.Any, signed: bool) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], float, float, float, Route]:
    """
    Permutation, signs, cost, initial cost, bound, route.
    """
def moments_memory(n: typing.SupportsInt | typing.SupportsIndex, rows: typing.SupportsInt | typing.SupportsIndex, dtype: str) -> tuple[int, int]:
    """
    Bytes on a CUDA device: of an accumulator, and beside it while an update runs.
    """
def nearest_permutation(p: typing.Any, signed: bool) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], float, float, float, Route]:
    """
    Permutation, signs, cost, initial cost, bound, route.
    """
def num_threads() -> int:
    ...
def output_difference(weight: typing.Any, bias: typing.Any | None, next_weight: typing.Any, other_weight: typing.Any, other_bias: typing.Any | None, other_next_weight: typing.Any) -> float:
    ...
def permute_diagonal(weight: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], float, float, float, Route]:
    """
    Permutation, signs, cost, initial cost, bound, route.
    """
def permute_trace(weight: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int64], float, float, float, Route]:
    """
    Permutation, signs, cost, initial cost, bound, route.
    """
def preactivation_moment(weight: typing.Any, bias: typing.Any | None, input_second_moment: typing.Any | None, input_mean: typing.Any | None) -> Covariance:
    ...
def quadratic_assignment(a: typing.Any, b: typing.Any, maximize: bool, partial_match: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], initial: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None, seed: typing.SupportsInt | typing.SupportsIndex, restarts: typing.SupportsInt | typing.SupportsIndex, time_limit: typing.SupportsFloat | typing.SupportsIndex | None, callback: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int64], float, float, int, str, Route]:
    """
    Columns, cost, initial cost, steps, why it stopped, route.
    """
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
__version__: str = '0.1.0'
