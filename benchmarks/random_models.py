"""Models of random weights and pictures of noise as the commands read them: folders, made without a network.

What the commands do at full size takes as long, and as much memory, as with trained weights; what they draw is noise.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from benchmarks.train_step import SIZES, byte_tokenizer, random_model
from pocket.train_models import make_scheduler


ROWS = {"train": 8, "test": 4}
BLIP_CAPTIONS, NEGATIVES = 5, 5
# transformers' defaults are CLIP ViT-B/32; DINO is a ViT-S/16.
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CLIP = {"full": {}, "tiny": {"text_config": LAYERS, "vision_config": LAYERS, "projection_dim": 32}}
DINO = {
    "full": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "tiny": LAYERS,
}


def save_pipeline(folder: Path, *, size: str, device: torch.device):
    """Stable Diffusion in float16, as its weights are mostly handed on."""
    model = random_model(SIZES[size], dtype=torch.float16, device=device)
    StableDiffusionPipeline(
        unet=model.unet,
        vae=model.vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=model.tokenizer,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_clip_conv(folder: Path, *, size: str, device: torch.device):
    shape = SIZES[size]["clip_conv"]
    side = {"input_size": (3, shape["size"], shape["size"])}
    model = timm.create_model(shape["model_name"], pretrained_cfg_overlay=side)
    timm.models.save_for_hf(model, folder, safe_serialization=True)


def save_clip(folder: Path, *, size: str, device: torch.device):
    CLIPModel(CLIPConfig(**CLIP[size])).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(), byte_tokenizer()).save_pretrained(folder)


def save_dino(folder: Path, *, size: str, device: torch.device):
    ViTModel(ViTConfig(**DINO[size])).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)


def picture(generator: np.random.Generator, side: int) -> Image.Image:
    """Blurred noise, a quarter wider than high."""
    pixels = generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side * 5 // 4, side), Image.Resampling.BICUBIC)


def save_dataset(folder: Path, *, size: str, device: torch.device):
    """Photographs, captions and negatives in the layout with a `metadata.jsonl` a split, a little over SIZES' side."""
    generator, side = np.random.default_rng(0), SIZES[size]["resolution"] * 9 // 8
    for split, count in ROWS.items():
        (folder / split).mkdir(parents=True)
        lines = []
        for row in range(count):
            names = [f"{row}.jpg", *(f"{row}-negative-{k}.jpg" for k in range(NEGATIVES))]
            for name in names:
                picture(generator, side).save(folder / split / name, quality=90)
            captions = {
                "text": f"{split} photograph {row}",
                "blip_text": [f"{row}, {k}" for k in range(BLIP_CAPTIONS)],
            }
            lines.append({"file_name": names[0], **captions, "negative_imgpath": names[1:]})
        (folder / split / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


FOLDERS: dict[str, Callable] = {
    "pipeline": save_pipeline,
    "clip_conv": save_clip_conv,
    "clip": save_clip,
    "dino": save_dino,
    "dataset": save_dataset,
}


def folder_of(name: str, work: Path, *, size: str, device: torch.device) -> Path:
    """The folder of this name of FOLDERS in `work`, written now where it is not there; never half of one."""
    folder, partial = work / f"{name}-{size}", work / f"{name}-{size}.partial"
    if not folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        torch.manual_seed(0)
        FOLDERS[name](partial, size=size, device=device)
        partial.rename(folder)
        torch.cuda.empty_cache()  # without a GPU nothing
    return folder
