"""Pictures of the demo: its dataset with keypoints, what the model's VAE makes of it, and matches on test pairs.

python -m tools.draw_demo_pictures --out /tmp/pictures [--model demo]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cli.match import match
from featstore.backbones.locate import locate
from featstore.config import MatchConfig
from featstore.datasets.demo import DemoDataset
from featstore.datasets.pictures import decode, resize_to_square
from featstore.datasets.records import ImageRecord, Pair

SHEET = 32
RECONSTRUCTED = 8
PAIRS = 6


def main(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    model: Annotated[str, typer.Option(help="demo or a folder in diffusers' layout.")] = "demo",
) -> None:
    """Draw sheet.png, reconstructions.png and matches-1.png to matches-6.png."""
    out.mkdir(parents=True, exist_ok=True)
    dataset = DemoDataset()
    records = {record.id: record for record in dataset.images()}
    pairs = dataset.pairs("test")
    draw_sheet(out / "sheet.png", dataset, records, pairs)
    test = [record for record in records.values() if ":test:" in record.file]
    draw_reconstructions(out / "reconstructions.png", dataset, test[:: len(test) // RECONSTRUCTED], model)
    for number, pair in enumerate(pairs[:: len(pairs) // PAIRS][:PAIRS], start=1):
        draw_match(out, number, dataset, records, pair, model)


def draw_sheet(file: Path, dataset: DemoDataset, records: dict[str, ImageRecord], pairs: Sequence[Pair]) -> None:
    """Test images of every category with the keypoints that their pairs name."""
    keypoints = {pair.source: (pair.source_points, pair.names) for pair in pairs}
    chosen = list(keypoints)[:: len(keypoints) // SHEET][:SHEET]
    figure = Figure(figsize=(16, 8.4), layout="constrained")
    for axes, image in zip(figure.subplots(4, 8).flat, chosen, strict=True):
        points, names = keypoints[image]
        axes.imshow(np.asarray(decode(records[image], dataset.read(records[image]))))
        axes.scatter(points[:, 0], points[:, 1], c=range(len(names)), cmap="turbo", s=22, edgecolors="white")
        axes.set_title(image, fontsize=8)
        axes.set_axis_off()
    figure.savefig(file, dpi=90)


def draw_reconstructions(file: Path, dataset: DemoDataset, images: Sequence[ImageRecord], model: str) -> None:
    """Pictures above, what the VAE decodes from their latents below."""
    vae = AutoencoderKL.from_pretrained(locate(model).folder, subfolder="vae", use_safetensors=True).float().eval()
    pictures = [resize_to_square(decode(image, dataset.read(image)), 128) for image in images]
    pixels = torch.from_numpy(np.stack(pictures)).float() / 127.5 - 1
    with torch.no_grad():
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    error = float((decoded - pixels).abs().mean())
    figure = Figure(figsize=(2 * len(images), 4.4), layout="constrained")
    figure.suptitle(f"above: pictures, below: decoded from latents; mean absolute error {error:.3f} of [-1, 1]")
    for column, pair in zip(figure.subplots(2, len(images)).T, zip(pixels, decoded, strict=True), strict=True):
        for axes, picture in zip(column, pair, strict=True):
            axes.imshow(_to_picture(picture))
            axes.set_axis_off()
    figure.savefig(file, dpi=90)


def draw_match(
    out: Path, number: int, dataset: DemoDataset, records: dict[str, ImageRecord], pair: Pair, model: str
) -> None:
    """One test pair as `dualsd match` draws it."""
    files = []
    for image in (pair.source, pair.target):
        file = out / f"{image.replace('/', '-')}.png"
        decode(records[image], dataset.read(records[image])).save(file)
        files.append(file)
    points = tuple((round(float(x), 1), round(float(y), 1)) for x, y in pair.source_points)
    config = MatchConfig(source=files[0], target=files[1], points=points, category=pair.category, model=model)
    match(config, out=out / f"matches-{number}.png")


def _to_picture(pixels: torch.Tensor) -> NDArray[np.uint8]:
    scaled = (pixels.clamp(-1, 1) + 1) * 127.5
    return scaled.permute(1, 2, 0).round().to(torch.uint8).numpy()


if __name__ == "__main__":
    typer.run(main)
