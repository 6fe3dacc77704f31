"""`dualsd demo`: the main job on the embedded dataset and model, in a folder of its own."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import DEFAULT_PROMPT, DeviceOption


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's store, table and picture.")] = Path(
        "dualsd-demo"
    ),
    device: DeviceOption = "auto",
) -> None:
    """Cache, extract, match and score the embedded demo, and draw one pair: the whole use in a minute or two."""
    from cli.cache import build
    from cli.evaluate import evaluate
    from cli.output import say
    from featstore.config import BuildConfig, EvalConfig
    from featstore.tuning.run_folder import free_name
    from matcher.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}.") from error
    store = out / "demo.zarr"
    say(f"$ dualsd cache build --store {store}")
    build(BuildConfig(store=str(store), device=device))
    for name, layers in (("layer 2 alone", "2"), ("layer 3 alone", "3"), ("both layers", "2,3")):
        say("", f"{name}:", f"$ dualsd eval --store {store} --layers {layers} --ensemble 2 --readouts nn")
        runs = out / "runs"
        config = EvalConfig(
            store=str(store),
            layers=tuple(layers.split(",")),
            ensemble=2,
            readouts=("nn",),
            device=device,
            out=runs / free_name(runs, f"eval-{layers.replace(',', '+')}"),
        )
        evaluate(config, json=out / f"layers-{layers}.json")
    picture = out / "matches.png"
    draw_demo_pair(store, picture, device)
    say("", f"{picture} shows one pair of the test split; {store} is an ordinary store: try `dualsd cache info`.")


def draw_demo_pair(store: Path, picture: Path, device: str) -> None:
    """Match the keypoints of the first test pair from two image files, as `dualsd match` does, and draw them."""
    from cli.match import match
    from featstore.datasets.registry import open_dataset

    dataset = open_dataset("demo", None)
    pair = dataset.pairs("test")[0]
    records = {record.id: record for record in dataset.images()}
    files = []
    for role, image in (("source", pair.source), ("target", pair.target)):
        file = picture.with_name(f"{role}.ppm")
        file.write_bytes(dataset.read(records[image]))
        files.append(file)
    points = ";".join(f"{x:.1f},{y:.1f}" for x, y in pair.source_points)
    match(
        files[0],
        files[1],
        points=points,
        out=picture,
        category=pair.category,
        prompt=DEFAULT_PROMPT,
        store=store,
        device=device,
        ensemble=2,
    )
