"""How far the participants of a culture agree, and whether their mean hides a minority."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from scoft.intervals import CONFIDENCE
from scoft.survey.bootstrap import by_participant, ratio
from scoft.survey.rankings import Rankings
from scoft.survey.ranks import parts_of


LOW = 0.3  # mean rank correlation of two participants, below which a culture is looked at for a minority
FEWEST = 3  # participants of a minority


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Over the pages of an item: the mean of Kendall's W, and of (k W - 1) / (k - 1) for k participants.

    The latter is the mean Spearman correlation of two participants, 0 where they answer at random; W is then 1 / k.
    Krippendorff's alpha of ranks comes to nearly the same, and is not told beside it.
    """

    w: float
    correlation: float
    pages: int
    participants: float  # a page, on average


def agreement(rankings: Rankings) -> dict[str, Agreement | None]:
    """Item (or ALL: the mean over items' pages) -> the agreement of complete rankings; None: no page has two."""
    return {item: _agreement(part) for item, part in parts_of(rankings).items()}


def _agreement(rankings: Rankings) -> Agreement | None:
    whole = rankings.take(rankings.complete)
    found = []
    for question in np.unique(np.stack([whole.page, whole.item], axis=1), axis=0):
        ranks = whole.ranks[(whole.page == question[0]) & (whole.item == question[1])]
        ranks = ranks[:, ~np.isnan(ranks).any(0)]
        w = kendalls_w(ranks)
        if not np.isnan(w):
            k = len(ranks)
            found.append((w, (k * w - 1) / (k - 1), k))
    if not found:
        return None
    w, correlation, participants = np.mean(found, axis=0).tolist()
    return Agreement(w, correlation, len(found), participants)


def kendalls_w(ranks: np.ndarray) -> float:
    """W of k rankings of n (k, n), ties as mean ranks; NaN of one ranking, or where all are ties."""
    k, n = ranks.shape
    if k < 2 or n < 2:
        return float("nan")
    ranks = stats.rankdata(ranks, axis=1)
    spread = ((ranks.sum(0) - k * (n + 1) / 2) ** 2).sum()
    ties = sum((counts**3 - counts).sum() for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = (k**2 * (n**3 - n) - k * ties) / 12
    return float(spread / most) if most > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class Minority:
    """Some who agree with each other, and not with the rest."""

    participants: int
    prefers: str
    rest: int
    rest_prefers: str


def minority(rankings: Rankings, correlation: float | None) -> Minority | None:
    """Of one culture: whether there is a group with another winner, where participants hardly agree.

    Any noise can be split into two groups that differ, so the split is made on every other page, by the sign of the
    first principal component of the participants' mean ranks, and looked at on the rest of the pages: there each
    group must have its winner before the other's with an interval that leaves out 0.
    """
    if correlation is None or correlation >= LOW:
        return None
    number = np.unique(rankings.page, return_inverse=True)[1]  # of a page in the culture
    halves = [rankings.take(number % 2 == half) for half in (0, 1)]
    ranked = np.flatnonzero(~np.isnan(rankings.ranks).all(0))
    (seen, who), (other, others) = (participants_means(half, ranked) for half in halves)
    both = np.intersect1d(who, others)
    seen, other = seen[np.isin(who, both)], other[np.isin(others, both)]
    if len(both) < 2 * FEWEST:
        return None
    centred = seen - seen.mean(0)
    side = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    small, large = sorted((side, ~side), key=lambda group: (group.sum(), group.tolist()))
    if small.sum() < FEWEST:
        return None
    a, b = (int(other[group].mean(0).argmin()) for group in (small, large))
    if a == b or not all(
        clearly_below_zero(other[group, first] - other[group, second])
        for group, first, second in ((small, a, b), (large, b, a))
    ):
        return None
    names = [rankings.methods[each] for each in ranked]
    return Minority(int(small.sum()), names[a], int(large.sum()), names[b])


def participants_means(rankings: Rankings, methods: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, m) mean ranks of those who ranked each of these methods, and (P,) who they are."""
    totals, counts, who = by_participant(rankings.ranks[:, methods], rankings.participant)
    means = ratio(totals, counts)
    whole = ~np.isnan(means).any(1)
    return means[whole], who[whole]


def clearly_below_zero(differences: np.ndarray) -> bool:
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return bool(differences.mean() + stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * error < 0)
