"""`homeostat validate`: is this pipeline file right?"""

from pathlib import Path
from typing import Annotated

import typer

from homeostat.cli.console import examples

EXAMPLES = examples(
    "homeostat validate pipeline.yaml", "homeostat validate pipelines/*/pipeline.yaml"
)


def command(
    files: Annotated[list[Path], typer.Argument(help="Pipeline files.")],
) -> None:
    """Check pipeline files and their policies; every problem is told with line and fix."""
    from homeostat.common.errors import PipelineFileError
    from homeostat.common.pipeline import load

    refused = 0
    for file in files:
        try:
            pipeline = load(file)
        except PipelineFileError as error:
            refused += 1
            typer.echo(f"error: {error}", err=True)
            continue
        typer.echo(
            f"{file}: {pipeline.name!r} is valid, {len(pipeline.features)} features "
            f"of {len(pipeline.entities)} entities, {len(pipeline.policy.rules)} rules"
        )
    if refused:
        raise typer.Exit(1)
