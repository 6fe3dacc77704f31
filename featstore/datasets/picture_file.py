"""Opening a picture file: which formats, how large, and which way its rows run.

Limits are checked on the header, before anything is decoded: a few bytes may claim a picture of gigabytes.
"""

from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from featstore.datasets.quiet_pillow import quiet_libtiff

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
