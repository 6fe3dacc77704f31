"""The report's figures on the pages are the report's, and what the pages say about them follows from them."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import cli
from tests.docs.pages import DOCS

PAPER = Path(cli.__file__).parent / "reference" / "paper_tables.csv"
METHODS = {
    "DIFT": "dift",
    "DIFT, bicubic": "dift-bicubic",
    "DIFT, dual": "dift-dual",
    "SD4Match, single": "sd4match-single",
    "SD4Match, class": "sd4match-class",
    "SD4Match, cpm": "sd4match-cpm",
    "dual, single": "dual-single",
    "dual, class": "dual-class",
    "dual, cpm": "dual-cpm",
}
ROWS = list(csv.DictReader(PAPER.read_text(encoding="utf-8").splitlines()))


def figures(table: str, method: str, alpha: str) -> dict[str, str]:
    """A row of the report's, on SPair-71k, by category."""
    return {
        row["category"]: f"{float(row['pck_percent']):.2f}"
        for row in ROWS
        if (row["table"], row["method"], row["dataset"], row["alpha"]) == (table, method, "spair", alpha)
    }


def rows_of(page: str, first_cell: str) -> Iterator[list[str]]:
    """The rows of the page's table whose header begins with `first_cell`."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_cell}"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_table_3_of_the_tutorial() -> None:
    rows = list(rows_of("tutorial.md", "row |"))
    assert [name for name, *_ in rows] == list(METHODS)
    for name, _, loose, wide in rows:
        assert loose == figures("table3", METHODS[name], "0.05")["all"]
        assert wide == figures("table4", METHODS[name], "0.1")["all"]


def test_the_contradictions() -> None:
    rows = list(rows_of("reproduction.md", "| PCK@0.05, Table 3 |"))
    assert len(rows) == 3
    for name, *shown in rows:
        method = METHODS[name]
        own = [figures("table3", method, "0.05")["all"], figures("table4", method, "0.1")["all"]]
        assert [shown[0], shown[2]] == own
        for table in ("table1", "table2", "table5"):
            others = [figures(table, method, alpha).get("all") for alpha in ("0.05", "0.1")]
            assert others in ([shown[1], shown[3]], [None, None])
        assert own != [shown[1], shown[3]]


def test_all_is_the_mean_over_the_test_pairs() -> None:
    cells = [cell for row in rows_of("reproduction.md", "| pairs |") for cell in row]
    pairs = {name: int(count) for name, count in zip(cells[::2], cells[1::2], strict=True)}
    assert (len(pairs), sum(pairs.values())) == (18, 12234)
    for table, alpha in (("table3", "0.05"), ("table4", "0.1")):
        for method in METHODS.values():
            shown = figures(table, method, alpha)
            everything = float(shown.pop("all"))
            weighted = sum(float(shown[name]) * count for name, count in pairs.items()) / 12234
            assert abs(weighted - everything) < 0.0101
    of_columns = [sum(map(float, own.values())) / 18 for own in (_columns("table3", "0.05"), _columns("table4", "0.1"))]
    said = re.search(r"Not the mean of the columns \(DIFT: ([\d.]+) and ([\d.]+)\)", _text("reproduction.md"))
    assert said is not None
    assert list(said.groups()) == [f"{mean:.2f}" for mean in of_columns]


def _columns(table: str, alpha: str) -> dict[str, str]:
    return {name: value for name, value in figures(table, "dift", alpha).items() if name != "all"}


def _text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")
