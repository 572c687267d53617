"""Vectors of pictures and prompts by encoder, each computed once for all runs."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from scoft.launch import progress

import numpy as np
import torch

from scoft.evaluate.encoders import Encoder, Encoders
from scoft.evaluate.sources import Source
from scoft.files import cached_tensors, content_key


BLOCK = 256  # pictures embedded between two writes


class Features:
    """Features of pictures and prompts; those of pictures are kept in `folder`, BLOCK pictures a file.

    A block is all that is in memory of pictures and of what was computed but not yet written.
    """

    def __init__(self, folder: Path, encoders: Encoders, *, batch_size: int):
        self.folder, self.encoders, self.batch_size = folder, encoders, batch_size

    def of(self, name: str, sources: Sequence[Source]) -> np.ndarray:
        """(n, D) float64 of the pictures by the encoder of this name."""
        encoder, found = self.encoders.load(name), []
        for block in progress(list(blocks(sources, BLOCK)), f"Features: {name}", leave=False):
            key = content_key(encoder.sha256, [source.sha256 for source in block])
            file = self.folder / name / f"{key[:16]}.safetensors"
            compute = functools.partial(self.compute, encoder, block)
            found.append(cached_tensors(file, key=key, compute=compute))
        return np.concatenate([each["features"].double().numpy() for each in found])

    @torch.no_grad()
    def compute(self, encoder: Encoder, block: Sequence[Source]) -> dict[str, torch.Tensor]:
        batches = blocks(block, self.batch_size)
        return {"features": torch.cat([encoder([each.open() for each in batch]).float().cpu() for batch in batches])}

    @torch.no_grad()
    def of_texts(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, D) float64 of the prompts, by clip."""
        different = sorted(set(prompts))
        encoder = self.encoders.load("clip")
        texts = torch.cat([encoder.texts(batch).float().cpu() for batch in blocks(different, self.batch_size)])
        at = {prompt: i for i, prompt in enumerate(different)}
        return texts.double().numpy()[[at[prompt] for prompt in prompts]]


class Noise:
    """In the place of `Features`, without an encoder, of every picture others: which metrics do so many allow?"""

    def of(self, name: str, sources: Sequence[Source]) -> np.ndarray:
        return np.random.default_rng(len(sources)).normal(size=(len(sources), 8))

    def of_texts(self, prompts: Sequence[str]) -> np.ndarray:
        return np.random.default_rng(len(prompts)).normal(size=(len(prompts), 8))


def blocks(items: Sequence, size: int) -> Iterator[Sequence]:
    """The items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
