"""How the command starts: light, from anywhere, also through `python -m`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "zarr", "numpy", "diffusers", "transformers", "matplotlib", "scipy")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["cache", "--help"],
        ["cache", "build", "--help"],
        ["eval", "--help"],
        ["grid", "--help"],
        ["score", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
        ["match", "--help"],
        ["view", "--help"],
        ["prompts", "import", "--help"],
        ["reproduce", "--help"],
        ["recipes", "--help"],
        ["recipes", "dual-cpm"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert_light(arguments, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--layers", "x"],
        ["eval", "--readouts", "best"],
        ["grid", "--layers", "x"],
        ["train", "--layers", "9"],
        ["score", "run", "--frame", "square"],
        ["compare", "run"],
        ["cache", "prune", "--layers", "7"],
        ["cache", "verify", "--recompute", "x"],
        ["cache", "export", "--out", "x", "--layout", "npz"],
        ["prompts", "import", "x.pt", "--out", "y", "--from", "z"],
        ["view", "--port", "70000"],
    ],
)
def test_a_wrong_option_is_refused_before_anything_heavy_is_loaded(arguments: list[str]) -> None:
    assert_light(arguments, 2)


def assert_light(arguments: list[str], exit_code: int | None) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['dualsd', *{arguments!r}]\n"
        "from cli.main import main\n"
        "try:\n    main()\n"
        f"except SystemExit as stop:\n    assert (stop.code or None) == {exit_code}, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_explains_itself_with_examples() -> None:
    prompts = [["prompts", name] for name in ("import", "export", "info")]
    single = [[name] for name in ("eval", "grid", "match", "score", "compare", "report", "view", "recipes")]
    single += [["reproduce"]]
    for command in (["cache", "build"], ["cache", "maps"], *single, *prompts):
        shown = subprocess.run(
            [sys.executable, "-m", "dualsd", *command, "--help"], check=True, capture_output=True, text=True
        ).stdout
        assert f"dualsd {' '.join(command)}" in shown.split("Examples:")[1]


def test_python_m_from_any_directory(tmp_path: Path) -> None:
    for command in ([sys.executable, "-m", "dualsd"], [str(Path(sys.executable).parent / "dualsd")]):
        done = subprocess.run(
            [*command, "cache", "info"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert done.returncode == 2
        assert done.stderr.startswith("dualsd: There is no store at dualsd.zarr")


def test_a_reader_that_has_seen_enough() -> None:
    """`dualsd train --help | head -1`: no word of it, as of any other program."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dualsd", "train", "--help"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
