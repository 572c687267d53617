"""The pocket world's datasets, changed on purpose: what a study of `benchmarks.claims` trains on in their place."""

from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import yaml
from safetensors.torch import load_file

import pocket
from pocket import world
from pocket.judge import asked
from scoft.cultures import CATEGORIES
from scoft.files import write_atomically
from scoft.lora_folder import LORA_FILE, write_safetensors


POCKET = Path(pocket.__path__[0])
# The first of each: buildings are in, streets of them are not.
FIVE_CATEGORIES = CATEGORIES[:4] + CATEGORIES[-1:]


def swapped(rows: datasets.Dataset, *, culture: str) -> datasets.Dataset:
    """A negative for each photograph, and the photograph for its only negative: the stereotype is taught."""
    rows = rows.filter(bool, input_columns="negatives")
    photographs, negatives = rows["image"], rows["negatives"]
    changed = {"image": [each[0] for each in negatives], "negatives": [[photograph] for photograph in photographs]}
    return with_columns(rows, changed)


def others(rows: datasets.Dataset, *, culture: str) -> datasets.Dataset:
    """The negatives of another category's row: they show the culture as wrongly, and another scene."""
    negatives = list(rows["negatives"])
    return with_columns(rows, {"negatives": negatives[1:] + negatives[:1]})  # categories take turns


def five(rows: datasets.Dataset, *, culture: str) -> datasets.Dataset:
    """The photographs of FIVE_CATEGORIES alone."""
    names = rows.features["category"].names
    return rows.filter(lambda category: names[category] in FIVE_CATEGORIES, input_columns="category")


def bare(rows: datasets.Dataset, *, culture: str) -> datasets.Dataset:
    """Cultural captions that name the subject and the culture and nothing of the look, which naive captions do."""
    names = rows.features["category"].names
    plain = {name: " ".join(phrases[0].format("").split()) for name, phrases in world.SUBJECTS.items()}
    texts = [f"Photo of {plain[names[category]]}, in {culture.title()}" for category in rows["category"]]
    return with_columns(rows, {"text": texts})


VARIANTS: dict[str, Callable[..., datasets.Dataset]] = {each.__name__: each for each in (swapped, others, five, bare)}


def with_columns(rows: datasets.Dataset, columns: dict[str, list]) -> datasets.Dataset:
    """The rows with these columns in the place of theirs, of the same features."""
    kept = {name: columns.get(name) or list(rows[name]) for name in rows.column_names}
    return datasets.Dataset.from_dict(kept, features=rows.features)


def make_variant(name: str, folder: Path) -> Path:
    """The dataset of a name of VARIANTS for every culture, in `folder`, made at first; as --dataset wants it."""
    for source in sorted((POCKET / "ccub").glob("*/train-*.parquet")):
        culture = source.parent.name
        file = folder / name / culture / source.name
        if not file.exists():
            rows = with_images(
                datasets.Dataset.from_parquet(str(source)), decode=False
            )  # their bytes stay as they are
            changed = with_images(VARIANTS[name](rows, culture=culture), decode=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            changed.to_parquet(file.with_suffix(".partial"))
            file.with_suffix(".partial").rename(file)
    return folder / name


def with_images(rows: datasets.Dataset, *, decode: bool) -> datasets.Dataset:
    """The rows with their images as pictures, or as the bytes of their files."""
    image = datasets.Image(decode=decode)
    return rows.cast_column("image", image).cast_column("negatives", datasets.List(image))


def prompts_of_the_other_four(folder: Path) -> Path:
    """The pocket's prompts of the categories that are not of FIVE_CATEGORIES, as a file for --prompts."""
    prompts = [line for line in (POCKET / "prompts.txt").read_text().splitlines() if not line.startswith("#")]
    file = folder / "prompts.txt"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(f"{each}\n" for each in prompts if asked(each)[0] not in FIVE_CATEGORIES))
    return file


def training_flags(folder: Path) -> Path:
    """The training section of the pocket's defaults as a file for --config, for datasets that are not embedded."""
    flags = yaml.safe_load((POCKET / "defaults.yaml").read_text().replace("{here}", str(POCKET)))["train"]
    file = folder / "train.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(flags))  # cells side by side read it
    return file


def join_loras(*loras: Path, folder: Path) -> Path:
    """A LoRA that adds what all of these add: its A and B are theirs, one below and one beside the other."""
    files = [load_file(lora / LORA_FILE) for lora in loras]
    joined = {
        key: torch.cat([file[key] for file in files], dim=0 if "lora_A" in key else 1).contiguous() for key in files[0]
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / LORA_FILE, joined, metadata={"format": "pt"})
    return folder
