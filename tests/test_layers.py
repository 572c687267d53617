"""The rule of imports: a command, its own wing, the common ground, scoft_losses; nothing looks back up or sideways.

And that of words: only commands have flags, so the ground speaks of none, and a wing of its own commands' alone; each
flag has a help text. And that of sizes: files and functions stay so short that one finds one's way. And that of doors
that open at once: what is heavy is imported when the arguments are in order.
"""

import ast
import dataclasses
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scoft.launch import Parser

import pytest

import correct_scoft
import survey_scoft
import train_scoft_lora
from scoft.corrector.preference import ATTENTION, KINDS
from scoft.distances import DISTANCES, distance_options
from scoft.distances.base import PerceptualDistance
from scoft.evaluate import measures
from scoft.evaluate.encoders import ENCODERS
from scoft.evaluate.metrics import METRICS
from scoft.images import INTERPOLATIONS
from scoft.intervals import QUESTIONS
from scoft.train.terms import DEFAULT_WEIGHTS
from scoft_losses import RECORDED_STEP_SCALINGS, RECORDED_STEPS


ROOT = Path(train_scoft_lora.__file__).parent
DOORS = {  # and the wing behind each
    "train_scoft_lora": "train",
    "train_scoft_lora_sdxl": "train",
    "prepare_ccub": "prepare",
    "evaluate_scoft": "evaluate",
    "survey_scoft": "survey",
    "correct_scoft": "correct",
}
# What of a wing has the arguments of its doors, which share them.
SHARED = {"train": ("flags", "build", "run")}
LAYERED = [ROOT / "scoft_losses.py", *sorted((ROOT / "scoft").rglob("*.py"))]
COMMANDS = [ROOT / f"{door}.py" for door in DOORS]
STAGES = ("evaluate_scoft generate", "evaluate_scoft score", "evaluate_scoft report")
STAGES += tuple(f"survey_scoft {command}" for command in survey_scoft.COMMANDS)
STAGES += ("correct_scoft fit", "correct_scoft draw")
WINGS = set(DOORS.values())  # other folders of scoft/ are ground
OURS = {path.stem for path in ROOT.glob("*.py")} | {"scoft", "pocket", "benchmarks"}


def imported(source: str) -> Iterator[str]:
    """The dotted name of all that a module of ours imports, also inside functions and for type checkers alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def violations(file: Path, source: str) -> list[str]:
    """What a module imports and may not: a command and its wing take that wing, the ground and scoft_losses, the
    ground itself and scoft_losses; that takes nothing.
    """
    parts = file.relative_to(ROOT).parts
    own = parts[1] if len(parts) > 2 else DOORS.get(file.stem)
    found = []
    for name in imported(source):
        first, second = (name.split(".") + [""])[:2]
        allowed = first not in OURS | {""}
        if file in COMMANDS or parts[0] == "scoft":
            allowed |= first == "scoft_losses" or (first == "scoft" and second not in WINGS - {own})
        if not allowed:
            found.append(name)
    return found


@pytest.mark.parametrize("file", [*COMMANDS, *LAYERED], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_lies_below_it(file):
    assert violations(file, file.read_text()) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("scoft/files.py", "import train_scoft_lora", True),
        ("scoft/files.py", "def f():\n    from prepare_ccub import push", True),
        ("scoft/files.py", "from scoft.train import checkpoints", True),
        ("scoft/files.py", "from . import train", True),
        ("scoft/train/checkpoints.py", "from scoft import evaluate", True),
        ("scoft/train/checkpoints.py", "import pocket.world", True),
        ("scoft_losses.py", "from scoft.errors import DataError", True),
        ("scoft/train/checkpoints.py", "from scoft.train import records\nfrom scoft import sheets", False),
        ("scoft/base_model/pipelines.py", "import torch\nfrom scoft_losses import ldm_loss", False),
        ("prepare_ccub.py", "from scoft.train.terms import TERMS", True),
        ("evaluate_scoft.py", "from train_scoft_lora import parse_args", True),
        ("train_scoft_lora.py", "from pocket import world", True),
        ("train_scoft_lora.py", "from scoft import sheets\nfrom scoft.train import records", False),
    ],
)
def test_a_violation_is_seen(file, line, wrong):
    assert bool(violations(ROOT / file, line)) == wrong


def flags_named(source: str) -> set[str]:
    """The flags in a module's strings; docstrings, which no user sees, may name any."""
    tree = ast.parse(source)
    described = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, described) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
    return {flag for text in texts for flag in re.findall(r"(?<![\w-])--[a-z]\w*", text)}


def parser_of(door: str) -> Parser:
    """A command's parser, with all its flags."""

    class Found(Exception):
        pass

    def stop(parser, *_):
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Found) as found:
        patch.setattr(Parser, "parse_args", stop)
        importlib.import_module(door).parse_args([])
    return found.value.args[0]


def flags_of(door: str) -> set[str]:
    """All flags of a command, those of its subcommands included."""
    return {flag for action in parser_of(door).all_actions() for flag in action.option_strings}


def foreign_flags(file: Path, source: str) -> set[str]:
    """The flags that a module of scoft names and may not: on the ground all, in a wing those of other commands."""
    _, *wing, name = file.relative_to(ROOT).parts
    if name == "launch.py":  # the room of command lines
        return set()
    allowed = [flags_of(door) for door, behind in DOORS.items() if wing and behind == wing[0]]
    return flags_named(source).difference(*allowed)


@pytest.mark.parametrize("file", LAYERED[1:], ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_names_only_flags_that_its_user_has(file):
    """The ground serves all commands and Python: its messages name parameters, of which `launch` makes flags."""
    assert foreign_flags(file, file.read_text()) == set()


@pytest.mark.parametrize(
    ("file", "line", "foreign"),
    [
        ("scoft/files.py", "raise DataError('--dataset is blank')", {"--dataset"}),
        ("scoft/files.py", "def f(x):\n    'Of --dataset.'\n    return f'--dataset {x}', '<!-- x -->'", {"--dataset"}),
        ("scoft/files.py", "'Of --dataset.'\nclass A:\n    'Of --culture.'", set()),
        ("scoft/distances/base.py", "f('--filter_model')", {"--filter_model"}),
        ("scoft/launch.py", "f('--culture')", set()),
        ("scoft/train/checkpoints.py", "f('give --rank, not --filter_model or --method')", {"--filter_model"}),
        ("scoft/prepare/fetch.py", "f('--filter_model', '--rank')", {"--rank"}),
        ("scoft/evaluate/score.py", "f('--encoder', '--lora', '--captioner')", {"--captioner"}),
    ],
)
def test_a_foreign_flag_is_seen(file, line, foreign):
    assert foreign_flags(ROOT / file, line) == foreign


def without_help(parser: Parser) -> list[str]:
    """The flags and arguments that --help says nothing of, also in subcommands."""
    return [action.dest for action in parser.all_actions() if not (action.help or "").strip()]


@pytest.mark.parametrize("door", DOORS)
def test_each_flag_has_a_help_text(door):
    assert without_help(parser_of(door)) == []


def test_a_flag_without_help_is_seen():
    """In a parser's own flags, in a group, among the arguments, and in a subcommand."""
    parser = Parser()
    parser.add_argument("--told", help="what it does")
    parser.add_argument("--bare")
    parser.add_argument_group("more").add_argument("--blank", help=" ")
    stage = parser.add_subparsers().add_parser("stage")
    stage.add_argument("place")
    stage.add_argument("--depth", type=int, help="of the tree")
    assert without_help(parser) == ["bare", "blank", "place"]


def unread(door: str, declared: set[str], source: str) -> set[str]:
    """The flags that a command declares and neither reads as `args.<flag>` nor hands on.

    Handed on are the fields of what `built` makes of the flags, the options of distances, and weights by their terms.
    What is read before there are `args` are the flags that name a table of flags.
    """
    nodes = list(ast.walk(ast.parse(source)))
    read = {each.attr for each in nodes if isinstance(each, ast.Attribute) and getattr(each.value, "id", "") == "args"}
    calls = [each for each in nodes if isinstance(each, ast.Call) and getattr(each.func, "id", "") == "built"]
    places = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in imported(source)}
    for stage in (call.args[0].id for call in calls):
        fields = dataclasses.fields(getattr(importlib.import_module(places[stage]), stage))
        read |= {field.name for field in fields}
    if re.search(r"getattr\(args, \w+\) for \w+ in distance_options\(\)", source):
        read |= distance_options().keys()
    if re.search(r'getattr\(args, f"{\w+}_weight"\)', source):
        read |= {f"{term}_weight" for term in DEFAULT_WEIGHTS}
    return declared - read - {"config", "defaults", "help"}


@pytest.mark.parametrize("door", DOORS)
def test_every_declared_flag_is_read(door):
    declared = {action.dest for action in parser_of(door).all_actions()}
    shared = [ROOT / "scoft" / DOORS[door] / f"{name}.py" for name in SHARED.get(DOORS[door], ())]
    source = "\n".join(file.read_text() for file in (ROOT / f"{door}.py", *shared))
    assert unread(door, declared, source) == set()
    assert unread(door, declared | {"idle"}, source) == {"idle"}


HEAVY = {"torch", "numpy", "scipy", "PIL", "matplotlib", "pandas", "pyarrow", "datasets", "accelerate", "diffusers"}
HEAVY |= {"huggingface_hub", "peft", "pydantic", "safetensors", "timm", "transformers"}
MISTYPED = {  # by door a command line, where there can be with a table of flags, ending in a typo; what was meant
    "train_scoft_lora": ("--dataset pocket --culture veridia --cash_dir", "--cache_dir"),
    "train_scoft_lora_sdxl": ("--dataset d --culture c --pretrained_vae", "--pretrained_vae_model_name_or_path"),
    "prepare_ccub": ("--defaults pocket --culture veridia --cash_dir", "--cache_dir"),
    "evaluate_scoft": ("score folder --dataset pocket --culture veridia --cash_dir", "--cache_dir"),
    "survey_scoft": ("build eval survey --num_page", "--num_pages"),
    "correct_scoft": ("fit --dataset pocket --culture veridia --cash_dir", "--cache_dir"),
}


def told(*words: str) -> tuple[int, str, set[str]]:
    """The exit status of Python with these words, what it says, and which packages of HEAVY it has imported."""
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    names = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "\n".join([done.stdout, *(line for line in lines if not line.startswith("import time:"))])
    assert "scoft.launch" in names or "scoft_losses" in names  # they are seen at all
    return done.returncode, said, HEAVY & names


@pytest.mark.parametrize("words", [*DOORS, *STAGES])
def test_help_is_told_without_what_is_heavy(words):
    door, *stage = words.split()
    status, said, heavy = told(f"{door}.py", *stage, "--help")
    assert status == 0 and "show this help message" in said
    assert heavy == set()


@pytest.mark.parametrize("door", DOORS)
def test_a_mistyped_flag_is_named_without_what_is_heavy(door):
    words, meant = MISTYPED[door]
    status, said, heavy = told(f"{door}.py", *words.split(), "x")
    assert status == 2 and f"{words.split()[-1]}: did you mean {meant}?" in said
    assert heavy == set()


def test_what_is_heavy_is_seen():
    assert told("-c", "import scoft_losses")[2] >= {"torch"}


def test_choices_are_those_of_the_rooms_that_serve_them():
    """Where these are too heavy to be asked for their names, the names are written twice."""
    choices = {
        action.dest: [*action.choices] for door in DOORS for action in parser_of(door).all_actions() if action.choices
    }
    assert choices["image_interpolation_mode"] == [*INTERPOLATIONS]
    assert choices["recorded_step"] == [*RECORDED_STEPS]
    assert choices["recorded_step_scaling"] == [*RECORDED_STEP_SCALINGS]
    assert choices["features"] == choices["diversity_features"] == [*ENCODERS]
    assert choices["question"] == [*QUESTIONS]
    assert choices["kind"] == [*KINDS] and correct_scoft.ATTENTION.split(",") == [*ATTENTION]
    assert choices["metrics"] == [*METRICS] and {row.compute for row in METRICS.values()} <= vars(measures).keys()
    assert choices["perceptual_distance"] == choices["filter_distance"] == [*DISTANCES]
    assert all(issubclass(row.distance(), PerceptualDistance) for row in DISTANCES.values())


PRODUCT = sorted(
    [
        *ROOT.glob("*.py"),
        *(file for part in ("scoft", "pocket", "benchmarks") for file in ROOT.glob(f"{part}/**/*.py")),
    ]
)
MOST_LINES, MOST_IN_MEDIAN, MOST_IN_FUNCTION = 700, 260, 60
LONG_FILES = {"pocket/world.py"}  # one world, whose parts are of use together alone
LONG_FUNCTIONS = {"main", "train", "parse_args"}  # a command's story in order, and its list of flags


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines())


def long_functions(source: str) -> list[str]:
    """Name and lines of each function over the bound, decorators apart, docstring included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    lines = [(each.name, each.end_lineno - each.lineno + 1) for each in functions if each.name not in LONG_FUNCTIONS]
    return [f"{name}: {count}" for name, count in lines if count > MOST_IN_FUNCTION]


@pytest.mark.parametrize("file", PRODUCT, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file):
    assert lines_of(file) <= MOST_LINES or str(file.relative_to(ROOT)) in LONG_FILES
    assert long_functions(file.read_text()) == []


def test_half_of_the_files_are_shorter_still():
    """Nearly empty __init__.py do not count, else one more folder would do for a shorter file."""
    sizes = [lines_of(file) for file in PRODUCT]
    assert statistics.median(size for size in sizes if size > 10) <= MOST_IN_MEDIAN


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n" + "    x = 1\n" * 60, ["f: 61"]),
        ("def f():\n" + "    x = 1\n" * 59, []),
        ("class A:\n    async def f(self):\n" + "        x = 1\n" * 60, ["f: 61"]),
        ("def main():\n    def g():\n" + "        x = 1\n" * 60, ["g: 61"]),
        ("def main():\n" + "    x = 1\n" * 60, []),
    ],
)
def test_a_long_function_is_seen(source, found):
    assert long_functions(source) == found
