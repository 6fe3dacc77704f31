"""A network's weights against its configuration: names, shapes, types and finite values, before anything is encoded.

The libraries fill what a file lacks with random numbers, or fail hours later. Here each file is compared with the
network that its configuration describes, and the networks are run together once, built without memory (torch's meta
device).
"""

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)
from transformers.utils import logging as transformers_logging

from featstore.backbones.model_file import check_file, read_object, read_shards
from featstore.errors import ModelError
from featstore.plain_text import one_line, shown

WAY_OUT = "download the model again, or write it anew with save_pretrained"
_FLOATING = ("F16", "BF16", "F32", "F64")
_NAMED = 3
"""Tensors that a sentence names; the others are counted."""


@dataclass(frozen=True, slots=True)
class Published:
    """Where published files differ from what the library's network has, and may. Names are as the library loads them.

    weights: their file's name without its ending. unused: pattern of tensors that are left out. optional: pattern of
    tensors that no pass uses.
    """

    weights: str
    unused: str = "$^"
    optional: str = "$^"


_DINOV2 = Published(
    "model",
    unused=r"^(classifier\.(weight|bias)|(dinov2\.)?embeddings\.mask_token)$",
    optional=r"^embeddings\.mask_token$",
)
"""A classifier on top (dinov2-base-imagenet1k-1-layer), and what stands for masked patches in training."""

_CLIP = Published("model", unused=r"^(text_model\.)?embeddings\.position_ids$")
"""transformers before 4.31 (2023) saved the numbers of the positions as well."""

PUBLISHED: Mapping[Any, Published] = {
    AutoencoderKL: Published("diffusion_pytorch_model"),
    UNet2DConditionModel: Published("diffusion_pytorch_model"),
    SD3Transformer2DModel: Published("diffusion_pytorch_model"),
    FluxTransformer2DModel: Published("diffusion_pytorch_model"),
    CLIPTextModel: _CLIP,
    CLIPTextModelWithProjection: _CLIP,
    Dinov2Model: _DINOV2,
    Dinov2WithRegistersModel: _DINOV2,
    DINOv3ViTModel: _DINOV2,
    DINOv3ConvNextModel: Published("model"),
}
"""By the network's class; every other difference is refused. The other names of old files (`text_model.` before each
name of a text encoder, DINOv2's attention) transformers changes itself, by tables of its own."""

_OLD_ATTENTION = re.compile(r"(?<=mid_block\.attentions\.\d\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that diffusers changes where it loads VAEs from before its 0.17 (2023), such as those of SD 1.5 and 2.1."""


def check_model(folder: Path, image_size: int) -> None:
    """Raise `ModelError` unless the weights of a Stable Diffusion's folder are those that its configurations describe,
    and the networks take each other's outputs. image_size: S that it was trained for, pixels."""
    latents, unet, (said,) = _checked_networks(folder, image_size, {"text_encoder": CLIPTextModel})
    _dry_run(folder / "unet", lambda: unet(latents, 261, said.last_hidden_state).sample)


def check_xl(folder: Path, image_size: int) -> None:
    """`check_model` for the folder of an SDXL."""
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    latents, unet, (first, second) = _checked_networks(folder, image_size, encoders)

    def run() -> Tensor:
        prompt = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": torch.zeros(1, 6)}
        found: Tensor = unet(latents, 261, prompt, added_cond_kwargs=added).sample
        return found

    _dry_run(folder / "unet", run)


def _from_config(kind: Any, config: dict[str, Any]) -> Any:
    return kind(CLIPTextConfig.from_dict(config))


def _checked_networks(folder: Path, image_size: int, kinds: Mapping[str, Any]) -> tuple[Tensor, Any, list[Any]]:
    """The check of a folder up to the UNet's pass. kinds: the classes of the text encoders, by component; their
    tokenizers' folders are called alike.

    Returns:
        Latents without memory, the UNet, and what each text encoder gives.
    """
    vae = _built(folder / "vae", AutoencoderKL.from_config)
    unet = _built(folder / "unet", UNet2DConditionModel.from_config)
    encoders = {name: _built(folder / name, partial(_from_config, kind)) for name, kind in kinds.items()}
    for name, network in (("vae", vae), ("unet", unet)):
        _check_names(folder / name, network)
    for name, kind in kinds.items():
        _read_shapes(folder / name, PUBLISHED[kind])
        load_network(kind, folder / name, "auto")  # transformers knows best what it makes of old names
        _check_tokenizer(folder / name.replace("text_encoder", "tokenizer"), encoders[name].config)
    image = torch.empty(1, 3, image_size, image_size, device="meta")
    latents = _dry_run(folder / "vae", lambda: vae.encode(image).latent_dist.mean)

    def run(encoder: Any) -> Any:
        ids = torch.zeros(1, encoder.config.max_position_embeddings, dtype=torch.long)
        return encoder(ids, output_hidden_states=True)

    return latents, unet, [_dry_run(folder / name, partial(run, own)) for name, own in encoders.items()]


def check_network(folder: Path, kind: Any) -> None:
    """Raise `ModelError` unless a component's weights are those that its configuration describes. kind: diffusers'
    class."""
    _check_names(folder, _built(folder, kind.from_config))


def check_unet_file(
    file: Path, config: Mapping[str, Any], own_names: Callable[[Collection[str]], Mapping[str, str]], of_model: str
) -> None:
    """Raise `ModelError` unless a file holds weights for a UNet's layers, of every name and shape and finite; what
    comes behind its last layer may be missing.

    config: of the UNet. own_names: of the file's names those of the UNet, by diffusers'. of_model: whose UNet it is,
    for the sentence.
    """
    with refusing(f"{of_model}'s UNet cannot be built"), torch.device("meta"):
        network = UNet2DConditionModel.from_config(dict(config))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = _read_file(file, Published(""))
    found = {own: shapes[name] for own, name in own_names(shapes).items()}
    both = expected.keys() & found.keys()
    missing = [name for name in expected.keys() - both if not name.startswith(("conv_norm_out.", "conv_out."))]
    reshaped = [(name, found[name], expected[name]) for name in both if found[name] != expected[name]]
    if said := _differences(missing, found.keys() - both, reshaped):
        raise ModelError(
            f"{file} does not hold the weights of {of_model}'s UNet: {said}; take the file that was trained from this "
            "model (sd21 for sd2-1, sd15 for sd1-5), or name that --model."
        )


_DINOS: Mapping[str, tuple[Any, Any]] = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel),
    "dinov3_convnext": (DINOv3ConvNextConfig, DINOv3ConvNextModel),
}
"""The classes of a DINO's configuration and network, by its type in a configuration."""


def dino_class(folder: Path) -> Any:
    """The class of the network that a DINO's folder holds."""
    return _DINOS[read_object(folder / "config.json", "a configuration")["model_type"]][1]


def check_dino(folder: Path) -> None:
    """`check_model` for the folder of a DINO."""
    kind = dino_class(folder)
    settings = next(own for own, network in _DINOS.values() if network is kind)
    dino = _built(folder, lambda config: kind(settings.from_dict(config)))
    _read_shapes(folder, PUBLISHED[kind])
    load_network(kind, folder, "auto")
    side = dino.config.image_size
    _dry_run(folder, lambda: dino(torch.empty(1, 3, side, side)).last_hidden_state)


def load_network(kind: Any, folder: Path, dtype: torch.dtype | str) -> Any:
    """A component's network, frozen. Raises `ModelError` where its files are damaged, lack a tensor or hold another.

    kind: the network's class, of `PUBLISHED`. dtype: "auto" for that of the files.
    """
    # what diffusers finds of another shape it names itself; transformers is asked to
    more = {"ignore_mismatched_sizes": True} if PUBLISHED[kind].weights == "model" else {}
    with refusing(f"{folder} cannot be loaded"):
        network, loaded = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True, **more
        )
    _check_loaded(folder, kind, loaded["missing_keys"], loaded["unexpected_keys"], loaded["mismatched_keys"])
    return network.eval().requires_grad_(False)


def _check_loaded(
    folder: Path, kind: Any, missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[Any]
) -> None:
    """Raise `ModelError` where a library did not find, or did not use, a tensor. reshaped: (name, found, wanted) of
    those whose shape is another."""
    published = PUBLISHED[kind]
    missing = [name for name in missing if not re.search(published.optional, name)]
    unexpected = [name for name in unexpected if not re.search(published.unused, name)]
    if said := _differences(missing, unexpected, reshaped):
        source = _source(folder, published.weights)
        raise _damaged(f"{source} does not hold the weights that its config.json describes: {said}")


def _differences(missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[Any]) -> str:
    """Of tensors, for a sentence; empty where there are none. reshaped: see `_check_loaded`."""
    told = {"missing": [*map(shown, sorted(missing))], "unexpected": [*map(shown, sorted(unexpected))]}
    told["of another shape"] = [
        f"{shown(name)} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in sorted(reshaped)
    ]
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in told.items() if names)


def _check_names(folder: Path, network: nn.Module) -> None:
    """`_check_loaded` for diffusers, from the files' headers alone. network: of the configuration, on any device."""
    published = PUBLISHED[type(network)]
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in _read_shapes(folder, published).items():
        new = _OLD_ATTENTION.sub(lambda old: _ATTENTION[old[0]], name)
        if new in found:
            raise _damaged(f"{folder} holds the tensor {shown(new)} twice, under an old name as well")
        found[new] = shape
    both = expected.keys() & found.keys()
    reshaped = [(name, found[name], expected[name]) for name in both if found[name] != expected[name]]
    _check_loaded(folder, type(network), expected.keys() - both, found.keys() - both, reshaped)


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])


def _source(folder: Path, weights: str) -> Path:
    """The file that says where a component's weights lie: the list of its shards, or the only one."""
    index = folder / f"{weights}.safetensors.index.json"
    return index if index.exists() else folder / f"{weights}.safetensors"


def _read_shapes(folder: Path, published: Published) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's tensors by name, of all its shards. Raises `ModelError` for damaged files, and for values
    or types that no weights have."""
    weights = published.weights
    single, index = folder / f"{weights}.safetensors", folder / f"{weights}.safetensors.index.json"
    listed = read_shards(index)
    if not listed:
        return _read_file(single, published)
    if single.exists():  # diffusers would take the shards, transformers the file
        raise ModelError(f"{folder} holds both {single.name} and {index.name}: remove the one that is not meant.")
    files = set(listed.values())
    beside = {path.name for path in folder.glob(f"{weights}-?????-of-?????.safetensors")}
    if strange := sorted(beside - files):
        raise _damaged(f"{index} does not name {strange[0]}, which lies beside it")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(files):
        if Path(name).name != name:
            raise _damaged(f"{index} names {shown(name)}, which is no file beside it")
        own = _read_file(folder / name, published)
        if odd := sorted(own.keys() ^ {tensor for tensor, file in listed.items() if file == name}):
            told = f"{len(odd)} tensor(s) that {name} holds ({_some([*map(shown, odd)])})"
            raise _damaged(f"{index} and {name} differ in {told}")
        shapes |= own
    return shapes


def _read_file(file: Path, published: Published) -> dict[str, tuple[int, ...]]:
    check_file(file)
    with refusing(f"{file} cannot be read as safetensors"), safe_open(file, framework="pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 (it is no dictionary)
        used = [name for name in slices if not re.search(published.unused, name)]
        types = {name: slices[name].get_dtype() for name in used}
        if others := [f"{shown(name)} {kind}" for name, kind in types.items() if kind not in _FLOATING]:
            raise ModelError(
                f"{file} holds {len(others)} tensor(s) of other types than {', '.join(_FLOATING)} ({_some(others)}): "
                "take a model that is not quantised."
            )
        if broken := [shown(name) for name in used if not _is_finite(tensors.get_tensor(name))]:
            raise _damaged(f"{file} holds {len(broken)} tensor(s) with values that are not finite ({_some(broken)})")
        return {name: tuple(own.get_shape()) for name, own in slices.items()}


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # one pass without a copy; NaN comes out as NaN
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _built(folder: Path, build: Callable[[dict[str, Any]], Any]) -> Any:
    """A component's network without memory. Raises `ModelError` where its configuration describes none."""
    config = read_object(folder / "config.json", "a configuration")
    with refusing(f"{folder}/config.json describes no network"), torch.device("meta"):
        return build(config).eval()


def _dry_run(folder: Path, run: Callable[[], Any]) -> Any:
    what = f"The network of {folder}/config.json cannot be run in its place"
    with refusing(what), torch.no_grad(), torch.device("meta"):
        return run()


def _check_tokenizer(folder: Path, config: Any) -> None:
    """Raise `ModelError` where the tokenizer is not the text encoder's. config: of the text encoder."""
    with refusing(f"{folder} cannot be loaded as CLIP's tokenizer"):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a photo of a cat").input_ids
        highest = max(tokenizer.get_vocab().values())
    inner = [token for token in ids[1:-1] if token != tokenizer.unk_token_id]
    if (ids[:1], ids[-1:]) != ([tokenizer.bos_token_id], [tokenizer.eos_token_id]) or not inner:
        raise _damaged(f"{folder} is no tokenizer of CLIP's (it makes {ids} of 'a photo of a cat')")
    fault, length, positions = "", tokenizer.model_max_length, config.max_position_embeddings
    if highest >= config.vocab_size:
        fault = f" has tokens up to {highest}, but the text encoder beside it knows {config.vocab_size}"
    elif length != positions:
        said = f"model_max_length {length}" if length < 1e6 else "no model_max_length"  # 1e30 where it is silent
        fault = f"/tokenizer_config.json says {said}, but the text encoder beside it has {positions} positions"
    if fault:
        raise ModelError(f"{folder}{fault}: take the tokenizer that belongs to the text encoder.")


def _damaged(what: str) -> ModelError:
    return ModelError(f"{what}: {WAY_OUT}.")


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Around what libraries make of a stranger's file: they check little, so that any value can raise anything, which
    becomes a `ModelError`. Their warnings and progress bars are quiet meanwhile. what: the start of its sentence."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        raise _damaged(f"{what} ({one_line(error)})") from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
