"""Stable Diffusion 1.x and 2.x as it is trained: captions and photographs in, predictions, a LoRA, pictures out.

diffusers and transformers are imported where they are used, so that a mistyped flag is answered at once.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from scoft.base_model.adapted import Adapted
from scoft.base_model.pipelines import check_family, pixels_of_latent
from scoft.errors import DataError
from scoft.files import content_key
from scoft.weights import load_whole, loading, weights_key
from scoft_losses import RecordedStepDenoiser, at_least_float32, min_snr_weights


@dataclasses.dataclass
class StableDiffusion(Adapted):
    """The frozen parts of a pipeline, what the objective asks of them, and the UNet's LoRA.

    Latents z (B, 4, h, w) are scaled as the UNet takes them; c (B, 77, D) are text embeddings; t (B,) timesteps.
    Another family of base models has the same methods and properties over parts of its own, and its captions in as
    many rows as it needs: c is (B, L, D) to all others.
    """

    noise_scheduler: object
    tokenizer: object
    text_encoder: nn.Module
    vae: nn.Module
    unet: nn.Module
    dtype: torch.dtype  # of the UNet's frozen weights

    part: ClassVar[str] = "unet"
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"  # diffusers', which draws with it
    kind: ClassVar[str] = "Stable Diffusion 1.x or 2.x"
    addition_embed_type: ClassVar[str | None] = None  # of what its UNet takes besides the text
    is_framed: ClassVar[bool] = False  # whether it is told of each photograph's size and crop, see `framed`

    def __post_init__(self):
        self.trained = self.unet
        self.compiled = False

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
    ) -> "StableDiffusion":
        """The parts of a pipeline folder or Hub id, frozen, on the CPU.  Raises DataError.

        All but the UNet are in float32: transformers keeps the checkpoint's dtype unless told otherwise.
        """
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        place = {"revision": revision, "cache_dir": cache_dir}
        weights = {**place, "variant": variant}
        check_family(name_or_path, pipeline_class=cls.pipeline_class, **place)
        with loading(name_or_path):
            model = cls(
                DDPMScheduler.from_pretrained(name_or_path, subfolder="scheduler", **place),
                CLIPTokenizer.from_pretrained(name_or_path, subfolder="tokenizer", **place),
                load_whole(CLIPTextModel, name_or_path, subfolder="text_encoder", dtype=torch.float32, **weights),
                load_whole(AutoencoderKL, name_or_path, subfolder="vae", **weights),
                load_whole(UNet2DConditionModel, name_or_path, subfolder="unet", torch_dtype=dtype, **weights),
                dtype=dtype,
            )
        return model.ready(name_or_path, prediction_type=prediction_type)

    def ready(self, name_or_path: str, *, prediction_type: str | None) -> Self:
        """The same, frozen, once it is checked; prediction_type: None leaves the model its own.  Raises DataError."""
        if prediction_type is not None:
            self.noise_scheduler.register_to_config(prediction_type=prediction_type)
        self.check_kind(name_or_path)
        for part in (*self.text_encoders, self.vae, self.unet):
            part.requires_grad_(False).eval()
        return self

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [self.text_encoder]

    def check_kind(self, name_or_path: str):
        """Raise DataError unless the objective can be computed with a model that is configured so."""
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise DataError(
                f"is epsilon or v_prediction; {name_or_path} predicts {self.prediction_type!r}",
                argument="prediction_type",
            )
        if self.prediction_type == "epsilon" and self.noise_scheduler.alphas_cumprod.min() <= 0:
            raise DataError(
                f"is v_prediction where a model has zero terminal SNR, as {name_or_path}", argument="prediction_type"
            )
        unet, vae = self.unet.config, self.vae.config
        if unet.in_channels != vae.latent_channels or unet.addition_embed_type != self.addition_embed_type:
            raise DataError(
                f"{name_or_path} is no plain text-to-image {self.kind}: its UNet takes {unet.in_channels} channels "
                f"and {unet.addition_embed_type or 'no'} embeddings besides the text",
                argument="pretrained_model_name_or_path",
            )
        if unet.time_cond_proj_dim is not None:
            raise DataError(
                f"{name_or_path} is distilled to draw without guidance, through which this trains. Train on the base "
                "model that it was made of: the LoRA loads on both",
                argument="pretrained_model_name_or_path",
            )

    @property
    def image_dtype(self) -> torch.dtype:
        """Of decoding and of distances: fp16 overflows in the VAE and in g, so there they stay in float32."""
        return torch.bfloat16 if self.dtype is torch.bfloat16 else torch.float32

    def to(self, device: torch.device):
        """Move what all updates need; the text encoder goes there and back while it encodes."""
        self.unet.to(device)
        self.vae.to(device)

    def speed_up(self, *, gradient_checkpointing: bool, xformers: bool, compile: bool):
        """Switch on what trades memory for time, or a slow start for fast updates; the UNet is on its device.

        Compiled, a GPU is given each call of the UNet as one CUDA graph, which takes batches of few shapes.
        """
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.vae.enable_gradient_checkpointing()
        if xformers:
            self.unet.enable_xformers_memory_efficient_attention()
        if compile:
            torch._dynamo.config.recompile_limit = 64  # where a graph breaks, its parts serve layers of many shapes
            self.unet.compile(dynamic=False, mode="reduce-overhead" if self.unet.device.type == "cuda" else None)
            self.compiled = True

    def ask(self, network: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return network(z.to(self.dtype), t, c, return_dict=False)[0]

    # The schedule

    @property
    def prediction_type(self) -> str:
        return self.noise_scheduler.config.prediction_type

    @property
    def num_train_timesteps(self) -> int:
        return self.noise_scheduler.config.num_train_timesteps

    def noised(self, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t (B, 4, h, w)."""
        return self.noise_scheduler.add_noise(z_0, eps, t)

    def target(self, z_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What a right prediction at z_t is: the noise, or the velocity."""
        return self.noise_scheduler.get_velocity(z_0, eps, t) if self.prediction_type == "v_prediction" else eps

    def snr_weights(self, t: torch.Tensor, *, gamma: float) -> torch.Tensor:
        """w_t (B,) of L_LDM, by the signal-to-noise ratio at t."""
        abar = self.noise_scheduler.alphas_cumprod
        return min_snr_weights(t, abar, gamma=gamma, prediction_type=self.prediction_type)

    def denoiser(self, **options) -> RecordedStepDenoiser:
        """DDIM on this schedule, and with it the factor c of the recorded step; options: the denoiser's own."""
        abar = self.noise_scheduler.alphas_cumprod
        return RecordedStepDenoiser(abar, prediction_type=self.prediction_type, **options)

    # Captions, photographs, latents

    @torch.no_grad()
    def encode_captions(self, captions: list[str], *, device: torch.device) -> torch.Tensor:
        """Text embeddings (N, 77, D) in float32 on the CPU; a caption over `max_tokens` is cut.

        The text encoder is on the device for as long as this lasts.
        """
        self.text_encoder.to(device)
        input_ids = self.token_ids(self.tokenizer, captions)
        embeddings = torch.cat([self.text_encoder(ids.to(device))[0].cpu() for ids in input_ids.split(32)])
        self.text_encoder.to("cpu")
        return embeddings

    def token_ids(self, tokenizer, captions: list[str]) -> torch.Tensor:
        """(N, max_tokens)."""
        length = {"max_length": self.max_tokens, "padding": "max_length", "truncation": True}
        return tokenizer(captions, **length, return_tensors="pt").input_ids

    def framed(self, c: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """c as `predict` takes it of an `is_framed` family: told what pictures it is about.

        frame (B, 4): `ImageTransform.frame` of each photograph, on c's device.
        """
        return c

    def too_long(self, captions: list[str]) -> list[str]:
        """Those that lose their end, since they have more than `max_tokens`."""
        lengths = [len(ids) for ids in self.tokenizer(captions, verbose=False).input_ids]
        return [caption for caption, length in zip(captions, lengths) if length > self.max_tokens]

    @property
    def max_tokens(self) -> int:
        """Of a caption, as far as the text encoder reads."""
        return self.tokenizer.model_max_length

    @property
    def caption_shape(self) -> tuple[int, int]:
        """Of a caption's embedding: tokens, channels."""
        return self.max_tokens, self.text_encoder.config.hidden_size

    @property
    def kohya_family(self) -> dict[str, str]:
        is_2 = self.unet.config.cross_attention_dim == 1024  # OpenCLIP's channels; CLIP's of 1.x are 768
        return {"ss_base_model_version": "sd_v2", "ss_v2": "True"} if is_2 else {"ss_base_model_version": "sd_v1"}

    def captions_key(self) -> str:
        """In keys of caches: what `encode_captions` depends on."""
        return weights_key(self.text_encoder)

    def photographs_key(self) -> str:
        """In keys of caches: what `encode_photographs` depends on."""
        return content_key(weights_key(self.vae), self.vae.config.scaling_factor)

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Of the latent of a square picture with sides of `resolution` pixels."""
        side = resolution // pixels_of_latent(self.vae.config)
        return self.vae.config.latent_channels, side, side

    @torch.no_grad()
    def encode_photographs(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (B, 4, h, w) of the latents of (B, 3, H, W) in [-1, 1]."""
        posterior = self.vae.encode(pixel_values.to(self.vae.device, torch.float32)).latent_dist
        scaling = self.vae.config.scaling_factor
        return posterior.mean * scaling, posterior.std * scaling

    def drop_encoder(self):
        """Free what encodes photographs: all latents are known."""
        self.vae.encoder = self.vae.quant_conv = None

    def decode_in(self, dtype: torch.dtype):
        """Set the precision of `decode`; what encodes photographs keeps its own."""
        for module in (self.vae.decoder, self.vae.post_quant_conv):
            if module is not None:
                module.to(dtype)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), about [-1, 1] and not clamped, in float32 at least; differentiable in z."""
        z = z.to(next(self.vae.decoder.parameters()).dtype) / self.vae.config.scaling_factor
        return at_least_float32(self.vae.decode(z).sample)

    # Pictures

    def pictures_key(self) -> str:
        """In keys of caches: what `draw` depends on without the LoRA, besides its arguments."""
        parts = (self.unet, self.vae.decoder, self.vae.post_quant_conv)
        weights = [weights_key(part, without="lora_") for part in parts if part is not None]
        configs = [
            {name: value for name, value in part.config.items() if not name.startswith("_")}  # but names and versions
            for part in (self.unet, self.vae, self.noise_scheduler)
        ]
        return content_key(weights, configs, str(self.dtype))

    @functools.cached_property
    def pipeline(self):
        """diffusers' own around the live parts; text arrives as embeddings, and latents leave it undecoded."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=None,
            tokenizer=None,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pipeline_text(self, c: torch.Tensor, c_null: torch.Tensor) -> dict[str, torch.Tensor]:
        """What `pipeline` is called with, for captions c and those that guidance leads away from."""
        return {"prompt_embeds": c, "negative_prompt_embeds": c_null}

    @torch.no_grad()
    def draw(
        self,
        c: torch.Tensor,
        c_null: torch.Tensor,
        *,
        seeds: Sequence[int],
        inference_steps: int,
        guidance_scale: float,
        resolution: int,
        callback=None,
    ) -> list:
        """A PIL picture for each row of c, from noise by its seed, with the LoRA as it is.

        callback: diffusers' callback_on_step_end.
        """
        from diffusers.image_processor import VaeImageProcessor

        self.cast_lora()

        def in_dtype(unet, inputs: tuple) -> tuple:  # the scheduler goes on in the float32 of the predictions
            return (inputs[0].to(self.dtype), *inputs[1:])

        with self.unet.register_forward_pre_hook(in_dtype):
            latents = self.pipeline(
                **self.pipeline_text(c, c_null),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=inference_steps,
                guidance_scale=guidance_scale,
                height=resolution,
                width=resolution,
                output_type="latent",
                callback_on_step_end=callback,
            ).images
        pictures = []
        for latent in latents:  # one by one: the decoder needs the most memory of all
            pictures += VaeImageProcessor().postprocess(self.decode(latent[None]), output_type="pil")
        return pictures
