"""Which latents an image is given."""

from enum import Enum


class Latents(Enum):
    """SAMPLE: one seeded draw from the VAE's posterior an image, shared by all noise draws, as in SD4Match. MEAN: the
    posterior's mean."""

    SAMPLE = "sample"
    MEAN = "mean"
