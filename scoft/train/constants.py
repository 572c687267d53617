"""What never changes in a run, computed once: text embeddings, latents, features of images; and batches made of it.

With `precompute_dir` each lies in a file there, and serves later runs whose key is the same.
"""

import dataclasses
import logging
from pathlib import Path

from scoft.launch import progress

import torch

from scoft.base_model import StableDiffusion
from scoft.dataset import CulturalDataset
from scoft.distances.base import PerceptualDistance
from scoft.files import cached_tensors, content_key
from scoft.images import ImageTransform
from scoft.weights import weights_key


logger = logging.getLogger(__name__)


@dataclasses.dataclass
class ImageFeatures:
    """Features (1 + K, P, D) of a photograph and its K negatives, computed at first use, one row at a time.

    A row is always embedded alone, so that its features do not depend on when they are asked for: a resumed run sees
    the same bits.
    """

    dataset: CulturalDataset
    _: dataclasses.KW_ONLY
    transform: ImageTransform
    distance: PerceptualDistance
    device: torch.device
    cache: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def embed(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.distance.embed(to_device(torch.stack(images), self.device))

    def __call__(self, row: int, flip: int) -> torch.Tensor:
        """On the device; the cache itself lies in the host's memory, pinned where that spares the host a wait."""
        key = f"{row}.{flip}"
        if key not in self.cache:
            images = [self.dataset.image(row), *self.dataset.negatives(row)]
            features = self.embed([self.transform(image, flip=bool(flip)) for image in images]).cpu()
            self.cache[key] = features.pin_memory() if self.device.type == "cuda" else features
        return to_device(self.cache[key], self.device)

    def precompute(self, path: Path, *, flips: tuple[bool, ...]):
        """Fill the cache from a file, made now if its key differs."""
        keys = [(row, int(flip)) for row in range(len(self.dataset)) for flip in flips]
        self.cache = cached_tensors(
            path,
            key=content_key(
                "features",
                self.dataset.fingerprint,
                self.transform,
                flips,
                type(self.distance).__name__,
                weights_key(self.distance),
            ),
            compute=lambda: {f"{row}.{flip}": self(row, flip).cpu() for row, flip in progress(keys, "Features")},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constants:
    """What the updates of a run find computed, and how a batch is assembled from it."""

    model: StableDiffusion
    caption_index: dict[str, int]  # caption -> its row in `text`
    text: torch.Tensor  # (N, 77, D), the embeddings of all captions, on the device
    latents: dict[str, torch.Tensor] | None  # see `cache_latents`; None: each batch encodes its own photographs
    features: ImageFeatures | None  # None: no loss is on images

    @classmethod
    def compute(
        cls,
        dataset: CulturalDataset,
        *,
        more_captions: list[str],
        transform: ImageTransform,
        model: StableDiffusion,
        distance: PerceptualDistance | None,
        device: torch.device,
        flips: tuple[bool, ...],
        one_crop: bool,
        keep_latents: bool,
        precompute_dir: Path | None,
    ) -> "Constants":
        """Compute all that the dataset and its transform leave constant; what encodes it leaves the device.

        distance: None where no loss is on images.  one_crop: photographs are always cropped alike; else neither
        latents nor features of images are constant.
        """
        captions = {"", *more_captions, *(text for row in dataset.captions + dataset.blip_captions for text in row)}
        captions, common = sorted(captions), {"device": device, "precompute_dir": precompute_dir}
        text = cache_text(captions, model=model, **common).to(device, model.dtype)
        latents = features = None
        if not one_crop:
            logger.info("--center_crop is off, so each crop is a new one: latents and image features are not cached.")
        elif keep_latents:
            latents = cache_latents(dataset, transform=transform, model=model, flips=flips, **common)
            model.drop_encoder()
        if distance is not None:
            features = ImageFeatures(dataset, transform=transform, distance=distance, device=device)
            if precompute_dir and one_crop:
                features.precompute(precompute_dir / "features.safetensors", flips=flips)
        caption_index = {caption: i for i, caption in enumerate(captions)}
        return cls(model=model, caption_index=caption_index, text=text, latents=latents, features=features)

    def embed(self, captions: list[str]) -> torch.Tensor:
        """(B, 77, D), of captions among those known."""
        return self.text[[self.caption_index[caption] for caption in captions]]

    def assemble(self, batch: dict, *, with_images: bool) -> dict:
        """A collated batch as `training_losses` takes it; `with_images` where the losses on images are due."""
        device = self.text.device
        names = ("row", "flip", "eps", "posterior_noise", "caption")
        on_device = {name: to_device(batch[name], device) for name in names}
        if self.latents is None:
            mean, std = self.model.encode_photographs(batch["photograph"])
        else:
            mean, std = (self.latents[name][on_device["flip"], on_device["row"]] for name in ("mean", "std"))
        assembled = {
            "z_0": mean + std * on_device["posterior_noise"],
            "eps": on_device["eps"],
            "t": batch["t"],
            "recorded_u": batch["recorded_u"],
            "c_ccub": self.text[on_device["caption"]],
            "c_null": self.text[self.caption_index[""]].expand(len(mean), -1, -1),
        }
        counts = torch.tensor([len(captions) for captions in batch["blip_captions"]])
        if counts.any():
            blip_captions = torch.tensor([caption for captions in batch["blip_captions"] for caption in captions])
            assembled["c_blip"] = self.text[to_device(blip_captions, device)]
            assembled["blip_rows"] = torch.repeat_interleave(counts)
        return assembled | (self.image_features(batch) if with_images else {})

    def image_features(self, batch: dict) -> dict[str, torch.Tensor]:
        """f_pos (B, P, D), f_neg (B, K, P, D) and is_negative (B, K) of a collated batch."""
        if "negatives" in batch:
            images = [[photograph, *rest] for photograph, rest in zip(batch["photograph"], batch["negatives"])]
            rows = [self.features.embed(row) for row in images]
        else:
            rows = [self.features(row, flip) for row, flip in zip(batch["row"].tolist(), batch["flip"].tolist())]
        f_neg, is_negative = pad_rows([row[1:] for row in rows])
        return {"f_pos": torch.stack([row[0] for row in rows]), "f_neg": f_neg, "is_negative": is_negative}


def cache_text(
    captions: list[str], *, model: StableDiffusion, device: torch.device, precompute_dir: Path | None
) -> torch.Tensor:
    """Text embeddings (N, 77, D) of the run's captions, in float32 on the CPU.

    Captions longer than the model reads are cut, counted and warned of.
    """
    if too_long := model.too_long(captions):
        logger.warning(
            f"{len(too_long)} of {len(captions)} captions are longer than {model.max_tokens} tokens "
            f"and lose their end; the first: {too_long[0]}"
        )
    embeddings = cached_tensors(
        precompute_dir and precompute_dir / "text.safetensors",
        key=precompute_dir and content_key("text", captions, model.captions_key()),
        compute=lambda: {"text": model.encode_captions(captions, device=device)},
    )
    return embeddings["text"]


def cache_latents(
    dataset: CulturalDataset,
    *,
    transform: ImageTransform,
    model: StableDiffusion,
    flips: tuple[bool, ...],
    device: torch.device,
    precompute_dir: Path | None,
) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of every photograph's latents, each (flips, N, 4, h, w) on the device."""

    def compute() -> dict[str, torch.Tensor]:
        moments = [
            model.encode_photographs(transform(dataset.image(row), flip=flip)[None])
            for flip in flips
            for row in progress(range(len(dataset)), "Latents", leave=False)
        ]
        return {
            name: torch.cat(parts).unflatten(0, (len(flips), len(dataset))).cpu()
            for name, parts in zip(("mean", "std"), zip(*moments))
        }

    latents = cached_tensors(
        precompute_dir and precompute_dir / "latents.safetensors",
        key=precompute_dir and content_key("latents", dataset.image_hashes, transform, flips, model.photographs_key()),
        compute=compute,
    )
    return {name: tensor.to(device) for name, tensor in latents.items()}


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device that the host does not wait for."""
    return tensor.to(device, non_blocking=True)


def pad_rows(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (K_b, ...) tensors of different K_b into (B, K, ...) zeros, and a mask (B, K) of what is real."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, to_device(torch.arange(padded.shape[1]) < lengths[:, None], padded.device)
