"""benchmarks/prepare.py: it runs every stage once, counts what came out, and times negatives by their number."""

import json

import pytest

import prepare_ccub
from benchmarks import prepare


pytestmark = pytest.mark.usefixtures("threads_given_back")


def test_every_stage_is_launched_alone_and_all_again(
    monkeypatch, tiny_blip, tiny_clip_conv, tiny_controlnet, tiny_depth, tiny_pipeline, tmp_path
):
    """A run adds the seconds of each stage to --output, and what was written for its rows."""
    launched = []

    def in_this_process(flags, *, processes):
        launched.append((flags["stages"], processes))
        prepare_ccub.main(prepare.words(flags))

    tiny = {"captioner": tiny_blip, "controlnet": tiny_controlnet, "depth_model": tiny_depth, "resolution": 16}
    tiny |= {"pretrained_model_name_or_path": tiny_pipeline, "filter_model": tiny_clip_conv}
    tiny |= {"num_inference_steps": 1, "num_negatives": 1, "false_negative_threshold": 0}
    monkeypatch.setattr(prepare, "launch", in_this_process)
    monkeypatch.setattr(prepare, "FLAGS", prepare.FLAGS | tiny)
    (tmp_path / "results.json").write_text('{"runs": ["an earlier run"]}')
    prepare.main(["--rows", "5", "--output", str(tmp_path / "results.json")])

    earlier, run = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert earlier == "an earlier run"
    assert launched == [(stage, 2) for stage in (*prepare_ccub.STAGES, ",".join(prepare_ccub.STAGES))]
    seconds = run["pocket"]["seconds"]
    assert seconds["all stages"] == pytest.approx(sum(seconds[stage] for stage in prepare_ccub.STAGES), rel=1e-2)
    assert min(seconds.values()) > 0
    rows = run["pocket"]["written"]["rows"]
    assert sum(rows.values()) == 5 and run["pocket"]["written"]["negatives"] == rows["train"]


def test_negatives_are_timed_by_their_number(capsys):
    """At --size tiny on the CPU the same code gives the seconds of a negative for each number of them."""
    prepare.main(
        "--full_size --size tiny --device cpu --precision fp32 --photographs 1 --num_inference_steps 1".split()
    )
    run = json.loads(capsys.readouterr().out)
    assert set(run["negatives"]["seconds"]) == {str(number) for number in prepare.BATCHES}
    assert min(run["negatives"]["seconds"].values()) > 0
