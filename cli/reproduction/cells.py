"""Scoring a table's cells, as `dualsd eval` does; what is scored is not scored again.

cells/dual-single@spair on pf-willow-0f3a9c21/
    figures.json    what was scored with which settings, and PCK with its intervals
    results.json    as `dualsd eval --json` writes it
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cli.output import say
from cli.recipe import Recipe
from cli.recipe_options import eval_options, to_command
from cli.reproduction.comparison import CellFigures
from cli.reproduction.plan import Cell
from cli.reproduction.workplace import SEED, Workplace
from featstore.datasets.records import Pair
from featstore.prompts.file import load_prompts
from matcher.bootstrap import Interval, bootstrap_mean
from matcher.pck import ALL, Average, MatchedPair, hits
from matcher.readout import Readout

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
        return {
            float(alpha): {category: Interval(**interval) for category, interval in by_category.items()}
            for alpha, by_category in kept["figures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def score_cell(place: Workplace, cell: OpenCell) -> CellFigures:
    """Score a cell, whose store must be there, and keep its figures. Raises what `dualsd eval` raises."""
    from cli.evaluate import evaluate

    folder = cell.folder(place)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = eval_arguments(place, cell.recipe, cell.cell, cell.run)
    say(f"\n$ {to_command('eval', arguments)}")
    result = evaluate(**arguments, json=folder / "results.json")
    recipe = cell.recipe.inference
    figures = {
        alpha: _by_category(result.matched, Readout(recipe.readout.value), alpha, Average(recipe.average.value))
        for alpha in recipe.alphas.value
    }
    written = {
        **cell.describe(place),
        "n_pairs": len(result.matched),
        "figures": {
            f"{alpha:g}": {category: asdict(interval) for category, interval in own.items()}
            for alpha, own in figures.items()
        },
    }
    partial = folder / f"{FIGURES}.partial"
    partial.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / FIGURES)
    return figures


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


def _by_category(
    matched: Sequence[MatchedPair], readout: Readout, alpha: float, average: Average
) -> dict[str, Interval]:
    counts = np.array([len(match.pair.target_points) for match in matched], dtype=np.float64)
    right = np.array(
        [hits(match.predictions[readout], *match.pair.truth(readout.frame), alpha).sum() for match in matched]
    )
    categories = np.array([match.pair.category for match in matched])
    names = {ALL: np.ones(len(matched), dtype=bool)} | {
        str(name): categories == name for name in sorted(set(categories))
    }
    return {name: _interval(matched, right / counts, counts, chosen, average) for name, chosen in names.items()}


def _interval(
    matched: Sequence[MatchedPair],
    values: NDArray[np.float64],
    counts: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    average: Average,
) -> Interval:
    pairs = [match.pair for match, is_chosen in zip(matched, chosen, strict=True) if is_chosen]
    sizes = counts[chosen] if average is Average.POINT else None
    return bootstrap_mean(pairs, values[chosen], SEED, sizes)


def digest_of(pairs: Sequence[Pair]) -> str:
    """16 hex digits of which images are paired, and of their keypoints."""
    digest = hashlib.blake2b(digest_size=8)
    for pair in pairs:
        digest.update(f"{pair.source} {pair.target} {pair.category}".encode())
        digest.update(np.hstack([pair.source_points, pair.target_points]).tobytes())
    return digest.hexdigest()
