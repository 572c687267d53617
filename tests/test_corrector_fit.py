"""scoft/correct/: what an update of a corrector's fit is made of, held against the same by hand."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

import tiny
from scoft.correct.fit import LEVELS, pair_accuracy
from scoft.correct.pairs import Latents, Noised
from scoft.corrector.preference import NEGATIVE, POSITIVE, Adapters
from scoft_losses import ldm_loss
from test_correct_scoft import build_fit


NEGATIVES = 3  # of a row
FREE = 1e9  # a norm that no gradient here has


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A dataset; of its eight rows half is held out."""
    return tiny.build_dataset(tmp_path_factory.mktemp("rows"), rows=8, negatives=NEGATIVES)


def parted(fit):
    """The fit, at weights by which its sides differ, as at first they do not."""
    with torch.no_grad(), tiny.seeded(1):
        for parameter in fit.parameters.values():
            torch.nn.init.normal_(parameter, std=0.1 if isinstance(fit.preference.rule, Adapters) else 1.0)
    return fit


def norm_of(gradients) -> float:
    return float(torch.cat([each.flatten() for each in gradients]).norm())


# ---------------------------------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
def test_snr_gamma_weights_each_picture_by_its_timestep(tiny_pipeline, tiny_pipeline_v, rows, tmp_path, predicted):
    """By min(SNR, gamma) / SNR where noise is predicted, / (SNR + 1) where velocity is."""
    pipeline = {"epsilon": tiny_pipeline, "v_prediction": tiny_pipeline_v}[predicted]
    known = {"batch_size": 16, "negative_weight": 1.0}
    fit = parted(build_fit(pipeline, rows, tmp_path / "fit", snr_gamma=0.5, **known))
    terms = fit.losses(3)
    for name, side, of in (("positive", POSITIVE, "photographs"), ("negative", NEGATIVE, "negatives")):
        batch = fit.pairs.batch(3, size=16, seed=0, of=of)
        prediction = fit.preference.rule.predict(fit.model.unet, batch.z, batch.t, batch.c, sides=(side,))
        abar = fit.model.noise_scheduler.alphas_cumprod[batch.t]
        snr = abar / (1 - abar)
        w_t = snr.clamp(max=0.5) / (snr if predicted == "epsilon" else snr + 1)
        losses = ldm_loss(prediction, batch.target)
        torch.testing.assert_close(terms[name], (w_t * losses).mean())
        assert not torch.allclose(terms[name], losses.mean(), rtol=0.01)


def test_without_snr_gamma_all_pictures_count_alike(tiny_pipeline, rows, tmp_path):
    fit = parted(build_fit(tiny_pipeline, rows, tmp_path / "fit"))
    batch = fit.pairs.batch(3, size=4, seed=0, of="photographs")
    prediction = fit.preference.rule.predict(fit.model.unet, batch.z, batch.t, batch.c, sides=(POSITIVE,))
    torch.testing.assert_close(fit.losses(3)["positive"], ldm_loss(prediction, batch.target).mean())


@pytest.mark.parametrize(("kind", "beta"), [("adapters", 3.0), ("features", 1.0)])
def test_the_pairs_term_is_of_their_rewards(tiny_pipeline, rows, tmp_path, kind, beta):
    """-log sigmoid(beta (r+ - r-)); a score of features, which is no difference of losses, needs no beta."""
    fit = parted(build_fit(tiny_pipeline, rows, tmp_path / "fit", kind=kind, pair_weight=0.5, beta=3.0))
    batches = (fit.pairs.batch(3, size=4, seed=0, of=of) for of in ("their photographs", "negatives"))
    better, worse = (
        fit.preference.reward(fit.model.unet, batch.z, batch.t, batch.c, batch.target) for batch in batches
    )
    expected = torch.log1p(torch.exp(-beta * (better - worse))).mean()
    torch.testing.assert_close(fit.losses(3)["pairs"], expected)
    assert not torch.allclose(better, worse, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The update
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("adapters", {"positive": 1.0, "negative": 0.25, "pairs": 0.5}),
        ("adapters", {"positive": 1.0, "pairs": 0.5}),
        ("features", {"pairs": 1.0}),  # all that these are fitted by
    ],
)
def test_each_term_counts_in_the_gradient_by_its_weight(tiny_pipeline, rows, tmp_path, kind, weights):
    given = {"negative_weight": weights.get("negative", 0.0), "pair_weight": weights["pairs"] % 1.0}
    known = {"kind": kind, "beta": 3.0, "max_grad_norm": FREE}
    fit = parted(build_fit(tiny_pipeline, rows, tmp_path / "fit", **known, **given))
    parameters = list(fit.parameters.values())
    terms, expected = fit.losses(0), [torch.zeros_like(each) for each in parameters]
    assert terms.keys() == weights.keys()
    for name, term in terms.items():
        own = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
        assert norm_of(own) > 0.01
        expected = [total + weights[name] * each for total, each in zip(expected, own)]
    numbers = fit.update()
    for parameter, gradient in zip(parameters, expected):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-3)
    assert numbers["grad_norm"] == pytest.approx(norm_of(expected), rel=1e-3)
    assert numbers["loss"] == pytest.approx(sum(weights[name] * term.item() for name, term in terms.items()), rel=1e-4)


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_a_gradient_over_max_grad_norm_is_cut_to_it(tiny_pipeline, rows, tmp_path, share):
    """One that is shorter is left as it is, and metrics tell what there was before."""
    free = build_fit(tiny_pipeline, rows, tmp_path / "free", max_grad_norm=FREE).update()["grad_norm"]
    fit = build_fit(tiny_pipeline, rows, tmp_path / "cut", max_grad_norm=share * free)
    assert fit.update()["grad_norm"] == pytest.approx(free)
    found = norm_of(each.grad for each in fit.parameters.values())
    assert found == pytest.approx(min(share, 1.0) * free, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Chance
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered(tiny_pipeline, rows, tmp_path):
    """Pairs whose pictures are flat: each negative of the number 10 row + its place, the photograph of 10 row + 9."""

    def flat(number: int) -> Latents:
        return Latents(torch.full((4, 8, 8), float(number)), torch.zeros(4, 8, 8))

    pairs = build_fit(tiny_pipeline, rows, tmp_path / "fit").pairs
    return dataclasses.replace(
        pairs,
        photographs=[flat(10 * row + 9) for row in range(len(pairs.photographs))],
        negatives=[[flat(10 * row + place) for place in range(NEGATIVES)] for row in range(len(pairs.negatives))],
    )


def numbers_in(pairs, batch) -> list[int]:
    """Of the pictures in a batch, their noise taken off again."""
    abar = pairs.model.noise_scheduler.alphas_cumprod[batch.t].double().view(-1, 1, 1, 1)
    z_0 = (batch.z - (1 - abar).sqrt() * batch.target) / abar.sqrt()
    return z_0.mean((1, 2, 3)).round().long().tolist()


def numbers_of(pairs, *, of: str, updates: int) -> list[int]:
    """Of the pictures of so many updates."""
    batches = (pairs.batch(update, size=8, seed=0, of=of) for update in range(updates))
    return [number for batch in batches for number in numbers_in(pairs, batch)]


def test_a_rows_negative_is_drawn_among_all_of_its_negatives_by_chance(numbered):
    """As often each, and in no order that rows would share."""
    drawn = {row: [] for row in numbered.split.paired}
    for number in numbers_of(numbered, of="negatives", updates=60):
        drawn[number // 10].append(number % 10)
    for places in drawn.values():
        shares = [places.count(place) / len(places) for place in range(NEGATIVES)]
        assert len(places) > 100 and sum(shares) == pytest.approx(1.0)
        assert shares == pytest.approx([1 / NEGATIVES] * NEGATIVES, abs=0.15)  # three standard deviations
    assert len({tuple(places[:100]) for places in drawn.values()}) == len(drawn)


def test_a_negative_stands_beside_its_own_photograph(numbered):
    negatives, photographs = (numbers_of(numbered, of=of, updates=8) for of in ("negatives", "their photographs"))
    assert [number // 10 for number in negatives] == [number // 10 for number in photographs]
    assert {number % 10 for number in photographs} == {9}


def test_held_out_pairs_differ_in_nothing_but_the_picture(numbered):
    """A row's photograph and all its negatives have one noise, one timestep and one caption."""
    seen = []

    def reward(unet, z, t, c, target):
        seen.append(Noised(z, t, c, target))
        return torch.tensor([0.0, 1.0, -1.0, 0.0])

    # Right of one negative in three: the first has more reward than its photograph, the last as much.
    accuracy = pair_accuracy(SimpleNamespace(reward=reward), numbered, seed=0)
    assert accuracy["held_out"] == pytest.approx([1 / 3] * len(LEVELS))
    rows = numbered.split.held_out
    assert len(seen) == len(LEVELS) * len(rows)
    for batch, (level, row) in zip(seen, itertools.product(LEVELS, rows)):
        assert numbers_in(numbered, batch) == [10 * row + place for place in (9, *range(NEGATIVES))]
        assert batch.t.tolist() == [round(1000 * level)] * (1 + NEGATIVES)
        assert all(torch.equal(each, whole[0]) for whole in (batch.c, batch.target) for each in whole)
