"""What a run keeps carries a checksum: a flipped bit is a sentence, never a result. And every value of a `run.json` is
looked at where it is read."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.amp import GradScaler

from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
from featstore.backbones.locate import locate
from featstore.backbones.text_encoders import ClipText
from featstore.pipeline.results import EvaluationRun, save_evaluation
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import SavedPrompts, load_prompts, save_prompts
from featstore.sealed import check_seal, read_tensors, seal, seal_tensors
from featstore.tuning.loop import TrainingState
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.runs import metrics_bytes
from featstore.tuning.settings import TuningSettings
from matcher.errors import InputError
from tests.cli.test_prompt_choice import SETTINGS
from tests.featstore.evaluations import guessed, many_pairs, result_of
from tests.featstore.prompts.made import made

Read = Callable[[Path], Any]


def prompts_at(path: Path) -> Any:
    found: LearnedPrompts = load_prompts(path)
    return (
        found.mode, found.layers, found.timesteps, found.length, found.model, found.training
    ), [found.content(layer) for layer in found.layers]  # fmt: skip


def evaluation_at(path: Path) -> Any:
    run = EvaluationRun.open(path.parent)
    return run.description, run.scored().to_json()


def training_at(path: Path) -> Any:
    run = RunFolder.open(path.parent)
    return run.description, run.settings


def metrics_at(path: Path) -> Any:
    return RunFolder(path.parent, {}).metrics_until(99)


def fresh_state(seed: int) -> TrainingState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parameters = [nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(3))]
    optimiser = torch.optim.Adam(parameters)
    sum(parameter.square().sum() for parameter in parameters).backward()  # type: ignore[union-attr]
    optimiser.step()
    return TrainingState(7, parameters, optimiser, 0.25, GradScaler("cpu", enabled=False))


def state_at(path: Path) -> Any:
    state = fresh_state(2)
    state.load(path)
    adam = [value for own in state.optimiser.state.values() for value in own.values()]
    return state.step, state.best, [tensor.tolist() for tensor in [*state.parameters, *adam]]


def described_training() -> dict[str, Any]:
    each = {"timesteps": [50, 200], "validation_timesteps": [50, 200]}
    return {
        "format": "dualsd run",
        "version": 1,
        "created": "2026-01-01T00:00:00.000000+00:00",
        "creator": "0.1.0",
        "store": {"path": "dualsd.zarr", "identity": "demo|f|128|sample|0"},
        "dataset": "demo",
        "model": {"id": "demo", "fingerprint": "f"},
        "dino": None,
        "settings": {**SETTINGS, **each, "layers": [2, 3], "weights": [0.8, 0.6]},
        "versions": {"torch": "2"},
    }


def kept(kind: str, folder: Path) -> tuple[Path, Read]:
    """A file of a kind, and how it is read."""
    match kind:
        case "prompts":
            save_prompts(made(Mode.CLASS), folder / "prompts.safetensors")
            return folder / "prompts.safetensors", prompts_at
        case "cpm":
            save_prompts(made(Mode.CPM), folder / "prompts.safetensors")
            return folder / "prompts.safetensors", prompts_at
        case "checkpoint":
            fresh_state(1).save(folder / "checkpoint.safetensors")
            return folder / "checkpoint.safetensors", state_at
        case "metrics":
            rows = [(str(step), f"{1 / step:.6f}", "" if step % 2 else "0.5", "0.1") for step in range(1, 9)]
            (folder / "metrics.csv").write_bytes(metrics_bytes(rows))
            return folder / "metrics.csv", metrics_at
        case "training":
            (folder / "run.json").write_text(json.dumps(seal(described_training()), indent=2))
            return folder / "run.json", training_at
    pairs = many_pairs(2)
    found = save_evaluation(result_of(pairs, {"nn": guessed(pairs, 0.1, 1)}), folder / "run")
    return found / ("run.json" if kind == "evaluation" else "predictions.safetensors"), evaluation_at


KINDS = ("prompts", "cpm", "checkpoint", "metrics", "training", "evaluation", "predictions")


def result_or_sentence(read: Read, file: Path) -> tuple[Any, str | None]:
    try:
        return read(file), None
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_a_sentence(kind: str, tmp_path: Path) -> None:
    """In the header, the metadata, the checksum, the numbers: often in the first 3,000 bytes, then here and there."""
    file, read = kept(kind, tmp_path)
    content, whole = file.read_bytes(), read(file)
    refused = 0
    places = {*range(0, min(len(content), 3000), 7), *range(3000, len(content), max(len(content) // 40, 1))}
    for place in sorted({*places, len(content) - 1}):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        found, sentence = result_or_sentence(read, file)
        if sentence is None:
            assert file.suffix != ".safetensors", (place, content[max(place - 20, 0) : place + 20])
            assert found == whole, (place, content[max(place - 20, 0) : place + 20])
        else:
            assert str(file.parent) in sentence
            assert len(sentence.splitlines()) == 1, sentence
            refused += 1
    assert refused > 0.7 * len(places)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_is_a_sentence(kind: str, tmp_path: Path) -> None:
    file, read = kept(kind, tmp_path)
    content = file.read_bytes()
    for place in (0, 1, content.rindex(b"0.1") if kind == "metrics" else len(content) // 2, len(content) - 5):
        file.write_bytes(content[:place])
        with pytest.raises(InputError):
            read(file)


def test_a_seal_does_not_mind_spaces_and_the_order_of_keys() -> None:
    sealed = seal({"b": [1, 0.1], "a": {"x": None}})
    check_seal(json.loads(json.dumps(dict(reversed(sealed.items())), indent=7)))
    with pytest.raises(ValueError, match="does not fit"):
        check_seal({**sealed, "b": [1.0, 0.1]})
    check_seal({"b": 2})
    for lost in ("checksum", "sealed"):
        with pytest.raises(ValueError, match="is missing"):
            check_seal({name: value for name, value in sealed.items() if name != lost})


def test_runs_without_checksums_are_read(tmp_path: Path) -> None:
    for kind in ("evaluation", "training"):
        file, read = kept(kind, tmp_path / kind if (tmp_path / kind).mkdir() is None else tmp_path)
        whole = json.loads(file.read_text())
        file.write_text(json.dumps({name: own for name, own in whole.items() if name not in ("checksum", "sealed")}))
        read(file)
    (tmp_path / "metrics.csv").write_text("step,loss,pck,seconds\r\n1,0.5,,0.1\r\n")
    assert metrics_at(tmp_path / "metrics.csv") == [("1", "0.5", "", "0.1")]


def put(described: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    place: Any = described
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value


NONE_OF_AN_EVALUATION = [
    ("average", "bogus", "average is 'bogus', not one of 'image', 'point'"),
    ("average", 3, "average is 3"),
    ("split", None, "split is None, not a text"),
    ("dataset", ..., "dataset is missing"),
    ("features", [], "features is [], not a table"),
    ("n_pairs", 3, "n_pairs is 3, and the predictions have"),
    ("n_points", "12", "n_points is '12', not a whole number"),
    ("categories", ["dog"], "categories is ('dog',), and"),
    ("scoring.alphas", [-0.1], "scoring.alphas is [-0.1], which are not all above 0"),
    ("scoring.alphas", [float("nan")], "scoring.alphas[0] is nan, not a finite number"),
    ("scoring.alphas", [], "scoring.alphas is empty"),
    ("scoring.alphas", 0.1, "scoring.alphas is 0.1, not a list"),
    ("scoring.readouts", ["best"], "There is no readout 'best'"),
    ("scoring.readouts", ["nn", "nn"], "names one twice"),
    ("scoring.frame", "square", "scoring.frame is 'square'"),
    ("scoring.layers", [], "No layer is named"),
    ("scoring.layers.0.timestep", 1000, "no timestep 1000"),
    ("scoring.layers.0.timestep", True, "scoring.layers[0].timestep is True, not a whole number"),
    ("scoring.layers.0.weight", float("inf"), "scoring.layers[0].weight is inf"),
    ("scoring.layers.0.weight", -1, "none may be negative"),
    ("scoring.layers.0.layer", 2, "scoring.layers[0].layer is 2, not a text"),
    ("scoring.settings.beta", 0, "beta is 0"),
    ("scoring.settings.beta", "0.04", "scoring.settings.beta is '0.04', not a finite number"),
    ("scoring.settings.sigma", -7.0, "sigma is -7"),
    ("scoring.settings.image_size", 1, "image_size is 1"),
    ("scoring.settings.image_size", 128.5, "scoring.settings.image_size is 128.5, not a whole number"),
    ("scoring.settings.geometry", "round", "scoring.settings.geometry is 'round'"),
    ("scoring.settings.new", 1, "scoring.settings.new is unknown"),
    ("scoring.settings.sigma", 5.0, "checksum does not fit"),
    ("split", "val", "checksum does not fit"),
]


@pytest.mark.parametrize(("path", "value", "words"), NONE_OF_AN_EVALUATION)
def test_a_value_that_no_evaluation_has(tmp_path: Path, path: str, value: object, words: str) -> None:
    file, read = kept("evaluation", tmp_path)
    described = json.loads(file.read_text())
    put(described, path, value)
    file.write_text(json.dumps(described))
    with pytest.raises(InputError) as error:
        read(file)
    assert words in str(error.value)
    assert str(file) in str(error.value)


NONE_OF_A_TRAINING = [
    ("settings.mode", "many", "settings.mode is 'many', not one of 'single', 'class', 'cpm'"),
    ("settings.layers", [2, 7], "no layer 7"),
    ("settings.layers", [2, 2], "each once"),
    ("settings.timesteps", [50], "2 layer(s) but 1 timestep(s) (timesteps)"),
    ("settings.timesteps", [50, 1000], "no timestep 1000"),
    ("settings.weights", [float("nan"), 1.0], "settings.weights[0] is nan"),
    ("settings.weights", [1e30, 1.0], "cannot be used"),
    ("settings.steps", 0, "steps is 0"),
    ("settings.steps", "5", "settings.steps is '5', not a whole number"),
    ("settings.rate", -0.1, "rate is -0.1"),
    ("settings.kernel", 4, "4"),
    ("settings.dtype", "int7", "dtype is 'int7'"),
    ("settings.matching.beta", -1.0, "beta is -1.0"),
    ("settings.seed", ..., "settings.seed is missing"),
    ("settings.new", 1, "settings.new is unknown"),
    ("settings", [], "settings is [], not a table"),
    ("store", {"path": "x"}, "store.identity is missing"),
    ("model", "demo", "model is 'demo', not a table"),
    ("dino", 5, "dino is 5, not a text"),
    ("created", 7, "created is 7, not a text"),
    ("settings.seed", 1, "checksum does not fit"),
    ("checksum", ..., "checksum is missing"),
]


@pytest.mark.parametrize(("path", "value", "words"), NONE_OF_A_TRAINING)
def test_a_value_that_no_training_has(tmp_path: Path, path: str, value: object, words: str) -> None:
    file, read = kept("training", tmp_path)
    described = json.loads(file.read_text())
    put(described, path, value)
    file.write_text(json.dumps(described))
    with pytest.raises(InputError) as error:
        read(file)
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_settings_come_back() -> None:
    settings = TuningSettings.from_json(copy.deepcopy(described_training()["settings"]))
    assert TuningSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_a_checkpoint_of_other_shapes(tmp_path: Path) -> None:
    """Copying would broadcast (3,) over (5, 3), and convert."""
    state = fresh_state(1)
    state.save(tmp_path / "c.safetensors")
    for shape, dtype in (((5, 3), torch.float32), ((3,), torch.float64)):
        other = TrainingState(
            0, [state.parameters[0], nn.Parameter(torch.zeros(shape, dtype=dtype))], state.optimiser, 0, state.scaler
        )
        with pytest.raises(InputError, match=r"parameter 1 is torch.float32 of shape \(3,\), in this run"):
            other.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda it: it[:, :8],
            r"not of one shape \(positions, width\): .*layer3\|dog 77x8",
        ),
        (lambda it: it[:40], r"layer3\|dog 40x64"),
        (lambda it: it[None], "1x77x64"),
        (lambda it: it * np.nan, r"layer3\|dog is not all finite"),
    ],
)
def test_prompts_that_do_not_belong_together(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    prompts = made(Mode.CLASS)
    tensors = {layer: dict(own) for layer, own in prompts.tensors.items()}
    tensors[3]["dog"] = change(tensors[3]["dog"])
    save_prompts(replace(prompts, tensors=tensors), tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=words):
        load_prompts(tmp_path / "p.safetensors")


def test_prompts_of_another_precision_or_length(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    prompts = made(Mode.SINGLE)
    for length in (0, 76):
        save_prompts(replace(prompts, length=length), file)
        with pytest.raises(InputError, match=f"it says prompts of {length} vectors, and has room for"):
            load_prompts(file)
    save_prompts(replace(prompts, timesteps=(50, 1000)), file)
    with pytest.raises(InputError, match="no timestep 1000"):
        load_prompts(file)
    save_prompts(prompts, file)
    content = read_tensors(file)[1]
    halves = {name: tensor.half() for name, tensor in load_file(file).items()}
    file.write_bytes(seal_tensors(content, lambda metadata: save(halves, metadata)))
    with pytest.raises(InputError, match="is float16, where prompts are finite float32"):
        load_prompts(file)


def test_prompts_of_another_width_than_the_model_takes(small_model: Path) -> None:
    """768 wide, as SD 1.5's are, in a file that names this model: both shapes are said."""
    prompts = replace(made(Mode.SINGLE), tensors={layer: {"": torch.zeros(77, 768)} for layer in (2, 3)})
    location = locate(str(small_model))
    encoder = load_text_encoder(location, torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match=r"of shape \(77, 768\), .* takes \(77, 64\)"):
        SavedPrompts(prompts).embeddings(2, ["cat"], ClipText(load_tokenizer(location), encoder))
