"""What half precision and rounded maps change on real photographs: next to nothing."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

DATA = Path(__file__).parents[3] / "shared" / "data" / "pf-willow"
READOUTS = ("nn", "bilinear", "softmax", "kernelsoftmax")
ALPHAS = ("0.05", "0.1", "0.15")
MAPS = ("--layers", "2,3", "--t", "261,200", "--weights", "0.8,0.6", "--ensemble", "1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the PF-Willow data are not beside this checkout"),
]


def test_pck_of_float16_and_of_rounded_maps_is_that_of_float32(run: Run) -> None:
    """All 900 pairs with the demo model, in points of PCK; 0.1 points are 9 of the 9,000 keypoints."""
    build = ("cache", "build", "--dataset", "pf-willow", "--root", str(DATA), "--model", "demo", "--t", "261,200")
    result = run(*build)
    assert result.exit_code == 0, result.output

    def percent(*how: str) -> dict[tuple[str, str], float]:
        evaluated = run("eval", *MAPS, *how, "--alphas", ",".join(ALPHAS), "--json", "out.json")
        assert evaluated.exit_code == 0, evaluated.output
        out = json.loads(Path("out.json").read_text())
        assert (out["n_pairs"], out["n_points"]) == (900, 9000)
        assert set(out["results"]) == set(READOUTS)
        return {
            (readout, alpha): 100 * out["results"][readout]["image"][alpha]["all"]
            for readout in READOUTS
            for alpha in ALPHAS
        }

    exact = percent("--dtype", "float32")
    assert max(exact.values()) > 20  # there is something to lose
    for how, bound in (
        (("--dtype", "float16"), 0.1),
        (("--dtype", "float32", "--encoding", "bitround4"), 0.3),
        (("--dtype", "float32", "--encoding", "bitround3"), 0.3),
    ):
        differences = {place: value - exact[place] for place, value in percent(*how).items()}
        assert max(map(abs, differences.values())) < bound, (how, differences)
        assert any(differences.values())  # other maps, and not the same ones again
