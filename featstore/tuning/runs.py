"""A run's folder, whatever is learned: settings, versions, metrics, checkpoint, and what was learned.

runs/class-2+3-001/
    run.json                    what was asked, on what, with which versions
    metrics.csv                 step, loss, validation PCK, seconds
    validation.json             PCK before step 1, without what is learned and with what it starts from; the lead
    checkpoint.safetensors      where the run stands
    tensorboard/                the same numbers for TensorBoard
"""

import csv
import glob
import io
import json
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from featstore.errors import TuningError
from featstore.files import PARTIAL, check_free, held, making_folder, sweep_making, take_place, write_whole, writing
from featstore.parsing import parse_known
from featstore.sealed import check_seal, check_version, seal
from featstore.store.schema import creator_version
from matcher.errors import InputError
from matcher.statistics import Interval

RUNS = Path("runs")
RUN = "run.json"
"""Of a run's folder. A process that trains the run holds the file's lock."""

FORMAT = "dualsd run"
EVALUATION = "dualsd evaluation"
ADAPTATION = "dualsd adapter run"
"""What lies among the runs, too: `featstore.pipeline.results`, `featstore.adapters.run`."""
VERSION = 1
METRICS = ("step", "loss", "pck", "seconds")
VALIDATION = "validation.json"

_CHECKSUM = "crc32"

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "zarr", "safetensors")


@dataclass(frozen=True, slots=True)
class Baselines:
    """PCK on the validation pairs before step 1, fractions. text: of each pair with the text prompt. initial: of all
    with the first prompts. lead: of the prompts that are kept over the text prompt, with its 95 % interval, images
    resampled; None before the first validation."""

    text: tuple[float, ...]
    initial: float
    lead: Interval | None = None

    @property
    def of_text(self) -> float:
        """Of all pairs with the text prompt."""
        return sum(self.text) / len(self.text)


@dataclass(frozen=True, slots=True)
class Words:
    """What a run compares, in its lines.

    Args:
        before: What is there without learning, in a word.
        after: What was learned, in a word.
        plain: What is there without learning.
        tag: The same as TensorBoard's curves have it.
        first: What step 1 starts from.
        what: What is learned and kept; are, they: its verb, and with a pronoun.
        pairs: Those that are validated on, behind "pairs".
        on: The same behind "on".
    """

    before: str = "text"
    after: str = "learned"
    plain: str = "the text prompt"
    first: str = "the first prompts"
    tag: str = "text prompt"
    what: str = "prompts"
    are: str = "are"
    they: str = "They were"
    pairs: str = "of val"
    on: str = "val"


def worth(before: Baselines, lead: Interval, words: Words = Words()) -> str:
    """`text 41.2 -> learned 43.0 (+1.8 [0.4, 3.1]) on val`. lead: of what was learned over what was there before."""
    # + 0.0: a zero that was rounded from below would be spelled -0.0
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (lead.mean, lead.low, lead.high))
    plain, learned = 100 * before.of_text, 100 * (before.of_text + lead.mean)
    gain = f"({mean:+.1f} [{low:.1f}, {high:.1f}])"
    return f"{words.before} {plain:.1f} -> {words.after} {learned:.1f} {gain} on {words.on}"


@dataclass(frozen=True)
class Run(ABC):
    """A run on disk, whatever it learns. description: what `run.json` holds."""

    path: Path
    description: Mapping[str, Any]

    FORMAT: ClassVar[str]
    COMMAND: ClassVar[str]
    FILE: ClassVar[str]

    @property
    def checkpoint(self) -> Path:
        """Where the run stands."""
        return self.path / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """What was learned, as it was best on validation."""
        return self.path / self.FILE

    @property
    def last(self) -> Path:
        """The same as it was last."""
        return self.path / self.FILE.replace(".", "-last.")

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def steps(self) -> int:
        """How many were asked for."""
        return int(self.description["settings"]["steps"])

    @property
    def words(self) -> Words:
        """What it compares."""
        return Words()

    @property
    def is_finished(self) -> bool:
        """Whether all its steps are done and what was learned is there."""
        return self.best.is_file() and len(self.metrics_until(self.steps)) == self.steps

    def metrics_until(self, step: int) -> list[tuple[str, ...]]:
        """Rows of `METRICS` of the steps up to `step`. Raises `TuningError` where the file is damaged."""
        file = self.path / "metrics.csv"
        if not file.exists():
            return []
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                header, *rows = map(tuple, csv.reader(stream))
            if header not in (METRICS, (*METRICS, _CHECKSUM)):
                raise ValueError("its first line does not name its columns")
            return [_metrics_row(header, number, row) for number, row in enumerate(rows, start=1)][:step]
        except (OSError, ValueError, csv.Error) as error:
            raise _damaged(file, error) from error

    @property
    def baselines(self) -> Baselines | None:
        """What was validated before step 1; None where nothing was. Raises `TuningError` where the file is damaged."""
        file = self.path / VALIDATION
        if not file.exists():
            return None
        try:
            described = json.loads(file.read_bytes())
            check_seal(described)
            found: Baselines = parse_known(Baselines, described)
            return found
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise _damaged(file, error) from error

    def write_baselines(self, baselines: Baselines) -> None:
        """Write them; the file appears whole or not at all. Raises what `write_whole` raises."""
        write_whole(self.path / VALIDATION, (json.dumps(seal(asdict(baselines))) + "\n").encode())

    def write_metrics(self, rows: list[tuple[str, ...]]) -> None:
        """Write them all; the file appears whole or not at all. Raises what `write_whole` raises."""
        write_whole(self.path / "metrics.csv", metrics_bytes(rows))

    @staticmethod
    @abstractmethod
    def check(description: Mapping[str, Any]) -> None:
        """Raise ValueError or `InputError` where `run.json` does not say what is read again."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run. Raises `TuningError` where there is none."""
        description = read_run(path)
        if description is None or description.get("format") != cls.FORMAT:
            why = "it has no run.json that can be read" if description is None else "its run.json is another program's"
            if description is not None and (command := _COMMANDS.get(description.get("format"))) is not None:
                why = f"it is one of `{command}`"
            raise TuningError(f"{path} is no run of `{cls.COMMAND}`: {why}.")
        check_version(description, VERSION, str(path), TuningError)
        try:
            cls.check(description)
            check_seal(description)
        except (ValueError, InputError) as error:
            raise TuningError(
                f"{path}/run.json is damaged or was changed ({error}): put it back as it was, or start a new run."
            ) from error
        return cls(path, description)


_COMMANDS: Mapping[Any, str] = {FORMAT: "dualsd train", EVALUATION: "dualsd eval", ADAPTATION: "dualsd adapt"}


AnyRun = TypeVar("AnyRun", bound=Run)


def _damaged(file: Path, error: Exception) -> TuningError:
    return TuningError(f"{file} is damaged ({error}): copy it again from where it is whole, or start a new run.")


def metrics_bytes(rows: list[tuple[str, ...]]) -> bytes:
    """What a file of such rows of `METRICS` holds: each with its checksum."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([(*METRICS, _CHECKSUM), *((*row, _crc(row)) for row in rows)])
    return text.getvalue().encode()


def _crc(row: Sequence[str]) -> str:
    return f"{zlib.crc32(','.join(row).encode()):08x}"


def _metrics_row(header: tuple[str, ...], number: int, row: tuple[str, ...]) -> tuple[str, ...]:
    """The row of a step, numbered from 1, without its checksum, which older files lack. Raises ValueError."""
    own = row[: len(METRICS)]
    if row != (own if header == METRICS else (*own, _crc(own))) or len(own) != len(METRICS) or own[0] != str(number):
        raise ValueError(f"line {number + 1} is not that of step {number}, or its checksum does not fit")
    for value in own[1:]:
        float(value or 0)
    return own


def format_of(path: Path) -> str | None:
    """The format that a folder's `run.json` names; None where it has none that can be read."""
    found = (read_run(path) or {}).get("format")
    return found if isinstance(found, str) else None


def read_run(path: Path) -> dict[str, Any] | None:
    """What a folder's `run.json` holds, nothing where it is no table; None where it cannot be read."""
    try:
        description = json.loads((path / RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return description if isinstance(description, dict) else {}


def make_run(kind: type[AnyRun], parent: Path, name: str | None, usual: str, about: Mapping[str, Any]) -> AnyRun:
    """Make a run's folder; it appears with its `run.json` or not at all.

    Args:
        kind: What it learns.
        parent: The folder that it is made in.
        name: What it is called; None for `usual` and the next free number.
        usual: See `name`.
        about: What `run.json` holds besides its format and versions.

    Raises:
        TuningError: One of that name exists.
        StoreError: It cannot be made.
        DiskFullError: There is no room for it.
    """
    prefix = name or usual
    path = parent / prefix
    go_on = f"go on with `{kind.COMMAND} --resume {path}`, or take another --name"
    taken = TuningError(f"{path} exists already: {go_on}.")
    if name is not None and path.exists():  # renaming would replace an empty folder
        raise taken
    described = {
        "format": kind.FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "creator": creator_version(),
        **about,
        "versions": library_versions(),
    }
    description = seal(described)
    content = (json.dumps(description, indent=2) + "\n").encode()
    with writing(f"The run's folder in {parent}", len(content), place=parent), making_folder(parent, prefix) as made:
        write_whole(made / RUN, content)
        place = take_place(made, [path] if name is not None else free_places(parent, prefix))
    if place is None:
        raise taken
    return kind(place, description)


def resume_run(kind: type[AnyRun], path: Path) -> AnyRun:
    """A run that is to go on; what a kill left beside it when it was being made is swept. Raises what `Run.open`
    raises, and `TuningError` where a process trains it."""
    run = kind.open(path)
    check_free(path / RUN, _is_trained(path))
    sweep_making(path.parent, glob.escape(path.name))
    return run


@contextmanager
def trained_alone(run: Run) -> Iterator[None]:
    """Keeps other processes from training a run, until this one ends, however it does. What a kill left half written in
    it is swept: nobody else writes there. Raises `TuningError` where another one trains it."""
    with held(run.path / RUN, _is_trained(run.path)):
        for partial in run.path.glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        yield


def _is_trained(path: Path) -> TuningError:
    return TuningError(
        f"{path} is being trained by another process, which holds {path / RUN}: wait until it ends, or stop it, and "
        "then run the same command again."
    )


def free_places(parent: Path, prefix: str) -> Iterator[Path]:
    """Again and again the first free name, as it is then: another process may have taken the one before."""
    while True:
        yield parent / free_name(parent, prefix)


def free_name(parent: Path, prefix: str) -> str:
    """`<prefix>-NNN`, one more than the largest number that the folder holds."""
    found = (re.fullmatch(rf"{re.escape(prefix)}-(\d+)", path.name) for path in parent.glob(f"{prefix}-*"))
    return f"{prefix}-{max((int(own[1]) for own in found if own), default=0) + 1:03d}"


def library_versions() -> dict[str, str]:
    """Of the libraries that numbers may depend on."""
    return {library: creator_version(library) for library in _LIBRARIES}
