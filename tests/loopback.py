"""Servers on loopback that play the web, and a guard that lets no test leave the machine."""

import io
import random
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import urllib3.util.connection
from PIL import Image

from scoft.prepare.web import Fetcher


PUBLIC, PUBLIC6 = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
HEAD = b"HTTP/1.1 200 OK\r\n"


def encoded(file_format="JPEG", size=(24, 16), **options):
    buffer = io.BytesIO()
    pixels = random.Random(0).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


JPEG = encoded()


class Site:
    """A server on 127.0.0.1. `pages`: path -> (code, headers, body) or a function of the handler."""

    def __init__(self, context=None):
        self.pages, self.hits, self.asked, self.times = {"/ok": (200, {}, JPEG)}, Counter(), [], []
        self.now, self.most_at_once = 0, 0
        site, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with lock:
                    site.now += 1
                    site.most_at_once = max(site.most_at_once, site.now)
                    site.hits[self.path.partition("?")[0]] += 1
                    site.asked.append(dict(self.headers))
                    site.times.append(time.monotonic())
                try:
                    page = site.pages.get(self.path.partition("?")[0], (404, {}, b""))
                    page = page.pop(0) if isinstance(page, list) else page
                    page(self) if callable(page) else self.answer(*page)
                except (OSError, ssl.SSLError):
                    pass  # the client hung up, as it should
                finally:
                    with lock:
                        site.now -= 1
                    self.close_connection = True

            def answer(self, code, headers, body):
                self.send_response(code)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    for each in [value] if isinstance(value, str) else value:
                        self.send_header(name, each)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def get_request(self):
                line, address = super().get_request()
                return (context.wrap_socket(line, server_side=True) if context else line), address

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.place = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def url(self, path):
        return f"http://{self.place}{path}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def drip(*, first=b"", every=b"x"):
    def page(handler):
        handler.wfile.write(first)
        for _ in range(200):
            handler.wfile.write(every)
            time.sleep(0.03)

    return page


def png_of(width, height):
    """A small PNG file that claims a size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99)))


class Web:
    """`names`: host -> addresses, or a list of such answers, one a question; `lines`: (address, port) -> loopback."""

    def __init__(self):
        self.names, self.lines, self.asked, self.dialled = {}, {}, [], []


def fenced(monkeypatch) -> Web:
    """The machine's only way out: names by table, connections to loopback or by table; anything else is an error."""
    web, getaddrinfo, dial = Web(), socket.getaddrinfo, urllib3.util.connection.create_connection

    def resolve(host, port, *args, **options):
        if host in web.names:
            web.asked.append(host)
            answer = web.names[host]
            answer = answer.pop(0) if isinstance(answer[0], list) else answer
            return [found for address in answer for found in getaddrinfo(address, port, *args, **options)]
        return getaddrinfo(host, port, *args, flags=socket.AI_NUMERICHOST, **options)

    def connect(place, *args, **options):
        web.dialled.append(place)
        place = web.lines.get(place, place)
        if place[0] != "127.0.0.1":
            raise AssertionError(f"a connection to {place} would leave the machine")
        return dial(place, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    return web


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.naps = 1000.0, []

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now += seconds


def fetcher(*sites, clock=None, **options) -> Fetcher:
    """A fetcher that may ask these sites, without delay; with a clock, one that sleeps by it."""
    defaults = {"contact": "curator@example.org", "host_delay": 0, "allow_host": [site.place for site in sites]}
    if clock is not None:
        defaults |= {"clock": lambda: clock.now, "sleep": clock.sleep}
    return Fetcher(**defaults | options)
