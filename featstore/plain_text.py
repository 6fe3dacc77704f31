"""Names that come from files, which every table, store and sentence can hold."""

import shutil
import unicodedata
from pathlib import Path

LONGEST = 1000
"""Characters of a name or a path."""

_NOT_PLAIN = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, bytes that were no UTF-8, and the separators of lines and paragraphs."""


_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Bidirectional classes of the signs that show the letters after them in another order."""


def is_plain(text: str) -> bool:
    """Whether a text can be a name: one line of at most `LONGEST` characters, none of which controls anything."""
    return len(text) <= LONGEST and not any(unicodedata.category(letter) in _NOT_PLAIN for letter in text)


def nfc(text: str) -> str:
    """A name in Unicode's composed form. An accented letter has two spellings, one code point (NFC) or two (NFD, which
    disks and archives of Macs have), that look alike; ids are in NFC, whatever lists and disks have."""
    return unicodedata.normalize("NFC", text)


def printable(text: str) -> str:
    """Text as a terminal may get it: what would control one, or turn the order of letters, is spelled out (`\\x1b`)."""
    return "".join(ascii(letter)[1:-1] if _controls(letter) else letter for letter in text)


def _controls(letter: str) -> bool:
    return unicodedata.category(letter) in _NOT_PLAIN or unicodedata.bidirectional(letter) in _TURNING


def shown(text: str) -> str:
    """Text from a file as a sentence may quote it: on one line, no longer than a line."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def one_line(error: Exception) -> str:
    """What a library says was wrong, as part of a sentence: it may quote the file, control characters and all."""
    words = " ".join(str(error).split())[:200]
    return "".join(letter if letter.isprintable() else "?" for letter in words) or type(error).__name__


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
