"""Picture files made byte by byte, and valid ones of every format that is read."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    """As Pillow writes it."""
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def noise(width: int = 12, height: int = 8, seed: int = 0) -> Image.Image:
    """RGB, every pixel another."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def deep_noise(width: int = 12, height: int = 8) -> Image.Image:
    """16-bit grey."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (height, width), dtype=np.uint16))


def chunk(name: bytes, content: bytes) -> bytes:
    """One of a PNG's chunks."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG; `rows` as they are before compression, each led by its filter's byte. colour: 0 grey, 2 RGB, 3 palette."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*each) for each in extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks' checksums fit, so that a reader looks into them."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        count = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + count > len(data):
            break
        fixed += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + count])
        at += 12 + count
    return fixed + data[at:]


def tiff(size: tuple[int, int], pixels: bytes, tags: dict[int, int]) -> bytes:
    """An uncompressed little-endian TIFF of one strip; a tag's value is one 16-bit or, if larger, 32-bit number."""
    fields = {256: size[0], 257: size[1], 259: 1, 277: 1, 278: size[1], 279: len(pixels)} | tags
    start = 8 + 2 + 12 * (len(fields) + 1) + 4
    entries = sorted((fields | {273: start}).items())
    listed = b"".join(struct.pack("<HHII", tag, 3 if value < 65536 else 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + listed + bytes(4) + pixels


def gif(width: int, height: int, side: int = 1) -> bytes:
    """A GIF of 35 bytes whose frame, one pixel a side unless said otherwise, lies on a canvas of that size."""
    canvas = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return b"GIF89a" + canvas + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    """The header of a BMP."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def segment(marker: int, content: bytes) -> bytes:
    """One of a JPEG's segments."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive grey JPEG whose scans say in 100 bytes that nothing changes in any of (side / 8)^2 blocks."""
    blocks = ((side + 7) // 8) ** 2
    head = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    one_code = b"\1" + bytes(15)  # a Huffman table whose only code, a 0, is of one bit
    tables = segment(0xC4, b"\x00" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes((blocks + 7) // 8)
    runs = segment(0xDA, b"\1\1\0\1\x3f\0") + bytes(((blocks // 16384 + 1) * 15 + 7) // 8)
    return b"\xff\xd8" + head + tables + first + runs * scans + b"\xff\xd9"


def valid_files(width: int = 24, height: int = 16) -> dict[str, bytes]:
    """A small file of every format and kind of pixels, by a name that begins with the format's."""
    picture, other = noise(width, height), noise(width, height, seed=1)
    clear = picture.convert("RGBA")
    clear.putalpha(other.convert("L"))
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a description"
    plain = f"P3\n{width} {height}\n255\n" + " ".join(str(value) for value in np.asarray(picture).flat) + "\n"
    return {
        "JPEG": encoded(picture, "JPEG", exif=exif),
        "JPEG progressive": encoded(picture, "JPEG", progressive=True),
        "JPEG CMYK": encoded(picture.convert("CMYK"), "JPEG"),
        "JPEG restarts": encoded(picture, "JPEG", restart_marker_blocks=1),
        "JPEG of several": encoded(picture, "MPO", save_all=True, append_images=[other]),
        "PNG": encoded(picture, "PNG", exif=exif),
        "PNG palette": encoded(picture.convert("P"), "PNG", transparency=3),
        "PNG clear palette": encoded(clear.quantize(16), "PNG"),
        "PNG 1 bit": encoded(picture.convert("1"), "PNG"),
        "PNG 16 bits": encoded(deep_noise(width, height), "PNG"),
        "PNG grey and alpha": encoded(clear.convert("LA"), "PNG"),
        "PNG animated": encoded(picture, "PNG", save_all=True, append_images=[other]),
        "WEBP": encoded(picture, "WEBP", exif=exif),
        "WEBP lossless": encoded(clear, "WEBP", lossless=True),
        "WEBP animated": encoded(picture, "WEBP", save_all=True, append_images=[other]),
        "BMP": encoded(picture, "BMP"),
        "BMP palette": encoded(picture.convert("P"), "BMP"),
        "GIF": encoded(picture, "GIF"),
        "GIF animated": encoded(picture, "GIF", save_all=True, append_images=[other]),
        "TIFF": encoded(picture, "TIFF", exif=exif),
        "TIFF 16 bits": encoded(deep_noise(width, height), "TIFF"),
        "TIFF clear": encoded(clear, "TIFF"),
        "TIFF LZW": encoded(picture, "TIFF", compression="tiff_lzw"),
        "TIFF deflate": encoded(picture, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF JPEG": encoded(picture, "TIFF", compression="jpeg"),
        "TIFF packbits": encoded(picture, "TIFF", compression="packbits"),
        "TIFF fax": encoded(picture.convert("1"), "TIFF", compression="group4"),
        "PPM": encoded(picture, "PPM"),
        "PPM 1 bit": encoded(picture.convert("1"), "PPM"),
        "PPM plain": plain.encode(),
        "PPM 16 bits": f"P6 {width} {height} 65535\n".encode() + bytes(range(256)) * (width * height * 6 // 256),
    }
