"""Every `dualsd ...` that README or a page of the documentation names can be typed."""

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from cli.main import COMMANDS, app, load_command
from tests.docs.pages import DOCS, ROOT, blocks

PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
SHELL = ("", "sh", "console", "bash")
"""Languages of blocks that hold commands; README's have none."""


def commands_in_blocks() -> list[tuple[str, str]]:
    """(page, command) of each line that starts with it, torchrun's among them."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.text.replace("\\\n", " ").splitlines() if block.language in SHELL else ():
                command = re.match(r"\s*(?:\$ )?(?:torchrun .*--no-python )?(dualsd .*)", line)
                if command is not None:
                    found.append((page.name, command.group(1)))
    return found


def commands_in_text() -> list[tuple[str, str]]:
    """(page, command) of each that is named in running text, often without what it needs."""
    found = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        found += [(page.name, named) for named in re.findall(r"`(dualsd [^`]*)`", prose.replace("\n", " "))]
    return found


def resolve(line: str) -> tuple[Any, list[str]]:
    """The command that a line names, and its arguments. Fails for one that does not exist."""
    _, *arguments = shlex.split(line, comments=True)
    command: Any = get_command(app)
    loaded: Any = {name: lambda name=name: load_command(name) for name in COMMANDS}
    while loaded and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        assert name in loaded, f"there is no command {name!r} in: {line}"
        command = loaded[name]()
        loaded = {name: lambda own=own: own for name, own in getattr(command, "commands", {}).items()}
    return command, arguments


def parse(line: str) -> None:
    """Fails where the command line would be refused before anything is done."""
    command, arguments = resolve(line)
    command.make_context(command.name, arguments)


def check_options(line: str) -> None:
    """Fails for options that the command does not have."""
    command, arguments = resolve(line)
    known = {option for own in command.params for option in (*own.opts, *own.secondary_opts)} | {"--help"}
    typed = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    assert not typed - known, f"no such option: {line}"


@pytest.mark.parametrize(("page", "line"), commands_in_blocks())
def test_a_command_of_a_block_parses(page: str, line: str) -> None:
    parse(line)


@pytest.mark.parametrize(("page", "line"), commands_in_text())
def test_a_command_of_the_text_exists(page: str, line: str) -> None:
    check_options(line)


def test_pages_name_commands_in_both_ways() -> None:
    pages = {page for page, _ in commands_in_blocks()}
    assert {"README.md", "index.md", "tutorial.md", "numbers.md", "your-features.md", "store.md"} <= pages
    assert len(commands_in_text()) > 20


def test_every_command_and_option_is_seen() -> None:
    for line in ("dualsd --debug", "dualsd eval --layers", "dualsd cache prune --layer", "dualsd train --no-compile"):
        check_options(line)
    for name in COMMANDS:
        command, rest = resolve(f"dualsd {name}")
        assert (command.name, rest) == (name if name not in ("cache", "prompts", "adapter") else command.name, [])
        assert len(getattr(command, "commands", command.params)) > 0
    assert {*resolve("dualsd cache")[0].commands} >= {"build", "maps", "info", "verify", "prune", "pack", "export"}


@pytest.mark.parametrize(
    "line",
    [
        "dualsd evaluate",
        "dualsd eval --layer 2",
        "dualsd cache make",
        "dualsd cache export",
        "dualsd train --steps x",
    ],
)
def test_what_cannot_be_typed_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"no command|No such option|[Mm]issing|a valid integer"):
        parse(line)


def test_an_unknown_option_in_the_text_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no such option"):
        check_options("dualsd eval --frames original")
