from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
from featstore.backbones.locate import locate
from featstore.backbones.text_encoders import encode_texts
from featstore.errors import ModelError
from featstore.prompts.text import TextPrompt, plain_category


@pytest.mark.parametrize(("category", "word"), [("car(G)", "car"), ("winebottle(woC)", "winebottle"), ("cat", "cat")])
def test_the_category_reads_as_a_plain_word(category: str, word: str) -> None:
    assert plain_category(category) == word
    assert TextPrompt().text(category) == f"a photo of a {word}"


def test_other_braces_are_refused() -> None:
    with pytest.raises(ModelError, match="brace"):
        TextPrompt("a {photo} of a {category}")


def test_embeddings_are_the_encoders_one_text_at_a_time(small_model: Path) -> None:
    location = locate(str(small_model))
    texts = ["a photo of a bird", "a photo of a car", ""]
    found = encode_texts(
        load_tokenizer(location), load_text_encoder(location, torch.device("cpu"), torch.float32), texts
    )
    assert found.shape == (3, 77, 64)
    tokenizer = CLIPTokenizer.from_pretrained(small_model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(small_model / "text_encoder", dtype=torch.float32).eval()
    for text, embedding in zip(texts, found, strict=True):
        tokens = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            torch.testing.assert_close(embedding, encoder(tokens)[0][0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_the_encoder_is_causal(small_model: Path) -> None:
    """A later word must not change what stands before it; without the mask it silently does."""
    location = locate(str(small_model))
    encoder = load_text_encoder(location, torch.device("cpu"), torch.float32)
    one, two = encode_texts(load_tokenizer(location), encoder, ["a photo of a bird", "a photo of a car"])
    torch.testing.assert_close(one[:5], two[:5])
    assert not torch.allclose(one[5], two[5])
