"""How commands speak: steps while they wait, one clear error when they fail."""

import functools
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

from homeostat.cli.errors import CliError
from homeostat.common.errors import HomeostatError

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")


def reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a ``CliError`` into its message, its fix and its exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(128 + signal.SIGINT) from interrupt
        except CliError as error:
            typer.echo(f"error: {error.message}", err=True)
            if error.fix:
                typer.echo(f"  try: {error.fix}", err=True)
            raise typer.Exit(error.exit_code) from error

        except HomeostatError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error

    return wrapped


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(("Examples:", *lines))


def stdout() -> "Console":
    """A console for results; rich honours NO_COLOR and terminals that are none."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())
