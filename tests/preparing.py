"""What tests of preparing share: pictures, command lines, and the dataset that tiny models make, once a session."""

import functools
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prepare_ccub
from scoft.prepare.photograph import read_photographs
from scoft.prepare.web import Fetcher


MODELS = ("captioner", "pretrained_model_name_or_path", "controlnet", "depth_model", "filter_model")  # flags


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth picture like no other seed's."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write_images(folder: Path, rows: dict[str, dict], contents: dict[str, bytes]) -> Path:
    """A folder for --images: `rows`, file name -> what else its line says."""
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    lines = [json.dumps({"file_name": name, "text": f"the picture {name}"} | row) for name, row in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_sheet(path: Path, urls: list[str], *, country: str = "KOR") -> Path:
    rows = [f'{country},CITIES,"{url}","caption {i}",2023-01-01' for i, url in enumerate(urls)]
    path.write_text("\n".join(["country_code,category_code,url,caption,created_at", *rows]))
    return path


class Killed(BaseException):
    """Like SIGKILL, nothing that the script does may catch it."""


def words(flags: dict) -> list[str]:
    """None leaves a flag out, True gives it bare, a list gives it several times; a tuple is several words of one."""
    argv = []
    for flag, value in flags.items():
        if isinstance(value, tuple):
            argv += [f"--{flag}", *value]
            continue
        for each in value if isinstance(value, list) else [value]:
            argv += [] if each is None else [f"--{flag}"] if each is True else [f"--{flag}", str(each)]
    return argv


def prepare(flags: dict, **more):
    prepare_ccub.main(words(flags | more))


def written(output: Path) -> dict[str, bytes]:
    """The bytes of the dataset: parquet files and card."""
    files = [*sorted(output.glob("*/*.parquet")), output / "README.md"]
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def rows_of(folder: Path, split: str = "train"):
    """A split of a culture's folder, as any reader of parquet sees it."""
    import datasets

    return datasets.load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")


def keys(ledger: Path) -> list[str]:
    return [json.loads(line)["key"] for line in ledger.read_text().split("\n") if line]


def statuses(folder: Path) -> dict[str, str]:
    return {photograph.origin: photograph.status for photograph in read_photographs(folder)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Eight pictures of a community: six will be train rows."""
    rows = {f"{i}.jpg": {"category": "CITIES" if i < 4 else "food & drink"} for i in range(7)} | {"7.png": {}}
    sizes = [(40, 32), (32, 48), (64, 20), (32, 32)]
    contents = {
        name: encoded(picture(i, sizes[i % 4]), "PNG" if name == "7.png" else "JPEG") for i, name in enumerate(rows)
    }
    return write_images(tmp_path_factory.mktemp("community") / "pictures", rows, contents)


@pytest.fixture(scope="session")
def flags(pictures, tiny_pipeline, tiny_controlnet, tiny_blip, tiny_depth, tiny_clip_conv):
    return {
        "culture": "korea",
        "images": pictures,
        "min_size": 16,
        "captioner": tiny_blip,
        "num_captions": 3,
        "pretrained_model_name_or_path": tiny_pipeline,
        "controlnet": tiny_controlnet,
        "depth_model": tiny_depth,
        "num_negatives": 2,
        "resolution": 16,
        "num_inference_steps": 2,
        "filter_distance": "clip_conv",
        "filter_model": tiny_clip_conv,
        "false_negative_threshold": 0.0,
    }


@pytest.fixture(scope="session")
def made(flags, tmp_path_factory):
    """The output of an undisturbed run. Not to be changed; `copy` is."""
    output, threads = tmp_path_factory.mktemp("made") / "ccub", torch.get_num_threads()
    prepare(flags, output=output)
    torch.set_num_threads(threads)
    return output


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "ccub"))


@pytest.fixture
def quick(monkeypatch):
    """A fetcher for tests: the script's own, with little patience."""
    patient = functools.partial(Fetcher, host_delay=0, total_timeout=1.5, max_bytes=300_000)
    monkeypatch.setattr("scoft.prepare.web.Fetcher", patient)


@pytest.fixture
def alice(hub, monkeypatch):
    """The Hub, with alice logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub
