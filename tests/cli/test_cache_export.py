"""`dualsd cache export`: the layouts, each read as the program reads it that they are for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from safetensors import safe_open
from torch import Tensor

from featstore.backbones.base import NetworkName
from featstore.datasets.records import ImageRecord
from featstore.pipeline.export import sd4match_identifier
from featstore.pipeline.sources import StoredMaps
from featstore.store.keys import Extractor, PixelExtractor
from featstore.store.store import open_store
from matcher.configuration import LayerSpec
from tests.cli.conftest import Run
from tests.cli.crash_cases import Case, ok
from tests.faults import LINUX, Fault, Forks

MAPS = ("--t", "261", "--ensemble", "1", "--batch-size", "4")


def stored(store: Path, pattern: str) -> dict[str, Tensor]:
    """An array's maps by image id, read by zarr alone."""
    (folder,) = store.glob(pattern)
    ids = zarr.open_array(store / "images/id", mode="r")[:]
    rows = torch.from_numpy(np.asarray(zarr.open_array(folder, mode="r")[:]))
    return dict(zip(map(str, np.asarray(ids)), rows, strict=True))


def exported(run: Run, *arguments: str) -> Any:
    result = run("cache", "export", *arguments, "--json", "out.json")
    assert result.exit_code == 0, result.output
    return json.loads(Path("out.json").read_text())


def test_a_features_file_is_what_the_store_holds_and_scores_the_same(run: Run, store: Path, photographs: Path) -> None:
    out = exported(run, "--layers", "2,dino", *MAPS, "--out", "maps.safetensors")
    two, dino = stored(store, "maps/*/layer2/t0261"), stored(store, "maps/*/dino/patches")
    with safe_open("maps.safetensors", framework="pt") as file:
        assert set(file.keys()) == {f"{image}|{layer}" for image in two for layer in ("2", "dino")}
        for image in two:
            assert torch.equal(file.get_tensor(f"{image}|2"), two[image])
            assert torch.equal(file.get_tensor(f"{image}|dino"), dino[image])
        about = json.loads(file.metadata()["dualsd"])
    assert (about["t"], about["ensemble"], about["dataset"]) == ([261, None], 1, "folder")
    assert out["bytes"] == 2 * sum(own.numel() for own in [*two.values(), *dino.values()])
    scored = ("--weights", "0.5,0.5", "--readouts", "nn,softmax", "--json")
    assert run("eval", "--layers", "2,dino", *MAPS, *scored, "store.json").exit_code == 0
    from_file = ("--features", "maps.safetensors", "--dataset", "folder", "--root", str(photographs), "--size", "64")
    result = run("eval", *from_file, "--layers", "2,dino", *scored, "file.json")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("file.json").read_text())["results"] == json.loads(Path("store.json").read_text())["results"]


def test_the_pt_layouts(run: Run, store: Path) -> None:
    one = ("--layers", "2", *MAPS)
    exported(run, *one, "--layout", "sd4match", "--out", "new/featmaps.pt")
    exported(run, *one, "--layout", "dift", "--out", "spair_ft")
    exported(run, *one, "--layout", "dift-images", "--out", "images")
    maps = stored(store, "maps/*/layer2/t0261")
    featmaps = torch.load("new/featmaps.pt", weights_only=True)
    assert set(featmaps) == {image.replace("/", "-") for image in maps}
    for image, expected in maps.items():
        category, stem = image.split("/")
        by_file = torch.load(f"spair_ft/{category}.pth", weights_only=True)
        assert {name.rpartition(".")[0] for name in by_file} == {
            own.partition("/")[2] for own in maps if own.startswith(f"{category}/")
        }
        (name,) = [name for name in by_file if name.startswith(f"{stem}.")]
        alone = torch.load(f"images/{category}/{stem}.pt", weights_only=True)
        for found in (featmaps[f"{category}-{stem}"], by_file[name], alone[None]):
            assert found.dtype is torch.float32
            assert torch.equal(found, expected[None].float())
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize(
    ("image", "with_mirroring", "expected"),
    [
        (ImageRecord("cat/2008_1", "cat", "JPEGImages/cat/2008_1.jpg"), False, "cat-2008_1"),
        (ImageRecord("car(G)/a-b", "car(G)", "car(G)/a-b.png"), False, "car(G)-a-b"),
        (ImageRecord("bus/7", "bus", "7.jpg"), True, "bus-7-0"),
        (ImageRecord("bus/7~mirrored", "bus", "7.jpg", mirrored=True), True, "bus-7-1"),
    ],
)
def test_sd4match_identifiers(image: ImageRecord, with_mirroring: bool, expected: str) -> None:
    assert sd4match_identifier(image, with_mirroring) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--layout", "dift", "--out", "ft"), "--layout dift holds one layer: name one with --layers"),
        (("--layout", "npz", "--out", "ft"), "--layout is "),
        (("--layers", "2", "--layout", "dift", "--out", "there"), "writes a folder, and there is a file"),
        (("--out", "dualsd.zarr"), "writes a file, and dualsd.zarr is a folder"),
        (("--layers", "2", "--dino", "x", "--out", "f"), "--dino goes with the layers dino and dinov3"),
        (("--out", "there/maps.safetensors"), "there/maps.safetensors cannot be written in"),
    ],
)
def test_what_cannot_be_exported(run: Run, store: Path, arguments: tuple[str, ...], sentence: str) -> None:
    Path("there").touch()
    result = run("cache", "export", *arguments)
    assert (result.exit_code, sentence in result.stderr) == (2, True), result.stderr
    assert not list(store.glob("maps"))  # found before any work


def test_maps_that_are_all_there_need_no_model(run: Run, store: Path) -> None:
    first = exported(run, "--layers", "2", *MAPS, "--out", "first.safetensors")
    header = json.loads((store / "zarr.json").read_text())
    header["attributes"]["model"]["id"] = "/gone/model"
    (store / "zarr.json").write_text(json.dumps(header))
    result = run("cache", "export", "--layers", "2", *MAPS, "--out", "again.safetensors")
    assert result.exit_code == 0, result.stderr
    channels, side = stored(store, "maps/*/layer2/t0261")["cat/1"].shape[:2]
    assert f"layer 2: {channels} channels, {side}x{side} cells of {64 // side} pixels" in result.output
    with safe_open("first.safetensors", framework="pt") as before, safe_open("again.safetensors", "pt") as after:
        assert len(after.keys()) == first["images"]
        assert all(torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in before.keys())  # noqa: SIM118


def test_images_of_which_none_can_be_read(run: Run, store: Path, photographs: Path) -> None:
    for file in photographs.glob("*/*.*"):
        file.write_bytes(b"")
    assert run("cache", "build", "--root", str(photographs), "--skip-bad").exit_code == 0
    result = run("cache", "export", "--layers", "2", *MAPS, "--out", "f.safetensors", "--skip-bad")
    assert (result.exit_code, "There is no image whose maps" in result.stderr) == (2, True), result.stderr


@LINUX
@pytest.mark.parametrize("layout", ["features", "sd4match", "dift", "dift-images"])
def test_a_disk_that_is_full(cases: Callable[[str], Case], forks: Forks, tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "full"
    shutil.copytree(cases("maps").whole, folder)
    arguments = ["cache", "export", "--layers", "2", "--t", "50", "--ensemble", "1", "--batch-size", "4"]
    ended = forks.run(folder, [*arguments, "--layout", layout, "--out", "out"], Fault(full=1))
    assert ended.code == 2, ended.output
    assert "could not be written: the disk is full, 0 B are free" in ended.output
    assert not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".pt", ".pth"))]
    ok(forks.run(folder, [*arguments, "--layout", layout, "--out", "out"]))


def test_three_lines_of_python_read_the_same(run: Run, store: Path) -> None:
    exported(run, "--layers", "2", *MAPS, "--out", "maps.safetensors")
    opened = open_store(store)
    (extractor,) = opened.extractors()
    found = StoredMaps(opened, extractor).load("cat/1", LayerSpec("2", 261))
    assert torch.equal(found, stored(store, "maps/*/layer2/t0261")["cat/1"])


def test_extractors_describe_themselves() -> None:
    unet = Extractor("f", {"kind": "text", "template": "a"}, 8, "float32", 0)
    dino = PixelExtractor("dino", NetworkName("x", "y"), 840, "float16")
    assert Extractor.from_description(unet.describe()) == unet
    assert Extractor.from_description(dino.describe()) is None
    assert PixelExtractor.from_description(unet.describe()) is None
