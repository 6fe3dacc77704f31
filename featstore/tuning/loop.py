"""The loop of a training, whatever is learned: steps, validations and checkpoints, on one process or several. A run
that is asked to stop finishes its step and saves itself first: Ctrl-C, SIGTERM, SIGUSR1 (preemption)."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from tensorboard.summary.writer import event_file_writer
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from featstore.errors import TuningError
from featstore.files import write_whole, writing
from featstore.pipeline.distributed import Processes
from featstore.progress import Progress
from featstore.sealed import check_tensors_seal, read_tensors, seal_tensors
from featstore.tuning.runs import Baselines, Run, trained_alone
from featstore.tuning.settings import UnusedCategories
from matcher.pairs import MatchingPair
from matcher.statistics import SEED, bootstrap_mean

Validated = tuple[float, NDArray[np.float64]]
"""PCK of all validation pairs, a fraction, and of each, (pairs,)."""


class Schedule(Protocol):
    """When what happens."""

    @property
    def steps(self) -> int:
        """How many there are."""

    @property
    def validate_every(self) -> int:
        """Steps between validations; the last step is validated besides."""

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did in this process. loss: its share of the batch's. passes: of images through networks. pairs: of
    the whole batch."""

    loss: float
    passes: int
    pairs: int


class Task(Protocol):
    """What is learned from what."""

    @property
    def settings(self) -> Schedule:
        """When what happens."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""

    @property
    def validation(self) -> Sequence[MatchingPair]:
        """The pairs to validate on; none where there are none."""

    @property
    def passes_per_image(self) -> int:
        """Through networks."""

    def open_state(self) -> "TrainingState":
        """Where a training begins."""

    def step(self, state: "TrainingState", processes: Processes) -> Step:
        """Make the optimiser's step number `state.step`, counted from 0."""

    def validate_plain(self, processes: Processes) -> Validated:
        """Without what is learned."""

    def validate(self, processes: Processes) -> Validated:
        """With what is learned, as it is now."""

    def save(self, file: Path) -> None:
        """Write what is learned, as it is now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call ended.

    Args:
        steps: Done in all.
        best: Validation PCK of what is kept, a fraction; None without validation.
        passes: Of images through networks, in this call.
        stopped: Whether a signal ended it early.
        baselines: What was validated before step 1; None where nothing was.
    """

    steps: int
    best: float | None
    passes: int
    stopped: bool
    baselines: Baselines | None


def learn(task: Task, run: Run, processes: Processes, progress: Progress) -> Outcome:
    """Learn, from the run's checkpoint on where it has one, until all steps are done or a signal comes. Ends in the
    same however often it was stopped or killed in between (on a CPU bit by bit).

    Args:
        task: What is learned from what.
        run: Where it is kept.
        processes: Which share every batch.
        progress: Is told how far it is.

    Raises:
        TuningError: The loss is no number any more, or another process trains the run; the last checkpoint is kept.
        DiskFullError: The disk fills up.
        ProcessError: Another of the processes ended.
    """
    settings, device = task.settings, task.device
    passes, learned, last_pck, stopped = 0, 0, None, False
    # of several processes the one that writes holds the run for all of them
    alone = trained_alone(run) if processes.is_main else contextlib.nullcontext()
    with alone, _raised_once(), stop_requests() as asked_to_stop:
        state = task.open_state()
        if run.checkpoint.exists():
            state.load(run.checkpoint)
        baselines = _baselines(task, run, state, processes, progress)
        recorder = _Recorder(run, task, state.step, baselines) if processes.is_main else None
        progress.start("training", settings.steps - state.step, "steps")
        started = time.monotonic()
        while state.step < settings.steps and not stopped:
            done = task.step(state, processes)
            loss, all_made, stops = sum_numbers([done.loss, done.passes, asked_to_stop()], processes, device)
            passes, learned, stopped = passes + round(all_made), learned + done.pairs, stops > 0
            if not math.isfinite(loss):
                kept = f"the checkpoint of {run.path} is kept" if run.checkpoint.exists() else "there is no checkpoint"
                raise TuningError(
                    f"The loss of step {state.step + 1} is {loss}: {kept}; try a smaller --lr, or --dtype float32."
                )
            state.step += 1
            pck, is_best = None, False
            if task.validation and (state.step % settings.validate_every == 0 or state.step == settings.steps):
                pck, of_pairs = task.validate(processes)
                last_pck, is_best, state.best = pck, pck > state.best, max(state.best, pck)
                if is_best and baselines is not None:
                    lead = bootstrap_mean(task.validation, of_pairs - np.array(baselines.text), SEED).within(-1, 1)
                    baselines = replace(baselines, lead=lead)
            if recorder is not None:
                recorder.record(state.step, loss, pck)
                if is_best:
                    task.save(run.best)
                    if baselines is not None:
                        run.write_baselines(baselines)
                if state.step % settings.checkpoint_every == 0 or stopped:
                    recorder.keep(state)
            seconds = time.monotonic() - started
            progress.say(
                f"loss {loss:.3f}"
                + ("" if last_pck is None else f", PCK@0.1 {100 * last_pck:.1f} (best {100 * state.best:.1f})")
                + f", {passes / task.passes_per_image / seconds:.1f} images/s, {learned / seconds:.1f} pairs/s"
            )
            progress.advance()
        if recorder is not None:
            recorder.keep(state)
            if not task.validation:
                task.save(run.best)
            with writing(run.tensorboard):
                recorder.board.close()
        processes.wait()
    return Outcome(state.step, state.best if state.best >= 0 else None, passes, stopped, baselines)


def _baselines(
    task: Task, run: Run, state: "TrainingState", processes: Processes, progress: Progress
) -> Baselines | None:
    """What was validated before step 1, by all processes, unless an earlier call did; no random state moves."""
    known = processes.gather(run.baselines if processes.is_main else None)[0]
    if known is not None or state.step > 0 or not task.validation:
        return known
    words = run.words
    progress.start("validating before step 1", 2, "validations")
    _, text = task.validate_plain(processes)
    progress.advance()
    initial, _ = task.validate(processes)
    progress.advance()
    found = Baselines(tuple(text.tolist()), initial)
    if processes.is_main:
        run.write_baselines(found)
    before = f"{100 * found.of_text:.1f} % with {words.plain}, {100 * initial:.1f} % with {words.first}"
    progress.tell(f"PCK@0.1 before step 1, on the {len(text)} pairs {words.pairs}: {before}")
    return found


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, signals are only noted: the function that is given says whether one came. A second Ctrl-C interrupts at
    once. Afterwards signals are handled as before."""
    asked = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield asked.is_set
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in (getattr(signal, name) for name in names)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _raised_once() -> Iterator[None]:
    """What the disk refuses to TensorBoard's thread is raised where its file is flushed: and is not printed besides."""
    plain = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if type(raised.thread).__module__ != event_file_writer.__name__:
            plain(raised)

    threading.excepthook = hook
    yield
    threading.excepthook = plain  # not where something failed: the thread may be about to say so


class _Recorder:
    """Writes what happens into the run's folder; of steps that a kill undid nothing stays."""

    def __init__(self, run: Run, task: Task, step: int, baselines: Baselines | None) -> None:
        self._run, self._task, self._baselines = run, task, baselines
        self._rows = run.metrics_until(step)
        if len(self._rows) != step:
            raise TuningError(
                f"{run.path}/metrics.csv has {len(self._rows)} of the {step} steps that the checkpoint has: copy both "
                "again from where they are whole, or start a new run."
            )
        self._before = float(self._rows[-1][3]) if self._rows else 0.0
        self._started = time.monotonic()
        with writing(self._run.tensorboard):
            # TensorBoard forgets what earlier files say of this step and later ones
            self.board = SummaryWriter(run.tensorboard, purge_step=step + 1 if step else 0)
            if baselines is not None and step == 0:
                self._show(0, baselines.initial)
            self.board.flush()

    def record(self, step: int, loss: float, pck: float | None) -> None:
        """One step's numbers."""
        seconds = self._before + time.monotonic() - self._started
        self._rows.append((str(step), f"{loss:.6f}", "" if pck is None else f"{pck:.6f}", f"{seconds:.1f}"))
        with writing(self._run.tensorboard):
            self.board.add_scalar("loss", loss, step)
            if pck is not None:
                self._show(step, pck)

    def _show(self, step: int, pck: float) -> None:
        self.board.add_scalar("validation/nn PCK@0.1", pck, step)
        if self._baselines is not None:
            self.board.add_scalar(f"validation/nn PCK@0.1, {self._run.words.tag}", self._baselines.of_text, step)

    def keep(self, state: "TrainingState") -> None:
        """Make everything so far durable. The checkpoint comes last: what it says has happened is then on disk."""
        with writing(self._run.tensorboard):
            self.board.flush()
        self._run.write_metrics(self._rows)
        self._task.save(self._run.last)
        state.save(self._run.checkpoint)


def sum_numbers(numbers: Sequence[float], processes: Processes, device: torch.device) -> list[float]:
    """Each number summed over processes. Raises `ProcessError` where another one ended."""
    if processes.count == 1:
        return [*map(float, numbers)]
    # gloo and NCCL both add float64
    return processes.sum(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


@dataclass(slots=True)
class TrainingState:
    """step: how many are done. parameters: in a fixed order. optimiser: Adam over them. best: the best validation PCK
    so far, a fraction; -1 before the first. scaler: of float16's gradients, which lets others pass."""

    step: int
    parameters: Sequence[nn.Parameter]
    optimiser: torch.optim.Optimizer
    best: float
    scaler: torch.amp.GradScaler

    def forget_gradients(self, unused: UnusedCategories) -> None:
        """Make a batch's gradients start from nothing. Under Adam a parameter whose gradient is absent stays, and one
        whose gradient is zero goes on with its momentum; one that was never used has none."""
        drifts = unused is UnusedCategories.DRIFT
        for own in self.parameters:
            own.grad = torch.zeros_like(own) if drifts and self.optimiser.state.get(own) else None

    def save(self, file: Path) -> None:
        """Write it; the file appears whole or not at all. Raises what `write_whole` raises."""
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            own: dict[str, Any] = {f"{index}": parameter}
            own |= {f"{index}|{name}": value for name, value in self.optimiser.state.get(parameter, {}).items()}
            tensors |= {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in own.items()}
        written = {"step": self.step, "best": self.best, "scaler": self.scaler.state_dict() or None}
        write_whole(file, seal_tensors(written, lambda metadata: save(tensors, metadata=metadata)))

    def load(self, file: Path) -> None:
        """Take over what `save` wrote. Raises `TuningError` where the file is damaged or does not fit this run."""
        try:
            content, written = read_tensors(file)
            check_tensors_seal(content, written)
            tensors = load(content)
            for index, parameter in enumerate(self.parameters):
                own = tensors.pop(f"{index}")
                theirs, ours = (f"{one.dtype} of shape {tuple(one.shape)}" for one in (own, parameter))
                if theirs != ours:  # copying would broadcast and convert
                    raise ValueError(f"parameter {index} is {theirs}, in this run {ours}")
                with torch.no_grad():
                    parameter.copy_(own)
                # Adam keeps its count of steps on the CPU
                self.optimiser.state[parameter] = {
                    name: tensors[key] if name == "step" else tensors[key].to(parameter.device)
                    for key in tensors
                    if (name := key.removeprefix(f"{index}|")) != key
                }
            self.step, self.best = int(written["step"]), float(written["best"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TuningError(
                f"The checkpoint {file} cannot be used ({error}): copy it again from where it is whole, or train anew."
            ) from error
        if written["scaler"]:
            self.scaler.load_state_dict(written["scaler"])
