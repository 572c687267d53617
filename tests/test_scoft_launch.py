"""The parser that all commands share."""

import pytest

import evaluate_scoft
import prepare_ccub
import train_scoft_lora
from scoft.launch import Parser


DOORS = {"train": train_scoft_lora, "prepare": prepare_ccub, "evaluate": evaluate_scoft}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("words", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"], ["--token=hf_secret"]])
def test_a_token_is_refused_and_not_shown(door, words, capsys):
    """No command takes a token, and its refusal tells the ways that keep it secret, and not the token."""
    with pytest.raises(SystemExit):
        DOORS[door].parse_args(["generate"] * (door == "evaluate") + words)
    shown = capsys.readouterr()
    assert "HF_TOKEN" in shown.err and "revoke it" in shown.err and "hf_secret" not in shown.err + shown.out


@pytest.mark.parametrize(
    ("door", "words"),
    [
        ("prepare", ["--culture", "korea", "--links", "https://me:hf_secret@example.org/links.csv"]),
        ("train", ["--dataset=https://hf_secret@huggingface.co/datasets/me/ccub"]),
        ("evaluate", ["generate", "out", "--dataset", "d", "--lora", "s3://key:hf_secret@bucket/lora"]),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(door, words, capsys):
    """It would stand in `ps`, in logs and in training_args.json; what only looks like one is taken."""
    with pytest.raises(SystemExit):
        DOORS[door].parse_args(words)
    shown = capsys.readouterr()
    assert "an address holds a user name or password" in shown.err and "hf_secret" not in shown.err + shown.out
    address = "https://example.org/@me?mail=me@example.org"
    assert prepare_ccub.parse_args(["--culture", "korea", "--links", address]).links == address


def test_an_address_with_a_password_in_a_file_of_flags_is_refused(tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text("perceptual_model_name_or_path: https://me:hf_secret@example.org/clip\n")
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--config", str(tmp_path / "flags.yaml"), "--dataset", "pocket"])
    error = capsys.readouterr().err
    assert "flags.yaml: an address holds a user name" in error and "hf_secret" not in error


@pytest.mark.parametrize(
    ("door", "word", "hint"),
    [
        ("train", "--lr", "--learning_rate"),
        ("train", "--batch_size", "--train_batch_size"),
        ("train", "--perceptual_evry=3", "--perceptual_every"),
        ("prepare", "--minsize", "--min_size"),
        ("evaluate", "--num_image", "--num_images"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest(door, word, hint, capsys):
    argv = {"train": ["--dataset", "d"], "prepare": ["--culture", "korea"]}.get(door)
    argv = argv or ["generate", "eval", "--dataset", "d", "--culture", "c"]
    with pytest.raises(SystemExit):
        DOORS[door].parse_args([*argv, word])
    assert f"{word}: did you mean {hint}?" in capsys.readouterr().err


def test_help_shows_every_default():
    """Each flag with a default tells it once, also one without words of its own."""
    parser = Parser()
    parser.add_argument("--bare", default=3)
    parser.add_argument("--worded", default=4, help="a number")
    parser.add_argument("--told", default=5, help="default: five")
    parser.add_argument("--none", help="nothing")
    words = " ".join(parser.format_help().split())
    assert "default: 3" in words and "a number; default: 4" in words
    assert words.count("default: five") == 1 and "5" not in words.partition("--told")[2] and "None" not in words
    assert parser.format_help() == parser.format_help()
