"""`build` and `make_maps`: a store filled with latents and noisy latents, and with feature maps."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from featstore.backbones.base import MapKey
from featstore.backbones.models import Model, open_model
from featstore.backbones.noise import Latents
from featstore.backbones.registry import TITLES, is_other
from featstore.config import BuildConfig, KeptMapsConfig, MapsConfig
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import ImageError
from featstore.pipeline import build as stage
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.defaults import choose_compute, model_for
from featstore.pipeline.distributed import ALONE, AUTO, Part, Processes, find_part, join_processes, launched, parse_part
from featstore.pipeline.kept_adapted import keep_adapted
from featstore.pipeline.needed import estimate_maps, find_backbones, model_of, require_maps
from featstore.pipeline.opened import Opened, open_asked
from featstore.pipeline.pairs import choose_pairs, images_of
from featstore.pipeline.plan import FoundBackbone, extractor_of
from featstore.plain_text import human_bytes
from featstore.progress import Progress, Silent, spell_bad, tell_disk, tell_shapes
from featstore.store.keys import AnyExtractor, parse_location
from featstore.store.store import open_if_there
from matcher.configuration import Pad
from matcher.errors import InputError

Divided = TypeVar("Divided", BuildConfig, MapsConfig)


def build(config: BuildConfig, progress: Progress | None = None) -> stage.BuildReport:
    """Encode every image of a data set once (VAE) and keep latents and noisy latents.

    A second run does only what is missing: images that are new or whose file changed are encoded, and those that are no
    longer there are named. Of an existing store, data set and model need not be named again. Any number of jobs may
    fill one store at once, each with a part of the images; under torchrun each process takes one.

    Args:
        config: What is cached, of what.
        progress: Who is told how far it is; None for nobody.

    Returns:
        What was made, by all processes together.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is; the first image's that cannot be read,
            once all others are done, unless `skip_bad`.
    """
    progress, config = Silent() if progress is None else progress, _settled(config)
    dataset, model, request = _asked(config, launched())
    compute = choose_compute(config.device, config.dtype, config.batch_size)
    processes = join_processes()
    progress = progress if processes.is_main else Silent()
    _tell_model(progress, model, request)
    # what cannot be read is said once all processes are done
    reports = processes.gather(stage.build(dataset, model, request, compute, True, progress))
    report = stage.together(reports)
    if report.bad and not config.skip_bad:
        raise report.bad[0]
    changes = {"new": report.new, "had changed": report.stale, "gone": len(report.gone)}
    told = "".join(f", {count} {what}" for what, count in changes.items() if count)
    _tell_shares(progress, [own.images for own in reports])
    progress.tell(
        f"{config.store}: {_spell_part(config.part)}{report.images} images of {dataset.name}, {report.encoded} "
        f"encoded, {report.skipped} skipped{told}"
    )
    noised = f"{report.noised} noisy latents at t = {', '.join(map(str, request.timesteps))}; "
    progress.tell(
        f"{noised if request.timesteps else ''}{human_bytes(report.bytes_written)} written in {report.seconds:.1f} s"
    )
    if report.gone:
        named = ", ".join(report.gone[:3]) + (", ..." if len(report.gone) > 3 else "")
        progress.tell(
            f"gone from the data set: {named}; their rows are kept in case they come back, `dualsd cache prune --gone` "
            "deletes them"
        )
    for line in spell_bad(report.bad):
        progress.tell(line)
    return report


def estimate_build(config: BuildConfig, progress: Progress | None = None) -> stage.BuildCost:
    """What `build` would take; nothing is written. See `build`."""
    progress, config = Silent() if progress is None else progress, _settled(config)
    dataset, model, request = _asked(config, ALONE)  # what is only said is said of all
    _tell_model(progress, model, request)
    cost = stage.estimate(dataset, model, request, progress)
    progress.tell(f"{cost.images} images, {cost.encode} to encode (VAE passes), {cost.noise} noisy latents to make")
    progress.tell(f"{human_bytes(cost.bytes_to_write)} in {cost.files_to_write} files to write")
    tell_disk(progress, request.path, cost.bytes_to_write)
    return cost


def _asked(config: BuildConfig, launch: Processes) -> tuple[Dataset, Model, stage.BuildRequest]:
    """What is to be built; what was settled when a store was made need not be said again."""
    place = parse_location(config.store)
    known = open_if_there(place)
    if known is not None:
        header = known.header
        is_same = config.dataset in (None, header.dataset)
        config = replace(
            config,
            dataset=config.dataset or header.dataset,
            root=config.root or (Path(header.dataset_root) if is_same and header.dataset_root else None),
            annotations=config.annotations
            or (Path(header.dataset_annotations) if is_same and header.dataset_annotations else None),
            model=config.model or header.model_id,
            revision=config.revision or (header.model_revision if config.model is None else None),
            unet=config.unet or (header.model_unet if config.model is None else None),
            size=config.size or header.image_size,
            seed=header.seed if config.seed is None else config.seed,
            latents=config.latents or header.latents.value,
            pad=config.pad or header.pad.value,
        )
    dataset = open_dataset(config.dataset or "demo", config.root, config.annotations)
    model = open_model(model_for(dataset.name, config.model), config.revision, config.unet)
    latents, kept = Latents(config.latents or "sample"), dict.fromkeys(config.timesteps)
    timesteps = () if model.clean else tuple(step for step in kept if step is not None)
    part, seed = _part(config.part, launch), config.seed or 0
    request = stage.BuildRequest(
        *(place, config.root, config.size, latents, seed, timesteps, config.ensemble, part, config.sync),
        pad=Pad(config.pad or "stretch"),
    )
    return dataset, model, request


def _tell_model(progress: Progress, model: Model, request: stage.BuildRequest) -> None:
    side = model.image_size if request.image_size is None else request.image_size
    noise = f"noise: {model.schedule.spell()}"
    if model.clean is not None:
        noise = f"UNet {model.clean.path}, told t = {model.clean.timestep:g}, without noise"
    padded = "padded " if request.pad is Pad.SQUARE else ""
    progress.tell(f"model {model.location.id}, {padded}images of {side} pixels; {noise}")


def _settled(config: Divided) -> Divided:
    """A config whose `part` is no longer auto: written out, or None under torchrun, whose processes divide the images
    by themselves. Raises what `find_part` raises."""
    if config.part != AUTO:
        return config
    part = find_part(os.environ)
    return replace(config, part=None if launched().count > 1 else f"{part.number}/{part.count}")


def _part(text: str | None, launch: Processes) -> Part:
    """The share of images that `part` names, else that of a process. Raises `InputError` where both divide them."""
    if text is None:
        return launch.part
    part = parse_part(text)
    if launch.count > 1:
        raise InputError("--part and torchrun both divide the images: leave --part out, each process takes its share.")
    return part


def _spell_part(text: str | None) -> str:
    """Before what is said of a part."""
    return "" if text is None else f"part {text.strip()}, "


def _tell_shares(progress: Progress, images: Sequence[int]) -> None:
    """How many images each of several processes took."""
    if len(images) > 1:
        progress.tell(f"{len(images)} processes took {', '.join(map(str, images))} images")


UNET = "unet"
ADAPTER = "adapter"
_NAMES = {UNET: "UNet", **TITLES}
"""What a family of networks is called where passes are counted; others by their own name."""


@dataclass(frozen=True, slots=True)
class MapsReport:
    """What making maps made.

    Args:
        images: In the part that was asked for, of all processes.
        passes: By family, `unet` or another backbone's, of those whose layers were asked for; `adapter`, images.
        extractors: Under whose names the maps lie, by family.
        bad: Images that could not be read, whose maps are missing.
    """

    images: int
    passes: Mapping[str, int]
    extractors: Mapping[str, str]
    bad: tuple[ImageError, ...]

    def to_json(self) -> dict[str, Any]:
        """As `dualsd cache maps --json` writes it."""
        found: dict[str, Any] = {"images": self.images}
        for family, passes in self.passes.items():
            prefix = "" if family == UNET else f"{family}_"
            found |= {f"{prefix}passes": passes, f"{prefix}extractor": self.extractors[family]}
        return found


@dataclass(frozen=True, slots=True)
class AskedMaps:
    """What maps are to be made, of which images. rows: theirs in the store."""

    opened: Opened
    images: Sequence[str]
    rows: Sequence[int]
    wanted: tuple[MapKey, ...]


def make_maps(config: MapsConfig, progress: Progress | None = None) -> MapsReport:
    """Run the UNet as far as each layer and keep its feature maps; latents are made where they lack.

    Args:
        config: Which maps, of which images.
        progress: Who is told how far it is; None for nobody.

    Returns:
        What was made, by all processes together.

    Raises:
        InputError: In one of its kinds, see `build`.
    """
    progress, config = Silent() if progress is None else progress, _settled(config)
    asked = asked_maps(config, _part(config.part, launched()), "cache maps", progress)
    processes = join_processes()
    progress = progress if processes.is_main else Silent()
    opened = asked.opened
    check_unchanged(opened.store, opened.dataset, asked.images, progress)
    _tell_missing(asked, progress)
    made = require_maps(opened.store, opened.dataset, asked.rows, asked.wanted, opened.request, progress)
    tell_shapes(progress, (shape for shape in made.shapes if is_other(shape.name)))  # the UNet's are told before
    own_passes = {UNET: made.images_times_timesteps * opened.request.ensemble, **made.passes}
    extractors: dict[str, AnyExtractor] = {} if made.extractor is None else {UNET: made.extractor}
    extractors |= made.others
    if opened.adapter is not None:
        opened.describe(made.extractor, made.others)  # refuses an adapter of other maps
        broken = {opened.store.images.row(error.image_id) for error in made.bad}
        good = [row for row in asked.rows if row not in broken]
        layers = opened.layers(asked.wanted, None)
        extractors[ADAPTER], own_passes[ADAPTER] = keep_adapted(opened, made, layers, good, progress)
    shares = processes.gather((len(asked.rows), own_passes))
    bad = processes.gather_bad(made.bad, config.skip_bad)
    images = sum(count for count, _ in shares)
    _tell_shares(progress, [count for count, _ in shares])
    passes = {name: sum(theirs[name] for _, theirs in shares) for name in extractors}
    for name, extractor in extractors.items():
        progress.tell(
            f"{_spell_part(config.part)}{images} images: {passes[name]} {_NAMES.get(name, name)} passes made, the rest "
            f"was there; extractor {extractor.key}"
        )
    for line in spell_bad(bad):
        progress.tell(line)
    return MapsReport(images, passes, {name: own.key for name, own in extractors.items()}, bad)


def estimate_making_maps(config: MapsConfig, progress: Progress | None = None) -> Mapping[str, int]:
    """What `make_maps` would take, by name; nothing is written. See `make_maps`."""
    progress, config = Silent() if progress is None else progress, _settled(config)
    part = _part(config.part, ALONE)  # what is only said is said of all
    asked = asked_maps(config, part, "cache maps", progress)
    store = asked.opened.store
    check_unchanged(store, asked.opened.dataset, asked.images, progress)
    found = find_backbones(store, asked.opened.names, asked.opened.request)
    total = _tell_missing(asked, progress, found)
    for one in found.values():
        tell_shapes(progress, one.shapes.values())
    others = "".join(f", {total[f'{name}_passes']} {_NAMES.get(name, name)} passes" for name in found)
    progress.tell(
        f"{len(asked.rows)} images: {total['encode']} to encode (VAE passes), {total['passes']} UNet passes{others}"
    )
    progress.tell(f"{human_bytes(total['bytes_to_write'])} in {total['files_to_write']} files to write")
    tell_disk(progress, store.path, total["bytes_to_write"])
    return total


def asked_maps(config: KeptMapsConfig, part: Part, command: str, progress: Progress) -> AskedMaps:
    """What a config asks for. Raises `InputError`, in one of its kinds, for whatever cannot be used as it is."""
    opened = open_asked(config, progress)
    store, choice = opened.store, opened.choice
    choice.of_images(command)
    chosen = [*store.images.rows] if config.split is None else images_of(choose_pairs(opened.dataset, config.split, ()))
    images = part.of(chosen)
    rows = [store.images.row(image) for image in images]
    choice.check_categories({store.images.categories[row] for row in rows})
    progress.tell(f"model {store.header.model_id}, images of {store.header.image_size} pixels")
    return AskedMaps(opened, images, rows, opened.keys(config.timesteps))


def _tell_missing(
    asked: AskedMaps, progress: Progress, found: Mapping[str, FoundBackbone] | None = None
) -> dict[str, Any]:
    """What making maps would take, the UNet's shapes told where any of its maps is missing."""
    store, request = asked.opened.store, asked.opened.request
    extractor = extractor_of(store, request.told, request.ensemble, request.compute, request.encoding)
    cost = estimate_maps(store, asked.rows, asked.wanted, extractor, request.told, found)
    if cost.passes:
        model, size = model_of(store), store.header.image_size
        tell_shapes(progress, (model.shape(layer, size) for layer, _ in asked.wanted if not is_other(layer)))
    total = {name: value for name, value in asdict(cost).items() if name != "others"}
    return total | {f"{family}_passes": count for family, count in cost.others.items()}
