"""The server, as a process on loopback: what it shows, what it keeps, what it refuses."""

import json
import shutil
import signal
import socket
import threading
import time

import pytest

import surveying
from scoft.survey.posts import MAX_BODY
from scoft.survey.serve import Allowance
from scoft.survey.store import answers, refusals


QUICK = "import scoft.survey.serve as serve; serve.HEADER_TIME = serve.BODY_TIME = 0.5"


@pytest.fixture(scope="module")
def server(built, tmp_path_factory):
    """One server for all tests that leave it as it was; times to wait are half a second."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("served") / "survey")
    with surveying.served(folder, "--rate", 1e6, before=QUICK) as server:
        yield server


def kept(server, participant: str) -> list:
    return [each for each in answers(server.folder) if each.participant == participant]


def test_an_answer_is_kept_once_however_often_it_is_posted(server):
    answer = surveying.answer(server.key)
    assert [server.post(answer) for _ in range(3)] == [(200, {"kept": True})] * 3
    assert kept(server, answer["participant"]) == [surveying.made(answer)]


def test_ranks_may_be_left_open(server):
    answer = surveying.answer(server.key)
    answer["ranks"]["culture"] = dict.fromkeys(answer["order"])
    assert server.post(answer)[0] == 200
    assert kept(server, answer["participant"]) == [surveying.made(answer)]


def test_a_conflict_names_the_highest_revision(server):
    answer = surveying.answer(server.key, revision=3)
    server.post(answer)
    status, said = server.post(answer | {"milliseconds": 5})
    assert (status, said["error"], said["revision"]) == (409, "conflict", 3)


def test_withdrawing_deletes_and_keeps_late_posts_out(server):
    answer = surveying.answer(server.key)
    server.post(answer)
    who = {name: answer[name] for name in ("survey", "participant")}
    assert server.ask("POST", "/withdraw", who)[:2] == (200, {"withdrawn": True})
    assert kept(server, answer["participant"]) == []
    assert server.post(answer | {"page": 1, "order": []})[1]["error"] == "order"
    status, said = server.post(surveying.answer(server.key, 1, participant=answer["participant"]))
    assert (status, said["error"]) == (410, "withdrawn") and kept(server, answer["participant"]) == []


# What is shown -------------------------------------------------------------------------------------------------------


def test_pages_come_with_headers_that_tell_no_time_and_no_address_away(server):
    names = ["", "index.html", "survey.js", "style.css", f"pictures/{next(iter(server.key.pictures))}.png"]
    for name in names:
        status, said, headers = server.ask("GET", f"/{name}")
        assert status == 200 and said["body"]
        headers = {header.lower(): value for header, value in headers.items()}
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert not headers.keys() & {"etag", "last-modified", "server", "set-cookie"}
    assert said["body"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    ["/key.json", "/../key.json", "/pictures/../../key.json", "/%2e%2e/key.json", "/..%2fkey.json", "//key.json",
     "/answers.sqlite3", "/pictures", "/pictures/", "/survey.js/", "/.lock", "/\x7f", "/%00", "/survey.js%00"],
)  # fmt: skip
def test_nothing_else_is_shown(server, path):
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.split(b" ")[1] in (b"404", b"400") and b"quokka" not in answer


# What is refused -----------------------------------------------------------------------------------------------------


def changed(key, **changes) -> dict:
    return {"answer": surveying.answer(key) | changes, "panel": None}


def ranked(key, change) -> dict:
    """A post whose ranks have gone through `change`, a function of them and of the page's pictures."""
    post = changed(key)
    change(post["answer"]["ranks"], post["answer"]["order"])
    return post


HOSTILE = {
    "nothing": ("malformed", lambda key: b""),
    "no JSON": ("malformed", lambda key: b"{" * 5000),
    "deep JSON": ("malformed", lambda key: b"[" * 8000 + b"]" * 8000),
    "no UTF-8": ("malformed", lambda key: b'{"answer": "\xff"}'),
    "half a character": ("malformed", lambda key: json.dumps(changed(key, participant="\ud800")).encode()),
    "a list": ("malformed", lambda key: []),
    "an unknown key": ("malformed", lambda key: changed(key) | {"admin": True}),
    "an unknown field": ("malformed", lambda key: changed(key, method="mpc")),
    "a missing field": ("malformed", lambda key: {"answer": {"survey": key.survey}}),
    "a number as text": ("malformed", lambda key: changed(key, page="0")),
    "true for a number": ("malformed", lambda key: changed(key, page=True)),
    "a broken number": ("malformed", lambda key: changed(key, page=0.5)),
    "a huge number": ("milliseconds", lambda key: changed(key, milliseconds=10**300)),
    "no number": ("malformed", lambda key: json.dumps(changed(key, milliseconds=float("nan"))).encode()),
    "another survey": ("other_survey", lambda key: changed(key, survey="0" * 16)),
    "a forged participant": ("participant", lambda key: changed(key, participant="../../etc/passwd")),
    "SQL": ("participant", lambda key: changed(key, participant="'; DROP TABLE answers; --")),
    "a participant and a line": ("participant", lambda key: changed(key, participant="0" * 32 + "\n")),
    "no such page": ("page", lambda key: changed(key, page=99)),
    "a page below": ("page", lambda key: changed(key, page=-1)),
    "revision 0": ("revision", lambda key: changed(key, revision=0)),
    "revisions without end": ("revision", lambda key: changed(key, revision=10**6)),
    "script as language": ("language", lambda key: changed(key, language="<script>alert(1)</script>")),
    "time before": ("milliseconds", lambda key: changed(key, milliseconds=-1)),
    "time without end": ("milliseconds", lambda key: changed(key, milliseconds=10**12)),
    "another page's order": ("order", lambda key: changed(key, order=surveying.answer(key, 1)["order"])),
    "a picture twice": ("order", lambda key: changed(key, order=surveying.answer(key)["order"] * 2)),
    "a lacking item": ("items", lambda key: ranked(key, lambda ranks, _: ranks.pop("culture"))),
    "an unknown item": ("items", lambda key: ranked(key, lambda ranks, _: ranks.update(beauty={}))),
    "a lacking picture": ("pictures", lambda key: ranked(key, lambda ranks, order: ranks["culture"].pop(order[0]))),
    "an unknown picture": ("pictures", lambda key: ranked(key, lambda ranks, _: ranks["culture"].update(x=1))),
    "rank 0": ("rank", lambda key: ranked(key, lambda ranks, order: ranks["culture"].update({order[0]: 0}))),
    "rank 5": ("rank", lambda key: ranked(key, lambda ranks, order: ranks["culture"].update({order[0]: 5}))),
    "a rank twice": (
        "repeated_rank",
        lambda key: ranked(key, lambda ranks, order: ranks["culture"].update({order[0]: 2})),
    ),
    "a long panel id": ("panel", lambda key: changed(key) | {"panel": "x" * 200}),
    "a panel id that steers": ("panel", lambda key: changed(key) | {"panel": "\x1b[2J"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_post_is_refused_by_name(server, name):
    reason, make = HOSTILE[name]
    before = list(answers(server.folder))
    status, said, _ = server.ask("POST", "/answers", make(server.key))
    assert (400 <= status < 500, said["error"]) == (True, reason) and said["message"]
    assert list(answers(server.folder)) == before


def test_only_posts_are_answers(server):
    for method in ("GET", "PUT", "DELETE"):
        assert server.ask(method, "/answers", b"{}")[1]["error"] in ("method", "no_such_file")


def test_a_post_of_100_megabytes_is_refused_unread(server):
    """By what it announces, and by what comes where nothing is announced; the memory stays as it was."""
    server.post(surveying.answer(server.key))
    before = server.peak_memory()
    for head in ("Content-Length: 100000000", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
            line.sendall(f"POST /answers HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            sent = 0
            try:
                while sent < 100_000_000:
                    sent += line.send(part)
            except OSError:
                pass  # hung up, as it should
            assert sent < 50_000_000
    assert server.peak_memory() - before < 20_000
    body = json.dumps(changed(server.key)).encode()
    assert server.ask("POST", "/answers", body + b" " * (MAX_BODY - len(body)))[0] == 200
    assert server.ask("POST", "/answers", body + b" " * (MAX_BODY + 1 - len(body)))[1]["error"] == "too_large"


@pytest.mark.parametrize(
    "slow",
    [b"POST /answers HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", b"POST /answers HTTP/1.1\r\nHo", b""],
    ids=["body", "head", "nothing"],
)
def test_who_sends_slowly_is_hung_up_on(server, slow):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(slow)
        started, answer = time.monotonic(), b""
        while part := line.recv(65536):
            answer += part
        assert time.monotonic() - started < 5
        assert (b"too_slow" in answer) == (b"Length" in slow)
        assert server.post(surveying.answer(server.key))[0] == 200


def test_a_second_request_may_not_be_slow_either(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(b"GET /style.css HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"@media" not in line.recv(65536):
            pass
        line.sendall(b"GET /st")
        started = time.monotonic()
        while line.recv(65536):
            pass
        assert time.monotonic() - started < 3


def test_refusals_are_counted_by_their_names(survey):
    with surveying.served(survey) as server:
        for name in ("rank 5", "rank 0", "no such page"):
            server.ask("POST", "/answers", HOSTILE[name][1](server.key))
        server.ask("GET", "/key.json")
        server.stop()
    assert refusals(survey) == {"no_such_file": 1, "page": 1, "rank": 2}


def test_a_server_needs_no_key(survey):
    """So that none has to lie where participants' requests arrive."""
    key = surveying.read_key(survey)
    (survey / "key.json").rename(survey.parent / "key.json")
    with surveying.served(survey, key=key) as server:
        assert server.post(surveying.answer(key))[0] == 200


def test_nothing_of_an_address_is_kept_or_logged(survey):
    with surveying.served(survey) as server:
        server.post(surveying.answer(server.key), "panel-7")
        server.ask("POST", "/answers", b"{}")
        server.stop()
    written = b"".join(path.read_bytes() for path in survey.glob("answers*")) + server.log.encode()
    assert written.count(b"127.0.0.1") == 1  # the server's own, in the line that says where the survey is
    assert b"panel-7" not in written


def test_one_address_and_one_participant_may_post_so_much(survey):
    with surveying.served(survey, "--rate", "0.2") as server:
        said = [server.post(surveying.answer(server.key)) for _ in range(4)]
        assert [status for status, _ in said] == [200, 200, 429, 429] and said[-1][1]["error"] == "too_fast"
        server.stop()
    with surveying.served(survey, "--rate", "1e6") as server:
        answer = surveying.answer(server.key)
        statuses = [server.post(answer)[0] for _ in range(70)]
        assert statuses[:60] == [200] * 60 and 429 in statuses
        assert server.post(surveying.answer(server.key))[0] == 200


def test_an_allowance_comes_back_with_time_and_forgets_the_longest_unseen(monkeypatch):
    now = [0.0]
    allowance = Allowance(2, 4, clock=lambda: now[0])
    assert [allowance.take("a") for _ in range(5)] == [True] * 4 + [False]
    assert allowance.take("b")
    now[0] = 1.0
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]
    monkeypatch.setattr("scoft.survey.serve.MOST_NAMES", 10)
    for number in range(1000):
        allowance.take(str(number))
    assert len(allowance.left) <= 11


# Ends ----------------------------------------------------------------------------------------------------------------


def test_kill_9_during_posts_loses_nothing_that_was_acknowledged(survey):
    """A thousand posts by eight at a time, some of them twice; the server is killed in the middle and comes again."""
    acknowledged, everything, lock = set(), [], threading.Lock()

    def post_all(server, posts):
        for answer in posts:
            for _ in range(2 if answer["milliseconds"] % 5 == 0 else 1):
                try:
                    status = server.post(answer)[0]
                except OSError:
                    continue
                with lock:
                    acknowledged.update({answer["participant"]} if status == 200 else ())

    def run(server, *, kill_at: int | None):
        posts = [surveying.answer(server.key, milliseconds=number) for number in range(1000)]
        everything.extend(posts)
        threads = [threading.Thread(target=post_all, args=(server, posts[start::8])) for start in range(8)]
        for thread in threads:
            thread.start()
        while kill_at is not None and len(acknowledged) < kill_at:
            time.sleep(0.001)
        if kill_at is not None:
            server.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()

    with surveying.served(survey, "--rate", 1e6) as server:
        run(server, kill_at=300)
    assert 300 <= len(acknowledged) < 1000
    with surveying.served(survey, "--rate", 1e6) as server:
        there = [each.participant for each in answers(survey)]
        assert len(there) == len(set(there)) and acknowledged <= set(there)
        for answer in everything[::10]:
            assert server.post(answer)[0] == 200
    posted = {each["participant"]: surveying.made(each) for each in everything}
    found = list(answers(survey))
    assert len(found) == len({each.participant for each in found})
    assert all(posted[each.participant] == each for each in found)


def test_a_term_signal_ends_the_server_when_answers_are_kept(survey):
    with surveying.served(survey) as server:
        answer = surveying.answer(server.key)
        server.post(answer)
        server.stop()
        assert server.process.returncode == 0
    assert [each.participant for each in answers(survey)] == [answer["participant"]]


def test_a_second_server_and_a_taken_port_are_refused(survey, built, tmp_path, monkeypatch):
    monkeypatch.setattr("scoft.files.PATIENCE", 0.1)
    import survey_scoft

    with surveying.served(survey) as server:
        with pytest.raises(ValueError, match="another run is writing into it"):
            survey_scoft.main(["serve", str(survey), "--port", "0"])
        other = shutil.copytree(built, tmp_path / "other")
        with pytest.raises(ValueError, match=f"port {server.port} of 127.0.0.1 cannot be had"):
            survey_scoft.main(["serve", str(other), "--port", str(server.port)])


def test_pages_on_another_host_may_post(server):
    """A browser asks first whether a page from elsewhere may."""
    asking = {"Origin": "https://survey.example.org", "Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "content-type"}  # fmt: skip
    status, _, headers = server.ask("OPTIONS", "/answers", **asking)
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200 and headers["access-control-allow-origin"] == "*"
    assert "content-type" in headers["access-control-allow-headers"].lower()
    _, _, headers = server.ask("POST", "/answers", changed(server.key), Origin="null")
    assert {name.lower(): value for name, value in headers.items()}["access-control-allow-origin"] == "*"
