"""What the model of a store is to the rest of dualsd, and how it is opened: as whatever kind its folder is of
(`featstore.backbones.kinds`). Nothing here loads a library of networks."""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from featstore.backbones.base import Backbone, Compute, LayerShape, ModelLocation
from featstore.backbones.cleandift import CleanUNet
from featstore.backbones.locate import locate
from featstore.backbones.noise import LatentScale, NoiseSchedule

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks


class Model(Backbone, Protocol):
    """A model that a store's latents are made with, whose layers have a timestep and a prompt."""

    @property
    def location(self) -> ModelLocation:
        """Where its files lie."""

    @property
    def fingerprint(self) -> str:
        """Of its weights and configuration."""

    @property
    def structure(self) -> str:
        """Which profile is taken where the model has none of its own (`featstore.backbones.registry.profile_of`)."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the noise that it was trained on."""

    @property
    def latent_scale(self) -> LatentScale:
        """From the VAE's latents to its own."""

    @property
    def clean(self) -> CleanUNet | None:
        """Weights that take the place of its own, which take latents without noise then."""

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image. Raises `ModelError` for a size that it cannot take."""

    def shape(self, layer: int | str, image_size: int) -> LayerShape:
        """Of one layer's map, or of a part of one. Raises `ModelError` for one that it does not have."""

    def load(self, compute: Compute, layers: Sequence[str] | None = None) -> "DiffusionNetworks":
        """Its networks, each loaded when it is first used, as far as the last of `layers`, None being all."""


class DiffusionFamily(Protocol):
    """The module of a kind of such models (see `featstore.backbones.kinds`)."""

    def open_located(self, location: ModelLocation, unet: str | None) -> Model:
        """Read what a model's folder says, and compare its weights with it.

        Args:
            location: Where it lies.
            unet: Where a UNet lies that takes the place of its own, as it was typed.

        Raises:
            ModelError: Where they do not fit.
        """


def open_model(name: str, revision: str | None = None, unet: str | None = None) -> Model:
    """Locate the model of a store, and open it as what it is.

    Args:
        name: See `featstore.backbones.locate.locate`.
        revision: Of a hub model.
        unet: Where a UNet lies that takes the place of its own, see `featstore.backbones.cleandift`.

    Raises:
        ModelError: Where it is out of reach or damaged, or the UNet is another's.
    """
    location = locate(name, revision)
    family = cast(DiffusionFamily, import_module(f"featstore.backbones.{location.family}"))
    return family.open_located(location, unet)
