"""The tables of docs/backbones.md are what the command prints."""

from pathlib import Path

import pytest

from tools.backbones_table import BEGIN, END, PAGE, of_dino, of_unet, spell, write_tables
from tools.published import CONVNEXT, MODELS, SD15, XL

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_has_what_is_printed() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip() == write_tables()


def test_each_row_names_its_test() -> None:
    for model in MODELS:
        assert (ROOT / model.test).is_file()
        assert f"| {model.name} |" in PAGE.read_text(encoding="utf-8")


def test_small_networks_give_the_librarys_maps() -> None:
    assert of_unet(SD15["unet"]) < 1e-5
    assert of_unet(XL["unet"]) < 1e-5
    assert of_dino(CONVNEXT) < 1e-5


def test_differences_are_spelled_as_what_they_stay_below() -> None:
    assert [spell(own) for own in (0.0, 3e-9, 2e-5, 0.3)] == ["0", "below 1e-6", "below 1e-4", "below 1e0"]
