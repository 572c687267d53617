"""Writes `checksums.json`, which the training script holds the embedded files against."""

import json
from pathlib import Path

from scoft.files import file_sha256, write_atomically


def write_checksums(folder: Path, *, made_by: str):
    """Record the sha256 of every file under `folder`, and the command that makes them, in `checksums.json` beside it.

    What other commands made stays recorded as it is.
    """
    record = folder.parent / "checksums.json"
    parts = json.loads(record.read_text()) if record.exists() else {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts[folder.name] = {
        "made_by": made_by,
        "sha256": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
    }
    write_atomically(record, json.dumps(parts, indent=2, sort_keys=True) + "\n")
