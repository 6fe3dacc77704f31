"""`dualsd reproduce` end to end, on a small SPair-71k of noise and a small model, two steps of training."""

import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import Dinov2Model
from typer.testing import Result

from cli.reproduction.workplace import find_datasets
from featstore.backbones import diffusion_networks as latents
from featstore.config import EvalConfig
from featstore.datasets import demo
from featstore.recipes import load_recipes
from featstore.sealed import seal
from matcher.errors import InputError
from tests.cli.conftest import Run
from tests.cli.html_page import read_page
from tests.featstore.trainable import write_trainable

Reproduce = Callable[..., Result]
FEW = ("--rows", "dift,dift-bicubic,sd4match-single@spair")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets that has SPair-71k alone."""
    folder = tmp_path_factory.mktemp("datasets")
    write_trainable(folder / "SPair-71k")
    return folder


@pytest.fixture(scope="module")
def smaller_model(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model for images of 64 pixels, not 128: a quarter of the work of a pass."""
    folder = tmp_path_factory.mktemp("smaller") / "model"
    shutil.copytree(small_model, folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
    return folder


@pytest.fixture
def reproduce(run: Run, datasets: Path, smaller_model: Path) -> Reproduce:
    """Run it in an empty directory."""

    def call(*arguments: str) -> Result:
        steps = () if {"--train-steps", "figure2"} & {*arguments} else ("--train-steps", "2")
        model = ("--dataset-root", str(datasets), "--model", str(smaller_model), "--device", "cpu")
        return run("reproduce", *arguments, *model, *steps)

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what goes through the networks; the zeros that fill up batches are none of it, nor are meta tensors."""
    counts: Counter[str] = Counter()
    unet, dino, encode = UNet2DConditionModel.forward, Dinov2Model.forward, latents.encode

    def filled(batch: torch.Tensor) -> int:
        return 0 if batch.is_meta else int(batch.flatten(1).any(dim=1).sum())

    def count_unet(self: Any, sample: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        counts["backward" if torch.is_grad_enabled() else "passes"] += filled(sample)
        return unet(self, sample, *arguments, **named)

    def count_dino(self: Any, pixel_values: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        counts["dino"] += filled(pixel_values)
        return dino(self, pixel_values, *arguments, **named)

    def count_vae(vae: Any, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        counts["encode"] += filled(images)
        return encode(vae, images, noise)

    monkeypatch.setattr(UNet2DConditionModel, "forward", count_unet)
    monkeypatch.setattr(Dinov2Model, "forward", count_dino)
    monkeypatch.setattr(latents, "encode", count_vae)
    return counts


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def figures(table: str) -> dict[tuple[str, float], dict[str, Any]]:
    """The numbers of `all` on SPair-71k that were written, by row and alpha, of a row's first readout."""
    written = json.loads(Path("reproduce/tables", f"{table}.json").read_text())
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for one in written["figures"]:
        if (one["category"], one["dataset"]) == ("all", "spair"):
            found.setdefault((one["row"], one["alpha"]), one)
    return found


def commands(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("$ dualsd")]


def rows_written() -> Iterator[Path]:
    """The files of all stores' rows."""
    stores = Path("reproduce/stores").glob("*.zarr")
    return (file for store in stores for file in store.rglob("c.*") if "images" not in file.relative_to(store).parts)


RECIPES = load_recipes()
CPM = [name for name in RECIPES if name.endswith("cpm")]


@pytest.mark.parametrize(
    "names",
    [
        ["dift"],
        pytest.param([name for name in RECIPES if name not in ("dift", *CPM)], marks=pytest.mark.slow),
        pytest.param(CPM, marks=pytest.mark.slow),
    ],
)
def test_every_recipe_runs_and_takes_what_was_said(reproduce: Reproduce, seen: Counter[str], names: list[str]) -> None:
    """One row each, those that are trained after two steps; passes and bytes are those that the dry run counts."""
    rows = ("table1", "--rows", ",".join(names))
    ok(reproduce(*rows, "--dry-run", "--json", "dry.json"))
    assert not Path("reproduce").exists()
    assert not seen.total()
    foreseen = json.loads(Path("dry.json").read_text())["left"][-1]
    ok(reproduce(*rows))
    assert foreseen["name"] == "all"
    assert {name: foreseen[name] for name in ("encode", "dino", "passes", "backward")} == {
        name: seen[name] for name in ("encode", "dino", "passes", "backward")
    }
    assert foreseen["bytes_to_write"] == sum(file.stat().st_size for file in rows_written())
    found = figures("table1")
    for name in names:
        one = found[name if RECIPES[name].train is None else f"{name}@spair", 0.1]
        assert 0 <= one["low_percent"] <= one["pck_percent"] <= one["high_percent"] <= 100
    for file in ("table1.md", "table1.tex"):
        text = Path("reproduce/tables", file).read_text()
        assert all(name in text for name in names)
    ok(reproduce(*rows, "--dry-run", "--json", "dry.json"))
    assert json.loads(Path("dry.json").read_text())["left"] == []


def test_what_is_done_is_not_done_again(reproduce: Reproduce, run: Run, seen: Counter[str]) -> None:
    first = ok(reproduce("table5", *FEW))
    assert len(commands(first)) == 4
    one = figures("table5")["dift", 0.05]
    page = read_page(Path("reproduce/report.html"))
    shown = f"{one['pck_percent']:.2f} [{one['low_percent']:.2f}, {one['high_percent']:.2f}]"
    assert page.table("spair").column("@0.05")["dift by nn"] == shown
    assert "--layers 2 --t 261" in page.text
    assert "Not run, for want of pf-pascal: all rows on pf-pascal." in first.output
    before, table = seen.copy(), Path("reproduce/tables/table5.json").read_text()
    again = ok(reproduce("table5", *FEW))
    assert "3 cell(s) were scored before" in again.output
    assert not commands(again)
    assert seen == before
    assert Path("reproduce/tables/table5.json").read_text() == table
    # a table's file is a config, too
    configured = ok(run("reproduce", "table5", "--config", "reproduce/tables/table5.json"))
    assert "3 cell(s) were scored before" in configured.output
    assert Path("reproduce/tables/table5.json").read_text() == table
    # Table 3 asks for the same cells, by another name
    shared = ok(reproduce("table3", "--rows", "dift,sd4match-single"))
    assert "Tables 3 and 5 of the report" in read_page(Path("reproduce/report.html")).text
    assert not commands(shared)
    assert (
        figures("table3")["sd4match-single", 0.05]["pck_percent"]
        == figures("table5")["sd4match-single@spair", 0.05]["pck_percent"]
    )
    longer = ok(reproduce("table5", *FEW, "--train-steps", "3"))
    assert " train " in commands(longer)[0]  # its best prompts may be those of before
    assert sorted(path.name for path in Path("reproduce/runs").iterdir()) == [
        "sd4match-single@spair-2",
        "sd4match-single@spair-3",
    ]


@pytest.mark.slow
def test_an_interrupted_one_goes_on(reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.reproduction import run as module

    ok(reproduce("table5", *FEW))
    whole = Path("reproduce/tables/table5.json").read_text()
    shutil.rmtree("reproduce")
    plain, count = module.evaluate, 0

    def stopped(config: EvalConfig) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        plain(config)

    monkeypatch.setattr(module, "evaluate", stopped)
    assert reproduce("table5", *FEW).exit_code == 130
    again = ok(reproduce("table5", *FEW))
    assert "1 cell(s) were scored before" in again.output
    assert [command.split()[2] for command in commands(again)] == ["eval", "eval"]
    assert Path("reproduce/tables/table5.json").read_text() == whole


def test_what_fails_leaves_the_rest_alone(reproduce: Reproduce) -> None:
    result = reproduce("table5", "--rows", "dino,sd4match-cpm@spair,dift", "--dino", "no-such-dino")
    assert result.exit_code == 2
    assert "dualsd: dino on spair was not run: There is no DINOv2 'no-such-dino'" in result.stderr
    assert "dualsd: sd4match-cpm@spair was not run: There is no DINOv2" in result.stderr
    assert "sd4match-cpm@spair on spair was not run: The training sd4match-cpm@spair failed." in result.stderr
    found = figures("table5")
    assert found["dift", 0.1]["pck_percent"] is not None
    assert found["dino", 0.1]["pck_percent"] is None


def test_a_run_that_was_trained_otherwise_is_not_taken(reproduce: Reproduce) -> None:
    ok(reproduce("table3", "--rows", "sd4match-single"))
    description = Path("reproduce/runs/sd4match-single@spair-2/run.json")
    run = json.loads(description.read_text())
    run["settings"]["rate"] = 0.5
    description.write_text(json.dumps(seal({name: value for name, value in run.items() if name != "checksum"})))
    result = reproduce("table3", "--rows", "sd4match-single,dift")
    assert result.exit_code == 2
    assert "was begun with rate 0.5, not 0.01" in result.stderr
    assert figures("table3")["dift", 0.05]["pck_percent"] is not None


def test_cells_belong_to_prompts_and_not_to_runs(reproduce: Reproduce) -> None:
    ok(reproduce("table3", "--rows", "sd4match-single"))
    shutil.rmtree("reproduce/runs")
    again = ok(reproduce("table3", "--rows", "sd4match-single"))
    # the same prompts, bit by bit, and so the cell that was scored
    assert [command.split()[2] for command in commands(again)] == ["train"]
    assert len(list(Path("reproduce/cells").iterdir())) == 1


def test_figures_are_those_of_the_evaluations_that_are_kept(reproduce: Reproduce, run: Run) -> None:
    """A cell is a run of `dualsd eval`: `score` reads it, and figures that a kill left out are made from it."""
    both = ok(reproduce("table5", "--rows", "dift,dift-pixel"))
    assert "does not name its readout" in both.output
    lines = [line.split("│") for line in both.output.splitlines() if line.startswith("│ dift")]
    named = {line[1].strip(): line[2].strip() for line in lines if " by " in line[1]}  # not what it takes
    table = Path("reproduce/tables/table5.json").read_text()
    for folder in sorted(Path("reproduce/cells").iterdir()):
        ok(run("score", str(folder), "--json", "score.json"))
        name = folder.name.partition(" on ")[0]
        results = json.loads(Path("score.json").read_text())["results"]
        kept = json.loads((folder / "figures.json").read_text())["figures"]
        assert set(kept) == ({"pixel"} if name == "dift-pixel" else {"nn", "kernelsoftmax"})
        for readout, by_alpha in kept.items():
            assert set(by_alpha) == {"0.05", "0.1", "0.15"}
            for alpha, by_category in by_alpha.items():
                assert set(by_category) == {"cat", "dog", "all"}
                for category, interval in by_category.items():
                    assert interval["mean"] == pytest.approx(results[readout]["image"][alpha][category])
                    assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
            printed = named.pop(f"{name} by {readout}")
            assert printed.startswith(f"{100 * by_alpha['0.05']['all']['mean']:.2f} [")
        (folder / "figures.json").unlink()
    again = ok(reproduce("table5", "--rows", "dift,dift-pixel"))
    assert not named
    assert not commands(again)
    assert Path("reproduce/tables/table5.json").read_text() == table


@pytest.mark.usefixtures("everything_drawn")
def test_the_figure(reproduce: Reproduce) -> None:
    ok(reproduce("figure2", "--dry-run", "--json", "dry.json"))
    assert not Path("reproduce").exists()
    # 8 images of val, 50 to 400 and 261, 8 draws
    assert json.loads(Path("dry.json").read_text())["left"][-1]["passes"] == 8 * 9 * 8
    made = ok(reproduce("figure2", "--json", "figure.json"))
    assert re.search(r"│ alone \(2.3\) +│ +350 │ +\d+ \(", made.output)
    (folder,) = Path("reproduce/figures").iterdir()
    names = itertools.product(("timesteps", "two-layers"), ("nn", "kernelsoftmax"))
    pictures, tables = [f"{name}-{readout}.png" for name, readout in names], ("table.md", "table.tex")
    beside = {"grid.json", "grid.safetensors", "report.html"}
    assert {path.name for path in folder.iterdir()} == {*beside, *pictures, *tables}
    cells = json.loads((folder / "grid.json").read_text())["cells"]
    assert sum(len(cell["layers"]) == 1 for cell in cells) == 2 * 9
    assert Path("figure.json").read_text() == (folder / "grid.json").read_text()
    assert "was made before" in ok(reproduce("figure2")).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table6"], "no 'table6' to reproduce: choose from table1, "),
        (["table5", "--on", "spair"], "--on is demo, not 'spair'"),
        (["table5"], "Nothing of Table 5 can be run without a dataset"),
        (["figure2", "--model", "demo"], "Figure 2 needs spair"),
        (["figure2", "--on", "demo", "--rows", "dift"], "--rows and --train-steps go with a table"),
        (["table5", "--dataset-root", "nowhere"], "--dataset-root nowhere is no folder"),
        (["table5", "--dataset-root", "."], "--dataset-root . holds no dataset of the paper"),
        (["table5", "--on", "demo", "--rows", "best"], "--rows names 'best'"),
        (["table5", "--on", "demo", "--model", "sd9"], "no model 'sd9'"),
        (["table5", "--on", "demo", "--json", "no/file.json"], "no/file.json cannot be written"),
    ],
)
def test_one_sentence(run: Run, arguments: list[str], words: str) -> None:
    result = run("reproduce", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("reproduce").exists()


def test_it_is_one_processs_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    result = run("reproduce", "table5", "--on", "demo")
    assert (result.exit_code, "`reproduce` is not divided among processes" in result.stderr) == (2, True)


def test_a_model_that_is_not_here_cannot_be_counted(run: Run, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a dry run does not fetch it."""
    monkeypatch.setattr("featstore.backbones.locate.downloaded", lambda *_: None)
    result = ok(run("reproduce", "table5", "--dataset-root", str(datasets), "--dry-run"))
    assert "sd2-1 is not on this machine" in result.output
    assert "Table 5: 7 row(s)" in result.output


def test_datasets_are_found_by_their_usual_names(tmp_path: Path) -> None:
    for name in ("SPair-71k", "spair"):
        root = tmp_path / name
        write_trainable(root / name)
        assert find_datasets(root) == {"spair": root / name}
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="holds no dataset"):
        find_datasets(tmp_path / "other")
    assert find_datasets(None) == {}


@pytest.mark.slow
def test_every_recipe_runs_on_the_demo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a few of its pictures, as every pair of a cpm takes passes of its own."""
    monkeypatch.setattr(demo, "SIZES", {"trn": 4, "val": 3, "test": 4})
    monkeypatch.setattr(demo, "TEST_PAIRS", 6)
    ok(run("reproduce", "table1", "--on", "demo", "--train-steps", "2", "--rows", ",".join(RECIPES)))
    written = json.loads(Path("reproduce/tables/table1.json").read_text())["figures"]
    scored = {one["row"] for one in written if one["pck_percent"] is not None}
    assert scored == {name if recipe.train is None else f"{name}@spair" for name, recipe in RECIPES.items()}


@pytest.mark.slow
def test_table_5_on_the_demo(run: Run) -> None:
    """Seven rows with intervals, by both readouts; the two training sets share one training, and so their figures."""
    result = ok(run("reproduce", "table5", "--on", "demo", "--train-steps", "10"))
    lines = [line for line in result.output.splitlines() if line.startswith("│ d") or line.startswith("│ sd4match")]
    table = [line for line in lines if line.count("[") == 2]
    rows = ("dift", "dift-bicubic", "dift-dual", "sd4match-single@pf-pascal", "sd4match-single@spair")
    rows += ("dual-single@pf-pascal", "dual-single@spair")
    assert [line.split("│")[1].strip() for line in table] == [
        f"{row} by {readout}" for row in rows for readout in ("nn", "kernelsoftmax")
    ]
    ours = [[cell for cell in line.split("│") if "[" in cell] for line in table]
    assert ours[6:8] == ours[8:10]
    assert ours[10:12] == ours[12:14]
    assert len({tuple(row) for row in ours}) == 10
    assert "The demo's own trn stands for the training set(s) pf-pascal, spair" in result.output
    assert "The report contradicts itself: dift on spair @0.05 is 37.26 in Table 3 and 39.34" in result.output
    assert len([command for command in commands(result) if " train " in command]) == 2
