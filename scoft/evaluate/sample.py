"""What a metric is computed of: the pictures of one method and set, and the photographs they are held against."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scoft import intervals
from scoft.errors import DataError
from scoft.evaluate import formulas
from scoft.evaluate.features import Features, Noise
from scoft.evaluate.judge import Judge
from scoft.evaluate.metrics import DIVERSITY_FEATURES, FEATURES
from scoft.evaluate.sources import Photographs, Source
from scoft.intervals import Draw, Estimate
from scoft.pictures import Picture


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Which numbers are asked for, and by what they are measured."""

    metrics: Sequence[str]  # names of METRICS
    features: str  # encoder of KID, precision, recall, density and coverage
    diversity_features: str  # encoder of DIV, Vendi score and nearest photographs
    question: str  # of intervals.QUESTIONS
    neighbours: int  # k of precision, recall, density and coverage

    def encoder(self, name: str) -> str:
        """The encoder's name, where `name` may be FEATURES or DIVERSITY_FEATURES."""
        return {FEATURES: self.features, DIVERSITY_FEATURES: self.diversity_features}.get(name, name)


@dataclass(frozen=True)
class Reference:
    """Photographs, with what is computed of them alone. `name`: of their draw, see intervals.photograph_draw."""

    name: str
    y: np.ndarray  # their features (m, D)

    @functools.cached_property
    def draw(self) -> Draw:
        return intervals.photograph_draw(self.name, len(self.y))

    @functools.cached_property
    def kid(self) -> formulas.KidReference:
        return formulas.kid_reference(self.y, photographs=self.draw)


class References:
    """Photographs by their encoder, each computed once for all methods."""

    def __init__(self, features: Features | Noise, photographs: Photographs):
        self.features, self.photographs = features, photographs
        self.of = functools.cache(self._of)

    def _of(self, encoder: str, against: str) -> Reference:
        """The photographs of the split train or test, or the general ones."""
        name = "general" if against == "general" else self.photographs.dataset.culture
        return Reference(name, self.features.of(encoder, self.photographs.of(against)))

    def of_captions(self, encoder: str, pictures: Sequence[Picture]) -> tuple[np.ndarray, list[str]]:
        """Features (m, D) of the photographs whose captions the pictures are made from, and those captions (m,)."""
        captions = {picture.photograph: picture.prompt for picture in pictures}
        sources = [source for source in self.photographs.of("train") if source.sha256 in captions]
        if len(sources) < len(captions):
            raise DataError(
                f"{len(captions) - len(sources)} of {len(captions)} photographs whose captions were drawn are not in "
                f"--dataset {self.photographs.dataset.name}; give the one that the pictures were generated with."
            )
        return self.features.of(encoder, sources), [captions[source.sha256] for source in sources]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The pictures (n) of one method and set, and all that a metric may ask for.

    An encoder is named as in a row of METRICS.
    """

    pictures: Sequence[Picture]
    sources: Sequence[Source]
    features: Features | Noise
    references: References
    choices: Choices
    judge: Judge | None = None

    @property
    def prompts(self) -> np.ndarray:
        return np.array([picture.prompt for picture in self.pictures])

    @functools.cached_property
    def draws(self) -> list[Draw]:
        """What was drawn by chance to make the pictures, see intervals.picture_draws. Raises ValueError."""
        # A sentence that is asked with each culture's name is one prompt; a caption is its culture's own.
        labels = [picture.index if picture.photograph is None else picture.prompt for picture in self.pictures]
        numbers = [picture.number for picture in self.pictures]
        draws = intervals.picture_draws(labels, numbers, question=self.choices.question)
        if self.pictures[0].photograph is None:
            return draws
        own = f"captions of {self.pictures[0].culture}"
        return [draw._replace(name=own) if draw.name == "prompts" else draw for draw in draws]

    def x(self, encoder: str) -> np.ndarray:
        """Features (n, D) of the pictures."""
        return self.features.of(self.choices.encoder(encoder), self.sources)

    def texts(self) -> np.ndarray:
        """CLIP's features (n, D) of the prompts."""
        return self.features.of_texts([picture.prompt for picture in self.pictures])

    def reference(self, encoder: str, against: str) -> Reference:
        """The photographs of the split train or test, or the general ones."""
        return self.references.of(self.choices.encoder(encoder), against)

    def captioned(self, encoder: str) -> tuple[np.ndarray, list[str]]:
        """Features of the training photographs whose captions are the prompts, and those captions."""
        return self.references.of_captions(self.choices.encoder(encoder), self.pictures)

    def estimate(self, statistic: Callable[[np.ndarray], float]) -> Estimate:
        """With its interval, a number of the pictures that a mask (n,) marks, see intervals.estimate."""
        return intervals.estimate(statistic, self.draws)

    def mean(self, values: np.ndarray) -> Estimate:
        """With its interval, the mean of a number (n,) of each picture."""
        return self.estimate(lambda kept: values[kept].mean())
