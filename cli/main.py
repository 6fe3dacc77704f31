"""`dualsd`: the commands, and what becomes of errors. Imports nothing heavy, so that `--help` is instant."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import (
    cache,
    cache_care,
    cache_export,
    cache_info,
    compare,
    demo,
    doctor,
    evaluate,
    grid,
    match,
    prompts,
    report,
    reproduce,
    score,
    show_recipes,
    train,
)

EXIT_INPUT = 2
EXIT_FAULT = 1
EXIT_INTERRUPTED = 130
DEBUG = "--debug"
DIVIDED = ("cache", "eval", "grid", "train")
"""Commands that processes of torchrun do together; `cache` says itself which of its own."""


class CommandLine(TyperGroup):
    """Turns exceptions into one sentence on stderr and an exit code."""

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


def _is_usage(error: Exception) -> bool:
    """Whether typer itself will tell the user (a wrong option, a missing argument)."""
    return hasattr(error, "exit_code") and hasattr(error, "show")


def _report(error: Exception) -> int:
    """Print one sentence and give the exit code."""
    from featstore.plain_text import printable
    from matcher.errors import InputError

    if isinstance(error, InputError):
        typer.echo(f"dualsd: {printable(str(error))}", err=True)
        return EXIT_INPUT
    reason = printable(f"{type(error).__name__}: {error}")
    typer.echo(f"dualsd: this is a fault of dualsd's own ({reason}); `dualsd {DEBUG} ...` shows where.", err=True)
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
    from cli.processes import check_divided

    check_divided(context.invoked_subcommand, DIVIDED)


cache.app.command("info")(cache_info.info)
cache.app.command("verify", epilog=cache_care.VERIFY_EXAMPLES)(cache_care.verify)
cache.app.command("prune", epilog=cache_care.PRUNE_EXAMPLES)(cache_care.prune)
cache.app.command("pack", epilog=cache_care.PACK_EXAMPLES)(cache_care.pack)
cache.app.command("unpack")(cache_care.unpack)
cache.app.command("export", epilog=cache_export.EXAMPLES)(cache_export.export)
app.add_typer(cache.app, name="cache")
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("score", epilog=score.EXAMPLES)(score.score)
app.command("compare", epilog=compare.EXAMPLES)(compare.compare)
app.command("grid", epilog=grid.EXAMPLES)(grid.grid)
app.command("report", epilog=report.EXAMPLES)(report.report)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("match", epilog=match.EXAMPLES)(match.match)
app.add_typer(prompts.app, name="prompts")
app.command("recipes", epilog=show_recipes.EXAMPLES)(show_recipes.show_recipes)
app.command("reproduce", epilog=reproduce.EXAMPLES)(reproduce.reproduce)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The entry point of the command `dualsd`."""
    arguments = sys.argv[1:]
    if DEBUG in arguments:  # wherever it is typed
        arguments = [DEBUG, *(argument for argument in arguments if argument != DEBUG)]
    app(arguments)
