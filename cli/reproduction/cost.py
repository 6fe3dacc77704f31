"""What is left to be done for a training or a cell, given what its stores hold."""

import math
from collections import Counter
from collections.abc import Sequence

from cli.recipe import Recipe
from cli.reproduction.plan import Cell, Training
from cli.reproduction.training import settings_of
from cli.reproduction.work import Latent, Noisy, Patches, PromptName, Work
from cli.reproduction.workplace import Workplace
from featstore.datasets.records import Pair
from featstore.pipeline.batches import chunks
from featstore.pipeline.evaluate import images_of
from featstore.pipeline.plan import extractor_of, missing_latents, missing_noisy
from featstore.prompts.base import Prompts
from featstore.prompts.file import load_prompts
from featstore.prompts.saved import SavedPrompts
from featstore.prompts.text import TextPrompt
from featstore.store.keys import PATCH_TOKENS
from featstore.store.store import Store
from featstore.tuning.data import RandomPairs
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.settings import TuningSettings

CROP = 224
"""Side in pixels of what DINOv2's own preprocessing keeps of an image for a cpm."""


def work_of_cell(place: Workplace, cell: Cell, pairs: Sequence[Pair], run: RunFolder | None) -> Work:
    """Of scoring a cell. pairs: of the test split. run: of its prompts where they are learned already."""
    recipe = place.recipes[cell.recipe]
    own = recipe.inference
    store, images = place.store_if_there(cell.dataset), images_of(pairs)
    work = Work(matched=len(pairs))
    if own.dino_size is not None:
        size = own.dino_size.value if place.image_size == own.image_size.value else place.dino_shape.usual_size
        work |= Work(patches=_patch_maps(place, cell.dataset, store, images, size))
    if own.prompt is None or own.ensemble is None:
        return work
    draws = own.ensemble.value
    if own.prompt.value == "cpm":
        noisy = (_noisy(cell.dataset, store, images, step, draws) for step in set(recipe.timestep_of.values()))
        return work | Work(
            _latents(cell.dataset, store, images),
            frozenset().union(*noisy),
            patches=_patch_tokens(place, cell.dataset, store, images),
            forward=Counter(dict.fromkeys(recipe.timestep_of, 2 * len(pairs) * draws)),
        )
    prompts = _prompts(recipe, run)
    name = PromptName(cell.recipe if cell.training is None else cell.training.name, len(recipe.timestep_of) > 1)
    if own.template is not None:
        name = PromptName(own.template.value, separate=False)
    for layer, step in recipe.timestep_of.items():
        lacking = _without_maps(place, store, images, prompts, draws, layer, step)
        work |= Work(
            _latents(cell.dataset, store, lacking),
            _noisy(cell.dataset, store, lacking, step, draws),
            frozenset((cell.dataset, image, name, draws, step, layer) for image in lacking),
        )
    return work


def work_of_training(
    place: Workplace, training: Training, pairs: Sequence[Pair], held_out: Sequence[Pair], run: RunFolder | None
) -> Work:
    """Of learning prompts. pairs: of the training set. held_out: validated on. run: where it has begun."""
    settings = settings_of(place, training, len(pairs))
    rows = [] if run is None else run.metrics_until(settings.steps)
    done = int(rows[-1][0]) if rows else 0
    store = place.store_if_there(training.dataset)
    images, validated = images_of(pairs), images_of(held_out)
    noisy = [
        *(_noisy(training.dataset, store, images, step, settings.draws) for step in set(settings.timesteps)),
        *(_noisy(training.dataset, store, validated, step, 1) for step in set(settings.validation_timesteps)),
    ]
    validations = sum(
        step % settings.validate_every == 0 or step == settings.steps for step in range(done + 1, settings.steps + 1)
    )
    pairwise = settings.mode.rules.of_pairs
    tapped = 2 * len(held_out) if pairwise else len(validated)
    passes = sum(_images_of_step(pairs, settings, step) for step in range(done, settings.steps))
    everyone = sorted({*images, *validated})
    return Work(
        _latents(training.dataset, store, everyone),
        frozenset().union(*noisy),
        patches=_patch_tokens(place, training.dataset, store, everyone) if pairwise else frozenset(),
        forward=Counter(dict.fromkeys(settings.layers, validations * tapped)),
        backward=Counter(dict.fromkeys(settings.layers, passes)),
        matched=validations * len(held_out),
    )


def _images_of_step(pairs: Sequence[Pair], settings: TuningSettings, step: int) -> int:
    """Images that go through the UNet in a step, a layer: each once, or two a pair where every pair has a prompt of its
    own."""
    batch = RandomPairs(len(pairs), settings.batch, settings.seed).batch(step)
    if settings.mode.rules.of_pairs:
        return 2 * len(batch)
    size = max(math.ceil(len(batch) / settings.accumulate), 1)
    return sum(
        len({image for index in part for image in (pairs[index].source, pairs[index].target)})
        for part in chunks(batch, size)
    )


def _prompts(recipe: Recipe, run: RunFolder | None) -> Prompts | None:
    """None where they are not learned yet."""
    if recipe.inference.template is not None:
        return TextPrompt(recipe.inference.template.value)
    return None if run is None else SavedPrompts(load_prompts(run.prompts))


def _without_maps(
    place: Workplace,
    store: Store | None,
    images: Sequence[str],
    prompts: Prompts | None,
    ensemble: int,
    layer: int,
    timestep: int,
) -> list[str]:
    """Those of `images` whose map is not kept."""
    if store is None or prompts is None:
        return [*images]
    array = store.maps(extractor_of(store, prompts, ensemble, place.compute), layer, timestep)
    if array is None:
        return [*images]
    present = array.present()
    return [image for image in images if not present[store.images.row(image)]]


def _patch_maps(
    place: Workplace, dataset: str, store: Store | None, images: Sequence[str], size: int
) -> frozenset[Patches]:
    """What is missing of the layer `dino`. Which DINOv2 made what is there is not asked: it may have to be fetched."""
    tokens = place.dino_shape.side(size) ** 2
    kept: set[str] = set()
    if store is not None:
        fitting = [own for own in store.dino_extractors() if (own.size, own.dtype) == (size, place.compute.dtype_name)]
        for array in filter(None, map(store.dino_maps, fitting)):
            kept |= {image for image, there in zip(store.images.ids, array.present(), strict=True) if there}
    return frozenset((dataset, image, size, tokens) for image in images if image not in kept)


def _patch_tokens(place: Workplace, dataset: str, store: Store | None, images: Sequence[str]) -> frozenset[Patches]:
    """What is missing of what a cpm's prompts are made from."""
    array = None if store is None else store.arrays().get(PATCH_TOKENS)
    kept: set[str] = set()
    if store is not None and array is not None:
        kept = {image for image, there in zip(store.images.ids, array.present(), strict=True) if there}
    tokens = 1 + (CROP // place.dino_shape.patch) ** 2
    return frozenset((dataset, image, CROP, tokens) for image in images if image not in kept)


def _latents(dataset: str, store: Store | None, images: Sequence[str]) -> frozenset[Latent]:
    lacking = images
    if store is not None:
        lacking = [store.images.ids[row] for row in missing_latents(store, list(map(store.images.row, images)))]
    return frozenset((dataset, image) for image in lacking)


def _noisy(dataset: str, store: Store | None, images: Sequence[str], timestep: int, draws: int) -> frozenset[Noisy]:
    if store is None:
        return frozenset((dataset, image, timestep, draw) for image in images for draw in range(draws))
    rows = missing_noisy(store, list(map(store.images.row, images)), timestep, draws)
    return frozenset((dataset, store.images.ids[row], timestep, draw) for row, draw in rows)
