"""What stands behind the command line: defaults, and the table of flags of an embedded world."""

import argparse

from scoft.launch import Parser

from scoft.dataset_source import embedded_flags, embedded_folder


MIDAS = "lllyasviel/Annotators"  # MiDaS's weights for controlnet_aux
# Nearer than this a negative is too much like its photograph to be one. The paper's value is not public; this one is
# ours, not tuned: DreamSim was trained on variations of one picture, which are to stay below it. See histogram.png.
FALSE_NEGATIVE_THRESHOLDS = {"dreamsim": 0.3}
FILTER_SETTINGS = ("filter_model", "false_negative_threshold")  # belong to one --filter_distance


def with_defaults(parser: Parser, argv: list[str]) -> list[str]:
    """The command line behind the flags of its --defaults, which it overrules.

    Beside a --filter_distance of its own, the model and the threshold of theirs do not hold.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--defaults", "--filter_distance"):
        peek.add_argument(flag, nargs="?")  # that a value is missing is for the true parser to say
    given, _ = peek.parse_known_args(argv)
    folder = embedded_folder(given.defaults or "")
    if folder is None:
        return argv
    flags, source = embedded_flags(parser, folder, section="prepare", asked_by=f"for --defaults {given.defaults}")
    if isinstance(flags, dict) and given.filter_distance not in (None, flags.get("filter_distance")):
        flags = {name: value for name, value in flags.items() if name not in FILTER_SETTINGS}
    return parser.words_of(flags, here=folder, source=source, required=["--culture", "any"]) + argv
