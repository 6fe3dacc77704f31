"""A published configuration at full size with random weights, end to end on this machine: time and peak memory of each
command.

    python -m benchmarks.full_size --photographs PF-WILLOW [--model NAME] [--layers 2,3] [--dtype float32]

A model of that configuration is written in the published layout, and SPair-71k's layout of the first pair of
PF-Willow's photographs, both in a folder that goes at the end. Then `cache build`, `cache maps`, `eval` and one step of
`train --gradient-checkpointing` run as anybody types them, each in a process of its own, on the CPU with one draw of
noise. Peak memory is the process's largest resident set (`wait4`). Random weights match nothing: the scores are not
printed.
"""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import transformers
import typer
from PIL import Image

from tools.demo_model.small_model import write_tokenizer
from tools.published import MODELS

SHARDS = "10GB"
"""Larger than any network here: one file each, as published."""


def write_model(folder: Path, components: Mapping[str, Mapping[str, Any]], dtype: torch.dtype, seed: int = 0) -> None:
    """Write a model of random weights in the layout that diffusers publishes."""
    torch.set_default_dtype(dtype)  # SDXL would take twice as much memory while it is made
    for name, config in components.items():
        place = folder / name
        if name == "scheduler":
            place.mkdir(parents=True)
            (place / "scheduler_config.json").write_text(json.dumps(dict(config)))
            continue
        torch.manual_seed(seed)
        if name.startswith("text_encoder"):
            # the small vocabulary's ids lie in the published one
            count = write_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
            kind = transformers.CLIPTextModelWithProjection if name.endswith("_2") else transformers.CLIPTextModel
            own = {**config, "bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": 0}
            network = kind(transformers.CLIPTextConfig(**{key: own[key] for key in own if key != "model_type"}))
        else:
            network = getattr(diffusers, config["_class_name"]).from_config(dict(config))
        network.to(dtype).save_pretrained(place, max_shard_size=SHARDS)

    torch.set_default_dtype(torch.float32)


def write_pair(root: Path, willow: Path) -> None:
    """Two photographs of PF-Willow and their keypoints, in SPair-71k's layout, as a pair of every split."""
    with (willow / "test_pairs.csv").open() as file:
        row = next(csv.DictReader(file))
    folder = root / "JPEGImages" / "car"
    folder.mkdir(parents=True)
    told: dict[str, Any] = {}
    for name, column, side in (("src", "imageA", "A"), ("trg", "imageB", "B")):
        picture = Image.open(willow / row[column]).convert("RGB")
        picture.save(folder / f"{name}.jpg", quality=95)
        points = [[float(row[f"{axis}{side}{number}"]) for axis in "XY"] for number in range(1, 11)]
        size = [picture.width, picture.height, 3]
        told |= {f"{name}_imname": f"{name}.jpg", f"{name}_imsize": size, f"{name}_kps": points}
        told |= {f"{name}_bndbox": [1, 1, picture.width - 1, picture.height - 1], f"{name}_pose": "Left"}
    counts = dict.fromkeys(("mirror", "viewpoint_variation", "scale_variation", "truncation", "occlusion"), 0)
    pair = "000001-src-trg:car"
    told |= {"filename": pair, "category": "car", "kps_ids": [*map(str, range(10))], **counts}
    for split in ("trn", "val", "test"):
        annotation = root / "PairAnnotation" / split / f"{pair}.json"
        annotation.parent.mkdir(parents=True)
        annotation.write_text(json.dumps(told))
        layout = root / "Layout" / "large" / f"{split}.txt"
        layout.parent.mkdir(parents=True, exist_ok=True)
        layout.write_text(f"{pair}\n")


def run(arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak gigabytes of a command. Ends the benchmark where it fails."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "dualsd", *arguments], cwd=folder, env=os.environ)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"dualsd {' '.join(arguments)} failed")
    return time.monotonic() - started, used.ru_maxrss * 1024 / 1e9


def main(
    photographs: Annotated[Path, typer.Option(help="PF-Willow's folder, with test_pairs.csv.")],
    model: Annotated[str, typer.Option(help="Of `tools.published.MODELS`.")] = "Stable Diffusion 2-1",
    layers: Annotated[str, typer.Option(help="Layers whose maps are made.")] = "2,3",
    timesteps: Annotated[str, typer.Option("--t", help="One per layer.")] = "261,200",
    weights: Annotated[str, typer.Option(help="One per layer.")] = "0.8,0.6",
    dtype: Annotated[str, typer.Option(help="Of the networks in all commands.")] = "float32",
    stored: Annotated[str, typer.Option(help="Of the weights on disk.")] = "bfloat16",
    train: Annotated[bool, typer.Option(help="Whether a step is trained as well.")] = True,
) -> None:
    """Print time and peak memory of each command."""
    published = next(own for own in MODELS if own.name == model)
    willow = photographs.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "model", published.components, getattr(torch, stored)
        # apart: a process's peak counts from that of the one which starts it
        maker = multiprocessing.get_context("spawn").Process(target=write_model, args=made)
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the model could not be written")
        write_pair(folder / "spair", willow)
        how = ("--dtype", dtype, "--device", "cpu", "--batch-size", "1")
        taken = ("--layers", layers, "--t", timesteps)
        step = ("--mode", "single", "--steps", "1", "--batch", "1", "--draws", "1", "--val-pairs", "1", "--kernel", "7")
        commands = {
            "cache build": (
                *("cache", "build", "--dataset", "spair", "--root", "spair", "--model", "model", "--t", timesteps),
                *how,
            ),
            "cache maps": ("cache", "maps", *taken, "--ensemble", "1", *how),
            "eval": ("eval", *taken, "--weights", weights, "--ensemble", "1", *how),
        }
        if train:
            commands["train, 1 step"] = ("train", *taken, "--weights", weights, *step, "--gradient-checkpointing", *how)
        found = {what: run(arguments, folder) for what, arguments in commands.items()}
    threads = torch.get_num_threads()
    print(f"{model}, 2 photographs at {published.size} pixels, layers {layers}, {dtype}, {threads} threads")
    print("| command | seconds | peak GB |\n|---|---|---|")
    for what, (seconds, peak) in found.items():
        print(f"| `{what}` | {seconds:.0f} | {peak:.1f} |")


if __name__ == "__main__":
    typer.run(main)
