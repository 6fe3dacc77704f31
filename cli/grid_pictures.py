"""The pictures and the JSON of `dualsd grid`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.grid_output import full_name, settings_of, shown_alpha
from cli.output import say
from featstore.pair_list import describe_list
from featstore.pipeline.evaluate import common_frame
from matcher.errors import InputError
from matcher.grid import GridScores, describe, timestep_map, timesteps_of, to_dictionaries, weights_of, winners
from matcher.match import MatchSettings
from matcher.pck import Average
from matcher.plot_grid import AccuracyLine, AccuracyPanel, HeatPanel, draw_accuracy, draw_heat_maps
from matcher.readout import Readout
from matcher.statistics import Interval


def check_folder(folder: Path) -> None:
    """Raise `InputError`, before any work is done, where the pictures' folder cannot be made."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"The folder {folder} for the pictures cannot be made in {there}: name another with --out.")


def draw(scores: GridScores, average: Average, folder: Path) -> None:
    """`timesteps-<readout>.png`, accuracy against timestep, and `two-layers-<readout>.png`, heat maps in the best
    weighting; a pair a settings where the grid has several. Raises `InputError` where they cannot be written."""
    several = len(settings_of(scores)) > 1
    files: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for settings in settings_of(scores):
            suffix = f"-{settings.geometry.value}-{settings.upsample}x" if several else ""
            for readout in scores.readouts:
                files.append(folder / f"timesteps-{readout.value}{suffix}.png")
                title = f"Accuracy by timestep, {readout.value}, {average.value} average{suffix.replace('-', ' ', 1)}"
                draw_accuracy(files[-1], accuracy_panels(scores, average, readout, settings, scores.alphas), title)
                if any(len(entry.layers) == 2 for entry in scores.configurations):
                    files.append(folder / f"two-layers-{readout.value}{suffix}.png")
                    weights, panels = heat_panels(scores, average, readout, settings)
                    about = f"{readout.value}, {average.value} average{suffix.replace('-', ' ', 1)}"
                    draw_heat_maps(files[-1], panels, f"{weights}, {about}")
    except OSError as error:
        raise InputError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
    say(f"drawn: {', '.join(map(str, files))}")


def accuracy_panels(
    scores: GridScores, average: Average, readout: Readout, settings: MatchSettings, alphas: Sequence[float]
) -> list[AccuracyPanel]:
    """Accuracy against timestep, a panel an alpha, a line a layer with its 95 % interval."""
    members: dict[str, list[int]] = {}
    for index, entry in enumerate(scores.configurations):
        if entry.settings == settings and len(entry.layers) == 1:
            members.setdefault(entry.layers[0].layer, []).append(index)
    panels = []
    for alpha in alphas:
        lines = []
        for layer, own in members.items():
            intervals = [scores.interval(index, readout, alpha, average) for index in own]
            mean, low, high = (
                100 * np.array(values)
                for values in zip(*((one.mean, one.low, one.high) for one in intervals), strict=True)
            )
            timesteps = np.array([timesteps_of(scores.configurations[index])[0] for index in own])
            lines.append(AccuracyLine(f"layer {layer}", timesteps, mean, low, high))
        panels.append(AccuracyPanel(f"PCK@{alpha:g}", lines))
    return panels


def heat_panels(
    scores: GridScores, average: Average, readout: Readout, settings: MatchSettings
) -> tuple[str, list[HeatPanel]]:
    """Maps over the timesteps of two layers, a panel an alpha, in the weighting that is best at the alpha that is shown
    where only one can be, which comes first, in words. The grid must have configurations of two layers."""
    percent = 100 * scores.pck(average)[:, scores.readouts.index(readout)]  # (configurations, alphas)
    members = [
        index
        for index, entry in enumerate(scores.configurations)
        if entry.settings == settings and len(entry.layers) == 2
    ]
    best = scores.configurations[
        max(members, key=lambda index: percent[index, scores.alphas.index(shown_alpha(scores))])
    ]
    first, second = best.layers
    panels = []
    for row, alpha in enumerate(scores.alphas):
        found = timestep_map(scores, settings, weights_of(best), percent[:, row])
        panels.append(
            HeatPanel(
                f"PCK@{alpha:g}",
                found.values,
                np.array(found.rows),
                np.array(found.columns),
                f"timestep t of layer {first.layer}",
                f"timestep t of layer {second.layer}",
            )
        )
    weights = f"layer {first.layer} x {first.weight:.3g} + layer {second.layer} x {second.weight:.3g}"
    return weights, panels


def to_json(
    scores: GridScores, average: Average, dataset: str, split: str, features: Mapping[str, Any]
) -> dict[str, Any]:
    """As `dualsd grid --json` writes it; PCK values are fractions."""
    settings = scores.configurations[0].settings
    return {
        "dataset": dataset,
        "split": split,
        **describe_list(split, scores.pairs),
        "frame": common_frame(scores.readouts),
        "frames": {readout.value: readout.frame.value for readout in scores.readouts},
        "image_size": settings.image_size,
        "beta": settings.beta,
        "sigma": settings.sigma,
        "window": settings.window,
        "window_beta": settings.window_beta,
        "features": dict(features),
        "average": average.value,
        "winners": [
            {
                "readout": winner.readout.value,
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
