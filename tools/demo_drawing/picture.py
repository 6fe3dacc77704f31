"""A picture of the demo dataset: what is on it (`compose`) and its pixels (`render`), the latter at need only."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.demo_drawing.background import draw_clutter, draw_ground
from tools.demo_drawing.bird import KEYPOINTS as BIRD_KEYPOINTS
from tools.demo_drawing.bird import draw_bird
from tools.demo_drawing.car import KEYPOINTS as CAR_KEYPOINTS
from tools.demo_drawing.car import draw_car
from tools.demo_drawing.chance import Chance
from tools.demo_drawing.figure import SIDE, Figure, Part, place
from tools.demo_drawing.fish import KEYPOINTS as FISH_KEYPOINTS
from tools.demo_drawing.fish import draw_fish
from tools.demo_drawing.person import KEYPOINTS as PERSON_KEYPOINTS
from tools.demo_drawing.person import draw_person

OVERSAMPLING = 4
"""Shapes are drawn this many times larger and averaged down, for smooth edges."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A category: how it is drawn, and the names of all its keypoints."""

    draw: Callable[[Chance], Figure]
    keypoints: tuple[str, ...]


SUBJECTS = {
    "bird": Subject(draw_bird, BIRD_KEYPOINTS),
    "car": Subject(draw_car, CAR_KEYPOINTS),
    "fish": Subject(draw_fish, FISH_KEYPOINTS),
    "person": Subject(draw_person, PERSON_KEYPOINTS),
}


def compose(category: str, split: str, number: int) -> Figure:
    """The object of a picture in pixels, with the keypoints that can be seen. A function of the three arguments."""
    figure = SUBJECTS[category].draw(Chance(category, split, number, "object"))
    return place(figure, Chance(category, split, number, "place"))


def render(category: str, split: str, number: int) -> Image.Image:
    """The picture itself, RGB, SIDE x SIDE. A function of the three arguments (and of Pillow's rasteriser)."""
    scene = Chance(category, split, number, "background")
    ground = draw_ground(scene)
    ground = painted(ground, draw_clutter(scene))
    return painted(ground, compose(category, split, number).parts)


def painted(ground: Image.Image, parts: Iterable[Part]) -> Image.Image:
    """`parts`, in pixels, painted over the ground in their order; the ground itself is left as it was."""
    large = ground.resize((SIDE * OVERSAMPLING, SIDE * OVERSAMPLING), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(large)
    for part in parts:
        # pixel centres are whole coordinates, in the picture as in the enlargement
        outline = (part.outline + 0.5) * OVERSAMPLING - 0.5
        pen.polygon([(float(x), float(y)) for x, y in outline], fill=part.colour)
    return large.reduce(OVERSAMPLING)
