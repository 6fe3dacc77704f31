"""How the workbench's maps are made: by which networks, told what, and which adapter goes on top of them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from featstore.adapters.applied import fingerprint
from featstore.adapters.base import ADAPTED, FILE, FORMAT, AdapterSpec
from featstore.backbones.base import MapKey
from featstore.errors import AdapterError, StoreError
from featstore.pipeline.adapted import UsedAdapter, open_adapter
from featstore.pipeline.live import LiveMaps
from featstore.store.keys import AdaptedExtractor, AnyExtractor, Extractor, PixelExtractor


def spec_at(place: Path) -> AdapterSpec | None:
    """Which adapter a run's folder or a file holds; None where it holds none. No parameters are read."""
    file = _file_of(place)
    try:
        with safe_open(file, "pt") as opened:
            card = json.loads((opened.metadata() or {}).get("dualsd", "{}"))
        return AdapterSpec.from_json(card["spec"]) if card.get("format") == FORMAT else None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, AdapterError):
        return None


def _file_of(place: Path) -> Path:
    return place / FILE if place.is_dir() else place


class Adapters:
    """The adapters that lie among runs, each read once as long as its file stays as it is."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """folders: runs, files of adapters, and folders of both."""
        self._folders = tuple(folders)
        self._known: dict[Path, tuple[int, str | None]] = {}

    def place(self, asked: str) -> Path | None:
        """The run, or the file, of the adapter that has a fingerprint; None where none at hand has it."""
        return next((place for place in self._places() if self.fingerprint(place) == asked), None)

    def _places(self) -> Iterator[Path]:
        for folder in self._folders:
            yield folder
            try:
                inside = sorted(folder.iterdir())
            except OSError:
                continue
            yield from (own for own in inside if own.suffix == ".safetensors" or own.is_dir())

    def fingerprint(self, place: Path) -> str | None:
        """That of the adapter of a run's folder or a file; None where there is none that can be used."""
        file = _file_of(place)
        try:
            written = file.stat().st_mtime_ns
        except OSError:
            return None
        if file not in self._known or self._known[file][0] != written:
            self._known[file] = written, self._read(file)
        return self._known[file][1]

    def _read(self, file: Path) -> str | None:
        if spec_at(file) is None:  # it may be a large file of something else
            return None
        try:
            return fingerprint(open_adapter(file).adapter)
        except AdapterError:
            return None


@dataclass(frozen=True, slots=True)
class Origin:
    """How maps are made. unet: of those with a timestep and a prompt, None where there are none. others: of networks
    that see the image alone. adapter: what goes on top of all these, None for the maps as they are."""

    unet: Extractor | None
    others: tuple[PixelExtractor, ...]
    adapter: UsedAdapter | None = None

    @property
    def dtype(self) -> str:
        """The precision that they are computed in."""
        return (self.others if self.unet is None else (self.unet,))[0].dtype

    def inputs(self, key: MapKey) -> tuple[MapKey, ...]:
        """(layer, timestep) of the maps that the networks are asked for where one is wanted."""
        if self.adapter is not None and key == ADAPTED == self.adapter.spec.outputs[0]:
            return self.adapter.spec.inputs
        return (key,)


def origin_of(maps: LiveMaps, extractor: AnyExtractor, adapters: Adapters) -> Origin:
    """How an extractor's maps are made.

    Raises:
        AdapterError: Their adapter is not at hand.
        StoreError: The store no longer knows what they were adapted from.
    """
    if isinstance(extractor, Extractor):
        return Origin(extractor, ())
    if isinstance(extractor, PixelExtractor):
        return Origin(None, (extractor,))
    place = adapters.place(extractor.adapter)
    if place is None:
        raise AdapterError("The adapter of these maps is in no run or file that is at hand: name it with --runs.")
    return _adapted_from(maps, extractor, open_adapter(place))


def _adapted_from(maps: LiveMaps, extractor: AdaptedExtractor, adapter: UsedAdapter) -> Origin:
    try:
        sources = [maps.extractor(key) for key in extractor.sources]
    except StoreError as error:
        raise StoreError(
            "The maps that these were adapted from are no longer in the store, and with them how they were made: make "
            "them again with `dualsd cache maps`."
        ) from error
    unet = next((own for own in sources if isinstance(own, Extractor)), None)
    return Origin(unet, tuple(own for own in sources if isinstance(own, PixelExtractor)), adapter)
