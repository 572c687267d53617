"""The stage fetch: each link has the status that says what came of it, and none is asked for twice."""

import hashlib

import pytest

from loopback import HEAD, drip, png_of
from preparing import Killed, encoded, picture, prepare, statuses, write_sheet
from scoft.errors import DataError
from scoft.files import Ledger
from scoft.prepare import fetch
from scoft.prepare.fetch import fetch_links
from scoft.prepare.photograph import Photograph, read_photographs


pytestmark = pytest.mark.usefixtures("threads_given_back")


@pytest.mark.usefixtures("quick")
def test_every_way_in_which_a_link_goes_wrong_has_its_status(web, site, other, tmp_path):
    """Each hostile link of a sheet ends in its status, none ends the run, and nothing else is asked for; then again
    nothing is asked for twice.
    """

    def endless(handler):
        handler.wfile.write(HEAD + b"\r\n" + encoded(picture(0)))
        while True:
            handler.wfile.write(bytes(65536))

    good, large = encoded(picture(1)), encoded(picture(2, (200, 200)), quality=95)
    with_licence = {"Link": '<https://creativecommons.org/licenses/by/4.0/>; rel="license"'}
    site.pages = {
        "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private"),
        "/good.jpg": (200, with_licence, good),
        "/moved.jpg": (301, {"Location": "/wrong.png"}, b""),
        "/wrong.png": (200, {"Content-Type": "text/html"}, encoded(picture(3), "WEBP")),
        "/busy.jpg": [(429, {"Retry-After": "0"}, b""), (200, {}, encoded(picture(4)))],
        "/very-busy.jpg": (429, {"Retry-After": "9999"}, b""),
        "/drip.jpg": drip(first=HEAD + b"\r\n" + good),
        "/endless.jpg": endless,
        "/inside.jpg": (302, {"Location": "http://10.0.0.1/photo.jpg"}, b""),
        "/next-door.jpg": (302, {"Location": other.url("/ok")}, b""),
        "/metadata.jpg": (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
        "/page.jpg": (200, {"Content-Type": "image/jpeg"}, b"<!doctype html><title>log in</title>"),
        "/bomb.png": (200, {}, png_of(20_000, 10_000)),
        "/truncated.jpg": (200, {}, large[: len(large) // 2]),
        "/icon.png": (200, {}, encoded(picture(5, (15, 40)), "PNG")),
        "/private/a.jpg": (200, {}, good),
        "/noai.jpg": (200, {"X-Robots-Tag": "noai"}, good),
        "/copy.png": (200, {}, encoded(picture(1, (80, 64)), "PNG")),
        "/denied.jpg": (200, {}, good),
        "/film.gif": (200, {}, encoded(picture(6), "GIF")),
    }
    web.names = {"rebind.example": ["127.0.0.1"], "busy.example": ["127.0.0.1"]}
    expected = {
        site.url("/good.jpg"): "ok",
        site.url("/moved.jpg"): "ok",
        site.url("/busy.jpg"): "ok",
        site.url("/gone.jpg"): "http_error",
        f"http://busy.example:{site.port}/very-busy.jpg": "http_error",
        site.url("/drip.jpg"): "timeout",
        site.url("/endless.jpg"): "too_large",
        site.url("/inside.jpg"): "blocked_address",
        site.url("/next-door.jpg"): "blocked_address",
        site.url("/metadata.jpg"): "blocked_address",
        other.url("/ok"): "blocked_address",
        f"http://rebind.example:{site.port}/good.jpg": "blocked_address",
        "http://rebind.example/good.jpg": "blocked_address",
        "file:///etc/passwd": "blocked_scheme",
        "ftp://example.org/a.jpg": "blocked_scheme",
        site.url("/page.jpg"): "not_an_image",
        site.url("/film.gif"): "not_an_image",
        site.url("/bomb.png"): "too_many_pixels",
        site.url("/truncated.jpg"): "corrupt",
        site.url("/icon.png"): "too_small",
        site.url("/private/a.jpg"): "robots",
        site.url("/noai.jpg"): "opted_out",
        site.url("/copy.png"): "duplicate",
        site.url("/denied.jpg"): "denied",
    }
    (tmp_path / "deny.txt").write_text(f"# asked to be left out\n{site.url('/denied.jpg')}\n\n")
    flags = {
        "culture": "korea",
        "links": write_sheet(tmp_path / "sheet.csv", [*expected, site.url("/good.jpg")]),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
        "deny_list": tmp_path / "deny.txt",
        "allow_host": [site.place, f"busy.example:{site.port}"],
    }
    prepare(flags)
    *photographs, repeated = read_photographs(tmp_path / "ccub" / "korea")
    assert {photograph.url: photograph.status for photograph in photographs} == expected
    assert (repeated.url, repeated.status) == (site.url("/good.jpg"), "duplicate")
    assert all(photograph.detail for photograph in [*photographs, repeated] if photograph.status != "ok")
    fetched = {path for path in site.pages if path not in ("/private/a.jpg", "/denied.jpg")} | {"/gone.jpg"}
    assert set(site.hits) == fetched
    assert not other.hits
    assert {port for _, port in web.dialled} == {site.port}

    good, moved = photographs[:2]
    assert good.license == "https://creativecommons.org/licenses/by/4.0/"
    assert moved.final_url == site.url("/wrong.png") and moved.file.endswith(".jpg")
    assert (good.width, good.height, good.category, good.caption) == (40, 32, "city", "caption 0")
    for photograph in photographs[:3]:
        content = (tmp_path / "ccub" / "korea" / photograph.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == photograph.sha256
    assert len(list((tmp_path / "ccub" / "korea" / "photographs").iterdir())) == 3

    hits, manifest = site.hits.copy(), (tmp_path / "ccub" / "korea" / "manifest.jsonl").read_bytes()
    for stages in ("fetch,clean", "fetch"):
        prepare(flags, stages=stages)
        assert site.hits == hits
        assert (tmp_path / "ccub" / "korea" / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.usefixtures("web", "quick")
def test_links_are_asked_again_if_they_failed_and_on_request_or_if_what_came_is_lost(site, tmp_path):
    """--retry_failed asks for what failed, and for nothing that came; bytes that are lost are fetched."""
    urls = [site.url("/ok.jpg"), site.url("/later.jpg")]
    site.pages |= {"/ok.jpg": (200, {}, encoded(picture(0)))}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    site.pages["/later.jpg"] = (200, {}, encoded(picture(1)))
    prepare(flags)
    assert statuses(tmp_path / "ccub" / "korea")[urls[1]] == "http_error"
    prepare(flags, retry_failed=True)
    assert set(statuses(tmp_path / "ccub" / "korea").values()) == {"ok"}
    assert (site.hits["/ok.jpg"], site.hits["/later.jpg"]) == (1, 2)
    first, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "ccub" / "korea" / "fetched" / first.id).unlink()
    prepare(flags)
    assert (site.hits["/ok.jpg"], site.hits["/later.jpg"]) == (2, 2)


@pytest.mark.usefixtures("web", "quick")
def test_a_fetch_that_is_cut_goes_on_behind_what_came(site, tmp_path, monkeypatch):
    """Cut in the middle of the links and rerun, no link that came is asked for again."""
    urls = [site.url(f"/{i}.jpg") for i in range(6)]
    site.pages |= {f"/{i}.jpg": (200, {}, encoded(picture(i))) for i in range(6)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    add, came = Ledger.add, []

    def add_three(ledger, key, **entry):
        if len(came) == 3:
            raise Killed
        came.append(key)
        add(ledger, key, **entry)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, "add", add_three)
        prepare(flags)
    prepare(flags)
    assert set(statuses(tmp_path / "ccub" / "korea").values()) == {"ok"}
    assert all(site.hits[f"/{i}.jpg"] == 1 for i in range(3)) and max(site.hits.values()) <= 2


@pytest.mark.usefixtures("web", "quick")
def test_the_sheet_may_be_a_url_and_is_by_default_ccubs(site, tmp_path, monkeypatch):
    """--links takes a URL, within the guard; without it the culture's tab of CCUB's sheet is asked for."""
    site.pages |= {"/a.jpg": (200, {}, encoded(picture(0)))}
    sheet = write_sheet(tmp_path / "sheet.csv", [site.url("/a.jpg")]).read_bytes()
    site.pages["/sheet"] = (200, {}, sheet)
    flags = {"culture": "korea", "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    with pytest.raises(DataError, match="--links .*/sheet.*blocked_address"):
        prepare(flags, links=site.url("/sheet"))
    assert not site.hits
    prepare(flags, links=site.url("/sheet"), allow_host=site.place)
    assert statuses(tmp_path / "ccub" / "korea") == {site.url("/a.jpg"): "ok"}

    tab = fetch.SHEET_TABS["korea"]
    assert fetch.SHEET.format(tab).endswith(f"format=csv&gid={tab}")
    site.pages[f"/tab-{tab}"] = (200, {}, sheet)
    monkeypatch.setattr(fetch, "SHEET", site.url("/tab-{}"))
    prepare(flags, allow_host=site.place)
    assert site.hits[f"/tab-{tab}"] == 1


@pytest.mark.usefixtures("web", "quick")
def test_the_archive_is_asked_on_request_alone(site, tmp_path, monkeypatch):
    """--archive looks for a link that is gone in the archive, and says where the photograph came from."""
    monkeypatch.setattr(fetch, "ARCHIVE", site.url("/archive/{}"))
    gone = site.url("/gone.jpg")
    site.pages |= {f"/archive/{gone}": (200, {}, encoded(picture(0)))}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", [gone]), "stages": "fetch"}
    flags |= {"allow_host": site.place}
    prepare(flags, output=tmp_path / "without")
    assert statuses(tmp_path / "without" / "korea") == {gone: "http_error"} and set(site.hits) == {
        "/robots.txt",
        "/gone.jpg",
    }
    prepare(flags, output=tmp_path / "with", archive=True)
    (photograph,) = read_photographs(tmp_path / "with" / "korea")
    assert (photograph.status, photograph.final_url) == ("ok", site.url(f"/archive/{gone}"))


@pytest.mark.parametrize("entry", [{}, {"status": "ok", "detail": 7, "source_sha256": ""}])
def test_a_ledger_of_fetches_that_somebody_changed_is_named(entry, tmp_path):
    """Also one whose entry lacks what the manifest takes over; what is beyond that is left out."""
    ledger = Ledger(tmp_path / "fetches.jsonl")
    options = {"fetcher": None, "archive": False, "retry_failed": False}
    ledger.add("aa", status="denied", detail="", source_sha256="", spare=1)
    links = [Photograph(id="aa", url="http://a/", caption="x")]
    assert fetch_links(links, tmp_path, **options)[0].status == "denied"
    ledger.add("aa", **entry)
    with pytest.raises(DataError, match="fetches.jsonl, the entry of 'aa', is not as it was written: .*Remove that"):
        fetch_links(links, tmp_path, **options)
