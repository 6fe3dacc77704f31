"""CleanDIFT: a UNet that takes the place of a Stable Diffusion's own, trained so that clean latents give the features
that noisy ones gave (Stracke et al., CVPR 2025). No noise, no ensemble, one pass for all layers.

What is read is what its authors publish (CompVis/cleandift, by their code's src/sd_feature_extraction.py):
`cleandift_sd21_unet.safetensors` and `cleandift_sd15_unet.safetensors`, whose tensors have diffusers' names; the
`..._full.safetensors`, which hold the same behind `unet_feature_extractor_cleandift.` and the timestep that was learned
with it; and a UNet's folder in diffusers' layout. Nobody here has loaded a published one.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from featstore.backbones.model_file import check_once, file_fingerprint
from featstore.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

TIMESTEP = 261.0
"""What the UNet is told where a file has no timestep of its own: what training starts from, and 260 once it is rounded
to bfloat16 as in the authors' notebook."""

PREFIX = "unet_feature_extractor_cleandift."
_TIMESTEP = "timestep"


@dataclass(frozen=True, slots=True)
class CleanUNet:
    """A file of such weights. path: as it was named, made absolute. file: what is read. fingerprint: of what it holds.
    timestep: what the UNet is told."""

    path: str
    file: Path
    fingerprint: str
    timestep: float


def open_clean_unet(path: Path, unet_config: Mapping[str, Any], of_model: str) -> CleanUNet:
    """Find such weights, and compare them with the UNet that they are to replace.

    Args:
        path: A safetensors file, or a UNet's folder in diffusers' layout.
        unet_config: Of the UNet that is replaced.
        of_model: The id of the model that it is of.

    Raises:
        ModelError: Where there are none, or they are another network's.
    """
    path = path.expanduser().resolve()
    file = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"There is no UNet {path}: --unet takes a file, e.g. CleanDIFT's cleandift_sd21_unet.safetensors, or a "
            "UNet's folder in diffusers' layout."
        )
    if file.suffix != ".safetensors":
        raise ModelError(f"{file} is no safetensors file: pickles are never read.")
    found = file_fingerprint(file)

    def check() -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.weights import check_unet_file

        check_unet_file(file, unet_config, own_names, of_model)

    check_once(f"{found} {of_model} {sorted(unet_config.items())}", check)
    with safe_open(file, framework="pt") as tensors:
        timestep = float(tensors.get_tensor(_TIMESTEP)) if _TIMESTEP in set(tensors.keys()) else TIMESTEP
    return CleanUNet(str(path), file, found, timestep)


def together(model: str, unet: str) -> str:
    """32 hex digits of a model's fingerprint and its UNet's."""
    return hashlib.blake2b(f"{model} {unet}".encode(), digest_size=16).hexdigest()


def own_names(names: Collection[str]) -> dict[str, str]:
    """Of the tensors in such a file those of the UNet: theirs by diffusers' names."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix) and name != _TIMESTEP}


def read_weights(unet: CleanUNet) -> "dict[str, Tensor]":
    """The tensors of the UNet, by diffusers' names."""
    with safe_open(unet.file, framework="pt") as tensors:
        return {own: tensors.get_tensor(name) for own, name in own_names(set(tensors.keys())).items()}
