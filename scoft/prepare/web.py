"""One link to one photograph: politely, safely, within bounds. The only place where SCoFT asks the web for anything.

Links come from strangers' sheets, so what they lead to is hostile until shown otherwise:
- http and https only, ports 80 and 443, no user names, public addresses only. A name is resolved once and the
  connection goes to an address that was checked, so a name that changes its mind (DNS rebinding) gains nothing; each
  redirect is checked from scratch and may not fall from https to http.
- No cookies, credentials or Referer are sent, and proxies of the environment are not used: a proxy would resolve the
  name again, out of sight. Certificates are those that Python's ssl trusts (SSL_CERT_FILE adds others).
- Bytes are counted after decoding, time over all redirects and retries. Only a link's own time counts: not the
  waiting for other links of its host, nor the delay that we keep between two requests to it.
- robots.txt is obeyed by RFC 9309, with the pause that Crawl-delay asks for, and opt-outs in headers (X-Robots-Tag,
  TDM-Reservation) are honoured, on the way to the photograph and as an archive keeps them too.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import itertools
import logging
import posixpath
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple
from urllib.parse import unquote, urljoin

from urllib3 import HTTPHeaderDict, HTTPResponse, exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Url, parse_url

from scoft.errors import DataError
from scoft.images import kind_of
from scoft.prepare.robots import PRODUCT, Robots, moment_of, opt_out


PHOTOGRAPH_FORMATS = ("JPEG", "PNG", "WEBP")  # what photographs on the web are; each decoder more is one more to trust
_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_URL_CHARACTERS = 8000  # RFC 9110, 4.1: what all servers should understand
_ROBOTS_BYTES = 500 * 1024  # RFC 9309, 2.5: what a crawler must read at least
_ROBOTS_RULES = 10_000  # for us; gone through for each link, and kept for each host
_CHUNK = 64 * 1024

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST6 = ipaddress.ip_network("2000::/3")
# Not for the public, though some versions of `is_global` say so; 168.63.129.16 is Azure's metadata service.
_RESERVED = [
    ipaddress.ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "3fff::/20")
]

# At a malformed header urllib3 logs a warning that spells out the whole URL, which may be a signed one.
logging.getLogger("urllib3.connection").addFilter(lambda record: "Failed to parse headers" not in str(record.msg))


class NotUsable(Exception):
    """Why a link or its bytes give no photograph: `status`, and in `detail` the reason.

    `transient`: it may go better later, after `retry_after` seconds where the host said so.
    """

    def __init__(
        self,
        status: str,
        detail: str,
        *,
        transient: bool = False,
        retry_after: float | None = None,
        http_code: int | None = None,
    ):
        super().__init__(detail)
        self.status, self.detail, self.transient = status, detail, transient
        self.retry_after, self.http_code = retry_after, http_code


# ---------------------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------------------


def check_photograph(content: bytes):
    """Whether bytes begin as a photograph does; 16 of them are enough. Raises NotUsable if they are anything else."""
    kind = kind_of(content)
    if kind not in PHOTOGRAPH_FORMATS:
        found = kind if content else "no content"
        wanted = ", ".join(PHOTOGRAPH_FORMATS)
        raise NotUsable(
            "not_an_image", f"{found}, which is none of {wanted}; a picture of your own can be saved as one"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Where a link may lead
# ---------------------------------------------------------------------------------------------------------------------


def _parse(url: str) -> Url:
    """Take a URL apart, once, so that what is checked and what is asked for are the same.

    Host in lower case and IDNA, port None where it is the scheme's own, path percent-encoded, no fragment.
    """
    url = url.strip()
    if len(url) > _URL_CHARACTERS:
        raise NotUsable("blocked_scheme", f"the URL has {len(url)} characters; {_URL_CHARACTERS} are allowed")
    try:
        parts = parse_url(url)
    except exceptions.LocationParseError as error:
        raise NotUsable("blocked_scheme", "not a URL that can be understood") from error
    host = (parts.host or "").rstrip(".")
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise NotUsable("blocked_scheme", f"not http:// or https:// and a host, but {parts.scheme or 'no scheme'}")
    if parts.auth is not None:
        raise NotUsable("blocked_scheme", "the URL holds a user name or password")
    port = None if parts.port == _DEFAULT_PORTS[parts.scheme] else parts.port
    return Url(parts.scheme, None, host, port, parts.path or "/", parts.query)


def _port(url: Url) -> int:
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def is_public(address: str) -> bool:
    """Whether an IP address (text, no name) is unicast on the public internet, also where IPv6 wraps an IPv4 address:
    not private, loopback, link-local, carrier's (100.64/10), multicast, reserved, or of a cloud's metadata service.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST6:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _RESERVED)


def _resolve(host: str, port: int, *, seconds: float) -> list[str]:
    """The addresses of a name. The system's resolver takes no time limit, so it is asked from a thread of its own."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:  # ValueError: labels that are empty or too long
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise NotUsable("timeout", "no name server answered in time", transient=True) from None
    if isinstance(answer, Exception):
        again = isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_AGAIN
        raise NotUsable("http_error", "the name does not resolve", transient=again) from answer
    return list(dict.fromkeys(sockaddr[0] for *_, sockaddr in answer))


# ---------------------------------------------------------------------------------------------------------------------
# What headers say
# ---------------------------------------------------------------------------------------------------------------------


def _licence(headers: HTTPHeaderDict, base: str) -> str | None:
    for address, parameters in re.findall(r"<([^<>]*)>([^<>]*)", ", ".join(headers.getlist("Link"))):
        relation = re.search(r'\brel\s*=\s*("[^"]*"|[^\s;,]*)', parameters, re.IGNORECASE)
        if relation and "license" in relation[1].strip('"').lower().split():
            url = _joined(base, address)
            return url if url.startswith(("http://", "https://")) else None
    return None


def _joined(base: str, header: str) -> str:
    """The URL in a header. It may hold raw UTF-8, where http.client takes all for Latin-1."""
    with suppress(UnicodeError):  # then Latin-1 was right
        header = header.encode("latin-1").decode()
    try:
        return urljoin(base, header)
    except ValueError:  # such as unbalanced brackets; `_parse` will say so
        return header


def _retry_after(headers: HTTPHeaderDict) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date; None if it is absent or neither."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    moment = moment_of(value)
    return None if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())


# ---------------------------------------------------------------------------------------------------------------------
# Fetching
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of a link: `status` is ok, blocked_scheme, blocked_address, denied, robots, opted_out, http_error,
    timeout, too_large or not_an_image; unless ok, `detail` names host and reason, but no path or query, where secrets
    live. The two URLs are whole: `url` as given, `final_url` the last that was gone to.
    """

    url: str
    final_url: str
    status: str
    detail: str = ""
    transient: bool = False  # not ok, but it may be another day: timeouts, broken connections, 429, 5xx
    http_code: int | None = None
    content: bytes | None = field(default=None, repr=False)
    sha256: str | None = None  # of content
    licence: str | None = None  # URL, where the host sends a Link header with rel=license
    fetched_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class _Answer(NamedTuple):
    headers: HTTPHeaderDict
    content: bytes = b""
    redirect: str | None = None


class _Budget:
    """The seconds that a link has left, and those that it waited for others, which are not counted."""

    def __init__(self, seconds: float, clock: Callable[[], float]):
        self._clock, self._end, self.waited = clock, clock() + seconds, 0.0

    def left(self) -> float:
        return self._end - self._clock()

    def extend(self, seconds: float) -> None:
        self._end += seconds
        self.waited += seconds

    @contextmanager
    def waiting_for(self, lock: threading.Lock) -> Iterator[None]:
        asked = self._clock()
        with lock:
            self.extend(self._clock() - asked)
            yield


@dataclass
class _Host:
    """Links of one host are fetched one after the other, the next not before `ready_at`; its robots.txt is read once.

    Who holds `asking` may wait for any `turn`, never the other way round, so nobody waits in a circle.
    """

    turn: threading.Lock = field(default_factory=threading.Lock)
    ready_at: float = float("-inf")
    delay: float = 0.0  # seconds that its robots.txt asks for between two requests
    asking: threading.Lock = field(default_factory=threading.Lock)
    robots: dict[str, Robots | NotUsable] = field(default_factory=dict)  # by scheme, host and port


class _Watchdog(threading.Thread):
    """Shuts a connection down when its time is up. Socket timeouts cannot do this: they begin anew with each byte, so
    a server that drips bytes would hold us for days.
    """

    def __init__(self, connection: HTTPConnection, *, seconds: float):
        super().__init__(daemon=True)
        self.late = False
        self.line: socket.socket | None = None  # to be set once connected: the connection lets go of it too early
        self._connection, self._seconds, self._done = connection, max(seconds, 0), threading.Event()

    def run(self) -> None:
        wait = self._seconds
        while not self._done.wait(wait):
            self.late, wait = True, 0.05  # and again, since TLS puts another socket in the place of the first
            line = self.line or self._connection.sock
            with suppress(OSError):  # closed meanwhile, which is as good
                if line is not None:
                    socket.socket.shutdown(line, socket.SHUT_RDWR)  # not SSLSocket's, which would drop its state

    def __enter__(self) -> _Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()


@dataclass(kw_only=True, eq=False)
class Fetcher:
    """Fetches links. Thread-safe: hosts are asked side by side, each host one request at a time."""

    contact: str | None  # mail address or URL in the User-Agent, by which a site can reach whoever runs this
    # Each 'HOST' (ports 80 and 443) or 'HOST:PORT' that may be asked though its address is not public: as written in
    # the link, that port alone, and nothing that it redirects to.
    allow_host: Sequence[str] = ()
    # What must not be fetched or kept: URLs (whatever their scheme), host names (with all below them), sha256 of
    # contents.
    deny_list: Collection[str] = ()
    max_bytes: int = 25_000_000  # of one link, decoded
    total_timeout: float = 30.0  # seconds of one link
    connect_timeout: float = 10.0  # seconds of one wait
    read_timeout: float = 10.0
    host_delay: float = 1.0  # seconds from the end of a request to a host to its next, unless its robots.txt asks for
    max_crawl_delay: float = 60.0  # more; beyond this nothing is asked for
    retries: int = 2  # after 429, 5xx and failed connections; pauses double, or are those of Retry-After
    max_redirects: int = 5
    robots: bool = True  # whether robots.txt is asked
    clock: Callable[[], float] = time.monotonic  # for tests, as is the next
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.contact is not None and not re.fullmatch(r"[ -~]+", self.contact):
            raise DataError(
                f"{self.contact!r} must be printable ASCII, such as a mail address or a URL.", argument="contact"
            )
        about = "+https://arxiv.org/abs/2401.08053" + (f"; {self.contact}" if self.contact else "")
        self._user_agent = f"{PRODUCT}/1.0 ({about})"
        self._allowed = {place for entry in self.allow_host for place in _allowed_places(entry)}
        self._denied = {_denied(entry) for entry in self.deny_list}
        self._hosts: dict[str, _Host] = {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # takes a tenth of a second, which those without https links are spared

    def fetch(self, url: str) -> Fetched:
        """The photograph at `url`, of which no more than the first bytes are looked at. Never raises for a link."""
        return self._fetched(url, kind="photograph")

    def fetch_document(self, url: str) -> Fetched:
        """A file that the user named themself, such as a sheet of links: within the same guard and bounds, but of any
        content, and without asking for robots' rules, which are for those who follow links.
        """
        return self._fetched(url, kind="document")

    def _fetched(self, url: str, *, kind: str) -> Fetched:
        trail: list[Url] = []
        try:
            answer = self._follow(url, kind=kind, budget=_Budget(self.total_timeout, self.clock), trail=trail)
            sha256 = hashlib.sha256(answer.content).hexdigest()
            if sha256 in self._denied:
                raise NotUsable("denied", "the deny-list names this content")
        except NotUsable as problem:
            return Fetched(
                url=url,
                final_url=str(trail[-1]) if trail else url,
                status=problem.status,
                detail=f"{trail[-1].host}: {problem.detail}" if trail else problem.detail,
                transient=problem.transient,
                http_code=problem.http_code,
            )
        return Fetched(
            url=url,
            final_url=str(trail[-1]),
            status="ok",
            http_code=200,
            content=answer.content,
            sha256=sha256,
            licence=_licence(answer.headers, str(trail[-1])),
        )

    def _follow(self, link: str, *, kind: str, budget: _Budget, trail: list[Url]) -> _Answer:
        """The answer after all redirects. `trail` grows by each URL that was gone to."""
        url = _parse(link)
        while True:
            trail.append(url)
            if self._names(url):
                raise NotUsable("denied", "the deny-list names this link or host")
            if kind == "photograph" and self.robots:
                self._obey_robots(url, budget)
            answer = self._persist(url, kind=kind, budget=budget)
            if answer.redirect is None:
                return answer
            if len(trail) > self.max_redirects:
                raise NotUsable("http_error", f"more than {self.max_redirects} redirects")
            try:
                url = _parse(_joined(str(url), answer.redirect))
            except NotUsable as problem:
                raise NotUsable(problem.status, f"redirects to what is refused: {problem.detail}") from problem
            if trail[-1].scheme == "https" and url.scheme == "http":
                raise NotUsable("blocked_scheme", f"redirects from https to http, to {url.host}")

    def denies(self, url: str = "", *, sha256: str = "") -> bool:
        """Whether the deny-list names a link, its host or a content: for what was fetched before it did."""
        if sha256 in self._denied:
            return True
        try:
            return self._names(_parse(url))
        except NotUsable:  # such a link is not followed either
            return False

    def _names(self, url: Url) -> bool:
        labels = url.host.split(".")
        domains = {".".join(labels[i:]) for i in range(len(labels))}
        return _denied_form(url) in self._denied or bool(domains & self._denied)

    def _obey_robots(self, url: Url, budget: _Budget) -> None:
        host, origin = self._host(url), f"{url.scheme}://{url.netloc}"
        with budget.waiting_for(host.asking):
            if origin not in host.robots:
                own = _Budget(self.total_timeout / 3, self.clock)  # the host's other links need the outcome too
                robots = host.robots[origin] = self._read_robots(origin, own)
                budget.extend(own.waited)
                if isinstance(robots, Robots):
                    host.delay = max(host.delay, robots.delay)
        robots = host.robots[origin]
        if isinstance(robots, NotUsable):
            raise _copy(robots)
        try:
            if not robots.allows(url.request_uri, seconds_left=budget.left):
                raise NotUsable("robots", "robots.txt forbids it")
        except TimeoutError as error:
            why = "going through its robots.txt was not done in time"
            raise NotUsable("timeout", why, transient=True) from error

    def _read_robots(self, origin: str, budget: _Budget) -> Robots | NotUsable:
        """RFC 9309, 2.3.1: any 4xx means that there are no rules, other trouble that nothing may be fetched. We count
        429 as trouble too. A host that does not answer at all has failed the link by that, not by its robots.txt.
        """
        trail: list[Url] = []
        try:
            answer = self._follow(f"{origin}/robots.txt", kind="robots", budget=budget, trail=trail)
        except NotUsable as problem:
            code = problem.http_code
            if code is None and len(trail) == 1:
                return _copy(problem)
            if code is not None and 400 <= code < 500 and code != 429:
                return Robots(b"")
            why = f"no robots.txt to be had, so nothing may be fetched ({problem.detail})"
            return NotUsable("robots", why, transient=problem.transient, http_code=code)
        robots = Robots(answer.content)
        if robots.delay > self.max_crawl_delay:
            why = f"its robots.txt asks for {robots.delay:g} s between requests; {self.max_crawl_delay:g} are kept"
            return NotUsable("robots", why)
        if len(robots.rules) > _ROBOTS_RULES:
            why = f"its robots.txt has {len(robots.rules)} rules for us; {_ROBOTS_RULES} are gone through"
            return NotUsable("robots", why)
        return robots

    def _persist(self, url: Url, *, kind: str, budget: _Budget) -> _Answer:
        """One request, and its repetitions where they may help and there is time."""
        for attempt in itertools.count():
            try:
                return self._in_turn(url, kind=kind, budget=budget, attempt=attempt)
            except NotUsable as problem:
                pause = problem.retry_after
                if pause is None:
                    pause = max(self.host_delay, 1.0) * 2**attempt
                if not problem.transient or attempt >= self.retries or pause >= budget.left():
                    raise
            self.sleep(pause)

    def _in_turn(self, url: Url, *, kind: str, budget: _Budget, attempt: int) -> _Answer:
        host = self._host(url)
        with budget.waiting_for(host.turn):
            wait, delay = host.ready_at - self.clock(), max(self.host_delay, host.delay)
            if wait > max(self.total_timeout, delay):
                why = f"asked not to be called again for {wait:.0f} s"
                raise NotUsable("http_error", why, transient=True, retry_after=wait)
            if wait > 0:
                self.sleep(wait)
                budget.extend(wait)
            rest = delay
            try:
                return self._request(url, kind=kind, budget=budget, attempt=attempt)
            except NotUsable as problem:
                rest = max(rest, problem.retry_after or 0)
                raise
            finally:
                host.ready_at = self.clock() + rest

    def _host(self, url: Url) -> _Host:
        return self._hosts.setdefault(url.host, _Host())

    def _request(self, url: Url, *, kind: str, budget: _Budget, attempt: int) -> _Answer:
        headers = {
            "Host": url.netloc,
            "User-Agent": self._user_agent,
            "Accept": "image/jpeg,image/png,image/webp,*/*;q=0.1" if kind == "photograph" else "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        addresses = self._checked_addresses(url, budget)
        connection = self._connection(url, addresses[attempt % len(addresses)], budget)
        late = NotUsable("timeout", "was not done in time", transient=True)
        with closing(connection), _Watchdog(connection, seconds=budget.left()) as watchdog:
            try:
                connection.connect()
                watchdog.line, connection.timeout = connection.sock, self.read_timeout
                connection.request("GET", url.request_uri, headers=headers, preload_content=False)
                with closing(connection.getresponse()) as response:
                    answer = self._read(response, kind=kind)
            except NotUsable:
                if not watchdog.late:
                    raise
            except (exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                if not watchdog.late:
                    raise _broken(error) from error
            if watchdog.late:  # whatever came before: a line that we cut may look like the end of the content
                raise late
            return answer

    def _checked_addresses(self, url: Url, budget: _Budget) -> list[str]:
        port, allowed = _port(url), (url.host, _port(url)) in self._allowed
        if port not in _DEFAULT_PORTS.values() and not allowed:
            raise NotUsable("blocked_address", f"port {port}; 80 and 443 are allowed")
        addresses = _resolve(url.host, port, seconds=budget.left())
        private = [] if allowed else [address for address in addresses if not is_public(address)]
        if private:
            raise NotUsable("blocked_address", f"{private[0]} is not a public address")
        return addresses

    def _connection(self, url: Url, address: str, budget: _Budget) -> HTTPConnection:
        timeout = max(0.001, min(self.connect_timeout, budget.left()))
        if url.scheme == "http":
            return HTTPConnection(address, _port(url), timeout=timeout)
        name = url.host.strip("[]")  # which the certificate must hold, not the address
        return HTTPSConnection(address, _port(url), timeout=timeout, ssl_context=self._tls, server_hostname=name)

    def _read(self, response: HTTPResponse, *, kind: str) -> _Answer:
        headers = response.headers
        try:
            self._check_head(response, kind=kind)
            if response.status != 200:
                return _Answer(headers, redirect=headers["Location"])
            limit, content = _ROBOTS_BYTES if kind == "robots" else self.max_bytes, bytearray()
            while chunk := response.read(_CHUNK):
                if kind == "photograph" and not content:
                    check_photograph(chunk)
                content += chunk
                if len(content) > limit and kind != "robots":
                    raise NotUsable("too_large", f"more than {limit} bytes")
                if len(content) > limit:
                    break
            if kind == "photograph":
                check_photograph(content)
        except NotUsable as problem:
            problem.http_code = response.status
            raise
        del content[limit:]
        return _Answer(headers, bytes(content))

    def _check_head(self, response: HTTPResponse, *, kind: str) -> None:
        if response.status != 200 and not (response.status in _REDIRECTS and "Location" in response.headers):
            transient = response.status == 429 or response.status >= 500
            pause = _retry_after(response.headers) if transient else None
            asks = "" if pause is None else f" and asks to wait {pause:.0f} s"
            problem = f"answers {response.status}{asks}"
            raise NotUsable("http_error", problem, transient=transient, retry_after=pause)
        reserved = opt_out(response.headers) if kind == "photograph" else None
        if reserved:
            raise NotUsable("opted_out", f"says {reserved}")
        if kind != "robots" and (response.length_remaining or 0) > self.max_bytes:
            raise NotUsable("too_large", f"{response.length_remaining} bytes; {self.max_bytes} are allowed")


def _copy(problem: NotUsable) -> NotUsable:
    """Without traceback, so that what is kept for a host holds on to no frame, and threads raise each their own."""
    return NotUsable(problem.status, problem.detail, transient=problem.transient, http_code=problem.http_code)


def _broken(error: Exception) -> NotUsable:
    """What went wrong on the way, in words that hold no URL."""
    if isinstance(error, exceptions.DecodeError):
        return NotUsable("http_error", "its Content-Encoding cannot be undone")
    if isinstance(error, (ssl.SSLError, exceptions.SSLError)):
        return NotUsable("http_error", f"TLS failed ({error})")
    refused = isinstance(error, exceptions.NewConnectionError)  # a ConnectTimeoutError by descent alone
    if isinstance(error, (TimeoutError, exceptions.TimeoutError)) and not refused:
        return NotUsable("timeout", "does not answer", transient=True)
    return NotUsable("http_error", f"no connection, or a broken one ({type(error).__name__})", transient=True)


def _allowed_places(entry: str) -> list[tuple[str, int]]:
    url = _parse_entry(f"http://{entry}", "allow_host", entry)
    given = parse_url(f"http://{entry}")  # unlike `url` it tells whether a port was given
    if given.path or given.query or given.fragment:
        raise DataError(f"{entry!r} must be HOST or HOST:PORT.", argument="allow_host")
    return [(url.host, port) for port in ([80, 443] if given.port is None else [given.port])]


def _denied(entry: str) -> str:
    if "://" in entry:
        return _denied_form(_parse_entry(entry, "deny_list", entry))
    url = _parse_entry(f"http://{entry}", "deny_list", entry)  # a sha256 has the form of a host name
    if url.request_uri != "/" or url.port is not None:
        raise DataError(
            f"{entry!r} must be a whole URL with http:// or https://, a host name or a sha256.", argument="deny_list"
        )
    return url.host


def _denied_form(url: Url) -> str:
    """One form for what servers take for the same address: whatever its scheme, its escapes, doubled or trailing
    slashes, dots, or an empty query.
    """
    path = posixpath.normpath("/" + unquote(url.path).lstrip("/"))
    return f"{url.netloc}{path}?{unquote(url.query or '')}"


def _parse_entry(url: str, argument: str, entry: str) -> Url:
    try:
        return _parse(url)
    except NotUsable as problem:
        raise DataError(f"{entry!r} cannot be used: {problem.detail}.", argument=argument) from problem
