"""What the tests of the trainers share: command lines of flags, and what a run leaves."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from scoft.dataset import CulturalDataset
from scoft.images import ImageTransform
from scoft.lora_folder import LORA_FILE
from scoft.train.examples import TrainingExamples


def short_run(base: Path, dataset: Path, distance: Path) -> dict:
    """Flags of a short run on tiny models, see `words`."""
    return {
        "pretrained_model_name_or_path": base,
        "dataset": dataset,
        "culture": "veridia",
        "perceptual_model_name_or_path": distance,
        "resolution": 16,
        "rank": 4,
        "max_train_steps": 4,
        "perceptual_every": 2,
        "num_denoising_steps": 3,
        "num_validation_images": 0,
        "report_to": "none",
    }


def words(flags: dict) -> list[str]:
    """A command line of flags; None leaves one out, True gives it bare, a list several values."""
    argv = []
    for flag, value in flags.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is not None and value is not False:
            argv += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def runner(door, flags: dict, folder: Path) -> Callable[..., Path]:
    """run(name, **more flags): a trainer's main in this process; returns its output folder, `name` in `folder`."""

    def run(name: str = "run", **more) -> Path:
        door.main(words(flags | {"output_dir": folder / name} | more))
        return folder / name

    return run


def first_lora(train: Callable[..., Path]) -> torch.Tensor:
    """What every run with the default seed starts from: the LoRA after one update at a rate that rounds to nothing."""
    return lora(train("start", method="finetune", max_train_steps=1, learning_rate=1e-30))


def lora(folder: Path) -> torch.Tensor:
    """All LoRA weights of a folder as one float64 vector."""
    weights = load_file(folder / LORA_FILE)
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def relative_difference(a: Path, b: Path, start: torch.Tensor) -> float:
    """||difference|| over ||LoRA - its start||."""
    return float((lora(a) - lora(b)).norm() / (lora(a) - start).norm())


def examples_of(dataset: CulturalDataset, **more) -> TrainingExamples:
    """A dataset's examples without flips, crops and caches, but for `more`."""
    plain = {
        "transform": ImageTransform(16),
        "caption_index": {caption: i for i, (caption,) in enumerate(dataset.captions)},
        "seed": 0,
        "entries_per_update": 1,
        "latent_shape": (4, 8, 8),
        "num_train_timesteps": 1000,
        "blip_captions_per_step": 1,
        "random_flip": False,
        "random_crop": False,
        "noise_offset": 0,
        "load_photograph": True,
        "load_negatives_every": None,
    }
    return TrainingExamples(dataset, **plain | more)
