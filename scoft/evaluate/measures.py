"""What the rows of METRICS compute.

A function takes the pictures of one method and set and its own row, and gives an `Estimate`, or several by their
names.  What the pictures do not allow is a ValueError, as those of `formulas` are.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from scoft import intervals
from scoft.errors import DataError
from scoft.evaluate import formulas
from scoft.evaluate.metrics import LOG_ODDS, METRICS, Metric
from scoft.evaluate.sample import Sample
from scoft.intervals import Estimate


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
    """Rates of what the judge says of each picture, and means of log-odds, under <row>/<its word>, see `metric_of`."""
    return {
        f"{row.name}/{word}": sample.mean(np.array(each))
        if word.endswith(LOG_ODDS)
        else intervals.rate(each, sample.draws)
        for word, each in sample.judge.verdicts(sample.pictures, sample.sources).items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


def in_order(names: Iterable[str]) -> list[str]:
    """Names of METRICS as their numbers stand in results.json: those that are computed together come last."""
    return sorted(names, key=lambda name: METRICS[name].compute == "neighbourhoods")


def given_by(sample: Sample, name: str) -> dict[str, Estimate]:
    """The numbers that a row of METRICS gives, by their names. Raises DataError where the pictures give none."""
    row = METRICS[name]
    compute = globals()[row.compute]  # one of the functions above
    try:
        given = compute(sample, row)
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
