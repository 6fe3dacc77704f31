"""Pictures: files read within limits, decoded, keyed by their content, resized to squares."""

import contextlib
import hashlib
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError
from featstore.plain_text import one_line


class Shared:
    """A context that several threads may be in at once: it begins with the first and ends with the last of them.

    The lists of warning filters and file descriptors that it changes belong to the process: were each thread to change
    and restore them on its own, the last would restore another's change.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[None]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(self._begin())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger("PIL")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (AttributeError, OSError, ValueError):  # there is no stderr that could be written to
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


quiet_pillow = Shared(_no_warnings)
"""No warnings and no log of Pillow's inside."""

quiet_libtiff = Shared(_no_stderr)
"""Nothing reaches the process's stderr inside. libtiff writes its errors there itself, and Pillow does not let anybody
turn that off; so this is for the moment in which a TIFF is decoded and for nothing else."""


# Named, because Pillow would otherwise try all it knows, EPS among them, which runs Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

MAX_SIDE = 32_768
"""Pixels: the longest panorama of a camera is shorter, and a strip longer than that is no photograph."""

MAX_PIXELS = 1 << 27
"""134 million: no single photograph is larger. Decoding takes 8 to 12 bytes a pixel, 1.6 GB at most."""

_MAX_SCANNED = 10**11
"""Pixels times scans of a JPEG: 20 s of decoding. A scan of a progressive one may take 100 bytes and as long as any."""

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

_WIDTH, _LENGTH, _ORIENTATION = 256, 257, 274
"""Tags of TIFF and EXIF."""

_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What undoes the turning that an EXIF orientation asks for."""


def open_picture(stream: BinaryIO) -> ImageFile:
    """The picture in a stream, not yet decoded. Raises `ValueError` where it has no pixels or more than the limits, and
    whatever Pillow raises where it is damaged or of another format."""
    if not stream.read(1):
        raise ValueError("the file is empty (0 bytes)")
    opened = Image.open(stream, formats=FORMATS)
    width, height = stored_size_of(opened)
    if min(width, height) < 1:
        raise ValueError(f"it is {width}x{height} pixels, so there is nothing to see")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"it is {width}x{height} pixels where at most {MAX_SIDE:,} a side and {MAX_PIXELS // 10**6} million in all "
            "are read; scale it down"
        )
    return opened


def stored_size_of(opened: ImageFile) -> tuple[int, int]:
    """Width and height in pixels as they are stored, of a picture that is not yet decoded."""
    if isinstance(opened, TiffImageFile):  # its `size` is that of the turned picture, see `as_stored`
        return int(opened.tag_v2[_WIDTH]), int(opened.tag_v2[_LENGTH])
    return opened.size


def orientation_of(opened: ImageFile) -> int:
    """How a viewer is asked to turn the stored pixels: EXIF's 1 to 8, 1 for as they are; 1 where none is readable."""
    try:
        # Not opened.getexif(): a PNG's decodes all pixels first, to see whether EXIF data follow them.
        value = Image.Image.getexif(opened).get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises nearly anything on damaged EXIF data, which nothing else needs.
        return 1
    return value if value in _TURN_BACK else 1


def decode_picture(opened: ImageFile, data: bytes) -> None:
    """Decode all pixels. Raises `ValueError` where that would take too long or the file does not hold them all, and
    whatever Pillow raises where it is damaged."""
    if opened.format in ("JPEG", "MPO"):
        _check_scans(opened, data)
    if not isinstance(opened, TiffImageFile):
        opened.load()
        return
    # Pillow would leave black what no strip covers.
    extents = [tile.extents or (0, 0, 0, 0) for tile in opened.tile]
    covered = tuple(max((extent[side] for extent in extents), default=0) for side in (2, 3))
    if covered != stored_size_of(opened):
        raise ValueError(f"it is truncated: it holds {covered[0]}x{covered[1]} of its pixels")
    with quiet_libtiff:
        opened.load()


def _check_scans(opened: ImageFile, data: bytes) -> None:
    first = _first_scan(data)
    scans = data.count(_START_OF_SCAN, first)
    if scans * opened.width * opened.height > _MAX_SCANNED:
        raise ValueError(f"it has {scans} scans, which no camera or program writes; save it again")
    # Zeros, in the place of what is missing, would decode to something.
    if data.find(_END_OF_IMAGE, first) < 0:
        raise ValueError("it is truncated: it has no end mark")


def _first_scan(data: bytes) -> int:
    """Where a JPEG's first scan begins, behind the segments that may hold a whole thumbnail, or where these are
    damaged."""
    at = 2
    while (marker := data[at : at + 2]) != _START_OF_SCAN:
        if len(marker) < 2 or marker[0] != 0xFF:
            return at
        at += 1 if marker[1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def as_stored(picture: Image.Image, opened: ImageFile, orientation: int) -> Image.Image:
    """The picture that was decoded from `opened`, its pixels as they are stored: Pillow turns those of a TIFF, and of
    nothing else, as the orientation asks. `orientation`: read before decoding, which forgets it."""
    turn = _TURN_BACK.get(orientation) if isinstance(opened, TiffImageFile) else None
    return picture if turn is None else picture.transpose(turn)


_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")

_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags: bits a sample, and whether 0 is black (1) or white (0)."""

_TRANSPARENCY = "transparency"


def match_transparency(opened: ImageFile) -> None:
    """Bring the colour that a PNG declares transparent to the scale of the decoded pixels, before they are decoded.

    Pillow scales pixels of 2, 4 and (in colour) 16 bits to 8, but not that colour, and so would miss it or, worse, take
    another for it.
    """
    colour = opened.info.get(_TRANSPARENCY)
    if opened.format != "PNG" or colour is None:
        return
    match opened.tile[0].args:  # how the pixels are packed
        case "L;2":
            opened.info[_TRANSPARENCY] = colour * 85
        case "L;4":
            opened.info[_TRANSPARENCY] = colour * 17
        case "RGB;16B":
            opened.info[_TRANSPARENCY] = tuple(value >> 8 for value in colour)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A decoded picture, mode RGB: transparency is shown on white, 16-bit grey is scaled so that white stays white.

    Raises `ValueError` for pixels that have no scale: floating point numbers, or integers of more than 16 bits.
    """
    if picture.mode in _SIXTEEN_BIT:
        return _from_deep_grey(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        layered = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(layered, mask=layered)
        return paper
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image) -> Image.Image:
    levels = np.asarray(picture)  # (H, W)
    tags = getattr(picture, "tag_v2", {})
    white = 4095 if tags.get(_BITS) == (12,) else 65535  # Pillow unpacks TIFF's 12 bits without scaling them
    if levels.min() < 0 or levels.max() > white:
        raise ValueError("its grey values need more than 16 bits; save it with 8 or 16 bits")
    shades = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)  # by level
    if tags.get(_PHOTOMETRIC) == 0:  # which Pillow heeds for 8 bits only
        shades = 255 - shades
    transparent = picture.info.get(_TRANSPARENCY)
    if isinstance(transparent, int) and 0 <= transparent <= white:
        shades[transparent] = 255
    return Image.fromarray(shades[levels]).convert("RGB")


def decode(image: ImageRecord, data: bytes) -> Image.Image:
    """The picture in an image file, mode RGB, as stored (EXIF orientation is not applied), mirrored if the record is.

    Transparent pixels are shown on white, the paper of most cut-out objects; 16-bit grey is scaled to 8 bits, CMYK and
    palettes are converted, of an animation or a file of several pictures the first is taken.
    Raises `ImageError` for a file that is empty, truncated, of an unknown format, or beyond the limits of
    `featstore.datasets.pictures`; never anything else, and never half a picture (but for a JPEG whose missing
    rest is covered up by an end marker, which Pillow does not tell from a whole one).
    """
    with _reading(image):
        with open_picture(io.BytesIO(data)) as opened:
            orientation = orientation_of(opened)
            match_transparency(opened)
            decode_picture(opened, data)
            picture = as_stored(to_rgb(opened), opened, orientation)
        return ImageOps.mirror(picture) if image.mirrored else picture


def original_size(image: ImageRecord, data: bytes) -> tuple[int, int]:
    """Width and height of the picture in an image file, in pixels as stored, from its header only.

    Raises `ImageError` for a file that is empty, of an unknown format, or too large to decode.
    """
    with _reading(image), open_picture(io.BytesIO(data)) as opened:
        return stored_size_of(opened)


def stored_size(image: ImageRecord, path: Path) -> tuple[int, int]:
    """Like `original_size`, of the file at `path`, of which only the header is read."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ImageError(image.id, f"Image {image.id} cannot be read from {path} ({error}); check the file.") from error
    with stream, _reading(image), open_picture(stream) as opened:
        return stored_size_of(opened)


def exif_orientation(image: ImageRecord, data: bytes) -> int:
    """How a viewer is asked to turn the picture: EXIF's 1 (not at all) to 8. Raises `ImageError` as `original_size`."""
    with _reading(image), open_picture(io.BytesIO(data)) as opened:
        return orientation_of(opened)


def image_key(image: ImageRecord, data: bytes) -> str:
    """The key of an image's content: 32 hexadecimal digits of BLAKE2b-128 over the file's bytes, personalised with
    `mirrored` for a mirrored one (so that of an unmirrored one is what `b2sum -l 128` prints)."""
    person = b"mirrored" if image.mirrored else b""
    return hashlib.blake2b(data, digest_size=16, person=person).hexdigest()


def resize_to_square(picture: Image.Image, size: int) -> NDArray[np.float32]:
    """An RGB picture as the VAE takes it: shape (3, size, size), values in [-1, 1].

    PIL's bilinear filter with antialiasing; the aspect ratio is not kept.
    """
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32)  # (size, size, 3), 0..255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1.0))


@contextlib.contextmanager
def _reading(image: ImageRecord) -> Iterator[None]:
    """Quiet, and whatever is raised about the file becomes an `ImageError`."""
    try:
        with quiet_pillow:
            yield
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file.
        name = image.id if image.file == image.id else f"{image.id} ({image.file})"
        raise ImageError(
            image.id, f"Image {name} cannot be decoded: {_reason(error)}; restore the file or leave the image out."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words name a BytesIO at an address.
        return f"it is damaged or none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than is safe to decode"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return one_line(error) if str(error) else f"it is damaged ({type(error).__name__})"
