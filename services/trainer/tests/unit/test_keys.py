"""The key pair of an installation is made once and stays whole."""

from pathlib import Path

import pytest

from homeostat.common import artifacts
from homeostat.trainer.keys import ensure_pair


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "private.pem"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    return tmp_path / "public.pem"


def test_a_new_pair_belongs_together_and_the_private_half_is_its_owners(
    private: Path, public: Path
) -> None:
    ensure_pair(private, public)

    signature = artifacts.load_private_key(private).sign(b"model")
    artifacts.load_public_key(public).verify(signature, b"model")
    assert private.stat().st_mode & 0o777 == 0o600


def test_an_existing_pair_stays(private: Path, public: Path) -> None:
    ensure_pair(private, public)
    before = private.read_text(), public.read_text()

    ensure_pair(private, public)

    assert (private.read_text(), public.read_text()) == before


@pytest.mark.parametrize("found", ["", "of another key"])
def test_a_lost_or_foreign_public_half_is_made_anew(
    private: Path, public: Path, found: str
) -> None:
    ensure_pair(private, public)
    before = public.read_text()
    public.write_text(found)

    ensure_pair(private, public)

    assert public.read_text() == before


def test_a_draft_left_by_a_killed_run_is_no_hindrance(private: Path, public: Path) -> None:
    private.with_name("private.pem.new").write_text("-----BEGIN")

    ensure_pair(private, public)

    artifacts.load_private_key(private)
