"""`homeostat apply`: publish a pipeline; every service picks it up by itself."""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.console import examples

EXAMPLES = examples(
    "homeostat apply pipeline.yaml", "homeostat apply pipelines/fraud/pipeline.yaml"
)


def command(file: Annotated[Path, typer.Argument(help="A pipeline file.")]) -> None:
    """Create a pipeline's topics and publish it; publishing it twice changes nothing."""
    import asyncio

    from homeostat.cli.addresses import Addresses
    from homeostat.cli.commands.plan import report
    from homeostat.cli.publishing import publish
    from homeostat.common.pipeline import load

    pipeline = load(file)
    broker = Addresses.find().reachable().kafka
    planned, snapshot = asyncio.run(publish(pipeline, bootstrap_servers=broker))
    for line in report(planned):
        typer.echo(line)
    typer.echo(f"  generation {snapshot.generation}, {snapshot.content_hash[:12]}")
