"""Intervals over participants hold what they state, and say where they cannot."""

import numpy as np
import pytest

from respondents import SKILLS, by_taste
from scoft.survey.bootstrap import Number, Participants, by_participant, means_both_ways


SIZES = (13, 11, 10, 9, 7)
POPULATIONS, PAGES, UNLIKE = 200, 10, 0.7


def test_intervals_hold_the_truth_as_often_as_they_state():
    """Of 200 populations the 95 % intervals hold the true mean ranks in 95 %, within binomial error."""
    random = np.random.default_rng(0)
    culture = np.repeat(np.arange(len(SIZES)), SIZES)
    skills = np.array(list(SKILLS.values())) + 0.4 * random.normal(size=(len(SIZES), 4))
    many = [
        by_taste(each + UNLIKE * random.normal(size=(10_000, 4)), pages=PAGES, random=random)[0].mean(0)
        for each in skills
    ]
    truths = np.average(many, axis=0, weights=SIZES), np.mean(many, axis=0)
    held = np.zeros((2, 4))
    for seed in range(POPULATIONS):
        tastes = skills[culture] + UNLIKE * random.normal(size=(len(culture), 4))
        ranks, who = by_taste(tastes, pages=PAGES, random=random)
        found = means_both_ways(ranks, who, culture, limits=(1, 4), seed=seed)
        held += [[each.low <= true <= each.high for each, true in zip(*both)] for both in zip(found, truths)]
    error = 3 * np.sqrt(0.95 * 0.05 / POPULATIONS)
    assert np.abs(held / POPULATIONS - 0.95).max() < error


def test_the_standard_error_of_a_mean_is_the_textbooks():
    """One culture, one answer each: value -+ t s / sqrt(n), up to the draws' noise."""
    values = np.array([1.0, 2, 2, 4, 3, 1, 4, 2])[:, None]
    (found,), _ = means_both_ways(values, np.arange(8), np.zeros(8, dtype=int), draws=20_000)
    reach = 2.3646 * values.std(ddof=1) / np.sqrt(8)
    assert found.value == values.mean()
    assert found.high - found.value == pytest.approx(reach, rel=0.03)
    assert found.value - found.low == pytest.approx(reach, rel=0.03)


def test_cultures_count_alike_or_by_their_answers():
    values = np.array([[1.0], [1], [1], [4]])
    pooled, mean = means_both_ways(values, np.arange(4), np.array([0, 0, 1, 1]))
    assert (pooled[0].value, mean[0].value) == (1.75, 1.75)
    pooled, mean = means_both_ways(values, np.arange(4), np.array([0, 0, 0, 1]))
    assert (pooled[0].value, mean[0].value) == (1.75, 2.5)


def test_a_culture_of_one_participant_has_no_interval():
    values = np.array([[1.0], [2], [4]])
    pooled, mean = means_both_ways(values, np.arange(3), np.array([0, 0, 1]))
    assert pooled == [Number(7 / 3)] and mean == [Number(2.75)]


def test_what_was_never_answered_is_none_and_the_rest_stays():
    values = np.array([[1.0, np.nan, 2], [2, np.nan, np.nan], [1, np.nan, np.nan]])
    pooled, _ = means_both_ways(values, np.arange(3), np.zeros(3, dtype=int))
    assert pooled[1] == Number(None)
    assert pooled[0].low < pooled[0].value < pooled[0].high
    assert pooled[2] == Number(2.0)  # of a single participant: most draws have none


def test_an_interval_stays_within_its_limits():
    values = np.array([[1.0], [1], [1], [2]])
    pooled, _ = means_both_ways(values, np.arange(4), np.zeros(4, dtype=int), limits=(1, 4))
    assert pooled[0].low == 1 and pooled[0].high > 1.25


def test_sums_are_by_participant():
    totals, counts, who = by_participant(np.array([[1.0, np.nan], [2, 3], [5, 5]]), np.array([7, 7, 3]))
    assert who.tolist() == [3, 7] and totals.tolist() == [[5, 5], [3, 3]] and counts.tolist() == [[1, 1], [2, 1]]


def test_draws_are_of_a_culture_alone_and_the_same_each_time():
    """Weights of a culture sum to its size, whatever the other's."""
    weights = Participants(np.array([0] * 5 + [1] * 3)).weights
    assert np.allclose(weights[:, :5].sum(1), 5) and np.allclose(weights[:, 5:].sum(1), 3)
    assert weights[:, :5].var(0).mean() == pytest.approx(1, rel=0.1)  # (n - 1) of n draws, scaled by n / (n - 1)
    assert (weights == Participants(np.array([0] * 5 + [1] * 3)).weights).all()
