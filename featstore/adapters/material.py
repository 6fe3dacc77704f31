"""What an adapter is learned from: pairs, and the maps of their images, of a store or of a file of features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from featstore.adapters.lists import lists_of
from featstore.adapters.pseudo import Labelling, pseudo_pairs
from featstore.backbones.base import MapKey
from featstore.backbones.layers import weights_for
from featstore.backbones.registry import is_diffusion
from featstore.config import (
    DEFAULT_STORE,
    AdaptConfig,
    ComputeConfig,
    EvalConfig,
    PromptConfig,
    given_options,
)
from featstore.datasets.records import AnnotatedPairs
from featstore.datasets.registry import annotations_of, open_dataset
from featstore.pipeline.defaults import choose_compute
from featstore.pipeline.evaluate import OF_A_STORE
from featstore.pipeline.needed import require_maps
from featstore.pipeline.opened import open_asked, take_pairs
from featstore.pipeline.pairs import (
    images_of,
    in_resized_frame,
    keys_from_files,
    note_oddities,
    sizes_from_files,
)
from featstore.pipeline.sources import StoredMaps, open_features
from featstore.progress import Progress, tell_shapes
from featstore.store.keys import absolute
from featstore.tuning.run_folder import identity
from matcher.configuration import Geometry, LayerSpec, MatchSettings, Pad
from matcher.errors import InputError
from matcher.maps import MapSource
from matcher.pairs import Pairs


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What is learned from.

    Args:
        pairs: To learn from, in the resized frame.
        validation: To validate on; none where nothing is held out.
        split: Whose pairs are learned from.
        on: What is validated on, `OF_VAL` or `APART`.
        maps: Where the images' maps come from.
        layers: Of the maps, with the weights that they are matched by without an adapter.
        matching: How maps become matches.
        dataset: The data set's name.
        about: Where the maps came from, for the record.
        origin: What `run.json` says of data and model.
        identity: What it is, wherever it lies: a run that goes on takes no other.
        notes: What is odd about it.
        config: As it was used, what was left open settled.
    """

    pairs: Pairs
    validation: Pairs
    split: str
    on: str
    maps: MapSource
    layers: tuple[LayerSpec, ...]
    matching: MatchSettings
    dataset: str
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    identity: str
    notes: tuple[str, ...]
    config: AdaptConfig

    @property
    def images(self) -> list[str]:
        """Whose maps are read, sorted."""
        both = (self.pairs, self.validation)
        return sorted({image for pairs in both for side in ("source", "target") for image in pairs.grouped(side)})


def open_material(config: AdaptConfig, progress: Progress) -> Material:
    """Open what a config names; maps that a store lacks are made and kept.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    if config.features is None:
        return _from_store(config, progress)
    return _from_file(config, config.features, progress)


def _labelling(config: AdaptConfig) -> Labelling:
    return Labelling(config.seed or 0, config.relaxed or 0.0)


def _asked(config: AdaptConfig, timesteps: tuple[int | None, ...] | None) -> EvalConfig:
    """The maps that are asked for, as `dualsd eval` asks for them."""
    same = {field.name for kind in (PromptConfig, ComputeConfig) for field in fields(kind)}
    same |= {"root", "layers", "ensemble", "encoding", "sync"}
    said = {name: getattr(config, name) for name in same}
    return EvalConfig(store=config.store or DEFAULT_STORE, timesteps=timesteps, **said)


def _from_store(config: AdaptConfig, progress: Progress) -> Material:
    if given_options(config, ("dataset", "size", "annotations", "pad")):
        raise InputError("--dataset, --size, --annotations and --pad go with --features: a store knows its own.")
    every = config.mode == "weights" and config.timesteps is not None
    numbers = [name for name in config.layers or () if is_diffusion(name)]
    first = (config.timesteps or ())[:1] * len(numbers) if config.layers else (config.timesteps or ())
    asked = _asked(config, first or None if every else config.timesteps)
    opened = open_asked(asked, progress)
    opened.choice.of_images("dualsd adapt")
    store, dataset = opened.store, opened.dataset
    if every:
        steps = config.timesteps or ()
        keys: tuple[MapKey, ...] = tuple(
            (name, step) for name in opened.names for step in (steps if is_diffusion(name) else (None,))
        )
    else:
        keys = opened.keys(config.timesteps)
    layers = _layers(keys, config, lambda: opened.layers(keys, None) if not every else None)
    header = store.header
    matching = _matching(config, header.image_size, header.pad)

    def label(categories: Mapping[str, Sequence[str]]) -> AnnotatedPairs:
        opened.choice.check_categories(categories.keys())
        rows = sorted(store.images.row(image) for images in categories.values() for image in images)
        made = require_maps(store, dataset, rows, keys, opened.request, progress)
        if made.bad:
            raise made.bad[0]
        maps = StoredMaps(store, made.extractor, made.others)
        how = layers, matching, store.images.size, _labelling(config), opened.request.compute.device
        return pseudo_pairs(categories, maps, *how, progress)

    lists = lists_of(dataset, config, lambda _: store.images.known_keys, label, progress)
    taken = {
        split: take_pairs(opened, split, pairs, progress, replace(asked, theta=theta))
        for split, pairs, theta in ((lists.split, lists.pairs, lists.theta), (lists.on, lists.held_out, None))
        if len(pairs)
    }
    rows = sorted({row for own in taken.values() for row in own.rows})
    made = require_maps(store, dataset, rows, keys, opened.request, progress)
    if made.bad:
        raise made.bad[0]
    tell_shapes(progress, made.shapes)
    about = opened.describe(made.extractor, made.others)
    with_noise = tuple(key for key in keys if is_diffusion(key[0]))
    used = replace(
        config,
        store=absolute(store.path),
        layers=opened.names,
        timesteps=config.timesteps if every else tuple(step for _, step in with_noise if step is not None) or None,
        ensemble=opened.request.ensemble if with_noise else None,
        prompt=opened.choice.label if opened.choice.learned is None and with_noise else None,
        prompts=opened.choice.source,
    )
    origin = {
        "store": {"path": absolute(store.path), "identity": identity(header)},
        "dataset": header.dataset,
        "model": {"id": header.model_id, "fingerprint": header.model_fingerprint},
    }
    none = taken[lists.split].pairs.take([])
    return Material(
        taken[lists.split].pairs,
        taken[lists.on].pairs if lists.on in taken else none,
        lists.split,
        lists.on,
        StoredMaps(store, made.extractor, made.others),
        layers,
        matching,
        header.dataset,
        about,
        origin,
        identity(header),
        taken[lists.split].notes,
        used,
    )


def _from_file(config: AdaptConfig, features: Path, progress: Progress) -> Material:
    given = given_options(config, ("store", *OF_A_STORE))
    if given:
        raise InputError(f"{given[0]} goes with a store, not with features from a file.")
    if config.dataset is None or config.size is None or config.layers is None:
        raise InputError(
            "--features needs --dataset (and its --root), --size, the side of the images in pixels, and --layers, the "
            "names of the file's layers."
        )
    keys: tuple[MapKey, ...] = tuple((name, None) for name in config.layers)
    layers = _layers(keys, config, lambda: None)
    file = open_features(features)
    dataset = open_dataset(config.dataset, config.root, config.annotations)
    pad = Pad(config.pad or "stretch")
    matching = _matching(config, config.size, pad)

    def label(categories: Mapping[str, Sequence[str]]) -> AnnotatedPairs:
        images = [image for own in categories.values() for image in own]
        file.check(images, [layer.map for layer in layers])
        size_of = sizes_from_files(dataset, images).__getitem__
        device = choose_compute(config.device, config.dtype, config.batch_size).device
        return pseudo_pairs(categories, file, layers, matching, size_of, _labelling(config), device, progress)

    lists = lists_of(dataset, config, partial(keys_from_files, dataset), label, progress)
    images = images_of(lists.pairs, lists.held_out)
    file.check(images, [layer.map for layer in layers])
    sizes = sizes_from_files(dataset, images)
    notes = note_oddities(dataset, [lists.split], images, keys_from_files(dataset, images), progress)
    pairs, held_out = (
        in_resized_frame(dataset, own, sizes.__getitem__, config.size, progress, pad, theta) if len(own) else None
        for own, theta in ((lists.pairs, lists.theta), (lists.held_out, None))
    )
    assert pairs is not None, "a split without pairs is refused"
    annotations = annotations_of(dataset)
    origin = {
        "features": str(features.resolve()),
        "dataset": dataset.name,
        **({} if config.root is None else {"root": str(config.root.resolve())}),
        **({} if annotations is None else {"annotations": annotations}),
    }
    return Material(
        pairs,
        pairs.take([]) if held_out is None else held_out,
        lists.split,
        lists.on,
        file,
        layers,
        matching,
        dataset.name,
        {"features": "own", "layers": list(config.layers), "size": config.size},
        origin,
        _file_identity(features, dataset.name, config.size),
        notes,
        replace(config, features=features.resolve(), root=None if config.root is None else config.root.resolve()),
    )


def _file_identity(features: Path, dataset: str, size: int) -> str:
    """Of its names and shapes and its size in bytes, not of its values: it may be larger than memory."""
    with features.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
    digest = hashlib.blake2b(header, digest_size=8).hexdigest()
    return json.dumps([digest, features.stat().st_size, dataset, size])


def _layers(keys: Sequence[MapKey], config: AdaptConfig, usual: Any) -> tuple[LayerSpec, ...]:
    """The maps with their weights: those that were asked for, the usual ones, or, to learn weights, equal ones."""
    names = tuple(dict.fromkeys(name for name, _ in keys))
    if config.weights is not None:
        by_name = dict(zip(names, weights_for(names, config.weights), strict=True))
    elif config.mode == "weights":
        try:
            found = usual()
        except InputError:
            found = None
        return found or tuple(LayerSpec(*key) for key in keys)
    else:
        found = usual()
        if found is not None:
            return tuple(found)
        by_name = dict(zip(names, weights_for(names, None), strict=True))
    return tuple(LayerSpec(*key, by_name[key[0]]) for key in keys)


def _matching(config: AdaptConfig, size: int, pad: Pad) -> MatchSettings:
    geometry = config.geometry or "corners"
    return MatchSettings(size, Geometry(geometry), 1, Geometry(config.upsample_align or geometry), pad=pad)
