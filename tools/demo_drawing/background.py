"""Textured, cluttered backgrounds: a gradient, noise of several grains, and shapes that are no object's parts."""

import math

import numpy as np
from PIL import Image

from tools.demo_drawing.chance import Chance, Colour, rgb
from tools.demo_drawing.figure import SIDE, Part
from tools.demo_drawing.shapes import along, ellipse, limb, polygon, smooth


def draw_ground(chance: Chance) -> Image.Image:
    """The gradient and its texture, SIDE x SIDE."""
    first, second = (np.array(_muted(chance), dtype=np.float64) for _ in range(2))
    angle = chance.degrees(0, 360)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) - 0.5
    ramp = np.clip(0.5 + x * math.cos(angle) + y * math.sin(angle), 0, 1)[..., None]
    ground = first + ramp * (second - first)
    for cells in (5, 14, 43):
        grain = (chance.array(cells, cells) * 255).astype(np.uint8)
        texture = Image.fromarray(grain).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        ground += ((np.asarray(texture, dtype=np.float64) - 127.5) * chance.between(0.05, 0.28))[..., None]
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


def draw_clutter(chance: Chance) -> list[Part]:
    """5 to 11 shapes in pixels: blobs, slabs, sticks and spiky leaves."""
    return [_distractor(chance) for _ in range(5 + chance.below(7))]


def _distractor(chance: Chance) -> Part:
    centre = chance.between(0, SIDE), chance.between(0, SIDE)
    size = SIDE * chance.between(0.05, 0.2)
    angle = chance.degrees(0, 360)
    colour = _muted(chance)
    kind = chance.below(4)
    if kind == 0:
        return Part(ellipse(centre, size, size * chance.between(0.3, 1.0), angle=angle), colour)
    if kind == 1:
        end = along(centre, angle, 4 * size)
        return Part(limb(centre, end, size * 0.15, size * chance.between(0.05, 0.3)), colour)
    turns = [angle + 2 * math.pi * (index + chance.between(-0.3, 0.3)) / 5 for index in range(5)]
    corners = [along(centre, turn, size * chance.between(0.5, 1.3)) for turn in turns]
    return Part(polygon(corners) if kind == 2 else smooth(corners), colour)


def _muted(chance: Chance) -> Colour:
    """Any hue, less saturated than the objects."""
    return rgb(chance.between(0, 1), chance.between(0.05, 0.5), chance.between(0.3, 0.9))
