"""The compose file and the images agree with the code, as far as reading them can tell."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from homeostat.cli.stack.ports import STANDARD
from homeostat.cli.stack.servers import kafka
from homeostat.cli.stack.services import SERVICES
from homeostat.drift.settings import Settings as DriftSettings
from homeostat.features.settings import Settings as FeaturesSettings
from homeostat.inference.settings import Settings as InferenceSettings
from homeostat.ingest.settings import Settings as IngestSettings
from homeostat.router.settings import JudgeSettings
from homeostat.router.settings import Settings as RouterSettings
from homeostat.trainer.settings import Settings as TrainerSettings

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
CONTAINERS: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
SETTINGS: dict[str, type[BaseSettings]] = {
    "drift": DriftSettings,
    "features": FeaturesSettings,
    "inference": InferenceSettings,
    "ingest": IngestSettings,
    "judge": JudgeSettings,
    "router": RouterSettings,
    "trainer": TrainerSettings,
}
ONE_SHOT = {"keys"}
READ_BY_LIBRARIES = {"inference": {"MLFLOW_TRACKING_URI"}}  # by MLflow's client
SERVICE_FOLDERS = sorted(path.parent.name for path in ROOT.glob("services/*/pyproject.toml"))


def dockerfile(service: str) -> str:
    return (ROOT / "services" / service / "Dockerfile").read_text()


def variables(settings: type[BaseSettings]) -> set[str]:
    """The environment variables that a settings class reads."""
    names: set[str] = set()
    for name, field in settings.model_fields.items():
        match field.validation_alias:
            case None:
                names.add(f"{settings.model_config['env_prefix']}{name}".upper())
            case AliasChoices() as alias:
                names.update(str(choice) for choice in alias.choices)
            case alias:
                names.add(str(alias))
    return names


def read_by_common() -> set[str]:
    """The environment variables that every process reads without a settings class."""
    sources = (ROOT / "libs/common/src").rglob("*.py")
    reads = re.compile(r'os\.environ\.(?:get|setdefault)\("(\w+)"')
    return {name for source in sources for name in reads.findall(source.read_text())}


def test_every_process_of_the_embedded_stack_is_a_container() -> None:
    processes = {service.name for service in SERVICES}

    assert set(CONTAINERS) == processes | {"kafka", "postgres", "redis", "mlflow"} | ONE_SHOT
    assert processes == set(SETTINGS)


@pytest.mark.parametrize("name", CONTAINERS)
def test_container_is_pinned_limited_and_checked(name: str) -> None:
    container = CONTAINERS[name]

    _, _, tag = container["image"].partition(":")

    assert tag not in {"", "latest"}
    assert container["mem_limit"]
    assert ("healthcheck" in container) == (name not in ONE_SHOT)
    assert all(port.startswith("127.0.0.1:") for port in container.get("ports", []))


@pytest.mark.parametrize("name", [name for name in CONTAINERS if "build" in CONTAINERS[name]])
def test_container_is_built_from_a_file_that_is_there(name: str) -> None:
    assert (ROOT / CONTAINERS[name]["build"]["dockerfile"]).is_file()


def test_volumes_and_dependencies_name_what_exists() -> None:
    declared = set(yaml.safe_load(TEXT)["volumes"])
    mounted = {
        volume.partition(":")[0] for c in CONTAINERS.values() for volume in c.get("volumes", [])
    }
    named = {volume for volume in mounted if not volume.startswith(".")}
    bound = mounted - named
    dependencies = {name for c in CONTAINERS.values() for name in c.get("depends_on", {})}

    assert named == declared
    assert [path for path in bound if not (ROOT / path).is_file()] == []
    assert dependencies <= set(CONTAINERS)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_of_a_container_is_read_by_its_service(name: str) -> None:
    given = set(CONTAINERS[name]["environment"])

    known = variables(SETTINGS[name]) | read_by_common() | READ_BY_LIBRARIES.get(name, set())

    assert given - known == set()


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_port_of_a_container_is_the_one_that_its_service_listens_on(service: Any) -> None:
    container = CONTAINERS[service.name]
    fields = SETTINGS[service.name].model_fields
    listening = [fields[name].default for name in ("port", "grpc_port") if name in fields]

    assert container["ports"] == [f"127.0.0.1:{port}:{port}" for port in listening]
    assert listening[0] == service.port
    assert f":{service.port}/readyz'" in container["healthcheck"]["test"][-1]


def test_servers_are_published_where_the_embedded_ones_are() -> None:
    published = {
        name: int(port.split(":")[1])
        for name in ("kafka", "mlflow")
        for port in CONTAINERS[name]["ports"]
    }

    assert published == {name: STANDARD[name] for name in published}
    listeners = CONTAINERS["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"HOST://127.0.0.1:{published['kafka']}" in listeners


def test_kafka_is_configured_as_the_embedded_one() -> None:
    where = {"process.roles", "node.id", "listeners", "advertised.listeners", "log.dirs"}
    where |= {"controller.quorum.voters", "controller.listener.names"}
    lines = [line.partition("=") for line in kafka.CONFIG.splitlines() if "=" in line]
    embedded = {
        f"KAFKA_{key.upper().replace('.', '_')}": value
        for key, _, value in lines
        if key not in where
    }

    environment = CONTAINERS["kafka"]["environment"]

    assert {name: str(environment.get(name)) for name in embedded} == embedded


def test_env_example_lists_every_variable_of_the_compose_file() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", TEXT))

    listed = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))

    assert wanted - listed == set()


def test_secrets_have_no_default_but_one_that_says_so() -> None:
    secrets = re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN|KEY))(?::-([^}]*))?\}", TEXT)

    assert {default for _, default in secrets} == {"local-only", ""}
    assert {name for name, default in secrets if not default} == {"PII_HASH_KEY"}


@pytest.mark.parametrize("service", SERVICE_FOLDERS)
def test_image_of_a_service_differs_from_the_others_only_in_its_name(service: str) -> None:
    def comparable(name: str) -> str:
        _, _, rest = dockerfile(name).partition("\n")
        return rest.replace(f"SERVICE={name}\n", "").replace(f'"homeostat.{name}"', "")

    assert comparable(service) == comparable(SERVICE_FOLDERS[0])
    assert f"ARG SERVICE={service}\n" in dockerfile(service)
    assert f'CMD ["python", "-m", "homeostat.{service}"]' in dockerfile(service)


@pytest.mark.parametrize("folder", ["libs/common", *(f"services/{s}" for s in SERVICE_FOLDERS)])
def test_nothing_in_an_image_asks_for_pandas(folder: str) -> None:
    """MLflow's server brings it to a workspace; images are without, and pyarrow imports it late."""
    sources = (ROOT / folder / "src").rglob("*.py")

    assert [str(path) for path in sources if "pandas" in path.read_text()] == []


@pytest.mark.parametrize(
    "file", [*ROOT.glob("services/*/Dockerfile"), ROOT / "infra/mlflow/Dockerfile"]
)
def test_images_use_the_uv_of_the_makefile_and_a_supported_python(file: Path) -> None:
    [wanted] = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = file.read_text()

    assert re.findall(r"\buv==(\S+)", text) == [wanted]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["python:3.11-slim"]
    assert workspace["project"]["requires-python"].startswith(">=3.11")
