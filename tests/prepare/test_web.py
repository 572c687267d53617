"""The fetcher: each way in which a link can go wrong ends in its own status, and nothing else is ever asked for.

Servers on loopback play the web. Names resolve by a table, and connections to public addresses are bent to loopback,
so that no test can leave the machine.
"""

import email.utils
import gzip
import logging
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib

import pytest

from loopback import HEAD, JPEG, PUBLIC, PUBLIC6, Site, drip, encoded, fetcher
from scoft.prepare import web
from scoft.prepare.web import is_public


pytestmark = pytest.mark.usefixtures("web")


def public(site, web, *names):
    """Publish a site under names that resolve to a public address."""
    web.names |= {name: [PUBLIC] for name in names}
    web.lines |= {(PUBLIC, 80): ("127.0.0.1", site.port)}


# --- what works ---


def test_a_photograph_arrives_whole_with_all_that_is_known_of_it(site):
    """A photograph arrives whole, with hash and licence, and the request said who was asking."""
    link = ['</style.css>; rel="preload"', '<https://creativecommons.org/licenses/by/4.0/>; rel="license noopener"']
    site.pages["/a"] = (200, {"ETag": '"v1"', "Link": link, "Content-Type": "text/html"}, JPEG)
    found = fetcher(site).fetch(site.url("/a?size=l"))
    assert (found.status, found.detail, found.http_code) == ("ok", "", 200)
    assert found.content == JPEG and len(found.sha256) == 64
    assert found.licence == "https://creativecommons.org/licenses/by/4.0/"
    assert found.final_url == found.url == site.url("/a?size=l")
    sent = site.asked[-1]
    assert "SCoFT" in sent["User-Agent"] and "curator@example.org" in sent["User-Agent"]
    assert sent["Host"] == site.place
    assert not {"Cookie", "Authorization", "Referer"} & set(sent)


def test_redirects_are_followed_also_to_raw_utf8_paths_and_other_hosts(site, other):
    """Redirects are followed, relative or absolute, also where Location holds raw UTF-8 as many servers send it."""
    site.pages["/a"] = (302, {"Location": "/궁".encode().decode("latin-1")}, b"")
    site.pages["/%EA%B6%81"] = (301, {"Location": other.url("/ok#top"), "Set-Cookie": "id=1"}, b"")
    found = fetcher(site, other).fetch(site.url("/a"))
    assert (found.status, found.final_url) == ("ok", other.url("/ok"))
    assert not any("Cookie" in sent for sent in other.asked)


def test_environment_proxies_are_not_used(site, monkeypatch, other):
    """A proxy of the environment is not asked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{other.place}")
    assert fetcher(site).fetch(site.url("/ok")).status == "ok"
    assert not other.hits


def test_a_document_may_be_anything_and_is_not_asked_of_robots(site):
    """A sheet that the user named is fetched whatever its content and robots.txt say, but not past the guard."""
    site.pages |= {"/robots.txt": (200, {}, b"User-agent: *\nDisallow: /"), "/s": (200, {}, b"url,caption\n")}
    assert fetcher(site).fetch_document(site.url("/s")).content == b"url,caption\n"
    assert site.hits["/robots.txt"] == 0
    assert fetcher().fetch_document(site.url("/s")).status == "blocked_address"
    assert site.hits["/s"] == 1


# --- where a link may lead ---


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("1.1.1.1", True),
        (PUBLIC6, True),
        ("::ffff:8.8.8.8", True),
        ("2002:0808:0808::1", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),  # Alibaba's metadata
        ("169.254.169.254", False),
        ("168.63.129.16", False),  # Azure's
        ("192.0.0.192", False),  # Oracle's
        ("192.0.0.9", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::127.0.0.1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::808:808", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),  # Amazon's metadata
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
    ],
)
def test_only_public_unicast_addresses_are_public(address, expected):
    """An address is public only if it is unicast on the public internet, whatever wraps it."""
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_refused_in_every_spelling(host, site, web):
    """No spelling of the loopback address passes the guard, and nothing is dialled."""
    web.lines = {("127.0.0.1", 80): ("127.0.0.1", site.port)}
    assert fetcher().fetch(f"http://{host}/ok").status == "blocked_address"
    assert not web.dialled and not site.hits


def test_a_name_is_refused_if_any_of_its_addresses_is_private(site, web):
    """A name that resolves to 127.0.0.1 is refused, also if a public address comes first."""
    web.names = {"home.example": ["127.0.0.1"], "both.example": [PUBLIC, "127.0.0.1"]}
    for name in web.names:
        found = fetcher().fetch(f"http://{name}/ok?token=secret")
        assert found.status == "blocked_address"
        assert found.detail == f"{name}: 127.0.0.1 is not a public address"
    assert not web.dialled


def test_the_connection_goes_to_the_address_that_was_checked(site, web):
    """A name that is public when checked and private when asked again is asked once, and dialled where checked."""
    web.names = {"rebind.example": [[PUBLIC], ["127.0.0.1"]]}
    web.lines = {(PUBLIC, 80): ("127.0.0.1", site.port)}
    rebinding = fetcher(robots=False)
    assert rebinding.fetch("http://rebind.example/ok").status == "ok"
    assert web.asked == ["rebind.example"] and web.dialled == [(PUBLIC, 80)]
    assert site.asked[0]["Host"] == "rebind.example"
    assert rebinding.fetch("http://rebind.example/ok").status == "blocked_address"
    assert web.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("link", "status"),
    [
        ("file:///etc/passwd", "blocked_scheme"),
        ("ftp://{public}/ok", "blocked_scheme"),
        ("gopher://{public}/", "blocked_scheme"),
        ("data:image/png;base64,iVBORw0KGgo=", "blocked_scheme"),
        ("{public}/ok", "blocked_scheme"),
        ("", "blocked_scheme"),
        ("http:///ok", "blocked_scheme"),
        ("http://a b/", "blocked_scheme"),
        ("http://{public}\r\nX-Evil: 1/", "blocked_scheme"),
        ("http://user:hunter2@{public}/ok", "blocked_scheme"),
        ("http://{public}:99999/ok", "blocked_scheme"),
        ("http://{public}:22/ok", "blocked_address"),
        ("http://{public}:8080/ok", "blocked_address"),
        ("http://a..b/", "http_error"),
        (f"http://{'a' * 70}.example/", "http_error"),
        ("http://nowhere.example/", "http_error"),
    ],
)
def test_what_is_no_plain_web_address_is_refused(link, status, web):
    """Other schemes, user names, other ports and broken URLs are refused before anything is dialled."""
    web.names = {"photos.example": [PUBLIC]}
    found = fetcher().fetch(link.format(public="photos.example"))
    assert found.status == status and "hunter2" not in found.detail
    assert not web.dialled


def test_allow_host_opens_one_port_of_one_host(site, other, web):
    """An allowed place is open as written, and neither its other ports nor other names of the same address are."""
    web.names = {"mirror.example": ["127.0.0.1"]}
    allowing = fetcher(allow_host=[f"mirror.example:{site.port}"])
    assert allowing.fetch(f"http://mirror.example:{site.port}/ok").status == "ok"
    for place in (site.place, f"mirror.example:{other.port}", "mirror.example", f"localhost:{site.port}"):
        web.names["localhost"] = ["127.0.0.1"]
        assert allowing.fetch(f"http://{place}/ok").status == "blocked_address"
    assert site.hits["/ok"] == 1 and not other.hits


def test_allow_host_without_a_port_means_those_of_http_and_https(site, web):
    """HOST alone opens ports 80 and 443."""
    web.lines = {("127.0.0.1", 80): ("127.0.0.1", site.port)}
    allowing = fetcher(allow_host=["127.0.0.1"])
    assert allowing.fetch("http://127.0.0.1/ok").status == "ok"
    assert allowing.fetch(site.url("/ok")).status == "blocked_address"


@pytest.mark.parametrize("entry", ["", "a/b", "http://a", "a:port", "user@a", "a:80/"])
def test_a_malformed_allowed_host_is_named(entry):
    """What is not HOST or HOST:PORT raises at once, naming the option."""
    with pytest.raises(ValueError, match="allow_host"):
        fetcher(allow_host=[entry])


@pytest.mark.parametrize("entry", ["gone.example/photo.jpg", "gone.example:80x", "ftp://gone.example/", "", "a b"])
def test_a_denied_entry_that_could_never_match_is_named(entry):
    """A deny-list entry that is neither URL, host nor hash raises at once instead of denying nothing."""
    with pytest.raises(ValueError, match="deny"):
        fetcher(deny_list=[entry])


@pytest.mark.parametrize("contact", ["a\r\nCookie: b", "å@example.org", ""])
def test_a_contact_that_would_break_the_header_is_refused(contact):
    """A contact that cannot stand in a header raises at once."""
    with pytest.raises(ValueError, match="contact"):
        fetcher(contact=contact)


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("http://127.0.0.1:{other}/ok", "blocked_address"),
        ("//127.0.0.1:{other}/ok", "blocked_address"),
        ("http://169.254.169.254/latest/meta-data/", "blocked_address"),
        ("http://home.example/ok", "blocked_address"),
        ("file:///etc/passwd", "blocked_scheme"),
        ("http://[broken/", "blocked_scheme"),
        ("http://me:secret@photos.example/ok", "blocked_scheme"),
    ],
)
def test_redirects_are_checked_from_scratch(location, status, site, other, web):
    """A redirect from an allowed host opens nothing: private targets and other schemes are refused, unasked."""
    web.names = {"home.example": ["127.0.0.1"]}
    web.lines = {("127.0.0.1", 80): ("127.0.0.1", other.port)}
    site.pages["/a"] = (302, {"Location": location.format(other=other.port)}, b"")
    assert fetcher(site).fetch(site.url("/a")).status == status
    assert not other.hits and {port for _, port in web.dialled} == {site.port}


def test_redirects_end_after_five(site):
    """Five redirects are followed and a sixth is not; a loop ends likewise."""
    site.pages |= {f"/{i}": (302, {"Location": f"/{i + 1}"}, b"") for i in range(10)}
    site.pages |= {"/5": (200, {}, JPEG), "/loop": (302, {"Location": "/loop"}, b"")}
    assert fetcher(site).fetch(site.url("/0")).status == "ok"
    site.pages |= {"/5": (302, {"Location": "/6"}, b""), "/6": (200, {}, JPEG)}
    found = fetcher(site).fetch(site.url("/0"))
    assert (found.status, site.hits["/6"]) == ("http_error", 0) and "5 redirects" in found.detail
    assert fetcher(site).fetch(site.url("/loop")).status == "http_error"
    assert site.hits["/loop"] == 6


def test_the_deny_list_names_links_hosts_and_contents(site, web):
    """A denied link or host is not asked, also not by a redirect; denied content is not kept."""
    public(site, web, "photos.example", "www.gone.example", "gone.example")
    site.pages |= {"/a": (302, {"Location": "http://www.gone.example/ok"}, b""), "/b": (302, {"Location": "/ok"}, b"")}
    denying = fetcher(deny_list=["gone.example", "https://photos.example:443/ok#x"])
    for link in ("gone.example/x", "GONE.example./ok", "photos.example/ok", "photos.example/a", "photos.example/b"):
        assert denying.fetch(f"http://{link}").status == "denied"
    assert site.hits["/ok"] == site.hits["/x"] == 0
    for link in ("/ok?", "//ok", "/%6F%6b", "/./x/..//ok", "/x/%2e%2e/ok", "/ok#", "/ok/"):
        assert denying.denies(f"http://photos.example{link}") is True
    assert not denying.denies("http://photos.example/ok?v=2") and not denying.denies("http://photos.example/OK")
    aliases = fetcher(deny_list=["http://photos.example/%6Fk/?a=%31", "http://photos.example//b?"])
    assert aliases.denies("https://photos.example/ok?a=1") and aliases.denies("https://photos.example/b")
    sha256 = fetcher().fetch("http://photos.example/ok").sha256
    found = fetcher(deny_list=[sha256]).fetch("http://photos.example/ok")
    assert (found.status, found.content) == ("denied", None)


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Certificate and key of photos.example, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command += " -addext subjectAltName=DNS:photos.example -out cert.pem -keyout key.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_site(certificate, monkeypatch, web):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    site = Site(context)
    web.names |= {"photos.example": [PUBLIC], "other.example": [PUBLIC]}
    web.lines[PUBLIC, 443] = ("127.0.0.1", site.port)
    yield site
    site.close()


def test_tls_vouches_for_the_name_though_the_address_is_dialled(tls_site, monkeypatch):
    """Over https the certificate must be trusted and hold the link's host name; else nothing is asked."""
    assert fetcher().fetch("https://photos.example/ok").status == "ok"
    tls_site.hits.clear()
    found = fetcher().fetch("https://other.example/ok")
    assert found.status == "http_error" and "TLS" in found.detail
    monkeypatch.delenv("SSL_CERT_FILE")
    found = fetcher().fetch("https://photos.example/ok")
    assert found.status == "http_error" and "TLS" in found.detail
    assert not tls_site.hits


def test_a_redirect_may_not_leave_tls(tls_site, site, web):
    """A redirect from https to http is refused, unasked."""
    web.lines[PUBLIC, 80] = ("127.0.0.1", site.port)
    tls_site.pages["/a"] = (302, {"Location": "http://photos.example/ok"}, b"")
    assert fetcher().fetch("https://photos.example/a").status == "blocked_scheme"
    assert not site.hits


# --- bounds ---


def test_an_endless_url_is_refused(site):
    """A URL longer than servers have to understand is not asked for, neither as a link nor by a redirect."""
    site.pages["/a"] = (302, {"Location": "/" + "a" * 60_000}, b"")
    for link in ("/" + "a" * 8000, "/a"):
        found = fetcher(site, robots=False).fetch(site.url(link))
        assert found.status == "blocked_scheme" and "characters; 8000 are allowed" in found.detail
    assert site.hits == {"/a": 1}


@pytest.mark.parametrize(
    "page",
    [
        drip(first=HEAD + b"Content-Length: 100000\r\n\r\n" + JPEG),
        drip(first=HEAD + b"\r\n" + JPEG),  # its end is the line's end
        drip(first=HEAD + b"Transfer-Encoding: chunked\r\n\r\n", every=b"1\r\nx\r\n"),
        drip(first=HEAD, every=b"X: y\r\n"),
        drip(every=b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "body without length", "chunks", "headers", "continue"],
)
def test_a_slow_drip_ends_in_timeout(page, site):
    """A server that drips bytes, each within the read timeout, is cut off when the link's time is up."""
    site.pages["/a"] = page
    began = time.monotonic()
    found = fetcher(site, total_timeout=0.4, robots=False).fetch(site.url("/a"))
    assert (found.status, found.content, site.hits["/a"]) == ("timeout", None, 1)
    assert time.monotonic() - began < 3


def test_a_slow_drip_over_tls_ends_in_timeout(tls_site):
    """The line is cut under TLS as well."""
    tls_site.pages["/a"] = drip(first=HEAD + b"\r\n" + JPEG)
    began = time.monotonic()
    assert fetcher(total_timeout=0.6, robots=False).fetch("https://photos.example/a").status == "timeout"
    assert tls_site.hits["/a"] == 1
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_server_ends_in_timeout(scheme, web):
    """A server that takes connections and says nothing is given up, in the handshake too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = {"http": 80, "https": 443}[scheme]
        web.names["silent.example"] = [PUBLIC]
        web.lines[PUBLIC, port] = silent.getsockname()
        impatient = fetcher(total_timeout=5, connect_timeout=0.1, read_timeout=0.1, retries=0)
        assert impatient.fetch(f"{scheme}://silent.example/a").status == "timeout"


def test_a_slow_name_server_ends_in_timeout(web, monkeypatch):
    """The wait for a name server is bounded too."""
    hold = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hold.wait(10))
    assert fetcher(total_timeout=0.2).fetch("http://photos.example/a").status == "timeout"
    hold.set()


def test_an_endless_body_ends_in_too_large(site):
    """An endless body is cut off shortly after the cap."""
    sent = []

    def endless(handler):
        handler.wfile.write(HEAD + b"\r\n" + JPEG)
        for _ in range(1000):
            handler.wfile.write(bytes(65536))
            sent.append(65536)

    site.pages["/a"] = endless
    found = fetcher(site, max_bytes=200_000).fetch(site.url("/a"))
    assert (found.status, found.content) == ("too_large", None)
    site.close()
    assert len(sent) < 1000


def test_the_cap_is_exact_and_holds_by_the_length_announced(site):
    """max_bytes bytes pass and one more does not; a length above it is refused without reading."""
    assert fetcher(site, max_bytes=len(JPEG)).fetch(site.url("/ok")).status == "ok"
    assert fetcher(site, max_bytes=len(JPEG) - 1).fetch(site.url("/ok")).status == "too_large"
    site.pages["/a"] = (200, {"Content-Length": "99999999999"}, b"")
    assert fetcher(site).fetch(site.url("/a")).status == "too_large"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_compression_bomb_is_not_inflated_past_the_cap(encoding, chunked, site):
    """Bytes are counted after decoding, and memory stays bounded while they are."""
    bomb = JPEG + bytes(60_000_000)
    for name in encoding.split(", "):
        bomb = gzip.compress(bomb, 1) if name == "gzip" else zlib.compress(bomb, 1)
    headers = {"Content-Encoding": encoding}
    if chunked:
        headers |= {"Transfer-Encoding": "chunked"}
        bomb = b"%x\r\n%s\r\n0\r\n\r\n" % (len(bomb), bomb)
    site.pages["/a"] = (200, headers, bomb)
    small = fetcher(site, max_bytes=1_000_000)
    tracemalloc.start()
    assert small.fetch(site.url("/a")).status == "too_large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_content_encodings_are_undone_or_refused(site):
    """Gzip that nobody asked for is undone; what cannot be undone is an error."""
    site.pages["/a"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(JPEG))
    site.pages["/b"] = (200, {"Content-Encoding": "gzip"}, JPEG)
    assert fetcher(site).fetch(site.url("/a")).content == JPEG
    assert fetcher(site).fetch(site.url("/b")).status == "http_error"


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><title>gone</title>" + bytes(99),
        b"\n <svg/>",
        b"%PDF-1.7",
        b"",
        b"plain",
        encoded("GIF"),
    ],
)
def test_content_tells_what_it_is(body, site):
    """HTML, SVG, PDF, GIF and the empty body are no photographs, whatever name and Content-Type say."""
    site.pages["/a.jpg"] = (200, {"Content-Type": "image/jpeg"}, body)
    found = fetcher(site).fetch(site.url("/a.jpg"))
    assert (found.status, found.http_code, found.content) == ("not_an_image", 200, None)


@pytest.mark.parametrize("file_format", web.PHOTOGRAPH_FORMATS)
def test_a_wrong_extension_and_type_do_not_matter(file_format, site):
    """A photograph of each format is known under any name."""
    site.pages["/a.svg"] = (200, {"Content-Type": "text/html"}, encoded(file_format))
    found = fetcher(site).fetch(site.url("/a.svg"))
    assert (found.status, found.content) == ("ok", encoded(file_format))


# --- patience and politeness ---


def test_what_may_go_better_another_day_is_transient(site, clock):
    """429, 5xx, broken connections and timeouts are transient, also of robots.txt; refusals and 404 are not."""
    site.pages |= {"/a": (503, {}, b""), "/b": lambda handler: None, "/c": (404, {}, b""), "/d": (200, {}, b"<html>")}
    transient = {path: fetcher(site, clock=clock).fetch(site.url(path)).transient for path in ("/a", "/b", "/c", "/d")}
    assert transient == {"/a": True, "/b": True, "/c": False, "/d": False}
    site.pages["/robots.txt"] = (503, {}, b"")
    found = fetcher(site, clock=clock).fetch(site.url("/ok"))
    assert (found.status, found.transient, found.http_code) == ("robots", True, 503)
    site.pages["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /")
    found = fetcher(site, clock=clock).fetch(site.url("/ok"))
    assert (found.status, found.transient, found.http_code) == ("robots", False, None)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 304, 204])
def test_final_answers_are_not_asked_twice(code, site, clock):
    """An answer that will not change is an error at once."""
    site.pages["/a"] = (code, {}, b"")
    found = fetcher(site, clock=clock).fetch(site.url("/a"))
    assert (found.status, found.http_code, found.detail) == ("http_error", code, f"127.0.0.1: answers {code}")
    assert site.hits["/a"] == 1 and not clock.naps


def test_errors_that_may_pass_are_retried_with_growing_pauses(site, clock):
    """5xx and broken connections are asked again after 1 and 2 seconds, and no more than twice."""
    site.pages["/a"] = [(503, {}, b""), lambda handler: None, (200, {}, JPEG)]
    assert fetcher(site, clock=clock).fetch(site.url("/a")).status == "ok"
    assert clock.naps == [1, 2]
    site.pages["/b"] = (500, {}, b"")
    found = fetcher(site, clock=clock).fetch(site.url("/b"))
    assert (found.status, found.http_code, site.hits["/b"]) == ("http_error", 500, 3)


def test_a_body_that_ends_early_is_retried(site, clock):
    """A body shorter than announced is a broken connection, not a photograph."""
    site.pages["/a"] = [(200, {"Content-Length": "9999"}, JPEG), (200, {}, JPEG)]
    assert fetcher(site, clock=clock).fetch(site.url("/a")).content == JPEG
    assert site.hits["/a"] == 2


def test_retry_after_in_seconds_is_kept(site, clock):
    """429 with Retry-After is asked again after just that time."""
    site.pages["/a"] = [(429, {"Retry-After": "7"}, b""), (200, {}, JPEG)]
    assert fetcher(site, clock=clock).fetch(site.url("/a")).status == "ok"
    assert sum(clock.naps) == 7


def test_retry_after_as_a_date_is_kept(site, clock):
    """Retry-After may be a date."""
    date = email.utils.formatdate(time.time() + 10, usegmt=True)
    site.pages["/a"] = [(503, {"Retry-After": date}, b""), (200, {}, JPEG)]
    assert fetcher(site, clock=clock).fetch(site.url("/a")).status == "ok"
    assert 8 < sum(clock.naps) <= 10


@pytest.mark.parametrize(
    "value", ["soon", "-5", "1e9", "9" * 5000, "Fri, 99 Foo 2026", f"Fri, 25 Jun {'9' * 30} 15:00:00 +99", "0"]
)
def test_a_nonsense_retry_after_does_no_harm(value, site, clock):
    """A Retry-After that says nothing leaves the usual pauses."""
    site.pages["/a"] = [(429, {"Retry-After": value}, b""), (200, {}, JPEG)]
    assert fetcher(site, clock=clock).fetch(site.url("/a")).status == "ok"
    assert sum(clock.naps) <= 1


def test_a_retry_after_beyond_the_deadline_is_an_error_and_the_host_is_left_alone(site, clock):
    """A host that asks for an hour gets it: the link fails at once and its other links are not even asked."""
    site.pages["/a"] = (429, {"Retry-After": "3600"}, b"")
    polite = fetcher(site, clock=clock)
    found = polite.fetch(site.url("/a"))
    assert (found.status, found.http_code) == ("http_error", 429) and "3600 s" in found.detail
    assert polite.fetch(site.url("/ok")).status == "http_error"
    assert not clock.naps and site.hits["/a"] == 1 and site.hits["/ok"] == 0
    clock.now += 3601
    assert polite.fetch(site.url("/ok")).status == "ok"


def test_retries_end_with_the_links_time(site, clock):
    """Pauses that would outlast the link's time are not begun."""
    site.pages["/a"] = (503, {"Retry-After": "20"}, b"")
    assert fetcher(site, clock=clock).fetch(site.url("/a")).status == "http_error"
    assert sum(clock.naps) == 20 and site.hits["/a"] == 2


def test_the_host_delay_is_kept_and_not_charged_to_the_link(site, other, clock, web):
    """host_delay seconds lie between two requests to a host, whatever they are for; other hosts need not wait."""
    web.names = {"other.example": ["127.0.0.1"]}
    site.pages["/a"] = (302, {"Location": "/ok"}, b"")
    places = [site.place, f"other.example:{other.port}"]
    polite = fetcher(allow_host=places, clock=clock, host_delay=50, total_timeout=30)
    assert polite.fetch(site.url("/a")).status == "ok"
    assert clock.naps == [50, 50]
    assert polite.fetch(f"http://{places[1]}/ok").status == "ok"
    assert clock.naps == [50, 50, 50]  # one more, after robots.txt of the other host
    assert polite.fetch(site.url("/ok")).status == "ok"
    assert clock.naps == [50] * 3  # the first host had rested meanwhile


def test_the_host_delay_is_not_charged_where_robots_have_to_wait(site, other, clock, web):
    """Also the wait of a second robots.txt of the same host, at another port, is not the link's."""
    web.names = {"both.example": ["127.0.0.1"]}
    places = [f"both.example:{each.port}" for each in (site, other)]
    polite = fetcher(allow_host=places, clock=clock, host_delay=50, total_timeout=30)
    assert [polite.fetch(f"http://{place}/ok").status for place in places] == ["ok", "ok"]
    assert clock.naps == [50, 50, 50]


def in_threads(*calls):
    results = [None] * len(calls)

    def run(place):
        results[place] = calls[place]()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_threads_ask_one_host_in_series(site):
    """Threads on one host take turns, keep its delay and read its robots.txt once; their wait is not counted."""
    site.pages["/a"] = lambda handler: (time.sleep(0.1), handler.answer(200, {}, JPEG))
    polite = fetcher(site, host_delay=0.1, total_timeout=1.0)
    found = in_threads(*[lambda: polite.fetch(site.url("/a"))] * 8)
    assert [each.status for each in found] == ["ok"] * 8
    assert site.most_at_once == 1 and site.hits == {"/robots.txt": 1, "/a": 8}
    assert min(after - before for before, after in zip(site.times[1:], site.times[2:])) > 0.19


def test_threads_ask_different_hosts_side_by_side(site, other, web):
    """Different hosts are asked at the same time."""
    web.names = {"other.example": ["127.0.0.1"]}
    both = threading.Barrier(2, timeout=5)
    site.pages["/a"] = other.pages["/a"] = lambda handler: (both.wait(), handler.answer(200, {}, JPEG))
    polite = fetcher(allow_host=[site.place, f"other.example:{other.port}"], retries=0)
    links = [site.url("/a"), f"http://other.example:{other.port}/a"]
    found = in_threads(*[lambda link=link: polite.fetch(link) for link in links])
    assert [each.status for each in found] == ["ok"] * 2


def test_the_next_address_is_tried_when_one_refuses(site, web, clock):
    """Where a host has several addresses, a retry goes to the next of them."""
    web.names = {"photos.example": [PUBLIC6, PUBLIC]}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    web.lines = {(PUBLIC6, 80): nobody, (PUBLIC, 80): ("127.0.0.1", site.port)}
    assert fetcher(clock=clock, robots=False).fetch("http://photos.example/ok").status == "ok"


def test_no_log_tells_a_links_secrets(site, caplog):
    """Neither details nor any library's log hold path or query of a link, also where headers are malformed."""
    caplog.set_level(logging.DEBUG)
    odd = HEAD + b"no colon here\r\nContent-Length: 5\r\n\r\nhello"
    site.pages |= {"/hidden": lambda handler: handler.wfile.write(odd), "/hidden2": (404, {}, b"")}
    for path in ("/hidden", "/hidden2"):
        found = fetcher(site).fetch(site.url(f"{path}?token=secret"))
        assert found.status in ("http_error", "not_an_image")
        assert "hidden" not in found.detail and "secret" not in found.detail
    assert "secret" not in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_garbage_never_raises(seed, site, clock):
    """Whatever bytes a server answers with, the link ends in a status."""
    draw = random.Random(seed)
    whole = HEAD + b"Content-Length: %d\r\nETag: x\r\nLink: <a>; rel=license\r\n\r\n" % len(JPEG) + JPEG

    def page(handler):
        answer = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            answer[draw.randrange(90)] = draw.randrange(256)
        handler.wfile.write(answer[: draw.choice([len(answer), draw.randrange(len(answer))])])

    site.pages["/a"] = page
    odd = fetcher(site, clock=clock, robots=False)
    assert {odd.fetch(site.url("/a")).status for _ in range(40)} <= {"ok", "http_error", "too_large", "not_an_image"}
