"""Features are kept."""

import json

import pytest

from evaluation import run
from scoft.evaluate import features


def test_features_are_computed_once_and_in_blocks(copy, words, monkeypatch):
    """Scored again, no picture is embedded; another block size embeds all, never more than a block at once."""
    compute = features.Features.compute
    monkeypatch.setattr(features.Features, "compute", lambda *_: pytest.fail("embedded again"))
    before = (copy / "results.json").read_bytes()
    run("score", copy, words["score"])
    assert (copy / "results.json").read_bytes() == before
    sizes = []

    def counting(self, encoder, block):
        sizes.append(len(block))
        return compute(self, encoder, block)

    monkeypatch.setattr(features.Features, "compute", counting)
    monkeypatch.setattr(features, "BLOCK", 4)
    run("score", copy, words["score"])
    assert max(sizes) == 4
    after = json.loads((copy / "results.json").read_text())["scores"]
    for row, expected in zip(after, json.loads(before)["scores"], strict=True):
        assert row["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6)
