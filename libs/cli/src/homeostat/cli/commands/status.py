"""`homeostat status`: what runs, where, and since when."""

from typing import Annotated, Literal

import typer

from homeostat.cli.console import examples

EXAMPLES = examples(
    "homeostat status",
    "homeostat status -o json",
    "KAFKA_BOOTSTRAP_SERVERS=localhost:9092 homeostat status",
)


def command(
    output: Annotated[
        Literal["table", "json"], typer.Option("--output", "-o", help="How to print it.")
    ] = "table",
) -> None:
    """Show each process of the stack; exit 0 when all of them are up, 1 otherwise.

    Without a stack here, but with KAFKA_BOOTSTRAP_SERVERS set, the services that run elsewhere
    are asked over HTTP: all of them must be ready.
    """
    import json
    import os

    from homeostat.cli.console import stdout
    from homeostat.cli.stack.home import Home
    from homeostat.cli.stack.state import StackState
    from homeostat.cli.views import process_table, status_document

    home = Home.find()
    state = StackState.read(home)
    if state is None and os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        _elsewhere(output)
        return
    document = status_document(home, state)
    if output == "json":
        typer.echo(json.dumps(document, indent=2))
    elif state is None:
        typer.echo(f"no stack in {home.root}; start one: homeostat up")
    else:
        stdout().print(process_table(state))
    if not document["up"]:
        raise typer.Exit(1)


def _elsewhere(output: Literal["table", "json"]) -> None:
    import asyncio
    import json

    from homeostat.cli import elsewhere
    from homeostat.cli.addresses import Addresses
    from homeostat.cli.console import stdout

    document = elsewhere.status_document(asyncio.run(elsewhere.ask(Addresses.find().urls)))
    if output == "json":
        typer.echo(json.dumps(document, indent=2))
    else:
        stdout().print(elsewhere.table(document))
    if not document["up"]:
        raise typer.Exit(1)
