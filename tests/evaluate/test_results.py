"""results.json, also as somebody else wrote it."""

import json

import pytest

import evaluate_scoft
from evaluation import run, with_results
from scoft.errors import DataError
from scoft.pictures import read_pictures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"culture": "/../../x"}, "Value error, culture is 1 to 64 letters"),
        ({"scores": [{"metric": "kid", "set": "../x"}]}, "scores: 0: set: Input should be 'prompts', 'train'"),
        ({"scores": [{"metric": "kid"}]}, "scores: 0: set: Field required"),
        ({"confidence": "high"}, "confidence: Input should be a valid number"),
        ({"encoders": [1]}, "encoders: Input should be an object"),
    ],
)
def test_scores_that_somebody_else_wrote_are_held_against_their_kind(tmp_path, change, message):
    """What becomes names of files and text of a page is refused with its place and the remedy."""
    folder = with_results(tmp_path / "x", "korea", {"base": 40}, **change)
    with pytest.raises(DataError, match=f"results.json is not as it was written: .*{message}.*Score the folder"):
        run("report", folder, [])
    assert {file.name for file in folder.iterdir()} == {"results.json", "manifest.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == {"x"}


@pytest.mark.parametrize("method", ["../../x", "a/b", "m@1/../..", "", "@1"])
def test_methods_that_would_lead_out_of_the_folder(tmp_path, method):
    folder = with_results(tmp_path / "x", "korea", {method: 40})
    with pytest.raises(DataError, match="results.json is not as it was written: scores: 0: Value error, .*method is"):
        run("report", folder, [])
    row = json.loads((folder / "manifest.jsonl").read_text()) | {"method": method}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="manifest.jsonl.* is not as it was written: Value error, .*method is"):
        read_pictures(folder)


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(DataError, match="results.json cannot be read .* Score the folder: it is the stage before"):
        evaluate_scoft.main(["report", str(tmp_path)])
