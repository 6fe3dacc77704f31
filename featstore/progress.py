"""How long work tells whoever watches where it stands, without knowing who that is."""

from typing import Protocol


class Progress(Protocol):
    """A watcher of work. The command line draws bars; a script may pass `Silent()`."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A step of `total` units begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more units of the step are done."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""


class Silent:
    """Watches nothing."""

    def start(self, what: str, total: int, unit: str) -> None:
        """See `Progress.start`."""

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""

    def note(self, sentence: str) -> None:
        """See `Progress.note`."""
