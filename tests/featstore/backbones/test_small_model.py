"""The small model is an ordinary diffusers folder with SD 2-1's block structure."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import AutoImageProcessor, CLIPTokenizer, Dinov2Model

from tools.demo_model.small_model import WORDS, write_small_model, write_tokenizer

NETWORKS = (
    "vae/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "dinov2/model.safetensors",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "model"
    write_small_model(path, seed=3)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def test_diffusers_loads_it_alone_and_runs_it(pipeline: StableDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    out = pipeline("a photo of a bird", num_inference_steps=2, generator=generator, output_type="np")
    assert out.images.shape == (1, 128, 128, 3)
    assert pipeline.safety_checker is None


def test_encoder_gives_latents_of_a_quarter_of_the_side(pipeline: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        latents = pipeline.vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean
    assert latents.shape == (1, 4, 32, 32)


def test_layers_have_the_documented_shapes(pipeline: StableDiffusionPipeline) -> None:
    shapes = []
    handles = [
        block.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
        for block in pipeline.unet.up_blocks
    ]
    with torch.no_grad():
        prompt = torch.zeros(1, 77, pipeline.unet.config.cross_attention_dim)
        velocity = pipeline.unet(torch.zeros(1, 4, 32, 32), 261, encoder_hidden_states=prompt).sample
    for handle in handles:
        handle.remove()
    assert shapes == [(128, 8, 8), (128, 16, 16), (64, 32, 32), (32, 32, 32)]
    assert velocity.shape == (1, 4, 32, 32)


def test_blocks_are_those_of_sd21(pipeline: StableDiffusionPipeline) -> None:
    config = pipeline.unet.config
    assert list(config.down_block_types) == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert list(config.up_block_types) == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
    assert config.use_linear_projection
    scheduler = pipeline.scheduler.config
    assert (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (scheduler.prediction_type, scheduler.num_train_timesteps) == ("v_prediction", 1000)


def test_text_encoder_is_causal(pipeline: StableDiffusionPipeline) -> None:
    tokens = pipeline.tokenizer(["a photo of a bird", "a photo of a fish"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        one, other = pipeline.text_encoder(tokens.input_ids).last_hidden_state
    assert one.shape == (77, 64)
    assert torch.equal(one[:5], other[:5])
    assert not torch.allclose(one[5], other[5])


def test_tokenizer_writes_words_of_the_captions_as_single_tokens(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.model_max_length == 77
    for word in WORDS:
        assert tokenizer.tokenize(word) == [word + "</w>"]
    ids = tokenizer("a photo of a bird", padding="max_length").input_ids
    size = len(json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    assert (ids[0], ids[6]) == (size - 2, size - 1)
    assert ids[7:] == [0] * 70
    assert tokenizer.pad_token == "!"


def test_tokenizer_spells_what_it_does_not_know(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = "zebra crossing, naïve 漢字 42"
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    spelt = tokenizer.decode(ids, skip_special_tokens=True)
    assert spelt.replace(" ", "") == text.replace(" ", "")


def test_text_encoder_knows_the_tokenizers_special_tokens(pipeline: StableDiffusionPipeline) -> None:
    config, tokenizer = pipeline.text_encoder.config, pipeline.tokenizer
    assert config.vocab_size == len(tokenizer.get_vocab())
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )


def test_dinov2_gives_256_patches_of_a_224_crop(folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folder / "dinov2")
    dino = Dinov2Model.from_pretrained(folder / "dinov2", dtype=torch.float32)
    pixels = processor(torch.zeros(3, 128, 160, dtype=torch.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    with torch.no_grad():
        assert dino(pixels).last_hidden_state.shape == (1, 257, 96)


def test_weights_follow_from_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    write_small_model(tmp_path / "again", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    write_small_model(tmp_path / "other", seed=4)
    for network in NETWORKS:
        assert (tmp_path / "again" / network).read_bytes() == (folder / network).read_bytes()
    one, other = (load_file(path / NETWORKS[1])["conv_in.weight"] for path in (folder, tmp_path / "other"))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_are_stored_as_asked(dtype: torch.dtype, tmp_path: Path) -> None:
    write_small_model(tmp_path, seed=0, dtype=dtype)
    for network in NETWORKS:
        assert {tensor.dtype for tensor in load_file(tmp_path / network).values()} == {dtype}


def test_tokenizer_reports_its_size(tmp_path: Path) -> None:
    size = write_tokenizer(tmp_path)
    assert size == len(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
