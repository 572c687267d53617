"""What all commands share: the parser, the log, and how they end."""

import argparse
import errno
import gc
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from scoft.launch import Parser

import pytest
from PIL import Image

import evaluate_scoft
import prepare_ccub
import scoft.dataset
import scoft.dataset_source
import scoft.evaluate.score
import scoft.files
import scoft.hub
import scoft.prepare.write
import scoft.train.run
import train_scoft_lora
from scoft import launch
from scoft.dataset_source import READER_REMEDIES
from scoft.errors import DataError
from scoft.train import tables


ROOT = Path(train_scoft_lora.__file__).parent
DOORS = {"train": train_scoft_lora, "prepare": prepare_ccub, "evaluate": evaluate_scoft}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("words", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--token=hf_secret"]])
def test_a_token_is_refused_and_not_shown(door, words, capsys):
    """No command takes a token, and its refusal tells the ways that keep it secret, and not the token."""
    with pytest.raises(SystemExit):
        DOORS[door].parse_args(["generate"] * (door == "evaluate") + words)
    shown = capsys.readouterr()
    assert "HF_TOKEN" in shown.err and "revoke it" in shown.err and "hf_secret" not in shown.err + shown.out


@pytest.mark.parametrize(
    ("door", "words"),
    [
        ("prepare", ["--culture", "korea", "--links", "https://me:hf_secret@example.org/links.csv"]),
        ("train", ["--dataset=https://hf_secret@huggingface.co/datasets/me/ccub"]),
        ("evaluate", ["generate", "out", "--dataset", "d", "--lora", "s3://key:hf_secret@bucket/lora"]),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(door, words, capsys):
    """It would stand in `ps`, in logs and in training_args.json; what only looks like one is taken."""
    with pytest.raises(SystemExit):
        DOORS[door].parse_args(words)
    shown = capsys.readouterr()
    assert "an address holds a user name or password" in shown.err and "hf_secret" not in shown.err + shown.out
    address = "https://example.org/@me?mail=me@example.org"
    assert prepare_ccub.parse_args(["--culture", "korea", "--links", address]).links == address


def test_an_address_with_a_password_in_a_file_of_flags_is_refused(tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text("perceptual_model_name_or_path: https://me:hf_secret@example.org/clip\n")
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--config", str(tmp_path / "flags.yaml"), "--dataset", "pocket"])
    error = capsys.readouterr().err
    assert "flags.yaml: an address holds a user name" in error and "hf_secret" not in error


@pytest.mark.parametrize(
    ("door", "word", "hint"),
    [
        ("train", "--lr", "--learning_rate"),
        ("train", "--batch_size", "--train_batch_size"),
        ("train", "--perceptual_evry=3", "--perceptual_every"),
        ("prepare", "--minsize", "--min_size"),
        ("evaluate", "--num_image", "--num_images"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(door, word, hint, capsys):
    argv = {"train": ["--dataset", "d"], "prepare": ["--culture", "korea"]}.get(door)
    argv = argv or ["generate", "eval", "--dataset", "d", "--culture", "c"]
    with pytest.raises(SystemExit):
        DOORS[door].parse_args([*argv, word])
    assert f"{word}: did you mean {hint}?" in capsys.readouterr().err


def test_help_shows_every_default():
    """Each flag with a default tells it once, also one without words of its own."""
    parser = Parser()
    parser.add_argument("--bare", default=3)
    parser.add_argument("--worded", default=4, help="a number")
    parser.add_argument("--told", default=5, help="default: five")
    parser.add_argument("--none", help="nothing")
    words = " ".join(parser.format_help().split())
    assert "default: 3" in words and "a number; default: 4" in words
    assert words.count("default: five") == 1 and "5" not in words.partition("--told")[2] and "None" not in words
    assert parser.format_help() == parser.format_help()


def test_help_shows_lists_as_words_and_nothing_for_none_of_them():
    """What is on the command line, not Python's brackets; a switch that is off says so by its form."""
    parser = Parser()
    parser.add_argument("--language", nargs="+", default=["en", "ko"], help="of the captions")
    parser.add_argument("--allow_host", action="append", default=[], help="a host")
    parser.add_argument("--push", action=argparse.BooleanOptionalAction, default=False, help="the page")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--crop", action=argparse.BooleanOptionalAction, default=True, help="the middle")
    parser.add_argument("--lowest", default=0, help="a number")
    words = " ".join(parser.format_help().split())
    assert "of the captions; default: en ko" in words and "a number; default: 0" in words
    assert words.count("default") == 3 and "the middle; default: True" in words
    assert parser.parse_args([]).language == ["en", "ko"]


def test_every_flag_of_the_trainer_has_words_of_its_own(monkeypatch):
    """None is shown with its name and default alone."""
    parsers, parse = [], Parser.parse_args
    monkeypatch.setattr(Parser, "parse_args", lambda self, *args: parsers.append(self) or parse(self, *args))
    train_scoft_lora.parse_args(["--dataset", "d", "--culture", "c"])
    flags = {flag: action.help for action in parsers[0].all_actions() for flag in action.option_strings}
    assert "--adam_beta1" in flags and "--push_to_hub" in flags
    assert [flag for flag, words in flags.items() if not words] == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.py", "def f(:", "x.py cannot be imported: SyntaxError: "),
        ("x.py", "import nothing_of_this_name", "x.py cannot be imported: ModuleNotFoundError: No module"),
        ("x.py", "raise SystemExit(3)", "x.py cannot be imported: SystemExit: 3"),
        ("x.py", "f = 3", "x.py has no function f"),
        ("x.py", None, "there is no file .*x.py"),
    ],
)
def test_load_function_refuses(tmp_path, file, content, message):
    """A file that is no module, or fails, or lacks the function is told by its flag and name."""
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=f"--judge {tmp_path}/{file}:f: .*{message}"):
        launch.load_function(f"{tmp_path / file}:f", flag="--judge")


@pytest.mark.parametrize("spec", ["judge", "judge.py", "judge.txt:f", ":f", "judge.py:"])
def test_what_is_no_function_of_a_file(spec, capsys):
    parser = Parser()
    parser.add_argument("--judge", type=launch.function_of_file, help="h")
    with pytest.raises(SystemExit):
        parser.parse_args(["--judge", spec])
    assert f"error: --judge is FILE.py:function, got '{spec}'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------------------------------


def test_progress_is_a_few_lines_of_the_log_where_there_is_no_terminal(capsys, caplog, monkeypatch):
    """No bar is drawn; the start, the end and a line every LOG_EVERY seconds tell how far the work is."""
    caplog.set_level(logging.INFO, "scoft")
    monkeypatch.setattr(launch, "LOG_EVERY", 0.2)
    with launch.progress(range(8), "Updates") as bar:
        for item in bar:
            bar.set_postfix({"loss": f"0.{item}"}, refresh=False)
            time.sleep(0.1)
    list(launch.progress(range(1000), "Small things", leave=False))
    shown = [record.message for record in caplog.records]
    assert capsys.readouterr().err == "" and 4 <= len(shown) <= 6
    assert shown[0].startswith("Updates: 0 of 8") and shown[-1].startswith("Updates: 8 of 8")
    assert ", loss=0.7" in shown[-1]


def test_the_libraries_draw_no_bars_into_a_log_file():
    """Where stderr is no terminal, a bar of any library that does not say otherwise stays away."""
    code = "import train_scoft_lora; from tqdm.auto import tqdm; list(tqdm(range(3)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_the_main_process_tells(monkeypatch):
    """All of our modules' loggers tell what they do, such as "Pushed to"; of other processes errors alone are seen."""
    for rank, level in (("1", logging.ERROR), ("0", logging.INFO)):
        monkeypatch.setenv("RANK", rank)
        launch.set_up_logging()
        for module in (
            scoft.hub,
            scoft.dataset,
            scoft.train.run,
            scoft.evaluate.score,
            scoft.prepare.write,
            scoft.files,
        ):
            assert module.logger.getEffectiveLevel() == level


# ---------------------------------------------------------------------------------------------------------------------
# Ending
# ---------------------------------------------------------------------------------------------------------------------


def allocate(shape):
    import torch

    return torch.empty(shape)


def run_out_of_cuda():
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried 20 GiB.\nSee the documentation.")


def raising(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (lambda: raising(DataError("--dataset x: no")), "error: --dataset x: no"),
        (lambda: raising(FloatingPointError("update 3: no")), "error: update 3: no"),
        (lambda: raising(MemoryError()), "error: there is not enough memory. Take less"),
        (lambda: allocate(2**60), "error: there is not enough memory ([enforce fail"),
        (run_out_of_cuda, "error: there is not enough memory (CUDA out of memory. Tried 20 GiB.). Take less"),
        (lambda: raising(RuntimeError("CUDA error: out of memory")), "error: there is not enough memory (CUDA error"),
        (lambda: raising(OSError(errno.ENOMEM, "Cannot allocate memory")), "error: there is not enough memory ("),
        (lambda: raising(OSError(errno.ENOSPC, "No space left on device", "a/b")),
         "error: a/b cannot be read or written: No space left on device."),
        (lambda: Path("n" * 300).write_text("x"), f"error: {'n' * 300} cannot be read or written: File name too"),
        (lambda: Path("no-such.png").read_bytes(), "error: no-such.png cannot be read or written: No such file"),
        (lambda: Path("/").mkdir(), "error: / cannot be read or written: File exists."),
        (lambda: Path("/").write_bytes(b""), "error: / cannot be read or written: Is a directory."),
        (lambda: os.listdir(__file__), f"error: {__file__} cannot be read or written: Not a directory."),
    ],
    ids=["data", "not finite", "memory", "allocator", "gpu", "driver", "system", "full", "name", "gone", "there",
         "folder", "no folder"],
)  # fmt: skip
def test_what_a_user_can_cause_ends_in_one_line(capsys, main, line):
    with pytest.raises(SystemExit) as ended:
        launch.run_main(main, memory_advice="Take less")
    shown = capsys.readouterr().err
    assert ended.value.code == 1 and shown.startswith(line) and shown.count("\n") == 1


@pytest.mark.parametrize("ours", [RuntimeError("shapes"), OSError(errno.EBADF, "closed", "x"), KeyError()])
def test_an_error_of_ours_keeps_its_traceback(ours):
    with pytest.raises(type(ours)):
        launch.run_main(lambda: raising(ours), memory_advice="")


def test_a_command_rarely_looks_through_what_it_keeps():
    """Python does so after each 2000 new objects at most, and those of imports stay."""
    threshold, before = gc.get_threshold(), gc.get_stats()
    try:
        launch.run_main(lambda: [[] for _ in range(200_000)], memory_advice="")
    finally:
        gc.set_threshold(*threshold)
    assert sum(each["collections"] for each in gc.get_stats()) - sum(each["collections"] for each in before) < 10


ENDING = """
from scoft import launch
import sys, time

def main():
    print("begun", flush=True)
    {body}

launch.run_main(main, memory_advice="")
"""


def test_ctrl_c_is_one_line():
    """Also before the log and the handlers of a run are there; the status is what shells expect."""
    code = ENDING.format(body="time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n" and process.returncode == 130


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path):
    """A command may be interrupted before its main is reached: importing torch takes seconds."""
    (tmp_path / "torch.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "from scoft import launch; import torch"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True, env=env)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n" and process.returncode in (130, -signal.SIGINT)


def test_memory_that_runs_out_in_importing_modules_is_one_line(tmp_path):
    """Libraries of a gigabyte may not fit before anything of ours runs."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: failed to map segment from shared object')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "from scoft import launch; import torch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    line = "error: there is not enough memory (libtorch.so: failed to map segment from shared object).\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_file_for_which_there_is_no_room_is_named(tmp_path):
    """Writing fails without a name; the line has it, and what was there stays."""
    code = ENDING.format(
        body="import resource, pathlib, scoft.files; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99)); "
        f"scoft.files.write_atomically(pathlib.Path({str(tmp_path / 'big')!r}), b'x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'big'} cannot be read or written: File too large.\n"
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_gone_is_no_error():
    """`... | head` is answered with silence."""
    code = ENDING.format(body="sys.stdout.write('word\\n' * 10_000_000)")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=-1, stderr=-1, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_our_line_is_the_last_under_accelerates_launcher():
    """The launcher shows a traceback of its own for a command that fails; our line comes once more behind it."""
    argv = ["train_scoft_lora.py", "--dataset", "./nope", "--culture", "x"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *argv]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "error: --dataset ./nope was not found" in done.stderr.rpartition("CalledProcessError")[2]


@pytest.mark.parametrize(
    ("argument", "in_python", "told"),
    [
        ("culture", "culture peru is not there", "--culture peru is not there"),
        ("--filter_model", "--filter_model peru is not there", "--filter_model peru is not there"),
        ("NAME of --lora", "NAME of --lora peru is not there", "NAME of --lora peru is not there"),
        (None, "peru is not there", "peru is not there"),
    ],
)
def test_a_parameter_at_fault_is_told_as_a_flag(argument, in_python, told):
    """A function of ours names its parameter; a command, whose flag has that name, tells it with its dashes."""
    error = DataError("peru is not there", argument=argument)
    assert str(error) == in_python and launch.told(error, memory_advice="") == f"error: {told}"


@pytest.mark.parametrize(
    ("remedies", "said"),
    [
        (READER_REMEDIES, r"and read the dataset \S+_prepared, or read it without needs_blip\."),
        (
            tables.REMEDIES,
            r"and train with --dataset \S+_prepared, or train with --method finetune, which needs none\.",
        ),
    ],
)
def test_a_command_hands_in_its_own_way_out(tmp_path, remedies, said):
    """What to do about missing captions is said in parameters to users of Python, and in flags to those of a door."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    source = scoft.dataset_source.find_dataset(str(tmp_path), culture=None)
    with pytest.raises(DataError, match=said) as raised:
        scoft.dataset.read_dataset(source, culture=None, needs_blip=True, needs_negatives=False, remedies=remedies)
    assert raised.value.for_command.startswith("--blip_caption_column 'blip_text' is no column of ")


@pytest.mark.parametrize("remedies", [READER_REMEDIES, tables.REMEDIES])
@pytest.mark.parametrize("wrong", ["caption", "image"])
def test_the_way_past_a_bad_row_is_told(tmp_path, remedies, wrong):
    """A caption or a picture that cannot be used ends in a message with what leaves it out."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "" if wrong == "caption" else "b"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if wrong == "image":
        (tmp_path / "b.png").write_text("no picture")
    source = scoft.dataset_source.find_dataset(str(tmp_path), culture=None)
    with pytest.raises(DataError, match=re.escape(remedies.bad_rows)):
        scoft.dataset.read_dataset(source, culture=None, needs_blip=False, needs_negatives=False, remedies=remedies)


def test_a_bad_number_in_a_file_of_flags_is_a_sentence(tmp_path, capsys):
    """As on the command line, behind the name of the file."""
    (tmp_path / "flags.yaml").write_text("train_batch_size: 0")
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--dataset", "x", "--config", str(tmp_path / "flags.yaml")])
    assert "flags.yaml: --train_batch_size is at least 1, got 0" in capsys.readouterr().err
