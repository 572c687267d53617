"""Rankings as comparisons of two methods, and how often one wins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scoft.survey.bootstrap import Number, means_both_ways
from scoft.survey.rankings import Rankings
from scoft.survey.ranks import parts_of


class Comparisons(NamedTuple):
    """Who found which of two pictures better: (n,) each. Ties and what was not ranked are no comparisons."""

    participant: np.ndarray
    page: np.ndarray
    item: np.ndarray
    left: np.ndarray  # a method
    right: np.ndarray
    left_wins: np.ndarray  # bool

    def take(self, kept: np.ndarray) -> Comparisons:
        return Comparisons(*(each[kept] for each in self))


def pairs_of(methods: Sequence) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(len(methods)), 2))


def comparisons_of(rankings: Rankings, *, by_position: bool) -> Comparisons:
    """All comparisons of the rankings.

    by_position: left is the picture that stood first, where that is known, so that a preference for places can be told
    from one for pictures.  Otherwise, and where it is not, the sides of a pair take turns over pages and items, the
    same for all participants: a task of MMSR is one question, and no method is to be the left one more often.
    """
    found = []
    for turn, (a, b) in enumerate(pairs_of(rankings.methods)):
        rows = np.flatnonzero(
            ~np.isnan(rankings.ranks[:, [a, b]]).any(1) & (rankings.ranks[:, a] != rankings.ranks[:, b])
        )
        swapped = (rankings.page + rankings.item + turn)[rows] % 2 == 1
        if by_position:
            first, second = rankings.positions[rows, a], rankings.positions[rows, b]
            swapped = np.where(np.isnan(first) | np.isnan(second), swapped, second < first)
        left, right = np.where(swapped, b, a), np.where(swapped, a, b)
        wins = rankings.ranks[rows, left] < rankings.ranks[rows, right]
        found.append((rankings.participant[rows], rankings.page[rows], rankings.item[rows], left, right, wins))
    return Comparisons(*map(np.concatenate, zip(*found)))


def ties_of(rankings: Rankings) -> int:
    """Pairs that were given one rank."""
    return sum(int((rankings.ranks[:, a] == rankings.ranks[:, b]).sum()) for a, b in pairs_of(rankings.methods))


def win_rates(rankings: Rankings, **draws) -> dict[str, dict[str, dict[str, Number]]]:
    """Item (or ALL) -> a -> b -> the share of a's wins over b, ties as halves; the mean of the cultures' shares.

    Of each pair once, a being the method with the better mean rank.
    """
    found = {}
    for item, part in parts_of(rankings).items():
        pairs = pairs_of(part.methods)
        first, second = (part.ranks[:, [pair[side] for pair in pairs]] for side in (0, 1))
        wins = np.where(np.isnan(first - second), np.nan, (first < second) + 0.5 * (first == second))
        _, numbers = means_both_ways(wins, part.participant, part.culture_of, limits=(0, 1), **draws)
        found[item] = {method: {} for method in part.methods[:-1]}
        for (a, b), each in zip(pairs, numbers):
            found[item][part.methods[a]][part.methods[b]] = each
    return found


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a method does against the others."""

    beats: float  # the share of the others that it beats in most questions, draws as halves
    wins: float | None  # the share of its questions that it wins; None: there was none


def copeland(votes: Mapping[tuple[int, int], int], methods: Sequence[str]) -> dict[str, Standing]:
    """Method -> its standing, the one that beats most others first.

    votes: (a, b) -> for how many questions a was better than b.
    """
    m = len(methods)
    won = np.array([[votes.get((a, b), 0) for b in range(m)] for a in range(m)], dtype=float)
    beats = ((1 + np.sign(won - won.T)) / 2).sum(1) - 0.5  # a method draws with itself
    asked = won.sum(1) + won.sum(0)
    return {
        methods[each]: Standing(
            float(beats[each] / (m - 1)), float(won[each].sum() / asked[each]) if asked[each] else None
        )
        for each in np.argsort(-beats, kind="stable")
    }
