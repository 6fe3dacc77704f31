"""A training step through SDXL's two text encoders and its UNet, in double precision."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.prompts.base import Mode, PromptSet, Start
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import Learner, Networks, batch_loss
from tests.featstore.backbones.small_families import FIRST_WIDTH, SECOND_WIDTH, write_small_sdxl
from tests.featstore.tuning.conftest import LENGTH, SETTINGS, NoiseLatents, patch_tokens, some_pairs

PROBLEM = replace(SETTINGS, layers=(1, 2), timesteps=(261, 200), validation_timesteps=(261, 200))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("sdxl") / "small"
    write_small_sdxl(folder)
    return open_model(str(folder)).load(Compute(torch.device("cpu"), torch.float64, 1), ["1", "2"])


def learner(loaded: Any, settings: TuningSettings) -> Learner:
    unets = [loaded.unet.until(layer) for layer in settings.layers]
    compute = Compute(torch.device("cpu"), torch.float64, 1)
    networks = Networks(loaded.text, loaded.text.frame(LENGTH), unets, compute, loaded.told, loaded.added)
    start = Start(some_pairs(), LENGTH, loaded.text, patch_tokens)
    prompts: list[PromptSet] = [settings.mode.rules.start(start, f"prompts|0|{layer}") for layer in settings.layers]
    return Learner(settings, networks, prompts, NoiseLatents().load)


@pytest.mark.parametrize("mode", list(Mode))
def test_only_prompts_have_gradients(loaded: Any, mode: Mode) -> None:
    problem = learner(loaded, replace(PROBLEM, mode=mode))
    pairs = some_pairs()
    batch_loss(problem, pairs, len(pairs), 0)[0].backward()
    for own in problem.prompts:
        for parameter in [*own.parameters(), *own.network_parameters()]:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    networks = [loaded.text.first.encoder, loaded.text.second.encoder, loaded.text.projection, loaded.unet.unet]
    for network in networks:
        assert all(own.grad is None and not own.requires_grad for own in network.parameters())


def test_both_encoders_vectors_are_learned(loaded: Any) -> None:
    problem = learner(loaded, replace(PROBLEM, mode=Mode.SINGLE))
    pairs = some_pairs()
    batch_loss(problem, pairs, len(pairs), 0)[0].backward()
    for own in problem.prompts:
        (vectors,) = own.parameters()
        assert vectors.shape == (LENGTH, FIRST_WIDTH + SECOND_WIDTH)
        assert vectors.grad is not None
        first, second = vectors.grad.split([FIRST_WIDTH, SECOND_WIDTH], dim=1)
        assert first.abs().max() > 0
        assert second.abs().max() > 0


@pytest.mark.parametrize("mode", [Mode.SINGLE, Mode.CLASS])
def test_the_gradient_is_the_finite_difference(loaded: Any, mode: Mode) -> None:
    problem = learner(loaded, replace(PROBLEM, mode=mode))
    pairs = some_pairs()

    def loss() -> torch.Tensor:
        return batch_loss(problem, pairs, len(pairs), 1)[0]

    random = torch.Generator().manual_seed(2)
    for layer in problem.prompts:
        parameters = layer.parameters()
        gradients = torch.autograd.grad(loss(), parameters)
        direction = [torch.randn(own.shape, generator=random, dtype=torch.float64) for own in parameters]
        expected = sum((grad * step).sum() for grad, step in zip(gradients, direction, strict=True))
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                for own, step in zip(parameters, direction, strict=True):
                    own += sign * 1e-5 * step
                values.append(loss())
                for own, step in zip(parameters, direction, strict=True):
                    own -= sign * 1e-5 * step
        assert ((values[0] - values[1]) / 2e-5).item() == pytest.approx(float(expected), rel=1e-4)
