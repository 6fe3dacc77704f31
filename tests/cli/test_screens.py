"""Every command on terminals of 60, 80 and 120 columns: no line is wider, no number is cut, nothing of a progress bar
is left where a line is printed. What is looked for is what the same command prints without a terminal."""

import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from cli.output import broken, check_writable, print_table
from cli.progress import TerminalProgress
from matcher.errors import InputError
from tests.cli.screens import Shown, command, load_everything, plain, show
from tests.featstore.trainable import write_trainable

WIDTHS = (60, 80, 120)
HELP = (
    *("", "eval", "score", "compare", "grid", "report", "train", "adapt", "match"),
    *("recipes", "reproduce", "demo", "doctor"),
    *(f"cache {name}".strip() for name in ("", "build", "maps", "info", "verify", "prune", "pack", "unpack", "export")),
    *(f"prompts {name}".strip() for name in ("", "import", "export", "info")),
)
CATS = "spair/JPEGImages/cat/0.jpg spair/JPEGImages/cat/1.jpg"
COMMANDS = {
    "info": "cache info",
    "verify": "cache verify",
    "verify, damaged": "cache verify --store damaged.zarr",
    "prune": "cache prune --layers 2,3 --dry-run",
    "pack": "cache pack",
    "unpack": "cache unpack --store packed.zarr",
    "export": "cache export --out maps.safetensors --split test --ensemble 1",
    "eval": "eval --ensemble 1 --out runs/c",
    "score": "score runs/a --alphas 0.01..0.2:0.01",
    "compare": "compare runs/a runs/b",
    "report": "report runs/a",
    "recipes": "recipes",
    "recipe": "recipes dual-cpm",
    "prompts info": "prompts info runs/p",
    "prompts export": "prompts export runs/p --layer 2 --out caption.pt",
    "doctor": "doctor --model model --offline",
    "no store": "cache info --store there/is/no/such.zarr",
    "a wrong option": "eval --layers 2,3 --t 261,200 --weights 0.8,0.6,0.5",
}
SLOWER = {
    "build": "cache build --dataset spair --root spair --model model --size 64 --store new.zarr --batch-size 4",
    "maps": "cache maps --layers 1 --t 261 --ensemble 1 --batch-size 4",
    "grid": "grid --t 50,261 --ensemble 1 --batch-size 4",
    "train": "train --mode single --steps 2 --length 4 --batch 2 --draws 2 --val-every 1 --name q",
    "match": f"match {CATS} --points 20,20;40,30 --store dualsd.zarr --ensemble 1",
    "reproduce": "reproduce table5 --on demo --model model --dry-run",
}
"""Those that run networks, or count what they would take."""

_NUMBER = re.compile(r"(?<![\w.,])[+-]?\d+(?:[.,]\d+)*")
_OTHERWISE = re.compile(r" free |in [\d.]+ s\b|peak memory| GB | made by ")
"""Of lines that differ from run to run."""
_FRAME = re.compile("[┏┓┡┩┗┛┳╇╈┃│━─┴└┘├┤┼╞╡═╪╭╮╰╯]")


@pytest.fixture(scope="module")
def place(small_model: Path) -> Iterator[Path]:
    """A folder with a small data set, a store and runs, whose name leaves room on a narrow terminal."""
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as name:
        load_everything()
        folder = Path(name) / "base"
        folder.mkdir()
        shutil.copytree(small_model, folder / "model")
        write_trainable(folder / "spair")
        for typed in (
            SLOWER["build"].replace("new.zarr", "dualsd.zarr"),
            "eval --ensemble 1 --batch-size 4 --out runs/a",
            "eval --ensemble 1 --batch-size 4 --layers 2 --out runs/b",
            SLOWER["train"].replace("--name q", "--name p"),
        ):
            said, code = plain(command(*typed.split()), folder)
            assert code == 0, said
        for other in ("damaged", "packed"):
            shutil.copytree(folder / "dualsd.zarr", folder / f"{other}.zarr")
        for row in sorted((folder / "damaged.zarr/latents").glob("c.*"))[:2]:
            row.write_bytes(b"damaged")
        assert plain(command("cache", "pack", "--store", "packed.zarr"), folder)[1] == 0
        yield folder


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, tuple[str, int]]:
    """By command: what it prints without a terminal, and its exit code."""
    return {}


def shown_of(place: Path, said: dict[str, tuple[str, int]], typed: str, width: int) -> tuple[str, int, Shown]:
    """What a command prints without a terminal and on one, each time in a copy of the folder as it was."""

    def fresh() -> Path:
        folder = place.with_name("x")
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(place, folder, symlinks=True))

    if typed not in said:
        said[typed] = plain(command(*typed.split()), fresh())
    return *said[typed], show(command(*typed.split()), width, fresh())


def assert_fits(printed: str, shown: Shown, width: int) -> None:
    """That a screen holds what was printed, in lines of at most `width` columns."""
    for line in shown.lines:
        assert len(line) <= width or " " not in line.strip(), line
        assert not re.search(r"\d+/\d+, .*/s|[━╸╺] *\d+/\d+|\d left", line), line
    kept = [line for line in printed.splitlines() if not _OTHERWISE.search(line)]
    wanted = Counter(number for line in kept for number in _NUMBER.findall(line))
    there = Counter(number for line in shown.lines for number in _NUMBER.findall(line))
    assert {number: count for number, count in wanted.items() if there[number] < count} == {}
    words = f" {' '.join(word for line in shown.lines for word in line.removesuffix(chr(92)).split())} "
    for line in kept:
        if not _FRAME.search(line):
            assert f" {' '.join(line.split())} " in words, line


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen(place: Path, said: dict[str, tuple[str, int]], name: str, width: int) -> None:
    printed, code, shown = shown_of(place, said, COMMANDS[name], width)
    assert code == (2 if name in ("no store", "a wrong option", "verify, damaged") else 0)
    assert shown.code == code
    assert_fits(printed, shown, width)


@pytest.mark.parametrize("width", [WIDTHS[0], *(pytest.param(width, marks=pytest.mark.slow) for width in WIDTHS[1:])])
@pytest.mark.parametrize("name", SLOWER)
def test_a_screen_of_networks(place: Path, said: dict[str, tuple[str, int]], name: str, width: int) -> None:
    printed, code, shown = shown_of(place, said, SLOWER[name], width)
    assert (code, shown.code) == (0, 0), shown.lines
    assert_fits(printed, shown, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_help_pages(place: Path, width: int) -> None:
    """Every page, with every option's default whole."""
    for name in HELP:
        typed = (*name.split(), "--help")
        shown = show(command(*typed), width, place)
        assert shown.code == 0
        assert not [line for line in shown.lines if len(line) > width or "…" in line], name
        words = "".join("".join(shown.lines).split())
        for own in re.findall(r"\[default:[^\]]*\]", plain(command(*typed), place)[0]):
            assert "".join(own.split()) in words, (name, own)


def test_help_lists_options_in_groups(place: Path) -> None:
    lines = plain(command("eval", "--help"), place)[0].splitlines()
    titles = [line for line in lines if re.fullmatch(r"[A-Z][a-z]+", line)]
    assert titles == ["Options", "Data", "Features", "Prompts", "Matching", "Running", "Files"]
    under, title = {}, ""
    for line in lines:
        title = line if line in titles else title
        under |= {line.split()[0]: title} if line.startswith("  --") else {}
    assert (under["--store"], under["--t"], under["--prompt"]) == ("Data", "Features", "Prompts")
    assert (under["--alphas"], under["--device"], under["--json"]) == ("Matching", "Running", "Files")


def work() -> None:
    """Steps, with lines between and within them."""
    with TerminalProgress() as progress:
        progress.wait("loading the model")
        time.sleep(0.5)
        progress.start("UNet passes", 48, "images")
        for number in range(48):
            progress.advance()
            time.sleep(0.02)
            if number == 24:
                progress.tell("a line of what was found")
                progress.note("something worth a line")
        progress.tell("48 images are done")


@pytest.mark.parametrize("width", [24, 60, 120])
def test_a_bar_makes_room_for_lines(tmp_path: Path, width: int) -> None:
    shown = show(work, width, tmp_path)
    assert any("loading the model" in line for line in shown.seen)
    assert any(re.search(r"UNet passes \d+/48", line) for line in shown.seen)
    assert any("images/s" in line for line in shown.seen) == (width > 40)
    assert any("━" in line for line in shown.seen) == (width > 24)
    assert not [line for line in shown.seen if "48/48" in line]  # it ends when it is full
    text = " ".join(" ".join(shown.lines).split())
    first, last = "a line of what was found note: something worth a line", "48 images are done"
    assert re.fullmatch(rf"{first} UNet passes: 48 images in \d s {last}", text), shown.lines


def test_lines_go_to_a_file_while_a_bar_is_drawn(tmp_path: Path) -> None:
    def redirected() -> None:
        with (tmp_path / "said.txt").open("w") as stream, redirect_stdout(stream):
            work()

    shown = show(redirected, 80, tmp_path)
    assert (tmp_path / "said.txt").read_text() == "a line of what was found\n48 images are done\n"
    assert [line for line in shown.lines if "note" not in line] == [shown.lines[-1]]


def test_a_command_that_is_broken_may_be_pasted() -> None:
    line = "  dualsd eval --prompt 'a photo of a {category}' --store stores/demo.zarr --weights 0.8,0.6"
    lines = broken(line, 40)
    assert max(map(len, lines)) <= 40
    assert "\n".join(lines).replace("\\\n", "").split() == line.split()
    assert all("'a photo of a {category}'" in own for own in lines if "photo" in own)
    assert broken("a few words that are no command", 12) == ["a few words", "that are no", "command"]


def test_a_table_that_is_too_wide_is_told_apart_by_its_first_columns(tmp_path: Path) -> None:
    header = ["name", "what", *(f"figure {letter}" for letter in "abcdefgh")]
    rows = [[f"row {row}", "some words of it", *(f"{row}{column}.25" for column in range(8))] for row in range(3)]
    shown = show(lambda: print_table("title", header, rows, 2), 40, tmp_path)
    assert max(map(len, shown.lines)) <= 40
    for row in rows:
        assert Counter(" ".join(shown.lines).split())[row[2]] == 1
    tables = " ".join(shown.lines).split("┏")[1:]
    assert len(tables) > 1
    assert all("row 0" in table and "row 2" in table for table in tables)
    assert ["some" in table for table in tables] == [True, *(False for _ in tables[1:])]


def test_a_file_that_cannot_be_written_is_refused_in_three_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the work begins; of what may not be written the system is asked, which lets an administrator write it."""
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    monkeypatch.setattr("cli.output.os.access", lambda path, _: "there" not in str(path))
    for file, words in {
        "there": "there is a folder: name a file in it.",
        "missing/a.json": f"missing/a.json cannot be written: there is no folder {tmp_path}/missing; make it first.",
        "there/a.json": f"there/a.json cannot be written: {tmp_path}/there is read-only.",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)):
            check_writable(Path(file))
    check_writable(Path("a.json"), None)
