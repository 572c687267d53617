"""The metrics of scoft.evaluate.formulas beside hand-computed values and the field's libraries, and its intervals.

The heart of the second half is `survey`: a world whose pictures agree by prompt and by seed, drawn anew some hundred
times, in which an interval has to hold the truth as often as it says.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance
from prdc import compute_prdc
from scipy import stats
from torch_fidelity.metric_kid import kid_features_to_metric
from vendi_score import vendi

from scoft.evaluate import formulas
from scoft.evaluate.formulas import (
    KidReference,
    clip_scores,
    cosines,
    diversity,
    kid,
    kid_estimate,
    kid_reference,
    mean_kernel,
    nearest_photographs,
    prdc,
    prdc_estimates,
    training_similarity,
    vendi_score,
)
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


def features(n: int, d: int = 16, *, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Nonnegative, as those of Inception's last pooling are."""
    return np.maximum(np.random.default_rng(seed).normal(shift, 1, (n, d)), 0)


def grid(prompts: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The prompt and the seed of each picture."""
    return np.repeat([f"prompt {p}" for p in range(prompts)], seeds), np.tile(np.arange(seeds), prompts)


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_kid_by_hand():
    """Kernels (a.b / 2 + 1)^3: 1 within x, 8 within y, and of x with y 1, 1, 3.375 and 8."""
    x, y = [[2, 0], [0, 2]], [[0, 0], [2, 1]]
    between = (1 + 27 + 1 + 8) / 4
    assert kid(x, y) == pytest.approx(1 + 1 - 2 * between)


@pytest.mark.parametrize("d", [16, 300])
def test_kid_is_that_of_torch_fidelity_and_clean_fid(d):
    x, y = features(60, d), features(60, d, seed=1, shift=0.2)
    ours = kid(x, y)
    theirs = kid_features_to_metric(torch.tensor(x), torch.tensor(y), kid_subsets=1, kid_subset_size=60, verbose=False)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert ours == pytest.approx(kernel_distance(x, y, num_subsets=1, max_subset_size=60), rel=1e-6)
    assert kid(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(ours, rel=1e-6)


def weighted_mean_of_pairs(x, y, u, v, *, within: bool) -> float:
    pairs = [(i, j) for i, j in itertools.product(range(len(x)), range(len(y))) if not (within and i == j)]
    weights = [u[i] * v[j] for i, j in pairs]
    return np.average([(x[i] @ y[j] / x.shape[1] + 1) ** 3 for i, j in pairs], weights=weights)


def test_kid_of_weights_is_the_loop_over_pairs(monkeypatch):
    """Sets of different sizes, in blocks that do not divide them; several weightings at once and one by one."""
    monkeypatch.setattr(formulas, "BLOCK", 4)
    rng = np.random.default_rng(0)
    x, y = features(11), features(6, seed=1)
    u, v = rng.integers(0, 4, (3, 11)), rng.integers(0, 4, (3, 6))
    expected = [
        weighted_mean_of_pairs(x, x, a, a, within=True)
        + weighted_mean_of_pairs(y, y, b, b, within=True)
        - 2 * weighted_mean_of_pairs(x, y, a, b, within=False)
        for a, b in zip(u, v)
    ]
    np.testing.assert_allclose(kid(x, y, x_weights=u, y_weights=v), expected)
    np.testing.assert_allclose([kid(x, y, x_weights=a, y_weights=b) for a, b in zip(u, v)], expected)
    within_y = mean_kernel(y, weights=v)
    np.testing.assert_allclose(kid(x, y, x_weights=u, y_weights=v, within_y=within_y), expected)
    assert kid(x, y, x_weights=np.ones(11), y_weights=np.ones(6)) == pytest.approx(kid(x, y))
    # Leaving a row out is giving it no weight.
    assert kid(x, y, x_weights=np.arange(11) != 3) == pytest.approx(kid(np.delete(x, 3, axis=0), y))


def test_kid_of_equal_distributions_is_unbiased():
    """Its mean over many small samples is 0 within four standard errors; the biased estimator's is 40 of them away."""
    values = [kid(features(8, seed=seed), features(12, seed=10_000 + seed)) for seed in range(1000)]
    assert abs(np.mean(values)) < 4 * stats.sem(values)
    assert min(values) < 0


def test_clip_scores_by_hand():
    x, text = [[3, 4], [1, 0], [0, 2]], [[4, 3], [-1, 0], [5, 0]]
    np.testing.assert_allclose(cosines(x, text), [0.96, -1, 0])
    np.testing.assert_allclose(clip_scores(x, text), [2.4, 0, 0])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_training_similarity_is_the_loop_over_pairs_of_a_prompt():
    """Prompts of 1 to 3 photographs; those of other prompts do not count."""
    prompts, captions = np.array([*"abbacb"]), np.array([*"bcAabb"])
    x, y = features(6, seed=2), features(6, seed=3)
    pairs = [(i, j) for i, j in itertools.product(range(6), range(6)) if prompts[i] == captions[j]]
    expected = np.mean([unit(x)[i] @ unit(y)[j] for i, j in pairs])
    assert training_similarity(x, prompts, y, captions) == pytest.approx(expected)
    assert training_similarity(y, captions, y, captions) < 1
    assert training_similarity(y[:1], ["a"], 7 * y[:1], ["a"]) == pytest.approx(1)


def test_diversity_is_the_loop_over_pairs():
    prompts = np.array([*"abcabcabca"])
    x = features(10, seed=4)
    of_prompts = [
        np.mean([1 - a @ b for a, b in itertools.combinations(unit(x[prompts == prompt]), 2)]) for prompt in "abc"
    ]
    assert diversity(x, prompts) == pytest.approx(np.mean(of_prompts))
    assert diversity([[1, 2]] * 3, ["a"] * 3) == pytest.approx(0)
    assert diversity([[1, 0], [0, 3], [1, 0], [-1, 0]], [*"aabb"]) == pytest.approx((1 + 2) / 2)


@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize("shape", [(40, 8), (12, 30)])
def test_vendi_score_is_that_of_its_authors(shape):
    x = features(*shape, seed=5, shift=0.5)
    assert vendi_score(x) == pytest.approx(vendi.score_X(x))


def test_vendi_score_counts_what_differs():
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score([[1, 2, 3]] * 4) == pytest.approx(1)
    assert vendi_score([[1, 0], [1, 0], [0, 1], [0, 1]]) == pytest.approx(2)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("n, m, shift", [(40, 25, 0.9), (25, 40, 0.3)])
def test_prdc_is_that_of_its_authors(n, m, shift, k):
    x, y = features(n, 24, seed=6, shift=shift), features(m, 24, seed=7)
    theirs = compute_prdc(real_features=y, fake_features=x, nearest_k=k)
    assert prdc(x, y, k=k) == pytest.approx(theirs)
    assert all(0 < theirs[name] < 1 for name in theirs), "or one side of a comparison was not tried"


def test_prdc_by_hand():
    """On a line, with the nearest neighbour: photographs 0, 1, 10 have the radii 1, 1, 9; pictures 0.5, 5 have 4.5."""
    expected = {"precision": 1, "recall": 2 / 3, "density": (2 + 1) / 2, "coverage": 1}
    assert prdc([[0.5], [5]], [[0], [1], [10]], k=1) == pytest.approx(expected)


def test_prdc_balls_are_open():
    """A picture at the very distance of the nearest neighbour, such as -1 from 0, is outside, as the authors count."""
    expected = {"precision": 0, "recall": 1, "density": 0, "coverage": 0}
    assert prdc([[-1], [20]], [[0], [1], [10]], k=1) == expected


def test_nearest_photographs_in_blocks(monkeypatch):
    monkeypatch.setattr(formulas, "BLOCK", 4)
    x, y = features(10, seed=8), features(7, seed=9)
    index, similarity = nearest_photographs(x, y)
    all_pairs = unit(x) @ unit(y).T
    np.testing.assert_array_equal(index, all_pairs.argmax(1))
    np.testing.assert_allclose(similarity, all_pairs.max(1))


@pytest.mark.parametrize(
    "metric",
    [
        lambda x, y, p, q: kid(x, y),
        lambda x, y, p, q: training_similarity(x, p, y, q),
        lambda x, y, p, q: diversity(x, p),
        lambda x, y, p, q: vendi_score(x),
        lambda x, y, p, q: list(prdc(x, y).values()),
    ],
)
def test_order_does_not_matter(metric):
    x, y, p, q = features(20), features(15, seed=1), np.arange(20) % 4, np.arange(15) % 5
    i, j = np.random.default_rng(0).permutation(20), np.random.default_rng(1).permutation(15)
    assert metric(x[i], y[j], p[i], q[j]) == pytest.approx(metric(x, y, p, q))


# ---- intervals: what they are ---------------------------------------------------------------------------------------


def replicates_by_hand(statistic: Callable, groups: np.ndarray) -> dict:
    return {label: statistic(groups != label) for label in np.unique(groups).tolist()}


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


def test_replicates_are_the_metric_without_each_group():
    prompts, seeds = grid(5, 4)
    x, y = features(20, 6), features(12, 6, seed=1, shift=0.3)
    draws, photographs = picture_draws(prompts, seeds, question=LIKE_THESE), photograph_draw("CCUB", 12, most_groups=5)
    assert [draw.name for draw in draws] == ["prompts", "seeds"]
    assert photographs.name == "photographs of CCUB"
    assert sorted(np.bincount(photographs.groups)) == [2, 2, 2, 3, 3]

    ours = kid_estimate(x, kid_reference(y, photographs=photographs), draws)
    assert (ours.value, ours.n) == (pytest.approx(kid(x, y)), 20)
    assert ours.replicates == {
        "prompts": pytest.approx(replicates_by_hand(lambda kept: kid(x[kept], y), prompts)),
        "seeds": pytest.approx(replicates_by_hand(lambda kept: kid(x[kept], y), seeds)),
        photographs.name: pytest.approx(replicates_by_hand(lambda kept: kid(x, y[kept]), photographs.groups)),
    }
    fixed = kid_estimate(x, kid_reference(y), draws)
    assert fixed.replicates == {name: ours.replicates[name] for name in ("prompts", "seeds")}
    assert ours.low < fixed.low < fixed.value < fixed.high < ours.high

    four = prdc_estimates(x, y, draws, photographs=photographs, k=2)
    assert {name: one.value for name, one in four.items()} == pytest.approx(prdc(x, y, k=2))
    for name, one in four.items():
        by_hand = {
            "prompts": replicates_by_hand(lambda kept: prdc(x[kept], y, k=2)[name], prompts),  # noqa: B023
            "seeds": replicates_by_hand(lambda kept: prdc(x[kept], y, k=2)[name], seeds),  # noqa: B023
            photographs.name: replicates_by_hand(lambda kept: prdc(x, y[kept], k=2)[name], photographs.groups),  # noqa: B023
        }
        assert one.replicates == {draw: pytest.approx(values) for draw, values in by_hand.items()}
    assert prdc_estimates(x, y, draws, k=2)["density"].replicates.keys() == {"prompts", "seeds"}


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


def test_rates_among_prdc_keep_a_width_at_one():
    """Precision is a share of 24 pictures, recall and coverage are of 12 photographs."""
    y = features(12, 3)
    four = prdc_estimates(np.concatenate([y, y + 1e-6]), y, picture_draws(*grid(4, 6), question=THESE), k=3)
    t = stats.t.ppf(0.975, 5)
    for name, trials in {"precision": 24, "recall": 12, "coverage": 12}.items():
        assert four[name].value == four[name].high == 1
        assert four[name].low == pytest.approx(trials / (trials + t**2))


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

X, Y, PROMPTS, SEEDS = features(20, 4, shift=2), features(12, 4, seed=1, shift=2), *grid(5, 4)
DRAWS = picture_draws(PROMPTS, SEEDS, question=LIKE_THESE)
NAN = np.where(np.arange(20)[:, None] == 3, np.nan, X)
ZERO = np.where(np.arange(20)[:, None] == 3, 0, X)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: kid(X[:1], Y),
            r"KID, pictures: got features of shape \(1, 4\), need \(rows, d\) with at least 2 rows",
        ),
        (lambda: kid(X, Y[:1]), r"KID, photographs: got features of shape \(1, 4\)"),
        (lambda: kid(X, Y[:, :3]), "KID: got 4 and 3 dimensions of features, need equally many"),
        (lambda: kid(NAN, Y), "KID, pictures: got 4 of 80 values not finite, need none"),
        (lambda: kid(X, np.inf * (Y + 1)), "KID, photographs: got 48 of 48 values not finite"),
        (lambda: kid(X[0], Y), r"KID, pictures: got features of shape \(4,\)"),
        (lambda: kid(X, Y, x_weights=np.eye(20)), "KID, pictures: got weights for 1 rows, need at least 2"),
        (lambda: kid(X, Y, y_weights=np.ones(20)), r"KID, photographs: got weights of shape \(20,\), need integers"),
        (lambda: kid(X, Y, x_weights=np.full(20, 0.5)), "need integers >= 0"),
        (lambda: kid(X, Y, x_weights=np.arange(-1, 19)), "need integers >= 0"),
        (lambda: mean_kernel(X[:1]), "KID: got features"),
        (lambda: cosines(X, Y), "CLIP: got 20 pictures and 12 texts, need one text for each"),
        (lambda: clip_scores(X, X[:, :3]), "CLIP: got 4 and 3 dimensions"),
        (lambda: clip_scores(X, NAN), "CLIP, texts: got 4 of 80 values not finite"),
        (lambda: clip_scores(ZERO, X), "CLIP, pictures: got features of length 0 in row 3, need a direction"),
        (lambda: training_similarity(X, PROMPTS, Y, ["prompt 0"] * 12), "no photograph for the prompt 'prompt 1'"),
        (lambda: training_similarity(X, PROMPTS[1:], Y, ["prompt 0"] * 12), r"got prompts of shape \(19,\)"),
        (lambda: diversity(X, ["a"] * 19 + ["b"]), "DIV: got 1 picture of the prompt 'b', need at least 2"),
        (lambda: diversity(NAN, PROMPTS), "DIV: got 4 of 80 values not finite"),
        (lambda: diversity(X[:0], []), r"DIV: got features of shape \(0, 4\)"),
        (lambda: vendi_score(X[:1]), "Vendi score: got features of shape"),
        (lambda: vendi_score(ZERO), "Vendi score: got features of length 0 in row 3"),
        (lambda: prdc(X[:5], Y), "PRDC: got k = 5, 5 pictures and 12 photographs, need 0 < k < either"),
        (lambda: prdc(X, Y, k=0), "PRDC: got k = 0"),
        (lambda: prdc(X, Y[:1], k=1), "PRDC, photographs: got features of shape"),
        (lambda: nearest_photographs(X, Y[:0]), "nearest photograph, photographs: got features of shape"),
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
        (
            lambda: kid_reference(Y[:2], photographs=photograph_draw("CCUB", 2)),
            "got weights for 1 rows, need at least 2",
        ),
        (lambda: kid_reference(Y, photographs=photograph_draw("CCUB", 11)), "got weights of shape"),
        (lambda: kid_estimate(X[1:], kid_reference(Y), DRAWS), r"got weights of shape \(5, 20\)"),
        (lambda: prdc_estimates(X[1:], Y, DRAWS), "PRDC, pictures: got 19 rows and a draw of 20 prompts"),
        (lambda: prdc_estimates(X, Y, DRAWS, photographs=photograph_draw("CCUB", 9)), "got 12 rows and a draw of 9"),
        (
            lambda: prdc_estimates(X, Y[:6], DRAWS, photographs=photograph_draw("CCUB", 6)),
            "CCUB, without 0: PRDC: got k",
        ),
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


def test_error_of_a_replicate_says_what_was_left_out():
    """Two pictures a prompt are enough for DIV, but not for its interval."""
    prompts, seeds = grid(3, 2)
    assert diversity(X[:6], prompts) > 0
    with pytest.raises(
        ValueError, match="interval over seeds, without 0: DIV: got 1 picture of the prompt 'prompt 0'"
    ):
        estimate(lambda kept: diversity(X[:6][kept], prompts[kept]), picture_draws(prompts, seeds, question=THESE))


def test_estimates_of_different_draws_cannot_be_compared():
    values = two_methods()[0]
    these, like_these = (mean_of(values, picture_draws(*grid(6, 5), question=question)) for question in QUESTIONS)
    with pytest.raises(ValueError, match=r"draws of \['seeds'\] and of \['prompts', 'seeds'\], need the same"):
        difference(these, like_these)
    others = mean_of(values, [Draw("seeds", np.repeat(np.arange(1, 6), 6))])
    for combine in (difference, lambda a, b: mean_over_cultures({"Korea": a, "China": b})):
        with pytest.raises(ValueError, match="seeds: got estimates of different ones, need the same"):
            combine(these, others)
