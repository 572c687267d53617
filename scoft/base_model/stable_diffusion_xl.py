"""Stable Diffusion XL as it is trained: two text encoders, and a UNet that is told of a picture's size and crop.

All else is Stable Diffusion's.
"""

import dataclasses
import functools
from typing import ClassVar, Self

import torch
from torch import nn

from scoft.base_model.pipelines import check_family, pixels_of_latent
from scoft.base_model.stable_diffusion import StableDiffusion
from scoft.errors import DataError
from scoft.files import content_key
from scoft.weights import load_whole, loading, weights_key


@dataclasses.dataclass
class StableDiffusionXL(StableDiffusion):
    """The same as of Stable Diffusion, but for captions c.

    Those are (B, 78, D) from `encode_captions`: 77 tokens, each with both encoders' channels, and a row with what the
    second one pools of the caption.  `framed` adds a row of size and crop, which makes them (B, 79, D) in `predict`.
    Rows are filled up with zeros, and all have the UNet's dtype, as in diffusers' pipeline.
    """

    tokenizer_2: object
    text_encoder_2: nn.Module
    zeros_for_empty: bool  # whether guidance leads away from zeros, else from the empty caption's embedding

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    kind: ClassVar[str] = "Stable Diffusion XL"
    addition_embed_type: ClassVar[str | None] = "text_time"
    is_framed: ClassVar[bool] = True

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        revision: str | None,
        variant: str | None,
        cache_dir: str | None,
        prediction_type: str | None,
        dtype: torch.dtype,
        vae: str | None = None,
    ) -> Self:
        """As `StableDiffusion.load`.  vae: Hub id or folder of another autoencoder than the pipeline's own."""
        from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        place = {"revision": revision, "cache_dir": cache_dir}
        weights = {**place, "variant": variant}
        text = {**weights, "dtype": torch.float32}
        check_family(name_or_path, pipeline_class=cls.pipeline_class, **place)
        if vae is not None:
            with loading(vae, flag="pretrained_vae_model_name_or_path", kind="an AutoencoderKL in safetensors"):
                autoencoder = load_whole(AutoencoderKL, vae, cache_dir=cache_dir)
        with loading(name_or_path, kind="a Stable Diffusion XL pipeline in safetensors"):
            if vae is None:
                autoencoder = load_whole(AutoencoderKL, name_or_path, subfolder="vae", **weights)
            index = StableDiffusionXLPipeline.load_config(name_or_path, **place)
            model = cls(
                DDPMScheduler.from_pretrained(name_or_path, subfolder="scheduler", **place),
                CLIPTokenizer.from_pretrained(name_or_path, subfolder="tokenizer", **place),
                load_whole(CLIPTextModel, name_or_path, subfolder="text_encoder", **text),
                autoencoder,
                load_whole(UNet2DConditionModel, name_or_path, subfolder="unet", torch_dtype=dtype, **weights),
                dtype=dtype,
                tokenizer_2=CLIPTokenizer.from_pretrained(name_or_path, subfolder="tokenizer_2", **place),
                text_encoder_2=load_whole(
                    CLIPTextModelWithProjection, name_or_path, subfolder="text_encoder_2", **text
                ),
                zeros_for_empty=index.get("force_zeros_for_empty_prompt", True),
            )
        return model.ready(name_or_path, prediction_type=prediction_type)

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [self.text_encoder, self.text_encoder_2]

    def check_kind(self, name_or_path: str):
        super().check_kind(name_or_path)
        if self.dtype is torch.float16 and self.vae.config.force_upcast:
            raise DataError(
                f"fp16 is too narrow for the autoencoder of {name_or_path}, as its configuration says (force_upcast). "
                "Take bf16, or an autoencoder made for fp16: pretrained_vae_model_name_or_path "
                "madebyollin/sdxl-vae-fp16-fix",
                argument="mixed_precision",
            )
        if self.vae.config.latents_mean is not None:
            raise DataError(
                f"{name_or_path} has latents that are shifted by a mean, as the denoising here does not know them; "
                "Stable Diffusion XL's own have none",
                argument="pretrained_model_name_or_path",
            )

    # Captions

    @property
    def pooled_size(self) -> int:
        return self.text_encoder_2.config.projection_dim

    @property
    def caption_shape(self) -> tuple[int, int]:
        return self.max_tokens + 1, sum(encoder.config.hidden_size for encoder in self.text_encoders)

    @property
    def kohya_family(self) -> dict[str, str]:
        return {"ss_base_model_version": "sdxl_base_v1-0"}

    def captions_key(self) -> str:
        return content_key(*map(weights_key, self.text_encoders), self.zeros_for_empty)

    @torch.no_grad()
    def encode_captions(self, captions: list[str], *, device: torch.device) -> torch.Tensor:
        """(N, 78, D) in float32 on the CPU; the empty caption is what guidance leads away from."""
        tokens = []
        for tokenizer, encoder in zip((self.tokenizer, self.tokenizer_2), self.text_encoders):
            encoder.to(device)
            encoded = []
            for ids in self.token_ids(tokenizer, captions).split(32):
                output = encoder(ids.to(device), output_hidden_states=True)
                encoded.append((output.hidden_states[-2].cpu(), output[0].cpu()))
            encoder.to("cpu")
            of_tokens, pooled = map(torch.cat, zip(*encoded))  # what counts as pooled is the second encoder's
            tokens.append(of_tokens)
        c = torch.cat([torch.cat(tokens, dim=2), self.as_row(pooled)], dim=1)
        if self.zeros_for_empty:
            c[[caption == "" for caption in captions]] = 0
        return c

    def as_row(self, values: torch.Tensor) -> torch.Tensor:
        """(B, n) -> (B, 1, D), filled up with zeros."""
        return nn.functional.pad(values, (0, self.caption_shape[1] - values.shape[1]))[:, None]

    def framed(self, c: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        return torch.cat([c, self.as_row(frame.to(c))], dim=1)

    def ask(self, network: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        side = pixels_of_latent(self.vae.config) * z.shape[-1]  # of squares, which alone are trained on
        told = {
            "text_embeds": c[:, -2, : self.pooled_size],
            "time_ids": torch.cat([c[:, -1, :4], c.new_full((len(c), 2), side)], dim=1),
        }
        return network(z.to(self.dtype), t, c[:, :-2], added_cond_kwargs=told, return_dict=False)[0]

    # Pictures

    @functools.cached_property
    def pipeline(self):
        """As `StableDiffusion.pipeline`; it tells the UNet of pictures of the size that is asked for, uncropped."""
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config, clip_sample=False),
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pipeline_text(self, c: torch.Tensor, c_null: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "prompt_embeds": c[:, :-1],
            "pooled_prompt_embeds": c[:, -1, : self.pooled_size],
            "negative_prompt_embeds": c_null[:, :-1],
            "negative_pooled_prompt_embeds": c_null[:, -1, : self.pooled_size],
        }
