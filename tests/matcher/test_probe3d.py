"""What became of each point, against probe3d's own errors: the distance to the truth and to the nearest keypoint that
the target shows."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from matcher.misses import KINDS, Kind, kinds
from matcher.pairs import Pairs
from matcher.pck import Matches, tabulate

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "probe3d.safetensors")
SIZE, CELLS, ALPHAS = 160, 10, (0.1, 0.2)


def listed() -> Pairs:
    """Its pairs, whose boxes are as long as its theta says."""
    pairs = []
    for row, (a, b, theta) in enumerate(zip(GOLDEN["kps_a"], GOLDEN["kps_b"], GOLDEN["theta"], strict=True)):
        both, alone = (np.flatnonzero((b[:, 2] > 0) & shown) for shown in (a[:, 2] > 0, a[:, 2] == 0))
        pairs.append(
            Pair(
                source=f"cat/{row}a",
                target=f"cat/{row}b",
                category="cat",
                source_points=a[both, :2].astype(float),
                target_points=b[both, :2].astype(float),
                names=tuple(map(str, both)),
                target_box=(0.0, 0.0, float(theta) * SIZE, 1.0),
                target_only={str(point): (float(b[point, 0]), float(b[point, 1])) for point in alone},
            )
        )
    return to_resized_frame(AnnotatedPairs.of(pairs), ThetaRule.BOX, lambda _: (SIZE, SIZE), SIZE)


def predicted() -> list[np.ndarray]:
    """Their nearest neighbours by their words: sampled at x / S * (w - 1), found at column / w, in pixels of both."""
    found = []
    for (first, second), a, b in zip(GOLDEN["maps"], GOLDEN["kps_a"], GOLDEN["kps_b"], strict=True):
        units = [own / np.maximum(np.linalg.norm(own, axis=0), 1e-12) for own in (first, second)]
        for x, y, _ in a[(a[:, 2] > 0) & (b[:, 2] > 0)]:
            u, v = x / SIZE * (CELLS - 1), y / SIZE * (CELLS - 1)
            column, row = min(int(u), CELLS - 2), min(int(v), CELLS - 2)
            right, down = u - column, v - row
            corners = units[0][:, row : row + 2, column : column + 2]
            descriptor = corners @ (1 - right, right) @ (1 - down, down)
            place = np.einsum("c,chw->hw", descriptor, units[1]).argmax()
            found.append(np.array([place % CELLS, place // CELLS]) / CELLS * SIZE)
    return found


@pytest.mark.parametrize("place", range(2))
def test_kinds_of_misses_follow_from_their_errors(place: int) -> None:
    pairs, alpha = listed(), ALPHAS[place]
    matches = Matches(pairs, {"nn": np.array(predicted(), dtype=np.float32)})
    own, nearest = GOLDEN["error_same"], GOLDEN["error_nearest"]
    found = [KINDS[kind] for kind in kinds(matches, "nn", alpha, lambda *_: {})]
    expected = [
        Kind.RIGHT
        if same < alpha
        else Kind.NEAR
        if same < 2 * alpha
        else Kind.OTHER
        if other < alpha
        else Kind.ELSEWHERE
        for same, other in zip(own, nearest, strict=True)
    ]
    assert found == expected
    assert len(set(expected)) >= 3
    recall = 100 * tabulate(matches, [alpha]).values["nn"].point[alpha].overall
    assert recall == pytest.approx(GOLDEN["recall"][place], abs=1e-5)
