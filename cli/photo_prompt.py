"""What `dualsd match` tells the UNet of two photographs: a text, a run's prompt, or one that a cpm makes of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featstore.backbones.dino import load_dino
from featstore.backbones.dino_location import locate_dino
from featstore.backbones.location import ModelLocation
from featstore.pipeline.compute import Compute
from featstore.pipeline.photos import Photo, PhotoPrompt
from featstore.pipeline.prompt_choice import PromptChoice
from featstore.prompts.base import Mode
from featstore.prompts.cpm import check_dino, open_pair_prompts
from featstore.prompts.text import TextPrompt
from matcher.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def photo_prompt(
    choice: PromptChoice,
    category: str | None,
    photos: Sequence[Photo],
    location: ModelLocation,
    dino: str | None,
    compute: Compute,
) -> tuple[PhotoPrompt, str]:
    """The prompt of both photographs, and what it is called. Raises `InputError` where class prompts are not told the
    category, and what finding a DINOv2 raises."""
    learned = choice.learned
    if learned is not None and learned.mode is Mode.CLASS and category is None:
        raise InputError(f"{choice.label} are told apart by category: say which with --category.")
    known = category or ""
    prompts = choice.prompts
    if prompts is not None:
        choice.check_categories([known])
        label = prompts.text(known) if isinstance(prompts, TextPrompt) else choice.label

        def of_category(layer: int, tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel") -> Tensor:
            return prompts.embeddings(layer, [known], tokenizer, encoder)[known][None]

        return PhotoPrompt(of_category, shared=not prompts.differ_by_layer), label
    assert learned is not None, "only learned prompts belong to pairs"
    name, folder = locate_dino(dino, location)
    check_dino(learned, name)
    tokens = load_dino(folder, compute.device, compute.dtype).tokens([photo.picture for photo in photos])
    patches = {"source": tokens[0, 1:], "target": tokens[1, 1:]}  # without the class token

    def of_pair(layer: int, tokenizer: "CLIPTokenizer", encoder: "CLIPTextModel") -> Tensor:
        made = open_pair_prompts(learned, tokenizer, encoder, patches.__getitem__)
        return made.of(layer, [("source", "target")])

    return PhotoPrompt(of_pair, shared=False), choice.label
