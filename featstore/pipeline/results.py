"""What an evaluation found, and its folder: what was asked, what was predicted, what came out.

runs/eval-2+3-001/
    run.json                  settings, dataset, features, versions
    predictions.safetensors   see `featstore.pipeline.predictions`
    results.json              what `dualsd eval --json` writes

A folder appears whole or not at all: it is written beside its place, under a hidden name, and renamed. Until its report
is there, too, `.unfinished` lies in it, whose lock the process holds that makes it: a run that was killed is so known
from one that is at work, and the same evaluation takes its place.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.stable_diffusion import check_timesteps
from featstore.config import EvalConfig, ThetaName
from featstore.datasets.records import Dataset, ThetaRule, canonical_split
from featstore.errors import EvaluationError, ModelError
from featstore.files import making_folder, take_if_free, take_place, write_whole, writing
from featstore.parsing import parse_known
from featstore.parsing import to_json as config_to_json
from featstore.pipeline.pairs import RULES, describe_list, rule_name, spell_list
from featstore.pipeline.predictions import load_predictions, predictions_bytes
from featstore.sealed import check_seal, check_version, seal
from featstore.store.schema import creator_version
from featstore.tuning import runs
from matcher.configuration import (
    Configuration,
    Frame,
    LayerSpec,
    MatchSettings,
    describe_layers,
    find_readouts,
    frame_of,
)
from matcher.errors import MatchError
from matcher.pairs import PixelFrame
from matcher.pck import Average, Matches, Pck, PckTable, paper_rows, tabulate, to_json

FORMAT = runs.EVALUATION
VERSION = 1
RUN, PREDICTIONS, RESULTS = runs.RUN, "predictions.safetensors", "results.json"
_UNFINISHED = ".unfinished"


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is measured: readouts, alphas (fractions of theta), and how maps become matches. frame: in which distances
    are measured, None for each readout's own. theta: what that is measured on, None where an older dualsd did not say.
    strict: whether a point at alpha theta is missed."""

    layers: tuple[LayerSpec, ...]
    readouts: tuple[str, ...]
    alphas: tuple[float, ...]
    settings: MatchSettings
    frame: Frame | None = None
    theta: ThetaName | None = None
    strict: bool = False

    def of(self, dataset: Dataset) -> "Scoring":
        """The same with the data set's own rule for theta where none was asked for."""
        return replace(self, theta=self.theta or rule_name(dataset.theta_rule))

    @property
    def rule(self) -> str | None:
        """What theta is, in words."""
        return None if self.theta is None else RULES[self.theta].value

    @property
    def threshold(self) -> str:
        """Which distances are small enough: `distance <= alpha theta (box)`."""
        return f"distance {'<' if self.strict else '<='} alpha theta" + (f" ({self.theta})" if self.theta else "")

    @property
    def pixels(self) -> PixelFrame | None:
        """The frame as the matcher takes it."""
        return None if self.frame is None else PixelFrame(self.frame, self.settings.image_size, self.settings.pad)

    def frame_of(self, readout: str) -> Frame:
        """In which a readout is measured."""
        return frame_of(readout) if self.frame is None else self.frame


@dataclass(frozen=True, eq=False)
class Evaluation:
    """PCK with what it was measured on.

    `evaluation.pck["nn"].image[0.1].overall` is a fraction, `.by_category["cat"]` that of a category.

    Args:
        dataset: Its name.
        split: Whose pairs were matched.
        scoring: What was measured.
        features: Where the maps came from, for the record.
        matched: The pairs and what was predicted.
        notes: What is odd about the list, as `featstore.pipeline.pairs.note_oddities` said.
        config: As it was used, what was left open settled; None for pairs that were matched otherwise.
        origin: What else is known of where it comes from: `theta`, the data set's rule; `store`, where that of the maps
            lies, None for features from a file; `root`, the data set's folder, None for one that has none;
            `annotations`, the file that was named for it.
    """

    dataset: str
    split: str
    scoring: Scoring
    features: Mapping[str, Any]
    matched: Matches
    notes: tuple[str, ...] = ()
    config: EvalConfig | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def scores(self) -> PckTable:
        """The numbers."""
        return tabulate(self.matched, self.scoring.alphas, self.scoring.pixels)

    @property
    def pck(self) -> Mapping[str, Pck]:
        """By readout, average (`image` or `point`) and alpha: fractions over all pairs and of each category."""
        return self.scores.values

    @property
    def title(self) -> str:
        """The list that it was measured on: data set, split, pairs, points and the list's hash."""
        return f"{self.dataset} {self.split}, {spell_list(self.split, self.matched.pairs)}"

    @property
    def measured_on(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"dataset": self.dataset, "split": self.split, **describe_list(self.split, self.matched.pairs)}

    def table(self, average: Average = Average.IMAGE) -> str:
        """PCK in percent as lines of text: a row per readout and alpha, a column per category, `all` last."""
        header, rows = paper_rows(self.scores, average)
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        form = "  ".join(f"{{:{'<' if place < 2 else '>'}{width}}}" for place, width in enumerate(widths))
        lines = (form.format(*row) for row in (header, *rows))
        how = f"{average.value} average, {self.scoring.threshold}"
        return "\n".join([f"PCK in percent, {how}: {self.title}", *lines])

    def save(self, path: Path | str | None = None) -> Path:
        """`save_evaluation`, by default in the next free folder under ./runs; returns where."""
        return save_evaluation(self, None if path is None else Path(path))

    def to_json(self) -> dict[str, Any]:
        """As `dualsd eval --json` writes it; PCK values are fractions."""
        scoring, settings = self.scoring, config_to_json(self.scoring.settings)
        return {
            **self.measured_on,
            **describe_layers(scoring.layers),
            "geometry": settings.pop("geometry"),
            "frame": common_frame(scoring.readouts) if scoring.frame is None else scoring.frame.value,
            "frames": {readout: scoring.frame_of(readout).value for readout in scoring.readouts},
            **settings,
            "theta": scoring.theta,
            "strict": scoring.strict,
            "features": dict(self.features),
            "notes": list(self.notes),
            "results": to_json(self.scores),
        }


def common_frame(readouts: Sequence[str]) -> str:
    """The frame in which points, theta and distances are measured; `per readout` where readouts differ."""
    frames = {frame_of(readout).value for readout in readouts}
    return frames.pop() if len(frames) == 1 else "per readout"


def check_place(path: Path | None) -> None:
    """Raise `EvaluationError`, before any work is done, where a run cannot be kept. path: None for the next free place
    under ./runs."""
    place = runs.RUNS / "eval" if path is None else path
    if path is not None and not _is_free(path):
        lock = _left_by_a_kill(path)
        if lock is None:
            raise _in_the_way(path)
        os.close(lock)
    existing = next(parent for parent in place.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise EvaluationError(f"The run's folder {place} cannot be made in {existing}: give another place with --out.")


def save_evaluation(
    result: Evaluation,
    path: Path | None,
    parent: Path = runs.RUNS,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Keep a result.

    Args:
        result: What was found.
        path: The folder, by default the next free `<parent>/eval-<layers>-NNN`.
        parent: The folder of runs.
        about: What else `run.json` is to hold, by names of its own.

    Returns:
        The folder.

    Raises:
        EvaluationError: Something lies there.
        DiskFullError: The disk is full.
        StoreError: The disk does not take it for another reason.
    """
    return _save(result, path, parent, {**about, **_describe(result)}, lambda _: None)


@contextmanager
def kept_evaluation(
    result: Evaluation, path: Path | None, about: Mapping[str, Any], parent: Path = runs.RUNS
) -> Iterator[Path]:
    """`save_evaluation`, while more is written into the folder that it gives: until that is done the run is known as
    unfinished. One that a kill left so gives its place: that in `path`, or of the same evaluation in `parent`."""
    described = {**about, **_describe(result)}
    with ExitStack() as locks:

        def begin(making: Path) -> None:
            write_whole(making / _UNFINISHED, b"")
            lock = take_if_free(making / _UNFINISHED)
            if lock is not None:
                locks.callback(os.close, lock)

        for left in [path] if path is not None else sorted(parent.glob(f"eval-{_layers(result)}-*")):
            lock = _left_by_a_kill(left) if path is not None or _same_evaluation(left, described) else None
            if lock is not None:
                locks.callback(os.close, lock)
                shutil.rmtree(left)
                path = left
                break
        place = _save(result, path, parent, described, begin)
        del result  # of many pairs it is large, and whoever reports reads what is kept
        yield place
        (place / _UNFINISHED).unlink()


def is_finished(path: Path) -> bool:
    """Whether an evaluation lies there whose report was written."""
    return path.exists() and not (path / _UNFINISHED).exists()


def _left_by_a_kill(path: Path) -> int | None:
    """The lock of an evaluation that a kill left there unfinished; None where there is none."""
    return take_if_free(path / _UNFINISHED) if path.is_dir() else None


def _same_evaluation(path: Path, described: Mapping[str, Any]) -> bool:
    """Whether a folder's `run.json` says what `described` does, but for when and by which versions it was made."""
    try:
        before = read_description(path)
    except EvaluationError:
        return False
    own = described.keys() - {"created", "creator", "versions", "command"}
    return {name: before.get(name) for name in own} == json.loads(json.dumps({name: described[name] for name in own}))


def _layers(result: Evaluation) -> str:
    """As a run's folder names them."""
    return "+".join(re.sub(r"[^\w.-]", "_", layer.layer) for layer in result.scoring.layers)


def _save(
    result: Evaluation, path: Path | None, parent: Path, described: Mapping[str, Any], begin: Callable[[Path], None]
) -> Path:
    """begin: is given the folder before it appears in its place."""
    contents = {
        PREDICTIONS: predictions_bytes(result.matched),
        RESULTS: _json_bytes(result.to_json()),
        RUN: _json_bytes(seal(described)),
    }
    name, place = f"eval-{_layers(result)}", path or parent
    beside, places = (path.parent, [path]) if path is not None else (parent, runs.free_places(parent, name))
    size = sum(map(len, contents.values()))
    with writing(f"The run in {place}", size, place=place), making_folder(beside, f".{name}") as made:
        for file, content in contents.items():
            write_whole(made / file, content)
        begin(made)
        taken = take_place(made, places)
    if taken is None:
        raise _in_the_way(place)
    return taken


def _is_free(path: Path) -> bool:
    """Whether nothing lies there but, at most, an empty folder, which renaming replaces."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _in_the_way(path: Path) -> EvaluationError:
    return EvaluationError(f"{path} exists already: give another place with --out, or remove it.")


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _describe(result: Evaluation) -> dict[str, Any]:
    of_config = (
        {} if result.config is None else {"average": result.config.average, "config": config_to_json(result.config)}
    )
    return {
        **of_config,
        **result.origin,
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "creator": creator_version(),
        **result.measured_on,
        "categories": list(result.scores.categories),
        "scoring": config_to_json(result.scoring),
        "features": dict(result.features),
        "notes": list(result.notes),
        "versions": runs.library_versions(),
    }


def read_description(path: Path) -> dict[str, Any]:
    """What a run's `run.json` says. Raises `EvaluationError` where it is none of `dualsd eval`, or a newer one's."""
    description = runs.read_run(path)
    if description is not None and description.get("format") == runs.FORMAT:
        raise EvaluationError(f"{path} is a run of `dualsd train`: evaluate it with `dualsd eval --prompts {path}`.")
    if description is None or description.get("format") != FORMAT:
        why = f"it has no {RUN} that can be read" if description is None else f"its {RUN} is another program's"
        raise EvaluationError(f"{path} is no run of `dualsd eval`: {why}.")
    check_version(description, VERSION, str(path), EvaluationError)
    return description


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationRun(Evaluation):
    """An evaluation as it was kept, without its config. path: its folder. average: that of the printed table.
    description: all that `run.json` holds."""

    path: Path
    average: Average
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `EvaluationError` where there is none, or a newer dualsd wrote it, or it is damaged."""
        description = read_description(path)
        try:
            said: _Described = parse_known(_Described, description)
            matched = load_predictions(path / PREDICTIONS)
            said.check(matched)
            check_seal(description)
            scoring = said.scoring
            if scoring.theta is None and said.theta is not None:  # as a dualsd before this one says it
                scoring = replace(scoring, theta=rule_name(ThetaRule(said.theta)))
        except (ValueError, MatchError, ModelError) as error:
            raise EvaluationError(f"{path / RUN} is damaged or was changed ({error}): evaluate again.") from error
        matched = replace(matched, pairs=replace(matched.pairs, strict=scoring.strict))
        own = said.dataset, said.split, scoring, said.features, matched, said.notes
        return cls(*own, path=path, average=said.average, description=description)

    def scored(
        self,
        readouts: Sequence[str] | None = None,
        alphas: Sequence[float] | None = None,
        frame: Frame | None = None,
        theta: ThetaName | None = None,
        strict: bool | None = None,
    ) -> Evaluation:
        """Scored again, by default as it was. Raises `EvaluationError` for a readout or a theta that it lacks."""
        before = self.scoring
        chosen = before.readouts if readouts is None else tuple(readouts)
        for readout in chosen:
            self.check_readout(readout)
        thresholds = before.alphas if alphas is None else tuple(alphas)
        run = self.under(theta, strict)
        shown = before.frame if frame is None else frame
        scoring = replace(run.scoring, readouts=chosen, alphas=thresholds, frame=shown)
        matched = Matches(run.matched.pairs, {readout: run.matched.predictions[readout] for readout in chosen})
        return Evaluation(self.dataset, canonical_split(self.split), scoring, self.features, matched, self.notes)

    def under(self, theta: ThetaName | None, strict: bool | None) -> Self:
        """The run with other thresholds, by default its own. Raises `EvaluationError` where a theta was not kept."""
        pairs = self.matched.pairs
        if theta is not None and theta != self.scoring.theta:
            pairs = pairs.with_theta(self._thetas(theta))
        is_strict = self.scoring.strict if strict is None else strict
        scoring = replace(self.scoring, theta=theta or self.scoring.theta, strict=is_strict)
        return replace(self, matched=replace(self.matched, pairs=replace(pairs, strict=is_strict)), scoring=scoring)

    def _thetas(self, theta: ThetaName) -> NDArray[np.float64]:
        """(P, 2), in the resized and the original frame."""
        pairs = self.matched.pairs
        thetas = dict(pairs.thetas)
        if theta == "image":
            longer = pairs.in_original_frame()[1][:, 2:].max(axis=1).astype(np.float64)
            thetas["image"] = np.stack([np.full(len(pairs), float(self.scoring.settings.image_size)), longer], axis=1)
        if theta not in thetas:
            raise EvaluationError(
                f"{self.path} does not keep the {RULES[theta].value}: its data set has none of every "
                f"target, or a dualsd before this one kept it; evaluate again with --theta {theta}."
            )
        return thetas[theta]

    def check_readout(self, readout: str) -> None:
        """Raise `EvaluationError` for one that the run lacks."""
        if readout not in self.scoring.readouts:
            known = ", ".join(self.scoring.readouts)
            raise EvaluationError(f"{self.path} has no readout {readout}: it was evaluated with {known}.")


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
    notes: tuple[str, ...] = ()  # an older dualsd had none
    average: Average = Average.IMAGE
    theta: str | None = None
    store: str | None = None
    root: str | None = None
    annotations: str | None = None
    created: str | None = None
    creator: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] | None = None

    def check(self, matched: Matches) -> None:
        """Raise ValueError, `MatchError` or `ModelError` for values that no evaluation has, or other ones than the
        predictions'."""
        scoring, pairs = self.scoring, matched.pairs
        Configuration(scoring.layers, scoring.settings)  # raises for weights that cannot be
        check_timesteps([layer.timestep for layer in scoring.layers if layer.timestep is not None])
        find_readouts(scoring.readouts)
        for name, values in (("readouts", scoring.readouts), ("alphas", scoring.alphas)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"scoring.{name} is empty, or names one twice")
        if not all(0 < alpha <= 1 for alpha in scoring.alphas):
            raise ValueError(f"scoring.alphas is {list(scoring.alphas)}, which are not all above 0 and at most 1")
        if set(scoring.readouts) != set(matched.predictions):
            raise ValueError("its predictions are of other readouts than scoring.readouts says")
        found = {"n_pairs": len(pairs), "n_points": int(pairs.counts.sum()), "categories": tuple(pairs.occurring)}
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}, and the predictions have {value}")
