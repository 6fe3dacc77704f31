"""`dualsd cache export`: maps as files for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values, options
from cli.options import (
    BatchOption,
    DeviceOption,
    DinoOption,
    DinoSizeOption,
    DtypeOption,
    EnsembleOption,
    FallbackOption,
    JsonOption,
    LayersOption,
    OnlySplitOption,
    PromptOption,
    PromptsOption,
    RootOption,
    SkipBadOption,
    StoredOption,
    StoreOption,
    TimestepsOption,
    parse_timesteps,
)
from featstore.backbones.registry import family_of, is_other
from featstore.pipeline.defaults import (
    LEARNED_TIMESTEPS,
    TEXT_TIMESTEPS,
    check_names,
    check_of_use,
    timesteps_for,
    unet_layers,
)
from matcher.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from featstore.backbones.base import LayerShape, MapKey
    from featstore.pipeline.export import Layout
    from featstore.pipeline.needed import MadeMaps
    from featstore.store.keys import AnyExtractor
    from featstore.store.store import Store

EXAMPLES = (
    "Examples:\n\n"
    "dualsd cache export --out maps.safetensors --split test\n\n"
    "dualsd eval --features maps.safetensors --dataset demo --size 128 --layers 2,3 --weights 0.8,0.6\n\n"
    "dualsd cache export --layers 2 --t 261 --layout sd4match --out featmaps.pt\n\n"
    "dualsd cache export --layers 2 --t 261 --layout dift --out spair_ft --split test"
)


def export(
    out: Annotated[Path, typer.Option("--out", help="The file to write, or the folder of dift and dift-images.")],
    store: StoreOption = options.DEFAULT_STORE,
    root: RootOption = None,
    layers: LayersOption = None,
    t: TimestepsOption = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="features: safetensors for eval --features. sd4match: one .pt by its identifiers. dift: a .pth a "
            "category. dift-images: a .pt an image.",
        ),
    ] = "features",
    split: OnlySplitOption = None,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    fallback: FallbackOption = None,
    ensemble: EnsembleOption = options.DEFAULT_ENSEMBLE,
    dino: DinoOption = None,
    dino_size: DinoSizeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    stored: StoredOption = options.DEFAULT_STORED,
    batch_size: BatchOption = 8,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
) -> None:
    """Write maps for other programs: what eval --features reads, or what SD4Match's and DIFT's code holds.

    Maps that the store lacks are made first. The .pt layouts hold one layer, in float32; the safetensors file holds
    any, in float16, as stored. Images are as `cache build` resized them.
    """
    typed = None if layers is None else tuple(part.strip() for part in layers.split(","))
    steps = None if t is None else parse_timesteps(t, "--t")
    of_dino = {"--dino": dino, "--dino-size": dino_size}
    of_the_unet = {"--t": t, "--prompt": prompt, "--prompts": prompts, "--fallback": fallback}
    given_dino, given_unet = (
        [option for option, value in own.items() if value is not None] for own in (of_dino, of_the_unet)
    )
    if typed is not None:
        check_names(typed)
    check_of_use(typed, given_dino, given_unet)
    from cli.output import check_writable, human_bytes, print_bad, print_shapes, say, write_json
    from cli.progress import TerminalProgress
    from featstore.backbones.base import Asked
    from featstore.pipeline.evaluate import choose_pairs, describe_features, describe_others, images_of
    from featstore.pipeline.export import Export, Layout, check_out
    from featstore.pipeline.export import export as write
    from featstore.pipeline.images import check_unchanged
    from featstore.pipeline.needed import require_maps
    from featstore.pipeline.plan import MapRequest
    from featstore.pipeline.prompt_choice import TypedPrompts, choose_for_store, layers_of
    from featstore.store.source import StoredMaps
    from featstore.store.store import open_store
    from matcher.configuration import LayerSpec

    kind = _parse_layout(layout)
    check_out(kind, out)
    kept_as = option_values.parse_stored(stored)
    check_writable(json)
    opened = open_store(store)
    dataset = option_values.dataset_of(opened, root)
    compute = option_values.choose_compute(device, dtype, batch_size)
    chosen = set(opened.images.ids if split is None else images_of(choose_pairs(dataset, split, ())))
    images = [image for image in dataset.images() if image.id in chosen]
    rows = [opened.images.row(image.id) for image in images]
    choice = choose_for_store(
        opened, TypedPrompts(None if typed is None else unet_layers(typed), steps, prompt, prompts, fallback)
    )
    names = typed or tuple(map(str, layers_of(choice, None)))
    if kind is not Layout.FEATURES and len(names) != 1:
        raise InputError(f"--layout {layout} holds one layer: name one with --layers, e.g. --layers 2.")
    if unet_layers(names):
        say(choice.line)
    choice.check_categories({image.category for image in images})
    usual = TEXT_TIMESTEPS if choice.learned is None else LEARNED_TIMESTEPS
    wanted = [LayerSpec(name, step) for name, step in zip(names, timesteps_for(names, steps, usual), strict=True)]
    of_unet = unet_layers(names)
    with TerminalProgress() as progress:
        check_unchanged(opened, dataset, [image.id for image in images], progress)
        keys, text = [(layer.layer, layer.timestep) for layer in wanted], choice.of_images("cache export")
        asked = {"dino": Asked(dino, dino_size)}
        made = require_maps(opened, dataset, rows, keys, MapRequest(text, ensemble, compute, kept_as, asked), progress)
        bad = made.bad
        if bad and not skip_bad:
            raise bad[0]
        unread = {error.image_id for error in bad}
        images = [image for image in images if image.id not in unread]
        about = describe_features(opened, made.extractor, choice.describe(), ensemble, compute) if of_unet else {}
        about |= describe_others(made.others.values())
        maps = StoredMaps(opened, made.extractor, made.others)
        size = write(Export(maps, images, wanted, dataset.name, about), kind, out, progress)
        print_shapes(_stored_shape(opened, extractor, *place) for extractor, place in _places(made, keys))
    say(f"{out}: {len(images)} images, layers {','.join(names)}, {human_bytes(size)} in the layout {kind.value}")
    print_bad(bad)
    write_json(json, {"out": str(out), "layout": kind.value, "images": len(images), "bytes": size, **about})


def _places(made: "MadeMaps", keys: "Sequence[MapKey]") -> "Iterator[tuple[AnyExtractor, MapKey]]":
    """Each map that was asked for, with the extractor that it is of: other backbones' first."""
    for layer, _ in sorted(keys, key=lambda key: not is_other(key[0])):
        extractor = made.others[family_of(layer)] if is_other(layer) else made.extractor
        assert extractor is not None, "it was made"
        yield extractor, next(key for key in keys if key[0] == layer)


def _stored_shape(store: "Store", extractor: "AnyExtractor", layer: str, timestep: int | None) -> "LayerShape":
    """From the store, so that no model need be at hand where all maps are."""
    from featstore.backbones.base import LayerShape
    from featstore.store.keys import PixelExtractor

    array = store.maps(extractor, layer, timestep)
    assert array is not None, "they were made"
    channels, side, _ = array.row_shape
    if not isinstance(extractor, PixelExtractor):
        return LayerShape(layer, channels, side, store.header.image_size // side)
    about = f"; images resized to {extractor.size} pixels, {extractor.family} {extractor.network.id}"
    return LayerShape(layer, channels, side, extractor.size // side, about)


def _parse_layout(text: str) -> "Layout":
    from featstore.pipeline.export import Layout

    try:
        return Layout(text)
    except ValueError as error:
        known = ", ".join(layout.value for layout in Layout)
        raise InputError(f"--layout is one of {known}, not {text!r}.") from error
