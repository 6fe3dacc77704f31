from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app

Run = Callable[..., Result]


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
