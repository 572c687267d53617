"""A dataset's rows as they lie in a folder, in parquet files or on the Hub, unchecked."""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scoft.launch import prepare_command

from scoft.dataset_source import DatasetSource, Remedies, not_found
from scoft.errors import DataError, legible, listing
from scoft.files import content_key, open_regular, read_front_matter, read_regular
from scoft.hub import hub_commit
from scoft.images import MAX_BYTES, SUFFIXES
from scoft.metadata import EXAMPLE_LINE, METADATA_NAMES, csv_rows, csv_value, jsonl_records, read_metadata


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_SPLITS = ("train", "validation", "test")
MAX_FILES = 100_000  # that a dataset's folder may hold


class Columns(NamedTuple):
    """The user's names of the columns, None where the method needs none, and what to do when one is missing."""

    image: str
    caption: str
    blip_caption: str | None
    negatives: str | None
    completing: str
    remedies: Remedies

    @property
    def blip_fix(self) -> str:
        return f"{self.completing}, {self.remedies.no_blip_captions}."

    @property
    def negatives_fix(self) -> str:
        return f"{self.completing}, {self.remedies.no_negatives}."


class Place(NamedTuple):
    """A dataset's folder: rows and pictures are read from files below `within` alone."""

    root: Path
    within: Path  # the root, or the cache in which it links to its files
    called: str  # by messages
    is_hub: bool = False


@dataclass(frozen=True)
class Row:
    """A row as found, unchecked."""

    name: str
    image_file: ImageFile | ArrowCell
    caption: object
    blip_caption: object = None
    negative_files: Sequence[ImageFile | ArrowCell] = ()


@dataclass(frozen=True)
class ImageFile:
    """An image file that metadata names."""

    path: Path
    within: Path

    def read_bytes(self) -> bytes:
        return read_regular(self.path, within=self.within, at_most=MAX_BYTES)

    def version(self) -> tuple[str, str] | None:
        """Its name, and what changes when its content does; None where there is no file.

        A change that leaves the file its size and its time to the nanosecond is not seen.
        """
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            return None
        return os.path.abspath(self.path), f"{found.st_size} {found.st_mtime_ns}"

    def __str__(self) -> str:
        return legible(self.path)


@dataclass(frozen=True)
class ArrowCell:
    """An image in a `datasets` table in Arrow format: nothing is copied before read_bytes()."""

    table: datasets.Dataset
    row: int
    column: str
    place: int | None = None  # in a list of images
    folder: Path | None = None  # that a path in the cell counts from and lies in; None: the cell holds the bytes
    stamp: str | None = None  # of the parquet files, where all images of the column lie in them

    def read_bytes(self) -> bytes:
        cell = self.table[self.row][self.column][0]
        value = (cell if self.place is None else cell[self.place]).as_py()
        if isinstance(value, dict):  # how `datasets` stores an Image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and self.folder is None:
            raise DataError(f"names the file {legible(value)}; from the Hub pictures are read that lie in the rows")
        if isinstance(value, str):
            value = read_regular(self.folder / value, within=self.folder, at_most=MAX_BYTES)
        if not isinstance(value, bytes):
            raise DataError(f"column {self.column!r} holds no image here ({type(value).__name__})")
        return value

    def version(self) -> tuple[str, str] | None:
        """As that of a file; None where the cell may name one."""
        return self.stamp and (f"{self.column} {self.row} {self.place}", self.stamp)

    def __str__(self) -> str:
        return f"column {self.column!r}"


def _require_column(
    found: Iterable[str], spellings: Sequence[str], *, argument: str, where: object, fix: str = ""
) -> str:
    """The first of the column's spellings that is there. Raises DataError of `argument`, which names the column."""
    for spelling in spellings:
        if spelling in found:
            return spelling
    columns = legible(", ".join(sorted(map(str, found))), most=500) or "none"
    raise DataError(
        f"{spellings[0]!r} is no column of {where}; its columns are: {columns}. Name the right one. {fix}".rstrip(),
        argument=argument,
    )


# ---------------------------------------------------------------------------------------------------------------------
# A folder
# ---------------------------------------------------------------------------------------------------------------------


def place_rows(place: Place, culture: str | None, *, split: str, columns: Columns, cache_dir) -> list[Row]:
    """The rows of a culture's split, in the order in which they are written; none of an empty one. Raises DataError.

    cache_dir: where `datasets` keeps its copies of parquet files, None for its own.
    """
    files = _split_files(place, culture, split)
    if files[0].name in METADATA_NAMES:
        return _metadata_rows(files[0], within=place.within, columns=columns)
    table, stamp = _parquet_table(files, place, split=split, cache_dir=cache_dir)
    return _table_rows(table, place, columns=columns, stamp=stamp)


def _split_files(place: Place, culture: str | None, split: str) -> list[Path]:
    """The metadata file, or the parquet files, with a culture's rows of a split. Raises DataError."""
    root, configs = place.root, _declared_configs(place)
    if set(configs) - {"default"}:
        return _declared_files(place, configs[_only(configs, culture, place)], split)
    cultures = {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in (*_SPLITS, split) and _holds_rows(folder, split)
    }
    if culture in cultures:
        root = cultures[culture]
    elif configs and not _metadata_files(root, split):  # a lone 'default' says nothing about cultures
        return _declared_files(place, configs["default"], split)
    elif not _holds_rows(root, split):
        if not cultures:
            raise _unreadable_folder(place)
        root = cultures[_only(cultures, culture, place)]
    found = _metadata_files(root, split) or _parquet_files(root, split)
    if not found:
        raise DataError(
            f"{root} has no split {split!r}: no {' or '.join(METADATA_NAMES)} in it or in {root / split}, and no "
            "parquet files of that name."
        )
    return found


def _declared_configs(place: Place) -> dict[str, object]:
    """Name -> data_files of each config with such that the README's YAML lists."""
    readme = place.root / "README.md"
    configs = (readme.is_file() and read_front_matter(readme, within=place.within).get("configs")) or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise DataError(f"{readme}: configs must be a list of `config_name` and `data_files`.")
    return {str(each.get("config_name", "default")): each["data_files"] for each in configs if "data_files" in each}


def _declared_patterns(place: Place, data_files: object, split: str) -> list[str]:
    """What a README says of where a split lies: paths below the root, with wildcards. Raises DataError."""
    from datasets.data_files import sanitize_patterns

    where = f"{place.root / 'README.md'}, data_files {legible(data_files)}"
    try:
        splits = sanitize_patterns(data_files)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error
    if split not in splits:
        raise DataError(f"{where}: there is no split {split!r}; there are {', '.join(splits) or 'none'}.")
    if not all(isinstance(pattern, str) for pattern in splits[split]):
        raise DataError(f"{where}: the paths of split {split!r} must be text.")
    return [pattern.removeprefix("./") for pattern in splits[split]]


def _declared_files(place: Place, data_files: object, split: str) -> list[Path]:
    """The files that a README says a split lies in, among those that lie in the folder, whatever else it names."""
    from fsspec.utils import glob_translate

    patterns = _declared_patterns(place, data_files, split)
    paths = {file.relative_to(place.root).as_posix(): file for file in _files_below(place.root)}
    try:
        expressions = [re.compile(glob_translate(pattern)) for pattern in patterns]
    except (ValueError, re.error) as error:
        raise DataError(f"{place.root / 'README.md'}, data_files of split {split!r}: {error}") from error
    named = dict.fromkeys(path for each in expressions for path in sorted(paths) if each.match(path))
    files = [paths[path] for path in named]
    found = [file for file in files if file.name in METADATA_NAMES] or [f for f in files if f.suffix == ".parquet"]
    if not found or (len(found) > 1 and found[0].suffix != ".parquet"):
        raise DataError(
            f"{place.root / 'README.md'} says that split {split!r} lies in {legible(', '.join(patterns))}, which "
            f"names {len(found)} files with rows: one {' or '.join(METADATA_NAMES)} or any number of parquet files "
            "are needed, named from this folder and lying in it."
        )
    return found


def _files_below(root: Path) -> Iterator[Path]:
    """All files below a folder; links to folders are not followed. Raises DataError for more than MAX_FILES."""
    count = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        count += len(names)
        if count > MAX_FILES:
            raise DataError(f"{root} holds more than {MAX_FILES} files; give the folder of the dataset alone.")
        yield from (Path(folder, name) for name in sorted(names))


def _parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files of a split: those with its name in theirs, or where no name has that of a split, all."""
    files = sorted({file for name in ("", "data", split, *_SPLITS) for file in (root / name).glob("*.parquet")})
    words = {file: re.split(r"[\W_\d]+", file.relative_to(root).as_posix()) for file in files}
    if any(each in words[file] for file in files for each in (split, *_SPLITS)):
        return [file for file in files if split in words[file]]
    return files if split == "train" else []


def _holds_rows(root: Path, split: str) -> bool:
    return any(_metadata_files(root, each) or _parquet_files(root, each) for each in (split, *_SPLITS))


def _metadata_files(root: Path, split: str) -> list[Path]:
    """The one metadata file of a split, if there is one."""
    # as in imagefolder, what lies outside a split's folder is "train"
    for folder in [root / split] + [root] * (split == "train"):
        found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} holds both {' and '.join(METADATA_NAMES)}; keep one.")
        if found:
            return found
    return []


def _only(cultures: Iterable[str], culture: str | None, place: Place) -> str:
    """The culture asked for, or the only one there is. Raises DataError."""
    if culture is None and len(list(cultures)) == 1:
        return next(iter(cultures))
    if culture not in cultures:
        raise _unknown_culture(place.called, culture, cultures)
    return culture


def _unknown_culture(where: object, culture: str | None, cultures: Iterable[str]) -> DataError:
    asked = "was not given" if culture is None else f"{culture} is not there"
    return DataError(
        f"{asked}: {where} holds one dataset per culture ({', '.join(sorted(cultures))}). Name one of them.",
        argument="culture",
    )


def _unreadable_folder(place: Place) -> DataError:
    files = [file.relative_to(place.root) for file in _files_below(place.root)]
    photos = [file.as_posix() for file in files if file.suffix.lower() in SUFFIXES]
    lookalikes = [str(file) for file in files if file.name.startswith("metadata")]
    example = _example_line(photos[0]) if photos else EXAMPLE_LINE
    return DataError(
        f"{place.called} holds {len(photos)} images but no {' or '.join(METADATA_NAMES)}, in it or in its train/, "
        "and no parquet."
        + (f" Found {listing(lookalikes)}: rename it to metadata.jsonl." if lookalikes else "")
        + " What the pictures show is for people to say: write a text file metadata.jsonl beside them with one line "
        f"per image, such as {example}"
    )


def _example_line(file_name: str) -> str:
    return json.dumps({"file_name": file_name, "text": "a house with a tiled roof"}, ensure_ascii=False)


def how_to_complete(source: DatasetSource, culture: str | None, *, remedies: Remedies) -> str:
    """How a dataset gets naive captions and negatives: by a command, where that can read what there is."""
    root = Path(source.location)
    metadata = [file for folder in (root / (culture or ""), root) for file in _metadata_files(folder, "train")]
    if source.kind == "hub" or not metadata:
        return "Add them to the rows"
    images = Path(source.name).expanduser() / metadata[0].parent.relative_to(root)
    output = f"{root.name}_prepared"
    command = prepare_command(culture or "my_culture", images=images, output=output)
    return f"Make them with `{command}` and {remedies.other_dataset.format(shlex.quote(output))}"


def _metadata_rows(file: Path, *, within: Path, columns: Columns) -> list[Row]:
    lines = read_metadata(file, within=within)
    if file.suffix == ".jsonl":
        records = [record for _, record in jsonl_records(lines, file)]
    else:
        _, rows = csv_rows(lines, source=file)
        records = [{name: csv_value(cell) for name, cell in row.items()} for _, row in rows]
    if not records:
        return []
    found = {name for record in records for name in record}
    # imagefolder's rule: column X of images is written as X_file_name(s), and `image` as file_name
    image_spellings = [columns.image, f"{columns.image}_file_name"] + ["file_name"] * (columns.image == "image")
    image = _require_column(found, image_spellings, argument="image_column", where=file)
    caption = _require_column(found, [columns.caption], argument="caption_column", where=file)
    blip = negatives = None
    if columns.blip_caption is not None:
        spellings = [columns.blip_caption]
        blip = _require_column(found, spellings, argument="blip_caption_column", where=file, fix=columns.blip_fix)
    if columns.negatives is not None:
        spellings = [columns.negatives, f"{columns.negatives}_file_names"]
        spellings += ["negative_imgpath"] * (columns.negatives == "negatives")  # the authors' name for it
        negatives = _require_column(
            found, spellings, argument="negatives_column", where=file, fix=columns.negatives_fix
        )

    def path(written: object, row: int, column: str) -> ImageFile:
        if not isinstance(written, str) or not written.strip():
            raise DataError(f"{file}, row {row}: {column!r} must be the path of an image, not {legible(written)}.")
        return ImageFile(file.parent / written, within)

    rows = []
    for i, record in enumerate(records):
        written = record.get(negatives) or []
        rows.append(
            Row(
                name=f"row {i} ({legible(record.get(image))})",
                image_file=path(record.get(image), i, image),
                caption=record.get(caption),
                blip_caption=record.get(blip),
                negative_files=[
                    path(each, i, negatives) for each in (written if isinstance(written, list) else [written])
                ],
            )
        )
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Parquet and the Hub
# ---------------------------------------------------------------------------------------------------------------------


def hub_place(source: DatasetSource, culture: str | None, *, split: str, cache_dir, revision: str | None) -> Place:
    """The folder of the cache with what a Hub dataset holds of a culture's split, at the commit that is its name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    location = source.location
    download = functools.partial(snapshot_download, location, repo_type="dataset", cache_dir=cache_dir)
    try:
        try:
            commit = hub_commit(
                location, revision=revision, file="README.md", repo_type="dataset", cache_dir=cache_dir
            )
        except LocalEntryNotFoundError:
            commit = revision  # it has no README; perhaps there is a copy all the same
        folder = Path(download(revision=commit, allow_patterns=["README.md"]))
        place = Place(folder, within=folder.parents[1], called=location, is_hub=True)
        configs, wanted = _declared_configs(place), None
        if set(configs) - {"default"}:
            patterns = _declared_patterns(place, configs[_only(configs, culture, place)], split)
            # the download's * goes through folders, so these name all that the README's do, or more
            wanted = [pattern.replace("**/", "*") for pattern in patterns]
        download(revision=commit, allow_patterns=wanted)
    except (HTTPError, HFValidationError, OSError) as error:
        raise not_found(source.name, culture, f"the Hub, {location}: {error}") from error
    return place


def _parquet_table(files: Sequence[Path], place: Place, *, split: str, cache_dir) -> tuple[datasets.Dataset, str]:
    """The rows of parquet files, and what changes when these do."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, config
    from datasets.exceptions import DatasetsError

    try:
        version = []
        for file in files:
            with open_regular(file, within=place.within) as opened:
                found = os.fstat(opened.fileno())
            version.append([str(file), found.st_size, found.st_mtime_ns])
        # `datasets` itself would take files of another size for those it knows, if they are said to be as old
        stamp = content_key(version)[:16]
        cache_dir = Path(cache_dir or config.HF_DATASETS_CACHE) / stamp
        # the columns as they are stored: what metadata says of them names classes of `datasets`
        features = Features.from_arrow_schema(pq.read_schema(files[0]).remove_metadata())
        paths = [glob.escape(str(file)) for file in files]
        return Dataset.from_parquet(paths, features=features, cache_dir=cache_dir), stamp
    except (DatasetsError, ValueError, TypeError, RuntimeError, OSError, pa.ArrowException) as error:
        names = ", ".join(legible(file) for file in files)
        raise DataError(
            f"{place.called}, split {split!r} cannot be read: {names}: {error}", argument="dataset"
        ) from error


def _table_rows(table: datasets.Dataset, place: Place, *, columns: Columns, stamp: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.with_format("arrow")
    if not len(table):
        return []
    found = table.column_names
    image = _require_column(found, [columns.image], argument="image_column", where=place.called)
    caption = _require_column(found, [columns.caption], argument="caption_column", where=place.called)
    captions = _texts(table.data.column(caption), f"{place.called}, column {caption!r}")

    images = table.data.column(image)
    paths = [None] * len(table)
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        paths = _texts(pc.struct_field(images, "path"), f"{place.called}, the paths in column {image!r}")

    blip_captions = [None] * len(table)
    if columns.blip_caption is not None:
        spellings = [columns.blip_caption]
        blip = _require_column(
            found, spellings, argument="blip_caption_column", where=place.called, fix=columns.blip_fix
        )
        blip_captions = _texts(table.data.column(blip), f"{place.called}, column {blip!r}")

    negative_places: list[Sequence[int | None]] = [()] * len(table)
    negatives_stamp = None
    if columns.negatives is not None:
        spellings, fix = [columns.negatives], columns.negatives_fix
        negatives = _require_column(found, spellings, argument="negatives_column", where=place.called, fix=fix)
        cells = table.data.column(negatives)
        if not (pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)):
            raise DataError(
                f"{negatives!r} of {place.called} must hold lists, not {cells.type}.", argument="negatives_column"
            )
        negatives_stamp = stamp if _holds_all(cells) else None
        negative_places = [range(count or 0) for count in pc.list_value_length(cells).to_pylist()]

    folder, stamp = None if place.is_hub else place.root, stamp if _holds_all(images) else None
    return [
        Row(
            name=f"row {i} ({legible(paths[i])})" if paths[i] else f"row {i}",
            image_file=ArrowCell(table, i, image, folder=folder, stamp=stamp),
            caption=captions[i],
            blip_caption=blip_captions[i],
            negative_files=[
                ArrowCell(table, i, negatives, k, folder=folder, stamp=negatives_stamp) for k in negative_places[i]
            ],
        )
        for i in range(len(table))
    ]


def _holds_all(cells: pa.ChunkedArray) -> bool:
    """Whether a column of images, or of lists of them, holds the bytes of each, and names no file instead."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in cells.chunks:
        images = chunk.values if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type) else chunk
        if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
            images = pc.struct_field(images, "bytes")
        if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)) or images.null_count:
            return False
        if pc.min(pc.binary_length(images)).as_py() == 0:
            return False
    return True


def _texts(cells: pa.ChunkedArray, where: str) -> list:
    try:
        return cells.to_pylist()
    except UnicodeDecodeError as error:  # parquet files are not looked at for this
        raise DataError(f"{where} holds text that is not UTF-8 ({error}); write it as UTF-8.") from error
