"""What is left to be done as data: rows of stores, passes and pairs, given what the stores hold, and what that takes.
Rows are members of a set, so that what several trainings and cells ask for counts once."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cli.output import print_table
from cli.progress import TerminalProgress
from cli.reproduction.workplace import OpenCell, OpenTraining, Survey, Workplace
from featstore.backbones.layers import unet_layers
from featstore.pipeline.features import chunks
from featstore.pipeline.pairs import images_of
from featstore.pipeline.plan import extractor_of
from featstore.plain_text import human_bytes
from featstore.progress import tell_disk
from featstore.prompts.base import Mode, Prompts
from featstore.prompts.saved import SavedPrompts, load_prompts
from featstore.prompts.text import TextPrompt
from featstore.store.keys import PATCH_TOKENS
from featstore.store.rows import RowArray
from featstore.store.store import Store
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
class Latent(StoreRow):
    """The image's latent."""


@dataclass(frozen=True, slots=True)
class Patches(StoreRow):
    """What DINOv2 makes of the image at a size in pixels."""

    size: int


@dataclass(frozen=True, slots=True)
class Map(StoreRow):
    """A layer's map. prompts: the same for prompts that are the same. alone: whether layers have prompts of their own,
    and so share no pass."""

    prompts: str
    alone: bool
    ensemble: int
    timestep: int
    layer: int

    @property
    def of_pass(self) -> tuple[Any, ...]:
        """The same for maps that one pass gives."""
        own = self.layer if self.alone else None
        return self.dataset, self.image, self.prompts, self.ensemble, self.timestep, own


@dataclass(frozen=True, slots=True)
class Work:
    """rows: of stores. forward: UNet passes whose maps are not kept. backward: passes with a gradient. Both by the
    layer that they end at. matched: pairs."""

    rows: frozenset[StoreRow] = frozenset()
    forward: Counter[int] = field(default_factory=Counter)
    backward: Counter[int] = field(default_factory=Counter)
    matched: int = 0

    def __or__(self, other: "Work") -> "Work":
        """Both, shared rows once."""
        counts = self.forward + other.forward, self.backward + other.backward, self.matched + other.matched
        return Work(self.rows | other.rows, *counts)

    def without(self, other: "Work") -> "Work":
        """What is left once the rows of another are there."""
        return replace(self, rows=self.rows - other.rows)

    @property
    def passes(self) -> Counter[int]:
        """UNet passes without a gradient by the layer that they end at: those of maps, shared by layers where their
        prompts are, and `forward`."""
        found = Counter(self.forward)
        maps = sorted((row for row in self.rows if isinstance(row, Map)), key=lambda row: row.layer)
        for last in {row.of_pass: row for row in maps}.values():
            found[last.layer] += last.ensemble
        return found


Prices = list[dict[str, Any]]
"""What trainings and cells take: `name`; `encode`, VAE passes; `dino`, DINOv2's; `passes` of the UNet, and `backward`,
those with a gradient; `pairs` to be matched; `flops` of the VAE and the UNet, but none of DINOv2 and the matching;
`bytes_to_write` of stores' rows."""


def prices_of(place: Workplace, works: Iterable[tuple[str, Work]]) -> Prices:
    """Of named pieces of work, in the order in which they are done, each beyond what those before it make; last of all
    together, where there are any."""
    priced, planned = [], Work()
    for name, work in works:
        priced.append(_price(place, name, work.without(planned)))
        planned |= work
    return [*priced, _price(place, "all", planned)] if priced else []


def _price(place: Workplace, name: str, work: Work) -> dict[str, Any]:
    from featstore.backbones.flops import encode_flops, gradient_flops, pass_flops

    model, size = place.model, place.image_size
    rows, passes = Counter(type(row) for row in work.rows), work.passes
    flops = rows[Latent] * encode_flops(model, size) if rows[Latent] else 0
    flops += sum(count * pass_flops(model, layer, size) for layer, count in passes.items())
    flops += sum(count * gradient_flops(model, layer, size) for layer, count in work.backward.items())
    return {
        "name": name,
        "encode": rows[Latent],
        "dino": rows[Patches],
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
    tell_disk(TerminalProgress(), place.folder, found[-1]["bytes_to_write"])


def work_left(place: Workplace, found: Survey) -> Iterator[tuple[str, Work]]:
    """All that a plan lacks, by name, in the order in which it is done."""
    for own in found.left_trainings:
        yield f"train {own.of.name}", _work_of_training(place, own)
    for opened in found.left_cells:
        yield opened.of.name, _work_of_cell(place, opened)


def _work_of_cell(place: Workplace, cell: OpenCell) -> Work:
    recipe, method, pairs = place.recipes[cell.of.recipe], cell.method, cell.pairs
    lacking = _Lacking.of(place, cell.of.dataset, images_of(pairs))
    rows: set[StoreRow] = set()
    if "dino" in (method.layers or ()):
        rows.update(lacking.patch_maps(method.dino_size or place.dino_shape.usual_size))
    if method.ensemble is None:
        return Work(frozenset(rows), matched=len(pairs))
    draws, steps = method.ensemble, dict(zip(unet_layers(method.layers or ()), method.timesteps or (), strict=True))
    if recipe.train is not None and Mode.named(str(recipe.train.mode)).rules.of_pairs:
        rows.update(lacking.latents(), lacking.patch_tokens())
        passes = Counter(dict.fromkeys(steps, 2 * len(pairs) * draws))
        return Work(frozenset(rows), forward=passes, matched=len(pairs))
    prompts: Prompts | None = None
    if method.prompt is not None:
        prompts, name, alone = TextPrompt(method.prompt), method.prompt, False
    else:
        name, alone = cell.of.name if cell.of.training is None else cell.of.training.name, len(steps) > 1
        if cell.training is not None and cell.training.is_finished:
            prompts = SavedPrompts(load_prompts(cell.training.path))
    for layer, step in steps.items():
        unmapped = lacking.of_maps(prompts, draws, layer, step)
        rows.update(unmapped.latents())
        shape = place.model.shape(layer, place.image_size)
        about = shape.channels * shape.side**2, name, alone, draws, step, layer
        rows.update(Map(cell.of.dataset, image, *about) for image in unmapped.images)
    return Work(frozenset(rows), matched=len(pairs))


def _work_of_training(place: Workplace, training: OpenTraining) -> Work:
    settings, pairs, held_out, run = training.settings, training.pairs, training.held_out, training.run
    done = 0 if run is None else len(run.metrics_until(settings.steps))
    left = range(done + 1, settings.steps + 1)
    trained, validated = images_of(pairs), images_of(held_out)
    everyone = _Lacking.of(place, training.of.dataset, sorted({*trained, *validated}))
    rows: set[StoreRow] = {*everyone.latents()}
    pairwise = settings.mode.rules.of_pairs
    if pairwise:
        rows.update(everyone.patch_tokens())
    validations = sum(step % settings.validate_every == 0 or step == settings.steps for step in left)
    tapped = 2 * len(held_out) if pairwise else len(validated)
    passes = sum(_images_of_step(training, step - 1) for step in left)
    return Work(
        frozenset(rows),
        forward=Counter(dict.fromkeys(settings.layers, validations * tapped)),
        backward=Counter(dict.fromkeys(settings.layers, passes)),
        matched=validations * len(held_out),
    )


def work_of_grid(place: Workplace, dataset: str, images: Sequence[str], passes: int, layer: int) -> Work:
    """Of a grid that keeps nothing but latents. passes: per image, each as far as a layer."""
    lacking = _Lacking.of(place, dataset, images)
    return Work(frozenset(lacking.latents()), forward=Counter({layer: len(images) * passes}))


def _images_of_step(training: OpenTraining, step: int) -> int:
    """Images that go through the UNet in a step, per layer: each once, or two per pair where every pair has a prompt of
    its own."""
    settings, pairs = training.settings, training.pairs
    batch = RandomPairs(len(pairs), settings.batch, settings.seed).batch(step)
    if settings.mode.rules.of_pairs:
        return 2 * len(batch)
    size = max(math.ceil(len(batch) / settings.accumulate), 1)
    return sum(len(images_of(pairs.take(part))) for part in chunks(batch, size))


@dataclass(frozen=True, slots=True)
class _Lacking:
    """What a dataset's store, None where there is none yet, lacks of some images."""

    place: Workplace
    dataset: str
    store: Store | None
    images: Sequence[str]

    @classmethod
    def of(cls, place: Workplace, dataset: str, images: Sequence[str]) -> "_Lacking":
        """In the store of a workplace."""
        return cls(place, dataset, place.store_if_there(dataset), images)

    @property
    def latent_numbers(self) -> int:
        """Of a latent."""
        model = self.place.model
        return model.latent_channels * model.latent_side(self.place.image_size) ** 2

    def latents(self) -> Iterator[Latent]:
        for image in self.without(None if self.store is None else self.store.latents()).images:
            yield Latent(self.dataset, image, self.latent_numbers)

    def of_maps(self, prompts: Prompts | None, ensemble: int, layer: int, timestep: int) -> "_Lacking":
        """Of those images whose map is not kept. prompts: None where they are not learned yet."""
        if self.store is None or prompts is None:
            return self
        extractor = extractor_of(self.store, prompts, ensemble, self.place.compute)
        return self.without(self.store.maps(extractor, layer, timestep))

    def patch_maps(self, size: int) -> Iterator[Patches]:
        """Of the layer `dino`. Which DINOv2 made what is there is not asked: it may have to be fetched."""
        lacking, fitting = self, (size, self.place.compute.dtype_name)
        if self.store is not None:
            for extractor in self.store.pixel_extractors("dino"):
                if (extractor.size, extractor.dtype) == fitting:
                    lacking = lacking.without(self.store.maps(extractor, "dino", None))
        return lacking.patches(size, self.place.dino_shape.side(size) ** 2)

    def patch_tokens(self) -> Iterator[Patches]:
        """What a cpm's prompts are made from."""
        lacking = self.without(None if self.store is None else self.store.arrays().get(PATCH_TOKENS))
        return lacking.patches(CROP, 1 + (CROP // self.place.dino_shape.patch_size) ** 2)

    def patches(self, size: int, tokens: int) -> Iterator[Patches]:
        """So many tokens of every image."""
        numbers = self.place.dino_shape.hidden_size * tokens
        return (Patches(self.dataset, image, numbers, size) for image in self.images)

    def without(self, array: RowArray | None) -> "_Lacking":
        """Of the images that have no row in an array of the store."""
        if self.store is None or array is None:
            return self
        present, row = array.present(), self.store.images.row
        return replace(self, images=tuple(image for image in self.images if not present[row(image)]))
