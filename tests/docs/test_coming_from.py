"""The pages for those who come from DIFT and SD4Match: the very commands that they print for the demo are run, and the
peers' evaluators, written plainly, give the same numbers from the files that were exported."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from featstore.datasets.pictures import original_size
from featstore.datasets.registry import open_dataset
from tests.docs.pages import DOCS, Reader
from tests.docs.peers import Array, PeerPair, averages, dift, sd4match

A_FEW_POINTS = 5e-4
"""By which PCK may differ: three of the demo's 5,667 points, where two cells are equally like to float32's rounding."""


def demo_pairs(separator: str, with_suffix: bool) -> Iterator[PeerPair]:
    """The demo's test pairs, as annotations would have them that name images by their files (DIFT), or by identifiers
    (SD4Match)."""
    dataset = open_dataset("demo", None)
    images = {image.id: image for image in dataset.images()}
    names = {
        own: (PurePosixPath(image.file).name if with_suffix else own.replace("/", separator))
        for own, image in images.items()
    }
    sizes = {own: original_size(image, dataset.read(image)) for own, image in images.items()}
    for pair in dataset.pairs("test"):
        box = pair.target_box
        assert box is not None
        ends = names[pair.source], names[pair.target], pair.category
        yield PeerPair(*ends, pair.source_points, pair.target_points, box, sizes[pair.source], sizes[pair.target])


def scores(file: Path) -> Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]:
    """PCK by readout, average, alpha and category."""
    results: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(file.read_text())["results"]
    return results


def as_numpy(maps: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: own[0].double().numpy() for name, own in maps.items()}


@pytest.mark.slow
def test_from_dift(tmp_path: Path) -> None:
    assert Reader(tmp_path, 0).follow(DOCS / "coming-from-dift.md", {"demo"}, {"sh"}) == 1
    found = scores(tmp_path / "dift.json")["pixel"]
    right: dict[str, list[np.ndarray]] = {"all": []}
    maps = {own.stem: as_numpy(torch.load(own, weights_only=True)) for own in (tmp_path / "spair_ft").glob("*.pth")}
    for pair in demo_pairs("/", with_suffix=True):
        own = dift(pair, maps[pair.category], 0.1)
        right["all"].append(own)
        right.setdefault(pair.category, []).append(own)
    assert len(right) == 5
    for category, points in right.items():
        for average, expected in averages(points).items():
            within = A_FEW_POINTS * len(right["all"]) / len(points)
            assert found[average]["0.1"][category] == pytest.approx(expected, abs=within), (category, average)


@pytest.mark.slow
def test_from_sd4match(tmp_path: Path) -> None:
    assert Reader(tmp_path, 0).follow(DOCS / "coming-from-sd4match.md", {"demo"}, {"sh"}) == 1
    found = scores(tmp_path / "sd4match.json")
    maps = as_numpy(torch.load(tmp_path / "featmaps.pt", weights_only=True))
    alphas = (0.05, 0.1, 0.15)
    pairs = list(demo_pairs("-", with_suffix=False))
    right = [sd4match(pair, maps, alphas, size=128) for pair in pairs]
    assert set(found) == set(right[0])
    for readout in found:
        for row, alpha in enumerate(alphas):
            for category in ("all", "bird", "car", "fish", "person"):
                own = [category in ("all", pair.category) for pair in pairs]
                chosen = [found_in[readout][row] for found_in, is_own in zip(right, own, strict=True) if is_own]
                for average, expected in averages(chosen).items():
                    within = A_FEW_POINTS * len(pairs) / len(chosen)
                    ours = found[readout][average][f"{alpha:g}"][category]
                    assert ours == pytest.approx(expected, abs=within), (readout, alpha, category, average)
