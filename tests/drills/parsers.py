"""All targets of the fuzzer by name: everything in Python that parses."""

from __future__ import annotations

from draws import TARGETS
from parse_arrays import capsules, interfaces
from parse_files import network, samples, zarrs
from parse_runs import arguments, progress
from parse_state import state

__all__ = [
    "TARGETS",
    "arguments",
    "capsules",
    "interfaces",
    "network",
    "progress",
    "samples",
    "state",
    "zarrs",
]
