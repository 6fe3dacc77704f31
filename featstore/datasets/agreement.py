"""Whether annotations and pictures agree: what cannot be meant is refused, what is smaller is counted in a note.

Annotations are checked one by one where they are read; here they are held against the sizes of the pictures, against
their boxes and against each other. A slip is what lies at most 2 pixels or 2 % of the image's side beyond; published
benchmarks have such. Nothing here changes a number but padding, which becomes absent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.records import MIRRORED, AnnotatedPairs, Dataset, Numbers, Points, SizeOf, ThetaRule
from featstore.errors import DatasetError
from matcher.pairs import Integers

Note = Callable[[str], None]

_PIXELS, _SHARE = 2, 0.02
"""A slip: beyond by at most so many pixels, or by at most this share of the image's side."""

_MANY = 0.05
"""Keypoints far outside their images are no slips any more from this share of a data set on."""

_MOST = 0.2
"""The same of keypoints far outside their boxes, which may leave out what is thin (masts, tails, handles)."""

_FEW = 3
"""So many keypoints are too few to say anything of a data set."""

_SMALLEST = 4
"""Pixels of a side from which on coordinates of 0 to 1 are told from pixels."""

_CROWD = 10
"""Distinct keypoints that all lie in the upper left quarter of their images by chance once in a million sets."""

_SAME = 0.01
"""Pixels. Two lists that differ by less were rounded differently."""

_PART = 1 << 17
"""Keypoints that are looked at at a time where a list may have any number of them."""

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Marks:
    """Some keypoints of a data set's pairs: row 2n is point n in the source, 2n + 1 in the target. Side 2p is the
    source of pair p, 2p + 1 its target.

    rows: (M,), ascending. sizes: (I, 2) of `pairs.images`. pair: (N,) of each point. owner: (S,) one number for each
    image and box.
    """

    dataset: Dataset
    pairs: AnnotatedPairs
    sizes: Numbers
    pair: NDArray[np.int32]
    owner: Integers
    rows: Places

    @classmethod
    def of(cls, dataset: Dataset, pairs: AnnotatedPairs, size_of: SizeOf) -> Self:
        """None of the keypoints yet."""
        sizes = pairs.image_sizes(size_of).astype(np.float64)
        columns = *np.nan_to_num(pairs.boxes.reshape(-1, 4), nan=np.inf).T, pairs.ends.reshape(-1)
        order, new = _sorted(*columns)
        owner = np.empty(len(order), dtype=np.int32)
        owner[order] = np.cumsum(new) - 1
        pair = np.repeat(np.arange(len(pairs), dtype=np.int32), pairs.counts)
        return cls(dataset, pairs, sizes, pair, owner, np.empty(0, dtype=np.int64))

    def distinct(self, chosen: Mask) -> Self:
        """Those that are `chosen`, (2N,), each image's once, although images recur in many pairs; twice where two
        annotations differ in them or in the box."""
        found = self
        for start in range(0, len(chosen), _PART):
            part = start + np.flatnonzero(chosen[start : start + _PART])
            found = replace(self, rows=np.concatenate([found.rows, part]))
            found = found.once(self.owner[found.side])
        return found

    def once(self, whose: Integers) -> Self:
        """The first of those of one name and place, by whose they are, (M,)."""
        firsts = _firsts(*self.points.T, self.name, whose)
        return self if len(firsts) == len(self.rows) else self.chosen(firsts)

    def chosen(self, rows: Places | Mask) -> Self:
        """Some of the keypoints."""
        return replace(self, rows=self.rows[rows])

    @cached_property
    def points(self) -> Points:
        """(M, 2)."""
        return self.pairs.coordinates.reshape(-1, 2)[self.rows]

    @cached_property
    def name(self) -> Integers:
        """(M,)."""
        return self.pairs.keypoints[1][self.rows // 2]

    @cached_property
    def side(self) -> Places:
        """(M,)."""
        return 2 * self.pair[self.rows // 2] + self.rows % 2

    @cached_property
    def image(self) -> Integers:
        """(M,) among `pairs.images`."""
        return self.pairs.ends.reshape(-1)[self.side]

    @property
    def own_sizes(self) -> Numbers:
        """(M, 2) of each keypoint's image."""
        return self.sizes[self.image]

    def of_images(self, chosen: Mask) -> tuple[Places, Places]:
        """How many keypoints each image has, and how many of those that are `chosen`, (M,); both (I,)."""
        count = len(self.sizes)
        return np.bincount(self.image, minlength=count), np.bincount(self.image[chosen], minlength=count)

    def refusal(self, side: int, sentence: str) -> DatasetError:
        """Of a side's annotation, whose place begins the sentence."""
        return DatasetError(f"{self.place(side)}{sentence}")

    def place(self, side: int) -> str:
        """The beginning of a sentence on a side's annotation: where it stands."""
        found = self.pairs.place(side // 2, side % 2)
        return f"{found}: " if found else ""

    def picture(self, side: int) -> str:
        """A side's image with its size, in words."""
        image = self.pairs.ends[side // 2, side % 2]
        width, height = self.sizes[image]
        return f"{self.pairs.images[image]} ({width:g}x{height:g} pixels)"

    def keypoint(self, row: int) -> str:
        """A keypoint in words."""
        x, y = self.points[row]
        return f"{self.pairs.keypoints[0][self.name[row]]!r} of {self.pairs.images[self.image[row]]} at {x:g}, {y:g}"

    def counted(self, found: Mask, words: str, what: str = "keypoints") -> Iterator[str]:
        """A note that begins with how many are found, and of which kind; none where there are none."""
        if found.any():
            yield f"{int(found.sum())} {what} of {self.dataset.name}{words}."

    def exemplified(self, found: Mask, words: str) -> Iterator[str]:
        """The same of keypoints, (M,), with the first of them."""
        if found.any():
            yield from self.counted(found, f", e.g. {self.keypoint(int(found.argmax()))}, {words}")


def agreeing(dataset: Dataset, pairs: AnnotatedPairs, size_of: SizeOf, note: Note) -> AnnotatedPairs:
    """The pairs of a data set, held against its pictures; keypoints that only pad a list are taken out of them.

    Args:
        dataset: the data set that the pairs are of.
        pairs: some of its pairs.
        size_of: the pictures' own sizes.
        note: takes a sentence for each kind of slip, with its count.

    Raises:
        DatasetError: for what cannot be meant: other sizes than the pictures', coordinates in another unit, boxes that
            are inverted, beyond the picture or not around the object, keypoints outside their pictures.
    """
    if not pairs:
        return pairs
    marks = _Marks.of(dataset, pairs, size_of)
    padded = _padding(marks)
    kept = _without(marks, padded)
    pads = marks.distinct(padded)
    shown = marks.distinct(~(padded | np.isnan(pairs.coordinates[..., 0].reshape(-1))))
    pads, distinct = (own.once(own.image) for own in (pads, shown))
    checks = _check_sizes(marks), _check_units(distinct), _check_boxes(shown), _check_inside(distinct)
    for sentence in [*chain(*checks, _doubts(pads, distinct))]:  # nothing is said of what is refused
        note(sentence)
    return kept


def _sorted(*columns: NDArray[Any]) -> tuple[Places, Mask]:
    """The places of rows, (M,) a column, sorted by the last column, then the one before; and which of them are the
    first of their values."""
    order = np.lexsort(columns)
    new = np.ones(len(order), dtype=bool)
    new[1:] = False
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    return order, new


def _firsts(*columns: NDArray[Any]) -> Places:
    """The place of the first row of each combination of values, ascending."""
    order, new = _sorted(*columns)
    return np.sort(order[new])


def _far(beyond: Numbers, sizes: Numbers) -> Mask:
    """Which (M,) of pixels beyond a border, (M, 2) for both axes, are more than a slip."""
    far: Mask = np.any(beyond > np.maximum(_PIXELS, _SHARE * sizes), axis=1)
    return far


def _beyond(points: Points, low: Numbers | float, high: Numbers) -> Numbers:
    """How far (M, 2) points lie outside from `low` to `high`, (M, 2), on each axis; 0 inside."""
    return np.maximum(np.maximum(low - points, points - high), 0)


# Padding


def _padding(marks: _Marks) -> Mask:
    """Which keypoints of all pairs, (2N,), stand for absent ones.

    -1, -1 and the like lie in no image. 0, 0 is a corner where an object may begin: it is padding where an image has
    it for two keypoints, where the object's box is elsewhere, and without boxes where several images have it.
    """
    pairs = marks.pairs
    x, y = pairs.coordinates.reshape(-1, 2).T
    mirrored = np.array([image.endswith(MIRRORED) for image in pairs.images])[pairs.ends]  # (P, 2)
    if mirrored.any():  # lists are padded before images are mirrored
        image = pairs.ends[marks.pair].reshape(-1)
        x = np.where(mirrored[marks.pair].reshape(-1), marks.sizes[image, 0] - x, x)
    padded: Mask = (x == y) & (x < 0)
    corners = replace(marks, rows=np.flatnonzero((x == 0) & (y == 0)))
    if len(corners.rows):
        alone = corners.chosen(_firsts(corners.name, corners.image))
        images, counts = np.unique(alone.image, return_counts=True)
        boxes = pairs.boxes.reshape(-1, 4)[corners.side]
        twice = np.isin(corners.image, images[counts > 1])
        elsewhere = _far(_beyond(corners.points, boxes[:, :2], boxes[:, 2:]), corners.own_sizes)
        shared = np.isnan(boxes[:, 0]) & (len(images) > 1)
        padded[corners.rows] = twice | elsewhere | shared
    return padded


def _without(marks: _Marks, padded: Mask) -> AnnotatedPairs:
    """The pairs without padding. Raises `DatasetError` where a pair has no other keypoint."""
    pairs = marks.pairs
    if not padded.any():
        return pairs
    coordinates = pairs.coordinates.copy()
    before = ~np.isnan(coordinates[:, 0, 0])
    coordinates[padded.reshape(-1, 2)] = np.nan
    common = ~np.isnan(coordinates[..., 0]).any(axis=1)
    for row in map(int, np.flatnonzero(np.add.reduceat(common, pairs.starts, dtype=np.int64) == 0)):
        source, target, _ = pairs.named(row)
        what = f"the pair {source} -> {target} has no keypoint that both images show"
        pads = f"{before[marks.pair == row].sum()} at 0, 0 or -1, -1, which pad the list"
        raise marks.refusal(2 * row, f"{what}, but {pads}; leave the pair out.")
    return pairs.moved(coordinates)


# What is refused


def _check_sizes(marks: _Marks) -> Iterator[str]:
    """Sizes that annotations state, against the pictures' own."""
    sizes, stated = marks.sizes[marks.pairs.ends.reshape(-1)], marks.pairs.stated.reshape(-1, 2)
    off, turned = (np.abs(own - sizes) for own in (stated, stated[:, ::-1]))  # NaN: nothing stated
    far, slips = _far(off, sizes), np.any(off > 0, axis=1)
    if not slips.any():
        return
    side = int((far if far.any() else slips).argmax())
    what, count = f"a size that is off by at most {np.nanmax(off):g} pixels; the image's own is taken", slips.sum()
    if far.any():
        # A list that states height x width throughout is a matter of spelling; a single such image was turned.
        if _far(turned, sizes).any():
            width, height = stated[side]
            what = f"an image of {width:g}x{height:g} pixels, but {marks.picture(side)} is of another size"
            advice = "restore the image, or annotations made for this one (sizes count as stored: EXIF turns nothing)"
            raise marks.refusal(side, f"the annotation is of {what}; {advice}.")
        what, count = "the image's size as height x width", far.sum()
    yield f"{marks.place(side)}{int(count)} annotations state {what}."


def _check_units(marks: _Marks) -> Iterator[str]:
    """Keypoints of which no pixel is meant: all within one pixel of the corner."""
    image, large = marks.image, marks.own_sizes >= _SMALLEST
    tiny = np.all((np.abs(marks.points) <= 1) & large, axis=1)
    total, small = marks.of_images(tiny)
    wrong = (small == total) & (small > 1)
    everywhere = tiny.all() and len(tiny) > 1
    if wrong.any() or everywhere:
        row = int((tiny & (wrong[image] | everywhere)).argmax())
        side, (width, height) = int(marks.side[row]), marks.own_sizes[row]
        what = f"all {total[image[row]]} keypoints of {marks.picture(side)} lie within one pixel of its corner"
        advice = f"write pixels, x times {width:g} and y times {height:g}"
        raise marks.refusal(side, f"{what}, as coordinates from 0 to 1 do; {advice}.")
    crowded = len(marks.points) >= _CROWD and len(np.unique(image)) > 1
    if crowded and large.all() and not (marks.points > marks.own_sizes / 2).any():
        x, y = marks.points.max(axis=0)
        what = f"all {len(marks.points)} keypoints lie in the upper left quarter of their images, none beyond"
        question = "are they in pixels of these images, not in percent or of smaller ones?"
        yield f"{marks.place(int(marks.side[0]))}{what} {x:g}, {y:g}: {question}"


def _check_boxes(marks: _Marks) -> Iterator[str]:
    """Boxes against the picture and the keypoints inside."""
    of_sides, images = marks.pairs.boxes.reshape(-1, 4), marks.pairs.ends.reshape(-1)
    _, sides = np.unique(marks.owner, return_index=True)
    sides = sides[~np.isnan(of_sides[sides, 0])]  # (B,) one side of each box, which recurs in many pairs
    boxes, sizes = of_sides[sides], marks.sizes[images[sides]]
    low, high = boxes[:, :2], boxes[:, 2:]

    def refuse(wrong: Mask, what: str) -> None:
        if wrong.any():
            side = int(sides[wrong][0])
            box = ", ".join(f"{value:g}" for value in of_sides[side])
            advice = "write keypoints and box in pixels of this image, the box as x1, y1, x2, y2"
            raise marks.refusal(side, f"the bounding box {box} of {marks.picture(side)} {what}; {advice}.")

    over = np.maximum(_beyond(low, 0, sizes), _beyond(high, 0, sizes))  # (B, 2)
    tiny = np.all((np.abs(boxes) <= 1) & np.tile(sizes >= _SMALLEST, 2), axis=1)
    refuse(tiny, "lies within one pixel of the corner, as coordinates from 0 to 1 do")
    refuse(np.any(low > high, axis=1), "is inverted: x1 is beyond x2, or y1 beyond y2")
    refuse(_far(over, sizes), f"reaches over {_PIXELS} pixels and {100 * _SHARE:g} % beyond the image")

    # each box's keypoints once: those in annotations that have this box
    own = marks.chosen(_firsts(marks.name, marks.owner[marks.side]))
    box_of = np.full(marks.owner.max() + 1, -1)
    box_of[marks.owner[sides]] = np.arange(len(sides))
    own = own.chosen(box_of[marks.owner[own.side]] >= 0)
    owner, points = box_of[marks.owner[own.side]], own.points

    def outside(points: Points, low: Numbers, high: Numbers) -> Mask:
        return _far(_beyond(points, low[owner], high[owner]), sizes[owner])

    out = outside(points, low, high)
    total, missed = (np.bincount(some, minlength=len(boxes)) for some in (owner, owner[out]))
    few = (missed > 1) & (2 * missed > total)
    held = [f"{count - left} of the {count}" for count, left in zip(total[few], missed[few], strict=True)][:1]
    refuse(few, f"holds only {''.join(held)} keypoints that the object shows")
    if out.sum() >= _FEW and out.mean() > _MANY:
        as_extent = outside(points, low, low + high) | _far(_beyond(low + high, 0, sizes), sizes).any()
        for left, reading in (
            (as_extent, "as x, y, width, height"),
            (outside(points[:, ::-1], low, high), "with x and y exchanged"),
        ):
            refuse((missed > 0) & (4 * left.sum() <= out.sum()), f"leaves keypoints out that it holds {reading}")
        share = f"{int(out.sum())} of {len(out)} keypoints of {marks.dataset.name} lie outside their boxes"
        refuse((missed > 0) & (out.mean() > _MOST), f"leaves keypoints out, as others do: {share}")
    recurring = np.bincount(images[sides]) > 1
    yield from marks.counted(np.any(over > 0, axis=1), " reach beyond their image a little", "boxes")
    yield from marks.counted(out, " lie outside their object's box")
    yield from marks.counted(recurring, " have another box in one annotation than in another", "images")


def _check_inside(marks: _Marks) -> Iterator[str]:
    """Keypoints against their pictures' borders. The border itself, x = W, is inside."""
    sizes, image = marks.own_sizes, marks.image
    beyond = _beyond(marks.points, 0, sizes)
    far, absurd = _far(beyond, sizes), np.any(beyond > sizes, axis=1)
    turned = _far(_beyond(marks.points[:, ::-1], 0, sizes), sizes)
    total, missed = marks.of_images(far)
    hopeless = (missed > 1) & (2 * missed >= total)  # (I,)
    many = far.sum() >= _FEW and far.mean() > _MANY
    exchanged = far.sum() > 1 and not turned.any()
    if far.any() and (hopeless.any() or many or exchanged or absurd.any()):
        of_one = hopeless.any() and not many
        chosen = hopeless[image] if of_one else np.ones_like(far)
        row = int((far & chosen if of_one or many or exchanged else absurd).argmax())
        (width, height), side = sizes[row], int(marks.side[row])
        count = f"{int((far & chosen).sum())} of {int(chosen.sum())}"
        advice = "exchange x and y, which puts them inside" if not turned[chosen].any() else "correct them"
        what = f"{count} keypoints of {marks.dataset.name} lie far outside their image, e.g. {marks.keypoint(row)}"
        reason = "x, y count in pixels of the image as stored"
        raise marks.refusal(side, f"{what} of its {width:g}x{height:g} pixels; {advice}: {reason}.")
    whose = ", after theta was measured on them" if marks.dataset.theta_rule is ThetaRule.KEYPOINTS else ""
    outside = np.any(beyond > 0, axis=1)
    yield from marks.counted(outside, f" lie outside their image and are moved to its border{whose}")


# What is noted


def _doubts(pads: _Marks, marks: _Marks) -> Iterator[str]:
    """What annotations say of themselves: padding, corners, two keypoints in one place, two lists that differ."""
    everything = np.ones(len(pads.rows), dtype=bool)
    yield from pads.exemplified(everything, "only pad its lists and are taken as absent")
    corner = "lie in the very corner and are taken as they are; leave them empty where they are absent"
    yield from marks.exemplified(np.all(marks.points == 0, axis=1), corner)
    own = marks.chosen(np.lexsort([marks.name, *marks.points.T, marks.image]))
    moved = np.any(np.diff(own.points, axis=0), axis=1) | (np.diff(own.image) != 0)
    same = np.append(~moved & (np.diff(own.name) != 0), False)
    yield from own.exemplified(same, "lie exactly where another of their image does")
    own = marks.chosen(np.lexsort([marks.name, marks.image]))
    key = own.image.astype(np.int64) * len(own.pairs.keypoints[0]) + own.name
    differs = (np.diff(key) == 0) & np.any(np.abs(np.diff(own.points, axis=0)) > _SAME, axis=1)
    if differs.any():
        keys, row = len(np.unique(key[:-1][differs])), int(differs.argmax())
        one, other = (f"{own.keypoint(at)} ({own.place(int(own.side[at]))[:-2]})" for at in (row, row + 1))
        what = "are elsewhere in one annotation than in another of the same image"
        yield f"{keys} keypoints of {marks.dataset.name} {what}, e.g. {one} and {other}."
