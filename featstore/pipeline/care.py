"""What `cache verify --drop` does: damaged rows are deleted, with those that were made of them, and the commands are
named that make them again.

Nothing is made here: each row comes again by the code that makes any, from images that are read anew.
"""

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from featstore.backbones.base import CLEAN, compute_on
from featstore.backbones.dino import SUBFOLDER
from featstore.backbones.locate import is_at_hand
from featstore.backbones.models import Model
from featstore.backbones.registry import TITLES
from featstore.errors import MetadataError, PromptError, StoreError
from featstore.kept_config import VerifyConfig
from featstore.pipeline.defaults import dataset_of
from featstore.pipeline.needed import model_of
from featstore.pipeline.plan import with_maps_made_of, with_noise_checked
from featstore.pipeline.recompute import Compared, Recomputed, recompute
from featstore.progress import Progress, Silent
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import SavedPrompts, load_prompts, prompts_of
from featstore.prompts.text import TextPrompt
from featstore.prompts.zeros import Zeros
from featstore.store.care import (
    BadRow,
    CheckedArray,
    Expected,
    Verification,
    check_arrays,
    drop_metadata,
    drop_rows,
    restore_metadata,
    sweep,
    unknown,
    verify,
)
from featstore.store.keys import (
    CONDITIONING,
    GRIDS,
    LATENTS,
    MAPS,
    NOISY,
    RAW,
    Extractor,
    PixelExtractor,
    number_of,
    parse_location,
)
from featstore.store.store import Store, open_store
from featstore.tuning.run_folder import runs_newest_first
from matcher.errors import InputError

Runs = Mapping[Path, LearnedPrompts]
"""Learned prompts by what `--prompts` takes for them, the newest run first."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What became of damage.

    rows: how many rows were deleted, by array. notes: a sentence on each thing that was damaged besides rows, or that
    no command makes again. commands: what makes an array's rows again, to be pasted.
    """

    rows: Mapping[str, int]
    notes: tuple[str, ...]
    commands: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Checked:
    """What is wrong with a store. expected: what its arrays should be. anew: what came of making rows again, None where
    nobody asked for it."""

    store: Store
    found: Verification
    expected: Expected
    anew: Recomputed | None

    def drop(self, progress: Progress) -> Dropped | None:
        """`drop` what is damaged; nothing where nothing fits, as all of a store would go for a header that is wrong."""
        if self.anew is not None and self.anew.nothing_fits:
            return None
        return drop(self.store, self.found, self.expected, learned_here(self.store), progress)

    def require_sound(self, dropped: bool) -> None:
        """Raise `StoreError` for what is wrong. dropped: whether what is damaged went."""
        anew, place = self.anew, self.store.path
        if anew is not None and anew.images:
            first = anew.images[0]
            raise StoreError(
                f"Of {len(anew.images)} image(s) of {place} the table of images is not right, e.g. of {first.image!r} "
                f"{first.why}: run `dualsd cache build`, which writes it and what was made of those images anew."
            )
        if anew is not None and anew.nothing_fits:
            raise StoreError(
                f"Of the latents or the noisy latents of {place} none that was compared fits: rather the seed or the "
                "kind of latents that its header (zarr.json) names are not those that it was made with. Nothing was "
                "changed: set the header right, or remove the noisy latents with `dualsd cache prune --noisy`."
            )
        if not self.found.sound and not dropped:
            raise StoreError(
                f"{len(self.found.bad)} damaged row(s) and {len(self.found.metadata)} damaged metadata file(s) in "
                f"{place}: --drop deletes them and prints the commands that make them again."
            )

    def to_json(self) -> dict[str, Any]:
        """As `dualsd cache verify --json` writes it."""

        def without_bad(array: CheckedArray | Compared) -> dict[str, Any]:
            return {name: value for name, value in asdict(array).items() if name != "bad"}

        found, anew = self.found, self.anew
        written = {
            "store": str(self.store.path),
            "sound": found.sound,
            "arrays": [without_bad(array) | {"damaged": len(array.bad)} for array in found.arrays],
            "bad": [asdict(bad) for bad in found.bad],
            "metadata": [asdict(damaged) for damaged in found.metadata],
            "left_over": [asdict(own) for own in found.left_over],
        }
        if anew is None:
            return written
        compared = [without_bad(own) | {"others": [bad.row for bad in own.bad]} for own in anew.arrays]
        images = [{"image": bad.image, "why": bad.why} for bad in anew.images]
        return written | {"recomputed": compared, "images": images}


def check(config: VerifyConfig, progress: Progress | None = None) -> Checked:
    """Read all that a store holds and hold it against its checksums, and noisy latents against the model's betas; with
    `recompute`, against what the model makes of the images now.

    Args:
        config: Of which store, and how much is made anew. What is damaged is dropped by `Checked.drop`.
        progress: Who is told how far it is; None for nobody.

    Raises:
        InputError: In one of its kinds, where the store cannot be opened, or data set or model not used.
    """
    progress = progress or Silent()
    store = open_store(parse_location(config.store))
    expected = rows_at_hand(store, progress)
    found = verify(store, progress, expected)
    if config.recompute is None:
        return Checked(store, with_noise_checked(store, found, progress), expected, None)
    dataset, compute = dataset_of(store, config.root), compute_on(config.device, "auto", config.batch_size)
    count = None if config.recompute == "all" else int(config.recompute)
    learned = [*learned_here(store).values()]
    anew = recompute(store, dataset, found, learned, count, config.seed, compute, progress)
    found = with_maps_made_of(store, anew.added_to(found), [bad for own in anew.arrays for bad in own.bad])
    return Checked(store, found, expected, anew)


def learned_here(store: Store) -> Runs:
    """The prompts of all runs under ./runs that were trained on a store, by what `--prompts` takes for them."""
    found = {}
    for run in runs_newest_first(store, on_damage=lambda _: None):
        for path in (run.path, run.last):
            with suppress(PromptError):  # one that is damaged is no prompt that maps can be made with
                found[path] = load_prompts(path)
    return found


def drop(store: Store, found: Verification, expected: Expected, runs: Runs, progress: Progress) -> Dropped:
    """Delete what was found damaged, and what was made of it: noisy latents and maps of latents that go.

    Metadata of an array whose rows are known are written anew, so that the rows are found again; others are removed,
    with the rows that nobody can read without.

    Args:
        store: The store that was verified.
        found: Its damage.
        expected: What its arrays should be, see `rows_at_hand`.
        runs: The prompts that maps may have been made with.
        progress: Told how far it is.

    Raises:
        StoreError: Where the disk has no room to unpack a packed array, or where the metadata of the latents are
            damaged and it is not known what they should be.
    """
    notes, restored, commands = list[str](), list[str](), dict[str, str]()

    def note(path: str, what: str, how: str) -> None:
        if how.startswith("dualsd "):
            commands[path] = how
        else:
            notes.append(f"{what}: {how}")

    for damaged in found.metadata:
        path = damaged.path
        how = way_back(store, path, runs) if damaged.is_array or path == CONDITIONING else ""
        rows = expected(path) if damaged.is_array else None
        if rows is None:
            notes.append(drop_metadata(store, damaged, progress))
        elif restore_metadata(store, damaged, rows, progress):
            restored.append(path)
            notes.append(f"the metadata of {path} were written anew; its rows are kept")
            continue
        else:
            notes.append(f"{path} was removed: how much it held is not known")
        if how:
            note(path, path, how)
    arrays = [array for path in restored if (array := store.array(path)) is not None]
    bad = [*found.bad, *(row for array in check_arrays(store, arrays, progress) for row in array.bad)]
    bad += _made_of(store, bad)
    count = Counter(path for path, _ in {(one.array, one.row) for one in bad})
    for path in sorted(count):
        note(path, f"{count[path]} row(s) of {path}", way_back(store, path, runs))
    drop_rows(store, sorted(bad, key=_order), progress)
    sweep(store, progress)
    return Dropped(dict(sorted(count.items())), tuple(notes), commands)


def _made_of(store: Store, bad: Collection[BadRow]) -> list[BadRow]:
    """The noisy latents and the UNet's maps of images whose latents are among the bad rows, but for what is there too.
    They may fit latents that were wrong, and would not fit those that are made again."""
    images, known = {one.row[0] for one in bad if one.array == LATENTS}, {(one.array, one.row) for one in bad}
    paths = [path for path in store.array_paths() if path.startswith((f"{NOISY}/", f"{MAPS}/")) and images]
    arrays = [array for path in paths if not path.endswith("/patches") and (array := store.array(path)) is not None]
    return [
        BadRow(array.path, place, store.images.ids[place[0]], "its latents were damaged")
        for array in arrays
        for place in map(tuple, np.argwhere(array.present()).tolist())
        if place[0] in images and (array.path, place) not in known
    ]


def _order(bad: BadRow) -> int:
    """Maps first, and latents before the noisy ones that show them to be wrong: whenever this is killed, the rest is
    found again."""
    return {MAPS: 0, LATENTS: 1}.get(bad.array.split("/")[0], 2)


NOT_KNOWN = "what they were made with is not known; whatever needs them makes them again"


def way_back(store: Store, path: str, runs: Runs) -> str:
    """The command that makes rows of an array again, spelled so that a shell takes it; else a sentence on why there is
    none."""
    kind, *rest = path.split("/")
    if kind == GRIDS:
        return "the grid that was stopped scores those images again when it goes on"
    try:
        if kind in (LATENTS, NOISY):
            # a build makes all latents, whatever its noise; that which is kept already takes no more room
            kept = (own for own in store.array_paths() if own.startswith(f"{NOISY}/"))
            noisy = path if kind == NOISY else next(kept, f"{NOISY}/t0261")
            array = store.array(noisy)
            draws = 1 if array is None else array.rows_shape[1]
            return _spell(store, "cache", "build", "--t", str(number_of(noisy)), "--ensemble", str(draws))
        description = store.attributes(CONDITIONING if kind == CONDITIONING else "/".join(path.split("/")[:2]))
    except MetadataError:
        return NOT_KNOWN
    if kind == CONDITIONING:
        return _spell(store, "train", "--mode", "cpm", *_dino_option(description.get("id")))
    if "adapter" in description:
        return "`dualsd cache maps --adapter` with the adapter that they were made with makes them again"
    other, unet = PixelExtractor.from_description(description), Extractor.from_description(description)
    if other is not None:
        own = (*_dino_option(other.network.id), "--dino-size", str(other.size)) if other.family in TITLES else ()
        own += ("--dino-debias", str(other.debias)) if other.debias else ()
        return _maps(store, other, "--layers", unquote(rest[1]), *own)
    if unet is None or len(rest) < 3:
        return NOT_KNOWN
    prompts = _prompt_options(unet.prompt, runs)
    if prompts is None:
        which = unet.prompt.get("kind")
        return f"no run here has the {which} prompts that they were made with; such maps are made again when needed"
    header = store.header
    if rest[0] != replace(unet, model_fingerprint=header.model_fingerprint, seed=header.seed).key:
        return "they were made with another model or seed than the header names; such maps are made again when needed"
    timestep = CLEAN if rest[2] == CLEAN else str(number_of(rest[2]))
    place = ("--layers", unquote(rest[1]).removeprefix("layer"), "--t", timestep)
    return _maps(store, unet, *place, *prompts, "--ensemble", str(unet.ensemble))


def _maps(store: Store, extractor: Extractor | PixelExtractor, *options: str) -> str:
    kept = () if extractor.encoding == RAW else ("--encoding", extractor.encoding)
    return _spell(store, "cache", "maps", *options, "--dtype", extractor.dtype, *kept)


def _prompt_options(description: Mapping[str, object], runs: Runs) -> tuple[str, ...] | None:
    """What is typed for the prompts of a description; None where nothing that is at hand gives them."""
    prompts = prompts_of(description, [*runs.values()])
    if isinstance(prompts, Zeros):
        return ()
    if isinstance(prompts, TextPrompt):
        return "--prompt", prompts.template
    if not isinstance(prompts, SavedPrompts):
        return None
    typed = ("--prompts", *(str(path) for path, own in runs.items() if own is prompts.learned))
    if prompts.fallback is None:
        return typed
    if prompts.fallback == TextPrompt():
        return (*typed, "--fallback", "text")
    layers = set(prompts.learned.layers)
    single = (own for own in runs.values() if own.mode is Mode.SINGLE and layers <= set(own.layers))
    newest = next(single, None)  # which is what `--fallback single` takes
    same = isinstance(prompts.fallback, SavedPrompts) and prompts.fallback.learned is newest
    return (*typed, "--fallback", "single") if same else None


def _dino_option(name: object) -> Iterable[str]:
    """None for the model's own."""
    return () if name is None or str(name).endswith(f"/{SUBFOLDER}") else ("--dino", str(name))


def _spell(store: Store, *words: str) -> str:
    return shlex.join(["dualsd", *words, "--store", str(store.path)])


def rows_at_hand(store: Store, progress: Progress) -> Expected:
    """What the store's model makes of its arrays, see `_rows_of_model`, where it lies on this machine; nothing is
    downloaded for it."""
    try:
        model = model_of(store) if is_at_hand(store.header.model_id, store.header.model_revision) else None
        why = "is not on this machine"
    except InputError as error:
        model, why = None, f"cannot be used ({error})"
    if model is None:
        progress.note(
            f"The model {store.header.model_id} {why}: shapes of rows are not held against it, only against each other."
        )
        return unknown
    return partial(_rows_of_model, store, model)


_DIFFUSION_LAYERS = r"layer([1-4](\.[1-9]\d*)?|(block|single):[1-9]\d*(\.adaln)?(-\d+)*)"
"""Folders of such layers' maps."""


def _rows_of_model(store: Store, model: Model, path: str) -> tuple[int, ...] | None:
    """The shape of an array's rows as header and model make them; None where that cannot be told. No weights are
    loaded."""
    kind, *rest = path.split("/")
    size = store.header.image_size
    if kind in (LATENTS, NOISY):
        return model.latent_shape(size)
    named = re.fullmatch(_DIFFUSION_LAYERS, unquote(rest[1])) if kind == MAPS else None
    if named is None:  # of a DINOv2 that nobody has named here, or hits of a grid
        return None
    shape = model.shape(named[1], size)
    return shape.channels, shape.side, shape.side
