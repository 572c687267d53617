"""The copy of the answers on the Hub, and a server that forgets its disk."""

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest

import surveying
from scoft.errors import DataError
from scoft.survey.mirror import MIRROR_FILE, Mirror
from scoft.survey.posts import Checker
from scoft.survey.schema import read_key, read_pages
from scoft.survey.store import Kept, Store, answers


@pytest.fixture
def key(survey):
    return read_key(survey)


def mirrored(folder, *, name="answers-korea"):
    """A store and its mirror, as serve has them."""
    store = Store(folder)
    return store, Mirror(name, folder, store, Checker(read_pages(folder)))


def end(store, mirror):
    mirror.__exit__()
    store.__exit__()


def on_hub(hub) -> bytes:
    """The file as the Hub has it now, and the whole of its history."""
    commits = hub.repos["dataset", "alice/answers-korea"].commits
    return commits[-1].files.get(MIRROR_FILE, b""), b"".join(commit.files.get(MIRROR_FILE, b"") for commit in commits)


def test_a_server_that_forgets_its_disk_has_all_answers_again(alice, survey, built, tmp_path, key):
    first = surveying.made(surveying.answer(key))
    second = dataclasses.replace(first, revision=2, milliseconds=5)
    gone = surveying.made(surveying.answer(key))
    store, mirror = mirrored(survey)
    for each in (first, second, gone):
        store.keep(each, "panel-id").result()
    store.withdraw(gone.participant).result()
    end(store, mirror)
    assert alice.repos["dataset", "alice/answers-korea"].private
    assert b"panel-id" not in on_hub(alice)[1]

    forgetful = shutil.copytree(built, tmp_path / "forgetful")
    store, mirror = mirrored(forgetful)
    assert list(answers(forgetful)) == [second]
    assert store.keep(gone).result() == Kept("gone")
    third = surveying.made(surveying.answer(key))
    store.keep(third).result()
    end(store, mirror)
    content, _ = on_hub(alice)
    assert all(each.participant.encode() in content for each in (first, third)) and content.count(b'"answer"') == 3


def test_who_withdraws_is_gone_from_the_history_too(alice, survey, key):
    answer = surveying.made(surveying.answer(key))
    store, mirror = mirrored(survey)
    store.keep(answer).result()
    mirror.scheduler.trigger().result()
    assert answer.participant.encode() in on_hub(alice)[0]
    store.withdraw(answer.participant).result()
    end(store, mirror)
    assert answer.participant.encode() not in on_hub(alice)[1]


def test_nothing_is_sent_to_a_dataset_that_is_public_or_became_so(alice, survey, key, caplog):
    store, mirror = mirrored(survey)
    alice.repos["dataset", "alice/answers-korea"].private = False
    answer = surveying.made(surveying.answer(key))
    store.keep(answer).result()
    end(store, mirror)
    assert answer.participant.encode() not in on_hub(alice)[1]
    assert "has become public: no more answers are sent" in caplog.text
    assert list(answers(survey)) == [answer]
    with Store(survey) as store, pytest.raises(DataError, match="mirror alice/answers-korea is public already"):
        Mirror("answers-korea", survey, store, Checker(read_pages(survey)))


def test_a_hub_that_is_gone_at_the_end_loses_nothing(alice, survey, key, caplog):
    store, mirror = mirrored(survey)
    mirror.scheduler.trigger().result()
    answer = surveying.made(surveying.answer(key))
    store.keep(answer).result()
    alice.fail("POST", "/commit/", status=500, times=20)
    end(store, mirror)
    assert "they are sent at the next start" in caplog.text
    alice.faults.clear()
    end(*mirrored(survey))
    assert answer.participant.encode() in on_hub(alice)[0]


def test_the_mirror_of_another_survey_is_refused(alice, survey, key):
    alice.add("dataset", "alice/answers-korea", {MIRROR_FILE: b'{"answer": {"survey": "other"}}\n'}, private=True)
    with Store(survey) as store, pytest.raises(DataError, match="line 1 of its answers.jsonl is no answer to this"):
        Mirror("answers-korea", survey, store, Checker(read_pages(survey)))
    assert on_hub(alice)[0].count(b"other") == 1


def test_what_the_dockerfile_installs_is_enough():
    """Serving with a mirror imports nothing but what the Dockerfile names, and what that brings."""
    text = (surveying.ROOT / "scoft/survey/Dockerfile").read_text()
    assert re.search("pip install --no-cache-dir starlette uvicorn pydantic filelock huggingface_hub PyYAML\n", text)
    heavy = "torch numpy PIL scipy transformers diffusers datasets pandas matplotlib".split()
    code = "import survey_scoft, scoft.survey.serve, scoft.survey.mirror, sys; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=surveying.ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert "key.json" not in re.sub("(?m)^#.*", "", text)
