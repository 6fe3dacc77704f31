"""What no checksum can see: rows of other images, edited headers, other weights under the same date."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featstore.backbone.model import Model, open_model
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import StoreError
from featstore.progress import Silent
from featstore.prompts.saved import SavedPrompts
from featstore.prompts.text import TextPrompt
from featstore.stages.build import BuildRequest, build
from featstore.stages.compute import Compute
from featstore.stages.dino_maps import AskedDino, require_dino_maps
from featstore.stages.needed import require_maps
from featstore.stages.patch_tokens import cache_patch_tokens
from featstore.stages.recompute import Recomputed, recompute
from featstore.stages.repair import find_dino, repair
from featstore.store.store import Store, open_store
from featstore.store.stored import Stored
from featstore.store.verify import verify
from tests.featstore.stages.test_repair import learned
from tests.featstore.store.small_store import array_of, contents, flip

WANTED = [(2, 261), (3, 50)]
EVERY = 6
"""Images."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, photographs: Path, small_model: Path) -> Path:
    """A model of its own, and a store of every kind of array."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small_model, folder / "model")
    model, dataset = open_model(str(folder / "model")), open_dataset("folder", photographs)
    compute = Compute(torch.device("cpu"), torch.float32, 4)
    request = BuildRequest(folder / "s.zarr", photographs, 64, open_latents(), 11, (50, 261), 2)
    build(dataset, model, request, compute, skip_bad=False, progress=Silent())
    store = open_store(request.path)
    for stored in Stored:
        require_maps(store, dataset, range(EVERY), WANTED, TextPrompt(), 2, compute, Silent(), stored)
    saved = SavedPrompts(learned(model), TextPrompt("a picture of a {category}"))
    require_maps(store, dataset, range(EVERY), [(2, 261)], saved, 1, compute, Silent())
    found = require_dino_maps(store, dataset, range(EVERY), AskedDino(None, None), compute, Silent())
    dino = find_dino(model, found.extractor.dino)
    assert dino is not None
    cache_patch_tokens(store, dataset, *dino, range(EVERY), compute, Silent())
    return folder
