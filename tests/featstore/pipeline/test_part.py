"""Several jobs that fill one store: whatever they do at once, it is the store of one job, byte for byte."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featstore.backbones.base import Compute
from featstore.backbones.models import Model
from featstore.datasets.records import Dataset
from featstore.pipeline import build as images_stage
from featstore.pipeline.build import BuildReport, BuildRequest, build, estimate, open_or_create, together
from featstore.pipeline.distributed import WHOLE, Part
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.rows import Row, RowArray
from featstore.store.store import open_store, update_images
from tests.featstore.store.small_store import contents
from tests.forked import all_done, at_once, one_thread

WANTED = [("2", 261), ("3", 50)]
PARTS = [Part(number, 4) for number in (1, 2, 3, 4)]
Job = Callable[[Path, Part], BuildReport]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def job(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> Job:
    """`cache build` and then `cache maps` of a part."""

    def run(path: Path, part: Part) -> BuildReport:
        report = build(dataset, model, replace(request_, path=path, part=part), compute, False, Silent())
        store = open_store(path)
        rows = part.of(range(len(store.images)))
        require_maps(store, dataset, rows, WANTED, MapRequest(TextPrompt(), 2, compute), Silent())
        return report

    return run


@pytest.fixture
def whole(job: Job, tmp_path: Path) -> dict[str, bytes]:
    """Every file of the store of one job."""
    job(tmp_path / "whole.zarr", WHOLE)
    return contents(tmp_path / "whole.zarr")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_parts_are_all_images_once(count: int) -> None:
    items = [f"image {row}" for row in range(18)]
    parts = [Part(number, count).of(items) for number in range(1, count + 1)]
    assert sorted(itertools.chain(*parts)) == sorted(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_takes_its_share_and_no_more(
    dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute
) -> None:
    """6 images; a part of four has two of them or one, each with 2 draws at 2 timesteps."""
    second = replace(request_, part=Part(2, 4))
    cost = estimate(dataset, model, second, Silent())
    assert (cost.images, cost.encode, cost.noise) == (2, 2, 8)
    report = build(dataset, model, second, compute, False, Silent())
    assert (report.images, report.encoded, report.skipped, report.noised) == (2, 2, 0, 8)
    assert report.bytes_written == cost.bytes_to_write
    store = open_store(request_.path)
    assert np.flatnonzero(store.latents().present()).tolist() == [1, 5]
    assert estimate(dataset, model, second, Silent()).encode == 0
    rest = estimate(dataset, model, request_, Silent())
    assert (rest.encode, rest.noise) == (4, 16)
    last = build(dataset, model, replace(request_, part=Part(4, 4)), compute, False, Silent())
    assert (last.images, last.encoded) == (1, 1)
    all_parts = together([report, last])
    assert (all_parts.images, all_parts.encoded, all_parts.noised) == (3, 3, 12)


def test_parts_in_any_order(job: Job, whole: dict[str, bytes], tmp_path: Path) -> None:
    for part in (PARTS[2], PARTS[0], PARTS[3], PARTS[1]):
        job(tmp_path / "s.zarr", part)
    assert contents(tmp_path / "s.zarr") == whole


def test_parts_at_once_one_of_them_twice(job: Job, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Real processes that start at one instant with no store: one makes it, and the same part does no harm."""
    path = tmp_path / "s.zarr"
    assert all_done(at_once(*(partial(job, path, part) for part in [*PARTS, PARTS[1]])))
    assert contents(path) == whole
    assert not list(tmp_path.glob("*.making"))


def test_a_part_that_is_killed_and_run_again(
    job: Job, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part 1 has rows 0 and 4: two latents, 8 noisy latents, and it dies at the second of its 4 maps."""
    path, plain, count = tmp_path / "s.zarr", RowArray.write, itertools.count(1)

    def dying(array: RowArray, row: Row, values: NDArray[np.float32]) -> None:
        if next(count) == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(array, row, values)

    def first() -> None:
        monkeypatch.setattr(RowArray, "write", dying)
        job(path, PARTS[0])

    codes = at_once(first, *(partial(job, path, part) for part in PARTS[1:]))
    assert codes == [-signal.SIGKILL, 0, 0, 0]
    for half in path.rglob("*.partial"):  # of a row that another thread was writing
        os.utime(half, (0, 0))
    killed = {name for name in contents(path) if not name.endswith(".partial")}
    assert killed < whole.keys()
    job(path, PARTS[0])
    assert contents(path) == whole


def test_whoever_makes_the_store_may_die_of_it(
    job: Job, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with the store made, at the moment of putting it into its place: the others make theirs."""
    path, plain = tmp_path / "s.zarr", Path.rename

    def dying(self: Path, target: Path) -> Path:
        if target == path:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, target)

    def creator() -> None:
        monkeypatch.setattr(Path, "rename", dying)
        job(path, PARTS[0])

    assert at_once(creator) == [-signal.SIGKILL]
    assert not path.exists()
    assert all_done(at_once(*(partial(job, path, part) for part in PARTS)))
    assert contents(path) == whole


def change(file: Path) -> None:
    Image.open(file).resize((88, 66)).save(file)


def test_an_image_that_changed_is_encoded_once(
    dataset: Dataset,
    model: Model,
    request_: BuildRequest,
    compute: Compute,
    job: Job,
    whole: dict[str, bytes],
    tmp_path: Path,
    photographs: Path,
) -> None:
    """Builds alone are counted: a part that makes maps meanwhile encodes what it needs, were it another's image."""
    path, reports = tmp_path / "s.zarr", tmp_path / "reports"
    reports.mkdir()
    shutil.copytree(tmp_path / "whole.zarr", path)
    change(photographs / "dog" / "1.png")

    def own(part: Part) -> None:
        report = build(dataset, model, replace(request_, path=path, part=part), compute, False, Silent())
        (reports / str(part.number)).write_text(f"{report.stale}{report.encoded}")

    assert all_done(at_once(*(partial(own, part) for part in PARTS)))
    counts = [(reports / str(part.number)).read_text() for part in PARTS]
    assert max(int(count[0]) for count in counts) == 1  # of all that saw it change
    assert sum(int(count[1]) for count in counts) == 1
    assert all_done(at_once(*(partial(job, path, part) for part in PARTS)))
    shutil.copytree(tmp_path / "whole.zarr", tmp_path / "alone.zarr")
    job(tmp_path / "alone.zarr", WHOLE)
    assert contents(path) == contents(tmp_path / "alone.zarr")
    assert contents(path) != whole


def test_a_change_that_another_wrote_down_is_no_change(
    dataset: Dataset, model: Model, request_: BuildRequest, job: Job, tmp_path: Path, photographs: Path
) -> None:
    """A part that opened the store before the image changed comes to its turn when the new row is there."""
    path = tmp_path / "s.zarr"
    job(path, WHOLE)
    late = open_store(path)
    change(photographs / "dog" / "1.png")
    survey = images_stage.survey_images(dataset, Silent())
    assert job(path, WHOLE).stale == 1
    before = contents(path)
    now = update_images(late, survey.entries(late.images), Silent())
    assert now.images.keys == open_store(path).images.keys != late.images.keys
    assert contents(path) == before


def test_a_store_that_appears_meanwhile_is_held_against_the_request(
    dataset: Dataset, model: Model, request_: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be if it had been there: another seed is refused."""
    plain = images_stage.survey_images

    def survey_while_another_builds(*arguments: object) -> object:
        monkeypatch.setattr("featstore.pipeline.build.survey_images", plain)
        open_or_create(dataset, model, replace(request_, seed=12), Silent())
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("featstore.pipeline.build.survey_images", survey_while_another_builds)
    with pytest.raises(Exception, match="seed 12, not 11"):
        open_or_create(dataset, model, request_, Silent())
