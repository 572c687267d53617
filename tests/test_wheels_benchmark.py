"""benchmarks/wheels.py: what is taken along, without a network."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from benchmarks import wheels


PACKAGES = {
    "ours": ("1.5", ["theirs>=2", "tiny", 'old; python_version < "3.12"', 'more; extra == "all"']),
    "tiny": ("0.1", ["Under_Score"]),
    "under-score": ("7", None),
}


def distribution(name: str):
    try:
        version, requires = PACKAGES[wheels.canonicalize_name(name)]
    except KeyError:
        raise PackageNotFoundError(name) from None
    return SimpleNamespace(version=version, requires=requires)


def carried(*requirements: str, present: dict, python: str = "3.12") -> dict[str, str]:
    return wheels.to_carry(requirements, present, python=python, distribution=distribution)


def test_what_is_needed_at_any_depth_and_not_there_is_taken_along():
    """Markers are those of the machine's Python; what a version of it is not told is trusted."""
    assert carried("ours>=1", present={"theirs": None}) == {"ours": "1.5", "tiny": "0.1", "under-score": "7"}
    assert carried("ours>=1", present={"theirs": "2.1", "tiny": None}) == {"ours": "1.5"}


def test_a_version_that_will_not_do_and_a_package_that_is_not_here_are_said():
    with pytest.raises(SystemExit, match=r"error: theirs>=2 is needed, and the machine has 1.9: leave it out of"):
        carried("ours>=1", present={"theirs": "1.9"})
    with pytest.raises(SystemExit, match="error: theirs is not installed here: pip install -r requirements.txt"):
        carried("ours>=1", present={})
    with pytest.raises(SystemExit, match="error: old is not installed here"):
        carried("ours>=1", present={"theirs": None}, python="3.11")


def test_names_are_read_as_pip_freeze_writes_them():
    lines = ["# why", "", "Torch==2.11.0", "PyYAML", "typing_extensions==4.16.0  # of old"]
    assert wheels.names_of(lines) == {"torch": "2.11.0", "pyyaml": None, "typing-extensions": "4.16.0"}


def test_the_list_that_is_here_is_whole():
    """With the requirements as they are, the wheels that are made of it, and no torch."""
    present = wheels.names_of((wheels.ROOT / "benchmarks/present.txt").read_text().splitlines())
    lines = [line.partition("#")[0].strip() for line in (wheels.ROOT / "requirements.txt").read_text().splitlines()]
    found = wheels.to_carry(filter(None, lines), present, python="3.12")
    assert {"diffusers", "datasets", "dreamsim", "controlnet-aux", "pydantic"} <= found.keys()
    assert not {name for name in found if name.startswith(("torch", "nvidia", "triton", "pyarrow"))}
