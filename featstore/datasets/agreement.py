"""Whether annotations and pictures agree: what cannot be meant is refused, what is smaller is counted in a note.

Annotations are checked one by one where they are read; here they are held against the sizes of the pictures, against
their boxes and against each other. A slip is what lies at most 2 pixels or 2 % of the image's side beyond; published
benchmarks have such. Nothing here changes a number but padding, which becomes absent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.records import MIRRORED, Box, Dataset, Pair, Points, ThetaRule
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
class _Marks:
    """All keypoints of all pairs, side by side. Side 2p is the source of pair p, 2p + 1 its target.

    images: I ids. sizes: (I, 2). names: K. image: (S,) each side's place in `images`. boxes: (S, 4), stated: (S, 2) the
    size that the annotation states; NaN where it has none. side, name: (N,) of each keypoint, points: (N, 2). The
    keypoints that only a target shows stand behind those of the pair.
    """

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

    def chosen(self, rows: Places | Mask) -> "_Marks":
        """Some of the keypoints."""
        return replace(self, side=self.side[rows], name=self.name[rows], points=self.points[rows])

    @property
    def key(self) -> Places:
        """(N,) one number per image and keypoint's name."""
        keys: Places = self.image[self.side] * len(self.names) + self.name
        return keys

    @property
    def row_sizes(self) -> Numbers:
        """(N, 2) of each keypoint's image."""
        sizes: Numbers = self.sizes[self.image[self.side]]
        return sizes

    def place(self, side: int) -> str:
        """The beginning of a sentence on a side's annotation: where it stands."""
        pair = self.pairs[side // 2]
        found = pair.target_place if side % 2 else pair.source_place
        return f"{found}: " if found else ""

    def picture(self, side: int) -> str:
        """A side's image with its size, in words."""
        return f"{self.images[self.image[side]]} ({self.extent(side)} pixels)"

    def extent(self, side: int) -> str:
        """The size of a side's image, in words."""
        width, height = self.sizes[self.image[side]]
        return f"{width:g}x{height:g}"

    def keypoint(self, row: int) -> str:
        """A keypoint in words."""
        x, y = self.points[row]
        return f"{self.names[self.name[row]]!r} of {self.images[self.image[self.side[row]]]} at {x:g}, {y:g}"


def agreeing(dataset: Dataset, pairs: Sequence[Pair], size_of: SizeOf, note: Note) -> tuple[Pair, ...]:
    """The pairs of a data set, held against its pictures; keypoints that only pad a list are taken out of them.

    size_of: the pictures' own sizes. note: takes a sentence for each kind of slip, with its count. Raises
    `DatasetError` for what cannot be meant: other sizes than the pictures', coordinates in another unit, boxes that are
    inverted, beyond the picture or not around the object, keypoints outside their pictures.
    """
    marks = _collect(pairs, size_of)
    padded = _padding(marks)
    kept = _without(marks, padded)
    shown = marks.chosen(~padded)
    distinct = _distinct(shown)
    sentences = [*_check_sizes(marks), *_check_units(distinct), *_check_boxes(shown, dataset.name)]
    sentences += _check_inside(distinct, dataset)
    sentences += _doubts(marks, padded, distinct, dataset.name)
    for sentence in sentences:
        note(sentence)
    return kept


def _collect(pairs: Sequence[Pair], size_of: SizeOf) -> _Marks:
    images: dict[str, int] = {}
    names: dict[str, int] = {}
    image: list[int] = []
    boxes: list[Box] = []
    stated: list[tuple[float, float]] = []
    codes: list[int] = []
    counts: list[int] = []
    points: list[Points] = []
    absent = float("nan")
    for pair in pairs:
        own = [names.setdefault(name, len(names)) for name in pair.names]
        only = [names.setdefault(name, len(names)) for name in pair.target_only]
        image += [images.setdefault(pair.source, len(images)), images.setdefault(pair.target, len(images))]
        boxes += [box or (absent,) * 4 for box in (pair.source_box, pair.target_box)]
        stated += [size or (absent,) * 2 for size in (pair.source_size, pair.target_size)]
        codes += [*own, *own, *only]
        counts += [len(own), len(own) + len(only)]
        points += [pair.source_points, pair.target_points]
        if only:
            points.append(np.array(list(pair.target_only.values())))
    return _Marks(
        pairs=pairs,
        images=tuple(images),
        sizes=np.array([size_of(identifier) for identifier in images], dtype=np.float64).reshape(-1, 2),
        names=tuple(names),
        image=np.array(image, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        stated=np.array(stated, dtype=np.float64).reshape(-1, 2),
        side=np.repeat(np.arange(len(counts)), counts),
        name=np.array(codes, dtype=np.int64),
        points=np.concatenate([np.empty((0, 2)), *points]),
    )


def _distinct(marks: _Marks) -> _Marks:
    """Each image's keypoints once, although images recur in many pairs; twice where two annotations differ."""
    _, first, inverse = np.unique(marks.key, return_index=True, return_inverse=True)
    differs = _either(marks.points != marks.points[first][inverse])
    return marks.chosen(np.union1d(first, np.flatnonzero(differs)))


def _far(beyond: Numbers, sizes: Numbers) -> Mask:
    """Which (N,) of pixels beyond a border, (N, 2) for both axes, are more than a slip."""
    return _either(beyond > np.maximum(_PIXELS, _SHARE * sizes))


def _either(axes: Mask) -> Mask:
    """Where (N, 2) is true on one axis or both."""
    return axes[:, 0] | axes[:, 1]


def _both(axes: Mask) -> Mask:
    return axes[:, 0] & axes[:, 1]


def _beyond(points: Points, low: Numbers, high: Numbers) -> Numbers:
    """How far (N, 2) points lie outside from `low` to `high`, both (N, 2), on each axis; 0 inside."""
    outside: Numbers = np.maximum(np.maximum(low - points, points - high), 0)
    return outside


# Padding


def _padding(marks: _Marks) -> Mask:
    """Which keypoints (N,) stand for absent ones.

    -1, -1 and the like lie in no image. 0, 0 is a corner where an object may begin: it is padding where an image has
    it for two keypoints, where the object's box is elsewhere, and without boxes where several images have it.
    """
    points = marks.points.copy()
    # lists are padded before images are mirrored
    mirrored = np.array([identifier.endswith(MIRRORED) for identifier in marks.images], dtype=bool)[
        marks.image[marks.side]
    ]
    points[mirrored, 0] = marks.row_sizes[mirrored, 0] - points[mirrored, 0]
    negative = (points[:, 0] == points[:, 1]) & (points[:, 0] < 0)
    zero = _both(points == 0)
    if not zero.any():
        return negative
    keys = np.unique(marks.key[zero])
    images, counts = np.unique(keys // len(marks.names), return_counts=True)
    twice = np.isin(marks.image[marks.side], images[counts > 1])
    boxes = marks.boxes[marks.side]
    elsewhere = _far(_beyond(marks.points, boxes[:, :2], boxes[:, 2:]), marks.row_sizes)
    shared = np.isnan(boxes[:, 0]) & (len(images) > 1)
    padded: Mask = negative | (zero & (twice | elsewhere | shared))
    return padded


def _without(marks: _Marks, padded: Mask) -> tuple[Pair, ...]:
    """The pairs without padding. Raises `DatasetError` where a pair has no other keypoint."""
    if not padded.any():
        return tuple(marks.pairs)
    ends = np.cumsum(np.bincount(marks.side, minlength=2 * len(marks.pairs)))
    kept = list(marks.pairs)
    for index in np.unique(marks.side[padded] // 2):
        pair = marks.pairs[index]
        count, start = len(pair.names), int(ends[2 * index] - len(pair.names))
        source, target = padded[start : start + count], padded[start + count : start + 2 * count]
        only = dict(zip(pair.target_only.items(), padded[start + 2 * count : ends[2 * index + 1]], strict=True))
        common = ~(source | target)
        if not common.any():
            raise DatasetError(
                f"{marks.place(2 * index)}the pair {pair.source} -> {pair.target} has no keypoint that both images "
                f"show, but {count} at 0, 0 or -1, -1, which pad the list; leave the pair out."
            )
        shown = {name: point for (name, point), is_padded in only.items() if not is_padded}
        alone = source & ~target  # padding in the source only
        shown |= {
            name: (float(x), float(y))
            for name, (x, y) in zip(compress(pair.names, alone), pair.target_points[alone], strict=True)
        }
        kept[index] = replace(
            pair,
            source_points=pair.source_points[common],
            target_points=pair.target_points[common],
            names=tuple(compress(pair.names, common)),
            target_only=shown,
        )
    return tuple(kept)


# What is refused


def _check_sizes(marks: _Marks) -> list[str]:
    """Sizes that annotations state, against the pictures' own."""
    sizes = marks.sizes[marks.image]
    off = np.abs(marks.stated - sizes)  # NaN where nothing is stated
    turned = np.abs(marks.stated[:, ::-1] - sizes)
    far, far_turned = _far(off, sizes), _far(turned, sizes)
    if far.any():
        # A list that states height x width throughout is a matter of spelling; a single such image was turned.
        spelled = not (far & far_turned).any() and not (~far & far_turned).any()
        if not spelled:
            side = int(np.flatnonzero(far)[0])
            width, height = marks.stated[side]
            raise DatasetError(
                f"{marks.place(side)}the annotation is of an image of {width:g}x{height:g} pixels, but "
                f"{marks.picture(side)} is of another size; restore the image, or annotations made for this one (sizes "
                "count as stored: EXIF turns nothing)."
            )
        return [f"{_first_place(marks, far)}{int(far.sum())} annotations state the image's size as height x width."]
    slips = _either(off > 0)
    if not slips.any():
        return []
    return [
        f"{_first_place(marks, slips)}{int(slips.sum())} annotations state a size that is off by at most "
        f"{np.nanmax(off):g} pixels; the image's own is taken."
    ]


def _first_place(marks: _Marks, sides: Mask) -> str:
    return marks.place(int(np.flatnonzero(sides)[0]))


def _check_units(marks: _Marks) -> list[str]:
    """Keypoints of which no pixel is meant: all within one pixel of the corner."""
    image = marks.image[marks.side]
    tiny = _both((np.abs(marks.points) <= 1) & (marks.row_sizes >= _SMALLEST))
    total, small = (np.bincount(rows, minlength=len(marks.images)) for rows in (image, image[tiny]))
    wrong = (small == total) & (small > 1)
    everywhere = tiny.all() and len(tiny) > 1
    if wrong.any() or everywhere:
        row = int(np.flatnonzero(tiny & (wrong[image] | everywhere))[0])
        side = int(marks.side[row])
        width, height = marks.sizes[image[row]]
        raise DatasetError(
            f"{marks.place(side)}all {total[image[row]]} keypoints of {marks.picture(side)} lie within one pixel of "
            f"its corner, as coordinates from 0 to 1 do; write pixels, x times {width:g} and y times {height:g}."
        )
    crowded = len(marks.points) >= _CROWD and len(np.unique(image)) > 1
    if crowded and (marks.points <= marks.row_sizes / 2).all() and (marks.row_sizes >= _SMALLEST).all():
        x, y = marks.points.max(axis=0)
        return [
            f"{marks.place(int(marks.side[0]))}all {len(marks.points)} keypoints lie in the upper left quarter of "
            f"their images, none beyond {x:g}, {y:g}: are they in pixels of these images, not in percent or of smaller "
            "ones?"
        ]
    return []


def _check_boxes(marks: _Marks, name: str) -> list[str]:
    """Boxes against the picture and the keypoints inside."""
    boxed = np.flatnonzero(~np.isnan(marks.boxes[:, 0]))
    if not len(boxed):
        return []
    # an image's box recurs in each of its pairs
    table = np.column_stack([marks.image[boxed], marks.boxes[boxed]])
    _, first, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
    sides = boxed[first]  # (B,) one side of each box
    boxes, sizes = marks.boxes[sides], marks.sizes[marks.image[sides]]
    low, high = boxes[:, :2], boxes[:, 2:]

    tiny = _both((np.abs(low) <= 1) & (np.abs(high) <= 1) & (sizes >= _SMALLEST))
    over = np.maximum(_beyond(low, np.zeros_like(sizes), sizes), _beyond(high, np.zeros_like(sizes), sizes))  # (B, 2)
    _refuse_box(marks, sides, tiny, "lies within one pixel of the corner, as coordinates from 0 to 1 do")
    _refuse_box(marks, sides, _either(low > high), "is inverted: x1 is beyond x2, or y1 beyond y2")
    _refuse_box(
        marks, sides, _far(over, sizes), f"reaches over {_PIXELS} pixels and {100 * _SHARE:g} % beyond the image"
    )

    # each box's keypoints once: those in annotations that have this box
    box_of = np.full(len(marks.image), -1)
    box_of[boxed] = inverse.reshape(-1)
    owner = box_of[marks.side]
    _, rows = np.unique(owner * len(marks.names) + marks.name, return_index=True)
    rows = rows[owner[rows] >= 0]
    owner, points = owner[rows], marks.points[rows]
    out = _far(_beyond(points, low[owner], high[owner]), sizes[owner])
    total, missed = (np.bincount(some, minlength=len(boxes)) for some in (owner, owner[out]))
    few = (missed > 1) & (2 * missed > total)
    held = [f"{count - left} of the {count}" for count, left in zip(total[few], missed[few], strict=True)][:1]
    _refuse_box(marks, sides, few, f"holds only {''.join(held)} keypoints that the object shows")
    if out.sum() >= _FEW and out.mean() > _MANY:
        far_high = _far(_beyond(low + high, np.zeros_like(sizes), sizes), sizes)
        as_extent = _far(_beyond(points, low[owner], (low + high)[owner]), sizes[owner]) | far_high.any()
        turned = _far(_beyond(points[:, ::-1], low[owner], high[owner]), sizes[owner])
        for left, reading in ((as_extent, "as x, y, width, height"), (turned, "with x and y exchanged")):
            what = f"leaves keypoints out that it holds {reading}"
            _refuse_box(marks, sides, (missed > 0) & (4 * left.sum() <= out.sum()), what)
        share = f"{int(out.sum())} of {len(out)} keypoints of {name} lie outside their boxes"
        _refuse_box(marks, sides, (missed > 0) & (out.mean() > _MOST), f"leaves keypoints out, as others do: {share}")
    recurring = np.bincount(marks.image[sides], minlength=len(marks.images)) > 1
    return [
        *_counted(_either(over > 0), f"boxes of {name} reach beyond their image a little."),
        *_counted(out, f"keypoints of {name} lie outside their object's box."),
        *_counted(recurring, f"images of {name} have another box in one annotation than in another."),
    ]


def _counted(found: Mask, what: str) -> list[str]:
    return [f"{int(found.sum())} {what}"] if found.any() else []


def _refuse_box(marks: _Marks, sides: Places, wrong: Mask, what: str) -> None:
    """Raise `DatasetError` naming the first box that is wrong, (B,), the box of the side `sides`, (B,)."""
    if not wrong.any():
        return
    side = int(sides[wrong][0])
    box = ", ".join(f"{value:g}" for value in marks.boxes[side])
    raise DatasetError(
        f"{marks.place(side)}the bounding box {box} of {marks.picture(side)} {what}; write keypoints and box in pixels "
        "of this image, the box as x1, y1, x2, y2."
    )


def _check_inside(marks: _Marks, dataset: Dataset) -> list[str]:
    """Keypoints against their pictures' borders. The border itself, x = W, is inside."""
    sizes, image = marks.row_sizes, marks.image[marks.side]
    beyond = _beyond(marks.points, np.zeros_like(sizes), sizes)
    far = _far(beyond, sizes)
    if far.any():
        turned = _far(_beyond(marks.points[:, ::-1], np.zeros_like(sizes), sizes), sizes)
        total, missed = (np.bincount(rows, minlength=len(marks.images)) for rows in (image, image[far]))
        hopeless = (missed > 1) & (2 * missed >= total)  # (I,)
        many = far.sum() >= _FEW and far.mean() > _MANY
        exchanged = far.sum() > 1 and not turned.any()
        absurd = _either(beyond > sizes)
        if hopeless.any() or many or exchanged or absurd.any():
            of_one = hopeless.any() and not many
            chosen = hopeless[image] if of_one else np.ones_like(far)
            blamed = far & chosen if of_one or many or exchanged else absurd
            row = int(np.flatnonzero(blamed)[0])
            side = int(marks.side[row])
            count = f"{int((far & chosen).sum())} of {int(chosen.sum())}"
            advice = "exchange x and y, which puts them inside" if not turned[chosen].any() else "correct them"
            raise DatasetError(
                f"{marks.place(side)}{count} keypoints of {dataset.name} lie far outside their image, e.g. "
                f"{marks.keypoint(row)} of its {marks.extent(side)} pixels; {advice}: x, y count in pixels of the "
                "image as stored."
            )
    outside = _either(beyond > 0)
    if not outside.any():
        return []
    whose = ", after theta was measured on them" if dataset.theta_rule is ThetaRule.KEYPOINTS else ""
    return [
        f"{int(outside.sum())} keypoints of {dataset.name} lie outside their image and are moved to its border{whose}."
    ]


# What is noted


def _doubts(marks: _Marks, padded: Mask, distinct: _Marks, name: str) -> list[str]:
    """What annotations say of themselves: padding, corners, two keypoints in one place, two lists that differ."""
    sentences = []
    if padded.any():
        pads = _distinct(marks.chosen(padded))
        sentences.append(
            f"{len(pads.points)} keypoints of {name}, e.g. {pads.keypoint(0)}, only pad its lists and are taken as "
            "absent."
        )
    corner = _both(distinct.points == 0)
    if corner.any():
        row = int(np.flatnonzero(corner)[0])
        sentences.append(
            f"{int(corner.sum())} keypoints of {name}, e.g. {distinct.keypoint(row)}, lie in the very corner and are "
            "taken as they are; leave them empty where they are absent."
        )
    rows = np.lexsort([distinct.name, *distinct.points.T, distinct.image[distinct.side]])
    ordered = distinct.chosen(rows)
    same = _both(np.diff(ordered.points, axis=0) == 0) & (np.diff(ordered.image[ordered.side]) == 0)
    same &= np.diff(ordered.name) != 0
    if same.any():
        row = int(np.flatnonzero(same)[0])
        sentences.append(
            f"{int(same.sum())} keypoints of {name}, e.g. {ordered.keypoint(row)}, lie exactly where another of their "
            "image does."
        )
    by_key = np.argsort(distinct.key, kind="stable")
    own = distinct.chosen(by_key)
    differs = (np.diff(own.key) == 0) & _either(np.abs(np.diff(own.points, axis=0)) > _SAME)
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        keys = len(np.unique(own.key[:-1][differs]))
        sentences.append(
            f"{keys} keypoints of {name} are elsewhere in one annotation than in another of the same image, e.g. "
            f"{own.keypoint(row)} ({own.place(int(own.side[row]))[:-2]}) and {own.keypoint(row + 1)} "
            f"({own.place(int(own.side[row + 1]))[:-2]})."
        )
    return sentences
