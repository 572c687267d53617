#!/usr/bin/env python
"""Train a culture's LoRA for Stable Diffusion with SCoFT (https://arxiv.org/abs/2401.08053).

    accelerate launch train_scoft_lora.py --dataset ccub --culture nigeria

Mirrors diffusers' `examples/text_to_image/train_text_to_image_lora.py`: its flags keep their names, its sections their
order.  What SCoFT adds stands in `training_losses` below and in `scoft_losses.py`; the rooms behind are scoft/train/.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.launch import (
    Parser,
    add_options,
    at_least,
    at_most,
    command_again,
    count_or,
    from_zero,
    function_of_file,
    load_function,
    multiple_of,
    number,
    positive,
    progress,
    run_main,
    set_up_logging,
    share,
)

from scoft.cultures import culture_words
from scoft.dataset_source import DatasetSource, check_embedded, find_dataset
from scoft.distances import DISTANCES, distance_options, load_distance
from scoft.hub import ready_repo
from scoft.lora_folder import KOHYA_FILE, LORA_FILE, lora_name
from scoft.lora_page import publish
from scoft.train import tables
from scoft.train.checkpoints import check_space, find_checkpoint, is_finished, load_checkpoint, save_checkpoint, seal
from scoft.train.optimizer import SCHEDULES, make_optimizer, make_schedule
from scoft.train.terms import ACTIVE, DEFAULT_WEIGHTS, IMAGE_TERMS, METHODS, TERMS
from scoft.train.trackers import TRACKERS
from scoft.user_cache import user_cache


# torch and all that imports it are imported where they are used: arguments are read and checked first.

if TYPE_CHECKING:
    import torch

    from scoft.base_model import StableDiffusion
    from scoft.dataset import CulturalDataset
    from scoft.distances.base import PerceptualDistance
    from scoft.images import ImageTransform
    from scoft.train.examples import TrainingExamples
    from scoft.train.objective import Objective

logger = logging.getLogger("scoft")
DEFAULT_TRAIN_STEPS = 3000

# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    seed = number(int, lambda value: 0 <= value < 2**32, "is a number from 0 up and below 2**32")
    parser = Parser(description=__doc__.partition("\n")[0])
    switch, count, amount = {"action": argparse.BooleanOptionalAction}, at_least(1), from_zero(float)
    add = parser.add_argument
    add("--config", type=Path, help="YAML file of flags, without dashes; {here}: its folder; the command line wins")

    add = parser.add_argument_group("model").add_argument
    words = "Hub id or folder of a Stable Diffusion 1.x or 2.x pipeline"
    add("--pretrained_model_name_or_path", default="CompVis/stable-diffusion-v1-4", help=words)
    add("--revision", help="branch, tag or commit of the base model")
    add("--variant", help="weight files of the base model, such as fp16")
    add("--cache_dir", help="where downloaded models and datasets are kept")
    words = "keep verdicts on images, and the base model's pictures, for later runs, in `scoft` in --cache_dir"
    add("--remember", default=True, **switch, help=words)
    add("--prediction_type", choices=["epsilon", "v_prediction"], help="default: the base model's")
    add("--rank", type=at_most(tables.MAX_RANK, ", the width of the widest layers"), default=64, help="of the LoRA")
    add("--lora_alpha", type=positive, help="the LoRA is scaled by lora_alpha / rank; default: rank")
    add("--lora_layers", default="to_k,to_q,to_v,to_out.0", help="comma-separated UNet modules that get a LoRA")
    add("--enable_xformers_memory_efficient_attention", default=False, **switch, help="needs the package xformers")
    add("--gradient_checkpointing", default=False, **switch, help="less memory, more time")
    add("--compile", default=False, **switch, help="torch.compile the UNet, on a GPU into CUDA graphs; slow at first")

    add = parser.add_argument_group("data").add_argument
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
    add("--max_train_samples", type=count, help="train on this many rows, drawn with --seed")
    add("--skip_bad_images", default=False, **switch, help="drop unusable images and captions, not stop")
    add("--resolution", type=multiple_of(8), default=512, help="side of the square training images in pixels")
    add("--center_crop", default=True, **switch, help="else a random crop, without caches of images")
    add("--random_flip", default=False, **switch, help="mirror a photograph and its negatives at random")
    add("--image_interpolation_mode", default="lanczos", choices=tables.INTERPOLATIONS, help="how images are scaled")
    add("--cache_latents", default=True, **switch, help="encode each photograph once")
    add("--precompute_dir", type=Path, help="keep latents, text, features and base pictures here")
    add("--text_cache_limit", type=amount, default=2, help="GB of text embeddings on the device; more: all in files")
    add("--dataloader_num_workers", type=from_zero(int), default=0, help="processes that load; 0: the main one")

    group = parser.add_argument_group("SCoFT")
    add = group.add_argument
    add("--method", default="mpc", choices=METHODS, help="the paper's ablations, and plain finetune")
    for name, term in TERMS.items():
        note = f"default {term.weight}{term.help}"
        add(f"--{name}_weight", type=amount, help=f"weight of {term.symbol}; {note}; 0: off")
    add("--negative_weight", type=amount, default=1.0, help="lambda, on the distance to a negative")
    add("--margin", type=amount, help="m of the hinge; default: the distance's own, see scoft_losses.py")
    add("--perceptual_every", type=count, default=10, help="L_P and L_C fall on every n-th update")
    add("--perceptual_distance", default="clip_conv", choices=DISTANCES, help="S of L_P and L_C")
    add("--perceptual_model_name_or_path", help="Hub id or folder; default: the distance's own")
    add_options(group, distance_options())
    add("--recorded_step", default="first", choices=tables.RECORDED_STEPS, help="the step that L_P and L_C train")
    words = "weight of that step's gradient: as derived, or alike at all timesteps"
    add("--recorded_step_scaling", default="paper", choices=tables.RECORDED_STEP_SCALINGS, help=words)
    add("--num_denoising_steps", type=count, default=20, help="of DDIM, from z_t to x_hat")
    add("--denoising_guidance_scale", type=amount, default=4.5, help="1 + w, in drawing x_hat")
    add("--blip_captions_per_step", type=count_or("all"), default="1", help="drawn per photograph, or `all`")
    add("--memorization_teacher", default="current", choices=["current", "base"], help="who predicts for c_blip")

    add = parser.add_argument_group("training").add_argument
    add("--output_dir", type=Path, help="default: scoft-<culture>")
    add("--seed", type=seed, default=0, help="of all that is random, pictures included")
    add("--train_batch_size", type=count, default=1, help="per process")
    add("--gradient_accumulation_steps", type=count, default=1, help="batches of an update")
    add("--max_train_steps", type=count, help=f"updates; default {DEFAULT_TRAIN_STEPS}")
    add("--num_train_epochs", type=count, help="where --max_train_steps is not given")
    add("--learning_rate", type=positive, default=1e-4, help="at its height")
    add("--scale_lr", default=False, **switch, help="multiply the rate by the images of an update")
    add("--lr_scheduler", default="constant", choices=SCHEDULES, help="all but the constant ones end the rate at 0")
    add("--lr_warmup_steps", type=from_zero(int), default=0, help="in updates")
    add("--snr_gamma", type=positive, help="min-SNR weighting w_t of L_LDM; 5 is usual")
    add("--noise_offset", type=amount, default=0.0, help="noise that is one number for each channel")
    add("--use_8bit_adam", default=False, **switch, help="moments in 8 bits; needs bitsandbytes")
    add("--adam_beta1", type=share, default=0.9, help="decay of the first moment")
    add("--adam_beta2", type=share, default=0.999, help="decay of the second moment")
    add("--adam_weight_decay", type=amount, default=1e-2, help="of AdamW, decoupled")
    add("--adam_epsilon", type=positive, default=1e-8, help="added to the root of the second moment")
    add("--max_grad_norm", type=positive, default=1.0, help="a longer gradient is cut to this")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")
    add("--allow_tf32", default=False, **switch, help="float32 products in TF32, 10 bits, on Ampere GPUs and later")
    add("--cpu_threads", type=count, help="of each process on a CPU, where accelerate's launcher says 1 unless told")
    add("--checkpointing_steps", type=count, default=500, help="updates between checkpoints")
    add("--checkpoints_total_limit", type=count, help="keep this many, the newest")
    add("--resume_from_checkpoint", help="`latest`, or the path of a checkpoint")

    add = parser.add_argument_group("validation and logging").add_argument
    add("--validation_prompts", nargs="+", help="{} in them is the culture, in words; default: the paper's two")
    add("--validation_prompt", dest="validation_prompts", nargs=1, help="as --validation_prompts, for one")
    add("--num_validation_images", type=from_zero(int), default=4, help="per prompt; 0: no pictures")
    add("--validation_epochs", type=count, help="draw after every n-th epoch, besides at the end")
    add("--validation_steps", type=count, help="draw after every n-th update, besides at the end")
    add("--validation_inference_steps", type=count, default=30, help="of DDIM")
    add("--validation_guidance_scale", type=float, default=4.5, help="of the pictures")
    words = "FILE.py:function, called with (images, prompts), returns a dict of numbers"
    add("--validation_judge", type=function_of_file, help=words)
    add("--report_to", default="tensorboard", choices=[*TRACKERS, "all", "none"], help="a tracker, `all`, or `none`")
    add("--logging_dir", default="logs", help="of the trackers, inside --output_dir")
    add("--logging_steps", type=count, default=10, help="updates between writes of metrics.jsonl")
    words = "log each weighted term's gradient norm on every n-th update, which then takes some three times as long"
    add("--term_norms_every", type=count, help=words)

    add = parser.add_argument_group("Hub").add_argument
    add("--push_to_hub", default=False, **switch, help="the LoRA and its page, at the end, as one commit")
    add("--hub_model_id", help="default: <you>/scoft-<culture>")
    add("--hub_private_repo", default=False, **switch, help="for you alone to see")
    add("--hub_collection", help="title of a collection of yours that the LoRA joins, such as SCoFT")

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


# ---------------------------------------------------------------------------------------------------------------------
# The objective
# ---------------------------------------------------------------------------------------------------------------------


def training_losses(batch: dict, objective: Objective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The SCoFT objective on one micro-batch (section 4), its terms and what else is logged; scalars, means over rows.

    batch: z_0 and eps (B, 4, h, w); c_ccub and c_null (B, 77, D); c_blip (N, 77, D); where L_P and L_C are due, f_pos
        (B, P, D), f_neg (B, K, P, D) and is_negative (B, K).  On the CPU, so that no device is waited for: t (B,),
        recorded_u (B,) and blip_rows (N,), the row that each naive caption belongs to, in order.
    """
    import torch

    from scoft.train.constants import pad_rows, to_device
    from scoft_losses import latent_gradient, ldm_loss, memorization_loss, recorded_step_surrogate, weighted_sum

    model, weights, images = objective.model, objective.weights, objective.images if "f_pos" in batch else None
    z_0, eps, c_ccub = batch["z_0"], batch["eps"], batch["c_ccub"]
    size, t = len(z_0), to_device(batch["t"], z_0.device)
    z_t = model.noised(z_0, eps, t)

    # All that carries no gradient comes first.
    eps_blip = objective.teach(batch, z_t, t) if "memorization" in weights else None
    z_in, t_in, c_in = z_t, t, c_ccub
    if images:
        rollout = objective.roll_out(batch, z_t)
        g, image_terms = latent_gradient(lambda z: image_losses(z, batch, objective), weights, rollout.z_hat_0)
        if images.denoiser.recorded_step != "first":
            z_in, t_in = torch.cat([z_t, rollout.z_recorded]), torch.cat([t, rollout.t_recorded])
            c_in = torch.cat([c_ccub, c_ccub])

    # The one graph of the update.  Where the first step is recorded, its prediction is L_LDM's own.
    eps_theta = model.predict(z_in, t_in, c_in)
    eps_theta, eps_recorded = eps_theta[:size], eps_theta[-size:]

    terms = {}
    if "ldm" in weights:
        w_t = objective.snr_gamma and model.snr_weights(t, gamma=objective.snr_gamma)
        terms["ldm"] = ldm_loss(eps_theta, model.target(z_0, eps, t), w_t=w_t)
    if "memorization" in weights:
        counts = torch.bincount(batch["blip_rows"], minlength=size).tolist()
        terms["memorization"] = memorization_loss(eps_theta, *pad_rows(list(eps_blip.split(counts))))

    loss = weighted_sum(terms, weights)
    if images:
        loss = loss + recorded_step_surrogate(eps_recorded, rollout.c, g)
        terms |= image_terms
    return loss.mean(), {name: term.detach().mean() for name, term in terms.items()}


def image_losses(z: torch.Tensor, batch: dict, objective: Objective) -> dict[str, torch.Tensor]:
    """L_P and L_C (equations 3 and 4) of a latent z (B, 4, h, w), each (B,), as far as they have a weight.

    Beside L_C comes the share of the negatives that it sees.
    """
    from scoft_losses import active_negatives, perceptual_loss, self_contrastive_loss

    images, weights = objective.images, objective.weights
    f_hat = images.distance.embed(objective.model.decode(z))
    d_pos = perceptual_loss(images.distance, f_hat, batch["f_pos"])
    terms = {"perceptual": d_pos} if "perceptual" in weights else {}
    if "contrastive" in weights:
        distances = d_pos, images.distance.compare(f_hat[:, None], batch["f_neg"]), batch["is_negative"]
        terms["contrastive"] = self_contrastive_loss(*distances, **images.hinge)
        terms[ACTIVE] = active_negatives(*distances, **images.hinge)
    return terms


def build_distance(args: argparse.Namespace, model: StableDiffusion, device: torch.device) -> PerceptualDistance:
    """S of L_P and L_C.  Raises DataError."""
    return load_distance(
        args.perceptual_distance,
        model_name_or_path=args.perceptual_model_name_or_path,
        device=device,
        dtype=model.image_dtype,
        cache_dir=args.cache_dir,
        flags=("--perceptual_distance", "--perceptual_model_name_or_path"),
        **{option: getattr(args, option) for option in distance_options()},
    )


def build_objective(
    args: argparse.Namespace,
    *,
    model: StableDiffusion,
    dataset: CulturalDataset,
    prompts: list[str],
    weights: dict[str, float],
    distance: PerceptualDistance | None,
    transform: ImageTransform,
    device: torch.device,
) -> Objective:
    """Compute what never changes in the run, and decide the rest; the encoders leave the device.

    prompts: captions besides the dataset's.  distance: S, where a term is on images.
    """
    from scoft.train.constants import Constants
    from scoft.train.objective import ImageLosses, Objective

    constants = Constants.compute(
        dataset,
        more_captions=prompts,
        transform=transform,
        model=model,
        distance=distance,
        device=device,
        flips=(False, True) if args.random_flip else (False,),
        one_crop=args.center_crop,
        keep_latents=args.cache_latents,
        precompute_dir=args.precompute_dir,
        text_limit=args.text_cache_limit,
    )
    model.decode_in(model.image_dtype)
    images = None
    if distance is not None:
        denoiser = model.denoiser(
            num_steps=args.num_denoising_steps,
            guidance_scale=args.denoising_guidance_scale,
            recorded_step=args.recorded_step,
            scaling=args.recorded_step_scaling,
        )
        images = ImageLosses(
            distance=distance,
            denoiser=denoiser,
            negative_weight=args.negative_weight,
            margin=distance.default_margin if args.margin is None else args.margin,
            every=args.perceptual_every,
        )
    most = max(map(len, dataset.blip_captions), default=0)  # naive captions of a photograph in an update
    if args.blip_captions_per_step != "all":
        most = min(most, int(args.blip_captions_per_step))
    return Objective(
        model=model,
        constants=constants,
        weights=weights,
        teacher=args.memorization_teacher,
        snr_gamma=args.snr_gamma,
        images=images,
        naive_captions=args.train_batch_size * most if args.compile else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def build_dataset(
    args: argparse.Namespace, source: DatasetSource, *, weights: dict[str, float], remember_in: Path | None
) -> CulturalDataset:
    """What is trained on, checked whole; verdicts on its images are kept in the folder.  Raises DataError."""
    from scoft.dataset import read_dataset

    needs = {TERMS[term].needs for term in weights}
    return read_dataset(
        source,
        culture=args.culture,
        image_column=args.image_column,
        caption_column=args.caption_column,
        blip_caption_column=args.blip_caption_column,
        negatives_column=args.negatives_column,
        needs_blip="blip_captions" in needs,
        needs_negatives="negatives" in needs,
        max_train_samples=args.max_train_samples,
        seed=args.seed,
        skip_bad_images=args.skip_bad_images,
        cache_dir=args.cache_dir,
        dataset_revision=args.dataset_revision,
        remember_in=remember_in,
        remedies=tables.REMEDIES,
    )


def build_examples(
    args: argparse.Namespace,
    *,
    objective: Objective,
    dataset: CulturalDataset,
    transform: ImageTransform,
    images_per_update: int,
) -> TrainingExamples:
    """The endless order of training, whose entries hold the pixels that no constant of the objective serves."""
    from scoft.train.examples import TrainingExamples

    every_image_anew = objective.images is not None and not args.center_crop
    return TrainingExamples(
        dataset,
        transform=transform,
        caption_index=objective.constants.caption_index,
        seed=args.seed,
        entries_per_update=images_per_update,
        latent_shape=objective.model.latent_shape(args.resolution),
        num_train_timesteps=objective.model.num_train_timesteps,
        blip_captions_per_step=None if args.blip_captions_per_step == "all" else int(args.blip_captions_per_step),
        random_flip=args.random_flip,
        random_crop=not args.center_crop,
        noise_offset=args.noise_offset,
        load_photograph=objective.constants.latents is None,
        load_negatives_every=args.perceptual_every if every_image_anew else None,
    )


def build_validation(args: argparse.Namespace, accelerator, objective: Objective, *, prompts: list[str], **known):
    """known: the judge, the dataset, where the pictures go and are kept, and what is to be seen in them."""
    from scoft.train.validation import Validation

    return Validation(
        accelerator=accelerator,
        model=objective.model,
        embed=objective.constants.embed,
        prompts=prompts,
        images_per_prompt=args.num_validation_images,
        seed=args.seed,
        resolution=args.resolution,
        inference_steps=args.validation_inference_steps,
        guidance_scale=args.validation_guidance_scale,
        compiled=args.compile,
        **known,
    )


def update(
    args: argparse.Namespace,
    step: int,
    batches: Iterator[dict],
    losses: Callable[[dict, int], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    *,
    objective: Objective,
    accelerator,
    parameters: list[torch.nn.Parameter],
    optimizer,
    lr_scheduler,
) -> dict[str, torch.Tensor | float]:
    """Do one update; returns its values, still on the device, as named in metrics.jsonl.

    losses(batch, step): the loss; by name its terms and what else is logged.  Nothing here waits for the device.
    """
    from scoft_losses import weighted_sum

    accumulation, sums = args.gradient_accumulation_steps, {}
    for micro_step in range(accumulation):
        is_last = micro_step == accumulation - 1  # whose backward pass alone is reduced over the processes
        with contextlib.nullcontext() if is_last else accelerator.no_sync(objective.model.trained):
            loss, terms = losses(next(batches), step)
            accelerator.backward(loss / accumulation)
        for term, value in terms.items():
            sums[term] = sums.get(term, 0) + value / accumulation
    grad_norm = accelerator.clip_grad_norm_(parameters, args.max_grad_norm)
    lr = lr_scheduler.get_last_lr()[0]
    optimizer.step()
    optimizer.zero_grad()
    lr_scheduler.step()
    terms = {term: sums.pop(term) for term in objective.weights if term in sums}
    by_name = {f"loss/{term}": value for term, value in terms.items()}
    return {"loss": weighted_sum(terms, objective.weights), **by_name, **sums, "lr": lr, "grad_norm": grad_norm}


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    set_up_logging()

    from scoft.base_model import StableDiffusion, base_commit, license_of
    from scoft.images import ImageTransform
    from scoft.train.examples import crosses_epoch, is_due, make_loader
    from scoft.train.processes import StopRequest, check_packages, claimed, start_processes
    from scoft.train.records import Metrics, abandon_what_follows, announce, resolve, write_record
    from scoft.train.validation import validation_prompts
    from scoft.weights import precision

    named_by = "--culture" if args.culture else "the last part of --dataset"
    name = lora_name(args.culture or Path(args.dataset).resolve().name, what=f"the LoRA's name, by {named_by},")
    output_dir = args.output_dir or Path(f"scoft-{name}")
    xformers = args.enable_xformers_memory_efficient_attention
    check_packages(report_to=args.report_to, use_8bit_adam=args.use_8bit_adam, xformers=xformers)
    check_embedded(args.dataset)
    judge = load_function(args.validation_judge, flag="--validation_judge") if args.validation_judge else None
    source = find_dataset(args.dataset, culture=args.culture)
    prompts = validation_prompts(args.validation_prompts, culture=args.culture) if args.num_validation_images else []
    with claimed(output_dir, goes_on=bool(args.resume_from_checkpoint)):
        weights = loss_weights(args)
        remember_in = user_cache(args.cache_dir) if args.remember else None
        dataset = build_dataset(args, source, weights=weights, remember_in=remember_in)

        # Accelerator.  Arguments and data are in order: now the heavy imports.
        accelerator = start_processes(
            mixed_precision=args.mixed_precision,
            report_to=args.report_to,
            output_dir=output_dir,
            logging_dir=args.logging_dir,
            allow_tf32=args.allow_tf32,
            cpu_threads=args.cpu_threads,
            compile=args.compile,
        )
        device, is_main = accelerator.device, accelerator.is_main_process
        images_per_update = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        total_steps = args.max_train_steps or DEFAULT_TRAIN_STEPS
        if args.num_train_epochs and not args.max_train_steps:
            total_steps = math.ceil(args.num_train_epochs * len(dataset) / images_per_update)
        checkpoint, first_step = None, 0
        if args.resume_from_checkpoint:
            checkpoint, first_step = find_checkpoint(output_dir, args.resume_from_checkpoint)
        repo_id, private = None, True
        if args.push_to_hub and is_main:
            hub_id, is_private = args.hub_model_id or f"scoft-{name}", args.hub_private_repo
            repo_id, private = ready_repo(hub_id, repo_type="model", private=is_private, flag="--hub_model_id")
        goal, resume = ["--max_train_steps", str(total_steps)], ["--resume_from_checkpoint", "latest"]
        retry = command_again("train_scoft_lora.py", argv, without=[goal[0], resume[0]], more=goal + resume)
        hub = {"repo_id": repo_id, "private": private, "collection": args.hub_collection, "retry": retry}
        if is_finished(output_dir, step=first_step, total_steps=total_steps):
            logger.info("%s has all %d updates and its LoRA is written: nothing to train.", checkpoint, total_steps)
            if repo_id:
                publish(output_dir, **hub)
            return

        # Models: the frozen ones in the accelerator's dtype, the LoRA always in float32.
        base = args.pretrained_model_name_or_path
        base_revision = base_commit(base, revision=args.revision, cache_dir=args.cache_dir)
        place = {"revision": base_revision, "cache_dir": args.cache_dir}
        wanted = {"variant": args.variant, "prediction_type": args.prediction_type, "dtype": precision(accelerator)}
        model = StableDiffusion.load(base, **place, **wanted)
        model.to(device)

        # LoRA
        from accelerate.utils import set_seed

        set_seed(args.seed)  # every process starts from the same LoRA
        alpha = args.lora_alpha or float(args.rank)
        lora_parameters = model.add_lora(rank=args.rank, alpha=alpha, target_modules=args.lora_layers.split(","))
        model.speed_up(
            gradient_checkpointing=args.gradient_checkpointing,
            xformers=xformers,
            compile=args.compile,
        )

        # Optimizer, and where to go on
        learning_rate = args.learning_rate * (images_per_update if args.scale_lr else 1)
        settings = {"lr": learning_rate, "weight_decay": args.adam_weight_decay}
        settings |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        if is_main:
            check_space(output_dir, lora_parameters)
        optimizer = make_optimizer(lora_parameters, use_8bit=args.use_8bit_adam, **settings)
        scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler}
        state = {"optimizer": optimizer} | scaler
        if checkpoint:
            load_checkpoint(checkpoint, model=model, state=state)
        if args.resume_from_checkpoint:
            place_found = checkpoint or "the start: no checkpoint yet"
            logger.info("Resuming from %s, after %d updates.", place_found, first_step)
        steps = {"first_step": first_step, "total_steps": total_steps}
        lr_scheduler = make_schedule(
            optimizer, kind=args.lr_scheduler, warmup_steps=args.lr_warmup_steps, **steps, **settings
        )
        model.trained, optimizer = accelerator.prepare(model.trained, optimizer)
        stepped = {"parameters": lora_parameters, "optimizer": optimizer, "lr_scheduler": lr_scheduler}

        # Objective
        transform = ImageTransform(args.resolution, args.image_interpolation_mode)
        one_at_a_time = args.precompute_dir or args.perceptual_distance == "dreamsim"  # both write files
        with accelerator.main_process_first() if one_at_a_time else contextlib.nullcontext():
            distance = build_distance(args, model, device) if IMAGE_TERMS & weights.keys() else None
            known = {"weights": weights, "distance": distance, "transform": transform, "device": device}
            objective = build_objective(args, model=model, dataset=dataset, prompts=prompts, **known)

        # Data
        known = {"dataset": dataset, "transform": transform, "images_per_update": images_per_update}
        examples = build_examples(args, objective=objective, **known)
        loader = make_loader(
            examples,
            range(first_step, total_steps),
            train_batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            num_workers=args.dataloader_num_workers,
            accelerator=accelerator,
        )

        # Records
        resolved = resolve(
            dataset,
            source,
            name=name,
            prompts=prompts,
            base_model=base,
            base_revision=base_revision,
            license=license_of(base, **place),
            method=args.method,
            weights=weights,
            margin=objective.images and objective.images.margin,
            updates=total_steps,
            images_per_update=images_per_update,
            learning_rate=learning_rate,
            lora_alpha=alpha,
            mixed_precision=accelerator.mixed_precision,
        )
        if is_main:
            abandon_what_follows(output_dir, first_step)
            record = write_record(output_dir, vars(args), resolved)
            arguments = {flag: str(value) for flag, value in record["arguments"].items()}
            accelerator.init_trackers("scoft", config=arguments)
        metrics = Metrics(output_dir / "metrics.jsonl", step=first_step, accelerator=accelerator)
        every = args.perceptual_every if objective.images else None
        factors = (args.train_batch_size, accelerator.num_processes, args.gradient_accumulation_steps)
        announce(resolved, factors=factors, lora_parameters=lora_parameters, perceptual_every=every)
        validate = None
        if prompts:
            shown = {"prompts": prompts, "dataset": dataset, "subject": culture_words(args.culture or name)}
            known = {"folder": output_dir / "images", "keep_in": args.precompute_dir or remember_in}
            validate = build_validation(args, accelerator, objective, judge=judge, **known, **shown)

        # Training
        def losses(batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch = objective.assemble(batch, step)
            norms_due = is_due(step, args.term_norms_every)
            norms = objective.term_norms(batch, training_losses, scaler=accelerator.scaler) if norms_due else {}
            loss, terms = training_losses(batch, objective)
            return loss, terms | norms

        batches, stopped, newest = iter(loader), False, {}
        with (
            StopRequest(accelerator) as stop,
            progress(initial=first_step, total=total_steps, desc="Updates", disable=not is_main) as bar,
        ):
            for step in range(first_step + 1, total_steps + 1):
                values = update(args, step, batches, losses, objective=objective, accelerator=accelerator, **stepped)
                metrics.add(step, values)
                bar.update()
                is_last = step == total_steps
                checkpoint_due = is_last or is_due(step, args.checkpointing_steps)
                epoch = {"images_per_update": images_per_update, "num_rows": len(dataset)}
                validation_due = not is_last and (
                    is_due(step, args.validation_steps) or crosses_epoch(step, args.validation_epochs, **epoch)
                )
                if checkpoint_due or validation_due or is_due(step, args.logging_steps) or stop.requested_here:
                    for line in metrics.flush():
                        newest |= {name: f"{value:.3g}" for name, value in line.items() if "loss" in name}
                    bar.set_postfix(newest, refresh=False)
                    stopped = stop.agreed() and not is_last
                if checkpoint_due or stopped:
                    objective.check_prediction(step, seed=args.seed, resolution=args.resolution)
                    if is_main:
                        limit = args.checkpoints_total_limit
                        save_checkpoint(output_dir, step=step, model=model, state=state, total_limit=limit)
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
                kohya_name = KOHYA_FILE.format(name)
                model.save_lora(output_dir, kohya_name=kohya_name)
                seal(output_dir, step=total_steps, names=[LORA_FILE, kohya_name])
            if validate:
                validate(total_steps, final=True)
            if is_main:
                metrics.warn_of_idle_loss(margin=resolved.margin)
                publish(output_dir, **hub)
                done = repo_id or output_dir
                logger.info('Done. pipe.load_lora_weights("%s") puts it into a StableDiffusionPipeline.', done)
        accelerator.end_training()


if __name__ == "__main__":
    run_main(main, memory_advice=tables.MEMORY_ADVICE)
