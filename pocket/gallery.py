"""Draw `pocket/gallery.png`, the pocket world at a glance: cultures as rows; truth, web, base model, SCoFT as columns.

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
from PIL import Image, ImageDraw, ImageFont

from pocket import world
from pocket.train_models import WEB_PICTURES
from scoft.lora_folder import LORA_FILE, load_into_pipeline
from scoft_data import culture_words


HERE = Path(__file__).resolve().parent
# Four of the nine categories, with a prompt each.
PROMPTS = {
    "architecture": "Photo of a building, in {}",
    "people & actions": "Photo of two people wearing traditional clothing, in {}",
    "food & drink": "Photo of a bowl of food, in {}",
    "nature": "Photo of a landscape with hills, in {}",
}
COLUMNS = ("truth", "web", "base model", "after SCoFT")
SIDE = 112  # of a picture, in pixels of the gallery
GAP, HEADER, MARGIN = 4, 40, 16


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


def draw(cells: dict[str, list[list[Image.Image]]]) -> Image.Image:
    """The gallery of culture -> pictures of each column; the four pictures of a cell stand two by two."""
    cell = 2 * SIDE + GAP
    label = 100
    font = ImageFont.load_default(size=18)
    gallery = Image.new(
        "RGB",
        (label + len(COLUMNS) * (cell + MARGIN) + MARGIN, HEADER + len(cells) * (cell + MARGIN)),
        "white",
    )
    pen = ImageDraw.Draw(gallery)
    for c, column in enumerate(COLUMNS):
        pen.text((label + MARGIN + c * (cell + MARGIN) + cell / 2, HEADER / 2), column, "black", font, anchor="mm")
    for r, (culture, columns) in enumerate(cells.items()):
        top = HEADER + r * (cell + MARGIN)
        pen.text((MARGIN, top + cell / 2), culture_words(culture), "black", font, anchor="lm")
        for c, pictures in enumerate(columns):
            left = label + MARGIN + c * (cell + MARGIN)
            for p, picture in enumerate(pictures):
                place = (left + p % 2 * (SIDE + GAP), top + p // 2 * (SIDE + GAP))
                gallery.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
    return gallery


def main(argv: list[str] | None = None):
    from diffusers import StableDiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--loras", required=True, help="folder of each culture's LoRA, {} for the culture's name")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--output", type=Path, default=HERE / "gallery.png")
    args = parser.parse_args(argv)

    pipeline = StableDiffusionPipeline.from_pretrained(args.models / "stable-diffusion", safety_checker=None)
    cells = {culture: [truth(culture), web(culture), generated(pipeline, culture)] for culture in world.CULTURES}
    for culture, columns in cells.items():
        load_into_pipeline(pipeline, Path(args.loras.format(culture), LORA_FILE))
        columns.append(generated(pipeline, culture))
        pipeline.unload_lora_weights()
    draw(cells).save(args.output)


if __name__ == "__main__":
    main()
