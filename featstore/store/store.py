"""Open or make a store: header, table of images and arrays of rows in one place (docs/store.md)."""

import errno
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.abc.store import Store as ZarrStore
from zarr.errors import GroupNotFoundError

from featstore.backbones.base import NetworkName
from featstore.errors import StoreError, StoreExistsError
from featstore.files import writing
from featstore.store.bucket import open_bucket
from featstore.store.images import ImageTable, read_images, write_images
from featstore.store.keys import (
    CONDITIONING,
    LATENTS,
    MAPS,
    NOISY,
    PATCH_TOKENS,
    AnyExtractor,
    Extractor,
    PixelExtractor,
    Stored,
    StoreLocation,
    map_path,
    noisy_path,
    parse_location,
)
from featstore.store.lock import exclusive
from featstore.store.row_file import folders
from featstore.store.rows import (
    METADATA,
    METADATA_ERRORS,
    RowArray,
    damaged_metadata,
    disk_of,
    open_rows,
    require_rows,
)
from featstore.store.schema import STORED_DTYPE, VERSION_OF_INT8, StoreHeader, create_missing
from featstore.store.sweep import MAKING

_BELOW = (f"{NOISY}/*", f"{MAPS}/*/*/*", f"{CONDITIONING}/*")
"""Where arrays lie, as patterns."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store. `path`: where it lies, as the user named it."""

    path: StoreLocation
    group: zarr.Group
    header: StoreHeader
    images: ImageTable

    def latents(self) -> RowArray:
        """(N, 4, h, w), ready for `add_noise`."""
        found = self.array(LATENTS)
        if found is None:
            raise StoreError(f"{self.path} has no latents: delete it and run `dualsd cache build` again.")
        return found

    def noisy(self, timestep: int) -> RowArray | None:
        """(N, E, 4, h, w) noisy latents at a timestep, None where none were made."""
        return self.array(noisy_path(timestep))

    def require_noisy(self, timestep: int, draws: int) -> RowArray:
        """The same, made or grown to `draws` draws an image."""
        array = require_rows(
            self.group, noisy_path(timestep), (len(self.images), draws), self.latents().row_shape, STORED_DTYPE
        )
        if array.rows_shape[1] < draws:
            with exclusive(self.path):  # nobody packs it meanwhile
                array.grow(draws)
        return array

    def maps(self, extractor: AnyExtractor, layer: int | str, timestep: int | None) -> RowArray | None:
        """(N, C, h, w) maps of an extractor, None where none were made."""
        return self.array(map_path(extractor, layer, timestep))

    def require_maps(
        self, extractor: AnyExtractor, layer: int | str, timestep: int | None, shape: tuple[int, int, int]
    ) -> RowArray:
        """The same, made where missing, each map of `shape` (C, h, w); the extractor's group says what it is."""
        if extractor.stored is not Stored.FLOAT16:
            _require_version(self, VERSION_OF_INT8)
        _require_described(self.group, f"{MAPS}/{extractor.key}", extractor.describe())
        path = map_path(extractor, layer, timestep)
        return require_rows(self.group, path, (len(self.images),), shape, extractor.stored.value)

    def extractors(self) -> list[Extractor]:
        """Those of the UNet whose maps it has, of any prompt, ensemble and dtype."""
        found = map(Extractor.from_description, self._descriptions())
        return [extractor for extractor in found if extractor is not None]

    def pixel_extractors(self, family: str) -> list[PixelExtractor]:
        """Those of a family whose maps it has, of any network, size and dtype."""
        found = map(PixelExtractor.from_description, self._descriptions())
        return [extractor for extractor in found if extractor is not None and extractor.family == family]

    def _descriptions(self) -> list[dict[str, Any]]:
        """What the groups of maps say of themselves."""
        group = self.group.get(MAPS)
        return [member.attrs.asdict() for _, member in group.groups()] if isinstance(group, zarr.Group) else []

    def patch_tokens(self, dino: NetworkName) -> RowArray | None:
        """(N, 1 + patches, width) tokens of a DINOv2, None where none were made. Raises `StoreError` where they are
        another's."""
        made_by = self.attributes(CONDITIONING)
        if made_by.get("fingerprint", dino.fingerprint) != dino.fingerprint:
            raise StoreError(
                f"{self.path} holds tokens of the DINOv2 {made_by.get('id')} (fingerprint "
                f"{str(made_by['fingerprint'])[:8]}), not of {dino.id} (fingerprint {dino.fingerprint[:8]}): name "
                "that one with --dino, or take another --store."
            )
        return self.array(PATCH_TOKENS)

    def require_patch_tokens(self, dino: NetworkName, shape: tuple[int, int]) -> RowArray:
        """The same, made where missing; the group says whose they are."""
        _require_described(self.group, CONDITIONING, asdict(dino))
        return require_rows(self.group, PATCH_TOKENS, (len(self.images),), shape, STORED_DTYPE)

    def attributes(self, path: str) -> dict[str, Any]:
        """Of a group: what describes an extractor or whose patch tokens they are; empty where there is no such group.
        Raises `MetadataError` where they are damaged."""
        try:
            group = self.group.get(path)
            return group.attrs.asdict() if isinstance(group, zarr.Group) else {}
        except METADATA_ERRORS as error:
            raise damaged_metadata(self.group, path, str(error) or repr(error)) from error

    def array(self, path: str) -> RowArray | None:
        """An array of rows by its path, None where there is none. Raises `MetadataError` where its metadata are
        damaged."""
        found = open_rows(self.group, path, leading=2 if path.startswith(f"{NOISY}/") else 1)
        if found is not None and found.rows_shape[0] != len(self.images):
            raise damaged_metadata(self.group, path, f"{found.rows_shape[0]} rows of {len(self.images)} images")
        return found

    def array_paths(self) -> list[str]:
        """Of every array of rows: latents, noisy latents, maps, patch tokens."""
        if not isinstance(self.path, Path):
            return [LATENTS, *(folder for below in _BELOW for folder in folders(self.path, below))]
        # Not zarr's own listing: damaged metadata of one array would hide all others.
        files = [file for below in _BELOW for file in sorted(self.path.glob(f"{below}/zarr.json"))]
        return [LATENTS, *(file.parent.relative_to(self.path).as_posix() for file in files)]

    def arrays(self) -> dict[str, RowArray]:
        """Every array of rows by its path. Raises `MetadataError` where the metadata of one are damaged."""
        found = {LATENTS: self.latents()}
        for path in self.array_paths():
            array = self.array(path)
            if array is not None:
                found[path] = array
        return found


def open_store(place: str | StoreLocation) -> Store:
    """Open an existing store.

    Args:
        place: Its folder or address on S3, as text (`"spair.zarr"`, `"s3://bucket/prefix"`) or parsed.

    Raises:
        StoreError: Where there is none, or none that this version can read.
    """
    path = parse_location(place)
    group = _open_group(path)
    if group is None:
        raise StoreError(f"There is no store at {path}: make one with `dualsd cache build --store {path}`.")
    header = StoreHeader.from_attributes(group.attrs.asdict(), str(path))
    return Store(path, group, header, read_images(group, str(path)))


def create_store(
    path: StoreLocation, header: StoreHeader, images: ImageTable, latent_shape: tuple[int, int, int]
) -> Store:
    """Make a store with no latents yet. It appears at `path` whole or not at all.

    Raises `StoreExistsError` where something lies there, another process's store that came first among others.
    """

    def fill(group: zarr.Group) -> None:
        write_images(group, images)
        require_rows(group, LATENTS, (len(images),), latent_shape, STORED_DTYPE)

    taken = StoreExistsError(f"{path} exists already: name another --store.")
    if is_there(path):
        raise taken
    if not isinstance(path, Path):
        from featstore.store.bucket_zarr import create_in_bucket

        if not create_in_bucket(open_bucket(path), header.to_attributes(), fill):
            raise taken
        return open_store(path)
    with writing(f"The store {path}", place=path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", suffix=MAKING, dir=path.parent) as folder:
            making = Path(folder) / "store"
            group = zarr.create_group(making, attributes=header.to_attributes())
            create_missing(group, fill)
            try:
                making.rename(path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise taken from error
                raise
    return open_store(path)


def is_there(path: StoreLocation) -> bool:
    """Whether anything lies where a store would: on object storage, whether a store's root does."""
    if isinstance(path, Path):
        return path.exists()
    return METADATA in open_bucket(path).level("")[0]


def open_if_there(path: StoreLocation) -> Store | None:
    """The store at `path`, None where nothing lies there. Raises `StoreError` for anything but a dualsd store."""
    return open_store(path) if is_there(path) else None


def record_whereabouts(store: Store, header: StoreHeader) -> None:
    """Record where the dataset and the model lie now; what they are has not changed."""
    if (store.header.dataset_root, store.header.model_id) == (header.dataset_root, header.model_id):
        return
    with writing(f"The header of {store.path}", place=store.path):
        store.group.update_attributes({key: header.to_attributes()[key] for key in ("dataset", "model")})


def _require_version(store: Store, version: int) -> None:
    """Let a store say that it holds what only such a version reads, before it does."""
    # as it is now: another process may have written the header since the store was opened
    root = zarr.open_group(store.group.store_path, mode="r+", zarr_format=3, use_consolidated=False)
    if int(str(root.attrs["version"])) < version:
        with writing(f"The header of {store.path}", place=store.path):
            root.update_attributes({"version": version})


def replace_stale(store: Store, keys: tuple[str, ...], sizes: NDArray[np.int32]) -> tuple[Store, int]:
    """Forget every row of the images whose key changed, then record the new keys: (the store, how many changed).

    In that order, so that a run killed in between finds them stale again. No array may be packed.
    """
    stale = [row for row, (old, new) in enumerate(zip(store.images.keys, keys, strict=True)) if old != new]
    if not stale and np.array_equal(sizes, store.images.sizes):
        return store, 0
    for array in store.arrays().values() if stale else ():
        array.delete_rows([(row, *rest) for row in stale for rest in np.ndindex(array.rows_shape[1:])])
    table = store.images.with_contents(keys, sizes)
    with writing(f"The table of images of {store.path}", place=store.path):
        write_images(store.group, table)
    return Store(store.path, store.group, store.header, table), len(stale)


def _require_described(root: zarr.Group, path: str, description: Mapping[str, Any]) -> None:
    """Make a group where it is not there, and let it say what its arrays are."""
    try:
        with writing(f"The group {path!r} of {root.store_path}", place=disk_of(root.store_path)):
            if path not in root:
                # in one write, and not an attribute at a time: a kill would leave a group that says half of what it is
                create_missing(root, lambda made: made.create_group(path, attributes=dict(description)))
            group = root.require_group(path)
            if group.attrs.keys() < description.keys():  # one that was made on the way to an array, or half described
                group.update_attributes(dict(description))
    except METADATA_ERRORS as error:
        raise damaged_metadata(root, path, str(error) or repr(error)) from error


def _open_group(path: StoreLocation) -> zarr.Group | None:
    if not is_there(path):
        return None
    place: Path | ZarrStore
    if isinstance(path, Path):
        place = path
    else:
        from featstore.store.bucket_zarr import BucketStore

        place = BucketStore(open_bucket(path))
    try:
        return zarr.open_group(place, mode="r+", zarr_format=3, use_consolidated=False)
    except (GroupNotFoundError, *METADATA_ERRORS) as error:
        raise StoreError(f"{path} is no dualsd store: it has no Zarr v3 group that can be read.") from error


KEPT = 256
"""Images whose tokens are kept in memory: 200 MB."""

PatchTokens = Callable[[str], Tensor]
"""The patch tokens of an image, (patches, width), float32 on the CPU."""


def patch_tokens_of(store: Store, tokens: RowArray) -> PatchTokens:
    """Reads a store's tokens, which have the class token first."""

    @lru_cache(maxsize=KEPT)
    def of(image: str) -> Tensor:
        return torch.from_numpy(tokens.read((store.images.row(image),)).astype(np.float32)[1:])

    return of


def no_patches(image: str) -> Tensor:
    """For prompts that are made from none."""
    raise StoreError(f"No DINOv2 tokens were made of image {image!r}.")


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """path: in the store. row_shape: of one row. rows: that could be there; present: that are. bytes: on disk.
    what: the extractor of maps in words, and whether its rows share files."""

    path: str
    row_shape: tuple[int, ...]
    rows: int
    present: int
    bytes: int
    what: str


def summarise(store: Store) -> list[ArraySummary]:
    """Every array of rows; rows are listed, none is read."""
    found = []
    for path, array in store.arrays().items():
        present = array.present()
        count = int(present.sum())
        what = ", ".join(part for part in (_what(store, path), "packed" if array.packed else "") if part)
        found.append(ArraySummary(path, array.row_shape, present.size, count, count * array.row_bytes, what))
    return found


def _what(store: Store, path: str) -> str:
    kind, _, rest = path.partition("/")
    if kind != MAPS:
        return ""
    attributes = store.attributes(f"{MAPS}/{rest.split('/')[0]}")
    stored = f", kept as {attributes['stored']}" if "stored" in attributes else ""
    alone = PixelExtractor.from_description(attributes)
    if alone is not None:
        named = "DINOv2" if alone.family == "dino" else alone.family
        return f"{named} {alone.network.id!r}, {alone.size} pixels, {alone.dtype}{stored}"
    prompt = attributes.get("prompt")
    words = prompt.get("template", prompt.get("kind")) if isinstance(prompt, dict) else "unknown prompt"
    return f"{words!r}, ensemble {attributes.get('ensemble')}, {attributes.get('dtype')}{stored}"
