"""The manifest, a line a photograph."""

import json

import pytest

from preparing import prepare
from scoft.errors import DataError


pytestmark = pytest.mark.usefixtures("threads_given_back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../../x"}, "what names a file is 1 to 64"),
        ({"file": "../../secret.jpg"}, "'../../secret.jpg' is no file of photograph "),
        ({"negatives": {"../../../x": 0.1}}, "what names a file"),
        ({"width": "wide"}, "line 2 .*width: Input should be a valid integer.*--stages fetch"),
        ("[]", "line 2 .*Input should be"),
        ("{torn", "line 2 .*Invalid JSON"),
    ],
)
def test_a_manifest_that_somebody_changed_is_named(copy, flags, change, message):
    """The names in a manifest lead nowhere else, neither for what is read nor for what the deny-list deletes."""
    file = copy / "korea" / "manifest.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change) if isinstance(change, dict) else change
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"manifest.jsonl.* {message}"):
        prepare(flags, output=copy, stages="write")
