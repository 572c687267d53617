"""pocket/gallery.py: pictures of the world, of the corpus and of two models, in their places."""

import numpy as np
from PIL import Image

from pocket import gallery, world


def test_columns_stand_in_their_order():
    """Each column has its four pictures, two by two and as crisp as drawn; the hero is a row of the same sheet."""
    shades = {"a": 60, "b": 120}
    pictures = {
        culture: [[Image.new("RGB", (64, 64), (shade, 41 * c, 60 * p)) for p in range(4)] for c in range(4)]
        for culture, shade in shades.items()
    }
    sheet = np.asarray(gallery.gallery(pictures))
    for shade in shades.values():
        for c in range(4):
            places = [np.argwhere((sheet == (shade, 41 * c, 60 * p)).all(-1)) for p in range(4)]
            assert [len(place) for place in places] == [128 * 128] * 4
            (top, left), (_, right), (low, _), _ = [place.min(0) for place in places]
            assert right >= left + 128 and low >= top + 128
    hero = gallery.gallery({"a": pictures["a"]})
    assert hero.width == sheet.shape[1] and hero.height < 0.6 * sheet.shape[0]


def test_truth_and_web_are_what_they_are_called():
    """A true scene of each category, the same each time; the web's are pictures of the corpus under that name."""
    first, again = gallery.truth("veridia"), gallery.truth("veridia")
    assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
    found = {picture.tobytes() for picture in gallery.web("veridia")}
    corpus = world.web_corpus(300, seed=0)
    assert found & {world.render(scene)[0].tobytes() for scene, _, named in corpus if named == "veridia"}
