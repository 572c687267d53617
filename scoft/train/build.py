"""What a run is made of, built from its flags: dataset, distance, objective, examples, validation."""

import argparse
from pathlib import Path

import torch

from scoft.base_model import StableDiffusion
from scoft.dataset import CulturalDataset, read_dataset
from scoft.dataset_source import DatasetSource
from scoft.distances import distance_options, load_distance
from scoft.distances.base import PerceptualDistance
from scoft.images import ImageTransform
from scoft.train import tables
from scoft.train.constants import Constants
from scoft.train.examples import TrainingExamples
from scoft.train.objective import ImageLosses, Objective
from scoft.train.terms import TERMS
from scoft.train.validation import Validation


def build_dataset(
    args: argparse.Namespace, source: DatasetSource, *, weights: dict[str, float], remember_in: Path | None
) -> CulturalDataset:
    """What is trained on, checked whole; verdicts on its images are kept in the folder.  Raises DataError."""
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


def build_examples(
    args: argparse.Namespace,
    *,
    objective: Objective,
    dataset: CulturalDataset,
    transform: ImageTransform,
    images_per_update: int,
) -> TrainingExamples:
    """The endless order of training, whose entries hold the pixels that no constant of the objective serves."""
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
        sizes=[dataset.size(row) for row in range(len(dataset))] if objective.model.is_framed else None,
        load_photograph=objective.constants.latents is None,
        load_negatives_every=args.perceptual_every if every_image_anew else None,
    )


def build_validation(args: argparse.Namespace, accelerator, objective: Objective, *, prompts: list[str], **known):
    """known: the judge, the dataset, where the pictures go and are kept, and what is to be seen in them."""
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
