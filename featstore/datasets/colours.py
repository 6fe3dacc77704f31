"""A picture of any of Pillow's modes as RGB with 8 bits a channel."""

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

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
