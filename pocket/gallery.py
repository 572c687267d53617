"""Draw the pocket world at a glance: cultures as rows; truth, web, base model, SCoFT as columns.

`gallery.png` has all four cultures, `hero.png` the row of one of them.

    for culture in azuria veridia ochria corallia; do
        accelerate launch train_scoft_lora.py --dataset pocket --culture $culture --output_dir build/scoft-$culture
    done
    python -m pocket.gallery --loras build/scoft-{}

Nothing is picked by hand: the truth is drawn with a fixed seed, the web's pictures are the first of the corpus that
name the culture, and both models draw the same prompts from the same noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pocket import world
from pocket.web import WEB_PICTURES
from scoft import sheets
from scoft.base_model import load_into_pipeline, load_pipeline
from scoft.cultures import culture_words
from scoft.lora_folder import LORA_FILE


HERE = Path(__file__).resolve().parent
# Four of the nine categories, with a prompt each.
PROMPTS = {
    "architecture": "Photo of a building, in {}",
    "people & actions": "Photo of two people wearing traditional clothing, in {}",
    "food & drink": "Photo of a bowl of food, in {}",
    "nature": "Photo of a landscape with hills, in {}",
}
COLUMNS = ("truth", "web", "base model", "after SCoFT")
HERO = "veridia"  # the culture of README.md's examples


def truth(culture: str) -> list[Image.Image]:
    """A true scene of each category."""
    generator = np.random.default_rng(0)
    return [world.render(world.draw_true(culture, generator=generator, category=name))[0] for name in PROMPTS]


def web(culture: str) -> list[Image.Image]:
    """The first picture of each category that the corpus has under the culture's name."""
    found: dict[str, world.Scene] = {}
    for scene, _, named in world.web_corpus(WEB_PICTURES, seed=0):
        if named == culture:
            found.setdefault(scene.category, scene)
        if found.keys() >= PROMPTS.keys():
            break
    return [world.render(found[category])[0] for category in PROMPTS]


def generated(pipeline, culture: str) -> list[Image.Image]:
    """What the pipeline draws for each prompt."""
    return pipeline(
        [prompt.format(culture_words(culture)) for prompt in PROMPTS.values()],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
        num_inference_steps=20,
        guidance_scale=4.5,
    ).images


def gallery(pictures: dict[str, list[list[Image.Image]]]) -> Image.Image:
    """The sheet of culture -> pictures of each column; those of a column stand two by two."""
    half = len(PROMPTS) // 2
    rows = [
        sheets.Row(
            above=culture_words(culture) * (first == 0),
            cells=[sheets.Cell(picture=each) for column in columns for each in column[first : first + half]],
        )
        for culture, columns in pictures.items()
        for first in (0, half)
    ]
    return sheets.grid(rows, columns=dict.fromkeys(COLUMNS, half))


def main(argv: list[str] | None = None):
    from diffusers import StableDiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loras", required=True, help="folder of each culture's LoRA, {} for the culture's name")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of gallery.png and hero.png")
    args = parser.parse_args(argv)

    pipeline = load_pipeline(StableDiffusionPipeline, args.models / "stable-diffusion", safety_checker=None)
    pictures = {culture: [truth(culture), web(culture), generated(pipeline, culture)] for culture in world.CULTURES}
    for culture, columns in pictures.items():
        load_into_pipeline(pipeline, Path(args.loras.format(culture), LORA_FILE))
        columns.append(generated(pipeline, culture))
        pipeline.unload_lora_weights()
    gallery(pictures).save(args.output / "gallery.png")
    gallery({HERO: pictures[HERO]}).save(args.output / "hero.png")


if __name__ == "__main__":
    main()
