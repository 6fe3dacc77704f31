"""`dualsd grid` as a user types it, on a small model and small photographs."""

import csv
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cli.main import app
from cli.reports.charts.grid import accuracy, two_layers
from cli.reports.grid_tables import RankedGrid, eval_command, score_blocks
from featstore.config import EvalConfig, GridConfig
from featstore.pipeline.grid import GridRun
from matcher.configuration import Configuration, LayerSpec, MatchSettings, all_layers_fused, one_layer_each
from matcher.grid import GridScores
from matcher.pairs import Pairs
from tests.cli.conftest import Run
from tests.cli.html_page import read_page
from tests.featstore.evaluations import many_pairs
from tests.featstore.pictures import PAIRS, PICTURES, write_pictures

MAPS = ("--ensemble", "1", "--batch-size", "4")
SWEEP = ("grid", "--t", "50,261", *MAPS)
GRID = (*SWEEP, "--weights", "0.8:0.6")
ALPHAS = ("0.05", "0.1", "0.15")
TIMESTEPS = (50, 261)
FEW = ("--layers", "2", "--t", "50", *MAPS)
"""A grid of one cell."""


def strict_json(file: Path) -> dict[str, Any]:
    """NaN is no JSON, though Python reads it."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{file} holds {name}")

    return json.loads(file.read_text(), parse_constant=refuse)


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@dataclass(frozen=True)
class Made:
    """What was made once for all tests: the pictures, the model, and stores of latents alone and with maps."""

    folder: Path

    def copied(self, what: str) -> Path:
        """`latents.zarr` or `maps.zarr`, as ./dualsd.zarr."""
        shutil.copytree(self.folder / what, "dualsd.zarr")
        return Path("dualsd.zarr")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Made:
    folder = tmp_path_factory.mktemp("grid")
    write_pictures(folder / "photographs")
    shutil.copytree(small_model, folder / "model")
    build = ("cache", "build", "--dataset", "folder", "--root", str(folder / "photographs"), "--t", "50,261")
    build += ("--model", str(folder / "model"), "--size", "64", "--batch-size", "4")
    succeeded(CliRunner().invoke(app, [*build, "--store", str(folder / "latents.zarr")]))
    shutil.copytree(folder / "latents.zarr", folder / "maps.zarr")
    for timestep in TIMESTEPS:
        maps = ("cache", "maps", "--layers", "2,3", "--t", f"{timestep},{timestep}", *MAPS)
        succeeded(CliRunner().invoke(app, [*maps, "--store", str(folder / "maps.zarr")]))
    return Made(folder)


@dataclass(frozen=True)
class Finished:
    """A grid that ran undisturbed in `folder`, on a store without maps. store: afterwards."""

    folder: Path
    output: str
    json: dict[str, Any]
    store: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, made: Made) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(made.folder / "latents.zarr", folder / "dualsd.zarr")
    files = ("--json", str(folder / "g.json"), "--csv", str(folder / "g.csv"), "--out", str(folder / "pictures"))
    arguments = (*GRID, "--readouts", "nn,softmax", "--store", str(folder / "dualsd.zarr"), *files)
    result = succeeded(CliRunner().invoke(app, list(arguments)))
    return Finished(folder, result.output, strict_json(folder / "g.json"), folder / "dualsd.zarr")


def cell(out: dict[str, Any], **wanted: Any) -> dict[str, Any]:
    """The one cell with these layers, t and so on."""
    (found,) = (entry for entry in out["cells"] if all(entry[name] == value for name, value in wanted.items()))
    return found


def map_files(store: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(store.rglob("maps/**/c.*"))}


def test_it_says_what_it_does_before_and_after(finished: Finished, made: Made) -> None:
    prompt, does, *_ = finished.output.splitlines()
    assert prompt == "prompt: the text 'a photo of a {category}'"
    assert does.startswith("8 configurations, 18 pairs")
    # 7 images at 2 timesteps; 4 maps an image, and their noise is there
    assert "7 images: 0 to encode (VAE passes), 14 UNet passes; peak memory about" in finished.output
    assert "in 28 files to write" in finished.output
    assert len(map_files(finished.store)) == 28
    assert "configurations by layers: layer 2: 2; layer 3: 2; layers 2+3: 4" in finished.output
    assert "The best of 8 was chosen on these very pairs" in finished.output


def test_every_cell_is_in_the_json(finished: Finished) -> None:
    out = finished.json
    assert (out["dataset"], out["split"], out["n_pairs"], out["average"]) == ("folder", "test", 18, "image")
    cells = [(tuple(entry["layers"]), tuple(entry["t"]), tuple(entry["weights"])) for entry in out["cells"]]
    alone = {((layer,), (t,), (1.0,)) for layer in (2, 3) for t in TIMESTEPS}
    fused = {((2, 3), (first, second), (0.8, 0.6)) for first in TIMESTEPS for second in TIMESTEPS}
    assert set(cells) == alone | fused
    assert len(cells) == 8
    for entry in out["cells"]:
        assert list(entry["results"]) == ["nn", "softmax"]
        for by_average in entry["results"].values():
            for average in ("image", "point"):
                values = [by_average[average][alpha] for alpha in ALPHAS]
                assert all(set(value) == {"all", "cat", "dog"} for value in values)
                assert [value["all"] for value in values] == sorted(value["all"] for value in values)
            image = by_average["image"]["0.1"]
            assert image["all"] == pytest.approx((PAIRS["cat"] * image["cat"] + PAIRS["dog"] * image["dog"]) / 18)


@pytest.mark.parametrize(
    ("layers", "t", "weights"), [((2,), (261,), None), ((3,), (50,), None), ((2, 3), (261, 50), (0.8, 0.6))]
)
def test_a_cell_is_what_eval_says(
    run: Run, finished: Finished, layers: tuple[int, ...], t: tuple[int, ...], weights: tuple[float, ...] | None
) -> None:
    arguments = ["--layers", ",".join(map(str, layers)), "--t", ",".join(map(str, t)), "--readouts", "nn,softmax"]
    arguments += [] if weights is None else ["--weights", ",".join(map(str, weights))]
    succeeded(run("eval", *arguments, *MAPS, "--store", str(finished.store), "--split", "test", "--json", "e.json"))
    expected = strict_json(Path("e.json"))
    found = cell(finished.json, layers=list(layers), t=list(t))
    assert found["weights"] == expected["weights"]
    for name in ("dataset", "split", "n_pairs", "n_points", "features", "frames", "image_size", "beta", "sigma"):
        assert finished.json[name] == expected[name]
    for readout in ("nn", "softmax"):
        for average in ("image", "point"):
            for alpha in ALPHAS:
                assert found["results"][readout][average][alpha] == pytest.approx(
                    expected["results"][readout][average][alpha], abs=1e-12
                )


def test_the_csv_has_a_row_a_number(finished: Finished) -> None:
    rows = list(csv.DictReader((finished.folder / "g.csv").read_text().splitlines()))
    assert len(rows) == 8 * 2 * 3 * 3  # cells, readouts, averages, alphas
    names = ("layers", "t", "weights", "readout", "average", "alpha")
    assert len({tuple(row[name] for name in names) for row in rows}) == len(rows)
    for row in rows:
        entry = cell(
            finished.json,
            layers=[int(part) for part in row["layers"].split("+")],
            t=[int(part) for part in row["t"].split("+")],
            weights=[float(part) for part in row["weights"].split("+")],
            geometry=row["geometry"],
            upsample=int(row["upsample"]),
            upsample_align=row["upsample_align"],
        )
        value = entry["results"][row["readout"]][row["average"]][row["alpha"]]["all"]
        assert float(row["pck_percent"]) == pytest.approx(100 * value, abs=5.1e-5)


def test_the_winners_are_the_best_cells(finished: Finished) -> None:
    winners = finished.json["winners"]
    assert [(winner["readout"], winner["alpha"]) for winner in winners] == [
        (readout, alpha) for readout in ("nn", "softmax") for alpha in (0.05, 0.1, 0.15)
    ]
    for winner in winners:

        def value(entry: dict[str, Any], winner: dict[str, Any] = winner) -> float:
            return entry["results"][winner["readout"]]["image"][f"{winner['alpha']:g}"]["all"]

        ranked = sorted(map(value, finished.json["cells"]), reverse=True)
        best, second = (
            cell(finished.json, layers=winner[place]["layers"], t=winner[place]["t"]) for place in ("best", "second")
        )
        assert best is not second
        assert [value(best), value(second)] == ranked[:2]
        assert winner["pck"]["mean"] == pytest.approx(ranked[0])
        assert winner["lead"]["mean"] == pytest.approx(ranked[0] - ranked[1])
        for interval in (winner["pck"], winner["lead"]):
            assert interval["low"] <= interval["mean"] <= interval["high"]
        assert 0 <= winner["pck"]["low"] < winner["pck"]["high"] <= 1


def test_the_pictures_are_pictures(finished: Finished) -> None:
    files = sorted((finished.folder / "pictures").iterdir())
    pictures = [file for file in files if file.suffix == ".png"]
    assert [file.name for file in files if file not in pictures] == [
        *("grid.safetensors", "report.html", "table.md", "table.tex")
    ]
    assert [file.name for file in pictures] == [
        f"{what}-{readout}.png" for what in ("timesteps", "two-layers") for readout in ("nn", "softmax")
    ]
    for file in pictures:
        with Image.open(file) as picture:
            picture.load()
            assert min(picture.size) >= 300
            assert len(picture.convert("RGB").getcolors(2**20) or []) > 20  # something is drawn
        assert str(file) in finished.output


def test_a_finished_grid_leaves_no_ledger(finished: Finished) -> None:
    grids = finished.store / "grids"
    assert [path for path in grids.rglob("*") if path.is_dir() or path.name.startswith("c.")] == []


def test_streaming_gives_the_same_and_writes_no_maps(run: Run, made: Made, finished: Finished) -> None:
    store = made.copied("latents.zarr")
    before = {str(file): file.read_bytes() for file in store.rglob("c*") if file.is_file()}
    result = succeeded(run(*GRID, "--stream", "--readouts", "nn,softmax", "--json", "s.json"))
    assert "0 to encode (VAE passes), 14 UNet passes" in result.output
    assert "0 B in 0 files to write" in result.output
    assert strict_json(Path("s.json")) == finished.json
    assert not (store / "maps").exists()
    assert {str(file): file.read_bytes() for file in store.rglob("c*") if file.is_file()} == before


def test_what_is_cached_needs_no_model_but_streaming_does(
    run: Run, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.copied("maps.zarr")
    aside = made.folder / "aside"
    (made.folder / "model").rename(aside)
    try:
        succeeded(run(*GRID))
        refused = run(*GRID, "--stream")
    finally:
        aside.rename(made.folder / "model")
    assert_one_sentence(refused, "model")


def test_by_point(run: Run, made: Made, finished: Finished) -> None:
    made.copied("maps.zarr")
    result = succeeded(run(*GRID, "--by", "point", "--readouts", "nn,softmax", "--json", "p.json"))
    out = strict_json(Path("p.json"))
    assert out["average"] == "point"
    assert out["cells"] == finished.json["cells"]
    assert "point average" in result.output
    assert "image average" not in result.output
    for winner in out["winners"]:
        values = [entry["results"][winner["readout"]]["point"][f"{winner['alpha']:g}"]["all"] for entry in out["cells"]]
        assert winner["pck"]["mean"] == pytest.approx(max(values))
        best = cell(out, layers=winner["best"]["layers"], t=winner["best"]["t"])
        assert best["results"][winner["readout"]]["point"][f"{winner['alpha']:g}"]["all"] == max(values)


def test_some_pairs_and_some_categories(run: Run, made: Made, finished: Finished) -> None:
    made.copied("maps.zarr")
    single = ("grid", *FEW)
    succeeded(run(*single, "--max-pairs", "5", "--json", "5.json"))
    succeeded(run(*single, "--max-pairs", "5", "--json", "again.json"))
    five = strict_json(Path("5.json"))
    assert five["n_pairs"] == 5
    assert five == strict_json(Path("again.json"))
    succeeded(run(*single, "--max-pairs", "1", "--json", "1.json"))
    assert strict_json(Path("1.json"))["n_pairs"] == 1
    succeeded(run(*single, "--categories", "dog", "--json", "dog.json"))
    dog = strict_json(Path("dog.json"))
    assert dog["n_pairs"] == PAIRS["dog"]
    whole = cell(finished.json, layers=[2], t=[50])["results"]["nn"]["image"]["0.1"]
    assert cell(dog, layers=[2], t=[50])["results"]["nn"]["image"]["0.1"] == {"all": whole["dog"], "dog": whole["dog"]}


@pytest.mark.usefixtures("everything_drawn")
def test_one_cell_has_no_second(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    result = succeeded(run("grid", *FEW, "--json", "o.json"))
    winners = strict_json(Path("o.json"))["winners"]
    assert [(winner["second"], winner["lead"]) for winner in winners] == [(None, None)] * 3
    assert "was chosen on these very pairs" not in result.output
    assert [file.name for file in Path("grid").glob("*.png")] == ["timesteps-nn.png"]


def test_weights_that_are_typed(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    succeeded(run(*GRID, "--weights", "1:0,0.5:0.5", "--json", "w.json"))
    out = strict_json(Path("w.json"))
    assert len(out["cells"]) == 4 + 4 * 2
    fused = {(tuple(entry["t"]), tuple(entry["weights"])) for entry in out["cells"] if len(entry["layers"]) == 2}
    assert fused == {
        ((first, second), weights)
        for first in TIMESTEPS
        for second in TIMESTEPS
        for weights in ((1.0, 0.0), (0.5, 0.5))
    }
    # without weight, the second layer's timestep does not matter
    for first in TIMESTEPS:
        ours = [cell(out, layers=[2, 3], t=[first, second], weights=[1, 0])["results"] for second in TIMESTEPS]
        assert ours[0] == ours[1]


def test_weights_from_one_layer_to_the_other(run: Run, made: Made) -> None:
    """Unless others are typed."""
    made.copied("maps.zarr")
    succeeded(run(*SWEEP, "--weights", "sweep", "--json", "w.json"))
    out = strict_json(Path("w.json"))
    succeeded(run(*SWEEP, "--json", "d.json"))
    assert strict_json(Path("d.json")) == out
    assert len(out["cells"]) == 4 + 4 * 11
    found = [entry["weights"] for entry in out["cells"] if entry["t"] == [50, 261]]
    expected = [[math.cos(math.radians(9 * step)), math.sin(math.radians(9 * step))] for step in range(11)]
    assert len(found) == 11
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("most", [4096, 31])
def test_every_two_of_three_layers_and_all(run: Run, made: Made, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """All with equal weights and each doubled, at the same timestep where every choice would be too many."""
    monkeypatch.setattr("featstore.pipeline.grid.MOST_TOGETHER", most)
    made.copied("latents.zarr")
    succeeded(run("grid", "--layers", "1,2,3", "--t", "50,261", *MAPS, "--stream", "--json", "t.json"))
    out = strict_json(Path("t.json"))
    counts = Counter(tuple(entry["layers"]) for entry in out["cells"])
    together = 8 if most > 31 else 2
    alone = {(layer,): 2 for layer in (1, 2, 3)}
    assert counts == {**alone, (1, 2): 44, (1, 3): 44, (2, 3): 44, (1, 2, 3): 4 * together}
    every = [entry for entry in out["cells"] if entry["layers"] == [1, 2, 3]]
    assert {tuple(entry["weights"]) for entry in every} == {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)}
    assert len({tuple(entry["t"]) for entry in every}) == together
    markdown = Path("grid/table.md").read_text()
    kinds = markdown.partition("## Layers together, the best of each kind")[2].partition("##")[0]
    rows = [line.split("|")[1:3] for line in kinds.splitlines() if "layer" in line]
    assert len(rows) == 4
    for name, value in rows:
        of_kind = [entry for entry in out["cells"] if len(entry["layers"]) > 1 and named(entry) == name.strip()]
        (best,) = (entry["results"]["nn"]["image"]["0.1"]["all"] for entry in of_kind)
        others = [
            entry for entry in out["cells"] if entry["layers"] == of_kind[0]["layers"] and 0 not in entry["weights"]
        ]
        assert 100 * best == pytest.approx(float(value), abs=5.1e-3)
        assert best == max(entry["results"]["nn"]["image"]["0.1"]["all"] for entry in others)


def named(entry: dict[str, Any]) -> str:
    parts = zip(entry["layers"], entry["t"], entry["weights"], strict=True)
    return " + ".join(f"layer {layer} at t = {t} x {weight:.3g}" for layer, t, weight in parts)


@pytest.mark.usefixtures("everything_drawn")
def test_three_layers(run: Run, made: Made) -> None:
    made.copied("latents.zarr")
    weights = ("--weights", "1:1:1,0.2:0.5:0.3")
    succeeded(run("grid", "--layers", "1,2,3", "--t", "50", *weights, *MAPS, "--json", "t.json"))
    cells = [(tuple(entry["layers"]), tuple(entry["weights"])) for entry in strict_json(Path("t.json"))["cells"]]
    assert sorted(cells) == [
        *(((1,), (1.0,)), ((1, 2, 3), (0.2, 0.5, 0.3)), ((1, 2, 3), (1.0, 1.0, 1.0))),
        *(((2,), (1.0,)), ((3,), (1.0,))),
    ]
    assert [file.name for file in Path("grid").glob("*.png")] == ["timesteps-nn.png"]  # no map over two timesteps


@pytest.mark.usefixtures("everything_drawn")
def test_geometries_and_upsampling_are_axes(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    one = ("grid", "--t", "50", *MAPS, "--weights", "0.8:0.6")
    succeeded(run(*one, "--geometry", "corners,half-pixel", "--upsample", "1x,2x", "--json", "a.json"))
    out = strict_json(Path("a.json"))
    assert len(out["cells"]) == 4 * 3
    axes = {(entry["geometry"], entry["upsample"], entry["upsample_align"]) for entry in out["cells"]}
    assert axes == {(shape, factor, shape) for shape in ("corners", "half-pixel") for factor in (1, 2)}
    evaluate = ("eval", "--layers", "2,3", "--t", "50,50", *MAPS, "--readouts", "nn", "--json", "e.json")
    for shape, factor in (("half-pixel", 1), ("corners", 2), ("half-pixel", 2)):
        succeeded(run(*evaluate, "--geometry", shape, "--upsample", f"{factor}x"))
        expected = strict_json(Path("e.json"))["results"]["nn"]
        found = cell(out, layers=[2, 3], geometry=shape, upsample=factor)["results"]["nn"]
        for average in ("image", "point"):
            for alpha in ALPHAS:
                assert found[average][alpha] == pytest.approx(expected[average][alpha], abs=1e-12)
    names = {file.name for file in Path("grid").glob("*.png")}
    assert names == {
        f"{what}-nn-{shape}-{factor}x.png"
        for what in ("timesteps", "two-layers")
        for shape in ("corners", "half-pixel")
        for factor in (1, 2)
    }


def test_readouts_in_either_frame(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    succeeded(run("grid", *FEW, "--readouts", "pixel,window,nn", "--json", "r.json"))
    out = strict_json(Path("r.json"))
    (found,) = out["cells"]
    assert list(found["results"]) == ["pixel", "window", "nn"]
    assert out["frame"] == "per readout"
    assert out["frames"] == {"pixel": "original", "window": "resized", "nn": "resized"}
    succeeded(run("eval", *FEW, "--readouts", "nn,pixel,window", "--json", "e.json"))
    expected = strict_json(Path("e.json"))["results"]
    for readout in ("pixel", "window", "nn"):
        for average in ("image", "point"):
            for alpha in ALPHAS:
                assert found["results"][readout][average][alpha] == pytest.approx(
                    expected[readout][average][alpha], abs=1e-12
                )


def test_test_is_chosen_knowingly(run: Run, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder has test alone; one that had val too would be searched on val unless told otherwise."""
    made.copied("maps.zarr")
    assert "note: this chooses on test" in succeeded(run("grid", *FEW)).output
    monkeypatch.setattr("featstore.datasets.folder.FolderDataset.splits", ("trn", "val", "test"))
    result = succeeded(run("grid", *FEW, "--json", "v.json"))
    assert strict_json(Path("v.json"))["split"] == "val"
    assert "pairs of folder val" in result.output
    assert "chooses on test" not in result.output
    assert "note: this chooses on test" in succeeded(run("grid", *FEW, "--split", "test")).output


def recommended(result: Result) -> list[list[str]]:
    """The words of the commands that a grid prints."""
    lines = (line.strip() for line in result.output.splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith(("dualsd eval", "dualsd compare"))]


@pytest.mark.parametrize("average", ["image", "point"])
def test_the_answer_is_what_the_commands_confirm(run: Run, made: Made, average: str) -> None:
    """Here on the same pairs: what they print is then the answer itself, to the ends of the interval."""
    made.copied("maps.zarr")
    more = ("--geometry", "half-pixel", "--readouts", "softmax,nn", "--by", average)
    result = succeeded(run(*SWEEP, *more, "--json", "g.json"))
    out = strict_json(Path("g.json"))
    assert next(iter(out)) == "answer"
    assert [(one["readout"], one["alpha"]) for one in out["answer"]] == [
        (readout, alpha) for readout in ("softmax", "nn") for alpha in (0.05, 0.1, 0.15)
    ]
    answer = next(one for one in out["answer"] if one["alpha"] == 0.1)

    def best(kind: str, wanted: bool) -> float:
        """Of those in which two layers weigh something, or of single layers."""
        own = [e for e in out["cells"] if (len(e["layers"]) == 2 and 0 not in e["weights"]) == wanted]
        values = [e["results"]["softmax"][average]["0.1"]["all"] for e in own if len(e["layers"]) == 1 + wanted]
        assert answer[f"pck_{kind}"]["mean"] == pytest.approx(max(values))
        return max(values)

    lead = answer["lead"]
    assert lead["mean"] == pytest.approx(best("together", True) - best("alone", False))
    alone, together, compared = recommended(result)
    evaluated = []
    for words in (alone, together):
        succeeded(run(*words, "--batch-size", "4", "--json", "e.json"))
        evaluated.append(strict_json(Path("e.json")))
    for kind, found in zip(("alone", "together"), evaluated, strict=True):
        for name in ("layers", "t", "geometry"):
            assert found[name] == answer[kind][name]
        assert found["weights"] == pytest.approx(answer[kind]["weights"], abs=1e-6)
    succeeded(run(*compared, "--json", "c.json"))
    (compared_with,) = strict_json(Path("c.json"))["comparisons"]
    assert compared_with["results"]["0.1"]["all"]["lead"] == pytest.approx(lead)


def test_the_answer_stands_first(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    result = succeeded(run(*SWEEP, "--json", "g.json"))
    (answer,) = (one for one in strict_json(Path("g.json"))["answer"] if one["alpha"] == 0.1)
    lines = result.output.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(("Yes, 2 layers", "No, 2", "Not shown")))
    assert place < lines.index(next(line for line in lines if line.startswith("PCK over folder test")))
    low, high = answer["lead"]["low"], answer["lead"]["high"]
    assert lines[place].startswith("Yes" if low > 0 else "No," if high < 0 else "Not shown")
    shown = f"[{100 * low:.2f}, {100 * high:.2f}]"
    assert shown in lines[place]
    markdown = Path("grid/table.md").read_text().splitlines()
    assert markdown[2] == f"## {lines[place]}"
    commands = [shlex.join(["dualsd", *words]) for words in recommended(result)]
    assert len(commands) == 3
    assert [line.strip("- `") for line in markdown[-3:]] == commands
    assert markdown[-4].endswith("on these:")  # a folder's pairs are all of one split
    page = read_page(Path("grid/report.html"))
    assert shown in page.text[: page.text.index("Together or alone")]
    for command in commands:
        assert command in page.text


@pytest.mark.parametrize("option", ["--root", "--dtype"])
def test_the_evaluation_that_it_recommends_has_the_maps_of_the_grid(run: Run, made: Made, option: str) -> None:
    """Without its --dtype it would make other maps, and without its --root find no pictures where they were moved."""
    made.copied("latents.zarr")
    shutil.copytree(made.folder / "photographs", "moved")
    value = {"--root": "moved", "--dtype": "bfloat16"}[option]
    (words,) = recommended(succeeded(run("grid", "--layers", "2", "--t", "50,261", *MAPS, option, value)))
    assert option in words
    assert words[words.index(option) + 1] == value


def test_pictures_and_table_run_the_same_way_and_show_the_best_single_layer() -> None:
    """On random hits: numbers in the figures are those of the scores."""
    pairs, steps = Pairs.of(many_pairs(12, ("cat", "dog"))), (50, 150, 300)
    settings, layers = MatchSettings(128), {"2": steps, "3": steps}
    tried = one_layer_each(layers, settings) + all_layers_fused(layers, [(0.6, 0.8), (0, 1)], settings)
    random = np.random.default_rng(5)
    hits = random.integers(0, pairs.counts + 1, size=(len(tried), 1, 1, len(pairs))).astype(np.uint16)
    scores = GridScores(pairs, tried, ("nn",), (0.1,), hits)
    evaluation = EvalConfig(store="none.zarr", split="test")
    ranked = RankedGrid.of(
        GridRun("demo", "val", scores, {}, GridConfig(), "rule", "none.zarr", evaluation, True, lambda: None)
    )
    percent = 100 * (hits[:, 0, 0] / pairs.counts).mean(axis=1)
    fused = {entry.timesteps: percent[index] for index, entry in enumerate(tried) if entry.weights == (0.6, 0.8)}
    (view,) = ranked.views
    heat = two_layers(view, [0.1], "")
    assert heat is not None
    axes, bar = heat.figure.axes
    drawn = np.asarray(axes.images[0].get_array())
    table = next(block for block in score_blocks(ranked) if block.header[0].startswith("t of layer"))
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first row is drawn above the others
    for row, (first, *cells) in enumerate(table.rows):
        for column, (second, cell) in enumerate(zip(table.header[1:], cells, strict=True)):
            expected = fused[int(first), int(second)]
            assert drawn[row, column] == pytest.approx(expected)
            assert float(cell.strip("* ")) == pytest.approx(expected, abs=5.1e-3)
    (line,) = (own for own in bar.lines if own.get_linewidth() == 3)
    assert line.get_ydata()[0] == pytest.approx(max(percent[:6]))
    lines = {own.get_label(): np.asarray(own.get_ydata()) for own in accuracy(view, [0.1], "").figure.axes[0].lines}
    assert lines["layer 3"] == pytest.approx(percent[3:6])
    assert lines["layers 2+3, same t"] == pytest.approx([fused[step, step] for step in steps])
    assert lines["best together, any timesteps"][0] == pytest.approx(max(fused.values()))


def test_the_evaluation_of_a_layer_without_prompts_can_be_typed(run: Run) -> None:
    """Options that only layers of the UNet have a use for would be refused: it is the store alone that is missing."""
    pairs = Pairs.of(many_pairs(4, ("cat",)))
    best = Configuration((LayerSpec("dino", None, 1.0),), MatchSettings(128))
    scores = GridScores(pairs, (best,), ("nn",), (0.1,), np.ones((1, 1, 1, len(pairs)), dtype=np.uint16))
    config, of_the_grid = GridConfig(layers=("2", "dino")), {"dino_size": 70}
    evaluation = EvalConfig(store="none.zarr", prompt="a photo", ensemble=1, split="test")
    done = GridRun("demo", "val", scores, of_the_grid, config, "rule", "none.zarr", evaluation, True, lambda: None)
    words = shlex.split(eval_command(RankedGrid.of(done), 0))
    assert words[words.index("--dino-size") + 1] == "70"
    assert_one_sentence(run(*words[1:]), "There is no store at none.zarr")


def assert_one_sentence(result: Result, words: str) -> None:
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--t", "1000"], "no timestep 1000"),
        (["--t", "50..1200"], "no timestep 1200"),
        (["--t", "400..50"], "empty range"),
        (["--t", "50..400:0"], "empty range"),
        (["--t", "some"], "--t takes timesteps"),
        (["--t", ""], "--t takes timesteps"),
        (["--t", "50", "--weights", "0.8"], "2 layer(s) but 1 weight(s)"),
        (["--t", "50", "--weights", "0.8:0.6:0.1"], "2 layer(s) but 3 weight(s)"),
        (["--t", "50", "--weights", "0.8:0.6,1"], "2 layer(s) but 1 weight(s)"),
        (["--t", "50", "--weights", "0:0"], "one must be positive"),
        (["--t", "50", "--weights", "a:b"], "--weights takes numbers"),
        (["--t", "50", "--layers", "2", "--weights", "1"], "--layers names one"),
        (["--t", "50", "--layers", "2", "--weights", "sweep"], "--layers names one"),
        (["--t", "50", "--layers", "1,2,3", "--weights", "1:1"], "3 layer(s) but 2 weight(s)"),
        (["--t", "50", "--layers", "2,5"], "no layer 5"),
        (["--t", "50", "--layers", "0"], "no layer 0"),
        (["--t", "50", "--layers", "2,2"], "names a layer twice"),
        (["--t", "50", "--readouts", "nn,best"], "no readout 'best'"),
        (["--t", "50", "--geometry", "corners,round"], "is 'round', not one of 'corners', 'half-pixel'"),
        (["--t", "50", "--upsample", "1x,half"], "whole factor like 2x, not 'half'"),
        (["--t", "50", "--alphas", "0"], "above 0 and at most 1"),
        (["--t", "50", "--by", "keypoint"], "not one of 'image', 'point', 'category'"),
        (["--t", "50", "--json", "no/folder.json"], "no/folder.json cannot be written"),
        (["--t", "50", "--csv", "no/folder.csv"], "no/folder.csv cannot be written"),
        (["--t", "50", "--device", "tpu9"], "device 'tpu9'"),
        (["--t", "50"], "no store at dualsd.zarr"),
    ],
)
def test_one_sentence_and_exit_code_2(run: Run, arguments: list[str], words: str) -> None:
    result = run("grid", *arguments)
    assert_one_sentence(result, words)
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--t", "1000"],
        ["--t", "50", "--json", "no/folder.json"],
        pytest.param(
            ["--t", "50", "--device", "tpu9"],
        ),
        pytest.param(
            ["--t", "50"],
        ),
    ],
)
def test_a_grid_that_is_refused_leaves_nothing_behind(run: Run, arguments: list[str]) -> None:
    assert run("grid", *arguments).exit_code == 2
    assert list(Path().iterdir()) == []


def test_a_store_that_has_nothing_to_choose_from(run: Run, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.copied("maps.zarr")
    assert_one_sentence(run(*GRID, "--split", "val"), "no split 'val'")
    assert_one_sentence(run(*GRID, "--categories", "cow"), "no category 'cow'")
    monkeypatch.setattr("featstore.datasets.folder.FolderDataset.pairs", lambda *_: ())
    assert_one_sentence(run(*GRID), "has no pairs")


def test_a_map_that_is_not_cached_with_no_model_at_hand(run: Run, made: Made) -> None:
    store = made.copied("latents.zarr")
    before = {str(file) for file in store.rglob("*")}
    (made.folder / "model").rename(made.folder / "aside")
    try:
        result = run(*GRID)
    finally:
        (made.folder / "aside").rename(made.folder / "model")
    assert_one_sentence(result, f"{made.folder / 'model'}")
    assert {str(file) for file in store.rglob("*")} == before


def test_pictures_that_cannot_be_kept(run: Run, made: Made) -> None:
    made.copied("maps.zarr")
    Path("taken").write_text("a file")
    assert_one_sentence(run("grid", *FEW, "--out", "taken"), "taken")
    assert not (Path("dualsd.zarr") / "grids").exists()


@pytest.fixture
def own_store(run: Run, made: Made, tmp_path: Path) -> Path:
    """The root of pictures that a test may break; their store is ./dualsd.zarr, latents of whole images alone."""
    root = tmp_path / "photographs"
    shutil.copytree(made.folder / "photographs", root)
    made.copied("latents.zarr")
    succeeded(run("cache", "build", "--root", str(root), "--t", "50,261", "--batch-size", "4"))
    return root


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_images_that_broke_are_left_out_on_request(run: Run, own_store: Path, how: tuple[str, ...]) -> None:
    (own_store / "cat" / "1.png").write_bytes(b"")
    succeeded(run("cache", "build", "--skip-bad", "--t", "50,261", "--batch-size", "4"))
    assert_one_sentence(run("grid", *FEW, *how), "cat/1")
    result = succeeded(run("grid", *FEW, *how, "--skip-bad", "--json", "o.json"))
    assert "4 of 18 pairs are left out" in result.output
    assert strict_json(Path("o.json"))["n_pairs"] == 14


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_no_pair_is_left_of_images_that_broke(run: Run, own_store: Path, how: tuple[str, ...]) -> None:
    for index in range(PICTURES["cat"] - 1):
        (own_store / "cat" / f"{index}.png").write_bytes(b"")
    succeeded(run("cache", "build", "--skip-bad", "--t", "50,261", "--batch-size", "4"))
    assert_one_sentence(run("grid", *FEW, *how, "--skip-bad", "--categories", "cat"), "pair")


def test_an_image_that_changed_is_refused(run: Run, own_store: Path) -> None:
    Image.new("RGB", (30, 90)).save(own_store / "dog" / "1.png")
    for how in ((), ("--stream",)):
        assert_one_sentence(run("grid", *FEW, *how), "'dog/1' has changed")


KILLED = """
import os, signal
from featstore.pipeline.sources import StoredLedger
plain, count = StoredLedger.save, 0
def save(self, target, hits):
    global count
    count += 1
    if count == {place}:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, target, hits)
StoredLedger.save = save
from cli.main import app
app({arguments!r})
"""


@pytest.mark.parametrize(("how", "what"), [((), "maps.zarr"), (("--stream",), "latents.zarr")])
def test_killed_in_the_middle_it_goes_on(
    run: Run, made: Made, finished: Finished, how: tuple[str, ...], what: str
) -> None:
    """At the fifth of 7 targets, which is matched but not yet kept."""
    store = made.copied(what)
    arguments = [*GRID, *how, "--readouts", "nn,softmax", "--json", "k.json"]
    code = KILLED.format(place=5, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(store.rglob("grids/*/c.*"))) == 4
    assert not Path("k.json").exists()
    result = succeeded(run(*arguments))
    assert "4 of 7 target images were finished before: going on from there" in result.output
    assert strict_json(Path("k.json")) == finished.json
    assert list(store.rglob("grids/*/c.*")) == []


def test_an_interrupt_keeps_what_is_finished(
    run: Run, made: Made, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made.copied("maps.zarr")
    arguments = [*GRID, "--readouts", "nn,softmax", "--json", "i.json"]

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cli.reports.grid_tables.print_scores", stop)
        assert run(*arguments).exit_code == 130
    assert len(list(store.rglob("grids/*/c.*"))) == 7
    assert "7 of 7 target images were finished before" in succeeded(run(*arguments)).output
    assert strict_json(Path("i.json")) == finished.json
