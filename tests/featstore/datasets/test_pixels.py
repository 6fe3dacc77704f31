"""Decoding, keys and resizing."""

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featstore.datasets.pictures import decode, image_key, original_size, resize_to_square
from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError
from tests.featstore.datasets.picture_bytes import encoded, noise

RECORD = ImageRecord("cat/a", "cat", "cat/a.jpg")
MIRRORED = ImageRecord("cat/a~mirrored", "cat", "cat/a.jpg", mirrored=True)


def pixels(data: bytes, record: ImageRecord = RECORD) -> NDArray[np.uint8]:
    picture = decode(record, data)
    assert picture.mode == "RGB"
    return np.asarray(picture)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_and_mirroring(file_format: str) -> None:
    data = encoded(noise(), file_format)
    expected = np.asarray(noise())
    np.testing.assert_array_equal(pixels(data), expected)
    np.testing.assert_array_equal(pixels(data, MIRRORED), expected[:, ::-1])
    assert original_size(RECORD, data) == original_size(MIRRORED, data) == (12, 8)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF"])
def test_other_formats(file_format: str) -> None:
    assert pixels(encoded(noise(), file_format)).shape == (8, 12, 3)


def test_palette_and_transparency_show_white() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    clear.putpixel((1, 0), (10, 20, 30, 0))
    assert pixels(encoded(clear, "PNG")).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(encoded(palette, "PNG", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.new("LA", (1, 1), (100, 0))
    assert pixels(encoded(grey, "PNG")).tolist() == [[[255, 255, 255]]]


def test_grey_cmyk_and_one_bit() -> None:
    assert pixels(encoded(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77, 77, 77]]]
    assert pixels(encoded(Image.new("1", (1, 1), 1), "PNG")).tolist() == [[[255, 255, 255]]]
    red = pixels(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))[0, 0]
    assert red[0] > 250
    assert red[1] < 5
    assert red[2] < 5


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits(file_format: str) -> None:
    grey = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    data = encoded(grey, file_format)
    assert pixels(data)[0, :, 0].tolist() == [0, 1, 128, 255]
    wide = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert pixels(encoded(wide, "TIFF"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("values", [np.array([[70000]], dtype=np.int32), np.array([[0.5]], dtype=np.float32)])
def test_pixels_that_have_no_scale(values: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"Image cat/a \(cat/a\.jpg\) cannot be decoded: .*save it with 8 or 16 bits"):
        decode(RECORD, encoded(Image.fromarray(values), "TIFF"))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(data)[0, 0].tolist() == [255, 0, 0]


def test_empty_file() -> None:
    for call in (decode, original_size):
        with pytest.raises(
            ImageError, match=r"Image cat/a \(cat/a\.jpg\) cannot be decoded: the file is empty"
        ) as caught:
            call(RECORD, b"")
        assert caught.value.image_id == "cat/a"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncated_file(file_format: str) -> None:
    data = encoded(noise(64, 64), file_format)
    with pytest.raises(ImageError, match=r"Image cat/a \(cat/a\.jpg\) cannot be decoded: ") as caught:
        decode(RECORD, data[: len(data) // 2])
    assert caught.value.image_id == "cat/a"


@pytest.mark.parametrize("data", [b"junk", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n"])
def test_no_image(data: bytes) -> None:
    for call in (decode, original_size):
        with pytest.raises(ImageError, match=r"cannot be decoded: it is damaged or none of JPEG, PNG.*; restore"):
            call(RECORD, data)


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # the picture has 96 pixels, more than twice that
    data = encoded(noise(), "PNG")
    for call in (decode, original_size):
        with pytest.raises(ImageError, match="it has more pixels than is safe to decode"):
            call(RECORD, data)


def test_image_key() -> None:
    assert image_key(RECORD, b"abc") == hashlib.blake2b(b"abc", digest_size=16).hexdigest()
    assert len(image_key(RECORD, b"abc")) == 32
    assert image_key(ImageRecord("dog/x", "dog", "dog/x.png"), b"abc") == image_key(RECORD, b"abc")
    assert len({image_key(RECORD, b"abc"), image_key(MIRRORED, b"abc"), image_key(RECORD, b"abd")}) == 3


def test_resize_to_square() -> None:
    white = resize_to_square(Image.new("RGB", (7, 3), (255, 0, 51)), 5)
    assert white.shape == (3, 5, 5)
    assert white.dtype == np.uint8
    assert white.flags.c_contiguous
    assert white[:, 2, 3].tolist() == [255, 0, 51]


def test_resize_is_antialiased_and_keeps_orientation() -> None:
    stripes = np.zeros((8, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    stripes[:4] = 0
    resized = resize_to_square(Image.fromarray(stripes), 8)
    np.testing.assert_array_equal(resized[0, 0], 0)  # the upper half is black
    assert np.abs(resized[0, 7] - 127.5).max() < 6  # stripes average to grey instead of aliasing
