"""What the tests of the trainers share: command lines of flags, and what a run leaves."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from scoft.lora_folder import LORA_FILE


def words(flags: dict) -> list[str]:
    """A command line of flags; None leaves one out, True gives it bare, a list several values."""
    argv = []
    for flag, value in flags.items():
        if value is True:
            argv.append(f"--{flag}")
        elif value is not None and value is not False:
            argv += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return argv


def lora(folder: Path) -> torch.Tensor:
    """All LoRA weights of a folder as one float64 vector."""
    weights = load_file(folder / LORA_FILE)
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def relative_difference(a: Path, b: Path, start: torch.Tensor) -> float:
    """||difference|| over ||LoRA - its start||."""
    return float((lora(a) - lora(b)).norm() / (lora(a) - start).norm())
