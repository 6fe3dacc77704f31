"""`dualsd view`: what the workbench's server answers, and whom."""

import base64
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from cli.main import app
from cli.view.answers import defaults_of
from cli.view.command import MISSING
from cli.view.guard import LARGEST_BODY, LARGEST_UPLOAD
from cli.view.server import Workers, application
from cli.view.session import Session
from featstore.adapters.applied import fingerprint
from featstore.adapters.base import Adapter, AdapterSpec, make_adapter, save_adapter
from featstore.backbones.registry import Profile
from featstore.config import ViewConfig
from featstore.datasets.marking import Annotations, check_name
from featstore.pipeline.grid_results import KeptGrid
from featstore.pipeline.live import ByUse
from featstore.pipeline.match import ImageMaps, match
from featstore.pipeline.results import EvaluationRun
from featstore.pipeline.sources import StoredMaps
from featstore.store.store import open_store
from matcher.configuration import PARAMETERS, Geometry, LayerSpec, MatchSettings
from matcher.errors import InputError
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate
from tests.adapters.conftest import shaken
from tests.cli.conftest import Run
from tests.conftest import write_photographs

TOKEN, PORT = "the-token", 8765
BATCH = ("--batch-size", "4")


def ran(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


@dataclass(frozen=True)
class Bench:
    """A workbench that is asked without a socket. folder: where the store, the photographs and the runs lie."""

    folder: Path
    client: TestClient

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers={"X-Dualsd-Token": TOKEN, **headers})

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        content = {"content": more.pop("content")} if "content" in more else {"json": body}
        return self.client.post(path, headers={"X-Dualsd-Token": TOKEN, **more}, **content)

    def ok(self, path: str, body: Any = None) -> Any:
        answer = self.get(path) if body is None else self.post(path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, status: int, path: str, body: Any = None) -> str:
        answer = self.get(path) if body is None else self.post(path, body)
        assert answer.status_code == status, answer.text
        sentence: str = answer.json()["error"]
        assert sentence.endswith((".", ".)")), sentence
        assert "Traceback" not in answer.text
        return sentence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A store of six photographs with maps, an evaluation and a grid."""
    folder = tmp_path_factory.mktemp("view")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        root = str(write_photographs(folder / "photographs"))
        build = ("cache", "build", "--dataset", "folder", "--root", root, "--model", str(small_model))
        ran(*build, "--size", "64", "--t", "50,261", *BATCH)
        ran("cache", "maps", "--layers", "2", "--t", "50", "--ensemble", "1", *BATCH)
        ran("cache", "maps", "--layers", "2", "--t", "50", "--prompt", "a {category}", "--ensemble", "1", *BATCH)
        asked = ("--layers", "2,3", "--weights", "0.8,0.6", "--upsample", "2x", "--geometry", "half-pixel")
        ran("eval", *asked, "--t", "261,50", "--ensemble", "1", "--beta", "0.05", *BATCH)
        ran(
            "grid", "--layers", "2,3", "--t", "50,261", "--weights", "1:1", "--ensemble", "1", "--split", "test", *BATCH
        )
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, to be changed."""
    shutil.copytree(made, tmp_path / "own", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    yield from opened(folder)


def opened(folder: Path) -> Iterator[Bench]:
    session, workers = Session(ViewConfig(root=folder / "photographs")), Workers()
    guarded = application(session, workers, TOKEN, "127.0.0.1", PORT)
    client = TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)
    with client:
        yield Bench(folder, client)
    workers.stop()


def rows_of(state: Any) -> dict[str, int]:
    return {image["id"]: image["row"] for image in state["images"]}


def text_layers(state: Any) -> list[dict[str, Any]]:
    """The layers of the usual prompt, each with one of its timesteps."""
    own = next(one for one in state["extractors"] if one["label"] == "a photo of a {category}")
    return [
        {"layer": layer, "t": step, "extractor": own["key"]} for layer, steps in own["layers"].items() for step in steps
    ]


def random_setting(random: np.random.Generator, layers: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = [layers[at] for at in random.permutation(len(layers))[: random.integers(1, 4)]]
    setting: dict[str, Any] = {
        "layers": chosen,
        "weights": random.uniform(0.1, 1, len(chosen)).round(3).tolist(),
        "readout": str(random.choice(["nn", "bilinear", "softmax", "kernelsoftmax", "window"])),
        "geometry": str(random.choice(["corners", "half-pixel", "floor"])),
        "upsample": int(random.integers(1, 3)),
        "upsample_align": random.choice([None, "corners", "half-pixel"]),
    }
    said = {"beta": round(float(random.uniform(0.02, 0.1)), 3), "sigma": float(random.uniform(3, 9)), "window": 2}
    return {**setting, **{name: own for name, own in said.items() if random.random() < 0.5}}


def parameters_of(setting: dict[str, Any]) -> dict[str, Any]:
    """What a setting says of its readout, by the matcher's names."""
    own = PARAMETERS.get(setting["readout"], {})
    return {field: setting[name] for name, field in own.items() if name in setting}


def test_fifty_points_and_settings_are_those_of_match_and_eval(bench: Bench) -> None:
    state = bench.ok("/api/state")
    layers, rows = text_layers(state), rows_of(state)
    assert len(layers) >= 4
    store = open_store("dualsd.zarr")
    (extractor,) = (own for own in store.extractors() if own.key == layers[0]["extractor"])
    maps, random = StoredMaps(store, extractor), np.random.default_rng(7)
    names = [image for image in rows if image.startswith("cat")]
    for _ in range(50):
        setting = random_setting(random, layers)
        source, target = random.choice(names, 2, replace=False).tolist()
        (width, height), other = store.images.size(source), store.images.size(target)
        point = (random.uniform(0, [width - 1, height - 1])).round(2)
        asked = {"source": rows[source], "target": rows[target], "points": [point.tolist()], "setting": setting}
        found = bench.ok("/api/match", asked)
        keys = [(own["layer"], own["t"]) for own in setting["layers"]]
        ends = [
            ImageMaps({key: maps.load(image, LayerSpec(*key)).float() for key in keys}, store.images.size(image), 64)
            for image in (source, target)
        ]
        how = setting["weights"], setting["readout"], setting["geometry"], setting["upsample"]
        said = {"upsample_align": setting["upsample_align"], "parameters": parameters_of(setting)}
        expected = match(ends[0], ends[1], [point], *how, **said)
        assert np.allclose(found["points"], expected.points, atol=2e-2), setting
        assert np.allclose(found["scores"], expected.scores, atol=1e-5), setting
        assert np.allclose(found["margins"], expected.margins, atol=1e-5), setting
        assert found["mutual"] == expected.mutual.tolist(), setting
        align = Geometry(setting["upsample_align"] or setting["geometry"])
        settings = MatchSettings(
            64, Geometry(setting["geometry"]), setting["upsample"], align, **parameters_of(setting)
        )
        specs = [LayerSpec(*key, weight) for key, weight in zip(keys, setting["weights"], strict=True)]
        framed = np.clip(point * 64 / [width, height], 1e-4, 63 - 1e-4).astype(np.float32)[None]
        pair = MatchingPair(source, target, "cat", framed, framed, 64.0)
        swept = evaluate([pair], maps, specs, [setting["readout"]], settings, torch.device("cpu"))
        pixels = swept.predictions[setting["readout"]] * np.array(other) / 64
        assert np.allclose(found["points"], pixels, atol=1e-2), setting


def test_a_kept_evaluation_is_seen_as_it_was_measured(bench: Bench) -> None:
    state = bench.ok("/api/state")
    (listed,) = (run for run in state["runs"] if run["kind"] == "eval")
    shown = bench.ok(f"/api/run?path={listed['path'].replace('+', '%2B')}")
    run = EvaluationRun.open(Path(listed["path"]))
    pairs = run.matched.pairs
    assert shown["total"] == len(shown["pairs"]) == len(pairs)
    assert [own["pck"] for own in shown["pairs"]] == sorted(own["pck"] for own in shown["pairs"])
    table = run.scored(["nn"], [shown["alpha"]]).pck["nn"].image[shown["alpha"]]
    assert np.mean([own["pck"] for own in shown["pairs"]]) == pytest.approx(table.overall)
    places = {pairs.named(row)[:2]: row for row in range(len(pairs))}
    for readout in run.scoring.readouts:
        setting = bench.ok(f"/api/run?path={listed['path'].replace('+', '%2B')}&readout={readout}")["setting"]
        for own in shown["pairs"]:
            assert sum(own["misses"].values()) == own["points"]
            one = run.matched[places[tuple(own["ids"])]]
            frame = one.pair.in_original_frame()
            asked = {"source": own["source"], "target": own["target"], "points": frame.source_points.tolist()}
            found = bench.ok("/api/match", {**asked, "setting": setting, "keypoints": True})
            predicted = one.predictions[readout] * np.array(frame.target_size) / 64
            assert np.allclose(found["points"], predicted, atol=1e-2), readout
            assert np.allclose(found["truth"], frame.target_points, atol=1e-3)
            assert found["names"] == [*(one.pair.names or ())]
            reach = 0.1 * one.pair.theta / 64 * np.array(frame.target_size)
            assert np.allclose(found["alpha_radius"], reach, rtol=1e-5)


def test_worst_pairs_by_category_and_kind(bench: Bench) -> None:
    (listed,) = (run for run in bench.ok("/api/state")["runs"] if run["kind"] == "eval")
    path = f"/api/run?path={listed['path'].replace('+', '%2B')}"
    every = bench.ok(path)["pairs"]
    dogs = bench.ok(f"{path}&category=dog")
    assert {own["category"] for own in dogs["pairs"]} == {"dog"}
    assert dogs["total"] == sum(own["category"] == "dog" for own in every)
    kind = next(kind for kind in ("elsewhere", "another", "near") if any(own["misses"][kind] for own in every))
    some = bench.ok(f"{path}&kind={kind}")["pairs"]
    assert len(some) == sum(own["misses"][kind] > 0 for own in every)
    shares = [own["misses"][kind] / own["points"] for own in some]
    assert shares == sorted(shares, reverse=True)
    assert bench.ok(f"{path}&start=3")["pairs"] == every[3:]
    assert "tell points" in bench.refused(409, f"{path}&kind=else")
    assert "no readout" in bench.refused(409, f"{path}&readout=best")
    assert "number" in bench.refused(400, f"{path}&alpha=x")
    assert bench.ok(f"{path}&category=none")["pairs"] == []


def test_a_grid_cell_wins_and_loses(bench: Bench) -> None:
    (listed,) = (run for run in bench.ok("/api/state")["runs"] if run["kind"] == "grid")
    shown = bench.ok(f"/api/run?path={listed['path']}")
    grid = KeptGrid.open(Path(listed["path"]))
    assert len(shown["cells"]) == 8  # two layers at two timesteps each, alone and together
    scores = [own["pck"] for own in shown["cells"]]
    assert scores[shown["best"]] == max(scores)
    cell = next(number for number in range(8) if scores[number] < max(scores))
    found = bench.ok(f"/api/run?path={listed['path']}&cell={cell}")
    hits = grid.hits[[cell, shown["best"]], 0, grid.about.alphas.index(shown["alpha"])] / grid.counts
    assert len(found["wins"]) == (hits[0] > hits[1]).sum()
    assert len(found["loses"]) == (hits[0] < hits[1]).sum() > 0
    leads = [own["pck"] - own["best_pck"] for own in found["loses"]]
    assert leads == sorted(leads)
    # and that is what is seen
    for one, setting in (("pck", found["setting"]), ("best_pck", found["best_setting"])):
        own = found["loses"][0]
        points = bench.ok(f"/api/keypoints?source={own['source']}&target={own['target']}")
        asked = {"source": own["source"], "target": own["target"], "points": [point["source"] for point in points]}
        seen = bench.ok("/api/match", {**asked, "setting": setting})["points"]
        away = (np.array(seen) - [point["target"] for point in points]) / [point["reach"] for point in points]
        assert (np.linalg.norm(away, axis=1) <= shown["alpha"]).mean() == pytest.approx(own[one])
    assert "no cell" in bench.refused(409, f"/api/run?path={listed['path']}&cell=8")


def test_the_command_finds_the_same(bench: Bench, tmp_path: Path) -> None:
    state = bench.ok("/api/state")
    rows, layers = rows_of(state), {own["layer"]: own for own in text_layers(state)}
    setting = {"layers": [layers["2"], layers["3"]], "weights": [0.8, 0.6], "readout": "window", "window": 3}
    asked = {"source": rows["cat/0"], "target": rows["cat/2"], "points": [[10.5, 20], [41, 7.25]], "setting": setting}
    typed = bench.ok("/api/command", asked)
    assert typed["note"] is None
    words = shlex.split(typed["command"])
    assert words[:2] == ["dualsd", "match"]
    ran(*words[1:], "--json", "found.json")
    found, seen = json.loads(Path("found.json").read_text()), bench.ok("/api/match", asked)
    assert np.allclose(found["target_points"], seen["points"], atol=0.2)
    assert np.allclose(found["scores"], seen["scores"], atol=2e-3)
    assert found["mutual"] == seen["mutual"]
    other = next(own["key"] for own in state["extractors"] if own["label"] == "a {category}")
    mixed = {**setting, "layers": [layers["3"], {**layers["2"], "extractor": other, "t": 50}]}
    assert "one prompt for all" in bench.refused(400, "/api/command", {**asked, "setting": mixed})
    assert len(bench.ok("/api/match", {**asked, "setting": mixed})["points"]) == 2  # which the workbench does


ADAPTED_OF = (("2", 261), ("3", 50))
"""What adapters here take."""


def an_adapter(bench: Bench, kind: Any, place: str) -> Adapter:
    """One with random parameters, for the maps that the evaluation was made of, kept among the runs; and its maps."""
    (listed,) = (run for run in bench.ok("/api/state")["runs"] if run["kind"] == "eval")
    features = dict(EvaluationRun.open(Path(listed["path"])).features)
    arrays = open_store("dualsd.zarr").arrays()
    channels = tuple(
        arrays[f"maps/{features['extractor']}/layer{layer}/t{step:04d}"].row_shape[0] for layer, step in ADAPTED_OF
    )
    more = {"weights": (1.0,), "projection": 16, "groups": 4} if kind == "aggregate" else {"weights": (0.8, 0.6)}
    adapter = shaken(make_adapter(AdapterSpec(kind, ADAPTED_OF, channels, 8, about={"maps": features}, **more)))
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    save_adapter(Path(place), adapter)
    ran("cache", "maps", "--adapter", place, "--ensemble", "1", *BATCH)
    return adapter


def matched_by_hand(adapter: Adapter, asked: Any) -> Any:
    """What an adapter makes of two images' maps, matched without the workbench."""
    store = open_store("dualsd.zarr")
    (extractor,) = (own for own in store.extractors() if own.prompt.get("template") == "a photo of a {category}")
    maps, ends = StoredMaps(store, extractor), []
    for row in (asked["source"], asked["target"]):
        image = store.images.ids[row]
        with torch.no_grad():
            made = adapter({key: maps.load(image, LayerSpec(*key)).float()[None] for key in ADAPTED_OF})
        features = {key: own[0].half().float() for key, own in made.items()}
        ends.append(ImageMaps(features, store.images.size(image), 64))
    return match(ends[0], ends[1], asked["points"], asked["setting"]["weights"])


@pytest.mark.parametrize(
    ("kind", "place"), [("residual", "runs/own/adapter.safetensors"), ("aggregate", "runs/own.safetensors")]
)
def test_adapted_maps(bench: Bench, kind: str, place: str) -> None:
    adapter = an_adapter(bench, kind, place)
    named = place.removesuffix("/adapter.safetensors")
    state = bench.ok("/api/state")
    (own,) = (one for one in state["extractors"] if one["kind"] == "adapted")
    assert own["label"] == f"adapter of {named}"
    assert own["layers"] == {layer: [step] for layer, step in adapter.outputs}
    layers = [{"layer": layer, "t": step, "extractor": own["key"]} for layer, step in adapter.outputs]
    setting = {"layers": layers, "weights": [*adapter.spec.weights]}
    rows = rows_of(state)
    asked = {"source": rows["cat/0"], "target": rows["cat/1"], "points": [[10, 12], [50, 30]], "setting": setting}
    found, expected = bench.ok("/api/match", asked), matched_by_hand(adapter, asked)
    assert np.allclose(found["points"], expected.points, atol=2e-2)
    assert np.allclose(found["scores"], expected.scores, atol=1e-5)
    assert found["mutual"] == expected.mutual.tolist()
    # the command
    words = shlex.split(bench.ok("/api/command", asked)["command"])
    assert words[words.index("--adapter") + 1] == named
    assert "--prompt" not in words  # which the adapter brings
    ran(*words[1:], "--json", "found.json")
    typed = json.loads(Path("found.json").read_text())
    assert np.allclose(typed["target_points"], found["points"], atol=0.2)
    assert np.allclose(typed["scores"], found["scores"], atol=5e-3)
    # a picture that is dropped
    data = (bench.folder / "photographs/cat/1.png").read_bytes()
    dropped = bench.post("/api/upload?category=cat", content=data).json()["row"]
    again = bench.ok("/api/match", {**asked, "target": dropped})
    assert np.allclose(again["points"], found["points"], atol=0.2)
    assert np.allclose(again["scores"], found["scores"], atol=5e-3)
    # an extractor's layers are no others'
    text = text_layers(state)[0]
    for wrong in ({**text, "layer": "adapted", "t": None}, {**layers[0], "layer": "adapted/.."}):
        bench.refused(409, "/api/match", {**asked, "setting": {"layers": [wrong], "weights": [1]}})
    mixed = {"layers": [layers[0], text], "weights": [1, 1]}
    assert "all layers or none" in bench.refused(400, "/api/command", {**asked, "setting": mixed})
    # without the adapter its maps are there all the same
    Path(place).unlink()
    (own,) = (one for one in bench.ok("/api/state")["extractors"] if one["kind"] == "adapted")
    assert own["label"] == f"adapter {fingerprint(adapter)[:6]}"
    assert bench.ok("/api/match", asked)["points"] == found["points"]
    assert "name it with --runs" in bench.refused(409, "/api/command", asked)
    dropped = bench.post("/api/upload?category=cat", content=data).json()["row"]
    assert "name it with --runs" in bench.refused(409, "/api/match", {**asked, "target": dropped})


def test_an_evaluation_with_an_adapter_is_seen_where_its_maps_are_kept(bench: Bench) -> None:
    an_adapter(bench, "aggregate", "runs/own.safetensors")
    ran("eval", "--adapter", "runs/own.safetensors", "--ensemble", "1", "--out", "runs/adapted", *BATCH)
    state = bench.ok("/api/state")
    (own,) = (one for one in state["extractors"] if one["kind"] == "adapted")
    shown = bench.ok("/api/run?path=runs/adapted&readout=nn")
    assert shown["setting"]["layers"] == [{"layer": "adapted", "t": None, "extractor": own["key"]}]
    run = EvaluationRun.open(Path("runs/adapted"))
    one, pair = run.matched[0], shown["pairs"]
    frame, ends = one.pair.in_original_frame(), rows_of(state)
    asked = {"source": ends[one.pair.source], "target": ends[one.pair.target], "points": frame.source_points.tolist()}
    found = bench.ok("/api/match", {**asked, "setting": shown["setting"]})
    assert np.allclose(found["points"], one.predictions["nn"] * np.array(frame.target_size) / 64, atol=1e-2)
    assert len(pair) == len(run.matched.pairs)
    # no command is known once the maps are gone that these were adapted from
    ran("cache", "prune", "--extractor", run.features["extractor"])
    bench.ok("/api/state")
    assert bench.ok("/api/match", {**asked, "setting": shown["setting"]})["points"] == found["points"]
    assert "adapted from" in bench.refused(409, "/api/command", {**asked, "setting": shown["setting"]})
    ran("cache", "prune", "--extractor", own["key"])
    bench.ok("/api/state")
    assert bench.ok("/api/run?path=runs/adapted")["setting"] is None


def test_an_evaluation_by_an_adapters_weights_is_one_of_the_maps_as_they_are(bench: Bench) -> None:
    (listed,) = (run for run in bench.ok("/api/state")["runs"] if run["kind"] == "eval")
    features = dict(EvaluationRun.open(Path(listed["path"])).features)
    spec = AdapterSpec("weights", ADAPTED_OF, (8, 8), 0, (0.3, 0.7), about={"maps": features})
    save_adapter(Path("weights.safetensors"), make_adapter(spec))
    ran("eval", "--adapter", "weights.safetensors", "--ensemble", "1", "--out", "runs/weights", *BATCH)
    bench.ok("/api/state")
    setting = bench.ok("/api/run?path=runs/weights")["setting"]
    assert {own["extractor"] for own in setting["layers"]} == {features["extractor"]}
    assert setting["weights"] == [0.3, 0.7]


def test_a_run_that_learned_an_adapter(bench: Bench) -> None:
    common = (
        "--layers",
        "2,3",
        "--t",
        "261,50",
        "--ensemble",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--hold-out",
        "0",
    )
    ran("adapt", *common, "--name", "r")
    (listed,) = (run for run in bench.ok("/api/state")["runs"] if run["kind"] == "adapt")
    assert (listed["path"], listed["label"]) == ("runs/r", "residual adapter, layers 2+3")
    assert bench.ok("/api/run?path=runs/r")["extractors"] == []
    ran("cache", "maps", "--adapter", "runs/r", "--ensemble", "1", *BATCH)
    (own,) = (one for one in bench.ok("/api/state")["extractors"] if one["kind"] == "adapted")
    assert own["label"] == "adapter of runs/r"
    assert bench.ok("/api/run?path=runs/r")["extractors"] == [own["key"]]


def test_it_begins_where_a_models_settings_are_not_known(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = Session(ViewConfig(root=bench.folder / "photographs")).maps
    unknown = replace(maps.store.header, model_id="somebody/other", model_structure="of another structure")
    begun = defaults_of(maps.extractors(), unknown)
    assert begun is not None
    assert {own.layer for own in begun.layers} <= {"2", "3"}
    # of some models the layers alone
    monkeypatch.setattr("cli.view.answers.profile_of", lambda *_: Profile(layers=("3", "2")))
    begun = defaults_of(maps.extractors(), unknown)
    assert begun is not None
    assert [own.layer for own in begun.layers] == ["3", "2"]
    assert begun.weights == (1.0, 1.0)


def test_a_heat_map_covers_the_target(bench: Bench) -> None:
    state = bench.ok("/api/state")
    rows, layer = rows_of(state), text_layers(state)[0]
    asked = {"source": rows["cat/0"], "target": rows["cat/0"], "points": [[0, 0], [59, 39]], "heat": True}
    answer = bench.ok("/api/match", {**asked, "setting": {"layers": [layer], "weights": [1], "geometry": "half-pixel"}})
    heat = answer["heat"]
    assert heat["box"] == pytest.approx([-0.5 * 60 / 64, -0.5 * 40 / 64, 60, 40], abs=1e-4)
    first, last = (np.frombuffer(base64.b64decode(own), np.uint8) for own in heat["data"])
    assert len(first) == heat["width"] * heat["height"]
    assert (first.argmax(), last.argmax()) == (0, len(last) - 1)
    assert (first.min(), first.max()) == (0, 255)
    assert heat["high"] == pytest.approx(answer["scores"], abs=1e-3)


def test_pictures(bench: Bench) -> None:
    rows = rows_of(bench.ok("/api/state"))
    answer = bench.client.get(f"/api/image/{rows['dog/1']}?token={TOKEN}")
    assert answer.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert np.array_equal(shown, np.asarray(Image.open(bench.folder / "photographs/dog/1.png")))
    small = bench.client.get(f"/api/image/{rows['dog/1']}?token={TOKEN}&side=20")
    assert max(Image.open(io.BytesIO(small.content)).size) == 20
    Image.new("RGB", (70, 46)).save(bench.folder / "photographs/dog/1.png")
    assert "has changed" in bench.refused(409, f"/api/image/{rows['dog/1']}")
    (bench.folder / "photographs/dog/2.png").unlink()
    bench.refused(409, f"/api/image/{rows['dog/2']}")


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"points": []},
        {"points": [[1, 2]] * 300},
        {"points": [[1e5, 2]]},
        {"points": [[1, 2, 3]]},
        {"points": [["1", 2]]},
        {"setting": {"layers": [], "weights": []}},
        {"weights": [1, 2]},
        {"weights": [-1]},
        {"beta": 0, "readout": "softmax"},
        {"readout": "pixel"},
        {"geometry": "round"},
        {"upsample": 99},
        {"upsample": 0},
        {"t": "50"},
        {"layer": "../../x"},
        {"layer": "9"},
        {"more": 1},
    ],
    ids=str,
)
def test_what_cannot_be_matched_is_refused(bench: Bench, body: Any) -> None:
    state = bench.ok("/api/state")
    layer = text_layers(state)[0]
    if isinstance(body, dict) and body:
        own = {name: body[name] for name in ("t", "layer") if name in body}
        setting = {"layers": [{**layer, **own}], "weights": [1.0]}
        setting |= {name: one for name, one in body.items() if name not in ("t", "layer", "points", "setting")}
        asked = {"source": 0, "target": 1, "points": [[1, 2]], "setting": setting}
        body = {**asked, **{name: body[name] for name in ("points", "setting") if name in body}}
    answer = bench.post("/api/match", body)
    assert answer.status_code in (400, 409), answer.text
    assert answer.json()["error"]
    assert bench.post("/api/match", content=b"{").status_code == 400
    assert bench.post("/api/match", content=b"[" * 100_000).status_code == 400


def test_maps_that_are_not_there(bench: Bench) -> None:
    state = bench.ok("/api/state")
    layer = text_layers(state)[0]
    asked = {"source": 0, "target": 1, "points": [[1, 2]]}
    absent = {"layers": [{**layer, "t": 999}], "weights": [1]}
    assert "cache maps --layers 2 --t 999" in bench.refused(409, "/api/match", {**asked, "setting": absent})
    unknown = {"layers": [{**layer, "extractor": "../.."}], "weights": [1]}
    assert "no maps of the extractor" in bench.refused(409, "/api/match", {**asked, "setting": unknown})
    here = {"layers": [layer], "weights": [1]}
    bench.refused(404, "/api/match", {**asked, "target": 6, "setting": here})
    bench.refused(404, "/api/match", {**asked, "target": -1, "setting": here})
    bench.refused(404, "/api/match", {**asked, "target": "upload-1", "setting": here})


def test_only_who_has_the_token_is_answered(bench: Bench) -> None:
    for path in ("/", "/api/state", "/api/image/0", "/api/annotations", "/api/nothing"):
        for headers in ({}, {"X-Dualsd-Token": ""}, {"X-Dualsd-Token": "the-toke"}, {"X-Dualsd-Token": f"{TOKEN}x"}):
            assert bench.client.get(path, headers=headers).status_code == 403, (path, headers)
        assert bench.client.get(f"{path}?token=x", headers={"X-Dualsd-Token": TOKEN}).status_code == 403
        assert bench.client.get(f"{path}?token={TOKEN}&token={TOKEN}").status_code == 403
    assert bench.client.get(f"/api/state?token={TOKEN}").status_code == 200
    # who can make a browser follow a link cannot change anything
    assert bench.client.post(f"/api/annotations?token={TOKEN}", json={}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": f"evil.example:{PORT}"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1"},
        {"Host": f"127.0.0.1.evil.example:{PORT}"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"https://127.0.0.1:{PORT}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
    ids=str,
)
def test_other_sites_are_refused(bench: Bench, headers: dict[str, str]) -> None:
    for path in ("/api/state", "/page/index.html"):
        answer = bench.get(path, **headers)
        assert answer.status_code == 403, answer.text
    assert bench.post("/api/annotations", {"image": 0, "name": "a", "x": 1.0, "y": 1.0}, **headers).status_code == 403


def test_our_own_page_is_answered(bench: Bench) -> None:
    for host in (f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"[::1]:{PORT}"):
        for site in ("same-origin", "none"):
            answer = bench.get("/api/state", **{"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": site})
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("name", ["../guard.py", "..%2fguard.py", "%2e%2e/guard.py", "", "../../../../etc/passwd"])
def test_only_the_pages_files_are_sent(bench: Bench, name: str) -> None:
    assert bench.get(f"/page/{name}").status_code == 404
    assert bench.get(f"/api/image/{name}").status_code == 404
    assert bench.get(f"/api/run?path={name}").status_code == 404
    assert bench.get("/api/run?path=photographs").status_code == 404


def test_a_body_that_is_too_large_is_refused_unread(bench: Bench) -> None:
    for path, limit in (("/api/match", LARGEST_BODY), ("/api/upload", LARGEST_UPLOAD)):
        assert bench.post(path, content=b"", **{"Content-Length": str(limit + 1)}).status_code == 413
        assert bench.post(path, content=b"x", **{"Content-Length": "-1"}).status_code == 413
    # of one that does not say how large it is no more is read
    parts = (b"x" * (1 << 20) for _ in range(64))
    assert bench.post("/api/upload", content=parts).status_code == 413


def test_a_picture_that_is_dropped_is_matched(bench: Bench) -> None:
    state = bench.ok("/api/state")
    assert state["can_upload"]
    rows, layer = rows_of(state), text_layers(state)[0]
    data = (bench.folder / "photographs/cat/1.png").read_bytes()
    answer = bench.post("/api/upload?category=cat", content=data)
    assert answer.status_code == 200, answer.text
    own = answer.json()
    assert (own["width"], own["height"]) == (70, 46)
    asked = {"source": rows["cat/0"], "points": [[10, 12], [50, 30]], "setting": {"layers": [layer], "weights": [1]}}
    dropped, stored = (bench.ok("/api/match", {**asked, "target": row}) for row in (own["row"], rows["cat/1"]))
    assert np.allclose(dropped["points"], stored["points"], atol=0.2)  # it is the same picture, of the same noise
    assert np.allclose(dropped["scores"], stored["scores"], atol=2e-3)
    assert bench.client.get(f"/api/image/{own['row']}?token={TOKEN}").status_code == 200
    assert "no file" in bench.refused(400, "/api/command", {**asked, "target": own["row"]})
    for wrong in (b"", b"no picture", data[:100]):
        assert bench.post("/api/upload", content=wrong).status_code == 400
    assert not list(bench.folder.rglob("*upload*"))


def test_no_picture_is_taken_where_the_model_is_not_at_hand(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.pipeline.live_uploads.is_at_hand", lambda *_: False)
    assert not bench.ok("/api/state")["can_upload"]
    answer = bench.post("/api/upload", content=b"x")
    assert answer.status_code == 409
    assert "not on this machine" in answer.json()["error"]


def test_a_store_that_is_being_built(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made / "photographs", "photographs")
    shutil.copytree(made / "dualsd.zarr", "dualsd.zarr")
    whole = tmp_path / "whole"
    (tmp_path / "dualsd.zarr/maps").rename(whole)
    for bench in opened(tmp_path):
        state = bench.ok("/api/state")
        assert (state["extractors"], state["defaults"]) == ([], None)
        assert [image["maps"] for image in state["images"]] == [0] * 6
        shutil.copytree(whole, tmp_path / "dualsd.zarr/maps")
        layer = text_layers(bench.ok("/api/state"))[0]
        (gone,) = tmp_path.glob(f"dualsd.zarr/maps/{layer['extractor']}/layer2/t{layer['t']:04d}/c.3.*")
        gone.unlink()
        state = bench.ok("/api/state")
        assert state["images"][3]["maps"] == state["images"][4]["maps"] - 1
        asked = {"source": 4, "points": [[1, 2]], "setting": {"layers": [layer], "weights": [1]}}
        assert "has no map of layer 2" in bench.refused(409, "/api/match", {**asked, "target": 3})
        bench.ok("/api/match", {**asked, "target": 5})
        shutil.rmtree(tmp_path / "dualsd.zarr")
        bench.ok("/api/match", {**asked, "target": 5})  # its maps are in memory
        bench.refused(409, "/api/match", {**asked, "target": 0})
        assert bench.get("/api/state").status_code in (200, 409)


def test_runs_that_are_deleted_or_damaged_under_the_page(bench: Bench) -> None:
    runs = {run["kind"]: run["path"] for run in bench.ok("/api/state")["runs"]}
    path = f"/api/run?path={runs['eval'].replace('+', '%2B')}"
    bench.ok(path)
    (Path(runs["eval"]) / "predictions.safetensors").write_bytes(b"none")
    os.utime(Path(runs["eval"]) / "run.json", (1, 1))
    bench.refused(409, path)
    (Path(runs["grid"]) / "grid.safetensors").write_bytes(b"none")
    bench.refused(409, f"/api/run?path={runs['grid']}")
    for own in runs.values():
        shutil.rmtree(own)
    assert "no longer there" in bench.refused(404, path)
    assert bench.ok("/api/state")["runs"] == []
    assert "load the page again" in bench.refused(404, path)


def lines_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_keypoints_are_saved_whole_with_a_backup(bench: Bench) -> None:
    file = bench.folder / "photographs/keypoints.csv"
    before, rows = file.read_bytes(), rows_of(bench.ok("/api/state"))
    assert bench.ok("/api/annotations")["names"] == ["k0", "k1", "k2", "k3"]
    answer = bench.ok("/api/annotations", {"image": rows["cat/1"], "name": "k2", "x": 3.5, "y": 4.25})
    assert answer["images"][str(rows["cat/1"])]["k2"] == [3.5, 4.25]
    bench.ok("/api/annotations", {"image": rows["cat/1"], "name": "left ear", "x": 1.0, "y": 2.0})
    bench.ok("/api/annotations", {"image": rows["dog/0"], "name": "k0"})
    backup = file.with_name("keypoints.csv.bak")
    assert backup.read_bytes() == before
    then, now = lines_of(backup), lines_of(file)
    changed = {("cat/1", "k2"), ("dog/0", "k0"), ("cat/1.png", "left ear")}
    kept = [own for own in then if (own["image"], own["name"]) not in changed]
    assert [own for own in now if (own["image"], own["name"]) not in changed] == kept
    assert [own for own in now if own["name"] == "left ear"] == [
        {"image": "cat/1.png", "name": "left ear", "x": "1.00", "y": "2.00"}
    ]
    assert ("dog/0", "k0") not in {(own["image"], own["name"]) for own in now}
    assert not list(file.parent.glob("*.partial"))
    # what the page shows of pairs follows
    asked = bench.ok(f"/api/keypoints?source={rows['cat/1']}&target={rows['cat/0']}")
    assert next(own["source"] for own in asked if own["name"] == "k2") == [3.5, 4.25]


@pytest.mark.parametrize(
    "body",
    [
        {"name": "<script>alert(1)</script>"},
        {"name": ""},
        {"name": "a\nb"},
        {"name": "=1+1"},
        {"name": "x" * 101},
        {"x": 60.5},
        {"x": -0.1},
        {"x": None},
        {"x": "1"},
        {"image": 99},
        {"image": "../x"},
        {"image": True},
    ],
    ids=str,
)
def test_keypoints_that_cannot_be_are_refused(bench: Bench, body: dict[str, Any]) -> None:
    file = bench.folder / "photographs/keypoints.csv"
    before, rows = file.read_bytes(), rows_of(bench.ok("/api/state"))
    answer = bench.post("/api/annotations", {"image": rows["cat/0"], "name": "a", "x": 1.0, "y": 2.0, **body})
    assert answer.status_code in (400, 404, 409)
    assert answer.json()["error"]
    assert file.read_bytes() == before
    assert not file.with_name("keypoints.csv.bak").exists()


def test_a_file_of_keypoints_that_is_malformed_is_left_alone(bench: Bench) -> None:
    file = bench.folder / "photographs/keypoints.csv"
    for content in ("image,name,x\ncat/0,a,1\n", "image,name,x,y\nnone/0,a,1,2\n", "image,name,x,y\ncat/0,a,1\n"):
        file.write_text(content)
        bench.refused(409, "/api/annotations", {"image": 0, "name": "a", "x": 1.0, "y": 2.0})
        assert file.read_text() == content
    file.unlink()
    assert bench.ok("/api/annotations")["images"] == {}
    bench.ok("/api/annotations", {"image": 0, "name": "a", "x": 1.0, "y": 2.0})
    assert file.read_text() == "image,name,x,y\ncat/0.png,a,1.00,2.00\n"
    bench.ok("/api/annotations", {"image": 0, "name": "a"})
    assert bench.ok("/api/annotations")["images"] == {}
    assert bench.ok("/api/annotations", {"image": 1, "name": "b", "x": 1.0, "y": 2.0})["names"] == ["b"]


def test_other_columns_and_line_ends_stay(tmp_path: Path) -> None:
    from featstore.datasets.folder import FolderDataset, names_in_lists

    root = write_photographs(tmp_path / "p")
    file = root / "keypoints.csv"
    file.write_bytes(b'image,name,x,y,visible,note\r\ncat/0,a,1,2,0,"far, ""very"""\r\ncat/1.png,a,3,4,2,\r\n')
    images = FolderDataset(root).images()
    own = Annotations(file, names_in_lists(images))
    assert own.points() == {"cat/1": {"a": (3.0, 4.0)}}
    own.save(images[0], "a", (5, 6))
    assert file.read_bytes() == (
        b'image,name,x,y,visible,note\r\ncat/0,a,5.00,6.00,1,"far, ""very"""\r\ncat/1.png,a,3,4,2,\r\n'
    )
    assert check_name(" e\u0301 ") == "\u00e9"
    with pytest.raises(InputError, match="no name"):
        check_name("a<b")


def test_what_is_kept_in_memory_is_bounded() -> None:
    kept, made_of = ByUse(1000), list[int]()

    def ask(key: int, floats: int = 50) -> torch.Tensor:
        def make() -> torch.Tensor:
            made_of.append(key)
            return torch.full((floats,), float(key))

        return kept(key, make)

    for key in range(20):
        assert ask(key)[0] == key
        assert kept.bytes <= 1000
        ask(0)  # which is asked for again and again, and stays
    assert made_of == [*range(20)]
    ask(1)
    assert made_of[-1] == 1
    ask(99, floats=251)  # larger than all that is kept
    ask(0)
    assert made_of[-1] == 99
    assert kept.bytes <= 1000


def test_matches_are_the_same_without_memory(bench: Bench) -> None:
    state = bench.ok("/api/state")
    random, layers = np.random.default_rng(1), text_layers(state)
    settings = [random_setting(random, layers) for _ in range(10)]
    asked = [{"source": 0, "target": 2, "points": [[5, 7], [30, 20]], "setting": own} for own in settings]
    first = [{**bench.ok("/api/match", own), "ms": 0} for own in asked]
    for limit in (1e-9, 1e-4):
        session = Session(ViewConfig(root=bench.folder / "photographs", memory=limit))
        assert [{**session.match(own), "ms": 0} for own in asked] == first
        assert session.maps.keep.bytes <= limit * 1e9


def test_timesteps_are_read_before_they_are_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(ViewConfig(root=bench.folder / "photographs"))
    layers = [own for own in text_layers(session.state()) if own["layer"] == "2"]
    assert len(layers) > 1
    asked = [
        {"source": 0, "target": 1, "points": [[5, 7]], "setting": {"layers": [own], "weights": [1]}} for own in layers
    ]
    cold = [{**Session(ViewConfig()).match(own), "ms": 0} for own in asked]
    assert not session.maps.warm()
    session.match(asked[0])
    while session.maps.warm():
        pass

    def unread(*_: Any) -> None:
        raise AssertionError("a map was read")

    monkeypatch.setattr("featstore.store.rows.RowArray.read", unread)
    assert [{**session.match(own), "ms": 0} for own in asked] == cold
    # what would drive out what is used is left alone
    session.maps.keep.limit = session.maps.keep.bytes
    session.match(asked[1])
    assert not session.maps.warm()


def test_it_is_served_until_ctrl_c(folder: Path) -> None:
    command = [sys.executable, "-m", "dualsd", "view", "--no-open", "--root", str(folder / "photographs")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", process.stdout.readline())
        assert found is not None
        place, token = found.groups()
        assert len(token) >= 32

        def ask(path: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            with urllib.request.urlopen(
                urllib.request.Request(place + path, data, {"X-Dualsd-Token": token})
            ) as answer:
                return json.loads(answer.read())

        layers = text_layers(ask("/api/state"))
        random = np.random.default_rng(3)
        settings = [random_setting(random, layers) for _ in range(12)]
        asked = [{"source": 0, "target": 1, "points": [[5, 7]], "setting": own} for own in settings]
        alone = [ask("/api/match", own)["points"] for own in asked]
        together: dict[int, list[Any]] = {}

        def page(number: int) -> None:
            order = asked if number else asked[::-1]
            own = [ask("/api/match", one)["points"] for one in order]
            together[number] = own if number else own[::-1]

        pages = [threading.Thread(target=page, args=(number,)) for number in range(2)]
        for one in pages:
            one.start()
        for one in pages:
            one.join()
        assert together == {0: alone, 1: alone}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out.endswith("stopped.\n")
        with pytest.raises(OSError, match="refused"):
            ask("/api/state")
    finally:
        process.kill()
        process.wait()


def test_its_options(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("uvicorn.Server.run", lambda _, sockets: served.append(sockets[0].getsockname()))
    opened_in: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened_in.append)
    result = run("view")
    assert result.exit_code == 2
    assert "There is no store" in result.output
    store = ("--store", str(made / "dualsd.zarr"))
    result = run("view", *store)
    assert result.exit_code == 0, result.output
    assert opened_in[0] in result.output
    assert "lets everybody" not in result.output
    assert served[0][0] == "127.0.0.1"
    result = run("view", *store, "--host", "0.0.0.0", "--no-open")
    assert "lets everybody" in result.output
    assert served[1][0] == "0.0.0.0"
    assert len(opened_in) == 1
    result = run("view", *store, "--host", "192.0.2.1", "--no-open")
    assert (result.exit_code, "cannot listen" in result.output) == (2, True)
    assert run("view", *store, "--memory", "0").exit_code == 2
    assert run("view", *store, "--port", "70000").exit_code == 2


def test_the_extra_that_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [own for own in sys.modules if own.startswith(("uvicorn", "starlette", "cli.view"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("view")
    assert result.exit_code == 2
    assert " ".join(result.output.split()).endswith(MISSING)


def test_another_host_is_told_by_its_number_alone(bench: Bench) -> None:
    from cli.view.guard import Guard

    guard = Guard(bench.client.app, TOKEN, "0.0.0.0", PORT)  # type: ignore[arg-type]
    for host, status in (("192.0.2.7", 200), ("127.0.0.1", 200), ("[2001:db8::1]", 200), ("evil.example", 403)):
        client = TestClient(replace(guard, app=guard.app.app), base_url=f"http://{host}:{PORT}")  # type: ignore[attr-defined]
        answer = client.get("/api/state", headers={"X-Dualsd-Token": TOKEN})
        assert answer.status_code == status, host
