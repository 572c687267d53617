"""README.md and the cards: what they name exists."""

import importlib
import operator
import re
from pathlib import Path

import pytest

import correct_scoft
import evaluate_scoft
import prepare_ccub
import scoft.distances
import scoft_losses
import survey_scoft
import train_scoft_lora
import train_scoft_lora_sdxl
from benchmarks import readme
from scoft.evaluate.metrics import METRICS
from scoft.train.flags import loss_weights


ROOT = Path(train_scoft_lora.__file__).parent
DOORS = ("prepare", "train", "evaluate", "survey", "correct")
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
POCKET = (ROOT / "pocket/README.md").read_text()
METRICS_TABLE = README.split("| metric | of | against | features |")[1].split("\n\n")[0]
METHOD_TABLE = README.split("## The method")[1].split("|---|---|---|---|---|")[1].split("\n\n")[0]


def test_every_flag_named_is_declared():
    """Each --flag in the READMEs belongs to one of the scripts, or to accelerate's launcher."""
    elsewhere = {"multi_gpu", "num_processes", "help", "check", "loras"}
    named = set(re.findall(r"--(?:no-)?([a-z][a-z_0-9]+)", README + POCKET)) - elsewhere
    doors = (train_scoft_lora, train_scoft_lora_sdxl)
    training = {flag for door in doors for flag in vars(door.parse_args(["--dataset", "x", "--culture", "y"]))}
    preparing = vars(prepare_ccub.parse_args(["--culture", "korea"])).keys()
    data = ["--dataset", "x", "--culture", "y"]
    stages = {"generate": ["out", *data], "score": ["out", *data], "report": ["out"]}
    evaluating = {flag for stage, rest in stages.items() for flag in vars(evaluate_scoft.parse_args([stage, *rest]))}
    commands = {"build": ["eval", "out"], "serve": ["out"], "collect": ["out", "file"], "demo": []}
    commands |= {"export": ["survey"], "analyze": ["responses"]}
    surveying = {flag for name, rest in commands.items() for flag in vars(survey_scoft.parse_args([name, *rest]))}
    stages = {"fit": data, "draw": ["folder", "--culture", "y"]}
    correcting = {flag for stage, rest in stages.items() for flag in vars(correct_scoft.parse_args([stage, *rest]))}
    assert named - training - preparing - evaluating - surveying - correcting == set()


@pytest.mark.parametrize(("flag", "value"), re.findall(r"`--([a-z_]+) ([\w.]+)`", METHOD_TABLE))
def test_defaults_in_the_method_table_are_the_defaults(flag, value):
    """A default that the method table prints is the parser's."""
    args = train_scoft_lora.parse_args(["--dataset", "x", "--culture", "y"])
    weights = {f"{term}_weight": weight for term, weight in loss_weights(args).items()}
    default = (vars(args) | weights)[flag]
    assert (str(default) == value) if isinstance(default, str) else default == float(value)


def untold_metrics() -> list[str]:
    """Rows of METRICS with a word in their name that the first column of the table of metrics lacks."""
    column = " ".join(line.split("|")[1].lower() for line in METRICS_TABLE.splitlines() if line)
    told = set(re.findall(r"[a-z]+", column))
    return [name for name in METRICS if not told >= set(name.split("_"))]


def test_every_metric_is_told(monkeypatch):
    """The table of metrics has each row of METRICS, and a row that is planted is missed."""
    assert untold_metrics() == []
    monkeypatch.setitem(METRICS, "brightness", METRICS["kid"])
    assert untold_metrics() == ["brightness"]


def test_every_function_and_file_named_exists():
    """The functions of the method table and the files of the map exist."""
    functions = {cells[4].strip(" `") for line in METHOD_TABLE.splitlines() if len(cells := line.split("|")) == 7}
    rooms = (scoft_losses, scoft.distances)
    assert len(functions) == 6 and all(any(hasattr(room, function) for room in rooms) for function in functions)
    files = re.findall(r"^\| `([^`]+)` \|", README.split("## Files")[1].split("## Use it well")[0], flags=re.M)
    assert len(files) >= 6 and all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("folder", [*(f"scoft/{wing}" for wing in DOORS), "scoft"])
def test_the_map_has_each_file_of_a_folder(folder):
    """The row of a folder names all of its files and no other: that of the ground its packages too."""
    row = re.search(rf"^\| `{folder}/` \|(.*)$", README, flags=re.M)[1]
    there = {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__"}
    there |= {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")} - {
        f"{wing}/" for wing in DOORS
    }
    assert set(re.findall(r"`([a-z_]+/?)`", row)) == there


def test_every_place_in_contributing_is_there():
    """`file.py: name` and `file.py: Class.method` are code, and what else stands in backticks with a dot is a file."""
    places = re.findall(r"`([\w/]+\.py): ([\w.]+)`", CONTRIBUTING)
    assert len(places) > 20
    for file, name in places:
        module = importlib.import_module(file.removesuffix(".py").replace("/__init__", "").replace("/", "."))
        assert operator.attrgetter(name)(module), (file, name)
    files = re.findall(r"`([\w/]+(?:\.\w+|/))`", CONTRIBUTING)
    assert [
        file for file in files if not (ROOT / file).exists() and file not in ("results.json", "metrics.jsonl")
    ] == []


@pytest.mark.parametrize("text", [README, POCKET], ids=["README.md", "pocket/README.md"])
def test_every_picture_and_result_named_exists(text):
    """Pictures count from the README they stand in, results from the root."""
    here = ROOT / "pocket" if text is POCKET else ROOT
    files = [here / name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)]
    files += [ROOT / name for name in re.findall(r"benchmarks/results/[\w.-]+\.json", text)]
    assert len(files) >= 3 and [str(file) for file in files if not file.is_file()] == []


@pytest.mark.parametrize("text", [README, POCKET], ids=["README.md", "pocket/README.md"])
def test_nothing_is_left_to_be_filled_in(text):
    """No capitals stand for words or numbers that come later, nor alone in a line."""
    assert re.findall(r"\b(?:COST|NUMBERS?|TBD|TODO|WORDS|XXX)\b|^[A-Z][A-Z_ ]+$", text, flags=re.MULTILINE) == []


def test_ci_runs_the_readmes_test_command():
    """The command in .ci/run is the README's, word for word."""
    command = re.search(r"^pip install -r requirements-dev.txt.*$", README, flags=re.M)[0]
    assert command in (ROOT / ".ci/run").read_text().splitlines()


@pytest.mark.parametrize("file", readme.FILES, ids=lambda file: file.parent.name)
def test_what_is_measured_is_what_the_results_say(file, monkeypatch):
    """The parts that `benchmarks.readme` writes are as it would write them now, and other results change them."""
    text = file.read_text()
    assert readme.remade(text) == text
    judged = dict.fromkeys(readme.RATES, 0.125)
    other = [{"seed": 7, "judge": {"base": judged, "lora": judged}}]
    monkeypatch.setattr(readme, "runs", lambda culture, method: other)
    assert readme.remade(text) != text
