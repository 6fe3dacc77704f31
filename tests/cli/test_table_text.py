"""Tables as Markdown and LaTeX keep their form whatever is in them."""

import re

import pytest

from cli.reports.tables import Block, to_latex, to_markdown

NAMES = (
    "a & b",
    "50 %",
    "snake_case",
    "{",
    "}",
    "#1",
    "$x$",
    "\\end{tabular}",
    "~",
    "^",
    "[1]",
    "*",
    "-1.50",
    "a|b",
    "x\ny",
    "<b>",
)
BLOCK = Block("Of 100 % & more", ("name", "@0.1"), tuple((name, f"{row}.00") for row, name in enumerate(NAMES)))


def test_latex_is_balanced_and_every_row_has_its_columns() -> None:
    text = to_latex([BLOCK, BLOCK], ["Two\nlines."])
    assert text.startswith("% Two lines.\n")
    begun, ended = (re.findall(rf"(?<!\\)\\{word}\{{(\w+)\}}", text) for word in ("begin", "end"))
    assert begun == ["table", "tabular"] * 2
    assert ended == ["tabular", "table"] * 2
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)  # what is escaped, and the ends of rows
    assert bare.count("{") == bare.count("}")
    assert not re.findall(r"[$#_]", bare.replace("$-$", ""))
    assert "%" not in bare.removeprefix("%")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 2 * (1 + len(NAMES))
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert not [row for row in rows if row.startswith(("[", "*"))]  # the end of the row before would take it
    assert r"\textbackslash{}end\{tabular\} & 7.00 \\" in rows
    assert r"$-$1.50 & 12.00 \\" in rows


def test_markdown_has_a_row_a_line_and_no_html() -> None:
    lines = to_markdown("Of <i>", [BLOCK], ["A <b> note."]).splitlines()
    assert lines[0] == "# Of &lt;i>"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(NAMES)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert rows[-2:] == ["| x y | 14.00 |", "| &lt;b> | 15.00 |"]
    assert lines[-1] == "- A &lt;b> note."


@pytest.mark.parametrize("sign", ["+", "-"])
def test_a_sign_is_no_hyphen(sign: str) -> None:
    assert f"${sign}$0.66*" in to_latex([Block("t", ("a", "b"), (("x", f"{sign}0.66*"),))], [])
