"""SDXL, described: a UNet of three up blocks, two text encoders and, beside the timestep, the second one's pooled
embedding and the image's size. What follows from configurations is Stable Diffusion's.

Nobody here has loaded a published one (stabilityai/stable-diffusion-xl-base-1.0, stabilityai/sdxl-turbo).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from featstore.backbones.base import Compute, ModelLocation
from featstore.backbones.kinds import SDXL
from featstore.backbones.stable_diffusion import StableDiffusion, open_as

if TYPE_CHECKING:
    from featstore.backbones.sdxl_networks import XLNetworks


@dataclass(frozen=True, slots=True)
class StableDiffusionXL(StableDiffusion):
    """A located SDXL (a `featstore.backbones.models.Model`): layers 1, 2 and 3."""

    up_blocks: ClassVar[int] = 3

    def load(self, compute: Compute, layers: Sequence[str] | None = None) -> "XLNetworks":
        """See `Model.load`."""
        # only now: the libraries take seconds to load
        from featstore.backbones.sdxl_networks import XLNetworks

        return XLNetworks(self.location, compute, self.last(layers), self.clean, self.latent_factor)


def open_located(location: ModelLocation, unet: str | None = None) -> StableDiffusionXL:
    """See `featstore.backbones.models.DiffusionFamily`."""

    def check(image_size: int) -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.weights import check_xl

        check_xl(location.folder, image_size)

    return open_as(StableDiffusionXL, SDXL, location, unet, check)
