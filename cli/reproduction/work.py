"""Work as data: what is to be made, and what it costs. What is kept is a member of a set, so that what several cells
ask for counts once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PromptName:
    """name: the same for prompts that are the same. separate: whether layers have prompts of their own, and so share no
    pass."""

    name: str
    separate: bool


Latent = tuple[str, str]
"""(dataset, image)."""

Noisy = tuple[str, str, int, int]
"""(dataset, image, timestep, draw)."""

Map = tuple[str, str, PromptName, int, int, int]
"""(dataset, image, prompts, ensemble, timestep, layer)."""


Patches = tuple[str, str, int, int]
"""(dataset, image, side in pixels of the image that DINOv2 sees, tokens that are kept of it)."""


@dataclass(frozen=True, slots=True)
class Work:
    """latents, noisy, maps, patches: rows of stores. forward: UNet passes whose maps are not kept. backward: passes
    with a gradient. Both by the layer that they end at. matched: pairs."""

    latents: frozenset[Latent] = frozenset()
    noisy: frozenset[Noisy] = frozenset()
    maps: frozenset[Map] = frozenset()
    patches: frozenset[Patches] = frozenset()
    forward: Counter[int] = field(default_factory=Counter)
    backward: Counter[int] = field(default_factory=Counter)
    matched: int = 0

    def __or__(self, other: "Work") -> "Work":
        """Both, shared rows once."""
        return Work(
            self.latents | other.latents,
            self.noisy | other.noisy,
            self.maps | other.maps,
            self.patches | other.patches,
            self.forward + other.forward,
            self.backward + other.backward,
            self.matched + other.matched,
        )

    def without(self, other: "Work") -> "Work":
        """What is left once the rows of another are there."""
        return Work(
            self.latents - other.latents,
            self.noisy - other.noisy,
            self.maps - other.maps,
            self.patches - other.patches,
            self.forward,
            self.backward,
            self.matched,
        )

    @property
    def passes(self) -> Counter[int]:
        """UNet passes without a gradient by the layer that they end at: those of maps, shared by layers where their
        prompts are, and `forward`."""
        last: dict[tuple[str, str, PromptName, int, int, int | None], int] = {}
        for dataset, image, prompts, ensemble, timestep, layer in self.maps:
            key = (dataset, image, prompts, ensemble, timestep, layer if prompts.separate else None)
            last[key] = max(layer, last.get(key, 0))
        found = Counter(self.forward)
        for (*_, ensemble, _, _), layer in last.items():
            found[layer] += ensemble
        return found


def bytes_of(work: Work, latent_bytes: int, map_bytes: Callable[[int], int], patch_bytes: Callable[[int], int]) -> int:
    """Of all rows. latent_bytes: of a row of latents, noisy or not. map_bytes: of a layer's map. patch_bytes: of so
    many tokens of DINOv2."""
    maps = Counter(layer for *_, layer in work.maps)
    return (
        latent_bytes * (len(work.latents) + len(work.noisy))
        + sum(map_bytes(layer) * count for layer, count in maps.items())
        + sum(patch_bytes(tokens) for *_, tokens in work.patches)
    )
