"""Answers become rows, each once, flagged, and arrive whole in the dataset and the CSV."""

import dataclasses
import stat

import datasets
import pytest

from respondents import METHODS, PAPER, key_of, responses
from scoft.errors import DataError
from scoft.survey.gathered import read_responses
from scoft.survey.problems import Problems
from scoft.survey.responses import COLUMNS, flagged, responses_of, write_responses
from scoft.survey.schema import ITEMS, Answer


KEY = key_of("korea", pages=2)


def answer(*, page: int = 0, **changes) -> Answer:
    order = [f"korea-{page}-{method}" for method in METHODS]
    ranks = {item: {name: rank for rank, name in enumerate(order, start=1)} for item in ITEMS}
    given = {
        "survey": KEY.survey,
        "participant": "a",
        "page": page,
        "revision": 1,
        "language": "ko",
        "milliseconds": 60_000,
        "order": order,
        "ranks": ranks,
    }
    return Answer(**given | changes)


def test_each_answered_picture_and_item_is_a_row():
    order = ["korea-0-mpc", "korea-0-base", "korea-0-m", "korea-0-mp"]
    ranks = {"culture": {"korea-0-mpc": 1, "korea-0-base": None, "korea-0-m": 3}}
    problems = Problems()
    rows = responses_of([answer(order=order, ranks=ranks)], KEY, problems)
    assert len(rows) == len(ITEMS) * 4 and problems.by_kind == {}
    assert [(row.position, row.method, row.rank) for row in rows if row.item == "culture"] == [
        (0, "mpc", 1),
        (1, "base", None),
        (2, "m", 3),
        (3, "mp", None),
    ]
    assert all(row.rank is None for row in rows if row.item != "culture")
    row = rows[0]
    assert (row.participant, row.culture, row.page, row.seed, row.language) == ("a", "korea", "0", 0, "ko")


def test_the_highest_revision_counts_whatever_the_order():
    new = answer(revision=3, ranks={"culture": {"korea-0-m": 1}})
    for posted in ([answer(), new], [new, answer()], [new, answer(), new]):
        rows = responses_of(posted, KEY, Problems())
        assert len(rows) == 16
        assert [row.method for row in rows if row.rank is not None] == ["m"]


def test_what_the_key_does_not_know_is_counted():
    odd = answer(
        order=["korea-0-m", "korea-1-m", "nothing", "korea-0-m"],
        ranks={"culture": {"korea-0-m": 5}, "beauty": {"korea-0-m": 1}},
    )
    problems = Problems()
    rows = responses_of([odd, answer(survey="another")], KEY, problems)
    assert [row.method for row in rows] == ["m"] * 4 and all(row.rank is None for row in rows)
    assert {kind: problem.count for kind, problem in problems.by_kind.items()} == {
        "answers of another survey, left out": 1,
        "unknown items, left out": 1,
        "pictures that were not on the page, left out": 3,
        "ranks out of range, taken as not ranked": 1,
    }
    assert "participant a, page 0, culture (5)" in problems.by_kind["ranks out of range, taken as not ranked"].places


def by_place(pages: int, participant: str) -> list:
    """Rows of somebody who ranks 2 1 3 4 by position on every page, pictures in another order on each."""
    rows = []
    for page in range(pages):
        shift = page % 4
        order = METHODS[shift:] + METHODS[:shift]
        places = [f"korea-{page}-{method}" for method in order]
        ranks = {item: dict(zip(places, (2, 1, 3, 4))) for item in ITEMS}
        given = answer(page=page, order=places, ranks=ranks, participant=participant)
        rows += responses_of([given], key_of("korea", pages=pages), Problems())
    return rows


@pytest.mark.parametrize(("pages", "lined"), [(1, False), (2, False), (3, True), (10, True)])
def test_ranking_by_position_is_flagged_where_chance_does_not_bring_it(pages, lined):
    rows = flagged(by_place(pages, "a"))
    assert {row.flags for row in rows} == {"straight_lined" if lined else ""}


def test_items_that_truly_agree_are_not_flagged():
    """Without noise every item has the same ranks; orders are drawn, so positions differ from page to page."""
    rows = responses({"korea": 100}, pages=10, noise=0.0)
    share = len({row.participant for row in rows if "straight_lined" in row.flags}) / 100
    assert share <= 0.03  # CHANCE is 1 %
    assert all(len({row.rank for row in rows if (row.participant, row.page, row.method) == each}) == 1
               for each in {(row.participant, row.page, row.method) for row in rows[:200]})  # fmt: skip


def test_one_item_that_differs_is_no_straight_line():
    rows = by_place(10, "a")
    rows = [dataclasses.replace(row, rank=5 - row.rank) if row.item == "culture" else row for row in rows]
    assert {row.flags for row in flagged(rows)} == {""}


def test_fast_is_less_than_a_share_of_the_usual_time():
    times = {"a": 60_000, "b": 50_000, "c": 70_000, "d": 60_000, "e": 17_000, "f": 16_000}  # median 55 s
    given = [answer(participant=name, milliseconds=each) for name, each in times.items()]
    rows = responses_of(given, KEY, Problems())
    assert {row.participant for row in rows if "fast" in row.flags} == {"f"}  # below 16.5 s
    few = responses_of(given[-4:], KEY, Problems())
    assert not any("fast" in row.flags for row in few)


def test_all_rows_arrive_in_the_dataset_and_in_the_csv(tmp_path):
    rows = responses(PAPER, pages=3)
    rows[0] = dataclasses.replace(rows[0], rank=None, language="pt-BR")
    output = tmp_path / "responses"
    write_responses(output, rows)
    loaded = []
    for culture in PAPER:
        config = datasets.load_dataset(str(output), culture, split="train", cache_dir=str(tmp_path / "cache"))
        assert tuple(config.column_names) == COLUMNS and set(config["culture"]) == {culture}
        loaded += config.to_list()
    assert len(loaded) == sum(PAPER.values()) * 3 * 4 * 4
    assert loaded == [dataclasses.asdict(row) for row in rows]
    problems = Problems()
    assert read_responses([output], {}, problems) == rows and problems.by_kind == {}
    assert stat.S_IMODE(output.stat().st_mode) == 0o700


def test_the_same_rows_are_the_same_bytes_and_other_cultures_are_not_lost_unseen(tmp_path):
    rows = responses({"korea": 2, "china": 2}, pages=1)
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_responses(folder, rows)
    files = ("korea/responses.parquet", "responses.csv", "README.md")
    assert [(tmp_path / "a" / name).read_bytes() for name in files] == [
        (tmp_path / "b" / name).read_bytes() for name in files
    ]
    with pytest.raises(DataError, match="has responses of china too"):
        write_responses(tmp_path / "a", [row for row in rows if row.culture == "korea"])
    with pytest.raises(DataError, match="There are no answers"):
        write_responses(tmp_path / "a", [])
