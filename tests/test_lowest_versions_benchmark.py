"""benchmarks/lowest_versions.py, and which Python is asked for: one answer everywhere."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import scoft
from benchmarks import lowest_versions


ROOT = Path(lowest_versions.__file__).resolve().parent.parent


def test_the_lowest_version_is_read_of_every_line():
    """Comments, other files and blank lines are none; an upper bound stays out; a line without a bound is named."""
    lines = ["# why", "-r other.txt", "", "torch>=2.8  # and more", "idna>=3.10,<4"]
    assert lowest_versions.lowest(lines) == {"torch": "2.8", "idna": "3.10"}
    for line in ("torch", "torch==2.8", "torch<3"):
        with pytest.raises(SystemExit, match=f"{line!r} names no lowest version; write torch>="):
            lowest_versions.lowest([line])


def test_every_requirement_has_a_lowest_version():
    """The files as they are."""
    for file in lowest_versions.FILES:
        assert len(lowest_versions.lowest(file.read_text().splitlines())) >= 8


def test_outcomes_are_counted_and_failures_named(tmp_path):
    """Of pytest's own report: an error in a fixture is a failure, and what is skipped is no pass."""
    (tmp_path / "report.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.a" name="one"/>'
        '<testcase classname="tests.a" name="two"><failure message="x"/></testcase>'
        '<testcase classname="tests.b" name="three"><error message="x"/></testcase>'
        '<testcase classname="tests.b" name="four"><skipped message="x"/></testcase>'
        "</testsuite></testsuites>"
    )
    found = lowest_versions.outcomes(tmp_path / "report.xml")
    assert found == {"passed": 1, "failed": 2, "skipped": 1, "failures": ["tests.a::two", "tests.b::three"]}


def test_an_older_python_is_told(monkeypatch):
    """Before numpy is missed, in a line with the version that runs."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later"):
        importlib.reload(scoft)


def test_python_versions_agree():
    """pyproject.toml, README.md and the workflow, which tests the lowest and runs .ci/run."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    lowest = re.search(r"Python (3\.\d+) or later", (ROOT / "README.md").read_text())[1]
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    assert asked == f">={lowest}" and job["strategy"]["matrix"]["python"][0] == lowest
    assert job["steps"][-1] == {"run": "bash .ci/run"}
