"""Pictures that were drawn: all that decides each one, and the manifest they are handed over by."""

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from scoft.errors import DataError
from scoft.files import Ledger, checked_name, content_key, write_atomically


MANIFEST_FILE = "manifest.jsonl"
BASE = "base"  # the name of the base model among the methods
# What pictures are made from: the prompts of a file, captions of the dataset's splits, prompts without any culture.
PromptSet = Literal["prompts", "train", "test", "general"]
SETS = get_args(PromptSet)


class Method(NamedTuple):
    """Who drew a picture, written NAME or NAME@updates."""

    run: str  # BASE, or the NAME of a LoRA
    updates: int | None = None  # after which the LoRA's checkpoint was made; None: the finished one

    def __str__(self) -> str:
        return self.run if self.updates is None else f"{self.run}@{self.updates}"


def method_of(name: str) -> Method:
    """Read a method's name. Raises DataError unless folders and files may be called by it."""
    run, at, updates = name.partition("@")
    checked_name(run, what="method")
    if at and not re.fullmatch("[0-9]{1,12}", updates):
        raise DataError(f"method is NAME or NAME@updates, got {name!r}.")
    return Method(run, int(updates) if at else None)


def is_checkpoint(method: str) -> bool:
    return method_of(method).updates is not None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A row of `manifest.jsonl`: a picture, and all that decides it."""

    culture: str
    method: str  # see Method
    set: PromptSet
    index: int  # of the prompt in its set
    number: int  # of the picture among those of its prompt; methods share its noise, prompts do not
    prompt: str
    photograph: str | None  # sha256 of the dataset's photograph whose caption is the prompt
    base: str
    base_key: str  # its commit on the Hub, or the content of its folder
    variant: str | None
    lora: str | None
    lora_sha256: str | None
    guidance: float
    steps: int
    resolution: int
    precision: str
    corrector: str | None = None
    corrector_key: str | None = None  # of its weights and knobs
    blank: bool = False  # nothing to see: the safety checker's black square

    def __post_init__(self):
        checked_name(self.culture, what="culture")
        method_of(self.method)

    @property
    def file(self) -> str:
        return f"images/{self.method}/{self.set}-{self.index:03d}-{self.number:03d}.png"

    @property
    def seed(self) -> int:
        """Of its noise. Pictures of one noise are alike whatever their prompts, and together would say less."""
        return int(content_key(self.set, self.prompt, self.number)[:8], 16)

    @property
    def key(self) -> str:
        fields = dataclasses.asdict(dataclasses.replace(self, blank=False))
        if self.corrector is None:  # pictures of before there were any keep their keys
            del fields["corrector"], fields["corrector_key"]
        return content_key(fields)

    @property
    def row(self) -> dict:
        """What the manifest says of it, but for the key."""
        return {"file": self.file, "seed": self.seed} | dataclasses.asdict(self)


def read_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder. Raises DataError without any."""
    pictures = list(pictures_by_file(folder).values())
    if not pictures:
        raise DataError(f"{folder} has no {MANIFEST_FILE} of pictures; generate them: it is the stage before.")
    return pictures


def pictures_by_file(folder: Path) -> dict[str, Picture]:
    """File -> the picture that was drawn last into it, by the manifest. Raises DataError where a row is none."""
    remedy = f"Restore it, or generate into another folder than {folder}."
    return {picture.file: picture for picture in Ledger(folder / MANIFEST_FILE).read_as(Picture, remedy=remedy)}


def add_picture(folder: Path, picture: Picture):
    """Write a row behind the others, as each picture's file is there."""
    Ledger(folder / MANIFEST_FILE).add(picture.key, **picture.row)


def write_pictures(folder: Path, pictures: Iterable[Picture]):
    """Make these, in their order, the whole manifest."""
    lines = [json.dumps({"key": each.key} | each.row, ensure_ascii=False) + "\n" for each in pictures]
    write_atomically(folder / MANIFEST_FILE, "".join(lines))
