"""Which layers there are, and whose they are: the one place where a layer's name is resolved. And what is recommended
for a model where nobody says otherwise: layers, timesteps, weights, kernel, each with its source or as unknown
(`profiles/*.toml`).

A further backbone of images alone is one module with the two functions of `featstore.backbones.base.Family`, and one
line in `LAYERS` for each of its layers.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from featstore.backbones.base import Asked, Backbone, Family, LayerShape, ModelLocation
from featstore.errors import ModelError

DIFFUSION = "stable_diffusion"
"""The family of the model that a store's latents are made with, of whatever kind that is (see
`featstore.backbones.models`): its layers have a timestep and a prompt."""

LAYERS: dict[str, str] = {
    **dict.fromkeys(("1", "2", "3", "4", "block", "single"), f"featstore.backbones.{DIFFUSION}"),
    "dino": "featstore.backbones.dino",
    "dinov3": "featstore.backbones.dinov3",
}
"""The module of each layer, by the name that users type. `dino:9` is a block of `dino`'s network; `2.1` is what layer 2
holds behind its first resnet (and the attention that follows it), before it is upsampled. `block:9` and `single:20` are
blocks of a transformer, with what is made of them (`featstore.backbones.mmdit`)."""

_PARTS = {
    **dict.fromkeys(("1", "2", "3", "4"), r"(\.[1-9]\d*)?"),
    **dict.fromkeys(("block", "single"), r":[1-9]\d*(\.adaln)?(-\d+)*"),
}
"""What may follow the first part of a layer's name; of others a block."""


def stem_of(layer: str) -> str:
    """The name in `LAYERS` that a layer's own begins with."""
    return re.split(r"[.:]", layer, maxsplit=1)[0]


def of_images_alone() -> tuple[str, ...]:
    """What the names of layers begin with that are made of images alone."""
    return tuple(stem for stem, module in LAYERS.items() if not module.endswith(f".{DIFFUSION}"))


def block_of(layer: str) -> int:
    """The number of a diffusion model's layer: of the up block, 1 to 4, that it is, or lies in; of a transformer's
    block."""
    return int(re.findall(r"\d+", layer)[0])


TRANSFORMERS = ("sd3", "flux")
"""The structures (see `profile_of`) of models whose layers are a transformer's blocks, and which are told no text."""


def check_of_structure(layers: Iterable[str], structure: str, model_id: str) -> None:
    """Raise `ModelError` for a UNet's layer where the model is a transformer, and the other way round."""
    is_transformer = structure in TRANSFORMERS
    for layer in layers:
        if is_diffusion(layer) and (stem_of(layer) in ("block", "single")) is not is_transformer:
            has = "blocks, e.g. block:9" if is_transformer else "a UNet's up blocks, e.g. 2"
            raise ModelError(f"There is no layer {layer} in {model_id}: its layers are {has}.")


def check_takes_prompts(structure: str, model_id: str) -> None:
    """Raise `ModelError` for a model that prompts can be neither given to nor learned for."""
    if structure in TRANSFORMERS:
        raise ModelError(
            f"{model_id} is a transformer, which is told zeros here in place of a text: prompts can be neither given "
            "to it nor learned for it; take a UNet of Stable Diffusion."
        )


TITLES = {"dino": "DINOv2", "dinov3": "DINOv3"}
"""What families are called where their networks are counted or named; others by their own name."""


def family_of(layer: str) -> str:
    """Whose a layer is: the last part of its module's name, which names it in stores and records as well. Raises
    `ModelError` where there is no such layer, and says which there are."""
    stem = stem_of(layer)
    family = LAYERS.get(stem, "").rpartition(".")[2]
    if not family or not re.fullmatch(_PARTS.get(stem, r"(:[1-9]\d*)?"), layer.removeprefix(stem)):
        others = ", ".join(of_images_alone())
        raise ModelError(
            f"There is no layer {layer}: layers are the UNet decoder's up blocks, 1 to 4 (diffusers' up_blocks and "
            f"DIFT's up_ft_index count from 0), a transformer's, block:9 and single:9, and {others}; parts of them are "
            "2.1, block:9.adaln or dino:9."
        )
    return family


def is_diffusion(layer: str) -> bool:
    """Whether a layer has timesteps and prompts. Raises `ModelError` where there is no such layer."""
    return family_of(layer) == DIFFUSION


def is_other(layer: str) -> bool:
    """Whether a layer is made of images alone, with neither noise nor text; features of a file have any names."""
    return stem_of(layer) in LAYERS and not is_diffusion(layer)


def pixel_families(layers: Iterable[str]) -> dict[str, list[str]]:
    """The layers that are made of images alone, by family, in order. Raises `ModelError` for one that there is not."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if not is_diffusion(layer):
            found.setdefault(family_of(layer), []).append(layer)
    return found


def open_family(layer: str) -> Family:
    """The module that opens the backbone of a layer made of images alone."""
    return cast(Family, import_module(LAYERS[stem_of(layer)]))


def open_other(layer: str, asked: Mapping[str, Asked], model: ModelLocation) -> tuple[Backbone, int]:
    """The backbone of a layer made of images alone, and the side in pixels of the images that it is given.

    Args:
        layer: of another family than the diffusion model's.
        asked: which backbones, by family, where not the usual ones.
        model: the store's, which may bring one.

    Raises:
        ModelError: where it is out of reach.
    """
    own = asked.get(family_of(layer), Asked())
    backbone = open_family(layer).open_backbone(own, model)
    return backbone, backbone.image_size if own.size is None else own.size


def asked_of(name: str | None, size: int | None, debias: int | None) -> dict[str, Asked]:
    """What `--dino`, `--dino-size` and `--dino-debias` ask for, of each family that knows them."""
    return dict.fromkeys(TITLES, Asked(name, size, debias or 0))


def shapes_of(backbone: Backbone, size: int, layers: Iterable[str]) -> dict[str, LayerShape]:
    """The shapes of some layers' maps of images of `size` pixels. Raises `ModelError` for one that the backbone at hand
    does not have."""
    known = backbone.layers(size)
    for layer in layers:
        if layer not in known:
            first, *parts = known
            more = f" and {parts[0]} to {parts[-1]}" if parts else ""
            raise ModelError(f"There is no layer {layer} in {backbone.name.id}: it has {first}{more}.")
    return {layer: known[layer] for layer in layers}


FOUR_BLOCKS = "unet4"
"""The structure of Stable Diffusion 1 and 2, and of every store that names none: a UNet of four up blocks."""

UNKNOWN = "unknown"
"""What a profile says in the place of a value that nobody has published."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's recommended settings. What nobody has published is empty, or None: whoever needs it is told to say it,
    and that `dualsd grid` finds it.

    models: ids that it is for. structure: of models that have no profile of their own and take this one; None where
    this one is for its own models alone. layers: names. text_timesteps, learned_timesteps, training_timesteps: by
    layer, for inference with a text and with learned prompts, and for training. weights: by layer. weights_with_other:
    of two layers, one of which is another backbone's. kernel: k of the loss, in cells. sources: where each comes from,
    by the name of the field; of what is unknown what is known of that.
    """

    models: tuple[str, ...] = ()
    structure: str | None = None
    layers: tuple[str, ...] = ()
    text_timesteps: Mapping[str, int] = field(default_factory=dict)
    learned_timesteps: Mapping[str, int] = field(default_factory=dict)
    training_timesteps: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    weights_with_other: tuple[float, ...] = ()
    kernel: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def weights_of(self, layers: Sequence[str]) -> tuple[float, ...] | None:
        """One weight per layer: 1 of a single one; None where nothing is recommended for these layers together."""
        if len(layers) == 1:
            return (1.0,)
        if all(layer in self.weights for layer in layers):
            return tuple(self.weights[layer] for layer in layers)
        if len(layers) == 2 and any(map(is_other, layers)):
            return self.weights_with_other or None
        return None


SETTINGS = tuple(one.name for one in fields(Profile) if one.name not in ("models", "structure", "sources"))
"""What a profile recommends, each with its source."""


def profile_of(model_id: str, structure: str = FOUR_BLOCKS) -> Profile:
    """The profile of a model: its own, else that of its structure (`sd2-1` of UNets of four up blocks), else one where
    everything is unknown.

    Args:
        model_id: as `Model.location` has it.
        structure: as `Model.structure` says.
    """
    known = profiles().values()
    own = [profile for profile in known if model_id in profile.models]
    return (own or [profile for profile in known if profile.structure == structure] or [Profile()])[0]


@cache
def profiles() -> dict[str, Profile]:
    """Every profile by its file's name."""
    found = {}
    for file in sorted((Path(__file__).parent / "profiles").glob("*.toml")):
        stated = tomllib.loads(file.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: stated[name]["value"] for name in SETTINGS}
        known: dict[str, Any] = {name: own for name, own in values.items() if own != UNKNOWN}
        known |= {name: tuple(own) for name, own in known.items() if isinstance(own, list)}
        # of what nobody has published there may be a word on what was tried
        sources = {name: stated[name]["source"] for name in SETTINGS if name in known or "source" in stated[name]}
        found[file.stem] = Profile(tuple(stated["models"]), stated.get("structure"), sources=sources, **known)
    return found
