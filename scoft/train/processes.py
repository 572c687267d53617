"""How the processes of a run claim its folder, start together, and stop together with a checkpoint."""

import contextlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.launch import is_orphan

import torch

from scoft.errors import DataError
from scoft.files import is_empty, sole_writer
from scoft.train.trackers import TRACKERS


if TYPE_CHECKING:
    import accelerate

logger = logging.getLogger(__name__)

NO_BF16 = "--mixed_precision bf16: {} does not compute in bf16; train with --mixed_precision fp16, or no"


def check_packages(*, report_to: str, use_8bit_adam: bool, xformers: bool):
    """Raise DataError where a flag needs a package that is not installed."""
    needed = {
        f"--report_to {report_to}": report_to in TRACKERS and TRACKERS[report_to].package,
        "--use_8bit_adam": use_8bit_adam and "bitsandbytes",
        "--enable_xformers_memory_efficient_attention": xformers and "xformers",
    }
    for flag, package in needed.items():
        if package and importlib.util.find_spec(package) is None:
            raise DataError(f"{flag} needs the package {package}: pip install {package}")


@contextlib.contextmanager
def claimed(output_dir: Path, *, goes_on: bool) -> Iterator[None]:
    """Let no other run write into the folder, for as long as this lasts.

    The main process alone holds the lock; where it is refused, the launcher ends the others.
    Raises DataError for a folder in use, and for one that holds something unless the run in it goes on.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with sole_writer(output_dir, flag="--output_dir"):
        if not goes_on and not is_empty(output_dir):
            raise DataError(
                f"--output_dir {output_dir} is not empty: choose another folder, or continue the run in it with "
                "--resume_from_checkpoint latest"
            )
        yield


def start_processes(
    *,
    mixed_precision: str | None,
    report_to: str,
    output_dir: Path,
    logging_dir: str,
    allow_tf32: bool,
    cpu_threads: int | None,
    compile: bool,
) -> "accelerate.Accelerator":
    """accelerate's object for this process, set up; raises DataError where the launch is not what the run needs.

    report_to: a tracker, `all`, or `none`.  logging_dir: of the trackers, inside output_dir.
    """
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs, ProjectConfiguration, is_bf16_available

    if (mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "bf16" and not is_bf16_available():
        raise DataError(NO_BF16.format("this device"))
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        log_with=None if report_to == "none" else report_to,
        project_config=ProjectConfiguration(project_dir=output_dir, logging_dir=output_dir / logging_dir),
        # The UNet is in this precision itself; autocast would only cast each of its activations to and fro.
        kwargs_handlers=[AutocastKwargs(enabled=False)],
    )
    if accelerator.gradient_accumulation_steps != 1:  # by which accelerate would divide the loss once more
        raise DataError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {accelerator.gradient_accumulation_steps} in the environment: "
            "unset it, and give --gradient_accumulation_steps to this command"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise DataError(
            f"{os.environ['WORLD_SIZE']} processes were launched, but accelerate sees {accelerator.num_processes}: "
            "each would train alone and write over the other. On CPUs set ACCELERATE_USE_CPU=true for the launch"
        )
    is_cpu = accelerator.device.type == "cpu"
    if is_cpu and accelerator.mixed_precision == "fp16":
        raise DataError("--mixed_precision fp16 needs a GPU; bf16 works on CPUs too")
    if accelerator.device.type == "cuda" and accelerator.mixed_precision == "bf16":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise DataError(NO_BF16.format(torch.cuda.get_device_name(accelerator.device)))
    if compile:
        check_compiler(accelerator.device)
    if torch.backends.mps.is_available():
        accelerator.native_amp = False
    if allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if cpu_threads and is_cpu:
        torch.set_num_threads(cpu_threads)
    return accelerator


def check_compiler(device: torch.device):
    """Raise DataError where torch.compile makes no code for the device: now, not after all models are loaded."""
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:  # whatever a compiler raises, or the lack of one
        said = str(error).strip().partition("\n")[0]
        raise DataError(
            f"--compile: torch.compile makes no code for {device.type} on this machine ({said}). On a CPU it needs a "
            "C++ compiler, on a GPU triton and a compute capability of 7.0. Install what it names, or leave --compile "
            "out"
        ) from error


class StopRequest:
    """Ctrl-C, a scheduler's SIGTERM or the launcher's end asks for a checkpoint; a second Ctrl-C ends at once."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.signalled = False
        self.previous: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.request)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, number, frame):
        self.signalled = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("Stopping after this update, with a checkpoint.")

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop, or has nobody left to tell it so: launchers die of a SIGTERM."""
        return self.signalled or is_orphan()

    @property
    def requested_here(self) -> bool:
        """Whether this process may act at once: several processes only stop where all of them ask together."""
        return self.requested and self.accelerator.num_processes == 1

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must ask together."""
        flag = torch.tensor(float(self.requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum") > 0)
