"""The `homeostat` command: each command is a module, this one only registers them."""

import typer

from homeostat.cli.commands import (
    apply,
    backtest,
    down,
    logs,
    plan,
    replay,
    status,
    up,
    validate,
    watch,
)
from homeostat.cli.console import reporting_errors

app = typer.Typer(
    name="homeostat",
    help="Keeps real-time machine-learning models healthy by itself.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich takes as long as all the rest
    pretty_exceptions_enable=False,
)

for name, module in {
    "up": up,
    "down": down,
    "status": status,
    "logs": logs,
    "watch": watch,
    "validate": validate,
    "plan": plan,
    "apply": apply,
    "replay": replay,
    "backtest": backtest,
}.items():
    app.command(name, epilog=module.EXAMPLES)(reporting_errors(module.command))

if __name__ == "__main__":
    app()
