"""What is kept of answers, and what is not."""

import contextlib
import dataclasses
import sqlite3

import pytest

import surveying
from scoft.errors import DataError
from scoft.survey import store as module
from scoft.survey.schema import ANSWERS_FILE, read_key
from scoft.survey.store import NETWORK, Busy, Kept, Store, answers, mounted, refusals


@pytest.fixture
def key(survey):
    return read_key(survey)


@pytest.fixture
def store(survey):
    with Store(survey) as store:
        yield store


def bytes_of(survey) -> bytes:
    return b"".join(path.read_bytes() for path in survey.glob(f"{ANSWERS_FILE}*"))


def test_the_newest_revision_of_each_page_counts_once(store, survey, key):
    first = surveying.made(surveying.answer(key))
    second = dataclasses.replace(first, revision=2, milliseconds=7)
    other = dataclasses.replace(first, page=1, order=[], milliseconds=9)
    assert [store.keep(each).result().state for each in (second, first, other)] == ["kept"] * 3
    assert store.keep(first).result() == Kept("known")
    assert list(answers(survey)) == [second, other]


def test_another_answer_of_the_same_revision_is_a_conflict(store, survey, key):
    """As two tabs make it: the first stays, and who comes second learns which revision is free."""
    first = surveying.made(surveying.answer(key, revision=1))
    for revision in (1, 2):
        store.keep(dataclasses.replace(first, revision=revision)).result()
    assert store.keep(dataclasses.replace(first, milliseconds=5)).result() == Kept("conflict", 2)
    assert list(answers(survey)) == [dataclasses.replace(first, revision=2)]


def test_who_withdraws_is_deleted_for_good(store, survey, key):
    """From the tables, the bytes of the files, and against posts that come late; others stay."""
    mine, other = (surveying.made(surveying.answer(key)) for _ in range(2))
    for each in (mine, other):
        store.keep(each, "panel-id").result()
    assert mine.participant.encode() in bytes_of(survey)
    assert store.withdraw(mine.participant).result() == Kept("withdrawn")
    assert store.keep(dataclasses.replace(mine, revision=2)).result() == Kept("gone")
    assert list(answers(survey)) == [other]
    assert mine.participant.encode() not in bytes_of(survey) and other.participant.encode() in bytes_of(survey)


def test_of_a_panels_id_a_salted_hash_is_kept_in_a_table_that_can_be_deleted(store, survey, key):
    answer = surveying.made(surveying.answer(key))
    store.keep(answer, "5f2a-panel-id").result()
    assert b"5f2a-panel-id" not in bytes_of(survey)
    connection = sqlite3.connect(survey / ANSWERS_FILE)
    [(hashed, participant)] = connection.execute("SELECT * FROM panel").fetchall()
    assert participant == answer.participant and len(hashed) == 64
    connection.executescript("DELETE FROM panel; DELETE FROM panel_salt;")
    assert list(answers(survey)) == [answer]


def test_the_salt_is_the_surveys_own(survey, tmp_path):
    with Store(survey) as first:
        salt = first.salt
    with Store(survey) as again:
        assert again.salt == salt
    (tmp_path / "other").mkdir()
    with Store(tmp_path / "other") as other:
        assert other.salt != salt


def test_what_cannot_be_written_is_not_acknowledged(store, survey, key):
    """A commit that fails fails all of its posts, and the next one goes on."""
    store.connection.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT RAISE(ABORT, 'full'); END")
    answer = surveying.made(surveying.answer(key))
    with pytest.raises(sqlite3.Error, match="full"):
        store.keep(answer).result()
    store.connection.execute("DROP TRIGGER full")
    assert list(answers(survey)) == []
    assert store.keep(answer).result() == Kept("kept")


def test_nothing_is_acknowledged_before_its_commit(store, survey, key):
    """Somebody else holds the database, so that the commit has to wait, and with it the acknowledgement."""
    answer = surveying.made(surveying.answer(key))
    with contextlib.closing(sqlite3.connect(survey / ANSWERS_FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        result = store.keep(answer)
        with pytest.raises(TimeoutError):
            result.result(0.3)
        other.execute("ROLLBACK")
    assert result.result(10) == Kept("kept") and list(answers(survey)) == [answer]


def test_posts_that_wait_together_are_one_commit(survey, key):
    """Many cost few writes to the disk, which are what takes the time."""
    commits = []
    with Store(survey) as store:
        store.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        results = [store.keep(surveying.made(surveying.answer(key))) for _ in range(1000)]
        assert {result.result().state for result in results} == {"kept"}
    assert len(list(answers(survey))) == 1000 and len(commits) <= 100


def test_a_crowd_is_asked_to_come_again(survey, key, monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 2)
    with Store(survey) as store:
        store.connection.execute("BEGIN")  # so that the thread cannot begin
        waiting = []
        with pytest.raises(Busy):
            for _ in range(1000):
                waiting.append(store.keep(surveying.made(surveying.answer(key))))
        store.connection.execute("ROLLBACK") if store.connection.in_transaction else None
        assert len(waiting) < 1000


def test_refusals_are_counted_also_over_restarts(survey):
    for _ in range(2):
        with Store(survey) as store:
            for reason in ("too_large", "too_large", "rank"):
                store.refuse(reason)
    assert refusals(survey) == {"rank": 2, "too_large": 4}


def test_the_answers_are_for_their_owner_alone_and_every_commit_reaches_the_disk(store, survey):
    assert (survey / ANSWERS_FILE).stat().st_mode & 0o077 == 0
    pragmas = {name: store.connection.execute(f"PRAGMA {name}").fetchone()[0]
               for name in ("journal_mode", "synchronous", "secure_delete")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_what_is_no_database_is_said(survey):
    with pytest.raises(DataError, match="has no answers.sqlite3: nobody has answered yet"):
        list(answers(survey))
    (survey / ANSWERS_FILE).write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match="cannot be used .*Put it aside"):
        Store(survey)
    with pytest.raises(DataError, match="cannot be read .*Restore it"):
        list(answers(survey))


# File systems --------------------------------------------------------------------------------------------------------

TABLE = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:30 / /mnt rw shared:1 master:2 - tmpfs tmpfs rw
31 30 0:31 / /mnt/my\040answers rw - fuse.sshfs host:/ rw
32 22 0:32 / /data rw - ext4 /dev/vdb rw
33 22 0:33 / /data rw - nfs4 host:/data rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/home/me", ("ext4", "/")),
        ("/mnt/other", ("tmpfs", "/mnt")),
        ("/mnt/my answers/korea", ("fuse.sshfs", "/mnt/my answers")),
        ("/mnt/my answers2", ("tmpfs", "/mnt")),
        ("/data/korea", ("nfs4", "/data")),
    ],
)
def test_what_a_folder_lies_on(path, found, tmp_path):
    assert mounted(type(tmp_path)(path), TABLE) == found


@pytest.mark.parametrize("kind", ["nfs4", "fuse.hf-mount", "fuse", "9p", "virtiofs", "cifs"])
def test_a_network_or_fuse_file_system_is_refused(survey, tmp_path, monkeypatch, kind):
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(module, "MOUNTS", table)
    table.write_text(f"1 0 0:1 / / rw - ext4 disk rw\n2 1 0:2 / {survey} rw - {kind} host rw\n")
    with pytest.raises(DataError, match=f"lies on {kind} .*locks and shared memory do not hold there"):
        Store(survey)
    assert not (survey / ANSWERS_FILE).exists()
    table.write_text("1 0 0:1 / / rw - ext4 disk rw\n")
    Store(survey).__exit__()
    assert "ext4" not in NETWORK and "overlay" not in NETWORK
