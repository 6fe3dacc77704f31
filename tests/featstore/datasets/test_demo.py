"""The demo dataset: what it promises is held against its own pixels, and against another process."""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featstore.datasets.demo import SIZES, TEST_PAIRS, DemoDataset
from featstore.datasets.demo_drawing.picture import SUBJECTS, compose, painted, render
from featstore.datasets.records import ThetaRule
from featstore.errors import DatasetError

DATASET = DemoDataset()
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


def test_lists_every_split_of_every_category_once() -> None:
    images = DATASET.images()
    assert [image.id for image in images] == sorted({image.id for image in images})
    assert len(images) == len(SUBJECTS) * sum(SIZES.values())
    assert {image.category for image in images} == set(SUBJECTS) >= {"bird", "car", "fish", "person"}
    assert DATASET.name == "demo"
    assert DATASET.splits == ("trn", "val", "test")
    assert DATASET.theta_rule is ThetaRule.BOX


def test_no_picture_is_in_two_splits_or_twice_in_one() -> None:
    digests = [hashlib.sha256(DATASET.read(image)).digest() for image in DATASET.images()]
    assert len(set(digests)) == len(digests)


def test_pictures_are_the_same_in_another_process_and_order() -> None:
    chosen = [image for image in DATASET.images() if image.id.endswith(("trn0007", "test0003"))]
    here = {image.id: hashlib.sha256(DATASET.read(image)).hexdigest() for image in chosen}
    program = (
        "import hashlib, sys\n"
        "from featstore.datasets.demo import DemoDataset\n"
        "data = DemoDataset()\n"
        "for image in reversed(data.images()):\n"
        "    if image.id in sys.argv[1:]: print(image.id, hashlib.sha256(data.read(image)).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *here], capture_output=True, text=True, check=True)
    assert dict(line.split() for line in done.stdout.splitlines()) == here


def test_geometry_does_not_move() -> None:
    """The shipped model and its tests stand on these drawings: a change of the drawing must be meant (and raises
    VERSION in demo_drawing/chance.py)."""
    figures = {category: compose(category, "test", 0) for category in SUBJECTS}
    points = {
        category: [round(value, 2) for value in next(iter(f.keypoints.values()))] for category, f in figures.items()
    }
    assert points == GEOMETRY


GEOMETRY = {"bird": [73.18, 90.81], "car": [92.6, 35.71], "fish": [15.77, 64.08], "person": [18.48, 81.82]}


def test_files_are_binary_ppm_that_pillow_reads_back() -> None:
    image = DATASET.images()[0]
    data = DATASET.read(image)
    assert data.startswith(b"P6\n128 128\n255\n")
    assert len(data) == 15 + 3 * SIDE * SIDE
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PPM"
        assert np.array_equal(np.asarray(opened), np.asarray(render(image.category, "test", 0)))


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


@pytest.mark.parametrize("split", ["trn", "val", "test"])
def test_pairs_share_category_and_keypoints(split: str) -> None:
    pairs = DATASET.pairs(split)
    split_of = {image.id: image.file.split(":")[1] for image in DATASET.images()}
    each = TEST_PAIRS if split == "test" else SIZES[split] * (SIZES[split] - 1)
    assert len(pairs) == len(SUBJECTS) * each
    assert len({(pair.source, pair.target) for pair in pairs}) == len(pairs)
    for pair in pairs[::7]:
        assert pair.source != pair.target
        assert split_of[pair.source] == split_of[pair.target] == split
        assert pair.source.split("/")[0] == pair.target.split("/")[0] == pair.category
        assert set(pair.names) <= set(SUBJECTS[pair.category].keypoints)
        assert pair.source_points.shape == pair.target_points.shape == (len(pair.names), 2)
        source = compose(pair.category, split, int(pair.source[-4:]))
        target = compose(pair.category, split, int(pair.target[-4:]))
        assert set(pair.names) == set(source.keypoints) & set(target.keypoints)
        assert [source.keypoints[name] for name in pair.names] == [tuple(point) for point in pair.source_points]
        assert [target.keypoints[name] for name in pair.names] == [tuple(point) for point in pair.target_points]
        assert pair.target_box is not None
        left, top, right, bottom = pair.target_box
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        assert max(right - left, bottom - top) > 0.4 * SIDE


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


def test_unknown_splits_and_pictures_are_refused() -> None:
    with pytest.raises(DatasetError, match="training"):
        DATASET.pairs("training")
    image = DATASET.images()[0]
    for file in ("", "bird", "bird:trn:60", "bird:pretrain-0:1", "whale:trn:1", "bird:trn:-1"):
        with pytest.raises(DatasetError, match="no picture of the demo"):
            DATASET.read(replace(image, file=file))
