"""A command on one process, or on several that torchrun started: who computes where, and who speaks."""

from typing import TYPE_CHECKING

from cli import option_values
from cli.progress import TerminalProgress
from featstore.pipeline.distributed import Launch, Part, launched
from featstore.progress import Silent
from matcher.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from featstore.backbones.base import Compute
    from featstore.pipeline.distributed import Processes


def choose_compute(device: str, dtype: str, batch_size: int) -> "Compute":
    """`option_values.choose_compute` where each of several processes takes a GPU of its own."""
    own = launched()
    if own.count > 1:
        check_device(device)
        if device == "auto":
            device = gpu_of(own.local_rank) or "cpu"
    return option_values.choose_compute(device, dtype, batch_size)


def check_device(device: str) -> None:
    """Raise `InputError` for one that several processes cannot share out."""
    if device not in ("auto", "cpu"):
        raise InputError(
            f"With several processes --device is auto or cpu, not {device!r}: each takes a GPU of its own."
        )


def check_divided(command: str | None, divided: "Collection[str]") -> None:
    """Raise `InputError` where several processes were started for a command that is none of `divided`: each would do
    all of it, and write the same files."""
    if command is not None and command not in divided and launched().count > 1:
        raise InputError(f"`{command}` is not divided among processes: start it without torchrun.")


def gpu_of(local_rank: int) -> str | None:
    """The GPU of a process of this machine, shared where there are fewer; None where there is none."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{local_rank % count}" if count else None


def progress_of(processes: "Processes") -> TerminalProgress | Silent:
    """The first process shows how far its own share is, the others are silent."""
    if not processes.is_main:
        return Silent()
    return TerminalProgress("" if processes.count == 1 else f" (process 1 of {processes.count})")


def print_shares(images: "Sequence[int]") -> None:
    """How many images each of several processes took."""
    from cli.output import say

    if len(images) > 1:
        say(f"{len(images)} processes took {', '.join(map(str, images))} images")


def spell_part(text: str | None) -> str:
    """Before what is said of a part."""
    return "" if text is None else f"part {text.strip()}, "


def part_for(text: str | None, launch: Launch) -> Part:
    """The share of images that `--part` names, else that of a process. Raises `InputError` where both divide them."""
    if text is None:
        return Part(launch.rank + 1, launch.count)
    part = option_values.parse_part(text)
    if launch.count > 1:
        raise InputError("--part and torchrun both divide the images: leave --part out, each process takes its share.")
    return part
