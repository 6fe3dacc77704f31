"""An evaluation's folder: what was asked, what was predicted, what came out.

runs/eval-2+3-001/
    run.json                  settings, dataset, features, versions
    predictions.safetensors   see `featstore.predictions`
    results.json              what `dualsd eval --json` writes

A folder appears whole or not at all: it is written beside its place, under a hidden name, and renamed.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from featstore.errors import EvaluationError
from featstore.evaluation import Result, Scoring, tabulated
from featstore.pair_list import describe_list
from featstore.predictions import check_version, load_predictions, predictions_bytes
from featstore.store.full_disk import Needed, naming_missing_bytes, writing
from featstore.store.schema import creator_version
from featstore.store.sweep import MAKING, sweep_making
from featstore.tuning import run_folder
from featstore.whole_file import write_whole
from matcher.errors import MatchError
from matcher.geometry import Geometry
from matcher.maps import LayerSpec
from matcher.match import MatchSettings
from matcher.pairs import Frame
from matcher.pck import MatchedPair
from matcher.readout import Readout

FORMAT = "dualsd evaluation"
VERSION = 1
_RUN, _PREDICTIONS, _RESULTS = "run.json", "predictions.safetensors", "results.json"


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRun:
    """An evaluation as it was kept. features: where its maps came from. matched: its pairs and what was predicted.
    description: all that `run.json` holds."""

    path: Path
    dataset: str
    split: str
    scoring: Scoring
    features: Mapping[str, Any]
    matched: tuple[MatchedPair, ...]
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `EvaluationError` where there is none, or a newer dualsd wrote it, or it is damaged."""
        description = _read(path)
        try:
            run = cls(
                path=path,
                dataset=str(description["dataset"]),
                split=str(description["split"]),
                scoring=_scoring(description["scoring"]),
                features=dict(description["features"]),
                matched=load_predictions(path / _PREDICTIONS),
                description=description,
            )
        except (KeyError, TypeError, ValueError, MatchError) as error:
            raise EvaluationError(f"{path / _RUN} is damaged ({error!r}): evaluate again.") from error
        if set(run.scoring.readouts) != set(run.matched[0].predictions):
            raise EvaluationError(f"{path} is damaged: its predictions are of other readouts than {_RUN} says.")
        return run

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


def check_place(path: Path | None) -> None:
    """Raise `EvaluationError`, before any work is done, where a run cannot be kept. path: None for the next free place
    under ./runs."""
    place = run_folder.RUNS / "eval" if path is None else path
    if path is not None and not _is_free(path):
        raise _in_the_way(path)
    existing = next(parent for parent in place.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise EvaluationError(f"The run's folder {place} cannot be made in {existing}: give another place with --out.")


def save_evaluation(
    result: Result, path: Path | None, parent: Path = run_folder.RUNS, about: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Keep a result in `path`, by default the next free `<parent>/eval-<layers>-NNN`, and return where. about: what
    else `run.json` is to hold, by names of its own.

    Raises `EvaluationError` where something lies there, `DiskFullError` with the bytes that are missing where the disk
    is full, `StoreError` where it does not take it for another reason.
    """
    layers = "+".join(re.sub(r"[^\w.-]", "_", layer.layer) for layer in result.scoring.layers)
    beside = parent if path is None else path.parent
    sweep_making(beside, f".eval-{layers}")
    making = beside / f".eval-{layers}.{secrets.token_hex(4)}{MAKING}"
    contents = {
        _PREDICTIONS: predictions_bytes(result.matched),
        _RESULTS: _json_bytes(result.to_json()),
        _RUN: _json_bytes({**about, **_describe(result)}),
    }
    needed = Needed(sum(map(len, contents.values())), len(contents), 1)
    place = path or parent
    try:
        with naming_missing_bytes(place, lambda: needed), writing(f"The run in {place}"):
            making.mkdir(parents=True)
            for name, content in contents.items():
                write_whole(making / name, content)
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


def _scoring(described: Mapping[str, Any]) -> Scoring:
    settings = dict(described["settings"])
    for name in ("geometry", "upsample_align"):
        settings[name] = Geometry(settings[name])
    return Scoring(
        layers=tuple(LayerSpec(**layer) for layer in described["layers"]),
        readouts=tuple(Readout(name) for name in described["readouts"]),
        alphas=tuple(float(alpha) for alpha in described["alphas"]),
        settings=MatchSettings(**settings),
        frame=None if described["frame"] is None else Frame(described["frame"]),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} is no run of `dualsd eval`: it has no {_RUN} that can be read.") from error
    if isinstance(description, dict) and description.get("format") == run_folder.FORMAT:
        raise EvaluationError(f"{path} is a run of `dualsd train`: evaluate it with `dualsd eval --prompts {path}`.")
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise EvaluationError(f"{path} is no run of `dualsd eval`: its {_RUN} is another program's.")
    check_version(description, VERSION, str(path))
    return description
