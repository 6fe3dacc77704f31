"""From an image file's bytes to pixels: decoding, mirroring, resizing, and the key that names the content.

**Coordinates count in the pixels as stored.** EXIF orientation is applied to no file, whatever the dataset and in
`match` too. The benchmarks leave no choice: their keypoints and image sizes were annotated on the stored pixels, as
MATLAB, Pillow and every published implementation load them. For anybody's own photographs displayed pixels would do
as well, but then a pair would mean one thing in `folder` and another in `pf-willow`, and an image that a tool strips
of its EXIF data would be another image with the same keypoints. A file that asks to be turned is named to the user
(`exif_orientation`), since its viewer shows other coordinates. Colour profiles are not applied either.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featstore.datasets.colours import match_transparency, to_rgb
from featstore.datasets.picture_file import (
    FORMATS,
    as_stored,
    decode_picture,
    open_picture,
    orientation_of,
    stored_size_of,
)
from featstore.datasets.quiet_pillow import quiet_pillow
from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError
from featstore.plain_text import one_line


def decode(image: ImageRecord, data: bytes) -> Image.Image:
    """The picture in an image file, mode RGB, as stored (EXIF orientation is not applied), mirrored if the record is.

    Transparent pixels are shown on white, the paper of most cut-out objects; 16-bit grey is scaled to 8 bits, CMYK and
    palettes are converted, of an animation or a file of several pictures the first is taken.
    Raises `ImageError` for a file that is empty, truncated, of an unknown format, or beyond the limits of
    `featstore.datasets.picture_file`; never anything else, and never half a picture (but for a JPEG whose missing
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
