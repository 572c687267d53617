"""What stands behind the command line: names to choose from, advice, and the tables of flags of --config and of an
embedded dataset.
"""

import argparse
from pathlib import Path

from scoft.launch import Parser

from scoft.dataset_source import Remedies, embedded_flags, embedded_folder


DATASET_FLAGS = ("--dataset", "--dataset_name", "--train_data_dir")
PROMPT_FLAGS = ("--validation_prompts", "--validation_prompt")

# What scoft.images, scoft_losses and the base models allow, which are not imported for a command line alone;
# tests/test_layers.py holds the names to theirs.
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
RECORDED_STEPS, RECORDED_STEP_SCALINGS = ("first", "last", "random"), ("paper", "normalized")
MAX_RANK = 1280  # a matrix has no rank above its smaller side, which is at most this in all Stable Diffusions trained

REMEDIES = Remedies(
    no_blip_captions="or train with --method finetune, which needs none",
    no_negatives="or train with --method mp, which needs none",
    bad_rows="--skip_bad_images leaves them out",
    other_dataset="train with --dataset {}",
)
MEMORY_ADVICE = (
    "On a GPU --gradient_checkpointing, --mixed_precision bf16 and a smaller --train_batch_size need less, and "
    "everywhere a smaller --resolution and --rank"
)


def with_tables(parser: Parser, argv: list[str]) -> list[str]:
    """The command line behind the words of the tables that it names: of a flag given twice the last holds."""
    for names in (DATASET_FLAGS, PROMPT_FLAGS):
        given = {word.partition("=")[0] for word in argv}.intersection(names)
        if len(given) > 1:
            parser.error(f"{' and '.join(sorted(given))} are names of one flag; give one")
    if config := peek(argv).config:
        source = f"--config {config}"
        flags, here = parser.table(Path(config), source=source), Path(config).resolve().parent
        argv = table_words(parser, flags, here=here, source=source, stronger=peek(argv)) + argv
    if embedded := embedded_folder(peek(argv).dataset or ""):
        asked_by = f"the defaults of --dataset {embedded.name}"
        flags, source = embedded_flags(parser, embedded, section="train", asked_by=asked_by)
        argv = table_words(parser, flags, here=embedded, source=source, stronger=peek(argv)) + argv
    return argv


def peek(argv: list[str]) -> argparse.Namespace:
    """The flags that decide which tables of flags are read and what in them holds; None for one that is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (["--config"], DATASET_FLAGS, ["--num_train_epochs"], ["--perceptual_distance"]):
        parser.add_argument(*names, nargs="?")  # that a value is missing is for the true parser to say
    return parser.parse_known_args(argv)[0]


def table_words(parser: Parser, flags: object, *, here: Path, source: str, stronger: argparse.Namespace) -> list[str]:
    """A table of flags as command-line words; errors begin with `source`.

    `stronger` is what a stronger source says: beside its epochs or another distance of its own, the table's number of
    updates or the model of its distance does not hold.
    """
    if isinstance(flags, dict):
        distance = stronger.perceptual_distance
        own_distance = distance not in (None, flags.get("perceptual_distance", distance))
        overruled = {"max_train_steps": stronger.num_train_epochs, "perceptual_model_name_or_path": own_distance}
        flags = {flag: value for flag, value in flags.items() if not overruled.get(flag)}
    return parser.words_of(flags, here=here, source=source, required=["--dataset", "any"])
