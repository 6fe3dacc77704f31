"""What is left to be done, and what that takes, given what the stores hold: passes, pairs and bytes. Pieces are counted
in the order in which they are done, and what one makes is there for those after it. What a store lacks, and which
layers share a pass, is asked of the functions that decide it when the piece is run."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cli.output import print_table
from cli.progress import TerminalProgress
from cli.reproduction.workplace import OpenCell, OpenTraining, Survey, Workplace
from featstore.backbones.base import MapKey
from featstore.backbones.layers import unet_layers
from featstore.backbones.registry import block_of
from featstore.pipeline import plan
from featstore.pipeline.features import chunks
from featstore.pipeline.pairs import images_of
from featstore.plain_text import human_bytes
from featstore.progress import tell_disk
from featstore.prompts.base import Mode, Prompts
from featstore.prompts.saved import SavedPrompts, load_prompts
from featstore.prompts.text import TextPrompt
from featstore.store.keys import PATCH_TOKENS
from featstore.store.rows import row_bytes
from featstore.store.store import Store, open_if_there
from featstore.tuning.step import RandomPairs

CROP = 224
"""Side in pixels of what DINOv2's own preprocessing keeps of an image for a cpm."""

Prices = list[dict[str, Any]]
"""What trainings and cells take: `name`; `encode`, VAE passes; `dino`, DINOv2's; `passes` of the UNet, and `backward`,
those with a gradient; `pairs` to be matched; `flops` of the VAE and the UNet, but none of DINOv2 and the matching;
`bytes_to_write` of stores' rows."""


@dataclass
class Tally:
    """What a piece of work takes, as `Prices` has it; UNet passes by the layer that they end at."""

    pairs: int = 0
    encode: int = 0
    dino: int = 0
    passes: Counter[int] = field(default_factory=Counter)
    backward: Counter[int] = field(default_factory=Counter)
    bytes_to_write: int = 0

    def price(self, place: Workplace, name: str) -> dict[str, Any]:
        """With FLOPs."""
        from featstore.backbones.flops import encode_flops, gradient_flops, pass_flops

        model, size = place.model, place.model.image_size
        flops = self.encode * encode_flops(model, size) if self.encode else 0
        flops += sum(count * pass_flops(model, layer, size) for layer, count in self.passes.items() if count)
        flops += sum(count * gradient_flops(model, layer, size) for layer, count in self.backward.items() if count)
        return {
            "name": name,
            "encode": self.encode,
            "dino": self.dino,
            "passes": self.passes.total(),
            "backward": self.backward.total(),
            "pairs": self.pairs,
            "flops": flops,
            "bytes_to_write": self.bytes_to_write,
        }


def prices_of(place: Workplace, found: Survey) -> Prices:
    """Of all that a plan lacks, in the order in which it is done, and last of all together, where there is any."""
    made: set[tuple[Any, ...]] = set()
    priced = [_of_training(place, own, made).price(place, f"train {own.of.name}") for own in found.left_trainings]
    priced += [_of_cell(place, opened, made).price(place, opened.of.name) for opened in found.left_cells]
    if not priced:
        return []
    together = {key: sum(own[key] for own in priced) for key in priced[0] if key != "name"}
    return [*priced, {"name": "all", **together}]


def price_of_grid(place: Workplace, dataset: str, images: Sequence[str], passes: int, layer: int) -> Prices:
    """Of a grid that keeps nothing but latents. passes: per image, each as far as a layer."""
    tally = Tally(passes=Counter({layer: len(images) * passes}))
    _Images(place, dataset, images, tally, set()).latents()
    return [tally.price(place, "figure2"), tally.price(place, "all")]


def print_prices(place: Workplace, found: Prices) -> None:
    """Piece by piece, and whether the disk holds all of them, the last."""
    rows = [
        [name, *map(str, counts), f"{flops / 1e12:.3g}", human_bytes(size)]
        for name, *counts, flops, size in (own.values() for own in found)
    ]
    header = ["what is left", "VAE passes", "DINOv2", "UNet passes", "with gradient", "pairs", "TFLOP", "to write"]
    print_table("What it takes; what several need is counted where it is made first", header, rows)
    tell_disk(TerminalProgress(), place.asked.work, found[-1]["bytes_to_write"])


def _of_cell(place: Workplace, cell: OpenCell, made: set[tuple[Any, ...]]) -> Tally:
    recipe, method, tally = place.recipes[cell.of.recipe], cell.method, Tally(len(cell.pairs))
    images = _Images(place, cell.of.dataset, images_of(cell.pairs), tally, made)
    if "dino" in (method.layers or ()):
        images.patch_maps(method.dino_size or place.dino_shape.usual_size)
    if method.ensemble is None:
        return tally
    draws, steps = method.ensemble, dict(zip(unet_layers(method.layers or ()), method.timesteps or (), strict=True))
    if recipe.train is not None and Mode.named(str(recipe.train.mode)).rules.of_pairs:
        images.latents()
        images.patch_tokens()
        tally.passes.update(dict.fromkeys(steps, 2 * len(cell.pairs) * draws))
        return tally
    prompts: Prompts | None = None
    if method.prompt is not None:
        prompts = TextPrompt(method.prompt)
    elif cell.training is not None and cell.training.is_finished:
        prompts = SavedPrompts(load_prompts(cell.training.path))
    keys, told = [(str(layer), step) for layer, step in steps.items()], method.prompt or str(cell.of.training)
    for group in plan.sharing_a_pass(keys, method.prompt is None):
        unmapped = sorted({image for key in group for image in images.maps(prompts, told, draws, key)})
        own = _Images(place, cell.of.dataset, unmapped, tally, made)
        own.latents()
        tally.passes[max(block_of(layer) for layer, _ in group)] += len(unmapped) * draws
    return tally


def _of_training(place: Workplace, training: OpenTraining, made: set[tuple[Any, ...]]) -> Tally:
    settings, held_out, run = training.settings, training.held_out, training.run
    done = 0 if run is None else len(run.metrics_until(settings.steps))
    left, tally = range(done + 1, settings.steps + 1), Tally()
    trained, validated = (
        _Images(place, training.of.dataset, images_of(own), tally, made) for own in (training.pairs, held_out)
    )
    pairwise = settings.mode.rules.of_pairs
    for images in (trained, validated):
        images.latents()
        if pairwise:
            images.patch_tokens()
    validations = sum(step % settings.validate_every == 0 or step == settings.steps for step in left)
    tapped = 2 * len(held_out) if pairwise else len(validated.images)
    before = 0 if done or not held_out else tapped + len(validated.images)  # the first prompts, and the text
    tally.passes.update(dict.fromkeys(settings.layers, before + validations * tapped))
    tally.backward.update(dict.fromkeys(settings.layers, sum(_images_of_step(training, step - 1) for step in left)))
    tally.pairs = (validations + (2 if before else 0)) * len(held_out)
    return tally


def _images_of_step(training: OpenTraining, step: int) -> int:
    """Images that go through the UNet in a step, per layer: each once, or two per pair where every pair has a prompt of
    its own."""
    settings, pairs = training.settings, training.pairs
    batch = RandomPairs(len(pairs), settings.batch, settings.seed).batch(step)
    if settings.mode.rules.of_pairs:
        return 2 * len(batch)
    size = max(math.ceil(len(batch) / settings.accumulate), 1)
    return sum(len(images_of(pairs.take(part))) for part in chunks(batch, size))


@dataclass(frozen=True)
class _Images:
    """Images of a dataset whose rows a piece of work needs: what is not there, and is made by no piece before, is put
    on its tally. made: rows that are there then."""

    place: Workplace
    dataset: str
    images: Sequence[str]
    tally: Tally
    made: set[tuple[Any, ...]]

    @cached_property
    def store(self) -> Store | None:
        """None where none was made yet, and all is lacking."""
        return open_if_there(self.place.store_path(self.dataset))

    def lacking(
        self, what: tuple[Any, ...], shape: Sequence[int], missing: Callable[[Store, list[int]], Sequence[int]]
    ) -> list[str]:
        """Those without a row, whose rows are made from now on.

        Args:
            what: Of which rows.
            shape: Of a row, in float16.
            missing: Which rows of images a store lacks.
        """
        images = self.images
        if self.store is not None:
            known = self.store.images
            images = [known.ids[row] for row in missing(self.store, [*map(known.row, images)])]
        new = [image for image in images if (self.dataset, what, image) not in self.made]
        self.made.update((self.dataset, what, image) for image in new)
        self.tally.bytes_to_write += len(new) * row_bytes(shape)
        return new

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of an image's latents."""
        return self.place.model.latent_shape(self.place.model.image_size)

    def latents(self) -> None:
        """Those of the VAE."""
        self.tally.encode += len(self.lacking(("latents",), self.latent, plan.missing_latents))

    def maps(self, prompts: Prompts | None, told: str, ensemble: int, key: MapKey) -> list[str]:
        """Maps of a layer at a timestep: the images that lack one. prompts: None where they are not learned yet."""

        def missing(store: Store, rows: list[int]) -> list[int]:
            if prompts is None:
                return rows
            return plan.missing_maps(
                store, plan.extractor_of(store, prompts, ensemble, self.place.compute), rows, [key]
            )

        model = self.place.model
        return self.lacking((told, ensemble, *key), model.shape(key[0], model.image_size).map, missing)

    def patch_maps(self, size: int) -> None:
        """Those of the layer `dino`. Which DINOv2 made what is there is not asked: it may have to be fetched."""

        def missing(store: Store, rows: list[int]) -> list[int]:
            for extractor in store.pixel_extractors("dino"):
                if (extractor.size, extractor.dtype) == (size, self.place.compute.dtype_name):
                    rows = plan.missing_maps(store, extractor, rows, [("dino", None)])
            return rows

        self._tokens(size, self.place.dino_shape.side(size) ** 2, missing)

    def patch_tokens(self) -> None:
        """What a cpm's prompts are made from."""
        count = 1 + (CROP // self.place.dino_shape.patch_size) ** 2
        self._tokens(CROP, count, lambda store, rows: plan.missing_rows(store.array(PATCH_TOKENS), rows))

    def _tokens(self, size: int, count: int, missing: Callable[[Store, list[int]], list[int]]) -> None:
        self.tally.dino += len(self.lacking(("dino", size), (count, self.place.dino_shape.hidden_size), missing))
