"""Kept runs as the workbench goes through them: the worst pairs of an evaluation, and the pairs that a cell of a grid
wins and loses against the best one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.adapters.run import AdapterRun
from featstore.backbones.registry import DIFFUSION, family_of
from featstore.errors import EvaluationError
from featstore.pipeline.grid_results import FILE as GRID_FILE
from featstore.pipeline.grid_results import KeptGrid
from featstore.pipeline.live import LiveLayer, LiveSetting
from featstore.pipeline.live_adapters import spec_at
from featstore.pipeline.misses import kinds_of
from featstore.pipeline.results import EvaluationRun
from featstore.store.keys import RAW, AdaptedExtractor
from featstore.store.store import Store
from featstore.tuning.run_folder import RunFolder, identity
from featstore.tuning.runs import ADAPTATION, EVALUATION, read_run
from matcher.configuration import PARAMETERS, LayerSpec, MatchSettings
from matcher.errors import InputError, MatchError
from matcher.grid import describe
from matcher.misses import KINDS, Kind
from matcher.pck import distances

LISTED = 200
"""Pairs that are listed at once."""

KIND_NAMES: Mapping[Kind, str] = {
    Kind.RIGHT: "right",
    Kind.NEAR: "near",
    Kind.MIRRORED: "mirrored",
    Kind.OTHER: "another",
    Kind.ELSEWHERE: "elsewhere",
}
"""What becomes of a point, as JSON names it."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A kept run. kind: what made it. label: its layers and what it was made on. created: when, as it says itself."""

    path: Path
    kind: Literal["eval", "grid", "train", "adapt"]
    label: str
    created: str


def list_runs(folders: Iterable[Path], store: Store) -> list[ListedRun]:
    """The runs on a store's images that lie in some folders, or are these, the newest first; what cannot be read is
    passed over."""
    places = {place.resolve(): place for folder in folders for place in (folder, *_below(folder))}
    found = [listed for place in places.values() if (listed := _listed(place, store)) is not None]
    return sorted(found, key=lambda run: (run.created, str(run.path)), reverse=True)


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _listed(place: Path, store: Store) -> ListedRun | None:
    try:
        if (place / GRID_FILE).is_file():
            grid = KeptGrid.open(place).about
            layers = [layer.layer for one in grid.configurations for layer in one.layers]
            label = f"grid on {grid.split}, {_layers(layers)}"
            return ListedRun(place, "grid", label, grid.created) if grid.dataset == store.header.dataset else None
        described = read_run(place) or {}
        if described.get("format") == RunFolder.FORMAT:
            run = RunFolder.open(place)
            label = f"{run.settings.mode.value} prompts, {_layers([*map(str, run.settings.layers)])}"
            is_own = run.identity == identity(store.header)
            return ListedRun(place, "train", label, str(described.get("created"))) if is_own else None
        if described.get("format") == ADAPTATION:
            learned = AdapterRun.open(place)
            label = f"{learned.settings.mode} adapter, {_layers([layer for layer, _ in learned.settings.inputs])}"
            is_own = described.get("identity") == identity(store.header)
            return ListedRun(place, "adapt", label, str(described.get("created"))) if is_own else None
        if described.get("format") != EVALUATION or described.get("dataset") != store.header.dataset:
            return None
        layers = [str(own["layer"]) for own in described["scoring"]["layers"]]
        label = f"evaluation on {described['split']}, {_layers(layers)}"
        return ListedRun(place, "eval", label, str(described.get("created")))
    except (KeyError, TypeError, InputError):  # it is no run, or a damaged one
        return None


def _layers(names: Sequence[str]) -> str:
    own = dict.fromkeys(names)
    return f"layer{'s' * (len(own) > 1)} {'+'.join(own)}"


@dataclass(frozen=True, slots=True)
class Asked:
    """Which pairs of a run are listed: of a category, with a kind of error, from which on, by which readout and alpha;
    None for all, and for the run's first."""

    category: str | None = None
    kind: str | None = None
    start: int = 0
    readout: str | None = None
    alpha: float | None = None
    cell: int | None = None


def worst_pairs(run: EvaluationRun, rows: Mapping[str, int], asked: Asked) -> dict[str, Any]:
    """The pairs of an evaluation as JSON has them, the worst first.

    Args:
        run: The evaluation.
        rows: Of images in the store, by id; pairs of others are passed over.
        asked: Which ones.

    Raises:
        EvaluationError: The run lacks what is asked for.
    """
    scoring, pairs = run.scoring, run.matched.pairs
    readout = asked.readout or scoring.readouts[0]
    run.check_readout(readout)
    alpha = asked.alpha or shown_alpha(scoring.alphas)
    measured = distances(run.matched, readout, scoring.pixels)
    pck = measured.hits(alpha) / measured.counts
    error = np.add.reduceat(measured.distances, pairs.starts) / measured.counts / measured.thetas
    counts = _kinds_of_pairs(run, readout, alpha)
    chosen = np.array([{*pairs.named(row)[:2]} <= rows.keys() for row in range(len(pairs))])
    if asked.category is not None:
        chosen &= pairs.occurring.get(asked.category, np.zeros(len(pairs), dtype=bool))
    order = np.lexsort((-error, pck))
    if asked.kind is not None:
        if counts is None or asked.kind not in KIND_NAMES.values():
            raise EvaluationError(f"{run.path} does not tell points of the kind {asked.kind!r} apart: choose another.")
        own = counts[asked.kind] / measured.counts
        chosen &= own > 0
        order = np.lexsort((-error, pck, -own))
    listed = [int(row) for row in order if chosen[row]]
    return {
        "kind": "eval",
        **_scored(readout, alpha, scoring.readouts, scoring.alphas),
        "categories": [*pairs.occurring],
        "setting": setting_of(scoring.layers, scoring.settings, readout, run.features),
        "total": len(listed),
        "pairs": [
            {
                **_named(pairs.named(row), rows),
                "pck": float(pck[row]),
                "points": int(measured.counts[row]),
                "misses": None if counts is None else {name: int(own[row]) for name, own in counts.items()},
            }
            for row in listed[asked.start : asked.start + LISTED]
        ],
    }


def shown_alpha(alphas: Sequence[float]) -> float:
    """0.1 where it is among some, else the middle one."""
    return 0.1 if 0.1 in alphas else sorted(alphas)[len(alphas) // 2]


def _scored(readout: str, alpha: float, readouts: Sequence[str], alphas: Sequence[float]) -> dict[str, Any]:
    return {"readout": readout, "alpha": alpha, "readouts": [*readouts], "alphas": [*alphas]}


def _named(ends: tuple[str, str, str], rows: Mapping[str, int]) -> dict[str, Any]:
    source, target, category = ends
    return {"source": rows[source], "target": rows[target], "ids": [source, target], "category": category}


def _kinds_of_pairs(run: EvaluationRun, readout: str, alpha: float) -> dict[str, NDArray[np.int64]] | None:
    """How many points of each pair are of each kind, (P,); None where an older dualsd kept the run."""
    try:
        found = kinds_of(run, readout, alpha)
    except (EvaluationError, MatchError):
        return None
    starts = run.matched.pairs.starts
    return {KIND_NAMES[kind]: np.add.reduceat(found == at, starts, dtype=np.int64) for at, kind in enumerate(KINDS)}


def setting_of(
    layers: Sequence[LayerSpec], settings: MatchSettings, readout: str, features: Mapping[str, Any]
) -> LiveSetting | None:
    """How a run matched, None where the store keeps no maps of it: prompts of pairs, a readout of pixels.

    Args:
        layers: Of the run.
        settings: Of the run.
        readout: Which of its readouts.
        features: Where its maps came from, as the run says.
    """
    keys = _keys_of(layers, features)
    if readout == "pixel" or not all(isinstance(key, str) for key in keys):
        return None
    said: dict[str, Any] = {name: getattr(settings, field) for name, field in PARAMETERS.get(readout, {}).items()}
    return LiveSetting(
        tuple(LiveLayer(own.layer, own.timestep, str(key)) for own, key in zip(layers, keys, strict=True)),
        tuple(own.weight for own in layers),
        readout,  # type: ignore[arg-type]
        geometry=settings.geometry.value,
        upsample=settings.upsample,
        upsample_align=settings.upsample_align.value,  # type: ignore[arg-type]
        **said,
    )


def _keys_of(layers: Sequence[LayerSpec], features: Mapping[str, Any]) -> list[Any]:
    """Whose maps a run matched, by layer: the key of an extractor, where there is one."""
    if is_adapted(features):
        sources = [own for name, own in features.items() if name == "extractor" or name.endswith("_extractor")]
        kept_as = str(features["adapter_fingerprint"]), tuple(sources), str(features.get("encoding", RAW))
        return [AdaptedExtractor(*kept_as).key if all(sources) else None] * len(layers)
    families = (family_of(own.layer) for own in layers)
    return [features.get("extractor" if own == DIFFUSION else f"{own}_extractor") for own in families]


def is_adapted(features: Mapping[str, Any]) -> bool:
    """Whether a run matched adapted maps, and not only by an adapter's weights. features: where its maps came from."""
    if "adapter_fingerprint" not in features:
        return False
    spec = spec_at(Path(str(features.get("adapter"))))
    return spec is None or spec.kind != "weights"


def grid_cells(grid: KeptGrid, rows: Mapping[str, int], asked: Asked) -> dict[str, Any]:
    """A grid as JSON has it: PCK of every configuration, by layers; and, where a cell is asked for, the pairs that it
    wins and loses against the best.

    Args:
        grid: The grid.
        rows: Of images in the store, by id; pairs of others are passed over.
        asked: Which readout, alpha, category and cell: the number of a configuration.

    Raises:
        EvaluationError: The grid lacks what is asked for.
    """
    about = grid.about
    readout, alpha = asked.readout or about.readouts[0], asked.alpha or shown_alpha(about.alphas)
    if readout not in about.readouts or alpha not in about.alphas:
        raise EvaluationError(f"{grid.path} was not scored by {readout} at alpha {alpha:g}: choose what it has.")
    pck = grid.pck(readout, alpha)
    best = int(np.argmax(pck))
    answer = {
        "kind": "grid",
        **_scored(readout, alpha, about.readouts, about.alphas),
        "categories": [*about.categories],
        "best": best,
        "cells": [
            {
                **describe(one),
                "layers": [own.layer for own in one.layers],
                "name": one.name,
                "pck": float(pck[number]),
            }
            for number, one in enumerate(about.configurations)
        ],
    }
    if asked.cell is None:
        return answer
    if not 0 <= asked.cell < len(pck):
        raise EvaluationError(f"{grid.path} has no cell {asked.cell}: it has {len(pck)}.")
    own, other = (grid.of_pairs(number, readout, alpha) for number in (asked.cell, best))
    mine, theirs = (
        setting_of(one.layers, one.settings, readout, about.features)
        for one in (about.configurations[asked.cell], about.configurations[best])
    )
    chosen = [
        row
        for row, (source, target, category) in enumerate(map(grid.named, range(len(own))))
        if {source, target} <= rows.keys() and asked.category in (None, category)
    ]
    lead = (own - other)[chosen]

    def listed(sign: int) -> list[dict[str, Any]]:
        order = [chosen[at] for at in np.argsort(-sign * lead, kind="stable") if sign * lead[at] > 0]
        return [
            {**_named(grid.named(row), rows), "pck": float(own[row]), "best_pck": float(other[row])}
            for row in order[asked.start : asked.start + LISTED]
        ]

    return {
        **answer,
        "cell": asked.cell,
        "setting": mine,
        "best_setting": theirs,
        "wins": listed(1),
        "loses": listed(-1),
    }
