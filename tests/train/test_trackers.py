"""The table of trackers."""

import inspect

import accelerate.tracking
import numpy as np
import pytest
from PIL import Image

from scoft.train.trackers import TRACKERS, show_picture


def test_the_table_names_accelerates_trackers():
    """Each of them, by its own name, and a picture goes to each that takes pictures."""
    kinds = [kind for _, kind in inspect.getmembers(accelerate.tracking, inspect.isclass)]
    takes = {kind.name: hasattr(kind, "log_images") for kind in kinds if isinstance(getattr(kind, "name", None), str)}
    assert takes.keys() >= TRACKERS.keys()
    assert {name: row.show is not None for name, row in TRACKERS.items()} == {name: takes[name] for name in TRACKERS}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_picture_arrives_as_the_tracker_takes_it(name):
    """tensorboard: a batch of arrays, height first; the others: pictures in a list; some: nothing."""

    class Tracker:
        shown = None

        def log_images(self, values, step, **options):
            self.shown = values["validation"], step, options

    tracker, picture = Tracker(), Image.new("RGB", (3, 2), "olive")
    tracker.name = name
    show_picture([tracker], picture, step=7)
    if TRACKERS[name].show is None:
        assert tracker.shown is None
        return
    shown, step, options = tracker.shown
    assert step == 7 and np.array_equal(np.asarray(shown[0]), np.asarray(picture))
    assert options == ({"dataformats": "NHWC"} if name == "tensorboard" else {})
