"""What a stack is made of."""

from pathlib import Path

import pytest

from homeostat.cli.errors import CliError, UsageError
from homeostat.cli.stack.credentials import Credentials, SigningKeys
from homeostat.cli.stack.home import Home
from homeostat.cli.stack.plan import Plan
from homeostat.cli.stack.services import SERVICES, named

ALL = tuple(service.name for service in SERVICES)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / ".homeostat")


def test_an_existing_server_takes_the_place_of_the_embedded_one(home: Home) -> None:
    plan = Plan.make(services=(), environment={"REDIS_URL": "redis://elsewhere:6379/3"})

    assert plan.servers == ("kafka", "postgres", "mlflow")
    assert plan.addresses(home)["REDIS_URL"] == "redis://elsewhere:6379/3"


def test_a_plan_reads_back_as_it_was_written(home: Home) -> None:
    plan = Plan.make(services=ALL, environment={"MLFLOW_TRACKING_URI": "http://elsewhere:5000"})

    plan.write(home)

    assert Plan.read(home) == plan
    assert home.plan.stat().st_mode & 0o077 == 0


def test_mlflow_without_any_postgres_is_refused_with_the_way_out() -> None:
    with pytest.raises(CliError, match="MLflow") as refusal:
        Plan.make(servers=("mlflow",), environment={})

    assert "DATABASE_URL" in refusal.value.fix


def test_each_service_is_told_its_ports_its_servers_and_its_siblings(home: Home) -> None:
    plan = Plan.make(services=ALL, environment={})

    programs = {program.name: program for program in plan.service_programs(home)}

    router = programs["router"]
    assert router.argv[-2:] == ("-m", "homeostat.router")
    assert router.env["ROUTER_PORT"] == str(plan.ports["router"])
    assert router.env["ROUTER_GRPC_PORT"] == str(plan.ports["router-grpc"])
    assert router.env["ROUTER_INFERENCE_TARGET"] == f"127.0.0.1:{plan.ports['inference-grpc']}"
    assert programs["judge"].env["ROUTER_JUDGE_PORT"] == str(plan.ports["judge"])
    assert all(plan.addresses(home).items() <= program.env.items() for program in programs.values())


def test_only_the_trainer_holds_the_signing_key(home: Home) -> None:
    plan = Plan.make(services=ALL, environment={})
    keys = SigningKeys.of(home)

    holders = {
        program.name
        for program in plan.service_programs(home)
        if str(keys.private) in program.env.values()
    }

    assert holders == {"trainer"}
    assert keys.private.stat().st_mode & 0o077 == 0


def test_secrets_stay_the_same_from_start_to_start(home: Home) -> None:
    assert Credentials.of(home) == Credentials.of(home)
    assert SigningKeys.of(home).private.read_text() == SigningKeys.of(home).private.read_text()


def test_an_unknown_service_is_a_usage_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match="rooter") as refusal:
        named(["router", "rooter"])

    assert "router" in refusal.value.fix
