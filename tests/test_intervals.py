"""Intervals: what they are, beside Student's and Wilson's by hand, and how often they hold the truth.

The heart of the second half is `survey`: a world whose pictures agree by prompt and by seed, drawn anew some hundred
times, in which an interval has to hold the truth as often as it says.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from scoft.evaluate.formulas import KidReference, kid_estimate, kid_reference
from scoft.intervals import (
    QUESTIONS,
    Draw,
    Estimate,
    difference,
    estimate,
    mean_over_cultures,
    photograph_draw,
    picture_draws,
    rate,
    scaled,
)


THESE, LIKE_THESE = QUESTIONS


def grid(prompts: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt and the seed of each picture."""
    return np.repeat([f"prompt {p}" for p in range(prompts)], seeds), np.tile(np.arange(seeds), prompts)


# ---- what they are --------------------------------------------------------------------------------------------------


def test_interval_of_a_mean_is_students():
    """Of means over seeds for these prompts; for prompts like these, the variances of both means add."""
    values = np.random.default_rng(0).normal(size=(4, 6))
    prompts, seeds = grid(4, 6)

    def mean(kept):
        return values.ravel()[kept].mean()

    these = estimate(mean, picture_draws(prompts, seeds, question=THESE))
    by_seed, by_prompt = values.mean(0), values.mean(1)
    student = stats.t.interval(0.95, df=5, loc=values.mean(), scale=stats.sem(by_seed))
    assert (these.value, these.low, these.high, these.n) == pytest.approx((values.mean(), *student, 24))

    both = estimate(mean, picture_draws(prompts, seeds, question=LIKE_THESE))
    a, b = stats.sem(by_seed) ** 2, stats.sem(by_prompt) ** 2
    freedom = (a + b) ** 2 / (a**2 / 5 + b**2 / 3)
    student = stats.t.interval(0.95, df=freedom, loc=values.mean(), scale=math.sqrt(a + b))
    assert (both.low, both.high) == pytest.approx(student)
    assert "replicates" not in repr(both)


def test_large_references_are_left_out_in_random_parts():
    draw = photograph_draw("MS COCO", 5000)
    assert len(draw.without) == 200
    assert set(np.bincount(draw.groups)) == {25}
    assert np.abs(np.diff(draw.groups)).mean() > 50, "neighbours in the list should not share a part"
    np.testing.assert_array_equal(draw.groups, photograph_draw("MS COCO", 5000).groups)
    assert len(photograph_draw("CCUB", 30).without) == 30


def test_intervals_scale_and_shift_with_their_metric():
    values = np.random.default_rng(1).normal(size=40)
    draws = picture_draws(*grid(5, 8), question=LIKE_THESE)
    plain = estimate(lambda kept: values[kept].mean(), draws)
    other = estimate(lambda kept: 3 - 1000 * values[kept].mean(), draws)
    expected = [3 - 1000 * bound for bound in (plain.value, plain.high, plain.low)]
    assert [other.value, other.low, other.high] == pytest.approx(expected)


def test_interval_of_equal_values_is_a_point():
    flat = estimate(lambda kept: np.full(12, 0.25)[kept].mean(), picture_draws(*grid(3, 4), question=LIKE_THESE))
    assert (flat.low, flat.value, flat.high) == (0.25, 0.25, 0.25)


def test_interval_of_a_rate_is_wilsons():
    """Its bounds b solve |p - b| = t sqrt(b (1 - b) / n), n being 64 for independent outcomes."""
    each_its_own = [Draw("prompts", np.arange(64))]
    t = stats.t.ppf(0.975, 63)
    for ones in (0, 1, 20, 64):
        ours = rate(np.arange(64) < ones, each_its_own)
        assert ours.value == ones / 64
        n = 64 if ones in (0, 64) else 63  # the variance of a sample has n - 1
        for bound in {ours.low, ours.high}:
            assert abs(ours.value - bound) == pytest.approx(t * math.sqrt(bound * (1 - bound) / n), abs=1e-12)
    nothing, everything = rate(np.zeros(64), each_its_own), rate(np.ones(64), each_its_own)
    assert (nothing.low, everything.high) == (0, 1)
    assert nothing.high == pytest.approx(0.0587, abs=1e-4)
    assert everything.low == pytest.approx(1 - nothing.high)


def test_rate_of_prompts_that_agree_counts_prompts():
    """All 20 pictures of a prompt alike: the interval is near that of 10 outcomes, not of 200."""
    outcomes = np.repeat(np.arange(10) < 4, 20)
    alike = rate(outcomes, picture_draws(*grid(10, 20), question=LIKE_THESE))
    ten = rate(np.arange(10) < 4, [Draw("prompts", np.arange(10))])
    assert (alike.low, alike.high) == pytest.approx((ten.low, ten.high))


def test_rate_is_never_surer_than_all_its_outcomes():
    """Where prompts decide, all seeds agree; still the interval is as wide as that of 200 outcomes."""
    outcomes = np.repeat(np.arange(10) < 5, 20)
    outcomes[0] = False
    ours = rate(outcomes, picture_draws(*grid(10, 20), question=THESE))
    t = stats.t.ppf(0.975, 19)
    for bound in (ours.low, ours.high):
        assert abs(ours.value - bound) == pytest.approx(t * math.sqrt(bound * (1 - bound) / 200))


# ---- differences and means ------------------------------------------------------------------------------------------


def mean_of(values: np.ndarray, draws: list[Draw]) -> Estimate:
    return estimate(lambda kept: values.ravel()[kept].mean(), draws)


def two_methods() -> np.ndarray:
    """Values (2, 30) of the pictures of 6 prompts x 5 seeds; the methods share the effects of both."""
    rng = np.random.default_rng(2)
    common = 10 * rng.normal(size=(6, 1)) + 10 * rng.normal(size=(1, 5))
    return np.stack([(common + rng.normal(size=(6, 5))).ravel() for _ in range(2)])


@pytest.mark.parametrize("question", QUESTIONS)
def test_difference_is_paired(question):
    draws = picture_draws(*grid(6, 5), question=question)
    values = two_methods()
    a, b = (mean_of(own, draws) for own in values)
    ours, direct = difference(a, b), mean_of(values[0] - values[1], draws)
    assert (ours.value, ours.low, ours.high) == pytest.approx((direct.value, direct.low, direct.high))
    assert ours.high - ours.low < (a.high - a.low) / 5
    assert ours.n == 60
    mirrored = difference(b, a)
    assert (mirrored.low, mirrored.high) == pytest.approx((-ours.high, -ours.low))
    itself = difference(a, a)
    assert (itself.value, itself.low, itself.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_difference_bears_a_missing_picture():
    """Also the one by which the labels of seeds would shift, if they were counted."""
    values, (prompts, seeds) = two_methods(), grid(6, 5)
    there = np.arange(30) != 7
    a = mean_of(values[0][there], picture_draws(prompts[there], seeds[there], question=THESE))
    whole, b = (mean_of(own, picture_draws(prompts, seeds, question=THESE)) for own in values)
    assert a.replicates["seeds"][2] == whole.replicates["seeds"][2], "picture 7 is of seed 2"
    assert a.replicates["seeds"][3] != whole.replicates["seeds"][3]
    assert difference(a, b).value == a.value - b.value


def test_difference_of_rates_keeps_a_width_where_no_outcome_differs():
    """0 of 64 against 0 of 64 is no proof of equality; 64 against 0 does not leave [-1, 1]."""
    draws = [Draw("prompts", np.arange(64))]
    none, every = rate(np.zeros(64), draws), rate(np.ones(64), draws)
    same = difference(none, none)
    assert same.value == 0
    assert -same.low == same.high == pytest.approx(none.high)
    apart = difference(every, none)
    assert apart.high == 1
    assert 0.9 < apart.low < every.low


def test_table_1_is_the_mean_of_table_4():
    """Rows of the paper's Table 4 (China, Korea, Nigeria, India, Mexico) and what Table 1 prints."""
    table_4 = {
        "KID-CCUB": [
            ([25.244, 28.061, 32.687, 39.988, 25.796], 30.355),
            ([18.798, 24.118, 24.539, 20.566, 25.196], 22.643),
            ([15.895, 23.007, 25.638, 19.799, 22.462], 21.360),
            ([14.667, 17.413, 23.261, 18.342, 24.424], 19.621),
        ],
        "KID-COCO": [
            ([4.396] * 5, 4.396),
            ([4.890, 4.497, 4.461, 5.342, 4.364], 4.711),
            ([5.090, 4.403, 5.135, 5.112, 4.941], 4.936),
            ([5.102, 4.222, 4.987, 5.457, 4.325], 4.819),
        ],
        "CLIP Score": [
            ([0.827, 0.844, 0.799, 0.773, 0.819], 0.8124),  # the paper prints 0.813
            ([0.804, 0.832, 0.792, 0.757, 0.825], 0.802),
            ([0.798, 0.836, 0.792, 0.753, 0.8232], 0.800),
            ([0.793, 0.825, 0.795, 0.753, 0.829], 0.799),
        ],
    }
    for rows in table_4.values():
        for cultures, printed in rows:
            estimates = {str(i): Estimate(value, value, value, n=200) for i, value in enumerate(cultures)}
            mean = mean_over_cultures(estimates)
            assert (mean.value, mean.low, mean.high) == pytest.approx((printed,) * 3, abs=5.1e-4)
            assert mean.n == 1000


def test_another_unit_scales_all_of_an_estimate():
    """A KID times 10^3 is the KID of kernels times 10^3: value, bounds and replicates."""
    rng = np.random.default_rng(4)
    values, draws = rng.normal(size=(5, 8)), picture_draws(*grid(5, 8), question=LIKE_THESE)
    found, direct = scaled(mean_of(values, draws), 1000), mean_of(1000 * values, draws)
    assert (found.value, found.low, found.high) == pytest.approx((direct.value, direct.low, direct.high))
    assert found.n == direct.n and found.replicates["seeds"] == pytest.approx(direct.replicates["seeds"])


def test_mean_over_cultures_shares_draws_of_one_name():
    """Of one name: as the estimate of the mean.  Of different ones: their variances add."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 5, 8)) + rng.normal(size=(1, 5, 1))
    draws = picture_draws(*grid(5, 8), question=LIKE_THESE)

    shared = mean_over_cultures({str(i): mean_of(culture, draws) for i, culture in enumerate(values)})
    direct = mean_of(values.mean(0), draws)
    assert (shared.value, shared.low, shared.high) == pytest.approx((direct.value, direct.low, direct.high))

    first = mean_of(values[0], [draws[1]])
    names = ("seeds of Korea", "seeds of China")
    mean = mean_over_cultures({name: mean_of(values[0], [Draw(name, draws[1].groups)]) for name in names})
    assert mean.replicates["seeds of Korea"][3] == pytest.approx((first.replicates["seeds"][3] + first.value) / 2)
    t = stats.t.ppf(0.975, [7, 14])
    assert (mean.high - mean.value) / t[1] == pytest.approx((first.high - first.value) / t[0] / math.sqrt(2))


# ---- intervals: how often they hold the truth -----------------------------------------------------------------------

SIMULATIONS = 400
# Three standard errors of a binomial share of SIMULATIONS on either side of the stated 95 %: 0.917 to 0.983.
BAND = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)


def survey(rng: np.random.Generator, *, question: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of the pictures of two methods, (10 prompts x 20 seeds, 8) each, and of 30 photographs.

    Of each feature's variance, 0.3 is of the prompt (the same in all surveys of these prompts), 0.3 of the seed and
    0.4 of the picture; the methods share 0.2, 0.2 and 0.3 of it, and differ by 0.2 in the mean.
    """
    prompts_rng = np.random.default_rng(11) if question == THESE else rng

    def effects(prompt: float, seed: float, picture: float) -> np.ndarray:
        return (
            math.sqrt(prompt) * prompts_rng.normal(size=(10, 1, 8))
            + math.sqrt(seed) * rng.normal(size=(1, 20, 8))
            + math.sqrt(picture) * rng.normal(size=(10, 20, 8))
        )

    shared = effects(0.2, 0.2, 0.3)
    methods = [(mean + shared + effects(0.1, 0.1, 0.1)).reshape(200, 8) for mean in (0.5, 0.3)]
    return methods, rng.normal(size=(30, 8))


NUMBERS: dict[str, Callable[[np.ndarray, KidReference, list[Draw]], Estimate]] = {
    "mean": lambda x, reference, pictures: mean_of(x[:, 0], pictures),
    "KID": lambda x, reference, pictures: kid_estimate(x, reference, pictures),
    "rate": lambda x, reference, pictures: rate(x[:, 0] > 1.5, pictures),
}


def coverage_of(pictures: list[Draw], *, question: str, numbers: Sequence[str]) -> dict[str, float]:
    """By the number's name, the share of simulations whose interval holds the truth.

    The truth is the mean of the number over the simulations, whose own error is a twentieth of a standard deviation.
    """
    rng, photographs = np.random.default_rng(5), photograph_draw("test", 30)
    runs = []
    for _ in range(SIMULATIONS):
        methods, y = survey(rng, question=question)
        reference, run = kid_reference(y, photographs=photographs), {}
        for name in numbers:
            run[name], other = (NUMBERS[name](x, reference, pictures) for x in methods)
            run[f"difference of {name}"] = difference(run[name], other)
        runs.append(run)
    held = {}
    for name in runs[0]:
        value, low, high = np.array([(run[name].value, run[name].low, run[name].high) for run in runs]).T
        held[name] = np.mean((low <= value.mean()) & (value.mean() <= high))
    return held


@pytest.fixture(scope="module", params=QUESTIONS)
def coverage(request) -> dict[str, float]:
    pictures = picture_draws(*grid(10, 20), question=request.param)
    return coverage_of(pictures, question=request.param, numbers=list(NUMBERS))


@pytest.mark.parametrize("name", NUMBERS)
def test_intervals_hold_the_truth_as_often_as_stated(coverage, name):
    assert coverage[name] == pytest.approx(0.95, abs=BAND)
    assert coverage[f"difference of {name}"] == pytest.approx(0.95, abs=BAND)


def test_intervals_that_take_pictures_for_independent_do_not():
    """What the band is worth: the same world, the same code, but each picture its own group."""
    held = coverage_of([Draw("pictures", np.arange(200))], question=THESE, numbers=["mean"])
    assert held["mean"] < 0.95 - 2 * BAND
    assert held["difference of mean"] < 0.95 - 2 * BAND


# ---- what is asked for and impossible -------------------------------------------------------------------------------


PROMPTS, SEEDS = grid(5, 4)
DRAWS = picture_draws(PROMPTS, SEEDS, question=LIKE_THESE)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: picture_draws(PROMPTS, SEEDS, question="seeds"),
            "question: got 'seeds', allowed are 'these prompts'",
        ),
        (lambda: picture_draws(PROMPTS, SEEDS[1:], question=THESE), r"got shapes \(20,\) and \(19,\)"),
        (lambda: picture_draws([], [], question=THESE), "interval over seeds: got 0, need at least 2"),
        (lambda: picture_draws(PROMPTS, SEEDS % 2, question=THESE), "got 20 pictures of 10 pairs, need one of each"),
        (lambda: picture_draws(PROMPTS[:17], SEEDS[:17], question=THESE), "got 1 picture of the prompt 'prompt 4'"),
        (lambda: picture_draws(PROMPTS, np.arange(20), question=THESE), "got 20 pictures for 100 pairs of prompt and"),
        (lambda: picture_draws(PROMPTS[:4], SEEDS[:4], question=LIKE_THESE), "over prompts: got 1, need at least 2"),
        (lambda: photograph_draw("CCUB", 1), "interval over photographs of CCUB: got 1, need at least 2"),
        (lambda: rate(np.arange(20), DRAWS), "rate: got outcomes from 0.0 to 19.0, need each to be 0 or 1"),
        (lambda: rate(np.ones(19), DRAWS), "rate: got 19 rows and a draw of 20 prompts"),
        (lambda: rate(np.full(20, np.nan), DRAWS), "rate: got 20 of 20 values not finite"),
        (lambda: estimate(lambda kept: np.nan, DRAWS), "metric: got 1 of 1 values not finite"),
        (
            lambda: estimate(lambda kept: 1 if kept[0] else np.nan, DRAWS),
            "over prompts, without 'prompt 0': metric: got 1",
        ),
        (lambda: mean_over_cultures({}), "mean over cultures: got no culture"),
    ],
)
def test_what_is_impossible_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_estimates_of_different_draws_cannot_be_compared():
    values = two_methods()[0]
    these, like_these = (mean_of(values, picture_draws(*grid(6, 5), question=question)) for question in QUESTIONS)
    with pytest.raises(ValueError, match=r"draws of \['seeds'\] and of \['prompts', 'seeds'\], need the same"):
        difference(these, like_these)
    others = mean_of(values, [Draw("seeds", np.repeat(np.arange(1, 6), 6))])
    for combine in (difference, lambda a, b: mean_over_cultures({"Korea": a, "China": b})):
        with pytest.raises(ValueError, match="seeds: got estimates of different ones, need the same"):
            combine(these, others)
