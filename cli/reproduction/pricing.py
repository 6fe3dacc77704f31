"""What is left to be done, printed with what it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from cli.output import human_bytes, print_disk, print_table
from cli.reproduction.work import Work
from cli.reproduction.workplace import Workplace


@dataclass(frozen=True, slots=True)
class Piece:
    """A training or cell that is left to be done, and what it takes beyond the pieces before it."""

    name: str
    work: Work


@dataclass(frozen=True, slots=True)
class Price:
    """What a piece takes. encode: VAE passes. dino: DINOv2's. passes: of the UNet, backward: with a gradient. pairs: to
    be matched. flops: of the VAE and the UNet. bytes_to_write: of stores' rows."""

    name: str
    encode: int
    dino: int
    passes: int
    backward: int
    pairs: int
    flops: int
    bytes_to_write: int


def prices(place: Workplace, left: Sequence[Piece]) -> list[Price]:
    """Of each piece, and of all together, last."""
    total = Work()
    for piece in left:
        total |= piece.work
    return [
        Price(
            name=piece.name,
            encode=len(piece.work.latents),
            dino=len(piece.work.patches),
            passes=sum(piece.work.passes.values()),
            backward=sum(piece.work.backward.values()),
            pairs=piece.work.matched,
            flops=place.flops_of(piece.work),
            bytes_to_write=place.bytes_of(piece.work),
        )
        for piece in (*left, Piece("all", total))
    ]


def print_prices(place: Workplace, found: Sequence[Price]) -> None:
    """Piece by piece, and whether the disk holds it."""
    rows = [
        [
            price.name,
            *map(str, (price.encode, price.dino, price.passes, price.backward, price.pairs)),
            f"{price.flops / 1e12:.3g}",
            human_bytes(price.bytes_to_write),
        ]
        for price in found
    ]
    header = ["what is left", "VAE passes", "DINOv2", "UNet passes", "with gradient", "pairs", "TFLOP", "to write"]
    print_table("What it takes; what several need is counted where it is made first", header, rows)
    print_disk(place.folder, found[-1].bytes_to_write)
