"""The secrets of one stack: made at first start, kept for as long as its data."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from homeostat.cli.stack.home import Home, write_private


@dataclass(frozen=True)
class Credentials:
    """What the embedded servers ask for, and what only the replayer may present to ingest."""

    postgres_password: str
    redis_password: str
    replay_token: str

    @classmethod
    def of(cls, home: Home) -> "Credentials":
        """Read them, or make them: Postgres knows its password since it was initialised."""
        path = home.keys / "credentials.json"
        if path.exists():
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        fresh = cls(*(secrets.token_urlsafe(24) for _ in range(3)))
        write_private(path, json.dumps(asdict(fresh), indent=2))
        return fresh


@dataclass(frozen=True)
class SigningKeys:
    """Files of an Ed25519 pair: the trainer signs models, inference verifies them."""

    private: Path
    public: Path

    @classmethod
    def of(cls, home: Home) -> "SigningKeys":
        from homeostat.common import artifacts

        keys = cls(home.keys / "model-signing.pem", home.keys / "model-verify.pem")
        if not keys.private.exists():
            write_private(keys.private, artifacts.new_private_key())
        if not keys.public.exists():
            key = artifacts.load_private_key(keys.private)
            write_private(keys.public, artifacts.public_key_of(key))
        return keys
