"""The numbers of an evaluation: each is a row of METRICS and a function of measures.py.

Names, titles and needs stand here, apart from what is computed: command lines, which show them, do not wait for scipy.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scoft.pictures import PromptSet


# In the place of an encoder's name: that of the flag by which one is chosen.
FEATURES = "features"
DIVERSITY_FEATURES = "diversity_features"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of `results.json`: what it says, which way is better, and all that it needs."""

    name: str
    compute: str  # the function of measures.py
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


class Measured(NamedTuple):
    """A metric by its name, and the set of pictures that it is taken of."""

    metric: str
    set: PromptSet


ROWS = (
    Metric(
        name="kid",
        compute="kid",
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
        compute="kid",
        title="KID × 10³ of general prompts to general photographs",
        sets=("general",),
        better="less",
        decimals=2,
        encoder=FEATURES,
        against="general",
    ),
    Metric(
        name="clip_score",
        compute="clip_score",
        title="CLIP score, 2.5 cosine",
        sets=("prompts", "test", "general"),
        better="more",
        encoder="clip",
        against="prompt",
    ),
    Metric(
        name="clip_cosine",
        compute="clip_cosine",
        title="cosine of picture and prompt",
        sets=("prompts", "test", "general"),
        better="more",
        encoder="clip",
        against="prompt",
    ),
    Metric(
        name="clip_i",
        compute="training_similarity",
        title="CLIP-I to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="clip",
        against="train",
    ),
    Metric(
        name="dino",
        compute="training_similarity",
        title="DINO to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="dino",
        against="train",
    ),
    Metric(
        name="dreamsim",
        compute="training_similarity",
        title="DreamSim to the caption's training photographs",
        sets=("train",),
        better="less",
        encoder="dreamsim",
        against="train",
    ),
    Metric(
        name="div",
        compute="diversity",
        title="DIV, distance of pictures of a prompt",
        sets=("prompts", "train", "test"),
        better="more",
        encoder=DIVERSITY_FEATURES,
    ),
    *(
        Metric(
            name=name,
            compute="neighbourhoods",
            title=name,
            sets=("prompts",),
            better="more",
            encoder=FEATURES,
            against="test",
        )
        for name in ("precision", "recall", "density", "coverage")
    ),
    Metric(
        name="vendi",
        compute="vendi",
        title="Vendi score",
        sets=("prompts", "general"),
        better="more",
        decimals=2,
        encoder=DIVERSITY_FEATURES,
    ),
    Metric(
        name="nearest",
        compute="nearest",
        title="similarity to the nearest training photograph",
        sets=("prompts", "train"),
        better="less",
        encoder=DIVERSITY_FEATURES,
        against="train",
    ),
    Metric(
        name="judge",
        compute="judged",
        title="the judge's rates and log-odds",
        sets=("prompts",),
        better="",
        against="judge",
    ),
)
METRICS = {row.name: row for row in ROWS}
LOG_ODDS = "_log_odds"  # at the end of a judge's word: any number of each picture, where others are 0 or 1


def metric_of(name: str) -> Metric:
    """The row of a number's name. Those of a judge have a row of their own, by its word. Raises KeyError."""
    family, _, word = name.partition("/")
    row = METRICS[family]
    if not word:
        return row
    verdict = word.removesuffix(LOG_ODDS)
    title, decimals = (
        (f"{family}: {word}", row.decimals) if verdict == word else (f"{family}: log-odds of {verdict}", 2)
    )
    better = "more" if verdict == "right" else ""
    return dataclasses.replace(row, name=name, title=title, better=better, decimals=decimals)
