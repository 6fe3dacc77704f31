"""What commands print on stdout, and the files they write for machines. Of several processes the first does, alone."""

import csv
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from featstore.files import writing
from featstore.pipeline.distributed import launched
from featstore.plain_text import printable
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.results import Evaluation, Scoring
    from matcher.configuration import MatchSettings
    from matcher.pck import Average

PIPE_WIDTH = 240
"""Columns where the output is no terminal: wide enough that no table is folded."""


def console() -> Console:
    """Standard output; tables keep their full width where it is no terminal."""
    if not _speaks():
        return Console(quiet=True, width=PIPE_WIDTH)
    return Console() if Console().is_terminal else Console(width=PIPE_WIDTH)


def _speaks() -> bool:
    return launched().rank == 0


def say(*lines: str) -> None:
    """Plain lines; nothing in them controls the terminal."""
    console().print("\n".join(map(printable, lines)), highlight=False, markup=False, soft_wrap=True)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], left_columns: int = 1) -> None:
    """A table; all but the first columns are figures, right-aligned."""
    say(title)  # rich would fold a title to its table's width
    table = Table()
    for index, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="left" if index < left_columns else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))  # Text: a name in brackets is no markup
    console().print(table)


def print_result(result: "Evaluation", average: "Average") -> None:
    """PCK by category: a row a readout and alpha as in the paper's Tables 3 and 4, or, where that is wider than the
    terminal, a row a category, a table a readout."""
    from matcher.pck import paper_rows

    table = result.scores
    header, rows = paper_rows(table, average)
    title = f"PCK in percent, {average.value} average: {result.title}"
    if sum(max(len(name), 5) + 3 for name in header) <= console().width:
        print_table(title, header, rows, left_columns=2)
        return
    for readout in table.values:
        own = [row for row in rows if row[0] == readout]
        columns = zip(header[2:], *(row[2:] for row in own), strict=True)
        print_table(f"{title}, {readout}", ["category", *(f"@{row[1]}" for row in own)], list(columns))


def check_writable(*files: Path | None) -> None:
    """Raise `InputError`, before any work is done, for a file whose folder is not there or cannot be written to."""
    for file in files:
        if file is not None and (not os.access(file.resolve().parent, os.W_OK) or file.is_dir()):
            raise InputError(f"{file} cannot be written: its folder is missing or read-only, or it is a folder itself.")


def write_json(file: Path | None, content: Mapping[str, Any]) -> None:
    """Write JSON where a file is asked for. Raises `InputError` where it cannot be written."""
    _write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(file: Path | None, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write CSV where a file is asked for. Raises `InputError` where it cannot be written."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_harmless(cell) for cell in row] for row in [header, *rows])
    _write_text(file, text.getvalue())


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?(e[+-]?\d+)?|inf|nan)", re.ASCII)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the start of a formula, in full width as well, or strips before it looks for one."""


def _harmless(cell: str) -> str:
    """A cell that a spreadsheet shows and does not run: text that starts like a formula gets an apostrophe."""
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell


def _write_text(file: Path | None, text: str) -> None:
    content = text.encode()
    if file is not None and _speaks():
        with writing(file, len(content)):
            file.write_bytes(content)


def print_evaluation(
    result: "Evaluation", average: "Average", json: Path | None, csv: Path | None, more: Mapping[str, Any] | None = None
) -> None:
    """Print what was measured and the table, and write both where files are asked for. more: what else the JSON has."""
    from matcher.pck import CSV_HEADER, to_rows

    say(describe(result.scoring, result.features))
    print_result(result, average)
    write_json(json, result.to_json() | dict(more or {}))
    rows = ((*row, *csv_settings(result, row[0])) for row in to_rows(result.scores))
    write_csv(csv, (*CSV_HEADER, *CSV_SETTINGS), rows)


CSV_SETTINGS = (
    *("dataset", "split", "layers", "t", "weights", "geometry", "frame", "upsample", "features"),
    *("pad", "theta", "strict"),
)


def csv_settings(result: "Evaluation", readout: str) -> tuple[str, ...]:
    """What a readout's numbers depend on, in the order of `CSV_SETTINGS`; several layers are joined by `+`."""
    layers, settings = result.scoring.layers, result.scoring.settings
    return (
        result.dataset,
        result.split,
        "+".join(layer.layer for layer in layers),
        "+".join("" if layer.timestep is None else str(layer.timestep) for layer in layers),
        "+".join(f"{layer.weight:g}" for layer in layers),
        settings.geometry.value,
        result.scoring.frame_of(readout).value,
        str(settings.upsample),
        "; ".join(f"{name} {value}" for name, value in result.features.items()),
        settings.pad.value,
        result.scoring.theta or "",
        str(result.scoring.strict).lower(),
    )


def describe(scoring: "Scoring", features: Mapping[str, Any]) -> str:
    """One line of all that the numbers depend on."""
    from matcher.configuration import Frame, Pad, frame_of

    settings: MatchSettings = scoring.settings
    layers = " + ".join(
        f"layer {layer.layer}"
        + ("" if layer.timestep is None else f" at t = {layer.timestep}")
        + ("" if len(scoring.layers) == 1 else f" x {layer.weight:g}")
        for layer in scoring.layers
    )
    shown = ("prompt", "ensemble", "model", "dino", "dino_size", "encoding", "features")
    origin = "; ".join(f"{name} {value!r}" for name, value in features.items() if name in shown)
    upsampling = f", upsampled {settings.upsample}x ({settings.upsample_align.value})" if settings.upsample > 1 else ""
    made = "padded" if settings.pad is Pad.SQUARE else "resized"
    frame = f"geometry {settings.geometry.value}, images {made} to {settings.image_size} pixels, {scoring.threshold}"
    if scoring.frame is not None:
        frame += f", PCK in the {scoring.frame.value} frame"
    elif any(frame_of(readout) is Frame.ORIGINAL for readout in scoring.readouts):
        frame += ", pixel in the original frame"
    return f"{layers}{upsampling}; {frame}; {origin}"


def typed_command() -> str | None:
    """`dualsd eval --layers 2,3`, fit for a shell; None where Python called the command itself."""
    started = Path(sys.argv[0])
    if started.stem != "dualsd" and (started.parent.name, started.name) != ("dualsd", "__main__.py"):
        return None
    return shlex.join(["dualsd", *sys.argv[1:]])


def describe_origin(**about: Any) -> dict[str, Any]:
    """What was typed, and with which versions, as a run's `run.json` has it. about: what else there is to say."""
    from featstore.store.schema import creator_version
    from featstore.tuning.run_folder import library_versions

    return {**about, "command": typed_command(), "creator": creator_version(), "versions": library_versions()}


def now() -> str:
    """As run folders have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
