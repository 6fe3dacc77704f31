from pathlib import Path

import pytest
import torch

from featstore.backbones.base import Compute
from featstore.backbones.models import Model, open_model
from featstore.backbones.noise import Latents
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.pipeline.build import BuildRequest


@pytest.fixture
def dataset(photographs: Path) -> Dataset:
    return open_dataset("folder", photographs)


@pytest.fixture
def model(small_model: Path) -> Model:
    return open_model(str(small_model))


@pytest.fixture
def request_(tmp_path: Path, photographs: Path) -> BuildRequest:
    """32 pixels would do for the VAE; the UNet wants latents of at least 8 cells."""
    return BuildRequest(tmp_path / "s.zarr", photographs, 64, Latents.SAMPLE, 11, (50, 261), 2)


@pytest.fixture
def compute() -> Compute:
    return Compute(torch.device("cpu"), torch.float32, 4)
