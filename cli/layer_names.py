"""Layers by name where DINOv2's patch map is one: the UNet's, 1 to 4, and `dino`, which has no timestep."""

from collections.abc import Mapping

from cli import option_values
from cli.option_values import TEXT_TIMESTEPS
from featstore.backbones.registry import is_other
from matcher.errors import InputError


def parse_names(text: str) -> tuple[str, ...]:
    """`2,dino` to names. Raises `InputError` for one that is no layer or is named twice."""
    parts = [part.strip() for part in text.split(",")]
    of_unet = [part for part in parts if not is_other(part)]
    numbers = iter(map(str, option_values.parse_layers(",".join(of_unet)) if of_unet else ()))
    names = tuple(part if is_other(part) else next(numbers) for part in parts)
    if len(set(names)) < len(names):
        raise InputError(f"--layers {text} names a layer twice.")
    return names


def unet_layers(names: tuple[str, ...]) -> tuple[int, ...]:
    """Those of the UNet, in their order."""
    return tuple(int(name) for name in names if not is_other(name))


def timesteps_of(
    names: tuple[str, ...], text: str | None, usual: Mapping[int, int] = TEXT_TIMESTEPS
) -> tuple[int | None, ...]:
    """One timestep a layer of the UNet: those typed, else the usual ones; None for `dino`. Raises `InputError` where
    counts disagree."""
    numbers = unet_layers(names)
    if text is not None and any(map(is_other, names)) and len(option_values.parse_timesteps(text)) != len(numbers):
        raise InputError(
            f"--t takes one timestep a layer of the UNet, {len(numbers)} for --layers {','.join(names)} (dino has "
            f"none), not {text}."
        )
    timesteps = iter(option_values.timesteps_for(numbers, text, usual))
    return tuple(None if is_other(name) else next(timesteps) for name in names)


def check_names(names: tuple[str, ...] | None, t: str | None, weights: str | None) -> None:
    """`cli.option_values.check_typed` for layers by name."""
    if names is None:
        option_values.check_typed(None, t, weights)
    else:
        timesteps_of(names, t)
        option_values.weights_for(names, weights)


def check_of_use(
    names: tuple[str, ...] | None, of_dino: Mapping[str, object], of_the_unet: Mapping[str, object]
) -> None:
    """Raise `InputError` for an option that was typed (is not None) and that none of the layers has a use for.

    of_dino, of_the_unet: options that only `dino`, and only a layer of the UNet, can use, by name. names: None for
    layers of the UNet that are not known yet.
    """
    for option in [option for option, value in of_dino.items() if value is not None]:
        if names is None or "dino" not in names:
            raise InputError(f"{option} goes with the layer dino: name it in --layers.")
    for option in [option for option, value in of_the_unet.items() if value is not None]:
        if names is not None and not unet_layers(names):
            raise InputError(f"{option} is for layers of the UNet, and --layers {','.join(names)} names none.")
