"""A grid's scores as tables, printed and as blocks, and as JSON."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cli.options import command_of
from cli.output import say
from cli.reports.scores import shown_alpha, spelled
from cli.reports.tables import Block, print_block
from featstore.backbones.registry import family_of, is_other
from featstore.datasets.records import ThetaRule
from featstore.pipeline.grid import GridRun
from featstore.pipeline.pairs import describe_list, rule_name
from featstore.pipeline.results import common_frame
from featstore.tuning.runs import RUNS, free_name
from matcher import grid as grids
from matcher.configuration import Configuration, MatchSettings, frame_of, spell_readout
from matcher.grid import Answer, GridScores, TimestepMap, Winner
from matcher.pck import Average
from matcher.statistics import Interval

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
        winners: The best configuration per readout and alpha, against the second.
        answers: The best of several layers together per readout and alpha, against the best single layer.
    """

    run: GridRun
    scores: GridScores
    average: Average
    alpha: float
    settings: tuple[MatchSettings, ...]
    winners: tuple[Winner, ...]
    answers: tuple[Answer, ...]

    @classmethod
    def of(cls, run: GridRun) -> Self:
        """Rank the configurations of a grid."""
        scores, average = run.scores, Average(run.config.average)
        settings = tuple(dict.fromkeys(entry.settings for entry in scores.configurations))
        found = (grids.winners(scores, average), grids.answers(scores, average))
        return cls(run, scores, average, shown_alpha(scores.alphas), settings, *found)

    @property
    def winner(self) -> Winner:
        """The one of the first readout at the alpha that is shown where only one can be."""
        return next(winner for winner in self.winners if winner.alpha == self.alpha)

    @property
    def answer(self) -> Answer | None:
        """That of the same readout and alpha."""
        return next((answer for answer in self.answers if answer.alpha == self.alpha), None)

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

                def rank(index: int, values: NDArray[np.float64] = by_alpha[self.alpha]) -> tuple[bool, float]:
                    return self.scores.configurations[index].weighing < 2, -values[index]

                yield GridView(self, readout, settings, alone, sorted(fused, key=rank), by_alpha)

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
        fused: Those of several layers together, the best first, and last those in which one layer weighs everything.
        percents: PCK of every configuration of the grid in 0..100, (configurations,), by alpha.
    """

    grid: RankedGrid
    readout: str
    settings: MatchSettings
    alone: Mapping[str, Sequence[int]]
    fused: Sequence[int]
    percents: Mapping[float, NDArray[np.float64]]

    @property
    def entries(self) -> tuple[Configuration, ...]:
        """All configurations of the grid."""
        return self.grid.scores.configurations

    @property
    def best_two(self) -> Configuration | None:
        """The best of two layers that both have timesteps."""
        every = (self.entries[index] for index in self.fused)
        return next((one for one in every if len(one.layers) == 2 and -1 not in one.timesteps), None)

    @property
    def same_timestep(self) -> Mapping[str, Sequence[int]]:
        """Of layers together, those that have the layers and weights of the best and one timestep in all, by a name."""
        like = [index for index in self.fused if self.entries[index].is_like(self.entries[self.fused[0]])]
        own = [index for index in like if len({*self.entries[index].timesteps} - {-1}) == 1]
        return {f"layers {'+'.join(layer.layer for layer in self.entries[own[0]].layers)}, same t": own} if own else {}

    def over_timesteps(self, alpha: float) -> TimestepMap | None:
        """PCK in 0..100 over the timesteps of two layers, in the weighting of the best two."""
        best = self.best_two
        return None if best is None else grids.timestep_map(self.grid.scores, best, self.percents[alpha])

    def best_together(self, alpha: float) -> float | None:
        """PCK in 0..100 of the best of layers together, None where there are none."""
        return max((self.percents[alpha][i] for i in self.fused if self.entries[i].weighing > 1), default=None)

    def best_alone(self, alpha: float) -> int:
        """The best of single layers."""
        every = (index for own in self.alone.values() for index in own)
        return max(every, key=lambda index: self.percents[alpha][index])


def weighted(configuration: Configuration) -> str:
    """`layer 2 x 0.8 + layer 3 x 0.6`."""
    return " + ".join(f"layer {layer.layer} x {layer.weight:.3g}" for layer in configuration.layers)


def print_scores(grid: RankedGrid) -> None:
    """For each readout and settings, a table of single layers and one of layers together."""
    for block in score_blocks(grid):
        print_block(block)


def score_blocks(grid: RankedGrid) -> Iterator[Block]:
    """For each readout and settings, a table of single layers and, where there are such, of layers together."""
    for view in grid.views:
        yield _alone(view)
        first = {tuple(layer.layer for layer in view.entries[index].layers): index for index in reversed(view.fused)}
        if len(first) > 1:
            best = [index for index in view.fused if index in first.values()]
            yield _listed("Layers together, the best of each kind", view, best)
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
    """Of the best two layers, a map over their timesteps in their best weighting; where there are no two, or many
    timesteps, the best of all."""
    alpha, best, grid = view.grid.alpha, view.best_two, view.over_timesteps(view.grid.alpha)
    if best is None or grid is None or len(grid.columns) > WIDEST:
        return _listed("Layers together, the best", view, view.fused[:LISTED])
    cells = np.reshape(_marked(grid.values.flatten()), grid.values.shape)
    rows = tuple((str(step), *map(str, own)) for step, own in zip(grid.rows, cells, strict=True))
    first, second = best.layers
    header = (f"t of layer {first.layer} \\ {second.layer}", *map(str, grid.columns))
    return Block(_title(f"{weighted(best)}, PCK@{alpha:g}", view), header, rows)


def _listed(what: str, view: GridView, indices: Sequence[int]) -> Block:
    values = view.percents[view.grid.alpha]
    rows = tuple((view.entries[index].name, f"{values[index]:.2f}") for index in indices)
    return Block(_title(what, view), ("configuration", f"@{view.grid.alpha:g}"), rows)


def _marked(values: NDArray[np.float64]) -> list[str]:
    """Percent with two decimals, the largest with a star."""
    largest = max(values)
    return [f"{value:.2f}{'*' if value == largest else ' '}" for value in values]


def _title(what: str, view: GridView) -> str:
    about = f"{view.grid.average.value} average{view.grid.of_several(view.settings)}"
    return f"{what}: PCK in percent, {spell_readout(view.readout, view.settings)}, {about} (* the best)"


def print_answer(grid: RankedGrid) -> None:
    """Print whether layers together beat the best single one, what choosing on these pairs does to such numbers, and
    the commands that confirm it."""
    if grid.answer is not None:
        print_block(answer_block(grid, grid.answer))
    if len(grid.scores.configurations) > 1:
        say(caution(grid), *(f"  {command}" for command in confirming(grid)))


def answer_block(grid: RankedGrid, shown: Answer) -> Block:
    """A row per readout and alpha, under one of them in words."""
    rows = tuple(
        (
            answer.readout,
            f"{answer.alpha:g}",
            gain(answer.lead),
            grid.full_name(answer.together),
            spelled(answer.pck_together),
            grid.full_name(answer.alone),
            spelled(answer.pck_alone),
        )
        for answer in grid.answers
    )
    header = ("readout", "alpha", "difference, paired", "best together", "PCK", "best single layer", "PCK")
    marked = [(row, 2) for row, answer in enumerate(grid.answers) if answer.lead.low > 0]
    return Block(in_words(grid, shown), header, rows, left_columns=4, marked=marked)


def in_words(grid: RankedGrid, answer: Answer) -> str:
    """`Yes, 2 layers together beat the best single one: ...`."""
    count = f"{grid.scores.configurations[answer.together].weighing} layers together"
    if answer.lead.low > 0:
        verdict = f"Yes, {count} beat the best single one"
    elif answer.lead.high < 0:
        verdict = f"No, {count} fall behind the best single one"
    else:
        verdict = f"Not shown that {count} beat the best single one (the interval holds 0)"
    return (
        f"{verdict}: PCK@{answer.alpha:g} {100 * answer.pck_together.mean:.2f} against "
        f"{100 * answer.pck_alone.mean:.2f} %, {gain(answer.lead)} ({answer.readout}, {grid.average.value} average, "
        "paired, images resampled)"
    )


def gain(lead: Interval) -> str:
    """`+2.41 [1.34, 3.54]`, in percent."""
    return f"{'+' if lead.mean > 0 else ''}{spelled(lead)}"


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


def caution(grid: RankedGrid) -> str:
    """What the best of many is worth, before the commands that confirm it."""
    count, chose_nothing = len(grid.scores.configurations), grid.run.chose_nothing
    return (
        f"The best of {count} was chosen on these very pairs: its PCK is too high an estimate, and the intervals do "
        f"not allow for having chosen the best of {count}. A lead whose interval holds 0 is none. Report it on pairs "
        f"that chose nothing{':' if chose_nothing else ', where there are any; on these:'}"
    )


def confirming(grid: RankedGrid) -> list[str]:
    """What measures the best on the split for reporting: the best single layer, the best together, and the two
    compared; of a grid of single layers the best alone."""
    answer = grid.answer
    if answer is None:
        return [eval_command(grid, grid.winner.best)]
    alone, together = (RUNS / free_name(RUNS, f"best-{which}") for which in ("single", "together"))
    readout = () if answer.readout == "nn" else ("--readout", answer.readout)
    average = () if grid.average is Average.IMAGE else ("--by", grid.average.value)
    return [
        eval_command(grid, answer.alone, alone),
        eval_command(grid, answer.together, together),
        shlex.join(["dualsd", "compare", str(alone), str(together), *readout, *average]),
    ]


def eval_command(grid: RankedGrid, index: int, out: Path | None = None) -> str:
    """The `dualsd eval` of a configuration, on the split for reporting. out: where it is kept."""
    run, chosen = grid.run, grid.scores.configurations[index]
    layers, settings = chosen.layers, chosen.settings
    timesteps = tuple(layer.timestep for layer in layers if layer.timestep is not None)
    names = tuple(layer.layer for layer in layers)
    others = [family_of(name) for name in names if is_other(name)]
    own: dict[str, Any] = {
        "layers": names,
        "timesteps": timesteps or None,
        "weights": chosen.weights if len(layers) > 1 else None,
        "geometry": settings.geometry.value,
        "upsample": settings.upsample,
        "upsample_align": None if settings.upsample_align is settings.geometry else settings.upsample_align.value,
        **{f"dino_{what}": run.features.get(f"{family}_{what}") for family in others for what in ("size", "debias")},
        "readouts": run.config.readouts,
        "alphas": run.config.alphas,
        "average": run.config.average,
        "out": out,
    }
    if not timesteps:  # what only a layer of the UNet has a use for
        own |= dict.fromkeys(("prompt", "prompts", "fallback", "ensemble"))
    return command_of(replace(run.evaluation, **own), "eval", always=("store",))


def to_json(grid: RankedGrid) -> dict[str, Any]:
    """As `dualsd grid --json` writes it; PCK values are fractions."""
    run, scores = grid.run, grid.scores
    settings = scores.configurations[0].settings

    def described(index: int) -> dict[str, Any]:
        return {"name": grid.full_name(index), **grids.describe(scores.configurations[index])}

    return {
        "answer": [
            asdict(answer) | {"together": described(answer.together), "alone": described(answer.alone)}
            for answer in grid.answers
        ],
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
                "best": described(winner.best),
                "pck": asdict(winner.pck),
                "second": None if winner.second is None else grids.describe(scores.configurations[winner.second]),
                "lead": None if winner.lead is None else asdict(winner.lead),
            }
            for winner in grid.winners
        ],
        "cells": grids.to_dictionaries(scores),
    }
