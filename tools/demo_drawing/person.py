"""A person in profile, facing right, mid-stride: every shoulder, elbow, hip and knee bends the way a person's does."""

import math

from tools.demo_drawing.chance import Chance, Colour, shaded
from tools.demo_drawing.figure import Figure, Sketch
from tools.demo_drawing.shapes import Point, along, ellipse, limb, polygon, smooth

KEYPOINTS = (
    "crown",
    "nose",
    "shoulder",
    "hip",
    "near elbow",
    "near hand",
    "far hand",
    "near knee",
    "near toe",
    "far knee",
    "far toe",
)

DOWN = math.pi / 2


def draw_person(chance: Chance) -> Figure:
    """Keypoints: those of KEYPOINTS that nothing hides. Units: the torso is about 1 long."""
    skin = chance.colour(0.07, 0.42, 0.85)
    hair = chance.colour(0.06, 0.6, 0.20, spread=0.7)
    shirt = chance.colour(0.36, 0.62, 0.62)
    trousers = chance.colour(0.66, 0.55, 0.45)
    shoe = chance.colour(0.0, 0.75, 0.45, spread=0.6)

    lean = chance.degrees(-4, 16)
    torso = chance.between(0.85, 1.1)
    hip: Point = (0.0, 0.0)
    shoulder = along(hip, lean - DOWN, torso)
    arm, leg = chance.between(0.42, 0.54), chance.between(0.56, 0.74)
    build = chance.between(0.9, 1.15)
    # a stride: the limbs of one side swing against the other's
    swing = chance.degrees(8, 48) * (1 if chance.happens(0.5) else -1)
    sketch = Sketch()

    _arm(
        sketch,
        chance,
        "far",
        along(shoulder, lean - DOWN, -0.1),
        DOWN - swing,
        arm,
        build,
        shaded(shirt, 0.62),
        shaded(skin, 0.68),
    )
    _leg(sketch, chance, "far", hip, DOWN + 0.8 * swing, leg, build, shaded(trousers, 0.62), shaded(shoe, 0.65))
    _leg(sketch, chance, "near", hip, DOWN - 0.8 * swing, leg, build, trousers, shoe)

    chest, seat = 0.23 * build, 0.2 * build
    forward = lean
    outline = [
        along(shoulder, forward, chest * 0.7),
        along(along(hip, lean - DOWN, 0.6 * torso), forward, chest * 1.25),
        along(hip, forward, seat * 1.2),
        along(along(hip, DOWN, 0.12), 0.0, seat),
        along(along(hip, DOWN, 0.12), math.pi, seat),
        along(hip, forward + math.pi, seat * 1.1),
        along(along(hip, lean - DOWN, 0.7 * torso), forward + math.pi, chest * 1.05),
        along(shoulder, forward + math.pi, chest * 0.8),
        along(shoulder, lean - DOWN, 0.08),
    ]
    head = along(shoulder, lean - DOWN + chance.degrees(-2, 14), chance.between(0.42, 0.5))
    sketch.paint(limb(shoulder, head, 0.1 * build, 0.1 * build), shaded(skin, 0.9))
    sketch.paint(smooth(outline, rounds=2), shirt)
    belt_back, belt_front = along(hip, math.pi, seat * 0.97), along(hip, 0.0, seat * 0.97)
    sketch.paint(limb(belt_back, belt_front, 0.09, 0.09), trousers)
    sketch.mark("hip", hip)

    nod = chance.degrees(-15, 20)
    size = chance.between(0.24, 0.29)
    _head(sketch, head, nod, size, skin, hair)
    _arm(
        sketch, chance, "near", along(shoulder, lean - DOWN, -0.1), DOWN + swing, arm, build, shaded(shirt, 0.85), skin
    )
    return sketch.finish()


def _head(sketch: Sketch, head: Point, nod: float, size: float, skin: Colour, hair: Colour) -> None:
    nose = along(head, nod + 0.08, size * 1.28)
    sketch.paint(polygon([along(head, nod - 0.35, size * 0.9), nose, along(head, nod + 0.4, size * 0.9)]), skin)
    sketch.mark("nose", nose)
    sketch.paint(ellipse(head, size * 0.95, size * 1.08, angle=nod), skin)
    cap = [along(head, nod + turn, size * 1.14) for turn in (-0.75, -1.2, -1.6, -2.1, -2.6, -3.1, -3.6)]
    sketch.paint(polygon([*cap, along(head, nod - 2.9, size * 0.15)]), hair)
    sketch.mark("crown", along(head, nod - 1.65, size * 1.0))
    sketch.paint(ellipse(along(head, nod - 0.3, size * 0.62), 0.045, 0.055, corners=12), shaded(hair, 0.4))


def _arm(
    sketch: Sketch,
    chance: Chance,
    side: str,
    shoulder: Point,
    angle: float,
    length: float,
    build: float,
    sleeve: Colour,
    skin: Colour,
) -> None:
    elbow = along(shoulder, angle, length)
    hand = along(elbow, angle - chance.degrees(5, 95), length * 0.95)
    sketch.paint(limb(elbow, hand, 0.085 * build, 0.065), skin)
    sketch.paint(ellipse(hand, 0.1, 0.1, corners=16), skin)
    sketch.mark(f"{side} hand", hand)
    sketch.paint(limb(shoulder, elbow, 0.125 * build, 0.1 * build), sleeve)
    if side == "near":
        sketch.mark("shoulder", shoulder)
        sketch.mark("near elbow", elbow)


def _leg(
    sketch: Sketch,
    chance: Chance,
    side: str,
    hip: Point,
    angle: float,
    length: float,
    build: float,
    trousers: Colour,
    shoe: Colour,
) -> None:
    knee = along(hip, angle, length)
    ankle = along(knee, angle + chance.degrees(2, 55), length * 0.95)
    # the foot stands across the shin, toes forward
    toe = along(ankle, math.atan2(ankle[1] - knee[1], ankle[0] - knee[0]) - chance.degrees(70, 100), 0.27)
    sketch.paint(limb(ankle, toe, 0.1, 0.075), shoe)
    sketch.mark(f"{side} toe", toe)
    sketch.paint(limb(knee, ankle, 0.125 * build, 0.09 * build), trousers)
    sketch.paint(limb(hip, knee, 0.175 * build, 0.13 * build), trousers)
    sketch.mark(f"{side} knee", knee)
