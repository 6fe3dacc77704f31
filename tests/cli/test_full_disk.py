"""A disk that fills up, and files that may not be as large as they must, amid `cache build`, `cache maps` and `train`:
one sentence that says what could not be written and what is free, everything complete stays usable, and with room one
more run ends in the same arrays and files as one that never lacked any."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.crash_cases import NAMES, RUN, Case, assert_same, assert_usable, ok
from tests.faults import LINUX, Ended, Fault, Forks, evenly
from tests.small_disk import resize

pytestmark = LINUX

FEW, MANY = 2, 12


@pytest.mark.parametrize(
    ("name", "places"),
    [*((name, FEW) for name in NAMES), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in NAMES)],
)
def test_full_from_any_write_on(
    cases: Callable[[str], Case], forks: Forks, tmp_path: Path, name: str, places: int
) -> None:
    case = cases(name)
    writes = [place for place, what in enumerate(case.places, 1) if " bytes of " in what]
    for index in evenly(len(writes), places):
        place, folder = writes[index - 1], tmp_path / f"{index}"
        what = f"place {place} of {len(case.places)}, {case.places[place - 1]}"
        shutil.copytree(case.start, folder)
        ended = forks.run(folder, case.arguments, Fault(full=place))
        assert "could not be written: the disk is full, 0 B are free" in sentence(ended, what)
        assert_usable(folder, what)
        assert not left_over(folder), what
        again = forks.run(folder, case.again(folder))
        assert again.code == 0, f"{what}: {again.output}"
        assert_same(folder, case.whole, what)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        # a row of latents has 2,052 bytes, a map of layer 2 16,388 and one of layer 3 32,772; prompts have 79 kB
        ("build", 1500, "it takes 2.1 kB, 552 B more than the 1.5 kB that a file may have here"),
        ("maps", 20_000, "it takes 32.8 kB, 12.8 kB more than the 20.0 kB that a file may have here"),
        ("train", 60_000, "than the 60.0 kB that a file may have here"),
    ],
)
def test_files_that_may_not_be_as_large(
    cases: Callable[[str], Case], forks: Forks, tmp_path: Path, name: str, limit: int, words: str
) -> None:
    case, folder = cases(name), tmp_path / "limited"
    shutil.copytree(case.start, folder)
    said = sentence(forks.run(folder, case.arguments, Fault(limit=limit)), name)
    assert words in said
    assert "raise that limit (`ulimit -f`)" in said
    assert_usable(folder, name)
    assert not left_over(folder)
    again = forks.run(folder, case.again(folder))
    assert again.code == 0, again.output
    assert_same(folder, case.whole, name)


@pytest.mark.parametrize(("room", "kept"), [(0, False), (60_000, True)])
def test_train_on_a_small_disk(cases: Callable[[str], Case], forks: Forks, disk: Path, room: int, kept: bool) -> None:
    """It fills up before the run is there, or among what the run keeps."""
    case, folder = cases("train"), disk / "work"
    shutil.copytree(case.start, folder)
    resize(disk, room)
    said = sentence(forks.run(folder, case.arguments), f"{room}")
    assert (folder / RUN).exists() == kept
    assert ("go on with `dualsd train --resume runs/r`" in said) == kept
    assert_usable(folder, f"{room}")
    assert not left_over(folder)
    resize(disk, 10_000_000)
    ok(forks.run(folder, case.again(folder)))
    assert_same(folder, case.whole, f"{room}")


@pytest.mark.parametrize("out", ["runs/e", "runs/with space"])
def test_full_when_the_run_is_kept_and_its_page_is_not(
    cases: Callable[[str], Case], forks: Forks, tmp_path: Path, out: str
) -> None:
    """Evaluating again would be refused, as the run is there: its page is what is left to be made."""
    folder = tmp_path / "page"
    shutil.copytree(cases("maps").whole, folder)
    evaluate = ["eval", "--layers", "2", "--t", "50", "--ensemble", "1", "--batch-size", "4", "--readouts", "nn"]
    places = ok(forks.run(folder, [*evaluate, "--out", "runs/before"])).places
    first = next(place for place, what in enumerate(places, 1) if "table.md" in what)
    ended = forks.run(folder, [*evaluate, "--out", out], Fault(full=first))
    said = sentence(ended, out)
    assert "could not be written: the disk is full, 0 B are free" in said
    assert f"make room and make the page with `dualsd report {shlex.quote(out)}`" in said
    assert not left_over(folder)
    ok(forks.run(folder, ["report", out]))
    assert (folder / out / "report.html").exists()


def sentence(ended: Ended, what: str) -> str:
    """The one sentence of a command that failed as it should."""
    assert ended.code == 2, f"{what}: {ended.code} {ended.output}"
    said = [line for line in ended.output.splitlines() if line.startswith("dualsd: ")]
    assert len(said) == 1, f"{what}: {ended.output}"
    assert ended.output.endswith(f"{said[0]}\n"), f"{what}: {ended.output}"
    assert "Traceback" not in ended.output
    return said[0]


def left_over(folder: Path) -> list[Path]:
    """What is half-written."""
    return [path for path in folder.rglob("*") if path.name.endswith((".partial", ".making"))]
