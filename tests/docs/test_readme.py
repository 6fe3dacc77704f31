"""The examples in README run as they stand: the first with the demo in place of Stable Diffusion, the other, and the
grid of docs/your-features.md, with nothing of the engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.datasets.registry import open_dataset

README = Path(__file__).parents[2] / "README.md"
FIRST, OWN = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
FEATURES = README.parent / "docs" / "your-features.md"
(GRID,) = re.findall(r"```python\n((?:(?!```).)*?score_grid.*?)```", FEATURES.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("block", "printed"), [(OWN, "kernelsoftmax"), (GRID, "lead:")])
def test_the_matcher_alone(block: str, printed: str) -> None:
    code = block + "\nimport sys\nassert not {'diffusers', 'zarr', 'featstore', 'cli'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_the_first_example(tmp_path: Path) -> None:
    """Ten lines at most, and nothing below `dualsd` is imported."""
    assert len([line for line in FIRST.splitlines() if line]) <= 10
    assert re.findall(r"^\s*(?:import|from)\s+(\S+)", FIRST, re.MULTILINE) == ["dualsd"]
    dataset = open_dataset("demo", None)
    for name, record in zip(("a.jpg", "b.jpg"), dataset.images(), strict=False):
        (tmp_path / name).write_bytes(dataset.read(record))
    code = FIRST.replace('"sd2-1"', '"demo"').replace("(120, 80), (200, 150)", "(60, 40), (100, 75)")
    build = 'dualsd.build(dualsd.BuildConfig(store="spair.zarr", timesteps=(261,)))\n'
    code = code.replace("result =", f"{build}result =").replace(
        "261, 200))", '261, 200), ensemble=1, categories=("car",))'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, found = done.stdout.split()
    assert 0 < float(found) < 1
    shutil.rmtree(tmp_path / "spair.zarr")
