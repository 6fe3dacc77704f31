"""Bytes: in words, and free ones."""

import shutil
from pathlib import Path


def human_bytes(count: int) -> str:
    """`1.2 GB`: powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def free_bytes(path: Path) -> int:
    """Free bytes where `path` lies or will lie."""
    existing = next(parent for parent in [path.resolve(), *path.resolve().parents] if parent.exists())
    return shutil.disk_usage(existing).free
