"""`homeostat logs`: what the processes wrote."""

from typing import Annotated

import typer

from homeostat.cli.console import examples

EXAMPLES = examples("homeostat logs router", "homeostat logs -f")


def command(
    service: Annotated[
        str | None, typer.Argument(help="One process; all of them when left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they write.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Lines of each to begin with.")] = 50,
) -> None:
    """Print the logs, each line after the name of its process."""
    from homeostat.cli.errors import UsageError
    from homeostat.cli.stack.home import Home
    from homeostat.cli.stack.logs import Log, follow_all

    home = Home.find()
    found = {path.stem: path for path in sorted(home.logs.glob("*.log"))}
    if service is not None and service not in found:
        raise UsageError(
            f"no log of {service!r} in {home.logs}",
            fix=f"choose from {', '.join(found) or 'nothing: homeostat up'}",
        )
    chosen = [Log(name, path) for name, path in found.items() if service in {None, name}]
    width = max((len(log.name) for log in chosen), default=0)
    for log in chosen:
        for line in log.last(lines):
            typer.echo(f"{log.name:<{width}} | {line}")
    if follow:
        for name, line in follow_all(chosen):
            typer.echo(f"{name:<{width}} | {line}")
