"""Pictures: files read within limits, decoded, keyed by their content, resized to squares."""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError
from featstore.plain_text import one_line
from matcher.configuration import Pad
from matcher.pairs import content_sizes

# Pillow warns of pictures that are within our limits, and of damage that is refused here or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Named, because Pillow would otherwise try all it knows, EPS among them, which runs Ghostscript on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

MAX_SIDE = 32_768
"""Pixels: the longest panorama of a camera is shorter, and a strip longer than that is no photograph."""

MAX_PIXELS = 1 << 27
"""134 million: no single photograph is larger. Decoding takes 8 to 16 bytes a pixel, 2.1 GB at most."""

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

_WIDTH, _LENGTH, _ORIENTATION = 256, 257, 274
"""Tags of TIFF and EXIF."""


def _open_picture(stream: BinaryIO) -> ImageFile:
    """The picture in a stream, not yet decoded. Raises `ValueError` where it has no pixels or more than the limits, and
    whatever Pillow raises where it is damaged or of another format."""
    if not stream.read(1):
        raise ValueError("the file is empty (0 bytes)")
    opened = Image.open(stream, formats=FORMATS)
    width, height = _stored_size_of(opened)
    if min(width, height) < 1:
        raise ValueError(f"it is {width}x{height} pixels, so there is nothing to see")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limits = f"at most {MAX_SIDE:,} a side and {MAX_PIXELS // 10**6} million in all are read"
        raise ValueError(f"it is {width}x{height} pixels where {limits}; scale it down")
    return opened


def _stored_size_of(opened: ImageFile) -> tuple[int, int]:
    """Width and height in pixels as they are stored, of a picture that is not yet decoded."""
    if isinstance(opened, TiffImageFile):  # its `size` is that of the turned picture, see `decode`
        return int(opened.tag_v2[_WIDTH]), int(opened.tag_v2[_LENGTH])
    return opened.size


def _orientation_of(opened: ImageFile) -> int:
    """How a viewer is asked to turn the stored pixels: EXIF's 1 to 8, 1 for as they are; 1 where none is readable."""
    try:
        # Not opened.getexif(): a PNG's decodes all pixels first, to see whether EXIF data follow them.
        value = Image.Image.getexif(opened).get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises nearly anything on damaged EXIF data, which nothing else needs.
        return 1
    return value if value in range(2, 9) else 1


def _check_whole(opened: ImageFile, data: bytes) -> None:
    """Raise `ValueError` for a picture of which Pillow would make up what is missing: grey or black."""
    if opened.format in ("JPEG", "MPO") and data.find(_END_OF_IMAGE, _first_scan(data)) < 0:
        raise ValueError("it is truncated: it has no end mark")
    if isinstance(opened, TiffImageFile):
        extents = [tile.extents or (0, 0, 0, 0) for tile in opened.tile]
        covered = tuple(max((extent[side] for extent in extents), default=0) for side in (2, 3))
        if covered != _stored_size_of(opened):
            raise ValueError(f"it is truncated: it holds {covered[0]}x{covered[1]} of its pixels")


def _first_scan(data: bytes) -> int:
    """Where a JPEG's first scan begins, behind the segments that may hold a whole thumbnail, or where these are
    damaged."""
    at = 2
    while (marker := data[at : at + 2]) != _START_OF_SCAN:
        if len(marker) < 2 or marker[0] != 0xFF:
            return at
        at += 1 if marker[1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags: bits a sample, and whether 0 is black (1) or white (0)."""

_TRANSPARENCY = "transparency"


def _match_transparency(opened: ImageFile) -> None:
    """Bring the colour that a PNG declares transparent to the scale of the decoded pixels, before they are decoded.

    Pillow scales pixels of 2, 4 and (in colour) 16 bits to 8, but not that colour, and so would miss it or, worse, take
    another for it.
    """
    colour = opened.info.get(_TRANSPARENCY)
    if opened.format != "PNG" or colour is None:
        return
    packed = opened.tile[0].args  # how the pixels are
    if packed in ("L;2", "L;4"):
        opened.info[_TRANSPARENCY] = colour * (85 if packed == "L;2" else 17)
    elif packed == "RGB;16B":
        opened.info[_TRANSPARENCY] = tuple(value >> 8 for value in colour)


def _to_rgb(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A decoded picture, mode RGB: transparency is shown on white, 16-bit grey is scaled so that white stays white.
    tags: those of a TIFF.

    Raises `ValueError` for pixels that have no scale: floating point numbers, or integers of more than 16 bits.
    """
    if picture.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        return _from_deep_grey(picture, tags)
    if picture.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        layered = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(layered, mask=layered)
        return paper
    return picture.convert("RGB")


def _from_deep_grey(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    levels = np.asarray(picture)  # (H, W)
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

    Args:
        image: whose picture it is.
        data: the file's bytes.

    Raises:
        ImageError: for a file that is empty, truncated, of an unknown format, or of too many pixels; never anything
            else, and never half a picture (but for a JPEG whose missing rest is covered up by an end marker, which
            Pillow does not tell from a whole one).
    """
    with _reading(image):
        with _open_picture(io.BytesIO(data)) as opened:
            _match_transparency(opened)
            _check_whole(opened, data)
            tags: Mapping[int, Any] = opened.tag_v2 if isinstance(opened, TiffImageFile) else {}
            if tags:
                opened.getexif()[_ORIENTATION] = 1  # Pillow turns TIFFs, and nothing else, as the orientation asks
            opened.load()
            # a TIFF that was not turned still has the turned one's size, its copy has that of the pixels
            picture = _to_rgb(opened.copy() if tags else opened, tags)
        return ImageOps.mirror(picture) if image.mirrored else picture


def original_size(image: ImageRecord, data: bytes) -> tuple[int, int]:
    """Width and height of the picture in an image file, in pixels as stored, from its header only.

    Raises `ImageError` for a file that is empty, of an unknown format, or too large to decode.
    """
    with _reading(image), _open_picture(io.BytesIO(data)) as opened:
        return _stored_size_of(opened)


def exif_orientation(image: ImageRecord, data: bytes) -> int:
    """How a viewer is asked to turn the picture: EXIF's 1 (not at all) to 8. Raises `ImageError` as `original_size`."""
    with _reading(image), _open_picture(io.BytesIO(data)) as opened:
        return _orientation_of(opened)


TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""By EXIF orientation, from stored pixels to shown ones: whether x and y change places, and whether x and y are then
counted from the other side."""


def to_shown(points: NDArray[np.floating], orientation: int, stored: tuple[int, int]) -> NDArray[np.floating]:
    """Points in pixels as stored to those of the picture as a viewer shows it. As everywhere here, 0 and a picture's
    width are its borders, so that a point mirrors to width - x.

    Args:
        points: (n, 2), (x, y).
        orientation: See `exif_orientation`.
        stored: (width, height) in pixels, as stored.
    """
    swapped, *mirrored = TURNS[orientation]
    own, size = (points[:, ::-1], stored[::-1]) if swapped else (points, stored)
    return np.where(mirrored, np.array(size, points.dtype) - own, own)


def to_stored(points: NDArray[np.floating], orientation: int, stored: tuple[int, int]) -> NDArray[np.floating]:
    """The inverse of `to_shown`. Arguments are the same."""
    swapped, *mirrored = TURNS[orientation]
    size = stored[::-1] if swapped else stored
    own = np.where(mirrored, np.array(size, points.dtype) - points, points)
    return own[:, ::-1] if swapped else own


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture as stored, turned as a viewer shows it. orientation: see `exif_orientation`."""
    # not ImageOps.exif_transpose: it parses the file's EXIF data once more, and writes them anew
    swapped, mirrored_x, mirrored_y = TURNS[orientation]
    picture = picture.transpose(Image.Transpose.TRANSPOSE) if swapped else picture
    picture = ImageOps.mirror(picture) if mirrored_x else picture
    return ImageOps.flip(picture) if mirrored_y else picture


def image_key(image: ImageRecord, data: bytes) -> str:
    """The key of an image's content: 32 hexadecimal digits of BLAKE2b-128 over the file's bytes, personalised with
    `mirrored` for a mirrored one (so that of an unmirrored one is what `b2sum -l 128` prints)."""
    person = b"mirrored" if image.mirrored else b""
    return hashlib.blake2b(data, digest_size=16, person=person).hexdigest()


def resize_to_square(picture: Image.Image, size: int, pad: Pad = Pad.STRETCH) -> NDArray[np.uint8]:
    """An RGB picture as a square. Stretched: resized by PIL's bilinear filter with antialiasing; the aspect ratio is
    not kept. Padded: resized by its Lanczos filter, and the rest is black.

    Args:
        picture: mode RGB, of any size.
        size: pixels a side.
        pad: how it becomes one.

    Returns:
        (3, size, size), values of 0 to 255.
    """
    if pad is Pad.STRETCH:
        resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    else:
        width, height = content_sizes(np.array(picture.size), size).tolist()
        resized = Image.new("RGB", (size, size))
        content = picture.resize((width, height), Image.Resampling.LANCZOS)
        resized.paste(content, ((size - width) // 2, (size - height) // 2))
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


@contextlib.contextmanager
def _reading(image: ImageRecord) -> Iterator[None]:
    """Whatever is raised about the file becomes an `ImageError`."""
    try:
        yield
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file.
        name = image.id if image.file == image.id else f"{image.id} ({image.file})"
        what = f"Image {name} cannot be decoded: {_reason(error)}"
        raise ImageError(image.id, f"{what}; restore the file or leave the image out.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words name a BytesIO at an address.
        return f"it is damaged or none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than is safe to decode"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return one_line(error) if str(error) else f"it is damaged ({type(error).__name__})"
