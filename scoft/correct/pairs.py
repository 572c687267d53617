"""What a preference is fitted on: latents of photographs and of their negatives under one caption, and all chance.

No state is kept: a draw is a function of the seed, its purpose, the update and the place in it, so a resumed fit sees
what the fit that was stopped would have seen.
"""

import dataclasses
from collections.abc import Sequence

from scoft.launch import progress

import torch

from scoft.base_model import StableDiffusion
from scoft.dataset import CulturalDataset
from scoft.errors import DataError
from scoft.images import ImageTransform
from scoft.randomness import row_of_entry, stable_generator


PER_CALL = 8  # pictures that are encoded in one call


@dataclasses.dataclass(frozen=True)
class Latents:
    """Mean and standard deviation, each (4, h, w), of a picture's latent."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Noised:
    """A batch: latents z at t, the right predictions there, and the text embeddings of their captions."""

    z: torch.Tensor  # (B, 4, h, w)
    t: torch.Tensor  # (B,)
    c: torch.Tensor  # (B, 77, D)
    target: torch.Tensor  # (B, 4, h, w)

    def __add__(self, other: "Noised") -> "Noised":
        """The rows of both, these first."""
        parts = ((getattr(each, field.name) for each in (self, other)) for field in dataclasses.fields(Noised))
        return Noised(*map(torch.cat, map(tuple, parts)))


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of a dataset, by what they are for."""

    held_out: tuple[int, ...]  # with negatives, on which the fit is tried
    fitted: tuple[int, ...]  # all others
    paired: tuple[int, ...]  # those of them with negatives

    @classmethod
    def of(cls, dataset: CulturalDataset, *, seed: int, share: float) -> "Split":
        """Hold out a share of the rows with negatives. Raises DataError where none would be left on a side."""
        with_negatives = [row for row, count in enumerate(dataset.num_negatives) if count]
        order = torch.randperm(len(with_negatives), generator=stable_generator(seed, "held out")).tolist()
        held_out = tuple(sorted(with_negatives[i] for i in order[: round(share * len(order))]))
        paired = tuple(row for row in with_negatives if row not in held_out)
        if not held_out or not paired:
            raise DataError(
                f"{share:g} of {len(with_negatives)} rows with negatives leaves {len(held_out)} to be held out and "
                f"{len(paired)} to be fitted on, and each needs one: take another share, or more rows with negatives",
                argument="held_out_share",
            )
        return cls(held_out, tuple(row for row in range(len(dataset)) if row not in held_out), paired)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Photographs, and the negatives of those that have some, as latents."""

    model: StableDiffusion
    device: torch.device
    photographs: list[Latents]
    negatives: list[list[Latents]]
    captions: list[list[str]]
    text: dict[str, torch.Tensor]  # caption -> its embedding (77, D), on the device
    split: Split

    @classmethod
    def of(
        cls, dataset: CulturalDataset, split: Split, *, model: StableDiffusion, resolution: int, device: torch.device
    ) -> "Pairs":
        """Encode a dataset's images at `resolution` pixels."""
        rows, transform = range(len(dataset)), ImageTransform(resolution)
        encoded = [
            encode([dataset.image(row), *dataset.negatives(row)], model=model, transform=transform)
            for row in progress(rows, "Encoding images", leave=False)
        ]
        captions = sorted({caption for row in dataset.captions for caption in row})
        embeddings = model.encode_captions(captions, device=device).to(device, model.dtype)
        return cls(
            model=model,
            device=device,
            photographs=[each[0] for each in encoded],
            negatives=[each[1:] for each in encoded],
            captions=dataset.captions,
            text=dict(zip(captions, embeddings)),
            split=split,
        )

    def photograph(self, row: int, draw) -> Latents:
        return self.photographs[row]

    def negative(self, row: int, draw) -> Latents:
        """One of a row's negatives, by chance."""
        which = torch.randint(len(self.negatives[row]), (), generator=draw("negative"))
        return self.negatives[row][which]

    def batch(self, update: int, *, size: int, seed: int, of: str) -> Noised:
        """What `update` is fitted on. of: `photographs`, `negatives`, or `their photographs`, of the rows of those."""
        rows, purpose = (self.split.fitted, "positive") if of == "photographs" else (self.split.paired, "negative")
        drawn = []
        for place in range(size):

            def draw(what: str, place: int = place) -> torch.Generator:
                return stable_generator(seed, f"{purpose} {what}", update, place)

            row = rows[row_of_entry(update * size + place, num_rows=len(rows), seed=seed)]
            latents = (self.negative if of == "negatives" else self.photograph)(row, draw)
            which = torch.randint(len(self.captions[row]), (), generator=draw("caption"))
            t = torch.randint(1, self.model.num_train_timesteps, (), generator=draw("timestep"))
            shape = latents.mean.shape
            eps, posterior = (torch.randn(shape, generator=draw(what)) for what in ("noise", "posterior"))
            drawn.append((latents.mean + latents.std * posterior, eps, t, self.captions[row][which]))
        z_0, eps, t = (torch.stack(column) for column in list(zip(*drawn))[:3])
        return self.noised(z_0, eps, t, [caption for *_, caption in drawn])

    def noised(self, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, captions: Sequence[str]) -> Noised:
        """z_0 and eps (B, 4, h, w), t (B,), on the CPU."""
        z_0, eps, t = (each.to(self.device) for each in (z_0, eps, t))
        c = torch.stack([self.text[caption] for caption in captions])
        model = self.model
        return Noised(model.noised(z_0, eps, t).to(model.dtype), t, c, model.target(z_0, eps, t))


def encode(images: list, *, model: StableDiffusion, transform: ImageTransform) -> list[Latents]:
    """Latents of PIL pictures, on the CPU."""
    found = []
    for start in range(0, len(images), PER_CALL):
        pixels = torch.stack([transform(image) for image in images[start : start + PER_CALL]])
        mean, std = model.encode_photographs(pixels)
        found += [Latents(*each) for each in zip(mean.cpu(), std.cpu())]
    return found
