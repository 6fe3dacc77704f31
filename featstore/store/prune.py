"""Remove maps, or noisy latents, that nobody needs any more; latents stay always."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from featstore.errors import StoreError
from featstore.store.keys import MAPS, NOISY, StoreLocation, number_of
from featstore.store.lock import exclusive
from featstore.store.row_file import folders, names, objects
from featstore.store.rows import METADATA
from featstore.store.store import Store
from featstore.store.sweep import remove_folder, sweep_removed
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class MapCriteria:
    """Maps that meet all that is said: prompt: the text that they were made with. extractor: the first digits of their
    extractor's key. layers, timesteps: theirs is among them. older_than: since their newest row was written. None where
    it does not matter."""

    prompt: str | None = None
    extractor: str | None = None
    layers: Sequence[int] | None = None
    timesteps: Sequence[int] | None = None
    older_than: timedelta | None = None


@dataclass(frozen=True, slots=True)
class NoisyCriteria:
    """Noisy latents that meet all that is said, as in `MapCriteria`."""

    timesteps: Sequence[int] | None = None
    older_than: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Prunable:
    """An array that meets the criteria. bytes, files: that go with it. newest: when its newest row was written, seconds
    since 1970. what: the text prompt of maps, or the kind of learned ones; empty for noisy latents."""

    path: str
    bytes: int
    files: int
    newest: float
    what: str


def choose_maps(store: Store, criteria: MapCriteria) -> list[Prunable]:
    """The maps that meet the criteria. Raises `InputError` where nothing is asked, so that nothing is removed by
    mistake, and `StoreError` where an extractor is named that is not there."""
    if criteria == MapCriteria():
        raise InputError("Which maps go must be said: by --prompt, --extractor, --layer, --t or --older-than.")
    keys = [folder.rpartition("/")[2] for folder in folders(store.path, f"{MAPS}/*")]
    if criteria.extractor is not None and not any(key.startswith(criteria.extractor) for key in keys):
        raise StoreError(f"{store.path} has no extractor {criteria.extractor!r}: it has {', '.join(keys) or 'none'}.")
    found = []
    for path in store.array_paths():
        kind, *rest = path.split("/")
        if kind != MAPS:
            continue
        key, layer, timestep = rest[0], number_of(rest[1]), number_of(rest[2])
        prompt = store.attributes(f"{MAPS}/{key}").get("prompt")
        texts = prompt if isinstance(prompt, Mapping) else {}
        if (
            criteria.prompt in (None, texts.get("template"))
            and key.startswith(criteria.extractor or "")
            and (criteria.layers is None or layer in criteria.layers)
            and (criteria.timesteps is None or timestep in criteria.timesteps)
        ):
            found.append(_measured(store.path, path, _spell(texts)))
    return _old_enough(found, criteria.older_than)


def choose_noisy(store: Store, criteria: NoisyCriteria) -> list[Prunable]:
    """The noisy latents that meet the criteria; all where nothing more is said."""
    found = [
        _measured(store.path, path, "")
        for path in store.array_paths()
        if path.startswith(f"{NOISY}/") and (criteria.timesteps is None or number_of(path) in criteria.timesteps)
    ]
    return _old_enough(found, criteria.older_than)


def prune(store: Store, chosen: Sequence[Prunable]) -> None:
    """Remove them, and the groups that hold nothing any more. An array is gone at once or not at all. Not to be done
    while another process makes the same maps."""
    with exclusive(store.path):
        for array in chosen:
            if names(store.path, array.path):
                remove_folder(store.path, array.path)
        for below in ("*/*", "*"):
            for group in folders(store.path, f"{MAPS}/{below}"):
                if not folders(store.path, f"{group}/*"):
                    remove_folder(store.path, group)
        sweep_removed(store.path)


def parse_age(text: str) -> timedelta:
    """`30d`, `12h` or `2w`. Raises `InputError` for anything else."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if matched is None:
        raise InputError(f"--older-than takes an age like 12h, 30d or 2w, not {text!r}.")
    hours = {"h": 1, "d": 24, "w": 7 * 24}[matched.group(2)]
    try:
        return timedelta(hours=float(matched.group(1)) * hours)
    except OverflowError:
        raise InputError(f"--older-than {text} is longer ago than there have been files.") from None


def _measured(store: StoreLocation, path: str, what: str) -> Prunable:
    files = objects(store, path)
    newest = max((file.modified for file in files if not file.path.endswith(f"/{METADATA}")), default=0.0)
    return Prunable(path, sum(file.bytes for file in files), len(files), newest, what)


def _old_enough(arrays: Sequence[Prunable], age: timedelta | None) -> list[Prunable]:
    if age is None:
        return list(arrays)
    return [array for array in arrays if time.time() - array.newest > age.total_seconds()]


def _spell(prompt: Mapping[str, Any]) -> str:
    return str(prompt.get("template", prompt.get("kind", "unknown prompt")))
