"""What a host permits is kept to: robots.txt by RFC 9309, and opt-outs in headers."""

import time

import pytest

from loopback import HEAD, JPEG, drip, fetcher
from scoft.prepare.robots import Robots


pytestmark = pytest.mark.usefixtures("web")


@pytest.mark.parametrize(
    ("robots", "allowed", "refused"),
    [
        ("User-agent: *\nDisallow: /", [], ["/", "/a"]),
        ("User-agent: *\nDisallow:", ["/a"], []),
        ("<html>not found</html>", ["/a"], []),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b\n", ["/b", "/a/b"], ["/a", "/ab", "/a/c"]),
        ("User-agent: *\nDisallow: /a\nAllow: /a", ["/a"], []),
        ("User-agent: scoft\nDisallow: /a\n\nUser-agent: *\nDisallow: /", ["/b"], ["/a"]),
        ("User-agent: SCoFT/1.0\nDisallow: /a\nUser-agent: x\nUser-agent: scoft\nDisallow: /b", ["/"], ["/a", "/b"]),
        ("User-agent: scoft\n\nUser-agent: *\nDisallow: /", [], ["/a"]),  # adjacent agents share a group
        ("User-agent: other\nDisallow: /", ["/a"], []),
        ("\ufeffuser-AGENT : * # all\r\nDISALLOW : /a # b", ["/b"], ["/a"]),
        ("User-agent: *\nDisallow: /*.jpg$", ["/a.jpg?x", "/a.png"], ["/a.jpg", "/x/.jpg"]),
        ("User-agent: *\nDisallow: /a*b*c", ["/acb"], ["/abc", "/a1b2c3"]),
        ("User-agent: *\nDisallow: /a*a$", ["/a"], ["/aa", "/aba"]),
        ("User-agent: *\nDisallow: /a$", ["/ab"], ["/a"]),
        ("User-agent: *\nDisallow: /궁", ["/a"], ["/%EA%B6%81"]),
        ("User-agent: *\nDisallow: /%61?q=", ["/a"], ["/a?q=1"]),
        ("User-agent: *\nDisallow: /a%2Ab", ["/aab"], ["/a*b"]),
        ("Disallow: /\nSitemap: x\nUser-agent: *\nCrawl-delay: 1\nDisallow: /a", ["/b"], ["/a"]),
        ("User-agent: *\nDisallow: /*/\nAllow: /b/*$", ["/a", "/b/", "/b/c"], ["/a/", "/a/b"]),
        ("User-agent: *\nDisallow: /a***b", ["/a"], ["/ab", "/a1b2"]),
    ],
)
def test_robots_rules_are_read_by_rfc_9309(robots, allowed, refused):
    """Groups, the longest match, `*`, `$`, comments and percent-encoding mean what RFC 9309 says."""
    rules = Robots(robots.encode())
    assert [path for path in allowed + refused if rules.allows(path, seconds_left=lambda: 9)] == allowed


def lines_of(*makers, size=500_000):
    """About `size` bytes of lines, each made of its number, as many by each maker."""
    count = size // sum(len(make(99_999)) + 1 for make in makers)
    return [make(i) for make in makers for i in range(count)]


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        (["Disallow: /" + "*a" * 2000 + "b"], "/" + "a" * 4000),
        (["Disallow: /" + "*" * 400_000 + "b"], "/" + "a" * 4000),
        (lines_of(lambda i: f"Allow:/{i:x}"), "/" + "%61" * 2600),
        (lines_of(lambda i: f"Allow:*a*{i:x}"), "/" + "a" * 7900),
        (lines_of(lambda i: f"User-agent: {i:x}", lambda i: f"Disallow: /{i:x}"), "/z"),
    ],
    ids=["stars", "only stars", "rules", "rules with stars", "agents and rules"],
)
def test_a_hostile_robots_txt_is_quick(lines, path):
    """Neither many rules, agents or stars nor a long path stall reading or matching."""
    began = time.thread_time()
    rules = Robots("\n".join(["User-agent: *", *lines]).encode())
    assert rules.allows(path, seconds_left=lambda: 60)
    assert time.thread_time() - began < 4


def test_matching_the_rules_is_charged_to_the_link(site):
    """The link whose time is up over its host's rules has failed by that, at once, and is not asked for."""
    rules = ["User-agent: *", *(f"Allow: *a*{i:x}" for i in range(10_000))]
    site.pages["/robots.txt"] = (200, {}, "\n".join(rules).encode())
    slow = fetcher(site)
    path = "/" + "a" * 7900
    assert slow.fetch(site.url("/ok")).status == "ok"
    slow.total_timeout = 0.01  # less than the matching takes anywhere
    began = time.thread_time()
    found = slow.fetch(site.url(path))
    assert (found.status, found.transient, site.hits[path]) == ("timeout", True, 0)
    assert time.thread_time() - began < 0.5
    site.pages["/robots.txt"] = (200, {}, "\n".join([*rules, "Allow: /"]).encode())
    found = fetcher(site).fetch(site.url("/ok"))
    assert found.status == "robots" and "10001 rules for us; 10000" in found.detail


def test_a_crawl_delay_is_kept(site, clock):
    """The pause that robots.txt asks of us lies between requests; where it is beyond reason, nothing is asked for."""
    site.pages["/robots.txt"] = (200, {}, b"User-agent: other\nCrawl-delay: 90\n\nUser-agent: *\nCrawl-delay: 2.5")
    polite = fetcher(site, clock=clock, host_delay=1, total_timeout=2)
    assert [polite.fetch(site.url("/ok")).status for _ in range(3)] == ["ok"] * 3
    assert clock.naps == [1, 2.5, 2.5]
    site.pages["/robots.txt"] = (200, {}, b"User-agent: scoft\nCrawl-delay: 86400")
    found = fetcher(site, clock=clock).fetch(site.url("/ok"))
    assert found.status == "robots" and "86400 s" in found.detail
    for nonsense in (b"soon", b"-5", b"1e9", b"9" * 5000):
        site.pages["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: " + nonsense)
        assert fetcher(site, clock=clock).fetch(site.url("/ok")).status == "ok"


def test_robots_refusals_keep_the_photograph_unasked(site):
    """What robots.txt forbids is not asked, also after a redirect; robots.txt itself is read once."""
    site.pages["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /private")
    site.pages |= {"/a": (302, {"Location": "/private/b"}, b""), "/private/b": (200, {}, JPEG)}
    polite = fetcher(site)
    found = polite.fetch(site.url("/private/b?token=secret"))
    assert found.status == "robots" and "secret" not in found.detail
    assert polite.fetch(site.url("/a")).status == "robots"
    assert polite.fetch(site.url("/ok")).status == "ok"
    assert site.hits == {"/robots.txt": 1, "/a": 1, "/ok": 1}
    assert fetcher(site, robots=False).fetch(site.url("/private/b")).status == "ok"


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ((404, {}, b""), "ok"),
        ((403, {}, b""), "ok"),
        ((500, {}, b""), "robots"),
        ((429, {}, b""), "robots"),
        ([(503, {}, b""), (200, {}, b"")], "ok"),
        ((302, {"Location": "/ok"}, b""), "ok"),
        ((302, {"Location": "http://10.0.0.1/"}, b""), "robots"),
        ((200, {}, b"User-agent: *\nDisallow: /\n" + b"#" * 600_000), "robots"),
        ((200, {}, b"#" * 600_000 + b"\nUser-agent: *\nDisallow: /\n"), "ok"),
    ],
)
def test_robots_that_cannot_be_had(answers, status, site, clock):
    """Without robots.txt (4xx) all is allowed; while it cannot be had (5xx, 429) nothing is; 500 KiB of it count."""
    site.pages["/robots.txt"] = answers
    polite = fetcher(site, clock=clock)
    assert [polite.fetch(site.url("/ok")).status for _ in range(2)] == [status] * 2
    if status == "robots":
        assert site.hits["/ok"] == 0 and site.hits["/robots.txt"] <= 3


def test_a_dead_host_is_an_error_and_not_a_matter_of_robots(site, clock, web):
    """Where a host does not answer, the status says so; its further links fail without another try."""
    site.close()
    polite = fetcher(site, clock=clock)
    assert [polite.fetch(site.url(path)).status for path in ("/a", "/b")] == ["http_error"] * 2
    assert len(web.dialled) == 3
    assert fetcher().fetch("http://127.0.0.1/").status == "blocked_address"


def test_robots_that_drip_do_not_hold_the_link(site):
    """A robots.txt that drips takes a third of the time, once, and fails the links of its host as timeouts."""
    site.pages["/robots.txt"] = drip(first=HEAD + b"\r\n")
    polite = fetcher(site, total_timeout=0.9)
    began = time.monotonic()
    assert [polite.fetch(site.url("/ok")).status for _ in range(3)] == ["timeout"] * 3
    assert time.monotonic() - began < 3
    assert site.hits == {"/robots.txt": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Robots-Tag": "noai"}, "opted_out"),
        ({"X-Robots-Tag": "all, NoImageAI"}, "opted_out"),
        ({"X-Robots-Tag": "noml"}, "opted_out"),
        ({"X-Robots-Tag": "noindex"}, "opted_out"),
        ({"X-Robots-Tag": "noimageindex"}, "opted_out"),
        ({"X-Robots-Tag": "none"}, "opted_out"),
        ({"X-Robots-Tag": "scoft: noai"}, "opted_out"),
        ({"X-Robots-Tag": ["nofollow", "noai"]}, "opted_out"),
        ({"X-Robots-Tag": "max-snippet: 20, noai"}, "opted_out"),
        ({"X-Robots-Tag": "unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT, noai"}, "opted_out"),
        ({"X-Robots-Tag": "noai noimageai"}, "opted_out"),
        ({"X-Robots-Tag": "nofollow; noai"}, "opted_out"),
        ({"X-Robots-Tag": "SCoFT/1.0: noai"}, "opted_out"),
        ({"X-Robots-Tag": "scoft : nofollow noai"}, "opted_out"),
        ({"X-Robots-Tag": "unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"}, "opted_out"),
        ({"X-Robots-Tag": "scoft: unavailable_after: 25-Jun-10 15:00:00 PST"}, "opted_out"),
        ({"X-Robots-Tag": "unavailable_after: 2010-06-25T15:00:00Z"}, "opted_out"),
        ({"X-Robots-Tag": "unavailable_after: 2010-06-25"}, "opted_out"),
        ({"X-Robots-Tag": "unavailable_after: 2100-06-25"}, "ok"),
        ({"X-Robots-Tag": "unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT, nofollow"}, "ok"),
        ({"X-Robots-Tag": "unavailable_after: some day, max-snippet: 0"}, "ok"),
        ({"X-Robots-Tag": f"unavailable_after: 25 Jun {'9' * 30} 15:00:00 GMT"}, "ok"),
        ({"X-Robots-Tag": "googlebot: unavailable_after: 25 Jun 2010 15:00:00 GMT"}, "ok"),
        ({"X-Robots-Tag": "googlebot: noindex, noai"}, "ok"),
        ({"X-Robots-Tag": "googlebot: noindex, scoft: noai"}, "opted_out"),
        ({"X-Robots-Tag": "nofollow, noarchive"}, "ok"),
        ({"X-Robots-Tag": "max-image-preview: none, max-snippet:-1"}, "ok"),
        ({"X-Archive-Orig-X-Robots-Tag": "noai"}, "opted_out"),
        ({"X-Archive-Orig-TDM-Reservation": "1"}, "opted_out"),
        ({"TDM-Reservation": "1"}, "opted_out"),
        ({"TDM-Reservation": ["0", "1"]}, "opted_out"),
        ({"TDM-Reservation": "0"}, "ok"),
    ],
)
def test_opt_outs_in_headers_are_honoured(headers, status, site):
    """A header that reserves a picture from indexing or machine learning is honoured, unless for another robot."""
    site.pages["/a"] = (200, headers, JPEG)
    found = fetcher(site).fetch(site.url("/a"))
    assert found.status == status and (found.content is None) == (status != "ok")


def test_an_opt_out_on_the_way_is_honoured(site):
    """A redirect that reserves the picture is not followed; a page that is gone may say what it wants."""
    site.pages |= {
        "/a": (302, {"Location": "/ok", "X-Robots-Tag": "noai"}, b""),
        "/b": (301, {"Location": "/ok", "TDM-Reservation": "1"}, b""),
        "/c": (404, {"X-Robots-Tag": "noindex"}, b""),
    }
    statuses = [fetcher(site).fetch(site.url(path)).status for path in ("/a", "/b", "/c")]
    assert statuses == ["opted_out", "opted_out", "http_error"] and site.hits["/ok"] == 0
