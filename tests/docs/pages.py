"""The fenced blocks of a page of the documentation, run as a reader would run them."""

import os
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PRINTS = "prints"
"""The title of a block that shows, in part, what the block before it prints."""

LEAST_MOVED = 1.0
"""Figures of two decimals from here on are PCK in percent, which may move; smaller ones (alphas) may not."""

_BLOCK = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_DECIMAL = re.compile(r"\d+\.\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(block["language"], block["title"] or "", block["text"]) for block in found]


@dataclass(frozen=True)
class Reader:
    """Somebody who follows a page in `folder`, with `dualsd` on the path. moved: by how many points PCK may differ from
    what the page shows."""

    folder: Path
    moved: float

    def follow(self, page: Path, titles: Collection[str], languages: Collection[str]) -> int:
        """Run the shell blocks of these titles and, where "python" is among the languages, all Python, in order; check
        what the page says that they print. Returns how many blocks were run."""
        output: str | None = None
        run = 0
        for block in blocks(page):
            if block.title == PRINTS and output is not None:
                check_printed(block.text, output, self.moved)
            elif block.language in languages and (block.language == "python" or block.title in titles):
                output = self.run(block)
                run += 1
            else:
                output = None
        return run

    def run(self, block: Block) -> str:
        """What a block prints. Fails where it fails."""
        arguments = [sys.executable, "-c", block.text] if block.language == "python" else ["sh", "-ec", block.text]
        done = subprocess.run(
            arguments, cwd=self.folder, env=self._environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        commands = self.folder / ".commands"
        commands.mkdir(exist_ok=True)
        command = commands / "dualsd"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dualsd "$@"\n', encoding="utf-8")
        command.chmod(0o755)
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def check_printed(shown: str, output: str, moved: float) -> None:
    """Every line that a page shows is in the output, in order. `…` stands for anything, runs of blanks are alike, and
    figures of two decimals may differ by `moved`."""
    left = [" ".join(line.split()) for line in output.splitlines()]
    for line in shown.splitlines():
        wanted = " ".join(line.split())
        place = next((place for place, printed in enumerate(left) if _alike(wanted, printed, moved)), None)
        assert place is not None, f"the page shows\n{line}\nand what is left of the output is\n" + "\n".join(left)
        del left[: place + 1]


def _alike(shown: str, printed: str, moved: float) -> bool:
    pattern = r"(\d+\.\d+)".join(
        ".*".join(re.escape(part) for part in piece.split("…")) for piece in _DECIMAL.split(shown)
    )
    found = re.fullmatch(pattern, printed)
    if found is None:
        return False
    pairs = zip(_DECIMAL.findall(shown), found.groups(), strict=True)
    return all(
        one == other or (_may_move(one) and _may_move(other) and abs(float(one) - float(other)) <= moved)
        for one, other in pairs
    )


def _may_move(figure: str) -> bool:
    return re.fullmatch(r"\d+\.\d\d", figure) is not None and float(figure) >= LEAST_MOVED
