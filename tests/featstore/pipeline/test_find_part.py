"""`--part auto`: shares worked out by hand from what SLURM, Kubernetes and torchrun set, and tasks that find theirs."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from featstore.config import BuildConfig
from featstore.pipeline.distributed import LAUNCHERS, Part, find_part
from featstore.pipeline.run_build import build
from matcher.errors import InputError
from tests.forked import all_done, at_once, one_thread, together

NAMES = [name for launcher in LAUNCHERS for name in launcher.variables]


@pytest.fixture(autouse=True)
def _told_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    with one_thread():
        yield


def slurm(**told: int | str) -> dict[str, str]:
    """`id=3` to `SLURM_ARRAY_TASK_ID=3`."""
    return {f"SLURM_ARRAY_TASK_{name.upper()}": str(value) for name, value in told.items()}


def kubernetes(index: int | str, **count: int | str) -> dict[str, str]:
    return {
        "JOB_COMPLETION_INDEX": str(index),
        **{f"JOB_COMPLETION_{name.upper()}": str(n) for name, n in count.items()},
    }


def torchrun(rank: int, count: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (slurm(id=0, min=0, max=7, step=1, count=8), Part(1, 8)),  # --array=0-7
        (slurm(id=7, min=0, max=7, step=1, count=8), Part(8, 8)),
        (slurm(id=1, min=1, max=8, step=1, count=8), Part(1, 8)),  # --array=1-8
        (slurm(id=8, min=1, max=8, step=1, count=8), Part(8, 8)),
        (slurm(id=103, min=100, max=104, step=1, count=5), Part(4, 5)),  # --array=100-104
        (slurm(id=5, min=1, max=7, step=2, count=4), Part(3, 4)),  # --array=1-7:2
        (slurm(id=8, min=0, max=8, step=4, count=3), Part(3, 3)),  # --array=0-10:4 are 0, 4 and 8
        (slurm(id=2, min=2, max=2, step=1, count=1), Part(1, 1)),  # --array=2
        (slurm(id=3, min=1, max=4), Part(3, 4)),  # no step, no count
        (slurm(id=3, min=1, count=4), Part(3, 4)),  # no step, no largest id
        (kubernetes(0, count=5), Part(1, 5)),
        (kubernetes(4, count=5), Part(5, 5)),
        (torchrun(0, 3), Part(1, 3)),
        (torchrun(2, 3), Part(3, 3)),
        ({"WORLD_SIZE": "1"}, Part(1, 1)),
        # one that tells of a single job does not count beside another
        (slurm(id=4, min=4, max=4, step=1, count=1) | torchrun(2, 3), Part(3, 3)),
        (slurm(id=1, min=0, max=2, step=1, count=3) | torchrun(0, 1), Part(2, 3)),
        (kubernetes(0, count=1) | {"WORLD_SIZE": "1"}, Part(1, 1)),
    ],
)
def test_shares(environment: dict[str, str], part: Part) -> None:
    assert find_part({"HOME": "/root", **environment}) == part


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {},
            r"SLURM_ARRAY_TASK_ID \(a SLURM array\), JOB_COMPLETION_INDEX \(.*\), WORLD_SIZE \(torchrun\) none is set",
        ),
        ({"SLURM_JOB_ID": "9", "SLURM_PROCID": "1"}, "none is set"),
        ({"JOB_COMPLETION_COUNT": "3"}, "none is set"),
        (kubernetes(2), r"JOB_COMPLETION_INDEX=2, JOB_COMPLETION_COUNT unset\): set JOB_COMPLETION_COUNT"),
        (kubernetes(3, count=3), "JOB_COMPLETION_INDEX=3, JOB_COMPLETION_COUNT=3"),
        (kubernetes(0, count=0), "JOB_COMPLETION_COUNT=0"),
        (kubernetes("", count=3), "JOB_COMPLETION_INDEX=,"),
        (kubernetes(1, count="many"), "JOB_COMPLETION_COUNT=many"),
        (slurm(id=3), "SLURM_ARRAY_TASK_ID=3, SLURM_ARRAY_TASK_MIN unset, SLURM_ARRAY_TASK_MAX unset"),
        (slurm(id=3, min=0), "SLURM_ARRAY_TASK_MAX unset"),
        (slurm(id=9, min=1, max=9, step=1, count=3), r"--array=0-7, or write the share out"),  # --array=1,2,9
        (slurm(id=2, min=1, max=9, step=1, count=3), "SLURM_ARRAY_TASK_MAX=9"),
        (slurm(id=8, min=0, max=7, step=1, count=8), "SLURM_ARRAY_TASK_ID=8"),
        (slurm(id=2, min=1, max=7, step=2, count=4), "SLURM_ARRAY_TASK_ID=2"),
        (slurm(id=1, min=1, max=7, step=0, count=4), "SLURM_ARRAY_TASK_STEP=0"),
        ({"WORLD_SIZE": "4"}, r"torchrun \(WORLD_SIZE=4, RANK unset\)"),
        (
            slurm(id=1, min=0, max=2, step=1, count=3) | torchrun(1, 4),
            r"SLURM array \(2 of 3\) and torchrun \(2 of 4\)",
        ),
        (kubernetes(1, count=2) | slurm(id=1, min=1, max=2, step=1, count=2), "both divide the images"),
    ],
)
def test_what_does_not_tell_the_share(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        find_part(environment)
    assert str(raised.value).startswith("--part auto ")
    assert str(raised.value).count(". ") == 0  # one sentence


def test_the_command_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("cache", "build"), ("cache", "build", "--dry-run")):
        refused = CliRunner().invoke(app, [*command, "--part", "auto"])
        assert refused.exit_code == 2
        assert "SLURM_ARRAY_TASK_ID" in refused.output
    assert not list(tmp_path.iterdir())


def task(environment: dict[str, str], arguments: list[str]) -> Callable[[], None]:
    """A process with an environment of its own that runs a command."""

    def run() -> None:
        os.environ.update(environment)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output

    return run


def present(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each array of the store how many rows are there, of how many."""
    info = ["cache", "info", "--store", str(folder / "s.zarr"), "--json", str(folder / "info.json")]
    assert CliRunner().invoke(app, info).exit_code == 0
    arrays = json.loads((folder / "info.json").read_text())["arrays"]
    return {array["path"]: (array["present"], array["rows"]) for array in arrays}


def test_three_tasks_of_an_array_do_each_image_once(tmp_path: Path, photographs: Path, small_model: Path) -> None:
    """6 images in ids 3, 5 and 7: two each, at once, of latents, noisy latents and maps."""
    store = ["--store", str(tmp_path / "s.zarr")]
    built = ["cache", "build", *store, "--dataset", "folder", "--root", str(photographs), "--model", str(small_model)]
    small = ["--size", "64", "--t", "50", "--batch-size", "2", "--part", "auto"]
    told = {id_: slurm(id=id_, min=3, max=7, step=2, count=3) for id_ in (3, 5, 7)}
    assert all_done(
        at_once(*(task(own, [*built, *small, "--json", str(tmp_path / f"{id_}.json")]) for id_, own in told.items()))
    )
    reports = [json.loads((tmp_path / f"{id_}.json").read_text()) for id_ in told]
    assert [(own["images"], own["encoded"], own["skipped"]) for own in reports] == [(2, 2, 0)] * 3
    assert present(tmp_path)["latents"] == (6, 6)
    maps = ["cache", "maps", *store, "--layers", "2", "--t", "50", "--ensemble", "1", "--part", "auto"]
    assert all_done(
        at_once(*(task(own, [*maps, "--json", str(tmp_path / f"{id_}.json")]) for id_, own in told.items()))
    )
    made = [json.loads((tmp_path / f"{id_}.json").read_text()) for id_ in told]
    assert [(own["images"], own["passes"]) for own in made] == [(2, 2)] * 3
    assert [rows for path, rows in present(tmp_path).items() if path.startswith("maps/")] == [(6, 6)]


def test_processes_of_torchrun_divide_as_without_it(tmp_path: Path, photographs: Path, small_model: Path) -> None:
    places = {"root": photographs, "model": str(small_model), "store": str(tmp_path / "s.zarr")}
    config = BuildConfig(dataset="folder", size=64, timesteps=(50,), part="auto", device="cpu", **places)

    def run() -> None:
        report = build(config)
        assert (report.images, report.encoded) == (6, 6)  # of both together

    assert together(2, run) == [0, 0]
