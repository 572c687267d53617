"""Fixtures shared by the tests of preparing."""

import pytest

from loopback import Clock


@pytest.fixture
def clock():
    return Clock()
