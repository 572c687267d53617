"""A CSV from elsewhere: what can be used is used, what cannot is counted with its lines, nothing crashes."""

from pathlib import Path

import pytest

from scoft.errors import DataError
from scoft.survey.gathered import read_responses
from scoft.survey.problems import Problems


HEADING = "participant,culture,page,item,method,rank"


def written(folder: Path, *lines: str, heading: str = HEADING) -> Path:
    path = folder / "theirs.csv"
    path.write_text("\n".join([heading, *lines]) + "\n", encoding="utf-8")
    return path


def read(path: Path, **columns):
    problems = Problems()
    rows = read_responses([path], columns, problems)
    return rows, {kind: (problem.count, problem.places) for kind, problem in problems.by_kind.items()}


def test_the_long_form_is_read_with_ties_and_gaps(tmp_path):
    path = written(tmp_path, "a,korea,1,culture,m,1", "a,korea,1,culture,base,1.0", "a,korea,1,culture,mp,")
    rows, problems = read(path)
    assert [(row.method, row.rank) for row in rows] == [("m", 1), ("base", 1), ("mp", None)] and problems == {}
    assert (rows[0].position, rows[0].seed, rows[0].language, rows[0].milliseconds, rows[0].flags) == (
        None, None, None, None, "",
    )  # fmt: skip


def test_columns_are_mapped_and_delimiters_and_marks_of_spreadsheets_read(tmp_path):
    heading = "\ufeffworker;culture;page;question;method;answer;note"
    path = written(tmp_path, "a;korea;1;culture;m;2;x,y", "a;korea;1;culture;base;1;", heading=heading)
    rows, problems = read(path, worker="participant", question="item", answer="rank")
    assert [(row.participant, row.item, row.rank) for row in rows] == [("a", "culture", 2), ("a", "culture", 1)]
    assert problems == {}


def test_a_mapped_column_takes_the_place_of_one_of_its_name(tmp_path):
    path = written(tmp_path, "7,a,korea,1,culture,m,1", "7,a,korea,1,culture,base,2", heading=f"pid,{HEADING}")
    assert {row.participant for row in read(path, pid="participant")[0]} == {"7"}


def test_each_line_that_is_of_no_use_is_named(tmp_path):
    path = written(
        tmp_path,
        "a,korea,1,culture,m,1",  # line 2
        "a,korea,1,culture,base,2",
        "a,korea,1,beauty,m,1",
        "a,korea,1,culture",
        "a,korea,1,culture,mp,9",
        "a,korea,1,culture,mpc,0",
        "a,korea,1,culture,base,1",
        ",korea,1,culture,m,1",
        "a,korea,1,culture,../m,1",
        "a,korea,1,stereotypes,m,first",
    )
    rows, problems = read(path)
    assert {row.method: row.rank for row in rows if row.item == "culture"} == {
        "m": 1, "mp": None, "mpc": None, "base": 1,
    }  # fmt: skip
    told = {kind.partition(",")[0]: (count, places) for kind, (count, places) in problems.items()}
    assert told == {
        "unknown items": (1, ["theirs.csv, line 4 ('beauty')"]),
        "torn lines": (1, ["theirs.csv, line 5 (4 cells, 6 in the heading)"]),
        "ranks out of range": (2, ["theirs.csv, line 6 (9, not 1 to 4)", "theirs.csv, line 7 (0, not 1 to 4)"]),
        "repeated rows": (1, ["theirs.csv, line 8"]),
        "lines without a value that every row needs": (1, ["theirs.csv, line 9 (participant)"]),
        "names that no culture or method can have": (1, ["theirs.csv, line 10 ('../m')"]),
        "values of rank that are no whole numbers": (1, ["theirs.csv, line 11 ('first')"]),
    }


def test_a_file_that_was_cut_off_in_a_quote_loses_its_end_alone(tmp_path):
    path = written(tmp_path, "a,korea,1,culture,m,1", "a,korea,1,culture,base,2", 'a,korea,1,culture,"m')
    rows, problems = read(path)
    assert len(rows) == 2
    ((count, places),) = problems.values()
    assert count == 1 and places[0].startswith("theirs.csv, lines 4 to 4 (unexpected end of data)")


def test_only_the_first_places_of_many_are_named(tmp_path):
    path = written(tmp_path, "a,korea,1,culture,m,1", *["a,korea,1,beauty,m,1"] * 30)
    ((count, places),) = read(path)[1].values()
    assert count == 30 and len(places) == 5


def test_a_submission_given_in_two_files_counts_once(tmp_path):
    path = written(tmp_path, "a,korea,1,culture,m,1", "a,korea,1,culture,base,2")
    problems = Problems()
    assert len(read_responses([path, path], {}, problems)) == 2
    ((kind, problem),) = problems.by_kind.items()
    assert kind.startswith("repeated rows") and problem.count == 2


def test_flags_are_made_where_the_file_has_none_and_kept_where_it_has(tmp_path):
    heading = f"{HEADING},milliseconds"
    lines = [f"p{each},korea,1,culture,{m},1,{1000 if each == 0 else 60000}" for each in range(6) for m in ("m", "mp")]
    rows, _ = read(written(tmp_path, *lines, heading=heading))
    assert {row.participant for row in rows if row.flags == "fast"} == {"p0"}
    rows, _ = read(written(tmp_path, *[f"{line}," for line in lines], heading=f"{heading},flags"))
    assert {row.flags for row in rows} == {""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column participant, .* no heading"),
        (HEADING.encode(), "has no row of use"),
        (HEADING.encode() + b"\n,,,,,\n", "has no row of use"),
        (b"participant,base,m,mp,mpc\na,1,2,3,4\n", "has no column culture, page, item, method, rank"),
        (HEADING.encode() + b",rank\n", "two columns rank"),
        (HEADING.encode() + b"\n\xff\xfe", "is not UTF-8"),
        (b'"participant\n', "heading that is no CSV"),
        (b"\x00\x01\x02", "has no column participant"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, content, message):
    path = tmp_path / "theirs.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_column_that_is_not_there_and_a_file_that_is_not_are_named(tmp_path):
    with pytest.raises(DataError, match="columns names worker, but .*theirs.csv has participant"):
        read(written(tmp_path, "a,korea,1,culture,m,1"), worker="participant")
    with pytest.raises(DataError, match="nowhere.csv cannot be read"):
        read(tmp_path / "nowhere.csv")
