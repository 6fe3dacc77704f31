"""Photographs that belong to no store: their feature maps, kept in memory, and points of one found in another."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from featstore.backbones.base import Asked, Backbone, LayerShape, MapKey, Networks, TextEncoder, Tokenizer, compute_on
from featstore.backbones.dino import load_dino, locate_dino
from featstore.backbones.layers import check_names, timesteps_for, weights_for
from featstore.backbones.noise import Latents, noise, posterior_noise
from featstore.backbones.registry import (
    DIFFUSION,
    asked_of,
    block_of,
    family_of,
    is_diffusion,
    open_other,
    pixel_families,
    profile_of,
    shapes_of,
)
from featstore.backbones.stable_diffusion import Model, open_model
from featstore.config import MatchConfig
from featstore.datasets.pictures import resize_to_square
from featstore.pipeline.defaults import model_for
from featstore.pipeline.features import Made, Pass, diffusion_maps, on_device, passes
from featstore.pipeline.needed import model_of
from featstore.pipeline.opened import NEWEST, PromptChoice, choose_for_store, choose_prompts
from featstore.pipeline.photos import AskedPair, Framing, Photo, as_photo, asked_pairs, check_inside, open_photo
from featstore.pipeline.plan import PlannedPasses, sharing_a_pass
from featstore.progress import Progress, Silent, tell_shapes
from featstore.prompts.base import Mode, Prompts
from featstore.prompts.cpm import check_dino, open_pair_prompts
from featstore.prompts.text import DEFAULT_TEMPLATE, TextPrompt, encode_texts
from featstore.store.store import Store, open_store
from matcher.configuration import Geometry, LayerSpec, MatchSettings, Pad, describe_layers
from matcher.errors import InputError, MapError, MatchError
from matcher.match import find_points, fuse


@dataclass(frozen=True, slots=True)
class PhotoPrompt:
    """What the UNet is told of all photographs. embedding: gives (1, 77, D) for a layer. shared: whether it is the same
    for all layers, which then share passes."""

    embedding: Callable[[int, Tokenizer, TextEncoder], Tensor]
    shared: bool


def text_prompt(text: str) -> PhotoPrompt:
    """The same text for all layers."""
    return PhotoPrompt(lambda _, tokenizer, encoder: encode_texts(tokenizer, encoder, [text]), shared=True)


@dataclass(frozen=True, slots=True)
class ImageMaps:
    """Feature maps of one image. maps: (C, h, w), float32, by (layer, timestep), in the order that they were asked for.
    size: (width, height) of the picture in pixels. image_size: side of the square that it was resized to. model: id of
    the diffusion model, whose weights are recommended; empty of features of one's own. pad: how the picture became a
    square."""

    maps: Mapping[MapKey, Tensor]
    size: tuple[int, int]
    image_size: int
    model: str = ""
    pad: Pad = Pad.STRETCH


class Featurizer:
    """Makes feature maps of photographs; networks are loaded when they are first needed, and stay loaded."""

    def __init__(
        self,
        model: str | Model,
        *,
        device: str = "auto",
        dtype: str = "auto",
        size: int | None = None,
        seed: int = 0,
        revision: str | None = None,
        unet: str | None = None,
        latents: str = Latents.SAMPLE.value,
        batch_size: int = 8,
        others: Mapping[str, Asked] | None = None,
        pad: str = Pad.STRETCH.value,
    ) -> None:
        """Find the model; no weights are loaded yet.

        Args:
            model: `sd2-1`, `sd1-5`, `demo`, a hub name `owner/model`, or a folder in diffusers' layout.
            device: as torch names it; `auto` takes a GPU where there is one.
            dtype: `float32`, `float16` or `bfloat16`; `auto` is float16, and float32 on the CPU.
            size: side S in pixels of the square that images are resized to; None for the model's own.
            seed: of all noise.
            revision: of a hub model: a branch, tag or commit.
            unet: a file or folder of a UNet that takes the place of its own, and latents without noise: CleanDIFT's.
            latents: of the VAE's posterior: `sample` (seeded) or `mean`.
            batch_size: noise draws that go through the UNet at once.
            others: which other backbones, by family (`dino`), where not the usual ones.
            pad: how images become squares: `stretch`, or `square` (padded).

        Raises:
            ModelError: where the model is out of reach, or takes no images of that size.
            InputError: where there is no such device or dtype.
        """
        self.model = open_model(model, revision, unet) if isinstance(model, str) else model
        self.image_size = self.model.image_size if size is None else size
        self.model.latent_side(self.image_size)
        self.compute = compute_on(device, dtype, batch_size)
        self.networks = self.model.load(self.compute)
        self._seed, self._latents, self._asked = seed, Latents(latents), others or {}
        self._pad = Pad(pad)
        self._backbones: dict[str, tuple[Backbone, int]] = {DIFFUSION: (self.model, self.image_size)}
        self._loaded: dict[str, Networks] = {}

    def __call__(
        self,
        image: Image.Image | NDArray[np.uint8] | Path | str,
        prompt: str = "a photo",
        layers: Sequence[str] | None = None,
        timesteps: Sequence[int | None] | None = None,
        ensemble: int = 8,
    ) -> ImageMaps:
        """Feature maps of one image.

        Args:
            image: a PIL image, an array (H, W, 3) of 0 to 255, or a path.
            prompt: what the UNet is told, e.g. "a photo of a cat".
            layers: "1" to "4" of the UNet's decoder, "dino"; None for those that are recommended for the model.
            timesteps: one per layer of the UNet, 0 to 999; None for the recommended ones.
            ensemble: noise draws whose features are averaged.

        Raises:
            ModelError: for a layer or timestep that there is not.
            MapError: for a map that is not finite.
        """
        profile = profile_of(self.model.location.id)
        names = profile.layers if layers is None else tuple(layers)
        check_names(names)
        usual = profile.text_timesteps if self.model.clean is None else None
        keys = tuple(zip(names, timesteps_for(names, timesteps, usual), strict=True))
        return self.maps_of(as_photo(image), keys, text_prompt(prompt), ensemble, Silent())

    def shapes(self, layers: Sequence[str]) -> list[LayerShape]:
        """The shapes of layers' maps. Raises `ModelError` for a layer that there is not."""
        return [shapes_of(*self._backbone(layer), [layer])[layer] for layer in layers]

    def passes(self, wanted: Sequence[MapKey], shared: bool, ensemble: int) -> int:
        """Passes through networks that an image's maps take. shared: see `PhotoPrompt`."""
        own = [key for key in wanted if is_diffusion(key[0])]
        through_unet = len(sharing_a_pass(own, not shared)) * self._draws(ensemble)
        return through_unet + (1 if own else 0) + len(pixel_families(layer for layer, _ in wanted))

    def maps_of(
        self, photo: Photo, wanted: Sequence[MapKey], prompt: PhotoPrompt, ensemble: int, progress: Progress
    ) -> ImageMaps:
        """Feature maps of a photograph, those of a store but for its roundings to float16. Raises `MapError` for a map
        that is not finite."""
        own = [key for key in wanted if is_diffusion(key[0])]
        self.model.schedule.check_timesteps(step for _, step in own if step is not None)
        others = pixel_families(layer for layer, _ in wanted)
        found: dict[MapKey, Tensor] = {}
        for _, key, features in chain(
            self._diffusion_maps(photo, own, prompt, ensemble, progress) if own else (),
            *(self._other_maps(photo, layers, progress) for layers in others.values()),
        ):
            if not features.isfinite().all():
                at = "" if key[1] is None else f" at t = {key[1]}"
                raise MapError(
                    f"The map of {photo.name}, layer {key[0]}{at}, is not finite in "
                    f"{self.compute.dtype_name}: the model overflowed; try "
                    f"{'another model' if self.compute.dtype is torch.float32 else '--dtype float32'}."
                )
            found[key] = features
        maps = {key: found[key] for key in wanted}
        return ImageMaps(maps, photo.picture.size, self.image_size, self.model.location.id, self._pad)

    def _diffusion_maps(
        self, photo: Photo, own: Sequence[MapKey], prompt: PhotoPrompt, ensemble: int, progress: Progress
    ) -> Iterator[Made[int]]:
        latents, ensemble = self._encoded(photo), self._draws(ensemble)
        progress.advance()
        text = self.networks.tokenizer, self.networks.text_encoder
        parts = [PlannedPasses(keys, (0,)) for keys in sharing_a_pass(own, not prompt.shared)]
        embeddings = {layer: prompt.embedding(block_of(layer), *text) for layer in {part.keys[0][0] for part in parts}}

        def noisy(_: int, timestep: int | None, draws: Sequence[int]) -> NDArray[np.float32]:
            if timestep is None:
                return latents[None]
            drawn = [noise(self._seed, photo.key, timestep, draw, latents.shape) for draw in draws]
            return np.stack([self.model.schedule.mix(latents, own, timestep) for own in drawn])

        def told(layer: str, indices: Sequence[int]) -> Tensor:
            return embeddings[layer].expand(len(indices), -1, -1)

        # a pass holds draws of one photograph: its maps do not depend on which others are asked for
        compute = replace(self.compute, batch_size=min(self.compute.batch_size, ensemble))
        return diffusion_maps(self.networks, parts, noisy, told, ensemble, compute, progress)

    def _draws(self, ensemble: int) -> int:
        """Of noise: one where there is none."""
        return ensemble if self.model.clean is None else 1

    def _encoded(self, photo: Photo) -> NDArray[np.float32]:
        """Latents (4, h, w)."""
        device, shape = self.compute.device, self.model.latent_shape(self.image_size)
        pixels = on_device(resize_to_square(photo.picture, self.image_size, self._pad)[None], device)
        drawn = None
        if self._latents is Latents.SAMPLE:
            drawn = torch.from_numpy(posterior_noise(self._seed, photo.key, shape))[None].to(device)
        latents: NDArray[np.float32] = self.networks.encode(pixels, drawn)[0].cpu().numpy()
        return latents

    def _other_maps(self, photo: Photo, layers: Sequence[str], progress: Progress) -> Iterator[Made[int]]:
        family, (backbone, size) = family_of(layers[0]), self._backbone(layers[0])
        if family not in self._loaded:
            self._loaded[family] = backbone.load(self.compute, layers)
        keys = [(layer, None) for layer in layers]
        batch = Pass([0], keys, (0,), 1, is_last=True), resize_to_square(photo.picture, size, self._pad)[None]
        return passes(self._loaded[family], [batch], None, self.compute.device, progress)

    def _backbone(self, layer: str) -> tuple[Backbone, int]:
        """Whose the layer is, and the side in pixels of the images that it is given."""
        family = family_of(layer)
        if family not in self._backbones:
            self._backbones[family] = open_other(layer, self._asked, self.model.location)
        return self._backbones[family]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """Where n points of image A lie in image B, and what speaks for it.

    Args:
        points: (n, 2), (x, y) in pixels of image B.
        scores: (n,), the correlation with the place found, a cosine, -1 to 1.
        margins: (n,), by how much that exceeds the best one farther away than `matcher.match.RADIUS` of the image's
            sides; below 0 where a soft readout chose a place between better ones.
        mutual: (n,), whether the way back, from the place found, ends within `matcher.match.TOLERANCE` of the image's
            sides of where it began.
        correlations: (n, H, W), with every cell of B's final map.
    """

    points: NDArray[np.float32]
    scores: NDArray[np.float32]
    margins: NDArray[np.float32]
    mutual: NDArray[np.bool_]
    correlations: NDArray[np.float32]


def match(
    maps_a: ImageMaps,
    maps_b: ImageMaps,
    points: ArrayLike,
    weights: Sequence[float] | None = None,
    readout: str = "nn",
    geometry: str = Geometry.CORNERS.value,
    upsample: int = 1,
    *,
    upsample_align: str | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    device: Any = "cpu",
) -> Matches:
    """Find points of image A in image B.

    Args:
        maps_a: of the image that has the points.
        maps_b: of the other one: the same layers at the same timesteps.
        points: (n, 2), (x, y) in pixels of image A, each inside it.
        weights: one per layer; None for those that are recommended.
        readout: nn, bilinear, softmax, kernelsoftmax or window.
        geometry: corners or half-pixel: from pixels to cells.
        upsample: whole factor on the finest map's size.
        upsample_align: geometry of upsampling; None for `geometry`.
        parameters: the readout's, as `matcher.configuration.MatchSettings` names them: beta, sigma, window,
            window_beta.
        device: where to compute.

    Returns:
        Target points, each with its score, its margin and whether it is mutual, in the order of `points`.

    Raises:
        MatchError: where maps, weights and points do not go together, or a point lies outside image A.
    """
    keys = [*maps_a.maps]
    if keys != [*maps_b.maps] or (maps_a.image_size, maps_a.pad) != (maps_b.image_size, maps_b.pad):
        raise MatchError("The maps of both images must be of the same layers and timesteps, and of images of one size.")
    found = np.array(points, dtype=np.float32)
    if found.ndim != 2 or found.shape[1] != 2:
        raise MatchError(f"Points are (n, 2), x and y in pixels of image A, not of shape {found.shape}.")
    check_inside(found, maps_a.size, "image A")
    shares = weights_for([layer for layer, _ in keys], weights, profile_of(maps_a.model))
    size, shape = maps_a.image_size, Geometry(geometry)
    align = shape if upsample_align is None else Geometry(upsample_align)
    settings = MatchSettings(size, shape, upsample, align, pad=maps_a.pad, **parameters)
    source, target = (
        fuse([own.maps[key].to(device) for key in keys], shares, upsample, align) for own in (maps_a, maps_b)
    )
    frame_a, frame_b = (Framing(own.size, size, own.pad) for own in (maps_a, maps_b))
    queries = torch.from_numpy(frame_a.to_square(found)).to(device)
    own = find_points(source, target, queries, readout, settings)
    tensors = own.points, own.scores, own.margins, own.mutual, own.correlations
    matched, *figures = (tensor.cpu().numpy() for tensor in tensors)
    return Matches(frame_b.to_picture(matched), *figures)


@dataclass(frozen=True, slots=True)
class PhotoMatches:
    """Points found in a photograph, and what they are of.

    Args:
        asked: The images, and the points by name.
        photos: Source and target.
        matches: Of the points, in their order.
        config: As it was used: what was left open is settled.
        layers: Whose maps were matched.
        model: Whose maps they are.
        image_size: Side in pixels of the squares that both photographs were resized to.
        prompt: What the UNet was told, in words.
    """

    asked: AskedPair
    photos: tuple[Photo, Photo]
    matches: Matches
    config: MatchConfig
    layers: tuple[LayerSpec, ...]
    model: str
    image_size: int
    prompt: str

    def to_json(self) -> dict[str, Any]:
        """As `dualsd match --json` writes it of one pair."""
        return {**self.pair_to_json(), **self.settings_to_json()}

    def pair_to_json(self) -> dict[str, Any]:
        """What is the pair's own."""
        return {
            "source": str(self.asked.source),
            "target": str(self.asked.target),
            "prompt": self.prompt,
            "names": list(self.asked.names),
            "source_points": self.asked.points.tolist(),
            "target_points": self.matches.points.tolist(),
            "scores": self.matches.scores.tolist(),
            "margins": self.matches.margins.tolist(),
            "mutual": self.matches.mutual.tolist(),
        }

    def settings_to_json(self) -> dict[str, Any]:
        """What all pairs of a call share."""
        return {
            **describe_layers(self.layers),
            "readout": self.config.readout,
            **self.config.parameters(self.config.readout),
            "ensemble": self.config.ensemble,
            "geometry": self.config.geometry,
            "image_size": self.image_size,
            "model": self.model,
        }

    def keypoints(self) -> list[tuple[str, ...]]:
        """The points found, as rows of `KEYPOINTS`."""
        own, points = self.matches, self.photos[1].to_stored(self.matches.points)
        figures = zip(points.tolist(), own.scores, own.margins, own.mutual, strict=True)
        image = _name_in_folder(self.asked.target)
        return [
            (image, name, f"{x:.2f}", f"{y:.2f}", f"{score:.4f}", f"{margin:.4f}", str(int(is_mutual)))
            for name, ((x, y), score, margin, is_mutual) in zip(self.asked.names, figures, strict=True)
        ]

    def annotated(self) -> list[tuple[str, ...]]:
        """The points that were asked for, as rows of `KEYPOINTS` without score, margin and mutual."""
        image, points = _name_in_folder(self.asked.source), self.photos[0].to_stored(self.asked.points)
        own = zip(self.asked.names, points.tolist(), strict=True)
        return [(image, name, f"{x:.2f}", f"{y:.2f}", "", "", "") for name, (x, y) in own]


KEYPOINTS = ("image", "name", "x", "y", "score", "margin", "mutual")
"""Columns of keypoints that were carried over: a data set's own, in pixels as stored, and what speaks for each."""


def _name_in_folder(path: Path) -> str:
    """As `--dataset folder` names an image."""
    return f"{path.absolute().parent.name}/{path.name}"


def match_photographs(config: MatchConfig, progress: Progress | None = None) -> PhotoMatches:
    """Find points of one photograph in another: `match_pairs` of a config that asks for one pair.

    Args:
        config: The photographs, the points, and how they are matched.
        progress: Who is told how far it is; None for nobody.

    Returns:
        The points found, in pixels of the second photograph, each with its correlation.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    found = list(match_pairs(config, progress))
    if len(found) != 1:
        raise InputError(f"match_photographs takes two photographs, not {len(found)} pairs: use match_pairs.")
    return found[0]


def match_pairs(config: MatchConfig, progress: Progress | None = None) -> Iterator[PhotoMatches]:
    """Find points of photographs in others. Networks are loaded once, and an image of several pairs is made into maps
    once, which are kept (35 MB with Stable Diffusion 2-1's usual layers) until its last pair is matched.

    Args:
        config: The photographs, the points, and how they are matched.
        progress: Who is told how far it is; None for nobody.

    Yields:
        Pair by pair, in their order, the points found, in pixels of its second photograph. What one is does not depend
        on which others are asked for.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    progress = Silent() if progress is None else progress
    asked = asked_pairs(config, progress)
    store = _store_of(config)
    progress.wait("loading the model")
    model = _model_of(config) if store is None else model_of(store)
    choice = _choice(config, bool(asked[0].category), store, model)
    progress.tell(choice.line)
    names = config.layers or choice.layers
    usual = choice.timesteps if model.clean is None else None
    keys = tuple(zip(names, timesteps_for(names, config.timesteps, usual), strict=True))
    weights = weights_for(names, config.weights, choice.profile)
    header = None if store is None else store.header
    featurizer = Featurizer(
        model,
        device=config.device,
        dtype=config.dtype,
        size=config.size if header is None else header.image_size,
        seed=(config.seed or 0) if header is None else header.seed,
        latents=(Latents.SAMPLE if header is None else header.latents).value,
        batch_size=config.batch_size,
        others=asked_of(config.dino, config.dino_size, config.dino_debias),
        pad=(Pad.STRETCH if header is None else header.pad).value,
    )
    told = photo_prompts(choice, asked, config.dino, featurizer)
    tell_shapes(progress, featurizer.shapes(names))
    used = replace(config, layers=names, weights=weights)
    layers = tuple(LayerSpec(*key, weight) for key, weight in zip(keys, weights, strict=True))
    how, device = (config.readout, config.geometry, config.upsample), featurizer.compute.device
    more: dict[str, Any] = {"upsample_align": config.upsample_align, "parameters": config.parameters(config.readout)}
    # what an image's maps depend on besides it: its category's prompt, or that of the pair
    scopes = [pair.category if choice.prompts is not None else place for place, pair in enumerate(asked)]
    last = {(path, scope): pair for pair, scope in zip(asked, scopes, strict=True) for path in _ends(pair)}
    is_shared = choice.prompts is not None and not choice.prompts.differ_by_layer
    total = len(last) * featurizer.passes(keys, is_shared, config.ensemble)
    progress.start("extracting features", total, "passes")
    held: dict[tuple[Path, Any], tuple[Photo, ImageMaps]] = {}
    for pair, scope in zip(asked, scopes, strict=True):
        ends = [(path, scope) for path in _ends(pair)]
        photos = [held[end][0] if end in held else open_photo(end[0]) for end in ends]
        prompt, text = told(pair, photos)
        for end, photo in zip(ends, photos, strict=True):
            if end not in held:
                held[end] = photo, featurizer.maps_of(photo, keys, prompt, config.ensemble, progress)
        maps_a, maps_b = (held[end][1] for end in ends)
        for end in ends:
            if last[end] is pair:
                held.pop(end, None)
        found = match(maps_a, maps_b, pair.points, weights, *how, **more, device=device)
        size = featurizer.image_size
        yield PhotoMatches(pair, (photos[0], photos[1]), found, used, layers, model.location.id, size, text)


def _ends(pair: AskedPair) -> tuple[Path, Path]:
    return pair.source, pair.target


def _store_of(config: MatchConfig) -> Store | None:
    if config.store is None:
        return None
    if any(given is not None for given in (config.model, config.revision, config.unet, config.size, config.seed)):
        raise InputError("--model, --revision, --unet, --size and --seed do not go with --store, which has its own.")
    return open_store(config.store)


def _model_of(config: MatchConfig) -> Model:
    return open_model(model_for(None, config.model), config.revision, config.unet)


def _choice(config: MatchConfig, has_category: bool, store: Store | None, model: Model) -> PromptChoice:
    template = DEFAULT_TEMPLATE if has_category else "a photo"
    if store is not None:
        return choose_for_store(store, config, template)
    if config.prompts == NEWEST:
        raise InputError("--prompts newest is the newest run on a store: name the store with --store, or name the run.")
    return choose_prompts(model.location.id, model.fingerprint, tuple, config, template)


def photo_prompts(
    choice: PromptChoice, asked: Sequence[AskedPair], dino: str | None, featurizer: Featurizer
) -> Callable[[AskedPair, Sequence[Photo]], tuple[PhotoPrompt, str]]:
    """What makes the prompt of a pair's photographs, and says what it is called. Raises `InputError` where class
    prompts are not told the category, and what finding a DINOv2 raises."""
    learned, prompts = choice.learned, choice.prompts
    categories = {pair.category for pair in asked}
    if learned is not None and learned.mode is Mode.CLASS and None in categories:
        raise InputError(f"{choice.label} are told apart by category: say which with --category.")
    if prompts is not None:
        choice.check_categories({category or "" for category in categories})
        by_category = {category: image_prompt(prompts, category or "") for category in categories}
        texts = {
            own: prompts.text(own or "") if isinstance(prompts, TextPrompt) else choice.label for own in by_category
        }
        return lambda pair, _: (by_category[pair.category], texts[pair.category])
    assert learned is not None, "only learned prompts belong to pairs"
    name, folder = locate_dino(dino, featurizer.model.location)
    check_dino(learned, name)
    compute = featurizer.compute
    network = load_dino(folder, compute.device, compute.dtype)

    def of_pair(_: AskedPair, photos: Sequence[Photo]) -> tuple[PhotoPrompt, str]:
        tokens = network.tokens([photo.picture for photo in photos])
        patches = {"source": tokens[0, 1:], "target": tokens[1, 1:]}  # without the class token

        def embedding(layer: int, tokenizer: Tokenizer, encoder: TextEncoder) -> Tensor:
            made = open_pair_prompts(learned, tokenizer, encoder, patches.__getitem__)
            return made.of(layer, [("source", "target")])

        return PhotoPrompt(embedding, shared=False), choice.label

    return of_pair


def image_prompt(prompts: Prompts, category: str) -> PhotoPrompt:
    def embedding(layer: int, tokenizer: Tokenizer, encoder: TextEncoder) -> Tensor:
        return prompts.embeddings(layer, [category], tokenizer, encoder)[category][None]

    return PhotoPrompt(embedding, shared=not prompts.differ_by_layer)
