"""benchmarks/survey.py: every answer goes through the real server, and what is lost ends the run."""

import json

import pytest

from benchmarks import survey


def test_all_answers_are_counted(tmp_path):
    (tmp_path / "results.json").write_text('{"runs": ["an earlier run"]}')
    flags = ["--participants", "12", "--pages", "2", "--clients", "3"]
    survey.main([*flags, "--output", str(tmp_path / "results.json")])
    earlier, run = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert earlier == "an earlier run"
    assert (run["participants"], run["pages"], run["answers_kept"]) == (12, 2, 24)
    assert run["answers_per_second"] == pytest.approx(24 / run["seconds"], rel=1e-2)
    assert 10 < run["server_peak_memory_mib"] < 500


def test_an_answer_that_is_lost_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "answers", lambda folder: [])
    with pytest.raises(SystemExit, match="4 answers were acknowledged, 0 are there"):
        survey.measure(tmp_path, participants=2, pages=2, clients=1)
