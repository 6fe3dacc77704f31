"""The notebooks run from the first cell to the last, in an empty folder, and print as many lines as they show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import DOCS, Reader

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def code_cells(file: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, tmp_path: Path) -> None:
    """Figures may move with the machine, so words are compared: what is no number."""
    cells = code_cells(file)
    code = "\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = "".join("".join(output.get("text", [])) for cell in cells for output in cell["outputs"])
    assert [line.split()[:1] for line in done.stdout.splitlines()[:-1]] == [
        line.split()[:1] for line in shown.splitlines()[:-1]
    ]
    assert list(tmp_path.glob("*.png"))


def test_there_is_one_with_its_picture() -> None:
    (file,) = NOTEBOOKS
    assert any("image/png" in output.get("data", {}) for cell in code_cells(file) for output in cell["outputs"])


def test_the_page_on_matching_in_python(tmp_path: Path) -> None:
    assert Reader(tmp_path, 0).follow(DOCS / "matching.md", (), ("python",)) == 1
