"""SD4Match's conditional prompting module (cpm): from both images' DINOv2 patch tokens to the pair's prompt."""

import torch
from torch import Tensor, nn

GLOBAL_LENGTH = 25
CONDITIONAL_LENGTH = 50
PARAMETERS = (
    "global_embeds",
    "positional_embedding",
    "alpha_cond",
    "linear_C.weight",
    "linear_C.bias",
    "linear_N.weight",
    "linear_N.bias",
)
"""Names of a module's parameters, SD4Match's and ours."""


class ConditionalModule(nn.Module):
    """25 vectors of its own and 50 made from a pair (docs/method.md, Prompts). Its parameters have SD4Match's names.

    dino_width: channels of a patch token. patches: of an image. width: of the text encoder. Vectors are drawn uniformly
    from [0, 1), the linear maps as torch does, all from torch's global generator.
    """

    def __init__(
        self,
        dino_width: int,
        patches: int,
        width: int,
        global_length: int = GLOBAL_LENGTH,
        conditional_length: int = CONDITIONAL_LENGTH,
    ) -> None:
        super().__init__()
        self.global_embeds = nn.Parameter(torch.rand(1, global_length, width))
        self.positional_embedding = nn.Parameter(torch.rand(1, conditional_length, width))
        self.alpha_cond = nn.Parameter(torch.rand(1, conditional_length, width))
        self.linear_C = nn.Linear(2 * dino_width, width)
        self.linear_N = nn.Linear(patches, patches)
        self.pool = nn.AdaptiveMaxPool1d(conditional_length)

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """(patches, dino_width) that it takes of an image."""
        return self.linear_N.in_features, self.linear_C.in_features // 2

    @property
    def length(self) -> int:
        """Vectors of a prompt."""
        return self.global_embeds.shape[1] + self.alpha_cond.shape[1]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Patch tokens of source and target, (b, patches, dino_width) each, to vectors (b, length, width)."""
        both = self.linear_C(torch.cat([source, target], dim=2))  # (b, patches, width)
        mixed = self.linear_N(both.transpose(1, 2))  # (b, width, patches)
        pooled = self.pool(mixed).transpose(1, 2)  # (b, conditional length, width)
        conditional = torch.tanh(self.alpha_cond) * (self.positional_embedding + pooled)
        return torch.cat([self.global_embeds.expand(len(source), -1, -1), conditional], dim=1)


def module_of(tensors: dict[str, Tensor]) -> ConditionalModule:
    """The module whose parameters are given, of the shapes that they have. Raises `ValueError` saying which is missing
    or does not fit."""
    missing = [name for name in PARAMETERS if name not in tensors]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    try:
        width, both = tensors["linear_C.weight"].shape
        with torch.random.fork_rng(devices=[]):
            module = ConditionalModule(
                both // 2,
                tensors["linear_N.weight"].shape[0],
                width,
                tensors["global_embeds"].shape[1],
                tensors["alpha_cond"].shape[1],
            )
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name} {'x'.join(map(str, own.shape))}" for name, own in sorted(tensors.items()))
        raise ValueError(f"the parameters do not fit together ({shapes})") from error
    return module
