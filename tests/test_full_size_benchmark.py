"""benchmarks/full_size.py: its bounds, what a next call goes on with, what it says of failures, and the parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import full_size, full_size_parts
from benchmarks.full_size import Call, Outcome, Part, Place, Record
from scoft.errors import DataError


SETTINGS = {"size": "tiny", "device": "cpu"}
# A part's process: each word is a case, told by its first letters what to do.
CASES = """
import json, os, subprocess, sys, time
lines, done, words = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
def tell(**told):
    with open(lines, "a") as file:
        file.write(json.dumps(told) + "\\n")
tell(cases=words)
for word in words:
    if word not in done:
        tell(begun=word)
        if word.startswith("fail"):
            sys.exit("it went wrong in " + os.getcwd())
        if word.startswith("die"):
            os.kill(os.getpid(), 9)
        if word.startswith("sleep"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            open(lines + ".child", "w").write(str(child.pid))
            child.wait()
        tell(case=word, result={"pid": os.getpid(), "place": os.getcwd()}, seconds=0.1)
"""


def part(name: str, *words: str, seconds: float = 20) -> Part:
    def command(place: Place, lines: Path, done: list[str]) -> list:
        return [sys.executable, "-c", CASES, lines, ",".join(done), *words]

    return Part(name, seconds, command)


@pytest.fixture
def call(tmp_path):
    """call(parts, seconds, again) is one call of the command, from the file on: its record, read back."""
    output = tmp_path / "full_size.json"

    def one(*parts: Part, seconds: float = 60, again: tuple[str, ...] = ()) -> Record:
        record = Record.at(output, settings=SETTINGS)
        record.calls.append({})
        record.do_again(again)
        this = Call(record, output, Place("tiny", "cpu", tmp_path), deadline=time.monotonic() + seconds)
        while found := this.next_part(parts):
            this.do(found)
        return Record.at(output, settings=SETTINGS)

    one.output, one.work = output, tmp_path
    return one


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(full_size, "LEAST", 0.1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def states(outcome: Outcome) -> dict[str, str]:
    return {name: case.state for name, case in outcome.cases.items()}


def test_parts_are_bounded_and_their_words_are_known(tmp_path):
    """25 minutes in all, at most four of one; each command line is one that the worker takes, with its cases."""
    assert sum(row.seconds for row in full_size.PARTS) <= 25 * 60
    assert max(row.seconds for row in full_size.PARTS) <= 4 * 60
    assert len({row.name for row in full_size.PARTS}) == len(full_size.PARTS)
    cases = {}
    for row in full_size.PARTS:
        words = row.command(Place("full", "cuda", tmp_path), tmp_path / "lines", ["a case"])
        assert words[1:3] == ["-m", "benchmarks.full_size_parts"]
        args = full_size_parts.parse_args([str(word) for word in words[3:]])
        assert args.done == ["a case"] and args.size == "full"
        cases[row.name] = list(full_size_parts.KINDS_OF_PARTS[args.kind](args))
    assert len(cases["batches"]) == len(cases["batches_compiled"]) == 3 * 2 * 2
    assert cases["train_step_compiled"] == ["ours, batch 1, K 1", "plain, batch 1, K 1"]
    assert cases["updates_fp16"] == ["100 updates, fp16"]


def test_a_second_call_does_what_is_missing_alone(call):
    """Done stays done, `--again` does it anew, and the paths of this machine are in no result."""
    first = call(part("one", "a", "b"))
    assert first.parts["one"].state == "done" and first.parts["one"].cases["a"].result["place"] == "."
    second = call(part("one", "a", "b"), part("two", "c"))
    assert second.parts["one"] == first.parts["one"] and second.parts["two"].call == 1
    third = call(part("one", "a", "b"), part("two", "c"), again=("one",))
    assert third.parts["two"] == second.parts["two"]
    assert third.parts["one"].cases["a"].result["pid"] != first.parts["one"].cases["a"].result["pid"]
    assert "two    missing" in full_size.table(first, [part("one"), part("two")])


def test_a_part_ends_at_its_bound_with_all_that_it_started(call):
    """What was measured stays, the next part runs; only `--again` goes on, with the cases that are missing."""
    parts = part("slow", "a", "sleep", "b", seconds=1.5), part("next", "c")
    record = call(*parts)
    assert record.parts["slow"].state == "cut at its bound" and record.parts["next"].state == "done"
    assert states(record.parts["slow"]) == {"a": "done", "sleep": "cut", "b": "not begun"}
    assert not is_alive(int((call.work / "slow.jsonl.child").read_text()))
    assert call(*parts).parts["slow"].call == 0
    again = call(part("slow", "a", "c", "b"), again=("slow",)).parts["slow"]
    assert again.state == "done" and again.cases["a"] == record.parts["slow"].cases["a"]


def test_a_call_ends_at_its_own_bound(call, hasty):
    """What it cut is gone on with by the next; a shorter part that fits is drawn forward before."""
    parts = part("long", "a", "sleep", seconds=30), part("short", "b", seconds=2)
    record = call(*parts, seconds=3)
    assert record.parts["short"].state == "done" and record.parts["long"].state == "cut short"
    assert record.parts["long"].done() == ["a"]
    later = call(part("long", "a", "b", seconds=30)).parts["long"]
    assert later.state == "done" and later.cases["a"] == record.parts["long"].cases["a"] and later.call == 1


def test_what_fails_is_recorded_and_the_rest_done(call):
    """A case that takes its process down, by an error or by a signal, keeps its last lines; a new process goes on."""
    parts = [part("mixed", "a", "fail", "b", "die", "c"), part("dead")]
    record = call(*parts)
    mixed = record.parts["mixed"]
    assert mixed.state == "failed"
    assert states(mixed) == {"a": "done", "fail": "failed", "b": "done", "die": "failed", "c": "done"}
    assert mixed.cases["fail"].last_lines == ["it went wrong in ."] and mixed.cases["die"].last_lines == []
    assert len({mixed.cases[name].result["pid"] for name in "abc"}) == 3
    assert record.parts["dead"].state == "failed" and record.parts["dead"].cases == {}
    assert call(*parts).parts == record.parts
    again = call(part("mixed", "a", "b", "c"), parts[1], again=("mixed",)).parts["mixed"]
    assert again.state == "done" and again.cases["b"] == mixed.cases["b"]


def test_a_process_that_ends_before_any_case_tells_why(call):
    wrong = Part(
        "wrong", 9, lambda place, lines, done: [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    )
    outcome = call(wrong).parts["wrong"]
    assert outcome.state == "failed" and outcome.last_lines == ["no such thing"]


def test_a_file_that_is_none_is_said(call):
    """Torn, of another form, or of other settings: not gone on with, and not written over."""
    call(part("one", "a"))
    whole = call.output.read_text()
    with pytest.raises(DataError, match=r"is of \{'size': 'tiny', 'device': 'cpu'\}, this call of .*'full'"):
        Record.at(call.output, settings={"size": "full", "device": "cuda"})
    for text in (whole[:-9], '{"runs": []}', whole.replace('"done"', '"fine"')):
        call.output.write_text(text)
        with pytest.raises(DataError, match=r"full_size.json is not as it was written: .* Name another --output"):
            call(part("one", "a"))
        assert call.output.read_text() == text


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    run = [sys.executable, "-m", "benchmarks.full_size", "--size", "tiny", "--device", "cpu", *words]
    return subprocess.run(run, cwd=full_size.ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_the_command_is_cut_from_outside_and_goes_on(tmp_path):
    """Asked to end while a part is under way, it ends that part too and writes its state; a kill loses no more."""
    output = tmp_path / "full_size.json"
    run = [sys.executable, "-m", "benchmarks.full_size", "--size", "tiny", "--device", "cpu", "--output", output]
    process = subprocess.Popen(
        [*run, "--work", tmp_path / "work"], cwd=full_size.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        ends = time.monotonic() + 240
        while time.monotonic() < ends and not output.exists():
            time.sleep(0.1)
        assert json.loads(output.read_text())["parts"]["gpu_tests"]["state"] == "running"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert children and not any(is_alive(int(pid)) for pid in children)
    record = json.loads(output.read_text())
    assert record["parts"]["gpu_tests"]["state"] == "cut short"
    assert record["calls"][0]["machine"]["gpu"] is None
    record["parts"]["gpu_tests"]["state"] = "running"  # as a kill would have left it
    output.write_text(json.dumps(record))
    again = Record.at(output, settings=SETTINGS)
    assert again.missing(full_size.PARTS)[0].name == "gpu_tests"


def test_bad_arguments_are_said(tmp_path, monkeypatch):
    for words, said in (
        (["--minutes", "0"], "--minutes is a number above 0, got 0.0"),
        (["--stretch", "nan"], "--stretch is a number above 0, got nan"),
        (["--again", "all"], "invalid choice: 'all'"),
    ):
        done = command(*words)
        assert done.returncode == 2 and said in done.stderr
    monkeypatch.setattr(full_size, "lacking", lambda lines: (["diffusers", "datasets"], []))
    with pytest.raises(SystemExit, match="this Python lacks diffusers, datasets. Where there is a network, .*wheels"):
        full_size.main(["--output", str(tmp_path / "x.json"), "--work", str(tmp_path)])


def test_what_is_missing_and_what_is_old_is_found():
    lines = ["pytest>=2  # why", "", "# a line", "packaging>=999", "no-such-package-of-ours>=1"]
    missing, older = full_size.lacking(lines)
    assert missing == ["no-such-package-of-ours"] and len(older) == 1 and older[0].endswith("asked is >=999")


# ---------------------------------------------------------------------------------------------------------------------
# What the parts measure
# ---------------------------------------------------------------------------------------------------------------------


def test_a_worker_tells_its_cases_and_leaves_out_those_done(tmp_path, capfd):
    """Of real updates at tiny size, in this process."""
    lines = tmp_path / "lines.jsonl"
    words = "bench --size tiny --device cpu --arms ours plain --captions 2".split()
    where = ["--work", str(tmp_path), "--lines", str(lines)]
    full_size_parts.main([*words, *where, "--done", "plain, batch 1, K 2"])
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    assert told[0] == {"cases": ["ours, batch 1, K 2", "plain, batch 1, K 2"]}
    assert told[1] == {"begun": "ours, batch 1, K 2"} and len(told) == 3
    result = told[2]["result"]
    seconds = result["seconds"]
    assert seconds["mean"] == pytest.approx(sum(seconds[kind] for kind in full_size_parts.KINDS) / 2, rel=1e-3)
    assert min(seconds.values()) > 0 and result["warmup_seconds"] > 0


def test_a_profile_by_hand():
    """Three kernels, two of which overlap, over ten microseconds of which seven are busy; two updates."""
    events = [("a", 0.0, 4.0), ("b", 2.0, 5.0), ("a", 8.0, 10.0)]
    found = full_size_parts.summary(events, updates=2, largest=1)
    assert found["events_per_update"] == 1.5
    assert found["busy_ms_per_update"] == pytest.approx(7 / 2 / 1000)
    assert found["idle_share"] == pytest.approx(0.3)
    (largest,) = found["largest"]
    assert (largest["name"], largest["events_per_update"]) == ("a", 1)
    assert largest["share_of_events_time"] == pytest.approx(6 / 9)


def test_warnings_are_found_once_each():
    lines = ["INFO all is well", "x.py:1: FutureWarning: old", " x.py:1: FutureWarning: old ", "is deprecated"]
    assert full_size_parts.warnings_in(lines) == ["x.py:1: FutureWarning: old", "is deprecated"]


def test_a_command_that_fails_ends_its_case(capfd):
    code = "print('told'); raise SystemExit(3)"
    with pytest.raises(SystemExit, match="ended with 3"):
        full_size_parts.run([sys.executable, "-c", code], device="cpu")
    assert capfd.readouterr().out == "told\n"
