"""From an image file's bytes to pixels: decoding, mirroring, resizing, and the key that names the content.

EXIF orientation is not applied: the benchmarks' coordinates refer to the pixels as stored. (TIFF is the exception,
because Pillow's TIFF reader applies the tag itself; size and pixels agree there too.) Colour profiles are not applied.
"""

import hashlib
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError

# Named, because Pillow would otherwise try all it knows, EPS among them, which runs Ghostscript on the file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def decode(image: ImageRecord, data: bytes) -> Image.Image:
    """The picture in an image file, mode RGB, as stored (EXIF orientation is not applied), mirrored if the record is.

    Transparent pixels are shown on white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.
    Raises `ImageError` for a file that is empty, truncated, of an unknown format, or too large to decode safely.
    """
    try:
        with _open(image, io.BytesIO(data)) as opened:
            opened.load()
            picture = _to_rgb(opened)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file.
        raise _unreadable(image, error) from error
    return ImageOps.mirror(picture) if image.mirrored else picture


def original_size(image: ImageRecord, data: bytes) -> tuple[int, int]:
    """Width and height of the picture in an image file, in pixels, from its header only.

    Raises `ImageError` for a file that is empty, of an unknown format, or too large to decode safely.
    """
    with _open(image, io.BytesIO(data)) as opened:
        return opened.size


def stored_size(image: ImageRecord, path: Path) -> tuple[int, int]:
    """Like `original_size`, of the file at `path`, of which only the header is read."""
    try:
        with path.open("rb") as stream, _open(image, stream) as opened:
            return opened.size
    except OSError as error:
        raise ImageError(image.id, f"Image {image.id} cannot be read from {path} ({error}); check the file.") from error


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


def _open(image: ImageRecord, stream: BinaryIO) -> Image.Image:
    if not stream.read(1):
        raise ImageError(
            image.id, f"Image {image.id} ({image.file}) is empty (0 bytes); restore the file or leave the image out."
        )
    stream.seek(0)
    try:
        return Image.open(stream, formats=_FORMATS)
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged header.
        raise _unreadable(image, error) from error


def _unreadable(image: ImageRecord, error: Exception) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's own words name a BytesIO at an address.
        reason = f"it is damaged or none of {', '.join(_FORMATS)}"
    elif isinstance(error, Image.DecompressionBombError):
        reason = "it has more pixels than is safe to decode"
    else:
        reason = str(error) or type(error).__name__
    return ImageError(
        image.id,
        f"Image {image.id} ({image.file}) cannot be decoded: {reason}; restore the file or leave the image out.",
    )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("its grey values need more than 16 bits; save it with 8 or 16 bits")
        # 65535 / 255 = 257: white stays white, which a shift by 8 bits gives too, but rounded rather than cut.
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return picture.convert("RGB")
