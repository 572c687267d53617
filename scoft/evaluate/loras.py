"""The LoRAs that are evaluated: where they are, and what their own records say of how they are drawn."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scoft.errors import DataError
from scoft.files import file_sha256
from scoft.lora_folder import LORA_FILE, RECORD_FILE, TrainingRecord, read_training_record
from scoft.pictures import Method


DEFAULT_BASE = "CompVis/stable-diffusion-v1-4"


@dataclass(frozen=True)
class Lora:
    """A file of weights, and the record of the training that made it, where there is one."""

    place: str  # folder, file or Hub id, as --lora names it
    file: Path
    sha256: str
    record: TrainingRecord | None


def find_loras(named: Mapping[str, str], *, checkpoints: bool, cache_dir: str | None) -> dict[str, Lora]:
    """Method -> its LoRA, of name -> folder, file or Hub id; with `checkpoints` also those in a folder.

    Raises DataError.
    """
    places = lora_places(named, checkpoints=checkpoints)
    found = {}
    for place in dict.fromkeys(places.values()):
        file = lora_file(place, cache_dir=cache_dir)
        found[place] = Lora(place, file, file_sha256(file), record_of(file))
    return {method: found[place] for method, place in places.items()}


def lora_places(named: Mapping[str, str], *, checkpoints: bool) -> dict[str, str]:
    """Method -> folder, file or Hub id of its LoRA, see `find_loras`."""
    places = {}
    for name, place in named.items():
        places[name] = place
        if checkpoints:
            found = {
                re.fullmatch(r"checkpoint-(\d+)", folder.name): folder for folder in Path(place).glob("checkpoint-*")
            }
            steps = {int(match[1]): folder for match, folder in found.items() if match}
            if not steps:
                raise DataError(f"--checkpoints: {place} has no folder checkpoint-<updates>")
            places |= {str(Method(name, step)): str(folder) for step, folder in sorted(steps.items())}
    return places


def lora_file(place: str, *, cache_dir: str | None) -> Path:
    """The weights of a LoRA folder, or of a Hub repository; `place` may also be the file itself. Raises DataError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError

    try:
        if Path(place).exists():
            file = Path(place, LORA_FILE) if Path(place).is_dir() else Path(place)
            if not file.is_file():
                raise FileNotFoundError(f"there is no file {file}")
            return file
        with contextlib.suppress(EntryNotFoundError):  # what it was trained on, which only ours say
            hf_hub_download(place, RECORD_FILE, cache_dir=cache_dir)
        return Path(hf_hub_download(place, LORA_FILE, cache_dir=cache_dir))
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(f"--lora {place}: {LORA_FILE} cannot be had: {error}") from error


def record_of(file: Path) -> TrainingRecord | None:
    """The record beside a LoRA's file or above its checkpoint. Raises DataError where it is none of ours."""
    for record in (file.with_name(RECORD_FILE), file.parent.with_name(RECORD_FILE)):
        if record.is_file():
            return read_training_record(record)
    return None


def base_of(loras: Mapping[str, Lora], *, asked: str | None) -> str:
    """The base model that was `asked` for, or what the LoRAs were trained on, as their records say.

    Raises DataError where a record names another: a LoRA of another model loads without a word, and draws nonsense.
    """
    bases = {each.place: each.record.resolved.base_model for each in loras.values() if each.record}
    chosen = asked or next(iter(bases.values()), DEFAULT_BASE)
    for place, base in bases.items():
        if base != chosen and Path(base).name != Path(chosen).name:
            raise DataError(f"--lora {place} was trained on {base}, not on {chosen}; evaluate the two apart.")
    return chosen


def resolution_of(
    loras: Mapping[str, Lora], *, asked: int | None, base: str, commit: str | None, cache_dir: str | None
) -> int:
    """Pixels that were `asked` for, or the LoRAs were trained at, or the base model was. DataError where they differ.

    commit: of the base model on the Hub.
    """
    from scoft.base_model import own_resolution

    if asked is not None:
        return asked
    found = {each.record.arguments.resolution: each.place for each in loras.values() if each.record}
    if len(found) > 1:
        listed = ", ".join(f"{place} at {resolution}" for resolution, place in found.items())
        raise DataError(f"--lora: trained at different resolutions: {listed}. Choose one with --resolution.")
    return next(iter(found), None) or own_resolution(base, commit=commit, cache_dir=cache_dir)
