"""`dualsd match`: which points, which pairs, how far matches are to be trusted, and keypoints carried to a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featstore.config import MatchConfig
from featstore.datasets.folder import FolderDataset
from featstore.pipeline.match import Featurizer, match_pairs
from tests.cli.conftest import Run

Match = Callable[..., dict[str, Any]]


@pytest.fixture
def match(run: Run, small_model: Path) -> Match:
    """`dualsd match` with arguments: what it wrote as JSON."""

    def call(*arguments: str) -> dict[str, Any]:
        options = ("--model", str(small_model), "--size", "64", "--ensemble", "1", "--json", "m.json")
        result = run("match", *map(str, arguments), *options)
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(Path("m.json").read_text())
        return {**found, "said": result.stdout}

    return call


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The photographs whose maps are made, in order."""
    names, plain = list[str](), Featurizer.maps_of

    def noting(self: Featurizer, photo: Any, *more: Any) -> Any:
        names.append(photo.name)
        return plain(self, photo, *more)

    monkeypatch.setattr(Featurizer, "maps_of", noting)
    return names


def write(name: str, *lines: str) -> Path:
    Path(name).write_text("\n".join(lines) + "\n")
    return Path(name)


def test_a_file_of_points_is_the_points_typed(match: Match, photographs: Path) -> None:
    ends = (photographs / "cat" / "0.png", photographs / "cat" / "1.png")
    typed = match(*ends, "--points", "5,6;30.5,20")
    write("points.csv", "name,x,y", "left ear,5,6", "hidden,,", "nose,30.5,20")
    listed = match(*ends, "--points-file", "points.csv")
    assert (typed["names"], listed["names"]) == (["1", "2"], ["left ear", "nose"])
    for name in ("source_points", "target_points", "scores", "margins", "mutual"):
        assert typed[name] == listed[name]
    said = listed["said"]
    assert "1 left ear" in said
    assert f"{listed['scores'][1]:.3f}" in said
    assert f"{listed['margins'][1]:.3f}" in said
    # of a data set's own file those of A are taken
    marks = [row.split(",") for row in (photographs / "keypoints.csv").read_text().splitlines()[1:]]
    own = match(*ends, "--points-file", photographs / "keypoints.csv")
    expected = [[float(x), float(y)] for image, _, x, y in marks if image == "cat/0"]
    assert own["names"] == ["k0", "k1", "k2", "k3"]
    np.testing.assert_allclose(own["source_points"], expected, rtol=1e-6)


def test_a_grid_lies_over_the_image_or_its_mask(match: Match, photographs: Path) -> None:
    ends = (photographs / "cat" / "0.png", photographs / "cat" / "1.png")  # 60 x 40 pixels
    whole = match(*ends, "--grid", "4", "--out", "g.png")["source_points"]
    assert whole == [[x, y] for y in (4.5, 14.5, 24.5, 34.5) for x in (7, 22, 37, 52)]
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:18, 20:40] = 1
    mask[18:20, 20:30] = 1
    Image.fromarray(mask).save("mask.png")
    found = match(*ends, "--grid", "5", "--mask", "mask.png")["source_points"]
    columns = (21.5, 25.5, 29.5, 33.5, 37.5)
    filled = [[x, y] for y in (10.5, 12.5, 14.5, 16.5) for x in columns]
    assert found == [*filled, *([x, 18.5] for x in columns[:2])]
    assert all(mask[round(y), round(x)] for x, y in found)


def test_many_pairs_are_each_as_alone_and_every_image_is_made_once(
    match: Match, made: list[str], photographs: Path
) -> None:
    listed = ["0.png,1.png,cat", "1.png,2.png,cat", "0.png,2.png,"]
    (photographs / "cat" / "pairs.csv").write_text("\n".join(["source,target,category", *listed]) + "\n")
    words = ("--pairs", photographs / "cat" / "pairs.csv", "--points", "5,6;30.5,20", "--category", "cat")
    found = match(*words, "--out", "m.png")
    assert sorted(made) == ["0.png", "1.png", "2.png"]
    for number, (row, pair) in enumerate(zip(listed, found["pairs"], strict=True), start=1):
        assert Image.open(f"m-{number}.png").size > (200, 200)
        ends = [photographs / "cat" / name for name in row.split(",")[:2]]
        alone = match(*ends, "--points", "5,6;30.5,20", "--category", "cat")
        assert {name: alone[name] for name in pair} == pair
        assert f"{ends[0].name} -> {ends[1].name}" in found["said"]


def test_each_category_of_pairs_has_its_own_prompt(match: Match, photographs: Path) -> None:
    rows = ["source,target,category", "cat/0.png,cat/1.png,cat", "cat/0.png,cat/1.png,dog"]
    (photographs / "both.csv").write_text("\n".join(rows) + "\n")
    cat, dog = match("--pairs", photographs / "both.csv", "--points", "5,6")["pairs"]
    assert (cat["prompt"], dog["prompt"]) == ("a photo of a cat", "a photo of a dog")
    assert cat["scores"] != dog["scores"]


def test_one_annotated_photograph_labels_a_folder(match: Match, photographs: Path) -> None:
    """What is written is read as a data set's keypoints, to the hundredth of a pixel."""
    folder, keypoints = photographs / "cat", photographs / "keypoints.csv"
    words = (folder / "0.png", folder, "--points-file", keypoints, "--category", "cat")
    found = match(*words, "--transfer", "carried.csv")
    assert [Path(pair["target"]).name for pair in found["pairs"]] == ["1.png", "2.png"]
    original = FolderDataset(photographs).pairs("test")
    annotated = next(pair for pair in original if (pair.source, pair.target) == ("cat/0", "cat/1"))
    Path("carried.csv").rename(keypoints)
    read = {(pair.source, pair.target): pair for pair in FolderDataset(photographs).pairs("test")}
    for number in (1, 2):
        pair = read["cat/0", f"cat/{number}"]
        assert pair.names == annotated.names == tuple(found["pairs"][number - 1]["names"])
        np.testing.assert_allclose(pair.source_points, annotated.source_points, atol=0.006)
        np.testing.assert_allclose(pair.target_points, found["pairs"][number - 1]["target_points"], atol=0.006)
    (note,) = FolderDataset(photographs).notes(None)
    assert "no use is made of score, margin, mutual" in note
    rows = [row.split(",") for row in keypoints.read_text().splitlines()]
    assert rows[0] == ["image", "name", "x", "y", "score", "margin", "mutual"]
    assert rows[1][4:] == ["", "", ""]  # annotated, not carried
    own = found["pairs"][0]
    assert [float(row[4]) for row in rows[5:9]] == pytest.approx(own["scores"], abs=1e-4)
    assert [row[6] for row in rows[5:9]] == [str(int(is_mutual)) for is_mutual in own["mutual"]]


def test_turned_photographs_are_carried_in_pixels_as_stored(match: Match, photographs: Path) -> None:
    """A data set takes them so; `match` shows them as a viewer does."""
    path, exif = photographs / "cat" / "1.png", Image.Exif()
    exif[274] = 6
    with Image.open(path) as opened:  # 70 x 46 pixels as stored
        opened.save(path, exif=exif)
    folder = photographs / "cat"
    found = match(folder / "1.png", folder, "--points-file", photographs / "keypoints.csv", "--transfer", "c.csv")
    rows = [row.split(",") for row in Path("c.csv").read_text().splitlines()[1:]]
    marks = [row.split(",") for row in (photographs / "keypoints.csv").read_text().splitlines()[1:]]
    stored = [[float(x), float(y)] for image, _, x, y in marks if image == "cat/1"]
    assert [[float(x), float(y)] for image, _, x, y, *_ in rows if image == "cat/1.png"] == stored
    shown = [[46 - y, x] for x, y in stored]
    np.testing.assert_allclose(found["pairs"][0]["source_points"], shown, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A", "B"], "by one of --points, --points-file and --grid."),
        (
            ["A", "B", "--points", "1,1", "--grid", "3"],
            "by one of --points, --points-file and --grid, not --points and",
        ),
        (["A", "--points", "1,1"], "Name two images, A and B"),
        (["A", "B", "--points", "1,1", "--pairs", "p.csv"], "--pairs stands in place of A and B"),
        (["A", "B", "--points", "1,1", "--mask", "A"], "--mask goes with --grid"),
        (["A", "B", "--grid", "0"], "--grid is 0, not at least 1"),
        (["A", "B", "--grid", "3", "--mask", "other.png"], "is 70x46 pixels, where 0.png is 60x40"),
        (["A", "B", "--grid", "3", "--mask", "black.png"], "black.png is all black"),
        (["A", "B", "--grid", "1", "--mask", "corner.png"], "take a finer grid"),
        (["A", "B", "--points-file", "none.csv"], "none.csv cannot be read"),
        (["A", "B", "--points-file", "names.csv"], "names.csv has no column y"),
        (["A", "B", "--points-file", "far.csv"], "The point 500,3 lies outside 0.png (far.csv), which is 60x40"),
        (["A", "B", "--points-file", "twice.csv"], "twice.csv, line 3: the point 'a' of 0.png is there already"),
        (["A", "B", "--points-file", "others.csv"], "others.csv has no point of "),
        (["--pairs", "none.csv", "--points", "1,1"], "none.csv cannot be read"),
        (["--pairs", "lost.csv", "--points", "1,1"], "lost.csv, line 2: names the image 'gone.png', which is not in"),
        (["--pairs", "mixed.csv", "--points", "1,1"], "Some pairs of mixed.csv have a category and some none"),
        (["--pairs", "lost.csv", "--points", "1,1", "--transfer", "t.csv"], "it goes with A and B, not with --pairs"),
        (["A", "B", "--points", "1,1", "--transfer", "no/t.csv"], "no/t.csv cannot be written"),
        (["A", "B", "--grid", "3", "--out", "m.png", "--heatmap"], "--heatmap draws one row per point"),
        (["A", "empty", "--points", "1,1"], "The folder empty has no images"),
    ],
)
def test_bad_input_is_a_sentence(run: Run, photographs: Path, arguments: list[str], words: str) -> None:
    write("names.csv", "name,x", "a,1")
    write("far.csv", "x,y", "1,1", "500,3")
    write("twice.csv", "name,x,y", "a,1,1", "a,2,2")
    write("others.csv", "image,name,x,y", "cat/2,a,1,1")
    write("lost.csv", "source,target", "gone.png,photographs/cat/0.png")
    pair = "photographs/cat/0.png,photographs/cat/1.png"
    write("mixed.csv", "source,target,category", f"{pair},cat", f"{pair},")
    Path("empty").mkdir()
    Image.new("L", (70, 46), 255).save("other.png")
    black = np.zeros((40, 60), dtype=np.uint8)
    Image.fromarray(black).save("black.png")
    black[0, 0] = black[39, 59] = 255
    Image.fromarray(black).save("corner.png")
    ends = {"A": str(photographs / "cat" / "0.png"), "B": str(photographs / "cat" / "1.png")}
    result = run("match", *(ends.get(word, word) for word in arguments), "--model", "demo")
    assert (result.exit_code, result.stdout) == (2, "")
    said = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert len(said) == 1
    assert words in said[0]


def test_the_engine_takes_many_pairs(run: Run, photographs: Path, small_model: Path) -> None:
    folder = photographs / "cat"
    config = MatchConfig(
        source=folder / "0.png", target=folder, grid=2, model=str(small_model), size=64, ensemble=1, device="cpu"
    )
    found = list(match_pairs(config))
    assert [own.photos[1].name for own in found] == ["1.png", "2.png"]
    for own in found:
        shapes = [getattr(own.matches, name).shape for name in ("points", "scores", "margins", "mutual")]
        assert shapes == [(4, 2), (4,), (4,), (4,)]
        assert own.matches.mutual.dtype == bool
