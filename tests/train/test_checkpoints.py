"""Checkpoints and their seals; runs that are killed and resumed are the trainer's own tests."""

import pytest

from scoft.errors import DataError
from scoft.train.checkpoints import SEAL_FILE, check_seal


def test_a_seal_of_nothing_is_no_seal(tmp_path):
    """A table without files would hold of any folder."""
    (tmp_path / SEAL_FILE).write_text('{"step": 4, "sha256": {}}')
    with pytest.raises(DataError, match=f"{SEAL_FILE} names no files"):
        check_seal(tmp_path)
