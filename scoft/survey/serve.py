"""Serving: the pages of a survey to browsers, and their answers into its store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from scoft.errors import DataError
from scoft.files import sole_writer
from scoft.survey.posts import MAX_BODY, Checker, Refused
from scoft.survey.schema import SITE_FOLDER, read_pages
from scoft.survey.store import Busy, Kept, Store


logger = logging.getLogger(__name__)

HEADER_TIME = 15  # seconds that the head of a request may take
BODY_TIME = 15  # and its body
MOST_CONNECTIONS = 2000  # at once; more are answered 503
MOST_NAMES = 20_000  # whose pace is remembered at a time
BURST = 60  # posts of a participant at once: all pages of a long survey, after the network was gone
PACE = 1.0  # and then one a second
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold a panel's id
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Allowance:
    """How much each of many may do: `burst` at once, then `pace` a second. Of the longest unseen nothing is known."""

    def __init__(self, pace: float, burst: float, *, clock: Callable[[], float] = time.monotonic):
        self.pace, self.burst, self.clock = pace, burst, clock
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # name -> what it had, and when

    def take(self, name: str) -> bool:
        """Whether `name` may do one more, which then counts."""
        now = self.clock()
        had, before = self.left.pop(name, (self.burst, now))
        had = min(self.burst, had + self.pace * (now - before))
        self.left[name] = (had - (had >= 1), now)
        if len(self.left) > MOST_NAMES:
            self.left.popitem(last=False)
        return had >= 1


class TimelessFile(FileResponse):
    """A file, without time and ETag: of one time all, they would let a browser keep the page of another survey."""

    def set_stat_headers(self, stat_result: os.stat_result):
        self.headers["content-length"] = str(stat_result.st_size)


class Service:
    """What browsers may ask. `rate`: posts a second from one address; addresses are forgotten with the process."""

    def __init__(self, folder: Path, store: Store, checker: Checker, *, rate: float):
        self.site, self.store, self.checker = folder / SITE_FOLDER, store, checker
        # the files of this moment, and by their names alone: no path that is asked for is ever opened
        self.files = {str(path.relative_to(self.site)): path for path in self.site.rglob("*") if path.is_file()}
        if "index.html" not in self.files:
            raise DataError(f"{self.site} has no index.html. Build the survey again.")
        self.of_address = Allowance(rate, 10 * rate)
        self.of_participant = Allowance(PACE, BURST)

    def app(self) -> Starlette:
        routes = [
            Route("/answers", self.answers, methods=["POST"]),
            Route("/withdraw", self.withdraw, methods=["POST"]),
            Route("/", self.file),
            Route("/{name:path}", self.file),
        ]
        # any site may hold the pages, and there are no cookies that another's page could use
        cors = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["POST"], allow_headers=["Content-Type"])
        handlers = {Refused: self.refuse, HTTPException: self.refuse_unknown}
        return Starlette(routes=routes, middleware=[cors], exception_handlers=handlers)

    async def file(self, request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in self.files:
            raise Refused(404, "no_such_file", "there is no such file")
        lasting = "max-age=31536000, immutable" if name.startswith("pictures/") else "no-cache"
        return TimelessFile(self.files[name], headers=HEADERS | {"Cache-Control": lasting})

    async def answers(self, request: Request) -> Response:
        post = self.checker.post(await self.body_of(request))
        if not self.of_participant.take(post.answer.participant):
            raise Refused(429, "too_fast", "too many posts; wait a little")
        kept = await self.committed(lambda: self.store.keep(post.answer, post.panel))
        if kept.state == "gone":
            raise Refused(410, "withdrawn", "this participant has withdrawn; nothing more is kept")
        if kept.state == "conflict":
            raise Refused(409, "conflict", "another answer has this revision", {"revision": kept.revision})
        return JSONResponse({"kept": True})

    async def withdraw(self, request: Request) -> Response:
        withdrawal = self.checker.withdrawal(await self.body_of(request))
        await self.committed(lambda: self.store.withdraw(withdrawal.participant))
        return JSONResponse({"withdrawn": True})

    async def committed(self, work: Callable[[], Future[Kept]]) -> Kept:
        """The result of the store's work, which is on the disk then."""
        try:
            return await asyncio.wrap_future(work())
        except Busy as error:
            raise Refused(503, "busy", "too many posts are waiting; try again") from error
        except sqlite3.Error as error:
            raise Refused(503, "not_kept", "the answer could not be kept; try again") from error

    async def body_of(self, request: Request) -> bytes:
        """The body, within bounds of size and time; the rest of what is too long is not read."""
        if not self.of_address.take(request.client.host if request.client else ""):
            raise Refused(429, "too_fast", "too many posts from this address; wait a little")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIME):
                if int(request.headers.get("content-length", 0)) <= MAX_BODY:  # h11 lets digits alone through
                    async for part in request.stream():
                        body += part
                        if len(body) > MAX_BODY:
                            break
                    else:
                        return bytes(body)
        except TimeoutError as error:
            raise Refused(408, "too_slow", f"a post takes at most {BODY_TIME} seconds") from error
        except ClientDisconnect as error:
            raise Refused(400, "hung_up", "the connection ended within the post") from error
        raise Refused(413, "too_large", f"a post has at most {MAX_BODY} bytes")

    async def refuse(self, request: Request, refused: Refused) -> Response:
        self.store.refuse(refused.reason)
        headers = dict(HEADERS)
        if refused.status in (429, 503):
            headers["Retry-After"] = "2"
        if refused.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not waited for
        said = {"error": refused.reason, "message": refused.told} | (refused.more or {})
        return JSONResponse(said, refused.status, headers=headers)

    async def refuse_unknown(self, request: Request, error: HTTPException) -> Response:
        return await self.refuse(request, Refused(error.status_code, "method", "this is not to be asked here"))


class PatientProtocol(H11Protocol):
    """uvicorn's, but it hangs up where the head of a request takes longer than HEADER_TIME."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport):
        super().connection_made(transport)
        self.await_head()

    def data_received(self, data: bytes):
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self.await_head()
        else:
            self.stop_timer()

    def connection_lost(self, exc: Exception | None):
        self.stop_timer()
        super().connection_lost(exc)

    def await_head(self):
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEADER_TIME, self.transport.close)

    def stop_timer(self):
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None


def listen(host: str, port: int) -> socket.socket:
    """A socket there; port 0 is any free one. Raises DataError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise DataError(f"{port} of {host} cannot be had ({error}). Name another.", argument="port") from error


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    rate: float,
    mirror: str | None = None,
    started: Callable[[str], object] = lambda address: None,
):
    """Serve a survey until SIGINT or SIGTERM. Raises DataError.

    mirror: a dataset on the Hub, see Mirror.  started: called with the address as soon as it is served.
    """
    checker = Checker(read_pages(folder))
    with contextlib.ExitStack() as open_here:
        open_here.enter_context(sole_writer(folder, flag="folder"))
        store = open_here.enter_context(Store(folder))
        service = Service(folder, store, checker, rate=rate)
        line = open_here.enter_context(listen(host, port))
        if mirror is not None:
            from scoft.survey.mirror import Mirror

            open_here.enter_context(Mirror(mirror, folder, store, checker))
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{line.getsockname()[1]}/"

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            logger.info("The survey is at %s", address)
            started(address)
            yield

        app = service.app()
        app.router.lifespan_context = lifespan
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,  # it would keep addresses
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=BODY_TIME,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it anew when it has ended
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[line])
