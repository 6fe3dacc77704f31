"""Images that nobody took with a camera: the answer is pixels or one `ImageError`, in silence and bounded memory."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featstore.datasets import pictures as picture_file
from featstore.datasets.folder import FolderDataset
from featstore.datasets.pictures import decode, exif_orientation, original_size
from featstore.datasets.reading import read_image
from featstore.datasets.records import ImageRecord
from featstore.errors import DatasetError, ImageError
from featstore.pipeline.photos import open_photo
from tests.featstore.datasets.damage import edited
from tests.featstore.datasets.picture_bytes import (
    bmp,
    deep_noise,
    encoded,
    gif,
    jpeg_of_scans,
    noise,
    png,
    tiff,
    valid_files,
    with_checksums,
)

RECORD = ImageRecord("cat/a", "cat", "cat/a.jpg")


def pixels(data: bytes) -> list[list[list[int]]]:
    picture = decode(RECORD, data)
    assert picture.mode == "RGB"
    found: list[list[list[int]]] = np.asarray(picture).tolist()
    return found


def refusal(data: bytes, call: Callable[[ImageRecord, bytes], object] = decode) -> str:
    with pytest.raises(ImageError) as caught:
        call(RECORD, data)
    assert caught.value.image_id == "cat/a"
    check_sentence(str(caught.value))
    return str(caught.value)


def check_sentence(sentence: str) -> None:
    """One short line that a terminal shows as it is."""
    assert sentence.isprintable()
    assert len(sentence) < 400


@pytest.fixture
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Python prints nothing inside. libtiff, which is C, may say of a damaged TIFF what it likes."""
    yield
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Warning" not in printed.err or "PIL" not in printed.err


# sizes ----------------------------------------------------------------------------------------------------------------

HUGE = {
    "PNG": png((100_000, 100_000), 8, 2, b""),
    "PNG within a 32-bit area": png((100_000, 42_950), 8, 2, b""),
    "GIF": gif(65_535, 65_535),
    "BMP": bmp(100_000, 100_000),
    "BMP upside down": bmp(30_000, -30_000),
    "TIFF": tiff((100_000, 100_000), b"", {258: 8, 262: 1}),
    "PPM": b"P6\n100000 100000\n255\n",
    "PPM of many digits": b"P6\n" + b"9" * 4000 + b" 1\n255\n",
    "JPEG": jpeg_of_scans(65_000, 1),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_header_that_claims_a_huge_picture(name: str, silence: None) -> None:
    for call in (decode, original_size):
        assert "pixels" in refusal(HUGE[name], call) or name == "PPM of many digits"


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """A process that may have 256 MiB more than it has when Pillow is loaded refuses each for its size."""
    for number, data in enumerate([*HUGE.values(), png((32_769, 1), 8, 2, b""), gif(32_768, 4_097)]):
        (tmp_path / str(number)).write_bytes(data)
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from featstore.datasets.pictures import decode, original_size\n"
        "from featstore.datasets.records import ImageRecord\n"
        "from featstore.errors import ImageError\n"
        "decode(ImageRecord('a', 'a', 'a'), b'P6 1 1 255\\n123')\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "most = pages * resource.getpagesize() + (256 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: print(decode(ImageRecord('a', 'a', 'a'), path.read_bytes()))\n"
        "    except ImageError as error: print('memory' if 'memory' in str(error) else 'refused')\n"
    )
    if not Path("/proc/self/statm").is_file():
        pytest.skip("the size of a process is read from Linux's /proc")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["refused"] * (len(HUGE) + 2), "")


EMPTY = {
    "PNG": png((0, 5), 8, 2, b""),
    "PNG no height": png((5, 0), 8, 2, b""),
    "GIF": gif(0, 0, side=0),
    "BMP": bmp(0, 7),
    "TIFF": tiff((0, 3), b"", {258: 8, 262: 1}),
    "PPM": b"P6\n0 4\n255\n",
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_pixels_a_side(name: str, silence: None) -> None:
    for call in (decode, original_size):
        refusal(EMPTY[name], call)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (32_769, 1)])
def test_a_side_beyond_the_limit(size: tuple[int, int], silence: None) -> None:
    data = png(size, 1, 0, bytes((1 + -(-size[0] // 8)) * size[1]))
    for call in (decode, original_size):
        assert f"it is {size[0]}x{size[1]} pixels where at most 32,768 a side" in refusal(data, call)


def test_the_longest_side_that_is_read() -> None:
    data = png((32_768, 1), 1, 0, bytes(1 + 4096))
    assert decode(RECORD, data).size == original_size(RECORD, data) == (32_768, 1)


def test_the_limit_on_the_area(monkeypatch: pytest.MonkeyPatch, silence: None) -> None:
    monkeypatch.setattr(picture_file, "MAX_PIXELS", 96)
    assert decode(RECORD, encoded(noise(12, 8), "PNG")).size == (12, 8)
    assert "it is 97x1 pixels where at most" in refusal(encoded(noise(97, 1), "PNG"), original_size)


def test_pillow_does_not_warn_of_what_is_within_the_limits(monkeypatch: pytest.MonkeyPatch, silence: None) -> None:
    """It would from 89 million pixels, where ours is 134."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    assert decode(RECORD, encoded(noise(12, 8), "PNG")).size == (12, 8)


def test_what_looks_like_scans_behind_a_photograph() -> None:
    """Telephones append a video."""
    data = encoded(noise(), "JPEG", progressive=True)
    np.testing.assert_array_equal(pixels(data + b"\xff\xda" * 5_000), pixels(data))


# kinds of pixels ------------------------------------------------------------------------------------------------------

WHITE, BLACK = [255] * 3, [0] * 3
PLTE = (b"PLTE", bytes([10, 20, 30, 200, 100, 50]))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(png((4, 1), 2, 0, b"\0\x1b"), [[0] * 3, [85] * 3, [170] * 3, WHITE], id="2 bits"),
        pytest.param(png((2, 1), 4, 0, b"\0\x1f"), [[17] * 3, WHITE], id="4 bits"),
        pytest.param(png((3, 1), 16, 0, b"\0\xff\xff\x80\x80\0\xff"), [WHITE, [128] * 3, [1] * 3], id="16 bits"),
        pytest.param(png((1, 1), 16, 2, b"\0\xff\xff\x80\0\0\0"), [[255, 128, 0]], id="RGB of 16 bits"),
        pytest.param(png((2, 1), 8, 3, b"\0\0\1", PLTE), [[10, 20, 30], [200, 100, 50]], id="palette"),
        pytest.param(png((2, 1), 8, 3, b"\0\0\1", PLTE, (b"tRNS", b"\xff\0")), [[10, 20, 30], WHITE], id="clear entry"),
        pytest.param(png((1, 1), 8, 4, b"\0\x40\x80"), [[159] * 3], id="half of grey on white"),
        pytest.param(png((2, 1), 8, 0, b"\0\1\2", (b"tRNS", b"\0\1")), [WHITE, [2] * 3], id="clear grey"),
        pytest.param(png((2, 1), 2, 0, b"\0\x60", (b"tRNS", b"\0\1")), [WHITE, [170] * 3], id="clear grey of 2 bits"),
        pytest.param(png((2, 1), 4, 0, b"\0\x12", (b"tRNS", b"\0\1")), [WHITE, [34] * 3], id="clear grey of 4 bits"),
        pytest.param(
            png((2, 1), 16, 0, b"\0\x80\0\0\x80", (b"tRNS", b"\x80\0")), [WHITE, BLACK], id="clear grey of 16 bits"
        ),
        pytest.param(
            png((2, 1), 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", b"\0\1\0\2\0\3")), [WHITE, [4, 5, 6]], id="clear colour"
        ),
        pytest.param(
            png((2, 1), 16, 2, b"\0\x10\0\x20\0\x30\0" + bytes(6), (b"tRNS", b"\x10\0\x20\0\x30\0")),
            [WHITE, BLACK],
            id="clear colour of 16 bits",
        ),
        pytest.param(tiff((2, 1), b"\xff\xff\0\0", {258: 16, 262: 1}), [WHITE, BLACK], id="TIFF of 16 bits"),
        pytest.param(tiff((2, 1), b"\xff\xff\0\0", {258: 16, 262: 0}), [BLACK, WHITE], id="TIFF whose 0 is white"),
        pytest.param(tiff((2, 1), b"\xff\xf8\0", {258: 12, 262: 1}), [WHITE, [128] * 3], id="TIFF of 12 bits"),
        pytest.param(b"P2 3 1 4095\n0 2048 4095\n", [BLACK, [128] * 3, WHITE], id="PGM of 12 bits"),
        pytest.param(b"P3 1 1 1023\n1023 512 0\n", [[255, 128, 0]], id="PPM of 10 bits"),
    ],
)
def test_kinds_of_pixels(data: bytes, expected: list[list[int]], silence: None) -> None:
    assert pixels(data) == [expected]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "PA", "LA", "RGBA", "1", "I;16B"])
def test_modes_of_tiff(mode: str, silence: None) -> None:
    assert decode(RECORD, encoded(Image.new(mode, (3, 2)), "TIFF")).size == (3, 2)


@pytest.mark.parametrize("file_format", ["WEBP", "PNG", "GIF"])
def test_the_first_frame(file_format: str, silence: None) -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(first, file_format, save_all=True, append_images=[second], **options)
    assert pixels(data)[0][0] == [255, 0, 0]


# orientation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_as_stored(file_format: str, orientation: int, silence: None) -> None:
    """TIFF too, which Pillow turns of itself."""
    exif = Image.Exif()
    exif[274] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(file_format, {})
    plain, turned = (encoded(noise(), file_format, **options, **more) for more in ({}, {"exif": exif}))
    assert exif_orientation(RECORD, turned) == orientation
    assert exif_orientation(RECORD, plain) == 1
    np.testing.assert_array_equal(pixels(turned), pixels(plain))
    if file_format != "JPEG":
        np.testing.assert_array_equal(pixels(turned), noise())
    assert original_size(RECORD, turned) == decode(RECORD, turned).size == (12, 8)


def test_an_orientation_in_xmp_of_a_tiff() -> None:
    """Pillow reads it there as well, but only after it has told the size."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    data = encoded(noise(), "TIFF", tiffinfo={700: xmp})
    assert original_size(RECORD, data) == decode(RECORD, data).size == (12, 8)
    np.testing.assert_array_equal(pixels(data), noise())


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[274] = value
    assert exif_orientation(RECORD, encoded(noise(), "JPEG", exif=exif)) == 1


def test_damaged_exif_data_are_no_reason_to_refuse_a_picture(silence: None) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(noise(), "JPEG", exif=exif)
    at = data.index(b"Exif\0\0") + 6
    broken = data[:at] + b"\xff" * 8 + data[at + 8 :]
    assert exif_orientation(RECORD, broken) == 1
    np.testing.assert_array_equal(pixels(broken), pixels(data))


# damage ---------------------------------------------------------------------------------------------------------------

FILES = valid_files()


def test_every_valid_file_is_read(silence: None) -> None:
    for data in FILES.values():
        assert decode(RECORD, data).size == original_size(RECORD, data) == (24, 16)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_or_was_whole(name: str, silence: None) -> None:
    """Never half grey. What may be missing is behind the first picture: checksums, end marks, further frames."""
    data = FILES[name]
    whole = pixels(data)
    # of the last number of a plain PPM, of three digits and a line's end, nobody sees that a digit is missing
    end = len(data) - 4 if name == "PPM plain" else len(data)
    cuts = {*range(0, end, max(len(data) // 60, 1)), *range(max(end - 24, 0), end)}
    for cut in sorted(cuts):
        with suppress(ImageError):
            assert pixels(data[:cut]) == whole, cut
    refusal(data[: len(data) // 3])


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("JPEG")])
def test_a_jpeg_whose_rest_is_zeros(name: str) -> None:
    """As programs leave it that make room for a download before it comes."""
    data = FILES[name]
    half = len(data) // 2 if name != "JPEG of several" else len(data) // 4
    refusal(data[:half] + bytes(len(data) - half))


def test_a_tiff_that_lacks_strips() -> None:
    """Pillow would leave them black."""
    whole = tiff((2, 4), bytes(range(1, 9)), {258: 8, 262: 1})
    assert decode(RECORD, whole).size == (2, 4)
    missing = tiff((2, 4), bytes(range(1, 9)), {258: 8, 262: 1, 278: 2})  # 2 rows a strip, and one strip
    assert "it is truncated: it holds 2x2 of its pixels" in refusal(missing)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(60),
        b"<!DOCTYPE html><title>404</title>",
        "ein Text".encode("utf-16"),
        b"\0\0\0\x18ftypheic" + bytes(60),
    ],
)
def test_no_images(data: bytes, silence: None) -> None:
    for call in (decode, original_size):
        assert "it is damaged or none of JPEG, PNG, WEBP" in refusal(data, call)


FORMATS = sorted({name.split()[0] for name in FILES})


@pytest.mark.parametrize("cases", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_or_a_sentence(file_format: str, cases: int, silence: None) -> None:
    """And the size in the header is that of the pixels."""
    valid = edited(st.sampled_from([data for name, data in FILES.items() if name.split()[0] == file_format]))
    outcomes = {"pixels": 0, "refused": 0}

    @settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=valid | valid.map(with_checksums) if file_format == "PNG" else valid)
    def answer(data: bytes) -> None:
        size = None
        try:
            size = original_size(RECORD, data)
            exif_orientation(RECORD, data)
            assert decode(RECORD, data).size == size
        except ImageError as error:
            check_sentence(str(error))
            outcomes["refused"] += 1
        else:
            outcomes["pixels"] += 1

    answer()
    assert min(outcomes.values()) > cases // 50, outcomes  # neither answer came by default


# files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "a.jpg")
    with pytest.raises(ImageError, match=r"Image cat/a cannot be read from .*it is a pipe or a device, no file"):
        read_image(tmp_path, RECORD)
    with pytest.raises(DatasetError, match=r"a\.jpg cannot be read: it is a pipe or a device"):
        open_photo(tmp_path / "cat" / "a.jpg")
    with pytest.raises(DatasetError, match="zero cannot be read: it is a pipe or a device"):
        open_photo(Path("/dev/zero"))
    with pytest.raises(DatasetError, match="cat cannot be read: it is a folder"):
        open_photo(tmp_path / "cat")
    with pytest.raises(DatasetError, match="has no sub-folder with images"):
        FolderDataset(tmp_path).images()


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with (tmp_path / "cat" / "a.jpg").open("wb") as stream:
        stream.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(ImageError, match="it has 5120 MiB where at most 512 are read"):
        read_image(tmp_path, RECORD)
    with pytest.raises(DatasetError, match="it has 5120 MiB where at most 512 are read"):
        open_photo(tmp_path / "cat" / "a.jpg")


def test_links_are_followed(tmp_path: Path) -> None:
    """Datasets are often linked from elsewhere; a list, which may come from anybody, cannot make a link."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    elsewhere.mkdir()
    root.mkdir()
    (elsewhere / "a.jpg").write_bytes(encoded(deep_noise(), "PNG"))
    (root / "cat").symlink_to(elsewhere)
    (image,) = FolderDataset(root).images()
    assert FolderDataset(root).read(image) == (elsewhere / "a.jpg").read_bytes()
