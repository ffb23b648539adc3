"""The loop closes on the embedded stack."""

from pathlib import Path

import pytest

from homeostat.cli.testing import RunningSystem
from tests.e2e import loop

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


def test_a_new_fraud_is_alarmed_learnt_and_promoted(system: RunningSystem, tmp_path: Path) -> None:
    loop.assert_closes(system, tmp_path)
