"""The Hugging Face Hub, asked so that every question ends: in an answer of the right kind, or in an error."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar


if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")  # the user name and password of an address
SILENCE = 60  # seconds without a byte, after which a request has failed
ANSWER_TIME = 120  # seconds for a question, with all that huggingface_hub asks again
MAX_ANSWER = 2**26  # bytes of an answer of the Hub's API; those to our questions stay far below


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
