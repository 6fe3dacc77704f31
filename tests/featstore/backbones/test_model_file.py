"""Configurations as other people's tools leave them: read, or refused with one sentence, and never waited for."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from featstore.backbones.dino import locate_dino
from featstore.backbones.locate import locate
from featstore.backbones.model_file import read_object
from featstore.backbones.models import open_model
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import copied


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "it holds no object"),
        ("", "Expecting value"),
        ('{"a": ' * 1000 + "1" + "}" * 1000, "nested too deeply"),
        ('{"a": ' * 60 + "1" + "}" * 60, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "a value is NaN"),
        ('{"a": 1, "a": 1}', "the key 'a' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
        ('{"a": %s}' % ("9" * 5000), "Exceeds the limit"),
        ("\ufeff{}", "BOM"),
        ("version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
    ],
)
def test_what_says_nothing_or_two_things(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as refused:
        read_object(file, "a configuration")
    assert str(refused.value).startswith(str(file))
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_infinity_is_published(tmp_path: Path) -> None:
    """As diffusers writes it in DPM-Solver's configurations."""
    file = tmp_path / "scheduler_config.json"
    file.write_text('{"lambda_min_clipped": -Infinity}')
    assert read_object(file, "a configuration") == {"lambda_min_clipped": -math.inf}


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_lost_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def a_ring(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_pipe, "is a pipe, not a regular file"),
        (a_device, "is a device, not a regular file"),
        (a_lost_link, "where there is no file"),
        (a_ring, "where there is no file"),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "dinov2/model.safetensors",
    ],
)
def test_what_is_no_file(
    small_model: Path, tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    """Hub snapshots are links, so links are followed; a pipe would be waited for."""
    file = copied(small_model, tmp_path / "copy") / name
    file.unlink()
    make(file)
    if name.startswith("dinov2") and words == "where there is no file":
        words = "is missing"
    with pytest.raises(ModelError) as refused:
        locate_dino(None, open_model(str(tmp_path / "copy")).location)
    assert file.name in str(refused.value)
    assert words in str(refused.value)


def test_folders_and_pipes_that_nobody_asked_for(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model, tmp_path / "copy")
    (copy / "tokenizer" / "notes").mkdir()
    locate(str(copy))
    os.mkfifo(copy / "tokenizer" / "chat_template.jinja")  # the libraries would read it
    with pytest.raises(ModelError, match=r"chat_template\.jinja is a pipe"):
        open_model(str(copy))


def test_a_folder_in_place_of_a_configuration(small_model: Path, tmp_path: Path) -> None:
    file = copied(small_model, tmp_path / "copy") / "model_index.json"
    file.unlink()
    a_folder(file)
    with pytest.raises(ModelError, match=r"model_index\.json is a folder, not a regular file"):
        locate(str(tmp_path / "copy"))
