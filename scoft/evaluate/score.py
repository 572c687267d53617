"""Scoring: from the manifest to pictures, their features, the metrics, and results.json."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scoft.cultures import culture_words
from scoft.errors import DataError
from scoft.evaluate import figures
from scoft.evaluate.encoders import Encoders
from scoft.evaluate.features import Features, Noise
from scoft.evaluate.judge import Judge
from scoft.evaluate.measures import estimates_of, given_by, in_order, nearest_photographs
from scoft.evaluate.metrics import METRICS
from scoft.evaluate.results import SETTINGS, Key, write_results
from scoft.evaluate.sample import Choices, References, Sample
from scoft.evaluate.sources import Photographs, picture_sources
from scoft.files import sole_writer
from scoft.pictures import BASE, Picture, PromptSet, read_pictures


logger = logging.getLogger(__name__)

Groups = Mapping[tuple[PromptSet, str], Sequence[Picture]]  # (set, method) -> its pictures


def score(
    folder: Path,
    choices: Choices,
    photographs: Photographs,
    encoders: Encoders,
    *,
    judge: str | None,
    batch_size: int,
):
    """Write results.json: every metric of every method with its interval, and the paired differences of methods.

    judge: FILE.py:function. Raises DataError, before anything is embedded, where not all numbers can be had.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of pictures; generate them: it is the stage before.")
    with sole_writer(folder, flag="folder"):
        pictures = read_pictures(folder)
        groups = comparable(pictures)
        check_asked(folder, groups, choices, culture=photographs.dataset.culture)
        sources = {key: picture_sources(folder, group) for key, group in groups.items()}
        tried = Judge(judge) if "judge" in choices.metrics else None
        if tried:
            key = next(key for key in groups if key[0] in METRICS["judge"].sets)
            tried(groups[key][0], sources[key][0])  # what fails now does not fail in an hour
        check_possible(folder, groups, choices, photographs)
        for encoder in needed_encoders(choices):
            encoders.load(encoder)  # one that cannot be loaded is found before the first works for hours
        features = Features(folder / "features", encoders, batch_size=batch_size)
        references = References(features, photographs)
        estimates = {}
        for (name, method), group in groups.items():
            logger.info("%s: %d pictures of the set %s", method, len(group), name)
            sample = Sample(
                pictures=group,
                sources=sources[name, method],
                features=features,
                references=references,
                choices=choices,
                judge=tried,
            )
            wanted = of_set(name, choices.metrics)
            estimates |= {Key(m, name, method): each for m, each in estimates_of(sample, wanted).items()}
            if "nearest" in wanted:
                write_nearest(folder, sample)
        write_results(folder, pictures, estimates, choices, encoders.loaded)


def comparable(pictures: Sequence[Picture]) -> Groups:
    """The pictures by set and method but for blank ones. Raises DataError where methods cannot be compared."""
    found, asked = defaultdict(list), defaultdict(set)
    for picture in sorted(pictures, key=lambda picture: (picture.index, picture.number)):
        asked[picture.set, picture.method].add((picture.prompt, picture.number))
        if not picture.blank:
            found[picture.set, picture.method].append(picture)
    for setting in SETTINGS:
        values = {getattr(picture, setting): picture.method for picture in pictures}
        if len(values) > 1:
            listed = ", ".join(f"{value} ({method})" for value, method in values.items())
            raise DataError(f"pictures of different {setting} cannot be compared: {listed}. Generate all with one.")
    methods = list(dict.fromkeys(picture.method for picture in pictures))
    for method in methods:
        for what, of in (("LoRA", "lora_sha256"), ("corrector", "corrector_key")):
            if len({getattr(picture, of) for picture in pictures if picture.method == method}) > 1:
                raise DataError(
                    f"the pictures of {method} are of more than one {what}; finish them: run generate again."
                )
    for name in {name for name, _ in asked}:
        for method in methods:
            if asked.get((name, method)) != asked.get((name, methods[0])):
                raise DataError(
                    f"the set {name} of {method} has other prompts or pictures than that of {methods[0]}; generate "
                    "both with the same flags."
                )
            if len(found[name, method]) < 2:
                raise DataError(
                    f"the set {name} of {method} has {len(found[name, method])} pictures that are not blank."
                )
    return dict(found)


def of_set(name: PromptSet, metrics: Sequence[str]) -> list[str]:
    """The metrics that are taken of a set's pictures."""
    return [metric for metric in metrics if name in METRICS[metric].sets]


def needed_encoders(choices: Choices) -> list[str]:
    rows = [METRICS[metric] for metric in choices.metrics]
    return sorted({choices.encoder(row.encoder) for row in rows if row.encoder})


def check_asked(folder: Path, groups: Groups, choices: Choices, *, culture: str):
    """Raise DataError unless the folder has pictures of this culture, and of a set of each metric."""
    drawn = next(iter(groups.values()))[0].culture
    if culture != drawn:
        raise DataError(f"--culture {culture}: the pictures of {folder} are of {drawn}.")
    available = {name for name, _ in groups}
    for metric in choices.metrics:
        if not available & set(METRICS[metric].sets):
            raise DataError(
                f"--metrics {metric} is of the set {' or '.join(METRICS[metric].sets)}, but {folder} has pictures of "
                f"{', '.join(sorted(available))} alone; generate them, or leave the metric out."
            )


def check_possible(
    folder: Path,
    groups: Groups,
    choices: Choices,
    photographs: Photographs,
):
    """Raise DataError, which says what is left, unless these pictures can give all metrics."""
    if lacking := impossible(groups, choices, photographs):
        rest = set(choices.metrics).difference(*lacking.values())
        rest = " ".join(metric for metric in choices.metrics if metric in rest) or "none is left"
        reasons = "".join(f"\n  {', '.join(metrics)}: {reason}" for reason, metrics in lacking.items())
        raise DataError(f"there cannot be all numbers of {folder}:{reasons}\nGenerate more, or take --metrics {rest}")


def impossible(groups: Groups, choices: Choices, photographs: Photographs) -> dict[str, list[str]]:
    """Reason -> metrics that so many pictures, prompts and photographs cannot give: each is tried, on noise."""
    found, alike = defaultdict(list), {}
    for (name, _), group in groups.items():
        alike.setdefault((name, *((each.index, each.number) for each in group)), group)
    noise = Noise()
    references = References(noise, photographs)
    for (name, *_), group in alike.items():
        sample = Sample(pictures=group, sources=group, features=noise, references=references, choices=choices)
        possible = set()
        for metric in in_order(of_set(name, choices.metrics)):
            if metric in possible or METRICS[metric].against == "judge":
                continue
            try:
                possible |= given_by(sample, metric).keys()
            except DataError as error:
                found[str(error)].append(metric)
    return found


def foretell(wanted: Sequence[Picture], choices: Choices, photographs: Photographs):
    """Say of pictures that are not drawn yet which numbers `score` will not be able to give."""
    groups = defaultdict(list)
    for picture in wanted:
        if picture.method == BASE:  # of the others there are as many
            groups[picture.set, picture.method].append(picture)
    for reason, metrics in impossible(groups, choices, photographs).items():
        logger.warning("Of these pictures there will be no %s: %s", ", ".join(metrics), reason)


def write_nearest(folder: Path, sample: Sample):
    """Write the sheet of the pictures that are most like a training photograph, beside those."""
    row, first = METRICS["nearest"], sample.pictures[0]
    at, similarity = nearest_photographs(sample, row)
    photographs = sample.references.photographs.of(row.against)
    closest = np.argsort(-similarity, kind="stable")[: figures.NEAREST_SHOWN]
    pairs = [(sample.sources[i].open(), photographs[at[i]].open(), similarity[i]) for i in closest]
    heading = f"{culture_words(first.culture)}: {first.method}, set {first.set}"
    figures.write_nearest(folder, figures.nearest(pairs, title=heading), of=first.set, method=first.method)
