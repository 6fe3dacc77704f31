"""Learned prompts on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featstore.backbones.base import NetworkName
from featstore.errors import DiskFullError, PromptError
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import load_prompts, save_prompts
from tests.featstore.prompts.made import made

Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts.safetensors"


def assert_same(ours: LearnedPrompts, theirs: LearnedPrompts) -> None:
    plain = [replace(prompts, tensors={}) for prompts in (ours, theirs)]
    names = LearnedPrompts.__dataclass_fields__
    assert [getattr(plain[0], name) for name in names] == [getattr(plain[1], name) for name in names]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for layer, own in ours.tensors.items():
        assert own.keys() == theirs.tensors[layer].keys()
        assert all(torch.equal(own[name], theirs.tensors[layer][name]) for name in own)
        assert ours.content(layer) == theirs.content(layer)


def edit(path: Path, change: Edit) -> None:
    """Change what a file says and holds."""
    with safe_open(path, "pt") as opened:
        description = json.loads(opened.metadata()["dualsd"])
    tensors = load_file(path)
    change(description, tensors)
    save_file(tensors, path, metadata={"dualsd": json.dumps(description)})


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("layers", [(2,), (2, 3)])
def test_what_is_saved_is_loaded(path: Path, mode: Mode, layers: tuple[int, ...]) -> None:
    prompts = made(mode, layers)
    save_prompts(prompts, path)
    assert_same(load_prompts(path), prompts)
    assert_same(load_prompts(path.parent), prompts)  # a run's folder
    assert load_prompts(path).categories == (("cat", "dog") if mode is Mode.CLASS else ())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_content_is_of_the_numbers_the_names_and_the_mode() -> None:
    prompts = made(Mode.CLASS)
    cat, dog = prompts.tensors[2]["cat"], prompts.tensors[2]["dog"]
    contents = {
        replace(prompts, tensors={2: own}).content(2)
        for own in (
            {"cat": cat, "dog": dog},
            {"cat": dog, "dog": cat},
            {"cat": cat},
            {"cat": cat, "dog": dog.nextafter(cat)},
            {"cat": cat[:-1], "dog": dog},
        )
    }
    assert len(contents) == 5
    assert prompts.content(2) in contents
    assert prompts.content(2) == replace(prompts, model=NetworkName("other", "f")).content(2)
    assert replace(prompts, mode=Mode.CPM).content(2) not in contents


def test_a_newer_version_is_refused_by_name(path: Path) -> None:
    save_prompts(made(Mode.SINGLE), path)

    def newer(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        description.update(version=2, creator="9.8.7")

    edit(path, newer)
    with pytest.raises(PromptError, match=r"version 2, written by dualsd 9\.8\.7; .* upgrade it"):
        load_prompts(path)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_file_that_was_cut_off(path: Path, kept: int) -> None:
    save_prompts(made(Mode.CLASS), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PromptError, match="no safetensors file of prompts"):
        load_prompts(path)


def test_files_of_others(path: Path) -> None:
    with pytest.raises(PromptError, match="no prompts at"):
        load_prompts(path)
    save_file({"layer2|": torch.zeros(77, 8)}, path)
    with pytest.raises(PromptError, match="do not name the format"):
        load_prompts(path)
    save_file({"layer2|": torch.zeros(77, 8)}, path, metadata={"dualsd": '{"format": "dualsd run", "version": 1}'})
    with pytest.raises(PromptError, match="do not name the format"):
        load_prompts(path)
    save_file({"layer2|": torch.zeros(77, 8)}, path, metadata={"dualsd": "{"})
    with pytest.raises(PromptError, match="no safetensors file of prompts"):
        load_prompts(path)
    torch.save({"dataset": torch.zeros(1, 77, 8)}, path)
    with pytest.raises(PromptError, match="dualsd prompts import"):
        load_prompts(path)


def drop(key: str) -> Edit:
    return lambda description, _: description.pop(key)


def say(**values: Any) -> Edit:
    return lambda description, _: description.update(values)


def rename(old: str, new: str) -> Edit:
    return lambda _, tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((drop(key), "damaged description") for key in ("mode", "layers", "timesteps", "length", "model", "training")),
        (drop("version"), "version None"),
        (say(mode="many"), "damaged description"),
        (say(layers=["two"]), "damaged description"),
        (say(dino={"id": "no fingerprint"}), "damaged description"),
        (say(layers=[2]), "other layers than it says"),
        (say(layers=[2, 4]), "other layers than it says"),
        (say(timesteps=[261]), "other layers than it says"),
        (rename("layer3|cat", "layerx|cat"), "damaged description"),
        (rename("layer3|cat", "layer3|cow"), "other prompts than mode class has"),
        (say(mode="single"), "other prompts than mode single has"),
    ],
)
def test_a_file_that_contradicts_itself(path: Path, change: Edit, words: str) -> None:
    save_prompts(made(Mode.CLASS), path)
    edit(path, change)
    with pytest.raises(PromptError, match=words):
        load_prompts(path)


def test_writing_that_breaks_off_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_prompts(made(Mode.SINGLE), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError, match=r"prompts\.safetensors"):
        save_prompts(made(Mode.CLASS), path)
    assert_same(load_prompts(path), made(Mode.SINGLE))
    assert list(path.parent.iterdir()) == [path]
