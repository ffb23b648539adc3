"""`homeostat watch`: the processes, live."""

import typer

from homeostat.cli.console import examples

EXAMPLES = examples("homeostat watch", "HOMEOSTAT_HOME=/srv/homeostat homeostat watch")


def command() -> None:
    """Show the stack and keep the view current until Ctrl-C."""
    import time

    from rich.live import Live

    from homeostat.cli.console import stdout
    from homeostat.cli.errors import CliError
    from homeostat.cli.stack.home import Home
    from homeostat.cli.stack.state import StackState
    from homeostat.cli.views import process_table

    home = Home.find()
    console = stdout()
    if not console.is_terminal:
        raise CliError("watch needs a terminal", fix="homeostat status")
    with Live(console=console, auto_refresh=False) as live:
        while (state := StackState.read(home)) is not None:
            live.update(process_table(state), refresh=True)
            try:
                time.sleep(0.5)
            except KeyboardInterrupt:
                return
    typer.echo(f"no stack in {home.root}; start one: homeostat up")
