"""State dicts on disk."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from descramble_fast._files import FileError, reading

_DTYPES = {
    torch.float16: "float16",
    torch.bfloat16: "BF16",
    torch.float32: "float32",
    torch.float64: "float64",
}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor of a state dict, whose content stays in the file until it is read."""

    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """As safetensors and NumPy spell it."""
        return _DTYPES.get(self.tensor.dtype, str(self.tensor.dtype))

    def read(self) -> NDArray[Any]:
        """Read it as float64 if it is stored so, and as float32 otherwise.

        FileError where it is larger than what is stored of it, by steps of 0 from number to number.
        """
        stored = self.tensor.untyped_storage().nbytes() // self.tensor.element_size()
        if self.tensor.numel() > stored:
            raise FileError(f"a tensor {self.shape} of which {stored} numbers are stored")
        wide = self.tensor.dtype == torch.float64
        return self.tensor.detach().to(torch.float64 if wide else torch.float32).numpy()


def open_state_dict(path: Path) -> Mapping[str, StoredTensor]:
    """Open what ``torch.save`` wrote of a state dict, by weights-only loading.

    Of a dictionary that holds no tensors itself, the one dictionary of tensors in it is taken.
    Raises FileError where the file holds anything else; nothing in it is executed.
    """
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols that broken bytes seem to name
        try:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # of the format before zip files, which cannot be mapped
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise FileError(
                f"{path}: holds more than tensors, or is no torch file; expected a state dict"
            ) from error
    candidates = [loaded, *(loaded.values() if isinstance(loaded, Mapping) else ())]
    found = [_tensors(candidate) for candidate in candidates]
    if not found[0]:
        found = [tensors for tensors in found if tensors]
    if not found or (not found[0] and len(found) != 1):
        raise FileError(f"{path}: holds {type(loaded).__name__}, expected a state dict")
    return found[0]


def _tensors(candidate: Any) -> dict[str, StoredTensor]:
    if not isinstance(candidate, Mapping):
        return {}
    return {
        str(name): StoredTensor(value)
        for name, value in candidate.items()
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    }
