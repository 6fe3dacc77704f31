"""Write the tables of docs/backbones.md: what each layer of the published models costs and what the models take, by
their published configurations at full size on torch's meta device, and how far maps are from those of the libraries'
own forward passes.

    python -m tools.backbones_table            writes between the marks in docs/backbones.md
    python -m tools.backbones_table --print    prints

A further row is one more entry of `tools.published.MODELS`. Differences are measured here, on a small network of random
weights of the same structure.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featstore.backbones.base import Asked, Compute, ModelLocation
from featstore.backbones.cost import built, cost_of, outputs_of, pass_over_images, pass_over_latents
from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.dino import DINOV2, Generation, locate_named, open_dino, with_imagenet_statistics
from featstore.backbones.dinov3 import DINOV3
from featstore.backbones.flow import FlowSchedule
from featstore.backbones.locate import demo_folder
from featstore.backbones.mmdit import MMDiT
from featstore.backbones.mmdit_networks import CutTransformer
from featstore.backbones.noise import LatentScale
from tools.published import MODELS, Published

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
BEGIN, END = "<!-- written by python -m tools.backbones_table -->", "<!-- until here -->"
CPU = Compute(torch.device("cpu"), torch.float32, 1)
Small = Mapping[str, Any]

SMALL_UNET: Small = {"norm_num_groups": 8, "sample_size": 16}
SMALL_WIDTHS, SMALL_HEADS, SMALL_DEPTHS = (32, 64, 128, 128), (2, 4, 8, 8), (1, 1, 2)
SMALL_XL: Small = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 40 + 6 * 8}
SMALL_VIT: Small = {
    **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48},
    "image_size": 64,
}
SMALL_CONVNEXT: Small = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
SMALL_TRANSFORMER: Small = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 3} | {
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
}
SMALL_SD3: Small = {"caption_projection_dim": 32, "pos_embed_max_size": 12, "sample_size": 16}
SMALL_FLUX: Small = {"num_single_layers": 3, "axes_dims_rope": (4, 6, 6)}


def main() -> None:
    """Write the tables, or print them."""
    tables = write_tables()
    if "--print" in sys.argv[1:]:
        print(tables)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def write_tables() -> str:
    """Both, as Markdown: layers, and models."""
    costs = [(model, cost_of(model.components, model.size, layer_of(model))) for model in MODELS]
    lines = ["| model | layer | channels | cells | TFLOP | MB per map |", "|---|---|---|---|---|---|"]
    for model, cost in costs:
        for place, layer in enumerate(model.layers):
            own = cost.layers[layer]
            channels, cells, _ = own.map
            name = model.name if place == 0 else ""
            figures = f"{channels} | {cells}x{cells} | {own.flops / 1e12:.2f} | {own.bytes / 1e6:.1f}"
            lines.append(f"| {name} | `{layer}` | {figures} |")
    lines += [
        "",
        "| model | published as | pixels | VAE, TFLOP | parameters, million | GB of weights, float16 / float32 | text "
        "| learned prompts | largest difference | test |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    differences: dict[str, str] = {}
    for model, cost in costs:
        key = repr((model.parity, model.parity_of))
        differences.setdefault(key, spell(PARITIES[model.parity](model.parity_of)))
        count, takes_text = sum(cost.parameters.values()), "unet" in model.components
        cells = (
            *(model.name, f"`{model.hub_name}`", str(model.size)),
            f"{cost.encode / 1e12:.2f}" if cost.encode else "",
            " + ".join(f"{own / 1e6:.0f}" for own in cost.parameters.values()),
            " / ".join(f"{size * count / 1e9:.1f}" for size in (2, 4)),
            *(("yes" if takes_text else "no"),) * 2,
            *(differences[key], f"`{model.test}`"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def layer_of(model: Published) -> str:
    """What the last block of a network of images alone is called; empty for others."""
    return "" if "" not in model.components else model.layers[-1]


def spell(difference: float) -> str:
    """0, or a power of ten that is not reached: the last bits differ between machines."""
    return "0" if difference == 0 else f"below 1e{max(math.ceil(math.log10(difference)), -6)}"


def of_unet(config: Small) -> float:
    """A UNet that is cut behind its last layer, and the whole one."""
    count, small = len(config["block_out_channels"]), {**config, **SMALL_UNET, "cross_attention_dim": 64}
    small["block_out_channels"] = SMALL_WIDTHS[:count]
    if isinstance(config["attention_head_dim"], list):
        small["attention_head_dim"] = SMALL_HEADS[:count]
    if "addition_embed_type" in config:
        small |= {**SMALL_XL, "transformer_layers_per_block": SMALL_DEPTHS}
    unet, latents = _random(small), torch.randn(1, 4, 16, 16)
    theirs = _whole(pass_over_latents, unet, latents)
    added = (
        {"text_embeds": torch.zeros(1, 40), "time_ids": torch.zeros(1, 6)} if "addition_embed_type" in config else None
    )
    with torch.no_grad():
        ours = CutUNet(unet, count).tap(latents, 0, torch.zeros(1, 77, 64), [*theirs], added)
    return _largest(ours, theirs)


def of_dino(config: Small) -> float:
    """A DINO of one file on disk, through its backbone, and transformers' own forward pass: of each block what it gives
    under the network's last norm, where it has one."""
    small = {**config, **(SMALL_CONVNEXT if "depths" in config else SMALL_VIT)}
    generation: Generation = DINOV2 if config["model_type"] in DINOV2.kinds else DINOV3
    side = 2 * 32 if "depths" in config else 4 * config["patch_size"]
    network, seen = _random(small), torch.rand(1, 3, side, side) * 2 - 1
    theirs = _whole(pass_over_images, network, with_imagenet_statistics(seen), generation.layer)
    with tempfile.TemporaryDirectory() as name:
        network.save_pretrained(name)
        processor = demo_folder() / "dinov2" / "preprocessor_config.json"
        (Path(name) / processor.name).write_bytes(processor.read_bytes())
        backbone = open_dino(generation, Asked(), *locate_named(name, generation))
        with torch.no_grad():
            ours = backbone.load(CPU, [*theirs]).features(seen, None, None, [*theirs])
    norm = network.layer_norm if "depths" in config else network.norm if hasattr(network, "norm") else network.layernorm
    for layer in [generation.layer] if "depths" in config else [*theirs]:
        with torch.no_grad():
            theirs[layer] = norm(theirs[layer].movedim(1, -1)).movedim(-1, 1)
    return _largest(ours, theirs)


def of_transformer(config: Small) -> float:
    """A transformer of SD 3's or FLUX's kind that is run block by block, and diffusers' own forward pass."""
    small = {**config, **SMALL_TRANSFORMER, **(SMALL_FLUX if "num_single_layers" in config else SMALL_SD3)}
    if "dual_attention_layers" in config:
        small["dual_attention_layers"] = [0, 1]
    network, latents = _random(small), torch.randn(1, 16, 16, 16)
    theirs = _whole(pass_over_latents, network, latents)
    none = ModelLocation("small", None, Path("small"))
    model = MMDiT(none, "", small, 8, LatentScale(), FlowSchedule())
    with torch.no_grad():
        ours = CutTransformer(network, model.blocks, ()).tap(latents, 0, [*theirs])
    return _largest(ours, theirs)


PARITIES: Mapping[str, Callable[[Small], float]] = {"unet": of_unet, "dino": of_dino, "transformer": of_transformer}
"""How a network's maps are compared with its library's own pass, by the kind of network."""


def _random(config: Small) -> Any:
    """Every weight drawn anew: the libraries leave some at 0, behind which nothing could be told apart."""
    torch.manual_seed(0)
    network = built(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def _whole(begin: Callable[..., Any], *of: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    outputs_of(begin(*of), lambda name, own: found.__setitem__(name, own.clone()))
    return found


def _largest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Of all values, as a share of the layer's largest."""
    assert all(own.isfinite().all() and own.any() for own in theirs.values()), "these could not be told apart"
    return max(float((ours[name] - own).abs().max() / own.abs().max()) for name, own in theirs.items())


if __name__ == "__main__":
    main()
