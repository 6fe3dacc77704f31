"""Evaluations that were kept: read and scored again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from featstore.backbones.stable_diffusion import check_timesteps
from featstore.errors import EvaluationError, ModelError
from featstore.parsing import parse_known
from featstore.pipeline.predictions import load_predictions
from featstore.pipeline.results import PREDICTIONS, RUN, Evaluation, Scoring, read_description, tabulated
from featstore.sealed import check_seal
from matcher.configuration import MODULES, Configuration, Frame
from matcher.errors import MatchError
from matcher.pck import Average, Matches


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
    matched: Matches
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `EvaluationError` where there is none, or a newer dualsd wrote it, or it is damaged."""
        description = read_description(path)
        try:
            said: _Described = parse_known(_Described, description)
            said.check()
            matched = load_predictions(path / PREDICTIONS)
            said.check_against(matched)
            check_seal(description)
        except (ValueError, MatchError, ModelError) as error:
            raise EvaluationError(f"{path / RUN} is damaged or was changed ({error}): evaluate again.") from error
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
        readouts: Sequence[str] | None = None,
        alphas: Sequence[float] | None = None,
        frame: Frame | None = None,
    ) -> Evaluation:
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
        matched = Matches(self.matched.pairs, {readout: self.matched.predictions[readout] for readout in chosen})
        return replace(tabulated(self.dataset, self.split, scoring, self.features, matched), notes=self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the list when it was evaluated; nothing where an older dualsd did."""
        kept = self.description.get("notes")
        return tuple(map(str, kept)) if isinstance(kept, list) else ()

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
        for place, readout in enumerate(scoring.readouts):
            if readout not in MODULES:
                known = ", ".join(map(repr, MODULES))
                raise ValueError(f"scoring.readouts[{place}] is {readout!r}, not one of {known}")
        for name, values in (("readouts", scoring.readouts), ("alphas", scoring.alphas)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"scoring.{name} is empty, or names one twice")
        if not all(0 < alpha <= 1 for alpha in scoring.alphas):
            raise ValueError(f"scoring.alphas is {list(scoring.alphas)}, which are not all above 0 and at most 1")

    def check_against(self, matched: Matches) -> None:
        """Raise ValueError where the predictions are others than is said."""
        if set(self.scoring.readouts) != set(matched.predictions):
            raise ValueError("its predictions are of other readouts than scoring.readouts says")
        found = {
            "n_pairs": len(matched),
            "n_points": int(matched.pairs.counts.sum()),
            "categories": tuple(matched.pairs.occurring),
        }
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}, and the predictions have {value}")
