"""What was typed, for the record."""

import shlex
import sys
from pathlib import Path


def typed_command() -> str | None:
    """`dualsd eval --layers 2,3`, fit for a shell; None where Python called the command itself."""
    started = Path(sys.argv[0])
    if started.stem != "dualsd" and (started.parent.name, started.name) != ("cli", "__main__.py"):
        return None
    return shlex.join(["dualsd", *sys.argv[1:]])
