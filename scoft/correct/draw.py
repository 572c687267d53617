"""Drawing with a corrector by its command: each prompt by the base model and corrected, at the same noise."""

import dataclasses
import logging
from pathlib import Path

from scoft.launch import progress

import torch

from scoft import sheets
from scoft.base_model import base_commit, drawing_pipeline, load_into_pipeline, own_resolution
from scoft.corrector.callback import Corrector, read_config
from scoft.cultures import culture_words, in_words
from scoft.errors import DataError
from scoft.files import sole_writer
from scoft.images import write_png
from scoft.lora_folder import LORA_FILE
from scoft.weights import precision


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked for; None: the corrector's or the base model's own."""

    corrector: str
    culture: str | None
    base: str | None
    revision: str | None
    variant: str | None
    cache_dir: str | None
    lora: Path | None  # a file, under the corrector
    prompts: list[str]  # {} in them is the culture, in words
    num_images: int
    seed: int
    inference_steps: int
    guidance_scale: float
    resolution: int | None
    mixed_precision: str | None
    knobs: dict[str, float | int | None]


def draw(plan: Plan, output_dir: Path):
    """Write `before_after.png`, and each picture as base-*.png and corrected-*.png. Raises DataError."""
    from accelerate import Accelerator

    config = read_config(plan.corrector, culture=plan.culture, knobs=plan.knobs, cache_dir=plan.cache_dir)
    if plan.lora and not plan.lora.is_file():
        raise DataError(f"{plan.lora} is not there; it is a LoRA's file, such as {LORA_FILE}", argument="lora")
    prompts = in_words(plan.prompts, config["culture"])
    base = plan.base or config["base_model"]
    commit = base_commit(base, revision=plan.revision, cache_dir=plan.cache_dir)
    resolution = plan.resolution or own_resolution(base, commit=commit, cache_dir=plan.cache_dir)
    accelerator = Accelerator(mixed_precision=plan.mixed_precision)
    place = {"commit": commit, "variant": plan.variant, "cache_dir": plan.cache_dir}
    pipe = drawing_pipeline(base, **place, device=accelerator.device, dtype=precision(accelerator))
    corrector = Corrector.from_pretrained(plan.corrector, pipe, cache_dir=plan.cache_dir, **plan.knobs)
    if plan.lora:
        load_into_pipeline(pipe, plan.lora)
    if unnamed := [prompt for prompt in prompts if not corrector.names_culture(prompt)]:
        words = ", ".join(corrector.preference.config.words)
        logger.warning("Not corrected, since none of %s stands in it: %s", words, "; ".join(unnamed))

    drawn = {"base": [], "corrected": []}
    with sole_writer(output_dir, flag="--output_dir"):
        for p, prompt in enumerate(progress(prompts, "Drawing")):
            for called, callback in (("base", None), ("corrected", corrector([prompt]))):
                images = pipe(
                    prompt,
                    num_images_per_prompt=plan.num_images,
                    generator=[torch.Generator().manual_seed(plan.seed + i) for i in range(plan.num_images)],
                    num_inference_steps=plan.inference_steps,
                    guidance_scale=plan.guidance_scale,
                    height=resolution,
                    width=resolution,
                    callback_on_step_end=callback,
                ).images
                drawn[called] += images
                for i, image in enumerate(images):
                    write_png(output_dir / f"{called}-{p:03d}-{i:03d}.png", image)
        title = f"{culture_words(config['culture'])}: the base model, and corrected"
        sheet = sheets.comparison_grid(prompts, *drawn.values(), title=title, called="corrected")
        write_png(output_dir / "before_after.png", sheet)
    logger.info("Drawn: %s", output_dir / "before_after.png")
