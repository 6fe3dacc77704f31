"""`dualsd train` on one process, or on several that torchrun or accelerate started."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from cli import option_values
from cli.processes import check_device
from featstore.backbones.base import Compute
from featstore.pipeline.distributed import PATIENCE, joining, launched, meeting, not_found
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.state import wait_for_all
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.tuning.step import Autocast

MIXED = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all. compute: where its networks run. autocast: in what context."""

    accelerator: Accelerator
    compute: Compute
    autocast: "Autocast"

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return bool(self.accelerator.is_main_process)


def training_compute(device: str, dtype: str | None, batch_size: int) -> Compute:
    """Where networks run. Raises `InputError` for a precision that cannot train here."""
    if launched().count > 1:
        check_device(device)
    compute = option_values.choose_compute(device, _precision(device, dtype), batch_size)
    if compute.device.type == "cpu" and compute.dtype is torch.float16:
        raise InputError("float16 cannot train on a CPU: take --dtype bfloat16 or float32.")
    return compute


def open_processes(compute: Compute) -> Processes:
    """Join the other processes, if there are any, once what was typed is found to be right (`join_processes` says why).
    Raises `ProcessError` where they do not find each other."""
    own, on_cpu = launched(), compute.device.type == "cpu"
    mixed = MIXED.get(compute.dtype, "no")
    # the others wait while one fills the store, which takes longer than NCCL's and gloo's own patience
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    with joining(own.count):
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[patient])
    if own.count > 1:
        if accelerator.num_processes == 1:
            raise not_found()
        wait_for_all(accelerator)
        compute = replace(compute, device=accelerator.device)
    autocast = contextlib.nullcontext if mixed == "no" else accelerator.autocast
    return Processes(accelerator, compute, autocast)


@contextlib.contextmanager
def when_main(processes: Processes) -> Iterator[None]:
    """The main process goes through first; the others follow it, and find what it made. Raises `ProcessError` where
    another process ended."""
    if not processes.is_main:
        wait_for_all(processes.accelerator)
    yield
    if processes.is_main:
        wait_for_all(processes.accelerator)


def run_folder(processes: Processes, create: Callable[[], RunFolder]) -> RunFolder:
    """The main process makes it, all open it. Raises `ProcessError` where another process ended."""
    made = [str(create().path) if processes.is_main else ""]
    if processes.count > 1:
        with meeting(processes.count):
            broadcast_object_list(made)
    return RunFolder.open(Path(made[0]))


def _precision(device: str, dtype: str | None) -> str:
    """What was typed, else float32 on a CPU, bfloat16 on GPUs that have it, float16 on others."""
    if dtype not in (None, "auto"):
        return str(dtype)
    if device == "cpu" or not torch.cuda.is_available():
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
