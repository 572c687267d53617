"""Scores by the true command line, with the pocket world's CLIP: right numbers, or the reason why there are none."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate_scoft
from evaluation import CLIP, METRICS, noise, rows_of, run
from scoft.errors import DataError
from scoft.evaluate import formulas
from scoft.evaluate.features import Features
from scoft.evaluate.metrics import METRICS as ROWS
from scoft.evaluate.results import Count, read_results
from scoft.evaluate.sources import picture_sources
from scoft.pictures import read_pictures


def test_every_metric_of_every_method_has_its_number_and_interval(done):
    """results.json has all that was asked for, of all sets it is of, with intervals, and differences that pair up."""
    results = read_results(done)
    found = {metric.partition("/")[0] for metric, _, _ in results.estimates}
    assert found == set(METRICS)
    for method in ("base", "m", "m@1", "m@2"):
        for metric in set(METRICS) - {"judge"}:
            for name in ROWS[metric].sets:
                estimate = results.estimates[metric, name, method]
                assert estimate.low <= estimate.value <= estimate.high and estimate.n == 6
    judged = {metric for metric, _, _ in results.estimates if "/" in metric}
    assert judged == {"judge/bright", "judge/house", "judge/house_log_odds"}
    assert results.estimates["judge/house", "prompts", "m"].value == 0.5
    bright = results.estimates["judge/bright", "prompts", "m"].value
    assert results.estimates["judge/house_log_odds", "prompts", "m"].value == pytest.approx(5.5 + bright)
    for row in results.differences:
        assert (row.method, row.to) == ("m", "base")
        pair = [results.estimates[row.metric, row.set, method] for method in ("m", "base")]
        assert row.value == pytest.approx(pair[0].value - pair[1].value)
    assert results.counts["m/train"] == Count(pictures=6, blank=0)
    (encoder,) = results.encoders.values()
    assert re.fullmatch("[0-9a-f]{64}", encoder.sha256) and encoder.place == "clip"


def test_clip_score_is_its_definition_by_transformers(done):
    """2.5 max(cos, 0), by CLIP's own forward pass of picture and prompt, averaged."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(CLIP).eval(), CLIPProcessor.from_pretrained(CLIP)
    cosines = []
    for row in rows_of(done):
        if row["method"] == "m" and row["set"] == "prompts":
            image = Image.open(done / row["file"]).convert("RGB")
            inputs = processor(text=[row["prompt"]], images=[image], return_tensors="pt", padding=True)
            with torch.no_grad():
                cosines.append(float(model(**inputs).logits_per_image / model.logit_scale.exp()))
    results = read_results(done)
    assert results.estimates["clip_cosine", "prompts", "m"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    expected = np.mean([2.5 * max(cosine, 0) for cosine in cosines])
    assert results.estimates["clip_score", "prompts", "m"].value == pytest.approx(expected, abs=1e-5)


def test_kid_is_to_the_test_photographs(done, words):
    """KID compares with the 7 photographs of the test split, and with none of the training photographs."""
    args = evaluate_scoft.parse_args(["score", str(done), *words["score"]])
    features = Features(done / "features", evaluate_scoft.encoders_of(args), batch_size=16)
    shown = [p for p in read_pictures(done) if (p.method, p.set) == ("m", "prompts")]
    x = features.of("clip", picture_sources(done, shown))
    y = features.of("clip", evaluate_scoft.photographs_of(args, general=None).of("test"))
    assert len(y) == 7
    found = read_results(done).estimates["kid", "prompts", "m"]
    assert found.value == pytest.approx(1000 * formulas.kid(x, y))


def test_blank_pictures_are_counted_and_left_out(copy, words):
    """A black square of the safety checker is in the counts and in no number."""
    rows = rows_of(copy)
    blank = next(row for row in rows if row["method"] == "m" and row["set"] == "prompts")
    blank["blank"] = True
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"(?s)cannot be all numbers of .*\n  div: m, set prompts.*take --metrics kid clip_score"
    ):
        run("score", copy, words["score"])
    run("score", copy, [*words["score"], "--metrics", "kid"])
    results = read_results(copy)
    assert results.counts["m/prompts"] == Count(pictures=6, blank=1)
    assert results.estimates["kid", "prompts", "m"].n == 5 and results.estimates["kid", "prompts", "base"].n == 6


def spoil(folder: Path, how: str):
    rows = rows_of(folder)
    mine = [row for row in rows if row["method"] == "m" and row["set"] == "prompts"]
    if how == "missing":
        (folder / mine[0]["file"]).unlink()
    elif how == "torn":
        (folder / mine[0]["file"]).write_bytes((folder / mine[0]["file"]).read_bytes()[:40])
    elif how == "sizes":
        Image.radial_gradient("L").resize((8, 8)).save(folder / mine[0]["file"])
    elif how == "prompts":
        mine[0]["prompt"] = "another"
    elif how == "guidance":
        mine[0]["guidance"] = 9.0
    elif how == "loras":
        mine[0]["lora_sha256"] = "0" * 64
    elif how == "sets":
        rows = [row for row in rows if row["method"] != "m" or row["set"] != "test"]
    elif how == "blank":
        for row in mine[1:]:
            row["blank"] = True
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if how == "none":
        (folder / "manifest.jsonl").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "has no manifest.jsonl of pictures; generate them: it is the stage before"),
        ("missing", r"prompts-000-000.png of the manifest cannot be read"),
        ("sizes", r"different sizes cannot be compared: .*8 x 8"),
        ("prompts", "the set prompts of .* has other prompts or pictures than that of"),
        ("torn", r"prompts-000-000.png of the manifest cannot be read"),
        ("guidance", r"pictures of different guidance cannot be compared: 4.5 \(.*\), 9.0 \(m\)"),
        ("loras", "the pictures of m are of more than one LoRA"),
        ("sets", "the set test of m has other prompts or pictures than that of base"),
        ("blank", "the set prompts of m has 1 pictures that are not blank"),
    ],
)
def test_pictures_that_cannot_be_scored_are_named(copy, words, how, message):
    spoil(copy, how)
    with pytest.raises(DataError, match=message):
        run("score", copy, words["score"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--features inception --metrics kid",
            "inception cannot be loaded: its weights are never downloaded. Fetch https://.*/weights-inception-2015-12-05-"
            "6726825d.pth .*sha256 6726825d0af5f729.*--encoder inception=FILE",
        ),
        ("--metrics kid dino", "the encoder dino cannot be loaded"),
        ("--neighbours 99 --metrics precision", "PRDC: got k = 99, 6 pictures"),
        ("--encoder clip=/nowhere --metrics clip_score", "the encoder clip cannot be loaded"),
    ],
)
def test_what_is_asked_for_and_impossible_is_an_error(copy, words, hub, monkeypatch, flags, message):
    """A metric without its encoder, or without enough pictures, stops the scoring before anything is embedded."""
    monkeypatch.setattr(Features, "of", lambda *_: pytest.fail("worked in vain"))
    base = words["score"][: words["score"].index("--neighbours")]
    with pytest.raises(DataError, match=message):
        run("score", copy, [*base, *flags.split()])


def test_kid_of_general_photographs_is_of_general_prompts(copy, words, tmp_path):
    """The paper's is the same for every culture: prompts that name none, against a folder; only pictures are read."""
    general = tmp_path / "general"
    general.mkdir()
    for i, picture in enumerate(noise(6)):
        picture.save(general / f"{i}{('.png', '.TIF')[i % 2]}")
    (general / "notes.txt").write_text("no picture")
    flags = [*words["score"], "--metrics", "kid_general", "--general_reference", str(general)]
    run("score", copy, flags)
    results = read_results(copy)
    assert {(metric, of) for metric, of, _ in results.estimates} == {("kid_general", "general")}
    args = evaluate_scoft.parse_args(["score", str(copy), *flags])
    features = Features(copy / "features", evaluate_scoft.encoders_of(args), batch_size=16)
    shown = [p for p in read_pictures(copy) if (p.method, p.set) == ("m", "general")]
    x = features.of("clip", picture_sources(copy, shown))
    y = features.of("clip", evaluate_scoft.photographs_of(args, general=general).of("general"))
    assert len(y) == 6
    expected = 1000 * formulas.kid(x, y)
    assert results.estimates["kid_general", "general", "m"].value == pytest.approx(expected)
    os.mkfifo(general / "fifo.png")
    with pytest.raises(DataError, match="--general_reference: .*fifo.png is not a regular file"):
        run("score", copy, flags)


def test_another_culture_than_was_drawn_is_an_error(copy, words):
    flags = [word.replace("veridia", "ochria") if word == "veridia" else word for word in words["score"]]
    with pytest.raises(DataError, match="--culture ochria: the pictures of .* are of veridia"):
        run("score", copy, flags)


def test_a_metric_of_a_set_that_was_not_drawn_is_an_error(copy, words):
    rows = [row for row in rows_of(copy) if row["set"] == "prompts"]
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="--metrics clip_i is of the set train, but .* has pictures of prompts alone"):
        run("score", copy, words["score"])
