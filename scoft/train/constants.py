"""What never changes in a run, computed once: latents, features of images, text; and batches made of it.

With `precompute_dir` each lies in a file there, and serves later runs whose key is the same.
"""

import dataclasses
import logging
from pathlib import Path

from scoft.launch import progress

import torch
from PIL import Image

from scoft.base_model import StableDiffusion
from scoft.dataset import CulturalDataset
from scoft.distances.base import PerceptualDistance
from scoft.files import cached_tensors, content_key
from scoft.images import ImageTransform
from scoft.train.text import Text, embed_captions
from scoft.weights import weights_key


logger = logging.getLogger(__name__)

MAX_KEPT = 2**29  # bytes of decoded images: all photographs of 680 rows at 512 pixels
MAX_PIXELS, MAX_PHOTOGRAPHS = 2**20, 16  # that are encoded in one call: four photographs at 512 pixels


@dataclasses.dataclass
class Squares:
    """The images of a dataset's rows as the transform cuts them, kept for their next use as far as there is room."""

    dataset: CulturalDataset
    transform: ImageTransform
    room: int = MAX_KEPT  # bytes that are left
    kept: dict[int, list[Image.Image]] = dataclasses.field(default_factory=dict)

    def __call__(self, row: int, *, negatives: bool, again: bool) -> list[Image.Image]:
        """The photograph and, if asked for, the negatives; again: whether somebody is still to ask for them."""
        squares = self.kept.pop(row, [])
        self.room += self.bytes_of(squares)
        if not squares:
            squares = [self.transform.square(self.dataset.image(row))]
        if negatives and len(squares) == 1:
            squares += [self.transform.square(image) for image in self.dataset.negatives(row)]
        if again and self.bytes_of(squares) <= self.room:
            self.room -= self.bytes_of(squares)
            self.kept[row] = squares
        return squares

    def bytes_of(self, squares: list[Image.Image]) -> int:
        return 3 * self.transform.resolution**2 * len(squares)


@dataclasses.dataclass
class ImageFeatures:
    """Features (1 + K, P, D) of a photograph and its K negatives, computed at first use, one row at a time.

    A row is always embedded alone, so that its features do not depend on when they are asked for: a resumed run sees
    the same bits.
    """

    squares: Squares
    _: dataclasses.KW_ONLY
    distance: PerceptualDistance
    device: torch.device
    flips: tuple[bool, ...]  # that are asked for
    cache: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def embed(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.distance.embed(to_device(torch.stack(images), self.device))

    def __call__(self, row: int, flip: int) -> torch.Tensor:
        """On the device; the cache itself lies in the host's memory, pinned where that spares the host a wait."""
        key = f"{row}.{flip}"
        if key not in self.cache:
            others = {f"{row}.{int(other)}" for other in self.flips} - {key}
            images = self.squares(row, negatives=True, again=bool(others - self.cache.keys()))
            features = self.embed([self.squares.transform(image, flip=bool(flip)) for image in images]).cpu()
            self.cache[key] = features.pin_memory() if self.device.type == "cuda" else features
        return to_device(self.cache[key], self.device)

    def precompute(self, path: Path):
        """Fill the cache from a file, made now if its key differs."""
        dataset, transform = self.squares.dataset, self.squares.transform
        keys = [(row, int(flip)) for row in range(len(dataset)) for flip in self.flips]
        self.cache = cached_tensors(
            path,
            key=content_key(
                "features",
                dataset.fingerprint,
                transform,
                self.flips,
                type(self.distance).__name__,
                weights_key(self.distance),
            ),
            compute=lambda: {f"{row}.{flip}": self(row, flip).cpu() for row, flip in progress(keys, "Features")},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constants:
    """What the updates of a run find computed, and how a batch is assembled from it."""

    model: StableDiffusion
    caption_index: dict[str, int]  # caption -> its number in `text`
    text: Text  # numbers of captions -> their embeddings
    c_null: torch.Tensor  # (1, L, D), of no words
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
        text_limit: float,
    ) -> "Constants":
        """Compute all that the dataset and its transform leave constant; what encodes it leaves the device.

        distance: None where no loss is on images.  one_crop: photographs are always cropped alike; else neither
        latents nor features of images are constant.  text_limit: gigabytes of text that may lie on the device.
        """
        captions = {"", *more_captions, *(text for row in dataset.captions + dataset.blip_captions for text in row)}
        captions, common = sorted(captions), {"device": device, "precompute_dir": precompute_dir}
        text = embed_captions(captions, model=model, limit=text_limit, **common)
        latents = features = None
        squares = Squares(dataset, transform)
        if not one_crop:
            logger.info("--center_crop is off, so each crop is a new one: latents and image features are not cached.")
        elif keep_latents:
            again = distance is not None  # the losses on images take features of the same photographs
            latents = cache_latents(squares, model=model, flips=flips, again=again, **common)
            model.drop_encoder()
        if distance is not None:
            features = ImageFeatures(squares, distance=distance, device=device, flips=flips)
            if precompute_dir and one_crop:
                features.precompute(precompute_dir / "features.safetensors")
        caption_index = {caption: i for i, caption in enumerate(captions)}
        c_null = text(torch.tensor([caption_index[""]]))
        constant = {"caption_index": caption_index, "text": text, "c_null": c_null}
        return cls(model=model, latents=latents, features=features, **constant)

    def embed(self, captions: list[str]) -> torch.Tensor:
        """(B, L, D), of captions among those known."""
        return self.text(torch.tensor([self.caption_index[caption] for caption in captions]))

    def assemble(self, batch: dict, *, with_images: bool) -> dict:
        """A collated batch as `training_losses` takes it; `with_images` where the losses on images are due."""
        device = self.c_null.device
        names = ("row", "flip", "eps", "posterior_noise")
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
            "c_ccub": self.text(batch["caption"]),
            "c_null": self.c_null.expand(len(mean), -1, -1),
        }
        counts = torch.tensor([len(captions) for captions in batch["blip_captions"]])
        if counts.any():
            blip_captions = torch.tensor([caption for captions in batch["blip_captions"] for caption in captions])
            assembled["c_blip"] = self.text(blip_captions)
            assembled["blip_rows"] = torch.repeat_interleave(counts)
        if "frame" in batch:  # told alike in every branch
            frame = to_device(batch["frame"], device)
            frames = {"c_ccub": frame, "c_null": frame}
            if "c_blip" in assembled:
                frames["c_blip"] = frame[to_device(assembled["blip_rows"], device)]
            assembled |= {name: self.model.framed(assembled[name], each) for name, each in frames.items()}
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


def cache_latents(
    squares: Squares,
    *,
    model: StableDiffusion,
    flips: tuple[bool, ...],
    again: bool,
    device: torch.device,
    precompute_dir: Path | None,
) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of every photograph's latents, each (flips, N, 4, h, w) on the device.

    Rows share a call by their numbers alone, so that a resumed run sees the same bits.
    again: whether somebody is still to ask for the photographs.
    """
    rows, transform = range(len(squares.dataset)), squares.transform
    per_call = max(1, min(MAX_PHOTOGRAPHS, MAX_PIXELS // transform.resolution**2))

    def compute() -> dict[str, torch.Tensor]:
        moments: dict[bool, list] = {flip: [] for flip in flips}
        for start in progress(range(0, len(rows), per_call), "Latents", leave=False):
            chunk = rows[start : start + per_call]
            photographs = [squares(row, negatives=False, again=again)[0] for row in chunk]
            for flip in flips:
                pixels = torch.stack([transform(photograph, flip=flip) for photograph in photographs])
                moments[flip].append(model.encode_photographs(pixels))
        means, stds = zip(*(map(torch.cat, zip(*moments[flip])) for flip in flips))
        # as from a file, whatever a call's layout was: sums over another layout differ in their last bits
        return {"mean": torch.stack(means).cpu().contiguous(), "std": torch.stack(stds).cpu().contiguous()}

    known = precompute_dir and (squares.dataset.image_hashes, transform, flips, model.photographs_key())
    latents = cached_tensors(
        precompute_dir and precompute_dir / "latents.safetensors",
        key=precompute_dir and content_key("latents", *known),
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
