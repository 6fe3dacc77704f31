"""A bird in profile, facing right: the wing folds and rises, the legs step, the neck stretches."""

from tools.demo_drawing.chance import Chance, shaded
from tools.demo_drawing.figure import Figure, Sketch
from tools.demo_drawing.shapes import along, ellipse, limb, polygon, smooth, turned

KEYPOINTS = (
    "beak tip",
    "eye",
    "crown",
    "breast",
    "wing root",
    "wing tip",
    "tail tip",
    "rump",
    "near foot",
    "far foot",
)


def draw_bird(chance: Chance) -> Figure:
    """Keypoints: those of KEYPOINTS that nothing hides. Units: the body is about 1 long."""
    plumage = chance.colour(0.58, 0.62, 0.72)
    wing_colour = chance.colour(0.63, 0.66, 0.42)
    breast_colour = chance.colour(0.09, 0.45, 0.90)
    beak_colour = chance.colour(0.12, 0.88, 0.92, spread=0.7)
    leg_colour = chance.colour(0.04, 0.75, 0.72, spread=0.7)
    eye_colour = chance.colour(0.6, 0.3, 0.06, spread=0.3)

    tilt = chance.degrees(-22, 4)
    depth = chance.between(0.26, 0.36)
    sketch = Sketch()

    def of_body(x: float, y: float) -> tuple[float, float]:
        at = turned(polygon([(x, y)]), tilt)[0]
        return float(at[0]), float(at[1])

    for side, shade in (("far", 0.7), ("near", 1.0)):
        hip = of_body(0.02 if side == "far" else -0.06, depth * 0.7)
        knee = along(hip, chance.degrees(80, 125), chance.between(0.16, 0.26))
        foot = along(knee, chance.degrees(60, 100), chance.between(0.16, 0.26))
        toe = along(foot, chance.degrees(-5, 15), 0.17)
        colour = shaded(leg_colour, shade)
        sketch.paint(limb(hip, knee, 0.055, 0.04), colour)
        sketch.paint(limb(knee, foot, 0.04, 0.035), colour)
        sketch.paint(limb(foot, toe, 0.045, 0.03), colour)
        sketch.mark(f"{side} foot", foot)

    tail_angle = tilt + chance.degrees(160, 200)
    tail_length = chance.between(0.35, 0.65)
    rump = of_body(-0.48, -0.06)
    tail_end = along(rump, tail_angle, tail_length)
    spread = chance.between(0.06, 0.13)
    above, below = (along(tail_end, tail_angle + turn, spread) for turn in (1.57, -1.57))
    root_above, root_below = (along(rump, tail_angle + turn, 0.07) for turn in (1.57, -1.57))
    sketch.paint(polygon([root_above, above, tail_end, below, root_below]), wing_colour)
    sketch.mark("tail tip", tail_end)

    neck = chance.between(0.12, 0.34)
    head = along(of_body(0.40, -0.12), chance.degrees(-75, -40), neck)
    radius = chance.between(0.16, 0.21)
    body = [(0.52, 0.0), (0.30, -depth), (-0.15, -depth), (-0.58, -0.10), (-0.50, 0.06), (-0.1, depth), (0.32, depth)]
    sketch.paint(smooth([of_body(*point) for point in body]), plumage)
    sketch.mark("rump", of_body(-0.43, -0.06))
    sketch.paint(limb(of_body(0.28, -0.06), head, 0.2, radius * 0.8), plumage)
    sketch.paint(
        smooth([of_body(*point) for point in [(0.5, -0.04), (0.26, -0.02), (0.1, depth), (0.4, depth)]]), breast_colour
    )
    sketch.mark("breast", of_body(0.36, 0.08))

    gaze = chance.degrees(-15, 20)
    beak_tip = along(head, gaze, radius + chance.between(0.16, 0.34))
    beak = [along(head, gaze - 0.5, radius * 0.95), beak_tip, along(head, gaze + 0.5, radius * 0.95)]
    sketch.paint(polygon(beak), beak_colour)
    sketch.mark("beak tip", beak_tip)
    sketch.paint(ellipse(head, radius, radius * 0.95), plumage)
    sketch.mark("crown", along(head, gaze - 1.9, radius * 0.85))
    eye = along(head, gaze - 0.55, radius * 0.5)
    sketch.paint(ellipse(eye, 0.062, 0.062, corners=16), shaded(breast_colour, 1.2))
    sketch.paint(ellipse(eye, 0.044, 0.044, corners=16), eye_colour)
    sketch.mark("eye", eye)

    wing_angle = tilt + chance.degrees(165, 285)
    length = chance.between(0.55, 0.8)
    root = of_body(0.16, -0.08)
    wing_tip = along(root, wing_angle, length)
    breadth = chance.between(0.16, 0.24)
    middle = along(root, wing_angle, 0.42 * length)
    front, back = along(middle, wing_angle + 1.57, breadth), along(middle, wing_angle - 1.57, breadth)
    shoulder = along(root, wing_angle, -0.14)
    sketch.paint(smooth([shoulder, front, wing_tip, wing_tip, back]), wing_colour)
    fold = along(root, wing_angle, 0.75 * length)
    sketch.paint(limb(root, fold, 0.035, 0.015), shaded(wing_colour, 1.5))
    sketch.mark("wing root", root)
    sketch.mark("wing tip", along(root, wing_angle, 0.93 * length))
    return sketch.finish()
