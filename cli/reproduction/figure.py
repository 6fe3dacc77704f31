"""Figure 2: accuracy against timestep, a curve per layer, which is what `dualsd grid` draws."""

import json
from pathlib import Path

from cli.grid import grid
from cli.options import command_of
from cli.output import say, write_json
from cli.progress import TerminalProgress
from cli.reproduction.paper import DEMO
from cli.reproduction.run import listed_pairs, short_hash
from cli.reproduction.work import price, print_prices, work_of_grid
from cli.reproduction.workplace import SEED, Workplace
from featstore.config import GridConfig, to_json
from featstore.pipeline.pairs import images_of
from matcher.errors import InputError

DATASET, SPLIT = "spair", "val"
LAYERS, TIMESTEPS, ENSEMBLE = ("2", "3"), tuple(range(50, 401, 50)), 8
METHOD = GridConfig(
    layers=LAYERS,
    timesteps=TIMESTEPS,
    split=SPLIT,
    prompt="a photo of a {category}",
    ensemble=ENSEMBLE,
    stream=True,
)
"""The figure's numbers are not known: these are the layers of the report's method, on the split for choosing."""


def reproduce_figure(place: Workplace, dry_run: bool, file: Path | None) -> None:
    """Run the grid, whose pictures and numbers are kept.

    Args:
        file: Gets the numbers, too, or what they would take.

    Raises:
        InputError: Where the dataset is missing.
    """
    dataset = DATASET if DATASET in place.roots else DEMO
    if dataset not in place.roots:
        raise InputError(f"Figure 2 needs {DATASET}: give its folder's folder with --dataset-root, or take --on demo.")
    if dataset == DEMO:
        say(f"The demo's own dataset stands for {DATASET}.")
    pairs, listed = listed_pairs(place, place.dataset(dataset), SPLIT)
    # other pairs, models or settings are another folder
    own = (listed, place.model.fingerprint, place.image_size, SEED, place.compute.dtype_name, to_json(METHOD))
    folder = place.folder / "figures" / f"figure2 on {dataset}-{short_hash(own)}"
    numbers = folder / "grid.json"
    if numbers.is_file():
        say(f"Figure 2 was made before: {folder} has its pictures and numbers")
    else:
        config = place.placed(METHOD, dataset, out=folder)
        work = work_of_grid(place, dataset, images_of(pairs), len(TIMESTEPS) * ENSEMBLE, int(LAYERS[-1]))
        priced = [price(place, name, work) for name in ("figure2", "all")]
        print_prices(place, priced)
        command = f"{command_of(config, 'grid')} --json {numbers}"
        if dry_run:
            write_json(file, {"figure": "figure2", "left": priced})
            build = command_of(place.building(dataset), "cache", "build")
            say("The same by hand:", f"  {build}", f"  {command}")
            return
        with TerminalProgress() as progress:
            place.make_store(dataset, progress)
        folder.mkdir(parents=True, exist_ok=True)
        say("", f"$ {command}")
        grid(config, json=numbers)
    write_json(file, json.loads(numbers.read_text(encoding="utf-8")))
