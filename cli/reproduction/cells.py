"""Scoring a table's cells, as `dualsd eval` does; what is scored is not scored again.

cells/dual-single@spair on pf-willow-0f3a9c21/
    figures.json    what was scored with which settings, and PCK with its intervals
    run.json ...    what `dualsd eval --out` keeps, see `featstore.pipeline.results`
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.output import say
from cli.recipe import Recipe
from cli.recipe_options import eval_options, to_command
from cli.reproduction.comparison import CellFigures
from cli.reproduction.plan import Cell
from cli.reproduction.workplace import SEED, Workplace
from featstore.datasets.records import Pair
from featstore.files import write_whole
from featstore.pipeline.results import is_finished
from featstore.pipeline.runs import EvaluationRun
from featstore.prompts.file import load_prompts
from featstore.sealed import check_seal, seal
from matcher.pck import Average
from matcher.statistics import Interval, pck_intervals

FIGURES = "figures.json"


@dataclass(frozen=True, slots=True)
class OpenCell:
    """A cell that can be scored. pairs: of the test split. run: of its prompts, None where they are not learned."""

    cell: Cell
    recipe: Recipe
    pairs: Sequence[Pair]
    run: Path | None

    def describe(self, place: Workplace) -> dict[str, Any]:
        """All that its figures depend on."""
        prompts = None if self.run is None else load_prompts(self.run)
        return {
            "cell": self.cell.name,
            "recipe": self.recipe.name,
            "eval": eval_options(self.recipe, place.image_size),
            "prompts": None if prompts is None else {str(layer): prompts.content(layer) for layer in prompts.layers},
            "dataset": self.cell.dataset,
            "pairs": digest_of(self.pairs),
            "model": place.model.fingerprint,
            "image_size": place.image_size,
            "seed": SEED,
            "dtype": place.compute.dtype_name,
            "dino": None if self.recipe.inference.dino is None else place.means.dino,
        }

    def folder(self, place: Workplace) -> Path:
        """Where it is kept; other settings, prompts or pairs are another folder."""
        text = json.dumps(self.describe(place), sort_keys=True)
        return place.folder / "cells" / f"{self.cell.name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def kept_figures(place: Workplace, cell: OpenCell) -> CellFigures | None:
    """Of a cell that was scored before; None where it was not."""
    try:
        kept = json.loads((cell.folder(place) / FIGURES).read_text(encoding="utf-8"))
        check_seal(kept)  # damaged, they are made again from the predictions
        return {
            float(alpha): {category: Interval(**interval) for category, interval in by_category.items()}
            for alpha, by_category in kept["figures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def score_cell(place: Workplace, cell: OpenCell) -> CellFigures:
    """Score a cell, whose store must be there, and keep its figures. Raises what `dualsd eval` raises."""
    from cli.evaluate import evaluate
    from cli.options import read_typed
    from featstore.config import EvalConfig, fields_of, from_json

    folder = cell.folder(place)
    if not is_finished(folder):  # else it was stopped before its figures were written
        arguments = eval_arguments(place, cell.recipe, cell.cell, cell.run)
        say("", f"$ {to_command('eval', {**arguments, 'out': folder})}")
        named = {"t": "timesteps", "by": "average"}
        fields = {field.name: field for field in fields_of(EvalConfig)}
        given = {named.get(name, name): value for name, value in arguments.items() if value is not None}
        values = {name: read_typed(fields[name], value) for name, value in given.items()}
        evaluate(from_json(EvalConfig, values | {"out": str(folder)}, cell.cell.name, str))
    own = cell.recipe.inference
    figures = figures_of(EvaluationRun.open(folder), Average(own.average.value))
    written = {
        **cell.describe(place),
        "figures": {
            f"{alpha:g}": {category: asdict(interval) for category, interval in by_category.items()}
            for alpha, by_category in figures.items()
        },
    }
    write_whole(folder / FIGURES, (json.dumps(seal(written), indent=2) + "\n").encode())
    return figures


def figures_of(run: EvaluationRun, average: Average) -> CellFigures:
    """PCK of an evaluation's one readout with 95 % intervals, by alpha and category."""
    (readout,) = run.scoring.readouts
    found = pck_intervals(run.matched, [readout], run.scoring.alphas, average, run.scoring.pixels)
    return {alpha: columns.named() for alpha, columns in found[readout].items()}


def eval_arguments(place: Workplace, recipe: Recipe, cell: Cell, run: Path | None) -> dict[str, Any]:
    """All options of `dualsd eval` for a cell. run: of its prompts."""
    means = place.means
    return {
        **eval_options(recipe, place.image_size),
        **({} if run is None else {"prompts": run}),
        "store": place.store_path(cell.dataset),
        "dino": means.dino,
        "device": means.device,
        "dtype": means.dtype,
        "batch_size": means.batch_size,
    }


def digest_of(pairs: Sequence[Pair]) -> str:
    """16 hex digits of which images are paired, and of their keypoints."""
    digest = hashlib.blake2b(digest_size=8)
    for pair in pairs:
        digest.update(f"{pair.source} {pair.target} {pair.category}".encode())
        digest.update(np.hstack([pair.source_points, pair.target_points]).tobytes())
    return digest.hexdigest()
