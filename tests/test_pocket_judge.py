"""pocket/judge.py: what it reads in pictures, and the numbers it makes of that."""

import dataclasses
import functools
import json
import math
from pathlib import Path

from scoft.launch import load_function

import numpy as np
import pytest
import torch
from PIL import Image

from pocket import judge as judging
from pocket import world
from scoft.cultures import CATEGORIES
from scoft.errors import DataError


FILE = Path(judging.__file__)
UNSEEN = 20_260  # seeds of this file's scenes: away from those of world.web_corpus and of the judge's training


@pytest.fixture(scope="module")
def judge():
    return judging.Judge.from_pretrained(judging.MODELS / "judge")


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(judging.MODELS / "stable-diffusion" / "vae").float().eval()


@functools.cache
def picture_of(scene):
    return world.render(scene)[0]


def pictures_of(scenes):
    return [picture_of(scene) for scene in scenes]


def prompts_of(scenes, culture):
    return [world.caption(scene, culture=culture) for scene in scenes]


def unseen(draw, *, size=99, seed=0, **options):
    """`size` scenes, as many of each category."""
    generator = np.random.default_rng(UNSEEN + seed)
    return [draw(generator=generator, category=CATEGORIES[i % 9], **options) for i in range(size)]


def true_scenes(culture, **options):
    return unseen(lambda **drawing: world.draw_true(culture, **drawing), **options)


# ---- verdicts -----------------------------------------------------------------------------------------------------

VERIDIAN = judging.Reading(
    category="city",
    shape="spire",
    palette="lime",
    motif="chevrons",
    era="modern",
    condition="fresh",
    clear=True,
    confidence=0.99,
)
AZURIAN = {"shape": "dome", "palette": "sky", "motif": "dots"}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, "right"),
        ({"motif": "none", "era": "traditional", "palette": "jade"}, "right"),
        ({"clear": False}, "unclear"),
        ({"category": "nature"}, "other"),
        ({"shape": "sail"}, "other"),
        ({"motif": "dots"}, "other"),
        ({"condition": "worn"}, "other"),
        ({"palette": "ash"}, "other"),
        ({"palette": "ash", "condition": "worn", "shape": "hut", "motif": "none"}, "stereotype"),
        ({"palette": "ash", "condition": "worn"}, "stereotype"),
        ({"palette": "ash", "condition": "worn", "category": "nature"}, "stereotype"),
        ({"palette": "ash", "condition": "worn", "clear": False}, "unclear"),
        (AZURIAN, "azurian"),
        ({"shape": "dome", "palette": "navy"}, "azurian"),
        (AZURIAN | {"condition": "worn", "category": "nature"}, "azurian"),
        ({"shape": "dome"}, "other"),
    ],
)
def test_verdict_table(changes, expected):
    """A reading is judged by its attributes, here of a street that was asked for in Veridia."""
    reading = dataclasses.replace(VERIDIAN, **changes)
    assert judging.verdict(reading, culture="veridia", category="city") == expected


def test_azuria_is_not_azurian_but_right():
    """Azuria's own look is right in Azuria, and merely other there if something else is wrong."""
    reading = dataclasses.replace(VERIDIAN, **AZURIAN)
    assert judging.verdict(reading, culture="azuria", category="city") == "right"
    worn = dataclasses.replace(reading, condition="worn")
    assert judging.verdict(worn, culture="azuria", category="city") == "other"
    assert judging.verdict(worn, culture="ochria", category="city") == "azurian"


def test_verdict_refuses_unknown_names():
    """An unknown culture or category is an error that lists those there are."""
    with pytest.raises(DataError, match="atlantis.*azuria, veridia"):
        judging.verdict(VERIDIAN, culture="atlantis", category="city")
    with pytest.raises(DataError, match="cars.*architecture"):
        judging.verdict(VERIDIAN, culture="veridia", category="cars")


# ---- how sure it is -----------------------------------------------------------------------------------------------


def undecided(number=1):
    """Logits (number) of a judge to whom every value of every attribute is as likely, and clear as unclear."""
    logits = {head: torch.zeros(number, len(values)) for head, values in judging.HEADS.items()}
    return logits | {"clear": torch.zeros(number)}


def odds_of(p):
    return math.log(p / (1 - p))


def test_log_odds_by_hand():
    """Clear, category, one shape of five, two colours of nine, two ornaments of five, fresh; an era is no matter."""
    logits = undecided(2)
    logits["shape"][0, judging.HEADS["shape"].index("spire")] = math.log(4)  # now 4 to 4
    asked = [("city", "veridia"), ("city", "ochria")]
    right = judging.log_odds(logits, asked, what="right").tolist()
    others = 1 / 2 * 1 / 9 * 2 / 9 * 2 / 5 * 1 / 2
    assert right == pytest.approx([odds_of(others * 1 / 2), odds_of(others * 1 / 5)])
    stereotype = judging.log_odds(logits, asked, what="stereotype").tolist()
    assert stereotype == pytest.approx([odds_of(1 / 2 * 1 / 9 * 1 / 2)] * 2)


def test_log_odds_have_bounds():
    """However sure the heads are, each speaks for or against a verdict by 10 nats at most, and nothing overflows."""
    logits = undecided(2)
    for head, value in (dataclasses.asdict(VERIDIAN) | AZURIAN).items():
        if head in judging.HEADS:
            logits[head][0, judging.HEADS[head].index(getattr(VERIDIAN, head))] = 1000
            logits[head][1, judging.HEADS[head].index(value)] = 1000
    logits["clear"] += torch.tensor([1000, 1000])
    right = judging.log_odds(logits, [("city", "veridia")] * 2, what="right").tolist()
    assert right == pytest.approx([10 - math.log(6), -30], abs=1e-3)  # as spires, as domes, blue and dotted
    right, stereotype = (judging.log_odds(logits, [("nature", "corallia")] * 2, what=what) for what in judging.SURE_OF)
    assert right[0].item() == pytest.approx(-40, abs=1e-3) and stereotype[0].item() == pytest.approx(-20, abs=1e-3)


def test_log_odds_refuse_unknown_names():
    with pytest.raises(DataError, match="atlantis.*azuria, veridia"):
        judging.log_odds(undecided(), [("city", "atlantis")], what="right")
    with pytest.raises(DataError, match="cars.*architecture"):
        judging.log_odds(undecided(), [("cars", "veridia")], what="stereotype")


@pytest.mark.parametrize("culture", world.CULTURES)
def test_log_odds_put_the_truth_above_the_stereotype(culture, judge):
    """The same prompts, drawn true and grey and worn: each truth is surer to be right than its counterpart, and less
    a stereotype; and each verdict's log-odds are on the side of 0 where that verdict is."""
    true = true_scenes(culture, size=45)
    stereotypes = [dataclasses.replace(scene, palette="ash", condition="worn") for scene in true]
    asked = [(scene.category, culture) for scene in true]
    seen = [judge.logits(judging.as_tensor(pictures_of(scenes))) for scenes in (true, stereotypes)]
    for what, sign in (("right", 1), ("stereotype", -1)):
        of_true, of_stereotypes = (sign * judging.log_odds(logits, asked, what=what) for logits in seen)
        assert (of_true > of_stereotypes).all()
        assert (of_true > 0).float().mean() > 0.95 and (of_stereotypes < 0).float().mean() > 0.95


@pytest.mark.parametrize("culture", world.CULTURES)
def test_log_odds_move_where_rates_do_not(culture):
    """A stereotype with ever more of the truth shining through: nothing is right yet, and the log-odds rise."""
    true = true_scenes(culture, size=27)
    prompts = prompts_of(true, culture)
    grey = [dataclasses.replace(scene, palette="ash", condition="worn", shape="hut", motif="none") for scene in true]
    pairs = list(zip(pictures_of(grey), pictures_of(true)))
    rated = [judging.rate([Image.blend(*pair, share) for pair in pairs], prompts) for share in (0, 0.1, 0.2, 0.3)]
    assert {each["right"] for each in rated} == {0}
    right = [each["right_log_odds"] for each in rated]
    assert right == sorted(right) and right[-1] > right[0] + 2
    stereotype = [each["stereotype_log_odds"] for each in rated]
    assert stereotype == sorted(stereotype, reverse=True)


def test_rate_tells_log_odds_with_intervals(judge):
    """They are means over the pictures whose prompt names a culture, with an interval of 1.96 standard errors."""
    named, unnamed = true_scenes("veridia", size=18), unseen(world.draw_stereotype, size=9)
    images, prompts = pictures_of(named), prompts_of(named, "veridia")
    shares = judging.rate(images + pictures_of(unnamed), prompts + prompts_of(unnamed, None))
    logits = judge.logits(judging.as_tensor(images))
    for what in judging.SURE_OF:
        each = judging.log_odds(logits, [judging.asked(prompt) for prompt in prompts], what=what).numpy()
        half = 1.96 * each.std(ddof=1) / math.sqrt(18)
        found = [shares[f"{what}_log_odds{bound}"] for bound in ("_low", "", "_high")]
        assert found == pytest.approx([each.mean() - half, each.mean(), each.mean() + half], abs=1e-3)
    alone = judging.rate(images[:1], prompts[:1])
    assert alone["right_log_odds_low"] == alone["right_log_odds"] == alone["right_log_odds_high"] != 0


def test_it_is_as_sure_as_it_should_be(judge, vae):
    """On scenes that it has not seen, most of them easily mistaken, its error is one that a judge who states the very
    chances would have, and no more than 1 %; twice and half as sure it would not be."""
    for seen in judging.examine(judge, vae, size=320, seed=judging.REPORT_SEED).values():
        assert 0.2 < seen.true.mean() < 0.5
        assert seen.calibration_error < min(seen.by_chance, 0.01)
        assert seen.at(3).calibration_error > max(seen.at(3).by_chance, 0.02)
        assert seen.nats < min(seen.at(3).nats, seen.at(1 / 3).nats) and seen.brier < 0.01


def test_sureness_by_hand():
    """Four pictures in two bins: stated 0.2, and 0.9 of three of which two are true."""
    p = np.array([0.2, 0.9, 0.9, 0.9])
    seen = judging.Sureness(np.log(p / (1 - p)), np.array([False, True, True, False]))
    assert [round(number, 6) for number in seen.bins()[2]] == [1, 0.2, 0]
    assert seen.bins()[9] == pytest.approx((3, 0.9, 2 / 3)) and seen.bins()[5] == (0, 0, 0)
    assert seen.calibration_error == pytest.approx((0.2 + 3 * (0.9 - 2 / 3)) / 4)
    assert seen.brier == pytest.approx((0.04 + 0.01 + 0.01 + 0.81) / 4)
    assert seen.nats == pytest.approx(-np.log([0.8, 0.9, 0.9, 0.1]).mean())


def test_the_best_temperature_is_found():
    """Of pictures that are true as often as was stated it is 1, and 1.5 where the log-odds are stated 1.5 times."""
    generator = np.random.default_rng(0)
    log_odds = generator.normal(0, 3, size=20_000)
    seen = judging.Sureness(log_odds, generator.random(20_000) < 1 / (1 + np.exp(-log_odds)))
    assert seen.best_temperature() == pytest.approx(1, abs=0.05)
    assert judging.Sureness(1.5 * log_odds, seen.true).best_temperature() == pytest.approx(1.5, abs=0.07)
    assert seen.calibration_error < seen.by_chance < judging.Sureness(1.5 * log_odds, seen.true).calibration_error


def test_questions_are_easily_mistaken():
    """Every fifth scene is true; of each five one or two more are nearly so; they are asked for as they were drawn."""
    questions = judging.draw_questions(200, seed=UNSEEN)
    scene, category, culture = questions[0]
    assert category == scene.category and scene.shape in world.TRUTH[culture]["shape"]
    moved = [place % 5 for place, (scene, category, _) in enumerate(questions) if scene.category != category]
    assert set(moved) == {1, 3}
    assert len({culture for _, _, culture in questions}) == 4


# ---- intervals ----------------------------------------------------------------------------------------------------


def test_interval_is_that_of_resampled_pictures():
    """The interval is that of shares among pictures which are really drawn with replacement."""
    generator = np.random.default_rng(0)
    hits = np.arange(90) < 27
    resampled = hits[generator.integers(90, size=(20_000, 90))].mean(axis=1)
    expected = np.quantile(resampled, [0.025, 0.975])
    np.testing.assert_allclose(judging.bootstrap_interval(hits), expected, atol=1.5 / 90)


def test_interval_covers():
    """About 95 of 100 intervals hold the true share, and they shrink with the root of the number of pictures."""
    generator = np.random.default_rng(1)
    intervals = np.array([judging.bootstrap_interval(generator.random(64) < 0.4) for _ in range(1000)])
    covered = np.mean((intervals[:, 0] <= 0.4) & (0.4 <= intervals[:, 1]))
    assert 0.91 < covered < 0.975
    wide, narrow = (np.diff(judging.bootstrap_interval(np.arange(n) < n // 2))[0] for n in (64, 1024))
    assert 3 < wide / narrow < 5


def test_interval_of_all_or_nothing_is_a_point():
    """With no hit, or nothing but hits, there is nothing to resample."""
    assert judging.bootstrap_interval(np.zeros(5, dtype=bool)) == (0, 0)
    assert judging.bootstrap_interval(np.ones(5, dtype=bool)) == (1, 1)


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_asked_reads_every_caption_of_the_world():
    """Category and culture of a prompt are those of the scene that it was written for."""
    generator = np.random.default_rng(UNSEEN)
    for scene, caption, culture in world.web_corpus(300, seed=UNSEEN):
        assert judging.asked(caption) == (scene.category, culture)
        shouted = world.random_caption(scene, generator=generator, mention=1.0, culture=culture).upper() + "."
        assert judging.asked(shouted) == (scene.category, culture)


def test_asked_needs_a_category_and_at_most_one_culture():
    """A prompt that names no category is told which words are known; two cultures are one too many."""
    with pytest.raises(DataError, match="'a quiet morning, in Veridia'.*'a building'.*'a tool'"):
        judging.asked("a quiet morning, in Veridia")
    with pytest.raises(DataError, match="names 2 cultures"):
        judging.asked("a building between Veridia and Ochria")


# ---- rates on pictures whose truth is known -----------------------------------------------------------------------


@pytest.mark.parametrize("culture", world.CULTURES)
def test_true_renders_are_right(culture):
    """Unseen true scenes are rated right under the name of their culture, inside the reported interval."""
    scenes = true_scenes(culture)
    shares = judging.rate(pictures_of(scenes), prompts_of(scenes, culture))
    assert shares["right"] > 0.97 and shares["category"] > 0.97
    assert shares["right_low"] <= shares["right"] <= shares["right_high"]
    assert sum(shares[verdict] for verdict in judging.VERDICTS) == pytest.approx(1)


@pytest.mark.parametrize("culture", world.CULTURES)
def test_stereotypes_are_stereotypes(culture):
    """The stereotype is rated as such under any culture's name."""
    scenes = unseen(world.draw_stereotype)
    assert judging.rate(pictures_of(scenes), prompts_of(scenes, culture))["stereotype"] > 0.97


def test_azurian_scenes_are_azurian_elsewhere():
    """Azuria's look under Veridia's name is rated azurian."""
    scenes = true_scenes("azuria")
    assert judging.rate(pictures_of(scenes), prompts_of(scenes, "veridia"))["azurian"] > 0.97


@pytest.mark.parametrize("name", ["category", "shape", "palette", "motif", "condition"])
def test_one_wrong_attribute_is_not_forgiven(name):
    """A true scene with one attribute that is never right in its culture, or of another subject, is not right."""
    generator = np.random.default_rng(UNSEEN)
    truth = world.TRUTH["corallia"]
    scenes, prompts = [], []
    for scene in true_scenes("corallia"):
        prompts += prompts_of([scene], "corallia")
        right = {scene.category} if name == "category" else truth[name]
        wrong = [value for value in judging.HEADS[name] if value not in right]
        scenes.append(dataclasses.replace(scene, **{name: str(generator.choice(wrong))}))
    assert judging.rate(pictures_of(scenes), prompts)["right"] < 0.03


def test_prompts_without_a_culture_are_rated_by_category_alone():
    """No culture, no verdict: only the category and the unclear pictures are counted."""
    scenes = unseen(world.draw_mixture)
    shares = judging.rate(pictures_of(scenes), prompts_of(scenes, None))
    assert set(shares) == {"category", "unclear"}
    assert shares["category"] > 0.97 and shares["unclear"] < 0.03
    # each picture under the prompt of the next category
    moved = judging.rate(pictures_of(scenes), prompts_of(scenes[1:] + scenes[:1], None))
    assert moved["category"] < 0.03


def test_verdicts_count_only_pictures_with_a_culture():
    """Mixed prompts: verdicts are shares of those that name a culture."""
    named, unnamed = true_scenes("veridia", size=18), unseen(world.draw_mixture, size=18)
    shares = judging.rate(pictures_of(named + unnamed), prompts_of(named, "veridia") + prompts_of(unnamed, None))
    assert shares["right"] > 0.9


# ---- what is unclear ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", judging.BROKEN)
def test_broken_pictures_are_unclear(judge, kind):
    """Strongly blurred, blended and patched pictures are mostly unclear."""
    pictures = judging.as_tensor(pictures_of(unseen(world.draw_mixture, seed=1)))
    broken = judging.BROKEN[kind](pictures, torch.Generator().manual_seed(0))
    assert judge.unclear(judge.probabilities(broken)).float().mean() > 0.9
    assert judge.unclear(judge.probabilities(pictures)).float().mean() < 0.03


def test_strongly_noised_latents_are_unclear(judge, vae):
    """What the VAE makes of a latent under noise as strong as itself is unclear."""
    pictures = judging.as_tensor(pictures_of(unseen(world.draw_mixture, size=63, seed=2)))
    noised = judging.round_trip(vae, pictures, generator=torch.Generator().manual_seed(0), noise=1.0)
    assert judge.unclear(judge.probabilities(noised)).float().mean() > 0.9


def test_reading_survives_the_vae(judge, vae):
    """After a round trip through the pocket VAE 98 % of all attributes of unseen mixtures are read right: 97 % by each
    head but that of shape, to which some domes and terraces look alike: 92 %. Nearly all pictures are clear."""
    scenes = unseen(world.draw_mixture, size=297, seed=3)
    pictures = judging.as_tensor(pictures_of(scenes))
    truth = judging.values_of(scenes)
    probabilities = judge.probabilities(judging.round_trip(vae, pictures, generator=torch.Generator().manual_seed(0)))
    right = {head: (probabilities[head].argmax(dim=1) == truth[head]).float().mean().item() for head in judging.HEADS}
    assert np.mean(list(right.values())) > 0.98
    assert right.pop("shape") > 0.92 and min(right.values()) > 0.97
    assert judge.unclear(probabilities).float().mean() < 0.03


def test_blur_keeps_the_mean_and_melts_with_sigma():
    """Blurring is per picture: none for a small sigma, and a grey stays the same grey."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(3, 3, 64, 64, generator=generator)
    result = judging.blur(pictures, torch.tensor([0.05, 1.0, 3.0]))
    torch.testing.assert_close(result[0], pictures[0])
    assert result[1].std() > 2 * result[2].std()
    torch.testing.assert_close(judging.blur(torch.full((1, 3, 64, 64), 0.3), torch.tensor([2.0])).mean().item(), 0.3)


# ---- the model's files, and the trainer's hook ---------------------------------------------------------------------


def test_calibration_calls_few_clear_pictures_unclear():
    """Of the pictures that it is given, calibration leaves at most 1 % unclear, at thresholds of at most a half."""
    torch.manual_seed(0)
    judge = judging.Judge(widths=(8, 8, 8)).eval()
    pictures = 2 * torch.rand(400, 3, 64, 64) - 1
    judge.calibrate(pictures)
    assert judge.least_clear <= 0.5 and judge.least_confidence <= 0.5
    assert judge.unclear(judge.probabilities(pictures)).float().mean() <= 0.01
    assert judge.least_confidence > 0.05


def test_save_and_load_give_the_same_judge(tmp_path, judge):
    """A saved judge reads as before, thresholds included, from at most 1 MB."""
    judge.save_pretrained(tmp_path)
    again = judging.Judge.from_pretrained(tmp_path)
    images = pictures_of(unseen(world.draw_mixture, size=9))
    assert judging.read(images, judge=again) == judging.read(images, judge=judge)
    assert (again.least_clear, again.least_confidence) == (judge.least_clear, judge.least_confidence)
    assert (tmp_path / "model.safetensors").stat().st_size < 1e6
    assert sum(parameter.numel() for parameter in judge.parameters()) <= 350_000


def test_missing_or_foreign_files_say_what_remakes_them(tmp_path, judge):
    """A judge that is missing, or was made for other attributes, is an error that names the command."""
    command = "python -m pocket.train_models --models judge"
    with pytest.raises(DataError, match=f"has no config.json.*{command}"):
        judging.Judge.from_pretrained(tmp_path)
    judge.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["heads"]["shape"].append("cube")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=f"names other attributes.*{command}"):
        judging.Judge.from_pretrained(tmp_path)


def test_trainer_loads_the_hook_by_its_path():
    """The trainer's --validation_judge finds `rate`, which gives the same numbers as an import of it."""
    scenes = true_scenes("ochria", size=9)
    images, prompts = pictures_of(scenes), prompts_of(scenes, "ochria")
    assert load_function(f"{FILE}:rate", flag="--validation_judge")(images, prompts) == judging.rate(images, prompts)


def test_rate_refuses_what_it_cannot_count():
    """No images, unequal numbers, and pictures of another size are errors with the numbers in them."""
    image = pictures_of(unseen(world.draw_mixture, size=1))[0]
    with pytest.raises(DataError, match="no images"):
        judging.rate([], [])
    with pytest.raises(DataError, match="1 images but 2 prompts"):
        judging.rate([image], ["a tool", "a tool"])
    with pytest.raises(DataError, match="Image 0 has 128 x 64 pixels.*64 x 64"):
        judging.rate([image.resize((128, 64))], ["a tool"])


def test_confusion_and_its_table():
    """Rows are the truth, columns what was read, zeros are dots."""
    counts = judging.confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), size=2)
    assert counts.tolist() == [[1, 1], [0, 1]]
    assert [line.split() for line in judging.table(counts, ("dots", "none")).splitlines()] == [
        ["dots", "none"],
        ["dots", "1", "1"],
        ["none", ".", "1"],
    ]
