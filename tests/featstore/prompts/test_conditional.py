"""The conditional module, and prompts around its vectors, against SD4Match's own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from featstore.backbones.base import NetworkName
from featstore.backbones.text_encoders import ClipText, encode_token_embeddings, fill, frame, length_of
from featstore.errors import PromptError
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import module_of, open_pair_prompts

GOLDEN = Path(__file__).parents[2] / "golden" / "cpm.safetensors"
PAIRS = (("a", "b"), ("b", "c"))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def part(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in golden.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def metadata() -> dict[str, str]:
    with safe_open(GOLDEN, "pt") as file:
        return dict(file.metadata())


@pytest.fixture(scope="module")
def text_encoder(golden: dict[str, torch.Tensor], metadata: dict[str, str]) -> CLIPTextModel:
    encoder = CLIPTextModel(CLIPTextConfig(**json.loads(metadata["text_config"])))
    encoder.load_state_dict(part(golden, "text."))
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def rows_of(golden: dict[str, torch.Tensor], metadata: dict[str, str], text_encoder: CLIPTextModel) -> torch.Tensor:
    """Our token embeddings (2, 77, D)."""
    module = module_of(part(golden, "cpm."))
    source, target = (torch.stack([golden[f"dino.{pair[end]}"][1:] for pair in PAIRS]) for end in (0, 1))
    framed = frame(text_encoder, int(metadata["sos"]), int(metadata["eos"]), module.length)
    return fill(framed, module(source, target))


def test_token_embeddings(
    golden: dict[str, torch.Tensor], metadata: dict[str, str], text_encoder: CLIPTextModel
) -> None:
    assert metadata["pairs"] == ",".join("-".join(pair) for pair in PAIRS)
    found = rows_of(golden, metadata, text_encoder)
    torch.testing.assert_close(found, golden["token_embeds"], atol=1e-4, rtol=0)


def test_prompt_embeddings(
    golden: dict[str, torch.Tensor], metadata: dict[str, str], text_encoder: CLIPTextModel
) -> None:
    found = encode_token_embeddings(text_encoder, rows_of(golden, metadata, text_encoder))
    torch.testing.assert_close(found, golden["prompt_embeds"], atol=1e-4, rtol=0)


def test_prompts_of_sd4match_in_use(
    golden: dict[str, torch.Tensor], metadata: dict[str, str], text_encoder: CLIPTextModel
) -> None:
    """By name of the images, through what `eval` and `match` call."""
    tokenizer = SimpleNamespace(bos_token_id=int(metadata["sos"]), eos_token_id=int(metadata["eos"]))
    learned = LearnedPrompts(
        Mode.CPM, (2,), (261,), 75, NetworkName("small", "f"), NetworkName("dino", ""), {}, {2: part(golden, "cpm.")}
    )
    text = ClipText(tokenizer, text_encoder)
    prompts = open_pair_prompts(learned, text, lambda image: golden[f"dino.{image}"][1:])
    torch.testing.assert_close(prompts.of(2, PAIRS).embeddings, golden["prompt_embeds"], atol=1e-4, rtol=0)
    narrow = open_pair_prompts(learned, text, lambda image: golden[f"dino.{image}"][1:, :8])
    with pytest.raises(PromptError, match="16 patch tokens of width 12, and the DINOv2 at hand gives 16 of width 8"):
        narrow.of(2, PAIRS)


def test_the_length_is_told_from_sd4matchs_rows(
    golden: dict[str, torch.Tensor], metadata: dict[str, str], text_encoder: CLIPTextModel
) -> None:
    start, end = int(metadata["sos"]), int(metadata["eos"])
    rows = golden["token_embeds"][0]
    assert length_of(text_encoder, start, end, rows) == 75
    for length in (1, 5, 74):
        shorter = fill(frame(text_encoder, start, end, length), rows[None, 1 : length + 1])[0]
        assert length_of(text_encoder, start, end, shorter) == length
        assert length_of(text_encoder, start, end, shorter.half().float()) == length
    assert length_of(text_encoder, start, end, golden["prompt_embeds"][0]) is None  # what comes out of the transformer
    assert length_of(text_encoder, end, end, rows) is None


@pytest.mark.parametrize("name", ["linear_C.weight", "linear_N.bias", "alpha_cond"])
def test_parameters_that_are_missing_or_do_not_fit(golden: dict[str, torch.Tensor], name: str) -> None:
    own = part(golden, "cpm.")
    with pytest.raises(ValueError, match="do not fit together"):
        module_of({**own, name: own[name][..., :-1]})
    with pytest.raises(ValueError, match="do not fit together"):
        module_of({**own, name: own[name].flatten()[:1]})
    del own[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        module_of(own)
