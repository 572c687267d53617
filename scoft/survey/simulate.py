"""Participants who know the truth, with stated noise: what a survey would say if they answered it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from scoft.errors import DataError
from scoft.images import open_file
from scoft.survey.schema import ANSWERS_FILE, ITEMS, Answer, Key, read_key
from scoft.survey.store import Store, every_answer


USUAL_SECONDS = 60.0  # of a page, the median
SPREAD = 0.35  # of its logarithm


def answer_simulated(
    folder: Path,
    pictures: Path,
    *,
    judge: Callable[[list, list[str]], Mapping[str, float]],
    participants: int,
    noise: float,
):
    """Answer the survey in `folder` by simulated participants, who see in a picture what the judge does.

    pictures: the folder that the survey was built from.  judge(images, prompts): shares that are `right` and a
    `stereotype`; a picture's quality is their difference, from -1 to 1.  Raises DataError, also where
    somebody has answered: people and the simulated do not belong together.
    """
    if (folder / ANSWERS_FILE).exists() and next(every_answer(folder), None):
        raise DataError(f"{folder} has answers. Name another folder, or remove it.")
    key = read_key(folder)
    quality = {}
    for name, shown in key.pictures.items():
        seen = judge([open_file(pictures / shown.file, within=pictures)], [shown.prompt])
        quality[name] = seen["right"] - seen["stereotype"]
    with Store(folder) as store:
        answers = simulated_answers(key, quality, participants=participants, noise=noise)
        store.put_back(list(answers), []).result()


def simulated_answers(
    key: Key, quality: Mapping[str, float], *, participants: int, noise: float, seed: int = 0
) -> Iterator[Answer]:
    """An answer to each page of each participant.

    quality: by a picture's opaque name, more is better.  In each item a participant ranks the pictures of a page by
    quality + noise * g, g drawn anew from Gumbel's distribution: the rankings are Plackett-Luce's with the scores
    quality / noise.  A noise of 0 ranks by the quality alone.
    """
    random = np.random.default_rng(seed)
    pages: dict[int, list[str]] = {}
    for name, shown in key.pictures.items():
        pages.setdefault(shown.page, []).append(name)
    for number in range(participants):
        for page, names in sorted(pages.items()):
            order = [names[place] for place in random.permutation(len(names))]
            truth = np.array([quality[name] for name in order])
            ranks = {item: ranked(truth + noise * random.gumbel(size=len(order))) for item in ITEMS}
            yield Answer(
                survey=key.survey,
                participant=f"simulated-{seed}-{number}",
                page=page,
                revision=1,
                language="en",
                milliseconds=round(1000 * USUAL_SECONDS * np.exp(SPREAD * random.normal())),
                order=order,
                ranks={item: dict(zip(order, each)) for item, each in ranks.items()},
            )


def ranked(values: np.ndarray) -> list[int]:
    """(m,) the rank of each value, 1 the greatest."""
    return ((-values).argsort(kind="stable").argsort() + 1).tolist()
