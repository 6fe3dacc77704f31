"""`--adapter`: what is matched with one, and that it is given the maps that it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from featstore.adapters.applied import AdaptedMaps, adapted, fingerprint, parts_of
from featstore.adapters.base import Adapter, AdapterSpec, load_adapter, spell_keys
from featstore.backbones.base import MapKey
from featstore.backbones.layers import check_names, timesteps_for, unet_layers, weights_for
from featstore.backbones.registry import TITLES
from featstore.config import EvalConfig, GridConfig, KeptMapsConfig, MatchConfig
from featstore.errors import AdapterError
from featstore.store.rows import Encoding
from matcher.configuration import LayerSpec
from matcher.errors import InputError
from matcher.maps import MapSource

Adaptable = TypeVar("Adaptable", bound=KeptMapsConfig | EvalConfig | GridConfig | MatchConfig)

NAMED_PROMPTS, OR_ELSE = " prompts of ", ", else "
"""What learned prompts are called has before their place, and behind it where there is a way out."""

USUAL = "leave --layers, --t and --weights out"


@dataclass(frozen=True, slots=True)
class UsedAdapter:
    """An adapter that was named, and where it lies."""

    path: Path
    adapter: Adapter

    @property
    def spec(self) -> AdapterSpec:
        """Which it is."""
        return self.adapter.spec

    @property
    def trained_on(self) -> Mapping[str, Any]:
        """What the maps came from that it was trained on, as `featstore.pipeline.opened.Opened.describe` has it; of own
        features and of published adapters no model."""
        found: Mapping[str, Any] = self.spec.about.get("maps", {})
        return found

    @property
    def is_plain(self) -> bool:
        """Whether it changes no map, but says how maps are weighed."""
        return self.spec.kind == "weights"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of its content."""
        return fingerprint(self.adapter)

    @property
    def line(self) -> str:
        """The line that says which adapter is used."""
        return f"adapter: {self.path}, {self.spec.kind}, trained on {spell_keys(self.spec.inputs)}"

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"adapter": str(self.path), "adapter_fingerprint": self.fingerprint}

    def names(self, layers: Sequence[str] | None) -> tuple[str, ...]:
        """The layers whose maps are taken, each once, of those that were asked for. Raises `AdapterError` for others
        than it was trained on; of a residual one some may be left out."""
        own = tuple(dict.fromkeys(layer for layer, _ in self.spec.inputs))
        if layers is None:
            return own
        fitting = set(layers) <= set(own) if self.spec.kind == "residual" else tuple(layers) == own
        if not fitting:
            raise AdapterError(
                f"The adapter {self.path} takes the layers {','.join(own)}, not {','.join(layers)}: {USUAL}."
            )
        return tuple(layers)

    def keys(
        self, layers: Sequence[str] | None, timesteps: Sequence[int | None] | None, is_clean: bool = False
    ) -> tuple[MapKey, ...]:
        """(layer, timestep) of the maps that it is given, where so much was asked for.

        Args:
            layers: Those that were asked for, None for all.
            timesteps: The same, one per layer of the UNet. A residual one's blocks are used at any timestep.
            is_clean: Whether the UNet at hand takes latents without noise.

        Raises:
            AdapterError: For what it was not trained on.
            InputError: Where counts disagree.
        """
        names = self.names(layers)
        if timesteps is None:
            own = self.spec.inputs
            return own if names == self.names(None) else tuple(key for name in names for key in own if key[0] == name)
        found = tuple(zip(names, timesteps_for(names, timesteps, None if is_clean else {}), strict=True))
        if self.spec.kind != "residual" and found != self.spec.inputs:
            raise AdapterError(
                f"The adapter {self.path} takes {spell_keys(self.spec.inputs)}, not {spell_keys(found)}: {USUAL}."
            )
        return found

    def keys_in_file(self, layers: Sequence[str] | None) -> tuple[MapKey, ...]:
        """`keys` of own features, which have no timesteps. Raises `AdapterError` for one that was trained on maps that
        have."""
        found = self.keys(layers, None)
        if any(timestep is not None for _, timestep in found):
            raise AdapterError(
                f"The adapter {self.path} was trained on {spell_keys(found)}, and features of a file have no timestep: "
                "leave --features out, or train one on such features."
            )
        return found

    def layers(self, keys: Sequence[MapKey], weights: Sequence[float] | None) -> tuple[LayerSpec, ...]:
        """What is matched: the adapted maps and their weights.

        Args:
            keys: Of the maps that it is given.
            weights: Those that were asked for, None for its own.

        Raises:
            AdapterError: For other weights than it has where they are part of it.
            InputError: Where counts disagree.
        """
        spec = self.spec
        if spec.kind != "residual":
            if weights is not None and tuple(weights) != spec.weights:
                what = "makes one map of all" if spec.kind == "aggregate" else "has weights of its own"
                raise AdapterError(f"The adapter {self.path} {what}: leave --weights out.")
            return spec.layers
        if weights is None:
            by_key = dict(zip(spec.inputs, spec.weights, strict=True))
            by_layer = {layer: weight for (layer, _), weight in by_key.items()}
            weights = [by_key.get(key, by_layer[key[0]]) for key in keys] if len(keys) > 1 else [1.0]
        shares = weights_for([layer for layer, _ in keys], weights)
        return tuple(LayerSpec(*key, share) for key, share in zip(keys, shares, strict=True))

    def settled(self, config: Adaptable) -> Adaptable:
        """A config without its adapter, which asks for the maps that the adapter takes: what it leaves open of layers,
        prompt and DINO is as it was in training.

        Raises:
            AdapterError: For layers that it was not trained on, for one that was trained on own features, and where the
                learned prompts that it was trained with are not where they were.
        """
        if "features" in self.trained_on:
            raise AdapterError(
                f"The adapter {self.path} was trained on features of one's own, not on the maps of a model: name such "
                "features with `dualsd eval --features`."
            )
        names, maps = self.names(config.layers), self.trained_on
        check_names(names)
        said: dict[str, Any] = {"layers": names, "adapter": None}
        if not isinstance(config, GridConfig):
            said["timesteps"] = None  # `keys` has them
        if isinstance(config, EvalConfig | MatchConfig):
            said["weights"] = (1.0,) * len(names)  # `layers` has them
        if config.prompt is None and config.prompts is None and unet_layers(names):
            said |= self._prompts(config)
        if isinstance(config, EvalConfig) and unet_layers(names):
            said["ensemble"] = config.ensemble or maps.get("ensemble")
        for family in (family for family in TITLES if family in maps):
            said["dino_size"] = config.dino_size or maps[f"{family}_size"]
            said["dino_debias"] = config.dino_debias or maps.get(f"{family}_debias")
        return replace(config, **said)

    def _prompts(self, config: Adaptable) -> dict[str, Any]:
        """The prompt that it was trained with, as a config names it."""
        maps = self.trained_on
        if "prompt" not in maps:
            return {}
        if "prompts" not in maps:
            return {"prompt": maps["prompt"]}
        fallback = maps["prompts"].get("fallback", {}).get("kind")
        named = maps["prompt"].partition(NAMED_PROMPTS)[2]
        place = Path(named.removesuffix(f"{OR_ELSE}{fallback}"))
        if not place.exists():
            raise AdapterError(
                f"The adapter {self.path} was trained on maps of {maps['prompt']}, which is not there: say where they "
                "are with --prompts."
            )
        if isinstance(config, MatchConfig) or config.fallback is not None:
            return {"prompts": place}
        return {"prompts": place, "fallback": fallback}

    def check(self, at_hand: Mapping[str, Any]) -> None:
        """Raise `AdapterError` where maps are of another model, prompt or DINO than those that it was trained on; of
        what one side does not say nothing is asked. at_hand: as `Opened.describe` has it."""
        trained = self.trained_on
        for name, what in {"model": "the model", **TITLES}.items():
            for part in ("fingerprint", "size", "debias"):
                own, theirs = (maps.get(f"{name}_{part}", 0) for maps in (trained, at_hand))
                if name in trained and name in at_hand and own != theirs:
                    raise AdapterError(
                        f"The adapter {self.path} was trained on maps of {what} {trained[name]} ({part} {own}), not of "
                        f"{at_hand[name]} ({part} {theirs}): train one on such maps."
                    )
        if "prompt" not in trained or "prompt" not in at_hand:
            return
        # photographs have no way out for categories without a prompt: they are of one
        told = [maps.get("prompts", maps["prompt"]) for maps in (trained, at_hand)]
        own, theirs = ({**one, "fallback": None} if isinstance(one, Mapping) else one for one in told)
        if own != theirs:
            changed = ", which has changed" if trained["prompt"] == at_hand["prompt"] else ""
            raise AdapterError(
                f"The adapter {self.path} was trained on maps of the prompt {trained['prompt']!r}, not of "
                f"{at_hand['prompt']!r}{changed}: leave --prompt and --prompts out, or train one on such maps."
            )

    def adapt(self, maps: Mapping[MapKey, Tensor], device: torch.device, of: str) -> dict[MapKey, Tensor]:
        """What it makes of the maps of one image, see `featstore.adapters.applied.adapted`."""
        if self.is_plain:
            return dict(maps)
        outputs = maps if self.spec.kind == "residual" else self.spec.outputs
        parts = parts_of(self.adapter, outputs, device)
        return {key: adapted(part, maps, key, device, of) for key, part in parts.items()}

    def maps(
        self, maps: MapSource, outputs: Sequence[MapKey], device: torch.device, encoding: Encoding | None = None
    ) -> MapSource:
        """The adapted maps of a source. outputs: (layer, timestep) of those that are asked for. encoding: see
        `featstore.adapters.applied.AdaptedMaps`."""
        if self.is_plain:
            return maps
        return AdaptedMaps(maps, parts_of(self.adapter, outputs, device), device, encoding)


def open_adapter(named: Path | str | Adapter | UsedAdapter) -> UsedAdapter:
    """The adapter of a run's folder or a file, or one that was loaded. Raises `AdapterError` for what is none."""
    if isinstance(named, UsedAdapter):
        return named
    if isinstance(named, Adapter):
        return UsedAdapter(Path(), named)
    return UsedAdapter(Path(named), load_adapter(Path(named)))


def no_adapter(label: str) -> InputError:
    """What is raised where prompts that belong to pairs are named beside an adapter. label: what they are called."""
    return InputError(
        f"{label} belong to pairs, and an adapter is given maps of images: leave --adapter out, or name other prompts."
    )
