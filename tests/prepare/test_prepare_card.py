"""The dataset's card tells what is true of it."""

import html
import json
import re

import huggingface_hub
import pytest

from preparing import MODELS, prepare
from scoft.errors import DataError
from scoft.files import Ledger, content_key
from scoft.prepare.photograph import read_photographs, write_photographs


pytestmark = pytest.mark.usefixtures("threads_given_back")


def test_the_card_tells_the_true_counts(made, flags):
    """README.md has a config for the culture, its counts, settings and fingerprint, and no path of this machine."""
    card = huggingface_hub.DatasetCard.load(made / "README.md")
    (config,) = card.data.configs
    assert config["config_name"] == "korea"
    assert {file["split"]: file["path"] for file in config["data_files"]} == {
        "train": "korea/train-*.parquet",
        "test": "korea/test-*.parquet",
    }
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", html.unescape(card.text), flags=re.M))
    counts = {"train rows": 6, "test rows": 2, "city": 4, "food & drink": 3, "no category": 1, "ok": 8}
    counts |= {"naive captions": 24, "negatives": 12, "too near the photograph, left out": 0}
    assert {name: table[name] for name in counts} == {name: str(count) for name, count in counts.items()}
    fingerprint = content_key(*(photograph.sha256 for photograph in read_photographs(made / "korea")))
    assert table["fingerprint of the photographs"] == fingerprint[:16]
    assert table["`num_inference_steps`"] == "2" and table["`prompt_suffix`"] == "in Korea"
    assert table["`captioner`"].startswith(flags["captioner"].name)
    assert "{{" not in card.text and not any(str(flags[name].parent) in card.text for name in MODELS)


def test_the_card_says_who_chose_and_under_what_licence(copy, flags, tmp_path):
    """--about opens the card, a licence that all photographs share is the dataset's; nothing is said of fetching."""
    (tmp_path / "about.md").write_text("Chosen by a choir of twelve.\n")
    photographs = read_photographs(copy / "korea")
    for photograph in photographs:
        photograph.license = "CC-BY-4.0"
    write_photographs(copy / "korea", photographs)
    prepare(flags, output=copy, stages="write", about=tmp_path / "about.md")
    card = huggingface_hub.DatasetCard.load(copy / "README.md")
    assert card.data.license == "cc-by-4.0" and "CC-BY-4.0 (8)" in card.text
    assert "### Korea\n\nChosen by a choir of twelve." in card.text
    assert "keep\nthis dataset private" not in card.text and "robots.txt" not in card.text


def test_the_card_tells_the_languages_of_the_captions(copy, flags):
    """--language is told for each culture: the card has the languages of all, in the forms that the Hub knows."""
    prepare(flags, output=copy, stages="write", language=("ko", "zh-Hant"))
    card = huggingface_hub.DatasetCard.load(copy / "README.md")
    assert card.data.language == ["ko", "zh"] and card.data.to_dict()["language_bcp47"] == ["ko", "zh-Hant"]
    assert card.data.multilinguality == "multilingual" and "captions are in ko, zh-Hant" in " ".join(card.text.split())
    prepare(flags, output=copy, stages="write")
    card = huggingface_hub.DatasetCard.load(copy / "README.md")
    assert card.data.language == ["en"] and "language_bcp47" not in card.data.to_dict()
    assert card.data.multilinguality == "monolingual" and "captions are in English" in " ".join(card.text.split())


def test_the_card_counts_the_culture_words(made):
    """The tiny captioner says "korean" at random: the card tells how often, and the captions keep the word."""
    said = [text for entry in Ledger(made / "korea" / "captions.jsonl").read().values() for text in entry["captions"]]
    count = sum("korean" in text.split() for text in said)
    assert count and f'"korean" in {count} of {len(said)}' in (made / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda summary: summary.update(name="../../peru"), "name is 1 to 64 letters"),
        (lambda summary: summary.update(rows=[1, 2]), "rows: Input should be"),
        (lambda summary: summary["rows"].pop("test"), "rows: test: Field required"),
        (lambda summary: summary.update(fetched=["2026-01-01"]), "fetched: "),
        (lambda summary: summary["statuses"].update(ok="many"), "statuses: ok: "),
    ],
)
def test_a_summary_that_somebody_changed_is_named(copy, flags, change, message):
    """What other cultures' folders say for the card is read by its type; a name leads to no other folder."""
    summary = json.loads((copy / "korea" / "summary.json").read_text())
    change(summary)
    (copy / "peru").mkdir()
    (copy / "peru" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match=f"peru/summary.json is not as it was written: .*{message}.*stage write"):
        prepare(flags, output=copy, stages="write")
