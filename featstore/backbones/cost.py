"""What a model's networks are by their configurations alone: the maps that a pass gives, what it has taken when each is
there, and how many numbers its weights are. All on torch's meta device: nothing is loaded, and a multiplication and an
addition are two operations (torch's FlopCounterMode).

A configuration is what stands in a published folder, by the folder's name (`vae`, `unet`, `transformer`,
`text_encoder`, ...), or by "" that of a network of images alone.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featstore.backbones import flux, sd3
from featstore.backbones.blocks import PATCH
from featstore.backbones.dino import PLACES

Components = Mapping[str, Mapping[str, Any]]
PROMPT_TOKENS = 77
"""Of CLIP's text encoders."""


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


@dataclass(frozen=True, slots=True)
class WholePass:
    """A network's own forward pass, as its library has it, for one image. modules: whose outputs the layers are, by
    name, in the order in which they are run."""

    modules: Mapping[str, nn.Module]
    run: Callable[[], object]


def cost_of(components: Components, image_size: int, layer: str = "") -> Cost:
    """Of images of `image_size` pixels a side.

    Args:
        components: Configurations.
        image_size: Side in pixels, which the network can take.
        layer: What the blocks of a network of images alone are called: `dino` or `dinov3`.
    """
    with torch.device("meta"):
        pixels = torch.empty(1, 3, image_size, image_size)
        networks = {name: built(config) for name, config in components.items() if name.startswith(loaded(components))}
        if "" in networks:
            return Cost(0, _reached(pass_over_images(networks[""], pixels, layer)), {"network": _count(networks[""])})
        vae = networks["vae"]
        vae.decoder = vae.post_quant_conv = None
        latents: list[Tensor] = []
        encode = _flops(lambda: latents.append(vae.encode(pixels).latent_dist.mean))
        main = networks.get("unet", networks.get("transformer"))
        told = pass_over_latents(main, latents[0])
        return Cost(encode, _reached(told), {name: _count(network) for name, network in networks.items()})


def loaded(names: Collection[str]) -> tuple[str, ...]:
    """What the names of those folders of a model begin with whose networks dualsd loads. A transformer is told zeros:
    its text encoders need not be there."""
    if "" in names:
        return ("",)
    return ("vae", "transformer") if "transformer" in names else ("vae", "unet", "text_encoder")


def built(config: Mapping[str, Any]) -> Any:
    """A network of random weights, as diffusers or transformers builds it from a configuration. A text encoder has no
    projection."""
    if "_class_name" in config:
        return getattr(diffusers, config["_class_name"]).from_config(dict(config)).eval()
    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config)).eval()


def pass_over_images(network: Any, pixels: Tensor, layer: str) -> WholePass:
    """Of a DINO. layer: what the last block is called.

    Args:
        network: transformers'.
        pixels: (1, 3, S, S).
        layer: What the last block is called.
    """
    blocks = [*network.get_submodule(PLACES[network.config.model_type][0]).children()]
    names = [*(f"{layer}:{number}" for number in range(1, len(blocks))), layer]
    return WholePass(dict(zip(names, blocks, strict=True)), lambda: network(pixels))


def pass_over_latents(network: Any, latents: Tensor) -> WholePass:
    """Of a UNet, or of a transformer of SD 3's or FLUX's kind, at t = 0 with zeros in place of a text.

    Args:
        network: diffusers'.
        latents: (1, c, h, w).
    """
    return _unet(network, latents) if hasattr(network, "up_blocks") else _transformer(network, latents)


def _unet(unet: Any, latents: Tensor) -> WholePass:
    """Up blocks, counted from 1, and what lies in them behind each resnet and its attention."""
    modules: dict[str, nn.Module] = {}
    for number, block in enumerate(unet.up_blocks, start=1):
        parts = getattr(block, "attentions", None) or block.resnets
        modules |= {f"{number}.{place}": own for place, own in enumerate(parts, start=1)} | {str(number): block}
    config, zeros = unet.config, latents.new_zeros
    told: dict[str, Any] = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        told = {"added_cond_kwargs": {"text_embeds": zeros(1, pooled), "time_ids": zeros(1, 6)}}
    prompt = zeros(1, PROMPT_TOKENS, config.cross_attention_dim)
    return WholePass(modules, lambda: unet(latents, 0, prompt, return_dict=False, **told))


def _transformer(network: Any, latents: Tensor) -> WholePass:
    """Blocks that keep text and image apart, `block:1` and so on, and those that take both as one, `single:1`."""
    modules = {f"block:{number}": own for number, own in enumerate(network.transformer_blocks, start=1)}
    single = getattr(network, "single_transformer_blocks", ())
    modules |= {f"single:{number}": own for number, own in enumerate(single, start=1)}
    config, zeros, side = network.config, latents.new_zeros, latents.shape[-1] // PATCH
    tokens = flux.TEXT_TOKENS if len(single) else sd3.TEXT_TOKENS
    told: dict[str, Any] = {
        "encoder_hidden_states": zeros(1, tokens, config.joint_attention_dim),
        "pooled_projections": zeros(1, config.pooled_projection_dim),
        "timestep": zeros(1),
        "return_dict": False,
    }
    if len(single):
        pipeline, place = diffusers.FluxPipeline, (latents.device, latents.dtype)
        told |= {"txt_ids": zeros(tokens, 3), "img_ids": pipeline._prepare_latent_image_ids(1, side, side, *place)}
        told |= {"guidance": zeros(1) + flux.GUIDANCE} if config.guidance_embeds else {}
        latents = pipeline._pack_latents(latents, *latents.shape[:2], 2 * side, 2 * side)
    return WholePass(modules, lambda: network(hidden_states=latents, **told))


def outputs_of(told: WholePass, keep: Callable[[str, Tensor], None]) -> None:
    """Run it. keep: is given each layer's map (1, C, h, w) when it is there."""

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        return told.modules[name].register_forward_hook(lambda _, _inputs, output: keep(name, _map_of(output)))

    handles = [hook(name) for name in told.modules]
    with torch.no_grad():
        told.run()
    for handle in handles:
        handle.remove()


def _reached(told: WholePass) -> dict[str, Reached]:
    """What each layer is, and what was taken until then."""
    found: dict[str, Reached] = {}
    with FlopCounterMode(display=False) as counter:

        def keep(name: str, own: Tensor) -> None:
            _, channels, height, width = own.shape
            found[name] = Reached((channels, height, width), int(counter.get_total_flops()))

        outputs_of(told, keep)
    return found


def _map_of(output: Any) -> Tensor:
    """(1, C, h, w) of a block's output: a map, or tokens of a square behind those of a DINO's prefix (fewer than a
    row); blocks of two streams give the image's last."""
    tensor: Tensor = output if isinstance(output, Tensor) else output[-1]
    if tensor.dim() == 4:
        return tensor
    side = math.isqrt(tensor.shape[1])
    return tensor[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def _count(network: nn.Module) -> int:
    return sum(own.numel() for own in network.parameters())


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
