"""A user's function that says of each picture what is true of it."""

import re
from collections.abc import Sequence
from math import isfinite

from scoft.launch import load_function

from scoft.errors import DataError
from scoft.evaluate.metrics import LOG_ODDS
from scoft.evaluate.sources import Source
from scoft.pictures import Picture


class Judge:
    """FILE.py:function of --judge. Whatever it does raises DataError."""

    def __init__(self, spec: str):
        self.spec, self.function = spec, load_function(spec, flag="--judge")

    def __call__(self, picture: Picture, source: Source) -> dict[str, float]:
        """Its numbers of one picture but for the bounds of intervals, which it has for many pictures alone."""
        image = source.open()
        try:
            said = {str(name): float(value) for name, value in self.function([image], [picture.prompt]).items()}
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise DataError(
                f"--judge {self.spec} gave no dict of numbers for {picture.file}, but {type(error).__name__}: {error}"
            ) from error
        return {name: value for name, value in said.items() if not re.search(r"_(low|high)$", name)}

    def verdicts(self, pictures: Sequence[Picture], sources: Sequence[Source]) -> dict[str, list[float]]:
        """By each of its words, what it says of each picture alone: 0 or 1, or of LOG_ODDS any finite number."""
        verdicts = [self(picture, source) for picture, source in zip(pictures, sources, strict=True)]
        for picture, verdict in zip(pictures, verdicts):
            fitting = (
                isfinite(value) if word.endswith(LOG_ODDS) else value in (0, 1) for word, value in verdict.items()
            )
            if verdict.keys() != verdicts[0].keys() or not all(fitting):
                raise DataError(
                    f"--judge {self.spec} said {verdict} of {picture.file} and {verdicts[0]} of {pictures[0].file}; "
                    f"it is to say 0 or 1 of each picture, or under a name on {LOG_ODDS} any finite number, under the "
                    "same names of all."
                )
        return {name: [verdict[name] for verdict in verdicts] for name in verdicts[0]}
