"""`report.html` of a reproduction: every table that was made in its work folder, beside the paper's figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.command_line import now
from cli.html_report.page import Fact, FactGroup, Headline, Notes, Page, Paragraph, Part, Section, Table
from cli.html_report.settings import origin_group, when
from cli.html_report.write import write_report
from cli.reproduction.paper import ALL, TABLES, title_of
from cli.table_text import Block
from featstore.store.schema import creator_version

NONE = "-"
OUTSIDE = "*"
Numbers = Sequence[Mapping[str, Any]]
"""A dictionary a number, see `cli.reproduction.tables.Compared.to_json`."""


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A table as it was kept: what `tables/<name>.json` holds."""

    name: str
    content: Mapping[str, Any]

    @property
    def numbers(self) -> Numbers:
        """All of them, ours and the paper's, in order."""
        return [dict(number) for number in self.content["figures"]]


def report_reproduction(folder: Path) -> Path:
    """Write `report.html` into a work folder, from the tables that it holds; returns where the report is. Raises
    `InputError` where it cannot be written."""
    tables = [
        Reproduced(name, json.loads(file.read_text(encoding="utf-8")))
        for name in TABLES
        if (file := folder / "tables" / f"{name}.json").is_file()
    ]
    page = Page(
        kind="Reproduction",
        title=f"{_names(tables)} of the report, run again",
        created=when(now()),
        headline=_headline([number for table in tables for number in table.numbers]),
        highlights=_highlights(tables),
        settings=tuple(group for table in tables for group in _settings(table)),
        sections=(
            Section("How to read it", _reading()),
            *(Section(title_of(table.name), _parts(table)) for table in tables),
        ),
        creator=creator_version(),
    )
    return write_report(page, folder)


def _names(tables: Sequence[Reproduced]) -> str:
    """`Tables 3 and 5`."""
    *before, last = (title_of(table.name).removeprefix("Table ") for table in tables)
    return f"Tables {', '.join(before)} and {last}" if before else f"Table {last}"


def _headline(numbers: Numbers) -> Headline:
    compared = [number for number in numbers if number["difference"] is not None]
    measured = sum(number["pck_percent"] is not None for number in numbers)
    if not compared:
        return Headline(
            "Figures measured",
            str(measured),
            "",
            "",
            "None of them is of the data that the paper's figures are of, so that no difference is taken: what can be "
            "compared is which method is ahead of which.",
        )
    inside = sum(not number["paper_is_outside"] for number in compared)
    largest = max(compared, key=lambda number: abs(number["difference"]))
    return Headline(
        "The paper's figures that lie inside our 95 % intervals",
        f"{inside}",
        f" of {len(compared)}",
        f"{measured} figures measured, {len(compared)} of them on the paper's own data",
        f"The largest difference is {largest['difference']:+.2f} points: {largest['row']} on {largest['dataset']}, "
        f"{largest['category']}, PCK@{largest['alpha']:g}.",
    )


def _highlights(tables: Sequence[Reproduced]) -> tuple[Fact, ...]:
    numbers = [number for table in tables for number in table.numbers if number["pck_percent"] is not None]
    models = dict.fromkeys(str(table.content.get("model")) for table in tables)
    return (
        Fact("Model", ", ".join(models)),
        Fact("Measured on", ", ".join(dict.fromkeys(str(number["dataset"]) for number in numbers)) or "nothing yet"),
        Fact("Methods", str(len({number["row"] for number in numbers}))),
    )


def _reading() -> list[Part]:
    return [
        Paragraph(
            "Ours is PCK in percent with its 95 % interval, images resampled; the difference is ours minus the "
            f"paper's, in points. Where it is marked ({OUTSIDE}), the paper's figure lies outside our interval: more "
            "than other images of the same kind would explain. A dash is a figure that is not there."
        ),
        Paragraph(
            "The paper gives no intervals. A difference may come from the method, from a setting that the paper does "
            "not state, or from other weights of the model: every setting with its source is in `dualsd recipes NAME`."
        ),
    ]


def _parts(table: Reproduced) -> list[Part]:
    found: list[Part] = []
    for dataset in dict.fromkeys(number["dataset"] for number in table.numbers):
        own = [number for number in table.numbers if number["dataset"] == dataset]
        if all(number["pck_percent"] is None for number in own):
            continue  # the paper's figures alone are no comparison
        if {number["category"] for number in own} == {ALL}:
            found.append(_table(own, "row", "method", str(dataset)))
        else:
            rows = dict.fromkeys(number["row"] for number in own)
            by_row = {row: [number for number in own if number["row"] == row] for row in rows}
            found += [_table(part, "category", "category", f"{row} on {dataset}") for row, part in by_row.items()]
    return [*found, Notes(tuple(map(str, table.content.get("notes", ()))))]


def _table(numbers: Numbers, key: str, name: str, title: str) -> Table:
    """A row a method or category, three columns an alpha, or two where no difference is taken."""
    alphas = list(dict.fromkeys(number["alpha"] for number in numbers))
    stand_in = numbers[0]["paper_dataset"] != numbers[0]["dataset"]
    paper = f"paper, {numbers[0]['paper_dataset']}" if stand_in else "paper"
    header = [name]
    for alpha in alphas:
        header += [f"@{alpha:g}", paper] if stand_in else [f"@{alpha:g}", paper, "difference"]
    rows: list[tuple[str, ...]] = []
    marked: set[tuple[int, int]] = set()
    for own in dict.fromkeys(number[key] for number in numbers):
        cells = [str(own)]
        for alpha in alphas:
            (one,) = (number for number in numbers if (number[key], number["alpha"]) == (own, alpha))
            cells += [_ours(one), NONE if one["paper_percent"] is None else f"{one['paper_percent']:.2f}"]
            if not stand_in:
                if one["paper_is_outside"]:
                    marked.add((len(rows), len(cells)))
                cells.append(_difference(one))
        rows.append(tuple(cells))
    return Table(Block(title, tuple(header), tuple(rows)), frozenset(marked))


def _ours(one: Mapping[str, Any]) -> str:
    if one["pck_percent"] is None:
        return NONE
    return f"{one['pck_percent']:.2f} [{one['low_percent']:.2f}, {one['high_percent']:.2f}]"


def _difference(one: Mapping[str, Any]) -> str:
    if one["difference"] is None:
        return NONE
    return f"{one['difference']:+.2f}{f' {OUTSIDE}' if one['paper_is_outside'] else ''}"


def _settings(table: Reproduced) -> list[FactGroup]:
    content = table.content
    steps = content.get("train_steps")
    facts = [
        Fact("Model", str(content.get("model", "unknown"))),
        Fact("Model fingerprint", str(content.get("model_fingerprint", "unknown"))),
        Fact("Steps of trainings", "the recipes' own" if steps is None else str(steps)),
        *(Fact(str(name), str(command)) for name, command in content.get("commands", {}).items()),
    ]
    origin = origin_group(content)
    return [
        FactGroup(title_of(table.name), tuple(facts)),
        FactGroup(f"{title_of(table.name)}: {origin.title.lower()}", origin.facts),
    ]
