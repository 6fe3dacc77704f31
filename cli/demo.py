"""`dualsd demo`: the main job on the embedded dataset and model, in a folder of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cli.evaluate import evaluate
from cli.match import match
from cli.output import say
from cli.progress import TerminalProgress
from featstore.config import BuildConfig, EvalConfig, MatchConfig
from matcher.errors import InputError


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's store, table and picture.")] = Path(
        "dualsd-demo"
    ),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Cache, extract, match and score the embedded demo, and draw one pair: the whole use in a minute or two."""
    from featstore.pipeline.run_build import build
    from featstore.tuning.run_folder import free_name

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}.") from error
    store = str(out / "demo.zarr")
    say(f"$ dualsd cache build --store {store}")
    with TerminalProgress() as progress:
        build(BuildConfig(store=store, device=device), progress)
    config = EvalConfig(store=store, ensemble=2, readouts=("nn",), device=device)
    for name, layers in (("layer 2 alone", "2"), ("layer 3 alone", "3"), ("both layers", "2,3")):
        say("", f"{name}:", f"$ dualsd eval --store {store} --layers {layers} --ensemble 2 --readouts nn")
        run = out / "runs" / free_name(out / "runs", f"eval-{layers.replace(',', '+')}")
        evaluate(replace(config, layers=tuple(layers.split(",")), out=run), json=out / f"layers-{layers}.json")
    picture = out / "matches.png"
    draw_demo_pair(store, picture, device)
    say("", f"{picture} shows one pair of the test split; {store} is an ordinary store: try `dualsd cache info`.")


def draw_demo_pair(store: str, picture: Path, device: str) -> None:
    """Match the keypoints of the first test pair from two image files, as `dualsd match` does, and draw them."""
    from featstore.datasets.registry import open_dataset

    dataset = open_dataset("demo", None)
    pair = dataset.pairs("test")[0]
    records = {record.id: record for record in dataset.images()}
    files = picture.with_name("source.ppm"), picture.with_name("target.ppm")
    for file, image in zip(files, (pair.source, pair.target), strict=True):
        file.write_bytes(dataset.read(records[image]))
    config = MatchConfig(
        source=files[0],
        target=files[1],
        points=tuple((round(float(x), 1), round(float(y), 1)) for x, y in pair.source_points),
        category=pair.category,
        prompt="a photo of a {category}",
        store=store,
        device=device,
        ensemble=2,
    )
    match(config, out=picture)
