"""Which DINOv2 something was made with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DinoName:
    """id: hub name or folder. fingerprint: of its files."""

    id: str
    fingerprint: str
