"""Randomness that depends on its key alone, and an order of rows that depends on the seed alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scoft import randomness
from scoft.randomness import row_of_entry, stable_generator


ROOT = Path(randomness.__file__).parents[1]


def drawn(*key):
    return torch.randn(4, generator=stable_generator(*key))


def test_stable_generator_depends_on_everything():
    """The same key gives the same numbers; another seed, purpose or place gives others."""
    assert torch.equal(drawn(0, "noise", 3, 1), drawn(0, "noise", 3, 1))
    keys = [(0, "noise", 3, 1), (1, "noise", 3, 1), (0, "flip", 3, 1), (0, "noise", 31), (0, "noise", 1, 3)]
    assert len({tuple(drawn(*key).tolist()) for key in keys}) == len(keys)


def test_stable_generator_across_processes():
    """Another process, with another hash seed, draws the same numbers, today and at every later version."""
    code = "import scoft.randomness as s; print(s.stable_generator(7, 'noise', 12, 3).initial_seed(), end='')"
    environment = os.environ | {"PYTHONHASHSEED": "99"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert printed.stdout == str(stable_generator(7, "noise", 12, 3).initial_seed()) == "1164030438"


@pytest.mark.parametrize("num_rows", [1, 2, 7, 30])
def test_every_epoch_is_a_permutation(num_rows):
    """Each run of num_rows entries visits every row once."""
    order = [row_of_entry(e, num_rows=num_rows, seed=5) for e in range(4 * num_rows)]
    for start in range(0, len(order), num_rows):
        assert sorted(order[start : start + num_rows]) == list(range(num_rows))


def test_order_differs_by_epoch_and_seed():
    """Epochs and seeds are ordered differently, and the order does not depend on what was asked before."""
    order = {
        (seed, epoch): tuple(row_of_entry(30 * epoch + i, num_rows=30, seed=seed) for i in range(30))
        for seed in (0, 1)
        for epoch in (2, 0, 1)
    }
    assert len(set(order.values())) == 6
    randomness._permutation.cache_clear()
    assert row_of_entry(47, num_rows=30, seed=1) == order[1, 1][17]


def test_order_refuses_nonsense():
    """There is no order of no rows, nor an entry before the first."""
    for entry, num_rows in ((0, 0), (-1, 3)):
        with pytest.raises(ValueError, match="num_rows >= 1 and entry >= 0"):
            row_of_entry(entry, num_rows=num_rows, seed=0)
