"""The image tokens of BLIP-2's Q-Former."""

import torch

from scoft.distances.base import PerceptualDistance, pixels_of_processor
from scoft.weights import load_whole


class Blip2(PerceptualDistance):
    """1 - cosine of each image token of BLIP-2's Q-Former, averaged over the tokens.

    model_name_or_path: Hub id or folder of a `Blip2ForImageTextRetrieval` and its image processor.

    Differs from the authors' code: it takes the mean squared difference of these tokens, unbounded.
    """

    kind = "a BLIP-2 retrieval model in safetensors with its image processor"
    default_model = "Salesforce/blip2-itm-vit-g"
    # Images never meet a text here: what is kept are the vision model, the query tokens and the Q-Former.
    unused = ("embeddings", "vision_projection", "text_projection", "itm_head")

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        from transformers import Blip2ForImageTextRetrieval

        name = model_name_or_path or self.default_model
        encoder = load_whole(Blip2ForImageTextRetrieval, name, unused=self.unused, dtype=dtype, cache_dir=cache_dir)
        pixels = pixels_of_processor(name, cache_dir=cache_dir)
        for part in self.unused:
            delattr(encoder, part)
        super().__init__(encoder, **pixels, device=device, dtype=dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        image = self.encoder.vision_model(pixels).last_hidden_state
        queries = self.encoder.query_tokens.expand(len(pixels), -1, -1)
        return self.encoder.qformer(query_embeds=queries, encoder_hidden_states=image.to(queries)).last_hidden_state
