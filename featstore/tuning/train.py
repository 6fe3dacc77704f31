"""A run that is asked to stop finishes its step and saves itself first: Ctrl-C, SIGTERM, SIGUSR1 (preemption)."""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from featstore.errors import DiskFullError, TuningError
from featstore.files import writing
from featstore.pipeline.batches import chunks
from featstore.progress import Progress
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.file import save_prompts
from featstore.tuning.data import NoiseAhead, NoisySource, RandomPairs
from featstore.tuning.prompt_sets import PromptSet
from featstore.tuning.run_folder import RunFolder, trained_alone
from featstore.tuning.settings import TuningSettings
from featstore.tuning.state import TrainingState, share, sum_gradients, sum_numbers, wait_for_all
from featstore.tuning.step import LoadNoisy, Networks, batch_loss, sum_of_pck
from matcher.pairs import MatchingPair

if TYPE_CHECKING:
    from accelerate import Accelerator

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


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
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_FORMAT = "brain.Event:2"


class Board:
    """Writes into a new file of a folder. Every method, and making one, raises `StoreError` or `DiskFullError` where
    the disk does not take it."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: TensorBoard forgets what earlier files of the folder say of it and of later ones."""
        self._file = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with writing(self._file):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self._file.open("wb"))
        self._write(Event(file_version=_FORMAT))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """One number of one step."""
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        """Hand everything so far to the disk."""
        with writing(self._file):
            self._writer.flush()

    def close(self) -> None:
        """Nothing more comes."""
        with writing(self._file):
            self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._file):
            self._writer.write(event.SerializeToString())


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is learned from what. pairs, validation: in the resized frame; no validation where the dataset has no such
    split. noisy: for steps. validation_noisy: for validation. description: of prompts, but for what they hold."""

    pairs: Sequence[MatchingPair]
    validation: Sequence[MatchingPair]
    networks: Networks
    prompts: Sequence[PromptSet]
    noisy: NoisySource
    validation_noisy: LoadNoisy
    description: LearnedPrompts
    batch_size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """steps: done. best: validation PCK of the prompts that are kept, a fraction, None without validation. passes:
    UNet passes made in this call. stopped: whether a signal ended it early."""

    steps: int
    best: float | None
    passes: int
    stopped: bool


def train(
    problem: Problem, run: RunFolder, settings: TuningSettings, accelerator: "Accelerator", progress: Progress
) -> Outcome:
    """Learn prompts, from the run's checkpoint on where it has one, until all steps are done or a signal comes.

    Ends in the same prompts however often it was stopped or killed in between (on a CPU bit by bit). Raises
    `TuningError` where the loss is no number any more or another process trains the run, `DiskFullError` where
    the disk fills up; the last checkpoint is kept.
    """
    # of several processes the one that writes holds the run for all of them
    with trained_alone(run) if accelerator.is_main_process else nullcontext():
        state = _open_state(problem, settings, accelerator)
        if run.checkpoint.exists():
            state.load(run.checkpoint)
        try:
            return _learn(problem, run, settings, accelerator, progress, state)
        except DiskFullError as error:
            raise DiskFullError(error.fault, f"go on with `dualsd train --resume {run.path}`") from error


def _learn(
    problem: Problem,
    run: RunFolder,
    settings: TuningSettings,
    accelerator: "Accelerator",
    progress: Progress,
    state: TrainingState,
) -> Outcome:
    sampler = RandomPairs(len(problem.pairs), settings.batch, settings.seed)
    recorder = _Recorder(run, problem, state.step) if accelerator.is_main_process else None
    progress.start("training", settings.steps - state.step, "steps")
    passes, learned, best, last_pck = 0, 0, state.best, None
    started = time.monotonic()
    with stop_requests() as asked_to_stop:
        stopped = False
        while state.step < settings.steps and not stopped:
            batch = sampler.batch(state.step)
            _expect(problem, sampler, state.step, accelerator)
            loss, made = _step([problem.pairs[index] for index in batch], state, problem, settings, accelerator)
            loss, all_made, stops = sum_numbers([loss, made, asked_to_stop()], accelerator, problem.networks.device)
            passes, learned, stopped = passes + round(all_made), learned + len(batch), stops > 0
            if not math.isfinite(loss):
                kept = f"the checkpoint of {run.path} is kept" if run.checkpoint.exists() else "there is no checkpoint"
                raise TuningError(
                    f"The loss of step {state.step + 1} is {loss}: {kept}; try a smaller --lr, or --dtype float32."
                )
            state.step += 1
            pck = None
            if problem.validation and (state.step % settings.validate_every == 0 or state.step == settings.steps):
                pck = last_pck = _validate(problem, settings, accelerator)
                best = max(best, pck)
            if recorder is not None:
                recorder.record(state.step, loss, pck)
                if pck is not None and pck > state.best:
                    save_prompts(_snapshot(problem), run.prompts)
            state.best = best
            if recorder is not None and (state.step % settings.checkpoint_every == 0 or stopped):
                recorder.keep(state)
            seconds = time.monotonic() - started
            progress.say(
                f"loss {loss:.3f}"
                + ("" if last_pck is None else f", PCK@0.1 {100 * last_pck:.1f} (best {100 * best:.1f})")
                + f", {passes / len(settings.layers) / seconds:.1f} images/s, {learned / seconds:.1f} pairs/s"
            )
            progress.advance()
    if recorder is not None:
        recorder.keep(state)
        if not problem.validation:
            save_prompts(_snapshot(problem), run.prompts)
        recorder.close()
    wait_for_all(accelerator)
    return Outcome(state.step, best if best >= 0 else None, passes, stopped)


def _expect(problem: Problem, sampler: RandomPairs, step: int, accelerator: "Accelerator") -> None:
    """Have this step's and the next one's noisy latents read meanwhile, where they are read ahead."""
    if isinstance(problem.noisy, NoiseAhead):
        for coming in (step, step + 1):
            pairs = share([problem.pairs[index] for index in sampler.batch(coming)], accelerator)
            problem.noisy.expect((image for pair in pairs for image in (pair.source, pair.target)), coming)


def _open_state(problem: Problem, settings: TuningSettings, accelerator: "Accelerator") -> TrainingState:
    vectors = [own for one in problem.prompts for own in one.parameters()]
    networks = [own for one in problem.prompts for own in one.network_parameters()]
    groups: list[dict[str, Any]] = [{"params": vectors, "lr": settings.rate}]
    if networks:
        groups.append({"params": networks, "lr": settings.network_rate})
    optimiser = torch.optim.Adam(groups)
    return TrainingState(0, [*vectors, *networks], optimiser, -1.0, accelerator.scaler)


def _step(
    pairs: Sequence[MatchingPair],
    state: TrainingState,
    problem: Problem,
    settings: TuningSettings,
    accelerator: "Accelerator",
) -> tuple[float, int]:
    """One step of the optimiser: (this process's share of the batch's loss, UNet passes that it made)."""
    for parameter in state.parameters:
        parameter.grad = None  # not zero: what a batch does not use must not drift under Adam
    mine = share(pairs, accelerator)
    total, passes = 0.0, 0
    for part in chunks(mine, max(math.ceil(len(mine) / settings.accumulate), 1)):
        loss, made = batch_loss(
            part, len(pairs), state.step, problem.networks, problem.prompts, problem.noisy, settings
        )
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        total, passes = total + loss.item(), passes + made
    sum_gradients(state.parameters, accelerator)
    if state.scaler is None:
        state.optimiser.step()
    else:  # leaves out the step where gradients have overflown
        state.scaler.step(state.optimiser)
        state.scaler.update()
    return total, passes


def _validate(problem: Problem, settings: TuningSettings, accelerator: "Accelerator") -> float:
    mine = share(problem.validation, accelerator)
    summed = sum_of_pck(mine, problem.networks, problem.prompts, problem.validation_noisy, settings, problem.batch_size)
    (total,) = sum_numbers([summed], accelerator, problem.networks.device)
    return total / len(problem.validation)


def _snapshot(problem: Problem) -> LearnedPrompts:
    layers = problem.description.layers
    framed = problem.networks.framed
    tensors = {layer: own.tensors(framed) for layer, own in zip(layers, problem.prompts, strict=True)}
    return replace(problem.description, tensors=tensors)


class _Recorder:
    """Writes what happens into the run's folder; of steps that a kill undid nothing stays."""

    def __init__(self, run: RunFolder, problem: Problem, step: int) -> None:
        self._run, self._problem = run, problem
        self._rows = run.metrics_until(step)
        if len(self._rows) != step:
            raise TuningError(
                f"{run.path}/metrics.csv has {len(self._rows)} of the {step} steps that the checkpoint has: copy both "
                "again from where they are whole, or start a new run."
            )
        self._before = float(self._rows[-1][3]) if self._rows else 0.0
        self._started = time.monotonic()
        self._board = Board(run.tensorboard, step + 1)

    def record(self, step: int, loss: float, pck: float | None) -> None:
        """One step's numbers."""
        seconds = self._before + time.monotonic() - self._started
        self._rows.append((str(step), f"{loss:.6f}", "" if pck is None else f"{pck:.6f}", f"{seconds:.1f}"))
        self._board.add("loss", loss, step)
        if pck is not None:
            self._board.add("validation/nn PCK@0.1", pck, step)

    def keep(self, state: TrainingState) -> None:
        """Make everything so far durable. The checkpoint comes last: what it says has happened is then on disk."""
        self._board.flush()
        self._run.write_metrics(self._rows)
        save_prompts(_snapshot(self._problem), self._run.last_prompts)
        state.save(self._run.checkpoint)

    def close(self) -> None:
        """Nothing more comes."""
        self._board.close()
