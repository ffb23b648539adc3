"""`homeostat down`: stop the stack, leave no process behind."""

from typing import Annotated

import typer

from homeostat.cli.console import examples

EXAMPLES = examples("homeostat down", "homeostat down --purge")


def command(
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the stack's data as well.")
    ] = False,
) -> None:
    """Stop the services, then the servers; also what a killed run left behind."""
    from homeostat.cli.stack import launch
    from homeostat.cli.stack.home import Home

    home = Home.find()
    if not home.root.exists():
        typer.echo(f"nothing to stop in {home.root}")
        return
    orphans = launch.stop(home)
    if orphans:
        typer.echo(f"ended what an earlier run had left: {', '.join(sorted(orphans))}")
    if purge:
        launch.purge(home)
        typer.echo(f"removed {home.root}")
    typer.echo("stopped")
