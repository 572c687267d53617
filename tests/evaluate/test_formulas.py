"""The metrics of scoft.evaluate.formulas beside hand-computed values and the field's libraries; their intervals."""

import itertools
from collections.abc import Callable

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
    estimate,
    photograph_draw,
    picture_draws,
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


# ---- with their intervals -------------------------------------------------------------------------------------------


def replicates_by_hand(statistic: Callable, groups: np.ndarray) -> dict:
    return {label: statistic(groups != label) for label in np.unique(groups).tolist()}


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


def test_rates_among_prdc_keep_a_width_at_one():
    """Precision is a share of 24 pictures, recall and coverage are of 12 photographs."""
    y = features(12, 3)
    four = prdc_estimates(np.concatenate([y, y + 1e-6]), y, picture_draws(*grid(4, 6), question=THESE), k=3)
    t = stats.t.ppf(0.975, 5)
    for name, trials in {"precision": 24, "recall": 12, "coverage": 12}.items():
        assert four[name].value == four[name].high == 1
        assert four[name].low == pytest.approx(trials / (trials + t**2))


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
