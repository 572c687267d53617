"""The dataset's card: what is there, what was lost and why, how it was made."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scoft.cultures import CATEGORIES
from scoft.files import checked_name, write_atomically
from scoft.pages import code_text, markdown_text, page_values
from scoft.prepare.photograph import NO_CATEGORY, UNKNOWN


TEMPLATE = Path(__file__).parents[2] / "dataset_card.md"
# What the Hub asks of whoever wants a dataset whose owner has switched access requests on.
GATED_PROMPT = (
    "The photographs belong to those who took them, and show people whom you have not asked. By asking for access you "
    "agree not to pass them on, not to recognise faces or guess where people come from with them, not to teach models "
    "stereotypes with them, and to delete your copy of whatever is withdrawn from here."
)


@dataclass(frozen=True)
class SplitRows:
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`summary.json` of a culture's folder: what the card says of it, counts by name, and settings."""

    name: str
    words: str
    about: str  # Markdown of --about
    rows: SplitRows
    categories: dict[str, int]
    statuses: dict[str, int]
    collectors: dict[str, int]
    periods: dict[str, int]
    languages: list[str]
    licenses: dict[str, int]
    fetched: tuple[()] | tuple[str, str]  # first and last day
    captions: int
    mentions: dict[str, int]
    negatives: int
    false_negatives: int
    fingerprint: str
    settings: dict[str, str | int | float | None]

    def __post_init__(self):
        checked_name(self.name, what="name")


def write_card(output: Path, summaries: Sequence[dict], *, links_only: bool, repo_id: str | None = None):
    """README.md of the dataset: a config for each culture, real counts, what was lost and why.

    repo_id: where it will be on the Hub.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    total = sum(sum(culture["rows"].values()) for culture in summaries)
    configs = [
        {
            "config_name": culture["name"],
            "data_files": [
                {"split": split, "path": f"{culture['name']}/{split}-*.parquet"}
                for split, count in culture["rows"].items()
                if count
            ],
        }
        for culture in summaries
    ]
    languages = list(dict.fromkeys(code for culture in summaries for code in culture.get("languages", ["en"])))
    spoken = list(dict.fromkeys(code.partition("-")[0] for code in languages))
    licenses = {name for culture in summaries for name in culture["licenses"]}
    license = licenses.pop().lower() if len(licenses) == 1 and not licenses & {UNKNOWN} else "other"
    license = license if re.fullmatch(r"[a-z0-9.-]+", license) else "other"
    data = DatasetCardData(
        pretty_name=f"{output.name}: photographs of cultures, chosen and captioned by their own people",
        language=spoken,
        language_bcp47=languages if languages != spoken else None,
        license=license,
        license_name="rights-of-the-photographers" if license == "other" else None,
        annotations_creators="expert-generated",
        language_creators="expert-generated",
        multilinguality="monolingual" if len(spoken) == 1 else "multilingual",
        source_datasets=["original"],
        task_categories=["text-to-image"],
        size_categories="n<1K" if total < 1000 else "1K<n<10K" if total < 10_000 else "10K<n<100K",
        tags=["culture", "scoft"],
        configs=configs,
        extra_gated_prompt=None if links_only else GATED_PROMPT,
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        text=markdown_text,
        place_in_code=code_text(repo_id or output.name),
        config_in_code=code_text(summaries[0]["name"]),
        abouts=[html.escape(culture["about"], quote=False) for culture in summaries],
        cultures=[page_values(culture) for culture in summaries],
        categories=[name for name in (*CATEGORIES, NO_CATEGORY) if any(name in c["categories"] for c in summaries)],
        statuses=list(dict.fromkeys(status for culture in summaries for status in culture["statuses"])),
        name=markdown_text(output.name),
        license=license,
        languages=languages,
        fetched=any(culture["fetched"] for culture in summaries),
        named=any(culture["settings"]["prompt_suffix"] for culture in summaries),
        links_only=links_only,
    )
    write_atomically(output / "README.md", str(card))
