"""What the shipped pocket models are worth.

    python -m benchmarks.pocket_models --output benchmarks/results/pocket_models.json

- base: how often the base pipeline draws the category it is asked for, without a culture in the prompt; and, under
  each culture's name, how often it shows the truth, the stereotype and Azuria's look, by three samplers, beside the
  web's own rates;
- controlnet: how the estimated depth of its pictures correlates with the depth given;
- depth, captioner: how they read unseen renders.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from pocket import judge, world
from scoft.base_model import load_pipeline
from scoft.cultures import CATEGORIES, culture_words
from scoft.prepare.caption import Captioner
from scoft.prepare.negatives import DepthEstimator
from scoft.weights import load_whole


MODELS = judge.MODELS
BATCH = 32


# Guidance reshapes the proportions that the model has learnt, and so do few steps without noise of their own. To see
# them as they are, pictures are drawn without the one and with many steps of the other kind.
SAMPLERS = {
    "as learnt": {"guidance_scale": 1.0, "num_inference_steps": 100, "eta": 1.0},
    "guidance 1": {"guidance_scale": 1.0, "num_inference_steps": 20},
    "guidance 4.5": {"guidance_scale": 4.5, "num_inference_steps": 20},
}


def pictures(pipeline, prompts: list[str], *, sampler: str = "guidance 4.5", **inputs: list) -> list:
    """A picture of each prompt by DDIM; the seeds are the prompts' places. `inputs` go along, row by row."""
    images = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, start + BATCH)
        images += pipeline(
            prompts[part],
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))[part]],
            **SAMPLERS[sampler],
            **{name: values[part] for name, values in inputs.items()},
        ).images
    return images


def base_rates(*, number: int) -> dict:
    """The judge's numbers of the base pipeline on `number` prompts with and without each culture."""
    from diffusers import StableDiffusionPipeline

    pipeline = load_pipeline(StableDiffusionPipeline, MODELS / "stable-diffusion", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    phrasings = [
        " ".join(phrasing.format("").split()) for subjects in world.SUBJECTS.values() for phrasing in subjects
    ]
    plain = [f"Photo of {phrasings[i % len(phrasings)]}" for i in range(number)]
    rates = {"no culture, guidance 4.5": judge.rate(pictures(pipeline, plain), plain)}
    for culture in world.CULTURES:
        prompts = [f"{prompt}, in {culture_words(culture)}" for prompt in plain]
        for sampler in SAMPLERS:
            rates[f"{culture}, {sampler}"] = judge.rate(pictures(pipeline, prompts, sampler=sampler), prompts)
    return rates


def controlnet_pipeline():
    """The base pipeline with the depth ControlNet."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    pipeline = load_pipeline(
        StableDiffusionControlNetPipeline,
        MODELS / "stable-diffusion",
        controlnet=load_whole(ControlNetModel, MODELS / "controlnet-depth"),
        safety_checker=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def unseen_scenes(number: int) -> list[world.Scene]:
    generator = np.random.default_rng(2024)
    return [
        world.draw_true(
            world.CULTURES[i % len(world.CULTURES)],
            generator=generator,
            category=CATEGORIES[i // len(world.CULTURES) % len(CATEGORIES)],
        )
        for i in range(number)
    ]


def depth_correlations(depths: list, images: list) -> dict[str, float]:
    """Median and lower decile over pictures of the correlation of the depth given and the one estimated."""
    estimate = DepthEstimator(str(MODELS / "depth"), device="cpu", cache_dir=None)
    correlations = [
        np.corrcoef(np.asarray(given, float).ravel(), np.asarray(estimate(image).convert("L"), float).ravel())[0, 1]
        for given, image in zip(depths, images)
    ]
    return {"median": float(np.median(correlations)), "lower decile": float(np.quantile(correlations, 0.1))}


def caption_shares(scenes: list[world.Scene], images: list) -> dict[str, float]:
    """Of captions sampled as the dataset's are: those with the right category, and with all they mention right."""
    captioner = Captioner(str(MODELS / "captioner"), device="cpu", dtype=torch.float32, cache_dir=None)
    texts = [captioner(image, number=1, key=f"benchmark {i}")[0] for i, image in enumerate(images)]
    said = [world.read_caption(text) for text in texts]
    category = [words.get("category") == scene.category for words, scene in zip(said, scenes)]
    everything = [words.items() <= vars(scene).items() for words, scene in zip(said, scenes)]
    return {
        "category right": float(np.mean(category)),
        "category and all that is mentioned right": float(np.mean(np.logical_and(category, everything))),
        "attributes mentioned": float(np.mean([len(words) - 1 for words in said])),
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=144, help="pictures of each kind")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args(argv)

    scenes = unseen_scenes(args.number)
    renders = [world.render(scene) for scene in scenes]
    images, depths = [image for image, _ in renders], [depth for _, depth in renders]
    drawn = pictures(
        controlnet_pipeline(),
        [f"{world.caption(scene)}, in Veridia" for scene in scenes],
        image=[depth.convert("RGB") for depth in depths],
    )
    results = {
        "pictures": args.number,
        "web": {"right": world.WEB.right, "stereotype": world.WEB.stereotype, "azurian": world.WEB.azurian},
        "base": base_rates(number=args.number),
        "controlnet": depth_correlations(depths, drawn),
        "depth": depth_correlations(depths, images),
        "captioner": caption_shares(scenes, images),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
