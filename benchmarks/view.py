"""Latency of the workbench's `/api/match`: a click, and a step of each slider, and what is kept in memory.

Run: `python -m benchmarks.view [--store demo.zarr] [--images 6] [--steps 100] [--memory 2] [--json FILE]`. Without
`--store` a store of synthetic maps of SD 2-1's shapes is written first, at three timesteps (230 MB for 6 images). Each
request goes through the server's routes and the guard, without a socket; its answer with a heat map is made as well.
"""

import json as json_module
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from starlette.testclient import TestClient

from benchmarks.synthetic_maps import IMAGE_SIZE, SHAPES, smooth_map, write_store
from cli.view.server import Workers, application
from cli.view.session import Session
from featstore.config import ViewConfig
from featstore.pipeline.live import ByUse

TIMESTEPS = (50, 200, 261)
MOST_IMAGES = 40
TOKEN, PORT = "benchmark", 8765


def write_synthetic(path: Path, images: int) -> None:
    """A store of one category with maps of SD 2-1's two layers at `TIMESTEPS`."""
    maps = write_store(path, 1, images, {"2": TIMESTEPS[0], "3": TIMESTEPS[0]})
    assert maps.extractor is not None
    for layer, shape in SHAPES.items():
        for seed, step in enumerate(TIMESTEPS[1:], start=10):
            array = maps.store.require_maps(maps.extractor, int(layer), step, shape)
            base = smooth_map(shape, seed).numpy()
            for row in range(images):
                array.write((row,), np.roll(base, row, axis=0))


def measure(store: Path, memory: float, steps: int) -> dict[str, Any]:
    """Milliseconds of each kind of step: median, 95 of 100, worst."""
    session, workers = Session(ViewConfig(store=str(store), memory=memory)), Workers()
    server = application(session, workers, TOKEN, "127.0.0.1", PORT)
    with TestClient(server, base_url=f"http://127.0.0.1:{PORT}") as client:
        found = _measured(client, session, steps)
    workers.stop()
    kept = session.maps.keep
    return {
        "store": str(store),
        "threads": torch.get_num_threads(),
        "milliseconds": found,
        "kept_megabytes": round(kept.bytes / 1e6),
        "limit_megabytes": round(kept.limit / 1e6),
    }


def _measured(client: TestClient, session: Session, steps: int) -> dict[str, dict[str, float]]:
    headers = {"X-Dualsd-Token": TOKEN}
    state = client.get("/api/state", headers=headers).json()
    setting, random = state["defaults"], np.random.default_rng(0)
    extractor = max(state["extractors"], key=lambda own: sum(map(len, own["layers"].values())))
    known = extractor["layers"]
    layers = [(own["layer"], own["t"], known[own["layer"]]) for own in setting["layers"]]
    setting["layers"] = [
        {"layer": layer, "t": step if step in steps_of else steps_of[0], "extractor": extractor["key"]}
        for layer, step, steps_of in layers
    ]

    def has_maps(image: Any, own: Any) -> bool:
        body = {"source": image["row"], "target": image["row"], "points": [[1, 1]], "setting": own}
        return bool(client.post("/api/match", json=body, headers=headers).status_code == 200)

    images = [image for image in state["images"] if has_maps(image, setting)][:MOST_IMAGES]

    def ask(source: Any, target: Any, point: list[float], own: Any) -> float:
        body = {"source": source["row"], "target": target["row"], "points": [point], "setting": own, "heat": True}
        begun = time.perf_counter()
        answer = client.post("/api/match", json=body, headers=headers)
        took = 1000 * (time.perf_counter() - begun)
        assert answer.status_code == 200, answer.text
        return took

    one, other = images[:2]
    for layer in setting["layers"]:
        alone = ({**setting, "layers": [{**layer, "t": step}], "weights": [1]} for step in known[layer["layer"]])
        known[layer["layer"]] = [own["layers"][0]["t"] for own in alone if has_maps(one, own) and has_maps(other, own)]

    def anywhere() -> list[float]:
        return random.uniform(1, [one["width"] - 1, one["height"] - 1]).tolist()

    point = anywhere()

    def with_timestep(place: int, at: int) -> Any:
        steps_of = known[setting["layers"][place]["layer"]]
        layers = [dict(layer) for layer in setting["layers"]]
        layers[place]["t"] = steps_of[at % len(steps_of)]
        return {**setting, "layers": layers}

    angle = np.linspace(0.05, 1.5, steps)
    kinds: dict[str, Callable[[int], float]] = {
        "click": lambda _: ask(one, other, anywhere(), setting),
        "weights": lambda at: ask(one, other, point, {**setting, "weights": [np.cos(angle[at]), np.sin(angle[at])]}),
        "beta": lambda at: ask(
            one, other, point, {**setting, "readout": "kernelsoftmax", "beta": round(0.01 + 0.001 * at, 3)}
        ),
        "readout": lambda at: ask(one, other, point, {**setting, "readout": state["readouts"][at % 5]}),
        "geometry": lambda at: ask(one, other, point, {**setting, "geometry": state["geometries"][at % 3]}),
        "upsampling": lambda at: ask(one, other, point, {**setting, "upsample": 1 + at % 2}),
        "timestep": lambda at: ask(one, other, point, with_timestep(at % 2, at // 2)),
    }
    ask(one, other, point, setting)
    found = {name: _figures([kind(at) for at in range(steps)]) for name, kind in kinds.items()}
    pairs = list(_new_pairs(images))[:steps]
    found["another pair"] = _figures([ask(*ends, anywhere(), setting) for ends in pairs])

    def new_timestep(at: int) -> float:
        """A step whose maps are read first: of the one layer, in both images."""
        session.maps.keep = ByUse(session.maps.keep.limit)
        ask(one, other, point, setting)
        place = at % 2
        others = [step for step in known[setting["layers"][place]["layer"]] if step != setting["layers"][place]["t"]]
        layers = [dict(layer) for layer in setting["layers"]]
        layers[place]["t"] = others[at // 2 % len(others)]
        return ask(one, other, point, {**setting, "layers": layers})

    found["timestep, not in memory"] = _figures([new_timestep(at) for at in range(steps)])
    return found


def _new_pairs(images: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Two images that were not shown together, again and again."""
    for apart in range(1, len(images)):
        for at in range(len(images) - apart):
            yield images[at], images[at + apart]


def _figures(milliseconds: list[float]) -> dict[str, float]:
    values = np.array(milliseconds)
    return {
        "median": round(float(np.median(values)), 1),
        "p95": round(float(np.quantile(values, 0.95)), 1),
        "worst": round(float(values.max()), 1),
    }


def main(
    store: Annotated[Path | None, typer.Option(help="A store with maps.")] = None,
    images: Annotated[int, typer.Option(help="Images of the synthetic store.")] = 6,
    steps: Annotated[int, typer.Option(help="Steps of each kind.")] = 100,
    memory: Annotated[float, typer.Option(help="Gigabytes that are kept.")] = 2.0,
    json: Annotated[Path | None, typer.Option(help="Write the figures to FILE.")] = None,
) -> None:
    """Measure, and print a row per kind of step."""
    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            store = Path(folder) / "synthetic.zarr"
            write_synthetic(store, images)
            typer.echo(f"synthetic maps of {', '.join(map(str, SHAPES.values()))}, images of {IMAGE_SIZE} pixels")
        found = measure(store, memory, steps)
    typer.echo(f"{found['store']}: {found['threads']} threads, milliseconds")
    for name, own in found["milliseconds"].items():
        typer.echo(f"{name:26} median {own['median']:7.1f}   p95 {own['p95']:7.1f}   worst {own['worst']:7.1f}")
    typer.echo(f"kept in memory: {found['kept_megabytes']} of {found['limit_megabytes']} MB")
    if json is not None:
        json.write_text(json_module.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
