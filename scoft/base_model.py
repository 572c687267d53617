"""The base model, Stable Diffusion 1.x or 2.x: the one room that knows its classes, its latents and its schedule.

    whole pipelines     found on the Hub or in a folder, their licence, loaded whole or not at all
    StableDiffusion     what is trained: captions and photographs in, predictions, a LoRA, pictures out
    LoRAs in files      read, and loaded into a pipeline whole or not at all

diffusers and transformers are imported where they are used, so that a mistyped flag is answered at once.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from scoft.errors import DataError
from scoft.files import content_key, read_front_matter
from scoft.hub import MAX_SAID, endpoint, hub_commit
from scoft.lora_folder import CARD_FILE, KOHYA_FILE, LORA_FILE, write_safetensors
from scoft.weights import load_whole, loading, weights_key
from scoft_losses import RecordedStepDenoiser, at_least_float32, min_snr_weights


logger = logging.getLogger(__name__)

# Licences of the base models that most use, where their own pages cannot be read: a part of the id -> licence.
BASE_LICENSES = {"stable-diffusion-v1": "creativeml-openrail-m", "stable-diffusion-2": "openrail++"}


# ---------------------------------------------------------------------------------------------------------------------
# Whole pipelines
# ---------------------------------------------------------------------------------------------------------------------


def base_commit(name_or_path: str, *, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit of the base model on the Hub, from which all of its parts are then loaded; None for a folder."""
    if Path(name_or_path).is_dir():
        if revision is not None:
            raise DataError(
                f"{revision} is of a Hub model, but {name_or_path} is a folder; leave it out", argument="revision"
            )
        return None
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return hub_commit(name_or_path, revision=revision, file="model_index.json", cache_dir=cache_dir)
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(
            f"{name_or_path} is no folder, and {endpoint()} has no such pipeline that can be read: {error}",
            argument="pretrained_model_name_or_path",
        ) from error


def license_of(base_model: str, *, revision: str | None, cache_dir: str | os.PathLike | None) -> dict[str, str]:
    """`license`, and `license_name` and `license_link` where there are such, of a base model; empty where unknown.

    From the README of its folder, or of its Hub repository or cached copy, else by its name.
    """
    from huggingface_hub import hf_hub_download

    readme, said = Path(base_model, CARD_FILE), {}
    by_name = "Its licence is told by its name."
    if revision is not None:
        try:
            readme = Path(hf_hub_download(base_model, CARD_FILE, revision=revision, cache_dir=cache_dir))
        except OSError:
            logger.info("%s has no README that can be read now. %s", base_model, by_name)
    if readme.is_file():
        try:
            said = read_front_matter(readme)
        except DataError as error:
            logger.warning("%s %s", error, by_name)
    told = {key: said.get(key) for key in ("license", "license_name", "license_link")}
    found = {key: value for key, value in told.items() if isinstance(value, str) and len(value) <= MAX_SAID}
    named = [license for part, license in BASE_LICENSES.items() if part in base_model]
    return found or ({"license": named[0]} if named else {})


def own_resolution(name_or_path: str, *, commit: str | None, cache_dir: str | None) -> int:
    """Pixels of what a pipeline draws unasked. Raises DataError."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    place = {"revision": commit, "cache_dir": cache_dir}
    with loading(name_or_path):
        latent = UNet2DConditionModel.load_config(name_or_path, subfolder="unet", **place)["sample_size"]
        vae = AutoencoderKL.load_config(name_or_path, subfolder="vae", **place)
    return latent * pixels_of_latent(vae)


def pixels_of_latent(vae_config: Mapping) -> int:
    """Of a picture's side, to each of its latent's: every level of the autoencoder but the last halves it."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def load_pipeline(pipeline_class, name_or_path: str, *, revision=None, variant=None, cache_dir=None, **parts):
    """`pipeline_class.from_pretrained(name_or_path, **parts)` of diffusers, each of its models by `load_whole`.

    parts: those that are not loaded but given, or None to leave one out.  Each model has the dtype that its library
    chooses, so `.to(device, dtype)` follows.  Raises OSError, as diffusers does.
    """
    place = {"revision": revision, "cache_dir": cache_dir}
    index = pipeline_class.load_config(name_or_path, **place)
    for part, entry in index.items():
        if part in parts or not isinstance(entry, (list, tuple)) or entry[0] is None:
            continue
        library, class_name = entry
        package = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
        part_class = getattr(importlib.import_module(package), class_name)
        if issubclass(part_class, nn.Module):
            parts[part] = load_whole(part_class, name_or_path, subfolder=part, variant=variant, **place)
    return pipeline_class.from_pretrained(name_or_path, variant=variant, **place, **parts)


def drawing_pipeline(
    name_or_path: str,
    *,
    commit: str | None,
    variant: str | None,
    cache_dir: str | None,
    device: torch.device,
    dtype: torch.dtype,
):
    """The whole pipeline, drawing by DDIM without a progress bar of its own. Raises DataError."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    with loading(name_or_path):
        pipeline = load_pipeline(
            StableDiffusionPipeline, name_or_path, revision=commit, variant=variant, cache_dir=cache_dir
        )
    pipeline.to(device, dtype)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_controlnet_pipeline(name_or_path: str, *, controlnet: str, cache_dir: str | None):
    """The pipeline that draws by DDIM what a ControlNet is shown. Raises DataError, which names the model's flag."""
    from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

    with loading(controlnet, flag="controlnet", kind="a ControlNet of Stable Diffusion in safetensors"):
        model = load_whole(ControlNetModel, controlnet, cache_dir=cache_dir)
    with loading(name_or_path):
        pipeline = load_pipeline(
            StableDiffusionControlNetPipeline, name_or_path, controlnet=model, cache_dir=cache_dir
        )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


# ---------------------------------------------------------------------------------------------------------------------
# What is trained
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class StableDiffusion:
    """The frozen parts of a pipeline, what the objective asks of them, and the UNet's LoRA.

    Latents z (B, 4, h, w) are scaled as the UNet takes them; c (B, 77, D) are text embeddings; t (B,) timesteps.
    Another family of base models has the same methods and properties over parts of its own.
    """

    noise_scheduler: object
    tokenizer: object
    text_encoder: nn.Module
    vae: nn.Module
    unet: nn.Module
    dtype: torch.dtype  # of the UNet's frozen weights

    door: ClassVar[str] = "train_scoft_lora.py"  # the command that trains this family
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"  # diffusers', which draws with it

    def __post_init__(self):
        self.trained = self.unet  # what accelerate is to wrap for its processes, and `predict` then calls
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
        with loading(name_or_path):
            model = cls(
                DDPMScheduler.from_pretrained(name_or_path, subfolder="scheduler", **place),
                CLIPTokenizer.from_pretrained(name_or_path, subfolder="tokenizer", **place),
                load_whole(CLIPTextModel, name_or_path, subfolder="text_encoder", dtype=torch.float32, **weights),
                load_whole(AutoencoderKL, name_or_path, subfolder="vae", **weights),
                load_whole(UNet2DConditionModel, name_or_path, subfolder="unet", torch_dtype=dtype, **weights),
                dtype=dtype,
            )
        if prediction_type is not None:
            model.noise_scheduler.register_to_config(prediction_type=prediction_type)
        model.check_kind(name_or_path)
        for part in (model.text_encoder, model.vae, model.unet):
            part.requires_grad_(False).eval()
        return model

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
        if unet.in_channels != vae.latent_channels or unet.addition_embed_type is not None:
            raise DataError(
                f"{name_or_path} is no plain text-to-image Stable Diffusion 1.x or "
                f"2.x: its UNet takes {unet.in_channels} channels and {unet.addition_embed_type or 'no'} embeddings "
                "besides the text",
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
        input_ids = self.tokenizer(
            captions, max_length=self.max_tokens, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self.text_encoder.to(device)
        embeddings = torch.cat([self.text_encoder(ids.to(device))[0].cpu() for ids in input_ids.split(32)])
        self.text_encoder.to("cpu")
        return embeddings

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

    def captions_key(self) -> str:
        """In keys of caches: what `encode_captions` depends on."""
        return weights_key(self.text_encoder)

    def photographs_key(self) -> str:
        """In keys of caches: what `encode_photographs` depends on."""
        return weights_key(self.vae)

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

    # Predictions

    def predict(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """eps_theta(z, c, t) (B, 4, h, w), or the velocity, with gradient in the LoRA."""
        self.cast_lora()
        return self.trained(z.to(self.dtype), t, c, return_dict=False)[0]

    def predict_frozen(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The same without gradient."""
        self.cast_lora()
        return self.predict_as_it_is(z, t, c)

    def predict_base(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The prediction that the base model makes, without gradient."""
        with self.without_lora():
            return self.predict_as_it_is(z, t, c)

    @torch.no_grad()
    def predict_as_it_is(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Without gradient, by the UNet as it stands and without the wrapper that would have processes wait."""
        prediction = self.unet(z.to(self.dtype), t, c, return_dict=False)[0]
        return prediction.clone() if self.compiled else prediction  # a CUDA graph's next replay writes over the last

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

    # The LoRA

    def add_lora(self, *, rank: int, alpha: float, target_modules: list[str]) -> list[nn.Parameter]:
        """Put a LoRA adapter on the UNet and return its parameters, a list, in float32 whatever the UNet's dtype.

        diffusers' script returns a `filter` that the optimizer exhausts, so that nothing is clipped later, and leaves
        a bf16 LoRA in bf16, where most of AdamW's steps round to nothing.
        """
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=target_modules)
        try:
            self.unet.add_adapter(config)
        except ValueError as error:
            raise DataError(f"{','.join(target_modules)}: {error}", argument="lora_layers") from error
        cast_training_params(self.unet, dtype=torch.float32)
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    @functools.cached_property
    def lora_layers(self) -> list[nn.Module]:
        """The layers whose weights are the LoRA's matrices."""
        return [layer for layer in self.unet.modules() if "weight" in layer._parameters and layer.weight.requires_grad]

    def cast_lora(self):
        """Have the LoRA computed in the UNet's dtype; its parameters, their gradients and moments stay in float32.

        All matrices are cast at once, where peft would cast what goes in and comes out of each.  They stay in their
        layers' places until the next call, so that backward passes which compute activations anew find them too.
        Compiled, the cast is made in float32 too: a gradient that a CUDA graph gave to a parameter itself would lie in
        the graph's memory, over which the next micro-batch writes.
        """
        if self.dtype is torch.float32 and not self.compiled:
            return
        parameters = [layer._parameters["weight"] for layer in self.lora_layers]
        cast = torch.cat([each.flatten() for each in parameters]).to(self.dtype)
        sizes = [each.numel() for each in parameters]
        for layer, each, matrix in zip(self.lora_layers, parameters, cast.split(sizes)):
            compute_with(layer, matrix.view_as(each))

    @functools.cached_property
    def adapted_layers(self) -> list[nn.Module]:
        """The layers that the LoRA changes, as peft wraps them."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [layer for layer in self.unet.modules() if isinstance(layer, BaseTunerLayer)]

    @contextlib.contextmanager
    def without_lora(self) -> Iterator[None]:
        """The base model, for as long as this lasts.

        Each layer takes the way that peft has for merged weights.  `disable_adapters` would do, and walk through all
        parameters of the UNet to set what needs a gradient: 6 ms of Python at 84 layers.
        """
        for layer in self.adapted_layers:
            layer.merged_adapters.append("default")
        try:
            yield
        finally:
            for layer in self.adapted_layers:
                layer.merged_adapters.remove("default")

    @contextlib.contextmanager
    def merged_lora(self) -> Iterator[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
        """Yields `predict_frozen` by copies of the weights, W + BA in the UNet's dtype: as few operations as the base.

        Rounded to 16 bits W + BA loses what is small beside W, as at first BA is, so this is for what hardly depends
        on it: pictures, but not a difference of predictions as L_M is.  Merged in place, W would never be the same.
        """
        for layer in self.lora_layers:
            compute_with(layer, None)  # peft is to multiply the matrices in float32
        for layer in self.adapted_layers:
            base = layer.get_base_layer()
            with torch.no_grad():
                compute_with(base, (base.weight + layer.get_delta_weight("default")).to(self.dtype))
        try:
            with self.without_lora():
                yield self.predict_as_it_is
        finally:
            for layer in self.adapted_layers:
                compute_with(layer.get_base_layer(), None)

    def save_lora(self, folder: Path, *, kohya_name: str | None = None):
        """Write the LoRA for diffusers, and under `kohya_name` for ComfyUI and A1111, both in float32.

        The keys are peft's: diffusers' own renames attention alone, and its loader drops one of the two forms in a
        file.  The metadata hold what loading needs and no more: diffusers passes them to LoraConfig unfiltered, so the
        40 fields of today's peft would stop an older one, and a recorded dropout would stay alive at inference. The
        empty patterns are for diffusers before 0.40, which asks for them.
        diffusers' kohya converter writes alpha = rank whatever alpha was, so it is set right here.
        """
        from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
        from diffusers.utils import convert_state_dict_to_kohya
        from peft.utils import get_peft_model_state_dict

        config = self.unet.peft_config["default"]
        metadata = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
            "rank_pattern": {},
            "alpha_pattern": {},
        }
        metadata = json.dumps({f"unet.{name}": value for name, value in metadata.items()}, sort_keys=True)
        lora = {
            f"unet.{name}": weight.detach().cpu().contiguous()
            for name, weight in get_peft_model_state_dict(self.unet).items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / LORA_FILE, lora, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata})
        if kohya_name:
            kohya = {
                name: torch.tensor(float(config.lora_alpha)) if name.endswith(".alpha") else weight
                for name, weight in convert_state_dict_to_kohya(lora).items()
            }
            metadata = {"ss_network_dim": str(config.r), "ss_network_alpha": str(config.lora_alpha)}
            write_safetensors(folder / kohya_name, kohya, metadata=metadata)

    def load_lora(self, folder: Path):
        """Put a saved LoRA back into the UNet's adapter, bit for bit; it must fit key by key."""
        from peft.utils import get_peft_model_state_dict

        saved, own = read_lora(folder / LORA_FILE), get_peft_model_state_dict(self.unet)
        shapes, own_shapes = ({name: tuple(w.shape) for name, w in lora.items()} for lora in (saved, own))
        if shapes != own_shapes:
            names = sorted(name for name in shapes.keys() | own_shapes if shapes.get(name) != own_shapes.get(name))
            raise DataError(
                f"{folder} does not fit this run's LoRA at {len(names)} weights, first "
                f"{names[0]}: {shapes.get(names[0])} there, {own_shapes.get(names[0])} here; give the rank, the "
                "LoRA's layers and the base model that it was made with",
                argument="resume_from_checkpoint",
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved[name])

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
    ) -> list:
        """A PIL picture for each row of c, from noise by its seed, with the LoRA as it is."""
        from diffusers.image_processor import VaeImageProcessor

        self.cast_lora()

        def in_dtype(unet, inputs: tuple) -> tuple:  # the scheduler goes on in the float32 of the predictions
            return (inputs[0].to(self.dtype), *inputs[1:])

        with self.unet.register_forward_pre_hook(in_dtype):
            latents = self.pipeline(
                prompt_embeds=c,
                negative_prompt_embeds=c_null,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=inference_steps,
                guidance_scale=guidance_scale,
                height=resolution,
                width=resolution,
                output_type="latent",
            ).images
        pictures = []
        for latent in latents:  # one by one: the decoder needs the most memory of all
            pictures += VaeImageProcessor().postprocess(self.decode(latent[None]), output_type="pil")
        return pictures


def compute_with(layer: nn.Module, weight: torch.Tensor | None):
    """Have a layer compute with another weight than its parameter, which stays as it is; None: with its own again.

    The layer finds the other one as its attribute, before the parameter of that name.
    """
    layer.__dict__.pop("weight", None)
    if weight is not None:
        object.__setattr__(layer, "weight", weight)


# ---------------------------------------------------------------------------------------------------------------------
# LoRAs in files
# ---------------------------------------------------------------------------------------------------------------------


def read_lora(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a LoRA file by the names that peft gives them in the UNet, whichever form they have in the file.

    Raises DataError.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError

    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    try:
        weights, _ = StableDiffusionPipeline.lora_state_dict(str(file.parent), **place)
        if not any("lora" in name for name in weights):
            raise ValueError("none of its tensors is one of a LoRA")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise DataError(f"{file} is no LoRA that can be read: {error}; copy or train it again") from error
    return {name.removeprefix("unet."): weight for name, weight in convert_unet_state_dict_to_peft(weights).items()}


def load_into_pipeline(pipeline, file: Path):
    """Load a LoRA file by diffusers' own call, as its users do, and see that it came in whole. Raises DataError."""
    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    saved = read_lora(file)
    try:
        pipeline.load_lora_weights(str(file.parent), adapter_name="scoft", **place)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{file} does not fit the model, which is to be the one it was trained on: {error}") from error
    check_whole(pipeline.unet, file, adapter="scoft", saved=saved)


def check_whole(unet, file: Path, *, adapter: str, saved: dict[str, torch.Tensor] | None = None):
    """Raise DataError unless the UNet's adapter holds the file's tensors, all of them and no others.

    `saved`: what `read_lora` has read of the file, if it has.
    diffusers drops keys that it cannot place, and says so in a warning among others.
    """
    from peft.utils import get_peft_model_state_dict

    saved = read_lora(file) if saved is None else saved
    own = get_peft_model_state_dict(unet, adapter_name=adapter) if adapter in getattr(unet, "peft_config", {}) else {}
    loaded = {name for name in saved.keys() & own if torch.equal(own[name], saved[name].to(own[name]))}
    if astray := sorted((saved.keys() | own) - loaded):
        raise DataError(
            f"{file} holds {len(saved)} tensors, and {len(loaded)} of them are in the model, which has {len(own)}: "
            f"{astray[0]} is not in both. Files with keys of two forms, as earlier versions wrote, load in part: take "
            f"{KOHYA_FILE.format('*')} beside it, which is whole, or train the LoRA again"
        )
