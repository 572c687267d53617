"""The stage filter: what came out like its photograph is left out, and said to be."""

import numpy as np
import pytest
from PIL import Image

from preparing import prepare, rows_of
from scoft.distances import load_distance
from scoft.files import Ledger
from scoft.prepare.filter import distances_to
from scoft.prepare.photograph import read_photographs


pytestmark = pytest.mark.usefixtures("threads_given_back")


def test_negatives_nearer_than_the_threshold_are_dropped_and_recorded(copy, flags, monkeypatch):
    """Half of the negatives lie below the median: they leave the dataset, and stay in the manifest, struck through
    in the contact sheet and counted in the card. Nothing is drawn or measured anew.
    """
    distances = [d for entry in Ledger(copy / "korea" / "distances.jsonl").read().values() for d in entry["distances"]]
    threshold = sorted(distances)[6]
    false = sum(distance < threshold for distance in distances)
    assert len(distances) == 12 and 0 < false < 12
    monkeypatch.setattr("scoft.prepare.filter.load_distance", None)
    prepare(flags, output=copy, stages="filter,write", false_negative_threshold=threshold)
    rows = rows_of(copy / "korea")
    photographs = {photograph.sha256: photograph for photograph in read_photographs(copy / "korea")}
    assert sum(len(row["negatives"]) for row in rows) == 12 - false
    for row in rows:
        found = photographs[row["sha256"]].negatives
        assert len(found) == 2 and len(row["negatives"]) == sum(distance >= threshold for distance in found.values())
        assert all((copy / "korea" / "negatives" / f"{name}.jpg").exists() for name in found)
    assert f"| too near the photograph, left out | {false} |" in (copy / "README.md").read_text()
    with Image.open(copy / "korea" / "contact_sheet-1.png") as sheet:
        assert ((255, 0, 0) == np.asarray(sheet)).all(-1).any()
    assert (copy / "korea" / "histogram.png").exists()


def test_dreamsim_filters_by_its_own_package(copy, flags, tiny_dreamsim):
    """The stage filter measures with dreamsim's own PerceptualModel; the distances come from it."""
    prepare(
        flags,
        output=copy,
        stages="filter,write",
        filter_distance="dreamsim",
        filter_model=tiny_dreamsim,
        dreamsim_type="open_clip_vitb32",
    )
    options = {"model_name_or_path": str(tiny_dreamsim), "dreamsim_type": "open_clip_vitb32"}
    distance = load_distance("dreamsim", device="cpu", **options)
    photograph = next(p for p in read_photographs(copy / "korea") if p.negatives)
    with Image.open(copy / "korea" / photograph.file) as image:
        image = image.convert("RGB")
    negatives = [
        Image.open(copy / "korea" / "negatives" / f"{name}.jpg").convert("RGB") for name in photograph.negatives
    ]
    expected = distances_to(image, negatives, distance=distance)
    assert list(photograph.negatives.values()) == pytest.approx(expected, abs=2e-4)
