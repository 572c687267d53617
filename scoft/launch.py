"""What all commands do alike: flags, the tables and functions they may name, the log, and errors told in one line.

Commands import this before all that is heavy, which pyproject.toml's order of imports sees to: tqdm, which comes with
torch, reads TQDM_DISABLE when it is imported, and Ctrl-C may come while torch is.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import gc
import importlib.util
import io
import logging
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from scoft.errors import DataError
from scoft.files import read_regular
from scoft.hub import CREDENTIALS


logger = logging.getLogger(__name__)

COLLECT_EVERY = 50_000  # new objects after which Python looks for cycles, where it does after some hundreds
LOG_EVERY = 30  # seconds between lines that tell the progress where there is no terminal for a bar
LAUNCHER = os.getppid() if {"ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"} & os.environ.keys() else None
# What the system refuses by no fault of ours.
REFUSALS = {
    getattr(errno, name, None)
    for name in (
        "EACCES EPERM EROFS ENOSPC EDQUOT EFBIG ENAMETOOLONG EMFILE ENFILE EIO ENOENT EEXIST EISDIR ENOTDIR".split()
    )
}

TOKEN_FLAGS = ("hub_token", "token")
TOKEN_ADVICE = (
    "--hub_token is no flag, since `ps` and logs show what stands in a command line or a file of flags. If this was a "
    "true token, revoke it; give the next one by `hf auth login`, by HF_TOKEN, or by HF_TOKEN_PATH, the name of a file"
)
CREDENTIALS_ADVICE = (
    "an address holds a user name or password, which `ps`, logs and records would show. Give it without; what needs "
    "them can be fetched by hand and given as a file"
)
MAX_TABLE = 2**20  # bytes of a file of flags


class Parser(argparse.ArgumentParser):
    """argparse's parser as our commands use it: no abbreviations, every default in --help, no secrets, and hints.

    A table of flags may stand behind the command line, see `words_of`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self) -> str:
        for action in self._actions:
            default = action.default
            told = default is False or default in (None, argparse.SUPPRESS, []) or "default" in (action.help or "")
            if action.option_strings and not told:
                is_list = isinstance(default, (list, tuple))
                shown = " ".join(map(str, default)).replace("%", "%%") if is_list else "%(default)s"
                action.help = "; ".join(filter(None, [action.help, f"default: {shown}"]))
        return super().format_help()

    def parse_args(self, argv=None, namespace=None):
        argv = sys.argv[1:] if argv is None else argv
        if any(word.partition("=")[0] in {f"--{flag}" for flag in TOKEN_FLAGS} for word in argv):
            self.error(TOKEN_ADVICE)
        if any(CREDENTIALS.search(word) for word in argv):
            self.error(CREDENTIALS_ADVICE)
        args, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            hints = [f"{word}: did you mean {near}?" for word in unknown if (near := self.nearest(word))]
            self.error(" ".join(["unrecognized arguments:", *unknown, *hints]))
        return args

    def error(self, message):
        super().error(re.sub(r"(^|: )argument (\S+): (?=is )", r"\1\2 ", message))  # of the types below: a sentence

    def exit(self, status=0, message=None):
        if message:
            end(message.rstrip(), status=status)
        super().exit(status)

    def nearest(self, word: str) -> str | None:
        """The flag that an unknown one may stand for: by its letters, its initials (--lr), or its parts."""
        flags = [flag for action in self.all_actions() for flag in action.option_strings if flag.startswith("--")]
        name = word.partition("=")[0].removeprefix("--")
        initials = [flag for flag in flags if "".join(part[0] for part in flag[2:].split("_")) == name]
        within = [flag for flag in flags if len(name) > 3 and name in flag]
        found = initials or difflib.get_close_matches(f"--{name}", flags, n=1) or within
        return found[0] if word.startswith("--") and found else None

    def all_actions(self) -> Iterator[argparse.Action]:
        """The parser's actions, and those of its subcommands."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.all_actions()
            else:
                yield action

    def words_of(self, flags: object, *, here: Path, source: str, required: Sequence[str]) -> list[str]:
        """A table of flags as command-line words, so that one parser checks both; errors begin with `source`.

        `{here}` in a value stands for the folder `here`. `required`: words without which this parser takes no line.
        Lists go first: behind one a positional argument would seem to be its last item.
        """
        with self.errors_naming(source):
            if not isinstance(flags, dict):
                self.error("expected lines of `flag: value`")
            actions = {word.removeprefix("--"): action for action in self._actions for word in action.option_strings}
            lists, words = [], []
            for flag, value in flags.items():
                if flag in TOKEN_FLAGS:
                    self.error(TOKEN_ADVICE)
                if flag not in actions or flag in ("config", "help"):
                    self.error(f"unknown flag {flag!r}")
                if isinstance(value, bool):
                    if actions[flag].nargs != 0:
                        self.error(f"{flag} takes a value, got {value}; quote the words 'yes' and 'no'")
                    off = f"--no-{flag}"
                    words += [f"--{flag}"] if value else [off] if off in actions[flag].option_strings else []
                elif isinstance(value, list):
                    lists += [f"--{flag}", *(str(item).replace("{here}", str(here)) for item in value)]
                elif value is not None:
                    words.append(f"--{flag}={value}".replace("{here}", str(here)))
            self.parse_args([*required, *lists, *words])
        return lists + words

    def table(self, path: Path, *, source: str, section: str | None = None) -> object:
        """The content of a YAML file, or one section of it, by PyYAML's safe loader; what is wrong ends in `error`."""
        import yaml

        try:
            content = yaml.safe_load(read_regular(path, at_most=MAX_TABLE))
        except (OSError, DataError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            self.error(f"{source}: {error}")
        if section is None:
            return content
        if not isinstance(content, dict):
            self.error(f"{source}: expected sections of flags, such as `{section}:`")
        return content.get(section, {})

    @contextlib.contextmanager
    def errors_naming(self, source: str) -> Iterator[None]:
        """Put `source` before this parser's errors, for as long as this lasts."""
        error = self.error
        self.error = lambda message: error(f"{source}: {message}")
        try:
            yield
        finally:
            del self.error


# ---------------------------------------------------------------------------------------------------------------------
# Types of flags, which carry their limits
# ---------------------------------------------------------------------------------------------------------------------


def number(kind: type, holds: Callable[[float], bool], words: str) -> Callable[[str], float]:
    """argparse's type of the finite numbers for which `holds`; `words` says which these are: "is at least 1"."""

    def parse(text: str) -> float:
        value = kind(text)
        if not (math.isfinite(value) and holds(value)):
            raise argparse.ArgumentTypeError(f"{words}, got {text}")
        return value

    parse.__name__ = kind.__name__  # which argparse says of text that is no number
    return parse


def at_least(least: int) -> Callable[[str], int]:
    """argparse's type of the whole numbers from `least` up."""
    return number(int, lambda value: value >= least, f"is at least {least}")


def at_most(most: int, why: str = "") -> Callable[[str], int]:
    """argparse's type of the whole numbers from 1 to `most`; `why`: what sets that bound, for the message."""
    return number(int, lambda value: 1 <= value <= most, f"is from 1 to {most}{why}")


def from_zero(kind: type) -> Callable[[str], float]:
    """argparse's type of the finite numbers of a `kind`, int or float, that are not negative."""
    return number(kind, lambda value: value >= 0, "is a number from 0 up")


def between(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """argparse's type of the numbers from `low` to `high`, both included."""
    return number(kind, lambda value: low <= value <= high, f"is a number from {low} to {high}")


def multiple_of(step: int) -> Callable[[str], int]:
    """argparse's type of the positive multiples of `step`."""
    return number(int, lambda value: value >= step and value % step == 0, f"is a multiple of {step}")


def count_or(word: str) -> Callable[[str], str]:
    """argparse's type of the text of a whole number from 1 up, and of `word`."""

    def parse(text: str) -> str:
        if text != word and not re.fullmatch("[1-9][0-9]*", text):
            raise argparse.ArgumentTypeError(f"is a number from 1 up or `{word}`, got {text!r}")
        return text

    return parse


positive = number(float, lambda value: value > 0, "is a positive number")
share = number(float, lambda value: 0 <= value < 1, "is a number from 0 up and below 1")


def add_options(group: argparse._ActionsContainer, options: Mapping[str, Mapping[str, object]]):
    """Make a flag of each option of a part that brings its own: name -> what argparse has to know of it."""
    for name, option in options.items():
        group.add_argument(f"--{name}", **option)


# ---------------------------------------------------------------------------------------------------------------------
# Functions of users
# ---------------------------------------------------------------------------------------------------------------------


def function_of_file(text: str) -> str:
    """argparse's type of FILE.py:function."""
    if not re.fullmatch(r".+\.py:\w+", text):
        raise argparse.ArgumentTypeError(f"is FILE.py:function, got {text!r}")
    return text


def load_function(spec: str, *, flag: str) -> Callable:
    """The function of `spec`, a `function_of_file`, the value of `flag`. Raises DataError."""
    path, _, name = spec.rpartition(":")
    if not os.path.exists(path):
        raise DataError(f"{flag} {spec}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location("scoft_user_code", path)
    module = sys.modules["scoft_user_code"] = importlib.util.module_from_spec(module_spec)  # dataclasses look there
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise DataError(f"{flag} {spec}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise DataError(f"{flag} {spec}: {path} has no function {name}")
    return getattr(module, name)


# ---------------------------------------------------------------------------------------------------------------------
# Command lines to give
# ---------------------------------------------------------------------------------------------------------------------


def command_again(script: str, argv: Sequence[str], *, without: Sequence[str] = (), more: Sequence[str] = ()) -> str:
    """A script's command line, to be given once more: without some flags that have a value, and with more."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in without:
        parser.add_argument(flag)
    return shlex.join(["python", script, *parser.parse_known_args(argv)[1], *more])


def prepare_command(culture: str, *, output: str, images: str | os.PathLike | None = None) -> str:
    """The command that prepares a culture's dataset, as a shell takes it; images: None for CCUB's own links."""
    flags = {"--culture": culture, "--images": images, "--output": output}
    words = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["python", "prepare_ccub.py", *words])


# ---------------------------------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------------------------------


def set_up_logging():
    """Our messages on stderr, from the main process alone; of the libraries, warnings."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("scoft").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)


def progress(
    items: Iterable | None = None,
    desc: str | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
):
    """tqdm's bar; where stderr is no terminal, a line of the log every LOG_EVERY seconds; with `leave` at both ends.

    Call its set_postfix with refresh=False, else every call is a line.
    """
    from tqdm.auto import tqdm

    common = {"desc": desc, "total": total, "initial": initial, "leave": leave, "disable": disable}
    if sys.stderr.isatty():
        return tqdm(items, **common)
    return tqdm(
        items,
        **common,
        file=_LogLines(),
        bar_format="{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} to go{postfix}",
        mininterval=LOG_EVERY,
        miniters=1,
        delay=0 if leave else LOG_EVERY,
    )


class _LogLines(io.TextIOBase):
    """Where tqdm writes what is to be a line of the log."""

    def write(self, text: str) -> int:
        if line := text.strip():
            logger.info(line)
        return len(text)


# ---------------------------------------------------------------------------------------------------------------------
# Ending
# ---------------------------------------------------------------------------------------------------------------------


def run_main(main: Callable[[], None], *, memory_advice: str):
    """Call a command's main, and let what a user can cause end in one line, which stands last on stderr.

    `memory_advice`: the flags that need less memory. Exit status 1, or 130 after Ctrl-C, as shells expect.
    """
    gc.set_threshold(COLLECT_EVERY)  # what is imported, half a million objects, stays: looking through it is vain
    try:
        main()
        sys.stdout.flush()  # here, where it can be told: a reader such as `head` may have gone
    except KeyboardInterrupt:
        end("interrupted", status=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its exit
        sys.exit(1)
    except Exception as error:
        line = told(error, memory_advice=memory_advice)
        if line is None:
            raise
        end(line, status=1)


def told(error: Exception, *, memory_advice: str) -> str | None:
    """The words for an error that a user can cause; None for any other, which is ours and needs a traceback."""
    if isinstance(error, DataError):
        return f"error: {error.for_command}"
    if isinstance(error, FloatingPointError):
        return f"error: {error}"
    # torch's on a GPU is an OutOfMemoryError, its allocator's on a CPU a RuntimeError without a type of its own
    torch = sys.modules.get("torch")
    out_of_memory = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    refused = isinstance(error, (OSError, RuntimeError, ImportError)) and any(
        words in str(error).lower()
        for words in ("allocate memory", "not enough memory", "out of memory", "failed to map segment")
    )
    if isinstance(error, out_of_memory) or refused:
        said = str(error).strip().partition("\n")[0]
        return f"error: there is not enough memory{f' ({said})' if said else ''}. {memory_advice}".rstrip()
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"error: {error.filename or 'a file'} cannot be read or written: {error.strerror}."
    return None


def end(line: str, *, status: int):
    """Exit with `line` as the last on stderr."""
    say_last(line)
    sys.exit(status)


def say_last(line: str):
    """Print `line`, and once more behind the traceback that a launcher which sees this process fail prints."""
    print(line, file=sys.stderr, flush=True)
    if LAUNCHER and not is_orphan() and hasattr(os, "pidfd_open"):
        ended = os.pidfd_open(LAUNCHER)  # can be read once it has
        words = f"import select, sys; select.select([{ended}], [], [], 60)[0] and print(sys.argv[1], file=sys.stderr)"
        subprocess.Popen([sys.executable, "-ISc", words, line], pass_fds=[ended], start_new_session=True)


def is_orphan() -> bool:
    """Whether a launcher has started this process and is gone, so that nobody will tell this process to stop."""
    return LAUNCHER is not None and os.getppid() != LAUNCHER


if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; ours say for themselves


def _shown(kind: type[BaseException], error: BaseException, traceback, /):
    """Uncaught errors: what a user can cause is one line also before `run_main` is reached, in importing modules."""
    line = "interrupted" if issubclass(kind, KeyboardInterrupt) else told(error, memory_advice="")
    if line is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        say_last(line)


sys.excepthook = _shown
