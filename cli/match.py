"""`dualsd match A B`: points from one photograph to another, or to many, with pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import JsonOption, examples, taking
from cli.output import check_writable, print_table, say, write_csv, write_json
from cli.progress import TerminalProgress
from featstore.config import MatchConfig
from matcher.configuration import MatchSettings, spell_readout
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.match import PhotoMatches

HEATMAP_POINTS = 20
LISTED_POINTS = 40
"""Points of one pair that are printed, a row each; of more, and of many pairs, a row per pair is."""

EXAMPLES = examples(
    "dualsd match a.jpg b.jpg --points '120,80;200,150' --model sd2-1 --out matches.png",
    "dualsd match a.jpg b.jpg --points '120,80' --category cat --model sd2-1 --out m.png --heatmap",
    "dualsd match a.jpg b.jpg --grid 16 --mask a-mask.png --model sd2-1 --out grid.png",
    "dualsd match cats/1.jpg cats --points-file points.csv --category cat --model sd2-1 --transfer keypoints.csv",
    "dualsd match --pairs pairs.csv --points-file keypoints.csv --store spair.zarr --json found.json",
    "dualsd match a.jpg b.jpg --points '120,80' --layers 2,dino --t 261 --model sd2-1",
)


def match(
    config: MatchConfig,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Draw both images and the matches; of many pairs FILE-1 and so on."),
    ] = None,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Also draw each of --points' correlations over B, beside --out.")
    ] = False,
    transfer: Annotated[
        Path | None,
        typer.Option(
            "--transfer", metavar="FILE", help="Write the points found in B as keypoints.csv of --dataset folder."
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Find points of one photograph in another, or in a folder of them, and say which matches are to be trusted; prints
    them in pixels of B, as a viewer shows it. Needs no store."""
    if heatmap and out is None:
        raise InputError("--heatmap needs --out FILE, beside which it is written.")
    if heatmap and config.points is None:
        raise InputError("--heatmap draws one row per point: it goes with --points.")
    if heatmap and config.points is not None and len(config.points) > HEATMAP_POINTS:
        raise InputError(
            f"--heatmap draws one row per point, for at most {HEATMAP_POINTS} points, not {len(config.points)}."
        )
    if transfer is not None and config.pairs is not None:
        raise InputError("--transfer carries points of one image A: it goes with A and B, not with --pairs.")
    check_writable(out, transfer)
    rows, entries, carried, drawn = list[tuple[str, ...]](), [], list[tuple[str, ...]](), list[Path]()
    with TerminalProgress() as progress:
        from featstore.datasets.reading import is_folder
        from featstore.pipeline.match import KEYPOINTS, match_pairs

        has_many = config.target is None or is_folder(config.target)
        for number, done in enumerate(match_pairs(config, progress), start=1):
            if has_many and not carried and done.asked.source.parent.samefile(done.asked.target.parent):
                carried += done.annotated()
            carried += done.keypoints()
            entries.append(done.pair_to_json())
            rows.append(_summary(done))
            if out is not None:
                file = out.with_name(f"{out.stem}-{number}{out.suffix}") if has_many else out
                drawn += _draw(done, file, heatmap)
    prompts = ", ".join(dict.fromkeys(repr(own["prompt"]) for own in entries))
    readout = spell_readout(config.readout, MatchSettings(done.image_size, **config.parameters(config.readout)))
    say(
        f"model {done.model}, prompt {prompts}, readout {readout}, ensemble {config.ensemble}, geometry "
        f"{config.geometry}, images resized to {done.image_size} pixels"
    )
    if has_many or len(done.asked.names) > LISTED_POINTS:
        print_table("medians of each pair's points", ["pair", "points", "mutual", "cosine", "margin"], rows)
    else:
        _print_points(done)
    say(_meaning())
    settings = done.settings_to_json()
    write_json(json, {"pairs": entries, **settings} if has_many else {**entries[0], **settings})
    if transfer is not None:
        write_csv(transfer, KEYPOINTS, carried)
        say(f"written: {transfer}, {len(carried)} keypoints")
    for file in drawn:
        say(f"drawn: {file}")


def _print_points(done: "PhotoMatches") -> None:
    own, asked = done.matches, done.asked
    names = [str(n) if name == str(n) else f"{n} {name}" for n, name in enumerate(asked.names, start=1)]
    columns = zip(names, asked.points, own.points, own.scores, own.margins, own.mutual, strict=True)
    print_table(
        f"{done.photos[0].name} -> {done.photos[1].name}, pixels",
        ["point", "x in A", "y in A", "x in B", "y in B", "cosine", "margin", "mutual"],
        [
            (name, *(f"{value:.1f}" for value in (*start, *end)), f"{score:.3f}", f"{margin:.3f}", _yes(is_mutual))
            for name, start, end, score, margin, is_mutual in columns
        ],
    )


def _summary(done: "PhotoMatches") -> tuple[str, ...]:
    import numpy as np

    own, (source, target) = done.matches, done.photos
    medians = (f"{np.median(figures):.3f}" for figures in (own.scores, own.margins))
    return f"{source.name} -> {target.name}", str(len(own.mutual)), str(int(own.mutual.sum())), *medians


def _meaning() -> str:
    from matcher.match import RADIUS, TOLERANCE

    return (
        f"margin: cosine less that of the best place more than {RADIUS:.0%} of the image away; mutual: the way back "
        f"ends within {TOLERANCE:.0%} of the image of where it began"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _draw(done: "PhotoMatches", file: Path, heatmap: bool) -> list[Path]:
    """The pictures of a pair, which were drawn."""
    import numpy as np

    from matcher.plot import draw_heatmaps, draw_matches

    own, points, names = done.matches, done.asked.points, (done.photos[0].name, done.photos[1].name)
    first, second = (np.asarray(photo.picture) for photo in done.photos)
    try:
        draw_matches(file, first, second, points, own.points, names, own.mutual)
        if not heatmap:
            return [file]
        drawn, file = file, file.with_name(f"{file.stem}-heatmap{file.suffix}")
        figures = zip(own.scores, own.margins, own.mutual, strict=True)
        titles = [f"cosine {score:.2f}, margin {margin:.2f}, mutual: {_yes(yes)}" for score, margin, yes in figures]
        draw_heatmaps(file, first, second, points, own.points, own.correlations, titles)
    except (OSError, ValueError) as error:
        raise InputError(f"The picture {file} cannot be written: {error}.") from error
    return [drawn, file]


command = taking(MatchConfig)(match)
