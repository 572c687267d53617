"""pocket/gallery.py: pictures of the world, of the corpus and of two models, in their places."""

import numpy as np
import pytest
from PIL import Image

from pocket import gallery, world
from scoft.base_model import load_pipeline
from scoft.errors import DataError
from scoft.lora_folder import LORA_FILE
from tiny import around


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


def test_each_culture_is_drawn_by_the_base_model_and_by_its_own_lora(tmp_path, monkeypatch):
    """One after the other the LoRAs are loaded whole; the sheets have each model's pictures in its column."""
    from diffusers import StableDiffusionPipeline

    def first_weight(unet) -> float:
        return sum(float(weight.sum()) for name, weight in unet.named_parameters() if "lora_A" in name)

    def generated(pipeline, culture):
        drawn.append((culture, first_weight(pipeline.unet)))
        return [Image.new("RGB", (64, 64), "blue")] * 4

    drawn, own = [], {}
    pipeline = load_pipeline(StableDiffusionPipeline, gallery.HERE / "models/stable-diffusion", safety_checker=None)
    around(pipeline.unet).add_lora(rank=2, alpha=2, target_modules=["to_q", "proj_in"])
    for culture in world.CULTURES:
        for name, weight in pipeline.unet.named_parameters():
            if "lora_A" in name:
                weight.data.normal_()
        own[culture] = first_weight(pipeline.unet)
        around(pipeline.unet).save_lora(tmp_path / culture)
    monkeypatch.setattr(gallery, "generated", generated)
    gallery.main(["--loras", str(tmp_path / "{}"), "--output", str(tmp_path)])
    assert [culture for culture, _ in drawn] == [*own, *own]
    assert [weight for _, weight in drawn] == pytest.approx([0] * 4 + [*own.values()], rel=1e-3)
    for name, count in (("gallery.png", 32), ("hero.png", 8)):
        with Image.open(tmp_path / name) as sheet:
            assert (np.asarray(sheet) == (0, 0, 255)).all(-1).sum() == count * 128 * 128
    (tmp_path / "azuria" / LORA_FILE).unlink()
    with pytest.raises(DataError, match="no LoRA that can be read"):
        gallery.main(["--loras", str(tmp_path / "{}"), "--output", str(tmp_path)])
