"""The pocket world's CCUB is what its maker's code says, and keeps the dataset contract."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest

import prepare_ccub
from pocket import judge, make_dataset, world
from scoft.cultures import CATEGORIES
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.prepare import clean
from scoft.prepare.caption import Caption
from scoft.prepare.filter import Filter
from scoft.prepare.negatives import DrawNegatives
from scoft.prepare.work import Run


CCUB = Path(make_dataset.__file__).parent / "ccub"


def rows_of(culture: str, split: str) -> datasets.Dataset:
    return datasets.load_dataset("parquet", data_files=str(CCUB / culture / f"{split}-*.parquet"), split="train")


@pytest.mark.parametrize("culture", world.CULTURES)
@pytest.mark.parametrize("split, size", [("train", 150), ("test", 50)])
def test_photographs_and_captions_are_remade_exactly(culture, split, size):
    """The shipped photographs, captions and categories are those of `chosen_rows`, cleaned, byte for byte."""
    shipped = rows_of(culture, split).cast_column("image", datasets.Image(decode=False))
    remade = make_dataset.chosen_rows(culture, split, size=size)
    args = prepare_ccub.parse_args(["--defaults", "pocket", "--culture", culture, "--images", str(CCUB)])
    assert len(shipped) == len(remade) == size
    for row, again in zip(shipped, remade):
        file = io.BytesIO()
        again["picture"].save(file, "WEBP", lossless=True)
        copy = clean.cleaned(file.getvalue(), min_size=args.min_size, jpeg_quality=args.jpeg_quality)
        assert row["image"]["bytes"] == copy.content and row["sha256"] == copy.sha256
        assert row["text"] == again["text"]
        assert CATEGORIES[row["category"]] == again["category"]


@pytest.mark.parametrize("culture", world.CULTURES)
def test_rows_keep_the_contract(culture):
    """Training rows have five naive captions, two of three negatives; test rows have none; captions name the place."""
    train, test = rows_of(culture, "train"), rows_of(culture, "test")
    assert train.features == test.features
    assert train.features["category"].names == list(CATEGORIES)
    assert all(len(set(texts)) == 5 for texts in train["blip_text"])
    counts = [len(images) for images in train.select_columns("negatives")["negatives"]]
    assert max(counts) <= 5 and np.mean([count > 0 for count in counts]) > 0.6
    assert not any(test["negatives"])
    assert all(text.lower().endswith(f"in {culture}") for text in train["text"])
    assert not set(train["sha256"]) & set(test["sha256"])


@pytest.mark.parametrize("culture", world.CULTURES)
def test_its_settings_are_the_worlds_defaults(culture, tmp_path):
    """`prepare_ccub.py --defaults pocket` sets what each shipped summary.json says that it was made with."""
    args = prepare_ccub.parse_args(["--defaults", "pocket", "--culture", culture, "--images", str(CCUB)])
    made = json.loads((CCUB / culture / "summary.json").read_text())["settings"]
    set_now = {name: getattr(args, name) for name in (*clean.TOLD, "seed")}
    run = Run(culture=culture, folder=tmp_path, stages=[], accelerator=None, cache_dir=None)
    for stage, more in ((Caption, {}), (DrawNegatives, {}), (Filter, {"options": {}})):
        set_now |= prepare_ccub.built(stage, args, **more).told(run)
    assert {name: set_now[name] for name in made} == made


def test_the_judge_finds_the_photographs_right_and_the_negatives_wrong():
    """What Veridians chose is right; of what the base model makes of it two of five show the stereotype or more."""
    rows = rows_of("veridia", "train").select(range(0, 150, 3))
    share = judge.rate(rows["image"][:], rows["text"][:])
    assert share["right"] > 0.95
    negatives = [image for images in rows["negatives"][:] for image in images]
    prompts = [text for text, images in zip(rows["text"], rows["negatives"][:]) for _ in images]
    seen = judge.rate(negatives, prompts)
    assert seen["right"] < 0.3 and seen["stereotype"] > 0.4


def test_the_trainer_reads_it_and_lists_the_cultures():
    """`--dataset pocket` is found beside the scripts; an unknown culture is told which there are."""
    source = find_dataset("pocket", culture="ochria")
    rows = read_dataset(source, culture="ochria", needs_blip=True, needs_negatives=True)
    assert len(rows) == 150 and rows.dropped == 0
    with pytest.raises(DataError, match="azuria.*corallia.*ochria.*veridia"):
        read_dataset(source, culture="atlantis", needs_blip=True, needs_negatives=True)
