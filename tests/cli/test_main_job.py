"""The main job on the real photographs of PF-Willow, from files to PCK."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run

DATA = Path(__file__).parents[3] / "shared" / "data" / "pf-willow"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the PF-Willow photographs are not beside this checkout"),
]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("c*")) if file.is_file()}


def test_photographs_to_pck(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "pf-willow"
    shutil.copytree(DATA, root, copy_function=shutil.copyfile)
    build = ("cache", "build", "--store", "W.zarr", "--json", "build.json")
    evaluate = ("eval", "--store", "W.zarr", "--layers", "2,3", "--t", "261,200", "--weights", "0.8,0.6")
    evaluate += ("--ensemble", "2", "--json", "out.json")

    def built() -> dict[str, int]:
        return json.loads(Path("build.json").read_text())

    first = run(*build, "--dataset", "pf-willow", "--root", str(root), "--model", "demo")
    assert first.exit_code == 0, first.output
    assert (built()["images"], built()["encoded"]) == (100, 100)
    assert run(*evaluate).exit_code == 0
    out = json.loads(Path("out.json").read_text())
    assert (out["n_pairs"], out["n_points"], len(out["results"]["nn"]["image"]["0.1"])) == (900, 9000, 11)
    before = contents(Path("W.zarr"))

    assert run(*build).exit_code == 0
    assert (built()["encoded"], built()["skipped"]) == (0, 100)
    assert contents(Path("W.zarr")) == before

    changed = root / "PF-dataset" / "duck(S)" / "060_0000.png"
    changed.write_bytes(changed.read_bytes() + b"\0")  # other bytes, the same picture
    assert run(*build).exit_code == 0
    assert (built()["encoded"], built()["stale"]) == (1, 1)
    assert run(*evaluate).exit_code == 0
    after = contents(Path("W.zarr"))
    rows = {name: data for name, data in before.items() if not name.startswith("images/")}
    assert rows.items() <= after.items(), "what was made of the old file stays"
    new = [name for name in after if name not in before and not name.startswith("images/")]
    assert {name.split("/c.")[1].split(".")[0] for name in new} == {"100"}
    assert len(new) == 1 + 4 + 2  # latents, 4 timesteps' kept draw, 2 maps
