"""Layers as they are asked for: which there are, their timesteps and weights, and which options are of use to them."""

from collections.abc import Collection, Mapping, Sequence

from featstore.backbones.registry import (
    LAYERS,
    TITLES,
    Profile,
    block_of,
    family_of,
    is_other,
    of_images_alone,
    profile_of,
    profiles,
    stem_of,
)
from matcher.configuration import check_weights
from matcher.errors import InputError

USUAL = profile_of("sd2-1")
"""What holds before a model is known."""


def check_names(names: Sequence[str]) -> None:
    """Check layers by name: the UNet's 1 to 4, and those of other backbones.

    Raises:
        InputError: For one that is no layer, or is named twice.
    """
    for name in names:
        if stem_of(name) not in LAYERS and not name.isdecimal():
            others = " or ".join(of_images_alone())
            raise InputError(
                f"--layers takes block:9 and the like of a transformer, layers from 1 to 4, or {others}, not {name!r}."
            )
        family_of(name)
    if len(set(names)) != len(names):
        raise InputError(f"--layers {','.join(names)} names a layer twice.")


def unet_layers(names: Sequence[str]) -> tuple[int, ...]:
    """The up blocks of the UNet's layers among some, in their order."""
    return tuple(block_of(name) for name in names if not is_other(name))


def layers_for(names: tuple[str, ...] | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The layers that were asked for, else the recommended ones.

    Raises:
        InputError: Where none were, and nobody has published which to take of the model.
    """
    if names or usual:
        return names or usual
    raise InputError(
        "There are no default layers for this model: name them with --layers; `dualsd doctor --model` lists those that "
        "it has, and `dualsd grid` finds which."
    )


def timesteps_for(
    names: Sequence[str],
    timesteps: Sequence[int | None] | None,
    usual: Mapping[str, int] | None = USUAL.text_timesteps,
) -> tuple[int | None, ...]:
    """One timestep per layer of the UNet, None for those of other backbones, and for all of a UNet that takes latents
    without noise.

    Args:
        names: Of the layers.
        timesteps: Those that were asked for, one per layer of the UNet; None for the usual ones. (None,): no noise.
        usual: By layer; None of a UNet that was trained without noise.

    Raises:
        InputError: Where counts disagree, a layer has no usual timestep, or the UNet was trained otherwise.
    """
    numbers = [name for name in names if not is_other(name)]
    without = timesteps is not None and None in timesteps
    if usual is None:
        if timesteps is not None and not without:
            raise InputError("This UNet was trained on latents without noise: leave --t out, or say --t clean.")
        return (None,) * len(names)
    if without and numbers:
        raise InputError("--t clean is for a UNet that was trained without noise: name one with `cache build --unet`.")
    if timesteps is None:
        missing = [name for name in numbers if name not in usual]
        if missing:
            raise InputError(
                f"There is no default timestep for layer {missing[0]}: give one per layer with --t; `dualsd grid "
                f"--layers {','.join(numbers)} --t 50..400` finds which."
            )
        timesteps = [usual[name] for name in numbers]
    if len(timesteps) != len(numbers):
        others = [name for name in names if is_other(name)]
        apart = f" of the UNet ({', '.join(others)} has none)" if others else ""
        counts = f"{len(numbers)} layer(s){apart} but {len(timesteps)} timestep(s)"
        raise InputError(f"{counts}: give one per layer with --t.")
    given = iter(timesteps)
    return tuple(None if is_other(name) else next(given) for name in names)


def weights_for(names: Sequence[str], weights: Sequence[float] | None, profile: Profile = USUAL) -> tuple[float, ...]:
    """One weight per layer: those asked for, else the recommended ones.

    Args:
        names: Of the layers.
        weights: Those that were asked for; None for the recommended ones.
        profile: Of the model at hand.

    Raises:
        InputError: Where counts disagree, or layers have no usual weights.
    """
    if weights is not None:
        if len(weights) != len(names):
            raise InputError(f"{len(names)} layer(s) but {len(weights)} weight(s): give one per layer with --weights.")
        check_weights(len(names), list(weights))
        return tuple(weights)
    usual = profile.weights_of(names)
    if usual is not None:
        return usual
    listed = ",".join(names)
    raise InputError(
        f"There are no default weights for layers {listed}: give one per layer with --weights; of a store's maps "
        f"`dualsd grid --layers {listed}` finds which."
    )


def check_layers_of(
    names: Sequence[str] | None, timesteps: Sequence[int | None] | None, weights: Sequence[float] | None
) -> None:
    """Check what can be seen to be wrong before a store is opened: where no layers are given, those of the prompts that
    the store's runs have are not known yet, nor which model's weights are recommended, where any model's are.

    Raises:
        InputError: For layers that there are not, and for counts that disagree.
    """
    if names is not None:
        check_names(names)
        if timesteps is not None and None not in timesteps:  # whether that is right depends on the model
            timesteps_for(names, timesteps)
        if weights is not None or not any(own.weights_of(names) for own in profiles().values()):
            weights_for(names, weights)
    elif weights is not None:
        check_weights(len(weights), list(weights))


def check_of_use(names: Sequence[str] | None, of_dino: Collection[str], of_the_unet: Collection[str]) -> None:
    """Check that each option is of use to one of the layers.

    Args:
        names: Of the layers; None for layers of the UNet that are not known yet.
        of_dino: Options that were given and that only layers of a DINO can use.
        of_the_unet: Options that were given and that only a layer of the UNet can use.

    Raises:
        InputError: For an option that none of the layers has a use for.
    """
    for option in of_dino:
        if names is None or not any(stem_of(name) in TITLES for name in names):
            raise InputError(f"{option} goes with the layers dino and dinov3: name one in --layers.")
    for option in of_the_unet:
        if names is not None and not unet_layers(names):
            raise InputError(f"{option} is for layers of the UNet, and --layers {','.join(names)} names none.")
