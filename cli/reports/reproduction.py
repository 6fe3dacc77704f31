"""`report.html` of a reproduction: every table that was made in its work folder, beside the paper's figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.output import now
from cli.reports.facts import as_text, in_words, origin_group, unique, when
from cli.reports.page import FactGroup, Facts, Headline, Notes, Page, Paragraph, Part, Section, Table, write_report
from cli.reports.tables import Block
from cli.reproduction.paper import ALL, TABLES, title_of

NONE = "-"
OUTSIDE = "*"
Numbers = Sequence[Mapping[str, Any]]
"""A dictionary a number, ours and the paper's, see `cli.reproduction.tables.Compared.to_json`."""


def report_reproduction(folder: Path) -> Path:
    """Write `report.html` into a work folder, from the tables that it holds.

    Args:
        folder: The work folder.

    Returns:
        Where the report is.

    Raises:
        InputError: It cannot be written.
    """
    files = {title_of(name): folder / "tables" / f"{name}.json" for name in TABLES}
    tables = {title: json.loads(file.read_text("utf-8")) for title, file in files.items() if file.is_file()}
    numbers = [number for content in tables.values() for number in content["figures"]]
    page = Page(
        kind="Reproduction",
        title=f"{in_words('Table', [title.removeprefix('Table ') for title in tables])} of the report, run again",
        created=when(now()),
        headline=_headline(numbers),
        highlights=_highlights(tables, numbers),
        settings=[group for title, content in tables.items() for group in _settings(title, content)],
        sections=[
            Section("How to read it", _reading()),
            *(Section(title, _parts(content)) for title, content in tables.items()),
        ],
    )
    return write_report(page, folder)


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


def _highlights(tables: Mapping[str, Mapping[str, Any]], numbers: Numbers) -> Facts:
    measured = [number for number in numbers if number["pck_percent"] is not None]
    return as_text(
        {
            "Model": unique(str(content.get("model")) for content in tables.values()),
            "Measured on": unique(str(number["dataset"]) for number in measured) or "nothing yet",
            "Methods": len({number["row"] for number in measured}),
        }
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


def _parts(content: Mapping[str, Any]) -> list[Part]:
    found: list[Part] = []
    for dataset, own in _by("dataset", content["figures"]).items():
        if all(number["pck_percent"] is None for number in own):
            continue  # the paper's figures alone are no comparison
        if {number["category"] for number in own} == {ALL}:
            found.append(_table(own, "row", "method", dataset))
        else:
            found += [
                _table(part, "category", "category", f"{row} on {dataset}") for row, part in _by("row", own).items()
            ]
    return [*found, Notes(tuple(map(str, content.get("notes", ()))))]


def _by(key: str, numbers: Numbers) -> dict[str, Numbers]:
    """In groups of one value each, in order."""
    return {value: [one for one in numbers if one[key] == value] for value in unique(one[key] for one in numbers)}


def _table(numbers: Numbers, key: str, name: str, title: str) -> Table:
    """A row a method or category, three columns an alpha, or two where no difference is taken."""
    first = numbers[0]
    stand_in = first["paper_dataset"] != first["dataset"]
    columns = [f"paper, {first['paper_dataset']}"] if stand_in else ["paper", "difference"]
    header = [name]
    for alpha in dict.fromkeys(number["alpha"] for number in numbers):
        header += [f"@{alpha:g}", *columns]
    rows: list[tuple[str, ...]] = []
    marked = set()
    for value, own in _by(key, numbers).items():
        cells = [str(value)]
        for one in own:
            cells += [_ours(one), NONE if one["paper_percent"] is None else f"{one['paper_percent']:.2f}"]
            if not stand_in:
                cells.append(_difference(one))
                marked |= {(len(rows), len(cells) - 1)} if one["paper_is_outside"] else set()
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


def _settings(title: str, content: Mapping[str, Any]) -> list[FactGroup]:
    steps, origin = content.get("train_steps"), origin_group(content)
    found = {
        "Model": content.get("model", "unknown"),
        "Model fingerprint": content.get("model_fingerprint", "unknown"),
        "Steps of trainings": "the recipes' own" if steps is None else steps,
        **content.get("commands", {}),
    }
    return [FactGroup(title, as_text(found)), FactGroup(f"{title}: {origin.title.lower()}", origin.facts)]
