"""What a model is, by its files: family and classes, noise, layers and what each costs, its networks' sizes, what is
recommended for it and by whom. Of weights only the fingerprint is taken; nothing is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.backbones.base import Asked, LayerShape
from featstore.backbones.dino import DINOV2, Generation, locate_named, open_dino
from featstore.backbones.dinov3 import DINOV3
from featstore.backbones.locate import cached_snapshot
from featstore.backbones.model_file import read_object
from featstore.backbones.models import Model
from featstore.backbones.registry import SETTINGS, UNKNOWN, Profile, profile_of, profiles

if TYPE_CHECKING:
    from featstore.backbones.cost import Reached


@dataclass(frozen=True, slots=True)
class InspectedLayer:
    """A layer. flops: of a pass for one image and one draw of noise, until its map is there. bytes: of its map as a
    store keeps it (float16)."""

    name: str
    channels: int
    cells: int
    stride: int
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Recommended:
    """A recommended setting. value: `unknown` where nobody has published one. source: where it comes from."""

    value: Any
    source: str


_NOBODY = Recommended(UNKNOWN, "nobody has published it: `dualsd grid` finds it")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a model is.

    family: by its structure, in words. classes: of its networks, by the folder that they lie in. image_size: of the
    images that layers and costs are of, which it takes where nobody says otherwise. noise: its schedule and what it
    predicts, in words; None where it knows none. latent_shape: (c, h, w); None where there are no latents.
    encode_flops: of the VAE's encoder for one image. parameters: of each network; of the VAE its encoder's. text,
    tuning: whether prompts are taken, and can be learned. profile: the name of the profile that is taken; None where
    there is none. recommended: by the name of the setting.
    """

    id: str
    folder: str
    fingerprint: str
    family: str
    classes: Mapping[str, str]
    image_size: int
    noise: str | None
    latent_shape: tuple[int, ...] | None
    encode_flops: int
    layers: tuple[InspectedLayer, ...]
    parameters: Mapping[str, int]
    text: bool
    tuning: bool
    profile: str | None
    recommended: Mapping[str, Recommended]

    def to_json(self) -> dict[str, Any]:
        """As `dualsd doctor --json` writes it."""
        return asdict(self)


def generation_of(name: str) -> Generation | None:
    """Which DINO a folder holds, or what was downloaded of a hub's name; None where it is none. The hub is not asked.
    Raises `ModelError` for a configuration that cannot be read."""
    folder: Path | None = Path(name).expanduser()
    for generation in (DINOV2, DINOV3):
        if folder is None or not folder.is_dir():
            folder = cached_snapshot(name, None, ["config.json"]) if name.count("/") == 1 else None
        file = None if folder is None else folder / "config.json"
        if file is None or not file.is_file():
            return None
        if read_object(file, "a network's configuration").get("model_type") in generation.kinds:
            return generation
    return None


def inspect_dino(generation: Generation, name: str) -> Inspection:
    """Look at a DINO's files. Raises `ModelError` where they are damaged."""
    # only now: the libraries take seconds to load
    from featstore.backbones.cost import cost_of
    from featstore.backbones.weights import dino_class

    backbone = open_dino(generation, Asked(), *locate_named(name, generation))
    config, size = read_object(backbone.folder / "config.json", "a configuration"), backbone.image_size
    cost = cost_of({"": config}, size, generation.layer)
    return Inspection(
        id=backbone.name.id,
        folder=str(backbone.folder),
        fingerprint=backbone.name.fingerprint,
        family=f"{generation.title}, whose layers are made of images alone",
        classes={"network": dino_class(backbone.folder).__name__},
        image_size=size,
        noise=None,
        latent_shape=None,
        encode_flops=0,
        layers=_layers(backbone.layers(size).__getitem__, cost.layers),
        parameters=cost.parameters,
        text=False,
        tuning=False,
        profile=None,
        recommended={
            "image_size": Recommended(size, "60 cells a side, sd-dino's; of a small DINOv2 what it was trained on"),
            "layers": Recommended(("dino",), "SD4Match's code") if generation is DINOV2 else _NOBODY,
        },
    )


def inspect_model(model: Model) -> Inspection:
    """Look at the files of a model of diffusion that was opened."""
    # only now: the libraries take seconds to load
    from featstore.backbones.cost import cost_of, loaded

    folder, size = model.location.folder, model.image_size
    places = {place.parent.name: place for place in sorted(folder.glob("*/config.json"))}
    names = [name for name in places if name.startswith(loaded(places))]
    configs = {name: read_object(places[name], "a diffusers configuration") for name in names}
    cost, takes_text = cost_of(configs, size), "unet" in configs
    told = profile_of(model.location.id, model.structure)
    clean = "" if model.clean is None else f", its UNet in place of {model.location.id}'s: {model.clean.path}"
    noise = model.schedule.spell() if model.clean is None else f"none; told t = {model.clean.timestep:g}"
    return Inspection(
        id=model.location.id,
        folder=str(folder),
        fingerprint=model.fingerprint,
        family=f"{model.location.family}, {_structure(model.structure)}{clean}",
        classes={name: str(own.get("_class_name", own.get("model_type"))) for name, own in configs.items()},
        image_size=size,
        noise=noise,
        latent_shape=model.latent_shape(size),
        encode_flops=cost.encode,
        layers=_layers(lambda layer: model.shape(layer, size), cost.layers),
        parameters=cost.parameters,
        text=takes_text,
        tuning=takes_text,
        profile=next((name for name, own in profiles().items() if own is told), None),
        recommended=_recommended(told, model),
    )


def _structure(structure: str) -> str:
    blocks = structure.removeprefix("unet")
    return f"a UNet of {blocks} up blocks" if blocks.isdecimal() else structure


def _layers(shape: Callable[[str], LayerShape], reached: "Mapping[str, Reached]") -> tuple[InspectedLayer, ...]:
    found = ((shape(layer), own) for layer, own in reached.items())
    return tuple(InspectedLayer(own.name, own.channels, own.side, own.stride, at.flops, at.bytes) for own, at in found)


def _recommended(profile: Profile, model: Model) -> dict[str, Recommended]:
    found = {"image_size": Recommended(model.image_size, "the model's configuration, or its pipeline")}
    for name in SETTINGS:
        value, source = getattr(profile, name), profile.sources.get(name, _NOBODY.source)
        if model.clean is not None and name.endswith("timesteps"):
            value, source = "none", "this UNet was trained without noise"
        elif model.clean is not None and value:
            source = f"of noisy latents, for clean ones nobody has published any: {source}"
        found[name] = Recommended(value or UNKNOWN, source)
    return found
