"""`dualsd prompts`, and learned prompts in `eval` and `match`, on the small model."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from torch import Tensor
from typer.testing import Result

from featstore.backbones.base import NetworkName
from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
from featstore.backbones.dino import load_dino, locate_dino
from featstore.backbones.models import open_model
from featstore.backbones.text_encoders import fill, frame
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import module_of
from featstore.prompts.saved import load_prompts, save_prompts
from tests.cli.conftest import Run
from tests.featstore.prompts.made import layer_tensors, made, module_tensors, text_rows

EVAL = ("eval", "--layers", "2", "--ensemble", "1", "--batch-size", "4", "--readouts", "softmax", "--alphas", "0.5")
CAPTION = "SD4Match/caption.pt"


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, words: str) -> None:
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def publish(content: Any, file: str = CAPTION) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    torch.save(content, file)


def bits(file: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(file, weights_only=True)
    return found


@pytest.fixture
def imported(run: Run, small_model: Path) -> Callable[..., Result]:
    """`dualsd prompts import` of what was published, for the small model."""

    def call(*arguments: str) -> Result:
        return run(
            *("prompts", "import", CAPTION, "--from", "sd4match", "--model", str(small_model)),
            *("--out", "prompts.safetensors", *arguments),
        )

    return call


CONTENT: dict[Mode, Any] = {
    Mode.SINGLE: {"dataset": layer_tensors(Mode.SINGLE, 1)[""][None]},
    Mode.CLASS: {name: rows[None] for name, rows in layer_tensors(Mode.CLASS, 1).items()},
    Mode.CPM: module_tensors(seed=1),
}


@pytest.mark.parametrize("mode", list(Mode))
def test_import_and_export_round_trip(run: Run, imported: Callable[..., Result], mode: Mode) -> None:
    publish(CONTENT[mode])
    result = ok(imported())
    assert f"{mode.value} prompts of 75 vectors for layer 2 (t = 261)" in result.output
    assert ("taken on trust" in result.output) == (mode is Mode.CPM)
    assert ("not those of this model's text encoder" in result.output) == (mode is not Mode.CPM)
    ok(run("prompts", "export", "prompts.safetensors", "--to", "sd4match", "--out", "again.pt"))
    ours, theirs = bits("again.pt"), bits(CAPTION)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("mode", list(Mode))
def test_a_runs_prompts_go_to_sd4match_and_come_back(run: Run, imported: Callable[..., Result], mode: Mode) -> None:
    Path("runs/r").mkdir(parents=True)
    prompts = made(mode)
    save_prompts(prompts, Path("runs/r/prompts.safetensors"))
    refused(run("prompts", "export", "runs/r", "--out", "x.pt"), "layers 2, 3")
    refused(run("prompts", "export", "runs/r", "--layer", "1", "--out", "x.pt"), "for layer(s) 2, 3, not for 1")
    assert not Path("x.pt").exists()
    Path(CAPTION).parent.mkdir()
    ok(run("prompts", "export", "runs/r", "--layer", "3", "--out", CAPTION))
    ok(imported("--layer", "3", "--t", "300", "--mode", mode.value))
    back = load_prompts(Path("prompts.safetensors"))
    assert (back.mode, back.layers, back.timesteps, back.categories) == (mode, (3,), (300,), prompts.categories)
    assert back.content(3) == prompts.content(3)


def maps_of(run: Run, *arguments: str) -> Any:
    """The store's maps (images, C, h, w) with some prompts."""
    maps = ("cache", "maps", "--layers", "2", "--t", "50", "--ensemble", "1", "--batch-size", "4")
    ok(run(*maps, *arguments, "--json", "maps.json"))
    extractor = json.loads(Path("maps.json").read_text())["extractor"]
    return zarr.open_array(f"dualsd.zarr/maps/{extractor}/layer2/t0050", mode="r")[:]


def test_imported_prompts_are_used_as_what_they_are(
    run: Run, imported: Callable[..., Result], store: Path, small_model: Path
) -> None:
    """Prompts that are the token embeddings of a text give that text's maps and numbers."""
    rows = {name: text_rows(small_model, f"a photo of a {name}")[None] for name in ("cat", "dog")}
    publish(rows)
    assert "2 class prompts" in ok(imported()).output
    ok(run(*EVAL, "--prompts", "prompts.safetensors", "--json", "ours.json"))
    ok(run(*EVAL, "--t", "50", "--prompt", "a photo of a {category}", "--json", "text.json"))
    ours, text = (json.loads(Path(f"{name}.json").read_text()) for name in ("ours", "text"))
    assert ours["t"] == [50]  # as SD4Match tests them
    assert ours["features"]["prompts"]["kind"] == "class"
    assert ours["results"] == text["results"]
    learned = ("--prompts", "prompts.safetensors")
    by_class, by_text = maps_of(run, *learned), maps_of(run, "--prompt", "a photo of a {category}")
    np.testing.assert_array_equal(by_class, by_text)
    publish({"dataset": rows["cat"]})
    ok(imported())
    single = maps_of(run, *learned)
    np.testing.assert_array_equal(single, maps_of(run, "--prompt", "a photo of a cat"))
    cats = np.array([True] * 3 + [False] * 3)  # the rows of a `folder` are sorted
    assert [(own == other).all() for own, other in zip(single, by_class, strict=True)] == cats.tolist()


def test_imported_cpm_prompts_are_used(run: Run, imported: Callable[..., Result], store: Path) -> None:
    """On trust that they were made from the DINOv2 at hand, but not from tokens that do not fit."""
    publish(CONTENT[Mode.CPM])
    ok(imported())
    ok(run(*EVAL, "--prompts", "prompts.safetensors", "--categories", "cat", "--json", "out.json"))
    assert json.loads(Path("out.json").read_text())["n_pairs"] == 6
    own = CONTENT[Mode.CPM]
    publish({**own, "linear_C.weight": own["linear_C.weight"][:, :100].clone()})
    ok(imported())
    refused(run(*EVAL, "--prompts", "prompts.safetensors"), "256 patch tokens of width 50")


def test_prompts_imported_for_another_model(
    run: Run, imported: Callable[..., Result], store: Path, small_model: Path
) -> None:
    publish({"dataset": torch.randn(1, 77, 768)})
    refused(imported(), "768 wide")
    publish(CONTENT[Mode.SINGLE])
    ok(run("prompts", "import", CAPTION, "--model", "demo", "--out", "demo.safetensors"))
    refused(run(*EVAL, "--prompts", "demo.safetensors"), "made for the model demo")


class Touches:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_malicious_pickle_is_not_executed(imported: Callable[..., Result]) -> None:
    publish({"cat": Touches()})
    refused(imported(), "nothing in a pickle is executed")
    assert not Path("executed").exists()
    publish({"cat": torch.zeros(1, 77, 64), "note": "hello"})
    refused(imported(), "holds a str")
    assert not Path("prompts.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "none.pt", "--model", "demo", "--out", "p.safetensors"], "There is no file none.pt"),
        (["import", "none.pt", "--model", "demo", "--out", "no/p.safetensors"], "cannot be written"),
        (
            ["import", "none.pt", "--model", "demo", "--out", "p", "--from", "dift"],
            "--from is ",
        ),
        (["import", "none.pt", "--model", "demo", "--out", "p", "--mode", "many"], "--mode is single, class, cpm"),
        (["import", "none.pt", "--model", "demo", "--out", "p", "--layer", "5"], "no layer 5"),
        (["import", "none.pt", "--model", "demo", "--out", "p", "--t", "1000"], "no timestep 1000"),
        (["export", "nowhere", "--out", "p.pt"], "no prompts at nowhere"),
        (["export", "nowhere", "--out", "no/p.pt"], "cannot be written"),
        (["export", "nowhere", "--out", "p.pt", "--to", "dift"], "--to is "),
        (["info", "nowhere"], "no prompts at nowhere"),
    ],
)
def test_one_sentence(run: Run, arguments: list[str], words: str) -> None:
    refused(run("prompts", *arguments), words)
    assert list(Path().iterdir()) == []


def test_info_of_a_run(run: Run) -> None:
    Path("runs/r").mkdir(parents=True)
    prompts = made(Mode.CLASS)
    save_prompts(prompts, Path("runs/r/prompts.safetensors"))
    shown = ok(run("prompts", "info", "runs/r", "--json", "info.json")).output
    for words in (
        "2 class prompts of 75 vectors for layer 2 (t = 200) + layer 3 (t = 300) of small",
        "f" * 32,
        "categories: cat, dog",
        "learned on spair, images of 64 pixels a side: steps 7, rate 0.01",
        prompts.content(2),
        prompts.content(3),
        f"{2 * 77 * 64:,}",
    ):
        assert words in shown
    size = Path("runs/r/prompts.safetensors").stat().st_size
    assert json.loads(Path("info.json").read_text()) == {
        "file": "runs/r/prompts.safetensors",
        "mode": "class",
        "layers": [2, 3],
        "t": [200, 300],
        "length": 75,
        "categories": ["cat", "dog"],
        "model": {"id": "small", "fingerprint": "f" * 32},
        "dino": None,
        "training": {"dataset": "spair", "image_size": 64, "settings": {"steps": 7, "rate": 0.01}},
        "bytes": size,
        "content": {"2": prompts.content(2), "3": prompts.content(3)},
    }


def test_info_of_imported_prompts(run: Run, imported: Callable[..., Result]) -> None:
    publish(CONTENT[Mode.CPM])
    ok(imported())
    shown = ok(run("prompts", "info", "prompts.safetensors")).output
    assert "imported from SD4Match's SD4Match/caption.pt" in shown
    assert "DINOv2: facebook/dinov2-base, fingerprint unknown" in shown
    save_prompts(replace(made(Mode.CPM), training={}), Path("bare.safetensors"))
    assert f"DINOv2: small/dinov2, fingerprint {'d' * 32}" in ok(run("prompts", "info", "bare.safetensors")).output


def keep(prompts: LearnedPrompts, model: Path, tensors: dict[str, Tensor]) -> None:
    """Save prompts for layer 2 of a model."""
    opened = open_model(str(model))
    own = replace(prompts, tensors={2: tensors}, model=opened.name)
    save_prompts(own, Path(f"{prompts.mode.value}.safetensors"))


@pytest.fixture
def match(run: Run, photographs: Path, small_model: Path) -> Callable[..., Any]:
    """`dualsd match` of two photographs with soft-argmax, which moves with every prompt: what it wrote, its points."""
    files = (photographs / "cat" / "0.png", photographs / "cat" / "1.png")

    def call(*arguments: str) -> Any:
        result = run(
            *("match", *map(str, files), "--points", "5,5;30.5,20;50,30", "--model", str(small_model), "--size", "64"),
            *("--layers", "2", "--t", "50", "--ensemble", "1", "--readout", "softmax", "--json", "m.json", *arguments),
        )
        ok(result)
        out = json.loads(Path("m.json").read_text())
        return out, np.array(out["target_points"])

    return call


def test_match_with_class_and_single_prompts(
    run: Run, match: Callable[..., Any], photographs: Path, small_model: Path
) -> None:
    """Prompts that are the token embeddings of a text find what that text finds."""
    rows = {name: text_rows(small_model, f"a photo of a {name}") for name in ("cat", "dog")}
    keep(made(Mode.CLASS, [2]), small_model, rows)
    keep(made(Mode.SINGLE, [2]), small_model, {"": rows["dog"]})
    texts = {name: match("--category", name)[1] for name in rows}
    assert np.abs(texts["cat"] - texts["dog"]).max() > 1e-2
    for name in rows:
        out, found = match("--prompts", "class.safetensors", "--category", name)
        assert out["prompt"] == "class prompts of class.safetensors"
        np.testing.assert_allclose(found, texts[name], atol=1e-4)
    np.testing.assert_allclose(match("--prompts", "single.safetensors")[1], texts["dog"], atol=1e-4)
    files = [str(photographs / "cat" / f"{index}.png") for index in range(2)]
    command = ("match", *files, "--points", "5,5", "--model", str(small_model), "--prompts", "class.safetensors")
    refused(run(*command), "say which with --category")
    refused(run(*command, "--category", "cow"), "No prompt was learned for 'cow'")


def test_match_with_cpm_prompts(match: Callable[..., Any], photographs: Path, small_model: Path) -> None:
    """It finds what a single prompt finds that the module makes from both photographs' patch tokens."""
    own = module_tensors(seed=4)
    name, folder = locate_dino(None, open_model(str(small_model)).location)
    keep(replace(made(Mode.CPM, [2]), dino=name), small_model, own)
    pictures = [Image.open(photographs / "cat" / f"{index}.png").convert("RGB") for index in range(2)]
    tokens = load_dino(folder, torch.device("cpu"), torch.float32).tokens(pictures)
    location = open_model(str(small_model)).location
    encoder, tokenizer = load_text_encoder(location, torch.device("cpu"), torch.float32), load_tokenizer(location)
    framed = frame(encoder, tokenizer.bos_token_id, tokenizer.eos_token_id, 75)
    found = match("--prompts", "cpm.safetensors")[1]
    truths = []
    for source, target in ((0, 1), (1, 0)):
        with torch.no_grad():
            vectors = module_of(own)(tokens[source : source + 1, 1:], tokens[target : target + 1, 1:])
        keep(made(Mode.SINGLE, [2]), small_model, {"": fill(framed, vectors)[0]})
        truths.append(match("--prompts", "single.safetensors")[1])
    np.testing.assert_allclose(found, truths[0], atol=1e-4)
    assert np.abs(truths[0] - truths[1]).max() > 1e-3


def test_another_dinov2_is_refused(run: Run, store: Path, photographs: Path, small_model: Path) -> None:
    prompts = replace(made(Mode.CPM, [2]), dino=NetworkName("their/dinov2", "d" * 32))
    keep(prompts, small_model, module_tensors(seed=4))
    words = "from tokens of the DINOv2 their/dinov2 (fingerprint dddddddd), not of"
    refused(run(*EVAL, "--prompts", "cpm.safetensors"), words)
    file = str(photographs / "cat" / "0.png")
    command = ("match", file, file, "--points", "5,5", "--model", str(small_model), "--ensemble", "1", "--size", "64")
    refused(run(*command, "--prompts", "cpm.safetensors"), words)
    keep(replace(prompts, dino=NetworkName("their/dinov2", "")), small_model, module_tensors(seed=4))
    ok(run(*command, "--prompts", "cpm.safetensors", "--t", "50"))
