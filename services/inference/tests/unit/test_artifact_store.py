"""A damaged or unsigned file is never handed on, wherever it lies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from homeostat.common.artifacts import ArtifactRefused, redis_key
from homeostat.common.errors import TransientError
from homeostat.common.pipeline import Pipeline
from homeostat.inference.artifact_store import ArtifactStore


class Shelf(dict[str, bytes]):
    """What the artifact store asks of Redis."""

    async def get(self, name: str) -> bytes | None:  # type: ignore[override]  # Redis' own get
        return super().get(name)


@pytest.fixture
def trained(workshop: Any, make_pipeline: Callable[..., Pipeline]) -> Any:
    return workshop.train(make_pipeline("fraud"), 1)


def store(folder: Path, shelf: Any, workshop: Any) -> ArtifactStore:
    return ArtifactStore(
        folder,
        redis=shelf,
        verify_key=workshop.public_key_file,
        registry_timeout=timedelta(0),
    )


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


async def test_a_file_is_kept_on_disk_and_found_there_when_redis_is_empty(
    trained: Any, workshop: Any, tmp_path: Path
) -> None:
    shelf = Shelf({redis_key(trained.version.artifact.sha256): trained.content})
    first = await store(tmp_path, shelf, workshop).fetch(trained.version)
    shelf.clear()

    second = await store(tmp_path, shelf, workshop).fetch(trained.version)

    assert first == second
    assert second.content == trained.content == second.path.read_bytes()


@pytest.mark.parametrize("bit", [0, 1_000, 20_001])
async def test_a_flipped_bit_is_refused_and_a_sound_copy_elsewhere_still_serves(
    trained: Any, workshop: Any, tmp_path: Path, bit: int
) -> None:
    shelf = Shelf({redis_key(trained.version.artifact.sha256): flipped(trained.content, bit)})
    source = store(tmp_path, shelf, workshop)

    with pytest.raises(ArtifactRefused, match="every copy is damaged"):
        await source.fetch(trained.version)

    (tmp_path / trained.version.artifact.sha256).write_bytes(trained.content)
    assert (await source.fetch(trained.version)).content == trained.content


async def test_a_damaged_copy_on_disk_is_replaced(
    trained: Any, workshop: Any, tmp_path: Path
) -> None:
    path = tmp_path / trained.version.artifact.sha256
    path.write_bytes(trained.content[:-1])
    shelf = Shelf({redis_key(trained.version.artifact.sha256): trained.content})

    await store(tmp_path, shelf, workshop).fetch(trained.version)

    assert path.read_bytes() == trained.content


async def test_an_announcement_that_was_altered_is_refused(
    trained: Any, workshop: Any, tmp_path: Path
) -> None:
    shelf = Shelf({redis_key(trained.version.artifact.sha256): trained.content})
    altered = msgspec.structs.replace(trained.version, threshold=0.01)

    with pytest.raises(ArtifactRefused, match="signature"):
        await store(tmp_path, shelf, workshop).fetch(altered)

    assert not (tmp_path / altered.artifact.sha256).exists()


async def test_a_file_that_is_nowhere_may_come_later(
    trained: Any, workshop: Any, tmp_path: Path
) -> None:
    with pytest.raises(TransientError, match="neither on disk"):
        await store(tmp_path, Shelf(), workshop).fetch(trained.version)
