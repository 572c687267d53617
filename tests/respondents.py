"""Simulated populations of participants whose taste is known."""

import numpy as np

from scoft.survey.problems import Problems
from scoft.survey.rankings import Rankings, rankings_of
from scoft.survey.responses import responses_of
from scoft.survey.schema import Key, Response, Shown
from scoft.survey.simulate import simulated_answers


METHODS = ("base", "m", "mp", "mpc")
SKILLS = {"base": 0.0, "m": 0.6, "mp": 1.0, "mpc": 1.5}
PAPER = {"korea": 13, "china": 11, "india": 10, "nigeria": 9, "mexico": 7}  # participants, supplement and section 6


def key_of(culture: str, *, pages: int, methods: tuple[str, ...] = METHODS) -> Key:
    names = {(page, method): f"{culture}-{page}-{method}" for page in range(pages) for method in methods}
    pictures = {
        name: Shown(page=page, method=method, prompt="a house", seed=page, file="x.png")
        for (page, method), name in names.items()
    }
    return Key(survey=f"survey-{culture}", culture=culture, pictures=pictures)


def responses(
    participants: dict[str, int],
    *,
    pages: int = 4,
    skills: dict[str, float] = SKILLS,
    noise: float = 1.0,
    seed: int = 0,
) -> list[Response]:
    """Rows of cultures with so many participants each, whose rankings are Plackett-Luce's of these skills."""
    rows = []
    for number, (culture, count) in enumerate(participants.items()):
        key = key_of(culture, pages=pages, methods=tuple(skills))
        quality = {name: skills[shown.method] for name, shown in key.pictures.items()}
        answers = simulated_answers(key, quality, participants=count, noise=noise, seed=100 * seed + number)
        rows += responses_of(answers, key, Problems())
    return rows


def rankings(*args, **kwargs) -> Rankings:
    return rankings_of(responses(*args, **kwargs))


def by_taste(
    tastes: np.ndarray, *, pages: int, random: np.random.Generator, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """(P pages, m) ranks by participants with these tastes (P, m), and (P pages,) whose they are."""
    values = np.repeat(tastes, pages, axis=0)
    values = values + noise * random.gumbel(size=values.shape)
    return (-values).argsort(1).argsort(1) + 1.0, np.repeat(np.arange(len(tastes)), pages)
