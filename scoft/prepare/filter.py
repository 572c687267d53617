"""The stage filter: negatives that came out like their photograph are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scoft.launch import progress

import numpy as np
import torch
from PIL import Image, ImageOps

from scoft.distances import load_distance
from scoft.distances.base import PerceptualDistance
from scoft.errors import DataError
from scoft.files import Ledger, content_key
from scoft.images import open_file
from scoft.prepare.negatives import Negatives, read_drawn
from scoft.prepare.photograph import open_kept
from scoft.prepare.tables import FALSE_NEGATIVE_THRESHOLDS
from scoft.prepare.work import REMEDY, Run, public_name
from scoft.weights import model_key


LEDGER = "distances.jsonl"


@dataclass(frozen=True)
class Measured:
    """An entry of `distances.jsonl`: how far a photograph's negatives are from it."""

    distances: list[float]


@dataclass(frozen=True, kw_only=True)
class Negative:
    """A negative and what the filter says of it."""

    file: Path
    prompt: str
    distance: float  # to its photograph
    is_kept: bool  # or so near its photograph that it is left out


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The stage: leave out negatives that came out like their photograph."""

    filter_distance: str  # one of DISTANCES
    filter_model: str | None  # None: the distance's own
    false_negative_threshold: float | None  # None: the distance's own, where FALSE_NEGATIVE_THRESHOLDS has it
    options: Mapping[str, str]  # of distances that have some, by their names

    @property
    def threshold(self) -> float | None:
        """The distance below which a negative is left out. It decides at each run; what is measured holds for any."""
        given = self.false_negative_threshold
        return FALSE_NEGATIVE_THRESHOLDS.get(self.filter_distance) if given is None else given

    def told(self, run: Run) -> dict[str, object]:
        """The settings of which the card tells."""
        return {
            "filter_distance": self.filter_distance,
            "filter_model": public_name(self.filter_model),
            "false_negative_threshold": self.threshold,
        }

    def key(self, drawn_key: str) -> str:
        """Of all that decides the distances of a photograph's negatives."""
        return content_key(drawn_key, self.filter_distance, model_key(self.filter_model), *self.options.values())

    def check(self, run: Run):
        """Raises DataError for a distance that cannot be loaded, if none was measured with it here, and a ledger that
        cannot be read.
        """
        measured = read_measured(run)
        if run.does("filter") and not any(self.key(key) in measured for key in read_drawn(run)):
            self.load(device="cpu", cache_dir=run.cache_dir)

    def run(self, run: Run, negatives: Sequence[Negatives]) -> dict[str, list[Negative]]:
        """Of each photograph, by its id, the negatives that were measured: those kept, and those left out.

        Raises DataError if a dataset is to be written of negatives that were not measured.
        """
        there = {self.key(each.key): each for each in negatives if each.files}
        if run.does("filter"):
            self.measure(run, there)
            run.wait()
        measured = read_measured(run)
        if run.does("write") and (lacking := sum(key not in measured for key in there)):
            raise DataError(f"{lacking} photographs have negatives that were not measured; add --stages filter.")
        if self.threshold is None:  # neither filters nor writes
            return {}
        filtered = {}
        for key, each in there.items():
            if key in measured:
                distances = measured[key].distances
                if len(distances) != len(each.files):
                    raise DataError(
                        f"{run.folder / LEDGER}, the entry of {key!r}, has {len(distances)} distances for "
                        f"{len(each.files)} negatives. {REMEDY}"
                    )
                filtered[each.photograph.id] = [
                    Negative(
                        file=file,
                        prompt=each.prompts[file.stem],
                        distance=distance,
                        is_kept=distance >= self.threshold,
                    )
                    for file, distance in zip(each.files, distances)
                ]
        return filtered

    def load(self, *, device, cache_dir: str | None) -> PerceptualDistance:
        return load_distance(
            self.filter_distance,
            model_name_or_path=self.filter_model,
            device=device,
            cache_dir=cache_dir,
            flags=("--filter_distance", "--filter_model"),
            **self.options,
        )

    def measure(self, run: Run, wanted: dict[str, Negatives]):
        """Write the distances of each photograph's negatives in `wanted`, by key, into the ledger."""
        ledger = Ledger(run.folder / LEDGER)
        mine = run.share(wanted, ledger)
        with run.accelerator.main_process_first():  # dreamsim's own download bears no company
            if mine:
                distance = self.load(device=run.accelerator.device, cache_dir=run.cache_dir)
        for key, each in progress(mine, "Measuring distances", disable=not run.is_main):
            pictures = [open_file(file, within=run.folder) for file in each.files]
            photograph = open_kept(run.folder, each.photograph)
            ledger.add(key, distances=distances_to(photograph, pictures, distance=distance))


def read_measured(run: Run) -> dict[str, Measured]:
    return Ledger(run.folder / LEDGER).read_by_key(Measured, remedy=REMEDY)


def distances_to(photograph: Image.Image, negatives: Sequence[Image.Image], *, distance) -> list[float]:
    """The distance of each negative, all of one size, to what of its photograph it shows; four digits are kept."""
    pictures = [ImageOps.fit(photograph, negatives[0].size, Image.Resampling.BICUBIC), *negatives]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]) / 127.5 - 1
    with torch.no_grad():
        features = distance.embed(pixels.to(distance.scale.device))
        return [round(value, 4) for value in distance.compare(features[1:], features[:1]).tolist()]
