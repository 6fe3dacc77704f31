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


def print_cost(place: Workplace, left: Sequence[Piece]) -> None:
    """Piece by piece and in all: passes, bytes, and the time that a short calibration on this machine foresees."""
    total = Work()
    for piece in left:
        total |= piece.work
    pace = calibrate(place.model, total, place.compute)
    rows = [
        [
            piece.name,
            f"{len(piece.work.latents)}",
            f"{sum(piece.work.passes.values())}",
            f"{sum(piece.work.backward.values())}",
            f"{sum(piece.work.matched.values())}",
            human_bytes(place.bytes_of(piece.work)),
            spell_seconds(pace.seconds(piece.work)),
        ]
        for piece in (*left, Piece("all", total))
    ]
    header = ["what is left", "VAE passes", "UNet passes", "with gradient", "pairs", "to write", "about"]
    print_table("What it takes; what several need is counted where it is made first", header, rows)
    say(
        f"times from a short calibration on this machine ({place.compute.device}, {place.compute.dtype_name}, batches "
        f"of {place.compute.batch_size}); reading, writing and DINOv2 are not in them"
    )
    print_disk(place.folder, place.bytes_of(total))


def spell_seconds(seconds: float) -> str:
    """`2 h 05 min`, `4 min`, `12 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
