"""SD4Match's files: read exactly, written exactly, and never executed."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
from featstore.backbones.models import Model, open_model
from featstore.backbones.text_encoders import ClipText, fill, frame
from featstore.errors import PromptError
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import PARAMETERS, ConditionalModule
from featstore.prompts.saved import load_prompts, save_prompts
from featstore.prompts.sd4match import read_published, to_learned, write_published
from tests.featstore.prompts.made import made, module_tensors

WIDTH = 64


@dataclass(frozen=True)
class Small:
    """The small model, and importing for it as the command does: through a file of prompts on disk."""

    model: Model
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    def learned(self, file: Path, mode: Mode | None = None) -> LearnedPrompts:
        text = ClipText(self.tokenizer, self.text_encoder)
        learned = to_learned(read_published(file, mode), self.model, text, 2, 261)
        saved = file.with_name("imported.safetensors")
        save_prompts(learned, saved)
        return load_prompts(saved)

    def framed(self, vectors: Tensor) -> Tensor:
        """As SD4Match's prompts are (1, 77, D) around vectors (N, D)."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return fill(frame(self.text_encoder, start, end, len(vectors)), vectors[None])


@pytest.fixture(scope="module")
def small(small_model: Path) -> Small:
    model = open_model(str(small_model))
    encoder = load_text_encoder(model.location, torch.device("cpu"), torch.float32)
    return Small(model, load_tokenizer(model.location), encoder)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "Class_spair_sd2-1_TokenEmbeds75"
    folder.mkdir()
    return folder / "caption.pt"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def read(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Same keys, shapes, precision and bits."""
    if isinstance(theirs, Tensor):
        ours, theirs = {"": ours}, {"": theirs}
    assert set(ours) == set(theirs)
    for name in theirs:
        assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(ours[name], theirs[name])


FILES: dict[str, tuple[Mode, Any]] = {
    "single": (Mode.SINGLE, {"dataset": noise(1, 77, WIDTH)}),
    "single without the leading one": (Mode.SINGLE, {"dataset": noise(77, WIDTH)}),
    "single under another key": (Mode.SINGLE, {"all": noise(1, 77, WIDTH)}),
    "single alone": (Mode.SINGLE, noise(1, 77, WIDTH)),
    "class": (Mode.CLASS, {name: noise(1, 77, WIDTH, seed=i) for i, name in enumerate(("cat", "car(G)", "dog.x|y"))}),
    "class without the leading one": (Mode.CLASS, {"cat": noise(77, WIDTH), "dog": noise(77, WIDTH, seed=1)}),
    "class in half precision": (Mode.CLASS, {"cat": noise(1, 77, WIDTH).half(), "dog": noise(1, 77, WIDTH).half()}),
    "class as parameters": (Mode.CLASS, {name: torch.nn.Parameter(noise(1, 77, WIDTH)) for name in ("cat", "dog")}),
    "cpm": (Mode.CPM, OrderedDict(module_tensors(seed=1))),
    "cpm in half precision": (Mode.CPM, {name: own.bfloat16() for name, own in module_tensors(seed=1).items()}),
}


@pytest.mark.parametrize("name", FILES)
def test_import_then_export_gives_the_file_again(small: Small, file: Path, name: str) -> None:
    mode, content = FILES[name]
    torch.save(content, file)
    learned = small.learned(file)
    assert (learned.mode, learned.layers, learned.timesteps, learned.length) == (mode, (2,), (261,), 75)
    assert learned.model == small.model.name
    assert learned.training["imported"]["file"] == "Class_spair_sd2-1_TokenEmbeds75/caption.pt"
    write_published(learned, 2, file.with_name("again.pt"))
    assert_equal(read(file.with_name("again.pt")), read(file))


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("layer", [2, 3])
def test_export_then_import_gives_the_prompts_again(small: Small, file: Path, mode: Mode, layer: int) -> None:
    prompts = made(mode)
    write_published(prompts, layer, file)
    learned = small.learned(file)
    assert (learned.mode, learned.categories) == (mode, prompts.categories)
    assert_equal(learned.tensors[2], prompts.tensors[layer])
    assert learned.content(2) == prompts.content(layer)
    assert [own.name for own in file.parent.iterdir() if "partial" in own.name] == []


def test_files_are_as_sd4match_reads_them(file: Path) -> None:
    """It takes `dataset` or the category, and concatenates along the first dimension; its module loads by name."""
    write_published(made(Mode.SINGLE), 2, file)
    assert {name: own.shape for name, own in read(file).items()} == {"dataset": (1, 77, WIDTH)}
    write_published(made(Mode.CLASS), 2, file)
    assert {name: own.shape for name, own in read(file).items()} == {"cat": (1, 77, WIDTH), "dog": (1, 77, WIDTH)}
    write_published(made(Mode.CPM), 2, file)
    assert set(read(file)) == set(PARAMETERS)
    assert read(file)["global_embeds"].shape == (1, 25, WIDTH)
    with pytest.raises(PromptError, match=r"for layer\(s\) 2, 3, not for 4"):
        write_published(made(Mode.CPM), 4, file)


def test_one_category_alone_is_class_when_told(small: Small, file: Path) -> None:
    torch.save({"cat": noise(1, 77, WIDTH)}, file)
    assert small.learned(file).mode is Mode.SINGLE
    learned = small.learned(file, Mode.CLASS)
    assert (learned.mode, learned.categories) == (Mode.CLASS, ("cat",))
    write_published(learned, 2, file.with_name("again.pt"))
    assert_equal(read(file.with_name("again.pt")), read(file))


@pytest.mark.parametrize("mode", [Mode.SINGLE, Mode.CLASS])
def test_all_rows_are_kept_and_the_length_is_told_from_them(small: Small, file: Path, mode: Mode) -> None:
    for length in (75, 30):
        names = ("dataset",) if mode is Mode.SINGLE else ("cat", "dog")
        content = {name: small.framed(noise(length, WIDTH, seed=i)) for i, name in enumerate(names)}
        torch.save(content, file)
        learned = small.learned(file)
        assert learned.length == length
        assert learned.training["imported"]["framed"] is True
        for name, rows in content.items():
            assert torch.equal(learned.tensors[2]["" if mode is Mode.SINGLE else name], rows[0])


def test_rows_that_are_not_this_models_are_marked(small: Small, file: Path) -> None:
    """Such as hidden states, which SD4Match keeps in the same file."""
    torch.save({"dataset": noise(1, 77, WIDTH)}, file)
    learned = small.learned(file)
    assert (learned.length, learned.training["imported"]["framed"]) == (75, False)
    vectors = [small.framed(noise(length, WIDTH)) for length in (75, 30)]
    torch.save({"cat": vectors[0], "dog": vectors[1]}, file)
    assert small.learned(file).training["imported"]["framed"] is False


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "module.": lambda own: {f"module.{name}": tensor for name, tensor in own.items()},
    "state_dict": lambda own: {"state_dict": OrderedDict(own)},
    "both": lambda own: {"checkpoint": {"state_dict": {f"module.{name}": tensor for name, tensor in own.items()}}},
    "beside others": lambda own: {"state_dict": own, "optimizer": {"exp_avg": torch.zeros(2)}},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_cpm_may_be_wrapped_and_have_company(small: Small, file: Path, wrapping: str) -> None:
    own = module_tensors(seed=1)
    company = {"text_model_embeddings.position_ids": torch.arange(77)[None], "text_model_embeddings.x": noise(3, 4)}
    torch.save(WRAPPED[wrapping]({**own, **company}), file)
    published = read_published(file)
    assert set(company) <= set(published.ignored)
    learned = small.learned(file)
    assert learned.mode is Mode.CPM
    assert_equal(learned.tensors[2], own)
    assert learned.dino is not None
    assert (learned.dino.id, learned.dino.fingerprint) == ("facebook/dinov2-base", "")
    write_published(learned, 2, file)
    assert_equal(read(file), own)


@pytest.mark.parametrize("lost", PARAMETERS)
def test_a_cpm_that_lacks_a_parameter(file: Path, lost: str) -> None:
    own = module_tensors(seed=1)
    del own[lost]
    torch.save(own, file)
    with pytest.raises(PromptError, match=f"lacks {lost} of a cpm"):
        read_published(file)


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


class Stranger:
    """A class of somebody's own."""


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_pickle_is_refused_and_not_executed(file: Path, tmp_path: Path, as_zip: bool) -> None:
    marker = tmp_path / "executed"
    content = {"cat": noise(1, 77, WIDTH), "dog": Touches(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(PromptError, match=r"asks for \w+\.mkdir; .* nothing in a pickle is executed"):
        read_published(file)
    file.write_bytes(pickle.dumps(content["dog"]))
    with pytest.raises(PromptError, match="nothing in a pickle is executed"):
        read_published(file)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()  # it would have been


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cat": noise(1, 77, WIDTH), "note": "a string"}, "holds a str .*'note'"),
        ({"cat": noise(1, 77, WIDTH), "who": Stranger()}, "asks for .*Stranger"),
        ({"state_dict": module_tensors(seed=1), "epoch": 3}, "holds a int .*'epoch'"),
        ({"cat": None}, "holds a NoneType"),
        ([noise(1, 77, WIDTH)], "holds a list"),
        ({3: noise(1, 77, WIDTH)}, "tensors by name"),
        ("words", "holds a str"),
    ],
)
def test_what_is_no_tensor_is_refused(file: Path, content: Any, words: str) -> None:
    torch.save(content, file)
    with pytest.raises(PromptError, match=words):
        read_published(file)


def test_files_that_are_no_pickles(file: Path) -> None:
    with pytest.raises(PromptError, match="There is no file"):
        read_published(file)
    torch.save(FILES["class"][1], file)
    whole = file.read_bytes()
    for content in (b"", b"not a pickle", whole[:100], whole[: len(whole) // 2], whole[len(whole) // 2 :]):
        file.write_bytes(content)
        with pytest.raises(PromptError, match=r"no file of torch\.save's, or a damaged one"):
            read_published(file)
    inside: dict[str, Any] = {}
    inside["inside"] = inside
    torch.save(inside, file)
    with pytest.raises(PromptError, match="no prompts as SD4Match writes them"):
        read_published(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "no prompts as SD4Match writes them"),
        ({"prompts": {"cat": noise(1, 77, WIDTH)}}, "no prompts as SD4Match writes them"),
        ({"cat": noise(77)}, r"of shape \(77,\)"),
        ({"cat": noise(2, 77, WIDTH)}, r"of shape \(2, 77, 64\)"),
        ({"cat": noise(1, 77, WIDTH), "dog": noise(77, WIDTH)}, r"of shape \(1, 77, 64\) and \(77, 64\)"),
        ({"cat": noise(1, 77, WIDTH).double()}, "'cat' as a torch.float64 tensor"),
        ({"cat": torch.zeros(1, 77, WIDTH, dtype=torch.int64)}, "'cat' as a torch.int64 tensor"),
        ({"cat": noise(77, WIDTH).to_sparse()}, "'cat' as a torch.float32 tensor that is no prompt"),
        ({"cat": noise(77, WIDTH), "dog": noise(77, WIDTH).half()}, "float16 and float32"),
        ({"cat": noise(77, WIDTH), "dog": torch.full((77, WIDTH), torch.nan)}, "in 'dog' that are not finite"),
        ({**module_tensors(seed=1), "alpha_cond": noise(1, 49, WIDTH)}, "do not fit together"),
        ({"a": module_tensors(seed=1), "b": module_tensors(seed=2)}, "more than one cpm, under 'a.' and 'b.'"),
    ],
)
def test_tensors_that_are_no_prompts(file: Path, content: Any, words: str) -> None:
    torch.save(content, file)
    with pytest.raises(PromptError, match=words):
        read_published(file)


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("class", Mode.SINGLE, "holds 3 prompts, and mode single has one"),
        ("class", Mode.CPM, "no parameters of a cpm"),
        ("single alone", Mode.CLASS, "does not say its category"),
        ("cpm", Mode.CLASS, "parameters of a cpm, not prompts of mode class"),
    ],
)
def test_another_mode_than_was_told(file: Path, name: str, mode: Mode, words: str) -> None:
    torch.save(FILES[name][1], file)
    with pytest.raises(PromptError, match=words):
        read_published(file, mode)


def test_prompts_of_another_width_or_length(small: Small, file: Path) -> None:
    wide = r"of shape \(.*, 768\), 768 wide, and the text encoder of .* takes \(.*, 64\): .* SD 1-5 is 768 wide"
    torch.save({"cat": noise(1, 77, 768), "dog": noise(1, 77, 768)}, file)
    with pytest.raises(PromptError, match=wide):
        small.learned(file)
    with torch.random.fork_rng(devices=[]):
        torch.save(ConditionalModule(8, 60, 768).state_dict(), file)
        with pytest.raises(PromptError, match=wide):
            small.learned(file)
        torch.save(ConditionalModule(8, 60, WIDTH, (30, 50)).state_dict(), file)
        with pytest.raises(PromptError, match=r"makes more vectors than .*: 75"):
            small.learned(file)
    torch.save({"cat": noise(1, 75, WIDTH)}, file)
    with pytest.raises(PromptError, match=r"of shape \(75, 64\), .* and the text encoder of .* takes \(77, 64\)"):
        small.learned(file)


def test_damage_to_the_layout_shows(small: Small, file: Path) -> None:
    torch.save(FILES["class"][1], file)
    learned = small.learned(file)
    for imported in ({}, {"layout": {"dtype": "float8"}}, {"layout": {"colour": "red"}}, {"layout": 3}, "words"):
        with pytest.raises(PromptError, match=r"layout .* damaged"):
            write_published(replace(learned, training={"imported": imported}), 2, file)
    assert_equal(read(file), FILES["class"][1])
