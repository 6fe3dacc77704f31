"""An object as it is painted: parts from back to front, and the keypoints that are left to see."""

from dataclasses import dataclass

import numpy as np

from featstore.datasets.records import Box, Points
from tools.demo_drawing.chance import Chance, Colour
from tools.demo_drawing.shapes import Point, contains, turned

SIDE = 128
"""Width and height of a picture in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """outline: (n, 2). The later part covers the earlier one."""

    outline: Points
    colour: Colour


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """An object's parts and its visible keypoints, in the object's own frame or, once placed, in pixels."""

    parts: tuple[Part, ...]
    keypoints: dict[str, Point]

    @property
    def box(self) -> Box:
        """The bounding box (x1, y1, x2, y2) of all parts."""
        everything = np.concatenate([part.outline for part in self.parts])
        (left, top), (right, bottom) = everything.min(axis=0), everything.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


class Sketch:
    """Collects parts and keypoints in painting order. A keypoint is hidden by whatever is painted over it later."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._marks: list[tuple[str, Point, int]] = []

    def paint(self, outline: Points, colour: Colour) -> None:
        self._parts.append(Part(outline, colour))

    def mark(self, name: str, point: Point) -> None:
        """Names a point of what has been painted so far."""
        self._marks.append((name, point, len(self._parts)))

    def finish(self) -> Figure:
        # most parts are nowhere near: a comparison of boxes spares the test of their outlines
        boxes = [(*part.outline.min(axis=0).tolist(), *part.outline.max(axis=0).tolist()) for part in self._parts]

        def covers(index: int, x: float, y: float) -> bool:
            left, top, right, bottom = boxes[index]
            return left <= x <= right and top <= y <= bottom and contains(self._parts[index].outline, (x, y))

        count = len(self._parts)
        visible = {
            name: point
            for name, point, painted in self._marks
            if not any(covers(index, *point) for index in range(painted, count))
        }
        return Figure(tuple(self._parts), visible)


def place(figure: Figure, chance: Chance) -> Figure:
    """Turns, mirrors, scales and moves a figure into a picture of SIDE x SIDE pixels; at most a fringe of it is cut
    off. Keypoints that fall outside are dropped."""
    angle = chance.degrees(-18, 18)
    flip = -1.0 if chance.happens(0.5) else 1.0
    upright = _moved(figure, angle, flip, 1.0, (0.0, 0.0))
    left, top, right, bottom = upright.box
    scale = SIDE * chance.between(0.62, 0.95) / max(right - left, bottom - top)
    fringe = 3.0
    x = chance.between(-fringe, SIDE + fringe - scale * (right - left)) - scale * left
    y = chance.between(-fringe, SIDE + fringe - scale * (bottom - top)) - scale * top
    placed = _moved(figure, angle, flip, scale, (x, y))
    inside = {name: point for name, point in placed.keypoints.items() if all(0 <= value <= SIDE - 1 for value in point)}
    return Figure(placed.parts, inside)


def _moved(figure: Figure, angle: float, flip: float, scale: float, shift: Point) -> Figure:
    def moved(points: Points) -> Points:
        at = turned(points, angle)
        return np.stack([flip * scale * at[:, 0] + shift[0], scale * at[:, 1] + shift[1]], axis=1)

    parts = tuple(Part(moved(part.outline), part.colour) for part in figure.parts)
    names = list(figure.keypoints)
    points = moved(np.array([figure.keypoints[name] for name in names], dtype=np.float64).reshape(-1, 2))
    return Figure(parts, {name: (float(x), float(y)) for name, (x, y) in zip(names, points, strict=True)})


def clipped(box: Box) -> Box:
    """A box cut at the picture's edges."""
    left, top, right, bottom = box
    edge = float(SIDE)
    return max(left, 0.0), max(top, 0.0), min(right, edge), min(bottom, edge)
