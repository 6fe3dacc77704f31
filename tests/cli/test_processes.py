"""Commands on several processes: the numbers and the store are those of one."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from cli.main import app
from featstore.pipeline.defaults import own_device
from featstore.pipeline.distributed import launched
from featstore.store.images import ImageTable
from featstore.store.rows import Row, RowArray
from featstore.store.store import create_store
from matcher.errors import InputError
from tests.cli.conftest import Run
from tests.featstore.pictures import PICTURES, write_pictures
from tests.featstore.store.small_store import HEADER, LATENT, contents
from tests.featstore.trainable import write_trainable
from tests.forked import at_once, one_thread, together

IMAGES = sum(PICTURES.values())
FEW = ("--ensemble", "2", "--batch-size", "4")
EVAL = ("eval", *FEW, "--readouts", "nn,bilinear,softmax,kernelsoftmax,window,pixel", "--json", "out.json")
EVAL_FILES = ("out.json", "run/predictions.safetensors", "run/results.json")
GRID = ("grid", *FEW, "--t", "50,261", "--readouts", "nn,softmax", "--json", "out.json", "--csv", "out.csv")
GRID_FILES = ("out.json", "out.csv")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def store(run: Run, tmp_path: Path, small_model: Path) -> Path:
    """A store of 7 pictures with pairs, in folders `one` and `two`, which are to end alike."""
    write_pictures(tmp_path / "pictures")
    arguments = ("--dataset", "folder", "--root", str(tmp_path / "pictures"), "--model", str(small_model))
    ok(run("cache", "build", *arguments, "--size", "64", "--t", "50", "--batch-size", "4", "--store", "made.zarr"))
    for name in ("one", "two"):
        shutil.copytree("made.zarr", f"{name}/dualsd.zarr")
    return Path("dualsd.zarr")


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def alone(*arguments: str) -> Result:
    """In folder `one`."""
    os.chdir("one")
    result = CliRunner().invoke(app, list(arguments))
    os.chdir("..")
    return result


def on_two(*arguments: str) -> list[str]:
    """In folder `two`, on two processes; what each printed."""

    def task() -> None:
        os.chdir("two")
        result = CliRunner().invoke(app, list(arguments))
        Path(f"printed-{launched().rank}").write_text(result.output)
        raise SystemExit(result.exit_code)

    codes = together(2, task)
    printed = [Path("two", f"printed-{rank}").read_text() for rank in (0, 1)]
    assert codes == [0, 0], printed
    return printed


def assert_same(*files: str) -> None:
    for file in files:
        assert Path("one", file).read_bytes() == Path("two", file).read_bytes(), file
    assert contents(Path("one/dualsd.zarr")) == contents(Path("two/dualsd.zarr"))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Which rows each of two processes wrote, of those that the command made."""
    plain = RowArray.write

    def noting(array: RowArray, row: Row, values: NDArray[np.float32]) -> None:
        with (tmp_path / f"written-{launched().rank}").open("a") as file:
            file.write(f"{array.path} {row}\n")
        plain(array, row, values)

    monkeypatch.setattr(RowArray, "write", noting)
    return lambda: [(tmp_path / f"written-{rank}").read_text().splitlines() for rank in (0, 1)]


def assert_divided(written: list[list[str]], prefix: str, rows: int) -> None:
    """So many rows were written, each once, about as many by each."""
    parts = [[row for row in part if row.startswith(prefix)] for part in written]
    assert set(Counter(row for part in parts for row in part).values()) == {1}
    assert sum(map(len, parts)) == rows
    assert min(map(len, parts)) >= rows // 3


def test_cache_maps_and_what_is_printed(store: Path, written: Callable[[], list[list[str]]]) -> None:
    command = ("cache", "maps", *FEW, "--layers", "2,3", "--t", "261,50", "--json", "out.json")
    printed = on_two(*command)
    assert_divided(written(), "maps/", 2 * IMAGES)
    assert "2 processes took 4, 3 images" in printed[0]
    assert f"{IMAGES} images: {2 * 2 * IMAGES} UNet passes made" in printed[0]
    assert printed[1] == ""
    ok(alone(*command))
    assert_same("out.json")


@pytest.mark.parametrize("layers", [(), ("--layers", "3,dino", "--dino-size", "56")])
def test_eval(store: Path, written: Callable[[], list[list[str]]], layers: tuple[str, ...]) -> None:
    """Maps are made by image, each once, and pairs are matched by target image."""
    printed = on_two(*EVAL, *layers, "--out", "run")
    assert_divided(written(), "maps/", 2 * IMAGES)
    result = ok(alone(*EVAL, *layers, "--out", "run"))
    assert_same(*EVAL_FILES)
    assert printed[1] == ""
    assert printed[0].splitlines()[-30:] == result.output.splitlines()[-30:]


def test_features_of_a_file(run: Run, store: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    ids = [f"{category}/{index}" for category, count in PICTURES.items() for index in range(count)]
    save_file({f"{image}|own": torch.randn(8, 12, 12) for image in ids}, tmp_path / "own.safetensors")
    arguments = ("--features", str(tmp_path / "own.safetensors"), "--dataset", "folder", "--size", "64")
    arguments += ("--root", str(tmp_path / "pictures"), "--layers", "own", "--json", "out.json", "--out", "run")
    ok(alone("eval", *arguments))
    on_two("eval", *arguments)
    assert_same(*EVAL_FILES)


@pytest.mark.usefixtures("everything_drawn")
@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_grid(store: Path, written: Callable[[], list[list[str]]], stream: tuple[str, ...]) -> None:
    printed = on_two(*GRID, *stream)
    if not stream:
        assert_divided(written(), "maps/", 4 * IMAGES)
    assert_divided(written(), "grids/", IMAGES)
    ok(alone(*GRID, *stream))
    assert_same(*GRID_FILES)
    assert printed[1] == ""
    pictures = [sorted(file.name for file in Path(name, "grid").iterdir()) for name in ("one", "two")]
    assert pictures[0] == pictures[1] != []


def test_a_grid_of_one_process_that_stopped_goes_on_with_two(
    store: Path, written: Callable[[], list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 of 7 target images are finished when it is killed: the two processes match 3."""
    plain = RowArray.write

    def stopping(array: RowArray, row: Row, values: NDArray[np.float32]) -> None:
        if array.path.startswith("grids/") and array.present().sum() == 4:
            raise KeyboardInterrupt
        plain(array, row, values)

    def first() -> None:
        monkeypatch.setattr(RowArray, "write", stopping)
        os.chdir("two")
        raise SystemExit(CliRunner().invoke(app, list(GRID)).exit_code)

    assert at_once(first) == [130]
    for file in Path.cwd().glob("written-*"):
        file.unlink()
    printed = on_two(*GRID)
    assert "4 of 7 target images were finished before" in printed[0]
    assert sorted([row.split("/")[0] for row in part] for part in written()) == [["grids"], ["grids", "grids"]]
    ok(alone(*GRID))
    assert_same(*GRID_FILES)


def test_prompts_that_belong_to_pairs(run: Run, tmp_path: Path, small_model: Path) -> None:
    """cpm: of 12 pairs, a pass of 4 noisy latents holds one with 2 draws."""
    write_trainable(tmp_path / "spair")
    build = ("cache", "build", "--dataset", "spair", "--root", str(tmp_path / "spair"), "--model", str(small_model))
    ok(run(*build, "--size", "64", "--t", "50,200", "--batch-size", "4"))
    train = ("train", "--mode", "cpm", "--steps", "1", "--name", "r", "--length", "75", "--batch", "2", "--draws", "2")
    ok(run(*train, "--batch-size", "4"))
    for name in ("one", "two"):
        for folder in ("dualsd.zarr", "runs"):
            shutil.copytree(folder, f"{name}/{folder}")
    prompts = ("--prompts", "runs/r")
    ok(alone(*EVAL, *prompts, "--out", "run"))
    on_two(*EVAL, *prompts, "--out", "run")
    assert_same(*EVAL_FILES)
    grid = ("grid", *FEW, "--t", "50,200", "--split", "test", "--json", "out.json", "--csv", "out.csv", *prompts)
    ok(alone(*grid))
    on_two(*grid)
    assert_same(*GRID_FILES)


def test_an_image_that_cannot_be_read(store: Path, tmp_path: Path) -> None:
    """It is another process's, and yet the first one lists it; without --skip-bad no process ends well."""
    broken = tmp_path / "pictures" / "cat" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    for name in ("one", "two"):
        shutil.rmtree(Path(name, "dualsd.zarr"))
    model = json.loads(Path("made.zarr/zarr.json").read_text())["attributes"]["model"]["id"]
    build = ("cache", "build", "--dataset", "folder", "--root", str(tmp_path / "pictures"), "--model", model)
    build += ("--size", "64", "--t", "50", "--batch-size", "4", "--json", "out.json")

    def strict() -> None:
        os.chdir("two")
        result = CliRunner().invoke(app, list(build))
        assert "cat/1" in result.stderr
        raise SystemExit(result.exit_code)

    assert together(2, strict) == [2, 2]
    printed = on_two(*build, "--skip-bad")
    assert "1 image(s) could not be read" in printed[0]
    assert json.loads(Path("two/out.json").read_text())["bad"] == ["cat/1"]
    ok(alone(*build, "--skip-bad"))
    printed = on_two(*EVAL, "--out", "run", "--skip-bad")
    assert "1 image(s) could not be read" in printed[0]
    ok(alone(*EVAL, "--out", "run", "--skip-bad"))
    assert_same(*EVAL_FILES)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("3", "a share of the images like 1/4"),
        ("1/4/2", "a share of the images like 1/4"),
        ("-1/4", "a share of the images like 1/4"),
        ("0/4", "parts count from 1/4 to 4/4"),
        ("5/4", "parts count from 1/4 to 4/4"),
        ("1/0", "--part 1/0 does not exist"),
    ],
)
def test_no_such_part(run: Run, store: Path, part: str, words: str) -> None:
    for command in ("build", "maps"):
        result = run("cache", command, "--store", "made.zarr", "--part", part)
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_part_by_hand(run: Run, store: Path) -> None:
    """`info` tells how far the parts are, and says 100 % only when all are done."""
    maps = ("cache", "maps", *FEW, "--layers", "2", "--t", "50", "--store", "made.zarr")
    assert f"part 3/3, 2 images: {2 * 2} UNet passes made" in ok(run(*maps, "--part", "3/3")).output
    assert f"3 images: 0 to encode (VAE passes), {3 * 2} UNet passes" in (
        ok(run(*maps, "--part", "1/3", "--dry-run")).output
    )

    def line() -> str:
        printed = ok(run("cache", "info", "--store", "made.zarr")).output
        return next(line for line in printed.splitlines() if "layer2/t0050" in line)

    assert "2/7" in line()
    assert "28 %" in line()
    ok(run(*maps, "--part", "1/3"))
    ok(run(*maps, "--part", "2/3"))
    assert "7/7" in line()
    assert "100 %" in line()


def test_nearly_all_is_not_all(run: Run, tmp_path: Path) -> None:
    ids = tuple(f"cat/{row}" for row in range(300))
    table = ImageTable(ids, ("cat",) * 300, ids, np.full((300, 2), 50))
    latents = create_store(tmp_path / "s.zarr", HEADER, table, LATENT).latents()
    for row in range(299):
        latents.write((row,), np.zeros(LATENT))
    printed = ok(run("cache", "info", "--store", "s.zarr")).output
    (line,) = (line for line in printed.splitlines() if "latents" in line and "299/300" in line)
    assert " 99 %" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--part", "1/2"), "both divide the images"),
        (("--device", "cuda:1"), "With several processes --device is auto or cpu, not 'cuda:1'"),
    ],
)
def test_what_does_not_go_with_torchrun(store: Path, arguments: tuple[str, ...], words: str) -> None:
    def task(command: str) -> None:
        result = CliRunner().invoke(app, ["cache", command, "--store", "made.zarr", *arguments])
        assert words in result.stderr
        raise SystemExit(result.exit_code)

    for command in ("build", "maps"):
        assert together(2, partial(task, command)) == [2, 2]


@pytest.mark.parametrize("command", ["cache export --out f", "cache info", "report runs/r", "reproduce table3"])
def test_what_is_not_divided(run: Run, command: str) -> None:
    """Each process would do all of it, and write the same files; `cache info` has nothing to divide."""

    def task() -> None:
        result = CliRunner().invoke(app, command.split())
        assert "is not divided among processes: start it without torchrun" in result.stderr
        raise SystemExit(result.exit_code)

    assert together(2, task) == [2, 2]


def test_each_process_takes_a_gpu_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared where there are fewer GPUs than processes; one process alone takes what it is told."""

    def taken(count: int, local: int, gpus: int, device: str = "auto") -> str:
        for name, value in (("WORLD_SIZE", count), ("RANK", local), ("LOCAL_RANK", local)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        return own_device(device)

    assert [taken(4, local, 2) for local in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert (taken(4, 1, 0), taken(4, 1, 2, "cpu"), taken(1, 0, 2)) == ("cpu", "cpu", "auto")
    with pytest.raises(InputError, match="each takes a GPU of its own"):
        taken(4, 1, 2, "cuda:1")


@pytest.mark.slow
def test_under_torchrun(run: Run, store: Path) -> None:
    """The real one, with 4 processes and with 2."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    dualsd = [sys.executable, "-m", "dualsd"]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--no-python", "--nproc_per_node"]
    made = json.loads(Path("made.zarr/zarr.json").read_text())["attributes"]
    build = ["cache", "build", "--dataset", "folder", "--root", made["dataset"]["root"], "--batch-size", "4"]
    build += ["--model", made["model"]["id"], "--size", "64", "--t", "50"]
    maps = ["cache", "maps", *FEW, "--layers", "2,3", "--t", "50,50"]
    shutil.rmtree("two/dualsd.zarr")

    def start(processes: int, *arguments: str) -> str:
        command = [*torchrun, str(processes), *dualsd, *arguments]
        done = subprocess.run(command, cwd="two", capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "4 processes took 2, 2, 2, 1 images" in start(4, *build)
    assert "2 processes took 4, 3 images" in start(2, *maps)
    for command in ((*EVAL, "--out", "run"), GRID):
        start(2, *command)
    for command in (maps, (*EVAL, "--out", "run"), GRID):
        ok(alone(*command))
    assert_same(*EVAL_FILES[1:], *GRID_FILES)
