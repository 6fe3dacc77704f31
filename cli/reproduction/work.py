"""What is left to be done as data: rows of stores, passes and pairs, given what the stores hold, and what that takes.
Rows are members of a set, so that what several trainings and cells ask for counts once."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cli.output import print_table
from cli.progress import TerminalProgress
from cli.reproduction.workplace import OpenCell, OpenTraining, Survey, Workplace
from featstore.backbones.base import MapKey
from featstore.backbones.layers import unet_layers
from featstore.pipeline.features import chunks
from featstore.pipeline.pairs import images_of
from featstore.pipeline.plan import extractor_of, missing_latents, missing_maps, missing_noisy, missing_rows
from featstore.plain_text import human_bytes
from featstore.progress import tell_disk
from featstore.prompts.base import Mode, Prompts
from featstore.prompts.saved import SavedPrompts, load_prompts
from featstore.prompts.text import TextPrompt
from featstore.store.keys import PATCH_TOKENS
from featstore.store.store import Store, open_if_there
from featstore.tuning.step import RandomPairs

CROP = 224
"""Side in pixels of what DINOv2's own preprocessing keeps of an image for a cpm."""


@dataclass(frozen=True, slots=True)
class StoreRow:
    """What a data set's store has of an image: so many float16 numbers."""

    dataset: str
    image: str
    numbers: int


@dataclass(frozen=True, slots=True)
class Source(StoreRow):
    """What maps and prompts are made from. which: of noisy latents timestep and draw, of DINOv2's tokens the size in
    pixels."""

    what: Literal["latents", "noisy", "dino"]
    which: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Map(StoreRow):
    """A layer's map. told: of which prompts, the same for those that are the same, and the layer where each has its
    own: maps at a timestep share a pass where that is one."""

    told: tuple[str, int | None]
    ensemble: int
    timestep: int
    layer: int


@dataclass(frozen=True, slots=True)
class Work:
    """rows: of stores. forward: UNet passes whose maps are not kept. backward: passes with a gradient. Both by the
    layer that they end at. matched: pairs."""

    rows: set[StoreRow]
    forward: Counter[int] = field(default_factory=Counter)
    backward: Counter[int] = field(default_factory=Counter)
    matched: int = 0


def passes_of(rows: Iterable[StoreRow]) -> Counter[int]:
    """The UNet passes that make maps, by the layer that they end at."""
    maps = sorted((row for row in rows if isinstance(row, Map)), key=lambda row: row.layer)
    lasts = {(row.dataset, row.image, row.told, row.ensemble, row.timestep): row for row in maps}
    found: Counter[int] = Counter()
    for last in lasts.values():
        found[last.layer] += last.ensemble
    return found


Prices = list[dict[str, Any]]
"""What trainings and cells take: `name`; `encode`, VAE passes; `dino`, DINOv2's; `passes` of the UNet, and `backward`,
those with a gradient; `pairs` to be matched; `flops` of the VAE and the UNet, but none of DINOv2 and the matching;
`bytes_to_write` of stores' rows."""


def prices_of(place: Workplace, works: Iterable[tuple[str, Work]]) -> Prices:
    """Of named pieces of work, in the order in which they are done, each beyond what those before it make; last of all
    together, where there are any."""
    priced: Prices = []
    planned: set[StoreRow] = set()
    for name, work in works:
        priced.append({"name": name, **_price(place, replace(work, rows=work.rows - planned))})
        planned |= work.rows
    if not priced:
        return []
    together = {key: sum(own[key] for own in priced) for key in priced[0] if key != "name"}
    return [*priced, {"name": "all", **together}]


def _price(place: Workplace, work: Work) -> dict[str, int]:
    from featstore.backbones.flops import encode_flops, gradient_flops, pass_flops

    model, size, passes = place.model, place.model.image_size, work.forward + passes_of(work.rows)
    sources = Counter(row.what for row in work.rows if isinstance(row, Source))
    encode = sources["latents"]
    flops = encode * encode_flops(model, size) if encode else 0
    flops += sum(count * pass_flops(model, layer, size) for layer, count in passes.items())
    flops += sum(count * gradient_flops(model, layer, size) for layer, count in work.backward.items())
    return {
        "encode": encode,
        "dino": sources["dino"],
        "passes": passes.total(),
        "backward": work.backward.total(),
        "pairs": work.matched,
        "flops": flops,
        "bytes_to_write": sum(2 * row.numbers + 4 for row in work.rows),  # float16, and a checksum
    }


def print_prices(place: Workplace, found: Prices) -> None:
    """Piece by piece, and whether the disk holds all of them, the last."""
    rows = [
        [name, *map(str, counts), f"{flops / 1e12:.3g}", human_bytes(size)]
        for name, *counts, flops, size in (own.values() for own in found)
    ]
    header = ["what is left", "VAE passes", "DINOv2", "UNet passes", "with gradient", "pairs", "TFLOP", "to write"]
    print_table("What it takes; what several need is counted where it is made first", header, rows)
    tell_disk(TerminalProgress(), place.asked.work, found[-1]["bytes_to_write"])


def work_left(place: Workplace, found: Survey) -> Iterator[tuple[str, Work]]:
    """All that a plan lacks, by name, in the order in which it is done."""
    for own in found.left_trainings:
        yield f"train {own.of.name}", _work_of_training(place, own)
    for opened in found.left_cells:
        yield opened.of.name, _work_of_cell(place, opened)


def _work_of_cell(place: Workplace, cell: OpenCell) -> Work:
    recipe, method, pairs = place.recipes[cell.of.recipe], cell.method, cell.pairs
    images = _Images.of(place, cell.of.dataset, images_of(pairs))
    rows: set[StoreRow] = set()
    if "dino" in (method.layers or ()):
        rows |= images.patch_maps(method.dino_size or place.dino_shape.usual_size)
    if method.ensemble is None:
        return Work(rows, matched=len(pairs))
    draws, steps = method.ensemble, dict(zip(unet_layers(method.layers or ()), method.timesteps or (), strict=True))
    if recipe.train is not None and Mode.named(str(recipe.train.mode)).rules.of_pairs:
        rows |= images.latents() | images.patch_tokens()
        rows.update(*(images.noisy(step, draws) for step in steps.values()))
        passes = Counter(dict.fromkeys(steps, 2 * len(pairs) * draws))
        return Work(rows, forward=passes, matched=len(pairs))
    prompts: Prompts | None = None
    if method.prompt is not None:
        prompts = TextPrompt(method.prompt)
    elif cell.training is not None and cell.training.is_finished:
        prompts = SavedPrompts(load_prompts(cell.training.path))
    for layer, step in steps.items():
        unmapped = images if prompts is None else images.without_maps(prompts, draws, (str(layer), step))
        shape = place.model.shape(layer, place.model.image_size)
        told = (method.prompt, None) if method.prompt else (str(cell.of.training), layer)
        about = math.prod(shape.map), told, draws, step, layer
        rows |= unmapped.latents() | unmapped.noisy(step, draws)
        rows.update(Map(cell.of.dataset, image, *about) for image in unmapped.images)
    return Work(rows, matched=len(pairs))


def _work_of_training(place: Workplace, training: OpenTraining) -> Work:
    settings, pairs, held_out, run = training.settings, training.pairs, training.held_out, training.run
    done = 0 if run is None else len(run.metrics_until(settings.steps))
    left = range(done + 1, settings.steps + 1)
    trained, validated = (_Images.of(place, training.of.dataset, images_of(own)) for own in (pairs, held_out))
    rows: set[StoreRow] = trained.latents() | validated.latents()
    rows.update(*(trained.noisy(step, settings.draws) for step in settings.timesteps))
    rows.update(*(validated.noisy(step, 1) for step in settings.validation_timesteps))
    pairwise = settings.mode.rules.of_pairs
    if pairwise:
        rows |= trained.patch_tokens() | validated.patch_tokens()
    validations = sum(step % settings.validate_every == 0 or step == settings.steps for step in left)
    tapped = 2 * len(held_out) if pairwise else len(validated.images)
    passes = sum(_images_of_step(training, step - 1) for step in left)
    return Work(
        rows,
        forward=Counter(dict.fromkeys(settings.layers, validations * tapped)),
        backward=Counter(dict.fromkeys(settings.layers, passes)),
        matched=validations * len(held_out),
    )


def work_of_grid(place: Workplace, dataset: str, images: Sequence[str], passes: int, layer: int) -> Work:
    """Of a grid that keeps nothing but latents. passes: per image, each as far as a layer."""
    return Work(_Images.of(place, dataset, images).latents(), forward=Counter({layer: len(images) * passes}))


def _images_of_step(training: OpenTraining, step: int) -> int:
    """Images that go through the UNet in a step, per layer: each once, or two per pair where every pair has a prompt of
    its own."""
    settings, pairs = training.settings, training.pairs
    batch = RandomPairs(len(pairs), settings.batch, settings.seed).batch(step)
    if settings.mode.rules.of_pairs:
        return 2 * len(batch)
    size = max(math.ceil(len(batch) / settings.accumulate), 1)
    return sum(len(images_of([pairs[index] for index in part])) for part in chunks(batch, size))


@dataclass(frozen=True, slots=True)
class _Images:
    """Images of a dataset, and its store: None where none was made yet, and all is lacking."""

    place: Workplace
    dataset: str
    store: Store | None
    images: Sequence[str]

    @classmethod
    def of(cls, place: Workplace, dataset: str, images: Sequence[str]) -> "_Images":
        """In the store of a workplace."""
        return cls(place, dataset, open_if_there(place.store_path(dataset)), images)

    def lacking(self, missing: Callable[[Store, list[int]], list[int]]) -> "_Images":
        """Those of whose rows `missing` says that the store lacks them."""
        if self.store is None:
            return self
        known = self.store.images
        return replace(self, images=[known.ids[row] for row in missing(self.store, [*map(known.row, self.images)])])

    def without_maps(self, prompts: Prompts, ensemble: int, key: MapKey) -> "_Images":
        """Those whose map the store lacks."""
        compute = self.place.compute
        return self.lacking(
            lambda store, rows: missing_maps(store, extractor_of(store, prompts, ensemble, compute), rows, [key])
        )

    @property
    def latent_numbers(self) -> int:
        """How many an image's latents are."""
        return math.prod(self.place.model.latent_shape(self.place.model.image_size))

    def latents(self) -> set[StoreRow]:
        """Of those that lack them."""
        numbers = self.latent_numbers
        return {Source(self.dataset, image, numbers, "latents") for image in self.lacking(missing_latents).images}

    def noisy(self, timestep: int, draws: int) -> set[StoreRow]:
        """The draws that are lacking."""
        places = [(image, draw) for image in self.images for draw in range(draws)]
        if self.store is not None:
            known = self.store.images
            lacking = missing_noisy(self.store, [*map(known.row, self.images)], timestep, draws)
            places = [(known.ids[row], draw) for row, draw in lacking]
        numbers = self.latent_numbers
        return {Source(self.dataset, image, numbers, "noisy", (timestep, draw)) for image, draw in places}

    def patch_maps(self, size: int) -> set[StoreRow]:
        """Of the layer `dino`. Which DINOv2 made what is there is not asked: it may have to be fetched."""

        def missing(store: Store, rows: list[int]) -> list[int]:
            for extractor in store.pixel_extractors("dino"):
                if (extractor.size, extractor.dtype) == (size, self.place.compute.dtype_name):
                    rows = missing_maps(store, extractor, rows, [("dino", None)])
            return rows

        return self.lacking(missing)._tokens(self.place.dino_shape.side(size) ** 2, size)

    def patch_tokens(self) -> set[StoreRow]:
        """What a cpm's prompts are made from."""
        own = self.lacking(lambda store, rows: missing_rows(store.array(PATCH_TOKENS), rows))
        return own._tokens(1 + (CROP // self.place.dino_shape.patch) ** 2, CROP)

    def _tokens(self, count: int, size: int) -> set[StoreRow]:
        numbers = count * self.place.dino_shape.channels
        return {Source(self.dataset, image, numbers, "dino", (size,)) for image in self.images}
