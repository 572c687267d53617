#!/usr/bin/env python
"""Correct how Stable Diffusion depicts a culture while it draws, with the base model untouched.

    accelerate launch correct_scoft.py fit --dataset ccub --culture nigeria
    python correct_scoft.py draw scoft-nigeria-corrector --prompts "a wedding, in Nigeria"

With `--dataset pocket` the flags of pocket/defaults.yaml hold where the command line does not say otherwise.

After the abstract of RS-Corrector (https://arxiv.org/abs/2312.04810), all that is to be had of it; how it is done is
ours: the preference and its use in scoft/corrector/, the fit in scoft/correct/.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from scoft.launch import (
    Parser,
    at_least,
    command_again,
    from_zero,
    function_of_file,
    load_function,
    multiple_of,
    number,
    positive,
    run_main,
    set_up_logging,
)

from scoft.cultures import culture_words, in_words, naming_words
from scoft.dataset_source import Remedies, check_embedded, find_dataset, with_embedded_flags
from scoft.errors import DataError
from scoft.files import is_empty, sole_writer
from scoft.hub import ready_repo
from scoft.lora_folder import lora_name
from scoft.pages import aligned, comparison_rows
from scoft.user_cache import user_cache


# torch and all that imports it are imported where they are used: --help and a mistyped flag are answered without.

logger = logging.getLogger("scoft")

# Names of what would be heavy to import; tests/test_layers.py holds them to it.
KINDS = ("adapters", "tokens", "features")
ATTENTION = "to_q,to_k,to_v,to_out.0"
PROMPTS = ["Photo of a traditional building, in {}", "Two people wearing traditional clothing, in {}"]
REMEDIES = Remedies(bad_rows="--skip_bad_images leaves them out", no_negatives="or train a LoRA, which can go without")
REQUIRED = ("--dataset=any", "--culture=any")  # of fit


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    switch, count, amount = {"action": argparse.BooleanOptionalAction}, at_least(1), from_zero(float)
    whole = number(float, lambda value: 0 <= value <= 1, "is a number from 0 to 1")
    inner = number(float, lambda value: 0 < value < 1, "is a number between 0 and 1")
    seed = number(int, lambda value: 0 <= value < 2**32, "is a number from 0 up and below 2**32")

    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--revision", help="branch, tag or commit of the base model")
    add("--variant", help="weight files of the base model, such as fp16")
    add("--cache_dir", help="where downloaded models and datasets are kept")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="of the frozen weights; default: accelerate's")
    add("--strength", type=amount, help="of the correction; 0: none; default: 4, or the corrector's own")
    add("--start", type=whole, help="share of the steps that is left alone first; default: 0, or the corrector's own")
    add("--stop", type=whole, help="share of the steps after which no more is corrected; default: 1, or its own")
    add("--cap", type=positive, help="longest move before a step, as a share of the latent's norm; default: any")
    add("--inner_steps", type=count, help="into how many a move is divided; default: 1, or the corrector's own")
    add("--seed", type=seed, default=0, help="of all that is random, pictures included")

    fit = stages.add_parser("fit", parents=[common], help="a corrector, from a culture's photographs and negatives")
    add = fit.add_argument_group("base model and preference").add_argument
    words = "Hub id or folder of a Stable Diffusion 1.x or 2.x pipeline"
    add("--pretrained_model_name_or_path", default="CompVis/stable-diffusion-v1-4", help=words)
    words = "low-rank adapters, soft tokens, or `features`: gradient ascent, a control to compare with"
    add("--kind", default="adapters", choices=KINDS, help=words)
    add("--rank", type=count, default=16, help="of the adapters")
    add("--layers", default=ATTENTION, help="comma-separated UNet modules that get adapters")
    add("--num_tokens", type=count, default=4, help="on each side")
    words = "what in a prompt names the culture, as words; default: its name, for CCUB's cultures also the adjective"
    add("--words", nargs="+", help=words)

    add = fit.add_argument_group("data").add_argument
    add("--dataset", required=True, help="photographs with negatives, as train_scoft_lora.py takes them")
    add("--culture", required=True, help="the dataset's config; names the corrector")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--image_column", default="image", help="the photograph")
    add("--caption_column", default="text", help="its cultural caption")
    add("--negatives_column", default="negatives", help="what the base model makes of its scene")
    add("--max_train_samples", type=count, help="take this many rows, drawn with --seed")
    add("--skip_bad_images", default=False, **switch, help="drop unusable images and captions, not stop")
    add("--resolution", type=multiple_of(8), default=512, help="side of the square images in pixels")
    add("--held_out_share", type=inner, default=0.2, help="of the rows with negatives, on which the fit is tried")

    add = fit.add_argument_group("fitting").add_argument
    add("--output_dir", type=Path, help="default: scoft-<culture>-corrector")
    add("--train_batch_size", type=count, default=4, help="images of each side in an update")
    add("--max_train_steps", type=count, default=500, help="updates")
    add("--learning_rate", type=positive, default=1e-3, help="at the start; it falls to 0 by a half cosine")
    add("--max_grad_norm", type=positive, default=1.0, help="a longer gradient is cut to this")
    add("--snr_gamma", type=positive, help="min-SNR weighting of the denoising loss; 5 is usual")
    words = "of denoising negatives by a negative side of its own; 0: the base model, which drew them, is that side"
    add("--negative_weight", type=amount, default=0.0, help=words)
    add("--pair_weight", type=amount, default=0.0, help="of -log sigmoid(beta (r+ - r-)) on pairs; 0: none")
    add("--beta", type=positive, default=100.0, help="of that term")
    add("--checkpointing_steps", type=count, default=50, help="updates between checkpoints")
    add("--resume_from_checkpoint", choices=["latest"], help="go on in --output_dir, bit for bit on a CPU")
    add("--cpu_threads", type=count, help="on a CPU, where accelerate's launcher says 1 unless told")

    add = fit.add_argument_group("pictures").add_argument
    add("--validation_prompts", nargs="+", default=PROMPTS, help="{} in them is the culture, in words")
    add("--num_validation_images", type=from_zero(int), default=4, help="per prompt; 0: no pictures")
    add("--validation_inference_steps", type=count, default=30, help="of DDIM")
    add("--validation_guidance_scale", type=float, default=4.5, help="of the pictures")
    words = "FILE.py:function, called with (images, prompts), returns a dict of numbers"
    add("--validation_judge", type=function_of_file, help=words)

    add = fit.add_argument_group("Hub").add_argument
    add("--push_to_hub", default=False, **switch, help="the corrector and its page, at the end, as one commit")
    add("--hub_model_id", help="default: <you>/scoft-<culture>-corrector")
    add("--hub_private_repo", default=False, **switch, help="for you alone to see")

    draw = stages.add_parser("draw", parents=[common], help="pictures of the base model beside corrected ones")
    add = draw.add_argument
    add("corrector", help="folder or Hub id")
    add("--prompts", nargs="+", default=PROMPTS, help="{} in them is the corrector's culture, in words")
    add("--culture", help="that the corrector must be of; default: its own")
    add("--pretrained_model_name_or_path", help="default: what the corrector was fitted beside")
    add("--lora", type=Path, help="a LoRA's file, loaded beneath the corrector")
    add("--output_dir", type=Path, default=Path("corrected"), help="where the pictures are written")
    add("--num_images", type=count, default=4, help="per prompt")
    add("--num_inference_steps", type=count, default=30, help="of DDIM")
    add("--guidance_scale", type=float, default=4.5, help="of the pictures")
    add("--resolution", type=multiple_of(8), help="side of the pictures in pixels; default: the base model's own")

    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(with_embedded_flags(stages.choices, argv, flag="--dataset", required=REQUIRED))
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    if None not in (args.start, args.stop) and args.start >= args.stop:
        parser.error(f"--start {args.start} is to lie below --stop {args.stop}")
    if args.stage == "draw":
        return
    for flag in ("hub_model_id", "hub_private_repo"):
        if getattr(args, flag) and not args.push_to_hub:
            parser.error(f"--{flag} has no effect without --push_to_hub")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("fit works in one process: launch it with --num_processes 1")
    if args.words and not all(word.strip() for word in args.words):
        parser.error("--words: one of them is blank, and every prompt would be corrected")


def naming_of(args: argparse.Namespace) -> list[str]:
    """What in a prompt names the culture."""
    return args.words or naming_words(args.culture)


def knobs_of(args: argparse.Namespace) -> dict[str, float | int]:
    """Of the knobs of `scoft.corrector.callback.Knobs` those that are given."""
    knobs = {"strength": args.strength, "start": args.start, "stop": args.stop, "cap": args.cap}
    knobs["inner_steps"] = args.inner_steps
    return {name: value for name, value in knobs.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------------
# fit
# ---------------------------------------------------------------------------------------------------------------------


def build_preference(args: argparse.Namespace, model, *, knobs: dict):
    """The preference as it is at first, drawn with --seed. Raises DataError."""
    from accelerate.utils import set_seed

    from scoft.corrector.preference import Preference, layers_of, sample_of

    layers = layers_of(model.unet, args.layers.split(",")) if args.kind == "adapters" else None
    width = model.caption_shape[1] if args.kind == "tokens" else model.unet.config.block_out_channels[-1]
    set_seed(args.seed)
    return Preference(
        kind=args.kind,
        culture=args.culture,
        words=naming_of(args),
        base_model=args.pretrained_model_name_or_path,
        base_weights=sample_of(model.unet),
        prediction_type=model.prediction_type,
        num_train_timesteps=model.num_train_timesteps,
        rank=args.rank,
        layers=layers,
        num_tokens=args.num_tokens,
        width=width,
        **knobs,
    )


def read_pairs(args: argparse.Namespace, source):
    """The dataset, checked whole, with the negatives that a fit cannot do without. Raises DataError."""
    from scoft.dataset import read_dataset

    return read_dataset(
        source,
        culture=args.culture,
        image_column=args.image_column,
        caption_column=args.caption_column,
        negatives_column=args.negatives_column,
        needs_blip=False,
        needs_negatives=True,
        max_train_samples=args.max_train_samples,
        seed=args.seed,
        skip_bad_images=args.skip_bad_images,
        cache_dir=args.cache_dir,
        dataset_revision=args.dataset_revision,
        remember_in=user_cache(args.cache_dir),
        remedies=REMEDIES,
    )


def run_fit(args: argparse.Namespace, argv: list[str]):
    """Check all that can be before models load, fit, try, show, and share."""
    from scoft.correct.page import publish
    from scoft.corrector.callback import Knobs, is_named

    name = lora_name(args.culture, what="the corrector's name, by --culture,")
    output_dir = args.output_dir or Path(f"scoft-{name}-corrector")
    defaults = {"strength": 4.0, "start": 0.0, "stop": 1.0, "cap": None, "inner_steps": 1}
    knobs = vars(Knobs(**defaults | knobs_of(args)))
    words, prompts = naming_of(args), in_words(args.validation_prompts, args.culture)
    if unnamed := [prompt for prompt in prompts if args.num_validation_images and not is_named(prompt, words)]:
        raise DataError(f"none of {', '.join(words)} stands in the prompt {unnamed[0]!r}", argument="words")
    check_embedded(args.dataset)
    judge = load_function(args.validation_judge, flag="--validation_judge") if args.validation_judge else None
    source = find_dataset(args.dataset, culture=args.culture)
    with sole_writer(output_dir, flag="--output_dir"):
        if not args.resume_from_checkpoint and not is_empty(output_dir):
            raise DataError(
                f"{output_dir} is not empty: choose another folder, or go on in it with --resume_from_checkpoint "
                "latest",
                argument="output_dir",
            )
        dataset = read_pairs(args, source)
        repo_id, private = None, True
        if args.push_to_hub:
            hub_id, is_private = args.hub_model_id or output_dir.resolve().name, args.hub_private_repo
            repo_id, private = ready_repo(hub_id, repo_type="model", private=is_private, flag="--hub_model_id")
        resume = ["--resume_from_checkpoint", "latest"]
        retry = command_again("correct_scoft.py", argv, without=resume[:1], more=resume)
        fit_and_show(args, output_dir, source, dataset, knobs=knobs, judge=judge)
        publish(output_dir, repo_id=repo_id, private=private, retry=retry)
        place = repo_id or output_dir
        logger.info('Done. Corrector.from_pretrained("%s", pipe) loads it beside a pipeline.', place)


def build_fit(args: argparse.Namespace, dataset, *, accelerator, model, split, knobs: dict, folder: Path):
    """The fit as it is at its start. Raises DataError."""
    from scoft.correct.fit import Fit, Fitting
    from scoft.correct.pairs import Pairs
    from scoft.files import content_key

    device = accelerator.device
    preference = build_preference(args, model, knobs=knobs).to(device)
    fitting = Fitting(
        seed=args.seed,
        batch_size=args.train_batch_size,
        updates=args.max_train_steps,
        learning_rate=args.learning_rate,
        max_grad_norm=args.max_grad_norm,
        snr_gamma=args.snr_gamma,
        negative_weight=args.negative_weight,
        pair_weight=args.pair_weight,
        beta=args.beta,
    )
    shapes = {name: list(each.shape) for name, each in preference.named_parameters()}
    base = preference.config.base_weights
    data = (split, args.resolution, dataset.fingerprint)
    key = content_key("fit", args.culture, args.kind, fitting, *data, shapes, base, str(model.dtype))
    pairs = Pairs.of(dataset, split, model=model, resolution=args.resolution, device=device)
    return Fit(preference, model=model, pairs=pairs, fitting=fitting, folder=folder, key=key)


def fit_and_show(args: argparse.Namespace, folder: Path, source, dataset, *, knobs: dict, judge):
    """Fit a corrector and write it, with pictures and a record, into the folder. Raises DataError."""
    import torch
    from accelerate import Accelerator

    from scoft.base_model import StableDiffusion, base_commit, license_of
    from scoft.correct.fit import pair_accuracy
    from scoft.correct.page import record_of, write_record
    from scoft.correct.pairs import Split
    from scoft.corrector.callback import Corrector
    from scoft.weights import precision

    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    if accelerator.mixed_precision == "fp16":
        raise DataError(
            "fp16 loses small gradients; fit with bf16 or no, which serves a pipeline in fp16 as well",
            argument="mixed_precision",
        )
    split = Split.of(dataset, seed=args.seed, share=args.held_out_share)
    if args.cpu_threads and accelerator.device.type == "cpu":
        torch.set_num_threads(args.cpu_threads)
    base = args.pretrained_model_name_or_path
    place = {"revision": base_commit(base, revision=args.revision, cache_dir=args.cache_dir)}
    place["cache_dir"] = args.cache_dir
    wanted = {"variant": args.variant, "prediction_type": None, "dtype": precision(accelerator)}
    model = StableDiffusion.load(base, **place, **wanted)
    model.to(accelerator.device)
    fit = build_fit(args, dataset, accelerator=accelerator, model=model, split=split, knobs=knobs, folder=folder)
    if args.resume_from_checkpoint:
        fit.resume()
    logger.info("Fitting %s on %d photographs", args.kind, len(split.fitted))
    fit.run(checkpointing_steps=args.checkpointing_steps)

    corrector = Corrector(fit.preference.requires_grad_(False))
    corrector.save_pretrained(folder)
    accuracy = pair_accuracy(fit.preference, fit.pairs, seed=args.seed)
    shares = ("held-out pairs told apart", *map("{:.2f}".format, accuracy["held_out"]))
    for line in aligned([("t", *map(str, accuracy["timestep"])), shares]):
        logger.info("  %s", line)
    judged = draw_and_judge(args, folder, model, corrector, judge=judge) if args.num_validation_images else None
    record = record_of(
        fit,
        dataset,
        source,
        base_revision=place["revision"],
        license=license_of(base, **place),
        resolution=args.resolution,
        example=in_words(args.validation_prompts, args.culture)[0],
        guidance_scale=args.validation_guidance_scale,
        accuracy=accuracy,
        judged=judged,
    )
    write_record(folder, record)


def draw_and_judge(args: argparse.Namespace, folder: Path, model, corrector, *, judge):
    """The pictures before and after, and what the judge says of them, which it returns."""
    from scoft.correct.pictures import Drawing, show

    drawing = Drawing(
        prompts=in_words(args.validation_prompts, args.culture),
        images_per_prompt=args.num_validation_images,
        seed=args.seed,
        resolution=args.resolution,
        inference_steps=args.validation_inference_steps,
        guidance_scale=args.validation_guidance_scale,
    )
    title = f"{culture_words(args.culture)}: the base model, and corrected after {args.max_train_steps} updates"
    judged = show(folder, drawing, model, corrector, judge=judge, title=title)
    for line in aligned(comparison_rows(judged.base, judged.corrected, called="corrected")) if judged else ():
        logger.info("  %s", line)
    return judged


# ---------------------------------------------------------------------------------------------------------------------
# draw
# ---------------------------------------------------------------------------------------------------------------------


def run_draw(args: argparse.Namespace):
    from scoft.correct.draw import Plan, draw

    plan = Plan(
        corrector=args.corrector,
        culture=args.culture,
        base=args.pretrained_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        cache_dir=args.cache_dir,
        lora=args.lora,
        prompts=args.prompts,
        num_images=args.num_images,
        seed=args.seed,
        inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        resolution=args.resolution,
        mixed_precision=args.mixed_precision,
        knobs=knobs_of(args),
    )
    draw(plan, args.output_dir)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    set_up_logging()
    if args.stage == "fit":
        run_fit(args, argv)
    else:
        run_draw(args)


if __name__ == "__main__":
    run_main(
        main, memory_advice="A smaller --train_batch_size or --resolution needs less, and --mixed_precision bf16."
    )
