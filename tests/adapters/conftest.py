"""A store of small photographs, and adapters for its maps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore.adapters.base import Adapter, AdapterSpec, make_adapter, save_adapter
from featstore.config import EvalConfig
from featstore.pipeline.evaluate import evaluate
from featstore.pipeline.results import Evaluation
from tests.cli.conftest import _little_drawn, _no_progress, run, store  # noqa: F401

LAYERS, TIMESTEPS, WEIGHTS = ("2", "3"), (261, 50), (0.8, 0.6)
INPUTS = tuple(zip(LAYERS, TIMESTEPS, strict=True))
TYPED = ("--layers", "2,3", "--t", "261,50", "--weights", "0.8,0.6")


def asked(**values: Any) -> EvalConfig:
    """An evaluation of the store's pairs, quick."""
    return EvalConfig(device="cpu", readouts=("nn", "softmax"), alphas=(0.1, 0.5), **values)


@pytest.fixture
def zero_shot(store: Path) -> Evaluation:  # noqa: F811
    """Two layers, without an adapter."""
    return evaluate(asked(layers=LAYERS, timesteps=TIMESTEPS, weights=WEIGHTS, ensemble=1))


def channels_of(store: Path, layer: str, timestep: int) -> int:  # noqa: F811
    """Those of the one array of such maps."""
    from featstore.store.store import open_store

    arrays = open_store(store).arrays()
    return next(own.row_shape[0] for path, own in arrays.items() if path.endswith(f"layer{layer}/t{timestep:04d}"))


def shaken(adapter: Adapter, seed: int = 1) -> Adapter:
    """The adapter with random parameters, as if it had learned something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in adapter.parameters():
            own.add_(0.2 * torch.randn(own.shape, generator=random, dtype=own.dtype))
    return adapter


Saved = Callable[..., Path]


@pytest.fixture
def saved(store: Path, zero_shot: Evaluation, tmp_path: Path) -> Saved:  # noqa: F811
    """Writes an adapter for the maps of `zero_shot`, whose kind and spec may be said, and gives its place."""

    def write(kind: Any = "residual", name: str = "a", learned: bool = True, **more: Any) -> Path:
        inputs = more.pop("inputs", INPUTS)
        spec = AdapterSpec(
            kind,
            inputs,
            tuple(channels_of(store, *key) for key in inputs),
            0 if kind == "weights" else 8,
            (1.0,) if kind == "aggregate" else WEIGHTS,
            projection=16 if kind == "aggregate" else 0,
            groups=4,
            about={"maps": dict(zero_shot.features)},
        )
        adapter = make_adapter(replace(spec, **more), seed=0)
        place = tmp_path / f"{name}.safetensors"
        save_adapter(place, shaken(adapter) if learned else adapter)
        return place

    return write
