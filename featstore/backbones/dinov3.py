"""DINOv3, transformers and ConvNeXts: patch maps of 16 pixels a cell (ConvNeXts: 4, 8, 16 and 32, a stage each), made
as DINOv2's are (`featstore.backbones.dino`). `dinov3` is the last block's, `dinov3:9` the ninth's.

Nobody here has loaded a published one: they are given to those who accept Meta's licence. What is tested are small
networks of random weights that transformers wrote in their layout.
"""

from featstore.backbones.base import Asked, ModelLocation
from featstore.backbones.dino import DinoBackbone, Generation, locate_named, open_dino

DINOV3 = Generation(
    "dinov3",
    "DINOv3",
    "facebook/dinov3-vitb16-pretrain-lvd1689m",
    ("dinov3_vit", "dinov3_convnext"),
    ("config.json", "model.safetensors"),
)


def open_backbone(asked: Asked, model: ModelLocation) -> DinoBackbone:  # noqa: ARG001  (no model brings one)
    """See `featstore.backbones.base.Family.open_backbone`; no weights are loaded."""
    return open_dino(DINOV3, asked, *locate_named(asked.name or DINOV3.hub_name, DINOV3))


def usual_ids(model_id: str) -> tuple[str, ...]:  # noqa: ARG001  (see `open_backbone`)
    """See `featstore.backbones.base.Family.usual_ids`."""
    return (DINOV3.hub_name,)
