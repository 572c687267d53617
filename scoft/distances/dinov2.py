"""DINOv2's class token."""

import torch

from scoft.distances.base import PerceptualDistance, pixels_of_processor
from scoft.weights import load_whole


class DinoV2(PerceptualDistance):
    """1 - cosine of DINOv2's class token after the last layer norm.

    model_name_or_path: Hub id or folder of a transformers model with a class token first, and its image processor.

    Differs from the authors' code: it takes the mean squared difference of all tokens before that norm, unbounded.
    """

    kind = "a DINOv2 model in safetensors with its image processor"
    default_model = "facebook/dinov2-base"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        from transformers import AutoModel

        name = model_name_or_path or self.default_model
        encoder = load_whole(AutoModel, name, dtype=dtype, cache_dir=cache_dir)
        pixels = pixels_of_processor(name, cache_dir=cache_dir)
        super().__init__(encoder, **pixels, device=device, dtype=dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixels).last_hidden_state[:, :1]
