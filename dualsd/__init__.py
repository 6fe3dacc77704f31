"""dualsd: diffusion features for semantic correspondence, computed once and matched from the cache.

    import dualsd

    featurizer = dualsd.Featurizer("sd2-1", device="cuda")
    maps = [featurizer(photo, prompt="a photo of a cat") for photo in ("a.jpg", "b.jpg")]
    found = dualsd.match(*maps, points=[(120, 80), (200, 150)])

A name is imported when it is used, so that `import dualsd` costs nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.adapters.base import load_adapter as load_adapter
    from featstore.adapters.train import AdaptResult as AdaptResult
    from featstore.adapters.train import adapt as adapt
    from featstore.config import AdaptConfig as AdaptConfig
    from featstore.config import BuildConfig as BuildConfig
    from featstore.config import EvalConfig as EvalConfig
    from featstore.config import GridConfig as GridConfig
    from featstore.config import MapsConfig as MapsConfig
    from featstore.config import MatchConfig as MatchConfig
    from featstore.config import TrainConfig as TrainConfig
    from featstore.pipeline.evaluate import evaluate as evaluate
    from featstore.pipeline.grid import grid as grid
    from featstore.pipeline.match import Featurizer as Featurizer
    from featstore.pipeline.match import ImageMaps as ImageMaps
    from featstore.pipeline.match import Matches as Matches
    from featstore.pipeline.match import match as match
    from featstore.pipeline.match import match_pairs as match_pairs
    from featstore.pipeline.match import match_photographs as match_photographs
    from featstore.pipeline.run_build import build as build
    from featstore.pipeline.run_build import make_maps as make_maps
    from featstore.store.store import open_store as open_store
    from featstore.tuning.train import TrainResult as TrainResult
    from featstore.tuning.train import train as train
    from matcher.errors import InputError as InputError

_PLACES = {
    "featstore.adapters.base": ("load_adapter",),
    "featstore.adapters.train": ("AdaptResult", "adapt"),
    "featstore.config": (
        "AdaptConfig",
        "BuildConfig",
        "EvalConfig",
        "GridConfig",
        "MapsConfig",
        "MatchConfig",
        "TrainConfig",
    ),
    "featstore.pipeline.match": ("Featurizer", "ImageMaps", "Matches", "match", "match_pairs", "match_photographs"),
    "featstore.pipeline.run_build": ("build", "make_maps"),
    "featstore.pipeline.evaluate": ("evaluate",),
    "featstore.pipeline.grid": ("grid",),
    "featstore.store.store": ("open_store",),
    "featstore.tuning.train": ("TrainResult", "train"),
    "matcher.errors": ("InputError",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}
__all__ = [*_PLACE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("dualsd")
    if name not in _PLACE_OF:
        raise AttributeError(f"dualsd has no {name!r}: it has {', '.join(__all__)}.")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
