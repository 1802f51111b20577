"""Descramblers of whole convolutions, applied without their matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from descramble_fast import _core
from descramble_fast._arrays import Array, Kind, integer, listed, on_host, shape_of
from descramble_fast._descramble import Descrambler, common_fields
from descramble_fast.operators import Operator


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvolutionDescrambler(Descrambler):
    """P = T Uᵀ of all outputs of a convolution, applied through Fourier transforms.

    There are n = C_out · ∏ spatial_shape neurons, ordered (C_out, spatial_shape...), row-major. It
    lies on the CPU; samples and weights on a CUDA device are copied there, and results back.

    Attributes
    ----------
    spatial_shape : tuple of int
        Places along each spatial axis.
    operator : Operator
        G, on the places of one channel; L = I ⊗ G.
    eigenvalues : array, (n,)
        c, descending. Those of a cosine and its sine stand side by side.
    cost_error : float
        Estimate of the numerical error of `cost`: ‖ΔC‖₂ Σ ℓᵢ, with the eigensolver's measured
        residual and the rounding of C in ΔC.
    """

    spatial_shape: tuple[int, ...]
    operator: Operator
    eigenvalues: Array = field(repr=False)
    cost_error: float
    _core: _core.ConvolutionDescrambler = field(repr=False)

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of eigenvalues that agree to n·eps·c₁: pairs of cosine and sine always.

        Their components are determined only together.
        """
        return tuple(self._core.blocks())

    def transform(self, samples: Array) -> Array:
        """Descramble samples: x Pᵀ.

        Parameters
        ----------
        samples : array, (..., C_out, spatial_shape...) or (..., n)

        Returns
        -------
        array
            Of the same shape; float64, in the library of `samples`.
        """
        return self._mapped(samples, back=False)

    def inverse_transform(self, samples: Array) -> Array:
        """Scramble again: z P.

        Parameters
        ----------
        samples : array, (..., C_out, spatial_shape...) or (..., n)

        Returns
        -------
        array
            Of the same shape.
        """
        return self._mapped(samples, back=True)

    def _mapped(self, samples: Array, back: bool) -> Array:
        shape = shape_of("samples", samples)
        places = math.prod(self.spatial_shape)
        grid = (self._core.size // places, *self.spatial_shape)
        rows = self._operand(samples)
        folded = shape[-1:] != (self._core.size,) and shape[-len(grid) :] == grid
        if folded:
            rows = rows.reshape((*shape[: -len(grid)], self._core.size))
        elif shape and shape[-1:] != (self._core.size,):
            wanted = ", ".join(map(str, grid))
            raise ValueError(
                f"samples: got shape {shape}, expected (..., {wanted}) or (..., {self._core.size})"
            )
        method = self._core.inverse_transform if back else self._core.transform
        return Kind.of(samples).out(method(rows).reshape(shape))

    def _operand(self, array: Array) -> Array:
        return array if Kind.of(array)._cuda is None else on_host(array)


def descramble_conv(
    weight: Array, spatial_shape: Sequence[int], *, operator: Operator | None = None
) -> ConvolutionDescrambler:
    """Find the orthogonal matrix that makes the outputs of a whole convolution smoothest, exactly.

    The neurons are all outputs of the layer: n = C_out · ∏ spatial_shape, ordered
    (C_out, spatial_shape...). The model is y = W x with W the convolution of stride 1, without bias
    and with periodic padding, and with isotropic inputs: their second moment is the identity. W is
    then block circulant, and the second moment C = W Wᵀ falls into one Hermitian matrix of the
    size of C_out at each spatial frequency. So tr(L P C Pᵀ) is minimised, as by `descramble`,
    without a matrix of n × n: n may be a million.

    Stride, zero padding, dilation and groups are not seen in a weight. For zero padding the answer
    is an approximation at the borders of the grid. A dilated kernel is exact if the zeros between
    its taps are written into it. Where stride or groups matter, descramble the channels instead,
    with every position as a sample (`Covariance`), which is exact for all of these. The weight of a
    grouped convolution has the shape of another without groups, (C_out, C_in / groups, kernel...),
    and is taken for that: its groups would all read the same inputs.

    With one channel U is the Fourier basis itself, and P moves frequencies: the largest responses
    go to the smoothest modes.

    Parameters
    ----------
    weight : array, (C_out, C_in, kernel...)
        With 1 to 3 spatial axes, as in torch's ConvNd. A kernel longer than the grid wraps around.
    spatial_shape : sequence of int
        Places along each spatial axis of the outputs.
    operator : Operator, optional
        G, the roughness on the ∏ spatial_shape places of one channel; L = I ⊗ G. By default
        ``operators.grid(spatial_shape)``: the second spectral derivative along each axis, summed.

    Returns
    -------
    ConvolutionDescrambler
        For each eigenvector of C at a frequency, a cosine and a sine; the first of its largest
        entries is real and positive. Where the modes of G allow, they go to a cosine and a sine of
        one channel. Frequencies with equal eigenvalues keep their order. The same bits for every
        number of threads.

    Raises
    ------
    TypeError
        If `weight` is no array of a floating type, `operator` no Operator, or `spatial_shape` no
        sequence of integers.
    ValueError
        If a shape does not fit, or the weight is empty or holds NaN or infinity.
    BackendError
        If every eigensolver failed at some frequency, or memory lies on a device that cannot be
        used.
    MemoryError
        If the system would not grant the memory, found before any work: 8 · C_out · (n + the number
        of frequencies that are their own conjugates, at most 8) bytes for the eigenvectors, and
        little more.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    >>> d = df.descramble_conv(weight, (8, 8))
    >>> d.cost < d.initial_cost
    True
    >>> outputs = np.random.default_rng(1).normal(size=(10, 4, 8, 8))
    >>> d.transform(outputs).shape
    (10, 4, 8, 8)
    >>> bool(np.allclose(d.inverse_transform(d.transform(outputs)), outputs))
    True
    """
    lengths = listed("spatial_shape", spatial_shape, "integers")
    shape = tuple(integer("spatial_shape", length) for length in lengths)
    if operator is not None and not isinstance(operator, Operator):
        raise TypeError(f"operator: got {type(operator).__name__}, expected an Operator")
    core = _core.descramble_conv(weight, shape, None if operator is None else operator._core)
    kind = Kind.of(weight)
    return ConvolutionDescrambler(
        **common_fields(core, "smoothness"),
        spatial_shape=shape,
        operator=operator or Operator(core.operator),
        eigenvalues=kind.out(core.eigenvalues()),
        cost_error=core.cost_error,
        _core=core,
        _kind=kind,
    )
