"""Draw the demo dataset and write it where it ships: lossless WebP files and one file of annotations.

python -m tools.write_demo_pictures [--out featstore/assets/demo_pictures]
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from featstore.datasets.demo import FOLDER, SIZES
from tools.demo_drawing.figure import clipped
from tools.demo_drawing.picture import SUBJECTS, compose, render


def main(out: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER) -> None:
    """Write every picture and `annotations.json`: keypoints in the order of their category's names, boxes cut at the
    picture's edges, both in pixels and to the last digit."""
    pictures = {}
    for category, subject in SUBJECTS.items():
        (out / category).mkdir(parents=True, exist_ok=True)
        for split, size in SIZES.items():
            for number in range(size):
                name = f"{category}/{split}{number:04d}"
                figure = compose(category, split, number)
                seen = {point: figure.keypoints[point] for point in subject.keypoints if point in figure.keypoints}
                pictures[name] = {"box": clipped(figure.box), "keypoints": seen}
                render(category, split, number).save(out / f"{name}.webp", lossless=True, quality=100, method=6)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(pictures[name])}" for name in sorted(pictures))
    (out / "annotations.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    typer.run(main)
