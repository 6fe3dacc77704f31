"""`cache prune`: maps or noisy latents, chosen by what is said of them, and removed."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import unquote

from featstore.errors import StoreError
from featstore.kept_config import PruneConfig
from featstore.progress import Progress
from featstore.store import keys
from featstore.store.store import Store
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class Prunable:
    """An array that is to go. bytes, files: that go with it. newest: when its newest row was written, seconds since
    1970. what: the text prompt of maps, or the kind of learned ones; empty for noisy latents."""

    path: str
    bytes: int
    files: int
    newest: float
    what: str


def choose(store: Store, config: PruneConfig) -> list[Prunable]:
    """The arrays that meet all that is said of them: maps, or noisy latents.

    Args:
        store: Whose they are; nothing is removed.
        config: prompt: the text that maps were made with. extractor: the first digits of their extractor's key.
            layers, timesteps: theirs is among them. older_than: since their newest row was written. What is None does
            not matter.

    Raises:
        InputError: Where nothing is asked of maps, so that none is removed by mistake, or the age is none.
        StoreError: Where an extractor is named that is not there.
    """
    oldest = None if config.older_than is None else time.time() - parse_age(config.older_than).total_seconds()
    if config == replace(PruneConfig(), store=config.store):
        raise InputError("Which maps go must be said: by --prompt, --extractor, --layer, --t or --older-than.")
    extractors = sorted(store.objects.level(keys.MAPS)[1])
    if config.extractor is not None and not any(key.startswith(config.extractor) for key in extractors):
        known = ", ".join(extractors) or "none"
        raise StoreError(f"{store.path} has no extractor {config.extractor!r}: it has {known}.")
    found = []
    for path in store.folders(keys.NOISY, 1) if config.noisy else store.folders(keys.MAPS, 3):
        texts: Mapping[str, object] = {}
        if not config.noisy:
            _, key, layer, _ = path.split("/")
            prompt = store.attributes(f"{keys.MAPS}/{key}").get("prompt")
            texts = prompt if isinstance(prompt, Mapping) else {"kind": "unknown prompt"}
            if (
                config.prompt not in (None, texts.get("template"))
                or not key.startswith(config.extractor or "")
                or (config.layers is not None and unquote(layer).removeprefix("layer") not in config.layers)
            ):
                continue
        array = _measured(store, path, str(texts.get("template", texts.get("kind", ""))))
        if (config.timesteps is None or keys.timestep_of(path) in config.timesteps) and (
            oldest is None or array.newest < oldest
        ):
            found.append(array)
    return found


def remove(store: Store, chosen: Sequence[Prunable], progress: Progress) -> None:
    """Remove arrays, and the groups that hold nothing any more. An array is gone at once or not at all. Not to be done
    while another process makes the same maps."""
    with store.objects.exclusive("pruning", progress.note):
        for array in chosen:
            store.objects.remove(array.path)
        for depth in (2, 1):
            for group in store.folders(keys.MAPS, depth):
                if not store.objects.level(group)[1]:
                    store.objects.remove(group)
        store.objects.sweep()


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


def _measured(store: Store, path: str, what: str) -> Prunable:
    found = store.objects.below(path)
    newest = max((one.modified for one in found if not one.key.endswith(f"/{keys.METADATA}")), default=0.0)
    return Prunable(path, sum(one.bytes for one in found), len(found), newest, what)
