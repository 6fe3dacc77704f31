"""What is printed controls no terminal; what is written for a spreadsheet runs nothing in it."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import output
from cli.main import app
from cli.progress import TerminalProgress
from cli.reports.tables import Block, to_latex, to_markdown
from featstore.plain_text import printable

EVIL = "a\x1b[31mb\rc\x07d\x9be\u202ef\u2066g\u2028h\ni\x7f"
HARMLESS = r"a\x1b[31mb\rc\x07d\x9be\u202ef\u2066g\u2028h\ni\x7f"


def test_what_is_printable() -> None:
    assert printable(EVIL) == HARMLESS
    assert printable("café ✓ \u05d0 [red]\\n") == "café ✓ \u05d0 [red]\\n"


def test_nothing_printed_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.print_table(EVIL, [EVIL, "x"], [[EVIL, "1.00"]])
    TerminalProgress().note(EVIL)
    out, err = capsys.readouterr()
    assert out.count(HARMLESS) == 4
    assert err == f"note: {HARMLESS}\n"
    assert not [letter for letter in out if letter != "\n" and not letter.isprintable()]


def test_a_refusal_that_quotes_them(tmp_path: Path) -> None:
    (tmp_path / "d\x1b[31m").mkdir()
    result = CliRunner().invoke(app, ["score", str(tmp_path / "d\x1b[31m")])
    assert result.exit_code == 2
    assert r"d\x1b[31m is no run" in result.stderr
    assert "\x1b" not in result.output


def test_files_of_tables_control_no_terminal_either() -> None:
    block = Block(EVIL, (EVIL, "x"), ((EVIL, "1.00"),))
    for text in (to_markdown(EVIL, [block], [EVIL]), to_latex([block], [EVIL])):
        assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+cat", "-cat", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1+1", "-1+2", "-1,5", "+1 2", "--1"],
)
def test_cells_that_a_spreadsheet_would_run(tmp_path: Path, text: str) -> None:
    output.write_csv(tmp_path / "a.csv", ["category", text], [[text, "-1.25"]])
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["category", f"'{text}"], [f"'{text}", "-1.25"]]


@pytest.mark.parametrize(
    "text", ["-1.25", "+0.5", "1e-05", "-1e+30", "-inf", "nan", "cat", "a=b", "'quoted", "", "2+3"]
)
def test_other_cells_stay(tmp_path: Path, text: str) -> None:
    output.write_csv(tmp_path / "a.csv", ["x"], [["y", text]])
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["x"], ["y", text]]
