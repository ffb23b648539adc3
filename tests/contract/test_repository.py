"""What must hold of the repository itself, so that nobody has to remember it in review."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent for path in ROOT.glob("services/*/pyproject.toml"))
PACKAGES = sorted([*SERVICES, *(path.parent for path in ROOT.glob("libs/*/pyproject.toml"))])
DECISIONS = sorted((ROOT / "docs/adr").glob("*.md"))
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())

# In pieces, so that this file does not name them either.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("maven", "org"),
        ("maven", "apache", "org"),
    )
)


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607 - git is whichever git checked this out
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listing.split("\0") if name)
    return [path for path in paths if path.is_file()]


def markdown_files() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_lock_pins_everything_with_a_hash_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()

    requirements = lock.replace("\\\n", "").splitlines()

    assert "://" not in lock
    assert requirements
    assert [r for r in requirements if "==" not in r or "--hash=sha256:" not in r] == []


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    named = [
        f"{name_of(path)}: {host}"
        for path in tracked_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]

    assert named == []


def test_ignored_files_are_not_tracked() -> None:
    tracked_and_ignored = subprocess.run(
        ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"],  # noqa: S607 - as above
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout

    assert tracked_and_ignored == ""


def test_ci_script_can_be_executed() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_make_help_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (\S+)", makefile, flags=re.MULTILINE))

    listing = subprocess.run(
        ["make", "--no-print-directory", "help"],  # noqa: S607 - whichever make people use
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    explained = dict(line.split(maxsplit=1) for line in listing.splitlines() if line)

    assert set(explained) == targets
    assert {"setup", "demo", "test", "fmt", "lint", "types", "arch", "up", "down", "check"} <= set(
        explained
    )


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_decision_has_its_headings_and_fits_one_screen(decision: Path) -> None:
    lines = decision.read_text().splitlines()

    number, title = re.fullmatch(r"# (\d{4}): (\S.*)", lines[0]).groups()  # type: ignore[union-attr] # a mismatch is the failure

    assert decision.stem.startswith(f"{number}-")
    assert title
    assert [line for line in lines if line.startswith("## ")] == [
        "## Status",
        "## Context",
        "## Decision",
        "## Consequences",
        "## Alternatives",
    ]
    assert len(lines) <= 60


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(decision.stem[:4]) for decision in DECISIONS]

    assert numbers == list(range(1, len(DECISIONS) + 1))


def test_relative_links_of_every_document_lead_somewhere() -> None:
    broken = [
        f"{name_of(document)}: {target}"
        for document in markdown_files()
        for target in re.findall(r"\]\(([^)\s#]+)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]

    assert broken == []


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_package_is_named_after_its_folder_and_described(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]

    assert project["name"] == f"homeostat-{package.name}"
    assert project["requires-python"] == WORKSPACE["project"]["requires-python"]
    assert project["description"]
    assert re.match(rf"# .*{package.name}", (package / "README.md").read_text(), re.IGNORECASE)


@pytest.mark.parametrize("service", SERVICES, ids=name_of)
def test_service_depends_on_the_contracts_and_on_no_other_package_of_ours(service: Path) -> None:
    project = tomllib.loads((service / "pyproject.toml").read_text())["project"]

    ours = [name for name in project["dependencies"] if name.startswith("homeostat-")]

    assert ours == ["homeostat-common"]


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_package_is_type_checked_and_under_the_import_contracts(package: Path) -> None:
    source = package / "src"
    has_code = (source / "homeostat" / package.name / "__init__.py").exists()
    root_packages = WORKSPACE["tool"]["importlinter"]["root_packages"]

    assert name_of(source) in WORKSPACE["tool"]["mypy"]["mypy_path"]
    assert (f"homeostat.{package.name}" in root_packages) == has_code


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_namespace_stays_implicit_and_modules_are_named_after_the_domain(package: Path) -> None:
    modules = {path.name for path in (package / "src").rglob("*.py")}

    assert not (package / "src/homeostat/__init__.py").exists()
    assert modules.isdisjoint({"utils.py", "util.py", "helpers.py", "base.py", "misc.py"})


@pytest.mark.parametrize("dockerfile", sorted(ROOT.glob("*/*/Dockerfile")), ids=name_of)
def test_image_builds_without_extensions_and_runs_as_an_ordinary_user(dockerfile: Path) -> None:
    text = dockerfile.read_text()

    users = re.findall(r"^USER\s+(\S+)", text, flags=re.MULTILINE)

    assert not text.startswith("# syntax=")
    assert "--mount=" not in text
    assert users
    assert users[-1] not in {"root", "0"}
