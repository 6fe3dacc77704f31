"""A disk that is nearly full, and what a sentence about one says."""

import os
import re
import subprocess
from pathlib import Path

_UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def resize(disk: Path, free: float) -> None:
    """Leave so many bytes free on a small file system, rounded down to whole pages."""
    used = os.statvfs(disk)
    size = (used.f_blocks - used.f_bavail) * used.f_frsize + int(free)
    size -= size % used.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def missing_bytes(sentence: str) -> float:
    """The bytes that it says are missing."""
    found = re.search(r"is full, ([\d.]+) (\w+) are missing", sentence)
    assert found is not None, sentence
    return float(found.group(1)) * _UNITS[found.group(2)]
