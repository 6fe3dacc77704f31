"""A disk that is nearly full."""

import os
import subprocess
from pathlib import Path


def resize(disk: Path, free: float) -> None:
    """Leave so many bytes free on a small file system, rounded down to whole pages."""
    used = os.statvfs(disk)
    size = (used.f_blocks - used.f_bavail) * used.f_frsize + int(free)
    size -= size % used.f_frsize
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
