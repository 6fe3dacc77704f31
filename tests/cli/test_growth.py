"""A data set that changes: `cache build` encodes what is new and nothing else, whatever happens meanwhile."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featstore.store.rows import RowArray
from featstore.store.store import open_store
from tests.cli.conftest import Run
from tests.featstore.pipeline.test_build import counted_vae
from tests.forked import at_once

BUILD = ("cache", "build", "--t", "50,261", "--batch-size", "4")
EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4", "--readouts", "nn,softmax")


def add(photographs: Path, name: str, seed: int) -> None:
    """A photograph with its keypoints."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (50, 66, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photographs / f"{name}.png")
    points = (f"{name},k{point},{random.uniform(0, 65):.2f},{random.uniform(0, 49):.2f}\n" for point in range(4))
    with (photographs / "keypoints.csv").open("a") as keypoints:
        keypoints.writelines(points)


def remove(photographs: Path, name: str) -> None:
    (photographs / f"{name}.png").unlink()
    lines = (photographs / "keypoints.csv").read_text().splitlines(keepends=True)
    (photographs / "keypoints.csv").write_text("".join(line for line in lines if not line.startswith(f"{name},")))


def turn(photographs: Path, name: str) -> None:
    Image.open(photographs / f"{name}.png").rotate(180).save(photographs / f"{name}.png")


@pytest.fixture
def twelve(photographs: Path, store: Path, run: Run) -> Path:
    """A store of twelve photographs."""
    for number in range(6):
        add(photographs, f"{('cat', 'dog')[number % 2]}/{10 + number}", number)
    assert "12 images of folder, 6 encoded, 6 skipped, 6 new" in done(run, *BUILD)[0]
    return store


def done(run: Run, *arguments: str) -> tuple[str, Any]:
    result = run(*arguments, *(() if arguments[0] == "cache" else ("--json", "out.json")))
    assert result.exit_code == 0, result.output
    return result.output, None if arguments[0] == "cache" else json.loads(Path("out.json").read_text())["results"]


def test_what_came_is_encoded_and_what_went_is_said(
    run: Run, twelve: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a store that was built of the photographs as they are in the end."""
    done(run, *EVAL)  # so that maps of all are there
    with counted_vae(monkeypatch) as encoded:
        for change, said, passes in [
            (lambda: add(photographs, "cat/99", 99), "13 images of folder, 1 encoded, 12 skipped, 1 new", 1),
            (lambda: turn(photographs, "dog/1"), "13 images of folder, 1 encoded, 12 skipped, 1 had changed", 1),
            (lambda: shutil.copy(photographs / "cat" / "10.png", tmp_path), "0 encoded, 13 skipped", 0),
            (lambda: remove(photographs, "cat/10"), "12 images of folder, 0 encoded, 12 skipped, 1 gone", 0),
            (lambda: None, "12 images of folder, 0 encoded, 12 skipped\n", 0),
        ]:
            encoded.clear()
            change()
            assert said in done(run, *BUILD)[0]
            assert sum(encoded) == passes
        encoded.clear()
        _, grown = done(run, *EVAL)
        assert encoded == []
    build = ("--dataset", "folder", "--root", str(photographs), "--size", "64")
    model = open_store(twelve).header.model_id
    done(run, *BUILD, *build, "--model", model, "--store", "fresh.zarr")
    assert done(run, *EVAL, "--store", "fresh.zarr")[1] == grown
    assert run("cache", "verify").exit_code == 0


def test_an_image_that_comes_back_costs_nothing_unless_its_rows_were_pruned(
    run: Run, twelve: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = done(run, *EVAL)
    shutil.copytree(photographs, "all")
    remove(photographs, "dog/11")
    output, _ = done(run, *BUILD)
    assert "gone from the data set: dog/11; their rows are kept" in output
    assert "`dualsd cache prune --gone`" in output
    assert done(run, *EVAL)[1] != before

    def back() -> None:
        shutil.copytree("all", photographs, dirs_exist_ok=True)

    with counted_vae(monkeypatch) as encoded:
        back()
        assert "0 encoded, 12 skipped, 1 new" in done(run, *BUILD)[0]
        assert done(run, *EVAL)[1] == before
        assert encoded == []
        remove(photographs, "dog/11")
        done(run, *BUILD)
        # latents, noise at two timesteps, maps of two layers
        assert "5 rows of 1 images would be deleted" in done(run, "cache", "prune", "--gone", "--dry-run")[0]
        assert "5 rows of 1 images deleted" in done(run, "cache", "prune", "--gone")[0]
        assert "0 rows of 1 images deleted" in done(run, "cache", "prune", "--gone")[0]
        back()
        assert "1 encoded, 11 skipped, 1 new" in done(run, *BUILD)[0]
        assert sum(encoded) == 1
    assert done(run, *EVAL)[1] == before


@pytest.mark.parametrize("packed", [False, True])
def test_an_eval_while_a_builder_changes_everything(
    run: Run, twelve: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """It keeps what it started with, and gives what it would have given."""
    _, before = done(run, *EVAL)
    if packed:
        done(run, "cache", "pack")
    plain, reads = RowArray.read, list[object]()

    def reading(array: RowArray, row: tuple[int, ...]) -> object:
        reads.append(row)
        if len(reads) == 7 and array.path.startswith("maps/"):
            add(photographs, "cat/99", 99)
            turn(photographs, "dog/1")
            remove(photographs, "cat/10")
            done(run, *BUILD)
        return plain(array, row)

    monkeypatch.setattr(RowArray, "read", reading)
    assert done(run, *EVAL)[1] == before
    assert len(open_store(twelve).images) == 14
    assert done(run, *EVAL)[1] != before


KILLS = [1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 26]


def test_a_build_that_was_killed_is_completed(
    run: Run, twelve: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of several renamings and links of files: of the log's entry, the header, the columns, rows."""
    done(run, *EVAL)
    shutil.copytree(twelve, "before.zarr")
    add(photographs, "cat/99", 99)
    turn(photographs, "dog/1")
    remove(photographs, "cat/10")
    done(run, *BUILD)
    _, expected = done(run, *EVAL)
    for place in KILLS:
        shutil.rmtree(twelve)
        shutil.copytree("before.zarr", twelve)

        def killed(place: int = place) -> None:
            steps = 0

            def counting(plain: Any) -> Any:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal steps
                    steps += 1
                    if steps == place:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return plain(*arguments, **options)

                return call

            monkeypatch.setattr(os, "replace", counting(os.replace))
            monkeypatch.setattr(os, "link", counting(os.link))
            run(*BUILD)

        assert at_once(killed) == [-signal.SIGKILL], place
        assert run("cache", "verify").exit_code == 0
        done(run, *BUILD)
        assert done(run, *EVAL)[1] == expected, place
        assert run("cache", "verify").exit_code == 0
