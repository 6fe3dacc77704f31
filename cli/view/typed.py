"""The command line that finds what the workbench shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cli.options import command_of
from featstore.config import MatchConfig
from featstore.datasets.pictures import exif_orientation, image_key
from featstore.errors import PromptError
from featstore.pipeline.live import LiveMaps, LiveSetting
from featstore.pipeline.live_data import LiveData
from featstore.prompts.saved import prompts_of
from featstore.prompts.text import TextPrompt
from featstore.store.keys import Extractor
from matcher.errors import InputError

OTHER_NOISE = (
    "The store's noise belongs to the pixels of these pictures, and the command's to their files, so figures differ by "
    "as much as the noise moves them."
)


def told_by(
    maps: LiveMaps, setting: LiveSetting, category: str, run_of: Callable[[Extractor], Path | None]
) -> dict[str, Any]:
    """What makes the maps of a setting's extractors, as `dualsd match` is told.

    Args:
        maps: The store's.
        setting: What is shown.
        category: Of the source image.
        run_of: Whose learned prompts an extractor's are, None where no run has them.

    Raises:
        InputError: One command cannot make them.
        PromptError: Learned prompts are not at hand.
    """
    found = [maps.extractor(own) for own in dict.fromkeys(own.extractor for own in setting.layers)]
    unet = [own for own in found if isinstance(own, Extractor)]
    others = [own for own in found if not isinstance(own, Extractor)]
    if len(unet) > 1 or len(others) > 1 or len({own.dtype for own in found}) > 1:
        raise InputError("`dualsd match` takes one prompt for all layers: choose the same for each.")
    said: dict[str, Any] = {"dtype": found[0].dtype}
    for other in others:
        said |= {"dino": other.network.id, "dino_size": other.size, "dino_debias": other.debias or None}
    for own in unet:
        said |= {"ensemble": own.ensemble, "category": category}
        prompts, run = prompts_of(own.prompt, []), run_of(own)
        if isinstance(prompts, TextPrompt):
            said["prompt"] = prompts.template
        elif run is not None:
            said["prompts"] = run
        else:
            raise PromptError("The prompts of these maps are in no run that is at hand: name it with --runs.")
    return said


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
    config = MatchConfig(
        source=files[0],
        target=files[1],
        points=tuple((round(x, 2), round(y, 2)) for x, y in points),
        store=store,
        layers=tuple(own.layer for own in setting.layers),
        timesteps=tuple(own.t for own in setting.layers if own.t is not None) or None,
        weights=setting.weights,
        readout=setting.readout,
        geometry=setting.geometry,
        upsample=setting.upsample,
        upsample_align=setting.upsample_align if setting.upsample_align != setting.geometry else None,
        **{**setting.parameters, **told},
    )
    typed = command_of(config, "match", always=("source", "target", "points", "layers", "weights"))
    is_same = [*map(image_key, records, contents)] == [data.store.images.keys[row] for row in rows]
    return {"command": typed, "note": None if is_same else OTHER_NOISE}
