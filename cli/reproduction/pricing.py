"""What is left to be done, printed with what it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

from cli.output import human_bytes, print_disk, print_table, say
from cli.reproduction.calibration import calibrate
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
    be matched. bytes_to_write: of stores' rows. seconds: as foreseen."""

    name: str
    encode: int
    dino: int
    passes: int
    backward: int
    pairs: int
    bytes_to_write: int
    seconds: float


def prices(place: Workplace, left: Sequence[Piece]) -> list[Price]:
    """Of each piece, and of all together, last; the times from a short calibration on this machine."""
    total = Work()
    for piece in left:
        total |= piece.work
    pace = calibrate(place.model, total, place.compute)
    return [
        Price(
            name=piece.name,
            encode=len(piece.work.latents),
            dino=len(piece.work.patches),
            passes=sum(piece.work.passes.values()),
            backward=sum(piece.work.backward.values()),
            pairs=sum(piece.work.matched.values()),
            bytes_to_write=place.bytes_of(piece.work),
            seconds=pace.seconds(piece.work),
        )
        for piece in (*left, Piece("all", total))
    ]


def print_prices(place: Workplace, found: Sequence[Price]) -> None:
    """Piece by piece, and whether the disk holds it."""
    rows = [
        [
            price.name,
            *map(str, (price.encode, price.dino, price.passes, price.backward, price.pairs)),
            human_bytes(price.bytes_to_write),
            spell_seconds(price.seconds),
        ]
        for price in found
    ]
    header = ["what is left", "VAE passes", "DINOv2", "UNet passes", "with gradient", "pairs", "to write", "about"]
    print_table("What it takes; what several need is counted where it is made first", header, rows)
    say(
        f"times from a short calibration on this machine ({place.compute.device}, {place.compute.dtype_name}, batches "
        f"of {place.compute.batch_size}); reading, writing and DINOv2 are not in them"
    )
    print_disk(place.folder, found[-1].bytes_to_write)


def spell_seconds(seconds: float) -> str:
    """`2 h 05 min`, `4 min`, `12 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
