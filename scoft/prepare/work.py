"""What the stages share: the run they belong to, its processes, and what is to be said of their models."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from scoft.errors import DataError
from scoft.files import Ledger, private_folder, sole_writer
from scoft.weights import model_key


if TYPE_CHECKING:
    import accelerate

REMEDY = "Remove that line; what it told of is made again."


@dataclass(frozen=True, kw_only=True)
class Run:
    """What all stages of a run know: whose photographs, where they lie, and which processes share the work.

    `folder` is the culture's. A ledger there holds what was made, each entry under a key of all that decides it.
    """

    culture: str
    folder: Path
    stages: Sequence[str]  # those that this run does; the others give what earlier runs made
    accelerator: "accelerate.Accelerator"
    cache_dir: str | None

    def does(self, stage: str) -> bool:
        return stage in self.stages

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def sole_writer(self) -> contextlib.AbstractContextManager:
        """Keep other runs from writing into the folder; DataError if one does so now. Of processes, the main asks."""
        return sole_writer(self.folder, flag="--output") if self.is_main else contextlib.nullcontext()

    def wait(self):
        self.accelerator.wait_for_everyone()

    def share(self, items: dict, ledger: Ledger) -> list[tuple]:
        """What of the items, by key, the ledger does not hold, and of that what falls to this process."""
        done = ledger.read()
        self.wait()  # none adds to it before all have read it
        undone = [item for item in items.items() if item[0] not in done]
        return undone[self.accelerator.process_index :: self.accelerator.num_processes]


def start_run(
    culture: str, *, output: Path, stages: Sequence[str], mixed_precision: str | None, cache_dir: str | None
) -> Run:
    """Begin to work in the culture's folder of `output`, which is made if need be, private to this user.

    Raises DataError if it cannot be made.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    if not output.exists():  # else it is for its owner to say who may look into it
        private_folder(output, flag="--output")
    folder = private_folder(output / culture, flag="--output")
    # processes wait for the main one as long as it asks the web
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[patience])
    if accelerator.device.type == "cpu":
        # Threads share out sums, which changes their last bits and pixels here and there. Processes share out rows.
        torch.set_num_threads(1)
    return Run(culture=culture, folder=folder, stages=stages, accelerator=accelerator, cache_dir=cache_dir)


def public_name(model: str | None) -> str:
    """What the card calls a model: by its name on the Hub, or a folder's name and content, not by where it lies."""
    if model is None:
        return "the distance's own"
    folder = Path(model)
    if folder.is_dir():
        return f"{folder.resolve().name} ({model_key(model)[:16]})"
    return folder.name if folder.is_absolute() or model.startswith(".") else model


def check_model(
    model: str,
    *,
    flag: str,
    cache_dir: str | None,
    kinds: tuple[str, ...] = (),
    file: str = "config.json",
    weights: str = "*.safetensors",
):
    """Find before the work of hours whether a model can be had and is of its kind: a folder, or on the Hub or in its
    cache. Raises DataError, which names the flag.

    kinds: how its class's name may end; file: what says so, or for a model that has no such file its weights;
    weights: a pattern.
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
