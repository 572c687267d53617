"""Files of prompts, and captions that pictures are made from."""

import pytest

import evaluate_scoft
import tiny
from evaluation import ROOT, run
from scoft import cultures
from scoft.cultures import culture_words
from scoft.errors import DataError
from scoft.evaluate.prompts import read_prompts


@pytest.mark.parametrize("flag", ["prompts", "general_prompts"])
def test_prompts_that_cannot_be_read_are_named_by_their_own_flag(words, tmp_path, flag):
    """Absent, and the same prompt twice; the mark with which some editors begin a file is no part of a prompt."""
    file = tmp_path / "prompts.txt"
    for content, message in ((None, "cannot be read"), ("a house\na house\n", "got 2 prompts, 1 different ones")):
        if content:
            file.write_text(content)
        with pytest.raises(DataError, match=rf"^--{flag} .*prompts.txt:? {message}"):
            run("generate", tmp_path / "out", [*words["generate"], f"--{flag}", str(file)])
    file.write_text("a house\n", encoding="utf-8-sig")
    assert read_prompts(file, "korea", flag=f"--{flag}") == ["a house"]


def test_a_culture_without_test_photographs_is_told_how_to_go_on(words, tmp_path):
    """By default the captions of the test split are asked for too; the message names the sets that are left."""
    own = tiny.build_dataset(tmp_path / "own", rows=7, test_rows=0)
    flags = [str(own) if word == words["generate"][1] else word for word in words["generate"]]
    with pytest.raises(DataError, match="(?s)split 'test'.* --sets prompts train general leaves it out"):
        run("generate", tmp_path / "out", flags)


def test_prompt_files_are_the_papers_phrasing_for_any_culture():
    """Ten prompts for any culture by default; the general ones name no culture, and have the paper's that survive."""
    args = evaluate_scoft.parse_args(["generate", "out", "--dataset", "ccub", "--culture", "new_zealand"])
    prompts = read_prompts(args.prompts, args.culture, flag="--prompts")
    assert len(prompts) == 10 and all(prompt.endswith(", in New Zealand") for prompt in prompts)
    names = ["Veridia", *map(culture_words, cultures.CULTURES)]
    for file in (args.general_prompts, ROOT / "pocket/general_prompts.txt"):
        general = read_prompts(file, "veridia", flag="--general_prompts")
        assert len(general) >= 10 and not any(name in prompt for prompt in general for name in names)
    shown = {"a photo of a person", "photo of a bedroom", "students are studying in the classroom"}
    assert shown < set(read_prompts(args.general_prompts, "korea", flag="--general_prompts"))
    pocket = read_prompts(ROOT / "pocket/prompts.txt", "veridia", flag="--prompts")
    assert all("Veridia" in prompt for prompt in pocket)
