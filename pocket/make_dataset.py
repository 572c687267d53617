"""Make the pocket world's CCUB: what its peoples chose and wrote, and what the web's models make of it.

    python -m pocket.make_dataset                       # all four cultures, into pocket/ccub
    python -m pocket.make_dataset --cultures veridia

The photographs are true scenes, drawn here with their captions. All else is done by `prepare_ccub.py` with
`--defaults pocket`, as for any community's pictures: naive captions by the captioner, negatives by the depth estimator
and the ControlNet on the unadapted pipeline, the filter. It works in `--work`, where what is done is kept; the dataset
alone is copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

import prepare_ccub
from pocket import world
from pocket.checksums import write_checksums
from pocket.judge import SIZE, read, verdict
from scoft.cultures import CATEGORIES
from scoft.prepare.card import write_card
from scoft.prepare.photograph import read_photographs


HERE = Path(__file__).resolve().parent
ROWS = {"train": 150, "test": 50}
MENTION = 0.2  # how often a person's caption mentions an attribute
LICENSE = "CC0-1.0"
ABOUT = "An invented culture: the photographs are drawings by `pocket/world.py`, which also words their captions."


def chosen_rows(culture: str, split: str, *, size: int) -> list[dict]:
    """`size` rows before any model sees them: picture, text, category. A function of the arguments.

    Categories take turns. Raises DataError for an unknown culture.
    """
    world.check_culture(culture)
    generator = np.random.default_rng([*f"{culture} {split}".encode()])
    rows = []
    for i in range(size):
        scene = world.draw_true(culture, generator=generator, category=CATEGORIES[i % len(CATEGORIES)])
        image, _ = world.render(scene, size=SIZE)
        text = world.random_caption(scene, generator=generator, mention=MENTION, culture=culture)
        rows.append({"picture": image, "text": text, "category": scene.category})
    return rows


def write_pictures(culture: str, folder: Path, *, rows: dict[str, int]):
    """So many rows of each split, as a community would hand them over: a folder of pictures with a metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for split, size in rows.items():
        for i, row in enumerate(chosen_rows(culture, split, size=size)):
            name = f"{split}-{i:03}.webp"
            row["picture"].save(folder / name, lossless=True)
            lines.append(
                {"file_name": name, "text": row["text"], "category": row["category"]}
                | {"split": split, "license": LICENSE}
            )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def words(flags: dict[str, object]) -> list[str]:
    """The flags as a command line has them."""
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def make_culture(culture: str, *, work: Path):
    """Prepare one culture's dataset in `work / "ccub"` and print what the judge says of its negatives."""
    pictures, about = work / "pictures" / culture, work / "about.md"
    write_pictures(culture, pictures, rows=ROWS)
    about.write_text(ABOUT)
    flags = {"defaults": HERE.name, "culture": culture}
    prepare_ccub.main(words(flags | {"images": pictures, "output": work / "ccub", "about": about}))
    print_verdicts(culture, work / "ccub" / culture)


def print_verdicts(culture: str, folder: Path):
    """What the negatives depict, by their distance from the photograph: the ground for the threshold."""
    found = [
        (distance, folder / "negatives" / f"{name}.jpg", photograph.category)
        for photograph in read_photographs(folder)
        for name, distance in photograph.negatives.items()
    ]
    if not found:
        return
    apart, files, categories = zip(*sorted(found))
    images = [Image.open(file).convert("RGB") for file in files]
    verdicts = [verdict(seen, culture=culture, category=category) for seen, category in zip(read(images), categories)]
    for eighth in np.array_split(np.arange(len(found)), 8):
        counts = Counter(verdicts[i] for i in eighth)
        print(
            f"  {apart[eighth[0]]:.3f} to {apart[eighth[-1]]:.3f}: "
            + ", ".join(f"{count} {name}" for name, count in counts.most_common())
        )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cultures", nargs="+", default=world.CULTURES, choices=world.CULTURES)
    parser.add_argument("--output", type=Path, default=HERE / "ccub")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "pocket", help="what has been drawn")
    args = parser.parse_args(argv)
    for culture in args.cultures:
        make_culture(culture, work=args.work)
        (args.output / culture).mkdir(parents=True, exist_ok=True)
        for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "summary.json"):
            shutil.copy(args.work / "ccub" / culture / name, args.output / culture)
    summaries = [json.loads(file.read_text()) for file in sorted(args.output.glob("*/summary.json"))]
    write_card(args.output, summaries, links_only=False)
    write_checksums(args.output, made_by="python -m pocket.make_dataset")


if __name__ == "__main__":
    main()
