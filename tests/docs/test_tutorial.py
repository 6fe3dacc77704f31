"""The pages' commands, taken from the pages, run in an empty directory, and print what the pages say."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.docs.pages import DOCS, Block, Reader, blocks

DATA = Path(__file__).parents[3] / "shared" / "data"
FEATURES = DATA / "pf-willow-effnet-features.safetensors"

ON_ANOTHER_MACHINE = 1.5
"""Points by which PCK of the demo may differ, as sums are rounded otherwise there."""


@pytest.mark.slow
def test_the_tutorial_on_the_demo(tmp_path: Path) -> None:
    run = Reader(tmp_path, ON_ANOTHER_MACHINE).follow(DOCS / "tutorial.md", {"demo"}, {"sh"})
    assert run == 8
    assert {"dift", "dift-bicubic", "dift-dual", "dual-class", "test-dual-class"} == {
        path.name for path in (tmp_path / "runs").iterdir()
    }
    assert (tmp_path / "grid" / "two-layers-nn.png").is_file()


@pytest.mark.slow
def test_the_numbers_on_the_demo(tmp_path: Path) -> None:
    run = Reader(tmp_path, ON_ANOTHER_MACHINE).follow(DOCS / "numbers.md", {"demo"}, {"sh"})
    assert run == 2


@pytest.mark.slow
@pytest.mark.skipif(not FEATURES.is_file(), reason="the PF-Willow data are not beside this checkout")
def test_the_numbers_on_photographs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pf-willow").symlink_to(DATA / "pf-willow")
    (tmp_path / "F.safetensors").symlink_to(FEATURES)
    run = Reader(tmp_path, 0.011).follow(DOCS / "numbers.md", {"PF-Willow"}, {"sh", "python"})
    assert run == 8


@pytest.mark.slow
def test_features_of_ones_own(tmp_path: Path) -> None:
    assert Reader(tmp_path, 0.5).follow(DOCS / "your-features.md", {"demo"}, {"sh", "python"}) == 7


@pytest.fixture
def store(tmp_path: Path, photographs: Path, small_model: Path) -> Path:
    """A store of the small photographs in `dualsd.zarr`."""
    build = f"dualsd cache build --dataset folder --root {photographs} --model {small_model} --size 64 --t 261"
    Reader(tmp_path, 0).run(Block("sh", "", build))
    return tmp_path / "dualsd.zarr"


def test_a_reader_of_the_store_that_needs_no_zarr(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's own code reads what zarr reads, knows a row that is not there, and notices a damaged one."""
    plain, with_zarr = (block.text for block in blocks(DOCS / "store.md") if block.language == "python")
    monkeypatch.chdir(store.parent)
    names: dict[str, Any] = {}
    for code in (plain, with_zarr):
        exec(compile(code, "store.md", "exec"), names)
    assert "latents of dog/0 (4, 16, 16)" in capsys.readouterr().out
    read_row = names["read_row"]
    opened = zarr.open_group(store, mode="r")
    for row in range(6):
        np.testing.assert_array_equal(read_row(store / "latents", row), opened["latents"][row])
        np.testing.assert_array_equal(read_row(store / "noisy" / "t0261", row, 0), opened["noisy/t0261"][row, 0])
    file = store / "latents" / "c.2.0.0.0"
    content = file.read_bytes()
    file.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])
    with pytest.raises(AssertionError, match="is damaged"):
        read_row(store / "latents", 2)
    file.unlink()
    assert read_row(store / "latents", 2) is None


@pytest.mark.parametrize(("name", "bits"), [("bitround4", 4), ("bitround3", 3)])
def test_rounded_maps_are_as_the_page_says(store: Path, name: str, bits: int) -> None:
    """zarr alone reads them, each value within half of the last bit that is kept; a row that is not there is NaN."""
    maps = "dualsd cache maps --layers 2 --t 261 --ensemble 1"
    Reader(store.parent, 0).run(Block("sh", "", f"{maps}\n{maps} --encoding {name}"))
    found = {}
    for folder in store.glob("maps/*/layer2/t0261"):
        found[zarr.open_group(folder.parents[1]).attrs.get("encoding", "raw")] = folder
    raw, rounded = (zarr.open_array(found[one], mode="r") for one in ("raw", name))
    assert rounded.attrs["keepbits"] == bits
    assert [codec["name"] for codec in rounded.metadata.to_dict()["codecs"]] == ["bytes", "blosc", "crc32c"]
    ours, theirs = np.float32(rounded[:]), np.float32(raw[:])
    assert not (rounded[:].view(np.uint16) & (1 << 10 - bits) - 1).any()
    normal = np.maximum(np.abs(theirs), np.finfo(np.float16).tiny)
    assert (np.abs(ours - theirs) <= normal * 2.0 ** -(bits + 1)).all()
    assert (ours != theirs).any()
    (found[name] / "c.4.0.0.0").unlink()
    assert np.isnan(zarr.open_array(found[name], mode="r")[4]).all()


def test_names_in_the_store_are_made_as_its_page_says(store: Path, photographs: Path) -> None:
    """Keys of images and of extractors, and the noise, from the page's text alone."""
    opened = zarr.open_group(store, mode="r+")
    image = photographs / "cat" / "0.png"
    assert opened["images/key"][0] == hashlib.blake2b(image.read_bytes(), digest_size=16).hexdigest()
    maps = "dualsd cache maps --layers 2 --t 261 --ensemble 1"
    Reader(store.parent, 0).run(Block("sh", "", maps))
    (extractor,) = (store / "maps").glob("*/")
    attributes = json.dumps(dict(opened[f"maps/{extractor.name}"].attrs), sort_keys=True).encode()
    assert extractor.name == hashlib.blake2b(attributes, digest_size=8).hexdigest()
    key = hashlib.blake2b(f"noise|0|{opened['images/key'][0]}|261|0".encode(), digest_size=16).digest()
    random = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64)))
    noise = random.standard_normal(opened["latents"].shape[1:], dtype=np.float32)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # "scaled_linear"
    kept = np.cumprod(1 - betas)[261]
    expected = np.sqrt(kept) * opened["latents"][0].astype(np.float64) + np.sqrt(1 - kept) * noise
    np.testing.assert_allclose(opened["noisy/t0261"][0, 0], expected, atol=4e-3)
