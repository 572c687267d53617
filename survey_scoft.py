#!/usr/bin/env python
"""Ask people of a culture which pictures show it best, as the paper's section 5 does.

    python survey_scoft.py demo
    python survey_scoft.py build eval survey
    python survey_scoft.py serve survey
    python survey_scoft.py export survey --output responses
    python survey_scoft.py analyze responses

`build` makes pages of the pictures that `evaluate_scoft.py generate` wrote, `serve` shows them and keeps the answers,
`collect` those that participants saved as files, and `demo` does both with pictures that come with this.  `export`
writes what was answered as rows, `analyze` tables, figures and a page of these, or of a CSV gathered elsewhere.
Which method drew a picture stands in `survey/key.json` alone, and no participant can fetch that.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from scoft.launch import Parser, at_least, between, from_zero, load_function, positive, run_main, set_up_logging

from scoft.errors import DataError
from scoft.pictures import SETS


HERE = Path(__file__).resolve().parent
RESPONSE_COLUMNS = (  # those of the rows
    "participant", "culture", "page", "item", "position", "method", "rank", "seed", "language", "milliseconds", "flags"
)  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for add, _ in COMMANDS.values():
        add(commands)
    return parser.parse_args(argv)


@contextlib.contextmanager
def needing_survey_requirements() -> Iterator[None]:
    """Say how to get what an import lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(f"{error}; this needs more: pip install -r requirements-survey.txt") from error


# ---------------------------------------------------------------------------------------------------------------------
# build
# ---------------------------------------------------------------------------------------------------------------------


def add_build(commands: argparse._SubParsersAction):
    build = commands.add_parser("build", help="pages of generated pictures")
    build.add_argument("pictures", type=Path, help="folder of evaluate_scoft.py generate, with several methods")
    build.add_argument(
        "folder", type=Path, help="where the survey is made; what lies in its site/ is all that is shown"
    )
    build.add_argument("--sets", nargs="+", default=["prompts"], choices=SETS, help="of which prompts")
    build.add_argument("--methods", nargs="+", help="whose pictures; default: all but checkpoints")
    build.add_argument("--num_pages", type=at_least(1), default=10, help="one a prompt, as long as there are others")
    build.add_argument("--seed", type=int, default=0, help="of which prompts are taken")
    build.add_argument(
        "--languages",
        nargs="+",
        default=["en"],
        help="of the pages, the first unless a browser asks for another: en, es, ko, ar or FILE.json",
    )
    build.add_argument("--consent", type=Path, help="text file in place of what the consent page says")
    build.add_argument(
        "--answers_url", help="where answers are posted; default: the server that the pages come from, as serve is one"
    )
    build.add_argument(
        "--panel_parameter",
        default="PROLIFIC_PID",
        help="of the page's address, by which a panel names its participant",
    )
    build.add_argument("--completion_code", help="that a panel expects; default: one of each participant's own")


def run_build(args: argparse.Namespace):
    from scoft.survey.build import Plan, build

    plan = Plan(
        sets=args.sets,
        methods=args.methods,
        num_pages=args.num_pages,
        seed=args.seed,
        languages=args.languages,
        consent=args.consent,
        answers_url=args.answers_url,
        panel_parameter=args.panel_parameter,
        completion_code=args.completion_code,
    )
    build(args.pictures, args.folder, plan)


# ---------------------------------------------------------------------------------------------------------------------
# serve
# ---------------------------------------------------------------------------------------------------------------------


def add_serve(commands: argparse._SubParsersAction):
    serve = commands.add_parser("serve", help="show the pages and keep the answers")
    serve.add_argument("folder", type=Path, help="what build made, on a disk of this machine")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen at; 0.0.0.0 is all of the machine's")
    serve.add_argument("--port", type=between(0, 65535), default=8000, help="0 is any free one")
    serve.add_argument(
        "--rate",
        type=positive,
        default=50.0,
        help="posts a second from one address; behind a proxy all have the proxy's",
    )
    serve.add_argument(
        "--mirror",
        help="private dataset on the Hub: answers are copied there, and read back at the start, if machines forget",
    )


def run_serve(args: argparse.Namespace):
    with needing_survey_requirements():
        from scoft.survey.serve import serve
    serve(args.folder, host=args.host, port=args.port, rate=args.rate, mirror=args.mirror)


# ---------------------------------------------------------------------------------------------------------------------
# collect
# ---------------------------------------------------------------------------------------------------------------------


def add_collect(commands: argparse._SubParsersAction):
    collect = commands.add_parser("collect", help="keep answers that participants saved as files")
    collect.add_argument("folder", type=Path, help="what build made")
    collect.add_argument("files", nargs="+", type=Path, help="answers-CODE.jsonl, as the last page saves it")


def run_collect(args: argparse.Namespace):
    from scoft.survey.collect import collect

    collect(args.folder, args.files)


# ---------------------------------------------------------------------------------------------------------------------
# demo
# ---------------------------------------------------------------------------------------------------------------------


def add_demo(commands: argparse._SubParsersAction):
    demo = commands.add_parser("demo", help="a survey of the pocket world's pictures, in your browser")
    demo.add_argument("folder", nargs="?", type=Path, default=Path("survey-demo"), help="where it is made, once")
    demo.add_argument("--port", type=between(0, 65535), default=8000, help="of this machine; 0 is any free one")
    words = "answered by so many simulated ones, who know the truth by the pocket world's judge, and analyzed at once"
    demo.add_argument("--participants", type=at_least(1), help=words)
    words = "of the simulated ones, beside the 2 that lie between a right picture and a stereotype"
    demo.add_argument("--noise", type=from_zero(float), default=1.0, help=words)


def run_demo(args: argparse.Namespace):
    pictures = HERE / "pocket/pictures"
    if not args.folder.exists():
        main(["build", str(pictures), str(args.folder), "--languages", "en", "es", "ko", "ar"])
    if args.participants:
        from scoft.survey.simulate import answer_simulated

        judge = load_function(f"{HERE / 'pocket/judge.py'}:rate", flag="demo")
        answer_simulated(args.folder, pictures, judge=judge, participants=args.participants, noise=args.noise)
        main(["export", str(args.folder), "--output", str(args.folder / "responses")])
        main(["analyze", str(args.folder / "responses")])
        return
    import webbrowser

    with needing_survey_requirements():
        from scoft.survey.serve import serve
    serve(args.folder, host="127.0.0.1", port=args.port, rate=50.0, started=webbrowser.open)


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
    with needing_survey_requirements():
        import choix  # noqa: F401
        import crowdkit  # noqa: F401
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

COMMANDS = {
    "build": (add_build, run_build),
    "serve": (add_serve, run_serve),
    "collect": (add_collect, run_collect),
    "export": (add_export, run_export),
    "analyze": (add_analyze, run_analyze),
    "demo": (add_demo, run_demo),
}


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    _, run = COMMANDS[args.command]
    run(args)


if __name__ == "__main__":
    run_main(main, memory_advice="")
