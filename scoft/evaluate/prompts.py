"""What is drawn: prompts of files, and captions of the dataset's photographs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scoft.cultures import culture_words
from scoft.dataset import CulturalDataset
from scoft.errors import DataError
from scoft.evaluate.sources import Photographs
from scoft.files import read_regular
from scoft.pictures import PromptSet


logger = logging.getLogger(__name__)

MAX_PROMPTS = 2**20  # bytes of a file of prompts
FLAGS = {"prompts": "--prompts", "general": "--general_prompts"}  # of the sets that are files


def prompts_of_sets(
    sets: Sequence[PromptSet], photographs: Photographs, *, files: Mapping[PromptSet, Path], num_captions: int
) -> dict[PromptSet, list[tuple[str, str | None]]]:
    """For each set its prompts, each with the sha256 of the photograph that it is a caption of. Raises DataError.

    files: those of the sets that are no split.
    """
    found = {}
    for name in sets:
        if name in files:
            prompts = read_prompts(files[name], photographs.dataset.culture, flag=FLAGS[name])
            found[name] = [(prompt, None) for prompt in prompts]
            continue
        try:
            rows = photographs.rows(name)
        except DataError as error:
            rest = [each for each in sets if each != "test"]
            if name == "train" or not rest:
                raise
            raise DataError(f"{error}\nThe set test needs it; --sets {' '.join(rest)} leaves it out.") from error
        captions = different_captions(rows)
        if len(captions) < num_captions:
            logger.warning("The split %s has %d different captions, not %d", name, len(captions), num_captions)
        found[name] = list(captions.items())[:num_captions]
    return found


def read_prompts(file: Path, culture: str, *, flag: str) -> list[str]:
    """The lines of a file of prompts, which `flag` names, but for blank ones and comments; {} becomes the culture."""
    try:
        lines = read_regular(file, at_most=MAX_PROMPTS).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{flag} {file} cannot be read ({error}); give a file with a prompt a line.") from error
    prompts = [line.strip().replace("{}", culture_words(culture)) for line in lines]
    prompts = [prompt for prompt in prompts if prompt and not prompt.startswith("#")]
    if len(set(prompts)) < len(prompts) or not prompts:
        raise DataError(f"{flag} {file}: got {len(prompts)} prompts, {len(set(prompts))} different ones.")
    return prompts


def different_captions(rows: CulturalDataset) -> dict[str, str]:
    """Caption -> sha256 of its photograph, each of both once, in an order that is drawn with seed 0."""
    found = {}
    for i in np.random.default_rng(0).permutation(len(rows)):
        if rows.image_hashes[i] not in found.values():
            found.setdefault(rows.captions[i][0], rows.image_hashes[i])
    return found
