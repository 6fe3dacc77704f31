"""Where a DINOv2 lies, and the shapes that follow from its configuration. No library and no weights are loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

from featstore.backbone.dino_name import DinoName
from featstore.backbone.fingerprint import default_memory, fingerprint
from featstore.backbone.location import ModelLocation, probe_hub
from featstore.errors import ModelError

HUB_NAME = "facebook/dinov2-base"
"""DINOv2-ViT-B/14, SD4Match's."""

SUBFOLDER = "dinov2"
"""Where a model's folder may bring a DINOv2 of its own, as the demo model does."""

USUAL_SIDE = 60
"""Patches a side of a patch map: sd-dino's, 840 pixels of a patch of 14."""

RELEASED_SIDE = 37
"""Patches a side that the released DINOv2s were trained on at last, 518 pixels. Smaller ones are not taken beyond their
own."""

_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


@dataclass(frozen=True, slots=True)
class DinoShape:
    """channels: of a patch's token. patch: its side in pixels. trained: side in pixels of the images that it was
    trained on."""

    channels: int
    patch: int
    trained: int

    @property
    def usual_size(self) -> int:
        """Side in pixels of the images whose patch maps are made where nobody says otherwise."""
        own = self.trained // self.patch
        return self.patch * (USUAL_SIDE if own >= RELEASED_SIDE else own)

    def side(self, size: int) -> int:
        """Patches a side of images of `size` pixels a side. Raises `ModelError` where they do not come out even."""
        side, rest = divmod(size, self.patch)
        if rest or side < 1:
            near = max(round(size / self.patch), 1) * self.patch
            raise ModelError(
                f"Images of {size} pixels a side are not made of DINOv2's patches of {self.patch}: take a multiple of "
                f"{self.patch}, e.g. --dino-size {near}."
            )
        return side


def locate_dino(name: str | None, model: ModelLocation) -> tuple[DinoName, Path]:
    """A DINOv2's name and folder: that of `name` (a folder or a hub name); where none is said the one that the model's
    folder brings, else `facebook/dinov2-base`. Raises `ModelError` where it is out of reach."""
    if name is None and (model.folder / SUBFOLDER / "config.json").is_file():
        folder = model.folder / SUBFOLDER
        return DinoName(f"{model.id}/{SUBFOLDER}", _fingerprint(folder)), folder
    wanted = name or HUB_NAME
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        hub_folder = _downloaded(wanted) or _download(wanted)
        _check(hub_folder)
        return DinoName(wanted, _fingerprint(hub_folder)), hub_folder
    _check(folder)
    return DinoName(str(folder.resolve()), _fingerprint(folder)), folder


def read_shape(folder: Path) -> DinoShape:
    """What a DINOv2's configuration says. Raises `ModelError` where it cannot be read or is another network's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
        shape = DinoShape(int(config["hidden_size"]), int(config["patch_size"]), int(config["image_size"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as a DINOv2's configuration: {error!r}.") from error
    if kind != "dinov2":  # transformers would load others, too, and leave out the weights it does not know
        raise ModelError(f"{folder} holds a network of the type {kind!r}: name a DINOv2 (type 'dinov2') with --dino.")
    return shape


def read_tokens_shape(folder: Path) -> tuple[int, int]:
    """(1 + patches, width) of an image's tokens, the class token first. Raises `ModelError` where a configuration
    cannot be read."""
    shape, path = read_shape(folder), folder / "preprocessor_config.json"
    try:
        cropped = json.loads(path.read_text(encoding="utf-8"))["crop_size"]
        side = int(cropped["height"] if isinstance(cropped, dict) else cropped) // shape.patch
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read as a DINOv2's preprocessing: {error!r}.") from error
    return 1 + side * side, shape.channels


def _missing(folder: Path) -> list[str]:
    return [file for file in _FILES if not (folder / file).is_file()]


def _check(folder: Path) -> None:
    missing = _missing(folder)
    if missing:
        raise ModelError(f"{folder} is no DINOv2 in transformers' layout: {', '.join(missing)} is missing.")


def _downloaded(name: str) -> Path | None:
    """A DINOv2 that lies complete in the local cache; None where it does not: a download that broke off goes on."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError, HFValidationError):
        return None
    return None if _missing(folder) else folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if name.count("/") != 1:
        raise ModelError(f"There is no DINOv2 {name!r}: it is neither a folder nor a hub name owner/model.")
    probe_hub(name, f"a folder with {', '.join(_FILES)} works in place of the name: say where it lies with --dino.")
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"Downloading {name!r} failed: {error}") from error


def _fingerprint(folder: Path) -> str:
    return fingerprint(folder, (".",), default_memory())
