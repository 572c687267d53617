"""The numbers of an evaluation: each is a function and a row of METRICS.

A function takes the pictures of one method and set and its own row, and gives an `Estimate`, or several by their
names.  What the pictures do not allow is a ValueError, as those of `formulas` are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scoft import intervals
from scoft.errors import DataError
from scoft.evaluate import formulas
from scoft.evaluate.sample import DIVERSITY_FEATURES, FEATURES, Sample
from scoft.intervals import Estimate
from scoft.pictures import PromptSet


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of `results.json`: what it says, which way is better, and all that it needs."""

    name: str
    compute: Callable[[Sample, "Metric"], Estimate | dict[str, Estimate]]
    title: str
    sets: tuple[PromptSet, ...]  # of whose pictures it is taken
    better: Literal["less", "more", ""]  # "" where neither is
    decimals: int = 3
    encoder: str | None = None  # a name of ENCODERS, or the flag's by which one is chosen
    against: Literal["test", "train", "general", "prompt", "judge"] | None = None  # photographs, or what else

    @property
    def flag(self) -> str | None:
        """The flag of `score` without which there is no such number."""
        return {"general": "general_reference", "judge": "judge"}.get(self.against)


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def kid(sample: Sample, row: Metric) -> Estimate:
    """Times 10^3, as the paper prints it."""
    reference = sample.reference(row.encoder, row.against)
    return intervals.scaled(formulas.kid_estimate(sample.x(row.encoder), reference.kid, sample.draws), 1000)


def clip_score(sample: Sample, row: Metric) -> Estimate:
    return sample.mean(formulas.clip_scores(sample.x(row.encoder), sample.texts()))


def clip_cosine(sample: Sample, row: Metric) -> Estimate:
    return sample.mean(formulas.cosines(sample.x(row.encoder), sample.texts()))


def training_similarity(sample: Sample, row: Metric) -> Estimate:
    x, prompts = sample.x(row.encoder), sample.prompts
    y, captions = sample.captioned(row.encoder)
    return sample.estimate(lambda kept: formulas.training_similarity(x[kept], prompts[kept], y, captions))


def diversity(sample: Sample, row: Metric) -> Estimate:
    x, prompts = sample.x(row.encoder), sample.prompts
    return sample.estimate(lambda kept: formulas.diversity(x[kept], prompts[kept]))


def neighbourhoods(sample: Sample, row: Metric) -> dict[str, Estimate]:
    """Precision, recall, density and coverage, which share their distances."""
    reference = sample.reference(row.encoder, row.against)
    return formulas.prdc_estimates(
        sample.x(row.encoder), reference.y, sample.draws, photographs=reference.draw, k=sample.choices.neighbours
    )


def vendi(sample: Sample, row: Metric) -> Estimate:
    x = sample.x(row.encoder)
    return sample.estimate(lambda kept: formulas.vendi_score(x[kept]))


def nearest(sample: Sample, row: Metric) -> Estimate:
    _, similarity = nearest_photographs(sample, row)
    return sample.mean(similarity)


def nearest_photographs(sample: Sample, row: Metric) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the index of the photograph that it is most like, and their cosine: two arrays (n,)."""
    return formulas.nearest_photographs(sample.x(row.encoder), sample.reference(row.encoder, row.against).y)


def judged(sample: Sample, row: Metric) -> dict[str, Estimate]:
    """Rates of what the judge says of each picture, under <row>/<its word>, see `metric_of`."""
    verdicts = sample.judge.verdicts(sample.pictures, sample.sources)
    return {f"{row.name}/{word}": intervals.rate(each, sample.draws) for word, each in verdicts.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


ROWS = (
    Metric(
        name="kid",
        compute=kid,
        title="KID × 10³ to the culture's photographs",
        sets=("prompts",),
        better="less",
        decimals=2,
        encoder=FEATURES,
        against="test",
    ),
    # The paper's is the same for every culture, so its prompts name none.
    Metric(
        name="kid_general",
        compute=kid,
        title="KID × 10³ of general prompts to general photographs",
        sets=("general",),
        better="less",
        decimals=2,
        encoder=FEATURES,
        against="general",
    ),
    Metric(
        name="clip_score",
        compute=clip_score,
        title="CLIP score, 2.5 cosine",
        sets=("prompts", "test", "general"),
        better="more",
        encoder="clip",
        against="prompt",
    ),
    Metric(
        name="clip_cosine",
        compute=clip_cosine,
        title="cosine of picture and prompt",
        sets=("prompts", "test", "general"),
        better="more",
        encoder="clip",
        against="prompt",
    ),
    Metric(
        name="clip_i",
        compute=training_similarity,
        title="CLIP-I to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="clip",
        against="train",
    ),
    Metric(
        name="dino",
        compute=training_similarity,
        title="DINO to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="dino",
        against="train",
    ),
    Metric(
        name="dreamsim",
        compute=training_similarity,
        title="DreamSim to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="dreamsim",
        against="train",
    ),
    Metric(
        name="div",
        compute=diversity,
        title="DIV, distance of pictures of a prompt",
        sets=("prompts", "train", "test"),
        better="more",
        encoder=DIVERSITY_FEATURES,
    ),
    *(
        Metric(
            name=name,
            compute=neighbourhoods,
            title=name,
            sets=("prompts",),
            better="more",
            encoder=FEATURES,
            against="test",
        )
        for name in formulas.PRDC
    ),
    Metric(
        name="vendi",
        compute=vendi,
        title="Vendi score",
        sets=("prompts", "general"),
        better="more",
        decimals=2,
        encoder=DIVERSITY_FEATURES,
    ),
    Metric(
        name="nearest",
        compute=nearest,
        title="similarity to the nearest training photograph",
        sets=("prompts", "train"),
        better="less",
        encoder=DIVERSITY_FEATURES,
        against="train",
    ),
    Metric(
        name="judge",
        compute=judged,
        title="the judge's rates",
        sets=("prompts",),
        better="",
        against="judge",
    ),
)
METRICS = {row.name: row for row in ROWS}


def metric_of(name: str) -> Metric:
    """The row of a number's name. Those of a judge have a row of their own, by its word. Raises KeyError."""
    family, _, word = name.partition("/")
    row = METRICS[family]
    if not word:
        return row
    return dataclasses.replace(row, name=name, title=f"{family}: {word}", better="more" if word == "right" else "")


# ---------------------------------------------------------------------------------------------------------------------
# Computing
# ---------------------------------------------------------------------------------------------------------------------


def in_order(names: Iterable[str]) -> list[str]:
    """Names of METRICS as their numbers stand in results.json: those that are computed together come last."""
    return sorted(names, key=lambda name: METRICS[name].compute is neighbourhoods)


def given_by(sample: Sample, name: str) -> dict[str, Estimate]:
    """The numbers that a row of METRICS gives, by their names. Raises DataError where the pictures give none."""
    row = METRICS[name]
    try:
        given = row.compute(sample, row)
    except ValueError as error:
        first = sample.pictures[0]
        raise DataError(f"{first.method}, set {first.set}: {error}") from error
    return given if isinstance(given, dict) else {name: given}


def estimates_of(sample: Sample, names: Sequence[str]) -> dict[str, Estimate]:
    """The numbers of these rows of METRICS, by their names. Raises DataError where one is impossible."""
    found = {}
    for name in in_order(names):
        if name not in found:  # it may have come with another
            found |= given_by(sample, name)
    return {name: each for name, each in found.items() if name in names or name not in METRICS}
