"""results.json: every number of every method with its interval, their differences, and all that they depend on."""

import dataclasses
import functools
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scoft import intervals, lora_folder
from scoft.errors import DataError
from scoft.evaluate.encoders import Encoder
from scoft.evaluate.metrics import metric_of
from scoft.evaluate.sample import Choices
from scoft.files import checked_name, read_record, write_atomically
from scoft.intervals import Estimate
from scoft.lora_page import without_places
from scoft.pictures import BASE, Picture, PromptSet, is_checkpoint, method_of


logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
# What must be the same for all pictures, that differences of methods are those of the LoRAs alone.
SETTINGS = ("culture", "base_key", "variant", "guidance", "steps", "resolution", "precision")


class Key(NamedTuple):
    """Which number it is: of what, of which set's pictures, of which method."""

    metric: str
    set: PromptSet
    method: str


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of a method with its interval; KID times 10^3, as everywhere."""

    metric: str
    set: PromptSet
    method: str
    value: float
    low: float
    high: float
    n: int

    def __post_init__(self):
        method_of(self.method)
        try:
            metric_of(self.metric)
        except KeyError as error:
            raise ValueError(f"there is no metric {self.metric}") from error


@dataclass(frozen=True, kw_only=True)
class Score(Number):
    """With what the interval was made from, which pairs it with others."""

    replicates: dict[str, list[tuple[int | str, float]]]  # as pairs, since a JSON object's names are text

    @property
    def estimate(self) -> Estimate:
        replicates = {draw: dict(pairs) for draw, pairs in self.replicates.items()}
        return Estimate(self.value, self.low, self.high, self.n, replicates)


@dataclass(frozen=True, kw_only=True)
class Difference(Number):
    """`method` minus `to`, paired."""

    to: str


@dataclass(kw_only=True)
class Count:
    pictures: int = 0
    blank: int = 0


@dataclass(frozen=True, kw_only=True)
class Results:
    """`results.json`: scores and differences, and beside them all that they depend on: settings and LoRAs of the
    pictures, encoders by the sha256 of what was loaded.
    """

    culture: str
    question: str
    confidence: float
    features: str
    diversity_features: str
    neighbours: int
    settings: dict[str, str | int | float | None]
    loras: dict[str, str | None]  # method -> sha256
    encoders: dict[str, lora_folder.Encoder]
    counts: dict[str, Count]  # by <method>/<set>
    scores: list[Score]
    differences: list[Difference]
    correctors: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # method -> folder or Hub id, of those with one

    @property
    def loras_alone(self) -> dict[str, str]:
        """Those whose pictures no corrector had a part in, nor the base model alone."""
        return {method: lora for method, lora in self.loras.items() if lora and method not in self.correctors}

    def __post_init__(self):
        checked_name(self.culture, what="culture")

    @functools.cached_property
    def estimates(self) -> dict[Key, Estimate]:
        return {Key(each.metric, each.set, each.method): each.estimate for each in self.scores}


def read_results(folder: Path) -> Results:
    """Raises DataError where the folder was not scored, or its results.json is none of ours."""
    return read_record(folder / RESULTS_FILE, Results, remedy="Score the folder: it is the stage before.")


def checkpoints_of(estimates: Mapping[Key, Estimate]) -> dict[tuple[str, str, PromptSet], list[tuple[int, Estimate]]]:
    """(run, metric, set) -> its checkpoints' updates and estimates, in order, from the base model's, 0 updates, on."""
    found = defaultdict(list)
    for (metric, name, method), estimate in estimates.items():
        run, updates = method_of(method)
        if updates is not None:
            found[run, metric, name].append((updates, estimate))
    for (_, metric, name), points in found.items():
        if start := estimates.get(Key(metric, name, BASE)):
            points.append((0, start))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items()}


def write_results(
    folder: Path,
    pictures: Sequence[Picture],
    estimates: Mapping[Key, Estimate],
    choices: Choices,
    encoders: Mapping[str, Encoder],
):
    """Write all that was computed of a folder's pictures. Raises DataError where two methods have no difference."""
    counts = defaultdict(Count)
    for picture in pictures:
        counts[f"{picture.method}/{picture.set}"].pictures += 1
        counts[f"{picture.method}/{picture.set}"].blank += picture.blank
    record = Results(
        culture=pictures[0].culture,
        question=choices.question,
        confidence=intervals.CONFIDENCE,
        features=choices.features,
        diversity_features=choices.diversity_features,
        neighbours=choices.neighbours,
        settings={name: getattr(pictures[0], name) for name in SETTINGS if name != "culture"},
        loras={picture.method: picture.lora_sha256 for picture in pictures},
        correctors={picture.method: without_places(picture.corrector) for picture in pictures if picture.corrector},
        encoders={
            name: lora_folder.Encoder(place=without_places(each.place), sha256=each.sha256)
            for name, each in encoders.items()
        },
        counts=dict(counts),
        scores=[
            Score(
                **key._asdict(),
                **numbers(estimate),
                replicates={draw: list(each.items()) for draw, each in estimate.replicates.items()},
            )
            for key, estimate in estimates.items()
        ],
        differences=differences(estimates),
    )
    write_atomically(folder / RESULTS_FILE, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    logger.info(
        "%d numbers and %d differences are in %s", len(estimates), len(record.differences), folder / RESULTS_FILE
    )


def differences(estimates: Mapping[Key, Estimate]) -> list[Difference]:
    """Of each method to those before it, but for checkpoints, which the report draws as curves."""
    compared = [method for method in dict.fromkeys(key.method for key in estimates) if not is_checkpoint(method)]
    return [
        Difference(**key._asdict(), to=other, **numbers(difference(estimates, key, other)))
        for key in estimates
        for other in compared[: compared.index(key.method) if key.method in compared else 0]
    ]


def difference(estimates: Mapping[Key, Estimate], key: Key, other: str) -> Estimate:
    """A method's number minus that of the `other`, paired. Raises DataError, see `paired`."""
    what = f"{key.metric}, {key.method} - {other}"
    return paired(estimates[key], estimates[key._replace(method=other)], what=what)


def paired(a: Estimate, b: Estimate, *, what: str) -> Estimate:
    """The difference of two methods. Raises DataError where blank pictures left them no prompt or seed in common."""
    try:
        return intervals.difference(a, b)
    except ValueError as error:
        raise DataError(f"{what}: {error}") from error


def numbers(estimate: Estimate) -> dict:
    """The fields of `Number` that an estimate has."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
