"""The whole analysis, from rows to a page: at the paper's size, renamed, and of what is hardly there."""

import dataclasses
import json
import re
import time
from pathlib import Path

import markdown_it
import numpy as np
import pytest
from PIL import Image

import survey_scoft
from respondents import METHODS, PAPER, key_of, responses
from scoft.errors import DataError
from scoft.survey.analysis import analyze
from scoft.survey.page import report
from scoft.survey.problems import Problems
from scoft.survey.rankings import rankings_of
from scoft.survey.responses import csv_of, write_responses
from scoft.survey.schema import KEY_FILE, Response
from scoft.survey.simulate import simulated_answers
from scoft.survey.store import Store


FIGURES = {"violins.png", "rank_counts.png", "consensus.png", "noisy_bradley_terry.png", "covariance.png"}


def reported(rows: list[Response], output: Path) -> tuple[str, dict]:
    """The page and the record."""
    report(rows, Problems(), output)
    return (output / "analysis.md").read_text(), json.loads((output / "analysis.json").read_text())


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> tuple[str, dict, Path, float]:
    """50 participants, 750 pages of answers, and the seconds of CPU that their analysis took."""
    output = tmp_path_factory.mktemp("paper") / "analysis"
    rows = responses(PAPER, pages=15)
    begun = time.process_time()
    return *reported(rows, output), output, time.process_time() - begun


def test_the_papers_size_is_analysed_whole_and_within_seconds(paper):
    page, record, output, seconds = paper
    assert record["methods"] == ["mpc", "mp", "m", "base"]
    assert record["counts"]["participants"] == PAPER and record["counts"]["rankings"] == 3000
    assert all(each["value"] is not None for each in record["noisy_bradley_terry_as_in_the_paper"].values())
    assert seconds < 120  # some 15 on a core of its own


def test_the_page_begins_in_plain_words_and_shows_all(paper):
    page, record, output, _ = paper
    head = page.split("\n## ")[0]
    assert "50 participants (13 of Korea, 11 of China" in head
    assert "By mean rank, from the best to the last: mpc 1." in head
    assert "Other participants would hardly have said otherwise." in head
    assert "The consensus of the participants (MMSR and votes) is mpc, mp, m, base." in head
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(page)
    assert {part.partition('"')[0] for part in html.split('<img src="')[1:]} == FIGURES
    assert html.count("<table>") == 2 + (2 + 5 + 1) + 5 + 3 + 1
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)
    for heading in ("Mean ranks", "Which of two is better", "Scores", "Do participants agree?", "How it was measured"):
        assert f"\n## {heading}" in page
    assert "| mpc | 1.83 | 1.84 | 1.91 | 1.78 |" in page  # the paper's


def test_figures_are_pictures_of_something(paper):
    _, _, output, _ = paper
    for name in FIGURES:
        pixels = np.asarray(Image.open(output / name).convert("L"))
        assert min(pixels.shape) > 250 and pixels.std() > 10
    assert {file.suffix for file in output.iterdir()} == {".png", ".md", ".json", ""}


def test_tables_have_the_numbers_of_the_record(paper):
    page, record, _, _ = paper
    number = record["mean_ranks"]["mean_of_cultures"]["culture"]["mp"]
    text = f"{number['value']:.2f} \\[{number['low']:.2f}, {number['high']:.2f}\\]"
    rows = [line.split("|") for line in page.split("Less is better")[1].splitlines() if line.startswith("| mp | ")]
    assert rows[0][4].strip() == text  # behind all items and alignment


def test_renaming_methods_changes_nothing():
    """But the names: also where the new ones sort otherwise."""
    names = dict(zip(METHODS, ("zeta", "alpha", "omega", "beta")))
    rows = responses({"korea": 6, "china": 5}, pages=3)
    renamed = [dataclasses.replace(row, method=names[row.method]) for row in rows]
    before, after = (dataclasses.asdict(analyze(rankings_of(each), {}, draws=200)) for each in (rows, renamed))
    text = json.dumps(after, ensure_ascii=False)
    for old, new in names.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    assert json.loads(text) == json.loads(json.dumps(before))


def test_flagged_answers_are_kept_and_told_with_and_without(tmp_path):
    rows = responses({"korea": 8}, pages=4)
    rows = [
        dataclasses.replace(row, flags="fast", rank=5 - row.rank) if row.participant.endswith("-0") else row
        for row in rows
    ]
    page, record = reported(rows, tmp_path)
    assert record["counts"]["flagged"] == {"straight_lined": 0, "fast": 16, "any": 16}
    told = {name: each["mpc"]["value"] for name, each in record["without_flagged"].items()}
    assert told["nothing"] == told["straight_lined"] > told["fast"] == told["any"]
    assert told["nothing"] == record["mean_ranks"]["mean_of_cultures"]["all"]["mpc"]["value"]


def test_a_minority_is_warned_of(tmp_path):
    skills = {"base": 0.0, "m": 0.0, "mp": 0.0, "mpc": 2.0}
    rows = responses({"korea": 12}, pages=8, skills=skills)
    rows += responses({"korea": 5}, pages=8, skills={**skills, "mpc": 0.0, "m": 2.0}, seed=1)
    page, record = reported(rows, tmp_path)
    assert record["minorities"]["korea"]["prefers"] == "m"
    assert "the mean hides a minority. 5 participants rank m best" in page.split("\n## ")[0]


# ---------------------------------------------------------------------------------------------------------------------
# Of what is hardly there
# ---------------------------------------------------------------------------------------------------------------------


def test_one_participant_alone_has_numbers_without_intervals(tmp_path):
    page, record = reported(responses({"korea": 1}, pages=3), tmp_path)
    assert all(each["value"] and each["low"] is None for each in record["mean_ranks"]["pooled"]["all"].values())
    assert record["agreement"]["korea"]["all"] is None
    assert "korea has one participant" in page and "so few participants cannot say" in page


def test_all_ties_are_said(tmp_path):
    rows = [dataclasses.replace(row, rank=1) for row in responses({"korea": 4}, pages=2)]
    page, record = reported(rows, tmp_path)
    assert "All rankings are ties" in page and record["counts"]["tied_pairs"] == 4 * 2 * 4 * 6
    assert record["win_rates"]["all"]["base"]["m"]["value"] == 0.5
    assert record["plackett_luce"]["overall"]["all"]["mpc"]["value"] is None


def test_a_method_that_was_never_shown_or_never_ranked_is_said(tmp_path):
    rows = responses({"korea": 4}, pages=2) + responses({"china": 4}, pages=2, skills={"base": 0.0, "m": 0.5})
    rows = [
        dataclasses.replace(row, rank=None) if (row.culture, row.method) == ("korea", "mp") else row for row in rows
    ]
    page, record = reported(rows, tmp_path)
    assert "korea: mp was never ranked." in page and "china: mpc was never ranked." not in page
    assert "china: mp, mpc was never ranked." in page or "china: mpc, mp was never ranked." in page
    assert record["mean_ranks"]["pooled"]["all"]["mp"]["value"] is None
    assert record["counts"]["with_gaps"] == 4 * 2 * 4 and record["counts"]["blank"] == 0


def test_one_page_one_item_and_blank_answers(tmp_path):
    rows = [row for row in responses({"korea": 3}, pages=1) if row.item == "culture"]
    rows += [dataclasses.replace(row, participant="blank", rank=None) for row in rows[:4]]
    page, record = reported(rows, tmp_path)
    assert record["counts"]["blank"] == 1 and list(record["mean_ranks"]["pooled"]) == ["all", "culture"]


def test_nothing_to_compare_is_refused(tmp_path):
    rows = responses({"korea": 2}, pages=1)
    for few in ([row for row in rows if row.method == "m"], [dataclasses.replace(row, rank=None) for row in rows]):
        with pytest.raises(DataError, match="needs ranks of at least 2 methods"):
            report(few, Problems(), tmp_path)


def test_names_of_others_break_no_page(tmp_path):
    names = dict(zip(METHODS, ("a_b_c", "x@100", "한국", "n-1")))
    rows = [
        dataclasses.replace(row, culture="कोरिया", method=names[row.method])
        for row in responses({"korea": 4}, pages=2)
    ]
    page, _ = reported(rows, tmp_path)
    assert "a\\_b\\_c" in page and "x\\@100" in page and "한국" in page


# ---------------------------------------------------------------------------------------------------------------------
# The door
# ---------------------------------------------------------------------------------------------------------------------


def test_a_survey_is_exported_and_analysed_from_the_command_line(tmp_path, monkeypatch):
    folders = []
    for culture in ("korea", "china"):
        key = key_of(culture, pages=2)
        folders.append(tmp_path / culture)
        folders[-1].mkdir()
        (folders[-1] / KEY_FILE).write_text(json.dumps(dataclasses.asdict(key)))
        quality = {name: float(len(shown.method)) for name, shown in key.pictures.items()}
        with Store(folders[-1]) as store:
            for answer in simulated_answers(key, quality, participants=3, noise=1.0):
                store.keep(answer)
    monkeypatch.chdir(tmp_path)
    survey_scoft.main(["export", *map(str, folders)])
    survey_scoft.main(["analyze", "responses"])
    assert json.loads((tmp_path / "analysis/analysis.json").read_text())["counts"]["rankings"] == 2 * 3 * 2 * 4
    with pytest.raises(DataError, match="is not the only survey of korea"):
        survey_scoft.main(["export", str(folders[0]), str(folders[0])])


def test_a_csv_of_others_is_analysed_with_its_troubles_on_the_page(tmp_path):
    rows = responses({"korea": 4}, pages=2)
    text = csv_of(rows).replace("participant,", "worker,", 1) + "p,korea,0,beauty,0,m,1,,,,\nx,y\n"
    (tmp_path / "theirs.csv").write_text(text)
    argv = [
        "analyze",
        str(tmp_path / "theirs.csv"),
        "--columns",
        "participant=worker",
        "--output",
        str(tmp_path / "out"),
    ]
    survey_scoft.main(argv)
    page = (tmp_path / "out/analysis.md").read_text()
    assert "What could not be used:" in page
    assert "1 unknown items, left out" in page and "1 torn lines, left out: theirs.csv, line" in page


@pytest.mark.parametrize("column", ["participant", "worker=participant", "participant="])
def test_a_column_that_is_none_of_ours_is_refused(column, capsys):
    with pytest.raises(SystemExit):
        survey_scoft.parse_args(["analyze", "x.csv", "--columns", column])
    assert "--columns is OURS=THEIRS with OURS of participant, culture" in capsys.readouterr().err


def test_the_flag_names_the_columns_that_rows_have():
    assert survey_scoft.RESPONSE_COLUMNS == tuple(field.name for field in dataclasses.fields(Response))


def test_rows_of_a_folder_that_export_wrote_are_read_back(tmp_path):
    rows = responses({"korea": 3}, pages=2)
    write_responses(tmp_path / "responses", rows)
    survey_scoft.main(["analyze", str(tmp_path / "responses")])
    assert (tmp_path / "analysis/analysis.md").is_file()
