"""`homeostat backtest`: what would this pipeline have done with that file? No servers needed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from homeostat.cli.commands.options import Since, Until, instant, length
from homeostat.cli.console import examples

EXAMPLES = examples(
    "homeostat backtest pipelines/fraud/pipeline.yaml fraud.parquet",
    "homeostat backtest pipeline.yaml history.parquet --warm-up 20% --step 1h -o json",
)


def command(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline file.")],
    file: Annotated[Path, typer.Argument(help="A Parquet file of events with their labels.")],
    output: Annotated[
        Literal["table", "json"], typer.Option("--output", "-o", help="How to print it.")
    ] = "table",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same report.")] = 7,
    step: Annotated[str, typer.Option(help="How much event time is sent at once.")] = "15m",
    warm_up: Annotated[
        str | None,
        typer.Option(
            help="Share of the rows before the first champion, as 20%; "
            "unless told, as soon as the mature labels are enough."
        ),
    ] = None,
    slices: Annotated[str, typer.Option(help="The width of a line of the result.")] = "1d",
    since: Since = None,
    until: Until = None,
) -> None:
    """Run a file through a pipeline's whole loop in this process, under a virtual clock."""
    import json

    from homeostat.cli.backtests import Teller, show
    from homeostat.cli.console import stdout
    from homeostat.common.pipeline import load
    from homeostat.sim.backtest import Options, backtest

    report = backtest(
        file,
        load(pipeline),
        Options(
            seed=seed,
            step=length(step, option="--step"),
            warm_up=None if warm_up is None else _share(warm_up),
            stretch=length(slices, option="--slices"),
            start=instant(since),
            end=instant(until),
        ),
        on_slice=Teller(),
    )
    if output == "json":
        typer.echo(json.dumps(report.document(), indent=2))
    else:
        show(report, stdout())


def _share(text: str) -> float:
    """
    >>> _share("20%")
    0.2
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise typer.BadParameter(f"{text!r} is not a share below one: write 20% or 0.2")
    return share
