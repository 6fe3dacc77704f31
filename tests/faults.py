"""Commands run with a fault: killed at a chosen place of their writing, or on a disk that takes no more from there on.

A place is a moment between two states of the disk. Every operation by which files change is seen, whoever calls it: an
audit hook sees files opened for writing, renamed, linked and removed, and folders made and removed, before that
happens; files opened for writing hand their bytes over piece by piece, so there is a place before a write and one
where half of it is done. What follows an operation is what precedes the next; the last place is after all of them.

Commands run in forks of one process that has imported everything (`Forks`), a thread each in torch's pools, so that a
fault costs no start-up. This file is also that process: `python -m tests.faults`.
"""

import builtins
import errno
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open folders are looked up in /proc")
"""Of tests that use this."""

LONGEST = 120
"""Seconds after which a command that hangs is ended."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_OTHERS = {"os.rename": 2, "os.link": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1}
"""Audit events of operations that change a folder, and how many of their arguments are paths."""


@dataclass(frozen=True, slots=True)
class Fault:
    """kill: SIGKILL at this place, 1 for the first. full: from this place on no byte is free, and none goes to the disk
    (ENOSPC). limit: bytes that a file may have (RLIMIT_FSIZE, EFBIG)."""

    kill: int = 0
    full: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. code: its exit code, the signal's number below zero where one ended it. places: what was
    written, place by place; empty where it was killed. output: stdout and stderr."""

    code: int
    output: str
    places: tuple[str, ...]


class Forks:
    """The process that forks, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, folder: Path, arguments: Sequence[str], fault: Fault | None = None) -> Ended:
        """Run `dualsd` with arguments in `folder`; what changes below it is seen."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"folder": str(folder.resolve()), "arguments": list(arguments), **asdict(fault or Fault())}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["code"], answer["output"], tuple(answer["places"]))


@contextmanager
def open_forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Start it; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forks(process)
    finally:
        process.communicate()


def evenly(places: int, wanted: int) -> list[int]:
    """`wanted` of the places 1..places, the first and the last among them, evenly."""
    if wanted >= places:
        return list(range(1, places + 1))
    return [1 + round(index * (places - 1) / (wanted - 1)) for index in range(wanted)]


class _Watch:
    """Counts places, and does there what is to be done."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self._folder, self._fault = f"{folder}{os.sep}", fault
        self._lock = threading.RLock()
        self.places: list[str] = []

    def concerns(self, path: object, folder: int = -1) -> bool:
        """Whether a path, relative to an open folder or to the working one, is to be seen."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        base = f"/proc/self/fd/{folder}" if folder >= 0 else "."
        whole = os.path.join(os.path.realpath(base), os.fsdecode(path))  # noqa: PTH118  (no Path in an audit hook)
        return whole.startswith(self._folder)

    def reach(self, what: str) -> bool:
        """The next place: whether the disk takes no more from here on."""
        with self._lock:
            self.places.append(what)
            place = len(self.places)
        if place == self._fault.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0 < self._fault.full <= place

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See sys.addaudithook."""
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITING and self.concerns(path):
                self.reach(f"before opening {os.fsdecode(path)}")
        elif event in _OTHERS:
            paths, folder = arguments[: _OTHERS[event]], arguments[-1] if isinstance(arguments[-1], int) else -1
            if any(self.concerns(path, folder) for path in paths):
                self.reach(f"before {event} {' '.join(map(os.fsdecode, paths))}")

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **named: Any) -> Any:
        """Instead of `open`."""
        if not set("wax+") & set(mode) or not self.concerns(file):
            return _PLAIN_OPEN(file, mode, buffering, *text, **named)
        raw = _SeenFile(file, "".join(letter for letter in mode if letter not in "bt"))
        raw.watch = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *text, **named)


class _SeenFile(io.FileIO):
    """A file whose every write is two places."""

    watch: _Watch

    def write(self, data: Any) -> int:
        """See io.RawIOBase; half of it, then the rest."""
        view = memoryview(data).cast("B")
        half = len(view) // 2
        full = self.watch.reach(f"before {len(view)} bytes of {self.name}")
        done = 0 if full else super().write(view[:half])
        full = full or (self.watch.reach(f"half of {len(view)} bytes of {self.name}"))
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return done + super().write(view[half:])


_PLAIN_OPEN: Callable[..., Any] = builtins.open


class _InTurn:
    """Writes rows when they are handed over, so that every run writes in the order of the one that was counted."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "_InTurn":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, task: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """What came of the task, which is done."""
        done: Future[Any] = Future()
        try:
            done.set_result(task(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def _run(asked: Mapping[str, Any], answer: int) -> None:
    """In the fork: run the command, and say on the pipe `answer` how it went; it does not return."""
    signal.alarm(LONGEST)
    os.chdir(asked["folder"])
    fault = Fault(asked["kill"], asked["full"], asked["limit"])
    watch = _Watch(Path(asked["folder"]), fault)
    sys.addaudithook(watch.audit)
    builtins.open = io.open = watch.open
    if fault.full:
        plain_usage = shutil.disk_usage
        shutil.disk_usage = lambda path: plain_usage(path)._replace(
            **({"free": 0} if len(watch.places) >= fault.full else {})
        )
    if fault.limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, resource.RLIM_INFINITY))
    try:
        from cli.main import app
        from featstore.store import rows

        rows.ThreadPoolExecutor = _InTurn  # type: ignore[misc,assignment]
        app(asked["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70
    watch.reach("after everything")
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(answer, "w") as stream:
        json.dump({"code": code, "places": watch.places, "modules": sorted(sys.modules)}, stream)
        stream.flush()
        os._exit(0)


def _fork(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run a command in a fork, and wait for its end."""
    output = os.memfd_create("output")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.dup2(output, 1)
            os.dup2(output, 2)
            _run(asked, writing)
        finally:
            os._exit(71)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    _, status = os.waitpid(child, 0)
    os.lseek(output, 0, os.SEEK_SET)
    with os.fdopen(output, errors="replace") as stream:
        text = stream.read()
    ended = os.waitstatus_to_exitcode(status)
    found = json.loads(said) if said else {"code": ended, "places": [], "modules": []}
    return {**found, "output": text}


def _serve() -> None:
    """Answer until nobody asks any more. What a command had to import is imported here for those that follow."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        found = _fork(json.loads(line))
        for name in found.pop("modules"):
            if name not in sys.modules and not name.startswith("__"):
                with suppress(Exception):
                    importlib.import_module(name)
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
