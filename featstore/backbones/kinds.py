"""Which kinds of models can be run, what their folders hold in diffusers' layout, and how they are told from others.

By its pipeline's name, its components and its configurations a model is of one of `KINDS`, or something else, which is
refused by what it is. A further kind is one entry there and the module that opens it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featstore.backbones.model_file import read_object
from featstore.errors import ModelError
from featstore.plain_text import shown

TAKE = "take a Stable Diffusion 1.x, 2.x or XL, e.g. --model sd2-1, sd1-5 or sdxl"

_TRANSFORMER = "a transformer, which has no UNet and none of its layers"
FAMILIES = {
    "PixArt": f"PixArt, {_TRANSFORMER}",
    "HunyuanDiT": f"Hunyuan-DiT, {_TRANSFORMER}",
    "Kandinsky": "Kandinsky, whose UNet takes embeddings of images in place of text",
    "StableCascade": "Stable Cascade, whose UNet takes embeddings of images",
    "Wuerstchen": "Wuerstchen, whose UNet takes embeddings of images",
    "StableUnCLIP": "Stable unCLIP, whose UNet takes embeddings of images as well",
    "StableDiffusionImageVariation": "an image variation model, whose UNet takes embeddings of images in place of text",
    "StableDiffusionDepth2Img": "a depth model, whose UNet takes a depth map beside the latents",
    "StableDiffusionUpscale": "an upscaler, whose UNet takes a small picture beside the latents",
    "StableDiffusionLatentUpscale": "an upscaler, whose UNet takes small latents beside the latents",
    "StableDiffusionInstructPix2Pix": "InstructPix2Pix, whose UNet takes a second picture beside the latents",
    "StableVideoDiffusion": "Stable Video Diffusion, whose UNet takes frames of a film",
    "IF": "DeepFloyd IF, whose UNet takes pixels in place of latents",
}
"""By the start of the pipeline's name in model_index.json: what cannot be run here, and why."""

_CHANNELS = {
    3: "a model of pixels in place of latents, such as DeepFloyd IF",
    5: "a depth model (latents, depth map)",
    7: "an upscaler (latents, small picture)",
    8: "an editor such as InstructPix2Pix (latents, a second picture's) or a latent upscaler",
    9: "an inpainting model (latents, mask, masked picture)",
}
"""Of a UNet whose latents have 4: what it seems to be."""

_MORE_INPUTS = {
    "class_embed_type": "class labels (an upscaler or unCLIP)",
    "num_class_embeds": "class labels (an upscaler)",
    "addition_embed_type": "a further embedding (as SDXL, Kandinsky or DeepFloyd IF)",
    "encoder_hid_dim": "embeddings that it projects first (as Kandinsky or DeepFloyd IF)",
    "encoder_hid_dim_type": "embeddings that it projects first (as Kandinsky or DeepFloyd IF)",
    "time_cond_proj_dim": "an embedding of the guidance scale (distilled, as LCM)",
}
"""Settings of UNets that take more than latents, a timestep and text, and what they take."""

_TIMESTEPS = ("unet", "time_embedding_type", "positional", "takes no timesteps but logarithms of noise ({})")


def _is_clip(component: str) -> tuple[str, str, str, str]:
    """A row of `_TAKEN`."""
    does = "holds a network of the type {}, not CLIP's text encoder (clip_text_model)"
    return component, "model_type", "clip_text_model", does


_TAKEN: tuple[tuple[str, str, str | None, str], ...] = (
    ("vae", "_class_name", "AutoencoderKL", "holds a network of the class {}, not AutoencoderKL"),
    ("unet", "_class_name", "UNet2DConditionModel", "holds a network of the class {}, not UNet2DConditionModel"),
    _is_clip("text_encoder"),
    *(
        ("unet", key, None, f"takes {what} beside latents, timestep and text ({key} {{}})")
        for key, what in _MORE_INPUTS.items()
    ),
    _TIMESTEPS,
)
"""Of each component the settings that tell its network, the only value that is taken (which is meant where there is
none), and what a network of another value does."""

_XL_TAKEN = (
    *(row for row in _TAKEN if row[1] != "addition_embed_type"),
    ("unet", "addition_embed_type", "text_time", "takes no pooled text and image size, as SDXL's does ({})"),
    _is_clip("text_encoder_2"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model that can be run.

    title: what it is called in sentences. family: the module of this package that opens it, a
    `featstore.backbones.models.DiffusionFamily`. pipelines: what the names of its pipelines in model_index.json begin
    with. told_by: components that tell it where there is no such name. components: folders that are needed, in the
    order of the fingerprint. weights: of those that have weights, the name of their file without its ending. faults:
    what a folder's configurations have that makes it another kind of model.
    """

    title: str
    family: str
    pipelines: tuple[str, ...]
    told_by: frozenset[str]
    components: tuple[str, ...]
    weights: Mapping[str, str]
    faults: Callable[[Path], Iterator[str]]

    @property
    def pipeline(self) -> str:
        """The class of diffusers that loads such a folder whole."""
        return "DiffusionPipeline" if self.pipelines else "StableDiffusionPipeline"

    @property
    def descriptions(self) -> list[str]:
        """Patterns of its configurations and vocabularies."""
        vocabularies = [f"{name}/*.txt" for name in self.components if name.startswith("tokenizer")]
        return ["model_index.json", *(f"{name}/*.json" for name in self.components), *vocabularies]

    @property
    def files(self) -> list[str]:
        """Patterns of all that is loaded: the default precision, as safetensors."""
        shards = ("", "-?????-of-?????")
        weights = (f"{name}/{file}{shard}.safetensors" for name, file in self.weights.items() for shard in shards)
        return [*self.descriptions, *weights]


def kind_of(where: str, index: Mapping[str, Any], names: Set[str]) -> Kind:
    """The kind that a model is of, by its list of components or its files' names. Raises `ModelError` where it is of
    none that can be run.

    where: its folder or page. index: its `model_index.json`; empty where there is none, which dualsd does without.
    names: of its files, with their folder.
    """
    name = str(index.get("_class_name", ""))
    folders = {file.partition("/")[0] for file in names if "/" in file}
    listed = {key for key, value in index.items() if value not in (None, [None, None])} if index else folders
    for kind in KINDS:
        if name.startswith(kind.pipelines) or (not name and kind.told_by <= listed):
            return kind
    found = [what for start, what in FAMILIES.items() if name.startswith(start)]
    if "transformer" in listed or ("transformer" in folders and "unet" not in folders):
        found.append(_TRANSFORMER)
    if "text_encoder_2" in listed:
        found.append("a model of two text encoders, as SDXL")
    if not listed.isdisjoint(("prior", "prior_prior")):
        found.append("a model whose UNet takes embeddings of images")
    if found:
        raise ModelError(f"{where} holds {found[0]}{f' ({shown(name)})' if name else ''}: {TAKE}.")
    return STABLE_DIFFUSION


def check_configurations(kind: Kind, folder: Path) -> None:
    """Raise `ModelError` where the networks of a folder in diffusers' layout are others than those of its kind, or do
    not belong together. Only their configurations are read."""
    if fault := next(kind.faults(folder), None):
        raise ModelError(f"{fault}.")


def _read(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Configurations of components."""
    return {name: read_object(folder / name / "config.json", "a diffusers configuration") for name in names}


def _faults_of_unet(
    folder: Path, encoders: Sequence[str], rows: Iterable[tuple[str, str, str | None, str]]
) -> Iterator[str]:
    """Of a UNet and what belongs to it. encoders: the text encoders, whose outputs are joined. rows: as `_TAKEN`."""
    configs = _read(folder, ("vae", "unet", *encoders))
    for name, key, taken, does in rows:
        if (found := configs[name].get(key, taken)) != taken:
            yield f"{folder / name} {does.format(shown(str(found)))}: {TAKE}"
    for name, config in configs.items():
        if config.get("quantization_config") is not None:
            yield f"{folder / name} holds quantised weights: take a model that is not quantised"
    vae, unet, where = configs["vae"], configs["unet"], folder / "unet"
    if (colours := vae.get("in_channels", 3)) != 3:
        yield f"{folder / 'vae'} encodes pictures of {colours} channels, not of red, green and blue: {TAKE}"
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latents:
        seems = _CHANNELS.get(channels) if isinstance(channels, int) and latents == 4 else None
        said = f"{where} takes {channels} channels, but the VAE's latents have {latents}"
        yield f"{said}{f': it seems to be {seems}' if seems else ''}: {TAKE}"
    widths = [configs[name].get("hidden_size", 512) for name in encoders]
    width, made = unet.get("cross_attention_dim", 1280), " and ".join(map(str, widths))
    both = sum(widths) if all(isinstance(own, int) for own in widths) else widths  # a stranger's may be anything
    beside = "text encoder beside it makes" if len(encoders) == 1 else "text encoders beside it make"
    for own in width if isinstance(width, list) else [width]:
        if own != both:
            yield (
                f"{where} takes text embeddings of width {own} (cross_attention_dim), but the {beside} {made}: take "
                "UNet and text encoder of one model (SD 1.x has 768, SD 2.x 1024, SDXL 768 and 1280)"
            )


_TRANSFORMERS = ("SD3Transformer2DModel", "FluxTransformer2DModel")


def _faults_of_transformer(folder: Path) -> Iterator[str]:
    """Of a transformer and the VAE before it."""
    configs = _read(folder, ("vae", "transformer"))
    for name, taken in (("vae", ("AutoencoderKL",)), ("transformer", _TRANSFORMERS)):
        if (found := configs[name].get("_class_name")) not in taken:
            yield f"{folder / name} holds a network of the class {shown(str(found))}, not {' or '.join(taken)}"
        if configs[name].get("quantization_config") is not None:
            yield f"{folder / name} holds quantised weights: take a model that is not quantised"
    vae, transformer = configs["vae"], configs["transformer"]
    if (colours := vae.get("in_channels", 3)) != 3:
        yield f"{folder / 'vae'} encodes pictures of {colours} channels, not of red, green and blue"
    packed = 1 if transformer["_class_name"] == _TRANSFORMERS[0] else 4
    taken, latents = transformer.get("in_channels", 16 * packed), vae.get("latent_channels", 4)
    if taken != latents * packed:
        yield (
            f"{folder / 'transformer'} takes {taken} channels, and {latents * packed} are made of the VAE's latents: "
            "it seems to take another picture beside them; take a model that makes pictures of text alone"
        )


_NETWORKS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}

STABLE_DIFFUSION = Kind(
    title="Stable Diffusion",
    family="stable_diffusion",
    pipelines=(),
    told_by=frozenset({"unet"}),
    components=("vae", "unet", "text_encoder", "tokenizer", "scheduler"),
    weights=_NETWORKS,
    faults=lambda folder: _faults_of_unet(folder, ["text_encoder"], _TAKEN),
)
"""Stable Diffusion 1 and 2: any pipeline that is none of the others'."""

SDXL = Kind(
    title="SDXL",
    family="sdxl",
    pipelines=("StableDiffusionXL",),
    told_by=frozenset({"unet", "text_encoder_2"}),
    components=(*STABLE_DIFFUSION.components, "text_encoder_2", "tokenizer_2"),
    weights={**_NETWORKS, "text_encoder_2": "model"},
    faults=lambda folder: _faults_of_unet(folder, ["text_encoder", "text_encoder_2"], _XL_TAKEN),
)

MMDIT = Kind(
    title="Stable Diffusion 3 or FLUX",
    family="mmdit",
    pipelines=("StableDiffusion3", "Flux"),
    told_by=frozenset({"transformer"}),
    components=("vae", "transformer", "scheduler"),
    weights=dict.fromkeys(("vae", "transformer"), "diffusion_pytorch_model"),
    faults=_faults_of_transformer,
)

KINDS = (SDXL, MMDIT)
"""The registry of kinds that their pipeline's name or their components tell; `STABLE_DIFFUSION` is what is left."""
