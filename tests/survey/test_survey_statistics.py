"""Known skills come back, and each statistic equals what it should."""

import dataclasses
import itertools

import choix
import numpy as np
import pytest
from crowdkit.aggregation import MMSR
from scipy.optimize import check_grad
from scipy.special import expit

from respondents import (
    METHODS,
    PAPER,
    SKILLS,
    key_of,  # noqa: I001
    rankings,
    responses,
)
from scoft.survey.agreement import agreement, kendalls_w, minority
from scoft.survey.bradley_terry import (
    as_in_the_paper,
    counted,
    covariance_of_scores,
    fit,
    noisy_bradley_terry,
    objective,
    slopes,
)
from scoft.survey.consensus import consensus, covariance, mmsr
from scoft.survey.pairs import comparisons_of, copeland, ties_of, win_rates
from scoft.survey.plackett_luce import connected, fits, plackett_luce, ranking_counts
from scoft.survey.problems import Problems
from scoft.survey.rankings import Rankings, rankings_of
from scoft.survey.ranks import ALL, mean_ranks, rank_counts
from scoft.survey.responses import responses_of
from scoft.survey.schema import Response
from scoft.survey.simulate import simulated_answers


POPULATIONS = 200


def of_ranks(*given: dict[str, int | None], culture: str = "korea") -> Rankings:
    """Rankings of one page and item, a participant each."""
    rows = [
        Response(
            participant=f"p{number}", culture=culture, page="0", item="culture", position=None, method=method,
            rank=rank, seed=None, language=None, milliseconds=None,
        )
        for number, ranks in enumerate(given)
        for method, rank in ranks.items()
    ]  # fmt: skip
    return rankings_of(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Ranks and pairs
# ---------------------------------------------------------------------------------------------------------------------


def test_mean_ranks_and_counts_by_hand():
    found = of_ranks({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1, "b": None})
    means = mean_ranks(found)
    assert {name: each.value for name, each in means.pooled["culture"].items()} == {"a": 1.25, "b": 5 / 3}
    assert rank_counts(found)[ALL] == {"a": [3, 1], "b": [1, 2]}
    assert not found.complete[3] and found.complete[:3].all()


def test_ties_are_halves_of_a_win_and_no_comparison():
    found = of_ranks({"a": 1, "b": 2}, {"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": None})
    assert win_rates(found)[ALL]["a"]["b"].value == pytest.approx(2 / 3)
    assert ties_of(found) == 2 and found.tied.tolist() == [False, True, True, False]
    assert len(comparisons_of(found, by_position=False).participant) == 1


def test_a_win_rate_is_that_of_the_scores():
    """Plackett-Luce: a before b with probability sigma(s_a - s_b)."""
    rates = win_rates(rankings({"korea": 60}, pages=10))[ALL]
    for a, b in itertools.combinations(SKILLS, 2):
        rate = rates[b][a]
        assert rate.low - 0.02 < expit(SKILLS[b] - SKILLS[a]) < rate.high + 0.02


def test_no_method_is_left_more_often_in_the_tasks_and_left_is_first_where_known():
    found = rankings({"korea": 3}, pages=10)
    tasks = comparisons_of(found, by_position=False)
    for a, b in itertools.combinations(range(4), 2):
        of_pair = (np.minimum(tasks.left, tasks.right) == a) & (np.maximum(tasks.left, tasks.right) == b)
        assert (tasks.left[of_pair] == a).mean() == 0.5
    shown = comparisons_of(found, by_position=True)
    at = {(p, page, i): row for row, (p, page, i) in enumerate(zip(found.participant, found.page, found.item))}
    for p, page, item, left, right, wins in zip(*shown):
        row = at[p, page, item]
        assert found.positions[row, left] < found.positions[row, right]
        assert wins == (found.ranks[row, left] < found.ranks[row, right])


def test_copeland_by_hand_also_of_a_circle():
    found = copeland({(0, 1): 3, (1, 0): 2, (1, 2): 5, (0, 2): 4, (2, 0): 4}, ["a", "b", "c"])
    assert [(name, each.beats) for name, each in found.items()] == [("a", 0.75), ("b", 0.5), ("c", 0.25)]
    assert found["b"].wins == pytest.approx(7 / 10)
    circle = copeland({(0, 1): 1, (1, 2): 1, (2, 0): 1}, ["a", "b", "c"])
    assert {each.beats for each in circle.values()} == {0.5}


# ---------------------------------------------------------------------------------------------------------------------
# Consensus
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("participants", "noise"), [(9, 2.0), (40, 1.0), (20, 8.0)])
def test_labels_and_skills_are_those_of_crowd_kit(participants, noise):
    """Of one culture, given to crowd-kit by hand, as text; 40 are solved sparsely."""
    import pandas

    found = rankings({"korea": participants}, pages=4, noise=noise)
    own = comparisons_of(found, by_position=False)
    rows = [
        {"task": f"{page}|{item}|{left}|{right}", "worker": f"w{who}", "label": bool(wins)}
        for who, page, item, left, right, wins in zip(*own)
    ]
    model = MMSR(n_iter=10_000, tol=1e-10)
    theirs = model.fit_predict(pandas.DataFrame(rows))
    ours, skills = mmsr(own)
    assert {"|".join(map(str, task)): wins for task, wins in ours.items()} == theirs.to_dict()
    assert skills == pytest.approx({int(worker[1:]): skill for worker, skill in model.skills_.items()}, abs=1e-6)


def test_cultures_are_fitted_apart():
    """A culture's order and skills are the same whichever other culture is beside it, even an opposite one."""
    korea = responses({"korea": 8}, pages=4)
    opposite = responses({"china": 8}, pages=4, skills={name: -skill for name, skill in SKILLS.items()}, seed=1)
    alone, both = consensus(rankings_of(korea)), consensus(rankings_of(korea + opposite))
    assert both.skills["korea"] == alone.skills["korea"]
    assert list(both.parts["culture"]["korea"]) == ["mpc", "mp", "m", "base"]
    assert list(both.parts["culture"]["china"]) == ["base", "m", "mp", "mpc"]
    assert {name: each.wins for name, each in both.parts["culture"]["korea"].items()} == {
        name: each.wins for name, each in alone.parts["culture"]["korea"].items()
    }


def test_covariance_is_crowd_kits_where_two_overlap():
    found = rankings({"korea": 4, "china": 3}, pages=2)
    own = comparisons_of(found, by_position=False)
    matrix, who = covariance(own)
    import pandas

    tasks = [str(task) for task in zip(*(each.tolist() for each in own[1:5]))]
    model = MMSR(n_iter=1)
    model.fit(pandas.DataFrame({"task": tasks, "worker": own.participant, "label": own.left_wins}))
    order = [model._workers_mapping[each] for each in who]
    theirs = model._covariation_matrix[np.ix_(order, order)]
    culture = found.culture_of[who]
    overlap = (culture[:, None] == culture) & ~np.eye(len(who), dtype=bool)
    assert np.isnan(matrix[~overlap]).all() and (theirs[~overlap] == -1).all()
    assert np.allclose(matrix[overlap], theirs[overlap], atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_objective():
    data, _ = counted(comparisons_of(rankings({"korea": 5}, pages=3), by_position=True), 4)
    random = np.random.default_rng(0)
    for scale in (0.1, 1, 3):
        x = scale * random.normal(size=4 + 2 * 5)
        off = check_grad(lambda x: objective(x, data)[0], lambda x: objective(x, data)[1], x)
        assert off < 1e-5 * np.linalg.norm(objective(x, data)[1])


def test_the_objective_is_the_models_by_hand():
    """One comparison that right won: p = sigma(g) sigma(-(s_l - s_r)) + (1 - sigma(g)) sigma(-q)."""
    data, _ = counted(comparisons_of(of_ranks({"a": 1, "b": 2}), by_position=False), 2)
    assert (data.left.tolist(), data.right.tolist(), data.y.tolist()) == ([1], [0], [-1])
    p = expit(0.5) * expit(-(0.3 + 0.2)) + (1 - expit(0.5)) * expit(0.7)
    penalty = (0.1 * (0.2**2 + 0.3**2) + (0.5 - 4) ** 2 + 0.7**2) / 2
    assert objective(np.array([-0.2, 0.3, 0.5, -0.7]), data)[0] == pytest.approx(penalty - np.log(p))


def test_noisy_bradley_terry_finds_skills_those_who_look_and_those_who_do_not():
    """Half of the participants rank by position alone: their gammas are lower, their q is for the first."""
    key = key_of("korea", pages=12)
    quality = {name: 2 * SKILLS[shown.method] for name, shown in key.pictures.items()}
    given = list(simulated_answers(key, quality, participants=20, noise=1.0))
    for number, answer in enumerate(given):
        if int(answer.participant.rpartition("-")[2]) < 10:
            ranks = {item: dict(zip(answer.order, range(1, 5))) for item in answer.ranks}
            given[number] = type(answer)(**vars(answer) | {"ranks": ranks})
    found = rankings_of(responses_of(given, key, Problems()))
    data, who = counted(comparisons_of(found, by_position=True), 4)
    x = fit(data)
    blind = np.array([int(found.participants[each][1].rpartition("-")[2]) < 10 for each in who])
    gammas, sides = x[4:24], x[24:]
    assert gammas[blind].max() < -1 and gammas[~blind].min() > 1 and sides[blind].min() > 1
    truth = np.array([2 * SKILLS[name] for name in found.methods])
    assert np.abs(x[:4] - (truth - truth.mean())).max() < 0.2
    scores = noisy_bradley_terry(found)
    assert all(each.low < each.value < each.high for each in scores.values())


def test_errors_of_scores_are_those_of_drawing_participants_anew():
    found = rankings({"korea": 13, "china": 11}, pages=4)
    data, who = counted(comparisons_of(found, by_position=True), 4)
    culture = found.culture_of[who]
    errors = np.sqrt(covariance_of_scores(fit(data), data, culture).diagonal())
    random, drawn = np.random.default_rng(0), []
    for _ in range(60):
        weights = np.concatenate(
            [random.multinomial(n - 1, np.full(n, 1 / n)) * n / (n - 1) for n in np.bincount(culture)]
        )
        again = type(data)(**vars(data) | {"count": data.count * weights[data.participant]})
        drawn.append(fit(again)[:4])
    assert errors == pytest.approx(np.std(drawn, axis=0), rel=0.35)
    at_optimum = slopes(fit(data), data)[1][:, :4].sum(0)
    assert np.abs(at_optimum - 0.1 * fit(data)[:4]).max() < 0.01


def test_crowd_kits_scores_are_as_it_gives_them_and_left_out_where_they_take_minutes(monkeypatch):
    found = rankings({"korea": 5}, pages=4)
    scores = as_in_the_paper(found)
    assert all(0 < each.value < 1 for each in scores.values()) and scores["mpc"].value > scores["base"].value
    monkeypatch.setattr("scoft.survey.bradley_terry.PAPERS_MOST", 10)
    assert all(each.value is None for each in as_in_the_paper(found).values())


def test_plackett_luce_is_that_of_choix_other_solver_and_of_its_draws():
    found = rankings({"korea": 20}, pages=6)
    counts, orders, _ = ranking_counts(found)
    data = [order for order, count in zip(orders, counts.sum(0)) for _ in range(int(count))]
    theirs = choix.opt_rankings(4, data, alpha=0)
    scores = plackett_luce(found)
    ours = np.array([scores[name].value for name in found.methods])
    assert ours == pytest.approx(theirs - theirs.mean(), abs=1e-3)
    assert fits(counts.sum(0, keepdims=True), orders, np.zeros(4))[0] == pytest.approx(ours, abs=1e-5)
    truth = np.array([SKILLS[name] for name in found.methods])
    assert np.abs(ours - (truth - truth.mean())).max() < 0.15
    held = [scores[name].low <= true <= scores[name].high for name, true in zip(found.methods, truth - truth.mean())]
    assert sum(held) >= 3


def test_scores_come_back_over_populations_and_their_intervals_hold():
    """200 populations of 12 participants by 4 pages: order, bias, and coverage of both models"""
    truth = np.array([SKILLS[name] for name in ("mpc", "mp", "m", "base")])
    truth -= truth.mean()
    estimates, held, ordered = np.zeros((2, POPULATIONS, 4)), np.zeros((2, 4)), 0
    for seed in range(POPULATIONS):
        found = rankings({"korea": 12}, pages=4, seed=seed)
        for way, scores in enumerate((plackett_luce(found, draws=300), noisy_bradley_terry(found))):
            numbers = [scores[name] for name in ("mpc", "mp", "m", "base")]
            estimates[way, seed] = [each.value for each in numbers]
            held[way] += [each.low <= true <= each.high for each, true in zip(numbers, truth)]
        ordered += found.methods == ["mpc", "mp", "m", "base"]
    assert ordered > 0.95 * POPULATIONS
    assert np.abs(estimates.mean(1) - truth).max() < 0.05  # of a score's own error of 0.08
    assert np.abs(held / POPULATIONS - 0.95).max() < 3 * np.sqrt(0.95 * 0.05 / POPULATIONS)


def test_partial_rankings_count_and_ties_do_not():
    found = of_ranks(
        {"a": 1, "b": 2, "c": None}, {"a": 2, "b": 1, "c": 3}, {"a": 3, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 2}
    )
    counts, orders, who = ranking_counts(found)
    names = [tuple(found.methods[each] for each in order) for order in orders]
    assert sorted(names) == [("a", "b"), ("b", "a", "c"), ("c", "b", "a")] and counts.sum() == 3 and len(who) == 3


def test_a_method_that_always_wins_has_no_finite_score():
    found = of_ranks(*[{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2}] * 3)
    assert all(each.value is None for each in plackett_luce(found).values())
    wins = np.zeros((3, 3, 2))
    wins[0, 1], wins[1, 2], wins[2, 0] = 1, 1, [1, 0]
    assert connected(wins.reshape(9, 2), 3).tolist() == [True, False]


# ---------------------------------------------------------------------------------------------------------------------
# Agreement
# ---------------------------------------------------------------------------------------------------------------------


def test_kendalls_w_by_hand():
    assert kendalls_w(np.array([[1.0, 2, 3]] * 4)) == 1
    assert kendalls_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == 0
    assert kendalls_w(np.array([[1.0, 1, 2], [1, 1, 2]])) == pytest.approx(1)  # ties, and agreed upon
    assert np.isnan(kendalls_w(np.array([[1.0, 2, 3]]))) and np.isnan(kendalls_w(np.ones((3, 3))))


def test_the_corrected_form_is_the_mean_spearman_correlation():
    from scipy import stats

    found = rankings({"korea": 7}, pages=3)
    expected = []
    for page, item in itertools.product(range(3), range(4)):
        ranks = found.ranks[(found.page == page) & (found.item == item)]
        expected += [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(ranks, 2)]
    assert agreement(found)[ALL].correlation == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("participants", [5, 20])
def test_w_of_noise_is_one_by_the_number_of_participants(participants):
    found = agreement(rankings({"korea": participants}, pages=60, skills=dict.fromkeys(METHODS, 0.0)))[ALL]
    assert found.w == pytest.approx(1 / participants, rel=0.15) and abs(found.correlation) < 0.03
    assert (found.pages, found.participants) == (240, participants)


def split(minority_size: int, majority_size: int, *, other: str, noise: float = 1.0, seed: int = 0) -> Rankings:
    """Most like mpc best; the minority, whose ids differ, likes `other`."""
    skills = {"base": 0.0, "m": 0.0, "mp": 0.0, "mpc": 2.0}
    turned = {**skills, "mpc": 0.0, other: 2.0}
    rows = responses({"korea": majority_size}, pages=10, skills=skills, noise=noise, seed=seed)
    more = responses({"korea": minority_size}, pages=10, skills=turned, noise=noise, seed=seed + 1000)
    return rankings_of(rows + more)


def test_a_minority_with_another_winner_is_found():
    found = split(5, 12, other="m")
    told = minority(found, agreement(found)[ALL].correlation)
    assert (told.participants, told.prefers, told.rest, told.rest_prefers) == (5, "m", 12, "mpc")
    without = np.array(found.ranks)
    without[:, found.methods.index("base")] = np.nan  # as where a culture was never shown one
    again = dataclasses.replace(found, ranks=without)
    assert minority(again, 0.0) == told
    one_page = found.take(found.page == 0)
    assert minority(one_page, 0.0) is None


def test_no_minority_is_found_in_noise_or_where_people_agree():
    """Whatever the correlation is said to be, noise has no two groups that hold on other pages."""
    for seed in range(20):
        noise = rankings({"korea": 20}, pages=8, skills=dict.fromkeys(METHODS, 0.0), seed=seed)
        assert minority(noise, agreement(noise)[ALL].correlation) is None
    alike = split(5, 12, other="mpc")
    assert minority(alike, agreement(alike)[ALL].correlation) is None
    few = split(2, 15, other="m")
    assert minority(few, agreement(few)[ALL].correlation) is None


# ---------------------------------------------------------------------------------------------------------------------
# What must not matter
# ---------------------------------------------------------------------------------------------------------------------


def test_every_statistic_orders_the_methods_by_their_skills():
    found = rankings(PAPER, pages=6)
    expected = ["mpc", "mp", "m", "base"]
    assert found.methods == expected
    agreed = consensus(found)
    assert all(list(each) == expected for part in agreed.parts.values() for each in part.values())
    for scores in (noisy_bradley_terry(found), plackett_luce(found)):
        assert sorted(scores, key=lambda name: -scores[name].value) == expected
