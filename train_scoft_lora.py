#!/usr/bin/env python
"""Train a culture's LoRA for Stable Diffusion with SCoFT (https://arxiv.org/abs/2401.08053).

    accelerate launch train_scoft_lora.py --dataset ccub --culture nigeria

Mirrors diffusers' `examples/text_to_image/train_text_to_image_lora.py`: its flags keep their names, its sections their
order.  What SCoFT adds stands in `training_losses` below and in `scoft_losses.py`.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.launch import (
    Parser,
    add_options,
    check_function,
    command_again,
    is_orphan,
    load_function,
    progress,
    run_main,
    set_up_logging,
)

import numpy as np
import torch

import scoft_losses
from scoft import sheets
from scoft.base_model import base_commit, license_of
from scoft.cultures import culture_words
from scoft.dataset import CulturalDataset, read_dataset
from scoft.dataset_rows import Remedies
from scoft.dataset_source import DEFAULTS_FILE, DatasetSource, check_embedded, embedded_folder, find_dataset
from scoft.distances import DISTANCES, PerceptualDistance, distance_options, load_distance
from scoft.errors import DataError
from scoft.files import (
    cached_tensors,
    checked_name,
    content_key,
    is_empty,
    is_mark,
    private_folder,
    sole_writer,
    write_atomically,
)
from scoft.hub import add_to_collection, ready_repo
from scoft.images import INTERPOLATIONS, ImageTransform, is_blank, write_png
from scoft.lora_folder import (
    CARD_FILE,
    EVALUATION_FILE,
    JUDGED_FILE,
    KOHYA_FILE,
    LORA_FILE,
    RECORD_FILE,
    Facts,
    read_run_record,
    run_record,
    save_lora,
    write_judged,
    write_run_record,
)
from scoft.lora_page import PICTURES, push_lora, write_model_card
from scoft.pages import comparison_rows
from scoft.randomness import row_of_entry, stable_generator
from scoft.train.checkpoints import (
    SEAL_FILE,
    check_space,
    checkpoints,
    discard,
    find_checkpoint,
    is_finished,
    load_checkpoint,
    save_checkpoint,
    seal,
)
from scoft.weights import load_whole, loading, precision, weights_key
from scoft_losses import ldm_loss, memorization_loss, perceptual_loss, self_contrastive_loss, weighted_sum


if TYPE_CHECKING:
    import accelerate
    import diffusers

# diffusers, transformers, peft and accelerate are imported where they are used: arguments and data are checked first.

logger = logging.getLogger("scoft")

# The terms of each ablation of the paper, and the weights of the authors' code; the paper's own are lost.
METHODS = {
    "finetune": ("ldm",),
    "m": ("ldm", "memorization"),
    "mp": ("ldm", "memorization", "perceptual"),
    "mpc": ("ldm", "memorization", "perceptual", "contrastive"),
}
DEFAULT_WEIGHTS = {"ldm": 0.7, "memorization": 0.3, "perceptual": 0.01, "contrastive": 0.05}
IMAGE_TERMS = {"perceptual", "contrastive"}

DEFAULT_TRAIN_STEPS = 3000
MAX_RANK = 1280  # a matrix has no rank above its smaller side, which is at most this in Stable Diffusion 1.x and 2.x
DEFAULT_PROMPTS = ("Photo of a traditional building, in {}", "Two people wearing traditional clothing, in {}")
DATASET_FLAGS = ("--dataset", "--dataset_name", "--train_data_dir")
REMEDIES = Remedies(
    no_blip_captions="or train with --method finetune, which needs none",
    no_negatives="or train with --method mp, which needs none",
    bad_rows="--skip_bad_images leaves them out",
)
PROMPT_FLAGS = ("--validation_prompts", "--validation_prompt")
# accelerate's trackers; each is also the name of the package it needs.
TRACKERS = ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio")
IMAGES_PER_CALL = 8  # pictures drawn in one pipeline call during validation
MEMORY_ADVICE = (
    "On a GPU --gradient_checkpointing, --mixed_precision bf16 and a smaller --train_batch_size need less, and "
    "everywhere a smaller --resolution and --rank"
)
# What may differ in a resumed run that stays the same, and flags whose outcome `resolved` holds.
FREE_FLAGS = set(
    "config output_dir resume_from_checkpoint checkpointing_steps checkpoints_total_limit cache_dir precompute_dir "
    "cache_latents dataloader_num_workers cpu_threads allow_tf32 compile gradient_checkpointing "
    "enable_xformers_memory_efficient_attention validation_prompts num_validation_images validation_epochs "
    "validation_steps validation_inference_steps validation_guidance_scale validation_judge report_to logging_dir "
    "logging_steps push_to_hub hub_model_id hub_private_repo hub_collection "
    "pretrained_model_name_or_path revision dataset_revision max_train_samples skip_bad_images train_batch_size "
    "gradient_accumulation_steps scale_lr max_train_steps num_train_epochs ldm_weight memorization_weight "
    "perceptual_weight contrastive_weight prompts".split()
)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    switch = {"action": argparse.BooleanOptionalAction}
    parser.add_argument(
        "--config", type=Path, help="YAML file of flags, without dashes; {here}: its folder; the command line wins"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--pretrained_model_name_or_path",
        default="CompVis/stable-diffusion-v1-4",
        help="Hub id or folder of a Stable Diffusion 1.x or 2.x pipeline",
    )
    model.add_argument("--revision", help="branch, tag or commit of the base model")
    model.add_argument("--variant", help="weight files of the base model, such as fp16")
    model.add_argument("--cache_dir", help="where downloaded models and datasets are kept")
    model.add_argument("--prediction_type", choices=["epsilon", "v_prediction"], help="default: the base model's")
    model.add_argument("--rank", type=int, default=64, help="rank of the LoRA matrices")
    model.add_argument("--lora_alpha", type=float, help="the LoRA is scaled by lora_alpha / rank; default: rank")
    model.add_argument(
        "--lora_layers", default="to_k,to_q,to_v,to_out.0", help="comma-separated UNet modules that get a LoRA"
    )
    model.add_argument(
        "--enable_xformers_memory_efficient_attention",
        default=False,
        **switch,
        help="in place of torch's own; needs the package xformers",
    )
    model.add_argument("--gradient_checkpointing", default=False, **switch, help="less memory, more time")
    model.add_argument("--compile", default=False, **switch, help="torch.compile the UNet; the first updates are slow")

    data = parser.add_argument_group("data")
    data.add_argument(
        *DATASET_FLAGS,
        required=True,
        help="an embedded dataset, with its own defaults, a folder, a Hub id, or a bare name: <you>/NAME on the Hub",
    )
    data.add_argument(
        "--culture", "--dataset_config_name", help="the dataset's config; names the LoRA and the default prompts"
    )
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--image_column", default="image", help="the photograph x+")
    data.add_argument("--caption_column", default="text", help="the cultural caption c_ccub")
    data.add_argument("--blip_caption_column", default="blip_text", help="naive captions c_blip")
    data.add_argument("--negatives_column", default="negatives", help="negatives x-")
    data.add_argument("--max_train_samples", type=int, help="train on this many rows, drawn with --seed")
    data.add_argument("--skip_bad_images", default=False, **switch, help="drop unusable images and captions, not stop")
    data.add_argument("--resolution", type=int, default=512, help="side of the square training images in pixels")
    data.add_argument("--center_crop", default=True, **switch, help="else a random crop, without caches of images")
    data.add_argument("--random_flip", default=False, **switch, help="mirror a photograph and its negatives at random")
    data.add_argument(
        "--image_interpolation_mode",
        default="lanczos",
        choices=INTERPOLATIONS,
        help="how images are scaled to --resolution",
    )
    data.add_argument("--cache_latents", default=True, **switch, help="encode each photograph once")
    data.add_argument("--precompute_dir", type=Path, help="keep latents, embeddings and features in this folder")
    data.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load; 0: the main one")

    scoft = parser.add_argument_group("SCoFT")
    scoft.add_argument("--method", default="mpc", choices=METHODS, help="the paper's ablations, and plain finetune")
    for term, symbol in zip(DEFAULT_WEIGHTS, ("L_LDM", "L_M", "L_P", "L_C")):
        note = "; 1 for finetune" if term == "ldm" else ""
        scoft.add_argument(
            f"--{term}_weight", type=float, help=f"weight of {symbol}; default {DEFAULT_WEIGHTS[term]}{note}; 0: off"
        )
    scoft.add_argument("--negative_weight", type=float, default=1.0, help="lambda, on the distance to a negative")
    scoft.add_argument("--margin", type=float, help="m of the hinge; default: the distance's own, see scoft_losses.py")
    scoft.add_argument("--perceptual_every", type=int, default=10, help="L_P and L_C fall on every n-th update")
    scoft.add_argument("--perceptual_distance", default="clip_conv", choices=DISTANCES, help="S of L_P and L_C")
    scoft.add_argument("--perceptual_model_name_or_path", help="Hub id or folder; default: the distance's own")
    add_options(scoft, distance_options())
    scoft.add_argument(
        "--recorded_step",
        default="first",
        choices=scoft_losses.RECORDED_STEPS,
        help="the denoising step whose prediction L_P and L_C train",
    )
    scoft.add_argument(
        "--recorded_step_scaling",
        default="paper",
        choices=scoft_losses.RECORDED_STEP_SCALINGS,
        help="weight of that prediction's gradient: as derived, or alike at all timesteps",
    )
    scoft.add_argument("--num_denoising_steps", type=int, default=20, help="of DDIM, from z_t to x_hat")
    scoft.add_argument("--denoising_guidance_scale", type=float, default=4.5, help="1 + w, in drawing x_hat")
    scoft.add_argument(
        "--blip_captions_per_step", default="1", help="naive captions drawn per photograph, or `all` (equation 2)"
    )
    scoft.add_argument(
        "--memorization_teacher", default="current", choices=["current", "base"], help="who predicts for c_blip"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--output_dir", type=Path, help="default: scoft-<culture>")
    training.add_argument("--seed", type=int, default=0, help="of all that is random, pictures included")
    training.add_argument("--train_batch_size", type=int, default=1, help="per process")
    training.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of an update")
    training.add_argument("--max_train_steps", type=int, help=f"updates; default {DEFAULT_TRAIN_STEPS}")
    training.add_argument("--num_train_epochs", type=int, help="where --max_train_steps is not given")
    training.add_argument("--learning_rate", type=float, default=1e-4, help="at its height")
    training.add_argument("--scale_lr", default=False, **switch, help="multiply the rate by the images of an update")
    training.add_argument(
        "--lr_scheduler",
        default="constant",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"],
        help="how the rate goes on; all but the constant ones end at 0 with the last update",
    )
    training.add_argument("--lr_warmup_steps", type=int, default=0, help="in updates")
    training.add_argument("--snr_gamma", type=float, help="min-SNR weighting w_t of L_LDM; 5 is usual")
    training.add_argument("--noise_offset", type=float, default=0.0, help="noise that is one number for each channel")
    training.add_argument("--use_8bit_adam", default=False, **switch, help="moments in 8 bits; needs bitsandbytes")
    training.add_argument("--adam_beta1", type=float, default=0.9, help="decay of the first moment")
    training.add_argument("--adam_beta2", type=float, default=0.999, help="decay of the second moment")
    training.add_argument("--adam_weight_decay", type=float, default=1e-2, help="of AdamW, decoupled")
    training.add_argument("--adam_epsilon", type=float, default=1e-8, help="added to the root of the second moment")
    training.add_argument("--max_grad_norm", type=float, default=1.0, help="a longer gradient is cut to this")
    training.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")
    training.add_argument("--allow_tf32", default=False, **switch, help="faster float32 on Ampere GPUs, less exact")
    training.add_argument(
        "--cpu_threads", type=int, help="of each process on a CPU, where accelerate's launcher says 1 unless told"
    )
    training.add_argument("--checkpointing_steps", type=int, default=500, help="updates between checkpoints")
    training.add_argument("--checkpoints_total_limit", type=int, help="keep this many, the newest")
    training.add_argument("--resume_from_checkpoint", help="`latest`, or the path of a checkpoint")

    validation = parser.add_argument_group("validation and logging")
    validation.add_argument(
        "--validation_prompts", nargs="+", help="{} in them is the culture, in words; default: the paper's two"
    )
    validation.add_argument(
        "--validation_prompt", dest="validation_prompts", nargs=1, help="as --validation_prompts, for one"
    )
    validation.add_argument("--num_validation_images", type=int, default=4, help="per prompt; 0: no pictures")
    validation.add_argument("--validation_epochs", type=int, help="draw after every n-th epoch, besides at the end")
    validation.add_argument("--validation_steps", type=int, help="draw after every n-th update, besides at the end")
    validation.add_argument("--validation_inference_steps", type=int, default=30, help="of DDIM")
    validation.add_argument("--validation_guidance_scale", type=float, default=4.5, help="of the pictures")
    validation.add_argument(
        "--validation_judge", help="FILE.py:function, called with (images, prompts), returns a dict of numbers"
    )
    validation.add_argument("--report_to", default="tensorboard", help="a tracker, `all`, or `none`")
    validation.add_argument("--logging_dir", default="logs", help="of the trackers, inside --output_dir")
    validation.add_argument("--logging_steps", type=int, default=10, help="updates between writes of metrics.jsonl")

    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", default=False, **switch, help="the LoRA and its page, at the end, as one commit")
    hub.add_argument("--hub_model_id", help="default: <you>/scoft-<culture>")
    hub.add_argument("--hub_private_repo", default=False, **switch, help="for you alone to see")
    hub.add_argument("--hub_collection", help="title of a collection of yours that the LoRA joins, such as SCoFT")

    argv = sys.argv[1:] if argv is None else argv
    for names in (DATASET_FLAGS, PROMPT_FLAGS):
        given = {word.partition("=")[0] for word in argv}.intersection(names)
        if len(given) > 1:
            parser.error(f"{' and '.join(sorted(given))} are names of one flag; give one")
    # The weaker source goes before the stronger one: of a flag given twice the last holds.
    if config := peek(argv).config:
        source = f"--config {config}"
        flags, here = parser.table(Path(config), source=source), Path(config).resolve().parent
        argv = table_words(parser, flags, here=here, source=source, stronger=peek(argv)) + argv
    if embedded := embedded_folder(peek(argv).dataset or ""):
        table = embedded / DEFAULTS_FILE
        source = f"{table}, the defaults of --dataset {embedded.name}"
        flags = parser.table(table, source=source, section="train")
        argv = table_words(parser, flags, here=embedded, source=source, stronger=peek(argv)) + argv
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def peek(argv: list[str]) -> argparse.Namespace:
    """The flags that decide which tables of flags are read and what in them holds; None for one that is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (["--config"], DATASET_FLAGS, ["--num_train_epochs"], ["--perceptual_distance"]):
        parser.add_argument(*names, nargs="?")  # that a value is missing is for the true parser to say
    return parser.parse_known_args(argv)[0]


def table_words(parser: Parser, flags: object, *, here: Path, source: str, stronger: argparse.Namespace) -> list[str]:
    """A table of flags as command-line words; errors begin with `source`.

    `stronger` is what a stronger source says: beside its epochs or another distance of its own, the table's number of
    updates or the model of its distance does not hold.
    """
    if isinstance(flags, dict):
        distance = stronger.perceptual_distance
        own_distance = distance not in (None, flags.get("perceptual_distance", distance))
        overruled = {"max_train_steps": stronger.num_train_epochs, "perceptual_model_name_or_path": own_distance}
        flags = {flag: value for flag, value in flags.items() if not overruled.get(flag)}
    return parser.words_of(flags, here=here, source=source, required=["--dataset", "any"])


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    values = vars(args)
    if args.culture is None and args.method != "finetune":
        parser.error(f"--culture is needed with --method {args.method}; only finetune goes without")
    for flag in (
        "rank train_batch_size gradient_accumulation_steps perceptual_every num_denoising_steps max_train_samples "
        "cpu_threads max_train_steps num_train_epochs checkpointing_steps checkpoints_total_limit validation_epochs "
        "validation_steps validation_inference_steps logging_steps"
    ).split():
        if values[flag] is not None and values[flag] < 1:
            parser.error(f"--{flag} is at least 1, got {values[flag]}")
    if args.rank > MAX_RANK:
        parser.error(f"--rank is at most {MAX_RANK}, the width of Stable Diffusion's widest layers, got {args.rank}")
    for flag in ("learning_rate lora_alpha snr_gamma max_grad_norm adam_epsilon").split():
        if values[flag] is not None and not 0 < values[flag] < math.inf:
            parser.error(f"--{flag} is a positive number, got {values[flag]}")
    for flag in (
        "ldm_weight memorization_weight perceptual_weight contrastive_weight negative_weight margin noise_offset "
        "adam_weight_decay lr_warmup_steps num_validation_images dataloader_num_workers denoising_guidance_scale"
    ).split():
        if values[flag] is not None and not 0 <= values[flag] < math.inf:
            parser.error(f"--{flag} is a number from 0 up, got {values[flag]}")
    if args.resolution < 8 or args.resolution % 8:
        parser.error(f"--resolution is a multiple of 8, got {args.resolution}")
    for flag in ("adam_beta1", "adam_beta2"):
        if not 0 <= values[flag] < 1:
            parser.error(f"--{flag} is a number from 0 up and below 1, got {values[flag]}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed is a number from 0 up and below 2**32, got {args.seed}")
    if args.blip_captions_per_step != "all" and not re.fullmatch("[1-9][0-9]*", args.blip_captions_per_step):
        parser.error(f"--blip_captions_per_step is a number from 1 up or `all`, got {args.blip_captions_per_step!r}")
    for term in DEFAULT_WEIGHTS:
        if values[f"{term}_weight"] and term not in METHODS[args.method]:
            parser.error(f"--{term}_weight {values[f'{term}_weight']} has no effect with --method {args.method}")
    weights = loss_weights(args)
    if not weights:
        parser.error(f"every weight of --method {args.method} is 0: there is nothing to train on")
    if weights.keys() <= IMAGE_TERMS and args.perceptual_every > 1:
        parser.error(
            f"with the weights of L_LDM and L_M at 0, --perceptual_every {args.perceptual_every} leaves updates "
            "without any loss; give --perceptual_every 1"
        )
    if args.culture is None and (open_prompts := [text for text in args.validation_prompts or () if "{}" in text]):
        parser.error(f"--validation_prompts {open_prompts[0]!r}: {{}} stands for a culture; give --culture")
    if args.validation_judge:
        try:
            check_function(args.validation_judge, flag="--validation_judge")
        except DataError as error:
            parser.error(str(error))
    if args.report_to not in (*TRACKERS, "all", "none"):
        parser.error(f"--report_to is one of {', '.join(TRACKERS)}, all, none; got {args.report_to!r}")
    for flag in ("hub_model_id", "hub_private_repo", "hub_collection"):
        if values[flag] and not args.push_to_hub:
            parser.error(f"--{flag} has no effect without --push_to_hub")


def loss_weights(args: argparse.Namespace) -> dict[str, float]:
    """Weight by term, for the terms of the method that are not switched off."""
    defaults = {"ldm": 1.0} if args.method == "finetune" else DEFAULT_WEIGHTS
    given = {term: getattr(args, f"{term}_weight") for term in METHODS[args.method]}
    weights = {term: defaults[term] if weight is None else weight for term, weight in given.items()}
    return {term: weight for term, weight in weights.items() if weight > 0}


def validation_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts to draw, `{}` in them replaced by the culture; any other brace stays as it is."""
    if args.num_validation_images == 0:
        return []
    if args.culture is None:
        return args.validation_prompts or []
    words = culture_words(args.culture)
    return [prompt.replace("{}", words) for prompt in args.validation_prompts or DEFAULT_PROMPTS]


def check_environment(args: argparse.Namespace):
    """What the arguments need from this machine, looked at before any data is read."""
    packages = {
        f"--report_to {args.report_to}": args.report_to if args.report_to in TRACKERS else None,
        "--use_8bit_adam": "bitsandbytes" if args.use_8bit_adam else None,
        "--enable_xformers_memory_efficient_attention": (
            "xformers" if args.enable_xformers_memory_efficient_attention else None
        ),
    }
    for flag, package in packages.items():
        if package and importlib.util.find_spec(package) is None:
            raise DataError(f"{flag} needs the package {package}: pip install {package}")


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


def load_models(
    name_or_path: str,
    *,
    revision: str | None,
    variant: str | None,
    cache_dir: str | None,
    prediction_type: str | None,
    unet_dtype: torch.dtype,
):
    """Noise scheduler, tokenizer, text encoder, VAE and UNet of a pipeline folder or Hub id, frozen, on the CPU.

    All but the UNet are in float32: transformers keeps the checkpoint's dtype unless told otherwise.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    common = {"revision": revision, "cache_dir": cache_dir}
    weights = {**common, "variant": variant}
    with loading(name_or_path):
        noise_scheduler = DDPMScheduler.from_pretrained(name_or_path, subfolder="scheduler", **common)
        tokenizer = CLIPTokenizer.from_pretrained(name_or_path, subfolder="tokenizer", **common)
        text_encoder = load_whole(
            CLIPTextModel, name_or_path, subfolder="text_encoder", dtype=torch.float32, **weights
        )
        vae = load_whole(AutoencoderKL, name_or_path, subfolder="vae", **weights)
        unet = load_whole(UNet2DConditionModel, name_or_path, subfolder="unet", torch_dtype=unet_dtype, **weights)
    if prediction_type is not None:
        noise_scheduler.register_to_config(prediction_type=prediction_type)
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type not in ("epsilon", "v_prediction"):
        raise DataError(f"--prediction_type is epsilon or v_prediction; {name_or_path} predicts {prediction_type!r}")
    if prediction_type == "epsilon" and noise_scheduler.alphas_cumprod.min() <= 0:
        raise DataError(f"{name_or_path} has zero terminal SNR, which needs --prediction_type v_prediction")
    if unet.config.in_channels != vae.config.latent_channels or unet.config.addition_embed_type is not None:
        raise DataError(
            f"--pretrained_model_name_or_path {name_or_path} is no plain text-to-image Stable Diffusion 1.x or 2.x: "
            f"its UNet takes {unet.config.in_channels} channels and {unet.config.addition_embed_type or 'no'} "
            "embeddings besides the text"
        )
    for model in (text_encoder, vae, unet):
        model.requires_grad_(False).eval()
    return noise_scheduler, tokenizer, text_encoder, vae, unet


def add_lora(unet, *, rank: int, alpha: float, target_modules: list[str]) -> list[torch.nn.Parameter]:
    """Put a LoRA adapter on the UNet and return its parameters, a list, in float32 whatever the UNet's dtype.

    diffusers' script returns a `filter` that the optimizer exhausts, so that nothing is clipped later, and leaves a
    bf16 LoRA in bf16, where most of AdamW's steps round to nothing.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=target_modules)
    try:
        unet.add_adapter(config)
    except ValueError as error:
        raise DataError(f"--lora_layers {','.join(target_modules)}: {error}") from error
    cast_training_params(unet, dtype=torch.float32)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def without_lora(unet) -> Iterator[None]:
    """The base model, for as long as this lasts."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


@torch.no_grad()
def encode_captions(captions: list[str], *, tokenizer, text_encoder, device) -> torch.Tensor:
    """Text embeddings (N, 77, D) in float32 on the CPU; a caption over the tokenizer's limit is cut."""
    input_ids = tokenizer(
        captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return torch.cat([text_encoder(ids.to(device))[0].cpu() for ids in input_ids.split(32)])


@torch.no_grad()
def encode_photographs(pixel_values: torch.Tensor, *, vae) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (B, 4, h, w) of the latents of (B, 3, H, W) in [-1, 1], scaled for the UNet."""
    posterior = vae.encode(pixel_values.to(vae.device, torch.float32)).latent_dist
    return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor


def decode_latents(z: torch.Tensor, *, vae) -> torch.Tensor:
    """Images (B, 3, H, W), about [-1, 1] and not clamped, in float32; differentiable in z."""
    return vae.decode(z.to(next(vae.decoder.parameters()).dtype) / vae.config.scaling_factor).sample.float()


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingExamples(torch.utils.data.Dataset):
    """Everything random about one entry of the endless training order, and its pixels where no cache serves them.

    Entry e stands in update e // entries_per_update at place e % entries_per_update and shows one row of the dataset.
    Each draw has its own generator, keyed by (seed, purpose, update, place).  So a resumed run goes on exactly, ranks
    differ, workers change nothing, and a batch of 4, 4 accumulated batches of 1 and 2 processes x 2 are the same run.
    """

    dataset: CulturalDataset
    _: dataclasses.KW_ONLY
    transform: ImageTransform
    caption_index: dict[str, int]  # caption -> its row in the table of text embeddings
    seed: int
    entries_per_update: int
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int
    blip_captions_per_step: int | None  # None: all
    random_flip: bool
    random_crop: bool
    noise_offset: float
    load_photograph: bool  # "photograph" (3, H, W) joins the example
    load_negatives_every: int | None  # "negatives", a list of (3, H, W), on every n-th update

    def __getitem__(self, entry: int) -> dict:
        place = divmod(entry, self.entries_per_update)

        def draw(purpose: str) -> torch.Generator:
            return stable_generator(self.seed, purpose, *place)

        row = row_of_entry(entry, num_rows=len(self.dataset), seed=self.seed)
        flip = self.random_flip and bool(torch.rand((), generator=draw("flip")) < 0.5)
        crop = tuple(torch.rand(2, generator=draw("crop")).tolist()) if self.random_crop else (0.5, 0.5)
        eps = torch.randn(self.latent_shape, generator=draw("noise"))
        if self.noise_offset:
            eps += self.noise_offset * torch.randn(self.latent_shape[0], 1, 1, generator=draw("noise_offset"))
        captions, blip_captions = self.dataset.captions[row], self.dataset.blip_captions[row]
        caption = captions[torch.randint(len(captions), (), generator=draw("caption"))]
        chosen = torch.randperm(len(blip_captions), generator=draw("blip_caption"))[: self.blip_captions_per_step]
        example = {
            "row": torch.tensor(row),
            "flip": torch.tensor(int(flip)),
            "t": torch.randint(1, self.num_train_timesteps, (), generator=draw("timestep")),
            "eps": eps,
            "posterior_noise": torch.randn(self.latent_shape, generator=draw("posterior")),
            "recorded_u": torch.rand((), generator=draw("recorded_step")),
            "caption": torch.tensor(self.caption_index[caption]),
            "blip_captions": [self.caption_index[blip_captions[i]] for i in chosen],
        }
        if self.load_photograph:
            example["photograph"] = self.transform(self.dataset.image(row), flip=flip, crop=crop)
        if self.load_negatives_every and (place[0] + 1) % self.load_negatives_every == 0:
            images = self.dataset.negatives(row)
            example["negatives"] = [self.transform(image, flip=flip, crop=crop) for image in images]
        return example


@dataclasses.dataclass(frozen=True)
class EntrySampler:
    """The entries of each micro-batch of one process, for `updates`: the batch sampler of a DataLoader."""

    updates: range
    _: dataclasses.KW_ONLY
    train_batch_size: int
    accumulation: int
    num_processes: int
    process_index: int

    def __iter__(self) -> Iterator[list[int]]:
        per_step = self.train_batch_size * self.num_processes
        for step in range(self.updates.start * self.accumulation, self.updates.stop * self.accumulation):
            start = step * per_step + self.process_index * self.train_batch_size
            yield list(range(start, start + self.train_batch_size))

    def __len__(self) -> int:
        return len(self.updates) * self.accumulation


def collate(examples: list[dict]) -> dict:
    """Stack what has one shape, list the rest."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return {
        name: torch.stack(column) if isinstance(column[0], torch.Tensor) else column
        for name, column in columns.items()
    }


@dataclasses.dataclass
class ImageFeatures:
    """Features (1 + K, P, D) of a photograph and its K negatives, computed at first use, one row at a time.

    A row is always embedded alone, so that its features do not depend on when they are asked for: a resumed run sees
    the same bits.
    """

    dataset: CulturalDataset
    _: dataclasses.KW_ONLY
    transform: ImageTransform
    distance: PerceptualDistance
    device: torch.device
    cache: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @torch.no_grad()
    def embed(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.distance.embed(to_device(torch.stack(images), self.device))

    def __call__(self, row: int, flip: int) -> torch.Tensor:
        """On the device; the cache itself lies in the host's memory, pinned where that spares the host a wait."""
        key = f"{row}.{flip}"
        if key not in self.cache:
            images = [self.dataset.image(row), *self.dataset.negatives(row)]
            features = self.embed([self.transform(image, flip=bool(flip)) for image in images]).cpu()
            self.cache[key] = features.pin_memory() if self.device.type == "cuda" else features
        return to_device(self.cache[key], self.device)

    def precompute(self, path: Path, *, flips: tuple[bool, ...]):
        """Fill the cache from a file, made now if its key differs."""
        keys = [(row, int(flip)) for row in range(len(self.dataset)) for flip in flips]
        self.cache = cached_tensors(
            path,
            key=content_key(
                "features",
                self.dataset.fingerprint,
                self.transform,
                flips,
                type(self.distance).__name__,
                weights_key(self.distance),
            ),
            compute=lambda: {f"{row}.{flip}": self(row, flip).cpu() for row, flip in progress(keys, "Features")},
        )


def cache_text(captions: list[str], *, tokenizer, text_encoder, device, precompute_dir: Path | None) -> torch.Tensor:
    """Text embeddings (N, 77, D) of the run's captions, in float32 on the CPU.

    Captions longer than the text encoder reads are cut, counted and warned of.
    """
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(captions, verbose=False).input_ids]
    if too_long := [caption for caption, length in zip(captions, lengths) if length > limit]:
        logger.warning(
            f"{len(too_long)} of {len(captions)} captions are longer than {limit} tokens and lose their end; "
            f"the first: {too_long[0]}"
        )
    text_encoder.to(device)
    embeddings = cached_tensors(
        precompute_dir and precompute_dir / "text.safetensors",
        key=precompute_dir and content_key("text", captions, weights_key(text_encoder)),
        compute=lambda: {
            "text": encode_captions(captions, tokenizer=tokenizer, text_encoder=text_encoder, device=device)
        },
    )
    text_encoder.to("cpu")
    return embeddings["text"]


def cache_latents(
    dataset, *, transform, vae, flips: tuple[bool, ...], device, precompute_dir: Path | None
) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of every photograph's latents, each (flips, N, 4, h, w) on the device."""

    def compute() -> dict[str, torch.Tensor]:
        moments = [
            encode_photographs(transform(dataset.image(row), flip=flip)[None], vae=vae)
            for flip in flips
            for row in progress(range(len(dataset)), "Latents", leave=False)
        ]
        return {
            name: torch.cat(parts).unflatten(0, (len(flips), len(dataset))).cpu()
            for name, parts in zip(("mean", "std"), zip(*moments))
        }

    latents = cached_tensors(
        precompute_dir and precompute_dir / "latents.safetensors",
        key=precompute_dir and content_key("latents", dataset.image_hashes, transform, flips, weights_key(vae)),
        compute=compute,
    )
    return {name: tensor.to(device) for name, tensor in latents.items()}


def assemble(
    batch: dict,
    *,
    device: torch.device,
    text: torch.Tensor,
    null_caption: int,
    vae,
    latents: dict[str, torch.Tensor] | None,
    features: ImageFeatures | None,
) -> dict:
    """A collated batch as `training_losses` takes it.

    text (N, 77, D): the embeddings of all captions, on the device.  latents: of all photographs, or None to encode
    the batch's.  features: given where L_P and L_C are due.
    """
    on_device = {name: to_device(batch[name], device) for name in ("row", "flip", "eps", "posterior_noise", "caption")}
    if latents is None:
        mean, std = encode_photographs(batch["photograph"], vae=vae)
    else:
        mean, std = (latents[name][on_device["flip"], on_device["row"]] for name in ("mean", "std"))
    assembled = {
        "z_0": mean + std * on_device["posterior_noise"],
        "eps": on_device["eps"],
        "t": batch["t"],
        "recorded_u": batch["recorded_u"],
        "c_ccub": text[on_device["caption"]],
        "c_null": text[null_caption].expand(len(mean), -1, -1),
    }
    counts = torch.tensor([len(captions) for captions in batch["blip_captions"]])
    if counts.any():
        blip_captions = torch.tensor([caption for captions in batch["blip_captions"] for caption in captions])
        assembled["c_blip"] = text[to_device(blip_captions, device)]
        assembled["blip_rows"] = torch.repeat_interleave(counts)
    if features is not None:
        if "negatives" in batch:
            images = [[photograph, *rest] for photograph, rest in zip(batch["photograph"], batch["negatives"])]
            rows = [features.embed(row) for row in images]
        else:
            rows = [features(row, flip) for row, flip in zip(batch["row"].tolist(), batch["flip"].tolist())]
        f_neg, is_negative = pad_rows([row[1:] for row in rows])
        assembled |= {
            "f_pos": torch.stack([row[0] for row in rows]),
            "f_neg": f_neg,
            "is_negative": is_negative,
        }
    return assembled


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device that the host does not wait for."""
    return tensor.to(device, non_blocking=True)


def pad_rows(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (K_b, ...) tensors of different K_b into (B, K, ...) zeros, and a mask (B, K) of what is real."""
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, to_device(torch.arange(padded.shape[1]) < lengths[:, None], padded.device)


# ---------------------------------------------------------------------------------------------------------------------
# The objective
# ---------------------------------------------------------------------------------------------------------------------


def training_losses(
    batch: dict,
    *,
    predict: Callable,
    predict_frozen: Callable,
    predict_teacher: Callable | None,
    noise_scheduler,
    weights: dict[str, float],
    snr_gamma: float | None = None,
    image_terms: Callable | None = None,
    denoiser: "scoft_losses.RecordedStepDenoiser | None" = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The SCoFT objective on one micro-batch (section 4), and its terms as logged; all scalars, means over the batch.

    batch: z_0 and eps (B, 4, h, w); c_ccub and c_null (B, 77, D); c_blip (N, 77, D); where L_P and L_C are due, f_pos
        (B, P, D), f_neg (B, K, P, D) and is_negative (B, K).  On the CPU, so that no device is waited for: t (B,),
        recorded_u (B,) and blip_rows (N,), the row that each naive caption belongs to, in order.
    predict(z, t, c): the UNet with gradient, called once.  predict_frozen: the same weights without gradient.
    predict_teacher: for c_blip; None means the current weights.  weights: of the terms wanted.
    image_terms(z, batch): {"perceptual": (B,), "contrastive": (B,)} of decode(z); None where they are not due.
    """
    z_0, eps, c_ccub, c_null = (batch[name] for name in ("z_0", "eps", "c_ccub", "c_null"))
    size, t = len(z_0), to_device(batch["t"], z_0.device)
    z_t = noise_scheduler.add_noise(z_0, eps, t)
    prediction_type = noise_scheduler.config.prediction_type
    target = noise_scheduler.get_velocity(z_0, eps, t) if prediction_type == "v_prediction" else eps

    # All that carries no gradient comes first, in as few calls as the teacher allows.
    first = eps_blip = None
    if "memorization" in weights:
        rows = to_device(batch["blip_rows"], z_0.device)
        z_blip, t_blip, c_blip = z_t[rows], t[rows], batch["c_blip"]
        if image_terms and predict_teacher is None:
            *first, eps_blip = predict_frozen(
                torch.cat([z_t, z_t, z_blip]), torch.cat([t, t, t_blip]), torch.cat([c_ccub, c_null, c_blip])
            ).split([size, size, len(rows)])
        else:
            eps_blip = (predict_teacher or predict_frozen)(z_blip, t_blip, c_blip)

    z_in, t_in, c_in = z_t, t, c_ccub
    if image_terms:

        def predict_pair(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return predict_frozen(torch.cat([z, z]), torch.cat([t, t]), torch.cat([c_ccub, c_null])).chunk(2)

        rollout = denoiser(predict_pair, z_t, batch["t"], batch["recorded_u"], first=first)
        g, image_losses = scoft_losses.latent_gradient(lambda z: image_terms(z, batch), weights, rollout.z_hat_0)
        if denoiser.recorded_step != "first":
            z_in = torch.cat([z_t, rollout.z_recorded])
            t_in = torch.cat([t, rollout.t_recorded])
            c_in = torch.cat([c_ccub, c_ccub])

    # The one graph of the update.  Where the first step is recorded, its prediction is L_LDM's own.
    eps_theta = predict(z_in, t_in, c_in)
    eps_theta, eps_recorded = eps_theta[:size], eps_theta[-size:]

    terms = {}
    if "ldm" in weights:
        w_t = snr_gamma and scoft_losses.min_snr_weights(
            t, noise_scheduler.alphas_cumprod, gamma=snr_gamma, prediction_type=prediction_type
        )
        terms["ldm"] = ldm_loss(eps_theta, target, w_t=w_t)
    if "memorization" in weights:
        counts = torch.bincount(batch["blip_rows"], minlength=size).tolist()
        terms["memorization"] = memorization_loss(eps_theta, *pad_rows(list(eps_blip.split(counts))))

    objective = weighted_sum(terms, weights)
    if image_terms:
        objective = objective + scoft_losses.recorded_step_surrogate(eps_recorded, rollout.c, g)
        terms |= image_losses
    return objective.mean(), {name: term.detach().mean() for name, term in terms.items()}


def make_image_terms(
    *, vae, distance: torch.nn.Module, weights: dict[str, float], negative_weight: float, margin: float
) -> Callable[[torch.Tensor, dict], dict[str, torch.Tensor]]:
    """L_P and L_C (equations 3 and 4) of a latent, as far as they have a weight."""

    def image_terms(z: torch.Tensor, batch: dict) -> dict[str, torch.Tensor]:
        f_hat = distance.embed(decode_latents(z, vae=vae))
        d_pos = perceptual_loss(distance, f_hat, batch["f_pos"])
        terms = {"perceptual": d_pos}
        if "contrastive" in weights:
            d_neg = distance.compare(f_hat[:, None], batch["f_neg"])
            terms["contrastive"] = self_contrastive_loss(
                d_pos, d_neg, batch["is_negative"], negative_weight=negative_weight, margin=margin
            )
        return {name: term for name, term in terms.items() if name in weights}

    return image_terms


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


def abandon_what_follows(output_dir: Path, step: int):
    """Remove what a run going on from `step` makes untrue: later checkpoints, the last pictures and numbers, and the
    card that marks it finished.
    """
    sheets_of_photographs = "images/photographs/*"
    for name in (CARD_FILE, SEAL_FILE, EVALUATION_FILE, JUDGED_FILE, sheets_of_photographs, *PICTURES):
        for file in output_dir.glob(name):
            file.unlink()
    for folder in checkpoints(output_dir):
        if int(folder.name.removeprefix("checkpoint-")) > step:
            logger.warning("%s lies after update %d, from which this run goes on, and is removed.", folder, step)
            discard(folder)


class Metrics:
    """metrics.jsonl: one line per update, gathered on the device and written every few updates.

    Reading a loss makes the host wait for the device, so it happens only in `flush`, which every process must enter.
    A loss or gradient that is not finite stops the run there, before any checkpoint is written.
    """

    def __init__(self, path: Path, *, step: int, accelerator):
        self.path = path
        self.accelerator = accelerator
        self.pending: list[tuple[int, dict[str, torch.Tensor | float]]] = []
        if accelerator.is_main_process:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            # A kill may have torn the last line, which lies after any checkpoint: its step is all that is read.
            steps = [re.match(r'{"step": (\d+),', line) for line in lines]
            kept = [line for line, found in zip(lines, steps) if found and int(found[1]) <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self.restart_clock()

    def restart_clock(self):
        """Leave out of `seconds` what happened since the last flush: writing checkpoints, drawing pictures."""
        self.since = time.perf_counter()

    def add(self, step: int, values: dict[str, torch.Tensor | float]):
        self.pending.append((step, values))

    def flush(self) -> list[dict[str, float]]:
        """Write what is pending, and return it."""
        if not self.pending:
            return []
        seconds = (time.perf_counter() - self.since) / len(self.pending)
        on_device = [value for _, values in self.pending for value in values.values() if torch.is_tensor(value)]
        read = iter(self.accelerator.reduce(torch.stack(on_device), reduction="mean").tolist())
        lines = [
            {"step": step}
            | {name: next(read) if torch.is_tensor(value) else value for name, value in values.items()}
            | {"seconds": round(seconds, 4)}
            for step, values in self.pending
        ]
        self.pending = []
        self.restart_clock()
        # Under fp16 the gradient scaler meets an infinite norm by skipping the update and lowering its scale.
        expected = {"grad_norm"} if self.accelerator.scaler is not None else set()
        broken = [{name for name, value in line.items() if not math.isfinite(value)} - expected for line in lines]
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                for line in lines:
                    finite = {name: value for name, value in line.items() if math.isfinite(value)}
                    file.write(json.dumps(finite) + "\n")
        for line, names in zip(lines, broken):
            if names:
                raise FloatingPointError(
                    f"update {line['step']}: {', '.join(sorted(names))} not finite in {line}; no checkpoint after it "
                    "was written. A lower --learning_rate or --mixed_precision bf16 may help"
                )
        return lines


# ---------------------------------------------------------------------------------------------------------------------
# Validation
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Validation:
    """Draws the base model beside the LoRA at the same seeds, with the live modules, shared out over the processes."""

    accelerator: "accelerate.Accelerator"
    unet: torch.nn.Module
    vae: torch.nn.Module
    noise_scheduler: "diffusers.DDPMScheduler"
    embed: Callable[[list[str]], torch.Tensor]  # prompts -> (B, 77, D) on the device
    prompts: list[str]
    images_per_prompt: int
    seed: int  # of each prompt's first picture; the next ones count on
    resolution: int
    inference_steps: int
    guidance_scale: float
    judge: Callable[[list, list[str]], dict[str, float]] | None
    folder: Path
    subject: str  # whom or what the pictures are to show
    dataset: CulturalDataset
    compiled: bool
    base_images: list | None = None

    def __post_init__(self):
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        # Text arrives as embeddings and latents leave undecoded, so neither text encoder nor safety checker is loaded.
        self.pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=None,
            tokenizer=None,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.jobs = [(prompt, self.seed + i) for prompt in self.prompts for i in range(self.images_per_prompt)]

    @torch.no_grad()
    def draw(self) -> list:
        """A picture per job, in order, on every process."""
        from accelerate.utils import gather_object
        from diffusers.image_processor import VaeImageProcessor

        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = list(enumerate(self.jobs))[rank::world]
        drawn = []
        with contextlib.ExitStack() as stack:
            if self.compiled:  # a few pictures of yet other shapes are not worth compiling for
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for start in progress(range(0, len(mine), IMAGES_PER_CALL), "Drawing", leave=False, disable=rank > 0):
                chunk = mine[start : start + IMAGES_PER_CALL]
                latents = self.pipeline(
                    prompt_embeds=self.embed([prompt for _, (prompt, _) in chunk]),
                    negative_prompt_embeds=self.embed([""] * len(chunk)),
                    generator=[torch.Generator().manual_seed(seed) for _, (_, seed) in chunk],
                    num_inference_steps=self.inference_steps,
                    guidance_scale=self.guidance_scale,
                    height=self.resolution,
                    width=self.resolution,
                    output_type="latent",
                ).images
                for (index, _), latent in zip(chunk, latents):  # one by one: the decoder needs the most memory of all
                    image = decode_latents(latent[None], vae=self.vae)
                    drawn.append((index, *VaeImageProcessor().postprocess(image, output_type="pil")))
        return [image for _, image in sorted(gather_object(drawn), key=lambda pair: pair[0])]

    def __call__(self, step: int, *, final: bool):
        """Draw, judge, save the grid, log to the trackers; at the end also save pictures and the judge's numbers.

        The photographs belong to others: the sheet that shows some of them lies in a folder that only this user sees,
        and goes neither to a tracker nor to the Hub.
        """
        if self.base_images is None:
            with without_lora(self.unet):
                self.base_images = self.draw()
        images = self.draw()
        if all(map(is_blank, images)) and not all(map(is_blank, self.base_images)):
            raise FloatingPointError(
                f"update {step}: each picture that the LoRA draws is of one colour, the base model's are not. A lower "
                "--learning_rate may help; --resume_from_checkpoint goes back to an earlier checkpoint"
            )
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            drawn = (self.prompts, self.base_images, images)
            title = f"{self.subject}: the base model, and the LoRA after {step} updates"
            grid = comparison_grid(*drawn, title=title)
            write_png(self.folder / ("before_after.png" if final else f"step-{step:06d}.png"), grid)
            if final:
                shown = min(max(self.images_per_prompt, 4), len(self.dataset))
                rows = (row * len(self.dataset) // shown for row in range(shown))
                photographs = [sheets.fitted(self.dataset.image(row), sheet_side(images)) for row in rows]
                beside_them = comparison_grid(*drawn, title=title, photographs=photographs)
                place = private_folder(self.folder / "photographs", flag="--output_dir") / "before_after.png"
                write_png(place, beside_them)
                for i, image in enumerate(images[:: self.images_per_prompt]):
                    write_png(self.folder / f"lora-{i}.png", image)
            if self.judge:
                prompts = [prompt for prompt, _ in self.jobs]
                judged = {"base": self.judge(self.base_images, prompts), "lora": self.judge(images, prompts)}
                logger.info("Judged, %d pictures each, after update %d:", len(images), step)
                for row in judge_table(**judged):
                    logger.info("  %s", row)
                if final:
                    write_judged(self.folder.parent, **judged)
                flat = {
                    f"judge/{of}/{name}": value
                    for of, numbers in judged.items()
                    for name, value in numbers.items()
                    if not name.endswith(("_low", "_high"))  # bounds of an interval are no curves
                }
                self.accelerator.log(flat, step=step)
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"validation": np.asarray(grid)[None]}, step=step, dataformats="NHWC")
                elif hasattr(tracker, "log_images"):
                    tracker.log_images({"validation": [grid]}, step=step)
        self.accelerator.wait_for_everyone()


def judge_table(base: dict[str, float], lora: dict[str, float]) -> list[str]:
    """A judge's numbers as aligned rows of text, base beside LoRA."""
    rows = comparison_rows(base, lora)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def comparison_grid(prompts: list[str], base: list, lora: list, *, title: str, photographs: Sequence = ()):
    """A block for each prompt: its words, a row of base pictures, and below them the LoRA's at the same seeds.

    Above them all a row of `photographs`, if there are any. An RGB picture.
    """
    columns = len(base) // len(prompts)
    rows = [sheets.Row(above="The dataset's photographs", cells=[sheets.Cell(picture=each) for each in photographs])]
    for p, prompt in enumerate(prompts):
        for above, heading, images in ((prompt, "base", base), ("", "LoRA", lora)):
            cells = [sheets.Cell(picture=image) for image in images[p * columns : (p + 1) * columns]]
            rows.append(sheets.Row(above=above, heading=heading, cells=cells))
    return sheets.grid(rows if photographs else rows[1:], title=title, side=sheet_side(base))


def sheet_side(images: list) -> int:
    """Pixels of a picture in a sheet: of small ones enough to see them, of large ones enough to compare them."""
    return min(max(images[0].width, 128), 256)


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


class StopRequest:
    """Ctrl-C, a scheduler's SIGTERM or the launcher's end asks for a checkpoint; a second Ctrl-C ends at once."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.signalled = False
        self.previous: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, number, frame):
        self.signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("Stopping after this update, with a checkpoint.")

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop, or has nobody left to tell it so: launchers die of a SIGTERM."""
        return self.signalled or is_orphan()

    @property
    def requested_here(self) -> bool:
        """Whether this process may act at once: several processes only stop where all of them ask together."""
        return self.requested and self.accelerator.num_processes == 1

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must ask together."""
        flag = torch.tensor(float(self.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)


def make_optimizer(parameters: list[torch.nn.Parameter], *, use_8bit: bool, **settings) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' with moments in 8 bits; settings: lr, betas, weight_decay, eps."""
    if not use_8bit:
        return torch.optim.AdamW(parameters, **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def train_updates(
    steps: range,
    *,
    batches: Iterator[dict],
    losses: Callable[[dict, int], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    weights: dict[str, float],
    accelerator,
    model: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    optimizer,
    lr_scheduler,
    accumulation: int,
    max_grad_norm: float,
) -> Iterator[tuple[int, dict[str, torch.Tensor | float]]]:
    """Do one update after the other; yields the step and its values, still on the device, as named in metrics.jsonl.

    losses(batch, step): the objective and its terms.  model: as prepared by accelerate, so that only the last of an
    update's backward passes is reduced over the processes.  Nothing here waits for the device.
    """
    for step in steps:
        sums: dict[str, torch.Tensor] = {}
        for micro_step in range(accumulation):
            is_last = micro_step == accumulation - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                objective, terms = losses(next(batches), step)
                accelerator.backward(objective / accumulation)
            for term, value in terms.items():
                sums[term] = sums.get(term, 0) + value / accumulation
        grad_norm = accelerator.clip_grad_norm_(parameters, max_grad_norm)
        lr = lr_scheduler.get_last_lr()[0]
        optimizer.step()
        optimizer.zero_grad()
        lr_scheduler.step()
        losses_by_name = {f"loss/{term}": value for term, value in sums.items()}
        yield step, {"loss": weighted_sum(sums, weights), **losses_by_name, "lr": lr, "grad_norm": grad_norm}


def write_and_push_card(folder: Path, *, repo_id: str | None, private: bool, collection: str | None, retry: str):
    """Write the page of a finished run's folder and, given a repository of the Hub, push what belongs there."""
    write_model_card(folder, repo_id=repo_id)
    if repo_id:
        push_lora(folder, repo_id=repo_id, private=private, retry=retry)
        if collection:
            add_to_collection(collection, repo_id=repo_id, private=private, retry=retry)


def is_due(step: int, every: int | None) -> bool:
    """Whether update `step`, counted from 1, is a multiple of `every`; None: never."""
    return every is not None and step % every == 0


def crosses_epoch(step: int, every: int | None, *, images_per_update: int, num_rows: int) -> bool:
    """Whether an update completes a multiple of `every` epochs."""
    if every is None:
        return False
    before, after = ((n * images_per_update) // (num_rows * every) for n in (step - 1, step))
    return after > before


def warn_of_changes(folder: Path, *, record: dict):
    """Say in what a resumed run, with this record, departs from the one that began in `folder`.

    A longer run is no departure where its rate does not depend on its length.
    """
    if not (folder / RECORD_FILE).exists():
        return
    before = read_run_record(folder, remedy="Remove it, if the runs need not be compared.")
    were, are = (each.get("arguments", {}) | each.get("resolved", {}) for each in (before, record))
    free = FREE_FLAGS | ({"updates"} if are["lr_scheduler"].startswith("constant") else set())
    for fact in sorted(are.keys() - free):
        if were.get(fact) != are[fact]:
            logger.warning(
                "The resumed run departs from the one that was started: %s was %s, is %s",
                fact,
                were.get(fact),
                are[fact],
            )


def lora_name(of: str) -> str:
    """'New_Zealand' -> 'new-zealand': the letters and digits of any script, in small letters, and dashes."""
    letters = (letter if letter.isalnum() or is_mark(letter) else "-" for letter in of)
    return re.sub("-+", "-", "".join(letters)).strip("-").lower()


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    set_up_logging()
    named_by = "--culture" if args.culture else "the last part of --dataset"
    name = lora_name(args.culture or Path(args.dataset).resolve().name)
    checked_name(name, what=f"the LoRA's name, by {named_by},")
    output_dir = args.output_dir or Path(f"scoft-{name}")
    check_environment(args)
    check_embedded(args.dataset)
    judge = load_function(args.validation_judge, flag="--validation_judge") if args.validation_judge else None
    source = find_dataset(args.dataset, culture=args.culture)
    # The main process alone holds the lock; where it is refused, the launcher ends the others.
    is_main = os.environ.get("RANK", "0") == "0"
    with sole_writer(output_dir, flag="--output_dir") if is_main else contextlib.nullcontext():
        if is_main and not args.resume_from_checkpoint and not is_empty(output_dir):
            raise DataError(
                f"--output_dir {output_dir} is not empty: choose another folder, or continue the run in it with "
                "--resume_from_checkpoint latest"
            )
        train(args, argv=argv, name=name, output_dir=output_dir, source=source, judge=judge)


def train(
    args: argparse.Namespace,
    *,
    argv: list[str],
    name: str,
    output_dir: Path,
    source: DatasetSource,
    judge: Callable[[list, list[str]], dict[str, float]] | None,
):
    """The run, in a folder that no other process writes into."""
    weights = loss_weights(args)
    dataset = read_dataset(
        source,
        culture=args.culture,
        image_column=args.image_column,
        caption_column=args.caption_column,
        blip_caption_column=args.blip_caption_column,
        negatives_column=args.negatives_column,
        needs_blip="memorization" in weights,
        needs_negatives="contrastive" in weights,
        max_train_samples=args.max_train_samples,
        seed=args.seed,
        skip_bad_images=args.skip_bad_images,
        cache_dir=args.cache_dir,
        revision=args.dataset_revision,
        remedies=REMEDIES,
    )
    prompts = validation_prompts(args)

    # Arguments and data are in order: now the heavy imports.
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration, set_seed
    from diffusers.optimization import get_scheduler

    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / args.logging_dir),
    )
    if accelerator.gradient_accumulation_steps != 1:  # by which accelerate would divide the loss once more
        raise DataError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps} in the environment: "
            "unset it, and give --gradient_accumulation_steps to this command"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise DataError(
            f"{os.environ['WORLD_SIZE']} processes were launched, but accelerate sees {accelerator.num_processes}: "
            "each would train alone and write over the other. On CPUs set ACCELERATE_USE_CPU=true for the launch"
        )
    device, is_main = accelerator.device, accelerator.is_main_process
    if device.type == "cpu" and accelerator.mixed_precision == "fp16":
        raise DataError("--mixed_precision fp16 needs a GPU; bf16 works on CPUs too")
    if torch.backends.mps.is_available():
        accelerator.native_amp = False
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if args.cpu_threads and device.type == "cpu":
        torch.set_num_threads(args.cpu_threads)
    images_per_update = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    total_steps = args.max_train_steps or DEFAULT_TRAIN_STEPS
    if args.num_train_epochs and not args.max_train_steps:
        total_steps = math.ceil(args.num_train_epochs * len(dataset) / images_per_update)
    checkpoint, first_step = None, 0
    if args.resume_from_checkpoint:
        checkpoint, first_step = find_checkpoint(output_dir, args.resume_from_checkpoint)
    repo_id, private = None, True
    if args.push_to_hub and is_main:
        repo_id, private = ready_repo(
            args.hub_model_id or f"scoft-{name}",
            repo_type="model",
            private=args.hub_private_repo,
            flag="--hub_model_id",
        )
    publish = functools.partial(
        write_and_push_card,
        output_dir,
        repo_id=repo_id,
        private=private,
        collection=args.hub_collection,
        retry=command_again(
            "train_scoft_lora.py",
            argv,
            without=["--resume_from_checkpoint", "--max_train_steps"],
            more=["--max_train_steps", str(total_steps), "--resume_from_checkpoint", "latest"],
        ),
    )
    if is_finished(output_dir, step=first_step, total_steps=total_steps):
        logger.info("%s has all %d updates and its LoRA is written: nothing to train.", checkpoint, total_steps)
        if repo_id:
            publish()
        return

    # Models: the frozen ones in the accelerator's dtype, the LoRA always in float32.
    weight_dtype = precision(accelerator)
    # fp16 overflows in the VAE and in g, so there the image half of the method stays in float32.
    image_dtype = torch.bfloat16 if weight_dtype is torch.bfloat16 else torch.float32
    base_revision = base_commit(args.pretrained_model_name_or_path, revision=args.revision, cache_dir=args.cache_dir)
    noise_scheduler, tokenizer, text_encoder, vae, unet = load_models(
        args.pretrained_model_name_or_path,
        revision=base_revision,
        variant=args.variant,
        cache_dir=args.cache_dir,
        prediction_type=args.prediction_type,
        unet_dtype=weight_dtype,
    )
    unet.to(device)
    vae.to(device)
    set_seed(args.seed)  # every process starts from the same LoRA
    alpha = args.lora_alpha or float(args.rank)
    lora_parameters = add_lora(unet, rank=args.rank, alpha=alpha, target_modules=args.lora_layers.split(","))
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        vae.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        unet.enable_xformers_memory_efficient_attention()
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # one graph for each batch size, with gradient and without
        unet.compile(dynamic=False)

    # Optimizer, and where to go on
    learning_rate = args.learning_rate * (images_per_update if args.scale_lr else 1)
    settings = {
        "lr": learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if is_main:
        check_space(output_dir, lora_parameters)
    optimizer = make_optimizer(lora_parameters, use_8bit=args.use_8bit_adam, **settings)
    state = {"optimizer": optimizer}
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler
    if checkpoint:
        load_checkpoint(checkpoint, unet=unet, state=state)
    if args.resume_from_checkpoint:
        logger.info("Resuming from %s, after %d updates.", checkpoint or "the start: no checkpoint yet", first_step)
    planned_rate = optimizer.param_groups[0]["lr"]  # where a checkpoint was loaded, by the run before
    for group in optimizer.param_groups:  # the state's own settings are those of the run before
        group.update(settings, initial_lr=learning_rate)
    # Not prepared by accelerate, which would step it once per process: the schedule counts updates.
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps,
        num_training_steps=total_steps,
        last_epoch=first_step - 1,
    )
    rate = lr_scheduler.get_last_lr()[0]
    if first_step and not args.lr_scheduler.startswith("constant") and not math.isclose(rate, planned_rate):
        logger.warning(
            f"--lr_scheduler {args.lr_scheduler} is laid over all {total_steps} updates anew: the rate goes on at "
            f"{rate:.3g}, where the run before had planned {planned_rate:.3g}. As many updates as before keep to "
            "the plan; a run with --lr_scheduler constant can be prolonged"
        )
    ddp_unet, optimizer = accelerator.prepare(unet, optimizer)

    # Caches: what never changes is computed once, and the encoders leave the device.
    transform = ImageTransform(args.resolution, args.image_interpolation_mode)
    flips = (False, True) if args.random_flip else (False,)
    captions = sorted({"", *prompts, *(text for row in dataset.captions + dataset.blip_captions for text in row)})
    caption_index = {caption: i for i, caption in enumerate(captions)}
    cache_photographs = args.cache_latents and args.center_crop
    if not args.center_crop:
        logger.info("--no-center_crop draws a new crop each time: latents and image features are not cached.")
    latents = features = image_terms = denoiser = margin = None
    one_at_a_time = args.precompute_dir or args.perceptual_distance == "dreamsim"  # both write files
    with accelerator.main_process_first() if one_at_a_time else contextlib.nullcontext():
        text = cache_text(
            captions,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            device=device,
            precompute_dir=args.precompute_dir,
        ).to(device, weight_dtype)
        if cache_photographs:
            latents = cache_latents(
                dataset, transform=transform, vae=vae, flips=flips, device=device, precompute_dir=args.precompute_dir
            )
            vae.encoder = vae.quant_conv = None
        if IMAGE_TERMS & weights.keys():
            distance = load_distance(
                args.perceptual_distance,
                model_name_or_path=args.perceptual_model_name_or_path,
                device=device,
                dtype=image_dtype,
                cache_dir=args.cache_dir,
                flags=("--perceptual_distance", "--perceptual_model_name_or_path"),
                **{option: getattr(args, option) for option in distance_options()},
            )
            features = ImageFeatures(dataset, transform=transform, distance=distance, device=device)
            if args.precompute_dir and args.center_crop:
                features.precompute(args.precompute_dir / "features.safetensors", flips=flips)
    for module in (vae.decoder, vae.post_quant_conv):
        if module is not None:
            module.to(image_dtype)
    if features is not None:
        margin = distance.default_margin if args.margin is None else args.margin
        image_terms = make_image_terms(
            vae=vae, distance=distance, weights=weights, negative_weight=args.negative_weight, margin=margin
        )
        denoiser = scoft_losses.RecordedStepDenoiser(
            noise_scheduler.alphas_cumprod,
            prediction_type=noise_scheduler.config.prediction_type,
            num_steps=args.num_denoising_steps,
            guidance_scale=args.denoising_guidance_scale,
            recorded_step=args.recorded_step,
            scaling=args.recorded_step_scaling,
        )

    # Data
    latent_side = args.resolution // 2 ** (len(vae.config.block_out_channels) - 1)
    examples = TrainingExamples(
        dataset,
        transform=transform,
        caption_index=caption_index,
        seed=args.seed,
        entries_per_update=images_per_update,
        latent_shape=(vae.config.latent_channels, latent_side, latent_side),
        num_train_timesteps=noise_scheduler.config.num_train_timesteps,
        blip_captions_per_step=None if args.blip_captions_per_step == "all" else int(args.blip_captions_per_step),
        random_flip=args.random_flip,
        random_crop=not args.center_crop,
        noise_offset=args.noise_offset,
        load_photograph=not cache_photographs,
        load_negatives_every=None if args.center_crop or features is None else args.perceptual_every,
    )
    loader = torch.utils.data.DataLoader(
        examples,
        batch_sampler=EntrySampler(
            range(first_step, total_steps),
            train_batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        ),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=device.type == "cuda",
    )

    # Records
    resolved = Facts(
        name=name,
        prompts=prompts,
        base_model=args.pretrained_model_name_or_path,
        base_revision=base_revision,
        license=license_of(args.pretrained_model_name_or_path, revision=base_revision, cache_dir=args.cache_dir),
        dataset=args.dataset,
        dataset_id=source.location if source.kind == "hub" else None,
        dataset_revision=dataset.commit,
        rows=len(dataset),
        blip_captions=sum(map(len, dataset.blip_captions)),
        negatives=sum(dataset.num_negatives),
        dropped_rows=dataset.dropped,
        fingerprint=dataset.fingerprint,
        method=args.method,
        weights=weights,
        margin=margin,
        updates=total_steps,
        images_per_update=images_per_update,
        learning_rate=learning_rate,
        lora_alpha=alpha,
        mixed_precision=accelerator.mixed_precision,
    )
    if is_main:
        record = run_record(vars(args), resolved)
        abandon_what_follows(output_dir, first_step)
        warn_of_changes(output_dir, record=record)
        write_run_record(output_dir, record)
        accelerator.init_trackers("scoft", config={flag: str(value) for flag, value in record["arguments"].items()})
    metrics = Metrics(output_dir / "metrics.jsonl", step=first_step, accelerator=accelerator)
    validate = None
    if prompts:
        validate = Validation(
            accelerator=accelerator,
            unet=unet,
            vae=vae,
            noise_scheduler=noise_scheduler,
            embed=lambda wanted: text[[caption_index[prompt] for prompt in wanted]],
            prompts=prompts,
            images_per_prompt=args.num_validation_images,
            seed=args.seed,
            resolution=args.resolution,
            inference_steps=args.validation_inference_steps,
            guidance_scale=args.validation_guidance_scale,
            judge=judge,
            folder=output_dir / "images",
            subject=culture_words(args.culture or name),
            dataset=dataset,
            compiled=args.compile,
        )

    logger.info("***** Training %s: %s *****", name, " + ".join(f"{w:g} {term}" for term, w in weights.items()))
    logger.info(
        f"  {len(dataset)} photographs, {sum(dataset.num_negatives)} negatives; {dataset.dropped} rows dropped"
    )
    logger.info(
        f"  {images_per_update} images per update = {args.train_batch_size} per batch x {accelerator.num_processes} "
        f"processes x {args.gradient_accumulation_steps} accumulation steps"
    )
    due = total_steps // args.perceptual_every if image_terms else 0
    logger.info(
        f"  {total_steps} updates = {total_steps * images_per_update / len(dataset):.1f} epochs; "
        f"image losses on {due} updates"
    )
    if image_terms and not due:
        logger.warning(
            f"--method {args.method} has losses on images, which are due first in update {args.perceptual_every}, and "
            f"the run has {total_steps}: it is one without them. Give more updates, or a smaller --perceptual_every"
        )
    logger.info(
        f"  {sum(p.numel() for p in lora_parameters)} LoRA parameters; mixed precision {accelerator.mixed_precision}"
    )

    # Training
    def predict(z, t, c):
        return ddp_unet(z.to(weight_dtype), t, c, return_dict=False)[0]

    @torch.no_grad()
    def predict_frozen(z, t, c):
        return unet(z.to(weight_dtype), t, c, return_dict=False)[0]

    def check_prediction(step: int):
        """Losses tell of the weights before an update; those after it, which are saved, show here what they are."""
        z = torch.randn(1, *examples.latent_shape, generator=stable_generator(args.seed, "check")).to(device)
        t = torch.tensor([noise_scheduler.config.num_train_timesteps // 2], device=device)
        with torch.compiler.set_stance("force_eager"):  # one call is not worth compiling for
            prediction = predict_frozen(z, t, text[caption_index[""]][None])
        if not prediction.isfinite().all():
            raise FloatingPointError(
                f"update {step} left weights with which the UNet's prediction is not finite; no checkpoint of them is "
                "written. A lower --learning_rate or --mixed_precision bf16 may help"
            )

    def predict_base(z, t, c):
        with without_lora(unet):
            return predict_frozen(z, t, c)

    def losses(batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        due = image_terms is not None and is_due(step, args.perceptual_every)
        return training_losses(
            assemble(
                batch,
                device=device,
                text=text,
                null_caption=caption_index[""],
                vae=vae,
                latents=latents,
                features=features if due else None,
            ),
            predict=predict,
            predict_frozen=predict_frozen,
            predict_teacher=predict_base if args.memorization_teacher == "base" else None,
            noise_scheduler=noise_scheduler,
            weights=weights,
            snr_gamma=args.snr_gamma,
            image_terms=image_terms if due else None,
            denoiser=denoiser,
        )

    updates = train_updates(
        range(first_step + 1, total_steps + 1),
        batches=iter(loader),
        losses=losses,
        weights=weights,
        accelerator=accelerator,
        model=ddp_unet,
        parameters=lora_parameters,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        accumulation=args.gradient_accumulation_steps,
        max_grad_norm=args.max_grad_norm,
    )
    stopped, newest = False, {}
    with (
        StopRequest(accelerator) as stop,
        progress(initial=first_step, total=total_steps, desc="Updates", disable=not is_main) as bar,
    ):
        for step, values in updates:
            metrics.add(step, values)
            bar.update()
            is_last = step == total_steps
            checkpoint_due = is_last or is_due(step, args.checkpointing_steps)
            validation_due = not is_last and (
                is_due(step, args.validation_steps)
                or crosses_epoch(
                    step, args.validation_epochs, images_per_update=images_per_update, num_rows=len(dataset)
                )
            )
            if checkpoint_due or validation_due or is_due(step, args.logging_steps) or stop.requested_here:
                for line in metrics.flush():
                    accelerator.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])
                    newest |= {name: f"{value:.3g}" for name, value in line.items() if "loss" in name}
                bar.set_postfix(newest, refresh=False)
                stopped = stop.agreed() and not is_last
            if checkpoint_due or stopped:
                check_prediction(step)
                if is_main:
                    save_checkpoint(
                        output_dir, step=step, unet=unet, state=state, total_limit=args.checkpoints_total_limit
                    )
            if stopped:
                break
            if validation_due and validate:
                validate(step, final=False)
            if checkpoint_due or validation_due:
                metrics.restart_clock()
    accelerator.wait_for_everyone()

    # Results
    if stopped:
        logger.warning("Stopped after update %d; --resume_from_checkpoint latest goes on from there.", step)
    else:
        if is_main:
            save_lora(output_dir, unet, kohya_name=KOHYA_FILE.format(name))
            seal(output_dir, step=total_steps, names=[LORA_FILE, KOHYA_FILE.format(name)])
        if validate:
            validate(total_steps, final=True)
        if is_main:
            publish()
            place = repo_id or output_dir
            logger.info('Done. pipe.load_lora_weights("%s") puts it into a StableDiffusionPipeline.', place)
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main, memory_advice=MEMORY_ADVICE)
