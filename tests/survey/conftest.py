"""Fixtures of the survey's tests."""

import shutil

import pytest

import surveying


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """The folder of pictures of five methods from three prompts."""
    return surveying.draw(tmp_path_factory.mktemp("generated"), prompts=3)


@pytest.fixture(scope="session")
def built(generated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "survey"
    return surveying.build(generated, folder, "--num_pages", 3, "--methods", *surveying.SHOWN)


@pytest.fixture
def survey(built, tmp_path):
    """A survey of three pages that nobody has answered."""
    return shutil.copytree(built, tmp_path / "survey")
