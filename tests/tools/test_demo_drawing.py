"""The drawings of the demo dataset: what they promise is held against their own pixels."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tools.demo_drawing.picture import SUBJECTS, compose, painted, render

SIDE = 128
Pixel = tuple[float, float, float]


def pixel_at(category: str, split: str, number: int, name: str) -> Pixel | None:
    """Mean colour of the 3x3 pixels around a keypoint; None where it is hidden or at the edge."""
    point = compose(category, split, number).keypoints.get(name)
    if point is None or not all(2 <= value <= SIDE - 3 for value in point):
        return None
    x, y = round(point[0]), round(point[1])
    patch = np.asarray(render(category, split, number), dtype=np.float64)[y - 1 : y + 2, x - 1 : x + 2]
    red, green, blue = patch.mean(axis=(0, 1))
    return float(red), float(green), float(blue)


def test_pictures_are_textured_all_over() -> None:
    """No patch of the background is flat: matching must not be a matter of finding what is not empty."""
    for category in SUBJECTS:
        picture = np.asarray(render(category, "val", 1), dtype=np.float64)
        deviations = picture.reshape(8, 16, 8, 16, 3).std(axis=(1, 3)).mean(axis=-1)
        assert (deviations > 1).mean() > 0.9


@pytest.mark.parametrize("category", sorted(SUBJECTS))
def test_keypoints_are_named_and_inside(category: str) -> None:
    names = SUBJECTS[category].keypoints
    assert 8 <= len(names) <= 12
    assert len(set(names)) == len(names)
    seen: set[str] = set()
    for number in range(60):
        figure = compose(category, "trn", number)
        assert set(figure.keypoints) <= set(names)
        assert len(figure.keypoints) >= 4
        seen |= set(figure.keypoints)
        left, top, right, bottom = figure.box
        for x, y in figure.keypoints.values():
            assert 0 <= x <= SIDE - 1
            assert 0 <= y <= SIDE - 1
            assert left - 1 <= x <= right + 1
            assert top - 1 <= y <= bottom + 1
    assert seen == set(names)


def dark(pixel: Pixel) -> bool:
    return sum(pixel) / 3 < 110


def orange(pixel: Pixel) -> bool:
    red, green, blue = pixel
    return red > green > blue and red - blue > 40


def green(pixel: Pixel) -> bool:
    return pixel[1] > pixel[0] and pixel[1] > pixel[2]


def red(pixel: Pixel) -> bool:
    return pixel[0] > 1.5 * pixel[1] and pixel[0] > 1.3 * pixel[2]


def blue(pixel: Pixel) -> bool:
    return pixel[2] > 1.3 * pixel[0]


def yellow(pixel: Pixel) -> bool:
    return min(pixel[0], pixel[1]) > pixel[2] + 15


@pytest.mark.parametrize(
    ("category", "name", "has_its_colour"),
    [
        ("bird", "eye", dark),
        ("bird", "wing root", blue),
        ("bird", "breast", orange),
        ("fish", "eye", dark),
        ("fish", "gill", orange),
        ("car", "headlight", yellow),
        ("car", "windscreen base", red),
        ("person", "near elbow", green),
        ("person", "near knee", blue),
    ],
)
def test_keypoints_lie_on_their_parts(category: str, name: str, has_its_colour: Callable[[Pixel], bool]) -> None:
    pixels = [pixel for number in range(40) if (pixel := pixel_at(category, "trn", number, name)) is not None]
    assert len(pixels) >= 25
    assert sum(map(has_its_colour, pixels)) >= 0.9 * len(pixels)


def test_wheels_are_round_black_tyres_about_their_keypoint() -> None:
    """From the hub outwards every direction crosses something dark."""
    for number in range(10):
        picture = np.asarray(render("car", "trn", number), dtype=np.float64).mean(axis=-1)
        figure = compose("car", "trn", number)
        x, y = figure.keypoints["front wheel"]
        left, top, right, bottom = figure.box
        reach = 0.16 * max(right - left, bottom - top)
        for turn in np.linspace(0, 2 * np.pi, 8, endpoint=False):
            ray = [(x + r * np.cos(turn), y + r * np.sin(turn)) for r in np.linspace(0, reach, 30)]
            inside = [(round(u), round(v)) for u, v in ray if 0 <= u < SIDE - 0.5 and 0 <= v < SIDE - 0.5]
            if len(inside) == len(ray):
                assert min(picture[v, u] for u, v in inside) < 70


def test_objects_face_both_ways() -> None:
    """Mirroring really mirrors: the front is left of the back in about half of the pictures, and the dark eye is at
    its keypoint in either."""
    fronts = {"bird": ("beak tip", "tail tip"), "car": ("headlight", "tail light"), "fish": ("mouth", "tail base")}
    for category, (front, back) in fronts.items():
        left = right = 0
        for number in range(60):
            points = compose(category, "trn", number).keypoints
            if front in points and back in points:
                left += points[front][0] < points[back][0]
                right += points[front][0] > points[back][0]
        assert min(left, right) >= 15
    facing_left = [n for n in range(40) if _faces_left(n)]
    facing_right = [n for n in range(40) if not _faces_left(n)]
    for numbers in (facing_left, facing_right):
        pixels = [pixel for n in numbers if (pixel := pixel_at("fish", "trn", n, "eye")) is not None]
        assert sum(map(dark, pixels)) >= 0.9 * len(pixels) > 0


def _faces_left(number: int) -> bool:
    points = compose("fish", "trn", number).keypoints
    return points["eye"][0] < points["tail base"][0]


def test_poses_vary() -> None:
    """Articulated: the angle of the bird's wing to its body, and of the person's elbow, range over more than 45
    degrees, whatever the picture's own rotation."""
    for category, corner, one, other in (
        ("bird", "wing root", "wing tip", "breast"),
        ("person", "near elbow", "shoulder", "near hand"),
    ):
        angles = []
        for number in range(60):
            points = {name: np.array(point) for name, point in compose(category, "trn", number).keypoints.items()}
            if {corner, one, other} <= set(points):
                first, second = points[one] - points[corner], points[other] - points[corner]
                cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
                angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        assert np.percentile(angles, 95) - np.percentile(angles, 5) > 45


def test_box_bounds_the_painted_object() -> None:
    """The object's pixels, found by drawing it on two different grounds, fill the box, to the width of a
    pointed end that antialiasing swallows."""
    for category in SUBJECTS:
        figure = compose(category, "val", 2)
        black, white = (
            np.asarray(painted(Image.new("RGB", (SIDE, SIDE), ground), figure.parts), dtype=np.int64)
            for ground in ("black", "white")
        )
        rows, columns = np.nonzero(np.abs(white - black).sum(axis=-1) < 3 * 128)
        left, top, right, bottom = figure.box
        assert abs(columns.min() - max(left, 0)) <= 2.5
        assert abs(columns.max() - min(right, SIDE - 1)) <= 2.5
        assert abs(rows.min() - max(top, 0)) <= 2.5
        assert abs(rows.max() - min(bottom, SIDE - 1)) <= 2.5
