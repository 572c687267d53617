"""Texts of others on pages of Markdown."""

import huggingface_hub

from contents import HOSTILE, kinds
from scoft.pages import markdown_text
from scoft.prepare.card import write_card


def test_nothing_told_on_a_datasets_page_can_break_it(tmp_path):
    """Licences, settings, statuses and mentions stay words; --about alone is Markdown, without HTML."""

    def page(text: str) -> str:
        culture = {
            "name": "korea",
            "words": f"Korea {text}",
            "about": f"Chosen *by* {text}." if text == "" else "Chosen *by* us <script>alert(1)</script>.",
            "rows": {"train": 3, "test": 1},
            "categories": {"city": 4},
            "statuses": {f"ok {text}": 4},
            "licenses": {f"CC {text}": 4},
            "fetched": ["2026-01-01", "2026-02-01"],
            "captions": 20,
            "mentions": {f"chinese {text}": 2},
            "negatives": 20,
            "false_negatives": 1,
            "fingerprint": "f" * 64,
            "settings": {"prompt_suffix": f"in {text}"},
        }
        write_card(tmp_path, [culture], links_only=False)
        return (tmp_path / "README.md").read_text()

    assert kinds(page(HOSTILE)) == kinds(page(""))
    card = huggingface_hub.DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "other" and card.data.configs[0]["config_name"] == "korea"
    assert 'load_dataset("' in card.text and '", "korea", split="train")' in card.text
    assert "2026-01-01" in card.text and "withdrawn" in card.data.extra_gated_prompt


def test_an_address_told_on_a_page_is_no_link():
    """GitHub's Markdown, which the Hub renders, makes links of bare addresses; escaped ones stay words."""
    assert markdown_text("see https://e.vil, www.e.vil or a@e.vil") == (r"see https\://e.vil, www\.e.vil or a\@e.vil")
