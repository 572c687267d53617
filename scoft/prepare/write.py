"""The stage write: the dataset, its manifest and summary, and what there is to look at."""

import dataclasses
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scoft import hub, sheets
from scoft.cultures import CATEGORIES, culture_words
from scoft.errors import DataError
from scoft.files import content_key, read_file, read_record, sole_writer, write_atomically
from scoft.hub import files_on_hub, ready_repo
from scoft.images import MAX_BYTES, write_png
from scoft.prepare.caption import culture_mentions
from scoft.prepare.card import Summary, write_card
from scoft.prepare.filter import Filter, Negative
from scoft.prepare.photograph import (
    NO_CATEGORY,
    UNKNOWN,
    Photograph,
    kept,
    read_photographs,
    write_photographs,
)
from scoft.prepare.work import Run


logger = logging.getLogger(__name__)

SHEET_ROWS = 25  # photographs of a page of the contact sheet


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the dataset before it is written."""

    photograph: Photograph
    captions: list[str]
    negatives: list[Negative]  # those that the filter left out included

    @property
    def kept_negatives(self) -> list[Path]:
        return [negative.file for negative in self.negatives if negative.is_kept]


@dataclass(kw_only=True)
class Write:
    """The stage: the dataset's files, what there is to look at, the card, and if it is asked for the push."""

    output: Path  # of all cultures
    links_only: bool
    about: str  # Markdown, for the card
    language: list[str]
    push_to_hub: bool
    hub_dataset_id: str | None
    public: bool
    seed: int  # of the stages before
    earlier: Sequence  # the stages before, each of which tells the card its settings
    filter: Filter  # one of them
    retry: str  # the command that goes on with a push
    repo_id: str | None = dataclasses.field(default=None, init=False)  # on the Hub, found by `check`

    @property
    def folder(self) -> Path:
        """Where the dataset is written: --output, or a folder beside it for what has no pictures in it."""
        output = self.output.resolve()
        return output.with_name(f"{output.name}-links") if self.links_only else output

    def check(self, run: Run):
        """Find before the work of hours whether the dataset may be written and pushed. Raises DataError."""
        if self.links_only:
            check_no_pictures(self.folder)
        if self.push_to_hub:
            name, private = self.hub_dataset_id or self.folder.name, not self.public
            self.repo_id, _ = ready_repo(name, repo_type="dataset", private=private, flag="--hub_dataset_id")

    def run(
        self,
        run: Run,
        photographs: Sequence[Photograph],
        captions: Mapping[str, list[str]],
        negatives: Mapping[str, list[Negative]],
    ):
        """Write the dataset, by the main process, and push it if that is asked for.

        captions, negatives: of each photograph that has some, by its id. Raises DataError for what cannot be pushed.
        """
        if run.is_main and run.does("write"):
            rows = [
                Row(photograph=p, captions=captions.get(p.id, []), negatives=negatives.get(p.id, []))
                for p in photographs
            ]
            self.write_dataset(run, rows)
            self.write_pictures(run, rows)
            logger.info("The dataset is in %s", self.folder)
            if self.push_to_hub:
                self.push()
        run.wait()

    def write_dataset(self, run: Run, rows: Sequence[Row]):
        """The parquet files of the culture, its manifest and summary, and the card of all cultures."""
        place = self.folder / run.culture
        place.mkdir(parents=True, exist_ok=True)
        for split in ("train", "test"):
            file = place / f"{split}-00000-of-00001.parquet"
            part = [row for row in rows if row.photograph.split == split]
            if part:
                write_split(file, part, folder=run.folder, links_only=self.links_only)
            else:
                file.unlink(missing_ok=True)
        photographs, by_id = read_photographs(run.folder), {row.photograph.id: row for row in rows}
        for photograph in kept(photographs):
            photograph.negatives = {each.file.stem: each.distance for each in by_id[photograph.id].negatives}
        write_photographs(run.folder, photographs)
        facts = json.dumps(self.summary(run, photographs, rows), indent=2, ensure_ascii=False)
        write_atomically(place / "summary.json", f"{facts}\n")
        with sole_writer(self.folder, flag="--output"):  # the card is of all cultures, each may have its own run
            remedy = "Run the stage write of that culture again, or remove its folder."
            read = [read_record(file, Summary, remedy=remedy) for file in sorted(self.folder.glob("*/summary.json"))]
            summaries = list(map(dataclasses.asdict, read))
            write_card(self.folder, summaries, links_only=self.links_only, repo_id=self.repo_id)

    def write_pictures(self, run: Run, rows: Sequence[Row]):
        """The pages of the contact sheet, and the histogram of the distances with what the filter left out."""
        for old in run.folder.glob("contact_sheet-*.png"):
            old.unlink()
        for page, first in enumerate(range(0, len(rows), SHEET_ROWS), start=1):
            title = f"{culture_words(run.culture)}, page {page} of {-(-len(rows) // SHEET_ROWS)}"
            sheet = contact_sheet(rows[first : first + SHEET_ROWS], run.folder, title=title)
            write_png(run.folder / f"contact_sheet-{page}.png", sheet)
        negatives = [negative for row in rows for negative in row.negatives]
        if negatives:
            unit = f"{self.filter.filter_distance} distance to the photograph"
            distances = [negative.distance for negative in negatives]
            plot = sheets.histogram(distances, threshold=self.filter.threshold, of="negatives", unit=unit)
            write_png(run.folder / "histogram.png", plot)
            false = sum(not negative.is_kept for negative in negatives)
            logger.info("%d of %d negatives are too near their photographs and left out", false, len(negatives))

    def summary(self, run: Run, photographs: Sequence[Photograph], rows: Sequence[Row]) -> dict:
        """What is kept as the culture's Summary."""
        usable = kept(photographs)
        captions = [text for row in rows for text in row.captions]
        settings = {name: value for stage in self.earlier for name, value in stage.told(run).items()}
        days = sorted(photograph.fetched_at[:10] for photograph in photographs if photograph.fetched_at)
        return {
            "name": run.culture,
            "words": culture_words(run.culture),
            "about": self.about.strip(),
            "rows": {split: len(kept(usable, split=split)) for split in ("train", "test")},
            "categories": {
                name: count
                for name in (*CATEGORIES, NO_CATEGORY)
                if (count := sum((photograph.category or NO_CATEGORY) == name for photograph in usable))
            },
            "statuses": dict(Counter(photograph.status for photograph in photographs).most_common()),
            "collectors": dict(Counter(photograph.collector for photograph in usable if photograph.collector)),
            "periods": dict(Counter(photograph.period for photograph in usable if photograph.period)),
            "languages": self.language,
            "licenses": dict(Counter(photograph.license[:200] or UNKNOWN for photograph in usable).most_common()),
            "fetched": [days[0], days[-1]] if days else [],
            "captions": len(captions),
            "mentions": dict(culture_mentions(captions).most_common()),
            "negatives": sum(len(row.kept_negatives) for row in rows),
            "false_negatives": sum(len(row.negatives) - len(row.kept_negatives) for row in rows),
            "fingerprint": content_key(*(photograph.sha256 for photograph in usable)),
            "settings": settings | {"seed": self.seed},
        }

    def push(self):
        """Commit card and parquet files, and nothing else, to a dataset of the Hub. Raises DataError."""
        output, repo_id = self.folder, self.repo_id
        if self.links_only:
            check_no_pictures(output)
        paths = (output / "README.md", *output.glob("*/*.parquet"))
        files = {path.relative_to(output).as_posix(): path for path in paths}
        rows_there = [path for path in files_on_hub(repo_id, repo_type="dataset") if path.endswith(".parquet")]
        cultures = {Path(path).parent.name for path in files}
        if others := {Path(path).parent.name for path in rows_there} - cultures:
            raise DataError(
                f"--hub_dataset_id {repo_id} has cultures that {output} has not, and would lose them from its card: "
                f"{', '.join(sorted(others))}. Prepare them here too, or name another dataset."
            )
        hub.push(
            repo_id,
            repo_type="dataset",
            files=files,
            stale=[path for path in rows_there if path not in files],
            private=not self.public,
            message="Dataset of " + ", ".join(sorted(cultures - {""})),
            retry=self.retry,
        )


def features(*, links_only: bool):
    """The dataset contract; without pictures, for what may be public, image and negatives are not there."""
    import datasets

    columns = {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "blip_text": datasets.List(datasets.Value("string")),
        "negatives": datasets.List(datasets.Image()),
        "category": datasets.ClassLabel(names=list(CATEGORIES)),
        "source_url": datasets.Value("string"),
        "sha256": datasets.Value("string"),
        "license": datasets.Value("string"),
        "collector": datasets.Value("string"),
        "period": datasets.Value("string"),
    }
    if links_only:
        del columns["image"], columns["negatives"]
    return datasets.Features(columns)


def check_no_pictures(output: Path):
    """DataError if the folder that --links_only writes holds pictures, in a table or as the work on a dataset."""
    import pyarrow.parquet

    allowed = list(features(links_only=True).arrow_schema)
    found = list(output.glob("*/photographs"))
    for file in output.glob("*/*.parquet"):
        try:
            columns = list(pyarrow.parquet.read_schema(file))
        except (OSError, ValueError):  # who knows what is in it
            columns = [None]
        if any(column not in allowed for column in columns):
            found.append(file)
    if found:
        raise DataError(
            f"--links_only: {found[0]} holds or may hold pictures, and what it lies in is to have none. Move it away, "
            "or name another --output."
        )


def write_split(path: Path, rows: Sequence[Row], *, folder: Path, links_only: bool):
    """The parquet file of a split, with the pictures of `folder`. The same rows give the same bytes."""
    import datasets

    def embedded(file: Path) -> dict:
        return {"bytes": read_file(file, within=folder, at_most=MAX_BYTES), "path": file.name}

    columns = features(links_only=links_only)
    cells = {
        "image": lambda row: embedded(folder / row.photograph.file),
        "text": lambda row: row.photograph.caption,
        "blip_text": lambda row: row.captions,
        "negatives": lambda row: [embedded(file) for file in row.kept_negatives],
        "category": lambda row: row.photograph.category,
        "source_url": lambda row: row.photograph.url or None,
        "sha256": lambda row: row.photograph.sha256,
        "license": lambda row: row.photograph.license or None,
        "collector": lambda row: row.photograph.collector or None,
        "period": lambda row: row.photograph.period or None,
    }
    table = {name: [cells[name](row) for row in rows] for name in columns}
    content = io.BytesIO()
    datasets.Dataset.from_dict(table, features=columns).to_parquet(content)
    write_atomically(path, content.getvalue())


def contact_sheet(rows: Sequence[Row], folder: Path, *, title: str) -> Image.Image:
    """A block for each photograph: its file's name and its caption; itself above a naive caption, its depth, and its
    negatives above their distances and prompts, false ones struck through. Words say what is missing.
    """

    def cells(row: Row) -> Iterator[sheets.Cell]:
        naive = row.captions[0] if row.captions else "not captioned"
        yield sheets.Cell(picture=folder / row.photograph.file, words=naive)
        depth = folder / "depth" / f"{row.photograph.id}.png"
        yield sheets.Cell(picture=depth) if depth.exists() else sheets.Cell(words="no depth")
        for negative in row.negatives:
            false = not negative.is_kept
            words = f"{negative.distance:.3f}{', too near' if false else ''}\n{negative.prompt}"
            yield sheets.Cell(picture=negative.file, words=words, struck=false)
        if not row.negatives:
            yield sheets.Cell(words="no negative" + ", a test row" * (row.photograph.split == "test"))

    def block(row: Row) -> sheets.Row:
        photograph = row.photograph
        name = photograph.picture or Path(photograph.file).name
        facts = ", ".join([name, photograph.category or NO_CATEGORY, photograph.split])
        return sheets.Row(above=f"{facts}\n{photograph.caption}", cells=list(cells(row)))

    columns = {
        "photograph, a naive caption": 1,
        "depth": 1,
        "negatives: distance, prompt": max(1, *(len(row.negatives) for row in rows)),
    }
    return sheets.grid([block(row) for row in rows], columns=columns, title=title)
