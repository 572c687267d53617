"""The stage write: the dataset keeps the contract, holds no picture where none may be, and is pushed as asked."""

import dataclasses
import hashlib
import re
import shutil

import datasets
import pytest
from PIL import Image

from preparing import prepare, rows_of, written
from scoft.cultures import CATEGORIES
from scoft.errors import DataError
from scoft.files import LOCK
from scoft.prepare import write
from scoft.prepare.filter import Negative
from scoft.prepare.negatives import (
    size_of_negative,
)
from scoft.prepare.photograph import Photograph, read_photographs
from scoft.prepare.write import Row, contact_sheet, features


pytestmark = pytest.mark.usefixtures("threads_given_back")


def test_the_dataset_keeps_the_contract(made):
    """Two splits with the declared features; K captions a row, negatives of the photograph's aspect in train alone."""
    train, test = rows_of(made / "korea", "train"), rows_of(made / "korea", "test")
    assert train.features == test.features == features(links_only=False)
    assert train.features["category"].names == list(CATEGORIES)
    assert (len(train), len(test)) == (6, 2)
    photographs = {photograph.sha256: photograph for photograph in read_photographs(made / "korea")}
    for row in [*train, *test]:
        photograph = photographs[row["sha256"]]
        assert row["text"] == photograph.caption == f"the picture {photograph.picture}"
        assert row["category"] == (CATEGORIES.index(photograph.category) if photograph.category else None)
        assert len(set(row["blip_text"])) == 3
        assert row["image"].size == (photograph.width, photograph.height)
        assert row["source_url"] is None and row["license"] is None
    for row in train:
        size = size_of_negative(*row["image"].size, short_side=16)
        assert [negative.size for negative in row["negatives"]] == [size] * 2
    assert not any(row["negatives"] for row in test)
    raw = test.cast_column("image", datasets.Image(decode=False))
    assert [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in raw] == list(test["sha256"])


def test_the_contact_sheet_says_all_of_a_photograph(tmp_path, monkeypatch):
    """Its file and captions, each negative's distance and prompt, false ones struck through; and what is missing."""
    for name in ("photograph", "near", "far"):
        Image.new("RGB", (128, 128), "blue").save(tmp_path / f"{name}.png")
    train = Row(
        photograph=Photograph(id="a", picture="market.jpg", caption="궁 " * 200, file="photograph.png", split="train"),
        captions=["a house"],
        negatives=[
            Negative(file=tmp_path / "near.png", prompt="a house in Korea", distance=0.1, is_kept=False),
            Negative(file=tmp_path / "far.png", prompt="a roof in Korea", distance=0.3, is_kept=True),
        ],
    )
    test = dataclasses.replace(
        train,
        photograph=dataclasses.replace(train.photograph, split="test", picture="", category="city"),
        captions=[],
        negatives=[],
    )
    drawn = []
    monkeypatch.setattr("scoft.sheets.grid", lambda rows, **look: drawn.extend(rows))
    contact_sheet([train, test], tmp_path, title="Korea")
    first, second = drawn
    assert first.above == f"market.jpg, no category, train\n{'궁 ' * 200}"
    assert second.above.startswith("photograph.png, city, test\n")
    said = [(cell.words, cell.picture is None, cell.struck) for cell in first.cells]
    assert said == [
        ("a house", False, False),
        ("no depth", True, False),
        ("0.100, too near\na house in Korea", False, True),
        ("0.300\na roof in Korea", False, False),
    ]
    words = [(cell.words, cell.picture is None) for cell in second.cells]
    assert words == [("not captioned", False), ("no depth", True), ("no negative, a test row", True)]


def test_links_only_holds_no_picture(copy, flags):
    """--links_only writes texts and hashes into a folder of its own, and leaves the dataset as it is."""
    before = written(copy)
    prepare(flags, output=copy, stages="write", links_only=True)
    assert written(copy) == before
    links = copy.with_name("ccub-links")
    files = [file for file in links.rglob("*") if file.is_file() and file.name != LOCK]
    assert {file.suffix for file in files} == {".parquet", ".json", ".md"}
    rows = rows_of(links / "korea")
    told = {"text", "blip_text", "category", "source_url", "sha256", "license", "collector", "period"}
    assert set(rows.column_names) == told
    content = b"".join(file.read_bytes() for file in links.rglob("*.parquet"))
    assert not re.search(rb"\xff\xd8\xff|\x89PNG", content)
    card = (links / "README.md").read_text()
    assert "There are no pictures in here" in card and "`image`" not in card


def test_links_are_not_written_where_photographs_are(copy, flags, alice, monkeypatch):
    """--links_only refuses a folder that holds a dataset with pictures, of whatever culture, or the work on
    one, before it goes to work; and once more before the push, for what came meanwhile.
    """
    links, common = copy.with_name("ccub-links"), {"output": copy, "stages": "write", "links_only": True}
    for place in ("test-00000-of-00001.parquet", "photographs"):
        (links / "peru").mkdir(parents=True)
        (copy / "korea" / place).rename(links / "peru" / place)
        with monkeypatch.context() as patch, pytest.raises(DataError, match=f"--links_only: {links}/peru/{place} "):
            patch.setattr("scoft.prepare.fetch.Fetch.run", lambda *_, **__: pytest.fail("it went to work"))
            prepare(flags, **common)
        (links / "peru" / place).rename(copy / "korea" / place)
        shutil.rmtree(links)

    def sneak_in(*args, **kwargs):
        write_card(*args, **kwargs)
        shutil.copy(copy / "korea" / "test-00000-of-00001.parquet", links / "korea" / "more.parquet")

    write_card = write.write_card
    monkeypatch.setattr(write, "write_card", sneak_in)
    with pytest.raises(DataError, match="--links_only: .*more.parquet"):
        prepare(flags, **common, push_to_hub=True, public=True)
    assert not alice.asked("/commit/")


def test_cultures_share_an_output_and_have_a_config_each(copy, flags, pictures, tmp_path):
    """A second culture is added to the card, and each loads by its name with `datasets.load_dataset`."""
    prepare(flags, output=copy, culture="new-zealand", stages="fetch,clean,write")
    for culture, captions in (("korea", 3), ("new-zealand", 0)):
        rows = datasets.load_dataset(str(copy), culture, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 6 and {len(texts) for texts in rows["blip_text"]} == {captions}
    assert datasets.get_dataset_config_names(str(copy)) == ["korea", "new-zealand"]
    assert "| train rows | 6 | 6 |" in (copy / "README.md").read_text()


ROWS = ["korea/test-00000-of-00001.parquet", "korea/train-00000-of-00001.parquet"]


def test_a_push_is_private_and_holds_the_dataset_alone(copy, flags, alice):
    """--push_to_hub creates a private dataset of card and parquet files, no ledgers and no photographs, and what is
    pushed is what `datasets` then loads; a shard of an earlier push goes."""
    alice.add("dataset", "alice/ccub", {"korea/train-00001-of-00002.parquet": b"old"}, private=True)
    prepare(flags, output=copy, stages="write", push_to_hub=True)
    repo = alice.repos["dataset", "alice/ccub"]
    assert set(repo.files) == {".gitattributes", "README.md", *ROWS} and repo.private
    pushed = datasets.load_dataset("alice/ccub", "korea", split="train")
    assert pushed["sha256"] == datasets.Dataset.from_parquet(str(copy / ROWS[1]))["sha256"]
    assert pushed[0]["image"].size[0] > 0 and pushed.features["category"].names == list(CATEGORIES)


def test_links_may_be_pushed_for_all_to_see(copy, flags, alice):
    """--public creates a public dataset of the links, under the name that was asked for."""
    prepare(flags, output=copy, stages="write", push_to_hub=True, public=True, links_only=True, hub_dataset_id="a-b")
    repo = alice.repos["dataset", "alice/a-b"]
    assert not repo.private and set(repo.files) == {".gitattributes", "README.md", *ROWS}
    assert "image" not in datasets.load_dataset("alice/a-b", "korea", split="train").column_names


def test_photographs_are_not_pushed_to_what_is_public(copy, flags, alice):
    """A dataset of the Hub that exists and is public gets no photographs."""
    alice.add("dataset", "alice/ccub", {})
    with pytest.raises(DataError, match="--hub_dataset_id alice/ccub is public"):
        prepare(flags, output=copy, stages="write", push_to_hub=True)
    assert not alice.asked("/commit/")


def test_photographs_are_not_pushed_to_what_became_public(copy, flags, alice):
    """Not even if it was private when the work of hours began."""
    alice.add("dataset", "alice/ccub", {}, private=True)
    repo = alice.repos["dataset", "alice/ccub"]
    alice.before("GET", "/tree/main", lambda: setattr(repo, "private", False))
    with pytest.raises(DataError, match="datasets/alice/ccub has become public"):
        prepare(flags, output=copy, stages="write", push_to_hub=True)
    assert not alice.asked("/commit/|/preupload/")


def test_a_push_does_not_unlist_a_culture_that_is_not_here(copy, flags, alice):
    """The card lists the configs; one that this folder does not know would be lost, so nothing is pushed."""
    alice.add("dataset", "alice/ccub", {"peru/train-00000-of-00001.parquet": b"rows"}, private=True)
    with pytest.raises(DataError, match="has cultures that .* has not.*: peru"):
        prepare(flags, output=copy, stages="write", push_to_hub=True)
    assert not alice.asked("/commit/")


def test_who_may_not_push_learns_it_before_the_work(copy, flags, alice, monkeypatch):
    """Whether the dataset can be pushed is asked first; the token is in no message."""
    monkeypatch.setattr("scoft.prepare.fetch.Fetch.run", lambda *_, **__: pytest.fail("it went to work"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DataError, match="--hub_dataset_id ccub: nobody is logged in"):
        prepare(flags, output=copy, push_to_hub=True)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    with pytest.raises(DataError, match="--hub_dataset_id bob/ccub cannot be written to") as raised:
        prepare(flags, output=copy, push_to_hub=True, hub_dataset_id="bob/ccub")
    assert "hf_alice" not in str(raised.value)
