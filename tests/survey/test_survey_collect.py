"""Answers that participants saved as files."""

import contextlib
import json
import sqlite3

import pytest

import survey_scoft
import surveying
from scoft.errors import DataError
from scoft.survey.schema import ANSWERS_FILE, read_key
from scoft.survey.store import answers, refusals


def lines(*found: dict) -> str:
    return "".join(json.dumps(each) + "\n" for each in found)


def collect(survey, *files):
    survey_scoft.main(["collect", str(survey), *map(str, files)])


def test_files_are_kept_as_posts_are(survey, tmp_path, caplog):
    """Each answer once, whichever files it is in; what is none is told, counted and left out."""
    key = read_key(survey)
    first, second = surveying.answer(key, 0), surveying.answer(key, 1)
    forged = first | {"ranks": {}}
    (tmp_path / "one.jsonl").write_text(lines(first, second))
    (tmp_path / "two.jsonl").write_text(lines(first, forged, surveying.answer(key, survey="0" * 16)) + "torn {\n\n")
    with caplog.at_level("INFO"):
        collect(survey, tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    kept = [surveying.made(each) for each in (first, second)]
    assert sorted(answers(survey), key=lambda each: each.page) == kept
    assert refusals(survey) == {"items": 1, "malformed": 1, "other_survey": 1}
    assert "Of 6 lines: 1 items, 2 kept, 1 known, 1 malformed, 1 other_survey" in caplog.text
    assert "two.jsonl: a line was left out: ranks are of alignment" in caplog.text


def test_a_line_cannot_bring_more_than_an_answer(survey, tmp_path):
    """Not a panel's id behind the answer, nor a huge one."""
    answer = json.dumps(surveying.answer(read_key(survey)))
    (tmp_path / "one.jsonl").write_text(f'{answer}, "panel": "x"\n{answer}{" " * 20_000}\n')
    collect(survey, tmp_path / "one.jsonl")
    assert refusals(survey) == {"too_large": 1} and len(list(answers(survey))) == 1
    with contextlib.closing(sqlite3.connect(survey / ANSWERS_FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM panel").fetchone() == (0,)


def test_files_without_any_answer_are_refused(survey, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no line holds an answer"):
        collect(survey, tmp_path / "blank.jsonl")
    with pytest.raises(DataError, match="gone.jsonl cannot be read"):
        collect(survey, tmp_path / "gone.jsonl")
