"""What of others' answers could not be used: counted by kind, the first places named, and never left unsaid."""

import dataclasses
import logging
from collections.abc import Mapping

from scoft.errors import legible, listing


logger = logging.getLogger(__name__)

PLACES_NAMED = 5  # of each kind


@dataclasses.dataclass
class Problem:
    count: int = 0
    places: list[str] = dataclasses.field(default_factory=list)  # the first PLACES_NAMED


class Problems:
    """Kind -> how often, and where first."""

    def __init__(self):
        self.by_kind: dict[str, Problem] = {}

    def add(self, kind: str, where: str):
        """`kind` says what became of it, as "ranks out of range, taken as not ranked"; `where`: "line 7 ('9')"."""
        problem = self.by_kind.setdefault(kind, Problem())
        problem.count += 1
        if len(problem.places) < PLACES_NAMED:
            problem.places.append(legible(where))

    def tell(self, source: str):
        """A warning for each kind."""
        for sentence in sentences(self.by_kind):
            logger.warning("%s: %s", source, sentence)


def sentences(by_kind: Mapping[str, Problem]) -> list[str]:
    """'3 ranks out of range: line 7 ('9'); ...' of each kind."""
    return [
        f"{problem.count} {kind}: {listing(problem.places)}"
        + (f"; and {problem.count - len(problem.places)} more" if problem.count > len(problem.places) else "")
        for kind, problem in by_kind.items()
    ]
