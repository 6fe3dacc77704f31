"""Which commands several processes of torchrun may do together."""

from collections.abc import Collection

from featstore.pipeline.defaults import check_shared as check_device
from featstore.pipeline.distributed import launched
from matcher.errors import InputError

__all__ = ["check_device", "check_divided"]


def check_divided(command: str | None, divided: Collection[str]) -> None:
    """Raise `InputError` where several processes were started for a command that is none of `divided`: each would do
    all of it, and write the same files."""
    if command is not None and command not in divided and launched().count > 1:
        raise InputError(f"`{command}` is not divided among processes: start it without torchrun.")
