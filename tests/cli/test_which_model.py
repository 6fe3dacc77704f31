"""Outside the demo's dataset the model is named: nobody takes the toy by mistake."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run

SENTENCE = (
    "dualsd: Name the model with --model: sd2-1, sd1-5, sd-turbo, sdxl, sdxl-turbo, a hub name owner/model, or a "
    "folder in diffusers' layout; --model demo is a toy that knows drawn pictures only, and is taken by itself on the "
    "dataset demo alone."
)


def said(text: str) -> str:
    return " ".join(text.split())  # a narrow terminal folds it


def test_every_command_that_needs_a_model_asks_for_it(run: Run, photographs: Path) -> None:
    picture = str(photographs / "cat" / "0.png")
    for command in (
        ("match", picture, picture, "--points", "5,5"),
        ("cache", "build", "--dataset", "folder", "--root", str(photographs)),
        ("cache", "build", "--dataset", "folder", "--root", str(photographs), "--dry-run"),
        ("prompts", "import", "caption.pt", "--out", "x.safetensors"),
    ):
        result = run(*command)
        assert (result.exit_code, said(result.stderr)) == (2, SENTENCE), command
        assert not Path("dualsd.zarr").exists()


def test_the_demo_does_not_stand_for_the_model_on_real_data(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cli.reproduction import workplace

    monkeypatch.setattr(workplace, "find_datasets", lambda _: {"pf-willow": tmp_path})
    result = run("reproduce", "table5", "--rows", "dift", "--dataset-root", str(tmp_path), "--on", "demo", "--dry-run")
    assert (result.exit_code, said(result.stderr)) == (2, SENTENCE)


def test_the_demo_dataset_has_its_own(run: Run) -> None:
    result = run("cache", "build", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "model demo, images of 128 pixels; noise: scaled_linear betas 0.00085 to 0.012" in result.stdout


def test_plan_and_result_lines_name_model_and_size(run: Run, store: Path, photographs: Path, small_model: Path) -> None:
    picture, model = str(photographs / "cat" / "0.png"), str(small_model)
    layer = ("--layers", "2", "--t", "261", "--ensemble", "1")
    for command in (
        ("cache", "build"),
        ("cache", "build", "--dry-run"),
        ("cache", "maps", *layer),
        ("cache", "maps", *layer, "--dry-run"),
        ("eval", *layer),
        ("grid", *layer),
        ("match", picture, picture, "--points", "5,5", "--store", str(store), *layer),
        ("cache", "info"),
    ):
        result = run(*command)
        assert result.exit_code == 0, result.output
        assert model in result.stdout, (command, result.stdout)
        assert "64 pixels" in result.stdout, (command, result.stdout)
