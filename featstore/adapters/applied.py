"""An adapter in use: maps adapted when they are asked for, whoever asks."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featstore.adapters.base import Adapter, spell_keys
from featstore.adapters.residual import Residual
from featstore.backbones.base import MapKey
from featstore.parsing import to_json
from featstore.store.rows import Encoding
from matcher.configuration import LayerSpec
from matcher.errors import MapError
from matcher.maps import MapSource, images_ahead

Parts = Mapping[MapKey, Adapter]
"""By (layer, timestep) of an adapted map, what makes it."""


def parts_of(adapter: Adapter, outputs: Iterable[MapKey], device: torch.device) -> Parts:
    """What makes each of an adapter's maps alone, on a device: of a residual one the block of that layer, which has no
    timestep of its own; of any other all of it."""
    ready = adapter.to(device).eval()
    return {key: ready.only(key) if isinstance(ready, Residual) else ready for key in outputs}


@torch.no_grad()
def adapted(part: Adapter, maps: Mapping[MapKey, Tensor], key: MapKey, device: torch.device, of: str) -> Tensor:
    """One adapted map (C, h, w), float32 on the CPU.

    Args:
        part: What makes it, on `device`.
        maps: (C, h, w) of one image, at least those that it takes.
        key: (layer, timestep) of the map that is wanted.
        device: Where it is computed.
        of: The image's name, for sentences.

    Raises:
        AdapterError: A map lacks, or has other channels.
        MapError: What comes out is not finite.
    """
    taken = {own: maps[own][None].to(device) for own in part.spec.inputs if own in maps}
    made = part(taken)[key][0].cpu()
    if not made.isfinite().all():
        raise MapError(f"The adapted map of {of}, {spell_keys([key])}, is not finite: its adapter cannot be used.")
    return made


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedMaps:
    """Maps of a source, adapted (a `matcher.maps.MapSource`). Nothing is kept: whoever matches asks for a map once, or
    twice where it has no room for it.

    Args:
        maps: Where the maps come from that are adapted.
        parts: What makes each map.
        device: Where it is computed.
        encoding: As adapted maps are rounded, so that they are those that a store keeps; None for float32.
    """

    maps: MapSource
    parts: Parts
    device: torch.device
    encoding: Encoding | None = None

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The adapted map (C, h, w) of an image; see `adapted` for what it raises."""
        key = layer.layer, layer.timestep
        part = self.parts[key]
        made = adapted(
            part, {own: self.maps.load(image, LayerSpec(*own)) for own in part.spec.inputs}, key, self.device, image
        )
        return made if self.encoding is None else torch.from_numpy(self.encoding.round(made.numpy()))

    def images_ahead(self, layers: Sequence[LayerSpec]) -> int:
        """See `matcher.maps.FarMapSource.images_ahead`."""
        taken = dict.fromkeys(own for layer in layers for own in self.parts[layer.layer, layer.timestep].spec.inputs)
        return images_ahead(self.maps, [LayerSpec(*key) for key in taken])


def fingerprint(adapter: Adapter) -> str:
    """16 hex digits of all that decides what an adapter gives: its network and its parameters, not what is said of
    it."""
    spec = {name: value for name, value in to_json(adapter.spec).items() if name != "about"}
    digest = hashlib.blake2b(json.dumps(spec, sort_keys=True).encode(), digest_size=8)
    for name, tensor in sorted(adapter.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
