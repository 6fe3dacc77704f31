import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from featstore.backbones import registry
from featstore.backbones.registry import Profile
from tests.cli.crash_cases import Case, cases_in
from tests.faults import Forks, open_forks

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a step that takes long is said on a busy machine only: it is no part of what is tested."""
    monkeypatch.setattr("cli.progress.SHOW_AFTER_SECONDS", math.inf)


@pytest.fixture
def everything_drawn() -> None:
    """Asked for by tests that look at pictures of evaluations and grids."""


@pytest.fixture(autouse=True)
def _little_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In other tests pages have the best pair and the worst, and no charts: drawing them all takes longer than most
    evaluations and grids here."""
    if "everything_drawn" not in request.fixturenames:
        monkeypatch.setattr("cli.reports.evaluation.PAIRS_SHOWN", 1)
        monkeypatch.setattr("cli.reports.evaluation.CHARTS", {})
        monkeypatch.setattr("cli.reports.grid.CHARTS", {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `dualsd` with arguments in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return call


@pytest.fixture
def store(run: Run, photographs: Path, small_model: Path) -> Path:
    """A store of the small photographs, 64 pixels a side."""
    result = run(
        *("cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(small_model)),
        *("--size", "64", "--t", "50,261", "--batch-size", "4"),
    )
    assert result.exit_code == 0, result.output
    return Path("dualsd.zarr")


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, small_model: Path) -> None:
    """Of the store's model nobody has published anything."""
    known = registry.profiles() | {"small": Profile(models=(str(small_model.resolve()),))}
    monkeypatch.setattr(registry, "profiles", lambda: known)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs commands with faults."""
    # one thread for zarr's files, so that every run writes in the order of the one that was counted
    with open_forks({"ZARR_THREADING__MAX_WORKERS": "1"}) as opened:
        yield opened


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, forks: Forks, small_model: Path) -> Callable[[str], Case]:
    """Commands that are interrupted, by name."""
    return cases_in(tmp_path_factory.mktemp("cases"), forks, small_model)
