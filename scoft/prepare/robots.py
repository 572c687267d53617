"""What a host permits: the rules of its robots.txt by RFC 9309, and opt-outs in the headers of its answers."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote_to_bytes

from urllib3 import HTTPHeaderDict


PRODUCT = "SCoFT"  # how robots.txt and X-Robots-Tag may address this program
_OPT_OUTS = {"noai", "noimageai", "noml", "noindex", "noimageindex", "none"}
# What an X-Robots-Tag is made of: a date, which may hold commas; numbers and sizes, of no interest; and words, each a
# directive, or with a colon the robot that the rest of the line is for.
_ROBOTS_TAG = re.compile(
    r"unavailable_after\s*:\s*(?P<date>(?:[a-z]+,)?[^,]*)|max-[a-z-]+\s*:\s*[^\s,]*|(?P<word>[^\s,:;]+)(?P<colon>\s*:)?"
)
_ARCHIVED = "X-Archive-Orig-"  # before the names of the headers that the Internet Archive was given


class Robots:
    """The rules of a robots.txt for us, by RFC 9309: of the groups that name us, else of those for all; the longest
    rule that matches decides, and permission wins a draw.

    Our own, since a thread cannot be stopped: the time taken here is bounded by the file's size and the link's budget,
    where protego 0.7, which is well kept, multiplies agents by rules and was busy with 363 KB of them for 115 s.
    """

    def __init__(self, content: bytes):
        us, all_robots = PRODUCT.lower().encode(), b"*"
        groups: dict[bytes, set[tuple[int, bool, bytes]]] = {}  # those two alone: others' rules would add up
        delays: dict[bytes, float] = {}
        agents: set[bytes] = set()
        in_rules = False
        for line in content.removeprefix(codecs.BOM_UTF8).splitlines():
            key, _, value = (part.strip() for part in line.partition(b"#")[0].partition(b":"))
            match key.lower():
                case b"user-agent":
                    agents, in_rules = (set() if in_rules else agents), False
                    agents |= {re.match(rb"\*|[A-Za-z_-]*", value)[0].lower()} & {us, all_robots}
                    groups |= {agent: groups.get(agent, set()) for agent in agents}  # without rules it permits all
                case b"allow" | b"disallow":
                    in_rules = True
                    for agent in agents if value else ():
                        groups[agent].add((len(value), key.lower() == b"allow", value))
                case b"crawl-delay" if re.fullmatch(rb"[0-9]{1,9}(\.[0-9]{0,9})?", value):
                    delays |= dict.fromkeys(agents, float(value))
        group = us if us in groups else all_robots
        self.delay = delays.get(group, 0.0)  # seconds between two requests
        rules = sorted(groups.get(group, ()), reverse=True)  # what decides comes first
        self.rules = [(allow, _pieces(pattern), pattern.endswith(b"$")) for _, allow, pattern in rules]

    def allows(self, path: str, *, seconds_left: Callable[[], float]) -> bool:
        """Raises TimeoutError when no time is left before all rules are gone through."""
        text = unquote_to_bytes(path)
        for allow, pieces, to_the_end in self.rules:
            if seconds_left() <= 0:
                raise TimeoutError
            if _matches(text, pieces, to_the_end=to_the_end):
                return allow
        return True


def _pieces(pattern: bytes) -> list[bytes]:
    """What a path holds in this order, the first at its beginning, if it is one of the pattern's."""
    first, *others = (unquote_to_bytes(piece) for piece in pattern.removesuffix(b"$").split(b"*"))
    return [first, *filter(None, others[:-1]), *others[-1:]]


def _matches(text: bytes, pieces: list[bytes], *, to_the_end: bool) -> bool:
    # piece by piece and not as a regular expression, which a hostile pattern of many stars could stall for hours
    if not text.startswith(pieces[0]):
        return False
    if to_the_end and len(pieces) == 1:
        return text == pieces[0]
    at, end = len(pieces[0]), len(text)
    if to_the_end:
        end -= len(pieces[-1])
        if end < at or not text.endswith(pieces[-1]):
            return False
    for piece in pieces[1:-1] if to_the_end else pieces[1:]:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def opt_out(headers: HTTPHeaderDict) -> str | None:
    """The header that reserves the picture from indexing or machine learning, for all or for us by name; also one that
    an archive has kept of the picture's own host.
    """
    for origin in ("", _ARCHIVED):
        if "1" in (part.strip() for line in headers.getlist(f"{origin}TDM-Reservation") for part in line.split(",")):
            return f"{origin}TDM-Reservation: 1"
        for line in headers.getlist(f"{origin}X-Robots-Tag"):
            agent = "*"
            for part in _ROBOTS_TAG.finditer(line.lower()):
                if part["colon"]:
                    agent = part["word"].partition("/")[0]  # without its version
                elif agent in ("*", PRODUCT.lower()) and (part["word"] in _OPT_OUTS or _is_past(part["date"])):
                    return f"{origin}X-Robots-Tag: {part['word'] or 'unavailable_after'}"
    return None


def _is_past(date: str | None) -> bool:
    moment = moment_of(date.strip().upper()) if date else None
    return moment is not None and moment < datetime.now(UTC)


def moment_of(text: str) -> datetime | None:
    """The moment that a header names in a form of HTTP's or of ISO 8601; in UTC where it names no zone. Else None."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        with suppress(ValueError, OverflowError):
            moment = read(text)
            return moment.replace(tzinfo=moment.tzinfo or UTC)
    return None
