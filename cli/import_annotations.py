"""`dualsd import`: keypoints of anybody's photographs, from what annotation programs export."""

import shlex
from dataclasses import asdict

from cli.options import JsonOption, examples, taking
from cli.output import say, write_json
from featstore.kept_config import AnnotationsConfig

EXAMPLES = examples(
    "dualsd import annotations.xml --out photographs",
    "dualsd import person_keypoints_default.json --out photographs --format coco",
    "dualsd import photographs --out photographs          (LabelMe's files beside the pictures)",
)

PLACES_SHOWN = 3
"""Of each kind of note; --json holds them all."""


def import_annotations(config: AnnotationsConfig, json: JsonOption = None) -> None:
    """Write keypoints.csv and, where the export has boxes, boxes.csv, as `--dataset folder` reads them.

    Of each picture one object is taken: of those of its folder's category the largest. What is left out is counted and
    named. Points are in pixels of the image as stored, whichever way a viewer turns it.
    """
    from featstore.datasets.annotations import import_annotations as run

    done = run(config)
    keypoints, *boxes = done.files
    lines = [f"{keypoints}: {done.n_points} keypoints of {done.n_images} photographs: {', '.join(done.names)}"]
    lines += [f"{file}: the boxes of {done.n_boxes} of them" for file in boxes]
    for kind, places in done.notes.items():
        first = ", ".join(list(dict.fromkeys(places))[:PLACES_SHOWN])
        lines.append(f"{kind}: {len(places)} ({first}{', ...' if len(set(places)) > PLACES_SHOWN else ''})")
    root = shlex.quote(str(keypoints.parent))
    say(*lines, f"  dualsd cache build --dataset folder --root {root} --model sd2-1 --store mine.zarr")
    write_json(json, asdict(done) | {"files": [*map(str, done.files)]})


command = taking(AnnotationsConfig)(import_annotations)
