"""Surveys of cultures, as one set of responses."""

from collections.abc import Sequence
from pathlib import Path

from scoft.errors import DataError
from scoft.survey.problems import Problems
from scoft.survey.responses import responses_of, write_responses
from scoft.survey.schema import read_key
from scoft.survey.store import answers


def export(folders: Sequence[Path], output: Path):
    """Write the responses of survey folders, one a culture. Raises DataError."""
    keys = [(folder, read_key(folder)) for folder in folders]
    for folder, key in keys:
        if [each.culture for _, each in keys].count(key.culture) > 1:
            raise DataError(f"{folder} is not the only survey of {key.culture}; give one for each culture.")
    problems = Problems()
    rows = [row for folder, key in keys for row in responses_of(answers(folder), key, problems)]
    problems.tell("answers")
    write_responses(output, rows)
