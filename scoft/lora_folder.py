"""What a LoRA folder holds: the names of its files, its records, and its weights, written and loaded whole."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from scoft.errors import DataError
from scoft.files import checked_name, file_sha256, read_record, write_atomically


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

# torch and diffusers are imported where they are used, so that a mistyped flag is answered at once.

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
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def save_lora(folder: Path, unet, *, kohya_name: str | None = None):
    """Write the LoRA for diffusers, and under `kohya_name` for ComfyUI and A1111, both in float32.

    The keys are peft's: diffusers' own renames attention alone, and its loader drops one of the two forms in a file.
    The metadata hold what loading needs and no more: diffusers passes them to LoraConfig unfiltered, so the 40 fields
    of today's peft would stop an older one, and a recorded dropout would stay alive at inference. The empty patterns
    are for diffusers before 0.40, which asks for them.
    diffusers' kohya converter writes alpha = rank whatever alpha was, so it is set right here.
    """
    import torch
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from diffusers.utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict

    config = unet.peft_config["default"]
    metadata = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    metadata = json.dumps({f"unet.{name}": value for name, value in metadata.items()}, sort_keys=True)
    lora = {
        f"unet.{name}": weight.detach().cpu().contiguous() for name, weight in get_peft_model_state_dict(unet).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / LORA_FILE, lora, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata})
    if kohya_name:
        kohya = {
            name: torch.tensor(float(config.lora_alpha)) if name.endswith(".alpha") else weight
            for name, weight in convert_state_dict_to_kohya(lora).items()
        }
        metadata = {"ss_network_dim": str(config.r), "ss_network_alpha": str(config.lora_alpha)}
        write_safetensors(folder / kohya_name, kohya, metadata=metadata)


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


def read_lora(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a LoRA file by the names that peft gives them in the UNet, whichever form they have in the file.

    Raises DataError.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError

    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    try:
        weights, _ = StableDiffusionPipeline.lora_state_dict(str(file.parent), **place)
        if not any("lora" in name for name in weights):
            raise ValueError("none of its tensors is one of a LoRA")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise DataError(f"{file} is no LoRA that can be read: {error}; copy or train it again") from error
    return {name.removeprefix("unet."): weight for name, weight in convert_unet_state_dict_to_peft(weights).items()}


def load_lora(folder: Path, unet):
    """Put a saved LoRA back into the UNet's adapter, bit for bit; it must fit key by key."""
    import torch
    from peft.utils import get_peft_model_state_dict

    saved, own = read_lora(folder / LORA_FILE), get_peft_model_state_dict(unet)
    shapes, own_shapes = ({name: tuple(w.shape) for name, w in lora.items()} for lora in (saved, own))
    if shapes != own_shapes:
        names = sorted(name for name in shapes.keys() | own_shapes if shapes.get(name) != own_shapes.get(name))
        raise DataError(
            f"{folder} does not fit this run's LoRA at {len(names)} weights, first "
            f"{names[0]}: {shapes.get(names[0])} there, {own_shapes.get(names[0])} here; give the rank, the "
            "LoRA's layers and the base model that it was made with",
            argument="resume_from_checkpoint",
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])


def load_into_pipeline(pipeline, file: Path):
    """Load a LoRA file by diffusers' own call, as its users do, and see that it came in whole. Raises DataError."""
    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    saved = read_lora(file)
    try:
        pipeline.load_lora_weights(str(file.parent), adapter_name="scoft", **place)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{file} does not fit the model, which is to be the one it was trained on: {error}") from error
    check_whole(pipeline.unet, file, adapter="scoft", saved=saved)


def check_whole(unet, file: Path, *, adapter: str, saved: dict[str, torch.Tensor] | None = None):
    """Raise DataError unless the UNet's adapter holds the file's tensors, all of them and no others.

    `saved`: what `read_lora` has read of the file, if it has.
    diffusers drops keys that it cannot place, and says so in a warning among others.
    """
    import torch
    from peft.utils import get_peft_model_state_dict

    saved = read_lora(file) if saved is None else saved
    own = get_peft_model_state_dict(unet, adapter_name=adapter) if adapter in getattr(unet, "peft_config", {}) else {}
    loaded = {name for name in saved.keys() & own if torch.equal(own[name], saved[name].to(own[name]))}
    if astray := sorted((saved.keys() | own) - loaded):
        raise DataError(
            f"{file} holds {len(saved)} tensors, and {len(loaded)} of them are in the model, which has {len(own)}: "
            f"{astray[0]} is not in both. Files with keys of two forms, as earlier versions wrote, load in part: take "
            f"{KOHYA_FILE.format('*')} beside it, which is whole, or train the LoRA again"
        )
