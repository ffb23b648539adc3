"""Fixtures for every package: the real servers, started once a session, when a test asks."""

from collections.abc import Iterator

import pytest

from homeostat.cli.testing import SessionStack, running_mlflow, running_stores


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionStack]:
    """Kafka, Postgres and Redis of the whole session."""
    with running_stores(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def stack(stores: SessionStack) -> Iterator[SessionStack]:
    """They again, for one module: ``.kafka``, ``.database_url``, ``.redis_url``.

    What the module has published is gone when the next one begins.
    """
    yield stores
    stores.retire_pipelines()


@pytest.fixture(scope="session")
def mlflow_server(stores: SessionStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server; only tests that ask for it pay for its start."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow"), stores) as address:
        yield address
