"""The cut UNet against DIFT's own taps, and that nothing beyond the layer is run or kept."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from featstore.backbones.diffusion_networks import CutUNet
from featstore.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "unet_taps.safetensors")


def whole_unet() -> UNet2DConditionModel:
    with safe_open(GOLDEN / "unet_taps.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict(load_file(GOLDEN / "unet_weights.safetensors"))
    return unet.eval().requires_grad_(False)


@pytest.mark.parametrize("timestep", [50, 261, 400])
def test_one_pass_taps_every_layer(golden: dict[str, torch.Tensor], timestep: int) -> None:
    maps = CutUNet(whole_unet(), 4).tap(golden[f"noisy_t{timestep}"], timestep, golden["prompt"], [1, 2, 3, 4])
    for layer, features in maps.items():
        torch.testing.assert_close(features, golden[f"up{layer - 1}_t{timestep}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_cut_after_the_layer(golden: dict[str, torch.Tensor], layer: int) -> None:
    maps = CutUNet(whole_unet(), layer).tap(golden["noisy_t261"], 261, golden["prompt"], [layer])
    torch.testing.assert_close(maps[layer], golden[f"up{layer - 1}_t261"], atol=1e-4, rtol=0)


def test_blocks_beyond_the_last_layer_are_freed_and_those_beyond_the_pass_not_run(
    golden: dict[str, torch.Tensor],
) -> None:
    unet = whole_unet()
    blocks = list(unet.up_blocks)
    runs = [0] * len(blocks)
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    cut = CutUNet(unet, 3)
    assert len(unet.up_blocks) == 3
    cut.tap(golden["noisy_t50"], 50, golden["prompt"], [2])
    assert runs == [1, 1, 0, 0]
    cut.tap(golden["noisy_t50"], 50, golden["prompt"], [3, 1])
    assert runs == [2, 2, 1, 0]


def test_noisy_latents_are_the_schedulers(golden: dict[str, torch.Tensor]) -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    for timestep in (50, 261, 400):
        noisy = scheduler.add_noise(golden["latents"], golden["noise"], torch.tensor([timestep] * 2))
        torch.testing.assert_close(noisy, golden[f"noisy_t{timestep}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 5])
def test_a_layer_that_is_none(layer: int) -> None:
    with pytest.raises(ModelError, match="1 to 4"):
        CutUNet(whole_unet(), layer)


def test_running_out_of_memory_names_a_batch_size(
    golden: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = CutUNet(whole_unet(), 1)

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cut.unet, "forward", fail)
    with pytest.raises(ModelError, match="--batch-size 4"):
        cut.tap(golden["noisy_t50"].repeat(4, 1, 1, 1), 50, golden["prompt"].repeat(4, 1, 1), [1])
