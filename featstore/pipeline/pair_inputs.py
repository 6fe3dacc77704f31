"""What training, and evaluation with a cpm, read of images: how much of it is still to be made."""

import math
from collections.abc import Sequence
from pathlib import Path

from featstore.backbones.dino_location import read_tokens_shape
from featstore.backbones.dino_name import DinoName
from featstore.files import Needed
from featstore.pipeline.plan import missing_latents, missing_noisy
from featstore.store.store import Store


def missing_inputs(
    store: Store,
    rows: Sequence[int],
    noisy: Sequence[tuple[Sequence[int], int, int]],
    dino: tuple[DinoName, Path] | None,
) -> Needed:
    """What is not written yet of the latents of `rows`, of `noisy` (image rows, timestep, draws), and of the tokens of
    `dino` (with its folder); None where no tokens are read."""
    places = {(step, place) for own, step, draws in noisy for place in missing_noisy(store, own, step, draws)}
    files = len(missing_latents(store, rows)) + len(places)
    size = files * store.latents().row_bytes
    if dino is not None:
        name, folder = dino
        array = store.patch_tokens(name)
        present = None if array is None else array.present()
        missing = sum(present is None or not present[row] for row in rows)
        files += missing
        # float16 and a checksum of 4 bytes a row
        size += missing * (math.prod(read_tokens_shape(folder)) * 2 + 4)
    return Needed(size, files, 2 + len(noisy))
