"""The command line that finds what the workbench shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.options import command_of
from featstore.config import MatchConfig
from featstore.datasets.pictures import exif_orientation, image_key
from featstore.errors import PromptError
from featstore.pipeline.live import LiveMaps, LiveSetting
from featstore.pipeline.live_adapters import Adapters, Origin, origin_of
from featstore.pipeline.live_data import LiveData
from featstore.prompts.saved import prompts_of
from featstore.prompts.text import TextPrompt
from featstore.prompts.zeros import Zeros
from featstore.store.keys import Extractor
from matcher.errors import InputError

OTHER_NOISE = (
    "The store's noise belongs to the pixels of these pictures, and the command's to their files, so figures differ by "
    "as much as the noise moves them."
)


def told_by(
    maps: LiveMaps,
    setting: LiveSetting,
    category: str,
    run_of: Callable[[Extractor], Path | None],
    adapters: Adapters,
) -> dict[str, Any]:
    """What makes the maps of a setting's extractors, as `dualsd match` is told.

    Args:
        maps: The store's.
        setting: What is shown.
        category: Of the source image.
        run_of: Whose learned prompts an extractor's are, None where no run has them.
        adapters: Those that are at hand.

    Raises:
        InputError: One command cannot make them.
        AdapterError: Their adapter is not at hand.
        PromptError: Learned prompts are not at hand.
        StoreError: The store no longer knows what adapted maps were made of.
    """
    keys = dict.fromkeys(own.extractor for own in setting.layers)
    found = [origin_of(maps, maps.extractor(key), adapters) for key in keys]
    adapter = found[0].adapter
    if len(found) > 1 and any(own.adapter is not None for own in found):
        raise InputError("`dualsd match` adapts all layers or none: choose the same adapter for each.")
    unet = [own.unet for own in found if own.unet is not None]
    others = [other for own in found for other in own.others]
    if len(unet) > 1 or len(others) > 1 or len({own.dtype for own in found}) > 1:
        raise InputError("`dualsd match` takes one prompt for all layers: choose the same for each.")
    said: dict[str, Any] = {"dtype": found[0].dtype}
    for other in others:
        said |= {"dino": other.network.id, "dino_size": other.size, "dino_debias": other.debias or None}
    for own in unet:
        said |= {"ensemble": own.ensemble, "category": category, **_prompt_of(own, run_of(own), found[0])}
    if adapter is not None:
        said["adapter"] = adapter.path
        if adapter.spec.kind == "aggregate":  # it has one map, and knows what it takes
            said |= {"layers": None, "timesteps": None, "weights": None}
    return said


def _prompt_of(unet: Extractor, run: Path | None, origin: Origin) -> dict[str, Any]:
    """What is typed of an extractor's prompt; nothing where an adapter brings it. run: that has its learned prompts."""
    brought = None if origin.adapter is None else origin.adapter.trained_on.get("prompt")
    prompts = prompts_of(unet.prompt, [])
    if isinstance(prompts, TextPrompt):
        return {} if prompts.template == brought else {"prompt": prompts.template}
    if run is not None:
        return {"prompts": run}
    if brought is None and not isinstance(prompts, Zeros):
        raise PromptError("The prompts of these maps are in no run that is at hand: name it with --runs.")
    return {}


def spell_match(
    data: LiveData,
    store: str,
    rows: tuple[int, int],
    points: Sequence[tuple[float, float]],
    setting: LiveSetting,
    told: dict[str, Any],
) -> dict[str, str | None]:
    """The command, and a note where its figures will differ a little.

    Args:
        data: The store's data set.
        store: Its place, as it was typed.
        rows: Of source and target.
        points: (x, y) in pixels of the source.
        setting: What is shown.
        told: See `told_by`.

    Raises:
        InputError: No command finds the same.
        DatasetError: An image has no file.
    """
    files, records = [data.file(row) for row in rows], [data.record(row) for row in rows]
    contents = [file.read_bytes() for file in files]
    if any(exif_orientation(*own) != 1 for own in zip(records, contents, strict=True)):
        raise InputError("`dualsd match` turns one of these pictures as its EXIF data ask, and the store does not.")
    matched: dict[str, Any] = {
        "layers": tuple(own.layer for own in setting.layers),
        "timesteps": tuple(own.t for own in setting.layers if own.t is not None) or None,
        "weights": setting.weights,
    }
    config = MatchConfig(
        source=files[0],
        target=files[1],
        points=tuple((round(x, 2), round(y, 2)) for x, y in points),
        store=store,
        readout=setting.readout,
        geometry=setting.geometry,
        upsample=setting.upsample,
        upsample_align=setting.upsample_align if setting.upsample_align != setting.geometry else None,
        **{**matched, **setting.parameters, **told},
    )
    always = [name for name in matched if name != "timesteps" and getattr(config, name) is not None]
    typed = command_of(config, "match", always=("source", "target", "points", *always))
    is_same = [*map(image_key, records, contents)] == [data.store.images.keys[row] for row in rows]
    return {"command": typed, "note": None if is_same else OTHER_NOISE}
