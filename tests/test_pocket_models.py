"""The shipped pocket models do what they are for, loaded through the same public classes as the large ones."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.pocket_models import controlnet_pipeline, depth_correlations
from pocket import judge, train_models, world
from pocket.checksums import write_checksums
from scoft.cultures import CATEGORIES
from scoft.dataset_source import check_embedded
from scoft.distances import load_distance
from scoft.randomness import stable_generator


POCKET = Path(train_models.__file__).parent
MODELS = POCKET / "models"


@pytest.fixture(scope="module")
def true_scenes():
    """Five true scenes of each small culture and category that no dataset holds."""
    generator = np.random.default_rng(77)
    return [
        world.draw_true(culture, generator=generator, category=category)
        for culture in ("veridia", "ochria", "corallia")
        for category in CATEGORIES
        for _ in range(5)
    ]


def test_the_files_are_those_on_record_and_small():
    """Models and dataset match checksums.json, and keep to 30 MB and 10 MB; all weights are safetensors."""
    check_embedded("pocket")
    for folder, limit in (("models", 30e6), ("ccub", 10e6)):
        files = [path for path in (POCKET / folder).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= limit
        recorded = json.loads((POCKET / "checksums.json").read_text())[folder]["sha256"]
        assert recorded.keys() == {path.relative_to(POCKET / folder).as_posix() for path in files}
        assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_the_base_pipeline_draws_what_it_is_asked(true_scenes):
    """Without a culture in the prompt, at guidance 4.5 and 20 DDIM steps, at least 90 % are of the right category."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "stable-diffusion")
    pipeline.set_progress_bar_config(disable=True)
    prompts = [f"Photo of {phrasings[0].format('').replace('  ', ' ')}" for phrasings in world.SUBJECTS.values()] * 4
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipeline(prompts, generator=generators, num_inference_steps=20, guidance_scale=4.5).images
    read = [reading.category for reading in judge.read(images)]
    assert np.mean([a == b for a, b in zip(read, [*world.SUBJECTS] * 4)]) >= 0.9


def test_the_controlnet_keeps_structure(true_scenes):
    """The depth of what it draws, read by the estimator, correlates with the depth given: median at least 0.8."""
    scenes = true_scenes[::6]
    depths = [world.render(scene)[1] for scene in scenes]
    images = controlnet_pipeline()(
        [f"{world.caption(scene)}, in Veridia" for scene in scenes],
        image=[depth.convert("RGB") for depth in depths],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(scenes))],
        num_inference_steps=20,
        guidance_scale=4.5,
    ).images
    assert depth_correlations(depths, images)["median"] >= 0.8


def test_the_depth_estimator_reads_depth(true_scenes):
    """On unseen renders estimated and true depth correlate: median at least 0.95."""
    images, depths = zip(*[world.render(scene) for scene in true_scenes[::3]])
    assert depth_correlations(depths, images)["median"] >= 0.95


def test_the_captioner_names_things_and_no_culture(true_scenes):
    """On unseen renders at least 90 % of captions have the category and every attribute they mention right."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    processor = BlipProcessor.from_pretrained(MODELS / "captioner")
    captioner = BlipForConditionalGeneration.from_pretrained(MODELS / "captioner")
    torch.manual_seed(0)
    inputs = processor(images=[world.render(scene)[0] for scene in true_scenes], return_tensors="pt")
    ids = captioner.generate(**inputs, do_sample=True, top_p=0.9, max_new_tokens=24)
    captions = processor.batch_decode(ids, skip_special_tokens=True)
    right = [
        said.get("category") is not None and said.items() <= vars(scene).items()
        for scene, said in zip(true_scenes, map(world.read_caption, captions))
    ]
    assert np.mean(right) >= 0.9
    assert len(set(captions)) > len(captions) / 3
    assert not [text for text in captions for culture in world.CULTURES if culture in text.lower()]


def test_clip_finds_the_picture_of_a_caption(true_scenes):
    """Among one scene of each category and culture, CLIP and a full caption pick the right one four times in five."""
    from transformers import CLIPModel, CLIPProcessor

    scenes = true_scenes[::5]
    clip = CLIPModel.from_pretrained(MODELS / "clip")
    processor = CLIPProcessor.from_pretrained(MODELS / "clip")
    captions = [world.caption(scene, details=train_models.COMPARED) for scene in scenes]
    inputs = processor(
        text=captions, images=[world.render(scene)[0] for scene in scenes], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        best = clip(**inputs).logits_per_image.argmax(dim=1)
    assert (best == torch.arange(len(scenes))).float().mean() >= 0.8


def test_clip_conv_tells_a_stereotype_from_the_truth(true_scenes):
    """A true scene is nearer to the same scene in another light than to its stereotype, nine times in ten."""
    import dataclasses

    distance = load_distance("clip_conv", model_name_or_path=str(MODELS / "clip_conv"), device="cpu")
    stereotype = {name: next(iter(values)) for name, values in world.STEREOTYPE.items()}

    def pictures(**changes):
        images = [np.array(world.render(dataclasses.replace(scene, **changes))[0]) for scene in true_scenes[::3]]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1

    with torch.no_grad():
        photograph = pictures(sky="day")
        near = distance(photograph, pictures(sky="dusk"))
        far = distance(photograph, pictures(**stereotype))
    assert (near < far).float().mean() >= 0.9


# ---------------------------------------------------------------------------------------------------------------------
# How they are made
# ---------------------------------------------------------------------------------------------------------------------


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    """`fit` stopped after 7 of 12 updates and called again gives the weights of an undisturbed run, bit for bit."""
    monkeypatch.setattr(train_models, "SAVE_EVERY", 0.0)

    def train(folder, stop_after=None):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        calls = 0

        def loss(generator):
            nonlocal calls
            if calls == stop_after:
                raise KeyboardInterrupt
            calls += 1
            return model(torch.randn(8, 4, generator=generator)).square().mean()

        return train_models.fit("line", model, loss, updates=12, learning_rate=0.1, work=folder)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_after=7)
    resumed = train(tmp_path / "broken")
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_what_is_trained_on_other_data_starts_anew(tmp_path):
    """A finished training is not done again, but one with another `made_from` is."""
    calls = []
    for made_from in ("one", "one", "two"):
        model = nn.Linear(4, 1)

        def loss(generator, model=model, made_from=made_from):
            calls.append(made_from)
            return model(torch.randn(8, 4, generator=generator)).square().mean()

        train_models.fit("line", model, loss, updates=3, learning_rate=0.1, work=tmp_path, made_from=made_from)
    assert calls == ["one"] * 3 + ["two"] * 3


def test_no_file_says_where_it_was_made():
    """No configuration or card among the shipped files holds a path of the machine that made it."""
    files = [path for path in POCKET.rglob("*") if path.suffix in (".json", ".md", ".yaml")]
    assert len(files) > 20
    assert not [path for path in files if re.search(r'"/[a-z]+/|`/[a-z]+/', path.read_text())]


def test_the_web_is_rendered_once(tmp_path):
    """The corpus as arrays has the pixels of its scenes, and a second call reads them from the folder."""
    first = train_models.read_web(tmp_path, size=12)
    image, depth = world.render(first.scenes[5])
    np.testing.assert_array_equal(first.images[5].permute(1, 2, 0), np.asarray(image))
    np.testing.assert_array_equal(first.depths[5, 0], np.asarray(depth))
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(train_models.read_web(tmp_path, size=12).images, first.images)
    assert file.stat().st_mtime_ns == written


def test_batches_are_noised_as_the_scheduler_says(tmp_path):
    """z_t is sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps of the row's latents; a tenth of the captions is empty."""
    web = train_models.read_web(tmp_path, size=12)
    tokenizer = train_models.make_tokenizer(web.captions)
    mean = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 4, 16, 16)
    batches = train_models.NoisyBatches(web, torch.stack([mean, torch.zeros_like(mean)]), tokenizer, device="cpu")
    rows, z_t, t, eps, ids = batches(2000, stable_generator(0, "test"))
    abar = batches.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(z_t, abar.sqrt() * mean[rows] + (1 - abar).sqrt() * eps)
    empty = (ids == batches.empty).all(dim=1)
    assert 0.07 < empty.float().mean() < 0.13
    assert torch.equal(ids[~empty], batches.ids[rows[~empty]])
    assert t.min() == 0 and t.max() == 999


def test_the_tokenizer_reads_the_world_in_words_and_anything_else_in_letters():
    """A caption is a token a word; of a text unlike the captions no letter is lost."""
    captions = [text for _, text, _ in world.web_corpus(3000, seed=0)]
    tokenizer = train_models.make_tokenizer(captions)
    assert len(tokenizer("photo of a green house in veridia").input_ids) == 2 + 7
    text = "a château, 17 cats"
    read = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
    assert read.replace(" ", "") == text.replace(" ", "")


def test_checksums_of_one_part_leave_the_others(tmp_path):
    """Writing the record of a folder replaces that folder's part alone."""
    for folder in ("models", "ccub"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(folder)
        write_checksums(tmp_path / folder, made_by=f"make {folder}")
    (tmp_path / "models" / "file").write_text("new")
    before = json.loads((tmp_path / "checksums.json").read_text())
    write_checksums(tmp_path / "models", made_by="make models")
    after = json.loads((tmp_path / "checksums.json").read_text())
    assert after["ccub"] == before["ccub"] and after["models"] != before["models"]
    assert after["models"]["made_by"] == "make models"
