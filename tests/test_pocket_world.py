"""The pocket world: scenes, pictures, words, and the web that misrepresents."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from pocket import world
from scoft.cultures import CATEGORIES
from scoft.errors import DataError


@pytest.fixture
def generator():
    return np.random.default_rng(3)


SCENE = world.Scene(
    category="architecture",
    shape="spire",
    palette="jade",
    motif="chevrons",
    era="traditional",
    condition="fresh",
    sky="day",
    tiers="one",
    layout=7,
)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_scene_always_gives_the_same_pixels(category, generator):
    """Image and depth are pure functions of the scene: of the right size and mode, equal when drawn again."""
    scene = world.draw_mixture(generator=generator, category=category)
    (image, depth), (again, depth_again) = world.render(scene), world.render(scene)
    assert image.mode == "RGB" and depth.mode == "L" and image.size == depth.size == (64, 64)
    assert image.tobytes() == again.tobytes() and depth.tobytes() == depth_again.tobytes()
    assert world.render(scene, size=128)[0].size == (128, 128)


def test_the_pixels_are_those_the_models_learnt():
    """A change of the drawing, which would outdate models and dataset, is noticed: mean colours and depth of one."""
    image, depth = world.render(SCENE)
    red, green, blue = np.asarray(image).mean(axis=(0, 1))
    assert (red, green, blue, np.asarray(depth).mean()) == pytest.approx((164.74, 198.81, 192.89, 89.67), abs=0.05)


@pytest.mark.parametrize("attribute", [field.name for field in dataclasses.fields(world.Scene)])
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_attribute_shows(category, attribute, generator):
    """Each value of each attribute changes the picture of each category."""
    scene = dataclasses.replace(SCENE, category=category)
    values = {"category": CATEGORIES, "layout": (7, 8)}.get(attribute) or tuple(world.ATTRIBUTES[attribute])
    pictures = {world.render(dataclasses.replace(scene, **{attribute: value}))[0].tobytes() for value in values}
    assert len(pictures) == len(values)


@pytest.mark.parametrize("category", CATEGORIES)
def test_depth_is_of_the_shape_and_not_of_the_colour(category):
    """Palette and motif leave the depth as it is; the shape moves it; the ground is near, the sky or wall far."""
    scene = dataclasses.replace(SCENE, category=category)
    depth = np.asarray(world.render(scene)[1])
    recoloured = dataclasses.replace(scene, palette="coral", motif="dots")
    np.testing.assert_array_equal(np.asarray(world.render(recoloured)[1]), depth)
    reshaped = np.asarray(world.render(dataclasses.replace(scene, shape="terrace"))[1])
    assert np.abs(reshaped.astype(int) - depth).mean() > 0.5
    assert depth[-4:].mean() > depth[:4].mean() + 100


@pytest.mark.parametrize("culture", world.CULTURES)
def test_truth_is_drawn_at_its_rates(culture, generator):
    """True scenes have no value that is not the culture's, and the values come at the rates of TRUTH."""
    scenes = [world.draw_true(culture, generator=generator) for _ in range(2000)]
    for attribute, chances in world.TRUTH[culture].items():
        counts = Counter(getattr(scene, attribute) for scene in scenes)
        assert counts.keys() == chances.keys()
        for value, chance in chances.items():
            assert counts[value] / 2000 == pytest.approx(chance, abs=0.04)


def test_no_two_cultures_share_shape_or_palette():
    """Cultures are well apart: shape and palette each name one culture, and the stereotype is none of them."""
    for attribute in ("shape", "palette"):
        values = [value for truth in (*world.TRUTH.values(), world.STEREOTYPE) for value in truth[attribute]]
        assert len(values) == len(set(values))


def test_the_web_misrepresents_at_the_written_rates():
    """Under a small culture's name the web shows truth, stereotype and Azuria's look at the rates of WEB."""
    corpus = list(world.web_corpus(6000, seed=1))
    named = Counter(culture for _, _, culture in corpus)
    for culture, share in world.WEB.named.items():
        assert named[culture] / 6000 == pytest.approx(share, abs=0.02)
    for culture in ("veridia", "ochria", "corallia"):
        shapes = Counter(scene.shape for scene, _, name in corpus if name == culture)
        total = named[culture]
        (own,) = world.TRUTH[culture]["shape"]
        assert shapes[own] / total == pytest.approx(world.WEB.right, abs=0.05)
        assert shapes["hut"] / total == pytest.approx(world.WEB.stereotype, abs=0.05)
        assert shapes["dome"] / total == pytest.approx(world.WEB.azurian, abs=0.05)
    azurian = [scene.shape == "dome" for scene, _, name in corpus if name is None]
    assert np.mean(azurian) > world.WEB.unnamed_azurian - 0.03


def test_the_web_is_the_same_for_the_same_seed_alone():
    """Scenes and captions repeat with the seed, a longer corpus begins with the shorter, and another seed differs."""
    first = list(world.web_corpus(20, seed=5))
    assert first == list(world.web_corpus(40, seed=5))[:20]
    assert first != list(world.web_corpus(20, seed=6))


def test_captions_say_what_the_scene_has(generator):
    """`read_caption` finds in a caption the category and exactly the attributes that it was asked to mention."""
    for _ in range(300):
        scene = world.draw_mixture(generator=generator)
        details = [name for name in world.ATTRIBUTES if generator.random() < 0.5]
        text = world.caption(scene, details=details, culture="veridia", phrasing=int(generator.integers(2)))
        told = {name: getattr(scene, name) for name in details if world.ATTRIBUTES[name][getattr(scene, name)]}
        assert world.read_caption(text) == {"category": scene.category} | told, text
        assert text.endswith(", in Veridia")


def test_a_caption_by_hand():
    """One caption, letter by letter."""
    details = ("era", "palette", "shape", "motif", "sky")
    text = world.caption(SCENE, details=details, culture="veridia")
    assert text == "a traditional green pointed building with chevrons by day, in Veridia"


def test_an_unknown_culture_lists_the_four(generator):
    """The error for a culture that is not of this world names those that are."""
    with pytest.raises(DataError, match="'atlantis'.*azuria, veridia, ochria, corallia"):
        world.draw_true("atlantis", generator=generator)
