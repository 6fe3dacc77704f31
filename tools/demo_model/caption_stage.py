"""The second stage: the UNet and the text encoder of a finished model go on with captions that say what is seen."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tools.demo_model.captions import Told, caption
from tools.demo_model.loop import Plan, step_generator, train
from tools.demo_model.pictures import as_input, batch_indices
from tools.demo_model.small_model import small_scheduler, small_text_encoder
from tools.demo_model.unet_stage import denoising_loss, draw_batch, tokenize

BATCH = 16
RATE = 4e-4
NEW_WORDS = 0.5
"""The standard deviation of a new word's embedding: with CLIP's 0.02 it is lost in what the encoder has grown to."""

LISTENING, TIMES = ("text_encoder.", ".attn2."), 4.0
"""What learns faster, and how much: the text encoder, and what reads it."""

NOISY = (400, 1000)
"""Half of the timesteps are drawn from here and half from all 1000: where a caption knows what the latents hide."""


@dataclass(frozen=True, slots=True)
class CaptionRecipe:
    """What the weights of the second stage are a function of, with the model that it starts from.

    seed: of the pictures (the first stage's), batches, words and noise. pictures: how many. steps: of the optimiser.
    """

    seed: int
    pictures: int
    steps: int

    def identity(self, start: Path) -> str:
        """All that the weights depend on but the number of steps; kept in checkpoints. start: folder of the model."""
        digest = hashlib.sha256()
        for part in ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"):
            digest.update((start / f"{part}.safetensors").read_bytes())
        return f"captions seed={self.seed} pictures={self.pictures} start={digest.hexdigest()[:16]}"


@torch.no_grad()
def scaled_posteriors(start: Path, pictures: Tensor) -> Tensor:
    """Every picture's posterior by the autoencoder of a finished model, (n, 8, 32, 32): mean and standard deviation,
    times its scale. pictures: (n, 3, 128, 128) uint8."""
    vae = AutoencoderKL.from_pretrained(start / "vae", torch_dtype=torch.float32).to(memory_format=torch.channels_last)
    posteriors = [vae.encode(as_input(chunk)).latent_dist for chunk in torch.split(pictures, 50)]
    moments = torch.cat([torch.cat([each.mean, each.std], dim=1) for each in posteriors])
    return (moments * vae.config.scaling_factor).half()


def train_captions(
    recipe: CaptionRecipe, start: Path, moments: Tensor, told: list[Told], tokenizer: CLIPTokenizer, work: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Goes on where the model in `start` ends; the same loss as the first stage's.

    moments: (n, 8, 32, 32), of `scaled_posteriors`. told: what captions may say of each picture. tokenizer: the new
    one, with a token per word of the captions.
    """
    torch.manual_seed(recipe.seed + 3)
    unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    unet.to(memory_format=torch.channels_last)
    text_encoder = grown_text_encoder(start, tokenizer)
    scheduler = small_scheduler()

    def loss_at(step: int) -> Tensor:
        chance = step_generator(recipe.seed, "captions", step)
        chosen = batch_indices(len(moments), BATCH, recipe.seed + 3, step)
        batch = draw_batch(moments[chosen], NOISY, chance)
        texts = [caption(told[index], chance) for index in chosen.tolist()]
        prompts = text_encoder(tokenize(tokenizer, texts)).last_hidden_state
        return denoising_loss(unet, scheduler, batch, prompts)

    plan = Plan("captions", recipe.identity(start), recipe.steps, RATE, faster=LISTENING, times=TIMES)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    averaged = train(plan, both, loss_at, work)
    assert isinstance(averaged, nn.ModuleDict)
    averaged_unet, averaged_text_encoder = averaged["unet"], averaged["text_encoder"]
    assert isinstance(averaged_unet, UNet2DConditionModel)
    assert isinstance(averaged_text_encoder, CLIPTextModel)
    return averaged_unet, averaged_text_encoder


@torch.no_grad()
def grown_text_encoder(start: Path, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder in `start` with a vocabulary of more words: tokens that it knows keep their embeddings, wherever
    they stand now; those of new ones are drawn from torch's global generator."""
    old = CLIPTextModel.from_pretrained(start / "text_encoder", torch_dtype=torch.float32)
    new = small_text_encoder(len(tokenizer))
    known = CLIPTokenizer.from_pretrained(start / "tokenizer").get_vocab()
    rows = new.get_input_embeddings().weight
    weights = dict(old.state_dict())
    name = next(name for name in weights if name.endswith("token_embedding.weight"))
    kept = weights[name]
    weights[name] = rows / rows.std() * NEW_WORDS
    for token, place in tokenizer.get_vocab().items():
        if token in known:
            weights[name][place] = kept[known[token]]
    new.load_state_dict(weights)
    return new
