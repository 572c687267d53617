"""The Hugging Face Hub, asked so that every question ends: in an answer of the right kind, or in an error."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scoft.errors import DataError


if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

T = TypeVar("T")
CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")  # the user name and password of an address
SILENCE = 60  # seconds without a byte, after which a request has failed
ANSWER_TIME = 120  # seconds for a question, with all that huggingface_hub asks again
MAX_ANSWER = 2**26  # bytes of an answer of the Hub's API; those to our questions stay far below
WAITS = (2, 10, 30)  # seconds before a commit that failed is tried again
BUSY = (408, 412, 429, 500, 502, 503, 504)  # statuses of a Hub that may take the same commit later
PUSH_TIME, PUSH_SPEED = 900, 2**14  # a push may last so many seconds, and one more for each so many bytes
MAX_SAID = 600  # characters of what others say that we repeat


def endpoint() -> str:
    """The Hub's address, as it may be shown."""
    from huggingface_hub import constants

    return CREDENTIALS.sub("", constants.ENDPOINT)


def ask(question: Callable[[HfApi], T], *, seconds: float | None = None) -> T:
    """`question(api)`, within `seconds` (None: ANSWER_TIME); huggingface_hub alone waits for a silent Hub for ever.

    Raises what huggingface_hub raises: HTTPError, OSError or ValueError. TimeoutError, an OSError, where the Hub is
    not done in time, and OSError where it answers with what is no Hub's, as the login page of a network does.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import get_session

    session, api, answer = get_session(), HfApi(), Future()
    session.timeout = SILENCE
    if refuse_huge not in session.event_hooks["response"]:
        session.event_hooks["response"].append(refuse_huge)

    def work():
        try:
            answer.set_result(question(api))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a daemon does not keep the process from its end
    seconds = ANSWER_TIME if seconds is None else seconds
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"{endpoint()} was not done within {seconds:.0f} seconds") from error
    except Exception as error:  # huggingface_hub takes an answer as it comes, and trips in nearly every way there is
        own = isinstance(error, (HTTPError, OSError, ValueError))
        if own and not isinstance(error, (json.JSONDecodeError, UnicodeError)):
            raise
        raise OSError(f"{endpoint()} answers, but not as a Hub does ({type(error).__name__}: {error})") from error


def refuse_huge(response):
    """Stop at the headers of an answer of the API that would fill the memory; files may be as large as they are."""
    if response.request.url.path.startswith("/api/") and int(response.headers.get("content-length", 0)) > MAX_ANSWER:
        raise OSError(f"{response.request.url.host} answers with more than {MAX_ANSWER} bytes")


def text_of(value: object, form: str) -> str:
    """`value`, if it is text of this form, as what a Hub answers should be; else a TypeError, which `ask` explains."""
    if not isinstance(value, str) or not re.fullmatch(form, value):
        raise TypeError(f"{str(value)[:80]!r} is not what was asked for")
    return value


def hub_commit(
    repo_id: str, *, revision: str | None, file: str, repo_type: str = "model", cache_dir: str | None = None
) -> str:
    """The commit, 40 hex digits, that a branch, tag or commit of a Hub repository stands for; None: its main branch.

    Where the Hub cannot be reached, it is that of the cached copy of `file`. But a Hub that refuses, because there is
    no such repository or revision or it is not for this user, is believed. Raises OSError or httpx's HTTPError, as
    huggingface_hub does; LocalEntryNotFoundError if the cache cannot tell.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    download = functools.partial(hf_hub_download, repo_id, file, repo_type=repo_type, cache_dir=cache_dir)
    try:
        commit = ask(
            lambda api: text_of(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha, "[0-9a-f]{40}")
        )
    except (HTTPError, OfflineModeIsEnabled, TimeoutError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
    else:
        with contextlib.suppress(EntryNotFoundError):
            download(revision=revision)  # by its name, so that the cache knows offline what the name stood for
        return commit
    cached = download(revision=revision, local_files_only=True)
    return Path(cached).parents[file.count("/")].name  # .../snapshots/<commit>/<file>


# ---------------------------------------------------------------------------------------------------------------------
# Pushes
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub_errors(what: str, *, remedy: str):
    """Let a DataError say what failed on the Hub, how, and what can be done."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except DataError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a name or a page that the Hub does not take
        said = textwrap.shorten(CREDENTIALS.sub("", str(error)), MAX_SAID)
        raise DataError(f"{what}: {said}\n{remedy}") from error


def ready_repo(repo_id: str, *, repo_type: str, private: bool, flag: str) -> tuple[str, bool]:
    """The full id of a repository that can be written to, created if there is none, and whether it is private.

    `name` becomes `<you>/name`. A repository that exists keeps its visibility: one that all can see is refused where
    a private one is asked for. Raises DataError, which names `flag`.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise DataError(f"{flag} {repo_id}: nobody is logged in. `hf auth login`, or set HF_TOKEN.")

    def create(api) -> tuple[str, bool]:
        full_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        return full_id, is_private(api, full_id, repo_type=repo_type)[0]

    with hub_errors(f"{flag} {repo_id} cannot be written to", remedy="Name another, or log in as one who may."):
        full_id, found_private = ask(create)
    if private and not found_private:
        raise DataError(f"{flag} {full_id} is public already on {endpoint()}; make it private there or name another.")
    return full_id, found_private


def is_private(api, repo_id: str, *, repo_type: str) -> tuple[bool, str | None]:
    """Whether a repository is private, for sure, and its newest commit; what the Hub leaves open is public."""
    info = api.repo_info(repo_id, repo_type=repo_type)
    return info.private is True, info.sha


def files_on_hub(repo_id: str, *, repo_type: str) -> list[str]:
    """The files of a repository's main branch. Raises DataError."""
    with hub_errors(f"{repo_id} cannot be read", remedy="Is the Hub reachable, and may you see it?"):
        return ask(lambda api: [text_of(path, ".+") for path in api.list_repo_files(repo_id, repo_type=repo_type)])


def push(
    repo_id: str,
    *,
    repo_type: str,
    files: dict[str, Path | bytes],
    stale: Sequence[str],
    private: bool,
    message: str,
    retry: str,
) -> str:
    """Commit `files` (path in the repository -> file or content), without `stale` ones; returns the address.

    All of it arrives, or nothing, and then DataError names `retry`, the command that tries again. What is `private`
    is sent to no repository that is public by now, however long ago it was readied: it is asked before the files are
    uploaded, and again before the commit that shows them, which belongs to the very repository that was asked.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    address = "/".join([endpoint(), *(["datasets"] if repo_type == "dataset" else []), repo_id])
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())

    def head(api) -> str | None:
        found_private, commit = is_private(api, repo_id, repo_type=repo_type)
        if private and not found_private:
            raise DataError(
                f"{address} has become public, and what was to be pushed is not for all: nothing was committed. Make "
                f"it private on the Hub, then: {retry}"
            )
        return commit

    def commit(api):
        head(api)
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        there = api.list_repo_files(repo_id, repo_type=repo_type) if stale else ()
        deleted = [CommitOperationDelete(path) for path in stale if path in there]  # the last try may have arrived
        api.preupload_lfs_files(repo_id, added, repo_type=repo_type, free_memory=False)
        where = {"repo_id": repo_id, "repo_type": repo_type, "parent_commit": head(api)}
        api.create_commit(operations=added + deleted, commit_message=message, **where)

    with hub_errors(f"{address}: the push failed", remedy=f"All is kept here. To push it again: {retry}"):
        ask(lambda api: persistently(lambda: commit(api)), seconds=PUSH_TIME + size / PUSH_SPEED)
    logger.info("Pushed to %s", address)
    return address


def persistently(commit: Callable[[], None]):
    """Call `commit`, again after each of WAITS as long as the Hub is busy, broken or gone; then let its error pass.

    huggingface_hub repeats all other requests itself. A commit that arrived though its answer did not is no harm: the
    next one finds nothing changed. 412: somebody else committed in between.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for wait in WAITS:
        try:
            return commit()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY:
                raise
            logger.warning("The push failed (%s); once more in %d seconds", str(error).split("\n")[0], wait)
            time.sleep(wait)
    return commit()


def add_to_collection(title: str, *, repo_id: str, private: bool, retry: str):
    """Put a model into the collection of this title of the model's owner, which is created if there is none."""
    owner = repo_id.partition("/")[0]

    def join(api) -> str:
        slug = api.create_collection(title, namespace=owner, private=private, exists_ok=True).slug
        return api.add_collection_item(slug, repo_id, "model", exists_ok=True).slug

    with hub_errors(f"{repo_id} did not get into the collection {title!r}", remedy=f"To try again: {retry}"):
        slug = ask(join)
    logger.info("In the collection %s/collections/%s", endpoint(), slug)
