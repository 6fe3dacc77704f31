"""Peak memory does not grow with the number of images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOM = 64_000_000
"""Bytes more that ten times as many images may take: it is for their names, keypoints and predictions."""


@pytest.mark.slow
def test_ten_times_as_many_images(tmp_path: Path) -> None:
    """`cache build` and `eval`, each in a process of its own, of 1,000 and of 10,000 images and pairs."""
    out = tmp_path / "peaks.json"
    command = [sys.executable, "-m", "benchmarks.memory", "--images", "1000,10000", "--json", str(out)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    few, many = json.loads(out.read_text())
    assert (few["images"], many["images"]) == (1000, 10_000)
    for command_name in ("build", "eval"):
        assert few[command_name] > 100_000_000  # torch alone is that large: it was measured
        assert many[command_name] - few[command_name] < ROOM, command_name
