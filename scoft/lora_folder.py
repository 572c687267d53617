"""What a LoRA folder holds: its name and those of its files, its records, and files of weights."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from scoft.files import checked_name, file_sha256, is_mark, read_record, write_atomically


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers' load_lora_weights looks for
KOHYA_FILE = "scoft-{}-kohya.safetensors"  # the same for ComfyUI and A1111, by the culture's name
CARD_FILE = "README.md"
RECORD_FILE = "training_args.json"  # TrainingRecord, by the trainer
JUDGED_FILE = "images/judge.json"  # Judged, by the trainer
EVALUATION_FILE = "evaluation.json"  # Evaluation, by evaluate_scoft.py
GRID_FILE = "images/before_after.png"  # each prompt by the base model and by the LoRA, by the trainer
PICTURE_FILE = "images/lora-{}.png"  # a picture by the LoRA, by the place of its prompt, by the trainer
EVALUATION_GRID_FILE = "images/evaluation.png"  # by evaluate_scoft.py


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """The flags of a run that its page tells; RECORD_FILE holds all."""

    culture: str | None
    method: str
    perceptual_distance: str
    negative_weight: float
    perceptual_every: int
    num_denoising_steps: int
    denoising_guidance_scale: float
    recorded_step: str
    lr_scheduler: str
    rank: int
    lora_layers: str
    resolution: int
    seed: int
    validation_guidance_scale: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the flags of a run resolved to."""

    name: str  # of the LoRA, in names of files
    prompts: list[str]
    base_model: str  # Hub id or folder
    base_revision: str | None  # commit of the Hub; None: a folder
    license: dict[Literal["license", "license_name", "license_link"], str]
    dataset: str  # as it was asked for
    dataset_id: str | None  # of the Hub; None: a folder
    dataset_revision: str | None
    rows: int
    blip_captions: int
    negatives: int
    dropped_rows: int
    fingerprint: str
    method: str
    weights: dict[str, float]
    margin: float | None
    updates: int
    images_per_update: int
    learning_rate: float
    lora_alpha: float
    mixed_precision: str
    # diffusers' class that loads it; older records know of one alone
    pipeline: Literal["StableDiffusionPipeline", "StableDiffusionXLPipeline"] = "StableDiffusionPipeline"
    hub_model_id: str | None = None  # where it was pushed to, which is known last

    def __post_init__(self):
        checked_name(self.name, what="name")


@dataclass(frozen=True)
class TrainingRecord:
    """RECORD_FILE, as pages and commands read it."""

    arguments: Arguments
    resolved: Facts
    versions: dict[str, str]


@dataclass(frozen=True)
class Judged:
    """JUDGED_FILE: a judge's numbers of the base model and of the LoRA in the file with this sha256."""

    base: dict[str, int | float]
    lora: dict[str, int | float]
    lora_sha256: str


@dataclass(frozen=True)
class Encoder:
    """What pictures were measured by: a Hub id or the name of a file, and the sha256 of its weights."""

    place: str
    sha256: str


@dataclass(frozen=True)
class Score:
    """A metric's number of a method; `shown` with its interval, as text."""

    metric: str
    name: str
    method: str
    shown: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """EVALUATION_FILE: the scores of the base model, and of `method`, the LoRA in the file with this sha256."""

    method: str
    question: str
    confidence: float
    encoders: dict[str, Encoder]
    rows: list[Score]
    lora_sha256: str


def lora_name(of: str, *, what: str) -> str:
    """'New_Zealand' -> 'new-zealand': the letters and digits of any script, in small letters, and dashes.

    Raises DataError, which calls the name `what`, where nothing is left that can name a file.
    """
    letters = (letter if letter.isalnum() or is_mark(letter) else "-" for letter in of)
    return checked_name(re.sub("-+", "-", "".join(letters)).strip("-").lower(), what=what)


def run_record(arguments: Mapping[str, object], resolved: Facts) -> dict:
    """What RECORD_FILE holds: all arguments, what they resolved to, and the versions that ran."""
    packages = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "timm", "dreamsim")
    installed = [package for package in packages if importlib.util.find_spec(package)]
    return {
        "arguments": {flag: str(value) if isinstance(value, Path) else value for flag, value in arguments.items()},
        "resolved": dataclasses.asdict(resolved),
        "versions": {package: importlib.metadata.version(package) for package in installed},
    }


def write_run_record(folder: Path, record: dict):
    """Write RECORD_FILE; `record`: of `run_record`, or as `read_run_record` has it."""
    write_atomically(folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")


def read_run_record(folder: Path, *, remedy: str) -> dict[str, dict]:
    """All that RECORD_FILE holds, also what no page tells; `remedy`: for a damaged one. Raises DataError."""
    return read_record(folder / RECORD_FILE, dict[str, dict], remedy=remedy)


def read_training_record(file: Path) -> TrainingRecord:
    """RECORD_FILE of a LoRA folder. Raises DataError."""
    return read_record(file, TrainingRecord, remedy="train_scoft_lora.py writes it: copy it whole, or train again.")


def write_judged(folder: Path, *, base: dict[str, int | float], lora: dict[str, int | float]):
    """Write JUDGED_FILE: a judge's numbers of the base model and of the LoRA that is in the folder."""
    judged = Judged(base=base, lora=lora, lora_sha256=lora_sha256(folder))
    write_atomically(folder / JUDGED_FILE, json.dumps(vars(judged), indent=2, default=float) + "\n")


def read_judged(folder: Path) -> Judged | None:
    """JUDGED_FILE; None, if there is none or it is of another LoRA than the folder's. Raises DataError."""
    return _of_this_lora(folder, JUDGED_FILE, Judged, remedy=f"Train again, or remove {JUDGED_FILE}.")


def write_evaluation(folder: Path, evaluation: Evaluation):
    """Write EVALUATION_FILE."""
    write_atomically(folder / EVALUATION_FILE, json.dumps(dataclasses.asdict(evaluation), indent=1) + "\n")


def read_evaluation(folder: Path) -> Evaluation | None:
    """EVALUATION_FILE; None, if there is none or it is of another LoRA than the folder's. Raises DataError."""
    remedy = f"Let evaluate_scoft.py write it again, or remove {EVALUATION_FILE}."
    return _of_this_lora(folder, EVALUATION_FILE, Evaluation, remedy=remedy)


def _of_this_lora(folder: Path, name: str, kind: type[T], *, remedy: str) -> T | None:
    if not (folder / name).is_file():
        return None
    found = read_record(folder / name, kind, remedy=remedy)
    if found.lora_sha256 == lora_sha256(folder):
        return found
    logger.warning("%s is of another LoRA than its folder's, and is left off the page. %s", folder / name, remedy)
    return None


def lora_sha256(folder: Path) -> str:
    """The sha256 of a folder's LoRA_FILE, by which numbers name what they were measured on."""
    return file_sha256(folder / LORA_FILE)


# ---------------------------------------------------------------------------------------------------------------------
# Files of weights
# ---------------------------------------------------------------------------------------------------------------------


def write_safetensors(file: Path, tensors: dict[str, torch.Tensor], *, metadata: dict[str, str]):
    """Write contiguous tensors, whole or not at all, and the same bytes for the same contents.

    The library writes metadata in a new order each time, and files that no one but their owner may read.
    """
    from safetensors.torch import save

    content = save(tensors, metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors stay aligned
    write_atomically(file, len(header).to_bytes(8, "little") + header + content[end:])
