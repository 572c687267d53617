"""The pocket world's web, rendered once: what its models are trained on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from pocket import world
from pocket.judge import SIZE
from scoft.files import content_key


WEB_PICTURES = 20_000


@dataclass
class Web:
    """The rendered corpus: images (N, 3, 64, 64) and depths (N, 1, 64, 64), both uint8, and what goes with them."""

    images: torch.Tensor
    depths: torch.Tensor
    scenes: list[world.Scene]
    captions: list[str]
    named: list[str | None]
    key: str  # of the world that it was drawn from

    def __len__(self) -> int:
        return len(self.scenes)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as the models take them: float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def read_web(work: Path, *, size: int = WEB_PICTURES, seed: int = 0) -> Web:
    """The corpus of `seed`, rendered at first and kept in `work` from then on."""
    scenes, captions, named = zip(*world.web_corpus(size, seed=seed))
    key = content_key(Path(world.__file__).read_bytes(), size, seed)
    file = work / f"web-{key[:16]}.npz"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        pictures = [world.render(scene, size=SIZE) for scene in tqdm(scenes, desc="Rendering the web")]
        images, depths = (np.stack([np.asarray(layer) for layer in layers]) for layers in zip(*pictures))
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, images=images, depths=depths)
        partial.rename(file)
    arrays = np.load(file)
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
    depths = torch.from_numpy(arrays["depths"])[:, None]
    return Web(images, depths, list(scenes), list(captions), list(named), key)


def evening_weights(web: Web) -> torch.Tensor:
    """(N,) sampling weights that bring rare palettes, hence rare cultures, nearer to the common ones."""
    frequency = Counter(scene.palette for scene in web.scenes)
    return torch.tensor([frequency[scene.palette] ** -0.5 for scene in web.scenes])
