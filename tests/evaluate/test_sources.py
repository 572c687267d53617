"""Pictures and photographs are read from where they may be."""

import json
import os
import shutil

import pytest

from evaluation import rows_of, run
from scoft.errors import DataError
from scoft.pictures import read_pictures


def test_pictures_lie_in_their_folder(copy, words, tmp_path):
    """A row's file is not asked for, and a picture that is a link out of the folder, or a FIFO, is not read."""
    rows = rows_of(copy)
    victim = copy / next(row["file"] for row in rows if row["set"] == "prompts")
    shutil.copy(victim, tmp_path / "secret.png")
    victim.unlink()
    victim.symlink_to(tmp_path / "secret.png")
    for stage, flags in (("score", words["score"]), ("report", [])):
        with pytest.raises(DataError, match=f"{victim.name}.* cannot be read.*lies outside of"):
            run(stage, copy, flags)
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(DataError, match="is not a regular file"):
        run("score", copy, words["score"])
    for row in rows:
        row["file"] = "../secret.png"
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all(picture.file.startswith("images/") for picture in read_pictures(copy))
