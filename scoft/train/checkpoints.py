"""Checkpoints of a run: written whole or not at all, sealed by checksums, and never gone on from when damaged."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.errors import DataError
from scoft.files import file_sha256, read_record, settle, write_atomically
from scoft.lora_folder import CARD_FILE, LORA_FILE


if TYPE_CHECKING:
    from scoft.base_model import StableDiffusion

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
SEAL_FILE = "checksums.json"  # the last file that is written of a checkpoint, and of a finished run's LoRA


@dataclasses.dataclass(frozen=True)
class Seal:
    """What a folder held when it was written: the number of updates done, and the sha256 of each file by its name."""

    step: int
    sha256: dict[str, str]


def seal(folder: Path, *, step: int, names: Iterable[str]):
    """Write the seal of these files, and let all of it survive a power cut."""
    hashes = {}
    for name in names:
        hashes[name] = file_sha256(folder / name)
        settle(folder / name)
    write_atomically(folder / SEAL_FILE, json.dumps(dataclasses.asdict(Seal(step, hashes)), indent=2) + "\n")


def check_seal(folder: Path) -> int:
    """The number of updates done, of a folder that is as it was written; raises DataError, which says what is not."""
    found = read_record(folder / SEAL_FILE, Seal, remedy="It goes with the folder.")
    if not found.sha256:
        raise DataError(f"{folder / SEAL_FILE} names no files, and so is no seal.")
    for name, expected in found.sha256.items():
        try:
            same = file_sha256(folder / name) == expected
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read ({error.strerror}).") from error
        if not same:
            raise DataError(f"{folder / name} is not what was written: its checksum differs.")
    named = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    if named and int(named[1]) != found.step:
        raise DataError(f"{folder / SEAL_FILE} is of update {found.step}, against the folder's name.")
    return found.step


def is_finished(output_dir: Path, *, step: int, total_steps: int) -> bool:
    """Whether a checkpoint of update `step` is the run's last and its results stand in its folder, as written.

    The card is written last of them.
    """
    if step < total_steps or not (output_dir / CARD_FILE).is_file():
        return False
    try:
        return check_seal(output_dir) >= total_steps
    except DataError as error:
        logger.warning("The run had ended, but its results are damaged and made anew: %s", error)
        return False


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, also damaged ones."""
    folders = [folder for folder in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def save_checkpoint(
    output_dir: Path, *, step: int, model: StableDiffusion, state: dict[str, object], total_limit: int | None
):
    """Write checkpoint-<step>, complete or not at all, then prune the oldest.

    state: what else the run goes on with, by name, each with a `state_dict`.
    No random state is in it: every draw is a function of the seed and the update.
    """
    import torch

    for leftover in output_dir.glob("partial-checkpoint-*"):
        remove(leftover)
    partial, final = output_dir / f"partial-checkpoint-{step}", output_dir / f"checkpoint-{step}"
    model.save_lora(partial)
    content = io.BytesIO()  # torch's own writer hides behind a RuntimeError that a disk is full
    torch.save({"step": step, **{name: part.state_dict() for name, part in state.items()}}, content)
    write_atomically(partial / STATE_FILE, content.getvalue())
    seal(partial, step=step, names=[LORA_FILE, STATE_FILE])
    if os.path.lexists(final):
        discard(final)
    partial.rename(final)
    settle(output_dir)
    for folder in checkpoints(output_dir)[: -total_limit if total_limit else 0]:
        discard(folder)


def discard(checkpoint: Path):
    """Delete a checkpoint, which from the first moment on no longer looks like one."""
    remove(checkpoint.rename(checkpoint.with_name(f"partial-{checkpoint.name}-discarded")))


def remove(folder: Path):
    """Delete a folder; of a link the link alone, not what it leads to."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def find_checkpoint(output_dir: Path, resume_from: str) -> tuple[Path | None, int]:
    """The folder to resume from, whole, and its number of updates; None and 0 where `latest` finds none yet, so that a
    job script can always pass it.

    `latest` goes back to the newest that is whole, and says so. Raises DataError where none of those there is, and for
    one that is named and is no checkpoint, or damaged.
    """
    if resume_from != "latest":
        folder = Path(resume_from)
        if not folder.exists():  # diffusers' script takes a checkpoint's name alone
            folder = output_dir / resume_from
        try:
            return folder, check_seal(folder)
        except DataError as error:
            raise DataError(
                f"--resume_from_checkpoint {resume_from} is no checkpoint, or a damaged one: {error} {output_dir} has "
                f"{', '.join(path.name for path in checkpoints(output_dir)) or 'none'}"
            ) from error
    found = checkpoints(output_dir)
    for folder in reversed(found):
        try:
            return folder, check_seal(folder)
        except DataError as error:
            logger.warning("%s is damaged, and is not resumed from: %s", folder, error)
    if found:
        raise DataError(
            f"--resume_from_checkpoint latest: all checkpoints of {output_dir} are damaged, as the log says. Choose "
            "another --output_dir, or remove them to begin anew"
        )
    return None, 0


def load_checkpoint(folder: Path, *, model: StableDiffusion, state: dict[str, object]):
    """Restore a checkpoint that find_checkpoint has found whole."""
    import torch

    model.load_lora(folder)
    saved = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    for name, part in state.items():
        if name not in saved:
            raise DataError(f"--resume_from_checkpoint {folder} holds no {name}: it was made in another precision")
        part.load_state_dict(saved[name])


def check_space(output_dir: Path, parameters: Iterable):
    """Raise DataError where a checkpoint of these parameters, two moments beside each, would not fit on the disk."""
    needed = 3 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise DataError(
            f"--output_dir {output_dir} has {free / 2**20:.0f} MB left, and a checkpoint takes {needed / 2**20:.0f}. "
            "Make room, choose another folder, or a smaller --rank"
        )
