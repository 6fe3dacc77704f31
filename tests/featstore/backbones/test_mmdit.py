"""SD 3.5's and FLUX.1's transformers, small and random, written by diffusers: hidden states against hooks on the whole
transformer's own forward pass, DiTF's normalisation against the block's own and its code's formula, and shapes and
parameters of the published configurations, built without memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featstore.backbones.base import Compute, ModelLocation
from featstore.backbones.blocks import Tap, tap_of
from featstore.backbones.cost import cost_of
from featstore.backbones.flow import FlowSchedule
from featstore.backbones.mmdit import MMDiT, open_located
from featstore.backbones.mmdit_networks import CLASSES, CutTransformer, MMDiTNetworks
from featstore.backbones.models import open_model
from featstore.backbones.noise import LatentScale
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import change_json, copied
from tests.featstore.backbones.small_transformers import FLUX, NAMES, SD3, transformer_of, written
from tools.published import FLUX as FLUX_DEV
from tools.published import SD35_LARGE, SD35_MEDIUM

CPU = torch.device("cpu")
NOISY = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(1))
KINDS = ("sd3", "flux")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {kind: written(root / kind, kind) for kind in KINDS}


def opened(folder: Path) -> MMDiT:
    return open_located(ModelLocation(str(folder), None, folder, "mmdit"))


def networks_of(folder: Path, *layers: str) -> MMDiTNetworks:
    return opened(folder).load(Compute(CPU, torch.float32, 2), layers)


def whole_pass(kind: str, network: nn.Module, noisy: Tensor, timestep: int) -> None:
    """The transformer's own forward pass, called as its pipeline calls it with embeddings of zeros."""
    size, side = len(noisy), noisy.shape[-1]
    pooled, share = torch.zeros(size, 12), torch.full((size,), timestep / 1000)
    with torch.no_grad():
        if kind == "sd3":
            network(noisy, torch.zeros(size, 333, 20), pooled, share * 1000)
            return
        packed = FluxPipeline._pack_latents(noisy, size, 16, side, side)
        places = FluxPipeline._prepare_latent_image_ids(size, side // 2, side // 2, CPU, torch.float32)
        guidance = torch.full((size,), 3.5) if FLUX["guidance_embeds"] else None
        network(packed, torch.zeros(size, 512, 20), pooled, share, places, torch.zeros(512, 3), guidance)


def hooked(kind: str, noisy: Tensor, timestep: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image's tokens behind each block, and what each block's first AdaLN makes of those before it; as maps."""
    network = transformer_of(kind)
    blocks = [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())]
    behind: dict[str, Tensor] = {}
    modulated: dict[str, Tensor] = {}
    tokens = (noisy.shape[-1] // 2) ** 2

    def keep(place: dict[str, Tensor], name: str, which: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            place[name] = output[which][:, -tokens:]  # in single blocks the text stands before the image

        return hook

    for name, block in zip(NAMES[kind], blocks, strict=True):
        block.register_forward_hook(keep(behind, name, 1))
        norm = block.norm1 if hasattr(block, "norm1") else block.norm
        norm.register_forward_hook(keep(modulated, name, 0))
    whole_pass(kind, network, noisy, timestep)
    side = noisy.shape[-1] // 2
    as_map = {name: own.transpose(1, 2).unflatten(2, (side, side)) for name, own in behind.items()}
    return as_map, {name: own.transpose(1, 2).unflatten(2, (side, side)) for name, own in modulated.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("timestep", "side"), [(0, 16), (260, 16), (999, 20)])
def test_blocks_are_those_of_the_whole_transformer(
    kind: str, timestep: int, side: int, folders: Mapping[str, Path]
) -> None:
    noisy = torch.randn(2, 16, side, side, generator=torch.Generator().manual_seed(side))
    expected, _ = hooked(kind, noisy, timestep)
    found = networks_of(folders[kind]).features(noisy, timestep, None, NAMES[kind])
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, atol=1e-5, rtol=1e-5, msg=name)
        assert opened(folders[kind]).shape(name, 8 * side).map == tuple(own.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_adaln_is_the_blocks_own(kind: str, folders: Mapping[str, Path]) -> None:
    """Of one draw what DiTF's normalisation gives is what the block itself goes on with."""
    _, expected = hooked(kind, NOISY, 260)
    layers = [f"{name}.adaln" for name in NAMES[kind]]
    networks = networks_of(folders[kind], *layers)
    found = networks.features(NOISY, 260, None, layers)
    for name, own in expected.items():
        made = networks.finished(f"{name}.adaln", 260, found[f"{name}.adaln"])
        torch.testing.assert_close(made, own, atol=1e-5, rtol=1e-5, msg=name)


def by_hand(maps: np.ndarray[Any, Any], shift: Tensor, scale: Tensor, without: tuple[int, ...]) -> Any:
    """DiTF's eval_spair.py in numpy and float64: channels zeroed, LayerNorm of 1e-6, (1 + scale) times it, plus shift.
    maps: the mean over draws, (C, h, w)."""
    maps = maps.astype(np.float64)
    maps[list(without)] = 0
    centred = maps - maps.mean(axis=0)
    normalised = centred / np.sqrt(maps.var(axis=0) + 1e-6)
    return (1 + scale.double().numpy()[:, None, None]) * normalised + shift.double().numpy()[:, None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_ditf_of_a_mean_over_draws(kind: str, folders: Mapping[str, Path]) -> None:
    """Draws are averaged before channels are zeroed and the rest is normalised."""
    block = NAMES[kind][-1]
    layer = f"{block}.adaln-3-17"
    networks = networks_of(folders[kind], layer)
    mean = networks.features(NOISY, 260, None, [layer])[layer].mean(dim=0)
    network = transformer_of(kind)
    last = [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())][-1]
    norm = last.norm1 if kind == "sd3" else last.norm
    told: list[Tensor] = []
    norm.register_forward_hook(lambda _, __, kwargs, ___: told.append(kwargs["emb"]), with_kwargs=True)
    whole_pass(kind, network, NOISY, 260)
    shift, scale = norm.linear(nn.functional.silu(told[0]))[0].split(24)[:2]
    expected = by_hand(mean.numpy(), shift, scale, (3, 17))
    found = networks.finished(layer, 260, mean[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_alone(folders: Mapping[str, Path]) -> None:
    networks = networks_of(folders["flux"], "block:2-0-23")
    raw = networks.features(NOISY, 100, None, ["block:2"])["block:2"]
    found = networks.finished("block:2-0-23", 100, raw)
    assert found[:, [0, 23]].eq(0).all()
    torch.testing.assert_close(found[:, 1:23], raw[:, 1:23], atol=0, rtol=0)
    assert raw[:, [0, 23]].ne(0).all()  # what was given is left as it was


@pytest.mark.parametrize("kind", KINDS)
def test_cut_after_the_last_block(kind: str, folders: Mapping[str, Path]) -> None:
    """The same maps; blocks behind are freed, and a pass for an earlier layer runs no further."""
    second = NAMES[kind][1]
    whole = networks_of(folders[kind]).features(NOISY, 50, None, [second])[second]
    networks = networks_of(folders[kind], second, f"{NAMES[kind][2]}.adaln")
    cut = networks.transformer
    assert len(cut.network.transformer_blocks) == 2
    assert [*cut.network.single_transformer_blocks] == [cut._norms[NAMES[kind][2]]]
    assert cut.network.proj_out is None
    torch.testing.assert_close(networks.features(NOISY, 50, None, [second])[second], whole, atol=0, rtol=0)
    runs = [0, 0]
    for place, block in enumerate(cut.network.transformer_blocks):
        block.register_forward_hook(lambda *_, place=place: runs.__setitem__(place, runs[place] + 1))
    networks.features(NOISY, 50, None, [NAMES[kind][0]])
    networks.features(NOISY, 50, None, [f"{second}.adaln"])
    assert runs == [2, 0]


def test_latents_are_shifted_and_scaled(folders: Mapping[str, Path]) -> None:
    """(z - shift) * scale, of the posterior's mean and of a sample."""
    networks = networks_of(folders["sd3"])
    pictures = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * 2 - 1
    drawn = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        posterior = networks.vae.encode(pictures).latent_dist
    for noise, z in ((None, posterior.mean), (drawn, posterior.mean + posterior.std * drawn)):
        torch.testing.assert_close(networks.encode(pictures, noise), (z - 0.0609) * 1.5305, atol=1e-6, rtol=1e-5)


def test_names() -> None:
    assert tap_of("block:9") == Tap("block:9", False, ())
    assert tap_of("single:10.adaln-154-1446") == Tap("single:10", True, (154, 1446))
    for name in ("block", "block:0", "block:9.", "block:9.1", "single:1-", "2", "dino:9", "block:9.adaln.adaln"):
        assert tap_of(name) is None


def test_what_there_is_not_is_refused(folders: Mapping[str, Path]) -> None:
    model = opened(folders["flux"])
    with pytest.raises(ModelError, match=r"no layer 2 in .*: it has block:1 to block:2 and single:1 to single:3"):
        model.shape("2", 128)
    with pytest.raises(ModelError, match=r"no layer single:1 in .*: it has block:1 to block:3, and block:1.adaln each"):
        opened(folders["sd3"]).shape("single:1", 128)
    with pytest.raises(ModelError, match="leaves out channel 24, and there are 24, from 0"):
        model.shape("block:1-24", 128)
    with pytest.raises(ModelError, match=r"whole patches of 2 x 2 latents: take a multiple of 16, e.g. --size 128"):
        model.latent_side(136)
    with pytest.raises(ModelError, match=r"14 tokens a side, and .* has positions for 12: take --size 192 or less"):
        opened(folders["sd3"]).latent_side(224)
    assert model.latent_shape(1024) == (16, 128, 128)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "model", "sd3") / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    lost = tensors.pop("transformer_blocks.1.attn2.to_q.weight")
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"1 missing \('transformer_blocks.1.attn2.to_q.weight'\)"):
        opened(tmp_path / "model")
    save_file({**tensors, "transformer_blocks.1.attn2.to_q.weight": lost / 0}, file)
    with pytest.raises(ModelError, match="values that are not finite"):
        opened(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "component", "change", "words"),
    [
        ("sd3", "scheduler", {"_class_name": "DDIMScheduler"}, "'DDIMScheduler', and this transformer was trained by"),
        ("sd3", "transformer", {"_class_name": "PixArtTransformer2DModel"}, "'PixArtTransformer2DModel', not SD3Tr"),
        ("sd3", "vae", {"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny', not AutoencoderKL"),
        ("flux", "transformer", {"in_channels": 384}, "takes 384 channels, and 64 are made of .* another picture"),
        ("sd3", "transformer", {"in_channels": 33}, "takes 33 channels, and 16 are made of"),
        ("flux", "transformer", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_parts_that_do_not_belong_together(
    kind: str, component: str, change: dict[str, object], words: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders[kind], tmp_path / "model")
    file = "scheduler_config.json" if component == "scheduler" else "config.json"
    change_json(folder / component / file, **change)
    with pytest.raises(ModelError, match=words):
        open_model(str(folder))


def test_a_folder_is_opened_as_what_it_is(folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Also without a list of components; a UNet for it is none."""
    for kind, folder in folders.items():
        model = open_model(str(folder))
        assert (model.structure, model.image_size) == (kind, 128 if kind == "sd3" else 1024)
        assert {*model.layers(128)} == {*NAMES[kind]}
    folder = copied(folders["flux"], tmp_path / "model")
    (folder / "model_index.json").unlink()
    assert open_model(str(folder)).structure == "flux"
    with pytest.raises(ModelError, match=r"--unet takes the place of a UNet, and .* is a transformer"):
        open_model(str(folder), unet="clean.safetensors")


PUBLISHED: Mapping[str, tuple[Mapping[str, Any], float, int]] = {
    "SD 3.5 medium": (SD35_MEDIUM, 2.5e9, 1536),
    "SD 3.5 large": (SD35_LARGE, 8.1e9, 2432),
    "FLUX.1-dev": (FLUX_DEV, 11.9e9, 3072),
}
"""Configurations as published, with the parameters that their model cards state."""


@pytest.mark.parametrize("name", [*PUBLISHED])
def test_published_configurations(name: str) -> None:
    """Without memory: parameters as the cards state them, the table of positions of SD 3.5 among them; maps of 64 cells
    a side at 1024 pixels, as the whole transformer's own pass has them; and what is freed where it is cut."""
    components, parameters, channels = PUBLISHED[name]
    config = components["transformer"]
    location = ModelLocation("published", None, Path("published"), "mmdit")
    model = MMDiT(location, "0" * 32, config, 8, LatentScale(), FlowSchedule())
    first = model.blocks.names[0]
    with torch.device("meta"):
        networks = [CLASSES[config["_class_name"]].from_config(dict(config)) for _ in range(2)]
        count = numbers(networks[0])
        cut = CutTransformer(networks[1], model.blocks, [first])
        assert cut.tap(torch.empty(1, 16, 128, 128), 260, [first])[first].shape == (1, channels, 64, 64)
    assert count == pytest.approx(parameters, rel=0.02)
    assert numbers(cut.network) < 0.15 * count
    reached = cost_of(components, 1024).layers
    assert [*reached] == [*model.blocks.names]
    assert {own.map for own in reached.values()} == {shape.map for shape in model.layers(1024).values()}
    assert {own.map for own in reached.values()} == {(channels, 64, 64)}


def numbers(network: nn.Module) -> int:
    return sum(own.numel() for own in network.state_dict().values())


def test_the_small_ones_have_the_published_structure() -> None:
    """Of their kind: which modules a block has."""
    with torch.device("meta"):
        theirs = SD3Transformer2DModel.from_config(dict(SD35_MEDIUM["transformer"]))
        flux = FluxTransformer2DModel.from_config(dict(FLUX_DEV["transformer"]))
    for small, whole in ((SD3Transformer2DModel(**SD3), theirs), (FluxTransformer2DModel(**FLUX), flux)):
        for lists in ("transformer_blocks", "single_transformer_blocks"):
            ours, full = (getattr(network, lists, ()) for network in (small, whole))
            for place in (0, -1) if len(ours) else ():
                assert [name for name, _ in ours[place].named_parameters()] == [
                    name for name, _ in full[place].named_parameters()
                ]
