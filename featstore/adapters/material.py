"""What an adapter is learned from: pairs, and the maps of their images, of a store or of a file of features."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from featstore.adapters.pseudo import Labelling, pseudo_pairs
from featstore.backbones.base import MapKey
from featstore.backbones.layers import weights_for
from featstore.backbones.noise import generator
from featstore.backbones.registry import is_diffusion
from featstore.config import (
    DEFAULT_STORE,
    AdaptConfig,
    ComputeConfig,
    EvalConfig,
    PromptConfig,
    ThetaName,
    given_options,
)
from featstore.datasets.records import MIRRORED, AnnotatedPairs, Dataset
from featstore.datasets.registry import annotations_of, open_dataset
from featstore.errors import AdapterError, UnmarkedError
from featstore.pipeline.defaults import choose_compute
from featstore.pipeline.evaluate import OF_A_STORE
from featstore.pipeline.needed import require_maps
from featstore.pipeline.opened import open_asked, take_pairs
from featstore.pipeline.pairs import (
    TRAINING,
    choose_pairs,
    choose_some,
    default_split,
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
from matcher.pairs import PairList, Pairs

HELD_OUT, VALIDATION_PAIRS = 0.25, 500
OF_VAL, APART = "of val", "held out"
"""What is validated on, behind "pairs"."""


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


@dataclass(frozen=True, slots=True)
class Lists:
    """The pairs of a data set, apart. split: whose they are. on: what `held_out` is, in words. theta: of `pairs`, None
    for the data set's own rule."""

    pairs: AnnotatedPairs
    held_out: AnnotatedPairs
    split: str
    on: str
    theta: ThetaName | None = None


def lists_of(
    dataset: Dataset,
    config: AdaptConfig,
    keys_of: Callable[[Sequence[str]], Mapping[str, str]],
    label: Callable[[Mapping[str, Sequence[str]]], AnnotatedPairs],
    progress: Progress,
) -> Lists:
    """What is learned from and what is validated on: trn and val where a data set has both and nothing else is said,
    else a seeded part of its pairs, and pairs among what is held out of them; of weak labels all, and val.

    Args:
        dataset: Whose pairs.
        config: What is said of them.
        keys_of: Gives the keys of images' contents.
        label: Gives weak labels of images by category.
        progress: Who is told.

    Raises:
        DatasetError: It has no pairs.
        AdapterError: There are too few to hold any out, or to label.
    """
    count, wanted = config.validation_pairs or VALIDATION_PAIRS, config.categories or ()
    if config.pseudo:
        split, categories = images_to_label(dataset, wanted)
        pairs = label(categories)
        progress.tell(f"weak labels: {int(pairs.counts.sum())} matches in {len(pairs)} pairs of {split}")
        # labels are the maps' own matches, so that none can tell whether the adapter is better than the maps
        held_out = choose_pairs(dataset, "val", wanted) if "val" in dataset.splits else AnnotatedPairs.of(())
        return Lists(pairs, choose_some(held_out, count), split, OF_VAL, "image")
    whole = {TRAINING, "val"} <= set(dataset.splits)
    if whole and config.hold_out is None and config.hold_by is None:
        pairs, held_out = (choose_pairs(dataset, split, wanted) for split in (TRAINING, "val"))
        return Lists(pairs, choose_some(held_out, count), TRAINING, OF_VAL)
    split = TRAINING if TRAINING in dataset.splits else default_split(dataset)
    share = HELD_OUT if config.hold_out is None else config.hold_out
    pairs = choose_pairs(dataset, split, wanted)
    if split != TRAINING:
        progress.tell(f"{dataset.name} has no trn: learned from {split}, of which figures are then no test")
    if share == 0:
        return Lists(pairs, AnnotatedPairs.of(()), split, APART)
    kept, held_out = hold_out(pairs, share, config.hold_by or "image", config.seed or 0, keys_of(images_of(pairs)))
    return Lists(kept, choose_some(held_out, count), split, APART)


def images_to_label(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """A split's name and its images' ids by category, of trn where there is one, or of all images where nobody has
    marked keypoints; `wanted` categories, all where none is named. Raises `DatasetError` where it has no images."""
    split = TRAINING if TRAINING in dataset.splits else default_split(dataset)
    try:
        members = dataset.members(split)
    except UnmarkedError:
        members = frozenset(image.id for image in dataset.images())
    found: dict[str, list[str]] = {}
    for image in dataset.images():
        if image.id in members and not image.mirrored and (not wanted or image.category in wanted):
            found.setdefault(image.category, []).append(image.id)
    return split, found


def _labelling(config: AdaptConfig) -> Labelling:
    return Labelling(config.seed or 0, config.relaxed or 0.0)


AnyPairs = TypeVar("AnyPairs", bound=PairList[Any])


def hold_out(
    pairs: AnyPairs, share: float, by: Literal["image", "category"], seed: int, keys: Mapping[str, str]
) -> tuple[AnyPairs, AnyPairs]:
    """Pairs to learn from, and pairs that share no image, or no category, with them; those between both are in neither.

    Args:
        pairs: All of them.
        share: Of each category's images, or of the kinds of categories, that is held out, above 0 and below 1.
        by: What is held out. Images that are the same file, or its mirror image, are held out together, whatever their
            categories; so are categories of a kind: car(G), car(M) and car(S) are cars.
        seed: Of the choice.
        keys: Of images' contents, by id, of as many as are known.

    Raises:
        AdapterError: One of both would be empty.
    """
    random = generator(f"hold out|{by}|{seed}")
    if by == "image":
        content = {name: keys.get(plain := name.removesuffix(MIRRORED), plain) for name in pairs.images}
        chosen: set[str] = set()
        for _, members in sorted(pairs.grouped("category").items()):
            own = sorted({content[name] for row in members for name in pairs.named(row)[:2]})
            left = [one for one in own if one not in chosen]
            count = max(round(share * len(own)) - (len(own) - len(left)), 0)
            chosen |= {left[place] for place in random.permutation(len(left))[:count].tolist()}
        is_held = np.array([content[image] in chosen for image in pairs.images], dtype=bool)
        source, target = is_held[pairs.source], is_held[pairs.target]
        kept, held = ~source & ~target, source & target
    else:
        kinds = sorted(set(map(kind_of, pairs.grouped("category"))))
        chosen = {kinds[place] for place in random.permutation(len(kinds))[: round(share * len(kinds))].tolist()}
        is_held = np.array([kind_of(category) in chosen for category in pairs.categories], dtype=bool)
        held = is_held[pairs.category]
        kept = ~held
    if not kept.any() or not held.any():
        what = "categories, of different kinds," if by == "category" else "images of a category"
        raise AdapterError(
            f"{len(pairs)} pairs are too few to hold {share:g} of them out by {by}: it would leave {int(kept.sum())} "
            f"to learn from and {int(held.sum())} to validate on; add {what} or take another --hold-out, 0 for none."
        )
    return pairs.take(kept), pairs.take(held)


def kind_of(category: str) -> str:
    """`car` of `car(S)`."""
    return re.sub(r"\s*\(.*\)$", "", category)


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
