"""What the second stage reads of a picture: a caption that says which way the thing faces, which parts it has, where on
it they are and in which colours, and on what ground. How much of it is said is drawn at random."""

import colorsys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.demo_drawing.figure import Figure
from tools.demo_drawing.picture import compose
from tools.demo_model.pictures import CATEGORIES, stream

EMPTY, PLAIN = 0.1, 0.25
"""The shares of captions that are empty, and that name the category alone, as inference does."""

TOLD, KEPT = 0.4, 0.7
"""The largest share of a picture's parts that a caption tells, and the share of their words."""

WHOLE = 0.85
"""The share of captions that tell what is of the whole picture: which way the thing faces, and on what ground."""

GROUNDS = ("red", "yellow", "green", "cyan", "blue", "magenta")
GREY = 0.12
"""The saturation below which a ground is grey."""

HUES = (
    *("red", "vermilion", "orange", "amber", "yellow", "lime", "chartreuse", "fern"),
    *("green", "jade", "emerald", "mint", "cyan", "sky", "azure", "cobalt"),
    *("blue", "indigo", "violet", "purple", "magenta", "fuchsia", "rose", "crimson"),
)
"""Names around the colour wheel, 15 degrees apart: a part of a category keeps to two or three of them."""

ENDS = {
    "bird": ("beak", "tail"),
    "car": ("headlight", "brakelight"),
    "fish": ("mouth", "tail"),
    "person": ("nose", "hair"),
}
"""A part at the front and one at the back."""

EDGE = 8
"""Width in pixels of the frame of a picture that tells its ground's colour."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a caption may say of one thing: its name, with words before it and after it that may be left out."""

    before: tuple[str, ...]
    name: str
    after: str

    def said(self, chances: Iterator[float]) -> str:
        return " ".join(
            [
                *(word for word in self.before if next(chances) < KEPT),
                self.name,
                *([self.after] if self.after and next(chances) < KEPT else []),
            ]
        )


@dataclass(frozen=True, slots=True)
class Told:
    """All that captions may say of a picture: of the whole, and of the parts of what it shows."""

    category: str
    whole: tuple[str, ...]
    parts: tuple[Phrase, ...]


Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Thing:
    """A part of an object, or the ground: its name, where it is seen, and its hue, saturation and value, each in
    [0, 1]."""

    name: str
    place: str
    colour: Colour


def tell_pictures(seed: int, pictures: Tensor) -> list[Told]:
    """What captions may say of each of the pictures of `draw_pictures`, (count, 3, 128, 128) uint8. "pale" and "rich",
    "dark" and "light" are the lowest and the highest third of saturation and value among all things of that name on
    pictures of that category."""
    chosen = [CATEGORIES[index % len(CATEGORIES)] for index in range(len(pictures))]
    figures = [compose(name, stream(seed), index // len(CATEGORIES)) for index, name in enumerate(chosen)]
    parts = [_parts(figure) for figure in figures]
    grounds = [_ground(picture) for picture in pictures]
    colours: dict[tuple[str, str], list[Colour]] = defaultdict(list)
    for category, things, ground in zip(chosen, parts, grounds, strict=True):
        colours["", ground.name].append(ground.colour)
        for thing in things:
            colours[category, thing.name].append(thing.colour)
    thirds = {key: np.quantile(np.array(values)[:, 1:], (1 / 3, 2 / 3), axis=0) for key, values in colours.items()}
    told = []
    for category, figure, things, ground in zip(chosen, figures, parts, grounds, strict=True):
        shades = [_shades(thing.colour, *thirds[category, thing.name]) for thing in things]
        phrases = [
            Phrase((*shade, _named(thing.colour[0], HUES)), thing.name, thing.place)
            for shade, thing in zip(shades, things, strict=True)
        ]
        shade = [word for word in _shades(ground.colour, *thirds["", ground.name]) if word in ("dark", "light")]
        hue = "grey" if ground.colour[1] < GREY else _named(ground.colour[0], GROUNDS)
        whole = f"facing {_facing(figure, category)}", " ".join(["on a", *shade, hue, ground.name])
        told.append(Told(category, whole, tuple(phrases)))
    return told


def caption(told: Told, chance: torch.Generator) -> str:
    """A caption, its words drawn from `chance`."""
    kind, share = torch.rand(2, generator=chance).tolist()
    order = torch.randperm(len(told.parts), generator=chance).tolist()
    chances = iter(torch.rand(len(told.whole) + 5 * len(told.parts), generator=chance).tolist())
    category = f"a photo of a {told.category}"
    if kind < EMPTY:
        return ""
    if kind < EMPTY + PLAIN:
        return category
    whole = [text for text in told.whole if next(chances) < WHOLE]
    chosen = [told.parts[place] for place in order if next(chances) < TOLD * share]
    return ", ".join([category, *whole, *(phrase.said(chances) for phrase in chosen)])


def words(told: Sequence[Told]) -> tuple[str, ...]:
    """Every word of captions of these pictures, sorted, so that each becomes one token."""
    said = {text for each in told for text in each.whole}
    said |= {text for each in told for part in each.parts for text in (*part.before, part.name, part.after)}
    return tuple(sorted({word for text in said for word in text.split()}))


def _parts(figure: Figure) -> list[Thing]:
    left, top, right, bottom = figure.box
    things = []
    for part in figure.parts:
        if part.name:
            x, y = part.outline.mean(axis=0)
            place = _place((x - left) / (right - left), (y - top) / (bottom - top))
            things.append(Thing(part.name, place, colorsys.rgb_to_hsv(*(channel / 255 for channel in part.colour))))
    return things


def _place(x: float, y: float) -> str:
    """In words, by thirds of the object's box; x and y in [0, 1]."""
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    return f"{row} {column}".strip() or "middle"


def _ground(picture: Tensor) -> Thing:
    """The mean colour along the sides of a picture (3, 128, 128)."""
    inside = torch.zeros(picture.shape[1:], dtype=torch.bool)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    mean = (picture[:, ~inside].float().mean(dim=1) / 255).tolist()
    return Thing("ground", "", colorsys.rgb_to_hsv(*mean))


def _shades(colour: Colour, low: Sequence[float], high: Sequence[float]) -> tuple[str, ...]:
    """Words for a colour; below `low` (saturation, value) pale and dark, above `high` rich and light."""
    said = []
    for amount, least, most, few, much in zip(colour[1:], low, high, ("pale", "dark"), ("rich", "light"), strict=True):
        if amount < least or amount > most:
            said.append(few if amount < least else much)
    return tuple(said)


def _named(hue: float, names: Sequence[str]) -> str:
    """The nearest of names around the colour wheel."""
    return names[round(hue * len(names)) % len(names)]


def _facing(figure: Figure, category: str) -> str:
    centres = {part.name: float(part.outline[:, 0].mean()) for part in figure.parts}
    front, back = ENDS[category]
    return "left" if centres[front] < centres[back] else "right"
