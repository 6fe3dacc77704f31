"""`--adapter`: what is matched is what its network makes of the maps, wherever they come from; and what is refused."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dualsd
from featstore.adapters.applied import AdaptedMaps, parts_of
from featstore.adapters.base import AdapterSpec, load_adapter, make_adapter, save_adapter
from featstore.backbones.base import NetworkName
from featstore.config import ExportConfig, GridConfig, MapsConfig
from featstore.pipeline.evaluate import evaluate
from featstore.pipeline.export import export_maps
from featstore.pipeline.grid import grid
from featstore.pipeline.results import Evaluation
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import save_prompts
from featstore.store.store import Store, open_store
from matcher.configuration import LayerSpec
from matcher.errors import InputError
from matcher.maps import MapsInMemory
from matcher.sweep import evaluate as match_pairs
from tests.adapters.conftest import INPUTS, LAYERS, TIMESTEPS, TYPED, WEIGHTS, Saved, asked, channels_of, shaken
from tests.cli.conftest import Run
from tools.demo_model.small_model import TEXT_WIDTH

KINDS = ("residual", "aggregate", "weights")


def raw_maps(store: Store, features: Any) -> dict[tuple[str, str, int | None], torch.Tensor]:
    """Every map of an extractor, by image, layer and timestep, read as plain rows."""
    found = {}
    for layer, timestep in INPUTS:
        array = store.array(f"maps/{features['extractor']}/layer{layer}/t{timestep:04d}")
        assert array is not None
        for image in store.images.rows:
            found[image, layer, timestep] = torch.from_numpy(array.read((store.images.row(image),)))
    return found


def same(one: Evaluation, other: Evaluation) -> bool:
    return all(np.array_equal(one.matched.predictions[name], other.matched.predictions[name]) for name in one.pck)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_is_that_of_maps_that_were_all_adapted_beforehand(
    store: Path, zero_shot: Evaluation, saved: Saved, kind: str
) -> None:
    place = saved(kind)
    done = evaluate(asked(adapter=place))
    opened = open_store(store)
    maps, adapter = raw_maps(opened, zero_shot.features), load_adapter(place)
    adapted = {}
    for image in opened.images.rows:
        with torch.no_grad():
            made = adapter({key: maps[(image, *key)][None] for key in INPUTS})
        adapted |= {(image, *key): own[0].half() for key, own in made.items()}  # as a store keeps maps
    layers = adapter.spec.layers
    assert done.scoring.layers == layers
    how = layers, done.scoring.readouts, done.scoring.settings, torch.device("cpu")
    plain = match_pairs(zero_shot.matched.pairs, MapsInMemory(adapted), *how)
    for name, predicted in plain.predictions.items():
        np.testing.assert_array_equal(done.matched.predictions[name], predicted)
    assert not same(done, zero_shot)
    about = done.to_json()["features"]
    assert about["adapter"] == str(place)
    assert len(about["adapter_fingerprint"]) == 16
    assert (
        about["extractor"] == zero_shot.features["extractor"]
    )  # of the prompt and the ensemble that it was trained on


@pytest.mark.parametrize("kind", ["residual", "weights"])
def test_one_that_has_learned_nothing_is_zero_shot_to_the_last_bit(
    run: Run, photographs: Path, zero_shot: Evaluation, saved: Saved, kind: str
) -> None:
    place = saved(kind, learned=False)
    assert same(evaluate(asked(adapter=place)), zero_shot)
    pair = [str(photographs / "cat" / name) for name in ("0.png", "1.png")]
    words = ("match", *pair, "--points", "10,10;30,20;5,30", "--store", "dualsd.zarr", "--category", "cat")
    words += ("--ensemble", "1", "--readout", "softmax", "--device", "cpu")
    for more, name in ((("--adapter", str(place)), "adapted"), (TYPED, "plain")):
        result = run(*words, *more, "--json", f"{name}.json")
        assert result.exit_code == 0, result.output
    adapted, plain = (json.loads(Path(f"{name}.json").read_text()) for name in ("adapted", "plain"))
    assert adapted.pop("adapter") == str(place)
    adapted.pop("adapter_fingerprint")
    assert adapted == plain


def test_a_grid_of_one_that_has_learned_nothing_is_zero_shot_to_the_last_bit(store: Path, saved: Saved) -> None:
    """At timesteps that it was not trained at, cached and streamed."""
    common: dict[str, Any] = {"timesteps": (50, 100), "ensemble": 1, "device": "cpu", "weightings": ((1.0, 1.0),)}
    plain = grid(GridConfig(layers=LAYERS, **common))
    plain.forget()
    for stream in (False, True):
        done = grid(GridConfig(adapter=saved(learned=False), stream=stream, **common))
        done.forget()
        assert [entry.name for entry in done.scores.configurations] == [
            entry.name for entry in plain.scores.configurations
        ]
        assert {tuple(own) for own in done.scores.hits.reshape(len(done.scores.configurations), -1)} == {
            tuple(own) for own in plain.scores.hits.reshape(len(plain.scores.configurations), -1)
        }


def test_what_a_grid_finds_is_what_eval_measures(store: Path, zero_shot: Evaluation, saved: Saved) -> None:
    place = saved()
    done = grid(GridConfig(adapter=place, timesteps=(50, 100), ensemble=1, device="cpu", alphas=(0.1, 0.5)))
    done.forget()
    assert done.features["adapter"] == str(place)
    assert done.evaluation.adapter == place
    for index in (0, len(done.scores.configurations) - 1):
        entry = done.scores.configurations[index]
        own = {"layers": tuple(layer.layer for layer in entry.layers), "timesteps": entry.timesteps}
        again = evaluate(
            replace(
                done.evaluation, **own, weights=entry.weights, split=done.split, readouts=("nn",), alphas=(0.1, 0.5)
            )
        )
        expected = done.scores.table(index).values["nn"].image[0.5].overall
        assert again.pck["nn"].image[0.5].overall == expected


def test_adapted_maps_are_kept_as_an_extractor_of_their_own(run: Run, store: Path, saved: Saved) -> None:
    """An evaluation is then read from them, needs the maps that they were made of no longer, and is the same."""
    place = saved("aggregate")
    before = evaluate(asked(adapter=place))
    result = run("cache", "maps", "--adapter", str(place), "--ensemble", "1", "--device", "cpu", "--json", "m.json")
    assert result.exit_code == 0, result.output
    told = json.loads(Path("m.json").read_text())
    assert (told["images"], told["passes"], told["adapter_passes"]) == (6, 0, 6)
    again = dualsd.make_maps(MapsConfig(adapter=place, ensemble=1, device="cpu"))
    assert again.passes["adapter"] == 0
    (array,) = (own for path, own in open_store(store).arrays().items() if told["adapter_extractor"] in path)
    assert array.row_shape[0] == 16
    listed = run("cache", "info").output
    assert before.features["adapter_fingerprint"] in listed
    for command in (("cache", "verify"), ("cache", "verify", "--recompute", "2")):
        verified = run(*command)
        assert verified.exit_code == 0, verified.output
    pruned = run("cache", "prune", "--extractor", before.features["extractor"])
    assert pruned.exit_code == 0, pruned.output
    after = evaluate(asked(adapter=place))
    assert same(before, after)
    assert after.features == before.features
    assert not [path for path in open_store(store).array_paths() if before.features["extractor"] in path]


def test_adapted_maps_are_exported(run: Run, store: Path, photographs: Path, saved: Saved) -> None:
    place = saved("aggregate")
    done = evaluate(asked(adapter=place))
    out = Path("maps.safetensors")
    export_maps(ExportConfig(adapter=place, out=out, ensemble=1, device="cpu"))
    own = {"features": out, "dataset": "folder", "root": photographs, "size": 64, "layers": ("adapted",)}
    assert same(evaluate(asked(**own)), done)


def test_own_features(run: Run, photographs: Path, tmp_path: Path, store: Path) -> None:
    random = torch.Generator().manual_seed(4)
    maps = {
        f"{folder}/{index}|{layer}": torch.randn(6 if layer == "a" else 4, side, side, generator=random)
        for folder in ("cat", "dog")
        for index in range(3)
        for layer, side in (("a", 4), ("b", 8))
    }
    save_file(maps, tmp_path / "f.safetensors")
    inputs = (("a", None), ("b", None))
    adapter = shaken(
        make_adapter(AdapterSpec("residual", inputs, (6, 4), 8, (0.5, 2.0), about={"maps": {"features": "own"}}))
    )
    save_adapter(tmp_path / "a.safetensors", adapter)
    with torch.no_grad():
        made = {
            name: adapter({(own, None): maps[f"{name.partition('|')[0]}|{own}"][None] for own in "ab"}) for name in maps
        }
    save_file({name: own[name[-1], None][0].contiguous() for name, own in made.items()}, tmp_path / "g.safetensors")
    common = {"dataset": "folder", "root": photographs, "size": 64}
    done = evaluate(asked(features=tmp_path / "f.safetensors", adapter=tmp_path / "a.safetensors", **common))
    layers: dict[str, Any] = {"layers": ("a", "b"), "weights": (0.5, 2.0)}
    assert same(evaluate(asked(features=tmp_path / "g.safetensors", **layers, **common)), done)
    assert done.to_json()["features"]["adapter"] == str(tmp_path / "a.safetensors")
    refused = run("eval", "--adapter", str(tmp_path / "a.safetensors"))
    assert refused.exit_code == 2
    assert "was trained on features of one's own" in refused.output


def test_in_python(photographs: Path, small_model: Path, saved: Saved) -> None:
    """A featurizer with an adapter gives the maps that it makes, which weigh as it says."""
    pair = [photographs / "cat" / name for name in ("0.png", "1.png")]
    plain = dualsd.Featurizer(str(small_model), device="cpu", size=64)
    for kind in KINDS:
        place = saved(kind, name=kind)
        adapter = dualsd.load_adapter(place)
        featurizer = dualsd.Featurizer(str(small_model), device="cpu", size=64, adapter=place)
        found = [featurizer(photo, "a photo of a cat", ensemble=1) for photo in pair]
        for photo, own in zip(pair, found, strict=True):
            maps = plain(photo, "a photo of a cat", LAYERS, TIMESTEPS, ensemble=1).maps
            with torch.no_grad():
                expected = adapter({key: features[None] for key, features in maps.items()})
            assert [*own.maps] == [*expected]
            for key, features in own.maps.items():
                assert torch.equal(features, expected[key][0])
        points = [(10, 10), (30, 20)]
        weighed = dualsd.match(*found, points, weights=adapter.spec.weights)
        np.testing.assert_array_equal(dualsd.match(*found, points).points, weighed.points)


def test_a_run_says_its_adapter_and_can_be_run_again(run: Run, store: Path, saved: Saved) -> None:
    place = saved()
    first = run(
        "eval", "--adapter", str(place), "--device", "cpu", "--readouts", "nn", "--out", "one", "--json", "1.json"
    )
    assert first.exit_code == 0, first.output
    assert str(place) in first.output
    config = json.loads((Path("one") / "run.json").read_text())["config"]
    assert (config["adapter"], config["layers"], config["weights"]) == (str(place), None, None)
    again = run("eval", "--config", "one/run.json", "--out", "two", "--json", "2.json")
    assert again.exit_code == 0, again.output
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in "12")
    assert one == two
    assert one["layers"] == [2, 3]
    assert run("compare", "one", "two").exit_code == 0


REFUSALS = {
    "--layers 2": "aggregate.safetensors takes the layers 2,3, not 2",
    "--layers 3,2 --t 50,261": "takes the layers 2,3, not 3,2",
    "--t 50,261": "takes layer 2 at t = 261 and layer 3 at t = 50, not layer 2 at t = 50 and layer 3 at t = 261",
    "--t 50": "2 layer(s) but 1 timestep(s)",
    "--weights 0.8,0.6": "makes one map of all: leave --weights out",
    "--prompt a-dog": "was trained on maps of the prompt 'a photo of a {category}', not of 'a-dog'",
}


@pytest.mark.parametrize("typed", REFUSALS)
def test_other_maps_than_it_was_trained_on(run: Run, store: Path, saved: Saved, typed: str) -> None:
    place = saved("aggregate", name="aggregate")
    for command in (("eval",), ("cache", "maps"), ("match", "A", "B")):
        if command == ("cache", "maps") and "--weights" in typed:
            continue
        own = ("--points", "1,1", "--store", "dualsd.zarr", "--category", "cat") if command[0] == "match" else ()
        ends = [str(Path("photographs") / "cat" / f"{index}.png") for index in range(2)] if own else []
        words = (command[0], *ends) if own else command
        result = run(*words, *own, "--adapter", str(place), *shlex.split(typed))
        assert result.exit_code == 2, result.output
        assert REFUSALS[typed].replace("aggregate takes", "aggregate.safetensors takes") in " ".join(
            result.output.split()
        )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"maps": {"model": "other", "model_fingerprint": "beef"}}, "of the model other (fingerprint beef), not of"),
        ({"maps": {"prompt": "class prompts of gone", "prompts": {"kind": "class"}}}, "say where they are with"),
        ({"channels": (5, 5)}, "takes 5 channels of layer 2 at t = 261, not"),
        ({"inputs": (("2", 261), ("dino", None))}, "takes the layers 2,dino, not 2,3"),
    ],
)
def test_an_adapter_of_another_network(
    run: Run, store: Path, zero_shot: Evaluation, tmp_path: Path, more: Any, words: str
) -> None:
    channels = more.get("channels", tuple(channels_of(store, *key) for key in INPUTS))
    about = {"maps": dict(zero_shot.features) | more.get("maps", {})}
    spec = AdapterSpec("residual", more.get("inputs", INPUTS), channels, 8, WEIGHTS, about=about)
    save_adapter(tmp_path / "a.safetensors", make_adapter(spec))
    result = run("eval", "--adapter", "a.safetensors", *(("--layers", "2,3") if "inputs" in more else ()))
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())


def test_a_residual_one_is_used_at_other_timesteps_and_in_part(store: Path, saved: Saved) -> None:
    place = saved()
    own = evaluate(asked(adapter=place, layers=("3",), timesteps=(100,)))
    assert own.scoring.layers == (LayerSpec("3", 100, 1.0),)
    assert own.config is not None
    assert same(evaluate(own.config), own)


@pytest.mark.parametrize("kind", ["aggregate", "weights"])
def test_a_grid_tries_residual_ones_alone(run: Run, store: Path, saved: Saved, kind: str) -> None:
    result = run("grid", "--adapter", str(saved(kind)), "--t", "50,100")
    assert result.exit_code == 2
    assert "a grid tries residual ones" in " ".join(result.output.split())


def test_weights_alone_are_no_maps(run: Run, store: Path, saved: Saved) -> None:
    result = run("cache", "maps", "--adapter", str(saved("weights")), "--ensemble", "1", "--device", "cpu")
    assert result.exit_code == 2
    assert "holds weights alone, and changes no map" in " ".join(result.output.split())


def test_weights_may_name_a_layer_at_several_timesteps(store: Path, zero_shot: Evaluation, saved: Saved) -> None:
    """Each weighs what it says; one that weighs nothing is as if it were not there."""
    inputs = (("2", 261), ("3", 50), ("2", 261 + 1))
    about = {"maps": dict(zero_shot.features)}
    channels = tuple(channels_of(store, layer, TIMESTEPS[LAYERS.index(layer)]) for layer, _ in inputs)
    save_adapter(
        Path("w.safetensors"), make_adapter(AdapterSpec("weights", inputs, channels, 0, (0.8, 0.6, 0.0), about=about))
    )
    done = evaluate(asked(adapter=Path("w.safetensors")))
    assert len(done.scoring.layers) == 3
    np.testing.assert_array_equal(done.matched.predictions["nn"], zero_shot.matched.predictions["nn"])


def test_prompts_of_pairs(run: Run, store: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    from featstore.pipeline import opened

    chosen = opened.choose_for_store
    monkeypatch.setattr(
        opened, "choose_for_store", lambda *given: replace(chosen(*given), prompts=None, label="cpm prompts of r")
    )
    for command in (("eval",), ("grid", "--t", "50"), ("cache", "maps")):
        result = run(*command, "--adapter", str(saved()))
        assert result.exit_code == 2
        assert "cpm prompts of r belong to pairs, and an adapter is given maps of images" in " ".join(
            result.output.split()
        )


def test_learned_prompts_come_with_it(run: Run, store: Path, zero_shot: Evaluation, tmp_path: Path) -> None:
    """Those that it was trained with are found where they were; others are refused, and so are these once changed."""
    header = open_store(store).header
    random = torch.Generator().manual_seed(6)
    model = NetworkName(header.model_id, header.model_fingerprint)

    def keep(place: str) -> None:
        tensors = {layer: {"cat": torch.randn(77, TEXT_WIDTH, generator=random)} for layer in (2, 3)}
        save_prompts(LearnedPrompts(Mode.CLASS, (2, 3), TIMESTEPS, 75, model, None, {}, tensors), Path(place))

    keep("p.safetensors")
    keep("q.safetensors")
    with_prompts = asked(prompts=Path("p.safetensors"), fallback="text", timesteps=TIMESTEPS, ensemble=1)
    plain = evaluate(with_prompts)
    channels = tuple(channels_of(store, *key) for key in INPUTS)
    spec = AdapterSpec("residual", INPUTS, channels, 8, WEIGHTS, about={"maps": dict(plain.features)})
    save_adapter(Path("a.safetensors"), make_adapter(spec))
    done = evaluate(asked(adapter=Path("a.safetensors")))
    assert same(done, plain)
    assert not same(done, zero_shot)
    assert done.config is not None
    assert (done.config.prompts, done.config.prompt) == (Path("p.safetensors"), None)
    for words in (("--prompts", "q.safetensors", "--fallback", "text"), ("--prompt", "a photo")):
        refused = run("eval", "--adapter", "a.safetensors", *words)
        assert refused.exit_code == 2
        assert "trained on maps of the prompt 'class prompts of p.safetensors, else text', not of" in refused.output
    keep("p.safetensors")
    assert "which has changed: leave --prompt" in run("eval", "--adapter", "a.safetensors").output


def test_maps_that_are_not_finite_are_no_score(store: Path, saved: Saved, zero_shot: Evaluation) -> None:
    adapter = load_adapter(saved("aggregate"))
    with torch.no_grad():
        adapter.get_parameter("bottleneck_layers.0.0.conv1.weight").fill_(torch.inf)
    maps = raw_maps(open_store(store), zero_shot.features)
    source = AdaptedMaps(
        MapsInMemory(maps), parts_of(adapter, adapter.outputs, torch.device("cpu")), torch.device("cpu")
    )
    with pytest.raises(InputError, match="is not finite: its adapter cannot be used"):
        source.load("cat/0", LayerSpec("adapted", None))
