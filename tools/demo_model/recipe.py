"""What a run of the training tool is: the numbers that decide the weights."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Same recipe, same machine and same threads: same weights, however often the run was interrupted.

    seed: of pictures, weights, batches and noise. pictures: how many are drawn, all categories together.
    *_steps: optimiser steps a stage; 0 leaves that network as it was initialised.
    """

    seed: int
    pictures: int
    vae_steps: int
    unet_steps: int
    dino_steps: int

    def identity(self, stage: str) -> str:
        """All that the weights of a stage depend on but its own number of steps; kept in checkpoints."""
        drawn = f"seed={self.seed} pictures={self.pictures}"
        return f"{stage} {drawn} vae_steps={self.vae_steps}" if stage == "unet" else f"{stage} {drawn}"
