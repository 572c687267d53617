"""Responses as an array: a ranking is what one participant answered to one item of one page."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from scoft.errors import DataError
from scoft.survey.schema import FLAGS, ITEMS, Response


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Rankings:
    """n rankings of m methods, and whose they are: (n,) places in the lists of labels."""

    ranks: np.ndarray  # (n, m), 1 the best; NaN: not ranked
    positions: np.ndarray  # (n, m), from 0; NaN: not known, or not shown
    shown: np.ndarray  # (n, m) bool: whether the page has a picture of the method
    participant: np.ndarray
    page: np.ndarray
    item: np.ndarray  # in ITEMS
    flags: dict[str, np.ndarray]  # (n,) bool each
    methods: list[str]  # the best mean of the cultures' mean ranks first
    cultures: list[str]
    participants: list[tuple[str, str]]  # culture and id: who answers for two cultures counts in each
    pages: list[tuple[str, str]]  # culture and page

    def __len__(self) -> int:
        return len(self.ranks)

    @functools.cached_property
    def culture_of(self) -> np.ndarray:
        """(participants,): each one's place in the cultures."""
        return np.array([self.cultures.index(culture) for culture, _ in self.participants], dtype=int)

    @property
    def culture(self) -> np.ndarray:
        return self.culture_of[self.participant]

    @property
    def complete(self) -> np.ndarray:
        """(n,) whether all that was shown was ranked, and that is more than one."""
        return (np.isnan(self.ranks) == ~self.shown).all(1) & (self.shown.sum(1) > 1)

    @property
    def tied(self) -> np.ndarray:
        """(n,) whether two have one rank."""
        ordered = np.sort(self.ranks, axis=1)
        return (ordered[:, 1:] == ordered[:, :-1]).any(1)

    def take(self, kept: np.ndarray) -> Rankings:
        """Those of the mask (n,); labels stay as they are."""
        rows = {
            name: getattr(self, name)[kept] for name in ("ranks", "positions", "shown", "participant", "page", "item")
        }
        return dataclasses.replace(self, **rows, flags={name: each[kept] for name, each in self.flags.items()})

    def of_culture(self, culture: str) -> Rankings:
        return self.take(self.culture == self.cultures.index(culture))

    def of_item(self, item: str) -> Rankings:
        return self.take(self.item == ITEMS.index(item))


def rankings_of(rows: Sequence[Response]) -> Rankings:
    """Raises DataError where no picture is ranked, or there are not two methods to compare."""
    names = list(dict.fromkeys(row.method for row in rows if row.rank is not None))
    if len(names) < 2:
        raise DataError(f"A comparison needs ranks of at least 2 methods, got those of {', '.join(names) or 'none'}.")
    methods = {name: number for number, name in enumerate(dict.fromkeys(row.method for row in rows))}
    cultures = list(dict.fromkeys(row.culture for row in rows))
    participants = _numbered((row.culture, row.participant) for row in rows)
    pages = _numbered((row.culture, row.page) for row in rows)
    places = _numbered((row.culture, row.participant, row.page, row.item) for row in rows)
    ranks, positions = (np.full((len(places), len(methods)), np.nan) for _ in range(2))
    of_page = np.zeros((len(pages), len(methods)), dtype=bool)
    labels = np.zeros((3, len(places)), dtype=int)
    flags = {flag: np.zeros(len(places), dtype=bool) for flag in FLAGS}
    for row in rows:
        place, method = places[row.culture, row.participant, row.page, row.item], methods[row.method]
        page = pages[row.culture, row.page]
        labels[:, place] = participants[row.culture, row.participant], page, ITEMS.index(row.item)
        of_page[page, method] = True
        if row.rank is not None:
            ranks[place, method] = row.rank
        if row.position is not None:
            positions[place, method] = row.position
        for flag in row.flags.split():
            flags[flag][place] = True
    culture_of_page = np.array([cultures.index(culture) for culture, _ in pages])
    means = [mean_of_cultures(column, culture_of_page[labels[1]]) for column in ranks.T]
    best_first = np.argsort(means, kind="stable")
    return Rankings(
        ranks=ranks[:, best_first],
        positions=positions[:, best_first],
        shown=of_page[labels[1]][:, best_first],
        participant=labels[0],
        page=labels[1],
        item=labels[2],
        flags=flags,
        methods=[list(methods)[number] for number in best_first],
        cultures=cultures,
        participants=list(participants),
        pages=list(pages),
    )


def mean_of_cultures(ranks: np.ndarray, culture: np.ndarray) -> float:
    """The mean of the cultures' mean ranks, (n,) each; infinite without any."""
    known = ~np.isnan(ranks)
    means = [ranks[known & (culture == each)].mean() for each in np.unique(culture[known])]
    return float(np.mean(means)) if means else float("inf")


def _numbered(labels: Iterable[Hashable]) -> dict[Hashable, int]:
    return {label: number for number, label in enumerate(dict.fromkeys(labels))}
