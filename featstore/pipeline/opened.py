"""What a config names, opened: the store, its data set, which prompts are used, how maps are made; and the pairs of a
split.

One rule for prompts in all commands: `--prompts RUN|newest`, `--prompt TEXT`, or, where nothing is typed, those of the
newest run where they fit; and one for what to do for categories that have none."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featstore.backbones.base import MapKey
from featstore.backbones.layers import layers_for, timesteps_for, unet_layers, weights_for
from featstore.backbones.registry import (
    TRANSFORMERS,
    Profile,
    asked_of,
    check_of_structure,
    check_takes_prompts,
    profile_of,
)
from featstore.config import ENSEMBLE, EvalConfig, GridConfig, KeptMapsConfig, MatchConfig
from featstore.datasets.records import AnnotatedPairs, Dataset
from featstore.errors import DatasetError, ImageError, PromptError
from featstore.pipeline.adapted import NAMED_PROMPTS, OR_ELSE, UsedAdapter, no_adapter, open_adapter
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.defaults import check_kept, choose_compute, dataset_of
from featstore.pipeline.distributed import Processes, join_processes
from featstore.pipeline.needed import MadeMaps
from featstore.pipeline.pairs import images_of, in_resized_frame, note_oddities
from featstore.pipeline.plan import MapRequest
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Progress, Silent, tell_left_out
from featstore.prompts.base import LearnedPrompts, Mode, Prompts
from featstore.prompts.saved import SavedPrompts, check_usable, load_prompts
from featstore.prompts.text import DEFAULT_TEMPLATE, TextPrompt
from featstore.prompts.zeros import Zeros
from featstore.store.keys import RAW, AnyExtractor, Extractor, PixelExtractor
from featstore.store.rows import ENCODINGS
from featstore.store.store import Store, open_store
from featstore.tuning.run_folder import RunFolder, runs_newest_first
from featstore.tuning.runs import RUNS
from matcher.configuration import LayerSpec
from matcher.errors import InputError
from matcher.maps import MapSource
from matcher.pairs import Pairs

NEWEST = Path("newest")
"""What `--prompts` takes for the newest finished run on the store that has the layers used."""


Typed = KeptMapsConfig | EvalConfig | GridConfig | MatchConfig
"""Of which layers, timesteps, prompt, prompts and fallback decide on prompts, None where they were not typed."""


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """label: as it is recorded. prompts: those that belong to images; None for a cpm's. learned: those of a run or
    file, `source`, None for a text. profile: of the model at hand. newest: whether that is the newest run, which nobody
    named."""

    label: str
    prompts: Prompts | None
    learned: LearnedPrompts | None
    profile: Profile
    source: Path | None = None
    newest: bool = False

    @property
    def line(self) -> str:
        """The line that says which prompts are used."""
        if isinstance(self.prompts, Zeros):
            return "prompt: none, the transformer is told zeros in place of a text"
        if self.learned is None:
            return f"prompt: the text {self.label!r}"
        layers = ",".join(map(str, self.learned.layers))
        origin = f", the newest finished run on this store, for layers {layers}" if self.newest else ""
        return f"prompt: {self.label}{origin}"

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are used where none are typed: those of the prompts, else the model's recommended ones.
        Raises `InputError` where none are known."""
        own = None if self.learned is None else tuple(map(str, self.learned.layers))
        return layers_for(own, self.profile.layers)

    @property
    def timesteps(self) -> Mapping[str, int]:
        """The recommended ones with such prompts, by layer."""
        return self.profile.text_timesteps if self.learned is None else self.profile.learned_timesteps

    def of_images(self, command: str) -> Prompts:
        """Raises `InputError` for prompts that belong to pairs."""
        if self.prompts is None:
            raise InputError(
                f"{self.label} belong to pairs: `{command}` takes text, single or class prompts, named with --prompt "
                "or --prompts."
            )
        return self.prompts

    def check_categories(self, categories: Collection[str]) -> None:
        """Raise `PromptError` for categories that have no prompt."""
        if isinstance(self.prompts, SavedPrompts):
            self.prompts.check_categories(categories)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        if self.learned is None:
            return {"prompt": self.label}
        content = self.learned.describe() if self.prompts is None else self.prompts.describe()
        return {"prompt": self.label, "prompts": content}


def choose_prompts(
    model_id: str,
    fingerprint: str,
    profile: Profile,
    runs: Callable[[], Sequence[RunFolder]],
    typed: Typed,
    template: str = DEFAULT_TEMPLATE,
) -> PromptChoice:
    """The rule of every command: learned prompts where they are named; or where none of layers, timesteps and prompt is
    typed and the newest finished run has exactly the layers used; else the text.

    Args:
        model_id: Of the model at hand.
        fingerprint: Of the model at hand.
        profile: Of the model at hand.
        runs: That were finished with it, the newest first.
        typed: What was asked for.
        template: The text where none is typed.

    Raises:
        InputError: For a text and learned prompts at once.
        PromptError: For prompts that this model or these layers cannot use.
        TuningError: Where a run that might be the newest is damaged.
    """
    if typed.prompt is not None and typed.prompts is not None:
        raise InputError("--prompt and --prompts exclude each other: a text, or learned prompts.")
    layers = None if typed.layers is None else unet_layers(typed.layers)  # none where only other backbones' are named
    path, way_out, usual = typed.prompts, None, unet_layers(profile.layers)
    fallback = None if isinstance(typed, MatchConfig) else typed.fallback
    if path == NEWEST:
        path = _newest_for(runs(), usual if layers is None else layers).path
    elif path is None and layers is None and typed.timesteps is None and typed.prompt is None:
        path = next((run.path for run in runs()[:1] if _fits(run, usual)), None)
    if path is None:
        if fallback is not None:
            raise InputError("--fallback goes with learned prompts: name them with --prompts.")
        text = TextPrompt(template if typed.prompt is None else typed.prompt)
        return PromptChoice(text.template, text, None, profile)
    if (path / "run.json").exists():
        RunFolder.open(path)  # raises for one that is damaged: what it says of its prompts is then not to be trusted
    learned, is_newest = load_prompts(path), path != typed.prompts
    check_usable(learned, fingerprint, model_id, layers or learned.layers)
    label = f"{learned.mode.value}{NAMED_PROMPTS}{path}"
    if learned.mode.rules.of_pairs:
        if fallback is not None:
            raise InputError("--fallback goes with class prompts: a cpm makes one for any pair.")
        return PromptChoice(label, None, learned, profile, path, is_newest)
    if fallback is not None:
        label, way_out = f"{label}{OR_ELSE}{fallback}", _fallback(runs, learned, fallback)
    return PromptChoice(label, SavedPrompts(learned, way_out), learned, profile, path, is_newest)


def tell_zeros(model_id: str, structure: str, profile: Profile, typed: Typed) -> PromptChoice:
    """What a transformer is told. Raises `ModelError` for a prompt that was asked for."""
    if any(given is not None for given in (typed.prompt, typed.prompts, getattr(typed, "fallback", None))):
        check_takes_prompts(structure, model_id)
    return PromptChoice("zeros", Zeros(), None, profile)


def choose_for_store(store: Store, typed: Typed, template: str = DEFAULT_TEMPLATE) -> PromptChoice:
    """`choose_prompts` for a store's model and the runs that were finished on it."""
    header = store.header

    def finished() -> list[RunFolder]:
        return [run for run in runs_newest_first(store) if run.is_finished]

    profile = profile_of(header.model_id, header.model_structure)
    if header.model_structure in TRANSFORMERS:
        return tell_zeros(header.model_id, header.model_structure, profile, typed)
    return choose_prompts(header.model_id, header.model_fingerprint, profile, finished, typed, template)


def _fits(run: RunFolder, layers: tuple[int, ...]) -> bool:
    """Whether a run has exactly these layers; any has where there are none, as of a model whose best are not known."""
    return not layers or set(run.settings.layers) == set(layers)


def _newest_for(runs: Sequence[RunFolder], layers: tuple[int, ...]) -> RunFolder:
    for run in runs:
        if _fits(run, layers):
            return run
    known = "; ".join(f"{run.path} has {','.join(map(str, run.settings.layers))}" for run in runs[:3])
    raise PromptError(
        f"There is no finished run on this store under {RUNS} with exactly the layers {','.join(map(str, layers))} "
        f"({known or 'there is none at all'}): train one, or name layers with --layers or a run with --prompts."
    )


def _fallback(runs: Callable[[], Sequence[RunFolder]], learned: LearnedPrompts, name: str) -> TextPrompt | SavedPrompts:
    if name == "text":
        return TextPrompt()
    if name != "single":
        raise InputError(f"--fallback is text or single, not {name!r}.")
    for run in runs():
        found = load_prompts(run.prompts)
        if found.mode is Mode.SINGLE and set(learned.layers) <= set(found.layers):
            return SavedPrompts(found)
    raise PromptError(
        f"There is no run of mode single for layers {', '.join(map(str, learned.layers))} under {RUNS}: train one, or "
        "take --fallback text."
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """What maps are made of.

    Args:
        store: Where they are kept.
        dataset: Whose images the store is of.
        choice: What the UNet is told.
        names: Of the layers.
        request: How they are made.
        adapter: That goes on top of them, if any.
    """

    store: Store
    dataset: Dataset
    choice: PromptChoice
    names: tuple[str, ...]
    request: MapRequest
    adapter: UsedAdapter | None = None

    def keys(self, timesteps: Sequence[int | None] | None) -> tuple[MapKey, ...]:
        """Each layer with its timestep, of those asked for or the usual ones. Raises `InputError` where counts
        disagree, or an adapter takes others."""
        is_clean = self.store.header.model_unet is not None
        if self.adapter is not None:
            return self.adapter.keys(self.names, timesteps, is_clean)
        usual = None if is_clean else self.choice.timesteps
        return tuple(zip(self.names, timesteps_for(self.names, timesteps, usual), strict=True))

    def layers(self, keys: Sequence[MapKey], weights: Sequence[float] | None) -> tuple[LayerSpec, ...]:
        """What is matched where maps are made of `keys`: these, or what an adapter makes of them, with the weights that
        were asked for or the usual ones. Raises `InputError` where counts disagree."""
        if self.adapter is not None:
            return self.adapter.layers(keys, weights)
        shares = weights_for(self.names, weights, self.choice.profile)
        return tuple(LayerSpec(*key, share) for key, share in zip(keys, shares, strict=True))

    def maps(self, made: MadeMaps, layers: Sequence[LayerSpec]) -> MapSource:
        """Maps that were made, as they are matched. layers: that are asked for, adapted where there is an adapter."""
        if made.adapted is not None:
            return StoredMaps(self.store, made.adapted)
        return self.adapted(StoredMaps(self.store, made.extractor, made.others), layers)

    def adapted(self, maps: MapSource, layers: Sequence[LayerSpec]) -> MapSource:
        """Maps as they are matched: those of a source, or what an adapter makes of them, as a store would keep it."""
        if self.adapter is None:
            return maps
        keys = [(layer.layer, layer.timestep) for layer in layers]
        return self.adapter.maps(maps, keys, self.request.compute.device, ENCODINGS[self.request.encoding])

    def describe(self, extractor: Extractor | None, others: Mapping[str, PixelExtractor]) -> dict[str, Any]:
        """Where maps came from, for the record.

        Args:
            extractor: Under whose name the UNet's are kept, None for those that are not.
            others: The same of other backbones, by family.

        Raises:
            AdapterError: Where an adapter was trained on others.
        """
        about: dict[str, Any] = {}
        if unet_layers(self.names):
            header = self.store.header
            about = {
                **self.choice.describe(),
                "ensemble": self.request.ensemble,
                "model": header.model_id,
                "model_revision": header.model_revision,
                "model_fingerprint": header.model_fingerprint,
                **({} if header.model_unet is None else {"unet": header.model_unet}),
                "dtype": self.request.compute.dtype_name,
                "latents": header.latents.value,
                "seed": header.seed,
                "extractor": None if extractor is None else extractor.key,
                **_describe_encoding(extractor),
            }
        for family, own in others.items():
            about |= {
                family: own.network.id,
                f"{family}_fingerprint": own.network.fingerprint,
                f"{family}_size": own.size,
                **({f"{family}_debias": own.debias} if own.debias else {}),
                "dtype": own.dtype,
                f"{family}_extractor": own.key,
                **_describe_encoding(own),
            }
        if self.adapter is None:
            return about
        self.adapter.check(about)
        return {**about, **self.adapter.describe()}


def _describe_encoding(extractor: AnyExtractor | None) -> dict[str, str]:
    """Of float16, which is the rule, nothing."""
    return {} if extractor is None or extractor.encoding == RAW else {"encoding": extractor.encoding}


def open_asked(config: KeptMapsConfig | EvalConfig | GridConfig, progress: Progress) -> Opened:
    """Open what a config names; which prompts are used is told.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    compute = choose_compute(config.device, config.dtype, config.batch_size)
    adapter = None if config.adapter is None else open_adapter(config.adapter)
    config = config if adapter is None else adapter.settled(config)
    store = open_store(config.store, config.sync)
    choice = choose_for_store(store, config)
    if adapter is not None and choice.prompts is None:
        raise no_adapter(choice.label)
    if choice.prompts is None:
        check_kept(config.encoding, "prompts of pairs (cpm)")
    names = config.layers or choice.layers
    check_of_structure(names, store.header.model_structure, store.header.model_id)
    if unet_layers(names):
        progress.tell(choice.line)
    others = asked_of(config.dino, config.dino_size, config.dino_debias)
    ensemble = 1 if store.header.model_unet is not None else config.ensemble or ENSEMBLE
    request = MapRequest(choice.prompts, ensemble, compute, config.encoding, others)
    opened = Opened(store, dataset_of(store, config.root), choice, names, request, adapter)
    if adapter is not None:
        opened.describe(None, {})  # refuses other prompts and models before maps are made
        progress.tell(adapter.line)
    return opened


@dataclass(frozen=True, slots=True)
class PairsToMatch:
    """The pairs of a split, and the processes that match them.

    Args:
        split: Its name.
        count: Pairs in the list.
        rows: Of the images that this process makes maps of, in the store.
        pairs: In the store's frame, those whose images could be read when it was built.
        notes: What is odd about the list.
        processes: That have met.
        progress: Of the main process.
    """

    split: str
    count: int
    rows: list[int]
    pairs: Pairs
    notes: tuple[str, ...]
    processes: Processes
    progress: Progress

    def without(self, unreadable: Sequence[ImageError]) -> Pairs:
        """The pairs that need none of some images; those left out are told."""
        bad, pairs = {error.image_id for error in unreadable}, self.pairs
        if bad:
            pairs = pairs.among([image for image in pairs.images if image not in bad])
        tell_left_out(self.progress, unreadable, self.count, len(pairs))
        return pairs


def take_pairs(
    opened: Opened, split: str, pairs: AnnotatedPairs, progress: Progress, config: EvalConfig | GridConfig
) -> PairsToMatch:
    """Bring pairs into the store's frame, with the thresholds that a config asks for. The processes meet here, once
    what was asked for is found to be right. Of images that were not readable when the store was built the sizes are not
    known; whoever makes their maps says why.

    Raises:
        InputError: In one of its kinds: for categories without prompts, images that have changed, annotations that
            cannot be meant.
    """
    store, dataset = opened.store, opened.dataset
    opened.choice.check_categories(set(pairs.occurring))
    images, known = images_of(pairs), store.images
    processes = join_processes()
    processes.check_same(dict(opened.choice.describe()), "prompts")  # the newest run's, which another may be just now
    progress = progress if processes.is_main else Silent()
    share = processes.part.of(images)
    check_unchanged(store, dataset, share, progress)
    readable = pairs.among([image for image in images if known.sizes[known.row(image)].all()])
    if not readable:
        raise DatasetError(f"No pair of {dataset.name} {split} is left: each needs an image that could not be read.")
    size, pad = store.header.image_size, store.header.pad
    framed = in_resized_frame(dataset, readable, known.size, size, progress, pad, config.theta)
    framed = replace(framed, strict=config.strict)
    notes = note_oddities(dataset, [split], images, known.known_keys, progress)
    return PairsToMatch(split, len(pairs), [*map(known.row, share)], framed, notes, processes, progress)
