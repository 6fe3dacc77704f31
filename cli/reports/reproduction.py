"""`report.html` of a reproduction: every table that was made in its work folder, beside the paper's figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.command_line import now
from cli.reports import page
from cli.reports.tables import Block
from cli.reproduction.paper import ALL, TABLES, title_of
from cli.reproduction.tables import DIFFERENCE, OUTSIDE, Compared, block_of, grouped


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
    numbers = {title: [Compared(**number) for number in content["figures"]] for title, content in tables.items()}
    every = [number for own in numbers.values() for number in own]
    settings: dict[str, page.Facts] = {}
    for title, content in tables.items():
        settings |= {title: _settings(content), f"{title}: origin and versions": page.origin_facts(content)}
    report = page.Page(
        kind="Reproduction",
        title=f"{page.in_words('Table', [title.removeprefix('Table ') for title in tables])} of the report, run again",
        created=page.when(now()),
        headline=_headline(every),
        highlights={
            "Model": page.unique(str(content.get("model")) for content in tables.values()),
            "Measured on": page.unique(one.dataset for one in _measured(every)) or "nothing yet",
            "Methods": len({one.row for one in _measured(every)}),
        },
        settings=settings,
        sections={
            "How to read it": [
                "Ours is PCK in percent with its 95 % interval, images resampled; the difference is ours minus the "
                f"paper's, in points. Where it is marked ({OUTSIDE}), the paper's figure lies outside our interval: "
                "more than other images of the same kind would explain. A dash is a figure that is not there.",
                "The paper gives no intervals. A difference may come from the method, from a setting that the paper "
                "does not state, or from other weights of the model: every setting with its source is in `dualsd "
                "recipes NAME`.",
            ],
            **{title: [*_tables(own), page.Notes(tables[title].get("notes", ()))] for title, own in numbers.items()},
        },
    )
    return page.write_report(report, folder)


def _measured(numbers: Sequence[Compared]) -> list[Compared]:
    return [number for number in numbers if number.pck_percent is not None]


def _headline(numbers: Sequence[Compared]) -> page.Headline:
    compared, measured = [one for one in numbers if one.difference is not None], len(_measured(numbers))
    if not compared:
        return page.Headline(
            "Figures measured",
            str(measured),
            "None of them is of the data that the paper's figures are of, so that no difference is taken: what can be "
            "compared is which method is ahead of which.",
        )
    largest = max(compared, key=lambda number: abs(number.difference or 0))
    return page.Headline(
        "The paper's figures that lie inside our 95 % intervals",
        str(sum(not number.paper_is_outside for number in compared)),
        f"The largest difference is {largest.difference:+.2f} points: {largest.row} on {largest.dataset}, "
        f"{largest.category}, PCK@{largest.alpha:g}.",
        f" of {len(compared)}",
        f"{measured} figures measured, {len(compared)} of them on the paper's own data",
    )


def _tables(numbers: Sequence[Compared]) -> list[page.Table]:
    """One per data set, or per method on it where the paper's columns are categories; the paper's figures alone are no
    comparison."""
    found: list[Block] = []
    for dataset, own in grouped("dataset", numbers).items():
        if not _measured(own):
            continue
        if {number.category for number in own} == {ALL}:
            found.append(block_of(dataset, "row", own))
        else:
            found += [block_of(f"{row} on {dataset}", "category", part) for row, part in grouped("row", own).items()]
    return [_marked(block) for block in found]


def _marked(block: Block) -> page.Table:
    """The differences that the paper's interval does not explain stand out."""
    rows = [(row[0], *(text.replace(OUTSIDE, f" {OUTSIDE}").rstrip() for text in row[1:])) for row in block.rows]
    marked = {
        (index, column)
        for index, row in enumerate(rows)
        for column, text in enumerate(row)
        if block.header[column] == DIFFERENCE and OUTSIDE in text
    }
    return page.Table(replace(block, rows=tuple(rows)), marked)


def _settings(content: Mapping[str, Any]) -> page.Facts:
    steps = content.get("train_steps")
    return {
        "Model": content.get("model", "unknown"),
        "Model fingerprint": content.get("model_fingerprint", "unknown"),
        "Steps of trainings": "the recipes' own" if steps is None else steps,
        **content.get("commands", {}),
    }
