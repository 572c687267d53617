"""benchmarks/bases.py: its counts by hand, and what each family's update comes to at tiny size."""

import json

import pytest
import torch

from benchmarks import bases


def test_memory_is_what_is_held_at_once():
    """Views are no memory, what a graph keeps is, and what is dropped is no more."""
    weight = torch.ones(1024, requires_grad=True)
    with bases.Memory() as memory:
        y = weight.view(32, 32)[1:].exp()  # of which the graph keeps the result
        size = 31 * 32 * 4
        assert memory.held == size
        total = y.sum()
        del y
        assert memory.held == size + 4 and memory.most == size + 4
        del total
        assert memory.held == 0
        torch.ones(10)
    assert memory.held == 0 and memory.most == size + 4


def test_arithmetic_by_hand():
    counts, result = bases.counted(lambda: torch.ones(8, 16) @ torch.ones(16, 4))
    assert counts["tflop"] * 1e12 == 2 * 8 * 16 * 4
    assert counts["kept"] * 2**30 == 4 * 8 * 4 and counts["most"] * 2**30 == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert result.shape == (8, 4)


def test_arithmetic_of_attention_by_hand():
    """Two products forward; and back the first of them once more, and both products' two gradients."""
    q, k, v = (torch.ones(1, 2, length, 8, requires_grad=True) for length in (16, 32, 32))
    counts, out = bases.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    product = 2 * 2 * 16 * 32 * 8
    assert counts["tflop"] * 1e12 == pytest.approx(2 * product)
    assert bases.counted(lambda: out.sum().backward(retain_graph=True))[0]["tflop"] * 1e12 == pytest.approx(
        5 * product
    )


@pytest.mark.parametrize("base", bases.BASES)
def test_an_update_is_counted(base, tmp_path, capsys):
    """All calls have arithmetic; checkpointing keeps less and computes more; the sums are those of the calls."""
    output = tmp_path / "bases.json"
    bases.main(["--bases", base, "--size", "tiny", "--resolution", "64", "--output", str(output)])
    assert f"{base}, 64 px" in capsys.readouterr().out
    found = json.loads(output.read_text())[base]
    calls = found["calls"]
    assert all(each["tflop"] > 0 and each["most"] > 0 for each in calls.values())
    for name in ("prediction", "decoding and back"):
        assert calls[f"{name}, checkpointing"]["tflop"] >= calls[name]["tflop"]
    assert calls["prediction, checkpointing"]["kept"] < calls["prediction"]["kept"]
    flop = 10 * calls["naive caption"]["tflop"] + 20 * calls["step of the roll-out"]["tflop"]
    flop += 10 * calls["prediction and back"]["tflop"] + calls["decoding and back"]["tflop"]
    assert found["tflop_an_update"] == pytest.approx(flop / 10)
    assert found["gib"] > max(each["most"] for name, each in calls.items() if "checkpointing" not in name)
    assert found["gib_lora"] == 12 * found["lora_parameters"] / 2**30


def test_the_readme_has_the_counts():
    """Its table of base models says what the results do."""
    found = json.loads((bases.ROOT / "benchmarks/results/bases.json").read_text())
    rows = (bases.ROOT / "README.md").read_text().split("| base model, ")[1].split("\n\n")[0].splitlines()[2:]
    for base, row in zip(bases.BASES, rows, strict=True):
        counts = found[base]
        assert f"| {counts['resolution']} | {counts['gib']:.1f} GiB, {counts['gib_checkpointing']:.1f} |" in row
        assert f"| {counts['tflop_an_update']:.2g} TFLOP |" in row
