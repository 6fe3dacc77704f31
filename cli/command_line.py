"""What was typed, for the record."""

import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def typed_command() -> str | None:
    """`dualsd eval --layers 2,3`, fit for a shell; None where Python called the command itself."""
    started = Path(sys.argv[0])
    if started.stem != "dualsd" and (started.parent.name, started.name) != ("dualsd", "__main__.py"):
        return None
    return shlex.join(["dualsd", *sys.argv[1:]])


def describe_origin(**about: Any) -> dict[str, Any]:
    """What was typed, and with which versions, as a run's `run.json` has it. about: what else there is to say."""
    from featstore.store.schema import creator_version
    from featstore.tuning.run_folder import library_versions

    return {
        **about,
        "command": typed_command(),
        "creator": creator_version(),
        "versions": library_versions(),
    }


def now() -> str:
    """As run folders have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
