"""The plain matcher against SD4Match's evaluator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from matcher.configuration import LayerSpec, MatchSettings
from matcher.maps import MapsInMemory
from matcher.pairs import MatchingPair
from matcher.pck import Average, MatchedPair, tabulate
from matcher.sweep import evaluate

GOLDEN = Path(__file__).parents[1] / "golden" / "matching.safetensors"
ALPHAS = (0.05, 0.1, 0.15)


SD4MATCH = ["nn", "bilinear", "softmax", "kernelsoftmax"]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def matched(golden: dict[str, torch.Tensor]) -> list[MatchedPair]:
    maps, pairs = {}, []
    for index, count in enumerate(golden["n_pts"].tolist()):
        maps[f"source{index}", "only", None] = golden["src"][index]
        maps[f"target{index}", "only", None] = golden["trg"][index]
        pairs.append(
            MatchingPair(
                f"source{index}",
                f"target{index}",
                "thing",
                golden["src_kps"][index, :count].numpy(),
                golden["trg_kps"][index, :count].numpy(),
                float(golden["pck_threshold"][index]),
            )
        )
    return evaluate(
        pairs,
        MapsInMemory(maps),
        [LayerSpec("only", None, 1.0)],
        SD4MATCH,
        MatchSettings(96),
        torch.device("cpu"),
    )


@pytest.mark.parametrize("readout", SD4MATCH)
def test_predictions(golden: dict[str, torch.Tensor], matched: list[MatchedPair], readout: str) -> None:
    for index, found in enumerate(matched):
        expected = golden[f"pred_{readout}"][index, : len(found.pair.source_points)].numpy()
        np.testing.assert_allclose(found.predictions[readout], expected, atol=1e-3)


@pytest.mark.parametrize("average", list(Average))
def test_pck(golden: dict[str, torch.Tensor], matched: list[MatchedPair], average: Average) -> None:
    table = tabulate(matched, ALPHAS)
    average_of_one = Average.POINT if average is Average.CATEGORY else average  # all are of one category
    expected = golden[f"pck_{average_of_one.value}"].numpy()
    for row, readout in enumerate(SD4MATCH):
        for column, alpha in enumerate(ALPHAS):
            assert table.values[readout][average][alpha].overall == pytest.approx(expected[row, column], abs=1e-6)
