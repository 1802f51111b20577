"""The benchmark suite: this library beside its peers, in one run.

One source for two places: the folder ``bench`` of the repository (``python -m bench``) and, in an
installed package, ``descramble_fast.bench`` (``descramble-fast bench``).
"""
