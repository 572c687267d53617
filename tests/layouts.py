"""Datasets of three rows in each layout that is read, for tests: photographs of one colour, captions, negatives."""

import csv
import io
import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from scoft import dataset
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset


ROOT = Path(dataset.__file__).parents[1]
COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
BLIP = [["a door", "a gate"], ["a bowl"], ["a hat"]]
NEGATIVES = [("green", "blue"), (), ("red",)]


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def plain(colour, size=(24, 16)):
    return encoded(Image.new("RGB", size, colour))


def noise(size=(64, 48), mode="RGB"):
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


def records(*, negatives_key="negatives_file_names", prefix="images/"):
    """Three rows: photographs red, green, blue; two, no and one negatives."""
    return [
        {
            "file_name": f"{prefix}{colour}.png",
            "text": f"a {colour} house",
            "blip_text": BLIP[i],
            negatives_key: [f"{prefix}{each}_negative.png" for each in NEGATIVES[i]],
        }
        for i, colour in enumerate(COLOURS)
    ]


def write_folder(folder, rows, *, kind="jsonl", images=True):
    """An imagefolder: metadata, and for each path in it an image of the colour in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows if images else ():
        negatives = row.get("negatives_file_names") or row.get("negative_imgpath") or []
        for name in [row["file_name"], *negatives]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(plain(Path(name).stem.split("_")[0]))
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, cells[0])
            writer.writeheader()
            writer.writerows(cells)
    return folder


def write_parquet(file, *, photographs=None, columns=("image", "text", "blip_text", "negatives")):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "blip_text": datasets.List(datasets.Value("string")),
            "negatives": datasets.List(datasets.Image()),
        }
    )
    photographs = photographs or [plain(colour) for colour in COLOURS]
    rows = {
        "image": [{"bytes": data, "path": f"{c}.png"} for data, c in zip(photographs, COLOURS, strict=True)],
        "text": [f"a {colour} house" for colour in COLOURS],
        "blip_text": BLIP,
        "negatives": [[{"bytes": plain(each), "path": None} for each in names] for names in NEGATIVES],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).select_columns(list(columns)).to_parquet(file)


def write_card(root, *cultures):
    lines = [f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n" for c in cultures]
    (root / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n# card\n")


def read(folder, *, culture="korea", needs_blip=True, needs_negatives=True, **options):
    source = find_dataset(str(folder), culture=culture)
    cache = folder.parent / "datasets_cache"
    options = {"cache_dir": cache, "needs_blip": needs_blip, "needs_negatives": needs_negatives} | options
    return read_dataset(source, culture=culture, **options)


def parquet_plain(root):
    write_parquet(root / "train-00000-of-00001.parquet")


def parquet_with_configs(root):
    for culture in ("korea", "china"):
        write_parquet(root / culture / "train-00000-of-00001.parquet")
    write_card(root, "korea", "china")


def read_hub(name, culture, **options):
    source = find_dataset(name, culture=culture)
    options = {"needs_blip": True, "needs_negatives": True, "cache_dir": "cache"} | options
    return read_dataset(source, culture=culture, **options)
