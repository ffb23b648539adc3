"""What a command tells a person when it cannot go on.

CliError                exit 1  the work failed
├── UsageError          exit 2  the call was wrong
└── TimeoutExceeded     exit 3  waited long enough
"""

from typing import ClassVar


class CliError(Exception):
    """A failure with a way out: ``message`` says what happened, ``fix`` what to type next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class UsageError(CliError):
    """The arguments contradict each other or name something that does not exist."""

    exit_code = 2


class TimeoutExceeded(CliError):
    """What was waited for did not happen in time; it may still happen."""

    exit_code = 3
