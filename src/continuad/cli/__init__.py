"""The command line. Whatever needs torch is imported inside the commands, so that help comes at once."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

# each command registers itself in `app` when its module is imported; --help lists them in this order
# isort: off
from continuad.cli import demo, learn, inspect, watch, serve, bank, export  # noqa: F401
from continuad.cli import evaluate, bench, analyze, methods, costs  # noqa: F401

# isort: on
from continuad.cli.app import CRASHED, INTERRUPTED, REFUSED, UserInterruptError, app
from continuad.cli.output import complain, say, stderr
from continuad.errors import ContinuadError
from continuad.needs import explain_missing

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit; `arguments` are those of the process by default.

    Exit status: that of the command; 2 for what the user can mend, 130 after Ctrl-C, 70 for a bug.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every file name can be encoded
        sys.stdout.reconfigure(errors="backslashreplace")
    words, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="continuad")
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(_explain(error))
    sys.exit(0)


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take `--debug` out, wherever it stands before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [word for word in arguments[:end] if word != "--debug"]
    return [*options, *arguments[end:]], len(options) < end


def _explain(error: Exception) -> int:
    """Say on stderr what happened and what to do about it, and return the exit status."""
    if isinstance(error, ModuleNotFoundError):
        error = explain_missing(error) or error
    match error:
        case ContinuadError():
            complain(error.problem, error.remedy)
            return REFUSED
        case UserInterruptError():
            say(f"Interrupted. {error}".rstrip(), console=stderr)
            return INTERRUPTED
        case _:
            complain(
                f"Something unexpected happened ({type(error).__name__}: {error}).",
                "Run the same command with --debug and report what it prints.",
            )
            return CRASHED
