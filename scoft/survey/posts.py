"""What a browser posts, checked before it is kept: all else is refused by a reason that has a name and is counted."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from scoft.survey.schema import ITEMS, LANGUAGE_FORM, Answer, Pages


MAX_BODY = 16 * 1024  # bytes of a post
MAX_REVISIONS = 100  # of a page by a participant: nobody changes an answer more often
MAX_MILLISECONDS = 10**9  # eleven days
PARTICIPANT_FORM = r"[0-9a-f]{32}"  # 128 random bits: who does not know it cannot answer or withdraw in its name
MAX_PANEL = 128  # characters of a panel's id


@dataclass
class Refused(Exception):
    """A post that is not kept: the status and the reason that are answered, and words for whoever reads them."""

    status: int
    reason: str
    told: str
    more: dict | None = None  # of the reply


STRICT = ConfigDict(extra="forbid", strict=True)


@checked_dataclass(config=STRICT)
class Post:
    """The body of POST /answers."""

    answer: Answer
    panel: str | None = None  # the panel's id of the participant, of which only a hash is kept


@checked_dataclass(config=STRICT)
class Withdrawal:
    """The body of POST /withdraw."""

    survey: str
    participant: str


class Checker:
    """Reads posts to a survey. Raises Refused."""

    def __init__(self, pages: Pages):
        self.survey = pages.survey
        self.pages = dict(enumerate(map(set, pages.pages)))
        self.readers = {kind: TypeAdapter(kind) for kind in (Post, Withdrawal)}

    def read(self, kind: type[Post] | type[Withdrawal], body: bytes) -> Post | Withdrawal:
        try:
            found = self.readers[kind].validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))[:80]
            raise Refused(400, "malformed", f"{place}: {first['msg'][:200]}") from error
        named = found.answer if isinstance(found, Post) else found
        if named.survey != self.survey:
            raise Refused(409, "other_survey", "this is an answer to another survey; load the page again")
        if not re.fullmatch(PARTICIPANT_FORM, named.participant):
            raise Refused(400, "participant", "a participant is 32 hexadecimal digits")
        return found

    def post(self, body: bytes) -> Post:
        post = self.read(Post, body)
        self.check_answer(post.answer)
        if post.panel is not None and not (0 < len(post.panel) <= MAX_PANEL and post.panel.isprintable()):
            raise Refused(400, "panel", f"a panel's id has 1 to {MAX_PANEL} printable characters")
        return post

    def withdrawal(self, body: bytes) -> Withdrawal:
        return self.read(Withdrawal, body)

    def check_answer(self, answer: Answer):
        if answer.page not in self.pages:
            raise Refused(400, "page", f"there is no page {answer.page}")
        pictures = self.pages[answer.page]
        if not 1 <= answer.revision <= MAX_REVISIONS:
            raise Refused(400, "revision", f"a revision is from 1 to {MAX_REVISIONS}")
        if not re.fullmatch(LANGUAGE_FORM, answer.language):
            raise Refused(400, "language", "a language is a code such as en")
        if not 0 <= answer.milliseconds <= MAX_MILLISECONDS:
            raise Refused(400, "milliseconds", f"milliseconds are from 0 to {MAX_MILLISECONDS}")
        if len(answer.order) != len(pictures) or set(answer.order) != pictures:
            raise Refused(400, "order", "order is the page's pictures, each once")
        if answer.ranks.keys() != set(ITEMS):
            raise Refused(400, "items", f"ranks are of {', '.join(ITEMS)}")
        for item, ranks in answer.ranks.items():
            given = [rank for rank in ranks.values() if rank is not None]
            if ranks.keys() != pictures:
                raise Refused(400, "pictures", f"{item} ranks the page's pictures, each once")
            if not all(1 <= rank <= len(pictures) for rank in given):
                raise Refused(400, "rank", f"{item}: a rank is from 1 to {len(pictures)}, or null")
            if len(given) != len(set(given)):
                raise Refused(400, "repeated_rank", f"{item} gives a rank twice")
