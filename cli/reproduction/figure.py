"""Figure 2: accuracy against timestep, a curve a layer, which is what `dualsd grid` draws."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.output import say, write_json
from cli.progress import TerminalProgress
from cli.recipe_options import to_command
from cli.reproduction.cells import digest_of
from cli.reproduction.plan import DEMO
from cli.reproduction.pricing import Piece, prices, print_prices
from cli.reproduction.work import Work
from cli.reproduction.workplace import SEED, Workplace
from featstore.datasets.records import Pair
from featstore.pipeline.evaluate import choose_pairs, images_of
from featstore.pipeline.plan import missing_latents
from matcher.errors import InputError

DATASET, SPLIT = "spair", "val"
LAYERS, TIMESTEPS, ENSEMBLE = (2, 3), range(50, 401, 50), 8
TEMPLATE = "a photo of a {category}"
"""The figure's numbers are not known: these are the layers of the report's method, on the split for choosing."""


def reproduce_figure(place: Workplace, dry_run: bool, file: Path | None) -> None:
    """Run the grid, whose pictures and numbers are kept. file: gets the numbers, too, or what they would take. Raises
    `InputError` where the dataset is missing."""
    dataset = DATASET if DATASET in place.roots else DEMO
    if dataset not in place.roots:
        raise InputError(f"Figure 2 needs {DATASET}: give its folder's folder with --dataset-root, or take --on demo.")
    if dataset == DEMO:
        say(f"The demo's own dataset stands for {DATASET}.")
    pairs = choose_pairs(place.dataset(dataset), SPLIT, ())
    folder = _folder(place, dataset, pairs)
    arguments: dict[str, Any] = {
        "store": place.store_path(dataset),
        "layers": ",".join(map(str, LAYERS)),
        "t": ",".join(map(str, TIMESTEPS)),
        "split": SPLIT,
        "prompt": TEMPLATE,
        "ensemble": ENSEMBLE,
        "device": place.means.device,
        "dtype": place.means.dtype,
        "batch_size": place.means.batch_size,
        "out": folder,
        "json": folder / "grid.json",
    }
    if arguments["json"].is_file():
        say(f"Figure 2 was made before: {folder} has its pictures and numbers")
        write_json(file, json.loads(arguments["json"].read_text(encoding="utf-8")))
        return
    priced = prices(place, [Piece("figure2", _work(place, dataset, pairs))])
    print_prices(place, priced)
    command = f"{to_command('grid', arguments)} --stream"
    if dry_run:
        write_json(file, {"figure": "figure2", "left": [asdict(price) for price in priced]})
        say("The same by hand:", f"  {to_command('cache build', place.build_arguments(dataset))}", f"  {command}")
        return
    with TerminalProgress() as progress:
        place.open_store(dataset, progress)
    folder.mkdir(parents=True, exist_ok=True)
    say("", f"$ {command}")
    from cli.grid import grid
    from featstore.config import GridConfig

    config = GridConfig(
        store=str(place.store_path(dataset)),
        layers=tuple(map(str, LAYERS)),
        timesteps=tuple(TIMESTEPS),
        split=SPLIT,
        prompt=TEMPLATE,
        ensemble=ENSEMBLE,
        device=place.means.device,
        dtype=place.means.dtype,  # type: ignore[arg-type]
        batch_size=place.means.batch_size,
        out=folder,
        stream=True,
    )
    grid(config, json=arguments["json"])
    write_json(file, json.loads(arguments["json"].read_text(encoding="utf-8")))


def _folder(place: Workplace, dataset: str, pairs: Sequence[Pair]) -> Path:
    """Other pairs, models or settings are another folder."""
    settings = (dataset, digest_of(pairs), place.model.fingerprint, place.image_size, SEED, place.compute.dtype_name)
    text = json.dumps([*settings, LAYERS, list(TIMESTEPS), ENSEMBLE, TEMPLATE])
    return (
        place.folder / "figures" / f"figure2 on {dataset}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    )


def _work(place: Workplace, dataset: str, pairs: Sequence[Pair]) -> Work:
    """Nothing is kept but latents."""
    images, store = images_of(pairs), place.store_if_there(dataset)
    lacking = images
    if store is not None:
        lacking = [store.images.ids[row] for row in missing_latents(store, list(map(store.images.row, images)))]
    passes = Counter({max(LAYERS): len(images) * len(TIMESTEPS) * ENSEMBLE})
    return Work(frozenset((dataset, image) for image in lacking), forward=passes)
