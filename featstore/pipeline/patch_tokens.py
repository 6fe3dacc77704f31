"""DINOv2's tokens of every image, computed once and kept: what a cpm's prompts are made from."""

from collections.abc import Sequence
from pathlib import Path

from featstore.backbones.dino import load_dino
from featstore.backbones.dino_name import DinoName
from featstore.datasets.pictures import decode
from featstore.datasets.records import Dataset
from featstore.pipeline.batches import chunks
from featstore.pipeline.compute import Compute
from featstore.progress import Progress
from featstore.store.keys import PATCH_TOKENS
from featstore.store.overlap import row_writer
from featstore.store.pack import unpack
from featstore.store.rows import RowArray
from featstore.store.store import Store


def cache_patch_tokens(
    store: Store,
    dataset: Dataset,
    dino: DinoName,
    folder: Path,
    rows: Sequence[int],
    compute: Compute,
    progress: Progress,
) -> RowArray:
    """Tokens (1 + patches, width) of the images of `rows`, mirrored where the image is; those that are there stay.

    Raises `StoreError` where the store has those of another DINOv2, `ImageError` for an image that cannot be read.
    """
    known = store.patch_tokens(dino)
    if known is not None and all(known.present()[list(rows)]):
        return known
    unpack(store, [PATCH_TOKENS], progress)
    network = load_dino(folder, compute.device, compute.dtype)
    array = store.require_patch_tokens(dino, network.tokens_shape)
    present = array.present()
    missing = [row for row in rows if not present[row]]
    records = {record.id: record for record in dataset.images()}
    progress.start("DINOv2 tokens", len(missing), "images")
    with row_writer(store.path) as write:
        for batch in chunks(missing, compute.batch_size):
            images = [records[store.images.ids[row]] for row in batch]
            tokens = network.tokens([decode(image, dataset.read(image)) for image in images])
            for row, own in zip(batch, tokens, strict=True):
                write(array, (row,), own.numpy())
            progress.advance(len(batch))
    return array
