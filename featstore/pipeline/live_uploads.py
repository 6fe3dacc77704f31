"""Pictures that are dropped on the workbench: kept in memory alone, and made into maps where the model is at hand."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from featstore.backbones.base import Asked
from featstore.backbones.locate import is_at_hand
from featstore.errors import ImageError, ModelError, PromptError, StoreError
from featstore.pipeline.live import LiveLayer, LiveMaps
from featstore.pipeline.live_adapters import Adapters, Origin, origin_of
from featstore.pipeline.photos import Photo, photo_of
from featstore.progress import Silent
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import prompts_of
from featstore.prompts.text import TextPrompt
from featstore.store.keys import Extractor
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.match import Featurizer, PhotoPrompt

MOST = 16
"""Pictures that are kept; of more those that came first go."""


@dataclass(frozen=True, slots=True, eq=False)
class UploadedImage:
    """A picture that was dropped (a `featstore.pipeline.live.Pictured`). category: fills in the prompt."""

    name: str
    photo: Photo
    category: str
    make: Callable[["UploadedImage", LiveLayer], Tensor]
    is_cached = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as a viewer shows it."""
        return self.photo.picture.size

    def map(self, layer: LiveLayer) -> Tensor:
        """See `Pictured.map`. The first one takes as long as the networks do."""
        return self.make(self, layer)


class Uploads:
    """The pictures that were dropped, and the networks that make their maps, loaded once."""

    def __init__(self, maps: LiveMaps, learned: Callable[[], Sequence[LearnedPrompts]], adapters: Adapters) -> None:
        """learned: the prompts of all runs on the store. adapters: those that are at hand."""
        self._maps, self._learned, self._adapters = maps, learned, adapters
        self._images: OrderedDict[Hashable, UploadedImage] = OrderedDict()
        self._count = 0
        self._featurizers: dict[str, Featurizer] = {}

    @property
    def is_possible(self) -> bool:
        """Whether the store's model lies on this machine."""
        header = self._maps.store.header
        try:
            return is_at_hand(header.model_id, header.model_revision)
        except ModelError:
            return False

    def add(self, data: bytes, category: str) -> UploadedImage:
        """Take a picture.

        Args:
            data: Bytes of an image file.
            category: What it shows, for prompts that are told.

        Raises:
            InputError: It cannot be decoded.
            StoreError: The store's model is not at hand.
        """
        if not self.is_possible:
            model = self._maps.store.header.model_id
            raise StoreError(f"The model {model} is not on this machine, so no maps of new pictures can be made.")
        name = f"upload-{self._count + 1}"
        try:
            photo = photo_of(name, "that was dropped", data)
        except ImageError as error:  # of nobody's data set
            raise InputError(str(error)) from error
        self._count += 1
        self._images[name] = UploadedImage(name, photo, category, self._map)
        while len(self._images) > MOST:
            self._images.popitem(last=False)
        return self._images[name]

    def get(self, name: str) -> UploadedImage | None:
        """The picture of a name; None where it is no longer kept."""
        return self._images.get(name)

    def _map(self, image: UploadedImage, layer: LiveLayer) -> Tensor:
        return self._maps.keep(("map", image.name, layer), lambda: self._make(image, layer))

    def _make(self, image: UploadedImage, layer: LiveLayer) -> Tensor:
        # only now: its libraries take longer to load than the workbench itself
        from featstore.pipeline.match import text_prompt

        origin = origin_of(self._maps, self._maps.extractor(layer.extractor), self._adapters)
        prompt, ensemble = text_prompt(""), 1
        if origin.unet is not None:
            prompt, ensemble = self._prompt(origin.unet, image), origin.unet.ensemble
        key = layer.layer, layer.t
        featurizer = self._featurizer(layer.extractor, origin)
        made = featurizer.maps_of(image.photo, origin.inputs(key), prompt, ensemble, Silent())
        return made.maps[key].half().float()  # as a store keeps it

    def _prompt(self, extractor: Extractor, image: UploadedImage) -> "PhotoPrompt":
        from featstore.pipeline.match import image_prompt, text_prompt

        prompts = prompts_of(extractor.prompt, self._learned())
        if prompts is None:
            raise PromptError("The prompts of these maps are in no run that is at hand: name their folder with --runs.")
        if isinstance(prompts, TextPrompt):
            return text_prompt(prompts.text(image.category))
        return image_prompt(prompts, image.category)

    def _featurizer(self, key: str, origin: Origin) -> "Featurizer":
        from featstore.pipeline.match import Featurizer
        from featstore.pipeline.needed import model_of

        if key not in self._featurizers:
            header = self._maps.store.header
            self._featurizers = {
                key: Featurizer(  # of one extractor: networks are large
                    model_of(self._maps.store),
                    dtype=origin.dtype,
                    size=header.image_size,
                    seed=header.seed,
                    latents=header.latents.value,
                    others={own.family: Asked(own.network.id, own.size, own.debias) for own in origin.others},
                    pad=header.pad.value,
                    adapter=origin.adapter,
                )
            }
        return self._featurizers[key]
