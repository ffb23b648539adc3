"""A file that crashes, hangs or lies ends its child process, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from homeostat.common.pipeline import Pipeline
from homeostat.inference.probe import probe
from homeostat.inference.scorer import ModelRefused

PATIENCE = timedelta(seconds=30)


@pytest.fixture
def trained(workshop: Any, make_pipeline: Callable[..., Pipeline]) -> Any:
    return workshop.train(make_pipeline("fraud"), 1)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model"
    path.write_bytes(content)
    return path


def with_first_tree(content: bytes, **members: Any) -> bytes:
    """The model with a part of its first tree replaced."""
    document = json.loads(content)
    document["learner"]["gradient_booster"]["model"]["trees"][0].update(members)
    return json.dumps(document, separators=(",", ":")).encode()


async def test_a_good_file_passes(trained: Any, tmp_path: Path) -> None:
    await probe(trained.version, written(tmp_path, trained.content), patience=PATIENCE)


async def test_a_golden_mismatch_is_refused_with_its_reason(trained: Any, tmp_path: Path) -> None:
    golden = trained.version.golden
    lying = msgspec.structs.replace(golden, scores=tuple(score / 2 for score in golden.scores))
    version = msgspec.structs.replace(trained.version, golden=lying)

    with pytest.raises(ModelRefused, match="golden vector"):
        await probe(version, written(tmp_path, trained.content), patience=PATIENCE)


async def test_a_file_that_crashes_the_loader_ends_the_child_alone(
    trained: Any, tmp_path: Path
) -> None:
    tree = json.loads(trained.content)["learner"]["gradient_booster"]["model"]["trees"][0]
    far_away = [2**30 if child != -1 else -1 for child in tree["left_children"]]
    hostile = with_first_tree(trained.content, left_children=far_away)

    with pytest.raises(ModelRefused, match="SIG"):
        await probe(trained.version, written(tmp_path, hostile), patience=PATIENCE)


async def test_a_file_that_a_tree_leads_in_circles_ends_the_child_alone(
    trained: Any, tmp_path: Path
) -> None:
    tree = json.loads(trained.content)["learner"]["gradient_booster"]["model"]["trees"][0]
    in_a_circle = [0 if child != -1 else -1 for child in tree["left_children"]]
    hostile = with_first_tree(
        trained.content, left_children=in_a_circle, right_children=in_a_circle
    )

    with pytest.raises(ModelRefused, match=r"SIG|did not end"):
        await probe(trained.version, written(tmp_path, hostile), patience=timedelta(seconds=15))


async def test_a_child_that_does_not_end_is_given_up(trained: Any, tmp_path: Path) -> None:
    hanging = tmp_path / "model"
    os.mkfifo(hanging)  # nobody ever writes: to read it is to wait

    with pytest.raises(ModelRefused, match="did not end"):
        await probe(trained.version, hanging, patience=timedelta(seconds=1))
