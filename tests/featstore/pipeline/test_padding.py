"""Padded images against GeoAware-SC's own code: pictures, keypoints, theta, predictions and PCK."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from featstore.config import EvalConfig
from featstore.datasets.pictures import resize_to_square
from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from featstore.errors import DatasetError
from featstore.pipeline.evaluate import evaluate
from featstore.pipeline.results import EvaluationRun
from matcher.configuration import Frame, Geometry, LayerSpec, MatchSettings, Pad
from matcher.errors import InputError, MatchError
from matcher.maps import MapsInMemory
from matcher.pairs import Pairs, placed
from matcher.pck import tabulate
from matcher.sweep import evaluate as match_pairs

GOLDEN = Path(__file__).parents[2] / "golden"
Arrays = dict[str, NDArray[np.float32]]

ALPHAS = tuple(float(np.float32(alpha)) for alpha in (0.1, 0.05, 0.01))
"""Theirs are float32: two of the three lie above the decimal, so that an exact tie counts although they compare by
`<`; docs/numbers.md says what that does."""


@pytest.mark.parametrize("size", [56, 48, 37])
@pytest.mark.parametrize("image", range(6))
def test_pictures_are_theirs(image: int, size: int) -> None:
    golden = load_file(GOLDEN / "padding_images.safetensors")
    padded = resize_to_square(Image.fromarray(golden[f"in{image}"]), size, Pad.SQUARE)
    np.testing.assert_array_equal(padded.transpose(1, 2, 0), golden[f"out{image}_{size}_zero"])


@pytest.mark.parametrize("size", [840, 768])
def test_scale_and_offset_are_theirs(size: int) -> None:
    golden = load_file(GOLDEN / "padding_frames.safetensors")
    extent, offset = placed(golden["size_wh"].astype(int), size, Pad.SQUARE)
    np.testing.assert_allclose(size / extent[:, 0], golden[f"scale_{size}"], rtol=1e-6)
    np.testing.assert_array_equal(offset, golden[f"offset_xy_{size}"])
    moved = golden["kps"][..., :2] * size / extent[:, None] + offset[:, None]
    seen = golden["kps"][..., 2] > 0
    np.testing.assert_allclose(moved[seen], golden[f"kps_{size}"][seen][:, :2], atol=1e-4)


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return load_file(GOLDEN / "padding_pck16.safetensors")


def common(golden: Arrays, source: int, target: int) -> NDArray[np.intp]:
    return np.flatnonzero(golden["kps"][source, :, 2] * golden["kps"][target, :, 2])


def framed(golden: Arrays, size: int, rule: ThetaRule = ThetaRule.BOX) -> Pairs:
    kps, pairs = golden["kps"].astype(np.float64), []
    for source, target in golden["pairs"].astype(int).tolist():
        both = common(golden, source, target)
        points, box = (kps[image, both, :2] for image in (source, target)), golden["box_xyxy"][target]
        pairs.append(Pair(f"cat/{source}", f"cat/{target}", "cat", *points, tuple(map(str, both)), None, tuple(box)))
    sizes = golden["size_wh"].astype(int).tolist()
    columns = AnnotatedPairs.of(pairs)
    return to_resized_frame(columns, rule, lambda image: tuple(sizes[int(image[4:])]), size, Pad.SQUARE)


@pytest.mark.parametrize(
    ("run", "readout", "more"),
    [
        ("nn_840", "nn", {}),
        ("nn_768", "nn", {}),
        ("nn_840_imgtheta", "nn", {}),
        ("soft_840", "softmax", {"beta": 0.02}),
        ("window3_840", "window", {"window": 3}),
    ],
)
def test_predictions_and_pck_are_theirs(golden: Arrays, run: str, readout: str, more: dict[str, float]) -> None:
    size = int(run.split("_")[1])
    pairs = framed(golden, size, ThetaRule.IMAGE if "theta" in run else ThetaRule.BOX)
    maps = {(f"cat/{image}", "only", None): torch.from_numpy(own) for image, own in enumerate(golden["maps"])}
    settings = MatchSettings(size, Geometry.FLOOR, pad=Pad.SQUARE, **more)  # type: ignore[arg-type]
    layers, cpu = [LayerSpec("only", None)], torch.device("cpu")
    matched = match_pairs(pairs, MapsInMemory(maps), layers, [readout], settings, cpu)
    ends = golden["pairs"].astype(int)
    tolerance = 2e-3 if readout == "nn" else 1e-2  # softmax sees that their norms have another epsilon
    theirs = [golden[f"{run}.pred"][row, common(golden, *pair)] for row, pair in enumerate(ends)]
    np.testing.assert_allclose(matched.predictions[readout], np.concatenate(theirs), atol=tolerance)
    if "theta" not in run:
        np.testing.assert_allclose(pairs.resized.theta, golden[f"frame_{size}.theta"], rtol=1e-6)
    strict = replace(pairs, strict=True)
    pck = tabulate(type(matched)(strict, matched.predictions), ALPHAS).values[readout]
    for place, alpha in enumerate(ALPHAS):
        assert 100 * pck.image[alpha].overall == pytest.approx(100 * golden[f"{run}.pck_image"][place], abs=0.01)
        assert 100 * pck.point[alpha].overall == pytest.approx(100 * golden[f"{run}.pck_point"][place], abs=0.01)


@pytest.mark.parametrize(
    ("run", "readout", "more"),
    [
        ("nn_840", "nn", {}),
        ("nn_768", "nn", {}),
        ("soft_840", "softmax", {"beta": 0.02}),
        ("kernel5_840", "kernelsoftmax", {"beta": 0.02, "sigma": 5.0}),
        ("window5_840", "window", {"window": 5}),
        ("window7_768", "window", {"window": 7}),
    ],
)
def test_their_own_sixty_cells(run: str, readout: str, more: dict[str, float]) -> None:
    test_predictions_and_pck_are_theirs(load_file(GOLDEN / "padding_pck60.safetensors"), run, readout, more)


def test_sd_dino_reads_half_a_pixel_beside() -> None:
    """It puts a cell's middle at 6.5 of its 14 pixels where GeoAware-SC has 7: docs/numbers.md."""
    golden, theirs = (load_file(GOLDEN / f"{name}.safetensors") for name in ("padding_pck60", "sd_dino_pck60"))
    pairs = framed(golden, 840)
    maps = {(f"cat/{image}", "only", None): torch.from_numpy(own) for image, own in enumerate(golden["maps"])}
    settings = MatchSettings(840, Geometry.FLOOR, pad=Pad.SQUARE)
    matched = match_pairs(pairs, MapsInMemory(maps), [LayerSpec("only", None)], ["nn"], settings, torch.device("cpu"))
    seen = theirs["kps"][:, 0, :, 2] * theirs["kps"][:, 1, :, 2] > 0  # rows are the keypoints that any pair shows
    beside = matched.predictions["nn"] - 0.5
    np.testing.assert_allclose(beside, theirs["pred"][seen], atol=1e-3)
    np.testing.assert_allclose(pairs.resized.theta, theirs["theta"], rtol=1e-6)
    strict = replace(pairs, strict=True)
    pck = tabulate(type(matched)(strict, {"nn": beside}), ALPHAS).values["nn"].point
    assert [100 * pck[alpha].overall for alpha in ALPHAS] == pytest.approx(100 * theirs["pck_point"], abs=0.01)


def write_folder(root: Path, golden: Arrays) -> None:
    """Their images in our own layout, blank, and their maps as somebody's features."""
    (root / "cat").mkdir(parents=True)
    with (root / "keypoints.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "name", "x", "y"])
        for image, (size, kps) in enumerate(zip(golden["size_wh"].astype(int), golden["kps"].tolist(), strict=True)):
            Image.new("RGB", tuple(size.tolist())).save(root / "cat" / f"{image}.png")
            rows.writerows([f"cat/{image}.png", name, x, y] for name, (x, y, seen) in enumerate(kps) if seen)
    with (root / "pairs.csv").open("w", newline="") as file:
        named = ([f"cat/{image}.png" for image in ends] for ends in golden["pairs"].astype(int).tolist())
        csv.writer(file).writerows([["source", "target"], *named])
    save_file({f"cat/{image}|only": own for image, own in enumerate(golden["maps"])}, root / "maps.safetensors")


def asked(root: Path, **more: object) -> EvalConfig:
    given = {"features": root / "maps.safetensors", "dataset": "folder", "root": root, "size": 840, "layers": ("only",)}
    protocol = {"pad": "square", "geometry": "floor", "strict": True, "alphas": ALPHAS, "readouts": ("nn",)}
    return EvalConfig(**{**given, **protocol, **more})  # type: ignore[arg-type]


def test_a_features_file_of_padded_images(tmp_path: Path, golden: Arrays) -> None:
    write_folder(tmp_path / "own", golden)
    found = evaluate(asked(tmp_path / "own"))
    for place, alpha in enumerate(ALPHAS):
        expected = 100 * golden["nn_840_imgtheta.pck_image"][place]
        assert 100 * found.pck["nn"].image[alpha].overall == pytest.approx(expected, abs=0.01)
    said = found.to_json()
    assert (said["pad"], said["theta"], said["strict"], said["geometry"]) == ("square", "image", True, "floor")
    assert "distance < alpha theta (image)" in found.table()
    # the scale is the same along both sides, so that the original frame says the same
    run = EvaluationRun.open(found.save(tmp_path / "run"))
    again = run.scored(frame=Frame.ORIGINAL).pck["nn"].image
    assert [again[alpha].overall for alpha in ALPHAS] == [found.pck["nn"].image[alpha].overall for alpha in ALPHAS]
    # what is stretched is another number
    assert evaluate(asked(tmp_path / "own", pad=None)).pck["nn"].image != found.pck["nn"].image


def test_theta_by_another_rule_from_what_was_kept(tmp_path: Path, golden: Arrays) -> None:
    write_folder(tmp_path / "own", golden)
    run = EvaluationRun.open(evaluate(asked(tmp_path / "own")).save(tmp_path / "run"))
    anew = evaluate(asked(tmp_path / "own", theta="keypoints", strict=False))
    again = run.scored(theta="keypoints", strict=False)
    assert again.pck["nn"] == anew.pck["nn"]
    assert again.scoring.threshold == "distance <= alpha theta (keypoints)"
    assert again.title == anew.title  # its hash among others
    back = EvaluationRun.open(anew.save(tmp_path / "anew")).scored(theta="image", strict=True)
    assert back.pck["nn"] == run.scored().pck["nn"]
    with pytest.raises(InputError, match=r"does not keep the longer side of the target's bounding box"):
        run.scored(theta="box")
    with pytest.raises(DatasetError, match=r"folder has no boxes to measure theta on: take --theta image"):
        evaluate(asked(tmp_path / "own", theta="box"))


def test_pixel_reads_no_padded_images(tmp_path: Path, golden: Arrays) -> None:
    write_folder(tmp_path / "own", golden)
    with pytest.raises(MatchError, match=r"The readout pixel .* padded images"):
        evaluate(asked(tmp_path / "own", readouts=("pixel",)))
