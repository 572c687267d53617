"""What earlier runs of this user found out, kept beside the models that they downloaded. Any of it may be deleted.

Nothing in here decides a result: what is not there, torn, or not this user's own, is found out once more.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.errors import DataError
from scoft.files import PATIENCE, cached_tensors, private_folder, read_record, write_atomically


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_VERDICTS = 2**29  # bytes of a file of verdicts: some three million images


def user_cache(cache_dir: str | os.PathLike | None) -> Path | None:
    """The folder `scoft` of `cache_dir` or of the Hugging Face home, for this user alone.

    None, with a warning, where it cannot be written to or is somebody else's, whose word is not taken.
    """
    from huggingface_hub import constants

    folder = Path(cache_dir or constants.HF_HOME, "scoft")
    try:
        private_folder(folder, flag="the cache")
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise DataError("it is another user's")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise DataError("it cannot be written to")
    except (OSError, DataError) as error:
        logger.warning("Nothing is remembered in %s (%s); all is found out anew.", folder, error)
        return None
    return folder


def remembered_tensors(
    path: Path | None, *, key: str, compute: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """As `cached_tensors`; but where the file cannot be kept there is a warning, since all goes on without."""
    compute = functools.cache(compute)
    try:
        return cached_tensors(path, key=key, compute=compute)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        logger.warning("%s cannot be kept for later runs: %s", path, error)
        return compute()


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts on images
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What is known of an image as long as its `stamp` stays the same: its sha256, or what is wrong with it."""

    stamp: str
    sha256: str
    problem: str

    def __post_init__(self):
        if bool(self.sha256) == bool(self.problem):
            raise ValueError("an image has a sha256 or a problem")


@dataclass(frozen=True)
class _Verdicts:
    """Content of a file of verdicts."""

    key: str
    verdicts: dict[str, Verdict]


@contextlib.contextmanager
def remembered_verdicts(path: Path | None, *, key: str) -> Iterator[dict[str, Verdict]]:
    """Image's name -> verdict of earlier runs that judged by the same `key`; what is added is kept for later ones.

    Of several processes one has them at a time, so that the first judges and the others find its verdicts; they are
    kept also where it does not come to an end. None: no earlier ones, and none is kept.
    """
    with contextlib.ExitStack() as held:
        if path is None or not _locked(path, held):
            yield {}
            return
        verdicts = _read_verdicts(path, key=key)
        known = dict(verdicts)
        try:
            yield verdicts
        finally:
            if verdicts != known:
                _write_verdicts(path, key=key, verdicts=verdicts)


def _locked(path: Path, held: contextlib.ExitStack) -> bool:
    """Wait until no other process has the file; whether it can be had alone at all, else there is a warning."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            logger.info("Another process looks at the images of this dataset; waiting for what it finds.")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        logger.warning("%s cannot be kept for later runs: %s", path, error)
        return False
    held.callback(lock.release)
    return True


def _read_verdicts(path: Path, *, key: str) -> dict[str, Verdict]:
    if not path.exists():
        return {}
    try:
        kept = read_record(path, _Verdicts, remedy="All images are looked at anew.", at_most=MAX_VERDICTS)
    except DataError as error:
        logger.warning("%s", error)
        return {}
    return kept.verdicts if kept.key == key else {}


def _write_verdicts(path: Path, *, key: str, verdicts: dict[str, Verdict]):
    try:
        write_atomically(path, json.dumps(asdict(_Verdicts(key, verdicts))))
    except OSError as error:
        logger.warning("%s cannot be kept for later runs: %s", path, error)
