"""The application that the commands register in."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from continuad import __version__

ANOMALOUS = 1
REFUSED = 2
CRASHED = 70
INTERRUPTED = 130


class UserInterruptError(Exception):
    """The user pressed Ctrl-C; the message says what became of the work."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C is left to `main`, typer would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise UserInterruptError from interrupt


def example(*commands: str) -> str:
    """An epilog for a command's help."""
    title = "Example:" if len(commands) == 1 else "Examples:"
    return "\b\n" + "\n".join([title, *(f"  {command}" for command in commands)])  # \b: lines are kept


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "continuad learn parts.bank bottle photos/bottle/good", "continuad inspect parts.bank photos/new"
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"continuad {__version__}")
        raise typer.Exit


@app.callback()
def continuad(
    debug: Annotated[  # taken out of the arguments by `main`, wherever it stands
        bool, typer.Option("--debug", help="Show tracebacks. May stand behind the command, too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Visual anomaly detection that keeps learning: show it good parts, then let it inspect.

    Results go to stdout, everything else to stderr. Exit status: 0 done, 2 refused for the reason that is
    printed, 130 interrupted.
    """
