"""`dualsd prompts import | export | info`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import JsonOption, RevisionOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.prompts.base import LearnedPrompts

app = typer.Typer(no_args_is_help=True, help="Learned prompts: from and to SD4Match's files, and what is in them.")

IMPORT_EXAMPLES = (
    "Examples:\n\n"
    "dualsd prompts import Class_spair_sd2-1_TokenEmbeds75/caption.pt --model sd2-1 --out class.safetensors\n\n"
    "dualsd prompts import ckpt.pt --from sd4match --mode cpm --model sd2-1 --layer 2 --t 261 --out cpm.safetensors\n\n"
    "dualsd eval --store spair.zarr --prompts class.safetensors"
)
EXPORT_EXAMPLES = (
    "Examples:\n\n"
    "dualsd prompts export runs/class-2-001 --to sd4match --out caption.pt\n\n"
    "dualsd prompts export runs/cpm-2+3-001 --layer 2 --out ckpt.pt"
)
INFO_EXAMPLES = (
    "Examples:\n\ndualsd prompts info runs/class-2+3-001\n\ndualsd prompts info cpm.safetensors --json i.json"
)

FORMATS = ("sd4match",)
TRAINED = ("steps", "batch", "rate", "network_rate", "kernel", "noise", "draws", "seed", "dtype")
"""The settings of a training run that `info` prints."""

RunOrFile = Annotated[Path, typer.Argument(help="A run's folder, or a .safetensors file.", metavar="RUN_OR_FILE")]


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_prompts(
    file: Annotated[Path, typer.Argument(help="SD4Match's caption.pt or ckpt.pt.", metavar="FILE.pt")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="What they were made for: sd2-1, sd1-5, demo, a hub name or a folder.",
            show_default="it must be named",
        ),
    ] = None,
    source: Annotated[str, typer.Option("--from", help="Whose file it is: sd4match.")] = FORMATS[0],
    revision: RevisionOption = None,
    layer: Annotated[int, typer.Option("--layer", help="Decoder layer, 1 to 4, that they were learned for.")] = 2,
    t: Annotated[int, typer.Option("--t", help="Timestep that they were learned at.")] = 261,
    mode: Annotated[
        str | None, typer.Option("--mode", help="single, class or cpm.", show_default="told from the file")
    ] = None,
) -> None:
    """Read SD4Match's published prompts into a file that --prompts takes. Nothing in the pickle is executed."""
    _check_format("--from", source)
    from cli.output import check_writable, say
    from featstore.pipeline.defaults import model_for

    named = model_for(None, model)
    check_writable(out)
    from featstore.prompts.saved import save_prompts
    from featstore.prompts.sd4match import import_published

    learned, ignored = import_published(file, named, revision, layer, t, mode)
    save_prompts(learned, out)
    if ignored:
        say(f"{len(ignored)} tensor(s) that belong to no prompt are left out: {', '.join(ignored)}")
    for line in _doubts(learned):
        say(line)
    say(f"{out}: {_describe(learned)}")
    say(f"  dualsd eval --prompts {out}")


@app.command("export", epilog=EXPORT_EXAMPLES)
def export(
    prompts: RunOrFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .pt file to write.")],
    target: Annotated[str, typer.Option("--to", help="Whose layout: sd4match.")] = FORMATS[0],
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="Layer whose prompts are written.", show_default="the only one"),
    ] = None,
) -> None:
    """Write one layer's prompts as SD4Match's caption.pt (single, class) or ckpt.pt (cpm)."""
    _check_format("--to", target)
    from cli.output import check_writable, say
    from featstore.prompts.saved import load_prompts
    from featstore.prompts.sd4match import write_published

    check_writable(out)
    learned = load_prompts(prompts)
    if layer is None and len(learned.layers) > 1:
        raise InputError(
            f"{prompts} has prompts for layers {', '.join(map(str, learned.layers))}, and SD4Match's files are for "
            "one: say which with --layer."
        )
    chosen = learned.layers[0] if layer is None else layer
    write_published(learned, chosen, out)
    say(f"{out}: {learned.mode.value} prompts for layer {chosen} in SD4Match's layout")


@app.command("info", epilog=INFO_EXAMPLES)
def info(prompts: RunOrFile, json: JsonOption = None) -> None:
    """What prompts are: mode, layers, length, categories, model, how they were learned, size, and a hash per layer."""
    from cli.output import check_writable, human_bytes, print_table, say, write_json
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
    say(_origin(learned))
    for line in _doubts(learned):
        say(line)
    print_table(
        "layers",
        ["layer", "learned at t", "tensors", "numbers", "content"],
        [
            [
                str(layer),
                str(timestep),
                str(len(learned.tensors[layer])),
                f"{sum(tensor.numel() for tensor in learned.tensors[layer].values()):,}",
                learned.content(layer),
            ]
            for layer, timestep in zip(learned.layers, learned.timesteps, strict=True)
        ],
    )
    write_json(
        json,
        {
            "file": str(file),
            **{"t" if name == "timesteps" else name: value for name, value in learned.to_json().items()},
            "bytes": size,
            "content": {str(layer): learned.content(layer) for layer in learned.layers},
        },
    )


def _check_format(option: str, name: str) -> None:
    if name not in FORMATS:
        raise InputError(f"{option} is {' or '.join(FORMATS)}, not {name!r}.")


def _describe(learned: "LearnedPrompts") -> str:
    layers = " + ".join(
        f"layer {layer} (t = {timestep})" for layer, timestep in zip(learned.layers, learned.timesteps, strict=True)
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
