"""`homeostat plan`: what would publishing this file change?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from homeostat.cli.console import examples

if TYPE_CHECKING:
    from homeostat.cli.publishing import Plan

EXAMPLES = examples("homeostat plan pipeline.yaml", "homeostat plan pipelines/fraud/pipeline.yaml")


def command(file: Annotated[Path, typer.Argument(help="A pipeline file.")]) -> None:
    """Show what a pipeline file would change, and what it costs; changes nothing."""
    import asyncio

    from homeostat.cli.addresses import Addresses
    from homeostat.cli.publishing import plan, published
    from homeostat.common.pipeline import load

    pipeline = load(file)
    current = asyncio.run(published(Addresses.find().reachable().kafka)).get(pipeline.name)
    for line in report(plan(pipeline, current)):
        typer.echo(line)


def report(planned: "Plan") -> list[str]:
    """A plan for people, line by line."""
    from homeostat.cli.publishing import Change

    lines = [f"{planned.pipeline.name}: {planned.change}"]
    lines += [f"  {difference}" for difference in planned.differences]
    if planned.change is Change.CHANGED and planned.is_new_definition:
        lines.append("  the features change: filled from history, while the old ones answer")
    lines += [
        f"  state of one {entity}: at most {size:,} bytes"
        for entity, size in planned.bytes_per_entity.items()
    ]
    return lines
