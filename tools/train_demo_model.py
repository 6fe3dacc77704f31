"""Trains the demo model from scratch and writes it as a diffusers folder:

    python -m tools.train_demo_model --out featstore/assets/demo_model --work /tmp/demo_train

May be interrupted at any time; the same command goes on from the last checkpoint in --work."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import CLIPTokenizer

from tools.demo_model.card import write_card
from tools.demo_model.dino_stage import train_dino
from tools.demo_model.loop import ResumeError
from tools.demo_model.pictures import draw_pictures
from tools.demo_model.recipe import Recipe
from tools.demo_model.small_model import write_components, write_tokenizer
from tools.demo_model.unet_stage import train_unet
from tools.demo_model.vae_stage import encode, train_vae


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    work: Annotated[Path, typer.Option(help="Folder for checkpoints, pictures, latents and losses.csv.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    pictures: Annotated[int, typer.Option(min=16, help="Training pictures to draw.")] = 6000,
    vae_steps: Annotated[int, typer.Option(min=0)] = 950,
    unet_steps: Annotated[int, typer.Option(min=0)] = 2600,
    dino_steps: Annotated[int, typer.Option(min=0, help="0: the tiny DINOv2 keeps random weights.")] = 200,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train the demo model: VAE, then UNet and text encoder, then the tiny DINOv2."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(seed, pictures, vae_steps, unet_steps, dino_steps)
    try:
        _train(recipe, out, work)
    except ResumeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _train(recipe: Recipe, out: Path, work: Path) -> None:
    started = time.perf_counter()

    def say(text: str) -> None:
        typer.echo(f"{time.perf_counter() - started:7.0f} s  {text}")

    write_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    say(f"{recipe.pictures} pictures")
    drawn = draw_pictures(recipe.seed, recipe.pictures, work)
    say(f"vae: {recipe.vae_steps} steps")
    vae = train_vae(recipe, drawn, work)
    say("latents")
    moments, scale = encode(vae, recipe, drawn, work)
    vae.register_to_config(scaling_factor=scale)
    say(f"unet and text encoder: {recipe.unet_steps} steps")
    unet, text_encoder = train_unet(recipe, moments, tokenizer, work)
    say(f"dinov2: {recipe.dino_steps} steps")
    dino = train_dino(recipe, drawn, work)
    write_tokenizer(out / "tokenizer")
    write_components(out, vae=vae, unet=unet, text_encoder=text_encoder, dino=dino, dtype=torch.float16)
    write_card(out, recipe, torch.get_num_threads(), work / "losses.csv")
    say(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
