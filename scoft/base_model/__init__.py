"""The base models: the one room that knows their classes, their latents and their schedules.

    pipelines           whole ones, on the Hub or in a folder, their licence, loaded whole or not at all
    loras               in files: read, and loaded into a pipeline whole or not at all
    adapted             what all families share: a network, the LoRA on it, and what it predicts
    stable_diffusion    a family: captions and photographs in, predictions, a LoRA, pictures out
    stable_diffusion_xl

diffusers and transformers are imported where they are used, so that a mistyped flag is answered at once.
"""

from scoft.base_model.loras import check_whole, load_into_pipeline, read_lora
from scoft.base_model.pipelines import (
    TRAINERS,
    base_commit,
    drawing_pipeline,
    license_of,
    load_controlnet_pipeline,
    load_pipeline,
    own_resolution,
    pixels_of_latent,
)
from scoft.base_model.stable_diffusion import StableDiffusion
from scoft.base_model.stable_diffusion_xl import StableDiffusionXL


__all__ = [
    "TRAINERS",
    "StableDiffusion",
    "StableDiffusionXL",
    "base_commit",
    "check_whole",
    "drawing_pipeline",
    "license_of",
    "load_controlnet_pipeline",
    "load_into_pipeline",
    "load_pipeline",
    "own_resolution",
    "pixels_of_latent",
    "read_lora",
]
