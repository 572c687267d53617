"""Responses in rows: made of the answers and the key, flagged, and written as parquet and CSV."""

import collections
import csv
import dataclasses
import io
import itertools
import logging
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scoft.errors import DataError
from scoft.files import private_folder, sole_writer, write_atomically
from scoft.pages import table
from scoft.survey.problems import Problems
from scoft.survey.schema import ITEMS, RESPONSES_FILE, Answer, Key, Response


logger = logging.getLogger(__name__)

PARQUET_FILE = "responses.parquet"  # in the folder of each culture
COLUMNS = tuple(field.name for field in dataclasses.fields(Response))
NUMBERS = ("position", "rank", "seed", "milliseconds")  # the other columns are text

FAST = 0.3  # of the usual time of a page
ENOUGH = 5  # times of a page, or else of a culture, make a usual one
CHANCE = 0.01  # with which somebody whose items truly agree is taken for one who ranks by position


# ---------------------------------------------------------------------------------------------------------------------
# Of answers
# ---------------------------------------------------------------------------------------------------------------------


def responses_of(answers: Iterable[Answer], key: Key, problems: Problems) -> list[Response]:
    """A row for each answered page, item and picture of it, flagged; of the revisions of an answer, the highest."""
    last: dict[tuple[str, int], Answer] = {}
    for answer in answers:
        if answer.survey != key.survey:
            problems.add("answers of another survey, left out", f"participant {answer.participant}")
            continue
        earlier = last.get((answer.participant, answer.page))
        if earlier is None or answer.revision > earlier.revision:
            last[answer.participant, answer.page] = answer
    return flagged([row for answer in last.values() for row in rows_of(answer, key, problems)])


def rows_of(answer: Answer, key: Key, problems: Problems) -> Iterator[Response]:
    """An answer's rows, not flagged yet; what the key does not know is left out."""
    where = f"participant {answer.participant}, page {answer.page}"
    for item in answer.ranks.keys() - set(ITEMS):
        problems.add("unknown items, left out", f"{where} ({item!r})")
    for position, name in enumerate(answer.order):
        shown = key.pictures.get(name)
        if shown is None or shown.page != answer.page or name in answer.order[:position]:
            problems.add("pictures that were not on the page, left out", f"{where} ({name!r})")
            continue
        for item in ITEMS:
            rank = answer.ranks.get(item, {}).get(name)
            if rank is not None and not 1 <= rank <= len(answer.order):
                problems.add("ranks out of range, taken as not ranked", f"{where}, {item} ({rank})")
                rank = None
            yield Response(
                participant=answer.participant,
                culture=key.culture,
                page=str(answer.page),
                item=item,
                position=position,
                method=shown.method,
                rank=rank,
                seed=shown.seed,
                language=answer.language,
                milliseconds=answer.milliseconds,
            )


# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------


def flagged(rows: Sequence[Response]) -> list[Response]:
    """The rows with the FLAGS of their page's answer.

    fast: the page took less than FAST of its median over participants; where fewer than ENOUGH have answered it, less
    than FAST of the culture's median; where that has fewer, nothing is known.

    straight_lined: all items have the same ranks by position, and so have more other pages of that participant than
    chance brings.  Items that truly agree look the same on one page, but pictures stand in another order on the next:
    of n pages k or more agree in places with a probability of at most C(n, k) / (m!)^(k - 1), and from where that is
    below CHANCE pages are flagged: of 10 pages with 4 pictures 5, of 3 pages all, of 2 none.
    """
    pages: dict[tuple[str, str, str], list[Response]] = collections.defaultdict(list)
    for row in rows:
        pages[row.culture, row.participant, row.page].append(row)
    flags = {place: [] for place in pages}
    for place in straight_lined(pages):
        flags[place].append("straight_lined")
    for place in fast({place: page[0].milliseconds for place, page in pages.items()}):
        flags[place].append("fast")
    return [dataclasses.replace(row, flags=" ".join(flags[row.culture, row.participant, row.page])) for row in rows]


def straight_lined(pages: dict[tuple[str, str, str], list[Response]]) -> Iterator[tuple[str, str, str]]:
    alike = collections.defaultdict(list)  # (culture, participant) -> the pages that one order of places answers
    counts = collections.Counter((culture, participant) for culture, participant, _ in pages)
    for (culture, participant, page), rows in pages.items():
        by_item = collections.defaultdict(dict)
        for row in rows:
            by_item[row.item][row.position] = row.rank
        first, *others = by_item.values()
        whole = None not in first and None not in first.values() and len(set(first.values())) == len(first) > 1
        if others and whole and all(other == first for other in others):
            alike[culture, participant, tuple(sorted(first.items()))].append((culture, participant, page))
    for (culture, participant, ranks), places in alike.items():
        n, k = counts[culture, participant], len(places)
        if k > 1 and math.comb(n, k) / math.factorial(len(ranks)) ** (k - 1) <= CHANCE:
            yield from places


def fast(times: dict[tuple[str, str, str], int | None]) -> Iterator[tuple[str, str, str]]:
    known = collections.defaultdict(list)
    for (culture, _, page), milliseconds in times.items():
        if milliseconds is not None:
            known[culture, page].append(milliseconds)
            known[culture, None].append(milliseconds)
    medians = {place: statistics.median(each) for place, each in known.items() if len(each) >= ENOUGH}
    for place, milliseconds in times.items():
        usual = medians.get((place[0], place[2]), medians.get((place[0], None)))
        if milliseconds is not None and usual is not None and milliseconds < FAST * usual:
            yield place


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_responses(output: Path, rows: Sequence[Response]):
    """A folder for `datasets.load_dataset(output, culture)`, and RESPONSES_FILE; for this user's eyes alone.

    Raises DataError where there is nothing, or where the folder has a culture that these rows have not.
    """
    if not rows:
        raise DataError(
            f"There are no answers. Export again when some have come. What {output} may hold of answers that were "
            "withdrawn is yours to remove."
        )
    cultures = dict.fromkeys(row.culture for row in rows)
    private_folder(output, flag="--output")
    with sole_writer(output, flag="--output"):
        if others := {file.parent.name for file in output.glob(f"*/{PARQUET_FILE}")} - cultures.keys():
            raise DataError(
                f"{output} has responses of {', '.join(sorted(others))} too, which are not exported now: give that "
                "survey as well, remove that folder, or choose another.",
                argument="output",
            )
        for culture in cultures:
            (output / culture).mkdir(exist_ok=True)
            write_parquet(output / culture / PARQUET_FILE, [row for row in rows if row.culture == culture])
        write_atomically(output / RESPONSES_FILE, csv_of(rows))
        write_atomically(output / "README.md", card_of(rows))
    logger.info("%d rows of %s are in %s", len(rows), ", ".join(cultures), output)


def write_parquet(path: Path, rows: Sequence[Response]):
    """The rows in COLUMNS. The same rows give the same bytes."""
    import datasets

    kinds = {name: datasets.Value("int64" if name in NUMBERS else "string") for name in COLUMNS}
    content = io.BytesIO()
    columns = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(content)
    write_atomically(path, content.getvalue())


def csv_of(rows: Iterable[Response]) -> str:
    """What is not known is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    return text.getvalue()


def card_of(rows: Sequence[Response]) -> str:
    """README.md: a config for each culture, and what the columns mean."""
    import yaml

    counted = {
        culture: list(each)
        for culture, each in itertools.groupby(sorted(rows, key=lambda row: row.culture), lambda row: row.culture)
    }
    configs = [{"config_name": each, "data_files": f"{each}/{PARQUET_FILE}"} for each in counted]
    head = yaml.safe_dump({"configs": configs}, allow_unicode=True, sort_keys=False)
    counts = [
        [culture, len({row.participant for row in each}), len({row.page for row in each}), len(each)]
        for culture, each in counted.items()
    ]
    return "\n".join(
        [
            "---",
            head + "---",
            "# Responses to a survey of pictures",
            "",
            "People ranked pictures of several methods, one page a prompt, once for each of four items: "
            f"{', '.join(ITEMS)}. A row is a rank that a participant gave a picture, 1 the best; without a rank the "
            "picture was not ranked. `position` is where it stood, from 0; `milliseconds` and `flags` are of the "
            f"whole page. Flags leave nothing out: `fast` took less than {FAST:.0%} of the usual time, "
            "`straight_lined` has the same ranks by position in all items, on more pages than chance brings.",
            "",
            *table(["culture", "participants", "pages", "rows"], counts),
            "",
            f"`{RESPONSES_FILE}` has the same rows. Of participants there are random ids alone; whoever withdraws is "
            "gone with the next export, so publish nothing before the survey has ended.",
            "",
        ]
    )
