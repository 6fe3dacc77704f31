"""What commands print on stdout, and the files they write for machines. Of several processes the first does, alone."""

import csv
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
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
    """Plain lines on stdout; nothing in them controls the terminal."""
    print_lines(console(), *lines)


def print_lines(on: Console, *lines: str) -> None:
    """Plain lines; on a terminal they break between words, and what goes on of a command may be pasted with it."""
    for line in map(printable, lines):
        shown = "\n".join(broken(line, on.width)) if on.is_terminal else line
        on.print(shown, highlight=False, markup=False, soft_wrap=True)


_COMMAND = re.compile(r"\s*(\$ )?(dualsd|torchrun) ")
_IN_PROSE, _IN_COMMANDS, _IN_CELLS = r"\s*\S+", r"\s*(?:'[^']*'|\S)+", r"\s*(?:[^\s/]+/?|/)"
"""What stays on one line, with the blanks before it: a word; one of a shell's words; a word or a part of a path."""


def broken(line: str, width: int, piece: str | None = None) -> list[str]:
    """A line in parts of at most `width` columns, broken between pieces: a regular expression, by default as it suits
    the line. What is left of a command is indented, and a backslash tells the shell that it follows."""
    if cell_len(line) <= width:
        return [line]
    is_command = piece is None and _COMMAND.match(line) is not None
    blanks, end = line[: len(line) - len(line.lstrip())], " \\" if is_command else ""
    found: list[str] = []
    for own in re.findall(piece or (_IN_COMMANDS if is_command else _IN_PROSE), line):
        if not found:
            found = [own]
        elif cell_len(found[-1] + own + end) <= width:
            found[-1] += own
        else:
            found[-1] += end
            found.append(blanks + ("    " if is_command else "") + own.lstrip())
    return found


SHORT = 12
"""Columns of words that are not broken."""


def table_width(header: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Columns of a terminal that a table takes."""
    return 1 + sum(max(map(cell_len, column)) + 3 for column in zip(header, *rows, strict=True))


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], left_columns: int = 1) -> None:
    """A table; all but the first columns are figures, right-aligned. Where it is too wide the first columns break
    between words, and what still has no room stands in further tables below, each with the first columns."""
    say(title)
    lines = [[printable(str(cell)) for cell in line] for line in (header, *rows)]
    for part in _fitting(lines, left_columns, console().width):
        table = Table()
        for index, width in enumerate(part.values()):
            table.add_column(justify="left" if index < left_columns else "right", overflow="fold", width=width)
        shown = [[Text("\n".join(broken(line[place], part[place], _IN_CELLS))) for place in part] for line in lines]
        for column, name in zip(table.columns, shown[0], strict=True):
            column.header = name  # Text: a name in brackets is no markup
        for line in shown[1:]:
            table.add_row(*line)
        console().print(table)


def _fitting(lines: Sequence[Sequence[str]], words: int, width: int) -> Iterator[dict[int, int]]:
    """Tables of at most `width` columns that together hold all of one: by place, how wide each column is.

    Args:
        lines: The header, and the rows.
        words: How many of the first columns may be broken. Those that tell rows apart stand in each table.
        width: Of the terminal.
    """
    columns = list(zip(*lines, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    if table_width(lines[0], lines[1:]) <= width:
        yield dict(enumerate(whole))
        return
    least = []
    for place, (name, *cells) in enumerate(columns):
        pieces = [own.strip() for cell in (name, *cells) for own in re.findall(_IN_CELLS, cell)]
        kept = min(whole[place], SHORT) if place < words else max(map(cell_len, cells), default=1)
        least.append(max([kept, *map(cell_len, pieces)]))
    keys = next((count for count in range(1, words) if len({(*line[:count],) for line in lines}) == len(lines)), words)
    part, rest = [*range(words)], [*range(words, len(columns))]
    while part:
        room = width - 1 - sum(least[place] + 3 for place in part)
        while rest and (room >= least[rest[0]] + 3 or len(part) == keys):
            room -= least[rest[0]] + 3
            part.append(rest.pop(0))
        wanted = {place: whole[place] - least[place] for place in part if place < words}
        share = min(max(room, 0) / max(sum(wanted.values()), 1), 1)
        yield {place: least[place] + int(share * wanted.get(place, 0)) for place in part}
        part = [*range(keys)] if rest else []


def print_result(result: "Evaluation", average: "Average") -> None:
    """PCK by category: a row a readout and alpha as in the paper's Tables 3 and 4, or, where that is wider than the
    terminal, a row a category, a table a readout."""
    from matcher.pck import paper_rows

    table = result.scores
    header, rows = paper_rows(table, average)
    title = f"PCK in percent, {average.value} average: {result.title}"
    if table_width(header, rows) <= console().width:
        print_table(title, header, rows, left_columns=2)
        return
    for readout in table.values:
        own = [row for row in rows if row[0] == readout]
        columns = zip(header[2:], *(row[2:] for row in own), strict=True)
        print_table(f"{title}, {readout}", ["category", *(f"@{row[1]}" for row in own)], list(columns))


def check_writable(*files: Path | None) -> None:
    """Raise `InputError`, before any work is done, for a file that cannot be written where it is to lie."""
    for file in files:
        if file is None:
            continue
        folder = file.resolve().parent
        if file.is_dir():
            raise InputError(f"{file} is a folder: name a file in it.")
        if not folder.is_dir():
            raise InputError(f"{file} cannot be written: there is no folder {folder}; make it first.")
        place = file if file.exists() else folder
        if not os.access(place, os.W_OK):
            raise InputError(f"{file} cannot be written: {place} is read-only.")


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
    from featstore.backbones.registry import TITLES
    from matcher.configuration import Frame, Pad, frame_of, spell_readout

    settings: MatchSettings = scoring.settings
    layers = " + ".join(
        f"layer {layer.layer}"
        + ("" if layer.timestep is None else f" at t = {layer.timestep}")
        + ("" if len(scoring.layers) == 1 else f" x {layer.weight:g}")
        for layer in scoring.layers
    )
    of_others = (f"{family}{what}" for family in TITLES for what in ("", "_size", "_debias"))
    shown = ("prompt", "ensemble", "model", *of_others, "encoding", "features", "adapter")
    origin = "; ".join(f"{name} {value!r}" for name, value in features.items() if name in shown)
    upsampling = f", upsampled {settings.upsample}x ({settings.upsample_align.value})" if settings.upsample > 1 else ""
    made = "padded" if settings.pad is Pad.SQUARE else "resized"
    frame = f"geometry {settings.geometry.value}, images {made} to {settings.image_size} pixels, {scoring.threshold}"
    if scoring.frame is not None:
        frame += f", PCK in the {scoring.frame.value} frame"
    elif any(frame_of(readout) is Frame.ORIGINAL for readout in scoring.readouts):
        frame += ", pixel in the original frame"
    changed = [own for name in scoring.readouts if (own := spell_readout(name, settings)) != name]
    return "; ".join([f"{layers}{upsampling}", frame, *changed, origin])


def typed_command() -> str | None:
    """`dualsd eval --layers 2,3`, fit for a shell; None where Python called the command itself."""
    started = Path(sys.argv[0])
    if started.stem != "dualsd" and (started.parent.name, started.name) != ("dualsd", "__main__.py"):
        return None
    return shlex.join(["dualsd", *sys.argv[1:]])


def describe_origin(**about: Any) -> dict[str, Any]:
    """What was typed, and with which versions, as a run's `run.json` has it. about: what else there is to say."""
    from featstore.store.schema import creator_version
    from featstore.tuning.runs import library_versions

    return {**about, "command": typed_command(), "creator": creator_version(), "versions": library_versions()}


def now() -> str:
    """As run folders have it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
