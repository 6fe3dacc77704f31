"""A small random DINOv3 as a user types it: in `eval`, `grid`, `match`, `cache maps`, and in Python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dualsd
from tests.cli.conftest import Run
from tests.featstore.backbones.test_dino_family import transformer


@pytest.fixture
def dinov3(tmp_path: Path, small_model: Path) -> str:
    return str(transformer(tmp_path / "dinov3", small_model)[0])


def done(run: Run, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def results(run: Run, *arguments: str) -> dict[str, Any]:
    done(run, *arguments, "--json", "out.json")
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def test_commands_take_its_layers(run: Run, store: Path, dinov3: str) -> None:
    asked = ("--dino", dinov3, "--dino-size", "64")
    output = done(run, "cache", "maps", "--layers", "dinov3:2", *asked)
    assert "layer dinov3:2: 24 channels, 4x4 cells of 16 pixels" in output
    assert "6 images: 6 DINOv3 passes made" in output
    out = results(run, "eval", "--layers", "dinov3:2", "--readouts", "nn", *asked)
    assert (out["layers"], out["features"]["dinov3"], out["features"]["dinov3_size"]) == (["dinov3:2"], dinov3, 64)
    without = results(run, "eval", "--layers", "dinov3:2", "--readouts", "nn", *asked, "--dino-debias", "5")
    assert without["features"]["dinov3_debias"] == 5
    assert without["features"]["dinov3_extractor"] != out["features"]["dinov3_extractor"]
    fused = results(run, *("eval", "--layers", "2,dinov3", "--t", "261", "--ensemble", "1", "--readouts", "nn"), *asked)
    assert fused["weights"] == [0.5, 0.5]
    grid = results(run, "grid", "--layers", "dinov3:1,dinov3:3", "--split", "test", "--weights", "1:1", *asked)
    assert "dinov3:1" in json.dumps(grid)
    info = done(run, "cache", "info")
    assert "5 directions of position taken out" in " ".join(info.split())


def test_a_damaged_row_is_made_again_by_the_command_that_verify_names(run: Run, store: Path, dinov3: str) -> None:
    asked = ("--dino", dinov3, "--dino-size", "64", "--dino-debias", "3")
    done(run, "cache", "maps", "--layers", "dinov3:2", *asked)
    (row,) = store.glob("maps/*/dinov3%3A2/patches/c.1.0.0.0")
    before = row.read_bytes()
    row.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    result = run("cache", "verify", "--drop")
    (line,) = [line for line in result.output.splitlines() if "dualsd cache maps" in line]
    words = line[line.index("dualsd cache maps") :].split()
    done(run, *words[1:])
    assert row.read_bytes() == before


def test_match_and_python(run: Run, store: Path, photographs: Path, small_model: Path, dinov3: str) -> None:
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    done(
        run,
        *("match", a, b, "--points", "10,10;30,20", "--model", str(small_model), "--layers", "dinov3:2"),
        *("--dino", dinov3, "--dino-size", "64", "--json", "match.json"),
    )
    typed = json.loads(Path("match.json").read_text())
    from featstore.backbones.base import Asked

    featurizer = dualsd.Featurizer(str(small_model), others={"dinov3": Asked(dinov3, 64)})
    maps = [featurizer(Image.open(one), layers=("dinov3:2",)) for one in (a, b)]
    found = dualsd.match(*maps, points=[(10, 10), (30, 20)])
    np.testing.assert_allclose(typed["target_points"], found.points, atol=1e-3)


def test_its_options_belong_to_its_layers(run: Run, store: Path) -> None:
    result = run("eval", "--layers", "2", "--t", "261", "--dino-debias", "5")
    assert result.exit_code == 2
    assert "--dino-debias goes with the layers dino and dinov3: name one in --layers." in " ".join(
        result.output.split()
    )
