"""SD4Match's prompt files, from and to: nothing in a pickle is executed, and nothing but tensors is accepted."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from featstore.backbones.base import Compute, NetworkName, TextEncoders
from featstore.backbones.dino import HUB_NAME
from featstore.backbones.models import Model, open_model
from featstore.backbones.registry import check_takes_prompts
from featstore.backbones.stable_diffusion import check_layers, check_timesteps
from featstore.errors import PromptError
from featstore.parsing import parse
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import PARAMETERS, module_of
from featstore.prompts.saved import save_torch
from featstore.prompts.text import check_shape

Keys = tuple[str, ...]
"""Where a tensor stands: the keys of the dictionaries that lead to it."""


def load_tensors(file: Path) -> dict[Keys, Tensor]:
    """All tensors of a file, on the CPU, by where they stand; those of a file that is one tensor stand at (). Raises
    ValueError for a file that is damaged, or holds anything but tensors and dictionaries of them."""
    found: dict[Keys, Tensor] = {}
    left: list[tuple[Keys, Any]] = [((), _load(file))]
    seen: set[int] = set()  # a dictionary may hold itself
    while left:
        keys, value = left.pop()
        if isinstance(value, Tensor):
            found[keys] = value
        elif not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            where = f" (at {keys[-1]!r})" if keys else ""
            kind = type(value).__name__
            raise ValueError(f"is refused: it holds a {kind} where tensors, or tensors by name, are expected{where}")
        elif id(value) not in seen:
            seen.add(id(value))
            left += [((*keys, key), own) for key, own in value.items()]
    return found


def _load(file: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the pickle is like; it is read or refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "is no file of torch.save's, or a damaged one" if wanted is None else f"asks for {wanted.group(1)}"
        raise ValueError(
            f"is refused: it {reason}; only tensors are read, and nothing in a pickle is executed"
        ) from error


SINGLE_KEY = "dataset"
"""Under which SD4Match keeps a single prompt."""

Precision = Literal["float32", "float16", "bfloat16"]
_DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Those whose values float32, in which prompts are kept, holds exactly."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file keeps its tensors, so that it can be written again as it was. key: of a single prompt, empty where the
    file is that tensor alone. leading: whether token embeddings are (1, 77, D), not (77, D). dtype: of all tensors."""

    key: str = SINGLE_KEY
    leading: bool = True
    dtype: Precision = "float32"

    @classmethod
    def of(cls, prompts: LearnedPrompts) -> Self:
        """That of the file that prompts were imported from; SD4Match's own for others. Raises `PromptError`."""
        imported = prompts.training.get("imported")
        try:
            layout: Self = cls() if imported is None else parse(cls, imported["layout"], "layout")
        except (KeyError, TypeError, ValueError) as error:
            raise PromptError(f"The layout that these prompts were imported from is damaged: {error!r}.") from error
        return layout


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """What a file holds. name: its folder's, which is SD4Match's name of the prompts, and its own. tensors: as
    `LearnedPrompts.tensors` has those of a layer, float32. ignored: names of tensors that belong to no prompt."""

    name: str
    mode: Mode
    tensors: Mapping[str, Tensor]
    layout: Layout
    ignored: tuple[str, ...]


def read_published(file: Path, mode: Mode | None = None) -> Published:
    """Read `caption.pt` or `ckpt.pt`. mode: None to tell from the file: a module's parameters are a cpm, one prompt is
    single, several are class.

    Raises `PromptError` for a file that is missing, damaged, holds anything but tensors, or holds no prompts of `mode`.
    """
    if not file.is_file():
        raise PromptError(f"There is no file {file}.")
    name = "/".join(file.resolve().parts[-2:])
    try:
        loaded = load_tensors(file)
        names = map(".".join, loaded)
        prefixes = {own.removesuffix(last) for own in names for last in PARAMETERS if f".{own}".endswith(f".{last}")}
        return _module(name, loaded, sorted(prefixes), mode) if prefixes else _captions(name, loaded, mode)
    except ValueError as error:
        raise PromptError(f"{file} {error}.") from error


def import_published(
    file: Path, model: str, revision: str | None, layer: int, timestep: int, mode: str | None = None
) -> tuple[LearnedPrompts, tuple[str, ...]]:
    """SD4Match's published prompts as ours.

    Args:
        file: `caption.pt` or `ckpt.pt`.
        model: What they were made for: sd2-1, sd1-5, demo, a hub name or a folder.
        revision: Of a model on the hub.
        layer: Decoder layer, 1 to 4, that they were learned for.
        timestep: That they were learned at.
        mode: single, class or cpm; None to tell from the file.

    Returns:
        The prompts, and the names of tensors that belong to no prompt.

    Raises:
        PromptError: The file is none, or is damaged, or does not fit the model.
        ModelError: The model cannot be found, or has no such layer or timestep.
    """
    check_layers([layer])
    check_timesteps([timestep])
    published = read_published(file, None if mode is None else Mode.named(mode))
    opened = open_model(model, revision)
    check_takes_prompts(opened.structure, opened.location.id)
    opened.schedule.check_timesteps([timestep])
    networks = opened.load(Compute(torch.device("cpu"), torch.float32, 1))
    learned = to_learned(published, opened, networks.text, layer, timestep)
    return learned, published.ignored


def to_learned(published: Published, model: Model, text: TextEncoders, layer: int, timestep: int) -> LearnedPrompts:
    """The prompts of a file, as prompts for `layer` of `model`, learned at `timestep`.

    `training["imported"]["framed"]` says whether the rows around single and class prompts' vectors are those of this
    tokenizer and text encoder; where they are not, length is a guess. Raises `PromptError` where the prompts do not fit
    the text encoder.
    """
    cpm, tensors, name, model_id = published.mode is Mode.CPM, published.tensors, published.name, model.location.id
    first = tensors["global_embeds"] if cpm else next(iter(tensors.values()))
    check_shape(first.shape, text, f"{name} holds prompts", model_id)
    room = text.positions - 2
    if cpm:
        lengths: set[int | None] = {module_of(dict(tensors)).length}
    else:
        lengths = {text.length_of(rows) for rows in tensors.values()}
    length = lengths.pop() if len(lengths) == 1 else None
    if length is not None and length > room:
        raise PromptError(f"{name} makes more vectors than the text encoder of {model_id} has room for: {room}.")
    imported = {"from": "sd4match", "file": name, "framed": length is not None, "layout": asdict(published.layout)}
    return LearnedPrompts(
        mode=published.mode,
        layers=(layer,),
        timesteps=(timestep,),
        length=length or room,
        model=model.name,
        dino=NetworkName(HUB_NAME, "") if cpm else None,
        training={"imported": imported},
        tensors={layer: tensors},
    )


def write_published(prompts: LearnedPrompts, layer: int, file: Path) -> None:
    """Write one layer's prompts as SD4Match does, or as the file was that they were imported from; it appears whole or
    not at all. Raises `PromptError` where there are none for the layer, `StoreError` where it cannot be written."""
    if layer not in prompts.layers:
        raise PromptError(f"These prompts are for layer(s) {', '.join(map(str, prompts.layers))}, not for {layer}.")
    layout = Layout.of(prompts)
    own = {name: tensor.to(_DTYPES[layout.dtype], copy=True) for name, tensor in prompts.tensors[layer].items()}
    if prompts.mode is not Mode.CPM and layout.leading:
        own = {name: rows[None] for name, rows in own.items()}
    content: Tensor | dict[str, Tensor] = own
    if prompts.mode is Mode.SINGLE:
        content = {layout.key: own[""]} if layout.key else own[""]
    save_torch(content, file)


def _module(name: str, loaded: Mapping[Keys, Tensor], prefixes: Sequence[str], mode: Mode | None) -> Published:
    """A cpm; prefixes: of the names of its parameters. Raises ValueError."""
    if mode not in (None, Mode.CPM):
        raise ValueError(f"holds the parameters of a cpm, not prompts of mode {mode.value}")
    if len(prefixes) > 1:
        places = " and ".join(map(repr, prefixes))
        raise ValueError(f"holds the parameters of more than one cpm, under {places}: keep one")
    named = {".".join(keys).removeprefix(prefixes[0]): tensor for keys, tensor in loaded.items()}
    missing = ", ".join(own for own in PARAMETERS if own not in named)
    if missing:
        raise ValueError(f"lacks {missing} of a cpm: SD4Match's kind Pair-DINO-Feat is read, and no other")
    own, dtype = _plain({parameter: named[parameter] for parameter in PARAMETERS})
    try:
        module_of(own)
    except ValueError as error:
        raise ValueError(f"is damaged: {error}") from error
    return Published(name, Mode.CPM, own, Layout(dtype=dtype), tuple(sorted(named.keys() - set(PARAMETERS))))


def _captions(name: str, loaded: Mapping[Keys, Tensor], mode: Mode | None) -> Published:
    """Single or class prompts. Raises ValueError."""
    if not loaded or any(len(keys) > 1 for keys in loaded):
        raise ValueError("holds no prompts as SD4Match writes them: neither one a category nor a cpm")
    named = {"".join(keys): tensor for keys, tensor in loaded.items()}
    chosen = mode or (Mode.SINGLE if len(named) == 1 else Mode.CLASS)
    if chosen is Mode.CPM:
        raise ValueError(f"holds no parameters of a cpm: it holds {len(named)} prompt(s)")
    if chosen is Mode.SINGLE and len(named) > 1:
        raise ValueError(f"holds {len(named)} prompts, and mode single has one: take --mode class")
    if chosen is Mode.CLASS and "" in named:
        raise ValueError("holds a prompt that does not say its category: take --mode single")
    rows, dtype = _plain(named)
    shapes = sorted({tuple(own.shape) for own in rows.values()})
    leading = len(shapes[0]) == 3 and shapes[0][0] == 1
    if len(shapes) > 1 or len(shapes[0]) != 2 + leading:
        found = " and ".join(map(str, shapes))
        raise ValueError(f"holds tensors of shape {found}: prompts are (1, 77, width), each")
    single = chosen is Mode.SINGLE
    layout = Layout(next(iter(rows)) if single else SINGLE_KEY, leading, dtype)
    tensors = {"" if single else own: kept[0] if leading else kept for own, kept in rows.items()}
    return Published(name, chosen, tensors, layout, ())


def _plain(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Precision]:
    """In float32, with memory of their own; and the precision that all had. Raises ValueError."""
    known = ", ".join(_DTYPES)
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES.values():
            kind = f"a {tensor.dtype} tensor that is no prompt"
            raise ValueError(f"holds {name!r} as {kind}: those are dense and of {known}")
        if not tensor.isfinite().all():
            raise ValueError(f"holds numbers in {name!r} that are not finite")
    found = {tensor.dtype for tensor in tensors.values()}
    dtypes = sorted(name for name, dtype in _DTYPES.items() if dtype in found)
    if len(dtypes) > 1:
        raise ValueError(f"holds tensors of {' and '.join(dtypes)}: they should be of one precision")
    plain = {name: own.detach().to(torch.float32, copy=True).contiguous() for name, own in tensors.items()}
    return plain, dtypes[0]
