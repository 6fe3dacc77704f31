"""`report.html` and the tables beside it hold what was measured, and nothing that a dataset wrote runs in them."""

import csv
import json
import os
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from cli.reports.evaluation import report_evaluation
from cli.reports.training import report_training
from cli.reproduction.paper import load_tables
from cli.reproduction.tables import report_reproduction
from featstore.datasets.records import Difficulty
from featstore.pipeline.predictions import load_predictions
from featstore.pipeline.results import save_evaluation
from matcher.plot import draw_matches, drawable
from tests.cli.conftest import Run
from tests.cli.html_page import HtmlPage, read_page
from tests.cli.reproductions import write_reproduction
from tests.featstore.evaluations import annotated, framed, guessed, many_pairs, result_of

pytestmark = pytest.mark.usefixtures("everything_drawn")

EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")
KEPT = Path("runs/eval-2+3-001")
HOSTILE = "</svg><script>alert(1)</script>&_%$x_1$#{}\\~^|`\"'"
LARGEST = 5_000_000


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def means(column: dict[str, str]) -> dict[str, str]:
    """Figures without their intervals."""
    return {name: shown.split(" [")[0] for name, shown in column.items()}


def percent(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.2f}" for name, value in values.items()}


def assert_whole(page: HtmlPage) -> None:
    """Nothing is fetched, nothing runs, every header cell says whose it is, every picture has words."""
    names = {name for name, _ in page.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "base"}
    for name, given in page.elements:
        for attribute in ("href", "src"):
            assert (given.get(attribute) or "#").startswith(("#", "data:")), (name, given)
        assert not [key for key in given if key.startswith("on")]
        if name == "th":
            assert given["scope"] in ("col", "row")
        if name == "img":
            assert given["alt"]
    identifiers = [given["id"] for _, given in page.elements if "id" in given]
    assert len(identifiers) == len(set(identifiers))


def test_an_evaluations_figures_are_those_of_its_results(run: Run, store: Path) -> None:
    output = ok(run(*EVAL, "--readouts", "nn,softmax,pixel", "--by", "point")).output
    assert f"report: {KEPT}/report.html" in output
    results = json.loads((KEPT / "results.json").read_text())["results"]
    page = read_page(KEPT / "report.html")
    assert_whole(page)
    for average in ("image", "point"):
        table = page.table(f"{average.capitalize()} average")
        for alpha in ("0.05", "0.1", "0.15"):
            expected = percent({readout: results[readout][average][alpha]["all"] for readout in results})
            shown = means(table.column(f"@{alpha}"))
            assert {name.split(",")[0]: value for name, value in shown.items()} == expected
    for readout in results:
        table = page.table(f"{readout}, point average")
        assert means(table.column("@0.1")) == percent(results[readout]["point"]["0.1"])
        assert table.column("pairs") == {"cat": "6", "dog": "6", "all": "12"}
    assert f"{100 * results['nn']['point']['0.1']['all']:.1f} % of the keypoints" in page.text  # the headline
    assert "t\u00a0=\u00a0261, weight\u00a00.8".replace("\u00a0", " ") in page.text
    for setting in ("longer side of the resized image", "nn: resized, softmax: resized, pixel: original"):
        assert setting in page.text


def test_few_images_are_no_headline(tmp_path: Path) -> None:
    """Of eight, and of twenty."""
    for images, words in ((4, "Too few images"), (10, "95 % interval")):
        pairs = many_pairs(images)
        path = save_evaluation(result_of(pairs, {"nn": guessed(pairs, 0.1, 0)}), tmp_path / f"run-{images}")
        text = read_page(report_evaluation(path)).text
        assert [
            shown for shown in ("Too few images", "95 % interval") if f" {shown}" in text.split("How to read")[0]
        ] == [words]
        assert ("These are 8 images, and fewer than 20 say little of how others would do" in text) == (images == 4)
        assert ("The interval says how far" in text) == (images == 10)


def test_names_in_any_script_are_drawn_without_a_word(
    tmp_path: Path, everything_drawn: None, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = many_pairs(4, ("\u732b", "\u0938\u093f\u0902\u0939"))
    path = save_evaluation(result_of(pairs, {"nn": guessed(pairs, 0.1, 0)}), tmp_path / "run")
    page = read_page(report_evaluation(path))
    pictures = [b64decode(str(given["src"]).split(",")[1]).decode() for given in page.pictures("image/svg")]
    assert any("\u732b" in picture for picture in pictures)  # as text, which a browser draws
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    points = np.ones((1, 2), dtype=np.float32)
    draw_matches(tmp_path / "matches.png", picture, picture, points, points, ("\u732b.png", "b.png"), np.array([True]))
    assert (drawable("\u732b.png"), drawable("caf\u00e9")) == ("\\u732b.png", "caf\u00e9")
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []
    assert caplog.text == ""


def test_a_telephone_shows_pairs_one_under_the_other(run: Run, store: Path) -> None:
    ok(run(*EVAL, "--readouts", "nn"))
    page = read_page(KEPT / "report.html")
    narrow = [given for name, given in page.elements if name == "source"]
    assert [given["media"] for given in narrow] == ["(max-width: 40rem)"] * 4
    for given, wide in zip(narrow, page.pictures("image/webp"), strict=True):
        sizes = [Image.open(BytesIO(b64decode(str(one).split(",")[1]))).size for one in (given["srcset"], wide["src"])]
        (width, height), (wide_width, wide_height) = sizes
        assert (height > width, wide_width > wide_height) == (True, True)
        assert 1.4 * width < wide_width


def test_the_curve_is_what_score_prints(run: Run, store: Path) -> None:
    ok(run(*EVAL, "--readouts", "nn,softmax"))
    ok(run("score", str(KEPT), "--alphas", "0.01..0.2:0.01", "--json", "s.json"))
    scored = json.loads(Path("s.json").read_text())["results"]
    table = read_page(KEPT / "report.html").table("The curve's points")
    for readout in ("nn", "softmax"):
        expected = {alpha: columns["all"] for alpha, columns in scored[readout]["image"].items()}
        assert len(expected) == 20
        assert table.column(readout) == percent(expected)


def test_pairs_are_drawn_where_their_images_are_found(run: Run, store: Path, photographs: Path) -> None:
    ok(run(*EVAL, "--readouts", "nn"))
    page = read_page(KEPT / "report.html")
    drawn = page.pictures("image/webp;base64,")
    assert len(drawn) == 4  # of each category's three pictures one pair is shown in a list
    assert len({given["src"] for given in drawn}) == 4
    photographs.rename("elsewhere")
    ok(run("report", str(KEPT)))
    page = read_page(KEPT / "report.html")
    assert "Their pictures cannot be shown: The root" in page.text
    assert [row[0] for row in page.table("Best and worst pairs").rows[1:]] == ["best", "best", "worst", "worst"]
    ok(run("report", str(KEPT), "--root", "elsewhere"))
    assert read_page(KEPT / "report.html").pictures("image/webp;base64,") == drawn
    Image.new("RGB", (9, 9)).save("elsewhere/cat/0.png")
    ok(run("report", str(KEPT), "--root", "elsewhere"))
    assert "it was replaced" in read_page(KEPT / "report.html").text


def test_difficulty_by_hand(tmp_path: Path) -> None:
    """Four pairs of two points, theta 50: right are 2, 1, 0 and 2 of them at 0.1."""
    flags = [(0, 1, 0, 3), (0, 2, 0, 0), (2, 1, 1, 0), (2, 2, 0, 0)]
    pairs = [
        framed(annotated(source=f"cat/{place}", target=f"cat/{place + 4}", difficulty=Difficulty(*own)))
        for place, own in enumerate(flags)
    ]
    assert pairs[0].theta == pytest.approx(80)
    far, near = np.array([0.0, 8.1]), np.array([0.0, 7.9])
    off = [[near, near], [near, far], [far, far], [near, near]]
    predicted = [pair.target_points + np.array(own) for pair, own in zip(pairs, off, strict=True)]
    save_evaluation(result_of(pairs, {"nn": predicted}), tmp_path / "run")
    kept = load_predictions(tmp_path / "run" / "predictions.safetensors")
    assert [match.pair.flags for match in kept] == [pair.flags for pair in pairs]
    page = read_page(report_evaluation(tmp_path / "run"))
    (table,) = (table for table in page.tables if table.rows[0][:2] == ["variation", "level"])
    found = {(row[0], row[1]): (row[2], row[4].split(" [")[0]) for row in table.rows[1:]}
    assert table.rows[0][4] == "@0.1"
    assert found == {
        ("viewpoint", "easy"): ("2", "75.00"),
        ("viewpoint", "hard"): ("2", "50.00"),
        ("scale", "medium"): ("2", "50.00"),
        ("scale", "hard"): ("2", "75.00"),
        ("truncation", "none"): ("3", "83.33"),
        ("truncation", "source"): ("1", "0.00"),
        ("occlusion", "none"): ("3", "50.00"),
        ("occlusion", "both"): ("1", "100.00"),
    }
    assert [row[0] for row in table.rows[1:]][::2] == ["viewpoint", "scale", "truncation", "occlusion"]


def test_no_difficulty_where_a_dataset_has_none(run: Run, store: Path) -> None:
    ok(run(*EVAL, "--readouts", "nn"))
    assert "By difficulty" not in read_page(KEPT / "report.html").text


def test_names_of_a_dataset_are_text(tmp_path: Path) -> None:
    pairs = many_pairs(4, ("cat", HOSTILE))
    result = result_of(pairs, {"nn": guessed(pairs, 0.1, 0)})
    about = {"command": f"dualsd eval {HOSTILE}", "root": str(tmp_path / HOSTILE.replace("/", "-")), "store": HOSTILE}
    path = save_evaluation(replace(result, features={"prompt": HOSTILE}), tmp_path / "<run>", about=about)
    page = read_page(report_evaluation(path))
    assert_whole(page)
    assert page.text.count(" ".join(HOSTILE.split())) >= 6
    assert HOSTILE in page.table("nn, image average").column("pairs")
    source = (path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source
    drawn = [b64decode((given["src"] or "").partition(",")[2]).decode() for given in page.pictures("image/svg+xml")]
    assert len(drawn) == 2
    assert sum("&lt;script" in text for text in drawn) == 1  # the bars' names
    assert not [text for text in drawn if "<script" in text]
    latex = (path / "table.tex").read_text(encoding="utf-8")
    assert r"\&\_\%\$x\_1\$\#\{\}\textbackslash{}\textasciitilde{}\textasciicircum{}|`" in latex
    markdown = (path / "table.md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|") and "script" in line]
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 1 + 4  # category, pairs, two alphas


def test_a_whole_benchmark_stays_small(tmp_path: Path) -> None:
    """18 categories and 12,234 pairs as SPair-71k's test split has, four readouts, the largest pictures of noise."""
    categories = [f"category {number}" for number in range(18)]
    photographs = tmp_path / "photographs"
    noise = np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.jpg")
    for category in categories:
        (photographs / category).mkdir(parents=True)
        for number in range(27):
            os.link(tmp_path / "noise.jpg", photographs / category / f"{number}.jpg")
    (photographs / "keypoints.csv").write_text("image,name,x,y\n")
    pairs = many_pairs(27, categories)[:12_234]
    assert len(pairs) == 12_234
    original = [replace(pair.in_original_frame(), source_size=(500, 400), target_size=(500, 400)) for pair in pairs]
    flags = {"viewpoint": 2, "scale": 2, "truncation": 3, "occlusion": 3}
    pairs = [
        replace(pair, original=own, flags={name: place % (most + 1) for name, most in flags.items()})
        for place, (pair, own) in enumerate(zip(pairs, original, strict=True))
    ]
    readouts = ("nn", "bilinear", "softmax", "kernelsoftmax")
    result = result_of(pairs, {readout: guessed(pairs, 0.1, seed) for seed, readout in enumerate(readouts)})
    path = save_evaluation(replace(result, dataset="folder"), tmp_path / "run", about={"root": str(photographs)})
    file = report_evaluation(path)
    page = read_page(file)
    assert len(page.pictures("image/webp")) == 8
    assert file.stat().st_size < LARGEST


def test_a_trainings_figures_are_those_of_its_metrics(tmp_path: Path) -> None:
    path = written_training(
        tmp_path, [(step, 7 - step / 10, "" if step % 3 else 0.3 + step / 100) for step in range(1, 10)]
    )
    page = read_page(report_training(path))
    assert_whole(page)
    table = page.table("Validations")
    assert table.rows[1:] == [["3", "6.8000", "33.00"], ["6", "6.5000", "36.00"], ["9", "6.2000", "39.00 *"]]
    assert "39.00% at step 9, after 9 of 12 steps" in page.text
    assert f"dualsd train --resume {path}" in page.text
    for setting in (
        "Vectors a prompt75",
        "Learning rate0.01",
        "Timesteps261, 350",
        "Weights0.8, 0.6",
        "Validation timesteps261, 350",
        "Loss kernel in cells3",
    ):
        assert setting in page.text


def test_a_training_without_validation(tmp_path: Path) -> None:
    path = written_training(tmp_path, [(step, 2.0, "") for step in range(1, 13)])
    page = read_page(report_training(path))
    assert "Loss, mean of the last steps 2.000 after 12 of 12 steps" in page.text
    assert "--resume" not in page.text


def written_training(tmp_path: Path, rows: list[tuple[int, float, float | str]]) -> Path:
    """A run's folder of 12 steps as `dualsd train` leaves it, but for prompts."""
    matching = {"image_size": 128, "geometry": "corners", "upsample": 1, "upsample_align": "corners"}
    matching |= {"beta": 0.04, "sigma": 7.0, "window": 7, "window_beta": 0.02}
    settings = {
        **{"mode": "class", "layers": [2, 3], "timesteps": [261, 350], "weights": [0.8, 0.6], "length": 75},
        **{"steps": 12, "sampling": "pairs", "batch": 3, "clique": 6, "accumulate": 1, "noise": "cached", "draws": 4},
        **{"rate": 0.01, "network_rate": 0.001, "kernel": 3, "matching": matching, "validate_every": 3, "seed": 0},
        **{"validation_pairs": 9, "validation_timesteps": [261, 350], "checkpoint_every": 3, "dtype": "float32"},
    }
    path = tmp_path / "class-2+3-001"
    path.mkdir()
    described = {"format": "dualsd run", "version": 1, "store": {"path": "d.zarr", "identity": "demo|1"}}
    (path / "run.json").write_text(json.dumps({**described, "dataset": "demo", "settings": settings}))
    with (path / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "pck", "seconds"), *((*row, "1.0") for row in rows)])
    return path


def test_a_reproduction_shows_every_table_with_differences_marked(tmp_path: Path) -> None:
    write_reproduction(tmp_path)
    page = read_page(report_reproduction(tmp_path))
    assert_whole(page)
    assert "Tables 3 and 5 of the report, run again" in page.text
    assert page.table("dift by nn, spair").column("paper")["all"] == "37.26"
    assert page.table("dift by nn, spair").column("difference")["all"] == "+2.74 *"
    (wide,) = (table for table in page.tables if table.label == "spair")
    assert wide.rows == [
        ["method", "@0.05", "paper", "difference", "@0.1", "paper", "difference"],
        ["dift by nn", "40.00 [39.00, 41.00]", "39.34", "+0.66", "40.00 [39.00, 41.00]", "52.31", "-12.31 *"],
        ["dift by kernelsoftmax", "-", "39.34", "-", "-", "52.31", "-"],
    ]
    marked = [given for name, given in page.elements if name == "td" and "marked" in (given.get("class") or "")]
    outside = sum(abs(40 - percent) > 1 for percent in own_figures("table3", 0.05))
    assert len(marked) == outside + 1


def own_figures(table: str, alpha: float) -> list[float]:
    """The paper's of DIFT on SPair-71k."""
    figures = load_tables()[table].figures.items()
    return [percent for (method, _, _, at), percent in figures if (method, at) == ("dift", alpha)]


def test_a_grid_says_its_winner_and_shows_its_pictures(run: Run, store: Path) -> None:
    command = ("grid", "--t", "50,261", "--ensemble", "1", "--batch-size", "4", "--readouts", "nn,softmax")
    output = ok(run(*command, "--weights", "0.8:0.6", "--split", "test", "--json", "g.json")).output
    assert "report: grid/report.html" in output
    page = read_page(Path("grid/report.html"))
    assert_whole(page)
    answer = next(one for one in json.loads(Path("g.json").read_text())["answer"] if one["alpha"] == 0.1)
    assert f"{100 * answer['lead']['mean']:+.2f} points" in page.text
    assert f"Together: {answer['together']['name']}. Alone: {answer['alone']['name']}." in page.text
    best = page.table("The best of 8 configurations").rows[1:]
    assert [row[:2] for row in best] == [
        [name, alpha] for name in ("nn", "softmax") for alpha in ("0.05", "0.1", "0.15")
    ]
    pictures = page.pictures("image/svg+xml;base64,")
    assert len(pictures) == 2 * 3 + 2 * 1  # accuracy and heat map: three alphas for nn, one for softmax
    tables = [line for line in Path("grid/table.tex").read_text().splitlines() if line == r"\toprule"]
    assert len(tables) == 2 + 2 * 2


def test_what_is_no_run_is_refused(run: Run, tmp_path: Path) -> None:
    Path("other").mkdir()
    for folder in ("nothing", "other"):
        result = run("report", folder)
        assert result.exit_code == 2
        assert f"{folder} is no run of `dualsd eval` or `dualsd train`" in result.stderr
    path = written_training(tmp_path, [])
    result = run("report", str(path))
    assert (result.exit_code, "has no metrics yet" in result.stderr) == (2, True)
    shutil.rmtree(path)


def test_the_command_line_is_kept(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/dualsd", "eval", "--prompt", "a photo"])
    ok(run(*EVAL, "--readouts", "nn"))
    assert json.loads((KEPT / "run.json").read_text())["command"] == "dualsd eval --prompt 'a photo'"
    assert "dualsd eval --prompt 'a photo'" in read_page(KEPT / "report.html").text
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/pytest", "-q"])
    ok(run(*EVAL, "--readouts", "nn"))
    assert json.loads(Path("runs/eval-2+3-002/run.json").read_text())["command"] is None
