"""benchmarks/operations.py: its counts by hand, and those of an update, which shall not creep up."""

import torch
import torch.nn.functional as F

from benchmarks import operations


def test_counts_of_a_layer_by_hand():
    """A cast of the input and a matrix product; views and reshapes start no kernel."""
    x, weight = torch.ones(2, 8), torch.ones(4, 8, dtype=torch.bfloat16)
    counts, y = operations.counted(lambda: F.linear(x.to(torch.bfloat16), weight).reshape(8).view(4, 2).T)
    assert y.shape == (2, 4)
    assert counts == {"operations": 2, "casts": 1, "bytes": (16 * 4 + 16 * 2) + (16 + 32 + 8) * 2}


def test_an_update_of_full_size_asks_no_more_than_it_did():
    """In bf16: no casts in the layers, the LoRA in the UNet's dtype."""
    calls = operations.count_update("bf16")
    for name, most in (
        ("frozen, a naive caption", 1250),
        ("merged, the guidance's pair", 750),
        ("with gradient", 1250),
    ):
        assert calls[name]["operations"] <= most and calls[name]["casts"] <= 10, name
    assert calls["its backward pass"]["operations"] <= 1350 and calls["its backward pass"]["casts"] <= 5
    assert calls["AdamW"]["operations"] <= 2
    assert operations.totals(calls)["operations"] <= 5500
    assert "merged, the guidance's pair" in operations.table(calls)
