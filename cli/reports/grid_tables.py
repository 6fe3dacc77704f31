"""A grid's scores as tables, printed and as blocks, and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cli.output import print_table, say
from cli.reports.scores import shown_alpha, spelled
from cli.reports.tables import Block
from featstore.pipeline.grid import GridRun
from featstore.pipeline.pairs import describe_list
from featstore.pipeline.results import common_frame
from matcher.configuration import Configuration, MatchSettings, frame_of
from matcher.grid import (
    GridScores,
    TimestepMap,
    Winner,
    describe,
    timestep_map,
    to_dictionaries,
    winners,
)
from matcher.pck import Average
from matcher.statistics import Interval

WIDEST = 12
"""Timesteps of the printed map of two layers, at most; of larger ones the best are listed."""

LISTED = 10


@dataclass(frozen=True, slots=True, eq=False)
class GridView:
    """A grid as one readout and some settings show it. percents: PCK of every configuration at every alpha,
    (configurations, alphas), in 0..100."""

    scores: GridScores
    average: Average
    readout: str
    settings: MatchSettings
    percents: NDArray[np.float64]

    @property
    def alpha(self) -> float:
        """That of what can show only one."""
        return shown_alpha(self.scores.alphas)

    @property
    def alone(self) -> dict[str, list[int]]:
        """The configurations of one layer, by the layer's name, in the order of the grid."""
        found: dict[str, list[int]] = {}
        for index in self._members:
            first, *others = self.scores.configurations[index].layers
            if not others:
                found.setdefault(first.layer, []).append(index)
        return found

    @property
    def fused(self) -> list[int]:
        """The configurations of several layers together."""
        return [index for index in self._members if len(self.scores.configurations[index].layers) > 1]

    @property
    def _members(self) -> Iterator[int]:
        entries = enumerate(self.scores.configurations)
        return (index for index, entry in entries if entry.settings == self.settings)

    def percent(self, alpha: float) -> NDArray[np.float64]:
        """At one alpha, (configurations,)."""
        return np.asarray(self.percents[:, self.scores.alphas.index(alpha)])

    @property
    def best_fused(self) -> Configuration:
        """The best of several layers; there must be one."""
        values = self.percent(self.alpha)
        return self.scores.configurations[max(self.fused, key=lambda index: values[index])]

    def over_timesteps(self, alpha: float) -> TimestepMap:
        """PCK in 0..100 over the timesteps of two layers, in the weighting of the best."""
        return timestep_map(self.scores, self.settings, self.best_fused.weights, self.percent(alpha))


def views(scores: GridScores, average: Average) -> Iterator[GridView]:
    """One per settings and readout."""
    percents = 100 * scores.pck(average)  # (configurations, readouts, alphas)
    for settings in settings_of(scores):
        for column, readout in enumerate(scores.readouts):
            yield GridView(scores, average, readout, settings, percents[:, column])


def weighted(configuration: Configuration) -> str:
    """`layer 2 x 0.8 + layer 3 x 0.6`."""
    return " + ".join(f"layer {layer.layer} x {layer.weight:.3g}" for layer in configuration.layers)


def print_scores(scores: GridScores, average: Average) -> None:
    """For each readout and settings, a table of single layers and one of layers together."""
    for block in score_blocks(scores, average):
        print_block(block)


def print_block(block: Block) -> None:
    """On stdout."""
    print_table(block.title, block.header, block.rows, block.left_columns)


def score_blocks(scores: GridScores, average: Average) -> Iterator[Block]:
    """For each readout and settings, a table of single layers and, where there is one, of layers together."""
    for view in views(scores, average):
        yield _alone(view)
        if view.fused:
            yield _fused(view)


def _alone(view: GridView) -> Block:
    """A row a timestep, a column a layer and alpha, the best of each column marked."""
    scores, alone = view.scores, view.alone
    steps = {layer: [_step(scores.configurations[index]) for index in own] for layer, own in alone.items()}
    columns = {
        f"layer {layer} @{alpha:g}": dict(zip(steps[layer], _marked(view.percent(alpha)[own]), strict=True))
        for layer, own in alone.items()
        for alpha in scores.alphas
    }
    every = dict.fromkeys(step for own in steps.values() for step in own)
    rows = tuple((step, *(column.get(step, "") for column in columns.values())) for step in every)
    return Block(_title("One layer", view), ("t", *columns), rows)


def _step(configuration: Configuration) -> str:
    """Of one layer."""
    timestep = configuration.layers[0].timestep
    return "none" if timestep is None else str(timestep)


def _fused(view: GridView) -> Block:
    """Of two layers, a map over their timesteps in their best weighting; of more, or of many timesteps, the best."""
    scores, alpha, best = view.scores, view.alpha, view.best_fused
    grid = view.over_timesteps(alpha) if len(best.layers) == 2 and -1 not in best.timesteps else None
    if grid is None or len(grid.columns) > WIDEST:
        values = view.percent(alpha)
        ranked = sorted(view.fused, key=lambda index: -values[index])[:LISTED]
        listed = tuple((scores.configurations[index].name, f"{values[index]:.2f}") for index in ranked)
        return Block(_title("Layers together, the best", view), ("configuration", f"@{alpha:g}"), listed)
    cells = np.reshape(_marked(grid.values.flatten()), grid.values.shape)
    rows = tuple((str(step), *map(str, own)) for step, own in zip(grid.rows, cells, strict=True))
    first, second = best.layers
    header = (f"t of layer {first.layer} \\ {second.layer}", *map(str, grid.columns))
    return Block(_title(f"{weighted(best)}, PCK@{alpha:g}", view), header, rows)


def _marked(values: NDArray[np.float64]) -> list[str]:
    """Percent with two decimals, the largest with a star."""
    largest = max(values)
    return [f"{value:.2f}{'*' if value == largest else ' '}" for value in values]


def _title(what: str, view: GridView) -> str:
    about = f"{view.readout}, {view.average.value} average{_of_several(view.scores, view.settings)}"
    return f"{what}: PCK in percent, {about} (* the best)"


def print_winners(
    scores: GridScores, average: Average, command: str, chose_nothing: bool, features: Mapping[str, Any]
) -> None:
    """Print the best configuration a readout and alpha with its lead over the second, and what that is worth.

    Args:
        scores: Of the grid.
        average: By which they are ranked.
        command: The `dualsd eval` to which the configuration is added.
        chose_nothing: Whether that is of other pairs.
        features: What the maps are of, for the record.
    """
    found = winners(scores, average)
    print_block(winners_block(scores, average, found))
    if len(scores.configurations) > 1:
        say(caution(scores, chose_nothing))
        say(f"  {command}{eval_options(scores.configurations[shown_winner(scores, found).best], features)}")


def winners_block(scores: GridScores, average: Average, found: Sequence[Winner]) -> Block:
    """A row a readout and alpha."""
    rows = tuple(
        (
            winner.readout,
            f"{winner.alpha:g}",
            full_name(scores, winner.best),
            spelled(winner.pck),
            "" if winner.second is None else full_name(scores, winner.second),
            "" if winner.lead is None else spelled(winner.lead),
        )
        for winner in found
    )
    return Block(
        f"The best of {len(scores.configurations)} configurations, {average.value} average, percent "
        "[95 % interval, images resampled]",
        ("readout", "alpha", "best", "PCK", "second", "lead over the second, paired"),
        rows,
        left_columns=3,
    )


def caution(scores: GridScores, chose_nothing: bool) -> str:
    """What the best of many is worth. chose_nothing: whether the command that follows is of other pairs."""
    return (
        f"The best of {len(scores.configurations)} was chosen on these very pairs: its PCK is too high an estimate, "
        "and neither interval knows of the choice. A lead whose interval holds 0 is none. Report it on pairs that "
        f"chose nothing{':' if chose_nothing else ', where there are any; on these:'}"
    )


def shown_winner(scores: GridScores, found: Sequence[Winner]) -> Winner:
    """The one of the first readout at the alpha that is shown where only one can be."""
    return next(winner for winner in found if winner.alpha == shown_alpha(scores.alphas))


def eval_options(configuration: Configuration, features: Mapping[str, Any]) -> str:
    """The options of `dualsd eval` that name a configuration of maps that are recorded as `features`."""
    layers, settings = configuration.layers, configuration.settings
    text = f" --layers {','.join(layer.layer for layer in layers)}"
    if steps := [str(layer.timestep) for layer in layers if layer.timestep is not None]:
        text += f" --t {','.join(steps)}"
    if "dino_size" in features and any(layer.layer == "dino" for layer in layers):
        text += f" --dino-size {features['dino_size']}"
    if len(layers) > 1:
        text += f" --weights {','.join(f'{layer.weight:.6g}' for layer in layers)}"
    default = MatchSettings(settings.image_size)
    if settings.geometry is not default.geometry:
        text += f" --geometry {settings.geometry.value}"
    if settings.upsample != default.upsample:
        text += f" --upsample {settings.upsample}x"
    if settings.upsample_align is not settings.geometry:
        text += f" --upsample-align {settings.upsample_align.value}"
    return text


def full_name(scores: GridScores, index: int) -> str:
    """A configuration's name, with its settings where the grid has several."""
    configuration = scores.configurations[index]
    return f"{configuration.name}{_of_several(scores, configuration.settings)}"


def _of_several(scores: GridScores, settings: MatchSettings) -> str:
    """The settings, where the grid has several."""
    return f", {settings.geometry.value}, {settings.upsample}x" if len(settings_of(scores)) > 1 else ""


def settings_of(scores: GridScores) -> list[MatchSettings]:
    """The settings that occur, in order."""
    return list(dict.fromkeys(entry.settings for entry in scores.configurations))


def to_json(run: GridRun) -> dict[str, Any]:
    """As `dualsd grid --json` writes it; PCK values are fractions."""
    scores, average = run.scores, Average(run.config.average)
    settings = scores.configurations[0].settings
    return {
        "dataset": run.dataset,
        "split": run.split,
        **describe_list(run.split, scores.pairs),
        "frame": common_frame(scores.readouts),
        "frames": {readout: frame_of(readout).value for readout in scores.readouts},
        **{name: getattr(settings, name) for name in ("image_size", "beta", "sigma", "window", "window_beta")},
        "features": dict(run.features),
        "average": average.value,
        "winners": [
            {
                "readout": winner.readout,
                "alpha": winner.alpha,
                "best": {"name": full_name(scores, winner.best), **describe(scores.configurations[winner.best])},
                "pck": _spread(winner.pck),
                "second": None if winner.second is None else describe(scores.configurations[winner.second]),
                "lead": None if winner.lead is None else _spread(winner.lead),
            }
            for winner in winners(scores, average)
        ],
        "cells": to_dictionaries(scores),
    }


def _spread(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
