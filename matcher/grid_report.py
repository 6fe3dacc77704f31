"""Scores of a grid as data: a dictionary a configuration for JSON, tidy rows for CSV, lines and maps over timesteps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matcher.configuration import Configuration
from matcher.grid import GridScores
from matcher.match import MatchSettings
from matcher.pairs import ALL
from matcher.pck import Average


def describe(configuration: Configuration) -> dict[str, Any]:
    """What a configuration is, by the names that `dualsd eval --json` uses."""
    layers, settings = configuration.layers, configuration.settings
    return {
        "layers": [int(layer.layer) if layer.timestep is not None else layer.layer for layer in layers],
        "t": [layer.timestep for layer in layers],
        "weights": [layer.weight for layer in layers],
        "geometry": settings.geometry.value,
        "upsample": settings.upsample,
        "upsample_align": settings.upsample_align.value,
    }


def to_dictionaries(scores: GridScores) -> list[dict[str, Any]]:
    """A dictionary a configuration, `results` as `dualsd eval --json` writes them: fractions."""
    tables = {average: scores.columns(average) for average in Average}
    return [
        {
            **describe(configuration),
            "results": {
                readout.value: {
                    average.value: {
                        f"{alpha:g}": {
                            name: float(table[index, column, row])
                            for name, table in {
                                ALL: tables[average].overall,
                                **tables[average].by_category,
                            }.items()
                        }
                        for row, alpha in enumerate(scores.alphas)
                    }
                    for average in Average
                }
                for column, readout in enumerate(scores.readouts)
            },
        }
        for index, configuration in enumerate(scores.configurations)
    ]


CSV_HEADER = (
    *("layers", "t", "weights", "geometry", "upsample", "upsample_align"),
    *("readout", "average", "alpha", "category", "pck_percent"),
)


def to_rows(scores: GridScores) -> Iterator[tuple[str, ...]]:
    """One row a number over all pairs, in the order of `CSV_HEADER`; several layers are joined by `+`."""
    tables = {average: scores.pck(average) for average in Average}
    for index, configuration in enumerate(scores.configurations):
        layers, settings = configuration.layers, configuration.settings
        own = (
            "+".join(layer.layer for layer in layers),
            "+".join("" if layer.timestep is None else str(layer.timestep) for layer in layers),
            "+".join(f"{layer.weight:g}" for layer in layers),
            settings.geometry.value,
            str(settings.upsample),
            settings.upsample_align.value,
        )
        for column, readout in enumerate(scores.readouts):
            for average, table in tables.items():
                for row, alpha in enumerate(scores.alphas):
                    percent = f"{100 * table[index, column, row]:.4f}"
                    yield (*own, readout.value, average.value, f"{alpha:g}", ALL, percent)


@dataclass(frozen=True, slots=True, eq=False)
class TimestepMap:
    """A number a pair of timesteps of two layers: values (rows, columns), the first layer's timesteps down, the
    second's across; NaN where the grid has no such configuration."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: NDArray[np.float64]


def timestep_map(
    scores: GridScores, settings: MatchSettings, weights: tuple[float, ...], values: NDArray[np.float64]
) -> TimestepMap:
    """`values` (configurations,) of the two-layer configurations of some settings and weights, over their timesteps."""
    members = {
        timesteps_of(entry): index
        for index, entry in enumerate(scores.configurations)
        if entry.settings == settings and len(entry.layers) == 2 and weights_of(entry) == weights
    }
    rows = tuple(sorted({first for first, _ in members}))
    columns = tuple(sorted({second for _, second in members}))
    table = [
        [values[members[row, column]] if (row, column) in members else np.nan for column in columns] for row in rows
    ]
    return TimestepMap(rows, columns, np.array(table))


def timesteps_of(configuration: Configuration) -> tuple[int, ...]:
    """A timestep a layer; -1 for features that have none."""
    return tuple(-1 if layer.timestep is None else layer.timestep for layer in configuration.layers)


def weights_of(configuration: Configuration) -> tuple[float, ...]:
    """A weight a layer."""
    return tuple(layer.weight for layer in configuration.layers)
