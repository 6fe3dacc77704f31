"""Which DINOv2 something was made with, and what its layer is called."""

from dataclasses import dataclass

DINO = "dino"
"""The name of the layer that a DINOv2's patch map is, beside the UNet's 1 to 4."""


@dataclass(frozen=True, slots=True)
class DinoName:
    """id: hub name or folder. fingerprint: of its files."""

    id: str
    fingerprint: str
