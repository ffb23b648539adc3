"""`homeostat replay`: a file of events and labels through the front door, under its own clock."""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.commands.options import Since, Until, instant, length
from homeostat.cli.console import examples

EXAMPLES = examples(
    "homeostat replay fraud.parquet --pipeline pipelines/fraud/pipeline.yaml",
    "homeostat replay fraud.parquet --pipeline pipeline.yaml --speed 3600 --until 2026-01-12",
)


def command(
    file: Annotated[Path, typer.Argument(help="A Parquet file of events with their labels.")],
    pipeline: Annotated[Path, typer.Option(help="The pipeline file that maps its columns.")],
    speed: Annotated[
        float, typer.Option(min=0, help="Times event time; 0: as fast as the pipeline goes.")
    ] = 0,
    step: Annotated[
        str, typer.Option(help="How much event time is sent before the pipeline drains.")
    ] = "6h",
    predict: Annotated[
        bool | None,
        typer.Option(help="Ask for a prediction of each event; unless told, as `scoring` says."),
    ] = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Replay a file: labels wait for their time, decisions cost what they declare."""
    import asyncio

    from homeostat.cli.addresses import Addresses
    from homeostat.cli.replay.run import replay
    from homeostat.common.pipeline import ScoringPath, load

    spec = load(pipeline)
    report = asyncio.run(
        replay(
            file,
            spec,
            predict=spec.scoring is ScoringPath.REQUEST if predict is None else predict,
            addresses=Addresses.find().reachable(),
            speed=speed,
            step=length(step, option="--step"),
            start=instant(since),
            end=instant(until),
            tell=typer.echo,
        )
    )
    rate = report.events / report.seconds if report.seconds else 0
    typer.echo(
        f"{report.events:,} events and {report.labels:,} labels in {report.seconds:,.1f} s "
        f"({rate:,.0f} events/s), {report.refused:,} refused"
    )
    if report.predictions:
        typer.echo(f"{report.predictions:,} predictions, {report.errors:,} errors")
    if report.first_refusal is not None:
        typer.echo(f"first refusal: {report.first_refusal}", err=True)
        raise typer.Exit(1)
