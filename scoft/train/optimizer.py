"""AdamW on the LoRA, and the learning rate's schedule, both also in a run that goes on."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Of the learning rate, as diffusers names them; all but the constant ones end at 0 with the last update.
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def make_optimizer(parameters: list[torch.nn.Parameter], *, use_8bit: bool, **settings) -> torch.optim.Optimizer:
    """AdamW, in one kernel where torch has it, or bitsandbytes' with moments in 8 bits.

    settings: lr, betas, weight_decay, eps, and what else AdamW takes.
    """
    if not use_8bit:
        import torch

        return torch.optim.AdamW(parameters, fused=parameters[0].device.type in ("cuda", "cpu"), **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def make_schedule(
    optimizer: torch.optim.Optimizer, *, kind: str, warmup_steps: int, first_step: int, total_steps: int, **settings
):
    """The schedule `kind`, one of SCHEDULES, which goes on after `first_step` updates.

    settings: those of this run; an optimizer that was loaded has those of the run before.  Where the schedule would
    then have the rate jump, that is warned of.
    Not prepared by accelerate, which would step it once per process: the schedule counts updates.
    """
    from diffusers.optimization import get_scheduler

    planned_rate = optimizer.param_groups[0]["lr"]
    for group in optimizer.param_groups:
        group.update(settings, initial_lr=settings["lr"])
    schedule = get_scheduler(
        kind,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        last_epoch=first_step - 1,
    )
    rate = schedule.get_last_lr()[0]
    if first_step and not kind.startswith("constant") and not math.isclose(rate, planned_rate):
        logger.warning(
            f"--lr_scheduler {kind} is laid over all {total_steps} updates anew: the rate goes on at {rate:.3g}, "
            f"where the run before had planned {planned_rate:.3g}. As many updates as before keep to the plan; a run "
            "with --lr_scheduler constant can be prolonged"
        )
    return schedule
