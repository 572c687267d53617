"""The flags of the trainers, whose names and order are those of diffusers' scripts, and what can be said against them.

Each trainer adds them to its parser with defaults of its own; --help of one is told as soon as this is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from scoft.launch import (
    Parser,
    add_options,
    at_least,
    at_most,
    count_or,
    from_zero,
    function_of_file,
    multiple_of,
    number,
    positive,
    share,
)

from scoft.distances import DISTANCES, distance_options
from scoft.train import tables
from scoft.train.optimizer import SCHEDULES
from scoft.train.terms import DEFAULT_WEIGHTS, IMAGE_TERMS, METHODS, TERMS
from scoft.train.trackers import TRACKERS


DEFAULT_TRAIN_STEPS = 3000
SWITCH = {"action": argparse.BooleanOptionalAction}
COUNT, AMOUNT = at_least(1), from_zero(float)


def add_flags(
    parser: Parser, *, base: str, bases: str, resolution: int, own: Mapping[str, Mapping[str, object]] | None = None
):
    """All flags.  base: Hub id of the default base model; bases: what may take its place, in words; resolution: the
    default; own: flags of the family alone, which stand beside the base model, name -> what argparse has to know.
    """
    words = "YAML file of flags, without dashes; {here}: its folder; the command line wins"
    parser.add_argument("--config", type=Path, help=words)
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_name_or_path", default=base, help=f"Hub id or folder of {bases}")
    add_options(group, own or {})
    add_model_flags(group.add_argument)
    add_data_flags(parser.add_argument_group("data").add_argument, resolution=resolution)
    add_scoft_flags(parser.add_argument_group("SCoFT"))
    add_training_flags(parser.add_argument_group("training").add_argument)
    add_validation_flags(parser.add_argument_group("validation and logging").add_argument)
    add_hub_flags(parser.add_argument_group("Hub").add_argument)


def add_model_flags(add):
    add("--revision", help="branch, tag or commit of the base model")
    add("--variant", help="weight files of the base model, such as fp16")
    add("--cache_dir", help="where downloaded models and datasets are kept")
    words = "keep verdicts on images, and the base model's pictures, for later runs, in `scoft` in --cache_dir"
    add("--remember", default=True, **SWITCH, help=words)
    add("--prediction_type", choices=["epsilon", "v_prediction"], help="default: the base model's")
    add("--rank", type=at_most(tables.MAX_RANK, ", the width of the widest layers"), default=64, help="of the LoRA")
    add("--lora_alpha", type=positive, help="the LoRA is scaled by lora_alpha / rank; default: rank")
    add("--lora_layers", default="to_k,to_q,to_v,to_out.0", help="comma-separated UNet modules that get a LoRA")
    add("--enable_xformers_memory_efficient_attention", default=False, **SWITCH, help="needs the package xformers")
    add("--gradient_checkpointing", default=False, **SWITCH, help="less memory, more time")
    add("--compile", default=False, **SWITCH, help="torch.compile the UNet, on a GPU into CUDA graphs; slow at first")


def add_data_flags(add, *, resolution: int):
    add(
        *tables.DATASET_FLAGS,
        required=True,
        help="an embedded dataset, with its own defaults, a folder, a Hub id, or a bare name: <you>/NAME on the Hub",
    )
    add("--culture", "--dataset_config_name", help="the dataset's config; names the LoRA and the default prompts")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--image_column", default="image", help="the photograph x+")
    add("--caption_column", default="text", help="the cultural caption c_ccub")
    add("--blip_caption_column", default="blip_text", help="naive captions c_blip")
    add("--negatives_column", default="negatives", help="negatives x-")
    add("--max_train_samples", type=COUNT, help="train on this many rows, drawn with --seed")
    add("--skip_bad_images", default=False, **SWITCH, help="drop unusable images and captions, not stop")
    words = "side of the square training images in pixels"
    add("--resolution", type=multiple_of(8), default=resolution, help=words)
    add("--center_crop", default=True, **SWITCH, help="else a random crop, without caches of images")
    add("--random_flip", default=False, **SWITCH, help="mirror a photograph and its negatives at random")
    add("--image_interpolation_mode", default="lanczos", choices=tables.INTERPOLATIONS, help="how images are scaled")
    add("--cache_latents", default=True, **SWITCH, help="encode each photograph once")
    add("--precompute_dir", type=Path, help="keep latents, text, features and base pictures here")
    add("--text_cache_limit", type=AMOUNT, default=2, help="GB of text embeddings on the device; more: all in files")
    add("--dataloader_num_workers", type=from_zero(int), default=0, help="processes that load; 0: the main one")


def add_scoft_flags(group):
    add = group.add_argument
    add("--method", default="mpc", choices=METHODS, help="the paper's ablations, and plain finetune")
    for name, term in TERMS.items():
        note = f"default {term.weight}{term.help}"
        add(f"--{name}_weight", type=AMOUNT, help=f"weight of {term.symbol}; {note}; 0: off")
    add("--negative_weight", type=AMOUNT, default=1.0, help="lambda, on the distance to a negative")
    add("--margin", type=AMOUNT, help="m of the hinge; default: the distance's own, see scoft_losses.py")
    add("--perceptual_every", type=COUNT, default=10, help="L_P and L_C fall on every n-th update")
    add("--perceptual_distance", default="clip_conv", choices=DISTANCES, help="S of L_P and L_C")
    add("--perceptual_model_name_or_path", help="Hub id or folder; default: the distance's own")
    add_options(group, distance_options())
    add("--recorded_step", default="first", choices=tables.RECORDED_STEPS, help="the step that L_P and L_C train")
    words = "weight of that step's gradient: as derived, or alike at all timesteps"
    add("--recorded_step_scaling", default="paper", choices=tables.RECORDED_STEP_SCALINGS, help=words)
    add("--num_denoising_steps", type=COUNT, default=20, help="of DDIM, from z_t to x_hat")
    add("--denoising_guidance_scale", type=AMOUNT, default=4.5, help="1 + w, in drawing x_hat")
    add("--blip_captions_per_step", type=count_or("all"), default="1", help="drawn per photograph, or `all`")
    add("--memorization_teacher", default="current", choices=["current", "base"], help="who predicts for c_blip")


def add_training_flags(add):
    seed = number(int, lambda value: 0 <= value < 2**32, "is a number from 0 up and below 2**32")
    add("--output_dir", type=Path, help="default: scoft-<culture>")
    add("--seed", type=seed, default=0, help="of all that is random, pictures included")
    add("--train_batch_size", type=COUNT, default=1, help="per process")
    add("--gradient_accumulation_steps", type=COUNT, default=1, help="batches of an update")
    add("--max_train_steps", type=COUNT, help=f"updates; default {DEFAULT_TRAIN_STEPS}")
    add("--num_train_epochs", type=COUNT, help="where --max_train_steps is not given")
    add("--learning_rate", type=positive, default=1e-4, help="at its height")
    add("--scale_lr", default=False, **SWITCH, help="multiply the rate by the images of an update")
    add("--lr_scheduler", default="constant", choices=SCHEDULES, help="all but the constant ones end the rate at 0")
    add("--lr_warmup_steps", type=from_zero(int), default=0, help="in updates")
    add("--snr_gamma", type=positive, help="min-SNR weighting w_t of L_LDM; 5 is usual")
    add("--noise_offset", type=AMOUNT, default=0.0, help="noise that is one number for each channel")
    add("--use_8bit_adam", default=False, **SWITCH, help="moments in 8 bits; needs bitsandbytes")
    add("--adam_beta1", type=share, default=0.9, help="decay of the first moment")
    add("--adam_beta2", type=share, default=0.999, help="decay of the second moment")
    add("--adam_weight_decay", type=AMOUNT, default=1e-2, help="of AdamW, decoupled")
    add("--adam_epsilon", type=positive, default=1e-8, help="added to the root of the second moment")
    add("--max_grad_norm", type=positive, default=1.0, help="a longer gradient is cut to this")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")
    add("--allow_tf32", default=False, **SWITCH, help="float32 products in TF32, 10 bits, on Ampere GPUs and later")
    add("--cpu_threads", type=COUNT, help="of each process on a CPU, where accelerate's launcher says 1 unless told")
    add("--checkpointing_steps", type=COUNT, default=500, help="updates between checkpoints")
    add("--checkpoints_total_limit", type=COUNT, help="keep this many, the newest")
    add("--resume_from_checkpoint", help="`latest`, or the path of a checkpoint")


def add_validation_flags(add):
    add("--validation_prompts", nargs="+", help="{} in them is the culture, in words; default: the paper's two")
    add("--validation_prompt", dest="validation_prompts", nargs=1, help="as --validation_prompts, for one")
    add("--num_validation_images", type=from_zero(int), default=4, help="per prompt; 0: no pictures")
    add("--validation_epochs", type=COUNT, help="draw after every n-th epoch, besides at the end")
    add("--validation_steps", type=COUNT, help="draw after every n-th update, besides at the end")
    add("--validation_inference_steps", type=COUNT, default=30, help="of DDIM")
    add("--validation_guidance_scale", type=float, default=4.5, help="of the pictures")
    words = "FILE.py:function, called with (images, prompts), returns a dict of numbers"
    add("--validation_judge", type=function_of_file, help=words)
    add("--report_to", default="tensorboard", choices=[*TRACKERS, "all", "none"], help="a tracker, `all`, or `none`")
    add("--logging_dir", default="logs", help="of the trackers, inside --output_dir")
    add("--logging_steps", type=COUNT, default=10, help="updates between writes of metrics.jsonl")
    words = "log each weighted term's gradient norm on every n-th update, which then takes some three times as long"
    add("--term_norms_every", type=COUNT, help=words)


def add_hub_flags(add):
    add("--push_to_hub", default=False, **SWITCH, help="the LoRA and its page, at the end, as one commit")
    add("--hub_model_id", help="default: <you>/scoft-<culture>")
    add("--hub_private_repo", default=False, **SWITCH, help="for you alone to see")
    add("--hub_collection", help="title of a collection of yours that the LoRA joins, such as SCoFT")


def parsed(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments of a command line behind the tables that it names, and checked."""
    args = parser.parse_args(tables.with_tables(parser, sys.argv[1:] if argv is None else argv))
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    values = vars(args)
    if args.culture is None and args.method != "finetune":
        parser.error(f"--culture is needed with --method {args.method}; only finetune goes without")
    for term in TERMS:
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
    for flag in ("hub_model_id", "hub_private_repo", "hub_collection"):
        if values[flag] and not args.push_to_hub:
            parser.error(f"--{flag} has no effect without --push_to_hub")


def loss_weights(args: argparse.Namespace) -> dict[str, float]:
    """Weight by term, for the terms of the method that are not switched off."""
    defaults = DEFAULT_WEIGHTS | ({"ldm": 1.0} if args.method == "finetune" else {})
    given = {term: getattr(args, f"{term}_weight") for term in METHODS[args.method]}
    weights = {term: defaults[term] if weight is None else weight for term, weight in given.items()}
    return {term: weight for term, weight in weights.items() if weight > 0}
