"""Put the first layer's neurons into an order that makes their signals smooth, and check it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast.demo.files import ACTIVATIONS, Floats, Matrix, Network, Weights


@dataclass(frozen=True, eq=False)
class NeuronOrder:
    """An order of layer 1's neurons, found from the signals W1 x and written into the weights.

    Attributes
    ----------
    network : str
        Of which network.
    operator : str
        The roughness operator.
    permutation : array of int64, (n,)
        Neuron ``permutation[i]`` moves to place i.
    initial_cost, cost : float
        Roughness tr(L P C Pᵀ) in the given order and in the new one: the squared differences of
        neighbours' signals, added and averaged over the samples.
    bound, tree_bound : float
        No orthogonal matrix, and no order, has a lower cost.
    milliseconds : float
        Of the search and its bounds, once.
    leading_share : float
        The largest eigenvalue of C over its trace; 1 where all neurons say the same up to a factor.
    distances : array, (n, n)
        Root mean square of the difference of two neurons' signals, in the given order.
    reordered : Weights
        W1 with its rows and W2 with its columns in the new order.
    raw_weights : array, (n, m)
        W1 as it came.
    """

    network: str
    operator: str
    permutation: NDArray[np.int64]
    initial_cost: float
    cost: float
    bound: float
    tree_bound: float
    milliseconds: float
    leading_share: float
    distances: Floats
    reordered: Weights
    raw_weights: Floats

    @property
    def remaining(self) -> float:
        """Roughness in the new order over that in the given one."""
        return self._relative(self.cost)

    @property
    def least_of_orders(self) -> float:
        """What any order must leave, relative to the given one."""
        return self._relative(self.tree_bound)

    @property
    def least_of_orthogonal(self) -> float:
        """What any orthogonal matrix must leave, relative to the given order."""
        return self._relative(self.bound)

    @property
    def weights_remaining(self) -> float:
        """Squared differences of W1's neighbouring rows, the new order over the given one."""
        before, after = map(_steps, (self.raw_weights, self.reordered.W1))
        return after / before if before > 0 else 1.0

    def _relative(self, cost: float) -> float:
        return max(cost, 0.0) / self.initial_cost if self.initial_cost > 0 else 1.0


def _steps(matrix: Floats) -> float:
    return float((np.diff(matrix, axis=0) ** 2).sum())


def find_order(weights: Weights, moments: df.Covariance) -> NeuronOrder:
    """Order the neurons by the moments of W1 x, and write the order into both layers.

    Parameters
    ----------
    weights : Weights
    moments : Covariance
        Of W1 x.

    Returns
    -------
    NeuronOrder
    """
    # A path: a list of neurons has two ends, which a ring would have to bring together. And first
    # differences: only they have a sharp bound over all orders, which says whether a better search
    # would help. Second differences and the default Fourier operator group this network's rows less
    # clearly, and take ten times as long or more.
    operator = df.operators.difference(len(weights.W1), 1, "path")
    start = time.perf_counter()
    found = df.descramble_permutation(moments, operator=operator)
    if found.stopped == "interrupted":
        raise KeyboardInterrupt
    milliseconds = 1e3 * (time.perf_counter() - start)
    layer = df.apply_permutation(found, weights.W1, W_next=weights.W2)
    C = moments.second_moment()
    size = np.diag(C)
    trace = float(size.sum())
    return NeuronOrder(
        network=weights.name,
        operator=operator.name,
        permutation=np.asarray(found.permutation),
        initial_cost=found.initial_cost,
        cost=found.cost,
        bound=found.bound,
        tree_bound=found.bound if found.tree_bound is None else found.tree_bound,
        milliseconds=milliseconds,
        leading_share=float(df.eigh(C, k=1).eigenvalues[-1]) / trace if trace > 0 else 0.0,
        distances=np.sqrt(np.maximum(size[:, None] + size - 2 * C, 0)),
        reordered=Weights(weights.name, layer.weight, np.asarray(layer.next_weight)),
        raw_weights=weights.W1,
    )


def output_differences(
    network: Network, orders: Sequence[NeuronOrder], batches: Iterable[Matrix]
) -> list[float]:
    """Compare W2 f(W1 x) before and after reordering, for the trained network and for the control.

    g acts on these outputs alone, so what holds for them holds for the whole network.

    Parameters
    ----------
    network : Network
    orders : sequence of NeuronOrder
    batches : iterable of array, (..., m)
        Samples x; worked on in float64.

    Returns
    -------
    list of float
        The largest difference over the largest output, one for each network.
    """
    activate = ACTIVATIONS[network.activation]
    pairs = list(zip((network.trained, network.control), orders, strict=True))
    largest, difference = np.zeros(len(pairs)), np.zeros(len(pairs))
    for batch in batches:
        x = batch.astype(np.float64)
        for i, (weights, order) in enumerate(pairs):
            before, after = (_outputs(w, activate, x) for w in (weights, order.reordered))
            largest[i] = max(largest[i], np.abs(before).max())
            difference[i] = max(difference[i], np.abs(after - before).max())
    relative = np.divide(difference, largest, out=difference, where=largest > 0)
    return [float(value) for value in relative]


def _outputs(weights: Weights, activate: Callable[[Matrix], Matrix], x: Floats) -> Matrix:
    return np.asarray(activate(x @ weights.W1.T) @ weights.W2.T)
