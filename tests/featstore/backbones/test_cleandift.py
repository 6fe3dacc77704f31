"""Layers, parts of layers and clean passes against CleanDIFT's own code, on its small UNets of SD 2.1's and 1.5's kind
(tests/golden/cleandift). us1 and us2 lie in the first up block behind its first and second resnet, us3 is its output;
the others likewise."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from featstore.backbones.base import Compute, Condition
from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.models import open_model
from featstore.backbones.registry import block_of, family_of
from featstore.backbones.stable_diffusion import layer_shape
from featstore.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "cleandift"
LAYERS = {
    **{"1.1": "us1", "1.2": "us2", "1": "us3", "2.1": "us4", "2.2": "us5", "2": "us6"},
    **{"3.1": "us7", "3.2": "us8", "3": "us9", "4.1": "us10"},
}


def config_of(kind: str) -> dict[str, object]:
    with safe_open(GOLDEN / f"{kind}_unet_weights.safetensors", "pt") as file:
        config: dict[str, object] = json.loads(file.metadata()["config"])
    return config


def unet_of(kind: str) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**config_of(kind))
    unet.load_state_dict(load_file(GOLDEN / f"{kind}_unet_weights.safetensors"))
    return unet.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_parts_of_layers_of_clean_latents(kind: str) -> None:
    golden = load_file(GOLDEN / f"{kind}_features.safetensors")
    timestep = float(golden["timestep"])
    maps = CutUNet(unet_of(kind), 4).tap(golden["latents"], timestep, golden["prompt_embeds"], [*LAYERS])
    for layer, theirs in LAYERS.items():
        expected = golden[f"clean.{theirs}"]
        torch.testing.assert_close(maps[layer], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("layer", [*LAYERS])
def test_shapes_of_parts(layer: str) -> None:
    """By the configuration alone; latents of 16 cells a side, of 128 pixels."""
    height = load_file(GOLDEN / "sd21_features.safetensors")[f"clean.{LAYERS[layer]}"]
    shape = layer_shape(layer, config_of("sd21"), latent_side=16, image_size=128)
    assert (shape.name, shape.channels, shape.side) == (layer, height.shape[1], height.shape[2])
    assert shape.stride == 128 // shape.side


def test_names_of_parts() -> None:
    assert (block_of("2.1"), block_of("4"), family_of("2.3")) == (2, 4, "stable_diffusion")
    for name in ("2.", "2.0", "5.1", "2.x", "dino.1"):
        with pytest.raises(ModelError, match=f"There is no layer {name}: layers are"):
            family_of(name)
    with pytest.raises(ModelError, match=r"no layer 2\.4: this UNet's layer 2 has the parts 2\.1 to 2\.3"):
        layer_shape("2.4", config_of("sd21"), 16, 128)


@pytest.fixture
def clean_weights(small_model: Path) -> dict[str, torch.Tensor]:
    """Of the small model's UNet, all a little other than its own."""
    own = load_file(small_model / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: tensor * 1.25 for name, tensor in own.items()}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def by_hand(small_model: Path, weights: dict[str, torch.Tensor], timestep: float, latents: torch.Tensor) -> Tensor:
    """Layer 2, by a hook on diffusers' own forward pass."""
    unet = UNet2DConditionModel.from_pretrained(small_model / "unet", torch_dtype=torch.float32).eval()
    unet.load_state_dict(weights, strict=False)
    found: list[Tensor] = []
    unet.up_blocks[1].register_forward_hook(lambda *given: found.append(given[2]))
    with torch.no_grad():
        unet(latents, timestep, PROMPTS)
    return found[0]


PROMPTS = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(4))
LATENTS = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("layout", ["file", "without output", "folder", "full"])
def test_a_published_file_takes_the_unets_place(
    layout: str, small_model: Path, tmp_path: Path, clean_weights: dict[str, torch.Tensor]
) -> None:
    """Each layout, through the whole model; the timestep is 261, or the one that the file holds."""
    timestep = 261.0
    path = tmp_path / "cleandift.safetensors"
    tensors = dict(clean_weights)
    if layout == "without output":
        tensors = {name: own for name, own in tensors.items() if not name.startswith(("conv_out", "conv_norm_out"))}
    if layout == "full":
        timestep = 257.3
        others = {f"unet_feature_extractor_base.{name}": own * 3 for name, own in tensors.items()}
        tensors = {f"unet_feature_extractor_cleandift.{name}": own for name, own in tensors.items()}
        tensors |= others | {"timestep": torch.tensor(timestep), "adapters.us6.layers.0.weight": torch.zeros(2, 2)}
    saved(path, tensors)
    if layout == "folder":
        path = saved(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", tensors).parent
    model = open_model(str(small_model), unet=str(path))
    assert model.clean is not None
    assert model.clean.timestep == pytest.approx(timestep)
    assert model.fingerprint != open_model(str(small_model)).fingerprint
    networks = model.load(Compute(torch.device("cpu"), torch.float32, 2), ["2"])
    with torch.no_grad():
        found = networks.features(LATENTS, None, Condition(PROMPTS), ["2"])["2"]
    torch.testing.assert_close(found, by_hand(small_model, clean_weights, timestep, LATENTS), atol=1e-5, rtol=1e-4)


def test_what_is_no_such_unet_is_refused(
    small_model: Path, tmp_path: Path, clean_weights: dict[str, torch.Tensor]
) -> None:
    def refused(unet: Path, words: str) -> None:
        with pytest.raises(ModelError, match=words):
            open_model(str(small_model), unet=str(unet))

    refused(tmp_path / "none.safetensors", "There is no UNet .*none.safetensors: --unet takes a file")
    (tmp_path / "pickle.ckpt").write_bytes(b"x")
    refused(tmp_path / "pickle.ckpt", "pickles are never read")
    lost = {name: own for name, own in clean_weights.items() if name != "up_blocks.1.resnets.0.conv1.weight"}
    refused(saved(tmp_path / "lost.safetensors", lost), r"1 missing \('up_blocks.1.resnets.0.conv1.weight'\)")
    other = load_file(GOLDEN / "sd21_unet_weights.safetensors")
    refused(saved(tmp_path / "other.safetensors", other), "of another shape .*take the file that was trained from this")
    infinite = clean_weights | {"conv_in.bias": clean_weights["conv_in.bias"] / 0}
    refused(saved(tmp_path / "infinite.safetensors", infinite), "values that are not finite")
