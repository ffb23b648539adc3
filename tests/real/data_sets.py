"""Published data sets, where the machine has them."""

import os
from pathlib import Path

import pytest


def data_set(name: str) -> Path:
    """The file of a data set; without it the test is skipped."""
    folder = os.environ.get("HOMEOSTAT_DATASETS")
    if not folder or not (path := Path(folder) / f"{name}.parquet").exists():
        pytest.skip(f"HOMEOSTAT_DATASETS has no {name}.parquet")
    return path
