"""A car in profile, facing right: length, height, cabin and wheels vary, the boot lid and the aerial swing."""

import math

from tools.demo_drawing.chance import Chance, shaded
from tools.demo_drawing.figure import Figure, Sketch
from tools.demo_drawing.shapes import along, ellipse, limb, polygon, smooth

KEYPOINTS = (
    "front wheel",
    "rear wheel",
    "headlight",
    "tail light",
    "windscreen base",
    "roof front",
    "roof rear",
    "boot lid edge",
    "door handle",
    "aerial tip",
)


def draw_car(chance: Chance) -> Figure:
    """Keypoints: those of KEYPOINTS that nothing hides. Units: the car is about 2 long."""
    paint = chance.colour(0.0, 0.78, 0.75)
    glass = chance.colour(0.52, 0.30, 0.85)
    tyre = chance.colour(0.6, 0.15, 0.10, spread=0.4)
    rim = chance.colour(0.6, 0.08, 0.75, spread=0.6)
    lamp = chance.colour(0.15, 0.45, 0.96, spread=0.5)
    brake_lamp = chance.colour(0.94, 0.85, 0.45, spread=0.5)
    trim = chance.colour(0.6, 0.1, 0.25, spread=0.5)

    half = chance.between(0.85, 1.1)
    belt = -chance.between(0.26, 0.36)
    bonnet = belt + chance.between(0.02, 0.12)
    roof = belt - chance.between(0.28, 0.46)
    radius = chance.between(0.17, 0.24)
    screen_base = chance.between(0.28, 0.5) * half
    roof_front = screen_base - chance.between(0.15, 0.34)
    window_base = -chance.between(0.5, 0.88) * half
    roof_rear = min(window_base + chance.between(0.06, 0.34), roof_front - 0.3)
    sill = 0.08
    sketch = Sketch()

    aerial_root = (roof_rear + 0.08, roof + 0.01)
    aerial_tip = along(aerial_root, chance.degrees(-130, -60), chance.between(0.2, 0.34))
    sketch.paint(limb(aerial_root, aerial_tip, 0.022, 0.022), trim)
    sketch.paint(ellipse(aerial_tip, 0.036, 0.036, corners=12), trim)
    sketch.mark("aerial tip", aerial_tip)

    lid_angle = math.pi + (chance.degrees(15, 60) if chance.happens(0.5) else 0.0)
    lid_hinge = (window_base + 0.03, belt)
    lid_edge = along(lid_hinge, lid_angle, max(half * 0.97 + window_base, 0.16))
    sketch.paint(limb(lid_hinge, lid_edge, 0.04, 0.035), shaded(paint, 0.75))
    sketch.mark("boot lid edge", lid_edge)

    cabin = [(screen_base, belt + 0.02), (roof_front, roof), (roof_rear, roof), (window_base, belt + 0.02)]
    sketch.paint(polygon(cabin), shaded(paint, 0.9))
    sketch.mark("roof front", (roof_front - 0.01, roof + 0.015))
    sketch.mark("roof rear", (roof_rear + 0.01, roof + 0.015))
    post = chance.between(0.35, 0.6) * (roof_front - roof_rear) + roof_rear
    low, high = belt + 0.01, roof + 0.055
    sketch.paint(
        polygon([(screen_base - 0.07, low), (roof_front - 0.03, high), (post + 0.03, high), (post + 0.03, low)]), glass
    )
    sketch.paint(
        polygon([(window_base + 0.07, low), (roof_rear + 0.03, high), (post - 0.03, high), (post - 0.03, low)]), glass
    )

    nose = [(half, sill), (half + 0.03, -0.12), (half - 0.02, bonnet + 0.03), (screen_base, belt), (window_base, belt)]
    tail = [(-half + 0.02, belt + 0.02), (-half, -0.1), (-half + 0.02, sill)]
    sketch.paint(polygon(nose + tail), paint)
    sketch.mark("windscreen base", (screen_base, belt + 0.015))
    sketch.paint(polygon([(-half, sill), (-half, sill - 0.07), (half, sill - 0.07), (half, sill)]), trim)
    sketch.paint(limb((post, belt + 0.03), (post, sill - 0.08), 0.012, 0.012), shaded(paint, 0.55))
    handle = (post - 0.14, belt + 0.1)
    sketch.paint(limb((handle[0] - 0.06, handle[1]), (handle[0] + 0.06, handle[1]), 0.028, 0.028), rim)
    sketch.mark("door handle", handle)

    headlight = (half - 0.06, bonnet + chance.between(0.1, 0.14))
    sketch.paint(
        smooth(
            [
                (half + 0.02, headlight[1] - 0.07),
                (half + 0.02, headlight[1] + 0.07),
                (half - 0.17, headlight[1] + 0.06),
                (half - 0.14, headlight[1] - 0.06),
            ]
        ),
        lamp,
    )
    sketch.mark("headlight", headlight)
    tail_light = (-half + 0.06, belt + chance.between(0.11, 0.17))
    sketch.paint(
        polygon(
            [
                (tail_light[0] - 0.06, tail_light[1] - 0.09),
                (tail_light[0] + 0.05, tail_light[1] - 0.07),
                (tail_light[0] + 0.05, tail_light[1] + 0.08),
                (tail_light[0] - 0.06, tail_light[1] + 0.08),
            ]
        ),
        brake_lamp,
    )
    sketch.mark("tail light", tail_light)

    for name, x in (
        ("front wheel", chance.between(0.5, 0.66) * half),
        ("rear wheel", -chance.between(0.5, 0.7) * half),
    ):
        centre = (x, sill)
        sketch.paint(ellipse(centre, radius * 1.15, radius * 1.15), shaded(paint, 0.45))
        sketch.paint(ellipse(centre, radius, radius), tyre)
        sketch.paint(ellipse(centre, radius * 0.52, radius * 0.52), rim)
        sketch.paint(ellipse(centre, radius * 0.14, radius * 0.14, corners=12), trim)
        sketch.mark(name, centre)
    return sketch.finish()
