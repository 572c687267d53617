"""What all commands do alike at their start: flags with their tables of defaults, and errors told in one line."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scoft.errors import DataError
from scoft.files import read_regular


TOKEN_FLAGS = ("hub_token", "token")
TOKEN_ADVICE = (
    "--hub_token is no flag, since `ps` and logs show what stands in a command line or a file of flags. If this was a "
    "true token, revoke it; give the next one by `hf auth login`, by HF_TOKEN, or by HF_TOKEN_PATH, the name of a file"
)
CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")  # of an address
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
            told = action.default in (None, argparse.SUPPRESS) or "default" in (action.help or "")
            if action.option_strings and not told:
                action.help = "; ".join(filter(None, [action.help, "default: %(default)s"]))
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
