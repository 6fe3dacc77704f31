"""Images through the VAE once: counts, resumption, staleness, determinism."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featstore.backbones import diffusion_networks as networks
from featstore.backbones.base import Compute
from featstore.backbones.models import Model
from featstore.backbones.noise import Latents, noise, posterior_noise
from featstore.datasets.pictures import decode, resize_to_square
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import ImageError, ModelError, StoreError
from featstore.pipeline.build import BuildRequest, build, estimate
from featstore.progress import Silent
from featstore.store.care import verify
from featstore.store.store import open_store
from matcher.configuration import Pad


def contents(path: Path) -> dict[str, bytes]:
    """Every object of a store but zarr's metadata."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("c*")) if file.is_file()}


@contextmanager
def counted_vae(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images each VAE call was given (padding is zeros, images never are)."""
    calls: list[int] = []
    plain = networks.encode

    def counting(vae: object, images: torch.Tensor, drawn: torch.Tensor | None) -> torch.Tensor:
        calls.append(int(images.flatten(1).any(dim=1).sum()))
        return plain(vae, images, drawn)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(networks, "encode", counting)
        yield calls


def test_latents_are_the_vaes(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> None:
    """Against diffusers' own VAE with decoder and all, one image at a time, and the formula."""
    from diffusers import AutoencoderKL

    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    store = open_store(request_.path)
    vae = AutoencoderKL.from_pretrained(model.location.folder, subfolder="vae", dtype=torch.float32)
    for record in dataset.images():
        row = store.images.row(record.id)
        pixels = torch.from_numpy(resize_to_square(decode(record, dataset.read(record)), 64))[None] / 127.5 - 1
        with torch.no_grad():
            posterior = vae.encode(pixels).latent_dist
        drawn = torch.from_numpy(posterior_noise(11, store.images.keys[row], (4, 16, 16)))
        expected = (posterior.mean + posterior.std * drawn) * vae.config.scaling_factor
        np.testing.assert_allclose(store.latents().read((row,)), expected[0].numpy(), rtol=2e-3, atol=2e-3)


def test_noisy_latents_are_the_formula(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute
) -> None:
    """sqrt(a) x + sqrt(1 - a) e, with a the product of 1 - beta of the scaled linear schedule up to t."""
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    store = open_store(request_.path)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for timestep in (50, 261):
        alpha = np.prod(1 - betas[: timestep + 1])
        array = store.noisy(timestep)
        assert array is not None
        for row, key in enumerate(store.images.keys):
            clean = store.latents().read((row,)).astype(np.float32)
            for draw in range(2):
                expected = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise(11, key, timestep, draw, clean.shape)
                np.testing.assert_allclose(array.read((row, draw)), expected, atol=4e-3)


def test_a_second_run_does_only_what_is_missing(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted_vae(monkeypatch) as calls:
        first = build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
        assert (first.images, first.encoded, first.skipped, first.noised) == (6, 6, 0, 24)
        assert calls == [4, 2]
        before = contents(request_.path)
        second = build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
        assert (second.encoded, second.skipped, second.noised, second.bytes_written) == (0, 6, 0, 0)
        more = build(dataset, model, replace(request_, draws=3), compute, skip_bad=False, progress=Silent())
        assert (more.encoded, more.noised) == (0, 12)
        assert calls == [4, 2]
    after = contents(request_.path)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 12


def test_rows_do_not_depend_on_which_were_missing_together(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, tmp_path: Path
) -> None:
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    store = open_store(request_.path)
    before = contents(request_.path)
    for row in (1, 2, 5):
        store.latents().delete_rows([(row,)])
    noisy = store.noisy(261)
    assert noisy is not None
    noisy.delete_rows([(3, 1)])
    report = build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    assert (report.encoded, report.noised) == (3, 1)
    assert contents(request_.path) == before
    other = replace(request_, path=tmp_path / "other.zarr", timesteps=(261, 50))
    build(dataset, model, other, compute, skip_bad=False, progress=Silent())
    assert contents(other.path) == before


def test_a_changed_image_is_encoded_anew_alone(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, photographs: Path
) -> None:
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    before = contents(request_.path)
    file = photographs / "dog" / "1.png"
    Image.open(file).resize((88, 66)).save(file)
    report = build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    assert (report.encoded, report.stale, report.skipped, report.noised) == (1, 1, 5, 4)
    store = open_store(request_.path)
    row = store.images.row("dog/1")
    assert store.images.size("dog/1") == (88, 66)
    assert row == 6  # the old one stays for whoever reads it
    changed = {name for name, data in contents(request_.path).items() if data != before.get(name)}
    rows = {f"latents/c.{row}.0.0.0"} | {f"noisy/t{t}/c.{row}.{d}.0.0.0" for t in ("0050", "0261") for d in (0, 1)}
    assert all(name.startswith("images/") for name in changed - rows)
    assert rows <= changed


def test_the_mean_of_the_posterior(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> None:
    mean = replace(request_, latents=Latents.MEAN, timesteps=())
    build(dataset, model, mean, compute, skip_bad=False, progress=Silent())
    with pytest.raises(StoreError, match="latents mean, not sample"):
        build(dataset, model, request_, compute, skip_bad=False, progress=Silent())


def test_an_estimate_is_what_is_written(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute
) -> None:
    cost = estimate(dataset, model, request_, Silent())
    assert (cost.images, cost.encode, cost.noise) == (6, 6, 24)
    assert not request_.path.exists()
    report = build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    assert cost.bytes_to_write == report.bytes_written
    rows = {name: data for name, data in contents(request_.path).items() if not name.startswith("images")}
    assert cost.files_to_write == len(rows)
    assert cost.bytes_to_write == sum(map(len, rows.values()))
    again = estimate(dataset, model, replace(request_, draws=3), Silent())
    assert (again.encode, again.noise) == (0, 12)


def test_a_broken_image_is_named_and_the_rest_is_kept(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, photographs: Path
) -> None:
    (photographs / "cat" / "1.png").write_bytes(b"")
    with pytest.raises(ImageError, match="cat/1"):
        build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    assert open_store(request_.path).latents().present().sum() == 5
    report = build(dataset, model, request_, compute, skip_bad=True, progress=Silent())
    assert [error.image_id for error in report.bad] == ["cat/1"]
    assert (report.encoded, report.skipped) == (0, 5)


def test_images_come_and_go_and_only_what_is_new_is_encoded(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, photographs: Path, tmp_path: Path
) -> None:
    for name in ("keypoints.csv", "pairs.csv"):
        (photographs / name).unlink(missing_ok=True)

    def built() -> tuple[int, int, int, tuple[str, ...]]:
        again = open_dataset("folder", photographs)
        cost = estimate(again, model, request_, Silent())
        report = build(again, model, request_, compute, skip_bad=False, progress=Silent())
        assert (cost.encode, cost.noise) == (report.encoded, report.noised) == (report.encoded, 4 * report.encoded)
        return report.encoded, report.new, report.stale, report.gone

    assert built()[0] == 6
    old = open_store(request_.path)
    file = photographs / "dog" / "2.png"
    shutil.move(file, tmp_path / "aside.png")
    shutil.copy(photographs / "dog" / "1.png", photographs / "dog" / "9.png")
    Image.open(photographs / "dog" / "9.png").rotate(180).save(photographs / "dog" / "9.png")
    assert built() == (1, 1, 0, ("dog/2",))
    assert built() == (0, 0, 0, ())
    shutil.move(tmp_path / "aside.png", file)
    assert built() == (0, 1, 0, ())  # its row is still there
    Image.open(file).rotate(180).save(file)
    assert built() == (1, 0, 1, ())
    now = open_store(request_.path)
    assert (len(now.images), sorted(now.images.gone)) == (8, [old.images.row("dog/2")])
    assert verify(now, Silent()).sound
    for row in range(6):  # whoever had it open reads on
        np.testing.assert_array_equal(old.latents().read((row,)), now.latents().read((row,)))
    fresh = replace(request_, path=tmp_path / "fresh.zarr")
    build(open_dataset("folder", photographs), model, fresh, compute, skip_bad=False, progress=Silent())
    alone = open_store(fresh.path)
    for image in alone.images.ids:
        np.testing.assert_array_equal(
            alone.latents().read((alone.images.row(image),)), now.latents().read((now.images.row(image),))
        )


def test_entirely_other_images_are_refused(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, photographs: Path
) -> None:
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    for name in ("keypoints.csv", "pairs.csv"):
        (photographs / name).unlink(missing_ok=True)
    for number, file in enumerate(sorted(photographs.glob("*/*.png"))):
        file.rename(file.with_name(f"other{number}.png"))
    other = open_dataset("folder", photographs)
    before = contents(request_.path)
    for act in (
        lambda: build(other, model, request_, compute, skip_bad=False, progress=Silent()),
        lambda: estimate(other, model, request_, Silent()),
    ):
        with pytest.raises(StoreError, match=r"was made from other images: none of its 6 is in folder now"):
            act()
    assert contents(request_.path) == before


def test_impossible_requests(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> None:
    for change, words in [({"image_size": 100}, "multiple of 32"), ({"timesteps": (1000,)}, "0 to 999")]:
        with pytest.raises(ModelError, match=words):
            build(dataset, model, replace(request_, **change), compute, skip_bad=False, progress=Silent())
    assert not request_.path.exists()


def test_a_padded_store_holds_what_padded_pictures_would_give(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, tmp_path: Path
) -> None:
    padded = replace(request_, pad=Pad.SQUARE, latents=Latents.MEAN)
    build(dataset, model, padded, compute, skip_bad=False, progress=Silent())
    for record in dataset.images():  # made squares by hand, which stretching leaves as they are
        picture = decode(record, dataset.read(record))
        scale = 64 / max(picture.size)
        content = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.LANCZOS)
        square = Image.new("RGB", (64, 64))
        square.paste(content, ((64 - content.width) // 2, (64 - content.height) // 2))
        (tmp_path / "squares" / record.category).mkdir(parents=True, exist_ok=True)
        square.save(tmp_path / "squares" / f"{record.id}.png")
    squares = open_dataset("folder", tmp_path / "squares")
    stretched = replace(request_, root=tmp_path / "squares", path=tmp_path / "q.zarr", latents=Latents.MEAN)
    build(squares, model, stretched, compute, skip_bad=False, progress=Silent())
    ours, theirs = open_store(padded.path), open_store(stretched.path)
    assert any(width != height for width, height in ours.images.sizes[list(ours.images.rows.values())].tolist())
    for image in ours.images.rows:
        found, expected = (store.latents().read((store.images.row(image),)) for store in (ours, theirs))
        np.testing.assert_array_equal(found, expected)
    assert (ours.header.pad, ours.header.version, theirs.header.pad) == (Pad.SQUARE, 4, Pad.STRETCH)
    for request in (replace(padded, pad=Pad.STRETCH), replace(padded, path=stretched.path)):
        what = "--pad square, not stretch" if request.path == padded.path else "--pad stretch, not square"
        root = dataset if request.path == padded.path else squares
        with pytest.raises(StoreError, match=f"was made with {what}: name another --store"):
            build(root, model, request, compute, skip_bad=False, progress=Silent())
