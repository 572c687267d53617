"""The page, its tables and its figures."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import evaluate_scoft
from evaluation import run, with_results
from scoft.errors import DataError
from scoft.evaluate import figures
from scoft.evaluate.results import read_results
from scoft.evaluate.tables import number_text


def test_the_report_shows_what_was_scored(done):
    """Numbers stand in the tables with their intervals, every figure is there, and the page has no gap."""
    text = (done / "report.md").read_text()
    results = read_results(done)
    for metric, name, method in (("kid", "prompts", "m"), ("div", "test", "base"), ("vendi", "general", "m")):
        cell = number_text(results.estimates[metric, name, method], metric)
        assert cell.replace("[", "\\[").replace("]", "\\]") in text
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert "pictures-veridia.png" in figures and "updates-veridia.png" in figures
    for figure in figures:
        assert np.ptp(np.asarray(Image.open(done / figure))) > 0
    assert (
        "| Veridia | m | KID" in text
        and "| | base | m |" in text.replace("|  |", "| |")
        and "nan" not in text
        and "None" not in text
    )
    assert "photographs/nearest-train-m.png" in figures and not any("@" in figure for figure in figures)
    assert (done / "photographs/nearest-train-m@1.png").is_file()  # of checkpoints they are not on the page


def test_sheets_with_the_datasets_photographs_are_for_one_user(copy, tmp_path):
    """In folders that nobody else may look into, the report's too; one that cannot be read is named."""
    flags = ["--output", str(tmp_path / "out")]
    run("report", copy, flags)
    for folder in (copy, tmp_path / "out"):
        sheets = {file.relative_to(folder).parent.name for file in folder.rglob("nearest-*.png")}
        assert sheets == {"photographs"} and (folder / "photographs").stat().st_mode & 0o777 == 0o700
    assert "(photographs/nearest-prompts-m.png)" in (tmp_path / "out/report.md").read_text()
    sheet = copy / "photographs/nearest-prompts-m.png"
    sheet.rename(tmp_path / "elsewhere.png")
    sheet.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="nearest-prompts-m.png cannot be read: lies outside of"):
        run("report", copy, flags)


def test_a_report_writes_through_no_link(copy, tmp_path):
    """Names that are links in a folder that somebody else prepared give way to the files."""
    (tmp_path / "mine").write_text("mine")
    for name in ("report.md", "report.md.partial", "pictures-veridia.png", "updates-veridia.png"):
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(tmp_path / "mine")
    run("report", copy, [])
    assert (tmp_path / "mine").read_text() == "mine" and "# Evaluation" in (copy / "report.md").read_text()


def test_the_report_says_when_to_stop(tmp_path, monkeypatch):
    """Of a run's checkpoints the one of the least KID is named, with those whose difference from it may be 0."""
    kid = {"base": 40, "m@100": 30, "m@200": 20, "m@300": 20.01, "m@400": 25}
    folder, drawn = with_results(tmp_path / "korea", "korea", kid), []
    curves = figures.curves
    monkeypatch.setattr(figures, "curves", lambda panels, **more: drawn.append(panels) or curves(panels, **more))
    evaluate_scoft.main(["report", str(folder)])
    text = (folder / "report.md").read_text()
    (lines,) = drawn[0].values()
    assert [step for step, *_ in lines["m"]] == [0, 100, 200, 300, 400]  # from the base model on
    assert "Differences" not in text
    row = next(line for line in text.splitlines() if line.startswith("| Korea | m |"))
    assert row.split("|")[4:7:2] == [" 200 ", " 300 "]
    assert (folder / "updates-korea.png").is_file()


def test_one_verdict_over_the_metrics_that_are_named(tmp_path):
    """The fewest updates that are level with the best in all; where there are none, who wants what."""
    kid = {"base": 40, "m@100": 20.02, "m@200": 20, "m@300": 20.01}
    folder = with_results(tmp_path / "korea", "korea", kid)
    results = json.loads((folder / "results.json").read_text())
    kids = results["scores"]

    def page(right: dict[str, float], *stop_by: str) -> str:
        rates = [row | {"metric": "judge/right", "value": right[row["method"]]} for row in kids]
        for row in rates:
            value = row["value"]
            row |= {"low": value - 0.02, "high": value + 0.02}
            row["replicates"] = {"seeds": [[seed, value + 0.001 * (-1) ** seed] for seed in range(4)]}
        (folder / "results.json").write_text(json.dumps(results | {"scores": kids + rates}))
        evaluate_scoft.main(["report", str(folder), "--stop_by", *stop_by])
        return (folder / "report.md").read_text()

    later = {"base": 0.1, "m@100": 0.2, "m@200": 0.4, "m@300": 0.4}
    assert "| Korea | m | **100** | the fewest that cannot be told" in page(later, "kid")
    assert "| Korea | m | **200** | the fewest that cannot be told" in page(later, "kid", "judge/right")
    never = {"base": 0.4, "m@100": 0.2, "m@200": 0.2, "m@300": 0.2}
    text = page(never, "judge/right", "kid:prompts")
    assert re.search(
        r"no answer \| judge: right ↓?.* wants 0; KID .* wants 100, 200, 300 \|", text.replace("\xa0", " ")
    )
    assert "| Korea | m | **0** |" in page(never, "judge/right")  # the base model, where training did not help
    with pytest.raises(DataError, match="--stop_by div:train: .* no checkpoints of m scored by it .* kid:prompts"):
        evaluate_scoft.main(["report", str(folder), "--stop_by", "div:train"])
    of_another_run = kids[-1] | {"method": "mpc@100", "metric": "judge/right"}
    (folder / "results.json").write_text(json.dumps(results | {"scores": [*kids, of_another_run]}))
    with pytest.raises(
        DataError, match="--stop_by kid:prompts: .* no checkpoints of mpc scored by it .* judge/right:prompts"
    ):
        evaluate_scoft.main(["report", str(folder), "--stop_by", "kid"])
    bare = with_results(tmp_path / "china", "china", {"base": 30, "m": 20})
    with pytest.raises(DataError, match="none at all: draw them with `generate --checkpoints`"):
        evaluate_scoft.main(["report", str(bare), "--stop_by", "kid"])


@pytest.mark.parametrize(
    ("word", "said"), [("kidd", "METRIC of kid, kid_general"), ("kid:train", "kid is of prompts; got 'kid:train'")]
)
def test_a_verdict_by_no_metric_is_refused(word, said, capsys):
    with pytest.raises(SystemExit):
        evaluate_scoft.main(["report", "folder", "--stop_by", word])
    assert said in capsys.readouterr().err


def test_several_cultures_have_their_mean(tmp_path):
    """Two folders make the mean over cultures and a table of each."""
    folders = [
        with_results(tmp_path / culture, culture, {"base": base, "mpc": mpc})
        for culture, base, mpc in (("korea", 30, 20), ("china", 20, 14))
    ]
    evaluate_scoft.main(["report", *map(str, folders), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert re.search(r"Table 1.*\n\n\|  \| base \| mpc \|\n.*\n\| KID × 10³ .* ↓ \| 25\.00 .*\| 17\.00 ", text)
    assert "### Korea" in text and "### China" in text
    assert re.search(r"Mean over cultures\n\n\|  \| mpc - base \|\n.*\n\| KID .* \| \*\*-8\.00 ", text)
    with pytest.raises(DataError, match="is not the only folder of korea"):
        evaluate_scoft.main(["report", str(folders[0]), str(shutil.copytree(folders[0], tmp_path / "again"))])
    other = json.loads((folders[1] / "results.json").read_text())
    for change, message in (
        ({"neighbours": 3}, "neighbours 3 in one, 5 in"),
        ({"scores": other["scores"][:1]}, "no kid of mpc"),
    ):
        (folders[1] / "results.json").write_text(json.dumps(other | change))
        with pytest.raises(DataError, match=message):
            evaluate_scoft.main(["report", *map(str, folders)])
    for row in other["scores"]:
        row["replicates"]["seeds"] = row["replicates"]["seeds"][:3]
    (folders[1] / "results.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="have no mean: .*with the same flags"):
        evaluate_scoft.main(["report", *map(str, folders), "--output", str(tmp_path / "out")])
