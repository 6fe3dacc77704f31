"""The values of options: text as it was typed to what commands take. Raises `InputError` for what cannot be read."""

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import DEFAULT_STORED
from featstore.backbones.registry import is_other
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.backbones.base import Compute
    from featstore.datasets.records import Dataset
    from featstore.pipeline.distributed import Part
    from featstore.store.keys import Stored
    from featstore.store.store import Store
    from matcher.configuration import Frame, Geometry
    from matcher.pck import Average

DUAL_WEIGHTS = {2: 0.8, 3: 0.6}
TEXT_TIMESTEPS = {2: 261, 3: 200}
LEARNED_TIMESTEPS = {2: 50, 3: 200}
"""The report's weights, and its timesteps for inference with a text prompt and with learned ones."""
DINO_WEIGHTS = (0.5, 0.5)
"""SD4Match's code's, of a layer and `dino`."""
STEP = 50


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """`0.8,0.6` to numbers. Raises `InputError` naming `what`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{what} takes numbers separated by commas, not {text!r}.") from None


def parse_part(text: str) -> "Part":
    """`1/4` to the first of four parts. Raises `InputError` for anything else."""
    from featstore.pipeline.distributed import Part

    matched = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if matched is None:
        raise InputError(f"--part takes a share of the images like 1/4, the first of four, not {text!r}.")
    number, count = map(int, matched.groups())
    if not 1 <= number <= count:
        raise InputError(f"--part {text} does not exist: parts count from 1/{count} to {count}/{count}.")
    return Part(number, count)


def parse_count(text: str, option: str) -> int | None:
    """`16` to 16, `all` to None. Raises `InputError` for anything else."""
    if text == "all":
        return None
    if not re.fullmatch(r"[1-9]\d*", text):
        raise InputError(f"{option} takes how many rows of each array, e.g. 16, or all, not {text!r}.")
    return int(text)


def parse_layers(text: str) -> tuple[int, ...]:
    """`2,3` to layers. Raises `InputError` for one that is not in 1..4 or is named twice."""
    for part in (part.strip() for part in text.split(",")):
        if is_other(part):
            raise InputError(f"The layer {part} has no prompts to learn: here --layers takes layers from 1 to 4.")
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise InputError(f"--layers takes layers from 1 to 4 separated by commas, not {text!r}.")
    layers = tuple(int(part) for part in text.split(","))
    from featstore.backbones.stable_diffusion import check_layers

    check_layers(layers)
    if len(set(layers)) != len(layers):
        raise InputError(f"--layers {text} names a layer twice.")
    return layers


def parse_timesteps(text: str) -> tuple[int, ...]:
    """`261`, `50,200`, `50..400` (step 50) or `50..400:25` to timesteps. Raises `InputError` for anything else."""
    from featstore.backbones.stable_diffusion import check_timesteps

    found: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"(\d+)(?:\.\.(\d+)(?::(\d+))?)?", part.strip())
        if matched is None:
            raise InputError(f"--t takes timesteps like 261, 50,200, 50..400 or 50..400:25, not {text!r}.")
        first, last, step = matched.groups()
        if last is None:
            found.append(int(first))
            continue
        if int(last) < int(first) or step == "0":
            raise InputError(f"--t {part} is an empty range: it must rise, by at least 1.")
        check_timesteps([int(first), int(last)])
        found.extend(range(int(first), int(last) + 1, int(step or STEP)))
    check_timesteps(found)
    return tuple(found)


def timesteps_for(
    layers: tuple[int, ...], text: str | None, usual: Mapping[int, int] = TEXT_TIMESTEPS
) -> tuple[int, ...]:
    """One timestep a layer: those typed, else the usual ones. Raises `InputError` where counts disagree."""
    if text is None:
        missing = [layer for layer in layers if layer not in usual]
        if missing:
            raise InputError(f"There is no default timestep for layer {missing[0]}: give one a layer with --t.")
        return tuple(usual[layer] for layer in layers)
    timesteps = parse_timesteps(text)
    if len(timesteps) != len(layers):
        raise InputError(f"{len(layers)} layer(s) but {len(timesteps)} timestep(s): give one a layer with --t.")
    return timesteps


def weights_for(layers: tuple[str, ...], text: str | None) -> tuple[float, ...]:
    """One weight a layer: those typed, else 1 for a single layer, the report's for 2 and 3, and SD4Match's half and
    half for any with `dino`."""
    if text is not None:
        from matcher.configuration import check_weights

        weights = parse_numbers(text, "--weights")
        if len(weights) != len(layers):
            raise InputError(f"{len(layers)} layer(s) but {len(weights)} weight(s): give one a layer with --weights.")
        check_weights(len(layers), weights)
        return weights
    if len(layers) == 1:
        return (1.0,)
    if all(layer in ("2", "3") for layer in layers):
        return tuple(DUAL_WEIGHTS[int(layer)] for layer in layers)
    if len(layers) == 2 and any(map(is_other, layers)):
        return DINO_WEIGHTS
    raise InputError(f"There are no default weights for layers {','.join(layers)}: give one a layer with --weights.")


def check_typed(layers: tuple[int, ...] | None, t: str | None, weights: str | None) -> None:
    """Raise `InputError` for what can be seen to be wrong before a store is opened: without typed layers, those of the
    prompts that the store's runs have are not known yet."""
    if layers is not None:
        timesteps_for(layers, t)
        weights_for(tuple(map(str, layers)), weights)
        return
    if t is not None:
        parse_timesteps(t)
    if weights is not None:
        from matcher.configuration import check_weights

        numbers = parse_numbers(weights, "--weights")
        check_weights(len(numbers), numbers)


def parse_alphas(text: str) -> tuple[float, ...]:
    """Thresholds in (0, 1]: `0.05,0.1`, or `0.01..0.2:0.01`, which is exactly those 20 decimals. Raises `InputError`
    for others."""
    alphas: list[float] = []
    for part in text.split(","):
        if ".." in part:
            alphas += _alphas_between(part)
        else:
            alphas += parse_numbers(part, "--alphas")
    if not all(0 < alpha <= 1 for alpha in alphas):
        raise InputError(f"--alphas are fractions of theta, above 0 and at most 1, not {text!r}.")
    return tuple(dict.fromkeys(alphas))


MOST_ALPHAS = 1000


def _alphas_between(part: str) -> list[float]:
    """`a..b:step` in decimal numbers: multiples of a float such as 0.01 would miss the floats that are typed."""
    matched = re.fullmatch(r"\s*([\d.]*?\d)\.\.([\d.]+):([\d.]+)\s*", part)
    try:
        if matched is None:
            raise InvalidOperation
        first, last, step = (Decimal(number) for number in matched.groups())
    except InvalidOperation:
        raise InputError(f"--alphas {part} is no range: write one like 0.01..0.2:0.01, with its step.") from None
    if step <= 0 or last < first:
        raise InputError(f"--alphas {part} is an empty range: it must rise, by a positive step.")
    if (last - first) / step >= MOST_ALPHAS:
        raise InputError(f"--alphas {part} is more than {MOST_ALPHAS} thresholds: take a larger step.")
    return [float(first + place * step) for place in range(int((last - first) / step) + 1)]


def parse_readouts(text: str) -> tuple[str, ...]:
    """`nn,softmax` to readouts' names."""
    from matcher.configuration import MODULES

    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MODULES:
            raise InputError(f"There is no readout {name!r}: choose from {', '.join(MODULES)}.")
    return tuple(dict.fromkeys(names))


def parse_average(text: str) -> "Average":
    """`image` or `point`."""
    from matcher.pck import Average

    try:
        return Average(text)
    except ValueError:
        raise InputError(f"--by is image or point, not {text!r}.") from None


def parse_frame(text: str | None) -> "Frame | None":
    """`resized` or `original`."""
    from matcher.configuration import Frame

    try:
        return None if text is None else Frame(text)
    except ValueError:
        raise InputError(f"--frame is resized or original, not {text!r}.") from None


def parse_geometry(text: str, option: str) -> "Geometry":
    """`corners` or `half-pixel`."""
    from matcher.configuration import Geometry

    try:
        return Geometry(text)
    except ValueError:
        raise InputError(f"{option} is corners or half-pixel, not {text!r}.") from None


def choose_compute(device: str, dtype: str, batch_size: int) -> "Compute":
    """Where to run: `auto` takes a GPU where there is one, float16 there and float32 on the CPU."""
    from featstore.backbones.base import compute_on

    return compute_on(device, dtype, batch_size)


def parse_stored(text: str) -> "Stored":
    """`float16` or `int8`."""
    from featstore.store.keys import Stored

    try:
        return Stored(text)
    except ValueError:
        raise InputError(f"--stored is float16 or int8, not {text!r}.") from None


def check_kept(stored: "Stored", what: str) -> None:
    """Raise `InputError` where maps are to be kept otherwise than usual that are not kept at all."""
    if stored.value != DEFAULT_STORED:
        raise InputError(f"--stored is for maps that are kept, which those of {what} are not: leave it out.")


def model_for(dataset: str | None, model: str | None) -> str:
    """The model that was typed; on the dataset demo the demo's. dataset: what the model is for, None for photographs or
    prompts of no dataset. Raises `InputError` where a model must be named."""
    from featstore.backbones.locate import ALIASES, DEMO

    if model is not None:
        return model
    if dataset == DEMO:
        return DEMO
    raise InputError(
        f"Name the model with --model: {', '.join(ALIASES)}, a hub name owner/model, or a folder in diffusers' layout; "
        f"--model {DEMO} is a toy that knows drawn pictures only, and is taken by itself on the dataset {DEMO} alone."
    )


def dataset_of(store: "Store", root: Path | None) -> "Dataset":
    """The dataset that a store was made from, in `root` where it was moved."""
    from featstore.datasets.registry import open_dataset

    stored = store.header.dataset_root
    return open_dataset(store.header.dataset, root or (None if stored is None else Path(stored)))
