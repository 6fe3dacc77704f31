"""What run functions tell whoever watches (`Progress.tell`): layers' shapes, images and pairs left out, costs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.plain_text import free_bytes, human_bytes
from featstore.progress import Progress

if TYPE_CHECKING:
    from featstore.backbones.layers import LayerShape
    from featstore.errors import ImageError
    from featstore.store.keys import DinoExtractor, StoreLocation


def tell_shapes(progress: Progress, shapes: Iterable["LayerShape"]) -> None:
    """Layer, channels, stride and map size, whenever maps are made: layer numbers are easily off by one."""
    for shape in shapes:
        cells = f"{shape.side}x{shape.side} cells of {shape.stride} pixels"
        progress.tell(f"layer {shape.layer}: {shape.channels} channels, {cells}")


def tell_dino_shape(progress: Progress, extractor: "DinoExtractor", shape: tuple[int, int, int]) -> None:
    """The same of a DINOv2's patch maps of `shape` (C, side, side); its pixels are of images of its own size."""
    (channels, side, _), size = shape, extractor.size
    progress.tell(
        f"layer dino: {channels} channels, {side}x{side} cells of {size // side} pixels; images resized to {size} "
        f"pixels, DINOv2 {extractor.dino.id}"
    )


def tell_left_out(progress: Progress, bad: Sequence["ImageError"], pairs: int, readable: int) -> None:
    """The images that `skip_bad` passed over, and how many of the pairs need them."""
    for line in spell_bad(bad):
        progress.tell(line)
    if readable < pairs:
        progress.tell(f"{pairs - readable} of {pairs} pairs are left out, as they need those images")


def spell_bad(bad: Sequence["ImageError"]) -> Iterator[str]:
    """The images that `skip_bad` passed over, a line each."""
    if bad:
        yield f"{len(bad)} image(s) could not be read:"
        yield from (f"  {error}" for error in bad)


def tell_disk(progress: Progress, path: "StoreLocation", needed: int) -> None:
    """Whether `needed` bytes fit where `path` lies or will lie; object storage has no end."""
    if isinstance(path, Path):
        free = free_bytes(path)
        fits = "it fits" if free > needed else "it DOES NOT FIT"
        progress.tell(f"{human_bytes(free)} free for {path}: {fits}")


def tell_pairwise_cost(progress: Progress, pairs: int, maps: int, ensemble: int) -> None:
    """What prompts cost that belong to pairs: their maps are made for each pair anew, and never cached."""
    from featstore.pipeline.pairwise import pairwise_passes

    progress.tell(
        f"cpm's maps depend on the pair: {pairwise_passes(pairs, maps, ensemble)} UNet passes for {pairs} pairs "
        f"({maps} map(s) of both images, ensemble {ensemble}), none of them cached"
    )
