"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere; nothing under a second."""

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from cli.output import say
from featstore.pipeline.distributed import launched
from featstore.plain_text import printable
from featstore.progress import Progress

SHOW_AFTER_SECONDS = 1.0
LINE_EVERY_SECONDS = 10.0


class TerminalProgress(Progress):
    """A watcher that draws; use it as a context so that the bar is cleared at the end. Of several processes the first
    one's shows how far its own share is."""

    def __init__(self) -> None:
        count = launched().count
        self._whose = "" if count == 1 else f" (process 1 of {count})"
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._begin("", 0, "")

    def __exit__(self, *_: object) -> None:
        self._finish()

    def start(self, what: str, total: int, unit: str) -> None:
        """See `featstore.progress.Progress.start`."""
        self._finish()
        self._begin(what + self._whose, total, unit)

    def _begin(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit, self._done, self._state = what, total, unit, 0, ""
        self._started = self._last_line = self._last_advance = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """See `featstore.progress.Progress.advance`."""
        self._done += count
        self._last_advance = now = time.monotonic()
        seconds = now - self._started
        if seconds < SHOW_AFTER_SECONDS:
            return
        if self._console.is_terminal:
            self._draw(seconds)
        elif now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            print(f"{self._what}: {self._done}/{self._total}, {self._pace(seconds)}", file=sys.stderr, flush=True)

    def say(self, state: str) -> None:
        """See `featstore.progress.Progress.say`."""
        self._state = state

    def note(self, sentence: str) -> None:
        """See `featstore.progress.Progress.note`."""
        (self._bars.console if self._bars else self._console).print(
            f"note: {printable(sentence)}", highlight=False, markup=False, soft_wrap=True
        )

    def tell(self, line: str) -> None:
        """See `featstore.progress.Progress.tell`."""
        say(line)

    def _draw(self, seconds: float) -> None:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}", style="dim"),
                console=self._console,
                transient=True,
            )
            self._bars.start()
            self._task = self._bars.add_task(self._what, total=self._total, pace="")
        assert self._task is not None
        self._bars.update(self._task, completed=self._done, pace=self._pace(seconds))

    def _pace(self, seconds: float) -> str:
        """Rate since the step's start and time left."""
        rate = self._done / seconds
        left = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "?"
        pace = f"{rate:.1f} {self._unit}/s, {left} left"
        return f"{self._state}, {pace}" if self._state else pace

    def _finish(self) -> None:
        """Clear the bar and leave one line about a step that took long enough to be shown."""
        seconds = self._last_advance - self._started
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._task = None, None
        if self._what and seconds >= SHOW_AFTER_SECONDS and self._done >= self._total:
            print(f"{self._what}: {self._total} {self._unit} in {seconds:.0f} s", file=sys.stderr, flush=True)
        self._what = ""
