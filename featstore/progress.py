"""How long work tells whoever watches where it stands, without knowing who that is."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from featstore.plain_text import human_bytes

if TYPE_CHECKING:
    from featstore.backbones.base import LayerShape
    from featstore.errors import ImageError
    from featstore.store.keys import StoreLocation


class Progress:
    """A watcher of work. The command line's draws bars; what a watcher does not say for itself does nothing, as here.
    As a context it clears what it shows at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The work is over."""

    def start(self, what: str, total: int, unit: str) -> None:
        """A step of `total` units begins."""

    def wait(self, what: str) -> None:
        """Something begins that takes its time and cannot be counted, such as loading a model; it lasts until the next
        step or wait begins."""

    def advance(self, count: int = 1) -> None:
        """`count` more units of the step are done."""

    def say(self, state: str) -> None:
        """How the step stands, shown beside its progress until the next word."""

    def note(self, sentence: str) -> None:
        """Something worth a line."""

    def tell(self, line: str) -> None:
        """A line of what is done and found, in the order in which it happens: the command line prints it on standard
        output."""


class Silent(Progress):
    """Watches nothing."""


def tell_shapes(progress: Progress, shapes: Iterable["LayerShape"]) -> None:
    """Layer, channels, stride and map size, whenever maps are made: layer numbers are easily off by one."""
    for shape in shapes:
        cells = f"{shape.side}x{shape.side} cells of {shape.stride} pixels"
        progress.tell(f"layer {shape.name}: {shape.channels} channels, {cells}{shape.about}")


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
    from featstore.store.keys import free_at

    free = free_at(path)
    if free is not None:
        fits = "it fits" if free > needed else "it DOES NOT FIT"
        progress.tell(f"{human_bytes(free)} free for {path}: {fits}")
