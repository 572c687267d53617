"""The survey in a real browser: by keyboard and by touch, left to right and right to left, on desktops and phones."""

import contextlib
import functools
import json
import shutil
import socket
import threading
import time
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import surveying
from scoft.survey.posts import Checker
from scoft.survey.schema import ITEMS, read_pages
from scoft.survey.store import answers


playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install -r requirements-dev.txt`")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
GONE = "net::ERR_"  # what the console says of a server that is gone


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture(scope="module")
def long_survey(tmp_path_factory):
    """Ten pages in four languages."""
    pictures = surveying.draw(tmp_path_factory.mktemp("ten"), prompts=10, methods=surveying.SHOWN[:3] + ("base",))
    folder = tmp_path_factory.mktemp("long") / "survey"
    return surveying.build(pictures, folder, "--languages", "en", "ko", "es", "ar")


@pytest.fixture
def people(browser):
    """people(language, viewport) is a participant's browser; what its console says, unless it is `allowed`, fails."""
    contexts, said = [], []

    def person(language="en", viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, locale=language, has_touch=viewport is PHONE, **options)
        context.set_default_timeout(10_000)
        context.on("console", lambda message: said.append(message.text))
        context.on("weberror", lambda error: said.append(str(error.error)))
        contexts.append(context)
        return context

    person.allowed = ()
    yield person
    for context in contexts:
        context.close()
    assert [text for text in said if not any(words in text for words in person.allowed)] == []


def enter(context, url: str, *, press=lambda page, place: page.click(place)):
    """Through consent and check to the first page."""
    page = context.new_page()
    page.goto(url)
    press(page, "#do-agree")
    right = page.evaluate("strings().check[0]")
    press(page, f'input[value="{right}"]')
    press(page, "#do-next")
    page.wait_for_selector(".pictures")
    return page


def tap(page, place: str):
    page.locator(place).tap()


def radio(item: str, position: int, rank: int) -> str:
    return f"#{item}-{position}-{rank}"


def wanted(number: int, item: str) -> list[int]:
    """The ranks that the tests give the pictures of the page shown as the number-th, by their places."""
    shift = number + ITEMS.index(item)
    return [(position + shift) % 4 + 1 for position in range(4)]


def rank_all(page, number: int, *, press=None):
    """Rank the page that is shown and go on, by `press`, or at once as its own script would."""
    places = [radio(item, position, rank) for item in ITEMS for position, rank in enumerate(wanted(number, item))]
    if press is None:
        page.evaluate("all => all.forEach((place) => document.querySelector(place).click())", [*places, "#do-next"])
        return
    for place in [*places, "#do-next"]:
        press(page, place)


def all_arrived(page):
    page.get_by_text(page.evaluate("say('all_arrived')")).wait_for()


def ranks_by_place(answer) -> dict[str, list]:
    return {item: [answer.ranks[item][name] for name in answer.order] for item in ITEMS}


def serious(page) -> list[str]:
    """What axe finds, but for what is minor."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:100]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def check_layout(page, viewport, direction: str):
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("document.documentElement.dir") == direction


def by_keyboard(page, place: str):
    """Tab to it and press: the keys alone decide. A row of radio buttons is one stop, in which arrows go on."""
    target = page.locator(place)
    for _ in range(60):
        is_radio, name = target.get_attribute("type") == "radio", target.get_attribute("name")
        focused = page.evaluate("[document.activeElement.id, document.activeElement.name]")
        if is_radio and focused[1] == name:
            break
        if not is_radio and focused[0] == target.get_attribute("id"):
            return page.keyboard.press("Enter")
        page.keyboard.press("Tab")
    for _ in range(6):
        on = page.evaluate("[document.activeElement.checked, document.activeElement.id, document.activeElement.value]")
        if on[0] and (target.get_attribute("id") == on[1] if on[1] else target.get_attribute("value") == on[2]):
            return
        page.keyboard.press("ArrowDown" if on[0] else "Space")
    raise AssertionError(f"{place} cannot be reached by keyboard")


# From the beginning to the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "viewport", "direction", "press"),
    [
        ("en", DESKTOP, "ltr", by_keyboard),
        ("ar", PHONE, "rtl", tap),
        ("ko", PHONE, "ltr", tap),
        ("ar", DESKTOP, "rtl", by_keyboard),
    ],
    ids=["desktop, keys", "phone, touch, right to left", "phone, touch", "desktop, keys, right to left"],
)
def test_from_consent_to_code(people, long_survey, tmp_path, language, viewport, direction, press):
    """Each answer arrives as it was given, in the order that was seen; axe finds nothing serious on the way."""
    survey = shutil.copytree(long_survey, tmp_path / "survey")
    with surveying.served(survey) as server:
        context = people(language, viewport)
        page = context.new_page()
        page.goto(server.url)
        assert serious(page) == []
        page.close()
        page = enter(context, server.url, press=press)
        seen = {}
        for number in range(10):
            if number == 0:
                check_layout(page, viewport, direction)
                assert serious(page) == []
            shown = page.locator("figure img").evaluate_all("all => all.map((each) => each.getAttribute('src'))")
            seen[tuple(Path(each).stem for each in shown)] = number
            rank_all(page, number, press=press)
        all_arrived(page)
        assert serious(page) == []
        check_layout(page, viewport, direction)
    found = list(answers(survey))
    assert len(found) == 10 and len({each.participant for each in found}) == 1
    for each in found:
        number = seen[tuple(each.order)]
        assert ranks_by_place(each) == {item: wanted(number, item) for item in ITEMS}
        assert each.language == language and each.milliseconds > 0 and each.revision == 1
        Checker(read_pages(survey)).check_answer(each)


def test_who_declines_or_fails_the_check_twice_leaves_nothing(people, survey):
    with surveying.served(survey) as server:
        page = people().new_page()
        page.goto(server.url)
        page.click("#do-decline")
        page.get_by_text("You may close this page").wait_for()
        page.click("#do-back")
        page.click("#do-agree")
        page.click("#do-next")
        assert page.inner_text("#said") == "Please choose an answer."
        page.get_by_text("The picture that offends most").click()
        page.click("#do-next")
        assert "one more try" in page.inner_text("#said")
        page.reload()  # which gives no third try
        page.get_by_text("The picture that I like best").click()
        page.click("#do-next")
        page.get_by_text("it ends here").wait_for()
        page.reload()
        assert page.locator("button").count() == 0
    assert list(answers(survey)) == []


def test_the_code_is_of_the_participant_and_can_be_read(people, survey, tmp_path):
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        page.click("#do-skip")
        page.click("#do-stop")
        all_arrived(page)
        code = page.inner_text("#code")
    [answer] = answers(survey)
    digits = {letter: f"{value:x}" for value, letter in enumerate("ACDEFHJKMNPRTWXY")}
    assert "".join(digits[letter] for letter in code.replace("-", "")) == answer.participant[:8]
    assert not set(code) & set("0O1IL5S8B2ZUVGQ6")


# Ranks ---------------------------------------------------------------------------------------------------------------


def checked(page, item: str = "culture") -> list:
    """The rank of each picture as the radio buttons show it."""
    found = page.locator(f"#item-{item} input:checked").evaluate_all("all => all.map((each) => each.id)")
    ranks = {int(place): int(rank) for place, rank in (each.rsplit("-", 2)[1:] for each in found)}
    return [ranks.get(position) for position in range(4)]


def test_a_rank_is_of_one_picture_and_what_loses_it_is_announced(people, survey):
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        for position, rank in enumerate((1, 2, 3, 4)):
            page.click(radio("culture", position, rank))
        page.click(radio("culture", 0, 3))
        assert checked(page) == [3, 2, None, 4]
        assert page.inner_text("#said") == "Rank 3 was taken from picture C. Please rank it again."
        assert page.get_attribute("#said", "aria-live") == "polite"
        page.click("#do-next")
        assert "has no rank yet" in page.inner_text("#said")
        assert page.evaluate("document.activeElement.id") == "alignment-0-1"
        assert list(answers(survey)) == []


def test_arrow_keys_that_pass_a_rank_give_it_back(people, survey):
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        for position, rank in enumerate((1, 2, 3)):
            page.click(radio("culture", position, rank))
        page.focus(radio("culture", 0, 1))
        for now, said in (([2, None, 3, None], "taken from picture B"), ([3, 2, None, None], "B has rank 2 again"),
                          ([4, 2, 3, None], "C has rank 3 again")):  # fmt: skip
            page.keyboard.press("ArrowRight")
            assert checked(page) == now and said in page.inner_text("#said")


def test_a_page_that_was_skipped_or_changed(people, survey):
    """Skipped is an answer with gaps; going back and changing it makes a revision, going through it again none."""
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        page.click(radio("culture", 0, 1))
        page.click("#do-skip")
        page.click("#do-back")
        assert checked(page) == [1, None, None, None]
        rank_all(page, 0)
        page.click("#do-back")
        page.click("#do-next")
        page.click("#do-stop")
        all_arrived(page)
    [answer] = answers(survey)
    assert answer.revision == 2 and ranks_by_place(answer) == {item: wanted(0, item) for item in ITEMS}


def test_the_order_is_drawn_anew_for_each_participant_and_page_and_each_is_as_likely(people, survey):
    """24 orders of 4 pictures in 4800 draws: chi-square of 23 degrees, beyond 49.7 once in a thousand."""
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        draws = page.evaluate(
            "Array.from({length: 4800}, (_, n) => shuffled('abcd', `${n.toString(16).padStart(32, '0')}:0`).join(''))"
        )
        again = page.evaluate("Array.from({length: 5}, () => shuffled('abcd', 'x:1').join(''))")
    counts = Counter(draws)
    assert len(counts) == 24 and sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7
    assert len(set(again)) == 1


# What may happen on the way -----------------------------------------------------------------------------------------


def test_a_reload_in_the_middle_goes_on(people, survey):
    """On the same page, in the same order, with the ranks that were given."""
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        rank_all(page, 0)
        page.click(radio("culture", 2, 3))
        before = page.inner_html(".pictures"), page.inner_text("#head")
        page.reload()
        assert (page.inner_html(".pictures"), page.inner_text("#head")) == before
        assert checked(page) == [None, None, 3, None] and "Page 2 of 3" in before[1]
        for number in (1, 2):
            rank_all(page, number)
        all_arrived(page)
    assert len(list(answers(survey))) == 3


def test_a_server_that_goes_in_the_middle_loses_nothing(people, survey):
    """Killed after the first page, gone while the others are answered and the tab is closed, and back."""
    people.allowed = (GONE,)
    context = people()
    with surveying.served(survey) as server:
        page = enter(context, server.url)
        rank_all(page, 0)
        server.stop(kill=True)
        for number in (1, 2):
            rank_all(page, number)
        page.get_by_text("have not arrived yet: ").wait_for()
        assert page.inner_text("#code")
        with page.expect_download() as download:
            page.click("#do-download")
        assert len(Path(download.value.path()).read_text().splitlines()) == 3
    with surveying.served(survey, port=server.port):
        all_arrived(page)
        page.reload()
        all_arrived(page)
    assert len(list(answers(survey))) == 3


def test_two_tabs_of_one_participant(people, survey):
    """What one does the other shows; both give the same page, which counts once, and the later of two answers."""
    with surveying.served(survey) as server:
        context = people()
        first = enter(context, server.url)
        second = context.new_page()
        second.goto(server.url)
        first.bring_to_front()
        first.click(radio("culture", 1, 4))
        second.wait_for_selector(f"{radio('culture', 1, 4)}:checked")
        rank_all(first, 0)
        second.bring_to_front()
        second.get_by_text("Page 2 of 3").wait_for()
        second.click("#do-back")
        second.click(radio("culture", 0, 1))
        second.click("#do-skip")
        first.bring_to_front()
        first.get_by_text("Page 2 of 3").wait_for()
        rank_all(first, 1)
        rank_all(second, 2)
        all_arrived(second)
        all_arrived(first)
    found = list(answers(survey))
    assert sorted(each.page for each in found) == [0, 1, 2] and len({each.participant for each in found}) == 1
    assert sorted(each.revision for each in found) == [1, 1, 2]


def test_an_answer_that_another_tab_gave_first_becomes_a_later_revision(people, survey):
    """The server has revision 1 from elsewhere, as a race of two tabs leaves it."""
    people.allowed = ("409",)
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        participant, number = page.evaluate("[state().participant, pageOrder()[0]]")
        server.post(surveying.answer(server.key, number, participant=participant))
        rank_all(page, 0)
        page.click("#do-stop")
        all_arrived(page)
    [answer] = answers(survey)
    assert answer.revision == 2 and ranks_by_place(answer) == {item: wanted(0, item) for item in ITEMS}


def test_withdrawing_deletes_here_there_and_in_the_other_tab(people, survey):
    with surveying.served(survey) as server:
        context = people()
        page = enter(context, server.url)
        other = context.new_page()
        other.goto(server.url)
        page.bring_to_front()
        rank_all(page, 0)
        page.wait_for_timeout(300)
        assert len(list(answers(survey))) == 1
        page.click("#do-withdraw")
        page.click("#do-back")
        assert page.locator(".pictures").count() == 1
        page.click("#do-withdraw")
        page.click("#do-withdraw_sure")
        for each in (page, other):
            each.get_by_text("You have withdrawn").wait_for()
        assert page.evaluate("JSON.stringify(localStorage)").count("participant") == 0
    assert list(answers(survey)) == []


def test_withdrawing_waits_for_a_server_that_is_gone(people, survey):
    people.allowed = (GONE,)
    with surveying.served(survey) as server:
        page = enter(people(), server.url)
        rank_all(page, 0)
        page.wait_for_timeout(300)
        server.stop(kill=True)
        page.click("#do-withdraw")
        page.click("#do-withdraw_sure")
        page.get_by_text("leave this page open").wait_for()
    with surveying.served(survey, port=server.port):
        page.get_by_text("You have withdrawn").wait_for()
    assert list(answers(survey)) == []


# Where it may lie ----------------------------------------------------------------------------------------------------


def test_from_a_disk_the_answers_are_a_file(people, survey):
    page = enter(people(), (survey / "site/index.html").as_uri())
    for number in range(3):
        rank_all(page, number)
    page.get_by_text("Please save your answers as a file").wait_for()
    with page.expect_download() as download:
        page.click("#do-download")
    assert download.value.suggested_filename == f"answers-{page.inner_text('#code')}.jsonl"
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert sorted(each["page"] for each in lines) == [0, 1, 2]
    for each in lines:
        Checker(read_pages(survey)).check_answer(surveying.made(each))


@contextlib.contextmanager
def static_host(folder: Path):
    """Any static host: files, and nothing that takes a post."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{host.server_address[1]}/"
    finally:
        host.shutdown()
        host.server_close()


def test_on_a_static_host_answers_go_where_the_survey_was_told(people, generated, tmp_path):
    """The site on one host, the answers on another, of which the survey knows by --answers_url."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    flags = ["--num_pages", 1, "--answers_url", f"http://127.0.0.1:{port}/answers"]
    survey = surveying.build(generated, tmp_path / "survey", *flags)
    with surveying.served(survey, port=port), static_host(survey / "site") as url:
        page = enter(people(), url)
        rank_all(page, 0)
        all_arrived(page)
    assert len(list(answers(survey))) == 1


def test_in_a_panel_each_id_is_a_participant_of_its_own(people, survey):
    """On a computer that two share; the id leaves the browser for the hash alone."""
    with surveying.served(survey) as server:
        context = people()
        for name in ("panel-id-one", "panel-id-two", "panel-id-one"):
            page = context.new_page()
            page.goto(f"{server.url}?PROLIFIC_PID={name}")
            if page.locator("#do-agree").count():
                page.close()
                page = enter(context, f"{server.url}?PROLIFIC_PID={name}")
                page.click("#do-skip")
            assert "Page 2 of 3" in page.inner_text("#head")
            time.sleep(0.2)
    assert len({each.participant for each in answers(survey)}) == 2
    assert b"panel-id" not in b"".join(path.read_bytes() for path in survey.glob("answers*"))


def test_script_in_a_prompt_or_in_strings_is_words(people, generated, tmp_path):
    """It is shown, and does nothing."""
    attack = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    strings = json.loads((surveying.ROOT / "scoft/survey/site/strings/en.json").read_text())
    strings |= {"language": "xx", "cultures": {"korea": attack}}
    (tmp_path / "xx.json").write_text(json.dumps(strings))
    surveying.draw(tmp_path / "all", prompts=1, methods=["a", "b"], prompt=attack)
    flags = ["--num_pages", 1, "--languages", tmp_path / "xx.json", "--completion_code", attack]
    survey = surveying.build(tmp_path / "all", tmp_path / "survey", *flags)
    with surveying.served(survey) as server:
        page = people().new_page()
        page.goto(server.url)
        assert attack in page.inner_text("main")
        page.close()
        page = enter(people(), server.url)
        assert page.inner_text("bdi") == attack and attack in page.inner_text("#question-culture")
        page.click("#do-skip")
        all_arrived(page)
        assert page.inner_text("#code") == attack and page.title() == strings["texts"]["title"]


def test_the_language_can_be_chosen_in_the_middle(people, long_survey, tmp_path):
    with surveying.served(shutil.copytree(long_survey, tmp_path / "survey")) as server:
        page = enter(people(), server.url)
        page.click(radio("culture", 1, 2))
        page.select_option("#language", "ar")
        check_layout(page, DESKTOP, "rtl")
        assert checked(page) == [None, 2, None, None]
        page.reload()
        assert page.evaluate("document.documentElement.lang") == "ar"
