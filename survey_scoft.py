#!/usr/bin/env python
"""Ask people of a culture which pictures show it best, as the paper's section 5 does.

    python survey_scoft.py export survey --output responses
    python survey_scoft.py analyze responses

`export` writes what was answered as rows, `analyze` tables, figures and a page of these, or of a CSV that was gathered
elsewhere.
"""

import argparse
from pathlib import Path

from scoft.launch import Parser, run_main, set_up_logging

from scoft.errors import DataError


RESPONSE_COLUMNS = (  # those of the rows
    "participant", "culture", "page", "item", "position", "method", "rank", "seed", "language", "milliseconds", "flags"
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for add, _ in COMMANDS.values():
        add(commands)
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------------
# export
# ---------------------------------------------------------------------------------------------------------------------


def add_export(commands: argparse._SubParsersAction):
    export = commands.add_parser("export", help="the answers as rows: parquet and responses.csv")
    export.add_argument("folders", nargs="+", type=Path, help="surveys that build made, one a culture")
    export.add_argument("--output", type=Path, default=Path("responses"), help="folder of the rows, a dataset")


def run_export(args: argparse.Namespace):
    from scoft.survey.export import export

    export(args.folders, args.output)


# ---------------------------------------------------------------------------------------------------------------------
# analyze
# ---------------------------------------------------------------------------------------------------------------------


def add_analyze(commands: argparse._SubParsersAction):
    analyze = commands.add_parser("analyze", help="tables, figures and a page of the rows")
    analyze.add_argument(
        "responses", nargs="+", type=Path, help="folders that export wrote, or CSV files with a row for each rank"
    )
    analyze.add_argument("--output", type=Path, help="folder of the page; default: analysis beside the first of these")
    analyze.add_argument(
        "--columns",
        nargs="+",
        type=named_column,
        default=[],
        metavar="OURS=THEIRS",
        help=f"what a CSV calls a column: {', '.join(RESPONSE_COLUMNS)}; those it calls alike need no word",
    )


def named_column(text: str) -> tuple[str, str]:
    """argparse's type of --columns: one of RESPONSE_COLUMNS, and what a file calls it."""
    ours, _, theirs = text.partition("=")
    if ours not in RESPONSE_COLUMNS or not theirs:
        raise argparse.ArgumentTypeError(f"is OURS=THEIRS with OURS of {', '.join(RESPONSE_COLUMNS)}; got {text!r}")
    return ours, theirs


def run_analyze(args: argparse.Namespace):
    try:
        import choix  # noqa: F401
        import crowdkit  # noqa: F401
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; analyze needs more: pip install -r requirements-survey.txt") from error
    from scoft.survey.gathered import read_responses
    from scoft.survey.page import report
    from scoft.survey.problems import Problems

    problems = Problems()
    rows = read_responses(args.responses, {theirs: ours for ours, theirs in args.columns}, problems)
    problems.tell("responses")
    report(rows, problems, args.output or args.responses[0].resolve().parent / "analysis")


# ---------------------------------------------------------------------------------------------------------------------
# All commands
# ---------------------------------------------------------------------------------------------------------------------

COMMANDS = {"export": (add_export, run_export), "analyze": (add_analyze, run_analyze)}


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    _, run = COMMANDS[args.command]
    run(args)


if __name__ == "__main__":
    run_main(main, memory_advice="")
