"""What it costs to keep maps: a row against a plain file, an evaluation from the store against one from memory, and
what rounding (`--encoding`) costs and changes.

    python -m benchmarks.store --folder /scratch --features FILE.safetensors --root PF-WILLOW

All in one folder, so on one disk. Rows are layer 3 of SD 2-1 (640 x 96 x 96, 11.8 MB). A plain file is the same bytes
with their CRC-32C, written beside its place and renamed. Ways are timed in turn and their medians compared: these
machines are shared. With PF-Willow's features and photographs the last table says what rounding does to PCK.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

import dualsd
from benchmarks.synthetic_maps import SHAPES, all_pairs, open_maps, smooth_map, write_store
from featstore.store.objects import Folder
from featstore.store.rows import ENCODINGS, Encoding, RowArray, require_rows
from matcher.configuration import LayerSpec, MatchSettings
from matcher.maps import MapsInMemory, MapSource
from matcher.sweep import evaluate

TIMES = 7
IMAGES, SOURCES = 16, 15
LAYERS = [LayerSpec("2", 261, 0.8), LayerSpec("3", 350, 0.6)]
SHAPE = SHAPES["3"]

console = Console()


def interleaved(ways: Mapping[str, Callable[[int], object]], times: int = TIMES) -> dict[str, float]:
    """Median seconds of each way, all tried in turn."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(times):
        for name, way in ways.items():
            started = time.perf_counter()
            way(index)
            taken[name].append(time.perf_counter() - started)
    return {name: median(own) for name, own in taken.items()}


def write_plain(file: Path, values: NDArray[np.float16]) -> None:
    """The least that somebody would do who wants to know later whether a file is whole."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        stream.write(values.data)
        stream.write(google_crc32c.value(values.reshape(-1).view(np.uint8)).to_bytes(4, "little"))
    partial.replace(file)


def read_plain(file: Path) -> NDArray[np.float16]:
    """The other way round."""
    content = np.fromfile(file, dtype=np.uint8)
    assert google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:].tobytes(), "little")
    return content[:-4].view(np.float16).reshape(SHAPE)


def arrays_in(folder: Path, durable: bool) -> dict[str, RowArray]:
    """An array per encoding."""
    from featstore.store.metadata import metadata_of, open_root

    folder.mkdir()
    objects = Folder(folder, durable)
    objects.put("zarr.json", metadata_of(lambda _: None)["zarr.json"])
    root = open_root(objects)
    return {name: require_rows(root, f"maps/{name}", (TIMES,), SHAPE, own) for name, own in ENCODINGS.items()}


def measure_rows(folder: Path) -> None:
    """Writing and reading rows."""
    values = smooth_map(SHAPE, 0).numpy()
    synced, loose = arrays_in(folder / "synced", True), arrays_in(folder / "loose", False)
    writes: dict[str, Callable[[int], object]] = {"plain": lambda index: write_plain(folder / f"{index}.row", values)}
    reads: dict[str, Callable[[int], object]] = {"plain": lambda index: read_plain(folder / f"{index}.row")}
    for name in ENCODINGS:
        for how, arrays in (("--no-sync", loose), ("synced", synced)):
            array = arrays[name]
            writes[f"{name}, {how}"] = lambda index, array=array: array.write((index,), values)  # type: ignore[misc]
        reads[f"{name}, --no-sync"] = lambda index, array=loose[name]: array.read((index,))  # type: ignore[misc]
    written, read = interleaved(writes), interleaved(reads)
    table = Table("a row of 11.8 MB", "write, ms", "of plain", "read, ms", "of plain", "size")
    for name, seconds in written.items():
        encoding = name.partition(",")[0]
        size = loose[encoding].stored_bytes() / TIMES / values.nbytes if encoding in ENCODINGS else 1
        more = [f"{1000 * read[name]:.1f}", f"{read[name] / read['plain']:.2f}"] if name in read else ["", ""]
        table.add_row(name, f"{1000 * seconds:.1f}", f"{seconds / written['plain']:.2f}", *more, f"{size:.2f}")
    console.print(table)


def measure_evaluation(folder: Path) -> None:
    """All pairs of a category, maps from memory and from stores."""
    pairs = all_pairs(1, IMAGES, SOURCES)
    timesteps = {spec.layer: spec.timestep or 0 for spec in LAYERS}
    sources: dict[str, MapSource] = {}
    for name, encoding in ENCODINGS.items():
        write_store(folder / f"{name}.zarr", 1, IMAGES, timesteps, encoding)
        sources[name] = open_maps(folder / f"{name}.zarr", encoding)
    raw = sources["raw"]
    images = sorted({image for pair in pairs for image in (pair.source, pair.target)})
    held = {(image, spec.layer, spec.timestep): raw.load(image, spec) for image in images for spec in LAYERS}
    sources = {"memory": MapsInMemory(held), **sources}
    for readouts in (["nn"], ["nn", "bilinear", "softmax", "kernelsoftmax"]):

        def run(maps: MapSource, readouts: list[str] = readouts) -> None:
            evaluate(pairs, maps, LAYERS, readouts, MatchSettings(768), torch.device("cpu"))

        ways = {name: (lambda _, maps=maps: run(maps)) for name, maps in sources.items()}  # type: ignore[misc]
        taken = interleaved(ways, 5)
        table = Table(f"{len(pairs)} pairs, {len(readouts)} readout(s)", "seconds", "of memory")
        for name, seconds in taken.items():
            table.add_row(name, f"{seconds:.2f}", f"{seconds / taken['memory']:.2f}")
        console.print(table)


def rounded(maps: Mapping[str, Tensor], encoding: Encoding) -> dict[str, Tensor]:
    """Maps as a store keeps them."""
    return {name: torch.from_numpy(encoding.round(own.numpy()).copy()) for name, own in maps.items()}


def worst_cosine(maps: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The largest 1 - cosine of a cell before and after."""
    worst = 0.0
    for name, own in maps.items():
        cosine = torch.nn.functional.cosine_similarity(own.double(), others[name].double(), dim=0, eps=1e-12)
        worst = max(worst, float((1 - cosine[own.double().norm(dim=0) > 0]).max()))
    return worst


def measure_pck(folder: Path, features: Path, root: Path) -> None:
    """PCK on PF-Willow's real photographs with real features, rounded and not."""
    maps = load_file(features)
    found: dict[str, dualsd.Evaluation] = {}
    worst = {}
    for name, encoding in ENCODINGS.items():
        kept = rounded(maps, encoding)
        worst[name] = worst_cosine(maps, kept)
        save_file(kept, folder / f"{name}.safetensors")
        config = dualsd.EvalConfig(
            features=folder / f"{name}.safetensors",
            dataset="pf-willow",
            root=root,
            size=384,
            layers=("s16", "s8"),
            weights=(0.8, 0.6),
            readouts=("nn", "bilinear", "softmax", "kernelsoftmax"),
        )
        found[name] = dualsd.evaluate(config)
    table = Table("PF-Willow, layers s16,s8", "worst cosine error", "PCK moves by at most, points", "where")
    for name in list(found)[1:]:
        moves = {
            f"{readout} @{alpha}": 100 * abs(score.overall - found["raw"].pck[readout].image[alpha].overall)
            for readout, averages in found[name].pck.items()
            for alpha, score in averages.image.items()
        }
        most = max(moves, key=moves.__getitem__)
        table.add_row(name, f"{worst[name]:.1e}", f"{moves[most]:.2f}", most)
    console.print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a folder of the disk's usual ones")
    parser.add_argument("--features", type=Path, help="PF-Willow's features, a safetensors file")
    parser.add_argument("--root", type=Path, help="the PF-Willow data set's folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure_rows(Path(folder))
        measure_evaluation(Path(folder))
        if asked.features and asked.root:
            measure_pck(Path(folder), asked.features, asked.root)


if __name__ == "__main__":
    main()
