"""Kafka's jars are the pinned ones, or none."""

import hashlib
from pathlib import Path

import pytest

from homeostat.cli.errors import CliError
from homeostat.cli.stack import jars
from homeostat.cli.stack.jars import ChecksumMismatch, Jar

CONTENT = b"a jar"
JAR = Jar("org.example", "thing", "1.0", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_the_pinned_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / JAR.file_name
    path.write_bytes(CONTENT)

    jars.verify(path, JAR)


def test_a_file_with_another_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / JAR.file_name
    path.write_bytes(CONTENT + b"!")

    with pytest.raises(ChecksumMismatch) as refusal:
        jars.verify(path, JAR)

    assert str(path) in refusal.value.message
    assert JAR.sha256 in refusal.value.message
    assert str(path) in refusal.value.fix


def test_a_damaged_cache_refuses_to_become_a_class_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOMEOSTAT_KAFKA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = jars.jar_folder()
    folder.mkdir(parents=True)
    for jar in jars.pinned():
        (folder / jar.file_name).write_bytes(b"damaged")

    with pytest.raises(ChecksumMismatch):
        jars.class_path()


def test_the_pins_name_one_kafka_and_no_file_twice() -> None:
    names = [jar.file_name for jar in jars.pinned()]

    assert f"kafka_2.13-{jars.KAFKA_VERSION}.jar" in names
    assert len(names) == len(set(names))


def test_an_unpacked_kafka_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jar = tmp_path / "libs" / "kafka_2.13-9.9.9.jar"
    jar.parent.mkdir()
    jar.write_bytes(CONTENT)
    monkeypatch.setenv("HOMEOSTAT_KAFKA_HOME", str(tmp_path))

    assert jars.class_path() == [jar]


def test_a_folder_without_kafka_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMEOSTAT_KAFKA_HOME", str(tmp_path))

    with pytest.raises(CliError, match="holds no Kafka"):
        jars.class_path()
