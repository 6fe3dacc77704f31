"""A grid's scores as tables, printed and as blocks, and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cli.options import command_of
from cli.output import say
from cli.reports.scores import shown_alpha, spelled
from cli.reports.tables import Block, print_block
from featstore.datasets.records import ThetaRule
from featstore.pipeline.grid import GridRun
from featstore.pipeline.pairs import describe_list, rule_name
from featstore.pipeline.results import common_frame
from matcher import grid as grids
from matcher.configuration import Configuration, MatchSettings, frame_of
from matcher.grid import GridScores, TimestepMap, Winner
from matcher.pck import Average

WIDEST = 12
"""Timesteps of the printed map of two layers, at most; of larger ones the best are listed."""

LISTED = 10


@dataclass(frozen=True, slots=True, eq=False)
class RankedGrid:
    """A grid with its best configurations.

    Args:
        run: What was measured.
        scores: Of all configurations.
        average: That of tables and pictures, by which configurations are ranked.
        alpha: That of what can show only one.
        settings: Those that occur, in order.
        winners: The best configuration per readout and alpha.
    """

    run: GridRun
    scores: GridScores
    average: Average
    alpha: float
    settings: tuple[MatchSettings, ...]
    winners: tuple[Winner, ...]

    @classmethod
    def of(cls, run: GridRun) -> Self:
        """Rank the configurations of a grid."""
        scores, average = run.scores, Average(run.config.average)
        settings = tuple(dict.fromkeys(entry.settings for entry in scores.configurations))
        return cls(run, scores, average, shown_alpha(scores.alphas), settings, grids.winners(scores, average))

    @property
    def winner(self) -> Winner:
        """The one of the first readout at the alpha that is shown where only one can be."""
        return next(winner for winner in self.winners if winner.alpha == self.alpha)

    @property
    def views(self) -> "Iterator[GridView]":
        """One per settings and readout."""
        percents = 100 * self.scores.pck(self.average)  # (configurations, readouts, alphas)
        for settings in self.settings:
            alone, fused = dict[str, list[int]](), list[int]()
            for index, entry in enumerate(self.scores.configurations):
                if entry.settings == settings:
                    together = len(entry.layers) > 1
                    (fused if together else alone.setdefault(entry.layers[0].layer, [])).append(index)
            for column, readout in enumerate(self.scores.readouts):
                by_alpha = dict(zip(self.scores.alphas, percents[:, column].T, strict=True))
                yield GridView(self, readout, settings, alone, fused, by_alpha)

    def full_name(self, index: int) -> str:
        """A configuration's name, with its settings where the grid has several."""
        entry = self.scores.configurations[index]
        return f"{entry.name}{self.of_several(entry.settings)}"

    def of_several(self, settings: MatchSettings) -> str:
        """The settings, where the grid has several."""
        return f", {settings.geometry.value}, {settings.upsample}x" if len(self.settings) > 1 else ""


@dataclass(frozen=True, slots=True, eq=False)
class GridView:
    """A grid as one readout and some settings show it.

    Args:
        grid: All of it.
        readout: Whose scores.
        settings: Those of its configurations.
        alone: The configurations of one layer, by the layer's name, in the order of the grid.
        fused: Those of several layers together.
        percents: PCK of every configuration of the grid in 0..100, (configurations,), by alpha.
    """

    grid: RankedGrid
    readout: str
    settings: MatchSettings
    alone: Mapping[str, Sequence[int]]
    fused: Sequence[int]
    percents: Mapping[float, NDArray[np.float64]]

    @property
    def best_fused(self) -> Configuration:
        """The best of several layers; there must be one."""
        best = max(self.fused, key=lambda index: self.percents[self.grid.alpha][index])
        return self.grid.scores.configurations[best]

    def over_timesteps(self, alpha: float) -> TimestepMap | None:
        """PCK in 0..100 over the timesteps of two layers, in the weighting of the best; None where that is not of two
        layers that both have timesteps."""
        best = self.best_fused if self.fused else None
        if best is None or len(best.layers) != 2 or -1 in best.timesteps:
            return None
        return grids.timestep_map(self.grid.scores, self.settings, best.weights, self.percents[alpha])


def weighted(configuration: Configuration) -> str:
    """`layer 2 x 0.8 + layer 3 x 0.6`."""
    return " + ".join(f"layer {layer.layer} x {layer.weight:.3g}" for layer in configuration.layers)


def print_scores(grid: RankedGrid) -> None:
    """For each readout and settings, a table of single layers and one of layers together."""
    for block in score_blocks(grid):
        print_block(block)


def score_blocks(grid: RankedGrid) -> Iterator[Block]:
    """For each readout and settings, a table of single layers and, where there is one, of layers together."""
    for view in grid.views:
        yield _alone(view)
        if view.fused:
            yield _fused(view)


def _alone(view: GridView) -> Block:
    """A row a timestep, a column a layer and alpha, the best of each column marked."""
    scores, alone = view.grid.scores, view.alone
    steps = {layer: [_step(scores.configurations[index]) for index in own] for layer, own in alone.items()}
    columns = {
        f"layer {layer} @{alpha:g}": dict(zip(steps[layer], _marked(view.percents[alpha][own]), strict=True))
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
    scores, alpha, best = view.grid.scores, view.grid.alpha, view.best_fused
    grid = view.over_timesteps(alpha)
    if grid is None or len(grid.columns) > WIDEST:
        values = view.percents[alpha]
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
    about = f"{view.readout}, {view.grid.average.value} average{view.grid.of_several(view.settings)}"
    return f"{what}: PCK in percent, {about} (* the best)"


def print_winners(grid: RankedGrid) -> None:
    """Print the best configuration per readout and alpha with its lead over the second, and what that is worth."""
    print_block(winners_block(grid))
    if len(grid.scores.configurations) > 1:
        say(caution(grid.scores, grid.run.chose_nothing), f"  {eval_command(grid)}")


def winners_block(grid: RankedGrid) -> Block:
    """A row per readout and alpha."""
    rows = tuple(
        (
            winner.readout,
            f"{winner.alpha:g}",
            grid.full_name(winner.best),
            spelled(winner.pck),
            "" if winner.second is None else grid.full_name(winner.second),
            "" if winner.lead is None else spelled(winner.lead),
        )
        for winner in grid.winners
    )
    return Block(
        f"The best of {len(grid.scores.configurations)} configurations, {grid.average.value} average, percent "
        "[95 % interval, images resampled]",
        ("readout", "alpha", "best", "PCK", "second", "lead over the second, paired"),
        rows,
        left_columns=3,
    )


def caution(scores: GridScores, chose_nothing: bool) -> str:
    """What the best of many is worth. chose_nothing: whether the command that follows is of other pairs."""
    count = len(scores.configurations)
    return (
        f"The best of {count} was chosen on these very pairs: its PCK is too high an estimate, and the intervals do "
        f"not allow for having chosen the best of {count}. A lead whose interval holds 0 is none. Report it on pairs "
        f"that chose nothing{':' if chose_nothing else ', where there are any; on these:'}"
    )


def eval_command(grid: RankedGrid) -> str:
    """The `dualsd eval` of the best configuration, on the split for reporting."""
    run, best = grid.run, grid.scores.configurations[grid.winner.best]
    layers, settings = best.layers, best.settings
    timesteps = tuple(layer.timestep for layer in layers if layer.timestep is not None)
    names = tuple(layer.layer for layer in layers)
    own: dict[str, Any] = {
        "layers": names,
        "timesteps": timesteps or None,
        "weights": best.weights if len(layers) > 1 else None,
        "geometry": settings.geometry.value,
        "upsample": settings.upsample,
        "upsample_align": None if settings.upsample_align is settings.geometry else settings.upsample_align.value,
        "dino_size": run.features.get("dino_size") if "dino" in names else None,
    }
    if not timesteps:  # what only a layer of the UNet has a use for
        own |= dict.fromkeys(("prompt", "prompts", "fallback", "ensemble"))
    return command_of(replace(run.evaluation, **own), "eval", always=("store",))


def to_json(grid: RankedGrid) -> dict[str, Any]:
    """As `dualsd grid --json` writes it; PCK values are fractions."""
    run, scores = grid.run, grid.scores
    settings = scores.configurations[0].settings
    return {
        "dataset": run.dataset,
        "split": run.split,
        **describe_list(run.split, scores.pairs),
        "frame": common_frame(scores.readouts),
        "frames": {readout: frame_of(readout).value for readout in scores.readouts},
        **{name: getattr(settings, name) for name in ("image_size", "beta", "sigma", "window", "window_beta")},
        "pad": settings.pad.value,
        "theta": run.config.theta or rule_name(ThetaRule(run.theta)),
        "strict": run.config.strict,
        "features": dict(run.features),
        "average": grid.average.value,
        "winners": [
            {
                "readout": winner.readout,
                "alpha": winner.alpha,
                "best": {"name": grid.full_name(winner.best), **grids.describe(scores.configurations[winner.best])},
                "pck": asdict(winner.pck),
                "second": None if winner.second is None else grids.describe(scores.configurations[winner.second]),
                "lead": None if winner.lead is None else asdict(winner.lead),
            }
            for winner in grid.winners
        ],
        "cells": grids.to_dictionaries(scores),
    }
