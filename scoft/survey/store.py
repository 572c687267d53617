"""Keeping answers: one SQLite database, one thread that writes, and nothing acknowledged that a power cut can take."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import queue
import re
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from scoft.errors import DataError
from scoft.survey.schema import ANSWERS_FILE, Answer


logger = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mountinfo")
MOST_AT_ONCE = 512  # posts of a commit
MOST_WAITING = 4096  # posts; who comes behind is asked to come again
# File systems whose locks or shared memory, on which WAL stands, are not those of this machine's kernel.
NETWORK = (
    "9p acfs afs beegfs ceph cifs coda davfs fuse fuseblk gfs2 gfs glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 "
    "orangefs prl_fs pvfs2 smb2 smb3 smbfs vboxsf virtiofs vmhgfs"
).split()

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    participant TEXT, page INTEGER, revision INTEGER, answer TEXT NOT NULL,
    PRIMARY KEY (participant, page, revision)
) WITHOUT ROWID;
-- Who a panel knows a participant by, hashed with a salt. Nothing else needs these two tables: they can be emptied.
CREATE TABLE IF NOT EXISTS panel (hash TEXT, participant TEXT, PRIMARY KEY (hash, participant)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS panel_salt (salt BLOB NOT NULL);
-- Hashes of the random ids of those who withdrew, so that a post still on its way does not bring them back.
CREATE TABLE IF NOT EXISTS withdrawn (hash TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusals (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
"""


class Busy(Exception):
    """More posts are waiting than there may; come again later."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What became of a post: "kept"; "known", the same was kept before; "conflict", another answer has its revision;
    "gone", its participant has withdrawn. Of a withdrawal: "withdrawn", nothing is kept any more.
    """

    state: str
    revision: int | None = None  # the highest that is kept, of a conflict


def refuse_foreign_file_system(folder: Path):
    """Raise DataError where `folder` lies on a network's or a FUSE file system, on which SQLite loses data."""
    if not MOUNTS.exists():
        logger.info("This system does not say what %s lies on. It must be a local disk.", folder)
        return
    kind, mount = mounted(folder.resolve(), MOUNTS.read_text(errors="replace"))
    if kind.partition(".")[0] in NETWORK:
        raise DataError(
            f"{folder} lies on {kind} (mounted at {mount}): the database's locks and shared memory do not hold there, "
            "so that answers would be lost or torn. Name a folder on a local disk, and copy the answers from there."
        )


def mounted(path: Path, table: str) -> tuple[str, str]:
    """Type and place of what `path` lies on, by the text of /proc/self/mountinfo."""
    found = ("unknown", "/")
    for line in table.splitlines():
        fields, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields.split(" ")[4])
        if path.is_relative_to(place) and len(place) >= len(found[1]):  # the later of two at one place lies above
            found = (after.split(" ")[0], place)
    return found


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are on the disk when they return, and whose deletions overwrite."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class Store:
    """The answers of a survey's folder, for one process. A context manager. Raises DataError.

    All that changes goes through one thread, which takes what is waiting and commits it at once: 500 answers that came
    together cost one write to the disk. A result is given after that commit.
    """

    def __init__(self, folder: Path):
        refuse_foreign_file_system(folder)
        path = folder / ANSWERS_FILE
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self.connection = connect(path)
            self.connection.executescript(SCHEMA)
            self.salt = self._salt()
        except sqlite3.Error as error:
            raise DataError(f"{path} cannot be used ({error}). Put it aside, or restore it.") from error
        self.committed: Callable[[Sequence[Answer], bool], None] = lambda new, withdrawn: None  # after each commit
        self.refused, self.lock = Counter(), threading.Lock()
        self.waiting: queue.Queue = queue.Queue(MOST_WAITING)
        self.thread = threading.Thread(target=self._write, name="answers", daemon=True)
        self.thread.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_):
        self.waiting.put(None)
        self.thread.join()
        self.connection.close()

    def _salt(self) -> bytes:
        self.connection.execute(
            "INSERT INTO panel_salt SELECT ? WHERE NOT EXISTS (SELECT * FROM panel_salt)", [secrets.token_bytes(32)]
        )
        return self.connection.execute("SELECT salt FROM panel_salt").fetchone()[0]

    def keep(self, answer: Answer, panel: str | None = None) -> Future[Kept]:
        """Keep an answer, and a hash of the panel's id. Raises Busy."""
        return self._put(self._keep, answer, panel)

    def withdraw(self, participant: str) -> Future[Kept]:
        """Delete all that is kept of a participant. Raises Busy."""
        return self._put(self._withdraw, participant)

    def put_back(self, kept: Sequence[Answer], gone: Sequence[str]) -> Future[Kept]:
        """Keep answers that were kept elsewhere, and the hashes of who withdrew there."""
        return self._put(self._put_back, kept, gone)

    def refuse(self, reason: str):
        """Count a post that was refused; the counts are written with the next commit, or at the end."""
        with self.lock:
            self.refused[reason] += 1

    def _put(self, work, *args) -> Future[Kept]:
        result: Future[Kept] = Future()
        try:
            self.waiting.put_nowait((work, args, result))
        except queue.Full as error:
            raise Busy from error
        return result

    def _write(self):
        """The thread's work: commits, until None comes."""
        going = True
        while going:
            batch = [self.waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < MOST_AT_ONCE:
                    batch.append(self.waiting.get_nowait())
            going = None not in batch
            batch = [each for each in batch if each is not None]
            try:
                results = self._commit(batch)
            except Exception as error:  # a full disk, say: the thread goes on, and nobody is told "kept"
                logger.error("%d posts could not be kept: %s", len(batch), error)
                for *_, result in batch:
                    result.set_exception(error)
            else:
                self._tell(batch, results)
                for (*_, result), kept in zip(batch, results):
                    result.set_result(kept)

    def _commit(self, batch: list) -> list[Kept]:
        with contextlib.ExitStack() as undone:
            self.connection.execute("BEGIN IMMEDIATE")
            undone.callback(self._rollback)
            results = [work(*args) for work, args, _ in batch]
            with self.lock:
                counted = self.refused.copy()
            self.connection.executemany(
                "INSERT INTO refusals VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                counted.items(),
            )
            self.connection.execute("COMMIT")
            undone.pop_all()
        with self.lock:
            self.refused -= counted
        if Kept("withdrawn") in results:  # what was deleted is not to live on in the log of changes
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return results

    def _tell(self, batch: list, results: list[Kept]):
        new = [args[0] for (_, args, _), kept in zip(batch, results) if kept.state == "kept"]
        withdrawn = Kept("withdrawn") in results
        if new or withdrawn:
            try:
                self.committed(new, withdrawn)
            except OSError as error:
                logger.error("%d answers are kept here, and were not handed on: %s", len(new), error)

    def _rollback(self):
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _keep(self, answer: Answer, panel: str | None) -> Kept:
        if self._ask("SELECT 1 FROM withdrawn WHERE hash = ?", tombstone(answer.participant)):
            return Kept("gone")
        place = (answer.participant, answer.page, answer.revision)
        text = answer_text(answer)
        known = self._ask("SELECT answer FROM answers WHERE participant = ? AND page = ? AND revision = ?", *place)
        if known is not None and known != text:
            highest = "SELECT max(revision) FROM answers WHERE participant = ? AND page = ?"
            return Kept("conflict", self._ask(highest, *place[:2]))
        if known is None:
            self.connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", [*place, text])
        if panel is not None:
            hashed = hashlib.sha256(self.salt + panel.encode()).hexdigest()
            self.connection.execute("INSERT OR IGNORE INTO panel VALUES (?, ?)", [hashed, answer.participant])
        return Kept("kept" if known is None else "known")

    def _withdraw(self, participant: str) -> Kept:
        for table in ("answers", "panel"):
            self.connection.execute(f"DELETE FROM {table} WHERE participant = ?", [participant])
        self.connection.execute("INSERT OR IGNORE INTO withdrawn VALUES (?)", [tombstone(participant)])
        return Kept("withdrawn")

    def _put_back(self, kept: Sequence[Answer], gone: Sequence[str]) -> Kept:
        self.connection.executemany("INSERT OR IGNORE INTO withdrawn VALUES (?)", [[each] for each in gone])
        for answer in kept:
            self._keep(answer, None)
        return Kept("put back")

    def _ask(self, question: str, *values) -> object | None:
        found = self.connection.execute(question, values).fetchone()
        return found and found[0]


def tombstone(participant: str) -> str:
    return hashlib.sha256(participant.encode()).hexdigest()


def answer_text(answer: Answer) -> str:
    """An answer as it is kept: equal answers are equal text."""
    return json.dumps(dataclasses.asdict(answer), sort_keys=True, separators=(",", ":"))


def answers(folder: Path) -> Iterator[Answer]:
    """The newest revision of each page of each participant, also while a server runs. Raises DataError."""
    newest = "SELECT answer, max(revision) FROM answers GROUP BY participant, page ORDER BY participant, page"
    for text, _ in _rows(folder, newest):
        yield Answer(**json.loads(text))


def every_answer(folder: Path) -> Iterator[str]:
    """The text of all revisions. Raises DataError."""
    return (text for (text,) in _rows(folder, "SELECT answer FROM answers ORDER BY participant, page, revision"))


def withdrawals(folder: Path) -> Iterator[str]:
    """The hashes of who withdrew. Raises DataError."""
    return (hashed for (hashed,) in _rows(folder, "SELECT hash FROM withdrawn ORDER BY hash"))


def refusals(folder: Path) -> dict[str, int]:
    """How many posts were refused, by reason. Raises DataError."""
    return dict(_rows(folder, "SELECT reason, count FROM refusals ORDER BY reason"))


def _rows(folder: Path, question: str) -> Iterator[tuple]:
    path = folder / ANSWERS_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {ANSWERS_FILE}: nobody has answered yet; serve the survey.")
    refuse_foreign_file_system(folder)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA query_only=ON")
            yield from connection.execute(question)
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read ({error}). Restore it from a copy.") from error
