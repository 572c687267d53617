"""Users' judges, whatever they do."""

import pytest

from evaluation import run
from scoft.errors import DataError


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("raises.py:f", r"--judge .* for images/.*png, but ZeroDivisionError: division by zero"),
        ("nothing.py:f", r"--judge .* gave no dict of numbers for images/.*, but AttributeError"),
        (
            "word.py:f",
            r"--judge .* gave no dict of numbers for images/.*, but ValueError: could not convert .* 'good'",
        ),
        ("half.py:f", r"--judge .* said {'a': 0.5} of images/.*; it is to say 0 or 1 of each picture"),
        ("endless.py:f", r"said {'a_log_odds': inf} of images/.*under a name on _log_odds any finite number"),
        ("broken.py:f", "--judge .*broken.py cannot be imported: SyntaxError"),
        ("other.py:f", "other.py has no function f"),
    ],
)
def test_judges_that_judge_nothing_are_told_in_one_line(copy, words, tmp_path, judge, message):
    bodies = {"raises": "1 / 0", "nothing": "None", "word": "{'a': 'good'}", "half": "{'a': 0.5}"}
    bodies["endless"] = "{'a_log_odds': float('inf')}"
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(f"def f(images, prompts):\n    return {body}\n")
    for name, content in {"x.txt": "", "broken.py": "def f(", "other.py": ""}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        run("score", copy, [*words["score"], "--metrics", "judge", "--judge", str(tmp_path / judge)])
