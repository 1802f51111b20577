"""Whole torch models: moments of their layers, descramblers, and orders written back."""

from descramble_fast.torch._distributed import all_reduce
from descramble_fast.torch._model import MemoryPlan, descramble_model, untrained
from descramble_fast.torch._observe import Observation, observe
from descramble_fast.torch._permute import (
    Permutable,
    PermutableLayer,
    PermutedModel,
    permutable,
    permute_model,
)

__all__ = [
    "MemoryPlan",
    "Observation",
    "Permutable",
    "PermutableLayer",
    "PermutedModel",
    "all_reduce",
    "descramble_model",
    "observe",
    "permutable",
    "permute_model",
    "untrained",
]
