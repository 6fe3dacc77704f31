"""Which prompts a command uses: `--prompts RUN`, `--prompt TEXT`, or, for `eval`, the newest run's; and what to do for
categories that have none."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featstore.errors import PromptError
from featstore.prompts import pairwise
from featstore.prompts.file import load_prompts
from featstore.prompts.learned import LearnedPrompts, Mode
from featstore.prompts.prompts import Prompts
from featstore.prompts.saved import SavedPrompts, check_usable
from featstore.prompts.text import DEFAULT_TEMPLATE, TextPrompt
from featstore.store.store import Store
from featstore.tuning.run_folder import RUNS, RunFolder, runs_newest_first
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """label: as it is printed and recorded. prompts: those that belong to images; None for a cpm's. learned: those of a
    run or file, None for a text."""

    label: str
    prompts: Prompts | None
    learned: LearnedPrompts | None

    def of_images(self, command: str) -> Prompts:
        """Raises `InputError` for prompts that belong to pairs."""
        if self.prompts is None:
            raise InputError(f"{self.label} belong to pairs: `{command}` takes text, single or class prompts.")
        return self.prompts

    def check_categories(self, categories: Collection[str]) -> None:
        """Raise `PromptError` for categories that have no prompt."""
        if isinstance(self.prompts, SavedPrompts):
            self.prompts.check_categories(categories)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        if self.learned is None:
            return {"prompt": self.label}
        content = pairwise.describe(self.learned) if self.prompts is None else self.prompts.describe()
        return {"prompt": self.label, "prompts": content}


def choose_prompts(
    model_id: str,
    fingerprint: str,
    runs: Sequence[RunFolder],
    layers: tuple[int, ...] | None,
    prompt: str | None,
    prompts: Path | None,
    fallback: str | None,
    *,
    or_newest: bool,
) -> PromptChoice:
    """What was typed; else, where `or_newest`, those of the first of `runs` that has all the layers asked for; else the
    text template.

    model_id, fingerprint: of the model at hand. runs: that were trained with it, the newest first. Raises `InputError`
    for a text and learned prompts at once, `PromptError` for prompts that this model or these layers cannot use.
    """
    if prompt is not None and prompts is not None:
        raise InputError("--prompt and --prompts exclude each other: a text, or learned prompts.")
    if prompts is not None:
        return _learned(prompts, model_id, fingerprint, runs, layers, fallback)
    for newest in runs if or_newest and prompt is None else ():
        learned = load_prompts(newest.prompts)
        if layers is None or set(layers) <= set(learned.layers):
            return _learned(newest.path, model_id, fingerprint, runs, layers, fallback)
    if fallback is not None:
        raise InputError("--fallback goes with learned prompts: name them with --prompts.")
    text = TextPrompt(DEFAULT_TEMPLATE if prompt is None else prompt)
    return PromptChoice(text.template, text, None)


def choose_for_store(
    store: Store,
    layers: tuple[int, ...] | None,
    prompt: str | None,
    prompts: Path | None,
    fallback: str | None,
    *,
    or_newest: bool,
) -> PromptChoice:
    """`choose_prompts` for a store's model and the runs that were trained on it."""
    header, runs = store.header, runs_newest_first(store)
    return choose_prompts(
        header.model_id, header.model_fingerprint, runs, layers, prompt, prompts, fallback, or_newest=or_newest
    )


def layers_of(choice: PromptChoice, typed: tuple[int, ...] | None) -> tuple[int, ...]:
    """The layers that were typed, else those of the prompts, else the report's two."""
    return typed or (DUAL if choice.learned is None else choice.learned.layers)


DUAL = (2, 3)


def _learned(
    path: Path,
    model_id: str,
    fingerprint: str,
    runs: Sequence[RunFolder],
    layers: tuple[int, ...] | None,
    fallback: str | None,
) -> PromptChoice:
    learned = load_prompts(path)
    check_usable(learned, fingerprint, model_id, layers or learned.layers)
    label = f"{learned.mode.value} prompts of {path}"
    if learned.mode is Mode.CPM:
        if fallback is not None:
            raise InputError("--fallback goes with class prompts: a cpm makes one for any pair.")
        return PromptChoice(label, None, learned)
    way_out = None if fallback is None else _fallback(runs, learned, fallback)
    return PromptChoice(
        label if fallback is None else f"{label}, else {fallback}", SavedPrompts(learned, way_out), learned
    )


def _fallback(runs: Sequence[RunFolder], learned: LearnedPrompts, name: str) -> TextPrompt | SavedPrompts:
    if name == "text":
        return TextPrompt()
    if name != "single":
        raise InputError(f"--fallback is text or single, not {name!r}.")
    for run in runs:
        found = load_prompts(run.prompts)
        if found.mode is Mode.SINGLE and set(learned.layers) <= set(found.layers):
            return SavedPrompts(found)
    raise PromptError(
        f"There is no run of mode single for layers {', '.join(map(str, learned.layers))} under {RUNS}: train one, or "
        "take --fallback text."
    )
