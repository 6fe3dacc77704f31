"""A fish in profile, facing right: the spine bends, fins spread and fold, the tail forks."""

import math
from itertools import pairwise

import numpy as np

from tools.demo_drawing.chance import Chance, shaded
from tools.demo_drawing.figure import Figure, Sketch
from tools.demo_drawing.shapes import Point, along, ellipse, limb, polygon, smooth

KEYPOINTS = (
    "mouth",
    "eye",
    "gill",
    "dorsal fin tip",
    "dorsal fin root",
    "pectoral fin tip",
    "pelvic fin tip",
    "tail base",
    "upper tail tip",
    "lower tail tip",
)

UP = -math.pi / 2


class _Spine:
    """A circular arc of length 1 from mouth (0) to tail base (1), and the body's half height along it."""

    def __init__(self, bend: float, height: float) -> None:
        self._bend, self._height = bend, height

    def heading(self, s: float) -> float:
        """Direction towards the mouth at s, radians."""
        return self._bend * (0.5 - s)

    def at(self, s: float, side: float = 0.0) -> Point:
        """The point at s, `side` half heights off the spine (-1 back, 1 belly)."""
        steps = np.linspace(0.0, s, 12)
        headings = self._bend * (0.5 - 0.5 * (steps[1:] + steps[:-1]))
        x = 0.5 - float(np.sum(np.cos(headings))) * s / 11
        y = -float(np.sum(np.sin(headings))) * s / 11
        return along((x, y), self.heading(s) - UP, side * self.half_height(s))

    def half_height(self, s: float) -> float:
        rounding: float = math.sin(math.pi * min(s + 0.02, 1.0) ** 0.62) ** 0.8
        return self._height * (rounding + 0.16 * s)


def draw_fish(chance: Chance) -> Figure:
    """Keypoints: those of KEYPOINTS that nothing hides. Units: the body without its tail is 1 long."""
    scales = chance.colour(0.08, 0.80, 0.90)
    belly = chance.colour(0.13, 0.30, 0.95, spread=0.8)
    stripe = chance.colour(0.55, 0.2, 0.95, spread=0.6)
    fin = chance.colour(0.02, 0.75, 0.62)
    pupil = chance.colour(0.6, 0.3, 0.06, spread=0.3)

    spine = _Spine(chance.degrees(-65, 65), chance.between(0.17, 0.27))
    sketch = Sketch()

    base = spine.at(0.97)
    back = spine.heading(1.0) + math.pi + chance.degrees(-18, 18)
    fork, length = chance.degrees(26, 46), chance.between(0.28, 0.42)
    upper, lower = along(base, back + fork, length), along(base, back - fork, length)
    notch = along(base, back, length * chance.between(0.4, 0.75))
    top, bottom = spine.at(0.95, -0.9), spine.at(0.95, 0.9)
    sketch.paint(polygon([top, upper, notch, lower, bottom]), fin)
    sketch.mark("upper tail tip", along(base, back + fork, length * 0.94))
    sketch.mark("lower tail tip", along(base, back - fork, length * 0.94))

    start, end = chance.between(0.28, 0.36), chance.between(0.62, 0.78)
    dorsal_root = spine.at(start, -0.85)
    dorsal_tip = along(
        spine.at(start + 0.2, -1.0), spine.heading(0.5) + UP - chance.degrees(15, 55), chance.between(0.14, 0.26)
    )
    sketch.paint(
        polygon([dorsal_root, dorsal_tip, spine.at(end, -1.0), spine.at(end, -0.5), spine.at(start, -0.5)]), fin
    )
    sketch.mark("dorsal fin tip", dorsal_tip)
    pelvic = chance.between(0.5, 0.62)
    pelvic_tip = along(
        spine.at(pelvic, 0.9), spine.heading(pelvic) - UP + chance.degrees(15, 60), chance.between(0.16, 0.26)
    )
    sketch.paint(polygon([spine.at(pelvic - 0.09, 0.8), pelvic_tip, spine.at(pelvic + 0.07, 0.8)]), fin)
    sketch.mark("pelvic fin tip", pelvic_tip)

    lengths = [index / 14 for index in range(15)]
    outline = [spine.at(s, -1.0) for s in lengths] + [spine.at(s, 1.0) for s in reversed(lengths)]
    sketch.paint(polygon(outline), scales)
    under = [spine.at(s, 0.35) for s in lengths[1:12]] + [spine.at(s, 0.97) for s in reversed(lengths[1:12])]
    sketch.paint(polygon(under), belly)
    for s in (0.36, 0.66):
        width = chance.between(0.025, 0.05)
        band = [
            spine.at(s - width, -0.97),
            spine.at(s + width, -0.97),
            spine.at(s + width, 0.97),
            spine.at(s - width, 0.97),
        ]
        sketch.paint(polygon(band), stripe)
    arc = [spine.at(0.235 + 0.03 * math.cos(turn), side) for turn, side in ((-1.3, -0.6), (0.0, 0.0), (1.3, 0.6))]
    for one, other in pairwise(arc):
        sketch.paint(limb(one, other, 0.015, 0.015), shaded(scales, 0.5))
    sketch.mark("gill", arc[1])
    lip = spine.at(0.06, 0.35)
    sketch.paint(limb(spine.at(0.0), lip, 0.012, 0.012), shaded(scales, 0.4))
    sketch.mark("mouth", spine.at(0.015))
    sketch.mark("tail base", spine.at(0.95))
    # a stripe may run over the fin's root, which is no less to be seen for it
    sketch.mark("dorsal fin root", dorsal_root)

    eye = spine.at(chance.between(0.11, 0.15), -0.35)
    size = chance.between(0.04, 0.055)
    sketch.paint(ellipse(eye, 1.5 * size, 1.5 * size, corners=18), shaded(belly, 1.1))
    sketch.paint(ellipse(eye, size, size, corners=16), pupil)
    sketch.mark("eye", eye)

    root = spine.at(0.3, 0.3)
    angle = spine.heading(0.3) + math.pi - chance.degrees(-15, 65)
    pectoral_tip = along(root, angle, chance.between(0.17, 0.27))
    wide = [along(along(root, angle, 0.12), angle + turn, 0.07) for turn in (1.57, -1.57)]
    sketch.paint(smooth([root, wide[0], pectoral_tip, pectoral_tip, wide[1]], rounds=2), shaded(fin, 1.15))
    sketch.mark("pectoral fin tip", along(root, angle, 0.9 * math.dist(root, pectoral_tip)))
    return sketch.finish()
