"""The training process: ``python -m homeostat.trainer.job``, a child with limits of its own.

Reads one request from standard input and writes one JSON message a line to standard output. It ends
by itself when its parent does: the open input is the tether.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from homeostat.common.errors import NotFound
from homeostat.common.pipeline import Snapshot
from homeostat.trainer import dataset, training
from homeostat.trainer.dataset import Refused
from homeostat.trainer.messages import (
    OUT_OF_MEMORY,
    HasJudged,
    HasRefused,
    HasTuned,
    Loaded,
    Message,
    Request,
)
from homeostat.trainer.training import Champion

NICENESS = 5  # serving goes first on a shared machine


def compute(request: Request, tell: Callable[[Message], None]) -> None:
    """All of a run that takes a processor; the challenger's file is complete before it is told."""
    pipeline = Snapshot.decode(bytes(request.snapshot)).pipeline
    try:
        examples = dataset.load(
            Path(request.offline_store), pipeline, request.table_versions, as_of=request.as_of
        )
        tell(Loaded(len(examples), examples.positives, examples.digest))
        judged, content = training.train(
            examples,
            pipeline,
            champion=_champion(request),
            threads=request.threads,
            tuned=request.tuned,
            on_tuned=lambda tuned: tell(HasTuned(tuned)),
        )
    except (Refused, NotFound) as error:
        tell(HasRefused(str(error)))
        return
    if content is not None:
        Path(request.model_file).write_bytes(content)
    tell(HasJudged(judged))


def _champion(request: Request) -> Champion | None:
    if request.champion is None or request.champion_file is None:
        return None
    return Champion(request.champion, Path(request.champion_file).read_bytes())


def main() -> int:
    # Libraries may print; only messages go where the parent reads.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    os.nice(NICENESS)
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = request.memory_limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def tell(message: Message) -> None:
        messages.write(msgspec.json.encode(message) + b"\n")
        messages.flush()

    try:
        compute(request, tell)
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


def _end_with_parent() -> None:
    # By descriptor: a thread inside a buffered reader aborts the interpreter's own ending.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
