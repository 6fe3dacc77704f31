"""What a grid found, kept beside its report in `grid.safetensors`: C configurations, R readouts, A alphas, P pairs.

    hits                        (C, R, A, P) uint16   how many points of a pair were matched well enough
    counts                      (P,)         int32    points of each pair
    source, target, category    (P,)         int32    places in the metadata's `images` and `categories`

The metadata's `dualsd` is JSON: what was tried, on what, and where the maps came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featstore.errors import EvaluationError
from featstore.files import write_whole
from featstore.parsing import parse_known, to_json
from featstore.sealed import check_tensors_seal, check_version, read_tensors, seal_tensors
from featstore.store.schema import creator_version
from matcher.configuration import Configuration
from matcher.errors import MatchError
from matcher.pck import Average, averaged

if TYPE_CHECKING:
    from featstore.pipeline.grid import GridRun

FILE = "grid.safetensors"
FORMAT = "dualsd grid"
VERSION = 1


@dataclass(frozen=True, slots=True)
class _Described:
    """What the metadata say and is read again."""

    dataset: str
    split: str
    configurations: tuple[Configuration, ...]
    readouts: tuple[str, ...]
    alphas: tuple[float, ...]
    average: Average
    features: Mapping[str, Any]
    images: tuple[str, ...]
    categories: tuple[str, ...]
    created: str


@dataclass(frozen=True, slots=True, eq=False)
class KeptGrid:
    """A grid as it was kept. path: its folder. about: what was tried, on what. The others as the file has them."""

    path: Path
    about: _Described
    hits: NDArray[np.uint16]
    counts: NDArray[np.int32]
    source: NDArray[np.int32]
    target: NDArray[np.int32]
    category: NDArray[np.int32]

    @classmethod
    def open(cls, path: Path) -> Self:
        """The grid in a folder. Raises `EvaluationError` where there is none, or it is damaged."""
        file = path / FILE
        try:
            content, description = read_tensors(file)
            if description.get("format") != FORMAT:
                raise EvaluationError(f"{file} holds no grid: its metadata do not name the format {FORMAT!r}.")
            check_version(description, VERSION, str(file), EvaluationError)
            check_tensors_seal(content, description)
            about: _Described = parse_known(_Described, description)
            arrays = load(content)
            return cls(path, about, *(arrays[name] for name in ("hits", "counts", "source", "target", "category")))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, MatchError) as error:
            raise EvaluationError(f"{file} cannot be read as a grid ({error}): run the grid again.") from error

    @property
    def label(self) -> str:
        """`layers 2+3 on val`."""
        names = dict.fromkeys(layer.layer for one in self.about.configurations for layer in one.layers)
        return f"layer{'s' * (len(names) > 1)} {'+'.join(names)} on {self.about.split}"

    def named(self, pair: int) -> tuple[str, str, str]:
        """Source, target and category of a pair."""
        images, categories = self.about.images, self.about.categories
        return images[self.source[pair]], images[self.target[pair]], categories[self.category[pair]]

    def pck(self, readout: str, alpha: float) -> NDArray[np.float64]:
        """Of every configuration over all pairs, (C,), fractions."""
        hits = self.hits[:, self.about.readouts.index(readout), self.about.alphas.index(alpha)]
        return averaged(hits, self.counts, self.category, self.about.average)

    def of_pairs(self, configuration: int, readout: str, alpha: float) -> NDArray[np.float64]:
        """Of every pair, (P,), fractions."""
        place = configuration, self.about.readouts.index(readout), self.about.alphas.index(alpha)
        return np.asarray(self.hits[place] / self.counts)


def keep_grid(run: "GridRun", folder: Path) -> None:
    """Keep a grid in its folder. Raises what `write_whole` raises."""
    scores, pairs = run.scores, run.scores.pairs
    description = {
        "format": FORMAT,
        "version": VERSION,
        "creator": creator_version(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "dataset": run.dataset,
        "split": run.split,
        "store": run.store,
        "configurations": [to_json(one) for one in scores.configurations],
        "readouts": scores.readouts,
        "alphas": scores.alphas,
        "average": run.config.average,
        "features": dict(run.features),
        "images": pairs.images,
        "categories": pairs.categories,
    }
    arrays = {"hits": scores.hits} | {
        name: getattr(pairs, name).astype(np.int32) for name in ("counts", "source", "target", "category")
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(folder / FILE, seal_tensors(description, lambda metadata: save(contiguous, metadata=metadata)))
