"""What adapters gain, with keypoints and with weak labels, and what they cost (docs/adapters.md).

    python -m benchmarks.adapt willow --root PF --features FILE --out DIR      PF-Willow's real ImageNet features
    python -m benchmarks.adapt demo --store dualsd.zarr --out DIR              the demo, from its store
    python -m benchmarks.adapt cost --out DIR                                  steps on maps of SD 2-1's shapes
    python -m benchmarks.adapt show --out DIR                                  the tables, of what is there

Each figure is a line of DIR/<part>.jsonl, written as it comes; what is there is not measured again.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.synthetic_maps import IMAGE_SIZE, all_pairs, write_store
from featstore.adapters.base import make_adapter
from featstore.adapters.batches import IN_MEMORY, Shelf
from featstore.adapters.lists import OF_VAL, hold_out, kind_of
from featstore.adapters.material import Material, open_material
from featstore.adapters.settings import settings_of
from featstore.adapters.train import AdapterTask, adapt
from featstore.config import AdaptConfig, EvalConfig, GridConfig, TrainConfig
from featstore.datasets.records import AnnotatedPairs
from featstore.datasets.registry import open_dataset
from featstore.pipeline.distributed import ALONE
from featstore.pipeline.evaluate import evaluate
from featstore.pipeline.grid import grid
from featstore.pipeline.pairs import choose_pairs, images_of, keys_from_files
from featstore.pipeline.results import Evaluation
from featstore.progress import Silent
from featstore.tuning.train import train
from matcher.configuration import LayerSpec, MatchSettings
from matcher.pairs import Pairs
from matcher.pck import Average, distances
from matcher.statistics import Difference, compare

ALPHAS = (0.05, 0.1)
SEEDS = range(5)
SIZE, LAYERS = 384, ("s16",)
"""Of `pf-willow-effnet-features.safetensors`."""

KINDS = (("car",), ("duck",), ("motorbike",), ("winebottle",), ("car", "duck"))
"""What is held out of PF-Willow by category: each kind once, and two of the four together."""

app = typer.Typer(help=__doc__, no_args_is_help=True)
Out = Annotated[Path, typer.Option(help="Folder of results and runs.")]


@dataclass(frozen=True, slots=True)
class Figures:
    """The lines of a part."""

    file: Path

    def add(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The line of a name, measured where there is none."""
        known = {line["name"]: line for line in self.lines()}
        if name not in known:
            known[name] = {"name": name, **measure()}
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(known[name]) + "\n")
        print(json.dumps(known[name]), flush=True)
        return known[name]

    def lines(self) -> list[dict[str, Any]]:
        """All of them."""
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.is_file() else []


def part(out: Path, name: str) -> Figures:
    """The figures of a part, in a folder that is made."""
    out.mkdir(parents=True, exist_ok=True)
    return Figures(out / f"{name}.jsonl")


def gain(raw: Evaluation, adapted: Evaluation) -> dict[str, Any]:
    """PCK in percent before and after, and the difference with its interval, by alpha."""
    pairs = raw.matched.pairs
    found = compare(pairs, distances(raw.matched, "nn"), distances(adapted.matched, "nn"), ALPHAS, Average.IMAGE)
    return {"pairs": len(pairs), **{f"{alpha:g}": percent(found[alpha].overall) for alpha in ALPHAS}}


def percent(own: Difference) -> dict[str, float]:
    """A difference of two runs in percent."""
    lead = {"lead": own.lead.mean, "low": own.lead.low, "high": own.lead.high}
    return {name: round(100 * value, 2) for name, value in {"raw": own.first, "adapted": own.run, **lead}.items()}


def subset(root: Path, into: Path, images: set[str]) -> Path:
    """A PF-Willow of the pairs among some of the images."""
    if not into.is_dir():
        new = into.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        (new / "PF-dataset").symlink_to((root / "PF-dataset").resolve())
        head, *lines = (root / "test_pairs.csv").read_text().splitlines()
        kept = [line for line in lines if all(identify(Path(own)) in images for own in line.split(",")[:2])]
        (new / "test_pairs.csv").write_text("\n".join([head, *kept]) + "\n")
        new.rename(into)
    return into


def identify(path: Path) -> str:
    """The id of an image of PF-Willow."""
    return f"{path.parent.name}/{path.stem}"


def splits(root: Path, out: Path) -> Iterator[tuple[str, int, Path, Path]]:
    """Names, seeds, and the folders to learn from and to test on: 4 of 10 images of each category are held out, those
    that are the same file together (30 of the 100 are another one's, of another category); or categories by kinds."""
    dataset = open_dataset("pf-willow", root)
    pairs = choose_pairs(dataset, "test", ())
    keys = keys_from_files(dataset, images_of(pairs))

    def made(name: str, learn: AnnotatedPairs, test: AnnotatedPairs) -> tuple[Path, Path]:
        folder = "-".join(name.split())
        named = (("train", learn), ("test", test))
        first, second = (subset(root, out / f"{folder}-{which}", set(images_of(own))) for which, own in named)
        return first, second

    for seed in SEEDS:
        name = f"images {seed}"
        yield name, seed, *made(name, *hold_out(pairs, 0.4, "image", seed, keys))
    for seed, kinds in enumerate(KINDS):
        name = f"kinds {'+'.join(kinds)}"
        is_held = np.array([kind_of(pairs.categories[own]) in kinds for own in pairs.category])
        yield name, seed, *made(name, pairs.take(~is_held), pairs.take(is_held))


SEEN: dict[str, Any] = {"hold_out": 0.0, "steps": 200}
"""Settings where training sees objects of the same kind."""

UNSEEN: dict[str, Any] = {"hold_out": 0.0, "steps": 150, "dropout": 0.5, "width": 64, "rate": 3e-4}
"""The same where it does not."""

WEAK: dict[str, Any] = {"pseudo": True, "relaxed": 1.0, "steps": 100}


@app.command()
def willow(
    root: Annotated[Path, typer.Option(help="PF-Willow's folder.")],
    features: Annotated[Path, typer.Option(help="Its ImageNet features.")],
    out: Out,
    weak: Annotated[bool, typer.Option(help="Learn from weak labels, not from keypoints.")] = False,
) -> None:
    """Learn from one part of PF-Willow and score on the other; or, without keypoints, learn from the maps alone."""
    figures = part(out, "willow")
    ours: dict[str, Any] = {
        "features": features,
        "dataset": "pf-willow",
        "size": SIZE,
        "layers": LAYERS,
        "device": "cpu",
    }

    def learned(name: str, raw: Path, learn: Path, **options: Any) -> None:
        def measure() -> dict[str, Any]:
            began = time.perf_counter()
            run = adapt(AdaptConfig(**ours, root=learn, runs=out / "runs", **options))
            seconds = time.perf_counter() - began
            asked = EvalConfig(**ours, root=raw, readouts=("nn",), alphas=ALPHAS)
            plain, adapted = evaluate(asked), evaluate(replace(asked, adapter=run.run.path))
            about = {"seconds": round(seconds, 1), "parameters": run.parameters, "learned_from": run.listed["n_pairs"]}
            return gain(plain, adapted) | about | {"options": {key: str(own) for key, own in options.items()}}

        figures.add(name, measure)

    for name, seed, learn, test in splits(root, out / "splits"):
        if not weak:
            learned(name, test, learn, seed=seed, **(UNSEEN if name.startswith("kinds") else SEEN))
            if name.startswith("kinds"):
                learned(f"{name}, settings of the others", test, learn, seed=seed, **SEEN)
        elif name.startswith("images"):
            learned(f"weak {name}", test, learn, seed=seed, **WEAK)
    if weak:
        learned("weak, all images", root, root, seed=0, **WEAK)


TEXT = "a photo of a {category}"


@app.command()
def demo(out: Out, store: Annotated[str, typer.Option(help="The demo's store.")] = "dualsd.zarr") -> None:
    """Learn on the demo's trn, choose on val, score on test: prompts, adapters on the maps of either, weights alone."""
    figures, runs = part(out, "demo"), out / "runs"
    scored: dict[str, Evaluation] = {}

    def score(name: str, **asked: Any) -> Evaluation:
        if name not in scored:
            scored[name] = evaluate(EvalConfig(store=store, readouts=("nn",), alphas=ALPHAS, **asked))
        return scored[name]

    def text() -> Evaluation:
        return score("text", layers=("2", "3"), prompt=TEXT)

    def learned(name: str, **asked: Any) -> Path:
        """The folder of a run that is made where it is not there."""
        if not (runs / name).is_dir():
            adapt(AdaptConfig(store=store, layers=("2", "3"), runs=runs, name=name, **asked))
        return runs / name

    def prompts() -> Path:
        if not (runs / "prompts").is_dir():
            train(TrainConfig(store=store, mode="single", runs=runs, name="prompts"))
        return runs / "prompts"

    def against_text(made: Callable[[], Evaluation]) -> Callable[[], dict[str, Any]]:
        return lambda: gain(text(), made())

    figures.add("text", against_text(text))
    adapters: dict[str, dict[str, Any]] = {
        "adapter on text": {"prompt": TEXT},
        "weights alone": {"prompt": TEXT, "mode": "weights"},
        "weak labels on text": {"prompt": TEXT, "pseudo": True, "relaxed": 1.0},
    }
    for name, asked in adapters.items():
        figures.add(name, against_text(lambda name=name, asked=asked: score(name, adapter=learned(name, **asked))))  # type: ignore[misc]
    figures.add("grid's weights", lambda: swept(store, text()))
    figures.add("prompts", against_text(lambda: score("prompts", layers=("2", "3"), prompts=str(prompts()))))
    figures.add(
        "adapter on prompts",
        against_text(lambda: score("both", adapter=learned("adapter on prompts", prompts=str(prompts())))),
    )


def swept(store: str, text: Evaluation) -> dict[str, Any]:
    """What `dualsd grid --weights sweep` finds best on val, at the timesteps of the text's layers, on test."""
    asked: dict[str, Any] = {"store": store, "layers": ("2", "3"), "prompt": TEXT}
    steps = text.config.timesteps if text.config else None
    scores = grid(GridConfig(**asked, timesteps=steps, weightings="sweep", alphas=ALPHAS)).scores
    best = scores.configurations[int(scores.pck(Average.IMAGE)[:, 0, ALPHAS.index(0.1)].argmax())]
    asked |= {"layers": tuple(layer.layer for layer in best.layers), "weights": best.weights}
    found = evaluate(EvalConfig(**asked, timesteps=best.timesteps, readouts=("nn",), alphas=ALPHAS))
    return gain(text, found) | {"best": best.name}


@app.command()
def cost(
    out: Out,
    store: Annotated[str, typer.Option(help="The demo's store.")] = "dualsd.zarr",
    steps: Annotated[int, typer.Option(help="Steps that are measured.")] = 20,
) -> None:
    """Measure steps, from memory and from a store, on the demo's maps and on maps of SD 2-1's shapes."""
    figures = part(out, "cost")
    of_demo = open_material(AdaptConfig(store=store, layers=("2", "3"), prompt=TEXT), Silent())
    for name, material, count in (("demo", of_demo, steps), ("SD 2-1", synthetic(out / "sd.zarr"), max(steps // 5, 2))):
        for place, limit in (("memory", IN_MEMORY), ("store", 0)):
            figures.add(f"{name}, from {place}", lambda of=(material, limit, count): measured(*of))  # type: ignore[misc]


def synthetic(path: Path) -> Material:
    """Twelve images of a category, with maps of SD 2-1's shapes in a store that is made."""
    timesteps = {"2": 261, "3": 200}
    shutil.rmtree(path, ignore_errors=True)
    maps = write_store(path, 1, 12, timesteps)
    layers = tuple(LayerSpec(name, step, 0.8 if name == "2" else 0.6) for name, step in timesteps.items())
    pairs = Pairs.of(all_pairs(1, 12, 11))
    config, matching = AdaptConfig(layers=tuple(timesteps)), MatchSettings(IMAGE_SIZE)
    none = pairs.take([])
    return Material(pairs, none, "trn", OF_VAL, maps, layers, matching, "synthetic", {}, {}, "", (), config)


def measured(material: Material, limit: int, steps: int) -> dict[str, Any]:
    """Steps of `dualsd adapt` with its usual settings. limit: bytes of maps that are kept in memory."""
    shelf = Shelf(material.maps, [(layer.layer, layer.timestep) for layer in material.layers], material.images, limit)
    settings = settings_of(material, shelf.shapes)
    task = AdapterTask(make_adapter(settings.spec({})), settings, material, shelf, torch.device("cpu"))
    state, images = task.open_state(), []

    def step() -> None:
        images.append(task.step(state, ALONE).passes)
        state.step += 1

    step()  # the first one opens files and warms up
    began, of_processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    seconds, of_processor = time.perf_counter() - began, time.process_time() - of_processor
    return {
        "steps": steps,
        "pairs per step": settings.batch,
        "images per step": round(sum(images) / len(images), 1),
        "seconds per step": round(seconds / steps, 3),
        "processor seconds per step": round(of_processor / steps, 3),
        "threads": torch.get_num_threads(),
        "maps MB per image": round(shelf.bytes / len(material.images) / 1e6, 2),
        "peak GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "parameters": task.parameters,
    }


@app.command()
def show(out: Out) -> None:
    """Print the tables."""
    for name in ("willow", "demo"):
        print(f"\n| {name} | PCK@0.05 | gain | PCK@0.1 | gain |\n|---|---:|---:|---:|---:|")
        for line in part(out, name).lines():
            own = [line[f"{alpha:g}"] for alpha in ALPHAS]
            print(f"| {line['name']} | " + " | ".join(map(spell, own)) + " |")
    for line in part(out, "cost").lines():
        print(line)


def spell(own: Mapping[str, float]) -> str:
    """`21.4 to 24.3 | +2.9 [0.3, 5.6]`."""
    return f"{own['raw']:.1f} to {own['adapted']:.1f} | {own['lead']:+.1f} [{own['low']:.1f}, {own['high']:.1f}]"


if __name__ == "__main__":
    app()
