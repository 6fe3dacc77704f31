"""Whether annotations and pictures agree: what cannot be meant is refused, what is smaller is counted in a note.

Annotations are checked one by one where they are read; here they are held against the sizes of the pictures, against
their boxes and against each other. A slip is what lies at most 2 pixels or 2 % of the image's side beyond; published
benchmarks have such. Nothing here changes a number but padding, which becomes absent.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from math import nan
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.records import MIRRORED, Dataset, Pair, Points, ThetaRule
from featstore.errors import DatasetError

SizeOf = Callable[[str], tuple[int, int]]
"""An image's (width, height) in pixels as stored, by its id."""

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

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """All keypoints of all pairs of a data set, side by side. Side 2p is the source of pair p, 2p + 1 its target.

    images: I ids. sizes: (I, 2). names: K. image: (S,) each side's place in `images`. boxes: (S, 4), stated: (S, 2) the
    size that the annotation states; NaN where it has none. side, name: (N,) of each keypoint, points: (N, 2). The
    keypoints that only a target shows stand behind those of the pair.
    """

    dataset: Dataset
    pairs: Sequence[Pair]
    images: tuple[str, ...]
    sizes: Numbers
    names: tuple[str, ...]
    image: Places
    boxes: Numbers
    stated: Numbers
    side: Places
    name: Places
    points: Points

    @classmethod
    def of(cls, dataset: Dataset, pairs: Sequence[Pair], size_of: SizeOf) -> Self:
        """Of one pair or more."""
        sides = [
            side
            for pair in pairs
            for side in (
                (pair.source, pair.source_points, pair.source_box, pair.source_size, pair.names),
                (pair.target, pair.shown, pair.target_box, pair.target_size, (*pair.names, *pair.target_only)),
            )
        ]
        images, image = _numbered(identifier for identifier, *_ in sides)
        names, name = _numbered(name for *_, own in sides for name in own)
        return cls(
            dataset=dataset,
            pairs=pairs,
            images=images,
            sizes=np.array([size_of(identifier) for identifier in images], dtype=np.float64),
            names=names,
            image=image,
            boxes=np.array([box or (nan,) * 4 for _, _, box, *_ in sides], dtype=np.float64),
            stated=np.array([size or (nan,) * 2 for *_, size, _ in sides], dtype=np.float64),
            side=np.repeat(np.arange(len(sides)), [len(own) for *_, own in sides]),
            name=name,
            points=np.concatenate([points for _, points, *_ in sides]),
        )

    def chosen(self, rows: Places | Mask) -> Self:
        """Some of the keypoints."""
        return replace(self, side=self.side[rows], name=self.name[rows], points=self.points[rows])

    @property
    def row_images(self) -> Places:
        """(N,) each keypoint's image."""
        return self.image[self.side]

    @property
    def row_sizes(self) -> Numbers:
        """(N, 2) of each keypoint's image."""
        return self.sizes[self.row_images]

    @property
    def key(self) -> Places:
        """(N,) one number per image and keypoint's name."""
        return self.row_images * len(self.names) + self.name

    def of_images(self, chosen: Mask) -> tuple[Places, Places]:
        """How many keypoints each image has, and how many of those that are `chosen`, (N,); both (I,)."""
        count = len(self.images)
        return np.bincount(self.row_images, minlength=count), np.bincount(self.row_images[chosen], minlength=count)

    def distinct(self) -> Self:
        """Each image's keypoints once, although images recur in many pairs; twice where two annotations differ."""
        _, first, inverse = np.unique(self.key, return_index=True, return_inverse=True)
        differs = np.any(self.points != self.points[first][inverse], axis=1)
        return self.chosen(np.union1d(first, np.flatnonzero(differs)))

    def refusal(self, side: int, sentence: str) -> DatasetError:
        """Of a side's annotation, whose place begins the sentence."""
        return DatasetError(f"{self.place(side)}{sentence}")

    def place(self, side: int) -> str:
        """The beginning of a sentence on a side's annotation: where it stands."""
        pair = self.pairs[side // 2]
        found = pair.target_place if side % 2 else pair.source_place
        return f"{found}: " if found else ""

    def picture(self, side: int) -> str:
        """A side's image with its size, in words."""
        width, height = self.sizes[self.image[side]]
        return f"{self.images[self.image[side]]} ({width:g}x{height:g} pixels)"

    def keypoint(self, row: int) -> str:
        """A keypoint in words."""
        x, y = self.points[row]
        return f"{self.names[self.name[row]]!r} of {self.images[self.row_images[row]]} at {x:g}, {y:g}"

    def counted(self, found: Mask, words: str, what: str = "keypoints") -> Iterator[str]:
        """A note that begins with how many are found, and of which kind; none where there are none."""
        if found.any():
            yield f"{int(found.sum())} {what} of {self.dataset.name}{words}."

    def exemplified(self, found: Mask, words: str) -> Iterator[str]:
        """The same of keypoints, (N,), with the first of them."""
        if found.any():
            yield from self.counted(found, f", e.g. {self.keypoint(int(found.argmax()))}, {words}")


def agreeing(dataset: Dataset, pairs: Sequence[Pair], size_of: SizeOf, note: Note) -> tuple[Pair, ...]:
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
        return ()
    marks = _Columns.of(dataset, pairs, size_of)
    padded = _padding(marks)
    kept = _without(marks, padded)
    shown, pads = marks.chosen(~padded), marks.chosen(padded).distinct()
    distinct = shown.distinct()
    checks = _check_sizes(marks), _check_units(distinct), _check_boxes(shown), _check_inside(distinct)
    for sentence in [*chain(*checks, _doubts(pads, distinct))]:  # nothing is said of what is refused
        note(sentence)
    return kept


def _numbered(names: Iterable[str]) -> tuple[tuple[str, ...], Places]:
    """The distinct ones of some names, as they come, and the place of each name among them."""
    names = list(names)
    known = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return tuple(known), np.array([known[name] for name in names], dtype=np.int64)


def _far(beyond: Numbers, sizes: Numbers) -> Mask:
    """Which (N,) of pixels beyond a border, (N, 2) for both axes, are more than a slip."""
    far: Mask = np.any(beyond > np.maximum(_PIXELS, _SHARE * sizes), axis=1)
    return far


def _beyond(points: Points, low: Numbers | float, high: Numbers) -> Numbers:
    """How far (N, 2) points lie outside from `low` to `high`, (N, 2), on each axis; 0 inside."""
    return np.maximum(np.maximum(low - points, points - high), 0)


# Padding


def _padding(marks: _Columns) -> Mask:
    """Which keypoints (N,) stand for absent ones.

    -1, -1 and the like lie in no image. 0, 0 is a corner where an object may begin: it is padding where an image has
    it for two keypoints, where the object's box is elsewhere, and without boxes where several images have it.
    """
    points = marks.points.copy()
    # lists are padded before images are mirrored
    mirrored = np.array([identifier.endswith(MIRRORED) for identifier in marks.images])[marks.row_images]
    points[mirrored, 0] = marks.row_sizes[mirrored, 0] - points[mirrored, 0]
    negative: Mask = (points[:, 0] == points[:, 1]) & (points[:, 0] < 0)
    zero = np.all(points == 0, axis=1)
    if not zero.any():
        return negative
    images, counts = np.unique(np.unique(marks.key[zero]) // len(marks.names), return_counts=True)
    twice = np.isin(marks.row_images, images[counts > 1])
    boxes = marks.boxes[marks.side]
    elsewhere = _far(_beyond(marks.points, boxes[:, :2], boxes[:, 2:]), marks.row_sizes)
    shared = np.isnan(boxes[:, 0]) & (len(images) > 1)
    return negative | (zero & (twice | elsewhere | shared))


def _without(marks: _Columns, padded: Mask) -> tuple[Pair, ...]:
    """The pairs without padding. Raises `DatasetError` where a pair has no other keypoint."""
    kept = list(marks.pairs)
    starts = np.searchsorted(marks.side, np.arange(2 * len(kept) + 1))
    for index in np.unique(marks.side[padded] // 2):
        pair, (source, target, end) = kept[index], starts[2 * index : 2 * index + 3]
        count = len(pair.names)
        common = ~(padded[source:target] | padded[target : target + count])
        if not common.any():
            what = f"the pair {pair.source} -> {pair.target} has no keypoint that both images show"
            pads = f"{count} at 0, 0 or -1, -1, which pad the list"
            raise marks.refusal(2 * index, f"{what}, but {pads}; leave the pair out.")
        names = tuple(compress(pair.names, common))
        shown = {marks.names[marks.name[row]]: marks.points[row] for row in range(target, end) if not padded[row]}
        kept[index] = replace(
            pair,
            source_points=pair.source_points[common],
            target_points=pair.target_points[common],
            names=names,
            target_only={name: (float(x), float(y)) for name, (x, y) in shown.items() if name not in names},
        )
    return tuple(kept)


# What is refused


def _check_sizes(marks: _Columns) -> Iterator[str]:
    """Sizes that annotations state, against the pictures' own."""
    sizes = marks.sizes[marks.image]
    off, turned = (np.abs(stated - sizes) for stated in (marks.stated, marks.stated[:, ::-1]))  # NaN: nothing stated
    far, slips = _far(off, sizes), np.any(off > 0, axis=1)
    if not slips.any():
        return
    side = int((far if far.any() else slips).argmax())
    what, count = f"a size that is off by at most {np.nanmax(off):g} pixels; the image's own is taken", slips.sum()
    if far.any():
        # A list that states height x width throughout is a matter of spelling; a single such image was turned.
        if _far(turned, sizes).any():
            width, height = marks.stated[side]
            what = f"an image of {width:g}x{height:g} pixels, but {marks.picture(side)} is of another size"
            advice = "restore the image, or annotations made for this one (sizes count as stored: EXIF turns nothing)"
            raise marks.refusal(side, f"the annotation is of {what}; {advice}.")
        what, count = "the image's size as height x width", far.sum()
    yield f"{marks.place(side)}{int(count)} annotations state {what}."


def _check_units(marks: _Columns) -> Iterator[str]:
    """Keypoints of which no pixel is meant: all within one pixel of the corner."""
    image, large = marks.row_images, marks.row_sizes >= _SMALLEST
    tiny = np.all((np.abs(marks.points) <= 1) & large, axis=1)
    total, small = marks.of_images(tiny)
    wrong = (small == total) & (small > 1)
    everywhere = tiny.all() and len(tiny) > 1
    if wrong.any() or everywhere:
        row = int((tiny & (wrong[image] | everywhere)).argmax())
        side, (width, height) = int(marks.side[row]), marks.row_sizes[row]
        what = f"all {total[image[row]]} keypoints of {marks.picture(side)} lie within one pixel of its corner"
        advice = f"write pixels, x times {width:g} and y times {height:g}"
        raise marks.refusal(side, f"{what}, as coordinates from 0 to 1 do; {advice}.")
    crowded = len(marks.points) >= _CROWD and len(np.unique(image)) > 1
    if crowded and large.all() and not (marks.points > marks.row_sizes / 2).any():
        x, y = marks.points.max(axis=0)
        what = f"all {len(marks.points)} keypoints lie in the upper left quarter of their images, none beyond"
        question = "are they in pixels of these images, not in percent or of smaller ones?"
        yield f"{marks.place(int(marks.side[0]))}{what} {x:g}, {y:g}: {question}"


def _check_boxes(marks: _Columns) -> Iterator[str]:
    """Boxes against the picture and the keypoints inside."""
    boxed = np.flatnonzero(~np.isnan(marks.boxes[:, 0]))
    # an image's box recurs in each of its pairs
    table = np.column_stack([marks.image[boxed], marks.boxes[boxed]])
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    sides = boxed[first]  # (B,) one side of each box
    boxes, sizes = marks.boxes[sides], marks.sizes[marks.image[sides]]
    low, high = boxes[:, :2], boxes[:, 2:]

    def refuse(wrong: Mask, what: str) -> None:
        if wrong.any():
            side = int(sides[wrong][0])
            box = ", ".join(f"{value:g}" for value in marks.boxes[side])
            advice = "write keypoints and box in pixels of this image, the box as x1, y1, x2, y2"
            raise marks.refusal(side, f"the bounding box {box} of {marks.picture(side)} {what}; {advice}.")

    over = np.maximum(_beyond(low, 0, sizes), _beyond(high, 0, sizes))  # (B, 2)
    tiny = np.all((np.abs(boxes) <= 1) & np.tile(sizes >= _SMALLEST, 2), axis=1)
    refuse(tiny, "lies within one pixel of the corner, as coordinates from 0 to 1 do")
    refuse(np.any(low > high, axis=1), "is inverted: x1 is beyond x2, or y1 beyond y2")
    refuse(_far(over, sizes), f"reaches over {_PIXELS} pixels and {100 * _SHARE:g} % beyond the image")

    # each box's keypoints once: those in annotations that have this box
    box_of = np.full(len(marks.image), -1)
    box_of[boxed] = inverse.reshape(-1)
    owner = box_of[marks.side]
    _, rows = np.unique(owner * len(marks.names) + marks.name, return_index=True)
    rows = rows[owner[rows] >= 0]
    owner, points = owner[rows], marks.points[rows]

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
    recurring = np.bincount(marks.image[sides], minlength=len(marks.images)) > 1
    yield from marks.counted(np.any(over > 0, axis=1), " reach beyond their image a little", "boxes")
    yield from marks.counted(out, " lie outside their object's box")
    yield from marks.counted(recurring, " have another box in one annotation than in another", "images")


def _check_inside(marks: _Columns) -> Iterator[str]:
    """Keypoints against their pictures' borders. The border itself, x = W, is inside."""
    sizes, image = marks.row_sizes, marks.row_images
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


def _doubts(pads: _Columns, marks: _Columns) -> Iterator[str]:
    """What annotations say of themselves: padding, corners, two keypoints in one place, two lists that differ."""
    everything = np.ones(len(pads.points), dtype=bool)
    yield from pads.exemplified(everything, "only pad its lists and are taken as absent")
    corner = "lie in the very corner and are taken as they are; leave them empty where they are absent"
    yield from marks.exemplified(np.all(marks.points == 0, axis=1), corner)
    own = marks.chosen(np.lexsort([marks.name, *marks.points.T, marks.row_images]))
    moved = np.any(np.diff(own.points, axis=0), axis=1) | (np.diff(own.row_images) != 0)
    same = np.append(~moved & (np.diff(own.name) != 0), False)
    yield from own.exemplified(same, "lie exactly where another of their image does")
    own = marks.chosen(np.argsort(marks.key, kind="stable"))
    differs = (np.diff(own.key) == 0) & np.any(np.abs(np.diff(own.points, axis=0)) > _SAME, axis=1)
    if differs.any():
        keys, row = len(np.unique(own.key[:-1][differs])), int(differs.argmax())
        one, other = (f"{own.keypoint(at)} ({own.place(int(own.side[at]))[:-2]})" for at in (row, row + 1))
        what = "are elsewhere in one annotation than in another of the same image"
        yield f"{keys} keypoints of {marks.dataset.name} {what}, e.g. {one} and {other}."
