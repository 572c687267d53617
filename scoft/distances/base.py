"""What all perceptual distances share: frozen features of two images, and 1 - cosine of them."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from scoft_losses import at_least_float32


class PerceptualDistance(nn.Module, ABC):
    """S(x, y): how unlike two images are to a frozen encoder, as 1 - cosine of its features.

    forward(x, y): both (B, 3, H, W) floats in [-1, 1]; returns (B,): 0 for identical images, larger is less alike,
    2 at most.  Differentiable in x, deterministic, always frozen and in eval mode, indifferent to autocast.
    Its halves are `embed` and `compare`, so that the features of constant images can be computed once.

    A subclass loads its encoder, says in `features` what is compared, and in `kind` and `default_model` what it loads.
    All of them are 1 - cosine, so one margin m of equation 4 means the same for each.  The paper's value is lost.
    With `default_margin` L_C sees most negatives that a filter has left: in the pocket world, where they are 0.26 or
    more from the photograph, it is 0 on 91, 76, 10 and 1 % of its updates with margins of 0.05, 0.15, 0.3 and 1, of
    which the last is the authors' reading, without a hinge.  What the judge finds right tells none of them from
    another (`benchmarks/results/claims_settings.json`).
    """

    kind: ClassVar[str]  # of model, for messages
    default_model: ClassVar[str]
    default_margin = 0.3

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.encoder = encoder
        self.size = size
        self.dtype = dtype
        # [-1, 1] -> [0, 1] -> (pixel - mean) / std, as one scale and one shift for each colour.
        mean, std = torch.tensor([mean, std]).view(2, 3, 1, 1)
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.to(device).requires_grad_(False).eval()

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What is compared: (B, P, D) of normalised pixels (B, 3, size, size); P places or tokens of D channels."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.compare(self.embed(x), self.embed(y))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, P, D), float32 at least, of images (B, 3, H, W) in [-1, 1] of any size.

        Images are squashed to the encoder's square and not clamped: at a pixel beyond [-1, 1] a clamp would erase the
        gradient that pulls it back.  Differs from the authors' code: it clamps for CLIP and DINO, and resizes for
        DreamSim without antialiasing, then crops.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"a perceptual distance takes images of shape (B, 3, H, W), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True)
            pixels = x * self.scale + self.shift
            return F.normalize(at_least_float32(self.features(pixels.to(self.dtype))), dim=-1)

    def compare(self, f_x: torch.Tensor, f_y: torch.Tensor) -> torch.Tensor:
        """1 - cosine, averaged over the P places: (..., P, D) and (..., P, D), broadcast, to (...).

        Written as half the squared distance of unit vectors, it is exactly 0 for identical images; even where a ReLU
        left a place without any feature, of which 1 - cosine would say 1.
        """
        return 0.5 * (f_x - f_y).square().sum(-1).mean(-1)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode, whatever the model around it does: dropout would put noise into S."""
        return super().train(False)


def pixels_of_processor(name: str, *, cache_dir: str | None) -> dict[str, int | Sequence[float]]:
    """The square a transformers encoder sees, and the mean and std of its normalisation."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(name, cache_dir=cache_dir)
    square = getattr(processor, "crop_size", None) or processor.size
    return {"size": square["height"], "mean": processor.image_mean, "std": processor.image_std}


def import_optional(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this distance needs {package}, which cannot be imported ({error}): pip install {package}"
        ) from error
