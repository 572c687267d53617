"""Intervals over participants, drawn anew within their culture.

The participants of a culture answer the same pages, so it is they who would be others in another survey; the pages
stay.  Each draw takes n - 1 of a culture's n participants with replacement, for which the variance is right whatever n
is (Rao and Wu, "Resampling inference with complex survey data", 1988); n of n come out too narrow, by a tenth at 5.
The bounds are percentiles, widened from the normal distribution's to those of Student's t.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from scoft.intervals import CONFIDENCE


DRAWS = 2000
MOST_LOST = 0.01  # of the draws may have no value; an interval of fewer would be of other surveys


@dataclasses.dataclass(frozen=True)
class Number:
    """A statistic, None where there was nothing to compute, and its interval, None where participants are too few."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> list[float]:
        """What `pages.with_interval` takes."""
        return [each for each in (self.value, self.low, self.high) if each is not None]


class Participants:
    """Those whose answers a statistic is of, and the draws of them: each one's weight in each."""

    def __init__(self, culture: np.ndarray, *, draws: int = DRAWS, seed: int = 0):
        """culture: (P,) each participant's, as a number."""
        self.culture, self.draws, self.seed = culture, draws, seed
        self.sizes = np.bincount(culture)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """(draws, P)."""
        random = np.random.default_rng(self.seed)
        weights = np.zeros((self.draws, len(self.culture)))
        for culture in np.flatnonzero(self.sizes):
            n = self.sizes[culture]
            drawn = random.multinomial(max(n - 1, 1), np.full(n, 1 / n), size=self.draws)
            weights[:, self.culture == culture] = drawn * n / max(n - 1, 1)
        return weights

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a variance over them; 0: some culture has one participant alone, and tells nothing."""
        sizes = self.sizes[self.sizes > 0]
        return 0 if (sizes == 1).any() else int((sizes - 1).sum())

    def numbers(self, values: np.ndarray, drawn: np.ndarray) -> list[Number]:
        """values: (k,) the statistics. drawn: (draws, k) the same of each draw; NaN: had none."""
        lost = np.isnan(drawn).mean(0)
        if self.freedom:
            outside = stats.norm.cdf(-stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom))
            known = np.where(lost <= MOST_LOST, drawn, 0)
            low, high = np.nanquantile(known, [outside, 1 - outside], axis=0)
        return [
            Number(None)
            if np.isnan(value)
            else Number(float(value), float(low[i]), float(high[i]))
            if self.freedom and lost[i] <= MOST_LOST
            else Number(float(value))
            for i, value in enumerate(values)
        ]

    def means(self, totals: np.ndarray, counts: np.ndarray) -> list[Number]:
        """Pooled means of all answers. totals, counts: (P, k), by participant."""
        return self.numbers(ratio(totals.sum(0), counts.sum(0)), ratio(self.weights @ totals, self.weights @ counts))

    def means_of_cultures(self, totals: np.ndarray, counts: np.ndarray) -> list[Number]:
        """Means of the cultures' means; of the cultures that have any, see `means`."""
        members = [np.flatnonzero(self.culture == culture) for culture in np.flatnonzero(self.sizes)]
        values = np.array([ratio(totals[each].sum(0), counts[each].sum(0)) for each in members])
        there = ~np.isnan(values)  # (C, k)
        drawn = np.zeros((self.draws, totals.shape[1]))
        for each, has in zip(members, there):
            weights = self.weights[:, each]
            drawn += np.where(has, ratio(weights @ totals[each], weights @ counts[each]), 0)
        return self.numbers(ratio(np.where(there, values, 0).sum(0), there.sum(0)), ratio(drawn, there.sum(0)))


def ratio(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """totals / counts; NaN where the count is 0."""
    return np.divide(totals, counts, out=np.full(np.broadcast(totals, counts).shape, np.nan), where=counts > 0)


def by_participant(values: np.ndarray, participant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums and counts of the values (n, k) that are not NaN, (P, k) each, and which participants these P are."""
    who, place = np.unique(participant, return_inverse=True)
    known = ~np.isnan(values)
    totals, counts = np.zeros((2, len(who), values.shape[1]))
    np.add.at(totals, place, np.where(known, values, 0))
    np.add.at(counts, place, known)
    return totals, counts, who


def means_both_ways(
    values: np.ndarray, participant: np.ndarray, culture_of: np.ndarray, **draws
) -> tuple[Sequence[Number], Sequence[Number]]:
    """Of values (n, k), one row an answer: pooled means, and means of the cultures' means, (k,) each."""
    totals, counts, who = by_participant(values, participant)
    participants = Participants(culture_of[who], **draws)
    return participants.means(totals, counts), participants.means_of_cultures(totals, counts)
