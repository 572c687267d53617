"""Every command that a message or a docstring advises names files that are here and flags that they take."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import train_scoft_lora


ROOT = Path(train_scoft_lora.__file__).parent
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("scoft/*.py"), *ROOT.glob("pocket/*.py")]
COMMAND = re.compile(r"(?:python|accelerate launch)(?: -m)? ([\w./]+)((?: [^`\n]*)?)")


def advised():
    """(file that says so, script or module, the rest of the command) of each command in the text of our programs."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            for program, rest in COMMAND.findall(text):
                if "/" in program or "." in program:  # a word about Python is no command
                    yield source.name, program, rest


ADVICE = sorted(set(advised()))


def test_there_is_advice():
    """The search finds what is there."""
    assert len(ADVICE) >= 12 and {"prepare_ccub.py", "pocket.train_models"} <= {program for _, program, _ in ADVICE}


@pytest.mark.parametrize(("source", "program", "rest"), ADVICE)
def test_advised_command_can_be_given(source, program, rest, capsys):
    """The program is here, and takes each flag of the command."""
    file = ROOT / (program if program.endswith(".py") else f"{program.replace('.', '/')}.py")
    assert file.is_file(), f"{source} advises {program}"
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    flags = set(re.findall(r"(--[a-z]\w*)", rest.partition("#")[0]))
    stage = rest.split()[:1] if program in ("correct_scoft.py", "evaluate_scoft.py", "survey_scoft.py") else []
    if not flags:
        return
    with pytest.raises(SystemExit, match="0"):
        getattr(module, "parse_args", getattr(module, "main", None))([*stage, "--help"])
    taken = set(re.findall(r"(--[a-z]\w*)", capsys.readouterr().out))
    assert flags <= taken, f"{source} advises {program}{rest}"
