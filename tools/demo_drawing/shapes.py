"""Outlines of parts as polygons: (n, 2) arrays of (x, y), y pointing down."""

import math
from collections.abc import Sequence

import numpy as np

from featstore.datasets.records import Points

Point = tuple[float, float]


def polygon(points: Sequence[Point]) -> Points:
    return np.array(points, dtype=np.float64)


def smooth(points: Sequence[Point], *, rounds: int = 3) -> Points:
    """A closed curve that follows the polygon with its corners cut off (Chaikin)."""
    curve = polygon(points)
    for _ in range(rounds):
        following = np.roll(curve, -1, axis=0)
        cut = np.stack([0.75 * curve + 0.25 * following, 0.25 * curve + 0.75 * following], axis=1)
        curve = cut.reshape(-1, 2)
    return curve


def ellipse(centre: Point, width: float, height: float, *, angle: float = 0.0, corners: int = 28) -> Points:
    """Half axes `width` and `height`, turned by `angle` radians."""
    turn = np.arange(corners) * (2 * math.pi / corners)
    upright: Points = np.stack([width * np.cos(turn), height * np.sin(turn)], axis=1)
    moved: Points = turned(upright, angle) + np.array(centre)
    return moved


def limb(start: Point, end: Point, start_width: float, end_width: float) -> Points:
    """A tapering bar with round ends; widths are radii."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    half = np.linspace(-math.pi / 2, math.pi / 2, 7) + angle
    at_end = np.stack([end[0] + end_width * np.cos(half), end[1] + end_width * np.sin(half)], axis=1)
    half = half + math.pi
    at_start = np.stack([start[0] + start_width * np.cos(half), start[1] + start_width * np.sin(half)], axis=1)
    return np.concatenate([at_end, at_start])


def turned(points: Points, angle: float) -> Points:
    """Rotated about the origin by `angle` radians (clockwise on the screen)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    x, y = points[:, 0], points[:, 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)


def along(start: Point, angle: float, length: float) -> Point:
    """The point `length` away from `start` in the direction `angle` (0 right, pi / 2 down)."""
    return start[0] + length * math.cos(angle), start[1] + length * math.sin(angle)


def contains(outline: Points, point: Point) -> bool:
    """Whether the point is inside the polygon (even-odd rule)."""
    x, y = point
    following = np.roll(outline, -1, axis=0)
    crosses = (outline[:, 1] > y) != (following[:, 1] > y)
    rise = np.where(crosses, following[:, 1] - outline[:, 1], 1.0)
    crossing = outline[:, 0] + (y - outline[:, 1]) / rise * (following[:, 0] - outline[:, 0])
    return bool(np.count_nonzero(crosses & (crossing > x)) % 2)
