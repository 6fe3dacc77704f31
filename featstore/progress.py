"""How long work tells whoever watches where it stands, without knowing who that is."""

from typing import Protocol, Self


class Progress(Protocol):
    """A watcher of work. The command line draws bars; a script may pass `Silent()`."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A step of `total` units begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more units of the step are done."""

    def say(self, state: str) -> None:
        """How the step stands, shown beside its progress until the next word."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""

    def tell(self, line: str) -> None:
        """A line of what is done and found, in the order in which it happens: the command line prints it on standard
        output."""


class Silent:
    """Watches nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, what: str, total: int, unit: str) -> None:
        """See `Progress.start`."""

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""

    def say(self, state: str) -> None:
        """See `Progress.say`."""

    def note(self, sentence: str) -> None:
        """See `Progress.note`."""

    def tell(self, line: str) -> None:
        """See `Progress.tell`."""
