"""The model card that lies beside the weights."""

import csv
from collections import defaultdict
from pathlib import Path

from tools.demo_model.recipe import Recipe

ABOUT = """---
license: apache-2.0
library_name: diffusers
---

# dualsd demo model

A small latent diffusion model, trained from scratch, that ships with dualsd so that its commands, tests and tutorials
run without a download, a GPU or a licence.

## What it is

An ordinary diffusers folder (`diffusers.StableDiffusionPipeline.from_pretrained` reads it) with the block structure of
Stable Diffusion 2-1 at a fraction of its width, float16:

| component | what |
|---|---|
| vae | AutoencoderKL, channels 16, 32, 64; 128x128 pictures to latents 4x32x32 |
| unet | 5.8 million parameters, channels 32, 64, 128, 128, cross-attention width 64, v-prediction |
| text_encoder, tokenizer | a causal CLIP: two layers, width 64, 77 positions; a word of the captions is one token |
| scheduler | SD 2-1's noise schedule |
| dinov2 | a DINOv2 of four layers and width 96, for `cpm` and `dino` |

Layers 1 to 4 of its decoder are maps of 8x8, 16x16, 32x32 and 32x32 cells with 128, 128, 64 and 32 channels.
"""

LIMITS = """
## What it is not

- It is no model of photographs. It has seen drawings of four things and nothing else; expect little of its
  features on photographs, and nothing about Stable Diffusion from its PCK.
- It is no picture generator: it is trained far too briefly for that.
- Its text encoder knows the words of the captions above and no others.
- It is no reduction or distillation of any published model; no weights, pictures or captions of others went into it.
"""


def write_card(folder: Path, recipe: Recipe, threads: int, losses: Path) -> None:
    """Writes README.md into the model's folder; threads: of the CPU; losses: the run's losses.csv."""
    text = ABOUT + _training(recipe, threads) + _curves(losses) + LIMITS
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")


def _training(recipe: Recipe, threads: int) -> str:
    dino = (
        f"{recipe.dino_steps} steps of batch 8, self-supervised: a patch of one view of a picture must find its own "
        "place in another view among the patches of the whole batch."
        if recipe.dino_steps
        else "not trained: its weights are random, from the seed."
    )
    return f"""
## What it was trained on, and how

{recipe.pictures:,} pictures (128x128) of birds, cars, fish and persons, drawn by dualsd's own demo dataset code from a
stream of their own: no picture of the demo's trn, val or test splits was among them. No keypoints were used.

- Autoencoder: absolute and squared error and a light KL term, {recipe.vae_steps:,} steps, most of 12 crops of 64x64.
- UNet and text encoder, together, by denoising alone (v-prediction): {recipe.unet_steps:,} steps of batch 16 with
  captions "a photo of a bird" (car, fish, person), one in ten empty. Latents scaled to unit variance.
- DINOv2: {dino}

AdamW, moving average of the weights. The command, from the root of dualsd's repository:

    python -m tools.train_demo_model --out featstore/assets/demo_model --work WORK \\
        --seed {recipe.seed} --pictures {recipe.pictures} --vae-steps {recipe.vae_steps} \\
        --unet-steps {recipe.unet_steps} --dino-steps {recipe.dino_steps} --threads {threads}

The same command gives the same weights on the same machine. Another number of threads rounds sums otherwise, which ends
in other weights of like quality.
"""


def _curves(losses: Path) -> str:
    """A few points of each stage's loss curve: means over tenths of the run."""
    stages: dict[str, list[tuple[float, float]]] = defaultdict(list)
    if losses.exists():
        with losses.open(newline="") as file:
            for row in csv.DictReader(file):
                stages[row["stage"]].append((float(row["loss"]), float(row["seconds"])))
    lines = ["", "Loss, averaged over each tenth of the steps, and the wall time of the stage:", ""]
    lines += ["| stage | " + " | ".join(f"{tenth}0 %" for tenth in range(1, 11)) + " | minutes |", "|---" * 12 + "|"]
    for stage, points in stages.items():
        count = len(points)
        tenths = [points[count * tenth // 10 : count * (tenth + 1) // 10] or points[-1:] for tenth in range(10)]
        means = [sum(loss for loss, _ in part) / len(part) for part in tenths]
        minutes = points[-1][1] / 60
        lines.append(f"| {stage} | " + " | ".join(f"{mean:.3f}" for mean in means) + f" | {minutes:.0f} |")
    return "\n".join(lines) + "\n"
