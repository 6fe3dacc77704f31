"""Trains a finished demo model further, on captions that say what is seen, and writes the whole model:

    python -m tools.caption_demo_model --start STAGE1 --out featstore/assets/demo_model --work /tmp/demo_train

STAGE1 is what `tools.train_demo_model` wrote. May be interrupted at any time; the same command goes on from the last
checkpoint in --work."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer, Dinov2Model

from tools.demo_model.caption_stage import CaptionRecipe, scaled_posteriors, train_captions
from tools.demo_model.captions import tell_pictures, words
from tools.demo_model.card import extend_card
from tools.demo_model.loop import ResumeError
from tools.demo_model.pictures import draw_pictures
from tools.demo_model.small_model import DINO_FOLDER, WORDS, write_components, write_tokenizer


def main(
    start: Annotated[Path, typer.Option(help="Folder of the model to go on from.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, pictures and losses.csv.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    pictures: Annotated[int, typer.Option(min=16, help="Training pictures to draw.")] = 6000,
    steps: Annotated[int, typer.Option(min=0)] = 2400,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train UNet and text encoder of a demo model further; its autoencoder and DINOv2 stay."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    try:
        _train(CaptionRecipe(seed, pictures, steps), start, out, work)
    except ResumeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _train(recipe: CaptionRecipe, start: Path, out: Path, work: Path) -> None:
    started = time.perf_counter()

    def say(text: str) -> None:
        typer.echo(f"{time.perf_counter() - started:7.0f} s  {text}")

    card = (start / "README.md").read_text(encoding="utf-8")
    say(f"{recipe.pictures} pictures")
    drawn = draw_pictures(recipe.seed, recipe.pictures, work)
    told = tell_pictures(recipe.seed, drawn)
    say("latents")
    moments = scaled_posteriors(start, drawn)
    vocabulary = (*WORDS, *(word for word in words(told) if word not in WORDS))
    write_tokenizer(work / "tokenizer-captions", vocabulary)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer-captions")
    say(f"unet and text encoder: {recipe.steps} steps")
    unet, text_encoder = train_captions(recipe, start, moments, told, tokenizer, work)
    vae = AutoencoderKL.from_pretrained(start / "vae")
    dino = Dinov2Model.from_pretrained(start / DINO_FOLDER)
    write_tokenizer(out / "tokenizer", vocabulary)
    write_components(out, vae=vae, unet=unet, text_encoder=text_encoder, dino=dino, dtype=torch.float16)
    (out / "README.md").write_text(
        extend_card(card, recipe, torch.get_num_threads(), work / "losses.csv"), encoding="utf-8", newline="\n"
    )
    say(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
