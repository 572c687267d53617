"""The correctors that are evaluated: where they are, whom they are for, and beside which base they were fitted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scoft.corrector.callback import KIND_OF_MODEL, WEIGHTS_FILES, read_config
from scoft.errors import DataError
from scoft.files import content_key, file_sha256
from scoft.weights import loading


@dataclass(frozen=True)
class Corrected:
    """A corrector that is not loaded yet."""

    place: str  # folder or Hub id, as --corrector names it
    folder: Path  # where its files are
    key: str  # of its weights and its knobs
    base: str  # Hub id or a folder's name

    def key_now(self) -> str:
        return key_of(self.folder)


def find_correctors(named: Mapping[str, str], *, culture: str, cache_dir: str | None) -> dict[str, Corrected]:
    """Method -> its corrector, of name -> folder or Hub id. Raises DataError, also for another culture's."""
    found = {}
    for name, place in named.items():
        config = read_config(place, culture=culture, knobs={}, flag="corrector", cache_dir=cache_dir)
        with loading(place, flag="corrector", kind=KIND_OF_MODEL):
            folder = folder_of(place, cache_dir=cache_dir)
            key = key_of(folder)
        found[name] = Corrected(place, folder, key, config["base_model"])
    return found


def folder_of(place: str, *, cache_dir: str | None) -> Path:
    """Where the files of a corrector's folder or Hub repository are on this machine. Raises OSError."""
    from huggingface_hub import hf_hub_download

    if Path(place).is_dir():
        return Path(place)
    return Path([hf_hub_download(place, name, cache_dir=cache_dir) for name in WEIGHTS_FILES][0]).parent


def key_of(folder: Path) -> str:
    """Of a corrector's files. Raises OSError."""
    return content_key([file_sha256(folder / name) for name in WEIGHTS_FILES])


def check_bases(correctors: Mapping[str, Corrected], base: str):
    """Raise DataError where one was fitted beside another base than is drawn with, as far as names tell."""
    for each in correctors.values():
        if Path(each.base).name != Path(base).name:
            raise DataError(
                f"{each.place} corrects {each.base}, not {base}; evaluate the two apart", argument="corrector"
            )
