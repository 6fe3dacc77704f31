"""Several processes or jobs for one command: which this is, its share, and what all of them tell each other."""

import atexit
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from featstore.errors import ImageError, ProcessError
from matcher.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from matcher.pairs import Pairs

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """Share `number`, from 1, of `count`."""

    number: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of the items, from the `number`-th on.

        Of what is asked for, not of what is missing, so that it is the same whenever a part starts. Every n-th and no
        block, because the store's images come category by category: what a stopped run or another split left is then
        spread over all parts. Which rows come together makes no difference to them: batches are padded.
        """
        return items[self.number - 1 :: self.count]


WHOLE = Part(1, 1)


def parse_part(text: str) -> Part:
    """`1/4` to the first of four parts. Raises `InputError` for anything else."""
    matched = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if matched is None:
        raise InputError(f"--part takes a share of the images like 1/4, the first of four, or {AUTO}, not {text!r}.")
    number, count = map(int, matched.groups())
    if not 1 <= number <= count:
        raise InputError(f"--part {text} does not exist: parts count from 1/{count} to {count}/{count}.")
    return Part(number, count)


AUTO = "auto"
"""The `--part` that a job finds in its environment."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """What starts several jobs, and tells each which of them it is.

    Args:
        name: As sentences have it.
        variables: Of the environment, in which it does so; the first is there in all its jobs.
        read: The job's number, from 0, and their count, of the variables' values; raises `KeyError` or `ValueError`
            where these do not say.
        advice: What to do where they do not say.
    """

    name: str
    variables: tuple[str, ...]
    read: Callable[[Mapping[str, int]], tuple[int, int]]
    advice: str

    def part(self, environment: Mapping[str, str]) -> Part:
        """The share of one of its jobs. Raises `InputError` where the variables do not tell it."""
        found = {name: environment[name] for name in self.variables if name in environment}
        try:
            number, count = self.read({name: int(value) for name, value in found.items()})
            if not 0 <= number < count:
                raise ValueError
        except (KeyError, ValueError, ZeroDivisionError):
            said = ", ".join(f"{name}={found[name]}" if name in found else f"{name} unset" for name in self.variables)
            raise InputError(
                f"--part {AUTO} cannot tell the share of this job of {self.name} ({said}): {self.advice}, or write the "
                "share out, like --part 1/4."
            ) from None
        return Part(number + 1, count)


def _in_slurm_array(told: Mapping[str, int]) -> tuple[int, int]:
    """Ids begin anywhere and go in steps. Those of a list like 1,2,9 do not: which of them one is, nothing says."""
    first, step = told["SLURM_ARRAY_TASK_MIN"], told.get("SLURM_ARRAY_TASK_STEP", 1)
    count = told.get("SLURM_ARRAY_TASK_COUNT") or (told["SLURM_ARRAY_TASK_MAX"] - first) // step + 1
    last = first + (count - 1) * step
    number, rest = divmod(told["SLURM_ARRAY_TASK_ID"] - first, step)
    if rest or told.get("SLURM_ARRAY_TASK_MAX", last) != last:
        raise ValueError
    return number, count


def _under_torchrun(told: Mapping[str, int]) -> tuple[int, int]:
    return (0, 1) if told["WORLD_SIZE"] == 1 else (told["RANK"], told["WORLD_SIZE"])


LAUNCHERS = (
    Launcher(
        "a SLURM array",
        tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT")),
        _in_slurm_array,
        "give it ids of equal distance, like --array=0-7",
    ),
    Launcher(
        "a Kubernetes indexed Job",
        ("JOB_COMPLETION_INDEX", "JOB_COMPLETION_COUNT"),
        lambda told: (told["JOB_COMPLETION_INDEX"], told["JOB_COMPLETION_COUNT"]),
        "set JOB_COMPLETION_COUNT to its spec.completions in the container's env, as Kubernetes does not",
    ),
    Launcher("torchrun", ("WORLD_SIZE", "RANK"), _under_torchrun, "start all processes with torchrun"),
)


def find_part(environment: Mapping[str, str]) -> Part:
    """The share of the images that is this job's, as told by what started it (`LAUNCHERS`). One that says that there is
    one job divides nothing, and does not count beside another.

    Raises:
        InputError: Nothing tells it, something tells a part of it, or two divide the images.
    """
    parts = {own.name: own.part(environment) for own in LAUNCHERS if own.variables[0] in environment}
    if not parts:
        looked_for = ", ".join(f"{own.variables[0]} ({own.name})" for own in LAUNCHERS)
        raise InputError(
            f"--part {AUTO} finds nothing that says which share is this job's: of {looked_for} none is set; write it "
            "out, like --part 1/4."
        )
    divided = {name: part for name, part in parts.items() if part != WHOLE}
    if len(divided) > 1:
        said = " and ".join(f"{name} ({part.number} of {part.count})" for name, part in divided.items())
        raise InputError(f"--part {AUTO} finds that {said} both divide the images: let one of them do it.")
    return next(iter(divided.values()), WHOLE)


Shares = list[list[int]]
"""Indices of pairs, those of each process in their order."""


def by_target(pairs: "Pairs", count: int, done: Collection[str] = ()) -> Shares:
    """All pairs into a target image go to one process, which then correlates what one process alone would, and so to
    the same bits; most categories go to one as a whole. done: target images that are no work any more."""
    targets: dict[str, list[int]] = {}
    for members in pairs.grouped("category").values():
        for target, own in pairs.grouped("target", members).items():
            targets.setdefault(target, []).extend(own)
    return in_blocks(list(targets.values()), [target not in done for target in targets], count)


def by_category(pairs: "Pairs", count: int, done: Collection[str] = ()) -> Shares:
    """For maps that are made a category at a time and not kept: no two processes make the same. done: target images
    that are no work any more; a category is none when all of its are done."""
    groups = list(pairs.grouped("category").values())
    left = [not pairs.grouped("target", group).keys() <= set(done) for group in groups]
    return in_blocks(groups, left, count)


def in_blocks(groups: Sequence[Sequence[int]], left: Sequence[bool], count: int) -> Shares:
    """Whole groups of indices, one after the other, in `count` shares of about as many indices of groups that are still
    `left` to be done; shares may be empty."""
    shares: Shares = [[] for _ in range(count)]
    work = [len(group) if own else 0 for group, own in zip(groups, left, strict=True)]
    total, before = max(sum(work), 1), 0
    for group, own in zip(groups, work, strict=True):
        middle = before + own / 2
        shares[min(int(middle * count / total), count - 1)] += group
        before += own
    return [sorted(share) for share in shares]


PATIENCE = timedelta(hours=24)
"""How long a process waits for the slowest one. It is told at once of one that died: only one that hangs takes this."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, the `rank`-th from 0, among `count` that do a command together. local_rank: among those of its
    machine."""

    rank: int
    count: int
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks, and writes what there is one of."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        """This process's share of images."""
        return Part(self.rank + 1, self.count)

    def block(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of items of which neighbours belong together. (accelerate's `split_between_processes`
        hands an item out twice where there are fewer of them than processes.)"""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def gather(self, own: Item) -> list[Item]:
        """What each process hands in, in order of rank, to all of them; none goes on before all have come here.

        Raises:
            ProcessError: one of them ended before.
        """
        if self.count == 1:
            return [own]
        from accelerate.utils import gather_object

        with _meeting(self.count):
            gathered: list[Item] = gather_object([own])
        return gathered

    def gather_bad(self, bad: Sequence[ImageError], skip_bad: bool) -> tuple[ImageError, ...]:
        """What was wrong with images in all processes, each image once.

        Raises:
            ImageError: The first, unless they are skipped.
            ProcessError: One of the processes ended before.
        """
        found = tuple({error.image_id: error for part in self.gather(bad) for error in part}.values())
        if found and not skip_bad:
            raise found[0]
        return found

    def sum(self, numbers: "Tensor") -> "Tensor":
        """A tensor of the same shape in all processes, summed over them. Raises what `gather` raises."""
        if self.count == 1:
            return numbers
        from accelerate.utils import reduce

        with _meeting(self.count):
            summed: Tensor = reduce(numbers, "sum")
        return summed

    def check_same(self, own: object, what: str) -> None:
        """Raise `ProcessError` where processes found another `what`: their work would not belong together."""
        if any(theirs != own for theirs in self.gather(own)):
            raise ProcessError(
                f"Of the {self.count} processes some found other {what} than others: name them yourself."
            )

    def wait(self) -> None:
        """Until all processes have come here. Raises what `gather` raises."""
        self.gather(None)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through first; the others follow it, and find what it made. Raises what `gather`
        raises."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


@contextmanager
def _meeting(count: int) -> Iterator[None]:
    """Around what `count` processes tell each other. Raises `ProcessError` where one of them ended before."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"Another of the {count} processes failed or was stopped, as it says itself: what was complete is kept, "
            "and the same command goes on from there."
        ) from error


ALONE = Processes(0, 1)


def launched() -> Processes:
    """As torchrun and accelerate tell it. Raises `ProcessError` where a process among several does not know which."""
    try:
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return ALONE
        rank = int(os.environ["RANK"])
        return Processes(rank, count, int(os.environ.get("LOCAL_RANK", rank)))
    except (KeyError, ValueError):
        raise _not_found() from None


def join_processes(summing_on: str = "cpu") -> Processes:
    """Meet the other processes, where a launcher started several. What can be seen to be wrong with what was typed is
    refused before: a process that waits for others has no use for those that will not come. None goes on before all
    have met, so that one that fails at once is not taken for one that never came.

    Args:
        summing_on: the type of the device whose tensors `Processes.sum` adds up. Where it is the CPU, they talk over
            TCP, with gloo, whatever they compute on.

    Raises:
        ProcessError: they do not find each other.
    """
    own = launched()
    if own.count == 1:
        return ALONE
    from accelerate import PartialState
    from accelerate.utils import gather_object

    try:
        state = PartialState(cpu=summing_on == "cpu", timeout=PATIENCE)
        if state.num_processes > 1:
            gather_object([None])
    except ValueError as error:  # one that was not told where they meet is no process of torchrun's
        raise _not_found() from error
    except RuntimeError as error:  # one that was has been left, or does not reach the others
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ProcessError(
            f"Another of the {own.count} processes ended before all had met, as it says itself, or {place}, where they "
            "meet, is out of reach: mend what that one says, and run the same command again."
        ) from error
    if state.num_processes == 1:
        raise _not_found()
    if state.backend == "gloo":
        atexit.register(state.destroy_process_group)
    return own


def _not_found() -> ProcessError:
    """What to raise in one of several processes that were started without being told of each other."""
    return ProcessError("Several processes were started, but they do not find each other: start them with torchrun.")


def check_divided(command: str | None, divided: Collection[str]) -> None:
    """Raise `InputError` where several processes were started for a command that is none of `divided`: each would do
    all of it, and write the same files."""
    if command is not None and command not in divided and launched().count > 1:
        raise InputError(f"`{command}` is not divided among processes: start it without torchrun.")
