"""Tables as text: for the terminal, as Markdown, and as LaTeX."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cli.output import print_table, table_width
from featstore.files import AGAIN, write_whole, writing
from featstore.plain_text import printable
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class Block:
    """A table: header and rows of text, of which the first `left_columns` are words. On a page the cells (row, column)
    that are `marked` stand out, and a `folded` table is shown when asked for."""

    template: ClassVar[str] = "table.html.jinja"
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_columns: int = 1
    marked: Collection[tuple[int, int]] = ()
    folded: bool = False

    @property
    def width(self) -> int:
        """Columns of a terminal that it takes."""
        return table_width(self.header, self.rows)


def in_words(noun: str, names: Sequence[str]) -> str:
    """`Layers 2, 3 and 4`."""
    *before, last = names
    return f"{noun}s {', '.join(before)} and {last}" if before else f"{noun} {last}"


def check_folder(folder: Path) -> None:
    """Raise `InputError`, before any work is done, where the pictures' folder cannot be made."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"The folder {folder} for the pictures cannot be made in {there}: name another with --out.")


def print_block(block: Block) -> None:
    """On stdout."""
    print_table(block.title, block.header, block.rows, block.left_columns)


def write_tables(
    folder: Path, stem: str, title: str, parts: Sequence[Block], notes: Sequence[str], way_on: str = AGAIN
) -> None:
    """`<stem>.md` and `<stem>.tex` in a folder, which is made. way_on: what to do where the disk was full. Raises what
    `write_whole` raises."""
    with writing(f"The folder {folder}", place=folder):
        folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".md", to_markdown(title, parts, notes)), (".tex", to_latex(parts, notes))):
        write_whole(folder / f"{stem}{suffix}", text.encode(), way_on)


def to_markdown(title: str, parts: Sequence[Block], notes: Sequence[str]) -> str:
    """A Markdown page."""
    lines = [f"# {_as_prose(title)}", ""]
    for block in parts:
        ruler = ["---" if index < block.left_columns else "---:" for index in range(len(block.header))]
        rows = (tuple(map(_in_markdown, row)) for row in (block.header, *block.rows))
        lines += [f"## {_as_prose(block.title)}", ""]
        lines += [f"| {' | '.join(row)} |" for row in (next(rows), ruler, *rows)]
        lines.append("")
    return "\n".join([*lines, *(f"- {_as_prose(note)}" for note in notes)]) + "\n"


def to_latex(parts: Sequence[Block], notes: Sequence[str]) -> str:
    """Tables for `\\input` into a LaTeX document that uses booktabs; the notes as comments."""
    lines = [f"% {_one_line(note)}" for note in notes]
    for block in parts:
        words = block.left_columns
        lines += [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_in_latex(block.title)}}}",
            f"\\begin{{tabular}}{{{'l' * words}{'r' * (len(block.header) - words)}}}",
            "\\toprule",
            _latex_row(block.header),
            "\\midrule",
            *map(_latex_row, block.rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """One line, in which nothing controls a terminal that shows the file."""
    return printable(" ".join(text.split()))


def _as_prose(text: str) -> str:
    """A line of Markdown, in which a name in angle brackets is no HTML."""
    return _one_line(text).replace("<", "&lt;")


def _in_markdown(text: str) -> str:
    """A cell, which a bar would end."""
    return _as_prose(text.replace("\\", "\\\\").replace("|", "\\|"))


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(map(_in_latex, row)) + r" \\"


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _in_latex(text: str) -> str:
    written = "".join(_LATEX.get(sign, sign) for sign in _one_line(text))
    written = re.sub(r"^([+-])(?=\d)", r"$\1$", written)  # a minus, not a hyphen
    # the end of the line before would take a bracket or a star for its own
    return re.sub(r"^([\[*])", r"{\1}", written)
