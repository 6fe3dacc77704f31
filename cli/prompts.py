"""`dualsd prompts import | export | info`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.help import Command, Group
from cli.options import JsonOption, examples, taking
from cli.output import check_writable, print_table, say, write_json
from featstore.backbones.base import spell_timestep
from featstore.kept_config import ImportConfig, PublishConfig
from featstore.plain_text import human_bytes
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.prompts.base import LearnedPrompts

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Learned prompts: from and to SD4Match's files, and what is in them."
)

IMPORT_EXAMPLES = examples(
    "dualsd prompts import Class_spair_sd2-1_TokenEmbeds75/caption.pt --model sd2-1 --out class.safetensors",
    "dualsd prompts import ckpt.pt --from sd4match --mode cpm --model sd2-1 --layer 2 --t 261 --out cpm.safetensors",
    "dualsd eval --store spair.zarr --prompts class.safetensors",
)
EXPORT_EXAMPLES = examples(
    "dualsd prompts export runs/class-2-001 --to sd4match --out caption.pt",
    "dualsd prompts export runs/cpm-2+3-001 --layer 2 --out ckpt.pt",
)
INFO_EXAMPLES = examples("dualsd prompts info runs/class-2+3-001", "dualsd prompts info cpm.safetensors --json i.json")
TRAINED = ("steps", "batch", "rate", "network_rate", "kernel", "noise", "draws", "seed", "dtype")
"""The settings of a training run that `info` prints."""


@app.command("import", cls=Command, epilog=IMPORT_EXAMPLES)
@taking(ImportConfig)
def import_prompts(config: ImportConfig) -> None:
    """Read SD4Match's published prompts into a file that --prompts takes. Nothing in the pickle is executed."""
    from featstore.pipeline.defaults import model_for

    named, out = model_for(None, config.model), config.out
    check_writable(out)
    from featstore.prompts.saved import save_prompts
    from featstore.prompts.sd4match import import_published

    learned, ignored = import_published(config.file, named, config.revision, config.layer, config.timestep, config.mode)
    save_prompts(learned, out)
    if ignored:
        say(f"{len(ignored)} tensor(s) that belong to no prompt are left out: {', '.join(ignored)}")
    for line in _doubts(learned):
        say(line)
    say(f"{out}: {_describe(learned)}", f"  dualsd eval --prompts {out}")


@app.command("export", cls=Command, epilog=EXPORT_EXAMPLES)
@taking(PublishConfig)
def export(config: PublishConfig) -> None:
    """Write one layer's prompts as SD4Match's caption.pt (single, class) or ckpt.pt (cpm)."""
    check_writable(config.out)
    from featstore.prompts.saved import load_prompts
    from featstore.prompts.sd4match import write_published

    learned = load_prompts(config.prompts)
    if config.layer is None and len(learned.layers) > 1:
        raise InputError(
            f"{config.prompts} has prompts for layers {', '.join(map(str, learned.layers))}, and SD4Match's files are "
            "for one: say which with --layer."
        )
    chosen = learned.layers[0] if config.layer is None else config.layer
    write_published(learned, chosen, config.out)
    say(f"{config.out}: {learned.mode.value} prompts for layer {chosen} in SD4Match's layout")


@app.command("info", cls=Command, epilog=INFO_EXAMPLES)
def info(
    prompts: Annotated[Path, typer.Argument(help="A run's folder, or a .safetensors file.", metavar="RUN_OR_FILE")],
    json: JsonOption = None,
) -> None:
    """What prompts are: mode, layers, length, categories, model, how they were learned, size, and a hash per layer."""
    from featstore.prompts.saved import file_of, load_prompts

    check_writable(json)
    file = file_of(prompts)
    learned = load_prompts(prompts)
    size = file.stat().st_size
    say(f"{file}: {_describe(learned)}; {human_bytes(size)}")
    say(f"model: {learned.model.id}, fingerprint {learned.model.fingerprint}")
    if learned.dino is not None:
        say(f"DINOv2: {learned.dino.id}, fingerprint {learned.dino.fingerprint or 'unknown'}")
    if learned.categories:
        say(f"categories: {', '.join(learned.categories)}")
    for line in (_origin(learned), *_doubts(learned)):
        say(line)
    content = {layer: learned.content(layer) for layer in learned.layers}
    rows = []
    for layer, timestep in zip(learned.layers, learned.timesteps, strict=True):
        tensors = learned.tensors[layer].values()
        rows.append(
            (layer, spell_timestep(timestep), len(tensors), f"{sum(own.numel() for own in tensors):,}", content[layer])
        )
    print_table("layers", ["layer", "learned at t", "tensors", "numbers", "content"], rows)
    named = {"t" if name == "timesteps" else name: value for name, value in learned.to_json().items()}
    hashes = {str(layer): own for layer, own in content.items()}
    write_json(json, {"file": str(file), **named, "bytes": size, "content": hashes})


def _describe(learned: "LearnedPrompts") -> str:
    layers = " + ".join(
        f"layer {layer} (t = {spell_timestep(timestep)})"
        for layer, timestep in zip(learned.layers, learned.timesteps, strict=True)
    )
    count = f"{len(learned.categories)} " if learned.categories else ""
    return f"{count}{learned.mode.value} prompts of {learned.length} vectors for {layers} of {learned.model.id}"


def _origin(learned: "LearnedPrompts") -> str:
    """How prompts were learned, as far as they say."""
    training = learned.training
    if "imported" in training:
        return f"imported from SD4Match's {training['imported']['file']}, which does not say how they were learned"
    settings: dict[str, Any] = training.get("settings", {})
    known = [f"{name} {settings[name]}" for name in TRAINED if name in settings]
    dataset, side = training.get("dataset", "an unknown dataset"), training.get("image_size", "unknown")
    return f"learned on {dataset}, images of {side} pixels a side: {', '.join(known) or 'no settings are recorded'}"


def _doubts(learned: "LearnedPrompts") -> list[str]:
    """What imported prompts leave open, a line each."""
    imported = learned.training.get("imported", {})
    found = []
    if not imported.get("framed", True):
        found.append(
            "note: start, end and padding around the vectors are not those of this model's text encoder: these are "
            "prompts of another model, or SD4Match's HiddenState kind, which dualsd cannot use, and numbers made with "
            "them mean nothing"
        )
    if imported and learned.dino is not None:
        found.append(f"note: the file does not say whose patch tokens it takes; {learned.dino.id} is taken on trust")
    return found
