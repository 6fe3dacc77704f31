"""Commands in a real terminal: a fork of this process on a pseudo-terminal of a width, and pyte, which shows what is
written to it as xterm does. No command pays for loading Python's libraries again."""

import fcntl
import importlib
import os
import pkgutil
import pty
import struct
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyte
import torch

import cli
import cli.progress
import featstore
import matcher
from tests.forked import one_thread

ROWS, COLUMNS = 3000, 250
"""Of the emulator: nothing scrolls away, and a line that is wider than the terminal is seen to be."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a terminal shows in the end, and what its cursor's line showed on the way, as often as it was written to.
    code: the exit code."""

    lines: tuple[str, ...]
    seen: tuple[str, ...]
    code: int


def show(task: Callable[[], object], width: int, folder: Path) -> Shown:
    """Run a task in a folder, on a terminal of `width` columns."""
    with one_thread():
        child, terminal = pty.fork()
        if child == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, width, 0, 0))
            _end(task, folder)
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, seen = pyte.ByteStream(screen), list[str]()
    while written := _read(terminal):
        stream.feed(written)
        seen.append(_line(screen, screen.cursor.y))
    os.close(terminal)
    last = max((row for row in screen.buffer if _line(screen, row)), default=-1)
    lines = tuple(_line(screen, row) for row in range(last + 1))
    return Shown(lines, tuple(seen), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def plain(task: Callable[[], object], folder: Path) -> tuple[str, int]:
    """Run a task in a folder, without a terminal: its standard output, and its exit code."""
    file = folder.with_suffix(".out")
    with one_thread():
        child = os.fork()
        if child == 0:
            for number, name in ((1, file), (2, os.devnull)):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            _end(task, folder)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return file.read_text(), code


def load_everything() -> None:
    """Import what commands import when they are used, so that no fork has to."""
    for package in (cli, featstore, matcher):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)


def command(*arguments: str) -> Callable[[], object]:
    """`dualsd` with arguments, as a task."""

    def run() -> None:
        from cli.main import main

        sys.argv = ["dualsd", *arguments]
        main()

    return run


def _end(task: Callable[[], object], folder: Path) -> None:
    """Of a fork: what it is for. It never returns."""
    code = 70
    try:
        torch.set_num_threads(1)
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        cli.progress.SHOW_AFTER_SECONDS = 0.0
        task()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def _line(screen: pyte.Screen, row: int) -> str:
    line = screen.buffer[row]
    return "".join(line[place].data for place in range(COLUMNS)).rstrip()
