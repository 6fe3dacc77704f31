"""Prompts of the first released format, which must be read forever."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from featstore.prompts.base import Mode
from featstore.prompts.saved import load_prompts
from tests.fixtures.make_prompts_v1 import prompts

FOLDER = Path(__file__).parents[2] / "fixtures" / "prompts-v1"
DIGESTS = {Mode.SINGLE: "1966af05e5a3eec0", Mode.CLASS: "139b6b8e28df3976", Mode.CPM: "c2ddc7d1116804e7"}
"""Of the files as they were written."""


@pytest.mark.parametrize("mode", list(Mode))
def test_they_are_read(mode: Mode) -> None:
    file = FOLDER / f"{mode.value}.safetensors"
    assert hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() == DIGESTS[mode]
    found, expected = load_prompts(file), prompts(mode)
    assert repr(replace(found, tensors={})) == repr(replace(expected, tensors={}))
    assert found.tensors.keys() == expected.tensors.keys()
    for layer, own in expected.tensors.items():
        assert found.tensors[layer].keys() == own.keys()
        assert all(torch.equal(found.tensors[layer][name], tensor) for name, tensor in own.items())
