"""Weights that are not their configuration's are refused when a model is opened; published ones load bit-equal."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from featstore.backbones.base import ModelLocation
from featstore.backbones.diffusion_networks import load_text_encoder, load_unet, load_vae_encoder
from featstore.backbones.dino import load_dino, locate_dino
from featstore.backbones.models import open_model
from featstore.backbones.weights import check_dino
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import (
    A_TENSOR,
    DAMAGES,
    WEIGHTS,
    change_json,
    change_tensors,
    copied,
)
from tools.demo_model.small_model import small_vae

CPU = torch.device("cpu")
LOADERS = {"vae": load_vae_encoder, "unet": load_unet, "text_encoder": load_text_encoder}


def refusal(folder: Path) -> str:
    """What `open_model` says of a folder: one line."""
    with pytest.raises(ModelError) as refused:
        open_model(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_case_03_text_encoder_missing_weights(small_model: Path, tmp_path: Path) -> None:
    lacking = copied(small_model, tmp_path / "lacking")

    def drop_a_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layers.1." in name]:
            del tensors[name]

    change_tensors(lacking / WEIGHTS["text_encoder"], drop_a_layer)
    assert re.search(
        r"text_encoder/model\.safetensors does not .*: 16 missing \('encoder\.layers\.1\.layer_norm1\.bias', .*\.\.",
        refusal(lacking),
    )
    prefixed = copied(small_model, tmp_path / "prefixed")

    def prefix(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    change_tensors(prefixed / WEIGHTS["text_encoder"], prefix)
    assert re.search(r"36 missing .*; 36 unexpected \('module\.embeddings", refusal(prefixed))


def test_case_04_unet_missing_weights(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_tensors(copy / WEIGHTS["unet"], lambda tensors: tensors.pop("up_blocks.1.resnets.0.conv1.weight"))
    words = r"unet/diffusion_pytorch_model\.safetensors .* 1 missing \('up_blocks\.1\.resnets\.0\.conv1\.weight'\)"
    assert re.search(words, refusal(copy))
    with pytest.raises(ModelError, match=r"1 missing \('up_blocks\.1\.resnets\.0\.conv1\.weight'\)"):
        load_unet(ModelLocation("copy", None, copy), CPU, torch.float32)


def test_case_05_dinov2_missing_weights(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model / "dinov2", tmp_path / "dino")

    def drop_a_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layer.1." in name]:
            del tensors[name]

    change_tensors(copy / "model.safetensors", drop_a_layer)
    with pytest.raises(ModelError, match=r"dino/model\.safetensors does not hold .* 18 missing \('encoder\.layer\.1\."):
        locate_dino(str(copy), ModelLocation("small", None, small_model))
    with pytest.raises(ModelError, match="18 missing"):
        load_dino(copy, CPU, torch.float32)


@pytest.mark.parametrize(("component", "damage"), list(zip(LOADERS, DAMAGES, strict=True)))
def test_loading_alone_refuses_as_well(small_model: Path, tmp_path: Path, component: str, damage: str) -> None:
    """Whoever loads a component without having opened the model."""
    copy = copied(small_model, tmp_path / "copy")
    change_tensors(copy / WEIGHTS[component], lambda tensors: DAMAGES[damage](tensors, A_TENSOR[component]))
    with pytest.raises(ModelError, match=component):
        LOADERS[component](ModelLocation("copy", None, copy), CPU, torch.float32)


def scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name] * 1e38


def whole_numbers(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("unet", scale, r"holds 1 tensor\(s\) with values that are not finite \('{name}'\)"),
        ("text_encoder", scale, r"holds 1 tensor\(s\) with values that are not finite \('{name}'\)"),
        ("vae", whole_numbers, r"holds 1 tensor\(s\) of other types than F16, BF16, F32, F64 \('{name}' I8\)"),
    ],
)
def test_values_that_no_weights_have(
    small_model: Path, tmp_path: Path, component: str, change: Callable[[dict[str, Tensor], str], None], words: str
) -> None:
    copy, name = copied(small_model, tmp_path / "copy"), A_TENSOR[component]
    change_tensors(copy / WEIGHTS[component], lambda tensors: change(tensors, name))
    assert re.search(words.format(name=re.escape(name)), refusal(copy))


def header(content: bytes, change: Callable[[dict[str, dict[str, list[int]]]], object]) -> bytes:
    """A safetensors file whose header was changed."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length])
    change(found)
    written = json.dumps(found).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-100], "incomplete metadata"),
        (lambda _: b"", "header too small"),
        (lambda content: (2**62).to_bytes(8, "little") + content[8:], "header too large"),
        (lambda content: header(content, lambda found: found["conv_in.bias"]["data_offsets"].reverse()), "invalid"),
        (lambda content: header(content, lambda found: found["conv_in.bias"]["shape"].append(2)), "invalid"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 34\n", "`git lfs pull`"),
        (lambda _: b"<!DOCTYPE html><html></html>", "header too large"),
    ],
)
def test_a_damaged_file(small_model: Path, tmp_path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    file = copied(small_model, tmp_path / "copy") / WEIGHTS["unet"]
    file.write_bytes(damage(file.read_bytes()))
    said = refusal(tmp_path / "copy")
    assert said.startswith(str(file))
    assert words in said


def sharded(model: Path, folder: Path) -> Path:
    """A copy whose UNet lies in shards; the list of them."""
    copy = copied(model, folder)
    (copy / WEIGHTS["unet"]).unlink()
    UNet2DConditionModel.from_pretrained(model / "unet", use_safetensors=True).save_pretrained(
        copy / "unet", max_shard_size="5MB"
    )
    return copy / f"{WEIGHTS['unet']}.index.json"


def test_shards_load(small_model: Path, tmp_path: Path) -> None:
    index = sharded(small_model, tmp_path / "copy")
    location = open_model(str(index.parents[1])).location
    own = load_unet(location, CPU, torch.float32).state_dict()
    whole = load_unet(ModelLocation("small", None, small_model), CPU, torch.float32).state_dict()
    assert all(torch.equal(own[name], whole[name]) for name in whole)


@pytest.mark.parametrize("damage", ["named", "held", "lost", "beside", "elsewhere", "twofold", "unlisted"])
def test_shards_that_are_not_their_lists(small_model: Path, tmp_path: Path, damage: str) -> None:
    index = sharded(small_model, tmp_path / "copy")
    listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(listed.items()))
    if damage == "named":
        listed["no.such.weight"], words = shard, r"differ in 1 tensor\(s\) .* \('no\.such\.weight'\)"
    elif damage == "held":
        del listed[name]
        words = rf"differ in 1 tensor\(s\) .* \('{re.escape(name)}'\)"
    elif damage == "lost":
        (index.parent / shard).unlink()
        words = f"{shard} cannot be read"
    elif damage == "beside":
        (index.parent / "diffusion_pytorch_model-00009-of-00009.safetensors").write_bytes(b"")
        words = "does not name diffusion_pytorch_model-00009-of-00009"
    elif damage == "elsewhere":
        listed = {tensor: f"../other/{file}" if file == shard else file for tensor, file in listed.items()}
        (index.parent / shard).unlink()
        words = "which is no file beside it"
    elif damage == "twofold":
        os.link(small_model / WEIGHTS["unet"], index.parents[1] / WEIGHTS["unet"])
        words = "remove the one that is not meant"
    if damage == "unlisted":
        index.unlink()
        words = "but not their list"
    else:
        index.write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert re.search(words, refusal(index.parents[1]))


def test_published_text_encoders(small_model: Path, tmp_path: Path) -> None:
    """As transformers before 5 wrote them, and before 4.31 with the positions' numbers."""
    copy = copied(small_model, tmp_path / "copy")

    def as_published(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"text_model.{name}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    change_tensors(copy / WEIGHTS["text_encoder"], as_published)
    own = load_text_encoder(open_model(str(copy)).location, CPU, torch.float16).state_dict()
    new = load_file(small_model / WEIGHTS["text_encoder"])
    assert new.keys() == own.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in new.items())


def test_published_vaes(small_model: Path, tmp_path: Path) -> None:
    """As diffusers before 0.17 wrote them, with attention between the blocks as Stable Diffusion's."""
    copy = copied(small_model, tmp_path / "copy")
    torch.manual_seed(0)
    config = {**small_vae().config, "mid_block_add_attention": True}
    vae = AutoencoderKL.from_config(config)
    vae.save_pretrained(copy / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def as_published(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            for new, replaced in old.items():
                if f"attentions.0.{new}." in name:
                    tensors[name.replace(new, replaced)] = tensors.pop(name)

    change_tensors(copy / WEIGHTS["vae"], as_published)
    names = set(load_file(copy / WEIGHTS["vae"]))
    assert {"encoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.proj_attn.bias"} <= names
    own = load_vae_encoder(open_model(str(copy)).location, CPU, torch.float32).state_dict()
    assert "encoder.mid_block.attentions.0.to_out.0.weight" in own
    assert all(torch.equal(tensor, vae.state_dict()[name]) for name, tensor in own.items())
    # one of both: the library would take the new name and leave the old one out
    name = "encoder.mid_block.attentions.0.query.bias"
    change_tensors(
        copy / WEIGHTS["vae"],
        lambda tensors: tensors.update({name.replace("query", "to_q"): tensors[name].clone()}),
    )
    assert "twice, under an old name as well" in refusal(copy)


def test_published_dinov2s(small_model: Path, tmp_path: Path) -> None:
    """As facebook/dinov2-base (the demo's names are those), without the token for masks, and with a classifier on
    top."""
    whole = load_dino(small_model / "dinov2", CPU, torch.float16)._network.state_dict()
    names = set(load_file(small_model / WEIGHTS["dinov2"]))
    assert {"encoder.layer.0.attention.attention.query.weight", "embeddings.mask_token", "layernorm.weight"} <= names
    copy = copied(small_model / "dinov2", tmp_path / "dino")
    change_tensors(copy / "model.safetensors", lambda tensors: tensors.pop("embeddings.mask_token"))
    check_dino(copy)

    def with_classifier(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"dinov2.{name}"] = tensors.pop(name)
        tensors["classifier.weight"], tensors["classifier.bias"] = torch.zeros(10, 192), torch.zeros(10)

    change_tensors(copy / "model.safetensors", with_classifier)
    check_dino(copy)
    own = load_dino(copy, CPU, torch.float16)._network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in whole.items() if name != "embeddings.mask_token")


def test_what_passed_is_not_checked_again(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = copied(small_model, tmp_path / "copy")
    asked: list[Path] = []
    monkeypatch.setattr("featstore.backbones.weights.check_model", lambda folder, _: asked.append(folder))
    for _ in range(2):
        open_model(str(copy))
    assert asked == [copy]
    change_tensors(
        copy / WEIGHTS["unet"], lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"] + 1})
    )
    open_model(str(copy))
    assert asked == [copy, copy]


def test_links_to_files_elsewhere(small_model: Path, tmp_path: Path) -> None:
    """A snapshot in the hub's cache is made of them."""
    copy = copied(small_model, tmp_path / "copy")
    (tmp_path / "blobs").mkdir()
    for index, file in enumerate(sorted(file for file in copy.rglob("*") if file.is_file())):
        file.rename(tmp_path / "blobs" / str(index))
        file.symlink_to(tmp_path / "blobs" / str(index))
    assert open_model(str(copy)).fingerprint == open_model(str(small_model)).fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_max_length": 512}, "model_max_length 512, but the text encoder beside it has 77 positions"),
        ({"model_max_length": None}, "no model_max_length"),
    ],
)
def test_tokenizers_of_other_lengths(small_model: Path, tmp_path: Path, change: dict[str, object], words: str) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "tokenizer" / "tokenizer_config.json", **change)
    assert words in refusal(copy)


def test_tokenizers_of_more_tokens(small_model: Path, tmp_path: Path) -> None:
    """As textual inversion leaves them beside a text encoder that was not enlarged."""
    copy = copied(small_model, tmp_path / "copy")
    (copy / "tokenizer" / "added_tokens.json").write_text('{"<cat-toy>": 532}')
    assert "has tokens up to 532, but the text encoder beside it knows 532" in refusal(copy)
    (copy / "tokenizer" / "added_tokens.json").unlink()
    (copy / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    assert "cannot be loaded as CLIP's tokenizer" in refusal(copy)


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("unet", {"block_out_channels": [32, 32]}, "a UNet of 2 up blocks"),
        ("unet", {"block_out_channels": "abcd"}, r"unet/config\.json .* block_out_channels is 'abcd', not a list"),
        ("unet", {"norm_num_groups": 7}, "describes no network"),
        ("text_encoder", {"num_attention_heads": "x"}, "describes no network"),
        ("text_encoder", {"num_hidden_layers": 1}, "16 unexpected"),
        ("unet", {"attention_head_dim": [3, 4, 8, 8]}, "69 of another shape"),
        ("unet", {"sample_size": None}, "sample_size is None"),
        ("unet", {"sample_size": [32, 64]}, r"sample_size is \[32, 64\], not a whole number"),
    ],
)
def test_configurations_that_are_not_the_weights(
    small_model: Path, tmp_path: Path, component: str, change: dict[str, object], words: str
) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / component / "config.json", **change)
    assert re.search(words, refusal(copy))
