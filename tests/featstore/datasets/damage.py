"""Hypothesis strategies that damage valid files: what a broken download, a spreadsheet, a script with a slip or a
malicious stranger makes of them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

TOKENS = (
    *("", "0", "-1", "1", "21", "1.5", "nan", "NaN", "inf", "-Infinity", "1e308", "-1e308", "1e999", "1e-320", "1_0"),
    *("9" * 400, "9" * 5000, "0x10", "\u0664", "12px", "1,5", " 3 ", "x", "x" * 300, "x" * 2000),
    *("..", ".", "/", "../x.jpg", "../../../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x", "a/../../b.jpg"),
    *("\0", "a\0b", "a\nb", "a\rb", "\x1b[31mred", "\u2028", "\ud800", "\ufeff", '"', "'", "caf\u00e9", "\U0001f408"),
)
"""Values that have broken readers of tables."""

WORDS = (0, 1, 2, 7, 14, 15, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Numbers that have broken readers of sizes, counts and type codes."""


def text_bytes(text: str, encoding: str = "utf-8") -> bytes:
    """Encoded, halves of surrogate pairs and all."""
    return text.encode(encoding, "surrogatepass")


@st.composite
def edited(draw: st.DrawFn, valid: SearchStrategy[bytes]) -> bytes:
    """A file with up to four edits of bytes: changed, cut off, removed, repeated, inserted."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        count = draw(st.integers(1, 24))
        match draw(st.sampled_from(["flip", "set", "cut", "remove", "repeat", "insert", "word", "token"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "set" if data:
                data[at] = draw(st.sampled_from([0x00, 0x0A, 0x0D, 0x22, 0x2C, 0x7F, 0x80, 0xFF]))
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + count]
            case "repeat":
                data[at:at] = data[at : at + count]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "word":
                order = draw(st.sampled_from(["little", "big"]))
                data[at // 4 * 4 : at // 4 * 4 + 4] = draw(st.sampled_from(WORDS)).to_bytes(4, order)  # type: ignore[arg-type]
            case "token":
                data[at:at] = text_bytes(draw(st.sampled_from(TOKENS)))
    return bytes(data)


@st.composite
def recoded(draw: st.DrawFn, text: SearchStrategy[str]) -> bytes:
    """A text as editors and spreadsheets on other systems save it."""
    written = draw(text)
    if draw(st.booleans()):
        return text_bytes(written)
    ends = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]))
    handler = "replace" if encoding in ("latin-1", "cp1252") else "surrogatepass"
    return written.replace("\n", ends).encode(encoding, handler)


@st.composite
def tables(draw: st.DrawFn, rows: Sequence[Sequence[str]]) -> str:
    """A CSV text of which up to four cells, rows or columns are changed, dropped, doubled or swapped."""
    table = [list(row) for row in rows]
    for _ in range(draw(st.integers(0, 4))):
        line = draw(st.integers(0, max(len(table) - 1, 0)))
        if not table or not table[line]:
            break
        column = draw(st.integers(0, len(table[line]) - 1))
        match draw(st.sampled_from(["cell", "text", "drop", "double", "drop row", "double row", "add", "swap"])):
            case "cell":
                table[line][column] = draw(st.sampled_from(TOKENS))
            case "text":
                table[line][column] = draw(st.text(max_size=8))
            case "drop":
                table = [row[:column] + row[column + 1 :] for row in table]
            case "double":
                table = [row[: column + 1] + row[column:] for row in table]
            case "drop row":
                del table[line]
            case "double row":
                table.insert(line, list(table[line]))
            case "add":
                table[line].append(draw(st.sampled_from(TOKENS)))
            case "swap":
                other = draw(st.integers(0, len(table[line]) - 1))
                table[line][column], table[line][other] = table[line][other], table[line][column]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n", quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
    writer.writerows(table)
    return stream.getvalue()


def files_of_table(rows: Sequence[Sequence[str]]) -> SearchStrategy[bytes]:
    """Files that are or were the table."""
    return edited(recoded(tables(rows))) | recoded(tables(rows)) | st.binary(max_size=200)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(TOKENS)
    | st.sampled_from([10**400, -(10**4000), 1e308, 5e-324, -0.0, 2**53 + 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TOKENS[:20]), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def objects(draw: st.DrawFn, valid: Mapping[str, Any]) -> str:
    """A JSON text of which up to three fields, or parts of them, are changed, dropped, doubled or nested deeply."""
    fields = {name: json.loads(json.dumps(value)) for name, value in valid.items()}
    doubled, depths = "", dict.fromkeys(fields, 0)
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(sorted(fields) or ["category"]))
        match draw(st.sampled_from(["change", "part", "drop", "double", "nest", "wrap"])):
            case "change":
                fields[name] = draw(JSON_VALUES)
            case "part" if isinstance(fields.get(name), list) and fields[name]:
                inside = fields[name]
                at = draw(st.integers(0, len(inside) - 1))
                if isinstance(inside[at], list) and inside[at] and draw(st.booleans()):
                    inside, at = inside[at], 0
                inside[at] = draw(JSON_VALUES)
            case "drop":
                fields.pop(name, None)
            case "double":
                doubled = f'"{name}": {json.dumps(draw(JSON_VALUES))}, '
            case "nest":
                depths[name] = draw(st.sampled_from([1, 5, 100, 500, 800, 900, 950, 990, 100_000]))
            case "wrap":
                fields[name] = {name: fields.get(name)}
    ascii_only = draw(st.booleans())
    # nested as text: Python's own encoder gives up where the decoder should be tried
    written = [
        f"{json.dumps(name)}: {'[' * depths[name]}{json.dumps(value, ensure_ascii=ascii_only)}{']' * depths[name]}"
        for name, value in fields.items()
    ]
    return "{" + doubled + ", ".join(written) + "}"


def files_of_object(valid: Mapping[str, Any]) -> SearchStrategy[bytes]:
    """Files that are or were the object."""
    return edited(recoded(objects(valid))) | recoded(objects(valid)) | st.binary(max_size=200)
