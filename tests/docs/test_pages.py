"""What holds pages to what they say: the comparison of what is shown with what is printed."""

import itertools

import pytest

from tests.docs.pages import DOCS, PRINTS, blocks, check_printed

OUTPUT = """layer 2: 128 channels
│ nn      │ 0.05  │ 22.18 │ 25.04 │ 22.62 │
│ nn      │ 0.1   │ 41.41 │ 37.81 │ 40.88 │
1536 noisy latents; 15.7 MB written in 12.3 s
"""


@pytest.mark.parametrize(
    "shown",
    [
        "layer 2: 128 channels",
        "│ nn │ 0.05  │ … │ 22.62 │",
        "│ nn │ 0.05  │ … │ 22.12 │\n│ nn │ 0.1 │ 41.00 │ 38.30 │ 40.88 │",
        "1536 noisy latents; 15.7 MB written in …",
    ],
)
def test_what_is_printed_is_found(shown: str) -> None:
    check_printed(shown, OUTPUT, moved=0.5)


@pytest.mark.parametrize(
    "shown",
    [
        "layer 3: 128 channels",
        "│ nn │ 0.05  │ … │ 22.00 │",
        "│ nn │ 0.2  │ … │ 40.88 │",  # an alpha does not move
        "│ nn │ 0.1 │ … │ 40.88 │\n│ nn │ 0.05 │ … │ 22.62 │",  # the order
        "1536 noisy latents; 15.8 MB written in …",
        "latents",
    ],
)
def test_what_is_not_printed_is_missed(shown: str) -> None:
    with pytest.raises(AssertionError, match="the page shows"):
        check_printed(shown, OUTPUT, moved=0.5)


def test_every_shown_output_follows_what_prints_it() -> None:
    for page in sorted(DOCS.glob("*.md")):
        found = blocks(page)
        for before, block in itertools.pairwise(found):
            if block.title == PRINTS:
                runs = before.language == "python" or before.title in ("demo", "PF-Willow")
                assert runs, f"{page.name}: {block.text}"


def test_the_summary_of_the_numbers_is_what_the_page_shows() -> None:
    text = (DOCS / "numbers.md").read_text(encoding="utf-8")
    table = text.split("| what | example |")[1].split("\n\n")[0]
    shown = " ".join(block.text for block in blocks(DOCS / "numbers.md") if block.title == PRINTS)
    figures = [cell.strip() for row in table.splitlines()[2:] for cell in ",".join(row.split("|")[3:5]).split(",")]
    assert len(figures) == 8 * 4
    assert not set(figures) - set(shown.split())
