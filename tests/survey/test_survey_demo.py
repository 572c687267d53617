"""A survey that can be tried at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

import survey_scoft
import surveying
from pocket import make_pictures
from scoft.errors import DataError
from scoft.pictures import read_pictures
from scoft.survey.schema import read_key
from scoft.survey.store import refusals


METHODS = {"base", "finetune", "m", "mpc"}


def test_the_pictures_that_ship_are_of_four_methods_and_tell_no_machine(tmp_path):
    folder = surveying.ROOT / "pocket/pictures"
    pictures = read_pictures(folder)
    assert {each.method for each in pictures} == METHODS and len(pictures) == 4 * len(
        {each.prompt for each in pictures}
    )
    assert all((folder / each.file).is_file() for each in pictures)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(pictures) + 1
    assert (
        "/tmp" not in (folder / "manifest.jsonl").read_text()
        and "/home" not in (folder / "manifest.jsonl").read_text()
    )
    make_pictures.main([str(folder), "--output", str(tmp_path / "again")])
    assert read_pictures(tmp_path / "again") == pictures


def demo(folder, opened, environment) -> tuple[subprocess.Popen, str]:
    """Its process, and the address that a browser was opened with."""
    opened.unlink(missing_ok=True)
    command = [sys.executable, "survey_scoft.py", "demo", str(folder), "--port", "0"]
    process = subprocess.Popen(command, cwd=surveying.ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if opened.exists() and opened.read_text():
            return process, opened.read_text()
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


def test_a_browser_is_opened_on_a_survey_that_is_made_once(tmp_path):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o700)
    environment = os.environ | {"BROWSER": str(browser)}
    surveys = set()
    for _ in range(2):
        process, address = demo(tmp_path / "demo", opened, environment)
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"Veridia" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        surveys.add(read_key(tmp_path / "demo").survey)
    assert len(surveys) == 1 and refusals(tmp_path / "demo") == {}
    assert {shown.method for shown in read_key(tmp_path / "demo").pictures.values()} == METHODS


def test_simulated_participants_see_what_the_judge_does(tmp_path, capfd):
    """All that they answer arrives on the page, where the base model, whose pictures are stereotypes, is last."""
    words = ["demo", str(tmp_path / "demo"), "--participants", "8", "--noise", "0.3"]
    survey_scoft.main(words)
    with pytest.raises(DataError, match="demo has answers. Name another"):
        survey_scoft.main(words)
    pages = len({shown.page for shown in read_key(tmp_path / "demo").pictures.values()})
    with open(tmp_path / "demo/responses/responses.csv") as file:
        assert sum(1 for _ in file) == 1 + 8 * pages * 4 * len(METHODS)
    page = (tmp_path / "demo/analysis/analysis.md").read_text()
    assert page.startswith("# What people said of the pictures\n\n8 participants")
    order = re.split(", | = ", re.search("The consensus of the participants .* is (.*)[.]", page)[1])
    assert set(order) == METHODS and order[-1] == "base"
    assert json.loads((tmp_path / "demo/analysis/analysis.json").read_text())
    assert "Warning" not in capfd.readouterr().err
