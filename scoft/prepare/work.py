"""What the stages share: the run they belong to, its processes, and the check of their models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scoft.errors import DataError
from scoft.files import (
    Ledger,
)


REMEDY = "Remove that line; what it told of is made again."


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all stages of a run know: whose photographs, where they lie, and which processes share the work.

    `folder` is the culture's. A ledger there holds what was made, each entry under a key of all that decides it.
    """

    culture: str
    folder: Path
    stages: Sequence[str]  # those that this run does; the others give what earlier runs made
    accelerator: "Accelerator"  # noqa: F821
    cache_dir: str | None

    def does(self, stage: str) -> bool:
        return stage in self.stages

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def wait(self):
        self.accelerator.wait_for_everyone()

    def share(self, items: dict, ledger: Ledger) -> list[tuple]:
        """What of the items, by key, the ledger does not hold, and of that what falls to this process."""
        done = ledger.read()
        self.wait()  # none adds to it before all have read it
        undone = [item for item in items.items() if item[0] not in done]
        return undone[self.accelerator.process_index :: self.accelerator.num_processes]


def check_model(model: str, *, flag: str, file: str, weights: str, kinds: tuple[str, ...] = (), cache_dir: str | None):
    """Find before the work of hours whether a model can be had and is of its kind: a folder, or on the Hub or in its
    cache. Raises DataError, which names the flag.

    file: its description, or where it has none its weights; weights: a pattern; kinds: how its class's name may end.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    described = Path(model, file)
    if not Path(model).is_dir():
        try:
            described = Path(hf_hub_download(model, file, cache_dir=cache_dir))
        except (OSError, HTTPError, HFValidationError) as error:
            raise DataError(
                f"{flag} {model} is no folder, and the Hub has no such model that can be read: {error}"
            ) from error
    elif missing := [pattern for pattern in (file, weights) if not any(Path(model).glob(pattern))]:
        raise DataError(f"{flag} {model}: this folder has no {missing[0]}, as such a model has.")
    if kinds:
        try:
            config = json.loads(described.read_text(encoding="utf-8"))
            kind = str((config.get("architectures") or [config["_class_name"]])[0])
        except (ValueError, AttributeError, LookupError) as error:
            raise DataError(f"{flag} {model}: {described} does not say what model this is ({error!r}).") from error
        if not kind.endswith(kinds):
            raise DataError(f"{flag} {model} is a {kind}; what is needed is a ...{' or ...'.join(kinds)}.")
