"""What the service and its training process say to one another, and what is kept of it."""

from __future__ import annotations

import msgspec

from homeostat.common.schemas.models import Golden, ModelVersion, Reference
from homeostat.trainer.governance import Verdict

OUT_OF_MEMORY = 77  # the exit code of a training process that met its memory limit


class Configuration(msgspec.Struct, frozen=True):
    """What won. ``history`` (ms; null: all) counts back from the end of the rows trained on."""

    history: int | None
    searched: dict[str, float]
    rounds: int
    threshold: float


class Tuned(msgspec.Struct, frozen=True):
    """The winner, its validation score, and how far the search came.

    With ``is_complete`` the trials ended the search: the same rows and seed give the same winner on
    any machine. Otherwise the clock did; ``trials`` then says how many count.
    """

    configuration: Configuration
    score: float
    trials: int
    is_complete: bool


class Candidate(msgspec.Struct, frozen=True):
    """A challenger that passed: all of its announcement but number, state and signature."""

    sha256: str
    size_bytes: int
    features: tuple[str, ...]
    definition_hash: str
    threshold: float
    golden: Golden
    reference: Reference
    training: dict[str, str]


class Judged(msgspec.Struct, frozen=True):
    """The verdict with its evidence; a refused challenger has no candidate."""

    verdict: Verdict
    figures: dict[str, float | None]
    details: dict[str, str]
    candidate: Candidate | None = None


class Request(msgspec.Struct, frozen=True):
    """What to train; ``tuned`` is the search of an interrupted run, which is not done again."""

    snapshot: msgspec.Raw
    table_versions: dict[str, int]
    as_of: int
    offline_store: str
    model_file: str  # where the challenger goes
    threads: int
    memory_limit_bytes: int
    champion: ModelVersion | None = None
    champion_file: str | None = None
    tuned: Tuned | None = None


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    rows: int
    positives: int
    digest: str


class HasTuned(msgspec.Struct, frozen=True, tag="tuned"):
    tuned: Tuned


class HasJudged(msgspec.Struct, frozen=True, tag="judged"):
    judged: Judged


class HasRefused(msgspec.Struct, frozen=True, tag="refused"):
    reason: str


Message = Loaded | HasTuned | HasJudged | HasRefused
