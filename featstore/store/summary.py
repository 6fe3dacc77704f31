"""What a store holds, array by array."""

from dataclasses import dataclass

from featstore.store.keys import MAPS, DinoExtractor
from featstore.store.store import Store


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """path: in the store. row_shape: of one row. rows: that could be there; present: that are. bytes: on disk.
    what: the extractor of maps in words, and whether its rows share files."""

    path: str
    row_shape: tuple[int, ...]
    rows: int
    present: int
    bytes: int
    what: str


def summarise(store: Store) -> list[ArraySummary]:
    """Every array of rows; rows are listed, none is read."""
    found = []
    for path, array in store.arrays().items():
        present = array.present()
        count = int(present.sum())
        what = ", ".join(part for part in (_what(store, path), "packed" if array.packed else "") if part)
        found.append(ArraySummary(path, array.row_shape, present.size, count, count * array.row_bytes, what))
    return found


def _what(store: Store, path: str) -> str:
    kind, _, rest = path.partition("/")
    if kind != MAPS:
        return ""
    attributes = store.attributes(f"{MAPS}/{rest.split('/')[0]}")
    stored = f", kept as {attributes['stored']}" if "stored" in attributes else ""
    dino = DinoExtractor.from_description(attributes)
    if dino is not None:
        return f"DINOv2 {dino.dino.id!r}, {dino.size} pixels, {dino.dtype}{stored}"
    prompt = attributes.get("prompt")
    words = prompt.get("template", prompt.get("kind")) if isinstance(prompt, dict) else "unknown prompt"
    return f"{words!r}, ensemble {attributes.get('ensemble')}, {attributes.get('dtype')}{stored}"
