"""Descramblers of weights, without samples."""

from __future__ import annotations

from descramble_fast import _core
from descramble_fast._arrays import Array, Kind, one_of
from descramble_fast._covariance import Covariance
from descramble_fast._descramble import (
    MatrixDescrambler,
    SmoothnessDescrambler,
    common_fields,
    descramble,
)
from descramble_fast._permutation import Permutation, descramble_permutation, permute_weights
from descramble_fast.operators import Operator


def descramble_weights(
    W: Array,
    *,
    criterion: str = "smoothness",
    bias: Array | None = None,
    input_second_moment: Array | None = None,
    input_mean: Array | None = None,
    operator: Operator | None = None,
    gauge: str | Array = "canonical",
    restrict: str = "orthogonal",
) -> SmoothnessDescrambler | MatrixDescrambler | Permutation:
    """Descramble a layer from its weights, without samples.

    Smoothness: with the inputs' second moment Σ the preactivations' is W Σ Wᵀ (plus bias terms), so
    none need be streamed. Isotropic inputs (Σ = I, the default): U are W's left singular vectors
    and P W = T S Vᵀ. Trace: max tr(P W), exact (orthogonal Procrustes). Diagonal: max Σ (P W)ᵢᵢ² by
    generalised power iteration from the trace solution, which climbs monotonically to a stationary
    point.

    Parameters
    ----------
    W : array, (n, m)
        Row i holds neuron i's weights.
    criterion : {"smoothness", "trace", "diagonal"}
        What to optimise.
    bias : array, (n,), optional
        Smoothness only.
    input_second_moment : array, (m, m), optional
        Uncentred; smoothness only.
    input_mean : array, (m,), optional
        Used with a bias; smoothness only.
    operator, gauge
        As for `descramble`; smoothness only, and no gauge for permutations.
    restrict : {"orthogonal", "permutation"}
        Permutations: trace and diagonal are exact (assignments); smoothness is the search of
        :func:`descramble_permutation` with its defaults.

    Returns
    -------
    SmoothnessDescrambler, MatrixDescrambler or Permutation
        A Permutation (for smoothness, a SmoothOrder) where restricted to them.

    Raises
    ------
    TypeError, ValueError, BackendError
        As `descramble`; an argument that the criterion does not use is a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> W = np.array([[0.0, 2.0], [1.0, 0.0]])
    >>> df.descramble_weights(W, criterion="trace").transform_weight(W).round(12).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    one_of("restrict", restrict, "orthogonal", "permutation")
    one_of("criterion", criterion, "smoothness", "trace", "diagonal")
    permuting = restrict == "permutation"
    canonical = isinstance(gauge, str) and gauge == "canonical"
    if permuting and not canonical:
        raise ValueError('gauge: restrict "permutation" does not use it')
    if criterion == "smoothness":
        core = _core.preactivation_moment(W, bias, input_second_moment, input_mean)
        moments = Covariance._wrap(core, Kind.of(W))
        if permuting:
            return descramble_permutation(moments, operator=operator)
        return descramble(moments, operator=operator, gauge=gauge)
    solvers = {"trace": _core.descramble_trace, "diagonal": _core.descramble_diagonal}
    unused = {
        "bias": bias,
        "input_second_moment": input_second_moment,
        "input_mean": input_mean,
        "operator": operator,
        "gauge": None if canonical else gauge,
    }
    for argument, value in unused.items():
        if value is not None:
            raise ValueError(f'{argument}: criterion "{criterion}" does not use it')
    if permuting:
        return permute_weights(W, criterion)
    solved = solvers[criterion](W)
    return MatrixDescrambler(
        **common_fields(solved, criterion),
        stationarity=solved.stationarity,
        iterations=solved.iterations,
        _core=solved,
        _kind=Kind.of(W),
    )
