"""Adapted maps that a store keeps, as an extractor of their own: `cache maps --adapter` makes them, and whatever is
evaluated with the adapter is read from them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from featstore.backbones.base import MapKey
from featstore.backbones.registry import is_diffusion
from featstore.errors import ModelError
from featstore.pipeline.needed import MadeMaps, find_backbones
from featstore.pipeline.opened import Opened
from featstore.pipeline.plan import extractor_of, missing_maps
from featstore.progress import Progress
from featstore.store.keys import AdaptedExtractor, map_path
from featstore.store.pack import unpack
from matcher.configuration import LayerSpec
from matcher.errors import InputError
from matcher.maps import AHEAD, read_ahead


def keys_of(layers: Sequence[LayerSpec]) -> list[MapKey]:
    """(layer, timestep) of each."""
    return [(layer.layer, layer.timestep) for layer in layers]


def _extractor(opened: Opened, made: MadeMaps) -> AdaptedExtractor:
    """Under whose name maps lie that an adapter makes of those of other extractors."""
    assert opened.adapter is not None, "only adapted maps are asked for"
    sources = ([] if made.extractor is None else [made.extractor.key]) + [own.key for own in made.others.values()]
    return AdaptedExtractor(opened.adapter.fingerprint, tuple(sources), opened.request.encoding)


def find_adapted(opened: Opened, layers: Sequence[LayerSpec], images: Sequence[str]) -> MadeMaps | None:
    """Where a store has the adapted maps of some images, all of them; None where it has not. layers: the adapted
    ones."""
    adapter, request, store = opened.adapter, opened.request, opened.store
    if adapter is None or adapter.is_plain:
        return None
    unet = any(map(is_diffusion, opened.names))
    told = request.told, request.ensemble, request.compute, request.encoding
    try:
        others = {family: own.extractor for family, own in find_backbones(store, opened.names, request).items()}
    except ModelError:  # whose maps may be there all the same
        return None
    made = MadeMaps(extractor_of(store, *told) if unet else None, others)
    extractor = _extractor(opened, made)
    rows = [store.images.row(image) for image in images]
    return None if missing_maps(store, extractor, rows, keys_of(layers)) else replace(made, adapted=extractor)


def keep_adapted(
    opened: Opened, made: MadeMaps, layers: Sequence[LayerSpec], rows: Sequence[int], progress: Progress
) -> tuple[AdaptedExtractor, int]:
    """Adapt maps that were made, and keep what a store lacks of that.

    Args:
        opened: With the adapter.
        made: The maps that it is given.
        layers: The adapted ones.
        rows: Of the images, in the store.
        progress: Is told how far it is.

    Returns:
        Under whose name they lie, and how many images were adapted.

    Raises:
        InputError: For an adapter that changes no map.
        DiskFullError: Where the disk fills up.
    """
    from featstore.pipeline.features import keep

    adapter, store = opened.adapter, opened.store
    assert adapter is not None, "only adapted maps are kept here"
    if adapter.is_plain:
        raise InputError(f"The adapter {adapter.path} holds weights alone, and changes no map: leave --adapter out.")
    extractor, maps, keys = _extractor(opened, made), opened.maps(made, layers), keys_of(layers)
    missing = missing_maps(store, extractor, rows, keys)
    paths = [map_path(extractor, *key) for key in keys]
    unpack(store, paths, progress)
    store.objects.sweep(paths)
    progress.start("adapting maps", len(missing), "images")
    ids = store.images.ids
    places = ((row, layer) for row in missing for layer in layers)
    loaded = read_ahead(places, lambda place: maps.load(ids[place[0]], place[1]), AHEAD)
    last = layers[-1]

    def adapted() -> Iterator[tuple[int, MapKey, Tensor]]:
        for (row, layer), features in loaded:
            yield row, (layer.layer, layer.timestep), features
            progress.advance(int(layer is last))

    keep(store, extractor, adapted())
    return extractor, len(missing)
