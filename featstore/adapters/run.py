"""The folder of a run that learns an adapter: as that of prompts (`featstore.tuning.runs`), with
`adapter.safetensors` and `adapter-last.safetensors` in their place. Its format is another, so that nobody takes it for
one of prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featstore.adapters.base import FILE
from featstore.adapters.lists import OF_VAL
from featstore.adapters.material import Material
from featstore.adapters.settings import AdapterSettings, settled
from featstore.config import AdaptConfig
from featstore.parsing import from_json, parse, to_json
from featstore.tuning.runs import ADAPTATION, Run, Words, make_run


@dataclass(frozen=True)
class AdapterRun(Run):
    """A run that learns an adapter."""

    FORMAT: ClassVar[str] = ADAPTATION
    COMMAND: ClassVar[str] = "dualsd adapt"
    FILE: ClassVar[str] = FILE

    @property
    def settings(self) -> AdapterSettings:
        """What was asked."""
        return AdapterSettings.from_json(self.description["settings"])

    @property
    def config(self) -> AdaptConfig:
        """The same as a config, which begins it anew."""
        return from_json(AdaptConfig, self.description["config"], f"{self.path}/run.json", str)

    @property
    def words(self) -> Words:
        """See `Run.words`."""
        pairs = str(self.description["on"])
        on = "val" if pairs == OF_VAL else "held-out pairs"
        first = "the first adapter"
        what = {"what": "adapter", "are": "is", "they": "It was", "pairs": pairs, "on": on}
        return Words("zero-shot", "adapted", "the maps as they are", "zero-shot", first, **what)

    @staticmethod
    def check(description: Mapping[str, Any]) -> None:
        """See `Run.check`."""
        AdapterSettings.from_json(description["settings"])
        from_json(AdaptConfig, description["config"], "config", str)
        for name in ("identity", "pairs_hash", "on"):
            parse(str, description.get(name), name)


def create_run(material: Material, settings: AdapterSettings, about: Mapping[str, Any]) -> AdapterRun:
    """Make the folder of a run. about: what `run.json` says besides. Raises what `make_run` raises."""
    config = material.config
    layers = dict.fromkeys(layer for layer, _ in settings.inputs)
    described = {
        **material.origin,
        "identity": material.identity,
        "split": material.split,
        "on": material.on,
        "maps": dict(material.about),
        **about,
        "notes": list(material.notes),
        "settings": settings.to_json(),
        "config": to_json(settled(config, settings)),
    }
    usual = f"{settings.mode}-{'+'.join(layers)}"
    return make_run(AdapterRun, config.runs, config.name, usual, described)
