"""Permutations: neuron orders, matching of modes and of neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from descramble_fast import _core
from descramble_fast._arrays import Array, Kind, Route, called, flag, numbers, on_host, shape_of
from descramble_fast._assignment import Progress, search_options
from descramble_fast._covariance import Covariance, CrossCovariance
from descramble_fast._descramble import SmoothnessDescrambler
from descramble_fast.operators import Operator, fourier


@dataclass(frozen=True, eq=False, kw_only=True)
class Permutation:
    """An order of neurons.

    Attributes
    ----------
    permutation : array of int64, (n,)
        Neuron ``permutation[i]`` moves to place i: ``W[permutation]``. -1 where none is left for
        place i (matching networks of different width).
    signs : array of int64, (n,), or None
        ±1 for each place where signs were asked for, else None.
    cost : float
        The criterion.
    initial_cost : float
        The criterion at P = I.
    bound : float
        Lower bound of a minimised criterion, upper bound of a maximised one: over all orthogonal
        matrices for smoothness, over all permutations (by the duals) for assignments.
    route : Route
        Device, precision and driver.
    """

    permutation: Array
    signs: Array | None
    cost: float
    initial_cost: float
    bound: float
    route: Route


@dataclass(frozen=True, eq=False, kw_only=True)
class SmoothOrder(Permutation):
    """An order of neurons that makes their signals smooth.

    Attributes
    ----------
    tree_bound : float or None
        For first differences, Held and Karp's 1-tree bound over all permutations: sharper than
        `bound`, which holds for all orthogonal matrices.
    steps : int
        Steps of the search that were made.
    stopped : {"finished", "time_limit", "callback", "interrupted"}
        Why the search ended.
    """

    tree_bound: float | None
    steps: int
    stopped: str


@dataclass(frozen=True, eq=False, kw_only=True)
class ModeMatch:
    """Which principal component is which mode.

    Attributes
    ----------
    modes : array of int64, (k,)
        Mode (a column of T, counted from the smoothest) of each component.
    correlation : array, (k,)
        Norm of each component's projection on the modes that share its mode's eigenvalue: 1 where
        it is made of them alone.
    score : float
        Mean of the squared correlations, which the matching maximises.
    route : Route
        Device, precision and driver.
    """

    modes: Array
    correlation: Array
    score: float
    route: Route


@dataclass(frozen=True, eq=False, kw_only=True)
class PermutedLayer:
    """A layer's weights with its neurons in another order.

    Attributes
    ----------
    weight : array, (n, m)
        W with its rows in the new order.
    bias : array, (n,), or None
    next_weight : array, (p, n), or None
        W_next with its columns in the new order.
    max_difference : float or None
        Largest difference of W_next max(0, W x + b) from what it was, on random inputs, relative to
        the largest output: rounding. None without `next_weight`.
    """

    weight: Array
    bias: Array | None
    next_weight: Array | None
    max_difference: float | None


def descramble_permutation(
    samples_or_covariance: Array | Covariance,
    *,
    operator: Operator | None = None,
    seed: int = 0,
    restarts: int | None = None,
    time_limit: float | None = None,
    callback: Progress | None = None,
) -> SmoothOrder:
    """Find an order of the neurons that makes a layer's signals smooth.

    Minimises tr(L P C Pᵀ) over permutations: -½ Σ_ij L_ij d(p_i, p_j) with the squared distances
    d_ij = C_ii + C_jj - 2 C_ij wherever L·1 = 0. For first differences that is a
    travelling-salesman tour or path, for second differences one with a window of three places, for
    Fourier operators a dense circulant; other operators are general quadratic assignments. Local
    search from several starts; up to n = 9 every order is tried. A permutation commutes with
    elementwise activations, so the order can be written back into the network
    (:func:`apply_permutation`).

    Parameters
    ----------
    samples_or_covariance : array, (..., n), or Covariance
        Preactivations or activations, neurons last; or their moments (the uncentred second moment
        counts, as published).
    operator : Operator, optional
        L; ``operators.fourier(n, order=2)`` by default.
    seed : int
        Of the searches' random choices. Without a time limit the answer depends on the arguments
        alone.
    restarts : int, optional
        Independent searches, run in parallel; by default as many as suit the operator.
    time_limit : float, optional
        Seconds for the search, after which the best so far is returned. The bounds come on top.
    callback : callable, optional
        Called between steps with an object of attributes ``seconds``, ``step``, ``steps`` and
        ``cost`` (the best so far); a true answer stops the search. So does Ctrl-C, and the best so
        far is returned.

    Returns
    -------
    SmoothOrder

    Raises
    ------
    TypeError, ValueError
        As :func:`descramble`.

    Examples
    --------
    Neurons that sample a smooth curve, shuffled:

    >>> import numpy as np
    >>> import descramble_fast as df
    >>> t = np.linspace(0, 1, 30)
    >>> smooth = np.exp(-30 * (np.linspace(0, 1, 200)[:, None] - t) ** 2)
    >>> shuffle = np.random.default_rng(0).permutation(30)
    >>> path = df.operators.difference(30, 1, "path")
    >>> r = df.descramble_permutation(smooth[:, shuffle], operator=path)
    >>> found = shuffle[r.permutation]
    >>> bool(np.all(np.abs(np.diff(found)) == 1))  # in order, from either end
    True
    """
    covariance = (
        samples_or_covariance
        if isinstance(samples_or_covariance, Covariance)
        else Covariance._of("samples_or_covariance", samples_or_covariance)
    )
    if operator is None:
        operator = fourier(covariance.n_features)
    if not isinstance(operator, Operator):
        raise TypeError(f"operator: got {type(operator).__name__}, expected an Operator")
    options = search_options(seed, restarts, time_limit, callback)
    with called(second_moment="samples_or_covariance"):
        solved = _core.descramble_permutation(covariance._core, operator._core, *options)
    order, cost, initial_cost, bound, tree_bound, steps, stopped, route = solved
    return SmoothOrder(
        permutation=covariance._kind.out(order),
        signs=None,
        cost=cost,
        initial_cost=initial_cost,
        bound=bound,
        tree_bound=tree_bound,
        steps=steps,
        stopped=stopped,
        route=Route._of(route),
    )


def nearest_permutation(P: Array, *, signed: bool = False) -> Permutation:
    """Find the permutation matrix nearest to a matrix, exactly.

    Maximises Σ_i P_{i, q_i}, which minimises ‖P - Q‖ in the Frobenius norm.

    Parameters
    ----------
    P : array, (n, n)
        Any floating type.
    signed : bool
        Let the entries of Q be ±1.

    Returns
    -------
    Permutation

    Raises
    ------
    TypeError, ValueError
        For an array of another type or shape; NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> P = np.array([[0.1, -0.9], [0.8, 0.2]])
    >>> r = df.nearest_permutation(P, signed=True)
    >>> r.permutation.tolist(), r.signs.tolist()
    ([1, 0], [-1, 1])
    """
    return _permutation(_core.nearest_permutation(P, flag("signed", signed)), Kind.of(P))


def match_neurons(
    a: Array | CrossCovariance, b: Array | None = None, *, signed: bool = False
) -> Permutation:
    """Find which neuron of one network is which of another, from their activations.

    Maximises the sum of Pearson's correlations of matched neurons; exact (an assignment).

    Parameters
    ----------
    a : array, (..., n_a), or CrossCovariance
        Activations of the first network; or the cross moments of both.
    b : array, (..., n_b), optional
        Activations of the second network on the same samples.
    signed : bool
        Match by the magnitude of the correlation, and report its sign.

    Returns
    -------
    Permutation
        Neuron ``permutation[i]`` of b goes with neuron i of a.

    Raises
    ------
    TypeError, ValueError
        As :meth:`CrossCovariance.update`.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> a = np.random.default_rng(0).normal(size=(100, 4))
    >>> r = df.match_neurons(a, a[:, [2, 0, 3, 1]])
    >>> r.permutation.tolist(), round(r.cost, 9)
    ([1, 3, 0, 2], 4.0)
    """
    signed = flag("signed", signed)
    if isinstance(a, CrossCovariance):
        if b is not None:
            raise TypeError("b: got an array beside a CrossCovariance, which holds both networks")
        cross, kind = a, a._kind
    else:
        if b is None:
            raise TypeError("b: got None, expected the activations of the second network")
        sizes = _width("a", a), _width("b", b)
        if (rows := shape_of("b", b)[:-1]) != (expected := shape_of("a", a)[:-1]):
            raise ValueError(f"b: got rows of shape {rows}, expected {expected}, as a has them")
        with called(n_x="a", n_y="b", x="a", y="b"):
            cross = CrossCovariance(*sizes).update(a, b)
        kind = Kind.of(a, b)
    return _permutation(_core.match_neurons(cross._core.correlation(), signed), kind)


def match_modes(d: SmoothnessDescrambler) -> ModeMatch:
    """Find which principal component is which mode of the roughness operator.

    By energy: a component counts towards all modes of one eigenvalue together, so that a shifted
    cosine still finds its frequency. Exact (an assignment).

    Parameters
    ----------
    d : SmoothnessDescrambler

    Returns
    -------
    ModeMatch

    Raises
    ------
    TypeError
        If `d` is no SmoothnessDescrambler.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> t = 2 * np.pi * np.arange(16) / 16
    >>> waves = np.stack([3 * np.cos(2 * t + 0.3), 2 * np.cos(t), np.cos(3 * t - 1)])
    >>> m = df.match_modes(df.descramble(waves, k=3))
    >>> [(int(mode) + 1) // 2 for mode in m.modes]  # frequencies, by descending variance
    [2, 1, 3]
    """
    if not isinstance(d, SmoothnessDescrambler):
        raise TypeError(f"d: got {type(d).__name__}, expected a SmoothnessDescrambler")
    modes, correlation, score, route = _core.match_modes(d._core)
    return ModeMatch(
        modes=d._kind.out(modes),
        correlation=d._kind.out(correlation),
        score=score,
        route=Route._of(route),
    )


def apply_permutation(
    r: Permutation | Array | Sequence[int],
    W: Array,
    bias: Array | None = None,
    W_next: Array | None = None,
) -> PermutedLayer:
    """Put a layer's neurons in another order, and check that the network's function is unchanged.

    Parameters
    ----------
    r : Permutation, or array of int or sequence, (n,)
        Neuron ``r[i]`` moves to place i.
    W : array, (n, m)
        Row i holds neuron i's weights.
    bias : array, (n,), optional
    W_next : array, (p, n), optional
        The next layer's weights. Without it, nothing undoes the order.

    Returns
    -------
    PermutedLayer
        In the library and the dtype of the arrays that came; copies.

    Raises
    ------
    TypeError, ValueError
        If `r` is no permutation of W's n rows or has negative signs, which commute with odd
        activations only; for arrays of other types or shapes.

    Examples
    --------
    >>> import numpy as np
    >>> import descramble_fast as df
    >>> layer = df.apply_permutation([1, 0], np.eye(2), W_next=np.array([[1.0, 2.0]]))
    >>> layer.weight.tolist(), layer.next_weight.tolist(), layer.max_difference
    ([[0.0, 1.0], [1.0, 0.0]], [[2.0, 1.0]], 0.0)
    """
    order = _order(r, _width("W", W, axis=0))
    weight = _taken("W", W, order, 0)
    new_bias = None if bias is None else _taken("bias", bias, order, 0)
    if W_next is None:
        return PermutedLayer(weight=weight, bias=new_bias, next_weight=None, max_difference=None)
    next_weight = _taken("W_next", W_next, order, -1)
    difference = _core.output_difference(W, bias, W_next, weight, new_bias, next_weight)
    return PermutedLayer(
        weight=weight, bias=new_bias, next_weight=next_weight, max_difference=difference
    )


def permute_weights(W: Array, criterion: str) -> Permutation:
    """Permutation of the trace or the diagonal criterion."""
    solver = {"trace": _core.permute_trace, "diagonal": _core.permute_diagonal}[criterion]
    return _permutation(solver(W), Kind.of(W))


def _permutation(solved: Any, kind: Kind) -> Permutation:
    permutation, signs, cost, initial_cost, bound, route = solved
    return Permutation(
        permutation=kind.out(permutation),
        signs=kind.out(signs) if len(signs) else None,
        cost=cost,
        initial_cost=initial_cost,
        bound=bound,
        route=Route._of(route),
    )


def _width(argument: str, array: Array, axis: int = -1) -> int:
    shape = shape_of(argument, array)
    if len(shape) == 0:
        raise ValueError(f"{argument}: got a scalar, expected an array")
    return int(shape[axis])


def _order(r: Permutation | Array | Sequence[int], n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if isinstance(r, Permutation):
        if r.signs is not None and np.any(on_host(r.signs) < 0):
            raise ValueError(
                "r: got negative signs, expected a permutation: a sign commutes with odd "
                "activations only"
            )
        r = r.permutation
    order = numbers("r", r, "integers")
    if order.shape != (n,):
        raise ValueError(f"r: got shape {order.shape}, expected ({n},) as W has rows")
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"r: got no permutation of 0 ... {n - 1}")
    return order.astype(np.int64)


def _taken(argument: str, array: Array, order: np.ndarray[Any, Any], axis: int) -> Array:
    n = len(order)
    if _width(argument, array, axis) != n:
        raise ValueError(f"{argument}: got shape {tuple(array.shape)}, expected {n} on axis {axis}")
    if not array_api_compat.is_array_api_obj(array):
        array = on_host(array)
    xp = array_api_compat.array_namespace(array)
    try:
        index = xp.asarray(order, device=array_api_compat.device(array))
        return xp.take(array, index, axis=axis)
    except Exception as error:  # of a sparse or quantized tensor, say
        text = str(error).partition("\n")[0]
        raise TypeError(f"{argument}: its entries cannot be reordered: {text}") from error
