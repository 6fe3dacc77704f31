"""An evaluation's folder: what was asked, what was predicted, what came out.

runs/eval-2+3-001/
    run.json                  settings, dataset, features, versions
    predictions.safetensors   see `featstore.pipeline.predictions`
    results.json              what `dualsd eval --json` writes

A folder appears whole or not at all: it is written beside its place, under a hidden name, and renamed. Until its report
is there, too, `.unfinished` lies in it, whose lock the process holds that makes it: a run that was killed is so known
from one that is at work, and the same evaluation takes its place.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from featstore.backbones.layers import check_timesteps
from featstore.errors import EvaluationError, ModelError
from featstore.files import write_whole, writing
from featstore.pair_list import describe_list
from featstore.parsing import parse_known
from featstore.pipeline.evaluate import Result, Scoring, tabulated
from featstore.pipeline.predictions import check_version, load_predictions, predictions_bytes
from featstore.sealed import check_seal, seal
from featstore.store.lock import take_if_free
from featstore.store.schema import creator_version
from featstore.store.sweep import MAKING, sweep_making
from featstore.tuning import run_folder
from matcher.configuration import Configuration
from matcher.errors import MatchError
from matcher.pairs import Frame
from matcher.pck import Average, MatchedPair
from matcher.readout import Readout

FORMAT = run_folder.EVALUATION
VERSION = 1
_RUN, _PREDICTIONS, _RESULTS = "run.json", "predictions.safetensors", "results.json"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRun:
    """An evaluation as it was kept. features: where its maps came from. average: that of the printed table. matched:
    its pairs and what was predicted. description: all that `run.json` holds."""

    path: Path
    dataset: str
    split: str
    scoring: Scoring
    features: Mapping[str, Any]
    average: Average
    matched: tuple[MatchedPair, ...]
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `EvaluationError` where there is none, or a newer dualsd wrote it, or it is damaged."""
        description = _read(path)
        try:
            said: _Described = parse_known(_Described, description)
            said.check()
            matched = load_predictions(path / _PREDICTIONS)
            said.check_against(matched)
            check_seal(description)
        except (ValueError, MatchError, ModelError) as error:
            raise EvaluationError(f"{path / _RUN} is damaged or was changed ({error}): evaluate again.") from error
        return cls(
            path=path,
            dataset=said.dataset,
            split=said.split,
            scoring=said.scoring,
            features=said.features,
            average=said.average,
            matched=matched,
            description=description,
        )

    def scored(
        self,
        readouts: Sequence[Readout] | None = None,
        alphas: Sequence[float] | None = None,
        frame: Frame | None = None,
    ) -> Result:
        """Scored again, by default as it was. Raises `EvaluationError` for a readout that it lacks."""
        chosen = self.scoring.readouts if readouts is None else tuple(readouts)
        for readout in chosen:
            self.check_readout(readout)
        scoring = replace(
            self.scoring,
            readouts=chosen,
            alphas=self.scoring.alphas if alphas is None else tuple(alphas),
            frame=self.scoring.frame if frame is None else frame,
        )
        matched = [
            MatchedPair(match.pair, {readout: match.predictions[readout] for readout in chosen})
            for match in self.matched
        ]
        return replace(tabulated(self.dataset, self.split, scoring, self.features, matched), notes=self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the list when it was evaluated; nothing where an older dualsd did."""
        kept = self.description.get("notes")
        return tuple(map(str, kept)) if isinstance(kept, list) else ()

    def check_readout(self, readout: Readout) -> None:
        """Raise `EvaluationError` for one that the run lacks."""
        if readout not in self.scoring.readouts:
            known = ", ".join(known.value for known in self.scoring.readouts)
            raise EvaluationError(f"{self.path} has no readout {readout.value}: it was evaluated with {known}.")


@dataclass(frozen=True, slots=True)
class _Described:
    """What `run.json` says and is read again."""

    dataset: str
    split: str
    categories: tuple[str, ...]
    n_pairs: int
    n_points: int
    scoring: Scoring
    features: Mapping[str, Any]
    average: Average = Average.IMAGE
    theta: str | None = None
    store: str | None = None
    root: str | None = None
    created: str | None = None
    creator: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise ValueError, `MatchError` or `ModelError` for values that no evaluation has."""
        scoring = self.scoring
        Configuration(scoring.layers, scoring.settings)  # raises for weights that cannot be
        check_timesteps([layer.timestep for layer in scoring.layers if layer.timestep is not None])
        for name, values in (("readouts", scoring.readouts), ("alphas", scoring.alphas)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"scoring.{name} is empty, or names one twice")
        if not all(0 < alpha <= 1 for alpha in scoring.alphas):
            raise ValueError(f"scoring.alphas is {list(scoring.alphas)}, which are not all above 0 and at most 1")

    def check_against(self, matched: Sequence[MatchedPair]) -> None:
        """Raise ValueError where the predictions are others than is said."""
        if set(self.scoring.readouts) != set(matched[0].predictions):
            raise ValueError("its predictions are of other readouts than scoring.readouts says")
        found = {
            "n_pairs": len(matched),
            "n_points": sum(len(match.pair.target_points) for match in matched),
            "categories": tuple(sorted({match.pair.category for match in matched})),
        }
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}, and the predictions have {value}")


def check_place(path: Path | None) -> None:
    """Raise `EvaluationError`, before any work is done, where a run cannot be kept. path: None for the next free place
    under ./runs."""
    place = run_folder.RUNS / "eval" if path is None else path
    if path is not None and not _is_free(path) and not _was_left(path):
        raise _in_the_way(path)
    existing = next(parent for parent in place.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise EvaluationError(f"The run's folder {place} cannot be made in {existing}: give another place with --out.")


def save_evaluation(
    result: Result, path: Path | None, parent: Path = run_folder.RUNS, about: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Keep a result in `path`, by default the next free `<parent>/eval-<layers>-NNN`, and return where. about: what
    else `run.json` is to hold, by names of its own.

    Raises `EvaluationError` where something lies there, `DiskFullError` where the disk is full,
    `StoreError` where it does not take it for another reason.
    """
    return _save(result, path, parent, {**about, **_describe(result)}, lambda _: None)


@contextmanager
def kept_evaluation(
    result: Result, path: Path | None, about: Mapping[str, Any], parent: Path = run_folder.RUNS
) -> Iterator[Path]:
    """`save_evaluation`, while more is written into the folder that it gives: until that is done the run is known as
    unfinished. One that a kill left so gives its place: that in `path`, or of the same evaluation in `parent`."""
    described = {**about, **_describe(result)}
    locks: list[int] = []

    def begin(making: Path) -> None:
        write_whole(making / _UNFINISHED, b"")
        locks.extend(lock for lock in [take_if_free(making / _UNFINISHED)] if lock is not None)

    try:
        candidates = sorted(parent.glob(f"eval-{_layers(result)}-*")) if path is None else [path]
        for left in candidates:
            if path is None and not _same_evaluation(left, described):
                continue
            lock = take_if_free(left / _UNFINISHED) if left.is_dir() else None
            if lock is not None:
                locks.append(lock)
                shutil.rmtree(left)
                path = left
                break
        place = _save(result, path, parent, described, begin)
        yield place
        (place / _UNFINISHED).unlink()
    finally:
        for lock in locks:
            os.close(lock)


def is_finished(path: Path) -> bool:
    """Whether an evaluation lies there whose report was written."""
    return path.exists() and not (path / _UNFINISHED).exists()


def _was_left(path: Path) -> bool:
    """Whether a kill left an evaluation there unfinished."""
    lock = take_if_free(path / _UNFINISHED) if path.is_dir() else None
    if lock is not None:
        os.close(lock)
    return lock is not None


def _same_evaluation(path: Path, described: Mapping[str, Any]) -> bool:
    """Whether a folder's `run.json` says what `described` does, but for when and by which versions it was made."""
    try:
        before = _read(path)
    except EvaluationError:
        return False
    own = described.keys() - {"created", "creator", "versions", "command"}
    return {name: before.get(name) for name in own} == json.loads(json.dumps({name: described[name] for name in own}))


def _layers(result: Result) -> str:
    """As a run's folder names them."""
    return "+".join(re.sub(r"[^\w.-]", "_", layer.layer) for layer in result.scoring.layers)


def _save(
    result: Result,
    path: Path | None,
    parent: Path,
    described: Mapping[str, Any],
    begin: Callable[[Path], None],
) -> Path:
    """begin: is given the folder before it appears in its place."""
    layers = _layers(result)
    beside = parent if path is None else path.parent
    sweep_making(beside, f".eval-{layers}")
    making = beside / f".eval-{layers}.{secrets.token_hex(4)}{MAKING}"
    contents = {
        _PREDICTIONS: predictions_bytes(result.matched),
        _RESULTS: _json_bytes(result.to_json()),
        _RUN: _json_bytes(seal(described)),
    }
    place = path or parent
    try:
        with writing(f"The run in {place}", sum(map(len, contents.values())), place=place):
            making.mkdir(parents=True)
            for name, content in contents.items():
                write_whole(making / name, content)
            begin(making)
            if path is not None:
                return _moved(making, path)
            while True:
                try:
                    return _moved(making, parent / run_folder.free_name(parent, f"eval-{layers}"))
                except EvaluationError:
                    continue  # another evaluation took the name in between
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _moved(making: Path, path: Path) -> Path:
    if not _is_free(path):
        raise _in_the_way(path)
    try:
        making.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _in_the_way(path) from error
        raise
    return path


def _is_free(path: Path) -> bool:
    """Whether nothing lies there but, at most, an empty folder, which renaming replaces."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _in_the_way(path: Path) -> EvaluationError:
    return EvaluationError(f"{path} exists already: give another place with --out, or remove it.")


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _describe(result: Result) -> dict[str, Any]:
    scoring = result.scoring
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "creator": creator_version(),
        "dataset": result.dataset,
        "split": result.split,
        "categories": list(result.table.categories),
        **describe_list(result.split, [match.pair for match in result.matched]),
        "scoring": {
            "layers": [asdict(layer) for layer in scoring.layers],
            "readouts": [readout.value for readout in scoring.readouts],
            "alphas": list(scoring.alphas),
            "frame": None if scoring.frame is None else scoring.frame.value,
            "settings": {
                name: value.value if isinstance(value, Enum) else value
                for name, value in asdict(scoring.settings).items()
            },
        },
        "features": dict(result.features),
        "notes": list(result.notes),
        "versions": run_folder.library_versions(),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is no run of `dualsd eval`: it has no {_RUN} that can be read.") from error
    if isinstance(description, dict) and description.get("format") == run_folder.FORMAT:
        raise EvaluationError(f"{path} is a run of `dualsd train`: evaluate it with `dualsd eval --prompts {path}`.")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise EvaluationError(f"{path} is no run of `dualsd eval`: its {_RUN} is another program's.")
    check_version(description, VERSION, str(path))
    return description
