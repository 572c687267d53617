"""Mean ranks, as the right half of the paper's Table 1, and how often each rank was given (figures 5 and 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from scoft.survey.bootstrap import Number, means_both_ways
from scoft.survey.rankings import Rankings
from scoft.survey.schema import ITEMS


T = TypeVar("T")

ALL = "all"  # items, or cultures, taken together
# Table 1, right half: what the paper prints, in the order of ITEMS.  Its sums over methods are 9.82, 9.82, 9.89, 9.74
# where ranks without ties and gaps give 10, so its data had some.
PAPER = {
    "base": (3.09, 3.07, 2.98, 3.07),
    "m": (2.57, 2.56, 2.66, 2.59),
    "mp": (2.33, 2.35, 2.34, 2.30),
    "mpc": (1.83, 1.84, 1.91, 1.78),
}


@dataclasses.dataclass(frozen=True)
class MeanRanks:
    """Item (or ALL) -> method -> its mean rank, less is better."""

    pooled: dict[str, dict[str, Number]]  # every answer counts alike
    mean_of_cultures: dict[str, dict[str, Number]]  # every culture counts alike
    by_culture: dict[str, dict[str, dict[str, Number]]]  # each pooled


def parts_of(rankings: Rankings) -> dict[str, Rankings]:
    """ALL, and each item that was answered."""
    answered = [item for number, item in enumerate(ITEMS) if (rankings.item == number).any()]
    return {ALL: rankings} | {item: rankings.of_item(item) for item in answered}


def by_parts(rankings: Rankings, score: Callable[[Rankings], T]) -> dict[str, dict[str, T]]:
    """`score` of the overall, each culture and each item, as the panels of figure 11."""
    items = parts_of(rankings)
    return {
        "overall": {ALL: score(items.pop(ALL))},
        "culture": {culture: score(rankings.of_culture(culture)) for culture in rankings.cultures},
        "item": {item: score(part) for item, part in items.items()},
    }


def mean_ranks(rankings: Rankings, **draws) -> MeanRanks:
    pooled, mean, draws["limits"] = {}, {}, (1, len(rankings.methods))
    for item, part in parts_of(rankings).items():
        both = means_both_ways(part.ranks, part.participant, part.culture_of, **draws)
        pooled[item], mean[item] = (dict(zip(part.methods, each)) for each in both)
    by_culture = {}
    for culture in rankings.cultures:
        parts = parts_of(rankings.of_culture(culture))
        by_culture[culture] = {
            item: dict(zip(part.methods, means_both_ways(part.ranks, part.participant, part.culture_of, **draws)[0]))
            for item, part in parts.items()
        }
    return MeanRanks(pooled, mean, by_culture)


def rank_counts(rankings: Rankings) -> dict[str, dict[str, list[int]]]:
    """Item (or ALL) -> method -> how often it was given rank 1, 2, ..."""
    return {
        item: {
            method: [int((part.ranks[:, number] == rank + 1).sum()) for rank in range(len(part.methods))]
            for number, method in enumerate(part.methods)
        }
        for item, part in parts_of(rankings).items()
    }


def best_of(means: Mapping[str, Number]) -> str:
    """The method with the least mean rank."""
    return min((each for each in means if means[each].value is not None), key=lambda each: means[each].value)
