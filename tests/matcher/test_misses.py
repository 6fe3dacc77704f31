"""What became of each point: known confusions, told apart without exception; GeoAware-SC's subset by its code."""

import json
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from featstore.datasets.groups import alike, mirrored
from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from matcher.configuration import Frame, Pad
from matcher.errors import MatchError
from matcher.misses import KINDS, Kind, geometry_aware, kinds, shares
from matcher.pairs import Pairs, PixelFrame
from matcher.pck import Matches, tabulate

GOLDEN = Path(__file__).parents[1] / "golden" / "geometry_aware.safetensors"
GROUPS = json.loads((Path(__file__).parents[1] / "golden" / "geometry_aware_groups.json").read_bytes())

NAMES = ("left eye", "right eye", "left ear", "right ear", "nose", "tail")
PLACES = np.array([[20, 20], [60, 20], [20, 60], [60, 60], [40, 40], [90, 90]], dtype=float)
"""Far apart: at theta = 100 and alpha = 0.05, a keypoint's 5 pixels and the 10 that count as near touch no other's."""
SIZES = {"cat/a": (100, 100), "cat/b": (200, 100)}


def drawn(shown: Collection[int]) -> Pairs:
    """A pair whose source shows some of the keypoints, and whose target, twice as wide, shows all."""
    own, rest = sorted(shown), [place for place in range(len(NAMES)) if place not in shown]
    target = PLACES * (2, 1)
    pair = Pair(
        source="cat/a",
        target="cat/b",
        category="cat",
        source_points=PLACES[own],
        target_points=target[own],
        names=tuple(NAMES[place] for place in own),
        target_only={NAMES[place]: (target[place, 0], target[place, 1]) for place in rest},
    )
    return to_resized_frame(AnnotatedPairs.of([pair]), ThetaRule.IMAGE, SIZES.__getitem__, 100)


def label(pairs: Pairs, predicted: NDArray[np.float64], frame: PixelFrame | None = None) -> list[Kind]:
    matches = Matches(pairs, {"nn": predicted.astype(np.float32)})
    return [KINDS[place] for place in kinds(matches, "nn", 0.05, partial(mirrored, "folder"), frame)]


def other_side(name: str) -> int:
    turned = name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")
    return NAMES.index(turned)


@pytest.mark.parametrize("shown", [range(6), (0, 2, 4), (1, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_known_confusions_are_told_apart(shown: Collection[int], seed: int) -> None:
    """Every point is put where each kind of mistake would put it, a little beside."""
    pairs, random = drawn(shown), np.random.default_rng(seed)
    names = [NAMES[place] for place in sorted(shown)]
    beside = random.uniform(-3, 3, (len(names), 2))
    truths = PLACES[sorted(shown)]
    assert label(pairs, truths + beside) == [Kind.RIGHT] * len(names)
    assert label(pairs, truths + np.array((7, 0))) == [Kind.NEAR] * len(names)
    for name in names:  # every other keypoint, whether the source shows it or not
        for place, taken in enumerate(NAMES):
            if taken == name:
                continue
            predicted = truths + beside
            predicted[names.index(name)] = PLACES[place] + beside[0]
            has_side = other_side(name) != NAMES.index(name)
            expected = Kind.MIRRORED if has_side and place == other_side(name) else Kind.OTHER
            assert label(pairs, predicted)[names.index(name)] is expected
    assert label(pairs, np.full((len(names), 2), (75.0, 5.0))) == [Kind.ELSEWHERE] * len(names)


def test_a_frame_of_its_own_and_strict_thresholds() -> None:
    """A resized x is two of the original: what is 4 beside is right here and near there."""
    pairs = drawn(range(6))
    original, image = PixelFrame(Frame.ORIGINAL, 100), PLACES
    # theta is 200 there, so that 10 are right, 20 are near, and 4 resized are 8
    assert label(pairs, image + np.array((4, 0)), original) == [Kind.RIGHT] * 6
    assert label(pairs, image + np.array((6, 0)), original) == [Kind.NEAR] * 6
    assert label(pairs, image + np.array((0, 6)), original) == [Kind.RIGHT] * 6
    there = image[[1, 0, 3, 2, 5, 4]]
    assert label(pairs, there, original)[:4] == [Kind.MIRRORED] * 4
    on_it = drawn(range(6)).resized.target_points.astype(float) + np.array((5, 0))  # exactly alpha theta
    assert label(pairs, on_it) == [Kind.RIGHT] * 6
    assert label(replace(pairs, strict=True), on_it) == [Kind.NEAR] * 6


def test_shares_sum_to_1() -> None:
    pairs = drawn(range(6))
    matches = Matches(pairs, {"nn": PLACES[[0, 0, 0, 0, 0, 0]].astype(np.float32)})
    found = shares(matches, kinds(matches, "nn", 0.05, partial(mirrored, "folder"))).named()
    assert list(found) == ["cat", "all"]
    assert found["all"] == pytest.approx(
        {Kind.RIGHT: 1 / 6, Kind.NEAR: 0, Kind.MIRRORED: 1 / 6, Kind.OTHER: 4 / 6, Kind.ELSEWHERE: 0}
    )


def test_what_targets_show_must_be_known() -> None:
    pairs = replace(drawn(range(6)), unmatched=None)
    with pytest.raises(MatchError, match="not known which keypoints the targets show"):
        label(pairs, PLACES)


def test_names_that_differ_in_a_side_are_mirrored() -> None:
    names = ["left_eye", "right_eye", "L_knee", "R_knee", "nearHand", "farHand", "leftover", "nose", "right tip"]
    expected = {"left_eye": "right_eye", "L_knee": "R_knee", "nearHand": "farHand"}
    assert mirrored("folder", "cat", names) == expected | {other: one for one, other in expected.items()}
    assert set(alike("folder", "cat", names)) == {frozenset(pair) for pair in expected.items()}


AP10K = (
    *("left_eye", "right_eye", "nose", "neck", "root_of_tail", "left_shoulder", "left_elbow", "left_front_paw"),
    *("right_shoulder", "right_elbow", "right_front_paw", "left_hip", "left_knee", "left_back_paw", "right_hip"),
    *("right_knee", "right_back_paw"),
)


def test_the_groups_are_geoaware_scs() -> None:
    def several(groups: list[int | list[int]], names: Collection[str]) -> set[frozenset[str]]:
        return {frozenset(list(names)[one] for one in group) for group in groups if isinstance(group, list)}

    ids = tuple(map(str, range(30)))
    for category, groups in GROUPS["spair_subset_groups"].items():
        assert set(alike("spair", category, ids)) == several(groups, ids)
    for category, groups in GROUPS["spair_flip_groups_training"].items():
        found = {frozenset(pair) for pair in mirrored("spair", category, ids).items()}
        assert found == several(groups, ids)
    assert set(alike("ap10k", "lion", AP10K)) == several(GROUPS["ap10k_subset_groups"], AP10K)
    found = {frozenset(pair) for pair in mirrored("ap10k", "lion", AP10K).items()}
    assert found == several(GROUPS["ap10k_flip_groups"], AP10K)


@pytest.mark.parametrize("category", ["cat", "bus", "tvmonitor"])
def test_geometry_aware_points_are_geoaware_scs(category: str) -> None:
    golden = {
        name.removeprefix(f"{category}."): own for name, own in load_file(GOLDEN).items() if name.startswith(category)
    }
    kps, sizes, pairs = golden["kps"].astype(float), golden["size_wh"].astype(int).tolist(), []
    ends = golden["pairs"].astype(int).tolist()
    for source, target in ends:
        seen = [kps[image, :, 2] > 0 for image in (source, target)]
        both, more = np.flatnonzero(seen[0] & seen[1]), np.flatnonzero(~seen[0] & seen[1])
        pairs.append(
            Pair(
                *(f"{category}/{source}", f"{category}/{target}", category),
                *(kps[image, both, :2] for image in (source, target)),
                tuple(map(str, both)),
                target_box=tuple(golden["box_xyxy"][target].tolist()),
                target_only={str(one): (kps[target, one, 0], kps[target, one, 1]) for one in more},
            )
        )
    size_of = {f"{category}/{image}": tuple(size) for image, size in enumerate(sizes)}
    framed = to_resized_frame(AnnotatedPairs.of(pairs), ThetaRule.BOX, size_of.__getitem__, 840, Pad.SQUARE)
    framed = replace(framed, strict=True)
    predicted = [golden["pred"][row, list(map(int, pair.names or ()))] for row, pair in enumerate(framed)]
    matches = Matches(framed, {"nn": np.concatenate(predicted)})
    mask = geometry_aware(matches, partial(alike, "spair"))
    for row, pair in enumerate(framed):
        own = np.zeros(30, dtype=bool)
        start, count = framed.span(row)
        own[list(map(int, pair.names or ()))] = mask[start : start + count]
        np.testing.assert_array_equal(own, golden["subset_mask"][row] > 0)
    alphas = tuple(float(np.float32(alpha)) for alpha in (0.1, 0.05, 0.01))
    aware = matches.only(mask)
    assert (len(aware), int(mask.sum())) == (golden["n_images_subset"], golden["n_points_subset"])
    pck = tabulate(aware, alphas).values["nn"]
    for average, own in (("image", pck.image), ("point", pck.point)):
        found = [own[alpha].overall for alpha in alphas]
        assert found == pytest.approx(golden[f"pck_{average}_subset"].tolist(), abs=1e-6)
