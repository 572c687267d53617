"""What pages and folders hold, as tests compare it, and a text that would break a page."""

from pathlib import Path

import huggingface_hub
import markdown_it


HOSTILE = (
    "x: [a, 'b']\n---\n\n# Big <script>alert(1)</script> <b>&amp; `code` | cell ![i](http://e.vil/i.png) "
    "https://e.vil www.e.vil {{ 7*7 }} *\\"
)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rendered(card: str) -> list:
    """The tokens of a page's Markdown, flat, with HTML as the Hub's renderer would find it."""
    text = huggingface_hub.RepoCard(card).text
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [part for token in tokens for part in (token, *(token.children or ()))]


def kinds(card: str) -> list[str]:
    """What the parts of a page are, without their words."""
    return [token.type for token in rendered(card) if token.type not in ("text", "softbreak", "text_special")]
