"""What a model's networks are by their configurations alone: the maps that a pass gives, what it has taken when each is
there, and how many numbers its weights are. All on torch's meta device: nothing is loaded, and a multiplication and an
addition are two operations (torch's FlopCounterMode).

A configuration is what stands in a published folder, by the folder's name (`vae`, `unet`, `transformer`,
`text_encoder`, ...), or by "" that of a network of images alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featstore.backbones.dino import PLACES

Components = Mapping[str, Mapping[str, Any]]
PROMPT_TOKENS = 77
"""Of CLIP's text encoders."""
TRANSFORMER_TOKENS = {"SD3Transformer2DModel": 333, "FluxTransformer2DModel": 512}
"""Of the text that transformers are told: CLIP's and T5's 256 behind each other, and T5's alone, as their pipelines
have it."""
PATCH = 2
"""Latent cells a side of a transformer's token."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A layer in a pass. map: (C, h, w). flops: for one image and one draw of noise, from the network's input on until
    the map is there."""

    map: tuple[int, int, int]
    flops: int

    @property
    def bytes(self) -> int:
        """Of its map as stores keep it, float16."""
        return 2 * math.prod(self.map)


@dataclass(frozen=True, slots=True)
class Cost:
    """encode: FLOPs of the VAE's encoder, once per image; 0 where there is none. layers: in the order of the pass.
    parameters: of each network, of the VAE its encoder's."""

    encode: int
    layers: Mapping[str, Reached]
    parameters: Mapping[str, int]


def cost_of(components: Components, image_size: int, layer: str = "") -> Cost:
    """Of images of `image_size` pixels a side.

    Args:
        components: Configurations.
        image_size: Side in pixels, which the network can take.
        layer: What the blocks of a network of images alone are called: `dino` or `dinov3`.
    """
    if "" in components:
        with torch.device("meta"):
            network = _transformers_network(components[""])
            pixels = torch.empty(1, 3, image_size, image_size)
        *before, last = enumerate(network.get_submodule(PLACES[network.config.model_type][0]).children(), start=1)
        named = {f"{layer}:{number}": block for number, block in before} | {layer: last[1]}
        return Cost(0, _tapped(named, lambda: network(pixels)), {"network": _count(network)})
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL.from_config(dict(components["vae"])).eval()
        vae.decoder = vae.post_quant_conv = None
        pixels = torch.empty(1, 3, image_size, image_size)
        latents: list[Tensor] = []
        encode = _flops(lambda: latents.append(vae.encode(pixels).latent_dist.mean))
        parameters = {"vae": _count(vae)}
        for name, config in components.items():
            if name.startswith("text_encoder"):
                parameters[name] = _count(_transformers_network(config))
        run = _unet if "unet" in components else _transformer
        name = "unet" if "unet" in components else "transformer"
        network = getattr(diffusers, components[name]["_class_name"]).from_config(dict(components[name])).eval()
    return Cost(encode, run(network, latents[0]), parameters | {name: _count(network)})


def _unet(unet: Any, latents: Tensor) -> Mapping[str, Reached]:
    """Up blocks, counted from 1, and what lies in them behind each resnet and its attention."""
    modules: dict[str, nn.Module] = {}
    for number, block in enumerate(unet.up_blocks, start=1):
        parts = getattr(block, "attentions", None) or block.resnets
        modules |= {f"{number}.{place}": own for place, own in enumerate(parts, start=1)} | {str(number): block}
    config, like = unet.config, latents.new_empty
    told: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        told = {"added_cond_kwargs": {"text_embeds": like(1, pooled), "time_ids": like(1, 6)}}
    prompt = like(1, PROMPT_TOKENS, config.cross_attention_dim)
    return _tapped(modules, lambda: unet(latents, 0, prompt, return_dict=False, **told))


def _transformer(network: Any, latents: Tensor) -> Mapping[str, Reached]:
    """Blocks that keep text and image apart, `block:1` and so on, and those that take both as one, `single:1`."""
    modules = {f"block:{number}": own for number, own in enumerate(network.transformer_blocks, start=1)}
    single = getattr(network, "single_transformer_blocks", ())
    modules |= {f"single:{number}": own for number, own in enumerate(single, start=1)}
    config, like, side = network.config, latents.new_empty, latents.shape[-1]
    tokens = TRANSFORMER_TOKENS[type(network).__name__]
    told: dict[str, Any] = {
        "encoder_hidden_states": like(1, tokens, config.joint_attention_dim),
        "pooled_projections": like(1, config.pooled_projection_dim),
        "timestep": like(1),
        "return_dict": False,
    }
    if single:
        cells = (side // PATCH) ** 2
        latents = like(1, cells, config.in_channels)
        told |= {"img_ids": like(cells, 3), "txt_ids": like(tokens, 3)}
        told |= {"guidance": like(1)} if config.guidance_embeds else {}
    return _tapped(modules, lambda: network(hidden_states=latents, **told))


def _transformers_network(config: Mapping[str, Any]) -> Any:
    """As transformers builds it from a configuration. A text encoder's projection is no part of it."""
    kind = transformers.AutoConfig.for_model(**config)
    return transformers.AutoModel.from_config(kind).eval()


def _tapped(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> dict[str, Reached]:
    """What each module has given when it was run, and what was taken until then."""
    found: dict[str, Reached] = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():

        def keep(name: str) -> torch.utils.hooks.RemovableHandle:
            return modules[name].register_forward_hook(
                lambda _, _inputs, output: found.__setitem__(
                    name, Reached(_map_of(output), int(counter.get_total_flops()))
                )
            )

        handles = [keep(name) for name in modules]
        run()
    for handle in handles:
        handle.remove()
    return found


def _map_of(output: Any) -> tuple[int, int, int]:
    """(C, h, w) of a block's output: a map, or tokens of a square, the prefix of a DINO's (fewer than a row) among
    them; blocks of two streams give the image's last."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[-1]
    if tensor.dim() == 4:
        _, channels, height, width = tensor.shape
        return channels, height, width
    side = math.isqrt(tensor.shape[1])
    return tensor.shape[2], side, side


def _count(network: nn.Module) -> int:
    return sum(own.numel() for own in network.parameters())


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
