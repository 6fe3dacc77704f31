"""`dualsd cache verify | prune | pack | unpack` as a user types them."""

import json
import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import Result

from featstore.backbones.base import NetworkName
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import save_prompts
from featstore.store.store import open_store
from featstore.tuning.run_folder import identity
from tests.cli.conftest import Run
from tests.featstore.store.small_store import contents, flip
from tests.featstore.tuning.conftest import SETTINGS

MAPS = ("cache", "maps", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")
BUILD = ("cache", "build", "--t", "50,261", "--batch-size", "4")
EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def read_json(name: str) -> Any:
    return json.loads(Path(name).read_text())


def drop_and_make_again(run: Run) -> Any:
    """What was dropped comes again by the commands that are printed, and by nothing else."""
    dropped = ok(run("cache", "verify", "--drop", "--json", "d.json"))
    out = read_json("d.json")
    for command in out["commands"].values():
        assert command in dropped.output.splitlines()
        ok(run(*shlex.split(command)[1:], "--batch-size", "4"))
    return out


@pytest.fixture
def maps(run: Run, store: Path) -> str:
    """The folder of the maps of the default prompt, which are made."""
    ok(run(*MAPS))
    (extractor,) = (folder for folder in (store / "maps").iterdir() if folder.is_dir())
    return f"maps/{extractor.name}"


def test_a_sound_store(run: Run, store: Path, maps: str) -> None:
    result = ok(run("cache", "verify", "--json", "v.json"))
    assert f"{maps}/layer2/t0261" in result.output
    assert "0 of them damaged" in result.output
    out = read_json("v.json")
    assert (out["sound"], out["bad"], out["left_over"], out["metadata"]) == (True, [], [], [])
    arrays = {array["path"]: array for array in out["arrays"]}
    assert arrays["latents"] == {
        "path": "latents",
        "rows": 6,
        "present": 6,
        "bytes": 6 * 2052,
        "packed": False,
        "damaged": 0,
    }


def test_damage_is_code_2_until_it_is_mended(run: Run, store: Path, maps: str) -> None:
    before = contents(store)
    for name in ("latents/c.4.0.0.0", "noisy/t0261/c.0.0.0.0.0", f"{maps}/layer3/t0050/c.1.0.0.0"):
        flip(store / name, 100, 6)
    damaged = contents(store)
    refused = run("cache", "verify", "--json", "v.json")
    assert refused.exit_code == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "3 damaged row(s)" in refused.stderr
    for word in ("dog/1", f"{maps}/layer3/t0050", "checksum"):
        assert word in refused.stdout
    bad = [(bad["array"], bad["row"], bad["image"]) for bad in read_json("v.json")["bad"]]
    assert bad == [("latents", [4], "dog/1"), (f"{maps}/layer3/t0050", [1], "cat/1"), ("noisy/t0261", [0, 0], "cat/0")]
    assert contents(store) == damaged
    # a command that reads such a row says which, and what helps
    told = run(*EVAL)
    assert told.exit_code == 2
    assert f"Row 1 of array '{maps}/layer3/t0050'" in told.stderr
    assert "cache verify --drop" in told.stderr
    # with all that was made of the latents of dog/1
    assert drop_and_make_again(run)["rows"] == {
        **{"latents": 1, "noisy/t0050": 1, "noisy/t0261": 2},
        **{f"{maps}/layer2/t0261": 1, f"{maps}/layer3/t0050": 2},
    }
    assert contents(store) == before
    ok(run("cache", "verify"))


def test_dropped_rows_are_made_by_whatever_needs_them(run: Run, store: Path, maps: str) -> None:
    before = contents(store)
    flip(store / maps / "layer3" / "t0050" / "c.1.0.0.0", 100, 6)
    flip(store / "latents" / "c.2.0.0.0", 2051, 0)
    dropped = ok(run("cache", "verify", "--drop"))
    assert "2 damaged row(s) deleted, and 4 more" in dropped.output
    assert before.keys() - contents(store).keys() == {
        *(f"{maps}/layer3/t0050/c.{row}.0.0.0" for row in (1, 2)),
        *(f"noisy/t{step}/c.2.0.0.0.0" for step in ("0050", "0261")),
        *(f"{maps}/layer2/t0261/c.2.0.0.0", "latents/c.2.0.0.0"),
    }
    ok(run(*BUILD))
    ok(run(*MAPS))
    assert contents(store) == before


def test_maps_of_learned_prompts_are_mended_from_their_run(run: Run, store: Path, small_model: Path) -> None:
    width = json.loads((small_model / "text_encoder" / "config.json").read_text())["hidden_size"]
    header = open_store(store).header
    tensors = {layer: {"": torch.randn(77, width, generator=torch.Generator().manual_seed(layer))} for layer in (2, 3)}
    prompts = LearnedPrompts(
        Mode.SINGLE, (2, 3), (261, 50), 75, NetworkName(header.model_id, header.model_fingerprint), None, {}, tensors
    )
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    save_prompts(prompts, folder / "prompts.safetensors")
    about = {"path": str(store.resolve()), "identity": identity(open_store(store).header)}
    (folder / "run.json").write_text(
        json.dumps(
            {
                **{"format": "dualsd run", "version": 1, "created": "2026", "creator": "0.1.0", "store": about},
                "settings": SETTINGS.to_json(),
            }
        )
    )
    ok(run(*MAPS, "--prompts", "runs/mine"))
    before = contents(store)
    (row,) = store.glob("maps/*/layer2/t0261/c.3.0.0.0")
    flip(row, 9, 2)
    drop_and_make_again(run)
    assert contents(store) == before
    flip(row, 9, 2)
    shutil.rmtree("runs")
    gone = ok(run("cache", "verify", "--drop", "--json", "r.json"))
    assert "no run here has the single prompts" in gone.output
    assert (len(read_json("r.json")["notes"]), read_json("r.json")["commands"]) == (1, {})
    assert not row.exists()


def test_metadata_that_are_damaged(run: Run, store: Path, maps: str) -> None:
    before = contents(store)
    (store / "latents" / "zarr.json").write_text("{")
    refused = run("cache", "verify")
    assert refused.exit_code == 2
    assert "1 damaged metadata file(s)" in refused.stderr
    for command in (BUILD, ("cache", "info"), ("cache", "pack")):
        result = run(*command)
        assert result.exit_code == 2, result.output
        assert "damaged metadata" in result.stderr
    ok(run("cache", "verify", "--drop"))
    assert contents(store) == before


def swap(one: Path, other: Path) -> None:
    ours, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(ours)


def test_rows_of_another_image_are_code_2_until_they_are_mended(run: Run, store: Path, maps: str) -> None:
    before = contents(store)
    layer = store / maps / "layer3" / "t0050"
    swap(layer / "c.1.0.0.0", layer / "c.4.0.0.0")
    ok(run("cache", "verify"))  # their checksums are right
    swap(store / "latents/c.0.0.0.0", store / "latents/c.3.0.0.0")
    refused = run("cache", "verify", "--recompute", "all", "--batch-size", "4", "--json", "v.json")
    assert refused.exit_code == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    # with the maps that were made of latents and noise that do not fit
    assert "12 damaged row(s) and 0 damaged metadata file(s) in dualsd.zarr: --drop" in refused.stderr
    found = {own["path"]: own["others"] for own in read_json("v.json")["recomputed"] if own["others"]}
    noisy = {f"noisy/t{step}": [[0, 0], [3, 0]] for step in ("0050", "0261")}
    assert found == {"latents": [[0], [3]], f"{maps}/layer3/t0050": [[1], [4]], **noisy}
    ok(run("cache", "verify", "--recompute", "all", "--drop", "--batch-size", "4", "--json", "d.json"))
    for command in read_json("d.json")["commands"].values():
        ok(run(*shlex.split(command)[1:], "--batch-size", "4"))
    assert contents(store) == before


@pytest.mark.parametrize("count", ["0", "-1", "some", "1.5"])
def test_how_many_rows_are_made_anew(run: Run, store: Path, count: str) -> None:
    result = run("cache", "verify", f"--recompute={count}")
    assert (result.exit_code, "--recompute takes how many rows" in result.stderr) == (2, True)


def test_prune_says_what_it_frees(run: Run, store: Path, maps: str) -> None:
    before = contents(store)
    gone = {name: data for name, data in before.items() if name.startswith(f"{maps}/layer3/t0050/")}
    dry = ok(run("cache", "prune", "--layer", "3", "--dry-run", "--json", "p.json"))
    assert "in 7 files of 1 array(s) would be freed" in dry.output
    assert contents(store) == before
    done = ok(run("cache", "prune", "--layers", "3", "--t", "50,200", "--json", "q.json"))
    assert "in 7 files of 1 array(s) freed" in done.output
    out = read_json("q.json")
    assert out["arrays"] == [f"{maps}/layer3/t0050"]
    assert (out["bytes"], out["files"]) == (sum(map(len, gone.values())), len(gone))
    assert {**read_json("p.json"), "dry_run": False} == out
    assert not (contents(store).keys() & gone.keys())
    ok(run("cache", "prune", "--prompt", "a photo of a {category}"))
    ok(run("cache", "prune", "--noisy", "--t", "261"))
    info = ok(run("cache", "info", "--json", "i.json"))
    assert [array["path"] for array in read_json("i.json")["arrays"]] == ["latents", "noisy/t0050"], info.output
    ok(run(*MAPS))  # from noise that is derived, and not kept
    assert contents(store) == {name: data for name, data in before.items() if not name.startswith("noisy/t0261/")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Which maps go must be said"),
        (["--noisy", "--prompt", "x"], "--noisy goes with --t"),
        (["--older-than", "soon"], "--older-than takes an age"),
        (["--extractor", "beef"], "no extractor 'beef'"),
        (["--layer", "7"], "no layer 7"),
        (["--t", "x"], "--t takes timesteps"),
    ],
)
def test_what_prune_refuses(run: Run, store: Path, maps: str, arguments: list[str], words: str) -> None:
    before = contents(store)
    result = run("cache", "prune", *arguments)
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert contents(store) == before


def test_a_packed_store_serves_every_command(run: Run, store: Path, maps: str) -> None:
    ok(run(*EVAL, "--json", "before.json"))
    before = contents(store)
    packed = ok(run("cache", "pack", "--json", "p.json"))
    assert "5 array(s) packed, 25 files saved" in packed.output
    assert read_json("p.json")["files_saved"] == len(before) - len(contents(store)) == 25
    assert "packed" in ok(run("cache", "info")).output
    ok(run(*BUILD))
    ok(run(*MAPS))
    ok(run("cache", "verify"))
    ok(run(*EVAL, "--json", "after.json"))
    assert read_json("after.json")["results"] == read_json("before.json")["results"]
    assert len(before) - len(contents(store)) == 25  # none of it had to unpack anything
    assert "5 array(s) unpacked" in ok(run("cache", "unpack")).output
    assert contents(store) == before


def test_an_image_that_changed_in_a_packed_store(run: Run, store: Path, maps: str, photographs: Path) -> None:
    """It ends in the store that was never packed: the image has a new row, and no row is lost."""
    shutil.copytree(store, "never.zarr")
    ok(run("cache", "pack"))
    Image.open(photographs / "dog" / "1.png").resize((88, 66)).save(photographs / "dog" / "1.png")
    for path in (str(store), "never.zarr"):
        built = ok(run(*BUILD, "--store", path))
        assert "1 encoded, 5 skipped, 1 had changed" in built.output
        ok(run(*MAPS, "--store", path))
    assert contents(store) == contents(Path("never.zarr"))


def test_more_noise_for_a_packed_store(run: Run, store: Path, maps: str) -> None:
    shutil.copytree(store, "never.zarr")
    ok(run("cache", "pack"))
    for path in (str(store), "never.zarr"):
        ok(run(*BUILD, "--ensemble", "3", "--store", path))
    ok(run("cache", "verify"))
    noisy = {name: data for name, data in contents(store).items() if name.startswith("noisy/")}
    assert noisy == {name: data for name, data in contents(Path("never.zarr")).items() if name.startswith("noisy/")}
    assert (store / "latents" / "c").is_dir()  # what did not have to change is packed still


def test_half_written_files_go_at_the_next_run_of_their_array(run: Run, store: Path, maps: str) -> None:
    def put(folder: str, seconds_old: float) -> Path:
        file = store / folder / f"c.0.0.0.{seconds_old:.0f}.partial"
        file.write_bytes(b"half")
        os.utime(file, (time.time() - seconds_old,) * 2)
        return file

    layer = f"{maps}/layer2/t0261"
    old = {folder: put(folder, 3600) for folder in ("latents", "noisy/t0050", layer)}
    young = {folder: put(folder, -3600) for folder in old}  # however long this test takes
    ok(run(*BUILD))
    assert [folder for folder, file in old.items() if file.exists()] == [layer]
    ok(run(*MAPS))
    assert not old[layer].exists()
    assert all(file.exists() for file in young.values())
    listed = ok(run("cache", "verify", "--json", "v.json"))
    assert "3 file(s) left over" in listed.output
    assert {own["path"] for own in read_json("v.json")["left_over"]} == {
        str(file.relative_to(store)) for file in young.values()
    }
