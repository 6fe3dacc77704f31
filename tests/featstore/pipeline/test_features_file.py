"""Somebody's own features: whatever is wrong with the file is one sentence, and never a score."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from featstore.pipeline.sources import open_features
from matcher.configuration import LayerSpec
from matcher.errors import MapError

NAME = "cat/0|s8"
LAYER = LayerSpec("s8", None)


def load(path: Path) -> Tensor:
    return open_features(path).load("cat/0", LAYER)


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        open_features(path).check(["cat/0"], [LAYER])
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert str(path) in sentence
    assert len(sentence) < 600
    return sentence


def by_hand(header: Any, content: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_of_every_usual_type(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({NAME: features}, tmp_path / "f.safetensors")
    assert torch.equal(load(tmp_path / "f.safetensors"), features)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(3, 4, 4, dtype=torch.int32), "is int32 of shape (3, 4, 4) where float16"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "is bool of shape (3, 4, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "is complex64 of shape (3, 4, 4)"),
        (torch.zeros(3, 4, 4).to(torch.float8_e4m3fn), "is float8_e4m3fn of shape (3, 4, 4)"),
        (torch.tensor(1.0), "is float32 of shape () where"),
        (torch.zeros(3, 4), "of shape (3, 4) where"),
        (torch.zeros(1, 3, 4, 4), "of shape (1, 3, 4, 4) where"),
        (torch.zeros(0, 4, 4), "of shape (0, 4, 4) where"),
        (torch.zeros(3, 0, 4), "of shape (3, 0, 4) where"),
        (torch.zeros(3, 4, 0), "of shape (3, 4, 0) where"),
        (torch.full((3, 4, 4), torch.nan), "holds values that are not finite"),
        (torch.full((3, 4, 4), -torch.inf), "holds values that are not finite"),
        # finite, but not their norms: every descriptor would be 0 and every match the first cell
        (torch.full((3, 4, 4), -1e30), "or larger than 1e+17"),
        (torch.full((3, 4, 4), 1e300, dtype=torch.float64), "or larger than 1e+17"),
    ],
)
def test_maps_that_cannot_be_matched(tmp_path: Path, features: Tensor, words: str) -> None:
    path = tmp_path / "f.safetensors"
    save_file({NAME: features}, path)
    assert words in refusal(path)
    assert f"tensor {NAME!r}" in refusal(path)


def test_one_value_that_is_none(tmp_path: Path) -> None:
    features = torch.zeros(3, 4, 4)
    features[2, 3, 1] = torch.nan
    save_file({NAME: features}, tmp_path / "f.safetensors")
    assert "not finite" in refusal(tmp_path / "f.safetensors")


def test_the_largest_values_that_are_read_have_a_norm(tmp_path: Path) -> None:
    save_file({NAME: torch.full((1280, 1, 1), 1e17)}, tmp_path / "f.safetensors")
    assert load(tmp_path / "f.safetensors").norm(dim=0).isfinite().all()


@pytest.mark.parametrize(
    "name", ["cat/0", "|", "|s8", "cat/0|", "cat/0\x1b[31m|s8", "cat/0|a\nb", "cat/0|" + "x" * 2000]
)
def test_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.safetensors"
    save_file({name: torch.zeros(3, 4, 4), NAME: torch.zeros(3, 4, 4)}, path)
    assert "must hold tensors named '<image id>|<layer name>', and has" in refusal(path)


def test_a_name_with_several_bars_is_of_the_last(tmp_path: Path) -> None:
    save_file({"a|b|s8": torch.zeros(3, 4, 4)}, tmp_path / "f.safetensors")
    assert open_features(tmp_path / "f.safetensors").load("a|b", LAYER).shape == (3, 4, 4)


def test_no_tensors_and_other_tensors(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    save_file({}, path)
    assert "holds no tensors; name them" in refusal(path)
    save_file({f"dog/{image}|layer{layer}": torch.zeros(1, 1, 1) for image in range(2) for layer in range(20)}, path)
    sentence = refusal(path)
    assert f"has no tensor {NAME!r}; it has 2 images with the layers layer0, layer1, layer10," in sentence
    assert sentence.endswith("layer17, ....")


WHOLE = save({NAME: torch.zeros(3, 4, 4), "cat/1|s8": torch.zeros(3, 4, 4)})
F32 = {"dtype": "F32", "shape": [3, 4, 4], "data_offsets": [0, 192]}


@pytest.mark.parametrize(
    "content",
    [
        *(pytest.param(WHOLE[:end], id=f"cut at {end}") for end in (0, 4, 8, 20, 100, 300, len(WHOLE) - 1)),
        pytest.param(WHOLE + b"x", id="longer"),
        pytest.param(b"\xff" * 8 + WHOLE[8:], id="header of exabytes"),
        pytest.param(WHOLE[:8] + b"{" * 60 + WHOLE[68:], id="no JSON"),
        pytest.param(by_hand([]), id="a list"),
        pytest.param(by_hand({NAME: [[[]]]}), id="no tensor"),
        pytest.param(by_hand({NAME: F32, "cat/1|s8": F32}, bytes(192)), id="two in one place"),
        pytest.param(by_hand({NAME: F32 | {"shape": [-3, 4, 4]}}, bytes(192)), id="negative"),
        pytest.param(by_hand({NAME: F32 | {"shape": [2**62, 2**62, 4]}}, bytes(192)), id="larger than any memory"),
        pytest.param(by_hand({NAME: F32 | {"dtype": "F\x1b[31m"}}, bytes(192)), id="no type"),
        pytest.param(
            by_hand({NAME: {"dtype": "F6_E2M3", "shape": [4, 4, 4], "data_offsets": [0, 48]}}, bytes(48)),
            id="a type that torch lacks",
        ),
        pytest.param(b"PK\x03\x04" + bytes(200), id="a zip, as torch.save writes"),
        pytest.param(b"\x80\x04\x95" + bytes(200), id="a pickle"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert "There is no features file" in refusal(path)
