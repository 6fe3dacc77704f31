"""Progress on stderr: on a terminal one line, with a bar, rate and time left, or with what is waited for; plain lines
elsewhere; nothing under a second."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cli.output import print_lines, say
from featstore.pipeline.distributed import launched
from featstore.plain_text import printable
from featstore.progress import Progress

SHOW_AFTER_SECONDS = 1.0
LINE_EVERY_SECONDS = 10.0
WIDEST_BAR, NARROWEST_BAR = 40, 8


class TerminalProgress(Progress):
    """A watcher that draws; use it as a context so that its line is cleared at the end. The line goes as soon as its
    step is done, and while something is printed. Of several processes the first one's shows how far its own share
    is."""

    def __init__(self) -> None:
        process = launched()
        self._whose = "" if process.count == 1 else f" (process 1 of {process.count})"
        self._console = Console(stderr=True)
        self._draws = self._console.is_terminal and process.rank == 0
        self._live: Live | None = None
        self._begin("", 0, "")

    def __enter__(self) -> Self:
        self.wait("starting")
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def start(self, what: str, total: int, unit: str) -> None:
        """See `featstore.progress.Progress.start`."""
        self._finish()
        self._begin(what + self._whose, total, unit)
        self._show()

    def wait(self, what: str) -> None:
        """See `featstore.progress.Progress.wait`."""
        self.start(what, 0, "")

    def _begin(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit, self._done, self._state = printable(what), total, unit, 0, ""
        self._started = self._last_line = self._last_advance = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """See `featstore.progress.Progress.advance`."""
        self._done += count
        self._last_advance = now = time.monotonic()
        seconds = now - self._started
        if 0 < self._total <= self._done:
            self.wait("working")  # on whatever comes before the next step
        elif not self._console.is_terminal and now - self._last_line >= max(LINE_EVERY_SECONDS, SHOW_AFTER_SECONDS):
            self._last_line = now
            facts = ", ".join(self._facts(seconds))
            print(f"{self._what}: {self._done}/{self._total}, {facts}", file=sys.stderr, flush=True)

    def say(self, state: str) -> None:
        """See `featstore.progress.Progress.say`."""
        self._state = state

    def note(self, sentence: str) -> None:
        """See `featstore.progress.Progress.note`."""
        with self._cleared():
            print_lines(self._console, f"note: {sentence}")

    def tell(self, line: str) -> None:
        """See `featstore.progress.Progress.tell`."""
        with self._cleared():
            say(line)

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        was_shown = self._live is not None
        self._hide()
        yield
        if was_shown:
            self._show()

    def _show(self) -> None:
        if self._draws:
            # what goes to standard output stays there: it may be a file
            self._live = Live(get_renderable=self._line, console=self._console, transient=True, redirect_stdout=False)
            self._live.start()

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> RenderableType:
        """What the terminal shows now. Facts that there is no room for are left out."""
        seconds = time.monotonic() - self._started
        if seconds < SHOW_AFTER_SECONDS:
            return Text()
        if self._total == 0:
            return Text(f"{self._what}, {seconds:.0f} s")
        words, room = f"{self._what} {self._done}/{self._total}", self._console.width
        for fact in self._facts(seconds):
            longer = f"{words}, {fact}"
            words = longer if len(longer) <= room else words
        bar = min(room - len(words) - 1, WIDEST_BAR)
        if bar < NARROWEST_BAR:
            return Text(words)
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(self._total, self._done, width=bar), words)
        return line

    def _facts(self, seconds: float) -> list[str]:
        """How the step stands, its rate since it started, and the time left."""
        rate = self._done / seconds
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "?"
        return [*filter(None, [self._state]), f"{rate:.1f} {self._unit}/s", f"{left} left"]

    def _finish(self) -> None:
        """Clear the line, and leave one about a step that took long enough to be shown."""
        self._hide()
        seconds = self._last_advance - self._started
        if 0 < self._total <= self._done and seconds >= SHOW_AFTER_SECONDS:
            print_lines(self._console, f"{self._what}: {self._total} {self._unit} in {seconds:.0f} s")
        self._total = 0
