"""`dualsd`: the commands, and what becomes of errors. A command is imported when it is used: `--help` is instant."""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main

from cli.help import Command, Group

EXIT_INPUT = 2
EXIT_FAULT = 1
EXIT_INTERRUPTED = 130
DEBUG = "--debug"
DIVIDED = ("cache", "eval", "grid", "train")
"""Commands that processes of torchrun do together; `cache` says itself which of its own."""

COMMANDS = {
    "eval": ("evaluate.command", "Match the keypoints of a split's pairs and print PCK by category."),
    "score": ("kept.score", "Score the predictions of an evaluation again, without matching."),
    "compare": ("kept.compare", "Compare evaluations over the same pairs with the first, by category and over all."),
    "grid": ("grid.command", "Score every layer at every timestep, and all layers together at every choice."),
    "report": ("kept.report", "Write report.html, table.md and table.tex of a run again, from what it keeps."),
    "train": ("train.command", "Learn prompts for one layer (SD4Match) or for two (the dual method)."),
    "match": ("match.command", "Find points of one photograph in another; prints them in pixels of B."),
    "view": ("view.command.command", "The workbench in the browser: click, change timesteps and weights, watch."),
    "import": ("import_annotations.command", "Keypoints of your photographs, from LabelMe's, COCO's or CVAT's files."),
    "recipes": ("show_recipes.show_recipes", "List the recipes; with a NAME every value, and where it comes from."),
    "reproduce": ("reproduce.command", "Run a table's methods and print it beside the paper's figures."),
    "demo": ("demo.demo", "Cache, extract, match and score the embedded demo, and draw one pair."),
    "doctor": ("doctor.doctor", "Versions, device, whether the model can be had, the store and free disk."),
    "cache": ("cache.app", "Compute everything before the matching once, and keep it."),
    "prompts": ("prompts.app", "Learned prompts: from and to SD4Match's files, and what is in them."),
}
"""Where each command lies below `cli`, and what the list of commands says of it; a module is loaded when it is used."""


class CommandLine(Group):
    """Loads the command that is typed, and turns exceptions into one sentence on stderr and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """All there are, in the order in which they are listed."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """What the list of commands shows of one."""
        return Command(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The command that is typed, loaded."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else load_command(name), rest

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command; `--debug` lets exceptions through with their traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo("\ninterrupted: what was complete is kept, and the same command goes on from there.", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):  # nobody reads on: typer ends quietly
            raise
        except Exception as error:
            if ctx.params.get("debug") or _is_usage(error):
                raise
            raise typer.Exit(_report(error)) from error


def load_command(name: str) -> Any:
    """A command with its options."""
    place, _, attribute = COMMANDS[name][0].rpartition(".")
    module = import_module(f"cli.{place}")
    found = getattr(module, attribute)
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False)
        examples = getattr(module, f"{name.upper()}_EXAMPLES", getattr(module, "EXAMPLES", None))
        app.command(name, cls=Command, epilog=examples)(found)
        found = app
    return typer.main.get_command(found)


def _is_usage(error: Exception) -> bool:
    """Whether typer itself will tell the user (a wrong option, a missing argument)."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _report(error: Exception) -> int:
    """Print one sentence and give the exit code."""
    from rich.console import Console

    from cli.output import print_lines
    from matcher.errors import InputError

    if isinstance(error, InputError):
        print_lines(Console(stderr=True), f"dualsd: {error}")
        return EXIT_INPUT
    reason = f"{type(error).__name__}: {error}"
    print_lines(
        Console(stderr=True), f"dualsd: this is a fault of dualsd's own ({reason}); `dualsd {DEBUG} ...` shows where."
    )
    return EXIT_FAULT


app = typer.Typer(
    name="dualsd",
    cls=CommandLine,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Diffusion features for semantic correspondence: cached once, matched from the cache.",
    epilog="Start with: dualsd demo · or, step by step: dualsd cache build, then dualsd eval or dualsd grid",
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"dualsd {version('dualsd')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[  # noqa: ARG001  (`CommandLine` reads it)
        bool, typer.Option(DEBUG, help="Show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001  (its callback is all of it)
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    from featstore.pipeline.distributed import check_divided

    check_divided(context.invoked_subcommand, DIVIDED)


def main() -> None:
    """The entry point of the command `dualsd`."""
    arguments = sys.argv[1:]
    if DEBUG in arguments:  # wherever it is typed
        arguments = [DEBUG, *(argument for argument in arguments if argument != DEBUG)]
    app(arguments)
