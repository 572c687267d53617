"""prepare_ccub.py: its true command line on loopback servers, hostile bytes and tiny real models."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_ccub
import train_scoft_lora
from pocket import make_dataset, world
from preparing import MODELS, Killed, encoded, keys, picture, prepare, words, written
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.evaluate.prompts import read_prompts
from scoft.files import Ledger, sole_writer
from scoft.lora_folder import LORA_FILE
from scoft.prepare import caption, card, clean, fetch, negatives, write
from scoft.prepare import photograph as photograph_room
from scoft.prepare.filter import Filter
from scoft.prepare.negatives import MIDAS_FILE
from scoft.prepare.tables import MIDAS
from scoft.train import tables


ROOT = Path(prepare_ccub.__file__).parent
POCKET = ROOT / "pocket" / "models"

pytestmark = pytest.mark.usefixtures("threads_given_back")


def test_the_trainers_advice_makes_what_it_lacks(flags, pictures, tmp_path, monkeypatch):
    """The command that is told where naive captions are missing makes the dataset that is told with it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "my pictures")

    def read(name: str):
        needs = {"needs_blip": True, "needs_negatives": True, "remedies": tables.REMEDIES}
        return read_dataset(find_dataset(name, culture="igbo"), culture="igbo", **needs)

    with pytest.raises(DataError) as refused:
        read("my pictures")
    advice = re.search("Make them with `(.*)` and train with --dataset '(.*)', or", str(refused.value))
    command, name = advice.groups()
    python, script, *argv = shlex.split(command)
    assert (python, script) == ("python", "prepare_ccub.py")
    given = {"culture": None, "images": None, "output": None, "num_negatives": 1, "num_captions": 1}
    prepare_ccub.main([*argv, *words(flags | given)])
    assert len(read(name)) == 6 and any(read(name).num_negatives)


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
    monkeypatch.setattr("scoft.prepare.work.start_run", None)
    file = tmp_path / "file"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(DataError, match=f"--{flag} {file} cannot be read .*a text file in UTF-8"):
        prepare(flags | {flag: file, "output": tmp_path / "ccub"})


def test_an_output_that_is_a_file_is_named(flags, tmp_path):
    (tmp_path / "ccub").touch()
    with pytest.raises(DataError, match="--output .*ccub/korea cannot be made .*Choose another"):
        prepare(flags, output=tmp_path / "ccub")


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
