"""Frozen image encoders that metrics compare pictures by: their own preprocessing, and features of no fixed length.

Not scoft.distances, though two models are the same: those are for losses, take pixels with a gradient, squash them to
a square and return unit vectors.  These see a picture as their own library shows it to them, as the metrics' inventors
did.  DreamSim alone does the same in both, so its encoder is the distance's.
"""

import hashlib
import io
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scoft.distances import load_distance
from scoft.errors import DataError
from scoft.files import read_regular
from scoft.weights import encoder_key, load_whole


logger = logging.getLogger(__name__)


class Encoder:
    """Features (B, D) of PIL pictures; a subclass loads the model. `sha256` is of its weights."""

    hashed_as: str  # part of `sha256`, by which features are kept and numbers compared: it stays for good
    default: str | None  # the place where it is looked for unless another is given

    def __init__(self, place: str, model: torch.nn.Module, processor: Callable | None, *, device: str):
        self.place, self.model, self.processor, self.device = place, model.eval().to(device), processor, device
        self.sha256 = encoder_key(model, kind=self.hashed_as)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return self.features(inputs["pixel_values"])


class PretrainedEncoder(Encoder):
    """A model of transformers behind its own processor."""

    unused: tuple[str, ...] = ()

    def __init__(self, place: str, *, device: str, cache_dir: str | None, options: Mapping[str, object]):
        from transformers import AutoModel, AutoProcessor

        model = load_whole(AutoModel, place, unused=self.unused, dtype=torch.float32, cache_dir=cache_dir)
        super().__init__(place, model, AutoProcessor.from_pretrained(place, cache_dir=cache_dir), device=device)


class ClipEncoder(PretrainedEncoder):
    """Projected image and text features of a `CLIPModel`; ViT-B/32, as in CLIPScore's own code."""

    hashed_as = "Clip"
    default = "openai/clip-vit-base-patch32"

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, D) of prompts, which end where the tokenizer's limit is."""
        limit = self.model.config.text_config.max_position_embeddings
        words = self.processor(
            text=list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=limit
        ).to(self.device)
        return self.model.get_text_features(**words).pooler_output


class DinoEncoder(PretrainedEncoder):
    """The CLS token of DINO (ViT-S/16), the metric's in DreamBooth."""

    hashed_as = "Vit"
    default = "facebook/dino-vits16"
    unused = ("pooler.",)  # which the Hub's checkpoint of DINO lacks

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class DinoV2Encoder(DinoEncoder):
    """The CLS token of DINOv2, of the middle of the picture, as its processor crops it."""

    hashed_as = "DinoV2"
    default = "facebook/dinov2-base"


class DreamSimEncoder(Encoder):
    """The embedding of the distance `dreamsim`; its place is the dreamsim package's cache folder."""

    hashed_as = "DreamSim"
    default = None

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, options: Mapping[str, object]):
        distance = load_distance(
            "dreamsim",
            model_name_or_path=place,
            device=device,
            cache_dir=cache_dir,
            flags=("--encoder", "--encoder dreamsim"),
            **options,
        )
        super().__init__(f"{place or 'dreamsim'} ({options['dreamsim_type']})", distance, None, device=device)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.cat([self.model.embed(as_pixels(picture).to(self.device))[:, 0] for picture in pictures])


class InceptionEncoder(Encoder):
    """KID's usual 2048 features: TensorFlow's Inception of 2015-12-05, by torch-fidelity, from a local file.

    Nothing is downloaded: clean-fid and torch-fidelity fetch it unverified and unpickle it.  The file is read once,
    with weights_only; torch-fidelity's own torch.load, which could run anything, gets what was found in it, and
    `sha256` is the file's.
    """

    hashed_as = "Inception"
    default = None
    usual = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # sha256 of torch-fidelity's file

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, options: Mapping[str, object]):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(f"{error}; pip install torch-fidelity") from error

        if place is None:
            raise OSError(
                f"its weights are never downloaded. Fetch {URL_INCEPTION_V3} (96 MB, sha256 {self.usual}) and give "
                "the file: --encoder inception=FILE"
            )
        content, checked = read_regular(Path(place)), io.BytesIO()
        torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), checked)
        checked.seek(0)
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=checked)
        super().__init__(place, model, None, device=device)
        self.sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 != self.usual:
            logger.warning("%s is not the usual Inception (sha256 %s): KID is of its own kind.", place, self.usual)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        bytes_ = [torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(self.device) for picture in pictures]
        return torch.cat([self.model(each)[0] for each in bytes_])


ENCODERS: dict[str, type[Encoder]] = {
    "inception": InceptionEncoder,
    "clip": ClipEncoder,
    "dino": DinoEncoder,
    "dinov2": DinoV2Encoder,
    "dreamsim": DreamSimEncoder,
}


class Encoders:
    """The rows of ENCODERS, each loaded when it is first asked for, from its own place or one of `places`.

    options: of scoft.distances.distance_options.
    """

    def __init__(
        self, places: Mapping[str, str], *, device: str, cache_dir: str | None, options: Mapping[str, object]
    ):
        self.places = places
        self.common = {"device": device, "cache_dir": cache_dir, "options": options}
        self.loaded: dict[str, Encoder] = {}

    def load(self, name: str) -> Encoder:
        """The encoder of this name. Raises DataError, which says how to replace it."""
        if name not in self.loaded:
            place = self.places.get(name, ENCODERS[name].default)
            try:
                self.loaded[name] = ENCODERS[name](place, **self.common)
            except (OSError, ImportError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
                source = f" from {place}" if place else ""
                raise DataError(
                    f"the encoder {name} cannot be loaded{source}: {error}\nGive another with --encoder {name}=PLACE, "
                    "or leave out what needs it: --metrics, --features, --diversity_features"
                ) from error
        return self.loaded[name]


def as_pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
