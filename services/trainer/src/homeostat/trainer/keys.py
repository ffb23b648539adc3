"""Makes the key pair of an installation: ``python -m homeostat.trainer.keys PRIVATE PUBLIC``.

Run before the trainer and inference, as often as one likes: a private key that is there stays, and
the public one is what belongs to it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from homeostat.common import artifacts

OWNER_ONLY = 0o600
EVERYONE = 0o644


def ensure_pair(private: Path, public: Path) -> None:
    """Leave a key at ``private``, readable by its owner only, and its other half at ``public``."""
    if not private.exists():
        _write(private, artifacts.new_private_key(), mode=OWNER_ONLY)
    text = artifacts.public_key_of(artifacts.load_private_key(private))
    if not public.exists() or public.read_text(encoding="ascii") != text:
        _write(public, text, mode=EVERYONE)


def _write(path: Path, text: str, *, mode: int) -> None:
    """Put a whole file in place, or none: a reader must never find half a key."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m homeostat.trainer.keys")
    parser.add_argument("private", type=Path)
    parser.add_argument("public", type=Path)
    arguments = parser.parse_args()
    ensure_pair(arguments.private, arguments.public)


if __name__ == "__main__":
    main()
