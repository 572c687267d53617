"""Randomness without state: what is drawn depends on a seed, a purpose and a place alone."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


def stable_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose, place) alone: the same in every process, at every resume.

    Typical place: (update, place in the batch). torch seeds from 32 bits, so two places share a stream once in 2^32.
    """
    import torch

    text = json.dumps([int(seed), purpose, *map(int, place)])
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def row_of_entry(entry: int, *, num_rows: int, seed: int) -> int:
    """Row at `entry` of the endless chain of epoch permutations: place e mod n of epoch e div n."""
    if num_rows < 1 or entry < 0:
        raise ValueError(f"need num_rows >= 1 and entry >= 0, got {num_rows} and {entry}.")
    epoch, place = divmod(entry, num_rows)
    return _permutation(num_rows, seed, epoch)[place]


@lru_cache(maxsize=8)  # a batch may straddle epochs; loader workers run ahead
def _permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    import torch

    return torch.randperm(num_rows, generator=stable_generator(seed, "data order", epoch)).tolist()
