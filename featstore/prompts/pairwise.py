"""A cpm in use: prompts that belong to pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featstore.backbone.dino_name import DinoName
from featstore.errors import PromptError
from featstore.prompts.conditional import ConditionalModule, module_of
from featstore.prompts.learned import LearnedPrompts
from featstore.prompts.token_embeddings import encode_token_embeddings, fill, frame
from featstore.store.patch_tokens import PatchTokens

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


def describe(learned: LearnedPrompts) -> dict[str, Any]:
    """What shapes the embeddings, for the record."""
    return {
        "kind": learned.mode.value,
        "content": {str(layer): learned.content(layer) for layer in learned.layers},
        "dino": None if learned.dino is None else learned.dino.fingerprint,
    }


def check_dino(learned: LearnedPrompts, dino: DinoName) -> None:
    """Raise `PromptError` where prompts are made from another DINOv2's tokens than the one at hand; one whose
    fingerprint nobody wrote down (SD4Match's) is taken on trust."""
    if learned.dino is not None and learned.dino.fingerprint not in ("", dino.fingerprint):
        raise PromptError(
            f"These cpm prompts are made from tokens of the DINOv2 {learned.dino.id} (fingerprint "
            f"{learned.dino.fingerprint[:8]}), not of {dino.id} (fingerprint {dino.fingerprint[:8]}): name theirs with "
            "--dino."
        )


@dataclass(frozen=True, slots=True)
class PairPrompts:
    """The prompts that conditional modules, one a layer, make of pairs. framed: token embeddings (77, D) around the
    vectors."""

    modules: Mapping[int, ConditionalModule]
    framed: Tensor
    text_encoder: "CLIPTextModel"
    patches: PatchTokens

    @torch.no_grad()
    def of(self, layer: int, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """Prompt embeddings (pairs, 77, D) of (source, target) images; both share them. Raises `PromptError` where the
        patch tokens are not what the module takes."""
        device = self.text_encoder.device
        source, target = (
            torch.stack([self.patches(images[end]) for images in pairs]).float().to(device) for end in (0, 1)
        )
        module = self.modules[layer]
        if source.shape[1:] != module.tokens_shape:
            (patches, width), (ours, our_width) = module.tokens_shape, source.shape[1:]
            raise PromptError(
                f"These cpm prompts are made from {patches} patch tokens of width {width}, and the DINOv2 at hand "
                f"gives {ours} of width {our_width}: name theirs with --dino."
            )
        return encode_token_embeddings(self.text_encoder, fill(self.framed, module(source, target)))


def open_pair_prompts(
    learned: LearnedPrompts, tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel", patches: PatchTokens
) -> PairPrompts:
    """Raises `PromptError` where the modules do not fit the text encoder."""
    try:
        modules = {
            layer: module_of(dict(own)).to(text_encoder.device).eval().requires_grad_(False)
            for layer, own in learned.tensors.items()
        }
    except ValueError as error:
        raise PromptError(f"These cpm prompts are damaged: {error}.") from error
    width = text_encoder.config.hidden_size
    for module in modules.values():
        if module.global_embeds.shape[2] != width:
            raise PromptError(
                f"These cpm prompts are {module.global_embeds.shape[2]} wide and the text encoder {width}: they are "
                "for another model."
            )
    framed = frame(text_encoder, tokenizer.bos_token_id, tokenizer.eos_token_id, learned.length)
    return PairPrompts(modules, framed, text_encoder, patches)
