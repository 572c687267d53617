"""accelerate's trackers, a row each: the package it needs, and how it takes a picture."""

from collections.abc import Callable, Iterable
from typing import NamedTuple


class Tracker(NamedTuple):
    package: str
    show: Callable | None = None  # show(accelerate's tracker, picture, step); None: it has no place for pictures


def show_array(tracker, picture, step: int):
    import numpy as np

    tracker.log_images({"validation": np.asarray(picture)[None]}, step=step, dataformats="NHWC")


def show_list(tracker, picture, step: int):
    tracker.log_images({"validation": [picture]}, step=step)


# By the name that --report_to and accelerate give it.
TRACKERS = {
    "tensorboard": Tracker("tensorboard", show_array),
    "wandb": Tracker("wandb", show_list),
    "comet_ml": Tracker("comet_ml"),
    "aim": Tracker("aim", show_list),
    "mlflow": Tracker("mlflow"),
    "clearml": Tracker("clearml", show_list),
    "dvclive": Tracker("dvclive"),
    "swanlab": Tracker("swanlab", show_list),
    "trackio": Tracker("trackio"),
}


def show_picture(trackers: Iterable, picture, *, step: int):
    """Hand a PIL picture to those of a run's trackers that take one."""
    for tracker in trackers:
        known = TRACKERS.get(tracker.name)
        if known and known.show:
            known.show(tracker, picture, step)
