"""Files: written whole or not at all, by one process at a time, and read back as what they should be."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from scoft.errors import DataError


if TYPE_CHECKING:
    import safetensors
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOCK = ".lock"  # of a folder: held by the process that writes into it
PATIENCE = 10  # seconds in which what a killed run has left running notices that it is alone
MAX_NAME = 64  # characters of a name that becomes a file's or a folder's
MAX_NAME_BYTES = 200  # of it in UTF-8; file systems take 255, of which what we put around it needs some
MAX_CARD = 2**20  # bytes of a README
MAX_DEPTH = 20  # of lists and tables in each other in its YAML
MAX_RECORD = 2**26  # bytes of a JSON file; ours stay far below


# ---------------------------------------------------------------------------------------------------------------------
# Keys
# ---------------------------------------------------------------------------------------------------------------------


def content_key(*parts: object) -> str:
    """sha256 of the parts: text, bytes, numbers, None, dataclasses, lists and dicts of these. TypeError for others."""

    def stable(part: object) -> object:
        if isinstance(part, bytes):
            return ["bytes", hashlib.sha256(part).hexdigest()]
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return [type(part).__name__, dataclasses.asdict(part)]
        raise TypeError(f"content_key: {type(part).__name__} has no stable text form.")

    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=stable).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, which is not read into memory at once. Raises OSError."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes) -> None:
    """Whoever reads `path`, also after a kill or a power cut, finds the old content or the new one; text as UTF-8.

    Links are not followed: one in the place of `path` gives way to the file.
    """
    partial = path.with_name(f"{path.name}.partial")  # which no *.parquet or *.png finds
    partial.unlink(missing_ok=True)  # of a run that was killed, or a link
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file
            error.filename = os.fspath(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    settle(path.parent)


def settle(path: Path):
    """Let the names in a folder, or a file's content, survive a power cut, as what is relied upon must."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def private_folder(path: Path, *, flag: str) -> Path:
    """A folder for what belongs to others, made where it is not there: nobody but this user may look into it.

    Raises DataError, which names `flag`, where it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DataError(f"{flag} {path} cannot be made ({error}). Choose another folder.") from error
    if path.stat().st_mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:  # somebody else's, or a file system that knows no such thing
            logger.warning("%s %s: others may be able to look into it (%s).", flag, path, error)
    return path


@contextlib.contextmanager
def sole_writer(folder: Path, *, flag: str) -> Iterator[None]:
    """Keep other processes from writing into `folder`, made where it is not there, for as long as this lasts.

    The system frees the lock of a process that is gone, however it went. Raises DataError, which names `flag`, where
    somebody else holds it or the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s %s is being written to; waiting %d s for that to end.", flag, folder, PATIENCE)
            lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise DataError(
            f"{flag} {folder}: another run is writing into it. Wait for its end, or choose another folder."
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DataError(f"{flag} {folder} cannot be written to ({error}). Choose another folder.") from error
    try:
        yield
    finally:
        lock.release()


def is_empty(folder: Path) -> bool:
    """Whether `folder` is not there or holds nothing; a lock is nothing."""
    return not folder.exists() or all(path.name == LOCK for path in folder.iterdir())


class Ledger:
    """Finished work, a JSON object a line, each with a "key"; lines are only ever added, and the last of a key holds.

    A line is written in one piece, so several threads and processes may share the file (on a local disk). One that a
    kill has torn is as if it had not been written.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict]:
        """Key -> its last entry, in the order of these. Raises DataError for a whole line that is no entry."""
        try:
            lines = read_regular(self.path).decode(errors="replace").split("\n") if self.path.exists() else ()
        except (OSError, DataError) as error:
            raise DataError(f"{self.path} cannot be read: {error}.") from error
        entries = {}
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):  # torn, or blank
                continue
            if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
                raise DataError(f"{self.path}, line {number} is no entry: an object with a key. Remove the line.")
            entries.pop(entry["key"], None)
            entries[entry["key"]] = entry
        return entries

    def read_as(self, kind: type[T], *, remedy: str) -> list[T]:
        """The entries as `kind`, see `read_record`, in their order; what they hold beyond it is left out."""
        return list(self.read_by_key(kind, remedy=remedy).values())

    def read_by_key(self, kind: type[T], *, remedy: str) -> dict[str, T]:
        """Key -> its last entry as `kind`, see `read_as`."""
        return {
            key: _checked(entry, kind, where=f"{self.path}, the entry of {key!r},", remedy=remedy)
            for key, entry in self.read().items()
        }

    def add(self, key: str, **entry):
        # begins with a line break too: the line before may be torn
        line = f"\n{json.dumps({'key': key} | entry, ensure_ascii=False)}\n".encode()
        with open(self.path, "ab", buffering=0) as file:
            file.write(line)


def cached_tensors(
    path: str | os.PathLike | None, *, key: str, compute: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The CPU tensors in the safetensors file `path`, see `cached_file`. None: compute() alone."""
    if path is None:
        return compute()
    file = cached_file(path, key=key, compute=compute)
    return {name: file.get_tensor(name) for name in file.keys()}


def cached_file(
    path: str | os.PathLike, *, key: str, compute: Callable[[], dict[str, torch.Tensor]]
) -> safetensors.safe_open:
    """The safetensors file `path`, open, if its header holds `key`; else it is made of what compute() gives.

    A file that is absent, was made under another key or cannot be read is made anew, and the log says which. Of
    several processes that want it one computes and the others wait; it is replaced atomically.
    """
    from filelock import FileLock
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        reason = "there was none"
        if path.exists():
            try:
                file = safe_open(path, framework="pt")
                if (file.metadata() or {}).get("key") == key:
                    return file
                reason = "the old one was thrown away: its data or settings were others"
            except (SafetensorError, OSError) as error:
                reason = f"the old one was thrown away: unreadable ({error})"
        contiguous = {name: tensor.contiguous() for name, tensor in compute().items()}
        write_atomically(path, save(contiguous, metadata={"key": key}))
        logger.info("Made the cache %s: %s.", path, reason)
        return safe_open(path, framework="pt")


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def open_regular(path: Path, *, within: Path | None = None) -> BinaryIO:
    """A regular file, open to be read, below `within` where that is given: links and `..` that lead out are refused.

    FIFOs, devices, sockets and folders, which would hang or never end, raise DataError, and so does what is no path at
    all. One that is not there, or not for this user, raises OSError.
    """
    try:
        real = path.resolve()
        if within is not None and not real.is_relative_to(within.resolve()):
            raise DataError(f"lies outside of {within}, where alone files are read; copy it there")
        descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except DataError:
        raise
    except (ValueError, RuntimeError) as error:  # a NUL, half a character, or links in a circle
        raise DataError(f"is not a path that can be opened ({error})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("is not a regular file")
    return open(descriptor, "rb")


def read_regular(path: Path, *, within: Path | None = None, at_most: int | None = None) -> bytes:
    """The content of a file, see `open_regular`; one of more than `at_most` bytes raises DataError."""
    with open_regular(path, within=within) as file:
        size = os.fstat(file.fileno()).st_size
        if at_most is not None and size > at_most:
            raise DataError(f"has {size} bytes; {at_most} are allowed")
        return file.read()


def read_file(path: Path, *, within: Path | None = None, at_most: int | None = None) -> bytes:
    """The content of a file, see `read_regular`. Raises DataError, which names the file."""
    try:
        return read_regular(path, within=within, at_most=at_most)
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_front_matter(path: Path, *, within: Path | None = None) -> dict:
    """The YAML with which a card (README.md) begins, {} where it has none. Raises DataError, which names the file.

    YAML's aliases, by which a few lines stand for billions, are refused, and so are brackets in brackets without end,
    on which it takes hours.
    """
    import yaml

    try:
        text = read_regular(path, within=within, at_most=MAX_CARD).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from error
    try:
        found = re.match(r"\s*---[ \t]*\r?\n(.*?)^---", text, re.DOTALL | re.MULTILINE)
        if found is None:
            return {}
        depth = 0
        for event in yaml.parse(found[1]):
            if isinstance(event, yaml.AliasEvent):
                raise DataError("it uses an alias, *name; write out what that stands for")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise DataError(f"more than {MAX_DEPTH} lists and tables lie in each other")
        content = yaml.safe_load(found[1]) or {}
        if not isinstance(content, dict):
            raise DataError("it has no `name: value`")
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} begins with metadata that is not valid YAML ({error}).") from error
    return content


def read_record(path: Path, kind: type[T], *, remedy: str, at_most: int = MAX_RECORD) -> T:
    """The JSON file `path`, of `at_most` bytes, as `kind`: a dataclass, a pydantic model, or such as dict[str, float].

    Raises DataError, which names the file, what in it is wrong and the `remedy`.
    """
    try:
        content = read_regular(path, at_most=at_most)
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read ({error}). {remedy}") from error
    return _checked(content, kind, where=str(path), remedy=remedy)


def read_lines(path: Path, kind: type[T], *, remedy: str) -> list[T]:
    """The lines of the file `path`, a JSON each, as `kind`; none where there is no file. DataError names the line."""
    if not path.exists():
        return []
    try:
        lines = read_regular(path, at_most=MAX_RECORD).split(b"\n")
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read ({error}). {remedy}") from error
    return [
        _checked(line, kind, where=f"{path}, line {number}", remedy=remedy)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _checked(content: bytes | object, kind: type[T], *, where: str, remedy: str) -> T:
    """JSON, or an object that was read from it, as `kind`; DataError begins with `where`."""
    from pydantic import ValidationError

    try:
        checker = _checker(kind)
        return checker.validate_json(content) if isinstance(content, bytes) else checker.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{step}: " for step in first["loc"])
        raise DataError(f"{where} is not as it was written: {place}{first['msg']}. {remedy}") from error


@functools.cache
def _checker(kind: type):
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def is_mark(character: str) -> bool:
    """Whether it belongs to the letter before it: an accent, or a vowel sign as many scripts have them."""
    return unicodedata.category(character).startswith("M")


def checked_name(name: str, *, what: str) -> str:
    """`name`, if a file or folder may have it: 1 to MAX_NAME letters, digits, - and _, the first a letter or digit.

    Letters are those of any script, with their marks, such as vowel signs. Raises DataError, which begins with `what`:
    a flag, or a file and its field.
    """
    bare = "".join(letter for letter in name if not is_mark(letter))
    sound = re.match(r"[^\W_]", name) and re.fullmatch(r"[\w-]+", bare)
    if not sound or len(name) > MAX_NAME or len(name.encode()) > MAX_NAME_BYTES:
        raise DataError(
            f"is 1 to {MAX_NAME} letters, digits, - and _, a letter or digit first (at most {MAX_NAME_BYTES} bytes), "
            f"got {name!r}.",
            argument=what,
        )
    return name
