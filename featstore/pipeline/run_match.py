"""`match_photographs`: points of one photograph found in another, with no store needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from featstore.backbones.base import Asked, MapKey, TextEncoder, Tokenizer
from featstore.backbones.dino import load_dino, locate_dino
from featstore.backbones.layers import timesteps_for, weights_for
from featstore.backbones.noise import Latents
from featstore.backbones.stable_diffusion import Model, open_model
from featstore.config import MatchConfig
from featstore.pipeline.defaults import model_for
from featstore.pipeline.match import Featurizer, Matches, Photo, PhotoPrompt, match, open_photo
from featstore.pipeline.needed import model_of
from featstore.pipeline.prompt_choice import NEWEST, PromptChoice, TypedPrompts, choose_for_store, choose_prompts
from featstore.progress import Progress, Silent, tell_shapes
from featstore.prompts.base import Mode
from featstore.prompts.cpm import check_dino, open_pair_prompts
from featstore.prompts.text import DEFAULT_TEMPLATE, TextPrompt
from featstore.store.store import Store, open_store
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class PhotoMatches:
    """Points found in a photograph, and what they are of.

    Args:
        photos: Source and target.
        matches: Of the config's points, in their order.
        config: As it was used: what was left open is settled.
        keys: (layer, timestep) of the maps.
        model: Whose maps they are.
        image_size: Side in pixels of the squares that both photographs were resized to.
        prompt: What the UNet was told, in words.
    """

    photos: tuple[Photo, Photo]
    matches: Matches
    config: MatchConfig
    keys: tuple[MapKey, ...]
    model: str
    image_size: int
    prompt: str

    def to_json(self) -> dict[str, Any]:
        """As `dualsd match --json` writes it."""
        config = self.config
        return {
            "source": str(config.source),
            "target": str(config.target),
            "source_points": np.array(config.points, dtype=np.float32).tolist(),
            "target_points": self.matches.points.tolist(),
            "scores": self.matches.scores.tolist(),
            "layers": [layer if timestep is None else int(layer) for layer, timestep in self.keys],
            "t": [timestep for _, timestep in self.keys],
            "weights": list(config.weights or ()),
            "prompt": self.prompt,
            "readout": config.readout,
            "ensemble": config.ensemble,
            "geometry": config.geometry,
            "image_size": self.image_size,
            "model": self.model,
        }


def match_photographs(config: MatchConfig, progress: Progress | None = None) -> PhotoMatches:
    """Find points of one photograph in another.

    Args:
        config: The photographs, the points, and how they are matched.
        progress: Who is told how far it is; None for nobody.

    Returns:
        The points found, in pixels of the second photograph, each with its correlation.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    progress = Silent() if progress is None else progress
    photos = open_photo(config.source), open_photo(config.target)
    width, height = photos[0].picture.size
    for x, y in config.points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise InputError(f"The point {x:g},{y:g} lies outside {photos[0].name}, which is {width}x{height} pixels.")
    store = _store_of(config)
    model = open_model(model_for(None, config.model), config.revision) if store is None else model_of(store)
    choice = _choice(config, store, model)
    progress.tell(choice.line)
    names = config.layers or choice.layers
    keys = tuple(zip(names, timesteps_for(names, config.timesteps, choice.timesteps), strict=True))
    weights = weights_for(names, config.weights)
    header = None if store is None else store.header
    featurizer = Featurizer(
        model,
        device=config.device,
        dtype=config.dtype,
        size=config.size if header is None else header.image_size,
        seed=(config.seed or 0) if header is None else header.seed,
        latents=(Latents.SAMPLE if header is None else header.latents).value,
        batch_size=config.batch_size,
        others={"dino": Asked(config.dino, config.dino_size)},
    )
    prompt, text = photo_prompt(choice, config.category, photos, config.dino, featurizer)
    tell_shapes(progress, featurizer.shapes(names))
    source, target = featurizer.maps_of(photos, keys, prompt, config.ensemble, progress)
    readout, geometry, align = config.readout, config.geometry, config.upsample_align
    device = featurizer.compute.device
    found = match(
        source, target, config.points, weights, readout, geometry, config.upsample, upsample_align=align, device=device
    )
    used, model_id = replace(config, layers=names, weights=weights), model.location.id
    return PhotoMatches(photos, found, used, keys, model_id, featurizer.image_size, text)


def _store_of(config: MatchConfig) -> Store | None:
    if config.store is None:
        return None
    if any(given is not None for given in (config.model, config.revision, config.size, config.seed)):
        raise InputError("--model, --revision, --size and --seed do not go with --store, which has its own.")
    return open_store(config.store)


def _choice(config: MatchConfig, store: Store | None, model: Model) -> PromptChoice:
    asked = TypedPrompts.of(config, DEFAULT_TEMPLATE if config.category else "a photo")
    if store is not None:
        return choose_for_store(store, asked)
    if config.prompts == NEWEST:
        raise InputError("--prompts newest is the newest run on a store: name the store with --store, or name the run.")
    return choose_prompts(model.location.id, model.fingerprint, tuple, asked)


def photo_prompt(
    choice: PromptChoice, category: str | None, photos: Sequence[Photo], dino: str | None, featurizer: Featurizer
) -> tuple[PhotoPrompt, str]:
    """The prompt of both photographs, and what it is called. Raises `InputError` where class prompts are not told the
    category, and what finding a DINOv2 raises."""
    learned = choice.learned
    if learned is not None and learned.mode is Mode.CLASS and category is None:
        raise InputError(f"{choice.label} are told apart by category: say which with --category.")
    known = category or ""
    prompts = choice.prompts
    if prompts is not None:
        choice.check_categories([known])
        label = prompts.text(known) if isinstance(prompts, TextPrompt) else choice.label

        def of_category(layer: int, tokenizer: Tokenizer, encoder: TextEncoder) -> Tensor:
            return prompts.embeddings(layer, [known], tokenizer, encoder)[known][None]

        return PhotoPrompt(of_category, shared=not prompts.differ_by_layer), label
    assert learned is not None, "only learned prompts belong to pairs"
    name, folder = locate_dino(dino, featurizer.model.location)
    check_dino(learned, name)
    compute = featurizer.compute
    tokens = load_dino(folder, compute.device, compute.dtype).tokens([photo.picture for photo in photos])
    patches = {"source": tokens[0, 1:], "target": tokens[1, 1:]}  # without the class token

    def of_pair(layer: int, tokenizer: Tokenizer, encoder: TextEncoder) -> Tensor:
        made = open_pair_prompts(learned, tokenizer, encoder, patches.__getitem__)
        return made.of(layer, [("source", "target")])

    return PhotoPrompt(of_pair, shared=False), choice.label
