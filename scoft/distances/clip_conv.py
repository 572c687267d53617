"""The paper's CLIPConv: the fifth feature map of a CLIP ResNet."""

from pathlib import Path

import torch

from scoft.distances.base import PerceptualDistance, import_optional


class ClipConv(PerceptualDistance):
    """The paper's CLIPConv: 1 - cosine over the channels at each place of a CLIP ResNet's fifth feature map.

    model_name_or_path: Hub id or folder of a timm model with five feature maps.

    Differs from the authors' code: under this name it compares the tokens of the last block of CLIP's ViT-B/32, with
    the cosine taken over the token axis, after ten random augmentations; no convolution, and noise in the loss.
    """

    kind = "a timm model with five feature maps"
    default_model = "timm/resnet101_clip.openai"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        timm = import_optional("timm")
        name = model_name_or_path or self.default_model
        options = {"pretrained": True, "cache_dir": cache_dir}
        source = f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}"
        timm.create_model(source, **options)  # is strict; what the file lacks, features_only leaves at random
        encoder = timm.create_model(source, **options, features_only=True, out_indices=(4,))
        config = encoder.pretrained_cfg
        super().__init__(
            encoder.to(dtype),
            size=config["input_size"][-1],
            mean=config["mean"],
            std=config["std"],
            device=device,
            dtype=dtype,
        )

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        (fifth_map,) = self.encoder(pixels)
        return fifth_map.flatten(2).mT  # (B, D, h, w) -> (B, h w, D)
