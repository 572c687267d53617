"""prepare_ccub.py: its true command line on loopback servers, hostile bytes and tiny real models."""

import dataclasses
import functools
import hashlib
import html
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

import prepare_ccub
import train_scoft_lora
from loopback import HEAD, drip, png_of
from pocket import make_dataset, world
from scoft.cultures import CATEGORIES
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.distances import load_distance
from scoft.errors import DataError
from scoft.evaluate.prompts import read_prompts
from scoft.files import LOCK, Ledger, content_key, sole_writer
from scoft.images import FORMATS, UnusableImage
from scoft.lora_folder import LORA_FILE
from scoft.prepare import caption, card, clean, fetch, negatives, write
from scoft.prepare import photograph as photograph_room
from scoft.prepare.caption import Captioner, culture_mentions, is_degenerate
from scoft.prepare.clean import Clean, assign_splits
from scoft.prepare.fetch import fetch_links, known_again
from scoft.prepare.filter import Filter, Negative, distances_to
from scoft.prepare.negatives import (
    MIDAS,
    MIDAS_FILE,
    DepthEstimator,
    Drawing,
    DrawNegatives,
    NegativeGenerator,
    prompts_of_negatives,
    size_of_negative,
)
from scoft.prepare.photograph import Photograph, read_photographs, write_photographs
from scoft.prepare.sources import read_deny_list, read_links, read_pictures
from scoft.prepare.web import Fetcher
from scoft.prepare.write import Row, contact_sheet, features
from scoft.weights import model_key


ROOT = Path(prepare_ccub.__file__).parent
POCKET = ROOT / "pocket" / "models"
MODELS = ("captioner", "pretrained_model_name_or_path", "controlnet", "depth_model", "filter_model")

cleaned = functools.partial(clean.cleaned, jpeg_quality=95)

pytestmark = pytest.mark.usefixtures("threads_given_back")


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


def rows_of(folder: Path, split: str = "train") -> datasets.Dataset:
    """A split of a culture's folder, as any reader of parquet sees it."""
    return datasets.load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")


def keys(ledger: Path) -> list[str]:
    return [json.loads(line)["key"] for line in ledger.read_text().split("\n") if line]


def statuses(folder: Path) -> dict[str, str]:
    return {photograph.origin: photograph.status for photograph in read_photographs(folder)}


# ---------------------------------------------------------------------------------------------------------------------
# The whole chain, once, on tiny models
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight pictures of a community: six will be train rows."""
    rows = {f"{i}.jpg": {"category": "CITIES" if i < 4 else "food & drink"} for i in range(7)} | {"7.png": {}}
    sizes = [(40, 32), (32, 48), (64, 20), (32, 32)]
    contents = {
        name: encoded(picture(i, sizes[i % 4]), "PNG" if name == "7.png" else "JPEG") for i, name in enumerate(rows)
    }
    return write_images(tmp_path_factory.mktemp("community") / "pictures", rows, contents)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def made(flags, tmp_path_factory):
    """The output of an undisturbed run. Not to be changed; `copy` is."""
    output = tmp_path_factory.mktemp("made") / "ccub"
    prepare(flags, output=output)
    return output


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "ccub"))


def test_the_trainers_advice_makes_what_it_lacks(flags, pictures, tmp_path, monkeypatch):
    """The command that is told where naive captions are missing makes the dataset that is told with it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "my pictures")

    def read(name: str):
        return read_dataset(find_dataset(name, culture="igbo"), culture="igbo", needs_blip=True, needs_negatives=True)

    with pytest.raises(DataError) as refused:
        read("my pictures")
    advice = re.search("Make them with `(.*)` and take the dataset '(.*)', or", str(refused.value))
    command, name = advice.groups()
    python, script, *argv = shlex.split(command)
    assert (python, script) == ("python", "prepare_ccub.py")
    given = {"culture": None, "images": None, "output": None, "num_negatives": 1, "num_captions": 1}
    prepare_ccub.main([*argv, *words(flags | given)])
    assert len(read(name)) == 6 and any(read(name).num_negatives)


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


def test_rerunning_changes_no_byte_and_loads_no_model(copy, flags, monkeypatch):
    """With unchanged input all stages, and each alone, leave every file as it is, without any model."""
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}

    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    for module, name in ((caption, "Captioner"), (negatives, "NegativeGenerator"), (negatives, "DepthEstimator")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr("scoft.prepare.filter.load_distance", fail)
    for stages in (",".join(prepare_ccub.STAGES), *prepare_ccub.STAGES):
        prepare(flags, output=copy, stages=stages)
        assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("flag", "value", "lacking"), [("seed", 1, "captions"), ("num_negatives", 3, "negatives")])
def test_writing_under_other_flags_overwrites_nothing(copy, flags, flag, value, lacking):
    """A dataset is not written without the captions and negatives that other flags made; the way out is named."""
    before = written(copy)
    with pytest.raises(DataError, match=f"have no {lacking} under these flags"):
        prepare(flags | {flag: value}, output=copy, stages="write")
    assert written(copy) == before


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


def test_nobody_else_looks_into_it_and_one_run_writes_into_it(made, flags, tmp_path, monkeypatch):
    """What holds photographs is private to the user; a second run of the culture is refused, before it does anything.
    An --output that was there keeps its owner's choice; the culture's folder in it is ours.
    """
    assert [folder.stat().st_mode & 0o777 for folder in (made, made / "korea")] == [0o700, 0o700]
    shared = tmp_path / "ccub"
    (shared / "korea").mkdir(parents=True, mode=0o755)
    shared.chmod(0o755)
    monkeypatch.setattr("scoft.files.PATIENCE", 0.1)
    monkeypatch.setattr("scoft.prepare.fetch.Fetch.run", None)
    with sole_writer(shared / "korea", flag="--output"):
        with pytest.raises(DataError, match="--output .*korea: another run is writing into it"):
            prepare(flags, output=shared)
    assert [folder.stat().st_mode & 0o777 for folder in (shared, shared / "korea")] == [0o755, 0o700]


def test_each_stage_runs_alone(made, flags, tmp_path):
    """Stage by stage the dataset is the one that all stages make at once."""
    for stage in prepare_ccub.STAGES:
        prepare(flags, output=tmp_path / "ccub", stages=stage)
    assert written(tmp_path / "ccub") == written(made)


class Killed(BaseException):
    """Like SIGKILL, nothing that the script does may catch it."""


def test_interrupted_at_any_write_it_ends_in_the_same_dataset(made, flags, tmp_path, monkeypatch):
    """Killed in the middle of random writes and rerun until done, it loses nothing and does nothing twice."""
    rng, left, kills = random.Random(0), 0, 0

    def fused(write, tear):
        def wrapper(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                tear(*args)
                raise Killed
            return write(*args, **kwargs)

        return wrapper

    def tear_file(path, content):
        path.with_name(f".{path.name}.1.1").write_bytes(content[: len(content) // 2])

    def tear_line(ledger, key):
        with open(ledger.path, "a") as file:
            file.write(f'\n{{"key": "{key}", "capt')

    for module in (photograph_room, fetch, clean, negatives, write, card):
        monkeypatch.setattr(module, "write_atomically", fused(module.write_atomically, tear_file))
    monkeypatch.setattr(Ledger, "add", fused(Ledger.add, tear_line))
    monkeypatch.setattr(write, "write_split", fused(write.write_split, lambda *_: None))
    while True:
        left = rng.randint(1, 45)
        try:
            prepare(flags, output=tmp_path / "ccub")
            break
        except Killed:
            kills += 1
    assert kills >= 4
    assert written(tmp_path / "ccub") == written(made)
    for name in ("captions", "negatives", "distances"):
        again, undisturbed = (Ledger(output / "korea" / f"{name}.jsonl") for output in (tmp_path / "ccub", made))
        assert again.read() == undisturbed.read()
        assert again.path.read_text().count("}\n") == len(again.read())  # a whole line for each key


def test_killed_by_the_system_and_rerun_it_ends_in_the_same_dataset(made, flags, tmp_path):
    """A process that gets SIGKILL while it draws leaves what the next one goes on from."""
    output, ledger = tmp_path / "ccub", tmp_path / "ccub" / "korea" / "negatives.jsonl"
    command = [sys.executable, ROOT / "prepare_ccub.py", *words(flags | {"output": output})]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (ledger.exists() and len(Ledger(ledger).read()) >= 2):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    drawn = Ledger(ledger).read()
    assert 2 <= len(drawn) < 6
    prepare(flags, output=output)
    assert written(output) == written(made)
    assert len(keys(ledger)) == len(set(keys(ledger))) == 6
    assert Ledger(ledger).read().items() >= drawn.items()


def test_a_domain_that_is_no_place(flags, tmp_path):
    """The paper's prosthetics: no prompt and no page from the photographs to the LoRA says "in Prosthetics"."""
    prompt = "a photo of a person with a prosthetic leg"
    more = {"culture": "prosthetics", "prompt_suffix": "", "output": tmp_path / "domain"}
    prepare(flags, **more, num_captions=1, num_negatives=1)
    ledger = Ledger(tmp_path / "domain" / "prosthetics" / "negatives.jsonl").read()
    captions = Ledger(tmp_path / "domain" / "prosthetics" / "captions.jsonl").read()
    prompts = {each for entry in ledger.values() for each in entry["prompts"].values()}
    assert len(ledger) == 6 and prompts <= {each for entry in captions.values() for each in entry["captions"]}
    train_scoft_lora.main(
        words(
            {
                "dataset": tmp_path / "domain",
                "culture": "prosthetics",
                "method": "finetune",
                "pretrained_model_name_or_path": flags["pretrained_model_name_or_path"],
                "resolution": 16,
                "rank": 2,
                "max_train_steps": 1,
                "num_validation_images": 1,
                "validation_inference_steps": 1,
                "validation_prompts": prompt,
                "report_to": "none",
                "cache_dir": tmp_path / "cache",
                "output_dir": tmp_path / "lora",
            }
        )
    )
    page = (tmp_path / "lora" / "README.md").read_text()
    assert f'pipe("{prompt}"' in page and "depict Prosthetics" in page
    template = tmp_path / "prompts.txt"
    template.write_text(f"{prompt}\n")
    assert read_prompts(template, "prosthetics", flag="--prompts") == [prompt]
    card = (tmp_path / "domain" / "README.md").read_text()
    assert "what the same model family makes of the scene. Made for" in card.replace("\n", " ")
    assert not re.search("in Prosthetics", page + card, re.I)


def test_two_processes_are_as_good_as_one(made, flags, tmp_path):
    """Launched as two processes that share the rows out, it writes the bytes that one writes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", str(ROOT / "prepare_ccub.py")]  # 0: any free one
    argv = words(flags | {"output": tmp_path / "ccub"})
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, *argv], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "ccub") == written(made)
    assert len(keys(tmp_path / "ccub" / "korea" / "captions.jsonl")) == 8


def test_the_trainer_learns_from_what_the_pocket_world_gives(tmp_path, monkeypatch):
    """From a people's pictures to a LoRA, offline: a dozen pictures, the pocket models, one update of --method mpc."""
    make_dataset.write_pictures("veridia", tmp_path / "pictures", rows={"train": 9, "test": 3})
    prepare_ccub.main(
        words(
            {"defaults": "pocket", "culture": "veridia"}
            | {"images": tmp_path / "pictures", "output": tmp_path / "ccub", "false_negative_threshold": 0.01}
            | {"num_captions": 3, "num_negatives": 2, "num_inference_steps": 4}
        )
    )
    source = find_dataset(str(tmp_path / "ccub"), culture="veridia")
    dataset = read_dataset(source, culture="veridia", needs_blip=True, needs_negatives=True, cache_dir=tmp_path / "a")
    assert len(dataset) == 9 and max(dataset.num_negatives) == 2
    assert all(len(texts) == 3 for texts in dataset.blip_captions)
    assert all(world.read_caption(text) for texts in dataset.blip_captions for text in texts)
    sketch = np.asarray(Image.open(next((tmp_path / "ccub/veridia/depth").iterdir())))
    assert sketch.min() == 0 and sketch.max() == 255
    train_scoft_lora.main(
        words(
            {
                "dataset": tmp_path / "ccub",
                "culture": "veridia",
                "method": "mpc",
                "pretrained_model_name_or_path": POCKET / "stable-diffusion",
                "perceptual_model_name_or_path": POCKET / "clip_conv",
                "resolution": 64,
                "rank": 4,
                "max_train_steps": 1,
                "perceptual_every": 1,
                "num_denoising_steps": 3,
                "num_validation_images": 0,
                "report_to": "none",
                "cache_dir": tmp_path / "b",
                "output_dir": tmp_path / "lora",
            }
        )
    )
    (update,) = map(json.loads, (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines())
    assert update["loss"] > 0 and (tmp_path / "lora" / LORA_FILE).exists()


# ---------------------------------------------------------------------------------------------------------------------
# Fetch
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """A fetcher for tests: the script's own, with little patience."""
    patient = functools.partial(Fetcher, host_delay=0, total_timeout=1.5, max_bytes=300_000)
    monkeypatch.setattr(prepare_ccub, "Fetcher", patient)


def write_sheet(path: Path, urls: list[str], *, country: str = "KOR") -> Path:
    rows = [f'{country},CITIES,"{url}","caption {i}",2023-01-01' for i, url in enumerate(urls)]
    path.write_text("\n".join(["country_code,category_code,url,caption,created_at", *rows]))
    return path


@pytest.mark.usefixtures("quick")
def test_every_way_in_which_a_link_goes_wrong_has_its_status(web, site, other, tmp_path):
    """Each hostile link of a sheet ends in its status, none ends the run, and nothing else is asked for; then again
    nothing is asked for twice.
    """

    def endless(handler):
        handler.wfile.write(HEAD + b"\r\n" + encoded(picture(0)))
        while True:
            handler.wfile.write(bytes(65536))

    good, large = encoded(picture(1)), encoded(picture(2, (200, 200)), quality=95)
    with_licence = {"Link": '<https://creativecommons.org/licenses/by/4.0/>; rel="license"'}
    site.pages = {
        "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /private"),
        "/good.jpg": (200, with_licence, good),
        "/moved.jpg": (301, {"Location": "/wrong.png"}, b""),
        "/wrong.png": (200, {"Content-Type": "text/html"}, encoded(picture(3), "WEBP")),
        "/busy.jpg": [(429, {"Retry-After": "0"}, b""), (200, {}, encoded(picture(4)))],
        "/very-busy.jpg": (429, {"Retry-After": "9999"}, b""),
        "/drip.jpg": drip(first=HEAD + b"\r\n" + good),
        "/endless.jpg": endless,
        "/inside.jpg": (302, {"Location": "http://10.0.0.1/photo.jpg"}, b""),
        "/next-door.jpg": (302, {"Location": other.url("/ok")}, b""),
        "/metadata.jpg": (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
        "/page.jpg": (200, {"Content-Type": "image/jpeg"}, b"<!doctype html><title>log in</title>"),
        "/bomb.png": (200, {}, png_of(20_000, 10_000)),
        "/truncated.jpg": (200, {}, large[: len(large) // 2]),
        "/icon.png": (200, {}, encoded(picture(5, (15, 40)), "PNG")),
        "/private/a.jpg": (200, {}, good),
        "/noai.jpg": (200, {"X-Robots-Tag": "noai"}, good),
        "/copy.png": (200, {}, encoded(picture(1, (80, 64)), "PNG")),
        "/denied.jpg": (200, {}, good),
        "/film.gif": (200, {}, encoded(picture(6), "GIF")),
    }
    web.names = {"rebind.example": ["127.0.0.1"], "busy.example": ["127.0.0.1"]}
    expected = {
        site.url("/good.jpg"): "ok",
        site.url("/moved.jpg"): "ok",
        site.url("/busy.jpg"): "ok",
        site.url("/gone.jpg"): "http_error",
        f"http://busy.example:{site.port}/very-busy.jpg": "http_error",
        site.url("/drip.jpg"): "timeout",
        site.url("/endless.jpg"): "too_large",
        site.url("/inside.jpg"): "blocked_address",
        site.url("/next-door.jpg"): "blocked_address",
        site.url("/metadata.jpg"): "blocked_address",
        other.url("/ok"): "blocked_address",
        f"http://rebind.example:{site.port}/good.jpg": "blocked_address",
        "http://rebind.example/good.jpg": "blocked_address",
        "file:///etc/passwd": "blocked_scheme",
        "ftp://example.org/a.jpg": "blocked_scheme",
        site.url("/page.jpg"): "not_an_image",
        site.url("/film.gif"): "not_an_image",
        site.url("/bomb.png"): "too_many_pixels",
        site.url("/truncated.jpg"): "corrupt",
        site.url("/icon.png"): "too_small",
        site.url("/private/a.jpg"): "robots",
        site.url("/noai.jpg"): "opted_out",
        site.url("/copy.png"): "duplicate",
        site.url("/denied.jpg"): "denied",
    }
    (tmp_path / "deny.txt").write_text(f"# asked to be left out\n{site.url('/denied.jpg')}\n\n")
    flags = {
        "culture": "korea",
        "links": write_sheet(tmp_path / "sheet.csv", [*expected, site.url("/good.jpg")]),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
        "deny_list": tmp_path / "deny.txt",
        "allow_host": [site.place, f"busy.example:{site.port}"],
    }
    prepare(flags)
    *photographs, repeated = read_photographs(tmp_path / "ccub" / "korea")
    assert {photograph.url: photograph.status for photograph in photographs} == expected
    assert (repeated.url, repeated.status) == (site.url("/good.jpg"), "duplicate")
    assert all(photograph.detail for photograph in [*photographs, repeated] if photograph.status != "ok")
    fetched = {path for path in site.pages if path not in ("/private/a.jpg", "/denied.jpg")} | {"/gone.jpg"}
    assert set(site.hits) == fetched
    assert not other.hits
    assert {port for _, port in web.dialled} == {site.port}

    good, moved = photographs[:2]
    assert good.license == "https://creativecommons.org/licenses/by/4.0/"
    assert moved.final_url == site.url("/wrong.png") and moved.file.endswith(".jpg")
    assert (good.width, good.height, good.category, good.caption) == (40, 32, "city", "caption 0")
    for photograph in photographs[:3]:
        content = (tmp_path / "ccub" / "korea" / photograph.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == photograph.sha256
    assert len(list((tmp_path / "ccub" / "korea" / "photographs").iterdir())) == 3

    hits, manifest = site.hits.copy(), (tmp_path / "ccub" / "korea" / "manifest.jsonl").read_bytes()
    for stages in ("fetch,clean", "fetch"):
        prepare(flags, stages=stages)
        assert site.hits == hits
        assert (tmp_path / "ccub" / "korea" / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.usefixtures("web", "quick")
def test_links_are_asked_again_if_they_failed_and_on_request_or_if_what_came_is_lost(site, tmp_path):
    """--retry_failed asks for what failed, and for nothing that came; bytes that are lost are fetched."""
    urls = [site.url("/ok.jpg"), site.url("/later.jpg")]
    site.pages |= {"/ok.jpg": (200, {}, encoded(picture(0)))}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    site.pages["/later.jpg"] = (200, {}, encoded(picture(1)))
    prepare(flags)
    assert statuses(tmp_path / "ccub" / "korea")[urls[1]] == "http_error"
    prepare(flags, retry_failed=True)
    assert set(statuses(tmp_path / "ccub" / "korea").values()) == {"ok"}
    assert (site.hits["/ok.jpg"], site.hits["/later.jpg"]) == (1, 2)
    first, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "ccub" / "korea" / "fetched" / first.id).unlink()
    prepare(flags)
    assert (site.hits["/ok.jpg"], site.hits["/later.jpg"]) == (2, 2)


@pytest.mark.usefixtures("web", "quick")
def test_a_fetch_that_is_cut_goes_on_behind_what_came(site, tmp_path, monkeypatch):
    """Cut in the middle of the links and rerun, no link that came is asked for again."""
    urls = [site.url(f"/{i}.jpg") for i in range(6)]
    site.pages |= {f"/{i}.jpg": (200, {}, encoded(picture(i))) for i in range(6)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    add, came = Ledger.add, []

    def add_three(ledger, key, **entry):
        if len(came) == 3:
            raise Killed
        came.append(key)
        add(ledger, key, **entry)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, "add", add_three)
        prepare(flags)
    prepare(flags)
    assert set(statuses(tmp_path / "ccub" / "korea").values()) == {"ok"}
    assert all(site.hits[f"/{i}.jpg"] == 1 for i in range(3)) and max(site.hits.values()) <= 2


@pytest.mark.usefixtures("web", "quick")
def test_the_sheet_may_be_a_url_and_is_by_default_ccubs(site, tmp_path, monkeypatch):
    """--links takes a URL, within the guard; without it the culture's tab of CCUB's sheet is asked for."""
    site.pages |= {"/a.jpg": (200, {}, encoded(picture(0)))}
    sheet = write_sheet(tmp_path / "sheet.csv", [site.url("/a.jpg")]).read_bytes()
    site.pages["/sheet"] = (200, {}, sheet)
    flags = {"culture": "korea", "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    with pytest.raises(DataError, match="--links .*/sheet.*blocked_address"):
        prepare(flags, links=site.url("/sheet"))
    assert not site.hits
    prepare(flags, links=site.url("/sheet"), allow_host=site.place)
    assert statuses(tmp_path / "ccub" / "korea") == {site.url("/a.jpg"): "ok"}

    tab = fetch.SHEET_TABS["korea"]
    assert fetch.SHEET.format(tab).endswith(f"format=csv&gid={tab}")
    site.pages[f"/tab-{tab}"] = (200, {}, sheet)
    monkeypatch.setattr(fetch, "SHEET", site.url("/tab-{}"))
    prepare(flags, allow_host=site.place)
    assert site.hits[f"/tab-{tab}"] == 1


@pytest.mark.usefixtures("web", "quick")
def test_the_archive_is_asked_on_request_alone(site, tmp_path, monkeypatch):
    """--archive looks for a link that is gone in the archive, and says where the photograph came from."""
    monkeypatch.setattr(fetch, "ARCHIVE", site.url("/archive/{}"))
    gone = site.url("/gone.jpg")
    site.pages |= {f"/archive/{gone}": (200, {}, encoded(picture(0)))}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", [gone]), "stages": "fetch"}
    flags |= {"allow_host": site.place}
    prepare(flags, output=tmp_path / "without")
    assert statuses(tmp_path / "without" / "korea") == {gone: "http_error"} and set(site.hits) == {
        "/robots.txt",
        "/gone.jpg",
    }
    prepare(flags, output=tmp_path / "with", archive=True)
    (photograph,) = read_photographs(tmp_path / "with" / "korea")
    assert (photograph.status, photograph.final_url) == ("ok", site.url(f"/archive/{gone}"))


@pytest.mark.usefixtures("web", "quick")
def test_what_is_denied_later_leaves_the_dataset(site, tmp_path):
    """What is put on the deny-list after the fetch is taken out, by its link or its sha256 as it came or is kept."""
    urls = [site.url(f"/{i}.png") for i in range(4)]
    site.pages |= {f"/{i}.png": (200, {}, encoded(picture(i), "PNG") + b"behind") for i in range(4)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    first, second, third, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "deny.txt").write_text(f"{first.url}\n{second.source_sha256}\n{third.sha256}\n")
    prepare(flags, deny_list=tmp_path / "deny.txt")
    for later in ({}, {"retry_failed": True}, {"stages": "clean"}):  # the list is not needed again
        assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied"] * 3 + ["ok"]
        assert len(list((tmp_path / "ccub" / "korea" / "photographs").iterdir())) == 1
        assert len(list((tmp_path / "ccub" / "korea" / "fetched").iterdir())) == 2  # with the ledger
        prepare(flags, **later)
    assert max(site.hits.values()) == 1


@pytest.mark.usefixtures("web", "quick")
def test_what_was_published_is_denied_though_it_is_encoded_otherwise_now(site, tmp_path):
    """The sha256 of a photograph as it was written before takes it out, also where flags have changed its file."""
    urls = [site.url(f"/{i}.jpg") for i in range(2)]
    site.pages |= {f"/{i}.jpg": (200, {}, encoded(picture(i))) for i in range(2)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    before, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "deny.txt").write_text(before.sha256)
    prepare(flags, deny_list=tmp_path / "deny.txt", jpeg_quality=80)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied", "ok"]
    prepare(flags)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied", "ok"]


# ---------------------------------------------------------------------------------------------------------------------
# Clean
# ---------------------------------------------------------------------------------------------------------------------

SECRET = b"37.5665N 126.9780E"


def secret_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    return exif


def srgb_profile(*, swapped: bool = False) -> bytes:
    """An sRGB profile; `swapped`, one whose red is sRGB's green and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        profile = profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    return profile


def behind_jfif(content: bytes, marker: bytes, data: bytes) -> bytes:
    """A JPEG with one more segment behind its first."""
    (length,) = struct.unpack(">H", content[4:6])
    return content[: 4 + length] + marker + struct.pack(">H", len(data) + 2) + data + content[4 + length :]


CLEAN = encoded(picture(0), quality=90)
THUMBNAIL = b"JFIF\0\1\1\0\0\1\0\1" + bytes([1, 6]) + SECRET


@pytest.mark.parametrize(
    "dirty",
    [
        encoded(picture(0), exif=secret_exif()),
        encoded(picture(0), comment=SECRET),
        encoded(picture(0), icc_profile=srgb_profile() + SECRET),
        encoded(picture(0), xmp=SECRET),
        CLEAN + SECRET,
        CLEAN + SECRET + b"\xff\xd9",
        CLEAN[:2] + behind_jfif(CLEAN, b"\xff\xe0", THUMBNAIL)[20:],
        behind_jfif(CLEAN, b"\xff\xed", b"Photoshop 3.0\0" + SECRET),
        encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)]) + SECRET,
        encoded(picture(0), "WEBP", exif=secret_exif(), xmp=SECRET, lossless=True),
        encoded(picture(0), "PNG", exif=secret_exif(), icc_profile=srgb_profile()) + SECRET,
    ],
    ids=["exif", "comment", "icc", "xmp", "behind", "behind with an end", "thumbnail", "iptc", "mpo", "webp", "png"],
)
def test_nothing_but_the_picture_is_left(dirty):
    """EXIF, GPS, XMP, profiles, comments, thumbnails, second pictures and what lies behind the end are gone."""
    assert SECRET in dirty
    clean = cleaned(dirty, min_size=16)
    assert SECRET not in clean.content
    with Image.open(io.BytesIO(clean.content)) as image:
        assert not image.getexif() and not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
        difference = np.asarray(image.convert("RGB"), int) - np.asarray(picture(0), int)
    assert np.abs(difference).mean() < 10  # another picture's is about 80
    assert clean.size == (40, 32) and clean.suffix == ("png" if dirty.startswith(b"\x89PNG") else "jpg")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def before_scan(*segments: bytes) -> bytes:
    at = CLEAN.index(b"\xff\xda")
    return CLEAN[:at] + b"".join(segments) + CLEAN[at:]


TABLE = (SECRET * 4)[:64]  # a quantisation table that no component uses


@pytest.mark.parametrize(
    "dirty",
    [
        CLEAN[:-2] + segment(0xDC, struct.pack(">H", 32) + SECRET) + CLEAN[-2:],
        CLEAN[:-2] + SECRET + CLEAN[-2:],
        CLEAN[:-2] + b"\xff" * 9 + b"\xd9",
        CLEAN[:2] + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") * 3 + CLEAN[20:],
        before_scan(*(segment(0xE0, SECRET[i : i + 9]) for i in range(0, len(SECRET), 9))),
        before_scan(*(segment(0xEE, SECRET[i : i + 9]) for i in range(0, len(SECRET), 9))),
        before_scan(segment(0xDB, b"\3" + TABLE)),
        before_scan(segment(0xDB, b"\0" + TABLE), CLEAN[CLEAN.index(b"\xff\xdb") :][:69]),  # of two the last holds
        before_scan(segment(0xC4, b"\x13" + bytes([0, 1, 2, 3, 4, 5, 6, 7, *[0] * 8]) + (SECRET * 2)[:28])),
    ],
    ids=["DNL", "before the end", "fill bytes", "three APP0", "APP0", "APP14", "spare DQT", "first DQT", "spare DHT"],
)  # fmt: skip
def test_no_byte_of_a_jpeg_is_taken_over(dirty):
    """Whatever else a JPEG holds, its clean copy is, byte for byte, that of the same pixels without it."""
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(dirty))), np.asarray(Image.open(io.BytesIO(CLEAN))))
    assert cleaned(dirty, min_size=16).content == cleaned(CLEAN, min_size=16).content


def test_the_tables_of_a_jpeg_are_not_taken_over():
    """A quantisation table says what it will where the coefficients are nought; the clean copy has its own."""
    grey, tables = Image.new("RGB", (40, 32), (128, 128, 128)), [list(TABLE), list(TABLE[::-1])]
    dirty = encoded(grey, qtables=tables)
    assert len(set(TABLE) & set(dirty)) == len(set(TABLE))
    assert cleaned(dirty, min_size=16).content == cleaned(encoded(grey), min_size=16).content


def test_texts_of_a_png_are_gone():
    """A PNG's text chunks are dropped, its pixels kept exactly."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", SECRET.decode())
    notes.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    dirty = encoded(picture(0), "PNG", pnginfo=notes)
    clean = cleaned(dirty, min_size=16).content
    assert SECRET in dirty and SECRET not in clean
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(clean))), np.asarray(picture(0)))


@pytest.mark.parametrize(
    "content", [CLEAN, encoded(picture(0), "PNG"), encoded(picture(0, (400, 300)), quality=80, progressive=True)]
)
def test_a_clean_copy_is_the_picture_and_always_the_same(content):
    """Clean copies of a file are equal byte for byte; encoded anew, a photograph changes by less than can be seen."""
    once = cleaned(content, min_size=16)
    assert cleaned(content, min_size=16) == once
    found, came = (np.asarray(Image.open(io.BytesIO(each)), float) for each in (once.content, content))
    assert np.square(found - came).mean() < 255**2 / 10**4.2  # 42 dB


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(file_format, orientation):
    """A photograph taken sideways or mirrored stands upright, and says nothing of it any more."""
    upright = picture(0)
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # what the camera did to it
    sensor = functools.reduce(Image.Image.transpose, turns.get(orientation, []), upright)
    found = cleaned(encoded(sensor, file_format, exif=secret_exif(orientation)), min_size=16)
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == found.size == upright.size and not image.getexif()
        assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(upright, int)).mean() < 10


def colour_of(content: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(cleaned(content, min_size=16).content)) as image:
        assert image.mode == "RGB"
        return image.getpixel((20, 20))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_colours_are_turned_into_srgb(file_format):
    """What a profile calls red comes out as that profile's red; without a profile, or with one of sRGB, as it is."""
    if file_format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    red = Image.new("RGB", (40, 40), (250, 10, 10))
    near = functools.partial(pytest.approx, abs=6)
    assert colour_of(encoded(red, file_format)) == near((250, 10, 10))
    assert colour_of(encoded(red, file_format, icc_profile=srgb_profile())) == near((250, 10, 10))
    assert colour_of(encoded(red, file_format, icc_profile=srgb_profile(swapped=True))) == near((10, 250, 10))
    assert colour_of(encoded(red, file_format, icc_profile=b"no profile")) == near((250, 10, 10))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0))), (255, 0, 0)),
        (encoded(Image.new("L", (40, 40), 99)), (99, 99, 99)),
        (encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "WEBP"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (40, 40)), "PNG", icc_profile=srgb_profile(swapped=True)), (255, 255, 255)),
        (encoded(Image.new("LA", (40, 40), (0, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("P", (40, 40)), "PNG", transparency=0), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((40, 40), 25_700, np.uint16)), "PNG"), (100, 100, 100)),
        (encoded(Image.new("1", (40, 40), 1), "PNG"), (255, 255, 255)),
    ],
    ids=["CMYK", "grey", "alpha", "alpha webp", "alpha and profile", "grey alpha", "palette", "16 bits", "1 bit"],
)  # fmt: skip
def test_every_kind_of_pixels_becomes_rgb_on_white(content, expected):
    """CMYK, grey, palettes, 16 bits and transparency come out as a viewer on white paper shows them."""
    assert colour_of(content) == pytest.approx(expected, abs=3)


def test_the_short_side_decides_what_is_too_small():
    """`min_size` is of the short side, and exact."""
    assert cleaned(encoded(picture(0, (64, 32))), min_size=32).size == (64, 32)
    with pytest.raises(UnusableImage) as found:
        cleaned(encoded(picture(0, (64, 31))), min_size=32)
    assert found.value.status == "too_small"


def test_versions_of_one_picture_are_found_across_splits_and_the_first_is_kept(tmp_path):
    """Rescaled, recompressed, brightened or cropped by a hundredth, a photograph is a duplicate, whatever its split;
    other photographs are not.
    """
    original = picture(0, (400, 300))
    versions = {
        "original.jpg": encoded(original),
        "same-pixels.png": encoded(Image.open(io.BytesIO(encoded(original))), "PNG"),
        "smaller.jpg": encoded(original.resize((133, 100))),
        "coarser.jpg": encoded(original, quality=20),
        "brighter.jpg": encoded(original.point(lambda value: min(255, value * 1.1))),
        "cropped.jpg": encoded(original.crop((4, 3, 396, 297))),
    }
    others = {f"other-{i}.jpg": encoded(picture(i, (400, 300))) for i in range(1, 13)}
    splits = {name: {"split": "test" if name == "original.jpg" else "train"} for name in [*versions, *others]}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", splits, versions | others),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
    }
    prepare(flags, min_size=64)
    found = {photograph.picture: photograph for photograph in read_photographs(tmp_path / "ccub" / "korea")}
    assert found["original.jpg"].split == "test"
    assert {name for name, photograph in found.items() if photograph.status == "ok"} == {"original.jpg", *others}
    for name in list(versions)[1:]:
        assert (found[name].status, found[name].detail) == ("duplicate", "of original.jpg")
    prepare(flags, min_size=64, near_duplicate_bits=-1)
    found = statuses(tmp_path / "ccub" / "korea")
    assert [name for name, status in found.items() if status == "duplicate"] == ["same-pixels.png"]


def test_a_photograph_is_a_duplicate_up_to_the_number_of_bits(tmp_path, monkeypatch):
    """--near_duplicate_bits itself counts as near; one bit more does not."""
    contents = {f"{i}.jpg": encoded(picture(i, (80 + i, 80))) for i in range(3)}
    monkeypatch.setattr(clean, "difference_hash", lambda image: {80: 0, 81: 0b1110, 82: 0b11110000}[image.width])
    flags = {"culture": "korea", "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    flags["images"] = write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents)
    prepare(flags, near_duplicate_bits=3)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["ok", "duplicate", "ok"]


def test_large_photographs_are_not_cleaned_side_by_side(tmp_path, monkeypatch):
    """The photographs in hand have no more pixels together than the largest that is allowed, and no bytes of those
    that are done are held until their turn comes; a file beyond all measure is not even read.
    """
    contents = {f"{i}.jpg": encoded(picture(i)) for i in range(12)} | {"12.jpg": encoded(picture(12)) + bytes(9000)}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
    }
    make_clean, lock, now, most, first = cleaned, threading.Lock(), 0, 0, threading.Event()

    def counted(content, **options):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        if content == contents["0.jpg"]:
            assert first.wait(20)
        time.sleep(0.02)
        result = make_clean(content, **options)
        with lock:
            now -= 1
        return result

    def written(path, content):
        write(path, content)
        if path.parent.name == "photographs" and len(list(path.parent.glob("*.jpg"))) == 11:
            first.set()

    write = clean.write_atomically
    monkeypatch.setattr(clean, "write_atomically", written)
    monkeypatch.setattr(clean, "cleaned", counted)
    monkeypatch.setattr(clean, "MAX_PIXELS", 2 * 40 * 32 + 1)
    monkeypatch.setattr(clean, "MAX_BYTES", 9000)
    prepare(flags)
    assert most == 2
    *rest, last = read_photographs(tmp_path / "ccub" / "korea")
    assert {photograph.status for photograph in rest} == {"ok"}
    assert last.status == "too_large" and "9000 are allowed" in last.detail


def test_own_pictures_come_in_more_formats_than_links(tmp_path):
    """All that the README names is cleaned from --images; what came from a link is JPEG, PNG or WEBP."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    contents = {f"{i}.{name.lower()}": encoded(picture(i), name) for i, name in enumerate(FORMATS)}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
    }
    prepare(flags)
    assert statuses(tmp_path / "ccub" / "korea") == dict.fromkeys(contents, "ok")
    (tmp_path / "fetched").mkdir()
    links = [Photograph(id=name[0], url="http://a/", caption="x", source_sha256="a") for name in contents]
    for content, link in zip(contents.values(), links):
        (tmp_path / "fetched" / link.id).write_bytes(content)
    stage = Clean(images=None, min_size=16, near_duplicate_bits=16, jpeg_quality=95, test_share=0.2, seed=0)
    stage.clean_photographs(links, tmp_path, fetcher=Fetcher(contact="curator@example.org"))
    assert [link.status for link in links] == ["ok"] * 3 + ["not_an_image"] * 5


def status_of(content: bytes) -> str:
    with pytest.raises(UnusableImage) as found:
        cleaned(content, min_size=16)
    return found.value.status


def test_size_is_judged_before_decoding():
    """Too many pixels and too narrow a picture are told by the header, also where Pillow itself warns or raises."""
    assert status_of(png_of(16, 200_000)) == "too_long"
    assert status_of(png_of(20_000, 10_000)) == "too_many_pixels"
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            assert status_of(png_of(10_000, 9_000)) == "too_many_pixels"


def test_damaged_photographs_are_corrupt():
    """A truncated or damaged file is corrupt, though its header is well."""
    large = encoded(picture(0, (200, 200)), quality=95)
    for content in (large[: len(large) // 2], large[:20], png_of(100, 100), encoded(picture(0), "WEBP")[:60]):
        assert status_of(content) == "corrupt"


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_animations_are_no_photographs(file_format):
    """What has several frames or pages is refused."""
    assert status_of(encoded(picture(0), file_format, save_all=True, append_images=[picture(1)])) == "not_an_image"


def test_postscript_never_reaches_ghostscript(tmp_path, monkeypatch):
    """Whatever its name says, an EPS is no photograph, and Ghostscript is not called for it."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for content in (encoded(picture(0), "EPS"), b"\xc5\xd0\xd3\xc6" + bytes(28) + encoded(picture(0), "EPS")):
        assert status_of(content) == "not_an_image"


# --- splits ---


def unsplit(count: int, *, categories: int = 2, first: int = 0) -> list[Photograph]:
    return [
        Photograph(id=f"photograph {i}", caption="", category=CATEGORIES[i % categories])
        for i in range(first, first + count)
    ]


def split_of(photographs: list[Photograph], **more) -> dict[str, str]:
    assign_splits(photographs, **{"test_share": 0.2, "seed": 0} | more)
    return {photograph.id: photograph.split for photograph in photographs}


def test_splits_are_stratified_and_a_function_of_ids_and_seed():
    """Of each category the share is test rows; the order of the rows does not matter, the seed does."""
    splits = split_of(unsplit(50))
    for c in range(2):
        assert Counter(list(splits.values())[c::2]) == {"train": 20, "test": 5}
    assert split_of(unsplit(50)[::-1]) == splits != split_of(unsplit(50), seed=1)
    assert set(split_of(unsplit(50), test_share=0).values()) == {"train"}


def test_rows_that_come_later_move_no_other_row():
    """After more rows have come, old rows are where they were, and the share holds over all."""
    photographs = unsplit(30)
    before = split_of(photographs)
    photographs += unsplit(30, first=30)
    after = split_of(photographs)
    assert after.items() >= before.items()
    assert Counter(after.values()) == {"train": 48, "test": 12}


def test_a_picture_that_is_replaced_stays_in_its_split_and_is_cleaned_anew():
    """Under the same name other bytes keep the split, and nothing of what was found out of the old ones."""
    old = Photograph(id="a", caption="", source_sha256="1", split="test", file="a.jpg", sha256="2", status="ok")
    for sha256, found_out in (("1", ("a.jpg", "2", "ok")), ("3", ("", "", "pending"))):
        (new,) = known_again([Photograph(id="a", caption="new", source_sha256=sha256)], [old])
        assert (new.split, new.caption) == ("test", "new")
        assert (new.file, new.sha256, new.status) == found_out


def test_splits_that_are_given_are_kept():
    """A row that came with its split stays in it, also if there are more test rows than the share."""
    photographs = unsplit(10, categories=1)
    for photograph in photographs[:4]:
        photograph.split = "test"
    splits = split_of(photographs)
    assert [splits[photograph.id] for photograph in photographs] == ["test"] * 4 + ["train"] * 6


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioner(tiny_blip):
    return Captioner(str(tiny_blip), device=torch.device("cpu"), dtype=torch.float32, cache_dir=None)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", True),
        ("house", True),
        ("a red red red house", True),
        ("a man and a man and a man and", True),
        ("a Red house and a red house", True),
        ("a red house", False),
        ("a house and another house", False),
        ("two men and two women in front of a red and a blue house", False),
    ],
)
def test_stuttering_is_degenerate(caption, expected):
    """A caption is degenerate if it is shorter than two words, says a word thrice in a row or three words twice."""
    assert is_degenerate(caption) is expected


def test_captions_are_different_and_a_function_of_picture_and_key(captioner):
    """K different captions, the same ones whatever was captioned or drawn before; another key says other ones."""
    first = captioner(picture(0), number=5, key="a")
    assert len(set(first)) == 5 and not any(map(is_degenerate, first))
    torch.manual_seed(1)
    other = captioner(picture(1), number=5, key="b")
    before = torch.random.get_rng_state()
    assert captioner(picture(0), number=5, key="a") == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert other != first != captioner(picture(0), number=5, key="c")


def test_degenerate_and_repeated_captions_are_drawn_again(captioner, monkeypatch):
    """What stutters or was said before is left out and drawn again, as often as ATTEMPTS allows."""
    draws = [
        ["house", "a red house", "a red house"],
        ["a red house", "a a a", "a blue house"],
        ["a roof", "x y"],
    ]
    said = iter(draws)
    monkeypatch.setattr(captioner.processor, "batch_decode", lambda *_, **__: next(said))
    assert captioner(picture(0), number=3, key="a") == ["a red house", "a blue house", "a roof"]
    said = iter([["a red house"] * 3] * 99)
    assert captioner(picture(0), number=3, key="a") == ["a red house"]
    assert len(list(said)) == 99 - caption.ATTEMPTS


def test_culture_words_are_counted_once_a_caption():
    """Captions that name a culture are counted, by the word, and longer words that hold one are not."""
    captions = ["a Chinese temple in china", "chinese food, chinese tea", "fine chinaware", "a korean-style house"]
    assert culture_mentions(captions) == {"chinese": 2, "china": 1, "korean": 1}


def test_the_card_counts_the_culture_words(made):
    """The tiny captioner says "korean" at random: the card tells how often, and the captions keep the word."""
    said = [text for entry in Ledger(made / "korea" / "captions.jsonl").read().values() for text in entry["captions"]]
    count = sum("korean" in text.split() for text in said)
    assert count and f'"korean" in {count} of {len(said)}' in (made / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Negatives
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (680, 512)),
        ((480, 640), (512, 680)),
        ((512, 512), (512, 512)),
        ((3000, 1000), (1024, 512)),
        ((100, 900), (512, 1024)),
        ((641, 640), (512, 512)),
    ],
)
def test_negatives_have_the_photographs_aspect(size, expected):
    """The short side is the resolution and the aspect the photograph's, at most 2 : 1, in multiples of 8."""
    assert size_of_negative(*size, short_side=512) == expected


@pytest.fixture
def generate(flags):
    args = prepare_ccub.parse_args(words(flags))
    stage = prepare_ccub.built(DrawNegatives, args)
    return NegativeGenerator(stage, device=torch.device("cpu"), dtype=torch.float32, cache_dir=None)


def test_any_negative_can_be_drawn_again_alone(generate):
    """A negative is its key's and its prompt's: alone it has the pixels that it has among others."""
    prompts = {"a": "a red house", "b": "a blue house", "c": "a blue house"}
    depth, pictures = generate(picture(0, (64, 32)), prompts)
    assert depth.size == (32, 16) and all(drawn.size == (32, 16) for drawn in pictures.values())
    for key, drawn in pictures.items():
        _, again = generate(picture(0, (64, 32)), {key: prompts[key]})
        assert np.abs(np.asarray(again[key], int) - np.asarray(drawn, int)).max() <= 1
    assert not np.array_equal(pictures["b"], pictures["c"])  # the noise is the key's


def test_the_depth_decides_what_is_drawn(generate):
    """Shown another depth, the ControlNet draws another picture of the same noise and prompt."""
    _, pictures = generate(picture(0), {"a": "a red house"})
    generate.depth = lambda photograph: Image.new("RGB", photograph.size)
    _, flat = generate(picture(0), {"a": "a red house"})
    assert np.abs(np.asarray(pictures["a"], int) - np.asarray(flat["a"], int)).mean() > 0.5


def test_the_depth_is_embedded_once_for_all_steps_and_nothing_else_changes(generate):
    """Each photograph's depth is embedded once, and the pictures are those of a ControlNet that does so each step."""
    controlnet, asked = generate.pipeline.controlnet, []
    once = controlnet.controlnet_cond_embedding
    once.embedding.register_forward_hook(lambda *_: asked.append(1))
    pictures = [generate(picture(seed), {"a": "a red house", "b": "a roof"})[1] for seed in (0, 1)]
    assert len(asked) == 2
    controlnet.controlnet_cond_embedding = once.embedding
    for seed, expected in enumerate(pictures):
        _, found = generate(picture(seed), {"a": "a red house", "b": "a roof"})
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert len(asked) == 2 + 2 * generate.draw.num_inference_steps


def test_what_the_safety_checker_blanks_is_drawn_again(generate, monkeypatch):
    """A blanked picture is drawn again from other noise; one that is always blanked is missing."""
    asked = []

    def check(image, device, dtype):
        asked.append(len(image))
        return image, [len(asked) == 1, True][-len(image) :]

    _, undisturbed = generate(picture(0), {"a": "a red house", "b": "a roof"})
    monkeypatch.setattr(generate.pipeline, "run_safety_checker", check)
    _, pictures = generate(picture(0), {"a": "a red house", "b": "a roof"})
    assert asked == [2, 2, 1, 1, 1] and len(asked) == caption.ATTEMPTS
    assert set(pictures) == {"a"} and not np.array_equal(pictures["a"], undisturbed["a"])


def test_blanked_negatives_are_left_out_and_recorded(copy, flags, made, monkeypatch):
    """The ledger tells which prompts were drawn for and which negatives are left; the dataset has these alone."""
    from diffusers import StableDiffusionControlNetPipeline

    def blank_the_last(self, image, device, dtype):
        return image, [False] * (len(image) - 1) + [True]

    monkeypatch.setattr(StableDiffusionControlNetPipeline, "run_safety_checker", blank_the_last)
    monkeypatch.setattr(negatives, "ATTEMPTS", 2)
    prepare(flags, output=copy, seed=1)
    entries = Ledger(copy / "korea" / "negatives.jsonl").read()
    new = [entry for key, entry in entries.items() if key not in Ledger(made / "korea" / "negatives.jsonl").read()]
    assert len(new) == 6
    assert all(len(entry["prompts"]) == 2 and entry["negatives"] == list(entry["prompts"])[:1] for entry in new)
    source = find_dataset(str(copy), culture="korea")
    dataset = read_dataset(
        source, culture="korea", needs_blip=True, needs_negatives=True, cache_dir=copy.parent / "cache"
    )
    assert dataset.num_negatives == [1] * 6


@pytest.mark.parametrize(
    ("flag", "stages"),
    [
        ("captioner", "fetch,clean,caption"),
        ("pretrained_model_name_or_path", "fetch,clean,negatives"),
        ("controlnet", "fetch,clean,negatives"),
        ("depth_model", "fetch,clean,negatives"),
        ("filter_model", "fetch,clean,filter"),
    ],
)
@pytest.mark.parametrize("wrong", ["absent/model", "folder/empty", "folder/no weights", "of another kind", "torn"])
def test_a_model_that_cannot_be_had_is_named_before_the_work(flag, stages, wrong, flags, tmp_path, hub, monkeypatch):
    """A model that is no folder of its kind, nor on the Hub, ends the run before its first stage, under its flag."""
    monkeypatch.setattr("scoft.prepare.fetch.Fetch.run", lambda *_, **__: pytest.fail("it went to work"))
    if wrong == "of another kind":
        wrong = flags["captioner" if flag != "captioner" else "depth_model"]
    elif wrong == "torn":
        wrong = shutil.copytree(flags[flag], tmp_path / "torn")
        for file in wrong.glob("*.json"):
            file.write_text('{"a')
    elif wrong.startswith("folder"):
        wrong = tmp_path / wrong
        wrong.mkdir(parents=True)
        if "weights" in wrong.name:
            for file in Path(flags[flag]).glob("*.json"):
                shutil.copy(file, wrong)
    with pytest.raises(DataError, match=f"^--{flag}[ :].*{wrong}"):
        prepare(flags | {flag: wrong}, output=tmp_path / "ccub", stages=stages)


def test_models_of_the_hub_pass_the_check(flags, tmp_path, hub, tiny_midas, monkeypatch):
    """A model on the Hub is found by its description there, and MiDaS, which has none, by its weights, anywhere."""
    reached = []
    monkeypatch.setattr("scoft.prepare.fetch.Fetch.run", lambda *_, **__: reached.append(1))
    monkeypatch.setattr("scoft.prepare.clean.Clean.run", lambda *_, **__: [])
    hub.add("model", "org/blip", {"config.json": (flags["captioner"] / "config.json").read_bytes()})
    prepare(flags | {"captioner": "org/blip"}, output=tmp_path / "ccub", stages="fetch,caption")
    prepare(flags | {"depth_model": tiny_midas}, output=tmp_path / "ccub", stages="fetch,negatives")
    hub.add("model", MIDAS, {MIDAS_FILE: b""})
    prepare(flags | {"depth_model": MIDAS}, output=tmp_path / "ccub", stages="fetch,negatives")
    assert len(reached) == 3


def test_a_model_of_a_stage_that_is_not_run_may_be_anything(copy, flags):
    """The stages that no model is needed for ask for none."""
    prepare(flags | dict.fromkeys(MODELS, "absent/model"), output=copy, stages="fetch,clean")


def test_prompts_are_the_captions_in_turn_with_the_suffix(flags):
    """Each negative has a naive caption with the culture, or with --prompt_suffix, which may be empty."""
    args = prepare_ccub.parse_args(words(flags | {"culture": "united_states"}))
    assert prepare_ccub.built(DrawNegatives, args).suffix("united_states") == "in the United States"
    plain = prepare_ccub.parse_args(words(flags | {"prompt_suffix": ""}))
    assert prepare_ccub.built(DrawNegatives, plain).suffix("korea") == ""
    drawing = Drawing(
        base_model="a", controlnet="b", depth_model="c", resolution=16, num_inference_steps=2, guidance_scale=7.5,
        precision="no", seed=0,
    )  # fmt: skip
    common = {"captions": ["a house", "a roof"], "number": 3, "drawing": drawing}
    photograph = Photograph(id="a", caption="", sha256="1")
    prompts = prompts_of_negatives(photograph, suffix="in the United States", **common)
    assert list(prompts.values()) == [f"a {thing} in the United States" for thing in ("house", "roof", "house")]
    plain = prompts_of_negatives(photograph, suffix="", **common)
    assert list(plain.values()) == ["a house", "a roof", "a house"]
    other = prompts_of_negatives(Photograph(id="a", caption="", sha256="2"), suffix="", **common)
    assert len({*prompts, *plain, *other}) == 9


def test_a_model_is_known_by_its_content(tiny_clip_conv, tmp_path):
    """A folder's key does not change with its place, and does with its content; a Hub id is its own."""
    moved = shutil.copytree(tiny_clip_conv, tmp_path / "moved")
    assert model_key(str(moved)) == model_key(str(tiny_clip_conv))
    (moved / "config.json").write_text("{}")
    assert model_key(str(moved)) != model_key(str(tiny_clip_conv))
    assert model_key("org/name") == "org/name"


# ---------------------------------------------------------------------------------------------------------------------
# Filter
# ---------------------------------------------------------------------------------------------------------------------


def test_negatives_nearer_than_the_threshold_are_dropped_and_recorded(copy, flags, monkeypatch):
    """Half of the negatives lie below the median: they leave the dataset, and stay in the manifest, struck through
    in the contact sheet and counted in the card. Nothing is drawn or measured anew.
    """
    distances = [d for entry in Ledger(copy / "korea" / "distances.jsonl").read().values() for d in entry["distances"]]
    threshold = sorted(distances)[6]
    false = sum(distance < threshold for distance in distances)
    assert len(distances) == 12 and 0 < false < 12
    monkeypatch.setattr("scoft.prepare.filter.load_distance", None)
    prepare(flags, output=copy, stages="filter,write", false_negative_threshold=threshold)
    rows = rows_of(copy / "korea")
    photographs = {photograph.sha256: photograph for photograph in read_photographs(copy / "korea")}
    assert sum(len(row["negatives"]) for row in rows) == 12 - false
    for row in rows:
        found = photographs[row["sha256"]].negatives
        assert len(found) == 2 and len(row["negatives"]) == sum(distance >= threshold for distance in found.values())
        assert all((copy / "korea" / "negatives" / f"{name}.jpg").exists() for name in found)
    assert f"| too near the photograph, left out | {false} |" in (copy / "README.md").read_text()
    with Image.open(copy / "korea" / "contact_sheet-1.png") as sheet:
        assert ((255, 0, 0) == np.asarray(sheet)).all(-1).any()
    assert (copy / "korea" / "histogram.png").exists()


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


def test_defaults_of_a_world_are_weaker_than_flags_and_only_shipped_ones_hold(tmp_path, monkeypatch, capsys):
    """--defaults pocket fills in what is not said; another distance brings its own model and threshold."""
    argv = ["--culture", "veridia", "--images", str(tmp_path), "--defaults", "pocket"]
    args = prepare_ccub.parse_args([*argv, "--resolution", "32"])
    assert (args.resolution, args.min_size, args.filter_model) == (32, 64, str(POCKET / "clip_conv"))
    other = prepare_ccub.parse_args([*argv, "--filter_distance", "dreamsim"])
    assert other.filter_model is None and prepare_ccub.built(Filter, other, options={}).threshold == 0.3
    (tmp_path / "mine" / "ccub").mkdir(parents=True)
    (tmp_path / "mine" / "defaults.yaml").write_text("prepare: {captioner: evil}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        prepare_ccub.parse_args([*argv[:-1], "mine"])
    assert "--defaults: invalid choice: 'mine'" in capsys.readouterr().err


def test_a_threshold_without_a_default_is_asked_for(flags, capsys):
    """Only dreamsim has a default threshold; with another distance its flag is asked for by name."""
    args = prepare_ccub.parse_args(["--culture", "korea"])
    assert prepare_ccub.built(Filter, args, options={}).threshold == 0.3
    with pytest.raises(SystemExit):
        prepare_ccub.parse_args(words(flags | {"false_negative_threshold": None}))
    assert "--filter_distance clip_conv needs a --false_negative_threshold" in capsys.readouterr().err
    prepare_ccub.parse_args(words(flags | {"false_negative_threshold": None, "stages": "fetch,clean"}))


def test_checking_the_arguments_leaves_them_as_they_are(flags):
    """What a flag says is what was given: defaults that hang on other flags are told where they are used."""
    args = prepare_ccub.parse_args(["--culture", "korea"])
    assert args.false_negative_threshold is None and args.prompt_suffix == "in {}"


# ---------------------------------------------------------------------------------------------------------------------
# Write
# ---------------------------------------------------------------------------------------------------------------------


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


def test_cultures_share_an_output_and_have_a_config_each(copy, flags, pictures, tmp_path):
    """A second culture is added to the card, and each loads by its name with `datasets.load_dataset`."""
    prepare(flags, output=copy, culture="new-zealand", stages="fetch,clean,write")
    for culture, captions in (("korea", 3), ("new-zealand", 0)):
        rows = datasets.load_dataset(str(copy), culture, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == 6 and {len(texts) for texts in rows["blip_text"]} == {captions}
    assert datasets.get_dataset_config_names(str(copy)) == ["korea", "new-zealand"]
    assert "| train rows | 6 | 6 |" in (copy / "README.md").read_text()


@pytest.fixture
def alice(hub, monkeypatch):
    """The Hub, with alice logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../../x"}, "what names a file is 1 to 64"),
        ({"file": "../../secret.jpg"}, "'../../secret.jpg' is no file of photograph "),
        ({"negatives": {"../../../x": 0.1}}, "what names a file"),
        ({"width": "wide"}, "line 2 .*width: Input should be a valid integer.*--stages fetch"),
        ("[]", "line 2 .*Input should be"),
        ("{torn", "line 2 .*Invalid JSON"),
    ],
)
def test_a_manifest_that_somebody_changed_is_named(copy, flags, change, message):
    """The names in a manifest lead nowhere else, neither for what is read nor for what the deny-list deletes."""
    file = copy / "korea" / "manifest.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change) if isinstance(change, dict) else change
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"manifest.jsonl.* {message}"):
        prepare(flags, output=copy, stages="write")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("captions", {"captions": "a dog"}, "captions: Input should be a valid list"),
        ("captions", {"captions": [7]}, "captions: 0: Input should be a valid string"),
        ("negatives", {"negatives": ["../../../secret"]}, "a negative's name is 1 to 64 letters"),
        ("negatives", None, "negatives: Field required"),
        ("distances", {"distances": {"a": 1}}, "distances: Input should be a valid list"),
        ("distances", {"distances": [0.5]}, "has 1 distances for 2 negatives"),
        ("distances", None, "distances: Field required"),
    ],
)
def test_a_ledger_that_somebody_changed_is_named(copy, flags, name, change, message):
    """What the stages have written down is read by its type, before the work; no name in it leads elsewhere."""
    file = copy / "korea" / f"{name}.jsonl"
    (copy.parent / "secret.jpg").write_bytes(encoded(picture(0)))
    key, entry = next(iter(Ledger(file).read().items()))
    with file.open("a") as ledger:
        ledger.write("\n" + json.dumps({"key": key} if change is None else entry | change) + "\n")
    before = written(copy)
    with pytest.raises(DataError, match=rf"{name}.jsonl, the entry of '{key}'.* {message}.*Remove that line"):
        prepare(flags, output=copy, stages="write")
    assert written(copy) == before


@pytest.mark.parametrize("entry", [{}, {"status": "ok", "detail": 7, "source_sha256": ""}])
def test_a_ledger_of_fetches_that_somebody_changed_is_named(entry, tmp_path):
    """Also one whose entry lacks what the manifest takes over; what is beyond that is left out."""
    ledger = Ledger(tmp_path / "fetches.jsonl")
    options = {"fetcher": None, "archive": False, "retry_failed": False}
    ledger.add("aa", status="denied", detail="", source_sha256="", spare=1)
    links = [Photograph(id="aa", url="http://a/", caption="x")]
    assert fetch_links(links, tmp_path, **options)[0].status == "denied"
    ledger.add("aa", **entry)
    with pytest.raises(DataError, match="fetches.jsonl, the entry of 'aa', is not as it was written: .*Remove that"):
        fetch_links(links, tmp_path, **options)


def test_nothing_is_written_through_a_link(made, copy, flags, tmp_path):
    """Whatever link lies where a file of the dataset will be, or went through on its way there, gives way to it."""
    (tmp_path / "mine").write_text("mine")
    names = ["train-00000-of-00001.parquet", "histogram.png"]
    for name in (*names, *(f"{name}.partial" for name in names), *(f".{name}" for name in names)):
        (copy / "korea" / name).unlink(missing_ok=True)
        (copy / "korea" / name).symlink_to(tmp_path / "mine")
    prepare(flags, output=copy, stages="write")
    assert (tmp_path / "mine").read_text() == "mine"
    for name in names:
        assert (copy / "korea" / name).read_bytes() == (made / "korea" / name).read_bytes()


@pytest.mark.parametrize("stage", ["caption", "filter", "write"])
def test_a_kept_file_that_cannot_be_used_is_named(copy, flags, stage, tmp_path):
    """Damaged since, or a link that leads out of the folder, which nothing follows."""
    folder = copy / "korea"
    (folder / {"caption": "captions.jsonl"}.get(stage, "distances.jsonl")).unlink()
    file = next((folder / ("photographs" if stage == "caption" else "negatives")).iterdir())
    if stage == "write":
        prepare(flags, output=copy, stages="filter")
    else:
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(DataError, match=f"{file} cannot be read: is not an image, or a damaged one"):
            prepare(flags, output=copy, stages=stage)
    file.unlink()
    (tmp_path / "secret.jpg").write_bytes(encoded(picture(0)))
    file.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=f"{file} cannot be read: lies outside of {folder}"):
        prepare(flags, output=copy, stages=stage)


def test_metadata_outside_of_the_folder_is_named(tmp_path):
    folder = write_images(tmp_path / "pictures", {}, {})
    (folder / "metadata.jsonl").unlink()
    (tmp_path / "secret.csv").write_text("file_name,text\n")
    (folder / "metadata.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(DataError, match=f"{folder}/metadata.csv cannot be read: lies outside of"):
        read_pictures(folder)


def test_a_picture_outside_of_the_folder_is_not_read(copy, flags, tmp_path):
    """Not even if the manifest says so."""
    file = copy / "korea" / "manifest.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"picture": "../secret.jpg"})
    file.write_text("\n".join(lines))
    secret = flags["images"].parent / "secret.jpg"
    secret.write_bytes(encoded(picture(0)))
    prepare(flags, output=copy, stages="clean")
    secret.unlink()
    first = read_photographs(copy / "korea")[0]
    assert first.status == "corrupt" and "lies outside of" in first.detail


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


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--culture", "igbo"], "CCUB's links are publicly known for korea and china alone; give --links"),
        (["--culture", "korea", "--stages", "fetch,wash"], "there is no stage 'wash'; there are fetch, clean"),
        (["--culture", "a/b"], "letters, digits, - and _"),
        (["--culture", "korea", "--images", "no/such/place"], "--images no/such/place: there is no such place"),
        (["--culture", "korea", "--resolution", "100"], "--resolution is a multiple of 8, got 100"),
        (["--culture", "korea", "--num_negatives", "0"], "--num_negatives is at least 1, got 0"),
        (["--culture", "korea", "--jpeg_quality", "0"], "--jpeg_quality is a number from 1 to 100, got 0"),
        (["--culture", "korea", "--test_share", "1"], "--test_share is a number from 0 up and below 1, got 1"),
        (["--culture", "korea", "--public"], "--public needs --links_only"),
        (["--culture", "korea", "--push_to_hub", "--stages", "fetch"], "--push_to_hub belongs to the stage write"),
        (["--culture", "korea", "--links", "a", "--images", "b"], "not allowed with argument"),
        (["--culture", "korea", "--language", "en", "Korean"], "is a code such as en, ko or zh-Hant, got 'Korean'"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_meant_are_refused(argv, message, capsys):
    """The message names the flag, what it got and what is allowed."""
    with pytest.raises(SystemExit):
        prepare_ccub.main(argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["about", "deny_list"])
@pytest.mark.parametrize("content", [None, b"\xff\xfea\0"])
def test_a_text_that_cannot_be_read_is_named_before_the_work(flag, content, flags, tmp_path, monkeypatch):
    """A folder, and what is not UTF-8, end the run before it begins."""
    monkeypatch.setattr(prepare_ccub, "start_run", None)
    file = tmp_path / "file"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=f"--{flag} {file} cannot be read .*a text file in UTF-8"):
        prepare(flags | {flag: file, "output": tmp_path / "ccub"})


def test_a_deny_list_may_begin_with_a_mark(tmp_path):
    """A spreadsheet's or an editor's byte order mark is no part of the first entry."""
    (tmp_path / "deny.txt").write_bytes(b"\xef\xbb\xbfexample.org\r\nexample.com")
    assert read_deny_list(tmp_path / "deny.txt") == ["example.org", "example.com"]


def test_an_output_that_is_a_file_is_named(flags, tmp_path):
    (tmp_path / "ccub").touch()
    with pytest.raises(DataError, match="--output .*ccub/korea cannot be made .*Choose another"):
        prepare(flags, output=tmp_path / "ccub")


SHEET_HEAD = "country_code,category_code,url,caption,created_at\n"


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        (b"country_code,link,caption\nKOR,http://a/,b", r"sheet: no column url; it has country_code, link, caption"),
        (b"", "sheet: no column url and no column caption; it has none"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,b,\nJPN,FOOD,http://a/,b,", "row 3: country_code 'JPN' is none of KOR, CHN"),
        (SHEET_HEAD + "KOR,EATING,http://a/,b,", r"row 2: category 'EATING' is none of FOOD \(food & drink\)"),
        ((SHEET_HEAD + "KOR,FOOD,http://a/,\ub098,").encode("cp949"), "line 2 is not UTF-8 .*; save the table"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,,", "sheet: no row has a caption: sheet, row 2: caption is ''"),
        (SHEET_HEAD + "KOR,FOOD,,b,", "row 2: the url is blank"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,rice, with beans,2023", "row 2: more cells than columns; put double quotes"),
        (SHEET_HEAD + 'KOR,FOOD,http://a/,"' + "x" * 200_000, "line .* is not CSV .*field larger"),
        (SHEET_HEAD + "CHN,FOOD,http://a/,b,", "no row is of --culture korea"),
        (SHEET_HEAD, "no row is of --culture korea"),
    ],
)  # fmt: skip
def test_a_sheet_that_cannot_be_read_is_told_where(sheet, message):
    """What is wrong with a sheet is named with its row, and how to go on."""
    with pytest.raises(DataError, match=message):
        read_links(sheet.encode() if isinstance(sheet, str) else sheet, culture="korea", source="sheet")


def test_a_sheet_is_read_as_spreadsheets_write_it(caplog):
    """A byte-order mark, line breaks in cells, blank rows, other countries' rows and repeated links do no harm."""
    sheet = (
        "\ufeff"
        + SHEET_HEAD
        + 'KOR,FOOD,http://a/," rice\ncake ",\r\n,,,,\nCHN,FOOD,http://b/,b,\nkor,,http://a/,c,\n'
    )
    with caplog.at_level("INFO", logger="scoft"):
        first, again = read_links(sheet.encode(), culture="korea", source="sheet")
    assert (first.url, first.caption, first.category, first.status) == (
        "http://a/",
        "rice\ncake",
        "food & drink",
        "pending",
    )
    assert (again.status, again.category) == ("duplicate", None) and again.id != first.id
    assert "1 rows of CHN are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        (None, "", "--images .*: there is no metadata.jsonl or metadata.csv; write one"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x"}\n{broken', "metadata.jsonl, line 2 is not JSON"),
        ("metadata.jsonl", '["a.jpg"]', "metadata.jsonl, line 1 is not a JSON object"),
        ("metadata.jsonl", '{"file_name": "a.jpg"}', "no row has a caption: .*line 1: text is None"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": ["x"]}', r"line 1: text is \['x'\]"),
        ("metadata.jsonl", '{"file_name": 7, "text": "x"}', "line 1: file_name is a text that is not blank, got 7"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "collector": "Kim M"}', "collector .* got 'Kim M'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "collector": ["a"]}', "collector is an opaque id"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "period": "old"}', "traditional or modern, got 'old'"),
        ("metadata.jsonl", '{"file_name": "b.jpg", "text": "x"}', "line 1: there is no file 'b.jpg'"),
        ("metadata.jsonl", '{"file_name": "../secret.jpg", "text": "x"}', r"there is no file '\.\./secret.jpg'"),
        ("metadata.jsonl", '{"file_name": "link.jpg", "text": "x"}', "line 1: there is no file 'link.jpg'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "split": "dev"}', "split is train or test, got 'dev'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "category": "pets"}', "category 'pets' is none of"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "source_url": "http://me:pass@a/"}',
         "line 1: source_url holds a user name or password"),
        ("metadata.jsonl", '{"text": ' + "[" * 100_000, "metadata.jsonl, line 1 is not JSON"),
        ("metadata.jsonl", '{"file_name": "a\\u0000.jpg", "text": "x"}', r"there is no file 'a\\x00.jpg'"),
        ("metadata.jsonl", '{"file_name": "pipe", "text": "x"}', "there is no file 'pipe'.*is not a regular file"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x\\ud800"}', r"no row has a caption: .*'\\ud800' in x"),
        ("metadata.jsonl", "\n", "--images .*: the metadata has no rows"),
        ("metadata.jsonl", b"\xff\xfe", "metadata.jsonl is not UTF-8"),
        ("metadata.csv", "name,text\na.jpg,x", "metadata.csv: no column file_name; it has name, text"),
        ("metadata.csv", "file_name,text\na.jpg,rice, beans", "metadata.csv, row 2: more cells than columns"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_is_told_where(name, metadata, message, tmp_path):
    """What is wrong with a folder of pictures is named with its line; no file outside of it is read."""
    folder = write_images(tmp_path / "pictures", {}, {"a.jpg": encoded(picture(0))})
    (tmp_path / "secret.jpg").write_bytes(encoded(picture(1)))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "metadata.jsonl").unlink()
    if name:
        (folder / name).write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch"}
    with pytest.raises(DataError, match=message):
        prepare(flags)


def test_a_row_without_a_caption_is_named_and_left_out(tmp_path, caplog):
    """A blank caption costs its row alone: it is logged by name, kept in the manifest and counted on the card, and a
    later row of the same picture counts.
    """
    contents = {f"{i}.jpg": encoded(picture(i)) for i in range(3)}
    folder = write_images(
        tmp_path / "pictures", {"0.jpg": {"text": " "}, "1.jpg": {}, "2.jpg": {"text": None}}, contents
    )
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "0.jpg", "text": "now with a caption"}')
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "min_size": 16}
    prepare(flags, stages="fetch,clean,write")
    found = read_photographs(tmp_path / "ccub" / "korea")
    assert [photograph.status for photograph in found] == ["no_caption", "ok", "no_caption", "ok"]
    assert found[0].detail == "text is ' '" and len({photograph.id for photograph in found}) == 4
    (message,) = [record.getMessage() for record in caplog.records if "no caption" in record.getMessage()]
    assert "2 of 4 rows" in message and "line 1" in message and "line 3" in message
    assert "| no\\_caption | 2 |" in (tmp_path / "ccub" / "README.md").read_text()

    sheet = (SHEET_HEAD + "KOR,FOOD,http://a/,,\nKOR,FOOD,http://b/,b,\n").encode()
    first, second = read_links(sheet, culture="korea", source="sheet")
    assert (first.status, first.detail, second.status) == ("no_caption", "caption is ''", "pending")


def test_captions_that_clip_does_not_read_are_named(caplog):
    """A sheet with captions in another script is read, and a warning counts and names its rows."""
    read_links((SHEET_HEAD + "KOR,,http://a/,궁,\nKOR,,http://b/,b,\n").encode(), culture="korea", source="sheet")
    assert "1 of 2 captions" in caplog.text and "sheet, row 2: '궁'" in caplog.text


def test_who_chose_and_from_when_is_kept_and_counted(tmp_path):
    """`collector` and `period` go from the input through the manifest into the dataset and, counted, onto the card."""
    rows = {f"{i}.jpg": {"collector": f"c{i % 2}", "period": "modern" if i < 3 else "Traditional"} for i in range(5)}
    rows |= {"5.jpg": {"collector": 7}, "6.jpg": {}}
    contents = {name: encoded(picture(i)) for i, name in enumerate(rows)}
    flags = {"culture": "korea", "output": tmp_path / "ccub", "min_size": 16, "stages": "fetch,clean,write"}
    prepare(flags, images=write_images(tmp_path / "pictures", rows, contents), test_share=0)
    photographs = {photograph.picture: photograph for photograph in read_photographs(tmp_path / "ccub" / "korea")}
    assert (photographs["4.jpg"].collector, photographs["4.jpg"].period) == ("c0", "traditional")
    found = rows_of(tmp_path / "ccub" / "korea")
    assert found["collector"][:] == ["c0", "c1", "c0", "c1", "c0", "7", None]
    assert found["period"][:] == ["modern"] * 3 + ["traditional"] * 2 + [None] * 2
    card = (tmp_path / "ccub" / "README.md").read_text()
    assert "| collectors | 3 |\n| pictures of a collector | 1 to 3; 1 of nobody named |\n" in card
    assert "| traditional, modern | 40 %, 60 % of 5 |\n" in card

    prepare(flags, culture="peru", images=write_images(tmp_path / "others", {"0.jpg": {}}, contents), test_share=0)
    card = (tmp_path / "ccub" / "README.md").read_text()
    assert (
        "| collectors | 3 | not told |\n" in card and "| traditional, modern | 40 %, 60 % of 5 | not told |\n" in card
    )

    sheet = b"url,caption,collector,period\nhttp://a/,b,c-1,modern\n"
    (photograph,) = read_links(sheet, culture="korea", source="sheet")
    assert (photograph.collector, photograph.period) == ("c-1", "modern")


def test_a_folder_with_a_csv_is_read_as_one_with_jsonl(tmp_path):
    """metadata.csv says what metadata.jsonl says: category, split, source and licence."""
    folder = write_images(tmp_path / "pictures", {}, {"a.jpg": encoded(picture(0))})
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(
        "file_name,text,category,split,source_url,license\n"
        'a.jpg,"rice, beans",FOOD,test,https://example.org/a,CC0-1.0\n'
    )
    prepare(
        {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    )
    (photograph,) = read_photographs(tmp_path / "ccub" / "korea")
    assert (photograph.caption, photograph.category, photograph.split) == ("rice, beans", "food & drink", "test")
    assert (photograph.url, photograph.license, photograph.status) == ("https://example.org/a", "CC0-1.0", "ok")


def test_a_culture_without_a_usable_picture_is_named(tmp_path, caplog):
    """With 0 usable pictures the run ends with the culture, the place of the reasons, and the count of each."""
    contents = {f"{i}.jpg": encoded(picture(i, (20, 20))) for i in range(2)} | {"2.jpg": b"<html>"}
    folder = write_images(tmp_path / "pictures", {name: {"category": "city"} for name in contents}, contents)
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch,clean"}
    with (
        caplog.at_level("INFO", logger="scoft"),
        pytest.raises(DataError, match="--culture korea: no .*manifest.jsonl"),
    ):
        prepare(flags)
    assert "city: 2 too_small" in caplog.text and "city: 1 not_an_image" in caplog.text


def test_stages_out_of_turn_are_told_what_is_missing(copy, flags, tmp_path, caplog):
    """A stage that finds nothing to work on says which stage is to come first."""
    with pytest.raises(DataError, match="has no line: run the stages fetch and clean first"):
        prepare(flags, output=tmp_path / "empty", stages="caption")
    with pytest.raises(DataError, match="--stages clean: these photographs come from --images; give the folder again"):
        prepare(flags, output=copy, images=None, stages="clean")
    (copy / "korea" / "distances.jsonl").unlink()
    with pytest.raises(DataError, match="6 photographs have negatives that were not measured; add --stages filter"):
        prepare(flags, output=copy, stages="write")
    prepare(flags, output=copy, num_captions=2, stages="negatives")
    assert "6 photographs have no naive caption under these settings" in caplog.text


@pytest.mark.parametrize(("flag", "value"), [("allow_host", "http://a"), ("contact", "\n"), ("deny_list", "a b")])
def test_entries_that_the_fetcher_refuses_are_named(flag, value, flags, tmp_path):
    """A host, contact or deny-list entry that could never work ends the run before anything is asked for."""
    if flag == "deny_list":
        (tmp_path / "deny.txt").write_text(value)
        value = tmp_path / "deny.txt"
    with pytest.raises(DataError, match=f"^{flag} "):
        prepare(flags | {"output": tmp_path / "ccub", flag: value})


def test_a_ledger_survives_torn_lines(tmp_path):
    """A line that was cut is as if it had not been written, and the next is whole; of a key the last line holds."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.read() == {}
    ledger.add("a", value=1)
    ledger.add("b", value="\u2028궁")
    with open(ledger.path, "ab") as file:
        file.write('{"key": "c", "value": "궁'.encode()[:-1])
    ledger.add("a", value=2)
    assert ledger.read() == {"a": {"key": "a", "value": 2}, "b": {"key": "b", "value": "\u2028궁"}}


# ---------------------------------------------------------------------------------------------------------------------
# The packages that are used by default
# ---------------------------------------------------------------------------------------------------------------------


def test_midas_estimates_depth_by_controlnet_aux(tiny_midas):
    """controlnet_aux's own MidasDetector, on random weights: a depth of the photograph's size over the full range."""
    estimate = DepthEstimator(str(tiny_midas), device="cpu", cache_dir=None)
    assert type(estimate.model).__name__ == "MidasDetector"
    depth = estimate(picture(0, (80, 64)))
    assert depth.size == (80, 64) and depth.mode == "RGB"
    assert np.ptp(np.asarray(depth)) > 128


def test_midas_is_what_is_used_by_default(monkeypatch):
    """The default depth model is MiDaS, under the names that controlnet_aux asks the Hub for."""
    from controlnet_aux import MidasDetector

    asked = []
    monkeypatch.setattr(
        "controlnet_aux.midas.hf_hub_download", lambda repo_id, filename, **_: asked.append((repo_id, filename))
    )
    monkeypatch.setattr("controlnet_aux.midas.MiDaSInference", lambda **_: torch.nn.Identity())
    args = prepare_ccub.parse_args(["--culture", "korea"])
    estimate = DepthEstimator(args.depth_model, device="cpu", cache_dir=None)
    assert isinstance(estimate.model, MidasDetector)
    assert asked == [(MIDAS, MIDAS_FILE)]


def test_dreamsim_filters_by_its_own_package(copy, flags, tiny_dreamsim):
    """The stage filter measures with dreamsim's own PerceptualModel; the distances come from it."""
    prepare(
        flags,
        output=copy,
        stages="filter,write",
        filter_distance="dreamsim",
        filter_model=tiny_dreamsim,
        dreamsim_type="open_clip_vitb32",
    )
    options = {"model_name_or_path": str(tiny_dreamsim), "dreamsim_type": "open_clip_vitb32"}
    distance = load_distance("dreamsim", device="cpu", **options)
    photograph = next(p for p in read_photographs(copy / "korea") if p.negatives)
    with Image.open(copy / "korea" / photograph.file) as image:
        image = image.convert("RGB")
    negatives = [
        Image.open(copy / "korea" / "negatives" / f"{name}.jpg").convert("RGB") for name in photograph.negatives
    ]
    expected = distances_to(image, negatives, distance=distance)
    assert list(photograph.negatives.values()) == pytest.approx(expected, abs=2e-4)
