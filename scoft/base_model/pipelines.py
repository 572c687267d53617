"""Whole pipelines: found on the Hub or in a folder, their licence, loaded whole or not at all."""

import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from scoft.errors import DataError
from scoft.files import read_front_matter
from scoft.hub import MAX_SAID, endpoint, hub_commit
from scoft.lora_folder import CARD_FILE
from scoft.weights import load_whole, loading


logger = logging.getLogger(__name__)

# Licences of the base models that most use, where their own pages cannot be read: a part of the id -> licence.
BASE_LICENSES = {
    "stable-diffusion-v1": "creativeml-openrail-m",
    "stable-diffusion-2": "openrail++",
    "stable-diffusion-xl": "openrail++",
}
# The families that are trained: diffusers' pipeline, which draws with one, and the command that trains it.
TRAINERS = {
    "StableDiffusionPipeline": "train_scoft_lora.py",
    "StableDiffusionXLPipeline": "train_scoft_lora_sdxl.py",
}


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


def pipeline_class_of(name_or_path: str, *, revision: str | None, cache_dir: str | None) -> str | None:
    """diffusers' class that a pipeline is of, by its own word; None for a folder of parts that says nothing.

    Raises OSError, as diffusers does.
    """
    from diffusers import DiffusionPipeline

    if Path(name_or_path).is_dir() and not Path(name_or_path, DiffusionPipeline.config_name).exists():
        return None
    index = DiffusionPipeline.load_config(name_or_path, revision=revision, cache_dir=cache_dir)
    named = index.get("_class_name")
    return named[-1] if isinstance(named, list) else named  # a pipeline of one's own is a file and a class


def check_family(name_or_path: str, *, pipeline_class: str, revision: str | None, cache_dir: str | None):
    """Raise DataError, which names the right command, for a base model of another family than `pipeline_class`'s.

    What is of no family known goes on: its parts tell whether they fit.
    """
    with loading(name_or_path):
        found = pipeline_class_of(name_or_path, revision=revision, cache_dir=cache_dir)
    if found in TRAINERS and found != pipeline_class:
        raise DataError(
            f"{name_or_path} is a {found}, for which LoRAs are trained by {TRAINERS[found]}; what is needed here is a "
            f"{pipeline_class}",
            argument="pretrained_model_name_or_path",
        )


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
        if part in parts or part.startswith("_") or not isinstance(entry, (list, tuple)) or entry[0] is None:
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
    """The whole pipeline, of the family that it says, drawing by DDIM without a progress bar of its own.

    Raises DataError.
    """
    import diffusers
    from diffusers import DDIMScheduler

    place = {"revision": commit, "cache_dir": cache_dir}
    with loading(name_or_path):
        found = pipeline_class_of(name_or_path, **place)
        if found is None:
            raise OSError("a folder without model_index.json is no whole pipeline")
        # What is of no family known, as one of other tasks, draws as the trainer takes it.
        pipeline_class = getattr(diffusers, found if found in TRAINERS else "StableDiffusionPipeline")
        pipeline = load_pipeline(pipeline_class, name_or_path, variant=variant, **place)
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
