"""`homeostat up`: start the stack and wait until it is up."""

from typing import Annotated, Literal

import typer

from homeostat.cli.console import examples

EXAMPLES = examples("homeostat up", "homeostat up --services ingest,features --ports free")


def command(
    services: Annotated[
        str | None,
        typer.Option(help="Only these services, separated by commas.", show_default="all"),
    ] = None,
    no_services: Annotated[
        bool, typer.Option("--no-services", help="Only Kafka, Postgres, Redis and MLflow.")
    ] = False,
    ports: Annotated[
        Literal["standard", "free"],
        typer.Option(help="The documented ports (or the next free ones), or any free ones."),
    ] = "standard",
    timeout: Annotated[float, typer.Option(help="Seconds to wait until all is up.")] = 120.0,
) -> None:
    """Start Kafka, Postgres, Redis, MLflow and the services on this machine.

    An existing server takes the place of an embedded one when its variable is set:
    KAFKA_BOOTSTRAP_SERVERS, DATABASE_URL, REDIS_URL, MLFLOW_TRACKING_URI.
    """
    from homeostat.cli.stack import launch
    from homeostat.cli.stack.home import Home
    from homeostat.cli.stack.plan import Plan
    from homeostat.cli.stack.ports import PortPolicy
    from homeostat.cli.stack.state import StackState
    from homeostat.cli.views import addresses, fetch_kafka, steps

    home = Home.find()
    chosen = _chosen(services, no_services=no_services)
    state = StackState.read(home)
    if state is not None and (supervisor := state.supervisor.process()) is not None:
        typer.echo(f"already started in {home.root}")
        plan = Plan.read(home)
    else:
        launch.end_orphans(home)
        plan = Plan.make(services=chosen, policy=PortPolicy(ports))
        if "kafka" in plan.servers:
            fetch_kafka()
        supervisor = launch.start(home, plan)
    try:
        with steps() as report:
            state = launch.wait_until_up(
                home, supervisor, seconds=timeout, awaited=plan.awaited, report=report
            )
    except KeyboardInterrupt:
        typer.echo("stopping what was started", err=True)
        launch.stop(home)
        raise
    addresses(state)


def _chosen(services: str | None, *, no_services: bool) -> tuple[str, ...]:
    from homeostat.cli.errors import UsageError
    from homeostat.cli.stack.services import SERVICES, named

    if services is not None and no_services:
        raise UsageError("--services and --no-services exclude each other", fix="give one of them")
    if no_services:
        return ()
    if services is None:
        return tuple(service.name for service in SERVICES)
    return tuple(service.name for service in named([n.strip() for n in services.split(",")]))
