"""`dualsd match A B`: points from one photograph to another, with a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cli.options import JsonOption, examples, taking
from cli.output import check_writable, print_table, say, write_json
from cli.progress import TerminalProgress
from featstore.config import MatchConfig
from matcher.configuration import MatchSettings, spell_readout
from matcher.errors import InputError

HEATMAP_POINTS = 20

EXAMPLES = examples(
    "dualsd match a.jpg b.jpg --points '120,80;200,150' --model sd2-1 --out matches.png",
    "dualsd match a.jpg b.jpg --points '120,80' --category cat --model sd2-1 --out m.png --heatmap",
    "dualsd match a.jpg b.jpg --points '120,80' --layers 2,dino --t 261 --model sd2-1",
    "dualsd match a.jpg b.jpg --points '120,80' --store spair.zarr --json found.json",
)


def match(
    config: MatchConfig,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Draw both images and the matches.")] = None,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Also draw each point's correlation over B, beside --out.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Find points of one photograph in another; prints them in pixels of B. Needs no store."""
    if heatmap and out is None:
        raise InputError("--heatmap needs --out FILE, beside which it is written.")
    if heatmap and len(config.points) > HEATMAP_POINTS:
        raise InputError(
            f"--heatmap draws one row per point, for at most {HEATMAP_POINTS} points, not {len(config.points)}."
        )
    import numpy as np

    from featstore.pipeline.match import match_photographs

    check_writable(out)
    with TerminalProgress() as progress:
        done = match_photographs(config, progress)
    names = done.photos[0].name, done.photos[1].name
    settings = MatchSettings(done.image_size, **config.parameters(config.readout))
    readout = spell_readout(config.readout, settings)
    say(
        f"model {done.model}, prompt {done.prompt!r}, readout {readout}, ensemble {config.ensemble}, geometry "
        f"{config.geometry}, images resized to {done.image_size} pixels"
    )
    points, matched = np.array(config.points, dtype=np.float32), done.matches.points
    print_table(
        f"{names[0]} -> {names[1]}, pixels",
        ["point", "x in A", "y in A", "x in B", "y in B"],
        [
            (index, *(f"{value:.1f}" for value in (*start, *end)))
            for index, (start, end) in enumerate(zip(points, matched, strict=True), start=1)
        ],
    )
    write_json(json, done.to_json())
    if out is None:
        return
    from matcher.plot import draw_heatmaps, draw_matches

    first, second = (np.asarray(photo.picture) for photo in done.photos)
    _drawn(out, lambda: draw_matches(out, first, second, points, matched, names))
    if heatmap:
        beside, found = out.with_name(f"{out.stem}-heatmap{out.suffix}"), done.matches.correlations
        _drawn(beside, lambda: draw_heatmaps(beside, first, second, points, matched, found))


def _drawn(file: Path, draw: Callable[[], None]) -> None:
    try:
        draw()
    except (OSError, ValueError) as error:
        raise InputError(f"The picture {file} cannot be written: {error}.") from error
    say(f"drawn: {file}")


command = taking(MatchConfig)(match)
