"""One pipeline that serves, for every edge to be fed with what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from homeostat.cli.testing import RunningSystem
from homeostat.common.pipeline import Pipeline, load

PAYMENTS = Path(__file__).parents[1] / "e2e" / "payments.yaml"


@pytest.fixture(scope="module")
def serving(crowned: Callable[[Pipeline], Pipeline]) -> Pipeline:
    """The pipeline ``edges``, published and with a champion."""
    return crowned(load(PAYMENTS).model_copy(update={"name": "edges"}))


@pytest.fixture(scope="module")
def base(system: RunningSystem, serving: Pipeline) -> Callable[[str], str]:
    """Where a service answers for the pipeline, without a slash at the end."""
    return lambda service: system.url(service, f"/v1/pipelines/{serving.name}")
