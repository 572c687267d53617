"""The paper's printed numbers."""

import json

import pytest

from evaluation import run, with_results
from scoft.evaluate import encoders
from scoft.evaluate.paper import CULTURES, paper_means


def test_table_1_of_the_paper_is_the_mean_of_its_table_4():
    """The unweighted mean over the five cultures of the printed numbers gives the printed ones, to their digits."""
    printed = {
        "base": (30.355, 4.396, 0.813), "m": (22.643, 4.711, 0.802),
        "mp": (21.360, 4.936, 0.800), "mpc": (19.621, 4.819, 0.799),
    }  # fmt: skip
    found = paper_means(CULTURES)
    for method, numbers in printed.items():
        for metric, number in zip(("kid", "kid_general", "clip_score"), numbers):
            assert found[metric, method].value == pytest.approx(number, abs=1.1e-3), (method, metric)


@pytest.mark.parametrize(
    ("culture", "sha256", "place", "shown"),
    [
        ("korea", encoders.InceptionEncoder.usual, encoders.ClipEncoder.default, {"28.06", "0.844"}),
        ("korea", "0" * 64, encoders.ClipEncoder.default, {"0.844"}),
        ("korea", encoders.InceptionEncoder.usual, "clip", {"28.06"}),
        ("korea", "0" * 64, "clip", set()),
        ("veridia", encoders.InceptionEncoder.usual, encoders.ClipEncoder.default, set()),
    ],
)
def test_the_papers_numbers_stand_beside_those_of_the_same_encoders_alone(tmp_path, culture, sha256, place, shown):
    """Those of its culture, by metric; for another Inception or CLIP, or another culture, there are none."""
    encoders = {"inception": {"place": "x", "sha256": sha256}, "clip": {"place": place, "sha256": "0" * 64}}
    folder = with_results(tmp_path / "x", culture, {"base": 40}, features="inception", encoders=encoders)
    record = json.loads((folder / "results.json").read_text())
    record["scores"].append(record["scores"][0] | {"metric": "clip_score"})
    (folder / "results.json").write_text(json.dumps(record))
    run("report", folder, [])
    text = (folder / "report.md").read_text()
    assert {number for number in ("28.06", "0.844") if number in text} == shown
    assert ("The paper's Table 4" in text) == bool(shown)
